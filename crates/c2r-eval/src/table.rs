//! The table: rows, cells, and where each number came from. [`Table::build`](crate::Table::build) makes it.

mod build;
mod compare;
mod group;
mod plan;
mod row;
mod schema;
mod settings;
mod values;

pub use crate::columns::{
    AUTOATTACK, CLEAN, DROP_RATE, DROP_RATE_ATTACK, MARGIN, MEAN_ROBUST, MEAN_ROBUST_AUTOATTACK, MINIMUM,
    PAPER_ATTACKS, WORST_CASE,
};
pub use plan::TableOptions;
pub use schema::{
    Cell, Comparison, Errors, ExperimentInfo, Picture, PlannedRow, PublishedCell, Row, Run, Section, Table,
};
