use std::fmt;

use serde::{Deserialize, Serialize};

/// Which images of a split a result is of, where it is not of all of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Subset {
    /// Number of images taken.
    pub n: usize,
    /// Number of images that there are.
    pub of: usize,
    /// Which ones.
    pub order: SubsetOrder,
    /// Seed of the sample; `None` for [`SubsetOrder::First`].
    pub seed: Option<u64>,
}

/// The order of which a [`Subset`] is the beginning.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SubsetOrder {
    /// A fixed random order in which the classes take turns: see `c2r_data::subset`.
    #[default]
    ClassBalanced,
    /// The order of the files, which may be sorted by class.
    First,
}

impl Subset {
    /// In words, where `what` is `test images` or the like.
    ///
    /// ```
    /// use c2r_experiment::{Subset, SubsetOrder};
    /// let drawn = Subset { n: 20, of: 90, order: SubsetOrder::ClassBalanced, seed: Some(0) };
    /// assert_eq!(drawn.describe("test images"), "20 of 90 test images, class-balanced sample, seed 0");
    /// let first = Subset { n: 20, of: 90, order: SubsetOrder::First, seed: None };
    /// assert_eq!(first.describe("test images"), "the first 20 of 90 test images, in the order of the files");
    /// ```
    pub fn describe(&self, what: &str) -> String {
        let Self { n, of, order, seed } = self;
        match order {
            SubsetOrder::ClassBalanced => {
                let seed = seed.map_or_else(String::new, |seed| format!(", seed {seed}"));
                format!("{n} of {of} {what}, class-balanced sample{seed}")
            }
            SubsetOrder::First => format!("the first {n} of {of} {what}, in the order of the files"),
        }
    }
}

impl fmt::Display for SubsetOrder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ClassBalanced => "class-balanced",
            Self::First => "first",
        })
    }
}
