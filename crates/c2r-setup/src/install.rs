//! Installs libtorch into the user's cache folder with pip: whole or not at all.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::Context;
use c2r_run::{exit, process, terminal as ui};

use crate::{
    cache,
    libtorch::{CPU_LIBRARIES, CPU_WHEELS, CUDA_WHEELS, Flavour, LIBTORCH_VERSION, Libtorch, WHEEL_PYTHON},
    python::Python,
};

/// How often a line tells how far a download is, where pip draws no bar.
const HEARTBEAT: Duration = Duration::from_secs(10);

/// Takes the parts named on its command line out of wheels: wheels' folder, output folder, library names.
const EXTRACT: &str = include_str!("extract_wheels.py");

/// The folder of an installation, whether or not it is there. For CUDA the libraries of NVIDIA lie
/// next to `torch`, where the search paths inside libtorch look for them.
pub(crate) fn libtorch_folder(cache: &Path, flavour: Flavour) -> PathBuf {
    let top = cache.join(top_name(flavour));
    match flavour {
        Flavour::Cpu => top,
        Flavour::Cuda => top.join("torch"),
    }
}

fn top_name(flavour: Flavour) -> String {
    let name = match flavour {
        Flavour::Cpu => "cpu",
        Flavour::Cuda => "cuda",
    };
    format!("libtorch-{LIBTORCH_VERSION}-{name}")
}

/// An installation that is there and whole.
pub(crate) fn find(cache: &Path, flavour: Flavour) -> Option<Libtorch> {
    Libtorch::inspect(&libtorch_folder(cache, flavour)).ok().filter(Libtorch::is_right_version)
}

/// Installs libtorch unless another process has done so meanwhile; `force` installs it again.
///
/// # Errors
/// What is missing on this machine, or why the download failed. Nothing is left behind then.
pub(crate) fn install(cache: &Path, flavour: Flavour, force: bool) -> anyhow::Result<Libtorch> {
    anyhow::ensure!(
        cfg!(all(target_os = "linux", target_arch = "x86_64")),
        exit::usage(format!(
            "libtorch is installed automatically on 64-bit Linux (x86_64) only; here, run \
             `python3 -m pip install torch=={LIBTORCH_VERSION}` or set LIBTORCH, then run this command again"
        ))
    );
    let python = Python::with_pip()?;
    let is_there = || !force && find(cache, flavour).is_some();
    cache::make(cache, &top_name(flavour), is_there, |workshop, made| {
        let inside = match flavour {
            Flavour::Cpu => {
                download_and_extract(&python, workshop, made)?;
                made.to_owned()
            }
            Flavour::Cuda => {
                pip_install(&python, workshop, made)?;
                made.join("torch")
            }
        };
        let fresh = Libtorch::inspect(&inside).context("pip reported success, but its libtorch is incomplete")?;
        anyhow::ensure!(
            fresh.is_right_version() && fresh.flavour == flavour,
            "pip reported success, but installed libtorch {} ({}) instead of {LIBTORCH_VERSION} ({flavour})",
            fresh.version,
            fresh.flavour
        );
        Ok(())
    })?;
    Libtorch::inspect(&libtorch_folder(cache, flavour))
}

/// The CPU part: one wheel is downloaded and a tenth of it unpacked.
fn download_and_extract(python: &Python, workshop: &Path, made: &Path) -> anyhow::Result<()> {
    ui::note(format!("downloading libtorch {LIBTORCH_VERSION}, CPU part, with pip (about 550 MB, once per user)"));
    let wheels = workshop.join("wheels");
    let mut command = python.pip(workshop)?;
    command.args(["download", "--no-deps", "--dest"]).arg(&wheels).args(wheel_choice()).args(CPU_WHEELS);
    run_pip(&mut command, workshop)?;

    ui::note("unpacking headers and the CPU libraries");
    let mut command = python.command();
    command.arg("-c").arg(EXTRACT).args([&wheels, made]).args(CPU_LIBRARIES);
    let status = process::foreground(&mut command, |_| {})?;
    anyhow::ensure!(status.success(), "unpacking the wheels failed ({status}); is the disk full?");
    for library in CPU_LIBRARIES {
        anyhow::ensure!(made.join("lib").join(library).is_file(), "the wheels hold no {library}");
    }
    fs::write(made.join("build-version"), format!("{LIBTORCH_VERSION}+cpu\n"))?;
    Ok(())
}

/// Everything, with NVIDIA's libraries.
fn pip_install(python: &Python, workshop: &Path, made: &Path) -> anyhow::Result<()> {
    ui::note(format!(
        "an NVIDIA driver is installed, so this installs libtorch {LIBTORCH_VERSION} with CUDA, with pip \
         (about 3 GB to download, 5 GB on disk, once per user; `--cuda no` installs 0.5 GB for the CPU)"
    ));
    let mut command = python.pip(workshop)?;
    command
        .args(["install", "--no-compile", "--no-warn-script-location", "--target"])
        .arg(made)
        .args(wheel_choice())
        .args(CUDA_WHEELS);
    run_pip(&mut command, workshop)
}

/// The same wheels whatever the Python that runs pip.
fn wheel_choice() -> Vec<String> {
    let mut choice: Vec<String> =
        ["--only-binary=:all:", "--python-version", WHEEL_PYTHON, "--implementation", "cp"].map(String::from).into();
    // pip matches platform names literally, so every glibc that the wheels may ask for is named.
    let platforms = (17..=34).rev().map(|minor| format!("manylinux_2_{minor}_x86_64"));
    for platform in platforms.chain(["manylinux2014_x86_64".into(), "linux_x86_64".into()]) {
        choice.extend(["--platform".into(), platform]);
    }
    choice
}

fn run_pip(command: &mut Command, workshop: &Path) -> anyhow::Result<()> {
    let mut next = HEARTBEAT;
    let status = process::foreground(command, |elapsed| {
        if elapsed >= next && !ui::is_terminal() {
            next = elapsed + HEARTBEAT;
            ui::note(format!(
                "... pip: {} on disk after {}",
                ui::megabytes(bytes_below(workshop)),
                ui::duration(elapsed)
            ));
        }
    })?;
    if status.success() {
        return Ok(());
    }
    Err(exit::usage(format!(
        "pip could not fetch libtorch ({status}); see its message above; its files were removed\n  \
         - no network: connect, or copy {} from a machine that has it\n  \
         - a mirror instead of pypi.org: set PIP_INDEX_URL\n  \
         - another way: `python3 -m pip install torch=={LIBTORCH_VERSION}` in your own environment, or set\n    \
           LIBTORCH to an unpacked libtorch {LIBTORCH_VERSION}; then run this command again",
        cache::folder()?.display()
    )))
}

/// Bytes of all files below `folder`; what vanishes meanwhile counts as nothing.
fn bytes_below(folder: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(folder) else { return 0 };
    entries
        .flatten()
        .map(|entry| match entry.file_type() {
            Ok(kind) if kind.is_dir() => bytes_below(&entry.path()),
            Ok(kind) if kind.is_file() => entry.metadata().map_or(0, |data| data.len()),
            _ => 0,
        })
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::libtorch::tests::fake;

    #[test]
    fn only_whole_installations_of_the_right_version_are_found() {
        let cache = tempfile::tempdir().unwrap();
        let folder = libtorch_folder(cache.path(), Flavour::Cpu);
        assert!(find(cache.path(), Flavour::Cpu).is_none());
        fake(&folder, [2, 10, 0], false);
        assert!(find(cache.path(), Flavour::Cpu).is_none());
        fake(&folder, [2, 11, 0], false);
        assert_eq!(find(cache.path(), Flavour::Cpu).unwrap().folder, folder);
        assert!(find(cache.path(), Flavour::Cuda).is_none());
    }

    #[test]
    fn sizes_are_summed_below_a_folder() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir_all(folder.path().join("a/b")).unwrap();
        fs::write(folder.path().join("a/one"), [0; 10]).unwrap();
        fs::write(folder.path().join("a/b/two"), [0; 5]).unwrap();
        assert_eq!(bytes_below(folder.path()), 15);
    }
}
