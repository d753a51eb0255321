//! A grid as a job array of Slurm. Each task of the array is `cargo xtask reproduce --shard I/N` in the same results
//! folder, so whatever is finished is not done again, and a task that was killed goes on when the array is submitted again.

use std::{
    collections::BTreeSet,
    env, fs,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::Context;
use serde::{Deserialize, Serialize};

use super::{
    Job, Launcher, log_tail,
    plan::{Plan, Shard},
    record::{self, Failed},
    run::{self, Failure, Summary},
};
use crate::{exit, process, ui};

/// Slurm's own default for the number of tasks in an array is 1001.
const MOST_TASKS: usize = 1000;

/// How often Slurm is asked what is left of the array.
const POLL: Duration = Duration::from_secs(2);

/// How often the number of finished commands is shown.
const HEARTBEAT: Duration = Duration::from_secs(60);

/// Lines of a task's log that are shown where a command left no reason.
const TAIL_LINES: usize = 12;

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

/// Submits what is not `finished`, waits for it, and says what became of it. An array of the same command that still
/// runs is waited for instead.
///
/// # Errors
/// If Slurm is not here or refuses the array, or the user interrupted; the array then goes on.
pub(super) fn run(job: &Job<'_>, plan: &Plan, finished: &[bool]) -> anyhow::Result<Summary> {
    debug_assert_eq!(job.args.launcher, Launcher::Slurm);
    if job.args.shard != Shard::ALL {
        return Err(exit::usage("--launcher slurm splits the grid itself: --tasks says into how many parts"));
    }
    let folder = job.place.results.join("slurm").join(&job.name);
    fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let note = folder.join("submission.json");
    let arguments = arguments(job);
    let before = fs::read(&note).ok().and_then(|bytes| serde_json::from_slice::<Submission>(&bytes).ok());
    let submission = match before {
        Some(before) if is_queued(&before.array)? => {
            if before.arguments != arguments {
                return Err(exit::usage(format!(
                    "array {} of another command for {} is still queued; wait for it or `scancel {}`",
                    before.array, job.name, before.array
                )));
            }
            ui::note(format!("array {} is still queued; waiting for it", before.array));
            before
        }
        _ => {
            let submission = submit(job, plan, finished, &folder, arguments)?;
            record::write_whole(&note, &serde_json::to_vec_pretty(&submission)?)?;
            submission
        }
    };
    wait(&submission, plan)?;
    collect(plan, finished, &submission, &folder)
}

/// What a task is told besides which part it has.
fn arguments(job: &Job<'_>) -> Vec<String> {
    let args = job.args;
    let mut words = vec!["reproduce".to_owned()];
    words.extend(args.experiment.clone());
    let mut option = |flag: &str, value: Option<String>| {
        words.extend(value.map(|value| [flag.to_owned(), value]).into_iter().flatten());
    };
    let joined = |values: &[String]| (!values.is_empty()).then(|| values.join(","));
    let path = |path: &Path| path.display().to_string();
    option("--scale", args.scale.clone());
    option("--results", Some(path(&job.place.results)));
    option("--data", job.place.data.as_deref().map(path));
    option("--device", args.device.clone());
    option("--methods", joined(&args.methods));
    option("--seeds", joined(&args.seeds.iter().map(u64::to_string).collect::<Vec<_>>()));
    for only in &args.only {
        option("--only", Some(only.to_string()));
    }
    words.extend(["--prebuilt", "--no-table", "--no-estimate"].map(String::from));
    for (flag, given) in [("--held-out", args.held_out), ("--force", args.force)] {
        words.extend(given.then(|| flag.to_owned()));
    }
    words
}

fn submit(
    job: &Job<'_>,
    plan: &Plan,
    finished: &[bool],
    folder: &Path,
    arguments: Vec<String>,
) -> anyhow::Result<Submission> {
    let n_shards = job.args.tasks.map_or(MOST_TASKS, usize::from).min(plan.n_chains);
    let open: BTreeSet<usize> = plan
        .steps
        .iter()
        .zip(finished)
        .filter(|(_, done)| !**done)
        .map(|(step, _)| step.chain % n_shards + 1)
        .collect();
    let xtask = env::current_exe().context("cannot tell which program this is")?;
    let line = process::shell_line(std::iter::once(xtask.display().to_string()).chain(arguments.iter().cloned()));
    let root = process::shell_line([job.place.root.display().to_string()]);
    let script = format!("#!/bin/sh\ncd {root} || exit 2\nexec {line} --shard \"$SLURM_ARRAY_TASK_ID/{n_shards}\"\n");
    let script_path = folder.join("task.sh");
    record::write_whole(&script_path, script.as_bytes())?;
    let at_once = job.args.jobs.map_or(String::new(), |n| format!("%{n}"));
    let mut command = Command::new("sbatch");
    command
        .arg("--parsable")
        .arg(format!("--job-name=c2r-{}", job.name))
        .arg(format!("--array={}{at_once}", ranges(&open)))
        .arg(format!("--output={}", log_path(folder, "%a").display()))
        .args(job.args.sbatch.iter().flat_map(|options| options.split_whitespace()))
        .arg(&script_path);
    let Some(output) = process::output(&mut command)? else {
        return Err(exit::usage("--launcher slurm: there is no `sbatch` here; run it on a node that submits jobs"));
    };
    if !output.status.success() {
        let reason = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(exit::usage(format!("sbatch refused the array: {reason}")));
    }
    // `--parsable` prints the number, and the cluster after a semicolon where there are several.
    let printed = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    let array = printed.split(';').next().unwrap_or_default().to_owned();
    anyhow::ensure!(!array.is_empty(), "sbatch printed no job number");
    ui::note(format!("submitted array {array} with {} tasks; logs in {}", open.len(), folder.display()));
    Ok(Submission { array, n_shards, arguments })
}

fn log_path(folder: &Path, task: &str) -> PathBuf {
    folder.join(format!("task-{task}.log"))
}

/// `1,3-5` for 1, 3, 4, 5.
fn ranges(numbers: &BTreeSet<usize>) -> String {
    let mut parts: Vec<(usize, usize)> = Vec::new();
    for &number in numbers {
        match parts.last_mut() {
            Some((_, last)) if *last + 1 == number => *last = number,
            _ => parts.push((number, number)),
        }
    }
    let text = |(first, last): &(usize, usize)| {
        if first == last { first.to_string() } else { format!("{first}-{last}") }
    };
    parts.iter().map(text).collect::<Vec<_>>().join(",")
}

/// Whether anything of an array waits or runs.
fn is_queued(array: &str) -> anyhow::Result<bool> {
    let mut command = Command::new("squeue");
    command.args(["--noheader", "--format=%i", "--jobs", array]);
    let Some(output) = process::output(&mut command)? else {
        return Err(exit::usage("--launcher slurm: there is no `squeue` here; run it on a node that submits jobs"));
    };
    if output.status.success() {
        return Ok(!String::from_utf8_lossy(&output.stdout).trim().is_empty());
    }
    let reason = String::from_utf8_lossy(&output.stderr);
    // Slurm forgets jobs some minutes after their end.
    if reason.contains("Invalid job id") {
        return Ok(false);
    }
    Err(anyhow::anyhow!("squeue failed: {}", reason.trim()))
}

fn wait(submission: &Submission, plan: &Plan) -> anyhow::Result<()> {
    let array = &submission.array;
    let (start, mut told) = (Instant::now(), Instant::now());
    let mut n_silent = 0;
    loop {
        match is_queued(array) {
            Ok(false) => return Ok(()),
            Ok(true) => n_silent = 0,
            // A controller that restarts is no end of the array.
            Err(error) if n_silent < 30 => {
                if n_silent == 0 {
                    ui::note(format!("asking Slurm again: {}", exit::message(&error)));
                }
                n_silent += 1;
            }
            Err(error) => return Err(error),
        }
        if told.elapsed() >= HEARTBEAT {
            told = Instant::now();
            let n_done = run::finished(&plan.steps).iter().filter(|&&done| done).count();
            let elapsed = ui::duration(start.elapsed());
            ui::note(format!("... array {array}: {n_done} of {} commands finished ({elapsed})", plan.steps.len()));
        }
        let next = Instant::now() + POLL;
        while Instant::now() < next {
            if process::interrupts() > 0 {
                return Err(exit::error(
                    exit::INTERRUPTED,
                    format!("array {array} goes on; the same command waits for it again, `scancel {array}` stops it"),
                ));
            }
            thread::sleep(process::POLL);
        }
    }
}

/// What the tasks left.
fn collect(plan: &Plan, before: &[bool], submission: &Submission, folder: &Path) -> anyhow::Result<Summary> {
    let finished = run::finished(&plan.steps);
    let count = |flags: &[bool]| flags.iter().filter(|&&flag| flag).count();
    let mut summary = Summary { n_reused: count(before), ..Summary::default() };
    summary.n_finished = count(&finished).saturating_sub(summary.n_reused);
    for (position, step) in plan.steps.iter().enumerate().filter(|(position, _)| !finished[*position]) {
        if step.needs.is_some_and(|needed| !finished[needed]) {
            summary.n_blocked += 1;
            continue;
        }
        let failed = record::failure(step).unwrap_or_else(|| {
            let log = log_path(folder, &(step.chain % submission.n_shards + 1).to_string());
            let mut report = format!("{} did not run to its end; the end of {}:", step.name(), log.display());
            let tail = log_tail(&log, TAIL_LINES);
            if tail.is_empty() {
                report.push_str("\n    nothing: the task did not start, or could not write there");
            }
            for line in tail {
                report.push_str(&format!("\n    {line}"));
            }
            Failed { code: exit::UNEXPECTED, report }
        });
        summary.failures.push(Failure { position, failed });
    }
    Ok(summary)
}

#[cfg(test)]
mod tests {
    use super::{super::plan::tests::Example, *};

    #[test]
    fn numbers_become_ranges() {
        let check = |numbers: &[usize], text: &str| assert_eq!(ranges(&numbers.iter().copied().collect()), text);
        check(&[1], "1");
        check(&[1, 2, 3, 5, 9, 10], "1-3,5,9-10");
    }

    #[test]
    fn what_tasks_left_is_told_apart() {
        let example = Example::new();
        let plan = example.plan_in(&example.place, "dataset=digits,ipc=1,method=c2r", Shard::ALL).unwrap();
        let folder = example.folder.path().join("slurm");
        fs::create_dir_all(&folder).unwrap();
        let done = |step: &super::super::Step| {
            fs::create_dir_all(&step.folder).unwrap();
            fs::write(step.folder.join(step.output), "x").unwrap();
            record::finish(step, Duration::ZERO).unwrap();
        };
        // Seed 0 was finished before; of seed 1 the distillation failed; of seed 2 the first training was killed.
        plan.steps[..7].iter().for_each(done);
        let before = run::finished(&plan.steps);
        record::fail(&plan.steps[7], &Failed { code: 3, report: "no data".into() }).unwrap();
        done(&plan.steps[14]);
        fs::write(log_path(&folder, "3"), "starting\nslurmstepd: error: CANCELLED DUE TO TIME LIMIT\n").unwrap();
        let submission = Submission { array: "7".into(), n_shards: 3, arguments: vec![] };
        let summary = collect(&plan, &before, &submission, &folder).unwrap();
        assert_eq!((summary.n_reused, summary.n_finished, summary.n_blocked), (7, 1, 6 + 4));
        let reports: Vec<_> = summary.failures.iter().map(|failure| (failure.position, &failure.failed)).collect();
        assert_eq!((reports[0].0, reports[0].1.code, reports[0].1.report.as_str()), (7, 3, "no data"));
        assert_eq!(reports[1].0, 15);
        assert!(reports[1].1.report.contains("seed2 train natural did not run to its end"), "{}", reports[1].1.report);
        assert!(reports[1].1.report.contains("DUE TO TIME LIMIT"), "{}", reports[1].1.report);
        assert_eq!(reports.len(), 3, "and its other training");
    }
}
