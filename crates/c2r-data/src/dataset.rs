use std::{
    fmt, fs,
    path::{Path, PathBuf},
};

use serde::Deserialize;

use crate::{DataError, DatasetSpec, Format, Split, cifar, class_folders, digits, registry, tiny_imagenet};

/// A dataset in memory.
#[derive(Clone, Debug)]
pub struct Dataset {
    /// Name, shape, classes, normalization.
    pub spec: DatasetSpec,
    /// Training images.
    pub train: Split,
    /// Test images.
    pub test: Split,
    /// What a result on this data must say, e.g. `cifar100 train: 20000 of 50000 images (subset)`.
    pub notes: Vec<String>,
}

/// What happens while a dataset is read that a person waits for or should know. None of it changes the data.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum LoadEvent {
    /// What was in the cache is not used, and is made anew.
    CacheDropped {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// So many images are decoded, into a file that the next call finds.
    Decoding {
        /// Images of both splits.
        n_images: usize,
        /// The file.
        cache: PathBuf,
    },
    /// So many of them are done.
    Decoded {
        /// Images so far.
        n_images: usize,
    },
    /// The decoded images cannot be kept in a file: they are decoded into memory, and the next call does it again.
    NotCached {
        /// Where they would be.
        folder: PathBuf,
        /// Why not.
        reason: String,
    },
}

/// [`load_with`] without a word about what happens.
///
/// # Errors
/// As [`load_with`].
pub fn load(name: &str, data_dir: Option<&Path>) -> Result<Dataset, DataError> {
    load_with(name, data_dir, &mut |_| {})
}

/// Reads a dataset.
///
/// * `name`: what [`crate::spec`] understands, or `folder:PATH` for a folder of images (see
///   [`crate::load_folder`]; no resizing).
/// * `data_dir`: the folder that holds `cifar-10-batches-bin/` and so on, or that folder itself;
///   `digits` is embedded and `folder:PATH` names its own, so both need none.
///
/// Files that hold fewer whole records than published are read as a subset, which [`Dataset::notes`]
/// says.
///
/// Tiny-ImageNet and the ImageNet subsets are decoded once, on all cores of rayon's pool, into a file in `.c2r-cache/`
/// beside their folder, which is mapped from then on: pixels are read as they are needed and take no memory that the
/// system could not have back. The file is made anew when an image is added, removed or changed (name, length, time of
/// change), and when its SHA-256 is not what it was. Where it cannot be written, the pixels are kept in memory. The
/// other datasets are in memory, too.
///
/// * `on_event`: is told what happens, see [`LoadEvent`].
///
/// # Errors
/// [`DataError`]: the name is unknown; files are missing (the message says which layout was looked
/// for and how to get it), cut short or hold wrong labels (the message names file, byte or line).
pub fn load_with(
    name: &str,
    data_dir: Option<&Path>,
    on_event: &mut dyn FnMut(LoadEvent),
) -> Result<Dataset, DataError> {
    if let Some(path) = name.strip_prefix("folder:") {
        return class_folders::load_folder(Path::new(path), None);
    }
    let spec = registry::spec(name)?;
    if spec.format == Format::Digits {
        return Ok(digits::load(spec));
    }
    let layout = spec.folders.iter().map(|folder| format!("`{folder}/`")).collect::<Vec<_>>().join(" or ");
    let Some(data_dir) = data_dir else {
        return Err(DataError::NoDataFolder { dataset: spec.name, layout });
    };
    let Some(folder) = find(data_dir, &spec.folders) else {
        return Err(DataError::Missing { dataset: spec.name, folder: data_dir.to_owned(), layout });
    };
    let mut dataset = match spec.format {
        Format::Digits => unreachable!("handled above"),
        Format::Cifar10 => cifar::load_cifar10(spec, &folder),
        Format::Cifar100 => cifar::load_cifar100(spec, &folder),
        Format::TinyImagenet => tiny_imagenet::load(spec, &folder, on_event),
        Format::ClassFolders => class_folders::load_imagenet_subset(spec, &folder, on_event),
    }?;
    if let accepted @ Provenance::Accepted { .. } = Provenance::of_folder(&folder) {
        dataset.notes.push(format!("{}: {accepted}", dataset.spec.name));
    }
    Ok(dataset)
}

/// Where the files of a dataset come from, as far as this machine has it on record.
///
/// The record is what `cargo xtask download` left in the folder; whether the files are still as they were unpacked is
/// what its `--verify` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Provenance {
    /// Part of this crate.
    Embedded,
    /// Unpacked from an archive with the hash that `data/datasets.toml` lists.
    Published {
        /// Its name.
        archive: String,
        /// Its SHA-256, hexadecimal.
        sha256: String,
    },
    /// Unpacked from an archive with another hash, which somebody accepted.
    Accepted {
        /// Its name.
        archive: String,
        /// Its SHA-256, hexadecimal.
        sha256: String,
        /// The hash it should have had, with the name of the function.
        instead_of: String,
    },
    /// Not on record: put there by hand, or by another program.
    Unknown,
}

impl Provenance {
    /// Where the dataset called `name` comes from, looked for as [`load`] does.
    pub fn of(name: &str, data_dir: Option<&Path>) -> Self {
        match registry::spec(name) {
            Ok(spec) if spec.format == Format::Digits => Self::Embedded,
            Ok(spec) => data_dir
                .and_then(|data_dir| find(data_dir, &spec.folders))
                .map_or(Self::Unknown, |folder| Self::of_folder(&folder)),
            Err(_) => Self::Unknown,
        }
    }

    fn of_folder(folder: &Path) -> Self {
        #[derive(Deserialize)]
        struct Record {
            archive: String,
            sha256: String,
            accepted_instead_of: Option<String>,
        }
        let record = fs::read_to_string(folder.join(".c2r-download.json"))
            .ok()
            .and_then(|text| serde_json::from_str::<Record>(&text).ok());
        match record {
            Some(Record { archive, sha256, accepted_instead_of: Some(instead_of) }) => {
                Self::Accepted { archive, sha256, instead_of }
            }
            Some(Record { archive, sha256, accepted_instead_of: None }) => Self::Published { archive, sha256 },
            None => Self::Unknown,
        }
    }
}

impl fmt::Display for Provenance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Embedded => f.write_str("part of c2r"),
            Self::Published { archive, sha256 } => write!(f, "the published archive {archive}, sha256 {sha256}"),
            Self::Accepted { archive, sha256, instead_of } => {
                write!(f, "{archive} was accepted by hand with sha256 {sha256} instead of {instead_of}")
            }
            Self::Unknown => f.write_str("unknown: no record of `cargo xtask download` lies in the folder"),
        }
    }
}

/// The first of `names` that is a folder in `data_dir`, or `data_dir` itself if it is called that.
fn find(data_dir: &Path, names: &[String]) -> Option<PathBuf> {
    if names.iter().any(|name| data_dir.ends_with(name)) && data_dir.is_dir() {
        return Some(data_dir.to_owned());
    }
    names.iter().map(|name| data_dir.join(name)).find(|folder| folder.is_dir())
}

/// Notes each split that holds fewer images than published.
pub(crate) fn note_subset(notes: &mut Vec<String>, spec: &DatasetSpec, n_train: usize, n_test: usize) {
    for (split, found, published) in [("train", n_train, spec.n_train), ("test", n_test, spec.n_test)] {
        if let Some(published) = published.filter(|&published| found < published) {
            notes.push(format!("{} {split}: {found} of {published} images (subset)", spec.name));
        }
    }
}
