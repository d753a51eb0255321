//! One `c2r` command of a grid, what decides its result, and where it runs.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use c2r_experiment::{Subgrid, results};

/// The option of every command that deletes earlier work.
const FORCE: &str = "--force";

/// One row of the table for one seed: what is distilled once and then trained and attacked per protocol.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cell {
    /// Dataset.
    pub dataset: String,
    /// Images per class; `None` for all.
    pub ipc: Option<usize>,
    /// Method.
    pub method: String,
    /// Seed.
    pub seed: u64,
}

impl Cell {
    /// Its folder below that of the table: `cifar10/ipc10/c2r/seed0`.
    pub(crate) fn folder(&self) -> String {
        let ipc = self.ipc.map_or_else(|| Subgrid::ALL_IMAGES.to_owned(), |ipc| format!("ipc{ipc}"));
        format!("{}/{ipc}/{}/seed{}", self.dataset, self.method, self.seed)
    }
}

/// A downstream network: how it is trained, and which one it is where that is not the dataset's own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Downstream {
    /// Name of the training protocol.
    pub protocol: String,
    /// The network, where the grid has several.
    pub model: Option<String>,
}

impl Downstream {
    /// `natural`, or `natural-ConvNet-D4-W128-IN`.
    fn name(&self) -> String {
        self.model.as_ref().map_or_else(|| self.protocol.clone(), |model| format!("{}-{model}", self.protocol))
    }
}

/// What a job does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stage {
    /// `c2r distill`.
    Distill,
    /// `c2r train`.
    Train(Downstream),
    /// `c2r attack` with one attack at one radius.
    Attack {
        /// What is attacked.
        network: Downstream,
        /// Name of the attack.
        attack: String,
        /// Radius, pixel units, e.g. `2/255`.
        epsilon: String,
    },
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

    /// The version of its numbers.
    pub(crate) fn results_version(&self) -> u32 {
        match self {
            Self::Distill => results::DISTILL,
            Self::Train(_) => results::TRAIN,
            Self::Attack { attack, .. } => results::attack(attack),
        }
    }

    /// The file in a job's folder that exists once the job is done.
    pub(crate) fn output(&self) -> &'static str {
        match self {
            Self::Distill => "synthetic.safetensors",
            Self::Train(_) => "model.safetensors",
            Self::Attack { .. } => "attack.json",
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

/// One `c2r` command, with a folder of its own that is named after everything that decides the result.
#[derive(Debug, Clone)]
pub struct Job {
    /// Which cell it belongs to.
    pub cell: Cell,
    /// What it does.
    pub stage: Stage,
    /// Position in the plan of the job whose output it reads.
    pub needs: Option<usize>,
    /// Number of the distilled set or reference it belongs to.
    pub chain: usize,
    /// `distill-0123456789abcdef`, the same wherever the same is asked for.
    pub id: String,
    /// Arguments that decide the result, the subcommand first.
    pub what: Vec<String>,
    /// Arguments that do not: paths, threads, device.
    pub how: Vec<String>,
    /// Where it writes everything.
    pub folder: PathBuf,
}

impl Job {
    /// `cifar10/ipc10/c2r/seed0 train natural`.
    pub fn name(&self) -> String {
        match &self.stage {
            Stage::Distill => format!("{} distill", self.cell.folder()),
            stage => format!("{} {} {}", self.cell.folder(), stage.command(), stage.folder()),
        }
    }

    /// All arguments of the command.
    pub fn args(&self) -> impl Iterator<Item = &String> {
        self.what.iter().chain(&self.how)
    }

    /// The same job without the option that deletes earlier work.
    pub(crate) fn unforced(&self) -> Self {
        let mut job = self.clone();
        job.how.retain(|word| word != FORCE);
        job
    }

    /// The file that exists once it is done.
    pub fn output(&self) -> PathBuf {
        self.folder.join(self.stage.output())
    }

    /// What it printed.
    pub(crate) fn log(&self) -> PathBuf {
        self.folder.join("log")
    }
}

/// Where and how jobs run.
#[derive(Debug, Clone)]
pub struct Workplace {
    /// The top of the checkout, where commands are started.
    pub root: PathBuf,
    /// The program `c2r`, built or not.
    pub c2r: PathBuf,
    /// The results folder, which experiments, processes and machines may share.
    pub results: PathBuf,
    /// Real data.
    pub data: Option<PathBuf>,
    /// Whether `c2r` can be built here: not in what `cargo xtask dist` packed.
    pub can_build: bool,
    /// CPU threads of each command.
    pub threads: Option<usize>,
    /// Device of each command.
    pub device: Option<String>,
    /// Whether earlier work on the jobs is deleted first.
    pub force: bool,
    /// Where times are estimated for: a file of speeds that were measured on another machine; `None` is this one.
    pub estimate_for: Option<PathBuf>,
}

impl Workplace {
    /// A path for a command line: relative where it lies in the checkout, so that it reads well.
    pub fn show(&self, path: &Path) -> String {
        path.strip_prefix(&self.root).unwrap_or(path).display().to_string()
    }

    /// The command `c2r` with `args`.
    pub(crate) fn command<A: AsRef<str>>(&self, args: impl IntoIterator<Item = A>) -> Command {
        let mut command = Command::new(&self.c2r);
        command.args(args.into_iter().map(|arg| arg.as_ref().to_owned())).current_dir(&self.root);
        c2r_run::process::with_libraries(&mut command, &self.root.join(".libtorch/lib"));
        command
    }

    /// Which datasets are not here, and what names the folder that should have them.
    pub(crate) fn no_data(&self, absent: &[String]) -> String {
        let looked = match &self.data {
            Some(folder) => format!("not in the data folder {}", folder.display()),
            None => "name the data folder with --data DIR or C2R_DATA".to_owned(),
        };
        format!("data not found: {} ({looked})", absent.join(", "))
    }

    /// The same for those who wanted to run jobs on them.
    pub fn no_data_to_run(&self, absent: &[String]) -> String {
        format!("{}; docs/datasets.md shows what belongs there, and --only leaves datasets out", self.no_data(absent))
    }

    /// The folder of a job.
    pub(crate) fn job(&self, id: &str) -> PathBuf {
        self.jobs().join(id)
    }

    /// The folder of all jobs, and of what is remembered between calls.
    pub(crate) fn jobs(&self) -> PathBuf {
        self.results.join("jobs")
    }

    /// Arguments that change no result.
    pub(crate) fn how(&self, paths: &[(&str, PathBuf)]) -> Vec<String> {
        let paths = paths.iter().map(|(flag, path)| (*flag, self.show(path)));
        let data = self.data.iter().map(|data| ("--data", self.show(data)));
        let threads = self.threads.iter().map(|threads| ("--threads", threads.to_string()));
        let device = self.device.iter().map(|device| ("--device", device.clone()));
        let options = paths.chain(data).chain(threads).chain(device);
        options.flat_map(|(flag, value)| [flag.to_owned(), value]).chain(self.force.then(|| FORCE.to_owned())).collect()
    }
}
