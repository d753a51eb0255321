//! From a grid to the commands that fill it.

use std::{
    collections::BTreeMap,
    fmt,
    path::{Path, PathBuf},
    str::FromStr,
};

use super::experiment::{Experiment, Kind, Method, Override, Scale, unknown};
use crate::exit;

/// Which part of a grid is wanted: `dataset=cifar10,ipc=10,ipc=50`. A key that is not named is not restricted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Only(BTreeMap<String, Vec<String>>);

/// The keys of [`Only`].
const KEYS: [&str; 5] = ["dataset", "ipc", "method", "seed", "protocol"];

/// The value of `ipc` for training on all real images.
const ALL: &str = "all";

impl FromStr for Only {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
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
    fn check(&self, key: &str, there: &[String]) -> anyhow::Result<()> {
        for value in self.0.get(key).into_iter().flatten() {
            if !there.contains(value) {
                return Err(exit::usage(format!("--only: {}", unknown(key, value, there))));
            }
        }
        Ok(())
    }
}

/// One row of the table for one seed: what is distilled once and then trained and attacked per protocol.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Cell {
    /// Dataset.
    pub(crate) dataset: String,
    /// Images per class; `None` for all.
    pub(crate) ipc: Option<u32>,
    /// Method.
    pub(crate) method: String,
    /// Seed.
    pub(crate) seed: u64,
}

impl Cell {
    /// Its folder below the run folder: `cifar10/ipc10/c2r/seed0`.
    fn folder(&self) -> String {
        let ipc = self.ipc.map_or_else(|| ALL.to_owned(), |ipc| format!("ipc{ipc}"));
        format!("{}/{ipc}/{}/seed{}", self.dataset, self.method, self.seed)
    }
}

/// What a command does.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Stage {
    /// `c2r distill`.
    Distill,
    /// `c2r train` with this protocol.
    Train(String),
    /// `c2r attack` on the network of this protocol.
    Attack(String),
}

impl Stage {
    /// Name of its log and record.
    fn file_stem(&self) -> String {
        match self {
            Stage::Distill => "distill".into(),
            Stage::Train(protocol) => format!("train-{protocol}"),
            Stage::Attack(protocol) => format!("attack-{protocol}"),
        }
    }
}

/// One `c2r` command.
#[derive(Debug, Clone)]
pub(crate) struct Step {
    /// Which cell it belongs to.
    pub(crate) cell: Cell,
    /// What it does.
    pub(crate) stage: Stage,
    /// Its position in the plan of the command whose output it reads.
    pub(crate) needs: Option<usize>,
    /// Arguments that decide the result, the subcommand first.
    pub(crate) what: Vec<String>,
    /// Arguments that do not: paths, threads, device.
    pub(crate) how: Vec<String>,
    /// Files whose contents decide the result.
    pub(crate) inputs: Vec<PathBuf>,
    /// Files that exist once it is done.
    pub(crate) outputs: Vec<PathBuf>,
    /// What it printed.
    pub(crate) log: PathBuf,
    /// That it is done, and with what.
    pub(crate) record: PathBuf,
}

impl Step {
    /// `cifar10/ipc10/c2r/seed0 train-natural`.
    pub(crate) fn name(&self) -> String {
        format!("{} {}", self.cell.folder(), self.stage.file_stem())
    }

    /// All arguments of the command.
    pub(crate) fn args(&self) -> impl Iterator<Item = &String> {
        self.what.iter().chain(&self.how)
    }
}

/// Where and how the commands run.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    /// The top of the checkout, where they are started.
    pub(crate) root: PathBuf,
    /// The run folder of this experiment and scale.
    pub(crate) runs: PathBuf,
    /// Real data.
    pub(crate) data: Option<PathBuf>,
    /// CPU threads of each command.
    pub(crate) threads: Option<usize>,
    /// Device of each command.
    pub(crate) device: Option<String>,
    /// Whether runs of another configuration are overwritten.
    pub(crate) force: bool,
}

impl Place {
    /// A path for a command line: relative where it lies in the checkout, so that it reads well.
    fn show(&self, path: &Path) -> String {
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

/// The commands of the wanted part of a grid, each after the one it needs.
///
/// # Errors
/// If `only` names what the grid does not have, or nothing is left.
pub(crate) fn expand(experiment: &Experiment, scale: &Scale, only: &Only, place: &Place) -> anyhow::Result<Vec<Step>> {
    let texts = |values: &mut dyn Iterator<Item = String>| values.collect::<Vec<_>>();
    only.check("dataset", &scale.datasets)?;
    only.check("method", &scale.methods)?;
    only.check("protocol", &scale.protocols)?;
    only.check("seed", &texts(&mut scale.seeds.iter().map(u64::to_string)))?;
    let ipcs = scale.ipcs.iter().map(u32::to_string).chain([ALL.to_owned()]);
    only.check("ipc", &ipcs.collect::<Vec<_>>())?;

    let mut steps = Vec::new();
    for dataset in scale.datasets.iter().filter(|dataset| only.takes("dataset", dataset)) {
        for name in scale.methods.iter().filter(|method| only.takes("method", method)) {
            let method = experiment.method(name).map_err(exit::usage)?;
            let ipcs: Vec<Option<u32>> = match method.kind {
                Kind::Distill => scale.ipcs.iter().filter(|ipc| only.takes("ipc", ipc)).map(|&ipc| Some(ipc)).collect(),
                Kind::Full if only.takes("ipc", ALL) => vec![None],
                Kind::Full => vec![],
            };
            for ipc in ipcs {
                for &seed in scale.seeds.iter().filter(|seed| only.takes("seed", seed)) {
                    let cell = Cell { dataset: dataset.clone(), ipc, method: name.clone(), seed };
                    add_cell(&mut steps, &cell, method, scale, only, place);
                }
            }
        }
    }
    if steps.is_empty() {
        return Err(exit::usage("--only leaves nothing of the grid; the reference on all real images is `ipc=all`"));
    }
    Ok(steps)
}

fn add_cell(steps: &mut Vec<Step>, cell: &Cell, method: &Method, scale: &Scale, only: &Only, place: &Place) {
    let overrides_for = |protocol: Option<&str>| -> Vec<&Override> {
        let matches = |part: &&Override| part.matches(&cell.dataset, cell.ipc, &cell.method, protocol);
        scale.overrides.iter().filter(matches).collect()
    };
    let overrides = overrides_for(None);
    let option = |flag: &str, value: Option<String>| value.map_or(vec![], |value| vec![flag.to_owned(), value]);
    let model = scale.model.clone();
    let train_per_class = option("--train-per-class", scale.train_per_class.map(|n| n.to_string()));
    let sets = |groups: Vec<&Vec<String>>| -> Vec<String> {
        groups.into_iter().flatten().flat_map(|set| ["--set".to_owned(), set.clone()]).collect()
    };
    let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<String>>();
    let folder = place.runs.join(cell.folder());
    let seed = cell.seed.to_string();
    let step = |stage: Stage, needs, what, how, inputs, outputs| Step {
        cell: cell.clone(),
        needs,
        what,
        how,
        inputs,
        outputs,
        log: folder.join("steps").join(format!("{}.log", stage.file_stem())),
        record: folder.join("steps").join(format!("{}.json", stage.file_stem())),
        stage,
    };

    let mut distilled = None;
    if let (Some(profile), Some(ipc)) = (&method.profile, cell.ipc) {
        let run_dir = folder.join("distill");
        let mut what = words(&["distill", "--config", profile, "--dataset", &cell.dataset, "--ipc"]);
        what.extend([ipc.to_string(), "--seed".into(), seed.clone(), "--name".into(), cell.method.clone()]);
        what.extend(train_per_class.clone());
        what.extend(option("--set", model.as_ref().map(|model| format!("model={model}"))));
        let of_overrides = overrides.iter().map(|part| &part.distill_set);
        what.extend(sets([&scale.distill_set, &method.set].into_iter().chain(of_overrides).collect()));
        let synthetic = run_dir.join("synthetic.safetensors");
        distilled = Some((steps.len(), synthetic.clone()));
        steps.push(step(
            Stage::Distill,
            None,
            what,
            place.how(&[("--run-dir", &run_dir)]),
            vec![place.root.join(profile)],
            vec![synthetic],
        ));
    }
    for protocol in scale.protocols.iter().filter(|protocol| only.takes("protocol", protocol)) {
        let overrides = overrides_for(Some(protocol));
        let run_dir = folder.join(protocol);
        let checkpoint = run_dir.join("model.safetensors");
        let mut what = words(&["train", "--protocol", protocol, "--seed", &seed]);
        let of_overrides = overrides.iter().map(|part| &part.train_set);
        let (mut paths, mut inputs) = (vec![("--run-dir", run_dir.as_path())], vec![]);
        match &distilled {
            Some((_, synthetic)) => {
                paths.insert(0, ("--synthetic", synthetic));
                inputs.push(synthetic.clone());
            }
            None => {
                what.extend(words(&["--dataset", &cell.dataset]));
                what.extend(train_per_class.clone());
            }
        }
        what.extend(option("--model", model.clone()));
        what.extend(sets([&scale.train_set].into_iter().chain(of_overrides).collect()));
        let trained = steps.len();
        let needs = distilled.as_ref().map(|(position, _)| *position);
        steps.push(step(
            Stage::Train(protocol.clone()),
            needs,
            what,
            place.how(&paths),
            inputs,
            vec![checkpoint.clone()],
        ));

        let report = run_dir.join("attack.json");
        let mut what = words(&["attack", "--dataset", &cell.dataset, "--attack", &scale.attacks.join(",")]);
        what.extend(words(&["--norm", &scale.norm, "--eps", &scale.epsilon, "--each", "--seed", &seed]));
        what.extend(option("--n-test", scale.n_test.map(|n| n.to_string())));
        what.extend(scale.attack_args.iter().chain(overrides.iter().flat_map(|part| &part.attack_args)).cloned());
        steps.push(step(
            Stage::Attack(protocol.clone()),
            Some(trained),
            what,
            place.how(&[("--checkpoint", &checkpoint), ("--output", &report)]),
            vec![checkpoint],
            vec![report],
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::{super::experiment::tests::example, *};
    use crate::process::shell_line;

    fn place() -> Place {
        Place {
            root: "/repo".into(),
            runs: "/repo/runs/example-quick".into(),
            data: None,
            threads: Some(1),
            device: None,
            force: false,
        }
    }

    fn steps(only: &str) -> anyhow::Result<Vec<Step>> {
        let experiment = example();
        expand(&experiment, experiment.scale("quick").unwrap(), &only.parse().unwrap(), &place())
    }

    #[test]
    fn the_whole_grid() {
        // Per dataset and seed: the reference (2 protocols x 2 commands), and 2 methods x 2 ipcs x 5 commands.
        assert_eq!(steps("").unwrap().len(), 2 * 3 * (4 + 2 * 2 * 5));
    }

    #[test]
    fn one_cell_in_full() {
        let steps = steps("dataset=cifar10,ipc=10,method=class-mean,seed=2,protocol=natural").unwrap();
        let lines: Vec<String> = steps.iter().map(|step| shell_line(step.args())).collect();
        let folder = "runs/example-quick/cifar10/ipc10/class-mean/seed2";
        assert_eq!(
            lines,
            [
                format!(
                    "distill --config data/profiles/faithful.toml --dataset cifar10 --ipc 10 --seed 2 --name class-mean \
                     --train-per-class 500 --set model=ConvNet-D3-W32-IN --set iterations=30 --set crl=false --set eta=0.6 \
                     --run-dir {folder}/distill --threads 1"
                ),
                format!(
                    "train --protocol natural --seed 2 --model ConvNet-D3-W32-IN --set steps=20 --synthetic \
                     {folder}/distill/synthetic.safetensors --run-dir {folder}/natural --threads 1"
                ),
                format!(
                    "attack --dataset cifar10 --attack fgsm,pgd --norm linf --eps 0.1 --each --seed 2 --n-test 100 \
                     --checkpoint {folder}/natural/model.safetensors --output {folder}/natural/attack.json --threads 1"
                ),
            ]
        );
        assert_eq!(steps.iter().map(|step| step.needs).collect::<Vec<_>>(), [None, Some(0), Some(1)]);
    }

    #[test]
    fn the_reference_is_trained_on_the_dataset() {
        let steps = steps("dataset=digits,ipc=all,seed=0").unwrap();
        assert_eq!(steps.len(), 4);
        assert_eq!(steps[0].name(), "digits/all/full/seed0 train-natural");
        assert!(
            shell_line(steps[0].args())
                .starts_with("train --protocol natural --seed 0 --dataset digits --train-per-class 500")
        );
        assert!(steps[0].needs.is_none() && steps[2].needs.is_none());
    }

    #[test]
    fn every_needed_command_comes_first_and_feeds_the_one_that_needs_it() {
        let steps = steps("").unwrap();
        for (position, step) in steps.iter().enumerate() {
            if let Some(needed) = step.needs {
                assert!(needed < position);
                assert!(step.inputs.iter().all(|input| steps[needed].outputs.contains(input)));
            }
        }
    }

    #[test]
    fn selections_add_up_and_mistakes_are_named() {
        assert_eq!(steps("dataset=digits,seed=0,ipc=1,ipc=10,method=c2r").unwrap().len(), 10);
        let merged = Only::merge(["ipc=1", "ipc=10"].map(|text| text.parse().unwrap()));
        assert_eq!(merged, "ipc=1,ipc=10".parse().unwrap());
        let message = |only: &str| exit::message(&steps(only).unwrap_err());
        assert!(message("dataset=mnist").contains("no dataset `mnist`; there are: digits, cifar10"));
        assert!(message("ipc=5").contains("there are: 1, 10, all"));
        assert!(message("method=full,ipc=1").contains("`ipc=all`"));
        assert!("dataset".parse::<Only>().unwrap_err().contains("not key=value"));
        assert!("size=3".parse::<Only>().unwrap_err().contains("no key `size`; there are: dataset, ipc"));
    }

    #[test]
    fn places_change_how_and_not_what() {
        let experiment = example();
        let scale = experiment.scale("quick").unwrap();
        let elsewhere = Place {
            runs: "/elsewhere/runs".into(),
            data: Some("/data sets".into()),
            threads: None,
            device: Some("cuda:1".into()),
            force: true,
            ..place()
        };
        let here = expand(&experiment, scale, &Only::default(), &place()).unwrap();
        let there = expand(&experiment, scale, &Only::default(), &elsewhere).unwrap();
        assert!(here.iter().zip(&there).all(|(a, b)| a.what == b.what));
        assert_eq!(
            shell_line(&there[0].how),
            "--run-dir /elsewhere/runs/digits/all/full/seed0/natural --data '/data sets' --device cuda:1 --force"
        );
    }
}
