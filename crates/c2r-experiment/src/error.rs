use std::path::{Path, PathBuf};

use c2r_files::FileError;

/// Why an experiment file cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ExperimentError {
    /// It cannot be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// It is not an experiment, or contradicts itself.
    #[error("{}: {reason}", path.display())]
    Wrong {
        /// Which file.
        path: PathBuf,
        /// What is wrong, naming the key.
        reason: String,
    },
    /// A name that it does not define.
    #[error("experiment {experiment}: there is no {what} `{name}`; there are: {there}")]
    Unknown {
        /// Name of the experiment.
        experiment: String,
        /// `scale` or `method`.
        what: &'static str,
        /// What was asked for.
        name: String,
        /// What there is.
        there: String,
    },
}

impl ExperimentError {
    pub(crate) fn wrong(path: &Path, reason: impl Into<String>) -> Self {
        Self::Wrong { path: path.to_owned(), reason: reason.into() }
    }
}
