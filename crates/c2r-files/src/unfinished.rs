//! The temporary files of this process, so that a signal handler that ends it can delete them: no destructor will.
//!
//! A handler may neither allocate nor lock. So the paths are in a table of fixed size, and a reader sees by a path's version
//! whether it changed meanwhile.

use std::{
    ffi::CStr,
    path::Path,
    sync::atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering::SeqCst},
};

/// How many files the table holds at a time. More than these are not deleted.
const MOST_FILES: usize = 16;
/// The most bytes of a path, with the 0 at its end. A file with a longer path is not in the table.
const LONGEST_PATH: usize = 1024;

struct Slot {
    is_taken: AtomicBool,
    /// Odd while `path` is being written.
    version: AtomicU32,
    /// The bytes of the path, and a 0 at their end. Without a file, the first byte is 0.
    path: [AtomicU8; LONGEST_PATH],
}

static SLOTS: [Slot; MOST_FILES] = [const {
    Slot {
        is_taken: AtomicBool::new(false),
        version: AtomicU32::new(0),
        path: [const { AtomicU8::new(0) }; LONGEST_PATH],
    }
}; MOST_FILES];

impl Slot {
    fn set(&self, path: &[u8]) {
        self.version.fetch_add(1, SeqCst);
        self.path.iter().zip(path.iter().chain(&[0])).for_each(|(to, from)| to.store(*from, SeqCst));
        self.version.fetch_add(1, SeqCst);
    }
}

/// Keeps a temporary file in the table until it is dropped.
#[derive(Debug)]
pub(crate) struct Unfinished {
    slot: Option<usize>,
}

impl Unfinished {
    pub(crate) fn new(path: &Path) -> Self {
        let path = path.as_os_str().as_encoded_bytes();
        let is_free = |slot: &Slot| slot.is_taken.compare_exchange(false, true, SeqCst, SeqCst).is_ok();
        let fits = path.len() < LONGEST_PATH && !path.contains(&0);
        let slot = if fits { SLOTS.iter().position(is_free) } else { None };
        if let Some(slot) = slot {
            SLOTS[slot].set(path);
        }
        Self { slot }
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if let Some(slot) = self.slot {
            SLOTS[slot].set(b"");
            SLOTS[slot].is_taken.store(false, SeqCst);
        }
    }
}

/// Calls `each` with the path of every temporary file that this process is writing. Safe in a signal handler, if `each` is.
pub fn each_unfinished(mut each: impl FnMut(&CStr)) {
    for slot in &SLOTS {
        let version = slot.version.load(SeqCst);
        let mut path = [0; LONGEST_PATH];
        path.iter_mut().zip(&slot.path).for_each(|(to, from)| *to = from.load(SeqCst));
        let is_whole = version % 2 == 0 && slot.version.load(SeqCst) == version;
        if let (true, Ok(path)) = (is_whole, CStr::from_bytes_until_nul(&path))
            && !path.is_empty()
        {
            each(path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Files that other tests write at the same time may be there, too.
    fn is_listed(path: &str) -> bool {
        let mut listed = false;
        each_unfinished(|each| listed |= each.to_bytes() == path.as_bytes());
        listed
    }

    #[test]
    fn a_file_is_listed_until_it_is_done() {
        let long = "x".repeat(LONGEST_PATH);
        let (file, shorter, too_long) = (
            Unfinished::new(Path::new("/a/long/name")),
            Unfinished::new(Path::new("/b")),
            Unfinished::new(Path::new(&long)),
        );
        assert!(is_listed("/a/long/name") && is_listed("/b") && too_long.slot.is_none());
        let slot = file.slot;
        drop(file);
        assert!(!is_listed("/a/long/name") && is_listed("/b") && slot != shorter.slot);
        drop(shorter);
        assert!(!is_listed("/b"));
    }
}
