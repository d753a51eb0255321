//! Archives from the network, unpacked as if somebody had built them to attack.
//!
//! **What it is:** [`unpack`] writes the files of a tar.gz or zip archive into a folder that appears whole or not at
//! all; [`walk`] is the part that parses, for whoever wants the entries and no files (fuzzing).
//!
//! **What it is not:** it downloads nothing, checks no hash of the archive, and restores neither owners, permissions,
//! times nor links.
//!
//! **Where to start:** [`unpack`].
//!
//! Refused, with the entry's name, before anything can be seen under the final name: absolute paths and `..`, entries
//! outside the archive's one top folder, links, devices, pipes and sparse files, two entries of one name, and more
//! entries, bytes or compression than [`Limits`] allow. Memory does not grow with the archive: nothing is read whole
//! but the names of files ([`Unpacked::files`]).

mod error;
mod name;
mod unpack;
mod walk;

pub use error::ArchiveError;
pub use name::entry_path;
pub use unpack::{Unpacked, UnpackedFile, WORKSHOP, unpack};
pub use walk::{Entry, Format, Limits, walk};
