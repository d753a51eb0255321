//! The table as Markdown, for a terminal, as CSV, LaTeX and JSON. Equal tables give equal bytes.

mod csv;
mod grid;
mod latex;
mod legend;
mod text;

pub(crate) use grid::{Notes, cell_notes, heading, runs, setting, threat};

use crate::Table;

impl Table {
    /// Everything, indented, with a newline at the end. Read back with serde.
    pub fn json(&self) -> String {
        let mut text = serde_json::to_string_pretty(self).expect("our types serialize to JSON");
        text.push('\n');
        text
    }
}
