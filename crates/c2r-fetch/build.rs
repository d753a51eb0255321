//! Does nothing. It names a crate that `ring`'s build script uses, for its features; see the workspace's Cargo.toml.

use cc as _;

fn main() {}
