//! Options that say which data to use.

use std::{num::NonZeroUsize, path::PathBuf};

use c2r_data::{DataError, Dataset, DatasetSpec, LoadEvent};

use crate::{
    exit::{self, OrExit},
    ui::Ui,
};

/// Which dataset, and where.
#[derive(clap::Args, Clone)]
pub(crate) struct DatasetArgs {
    /// digits (embedded), cifar10, cifar100, tiny-imagenet, imagenette, ... or folder:PATH; imagenette@64 in another size
    #[arg(long, value_name = "NAME")]
    pub(crate) dataset: String,

    /// Folder that holds the downloaded datasets
    #[arg(long, value_name = "DIR", env = "C2R_DATA")]
    pub(crate) data: Option<PathBuf>,

    /// Use only the first so many training images of each class (recorded in every result)
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
pub(crate) fn load(name: &str, folder: Option<&std::path::Path>, ui: &Ui) -> anyhow::Result<Dataset> {
    let mut progress = None;
    let mut on_event = |event: LoadEvent| match event {
        LoadEvent::CacheDropped { path, reason } => {
            ui.note(format!("{}: {reason}; the images are decoded again", path.display()));
        }
        LoadEvent::Decoding { n_images, cache } => {
            ui.note(format!("decoding {n_images} images into {} (once)", cache.display()));
            progress = Some(ui.progress("decoding", n_images as u64));
        }
        LoadEvent::Decoded { n_images } => {
            if let Some(progress) = &mut progress {
                progress.set(n_images as u64, "images");
            }
        }
        LoadEvent::NotCached { folder, reason } => ui.note(format!(
            "the decoded images cannot be kept in {} ({reason}): they are decoded into memory, each time; \
             docs/datasets.md says how to give them a place",
            folder.display()
        )),
        _ => {}
    };
    let dataset = c2r_data::load_with(name, folder, &mut on_event);
    if let Some(progress) = progress {
        progress.finish();
    }
    let dataset = dataset.map_err(|error| {
        let code = if matches!(error, DataError::UnknownDataset { .. } | DataError::Size { .. }) {
            exit::USAGE
        } else {
            exit::DATA
        };
        exit::coded(code, error)
    })?;
    for note in &dataset.notes {
        ui.note(format!("note: {note}"));
    }
    Ok(dataset)
}
