//! What one connection was asked for: lasting subscriptions with their pages, and fetches, which end with
//! their answer. An event is held against the filter under whose id it comes.

use crate::nostr::Event;
use crate::nostr::codec;
use crate::nostr::fetch::EVENTS_OF_FETCH_MAX;
use crate::nostr::filter::Filter;
use crate::nostr::inbox::bytes_of;
use std::collections::HashMap;
use tokio::sync::oneshot;

/// Fetches of one relay that may be under way.
const FETCHES_MAX: usize = 16;
/// Bytes of the events that answer one fetch; what is more is left out.
const FETCH_BYTES_MAX: usize = 4 * 1024 * 1024;

/// What a relay answered to a fetch.
pub(crate) type Fetched = Result<Vec<Event>, String>;

#[derive(Debug)]
struct Open {
    filter: Filter,
    /// Of the taking in under which it was asked for.
    generation: u64,
}

#[derive(Debug)]
struct Fetch {
    filter: Filter,
    /// By id: a relay may send one as often as it likes.
    events: HashMap<[u8; 32], Event>,
    bytes: usize,
    answer: oneshot::Sender<Fetched>,
    until_ms: u64,
}

#[derive(Debug, Default)]
pub(super) struct Asked {
    open: HashMap<String, Open>,
    fetches: HashMap<String, Fetch>,
    fetched: u64,
}

impl Asked {
    pub(super) fn open(&mut self, id: &str, filter: Filter, generation: u64) {
        self.open.insert(id.to_owned(), Open { filter, generation });
    }

    pub(super) fn close(&mut self, id: &str) {
        self.open.remove(id);
    }

    pub(super) fn filter(&self, id: &str) -> Option<&Filter> {
        self.open.get(id).map(|open| &open.filter)
    }

    pub(super) fn generation(&self, id: &str) -> Option<u64> {
        self.open.get(id).map(|open| open.generation)
    }

    /// The filter of an id, and whether that is a fetch.
    pub(super) fn of(&self, id: &str) -> Option<(&Filter, bool)> {
        let lasting = self.open.get(id).map(|open| (&open.filter, false));
        lasting.or_else(|| self.fetches.get(id).map(|fetch| (&fetch.filter, true)))
    }

    /// Begins a fetch; its frame, if there is room for one.
    pub(super) fn fetch(&mut self, filter: Filter, answer: oneshot::Sender<Fetched>, until_ms: u64) -> Option<String> {
        if self.fetches.len() >= FETCHES_MAX {
            give_up(answer, "too many questions to it are open");
            return None;
        }
        self.fetched += 1;
        let id = format!("nexus-fetch-{}", self.fetched);
        let frame = codec::request(&id, &filter);
        self.fetches.insert(id, Fetch { filter, events: HashMap::new(), bytes: 0, answer, until_ms });
        Some(frame)
    }

    /// Whether a fetch has this event.
    pub(super) fn has(&self, id: &str, event: &[u8; 32]) -> bool {
        self.fetches.get(id).is_some_and(|fetch| fetch.events.contains_key(event))
    }

    /// Takes in an event of a fetch.
    pub(super) fn answer(&mut self, id: &str, event: Event) {
        let bytes = usize::try_from(bytes_of(&event)).unwrap_or(usize::MAX);
        if let Some(fetch) = self.fetches.get_mut(id)
            && fetch.events.len() < EVENTS_OF_FETCH_MAX
            && fetch.bytes.saturating_add(bytes) <= FETCH_BYTES_MAX
        {
            fetch.bytes += bytes;
            fetch.events.insert(event.id.to_bytes(), event);
        }
    }

    /// A fetch came to its end, or was refused. False when there is none of that id.
    pub(super) fn fetched(&mut self, id: &str, refused: Option<&str>) -> bool {
        let Some(Fetch { events, answer, .. }) = self.fetches.remove(id) else { return false };
        match refused {
            // Some relays close a question that they have answered.
            Some(why) if events.is_empty() && !why.is_empty() => give_up(answer, why),
            Some(_) | None => send(answer, Ok(events.into_values().collect())),
        }
        true
    }

    /// Ends the fetches whose time is up; their ids.
    pub(super) fn late(&mut self, now_ms: u64) -> Vec<String> {
        let late: Vec<String> = self.fetches.iter().filter(|(_, fetch)| fetch.until_ms <= now_ms).map(|(id, _)| id.clone()).collect();
        for id in &late {
            if let Some(Fetch { events, answer, .. }) = self.fetches.remove(id) {
                if events.is_empty() {
                    give_up(answer, "it did not answer in time");
                } else {
                    send(answer, Ok(events.into_values().collect()));
                }
            }
        }
        late
    }

    pub(super) fn deadline(&self) -> Option<u64> {
        self.fetches.values().map(|fetch| fetch.until_ms).min()
    }

    /// The connection is gone.
    pub(super) fn hang_up(&mut self) {
        self.open.clear();
        for (_, fetch) in self.fetches.drain() {
            give_up(fetch.answer, "the connection was lost");
        }
    }
}

pub(super) fn give_up(answer: oneshot::Sender<Fetched>, why: &str) {
    send(answer, Err(why.to_owned()));
}

fn send(answer: oneshot::Sender<Fetched>, fetched: Fetched) {
    // An error means that whoever asked has gone.
    answer.send(fetched).ok();
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::nostr::{Keys, Template};

    #[test]
    fn an_event_answers_a_fetch_once_and_too_much_is_left_out() {
        const CONTENT_BYTES: usize = 60_000;
        const MANY: usize = 2 * FETCH_BYTES_MAX / CONTENT_BYTES;
        let keys = Keys::generate();
        let event = |content: String| Template { kind: 1, content, tags: Vec::new(), created_at: None }.sign(&keys, 7).unwrap();
        let (answer, mut answered) = oneshot::channel();
        let (mut asked, id) = (Asked::default(), "nexus-fetch-1");
        assert!(asked.fetch(Filter::default(), answer, 10).unwrap().contains(id));
        let one = event("one".to_owned());
        assert!(!asked.has(id, one.id.as_bytes()));
        for _ in 0..MANY {
            asked.answer(id, one.clone());
        }
        assert!(asked.has(id, one.id.as_bytes()) && !asked.has("another", one.id.as_bytes()));
        assert_eq!(asked.fetches[id].events.len(), 1, "a relay may send it as often as it likes");
        for n in 0..MANY {
            asked.answer(id, event(format!("{n}{}", "x".repeat(CONTENT_BYTES))));
        }
        assert!(asked.fetched(id, None) && !asked.fetched(id, None));
        let all = answered.try_recv().unwrap().unwrap();
        let bytes: usize = all.iter().map(|event| event.content.len()).sum();
        assert!(bytes <= FETCH_BYTES_MAX && bytes > FETCH_BYTES_MAX / 2, "{bytes}");
    }
}
