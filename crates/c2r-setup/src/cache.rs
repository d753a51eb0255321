//! The user's cache folder: what is installed there appears whole or not at all, and is made by one process at a time.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

use anyhow::Context;
use c2r_run::{Lock, exit, process, terminal as ui};

/// How the names of unfinished installations begin; under the lock, any that is found is a dead one.
const UNFINISHED: &str = ".installing-";

/// Where installations are: `$XDG_CACHE_HOME/c2r`, else `~/.cache/c2r`.
///
/// # Errors
/// If neither variable is set.
pub fn folder() -> anyhow::Result<PathBuf> {
    let absolute = |name: &str| env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    absolute("XDG_CACHE_HOME")
        .or_else(|| absolute("HOME").map(|home| home.join(".cache")))
        .map(|cache| cache.join("c2r"))
        .ok_or_else(|| exit::usage("neither XDG_CACHE_HOME nor HOME is set, so there is no cache folder for libtorch"))
}

/// Makes the folder `name` in the cache, unless `is_there` says under the lock that this is done. `make` gets a folder for
/// its work and the path of what it is to make.
///
/// # Errors
/// Those of `make`, and of the file system. Nothing is left behind then.
pub fn make(
    cache: &Path,
    name: &str,
    is_there: impl FnOnce() -> bool,
    make: impl FnOnce(&Path, &Path) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let _lock = lock(&cache.join(".lock"), "another `cargo xtask` is installing libtorch")?;
    if is_there() {
        return Ok(());
    }
    remove_left(cache, UNFINISHED, "an installation")?;
    // In the cache folder and not in /tmp: /tmp may be small, and a rename needs the same file system.
    let workshop = tempfile::Builder::new().prefix(UNFINISHED).tempdir_in(cache)?;
    let made = workshop.path().join("made");
    make(workshop.path(), &made)?;
    let target = cache.join(name);
    if target.exists() {
        // Moved aside first: removing takes long, and a half removed folder must not carry the name.
        fs::rename(&target, workshop.path().join("old"))
            .with_context(|| format!("cannot replace {}", target.display()))?;
    }
    fs::rename(&made, &target).with_context(|| format!("cannot rename {} to {}", made.display(), target.display()))
}

/// Waits until no other process holds the lock in `path`; says `who` does if one has it.
pub fn lock(path: &Path, who: &str) -> anyhow::Result<Lock> {
    let mut told = false;
    loop {
        if let Some(lock) = Lock::acquire_where_possible(path)? {
            return Ok(lock);
        }
        if !told {
            ui::note(format!("{who}; waiting for it"));
            told = true;
        }
        process::check_interrupt()?;
        std::thread::sleep(process::POLL);
    }
}

/// Removes folders whose names begin with `prefix`, which `what` left; only under a lock.
pub fn remove_left(folder: &Path, prefix: &str, what: &str) -> anyhow::Result<()> {
    for entry in fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))? {
        let path = entry?.path();
        if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(prefix)) {
            ui::note(format!("removing {}, left over from {what} that was killed", path.display()));
            fs::remove_dir_all(&path).with_context(|| format!("cannot remove {}", path.display()))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dead_installations_are_swept_and_nothing_else() {
        let cache = tempfile::tempdir().unwrap();
        fs::create_dir_all(cache.path().join(".installing-abc/made/lib")).unwrap();
        fs::create_dir_all(cache.path().join("libtorch-2.11.0-cpu")).unwrap();
        let names = || {
            let entries =
                fs::read_dir(cache.path()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
            let mut names: Vec<String> = entries.filter(|name| name != ".lock").collect();
            names.sort();
            names
        };
        make(cache.path(), "x", || true, |_, _| unreachable!("it is there")).unwrap();
        let made = |text: &'static str| {
            make(
                cache.path(),
                "x",
                || false,
                |_, made| {
                    fs::create_dir(made)?;
                    Ok(fs::write(made.join("text"), text)?)
                },
            )
        };
        made("old").unwrap();
        made("new").unwrap();
        assert_eq!(fs::read_to_string(cache.path().join("x/text")).unwrap(), "new");
        make(cache.path(), "x", || false, |_, _| anyhow::bail!("no network")).unwrap_err();
        assert_eq!(names(), ["libtorch-2.11.0-cpu", "x"]);
    }
}
