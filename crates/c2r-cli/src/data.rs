//! Options that say which data to use.

use std::{
    num::NonZeroUsize,
    path::{Path, PathBuf},
};

use c2r_data::{DataError, Dataset, DatasetSpec, LoadEvent, Split, SyntheticSet};
use c2r_files::{path_to_text, text_to_path};
use c2r_run::{
    arguments::any_text,
    exit::{self, OrExit},
    terminal::{self as ui, Ui},
};

use crate::help;

/// Which dataset, and where.
#[derive(clap::Args, Clone)]
pub(crate) struct DatasetArgs {
    #[arg(
        long,
        value_name = "NAME",
        value_parser = any_text(),
        help = help::DATASET,
        long_help = help::long(help::DATASET, help::ABOUT_DATASETS)
    )]
    pub(crate) dataset: String,

    /// Folder with the downloaded datasets
    #[arg(long, value_name = "DIR", env = "C2R_DATA")]
    pub(crate) data: Option<PathBuf>,

    /// Use only the first N training images of each class
    #[arg(long, value_name = "N")]
    pub(crate) train_per_class: Option<NonZeroUsize>,
}

impl DatasetArgs {
    pub(crate) fn is_folder(&self) -> bool {
        self.dataset.starts_with(FOLDER)
    }

    /// What is known of the dataset without reading it.
    pub(crate) fn spec(&self) -> anyhow::Result<DatasetSpec> {
        spec(&self.dataset)
    }

    /// Reads the dataset; notes what is odd about it.
    pub(crate) fn load(&self, ui: &Ui) -> anyhow::Result<Dataset> {
        load(&self.dataset, self.data.as_deref(), ui)
    }
}

/// Prints a note where `--train-per-class` asks for more images than any class has.
pub(crate) fn note_too_many(per_class: usize, train: &Split, ui: &Ui) {
    let classes = 0..train.n_classes();
    let most = classes.map(|class| train.class_positions(class).len()).max().unwrap_or_default();
    if per_class > most {
        ui.note(format!(
            "note: no class has more than {most} training images, so --train-per-class {per_class} takes all"
        ));
    }
}

/// How the name of a folder of images begins.
pub(crate) const FOLDER: &str = "folder:";

/// What is known of a dataset; only a folder of images has to be read for that.
pub(crate) fn spec(name: &str) -> anyhow::Result<DatasetSpec> {
    if name.starts_with(FOLDER) {
        return Ok(c2r_data::load(name, None).map_err(coded)?.spec);
    }
    c2r_data::spec(name).or_exit(exit::USAGE)
}

/// Reads the dataset that a set was distilled from. A folder of images is the one of the set's header or, where that is not there,
/// `folder`.
pub(crate) fn load_of_set(set: &SyntheticSet, folder: Option<&Path>, ui: &Ui) -> anyhow::Result<Dataset> {
    let header = &set.header;
    let Some(recorded) = header.dataset.strip_prefix(FOLDER) else { return load(&header.dataset, folder, ui) };
    let given = folder.filter(|folder| folder.join("train").is_dir());
    let name = match given {
        _ if text_to_path(recorded).is_dir() => header.dataset.clone(),
        Some(folder) => format!("{FOLDER}{}", path_to_text(folder)),
        None => {
            let message = format!(
                "the set was distilled from {}, and no such folder is here: name it with `--data DIR`",
                header.dataset
            );
            return exit::fail(exit::DATA, message);
        }
    };
    let dataset = load(&name, None, ui)?;
    let train_per_class = header.origin().or_exit(exit::DATA)?.train_per_class;
    let sha256 = match train_per_class {
        Some(n) => dataset.train.subset_per_class(n as usize).sha256(),
        None => dataset.train.sha256(),
    };
    if !header.data_sha256.is_empty() && header.data_sha256 != sha256 {
        let message = format!(
            "{name} has other training images than those that the set was distilled from (SHA-256 {sha256} instead of {}): \
             name the right folder with `--data DIR`, or start the command where {} is",
            header.data_sha256, header.dataset
        );
        return exit::fail(exit::DATA, message);
    }
    Ok(dataset)
}

/// Reads a dataset; notes what is odd about it.
pub(crate) fn load(name: &str, folder: Option<&Path>, ui: &Ui) -> anyhow::Result<Dataset> {
    let mut progress = None;
    let mut on_event = |event: LoadEvent| {
        match event {
        LoadEvent::CacheDropped { path, reason } => {
            ui.note(format!("{}: {reason}; the images are decoded again", path.display()));
        }
        LoadEvent::Decoding { n_images, cache } => {
            let n = ui::counted(n_images, "image");
            ui.note(format!("decoding {n} into {}; the next run reads them from there", cache.display()));
            progress = Some(ui.progress("decoding", 0, n_images as u64));
        }
        LoadEvent::Decoded { n_images } => {
            if let Some(progress) = &mut progress {
                progress.set(n_images as u64, "images");
            }
        }
        LoadEvent::NotCached { folder, reason } => ui.note(format!(
            "cannot keep the decoded images in {} ({reason}), so every run decodes them again; docs/datasets.md says how \
             to choose another folder",
            folder.display()
        )),
        _ => {}
    }
    };
    let dataset = c2r_data::load_with(name, folder, &mut on_event);
    if let Some(progress) = progress {
        progress.finish();
    }
    let dataset = dataset.map_err(coded)?;
    for note in &dataset.notes {
        ui.note(format!("note: {note}"));
    }
    Ok(dataset)
}

/// An error of a dataset with the exit code it asks for, and where a missing one is looked for or comes from.
pub(crate) fn coded(error: DataError) -> anyhow::Error {
    let advice = match error {
        DataError::UnknownDataset { .. } | DataError::Size { .. } => return exit::coded(exit::USAGE, error),
        DataError::NoDataFolder { .. } => "name the folder with `--data DIR` or C2R_DATA",
        DataError::Missing { .. } => "unpack it there, or name another folder with `--data DIR` or C2R_DATA",
        _ => return exit::coded(exit::DATA, error),
    };
    exit::coded(exit::DATA, anyhow::anyhow!("{error}; {advice}, or run `cargo xtask download`"))
}

/// The set that `c2r distill` leaves in its run folder.
pub(crate) const SET_FILE: &str = c2r_distill::folder::SET;

/// The file or PNG folder of the synthetic set that was named: inside, where that is the run folder of `c2r distill`.
pub(crate) fn set_file(named: &Path) -> anyhow::Result<PathBuf> {
    if !named.is_dir() || SyntheticSet::is_png_folder(named) {
        return Ok(named.to_owned());
    }
    let inside = named.join(SET_FILE);
    if inside.is_file() {
        return Ok(inside);
    }
    let (folder, is_run) = (named.display(), named.join("run.json").is_file());
    let what = if is_run {
        "a run folder without synthetic.safetensors: its distillation is not finished, or it is the folder of another command"
    } else {
        "neither a run folder (synthetic.safetensors) nor a PNG folder of c2r (set.json); `c2r import` converts a folder CLASS/*.png"
    };
    exit::fail(exit::DATA, format!("{folder} is {what}; name the file of a synthetic set"))
}

/// Where tables look for the measurement of a network.
pub(crate) const REPORT_FILE: &str = "attack.json";

/// The record of the attack that writes [`REPORT_FILE`], which is there first.
pub(crate) const REPORT_RECORD: &str = "attack.run.json";

/// The network that `c2r train` leaves in its run folder.
pub(crate) const NETWORK_FILE: &str = "model.safetensors";

/// The file of the network that was named: inside, where that is the run folder of `c2r train`.
pub(crate) fn network_file(named: &Path) -> anyhow::Result<PathBuf> {
    if !named.is_dir() {
        return Ok(named.to_owned());
    }
    let inside = named.join(NETWORK_FILE);
    if inside.is_file() {
        return Ok(inside);
    }
    let folder = named.display();
    exit::fail(
        exit::USAGE,
        format!(
            "{folder} has no {NETWORK_FILE}; name the file of a network, or the run folder of a finished `c2r train`"
        ),
    )
}
