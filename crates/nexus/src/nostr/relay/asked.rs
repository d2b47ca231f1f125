//! What one connection was asked for: lasting subscriptions with their pages, and fetches, which end with
//! their answer. An event is held against the filter under whose id it comes.

use crate::nostr::Event;
use crate::nostr::codec;
use crate::nostr::fetch::EVENTS_OF_FETCH_MAX;
use crate::nostr::filter::Filter;
use std::collections::HashMap;
use tokio::sync::oneshot;

/// Fetches of one relay that may be under way.
const FETCHES_MAX: usize = 16;

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
    events: Vec<Event>,
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
        self.fetches.insert(id, Fetch { filter, events: Vec::new(), answer, until_ms });
        Some(frame)
    }

    /// Takes in an event of a fetch.
    pub(super) fn answer(&mut self, id: &str, event: Event) {
        if let Some(fetch) = self.fetches.get_mut(id)
            && fetch.events.len() < EVENTS_OF_FETCH_MAX
        {
            fetch.events.push(event);
        }
    }

    /// A fetch came to its end, or was refused. False when there is none of that id.
    pub(super) fn fetched(&mut self, id: &str, refused: Option<&str>) -> bool {
        let Some(Fetch { events, answer, .. }) = self.fetches.remove(id) else { return false };
        match refused {
            // Some relays close a question that they have answered.
            Some(why) if events.is_empty() && !why.is_empty() => give_up(answer, why),
            Some(_) | None => send(answer, Ok(events)),
        }
        true
    }

    /// Ends the fetches whose time is up; their ids.
    pub(super) fn late(&mut self, now_ms: u64) -> Vec<String> {
        let late: Vec<String> = self.fetches.iter().filter(|(_, fetch)| fetch.until_ms <= now_ms).map(|(id, _)| id.clone()).collect();
        for id in &late {
            if let Some(Fetch { events, answer, .. }) = self.fetches.remove(id) {
                if events.is_empty() { give_up(answer, "it did not answer in time") } else { send(answer, Ok(events)) }
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
