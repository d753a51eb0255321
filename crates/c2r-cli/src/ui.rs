//! The terminal: results on stdout, everything for people on stderr.

use std::{
    io::{IsTerminal, Write},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Without a terminal, progress is one plain line per this long.
const PLAIN_INTERVAL: Duration = Duration::from_secs(30);

/// What every command prints through.
pub(crate) struct Ui {
    quiet: bool,
    verbose: bool,
    interrupted: Arc<AtomicBool>,
}

impl Ui {
    /// `quiet` drops progress and notes; results and errors stay.
    pub(crate) fn new(quiet: bool, verbose: bool) -> anyhow::Result<Self> {
        let interrupted = Arc::new(AtomicBool::new(false));
        let flag = interrupted.clone();
        ctrlc::set_handler(move || {
            // A second Ctrl-C does not wait for the state to be written; a signal thread cannot unwind.
            if flag.swap(true, Ordering::SeqCst) {
                std::process::exit(i32::from(crate::exit::INTERRUPTED));
            }
        })?;
        Ok(Self { quiet, verbose, interrupted })
    }

    /// A result: one line on stdout. A closed pipe (`| head`) ends the program quietly.
    pub(crate) fn out(&self, line: impl AsRef<str>) {
        if writeln!(std::io::stdout().lock(), "{}", line.as_ref()).is_err() {
            // The reader is gone; nothing is left to say.
            std::process::exit(0);
        }
    }

    /// A line for people, on stderr.
    #[expect(clippy::print_stderr, reason = "this is the place that prints")]
    pub(crate) fn note(&self, line: impl AsRef<str>) {
        if !self.quiet {
            eprintln!("{}", line.as_ref());
        }
    }

    /// A line for people who asked for more.
    pub(crate) fn detail(&self, line: impl AsRef<str>) {
        if self.verbose {
            self.note(line);
        }
    }

    /// A progress bar on a terminal, plain lines elsewhere, nothing when quiet.
    pub(crate) fn progress(&self, label: &str, total: u64) -> Progress {
        let bar = if self.quiet || !std::io::stderr().is_terminal() {
            ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::hidden())
        } else {
            ProgressBar::new(total)
        };
        bar.set_style(
            ProgressStyle::with_template("{prefix} [{bar:30}] {pos}/{len} {msg} ({elapsed}, {eta} left)")
                .expect("the template is a constant")
                .progress_chars("=> "),
        );
        bar.set_prefix(label.to_owned());
        let plain = !self.quiet && !std::io::stderr().is_terminal();
        Progress { bar, plain, label: label.to_owned(), last: Instant::now(), start: Instant::now() }
    }

    /// True after the first Ctrl-C: save the state and stop.
    pub(crate) fn interrupted(&self) -> bool {
        self.interrupted.load(Ordering::SeqCst)
    }
}

/// A running bar; dropped without [`Progress::finish`] it disappears.
pub(crate) struct Progress {
    bar: ProgressBar,
    plain: bool,
    label: String,
    last: Instant,
    start: Instant,
}

impl Progress {
    /// Moves to `position` and shows `message`.
    #[expect(clippy::print_stderr, reason = "this is the place that prints")]
    pub(crate) fn set(&mut self, position: u64, message: impl Into<String>) {
        let message = message.into();
        self.bar.set_position(position);
        if self.plain && self.last.elapsed() >= PLAIN_INTERVAL {
            self.last = Instant::now();
            let total = self.bar.length().unwrap_or(0);
            let elapsed = self.start.elapsed().as_secs_f64();
            let left =
                if position == 0 { 0.0 } else { elapsed / position as f64 * total.saturating_sub(position) as f64 };
            eprintln!("{} {position}/{total} {message} ({elapsed:.0} s, {left:.0} s left)", self.label);
        }
        self.bar.set_message(message);
    }

    /// Removes the bar.
    pub(crate) fn finish(self) {
        self.bar.finish_and_clear();
    }
}
