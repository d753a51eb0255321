use std::{
    io::{self, Read},
    path::Path,
};

use crate::{ArchiveError, error::shown};

/// Which kind of archive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ArchiveFormat {
    /// A gzipped tar: `.tar.gz`, `.tgz`.
    TarGz,
    /// A zip with stored or deflated files.
    Zip,
}

impl ArchiveFormat {
    /// The format that a file name promises.
    pub fn of_name(name: &str) -> Option<Self> {
        let ends = |end: &str| name.ends_with(end);
        if ends(".tar.gz") || ends(".tgz") { Some(Self::TarGz) } else { ends(".zip").then_some(Self::Zip) }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::TarGz => "tar.gz",
            Self::Zip => "zip",
        }
    }

    pub(crate) fn damaged(self, reason: impl ToString) -> ArchiveError {
        ArchiveError::Damaged { format: self.name(), reason: shown(reason.to_string().as_bytes()) }
    }

    /// An error from reading an archive's contents: the limit's own error if it is one, else the archive is damaged.
    pub(crate) fn explain(self, error: io::Error) -> ArchiveError {
        match error.downcast::<ArchiveError>() {
            Ok(limit) => limit,
            Err(error) => self.damaged(error),
        }
    }
}

/// One entry that passed every check.
pub enum Entry<'a> {
    /// A folder, relative to where the archive is unpacked.
    Folder(&'a Path),
    /// A file and its contents. Its bytes are checked while they are read: an error means that the archive is damaged
    /// or breaks a limit.
    File(&'a Path, &'a mut dyn Read),
}
