//! Checks of numbers in configurations.

/// A number outside its range.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{key} must be {expected}, got {got}")]
pub struct RangeError {
    /// Dotted key.
    pub key: &'static str,
    /// What is allowed.
    pub expected: &'static str,
    /// What was given.
    pub got: String,
}

/// An error unless `ok`.
pub fn in_range(ok: bool, key: &'static str, expected: &'static str, got: impl ToString) -> Result<(), RangeError> {
    if ok { Ok(()) } else { Err(RangeError { key, expected, got: got.to_string() }) }
}

/// Finite and above 0.
pub fn positive(key: &'static str, value: f64) -> Result<(), RangeError> {
    in_range(value.is_finite() && value > 0.0, key, "positive", value)
}

/// Finite and 0 or more.
pub fn not_negative(key: &'static str, value: f64) -> Result<(), RangeError> {
    in_range(value.is_finite() && value >= 0.0, key, "at least 0", value)
}

/// 1 or more.
pub fn at_least_one(key: &'static str, value: u64) -> Result<(), RangeError> {
    in_range(value >= 1, key, "at least 1", value)
}

/// A share that can be kept over and over, as of a momentum or a moving average: from 0 to below 1.
pub fn below_one(key: &'static str, value: f64) -> Result<(), RangeError> {
    in_range((0.0..1.0).contains(&value), key, "in [0, 1)", value)
}
