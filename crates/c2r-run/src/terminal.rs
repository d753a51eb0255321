//! The terminal: results on stdout, everything for people on stderr.

use std::{
    io::{self, IsTerminal, Write},
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::signals;

/// A line for people, on stderr. A closed stderr does not end a long run.
pub fn note(line: impl AsRef<str>) {
    let _ = writeln!(io::stderr().lock(), "{}", line.as_ref());
}

/// A result, on stdout. A closed pipe (`| head`) is not an error.
pub fn out(text: impl AsRef<str>) {
    let _ = writeln!(io::stdout().lock(), "{}", text.as_ref());
}

/// True where bars and colours make sense.
pub fn is_terminal() -> bool {
    io::stderr().is_terminal() && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}

/// `850 ms`, `4.2 s`, `3 min 20 s`, `5 h 7 min`, `3 days 4 h`.
pub fn duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0 if duration.as_millis() > 0 => format!("{} ms", duration.as_millis()),
        0..10 => format!("{:.1} s", duration.as_secs_f64()),
        10..120 => format!("{:.0} s", duration.as_secs_f64()),
        120..7200 => format!("{} min {} s", seconds / 60, seconds % 60),
        7200..172_800 => format!("{} h {} min", seconds / 3600, seconds / 60 % 60),
        172_800..8_640_000 => format!("{} days {} h", seconds / 86_400, seconds / 3600 % 24),
        8_640_000..94_608_000 => format!("{} days", seconds / 86_400),
        _ => format!("{} years", seconds / 31_536_000),
    }
}

/// `12 MB`, in units of 10^6 bytes as pip prints them.
pub fn megabytes(bytes: u64) -> String {
    format!("{} MB", bytes / 1_000_000)
}

/// How much a command says.
#[derive(Debug, Clone, Copy, Default)]
pub struct Ui {
    /// No progress and no notes; results and errors stay.
    pub quiet: bool,
    /// More notes.
    pub verbose: bool,
}

impl Ui {
    /// A result: one line on stdout. A closed pipe (`| head`) ends the program quietly.
    pub fn out(&self, line: impl AsRef<str>) {
        if writeln!(io::stdout().lock(), "{}", line.as_ref()).is_err() {
            // Whoever reads the results is gone.
            std::process::exit(0);
        }
    }

    /// A line for people, on stderr.
    pub fn note(&self, line: impl AsRef<str>) {
        if !self.quiet {
            note(line);
        }
    }

    /// A line for people who asked for more.
    pub fn detail(&self, line: impl AsRef<str>) {
        if self.verbose {
            self.note(line);
        }
    }

    /// Progress in steps of a known number; nothing when quiet.
    pub fn progress(&self, label: &str, total: u64) -> Progress {
        Progress::new(label, Some(total), Unit::Steps, self.quiet)
    }

    /// True once the process was asked to stop ([`signals`]): save the state and stop.
    pub fn interrupted(&self) -> bool {
        signals::requests() > 0
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Unit {
    Steps,
    Bytes,
}

/// How far something is: a bar on a terminal, a plain line now and then elsewhere. Dropped without
/// [`Progress::finish`], the bar disappears, too.
pub struct Progress {
    bar: ProgressBar,
    label: String,
    unit: Unit,
    quiet: bool,
    start: Instant,
    last: Instant,
}

impl Progress {
    /// Progress in bytes, of which there are `total` where that is known.
    pub fn bytes(label: &str, total: Option<u64>) -> Self {
        Self::new(label, total, Unit::Bytes, false)
    }

    fn new(label: &str, total: Option<u64>, unit: Unit, quiet: bool) -> Self {
        let hidden = quiet || !is_terminal();
        let target = if hidden { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() };
        let template = match (unit, total) {
            (Unit::Steps, _) => "{prefix} [{bar:30}] {pos}/{len} {msg} ({elapsed}, {eta} left)",
            (Unit::Bytes, Some(_)) => {
                "{prefix} [{bar:30}] {decimal_bytes}/{decimal_total_bytes} {decimal_bytes_per_sec} ({eta} left)"
            }
            (Unit::Bytes, None) => "{prefix} {spinner} {decimal_bytes} {decimal_bytes_per_sec}",
        };
        let style = ProgressStyle::with_template(template).expect("the templates are constants");
        let bar = ProgressBar::with_draw_target(total, target).with_style(style.progress_chars("=> "));
        let now = Instant::now();
        Self { bar: bar.with_prefix(label.to_owned()), label: label.to_owned(), unit, quiet, start: now, last: now }
    }

    /// Moves to `position` and shows `message`.
    pub fn set(&mut self, position: u64, message: impl Into<String>) {
        let message = message.into();
        self.bar.set_position(position);
        // Without a terminal, one plain line per this long.
        let interval = Duration::from_secs(if self.unit == Unit::Bytes { 10 } else { 30 });
        if self.bar.is_hidden() && !self.quiet && self.last.elapsed() >= interval {
            self.last = Instant::now();
            let (label, total) = (&self.label, self.bar.length());
            if self.unit == Unit::Bytes {
                let of = total.map(|total| format!(" of {}", megabytes(total))).unwrap_or_default();
                note(format!("... {label}: {}{of}", megabytes(position)));
            } else {
                let (elapsed, total) = (self.start.elapsed().as_secs_f64(), total.unwrap_or(0));
                let rest = total.saturating_sub(position) as f64;
                let left = if position == 0 { 0.0 } else { elapsed / position as f64 * rest };
                note(format!("{label} {position}/{total} {message} ({elapsed:.0} s, {left:.0} s left)"));
            }
        }
        self.bar.set_message(message);
    }

    /// Removes the bar.
    pub fn finish(self) {
        self.bar.finish_and_clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_well() {
        let check = |seconds: f64, text: &str| assert_eq!(duration(Duration::from_secs_f64(seconds)), text);
        check(0.0, "0.0 s");
        check(0.25, "250 ms");
        check(9.94, "9.9 s");
        check(61.0, "61 s");
        check(200.0, "3 min 20 s");
        check(18_420.0, "5 h 7 min");
        check(273_600.0, "3 days 4 h");
        check(12_000_000.0, "138 days");
        check(9.4e9, "298 years");
    }
}
