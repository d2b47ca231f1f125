//! What one connection was asked for: lasting subscriptions with their pages, and fetches, which end with
//! their answer. An event is held against the filter under whose id it comes. Each question has an id of its own on the
//! wire: a relay that is late answers an earlier one of the same subscription, which says nothing about the later one.

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

/// What fetches are about, as part of their ids.
const FETCH: &str = "nexus-fetch";

/// What a relay answered to a fetch.
pub(crate) type Fetched = Result<Vec<Event>, String>;

#[derive(Debug)]
struct Open {
    /// The question's number, part of its id on the wire.
    nth: u64,
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
    /// By subscription, or its pages: the question that was asked last.
    open: HashMap<String, Open>,
    fetches: HashMap<String, Fetch>,
    /// Questions so far, over all connections.
    questions: u64,
}

/// What a question is about, by its id on the wire.
pub(super) fn id_of(wire: &str) -> &str {
    wire.rsplit_once('.').map_or(wire, |(id, _)| id)
}

impl Asked {
    /// Begins a question about a subscription, or its pages; its frame.
    pub(super) fn open(&mut self, id: &str, filter: Filter, generation: u64) -> String {
        self.questions += 1;
        let nth = self.questions;
        let frame = codec::request(&wire(id, nth), &filter);
        self.open.insert(id.to_owned(), Open { nth, filter, generation });
        frame
    }

    /// Ends what is asked about a subscription, or its pages; its id on the wire.
    pub(super) fn close(&mut self, id: &str) -> Option<String> {
        self.open.remove(id).map(|open| wire(id, open.nth))
    }

    /// Whether an id on the wire is that of the question that was asked last, and is still open.
    pub(super) fn is_present(&self, wire_id: &str) -> bool {
        self.open.get(id_of(wire_id)).is_some_and(|open| wire(id_of(wire_id), open.nth) == wire_id)
    }

    pub(super) fn filter(&self, id: &str) -> Option<&Filter> {
        self.open.get(id).map(|open| &open.filter)
    }

    pub(super) fn generation(&self, id: &str) -> Option<u64> {
        self.open.get(id).map(|open| open.generation)
    }

    /// The filter of a fetch.
    pub(super) fn of_fetch(&self, wire_id: &str) -> Option<&Filter> {
        self.fetches.get(wire_id).map(|fetch| &fetch.filter)
    }

    pub(super) fn is_fetching(&self) -> bool {
        !self.fetches.is_empty()
    }

    /// Begins a fetch; its frame, if there is room for one.
    pub(super) fn fetch(&mut self, filter: Filter, answer: oneshot::Sender<Fetched>, until_ms: u64) -> Option<String> {
        if self.fetches.len() >= FETCHES_MAX {
            give_up(answer, "too many questions to it are open");
            return None;
        }
        self.questions += 1;
        let id = wire(FETCH, self.questions);
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
        self.give_up_fetches();
    }

    /// Nothing more comes over the connection.
    pub(super) fn give_up_fetches(&mut self) {
        for (_, fetch) in self.fetches.drain() {
            give_up(fetch.answer, "the connection was lost");
        }
    }
}

/// The id of a question on the wire.
fn wire(id: &str, nth: u64) -> String {
    format!("{id}.{nth}")
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
    use crate::nostr::machine::{Action, Input, Machine, Now, PROBE_ID, State, page_id};
    use crate::nostr::{Keys, Template};
    use proptest::prelude::*;
    use std::collections::{BTreeSet, VecDeque};

    /// The times of what the relay has stored, in Unix seconds.
    const STORED_AT: [u64; 3] = [100, 200, 300];

    fn wire_of(frame: &str) -> String {
        let frame: serde_json::Value = serde_json::from_str(frame).unwrap();
        frame[1].as_str().unwrap().to_owned()
    }

    fn at(mono_ms: u64) -> Now {
        Now { mono_ms, wall_s: 1_000_000 + mono_ms / 1000 }
    }

    /// A machine, and a relay that answers each question in its turn with the newest event that it has, as late as it
    /// likes and whether or not the question was closed.
    struct Late {
        machine: Machine,
        asked: Asked,
        is_connecting: bool,
        /// What the relay has yet to say: the time of an event, or the end.
        says: VecDeque<(String, Option<u64>)>,
        /// What came since all was lost.
        got: BTreeSet<u64>,
    }

    impl Late {
        fn new() -> Self {
            let (machine, asked) = (Machine::new(false, 7, at(0)), Asked::default());
            let mut late = Self { machine, asked, is_connecting: false, says: VecDeque::new(), got: BTreeSet::new() };
            late.step(0, Input::Wanted(vec!["a".to_owned()]));
            late
        }

        fn step(&mut self, now: u64, input: Input) {
            for action in self.machine.step(at(now), input) {
                match action {
                    Action::Connect => self.is_connecting = true,
                    Action::Disconnect(_) => {
                        self.asked.hang_up();
                        self.says.clear();
                    }
                    Action::Ask(id) => self.ask(&id, Filter::default()),
                    Action::AskPage { sub, until } => self.ask(&page_id(&sub), Filter { until: Some(until), ..Filter::default() }),
                    Action::Probe => self.ask(PROBE_ID, Filter { until: Some(0), ..Filter::default() }),
                    Action::Close(id) => assert!(self.asked.close(&id).is_some(), "{id} is not open"),
                    Action::Proven { .. } => assert_eq!(self.got, BTreeSet::from(STORED_AT), "something is missing"),
                    Action::Authenticate { .. } | Action::Settled | Action::Note(_) | Action::Hole(_) => {}
                }
            }
        }

        fn ask(&mut self, id: &str, filter: Filter) {
            let until = filter.until.unwrap_or(u64::MAX);
            let wire = wire_of(&self.asked.open(id, filter, 0));
            let newest = STORED_AT.into_iter().filter(|created_at| *created_at <= until).max();
            self.says.extend(newest.map(|created_at| (wire.clone(), Some(created_at))));
            self.says.push_back((wire, None));
        }

        /// Hears the next thing that the relay says, as `event` and `frame` do.
        fn hear(&mut self, now: u64) {
            let Some((wire, said)) = self.says.pop_front() else { return };
            self.got.extend(said);
            if !self.asked.is_present(&wire) {
                return;
            }
            let sub = id_of(&wire).to_owned();
            match said {
                Some(created_at) if self.machine.is_stored(&sub) => self.step(now, Input::Event { sub, created_at }),
                Some(_) => {}
                None => self.step(now, Input::Eose(sub)),
            }
        }

        fn go_on(&mut self, now: u64) {
            let is_connecting = std::mem::take(&mut self.is_connecting);
            self.step(now, if is_connecting { Input::Opened } else { Input::Tick });
        }
    }

    proptest! {
        #[test]
        fn an_old_end_proves_nothing(script in prop::collection::vec((prop_oneof![Just(0_u64), 0..20_000_u64], 0_u8..8), 0..60)) {
            let (mut late, mut now) = (Late::new(), 0);
            for (passed, what) in script {
                now += passed;
                match what {
                    0 => {
                        late.got.clear();
                        late.step(now, Input::Refresh);
                    }
                    1..4 => late.hear(now),
                    _ => late.go_on(now),
                }
            }
            // From here on it says at once what it has to say.
            for _ in 0..100 {
                while !late.says.is_empty() {
                    late.hear(now);
                }
                if late.machine.state() == State::Live {
                    break;
                }
                now = late.machine.deadline().map_or(now, |deadline| deadline.max(now));
                late.go_on(now);
            }
            prop_assert_eq!(late.machine.state(), State::Live);
            prop_assert_eq!(late.got, BTreeSet::from(STORED_AT));
        }
    }

    #[test]
    fn only_what_was_asked_last_is_present() {
        let mut asked = Asked::default();
        let first = wire_of(&asked.open("a-p", Filter::default(), 1));
        assert_eq!((id_of(&first), asked.is_present(&first), asked.is_present("a-p")), ("a-p", true, false));
        assert_eq!((asked.close("a-p"), asked.close("a-p"), asked.is_present(&first)), (Some(first.clone()), None, false));
        let second = wire_of(&asked.open("a-p", Filter::default(), 1));
        assert_eq!((asked.is_present(&first), asked.is_present(&second)), (false, true));
        asked.hang_up();
        let third = wire_of(&asked.open("a-p", Filter::default(), 1));
        assert_eq!((asked.is_present(&second), asked.is_present(&third)), (false, true), "over another connection neither");
        assert!(wire(&page_id("nexus-definitions-01234567"), u64::MAX).len() <= 64, "as long as relays take them");
    }

    #[test]
    fn an_event_answers_a_fetch_once_and_too_much_is_left_out() {
        const CONTENT_BYTES: usize = 60_000;
        const MANY: usize = 2 * FETCH_BYTES_MAX / CONTENT_BYTES;
        let keys = Keys::generate();
        let event = |content: String| Template { kind: 1, content, tags: Vec::new(), created_at: None }.sign(&keys, 7).unwrap();
        let (answer, mut answered) = oneshot::channel();
        let (mut asked, id) = (Asked::default(), "nexus-fetch.1");
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
