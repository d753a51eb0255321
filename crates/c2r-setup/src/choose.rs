//! Which libtorch is taken, and the link to it.

use std::{env, fs, io, path::Path, process::Command};

use anyhow::Context;
use c2r_run::{exit, process, terminal as ui};

use crate::{
    cache, install,
    libtorch::{Flavour, LIBTORCH_VERSION, Libtorch, TCH_VERSION},
    python::Python,
};

/// Whether libtorch must be able to use a GPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Cuda {
    /// If an NVIDIA driver is installed
    Auto,
    /// Always
    Yes,
    /// Not needed: the CPU is enough
    No,
}

/// The libtorch to use: the folder that the user has `named`, else that of a Python, else one in the cache, where it is
/// installed if it is not there; `force` installs it again.
///
/// # Errors
/// If what the user has named will not do, or the installation fails.
pub fn choose(named: Option<&Path>, cuda: Cuda, force: bool) -> anyhow::Result<Libtorch> {
    if let Some(folder) = named {
        return named_by_user(folder, cuda);
    }
    let wanted = match cuda {
        Cuda::Yes => Flavour::Cuda,
        Cuda::Auto if has_nvidia_driver() => Flavour::Cuda,
        Cuda::Auto | Cuda::No => Flavour::Cpu,
    };
    if !force && let Some(found) = in_python(wanted) {
        return Ok(found);
    }
    let cache = cache::folder()?;
    if force {
        return install::install(&cache, wanted, true);
    }
    // A libtorch with CUDA runs on the CPU as well, but an explicit `no` means the small one.
    let enough: &[Flavour] = match (wanted, cuda) {
        (Flavour::Cpu, Cuda::Auto) => &[Flavour::Cpu, Flavour::Cuda],
        _ => &[wanted],
    };
    match enough.iter().find_map(|&flavour| install::find(&cache, flavour)) {
        Some(found) => Ok(found),
        None => install::install(&cache, wanted, false),
    }
}

fn named_by_user(folder: &Path, cuda: Cuda) -> anyhow::Result<Libtorch> {
    const INSTEAD: &str = "unset LIBTORCH, and setup will find or install the right one";
    let folder = env::current_dir()?.join(folder);
    let found =
        Libtorch::inspect(&folder).map_err(|error| exit::usage(format!("LIBTORCH is set, but {error}; {INSTEAD}")))?;
    if !found.is_right_version() {
        return Err(exit::usage(format!(
            "LIBTORCH={} is libtorch {}, but tch {TCH_VERSION} needs libtorch {LIBTORCH_VERSION}; {INSTEAD}",
            folder.display(),
            found.version
        )));
    }
    if cuda == Cuda::Yes && found.flavour == Flavour::Cpu {
        return Err(exit::usage(format!("LIBTORCH={} has no CUDA part; {INSTEAD}", folder.display())));
    }
    Ok(found)
}

/// The `torch` package of the user's Python, if it will do; otherwise a note says why not.
fn in_python(wanted: Flavour) -> Option<Libtorch> {
    let folder = Python::find()?.torch_folder()?;
    match Libtorch::inspect(&folder) {
        Err(error) => ui::note(format!("not using the Python package torch: {error}")),
        Ok(found) if !found.is_right_version() => ui::note(format!(
            "not using the Python package torch {} in {}: tch {TCH_VERSION} needs {LIBTORCH_VERSION}",
            found.version,
            folder.display()
        )),
        Ok(found) if wanted == Flavour::Cuda && found.flavour == Flavour::Cpu => ui::note(format!(
            "not using the Python package torch in {}: it has no CUDA part, but an NVIDIA driver is \
             installed (`--cuda no` uses it)",
            folder.display()
        )),
        Ok(found) => return Some(found),
    }
    None
}

fn has_nvidia_driver() -> bool {
    Path::new("/proc/driver/nvidia/version").exists()
        || process::output(Command::new("nvidia-smi").arg("--list-gpus"))
            .is_ok_and(|output| output.is_some_and(|output| output.status.success() && !output.stdout.is_empty()))
}

/// Points `link` at `found`, replacing an older link in one step.
///
/// # Errors
/// If there is something else than a link, or it cannot be written.
pub fn link(found: &Libtorch, link: &Path) -> anyhow::Result<()> {
    if fs::read_link(link).is_ok_and(|target| target == found.folder) {
        return Ok(());
    }
    if fs::symlink_metadata(link).is_ok_and(|data| !data.is_symlink()) {
        return Err(exit::usage(format!(
            "{} is not a link; move it away (to keep using it, set LIBTORCH to its new place)",
            link.display()
        )));
    }
    let fresh = link.with_extension(format!("new-{}", std::process::id()));
    symlink(&found.folder, &fresh)
        .and_then(|()| fs::rename(&fresh, link))
        .with_context(|| format!("cannot make the link {}", link.display()))
}

#[cfg(unix)]
fn symlink(target: &Path, link: &Path) -> io::Result<()> {
    std::os::unix::fs::symlink(target, link)
}

#[cfg(windows)]
fn symlink(target: &Path, link: &Path) -> io::Result<()> {
    std::os::windows::fs::symlink_dir(target, link)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::libtorch::tests::fake;

    #[test]
    fn a_wrong_version_names_both() {
        let folder = tempfile::tempdir().unwrap();
        fake(folder.path(), [2, 4, 1], false);
        let error = named_by_user(folder.path(), Cuda::Auto).unwrap_err();
        let message = exit::message(&error);
        assert!(message.contains("libtorch 2.4.1") && message.contains("needs libtorch 2.11.0"), "{message}");
        assert_eq!(exit::code_of(&error), exit::USAGE);
    }

    #[test]
    fn cuda_is_not_taken_for_granted() {
        let folder = tempfile::tempdir().unwrap();
        fake(folder.path(), [2, 11, 0], false);
        assert_eq!(named_by_user(folder.path(), Cuda::No).unwrap().flavour, Flavour::Cpu);
        assert!(exit::message(&named_by_user(folder.path(), Cuda::Yes).unwrap_err()).contains("no CUDA part"));
    }

    #[cfg(unix)]
    #[test]
    fn stale_links_are_replaced_and_folders_are_not() {
        let folder = tempfile::tempdir().unwrap();
        let (good, place) = (folder.path().join("good"), folder.path().join(".libtorch"));
        fake(&good, [2, 11, 0], false);
        let found = Libtorch::inspect(&good).unwrap();
        symlink(&folder.path().join("gone"), &place).unwrap();
        link(&found, &place).unwrap();
        assert_eq!(fs::read_link(&place).unwrap(), good);
        link(&found, &place).unwrap();
        fs::remove_file(&place).unwrap();
        fs::create_dir(&place).unwrap();
        assert!(exit::message(&link(&found, &place).unwrap_err()).contains("is not a link"));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2, "no temporary link is left");
    }
}
