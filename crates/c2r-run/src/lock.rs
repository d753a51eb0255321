use std::{fs::File, io, path::Path, process::Stdio};

use c2r_files::{FileError, create_folder};
use fs4::fs_std::FileExt;

/// A file that one process at a time holds. The system releases it however the process ends, `kill -9` included.
#[derive(Debug)]
pub struct Lock {
    file: File,
}

impl Lock {
    /// Locks `path`, which is created with its folder where it is missing; `None` if another process holds it.
    ///
    /// # Errors
    /// [`FileError::Io`] if the file cannot be created or the file system has no locks.
    pub fn acquire(path: &Path) -> Result<Option<Self>, FileError> {
        if let Some(folder) = path.parent() {
            create_folder(folder)?;
        }
        // Not emptied: it may be somebody else's file.
        let options = File::options().write(true).create(true).truncate(false).open(path);
        let file = options.map_err(FileError::io("create", path))?;
        let held = file.try_lock_exclusive().map_err(FileError::io("lock", path))?;
        Ok(held.then_some(Self { file }))
    }

    /// Standard input for a child process, which then holds the lock, too, until it ends.
    ///
    /// # Errors
    /// If the system has no more files to give.
    pub fn share(&self) -> io::Result<Stdio> {
        self.file.try_clone().map(Stdio::from)
    }
}
