//! Configuration in layers: option, then `--set`, then file, then what the dataset says.

use std::path::Path;

use anyhow::{Context, bail};
use c2r_distill::profiles;
use serde::de::DeserializeOwned;
use toml::{Table, Value};

use crate::exit::{self, OrExit};

/// Reads a TOML file as a table.
pub(crate) fn read(path: &Path) -> anyhow::Result<Table> {
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("cannot read {}", path.display()))
        .or_exit(exit::USAGE)?;
    parse(&text, &path.display().to_string())
}

/// Parses TOML; `origin` names it in errors.
pub(crate) fn parse(text: &str, origin: &str) -> anyhow::Result<Table> {
    text.parse::<Table>().with_context(|| format!("{origin} is not valid TOML")).or_exit(exit::USAGE)
}

/// Applies assignments of `--set`, those that say the kind of a section (`aac.synthetic.mode`, `companions.attack`) first: with
/// another kind, the section begins empty.
pub(crate) fn set_all(table: &mut Table, assignments: &[String]) -> anyhow::Result<()> {
    let is_tag = |assignment: &&String| profiles::section_of_tag(key_of(assignment)).is_some();
    let (tags, others): (Vec<_>, Vec<_>) = assignments.iter().partition(is_tag);
    for assignment in tags {
        let before = get(table, key_of(assignment)).cloned();
        set(table, assignment)?;
        if before.is_some_and(|before| get(table, key_of(assignment)) != Some(&before))
            && let Some(section) = profiles::section_of_tag(key_of(assignment))
        {
            put(table, section, Value::Table(Table::new()))?;
            set(table, assignment)?;
        }
    }
    others.into_iter().try_for_each(|assignment| set(table, assignment))
}

/// The dotted key of an assignment.
fn key_of(assignment: &str) -> &str {
    assignment.split('=').next().unwrap_or_default().trim()
}

/// Whether one of the assignments gives `key`, something in it, or a section that it is in.
pub(crate) fn is_set(assignments: &[String], key: &str) -> bool {
    assignments.iter().any(|assignment| {
        let given = key_of(assignment);
        is_in(given, key) || is_in(key, given)
    })
}

/// Whether `key` is the section or in it.
fn is_in(section: &str, key: &str) -> bool {
    key.strip_prefix(section).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

/// Applies `key.with.dots=value`. The value is TOML; what is not TOML is a text, so that
/// `--set labels=soft` needs no quotes within quotes.
fn set(table: &mut Table, assignment: &str) -> anyhow::Result<()> {
    let Some((key, value)) = assignment.split_once('=') else {
        return exit::fail(exit::USAGE, format!("`--set {assignment}` has no `=`; write --set key=value"));
    };
    put(table, key.trim(), value_of(value.trim()))
        .with_context(|| format!("in `--set {assignment}`"))
        .or_exit(exit::USAGE)
}

fn value_of(text: &str) -> Value {
    format!("value = {text}")
        .parse::<Table>()
        .ok()
        .and_then(|mut table| table.remove("value"))
        .unwrap_or_else(|| Value::String(text.to_owned()))
}

/// Sets a dotted key, making missing tables.
pub(crate) fn put(table: &mut Table, key: &str, value: Value) -> anyhow::Result<()> {
    match key.split_once('.') {
        None => {
            table.insert(key.to_owned(), value);
            Ok(())
        }
        Some((head, rest)) => match table.entry(head).or_insert_with(|| Value::Table(Table::new())) {
            Value::Table(inner) => put(inner, rest, value),
            _ => bail!("`{head}` is a value, not a section"),
        },
    }
}

/// Sets a dotted key unless it is there.
pub(crate) fn put_default(table: &mut Table, key: &str, value: Value) -> anyhow::Result<()> {
    if get(table, key).is_some() { Ok(()) } else { put(table, key, value) }
}

fn get<'a>(table: &'a Table, key: &str) -> Option<&'a Value> {
    match key.split_once('.') {
        None => table.get(key),
        Some((head, rest)) => get(table.get(head)?.as_table()?, rest),
    }
}

/// The table as a checked type. An unknown or missing key and a wrong value are errors that name the key, the one of the
/// `assignments` of `--set` that gave it (or `origin`), and the key that may have been meant.
pub(crate) fn resolve<T: DeserializeOwned>(table: Table, origin: &str, assignments: &[String]) -> anyhow::Result<T> {
    serde_path_to_error::deserialize(Value::Table(table))
        .map_err(|error| {
            let path = error.path().to_string();
            let gave = |assignment: &&String| is_set(std::slice::from_ref(*assignment), &path);
            let from = assignments.iter().rfind(gave).map_or_else(|| origin.to_owned(), |set| format!("--set {set}"));
            let reason = error.inner().message().trim_end();
            let meant = nearest(&path, reason).map_or(String::new(), |key| format!("; did you mean `{key}`?"));
            anyhow::anyhow!("{from}: in the configuration, at `{path}`: {reason}{meant}")
        })
        .or_exit(exit::USAGE)
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
    }

    fn resolved(assignments: &[&str]) -> anyhow::Result<Example> {
        let mut table = parse("name = \"a\"\n[inner]\nlearning-rate = 0.1", "test")?;
        let assignments: Vec<String> = assignments.iter().map(ToString::to_string).collect();
        set_all(&mut table, &assignments)?;
        resolve(table, "test", &assignments)
    }

    #[test]
    fn assignments_override_and_texts_need_no_quotes() {
        let example = resolved(&["name=soft", "inner.learning-rate=0.5"]).unwrap();
        assert_eq!((example.name.as_str(), example.inner.learning_rate), ("soft", 0.5));
    }

    #[test]
    fn another_kind_of_section_begins_empty() {
        let changed = |assignments: &[&str]| {
            let mut table = parse("[a]\nb = 1\n[a.c]\nmode = \"weight\"\nfloor = 0.1", "test").unwrap();
            set_all(&mut table, &assignments.iter().map(ToString::to_string).collect::<Vec<_>>()).unwrap();
            toml::to_string(&table).unwrap()
        };
        assert_eq!(changed(&["a.c.mode=off"]), "[a]\nb = 1\n\n[a.c]\nmode = \"off\"\n");
        // Whatever the order, what is set beside the kind stays.
        for order in [["a.c.mode=prefix", "a.c.fraction=0.5"], ["a.c.fraction=0.5", "a.c.mode=prefix"]] {
            assert_eq!(changed(&order), "[a]\nb = 1\n\n[a.c]\nfraction = 0.5\nmode = \"prefix\"\n");
        }
        // The same kind changes nothing.
        assert_eq!(changed(&["a.c.mode=weight"]), "[a]\nb = 1\n\n[a.c]\nfloor = 0.1\nmode = \"weight\"\n");
        let assignments = ["crl.queue.top-k=8".to_owned()];
        assert!(is_set(&assignments, "crl") && is_set(&assignments, "crl.queue.top-k"));
        assert!(!is_set(&assignments, "crl.temperature") && !is_set(&assignments, "cr"));
    }

    #[test]
    fn unknown_keys_and_wrong_types_are_errors_that_name_them() {
        let message = |assignment| format!("{:#}", resolved(&[assignment]).unwrap_err());
        assert_eq!(
            message("inner.learning_rate=1"),
            "--set inner.learning_rate=1: in the configuration, at `inner.learning_rate`: unknown field `learning_rate`, \
             expected `learning-rate`; did you mean `inner.learning-rate`?"
        );
        assert!(!message("inner.xyz=1").contains("did you mean"), "{}", message("inner.xyz=1"));
        assert!(message("nam=1").ends_with("; did you mean `name`?"), "{}", message("nam=1"));
        let whole = message("inner={learning-rat=1}");
        assert!(whole.starts_with("--set inner={learning-rat=1}: in the configuration, at `inner"), "{whole}");
        let wrong = message("inner.learning-rate=fast");
        assert!(wrong.contains("at `inner.learning-rate`: invalid type: string \"fast\""), "{wrong}");
        let section = message("iner.learning-rate=1");
        assert!(section.starts_with("--set iner.learning-rate=1: ") && section.ends_with("`inner`?"), "{section}");
        assert!(message("name.x=1").contains("`name` is a value"));
        assert!(message("name").contains("no `=`"));
        let missing = resolve::<Example>(Table::new(), "test.toml", &[]).unwrap_err().to_string();
        assert!(missing.starts_with("test.toml: ") && missing.contains("missing field `name`"), "{missing}");
    }
}
