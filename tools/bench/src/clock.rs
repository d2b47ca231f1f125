//! Clocks, and waiting for what another process does. The only place that sleeps.

use anyhow::{Result, bail};
use rustix::time::{ClockId, Timespec, clock_gettime};
use std::time::{Duration, Instant};

fn ns(time: Timespec) -> u64 {
    let (seconds, nanos) = (u64::try_from(time.tv_sec), u64::try_from(time.tv_nsec));
    seconds.unwrap_or(0).saturating_mul(1_000_000_000).saturating_add(nanos.unwrap_or(0))
}

/// Nanoseconds of `CLOCK_MONOTONIC`, which are the same in every process of this machine.
pub(crate) fn monotonic_ns() -> u64 {
    ns(clock_gettime(ClockId::Monotonic))
}

/// Nanoseconds of CPU that this thread has used.
pub(crate) fn thread_cpu_ns() -> u64 {
    ns(clock_gettime(ClockId::ThreadCPUTime))
}

/// Lets `time` pass.
#[expect(clippy::disallowed_methods, reason = "time that passes is what idle figures measure, and other processes are polled")]
pub(crate) fn pause(time: Duration) {
    std::thread::sleep(time);
}

/// Asks `probe` every `step` until it finds something.
///
/// # Errors
/// Those of `probe`, and when nothing was found within `limit`.
pub(crate) fn wait_for<T>(what: &str, limit: Duration, step: Duration, mut probe: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(found) = probe()? {
            return Ok(found);
        }
        if Instant::now() >= deadline {
            bail!("not within {} s: {what}", limit.as_secs());
        }
        pause(step);
    }
}

/// Milliseconds, with their fraction.
pub(crate) fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
