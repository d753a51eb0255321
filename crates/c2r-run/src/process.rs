//! Programs that a command starts: in the foreground, with a log, or for their output; stopped when the user asks.

use std::{
    env,
    fs::File,
    io,
    path::Path,
    process::{Child, Command, ExitStatus, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::Context;

use crate::signals;

/// How often a running program is looked at.
pub const POLL: Duration = Duration::from_millis(30);

/// The most memory that this process has had so far, in MB of 2^20 bytes; `None` where the system does not say, as outside
/// Linux. Memory of a GPU is not in it.
pub fn peak_memory_mb() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().trim_end_matches("kB").trim().parse::<u64>().ok()? >> 10)
}

/// The memory of this machine, in bytes; `None` where the system does not say, as outside Linux.
pub fn memory_bytes() -> Option<u64> {
    let memory = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = memory.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.trim().trim_end_matches("kB").trim().parse::<u64>().ok()?.checked_mul(1 << 10)
}

/// An error with the code of the reason if the process was asked to stop.
///
/// # Errors
/// Only that.
pub fn check_interrupt() -> anyhow::Result<()> {
    if signals::requests() == 0 {
        return Ok(());
    }
    Err(signals::stopped("run the same command again to resume"))
}

/// Runs a program that shares our terminal (cargo, pip) to its end, calling `tick` while it runs.
///
/// # Errors
/// If it cannot be started, or the process was asked to stop.
pub fn foreground(command: &mut Command, mut tick: impl FnMut(Duration)) -> anyhow::Result<ExitStatus> {
    check_interrupt()?;
    let mut child = spawn(command.stdin(Stdio::null()))?;
    let status = wait(&mut child, |elapsed| {
        tick(elapsed);
        true
    })?;
    check_interrupt()?;
    Ok(status)
}

/// Waits for a child with a process group of its own, calling `go_on` while it runs. A request to stop is passed on: the
/// first one as SIGTERM, so that the child saves its state, a second one as SIGKILL. Not SIGINT: a child of a script in the
/// background ignores that as we do. If `go_on` says no, the child gets a SIGKILL at once and saves nothing.
///
/// # Errors
/// If the child cannot be waited for.
pub fn wait(child: &mut Child, mut go_on: impl FnMut(Duration) -> bool) -> anyhow::Result<ExitStatus> {
    let start = Instant::now();
    let mut passed_on = 0;
    loop {
        if let Some(status) = child.try_wait().context("cannot wait for a program")? {
            return Ok(status);
        }
        let asked = if go_on(start.elapsed()) { signals::requests().min(2) } else { 2 };
        if asked > passed_on {
            stop(child, asked == 2);
            passed_on = asked;
        }
        thread::sleep(POLL);
    }
}

/// Starts a program that reads `stdin` and whose output goes to `log`. The command is dropped with its copy of `stdin`.
///
/// # Errors
/// If the log cannot be written or the program cannot be started.
pub fn background(mut command: Command, stdin: Stdio, log: &Path) -> anyhow::Result<Child> {
    let file = File::create(log).with_context(|| format!("cannot write {}", log.display()))?;
    let errors = file.try_clone().context("cannot share the log file")?;
    spawn(command.stdin(stdin).stdout(file).stderr(errors))
}

/// Ends a child with a process group of its own, and what it has started, without letting it save anything. One that has
/// ended is left alone.
pub fn kill(child: &mut Child) {
    if let Ok(None) = child.try_wait() {
        stop(child, true);
        let _ = child.wait();
    }
}

/// Output of a program that ends quickly; `None` if it is not installed.
///
/// # Errors
/// If it is there but cannot be started.
pub fn output(command: &mut Command) -> anyhow::Result<Option<Output>> {
    match command.stdin(Stdio::null()).output() {
        Ok(output) => Ok(Some(output)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("cannot run `{}`", command.get_program().display())),
    }
}

/// Lets a program find the shared libraries in `folder`, also where RUSTFLAGS or CARGO_TARGET_DIR of the user defeat the
/// search path that is compiled into it.
pub fn with_libraries(command: &mut Command, folder: &Path) {
    let mut folders = vec![folder.to_owned()];
    // An empty entry would be the current folder.
    let others = env::var_os("LD_LIBRARY_PATH").into_iter().flat_map(|all| env::split_paths(&all).collect::<Vec<_>>());
    folders.extend(others.filter(|folder| !folder.as_os_str().is_empty()));
    if let Ok(joined) = env::join_paths(folders) {
        command.env("LD_LIBRARY_PATH", joined);
    }
}

/// A group of its own keeps Ctrl-C in a terminal from reaching the program next to us, and lets us reach its children too (a
/// `python3` can be a shell script that starts the real one).
fn spawn(command: &mut Command) -> anyhow::Result<Child> {
    #[cfg(unix)]
    std::os::unix::process::CommandExt::process_group(command, 0);
    command.spawn().with_context(|| format!("cannot run `{}`", command.get_program().display()))
}

/// Stops `child` and its process group, `now` or so that it saves its state first. A child that is gone is not an error.
fn stop(child: &mut Child, now: bool) {
    #[cfg(unix)]
    {
        use nix::{
            sys::signal::{Signal, killpg},
            unistd::Pid,
        };
        let signal = if now { Signal::SIGKILL } else { Signal::SIGTERM };
        if let Ok(id) = i32::try_from(child.id()) {
            let _ = killpg(Pid::from_raw(id), signal);
        }
    }
    #[cfg(not(unix))]
    {
        let _ = (now, child.kill());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_program_is_none() {
        assert!(output(&mut Command::new("c2r-no-such-program")).unwrap().is_none());
    }

    /// A program that saves when it is asked to stop, once it has begun.
    #[cfg(unix)]
    fn saving(log: &Path) -> Child {
        let script = "trap 'echo saved; exit 130' TERM; echo started; while :; do sleep 0.02; done";
        let mut shell = Command::new("sh");
        shell.args(["-c", script]);
        let child = background(shell, Stdio::null(), log).unwrap();
        let deadline = Instant::now() + Duration::from_secs(20);
        while !std::fs::read_to_string(log).unwrap().contains("started") {
            assert!(Instant::now() < deadline, "the program never wrote its first line");
            thread::sleep(POLL);
        }
        child
    }

    #[cfg(unix)]
    #[test]
    fn a_program_that_must_not_go_on_saves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("log");
        let status = wait(&mut saving(&log), |_| false).unwrap();
        assert_eq!(status.code(), None, "{status}");
        assert_eq!(std::fs::read_to_string(&log).unwrap(), "started\n");

        let mut child = saving(&log);
        kill(&mut child);
        assert_eq!(child.wait().unwrap().code(), None);
        assert_eq!(std::fs::read_to_string(&log).unwrap(), "started\n");
    }

    #[cfg(unix)]
    #[test]
    fn a_background_program_is_stopped_and_its_output_kept() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("log");
        let mut child = saving(&log);
        stop(&mut child, false);
        assert_eq!(child.wait().unwrap().code(), Some(130));
        // Some shells say in between that their child was terminated.
        let log = std::fs::read_to_string(&log).unwrap();
        assert!(log.starts_with("started\n") && log.ends_with("saved\n"), "{log}");
    }
}
