//! How often a task of the daemon that fails may be started again, and after which pause. Pure: time
//! is an argument. Children have their own rules, in [`crate::lifecycle`].

use std::collections::VecDeque;

/// Starts within [`WINDOW_MS`], beside the first one.
pub const RESTARTS_MAX: usize = 5;
/// Milliseconds after which a restart is forgotten.
pub const WINDOW_MS: u64 = 600_000;
/// Milliseconds before the first restart; each further one within the window takes twice as long.
pub const PAUSE_FIRST_MS: u64 = 1_000;

/// The restarts of one task.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Budget {
    restarts_ms: VecDeque<u64>,
}

impl Budget {
    /// The task failed: milliseconds until it may be started again, `None` when it was often enough.
    pub fn spend(&mut self, now_ms: u64) -> Option<u64> {
        self.restarts_ms.retain(|at| now_ms.saturating_sub(*at) < WINDOW_MS);
        if self.restarts_ms.len() >= RESTARTS_MAX {
            return None;
        }
        let pause_ms = PAUSE_FIRST_MS << self.restarts_ms.len();
        self.restarts_ms.push_back(now_ms);
        Some(pause_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn pauses_double_until_it_was_often_enough() {
        let mut budget = Budget::default();
        let pauses: Vec<_> = (0..6).map(|n| budget.spend(n * 60_000)).collect();
        assert_eq!(pauses, [Some(1_000), Some(2_000), Some(4_000), Some(8_000), Some(16_000), None]);
    }

    #[test]
    fn what_is_long_ago_is_forgotten() {
        let mut budget = Budget::default();
        for n in 0..5 {
            assert!(budget.spend(n).is_some());
        }
        assert_eq!(budget.spend(WINDOW_MS - 1), None);
        assert_eq!(budget.spend(WINDOW_MS + 4), Some(1_000));
    }

    proptest! {
        #[test]
        fn never_more_than_so_many_within_a_window(steps in prop::collection::vec(0_u64..400_000, 1..60)) {
            let (mut budget, mut now_ms) = (Budget::default(), 0);
            let mut granted = Vec::new();
            for step in steps {
                now_ms += step;
                if let Some(pause_ms) = budget.spend(now_ms) {
                    prop_assert!((PAUSE_FIRST_MS..=PAUSE_FIRST_MS << (RESTARTS_MAX - 1)).contains(&pause_ms));
                    granted.push(now_ms);
                }
            }
            for window in granted.windows(RESTARTS_MAX + 1) {
                prop_assert!(window[RESTARTS_MAX] - window[0] >= WINDOW_MS);
            }
        }
    }
}
