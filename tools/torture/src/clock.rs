//! Clocks, and waiting for what other processes do. The only place that sleeps.

use anyhow::Result;
use rustix::time::{ClockId, clock_gettime};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// How often what is waited for is looked at.
const STEP: Duration = Duration::from_millis(5);

/// Wall time of this machine, Unix ms.
pub(crate) fn wall_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}

/// Nanoseconds of `CLOCK_MONOTONIC`, which are the same in every process of this machine.
pub(crate) fn monotonic_ns() -> u64 {
    let time = clock_gettime(ClockId::Monotonic);
    let (seconds, nanos) = (u64::try_from(time.tv_sec), u64::try_from(time.tv_nsec));
    seconds.unwrap_or(0).saturating_mul(1_000_000_000).saturating_add(nanos.unwrap_or(0))
}

/// Lets `time` pass.
#[expect(clippy::disallowed_methods, reason = "other processes are polled, and faults come at their times")]
pub(crate) fn pause(time: Duration) {
    std::thread::sleep(time);
}

/// Asks `probe` over and over until it finds something; `None` after `limit`.
///
/// # Errors
/// Those of `probe`.
pub(crate) fn until<T>(limit: Duration, mut probe: impl FnMut() -> Result<Option<T>>) -> Result<Option<T>> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(found) = probe()? {
            return Ok(Some(found));
        }
        if Instant::now() >= deadline {
            return Ok(None);
        }
        pause(STEP);
    }
}
