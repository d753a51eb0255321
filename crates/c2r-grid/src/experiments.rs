//! The experiments of a checkout.

use std::{fs, path::Path};

use anyhow::Context;
use c2r_experiment::{COMMON, Experiment};
use c2r_run::exit;

use crate::select::unknown;

/// Where the experiment files are, from the top of the checkout.
pub(crate) const FOLDER: &str = "data/paper";

/// Reads the experiment called `name` in the checkout `root`.
///
/// # Errors
/// If there is none, with the names of those that there are, or it is wrong.
pub fn read_experiment(root: &Path, name: &str) -> anyhow::Result<Experiment> {
    let there = experiment_names(root)?;
    if !there.iter().any(|other| other == name) {
        return Err(exit::usage(unknown("experiment", name, there)));
    }
    Experiment::read(&root.join(FOLDER).join(name).with_extension("toml")).map_err(exit::usage)
}

/// The experiments of the checkout, sorted.
///
/// # Errors
/// If the folder cannot be read.
pub fn experiment_names(root: &Path) -> anyhow::Result<Vec<String>> {
    let folder = root.join(FOLDER);
    let mut names = Vec::new();
    for entry in fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))? {
        let path = entry?.path();
        let is_experiment = path.extension().is_some_and(|end| end == "toml") && !path.ends_with(COMMON);
        names.extend(path.file_stem().filter(|_| is_experiment).map(|stem| stem.to_string_lossy().into_owned()));
    }
    names.sort();
    Ok(names)
}
