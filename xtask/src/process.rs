//! Starting other programs, and stopping them when the user asks.

use std::{
    io,
    path::Path,
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::Context;

use crate::{exit, signals};

/// How often a running program is looked at.
pub(crate) const POLL: Duration = Duration::from_millis(30);

/// How many times the user asked us to stop.
pub(crate) fn interrupts() -> u8 {
    signals::requests()
}

/// An error if the user asked us to stop.
pub(crate) fn check_interrupt() -> anyhow::Result<()> {
    if interrupts() > 0 { Err(interrupted()) } else { Ok(()) }
}

/// What ends an interrupted command.
fn interrupted() -> anyhow::Error {
    exit::error(exit::INTERRUPTED, "interrupted; run the same command again to go on")
}

/// Runs a program that shares our terminal (cargo, pip) to its end, calling `tick` while it runs.
///
/// # Errors
/// If it cannot be started, or the user interrupted us.
pub(crate) fn foreground(command: &mut Command, mut tick: impl FnMut(Duration)) -> anyhow::Result<ExitStatus> {
    check_interrupt()?;
    let program = command.get_program().to_string_lossy().into_owned();
    let mut child =
        own_group(command).stdin(Stdio::null()).spawn().with_context(|| format!("cannot run `{program}`"))?;
    let status = wait(&mut child, |elapsed| {
        tick(elapsed);
        true
    })?;
    check_interrupt()?;
    Ok(status)
}

/// Waits for a child with a process group of its own, calling `go_on` while it runs. Passes the user's wish to stop on:
/// once politely and, if it is repeated, at once; if `go_on` says no, politely too.
///
/// # Errors
/// If the child cannot be waited for.
pub(crate) fn wait(child: &mut Child, mut go_on: impl FnMut(Duration) -> bool) -> anyhow::Result<ExitStatus> {
    let start = Instant::now();
    let mut passed_on = 0;
    loop {
        if let Some(status) = child.try_wait().context("cannot wait for a program")? {
            return Ok(status);
        }
        let asked = interrupts().min(2);
        if asked > passed_on {
            stop(child, if asked == 1 { Stop::Politely } else { Stop::Now });
            passed_on = asked;
        }
        if !go_on(start.elapsed()) && passed_on == 0 {
            stop(child, Stop::Politely);
            passed_on = 1;
        }
        thread::sleep(POLL);
    }
}

/// A group of its own keeps Ctrl-C in a terminal from reaching the program beside us, and lets us
/// reach its children too (a `python3` can be a shell script that starts the real one).
fn own_group(command: &mut Command) -> &mut Command {
    #[cfg(unix)]
    std::os::unix::process::CommandExt::process_group(command, 0);
    command
}

/// Starts a program that reads `stdin` and whose output goes to `log`.
///
/// # Errors
/// If the log cannot be written or the program cannot be started.
pub(crate) fn background(command: &mut Command, stdin: Stdio, log: &Path) -> anyhow::Result<Child> {
    let file = std::fs::File::create(log).with_context(|| format!("cannot write {}", log.display()))?;
    let errors = file.try_clone().context("cannot share the log file")?;
    #[cfg(unix)]
    std::os::unix::process::CommandExt::process_group(command, 0);
    let program = command.get_program().to_string_lossy().into_owned();
    command.stdin(stdin).stdout(file).stderr(errors).spawn().with_context(|| format!("cannot run `{program}`"))
}

/// How a program is stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stop {
    /// SIGINT: it saves its state first.
    Politely,
    /// SIGKILL.
    Now,
}

/// Stops `child` and its process group. A child that is already gone is no error.
fn stop(child: &mut Child, how: Stop) {
    #[cfg(unix)]
    {
        use nix::{
            sys::signal::{Signal, killpg},
            unistd::Pid,
        };
        let signal = if how == Stop::Now { Signal::SIGKILL } else { Signal::SIGINT };
        if let Ok(id) = i32::try_from(child.id()) {
            let _ = killpg(Pid::from_raw(id), signal);
        }
    }
    #[cfg(not(unix))]
    {
        let _ = (how, child.kill());
    }
}

/// Standard output of a program that ends quickly; `None` if it is not installed.
///
/// # Errors
/// If it is there but cannot be started.
pub(crate) fn output(command: &mut Command) -> anyhow::Result<Option<std::process::Output>> {
    let program = command.get_program().to_string_lossy().into_owned();
    match command.stdin(Stdio::null()).output() {
        Ok(output) => Ok(Some(output)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("cannot run `{program}`")),
    }
}

/// A command as one would type it, for people to copy.
pub(crate) fn shell_line<S: AsRef<str>>(words: impl IntoIterator<Item = S>) -> String {
    let quoted: Vec<String> = words
        .into_iter()
        .map(|word| {
            let word = word.as_ref();
            let plain = |c: char| c.is_ascii_alphanumeric() || "-_=+./:,@%".contains(c);
            if !word.is_empty() && word.chars().all(plain) {
                word.to_owned()
            } else {
                format!("'{}'", word.replace('\'', r"'\''"))
            }
        })
        .collect();
    quoted.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shell_lines_are_quoted_where_needed() {
        assert_eq!(shell_line(["c2r", "--eps", "2/255", "--set", "a=1"]), "c2r --eps 2/255 --set a=1");
        assert_eq!(shell_line(["a b", "it's", ""]), r"'a b' 'it'\''s' ''");
    }

    #[test]
    fn missing_program_is_none() {
        assert!(output(&mut Command::new("c2r-no-such-program")).unwrap().is_none());
    }

    #[cfg(unix)]
    #[test]
    fn a_background_program_is_stopped_and_its_output_kept() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("log");
        let script = "trap 'echo saved; exit 130' INT; echo started; while :; do sleep 0.02; done";
        let mut child = background(Command::new("sh").args(["-c", script]), Stdio::null(), &log).unwrap();
        let deadline = Instant::now() + Duration::from_secs(20);
        while !std::fs::read_to_string(&log).unwrap().contains("started") {
            assert!(Instant::now() < deadline, "the program never wrote its first line");
            thread::sleep(POLL);
        }
        stop(&mut child, Stop::Politely);
        assert_eq!(child.wait().unwrap().code(), Some(130));
        assert_eq!(std::fs::read_to_string(&log).unwrap(), "started\nsaved\n");
    }
}
