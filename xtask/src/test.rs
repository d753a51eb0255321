//! `cargo xtask test`: every test of the workspace, or the checks that run whole commands, or the tests of the Python package.

use std::path::PathBuf;

use c2r_run::{exit, terminal as ui};

use crate::{
    checkout::{self, Checkout},
    package,
    python::Environment,
    regression, setup, smoke,
};

/// What Python's side of the file formats is tested with, and NVRTC, which compiles the CUDA kernels without a GPU. The
/// variable names its interpreter.
const ENVIRONMENT: Environment = Environment {
    folder: "tests-1",
    requirements: &[
        "numpy==2.4.6",
        "safetensors==0.8.0",
        "pillow==12.0.0",
        "nvidia-cuda-nvrtc==13.0.88; sys_platform == 'linux'",
    ],
    size: "400 MB",
};
const ENVIRONMENT_VARIABLE: &str = "C2R_TEST_PYTHON";

/// Run the tests, documentation examples included, and those of the Python package where its environment was made before
#[derive(Debug, Clone, clap::Args)]
#[command(group(clap::ArgGroup::new("commands").args(["regression", "device", "python"])))]
#[command(after_help = "\
Examples:
  cargo xtask test
  cargo xtask test --python             the Python package alone; its environment takes 5 GB
  cargo xtask test --crate c2r-attacks pgd
  C2R_DATA=~/datasets cargo xtask test --slow
  cargo xtask test --regression --data ~/datasets
  cargo xtask test --device cuda        every command of c2r once on the GPU, in seconds

--regression exits with 4 if a number has moved.")]
pub(crate) struct Args {
    /// Also run what is marked as slow, and fail where a test lacks its data instead of skipping it
    #[arg(long)]
    slow: bool,

    /// Install the Python package (python/) into an environment of its own and run its tests, instead of the other tests
    #[arg(long, conflicts_with_all = ["package", "filter"])]
    python: bool,

    /// Run small experiments afresh and compare their numbers with the committed ones, instead of the tests
    #[arg(long, conflicts_with_all = ["package", "filter"])]
    regression: bool,

    /// Take numbers that have moved, and write them into the change log
    #[arg(long, requires = "regression")]
    accept: bool,

    /// Folder with the datasets for --regression [default: the variable C2R_DATA]
    #[arg(long, value_name = "DIR", requires = "regression")]
    data: Option<PathBuf>,

    /// Run every command of c2r once on this device (cpu, cuda or cuda:N), instead of the tests
    #[arg(long, value_name = "DEVICE", conflicts_with_all = ["slow", "package", "filter"])]
    device: Option<String>,

    /// With --regression, --device or --python: take c2r as it was built last, by the tests, say
    #[arg(long, requires = "commands")]
    prebuilt: bool,

    /// Only this crate
    #[arg(long = "crate", value_name = "NAME")]
    package: Option<String>,

    /// Only tests whose name contains this
    filter: Option<String>,
}

/// The command.
pub(crate) fn run(args: &Args, checkout: &Checkout) -> anyhow::Result<()> {
    setup::ensure(checkout)?;
    let c2r = checkout.c2r();
    if args.prebuilt && !c2r.is_file() {
        return Err(exit::usage(format!("--prebuilt: there is no {}", c2r.display())));
    }
    if (args.regression || args.device.is_some() || args.python) && !args.prebuilt {
        checkout.build_c2r()?;
    }
    if args.regression {
        return regression::run(args.accept, args.data.as_deref(), args.slow, checkout);
    }
    if let Some(device) = &args.device {
        return smoke::run(device, checkout);
    }
    if args.python {
        return package::test(true, args.slow, checkout);
    }
    let mut command = checkout.cargo();
    command.args(cargo_words(args));
    checkout::with_libtorch(&mut command, &checkout.libtorch_link());
    if args.slow {
        command.env("C2R_TEST_STRICT", "1");
    }
    match ENVIRONMENT.python() {
        Ok(python) => drop(command.env(ENVIRONMENT_VARIABLE, python)),
        Err(error) if args.slow => return Err(error),
        Err(error) => {
            ui::notes(format!("SKIPPED: the tests of Python's side and of the CUDA kernels: {}", exit::message(&error)))
        }
    }
    checkout.run_cargo(&mut command, "testing")?;
    if args.package.is_some() || args.filter.is_some() {
        return Ok(());
    }
    package::test(false, args.slow, checkout)
}

fn cargo_words(args: &Args) -> Vec<String> {
    let mut words: Vec<String> = ["test", "--release", "--no-fail-fast"].map(String::from).into();
    match &args.package {
        Some(name) => words.extend(["--package".into(), name.clone()]),
        None => words.push("--workspace".into()),
    }
    words.extend(args.filter.clone());
    if args.slow {
        words.extend(["--".into(), "--include-ignored".into()]);
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_for_cargo() {
        let check = |slow, package: Option<&str>, filter: Option<&str>, words: &str| {
            let args = Args {
                slow,
                python: false,
                regression: false,
                accept: false,
                data: None,
                device: None,
                prebuilt: false,
                package: package.map(Into::into),
                filter: filter.map(Into::into),
            };
            assert_eq!(cargo_words(&args).join(" "), words);
        };
        check(false, None, None, "test --release --no-fail-fast --workspace");
        check(
            true,
            Some("c2r-data"),
            Some("cifar"),
            "test --release --no-fail-fast --package c2r-data cifar -- --include-ignored",
        );
    }
}
