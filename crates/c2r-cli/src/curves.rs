//! The curves of a distillation as one SVG file, drawn from its log.

use std::{fs, path::Path};

use anyhow::Context;
use c2r_base::artifact;
use c2r_eval::plot::{self, Axis, Ink, Mark, Plot};
use serde_json::Value;

/// Points per curve; longer logs are thinned.
const MOST_POINTS: usize = 400;
/// Panels next to each other.
const COLUMNS: usize = 2;

/// A panel: its title and the curves in it, each a name and the JSON pointer of its value in a line of the log.
type Panel = (&'static str, &'static [(&'static str, &'static str)]);

const PANELS: [Panel; 6] = [
    (
        "losses",
        &[("whole", "/loss"), ("matching", "/matching"), ("performance", "/performance"), ("robust", "/robust")],
    ),
    (
        "margins of the synthetic images under attack, logits",
        &[("10 %", "/margin_quantiles/0"), ("50 %", "/margin_quantiles/1"), ("90 %", "/margin_quantiles/2")],
    ),
    (
        "margins of the real images under attack, logits",
        &[
            ("10 %", "/real_margin_quantiles/0"),
            ("50 %", "/real_margin_quantiles/1"),
            ("90 %", "/real_margin_quantiles/2"),
        ],
    ),
    ("cosine similarity with the nearest impostor", &[("mean", "/impostor_similarity")]),
    ("share of companions reused without a backward pass", &[("so far", "/reused_share")]),
    (
        "backward passes for companions",
        &[("made", "/passes/attack_backward"), ("saved against PGD-10", "/backward_saved")],
    ),
];

/// Draws `log` (JSON lines with an `iteration`) into `path`; panels without a value are left out. Without any line
/// nothing is written.
pub(crate) fn write(path: &Path, log: &Path) -> anyhow::Result<()> {
    let text = fs::read_to_string(log).with_context(|| format!("cannot read {}", log.display()))?;
    let lines: Vec<Value> = text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    if lines.is_empty() {
        return Ok(());
    }
    Ok(artifact::write_atomically(path, draw(&lines).as_bytes())?)
}

fn draw(lines: &[Value]) -> String {
    let step = lines.len().div_ceil(MOST_POINTS);
    let last = lines.len() - 1;
    let kept: Vec<&Value> =
        lines.iter().enumerate().filter(|(at, _)| at % step == 0 || *at == last).map(|(_, line)| line).collect();
    let plots: Vec<Plot> = PANELS.iter().filter_map(|panel| plot(panel, &kept)).collect();
    plot::file("Curves of a distillation by iteration", &plots, COLUMNS)
}

/// A panel with its curves, where the log has values of any.
fn plot((title, curves): &Panel, lines: &[&Value]) -> Option<Plot> {
    let mut marks = Vec::new();
    let mut legend = Vec::new();
    for (name, pointer) in *curves {
        let point = |line: &&Value| Some((line["iteration"].as_f64()?, line.pointer(pointer)?.as_f64()?));
        let points: Vec<(f64, f64)> = lines.iter().filter_map(point).collect();
        if !points.is_empty() {
            // The second of the colours is blue.
            let ink = Ink::Method(legend.len() + 1);
            legend.push((ink, (*name).to_owned()));
            marks.push(Mark::Line { ink, points, shift: 0.0 });
        }
    }
    let points = || {
        marks.iter().flat_map(|mark| match mark {
            Mark::Line { points, .. } => points.as_slice(),
            _ => &[],
        })
    };
    let (first, last) = (points().next()?.0, points().map(|(at, _)| *at).fold(0.0, f64::max));
    let within = if first < last { (first, last) } else { (f64::NEG_INFINITY, f64::INFINITY) };
    let x = Axis::round("iteration", points().map(|(at, _)| *at), within);
    let lowest = if points().any(|(_, value)| *value < 0.0) { f64::NEG_INFINITY } else { 0.0 };
    let y = Axis::round("", points().map(|(_, value)| *value), (lowest, f64::INFINITY));
    Some(Plot { title: (*title).to_owned(), legend, x, y, marks })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn curves_are_drawn_where_the_log_has_values() {
        let lines: Vec<Value> = (1..=1000)
            .map(|at| json!({"iteration": at, "loss": 5.0 - 0.001 * f64::from(at), "margin_quantiles": [-1.0, 0.0, 1.0]}))
            .collect();
        let svg = draw(&lines);
        assert!(svg.contains("losses") && svg.contains("margins of the synthetic images"), "{svg}");
        assert!(!svg.contains("real images") && !svg.contains("nearest impostor"));
        // One loss curve and three quantiles, thinned; axes and ticks have a line of two points each.
        let curves: Vec<usize> = svg
            .split("points=\"")
            .skip(1)
            .map(|rest| rest.split('"').next().unwrap_or_default().split_whitespace().count())
            .filter(|&n_points| n_points > 2)
            .collect();
        assert_eq!(curves.len(), 4);
        assert!(curves.iter().all(|n_points| (300..=MOST_POINTS + 1).contains(n_points)), "{curves:?}");
    }

    #[test]
    fn flat_curves_and_odd_numbers_do_not_break_the_picture() {
        let svg = draw(&[json!({"iteration": 1, "loss": 2.0}), json!({"iteration": 2, "loss": 2.0, "robust": null})]);
        assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
        let svg = draw(&[json!({"iteration": 3, "loss": 0.0})]);
        assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
    }
}
