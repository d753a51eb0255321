//! The configurations that come with c2r, `data/profiles/*.toml`, one per method of the tables.

use toml::{Table, Value};

/// Name and text of every profile.
const PROFILES: [(&str, &str); 17] = [
    ("faithful", include_str!("../../../data/profiles/faithful.toml")),
    ("plus", include_str!("../../../data/profiles/plus.toml")),
    ("literal", include_str!("../../../data/profiles/literal.toml")),
    ("class-mean", include_str!("../../../data/profiles/class-mean.toml")),
    ("aac", include_str!("../../../data/profiles/aac.toml")),
    ("crl", include_str!("../../../data/profiles/crl.toml")),
    ("rome", include_str!("../../../data/profiles/rome.toml")),
    ("random-real", include_str!("../../../data/profiles/random-real.toml")),
    ("herding", include_str!("../../../data/profiles/herding.toml")),
    ("k-center", include_str!("../../../data/profiles/k-center.toml")),
    ("dm", include_str!("../../../data/profiles/dm.toml")),
    ("dc", include_str!("../../../data/profiles/dc.toml")),
    ("dsa", include_str!("../../../data/profiles/dsa.toml")),
    ("mtt", include_str!("../../../data/profiles/mtt.toml")),
    ("mat", include_str!("../../../data/profiles/mat.toml")),
    ("sre2l", include_str!("../../../data/profiles/sre2l.toml")),
    ("guard", include_str!("../../../data/profiles/guard.toml")),
];

/// Keys whose value decides which other keys their table has: such a table replaces the one of the base.
const TAGS: [&str; 2] = ["mode", "attack"];

/// The names of all profiles.
pub fn names() -> impl Iterator<Item = &'static str> {
    PROFILES.iter().map(|(name, _)| *name)
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
    let (_, text) = PROFILES.iter().find(|(known, _)| *known == name).ok_or_else(|| ProfileError::Unknown {
        name: name.to_owned(),
        known: names().collect::<Vec<_>>().join(", "),
    })?;
    expand(text.parse().expect("embedded profiles are TOML"))
}

/// Resolves `base = "PROFILE"`: the profile, changed key by key by `table`.
///
/// A section that has a `mode` or an `attack` replaces that of the base as a whole.
///
/// # Errors
/// [`ProfileError`].
pub fn expand(mut table: Table) -> Result<Table, ProfileError> {
    match table.remove("base") {
        None => Ok(table),
        Some(Value::String(base)) => {
            let mut expanded = profile(&base)?;
            merge(&mut expanded, table);
            Ok(expanded)
        }
        Some(other) => Err(ProfileError::Base(other.to_string())),
    }
}

/// The section whose kind a dotted key says (`aac.synthetic` for `aac.synthetic.mode`): what else it holds depends on the
/// key's value.
pub fn section_of_tag(key: &str) -> Option<&str> {
    key.rsplit_once('.').filter(|(_, last)| TAGS.contains(last)).map(|(section, _)| section)
}

fn merge(base: &mut Table, changes: Table) {
    for (key, value) in changes {
        match (base.get_mut(&key), value) {
            (Some(Value::Table(old)), Value::Table(new)) if !TAGS.iter().any(|tag| new.contains_key(*tag)) => {
                merge(old, new);
            }
            (_, value) => {
                base.insert(key, value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_base_is_changed_key_by_key_and_tagged_sections_are_replaced() {
        let table = |text: &str| text.parse::<Table>().unwrap();
        let mut base = table("a = 1\n[b]\nc = 2\nd = 3\n[e]\nmode = \"weight\"\nfloor = 0.1");
        merge(&mut base, table("a = 5\n[b]\nd = 4\n[e]\nmode = \"off\""));
        assert_eq!(base, table("a = 5\n[b]\nc = 2\nd = 4\n[e]\nmode = \"off\""));
        let expanded = expand(table("base = \"faithful\"\nipc = 3")).unwrap();
        assert_eq!((expanded["ipc"].as_integer(), expanded["method"].as_str()), (Some(3), Some("c2r")));
        assert!(expand(table("base = \"dmm\"")).unwrap_err().to_string().contains("class-mean"));
        assert!(expand(table("base = 3")).unwrap_err().to_string().contains("got 3"));
    }
}
