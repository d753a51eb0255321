//! The progress of a grid while its jobs run: bars on a terminal, plain lines elsewhere.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Mutex, MutexGuard},
    time::{Duration, Instant},
};

use c2r_run::terminal;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use crate::{Job, log};

/// How often the last line of a running command's log is shown on a terminal, and without one.
const INTERVALS: [Duration; 2] = [Duration::from_millis(500), Duration::from_secs(60)];

/// How a job ended for now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It ran, and its output is there.
    Finished,
    /// Another process has finished it.
    FinishedElsewhere,
    /// Another process works on it.
    Elsewhere,
    /// The user asked, or another machine took it over.
    Stopped,
    /// With an error.
    Failed,
}

/// The progress of a grid.
pub(crate) struct Board {
    bars: Option<(MultiProgress, ProgressBar)>,
    state: Mutex<State>,
}

struct State {
    done: usize,
    total: usize,
    running: BTreeMap<usize, Running>,
    /// Jobs of others that were mentioned once.
    elsewhere: BTreeSet<usize>,
}

struct Running {
    started: Instant,
    shown: Instant,
    bar: Option<ProgressBar>,
}

impl Board {
    /// For `total` jobs, of which `done` were finished before.
    pub(crate) fn new(total: usize, done: usize) -> Self {
        let bars = terminal::is_terminal().then(|| {
            let all = MultiProgress::new();
            let bar = all.add(ProgressBar::new(total as u64));
            let style = style("[{bar:30}] {pos}/{len} commands, {elapsed}, about {eta} left");
            bar.set_style(style.progress_chars("=> "));
            // What was done before says nothing about the time left.
            bar.set_position(done as u64);
            bar.reset_eta();
            bar.enable_steady_tick(INTERVALS[0]);
            (all, bar)
        });
        Self { bars, state: Mutex::new(State { done, total, running: BTreeMap::new(), elsewhere: BTreeSet::new() }) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no thread panics while it holds the board")
    }

    /// `job`, at `position` of the plan, starts.
    pub(crate) fn start(&self, position: usize, job: &Job) {
        let bar = self.bars.as_ref().map(|(all, _)| {
            let bar = all.add(ProgressBar::new_spinner().with_style(style("  {prefix}  {wide_msg}")));
            bar.set_prefix(terminal::escaped(&job.name()).into_owned());
            bar.tick();
            bar
        });
        let now = Instant::now();
        self.state().running.insert(position, Running { started: now, shown: now, bar });
    }

    /// Called often while `job` runs: shows the last line of its log.
    pub(crate) fn tick(&self, position: usize, job: &Job) {
        let mut state = self.state();
        let Some(running) = state.running.get_mut(&position) else { return };
        if running.shown.elapsed() < INTERVALS[usize::from(running.bar.is_none())] {
            return;
        }
        running.shown = Instant::now();
        let (line, elapsed) = (log::last_line(&job.log()), terminal::duration(running.started.elapsed()));
        match &running.bar {
            Some(bar) => bar.set_message(terminal::escaped(&line).into_owned()),
            None => terminal::note(format!("... {} ({elapsed}) {line}", job.name())),
        }
    }

    /// `job` ended, or turned out to be another process's.
    pub(crate) fn end(&self, position: usize, job: &Job, outcome: Outcome) {
        let mut state = self.state();
        let running = state.running.remove(&position);
        if let Some(bar) = running.as_ref().and_then(|running| running.bar.as_ref()) {
            bar.finish_and_clear();
        }
        if !matches!(outcome, Outcome::Stopped | Outcome::Elsewhere) {
            state.done += 1;
        }
        let took = running.map(|running| terminal::duration(running.started.elapsed())).unwrap_or_default();
        let (count, name) = (format!("[{}/{}]", state.done, state.total), job.name());
        let line = match outcome {
            Outcome::Finished => format!("{count} {name} ({took})"),
            // The first of many that fail alike says why, not only the end of the grid.
            Outcome::Failed => format!("{count} {name} FAILED ({took}): {}", log::last_line(&job.log())),
            Outcome::Stopped => format!("{name} stopped ({took})"),
            Outcome::FinishedElsewhere => format!("{count} {name} was finished by another process"),
            Outcome::Elsewhere if state.elsewhere.insert(position) => {
                format!("{name} is running in another process; waiting for it")
            }
            Outcome::Elsewhere => return,
        };
        match &self.bars {
            None => terminal::note(line),
            Some((all, bar)) => {
                bar.set_position(state.done as u64);
                if matches!(outcome, Outcome::Failed | Outcome::Stopped) {
                    let _ = all.println(terminal::escaped(&line));
                }
            }
        }
    }

    /// This many jobs cannot run because one that they need has failed.
    pub(crate) fn skip(&self, n_jobs: usize) {
        self.state().total -= n_jobs;
    }

    /// Removes the bars.
    pub(crate) fn close(&self) {
        if let Some((all, bar)) = &self.bars {
            bar.finish_and_clear();
            let _ = all.clear();
        }
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).expect("the templates are constants")
}
