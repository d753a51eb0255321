//! `cargo xtask bench`: benchmarks, and our attacks and readers beside the references on the same inputs.

mod loaders;
mod peers;

use std::path::PathBuf;

use crate::{
    checkout::{self, Checkout},
    exit, setup,
};

/// Measure speed: criterion's benchmarks, or ours beside the Python references
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = "\
Examples:
  cargo xtask bench attacks
  cargo xtask bench attacks --peers
  cargo xtask bench data --peers --pictures ~/datasets/tiny-imagenet-200/train
  cargo xtask bench attacks --peers --model m.pt --inputs x.safetensors --n 100 --eps 4/255 --only pgd,apgd-ce

--peers installs torch 2.11, torchattacks 3.5.1 and pyautoattack 0.2.0 into a Python environment in the cache folder \
(5 GB, once), or takes the one of --python. Without --model: the reference models in ../shared/goldens where they are, \
else the small network for the digits that the tests use. docs/attacks/speed.md says what is timed. \
data --peers: JPEGs are made, and read and resized by c2r and by torchvision 0.26 (docs/datasets.md).
Exit code 4: an attack's robust accuracy differs from the reference's by more than 0.5 points.")]
pub(crate) struct Args {
    /// What to measure: `attacks`, or any crate's name without `c2r-`
    #[arg(value_name = "CRATE")]
    what: String,

    #[command(flatten)]
    peers: Peers,
}

/// What `--peers` takes.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Peers {
    /// Run ours and the reference's in turn: attacks of torchattacks and pyautoattack, or torchvision's ImageFolder
    #[arg(long)]
    peers: bool,

    /// A TorchScript model
    #[arg(long, value_name = "FILE", requires_all = ["peers", "inputs"])]
    model: Option<PathBuf>,

    /// A safetensors file with `images` and `labels`
    #[arg(long, value_name = "FILE", requires_all = ["peers", "model"])]
    inputs: Option<PathBuf>,

    /// Linf radius: a fraction such as 2/255 or a decimal [default: 2/255; 0.15 on the digits]
    #[arg(long, value_name = "EPS", requires = "peers")]
    eps: Option<String>,

    /// Attack only the first so many images [default: 200, and 50 for AutoAttack]; data: make so many JPEGs [default: 3000]
    #[arg(long, value_name = "N", requires = "peers")]
    n: Option<usize>,

    /// Only these attacks, separated by commas
    #[arg(long, value_name = "NAMES", value_delimiter = ',', requires = "peers")]
    only: Vec<String>,

    /// CPU threads of both sides [default: all cores]
    #[arg(long, value_name = "N", requires = "peers")]
    threads: Option<usize>,

    /// Rounds of each attack, in turn, each with its own seed; means of the accuracies and medians of the seconds are
    /// reported. AutoAttack runs once unless this is given [default: 3]
    #[arg(long, value_name = "N", requires = "peers", value_parser = clap::value_parser!(u32).range(1..))]
    repeats: Option<u32>,

    /// Scale up the JPEGs and PNGs below this folder [default: noise with the spectrum of photographs]
    #[arg(long, value_name = "DIR", requires = "peers")]
    pictures: Option<PathBuf>,

    /// A Python that has the packages already
    #[arg(long, value_name = "FILE", requires = "peers")]
    python: Option<PathBuf>,

    /// Write every single time here, too
    #[arg(long, value_name = "FILE", requires = "peers")]
    json: Option<PathBuf>,
}

/// The command.
pub(crate) fn run(args: &Args, checkout: &Checkout) -> anyhow::Result<()> {
    let package = format!("c2r-{}", args.what.trim_start_matches("c2r-"));
    if !checkout.root().join("crates").join(&package).join("benches").is_dir() {
        return Err(exit::usage(format!("`{}` has no benchmarks: there is no crates/{package}/benches", args.what)));
    }
    if args.peers.peers && !["c2r-attacks", "c2r-data"].contains(&package.as_str()) {
        return Err(exit::usage("--peers is about `attacks` and `data`"));
    }
    if args.peers.pictures.is_some() && package != "c2r-data" {
        return Err(exit::usage("--pictures is about `data`"));
    }
    setup::ensure(checkout)?;
    if args.peers.peers {
        return if package == "c2r-data" {
            loaders::run(&args.peers, checkout)
        } else {
            peers::run(&args.peers, checkout)
        };
    }
    let mut command = checkout.cargo();
    command.args(["bench", "--package", &package]);
    checkout::with_libtorch(&mut command, &checkout.libtorch_link());
    checkout.run_cargo(&mut command, "measuring")
}
