//! Ctrl-C, SIGTERM and SIGHUP as a request to save the state and stop.

use std::{
    process,
    sync::atomic::{AtomicU8, Ordering},
    time::{Duration, Instant},
};

use crate::exit;

/// Signals this close to each other are one request: a terminal, a scheduler and the parent process may each send one.
const TOGETHER: Duration = Duration::from_millis(500);

static REQUESTS: AtomicU8 = AtomicU8::new(0);

/// What a second request does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Second {
    /// Ends the process at once with [`exit::INTERRUPTED`], without waiting for the state to be written.
    Exits,
    /// Is counted, for a program that has children to stop.
    Counts,
}

/// From here on signals are counted instead of ending the process. Call once, at the start.
///
/// # Errors
/// If the system refuses.
pub fn listen(second: Second) -> anyhow::Result<()> {
    let mut last = None;
    ctrlc::set_handler(move || {
        if !is_new(&mut last, Instant::now()) {
            return;
        }
        if REQUESTS.fetch_add(1, Ordering::SeqCst) > 0 && second == Second::Exits {
            #[expect(clippy::exit, reason = "a signal thread cannot unwind the others")]
            process::exit(i32::from(exit::INTERRUPTED));
        }
    })?;
    Ok(())
}

/// Whether a signal at `now` is a request of its own; `last` is the time of the last one that was.
fn is_new(last: &mut Option<Instant>, now: Instant) -> bool {
    let new = last.is_none_or(|last| now.duration_since(last) >= TOGETHER);
    if new {
        *last = Some(now);
    }
    new
}

/// How many times the process was asked to stop.
pub fn requests() -> u8 {
    REQUESTS.load(Ordering::SeqCst)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_at_once_are_one_request() {
        let (start, mut last) = (Instant::now(), None);
        let new_after = [0, 1, 300, 600, 700, 1200];
        let new = new_after.map(|milliseconds| is_new(&mut last, start + Duration::from_millis(milliseconds)));
        assert_eq!(new, [true, false, false, true, false, true]);
    }
}
