use std::path::{Path, PathBuf};

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

/// Reads a dataset.
///
/// * `name`: a name of the [`registry`], or `folder:PATH` for a folder of images (see
///   [`crate::load_folder`]; no resizing).
/// * `data_dir`: the folder that holds `cifar-10-batches-bin/` and so on, or that folder itself;
///   `digits` is embedded and `folder:PATH` names its own, so both need none.
///
/// Files that hold fewer whole records than published are read as a subset, which [`Dataset::notes`]
/// says.
///
/// # Errors
/// [`DataError`]: the name is unknown; files are missing (the message says which layout was looked
/// for and how to get it), cut short or hold wrong labels (the message names file, byte or line).
pub fn load(name: &str, data_dir: Option<&Path>) -> Result<Dataset, DataError> {
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
    match spec.format {
        Format::Digits => unreachable!("handled above"),
        Format::Cifar10 => cifar::load_cifar10(spec, &folder),
        Format::Cifar100 => cifar::load_cifar100(spec, &folder),
        Format::TinyImagenet => tiny_imagenet::load(spec, &folder),
        Format::ClassFolders => class_folders::load_imagenet_subset(spec, &folder),
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
