use std::{collections::BTreeMap, fmt, str::FromStr};

/// Which part of a grid is wanted: `dataset=cifar10,ipc=10,ipc=50`. A key that is not named is not restricted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Subgrid(BTreeMap<String, Vec<String>>);

/// The keys of [`Subgrid`].
const KEYS: [&str; 6] = ["dataset", "ipc", "method", "seed", "protocol", "attack"];

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
    /// The value of `ipc` for training on all real images.
    pub const ALL_IMAGES: &str = "all";

    /// What any of `parts` selects, key by key.
    pub fn merge(parts: impl IntoIterator<Item = Self>) -> Self {
        let mut merged = Self::default();
        for (key, values) in parts.into_iter().flat_map(|part| part.0) {
            merged.0.entry(key).or_default().extend(values);
        }
        merged
    }

    /// Whether it has the part of the grid where `key` is `value`.
    pub fn takes(&self, key: &str, value: impl fmt::Display) -> bool {
        self.0.get(key).is_none_or(|wanted| wanted.contains(&value.to_string()))
    }

    /// Each key that is restricted, with the values that it may have.
    pub(crate) fn values(&self) -> impl Iterator<Item = (&str, &[String])> {
        self.0.iter().map(|(key, values)| (key.as_str(), values.as_slice()))
    }
}

impl fmt::Display for Subgrid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts = self.0.iter().flat_map(|(key, values)| values.iter().map(move |value| format!("{key}={value}")));
        f.write_str(&parts.collect::<Vec<_>>().join(","))
    }
}

/// The message about a name that does not exist: ``there is no scale `x`; there are: a, b``.
pub fn unknown<T: ToString>(what: &str, name: &str, there: impl IntoIterator<Item = T>) -> String {
    let there: Vec<String> = there.into_iter().map(|item| item.to_string()).collect();
    format!("there is no {what} `{name}`; there are: {}", there.join(", "))
}
