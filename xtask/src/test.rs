//! `cargo xtask test`: every test of the workspace, or the checks that run whole commands, or the tests of the Python package.

use std::{path::PathBuf, process::Stdio};

use anyhow::Context;
use c2r_grid::Workplace;
use c2r_run::{exit, terminal as ui};
use c2r_setup::python::Environment;

use crate::{
    checkout::{self, Checkout},
    package, setup, smoke,
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

/// Run the tests, including the examples in the documentation
///
/// The tests of the Python package are included if --python has made its environment before.
#[derive(Debug, Clone, clap::Args)]
#[command(group(clap::ArgGroup::new("commands").args(["regression", "device", "python"])))]
#[command(after_long_help = include_str!("help/test.txt"))]
pub(crate) struct Args {
    /// Also run slow tests, and fail tests whose data is missing instead of skipping them
    #[arg(long)]
    slow: bool,

    /// Instead of the other tests, install the Python package (python/) and run its tests
    #[arg(long, conflicts_with_all = ["package", "filter"])]
    python: bool,

    /// Instead of the tests, run small experiments and compare their numbers with the committed ones
    #[arg(long, conflicts_with_all = ["package", "filter"])]
    regression: bool,

    /// Replace the committed numbers by the new ones, and add what changed to CHANGELOG.md
    #[arg(long, requires = "regression")]
    accept: bool,

    /// Folder with the downloaded datasets for --regression [default: the variable C2R_DATA]
    #[arg(long, value_name = "DIR", requires = "regression")]
    data: Option<PathBuf>,

    /// Instead of the tests, run every command of c2r once on this device: cpu, cuda or cuda:N
    #[arg(long, value_name = "DEVICE", conflicts_with_all = ["slow", "package", "filter"])]
    device: Option<String>,

    /// With --regression, --device or --python: use c2r as it was built last, for example by the tests
    #[arg(long, requires = "commands")]
    prebuilt: bool,

    /// Test only this crate
    #[arg(long = "crate", value_name = "NAME")]
    package: Option<String>,

    /// Run only tests whose name contains this
    filter: Option<String>,
}

/// The command.
pub(crate) fn run(args: &Args, checkout: &Checkout) -> anyhow::Result<()> {
    if args.device.is_none() {
        checkout.needs_sources("testing")?;
    }
    if let Some(name) = &args.package {
        check_crate(name, checkout)?;
    }
    setup::ensure(checkout)?;
    let c2r = checkout.c2r();
    if args.prebuilt {
        checkout.check_c2r()?;
    }
    if (args.regression || args.device.is_some() || args.python) && !args.prebuilt {
        checkout.build_c2r()?;
    }
    if args.regression {
        let place = Workplace {
            root: checkout.root().to_owned(),
            c2r,
            results: checkout.root().join("target/regression"),
            data: checkout::data_folder(args.data.as_deref())?,
            can_build: !checkout.is_unpacked(),
            threads: None,
            device: Some("cpu".into()),
            force: false,
            estimate_for: None,
        };
        return c2r_grid::regression(args.accept, args.slow, &place);
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
    // Tests run side by side, one for each core: more threads within each only wait for one another.
    if checkout::variable("OMP_NUM_THREADS").is_none() {
        command.env("OMP_NUM_THREADS", "1");
    }
    if args.slow {
        command.env("C2R_TEST_STRICT", "1");
    }
    match ENVIRONMENT.python() {
        Ok(python) => drop(command.env(ENVIRONMENT_VARIABLE, python)),
        Err(error) if args.slow => return Err(error),
        Err(error) => ui::notes(format!(
            "SKIPPED: tests that need Python (file formats, CUDA kernels): {}",
            exit::message(&error)
        )),
    }
    checkout.run_cargo(&mut command, "testing")?;
    if args.package.is_some() || args.filter.is_some() {
        return Ok(());
    }
    package::test(false, args.slow, checkout)
}

/// Refuses a crate that does not exist before anything is installed for its tests.
fn check_crate(name: &str, checkout: &Checkout) -> anyhow::Result<()> {
    let mut command = checkout.cargo();
    command.args(["pkgid", "--quiet", "--package", name]).stdout(Stdio::null()).stderr(Stdio::null());
    if command.status().context("cannot start cargo")?.success() {
        return Ok(());
    }
    Err(exit::usage(format!("--crate {name}: the workspace has no such crate; its crates are in the folder crates")))
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
