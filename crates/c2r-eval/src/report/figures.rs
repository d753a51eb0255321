//! Which drawings a table gives rise to.

use maud::{Markup, html};

use super::cells::images;
use crate::{
    Table,
    columns::{CLEAN, DROP_RATE, DROP_RATE_ATTACK, MEAN_ROBUST, column_heading, column_label, fixed, is_sanity, size},
    plot::{self, Axis, Ink, Mark, Plot},
    render::heading,
    table::{Cell, Row, Section},
};

/// Percentages do not leave this.
const PERCENT: (f64, f64) = (0.0, 100.0);
/// Pixels between the points of two methods at the same size, so that their bars do not cover each other.
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
        for (_, row) in table.rows().filter(|(_, row)| !row.undistilled) {
            let key = (row.method.clone(), row.profile.clone());
            if !methods.contains(&key) {
                methods.push(key);
            }
        }
        Self(methods)
    }

    fn ink(&self, row: &Row) -> Ink {
        let place = self.0.iter().position(|(method, profile)| (method, profile) == (&row.method, &row.profile));
        place.filter(|_| !row.undistilled).map_or(Ink::Reference, Ink::Method)
    }

    /// The inks of `rows`, each once.
    fn inks<'a>(&self, rows: impl Iterator<Item = &'a Row>) -> Vec<Ink> {
        let mut inks = Vec::new();
        for ink in rows.map(|row| self.ink(row)) {
            if !inks.contains(&ink) {
                inks.push(ink);
            }
        }
        inks
    }

    /// The figures of one kind: one for each colour's worth of methods, all with the same axes. `make` draws the rows that
    /// it is given a choice of, and gives nothing where none of them is distilled.
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
    fn legend<'a>(&self, rows: impl Iterator<Item = &'a Row>, with_line: bool, with_dot: bool) -> Markup {
        let mut known: Vec<(Ink, &str)> = Vec::new();
        for row in rows {
            let entry = (self.ink(row), row.label.as_str());
            if !known.contains(&entry) {
                known.push(entry);
            }
        }
        html! {
            ul.legend {
                @for (ink, label) in known { li { (plot::key(ink, with_line, with_dot)) (label) } }
            }
        }
    }
}

fn drawing(x: Axis, y: Axis, marks: Vec<Mark>, label: &str) -> Markup {
    Plot { title: String::new(), legend: Vec::new(), x, y, marks }.html(label)
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
    let sd = cell.summary.sd.map_or_else(String::new, |sd| format!(" ± {}", fixed(sd, 1)));
    let (size, column) = (size(row.images_per_class), column_label(column));
    format!("{}, ipc {size}: {column} {}{sd}", row.label, fixed(cell.summary.mean, 1))
}

/// The attack that a figure is about, of those for which `has` is true.
fn shown_attack(section: &Section, has: impl Fn(&str) -> bool) -> Option<&str> {
    let attacks = || section.attacks.iter().map(String::as_str).filter(|attack| !is_sanity(attack) && has(attack));
    attacks().find(|attack| *attack == DROP_RATE_ATTACK).or_else(|| attacks().next())
}

/// Ends of the bars of `cells`.
fn extent<'a>(cells: impl Iterator<Item = &'a Cell>) -> Vec<f64> {
    let ends = |cell: &Cell| {
        let sd = cell.summary.sd.unwrap_or(0.0);
        [cell.summary.mean - sd, cell.summary.mean + sd]
    };
    cells.flat_map(ends).map(|value| value.clamp(PERCENT.0, PERCENT.1)).collect()
}

/// Drop rate against images per class, a line per method.
fn drop_rates(section: &Section, inks: &Inks, on: &dyn Fn(&Row) -> bool) -> Option<Figure> {
    let mut rows: Vec<(&Row, &Cell)> =
        section.rows.iter().filter_map(|row| Some((row, row.cell(DROP_RATE)?))).collect();
    let mut sizes: Vec<f64> = rows.iter().filter_map(|(row, _)| row.images_per_class).map(|ipc| ipc as f64).collect();
    sizes.sort_by(f64::total_cmp);
    sizes.dedup();
    let x = Axis::logarithmic("images per class", &sizes);
    let label = format!("{}, %", column_label(DROP_RATE));
    let y = Axis::round(&label, extent(rows.iter().map(|(_, cell)| *cell)), PERCENT);
    rows.retain(|(row, _)| on(row));
    let distilled = || rows.iter().filter_map(|(row, cell)| Some((*row, row.images_per_class? as f64, *cell)));
    distilled().next()?;
    let references = rows.iter().filter(|(row, _)| row.images_per_class.is_none());
    let mut marks: Vec<Mark> = references
        .map(|(row, cell)| Mark::Level(inks.ink(row), cell.summary.mean, words(row, DROP_RATE, cell)))
        .collect();
    let methods = inks.inks(distilled().map(|(row, ..)| row));
    for (place, &ink) in methods.iter().enumerate() {
        let shift = (place as f64 - (methods.len() - 1) as f64 / 2.0) * DODGE;
        let of_method = || distilled().filter(|(row, ..)| inks.ink(row) == ink);
        let points = of_method().map(|(_, ipc, cell)| (ipc, cell.summary.mean)).collect();
        marks.push(Mark::Line { ink, points, shift });
        marks.extend(of_method().map(|(row, ipc, cell)| {
            let (y, title) = ((cell.summary.mean, cell.summary.sd), words(row, DROP_RATE, cell));
            Mark::Point { ink, x: (ipc, None), y, shift, word: String::new(), title }
        }));
    }
    Some(Figure {
        title: "Drop rate against images per class".to_owned(),
        legend: inks.legend(rows.iter().map(|(row, _)| *row), true, true),
        drawing: drawing(x, y, marks, &format!("Drop rate against images per class: {}", heading(section))),
        note: format!(
            "Drop rate under {}; lower is better. Bars show ± one standard deviation over runs.",
            column_label(DROP_RATE_ATTACK)
        ),
    })
}

/// Clean against robust accuracy.
fn trade_off(section: &Section, inks: &Inks, on: &dyn Fn(&Row) -> bool) -> Option<Figure> {
    let shown = |column: &&str| section.columns.iter().any(|shown| shown == column);
    let column = [MEAN_ROBUST, DROP_RATE_ATTACK].into_iter().find(shown)?;
    let mut rows: Vec<(&Row, &Cell, &Cell)> =
        section.rows.iter().filter_map(|row| Some((row, row.cell(CLEAN)?, row.cell(column)?))).collect();
    let label = column_heading(&section.attacks, column);
    let x = Axis::round("clean accuracy, %", extent(rows.iter().map(|(_, clean, _)| *clean)), PERCENT);
    let robust = extent(rows.iter().map(|(_, _, robust)| *robust));
    let y = Axis::round(&format!("{label} accuracy, %"), robust, PERCENT);
    rows.retain(|(row, ..)| on(row));
    rows.first()?;
    let mark = |(row, clean, robust): &(&Row, &Cell, &Cell)| Mark::Point {
        ink: inks.ink(row),
        x: (clean.summary.mean, clean.summary.sd),
        y: (robust.summary.mean, robust.summary.sd),
        shift: 0.0,
        word: size(row.images_per_class),
        title: format!("{}; {}", words(row, CLEAN, clean), words(row, column, robust)),
    };
    let marks = rows.iter().map(mark).collect();
    Some(Figure {
        title: "Accuracy against robustness".to_owned(),
        legend: inks.legend(rows.iter().map(|(row, ..)| *row), false, true),
        drawing: drawing(x, y, marks, &format!("Clean against {label} accuracy: {}", heading(section))),
        note:
            "Up and to the right is better. Numbers are images per class; bars show ± one standard deviation over runs."
                .to_owned(),
    })
}

/// How the margins of the test images are distributed, a histogram per method.
fn margins(section: &Section, ipc: usize, inks: &Inks, on: &dyn Fn(&Row) -> bool) -> Option<Figure> {
    let edges = &section.margin_edges;
    let attack = shown_attack(section, |attack| section.rows.iter().any(|row| row.margin_counts.contains_key(attack)))?;
    let share = |counts: &Vec<usize>| {
        let all: usize = counts.iter().sum();
        counts.iter().map(|&count| 100.0 * count as f64 / all.max(1) as f64).collect::<Vec<f64>>()
    };
    let here = |row: &&Row| row.images_per_class.is_none_or(|size| size == ipc);
    let mut rows: Vec<(&Row, Vec<f64>)> = (section.rows.iter().filter(here))
        .filter_map(|row| Some((row, share(row.margin_counts.get(attack)?))))
        .collect();
    let highest = rows.iter().flat_map(|(_, shares)| shares).copied().fold(0.0, f64::max);
    let (first, last) = (edges[0], edges[edges.len() - 1]);
    let x = Axis::round("margin, logits", [first, last], (first, last));
    let y = Axis::round("test images per bin, %", [0.0, highest], PERCENT);
    rows.retain(|(row, _)| on(row));
    rows.iter().find(|(row, _)| row.images_per_class.is_some())?;
    let name = column_label(attack);
    let legend = inks.legend(rows.iter().map(|(row, _)| *row), true, false);
    let steps =
        rows.into_iter().map(|(row, heights)| Mark::Steps { ink: inks.ink(row), edges: edges.clone(), heights });
    let marks = std::iter::once(Mark::Border(0.0, ["wrong", "robust"])).chain(steps).collect();
    Some(Figure {
        title: format!("Margins under {name}, {}", images(Some(ipc))),
        legend,
        drawing: drawing(x, y, marks, &format!("Histogram of margins under {name}, ipc {ipc}: {}", heading(section))),
        note: format!(
            "The smallest margin that {name} found for each test image, over all runs: an upper bound of the robust margin. The outermost bins include everything beyond them."
        ),
    })
}

/// Robust accuracy against the radius, for each size: sections that differ in their radius only.
pub(super) fn over_radii(table: &Table, inks: &Inks) -> Vec<Figure> {
    let key = |section: &Section| {
        let goal = format!("{:?} {:?}", section.norm, section.goal);
        let images = (section.n_test, section.subset.clone(), section.held_out, section.test_sha256.clone());
        (section.dataset.clone(), section.protocol.clone(), section.selection, section.model.clone(), goal, images)
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

/// What tells the rows of one size apart.
fn name_of(row: &Row) -> (&str, &str) {
    (&row.method, &row.profile)
}

fn curve(family: &[&Section], ipc: usize, inks: &Inks, on: &dyn Fn(&Row) -> bool) -> Option<Figure> {
    let everywhere = |attack: &str| family.iter().all(|section| section.attacks.iter().any(|other| other == attack));
    let attack = shown_attack(family[0], everywhere)?;
    // Method, radius, number. Without an attack the radius is 0.
    let mut places: Vec<(&Row, f64, &Cell)> = Vec::new();
    for section in family {
        for row in section.rows.iter().filter(|row| row.images_per_class.is_none_or(|size| size == ipc)) {
            let same = |other: &(&Row, f64, &Cell)| other.1 == 0.0 && name_of(other.0) == name_of(row);
            if let Some(cell) = row.cell(CLEAN).filter(|_| !places.iter().any(same)) {
                places.push((row, 0.0, cell));
            }
            places.extend(row.cell(attack).map(|cell| (row, 255.0 * section.radius(), cell)));
        }
    }
    let label = format!("{:?} radius, 255ths of the pixel range", family[0].norm);
    let x = Axis::round(&label, places.iter().map(|place| place.1), (0.0, f64::INFINITY));
    let y = Axis::round("accuracy, %", extent(places.iter().map(|place| place.2)), PERCENT);
    places.retain(|(row, ..)| on(row));
    places.iter().find(|(row, ..)| row.images_per_class.is_some())?;
    let mut marks = Vec::new();
    // Several references have one ink, and a line each.
    let mut lines: Vec<&Row> = Vec::new();
    for (row, ..) in &places {
        if !lines.iter().any(|other| name_of(other) == name_of(row)) {
            lines.push(row);
        }
    }
    for first in lines {
        let ink = inks.ink(first);
        let mut points: Vec<_> = places.iter().filter(|(row, ..)| name_of(row) == name_of(first)).collect();
        points.sort_by(|a, b| a.1.total_cmp(&b.1));
        let line = points.iter().map(|(_, radius, cell)| (*radius, cell.summary.mean)).collect();
        marks.push(Mark::Line { ink, points: line, shift: 0.0 });
        marks.extend(points.into_iter().map(|(row, radius, cell)| {
            let column = if *radius == 0.0 { CLEAN } else { attack };
            let title = format!("{} at {radius}/255", words(row, column, cell));
            let y = (cell.summary.mean, cell.summary.sd);
            Mark::Point { ink, x: (*radius, None), y, shift: 0.0, word: String::new(), title }
        }));
    }
    let name = column_label(attack);
    Some(Figure {
        title: format!("{}, {}", heading(family[0]), images(Some(ipc))),
        legend: inks.legend(places.iter().map(|place| place.0), true, true),
        drawing: drawing(x, y, marks, &format!("Accuracy under {name} against the radius: {}", heading(family[0]))),
        note: format!(
            "Accuracy under {name}; radius 0 is without an attack. Bars show ± one standard deviation over runs."
        ),
    })
}
