//! Which datasets are here, and what is in them.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    time::UNIX_EPOCH,
};

use anyhow::Context;
use c2r_experiment::{DatasetEntry, DatasetFormat, unknown};
use c2r_run::{
    exit::{self, OrExit},
    process, terminal,
};
use sha2::{Digest, Sha256};

use crate::Workplace;

/// Files that hold pixels or say what they show; anything else next to them changes nothing.
const EXTENSIONS: [&str; 6] = ["bin", "csv", "jpeg", "jpg", "png", "txt"];

/// Folders of the Python versions of CIFAR.
const CIFAR_PYTHON: [&str; 2] = ["cifar-10-batches-py", "cifar-100-python"];

/// Keys of a registry entry that decide no number.
const ABOUT: [&str; 5] = ["title", "folders", "licence", "homepage", "files"];

/// Hashing more than this is announced, bytes.
const LARGE: u64 = 500_000_000;

/// A dataset that an experiment may name.
#[derive(Debug, Clone)]
pub(crate) struct Dataset {
    pub(crate) entry: DatasetEntry,
    /// SHA-256 over names and contents of its files; `None` where it is not here.
    sha256: Option<String>,
}

impl Dataset {
    /// Its contents as part of a job's name. The jobs of a dataset that is not here have names too, so that
    /// they can be counted and shown; they can neither be finished nor run.
    pub(crate) fn contents(&self) -> &str {
        self.sha256.as_deref().unwrap_or("not here")
    }

    /// What the registry says about it, as far as it can change a number.
    pub(crate) fn deciding(&self) -> toml::Table {
        let mut table = self.entry.table.clone();
        table.retain(|key, _| !ABOUT.contains(&key));
        table
    }
}

/// All datasets of the registry, and which of those that were asked for are here.
#[derive(Debug, Clone)]
pub struct Datasets(BTreeMap<String, Dataset>);

impl Datasets {
    /// Reads the registry and finds the datasets of these `names` in the data folder of `place`; the others count as not here.
    /// Contents are hashed once: the hash of files of the same names, sizes and times is kept in the results folder.
    ///
    /// # Errors
    /// If files cannot be read, or the process was asked to stop.
    pub fn read<'a>(place: &Workplace, names: impl IntoIterator<Item = &'a String>) -> anyhow::Result<Self> {
        let names: BTreeSet<&String> = names.into_iter().collect();
        let entries = DatasetEntry::read_all(&place.root.join(DatasetEntry::REGISTRY)).map_err(exit::usage)?;
        let datasets = entries.into_iter().map(|entry| {
            let folder = match &entry.embedded {
                Some(file) => place.root.join(&file.path).parent().map(Path::to_owned),
                None => place.data.as_ref().and_then(|data| entry.folder_in(data)),
            };
            let folder = folder.filter(|_| names.contains(&entry.name));
            let sha256 = folder.map(|folder| contents(&folder, &entry, place)).transpose()?.flatten();
            Ok((entry.name.clone(), Dataset { entry, sha256 }))
        });
        datasets.collect::<anyhow::Result<_>>().map(Self)
    }

    /// A dataset by name.
    pub(crate) fn get(&self, name: &str) -> anyhow::Result<&Dataset> {
        self.0.get(name).ok_or_else(|| exit::usage(unknown("dataset", name, self.0.keys())))
    }

    /// Which of `names` are not here, sorted.
    pub fn missing<'a>(&self, names: impl IntoIterator<Item = &'a String>) -> Vec<String> {
        let names: BTreeSet<&String> = names.into_iter().collect();
        let is_gone = |name: &&String| self.0.get(*name).is_some_and(|dataset| dataset.sha256.is_none());
        names.into_iter().filter(is_gone).cloned().collect()
    }
}

/// Hash of a dataset's files; `None` if the folder holds none.
fn contents(folder: &Path, entry: &DatasetEntry, place: &Workplace) -> anyhow::Result<Option<String>> {
    let mut files = Vec::new();
    list(folder, &mut Vec::new(), &mut files)?;
    if entry.format == DatasetFormat::ClassFolders {
        // One folder holds the classes of many subsets. Where the test images of all classes lie in one folder, the label file
        // says which are of these; all of them are kept, and the label file with them.
        let wnids: BTreeSet<&str> = entry.wnids.iter().map(String::as_str).collect();
        let is_flat = |inside: &Path| {
            let parts: Vec<&str> = inside.iter().filter_map(|part| part.to_str()).collect();
            matches!(parts[..], ["val", _] | ["LOC_val_solution.csv"])
        };
        files.retain(|file| {
            let inside = file.strip_prefix(folder).unwrap_or(file);
            let is_of_class = || inside.iter().any(|part| part.to_str().is_some_and(|part| wnids.contains(part)));
            wnids.is_empty() || is_of_class() || is_flat(inside)
        });
    }
    files.sort();
    let (mut stamp, mut n_bytes) = (Sha256::new(), 0);
    for file in &files {
        let data = fs::metadata(file).with_context(|| format!("cannot read {}", file.display())).or_exit(exit::DATA)?;
        let time = data.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok()).unwrap_or_default();
        stamp.update(format!("{} {} {}\n", file.display(), data.len(), time.as_nanos()));
        n_bytes += data.len();
    }
    if n_bytes == 0 {
        return Ok(None);
    }
    let (stamp, name) = (hex::encode(stamp.finalize()), &entry.name);
    let cache = place.jobs().join(format!("data-{name}.json"));
    let mut known: BTreeMap<String, String> = c2r_files::read_json(&cache).unwrap_or_default();
    if let Some(sha256) = known.get(&stamp) {
        return Ok(Some(sha256.clone()));
    }
    if n_bytes > LARGE {
        terminal::note(format!("reading {name} once ({}) to record its checksum", terminal::megabytes(n_bytes)));
    }
    let mut hash = Sha256::new();
    for file in &files {
        process::check_interrupt()?;
        let inside = file.strip_prefix(folder).unwrap_or(file);
        hash.update(inside.to_string_lossy().as_bytes());
        hash.update([0]);
        hash.update(hex::decode(c2r_files::sha256_of_file(file).or_exit(exit::DATA)?)?);
    }
    let sha256 = hex::encode(hash.finalize());
    known.insert(stamp, sha256.clone());
    // A convenience: if the results folder cannot be written, the next write reports it.
    let _ = c2r_files::write_json(&cache, &known);
    Ok(Some(sha256))
}

/// The Python versions of CIFAR have files without an ending.
fn is_python_batch(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let is_cifar = path.parent().is_some_and(|folder| CIFAR_PYTHON.iter().any(|name| folder.ends_with(name)));
    is_cifar && (["train", "test", "test_batch"].contains(&&*name) || name.starts_with("data_batch_"))
}

/// Adds every file below `folder` that may hold data. Links are followed, but not to a folder that is being listed, which are in
/// `open`: a link to `.` has no end, and two of them double with every step.
fn list(folder: &Path, open: &mut Vec<PathBuf>, files: &mut Vec<PathBuf>) -> anyhow::Result<()> {
    process::check_interrupt()?;
    let unreadable = || format!("cannot read {}", folder.display());
    let real = fs::canonicalize(folder).with_context(unreadable).or_exit(exit::DATA)?;
    if open.contains(&real) {
        return Ok(());
    }
    open.push(real);
    for entry in fs::read_dir(folder).with_context(unreadable).or_exit(exit::DATA)? {
        let path = entry.with_context(unreadable).or_exit(exit::DATA)?.path();
        let hidden = path.file_name().is_none_or(|name| name.to_string_lossy().starts_with('.'));
        let extension = path.extension().unwrap_or_default().to_ascii_lowercase();
        if path.is_dir() {
            list(&path, open, files)?;
        } else if !hidden && (EXTENSIONS.contains(&&*extension.to_string_lossy()) || is_python_batch(&path)) {
            files.push(path);
        }
    }
    open.pop();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(unix)]
    #[test]
    fn links_are_followed_but_not_in_circles() {
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().join("data");
        let elsewhere = folder.path().join("elsewhere");
        for made in [&data.join("train"), &elsewhere] {
            fs::create_dir_all(made).unwrap();
            fs::write(made.join("image.png"), "").unwrap();
        }
        for (target, link) in [(".", "a"), (".", "b"), ("..", "train/up"), ("../elsewhere", "val"), ("val", "test")] {
            std::os::unix::fs::symlink(target, data.join(link)).unwrap();
        }
        let mut files = Vec::new();
        list(&data, &mut Vec::new(), &mut files).unwrap();
        files.sort();
        assert_eq!(files, ["test/image.png", "train/image.png", "val/image.png"].map(|file| data.join(file)));
    }
}
