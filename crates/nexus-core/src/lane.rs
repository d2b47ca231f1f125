//! One session's lane: what becomes of a request that comes to it, when messages that are collected may
//! run, and how many of them together. Pure decisions: it keeps no list, reads no clock and aborts nothing.

use crate::config::{Queue, QueueDrop, QueueMode};

/// Quiet after which what was collected runs, in milliseconds.
pub const COLLECT_QUIET_MS: u64 = 500;
/// The longest that the first collected message waits for quiet, in milliseconds.
pub const COLLECT_WAIT_MS_MAX: u64 = 5_000;
/// Messages that one turn may answer together.
pub const COLLECT_REQUESTS_MAX: usize = 100;
/// Bytes of text of messages that are answered together; a longer one is answered alone.
pub const COLLECT_BYTES_MAX: usize = 256 * 1024;

/// A lane as a request finds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lane {
    /// A turn of an earlier message is under way.
    pub running: bool,
    /// Requests that wait for their first turn.
    pub waiting: usize,
}

/// What becomes of the request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It is dropped itself: as many wait as may.
    Refuse,
    /// It waits in its order.
    Wait {
        /// So many that wait are dropped for it, the oldest first.
        drops: usize,
        /// The turn under way is aborted.
        aborts: bool,
    },
}

/// Decides about a request that comes to `lane`. A request that is refused aborts nothing.
pub fn decide(mode: QueueMode, queue: &Queue, lane: Lane) -> Verdict {
    let aborts = lane.running && aborts(mode);
    let Some(cap) = queue.cap else { return Verdict::Wait { drops: 0, aborts } };
    let cap = usize::try_from(cap).unwrap_or(usize::MAX).max(1);
    match queue.drop {
        QueueDrop::New if lane.waiting >= cap => Verdict::Refuse,
        QueueDrop::New => Verdict::Wait { drops: 0, aborts },
        QueueDrop::Old => Verdict::Wait { drops: lane.waiting.saturating_add(1).saturating_sub(cap), aborts },
    }
}

/// Whether a message ends the turn of an earlier one. No runner takes input while it runs, so to steer is
/// to interrupt.
pub fn aborts(mode: QueueMode) -> bool {
    match mode {
        QueueMode::Followup | QueueMode::Collect => false,
        QueueMode::Interrupt | QueueMode::Steer => true,
    }
}

/// Whether what waits may be answered in one turn.
pub fn collects(mode: QueueMode) -> bool {
    match mode {
        QueueMode::Collect => true,
        QueueMode::Followup | QueueMode::Interrupt | QueueMode::Steer => false,
    }
}

/// Whether what comes after a request in its conversation must be looked at while it still waits for its
/// session: only then can it be collected, interrupt or be dropped.
pub fn lets_go(mode: QueueMode, queue: &Queue) -> bool {
    !queue.is_unlimited() || aborts(mode) || collects(mode)
}

/// When messages that came from `first_ms` to `last_ms` may run, by the same clock.
pub fn due_ms(first_ms: u64, last_ms: u64) -> u64 {
    last_ms.saturating_add(COLLECT_QUIET_MS).min(first_ms.saturating_add(COLLECT_WAIT_MS_MAX))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    const MODES: [QueueMode; 4] = [QueueMode::Followup, QueueMode::Collect, QueueMode::Interrupt, QueueMode::Steer];

    fn queue(cap: Option<u32>, drop: QueueDrop) -> Queue {
        Queue { cap, drop }
    }

    #[test]
    fn without_a_cap_nothing_is_dropped_and_only_some_modes_abort() {
        for (mode, aborts) in MODES.into_iter().zip([false, false, true, true]) {
            for running in [false, true] {
                let lane = Lane { running, waiting: 1_000_000 };
                let verdict = decide(mode, &queue(None, QueueDrop::New), lane);
                assert_eq!(verdict, Verdict::Wait { drops: 0, aborts: aborts && running }, "{mode}");
            }
        }
    }

    #[test]
    fn a_cap_drops_the_oldest_or_the_one_that_comes() {
        let lane = |waiting| Lane { running: true, waiting };
        let decided = |drop, waiting| decide(QueueMode::Interrupt, &queue(Some(2), drop), lane(waiting));
        assert_eq!(decided(QueueDrop::New, 1), Verdict::Wait { drops: 0, aborts: true });
        assert_eq!(decided(QueueDrop::New, 2), Verdict::Refuse);
        assert_eq!(decided(QueueDrop::Old, 1), Verdict::Wait { drops: 0, aborts: true });
        assert_eq!(decided(QueueDrop::Old, 2), Verdict::Wait { drops: 1, aborts: true });
        // A cap that a reload lowered.
        assert_eq!(decided(QueueDrop::Old, 5), Verdict::Wait { drops: 4, aborts: true });
    }

    #[test]
    fn quiet_ends_a_collection_and_so_does_its_limit() {
        assert_eq!(due_ms(1_000, 1_000), 1_500);
        assert_eq!(due_ms(1_000, 5_400), 5_900);
        assert_eq!(due_ms(1_000, 5_900), 6_000);
        assert_eq!(due_ms(u64::MAX, u64::MAX), u64::MAX);
    }

    #[test]
    fn conversations_are_held_only_where_the_order_of_messages_is_all_there_is() {
        assert!(!lets_go(QueueMode::Followup, &queue(None, QueueDrop::Old)));
        assert!(lets_go(QueueMode::Followup, &queue(Some(1), QueueDrop::Old)));
        for mode in &MODES[1..] {
            assert!(lets_go(*mode, &queue(None, QueueDrop::Old)), "{mode}");
        }
    }

    proptest! {
        #[test]
        fn never_more_wait_than_may_and_never_one_fewer_is_kept(
            mode in prop::sample::select(MODES.to_vec()),
            cap in prop::option::of(0_u32..6),
            old in any::<bool>(),
            running in any::<bool>(),
            arrivals in 0_usize..40,
        ) {
            let queue = queue(cap, if old { QueueDrop::Old } else { QueueDrop::New });
            let mut waiting = 0_usize;
            for came in 1..=arrivals {
                match decide(mode, &queue, Lane { running, waiting }) {
                    Verdict::Refuse => {}
                    Verdict::Wait { drops, aborts: does } => {
                        prop_assert!(drops <= waiting);
                        prop_assert_eq!(does, running && aborts(mode));
                        waiting = waiting + 1 - drops;
                    }
                }
                let room = cap.map_or(usize::MAX, |cap| usize::try_from(cap.max(1)).unwrap());
                prop_assert_eq!(waiting, came.min(room));
            }
        }

        #[test]
        fn a_collection_waits_for_quiet_and_never_longer_than_its_limit(
            first in 0_u64..1_000_000,
            gaps in prop::collection::vec(0_u64..3_000, 0..30),
        ) {
            let last = first + gaps.iter().sum::<u64>();
            let due = due_ms(first, last);
            prop_assert!(due <= first + COLLECT_WAIT_MS_MAX);
            prop_assert!(due <= last + COLLECT_QUIET_MS);
            prop_assert!(due == first + COLLECT_WAIT_MS_MAX || due == last + COLLECT_QUIET_MS);
        }
    }
}
