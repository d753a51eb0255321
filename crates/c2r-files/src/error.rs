use std::{
    io,
    path::{Path, PathBuf},
};

/// Why a file could not be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FileError {
    /// The operating system refused.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was being done: `read`, `write`, ...
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// A pipe or a device.
    #[error(
        "{} is a pipe or a device, and c2r reads and writes regular files only; write what comes out of it to a file first",
        .0.display()
    )]
    NotAFile(
        /// Its path.
        PathBuf,
    ),
    /// The bytes are not what the format promises.
    #[error("{} is not a valid {format} file: {reason}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// Name of the format.
        format: &'static str,
        /// What is wrong.
        reason: String,
    },
}

impl FileError {
    /// Makes a [`FileError::Io`] of the system's error: `fs::read(path).map_err(FileError::io("read", path))`.
    pub fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self + use<> {
        let path = path.to_owned();
        move |source| Self::Io { action, path, source }
    }

    /// A [`FileError::Format`] for `path`.
    pub fn format(path: &Path, format: &'static str, reason: impl Into<String>) -> Self {
        Self::Format { path: path.to_owned(), format, reason: reason.into() }
    }
}
