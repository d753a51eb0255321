//! The Python of this machine: a possible home of libtorch, and the way to pip.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use c2r_run::{exit, process, terminal as ui};

use crate::cache;

/// Where the `torch` package of this Python lies, without importing it (that takes seconds).
const FIND_TORCH: &str = "\
import importlib.util, os
spec = importlib.util.find_spec('torch')
print(os.path.dirname(spec.origin) if spec and spec.origin else '')";

/// A Python 3 interpreter.
#[derive(Debug, Clone)]
pub struct Python {
    program: &'static str,
}

impl Python {
    /// The first of `python3` and `python` that is a Python 3.
    pub fn find() -> Option<Self> {
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
    pub fn with_pip() -> anyhow::Result<Self> {
        let Some(python) = Self::find() else {
            return Err(exit::usage(format!(
                "no Python 3 was found, and libtorch is downloaded with its pip; {INSTALL}"
            )));
        };
        match process::output(python.command().args(["-m", "pip", "--version"]))? {
            Some(output) if output.status.success() => Ok(python),
            _ => Err(exit::usage(format!(
                "`{} -m pip` does not run, and libtorch is downloaded with pip; {INSTALL}",
                python.program
            ))),
        }
    }

    /// The interpreter.
    pub fn command(&self) -> Command {
        Command::new(self.program)
    }

    /// Its pip, see [`pip`].
    pub fn pip(&self, workshop: &Path) -> anyhow::Result<Command> {
        pip(self.command(), workshop)
    }

    /// The folder of its `torch` package, if it has one.
    pub fn torch_folder(&self) -> Option<PathBuf> {
        let output = process::output(self.command().args(["-c", FIND_TORCH])).ok()??;
        let folder = String::from_utf8(output.stdout).ok()?;
        (output.status.success() && !folder.trim().is_empty()).then(|| PathBuf::from(folder.trim()))
    }
}

/// The pip of an interpreter, which downloads into `workshop`: /tmp may be too small for it.
pub fn pip(mut python: Command, workshop: &Path) -> anyhow::Result<Command> {
    let temporary = workshop.join("tmp");
    fs::create_dir_all(&temporary)?;
    python.args(["-m", "pip"]).env("TMPDIR", &temporary).env("PIP_DISABLE_PIP_VERSION_CHECK", "1");
    Ok(python)
}

/// A virtual environment with pinned packages, in the cache folder.
#[derive(Debug, Clone, Copy)]
pub struct Environment {
    /// Its name in the cache folder; another list of requirements is another folder.
    pub folder: &'static str,
    /// What pip installs.
    pub requirements: &'static [&'static str],
    /// How much that is, in words.
    pub size: &'static str,
}

impl Environment {
    /// Its interpreter; the environment is made if it is not there: whole or not at all.
    ///
    /// # Errors
    /// What is missing on this machine, or that pip failed. Nothing is left behind then.
    pub fn python(self) -> anyhow::Result<PathBuf> {
        let cache = cache::folder()?;
        let folder = cache.join(self.folder);
        let interpreter = |folder: &Path| folder.join("bin/python");
        if self.is_complete(&folder) {
            return Ok(interpreter(&folder));
        }
        let python = Python::with_pip()?;
        let requirements = self.requirements.join(" ");
        cache::make(
            &cache,
            self.folder,
            || self.is_complete(&folder),
            |workshop, made| {
                ui::note(format!("installing {requirements} into {} ({}, once)", folder.display(), self.size));
                let status = process::foreground(python.command().args(["-m", "venv"]).arg(made), |_| {})?;
                if !status.success() {
                    return Err(exit::usage(format!(
                        "`python3 -m venv` failed ({status}); on Debian and Ubuntu, sudo apt-get install python3-venv, or give \
                     --python"
                    )));
                }
                let mut pip = pip(Command::new(interpreter(made)), workshop)?;
                pip.args(["install", "--quiet", "--no-compile"]).args(self.requirements);
                let status = process::foreground(&mut pip, |_| {})?;
                if !status.success() {
                    return Err(exit::usage(format!(
                        "pip could not install {requirements} ({status}); see its message above; its files were removed"
                    )));
                }
                Ok(fs::write(made.join("requirements.txt"), self.requirements.join("\n") + "\n")?)
            },
        )?;
        Ok(interpreter(&folder))
    }

    /// Whether [`Environment::python`] has nothing to make.
    pub fn is_there(self) -> bool {
        cache::folder().is_ok_and(|cache| self.is_complete(&cache.join(self.folder)))
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
