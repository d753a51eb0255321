use std::{iter::Sum, ops::AddAssign};

use serde::{Deserialize, Serialize};

/// Passes through a network: `calls` counts batches, `images` the rows in them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Passes {
    /// Forward passes, those that were followed by a backward pass included.
    pub forward_calls: u64,
    /// Images in them.
    pub forward_images: u64,
    /// Backward passes.
    pub backward_calls: u64,
    /// Images in them.
    pub backward_images: u64,
}

impl Passes {
    /// One forward pass of `images` images.
    pub const fn forward(images: u64) -> Self {
        Self { forward_calls: 1, forward_images: images, backward_calls: 0, backward_images: 0 }
    }

    /// One backward pass of `images` images; the forward pass before it counts for itself.
    pub const fn backward(images: u64) -> Self {
        Self { forward_calls: 0, forward_images: 0, backward_calls: 1, backward_images: images }
    }
}

impl AddAssign for Passes {
    fn add_assign(&mut self, other: Self) {
        self.forward_calls += other.forward_calls;
        self.forward_images += other.forward_images;
        self.backward_calls += other.backward_calls;
        self.backward_images += other.backward_images;
    }
}

impl Sum for Passes {
    fn sum<I: Iterator<Item = Self>>(parts: I) -> Self {
        parts.fold(Self::default(), |mut sum, part| {
            sum += part;
            sum
        })
    }
}
