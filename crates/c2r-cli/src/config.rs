//! Configurations as the command line gives them: a file, and assignments of `--set`.

use std::path::Path;

use anyhow::Context;
use c2r_train::layers::{self, Assignment, KeyError};
use toml::Table;

use crate::exit::{self, OrExit};

/// Reads a TOML file as a table.
pub(crate) fn read(path: &Path) -> anyhow::Result<Table> {
    let text = c2r_files::read_text(path).or_exit(exit::USAGE)?;
    text.parse().with_context(|| format!("{} is not valid TOML", path.display())).or_exit(exit::USAGE)
}

/// The assignments of `--set`.
pub(crate) fn assignments(sets: &[String]) -> anyhow::Result<Vec<Assignment>> {
    let parse = |set: &String| {
        let reason = || anyhow::anyhow!("`--set {set}` has no `=`; write --set key=value");
        layers::parse_assignment(set).ok_or_else(reason).or_exit(exit::USAGE)
    };
    sets.iter().map(parse).collect()
}

/// Whether one of the assignments of `--set` gives `key`, something in it, or a section that it is in.
pub(crate) fn is_set(sets: &[String], key: &str) -> bool {
    from_set(sets, key).is_some()
}

/// Checks that the option `flag` and `--set KEY=` do not say the same thing twice.
pub(crate) fn not_both(sets: &[String], key: &str, flag: &str) -> anyhow::Result<()> {
    if is_set(sets, key) {
        return Err(exit::usage(format!("give {flag} or --set {key}=, not both")));
    }
    Ok(())
}

fn from_set<'a>(sets: &'a [String], key: &str) -> Option<&'a String> {
    sets.iter().rfind(|set| layers::concerns(set.split('=').next().unwrap_or_default().trim(), key))
}

/// A wrong key as an error of usage that says which `--set` gave it, or else `origin`.
pub(crate) fn wrong(error: &KeyError, sets: &[String], origin: &str) -> anyhow::Error {
    let from = from_set(sets, &error.key).map_or_else(|| origin.to_owned(), |set| format!("--set {set}"));
    exit::coded(exit::USAGE, anyhow::anyhow!("{from}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_key_is_traced_to_what_gave_it() {
        let error = KeyError { key: "inner.rate".into(), reason: "too high".into(), meant: None };
        let message = |sets: &[&str]| {
            let sets: Vec<String> = sets.iter().map(ToString::to_string).collect();
            wrong(&error, &sets, "test.toml").to_string()
        };
        let said = "in the configuration, at `inner.rate`: too high";
        assert_eq!(message(&["name=x"]), format!("test.toml: {said}"));
        assert_eq!(message(&["inner.rate=9", "name=x"]), format!("--set inner.rate=9: {said}"));
        assert_eq!(message(&["inner={rate=9}"]), format!("--set inner={{rate=9}}: {said}"));
        assert!(assignments(&["name".to_owned()]).unwrap_err().to_string().contains("no `=`"));
    }
}
