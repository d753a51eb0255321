use std::{
    fs::{self, File},
    io::Write,
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
    /// Opens `path` to append to it, without the lines of iterations after `iteration`: those will be done again.
    ///
    /// # Errors
    /// [`FileError::Io`].
    pub fn open(path: &Path, iteration: u64) -> Result<Self, FileError> {
        let is_done = |line: &&str| {
            let line: Value = serde_json::from_str(line).unwrap_or_default();
            line["iteration"].as_u64().is_some_and(|at| at <= iteration)
        };
        let kept: String = fs::read_to_string(path)
            .unwrap_or_default()
            .lines()
            .filter(is_done)
            .flat_map(|line| [line, "\n"])
            .collect();
        write_atomically(path, kept.as_bytes())?;
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
}
