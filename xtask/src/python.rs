//! The Python of this machine: a possible home of libtorch, and the way to pip.

use std::{path::PathBuf, process::Command};

use crate::{exit, process};

/// Where the `torch` package of this Python lies, without importing it (that takes seconds).
const FIND_TORCH: &str = "\
import importlib.util, os
spec = importlib.util.find_spec('torch')
print(os.path.dirname(spec.origin) if spec and spec.origin else '')";

/// A Python 3 interpreter.
#[derive(Debug, Clone)]
pub(crate) struct Python {
    program: &'static str,
}

impl Python {
    /// The first of `python3` and `python` that is a Python 3.
    pub(crate) fn find() -> Option<Self> {
        ["python3", "python"].into_iter().find_map(|program| {
            let output = process::output(Command::new(program).args(["-c", "import sys; print(sys.version_info[0])"]));
            let output = output.ok()??;
            (output.status.success() && output.stdout.starts_with(b"3")).then_some(Self { program })
        })
    }

    /// A Python that has pip.
    ///
    /// # Errors
    /// What to install.
    pub(crate) fn with_pip() -> anyhow::Result<Self> {
        let Some(python) = Self::find() else {
            return Err(exit::usage(format!(
                "no Python 3 was found, and libtorch is downloaded with its pip; {INSTALL}"
            )));
        };
        match process::output(python.pip().arg("--version"))? {
            Some(output) if output.status.success() => Ok(python),
            _ => Err(exit::usage(format!(
                "`{} -m pip` does not run, and libtorch is downloaded with pip; {INSTALL}",
                python.program
            ))),
        }
    }

    /// The interpreter.
    pub(crate) fn command(&self) -> Command {
        Command::new(self.program)
    }

    /// Its pip.
    pub(crate) fn pip(&self) -> Command {
        let mut command = self.command();
        command.args(["-m", "pip"]);
        command
    }

    /// The folder of its `torch` package, if it has one.
    pub(crate) fn torch_folder(&self) -> Option<PathBuf> {
        let output = process::output(self.command().args(["-c", FIND_TORCH])).ok()??;
        let folder = String::from_utf8(output.stdout).ok()?;
        (output.status.success() && !folder.trim().is_empty()).then(|| PathBuf::from(folder.trim()))
    }
}

const INSTALL: &str = "install both, for example\n    \
    Debian, Ubuntu:  sudo apt-get install python3-pip\n    \
    Fedora, RHEL:    sudo dnf install python3-pip\n    \
    Arch:            sudo pacman -S python-pip\n  \
    or set LIBTORCH to an unpacked libtorch";
