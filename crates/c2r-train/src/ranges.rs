//! Checks of numbers in configurations.

use c2r_base::Epsilon;
use serde::{Deserialize, Deserializer, de::Error};

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

/// Above 0, and finite as a 32-bit float, which networks compute with.
pub fn positive(key: &'static str, value: f64) -> Result<(), RangeError> {
    in_range(value > 0.0, key, "positive", value)?;
    fits_f32(key, value)
}

/// 0 or more, and finite as a 32-bit float, which networks compute with.
pub fn not_negative(key: &'static str, value: f64) -> Result<(), RangeError> {
    in_range(value >= 0.0, key, "at least 0", value)?;
    fits_f32(key, value)
}

fn fits_f32(key: &'static str, value: f64) -> Result<(), RangeError> {
    in_range((value as f32).is_finite(), key, "at most 3.4e38, the largest 32-bit float", value)
}

/// The largest number of steps, images or networks: the product of two is still a whole number of 64 bits.
const MOST: u64 = i32::MAX as u64;

/// A number of steps, images or networks, 1 or more.
pub fn count(key: &'static str, value: u64) -> Result<(), RangeError> {
    in_range(value >= 1, key, "at least 1", value)?;
    count_or_none(key, value)
}

/// A number of steps, images or networks, 0 or more.
pub fn count_or_none(key: &'static str, value: u64) -> Result<(), RangeError> {
    in_range(value <= MOST, key, "at most 2147483647", value)
}

/// A share that can be kept over and over, as of a momentum or a moving average: from 0 to below 1.
pub fn below_one(key: &'static str, value: f64) -> Result<(), RangeError> {
    in_range((0.0..1.0).contains(&value), key, "in [0, 1)", value)
}

/// A radius as [`Epsilon`] reads it, and 0, which is none. A number needs no quotes.
///
/// # Errors
/// What `deserializer` holds is neither a text nor a number, or a text that is not a radius.
pub fn radius<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Epsilon, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "this must be a radius in pixel units, e.g. 2/255")]
    enum Radius {
        Text(String),
        Number(f64),
    }
    let text = match Radius::deserialize(deserializer)? {
        Radius::Text(text) => text,
        Radius::Number(number) => number.to_string(),
    };
    if text == "0" { Ok(Epsilon::ZERO) } else { text.parse().map_err(D::Error::custom) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_can_be_multiplied() {
        assert_eq!(count_or_none("steps", MOST + 1).unwrap_err().expected, format!("at most {MOST}"));
        assert!(count_or_none("steps", 0).is_ok() && count("steps", 0).is_err());
        assert!(count("steps", 1).is_ok() && count("steps", MOST).is_ok() && count("steps", MOST + 1).is_err());
        assert!(MOST.checked_mul(MOST).is_some());
    }

    #[test]
    fn numbers_that_are_infinite_in_32_bits_are_refused() {
        for check in [positive, not_negative] {
            assert!(check("weight", 3.4e38).is_ok());
            for value in [1e39, f64::INFINITY, f64::NAN, -1.0] {
                let error = check("weight", value).unwrap_err();
                assert_eq!((error.key, error.got), ("weight", value.to_string()));
            }
            assert_eq!(check("weight", 1e39).unwrap_err().expected, "at most 3.4e38, the largest 32-bit float");
        }
        assert!(positive("weight", 0.0).is_err() && not_negative("weight", 0.0).is_ok());
    }
}
