//! Every reader of c2r as a function of bytes, for fuzzing and for tests on broken files.
//!
//! **What it is:** [`TARGETS`]: a [`Target`] puts bytes where a file would be, has c2r read it, and checks what must hold
//! for any bytes: no panic, and an error that names the file. `corpus/NAME/` holds valid and broken files to start from.
//!
//! **What it is not:** a test of what the readers return for good files; their crates have those.
//!
//! **Where to start:** [`Harness`]; `cargo xtask fuzz --help` for a run.

mod seeds;
mod targets;

use std::{
    alloc::System,
    error::Error,
    path::{Path, PathBuf},
};

use cap::Cap;

pub use targets::TARGETS;

/// The most memory that Rust code may hold at once here, bytes: a reader that believes a size in a small file runs into
/// it. Far above what the committed files need, far below what they can be made to declare.
pub const MOST_MEMORY: usize = 512 << 20;

#[global_allocator]
static ALLOCATOR: Cap<System> = Cap::new(System, MOST_MEMORY);

/// One reader.
#[derive(Debug)]
pub struct Target {
    /// Folder of the corpus, and what the command line says.
    pub name: &'static str,
    /// Writes the files beside the one that changes, once.
    prepare: fn(&Path),
    /// Reads the bytes as a file in the prepared folder.
    run: fn(&Path, &[u8]),
    /// Valid files to start from, by name.
    seeds: fn() -> Vec<(&'static str, Vec<u8>)>,
}

impl Target {
    /// The target called `name`.
    pub fn named(name: &str) -> Option<&'static Self> {
        TARGETS.iter().find(|target| target.name == name)
    }

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
fn check<T, E: Error + 'static>(result: Result<T, E>, file: &str) -> Option<T> {
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
