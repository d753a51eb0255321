//! Downloads archives of datasets and remembers what was unpacked.
//!
//! **What it is:** [`download`] brings one file over HTTP, resumed and checked while it comes; [`Archive`] makes a dataset's
//! folder of it, which appears whole or not at all; [`Record`] is kept in that folder and finds later changes.
//!
//! **What it is not:** it parses no dataset, prints nothing (what a person may want to know are [`Event`]s) and takes no
//! lock: two processes must not work on one archive of one data folder. `cargo xtask download` is the command around it.
//! Trying again is not left to a middleware of the HTTP client: a connection that breaks in the middle of a body, a range
//! to resume from, a version of the file to hold on to, and a server that trickles are known only to the reader of the body.
//!
//! **Where to start:** [`Archive::fetch`].

// Used only for their features; see the workspace's Cargo.toml.
use {base64 as _, getrandom_0_2 as _};

mod archive;
mod download;
mod error;
mod expected;
mod hashes;
mod origin;
mod record;
mod source;
mod watch;

pub use archive::Archive;
pub use download::{MOST_REDIRECTS, Patience, download};
pub use error::{Fault, FetchError};
pub use expected::{Digests, Expected};
pub use hashes::digests_of_file;
pub use record::{Record, bytes_below};
pub use source::Source;
pub use watch::{Event, Watch};
