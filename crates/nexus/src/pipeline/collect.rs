//! Several messages of a session that are answered in one turn, those that joined it later among them: which may be, and
//! what they say together.

use super::reach::{called, others_may_speak};
use super::{Prepared, router};
use crate::agent::plain;
use crate::routes::TIMER_CHANNEL;
use nexus_core::request::NexusRequest;
use serde_json::Value;

/// Stands between two messages that are answered together.
const BETWEEN: &str = "\n\n";

impl Prepared {
    /// Whether it may be answered in the turn of `other`: by the same agent, allowed the same, in the same place.
    /// What one sender may not have done, nobody gets done by writing beside one who may; and what is said in
    /// one place is answered there and nowhere else, though a session has several.
    pub(super) fn may_share(&self, other: &Self) -> bool {
        let permissions = |prepared: &Self| prepared.request.access.as_ref().map(|access| access.permissions.clone());
        let goes = |prepared: &Self| {
            let to = &prepared.request.delivery;
            [&prepared.request.adapter, &to.channel, &to.account_id, &to.target].map(String::clone)
        };
        // What an earlier daemon was told to stop takes nothing new with it, and is not begun again by it.
        let is_as_told = self.is_to_end == other.is_to_end;
        let is_equal = self.agent.name == other.agent.name && self.is_system() == other.is_system() && is_as_told;
        // Slots of several schedules come from one place and may be answered in several.
        let is_one_place = self.conversation() == other.conversation() && goes(self) == goes(other);
        is_equal && is_one_place && permissions(self) == permissions(other)
    }

    /// Where it was said; that of its fellows as well.
    pub(super) fn conversation(&self) -> String {
        router::conversation_of(&self.adapter, &self.request.event)
    }

    /// All requests of the turn, oldest first.
    pub(super) fn requests(&self) -> impl Iterator<Item = &NexusRequest> {
        let joined = self.joined.iter().map(|joined| &joined.request);
        self.fellows.iter().map(|fellow| &fellow.request).chain(std::iter::once(&self.request)).chain(joined)
    }

    /// Those that share the turn of this one.
    pub(super) fn fellow_seqs(&self) -> Vec<i64> {
        self.fellows.iter().chain(&self.joined).map(|fellow| fellow.request.event_seq).collect()
    }

    /// The text of the turn's messages, each with its sender where there are several.
    pub(super) fn said(&self) -> String {
        let is_talk = self.is_talk();
        let text = |request: &NexusRequest| {
            let content = content(request);
            if is_talk { plain::named(&called(request), content) } else { content.to_owned() }
        };
        self.requests().map(text).collect::<Vec<_>>().join(BETWEEN)
    }

    /// The same, behind what automations and plugins have to say about them.
    pub(super) fn told(&self) -> String {
        self.with_added(self.said())
    }

    /// The same for an agent that is told nothing but text: each message with its sender wherever others may speak, and with
    /// what it is where it has no words.
    pub(super) fn told_as_text(&self) -> String {
        self.as_text(self.is_talk())
    }

    /// The same, told while the turn of `lead` runs: with its sender where that is somebody else, too.
    pub(super) fn told_beside(&self, lead: &Self) -> String {
        self.as_text(self.is_talk() || self.request.event.sender_id != lead.request.event.sender_id)
    }

    fn as_text(&self, is_talk: bool) -> String {
        let text = |request: &NexusRequest| {
            let words = if content(request).trim().is_empty() { wordless(request) } else { content(request).to_owned() };
            if is_talk || others_may_speak(request) { plain::named(&called(request), &words) } else { words }
        };
        self.with_added(self.requests().map(text).collect::<Vec<_>>().join(BETWEEN))
    }

    fn is_talk(&self) -> bool {
        let sender = &self.request.event.sender_id;
        self.requests().any(|request| request.event.sender_id != *sender)
    }

    fn with_added(&self, said: String) -> String {
        let added = self.requests().flat_map(|request| {
            let enrichment = request.triggers.as_ref().and_then(|triggers| triggers.enrichment.clone());
            let asked = asked(request).filter(|_| !request.event.content.is_empty()).map(str::to_owned);
            [enrichment, asked, request.context.clone()].into_iter().flatten()
        });
        added.chain([said]).collect::<Vec<_>>().join(BETWEEN)
    }

    /// The attachments of the turn's messages.
    pub(super) fn attachments(&self) -> Value {
        if self.fellows.is_empty() && self.joined.is_empty() {
            let own = &self.request.event.attachments;
            return if own.is_null() { Value::Array(Vec::new()) } else { own.clone() };
        }
        self.requests().filter_map(|request| request.event.attachments.as_array()).flatten().cloned().collect()
    }

    /// Notes in each request of the turn which others it was answered with.
    pub(super) fn name_fellows(&mut self) {
        if self.fellows.is_empty() && self.joined.is_empty() {
            return;
        }
        let ids: Vec<String> = self.requests().map(|request| request.request_id.clone()).collect();
        let others = self.fellows.iter_mut().chain(&mut self.joined).map(|fellow| &mut fellow.request);
        for request in others.chain(std::iter::once(&mut self.request)) {
            if let Some(agent) = &mut request.agent {
                agent.fellows = ids.iter().filter(|id| **id != request.request_id).cloned().collect();
            }
        }
    }
}

/// An event without a text says what the automation asks that fired at it.
fn content(request: &NexusRequest) -> &str {
    let own = request.event.content.as_str();
    if own.is_empty() { asked(request).unwrap_or_default() } else { own }
}

/// What an event is that says nothing; a slot of the timer by its label.
fn wordless(request: &NexusRequest) -> String {
    let event = &request.event;
    let label = event.metadata.get("cron_label").and_then(Value::as_str).filter(|_| event.channel == TIMER_CHANNEL);
    match label {
        Some(label) => plain::wordless(&format!("{} {label}", event.content_type)),
        None => plain::wordless(&event.content_type),
    }
}

/// What automations that fired ask the agent.
fn asked(request: &NexusRequest) -> Option<&str> {
    request.triggers.as_ref().and_then(|triggers| triggers.context.as_deref())
}
