//! The curves of a distillation as one SVG file, drawn from its log.

use std::{fmt::Write, fs, path::Path};

use anyhow::Context;
use c2r_base::artifact;
use serde_json::Value;

/// Points per curve; longer logs are thinned.
const MOST_POINTS: usize = 400;
const WIDTH: f64 = 460.0;
const HEIGHT: f64 = 200.0;
/// Around the plotting area: left, right, top, bottom.
const MARGIN: [f64; 4] = [64.0, 12.0, 26.0, 24.0];
/// From the left end of the axis to the first name of a curve.
const LEGEND_START: f64 = 60.0;
/// About the width of a character of the names.
const CHARACTER: f64 = 6.2;
/// Blue, orange, green, purple, readable on white and told apart by colour-blind people (Okabe and Ito 2008).
const COLOURS: [&str; 4] = ["#0072b2", "#d55e00", "#009e73", "#cc79a7"];

/// A panel: its title and the curves in it, each a name and where its value stands in a line of the log.
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
    let mut panels = Vec::new();
    for (title, curves) in PANELS {
        let curves: Vec<(&str, Vec<(f64, f64)>)> = curves
            .iter()
            .map(|(name, pointer)| {
                let point = |line: &&Value| Some((line["iteration"].as_f64()?, line.pointer(pointer)?.as_f64()?));
                (*name, kept.iter().filter_map(point).collect::<Vec<_>>())
            })
            .filter(|(_, points)| !points.is_empty())
            .collect();
        if !curves.is_empty() {
            panels.push(panel(title, &curves));
        }
    }
    let rows = panels.len().div_ceil(2);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {} {}\" font-family=\"sans-serif\" font-size=\"11\">\n\
         <title>Curves of a distillation by iteration</title>\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n",
        2.0 * WIDTH,
        rows as f64 * HEIGHT
    );
    for (at, panel) in panels.iter().enumerate() {
        let (x, y) = ((at % 2) as f64 * WIDTH, (at / 2) as f64 * HEIGHT);
        writeln!(svg, "<g transform=\"translate({x} {y})\">\n{panel}</g>").expect("texts grow");
    }
    svg + "</svg>\n"
}

fn panel(title: &str, curves: &[(&str, Vec<(f64, f64)>)]) -> String {
    let all = || curves.iter().flat_map(|(_, points)| points.iter().copied());
    let (left, right) = range(all().map(|(x, _)| x));
    let (low, high) = range(all().map(|(_, y)| y));
    let [margin_left, margin_right, margin_top, margin_bottom] = MARGIN;
    let (end, floor) = (WIDTH - margin_right, HEIGHT - margin_bottom);
    let x = |value: f64| margin_left + (value - left) / (right - left) * (end - margin_left);
    let y = |value: f64| floor - (value - low) / (high - low) * (floor - margin_top);
    let mut svg = format!(
        "<text x=\"{margin_left}\" y=\"15\" font-weight=\"bold\">{title}</text>\n\
         <path d=\"M{margin_left} {margin_top}V{floor}H{end}\" fill=\"none\" stroke=\"#888\"/>\n"
    );
    for (value, at) in [(low, floor), (high, margin_top)] {
        let label = number(value);
        writeln!(svg, "<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{label}</text>", margin_left - 4.0, at + 4.0)
            .expect("texts grow");
    }
    for (value, anchor) in [(left, "start"), (right, "end")] {
        let label = number(value);
        writeln!(svg, "<text x=\"{:.1}\" y=\"{}\" text-anchor=\"{anchor}\">{label}</text>", x(value), floor + 15.0)
            .expect("texts grow");
    }
    // Names stand below the axis, between its labels, where no curve is.
    let mut name_at = margin_left + LEGEND_START;
    for (at, (name, points)) in curves.iter().enumerate() {
        let colour = COLOURS[at % COLOURS.len()];
        let path: Vec<String> = points.iter().map(|&(a, b)| format!("{:.1},{:.1}", x(a), y(b))).collect();
        writeln!(
            svg,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.5\"/>\n\
             <text x=\"{name_at:.0}\" y=\"{}\" fill=\"{colour}\">{name}</text>",
            path.join(" "),
            floor + 15.0
        )
        .expect("texts grow");
        name_at += CHARACTER * name.chars().count() as f64 + 14.0;
    }
    svg
}

/// Smallest and largest value, apart even where all are the same: nothing at all lies on the floor of 0 to 1.
fn range(values: impl Iterator<Item = f64>) -> (f64, f64) {
    let (low, high) =
        values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| (low.min(value), high.max(value)));
    match (low, high) {
        _ if high > low => (low, high),
        (0.0, _) => (0.0, 1.0),
        _ => (low - 0.5, high + 0.5),
    }
}

/// A number with about three digits.
fn number(value: f64) -> String {
    match value.abs() {
        size if size >= 1e5 => format!("{value:.1e}"),
        size if size >= 100.0 || value.fract() == 0.0 => format!("{value:.0}"),
        size if size >= 0.01 => format!("{value:.2}"),
        _ => format!("{value:.1e}"),
    }
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
        // One loss curve and three quantiles, thinned, from the first to the last iteration.
        assert_eq!(svg.matches("<polyline").count(), 4);
        let first = svg.split("points=\"").nth(1).unwrap().split('"').next().unwrap();
        assert!(first.split(' ').count() <= MOST_POINTS + 1);
        assert!(first.starts_with("64.0,26.0") && first.ends_with("448.0,176.0"), "{first}");
        assert_eq!(svg.matches("<g").count(), svg.matches("</g>").count());
    }

    #[test]
    fn flat_curves_and_odd_numbers_do_not_break_the_picture() {
        let svg = draw(&[json!({"iteration": 1, "loss": 2.0}), json!({"iteration": 2, "loss": 2.0, "robust": null})]);
        assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
        assert_eq!([0.0, 3.0, 0.125, 123.4, 2e7, 1e-5].map(number), ["0", "3", "0.12", "123", "2.0e7", "1.0e-5"]);
    }
}
