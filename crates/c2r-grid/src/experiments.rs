//! The experiments of a checkout.

use std::{
    fs,
    path::{self, MAIN_SEPARATOR, Path, PathBuf},
};

use anyhow::Context;
use c2r_experiment::{COMMON, Experiment, unknown};
use c2r_run::exit;

/// Where the experiment files are, from the top of the checkout.
pub(crate) const FOLDER: &str = "data/paper";

/// An experiment, and where it was found.
#[derive(Debug, Clone)]
pub struct FoundExperiment {
    /// The experiment.
    pub experiment: Experiment,
    /// Its file and the common one, if it is not an experiment of the checkout: `c2r table` reads them side by side.
    pub own_files: Vec<PathBuf>,
}

/// Finds the experiment `name` of the checkout `root`, or the file `name` if it ends in `.toml` or has a slash. A file has what is
/// common to the checkout's experiments unless there is a [`COMMON`] next to it, and may name profiles next to it, too.
///
/// # Errors
/// If there is none, with the names of those that there are, or it is wrong, or a profile is not there.
pub fn read_experiment(root: &Path, name: &str) -> anyhow::Result<FoundExperiment> {
    let there = experiment_names(root)?;
    let is_path = Path::new(name).extension().is_some_and(|end| end == "toml") || name.contains(['/', MAIN_SEPARATOR]);
    if !is_path && !there.iter().any(|other| other == name) {
        let others = unknown("experiment", name, there);
        return Err(exit::usage(format!("{others}; a file of your own is named by its path, such as ./{name}.toml")));
    }
    let ours = root.join(FOLDER);
    let file = if is_path { path::absolute(name)? } else { ours.join(name).with_extension("toml") };
    if !file.is_file() {
        return Err(exit::usage(format!("there is no experiment file {}", file.display())));
    }
    let folder = file.parent().unwrap_or(root).canonicalize()?;
    let is_ours = ours.canonicalize().is_ok_and(|ours| ours == folder);
    let beside = file.with_file_name(COMMON);
    let common = if is_ours || beside.is_file() { beside } else { ours.join(COMMON) };
    let mut experiment = Experiment::read_with(&file, &common).map_err(exit::usage)?;
    if !is_ours && there.contains(&experiment.name) {
        return Err(exit::usage(format!(
            "{}: {FOLDER} has an experiment `{}`, whose table would be in the same folder; rename the file and its `name`",
            file.display(),
            experiment.name
        )));
    }
    for (method, profile) in
        experiment.methods.iter_mut().filter_map(|(name, method)| Some((name, method.profile.as_mut()?)))
    {
        let own = folder.join(&*profile);
        if root.join(&*profile).is_file() {
            continue;
        }
        if is_ours || !own.is_file() {
            let or_beside = if is_ours { String::new() } else { format!(" or in {}", folder.display()) };
            return Err(exit::usage(format!(
                "{}: methods.{method}: there is no profile {profile} in {}{or_beside}",
                file.display(),
                root.display()
            )));
        }
        *profile = text(&own)?.to_owned();
    }
    let own_files = if is_ours { vec![] } else { [file, common].into_iter().filter(|file| file.is_file()).collect() };
    own_files.iter().try_for_each(|file| text(file).map(drop))?;
    Ok(FoundExperiment { experiment, own_files })
}

/// A path that can be in the commands of jobs.
fn text(path: &Path) -> anyhow::Result<&str> {
    path.to_str().ok_or_else(|| exit::usage(format!("{}: reproduce needs a path in UTF-8; rename it", path.display())))
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
