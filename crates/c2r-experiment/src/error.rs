use std::path::{Path, PathBuf};

/// Why an experiment file cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ExperimentError {
    /// It cannot be read.
    #[error("cannot read {}", path.display())]
    Io {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
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
