//! The `project` runner: a turn is an event handed to the process of its project. Which event is a project's, the
//! pipeline says; what becomes of the process, [`crate::project`].

use super::{AgentError, Finished, Sink, Turn};
use crate::project::coordinate::Coordinate;
use crate::project::protocol::Received;
use crate::project::{Projects, STOP_KIND};
use nexus_core::access::Decision;
use nexus_core::event::Event;
use nexus_core::request::NexusRequest;
use serde_json::Value;

/// What the labels of projects' sessions begin with.
const SESSION: &str = "project:";
/// What the label of the session beside it ends with.
const UNASKED: &str = ":unasked";

/// The event of a project, as its process is to get it; the text is the turn's.
#[derive(Debug, Clone, PartialEq)]
pub struct ProjectTurn {
    pub coordinate: Coordinate,
    /// The event's id in the ledger: a replay has one of its own.
    pub id: String,
    pub event: Received,
    /// False where it says nothing to anybody, as a reaction, and nobody wants an agent asked all the same: it has the
    /// project started, and is not handed over.
    pub is_asked: bool,
}

/// The project that an event of the Nostr client is for, as its metadata say.
pub fn project_of<'a>(adapter: &str, metadata: &'a Value) -> Option<&'a str> {
    (adapter == crate::nostr::ADAPTER).then(|| metadata.get("project")?.as_str()).flatten()
}

impl ProjectTurn {
    /// Of a request whose event the Nostr client took in for a project: what others write into their events'
    /// metadata counts for nothing.
    pub fn of(request: &NexusRequest) -> Option<Self> {
        let coordinate = Coordinate::parse(project_of(&request.adapter, &request.event.metadata)?).ok()?;
        let origin = request.event.metadata.get("nostr")?;
        let text = |key: &str| origin.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
        let number = |key: &str| origin.get(key).and_then(Value::as_u64);
        let event = Received {
            id: text("id"),
            pubkey: text("pubkey"),
            kind: number("kind").and_then(|kind| u16::try_from(kind).ok())?,
            created_at: number("created_at")?,
            content: request.event.content.clone(),
            tags: origin.get("tags").and_then(|tags| serde_json::from_value(tags.clone()).ok()).unwrap_or_default(),
            sig: text("sig"),
        };
        let has_fired = request.triggers.as_ref().is_some_and(|triggers| triggers.fired_by.is_some());
        let wakes = |access: &Decision| access.wakes_agent(&request.event.content_type);
        let is_asked = has_fired || request.access.as_ref().is_none_or(wakes);
        Some(Self { coordinate, id: request.event.event_id.clone(), event, is_asked })
    }

    /// The session of all that is said in the project. What says nothing has one beside it: it waits for no turn, is
    /// answered with none, and no agent is told of it later.
    pub fn session(&self) -> String {
        let beside = if self.is_asked { "" } else { UNASKED };
        format!("{}{beside}", session_of(&self.coordinate))
    }
}

/// The session of all that is said in a project.
pub fn session_of(project: &Coordinate) -> String {
    format!("{SESSION}{}", project.slug())
}

/// The session of a project that an event gives something to do; none of one that only ends what is going on there.
pub fn session_to_wake(adapter: &str, event: &Event) -> Option<String> {
    let metadata = (adapter == crate::nostr::ADAPTER).then_some(&event.metadata)?;
    let project = Coordinate::parse(metadata.get("project")?.as_str()?).ok()?;
    let is_stop = metadata.get("nostr")?.get("kind")?.as_u64() == Some(u64::from(STOP_KIND));
    (!is_stop).then(|| session_of(&project))
}

/// Runs turns by handing them to projects.
#[derive(Debug, Clone)]
pub struct ProjectRunner {
    projects: Projects,
}

impl ProjectRunner {
    pub fn new(projects: Projects) -> Self {
        Self { projects }
    }

    /// Runs one turn; see [`Projects::hand_over`].
    ///
    /// # Errors
    /// [`AgentError::Project`].
    pub async fn run(&self, turn: &Turn, out: &Sink) -> Result<Finished, AgentError> {
        match &turn.project {
            Some(asked) => self.projects.hand_over(&asked.coordinate, turn, out).await,
            None => {
                let problem = "it answers events of projects only".to_owned();
                Err(AgentError::Config { agent: turn.agent.clone(), problem })
            }
        }
    }

    /// The agent of the configuration that does the turn, and whose budget it uses.
    pub fn agent_of(&self, turn: &Turn) -> Option<String> {
        self.projects.agent_of(&turn.project.as_ref()?.coordinate)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use nexus_core::event::PeerKind;
    use serde_json::json;

    fn request(adapter: &str, metadata: Value) -> NexusRequest {
        let event = Event {
            event_id: "nostr:ab".into(),
            timestamp: 1000,
            content: "hello".into(),
            content_type: "text".into(),
            channel: "nostr".into(),
            account_id: "default".into(),
            sender_id: "k".into(),
            peer_id: "p".into(),
            peer_kind: PeerKind::Channel,
            sender_name: None,
            thread_id: None,
            reply_to_id: None,
            attachments: Value::Null,
            metadata,
        };
        NexusRequest { adapter: adapter.to_owned(), ..NexusRequest::new("req_1".into(), 1, 0, event) }
    }

    #[test]
    fn only_what_the_nostr_client_took_in_for_a_project_is_its() {
        let project = format!("31933:{}:x:y", "a".repeat(64));
        let metadata =
            json!({ "project": project, "nostr": { "id": "ab", "pubkey": "k", "kind": 1, "created_at": 1, "tags": [["e", "z"]] } });
        let turn = ProjectTurn::of(&request("nostr", metadata.clone())).unwrap();
        assert_eq!((turn.coordinate.to_string(), turn.id.as_str(), turn.event.content.as_str()), (project, "nostr:ab", "hello"));
        assert_eq!(turn.event.tags, [["e", "z"]]);
        assert!(turn.session().starts_with("project:x-y-"), "{}", turn.session());
        assert_eq!(ProjectTurn::of(&request("webhook", metadata.clone())), None, "another adapter says so");
        let mut waking = request("nostr", metadata.clone());
        assert_eq!(session_to_wake("nostr", &waking.event).as_deref(), Some(turn.session().as_str()));
        assert_eq!(session_to_wake("webhook", &waking.event), None);
        waking.event.metadata["nostr"]["kind"] = STOP_KIND.into();
        assert_eq!(session_to_wake("nostr", &waking.event), None, "it only ends something");
        for metadata in [Value::Null, json!({}), json!({ "project": "x" }), json!({ "project": 1, "nostr": {} }), json!([1])] {
            assert_eq!(ProjectTurn::of(&request("nostr", metadata)), None);
        }
    }
}
