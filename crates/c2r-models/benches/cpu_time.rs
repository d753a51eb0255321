//! CPU time instead of wall-clock time: it stays comparable where other programs share the cores.

use std::{
    fs,
    time::{Duration, Instant},
};

use criterion::measurement::{Measurement, ValueFormatter, WallTime};

/// CPU time of all threads of this process, from Linux's scheduler; wall-clock time elsewhere.
///
/// The scheduler counts a running thread by its ticks of up to 4 ms, which many iterations average out.
/// Only sensible with one thread: a thread that waits for another by spinning is busy, too.
pub(crate) struct CpuTime {
    start: Instant,
}

impl CpuTime {
    pub(crate) fn new() -> Self {
        Self { start: Instant::now() }
    }

    fn now(&self) -> Duration {
        busy().unwrap_or_else(|| self.start.elapsed())
    }
}

/// The first number of `/proc/self/task/*/schedstat` is a thread's time on a core in nanoseconds.
fn busy() -> Option<Duration> {
    let mut total = 0;
    for thread in fs::read_dir("/proc/self/task").ok()? {
        let text = fs::read_to_string(thread.ok()?.path().join("schedstat")).ok()?;
        total += text.split_whitespace().next()?.parse::<u64>().ok()?;
    }
    Some(Duration::from_nanos(total))
}

impl Measurement for CpuTime {
    type Intermediate = Duration;
    type Value = Duration;

    fn start(&self) -> Duration {
        self.now()
    }

    fn end(&self, start: Duration) -> Duration {
        // Criterion divides by this.
        self.now().saturating_sub(start).max(Duration::from_nanos(1))
    }

    fn add(&self, a: &Duration, b: &Duration) -> Duration {
        *a + *b
    }

    fn zero(&self) -> Duration {
        Duration::ZERO
    }

    fn to_f64(&self, value: &Duration) -> f64 {
        WallTime.to_f64(value)
    }

    fn formatter(&self) -> &dyn ValueFormatter {
        WallTime.formatter()
    }
}
