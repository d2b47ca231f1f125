//! How often each principal may ask on a channel: one token bucket for each, kept as one number.
//!
//! It reads no clock and keeps nothing on disk: what was counted before a start is forgotten. It never
//! denies; it says whether there is room, and counts.

use std::collections::{BTreeSet, HashMap};

/// The span that a rate is about: a minute, in microseconds.
const SPAN_US: u64 = 60_000_000;
/// Buckets that are not full. One more takes the place of the one that is nearest to being full.
pub const BUCKETS_MAX: usize = 16_384;
/// Requests that are known to be counted. Of more, the oldest would count again if it were prepared again.
pub const COUNTED_MAX: usize = 65_536;

/// The buckets of all principals.
///
/// A bucket for N per minute holds N tokens and gets one back each 60/N s: N requests at once, and no more than
/// N + N·t/60 in any t seconds.
#[derive(Debug, Default)]
pub struct Rates {
    /// When each bucket will be full again, in microseconds of the caller's clock. A full one is as none.
    full_at: HashMap<String, u64>,
    counted: BTreeSet<i64>,
}

impl Rates {
    /// Whether the request `seq` may go on. The same request is counted once, however often it is asked
    /// about: one that waits for long is prepared twice. `per_minute` is at least 1; `now_ms` never goes back in
    /// the daemon, and if it did, nobody would be shut out for longer than a minute.
    pub fn take(&mut self, bucket: &str, per_minute: u32, seq: i64, now_ms: u64) -> bool {
        if self.counted.contains(&seq) {
            return true;
        }
        let now = now_ms.saturating_mul(1_000);
        let empty = now.saturating_add(SPAN_US);
        let part = SPAN_US / u64::from(per_minute.max(1));
        if let Some(full_at) = self.full_at.get_mut(bucket) {
            *full_at = (*full_at).clamp(now, empty);
            let after = full_at.saturating_add(part);
            if after > empty {
                return false;
            }
            *full_at = after;
        } else {
            if self.full_at.len() >= BUCKETS_MAX {
                self.make_room(now);
            }
            self.full_at.insert(bucket.to_owned(), now.saturating_add(part));
        }
        self.count(seq);
        true
    }

    /// The request `seq` was let in before: it is counted no more.
    pub fn let_in(&mut self, seq: i64) {
        self.count(seq);
    }

    fn make_room(&mut self, now: u64) {
        self.full_at.retain(|_, full_at| *full_at > now);
        if self.full_at.len() < BUCKETS_MAX {
            return;
        }
        let nearest = self.full_at.iter().min_by_key(|(_, full_at)| **full_at).map(|(bucket, _)| bucket.clone());
        if let Some(nearest) = nearest {
            self.full_at.remove(&nearest);
        }
    }

    fn count(&mut self, seq: i64) {
        self.counted.insert(seq);
        if self.counted.len() > COUNTED_MAX {
            self.counted.pop_first();
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::config::PER_MINUTE_MAX;
    use proptest::prelude::*;

    /// Requests that come at these times, each for the first time; how many may go on.
    fn passed(rates: &mut Rates, per_minute: u32, times: impl IntoIterator<Item = u64>) -> usize {
        let first = rates.counted.last().copied().unwrap_or(0) + 1;
        times.into_iter().zip(first..).filter(|(at, seq)| rates.take("a", per_minute, *seq, *at)).count()
    }

    #[test]
    fn so_many_at_once_and_then_one_at_the_edge_of_each_part() {
        let mut rates = Rates::default();
        assert_eq!(passed(&mut rates, 6, [0; 20]), 6);
        assert_eq!(passed(&mut rates, 6, [9_999]), 0);
        assert_eq!(passed(&mut rates, 6, [10_000, 10_000]), 1);
        assert_eq!(passed(&mut rates, 6, [19_999, 20_000]), 1);
        assert_eq!(passed(&mut rates, 6, [80_000; 20]), 6, "a minute later it is full again");
    }

    #[test]
    fn every_rate_holds_its_own_number() {
        for per_minute in 1..=PER_MINUTE_MAX {
            let tokens = u64::from(per_minute);
            let part = SPAN_US / tokens;
            assert!(part * tokens <= SPAN_US && part * (tokens + 1) > SPAN_US, "{per_minute}");
        }
        assert_eq!(passed(&mut Rates::default(), PER_MINUTE_MAX, vec![0; 7_000]), 6_000);
    }

    #[test]
    fn a_request_that_is_prepared_again_counts_once() {
        let mut rates = Rates::default();
        assert!((0..10).all(|_| rates.take("a", 1, 7, 0)));
        assert!(!rates.take("a", 1, 8, 0));
        assert!(rates.take("a", 1, 7, 1), "it was let in once, and stays in");
        assert!(!rates.take("a", 1, 8, 59_999), "what was refused was not counted, nor let in");
        assert!(rates.take("a", 1, 8, 60_000));
    }

    #[test]
    fn what_was_let_in_before_takes_no_place() {
        let mut rates = Rates::default();
        rates.let_in(1);
        assert!(rates.take("a", 1, 1, 0));
        assert!(rates.take("a", 1, 2, 0), "the bucket is full");
        assert!(!rates.take("a", 1, 3, 0));
    }

    #[test]
    fn buckets_know_nothing_of_each_other() {
        let mut rates = Rates::default();
        assert!(rates.take("a", 1, 1, 0) && rates.take("b", 1, 2, 0));
        assert!(!rates.take("a", 1, 3, 0) && !rates.take("b", 1, 4, 0));
    }

    #[test]
    fn a_clock_that_goes_back_shuts_nobody_out_for_longer_than_a_minute() {
        let mut rates = Rates::default();
        let hour_ms = 3_600_000;
        assert_eq!(passed(&mut rates, 2, [hour_ms, hour_ms, hour_ms]), 2);
        assert_eq!(passed(&mut rates, 2, [0]), 0, "an empty bucket is empty");
        assert_eq!(passed(&mut rates, 2, [29_999, 30_000, 30_000]), 1, "and fills by the new time");
        let mut forward = Rates::default();
        assert_eq!(passed(&mut forward, 2, [0, 0, u64::MAX / 2_000, u64::MAX]), 4);
    }

    #[test]
    fn memory_is_bounded_and_the_busiest_are_remembered() {
        let mut rates = Rates::default();
        assert!((1..=5).all(|seq| rates.take("busy", 5, seq, 0)));
        let others = i64::try_from(BUCKETS_MAX).unwrap() + 200;
        for seq in 6..others {
            assert!(rates.take(&format!("one {seq}"), 5, seq, 0));
        }
        assert!(rates.full_at.len() <= BUCKETS_MAX);
        assert!(!rates.take("busy", 5, others, 0), "a flood of others freed it");
        let more = others + i64::try_from(COUNTED_MAX).unwrap();
        for seq in others..more {
            assert!(rates.take("many", 5, seq, u64::try_from(seq).unwrap() * 60_000));
        }
        assert_eq!(rates.counted.len(), COUNTED_MAX);
        assert!(rates.take("late", 5, more, 100_000_000_000));
        assert!(rates.full_at.len() <= BUCKETS_MAX);
    }

    proptest! {
        #[test]
        fn never_more_than_the_bucket_and_what_flows_in(
            per_minute in 1..200_u32,
            steps in prop::collection::vec(0..5_000_u64, 1..400),
        ) {
            let mut rates = Rates::default();
            let (mut now, mut times) = (0, Vec::new());
            for (step, seq) in steps.into_iter().zip(1..) {
                now += step;
                if rates.take("a", per_minute, seq, now) {
                    times.push(now);
                }
            }
            let rate = u64::from(per_minute);
            for (n, from) in times.iter().enumerate() {
                for (m, to) in times.iter().enumerate().skip(n) {
                    let taken = u64::try_from(m - n + 1).unwrap();
                    // A part is rounded down to a whole microsecond: hence the one more.
                    prop_assert!(taken <= rate + (to - from) * rate / 60_000 + 1, "{taken} from {from} to {to}");
                }
            }
        }

        #[test]
        fn who_keeps_within_the_rate_is_never_refused(per_minute in 1..200_u32, more in prop::collection::vec(0..3_000_u64, 1..200)) {
            let mut rates = Rates::default();
            let mut now = 0;
            for (more, seq) in more.into_iter().zip(1..) {
                now += 60_000_u64.div_ceil(u64::from(per_minute)) + more;
                prop_assert!(rates.take("a", per_minute, seq, now));
            }
        }
    }
}
