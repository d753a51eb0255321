//! Ctrl-C, SIGTERM, SIGHUP and a time limit as requests to save the state and stop.
#![cfg_attr(unix, expect(unsafe_code, reason = "the standard library has no safe wrapper for handlers of signals"))]

use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use crate::exit;

/// Signals this close to each other are one request: a terminal, a scheduler and the parent process may each send one, and
/// GNU `timeout` sends its own to the process and once more to its group.
pub const TOGETHER: Duration = Duration::from_secs(2);

/// Signals that were requests of their own.
static SIGNALS: AtomicU8 = AtomicU8::new(0);
static START: OnceLock<Instant> = OnceLock::new();
/// Milliseconds from [`START`] to the last of [`SIGNALS`], plus 1; 0 before the first one.
static LAST: AtomicU64 = AtomicU64::new(0);
/// [`flag`], once somebody has asked for it.
static FLAG: OnceLock<Arc<AtomicBool>> = OnceLock::new();
/// Whether a request ends the process where it has nothing to save.
static ENDS: AtomicBool = AtomicBool::new(false);
/// Whether there is a state to save.
static SAVES: AtomicBool = AtomicBool::new(false);
/// Whether the time limit was the first request.
static OUT_OF_TIME: AtomicBool = AtomicBool::new(false);

/// What a request to stop does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Program {
    /// It ends the process at once with [`crate::exit::INTERRUPTED`], but for the first one after [`will_save`], which is
    /// only counted.
    Command,
    /// It is counted, for a program that has children to stop.
    Parent,
}

/// From here on signals are requests. Those that were ignored when the process started stay ignored: SIGHUP under `nohup`,
/// SIGINT in the background of a script. Call once, at the start.
///
/// # Errors
/// If the system refuses.
pub fn listen(program: Program) -> std::io::Result<()> {
    START.get_or_init(Instant::now);
    ENDS.store(program == Program::Command, Ordering::SeqCst);
    #[cfg(unix)]
    unix::install()?;
    Ok(())
}

/// From here on there is a state to save: the first request is only counted, and the command asks for it
/// ([`requests`]).
pub fn will_save() {
    SAVES.store(true, Ordering::SeqCst);
}

/// A flag that becomes true when the process is asked to stop, for code that cannot call [`requests`].
pub fn flag() -> Arc<AtomicBool> {
    let flag = FLAG.get_or_init(Arc::default);
    // A stop may have been requested before the flag existed.
    flag.fetch_or(requests() > 0, Ordering::SeqCst);
    Arc::clone(flag)
}

/// Safe in a handler.
fn set_flag() {
    if let Some(flag) = FLAG.get() {
        flag.store(true, Ordering::SeqCst);
    }
}

/// How many times the process was asked to stop. The time limit and the first signal after it are one request: a scheduler
/// with the same limit sends SIGTERM while the state is being saved.
pub fn requests() -> u8 {
    SIGNALS.load(Ordering::SeqCst).max(u8::from(OUT_OF_TIME.load(Ordering::SeqCst)))
}

/// The time limit counts from the start of the process ([`listen`]). It becomes a request a little earlier, so that the state
/// is saved when it is over: a twentieth of it, at most ten seconds.
pub fn set_time_limit(limit: Duration) {
    let early = (limit / 20).min(Duration::from_secs(10));
    let passed = START.get().map_or(Duration::ZERO, Instant::elapsed);
    let rest = (limit - early).saturating_sub(passed);
    thread::spawn(move || {
        thread::sleep(rest);
        if SIGNALS.load(Ordering::SeqCst) > 0 {
            return;
        }
        OUT_OF_TIME.store(true, Ordering::SeqCst);
        set_flag();
        if ENDS.load(Ordering::SeqCst) && !SAVES.load(Ordering::SeqCst) {
            end_now(b"the time limit is over\n", exit::TIME_LIMIT);
        }
    });
}

/// The error of a command that was asked to stop: the reason, `rest`, and the exit code of the reason.
pub fn stopped(rest: impl std::fmt::Display) -> anyhow::Error {
    if OUT_OF_TIME.load(Ordering::SeqCst) {
        exit::error(exit::TIME_LIMIT, format!("the time limit is over; {rest}"))
    } else {
        exit::error(exit::INTERRUPTED, format!("interrupted; {rest}"))
    }
}

/// What to do about a run that was stopped. With `--force`, the same command would discard what it has saved.
pub fn how_to_resume(force: bool) -> &'static str {
    if force { "to resume, run the same command without --force" } else { "run the same command again to resume" }
}

/// Ends the process without the destructors that other threads may need, but not without deleting temporary files. Safe in a
/// handler.
fn end_now(text: &[u8], code: u8) -> ! {
    #[cfg(unix)]
    // SAFETY: all three are allowed in a handler, and the bytes outlive the calls. A stderr that is gone costs the text.
    unsafe {
        // Before the text: the process may be stopped at a stderr that nobody reads.
        c2r_files::each_unfinished(|path| {
            nix::libc::unlink(path.as_ptr());
        });
        let _ = nix::libc::write(nix::libc::STDERR_FILENO, text.as_ptr().cast(), text.len());
        nix::libc::_exit(i32::from(code))
    }
    #[cfg(not(unix))]
    {
        eprint!("{}", String::from_utf8_lossy(text));
        std::process::exit(i32::from(code))
    }
}

/// Whether a signal `now` milliseconds after the start is a request of its own, which is then the last one.
fn is_new(last: &AtomicU64, now: u64) -> bool {
    let together = TOGETHER.as_millis() as u64;
    let new = |last: u64| (last == 0 || now + 1 >= last + together).then_some(now + 1);
    last.fetch_update(Ordering::SeqCst, Ordering::SeqCst, new).is_ok()
}

#[cfg(unix)]
mod unix {
    use std::{io, time::Instant};

    use nix::{
        libc,
        sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction},
    };

    use super::{ENDS, LAST, Ordering, SAVES, SIGNALS, START, end_now, is_new, set_flag};
    use crate::exit;

    /// Handles every signal that asks a process to stop and was not ignored until now.
    pub(super) fn install() -> io::Result<()> {
        let action = SigAction::new(SigHandler::Handler(request), SaFlags::SA_RESTART, SigSet::empty());
        for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
            // SAFETY: `request` only does what a handler may: atomics, the clock, unlink, write and _exit.
            let before = unsafe { sigaction(signal, &action) }?;
            if matches!(before.handler(), SigHandler::SigIgn) {
                // SAFETY: this is the disposition that the process began with.
                unsafe { sigaction(signal, &before) }?;
            }
        }
        Ok(())
    }

    extern "C" fn request(_signal: libc::c_int) {
        let now = START.get().map_or(0, |start| Instant::now().duration_since(*start).as_millis() as u64);
        if !is_new(&LAST, now) {
            return;
        }
        let before = SIGNALS.load(Ordering::SeqCst);
        SIGNALS.store(before.saturating_add(1), Ordering::SeqCst);
        set_flag();
        let is_last = before > 0 || !SAVES.load(Ordering::SeqCst);
        if ENDS.load(Ordering::SeqCst) && is_last {
            end_now(b"interrupted\n", exit::INTERRUPTED);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_at_once_are_one_request() {
        let last = AtomicU64::new(0);
        let new = [0, 1, 300, 1999, 2000, 2300, 3999, 4100].map(|milliseconds| is_new(&last, milliseconds));
        assert_eq!(new, [true, false, false, false, true, false, false, true]);
    }

    /// The switches are of the process, so a child has them.
    #[cfg(unix)]
    #[test]
    #[expect(clippy::print_stdout, reason = "the child tells its parent")]
    fn a_signal_after_the_time_limit_lets_the_state_be_saved() {
        use nix::sys::signal::{Signal, raise};

        const CHILD: &str = "C2R_RUN_TEST_OF_SIGNALS";
        if std::env::var_os(CHILD).is_some() {
            listen(Program::Command).unwrap();
            will_save();
            set_time_limit(Duration::ZERO);
            while requests() == 0 {
                thread::sleep(Duration::from_millis(1));
            }
            raise(Signal::SIGTERM).unwrap();
            println!("{} request, exit code {}", requests(), exit::code_of(&stopped("")));
            thread::sleep(TOGETHER);
            raise(Signal::SIGTERM).unwrap();
            println!("not stopped");
            return;
        }
        let name = "signals::tests::a_signal_after_the_time_limit_lets_the_state_be_saved";
        let mut child = std::process::Command::new(std::env::current_exe().unwrap());
        let output = child.args(["--exact", name, "--nocapture"]).env(CHILD, "1").output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(text.contains("1 request, exit code 124") && !text.contains("not stopped"), "{text}");
        assert_eq!(output.status.code(), Some(i32::from(exit::INTERRUPTED)));
    }
}
