//! The terminal: results on stdout, messages on stderr, and numbers as people write them.
//!
//! All text goes through [`escaped`], because much of it comes from files. A stderr that is full or closed changes nothing.
//! If stdout cannot be written, [`conclude`] ends with an error.

use std::{
    any::Any,
    backtrace::{Backtrace, BacktraceStatus},
    borrow::Cow,
    fmt::{self, Write as _},
    fs::File,
    io::{self, ErrorKind, IsTerminal, Write},
    panic::{self, PanicHookInfo},
    sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError},
    thread,
    time::{Duration, Instant},
};

use anyhow::Context;
use indicatif::{HumanCount, ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};

use crate::{exit, signals};

/// Why stdout could not be written, once it could not.
static STDOUT: Mutex<Option<io::Error>> = Mutex::new(None);
/// The stdout that the process began with, after [`keep_stdout`].
static KEPT: OnceLock<File> = OnceLock::new();

/// `text` with everything escaped that can steer a terminal or change the order in which it shows characters: control
/// characters (also line ends and tabs), marks of direction, and tags. The escapes are those of JSON, `\n` or `\u001b`, so
/// that JSON stays what it was.
pub fn escaped(text: &str) -> Cow<'_, str> {
    if !text.contains(is_active) {
        return Cow::Borrowed(text);
    }
    let mut safe = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        match c {
            '\n' => safe.push_str("\\n"),
            '\r' => safe.push_str("\\r"),
            '\t' => safe.push_str("\\t"),
            c if is_active(c) => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    let _ = write!(safe, "\\u{unit:04x}");
                }
            }
            c => safe.push(c),
        }
    }
    Cow::Owned(safe)
}

/// Controls; marks that change the direction of text or cannot be seen: Unicode 15, sections 23.2 and 23.8 to 23.9.
fn is_active(c: char) -> bool {
    c.is_control()
        || matches!(
            c,
            '\u{61c}' | '\u{200b}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}'
                | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}'
        )
}

/// [`escaped`] line by line.
pub fn escaped_lines(text: &str) -> String {
    text.split('\n').map(escaped).collect::<Vec<_>>().join("\n")
}

/// A line for people, on stderr. A stderr that is full or gone does not end a long run.
pub fn note(line: impl AsRef<str>) {
    let _ = io::stderr().lock().write_all(format!("{}\n", escaped(line.as_ref())).as_bytes());
}

/// [`note`] with line ends where `text` has them.
pub fn notes(text: impl AsRef<str>) {
    text.as_ref().split('\n').for_each(note);
}

/// A line of a result, on stdout.
pub fn out(line: impl AsRef<str>) {
    print(&escaped(line.as_ref()));
}

/// A result of several lines, on stdout.
pub fn text(text: impl AsRef<str>) {
    print(&escaped_lines(text.as_ref()));
}

fn print(safe: &str) {
    let mut failed = STDOUT.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    if failed.is_none() {
        let line = format!("{safe}\n");
        *failed = match KEPT.get() {
            Some(mut kept) => write_all(&mut kept, line.as_bytes()).err(),
            None => write_all(&mut io::stdout().lock(), line.as_bytes()).err(),
        };
    }
}

/// Keeps stdout for results: whatever else in this process prints there, as a TorchScript model may, prints on stderr from now
/// on. Call once, before anything is printed. Where a process has no such streams, nothing changes.
///
/// # Errors
/// If the system has no more files to give.
pub fn keep_stdout() -> io::Result<()> {
    #[cfg(unix)]
    {
        use std::os::fd::AsFd;

        let kept = File::from(io::stdout().as_fd().try_clone_to_owned()?);
        nix::unistd::dup2_stdout(io::stderr())?;
        let _ = KEPT.set(kept);
    }
    Ok(())
}

/// [`Write::write_all`], also to a pipe that another program has made non-blocking.
fn write_all(stream: &mut impl Write, mut bytes: &[u8]) -> io::Result<()> {
    const PAUSE: Duration = Duration::from_millis(10);
    while !bytes.is_empty() {
        match stream.write(bytes) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(n) => bytes = &bytes[n..],
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => thread::sleep(PAUSE),
            Err(error) => return Err(error),
        }
    }
    stream.flush()
}

/// Whether the reader of stdout is gone (`| head`).
fn nobody_reads() -> bool {
    let failed = STDOUT.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    failed.as_ref().is_some_and(|error| error.kind() == ErrorKind::BrokenPipe)
}

/// What to do about an error with this message, if that is known.
pub type Advice = fn(&str) -> Option<&'static str>;

/// Ends a program: prints its error, and what `advice` has to say about it. A stdout that could not be written is one, too,
/// unless its reader has gone, who has seen what they wanted. Returns the exit code.
pub fn conclude(result: anyhow::Result<()>, advice: Advice) -> u8 {
    let failed = STDOUT.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).take();
    let written = match failed {
        Some(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(error).context("cannot write to stdout; files that the command wrote are complete")
        }
        _ => Ok(()),
    };
    match result.and(written) {
        Ok(()) => exit::SUCCESS,
        Err(error) => {
            let message = exit::message(&error);
            notes(format!("error: {message}"));
            advice(&message).into_iter().for_each(note);
            exit::code_of(&error)
        }
    }
}

/// Panics are printed as everything else is: escaped, and without harm where stderr is gone. A panic that `advice` knows, such as
/// one where memory ran out, is printed without a trace. A trace needs memory: if it gets none, the standard library waits for ever
/// for a lock that it holds itself.
pub fn catch_panics(advice: Advice) {
    panic::set_hook(Box::new(move |info: &PanicHookInfo<'_>| {
        let thread = thread::current();
        let place = info.location().map(ToString::to_string).unwrap_or_default();
        let reason = panic_reason(info.payload());
        notes(format!("thread '{}' panicked at {place}:\n{reason}", thread.name().unwrap_or("without a name")));
        if let Some(advice) = advice(reason) {
            note(advice);
            return;
        }
        let trace = Backtrace::capture();
        if trace.status() == BacktraceStatus::Captured {
            notes(trace.to_string());
        }
    }));
}

/// The text of a panic, without the stack that libtorch writes into its errors.
fn panic_reason(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("a value that is not text");
    // The line end before the stack, in a text that has the form of `Debug`.
    exit::without_stack(text).trim_end_matches("\\n").trim_end()
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

/// [`duration`] of a number of seconds.
pub fn seconds(seconds: f64) -> String {
    duration(Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX))
}

/// `1,234`, rounded.
pub fn count(number: f64) -> String {
    HumanCount(number.round() as u64).to_string()
}

/// `1 image`, `1,234 images`.
pub fn counted(number: usize, what: &str) -> String {
    format!("{} {what}{}", HumanCount(number as u64), if number == 1 { "" } else { "s" })
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
    /// A line of a result, on stdout.
    pub fn out(&self, line: impl AsRef<str>) {
        out(line);
    }

    /// A result of several lines, on stdout.
    pub fn text(&self, lines: impl AsRef<str>) {
        text(lines);
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

    /// Progress in steps: `done` of `total` were done before. Shows nothing when quiet.
    pub fn progress(&self, label: &str, done: u64, total: u64) -> Progress {
        Progress::new(label, (done, Some(total)), Unit::Steps, self.quiet)
    }

    /// True once the process was asked to stop ([`signals`]) or nobody reads its results any more: save the state and
    /// stop.
    pub fn interrupted(&self) -> bool {
        signals::requests() > 0 || nobody_reads()
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Unit {
    Steps,
    Bytes,
}

/// How far something is: a bar on a terminal, a plain line now and then elsewhere, whether or not it has moved. Dropped
/// without [`Progress::finish`], the bar disappears, too.
pub struct Progress {
    bar: ProgressBar,
    shown: Arc<Watched>,
    /// What prints it where there is no bar.
    _lines: Option<Lines>,
}

impl Progress {
    /// Progress in bytes, of which there are `total` where that is known.
    pub fn bytes(label: &str, total: Option<u64>) -> Self {
        Self::new(label, (0, total), Unit::Bytes, false)
    }

    fn new(label: &str, (done, total): (u64, Option<u64>), unit: Unit, quiet: bool) -> Self {
        let hidden = quiet || !is_terminal();
        let target = if hidden { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() };
        let template = match (unit, total) {
            (Unit::Steps, _) => "{prefix} [{bar:30}] {pos}/{len} {msg} ({times})",
            (Unit::Bytes, Some(_)) => {
                "{prefix} [{bar:30}] {decimal_bytes}/{decimal_total_bytes} {decimal_bytes_per_sec} ({eta} left)"
            }
            (Unit::Bytes, None) => "{prefix} {spinner} {decimal_bytes} {decimal_bytes_per_sec}",
        };
        let shown = Shown {
            label: label.to_owned(),
            total,
            unit,
            start: Instant::now(),
            before: done,
            position: done,
            left: None,
            message: String::new(),
        };
        let shown = Arc::new(Watched { state: Mutex::new((shown, false)), over: Condvar::new() });
        let times = Arc::clone(&shown);
        let style = ProgressStyle::with_template(template).expect("the templates are constants").with_key(
            "times",
            move |_: &ProgressState, text: &mut dyn fmt::Write| {
                let _ = text.write_str(&locked(&times.state).0.times());
            },
        );
        let bar = ProgressBar::with_draw_target(total, target).with_style(style.progress_chars("=> "));
        let every = if unit == Unit::Bytes { BYTES_EVERY } else { STEPS_EVERY };
        let lines = (hidden && !quiet).then(|| Lines::new(Arc::clone(&shown), every, note));
        Self { bar: bar.with_prefix(escaped(label).into_owned()), shown, _lines: lines }
    }

    /// Moves to `position` and shows `message`.
    pub fn set(&mut self, position: u64, message: impl Into<String>) {
        let message = message.into();
        let safe = escaped(&message).into_owned();
        {
            let shown = &mut locked(&self.shown.state).0;
            shown.position = position;
            shown.message = message;
        }
        self.bar.set_position(position);
        self.bar.set_message(safe);
    }

    /// Shows that `seconds` are left, for steps of which some take longer than others. Without it, the steps left are
    /// taken to be as fast as those since the beginning.
    pub fn set_left(&mut self, seconds: f64) {
        locked(&self.shown.state).0.left = Some(seconds);
    }

    /// Removes the bar.
    pub fn finish(self) {
        self.bar.finish_and_clear();
    }
}

/// How often progress in bytes prints a line if stderr is not a terminal.
const BYTES_EVERY: Duration = Duration::from_secs(10);
/// How often progress in steps does.
const STEPS_EVERY: Duration = Duration::from_secs(30);

/// What a line of progress says.
struct Shown {
    label: String,
    total: Option<u64>,
    unit: Unit,
    start: Instant,
    /// The position at the start.
    before: u64,
    position: u64,
    /// Seconds left, where the caller knows them.
    left: Option<f64>,
    message: String,
}

impl Shown {
    /// How long it has run, and how long it will.
    fn times(&self) -> String {
        let Self { total, start, before, position, left, .. } = self;
        let (elapsed, rest) = (start.elapsed().as_secs_f64(), total.unwrap_or(0).saturating_sub(*position) as f64);
        let moved = position.saturating_sub(*before);
        let left = left.or_else(|| (moved > 0).then(|| elapsed / moved as f64 * rest));
        let left = left.map_or_else(String::new, |left| format!(", {} left", seconds(left)));
        format!("{}{left}", seconds(elapsed))
    }

    fn line(&self) -> String {
        let Self { label, total, unit, position, message, .. } = self;
        if *unit == Unit::Bytes {
            let of = total.map(|total| format!(" of {}", megabytes(total))).unwrap_or_default();
            return format!("... {label}: {}{of}", megabytes(*position));
        }
        let message = if message.is_empty() { String::new() } else { format!(" {message}") };
        format!("{label} {position}/{}{message} ({})", total.unwrap_or(0), self.times())
    }
}

/// What is shown, and whether it is over.
struct Watched {
    state: Mutex<(Shown, bool)>,
    over: Condvar,
}

/// A thread that prints a line of progress at intervals, until this is dropped.
struct Lines {
    shown: Arc<Watched>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Lines {
    fn new(shown: Arc<Watched>, every: Duration, print: impl Fn(String) + Send + 'static) -> Self {
        let watched = Arc::clone(&shown);
        let thread = thread::spawn(move || {
            let Watched { state, over } = &*watched;
            let mut guard = locked(state);
            loop {
                let waited = over.wait_timeout_while(guard, every, |(_, over)| !*over);
                guard = waited.unwrap_or_else(PoisonError::into_inner).0;
                if guard.1 {
                    return;
                }
                print(guard.0.line());
            }
        });
        Self { shown, thread: Some(thread) }
    }
}

impl Drop for Lines {
    fn drop(&mut self) {
        locked(&self.shown.state).1 = true;
        self.shown.over.notify_all();
        if let Some(thread) = self.thread.take() {
            // If it has panicked, the panic has printed its own message.
            let _ = thread.join();
        }
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_of_a_file_steers_a_terminal() {
        // Python: json.dumps(text) of each, which escapes everything but ASCII.
        for (text, safe) in [
            ("plain, Zo\u{eb}, \u{732b}, \u{1f600}", "plain, Zo\u{eb}, \u{732b}, \u{1f600}"),
            ("\x1b[2J\x1b]0;title\x07", r"\u001b[2J\u001b]0;title\u0007"),
            ("a\nb\r\tc\0\x7f", r"a\nb\r\tc\u0000\u007f"),
            ("\u{9b}31m\u{85}", r"\u009b31m\u0085"),
            ("txt.\u{202e}gpj\u{2066}\u{61c}\u{feff}", r"txt.\u202egpj\u2066\u061c\ufeff"),
            ("\u{e0041}", r"\udb40\udc41"),
        ] {
            assert_eq!(escaped(text), safe);
            assert_eq!(escaped(&escaped(text)), safe, "twice is once");
        }
        assert_eq!(escaped_lines("one\n\x1btwo\n"), "one\n\\u001btwo\n");
        // JSON stays the same value.
        let value = serde_json::json!({"class\u{9b}": "a\u{202e}\u{e0041}\n"});
        assert_eq!(serde_json::from_str::<serde_json::Value>(&escaped(&value.to_string())).unwrap(), value);
    }

    #[test]
    fn a_stream_that_is_busy_gets_every_byte() {
        struct Busy(Vec<u8>, u8);
        impl Write for Busy {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                self.1 += 1;
                match self.1 % 3 {
                    0 => Err(ErrorKind::WouldBlock.into()),
                    1 => Err(ErrorKind::Interrupted.into()),
                    _ => self.0.write(&bytes[..bytes.len().min(2)]),
                }
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let mut busy = Busy(Vec::new(), 0);
        write_all(&mut busy, b"seven b").unwrap();
        assert_eq!(busy.0, b"seven b");
        let full = write_all(&mut [0u8; 3].as_mut_slice(), b"four").unwrap_err();
        assert_eq!(full.kind(), ErrorKind::WriteZero);
    }

    /// The CPU's is what libtorch said where memory was limited, shortened; the GPU's has the form that its source gives it.
    #[test]
    fn a_panic_has_no_stack_of_libtorch() {
        let on_the_cpu = r#"called `Result::unwrap()` on an `Err` value: Torch("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 786432000 bytes. Error code 12 (Cannot allocate memory)\nframe #0: c10::ThrowEnforceNotMet(char const*, int) + 0x6a (0x7f1f in libc10.so)\nframe #1: c10::alloc_cpu(unsigned long)")"#;
        let on_a_gpu = "CUDA out of memory. Tried to allocate 20.00 GiB.\nException raised from malloc at CUDACachingAllocator.cpp:1588 (most recent call first):\nframe #0: c10::Error";
        for (said, end) in [(on_the_cpu, "(Cannot allocate memory)"), (on_a_gpu, "20.00 GiB.")] {
            let reason = panic_reason(&said);
            assert!(reason.ends_with(end) && said.starts_with(reason), "{reason}");
        }
        let other = "the size of tensor a (3) must match that of b".to_owned();
        let reason = panic_reason(&other);
        assert_eq!(reason, other);
        assert_eq!(panic_reason(&3), "a value that is not text");
    }

    #[test]
    fn lines_come_whether_or_not_something_moves() {
        let shown = |unit, position, total| {
            let (label, start, message) = ("apgd-t".to_owned(), Instant::now(), String::new());
            Shown { label, total, unit, start, before: 0, position, left: None, message }
        };
        let (sender, lines) = std::sync::mpsc::channel();
        let watched =
            Arc::new(Watched { state: Mutex::new((shown(Unit::Steps, 0, Some(39)), false)), over: Condvar::new() });
        let progress = Lines::new(Arc::clone(&watched), Duration::from_millis(1), move |line| {
            let _ = sender.send(line);
        });
        let first: String = lines.iter().next().unwrap();
        assert!(first.starts_with("apgd-t 0/39 (") && !first.contains("left"), "{first}");
        {
            let shown = &mut locked(&watched.state).0;
            (shown.position, shown.message) = (13, "25.0 % robust".to_owned());
        }
        let moved = lines.iter().find(|line| line.contains("13/39")).unwrap();
        assert!(moved.starts_with("apgd-t 13/39 25.0 % robust (") && moved.ends_with(" left)"), "{moved}");
        drop(progress);
        // The thread is over, so the channel is closed.
        assert!(lines.iter().all(|line| line.contains("13/39")));
        assert_eq!(shown(Unit::Bytes, 3_000_000, Some(9_000_000)).line(), "... apgd-t: 3 MB of 9 MB");
        assert_eq!(shown(Unit::Bytes, 3_000_000, None).line(), "... apgd-t: 3 MB");
    }

    #[test]
    fn the_time_left_is_that_of_the_steps_of_this_run() {
        let start = Instant::now().checked_sub(Duration::from_secs(100)).unwrap();
        let of = |before, position, left| {
            let (label, message) = ("distil".to_owned(), String::new());
            Shown { label, total: Some(400), unit: Unit::Steps, start, before, position, left, message }.times()
        };
        assert_eq!(of(0, 100, None), "100 s, 5 min 0 s left");
        assert_eq!(of(300, 350, None), "100 s, 100 s left", "300 were done before");
        assert_eq!(of(300, 300, None), "100 s", "nothing is known yet");
        assert_eq!(of(0, 100, Some(40.0)), "100 s, 40 s left", "as the caller says");
    }

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
        assert_eq!(seconds(3.46), "3.5 s");
        assert_eq!([0.4, 1234.5, 1e6].map(count), ["0", "1,235", "1,000,000"]);
        assert_eq!([1, 1438].map(|n| counted(n, "image")), ["1 image", "1,438 images"]);
    }
}
