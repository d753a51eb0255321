use std::{
    fs::{self, File},
    io::Read,
    path::Path,
};

use crate::FileError;

/// Opens a file to read it. A pipe or a device is refused: it would be read for its contents and again for its hash, and the
/// second time something else comes, or nothing ever.
///
/// # Errors
/// [`FileError::Io`] and [`FileError::NotAFile`].
pub fn open(path: &Path) -> Result<File, FileError> {
    refuse_pipes(path)?;
    File::open(path).map_err(FileError::io("read", path))
}

/// The bytes of a file.
///
/// # Errors
/// As [`open`].
pub fn read(path: &Path) -> Result<Vec<u8>, FileError> {
    let mut bytes = Vec::new();
    open(path)?.read_to_end(&mut bytes).map_err(FileError::io("read", path))?;
    Ok(bytes)
}

/// Whether `path` is a folder with nothing in it; one that cannot be read is not empty.
pub fn is_empty_folder(path: &Path) -> bool {
    fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_none())
}

/// Folders pass: the system refuses those itself.
pub(crate) fn refuse_pipes(path: &Path) -> Result<(), FileError> {
    let is_other = fs::metadata(path).is_ok_and(|data| !data.is_file() && !data.is_dir());
    if is_other { Err(FileError::NotAFile(path.to_owned())) } else { Ok(()) }
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;
    use crate::{sha256_of_file, write_atomically};

    #[test]
    fn pipes_and_devices_are_refused_and_not_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("socket");
        let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        for path in [Path::new("/dev/zero"), &socket] {
            let refused = |error: FileError| matches!(&error, FileError::NotAFile(named) if named == path);
            assert!(refused(read(path).unwrap_err()));
            assert!(refused(sha256_of_file(path).unwrap_err()));
            assert!(refused(write_atomically(path, b"x").unwrap_err()), "it would be replaced by a file");
        }
        assert!(matches!(read(folder.path()), Err(FileError::Io { .. })));
        assert!(!is_empty_folder(folder.path()) && !is_empty_folder(&socket) && !is_empty_folder(Path::new("missing")));
        assert!(matches!(read(&folder.path().join("missing")), Err(FileError::Io { .. })));
    }
}
