//! The Python package in `python/`: it is installed as its users install it, and its tests are run.

use std::{path::Path, process::Command};

use c2r_run::{exit, terminal as ui};
use c2r_setup::python::{self, Environment};

use crate::checkout::Checkout;

/// What the package needs, what builds it, and what its tests use.
const ENVIRONMENT: Environment = Environment {
    folder: "package-1",
    requirements: &[
        "torch==2.11.0",
        "torchvision==0.26.0",
        "torchattacks==3.5.1",
        "pyautoattack==0.2.0",
        "robustbench==1.1.1",
        "numpy==2.4.6",
        "safetensors==0.8.0",
        "matplotlib==3.11.2",
        "nbclient==0.11.0",
        "ipykernel==7.4.0",
        "pytest==9.2.0",
        "setuptools==80.9.0",
    ],
    size: "5 GB",
};

/// Installs the package and runs its tests.
///
/// * `make`: makes its environment if it is not there; without, the tests are skipped then.
/// * `strict`: what this machine lacks is an error.
///
/// # Errors
/// If the package cannot be built, or a test fails.
pub(crate) fn test(make: bool, strict: bool, checkout: &Checkout) -> anyhow::Result<()> {
    if !make && !ENVIRONMENT.is_there() {
        ui::notes(format!(
            "SKIPPED: tests of the Python package; `cargo xtask test --python` makes their environment ({}) and runs them",
            ENVIRONMENT.size
        ));
        return Ok(());
    }
    let python = match ENVIRONMENT.python() {
        Ok(python) => python,
        Err(error) if strict => return Err(error),
        Err(error) => {
            ui::notes(format!("SKIPPED: tests of the Python package: {}", exit::message(&error)));
            return Ok(());
        }
    };
    let folder = checkout.root().join("python");
    let mut pip = python::pip(Command::new(&python), &folder.join("target"))?;
    pip.args(["install", "--quiet", "--no-deps", "--force-reinstall"]).arg(&folder);
    checkout.run_cargo(of_the_environment(&mut pip, &python), "building the Python package")?;
    let mut pytest = Command::new(&python);
    pytest.args(["-m", "pytest", "--quiet"]).current_dir(&folder).env("C2R_COMMAND", checkout.c2r());
    if strict {
        pytest.env("C2R_TEST_STRICT", "1");
    }
    checkout.run_cargo(of_the_environment(&mut pytest, &python), "testing the Python package")
}

/// As in an activated environment, and without what cargo set for xtask.
fn of_the_environment<'a>(command: &'a mut Command, python: &Path) -> &'a mut Command {
    let folder = python.ancestors().nth(2).unwrap_or(python);
    command.env("VIRTUAL_ENV", folder).env_remove("LIBTORCH").env_remove("CARGO_MANIFEST_DIR")
}
