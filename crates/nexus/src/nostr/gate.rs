//! What an event has to be before anything else is done with it, the cheapest check first: length, shape, asked
//! for, author, id, new, signature. A stranger's event ends before any hash is computed. No cache, policy or
//! database is asked about an event that isn't verified; what it is for, `sort` says later.

use super::codec::Outline;
use super::filter::Filter;
use ::nostr::event::Event;
use serde_json::value::RawValue;
use std::collections::{HashSet, VecDeque};
use std::sync::{Mutex, PoisonError};

/// Verified ids that are remembered, over all relays: enough for the overlap of a reconnection.
const SEEN_MAX: usize = 65_536;
/// What a relay may spend in a minute on events that are forged.
const BUDGET: u32 = 100;
/// A bad signature costs us a verification, a wrong id a hash.
const COST_OF_SIGNATURE: u32 = 5;
const COST_OF_ID: u32 = 1;
const BUDGET_MS: u64 = 60_000;
/// What a relay may send in that time that is refused, in bytes, and what each such message counts beside its own: far
/// more than comes of a subscription that was just closed, and some seconds of one core to look at.
const REFUSED_BYTES_MAX: u64 = 1024 * 1024 * 1024;
const REFUSAL_BYTES: u64 = 1_024;

/// Why an event goes no further.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Refused {
    TooLong,
    Malformed,
    /// Of no subscription, or not what that one asked for.
    Unasked,
    /// By somebody who isn't heeded.
    Stranger,
    WrongId,
    BadSignature,
}

/// What an event is that was asked for and is not refused.
#[derive(Debug, PartialEq, Eq)]
pub enum Passed {
    New(Box<Event>),
    /// An event of this id was verified before.
    Known {
        created_at: u64,
    },
}

impl Refused {
    /// As the label of a metric.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::TooLong => "too_long",
            Self::Malformed => "malformed",
            Self::Unasked => "unasked",
            Self::Stranger => "stranger",
            Self::WrongId => "wrong_id",
            Self::BadSignature => "bad_signature",
        }
    }
}

/// Ids of events that were verified and handed on, the newest of them. Shared by all relays.
#[derive(Debug, Default)]
pub struct Seen {
    ids: Mutex<Ids>,
}

#[derive(Debug, Default)]
struct Ids {
    all: HashSet<[u8; 32]>,
    order: VecDeque<[u8; 32]>,
}

impl Seen {
    pub fn contains(&self, id: &[u8; 32]) -> bool {
        self.lock().all.contains(id)
    }

    /// Hands an event on under its id, as one step: whoever finds the id here may rely on the event standing before
    /// whatever is handed on later, a proof that nothing is missing too. False when it was there: another relay was faster.
    pub(crate) fn once(&self, id: [u8; 32], hand_on: impl FnOnce()) -> bool {
        let mut ids = self.lock();
        if !ids.all.insert(id) {
            return false;
        }
        ids.order.push_back(id);
        if ids.order.len() > SEEN_MAX
            && let Some(oldest) = ids.order.pop_front()
        {
            ids.all.remove(&oldest);
        }
        hand_on();
        true
    }

    /// What was not taken in has to pass once more, and takes the place of nothing that was.
    pub(crate) fn forget(&self, id: &[u8; 32]) {
        let mut ids = self.lock();
        // It came a moment ago: the way from the back is short.
        if ids.all.remove(id)
            && let Some(at) = ids.order.iter().rposition(|one| one == id)
        {
            ids.order.remove(at);
        }
    }

    /// Forgets all: what was verified may not have been committed.
    pub(crate) fn clear(&self) {
        *self.lock() = Ids::default();
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Ids> {
        self.ids.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What one relay has spent on what is good for nothing.
#[derive(Debug, Default)]
pub struct Budget {
    /// On forged events.
    spent: u32,
    refused_bytes: u64,
    since_ms: u64,
}

impl Budget {
    fn spend(&mut self, cost: u32, now_ms: u64) {
        self.begin_anew(now_ms);
        self.spent = self.spent.saturating_add(cost);
    }

    /// Counts a message of so many bytes that was refused, whatever for. Monotonic ms.
    pub(crate) fn refuse(&mut self, bytes: usize, now_ms: u64) {
        self.begin_anew(now_ms);
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
        self.refused_bytes = self.refused_bytes.saturating_add(bytes).saturating_add(REFUSAL_BYTES);
    }

    fn begin_anew(&mut self, now_ms: u64) {
        if now_ms.saturating_sub(self.since_ms) >= BUDGET_MS {
            *self = Self { since_ms: now_ms, ..Self::default() };
        }
    }

    /// Why the connection isn't worth keeping, if it isn't.
    pub(crate) fn why_spent(&self) -> Option<&'static str> {
        if self.spent >= BUDGET {
            return Some("it sends too many events that are forged");
        }
        (self.refused_bytes >= REFUSED_BYTES_MAX).then_some("it sends too much that nobody asked for or can read")
    }

    /// A new connection begins anew.
    pub(crate) fn refill(&mut self) {
        *self = Self::default();
    }
}

/// Lets an event through that was asked for by `filter` and is verified, unless `is_known` says of its id that it was
/// before. Monotonic ms.
///
/// # Errors
/// [`Refused`]; the budget pays for what is forged.
pub fn pass(
    raw: &RawValue,
    filter: &Filter,
    is_known: impl FnOnce(&[u8; 32]) -> bool,
    budget: &mut Budget,
    now_ms: u64,
) -> Result<Passed, Refused> {
    let outline = Outline::read(raw).ok_or(Refused::Malformed)?;
    if !filter.fits(&outline) {
        return Err(Refused::Unasked);
    }
    if !filter.is_author(&outline.pubkey) {
        return Err(Refused::Stranger);
    }
    let event = outline.whole().ok_or(Refused::Malformed)?;
    if !filter.is_tagged(&event) {
        return Err(Refused::Unasked);
    }
    if !event.verify_id() {
        budget.spend(COST_OF_ID, now_ms);
        return Err(Refused::WrongId);
    }
    // By the id as it was computed, so that nobody can have an event taken for another one.
    if is_known(event.id.as_bytes()) {
        return Ok(Passed::Known { created_at: outline.created_at });
    }
    if !event.verify_signature() {
        budget.spend(COST_OF_SIGNATURE, now_ms);
        return Err(Refused::BadSignature);
    }
    Ok(Passed::New(Box::new(event)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use ::nostr::event::{EventBuilder, FinalizeEvent, Kind};
    use ::nostr::key::Keys;
    use std::collections::BTreeSet;
    use std::sync::Arc;

    struct Place {
        keys: Keys,
        filter: Filter,
        seen: Seen,
        budget: Budget,
    }

    impl Place {
        fn new() -> Self {
            let keys = Keys::generate();
            let authors = Arc::new(BTreeSet::from([keys.public_key().to_hex()]));
            let filter = Filter { authors: Some(authors), ..Filter::default() };
            Self { keys, filter, seen: Seen::default(), budget: Budget::default() }
        }

        fn event(&self, content: &str) -> Event {
            EventBuilder::new(Kind::TextNote, content).finalize(&self.keys).unwrap()
        }

        /// Whether it is new.
        fn pass(&mut self, json: &str) -> Result<bool, Refused> {
            let raw: &RawValue = serde_json::from_str(json).unwrap();
            let seen = &self.seen;
            match pass(raw, &self.filter, |id| seen.contains(id), &mut self.budget, 0)? {
                Passed::New(event) => Ok(seen.once(event.id.to_bytes(), || {})),
                Passed::Known { .. } => Ok(false),
            }
        }
    }

    #[test]
    fn only_what_is_verified_and_new_goes_through_and_once() {
        let mut place = Place::new();
        let json = place.event("hi").as_json();
        assert_eq!(place.pass(&json), Ok(true));
        assert_eq!(place.pass(&json), Ok(false));
        place.seen.clear();
        assert_eq!(place.pass(&json), Ok(true));
    }

    #[test]
    fn an_id_counts_as_seen_only_after_it_verified() {
        let mut place = Place::new();
        let (event, other) = (place.event("hi"), place.event("other"));
        let forged = event.as_json().replace(&event.sig.to_hex(), &other.sig.to_hex());
        assert_eq!(place.pass(&forged), Err(Refused::BadSignature));
        assert_eq!(place.pass(&event.as_json()), Ok(true), "the true one of two with one id");
        assert_eq!(place.pass(&event.as_json().replace("hi", "ho")), Err(Refused::WrongId));
    }

    #[test]
    fn a_stranger_costs_no_hash_and_spends_nothing() {
        let mut place = Place::new();
        let stranger = EventBuilder::new(Kind::TextNote, "hi").finalize(&Keys::generate()).unwrap();
        // Neither its tags nor its id are right; nobody looks.
        let json = stranger.as_json().replace("\"tags\":[]", "\"tags\":[[1]]");
        for _ in 0..1_000 {
            assert_eq!(place.pass(&json), Err(Refused::Stranger));
        }
        assert_eq!(place.budget.why_spent(), None);
    }

    #[test]
    fn what_nobody_asked_for_is_refused_before_it_is_read() {
        let mut place = Place::new();
        let event = place.event("hi");
        place.filter.kinds = Some(BTreeSet::from([31_933]));
        assert_eq!(place.pass(&event.as_json()), Err(Refused::Unasked));
        place.filter.kinds = None;
        place.filter.since = Some(event.created_at.as_secs() + 1);
        assert_eq!(place.pass(&event.as_json()), Err(Refused::Unasked));
        place.filter.since = None;
        place.filter.tag = Some(('p', BTreeSet::from(["x".to_owned()])));
        assert_eq!(place.pass(&event.as_json()), Err(Refused::Unasked));
        assert_eq!(place.pass("{}"), Err(Refused::Malformed));
    }

    #[test]
    fn forged_events_spend_a_budget_that_comes_back() {
        let mut budget = Budget::default();
        for _ in 1..BUDGET / COST_OF_SIGNATURE {
            budget.spend(COST_OF_SIGNATURE, 10);
        }
        assert_eq!(budget.why_spent(), None);
        budget.spend(COST_OF_SIGNATURE, 10);
        assert!(budget.why_spent().is_some());
        budget.spend(COST_OF_ID, 10 + BUDGET_MS);
        assert_eq!(budget.why_spent(), None);
    }

    #[test]
    fn what_is_refused_has_an_end_too_by_its_number_and_by_its_size() {
        let most = usize::try_from(REFUSED_BYTES_MAX).unwrap();
        let (mut many, mut large) = (Budget::default(), Budget::default());
        let number = most / usize::try_from(REFUSAL_BYTES).unwrap();
        (1..number).for_each(|_| many.refuse(0, 10));
        large.refuse(most / 2, 10);
        assert_eq!((many.why_spent(), large.why_spent()), (None, None), "a subscription that was closed may be told on for a while");
        many.refuse(0, 10);
        large.refuse(most / 2, 10);
        assert!(many.why_spent().is_some() && large.why_spent().is_some());
        many.refuse(0, 10 + BUDGET_MS);
        assert_eq!(many.why_spent(), None);
    }

    #[test]
    fn an_event_is_handed_on_with_its_id_and_once() {
        let (seen, mut handed) = (Seen::default(), 0);
        assert!(seen.once([1; 32], || handed += 1));
        assert!(!seen.once([1; 32], || handed += 1));
        assert_eq!((handed, seen.contains(&[1; 32]), seen.contains(&[2; 32])), (1, true, false));
    }

    #[test]
    fn the_memory_of_ids_has_an_end() {
        let seen = Seen::default();
        let id = |n: usize| {
            let mut id = [0; 32];
            id[..8].copy_from_slice(&n.to_be_bytes());
            id
        };
        for n in 0..=SEEN_MAX {
            assert!(seen.once(id(n), || {}));
        }
        assert!(!seen.contains(&id(0)) && seen.contains(&id(SEEN_MAX)));
        assert_eq!(seen.lock().all.len(), SEEN_MAX);
    }
}
