use std::{
    fs::{self, File},
    io::{self, Seek, Write},
    path::{Path, PathBuf},
};

use crate::{FileError, open::refuse_pipes};

/// How temporary files are named.
const PART_PREFIX: &str = ".c2r-";
const PART_SUFFIX: &str = ".part";

/// A file that appears under its name only when it is complete: until [`AtomicFile::finish`] it is a temporary file in the
/// same folder, which is deleted if it is dropped before.
#[derive(Debug)]
pub struct AtomicFile {
    path: PathBuf,
    file: tempfile::NamedTempFile,
}

impl AtomicFile {
    /// Starts a file that will be called `path`. Creates missing folders.
    ///
    /// # Errors
    /// [`FileError::Io`], and [`FileError::NotAFile`] where `path` is a pipe or a device, which would be replaced.
    pub fn create(path: &Path) -> Result<Self, FileError> {
        refuse_pipes(path)?;
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        create_folder(folder)?;
        let file = tempfile::Builder::new()
            .prefix(PART_PREFIX)
            .suffix(PART_SUFFIX)
            .tempfile_in(folder)
            .map_err(FileError::io("write", path))?;
        Ok(Self { path: path.to_owned(), file })
    }

    /// Syncs the file to the disk and renames it into place: a reader sees the old file or the new one, never a part.
    ///
    /// # Errors
    /// [`FileError::Io`]; the old file is then still there and the temporary one is deleted.
    pub fn finish(self) -> Result<(), FileError> {
        self.finish_with_mode(0o644)
    }

    /// [`AtomicFile::finish`] with Unix permissions other than the usual `rw-r--r--`, such as `0o444` for a file that
    /// nothing may change. Ignored where there are no such permissions.
    ///
    /// # Errors
    /// As [`AtomicFile::finish`].
    pub fn finish_with_mode(self, mode: u32) -> Result<(), FileError> {
        let Self { path, file } = self;
        file.as_file()
            .sync_all()
            .and_then(|()| set_mode(file.as_file(), mode))
            .and_then(|()| file.persist(&path).map_err(|error| error.error))
            .map_err(FileError::io("write", &path))?;
        Ok(())
    }
}

impl Write for AtomicFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Seek for AtomicFile {
    fn seek(&mut self, position: io::SeekFrom) -> io::Result<u64> {
        self.file.seek(position)
    }
}

/// Temporary files are private to their owner; results are meant to be shared.
fn set_mode(file: &File, mode: u32) -> io::Result<()> {
    #[cfg(unix)]
    file.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(mode))?;
    let _ = (file, mode);
    Ok(())
}

/// Writes `bytes` to `path` through an [`AtomicFile`]. Creates missing folders.
///
/// # Errors
/// [`FileError::Io`]; the old file is then still there.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> Result<(), FileError> {
    let mut file = AtomicFile::create(path)?;
    file.write_all(bytes).map_err(FileError::io("write", path))?;
    file.finish()
}

/// Deletes the temporary files that killed processes have left in `folder`; does nothing if there is no such folder.
/// Only call it where no other process can be writing.
///
/// # Errors
/// [`FileError::Io`].
pub fn remove_parts(folder: &Path) -> Result<(), FileError> {
    let Ok(entries) = fs::read_dir(folder) else { return Ok(()) };
    for path in entries.filter_map(|entry| Some(entry.ok()?.path())) {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.starts_with(PART_PREFIX) && name.ends_with(PART_SUFFIX) {
            remove_if_present(&path)?;
        }
    }
    Ok(())
}

/// Deletes a file that may be missing.
///
/// # Errors
/// [`FileError::Io`] if it is there and cannot be deleted.
pub fn remove_if_present(path: &Path) -> Result<(), FileError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(FileError::io("delete", path)(error)),
        _ => Ok(()),
    }
}

/// Creates a folder and those above it, where they are missing.
///
/// # Errors
/// [`FileError::Io`].
pub fn create_folder(path: &Path) -> Result<(), FileError> {
    fs::create_dir_all(path).map_err(FileError::io("create folder", path))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::read;

    fn names(folder: &Path) -> Vec<String> {
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    #[test]
    fn a_file_is_there_whole_or_not_at_all() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deep/er/file");
        let folder = path.parent().unwrap();
        write_atomically(&path, b"old").unwrap();
        let mut unfinished = AtomicFile::create(&path).unwrap();
        unfinished.write_all(b"new").unwrap();
        assert_eq!(read(&path).unwrap(), b"old");
        drop(unfinished);
        assert_eq!(names(folder), ["file"], "no temporary file is left");
        let mut finished = AtomicFile::create(&path).unwrap();
        finished.write_all(b"new").unwrap();
        finished.finish_with_mode(0o444).unwrap();
        assert_eq!(read(&path).unwrap(), b"new");
        assert!(fs::metadata(&path).unwrap().permissions().readonly());
    }

    #[test]
    fn what_a_kill_left_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        write_atomically(&folder.path().join("file"), b"").unwrap();
        fs::write(folder.path().join(".c2r-x1y2.part"), b"half").unwrap();
        remove_parts(folder.path()).unwrap();
        assert_eq!(names(folder.path()), ["file"]);
        remove_parts(&folder.path().join("missing")).unwrap();
        remove_if_present(&folder.path().join("missing")).unwrap();
        let error = remove_if_present(folder.path()).unwrap_err();
        assert!(matches!(&error, FileError::Io { action: "delete", path, .. } if path == folder.path()), "{error}");
    }
}
