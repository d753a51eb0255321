//! A configuration in layers: a TOML table whose keys defaults and assignments change, read at the end as a checked
//! type. Keys are dotted: `pool.lr` is `lr` in the section `[pool]`.

use serde::de::DeserializeOwned;
use toml::{Table, Value};

/// A dotted key and its value.
pub type Assignment = (String, Value);

/// A key that does not exist, is missing or has a value that does not fit.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("in the configuration, at `{key}`: {reason}{}", meant.as_ref().map_or(String::new(), |key| format!("; did you mean `{key}`?")))]
pub struct KeyError {
    /// Dotted key, `.` for the whole configuration.
    pub key: String,
    /// What is wrong with it.
    pub reason: String,
    /// The existing key that is most like an unknown one.
    pub meant: Option<String>,
}

impl KeyError {
    /// An unknown key gets the suggestion from the known ones, which `reason` lists in backticks as serde does.
    pub fn new(key: String, reason: String) -> Self {
        Self { meant: nearest(&key, &reason), key, reason }
    }
}

/// Keys whose value decides which other keys their section has: another value empties the section.
const TAGS: [&str; 2] = ["mode", "attack"];

/// The section whose kind a dotted key gives: `aac.synthetic` for `aac.synthetic.mode`.
fn section_of_tag(key: &str) -> Option<&str> {
    key.rsplit_once('.').filter(|(_, last)| TAGS.contains(last)).map(|(section, _)| section)
}

/// Changes `base` key by key; a section that has a `mode` or an `attack` replaces that of the base as a whole.
pub fn merge(base: &mut Table, changes: Table) {
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

/// `key.with.dots=value`: the value is TOML, and what is not TOML is a text, so that `labels=soft` needs no quotes within
/// quotes. `None` without `=`.
pub fn parse_assignment(text: &str) -> Option<Assignment> {
    let (key, value) = text.split_once('=')?;
    let value = value.trim();
    let parsed = format!("value = {value}").parse::<Table>().ok().and_then(|mut table| table.remove("value"));
    Some((key.trim().to_owned(), parsed.unwrap_or_else(|| Value::String(value.to_owned()))))
}

/// Applies assignments in their order, those that give the kind of a section (`aac.synthetic.mode`, `companions.attack`)
/// first: with another kind, the section begins empty.
///
/// # Errors
/// [`KeyError`] for a key inside something that is not a section.
pub fn assign(table: &mut Table, assignments: &[Assignment]) -> Result<(), KeyError> {
    let (tags, others): (Vec<_>, Vec<_>) = assignments.iter().partition(|(key, _)| section_of_tag(key).is_some());
    for (key, value) in tags {
        if let (Some(section), Some(before)) = (section_of_tag(key), get(table, key))
            && before != value
        {
            put(table, section, Value::Table(Table::new()))?;
        }
        put(table, key, value.clone())?;
    }
    others.into_iter().try_for_each(|(key, value)| put(table, key, value.clone()))
}

/// Gives `key` its value unless it has one.
///
/// # Errors
/// As [`assign`].
pub fn put_default(table: &mut Table, key: &str, value: Value) -> Result<(), KeyError> {
    if get(table, key).is_some() { Ok(()) } else { put(table, key, value) }
}

/// Sets a dotted key, making missing sections.
fn put(table: &mut Table, key: &str, value: Value) -> Result<(), KeyError> {
    let mut table = table;
    let mut parts = key.split('.');
    let last = parts.next_back().unwrap_or_default();
    for part in parts {
        table = match table.entry(part).or_insert_with(|| Value::Table(Table::new())) {
            Value::Table(inner) => inner,
            _ => return Err(KeyError::new(key.to_owned(), format!("`{part}` is a value, not a section"))),
        };
    }
    table.insert(last.to_owned(), value);
    Ok(())
}

fn get<'a>(table: &'a Table, key: &str) -> Option<&'a Value> {
    match key.split_once('.') {
        None => table.get(key),
        Some((head, rest)) => get(table.get(head)?.as_table()?, rest),
    }
}

/// Whether an assignment to `given` gives `key`, something in it, or a section that it is in.
pub fn concerns(given: &str, key: &str) -> bool {
    let is_in = |section: &str, key: &str| {
        key.strip_prefix(section).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    };
    is_in(given, key) || is_in(key, given)
}

/// The table as a checked type.
///
/// # Errors
/// [`KeyError`] for an unknown or missing key and for a value that does not fit.
pub fn read<T: DeserializeOwned>(table: Table) -> Result<T, KeyError> {
    serde_path_to_error::deserialize(Value::Table(table))
        .map_err(|error| KeyError::new(error.path().to_string(), plain(error.inner().message().trim_end())))
}

/// A `reason` of serde's that speaks of a TOML file where serde names types of Rust.
fn plain(reason: &str) -> String {
    let Some((found, expected)) = reason.rsplit_once(", expected ") else { return reason.to_owned() };
    let expected = match expected {
        "u8" | "u16" | "u32" | "u64" | "usize" => "a whole number that is at least 0",
        "i8" | "i16" | "i32" | "i64" | "isize" => "a whole number",
        "f32" | "f64" => "a number",
        _ if expected.starts_with("struct ") || expected.starts_with("internally tagged enum ") => {
            "a section with keys"
        }
        _ => expected,
    };
    format!("{found}, expected {expected}")
}

/// The key most like the unknown one at the end of `path`, in full, among those that serde's `reason` lists in backticks
/// after it.
fn nearest(path: &str, reason: &str) -> Option<String> {
    /// Jaro similarity from which clap suggests an option.
    const ALIKE: f64 = 0.7;
    let mut names = reason.strip_prefix("unknown field ")?.split('`').skip(1).step_by(2);
    let wrong = names.next()?;
    let alike = |name: &str| strsim::jaro(wrong, name);
    let best = names.filter(|name| alike(name) > ALIKE).max_by(|a, b| alike(a).total_cmp(&alike(b)))?;
    let section = path.strip_suffix(wrong).unwrap_or_default();
    Some(format!("{section}{best}"))
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Example {
        name: String,
        inner: Inner,
    }

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields, rename_all = "kebab-case")]
    struct Inner {
        learning_rate: f64,
        #[serde(default)]
        steps: u64,
    }

    fn table(text: &str) -> Table {
        text.parse().unwrap()
    }

    fn parsed(assignments: &[&str]) -> Vec<Assignment> {
        assignments.iter().map(|text| parse_assignment(text).unwrap()).collect()
    }

    fn resolved(assignments: &[&str]) -> Result<Example, KeyError> {
        let mut table = table("name = \"a\"\n[inner]\nlearning-rate = 0.1");
        assign(&mut table, &parsed(assignments))?;
        read(table)
    }

    #[test]
    fn a_base_is_changed_key_by_key_and_tagged_sections_are_replaced() {
        let mut base = table("a = 1\n[b]\nc = 2\nd = 3\n[e]\nmode = \"weight\"\nfloor = 0.1");
        merge(&mut base, table("a = 5\n[b]\nd = 4\n[e]\nmode = \"off\""));
        assert_eq!(base, table("a = 5\n[b]\nc = 2\nd = 4\n[e]\nmode = \"off\""));
    }

    #[test]
    fn assignments_override_and_texts_need_no_quotes() {
        let example = resolved(&["name=soft", "inner.learning-rate=0.5", "inner.steps=3"]).unwrap();
        let Inner { learning_rate, steps } = example.inner;
        assert_eq!((example.name.as_str(), learning_rate, steps), ("soft", 0.5, 3));
        assert_eq!(parse_assignment("name"), None);
    }

    #[test]
    fn another_kind_of_section_begins_empty() {
        let changed = |assignments: &[&str]| {
            let mut table = table("[a]\nb = 1\n[a.c]\nmode = \"weight\"\nfloor = 0.1");
            assign(&mut table, &parsed(assignments)).unwrap();
            toml::to_string(&table).unwrap()
        };
        assert_eq!(changed(&["a.c.mode=off"]), "[a]\nb = 1\n\n[a.c]\nmode = \"off\"\n");
        // Whatever the order, what is set beside the kind stays.
        for order in [["a.c.mode=prefix", "a.c.fraction=0.5"], ["a.c.fraction=0.5", "a.c.mode=prefix"]] {
            assert_eq!(changed(&order), "[a]\nb = 1\n\n[a.c]\nfraction = 0.5\nmode = \"prefix\"\n");
        }
        // The same kind changes nothing.
        assert_eq!(changed(&["a.c.mode=weight"]), "[a]\nb = 1\n\n[a.c]\nfloor = 0.1\nmode = \"weight\"\n");
        let given = "crl.queue.top-k";
        assert!(concerns(given, "crl") && concerns(given, "crl.queue.top-k") && concerns("crl", given));
        assert!(!concerns(given, "crl.temperature") && !concerns(given, "cr"));
    }

    #[test]
    fn unknown_keys_and_wrong_types_are_errors_that_name_them() {
        let error = |assignment| resolved(&[assignment]).unwrap_err();
        let unknown = error("inner.learning_rate=1");
        assert_eq!(unknown.key, "inner.learning_rate");
        assert_eq!(unknown.meant.as_deref(), Some("inner.learning-rate"));
        assert_eq!(
            unknown.to_string(),
            "in the configuration, at `inner.learning_rate`: unknown field `learning_rate`, expected `learning-rate` or \
             `steps`; did you mean `inner.learning-rate`?"
        );
        assert_eq!(error("inner.xyz=1").meant, None);
        assert_eq!(error("nam=1").meant.as_deref(), Some("name"));
        assert!(error("inner={learning-rat=1}").key.starts_with("inner"));
        let wrong = error("inner.learning-rate=fast");
        assert!(
            wrong.key == "inner.learning-rate" && wrong.reason.starts_with("invalid type: string \"fast\""),
            "{wrong}"
        );
        for (assignment, expected) in [
            ("inner.learning-rate=[]", "a number"),
            ("inner=2", "a section with keys"),
            ("inner.steps=-1", "a whole number that is at least 0"),
        ] {
            let reason = error(assignment).reason;
            assert!(reason.ends_with(&format!(", expected {expected}")), "{assignment}: {reason}");
        }
        assert_eq!(error("iner.learning-rate=1").meant.as_deref(), Some("inner"));
        assert_eq!(error("name.x=1").reason, "`name` is a value, not a section");
        let missing = read::<Example>(Table::new()).unwrap_err().to_string();
        assert!(missing.contains("missing field `name`"), "{missing}");
    }
}
