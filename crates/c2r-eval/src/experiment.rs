use std::{collections::BTreeMap, fs, path::Path};

use c2r_base::{Epsilon, Norm, artifact::ArtifactError};
use serde::Deserialize;

use crate::EvalError;

/// One table or figure of a paper: a file in `data/paper/`. `cargo xtask reproduce` expands the grid and runs it; this
/// crate takes the labels, the order and the published numbers from it. The two share the file and no code.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Experiment {
    /// [`Experiment::SCHEMA_VERSION`].
    #[serde(rename = "schema_version")]
    pub schema_version: u32,
    /// Short name, e.g. `table2`.
    pub name: String,
    /// Heading.
    pub title: String,
    /// Where the published numbers are from.
    pub source: String,
    /// Percentage points; a mean farther than this from the published one is marked, at
    /// [`Experiment::PAPER_SCALE`] only.
    pub tolerance: f64,
    /// The method that the others are compared with, seed by seed.
    #[serde(default)]
    pub baseline: Option<String>,
    /// Methods by name.
    pub methods: BTreeMap<String, Method>,
    /// Grids by name: `quick`, `small`, `paper`.
    pub scales: BTreeMap<String, Scale>,
    /// Published numbers.
    #[serde(default)]
    pub published: Vec<Published>,
}

/// How the training images of a row are made.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Method {
    /// Name in tables.
    pub label: String,
    /// Synthetic images or all of the real ones.
    pub kind: MethodKind,
    /// Profile for `c2r distill`, a path from the repository's root.
    #[serde(default)]
    pub profile: Option<String>,
    /// `--set` arguments for `c2r distill`.
    #[serde(default)]
    pub set: Vec<String>,
}

/// Whether anything is distilled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MethodKind {
    /// `c2r distill`, then training on its images.
    Distill,
    /// Training on the whole real training set: the upper reference.
    Full,
}

/// A grid of runs.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Scale {
    /// What it is for and how long it takes.
    pub about: String,
    /// Methods, in the order of the table.
    pub methods: Vec<String>,
    /// Datasets, in the order of the table.
    pub datasets: Vec<String>,
    /// Images per class.
    pub ipcs: Vec<usize>,
    /// Seeds; each is the seed of the distillation and of the training.
    pub seeds: Vec<u64>,
    /// Downstream protocols, in the order of the table.
    pub protocols: Vec<String>,
    /// Attacks, in the order of the columns.
    pub attacks: Vec<String>,
    /// Norm of the attacks.
    pub norm: Norm,
    /// Radius of the attacks, pixel units.
    pub epsilon: Epsilon,
    /// `--set` arguments for every distillation.
    #[serde(default)]
    pub distill_set: Vec<String>,
    /// `--set` arguments for every training.
    #[serde(default)]
    pub train_set: Vec<String>,
    /// Further arguments for every attack.
    #[serde(default)]
    pub attack_args: Vec<String>,
    /// Network of every command, e.g. `ConvNet-D3-W32-IN`; the dataset's own unless given.
    #[serde(default)]
    pub model: Option<String>,
    /// Use only the first so many training images of each class.
    #[serde(default)]
    pub train_per_class: Option<usize>,
    /// Attack only the first so many test images.
    #[serde(default)]
    pub n_test: Option<usize>,
    /// CPU threads of each command.
    #[serde(default)]
    pub threads: Option<usize>,
    /// Settings for a part of the grid, after the ones above.
    #[serde(default)]
    pub overrides: Vec<Override>,
}

/// Settings for the cells that match every given key.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Override {
    /// Dataset.
    #[serde(default)]
    pub dataset: Option<String>,
    /// Images per class.
    #[serde(default)]
    pub ipc: Option<usize>,
    /// Method.
    #[serde(default)]
    pub method: Option<String>,
    /// Only trained and attacked under this protocol.
    #[serde(default)]
    pub protocol: Option<String>,
    /// `--set` arguments for `c2r distill`.
    #[serde(default)]
    pub distill_set: Vec<String>,
    /// `--set` arguments for `c2r train`.
    #[serde(default)]
    pub train_set: Vec<String>,
    /// Further arguments for `c2r attack`.
    #[serde(default)]
    pub attack_args: Vec<String>,
}

/// A number from the paper.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Published {
    /// Dataset.
    pub dataset: String,
    /// Images per class.
    pub ipc: usize,
    /// Method, a key of [`Experiment::methods`].
    pub method: String,
    /// Column: `clean`, an attack's name, `mean-robust` or `drop-rate`.
    pub column: String,
    /// Percent.
    pub value: f64,
    /// Where it stands, e.g. `table 2`.
    pub source: String,
    /// The protocol it was measured under; where the paper does not say, it stands beside every protocol's number.
    #[serde(default)]
    pub protocol: Option<String>,
    /// The radius it was measured at (Linf); 2/255 unless given.
    #[serde(default)]
    pub epsilon: Option<Epsilon>,
    /// For `mean-robust`: the attacks it is the mean of. Compared only with a mean over the same ones.
    #[serde(default)]
    pub over: Vec<String>,
}

impl Published {
    /// The radius it was measured at.
    pub fn epsilon(&self) -> Epsilon {
        self.epsilon.unwrap_or(Epsilon::of_255(2.0))
    }
}

impl Experiment {
    /// The version of the file format that this crate reads.
    pub const SCHEMA_VERSION: u32 = 1;
    /// The only scale whose numbers must agree with the published ones.
    pub const PAPER_SCALE: &str = "paper";

    /// Reads and checks an experiment file.
    ///
    /// # Errors
    /// [`EvalError::Artifact`] or [`EvalError::Experiment`], naming the file and the key.
    pub fn read(path: &Path) -> Result<Self, EvalError> {
        let text = fs::read_to_string(path).map_err(|source| ArtifactError::Io {
            action: "read",
            path: path.to_owned(),
            source,
        })?;
        let experiment: Self = toml::from_str(&text).map_err(|error| EvalError::experiment(path, error.to_string()))?;
        experiment.check().map_err(|reason| EvalError::experiment(path, reason))?;
        Ok(experiment)
    }

    /// The grid called `name`.
    ///
    /// # Errors
    /// [`EvalError::Experiment`] with the names there are.
    pub fn scale(&self, name: &str) -> Result<&Scale, EvalError> {
        self.scales.get(name).ok_or_else(|| {
            let names: Vec<&str> = self.scales.keys().map(String::as_str).collect();
            EvalError::experiment(
                Path::new(&self.name),
                format!("there is no scale `{name}`; it has {}", names.join(", ")),
            )
        })
    }

    fn check(&self) -> Result<(), String> {
        if self.schema_version != Self::SCHEMA_VERSION {
            return Err(format!("schema_version is {}, this c2r reads {}", self.schema_version, Self::SCHEMA_VERSION));
        }
        if !(self.tolerance.is_finite() && self.tolerance > 0.0) {
            return Err(format!("tolerance must be a positive number of points, got {}", self.tolerance));
        }
        let known = |method: &str, place: &str| {
            if self.methods.contains_key(method) {
                return Ok(());
            }
            let names: Vec<&str> = self.methods.keys().map(String::as_str).collect();
            Err(format!("{place}: there is no method `{method}`; [methods] has {}", names.join(", ")))
        };
        if let Some(baseline) = &self.baseline {
            known(baseline, "baseline")?;
        }
        for (name, scale) in &self.scales {
            for method in &scale.methods {
                known(method, &format!("scales.{name}.methods"))?;
            }
            for (key, empty) in [
                ("methods", scale.methods.is_empty()),
                ("datasets", scale.datasets.is_empty()),
                ("ipcs", scale.ipcs.is_empty()),
                ("seeds", scale.seeds.is_empty()),
                ("protocols", scale.protocols.is_empty()),
            ] {
                if empty {
                    return Err(format!("scales.{name}.{key} is empty"));
                }
            }
        }
        for (position, number) in self.published.iter().enumerate() {
            if !(0.0..=100.0).contains(&number.value) {
                return Err(format!("published number {} is {}, not a percentage", position + 1, number.value));
            }
            if !number.over.is_empty() && number.column != crate::table::MEAN_ROBUST {
                return Err(format!("published number {}: `over` belongs to the column `mean-robust`", position + 1));
            }
            if self.published[..position].iter().any(|other| other.cell() == number.cell()) {
                return Err(format!(
                    "published twice: {} ipc {} {} {}",
                    number.dataset, number.ipc, number.method, number.column
                ));
            }
        }
        Ok(())
    }
}

impl Published {
    fn cell(&self) -> (&str, usize, &str, &str, Option<&str>, String) {
        (
            &self.dataset,
            self.ipc,
            &self.method,
            &self.column,
            self.protocol.as_deref(),
            format!("{} {:?}", self.epsilon(), self.over),
        )
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// One dataset, two distilled methods and the reference.
    pub(crate) const EXAMPLE: &str = r#"
schema_version = 1
name = "table9"
title = "An example"
source = "Nobody 2026"
tolerance = 2.0
baseline = "class-mean"

[methods.full]
label = "all real images"
kind = "full"

[methods.class-mean]
label = "class means"
kind = "distill"
profile = "data/profiles/faithful.toml"
set = ["crl=false"]

[methods.c2r]
label = "C²R"
kind = "distill"
profile = "data/profiles/faithful.toml"

[scales.quick]
about = "seconds"
methods = ["full", "class-mean", "c2r"]
datasets = ["cifar10"]
ipcs = [10]
seeds = [0, 1, 2]
protocols = ["natural", "pgd-at"]
attacks = ["fgsm", "pgd"]
norm = "linf"
epsilon = "2/255"
distill-set = ["iterations=300"]
threads = 1
[[scales.quick.overrides]]
dataset = "cifar10"
ipc = 10
distill-set = ["eta=0.6"]

[scales.paper]
about = "weeks"
methods = ["full", "class-mean", "c2r"]
datasets = ["cifar10"]
ipcs = [10]
seeds = [0, 1, 2]
protocols = ["natural"]
attacks = ["fgsm", "pgd"]
norm = "linf"
epsilon = "2/255"

[[published]]
dataset = "cifar10"
ipc = 10
method = "c2r"
column = "pgd"
value = 29.12
source = "table 2"

[[published]]
dataset = "cifar10"
ipc = 10
method = "c2r"
column = "mean-robust"
value = 28.41
source = "table 4"
over = ["fgsm", "pgd", "cw"]
"#;

    fn message(text: &str) -> String {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("table9.toml");
        fs::write(&path, text).unwrap();
        let message = Experiment::read(&path).unwrap_err().to_string();
        assert!(message.contains("table9.toml"), "{message}");
        message
    }

    #[test]
    fn the_example_is_read() {
        let experiment: Experiment = toml::from_str(EXAMPLE).unwrap();
        experiment.check().unwrap();
        assert_eq!(experiment.scale("quick").unwrap().seeds, [0, 1, 2]);
        assert_eq!(experiment.methods["full"].kind, MethodKind::Full);
        assert_eq!(experiment.published[0].epsilon(), Epsilon::of_255(2.0));
        let message = experiment.scale("huge").unwrap_err().to_string();
        assert!(message.contains("`huge`; it has paper, quick"), "{message}");
    }

    #[test]
    fn mistakes_are_named() {
        let check = |from: &str, to: &str, part: &str| {
            assert!(EXAMPLE.contains(from));
            let message = message(&EXAMPLE.replacen(from, to, 1));
            assert!(message.contains(part), "{message}");
        };
        check("tolerance", "tolerence", "tolerence");
        check("schema_version = 1", "schema_version = 2", "schema_version is 2");
        check("tolerance = 2.0", "tolerance = 0.0", "positive number of points");
        check("baseline = \"class-mean\"", "baseline = \"dm\"", "baseline: there is no method `dm`");
        check(
            "\"class-mean\", \"c2r\"]",
            "\"class-means\", \"c2r\"]",
            "no method `class-means`; [methods] has c2r, class-mean, full",
        );
        check("seeds = [0, 1, 2]", "seeds = []", "seeds is empty");
        check("epsilon = \"2/255\"", "epsilon = \"2/0\"", "not a radius");
        check("value = 29.12", "value = 129.12", "published number 1 is 129.12");
        check("column = \"mean-robust\"", "column = \"pgd\"", "`over` belongs to the column `mean-robust`");
        check(
            "column = \"pgd\"\nvalue",
            "column = \"mean-robust\"\nover = [\"fgsm\", \"pgd\", \"cw\"]\nvalue",
            "published twice: cifar10 ipc 10 c2r mean-robust",
        );
        check("kind = \"full\"", "kind = \"all\"", "unknown variant `all`");
    }

    #[test]
    fn every_experiment_of_the_repository_is_read() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../data/paper");
        for entry in fs::read_dir(folder).into_iter().flatten() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|extension| extension == "toml") {
                Experiment::read(&path).unwrap();
            }
        }
    }
}
