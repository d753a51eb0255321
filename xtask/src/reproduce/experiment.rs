//! An experiment file (`data/paper/*.toml`): the grid of one table, at several scales.

use std::{collections::BTreeMap, fmt, fs, path::Path};

use anyhow::Context;
use serde::Deserialize;

use crate::{checkout::Checkout, exit};

/// Where the experiment files lie.
const FOLDER: &str = "data/paper";

/// What this program reads of an experiment file. Labels, order and published numbers are for `c2r table`.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct Experiment {
    #[serde(rename = "schema_version")]
    schema_version: u32,
    /// Name, the same as the file's.
    pub(crate) name: String,
    /// Heading.
    pub(crate) title: String,
    /// Methods by name.
    pub(crate) methods: BTreeMap<String, Method>,
    /// Grids by name.
    pub(crate) scales: BTreeMap<String, Scale>,
}

/// How the training images of a row are made.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct Method {
    /// Distilled or all real images.
    pub(crate) kind: Kind,
    /// Configuration of the distillation, from the checkout's top.
    pub(crate) profile: Option<String>,
    /// `--set` for `c2r distill`.
    #[serde(default)]
    pub(crate) set: Vec<String>,
}

/// Whether anything is distilled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Kind {
    /// Distil, then train on that.
    Distill,
    /// Train on all real images: the upper reference.
    Full,
}

/// A grid of runs.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) struct Scale {
    /// What it is for.
    pub(crate) about: String,
    /// Methods.
    pub(crate) methods: Vec<String>,
    /// Datasets.
    pub(crate) datasets: Vec<String>,
    /// Images per class.
    pub(crate) ipcs: Vec<u32>,
    /// Seeds, for distillation and training alike.
    pub(crate) seeds: Vec<u64>,
    /// Downstream protocols.
    pub(crate) protocols: Vec<String>,
    /// Attacks.
    pub(crate) attacks: Vec<String>,
    /// Norm of the attacks.
    pub(crate) norm: String,
    /// Radius of the attacks.
    pub(crate) epsilon: String,
    /// `--set` for every `c2r distill`.
    #[serde(default)]
    pub(crate) distill_set: Vec<String>,
    /// `--set` for every `c2r train`.
    #[serde(default)]
    pub(crate) train_set: Vec<String>,
    /// Arguments for every `c2r attack`.
    #[serde(default)]
    pub(crate) attack_args: Vec<String>,
    /// Network of every command; the dataset's own unless given.
    pub(crate) model: Option<String>,
    /// Use only the first so many training images of each class.
    pub(crate) train_per_class: Option<u32>,
    /// Attack only the first so many test images.
    pub(crate) n_test: Option<u32>,
    /// CPU threads of each command; all cores unless given. As many commands run at once as fit.
    pub(crate) threads: Option<usize>,
    /// Settings for a part of the grid, after the ones above.
    #[serde(default)]
    pub(crate) overrides: Vec<Override>,
}

/// Settings for the cells that match every given key.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) struct Override {
    dataset: Option<String>,
    ipc: Option<u32>,
    method: Option<String>,
    /// Only trained and attacked under this protocol; distillation does not know protocols.
    protocol: Option<String>,
    /// `--set` for `c2r distill`.
    #[serde(default)]
    pub(crate) distill_set: Vec<String>,
    /// `--set` for `c2r train`.
    #[serde(default)]
    pub(crate) train_set: Vec<String>,
    /// Arguments for `c2r attack`.
    #[serde(default)]
    pub(crate) attack_args: Vec<String>,
}

impl Override {
    /// Whether it is for these cells; `protocol` is `None` for distillation.
    pub(crate) fn matches(&self, dataset: &str, ipc: Option<u32>, method: &str, protocol: Option<&str>) -> bool {
        self.dataset.as_deref().is_none_or(|wanted| wanted == dataset)
            && self.ipc.is_none_or(|wanted| Some(wanted) == ipc)
            && self.method.as_deref().is_none_or(|wanted| wanted == method)
            && self.protocol.as_deref().is_none_or(|wanted| Some(wanted) == protocol)
    }
}

impl Experiment {
    /// Reads `data/paper/NAME.toml`.
    ///
    /// # Errors
    /// If there is none of that name (naming those there are) or it is not an experiment file.
    pub(crate) fn read(checkout: &Checkout, name: &str) -> anyhow::Result<Self> {
        let path = checkout.root().join(Self::path(name));
        let there = names(checkout)?;
        if !there.iter().any(|other| other == name) {
            return Err(exit::usage(format!("there is no experiment `{name}`; there are: {}", there.join(", "))));
        }
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        Self::parse(&text, name).map_err(|error| exit::usage(format!("{}: {error}", path.display())))
    }

    /// Its file, from the checkout's top.
    pub(crate) fn path(name: &str) -> String {
        format!("{FOLDER}/{name}.toml")
    }

    fn parse(text: &str, name: &str) -> Result<Self, String> {
        let experiment: Self = toml::from_str(text).map_err(|error| error.to_string())?;
        if experiment.schema_version != 1 {
            return Err(format!("schema_version is {}, but this xtask reads 1", experiment.schema_version));
        }
        if experiment.name != name {
            return Err(format!("its name is `{}`, not that of the file", experiment.name));
        }
        for (method, definition) in &experiment.methods {
            if (definition.kind == Kind::Distill) != definition.profile.is_some() {
                return Err(format!("methods.{method}: a profile belongs to `kind = \"distill\"`, and to that only"));
            }
        }
        for (scale, grid) in &experiment.scales {
            if grid.threads == Some(0) {
                return Err(format!("scales.{scale}.threads must be at least 1"));
            }
            for method in &grid.methods {
                experiment.method(method).map_err(|error| format!("scales.{scale}.methods: {error}"))?;
            }
        }
        Ok(experiment)
    }

    /// A grid by name.
    ///
    /// # Errors
    /// The names there are.
    pub(crate) fn scale(&self, name: &str) -> anyhow::Result<&Scale> {
        self.scales.get(name).ok_or_else(|| exit::usage(unknown("scale", name, self.scales.keys())))
    }

    /// A method by name.
    ///
    /// # Errors
    /// The names there are.
    pub(crate) fn method(&self, name: &str) -> Result<&Method, String> {
        self.methods.get(name).ok_or_else(|| unknown("method", name, self.methods.keys()))
    }
}

/// The experiments of the checkout, sorted.
///
/// # Errors
/// If the folder cannot be read.
pub(crate) fn names(checkout: &Checkout) -> anyhow::Result<Vec<String>> {
    let folder = checkout.root().join(FOLDER);
    let entries = fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))?;
    let mut names = Vec::new();
    for entry in entries {
        let path = entry?.path();
        if let (Some(stem), Some("toml")) = (stem(&path), path.extension().and_then(|text| text.to_str())) {
            names.push(stem.to_owned());
        }
    }
    names.sort();
    Ok(names)
}

fn stem(path: &Path) -> Option<&str> {
    path.file_stem().and_then(|text| text.to_str())
}

/// `there is no scale `x`; there are: a, b`.
pub(crate) fn unknown<T: fmt::Display>(what: &str, name: &str, there: impl IntoIterator<Item = T>) -> String {
    let there: Vec<String> = there.into_iter().map(|item| item.to_string()).collect();
    format!("there is no {what} `{name}`; there are: {}", there.join(", "))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Two distilled methods and the reference, on two datasets.
    pub(crate) const EXAMPLE: &str = r#"
schema_version = 1
name = "example"
title = "An example"
source = "nobody"
tolerance = 2.0
[methods.full]
label = "all real images"
kind = "full"
[methods.class-mean]
label = "class means"
kind = "distill"
profile = "data/profiles/faithful.toml"
set = ["crl=false"]
[methods.c2r]
label = "C2R"
kind = "distill"
profile = "data/profiles/faithful.toml"
[scales.quick]
about = "seconds"
methods = ["full", "class-mean", "c2r"]
datasets = ["digits", "cifar10"]
ipcs = [1, 10]
seeds = [0, 1, 2]
protocols = ["natural", "pgd-at"]
attacks = ["fgsm", "pgd"]
norm = "linf"
epsilon = "0.1"
distill-set = ["iterations=30"]
train-set = ["steps=20"]
model = "ConvNet-D3-W32-IN"
train-per-class = 500
n-test = 100
threads = 1
[[scales.quick.overrides]]
dataset = "cifar10"
ipc = 10
distill-set = ["eta=0.6"]
[[published]]
dataset = "cifar10"
ipc = 10
method = "c2r"
column = "pgd"
value = 29.12
source = "table 2"
"#;

    pub(crate) fn example() -> Experiment {
        Experiment::parse(EXAMPLE, "example").unwrap()
    }

    #[test]
    fn mistakes_are_named() {
        let check = |from: &str, to: &str, message: &str| {
            assert!(EXAMPLE.contains(from));
            let error = Experiment::parse(&EXAMPLE.replacen(from, to, 1), "example").unwrap_err();
            assert!(error.contains(message), "{error}");
        };
        check("schema_version = 1", "schema_version = 7", "schema_version is 7");
        check("name = \"example\"", "name = \"other\"", "its name is `other`");
        check("kind = \"full\"", "kind = \"fully\"", "unknown variant `fully`");
        check("kind = \"full\"", "kind = \"distill\"", "methods.full: a profile belongs");
        check(
            "[\"full\", \"class-mean\", \"c2r\"]",
            "[\"dm\"]",
            "there is no method `dm`; there are: c2r, class-mean, full",
        );
        check("train-set", "train-sett", "unknown field `train-sett`");
        check("threads = 1", "threads = 0", "threads must be at least 1");
        assert!(exit::message(&example().scale("huge").unwrap_err()).contains("`huge`; there are: quick"));
    }

    #[test]
    fn every_experiment_of_the_repository_is_read() {
        let checkout = Checkout::find().unwrap();
        let names = names(&checkout).unwrap();
        assert!(names.contains(&"table2".to_owned()));
        for name in names {
            let experiment = Experiment::read(&checkout, &name).unwrap();
            for definition in experiment.methods.values() {
                if let Some(profile) = &definition.profile {
                    assert!(checkout.root().join(profile).is_file(), "{name}: no {profile}");
                }
            }
        }
    }
}
