//! The version of the numbers that each stage makes.
//!
//! A finished command is never run again for the same configuration, data and **results version** of its stage and
//! of the stages before it. The git revision is recorded next to every result and decides nothing: a change of the
//! documentation, of a message or of the speed must not throw away a month of GPU time.
//!
//! Raise a stage's version in the commit that changes its numbers beyond float rounding, for any configuration:
//! another default, another order of random draws, a mistake that is mended. Then every result of that stage and of
//! the ones after it is made again, and `cargo xtask test --regression --accept` takes the new numbers; it refuses to
//! take numbers that have moved under an unchanged version.

/// `c2r distill`.
pub const DISTILL: u32 = 5;
/// `c2r train`.
pub const TRAIN: u32 = 1;
/// `c2r attack`.
pub const ATTACK: u32 = 3;

/// `c2r attack` with the attack `name`. If one attack alone changes, its version is raised here together with those of the suites that
/// contain it, and the results of the others stay.
pub fn attack(name: &str) -> u32 {
    match name {
        "deepfool" => ATTACK + 1,
        _ => ATTACK,
    }
}
