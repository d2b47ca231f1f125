//! Whether one more event of an author may be taken in. As long as half of what may be pending is free, anybody's may;
//! after that each author has a share of the rest, so that nobody is kept out by what others said. What is left out
//! stays with the relays: nothing is proven of them until it has been asked for again. It commits nothing.

use super::machine::BACKOFF_BASE_MS;
use crate::ledger::events::{Disposition, NewEvent};
use crate::pipeline::pending::Pending;
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;
use tokio::time::Instant;

/// The least time between asking for what was left out and doing so again. Each time all relays give all since the
/// oldest of it, however little of that there is room for: no more often than they are connected to.
const PAUSE: Duration = Duration::from_millis(BACKOFF_BASE_MS);

/// Where an author stands who is accepted.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// Events of all authors that may have no end yet.
    pub(super) pending_max: u64,
    /// Authors that are heeded.
    pub(super) authors: u64,
}

impl Limits {
    /// What anybody may take together.
    fn free(self) -> u64 {
        // One author alone crowds nobody out.
        if self.authors <= 1 { self.pending_max } else { self.pending_max / 2 }
    }

    /// What each author may have beyond that. All shares together fit into the rest.
    fn share(self) -> u64 {
        ((self.pending_max - self.free()) / self.authors.max(1)).max(1)
    }
}

#[derive(Debug, Default)]
pub(super) struct Fair {
    /// Authors some of whose events were left out.
    left: BTreeSet<String>,
    /// What was committed that the router hasn't counted yet.
    uncounted: VecDeque<(i64, String)>,
    /// How many of these each author has.
    uncounted_of: BTreeMap<String, u64>,
    /// What was let through and isn't committed yet, by author; and all that is pending, with that.
    batch: BTreeMap<String, u64>,
    total: u64,
    /// Until when it isn't asked for again.
    rests_until: Option<Instant>,
}

impl Fair {
    /// Begins a batch, where `total` are pending: what the last one let through has been counted, or failed.
    pub(super) fn begin(&mut self, pending: &Pending, total: u64) {
        self.batch.clear();
        self.total = total;
        self.leave_to(pending);
    }

    /// Whether `many` more of an author may be taken in. If not, that is kept in mind.
    pub(super) fn admits(&mut self, pending: &Pending, limits: Limits, author: &str, many: u64) -> bool {
        // What it said before comes first: all of that is asked for again together.
        if self.left.contains(author) {
            return false;
        }
        if limits.authors > 1 && self.total >= limits.free() && self.of(pending, author) >= limits.share() {
            tracing::warn!(author, "an author has its share of what may be pending; what else it said is asked for again later");
            self.left.insert(author.to_owned());
            return false;
        }
        *self.batch.entry(author.to_owned()).or_default() += many;
        self.total = self.total.saturating_add(many);
        true
    }

    /// An event was committed that will be a request.
    pub(super) fn committed(&mut self, seq: i64, author: &str) {
        *self.uncounted_of.entry(author.to_owned()).or_default() += 1;
        self.uncounted.push_back((seq, author.to_owned()));
    }

    /// Whether something was left out: what the relays prove of themselves is not whole then.
    pub(super) fn is_behind(&self) -> bool {
        !self.left.is_empty()
    }

    /// Until when nothing is asked for again, if something is to be and that is in the future.
    pub(super) fn rests_until(&self, now: Instant) -> Option<Instant> {
        self.rests_until.filter(|until| self.is_behind() && now < *until)
    }

    /// Whether it is time to ask for what was left out. Well below the limit, since all of it is asked for.
    pub(super) fn has_room(&mut self, pending: &Pending, limits: Limits, total: u64, now: Instant) -> bool {
        self.leave_to(pending);
        self.batch.clear(); // it is over
        let has_room = |author: &String| self.counted(pending, author) <= limits.share() / 2;
        let may_ask = self.is_behind() && self.rests_until(now).is_none();
        may_ask && (total <= limits.free() / 2 || self.left.iter().any(has_room))
    }

    /// What was left out is asked for again.
    pub(super) fn catch_up(&mut self, now: Instant) {
        self.left.clear();
        self.rests_until = Some(now + PAUSE);
    }

    /// What an author has pending. The router may have counted some of it since `uncounted` was looked at.
    fn of(&mut self, pending: &Pending, author: &str) -> u64 {
        self.leave_to(pending);
        self.counted(pending, author)
    }

    fn counted(&self, pending: &Pending, author: &str) -> u64 {
        let of = |counts: &BTreeMap<String, u64>| counts.get(author).copied().unwrap_or(0);
        pending.of_author(author).saturating_add(of(&self.batch)).saturating_add(of(&self.uncounted_of))
    }

    /// Counts no more what the router has counted.
    fn leave_to(&mut self, pending: &Pending) {
        let upto = pending.counted_upto();
        while let Some((_, author)) = self.uncounted.pop_front_if(|(seq, _)| *seq <= upto) {
            if let Entry::Occupied(mut count) = self.uncounted_of.entry(author) {
                *count.get_mut() -= 1;
                if *count.get() == 0 {
                    count.remove();
                }
            }
        }
    }
}

/// Whether it becomes a request that has its end later.
pub(super) fn is_request(event: &NewEvent) -> bool {
    match event.disposition {
        Disposition::Run | Disposition::Late => true,
        Disposition::Filed | Disposition::History => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FORTY: Limits = Limits { pending_max: 40, authors: 2 };

    /// How many of `many` are let through one after the other, each committed at once and counted by nobody.
    fn taken(fair: &mut Fair, pending: &Pending, total: &mut u64, author: &str, many: u64) -> u64 {
        let before = *total;
        for _ in 0..many {
            fair.begin(pending, *total);
            if fair.admits(pending, FORTY, author, 1) {
                *total += 1;
                fair.committed(i64::try_from(*total).unwrap_or(i64::MAX), author);
            }
        }
        *total - before
    }

    #[test]
    fn one_author_leaves_the_others_their_shares() {
        let (mut fair, pending, mut total) = (Fair::default(), Pending::default(), 0);
        assert_eq!(taken(&mut fair, &pending, &mut total, "a", 60), 20, "half of it, whoever comes first");
        assert!(fair.is_behind());
        assert_eq!(taken(&mut fair, &pending, &mut total, "b", 60), 10, "a share");
        assert!(total <= FORTY.pending_max);
    }

    #[test]
    fn one_batch_counts_as_many_do() {
        let (mut fair, pending) = (Fair::default(), Pending::default());
        fair.begin(&pending, 0);
        assert_eq!((0..60).filter(|_| fair.admits(&pending, FORTY, "a", 1)).count(), 20);
        assert!(fair.admits(&pending, FORTY, "b", 1));
        fair.begin(&pending, 0);
        assert!(!fair.admits(&pending, FORTY, "a", 1), "what it said before comes first");
        fair.catch_up(Instant::now());
        let alone = Limits { authors: 1, ..FORTY };
        fair.begin(&pending, 0);
        assert_eq!((0..60).filter(|_| fair.admits(&pending, alone, "a", 1)).count(), 60, "it crowds nobody out");
    }

    #[test]
    fn what_was_left_out_is_asked_for_once_there_is_room() {
        let (mut fair, pending, mut total, now) = (Fair::default(), Pending::default(), 0, Instant::now());
        assert!(!fair.has_room(&pending, FORTY, total, now), "nothing was left out");
        taken(&mut fair, &pending, &mut total, "a", 60);
        let mut open: Vec<_> = (1..=20).map(|seq| pending.open(seq, "a")).collect();
        assert!(!fair.has_room(&pending, FORTY, total, now));
        open.truncate(6);
        assert!(!fair.has_room(&pending, FORTY, 16, now));
        open.truncate(5);
        assert!(fair.has_room(&pending, FORTY, 15, now), "half of its share is free");
        assert!(fair.has_room(&pending, FORTY, 10, now), "half of it all is");
        fair.catch_up(now);
        assert!(!fair.is_behind() && fair.rests_until(now).is_none());
    }

    #[test]
    fn what_one_batch_brought_is_counted_once_it_is_over_by_what_is_open() {
        let (mut fair, pending, now) = (Fair::default(), Pending::default(), Instant::now());
        fair.begin(&pending, 20);
        let let_through = (0..15).filter(|_| fair.admits(&pending, FORTY, "a", 1)).count();
        assert_eq!(let_through, 10, "a share");
        (1..=10).for_each(|seq| fair.committed(seq, "a"));
        let open: Vec<_> = (1..=10).map(|seq| pending.open(seq, "a")).collect();
        assert!(!fair.has_room(&pending, FORTY, 30, now));
        drop(open);
        assert!(fair.has_room(&pending, FORTY, 20, now), "all of it has ended, though nothing came since");
    }

    #[test]
    fn what_is_left_out_again_is_not_asked_for_without_a_pause() {
        let (mut fair, pending, mut total, now) = (Fair::default(), Pending::default(), 0, Instant::now());
        taken(&mut fair, &pending, &mut total, "a", 60);
        assert!(fair.has_room(&pending, FORTY, 0, now), "the first time at once");
        fair.catch_up(now);
        taken(&mut fair, &pending, &mut total, "a", 60);
        assert!(!fair.has_room(&pending, FORTY, 0, now), "however much room there is");
        let until = fair.rests_until(now);
        assert_eq!(until, Some(now + PAUSE));
        assert!(fair.has_room(&pending, FORTY, 0, now + PAUSE) && fair.rests_until(now + PAUSE).is_none());
    }
}
