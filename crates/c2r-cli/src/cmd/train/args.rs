//! Options of `c2r train`.

use std::{num::NonZeroUsize, path::PathBuf};

use c2r_base::Epsilon;
use c2r_experiment::Selection;
use c2r_models::ModelSpec;
use c2r_run::arguments::any_text;
use c2r_train::Protocol;

use super::values::{Rate, parse_rate, parse_share, protocols, selections};
use crate::help;

/// Train a network on a synthetic set, or on real images as the upper reference
///
/// Writes to RUN_DIR: model.safetensors (weights, architecture and what it was trained on), log.jsonl and run.json. The network
/// of the last step is kept, and test images are not used, unless --select says otherwise. The same command on the same folder
/// resumes an interrupted run.
#[derive(clap::Args)]
#[command(group = clap::ArgGroup::new("images").required(true).args(["synthetic", "dataset"]))]
#[command(
    override_usage = "c2r train [OPTIONS] --run-dir <DIR> <--synthetic <SET>|--dataset <NAME>>",
    after_long_help = "\
Examples:
  # On the synthetic set of a run folder
  c2r train --synthetic runs/first --protocol pgd-at --seed 0 --run-dir runs/first/pgd-at

  # On a file, with another network and number of steps
  c2r train --synthetic set.safetensors --model ResNet18-IN --set length={steps=2000} \\
      --run-dir runs/resnet

  # On all training images of CIFAR-10
  c2r train --dataset cifar10 --data DIR --protocol pgd-at --run-dir runs/full

  # Show the settings of a protocol
  c2r train --dataset digits --protocol trades --print-config

Each protocol is a file in data/protocols; --set changes single keys. On real images (--dataset), length and learning rate come \
from the section [full-data] of that file, so that training converges; --set and --lr override these, too."
)]
pub(crate) struct Args {
    /// Synthetic set: safetensors, npz or PNG folder of c2r, or the run folder of `c2r distill`
    #[arg(long, value_name = "SET")]
    pub(super) synthetic: Option<PathBuf>,

    #[arg(
        long,
        value_name = "NAME",
        value_parser = any_text(),
        help = REAL,
        long_help = help::long(REAL, &help::long(help::DATASET, help::ABOUT_DATASETS))
    )]
    pub(super) dataset: Option<String>,

    /// Folder with the downloaded datasets
    #[arg(long, value_name = "DIR", env = "C2R_DATA")]
    pub(super) data: Option<PathBuf>,

    /// Use only the first N training images of each class
    #[arg(long, value_name = "N", conflicts_with = "synthetic")]
    pub(super) train_per_class: Option<NonZeroUsize>,

    /// How to train; results under different protocols are never put in one table
    #[arg(long, value_name = "PROTOCOL", default_value = "natural", value_parser = protocols())]
    pub(super) protocol: Protocol,

    /// Change one key of the protocol, e.g. --set length={steps=500} (repeatable)
    #[arg(long, value_name = "KEY=VALUE")]
    pub(super) set: Vec<String>,

    #[arg(long, value_name = "ARCH", help = format!("{} [default: the dataset's]", help::MODEL))]
    pub(super) model: Option<ModelSpec>,

    /// Learning rate: a number, or `learned` [default: the protocol's]
    ///
    /// `learned` uses the learning rate that was learned during distillation and stored in the set (MTT and MAT only).
    #[arg(long, value_name = "RATE", value_parser = parse_rate)]
    pub(super) lr: Option<Rate>,

    /// Radius of adversarial training in pixel units, e.g. 2/255 [default: the dataset's]
    #[arg(long, value_name = "EPS", alias = "epsilon")]
    pub(super) eps: Option<Epsilon>,

    /// Seed of initialization, order and augmentation
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(super) seed: u64,

    /// Folder to write to; not needed with --estimate or --print-config
    #[arg(long, value_name = "DIR", required_unless_present_any = ["estimate", "print_config"])]
    pub(super) run_dir: Option<PathBuf>,

    /// Which step's network to keep
    #[arg(long, value_name = "WHICH", default_value = "last", value_parser = selections())]
    pub(super) select: Selection,

    /// Share of the real training images of each class on which --select held-out compares the networks [default: 0.1]
    #[arg(long, value_name = "SHARE", value_parser = parse_share)]
    pub(super) held_out_part: Option<f64>,

    /// Steps between the networks that --select compares [default: a hundredth of the training]
    #[arg(long, value_name = "STEPS", value_parser = clap::value_parser!(u64).range(1..))]
    pub(super) select_every: Option<u64>,

    /// Discard an earlier run in the run folder, whatever its configuration
    #[arg(long)]
    pub(super) force: bool,

    /// Print how long the command would take on this machine, then exit
    #[arg(long)]
    pub(super) estimate: bool,

    /// Print the resolved configuration as TOML, then exit
    #[arg(long, conflicts_with = "estimate")]
    pub(super) print_config: bool,

    /// Print a JSON object on stdout at the end
    #[arg(long)]
    pub(super) json: bool,
}

/// What `--dataset` is for.
const REAL: &str = "Train on a dataset's real images instead (the upper reference): digits, cifar10, ...";
