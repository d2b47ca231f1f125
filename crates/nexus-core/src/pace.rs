//! When each of several may go on, so many at once and then so many per second: for what is to wait, and not to be
//! refused. Whoever asks gets an instant of its own, in the order of asking. It reads no clock and keeps nothing on disk.

use std::collections::HashMap;

/// Those that are not as good as new. Of more, nobody is kept waiting until one of them is.
pub const KNOWN_MAX: usize = 4_096;

/// The pace of each.
#[derive(Debug)]
pub struct Paces {
    /// Milliseconds between two, once those at once are used up.
    every_ms: u64,
    /// How far an instant may lie ahead before it is waited for, in ms.
    ahead_ms: u64,
    /// When each is as good as new, in milliseconds of the caller's clock.
    new_at: HashMap<String, u64>,
}

impl Paces {
    /// `burst` at once, and `per_second` (1 to 1,000) after that; both at least 1.
    pub fn new(per_second: u32, burst: u32) -> Self {
        let every_ms = 1_000 / u64::from(per_second.clamp(1, 1_000));
        Self { every_ms, ahead_ms: every_ms * u64::from(burst.max(1) - 1), new_at: HashMap::new() }
    }

    /// When the next of `who` may go on, never before `now_ms`, which never goes back. It is taken for gone then.
    pub fn next(&mut self, who: &str, now_ms: u64) -> u64 {
        if !self.new_at.contains_key(who) {
            if self.new_at.len() >= KNOWN_MAX {
                self.new_at.retain(|_, new_at| *new_at > now_ms);
            }
            if self.new_at.len() >= KNOWN_MAX {
                return now_ms;
            }
        }
        let new_at = self.new_at.entry(who.to_owned()).or_insert(now_ms);
        let own = (*new_at).max(now_ms);
        *new_at = own.saturating_add(self.every_ms);
        own.saturating_sub(self.ahead_ms).max(now_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn so_many_at_once_and_each_further_one_at_its_own_instant() {
        let mut paces = Paces::new(20, 100);
        assert!((0..100).all(|_| paces.next("a", 1_000) == 1_000));
        let further: Vec<u64> = (0..3).map(|_| paces.next("a", 1_000)).collect();
        assert_eq!(further, [1_050, 1_100, 1_150], "nobody is refused");
        assert_eq!(paces.next("b", 1_000), 1_000, "the others know nothing of it");
        assert_eq!(paces.next("a", 1_150), 1_200, "as if it had asked at once");
        assert!((0..100).all(|_| paces.next("a", 60_000) == 60_000), "after a pause it is as good as new");
        assert_eq!(paces.next("a", 60_000), 60_050);
    }

    #[test]
    fn memory_has_a_bound_and_beyond_it_nobody_waits() {
        let mut paces = Paces::new(1, 1);
        for n in 0..KNOWN_MAX {
            paces.next(&n.to_string(), 0);
        }
        assert_eq!((paces.next("more", 0), paces.next("more", 0)), (0, 0));
        assert_eq!(paces.new_at.len(), KNOWN_MAX);
        assert_eq!((paces.next("more", 1_000), paces.next("more", 1_000)), (1_000, 2_000), "there is room again");
        assert_eq!(paces.new_at.len(), 1);
    }

    proptest! {
        #[test]
        fn no_second_has_more_than_it_may_and_nobody_waits_without_need(asks in prop::collection::vec(0_u64..400, 1..200)) {
            let (mut paces, mut now) = (Paces::new(20, 5), 0);
            let mut gone: Vec<u64> = Vec::new();
            for pause in asks {
                now += pause;
                let at = paces.next("a", now);
                prop_assert!(at >= now && gone.last().is_none_or(|last| at >= *last), "in the order of asking");
                gone.push(at);
            }
            for (n, first) in gone.iter().enumerate() {
                let within = gone[n..].iter().take_while(|at| **at < first + 1_000).count();
                prop_assert!(within <= 25, "{} from {}", within, first);
            }
        }
    }
}
