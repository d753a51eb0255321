//! Options of `c2r attack`.

use std::{
    num::NonZeroUsize,
    path::{Path, PathBuf},
};

use c2r_attacks::default_batch_size;
use c2r_base::{Epsilon, Norm, TargetRule};
use c2r_experiment::SubsetOrder;
use c2r_run::arguments::any_text;
use serde_json::Value;
use tch::Device;

use crate::state_dict::StateDictArgs;

/// Attack a classifier and report its robust accuracy.
#[derive(clap::Args)]
#[command(group = clap::ArgGroup::new("classifier").required(true).args(["model", "checkpoint", "state_dict"]))]
#[command(group = clap::ArgGroup::new("images").required(true).args(["inputs", "dataset"]))]
#[command(after_help = "\
Examples:
  c2r attack --model m.pt --inputs x.safetensors --attack autoattack-standard --norm linf --eps 2/255
  c2r attack --model m.pt --dataset cifar10 --data DIR --attack autoattack-standard --eps 8/255 --estimate
  c2r attack --state-dict net.pt --arch ConvNet-D3-W128-IN --normalized cifar10-dd --dataset cifar10 --attack pgd --eps 2/255
  c2r attack --checkpoint runs/first/pgd-at/model.safetensors --dataset digits --attack fgsm,pgd --eps 32/255 --each

Attacks: clean noise fgsm r-fgsm bim pgd mi-fgsm ni-fgsm vmi-fgsm vni-fgsm tpgd eot-pgd jitter cw-linf apgd-ce \
apgd-dlr apgd-t deepfool cw-l2 fab fab-t square; suites: paper-six autoattack-standard autoattack-plus \
autoattack-rand. docs/attacks lists every option, its default and the source of the default.

PGD, CW, VMI-FGSM and Jitter of paper-six take 10 steps of 2/255 at every --eps, as the field does, so above 10/255 they \
are too weak. Named individually (fgsm,pgd,cw-linf,vmi-fgsm,jitter,autoattack-standard), they use steps of epsilon/4.

A model takes pixels in [0, 1] and returns logits; it normalizes them itself. Epsilon and step sizes are in pixel \
units. With --output or --save, the same command resumes an interrupted evaluation.")]
pub(crate) struct Args {
    /// A TorchScript model
    #[arg(long, value_name = "FILE")]
    pub(super) model: Option<PathBuf>,

    /// A network that c2r trained
    #[arg(long, value_name = "FILE")]
    pub(super) checkpoint: Option<PathBuf>,

    #[command(flatten)]
    pub(super) foreign: StateDictArgs,

    #[command(flatten)]
    pub(super) row: RowArgs,

    /// A safetensors file with `images` (f32 in `[0, 1]` or u8, `[N, C, H, W]`) and `labels` (i64 `[N]`)
    #[arg(long, value_name = "FILE")]
    pub(super) inputs: Option<PathBuf>,

    /// The test images of a dataset: digits, cifar10, ..., or folder:PATH
    #[arg(long, value_name = "NAME", value_parser = any_text())]
    pub(super) dataset: Option<String>,

    /// Folder that holds the downloaded datasets
    #[arg(long, value_name = "DIR", env = "C2R_DATA", requires = "dataset")]
    pub(super) data: Option<PathBuf>,

    /// Attack held-out training images instead of test images: in each class, those after the first N. Use it to choose
    /// settings for a run made with --train-per-class N
    #[arg(long, value_name = "N", requires = "dataset", conflicts_with = "inputs")]
    pub(super) held_out_after: Option<NonZeroUsize>,

    /// Attack only N images: a fixed sample that holds the same number of images of each class, up to one (--subset)
    #[arg(long, value_name = "N", alias = "limit", value_parser = clap::value_parser!(u64).range(1..))]
    pub(super) n_test: Option<u64>,

    /// Which N images --n-test takes: class-balanced (a fixed random order, in which the first 200 are among the first 1000)
    /// or first (the order of the files, for results that were made with it)
    #[arg(long, value_name = "ORDER", default_value = "class-balanced", value_parser = parse_order, requires = "n_test")]
    pub(super) subset: SubsetOrder,

    /// Attacks and suites, separated by commas; without --each, every attack runs only on images that the earlier ones
    /// failed to break, so the last line is the worst case of all
    #[arg(long, value_name = "NAMES", value_delimiter = ',', required = true)]
    pub(super) attack: Vec<String>,

    /// Judge every attack by itself, on all images that are classified correctly; paper-six then counts as six attacks
    #[arg(long)]
    pub(super) each: bool,

    /// Norm of the perturbation: linf, l2 or l1
    #[arg(long, value_name = "NORM", default_value = "linf")]
    pub(super) norm: Norm,

    /// Radius in pixel units: a fraction such as 2/255 or a decimal
    #[arg(long, value_name = "EPS")]
    pub(super) eps: Epsilon,

    /// Aim at one class per image: next, random, least-likely or second-best
    #[arg(long, value_name = "RULE", value_parser = parse_rule)]
    pub(super) targets: Option<TargetRule>,

    /// Number of steps
    #[arg(long, value_name = "N")]
    pub(super) steps: Option<String>,

    /// Length of a step in pixel units, such as 2/255
    #[arg(long, value_name = "EPS")]
    pub(super) step_size: Option<String>,

    /// Start at a random point of the ball: true or false
    #[arg(long, value_name = "BOOL")]
    pub(super) random_start: Option<String>,

    /// Queries per image
    #[arg(long, value_name = "N")]
    pub(super) queries: Option<String>,

    /// Attempts per image
    #[arg(long, value_name = "N")]
    pub(super) restarts: Option<String>,

    /// Any option of one attack: ATTACK.OPTION=VALUE, e.g. vmi-fgsm.neighbours=5 (repeatable)
    #[arg(long, value_name = "KEY=VALUE")]
    pub(super) set: Vec<String>,

    /// Seed of all noise
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(super) seed: u64,

    /// Images per pass; bounds memory, changes results by float rounding only [default: 128 on the CPU; on a GPU 1024, fewer
    /// where images are larger than CIFAR's]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub(super) batch_size: Option<u64>,

    /// Write a JSON report. With --checkpoint (or --ipc), --dataset and --each, `c2r table` can read it;
    /// otherwise it also lists the outcome for every image
    #[arg(long, value_name = "FILE")]
    pub(super) output: Option<PathBuf>,

    /// Write the attacked images as a file that --inputs takes; with several attacks and --each, those of each attack are
    /// called `images.NAME` instead of `images`
    #[arg(long, value_name = "FILE")]
    pub(super) save: Option<PathBuf>,

    /// With --output or --save, save the state every SECONDS seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    pub(super) checkpoint_seconds: u64,

    /// Print one JSON object
    #[arg(long)]
    pub(super) json: bool,

    /// Discard an earlier or unfinished result
    #[arg(long)]
    pub(super) force: bool,

    /// Do not replace average pooling and instance normalization of --model by equivalents that are faster on the CPU
    #[arg(long, requires = "model")]
    pub(super) as_is: bool,

    /// Print how long it would take on this machine, from a short measurement, and stop (with --json as one object)
    #[arg(long)]
    pub(super) estimate: bool,
}

pub(super) fn parse_rule(text: &str) -> Result<TargetRule, String> {
    serde_json::from_value(Value::String(text.to_owned()))
        .map_err(|_| "expected next, random, least-likely or second-best".to_owned())
}

fn parse_order(text: &str) -> Result<SubsetOrder, String> {
    serde_json::from_value(Value::String(text.to_owned())).map_err(|_| "expected class-balanced or first".to_owned())
}

/// What a table has to know of a network that c2r did not train.
#[derive(clap::Args)]
pub(super) struct RowArgs {
    /// Images per class that the network of --model or --state-dict was trained on, or `all` for the whole training set. The
    /// report (--output) is then a row of a table
    #[arg(long, value_name = "N", requires = "dataset", conflicts_with = "checkpoint", value_parser = parse_ipc)]
    pub(super) ipc: Option<Ipc>,

    /// Name of its method in tables [default: the file's name and the beginning of its SHA-256]
    #[arg(long, value_name = "NAME", requires = "ipc")]
    pub(super) method: Option<String>,

    /// How it was trained. Tables never mix protocols: give the name of c2r's to share a table with c2r's networks
    #[arg(long, value_name = "NAME", requires = "ipc", default_value = "unknown")]
    pub(super) protocol: String,

    /// Seed of its training, for tables: tells networks of one method apart
    #[arg(long, value_name = "N", requires = "ipc", default_value_t = 0)]
    pub(super) train_seed: u64,

    /// Architecture of --model, for tables, which never mix architectures either: ConvNet-D3-W128-IN, ResNet18, ...
    /// [default: TorchScript]
    #[arg(long, value_name = "NAME", requires = "ipc", requires = "model")]
    pub(super) model_name: Option<String>,
}

/// A number of images per class.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ipc {
    /// The whole training set.
    All,
    Some(usize),
}

fn parse_ipc(text: &str) -> Result<Ipc, String> {
    match text.parse() {
        _ if text == "all" => Ok(Ipc::All),
        Ok(n) if n > 0 => Ok(Ipc::Some(n)),
        _ => Err("expected a number of images or `all`".to_owned()),
    }
}

impl Args {
    /// The file of the classifier.
    pub(super) fn classifier(&self) -> &Path {
        let files = [&self.model, &self.checkpoint, &self.foreign.state_dict];
        files.into_iter().flatten().next().expect("clap requires one")
    }

    /// Images per pass, for images of `shape` (`[C, H, W]`).
    pub(super) fn batch_size(&self, device: Device, shape: [i64; 3]) -> usize {
        self.batch_size.map_or_else(|| default_batch_size(device, shape), |n| usize::try_from(n).unwrap_or(usize::MAX))
    }

    /// The files to write, by option.
    pub(super) fn outputs(&self) -> impl Iterator<Item = (&'static str, &Path)> {
        let all = [("--output", &self.output), ("--save", &self.save)];
        all.into_iter().filter_map(|(flag, path)| Some((flag, path.as_deref()?)))
    }
}
