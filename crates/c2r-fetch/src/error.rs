use std::{io, path::PathBuf};

use c2r_archive::ArchiveError;
use c2r_files::FileError;

use crate::{Digests, Expected, Source, expected::other_length};

/// Why something was not downloaded or not unpacked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FetchError {
    /// The caller asked to stop.
    #[error("interrupted")]
    Interrupted,
    /// There is no space for the rest of a file.
    #[error("cannot write {}: the disk is full; free some space and run the same command again", path.display())]
    DiskFull {
        /// The file.
        path: PathBuf,
    },
    /// There is less space than a file needs.
    #[error("{name} needs {needed} bytes, and {free} are free in {}", folder.display())]
    NoSpace {
        /// The archive.
        name: String,
        /// Bytes that are missing of it.
        needed: u64,
        /// Bytes that are free.
        free: u64,
        /// Where.
        folder: PathBuf,
    },
    /// A file of this machine cannot be read or written.
    #[error(transparent)]
    File(FileError),
    /// The server does not give the file.
    #[error("{url}: {reason}")]
    Server {
        /// The address.
        url: String,
        /// What went wrong the last time.
        reason: String,
        /// Of which kind that is.
        fault: Fault,
    },
    /// The server's file has another length than the registry promises. Nothing was fetched.
    #[error("{url}: the server offers {offered} bytes{content}, but data/datasets.toml lists {expected}: {}",
            other_length(*offered, *expected))]
    Length {
        /// The address.
        url: String,
        /// Length of the server's file.
        offered: u64,
        /// Its content type in brackets, or nothing.
        content: String,
        /// The promised length.
        expected: u64,
    },
    /// A download ended early, and what there is of it is kept.
    #[error("{cause}\n  {bytes} bytes are kept in {}; the same command resumes there", part.display())]
    Unfinished {
        /// The unfinished file.
        part: PathBuf,
        /// Its length.
        bytes: u64,
        /// The promised length, where there is one.
        of: Option<u64>,
        /// Why it ended.
        cause: Box<FetchError>,
    },
    /// The file is not what was promised.
    #[error("{name} from {from} is not the file that data/datasets.toml lists")]
    Rejected {
        /// The archive.
        name: String,
        /// Where it came from.
        from: Source,
        /// What was promised.
        expected: Box<Expected>,
        /// What came.
        found: Box<Digests>,
        /// Where it is kept.
        kept: PathBuf,
    },
    /// The archive is damaged, or not one that may be unpacked.
    #[error("{} was not unpacked", path.display())]
    NotUnpacked {
        /// The archive.
        path: PathBuf,
        /// Why.
        source: ArchiveError,
    },
    /// The record of a folder, or its list of files, cannot be used.
    #[error("{} is damaged: {reason}", path.display())]
    Record {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
}

/// What is wrong with a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Several tries in a row brought almost nothing.
    Failing,
    /// It asks to wait for longer than [`crate::Patience::longest_pause`].
    Busy,
    /// It answers that it will not give the file.
    Refusing,
    /// Its answer cannot become the file.
    Confused,
}

impl From<FileError> for FetchError {
    fn from(error: FileError) -> Self {
        match error {
            FileError::Io { path, source, .. }
                if matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) =>
            {
                Self::DiskFull { path }
            }
            other => Self::File(other),
        }
    }
}
