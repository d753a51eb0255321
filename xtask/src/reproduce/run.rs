//! Runs the commands of a plan, as many at once as fit, each after the one it needs.

use std::{
    process::Command,
    sync::{Condvar, Mutex},
    thread,
    time::{Duration, Instant},
};

use super::{
    board::{Board, Outcome},
    lease::Lease,
    log_tail,
    plan::Step,
    record::{self, Failed},
};
use crate::{
    checkout::{self, Checkout},
    exit, process,
};

/// Lines of a failed command's log that are shown.
const TAIL_LINES: usize = 12;

/// How often a waiting worker looks whether the user asked us to stop.
const IDLE: Duration = Duration::from_millis(200);

/// How often we look whether another process has ended what it works on.
const LOOK_AGAIN: Duration = Duration::from_secs(2);

/// A command that failed.
#[derive(Debug)]
pub(crate) struct Failure {
    /// Position in the plan.
    pub(crate) position: usize,
    /// Exit code and reason.
    pub(crate) failed: Failed,
}

/// What became of a plan.
#[derive(Debug, Default)]
pub(crate) struct Summary {
    /// Commands that ran and ended well.
    pub(crate) n_finished: usize,
    /// Commands that were finished before.
    pub(crate) n_reused: usize,
    /// Commands that other processes finished in the meantime.
    pub(crate) n_elsewhere: usize,
    /// Commands that failed.
    pub(crate) failures: Vec<Failure>,
    /// Commands that could not run because one they need failed.
    pub(crate) n_blocked: usize,
}

impl Summary {
    /// Commands that are finished, by whomever.
    pub(crate) fn n_done(&self) -> usize {
        self.n_finished + self.n_reused + self.n_elsewhere
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
    /// The first command that can start.
    fn next(&mut self, steps: &[Step], now: Instant) -> Option<usize> {
        let ready = |position: usize| {
            let free = match self.states[position] {
                State::Waiting => true,
                State::Elsewhere(again) => again <= now,
                _ => false,
            };
            free && steps[position].needs.is_none_or(|needed| self.states[needed] == State::Done)
        };
        let position = (0..steps.len()).find(|&position| ready(position))?;
        self.states[position] = State::Running;
        Some(position)
    }

    fn is_over(&self) -> bool {
        !self.states.iter().any(|state| matches!(state, State::Waiting | State::Running | State::Elsewhere(_)))
    }

    /// Marks everything that needs a failed command; returns how many.
    fn block(&mut self, steps: &[Step]) -> usize {
        let mut n_blocked = 0;
        for (position, step) in steps.iter().enumerate() {
            let needs_failed =
                step.needs.is_some_and(|needed| matches!(self.states[needed], State::Failed | State::Blocked));
            if needs_failed && self.states[position] == State::Waiting {
                self.states[position] = State::Blocked;
                n_blocked += 1;
            }
        }
        self.summary.n_blocked += n_blocked;
        n_blocked
    }
}

/// Which commands are finished already: recorded as such, and so is the one they need.
pub(crate) fn finished(steps: &[Step]) -> Vec<bool> {
    let mut finished: Vec<bool> = Vec::with_capacity(steps.len());
    for step in steps {
        finished.push(step.needs.is_none_or(|needed| finished[needed]) && record::is_finished(step));
    }
    finished
}

/// Runs what is not finished. A failing command does not stop the others, and what another process works on is waited
/// for.
///
/// # Errors
/// If the user interrupted; the running commands have then saved their state.
pub(crate) fn run(steps: &[Step], finished: &[bool], n_jobs: usize, checkout: &Checkout) -> anyhow::Result<Summary> {
    let states: Vec<State> = finished.iter().map(|&done| if done { State::Done } else { State::Waiting }).collect();
    let n_reused = finished.iter().filter(|&&done| done).count();
    let board = Board::new(steps.len(), n_reused);
    let queue = Mutex::new(Queue { states, summary: Summary { n_reused, ..Summary::default() } });
    let changed = Condvar::new();
    thread::scope(|scope| {
        for _ in 0..n_jobs.clamp(1, steps.len().max(1)) {
            scope.spawn(|| work(steps, &queue, &changed, &board, checkout));
        }
    });
    board.close();
    let summary = queue.into_inner().expect("no worker panics").summary;
    if process::interrupts() > 0 {
        return Err(exit::error(
            exit::INTERRUPTED,
            format!(
                "interrupted with {} of {} commands finished; run the same command again to go on",
                summary.n_done(),
                steps.len()
            ),
        ));
    }
    Ok(summary)
}

fn work(steps: &[Step], queue: &Mutex<Queue>, changed: &Condvar, board: &Board, checkout: &Checkout) {
    let mut held = queue.lock().expect("no worker panics");
    while process::interrupts() == 0 && !held.is_over() {
        let Some(position) = held.next(steps, Instant::now()) else {
            held = changed.wait_timeout(held, IDLE).expect("no worker panics").0;
            continue;
        };
        drop(held);
        let step = &steps[position];
        let result = run_step(step, position, board, checkout);
        held = queue.lock().expect("no worker panics");
        match result {
            Ok(Ended::Finished) => {
                board.finish(position, Outcome::Finished);
                held.states[position] = State::Done;
                held.summary.n_finished += 1;
            }
            Ok(Ended::FinishedElsewhere) => {
                board.elsewhere(position, step, true);
                held.states[position] = State::Done;
                held.summary.n_elsewhere += 1;
            }
            Ok(Ended::Elsewhere) => {
                board.elsewhere(position, step, false);
                held.states[position] = State::Elsewhere(Instant::now() + LOOK_AGAIN);
            }
            Ok(Ended::Stopped) => {
                board.finish(position, Outcome::Stopped);
                held.states[position] = State::Waiting;
            }
            Err(error) => {
                board.finish(position, Outcome::Failed);
                held.states[position] = State::Failed;
                board.skip(held.block(steps));
                let failed = Failed { code: exit::code_of(&error), report: exit::message(&error) };
                held.summary.failures.push(Failure { position, failed });
            }
        }
        changed.notify_all();
    }
}

/// How a command ended that did not fail.
#[derive(Debug, PartialEq, Eq)]
enum Ended {
    /// It ran, and its output is there.
    Finished,
    /// Another process has finished it since we looked.
    FinishedElsewhere,
    /// Another process works on it.
    Elsewhere,
    /// The user asked, or another machine took it over.
    Stopped,
}

/// Runs one command to its end, unless somebody else does.
fn run_step(step: &Step, position: usize, board: &Board, checkout: &Checkout) -> anyhow::Result<Ended> {
    let Some(lease) = Lease::claim(&step.folder)? else { return Ok(Ended::Elsewhere) };
    let again = step.how.iter().any(|word| word == "--force");
    if !again && record::is_finished(step) {
        return Ok(Ended::FinishedElsewhere);
    }
    board.start(position, step);
    // A record of an earlier run must not outlive its outputs.
    record::forget(step)?;
    let mut command = Command::new(checkout.c2r());
    command.args(step.args()).current_dir(checkout.root());
    checkout::with_libtorch(&mut command, &checkout.libtorch_link());
    let started = Instant::now();
    let mut child = process::background(&mut command, lease.stdin()?, &step.log())?;
    // The command has its own handle of the lock; ours would keep it from being given back.
    drop(command);
    let status = process::wait(&mut child, |_| {
        board.tick(position, step);
        !lease.is_lost()
    })?;
    if lease.is_lost() {
        return Ok(Ended::Stopped);
    }
    if status.success() && step.folder.join(step.output).is_file() {
        record::finish(step, started.elapsed())?;
        return Ok(Ended::Finished);
    }
    if process::interrupts() > 0 {
        return Ok(Ended::Stopped);
    }
    let error = if status.success() {
        failure(step, "ended well", &format!("did not write {}", step.output), exit::UNEXPECTED)
    } else {
        let code = status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(exit::UNEXPECTED);
        failure(step, "failed", &status.to_string(), code)
    };
    record::fail(step, &Failed { code: exit::code_of(&error), report: exit::message(&error) })?;
    Err(error)
}

fn failure(step: &Step, how: &str, detail: &str, code: u8) -> anyhow::Error {
    let words = std::iter::once("c2r").chain(step.args().map(String::as_str));
    let mut text = format!("{} {how}: {detail}\n  command: {}", step.name(), process::shell_line(words));
    let tail = log_tail(&step.log(), TAIL_LINES);
    if tail.is_empty() {
        text.push_str("\n  it printed nothing");
    } else {
        text.push_str(&format!("\n  the end of {}:", step.log().display()));
        for line in tail {
            text.push_str(&format!("\n    {line}"));
        }
    }
    exit::error(code, text)
}

#[cfg(test)]
pub(crate) mod tests {
    use std::{fs, path::Path};

    use super::{super::plan::tests::Example, *};

    fn queue(n: usize) -> Queue {
        Queue { states: vec![State::Waiting; n], summary: Summary::default() }
    }

    /// A distillation, a training and an attack behind it, and a distillation by itself.
    fn steps(example: &Example) -> Vec<Step> {
        let mut steps = example.steps("dataset=digits,ipc=1,method=c2r,seed=0,protocol=natural,attack=pgd");
        steps.push(Step { needs: None, ..steps[0].clone() });
        steps
    }

    #[test]
    fn commands_start_in_order_and_after_what_they_need() {
        let (steps, now) = (steps(&Example::new()), Instant::now());
        let mut queue = queue(4);
        assert_eq!(queue.next(&steps, now), Some(0));
        assert_eq!(queue.next(&steps, now), Some(3));
        assert_eq!(queue.next(&steps, now), None);
        queue.states[0] = State::Done;
        assert_eq!(queue.next(&steps, now), Some(1));
        assert!(!queue.is_over());
        queue.states[1] = State::Failed;
        assert_eq!(queue.block(&steps), 1);
        assert_eq!(queue.next(&steps, now), None);
        queue.states[3] = State::Done;
        assert!(queue.is_over());
        assert_eq!(queue.summary.n_blocked, 1);
    }

    #[test]
    fn what_others_work_on_is_looked_at_again() {
        let (steps, now) = (steps(&Example::new()), Instant::now());
        let mut queue = queue(4);
        queue.states[0] = State::Elsewhere(now + LOOK_AGAIN);
        assert_eq!(queue.next(&steps, now), Some(3));
        assert_eq!(queue.next(&steps, now), None);
        assert!(!queue.is_over());
        assert_eq!(queue.next(&steps, now + LOOK_AGAIN), Some(0));
    }

    #[test]
    fn a_failure_blocks_the_whole_chain_behind_it() {
        let steps = steps(&Example::new());
        let mut queue = queue(4);
        queue.states[0] = State::Failed;
        assert_eq!(queue.block(&steps), 2);
        assert_eq!(queue.states[3], State::Waiting);
    }

    #[test]
    fn a_failure_shows_command_and_reason() {
        let mut step = steps(&Example::new()).swap_remove(0);
        step.what = ["distill", "--ipc", "1"].map(String::from).into();
        step.how.clear();
        let error = failure(&step, "failed", "exit status: 3", 3);
        assert_eq!(exit::code_of(&error), 3);
        let text = exit::message(&error);
        assert!(text.contains("digits/ipc1/c2r/seed0 distill failed: exit status: 3"), "{text}");
        assert!(text.contains("command: c2r distill --ipc 1\n  it printed nothing"), "{text}");
    }

    /// Puts a shell script in the place of `c2r`: it counts its calls, fails for seed 1's distillation with code 3, and
    /// otherwise writes the files that its arguments name.
    #[cfg(unix)]
    pub(crate) fn fake_c2r(root: &Path) {
        const SCRIPT: &str = r#"#!/bin/sh
echo "$*" >> calls
command=$1
while [ $# -gt 0 ]; do
    case $1 in
        --run-dir) dir=$2 ;;
        --output) out=$2 ;;
        --synthetic | --checkpoint) test -f "$2" || { echo "no input $2"; exit 9; } ;;
        --seed) seed=$2 ;;
    esac
    shift
done
if [ "$command$seed" = distill1 ]; then echo "error: cannot read data_batch_1.bin"; exit 3; fi
case $command in
    distill) mkdir -p "$dir" && echo "$seed" > "$dir/synthetic.safetensors" ;;
    train) mkdir -p "$dir" && echo "$seed" > "$dir/model.safetensors" && echo "{}" > "$dir/run.json" ;;
    attack) echo "{}" > "$out" ;;
esac
"#;
        use std::io::Write;
        let folder = root.join("target/release");
        fs::create_dir_all(&folder).unwrap();
        // Written by another process: a program that is open for writing here cannot be started, and a
        // test beside this one may hold a copy of the open file while it starts something.
        let mut writer = Command::new("sh")
            .args(["-c", "cat > \"$0\" && chmod +x \"$0\""])
            .arg(folder.join("c2r"))
            .stdin(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        writer.stdin.take().unwrap().write_all(SCRIPT.as_bytes()).unwrap();
        assert!(writer.wait().unwrap().success());
    }

    #[cfg(unix)]
    #[test]
    fn a_grid_runs_fails_in_part_and_is_not_run_twice() {
        let example = Example::new();
        fake_c2r(example.folder.path());
        let checkout = example.checkout();
        let n_calls = || fs::read_to_string(example.folder.path().join("calls")).unwrap().lines().count();

        // Per seed and method one distillation, two trainings, four attacks; seed 1 fails at once.
        let steps = example.steps("dataset=digits,ipc=10");
        assert_eq!(steps.len(), 2 * 3 * 7);
        let summary = run(&steps, &finished(&steps), 3, &checkout).unwrap();
        assert_eq!((summary.n_finished, summary.n_reused, summary.n_blocked), (28, 0, 12));
        assert_eq!(summary.failures.len(), 2);
        assert!(summary.failures.iter().all(|failure| failure.failed.code == 3));
        let report = &summary.failures[0].failed.report;
        assert!(report.contains("seed1 distill failed") && report.contains("data_batch_1.bin"), "{report}");
        assert_eq!(&record::failure(&steps[summary.failures[0].position]).unwrap().report, report);
        assert_eq!(n_calls(), 30);

        // The second time, only what failed is started.
        let again = run(&steps, &finished(&steps), 3, &checkout).unwrap();
        assert_eq!((again.n_finished, again.n_reused, again.n_blocked), (0, 28, 12));
        assert_eq!(n_calls(), 32);

        // Another profile is another result, from the distillation on.
        fs::write(example.folder.path().join("data/profiles/faithful.toml"), "eta = 0.6").unwrap();
        let steps = example.steps("dataset=digits,ipc=10,method=c2r,seed=0");
        assert_eq!(finished(&steps), [false; 7]);
        assert_eq!(run(&steps, &finished(&steps), 1, &checkout).unwrap().n_finished, 7);
        assert_eq!(finished(&steps), [true; 7]);

        // And the first one is still there.
        fs::write(example.folder.path().join("data/profiles/faithful.toml"), "eta = 0.4").unwrap();
        assert_eq!(finished(&example.steps("dataset=digits,ipc=10,method=c2r,seed=0")), [true; 7]);
    }

    /// Two processes in one results folder: each command runs once, and both see all of them finished.
    #[cfg(unix)]
    #[test]
    fn two_at_once_share_the_work() {
        let example = Example::new();
        fake_c2r(example.folder.path());
        let checkout = example.checkout();
        let steps = example.steps("dataset=digits,ipc=10,seed=0,seed=2");
        let before = finished(&steps);
        let (one, two) = thread::scope(|scope| {
            let other = scope.spawn(|| run(&steps, &before, 2, &checkout).unwrap());
            (run(&steps, &before, 2, &checkout).unwrap(), other.join().unwrap())
        });
        assert!(one.failures.is_empty() && two.failures.is_empty());
        assert_eq!((one.n_done(), two.n_done()), (28, 28));
        assert_eq!(one.n_finished + two.n_finished, 28, "each command ran once");
        let calls = fs::read_to_string(example.folder.path().join("calls")).unwrap();
        assert_eq!(calls.lines().count(), 28);
    }
}
