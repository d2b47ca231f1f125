//! What an agent is told: of the message that it is to answer, and of one that reaches it meanwhile. Decides nothing.

use super::{Pipeline, Prepared};
use crate::agent::project::ProjectTurn;
use crate::agent::{Memory, Message, Sender, Steer, Turn};
use nexus_core::request::NexusRequest;
use serde_json::{Value, json};
use tokio::sync::oneshot;

impl Pipeline {
    pub(super) fn turn(&self, prepared: &Prepared, run_id: &str, history: Vec<Message>, memory: Vec<Memory>) -> Turn {
        let request = &prepared.request;
        Turn {
            run_id: run_id.to_owned(),
            session_label: prepared.session.clone(),
            agent: prepared.agent.name.clone(),
            content: prepared.told(),
            text: prepared.told_as_text(),
            attachments: prepared.attachments(),
            sender: sender(request),
            channel: request.event.channel.clone(),
            capabilities: self.capabilities(prepared),
            parent_turn_id: request.agent.as_ref().and_then(|agent| agent.parent_turn_id.clone()),
            history,
            memory,
            permissions: request.access.as_ref().map_or(Value::Null, |access| json!(access.permissions)),
            allowance: None,
            deadline: None,
            instructions: None,
            remembers: prepared.remembers(),
            project: if prepared.agent.is_for_projects() { ProjectTurn::of(request) } else { None },
        }
    }

    /// Of a message for the turn of `lead`, which is allowed the same. `joined` tells its agent whether it shares the run.
    pub(super) fn message(&self, lead: &Prepared, given: &Prepared, joined: oneshot::Receiver<bool>) -> Steer {
        Steer {
            message_id: given.request.request_id.clone(),
            content: given.told(),
            text: given.told_beside(lead),
            attachments: given.attachments(),
            sender: sender(&given.request),
            channel: given.request.event.channel.clone(),
            capabilities: self.capabilities(given),
            joined,
        }
    }

    fn capabilities(&self, prepared: &Prepared) -> Value {
        self.routes.get(&prepared.request.adapter).map_or(Value::Null, |route| route.capabilities)
    }
}

fn sender(request: &NexusRequest) -> Sender {
    let (event, principal) = (&request.event, request.principal.as_ref());
    Sender {
        id: event.sender_id.clone(),
        name: event.sender_name.clone().or_else(|| principal.and_then(|principal| principal.name.clone())),
        principal: principal.map_or_else(String::new, |principal| principal.type_.as_str().to_owned()),
    }
}
