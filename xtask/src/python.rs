//! The Python of this machine: a possible home of libtorch, and the way to pip.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::Context;

use crate::{
    exit,
    install::{self, UNFINISHED},
    process, ui,
};

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

/// A virtual environment with pinned packages, in the cache folder.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Environment {
    /// Its name in the cache folder; another list of requirements is another folder.
    pub(crate) folder: &'static str,
    /// What pip installs.
    pub(crate) requirements: &'static [&'static str],
    /// How much that is, in words.
    pub(crate) size: &'static str,
}

impl Environment {
    /// Its interpreter; the environment is made if it is not there: whole or not at all.
    ///
    /// # Errors
    /// What is missing on this machine, or that pip failed. Nothing is left behind then.
    pub(crate) fn python(self) -> anyhow::Result<PathBuf> {
        let cache = install::cache_folder()?;
        let folder = cache.join(self.folder);
        let interpreter = |folder: &Path| folder.join("bin/python");
        if self.is_complete(&folder) {
            return Ok(interpreter(&folder));
        }
        let python = Python::with_pip()?;
        fs::create_dir_all(&cache).with_context(|| format!("cannot create {}", cache.display()))?;
        let _lock = install::lock_cache(&cache)?;
        if self.is_complete(&folder) {
            return Ok(interpreter(&folder));
        }
        install::remove_unfinished(&cache)?;
        ui::note(format!("installing {} into {} ({}, once)", self.requirements.join(" "), folder.display(), self.size));
        let workshop = tempfile::Builder::new().prefix(UNFINISHED).tempdir_in(&cache)?;
        let made = workshop.path().join("made");
        let status = process::foreground(python.command().args(["-m", "venv"]).arg(&made), |_| {})?;
        if !status.success() {
            return Err(exit::usage(format!(
                "`python3 -m venv` failed ({status}); on Debian and Ubuntu, sudo apt-get install python3-venv, or give --python"
            )));
        }
        let temporary = workshop.path().join("tmp");
        fs::create_dir_all(&temporary)?;
        let mut pip = Command::new(interpreter(&made));
        pip.args(["-m", "pip", "install", "--quiet", "--no-compile"]).args(self.requirements);
        pip.env("TMPDIR", &temporary).env("PIP_DISABLE_PIP_VERSION_CHECK", "1");
        let status = process::foreground(&mut pip, |_| {})?;
        if !status.success() {
            return Err(exit::usage(format!(
                "pip could not install {} ({status}); its reason stands above, and nothing was left behind",
                self.requirements.join(" ")
            )));
        }
        fs::write(made.join("requirements.txt"), self.requirements.join("\n") + "\n")?;
        if folder.exists() {
            fs::rename(&folder, workshop.path().join("old"))
                .with_context(|| format!("cannot replace {}", folder.display()))?;
        }
        fs::rename(&made, &folder).with_context(|| format!("cannot rename to {}", folder.display()))?;
        Ok(interpreter(&folder))
    }

    /// The list is written last, so its presence says that the environment is whole.
    fn is_complete(self, folder: &Path) -> bool {
        fs::read_to_string(folder.join("requirements.txt"))
            .is_ok_and(|list| list.lines().eq(self.requirements.iter().copied()))
    }
}

const INSTALL: &str = "install both, for example\n    \
    Debian, Ubuntu:  sudo apt-get install python3-pip\n    \
    Fedora, RHEL:    sudo dnf install python3-pip\n    \
    Arch:            sudo pacman -S python-pip\n  \
    or set LIBTORCH to an unpacked libtorch";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_environment_is_complete_when_its_list_is_there() {
        let folder = tempfile::tempdir().unwrap();
        let environment = Environment { folder: "x", requirements: &["a==1", "b==2"], size: "1 MB" };
        assert!(!environment.is_complete(folder.path()));
        fs::write(folder.path().join("requirements.txt"), "a==1\n").unwrap();
        assert!(!environment.is_complete(folder.path()));
        fs::write(folder.path().join("requirements.txt"), "a==1\nb==2\n").unwrap();
        assert!(environment.is_complete(folder.path()));
    }
}
