//! Events that a relay had stored, held back until it has sent all of them: it sends the newest first, and they are to
//! be taken in by their dates. What comes live meanwhile stays behind them as it came, and so does the word that
//! nothing is missing. It reads no clock and hands nothing on; what the relay is doing, `machine` knows.

use crate::nostr::Event;
use std::collections::{BTreeMap, HashSet};
use tokio::sync::OwnedSemaphorePermit;

/// Events that one relay holds back. Past them, what there is goes on its way, and what follows is sorted by itself.
const EVENTS_MAX: usize = 4_096;
/// How long anything is held back, in ms.
const HOLD_MS_MAX: u64 = 30_000;

/// How an event came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Came {
    Stored,
    Live,
}

/// Where an event stands; in this order they leave.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Place {
    Stored { created_at: u64, id: [u8; 32] },
    Live { nth: usize },
}

/// Up to when (Unix seconds) a subscription is whole, and the taking in under which it was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Proof {
    pub(super) until: u64,
    pub(super) generation: u64,
}

/// An event, and its part of the memory that there is for those of all relays.
pub(super) type One = (Box<Event>, OwnedSemaphorePermit);

/// All that was held back, in the order in which it leaves.
#[derive(Debug)]
pub(super) struct Lot {
    pub(super) events: Vec<One>,
    /// By subscription. They stand behind every event.
    pub(super) proofs: BTreeMap<String, Proof>,
}

#[derive(Debug, Default)]
pub(super) struct Held {
    events: BTreeMap<Place, One>,
    ids: HashSet<[u8; 32]>,
    proofs: BTreeMap<String, Proof>,
    since_ms: Option<u64>,
}

impl Held {
    pub(super) fn has(&self, id: &[u8; 32]) -> bool {
        self.ids.contains(id)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.events.is_empty() && self.proofs.is_empty()
    }

    pub(super) fn is_full(&self) -> bool {
        self.events.len() >= EVENTS_MAX
    }

    /// Holds an event back that isn't among them.
    pub(super) fn put(&mut self, came: Came, event: Box<Event>, room: OwnedSemaphorePermit, now_ms: u64) {
        let id = event.id.to_bytes();
        let place = match came {
            Came::Stored => Place::Stored { created_at: event.created_at.as_secs(), id },
            Came::Live => Place::Live { nth: self.events.len() },
        };
        self.since_ms.get_or_insert(now_ms);
        self.ids.insert(id);
        self.events.insert(place, (event, room));
    }

    /// Holds a proof back; a later one of its subscription says all that an earlier one did.
    pub(super) fn prove(&mut self, sub: String, proof: Proof, now_ms: u64) {
        self.since_ms.get_or_insert(now_ms);
        self.proofs.insert(sub, proof);
    }

    /// When it has waited long enough, whatever the relay does.
    pub(super) fn late_at_ms(&self) -> Option<u64> {
        self.since_ms.map(|since| since.saturating_add(HOLD_MS_MAX))
    }

    pub(super) fn take(&mut self) -> Lot {
        let Self { events, proofs, ids: _, since_ms: _ } = std::mem::take(self);
        Lot { events: events.into_values().collect(), proofs }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::nostr::Template;
    use ::nostr::key::Keys;
    use proptest::prelude::*;
    use std::sync::Arc;
    use tokio::sync::Semaphore;

    fn event(keys: &Keys, created_at: u64, content: &str) -> Box<Event> {
        let template = Template { kind: 1, content: content.to_owned(), tags: Vec::new(), created_at: Some(created_at) };
        Box::new(template.sign(keys, 0).unwrap())
    }

    fn put(held: &mut Held, came: Came, event: Box<Event>, now_ms: u64) {
        let room = Arc::new(Semaphore::new(1)).try_acquire_owned().unwrap();
        held.put(came, event, room, now_ms);
    }

    fn contents(lot: &Lot) -> Vec<String> {
        lot.events.iter().map(|(event, _)| event.content.clone()).collect()
    }

    #[test]
    fn stored_events_leave_by_their_dates_and_live_ones_behind_them_as_they_came() {
        let (mut held, keys) = (Held::default(), Keys::generate());
        for (came, at, content) in [
            (Came::Stored, 30, "third"),
            (Came::Live, 90, "live"),
            (Came::Stored, 10, "first"),
            (Came::Live, 5, "live, and dated back"),
            (Came::Stored, 20, "second"),
        ] {
            put(&mut held, came, event(&keys, at, content), 0);
        }
        held.prove("s".to_owned(), Proof { until: 1, generation: 1 }, 0);
        held.prove("s".to_owned(), Proof { until: 2, generation: 1 }, 0);
        let lot = held.take();
        assert_eq!(contents(&lot), ["first", "second", "third", "live", "live, and dated back"]);
        assert_eq!(lot.proofs, [("s".to_owned(), Proof { until: 2, generation: 1 })].into());
        assert!(held.is_empty() && held.late_at_ms().is_none());
    }

    #[test]
    fn events_of_one_second_leave_by_their_ids() {
        let (mut held, keys) = (Held::default(), Keys::generate());
        let mut all: Vec<Box<Event>> = (0..8).map(|n| event(&keys, 7, &n.to_string())).collect();
        all.iter().for_each(|one| put(&mut held, Came::Stored, one.clone(), 0));
        all.sort_by_key(|one| one.id.to_bytes());
        assert_eq!(contents(&held.take()), all.iter().map(|one| one.content.clone()).collect::<Vec<_>>());
    }

    #[test]
    fn nothing_is_held_for_ever_or_without_end() {
        let (mut held, keys) = (Held::default(), Keys::generate());
        assert_eq!(held.late_at_ms(), None);
        held.prove("s".to_owned(), Proof { until: 1, generation: 1 }, 50);
        let one = event(&keys, 7, "one");
        put(&mut held, Came::Stored, one.clone(), 90);
        assert_eq!(held.late_at_ms(), Some(50 + HOLD_MS_MAX), "by what came first");
        assert!(held.has(&one.id.to_bytes()) && !held.is_full());
        for nth in 1..EVENTS_MAX {
            let mut other = one.clone();
            other.created_at = ::nostr::types::Timestamp::from_secs(nth as u64 + 100);
            put(&mut held, Came::Stored, other, 99);
        }
        assert!(held.is_full());
        drop(held.take());
        assert!(!held.is_full() && !held.has(&one.id.to_bytes()));
    }

    proptest! {
        #[test]
        fn nothing_is_lost_or_doubled(dates in prop::collection::vec((any::<bool>(), 0_u64..5), 0..12)) {
            let (mut held, keys) = (Held::default(), Keys::parse(&"01".repeat(32)).unwrap());
            for (n, (is_stored, at)) in dates.iter().enumerate() {
                let came = if *is_stored { Came::Stored } else { Came::Live };
                put(&mut held, came, event(&keys, *at, &n.to_string()), 0);
            }
            let mut left = contents(&held.take());
            left.sort_by_key(|content| content.parse::<usize>().unwrap());
            prop_assert_eq!(left, (0..dates.len()).map(|n| n.to_string()).collect::<Vec<_>>());
        }
    }
}
