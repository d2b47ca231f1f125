//! One session's lane: what becomes of a request that comes to it, when messages that are collected may
//! run, and how many of them together. Pure decisions: it keeps no list, reads no clock, aborts nothing and gives
//! nothing to an agent.

use crate::config::{Queue, QueueDrop, QueueMode};

/// Quiet after which what was collected runs, in milliseconds.
pub const COLLECT_QUIET_MS: u64 = 500;
/// The longest that the first collected message waits for quiet, in milliseconds.
pub const COLLECT_WAIT_MS_MAX: u64 = 5_000;
/// Messages that one turn may answer together, whether they were collected or given to it while it ran.
pub const COLLECT_REQUESTS_MAX: usize = 100;
/// Bytes of text of messages that are answered together; a longer one is answered alone.
pub const COLLECT_BYTES_MAX: usize = 256 * 1024;
/// Messages that a turn under way was given and has not taken in; as many more may be on their way to it.
pub const STEER_MESSAGES_MAX: usize = 8;
/// How long a message waits until the agent of a turn says that it takes input, in milliseconds.
pub const STEER_WAIT_MS: u64 = 5_000;

/// The turn of an earlier message, as a request finds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UnderWay {
    Nothing,
    /// Its agent takes no input while it runs.
    Deaf,
    /// Its agent may take input while it runs.
    Listening,
}

impl UnderWay {
    /// A turn of an agent that may take input, or may not.
    pub fn of(takes_input: bool) -> Self {
        if takes_input { Self::Listening } else { Self::Deaf }
    }
}

/// A lane as a request finds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lane {
    pub under_way: UnderWay,
    /// Requests that wait for their first turn.
    pub waiting: usize,
    /// No other waits ahead of it, for whatever reason.
    pub is_next: bool,
}

/// What becomes of the request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It is dropped itself: as many wait as may.
    Refuse,
    /// It is given to the turn under way.
    Steer,
    /// It waits in its order.
    Wait {
        /// So many that wait are dropped for it, the oldest first.
        drops: usize,
        /// The turn under way is aborted.
        aborts: bool,
    },
}

/// Decides about a request that comes to `lane`. A request that is refused aborts nothing, and none is given to a turn
/// past another that waits.
pub fn decide(mode: QueueMode, queue: &Queue, lane: Lane) -> Verdict {
    if steers(mode) && lane.under_way == UnderWay::Listening && lane.is_next {
        return Verdict::Steer;
    }
    let aborts = aborts(mode, lane.under_way);
    let Some(cap) = queue.cap else { return Verdict::Wait { drops: 0, aborts } };
    let cap = usize::try_from(cap).unwrap_or(usize::MAX).max(1);
    match queue.drop {
        QueueDrop::New if lane.waiting >= cap => Verdict::Refuse,
        QueueDrop::New => Verdict::Wait { drops: 0, aborts },
        QueueDrop::Old => Verdict::Wait { drops: lane.waiting.saturating_add(1).saturating_sub(cap), aborts },
    }
}

/// Whether a message ends the turn of an earlier one. Where that takes no input, to steer is to interrupt.
pub fn aborts(mode: QueueMode, under_way: UnderWay) -> bool {
    match mode {
        QueueMode::Followup | QueueMode::Collect => false,
        QueueMode::Interrupt => under_way != UnderWay::Nothing,
        QueueMode::Steer => under_way == UnderWay::Deaf,
    }
}

/// Whether a message may be given to the turn of an earlier one.
pub fn steers(mode: QueueMode) -> bool {
    match mode {
        QueueMode::Steer => true,
        QueueMode::Followup | QueueMode::Collect | QueueMode::Interrupt => false,
    }
}

/// How a message waits that a turn was given and did not take in, or whose own was interrupted by a stop: for a turn of
/// its own, in its order. It ends no other, or of several that nobody took in only the last one would be answered.
pub fn on_its_own(mode: QueueMode) -> QueueMode {
    if steers(mode) { QueueMode::Followup } else { mode }
}

/// Whether what waits may be answered in one turn.
pub fn collects(mode: QueueMode) -> bool {
    match mode {
        QueueMode::Collect => true,
        QueueMode::Followup | QueueMode::Interrupt | QueueMode::Steer => false,
    }
}

/// Whether what comes after a request in its conversation must be looked at while it still waits for its
/// session: only then can it be collected, interrupt, be given to a turn or be dropped.
pub fn lets_go(mode: QueueMode, queue: &Queue) -> bool {
    match mode {
        QueueMode::Followup => !queue.is_unlimited(),
        QueueMode::Collect | QueueMode::Interrupt | QueueMode::Steer => true,
    }
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

    const TURNS: [UnderWay; 3] = [UnderWay::Nothing, UnderWay::Deaf, UnderWay::Listening];

    fn queue(cap: Option<u32>, drop: QueueDrop) -> Queue {
        Queue { cap, drop }
    }

    #[test]
    fn without_a_cap_nothing_is_dropped_and_only_some_modes_abort() {
        let expected = [[false; 3], [false; 3], [false, true, true], [false, true, false]];
        for (mode, aborts) in MODES.into_iter().zip(expected) {
            for (under_way, aborts) in TURNS.into_iter().zip(aborts) {
                let lane = Lane { under_way, waiting: 1_000_000, is_next: false };
                let verdict = decide(mode, &queue(None, QueueDrop::New), lane);
                assert_eq!(verdict, Verdict::Wait { drops: 0, aborts }, "{mode} {under_way:?}");
            }
        }
    }

    #[test]
    fn only_a_message_that_steers_and_overtakes_none_is_given_to_a_turn_that_may_take_it() {
        for mode in MODES {
            for under_way in TURNS {
                for is_next in [false, true] {
                    let lane = Lane { under_way, waiting: 0, is_next };
                    let is_given = decide(mode, &queue(Some(1), QueueDrop::New), lane) == Verdict::Steer;
                    let expected = mode == QueueMode::Steer && under_way == UnderWay::Listening && is_next;
                    assert_eq!(is_given, expected, "{mode} {lane:?}");
                }
            }
        }
    }

    #[test]
    fn what_no_turn_took_in_waits_as_any_other_and_ends_none() {
        let modes = MODES.map(on_its_own);
        assert_eq!(modes, [QueueMode::Followup, QueueMode::Collect, QueueMode::Interrupt, QueueMode::Followup]);
    }

    #[test]
    fn a_cap_drops_the_oldest_or_the_one_that_comes() {
        let lane = |waiting| Lane { under_way: UnderWay::Deaf, waiting, is_next: waiting == 0 };
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
            under_way in prop::sample::select(TURNS.to_vec()),
            // The turn has room for so many.
            given_max in 0_usize..6,
            arrivals in 0_usize..40,
        ) {
            let queue = queue(cap, if old { QueueDrop::Old } else { QueueDrop::New });
            let (mut waiting, mut given) = (0_usize, 0_usize);
            for came in 1..=arrivals {
                match decide(mode, &queue, Lane { under_way, waiting, is_next: waiting == 0 }) {
                    Verdict::Refuse => {}
                    Verdict::Steer if given < given_max => given += 1,
                    Verdict::Steer => waiting += 1,
                    Verdict::Wait { drops, aborts: does } => {
                        prop_assert!(drops <= waiting);
                        prop_assert_eq!(does, aborts(mode, under_way));
                        waiting = waiting + 1 - drops;
                    }
                }
                let room = cap.map_or(usize::MAX, |cap| usize::try_from(cap.max(1)).unwrap());
                prop_assert_eq!(waiting, (came - given).min(room));
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
