//! Options that say which data to use.

use std::{
    num::NonZeroUsize,
    path::{Path, PathBuf},
};

use c2r_data::{DataError, Dataset, DatasetSpec, LoadEvent, SyntheticSet};
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
    /// What is known of the dataset without reading it.
    pub(crate) fn spec(&self) -> anyhow::Result<DatasetSpec> {
        if self.dataset.starts_with("folder:") {
            return Ok(c2r_data::load(&self.dataset, self.data.as_deref()).or_exit(exit::DATA)?.spec);
        }
        c2r_data::spec(&self.dataset).or_exit(exit::USAGE)
    }

    /// Reads the dataset; notes what is odd about it.
    pub(crate) fn load(&self, ui: &Ui) -> anyhow::Result<Dataset> {
        load(&self.dataset, self.data.as_deref(), ui)
    }
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
pub(crate) const SET_FILE: &str = "synthetic.safetensors";

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
        "neither a run folder (synthetic.safetensors) nor a PNG folder of c2r (set.json)"
    };
    exit::fail(exit::DATA, format!("{folder} is {what}; name the file of a synthetic set"))
}
