use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// The radius of a perturbation in pixel units (pixels are in `[0, 1]`).
///
/// Written as the papers write it, `8/255`, or as a decimal, `0.5`; `Display` gives the same
/// spelling back. Positive and finite, except [`Epsilon::ZERO`], which cannot be parsed and exists
/// for self-checks ("an attack with no budget changes nothing"); what was written with it is read back. Radii of the same
/// value are equal, however they are spelled.
///
/// ```
/// use c2r_base::Epsilon;
/// let epsilon: Epsilon = "8/255".parse().unwrap();
/// assert_eq!(epsilon.to_string(), "8/255");
/// assert!("0".parse::<Epsilon>().is_err());
/// assert!("8/0".parse::<Epsilon>().is_err());
/// assert_eq!(Epsilon::new(0.5).unwrap(), "1/2".parse().unwrap());
/// ```
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Epsilon {
    numerator: f64,
    denominator: f64,
}

impl Epsilon {
    /// No budget at all. For self-checks.
    pub const ZERO: Self = Self { numerator: 0.0, denominator: 1.0 };

    /// A radius in pixel units, e.g. one that was computed.
    ///
    /// # Errors
    /// [`ParseEpsilonError`] if it is not positive and finite.
    pub fn new(value: f64) -> Result<Self, ParseEpsilonError> {
        value.to_string().parse()
    }

    /// `numerator / 255`, the unit of 8-bit pixels.
    ///
    /// # Panics
    /// If `numerator` is not positive and finite.
    pub fn of_255(numerator: f64) -> Self {
        assert!(numerator.is_finite() && numerator > 0.0, "epsilon must be positive, got {numerator}/255");
        Self { numerator, denominator: 255.0 }
    }

    /// The radius in pixel units.
    pub fn value(self) -> f64 {
        self.numerator / self.denominator
    }
}

impl PartialEq for Epsilon {
    fn eq(&self, other: &Self) -> bool {
        self.value() == other.value()
    }
}

impl fmt::Display for Epsilon {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.denominator == 1.0 {
            write!(f, "{}", self.numerator)
        } else {
            write!(f, "{}/{}", self.numerator, self.denominator)
        }
    }
}

/// Why a text is not an [`Epsilon`].
#[derive(Debug, thiserror::Error, PartialEq)]
#[error("`{text}` is not a radius in pixel units: {reason} (write a fraction such as 2/255 or a decimal such as 0.5)")]
pub struct ParseEpsilonError {
    text: String,
    reason: &'static str,
}

impl FromStr for Epsilon {
    type Err = ParseEpsilonError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let fail = |reason| ParseEpsilonError { text: text.to_owned(), reason };
        let number = |part: &str| part.trim().parse::<f64>().map_err(|_| fail("not a number"));
        let (numerator, denominator) = match text.split_once('/') {
            Some((above, below)) => (number(above)?, number(below)?),
            None => (number(text)?, 1.0),
        };
        let value = numerator / denominator;
        if !value.is_finite() || denominator <= 0.0 {
            return Err(fail("not finite"));
        }
        if value <= 0.0 {
            return Err(fail("not positive"));
        }
        Ok(Self { numerator, denominator })
    }
}

impl TryFrom<String> for Epsilon {
    type Error = ParseEpsilonError;

    /// What was written: as text is parsed, and `0`, which is [`Epsilon::ZERO`].
    fn try_from(text: String) -> Result<Self, Self::Error> {
        if text == Self::ZERO.to_string() { Ok(Self::ZERO) } else { text.parse() }
    }
}

impl From<Epsilon> for String {
    fn from(epsilon: Epsilon) -> Self {
        epsilon.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spelling_round_trips() {
        for text in ["2/255", "0.25/255", "8/255", "0.5", "1"] {
            let epsilon: Epsilon = text.parse().unwrap();
            assert_eq!(epsilon.to_string(), text);
        }
        assert!(("2/255".parse::<Epsilon>().unwrap().value() - 2.0 / 255.0).abs() < 1e-15);
        assert_eq!(Epsilon::of_255(2.0), "2/255".parse().unwrap());
    }

    #[test]
    fn what_was_written_is_read_back() {
        for epsilon in [Epsilon::ZERO, Epsilon::of_255(8.0), Epsilon::new(0.1).unwrap()] {
            let text = serde_json::to_string(&epsilon).unwrap();
            let back: Epsilon = serde_json::from_str(&text).unwrap();
            assert_eq!((back, back.to_string()), (epsilon, epsilon.to_string()));
        }
        assert!(serde_json::from_str::<Epsilon>("\"0/255\"").is_err());
    }

    #[test]
    fn radii_are_equal_by_value() {
        let epsilon = |text: &str| text.parse::<Epsilon>().unwrap();
        assert_eq!(epsilon("6/510"), epsilon("3/255"));
        assert_ne!(epsilon("3/255"), epsilon("3/256"));
    }

    #[test]
    fn a_number_becomes_a_radius() {
        assert_eq!(Epsilon::new(8.0 / 255.0).unwrap().value(), 8.0 / 255.0);
        for value in [0.0, -0.5, f64::NAN, f64::INFINITY] {
            let error = Epsilon::new(value).unwrap_err().to_string();
            assert!(error.contains(&value.to_string()), "{value}: {error}");
        }
    }

    #[test]
    fn nonsense_is_refused() {
        for text in ["0", "-1", "8/0", "8/-255", "-8/-255", "x", "", "1/2/3", "nan", "inf", "0/255"] {
            let error = text.parse::<Epsilon>().unwrap_err().to_string();
            assert!(error.contains("2/255"), "{text}: {error}");
        }
    }
}
