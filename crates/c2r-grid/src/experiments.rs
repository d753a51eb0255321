//! The experiments of a checkout.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::Context;
use c2r_experiment::{COMMON, Experiment, unknown};
use c2r_run::exit;

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
    let mut names = stems(&root.join(FOLDER), "toml")?;
    names.retain(|name| Path::new(COMMON).file_stem().is_none_or(|common| common != name.as_str()));
    Ok(names)
}

/// The file of the speeds that were measured on the machine called `name`, such as `h200`.
///
/// # Errors
/// If there is none, with the names of those that there are.
pub fn speeds_of(root: &Path, name: &str) -> anyhow::Result<PathBuf> {
    let folder = root.join("data/speeds");
    let there = stems(&folder, "json")?;
    if there.iter().any(|other| other == name) {
        return Ok(folder.join(name).with_extension("json"));
    }
    Err(exit::usage(unknown("machine", name, there)))
}

/// Names of the files of `folder` that end in `end`, without it, sorted.
fn stems(folder: &Path, end: &str) -> anyhow::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))? {
        let path = entry?.path();
        let fits = path.extension().is_some_and(|other| other == end);
        names.extend(path.file_stem().filter(|_| fits).map(|stem| stem.to_string_lossy().into_owned()));
    }
    names.sort();
    Ok(names)
}
