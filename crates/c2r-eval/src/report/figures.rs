//! Which drawings a table gives rise to.

use maud::{Markup, html};

use super::svg::{Axis, Frame, Ink, Point, legend_entry};
use crate::{
    Table,
    render::{heading, percent, size},
    table::{CLEAN, Cell, DROP_RATE, DROP_RATE_ATTACK, MEAN_ROBUST, Row, Section, column_label, epsilon_of, is_sanity},
};

/// Percentages do not leave this.
const PERCENT: (f64, f64) = (0.0, 100.0);
/// Units between the points of two methods at the same size, so that their bars do not cover each other.
const DODGE: f64 = 6.0;

/// A drawing with its words.
pub(super) struct Figure {
    pub(super) title: String,
    pub(super) legend: Markup,
    pub(super) drawing: Markup,
    pub(super) note: String,
}

/// Which ink each row's method has on the whole page.
pub(super) struct Inks(Vec<(String, String)>);

impl Inks {
    /// In the order of the first rows.
    pub(super) fn of(table: &Table) -> Self {
        let mut methods: Vec<(String, String)> = Vec::new();
        for row in table.sections.iter().flat_map(|section| &section.rows).filter(|row| !row.undistilled) {
            let key = (row.method.clone(), row.profile.clone());
            if !methods.contains(&key) {
                methods.push(key);
            }
        }
        Self(methods)
    }

    fn ink(&self, row: &Row) -> Ink {
        let place = self.0.iter().position(|(method, profile)| (method, profile) == (&row.method, &row.profile));
        match place {
            Some(place) if !row.undistilled => Ink::Method(place),
            _ => Ink::Reference,
        }
    }

    /// The figures of one kind: one for each colour's worth of methods, all with the same axes. `make` draws the rows that it is
    /// told to, and gives nothing where none of them is distilled.
    fn on_sheets(&self, make: impl Fn(&dyn Fn(&Row) -> bool) -> Option<Figure>) -> Vec<Figure> {
        let n_sheets =
            self.0.len().checked_sub(1).and_then(|last| Ink::Method(last).sheet()).map_or(1, |last| last + 1);
        let figure = |sheet: usize| {
            let mut figure = make(&|row| self.ink(row).sheet().is_none_or(|of| of == sheet))?;
            if n_sheets > 1 {
                figure.title.push_str(&format!(" (part {} of {n_sheets})", sheet + 1));
            }
            Some(figure)
        };
        (0..n_sheets).filter_map(figure).collect()
    }

    /// One entry for every method of `rows`.
    fn legend<'a>(&self, rows: impl IntoIterator<Item = &'a Row>, with_line: bool, with_dot: bool) -> Markup {
        let mut known: Vec<(Ink, &str)> = Vec::new();
        for row in rows {
            let entry = (self.ink(row), row.label.as_str());
            if !known.contains(&entry) {
                known.push(entry);
            }
        }
        html! {
            ul.legend {
                @for (ink, label) in known { (legend_entry(ink, label, with_line, with_dot)) }
            }
        }
    }
}

/// The drawings of one section.
pub(super) fn of_section(section: &Section, inks: &Inks) -> Vec<Figure> {
    let mut figures = inks.on_sheets(|on| drop_rates(section, inks, on));
    figures.extend(inks.on_sheets(|on| trade_off(section, inks, on)));
    let mut sizes: Vec<usize> = section.rows.iter().filter_map(|row| row.images_per_class).collect();
    sizes.dedup();
    figures.extend(sizes.into_iter().flat_map(|ipc| inks.on_sheets(|on| margins(section, ipc, inks, on))));
    figures
}

fn words(row: &Row, column: &str, cell: &Cell) -> String {
    let sd = cell.summary.sd.map_or_else(String::new, |sd| format!(" ± {}", percent(sd)));
    format!(
        "{}, ipc {}: {} {}{sd}",
        row.label,
        size(row.images_per_class),
        column_label(column),
        percent(cell.summary.mean)
    )
}

/// Drop rate against images per class, a line per method.
fn drop_rates(section: &Section, inks: &Inks, on: &dyn Fn(&Row) -> bool) -> Option<Figure> {
    let mut rows: Vec<(&Row, &Cell)> =
        section.rows.iter().filter_map(|row| Some((row, row.cell(DROP_RATE)?))).collect();
    let mut sizes: Vec<f64> = rows.iter().filter_map(|(row, _)| row.images_per_class).map(|ipc| ipc as f64).collect();
    sizes.sort_by(f64::total_cmp);
    sizes.dedup();
    let frame = Frame {
        x: Axis::logarithmic("images per class", &sizes),
        y: Axis::round(&format!("{}, %", column_label(DROP_RATE)), extent(rows.iter().map(|(_, cell)| *cell)), PERCENT),
    };
    rows.retain(|(row, _)| on(row));
    let distilled = || rows.iter().filter_map(|(row, cell)| Some((*row, row.images_per_class?, *cell)));
    distilled().next()?;
    let mut methods: Vec<Ink> = Vec::new();
    for (row, _, _) in distilled() {
        let ink = inks.ink(row);
        if !methods.contains(&ink) {
            methods.push(ink);
        }
    }
    let marks = html! {
        @for (row, cell) in rows.iter().filter(|(row, _)| row.images_per_class.is_none()) {
            (frame.level(inks.ink(row), cell.summary.mean, &words(row, DROP_RATE, cell)))
        }
        @for (place, &ink) in methods.iter().enumerate() {
            @let shift = (place as f64 - (methods.len() - 1) as f64 / 2.0) * DODGE;
            @let points: Vec<_> = distilled().filter(|(row, ..)| inks.ink(row) == ink).collect();
            @let places: Vec<_> = points.iter().map(|(_, ipc, cell)| (*ipc as f64, cell.summary.mean)).collect();
            (frame.line(ink, &places, shift))
            @for (row, ipc, cell) in points {
                @let at = Point { x: ipc as f64, y: cell.summary.mean, x_spread: None, y_spread: cell.summary.sd };
                (frame.point(ink, at, shift, &words(row, DROP_RATE, cell)))
            }
        }
    };
    Some(Figure {
        title: "Drop rate against images per class".to_owned(),
        legend: inks.legend(rows.iter().map(|(row, _)| *row), true, true),
        drawing: frame.draw(&format!("Drop rate against images per class: {}", heading(section)), &marks),
        note: format!(
            "Under {}; less is better. Bars: ± one standard deviation over runs.",
            column_label(DROP_RATE_ATTACK)
        ),
    })
}

fn extent<'a>(cells: impl Iterator<Item = &'a Cell>) -> Vec<f64> {
    let ends = |cell: &Cell| {
        let sd = cell.summary.sd.unwrap_or(0.0);
        [cell.summary.mean - sd, cell.summary.mean + sd]
    };
    cells.flat_map(ends).map(|value| value.clamp(PERCENT.0, PERCENT.1)).collect()
}

/// Clean against robust accuracy.
fn trade_off(section: &Section, inks: &Inks, on: &dyn Fn(&Row) -> bool) -> Option<Figure> {
    let column = section.columns.iter().find(|column| *column == MEAN_ROBUST || *column == DROP_RATE_ATTACK);
    let column = if section.columns.iter().any(|column| column == MEAN_ROBUST) { MEAN_ROBUST } else { column? };
    let mut rows: Vec<(&Row, &Cell, &Cell)> =
        section.rows.iter().filter_map(|row| Some((row, row.cell(CLEAN)?, row.cell(column)?))).collect();
    let label = if column == MEAN_ROBUST { "mean robust".to_owned() } else { column_label(column) };
    let frame = Frame {
        x: Axis::round("clean accuracy, %", extent(rows.iter().map(|(_, clean, _)| *clean)), PERCENT),
        y: Axis::round(&format!("{label} accuracy, %"), extent(rows.iter().map(|(_, _, robust)| *robust)), PERCENT),
    };
    rows.retain(|(row, ..)| on(row));
    rows.first()?;
    let marks = html! {
        @for (row, clean, robust) in &rows {
            @let at = Point {
                x: clean.summary.mean,
                y: robust.summary.mean,
                x_spread: clean.summary.sd,
                y_spread: robust.summary.sd,
            };
            (frame.point(inks.ink(row), at, 0.0, &format!("{}; {}", words(row, CLEAN, clean), words(row, column, robust))))
        }
        (frame.words(&rows.iter().map(|(row, clean, robust)| {
            let at = Point { x: clean.summary.mean, y: robust.summary.mean, x_spread: None, y_spread: None };
            (inks.ink(row), at, size(row.images_per_class))
        }).collect::<Vec<_>>()))
    };
    Some(Figure {
        title: "Accuracy against robustness".to_owned(),
        legend: inks.legend(rows.iter().map(|(row, ..)| *row), false, true),
        drawing: frame.draw(&format!("Clean against {label} accuracy: {}", heading(section)), &marks),
        note: "Up and to the right is better. Numbers: images per class; bars: ± one standard deviation over runs."
            .to_owned(),
    })
}

/// How the margins of the test images are distributed, a histogram per method.
fn margins(section: &Section, ipc: usize, inks: &Inks, on: &dyn Fn(&Row) -> bool) -> Option<Figure> {
    let edges = &section.margin_edges;
    let kept = |attack: &&String| section.rows.iter().any(|row| row.margin_counts.contains_key(*attack));
    let attacks = || section.attacks.iter().filter(|attack| !is_sanity(attack)).filter(kept);
    let attack = attacks().find(|attack| *attack == DROP_RATE_ATTACK).or_else(|| attacks().next())?;
    let share = |counts: &Vec<usize>| {
        let all: usize = counts.iter().sum();
        counts.iter().map(|&count| 100.0 * count as f64 / all.max(1) as f64).collect::<Vec<f64>>()
    };
    let here = |row: &&Row| row.images_per_class.is_none_or(|size| size == ipc);
    let mut rows: Vec<(&Row, Vec<f64>)> = (section.rows.iter().filter(here))
        .filter_map(|row| Some((row, share(row.margin_counts.get(attack)?))))
        .collect();
    let highest = rows.iter().flat_map(|(_, shares)| shares).copied().fold(0.0, f64::max);
    rows.retain(|(row, _)| on(row));
    rows.iter().find(|(row, _)| row.images_per_class.is_some())?;
    let frame = Frame {
        x: Axis::round("margin, logits", [edges[0], edges[edges.len() - 1]], (edges[0], edges[edges.len() - 1])),
        y: Axis::round("test images per bin, %", [0.0, highest], PERCENT),
    };
    let marks = html! {
        (frame.mark_x(0.0))
        (frame.note(0.0, false, "wrong"))
        (frame.note(0.0, true, "robust"))
        @for (row, shares) in &rows { (frame.steps(inks.ink(row), edges, shares)) }
    };
    let name = column_label(attack);
    Some(Figure {
        title: format!("Margins under {name}, {ipc} {} per class", if ipc == 1 { "image" } else { "images" }),
        legend: inks.legend(rows.iter().map(|(row, _)| *row), true, false),
        drawing: frame.draw(&format!("Histogram of margins under {name}, ipc {ipc}: {}", heading(section)), &marks),
        note: format!(
            "The smallest margin that {name} found for each test image, all runs together: an estimate of the robust margin from above. The outermost bins hold what lies beyond."
        ),
    })
}

/// Robust accuracy against the radius, for each size: sections that differ in their radius only.
pub(super) fn over_radii(table: &Table, inks: &Inks) -> Vec<Figure> {
    let key = |section: &Section| {
        let goal = format!("{:?} {:?}", section.norm, section.goal);
        (section.dataset.clone(), section.protocol.clone(), section.selection, section.model.clone(), goal)
    };
    let mut families: Vec<Vec<&Section>> = Vec::new();
    for section in &table.sections {
        match families.iter_mut().find(|family| key(family[0]) == key(section)) {
            Some(family) => family.push(section),
            None => families.push(vec![section]),
        }
    }
    families.retain(|family| family.len() > 1);
    let mut figures = Vec::new();
    for family in &families {
        let rows = || family.iter().flat_map(|section| &section.rows);
        let mut sizes: Vec<usize> = rows().filter_map(|row| row.images_per_class).collect();
        sizes.sort_unstable();
        sizes.dedup();
        figures.extend(sizes.into_iter().flat_map(|ipc| inks.on_sheets(|on| curve(family, ipc, inks, on))));
    }
    figures
}

fn curve(family: &[&Section], ipc: usize, inks: &Inks, on: &dyn Fn(&Row) -> bool) -> Option<Figure> {
    let everywhere = |attack: &&String| family.iter().all(|section| section.attacks.contains(attack));
    let attacks = || family[0].attacks.iter().filter(|attack| !is_sanity(attack)).filter(everywhere);
    let attack = attacks().find(|attack| *attack == DROP_RATE_ATTACK).or_else(|| attacks().next())?;
    let radius = |section: &Section| 255.0 * epsilon_of(section);
    // Method, radius, number. Without an attack the radius is 0.
    let mut places: Vec<(&Row, f64, &Cell)> = Vec::new();
    for section in family {
        for row in section.rows.iter().filter(|row| row.images_per_class.is_none_or(|size| size == ipc)) {
            let same = |other: &(&Row, f64, &Cell)| other.1 == 0.0 && inks.ink(other.0) == inks.ink(row);
            if let Some(cell) = row.cell(CLEAN)
                && !places.iter().any(same)
            {
                places.push((row, 0.0, cell));
            }
            places.extend(row.cell(attack).map(|cell| (row, radius(section), cell)));
        }
    }
    let norm = format!("{:?}", family[0].norm);
    let frame = Frame {
        x: Axis::round(
            &format!("{norm} radius, 255ths of the pixel range"),
            places.iter().map(|place| place.1),
            (0.0, f64::INFINITY),
        ),
        y: Axis::round("accuracy, %", extent(places.iter().map(|place| place.2)), PERCENT),
    };
    places.retain(|(row, ..)| on(row));
    places.iter().find(|(row, ..)| row.images_per_class.is_some())?;
    let mut methods: Vec<Ink> = Vec::new();
    for (row, ..) in &places {
        if !methods.contains(&inks.ink(row)) {
            methods.push(inks.ink(row));
        }
    }
    let column = |at: f64| if at == 0.0 { CLEAN } else { attack.as_str() };
    let marks = html! {
        @for &ink in &methods {
            @let mut points = places.iter().filter(|(row, ..)| inks.ink(row) == ink).collect::<Vec<_>>();
            @let () = points.sort_by(|a, b| a.1.total_cmp(&b.1));
            (frame.line(ink, &points.iter().map(|(_, at, cell)| (*at, cell.summary.mean)).collect::<Vec<_>>(), 0.0))
            @for (row, at, cell) in points {
                @let point = Point { x: *at, y: cell.summary.mean, x_spread: None, y_spread: cell.summary.sd };
                @let title = format!("{} at {}/255", words(row, column(*at), cell), at);
                (frame.point(ink, point, 0.0, &title))
            }
        }
    };
    let name = column_label(attack);
    let images = if ipc == 1 { "image" } else { "images" };
    Some(Figure {
        title: format!("{}, {ipc} {images} per class", heading(family[0])),
        legend: inks.legend(places.iter().map(|place| place.0), true, true),
        drawing: frame.draw(&format!("Accuracy under {name} against the radius: {}", heading(family[0])), &marks),
        note: format!("Accuracy under {name}; at 0 without an attack. Bars: ± one standard deviation over runs."),
    })
}
