//! Every reader of c2r as a function of bytes, for fuzzing and for tests on broken files.
//!
//! **What it is:** [`TARGETS`]: a [`Target`] puts bytes where a file would be, has c2r read it, and checks what must hold
//! for any bytes: no panic, and an error that names the file. `corpus/NAME/` holds valid and broken files to start from.
//!
//! **What it is not:** a test of what the readers return for good files; their crates have those.
//!
//! **Where to start:** [`Harness`]; `cargo xtask fuzz --help` for a run.

mod seeds;
mod target;
mod targets;

use std::alloc::System;

use cap::Cap;

pub use target::{Harness, Target};
pub use targets::TARGETS;

/// The most memory that Rust code may hold at once here, bytes: a reader that believes a size in a small file runs into
/// it. Far above what the committed files need, far below what they can be made to declare.
pub const MOST_MEMORY: usize = 512 << 20;

#[global_allocator]
static ALLOCATOR: Cap<System> = Cap::new(System, MOST_MEMORY);
