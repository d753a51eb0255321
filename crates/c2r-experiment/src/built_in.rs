use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use serde::{Deserialize, Serialize};
use toml::Table;

use crate::{DatasetEntry, results};

const SCHEMA_VERSION: u32 = 1;

/// Keys of an entry of the registry that decide neither a number nor where its files are looked for.
const ABOUT: [&str; 4] = ["title", "licence", "homepage", "files"];

/// What a program has compiled in: files of the checkout that it does not read again, and the version of each stage's results.
/// `c2r built-in` prints it, and who names results after the files of a checkout compares.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BuiltIn {
    schema_version: u32,
    /// By command: `distill`, `train`, `attack pgd`.
    results: BTreeMap<String, u32>,
    /// SHA-256 of what a file says, by its path from the top of the checkout.
    files: BTreeMap<String, String>,
}

impl BuiltIn {
    /// Of the program that calls it.
    ///
    /// * `attacks`: names of the attacks that it has.
    /// * `files`: path from the top of the checkout, with `/`, and text of each file that it has.
    pub fn new<'a>(
        attacks: impl IntoIterator<Item = &'a str>,
        files: impl IntoIterator<Item = (String, &'a str)>,
    ) -> Self {
        let stages = [("distill".to_owned(), results::DISTILL), ("train".to_owned(), results::TRAIN)];
        let attacks = attacks.into_iter().map(|name| (format!("attack {name}"), results::attack(name)));
        let files = files.into_iter().map(|(path, text)| {
            let digest = digest(&path, text);
            (path, digest)
        });
        Self {
            schema_version: SCHEMA_VERSION,
            results: stages.into_iter().chain(attacks).collect(),
            files: files.collect(),
        }
    }

    /// Which of the files `used` say something else in the checkout `root`, or are only on one side. Comments and the layout of a
    /// TOML file say nothing.
    pub fn changed_files<'a>(&self, root: &Path, used: &'a BTreeSet<String>) -> Vec<&'a str> {
        let here = |path: &str| Some(digest(path, &c2r_files::read_text(&root.join(path)).ok()?));
        used.iter().map(String::as_str).filter(|path| here(path).as_ref() != self.files.get(*path)).collect()
    }

    /// The commands whose results have another version in this program than in the other one.
    pub fn changed_results(&self) -> Vec<&str> {
        let here = |command: &str| match command.strip_prefix("attack ") {
            Some(name) => Some(results::attack(name)),
            None if command == "distill" => Some(results::DISTILL),
            None => (command == "train").then_some(results::TRAIN),
        };
        let is_other = |(command, version): &(&String, &u32)| here(command) != Some(**version);
        self.results.iter().filter(is_other).map(|(command, _)| command.as_str()).collect()
    }
}

/// What hashes a file by what it says.
fn digest(path: &str, text: &str) -> String {
    let table = if path.ends_with(".toml") { text.parse::<Table>().ok() } else { None };
    let says = table.map(|mut table| {
        if path == DatasetEntry::REGISTRY
            && let Some(entries) = table.get_mut("dataset").and_then(|entries| entries.as_array_mut())
        {
            entries.iter_mut().filter_map(|entry| entry.as_table_mut()).for_each(|entry| {
                entry.retain(|key, _| !ABOUT.contains(&key));
            });
        }
        table.to_string()
    });
    c2r_files::sha256_hex(says.as_deref().unwrap_or(text).as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_file_says_counts_and_how_it_says_it_does_not() {
        let root = tempfile::tempdir().unwrap();
        let write =
            |name: &str, text: &str| c2r_files::write_atomically(&root.path().join(name), text.as_bytes()).unwrap();
        let registry = "[[dataset]]\nname = \"a\"\nlicence = \"none\"\nfolders = [\"a\"]\n";
        let texts = [("p.toml", "lr = 0.01\nsteps = 2"), ("d.csv", "1,2\n"), (DatasetEntry::REGISTRY, registry)];
        let files = || texts.into_iter().map(|(name, text)| (name.to_owned(), text));
        let built_in = BuiltIn::new(["pgd", "deepfool"], files());
        texts.iter().for_each(|(name, text)| write(name, text));
        let mut used: BTreeSet<String> = texts.into_iter().map(|(name, _)| name.to_owned()).collect();
        let changed = |used: &BTreeSet<String>| built_in.changed_files(root.path(), used).join(" ");
        assert_eq!(changed(&used), "");
        write("p.toml", "# The same.\nsteps = 2\nlr = 1e-2");
        write(DatasetEntry::REGISTRY, &registry.replace("none", "MIT"));
        assert_eq!(changed(&used), "");
        write("p.toml", "lr = 0.03\nsteps = 2");
        write("d.csv", "1,3\n");
        write(DatasetEntry::REGISTRY, &registry.replace("[\"a\"]", "[\"b\"]"));
        assert_eq!(changed(&used), "d.csv data/datasets.toml p.toml");
        used = ["gone.toml", "new.toml"].map(String::from).into();
        write("new.toml", "");
        assert_eq!(changed(&used), "new.toml", "what neither side has is not another");

        assert!(built_in.changed_results().is_empty());
        let mut other = built_in.clone();
        other.results.insert("attack deepfool".to_owned(), 1);
        assert_eq!(other.changed_results(), ["attack deepfool"]);
    }
}
