//! What people see while the commands run: bars on a terminal, plain lines elsewhere.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Mutex,
    time::{Duration, Instant},
};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use super::{log_tail, plan::Step};
use crate::ui;

/// Without a terminal, every running command is mentioned this often.
const HEARTBEAT: Duration = Duration::from_secs(60);

/// The progress of a reproduction.
pub(crate) struct Board {
    bars: Option<(MultiProgress, ProgressBar)>,
    state: Mutex<State>,
}

struct State {
    done: usize,
    total: usize,
    running: BTreeMap<usize, Running>,
    /// Mentioned once.
    elsewhere: BTreeSet<usize>,
}

struct Running {
    name: String,
    started: Instant,
    told: Instant,
    bar: Option<ProgressBar>,
}

impl Board {
    /// For `total` commands, of which `done` were finished before.
    pub(crate) fn new(total: usize, done: usize) -> Self {
        let bars = ui::is_terminal().then(|| {
            let all = MultiProgress::new();
            let bar = all.add(ProgressBar::new(total as u64));
            bar.set_style(
                ProgressStyle::with_template("[{bar:30}] {pos}/{len} commands, {elapsed}, about {eta} left")
                    .expect("the template is a constant")
                    .progress_chars("=> "),
            );
            // What was done before says nothing about the time left.
            bar.set_position(done as u64);
            bar.reset_eta();
            bar.enable_steady_tick(Duration::from_millis(500));
            (all, bar)
        });
        Self { bars, state: Mutex::new(State { done, total, running: BTreeMap::new(), elsewhere: BTreeSet::new() }) }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().expect("no thread panics while it holds the board")
    }

    /// `step`, at `position` of the plan, starts.
    pub(crate) fn start(&self, position: usize, step: &Step) {
        let bar = self.bars.as_ref().map(|(all, _)| {
            let bar = all.add(ProgressBar::new_spinner());
            bar.set_style(ProgressStyle::with_template("  {prefix}  {wide_msg}").expect("the template is a constant"));
            bar.set_prefix(step.name());
            bar.tick();
            bar
        });
        let now = Instant::now();
        self.state().running.insert(position, Running { name: step.name(), started: now, told: now, bar });
    }

    /// Called often while `step` runs: shows the last line of its log.
    pub(crate) fn tick(&self, position: usize, step: &Step) {
        let mut state = self.state();
        let Some(running) = state.running.get_mut(&position) else { return };
        let interval = if running.bar.is_some() { Duration::from_millis(500) } else { HEARTBEAT };
        if running.told.elapsed() < interval {
            return;
        }
        running.told = Instant::now();
        let line = log_tail(&step.log(), 1).pop().unwrap_or_default();
        match &running.bar {
            Some(bar) => bar.set_message(line),
            None => ui::note(format!("... {} ({}) {line}", running.name, ui::duration(running.started.elapsed()))),
        }
    }

    /// Another process works on `step`, or has finished it.
    pub(crate) fn elsewhere(&self, position: usize, step: &Step, finished: bool) {
        let mut state = self.state();
        let line = if finished {
            state.done += 1;
            format!("[{}/{}] {} was finished elsewhere", state.done, state.total, step.name())
        } else if state.elsewhere.insert(position) {
            format!("{} is worked on elsewhere; it is looked at again", step.name())
        } else {
            return;
        };
        match &self.bars {
            None => ui::note(line),
            Some((_, bar)) => bar.set_position(state.done as u64),
        }
    }

    /// The command at `position` ended; `outcome` is shown unless there is a terminal and nothing to say.
    pub(crate) fn finish(&self, position: usize, outcome: Outcome) {
        let mut state = self.state();
        let Some(running) = state.running.remove(&position) else { return };
        if let Some(bar) = &running.bar {
            bar.finish_and_clear();
        }
        let took = ui::duration(running.started.elapsed());
        if outcome != Outcome::Stopped {
            state.done += 1;
        }
        let line = match outcome {
            Outcome::Finished => format!("[{}/{}] {} ({took})", state.done, state.total, running.name),
            Outcome::Failed => format!("[{}/{}] {} FAILED ({took})", state.done, state.total, running.name),
            Outcome::Stopped => format!("{} stopped ({took})", running.name),
        };
        match &self.bars {
            None => ui::note(line),
            Some((all, bar)) => {
                bar.set_position(state.done as u64);
                if outcome != Outcome::Finished {
                    let _ = all.println(line);
                }
            }
        }
    }

    /// Commands that cannot run because one they need has failed.
    pub(crate) fn skip(&self, n_steps: usize) {
        self.state().total -= n_steps;
    }

    /// Removes the bars.
    pub(crate) fn close(&self) {
        if let Some((all, bar)) = &self.bars {
            bar.finish_and_clear();
            let _ = all.clear();
        }
    }
}

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Well.
    Finished,
    /// With an error.
    Failed,
    /// Because the user asked.
    Stopped,
}
