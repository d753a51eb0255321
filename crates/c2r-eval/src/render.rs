//! The table as Markdown, for a terminal, as CSV and as JSON. Equal tables give equal bytes.

use c2r_experiment::Selection;
use comfy_table::{CellAlignment, presets};

use crate::{
    EvalError, Table,
    table::{Cell, DROP_RATE, DROP_RATE_ATTACK, MEAN_ROBUST, PlannedRow, Row, Section, column_label, names},
};

/// How many missing rows are named; all are in the JSON.
const NAMED_MISSING: usize = 6;

impl Table {
    /// Markdown, accuracies in percent with one decimal.
    pub fn markdown(&self) -> String {
        self.document(false)
    }

    /// For a terminal of `width` columns: drawn tables if they fit, else (or if the width is unknown) Markdown.
    pub fn terminal(&self, width: Option<usize>) -> String {
        let drawn = |section: &Section| drawn_grid(&Grid::new(section));
        let widest = self.sections.iter().flat_map(|section| drawn(section).lines().map(line_width).max()).max();
        if width >= widest && width.is_some() { self.document(true) } else { self.document(false) }
    }

    /// One line per cell, full precision, with the files each number was computed from.
    ///
    /// # Errors
    /// None in practice: writing to memory does not fail.
    pub fn csv(&self) -> Result<String, EvalError> {
        let mut writer = csv::Writer::from_writer(Vec::new());
        let mut lines = vec![CSV_HEADER.map(str::to_owned).to_vec()];
        for section in &self.sections {
            for row in &section.rows {
                lines.extend(row.cells.iter().map(|cell| csv_line(section, row, cell)));
            }
        }
        let broken = |error: String| EvalError::record(std::path::Path::new("table.csv"), error);
        for line in lines {
            writer.write_record(&line).map_err(|error| broken(error.to_string()))?;
        }
        let bytes = writer.into_inner().map_err(|error| broken(error.to_string()))?;
        String::from_utf8(bytes).map_err(|error| broken(error.to_string()))
    }

    /// Everything, indented, with a newline at the end. Read back with serde.
    pub fn json(&self) -> String {
        let mut text = serde_json::to_string_pretty(self).expect("our types serialize to JSON");
        text.push('\n');
        text
    }

    fn document(&self, drawn: bool) -> String {
        let mut out = format!("# {}\n", self.title);
        if let Some(experiment) = &self.experiment {
            let scale = experiment
                .scale
                .as_ref()
                .map_or_else(String::new, |scale| format!(", scale `{scale}`: {}", experiment.about));
            out.push_str(&format!("\nExperiment `{}`{scale}.", experiment.name));
            out.push_str(self.changed_grid());
            if self.has_published() {
                out.push_str(&format!(" Published numbers: {}.", experiment.source));
            }
            out.push('\n');
        }
        for section in &self.sections {
            let grid = Grid::new(section);
            out.push_str(&format!("\n## {}\n\n{}\n\n", heading(section), setting(section)));
            out.push_str(&if drawn { drawn_grid(&grid) } else { markdown_grid(&grid) });
            if !grid.notes.is_empty() || !section.notes.is_empty() {
                out.push('\n');
            }
            for (position, note) in grid.notes.iter().enumerate() {
                out.push_str(&format!("- [{}] {note}\n", position + 1));
            }
            for note in &section.notes {
                out.push_str(&format!("- {note}\n"));
            }
        }
        if !self.pictures.is_empty() {
            out.push_str("\n## Synthetic images\n\n");
        }
        for picture in &self.pictures {
            out.push_str(&if drawn {
                format!("- {}: {}\n", picture.file, picture.caption)
            } else {
                format!("{}\n\n![{}]({})\n\n", picture.caption, picture.caption, picture.file)
            });
        }
        let end = out.trim_end_matches('\n').len();
        out.truncate(end);
        out.push_str("\n\n## How to read this\n\n");
        for line in self.legend(if drawn { "`*`" } else { "Bold" }) {
            out.push_str(&format!("- {line}\n"));
        }
        out
    }

    fn cells(&self) -> impl Iterator<Item = &Cell> {
        self.sections.iter().flat_map(|section| &section.rows).flat_map(|row| &row.cells)
    }

    fn has_method(&self, method: &str) -> bool {
        self.sections.iter().flat_map(|section| &section.rows).any(|row| row.method == method)
    }

    /// A sentence for the top of a table whose grid is another than its experiment's; empty where it is that.
    pub(crate) fn changed_grid(&self) -> &'static str {
        let changed = self.experiment.as_ref().is_some_and(|experiment| !experiment.changes.is_empty());
        if changed { " Another grid than that was asked for, as the notes at the end say." } else { "" }
    }

    /// Whether any number has a published one beside it.
    pub(crate) fn has_published(&self) -> bool {
        self.cells().any(|cell| cell.published.is_some())
    }

    pub(crate) fn legend(&self, bold: &str) -> Vec<String> {
        let mut lines = vec![
            "Accuracies in percent of all test images, mean ± sample standard deviation over runs. An image that is wrong without an attack counts as not robust.".to_owned(),
        ];
        let shown =
            |column: &str| self.sections.iter().any(|section| section.columns.iter().any(|name| name == column));
        if shown(MEAN_ROBUST) {
            let averaged: std::collections::BTreeSet<String> = self.sections.iter().map(averaged).collect();
            lines.push(format!("mean robust: mean over {}.", averaged.into_iter().collect::<Vec<_>>().join("; ")));
        }
        if shown(DROP_RATE) {
            let attack = column_label(DROP_RATE_ATTACK);
            lines.push(format!(
                "DR ({attack}): drop rate, 100 (clean - robust) / clean under {attack}; less is better."
            ));
        }
        if self.has_published() {
            lines.push("In parentheses: the published number.".to_owned());
            lines.push(match &self.experiment {
                Some(experiment) if experiment.tolerance_applies => format!(
                    "`!`: farther than {} points from the published number ({} of the numbers here).",
                    experiment.tolerance,
                    self.outside_tolerance().count()
                ),
                _ => "This is not the paper's setting, so no number is held against a published one.".to_owned(),
            });
        }
        match &self.baseline {
            Some(baseline) if !self.has_method(baseline) => lines.push(format!(
                "`{baseline}`, with which the others would be compared, has no row here, so there are no p-values and no difference is called significant."
            )),
            Some(baseline)
                if self.sections.iter().flat_map(|section| &section.rows).all(|row| row.method == *baseline) =>
            {
                lines.push(format!("`{baseline}`, the baseline, has no other row beside it to be compared with."));
            }
            Some(baseline) if self.cells().all(|cell| cell.comparison.is_none()) => lines.push(format!(
                "No row here shares seeds with a row of `{baseline}`, so no difference here is called significant."
            )),
            Some(baseline) => lines.push(format!(
                "{}: better than `{baseline}` in a paired t-test over seeds with p < {}; ↓: worse by the same test. Not corrected for the number of cells; any other difference is not a finding.",
                bold,
                crate::stats::SIGNIFICANT
            )),
            None => lines.push("No baseline was named, so no difference here is called significant.".to_owned()),
        }
        let changes = self.experiment.iter().flat_map(|experiment| &experiment.changes);
        lines.extend(changes.map(|change| format!("The grid is not that of the experiment's file: {change}.")));
        if self.planned_rows > 0 {
            let missing = self.missing.len();
            if missing == 0 {
                lines.push(format!("All {} rows of the grid have a result.", self.planned_rows));
            } else {
                let mut named: Vec<String> = self.missing.iter().take(NAMED_MISSING).map(planned_name).collect();
                if missing > NAMED_MISSING {
                    named.push("... (all with `--format json`)".to_owned());
                }
                let threat = self.experiment.as_ref().map_or("", |experiment| experiment.threat.as_str());
                lines.push(format!(
                    "Missing: {missing} of {} rows of the grid, which is at {threat}: {}.",
                    self.planned_rows,
                    named.join("; ")
                ));
            }
        }
        lines.push(
            "Every number's files, seeds and configurations: `c2r table --format json`; formulas: docs/tables.md."
                .to_owned(),
        );
        lines
    }
}

/// The attacks of a section that its mean is over.
fn averaged(section: &Section) -> String {
    let attacks: Vec<&str> =
        section.attacks.iter().map(String::as_str).filter(|attack| !crate::table::is_sanity(attack)).collect();
    names(&attacks)
}

fn planned_name(row: &PlannedRow) -> String {
    format!("{} {} ipc {} {}", row.dataset, row.protocol, size(row.images_per_class), row.method)
}

pub(crate) fn size(images_per_class: Option<usize>) -> String {
    images_per_class.map_or_else(|| "all".to_owned(), |count| count.to_string())
}

/// Dataset, protocol, and how the step was chosen where it was.
pub(crate) fn heading(section: &Section) -> String {
    let protocol = match section.protocol.as_str() {
        "natural" => "natural training".to_owned(),
        "dd-robustbench" => "natural training (DD-RobustBench's recipe)".to_owned(),
        "pgd-at" => "adversarial training (PGD-AT)".to_owned(),
        "trades" => "adversarial training (TRADES)".to_owned(),
        other => format!("protocol {other}"),
    };
    let chosen = match section.selection {
        Selection::Last => "",
        Selection::HeldOut => ", step chosen on held-out training images",
        Selection::BestTest => ", step chosen on the TEST images (best-test: too good)",
    };
    format!("{}, {protocol}{chosen}", section.dataset)
}

pub(crate) fn setting(section: &Section) -> String {
    let goal = match section.goal {
        c2r_base::Goal::Untargeted => "",
        c2r_base::Goal::Targeted(_) => ", targeted",
    };
    format!(
        "{}; attacks: {:?} ball of {} in pixel units{goal}; {} test images.",
        section.model, section.norm, section.epsilon, section.n_test
    )
}

/// What both drawings show.
pub(crate) struct Grid {
    pub(crate) header: Vec<String>,
    pub(crate) rows: Vec<Vec<Entry>>,
    pub(crate) notes: Vec<String>,
}

pub(crate) struct Entry {
    pub(crate) text: String,
    pub(crate) better: bool,
}

impl Grid {
    pub(crate) fn new(section: &Section) -> Self {
        let mut header = vec!["ipc".to_owned(), "method".to_owned(), "runs".to_owned()];
        header.extend(section.columns.iter().map(|column| column_label(column)));
        let mut grid = Self { header, rows: Vec::new(), notes: Vec::new() };
        for row in &section.rows {
            let plain = |text: String| Entry { text, better: false };
            let mut label = row.label.clone();
            if row.undistilled {
                label.push_str(", undistilled");
            }
            let marks: Vec<String> = row.notes.iter().map(|note| grid.mark(note)).collect();
            let runs = match row.planned_runs {
                Some(planned) if row.runs.len() < planned => {
                    let mark = grid.mark("fewer runs than planned");
                    format!("{} of {planned} {mark}", row.runs.len())
                }
                _ => row.runs.len().to_string(),
            };
            let mut line = vec![plain(size(row.images_per_class)), plain(join(label, &marks)), plain(runs)];
            for column in &section.columns {
                line.push(match row.cell(column) {
                    Some(cell) => grid.entry(row, cell),
                    None => plain("–".to_owned()),
                });
            }
            grid.rows.push(line);
        }
        grid
    }

    fn entry(&mut self, row: &Row, cell: &Cell) -> Entry {
        let mut text = percent(cell.summary.mean);
        if let Some(sd) = cell.summary.sd {
            text.push_str(&format!(" ± {}", percent(sd)));
        }
        let mut marks = Vec::new();
        let significant = cell.comparison.as_ref().filter(|comparison| comparison.significant);
        if significant.is_some_and(|comparison| !comparison.better) {
            text.push_str(" ↓");
        }
        if let Some(published) = &cell.published {
            text.push_str(&format!(" ({})", percent(published.value)));
            if published.outside_tolerance == Some(true) {
                text.push_str(" !");
            }
            if !published.caveat.is_empty() {
                marks.push(self.mark(&published.caveat));
            }
        }
        if cell.summary.n < row.runs.len() {
            marks.push(self.mark(&format!("{} of {} runs", cell.summary.n, row.runs.len())));
        }
        for flag in &cell.flags {
            marks.push(self.mark(&format!("doubtful: {flag}")));
        }
        Entry { text: join(text, &marks), better: significant.is_some_and(|comparison| comparison.better) }
    }

    /// `[1]`, the same for the same words.
    fn mark(&mut self, note: &str) -> String {
        let position = self.notes.iter().position(|known| known == note).unwrap_or_else(|| {
            self.notes.push(note.to_owned());
            self.notes.len() - 1
        });
        format!("[{}]", position + 1)
    }
}

fn join(mut text: String, marks: &[String]) -> String {
    for mark in marks {
        text.push(' ');
        text.push_str(mark);
    }
    text
}

/// One decimal; no negative zero.
pub(crate) fn percent(value: f64) -> String {
    let text = format!("{value:.1}");
    if text == "-0.0" { "0.0".to_owned() } else { text }
}

fn markdown_grid(grid: &Grid) -> String {
    let line = |cells: Vec<String>| format!("| {} |\n", cells.join(" | "));
    let mut out = line(grid.header.clone());
    let rule = |column: usize| if column == 1 { ":---" } else { "---:" };
    out.push_str(&line((0..grid.header.len()).map(|column| rule(column).to_owned()).collect()));
    for row in &grid.rows {
        let cell = |entry: &Entry| {
            let text = entry.text.replace('|', "\\|");
            if entry.better { format!("**{text}**") } else { text }
        };
        out.push_str(&line(row.iter().map(cell).collect()));
    }
    out
}

fn drawn_grid(grid: &Grid) -> String {
    let mut table = comfy_table::Table::new();
    table.load_preset(presets::UTF8_FULL_CONDENSED).set_header(&grid.header);
    for row in &grid.rows {
        table.add_row(row.iter().map(|entry| format!("{}{}", entry.text, if entry.better { " *" } else { "" })));
    }
    for (column, settings) in table.column_iter_mut().enumerate() {
        settings.set_cell_alignment(if column == 1 { CellAlignment::Left } else { CellAlignment::Right });
    }
    format!("{table}\n")
}

/// All characters that tables are made of are one column wide.
fn line_width(line: &str) -> usize {
    line.chars().count()
}

const CSV_HEADER: [&str; 32] = [
    "dataset",
    "images_per_class",
    "protocol",
    "selection",
    "model",
    "norm",
    "epsilon",
    "method",
    "profile",
    "label",
    "undistilled",
    "column",
    "runs",
    "planned_runs",
    "mean",
    "sd",
    "ci95_low",
    "ci95_high",
    "published",
    "published_source",
    "difference_from_published",
    "outside_tolerance",
    "baseline",
    "difference_from_baseline",
    "p_value",
    "n_test",
    "n_images",
    "extra_storage",
    "flags",
    "notes",
    "seeds",
    "sources",
];

fn csv_line(section: &Section, row: &Row, cell: &Cell) -> Vec<String> {
    fn number<T: ToString>(value: Option<T>) -> String {
        value.map_or_else(String::new, |value| value.to_string())
    }
    let published = cell.published.as_ref();
    let comparison = cell.comparison.as_ref();
    let seeds = row.runs.iter().zip(&cell.values).filter(|(_, value)| value.is_some());
    let seeds: Vec<String> = seeds
        .map(|(run, _)| {
            format!("{}/{}", run.distill_seed.map_or_else(|| "-".to_owned(), |seed| seed.to_string()), run.train_seed)
        })
        .collect();
    let caveats = [cell.caveat.as_str(), published.map_or("", |published| published.caveat.as_str())];
    let notes: Vec<&str> = (row.notes.iter().chain(&section.notes).map(String::as_str))
        .chain(caveats.into_iter().filter(|caveat| !caveat.is_empty()))
        .collect();
    vec![
        section.dataset.clone(),
        size(row.images_per_class),
        section.protocol.clone(),
        section.selection.to_string(),
        section.model.clone(),
        format!("{:?}", section.norm).to_lowercase(),
        section.epsilon.clone(),
        row.method.clone(),
        row.profile.clone(),
        row.label.clone(),
        row.undistilled.to_string(),
        cell.column.clone(),
        cell.summary.n.to_string(),
        number(row.planned_runs),
        cell.summary.mean.to_string(),
        number(cell.summary.sd),
        number(cell.summary.ci95.map(|(low, _)| low)),
        number(cell.summary.ci95.map(|(_, high)| high)),
        number(published.map(|published| published.value)),
        published.map_or_else(String::new, |published| published.source.clone()),
        number(published.map(|published| published.difference)),
        number(published.and_then(|published| published.outside_tolerance)),
        comparison.map_or_else(String::new, |comparison| comparison.baseline.clone()),
        number(comparison.map(|comparison| comparison.difference)),
        number(comparison.and_then(|comparison| comparison.p_value)),
        section.n_test.to_string(),
        row.n_images.to_string(),
        row.extra_storage.clone(),
        cell.flags.join("; "),
        notes.join("; "),
        seeds.join("; "),
        cell.sources.join("; "),
    ]
}
