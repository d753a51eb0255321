//! Experiment files: one table or figure of a paper each (`data/paper/*.toml`).
//!
//! **What it is:** [`Experiment`] (methods, grids at several scales, published numbers), read and checked, and
//! [`results`] (which version of a stage's numbers this checkout makes).
//!
//! **What it is not:** it runs nothing. `cargo xtask reproduce` expands a grid into `c2r` commands, `c2r table` takes
//! labels, order and published numbers; both read the file through this crate, which therefore knows no tensor.
//!
//! **Where to start:** [`Experiment::read`].

mod error;
mod experiment;
pub mod results;

pub use error::ExperimentError;
pub use experiment::{COMMON, Experiment, Method, MethodKind, Override, Published, Scale};
