//! Whether the wall clock can be believed when it says that something is too old. Readings of the
//! clocks come in; messages, late events, traces and kept notices ask here before they expire. Slots of
//! the timer do not: `schedule` calls them missed by the wall clock as it is.
//!
//! Contract: nothing expires while wall time disagrees with boot time by over a minute, or lies before
//! the newest event. That one is of earlier runs, looked for once, at the start, among the last events
//! that they recorded. A clock that was set while the daemon ran stays in doubt until it is set back or
//! the daemon is started anew: nobody here can know which of its two times was the right one.

/// How far wall time and boot time may have moved apart.
pub const DISAGREEMENT_MS_MAX: u64 = 60_000;

/// Both clocks at one moment, in milliseconds. Boot time is never set, and goes on in sleep.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reading {
    pub wall_ms: i64,
    pub boot_ms: i64,
}

/// Why the wall clock can't be believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Doubt {
    #[error("the clock was set by {} s while the daemon ran; if it is right now, restart the daemon", seconds(.by_ms))]
    Set { by_ms: i64 },
    #[error("the clock is {} s before the newest event of earlier runs; set it", seconds(.by_ms))]
    Behind { by_ms: i64 },
}

fn seconds(ms: &i64) -> i64 {
    ms / 1000
}

/// What the clock is held against.
#[derive(Debug, Clone)]
pub struct Believed {
    newest_ms: i64,
    /// The first reading that wasn't before `newest_ms`: an earlier one says nothing about how the two
    /// clocks should stand.
    reference: Option<Reading>,
}

impl Believed {
    /// `newest_ms` is when the newest event of earlier runs was received, in Unix ms; 0 if there is none.
    pub fn new(newest_ms: i64) -> Self {
        Self { newest_ms, reference: None }
    }

    /// Judges a reading; `None` when wall time may be believed.
    pub fn judge(&mut self, now: Reading) -> Option<Doubt> {
        let behind_ms = self.newest_ms.saturating_sub(now.wall_ms);
        if behind_ms > 0 {
            return Some(Doubt::Behind { by_ms: behind_ms });
        }
        let reference = *self.reference.get_or_insert(now);
        let wall_ms = now.wall_ms.saturating_sub(reference.wall_ms);
        let boot_ms = now.boot_ms.saturating_sub(reference.boot_ms);
        let by_ms = wall_ms.saturating_sub(boot_ms);
        (by_ms.unsigned_abs() > DISAGREEMENT_MS_MAX).then_some(Doubt::Set { by_ms })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NOON: i64 = 1_700_000_000_000;
    const DAY_MS: i64 = 86_400_000;

    fn at(wall_ms: i64, boot_ms: i64) -> Reading {
        Reading { wall_ms, boot_ms }
    }

    #[test]
    fn a_clock_that_goes_on_is_believed_and_one_that_is_set_is_not() {
        let mut clock = Believed::new(NOON - 5);
        assert_eq!(clock.judge(at(NOON, 0)), None);
        assert_eq!(clock.judge(at(NOON + DAY_MS, DAY_MS)), None, "a day went by, asleep or not");
        assert_eq!(clock.judge(at(NOON + DAY_MS + 60_000, DAY_MS)), None);
        assert_eq!(clock.judge(at(NOON + DAY_MS + 60_001, DAY_MS)), Some(Doubt::Set { by_ms: 60_001 }));
        assert_eq!(clock.judge(at(NOON + 10, 60_011)), Some(Doubt::Set { by_ms: -60_001 }));
        assert_eq!(clock.judge(at(NOON + 90_000, 90_000)), None, "set back, it is believed again");
    }

    #[test]
    fn a_clock_before_the_newest_event_is_no_reference_for_the_right_one() {
        let mut clock = Believed::new(NOON);
        assert_eq!(clock.judge(at(1_000, 0)), Some(Doubt::Behind { by_ms: NOON - 1_000 }));
        assert_eq!(clock.judge(at(NOON - 1, 5)), Some(Doubt::Behind { by_ms: 1 }));
        assert_eq!(clock.judge(at(NOON + DAY_MS, 10_000)), None, "the time came from the network");
        assert_eq!(clock.judge(at(NOON + 3 * DAY_MS, 20_000)), Some(Doubt::Set { by_ms: 2 * DAY_MS - 10_000 }));
    }

    #[test]
    fn an_empty_ledger_doubts_nothing_at_first() {
        assert_eq!(Believed::new(0).judge(at(0, 0)), None);
    }

    #[test]
    fn it_says_what_to_do() {
        let said = Doubt::Set { by_ms: 90_500 }.to_string();
        assert!(said.contains("90 s") && said.contains("restart"), "{said}");
    }

    proptest! {
        #[test]
        fn only_a_time_near_the_expected_one_is_believed(
            newest in 0..4 * NOON, start in 0..4 * NOON, passed in 0..DAY_MS, set in prop_oneof![-70_000_i64..70_000, any::<i64>()],
        ) {
            let mut clock = Believed::new(newest);
            let first = clock.judge(at(start, 77));
            prop_assert_eq!(first.is_some(), start < newest);
            let later = start.saturating_add(passed).saturating_add(set);
            let doubt = clock.judge(at(later, 77 + passed));
            let is_near = first.is_some() || set.unsigned_abs() <= DISAGREEMENT_MS_MAX;
            prop_assert_eq!(doubt.is_none(), later >= newest && is_near);
        }
    }
}
