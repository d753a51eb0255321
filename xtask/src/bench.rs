//! `cargo xtask bench`: benchmarks, and our attacks and readers next to the references on the same inputs.

mod distill;
mod gpu;
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
  cargo xtask bench attacks --peers --device cuda --python env/bin/python --n 1000
  cargo xtask bench distill --peers --width 32 --n 64
  cargo xtask bench gpu --device cuda
  cargo xtask bench gpu --tiny
  cargo xtask bench data --peers --pictures ~/datasets/tiny-imagenet-200/train
  cargo xtask bench attacks --peers --model m.pt --inputs x.safetensors --n 100 --eps 4/255 --only pgd,apgd-ce

--peers installs torch 2.11, torchattacks 3.5.1 and pyautoattack 0.2.0 into a Python environment in the cache folder \
(5 GB, once), or takes the one of --python. Without --model: the reference models in ../shared/goldens where they are, \
else the small network for the digits that the tests use. docs/attacks/speed.md says what is timed. \
\
distill --peers: an update of C2R beside tests/peers/c2r_update.py, after a check that both compute the same losses. \
gpu: every figure that docs/performance.md has of a GPU, in under four minutes on an H100. \
data --peers: JPEGs are made, and read and resized by c2r and by torchvision 0.26 (docs/performance.md).
Exit code 4: an attack's robust accuracy differs from the reference's by more than 0.5 points, or the losses of an update do.")]
pub(crate) struct Args {
    /// What to measure: `gpu`, or a crate's name without `c2r-`, such as `attacks`
    #[arg(value_name = "CRATE")]
    what: String,

    #[command(flatten)]
    peers: Peers,

    /// gpu: rehearse on the digits
    #[arg(long)]
    tiny: bool,

    /// gpu: take c2r as it was built last
    #[arg(long)]
    prebuilt: bool,
}

/// The command.
pub(crate) fn run(args: &Args, checkout: &Checkout) -> anyhow::Result<()> {
    let Peers { device, json, peers, .. } = &args.peers;
    if args.what == "gpu" && !peers {
        return gpu::run(device, args.tiny, args.prebuilt, json.clone(), checkout);
    }
    if args.tiny || args.prebuilt || (!peers && (json.is_some() || device != "cpu")) {
        return Err(exit::usage("--tiny and --prebuilt are about `gpu`; --device and --json about `gpu` and --peers"));
    }
    let package = format!("c2r-{}", args.what.trim_start_matches("c2r-"));
    if !checkout.root().join("crates").join(&package).join("benches").is_dir() {
        return Err(exit::usage(format!("`{}` has no benchmarks: there is no crates/{package}/benches", args.what)));
    }
    if *peers && !["c2r-attacks", "c2r-data", "c2r-distill"].contains(&package.as_str()) {
        return Err(exit::usage("--peers is about `attacks`, `data` and `distill`"));
    }
    if args.peers.pictures.is_some() && package != "c2r-data" {
        return Err(exit::usage("--pictures is about `data`"));
    }
    setup::ensure(checkout)?;
    if *peers {
        return match package.as_str() {
            "c2r-data" => loaders::run(&args.peers, checkout),
            "c2r-distill" => distill::run(&args.peers, checkout),
            _ => peers::run(&args.peers, checkout),
        };
    }
    let mut command = checkout.cargo();
    command.args(["bench", "--package", &package]);
    checkout::with_libtorch(&mut command, &checkout.libtorch_link());
    checkout.run_cargo(&mut command, "measuring")
}
