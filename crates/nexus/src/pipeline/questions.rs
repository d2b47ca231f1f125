//! What an agent asks the owner while it runs: put to them as a delivery, answered by an event of
//! theirs that stage 4 takes out. Decides nothing about permissions, and waits for no answer.

use super::outbox::Message;
use super::run::Seen;
use super::{Agent, Exit, Pipeline, Prepared};
use crate::access::Given;
use crate::agent::questions::{self, Answer};
use crate::agent::{Question, Runner};
use crate::error_text::describe;
use crate::ledger::events::newest_direct;
use crate::replies::Part;
use crate::routes::{CLI_CHANNEL, Place, Route};
use nexus_core::config::PrincipalType;
use nexus_core::event::PeerKind;
use nexus_core::request::{NexusRequest, TriggersSection};

/// How long the word that a question isn't open may wait to be delivered.
const NO_SUCH_QUESTION_TTL_MS: u64 = 600_000;
/// Characters of a name that the owner is told.
const ASKER_CHARS_MAX: usize = 100;

impl Pipeline {
    /// In stage 4: an answer of the owner ends here. Also notes where the owner can be asked.
    pub(super) async fn take_answer(&self, request: &mut NexusRequest, adapter: &str) -> Result<(), Exit> {
        if !is_owner(request) {
            return Ok(());
        }
        let place = Place { adapter: adapter.to_owned(), target: request.delivery.clone() };
        // What others want of an agent is nothing for a group to read.
        let is_private = request.event.peer_kind == PeerKind::Dm;
        if is_private && adapter != CLI_CHANNEL && self.speaking_route(adapter).is_some() {
            self.questions.owner_is_at(place.clone());
        }
        let Some((code, answer)) = questions::read(&request.event.content) else { return Ok(()) };
        let mut by = format!("permission {code}");
        if !self.questions.answer(&code, answer) {
            by.push_str(": no such question");
            let text = format!("There is no such question {code}: it was answered, its time was up, or the run that asked it is over.");
            // Keys of plugins have one part more.
            let key = format!("{}:no-such-question", request.request_id);
            self.say_aside(request, &place, &key, &text, NO_SUCH_QUESTION_TTL_MS).await;
        }
        request.triggers = Some(TriggersSection { handled: true, handled_by: Some(by.clone()), ..TriggersSection::default() });
        Err(Exit::Handled { by })
    }

    /// Puts a running agent's question to the owner: where they asked themselves, else where they were
    /// heard last. One that can't be put is answered as such. It comes behind what the agent said before it: an answer
    /// that is streamed to the same place would keep it waiting for its own answer.
    pub(super) async fn ask_owner(&self, prepared: &Prepared, run_id: &str, question: Question, seen: &mut Seen) {
        let request = &prepared.request;
        let place = if is_owner(request) {
            Some(Place { adapter: request.adapter.clone(), target: request.delivery.clone() })
        } else {
            self.owner_place().await
        };
        let asked = match &place {
            Some(place) => {
                if place.is_beside(&request.delivery) {
                    self.part(prepared, run_id, &seen.text, &mut seen.outlet).await;
                }
                self.put(prepared, run_id, place, &question).await
            }
            None => false,
        };
        if !asked {
            tracing::warn!(run_id, agent = prepared.agent.name, wants = question.wants, "the owner could not be asked");
            self.questions.answer(&question.code, Answer::NotAsked);
        }
    }

    /// Where the owner was heard last and alone, by what they said since the start or else by the ledger.
    async fn owner_place(&self) -> Option<Place> {
        if let Some(place) = self.questions.owner_place() {
            return Some(place);
        }
        let (settings, routes) = (self.settings.load_full(), self.routes.clone());
        let is_wanted = move |adapter: &str, channel: &str, sender_id: &str| {
            let is_owner = adapter != CLI_CHANNEL && Given::of(&settings.access, adapter, channel, sender_id) == Given::Owner;
            is_owner && routes.get(adapter).is_some()
        };
        let heard = match self.ledgers.events.readers.read(move |connection| newest_direct(connection, is_wanted)).await {
            Ok(heard) => heard,
            Err(error) => {
                tracing::warn!(error = %describe(&error), "where the owner was heard last could not be read");
                return None;
            }
        };
        for event in heard {
            // Right after a start an adapter may not have been asked yet what it can.
            let route = self.routes.settled(&event.adapter).await;
            if route.is_some_and(|route| route.sender.is_some()) {
                let request = event.into_request(String::new(), 0);
                return Some(self.questions.owner_was_at(Place { adapter: request.adapter, target: request.delivery }));
            }
        }
        None
    }

    async fn put(&self, prepared: &Prepared, run_id: &str, place: &Place, question: &Question) -> bool {
        let (request, Question { code, wants, timeout_ms }) = (&prepared.request, question);
        let whom = if is_owner(request) { String::new() } else { format!(", working for {},", asker(request)) };
        let (name, seconds) = (&prepared.agent.name, timeout_ms.div_ceil(1000));
        let text = format!("Agent {name}{whom} wants {wants}. Answer `yes {code}` or `no {code}` within {seconds} s.");
        let said = self.say_aside(request, place, &format!("{run_id}:ask:{code}"), &text, *timeout_ms).await;
        if said {
            // Its time runs, and another run may be speaking there for longer than that.
            self.outbox.part(&place.target);
        }
        if said && place.adapter == CLI_CHANNEL {
            self.replies.tell(&request.event.event_id, &Part::Question { text });
        }
        said
    }

    /// Says something that is no answer; false when it can't be said there or could not be written.
    async fn say_aside(&self, request: &NexusRequest, place: &Place, key: &str, text: &str, ttl_ms: u64) -> bool {
        let Some(route) = self.speaking_route(&place.adapter) else { return false };
        let (request_id, event_seq) = (request.request_id.as_str(), request.event_seq);
        let pieces = Message { key, request_id, event_seq, place, text, ttl_ms }.pieces(&route);
        match self.outbox.say(key.to_owned(), pieces, self.admitted.clone()).await {
            Ok(_) => true,
            Err(error) => {
                tracing::warn!(request_id, error = %describe(&error), "a word beside the answer could not be written");
                false
            }
        }
    }

    fn speaking_route(&self, adapter: &str) -> Option<Route> {
        self.routes.get(adapter).filter(|route| route.sender.is_some())
    }

    /// Whether what comes behind this request in its conversation must be looked at while it waits, since it may be an
    /// answer: the owner can be asked at any moment, by an agent that works for somebody else as well.
    pub(super) fn may_be_asked(&self, prepared: &Prepared) -> bool {
        let can_ask = || self.questions.are_open() || self.settings.load().agents.values().any(|agent| asks(agent));
        is_owner(&prepared.request) && can_ask()
    }
}

/// Whether it has questions for the owner.
fn asks(agent: &Agent) -> bool {
    match agent.runner {
        Runner::Acp(_) => true,
        Runner::Echo | Runner::Command(_) | Runner::Llm(_) | Runner::Project(_) => false,
    }
}

fn is_owner(request: &NexusRequest) -> bool {
    request.principal.as_ref().is_some_and(|principal| principal.type_ == PrincipalType::Owner)
}

/// Who the owner is told that the agent works for. The name that a stranger gives himself may be anybody's.
fn asker(request: &NexusRequest) -> String {
    let event = &request.event;
    let known = request.principal.as_ref().filter(|principal| principal.entity_id.is_some());
    let name = known.and_then(|principal| principal.name.as_deref()).unwrap_or(&event.sender_id);
    let name: String = name.chars().filter(|c| !c.is_control()).take(ASKER_CHARS_MAX).collect();
    format!("{name} on {}", event.channel)
}
