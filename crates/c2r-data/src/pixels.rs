//! Bytes in memory or in a file.
#![expect(
    unsafe_code,
    reason = "memmap2's only constructor is unsafe; the one call is below, with what makes it sound"
)]

use std::{fs::File, io, ops::Deref, ops::Range, sync::Arc};

use memmap2::Mmap;
use ndarray::ArcArray1;

/// The pixels of a split. Clones share them.
#[derive(Clone)]
pub(crate) enum Pixels {
    /// On the heap.
    Memory(ArcArray1<u8>),
    /// A part of a mapped file: the kernel reads it when it is looked at, and may drop it again when memory is short.
    Mapped(Arc<Mmap>, Range<usize>),
}

impl Deref for Pixels {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Memory(bytes) => bytes.as_slice().expect("made contiguous"),
            Self::Mapped(map, range) => &map[range.clone()],
        }
    }
}

/// Maps a whole file of the cache.
///
/// The caller must have got `file` from the cache, whose files are written under another name, made read-only and
/// renamed: what replaces one is another file, and the one that is mapped lives as long as the map.
///
/// # Errors
/// What the system says.
pub(crate) fn map(file: &File) -> io::Result<Mmap> {
    // SAFETY: the bytes must not change while they are borrowed. No program of ours ever writes to a file of the cache
    // after it got its name (see above). If it is shortened by hand, the system kills this process
    // (SIGBUS), who writes into it gets other pixels; neither breaks memory safety of a `[u8]` that is only copied from.
    unsafe { Mmap::map(file) }
}
