//! Robustness metrics, statistics and result tables.
//!
//! **What it is:** [`AttackRecord`] (the `attack.json` file: one trained network under attack).
//!
//! **What it is not:** it runs no network and no attack, and it never prints.

mod error;
mod record;

pub use error::EvalError;
pub use record::{AttackEntry, AttackRecord, Bits, Samples};
