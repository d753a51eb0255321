//! What people see: notes on stderr, results on stdout.

use std::{
    io::{IsTerminal, Write},
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// How often a line tells how far something is, where there is no terminal for a bar.
const HEARTBEAT: Duration = Duration::from_secs(10);

/// A line for people, on stderr.
pub(crate) fn note(line: impl AsRef<str>) {
    // A closed stderr must not end a long run.
    let _ = writeln!(std::io::stderr().lock(), "{}", line.as_ref());
}

/// A result, on stdout. A closed pipe (`| head`) is no error.
pub(crate) fn out(text: impl AsRef<str>) {
    let _ = writeln!(std::io::stdout().lock(), "{}", text.as_ref());
}

/// True where bars and colours make sense.
pub(crate) fn is_terminal() -> bool {
    std::io::stderr().is_terminal() && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}

/// `850 ms`, `4.2 s`, `3 min 20 s`, `5 h 7 min`, `3 days 4 h`.
pub(crate) fn duration(duration: Duration) -> String {
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
pub(crate) fn megabytes(bytes: u64) -> String {
    format!("{} MB", bytes / 1_000_000)
}

/// How many bytes of something are done: a bar on a terminal, a line now and then elsewhere.
pub(crate) struct Meter {
    bar: ProgressBar,
    name: String,
    next: Instant,
}

impl Meter {
    /// `total`: how many bytes there will be, where that is known.
    pub(crate) fn new(name: String, total: Option<u64>) -> Self {
        let target = if is_terminal() { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let bar = ProgressBar::with_draw_target(total, target);
        let template = match total {
            Some(_) => "{prefix} [{bar:30}] {decimal_bytes}/{decimal_total_bytes} {decimal_bytes_per_sec} ({eta} left)",
            None => "{prefix} {spinner} {decimal_bytes} {decimal_bytes_per_sec}",
        };
        bar.set_style(
            ProgressStyle::with_template(template).expect("the templates are constants").progress_chars("=> "),
        );
        bar.set_prefix(name.clone());
        Self { bar, name, next: Instant::now() + HEARTBEAT }
    }

    /// So many bytes are done.
    pub(crate) fn set(&mut self, bytes: u64) {
        self.bar.set_position(bytes);
        if self.bar.is_hidden() && Instant::now() >= self.next {
            self.next = Instant::now() + HEARTBEAT;
            let total = self.bar.length().map(|total| format!(" of {}", megabytes(total))).unwrap_or_default();
            note(format!("... {}: {}{total}", self.name, megabytes(bytes)));
        }
    }

    /// Removes the bar.
    pub(crate) fn finish(self) {
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
