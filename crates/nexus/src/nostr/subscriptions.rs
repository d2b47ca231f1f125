//! What is asked of every relay, and from when on: independent subscriptions, so that one that a relay
//! refuses takes no other with it. Each is named after what it asks for; a whitelist that grows makes new ones,
//! which begin without a cursor and so bring what they missed.

use super::filter::Filter;
use super::sort::DELETION;
use crate::ledger::events::{FIRST, RelayCursor};
use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

/// Kinds that define something, besides projects: profiles, deletions, announcements of repositories, agents, servers.
pub(crate) const DEFINING_KINDS: [u16; 5] = [0, 5, 30_617, 4_199, 4_200];
/// Authors of known projects who aren't whitelisted that are followed; of more, those with the lowest keys.
const KNOWN_AUTHORS_MAX: usize = 500;
/// How far before a cursor is asked again: events come late, and clocks differ.
pub(crate) const OVERLAP_S: u64 = 900;
/// How far before this daemon first listened: for clocks that are slow. What was said earlier was said to nobody, or to another
/// program that has answered it.
const FIRST_LEEWAY_S: u64 = 60;
/// How far back a subscription without a cursor looks, if it isn't to have everything; never further than
/// from when on this daemon listens at all, and as far as the one whose place it takes was whole.
const BACKFILL_S: u64 = 24 * 60 * 60;

/// What a subscription brings of the past when it is new.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Past {
    /// All of it: only the newest counts anyway.
    Whole,
    Recent,
}

/// A lasting question to each relay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Subscription {
    /// Of at most 64 characters, the same as long as it asks for the same.
    pub(crate) id: String,
    pub(crate) filter: Filter,
    past: Past,
}

impl Subscription {
    fn new(group: &str, filter: Filter, past: Past) -> Self {
        Self { id: format!("nexus-{group}-{}", filter.digest()), filter, past }
    }

    /// Whether that is the id of one of the same group, as of a whitelist before this one.
    fn is_like(&self, id: &str) -> bool {
        let group = |id: &str| id.rsplit_once('-').map(|(group, _)| group.to_owned());
        group(&self.id).is_some() && group(&self.id) == group(id)
    }
}

/// The subscriptions of a whitelist, none of an empty one. `known` are the authors of the projects that are known, `own` is
/// the daemon's public key.
pub(crate) fn of(
    whitelist: &Arc<BTreeSet<String>>,
    project_kinds: &[u16],
    known: &BTreeSet<String>,
    own: Option<&str>,
) -> Vec<Subscription> {
    if whitelist.is_empty() {
        return Vec::new();
    }
    let by = || Filter { authors: Some(whitelist.clone()), ..Filter::default() };
    let kinds = DEFINING_KINDS.iter().chain(project_kinds).copied().collect();
    let mut all = vec![
        Subscription::new("definitions", Filter { kinds: Some(kinds), ..by() }, Past::Whole),
        Subscription::new("activations", by(), Past::Recent),
    ];
    if let Some(own) = own {
        let tag = Some(('p', BTreeSet::from([own.to_owned()])));
        all.push(Subscription::new("direct", Filter { tag, ..by() }, Past::Recent));
    }
    let others: BTreeSet<String> = known.difference(whitelist).take(KNOWN_AUTHORS_MAX).cloned().collect();
    if !others.is_empty() {
        // What they say besides is nobody's concern here.
        let kinds = Some(project_kinds.iter().copied().chain([DELETION]).collect());
        let filter = Filter { kinds, authors: Some(Arc::new(others)), ..Filter::default() };
        all.push(Subscription::new("known", filter, Past::Whole));
    }
    all
}

/// How far each relay's answers are whole. In Unix seconds.
#[derive(Debug, Default)]
pub(crate) struct Cursors {
    all: Mutex<HashMap<(String, String), u64>>,
}

impl Cursors {
    /// Takes in what is on disk.
    pub(crate) fn moved(&self, cursors: &[RelayCursor]) {
        let mut all = self.lock();
        for cursor in cursors {
            let until = u64::try_from(cursor.until).unwrap_or(0);
            all.insert((cursor.relay.clone(), cursor.filter.clone()), until);
        }
    }

    /// Has all relays be asked from an earlier second on, as any of them may have what is wanted of it. One without a cursor
    /// is given one: how far it looks back would move on with the clock. The new ones; `None` if that changes nothing.
    pub(crate) fn fall_back(&self, to_s: u64, relays: &[String], subscriptions: &[Subscription], now_s: u64) -> Option<Vec<RelayCursor>> {
        let mut all = self.lock();
        let mut changes = false;
        for (_, until) in all.iter_mut().filter(|((relay, _), until)| !relay.is_empty() && **until > to_s) {
            *until = to_s;
            changes = true;
        }
        let mut new = Vec::new();
        for (relay, subscription) in relays.iter().flat_map(|relay| subscriptions.iter().map(move |one| (relay, one))) {
            let key = (relay.clone(), subscription.id.clone());
            if all.contains_key(&key) {
                continue;
            }
            // Where there is none, everything is asked for.
            let Some(from) = begin_of(&all, relay, subscription, now_s) else { continue };
            let until = from.min(to_s);
            all.insert(key, until);
            let until = i64::try_from(until).unwrap_or(i64::MAX);
            new.push(RelayCursor { relay: relay.clone(), filter: subscription.id.clone(), until });
        }
        (changes || !new.is_empty()).then_some(new)
    }

    /// What is to be noted of when this daemon first listened: now, where nobody knows, or where a clock that was ahead has
    /// left a time that is still to come.
    pub(crate) fn first_due(&self, now_s: u64) -> Option<RelayCursor> {
        let known = self.lock().get(&(String::new(), FIRST.to_owned())).copied();
        let until = i64::try_from(now_s).unwrap_or(i64::MAX);
        known.is_none_or(|first| first > now_s).then(|| RelayCursor { relay: String::new(), filter: FIRST.to_owned(), until })
    }

    /// From when on a relay is asked; `None` for everything.
    pub(crate) fn since(&self, relay: &str, subscription: &Subscription, now_s: u64) -> Option<u64> {
        let all = self.lock();
        let from = begin_of(&all, relay, subscription, now_s)?.saturating_sub(OVERLAP_S);
        let bound = match subscription.past {
            Past::Recent => first_of(&all, now_s).map_or(0, |first| first.saturating_sub(FIRST_LEEWAY_S)),
            Past::Whole => 0,
        };
        Some(from.max(bound))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<(String, String), u64>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// When this daemon first listened: now, if it never did; `None` if a clock that was ahead said so, which bounds nothing.
fn first_of(all: &HashMap<(String, String), u64>, now_s: u64) -> Option<u64> {
    let first = all.get(&(String::new(), FIRST.to_owned())).map_or(now_s, |first| *first);
    (first <= now_s).then_some(first)
}

/// Up to where nothing of a relay's is missing, or wanted; `None` when everything is.
fn begin_of(all: &HashMap<(String, String), u64>, relay: &str, subscription: &Subscription, now_s: u64) -> Option<u64> {
    // What a clock that was ahead has left says nothing about the time after now.
    let known = all.get(&(relay.to_owned(), subscription.id.clone())).map(|until| (*until).min(now_s));
    match (known, subscription.past) {
        (Some(known), _) => Some(known),
        (None, Past::Whole) => None,
        (None, Past::Recent) => {
            let first = first_of(all, now_s).unwrap_or(now_s);
            let recent = first.max(now_s.saturating_sub(BACKFILL_S));
            // A whitelist that changed while we were away must not cost those who were on it before.
            let alike = all.iter().filter(|((of, id), _)| of == relay && subscription.is_like(id));
            Some(alike.map(|(_, until)| *until).max().map_or(recent, |until| until.min(recent)))
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn whitelist(keys: &[&str]) -> Arc<BTreeSet<String>> {
        Arc::new(keys.iter().map(|key| (*key).to_owned()).collect())
    }

    fn cursor(relay: &str, filter: &str, until: i64) -> RelayCursor {
        RelayCursor { relay: relay.to_owned(), filter: filter.to_owned(), until }
    }

    #[test]
    fn ids_are_stable_short_and_differ_when_the_whitelist_does() {
        let none = BTreeSet::new();
        let ids = |keys: &[&str]| of(&whitelist(keys), &[31_933], &none, Some("me")).into_iter().map(|one| one.id).collect::<Vec<_>>();
        let (one, two) = (ids(&["a"]), ids(&["b", "a"]));
        assert_eq!((one.len(), one.clone()), (3, ids(&["a"])));
        assert!(one.iter().chain(&two).all(|id| id.len() + 2 <= 64));
        assert!(one.iter().all(|id| !two.contains(id)));
        assert!(of(&whitelist(&[]), &[31_933], &BTreeSet::from(["b".to_owned()]), Some("me")).is_empty());
    }

    #[test]
    fn authors_of_known_projects_are_asked_for_what_defines_these() {
        let of = |known: &[&str]| of(&whitelist(&["a"]), &[31_933], &whitelist(known), None);
        assert_eq!((of(&[]), of(&["a"])), (of(&["a"]), of(&[])), "whoever is whitelisted is asked for all anyway");
        let known = of(&["a", "b"]).pop().unwrap();
        assert_eq!((known.filter.authors, known.filter.kinds), (Some(whitelist(&["b"])), Some(BTreeSet::from([5, 31_933]))));
        let many: Vec<String> = (0..2 * KNOWN_AUTHORS_MAX).map(|n| format!("b{n}")).collect();
        let most = of(&many.iter().map(String::as_str).collect::<Vec<_>>()).pop().unwrap();
        assert_eq!(most.filter.authors.unwrap().len(), KNOWN_AUTHORS_MAX);
    }

    #[test]
    fn a_whitelist_that_changed_while_nobody_listened_costs_nobody() {
        let now = 10_000_000;
        let none = BTreeSet::new();
        let of = |keys: &[&str]| of(&whitelist(keys), &[31_933], &none, Some("me"));
        let (before, after) = (of(&["a"]), of(&["a", "b"]));
        let cursors = Cursors::default();
        let away = now - 3 * BACKFILL_S;
        let until = i64::try_from(away).unwrap();
        cursors.moved(&[cursor("", FIRST, 1_000), cursor("r", &before[1].id, until - 50), cursor("r", &before[2].id, until)]);
        assert_eq!(cursors.since("r", &after[1], now), Some(away - 50 - OVERLAP_S), "as far as that group was whole");
        assert_eq!(cursors.since("r", &after[2], now), Some(away - OVERLAP_S));
        assert_eq!(cursors.since("s", &after[1], now), Some(now - BACKFILL_S - OVERLAP_S), "another relay has its own");
        cursors.moved(&[cursor("r", &before[1].id, i64::try_from(now).unwrap())]);
        assert_eq!(cursors.since("r", &after[1], now), Some(now - BACKFILL_S - OVERLAP_S), "a key that is new brings its day");
    }

    #[test]
    fn a_cursor_leads_back_a_little_and_none_as_far_as_the_daemon_listens() {
        let all = of(&whitelist(&["a"]), &[31_933], &BTreeSet::new(), None);
        let [definitions, activations] = all.as_slice() else { panic!("{all:?}") };
        let cursors = Cursors::default();
        let now = 10_000_000;
        assert_eq!((cursors.since("r", definitions, now), cursors.first_due(now)), (None, Some(cursor("", FIRST, 10_000_000))));
        assert_eq!(cursors.since("r", activations, now), Some(now - FIRST_LEEWAY_S), "a first start has missed nothing");
        cursors.moved(&[cursor("", FIRST, 9_990_000)]);
        assert_eq!(cursors.since("r", activations, now), Some(9_990_000 - FIRST_LEEWAY_S), "a whitelist that grew");
        assert_eq!(cursors.since("r", activations, now + 3 * BACKFILL_S), Some(now + 2 * BACKFILL_S - OVERLAP_S));
        cursors.moved(&[cursor("r", &activations.id, 9_999_000)]);
        assert_eq!(cursors.since("r", activations, now), Some(9_999_000 - OVERLAP_S));
        assert_eq!(cursors.since("r", activations, 9_000_000), Some(9_000_000 - OVERLAP_S), "our clock was ahead");
        assert_eq!(cursors.since("s", activations, now), Some(9_990_000 - FIRST_LEEWAY_S), "another relay has its own");
        let fall_back = |to_s: u64| cursors.fall_back(to_s, &[], &[], now);
        assert_eq!(fall_back(9_999_500), None, "it is asked for anyway");
        assert_eq!((fall_back(9_995_000), fall_back(9_995_000)), (Some(Vec::new()), None));
        assert_eq!(cursors.since("r", activations, now), Some(9_995_000 - OVERLAP_S));
        assert_eq!(fall_back(9_990_100), Some(Vec::new()));
        assert_eq!(cursors.since("r", activations, now), Some(9_990_000 - FIRST_LEEWAY_S), "what was said before it listened is not its");
        assert_eq!(cursors.since("s", activations, now), Some(9_990_000 - FIRST_LEEWAY_S), "when it first listened stays");
    }

    #[test]
    fn when_the_daemon_first_listened_is_taken_back_once_the_clock_is_right() {
        let all = of(&whitelist(&["a"]), &[31_933], &BTreeSet::new(), None);
        let (cursors, ahead, now) = (Cursors::default(), 10_000_000, 9_000_000);
        cursors.moved(&[cursor("", FIRST, ahead)]);
        assert_eq!(cursors.first_due(10_000_000), None);
        let due = cursors.first_due(now).unwrap();
        assert_eq!(due, cursor("", FIRST, 9_000_000));
        cursors.moved(&[due, cursor("r", &all[1].id, 9_100_000)]);
        assert_eq!(cursors.first_due(now), None);
        let later = 10_000_100;
        assert_eq!(cursors.since("r", &all[1], later), Some(9_100_000 - OVERLAP_S), "though the time it had written first has come");
    }

    #[test]
    fn what_was_left_out_is_asked_for_also_where_nothing_was_whole_yet() {
        let all = of(&whitelist(&["a"]), &[31_933], &BTreeSet::new(), None);
        let [definitions, activations] = all.as_slice() else { panic!("{all:?}") };
        let (cursors, now) = (Cursors::default(), 10_000_000);
        cursors.moved(&[cursor("", FIRST, 1_000)]);
        let relays = ["r", "s"].map(str::to_owned);
        let fall_back = |to_s: u64| cursors.fall_back(to_s, &relays, &all, now);
        let day = now - BACKFILL_S;
        let new = |relay: &str| cursor(relay, &activations.id, i64::try_from(day).unwrap());
        assert_eq!(fall_back(now - 60), Some(vec![new("r"), new("s")]), "no later than what was asked for");
        assert_eq!(fall_back(now - 60), None);
        let later = now + 3 * BACKFILL_S;
        assert_eq!(cursors.since("r", activations, later), Some(day - OVERLAP_S), "however long there is no room");
        assert_eq!(cursors.since("t", activations, later), Some(later - BACKFILL_S - OVERLAP_S), "nobody asked it then");
        assert_eq!(cursors.since("r", definitions, later), None, "all of it");
        assert_eq!(fall_back(day - 60), Some(Vec::new()));
        assert_eq!(cursors.since("s", activations, later), Some(day - 60 - OVERLAP_S));
    }
}
