//! Archives from elsewhere, read as if somebody had built them to attack.
//!
//! **What it is:** [`unpack`] writes the files of a tar.gz or zip archive into a folder that appears whole or not at all;
//! [`walk`] is the part of it that parses, for callers that want the entries and no files (fuzzing). [`ZipReader`] reads
//! members of a zip into memory by name (`.npz`, `torch.save`).
//!
//! **What it is not:** it downloads nothing, checks no hash of the archive, and restores neither owners, permissions,
//! times nor links.
//!
//! **Where to start:** [`unpack`] for a dataset, [`ZipReader::open`] for a file of arrays.
//!
//! Refused, with the entry's name, before anything can be seen under the final name: absolute paths and `..`, entries
//! outside the archive's one top folder, links, devices, pipes and sparse files, two entries of one name, and more
//! entries, bytes or compression than [`Limits`] allow. Memory does not grow with what an archive claims: unpacking keeps
//! nothing but the names of files ([`Unpacked::files`]).

// Used only for their features; see the workspace's Cargo.toml.
use {crc32fast as _, simd_adler32 as _};

mod error;
mod format;
mod limits;
mod name;
mod tar_gz;
mod unpack;
mod walk;
mod zip;

pub use error::ArchiveError;
pub use format::{ArchiveFormat, Entry};
pub use limits::Limits;
pub use name::entry_path;
pub use unpack::{Unpacked, UnpackedFile, WORKSHOP, unpack};
pub use walk::walk;
pub use zip::ZipReader;
