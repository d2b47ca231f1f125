//! How far the shutdown is, for who asks meanwhile. It stops nothing itself.

use serde::Serialize;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// The steps of a shutdown (requirement, "Shutdown").
const STEPS: u32 = 12;

/// The step that the shutdown is in; 0 as long as there is none.
#[derive(Debug, Clone, Default)]
pub(super) struct Progress(Arc<AtomicU32>);

/// Where a shutdown is, and what it waits for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Stopping {
    step: u32,
    of: u32,
    active_requests: u64,
    waits_for: String,
}

impl Progress {
    /// Step `number` is what is done from now on.
    pub(super) fn enter(&self, number: u32) {
        self.0.store(number, Ordering::Release);
    }

    /// Where the shutdown is while `active_requests` are under way; `None` as long as there is none.
    pub(super) fn stopping(&self, active_requests: u64) -> Option<Stopping> {
        let step = self.0.load(Ordering::Acquire);
        (step > 0).then(|| Stopping { step, of: STEPS, active_requests, waits_for: waits_for(step, active_requests) })
    }
}

impl Stopping {
    /// A sentence for the reasons of health.
    pub(super) fn reason(&self) -> String {
        format!("the daemon is stopping, step {} of {}: it waits for {}", self.step, self.of, self.waits_for)
    }
}

fn waits_for(step: u32, active_requests: u64) -> String {
    let what = match (step, active_requests) {
        (0..=3, 0) => "messages that are being sent",
        (0..=3, 1) => "1 request to end",
        (0..=3, requests) => return format!("{requests} requests to end"),
        (4, _) => "the timer",
        (5, _) => "a reload or a backup",
        (6 | 7, _) => "adapters, plugins, automations, agents and projects to exit",
        (8, _) => "open connections",
        (9.., _) => "the ledgers",
    };
    what.to_owned()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn what_a_stop_waits_for_goes_by_its_step_and_by_what_runs() {
        let progress = Progress::default();
        assert_eq!(progress.stopping(2), None);
        let reason = |step, active| {
            progress.enter(step);
            progress.stopping(active).unwrap().reason()
        };
        assert_eq!(reason(3, 2), "the daemon is stopping, step 3 of 12: it waits for 2 requests to end");
        assert_eq!(reason(3, 0), "the daemon is stopping, step 3 of 12: it waits for messages that are being sent");
        assert_eq!(reason(8, 0), "the daemon is stopping, step 8 of 12: it waits for open connections");
    }
}
