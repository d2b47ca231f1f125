//! What an account did lately, for status, health and probes.

use crate::clock;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicU64, Ordering};

/// Rejected lines within a minute that make an account `degraded`.
const REJECTS_PER_MINUTE: u64 = 100;
const MINUTE_MS: u64 = 60_000;

#[derive(Debug, Default)]
pub struct AccountStats {
    events: AtomicU64,
    /// Monotonic ms + 1; 0 = none yet.
    last_event: AtomicU64,
    /// Unix ms of the newest event of earlier runs.
    last_event_before: Option<i64>,
    /// How many readers are held: a catch-up reads beside the monitor.
    held: AtomicU64,
    /// Start of the current minute, rejects in it, rejects in the one before.
    rejects: Mutex<(u64, u64, u64)>,
}

impl AccountStats {
    /// Begins with what earlier runs of the account counted, and when (Unix ms) its last event came.
    pub fn going_on(events: u64, last_event_at: Option<i64>) -> Self {
        Self { events: AtomicU64::new(events), last_event_before: last_event_at, ..Self::default() }
    }

    pub(super) fn took(&self, events: u64, rejects: u64, now_ms: u64) {
        if events > 0 {
            self.events.fetch_add(events, Ordering::Relaxed);
            self.last_event.store(now_ms + 1, Ordering::Relaxed);
        }
        if rejects > 0 {
            let mut window = self.rejects.lock().unwrap_or_else(PoisonError::into_inner);
            roll(&mut window, now_ms);
            window.1 += rejects;
        }
    }

    /// Counts a reader as held for as long as the guard lives.
    pub(super) fn hold(&self) -> Held<'_> {
        self.held.fetch_add(1, Ordering::Relaxed);
        Held(self)
    }

    pub fn events(&self) -> u64 {
        self.events.load(Ordering::Relaxed)
    }

    /// Age of the newest event. Of one before this run only wall clocks know it.
    pub fn last_event_age_ms(&self) -> Option<u64> {
        match self.last_event.load(Ordering::Relaxed) {
            0 => self.last_event_before.map(|at| u64::try_from(clock::wall_ms().saturating_sub(at)).unwrap_or(0)),
            at => Some((clock::mono_ms() + 1).saturating_sub(at)),
        }
    }

    /// Why the account is degraded, if it is.
    pub fn trouble(&self) -> Option<String> {
        if self.held.load(Ordering::Relaxed) > 0 {
            return Some("too many unanswered events (max_pending): reading is held".into());
        }
        let mut window = self.rejects.lock().unwrap_or_else(PoisonError::into_inner);
        roll(&mut window, clock::mono_ms());
        let rejects = window.1.max(window.2);
        (rejects >= REJECTS_PER_MINUTE).then(|| format!("{rejects} rejected lines within a minute"))
    }
}

/// A reader that is held.
#[derive(Debug)]
pub(super) struct Held<'a>(&'a AccountStats);

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.0.held.fetch_sub(1, Ordering::Relaxed);
    }
}

fn roll(window: &mut (u64, u64, u64), now_ms: u64) {
    let passed = now_ms.saturating_sub(window.0);
    if passed >= MINUTE_MS {
        let last = if passed < 2 * MINUTE_MS { window.1 } else { 0 };
        *window = (now_ms, 0, last);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_last_event_is_known_over_runs_until_a_newer_one_comes() {
        const HOUR_MS: u64 = 60 * MINUTE_MS;
        assert_eq!(AccountStats::default().last_event_age_ms(), None);
        let an_hour_ago = clock::wall_ms() - i64::try_from(HOUR_MS).unwrap();
        let stats = AccountStats::going_on(7, Some(an_hour_ago));
        assert!(stats.last_event_age_ms().is_some_and(|age_ms| age_ms >= HOUR_MS - MINUTE_MS));
        stats.took(1, 0, clock::mono_ms());
        assert!(stats.last_event_age_ms().is_some_and(|age_ms| age_ms < HOUR_MS));
        assert_eq!(stats.events(), 8);
        let in_the_future = AccountStats::going_on(0, Some(i64::MAX));
        assert_eq!(in_the_future.last_event_age_ms(), Some(0), "a wall clock that was set back");
    }

    #[test]
    fn held_lasts_until_the_last_held_reader_goes_on() {
        let stats = AccountStats::default();
        let (monitor, catch_up) = (stats.hold(), stats.hold());
        drop(monitor);
        assert!(stats.trouble().is_some());
        drop(catch_up);
        assert_eq!(stats.trouble(), None);
    }

    #[test]
    fn a_minute_of_rejects_degrades_and_passes() {
        let mut window = (0, 0, 0);
        window.1 = 150;
        roll(&mut window, 59_999);
        assert_eq!(window.1, 150);
        roll(&mut window, 60_000);
        assert_eq!(window, (60_000, 0, 150));
        roll(&mut window, 500_000);
        assert_eq!(window, (500_000, 0, 0));
    }
}
