use std::{
    io,
    path::{Path, PathBuf},
};

use c2r_archive::ArchiveError;
use c2r_base::artifact::ArtifactError;

/// Why data could not be read, made or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DataError {
    /// No such name.
    #[error("`{name}` is not a dataset; the datasets are {known}, and `folder:PATH` for a folder of images")]
    UnknownDataset {
        /// What was asked for.
        name: String,
        /// The names of the registry.
        known: String,
    },
    /// A dataset that cannot be read in this size.
    #[error("`{name}`: {reason}")]
    Size {
        /// What was asked for.
        name: String,
        /// Why not, and what to write.
        reason: String,
    },
    /// The dataset is in files, and no folder was given.
    #[error("no data folder was given: {dataset} is read from {layout} in such a folder (docs/datasets.md)")]
    NoDataFolder {
        /// Dataset name.
        dataset: String,
        /// The folders that are looked for, in words.
        layout: String,
    },
    /// The folder is not there.
    #[error(
        "{dataset} is not in {}: looked for {layout} (docs/datasets.md)",
        folder.display()
    )]
    Missing {
        /// Dataset name.
        dataset: String,
        /// Where it was looked for.
        folder: PathBuf,
        /// The folders and files that were looked for, in words.
        layout: String,
    },
    /// A folder that was named is not there.
    #[error("there is no folder {}{advice}", path.display())]
    NoFolder {
        /// What was named.
        path: PathBuf,
        /// What is there instead, and what to write.
        advice: String,
    },
    /// A folder of images holds something that would be left out.
    #[error(
        "{}: {found}; c2r reads files called *.png, *.jpg or *.jpeg that lie in the folder of a class: convert, move or \
         remove the others",
        path.display()
    )]
    LeftOut {
        /// Which folder.
        path: PathBuf,
        /// How many of what, with examples.
        found: String,
    },
    /// Folders whose names do not say which class they hold.
    #[error("{}: expected {reason}", path.display())]
    ClassNames {
        /// Where the folders are.
        path: PathBuf,
        /// What was expected and found, and what to do.
        reason: String,
    },
    /// The operating system said no.
    #[error("cannot read {}", path.display())]
    Io {
        /// Which file or folder.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A binary file's bytes are not what its format promises.
    #[error("{}: byte {offset} (record {record}): expected {expected}, found {found}", path.display())]
    Bytes {
        /// Which file.
        path: PathBuf,
        /// Where in the file, from 0.
        offset: u64,
        /// Which record, from 0.
        record: u64,
        /// What the format promises.
        expected: String,
        /// What is there.
        found: String,
    },
    /// A line of a text file is not what its format promises.
    #[error("{}: line {line}: expected {expected}, found {found}", path.display())]
    Line {
        /// Which file.
        path: PathBuf,
        /// Line number, from 1.
        line: usize,
        /// What the format promises.
        expected: String,
        /// What is there.
        found: String,
    },
    /// A folder does not hold what its layout promises.
    #[error("{}: expected {expected}", path.display())]
    Layout {
        /// Which folder.
        path: PathBuf,
        /// What should be there.
        expected: String,
    },
    /// An image file that cannot be decoded.
    #[error("{} is not a readable image: {reason}", path.display())]
    Image {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// An image of another size than the rest.
    #[error("{} is {}x{} (height x width); expected {}x{}", path.display(), found.0, found.1, expected.0, expected.1)]
    ImageSize {
        /// Which file.
        path: PathBuf,
        /// Height and width of this file.
        found: (u32, u32),
        /// Height and width of the dataset.
        expected: (u32, u32),
    },
    /// Bytes and labels that do not fit each other.
    #[error("cannot make a split: {0}")]
    Split(String),
    /// A mosaic that does not fit the images.
    #[error(
        "images of {height}x{width} (height x width) cannot be cut into {formation}x{formation} tiles: formation must be 1 or 2 and divide both sides"
    )]
    Formation {
        /// Height of the images.
        height: i64,
        /// Width of the images.
        width: i64,
        /// Tiles along each side.
        formation: i64,
    },
    /// A foreign set that is not what was declared.
    #[error("cannot import: {0}")]
    Import(String),
    /// A synthetic set that breaks its own rules.
    #[error("not a valid synthetic set: {0}")]
    Synthetic(String),
    /// A valid synthetic set that a folder of PNG images cannot hold.
    #[error("not written as PNG: {0}")]
    Png(String),
    /// A synthetic set whose pixels 8 bits cannot hold as they are.
    #[error(
        "not written as PNG: it would lose digits. {n_rounded} of {n} pixel values are not multiples of 1/255, which is all \
         that 8 bits hold; rounding changes them by up to {furthest:.1e}; npz and safetensors lose nothing"
    )]
    Rounds {
        /// Pixel values that would change.
        n_rounded: usize,
        /// All pixel values.
        n: usize,
        /// The largest change.
        furthest: f32,
    },
    /// A file with a header that could not be read or written.
    #[error(transparent)]
    Artifact(#[from] ArtifactError),
}

impl DataError {
    /// Checks that `path` is a folder.
    ///
    /// # Errors
    /// [`DataError::NoFolder`].
    pub(crate) fn check_folder(path: &Path) -> Result<(), Self> {
        if path.is_dir() {
            return Ok(());
        }
        let advice = if path.exists() {
            ": it is a file".to_owned()
        } else if path.starts_with("~") || path.to_string_lossy().starts_with('~') {
            ": only a shell expands `~`, and only at the start of a word; write the whole path, or $HOME instead of `~`"
                .to_owned()
        } else {
            match path.ancestors().skip(1).find(|folder| folder.is_dir()) {
                Some(folder) => format!("; {} exists", folder.display()),
                None => String::new(),
            }
        };
        Err(Self::NoFolder { path: path.to_owned(), advice })
    }

    pub(crate) fn io(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { path, source }
    }

    pub(crate) fn zip(path: &Path) -> impl Fn(ArchiveError) -> Self {
        let path = path.to_owned();
        move |error| match error {
            ArchiveError::File(error) => error.into(),
            other => ArtifactError::format(&path, "zip", other.to_string()).into(),
        }
    }
}
