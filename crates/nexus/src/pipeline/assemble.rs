//! Stage 5: which agent answers, in which session, knowing what.

use super::{Agent, Exit, Pipeline, Settings};
use crate::agent::{Message, Role};
use crate::ledger::agents::history;
use nexus_core::access::{Conversation, Principal, session_label};
use nexus_core::request::{AgentSection, NexusRequest};
use std::sync::Arc;

/// Earlier turns given to an agent.
pub const HISTORY_TURNS_MAX: u32 = 50;
/// Bytes of earlier messages given to an agent.
pub const HISTORY_BYTES_MAX: usize = 64 * 1024;

impl Pipeline {
    pub(super) async fn assemble(
        &self,
        request: &mut NexusRequest,
        settings: &Settings,
        principal: &Principal,
    ) -> Result<(Arc<Agent>, String, Vec<Message>), Exit> {
        let routed = request.access.as_ref();
        let name = routed.and_then(|access| access.agent.clone()).unwrap_or_else(|| settings.default_agent.clone());
        let Some(agent) = settings.agents.get(&name).cloned() else {
            return Err(Exit::Failed(format!("agent `{name}` is not configured; see `agents:` in nex.yaml")));
        };
        let session = label(request, principal);
        // The built-in echo has no memory; everything else is told what was said before.
        let told =
            if agent.harmless { history_of(self, &session, 0).await? } else { history_of(self, &session, HISTORY_TURNS_MAX).await? };
        request.agent = Some(AgentSection {
            agent_id: name,
            session_label: session.clone(),
            parent_turn_id: told.head.clone(),
            run_id: None,
            model: None,
            provider: None,
            history_messages: u32::try_from(told.messages.len()).unwrap_or(u32::MAX),
            history_dropped: told.dropped,
        });
        let messages = told
            .messages
            .into_iter()
            .map(|(role, content)| Message { role: if role == "assistant" { Role::Assistant } else { Role::User }, content });
        Ok((agent, session, messages.collect()))
    }
}

/// The session of a request. A cron job has a lane of its own, named after its label.
fn label(request: &NexusRequest, principal: &Principal) -> String {
    let event = &request.event;
    let cron = event.metadata.get("cron_label").and_then(serde_json::Value::as_str);
    let template = request.access.as_ref().and_then(|access| access.session_key.as_deref());
    let conversation = Conversation {
        channel: &event.channel,
        account: &event.account_id,
        sender_id: cron.unwrap_or(&event.sender_id),
        peer_kind: event.peer_kind,
        peer_id: &event.peer_id,
        thread_id: event.thread_id.as_deref(),
    };
    session_label(principal, &conversation, template)
}

async fn history_of(pipeline: &Pipeline, session: &str, turns: u32) -> Result<crate::ledger::agents::History, Exit> {
    if turns == 0 {
        return Ok(crate::ledger::agents::History::default());
    }
    let session = session.to_owned();
    let read = pipeline.ledgers.agents.readers.read(move |connection| history(connection, &session, turns, HISTORY_BYTES_MAX));
    read.await.map_err(|error| Exit::Failed(crate::error_text::describe(&error)))
}
