//! From a grid to the commands that fill it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    path::{Path, PathBuf},
    str::FromStr,
};

use c2r_experiment::{Experiment, Method, MethodKind, Scale};

use super::{data::Datasets, identity::Identity};
use crate::exit;

/// Which part of a grid is wanted: `dataset=cifar10,ipc=10,ipc=50`. A key that is not named is not restricted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Only(BTreeMap<String, Vec<String>>);

/// The keys of [`Only`].
const KEYS: [&str; 6] = ["dataset", "ipc", "method", "seed", "protocol", "attack"];

/// The value of `ipc` for training on all real images.
const ALL: &str = "all";

impl FromStr for Only {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut only = Self::default();
        for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
            let (key, value) = part.split_once('=').ok_or_else(|| format!("`{part}` is not key=value"))?;
            if !KEYS.contains(&key) {
                return Err(unknown("key", key, KEYS));
            }
            only.0.entry(key.to_owned()).or_default().push(value.to_owned());
        }
        Ok(only)
    }
}

impl Only {
    /// Joins several `--only`.
    pub(crate) fn merge(parts: impl IntoIterator<Item = Self>) -> Self {
        let mut only = Self::default();
        for (key, values) in parts.into_iter().flat_map(|part| part.0) {
            only.0.entry(key).or_default().extend(values);
        }
        only
    }

    fn takes(&self, key: &str, value: impl fmt::Display) -> bool {
        self.0.get(key).is_none_or(|wanted| wanted.contains(&value.to_string()))
    }

    /// A value that the grid does not have is a mistake and not an empty selection.
    fn check(&self, scale: &Scale) -> anyhow::Result<()> {
        let ipcs: Vec<String> = scale.ipcs.iter().map(ToString::to_string).chain([ALL.to_owned()]).collect();
        let seeds: Vec<String> = scale.seeds.iter().map(ToString::to_string).collect();
        let there: [(&str, &[String]); KEYS.len()] = [
            ("dataset", &scale.datasets),
            ("ipc", &ipcs),
            ("method", &scale.methods),
            ("seed", &seeds),
            ("protocol", &scale.protocols),
            ("attack", &scale.attacks),
        ];
        for (key, there) in there {
            for value in self.0.get(key).into_iter().flatten() {
                if !there.contains(value) {
                    return Err(exit::usage(format!("--only: {}", unknown(key, value, there))));
                }
            }
        }
        Ok(())
    }
}

impl fmt::Display for Only {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts = self.0.iter().flat_map(|(key, values)| values.iter().map(move |value| format!("{key}={value}")));
        f.write_str(&parts.collect::<Vec<_>>().join(","))
    }
}

/// A part of the grid by number: `2/8` is the second of eight. All commands on one distilled set (or on one reference)
/// belong to one shard, so shards wait for nothing of each other; which one is decided by the grid alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Shard {
    /// From 0.
    index: usize,
    n_shards: usize,
}

impl Shard {
    /// The whole grid.
    pub(crate) const ALL: Self = Self { index: 0, n_shards: 1 };

    /// Number `index` of `n_shards`, from 0.
    pub(crate) fn new(index: usize, n_shards: usize) -> Self {
        Self { index, n_shards }
    }

    fn takes(self, chain: usize) -> bool {
        chain % self.n_shards == self.index
    }
}

impl FromStr for Shard {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let number = |text: &str| text.parse::<usize>().ok();
        let numbers = text.split_once('/').and_then(|(i, n)| Some((number(i)?, number(n)?)));
        match numbers {
            Some((i, n)) if 1 <= i && i <= n => Ok(Self::new(i - 1, n)),
            _ => Err(format!("`{text}` is not I/N with I from 1 to N")),
        }
    }
}

impl fmt::Display for Shard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.index + 1, self.n_shards)
    }
}

/// One row of the table for one seed: what is distilled once and then trained and attacked per protocol.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Cell {
    /// Dataset.
    pub(crate) dataset: String,
    /// Images per class; `None` for all.
    pub(crate) ipc: Option<usize>,
    /// Method.
    pub(crate) method: String,
    /// Seed.
    pub(crate) seed: u64,
}

impl Cell {
    /// Its folder below that of the table: `cifar10/ipc10/c2r/seed0`.
    pub(crate) fn folder(&self) -> String {
        let ipc = self.ipc.map_or_else(|| ALL.to_owned(), |ipc| format!("ipc{ipc}"));
        format!("{}/{ipc}/{}/seed{}", self.dataset, self.method, self.seed)
    }
}

/// A downstream network: how it is trained, and which one it is where that is not the dataset's own.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Downstream {
    pub(crate) protocol: String,
    pub(crate) model: Option<String>,
}

impl Downstream {
    /// `natural`, or `natural-ConvNet-D4-W128-IN`.
    fn name(&self) -> String {
        self.model.as_ref().map_or_else(|| self.protocol.clone(), |model| format!("{}-{model}", self.protocol))
    }
}

/// What a command does.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Stage {
    /// `c2r distill`.
    Distill,
    /// `c2r train`.
    Train(Downstream),
    /// `c2r attack` with one attack at one radius.
    Attack { network: Downstream, attack: String, epsilon: String },
}

impl Stage {
    /// `distill`, `train` or `attack`.
    pub(crate) fn command(&self) -> &'static str {
        match self {
            Self::Distill => "distill",
            Self::Train(_) => "train",
            Self::Attack { .. } => "attack",
        }
    }

    /// Name of its folder in a cell's folder: `distill`, `natural`, `natural-pgd-2of255`.
    pub(crate) fn folder(&self) -> String {
        match self {
            Self::Distill => "distill".into(),
            Self::Train(network) => network.name(),
            Self::Attack { network, attack, epsilon } => {
                format!("{}-{attack}-{}", network.name(), epsilon.replace('/', "of"))
            }
        }
    }
}

/// One `c2r` command: a job with a folder of its own, which is named after everything that decides the result.
#[derive(Debug, Clone)]
pub(crate) struct Step {
    /// Which cell it belongs to.
    pub(crate) cell: Cell,
    /// What it does.
    pub(crate) stage: Stage,
    /// Its position in the plan of the command whose output it reads.
    pub(crate) needs: Option<usize>,
    /// Number of the distilled set or reference it belongs to.
    pub(crate) chain: usize,
    /// `distill-0123456789abcdef`, the same wherever the same is asked for.
    pub(crate) id: String,
    /// Arguments that decide the result, the subcommand first.
    pub(crate) what: Vec<String>,
    /// Arguments that do not: paths, threads, device.
    pub(crate) how: Vec<String>,
    /// Where it writes everything.
    pub(crate) folder: PathBuf,
    /// The file in it that exists once it is done.
    pub(crate) output: &'static str,
}

impl Step {
    /// `cifar10/ipc10/c2r/seed0 train natural`.
    pub(crate) fn name(&self) -> String {
        match &self.stage {
            Stage::Distill => format!("{} distill", self.cell.folder()),
            stage => format!("{} {} {}", self.cell.folder(), stage.command(), stage.folder()),
        }
    }

    /// All arguments of the command.
    pub(crate) fn args(&self) -> impl Iterator<Item = &String> {
        self.what.iter().chain(&self.how)
    }

    /// What it printed.
    pub(crate) fn log(&self) -> PathBuf {
        self.folder.join("log")
    }
}

/// Where and how the commands run.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    /// The top of the checkout, where they are started.
    pub(crate) root: PathBuf,
    /// The results folder, which experiments, processes and machines may share.
    pub(crate) results: PathBuf,
    /// Real data.
    pub(crate) data: Option<PathBuf>,
    /// CPU threads of each command.
    pub(crate) threads: Option<usize>,
    /// Device of each command.
    pub(crate) device: Option<String>,
    /// Whether finished commands are run again.
    pub(crate) force: bool,
}

impl Place {
    /// The folder of a job.
    pub(crate) fn job(&self, id: &str) -> PathBuf {
        self.results.join("jobs").join(id)
    }

    /// A path for a command line: relative where it lies in the checkout, so that it reads well.
    pub(crate) fn show(&self, path: &Path) -> String {
        path.strip_prefix(&self.root).unwrap_or(path).display().to_string()
    }

    fn how(&self, paths: &[(&str, &Path)]) -> Vec<String> {
        let mut how = Vec::new();
        for (flag, path) in paths {
            how.extend([(*flag).to_owned(), self.show(path)]);
        }
        if let Some(data) = &self.data {
            how.extend(["--data".into(), self.show(data)]);
        }
        if let Some(threads) = self.threads {
            how.extend(["--threads".into(), threads.to_string()]);
        }
        if let Some(device) = &self.device {
            how.extend(["--device".into(), device.clone()]);
        }
        if self.force {
            how.push("--force".into());
        }
        how
    }
}

/// The commands of a part of a grid.
#[derive(Debug, Clone, Default)]
pub(crate) struct Plan {
    /// Each after the one it needs.
    pub(crate) steps: Vec<Step>,
    /// Number of distilled sets and references in the wanted part of the grid, those of other shards included.
    pub(crate) n_chains: usize,
    /// Methods of the grid that are not implemented: there is no profile.
    pub(crate) without_profile: BTreeSet<String>,
}

/// Makes plans: an experiment's grid, and where it runs.
pub(crate) struct Planner<'a> {
    pub(crate) experiment: &'a Experiment,
    pub(crate) scale: &'a Scale,
    pub(crate) place: &'a Place,
    pub(crate) datasets: &'a Datasets,
}

impl Planner<'_> {
    /// The commands of the wanted part of the grid, each after the one it needs.
    ///
    /// # Errors
    /// If `only` names what the grid does not have, or nothing is left.
    pub(crate) fn plan(&self, only: &Only, shard: Shard) -> anyhow::Result<Plan> {
        only.check(self.scale)?;
        let scale = self.scale;
        let mut plan = Plan::default();
        for dataset in scale.datasets.iter().filter(|dataset| only.takes("dataset", dataset)) {
            for name in scale.methods.iter().filter(|method| only.takes("method", method)) {
                let method = self.experiment.method(name).map_err(exit::usage)?;
                if method.profile.as_ref().is_some_and(|profile| !self.place.root.join(profile).is_file()) {
                    plan.without_profile.insert(name.clone());
                    continue;
                }
                let ipcs: Vec<Option<usize>> = match method.kind {
                    MethodKind::Distill => {
                        scale.ipcs.iter().filter(|ipc| only.takes("ipc", ipc)).map(|&ipc| Some(ipc)).collect()
                    }
                    MethodKind::Full if only.takes("ipc", ALL) => vec![None],
                    MethodKind::Full => vec![],
                };
                for ipc in ipcs {
                    for &seed in scale.seeds.iter().filter(|seed| only.takes("seed", seed)) {
                        let cell = Cell { dataset: dataset.clone(), ipc, method: name.clone(), seed };
                        if shard.takes(plan.n_chains) {
                            self.add_cell(&mut plan, cell, method, only)?;
                        }
                        plan.n_chains += 1;
                    }
                }
            }
        }
        if plan.n_chains > 0 {
            return Ok(plan);
        }
        Err(match plan.without_profile.iter().next() {
            Some(method) => exit::usage(format!("there is nothing to run: `{method}` is not implemented (no profile)")),
            None => exit::usage("--only leaves nothing of the grid; the reference on all real images is `ipc=all`"),
        })
    }

    fn add_cell(&self, plan: &mut Plan, cell: Cell, method: &Method, only: &Only) -> anyhow::Result<()> {
        let scale = self.scale;
        let dataset = self.datasets.get(&cell.dataset)?;
        let seed = cell.seed.to_string();
        let train_per_class = option("--train-per-class", scale.train_per_class);
        let chain = plan.n_chains;
        let mut distilled = None;
        if let (Some(profile), Some(ipc)) = (&method.profile, cell.ipc) {
            // From general to particular: a setting for one method beats the method's own, which beat the grid's.
            let overrides: Vec<_> = scale
                .overrides
                .iter()
                .filter(|part| part.matches(&cell.dataset, cell.ipc, &cell.method, None))
                .collect();
            let of = |one_method: bool| {
                let parts = overrides.iter().filter(move |part| part.method.is_some() == one_method);
                parts.flat_map(|part| &part.distill_set)
            };
            let model = scale.model.as_ref().map(|model| format!("model={model}"));
            let all = model.iter().chain(&scale.distill_set).chain(of(false)).chain(&method.set);
            let sets = sets(all.chain(of(true)));
            let mut what = words(["distill", "--config", profile, "--dataset", &cell.dataset, "--ipc"]);
            what.extend([ipc.to_string(), "--seed".into(), seed.clone(), "--name".into(), cell.method.clone()]);
            what.extend(train_per_class.clone());
            what.extend(sets);
            let id = Identity::new("distill", c2r_experiment::results::DISTILL)
                .data(dataset)
                .profile(&self.place.root.join(profile))?
                .words(&what)
                .finish();
            let folder = self.place.job(&id);
            let networks = self.place.results.join("networks");
            let mut paths: Vec<(&str, &Path)> = vec![("--run-dir", &folder)];
            // What is run again is run again from the beginning.
            paths.extend((!self.place.force).then_some(("--networks", &*networks)));
            let how = self.place.how(&paths);
            let output = "synthetic.safetensors";
            distilled = Some(plan.steps.len());
            let (cell, stage) = (cell.clone(), Stage::Distill);
            plan.steps.push(Step { cell, stage, needs: None, chain, id, what, how, folder, output });
        }
        for protocol in scale.protocols.iter().filter(|protocol| only.takes("protocol", protocol)) {
            let overrides: Vec<_> = scale
                .overrides
                .iter()
                .filter(|part| part.matches(&cell.dataset, cell.ipc, &cell.method, Some(protocol)))
                .collect();
            for model in scale.downstream() {
                // The scale's model is the only one unless the grid has several; then it belongs into the name.
                let named = if scale.train_models.is_empty() { None } else { model.map(str::to_owned) };
                let network = Downstream { protocol: protocol.clone(), model: named };
                let mut what = words(["train", "--protocol", protocol, "--seed", &seed]);
                let identity = Identity::new("train", c2r_experiment::results::TRAIN);
                let (identity, synthetic) = match distilled.map(|position| &plan.steps[position]) {
                    Some(step) => (identity.job(&step.id), Some(step.folder.join(step.output))),
                    None => {
                        what.extend(words(["--dataset", &cell.dataset]));
                        what.extend(train_per_class.clone());
                        (identity.data(dataset), None)
                    }
                };
                // Left out where it says what goes without saying, so that grids with and without it share the training.
                what.extend(option("--model", model.filter(|model| *model != dataset.model)));
                what.extend(option("--select", scale.selection()));
                what.extend(sets(scale.train_set.iter().chain(overrides.iter().flat_map(|part| &part.train_set))));
                let id = identity.words(&what).finish();
                let folder = self.place.job(&id);
                let mut paths: Vec<(&str, &Path)> = vec![("--run-dir", &folder)];
                if let Some(synthetic) = &synthetic {
                    paths.insert(0, ("--synthetic", synthetic));
                }
                let how = self.place.how(&paths);
                let trained = plan.steps.len();
                let checkpoint = folder.join("model.safetensors");
                plan.steps.push(Step {
                    cell: cell.clone(),
                    stage: Stage::Train(network.clone()),
                    needs: distilled,
                    chain,
                    id: id.clone(),
                    what,
                    how,
                    folder,
                    output: "model.safetensors",
                });
                let attack_set: Vec<&String> =
                    scale.attack_set.iter().chain(overrides.iter().flat_map(|part| &part.attack_set)).collect();
                for epsilon in &scale.epsilons {
                    for attack in scale.attacks.iter().filter(|attack| only.takes("attack", attack)) {
                        let own = attack_set.iter().copied().filter(|set| set.starts_with(&format!("{attack}.")));
                        let mut what = words(["attack", "--dataset", &cell.dataset, "--attack", attack]);
                        what.extend(words(["--norm", &scale.norm, "--eps", epsilon, "--each", "--seed", &seed]));
                        what.extend(option("--held-out-after", scale.train_per_class.filter(|_| scale.held_out)));
                        what.extend(option("--n-test", scale.n_test));
                        what.extend(sets(own));
                        let attack_id =
                            Identity::new("attack", c2r_experiment::results::ATTACK).job(&id).words(&what).finish();
                        let folder = self.place.job(&attack_id);
                        let report = folder.join("attack.json");
                        let how = self.place.how(&[("--checkpoint", &checkpoint), ("--output", &report)]);
                        plan.steps.push(Step {
                            cell: cell.clone(),
                            stage: Stage::Attack {
                                network: network.clone(),
                                attack: attack.clone(),
                                epsilon: epsilon.clone(),
                            },
                            needs: Some(trained),
                            chain,
                            id: attack_id,
                            what,
                            how,
                            folder,
                            output: "attack.json",
                        });
                    }
                }
            }
        }
        Ok(())
    }
}

/// `there is no scale `x`; there are: a, b`.
pub(crate) fn unknown<T: fmt::Display>(what: &str, name: &str, there: impl IntoIterator<Item = T>) -> String {
    let there: Vec<String> = there.into_iter().map(|item| item.to_string()).collect();
    format!("there is no {what} `{name}`; there are: {}", there.join(", "))
}

fn words<const N: usize>(words: [&str; N]) -> Vec<String> {
    words.map(String::from).into()
}

fn option<T: ToString>(flag: &str, value: Option<T>) -> Vec<String> {
    value.map_or(vec![], |value| vec![flag.to_owned(), value.to_string()])
}

/// `--set` for each assignment. Of several to one key the last one counts, so only that is kept.
fn sets<'a>(assignments: impl Iterator<Item = &'a String>) -> Vec<String> {
    let key = |assignment: &str| assignment.split('=').next().unwrap_or_default().trim().to_owned();
    let mut kept: Vec<&String> = Vec::new();
    for assignment in assignments {
        kept.retain(|other| key(other) != key(assignment));
        kept.push(assignment);
    }
    kept.into_iter().flat_map(|assignment| ["--set".to_owned(), assignment.clone()]).collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::{checkout::Checkout, process::shell_line};

    /// Two distilled methods, one without a profile and the reference, on two datasets.
    const EXAMPLE: &str = r#"
schema_version = 2
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
[methods.dm]
label = "DM"
kind = "distill"
profile = "data/profiles/dm.toml"
[scales.quick]
about = "seconds"
methods = ["full", "class-mean", "c2r", "dm"]
datasets = ["digits", "cifar10"]
ipcs = [1, 10]
seeds = [0, 1, 2]
protocols = ["natural", "pgd-at"]
attacks = ["fgsm", "pgd"]
norm = "linf"
epsilons = ["0.1"]
distill-set = ["iterations=30"]
train-set = ["steps=20"]
attack-set = ["pgd.steps=3", "pgd.step-size=2/255"]
model = "ConvNet-D3-W32-IN"
train-per-class = 500
n-test = 100
threads = 1
[[scales.quick.overrides]]
dataset = "cifar10"
ipc = 10
distill-set = ["eta=0.6"]
[[scales.quick.overrides]]
method = "c2r"
protocol = "natural"
attack-set = ["pgd.steps=5"]
"#;

    /// A checkout with the example, one profile and two small datasets, in a temporary folder.
    pub(crate) struct Example {
        pub(crate) folder: tempfile::TempDir,
        pub(crate) experiment: Experiment,
        pub(crate) place: Place,
    }

    impl Example {
        pub(crate) fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let root = folder.path();
            let write = |name: &str, text: &str| {
                let path = root.join(name);
                std::fs::create_dir_all(path.parent().unwrap()).unwrap();
                std::fs::write(path, text).unwrap();
            };
            write("data/paper/example.toml", EXAMPLE);
            write("data/profiles/faithful.toml", "eta = 0.4");
            write("data/digits/digits.bin", "pixels");
            write("cifar/cifar-10-batches-bin/data_batch_1.bin", "pixels");
            write(
                "data/datasets.toml",
                "schema_version = 1\n[[dataset]]\nname = \"digits\"\nformat = \"digits\"\nfolders = []\n\
                 [[dataset]]\nname = \"cifar10\"\nformat = \"cifar10\"\nfolders = [\"cifar-10-batches-bin\"]\n",
            );
            let experiment = Experiment::read(&root.join("data/paper/example.toml")).unwrap();
            let place = Place {
                root: root.to_owned(),
                results: root.join("runs"),
                data: Some(root.join("cifar")),
                threads: Some(1),
                device: None,
                force: false,
            };
            Self { folder, experiment, place }
        }

        pub(crate) fn checkout(&self) -> Checkout {
            Checkout::for_test(self.folder.path())
        }

        pub(crate) fn plan_in(&self, place: &Place, only: &str, shard: Shard) -> anyhow::Result<Plan> {
            let datasets = Datasets::read(place).unwrap();
            let scale = self.experiment.scale("quick").unwrap();
            let planner = Planner { experiment: &self.experiment, scale, place, datasets: &datasets };
            planner.plan(&only.parse().unwrap(), shard)
        }

        pub(crate) fn steps(&self, only: &str) -> Vec<Step> {
            self.plan_in(&self.place, only, Shard::ALL).unwrap().steps
        }
    }

    #[test]
    fn the_whole_grid_and_what_is_not_implemented() {
        let plan = Example::new().plan_in(&Example::new().place, "", Shard::ALL).unwrap();
        // Per protocol one training and two attacks; per dataset and seed the reference, and 2 methods x 2 ipcs that are
        // distilled first.
        assert_eq!(plan.steps.len(), 2 * 3 * (2 * 3 + 2 * 2 * (1 + 2 * 3)));
        assert_eq!(plan.n_chains, 2 * 3 * 5);
        assert_eq!(plan.without_profile.iter().collect::<Vec<_>>(), ["dm"]);
    }

    #[test]
    fn one_cell_in_full() {
        let example = Example::new();
        let steps = example.steps("dataset=cifar10,ipc=10,method=class-mean,seed=2,protocol=natural");
        let lines: Vec<String> = steps.iter().map(|step| shell_line(step.args())).collect();
        let job = |position: usize| format!("runs/jobs/{}", steps[position].id);
        let common = "--data cifar --threads 1";
        assert_eq!(
            lines,
            [
                format!(
                    "distill --config data/profiles/faithful.toml --dataset cifar10 --ipc 10 --seed 2 --name class-mean \
                     --train-per-class 500 --set model=ConvNet-D3-W32-IN --set iterations=30 --set eta=0.6 --set crl=false \
                     --run-dir {} --networks runs/networks {common}",
                    job(0)
                ),
                format!(
                    "train --protocol natural --seed 2 --model ConvNet-D3-W32-IN --set steps=20 --synthetic \
                     {}/synthetic.safetensors --run-dir {} {common}",
                    job(0),
                    job(1)
                ),
                format!(
                    "attack --dataset cifar10 --attack fgsm --norm linf --eps 0.1 --each --seed 2 --n-test 100 \
                     --checkpoint {}/model.safetensors --output {}/attack.json {common}",
                    job(1),
                    job(2)
                ),
                format!(
                    "attack --dataset cifar10 --attack pgd --norm linf --eps 0.1 --each --seed 2 --n-test 100 \
                     --set pgd.steps=3 --set pgd.step-size=2/255 --checkpoint {}/model.safetensors --output \
                     {}/attack.json {common}",
                    job(1),
                    job(3)
                ),
            ]
        );
        assert_eq!(steps.iter().map(|step| step.needs).collect::<Vec<_>>(), [None, Some(0), Some(1), Some(1)]);
        assert_eq!(steps[3].stage.folder(), "natural-pgd-0.1");
    }

    #[test]
    fn the_last_of_several_settings_counts() {
        let example = Example::new();
        let steps = example.steps("dataset=digits,ipc=1,method=c2r,seed=0,attack=pgd");
        let line = |position: usize| shell_line(&steps[position].what);
        assert!(line(2).ends_with("--set pgd.step-size=2/255 --set pgd.steps=5"), "{}", line(2));
        assert!(line(4).ends_with("--set pgd.steps=3 --set pgd.step-size=2/255"), "{}", line(4));
    }

    #[test]
    fn held_out_images_are_judged_after_the_same_training() {
        let example = Example::new();
        let only = "dataset=digits,ipc=1,method=c2r,seed=0,protocol=natural,attack=pgd";
        let datasets = Datasets::read(&example.place).unwrap();
        let scale = Scale { held_out: true, ..example.experiment.scale("quick").unwrap().clone() };
        let planner =
            Planner { experiment: &example.experiment, scale: &scale, place: &example.place, datasets: &datasets };
        let held_out = planner.plan(&only.parse().unwrap(), Shard::ALL).unwrap().steps;
        let test = example.steps(only);
        let ids = |steps: &[Step]| steps.iter().map(|step| step.id.clone()).collect::<Vec<_>>();
        assert_eq!(ids(&held_out)[..2], ids(&test)[..2]);
        assert_ne!(held_out[2].id, test[2].id);
        assert!(shell_line(&held_out[2].what).contains("--held-out-after 500 --n-test 100"));
    }

    #[test]
    fn a_grid_may_ask_for_a_chosen_step() {
        let mut example = Example::new();
        let only = "dataset=digits,ipc=1,method=c2r,seed=0,protocol=natural,attack=pgd";
        let ids = |example: &Example| example.steps(only).into_iter().map(|step| step.id).collect::<Vec<_>>();
        let usual = ids(&example);
        let mut select = |which: &str| {
            example.experiment.scales.get_mut("quick").unwrap().select = Some(which.into());
            (ids(&example), shell_line(&example.steps(only)[1].what))
        };
        assert_eq!(select("last").0, usual, "goes without saying");
        let (chosen, train) = select("held-out");
        assert!(train.contains(" --select held-out "), "{train}");
        assert_eq!(chosen[0], usual[0], "the same distilled set");
        assert!(chosen[1] != usual[1] && chosen[2] != usual[2]);
    }

    #[test]
    fn the_reference_is_trained_on_the_dataset() {
        let steps = Example::new().steps("dataset=digits,ipc=all,seed=0");
        assert_eq!(steps.len(), 6);
        assert_eq!(steps[0].name(), "digits/all/full/seed0 train natural");
        assert!(
            shell_line(steps[0].args())
                .starts_with("train --protocol natural --seed 0 --dataset digits --train-per-class 500")
        );
        assert!(steps[0].needs.is_none() && steps[3].needs.is_none());
    }

    #[test]
    fn every_needed_command_comes_first_and_feeds_the_one_that_needs_it() {
        let steps = Example::new().steps("");
        for (position, step) in steps.iter().enumerate() {
            if let Some(needed) = step.needs {
                assert!(needed < position && steps[needed].chain == step.chain);
                let input = Example::new().place.show(&steps[needed].folder.join(steps[needed].output));
                let name = input.split("jobs/").last().unwrap();
                assert!(step.how.iter().any(|word| word.ends_with(name)), "{input}");
            }
        }
        let ids: BTreeSet<&str> = steps.iter().map(|step| step.id.as_str()).collect();
        assert_eq!(ids.len(), steps.len(), "no two commands of a grid are the same");
    }

    #[test]
    fn selections_add_up_and_mistakes_are_named() {
        let example = Example::new();
        assert_eq!(example.steps("dataset=digits,seed=0,ipc=1,ipc=10,method=c2r").len(), 14);
        let merged = Only::merge(["ipc=1", "ipc=10"].map(|text| text.parse().unwrap()));
        assert_eq!(merged, "ipc=1,ipc=10".parse().unwrap());
        assert_eq!(merged.to_string(), "ipc=1,ipc=10");
        let message = |only: &str| exit::message(&example.plan_in(&example.place, only, Shard::ALL).unwrap_err());
        assert!(message("dataset=mnist").contains("no dataset `mnist`; there are: digits, cifar10"));
        assert!(message("ipc=5").contains("there are: 1, 10, all"));
        assert!(message("method=full,ipc=1").contains("`ipc=all`"));
        assert!(message("method=dm").contains("`dm` is not implemented"));
        assert!("dataset".parse::<Only>().unwrap_err().contains("not key=value"));
        assert!("size=3".parse::<Only>().unwrap_err().contains("no key `size`; there are: dataset, ipc"));
    }

    #[test]
    fn shards_split_the_grid_between_chains() {
        let example = Example::new();
        let whole: BTreeSet<String> = example.steps("").into_iter().map(|step| step.id).collect();
        let mut union = BTreeSet::new();
        for index in 0..4 {
            let plan = example.plan_in(&example.place, "", Shard::new(index, 4)).unwrap();
            assert_eq!(plan.n_chains, 30);
            assert!(plan.steps.iter().all(|step| step.chain % 4 == index));
            for step in plan.steps {
                assert!(union.insert(step.id), "in two shards");
            }
        }
        assert_eq!(union, whole);
        assert_eq!("2/4".parse::<Shard>().unwrap(), Shard::new(1, 4));
        for wrong in ["0/4", "5/4", "1", "a/b", "1/0"] {
            assert!(wrong.parse::<Shard>().unwrap_err().contains("I/N"), "{wrong}");
        }
    }

    #[test]
    fn places_change_how_and_not_what() {
        let example = Example::new();
        let elsewhere = Place {
            results: "/elsewhere/runs".into(),
            threads: None,
            device: Some("cuda:1".into()),
            force: true,
            ..example.place.clone()
        };
        let here = example.steps("");
        let there = example.plan_in(&elsewhere, "", Shard::ALL).unwrap().steps;
        assert!(here.iter().zip(&there).all(|(a, b)| a.what == b.what && a.id == b.id));
        assert_eq!(
            shell_line(&there[0].how),
            format!("--run-dir /elsewhere/runs/jobs/{} --data cifar --device cuda:1 --force", here[0].id)
        );
    }

    #[test]
    fn an_id_changes_with_all_that_decides_the_result_and_so_do_those_behind_it() {
        let example = Example::new();
        let only = "dataset=cifar10,ipc=1,method=c2r,seed=0,protocol=natural,attack=pgd";
        let ids = |example: &Example| example.steps(only).into_iter().map(|step| step.id).collect::<Vec<_>>();
        let before = ids(&example);
        let profile = example.folder.path().join("data/profiles/faithful.toml");
        std::fs::write(&profile, "# a comment\neta    = 0.4").unwrap();
        assert_eq!(ids(&example), before, "comments and spaces decide nothing");
        std::fs::write(&profile, "eta = 0.6").unwrap();
        let other = ids(&example);
        assert!(before.iter().zip(&other).all(|(a, b)| a != b), "another profile");
        let base = example.folder.path().join("data/profiles/base.toml");
        std::fs::write(&profile, "base = \"base\"\neta = 0.4").unwrap();
        std::fs::write(&base, "ipc = 1").unwrap();
        let based = ids(&example);
        std::fs::write(&base, "ipc = 2").unwrap();
        assert!(based.iter().zip(&ids(&example)).all(|(a, b)| a != b), "another base");
        std::fs::write(&profile, "eta = 0.4").unwrap();
        assert_eq!(ids(&example), before);

        let data = example.folder.path().join("cifar/cifar-10-batches-bin/data_batch_1.bin");
        std::fs::write(data, "other pixels").unwrap();
        assert!(before.iter().zip(&ids(&example)).all(|(a, b)| a != b), "other data");
    }
}
