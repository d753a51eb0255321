//! Empty: what this crate builds with is named here for its features (Cargo.toml of the workspace).

use cc as _;

fn main() {}
