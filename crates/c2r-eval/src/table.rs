//! The table: rows, cells, and where each number came from. [`Table::build`](crate::Table::build) makes it.

mod build;
mod group;
mod plan;
mod row;
mod schema;
mod settings;
mod values;

pub use crate::columns::{CLEAN, DROP_RATE, DROP_RATE_ATTACK, MARGIN, MEAN_ROBUST, MINIMUM, WORST_CASE};
pub use plan::TableOptions;
pub use schema::{Cell, Comparison, ExperimentInfo, Picture, PlannedRow, PublishedCell, Row, Run, Section, Table};
