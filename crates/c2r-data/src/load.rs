use std::path::Path;

use c2r_experiment::DatasetFormat;
use c2r_files::text_to_path;

use crate::{DataError, Dataset, LoadEvent, Provenance, cifar, class_folders, digits, registry, tiny_imagenet};

/// [`load_with`] without events.
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
/// * `data_dir`: the folder that holds `cifar-10-batches-bin/` (or `cifar-10-batches-py/`) and so on, or that folder itself;
///   `digits` is embedded and `folder:PATH` names its own, so both need none.
///
/// Files that hold fewer whole records than published are read as a subset, which [`Dataset::notes`]
/// says.
///
/// Tiny-ImageNet and the ImageNet subsets are decoded once, on all cores of rayon's pool, into a file in `.c2r-cache/`
/// beside their folder, which is mapped from then on: pixels are read as they are needed and take no memory that the
/// system could not have back. The file is made again when an image is added, removed or changed (name, length, time of
/// change), and when its SHA-256 is not what it was. Where it cannot be written, the pixels are kept in memory. The
/// other datasets are in memory, too.
///
/// * `on_event`: called for every [`LoadEvent`].
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
        return class_folders::load_folder(&text_to_path(path), None);
    }
    let spec = registry::spec(name)?;
    if spec.format == DatasetFormat::Digits {
        return Ok(digits::load(spec));
    }
    let layout = spec.folders.iter().map(|folder| format!("`{folder}/`")).collect::<Vec<_>>().join(" or ");
    let Some(data_dir) = data_dir else {
        return Err(DataError::NoDataFolder { dataset: spec.name.clone(), layout });
    };
    DataError::check_folder(data_dir)?;
    let Some(folder) = spec.folder_in(data_dir) else {
        return Err(DataError::Missing { dataset: spec.name.clone(), folder: data_dir.to_owned(), layout });
    };
    let mut dataset = match spec.format {
        DatasetFormat::Digits => unreachable!("handled above"),
        DatasetFormat::Cifar10 => cifar::load_cifar10(spec, &folder),
        DatasetFormat::Cifar100 => cifar::load_cifar100(spec, &folder),
        DatasetFormat::TinyImagenet => tiny_imagenet::load(spec, &folder, on_event),
        DatasetFormat::ClassFolders => class_folders::load_imagenet_subset(spec, &folder, on_event),
    }?;
    if let accepted @ Provenance::Accepted { .. } = Provenance::of_folder(&folder) {
        dataset.notes.push(format!("{}: {accepted}", dataset.spec.name));
    }
    Ok(dataset)
}
