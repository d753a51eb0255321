use std::{
    fs,
    io::{self, Seek, Write},
    path::{Path, PathBuf},
    time::Duration,
};

use crate::{FileError, open::refuse_pipes, unfinished::Unfinished};

/// How temporary files are named: the prefix, the beginning of the file's name, a hyphen, random letters and digits, the suffix.
const PART_PREFIX: &str = ".c2r-";
const PART_SUFFIX: &str = ".part";
/// Characters of a file's name in that of its temporary file: at most 200 bytes, so that both names fit where the first does.
const KEPT_OF_NAME: usize = 50;

/// As many links as Linux follows.
const MOST_LINKS: usize = 40;

/// A file that appears under its name only when it is complete: until [`AtomicFile::finish`] it is a temporary file in the
/// same folder, which is deleted if it is dropped before.
#[derive(Debug)]
pub struct AtomicFile {
    path: PathBuf,
    /// Where `path` leads if it is a link.
    target: PathBuf,
    file: tempfile::NamedTempFile,
    part: Unfinished,
}

impl AtomicFile {
    /// Starts a file that will be called `path`; if that is a link, the file that it leads to is written. Creates missing
    /// folders. Who may read and write the file is as for any new file of this process (umask).
    ///
    /// # Errors
    /// [`FileError::Io`], and [`FileError::NotAFile`] where `path` is a pipe or a device, which would be replaced.
    pub fn create(path: &Path) -> Result<Self, FileError> {
        refuse_pipes(path)?;
        let target = follow_links(path);
        let folder = folder_of(&target);
        create_folder(folder)?;
        let mut builder = tempfile::Builder::new();
        let prefix = part_prefix(&target);
        builder.prefix(&prefix).suffix(PART_SUFFIX);
        // By default only the owner may read a temporary file; the kernel applies the umask to these permissions.
        #[cfg(unix)]
        builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
        let file = builder.tempfile_in(folder).map_err(FileError::io("write", path))?;
        let part = Unfinished::new(file.path());
        Ok(Self { path: path.to_owned(), target, file, part })
    }

    /// Syncs the file to the disk and renames it into place: a reader sees the old file or the new one, never a part.
    ///
    /// # Errors
    /// [`FileError::Io`]; the old file is then still there and the temporary one is deleted.
    pub fn finish(self) -> Result<(), FileError> {
        let Self { path, target, file, part: _part } = self;
        file.as_file()
            .sync_all()
            .and_then(|()| file.persist(&target).map_err(|error| error.error))
            .map_err(FileError::io("write", &path))?;
        Ok(())
    }

    /// [`AtomicFile::finish`] for a file that nothing should change: nobody may write to it. Ignored by file systems without
    /// permissions.
    ///
    /// # Errors
    /// As [`AtomicFile::finish`].
    pub fn finish_read_only(self) -> Result<(), FileError> {
        let file = self.file.as_file();
        if let Ok(mut permissions) = file.metadata().map(|data| data.permissions()) {
            permissions.set_readonly(true);
            // It only guards against mistakes, and some file systems have no permissions.
            let _ = file.set_permissions(permissions);
        }
        self.finish()
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

/// The file that is written where `path` is: what a link leads to, even if that is not there yet, or else `path` itself.
pub fn follow_links(path: &Path) -> PathBuf {
    let mut at = path.to_owned();
    for _ in 0..MOST_LINKS {
        let Ok(target) = fs::read_link(&at) else { break };
        at = at.parent().unwrap_or(Path::new("")).join(target);
    }
    at
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
    parts(folder).try_for_each(|(path, _)| remove_if_present(&path))
}

/// [`remove_parts`] of one file, `path`, which no other process may be writing; others may be writing other files in its folder.
///
/// # Errors
/// [`FileError::Io`].
pub fn remove_parts_of(path: &Path) -> Result<(), FileError> {
    let target = follow_links(path);
    let prefix = part_prefix(&target);
    // After the prefix, the temporary file of a longer name has another hyphen.
    let is_random = |rest: &str| rest.bytes().all(|byte| byte.is_ascii_alphanumeric());
    let is_of =
        |name: &str| name.strip_prefix(&prefix).and_then(|rest| rest.strip_suffix(PART_SUFFIX)).is_some_and(is_random);
    parts(folder_of(&target)).filter(|(_, name)| is_of(name)).try_for_each(|(part, _)| remove_if_present(&part))
}

/// [`remove_parts`] where another process may be writing: only files that have not changed for `time`, by the clock of the file
/// system, which may be another machine's.
///
/// # Errors
/// [`FileError::Io`].
pub fn remove_abandoned_parts(folder: &Path, time: Duration) -> Result<(), FileError> {
    let Some(now) = tempfile::tempfile_in(folder).and_then(|probe| probe.metadata()?.modified()).ok() else {
        return Ok(());
    };
    let age = |path: &Path| now.duration_since(path.symlink_metadata().ok()?.modified().ok()?).ok();
    let old = parts(folder).filter(|(path, _)| age(path).is_some_and(|age| age >= time));
    old.into_iter().try_for_each(|(path, _)| remove_if_present(&path))
}

/// The temporary files in a folder, with their names. A folder that does not exist has none.
fn parts(folder: &Path) -> impl Iterator<Item = (PathBuf, String)> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .map(|entry| (entry.path(), entry.file_name().to_string_lossy().into_owned()))
        .filter(|(_, name)| name.starts_with(PART_PREFIX) && name.ends_with(PART_SUFFIX))
}

/// How the names of the temporary files of `target` begin.
fn part_prefix(target: &Path) -> String {
    let name: String = target.file_name().unwrap_or_default().to_string_lossy().chars().take(KEPT_OF_NAME).collect();
    format!("{PART_PREFIX}{name}-")
}

fn folder_of(file: &Path) -> &Path {
    file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Deletes a file that may be missing.
///
/// # Errors
/// [`FileError::Io`] if it is there and cannot be deleted.
pub fn remove_if_present(path: &Path) -> Result<(), FileError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        // A read-only file system gives the same error whether the file is there or not.
        Err(error) if error.kind() == io::ErrorKind::ReadOnlyFilesystem && path.symlink_metadata().is_err() => Ok(()),
        other => other.map_err(FileError::io("delete", path)),
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
        let of = |entry: io::Result<fs::DirEntry>| entry.unwrap().file_name().into_string().unwrap();
        let mut names: Vec<String> = fs::read_dir(folder).unwrap().map(of).collect();
        names.sort();
        names
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
        let temporary = unfinished.file.path().as_os_str().as_encoded_bytes().to_owned();
        let mut is_listed = false;
        crate::each_unfinished(|each| is_listed |= each.to_bytes() == temporary);
        assert!(is_listed);
        drop(unfinished);
        assert_eq!(names(folder), ["file"], "no temporary file is left");
        let mut finished = AtomicFile::create(&path).unwrap();
        finished.write_all(b"new").unwrap();
        finished.finish_read_only().unwrap();
        assert_eq!(read(&path).unwrap(), b"new");
        assert!(fs::metadata(&path).unwrap().permissions().readonly());
    }

    /// Also one that leads to a file that is not there yet, in another folder.
    #[cfg(unix)]
    #[test]
    fn a_link_stays_and_the_file_behind_it_is_written() {
        use std::os::unix::fs::symlink;
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        symlink("away/file", at("first")).unwrap();
        symlink(at("first"), at("second")).unwrap();
        for contents in [b"old", b"new"] {
            write_atomically(&at("second"), contents).unwrap();
            assert!(at("first").is_symlink() && at("second").is_symlink());
            assert_eq!(read(&at("away/file")).unwrap(), contents);
        }
        assert_eq!(names(&at("away")), ["file"]);
        symlink("round", at("round")).unwrap();
        write_atomically(&at("round"), b"x").unwrap();
        assert_eq!(read(&at("round")).unwrap(), b"x", "a link that leads nowhere is replaced");
    }

    #[test]
    fn what_a_kill_left_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        write_atomically(&folder.path().join("file"), b"").unwrap();
        fs::write(folder.path().join(".c2r-file-x1y2z3.part"), b"half").unwrap();
        let part = folder.path().join(".c2r-other-x1y2z3.part");
        let hour = Duration::from_secs(3600);
        fs::File::create(&part).unwrap().set_modified(std::time::SystemTime::now() - 2 * hour).unwrap();
        remove_abandoned_parts(folder.path(), hour).unwrap();
        assert_eq!(names(folder.path()), [".c2r-file-x1y2z3.part", "file"]);
        remove_parts(folder.path()).unwrap();
        assert_eq!(names(folder.path()), ["file"]);
        remove_abandoned_parts(&folder.path().join("missing"), hour).unwrap();
        remove_parts_of(&folder.path().join("missing/file")).unwrap();
        remove_parts(&folder.path().join("missing")).unwrap();
        remove_if_present(&folder.path().join("missing")).unwrap();
        let error = remove_if_present(folder.path()).unwrap_err();
        assert!(matches!(&error, FileError::Io { action: "delete", path, .. } if path == folder.path()), "{error}");
    }

    #[test]
    fn temporary_files_of_others_stay() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        std::os::unix::fs::symlink("set", at("link")).unwrap();
        let long = "n".repeat(255);
        for (open, removed) in [("set", "set"), ("set", "link"), (long.as_str(), long.as_str())] {
            let file = AtomicFile::create(&at(open)).unwrap();
            for other in ["se", "set-", "set-two", "run.json"] {
                remove_parts_of(&at(other)).unwrap();
            }
            assert_eq!(parts(folder.path()).count(), 1, "{open}");
            remove_parts_of(&at(removed)).unwrap();
            assert_eq!(parts(folder.path()).count(), 0, "{removed}");
            assert!(file.finish().is_err());
        }
        // One that begins alike.
        let other = AtomicFile::create(&at("set-two")).unwrap();
        remove_parts_of(&at("set")).unwrap();
        other.finish().unwrap();
        assert!(at("set-two").exists());
    }
}
