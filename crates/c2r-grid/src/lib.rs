//! Grids of experiments as jobs, run once each by any number of processes and machines.
//!
//! **What it is:** a [`Grid`] (one scale of an experiment file) becomes a [`GridPlan`] of [`Job`]s, `c2r` commands that are
//! named after everything that decides their result. [`run()`] runs what is not finished, [`SlurmArray`] lets Slurm do it,
//! [`Reproduction`] goes from there to the table, [`list()`] prints the experiments with their time, and [`regression()`] compares
//! the numbers of small experiments with committed ones.
//!
//! **What it is not:** it computes nothing itself, handles no tensors and links no libtorch; every job is a child process with
//! the public command line. `cargo xtask reproduce` is the command around it (docs/reproduce.md).
//!
//! **Where to start:** [`Reproduction`].

mod board;
mod built_in;
mod datasets;
mod estimate;
mod experiments;
mod identity;
mod job;
mod lease;
mod list;
mod log;
mod order;
mod pack;
mod plan;
mod record;
mod regression;
mod reproduction;
mod run;
mod select;
mod slurm;
mod table_folder;

pub use datasets::Datasets;
pub use experiments::{FoundExperiment, experiment_names, read_experiment, speeds_of};
pub use job::{Cell, Downstream, Job, Stage, Workplace};
pub use list::list;
pub use pack::{MOST_BYTES, Packed, Taken, pack, unpack};
pub use plan::{Grid, GridPlan};
pub use record::Failed;
pub use regression::regression;
pub use reproduction::Reproduction;
pub use run::{Failure, Summary, finished, run};
pub use select::Shard;
pub use slurm::SlurmArray;

// The tests in `src` share the example of those in `tests`, which names the crate.
#[cfg(test)]
extern crate self as c2r_grid;
#[cfg(test)]
#[path = "../tests/it/example.rs"]
mod example;
