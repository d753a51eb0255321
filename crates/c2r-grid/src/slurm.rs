//! A grid as a job array of Slurm. Each task of the array runs one shard in the same results folder, so whatever is finished
//! is not done again, and a task that was killed resumes when the array is submitted again.

use std::{
    collections::BTreeSet,
    env,
    path::{Path, PathBuf},
    process::{Command, Output},
    thread,
    time::{Duration, Instant},
};

use anyhow::Context;
use c2r_files::{read_json, shell_line, write_atomically, write_json};
use c2r_run::{exit, process, signals, terminal};
use serde::{Deserialize, Serialize};

use crate::{
    GridPlan, Workplace, log,
    record::{self, Failed},
    run::{Failure, Summary, discard, finished},
};

/// Slurm's own default for the number of tasks in an array is 1001.
const MOST_TASKS: usize = 1000;

/// How often Slurm is asked what is left of the array.
const ASK_AGAIN: Duration = Duration::from_secs(2);

/// How often Slurm may fail to answer in a row: a controller that restarts is not the end of the array.
const MOST_SILENT: u32 = 30;

/// How often the number of finished jobs is shown.
const HEARTBEAT: Duration = Duration::from_secs(60);

/// How a grid becomes an array.
pub struct SlurmArray<'a> {
    /// Name of the array and of the folder of its logs.
    pub name: &'a str,
    /// What each task runs, this program's arguments without the shard.
    pub arguments: Vec<String>,
    /// Options of `sbatch`.
    pub options: &'a [String],
    /// Tasks of the array; one for each distilled set unless given.
    pub tasks: Option<usize>,
    /// Tasks that may run at once.
    pub at_once: Option<usize>,
}

/// An array that was submitted.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Submission {
    /// Slurm's number of the array.
    array: String,
    /// Number of parts that the grid is split into; task I runs part I.
    n_shards: usize,
    /// The part of the grid, to recognize the same command.
    arguments: Vec<String>,
}

impl SlurmArray<'_> {
    /// Submits what is not `finished`, waits for it, and says what became of it. An array of the same command that still
    /// runs is waited for instead.
    ///
    /// # Errors
    /// If Slurm is not here or refuses the array, or the process was asked to stop; the array then keeps running.
    pub fn run(&self, plan: &GridPlan, before: &[bool], place: &Workplace) -> anyhow::Result<Summary> {
        let folder = place.results.join("slurm").join(self.name);
        let note = folder.join("submission.json");
        let old = read_json::<Submission>(&note).ok();
        let queued = old.map(|old| anyhow::Ok(is_queued(&old.array)?.then_some(old))).transpose()?.flatten();
        let submission = match queued {
            Some(Submission { array, arguments, .. }) if arguments != self.arguments => {
                return Err(exit::usage(format!(
                    "array {array} of another command for {} is still queued; wait for it or `scancel {array}`",
                    self.name
                )));
            }
            Some(Submission { array, .. }) if place.force => {
                return Err(exit::usage(format!(
                    "--force: array {array} for {} is still queued; the command without --force waits for it, and `scancel \
                     {array}` stops it",
                    self.name
                )));
            }
            Some(old) => {
                terminal::note(format!("array {} is still queued; waiting for it", old.array));
                old
            }
            None => {
                let submission = self.submit(plan, before, &folder, place)?;
                write_json(&note, &submission)?;
                submission
            }
        };
        wait(&submission.array, plan, place.force)?;
        Ok(collect(plan, before, submission.n_shards, &folder))
    }

    fn submit(&self, plan: &GridPlan, before: &[bool], folder: &Path, place: &Workplace) -> anyhow::Result<Submission> {
        let n_shards = self.tasks.unwrap_or(MOST_TASKS).min(plan.n_chains);
        let open = plan.jobs.iter().zip(before).filter(|(_, done)| !**done);
        let open: BTreeSet<usize> = open.map(|(job, _)| job.chain % n_shards + 1).collect();
        let program = env::current_exe().context("cannot tell which program this is")?.display().to_string();
        let line = shell_line(std::iter::once(&program).chain(&self.arguments));
        let root = shell_line([place.root.display().to_string()]);
        let script =
            format!("#!/bin/sh\ncd {root} || exit 2\nexec {line} --shard \"$SLURM_ARRAY_TASK_ID/{n_shards}\"\n");
        let script_path = folder.join("task.sh");
        write_atomically(&script_path, script.as_bytes())?;
        let at_once = self.at_once.map_or(String::new(), |n| format!("%{n}"));
        let mut command = Command::new("sbatch");
        // Nothing is deleted for an array that Slurm refuses, and no task starts before what is old is deleted.
        command.args(place.force.then_some("--hold"));
        command.arg("--parsable").arg(format!("--job-name=c2r-{}", self.name));
        command.arg(format!("--array={}{at_once}", open.iter().map(usize::to_string).collect::<Vec<_>>().join(",")));
        command.arg(format!("--output={}", log_path(folder, "%a").display()));
        command.args(self.options.iter().flat_map(|options| options.split_whitespace())).arg(&script_path);
        let output = slurm(command)?;
        if !output.status.success() {
            let reason = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            return Err(exit::usage(format!("sbatch refused the array: {reason}")));
        }
        // `--parsable` prints the number, and the cluster after a semicolon where there are several.
        let printed = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        let array = printed.split(';').next().unwrap_or_default().to_owned();
        anyhow::ensure!(!array.is_empty(), "sbatch printed no job number");
        if place.force {
            discard(&plan.jobs).and_then(|()| release(&array)).inspect_err(|_| cancel(&array))?;
        }
        terminal::note(format!("submitted array {array} with {} tasks; logs in {}", open.len(), folder.display()));
        Ok(Submission { array, n_shards, arguments: self.arguments.clone() })
    }
}

/// What a program of Slurm printed.
fn slurm(mut command: Command) -> anyhow::Result<Output> {
    process::output(&mut command)?.ok_or_else(|| {
        let program = command.get_program().display();
        exit::usage(format!("Slurm: `{program}` is not installed here; run this on a node that submits jobs"))
    })
}

/// Lets an array start that was submitted with `--hold`.
fn release(array: &str) -> anyhow::Result<()> {
    let mut command = Command::new("scontrol");
    command.args(["release", array]);
    let output = slurm(command)?;
    let reason = String::from_utf8_lossy(&output.stderr);
    anyhow::ensure!(output.status.success(), "scontrol cannot release array {array}: {}", reason.trim());
    Ok(())
}

/// Takes an array that is held out of the queue.
fn cancel(array: &str) {
    let mut command = Command::new("scancel");
    command.arg(array);
    if !slurm(command).is_ok_and(|output| output.status.success()) {
        terminal::note(format!("array {array} is held in the queue; `scancel {array}` removes it"));
    }
}

fn log_path(folder: &Path, task: &str) -> PathBuf {
    folder.join(format!("task-{task}.log"))
}

/// Whether anything of an array waits or runs.
fn is_queued(array: &str) -> anyhow::Result<bool> {
    let mut command = Command::new("squeue");
    command.args(["--noheader", "--format=%i", "--jobs", array]);
    let output = slurm(command)?;
    if output.status.success() {
        return Ok(!String::from_utf8_lossy(&output.stdout).trim().is_empty());
    }
    let reason = String::from_utf8_lossy(&output.stderr);
    // Slurm forgets jobs some minutes after their end.
    anyhow::ensure!(reason.contains("Invalid job id"), "squeue failed: {}", reason.trim());
    Ok(false)
}

fn wait(array: &str, plan: &GridPlan, force: bool) -> anyhow::Result<()> {
    let (start, mut shown) = (Instant::now(), Instant::now());
    let mut n_silent = 0;
    loop {
        match is_queued(array) {
            Ok(false) => return Ok(()),
            Ok(true) => n_silent = 0,
            Err(error) if n_silent < MOST_SILENT => {
                if n_silent == 0 {
                    terminal::notes(format!("Slurm did not answer; asking again: {}", exit::message(&error)));
                }
                n_silent += 1;
            }
            Err(error) => return Err(error),
        }
        if shown.elapsed() >= HEARTBEAT {
            shown = Instant::now();
            let n_done = finished(&plan.jobs).iter().filter(|&&done| done).count();
            let (n, elapsed) = (plan.jobs.len(), terminal::duration(start.elapsed()));
            terminal::note(format!("... array {array}: {n_done} of {n} commands finished ({elapsed})"));
        }
        let next = Instant::now() + ASK_AGAIN;
        while Instant::now() < next {
            if signals::requests() > 0 {
                let command = if force { "the same command without --force" } else { "the same command" };
                return Err(signals::stopped(format!(
                    "array {array} keeps running; {command} waits for it again, `scancel {array}` stops it"
                )));
            }
            thread::sleep(process::POLL);
        }
    }
}

/// What the tasks left.
fn collect(plan: &GridPlan, before: &[bool], n_shards: usize, folder: &Path) -> Summary {
    let finished = finished(&plan.jobs);
    let count = |flags: &[bool]| flags.iter().filter(|&&flag| flag).count();
    let n_reused = count(before);
    let n_finished = count(&finished).saturating_sub(n_reused);
    let mut summary = Summary { n_reused, n_finished, ..Summary::default() };
    for (position, job) in plan.jobs.iter().enumerate().filter(|(position, _)| !finished[*position]) {
        if job.needs.is_some_and(|needed| !finished[needed]) {
            summary.n_blocked += 1;
            continue;
        }
        let failed = record::failure(job).unwrap_or_else(|| {
            let log = log_path(folder, &(job.chain % n_shards + 1).to_string());
            let nothing = format!("{} is empty: the task did not start, or it could not write there", log.display());
            let report = log::with_end_of(&log, &format!("{} did not run to its end", job.name()), &nothing);
            Failed { code: exit::UNEXPECTED, report }
        });
        summary.failures.push(Failure { position, failed });
    }
    summary
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::{Job, Shard, example::Example};

    #[test]
    fn what_tasks_left_is_told_apart() {
        let example = Example::new();
        let plan =
            example.plan_in(&example.place, &"dataset=digits,ipc=1,method=c2r".parse().unwrap(), Shard::ALL).unwrap();
        let folder = example.folder.path().join("slurm");
        fs::create_dir_all(&folder).unwrap();
        let done = |job: &Job| {
            fs::create_dir_all(&job.folder).unwrap();
            fs::write(job.output(), "x").unwrap();
            record::finish(job, Duration::ZERO).unwrap();
        };
        // Seed 0 was finished before; of seed 1 the distillation failed; of seed 2 the first training was killed.
        plan.jobs[..7].iter().for_each(done);
        let before = finished(&plan.jobs);
        record::fail(&plan.jobs[7], &Failed { code: 3, report: "no data".into() }).unwrap();
        done(&plan.jobs[14]);
        fs::write(log_path(&folder, "3"), "starting\nslurmstepd: error: CANCELLED DUE TO TIME LIMIT\n").unwrap();
        let summary = collect(&plan, &before, 3, &folder);
        assert_eq!((summary.n_reused, summary.n_finished, summary.n_blocked), (7, 1, 6 + 4));
        let reports: Vec<_> = summary.failures.iter().map(|failure| (failure.position, &failure.failed)).collect();
        assert_eq!((reports[0].0, reports[0].1.code, reports[0].1.report.as_str()), (7, 3, "no data"));
        assert_eq!(reports[1].0, 15);
        assert!(reports[1].1.report.contains("seed2 train natural did not run to its end"), "{}", reports[1].1.report);
        assert!(reports[1].1.report.contains("DUE TO TIME LIMIT"), "{}", reports[1].1.report);
        assert_eq!(reports.len(), 3, "and its other training");
    }
}
