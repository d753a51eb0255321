//! Files that are written whole or not at all, and errors that name them.
//!
//! **What it is:** [`write_atomically`] and [`AtomicFile`], JSON files, texts, SHA-256 of bytes and files, and [`FileError`], the
//! error that every crate of the workspace gives when a file cannot be read or written.
//!
//! **What it is not:** it reads and writes no format but JSON (tensors in files: `c2r_base::artifact`), and it links no libtorch.
//!
//! **Where to start:** [`write_json`] and [`read_json`].
//!
//! ```
//! let folder = tempfile::tempdir().unwrap();
//! let path = folder.path().join("deep/er/numbers.json");
//! c2r_files::write_json(&path, &[1, 2, 3]).unwrap();
//! assert_eq!(c2r_files::read_json::<Vec<u8>>(&path).unwrap(), [1, 2, 3]);
//! ```

// Used only for their features; see the workspace's Cargo.toml.
use {digest as _, getrandom as _, serde_core as _};

mod error;
mod hash;
mod json;
mod open;
mod text;
mod unfinished;
mod utf8;
mod write;

pub use error::FileError;
pub use hash::{sha256_hex, sha256_of_file};
pub use json::{read_json, write_json};
pub use open::{is_empty_folder, open, read};
pub use text::{path_to_text, shell_line, text_to_path};
pub use unfinished::each_unfinished;
pub use utf8::read_text;
pub use write::{
    AtomicFile, create_folder, follow_links, remove_abandoned_parts, remove_if_present, remove_parts, remove_parts_of,
    write_atomically,
};
