//! Parts of a grid: by what is in them, or by number.

use std::{collections::BTreeMap, fmt, str::FromStr};

use c2r_experiment::Scale;

/// Which part of a grid is wanted: `dataset=cifar10,ipc=10,ipc=50`. A key that is not named is not restricted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Subgrid(BTreeMap<String, Vec<String>>);

/// The keys of [`Subgrid`].
const KEYS: [&str; 6] = ["dataset", "ipc", "method", "seed", "protocol", "attack"];

/// The value of `ipc` for training on all real images.
pub(crate) const ALL_IMAGES: &str = "all";

impl FromStr for Subgrid {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut subgrid = Self::default();
        for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
            let (key, value) = part.split_once('=').ok_or_else(|| format!("`{part}` is not key=value"))?;
            if !KEYS.contains(&key) {
                return Err(unknown("key", key, KEYS));
            }
            subgrid.0.entry(key.to_owned()).or_default().push(value.to_owned());
        }
        Ok(subgrid)
    }
}

impl Subgrid {
    /// What any of `parts` selects, key by key.
    pub fn merge(parts: impl IntoIterator<Item = Self>) -> Self {
        let mut merged = Self::default();
        for (key, values) in parts.into_iter().flat_map(|part| part.0) {
            merged.0.entry(key).or_default().extend(values);
        }
        merged
    }

    pub(crate) fn takes(&self, key: &str, value: impl fmt::Display) -> bool {
        self.0.get(key).is_none_or(|wanted| wanted.contains(&value.to_string()))
    }

    /// Checks that the grid has every value: one that it does not have is a mistake and not an empty selection.
    ///
    /// # Errors
    /// The first value that is not in `scale`, with those that are.
    pub fn check(&self, scale: &Scale) -> Result<(), String> {
        fn texts<T: ToString>(values: &[T]) -> Vec<String> {
            values.iter().map(T::to_string).collect()
        }
        for (key, values) in &self.0 {
            let there = match key.as_str() {
                "dataset" => scale.datasets.clone(),
                "ipc" => [texts(&scale.ipcs), texts(&[ALL_IMAGES])].concat(),
                "method" => scale.methods.clone(),
                "seed" => texts(&scale.seeds),
                "protocol" => scale.protocols.clone(),
                _ => scale.attacks.clone(),
            };
            if let Some(value) = values.iter().find(|value| !there.contains(value)) {
                return Err(unknown(key, value, there));
            }
        }
        Ok(())
    }
}

impl fmt::Display for Subgrid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts = self.0.iter().flat_map(|(key, values)| values.iter().map(move |value| format!("{key}={value}")));
        f.write_str(&parts.collect::<Vec<_>>().join(","))
    }
}

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

/// ``there is no scale `x`; there are: a, b``.
pub(crate) fn unknown<T: ToString>(what: &str, name: &str, there: impl IntoIterator<Item = T>) -> String {
    let there: Vec<String> = there.into_iter().map(|item| item.to_string()).collect();
    format!("there is no {what} `{name}`; there are: {}", there.join(", "))
}
