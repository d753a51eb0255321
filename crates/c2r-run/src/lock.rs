use std::{fs::File, io, path::Path, process::Stdio};

use c2r_files::{FileError, create_folder};
use fs4::fs_std::FileExt;

use crate::terminal;

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

    /// As [`Lock::acquire`], but where the file system has no locks, it prints a note and locks nothing. For work that must go on
    /// there, and of which somebody else sees to it that only one process does it.
    ///
    /// # Errors
    /// [`FileError::Io`] if the file cannot be created or opened.
    pub fn acquire_where_possible(path: &Path) -> Result<Option<Self>, FileError> {
        match Self::acquire(path) {
            Err(error) if has_no_locks(&error) => {
                let folder = path.parent().unwrap_or(path).display();
                terminal::note(format!(
                    "note: {folder}: this file system has no locks, so nothing keeps a second process out; start only one there"
                ));
                let file = File::options().write(true).open(path).map_err(FileError::io("open", path))?;
                Ok(Some(Self { file }))
            }
            result => result,
        }
    }

    /// Standard input for a child process, which then holds the lock, too, until it ends.
    ///
    /// # Errors
    /// If the system has no more files to give.
    pub fn share(&self) -> io::Result<Stdio> {
        self.file.try_clone().map(Stdio::from)
    }
}

/// Whether a lock failed because the file system has none: NFS without its lock service, and some of those in user space.
fn has_no_locks(error: &FileError) -> bool {
    let FileError::Io { action: "lock", source, .. } = error else { return false };
    #[cfg(unix)]
    if source.raw_os_error() == Some(nix::libc::ENOLCK) {
        return true;
    }
    // EOPNOTSUPP and ENOSYS.
    source.kind() == io::ErrorKind::Unsupported
}

#[cfg(all(test, unix))]
mod tests {
    use nix::libc;

    use super::*;

    #[test]
    fn a_file_system_without_locks_is_told_from_other_errors() {
        let failed =
            |action, code| has_no_locks(&FileError::io(action, Path::new("x"))(io::Error::from_raw_os_error(code)));
        assert!([libc::ENOLCK, libc::EOPNOTSUPP, libc::ENOSYS].iter().all(|&code| failed("lock", code)));
        assert!(!failed("lock", libc::EIO) && !failed("create", libc::ENOLCK));
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lock");
        let _held = Lock::acquire_where_possible(&path).unwrap().unwrap();
        assert!(Lock::acquire_where_possible(&path).unwrap().is_none());
    }
}
