//! Runs the jobs of a plan, as many at once as fit, each after the one it needs.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Condvar, Mutex},
    thread,
    time::{Duration, Instant},
};

use c2r_files::{remove_if_present, shell_line};
use c2r_run::{exit, process, signals, terminal};

use crate::{
    Job, Workplace,
    board::{Board, Outcome},
    lease::Lease,
    log, pack,
    record::{self, Failed},
};

/// How often a waiting worker looks whether the user asked us to stop.
const IDLE: Duration = Duration::from_millis(200);

/// How often we look whether another process has ended what it works on.
const LOOK_AGAIN: Duration = Duration::from_secs(2);

/// A job that failed.
#[derive(Debug)]
pub struct Failure {
    /// Position in the plan.
    pub position: usize,
    /// Exit code and reason.
    pub failed: Failed,
}

/// What became of a plan.
#[derive(Debug, Default)]
pub struct Summary {
    /// Jobs that ran and ended well.
    pub n_finished: usize,
    /// Jobs that were finished before.
    pub n_reused: usize,
    /// Jobs that other processes finished in the meantime.
    pub n_elsewhere: usize,
    /// Jobs that failed.
    pub failures: Vec<Failure>,
    /// Jobs that could not run because one they need failed.
    pub n_blocked: usize,
}

impl Summary {
    /// Jobs that are finished, in this process or another one.
    pub fn n_done(&self) -> usize {
        self.n_finished + self.n_reused + self.n_elsewhere
    }

    /// Reports failures, those with the same last line together, because one missing file fails many jobs. `force`: whether the
    /// work of earlier runs was discarded, which the same command would do again.
    ///
    /// # Errors
    /// If a job failed; the exit code is theirs where they agree.
    pub fn conclude(&self, jobs: &[Job], force: bool) -> anyhow::Result<()> {
        self.say_failures(jobs);
        let codes: BTreeSet<u8> = self.failures.iter().map(|failure| failure.failed.code).collect();
        let code = match codes.first() {
            None => return Ok(()),
            Some(&code) if codes.len() == 1 => code,
            Some(_) => exit::UNEXPECTED,
        };
        let blocked = match self.n_blocked {
            0 => String::new(),
            n_blocked => format!(", so {n_blocked} that need their results did not run"),
        };
        let n_failed = self.failures.len();
        let again = if force { "without --force" } else { "again" };
        exit::fail(code, format!("{n_failed} commands failed{blocked}; fix the cause and run the same command {again}"))
    }

    fn say_failures(&self, jobs: &[Job]) {
        let mut by_reason: BTreeMap<String, Vec<&Failure>> = BTreeMap::new();
        for failure in &self.failures {
            by_reason.entry(log::last_line(&jobs[failure.position].log())).or_default().push(failure);
        }
        for failures in by_reason.values() {
            terminal::notes(format!("\n{}", failures[0].failed.report));
            let others: Vec<String> = failures[1..].iter().map(|failure| jobs[failure.position].name()).collect();
            if !others.is_empty() {
                terminal::note(format!("  {} more failed in the same way: {}", others.len(), others.join(", ")));
            }
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Waiting,
    /// Another process works on it; looked at again at this time.
    Elsewhere(Instant),
    Running,
    Done,
    Failed,
    Blocked,
}

struct Queue {
    states: Vec<State>,
    summary: Summary,
}

impl Queue {
    /// The first job that can start.
    fn next(&mut self, jobs: &[Job], now: Instant) -> Option<usize> {
        let ready = |position: usize| {
            let free = match self.states[position] {
                State::Waiting => true,
                State::Elsewhere(again) => again <= now,
                _ => false,
            };
            free && jobs[position].needs.is_none_or(|needed| self.states[needed] == State::Done)
        };
        let position = (0..jobs.len()).find(|&position| ready(position))?;
        self.states[position] = State::Running;
        Some(position)
    }

    fn is_over(&self) -> bool {
        !self.states.iter().any(|state| matches!(state, State::Waiting | State::Running | State::Elsewhere(_)))
    }

    /// Marks everything that needs a failed job; returns how many.
    fn block(&mut self, jobs: &[Job]) -> usize {
        let mut n_blocked = 0;
        for (position, job) in jobs.iter().enumerate() {
            let needs_failed =
                job.needs.is_some_and(|needed| matches!(self.states[needed], State::Failed | State::Blocked));
            if needs_failed && self.states[position] == State::Waiting {
                self.states[position] = State::Blocked;
                n_blocked += 1;
            }
        }
        self.summary.n_blocked += n_blocked;
        n_blocked
    }
}

/// Which jobs are finished already: recorded as such, and so is the one they need.
pub fn finished(jobs: &[Job]) -> Vec<bool> {
    let mut finished: Vec<bool> = Vec::with_capacity(jobs.len());
    for job in jobs {
        finished.push(job.needs.is_none_or(|needed| finished[needed]) && record::is_finished(job));
    }
    finished
}

/// Deletes all work on `jobs`, finished or not.
///
/// # Errors
/// If another process works on one of them (nothing is deleted then, unless it began in this moment), or a file cannot be
/// deleted.
pub(crate) fn discard(jobs: &[Job]) -> anyhow::Result<()> {
    let claim = |job: &Job| {
        let taken =
            || exit::usage(format!("--force: another process works on {}; wait for it, or stop it", job.name()));
        Lease::claim(&job.folder)?.ok_or_else(taken)
    };
    let distinct: BTreeMap<&str, &Job> = jobs.iter().map(|job| (job.id.as_str(), job)).collect();
    let mut begun = Vec::new();
    for job in distinct.into_values() {
        if pack::files(job)?.is_empty() {
            continue;
        }
        drop(claim(job)?);
        begun.push(job);
    }
    for job in begun {
        let _lease = claim(job)?;
        record::forget(job)?;
        for (file, _) in pack::files(job)? {
            remove_if_present(&job.folder.join(file))?;
        }
    }
    Ok(())
}

/// Runs what is not finished. A failing job does not stop the others, and what another process works on is waited for.
///
/// # Errors
/// If the process was asked to stop; the running commands have then saved their state.
pub fn run(jobs: &[Job], finished: &[bool], n_at_once: usize, place: &Workplace) -> anyhow::Result<Summary> {
    let states: Vec<State> = finished.iter().map(|&done| if done { State::Done } else { State::Waiting }).collect();
    let n_reused = finished.iter().filter(|&&done| done).count();
    let board = Board::new(jobs.len(), n_reused);
    let queue = Mutex::new(Queue { states, summary: Summary { n_reused, ..Summary::default() } });
    let changed = Condvar::new();
    thread::scope(|scope| {
        for _ in 0..n_at_once.clamp(1, jobs.len().max(1)) {
            scope.spawn(|| work(jobs, &queue, &changed, &board, place));
        }
    });
    board.close();
    let summary = queue.into_inner().expect("no worker panics").summary;
    if signals::requests() > 0 {
        summary.say_failures(jobs);
        let (n_done, n) = (summary.n_done(), jobs.len());
        let failed = match summary.failures.len() {
            0 => String::new(),
            n_failed => format!(", {n_failed} failed (see above)"),
        };
        let resume = signals::how_to_resume(place.force);
        return Err(signals::stopped(format!("{n_done} of {n} commands are finished{failed}; {resume}")));
    }
    Ok(summary)
}

fn work(jobs: &[Job], queue: &Mutex<Queue>, changed: &Condvar, board: &Board, place: &Workplace) {
    let mut held = queue.lock().expect("no worker panics");
    while signals::requests() == 0 && !held.is_over() {
        let Some(position) = held.next(jobs, Instant::now()) else {
            held = changed.wait_timeout(held, IDLE).expect("no worker panics").0;
            continue;
        };
        drop(held);
        let result = run_job(&jobs[position], position, board, place);
        board.end(position, &jobs[position], *result.as_ref().unwrap_or(&Outcome::Failed));
        held = queue.lock().expect("no worker panics");
        held.states[position] = match result {
            Ok(Outcome::Finished) => {
                held.summary.n_finished += 1;
                State::Done
            }
            Ok(Outcome::FinishedElsewhere) => {
                held.summary.n_elsewhere += 1;
                State::Done
            }
            Ok(Outcome::Elsewhere) => State::Elsewhere(Instant::now() + LOOK_AGAIN),
            Ok(Outcome::Stopped) => State::Waiting,
            Ok(Outcome::Failed) => State::Failed,
            Err(error) => {
                let failed = Failed { code: exit::code_of(&error), report: exit::message(&error) };
                held.summary.failures.push(Failure { position, failed });
                State::Failed
            }
        };
        board.skip(held.block(jobs));
        changed.notify_all();
    }
}

/// Runs one job to its end, unless another process does. An error if it failed.
fn run_job(job: &Job, position: usize, board: &Board, place: &Workplace) -> anyhow::Result<Outcome> {
    let Some(lease) = Lease::claim(&job.folder)? else { return Ok(Outcome::Elsewhere) };
    if record::is_finished(job) {
        return Ok(Outcome::FinishedElsewhere);
    }
    board.start(position, job);
    // A record of an earlier run must not outlive its outputs.
    record::forget(job)?;
    let started = Instant::now();
    // The command has its own handle of the lock; a copy of ours would keep it from being given back.
    let mut child = process::background(place.command(job.args()), lease.stdin()?, &job.log())?;
    let status = process::wait(&mut child, |_| {
        board.tick(position, job);
        // It is killed: the folder belongs to another machine, which may be further than any state saved here.
        !lease.is_lost()
    })?;
    if lease.is_lost() {
        return Ok(Outcome::Stopped);
    }
    let output = job.output();
    if status.success() && output.is_file() {
        record::finish(job, started.elapsed())?;
        return Ok(Outcome::Finished);
    }
    if signals::requests() > 0 {
        // How far it is.
        let line = log::last_line(&job.log());
        let said = if line.is_empty() { "stopped before it printed anything" } else { &line };
        terminal::note(format!("{}: {said}", job.name()));
        return Ok(Outcome::Stopped);
    }
    let (code, how) = if status.success() {
        (exit::UNEXPECTED, format!("ended without an error but did not write {}", job.stage.output()))
    } else {
        let code = status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(exit::UNEXPECTED);
        (code, format!("failed: {status}"))
    };
    let failed = Failed { code, report: report(job, &how) };
    record::fail(job, &failed)?;
    exit::fail(code, failed.report)
}

/// What a failed job did, its command, and the end of its log.
fn report(job: &Job, how: &str) -> String {
    let words = std::iter::once("c2r").chain(job.args().map(String::as_str));
    let what = format!("{} {how}\n  command: {}", job.name(), shell_line(words));
    log::with_end_of(&job.log(), &what, "it printed nothing")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::example::Example;

    fn queue(n: usize) -> Queue {
        Queue { states: vec![State::Waiting; n], summary: Summary::default() }
    }

    /// A distillation, a training and an attack behind it, and a distillation by itself.
    fn jobs(example: &Example) -> Vec<Job> {
        let mut jobs = example.jobs("dataset=digits,ipc=1,method=c2r,seed=0,protocol=natural,attack=pgd");
        jobs.push(Job { needs: None, ..jobs[0].clone() });
        jobs
    }

    #[test]
    fn commands_start_in_order_and_after_what_they_need() {
        let (jobs, now) = (jobs(&Example::new()), Instant::now());
        let mut queue = queue(4);
        assert_eq!(queue.next(&jobs, now), Some(0));
        assert_eq!(queue.next(&jobs, now), Some(3));
        assert_eq!(queue.next(&jobs, now), None);
        queue.states[0] = State::Done;
        assert_eq!(queue.next(&jobs, now), Some(1));
        assert!(!queue.is_over());
        queue.states[1] = State::Failed;
        assert_eq!(queue.block(&jobs), 1);
        assert_eq!(queue.next(&jobs, now), None);
        queue.states[3] = State::Done;
        assert!(queue.is_over());
        assert_eq!(queue.summary.n_blocked, 1);
    }

    #[test]
    fn what_others_work_on_is_looked_at_again() {
        let (jobs, now) = (jobs(&Example::new()), Instant::now());
        let mut queue = queue(4);
        queue.states[0] = State::Elsewhere(now + LOOK_AGAIN);
        assert_eq!(queue.next(&jobs, now), Some(3));
        assert_eq!(queue.next(&jobs, now), None);
        assert!(!queue.is_over());
        assert_eq!(queue.next(&jobs, now + LOOK_AGAIN), Some(0));
    }

    #[test]
    fn a_failure_blocks_the_whole_chain_behind_it() {
        let jobs = jobs(&Example::new());
        let mut queue = queue(4);
        queue.states[0] = State::Failed;
        assert_eq!(queue.block(&jobs), 2);
        assert_eq!(queue.states[3], State::Waiting);
    }

    #[test]
    fn a_failure_shows_command_and_reason() {
        let mut job = jobs(&Example::new()).swap_remove(0);
        job.what = ["distill", "--ipc", "1"].map(String::from).into();
        job.how.clear();
        let expected = "digits/ipc1/c2r/seed0 distill failed: exit status: 3\n  command: c2r distill --ipc 1\n  it printed nothing";
        assert_eq!(report(&job, "failed: exit status: 3"), expected);
    }
}
