//! The folder of one table: what `c2r table` reads, made of finished jobs.
//!
//! `results/EXPERIMENT-SCALE/DATASET/ipcN/METHOD/seedN/` holds `distill`, a link to the job's folder, and for each attack a
//! folder such as `natural-pgd-2of255` with the attack's `attack.json`, the training's `run.json` and a link to the
//! network. The two files are copies: they are small, and a folder that is sent to somebody has its numbers with it.

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
};

use anyhow::Context;
use c2r_files::{remove_if_present, shell_line, write_atomically};
use c2r_run::exit;

use crate::{Job, Stage, lease};

/// What a folder of an attack holds.
const REPORT: &str = "attack.json";
const RUN: &str = "run.json";
const NETWORK: &str = "model.safetensors";

/// Levels from the table's folder down to a cell's links and folders.
const DEPTH: usize = 5;

/// Brings `folder` in line with those of `jobs` that are `finished`; returns how many attacks it shows. What belongs to
/// cells of another grid, or to jobs of an earlier version, is taken out; `keep` names datasets that are not here, so that
/// what other machines put there stays.
///
/// # Errors
/// If the folder holds what this did not write, or cannot be written.
pub(crate) fn update(folder: &Path, jobs: &[Job], finished: &[bool], keep: &[String]) -> anyhow::Result<usize> {
    let jobs_done = || jobs.iter().zip(finished).filter(|(_, done)| **done).map(|(job, _)| job);
    let wanted: BTreeSet<PathBuf> =
        jobs_done().filter(|job| !matches!(job.stage, Stage::Train(_))).map(|job| place(folder, job)).collect();
    for old in entries(folder)? {
        let dataset = old.strip_prefix(folder).ok().and_then(|inside| inside.iter().next()?.to_str());
        if dataset.is_some_and(|dataset| keep.iter().any(|kept| kept == dataset)) {
            continue;
        }
        if !is_ours(&old) {
            return Err(exit::usage(format!(
                "{} was not written by `cargo xtask reproduce`; move {} away, or choose another folder with --results",
                old.display(),
                folder.display()
            )));
        }
        if !wanted.contains(&old) {
            take_out(&old).with_context(|| format!("cannot remove {}", old.display()))?;
        }
    }
    for part in jobs_done().flat_map(|job| parts(folder, job, jobs)) {
        let Part { from, to, is_copy } = part;
        if !is_copy {
            link(&from, &to).with_context(|| format!("cannot write {}", to.display()))?;
            continue;
        }
        let bytes = c2r_files::read(&from)?;
        if fs::read(&to).ok().as_ref() != Some(&bytes) {
            write_atomically(&to, &bytes)?;
        }
    }
    Ok(jobs_done().filter(|job| matches!(job.stage, Stage::Attack { .. })).count())
}

/// The shell commands that show the `wanted` ones of `jobs`, once they are finished, in `folder` as [`update`] does;
/// `show` writes a path as the shell finds it.
pub(crate) fn script(folder: &Path, jobs: &[Job], wanted: &[bool], show: impl Fn(&Path) -> String) -> Vec<String> {
    let line = |(job, _): (&Job, &bool)| {
        let parts = parts(folder, job, jobs);
        let inside = parts.first()?.to.parent()?.to_owned();
        let make = shell_line(["mkdir", "-p", &show(&inside)]);
        let fill = parts.iter().map(|Part { from, to, is_copy }| match is_copy {
            true => shell_line(["cp", &show(from), &show(to)]),
            false => shell_line(["ln", "-sfn", &relative(from, &inside).display().to_string(), &show(to)]),
        });
        Some(std::iter::once(make).chain(fill).collect::<Vec<_>>().join(" && "))
    };
    jobs.iter().zip(wanted).filter(|(_, wanted)| **wanted).filter_map(line).collect()
}

/// A file or a link of the folder.
struct Part {
    from: PathBuf,
    to: PathBuf,
    is_copy: bool,
}

/// What `folder` shows of a finished job, all of it in one folder.
fn parts(folder: &Path, job: &Job, jobs: &[Job]) -> Vec<Part> {
    let at = place(folder, job);
    let part = |from, to, is_copy| Part { from, to, is_copy };
    match &job.stage {
        Stage::Distill => vec![part(job.folder.clone(), at, false)],
        Stage::Train(_) => vec![],
        Stage::Attack { .. } => {
            let trained = &jobs[job.needs.expect("an attack needs a network")];
            vec![
                part(job.output(), at.join(REPORT), true),
                part(trained.folder.join(RUN), at.join(RUN), true),
                part(trained.output(), at.join(NETWORK), false),
            ]
        }
    }
}

fn place(folder: &Path, job: &Job) -> PathBuf {
    folder.join(job.cell.folder()).join(job.stage.folder())
}

/// Folders and links of all cells.
fn entries(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut level = vec![folder.to_owned()];
    for _ in 0..DEPTH {
        let mut next = Vec::new();
        for folder in level {
            let entries = match fs::read_dir(&folder) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                entries => entries.with_context(|| format!("cannot read {}", folder.display()))?,
            };
            for entry in entries {
                let entry = entry?;
                if entry.file_type()?.is_dir() || entry.file_type()?.is_symlink() {
                    next.push(entry.path());
                }
            }
        }
        level = next;
    }
    Ok(level)
}

/// Whether we made it: a link to a job, or a folder whose network is one. One that a killed process left half made is
/// recognized by holding nothing else.
fn is_ours(path: &Path) -> bool {
    let network = path.join(NETWORK);
    let known = |name: &str| [REPORT, RUN, NETWORK].contains(&name) || name.ends_with(".part");
    let mut names = fs::read_dir(path).into_iter().flatten().flatten().map(|entry| entry.file_name());
    path.is_symlink() || (network.is_symlink() || !network.exists()) && names.all(|name| known(&name.to_string_lossy()))
}

fn take_out(path: &Path) -> anyhow::Result<()> {
    if path.is_symlink() {
        return Ok(remove_if_present(path)?);
    }
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        remove_if_present(&entry.path())?;
    }
    match fs::remove_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error.into()),
        _ => Ok(()),
    }
}

/// Makes `to` a link to `from`, relative, so that the results folder can be moved.
fn link(from: &Path, to: &Path) -> io::Result<()> {
    let folder = to.parent().unwrap_or(Path::new("."));
    let target = relative(from, folder);
    if fs::read_link(to).is_ok_and(|there| there == target) {
        return Ok(());
    }
    let fresh = to.with_extension(format!("{}.part", lease::token()));
    fs::create_dir_all(folder)?;
    symlink(&target, &fresh)?;
    fs::rename(&fresh, to)
}

/// The way from `folder` to `path`.
fn relative(path: &Path, folder: &Path) -> PathBuf {
    let common = path.components().zip(folder.components()).take_while(|(a, b)| a == b).count();
    let up = folder.components().skip(common).map(|_| PathBuf::from(".."));
    up.chain(path.components().skip(common).map(|part| PathBuf::from(part.as_os_str()))).collect()
}

#[cfg(unix)]
use std::os::unix::fs::symlink;

#[cfg(not(unix))]
fn symlink(_: &Path, _: &Path) -> io::Result<()> {
    Err(io::Error::other("the table's folder is made of links, which need a Unix"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::example::Example;

    fn finish(job: &Job) {
        fs::create_dir_all(&job.folder).unwrap();
        for name in [job.stage.output(), RUN] {
            fs::write(job.folder.join(name), format!("{} {name}", job.id)).unwrap();
        }
    }

    #[test]
    fn finished_jobs_are_shown_and_others_taken_out() {
        let example = Example::new();
        let jobs = example.jobs("dataset=digits,ipc=1,method=c2r,seed=0");
        assert_eq!(jobs.len(), 7);
        for job in &jobs[..4] {
            finish(job);
        }
        let folder = example.place.results.join("example-quick");
        let finished = [true, true, true, true, false, false, false];
        assert_eq!(update(&folder, &jobs, &finished, &[]).unwrap(), 2);
        let cell = folder.join("digits/ipc1/c2r/seed0");
        let text = |path: &str| fs::read_to_string(cell.join(path)).unwrap();
        assert_eq!(text("natural-fgsm-0.1/attack.json"), format!("{} attack.json", jobs[2].id));
        assert_eq!(text("natural-pgd-0.1/run.json"), format!("{} run.json", jobs[1].id));
        assert_eq!(text("natural-pgd-0.1/model.safetensors"), format!("{} model.safetensors", jobs[1].id));
        assert_eq!(text("distill/synthetic.safetensors"), format!("{} synthetic.safetensors", jobs[0].id));
        assert!(fs::read_link(cell.join("distill")).unwrap().is_relative());
        // The same again changes nothing.
        assert_eq!(update(&folder, &jobs, &finished, &[]).unwrap(), 2);

        // What is known of no dataset is left alone; what is not of this grid is taken out.
        assert_eq!(update(&folder, &[], &[], &["digits".into()]).unwrap(), 0);
        assert!(cell.join("natural-fgsm-0.1/attack.json").is_file());
        update(&folder, &jobs[..3], &[true, true, true], &[]).unwrap();
        assert!(cell.join("natural-fgsm-0.1/attack.json").is_file() && !cell.join("natural-pgd-0.1").exists());
        update(&folder, &[], &[], &[]).unwrap();
        assert!(!cell.join("distill").exists() && jobs[0].folder.join(RUN).is_file(), "links go, jobs stay");

        // Somebody else's results are never touched.
        fs::create_dir_all(cell.join("natural")).unwrap();
        fs::write(cell.join("natural/model.safetensors"), "mine").unwrap();
        let message = exit::message(&update(&folder, &[], &[], &[]).unwrap_err());
        assert!(message.contains("was not written by"), "{message}");
        assert!(cell.join("natural/model.safetensors").is_file());
    }
}
