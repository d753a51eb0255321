//! The configurations that come with c2r, `data/profiles/*.toml`, one per method of the tables.

use c2r_train::layers;
use toml::{Table, Value};

/// Name and text of each profile.
macro_rules! profiles {
    ($($name:literal)*) => { &[$(($name, include_str!(concat!("../../../data/profiles/", $name, ".toml")))),*] };
}

/// Name and text of every profile.
const PROFILES: &[(&str, &str)] = profiles! {
    "faithful" "plus" "literal" "class-mean" "aac" "crl" "rome" "random-real" "random-real-mosaic" "herding"
    "k-center" "dm" "dc" "dsa" "mtt" "mat" "sre2l" "guard"
};

/// What tables call the method of the profile [`FAITHFUL`]: another name of it.
const C2R: &str = "c2r";
const FAITHFUL: &str = "faithful";

/// The names of all profiles. [`profile`] takes `c2r` for `faithful`, too.
pub fn names() -> impl Iterator<Item = &'static str> {
    PROFILES.iter().map(|(name, _)| *name)
}

/// Name and text of every profile, as its file has it.
pub fn texts() -> impl Iterator<Item = (&'static str, &'static str)> {
    PROFILES.iter().copied()
}

/// A configuration that builds on a profile which does not exist.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum ProfileError {
    /// No profile of this name.
    #[error("there is no profile `{name}`; there are {known}")]
    Unknown {
        /// What was asked for.
        name: String,
        /// What there is.
        known: String,
    },
    /// Not a text.
    #[error("base must be the name of a profile, got {0}")]
    Base(String),
}

/// A profile, complete but for what depends on the dataset.
///
/// # Errors
/// [`ProfileError::Unknown`].
///
/// # Panics
/// If an embedded profile is not TOML, which a test excludes.
pub fn profile(name: &str) -> Result<Table, ProfileError> {
    let name = if name == C2R { FAITHFUL } else { name };
    let (_, text) = PROFILES.iter().find(|(known, _)| *known == name).ok_or_else(|| ProfileError::Unknown {
        name: name.to_owned(),
        known: names().collect::<Vec<_>>().join(", "),
    })?;
    expand(text.parse().expect("embedded profiles are TOML"))
}

/// Resolves `base = "PROFILE"`: the profile, changed key by key by `table`.
///
/// A section that has a `mode` or an `attack` replaces that of the base as a whole. A learning rate of the images that is
/// constant in the base stays so where `table` has `images.lr` and no `images.final-lr`.
///
/// # Errors
/// [`ProfileError`].
pub fn expand(mut table: Table) -> Result<Table, ProfileError> {
    match table.remove("base") {
        None => Ok(table),
        Some(Value::String(base)) => {
            let mut expanded = profile(&base)?;
            let was = constant_rate(&expanded);
            let given = rate(&table, "final-lr").is_some();
            layers::merge(&mut expanded, table);
            if !given {
                keep_constant(&mut expanded, was);
            }
            Ok(expanded)
        }
        Some(other) => Err(ProfileError::Base(other.to_string())),
    }
}

/// A learning rate of the images.
fn rate(table: &Table, key: &str) -> Option<f64> {
    let value = table.get("images")?.get(key)?;
    value.as_float().or_else(|| value.as_integer().map(|rate| rate as f64))
}

/// The learning rate of the images, where it is the same from the first update to the last.
pub(crate) fn constant_rate(table: &Table) -> Option<f64> {
    rate(table, "lr").filter(|&first| rate(table, "final-lr") == Some(first))
}

/// Gives the last update the rate of the first again, where both were `was` and `images.lr` alone was changed since.
pub(crate) fn keep_constant(table: &mut Table, was: Option<f64>) {
    let Some(Value::Table(images)) = table.get_mut("images").filter(|_| was.is_some()) else { return };
    if let Some(lr) = images.get("lr").cloned().filter(|_| images.contains_key("final-lr")) {
        images.insert("final-lr".to_owned(), lr);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_constant_rate_stays_constant() {
        let rates = |text: &str| {
            let table = expand(text.parse().unwrap()).unwrap();
            (rate(&table, "lr"), rate(&table, "final-lr"))
        };
        assert_eq!(rates("base = \"dm\"\nimages.lr = 0.1"), (Some(0.1), Some(0.1)));
        assert_eq!(rates("base = \"dm\"\nimages.lr = 0.1\nimages.final-lr = 0.0"), (Some(0.1), Some(0.0)));
        assert_eq!(rates("base = \"dm\"\nimages.final-lr = 0.0"), (Some(1.0), Some(0.0)));
        // The rate of C²R falls.
        assert_eq!(rates("base = \"faithful\"\nimages.lr = 0.1"), (Some(0.1), Some(0.001)));
    }

    #[test]
    fn c2r_is_another_name_of_faithful() {
        let named = profile("c2r").unwrap();
        assert_eq!(named, profile("faithful").unwrap());
        assert_eq!(named["profile"].as_str(), Some("faithful"));
        assert_eq!(expand("base = \"c2r\"".parse().unwrap()).unwrap(), named);
    }

    #[test]
    fn a_profile_is_the_base_of_another() {
        let expanded = expand("base = \"faithful\"\nipc = 3".parse().unwrap()).unwrap();
        assert_eq!((expanded["ipc"].as_integer(), expanded["method"].as_str()), (Some(3), Some("c2r")));
        assert!(expand("base = \"dmm\"".parse().unwrap()).unwrap_err().to_string().contains("class-mean"));
        assert!(expand("base = 3".parse().unwrap()).unwrap_err().to_string().contains("got 3"));
    }
}
