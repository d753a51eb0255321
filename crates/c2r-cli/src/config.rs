//! Configuration in layers: option, then `--set`, then file, then what the dataset says.

use std::path::Path;

use anyhow::{Context, bail};
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

/// Applies `key.with.dots=value`. The value is TOML; what is not TOML is a text, so that
/// `--set labels=soft` needs no quotes within quotes.
pub(crate) fn set(table: &mut Table, assignment: &str) -> anyhow::Result<()> {
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

/// The table as a checked type; unknown and missing keys are errors that name the key.
pub(crate) fn resolve<T: DeserializeOwned>(table: Table, origin: &str) -> anyhow::Result<T> {
    // Through text, so that errors quote the line they are about.
    let text = toml::to_string(&table).context("the configuration cannot be written as TOML")?;
    toml::from_str(&text)
        .with_context(|| format!("the configuration from {origin} and the command line does not resolve"))
        .or_exit(exit::USAGE)
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
        for assignment in assignments {
            set(&mut table, assignment)?;
        }
        resolve(table, "test")
    }

    #[test]
    fn assignments_override_and_texts_need_no_quotes() {
        let example = resolved(&["name=soft", "inner.learning-rate=0.5"]).unwrap();
        assert_eq!((example.name.as_str(), example.inner.learning_rate), ("soft", 0.5));
    }

    #[test]
    fn unknown_keys_and_wrong_types_are_errors_that_name_them() {
        let message = |assignment| format!("{:#}", resolved(&[assignment]).unwrap_err());
        assert!(message("inner.learning_rate=1").contains("learning_rate"), "{}", message("inner.learning_rate=1"));
        assert!(message("inner.learning-rate=fast").contains("fast"), "{}", message("inner.learning-rate=fast"));
        assert!(message("name.x=1").contains("`name` is a value"));
        assert!(message("name").contains("no `=`"));
    }
}
