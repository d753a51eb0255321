//! Parts of a grid by number.

use std::{fmt, str::FromStr};

/// A part of the grid by number: `2/8` is the second of eight. All commands on one distilled set (or on one reference)
/// belong to one shard, so shards never wait for each other; the grid alone decides which shard that is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shard {
    /// From 0.
    index: usize,
    n_shards: usize,
}

impl Shard {
    /// The whole grid.
    pub const ALL: Self = Self { index: 0, n_shards: 1 };

    pub(crate) fn takes(self, chain: usize) -> bool {
        chain % self.n_shards == self.index
    }
}

impl FromStr for Shard {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let number = |text: &str| text.parse::<usize>().ok();
        let numbers = text.split_once('/').and_then(|(i, n)| Some((number(i)?, number(n)?)));
        match numbers {
            Some((i, n)) if 1 <= i && i <= n => Ok(Self { index: i - 1, n_shards: n }),
            _ => Err(format!("`{text}` is not I/N with I from 1 to N")),
        }
    }
}

impl fmt::Display for Shard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.index + 1, self.n_shards)
    }
}
