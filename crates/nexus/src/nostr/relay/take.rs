//! One relay's events from its gate to the inbox: held back while it sends what it has stored, and handed on once there
//! is room. While it waits for that it looks at nothing else, and no time passes for the machine: a relay isn't late
//! because we are. What goes on meanwhile is in `waiting`.

use super::Relay;
use super::asked::id_of;
use super::held::{Came, Lot, Proof};
use crate::clock;
use crate::nostr::Event;
use crate::nostr::codec::{self, FromRelay};
use crate::nostr::gate::{self, Passed, Refused};
use crate::nostr::inbox::{Handed, bytes_of, count};
use crate::nostr::machine::{Input, PROBE_ID, State};
use crate::nostr::status::View;
use serde_json::value::RawValue;
use tokio::sync::OwnedSemaphorePermit;

impl Relay {
    /// Looks at an event.
    pub(super) async fn event(&mut self, wire: &str, raw: &RawValue) -> Option<Input> {
        let sub = id_of(wire);
        if sub == PROBE_ID {
            return None; // that it answers is all that is wanted
        }
        if self.asked.of_fetch(wire).is_some() {
            return self.event_of_fetch(wire, raw);
        }
        let Some(filter) = self.asked.filter(sub) else { return self.refused(Refused::Unasked, raw.get().len()) };
        let (held, seen) = (&self.held, &self.parts.inner.inbox.seen);
        let is_known = |id: &[u8; 32]| held.has(id) || seen.contains(id);
        let passed = gate::pass(raw, filter, is_known, &mut self.budget, clock::mono_ms());
        let is_answer = self.is_answer(wire);
        let event = match passed {
            Err(refused) => return self.refused(refused, raw.get().len()).or_else(|| self.reaches(wire, raw)),
            Ok(Passed::Known { created_at }) => {
                self.count("known");
                return is_answer.then(|| Input::Event { sub: sub.to_owned(), created_at });
            }
            Ok(Passed::New(event)) => event,
        };
        let created_at = event.created_at.as_secs();
        // What comes late of an earlier question is as good as any, and has its place by its date.
        let came = if is_answer || !self.asked.is_present(wire) { Came::Stored } else { Came::Live };
        self.take(came, event).await;
        // What is new, or comes late, says nothing about what is missing.
        is_answer.then(|| Input::Event { sub: sub.to_owned(), created_at })
    }

    /// Looks at an event of a fetch, which wants it whoever else brought it.
    pub(super) fn event_of_fetch(&mut self, wire: &str, raw: &RawValue) -> Option<Input> {
        let filter = self.asked.of_fetch(wire)?;
        let asked = &self.asked;
        match gate::pass(raw, filter, |id: &[u8; 32]| asked.has(wire, id), &mut self.budget, clock::mono_ms()) {
            Err(refused) => return self.refused(refused, raw.get().len()),
            Ok(Passed::Known { .. }) => self.count("known"),
            Ok(Passed::New(event)) => self.asked.answer(wire, *event),
        }
        None
    }

    /// Whether what comes under this id on the wire now is part of the answer to what was asked last.
    fn is_answer(&self, wire: &str) -> bool {
        self.asked.is_present(wire) && self.machine.is_stored(id_of(wire))
    }

    /// Refuses what is too long to be looked at, but for how far back it shows the relay's answer to reach.
    pub(super) fn too_long(&mut self, text: &str) -> Option<Input> {
        let abused = self.refused(Refused::TooLong, text.len());
        if abused.is_some() || self.machine.state() == State::Live {
            return abused;
        }
        match codec::parse(text) {
            Some(FromRelay::Event { sub, event }) => self.reaches(&sub, event),
            Some(
                FromRelay::Ok { .. }
                | FromRelay::Eose { .. }
                | FromRelay::Closed { .. }
                | FromRelay::Notice { .. }
                | FromRelay::Auth { .. }
                | FromRelay::Other,
            )
            | None => None,
        }
    }

    /// How far back a relay's answer reaches by an event that was refused. A time that wasn't asked for says nothing.
    fn reaches(&self, wire: &str, raw: &RawValue) -> Option<Input> {
        if !self.is_answer(wire) {
            return None;
        }
        let sub = id_of(wire);
        let filter = self.asked.filter(sub)?;
        let created_at = codec::created_at(raw).filter(|at| filter.spans(*at));
        Some(Input::Refused { sub: sub.to_owned(), created_at })
    }

    /// Holds an event back while the relay sends what it has stored; else it goes on its way.
    async fn take(&mut self, came: Came, event: Box<Event>) {
        if !self.machine.is_gathering() {
            self.hand_over(event).await;
            return;
        }
        let mut room = self.room_for(&event);
        if room.is_none() {
            self.release().await;
            room = self.room_for(&event);
        }
        let Some(room) = room else {
            // Other relays hold so much that this one can't sort: better that than to wait for them.
            self.hand_over(event).await;
            return;
        };
        let now_ms = self.now().mono_ms;
        self.held.put(came, event, room, now_ms);
    }

    fn room_for(&self, event: &Event) -> Option<OwnedSemaphorePermit> {
        if self.held.is_full() {
            return None;
        }
        // An error means that there is none just now.
        self.parts.inner.inbox.holding.clone().try_acquire_many_owned(bytes_of(event)).ok()
    }

    /// Hands on what is held back, if the relay has sent all, or is given no more time for it.
    pub(super) async fn release_due(&mut self) {
        let is_late = self.held.late_at_ms().is_some_and(|at| self.now().mono_ms >= at);
        if !self.held.is_empty() && (is_late || !self.machine.is_gathering()) {
            self.release().await;
        }
    }

    /// What is left when it is stopped in the middle is asked for again at the next start: nothing proves it.
    async fn release(&mut self) {
        let Lot { events, proofs } = self.held.take();
        for (event, _room) in events {
            if self.hand_over(event).await == Handed::Nowhere {
                return;
            }
        }
        for (sub, proof) in proofs {
            self.say_whole(sub, proof).await;
        }
    }

    /// Waits until there is room.
    async fn hand_over(&mut self, event: Box<Event>) -> Handed {
        let (door, url) = (self.door.clone(), self.parts.url.clone());
        let handed = self.waiting(door.event(&url, event)).await.unwrap_or(Handed::Nowhere);
        match handed {
            Handed::On => self.shows_more(|view| view.events += 1),
            Handed::Known => self.count("known"),
            Handed::Nowhere => {}
        }
        handed
    }

    /// Says, behind the events that came before, that nothing is missing.
    async fn say_whole(&mut self, sub: String, Proof { until, generation }: Proof) {
        let (door, url) = (self.door.clone(), self.parts.url.clone());
        // False when nothing is taken in any more, and so nothing is proven.
        self.waiting(door.proven(&url, sub, until, generation)).await;
    }

    /// Counts in what is shown; nobody waits for a number.
    fn shows_more(&self, count: impl FnOnce(&mut View)) {
        self.parts.view.send_if_modified(|view| {
            count(view);
            false
        });
    }

    /// Counts what goes no further, of so many bytes; a relay that sends too much of it isn't listened to for a while.
    pub(super) fn refused(&mut self, refused: Refused, bytes: usize) -> Option<Input> {
        self.count(refused.as_str());
        self.shows_more(|view| view.refused += 1);
        self.budget.refuse(bytes, clock::mono_ms());
        self.budget.why_spent().map(|why| Input::Abused(why.to_owned()))
    }

    fn count(&self, result: &'static str) {
        count(&self.parts.inner, &self.parts.url, result);
    }
}
