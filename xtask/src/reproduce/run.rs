//! Runs the commands of a plan, as many at once as fit, each after the one it needs.

use std::{
    fs,
    path::Path,
    process::Command,
    sync::{Condvar, Mutex},
    thread,
    time::{Duration, Instant},
};

use anyhow::Context;

use super::{
    board::{Board, Outcome},
    log_tail,
    plan::Step,
    record,
};
use crate::{
    checkout::{self, Checkout},
    exit, process,
};

/// Lines of a failed command's log that are shown.
const TAIL_LINES: usize = 12;

/// How often a waiting worker looks whether the user asked us to stop.
const IDLE: Duration = Duration::from_millis(200);

/// A command that failed.
#[derive(Debug)]
pub(crate) struct Failure {
    /// Position in the plan.
    pub(crate) position: usize,
    /// Its exit code; 1 if it had none (killed by a signal).
    pub(crate) code: u8,
    /// What happened, with the end of its log.
    pub(crate) report: String,
}

/// What became of a plan.
#[derive(Debug, Default)]
pub(crate) struct Summary {
    /// Commands that ran and ended well.
    pub(crate) n_finished: usize,
    /// Commands that were finished before.
    pub(crate) n_reused: usize,
    /// Commands that failed.
    pub(crate) failures: Vec<Failure>,
    /// Commands that could not run because one they need failed.
    pub(crate) n_blocked: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Waiting,
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
    fn next(&mut self, steps: &[Step]) -> Option<usize> {
        let ready = |position: usize| {
            self.states[position] == State::Waiting
                && steps[position].needs.is_none_or(|needed| self.states[needed] == State::Done)
        };
        let position = (0..steps.len()).find(|&position| ready(position))?;
        self.states[position] = State::Running;
        Some(position)
    }

    fn is_over(&self) -> bool {
        !self.states.iter().any(|state| matches!(state, State::Waiting | State::Running))
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

/// Runs what is not finished. A failing command does not stop the others.
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
                summary.n_finished + summary.n_reused,
                steps.len()
            ),
        ));
    }
    Ok(summary)
}

fn work(steps: &[Step], queue: &Mutex<Queue>, changed: &Condvar, board: &Board, checkout: &Checkout) {
    let mut held = queue.lock().expect("no worker panics");
    while process::interrupts() == 0 && !held.is_over() {
        let Some(position) = held.next(steps) else {
            held = changed.wait_timeout(held, IDLE).expect("no worker panics").0;
            continue;
        };
        drop(held);
        let step = &steps[position];
        board.start(position, step);
        let result = run_step(step, position, board, checkout);
        held = queue.lock().expect("no worker panics");
        match result {
            Ok(true) => {
                board.finish(position, Outcome::Finished);
                held.states[position] = State::Done;
                held.summary.n_finished += 1;
            }
            Ok(false) => {
                board.finish(position, Outcome::Stopped);
                held.states[position] = State::Waiting;
            }
            Err(error) => {
                board.finish(position, Outcome::Failed);
                held.states[position] = State::Failed;
                board.skip(held.block(steps));
                let code = exit::code_of(&error);
                held.summary.failures.push(Failure { position, code, report: exit::message(&error) });
            }
        }
        changed.notify_all();
    }
}

/// Runs one command to its end; `false` if it stopped because the user asked.
fn run_step(step: &Step, position: usize, board: &Board, checkout: &Checkout) -> anyhow::Result<bool> {
    let folder = step.log.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    // A record of an earlier run must not outlive its outputs.
    match fs::remove_file(&step.record) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("cannot remove {}", step.record.display()));
        }
        _ => {}
    }
    let mut command = Command::new(checkout.c2r());
    command.args(step.args()).current_dir(checkout.root());
    checkout::with_libtorch(&mut command, &checkout.libtorch_link());
    let started = Instant::now();
    let mut child = process::background(&mut command, &step.log)?;
    let status = process::wait(&mut child, |_| board.tick(position, step))?;
    if status.success() {
        if let Some(missing) = step.outputs.iter().find(|output| !output.is_file()) {
            return Err(failure(step, "ended well", &format!("did not write {}", missing.display()), exit::UNEXPECTED));
        }
        record::write(step, started.elapsed())?;
        return Ok(true);
    }
    if process::interrupts() > 0 {
        return Ok(false);
    }
    let code = status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(exit::UNEXPECTED);
    Err(failure(step, "failed", &status.to_string(), code))
}

fn failure(step: &Step, how: &str, detail: &str, code: u8) -> anyhow::Error {
    let words = std::iter::once("c2r").chain(step.args().map(String::as_str));
    let mut text = format!("{} {how}: {detail}\n  command: {}", step.name(), process::shell_line(words));
    let tail = log_tail(&step.log, TAIL_LINES);
    if tail.is_empty() {
        text.push_str("\n  it printed nothing");
    } else {
        text.push_str(&format!("\n  the end of {}:", step.log.display()));
        for line in tail {
            text.push_str(&format!("\n    {line}"));
        }
    }
    exit::error(code, text)
}

#[cfg(test)]
mod tests {
    use super::{
        super::plan::{Cell, Stage},
        *,
    };

    fn step(needs: Option<usize>) -> Step {
        Step {
            cell: Cell { dataset: "digits".into(), ipc: Some(1), method: "c2r".into(), seed: 0 },
            stage: Stage::Distill,
            needs,
            what: vec![],
            how: vec![],
            inputs: vec![],
            outputs: vec![],
            log: "no/log".into(),
            record: "no/record".into(),
        }
    }

    #[test]
    fn commands_start_in_order_and_after_what_they_need() {
        let steps = [step(None), step(Some(0)), step(Some(1)), step(None)];
        let mut queue = Queue { states: vec![State::Waiting; 4], summary: Summary::default() };
        assert_eq!(queue.next(&steps), Some(0));
        assert_eq!(queue.next(&steps), Some(3));
        assert_eq!(queue.next(&steps), None);
        queue.states[0] = State::Done;
        assert_eq!(queue.next(&steps), Some(1));
        assert!(!queue.is_over());
        queue.states[1] = State::Failed;
        assert_eq!(queue.block(&steps), 1);
        assert_eq!(queue.next(&steps), None);
        queue.states[3] = State::Done;
        assert!(queue.is_over());
        assert_eq!(queue.summary.n_blocked, 1);
    }

    #[test]
    fn a_failure_blocks_the_whole_chain_behind_it() {
        let steps = [step(None), step(Some(0)), step(Some(1)), step(Some(0))];
        let mut queue = Queue { states: vec![State::Waiting; 4], summary: Summary::default() };
        queue.states[0] = State::Failed;
        assert_eq!(queue.block(&steps), 3);
        assert!(queue.is_over());
    }

    #[test]
    fn a_failure_shows_command_and_reason() {
        let mut step = step(None);
        step.what = ["distill", "--ipc", "1"].map(String::from).into();
        let error = failure(&step, "failed", "exit status: 3", 3);
        assert_eq!(exit::code_of(&error), 3);
        let text = exit::message(&error);
        assert!(text.contains("digits/ipc1/c2r/seed0 distill failed: exit status: 3"), "{text}");
        assert!(text.contains("command: c2r distill --ipc 1\n  it printed nothing"), "{text}");
    }

    /// A checkout whose `c2r` is a shell script: it counts its calls, fails for seed 1's distillation
    /// with code 3, and otherwise writes the files that its arguments name.
    #[cfg(unix)]
    fn checkout_with_fake_c2r(root: &Path) -> Checkout {
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
    train) mkdir -p "$dir" && echo "$seed" > "$dir/model.safetensors" ;;
    attack) echo "{}" > "$out" ;;
esac
"#;
        use std::io::Write;
        let folder = root.join("target/release");
        fs::create_dir_all(&folder).unwrap();
        fs::create_dir_all(root.join("data/profiles")).unwrap();
        fs::write(root.join("data/profiles/faithful.toml"), "eta = 0.4").unwrap();
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
        Checkout::for_test(root)
    }

    #[cfg(unix)]
    #[test]
    fn a_grid_runs_fails_in_part_and_is_not_run_twice() {
        use super::super::{
            experiment::tests::example,
            plan::{Only, Place, expand},
        };
        let folder = tempfile::tempdir().unwrap();
        let checkout = checkout_with_fake_c2r(folder.path());
        let place = Place {
            root: folder.path().into(),
            runs: folder.path().join("runs/example-quick"),
            data: None,
            threads: None,
            device: None,
            force: false,
        };
        let experiment = example();
        let plan = |only: &str| {
            let only: Only = only.parse().unwrap();
            expand(&experiment, experiment.scale("quick").unwrap(), &only, &place).unwrap()
        };
        let n_calls = || fs::read_to_string(folder.path().join("calls")).unwrap().lines().count();

        // Per seed and method one distillation, two trainings, two attacks; seed 1 fails at once.
        let steps = plan("dataset=digits,ipc=10");
        assert_eq!(steps.len(), 2 * 3 * 5);
        let summary = run(&steps, &finished(&steps), 3, &checkout).unwrap();
        assert_eq!((summary.n_finished, summary.n_reused, summary.n_blocked), (20, 0, 8));
        assert_eq!(summary.failures.len(), 2);
        assert!(summary.failures.iter().all(|failure| failure.code == 3));
        let report = &summary.failures[0].report;
        assert!(report.contains("seed1 distill failed") && report.contains("data_batch_1.bin"), "{report}");
        assert_eq!(n_calls(), 22);

        // The second time, only what failed is started.
        let again = run(&steps, &finished(&steps), 3, &checkout).unwrap();
        assert_eq!((again.n_finished, again.n_reused, again.n_blocked), (0, 20, 8));
        assert_eq!(n_calls(), 24);

        // Another profile is another result, from the distillation on.
        fs::write(folder.path().join("data/profiles/faithful.toml"), "eta = 0.6").unwrap();
        let steps = plan("dataset=digits,ipc=10,method=c2r,seed=0");
        assert_eq!(finished(&steps), [false; 5]);
        assert_eq!(run(&steps, &finished(&steps), 1, &checkout).unwrap().n_finished, 5);
        assert_eq!(finished(&steps), [true; 5]);
    }
}
