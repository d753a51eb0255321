//! Options of `c2r attack`.

use std::{
    num::NonZeroUsize,
    path::{Path, PathBuf},
};

use c2r_attacks::default_batch_size;
use c2r_base::{Epsilon, Norm, TargetRule};
use c2r_experiment::SubsetOrder;
use c2r_run::arguments::{self, any_text};
use clap::builder::TypedValueParser;
use tch::Device;

use crate::{help, state_dict::StateDictArgs};

/// Attack a classifier and report its robust accuracy
///
/// A classifier takes pixels in [0, 1], normalizes them itself, and returns logits. Epsilon and step sizes are in pixel units.
/// With --output or --save, the same command resumes an interrupted evaluation.
#[derive(clap::Args)]
#[command(group = clap::ArgGroup::new("classifier").required(true).args(["model", "checkpoint", "state_dict"]))]
#[command(group = clap::ArgGroup::new("images").required(true).args(["inputs", "dataset"]))]
#[command(after_long_help = "\
Examples:
  # A network of c2r, each attack by itself; the report is a row of `c2r table`
  c2r attack --checkpoint runs/first/pgd-at/model.safetensors --dataset digits \\
      --attack fgsm,pgd --eps 32/255 --each --output runs/first/pgd-at/attack.json

  # A TorchScript model under AutoAttack, on test images of CIFAR-10
  c2r attack --model m.pt --dataset cifar10 --data DIR --attack autoattack-standard --eps 8/255

  # The same on images of your own
  c2r attack --model m.pt --inputs x.safetensors --attack autoattack-standard --eps 8/255

  # A PyTorch state_dict whose network takes inputs normalized as in DC and DM
  c2r attack --state-dict net.pt --arch ConvNet-D3-W128-IN --normalized cifar10-dd \\
      --dataset cifar10 --data DIR --attack pgd --eps 2/255

Attacks for --attack (docs/attacks has the options of each, their defaults and sources):
  one step          fgsm r-fgsm
  iterative         bim pgd mi-fgsm ni-fgsm vmi-fgsm vni-fgsm tpgd eot-pgd jitter cw-linf
  adaptive          apgd-ce apgd-dlr apgd-t
  minimum norm      fab fab-t deepfool cw-l2
  black box         square
  no attack         clean (the images as they are), noise (random, within epsilon)
  suites            autoattack-standard autoattack-plus autoattack-rand paper-six

paper-six is fgsm, pgd, cw-linf, vmi-fgsm, jitter and autoattack-standard. Its iterative attacks take 10 steps of 2/255 \
at every --eps, as in the literature. They move a pixel by at most 20/255, so above --eps 10/255 they cannot get from \
one side of the epsilon ball to the other; use the attacks by name instead: their default step is epsilon/4.")]
pub(crate) struct Args {
    /// TorchScript model
    #[arg(long, value_name = "FILE")]
    pub(super) model: Option<PathBuf>,

    /// Network that c2r trained: its file, or the run folder of `c2r train`
    #[arg(long, value_name = "PATH")]
    pub(super) checkpoint: Option<PathBuf>,

    #[command(flatten)]
    pub(super) foreign: StateDictArgs,

    /// File of images: safetensors, .npz or torch.save with `images` and `labels`
    ///
    /// `images` is f32 in [0, 1] or u8, [N, C, H, W]; `labels` is i64, one for each image.
    #[arg(long, value_name = "FILE")]
    pub(super) inputs: Option<PathBuf>,

    #[arg(
        long,
        value_name = "NAME",
        value_parser = any_text(),
        help = TEST_IMAGES,
        long_help = help::long(TEST_IMAGES, &help::long(help::DATASET, help::ABOUT_DATASETS))
    )]
    pub(super) dataset: Option<String>,

    /// Folder with the downloaded datasets
    #[arg(long, value_name = "DIR", env = "C2R_DATA")]
    pub(super) data: Option<PathBuf>,

    /// Attacks and suites, separated by commas (`c2r attack --help` lists them)
    ///
    /// Without --each, every attack runs only on images that the earlier ones failed to break, so the accuracy in the
    /// last line is that against all attacks together (worst case).
    #[arg(long, value_name = "NAMES", value_delimiter = ',', required = true)]
    pub(super) attack: Vec<String>,

    /// Radius in pixel units: a fraction such as 2/255 or a decimal; only `--attack clean` needs none
    #[arg(long, value_name = "EPS", alias = "epsilon")]
    pub(super) eps: Option<Epsilon>,

    /// Norm of the perturbation
    #[arg(long, value_name = "NORM", default_value = "linf", ignore_case = true, value_parser = norms())]
    pub(super) norm: Norm,

    /// Run every attack independently, on all images that are classified correctly without an attack
    ///
    /// paper-six is then split into its six attacks, each reported by itself.
    #[arg(long)]
    pub(super) each: bool,

    /// Attack only N images; --subset says which
    #[arg(long, value_name = "N", alias = "limit", value_parser = clap::value_parser!(u64).range(1..))]
    pub(super) n_test: Option<u64>,

    /// Which N images --n-test takes
    #[arg(long, value_name = "ORDER", default_value = "class-balanced", value_parser = orders(), requires = "n_test")]
    pub(super) subset: SubsetOrder,

    /// Attack held-out training images: in each class, those after the first N
    ///
    /// Use it to choose settings for a run made with --train-per-class N.
    #[arg(long, value_name = "N", requires = "dataset", conflicts_with = "inputs")]
    pub(super) held_out_after: Option<NonZeroUsize>,

    /// Write a JSON report
    ///
    /// `c2r table` and `c2r report` only read reports that are called attack.json and were made with --dataset, and with --each if
    /// --attack lists several names (a suite counts as one). A network of --model or --state-dict also needs --ipc. Other
    /// reports have more detail on every image.
    #[arg(long, value_name = "FILE")]
    pub(super) output: Option<PathBuf>,

    /// Write the attacked images as a file that --inputs takes
    ///
    /// With several attacks and --each, those of each attack are called `images.NAME`; --inputs reads `images`, so rename one.
    #[arg(long, value_name = "FILE")]
    pub(super) save: Option<PathBuf>,

    /// With --output or --save, save the state every SECONDS seconds, at the end of the batch that is running
    ///
    /// A process that is killed loses the batches since then; Ctrl-C and --time-limit lose only the one that is running.
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    pub(super) checkpoint_seconds: u64,

    /// Discard an earlier or unfinished result
    #[arg(long)]
    pub(super) force: bool,

    /// Print how long the command would take on this machine, then exit
    #[arg(long)]
    pub(super) estimate: bool,

    /// Print one JSON object
    #[arg(long)]
    pub(super) json: bool,

    /// Number of steps
    #[arg(long, value_name = "N", help_heading = SETTINGS)]
    pub(super) steps: Option<String>,

    /// Length of a step in pixel units, such as 2/255
    #[arg(long, value_name = "EPS", help_heading = SETTINGS)]
    pub(super) step_size: Option<String>,

    /// Start at a random point of the ball: true or false
    #[arg(long, value_name = "BOOL", help_heading = SETTINGS)]
    pub(super) random_start: Option<String>,

    /// Queries per image
    #[arg(long, value_name = "N", help_heading = SETTINGS)]
    pub(super) queries: Option<String>,

    /// Attempts per image
    #[arg(long, value_name = "N", help_heading = SETTINGS)]
    pub(super) restarts: Option<String>,

    /// Any option of one attack: ATTACK.OPTION=VALUE, e.g. vmi-fgsm.neighbours=5 (repeatable)
    #[arg(long, value_name = "KEY=VALUE", help_heading = SETTINGS)]
    pub(super) set: Vec<String>,

    /// Try to turn every image into a target class, chosen by this rule
    #[arg(long, value_name = "RULE", value_parser = rules(), help_heading = SETTINGS)]
    pub(super) targets: Option<TargetRule>,

    /// Seed of all noise
    #[arg(long, value_name = "N", default_value_t = 0, help_heading = SETTINGS)]
    pub(super) seed: u64,

    /// Images per pass [default: 128 on the CPU, 1024 on a GPU, fewer for images larger than CIFAR's]
    ///
    /// Smaller batches need less memory; results change only by float rounding.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..), help_heading = SETTINGS)]
    pub(super) batch_size: Option<u64>,

    /// Do not replace average pooling and instance normalization of --model by faster equivalents
    #[arg(long, requires = "model", help_heading = SETTINGS)]
    pub(super) as_is: bool,

    #[command(flatten)]
    pub(super) row: RowArgs,
}

/// The attack that changes nothing.
pub(super) const CLEAN: &str = "clean";
const SETTINGS: &str = "Options of the attacks";
/// What `--dataset` is for.
const TEST_IMAGES: &str = "Attack a dataset's test images: digits, cifar10, ...";

fn norms() -> impl TypedValueParser<Value = Norm> {
    help::one_of([
        (Norm::Linf, "linf", "largest change of a value"),
        (Norm::L2, "l2", "Euclidean length"),
        (Norm::L1, "l1", "sum of the changes"),
    ])
}

pub(super) fn rules() -> impl TypedValueParser<Value = TargetRule> {
    help::one_of([
        (TargetRule::Next, "next", "the class after the label"),
        (TargetRule::Random, "random", "another class at random"),
        (TargetRule::LeastLikely, "least-likely", "the class with the smallest logit"),
        (TargetRule::SecondBest, "second-best", "the class with the largest logit besides the label"),
    ])
}

fn orders() -> impl TypedValueParser<Value = SubsetOrder> {
    help::one_of([
        (
            SubsetOrder::ClassBalanced,
            "class-balanced",
            "equal numbers per class (plus or minus one), the same images in every run",
        ),
        (SubsetOrder::First, "first", "the first N in the order of the files, to compare with older results"),
    ])
}

/// What a table needs to know about a network that c2r did not train.
#[derive(clap::Args)]
#[command(next_help_heading = "Describe a network for `c2r table`")]
pub(super) struct RowArgs {
    /// Images per class that the network was trained on, or `all`
    ///
    /// With --dataset and --output, it makes the report of a --model or --state-dict a row of `c2r table`.
    #[arg(long, value_name = "N", requires = "dataset", conflicts_with = "checkpoint", value_parser = parse_ipc)]
    pub(super) ipc: Option<Ipc>,

    /// Name of the network's method [default: the file's name and the beginning of its SHA-256]
    #[arg(long, value_name = "NAME", requires = "ipc", value_parser = arguments::name)]
    pub(super) method: Option<String>,

    /// How the network was trained; tables never mix protocols
    ///
    /// Give the name of one of c2r's protocols to share a table with c2r's networks.
    #[arg(long, value_name = "NAME", requires = "ipc", default_value = "unknown", value_parser = arguments::name)]
    pub(super) protocol: String,

    /// Training seed of the network, which tells networks of one method apart
    #[arg(long, value_name = "N", requires = "ipc", default_value_t = 0)]
    pub(super) train_seed: u64,

    /// Architecture of --model, e.g. ResNet18; tables never mix architectures [default: TorchScript]
    #[arg(long, value_name = "NAME", requires = "ipc", requires = "model", value_parser = arguments::name)]
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
