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

/// Measure speed: benchmarks of a crate, or c2r next to Python references
///
/// --peers installs torch 2.11, torchattacks 3.5.1 and pyautoattack 0.2.0 into a Python environment in the cache folder (5 GB, once),
/// or uses the environment of --python.
#[derive(Debug, Clone, clap::Args)]
#[command(after_long_help = include_str!("help/bench.txt"))]
pub(crate) struct Args {
    /// What to measure: attacks, data, distill or models (crates, without `c2r-`), or gpu (all times of a GPU in docs/performance.md)
    #[arg(value_name = "CRATE")]
    what: String,

    #[command(flatten)]
    peers: Peers,

    /// With `bench gpu`: a rehearsal on the digits
    #[arg(long)]
    tiny: bool,

    /// With `bench gpu`: use c2r as it was built last
    #[arg(long)]
    prebuilt: bool,
}

/// The command.
pub(crate) fn run(args: &Args, checkout: &Checkout) -> anyhow::Result<()> {
    let Peers { device, json, peers, .. } = &args.peers;
    if args.what == "gpu" && !peers {
        if args.prebuilt {
            checkout.check_c2r()?;
        }
        // Also for what is built: it may have come from another machine, and the link did not.
        setup::ensure(checkout)?;
        if !args.prebuilt {
            checkout.build_c2r()?;
        }
        return gpu::run(device, args.tiny, json.clone(), checkout);
    }
    if args.tiny || args.prebuilt || (!peers && (json.is_some() || device != "cpu")) {
        return Err(exit::usage("--tiny and --prebuilt are for `gpu`; --device and --json are for `gpu` and --peers"));
    }
    let package = format!("c2r-{}", args.what.trim_start_matches("c2r-"));
    if !peers && !checkout.root().join("crates").join(&package).join("benches").is_dir() {
        return Err(exit::usage(format!("`{}` has no benchmarks: crates/{package}/benches does not exist", args.what)));
    }
    if *peers && !["c2r-attacks", "c2r-data", "c2r-distill"].contains(&package.as_str()) {
        return Err(exit::usage("--peers is for `attacks`, `data` and `distill`"));
    }
    if args.peers.pictures.is_some() && package != "c2r-data" {
        return Err(exit::usage("--pictures is for `data`"));
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
