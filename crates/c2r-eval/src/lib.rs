//! Robustness metrics, statistics and result tables.
//!
//! **What it is:** [`AttackRecord`] (the `attack.json` file: one trained network under attack), [`collect`] (every
//! such file of a results folder), [`Experiment`] (labels and published numbers, from `c2r-experiment`), [`Table`] (rows with mean,
//! deviation, significance and the files behind every number) and its renderings.
//!
//! **What it is not:** it runs no network and no attack ([`AttackRecord::from_report`] takes what
//! `c2r-attacks` found), and it never prints.
//!
//! **Where to start:** [`Table::build`]. How to read the result is in `docs/tables.md`.
//!
//! ```no_run
//! use c2r_eval::{Table, TableOptions, collect};
//! let results = collect(&["runs/mine".into()])?;
//! let options = TableOptions { baseline: Some("class-mean"), ..TableOptions::default() };
//! let table = Table::build(&results, &options)?;
//! assert!(table.markdown().contains("| ipc | method | runs |"));
//! # Ok::<(), c2r_eval::EvalError>(())
//! ```
//!
//! Outcomes and margins of each image ([`AttackScore::survived`], [`Samples`]) are arrays, and statistics run on arrays:
//!
//! ```
//! use c2r_eval::{metrics, stats::Summary};
//! use ndarray::arr1;
//!
//! let margins = arr1(&[0.5f32, -0.25, 1.0, 2.0]);
//! assert_eq!(metrics::margin_quantiles(margins.view())[2], 0.75, "the median");
//! let accuracies = arr1(&[41.0, 43.0]);
//! assert_eq!(Summary::of(&accuracies).unwrap().mean, 42.0);
//! ```

mod collect;
mod columns;
pub mod doubts;
mod error;
mod findings;
mod from_report;
pub mod metrics;
pub mod plot;
mod record;
mod render;
mod report;
pub mod stats;
pub mod table;

pub use c2r_experiment::{self, Experiment, Subject};
pub use collect::{RunInfo, Source, collect};
pub use error::{Alike, EvalError, NoCell, RecordError};
pub use from_report::RecordContext;
pub use record::{AttackRecord, AttackScore, Evaluation, Samples};
pub use report::EmbeddedPicture;
pub use table::{Table, TableOptions};
