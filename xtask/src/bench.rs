//! `cargo xtask bench`: benchmarks, and our attacks and readers next to the references on the same inputs.

mod loaders;
mod peers;
mod python;

use c2r_run::exit;

use crate::{
    checkout::{self, Checkout},
    setup,
};
use python::Peers;

/// Measure speed: criterion's benchmarks, or ours next to the Python references
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
