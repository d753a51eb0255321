//! Axes and marks as inline SVG. Colours, fonts and line widths are classes of `report.css`, so that one drawing serves
//! light and dark.

use maud::{Markup, html};

use crate::metrics::round_step;

/// Size of a drawing in its own units; text of 13 units stays legible where a phone shows the whole width.
const WIDTH: f64 = 440.0;
const HEIGHT: f64 = 300.0;
/// Room for labels at the left, right, top and bottom.
const LEFT: f64 = 52.0;
const RIGHT: f64 = 14.0;
const TOP: f64 = 12.0;
const BOTTOM: f64 = 48.0;
/// Half the width of the cap of an error bar.
const CAP: f64 = 3.5;
/// Number of ticks of an axis, about.
const TICKS: f64 = 6.0;
/// Colours and shapes, and so the methods on one drawing; the reference on real images has its own.
const SERIES: usize = 7;

/// Who a mark belongs to: colour, dashes and shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ink {
    /// What is trained on all real images.
    Reference,
    /// The method at this place.
    Method(usize),
}

impl Ink {
    /// Which of several drawings it is on, so that no colour is there twice; the reference is on all of them.
    pub(super) fn sheet(self) -> Option<usize> {
        match self {
            Self::Reference => None,
            Self::Method(place) => Some(place / SERIES),
        }
    }

    /// Class of the drawing's elements.
    pub(super) fn class(self) -> String {
        match self {
            Self::Reference => "s0".to_owned(),
            Self::Method(place) => format!("s{}", place % SERIES + 1),
        }
    }
}

/// One direction of a drawing.
pub(super) struct Axis {
    /// What it measures.
    pub(super) label: String,
    /// Places and texts of its ticks, in units of the data.
    pub(super) ticks: Vec<(f64, String)>,
    low: f64,
    high: f64,
    logarithmic: bool,
}

impl Axis {
    /// An axis that holds `values` with round ticks, nothing of it outside `within`.
    pub(super) fn round(label: &str, values: impl IntoIterator<Item = f64>, within: (f64, f64)) -> Self {
        let (mut low, mut high) = (f64::INFINITY, f64::NEG_INFINITY);
        for value in values {
            (low, high) = (low.min(value), high.max(value));
        }
        if low > high {
            (low, high) = (0.0, 1.0);
        }
        let step = round_step((high - low).max(1e-3) / TICKS);
        let (first, last) = ((low / step - 0.2).floor(), (high / step + 0.2).ceil());
        let (low, high) = ((first * step).max(within.0), (last * step).min(within.1));
        let whole = |decimals: &usize| (step * 10f64.powi(*decimals as i32)).fract() < 1e-6;
        let decimals = (0..4).find(whole).unwrap_or(4);
        let places = (first as i64..=last as i64).map(|place| place as f64 * step);
        let ticks = places
            .filter(|value| (low..=high).contains(value))
            .map(|value| (value, format!("{:.decimals$}", if value == 0.0 { 0.0 } else { value })))
            .collect();
        Self { label: label.to_owned(), ticks, low, high, logarithmic: false }
    }

    /// A logarithmic axis with a tick at each of `values`, which are positive.
    pub(super) fn logarithmic(label: &str, values: &[f64]) -> Self {
        let (first, last) = (values.first().copied().unwrap_or(1.0), values.last().copied().unwrap_or(1.0));
        let margin = (last / first).powf(0.08).max(1.25);
        let ticks = values.iter().map(|value| (*value, value.to_string())).collect();
        Self { label: label.to_owned(), ticks, low: first / margin, high: last * margin, logarithmic: true }
    }

    /// Where `value` lies between 0 and 1.
    fn part(&self, value: f64) -> f64 {
        let of = |value: f64| if self.logarithmic { value.ln() } else { value };
        (of(value) - of(self.low)) / (of(self.high) - of(self.low))
    }
}

/// A drawing's area between two axes.
pub(super) struct Frame {
    /// To the right.
    pub(super) x: Axis,
    /// Upwards.
    pub(super) y: Axis,
}

impl Frame {
    /// Place of a value to the right.
    pub(super) fn x(&self, value: f64) -> f64 {
        LEFT + self.x.part(value) * (WIDTH - LEFT - RIGHT)
    }

    /// Place of a value upwards.
    pub(super) fn y(&self, value: f64) -> f64 {
        HEIGHT - BOTTOM - self.y.part(value) * (HEIGHT - TOP - BOTTOM)
    }

    /// The whole drawing; `label` says what it shows to those who do not see it.
    pub(super) fn draw(&self, label: &str, marks: &Markup) -> Markup {
        let (right, bottom) = (WIDTH - RIGHT, HEIGHT - BOTTOM);
        html! {
            svg.plot viewBox={ "0 0 " (WIDTH) " " (HEIGHT) } role="img" aria-label=(label) {
                g.axis aria-hidden="true" {
                    @for (value, text) in &self.y.ticks {
                        @let y = self.y(*value);
                        line.grid x1=(number(LEFT)) x2=(number(right)) y1=(number(y)) y2=(number(y)) {}
                        text.end x=(number(LEFT - 7.0)) y=(number(y + 4.5)) { (text) }
                    }
                    @for (value, text) in &self.x.ticks {
                        @let x = self.x(*value);
                        line.tick x1=(number(x)) x2=(number(x)) y1=(number(bottom)) y2=(number(bottom + 5.0)) {}
                        text.middle x=(number(x)) y=(number(bottom + 19.0)) { (text) }
                    }
                    line.base x1=(number(LEFT)) x2=(number(right)) y1=(number(bottom)) y2=(number(bottom)) {}
                    text.middle.name x=(number((LEFT + right) / 2.0)) y=(number(HEIGHT - 8.0)) { (self.x.label) }
                    text.middle.name transform={ "translate(14 " (number((TOP + bottom) / 2.0)) ") rotate(-90)" } {
                        (self.y.label)
                    }
                }
                (marks)
            }
        }
    }

    /// A line through points, `shift` units to the right of their places.
    pub(super) fn line(&self, ink: Ink, points: &[(f64, f64)], shift: f64) -> Markup {
        let points: Vec<String> =
            points.iter().map(|(x, y)| format!("{},{}", number(self.x(*x) + shift), number(self.y(*y)))).collect();
        html! { polyline.line.(ink.class()) points=(points.join(" ")) {} }
    }

    /// A dashed line across the whole width.
    pub(super) fn level(&self, ink: Ink, value: f64, title: &str) -> Markup {
        let y = number(self.y(value));
        html! {
            line.line.level.(ink.class()) x1=(number(LEFT)) x2=(number(WIDTH - RIGHT)) y1=(y) y2=(y) { title { (title) } }
        }
    }

    /// A thin line from the bottom to the top.
    pub(super) fn mark_x(&self, value: f64) -> Markup {
        let x = number(self.x(value));
        html! { line.zero x1=(x) x2=(x) y1=(number(TOP)) y2=(number(HEIGHT - BOTTOM)) {} }
    }

    /// A text inside the area at the top, right of `value` or left of it.
    pub(super) fn note(&self, value: f64, to_the_right: bool, text: &str) -> Markup {
        let (class, shift) = if to_the_right { ("note", 6.0) } else { ("note end", -6.0) };
        html! { text class=(class) x=(number(self.x(value) + shift)) y=(number(TOP + 11.0)) { (text) } }
    }

    /// Steps of a histogram: `heights` between `edges`, one more of these.
    pub(super) fn steps(&self, ink: Ink, edges: &[f64], heights: &[f64]) -> Markup {
        let bottom = number(self.y(self.y.low));
        let mut path = format!("M{} {bottom}", number(self.x(edges[0])));
        for (height, edge) in heights.iter().zip(edges.windows(2)) {
            let y = number(self.y(*height));
            path.push_str(&format!("L{} {y}L{} {y}", number(self.x(edge[0])), number(self.x(edge[1]))));
        }
        path.push_str(&format!("L{} {bottom}", number(self.x(edges[edges.len() - 1]))));
        html! { path.steps.level[ink == Ink::Reference].(ink.class()) d=(path) {} }
    }

    /// A point with bars of `spread` to both sides, `shift` units to the right of its place.
    pub(super) fn point(&self, ink: Ink, at: Point, shift: f64, title: &str) -> Markup {
        let (x, y) = (self.x(at.x) + shift, self.y(at.y));
        let upright = at.y_spread.filter(|spread| *spread > 0.0).map(|spread| {
            let clip = |value: f64| self.y(value.clamp(self.y.low, self.y.high));
            let (top, bottom) = (clip(at.y + spread), clip(at.y - spread));
            format!(
                "M{0} {1}L{0} {2}M{3} {1}h{4}M{3} {2}h{4}",
                number(x),
                number(top),
                number(bottom),
                number(x - CAP),
                2.0 * CAP
            )
        });
        let across = at.x_spread.filter(|spread| *spread > 0.0).map(|spread| {
            let clip = |value: f64| self.x(value.clamp(self.x.low, self.x.high));
            let (left, right) = (clip(at.x - spread), clip(at.x + spread));
            format!(
                "M{1} {0}L{2} {0}M{1} {3}v{4}M{2} {3}v{4}",
                number(y),
                number(left),
                number(right),
                number(y - CAP),
                2.0 * CAP
            )
        });
        html! {
            g.point.(ink.class()) {
                title { (title) }
                @for bar in upright.iter().chain(&across) { path.bar d=(bar) {} }
                path.dot d=(shape(ink, x, y, 5.0)) {}
            }
        }
    }

    /// A word beside each point, where it covers neither a point nor another word if there is room.
    pub(super) fn words(&self, words: &[(Ink, Point, String)]) -> Markup {
        const HEIGHT_OF_WORD: f64 = 14.0;
        const WIDTH_OF_LETTER: f64 = 8.0;
        // Of the left end of the baseline, around the point: the least crowded corner wins, the first of equals.
        let corner = |(right, down): (f64, f64), at: Point, letters: usize| {
            let width = letters as f64 * WIDTH_OF_LETTER;
            (self.x(at.x) + if right > 0.0 { 8.0 } else { -8.0 - width }, self.y(at.y) + down, width)
        };
        let mut placed: Vec<(f64, f64, f64)> = Vec::new();
        let dots: Vec<(f64, f64, f64)> =
            words.iter().map(|(_, at, _)| (self.x(at.x) - 7.0, self.y(at.y) + 7.0, 14.0)).collect();
        for (_, at, word) in words {
            let covers = |a: &(f64, f64, f64), b: &(f64, f64, f64)| {
                let across = (a.0 + a.2).min(b.0 + b.2) - a.0.max(b.0);
                let upright = HEIGHT_OF_WORD - (a.1 - b.1).abs();
                across.max(0.0) * upright.max(0.0)
            };
            let cost = |place: &(f64, f64, f64)| -> f64 {
                let outside = if place.0 < LEFT || place.0 + place.2 > WIDTH { 1e3 } else { 0.0 };
                outside + placed.iter().chain(&dots).map(|other| covers(place, other)).sum::<f64>()
            };
            let corners = [(1.0, -7.0), (-1.0, -7.0), (1.0, 17.0), (-1.0, 17.0)];
            let best = corners.map(|corner_of| corner(corner_of, *at, word.chars().count()));
            let best = best.into_iter().min_by(|a, b| cost(a).total_cmp(&cost(b))).expect("four corners");
            placed.push(best);
        }
        html! {
            @for ((ink, _, word), (x, y, _)) in words.iter().zip(&placed) {
                text.word.(ink.class()) x=(number(*x)) y=(number(*y)) { (word) }
            }
        }
    }
}

/// A measured place and how far its runs are from it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Point {
    pub(super) x: f64,
    pub(super) y: f64,
    pub(super) x_spread: Option<f64>,
    pub(super) y_spread: Option<f64>,
}

/// One entry of a legend, a line of HTML.
pub(super) fn legend_entry(ink: Ink, label: &str, with_line: bool, with_dot: bool) -> Markup {
    html! {
        li {
            svg.key viewBox="0 0 30 14" aria-hidden="true" {
                @if with_line {
                    line.line.(ink.class()).level[ink == Ink::Reference] x1="1" x2="29" y1="7" y2="7" {}
                }
                @if with_dot { g.point.(ink.class()) { path.dot d=(shape(ink, 15.0, 7.0, 5.0)) {} } }
            }
            (label)
        }
    }
}

/// Shapes differ as well as colours: not everyone tells the latter apart.
fn shape(ink: Ink, x: f64, y: f64, r: f64) -> String {
    let place = match ink {
        Ink::Reference => return polygon(x, y, &[(-r, 0.0), (0.0, -r * 1.15), (r, 0.0), (0.0, r * 1.15)]),
        Ink::Method(place) => place % SERIES,
    };
    match place {
        1 => polygon(x, y, &[(-r * 0.9, -r * 0.9), (r * 0.9, -r * 0.9), (r * 0.9, r * 0.9), (-r * 0.9, r * 0.9)]),
        2 => polygon(x, y, &[(0.0, -r * 1.2), (r * 1.1, r * 0.8), (-r * 1.1, r * 0.8)]),
        3 => polygon(x, y, &[(0.0, r * 1.2), (r * 1.1, -r * 0.8), (-r * 1.1, -r * 0.8)]),
        4 => polygon(
            x,
            y,
            &[(0.0, -r * 1.2), (r * 1.15, -r * 0.35), (r * 0.7, r), (-r * 0.7, r), (-r * 1.15, -r * 0.35)],
        ),
        5 => polygon(x, y, &[(-r * 1.2, -r * 0.6), (r * 1.2, -r * 0.6), (r * 1.2, r * 0.6), (-r * 1.2, r * 0.6)]),
        6 => polygon(x, y, &[(-r * 0.6, -r * 1.2), (r * 0.6, -r * 1.2), (r * 0.6, r * 1.2), (-r * 0.6, r * 1.2)]),
        _ => format!("M{} {1}a{2} {2} 0 1 0 {3} 0a{2} {2} 0 1 0 -{3} 0z", number(x - r), number(y), r, 2.0 * r),
    }
}

fn polygon(x: f64, y: f64, corners: &[(f64, f64)]) -> String {
    let corners: Vec<String> =
        corners.iter().map(|(right, down)| format!("{} {}", number(x + right), number(y + down))).collect();
    format!("M{}z", corners.join("L"))
}

/// A tenth of a unit is finer than a screen; no negative zero.
fn number(value: f64) -> String {
    let text = format!("{value:.1}");
    if text == "-0.0" { "0.0".to_owned() } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_are_round_and_hold_their_values() {
        let axis = Axis::round("y", [56.2, 71.9], (0.0, 100.0));
        let texts: Vec<&str> = axis.ticks.iter().map(|(_, text)| text.as_str()).collect();
        assert_eq!(texts, ["55", "60", "65", "70", "75"]);
        assert!(axis.part(56.2) > 0.0 && axis.part(71.9) < 1.0);
        let axis = Axis::round("y", [68.0, 83.0], (0.0, 100.0));
        let texts: Vec<&str> = axis.ticks.iter().map(|(_, text)| text.as_str()).collect();
        assert_eq!(texts[..3], ["67.5", "70.0", "72.5"], "no tick is rounded");
        let axis = Axis::round("y", [0.0, 99.9], (0.0, 100.0));
        assert_eq!((axis.low, axis.high), (0.0, 100.0), "nothing below 0 or above 100 %");
        assert!(Axis::round("y", [], (0.0, 100.0)).ticks.len() > 1);
        assert!(Axis::round("y", [3.0, 3.0], (0.0, 100.0)).part(3.0).is_finite());
    }

    #[test]
    fn a_tenfold_is_the_same_distance_everywhere() {
        let axis = Axis::logarithmic("ipc", &[1.0, 10.0, 100.0]);
        let gap = |a: f64, b: f64| axis.part(b) - axis.part(a);
        assert!((gap(1.0, 10.0) - gap(10.0, 100.0)).abs() < 1e-12);
        let single = Axis::logarithmic("ipc", &[10.0]);
        assert!((single.part(10.0) - 0.5).abs() < 1e-12, "a single size stands in the middle");
    }
}
