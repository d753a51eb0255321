//! Markdown, and drawn tables for a terminal.

use comfy_table::{CellAlignment, presets};

use super::grid::{Entry, Grid, heading, setting};
use crate::{Table, table::Section};

impl Table {
    /// Markdown, accuracies in percent with one decimal.
    pub fn markdown(&self) -> String {
        self.document(false)
    }

    /// For a terminal of `width` columns: drawn tables if they fit, else (or if the width is unknown) Markdown.
    pub fn terminal(&self, width: Option<usize>) -> String {
        // All characters that tables are made of are one column wide.
        let width_of = |section: &Section| drawn(&Grid::new(section)).lines().map(|line| line.chars().count()).max();
        let widest = self.sections.iter().filter_map(width_of).max();
        self.document(width.is_some() && width >= widest)
    }

    fn document(&self, draw: bool) -> String {
        let mut out = format!("# {}\n", self.title);
        if let Some(experiment) = &self.experiment {
            let scale = experiment.scale.as_ref();
            let scale = scale.map(|scale| format!(", scale `{scale}`: {}", experiment.about)).unwrap_or_default();
            out.push_str(&format!("\nExperiment `{}`{scale}.{}", experiment.name, self.changed_grid()));
            if self.has_published() {
                out.push_str(&format!(" Published numbers: {}.", experiment.source));
            }
            out.push('\n');
        }
        let findings = self.findings();
        if !findings.is_empty() {
            out.push_str("\n## What this shows\n\n");
        }
        for finding in findings {
            let heading = if draw { finding.heading } else { format!("**{}**", finding.heading) };
            out.push_str(&format!("- {heading}. {}\n", finding.sentences.join(" ")));
        }
        self.not_shown().iter().for_each(|line| out.push_str(&format!("- Not shown: {line}\n")));
        for section in &self.sections {
            let grid = Grid::new(section);
            out.push_str(&format!("\n## {}\n\n{}\n\n", heading(section), setting(section)));
            out.push_str(&if draw { drawn(&grid) } else { markdown(&grid) });
            if !grid.notes.0.is_empty() || !section.notes.is_empty() {
                out.push('\n');
            }
            for (position, note) in grid.notes.0.iter().enumerate() {
                out.push_str(&format!("- [{}] {note}\n", position + 1));
            }
            section.notes.iter().for_each(|note| out.push_str(&format!("- {note}\n")));
        }
        if !self.pictures.is_empty() {
            out.push_str("\n## Synthetic images\n\n");
        }
        for picture in &self.pictures {
            out.push_str(&if draw {
                format!("- {}: {}\n", picture.file, picture.caption)
            } else {
                format!("{}\n\n![{}]({})\n\n", picture.caption, picture.caption, picture.file)
            });
        }
        out.truncate(out.trim_end_matches('\n').len());
        out.push_str("\n\n## How to read this\n\n");
        let bold = if draw { "`*`" } else { "Bold" };
        self.legend(bold).iter().for_each(|line| out.push_str(&format!("- {line}\n")));
        out
    }
}

fn markdown(grid: &Grid) -> String {
    let line = |cells: Vec<String>| format!("| {} |\n", cells.join(" | "));
    let rules = (0..grid.header.len()).map(|column| if column == 1 { ":---" } else { "---:" }.to_owned());
    let mut out = line(grid.header.clone()) + &line(rules.collect());
    for row in &grid.rows {
        let cell = |entry: &Entry| {
            let text = entry.text.replace('|', "\\|");
            if entry.better { format!("**{text}**") } else { text }
        };
        out.push_str(&line(row.iter().map(cell).collect()));
    }
    out
}

fn drawn(grid: &Grid) -> String {
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
