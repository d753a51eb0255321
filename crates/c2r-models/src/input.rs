use serde::{Deserialize, Serialize};

use crate::error::ModelError;

/// What a network is made for: the images it sees, the classes it tells apart and how it normalizes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct ModelInput {
    /// C of the images.
    pub channels: i64,
    /// H of the images.
    pub height: i64,
    /// W of the images.
    pub width: i64,
    /// K, the number of logits.
    pub n_classes: i64,
    /// Per channel: subtracted from the pixels, which are in `[0, 1]`.
    pub mean: Vec<f64>,
    /// Per channel: divides what is left; positive.
    pub std: Vec<f64>,
}

/// Longest side of an image and most channels: products of sizes that a file declares must not overflow.
const LARGEST_SIDE: i64 = 4096;
/// Most classes, for the same reason.
const MOST_CLASSES: i64 = 1 << 20;

impl ModelInput {
    /// `[C, H, W]`.
    pub const fn image_shape(&self) -> [i64; 3] {
        [self.channels, self.height, self.width]
    }

    /// Checks sizes, mean and std.
    ///
    /// # Errors
    /// [`ModelError::Input`].
    pub fn check(&self) -> Result<(), ModelError> {
        let Self { channels, height, width, n_classes, mean, std } = self;
        let wrong = |reason: String| Err(ModelError::Input(reason));
        if [channels, height, width].into_iter().any(|&length| length < 1) {
            return wrong(format!("images of {channels}x{height}x{width} have no pixels"));
        }
        if [channels, height, width].into_iter().any(|&length| length > LARGEST_SIDE) || *n_classes > MOST_CLASSES {
            return wrong(format!(
                "images of {channels}x{height}x{width} in {n_classes} classes; at most {LARGEST_SIDE} to a side and {MOST_CLASSES} classes"
            ));
        }
        if *n_classes < 2 {
            return wrong(format!("{n_classes} classes; at least 2 are needed"));
        }
        for (name, values) in [("mean", mean), ("std", std)] {
            if values.len() as i64 != *channels {
                return wrong(format!("{name} has {} values for {channels} channels", values.len()));
            }
        }
        if mean.iter().any(|value| !value.is_finite()) || std.iter().any(|value| !(value.is_finite() && *value > 0.0)) {
            return wrong(format!("mean {mean:?} must be finite and std {std:?} positive"));
        }
        Ok(())
    }
}
