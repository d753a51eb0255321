//! What a target is, and how bytes are put before it.

use std::{
    error::Error,
    path::{Path, PathBuf},
};

/// One reader.
#[derive(Debug)]
pub struct Target {
    /// Folder of the corpus, and what the command line says.
    pub name: &'static str,
    /// Writes the files beside the one that changes, once.
    pub(crate) prepare: fn(&Path),
    /// Reads the bytes as a file in the prepared folder.
    pub(crate) run: fn(&Path, &[u8]),
    /// Valid files to start from, by name.
    pub(crate) seeds: fn() -> Vec<(&'static str, Vec<u8>)>,
}

impl Target {
    /// Valid files to start from, by name, as this version writes them.
    pub fn seeds(&self) -> Vec<(&'static str, Vec<u8>)> {
        (self.seeds)()
    }

    /// Where its committed files lie.
    pub fn corpus(&self) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(self.name)
    }
}

/// A target with its folder.
#[derive(Debug)]
pub struct Harness {
    target: &'static Target,
    folder: tempfile::TempDir,
}

impl Harness {
    /// Prepares a folder, in memory where the system offers that.
    ///
    /// # Panics
    /// If the folder cannot be written.
    pub fn new(target: &'static Target) -> Self {
        let memory = Path::new("/dev/shm");
        let folder = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
        let folder = folder.expect("a temporary folder");
        // Images this small are slower on several threads.
        tch::set_num_threads(1);
        (target.prepare)(folder.path());
        Self { target, folder }
    }

    /// Reads `bytes`.
    ///
    /// # Panics
    /// If a reader does, or breaks what it promises.
    pub fn run(&self, bytes: &[u8]) {
        (self.target.run)(self.folder.path(), bytes);
    }
}

/// An error must name the file it is about; what it was built from must be reachable.
pub(crate) fn check<T, E: Error + 'static>(result: Result<T, E>, file: &str) -> Option<T> {
    match result {
        Ok(value) => Some(value),
        Err(error) => {
            let mut text = error.to_string();
            let mut cause = error.source();
            while let Some(error) = cause {
                text += &format!(": {error}");
                cause = error.source();
            }
            assert!(text.contains(file), "the error does not name {file}: {text}");
            None
        }
    }
}
