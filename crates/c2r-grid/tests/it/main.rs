//! Grids in a temporary checkout.

mod example;
mod plan;
#[cfg(unix)]
mod run;
