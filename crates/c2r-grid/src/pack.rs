//! A grid that travels: the folders of its jobs in one archive, finished and unfinished, to be taken up on another machine.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::Context;
use c2r_archive::{ArchiveFormat, Limits, WORKSHOP, unpack as unpack_archive};
use c2r_files::{AtomicFile, create_folder, read_json};
use c2r_run::{
    exit::{self, OrExit},
    terminal,
};
use flate2::{Compression, write::GzEncoder};

use crate::{Job, lease::Lease, record};

/// The most bytes that an archive holds, before compression.
pub const MOST_BYTES: u64 = 60_000_000;

/// The one folder in the archive, with a folder for each job.
const TOP: &str = "c2r-work";

/// What was packed.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Packed {
    /// Finished jobs.
    pub n_finished: usize,
    /// Jobs that were begun.
    pub n_unfinished: usize,
    /// Jobs for which there was no room, with their bytes, the largest first.
    pub left_out: Vec<(String, u64)>,
    /// Jobs that another process works on.
    pub busy: Vec<String>,
}

/// What was taken from an archive.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Taken {
    /// Finished jobs.
    pub n_finished: usize,
    /// Jobs that were begun.
    pub n_unfinished: usize,
    /// Jobs that are finished here, or on which another process works, and that stayed as they are.
    pub n_kept: usize,
    /// Jobs in the archive that are not among those that were asked for.
    pub n_others: usize,
    /// Jobs unfinished on both sides, not taken because at least as much time was spent on them here.
    pub as_far: Vec<String>,
    /// Jobs unfinished on both sides that were taken, because less time was spent on them here.
    pub replaced: Vec<String>,
}

impl Packed {
    /// Says what is in `file`, and what is not.
    pub fn say(&self, n_jobs: usize, file: &Path) {
        let (finished, unfinished) = (self.n_finished, self.n_unfinished);
        terminal::note(format!(
            "packed {finished} finished and {unfinished} unfinished of {n_jobs} commands into {}",
            file.display()
        ));
        for (name, bytes) in &self.left_out {
            let mb = |bytes: u64| bytes as f64 / 1e6;
            let (most, bytes) = (mb(MOST_BYTES), mb(*bytes));
            terminal::note(format!("left out, because an archive holds at most {most} MB: {name} ({bytes:.1} MB)"));
        }
        if !self.left_out.is_empty() {
            terminal::note(
                "what is left out stays here, and tables made from the archive lack it. Pack a part of the grid at a time (--only), or \
                 copy the folder of the results.",
            );
        }
        for name in &self.busy {
            terminal::note(format!("left out, because another process works on it: {name}"));
        }
    }
}

impl Taken {
    /// Says what was taken from `file`.
    pub fn say(&self, file: &Path) {
        let Self { n_finished, n_unfinished, n_kept, n_others, as_far, replaced } = self;
        let kept = if *n_kept > 0 { format!("; {n_kept} more were here already") } else { String::new() };
        terminal::note(format!(
            "took {n_finished} finished and {n_unfinished} unfinished commands from {}{kept}",
            file.display()
        ));
        if *n_others > 0 {
            let (n, are) = (terminal::counted(*n_others, "command"), if *n_others == 1 { "is" } else { "are" });
            terminal::note(format!("not taken: {n} of the archive that {are} not in this part of the grid"));
        }
        for name in as_far {
            terminal::note(format!("not taken: {name} (at least as much time was spent on it here)"));
        }
        for name in replaced {
            terminal::note(format!("replaced: {name} (less time was spent on it here)"));
        }
    }
}

/// Wall-clock seconds that were spent on a job so far, over all sessions and machines, as its command has recorded them.
fn seconds(job: &Job) -> f64 {
    let record = |name: &str| read_json::<serde_json::Value>(&job.folder.join(name)).ok()?["seconds"].as_f64();
    ["run.json", "attack.run.json"].into_iter().find_map(record).unwrap_or(0.0)
}

/// Files of a job, relative to its folder, without locks and leases.
pub(crate) fn files(job: &Job) -> anyhow::Result<Vec<(PathBuf, u64)>> {
    let mut files = Vec::new();
    let mut folders = vec![job.folder.clone()];
    while let Some(folder) = folders.pop() {
        let Ok(entries) = fs::read_dir(&folder) else { continue };
        for entry in entries {
            let entry = entry?;
            let (path, kind) = (entry.path(), entry.file_type()?);
            let name = entry.file_name().to_string_lossy().into_owned();
            if kind.is_dir() {
                folders.push(path);
            } else if kind.is_file() && !name.starts_with('.') && !name.ends_with(".lock") {
                files.push((path.strip_prefix(&job.folder)?.to_owned(), entry.metadata()?.len()));
            }
        }
    }
    files.sort();
    Ok(files)
}

/// Writes what there is of `jobs` into the tar.gz `file`, whole or not at all. If it holds more than `most` bytes, the largest
/// jobs are left out: where the archive is unpacked, they begin again.
///
/// # Errors
/// If a file cannot be read or written, or nothing has been begun.
pub fn pack(jobs: &[Job], file: &Path, most: u64) -> anyhow::Result<Packed> {
    let mut begun = Vec::new();
    for (position, job) in jobs.iter().enumerate() {
        let files = files(job)?;
        // A header and padding for each file.
        let bytes: u64 = files.iter().map(|(_, bytes)| bytes + 1024).sum();
        if !files.is_empty() && begun.iter().all(|&(other, _): &(usize, u64)| jobs[other].id != job.id) {
            begun.push((position, bytes));
        }
    }
    anyhow::ensure!(!begun.is_empty(), exit::usage("there is nothing to pack: no command of this grid has started"));
    let mut packed = Packed::default();
    begun.sort_by_key(|&(position, bytes)| (bytes, position));
    while begun.iter().map(|(_, bytes)| bytes).sum::<u64>() > most {
        let (position, bytes) = begun.pop().expect("a sum above 0 has terms");
        packed.left_out.push((jobs[position].name(), bytes));
    }
    begun.sort();
    let failed = || format!("cannot write {}", file.display());
    let mut output = AtomicFile::create(file)?;
    let mut archive = tar::Builder::new(GzEncoder::new(&mut output, Compression::default()));
    for (position, _) in begun {
        let job = &jobs[position];
        let Some(_lease) = Lease::claim(&job.folder)? else {
            packed.busy.push(job.name());
            continue;
        };
        for (path, _) in files(job)? {
            let name = Path::new(TOP).join(&job.id).join(&path);
            archive.append_path_with_name(job.folder.join(&path), name).with_context(failed)?;
        }
        let count = if record::is_finished(job) { &mut packed.n_finished } else { &mut packed.n_unfinished };
        *count += 1;
    }
    archive.into_inner().and_then(GzEncoder::finish).with_context(failed)?;
    output.finish()?;
    Ok(packed)
}

/// The order in which files of a job appear: a record of a run before what the run wrote, and the record that the job is finished
/// last. A process that is killed in between leaves a run that begins again.
fn order(file: &Path) -> u8 {
    match file.to_str() {
        Some("run.json" | "attack.run.json") => 0,
        Some(record::FINISHED) => 2,
        _ => 1,
    }
}

/// Moves a job's files into the folder `aside` and those of `from` into their place, and notes each move. The lease is held.
fn replace(job: &Job, from: &Job, aside: &Path, moved: &mut Vec<(PathBuf, PathBuf)>) -> anyhow::Result<()> {
    let list = |job: &Job, last_first: bool| {
        let mut names: Vec<PathBuf> = files(job)?.into_iter().map(|(name, _)| name).collect();
        names.sort_by_key(|name| order(name));
        if last_first {
            names.reverse();
        }
        anyhow::Ok(names)
    };
    let (old, new) = (list(job, true)?, list(from, false)?);
    let out = old.into_iter().map(|name| (job.folder.join(&name), aside.join(name)));
    let taken = new.into_iter().map(|name| (from.folder.join(&name), job.folder.join(name)));
    for (from, to) in out.chain(taken) {
        rename(&from, &to)?;
        moved.push((from, to));
    }
    Ok(())
}

/// Moves a file within a file system. The folder for it is made.
fn rename(from: &Path, to: &Path) -> anyhow::Result<()> {
    if let Some(folder) = to.parent() {
        create_folder(folder)?;
    }
    fs::rename(from, to).with_context(|| format!("cannot write {}", to.display()))
}

/// Takes the work on `jobs` from an archive of [`pack`] into the folder `into` of all jobs. What is finished here stays. Of what
/// is unfinished on both sides, the side on which more time was spent in all is kept. A job that is taken keeps its folder, so that
/// no other process can claim it in between.
///
/// # Errors
/// If the archive is not one of `pack`, or a file cannot be written. What was taken before the error is whole, and the job that
/// could not be taken is as it was.
pub fn unpack(jobs: &[Job], file: &Path, into: &Path) -> anyhow::Result<Taken> {
    fs::File::open(file).with_context(|| format!("cannot read the archive {}", file.display())).or_exit(exit::DATA)?;
    create_folder(into)?;
    let mut workshop = tempfile::Builder::new().prefix(WORKSHOP).tempdir_in(into)?;
    let (packed, replaced) = (workshop.path().join("packed"), workshop.path().join("replaced"));
    fs::create_dir(&replaced)?;
    let (limits, format) = (Limits { bytes: 4 * MOST_BYTES, ..Limits::ARRAYS }, ArchiveFormat::TarGz);
    unpack_archive(format, file, TOP, &packed, &limits, |_, _| Ok(()), &mut |_| true)
        .with_context(|| format!("{} is not an archive of --pack", file.display()))
        .or_exit(exit::DATA)?;
    let mut taken = Taken::default();
    for entry in fs::read_dir(&packed)? {
        let name = entry?.file_name();
        taken.n_others += usize::from(jobs.iter().all(|job| *job.id != *name));
    }
    for job in jobs {
        let there = Job { folder: packed.join(&job.id), ..job.clone() };
        if !there.folder.is_dir() {
            continue;
        }
        let finished = record::is_finished(&there);
        let lease = Lease::claim(&job.folder)?;
        if lease.is_none() || record::is_finished(job) {
            taken.n_kept += 1;
            continue;
        }
        let begun = !files(job)?.is_empty();
        if !finished && begun && seconds(&there) <= seconds(job) {
            taken.as_far.push(job.name());
            continue;
        }
        let mut moved = Vec::new();
        if let Err(error) = replace(job, &there, &replaced.join(&job.id), &mut moved) {
            if let Err(again) = moved.iter().rev().try_for_each(|(from, to)| rename(to, from)) {
                workshop.disable_cleanup(true);
                let kept = format!(
                    "{}; the files that {} had here are in {}",
                    exit::message(&again),
                    job.name(),
                    replaced.display()
                );
                return Err(error.context(kept));
            }
            return Err(error);
        }
        if begun && !finished {
            taken.replaced.push(job.name());
        }
        *(if finished { &mut taken.n_finished } else { &mut taken.n_unfinished }) += 1;
    }
    Ok(taken)
}
