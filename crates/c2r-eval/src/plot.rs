//! Drawings as SVG, on plotters: axes, lines, points with error bars, histograms. Everything that c2r plots is drawn here.
//!
//! A [`Plot`] is drawn into a page (`Plot::html`), where `report.css` changes its colours for a dark background, or with
//! others into a file of its own ([`file()`]).

use std::ops::Range;

use maud::{Markup, PreEscaped, html};
use plotters::{
    coord::{
        Shift,
        ranged1d::{KeyPointHint, NoDefaultFormatting, Ranged, ValueFormatter},
    },
    element::DashedPathElement,
    prelude::*,
    style::text_anchor::{HPos, Pos, VPos},
};

use crate::metrics::round_step;

/// Plotters places marks at whole units. A drawing has this many of them per pixel, which is finer than a screen.
const UNITS: i32 = 4;
/// Size of a drawing, pixels; text of 13 pixels stays legible where a phone shows the whole width.
const WIDTH: i32 = 440;
const HEIGHT: i32 = 300;
/// Room for a title and a legend above the axes, pixels.
const HEAD: i32 = 40;
/// From the axes to the left, right and top end of a drawing, pixels.
const LEFT: i32 = 52;
const RIGHT: i32 = 14;
const TOP: i32 = 12;
/// Room for the labels below the axes, pixels.
const BOTTOM: i32 = 48;
/// Size of text, pixels.
const TEXT: i32 = 13;
/// About the width of a letter, pixels.
const LETTER: i32 = 8;
/// Width of lines, pixels.
const STROKE: i32 = 2;
/// Number of ticks of an axis, about.
const TICKS: f64 = 6.0;
/// Colours and shapes, and so the methods in one drawing; the reference on real images has its own.
const SERIES: usize = 7;

/// Of the reference and of the methods: read well on white and differ for people who do not see all colours.
static COLOURS: [RGBColor; SERIES + 1] = [
    RGBColor(0x6b, 0x72, 0x80),
    RGBColor(0xb0, 0x70, 0x00),
    RGBColor(0x17, 0x69, 0xc9),
    RGBColor(0xcf, 0x3f, 0x0c),
    RGBColor(0x12, 0x80, 0x5c),
    RGBColor(0x85, 0x45, 0xc2),
    RGBColor(0xbd, 0x2f, 0x7b),
    RGBColor(0x0f, 0x7c, 0x8f),
];
static INK: RGBColor = RGBColor(0x1b, 0x1e, 0x23);
static SOFT: RGBColor = RGBColor(0x59, 0x61, 0x6b);
const GRID: RGBColor = RGBColor(0xe2, 0xe4, 0xe8);
const STRONG: RGBColor = RGBColor(0xc3, 0xc8, 0xcf);
const CARD: RGBColor = RGBColor(0xff, 0xff, 0xff);

/// Corners of the marks of the reference and of the methods, hundredths of a mark's radius; none for a circle. Shapes
/// differ as well as colours: not everyone tells the latter apart.
const SHAPES: [&[(i32, i32)]; SERIES + 1] = [
    &[(-100, 0), (0, -115), (100, 0), (0, 115)],
    &[],
    &[(-90, -90), (90, -90), (90, 90), (-90, 90)],
    &[(0, -120), (110, 80), (-110, 80)],
    &[(0, 120), (110, -80), (-110, -80)],
    &[(0, -120), (115, -35), (70, 100), (-70, 100), (-115, -35)],
    &[(-120, -60), (120, -60), (120, 60), (-120, 60)],
    &[(-60, -120), (60, -120), (60, 120), (-60, 120)],
];

/// Colour, dashes and shape of what belongs to one method.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ink {
    /// What is trained on all real images.
    Reference,
    /// The method at this place.
    Method(usize),
}

impl Ink {
    /// Which of several drawings it is on, so that no colour is there twice; the reference is on all of them.
    pub(crate) fn sheet(self) -> Option<usize> {
        match self {
            Self::Reference => None,
            Self::Method(place) => Some(place / SERIES),
        }
    }

    fn index(self) -> usize {
        match self {
            Self::Reference => 0,
            Self::Method(place) => place % SERIES + 1,
        }
    }

    fn colour(self) -> &'static RGBColor {
        &COLOURS[self.index()]
    }
}

/// One direction of a drawing.
#[derive(Clone, Debug)]
pub struct Axis {
    label: String,
    /// Places and texts of its ticks, in units of the data.
    ticks: Vec<(f64, String)>,
    low: f64,
    high: f64,
    logarithmic: bool,
}

impl Axis {
    /// An axis that holds `values` with round ticks, nothing of it outside `within`.
    pub fn round(label: &str, values: impl IntoIterator<Item = f64>, within: (f64, f64)) -> Self {
        let ends = |(low, high): (f64, f64), value: f64| (low.min(value), high.max(value));
        let (low, high) = match values.into_iter().fold((f64::INFINITY, f64::NEG_INFINITY), ends) {
            (low, high) if low > high => (0.0, 1.0),
            (low, high) if low == high => (low - 0.5, high + 0.5),
            ends => ends,
        };
        let step = round_step((high - low) / TICKS);
        let (first, last) = ((low / step - 0.2).floor(), (high / step + 0.2).ceil());
        let (low, high) = ((first * step).max(within.0), (last * step).min(within.1));
        let whole = |decimals: &usize| (step * 10f64.powi(*decimals as i32)).fract() < 1e-6;
        let text = |value: f64| match (0..4).find(whole) {
            _ if value == 0.0 => "0".to_owned(),
            Some(decimals) if step < 1e4 => format!("{value:.decimals$}"),
            _ => format!("{value:.1e}"),
        };
        let places = (first as i64..=last as i64).map(|place| place as f64 * step);
        let ticks = places.filter(|value| (low..=high).contains(value)).map(|value| (value, text(value))).collect();
        Self { label: label.to_owned(), ticks, low, high, logarithmic: false }
    }

    /// A logarithmic axis with a tick at each of `values`, which are positive.
    pub fn logarithmic(label: &str, values: &[f64]) -> Self {
        let (first, last) = (values.first().copied().unwrap_or(1.0), values.last().copied().unwrap_or(1.0));
        let margin = (last / first).powf(0.08).max(1.25);
        let ticks = values.iter().map(|value| (*value, value.to_string())).collect();
        Self { label: label.to_owned(), ticks, low: first / margin, high: last * margin, logarithmic: true }
    }

    /// Along the axis, where a difference is a distance.
    fn place(&self, value: f64) -> f64 {
        if self.logarithmic { value.ln() } else { value }
    }
}

impl Ranged for Axis {
    type FormatOption = NoDefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, (start, end): (i32, i32)) -> i32 {
        let [low, high] = [self.low, self.high].map(|end| self.place(end));
        start + (f64::from(end - start) * (self.place(*value) - low) / (high - low)).round() as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, hint: Hint) -> Vec<f64> {
        if hint.weight().allow_light_points() {
            return Vec::new();
        }
        self.ticks.iter().map(|(value, _)| *value).collect()
    }

    fn range(&self) -> Range<f64> {
        self.low..self.high
    }
}

impl ValueFormatter<f64> for Axis {
    fn format_ext(&self, value: &f64) -> String {
        let tick = self.ticks.iter().find(|(tick, _)| tick == value);
        tick.map_or_else(String::new, |(_, text)| text.clone())
    }
}

/// Something in a drawing, at places in units of the data.
#[derive(Clone, Debug)]
pub enum Mark {
    /// A line through points, `shift` pixels to the right of their places.
    Line {
        /// Whose it is.
        ink: Ink,
        /// To the right and upwards.
        points: Vec<(f64, f64)>,
        /// Pixels.
        shift: f64,
    },
    /// A dashed line across the whole width, with what a pointer on it shows.
    Level(Ink, f64, String),
    /// A thin line from the bottom to the top, with a word to the left and one to the right of it.
    Border(f64, [&'static str; 2]),
    /// A histogram: `heights` between `edges`, one more of these.
    Steps {
        /// Whose it is.
        ink: Ink,
        /// Upwards.
        edges: Vec<f64>,
        /// One per bin.
        heights: Vec<f64>,
    },
    /// A measured place.
    Point {
        /// Whose it is.
        ink: Ink,
        /// Its place to the right, and how far its runs are from it.
        x: (f64, Option<f64>),
        /// Its place upwards, and how far its runs are from it.
        y: (f64, Option<f64>),
        /// Pixels to the right of its place.
        shift: f64,
        /// A word beside it; empty for none.
        word: String,
        /// What a pointer on it shows; empty for nothing.
        title: String,
    },
}

/// Axes and what is between them.
#[derive(Clone, Debug)]
pub struct Plot {
    /// Above the axes of a file; in a page the words are around the drawing.
    pub title: String,
    /// Names below the title.
    pub legend: Vec<(Ink, String)>,
    /// To the right.
    pub x: Axis,
    /// Upwards.
    pub y: Axis,
    /// From the back to the front.
    pub marks: Vec<Mark>,
}

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Drawn<T> = Result<T, DrawingAreaErrorKind<std::io::Error>>;
/// A place in a drawing, units from its left and top end.
type Place = (i32, i32);

/// What a pointer shows in the rectangle between two places.
type Hint = ([Place; 2], String);

/// Draws `plots` into one SVG file, `columns` beside each other; `title` says what it shows.
pub fn file(title: &str, plots: &[Plot], columns: usize) -> String {
    let rows = plots.len().div_ceil(columns);
    let size = [columns as i32 * WIDTH, rows as i32 * (HEAD + HEIGHT)];
    let (body, _) = drawing(size, |root| {
        root.fill(&CARD)?;
        let areas = root.split_evenly((rows, columns));
        areas.iter().zip(plots).try_for_each(|(area, plot)| plot.draw(root, area, true).map(drop))
    });
    let [width, height] = size;
    let view = format!("0 0 {} {}", width * UNITS, height * UNITS);
    let svg = html! {
        svg xmlns="http://www.w3.org/2000/svg" width=(width) height=(height) viewBox=(view) {
            title { (title) }
            (PreEscaped(body))
        }
    };
    svg.into_string() + "\n"
}

/// What `draw` draws, without the tag around it.
fn drawing<T>([width, height]: [i32; 2], draw: impl FnOnce(&Area<'_>) -> Drawn<T>) -> (String, T) {
    let mut svg = String::new();
    let root = SVGBackend::with_string(&mut svg, ((width * UNITS) as u32, (height * UNITS) as u32)).into_drawing_area();
    let drawn = draw(&root).and_then(|drawn| root.present().map(|()| drawn)).expect("a text can be written to");
    drop(root);
    let (start, end) = (svg.find('>').map_or(0, |end| end + 1), svg.rfind("</svg>").unwrap_or(svg.len()));
    (svg[start..end].trim().to_owned(), drawn)
}

/// The entry of a legend: line, dot or both, without words.
pub(crate) fn key(ink: Ink, with_line: bool, with_dot: bool) -> Markup {
    let (width, height) = (30, 14);
    let (body, ()) = drawing([width, height], |root| {
        let middle = height / 2 * UNITS;
        if with_line {
            stroke(root, ink, vec![(UNITS, middle), ((width - 1) * UNITS, middle)])?;
        }
        if with_dot { dot(root, ink, (width / 2 * UNITS, middle)) } else { Ok(()) }
    });
    let view = format!("0 0 {} {}", width * UNITS, height * UNITS);
    html! { svg.key viewBox=(view) aria-hidden="true" { (PreEscaped(body)) } }
}

impl Plot {
    /// The drawing as a part of a page; `label` says what it shows to those who do not see it.
    pub(crate) fn html(&self, label: &str) -> Markup {
        let (body, hints) = drawing([WIDTH, HEIGHT], |root| self.draw(root, root, false));
        let view = format!("0 0 {} {}", WIDTH * UNITS, HEIGHT * UNITS);
        html! {
            svg.plot viewBox=(view) role="img" aria-label=(label) {
                (PreEscaped(body))
                @for ([start, end], title) in hints {
                    rect.hint x=(start.0) y=(start.1) width=(end.0 - start.0) height=(end.1 - start.1) { title { (title) } }
                }
            }
        }
    }

    /// Draws into `area`, a part of `root`; with `head` the title and the legend, too.
    fn draw(&self, root: &Area<'_>, area: &Area<'_>, head: bool) -> Drawn<Vec<Hint>> {
        let area = if head { self.draw_head(area)? } else { area.clone() };
        let mut chart = ChartBuilder::on(&area)
            .margin_top(TOP * UNITS)
            .margin_right(RIGHT * UNITS)
            .x_label_area_size(BOTTOM * UNITS)
            .y_label_area_size(LEFT * UNITS)
            .build_cartesian_2d(self.x.clone(), self.y.clone())?;
        chart
            .configure_mesh()
            .disable_x_mesh()
            .bold_line_style(GRID.stroke_width(UNITS as u32))
            .axis_style(STRONG.stroke_width(UNITS as u32))
            .set_all_tick_mark_size(5 * UNITS)
            .label_style(text_style(&SOFT))
            .axis_desc_style(text_style(&INK))
            .x_desc(&self.x.label)
            .y_desc(&self.y.label)
            .draw()?;
        let at = |x: f64, y: f64| chart.backend_coord(&(x, y));
        let mut hints = Vec::new();
        let mut words = Vec::new();
        let ([left, right], [bottom, top]) = ([self.x.low, self.x.high], [self.y.low, self.y.high]);
        for mark in &self.marks {
            match mark {
                Mark::Line { ink, points, shift } => {
                    let places = points.iter().map(|&(x, y)| shifted(at(x, y), *shift));
                    stroke(root, *ink, places.collect())?;
                }
                Mark::Level(ink, value, title) => {
                    let ends = [at(left, *value), at(right, *value)];
                    stroke(root, *ink, ends.to_vec())?;
                    let corners = [around(ends[0], (0, 5 * UNITS))[0], around(ends[1], (0, 5 * UNITS))[1]];
                    hints.push((corners, title.clone()));
                }
                Mark::Border(value, [before, after]) => {
                    let ends = [at(*value, top), at(*value, bottom)];
                    let dashes = DashedPathElement::new(ends, 2 * UNITS, 3 * UNITS, SOFT.stroke_width(UNITS as u32));
                    root.draw(&dashes)?;
                    for (word, side, anchor) in [(before, -6, HPos::Right), (after, 6, HPos::Left)] {
                        let style = text_style(&SOFT).pos(Pos::new(anchor, VPos::Top));
                        root.draw(&Text::new(*word, (ends[0].0 + side * UNITS, ends[0].1), style))?;
                    }
                }
                Mark::Steps { ink, edges, heights } => {
                    let bins = heights.iter().zip(edges.windows(2));
                    let tops = bins.flat_map(|(&height, edge)| [at(edge[0], height), at(edge[1], height)]);
                    let (first, last) = (edges[0], edges[edges.len() - 1]);
                    let outline: Vec<Place> =
                        [at(first, bottom)].into_iter().chain(tops).chain([at(last, bottom)]).collect();
                    root.draw(&Polygon::new(outline.clone(), ink.colour().mix(0.07)))?;
                    stroke(root, *ink, outline)?;
                }
                Mark::Point { ink, x, y, shift, word, title } => {
                    let place = shifted(at(x.0, y.0), *shift);
                    // Bars along the two axes: how long, in which direction, and half of their caps.
                    let cap = 7 * UNITS / 2;
                    for (spread, (dx, dy), caps) in [(y.1, (0.0, 1.0), (cap, 0)), (x.1, (1.0, 0.0), (0, cap))] {
                        let Some(spread) = spread.filter(|spread| *spread > 0.0) else { continue };
                        let ends = [-spread, spread].map(|by| {
                            let (x, y) = ((x.0 + dx * by).clamp(left, right), (y.0 + dy * by).clamp(bottom, top));
                            shifted(at(x, y), *shift)
                        });
                        for line in [ends, around(ends[0], caps), around(ends[1], caps)] {
                            root.draw(&PathElement::new(line, ink.colour().stroke_width(3 * UNITS as u32 / 2)))?;
                        }
                    }
                    dot(root, *ink, place)?;
                    hints.push((around(place, (7 * UNITS, 7 * UNITS)), title.clone()));
                    words.push((*ink, place, word.as_str()));
                }
            }
        }
        draw_words(root, &words)?;
        hints.retain(|(_, title)| !title.is_empty());
        Ok(hints)
    }

    /// Draws the title and the legend; returns what is below them.
    fn draw_head<'a>(&self, area: &Area<'a>) -> Drawn<Area<'a>> {
        let (head, rest) = area.split_vertically(HEAD * UNITS);
        let title = text_style(&INK);
        head.draw(&Text::new(self.title.as_str(), (LEFT * UNITS, 6 * UNITS), title))?;
        let mut left = LEFT;
        for (ink, name) in &self.legend {
            head.draw(&Text::new(name.as_str(), (left * UNITS, 24 * UNITS), text_style(ink.colour())))?;
            left += LETTER * (name.chars().count() as i32 + 2);
        }
        Ok(rest)
    }
}

fn text_style(colour: &'static RGBColor) -> TextStyle<'static> {
    // Plotters makes text smaller by this factor.
    TextStyle::from(("sans-serif", f64::from(TEXT * UNITS) * 1.24).into_font()).color(colour)
}

fn shifted((x, y): Place, pixels: f64) -> Place {
    (x + (pixels * f64::from(UNITS)) as i32, y)
}

/// The corners at distance `(dx, dy)` to both sides of a place.
fn around((x, y): Place, (dx, dy): (i32, i32)) -> [Place; 2] {
    [(x - dx, y - dy), (x + dx, y + dy)]
}

/// A line; that of the reference is dashed.
fn stroke(root: &Area<'_>, ink: Ink, places: Vec<Place>) -> Drawn<()> {
    let style = ink.colour().stroke_width((STROKE * UNITS) as u32);
    match ink {
        Ink::Reference => root.draw(&DashedPathElement::new(places, 7 * UNITS, 5 * UNITS, style)),
        Ink::Method(_) => root.draw(&PathElement::new(places, style)),
    }
}

/// The mark of a method, with a thin rim that keeps it apart from others.
fn dot(root: &Area<'_>, ink: Ink, place: Place) -> Drawn<()> {
    for (radius, colour) in [(6 * UNITS, &CARD), (5 * UNITS, ink.colour())] {
        match SHAPES[ink.index()] {
            [] => root.draw(&Circle::new(place, radius, colour.filled()))?,
            corners => {
                let corner = |(x, y): &Place| (place.0 + x * radius / 100, place.1 + y * radius / 100);
                root.draw(&Polygon::new(corners.iter().map(corner).collect::<Vec<Place>>(), colour.filled()))?;
            }
        }
    }
    Ok(())
}

/// A word beside each point, where it covers neither a point nor another word if there is room.
fn draw_words(root: &Area<'_>, words: &[(Ink, Place, &str)]) -> Drawn<()> {
    // Left end, middle and width of what is taken.
    let mut taken: Vec<(i32, i32, i32)> = words.iter().map(|(_, at, _)| (at.0 - 7 * UNITS, at.1, 14 * UNITS)).collect();
    let width_of_root = root.dim_in_pixel().0 as i32;
    for (ink, at, word) in words.iter().filter(|(.., word)| !word.is_empty()) {
        let width = word.chars().count() as i32 * LETTER * UNITS;
        let cost = |place: &(i32, i32, i32)| {
            let covers = |other: &(i32, i32, i32)| {
                let across = (place.0 + place.2).min(other.0 + other.2) - place.0.max(other.0);
                let upright = 14 * UNITS - (place.1 - other.1).abs();
                across.max(0) * upright.max(0)
            };
            let outside = if place.0 < LEFT * UNITS || place.0 + place.2 > width_of_root { 1 << 20 } else { 0 };
            outside + taken.iter().map(covers).sum::<i32>()
        };
        // The least crowded corner around the point, the first of equals.
        let corners = [(1, -12), (-1, -12), (1, 12), (-1, 12)].map(|(side, down)| {
            let left = if side > 0 { 8 * UNITS } else { -8 * UNITS - width };
            (at.0 + left, at.1 + down * UNITS, width)
        });
        let best = corners.into_iter().min_by_key(cost).expect("four corners");
        let style = text_style(ink.colour()).pos(Pos::new(HPos::Left, VPos::Center));
        root.draw(&Text::new(*word, (best.0, best.1), style))?;
        taken.push(best);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_are_round_and_hold_their_values() {
        let texts = |axis: &Axis| axis.ticks.iter().map(|(_, text)| text.clone()).collect::<Vec<_>>();
        let axis = Axis::round("y", [56.2, 71.9], (0.0, 100.0));
        assert_eq!(texts(&axis), ["55", "60", "65", "70", "75"]);
        assert!(axis.low < 56.2 && axis.high > 71.9);
        let axis = Axis::round("y", [68.0, 83.0], (0.0, 100.0));
        assert_eq!(texts(&axis)[..3], ["67.5", "70.0", "72.5"], "no tick is rounded");
        let axis = Axis::round("y", [0.0, 99.9], (0.0, 100.0));
        assert_eq!((axis.low, axis.high), (0.0, 100.0), "nothing below 0 or above 100 %");
        assert!(texts(&Axis::round("y", [], (0.0, 100.0))).len() > 1);
        let axis = Axis::round("y", [3.0, 3.0], (0.0, 100.0));
        assert!(axis.low < 3.0 && axis.high > 3.0);
        assert_eq!(texts(&Axis::round("y", [0.0, 2e7], (0.0, f64::INFINITY)))[..2], ["0", "5.0e6"]);
    }

    #[test]
    fn a_tenfold_is_the_same_distance_everywhere() {
        let axis = Axis::logarithmic("ipc", &[1.0, 10.0, 100.0]);
        let gap = |a: f64, b: f64| axis.place(b) - axis.place(a);
        assert!((gap(1.0, 10.0) - gap(10.0, 100.0)).abs() < 1e-12);
        let single = Axis::logarithmic("ipc", &[10.0]);
        let middle = f64::midpoint(single.place(single.low), single.place(single.high));
        assert!((middle - single.place(10.0)).abs() < 1e-12, "a single size stands in the middle");
    }

    #[test]
    fn marks_are_where_their_values_are() {
        let axis = || Axis::round("value", [0.0, 10.0], (0.0, 10.0));
        let point = |y: f64, title: &str| Mark::Point {
            ink: Ink::Method(0),
            x: (5.0, None),
            y: (y, Some(1.0)),
            shift: 0.0,
            word: String::new(),
            title: title.to_owned(),
        };
        let plot = Plot {
            title: "a < b".to_owned(),
            legend: vec![(Ink::Method(0), "c & d".to_owned())],
            x: axis(),
            y: axis(),
            marks: vec![point(0.0, "at the \"bottom\""), point(10.0, "")],
        };
        let page = plot.html("all").into_string();
        let (middle, bottom) = ((LEFT + WIDTH - RIGHT) / 2 * UNITS, (HEIGHT - BOTTOM) * UNITS - 1);
        let place = |cy: i32| format!("cx=\"{middle}\" cy=\"{cy}\"");
        assert!(page.contains(&place(bottom)) && page.contains(&place(TOP * UNITS)), "{page}");
        assert_eq!(page.matches("<title>").count(), 1);
        assert!(page.contains("at the &quot;bottom&quot;"));
        let file = file("two", &[plot.clone(), plot], 2);
        assert!(file.contains("a &lt; b") && file.contains("c &amp; d") && file.ends_with("</svg>\n"), "{file}");
        assert_eq!(file.matches(&format!("cy=\"{}\"", bottom + HEAD * UNITS)).count(), 4, "a rim and a dot in each");
    }
}
