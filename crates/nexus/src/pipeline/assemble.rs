//! Stage 5: which agent answers, in which session, knowing what.

use super::{Agent, Exit, Pipeline, Prepared, Settings};
use crate::agent::project::ProjectTurn;
use crate::agent::{Message, Role};
use crate::ledger::agents::{Said, history};
use crate::project::STOP_KIND;
use crate::routes::TIMER_CHANNEL;
use nexus_core::access::{Conversation, Principal, session_label};
use nexus_core::config::{PROJECT, PrincipalType, QueueMode};
use nexus_core::request::{AgentSection, NexusRequest};
use rusqlite::Connection;
use std::sync::Arc;

/// Earlier turns given to an agent.
pub const HISTORY_TURNS_MAX: u32 = 50;
/// Bytes of earlier messages given to an agent.
pub const HISTORY_BYTES_MAX: usize = 64 * 1024;
/// Earlier turns given to an agent that has `context_tokens`, whose limit is the other one.
pub const CONTEXT_TURNS_MAX: u32 = 1000;

impl Pipeline {
    pub(super) fn assemble(
        &self,
        request: &mut NexusRequest,
        settings: &Settings,
        principal: &Principal,
    ) -> Result<(Arc<Agent>, String), Exit> {
        if let Some(asked) = ProjectTurn::of(request) {
            return self.assemble_project(request, settings, principal.type_, &asked);
        }
        let overridden = request.triggers.as_ref().and_then(|triggers| triggers.routing_override.clone());
        let routed = || request.access.as_ref().and_then(|access| access.agent.clone());
        let name = overridden.or_else(routed).unwrap_or_else(|| settings.default_agent.clone());
        let Some(agent) = settings.agents.get(&name).cloned() else {
            return Err(Exit::Failed(format!("agent `{name}` is not configured; see `agents:` in nex.yaml")));
        };
        let session = label(request, principal);
        self.ask_breaker(request, principal.type_, &session)?;
        request.agent = Some(AgentSection::new(name, session.clone()));
        Ok((agent, session))
    }

    /// An event of a project goes to that, whatever a policy says of its author: one session per project.
    fn assemble_project(
        &self,
        request: &mut NexusRequest,
        settings: &Settings,
        principal: PrincipalType,
        asked: &ProjectTurn,
    ) -> Result<(Arc<Agent>, String), Exit> {
        let Some(agent) = settings.agents.get(PROJECT).cloned() else {
            return Err(Exit::Failed("there is no agent for projects: a defect of the daemon".into()));
        };
        let session = asked.session();
        self.ask_breaker(request, principal, &session)?;
        if let (STOP_KIND, Some(access)) = (asked.event.kind, &mut request.access) {
            access.queue_mode = QueueMode::Interrupt; // it ends what is going on
        }
        request.agent = Some(AgentSection::new(PROJECT.to_owned(), session.clone()));
        Ok((agent, session))
    }

    /// What was said in this session so far. Read when the session is this request's own and the
    /// turn before is in the ledger, not when the request was prepared.
    /// While it can't be read the session is held: a turn that began without the one before would answer as if
    /// that had never been. `None` when the daemon stops.
    pub(super) async fn remember(&self, prepared: &mut Prepared) -> Option<Vec<Message>> {
        if prepared.agent.harmless {
            return Some(Vec::new()); // the built-in echo has no memory
        }
        let (session, formerly) = (prepared.session.clone(), prepared.formerly.clone());
        let (turns_max, bytes_max) = match prepared.agent.prompt_bytes_max {
            None => (HISTORY_TURNS_MAX, HISTORY_BYTES_MAX),
            Some(all) => {
                let memory = &prepared.agent.memory;
                let notes = if memory.matches == 0 { 0 } else { usize::try_from(memory.max_bytes).unwrap_or(usize::MAX) };
                let fixed = prepared.agent.runner.prompt_bytes().await + prepared.told_as_text().len();
                (CONTEXT_TURNS_MAX, all.saturating_sub(fixed).saturating_sub(notes))
            }
        };
        let reach = prepared.reach();
        let read = move |connection: &Connection| history(connection, &session, formerly.as_deref(), &reach, turns_max, bytes_max);
        let told = self.ledgers.agents.readers.read_until_done(read, &self.abandon).await?;
        if let Some(agent) = &mut prepared.request.agent {
            agent.parent_turn_id.clone_from(&told.head);
            agent.history_messages = u32::try_from(told.messages.len()).unwrap_or(u32::MAX);
            agent.history_dropped = told.dropped;
            agent.history_withheld = told.withheld;
        }
        let message =
            |Said { role, content, name }| Message { role: if role == "assistant" { Role::Assistant } else { Role::User }, content, name };
        Some(told.messages.into_iter().map(message).collect())
    }
}

/// The label that the session of a known sender's request would have if the sender were not known, where
/// that is another one.
pub(super) fn formerly(request: &NexusRequest, session: &str) -> Option<String> {
    request.principal.as_ref()?.entity_id.as_ref()?;
    let type_ = PrincipalType::Unknown;
    let stranger = Principal { type_, entity_id: None, name: None, relationship: None, tags: Vec::new(), identifiers: Vec::new() };
    Some(label(request, &stranger)).filter(|label| label != session)
}

/// The session of a request. A cron job has a lane of its own, named after its label, and so has what an automation
/// makes of an event of the timer. A project has one, whoever speaks.
pub(super) fn label(request: &NexusRequest, principal: &Principal) -> String {
    if let Some(asked) = ProjectTurn::of(request) {
        return asked.session();
    }
    let event = &request.event;
    let fired = request.triggers.as_ref().and_then(|triggers| triggers.fired_by.as_deref()).filter(|_| event.channel == TIMER_CHANNEL);
    // No label of a job has an `@`.
    let fired = fired.map(|automation| format!("automation@{automation}"));
    let cron = event.metadata.get("cron_label").and_then(serde_json::Value::as_str);
    let template = request.access.as_ref().and_then(|access| access.session_key.as_deref()).filter(|_| fired.is_none());
    let conversation = Conversation {
        channel: &event.channel,
        account: &event.account_id,
        sender_id: fired.as_deref().or(cron).unwrap_or(&event.sender_id),
        peer_kind: event.peer_kind,
        peer_id: &event.peer_id,
        thread_id: event.thread_id.as_deref(),
    };
    session_label(principal, &conversation, template)
}
