//! The only places where the daemon reads a clock, and the one that says what is too old. What becomes of
//! late timer slots, `schedule` of the core says.

use nexus_core::doubt::{Believed, Doubt, Reading};
use std::fmt;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// Wall time in Unix milliseconds; 0 before 1970.
pub fn wall_ms() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| i64::try_from(since.as_millis()).unwrap_or(i64::MAX));
    crate::torture::shifted(now)
}

/// Unix seconds of Unix milliseconds, as Nostr counts them; 0 before 1970.
pub fn seconds(unix_ms: i64) -> u64 {
    u64::try_from(unix_ms / 1000).unwrap_or(0)
}

/// Monotonic milliseconds since the first call.
pub fn mono_ms() -> u64 {
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    u64::try_from(START.elapsed().as_millis()).unwrap_or(u64::MAX)
}

/// A wall time as RFC 3339 with milliseconds, UTC.
pub fn rfc3339(unix_ms: i64) -> String {
    jiff::Timestamp::from_millisecond(unix_ms).map_or_else(|_| unix_ms.to_string(), |time| format!("{time:.3}"))
}

/// Both clocks now. Boot time is Linux's `CLOCK_BOOTTIME` (clock_gettime(2)).
fn read_both() -> Reading {
    let boot = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    Reading { wall_ms: wall_ms(), boot_ms: boot.tv_sec * 1000 + boot.tv_nsec / 1_000_000 }
}

/// Says what is over by the wall clock: nothing while that is in doubt. Whoever lets something expire has
/// to ask; the timer does not. Cheap to clone.
#[derive(Clone)]
pub struct Expiry {
    read: Arc<dyn Fn() -> Reading + Send + Sync>,
    judged: Arc<Mutex<Judged>>,
}

struct Judged {
    believed: Believed,
    /// As last told in the log.
    in_doubt: bool,
}

impl fmt::Debug for Expiry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Expiry").finish_non_exhaustive()
    }
}

impl Expiry {
    /// `newest_received_at` is when the newest event of earlier runs was received, in Unix ms.
    pub fn new(newest_received_at: i64) -> Self {
        Self::with_clocks(newest_received_at, read_both)
    }

    /// On other clocks than this machine's.
    pub fn with_clocks(newest_received_at: i64, read: impl Fn() -> Reading + Send + Sync + 'static) -> Self {
        let judged = Judged { believed: Believed::new(newest_received_at), in_doubt: false };
        let expiry = Self { read: Arc::new(read), judged: Arc::new(Mutex::new(judged)) };
        expiry.look(); // what comes later is held against the clocks as they are now
        expiry
    }

    /// Whether an instant (Unix ms) has surely passed.
    pub fn is_over(&self, at_ms: i64) -> bool {
        let (now, doubt) = self.judge();
        doubt.is_none() && now.wall_ms > at_ms
    }

    /// Why nothing is over, if nothing is.
    pub fn doubt(&self) -> Option<Doubt> {
        self.judge().1
    }

    /// Looks at the clocks, so that a doubt is told when it begins and not when somebody asks.
    pub fn look(&self) {
        self.judge();
    }

    fn judge(&self) -> (Reading, Option<Doubt>) {
        let mut judged = self.judged.lock().unwrap_or_else(PoisonError::into_inner);
        let now = (self.read)();
        let doubt = judged.believed.judge(now);
        match doubt {
            Some(doubt) if !judged.in_doubt => tracing::warn!(%doubt, "nothing but timer slots expires while the clock is in doubt"),
            None if judged.in_doubt => tracing::info!("the clock is believed again"),
            Some(_) | None => {}
        }
        judged.in_doubt = doubt.is_some();
        (now, doubt)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicI64, Ordering};

    #[test]
    fn nothing_is_over_while_the_clock_is_in_doubt() {
        let ahead = Arc::new(AtomicI64::new(0));
        let set = ahead.clone();
        let expiry = Expiry::with_clocks(500, move || Reading { wall_ms: 1_000 + ahead.load(Ordering::Relaxed), boot_ms: 7 });
        assert!(expiry.is_over(999) && !expiry.is_over(1_000));
        set.store(3_600_000, Ordering::Relaxed);
        assert!(!expiry.is_over(999), "an hour that never was");
        assert!(expiry.doubt().is_some());
        set.store(-501, Ordering::Relaxed);
        assert!(expiry.doubt().is_some(), "before what is known to have been");
        set.store(20, Ordering::Relaxed);
        assert_eq!(expiry.doubt(), None);
        assert!(expiry.is_over(1_000));
    }

    #[test]
    fn this_machines_clocks_go_on_together() {
        let expiry = Expiry::new(0);
        assert!(read_both().boot_ms > 0);
        assert_eq!(expiry.doubt(), None);
    }
}
