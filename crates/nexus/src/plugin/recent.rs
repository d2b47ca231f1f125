//! How long the newest calls took, for their median. It keeps nothing else, and takes no lock.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

/// Calls that are remembered.
const CALLS_MAX: usize = 1024;

/// The times of the newest calls, the oldest overwritten.
#[derive(Debug)]
pub(super) struct Recent {
    count: AtomicUsize,
    took_ns: Box<[AtomicU64]>,
}

impl Default for Recent {
    fn default() -> Self {
        Self { count: AtomicUsize::new(0), took_ns: (0..CALLS_MAX).map(|_| AtomicU64::new(0)).collect() }
    }
}

impl Recent {
    pub(super) fn add(&self, took: Duration) {
        let place = self.count.fetch_add(1, Ordering::Relaxed) % CALLS_MAX;
        self.took_ns[place].store(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// Nothing before the first.
    pub(super) fn median_ms(&self) -> Option<f64> {
        let count = self.count.load(Ordering::Relaxed).min(CALLS_MAX);
        let mut times: Vec<u64> = self.took_ns[..count].iter().map(|took| took.load(Ordering::Relaxed)).collect();
        times.sort_unstable();
        times.get(count / 2).map(|took_ns| *took_ns as f64 / 1_000_000.0)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_median_is_that_of_the_newest_calls() {
        let recent = Recent::default();
        assert_eq!(recent.median_ms(), None);
        for ms in [3, 1, 2] {
            recent.add(Duration::from_millis(ms));
        }
        assert!((recent.median_ms().unwrap() - 2.0).abs() < 1e-9);
        (0..CALLS_MAX).for_each(|_| recent.add(Duration::from_secs(60)));
        assert!((recent.median_ms().unwrap() - 60_000.0).abs() < 1e-9, "the first three are forgotten");
    }
}
