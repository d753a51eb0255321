use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
};

use c2r_files::{FileError, write_atomically};
use serde::Serialize;
use serde_json::Value;

/// JSON lines, one per logged step, each with the key `iteration`.
#[derive(Debug)]
pub struct Log {
    file: File,
    path: PathBuf,
}

impl Log {
    /// Opens `path` to append to it, without the lines of iterations after `iteration`: those will be done again. A line that
    /// is damaged goes, too.
    ///
    /// # Errors
    /// [`FileError::Io`].
    pub fn open(path: &Path, iteration: u64) -> Result<Self, FileError> {
        let is_done = |line: &&[u8]| {
            let line: Value = serde_json::from_slice(line).unwrap_or_default();
            line["iteration"].as_u64().is_some_and(|at| at <= iteration)
        };
        let old = match fs::read(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            read => read.map_err(FileError::io("read", path))?,
        };
        let kept: Vec<&[u8]> =
            old.split(|&byte| byte == b'\n').filter(is_done).flat_map(|line| [line, b"\n"]).collect();
        write_atomically(path, &kept.concat())?;
        let file = File::options().append(true).open(path).map_err(FileError::io("write", path))?;
        Ok(Self { file, path: path.to_owned() })
    }

    /// Appends a line.
    ///
    /// # Errors
    /// [`FileError::Io`].
    ///
    /// # Panics
    /// If `value` cannot be written as JSON.
    pub fn line(&mut self, value: &impl Serialize) -> Result<(), FileError> {
        let line = serde_json::to_string(value).expect("our types serialize to JSON") + "\n";
        self.file.write_all(line.as_bytes()).map_err(FileError::io("write", &self.path))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_resumed_log_has_no_line_twice() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log.jsonl");
        let mut log = Log::open(&path, 0).unwrap();
        (1..=3).for_each(|iteration| log.line(&json!({"iteration": iteration})).unwrap());
        // A kill in the middle of a line.
        log.file.write_all(b"{\"itera").unwrap();
        let mut log = Log::open(&path, 2).unwrap();
        log.line(&json!({"iteration": 3, "again": true})).unwrap();
        let lines = "{\"iteration\":1}\n{\"iteration\":2}\n{\"iteration\":3,\"again\":true}\n";
        assert_eq!(fs::read_to_string(&path).unwrap(), lines);
    }

    #[test]
    fn a_bad_byte_costs_its_line_only_and_a_log_that_cannot_be_read_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log.jsonl");
        fs::write(&path, b"{\"iteration\":1}\n{\"iteration\":2,\"loss\":\"\xff\"}\n{\"iteration\":3}\n").unwrap();
        Log::open(&path, 3).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "{\"iteration\":1}\n{\"iteration\":3}\n");
        // A folder stands for any error of the system.
        let error = Log::open(folder.path(), 3).unwrap_err();
        assert!(matches!(&error, FileError::Io { action: "read", path, .. } if path == folder.path()), "{error}");
    }
}
