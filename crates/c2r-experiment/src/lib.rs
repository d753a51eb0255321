//! What the files in `data/` say about experiments and datasets.
//!
//! **What it is:** [`Experiment`] (`data/paper/*.toml`: methods, grids at several scales, published numbers),
//! [`DatasetEntry`] (`data/datasets.toml`: layout, normalization, sources, hashes), both read and checked, [`results`]
//! (which version of a stage's numbers this checkout makes), [`BuiltIn`] (which of these files a program was built with), [`Subgrid`] (a part of a grid), [`Subject`] (what a trained network is, as checkpoints,
//! attack reports and tables say it), and [`Subset`] (which images a result is of).
//!
//! **What it is not:** it runs nothing and reads no pixels. `cargo xtask reproduce` expands a grid into `c2r` commands,
//! `c2r table` takes labels, order and published numbers; downloads and dataset readers look datasets up. All of them read
//! the files through this crate, which is therefore free of tensors.
//!
//! **Where to start:** [`Experiment::read`], [`DatasetEntry::read_all`].

mod built_in;
mod common;
mod datasets;
mod error;
mod experiment;
mod part;
pub mod results;
mod subgrid;
mod subject;
mod subset;

pub use built_in::BuiltIn;
pub use datasets::{DataFile, DatasetEntry, DatasetFormat, EmbeddedFile};
pub use error::ExperimentError;
pub use experiment::{COMMON, Experiment, Method, MethodKind, Override, Published, Scale, radius};
pub use part::Part;
pub use subgrid::{Subgrid, unknown};
pub use subject::{Selection, Subject};
pub use subset::{Subset, SubsetOrder};
