//! What c2r needs from the machine, found or installed.
//!
//! **What it is:** [`choose()`] finds or installs libtorch and [`link`] points a link at it; [`libtorch`] says which one c2r is
//! built on and what a folder holds; [`python`] finds the Python of the machine and makes environments with pinned packages, and [`cache`] is the user's cache
//! folder, in which what is installed appears whole or not at all.
//!
//! **What it is not:** it builds nothing and links no libtorch. `cargo xtask setup` is the command around it.
//!
//! **Where to start:** [`choose()`], [`python::Environment`].

pub mod cache;
mod choose;
mod install;
pub mod libtorch;
pub mod python;

pub use choose::{Cuda, choose, link};
