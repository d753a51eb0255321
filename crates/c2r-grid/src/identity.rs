//! The name of a job: a hash over everything that decides its result.

use std::{collections::BTreeSet, fs, path::Path};

use anyhow::Context;
use c2r_run::exit;
use sha2::{Digest, Sha256};

use crate::datasets::Dataset;

/// Hex digits of a job's name; 64 bits, so that two of a million jobs share one with a chance of 3e-8.
const DIGITS: usize = 16;

/// What decides a result, part by part.
pub(crate) struct Identity {
    stage: &'static str,
    hash: Sha256,
}

impl Identity {
    /// A job of `stage`, whose numbers are those of `version` (`c2r_experiment::results`).
    pub(crate) fn new(stage: &'static str, version: u32) -> Self {
        Self { stage, hash: Sha256::new() }.part("stage", stage.as_bytes()).part("version", &version.to_le_bytes())
    }

    /// It reads what another job wrote.
    pub(crate) fn job(self, id: &str) -> Self {
        self.part("job", id.as_bytes())
    }

    /// It reads a dataset: its pixels, and what the registry says about it.
    pub(crate) fn data(self, dataset: &Dataset) -> anyhow::Result<Self> {
        let entry = serde_json::to_string(&dataset.deciding())?;
        Ok(self.part("dataset", entry.as_bytes()).part("data", dataset.contents().as_bytes()))
    }

    /// It reads a profile or a protocol, and the profiles of the checkout `root` that this one starts from. Comments and layout
    /// decide nothing.
    pub(crate) fn settings(mut self, path: &Path, root: &Path) -> anyhow::Result<Self> {
        let (mut next, mut read) = (Some(path.to_owned()), BTreeSet::new());
        // A base that does not exist, and a profile that builds on itself, are errors of `c2r`.
        while let Some(path) =
            next.filter(|path| read.is_empty() || path.is_file()).filter(|path| read.insert(path.clone()))
        {
            let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
            let table: toml::Table =
                text.parse().map_err(|error| exit::usage(format!("{}: {error}", path.display())))?;
            self = self.part("profile", serde_json::to_string(&table)?.as_bytes());
            next = base(&table).map(|base| root.join(base));
        }
        Ok(self)
    }

    /// Its arguments. Where a profile is part of it, the path to it is not.
    pub(crate) fn words(mut self, words: &[String]) -> Self {
        let mut rest = words.iter();
        while let Some(word) = rest.next() {
            if word == "--config" {
                rest.next();
                continue;
            }
            self = self.part("word", word.as_bytes());
        }
        self
    }

    /// `distill-0123456789abcdef`.
    pub(crate) fn finish(self) -> String {
        format!("{}-{}", self.stage, &hex::encode(self.hash.finalize())[..DIGITS])
    }

    /// Lengths keep parts from running together.
    fn part(mut self, name: &str, bytes: &[u8]) -> Self {
        for bytes in [name.as_bytes(), bytes] {
            self.hash.update((bytes.len() as u64).to_le_bytes());
            self.hash.update(bytes);
        }
        self
    }
}

/// The profile that a profile starts from (`base = "NAME"`), wherever that one lies: its path in the checkout.
pub(crate) fn base(profile: &toml::Table) -> Option<String> {
    Some(format!("data/profiles/{}.toml", profile.get("base")?.as_str()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(version: u32, words: &[&str]) -> String {
        let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
        Identity::new("distill", version).words(&words).finish()
    }

    #[test]
    fn every_part_counts_and_parts_do_not_run_together() {
        assert_eq!(id(1, &["a"]).len(), "distill-".len() + DIGITS);
        assert_eq!(id(1, &["a", "b"]), id(1, &["a", "b"]));
        assert_ne!(id(1, &["ab", "c"]), id(1, &["a", "bc"]));
        assert_ne!(id(1, &["a", "b"]), id(1, &["b", "a"]));
        assert_ne!(id(1, &["a"]), id(2, &["a"]), "another version of the results");
        assert_eq!(id(1, &["a", "--config", "x.toml"]), id(1, &["a", "--config", "y.toml"]));
        let other = Identity::new("train", 1).words(&["a".into()]).finish();
        assert_ne!(other.trim_start_matches("train-"), id(1, &["a"]).trim_start_matches("distill-"));
    }
}
