use std::{collections::BTreeMap, path::Path};

use serde::Deserialize;
use toml::Table;

use crate::{ExperimentError, Part, Selection, Subgrid, common::merge, unknown};

/// Name of the file next to the experiments that holds what they share: `[methods]`, and defaults of their scales.
pub const COMMON: &str = "common.toml";

/// The most methods left out of a grid that a message names; of more it says how many.
const MOST_NAMED: usize = 8;

/// One table or figure of a paper.
///
/// What is in [`COMMON`] next to the file belongs to it too: all methods, and for a scale that the file has, every
/// key that it does not give itself (`overrides` are joined, the common ones first). Experiments that agree there ask for
/// the same commands, which are then run once.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Experiment {
    /// [`Experiment::SCHEMA_VERSION`].
    #[serde(rename = "schema_version")]
    pub schema_version: u32,
    /// Short name, e.g. `table2`: that of the file.
    pub name: String,
    /// Heading.
    pub title: String,
    /// Where the published numbers are from.
    pub source: String,
    /// Percentage points; a mean farther than this from the published one is marked, at
    /// [`Experiment::PAPER_SCALE`] only.
    pub tolerance: f64,
    /// The method that the others are compared with, seed by seed.
    pub baseline: Option<String>,
    /// What of the paper's experiment cannot be run here yet, one sentence each.
    #[serde(default)]
    pub missing: Vec<String>,
    /// Methods by name.
    #[serde(default)]
    pub methods: BTreeMap<String, Method>,
    /// Grids by name: `tiny`, `quick`, `small`, `medium`, `paper`.
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
    pub profile: Option<String>,
    /// `false` for a method of the paper that c2r does not have: it has no profile, and its rows are left out and named.
    #[serde(default = "yes")]
    pub implemented: bool,
    /// `--set` arguments for `c2r distill`.
    #[serde(default)]
    pub set: Vec<String>,
}

fn yes() -> bool {
    true
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
    /// What it is for.
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
    /// Which step's network a training keeps: `last` unless given, `held-out`, or `best-test`, which marks every output.
    pub select: Option<Selection>,
    /// Attacks, in the order of the columns.
    pub attacks: Vec<String>,
    /// Norm of the attacks: `linf`, `l2` or `l1`.
    pub norm: String,
    /// Radii of the attacks, pixel units, e.g. `2/255`; each makes a table.
    pub epsilons: Vec<String>,
    /// `--set` arguments for every distillation.
    #[serde(default)]
    pub distill_set: Vec<String>,
    /// `--set` arguments for every training.
    #[serde(default)]
    pub train_set: Vec<String>,
    /// Options of attacks, `ATTACK.OPTION=VALUE`; an attack is given its own.
    #[serde(default)]
    pub attack_set: Vec<String>,
    /// Network of every command, e.g. `ConvNet-D3-W32-IN`; the dataset's own unless given.
    pub model: Option<String>,
    /// Downstream networks, each of which makes a table; [`Scale::model`] unless given.
    #[serde(default)]
    pub train_models: Vec<String>,
    /// Use only the first N training images of each class.
    pub train_per_class: Option<usize>,
    /// Attack only N test images.
    pub n_test: Option<usize>,
    /// Judge on the training images that [`train_per_class`](Self::train_per_class) leaves, instead of on test images: for
    /// choosing settings. A file sets it if its numbers decide anything; an option of `cargo xtask reproduce` does the same.
    #[serde(default)]
    pub held_out: bool,
    /// What [`Experiment::change_grid`] and [`Experiment::ask_for`] have changed, one sentence each; empty for the grid of the file.
    #[serde(skip)]
    pub changes: Vec<String>,
    /// The part that [`Experiment::ask_for`] names; all of it for the grid of the file. Only its rows can be missing.
    #[serde(skip)]
    pub asked: Subgrid,
    /// CPU threads of each command; all cores unless given. As many commands run at once as fit.
    pub threads: Option<usize>,
    /// Whether the whole grid is run for one seed before the next seed begins. It changes the order, and nothing else.
    #[serde(default)]
    pub seed_by_seed: bool,
    /// Parts of the grid that are run first, in this order; what is in none of them comes last. Unless `seed-by-seed`, a part
    /// has all seeds. Without it, each distilled set is trained on and attacked before the next one is made. It changes the
    /// order, and nothing else.
    #[serde(default)]
    pub first: Vec<Part>,
    /// Settings for a part of the grid, after the ones above.
    #[serde(default)]
    pub overrides: Vec<Override>,
}

/// Settings for the cells that match every given key.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Override {
    /// Dataset.
    pub dataset: Option<String>,
    /// Images per class.
    pub ipc: Option<usize>,
    /// Method.
    pub method: Option<String>,
    /// Only trained and attacked under this protocol.
    pub protocol: Option<String>,
    /// `--set` arguments for `c2r distill`.
    pub distill_set: Vec<String>,
    /// `--set` arguments for `c2r train`.
    pub train_set: Vec<String>,
    /// Options of attacks.
    pub attack_set: Vec<String>,
}

/// A number from the paper.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Published {
    /// Dataset.
    pub dataset: String,
    /// Images per class.
    pub ipc: usize,
    /// Method; one that is not a key of [`Experiment::methods`] is kept for the record.
    pub method: String,
    /// Column: `clean`, an attack's name, `mean-robust` or `drop-rate`.
    pub column: String,
    /// Percent.
    pub value: f64,
    /// Where it stands, e.g. `table 2`.
    pub source: String,
    /// The protocol it was measured under; where the paper does not say, it is shown next to every protocol's number.
    pub protocol: Option<String>,
    /// The radius it was measured at (Linf); 2/255 unless given.
    pub epsilon: Option<String>,
    /// For `mean-robust`: the attacks it is the mean of. Compared only with a mean over the same ones.
    #[serde(default)]
    pub over: Vec<String>,
}

/// The column that [`Published::over`] belongs to.
const MEAN_ROBUST: &str = "mean-robust";

/// The radius of published numbers that name none.
const FIELD_EPSILON: &str = "2/255";

impl Published {
    /// The radius it was measured at, pixel units.
    pub fn radius(&self) -> f64 {
        radius(self.epsilon()).expect("checked when the file was read")
    }

    fn epsilon(&self) -> &str {
        self.epsilon.as_deref().unwrap_or(FIELD_EPSILON)
    }

    fn cell(&self) -> (&str, usize, &str, &str, Option<&str>, &str, &[String]) {
        let protocol = self.protocol.as_deref();
        (&self.dataset, self.ipc, &self.method, &self.column, protocol, self.epsilon(), &self.over)
    }
}

impl Scale {
    /// Checks that the grid has every value of `part`: one that it does not have is a mistake and not an empty selection.
    ///
    /// # Errors
    /// The first value that is not there, with those that are.
    pub fn check_part(&self, part: &Subgrid) -> Result<(), String> {
        fn texts<T: ToString>(values: &[T]) -> Vec<String> {
            values.iter().map(T::to_string).collect()
        }
        for (key, values) in part.values() {
            let there = match key {
                "dataset" => self.datasets.clone(),
                "ipc" => [texts(&self.ipcs), texts(&[Subgrid::ALL_IMAGES])].concat(),
                "method" => self.methods.clone(),
                "seed" => texts(&self.seeds),
                "protocol" => self.protocols.clone(),
                _ => self.attacks.clone(),
            };
            if let Some(value) = values.iter().find(|value| !there.contains(value)) {
                return Err(unknown(key, value, there));
            }
        }
        Ok(())
    }

    /// The radii of the attacks, pixel units.
    pub fn radii(&self) -> Vec<f64> {
        self.epsilons.iter().map(|text| radius(text).expect("checked when the file was read")).collect()
    }

    /// What to give `c2r train --select`; `None` for the last step, which is the default.
    pub fn selection(&self) -> Option<Selection> {
        self.select.filter(|select| !select.is_last())
    }

    /// Downstream networks; `None` is the dataset's own.
    pub fn downstream(&self) -> Vec<Option<&str>> {
        match self.train_models.as_slice() {
            [] => vec![self.model.as_deref()],
            models => models.iter().map(|model| Some(model.as_str())).collect(),
        }
    }
}

impl Override {
    /// Whether it is for these cells; `protocol` is `None` for distillation, which does not know protocols.
    pub fn matches(&self, dataset: &str, ipc: Option<usize>, method: &str, protocol: Option<&str>) -> bool {
        self.dataset.as_deref().is_none_or(|wanted| wanted == dataset)
            && self.ipc.is_none_or(|wanted| Some(wanted) == ipc)
            && self.method.as_deref().is_none_or(|wanted| wanted == method)
            && self.protocol.as_deref().is_none_or(|wanted| Some(wanted) == protocol)
    }
}

/// A radius in pixel units: `2/255` or `0.5` as a positive number below 1e9; `None` for anything else.
pub fn radius(text: &str) -> Option<f64> {
    let (above, below) = text.split_once('/').unwrap_or((text, "1"));
    let below = below.trim().parse::<f64>().ok()?;
    let value = above.trim().parse::<f64>().ok()? / below;
    (below > 0.0 && value > 0.0 && value < 1e9).then_some(value)
}

impl Experiment {
    /// The version of the file format that this crate reads.
    pub const SCHEMA_VERSION: u32 = 2;
    /// The only scale whose numbers must agree with the published ones.
    pub const PAPER_SCALE: &str = "paper";

    /// The word for every method of [`Experiment::PAPER_SCALE`] in [`Experiment::change_grid`].
    pub const ALL_METHODS: &str = "all";

    /// Reads and checks an experiment file, with [`COMMON`] next to it where there is one.
    ///
    /// # Errors
    /// [`ExperimentError`], naming the file and the key.
    pub fn read(path: &Path) -> Result<Self, ExperimentError> {
        Self::read_with(path, &path.with_file_name(COMMON))
    }

    /// The same with another file in the place of [`COMMON`]; none if it is not there.
    ///
    /// # Errors
    /// As [`Experiment::read`].
    pub fn read_with(path: &Path, common: &Path) -> Result<Self, ExperimentError> {
        let mut file = table(path)?;
        let own: OwnScales = file
            .clone()
            .try_into()
            .map_err(|error: toml::de::Error| ExperimentError::wrong(path, error.to_string()))?;
        if common.is_file() {
            merge(&mut file, table(common)?, Self::SCHEMA_VERSION)
                .map_err(|reason| ExperimentError::wrong(common, reason))?;
        }
        let experiment: Self =
            file.try_into().map_err(|error: toml::de::Error| ExperimentError::wrong(path, error.to_string()))?;
        experiment
            .check()
            .and_then(|()| own.check(&experiment))
            .map_err(|reason| ExperimentError::wrong(path, reason))?;
        if path.file_stem().is_none_or(|stem| stem != experiment.name.as_str()) {
            return Err(ExperimentError::wrong(
                path,
                format!("its name is `{}`, not that of the file", experiment.name),
            ));
        }
        Ok(experiment)
    }

    /// The grid called `name`.
    ///
    /// # Errors
    /// [`ExperimentError::Unknown`] with the names there are.
    pub fn scale(&self, name: &str) -> Result<&Scale, ExperimentError> {
        self.scales.get(name).ok_or_else(|| self.unknown("scale", name, self.scales.keys()))
    }

    /// Replaces seeds and methods of the grid called `scale` and remembers it in [`Scale::changes`]. An empty list
    /// replaces nothing; [`Experiment::ALL_METHODS`] among `methods` means every method of [`Experiment::PAPER_SCALE`].
    ///
    /// # Errors
    /// [`ExperimentError::Unknown`] for a grid or a method that is not there.
    pub fn change_grid(&mut self, scale: &str, seeds: &[u64], methods: &[String]) -> Result<(), ExperimentError> {
        let methods = if methods.iter().any(|method| method == Self::ALL_METHODS) {
            self.scale(Self::PAPER_SCALE)?.methods.clone()
        } else {
            methods.to_vec()
        };
        methods.iter().try_for_each(|method| self.method(method).map(drop))?;
        let mut grid = self.scale(scale)?.clone();
        let seeds = without_repetition(seeds);
        if !seeds.is_empty() && seeds != grid.seeds {
            grid.changes.push(format!("seeds {} instead of {}", list(&seeds), list(&grid.seeds)));
            grid.seeds = seeds;
        }
        let methods = without_repetition(&methods);
        if !methods.is_empty() && methods != grid.methods {
            let mut change = format!("methods {}", list(&methods));
            let left_out: Vec<&String> = grid.methods.iter().filter(|method| !methods.contains(method)).collect();
            match left_out.len() {
                0 => {}
                n if n > MOST_NAMED => change += &format!(", without the file's {n} others"),
                _ => change += &format!(", without {}", list(&left_out)),
            }
            if let Some(baseline) = self.baseline.as_ref().filter(|baseline| left_out.contains(baseline)) {
                change += &format!("; the baseline `{baseline}` is not among them");
            }
            grid.changes.push(change);
            grid.methods = methods;
        }
        self.scales.insert(scale.to_owned(), grid);
        Ok(())
    }

    /// Makes `part` the only part of the grid called `scale` whose rows can be missing, and adds this to [`Scale::changes`]. A `part`
    /// without keys changes nothing.
    ///
    /// # Errors
    /// [`ExperimentError::Unknown`] for a grid that is not there.
    pub fn ask_for(&mut self, scale: &str, part: Subgrid) -> Result<(), ExperimentError> {
        let mut grid = self.scale(scale)?.clone();
        if part != Subgrid::default() {
            grid.changes.push(format!(
                "only its part `{part}` was asked for; rows outside it are shown if they have results, and are not missing"
            ));
            grid.asked = part;
        }
        self.scales.insert(scale.to_owned(), grid);
        Ok(())
    }

    /// The method called `name`.
    ///
    /// # Errors
    /// [`ExperimentError::Unknown`] with the names there are.
    pub fn method(&self, name: &str) -> Result<&Method, ExperimentError> {
        self.methods.get(name).ok_or_else(|| self.unknown("method", name, self.methods.keys()))
    }

    fn unknown<'a>(&self, what: &'static str, name: &str, there: impl Iterator<Item = &'a String>) -> ExperimentError {
        let there = there.map(String::as_str).collect::<Vec<_>>().join(", ");
        ExperimentError::Unknown { experiment: self.name.clone(), what, name: name.to_owned(), there }
    }

    fn check(&self) -> Result<(), String> {
        let (version, known) = (self.schema_version, Self::SCHEMA_VERSION);
        ensure(version == known, || format!("schema_version is {version}, this c2r reads {known}"))?;
        let tolerance = self.tolerance;
        ensure(tolerance.is_finite() && tolerance > 0.0, || {
            format!("tolerance must be a positive number of points, got {tolerance}")
        })?;
        for (name, method) in &self.methods {
            let needs_profile = method.kind == MethodKind::Distill && method.implemented;
            ensure(needs_profile == method.profile.is_some(), || {
                format!(
                    "methods.{name}: with `kind = \"distill\"` it needs a profile, and otherwise, or with `implemented = false`, it \
                     must have none"
                )
            })?;
        }
        let known = |method: &str, place: &str| {
            ensure(self.methods.contains_key(method), || {
                let names: Vec<&str> = self.methods.keys().map(String::as_str).collect();
                format!("{place}: there is no method `{method}`; [methods] has {}", names.join(", "))
            })
        };
        self.baseline.iter().try_for_each(|baseline| known(baseline, "baseline"))?;
        for (name, scale) in &self.scales {
            scale.methods.iter().try_for_each(|method| known(method, &format!("scales.{name}.methods")))?;
            scale.check().map_err(|reason| format!("scales.{name}.{reason}"))?;
        }
        for (position, number) in self.published.iter().enumerate() {
            let (place, value, epsilon) =
                (format!("published number {}", position + 1), number.value, number.epsilon());
            ensure((0.0..=100.0).contains(&value), || format!("{place} is {value}, not a percentage"))?;
            ensure(radius(epsilon).is_some(), || format!("{place}: `{epsilon}` is not a radius in pixel units"))?;
            ensure(number.over.is_empty() || number.column == MEAN_ROBUST, || {
                format!("{place}: only the column `{MEAN_ROBUST}` can have `over`")
            })?;
            ensure(self.published[..position].iter().all(|other| other.cell() != number.cell()), || {
                let Published { dataset, ipc, method, column, .. } = number;
                format!("published twice: {dataset} ipc {ipc} {method} {column}")
            })?;
        }
        Ok(())
    }
}

impl Scale {
    fn check(&self) -> Result<(), String> {
        for (key, is_empty) in [
            ("methods", self.methods.is_empty()),
            ("datasets", self.datasets.is_empty()),
            ("ipcs", self.ipcs.is_empty()),
            ("seeds", self.seeds.is_empty()),
            ("protocols", self.protocols.is_empty()),
            ("attacks", self.attacks.is_empty()),
            ("epsilons", self.epsilons.is_empty()),
        ] {
            ensure(!is_empty, || format!("{key} is empty"))?;
        }
        // What is there twice would be planned twice and run once.
        no_repetition("methods", &self.methods)?;
        no_repetition("datasets", &self.datasets)?;
        no_repetition("ipcs", &self.ipcs)?;
        no_repetition("seeds", &self.seeds)?;
        no_repetition("protocols", &self.protocols)?;
        no_repetition("attacks", &self.attacks)?;
        no_repetition("epsilons", &self.epsilons)?;
        no_repetition("train-models", &self.train_models)?;
        let norm = self.norm.as_str();
        ensure(["linf", "l2", "l1"].contains(&norm), || format!("norm is `{norm}`, neither linf nor l2 nor l1"))?;
        for text in &self.epsilons {
            ensure(radius(text).is_some(), || {
                format!("epsilons: `{text}` is not a radius in pixel units, such as 2/255")
            })?;
        }
        ensure(!self.held_out || self.train_per_class.is_some(), || {
            "held-out: no image is held out, since the scale trains on all of them; give train-per-class".to_owned()
        })?;
        ensure(self.threads != Some(0), || "threads must be at least 1".to_owned())?;
        for (position, part) in self.first.iter().enumerate() {
            let place = format!("first: part {}", position + 1);
            ensure(*part != Part::default(), || format!("{place} names nothing"))?;
            for (key, wanted, there) in [
                ("datasets", &part.datasets, &self.datasets),
                ("methods", &part.methods, &self.methods),
                ("protocols", &part.protocols, &self.protocols),
                ("attacks", &part.attacks, &self.attacks),
            ] {
                in_grid(&place, key, wanted, there)?;
            }
            in_grid(&place, "ipcs", &part.ipcs, &self.ipcs)?;
        }
        for set in self.overrides.iter().flat_map(|part| &part.attack_set).chain(&self.attack_set) {
            ensure(attack_of(set).is_some(), || format!("attack-set: `{set}` is not ATTACK.OPTION=VALUE"))?;
        }
        Ok(())
    }
}

/// What a file says itself, and not [`COMMON`] for it, about parts of its grids. The common settings also serve experiments
/// with fewer methods or attacks; the file's own must concern something that is there.
#[derive(Default, Deserialize)]
#[serde(default)]
struct OwnScales {
    scales: BTreeMap<String, OwnScale>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
struct OwnScale {
    attack_set: Vec<String>,
    overrides: Vec<Override>,
}

impl OwnScales {
    fn check(&self, experiment: &Experiment) -> Result<(), String> {
        for (name, own) in &self.scales {
            let scale = &experiment.scales[name];
            let place = |key: &str| format!("scales.{name}.{key}");
            for (position, part) in own.overrides.iter().enumerate() {
                let place = place(&format!("overrides: part {}", position + 1));
                in_grid(&place, "datasets", part.dataset.as_slice(), &scale.datasets)?;
                in_grid(&place, "ipcs", part.ipc.as_slice(), &scale.ipcs)?;
                in_grid(&place, "protocols", part.protocol.as_slice(), &scale.protocols)?;
                // Not the grid's methods: an option of `cargo xtask reproduce` gives it others of the file.
                let methods: Vec<String> = experiment.methods.keys().cloned().collect();
                in_grid(&place, "methods", part.method.as_slice(), &methods)?;
            }
            for set in own.overrides.iter().flat_map(|part| &part.attack_set).chain(&own.attack_set) {
                let attack = attack_of(set).unwrap_or(set).to_owned();
                in_grid(&place("attack-set"), "attacks", &[attack], &scale.attacks)?;
            }
        }
        Ok(())
    }
}

/// The attack that `ATTACK.OPTION=VALUE` is for.
fn attack_of(set: &str) -> Option<&str> {
    Some(set.split_once('=')?.0.split_once('.')?.0)
}

fn ensure(holds: bool, reason: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(reason()) }
}

/// Checks that a grid has what a part of it names.
fn in_grid<T: PartialEq + ToString>(place: &str, key: &str, wanted: &[T], there: &[T]) -> Result<(), String> {
    wanted.iter().try_for_each(|value| {
        ensure(there.contains(value), || {
            format!("{place}: `{}` is not in {key}, which has {}", value.to_string(), list(there))
        })
    })
}

fn no_repetition<T: PartialEq + ToString>(key: &str, items: &[T]) -> Result<(), String> {
    let twice = items.iter().enumerate().find(|(position, item)| items[..*position].contains(item));
    twice.map_or(Ok(()), |(_, item)| Err(format!("{key}: `{}` is there twice", item.to_string())))
}

fn without_repetition<T: Clone + PartialEq>(items: &[T]) -> Vec<T> {
    let mut kept: Vec<T> = Vec::new();
    for item in items {
        if !kept.contains(item) {
            kept.push(item.clone());
        }
    }
    kept
}

fn list<T: ToString>(items: &[T]) -> String {
    items.iter().map(T::to_string).collect::<Vec<_>>().join(", ")
}

fn table(path: &Path) -> Result<Table, ExperimentError> {
    let text = c2r_files::read_text(path)?;
    text.parse().map_err(|error: toml::de::Error| ExperimentError::wrong(path, error.to_string()))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// One dataset, two distilled methods and the reference.
    const EXAMPLE: &str = r#"
schema_version = 2
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
epsilons = ["2/255", "0.5"]
attack-set = ["pgd.steps=3"]
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

[[published]]
dataset = "cifar10"
ipc = 10
method = "c2r"
column = "mean-robust"
value = 28.41
source = "table 4"
over = ["fgsm", "pgd", "cw"]
"#;

    fn read(text: &str, common: Option<&str>) -> Result<Experiment, ExperimentError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("table9.toml");
        fs::write(&path, text).unwrap();
        if let Some(common) = common {
            fs::write(folder.path().join(COMMON), common).unwrap();
        }
        Experiment::read(&path)
    }

    fn is_wrong(error: &ExperimentError, file: &str, part: &str) -> bool {
        matches!(error, ExperimentError::Wrong { path, reason } if path.ends_with(file) && reason.contains(part))
    }

    fn is_unknown(error: &ExperimentError, kind: &str, wanted: &str, known: &str) -> bool {
        matches!(error, ExperimentError::Unknown { what, name, there, .. } if (*what, &**name, &**there) == (kind, wanted, known))
    }

    #[test]
    fn the_example_is_read() {
        let experiment = read(EXAMPLE, None).unwrap();
        let scale = experiment.scale("quick").unwrap();
        assert_eq!(scale.seeds, [0, 1, 2]);
        assert_eq!(scale.radii(), [2.0 / 255.0, 0.5]);
        assert_eq!(scale.downstream(), [None]);
        assert_eq!(experiment.methods["full"].kind, MethodKind::Full);
        assert_eq!(experiment.published[0].radius(), 2.0 / 255.0);
        let error = experiment.scale("huge").unwrap_err();
        assert!(is_unknown(&error, "scale", "huge", "quick"), "{error:?}");
    }

    #[test]
    fn a_grid_is_changed_and_says_so() {
        let changed = |seeds: &[u64], methods: &[&str]| {
            let mut experiment = read(EXAMPLE, None).unwrap();
            let methods: Vec<String> = methods.iter().map(ToString::to_string).collect();
            experiment.change_grid("quick", seeds, &methods).map(|()| experiment.scales.remove("quick").unwrap())
        };
        let same = changed(&[], &[]).unwrap();
        assert_eq!(same, *read(EXAMPLE, None).unwrap().scale("quick").unwrap());
        assert_eq!(
            changed(&[0, 1, 2], &["full", "class-mean", "c2r"]).unwrap(),
            same,
            "what the file says is not a change"
        );

        let seeds = changed(&[4, 3, 4], &[]).unwrap();
        assert_eq!((&seeds.seeds[..], seeds.methods.len()), (&[4, 3][..], 3));
        assert_eq!(seeds.changes, ["seeds 4, 3 instead of 0, 1, 2"]);
        let alone = changed(&[], &["c2r"]).unwrap();
        assert_eq!((alone.methods, alone.seeds), (vec!["c2r".to_owned()], vec![0, 1, 2]));
        assert_eq!(
            alone.changes,
            ["methods c2r, without full, class-mean; the baseline `class-mean` is not among them"]
        );
        let compared = changed(&[], &["class-mean", "c2r"]).unwrap();
        assert_eq!(compared.changes, ["methods class-mean, c2r, without full"]);

        let mut many = read(EXAMPLE, None).unwrap();
        for n in 0..MOST_NAMED {
            let (name, method) = (format!("other-{n}"), many.methods["c2r"].clone());
            many.methods.insert(name.clone(), method);
            many.scales.get_mut("quick").unwrap().methods.push(name);
        }
        many.change_grid("quick", &[], &["class-mean".to_owned(), "c2r".to_owned()]).unwrap();
        assert_eq!(many.scales["quick"].changes, ["methods class-mean, c2r, without the file's 9 others"]);

        let error = changed(&[], &["dm"]).unwrap_err();
        assert!(is_unknown(&error, "method", "dm", "c2r, class-mean, full"), "{error:?}");
        let error = changed(&[], &["all"]).unwrap_err();
        assert!(is_unknown(&error, "scale", "paper", "quick"), "{error:?}");
    }

    #[test]
    fn mistakes_are_named() {
        let check = |from: &str, to: &str, part: &str| {
            assert!(EXAMPLE.contains(from));
            let error = read(&EXAMPLE.replacen(from, to, 1), None).unwrap_err();
            assert!(is_wrong(&error, "table9.toml", part), "{error:?}");
        };
        check("tolerance", "tolerence", "tolerence");
        check("schema_version = 2", "schema_version = 1", "schema_version is 1");
        check("name = \"table9\"", "name = \"table8\"", "its name is `table8`");
        check("tolerance = 2.0", "tolerance = 0.0", "positive number of points");
        check("baseline = \"class-mean\"", "baseline = \"dm\"", "baseline: there is no method `dm`");
        check(
            "\"class-mean\", \"c2r\"]",
            "\"class-means\"]",
            "no method `class-means`; [methods] has c2r, class-mean, full",
        );
        check("seeds = [0, 1, 2]", "seeds = []", "scales.quick.seeds is empty");
        check("seeds = [0, 1, 2]", "seeds = [0, 1, 0]", "scales.quick.seeds: `0` is there twice");
        check("\"fgsm\", \"pgd\"]\nnorm", "\"pgd\", \"pgd\"]\nnorm", "scales.quick.attacks: `pgd` is there twice");
        check("ipcs = [10]", "ipcs = [10, 10]", "scales.quick.ipcs: `10` is there twice");
        check("\"0.5\"", "\"2/0\"", "`2/0` is not a radius");
        check("\"0.5\"", "\"-2/-255\"", "`-2/-255` is not a radius");
        check("norm = \"linf\"", "norm = \"l7\"", "norm is `l7`");
        check("threads = 1", "threads = 0", "threads must be at least 1");
        check("threads = 1", "held-out = true", "scales.quick.held-out: no image is held out");
        check(
            "threads = 1",
            "select = \"best\"",
            "unknown variant `best`, expected one of `last`, `held-out`, `best-test`",
        );
        check(
            "threads = 1",
            "first = [{ attacks = [\"apgd\"] }]",
            "first: part 1: `apgd` is not in attacks, which has fgsm, pgd",
        );
        check(
            "threads = 1",
            "first = [{ ipcs = [10] }, { ipcs = [1] }]",
            "first: part 2: `1` is not in ipcs, which has 10",
        );
        check("threads = 1", "first = [{ attack = [\"pgd\"] }]", "unknown field `attack`");
        check("threads = 1", "first = [{}]", "first: part 1 names nothing");
        check("pgd.steps=3", "steps=3", "`steps=3` is not ATTACK.OPTION=VALUE");
        check("pgd.steps=3", "pdg.steps=3", "attack-set: `pdg` is not in attacks, which has fgsm, pgd");
        check(
            "dataset = \"cifar10\"\nipc",
            "dataset = \"cifar\"\nipc",
            "overrides: part 1: `cifar` is not in datasets",
        );
        check("attack-set", "attack-sets", "attack-sets");
        check("value = 29.12", "value = 129.12", "published number 1 is 129.12");
        check("column = \"mean-robust\"", "column = \"pgd\"", "only the column `mean-robust` can have `over`");
        check(
            "column = \"pgd\"\nvalue",
            "column = \"mean-robust\"\nover = [\"fgsm\", \"pgd\", \"cw\"]\nvalue",
            "published twice: cifar10 ipc 10 c2r mean-robust",
        );
        check("kind = \"full\"", "kind = \"all\"", "unknown variant `all`");
        check("kind = \"full\"", "kind = \"distill\"", "methods.full: with `kind");
        check("label = \"C²R\"", "label = \"C²R\"\nimplemented = false", "methods.c2r: with `kind");
    }

    #[test]
    fn what_is_common_is_added_and_never_replaces() {
        let common = r#"
schema_version = 2
[methods.c2r]
label = "another label"
kind = "distill"
profile = "x.toml"
[methods.dm]
label = "DM"
kind = "distill"
profile = "dm.toml"
[scales.quick]
about = "common"
model = "ConvNet-D2-W8-IN"
n-test = 100
seeds = [7]
[[scales.quick.overrides]]
method = "dm"
distill-set = ["iterations=5"]
[scales.paper]
about = "an experiment without this scale does not get it"
"#;
        let experiment = read(EXAMPLE, Some(common)).unwrap();
        assert_eq!(experiment.methods["c2r"].label, "C²R");
        assert_eq!(experiment.methods["dm"].profile.as_deref(), Some("dm.toml"));
        assert_eq!(experiment.scales.len(), 1);
        let scale = experiment.scale("quick").unwrap();
        assert_eq!((scale.about.as_str(), scale.n_test, &scale.seeds[..]), ("seconds", Some(100), &[0, 1, 2][..]));
        assert_eq!(scale.downstream(), [Some("ConvNet-D2-W8-IN")]);
        let sets: Vec<&str> = scale.overrides.iter().map(|part| part.distill_set[0].as_str()).collect();
        assert_eq!(sets, ["iterations=5", "eta=0.6"], "the experiment's overrides come last");

        let error = read(EXAMPLE, Some("published = []")).unwrap_err();
        assert!(is_wrong(&error, "common.toml", "`published` does not belong here"), "{error:?}");
        let error = read(EXAMPLE, Some("schema_version = 1")).unwrap_err();
        assert!(is_wrong(&error, "common.toml", "schema_version is 1"), "{error:?}");
    }

    #[test]
    fn overrides_match_by_every_key_they_give() {
        let part =
            |protocol: Option<&str>, ipc| Override { protocol: protocol.map(Into::into), ipc, ..Override::default() };
        assert!(part(None, Some(10)).matches("digits", Some(10), "c2r", None));
        assert!(!part(None, Some(10)).matches("digits", None, "full", None));
        assert!(part(Some("natural"), None).matches("digits", Some(1), "c2r", Some("natural")));
        assert!(!part(Some("natural"), None).matches("digits", Some(1), "c2r", None), "distillation has no protocol");
    }

    #[test]
    fn parts_match_by_every_key_they_give() {
        let all = Part::default();
        assert!(all.has_set("digits", None, "full") && all.has_attack("natural", "pgd"));
        let part = Part {
            ipcs: vec![1, 10],
            methods: vec!["c2r".into()],
            attacks: vec!["fgsm".into(), "pgd".into()],
            ..Part::default()
        };
        assert!(part.has_set("digits", Some(10), "c2r") && part.has_attack("pgd-at", "pgd"));
        assert!(!part.has_set("digits", Some(5), "c2r") && !part.has_set("digits", Some(10), "aac"));
        assert!(!part.has_set("digits", None, "c2r"), "the reference is in no part with images per class");
        assert!(!part.has_attack("pgd-at", "jitter"));
    }

    #[test]
    fn every_experiment_of_the_repository_is_read() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../data/paper");
        let mut names = Vec::new();
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.file_name().is_some_and(|name| name != COMMON) {
                let experiment = Experiment::read(&path).unwrap();
                let scales: Vec<&String> = experiment.scales.keys().collect();
                assert!(
                    !scales.is_empty()
                        && scales.iter().all(|name| ["tiny", "quick", "small", "medium", "paper"].contains(&&***name))
                );
                names.push(experiment.name);
            }
        }
        assert!(names.contains(&"table2".to_owned()));
    }
}
