//! The agent's own sessions: one for each of our labels, resumed where the agent can, else begun anew
//! with what was said before, and closed once no turn can go on in it; and what a prompt is made of. Runs no turn.

use super::agent::AcpAgent;
use super::link::{Known, Link, told};
use crate::agent::{AgentError, Remembers, Role, Turn, notes};
use crate::error_text::describe;
use crate::ledger::agents::{KeepAcpSession, acp_session, turn_id};
use agent_client_protocol::Error;
use agent_client_protocol::v1::schema::{
    CloseSessionRequest, ContentBlock, LoadSessionRequest, NewSessionRequest, ResourceLink, ResumeSessionRequest, SessionId, TextContent,
};
use serde_json::Value;
use std::sync::Arc;
use std::time::Duration;

/// Bytes of earlier messages that a session begins with.
const HISTORY_BYTES_MAX: usize = 32 * 1024;
/// What stands around them.
const HISTORY_BEGINS: &str = "[What was said earlier in this conversation, which you don't remember:]";
const HISTORY_ENDS: &str = "[End of what was said earlier. The message to answer follows.]";
/// Attachments of one message that are handed over.
const ATTACHMENTS_MAX: usize = 32;
/// Longest session id that is kept, in bytes.
const SESSION_ID_BYTES_MAX: usize = 1024;
/// How long an agent has to close a session before that counts as open for good.
const CLOSE_LIMIT: Duration = Duration::from_secs(5);

/// An agent's own session, ready for a prompt.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) id: SessionId,
    /// The agent knows nothing of what was said before.
    pub(super) is_new: bool,
}

/// Finds or makes the agent's session of this turn's label. One that heard other turns than the ledger has,
/// since the label was archived or another agent answered in between, is left alone.
///
/// # Errors
/// [`AgentError::Unavailable`] when its process ends, or what the agent said to a new session.
pub(super) async fn open(agent: &AcpAgent, link: &Link, turn: &Turn) -> Result<Opened, AgentError> {
    let is_next = |known: &Known| turn.parent_turn_id.as_ref() == Some(&known.turn_id);
    if let Some(label) = label(turn) {
        if let Some(known) = link.session(&label).filter(is_next) {
            return Ok(Opened { id: known.id, is_new: false });
        }
        if let Some(id) = resumed(agent, link, turn, label).await? {
            return Ok(Opened { id, is_new: false });
        }
    }
    Ok(Opened { id: begin(agent, link).await?, is_new: true })
}

/// Under what the agent's session is kept: where it may know of its sender's turns alone, each sender has one. None where it
/// may know nothing of the turns before, nor those after it of this one.
pub(super) fn label(turn: &Turn) -> Option<String> {
    match &turn.remembers {
        Remembers::Nothing => None,
        Remembers::Own(who) => Some(format!("{}\u{1f}{who}", turn.session_label)),
        Remembers::Session => Some(turn.session_label.clone()),
    }
}

/// The session that an earlier process had for this label, if this one can take it up.
async fn resumed(agent: &AcpAgent, link: &Link, turn: &Turn, label: String) -> Result<Option<SessionId>, AgentError> {
    let Some(id) = kept(agent, link, turn, label).await else { return Ok(None) };
    match resume(agent, link, &id).await {
        Ok(()) => {
            link.opened();
            Ok(Some(id))
        }
        Err(error) if link.is_lost(&error) => Err(agent.lost(link).await),
        Err(error) => {
            let (agent, label, error) = (agent.name(), &turn.session_label, told(&error));
            tracing::info!(target: "nexus::agent", agent, label, error, "an agent can't resume a session; a new one begins");
            Ok(None)
        }
    }
}

async fn kept(agent: &AcpAgent, link: &Link, turn: &Turn, label: String) -> Option<SessionId> {
    if !link.can().load_session && link.can().session_capabilities.resume.is_none() {
        return None;
    }
    let (name, head) = (agent.name().to_owned(), turn.parent_turn_id.clone());
    match agent.ledger().readers.read(move |connection| acp_session(connection, &name, &label, head.as_deref())).await {
        Ok(id) => id.map(SessionId::new),
        Err(error) => {
            let (agent, error) = (agent.name(), describe(&error));
            tracing::warn!(target: "nexus::agent", agent, error, "an agent's session could not be read; a new one begins");
            None
        }
    }
}

async fn resume(agent: &AcpAgent, link: &Link, id: &SessionId) -> Result<(), Error> {
    let connection = link.connection();
    if link.can().session_capabilities.resume.is_some() {
        return connection.send_request(ResumeSessionRequest::new(id.clone(), agent.cwd())).block_task().await.map(drop);
    }
    // What was said before is played back meanwhile; no turn listens.
    connection.send_request(LoadSessionRequest::new(id.clone(), agent.cwd())).block_task().await.map(drop)
}

async fn begin(agent: &AcpAgent, link: &Link) -> Result<SessionId, AgentError> {
    let answer = link.connection().send_request(NewSessionRequest::new(agent.cwd())).block_task().await;
    if answer.is_ok() {
        link.opened();
    }
    let problem = match answer {
        Ok(new) if new.session_id.0.len() <= SESSION_ID_BYTES_MAX => return Ok(new.session_id),
        Ok(_) => format!("the id of its session has more than {SESSION_ID_BYTES_MAX} bytes"),
        Err(error) if link.is_lost(&error) => return Err(agent.lost(link).await),
        Err(error) => format!("it began no session: {}", told(&error)),
    };
    Err(AgentError::Reported { agent: agent.name().to_owned(), problem, partial: String::new() })
}

/// Notes that the agent's session hears this turn now. Without the note the next process begins anew, with
/// the history.
pub(super) async fn note(agent: &AcpAgent, link: &Arc<Link>, turn: &Turn, id: &SessionId) {
    let Some(label) = label(turn) else { return };
    if let Some(gone) = link.remember(&label, Known { id: id.clone(), turn_id: turn_id(&turn.run_id) }) {
        close(agent, link, gone);
    }
    let keep = KeepAcpSession {
        agent: agent.name().to_owned(),
        label,
        session_id: id.0.to_string(),
        turn_id: turn_id(&turn.run_id),
        parent_turn_id: turn.parent_turn_id.clone(),
    };
    if let Err(error) = agent.ledger().writer.write(keep).await {
        tracing::warn!(target: "nexus::agent", agent = agent.name(), %error, "the agent's session could not be noted; it won't be resumed");
    }
}

/// Has a session closed that no turn needs any more, if the agent can; nobody waits for that.
pub(super) fn close(agent: &AcpAgent, link: &Arc<Link>, id: SessionId) {
    if link.is_dead() || link.can().session_capabilities.close.is_none() || link.needs(&id) {
        return;
    }
    let (name, link) = (agent.name().to_owned(), link.clone());
    let closing = async move {
        let asked = link.connection().send_request(CloseSessionRequest::new(id)).block_task();
        let error = tokio::select! {
            answer = tokio::time::timeout(CLOSE_LIMIT, asked) => match answer {
                Ok(Ok(_)) => return link.closed(),
                Ok(Err(error)) => told(&error),
                Err(_) => "it did not answer in time".to_owned(),
            },
            () = link.died() => return, // with all its sessions
        };
        tracing::debug!(target: "nexus::agent", agent = name, error, "an agent did not close a session");
    };
    drop(crate::watch::tracked("acp.close", agent.tasks(), closing));
}

/// The message as the protocol's content: after what of the past belongs to it and, in a new session, what
/// was said before; and with links to what was attached. Every agent takes text and links.
pub(super) fn prompt(turn: &Turn, is_new: bool) -> Vec<ContentBlock> {
    let earlier = if is_new { history(turn) } else { None };
    let texts = notes::text(&turn.memory).into_iter().chain(earlier).chain([turn.text.clone()]);
    let mut blocks: Vec<ContentBlock> = texts.map(|text| ContentBlock::Text(TextContent::new(text))).collect();
    let attached = turn.attachments.as_array().map(Vec::as_slice).unwrap_or_default();
    blocks.extend(attached.iter().filter_map(link_to).take(ATTACHMENTS_MAX));
    blocks
}

/// The newest earlier messages that fit, marked as such; `None` without any.
fn history(turn: &Turn) -> Option<String> {
    let (mut lines, mut bytes) = (Vec::new(), 0);
    for message in turn.history.iter().rev() {
        let who = match message.role {
            Role::User => "user",
            Role::Assistant => "you",
        };
        let line = format!("{who}: {}", message.text());
        bytes += line.len() + 1;
        if bytes > HISTORY_BYTES_MAX {
            break;
        }
        lines.push(line);
    }
    lines.reverse();
    (!lines.is_empty()).then(|| {
        let text = lines.join("\n");
        format!("{HISTORY_BEGINS}\n{text}\n{HISTORY_ENDS}")
    })
}

fn link_to(attachment: &Value) -> Option<ContentBlock> {
    let text = |key: &str| attachment[key].as_str().filter(|text| !text.is_empty());
    let uri = text("url").map(str::to_owned).or_else(|| text("path").map(|path| format!("file://{path}")))?;
    let name = text("filename").or_else(|| text("id")).unwrap_or("attachment").to_owned();
    let link = ResourceLink::new(name, uri).mime_type(text("content_type").map(str::to_owned));
    Some(ContentBlock::ResourceLink(link.size(attachment["size_bytes"].as_i64())))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::agent::{Memory, Message};
    use serde_json::json;

    fn turn(history: Vec<Message>, attachments: Value) -> Turn {
        Turn { text: "and now?".into(), attachments, history, ..crate::samples::turn() }
    }

    fn said(role: Role, content: &str) -> Message {
        Message { role, content: content.into(), name: None }
    }

    fn texts(blocks: &[ContentBlock]) -> Vec<String> {
        blocks.iter().map(|block| serde_json::to_value(block).unwrap()["text"].as_str().unwrap_or_default().to_owned()).collect()
    }

    #[test]
    fn only_a_new_session_is_told_what_was_said_before() {
        let turn = turn(vec![said(Role::User, "hi"), said(Role::Assistant, "hello")], json!([]));
        let new = texts(&prompt(&turn, true));
        assert_eq!(new.len(), 2);
        assert!(new[0].contains("\nuser: hi\nyou: hello\n") && new[0].starts_with('['), "{}", new[0]);
        assert_eq!(new[1], "and now?");
        assert_eq!(texts(&prompt(&turn, false)), ["and now?"]);
    }

    #[test]
    fn what_was_found_of_the_past_is_told_in_every_session() {
        let memory = vec![Memory { text: "it rained".into(), at: 7, session: "dm:ann".into() }];
        let turn = Turn { memory, ..turn(vec![said(Role::User, "hi")], json!([])) };
        for is_new in [true, false] {
            let told = texts(&prompt(&turn, is_new));
            assert_eq!(told.len(), 2 + usize::from(is_new));
            assert!(told[0].contains(r#""text":"it rained""#) && told.last().unwrap() == "and now?", "{told:?}");
        }
    }

    #[test]
    fn of_a_long_history_the_newest_messages_are_told() {
        let long = "x".repeat(HISTORY_BYTES_MAX / 2);
        let [oldest, newest] = ["oldest", "newest"].map(|text| said(Role::User, text));
        let messages = vec![oldest, said(Role::Assistant, &long), newest, said(Role::Assistant, &long)];
        let told = history(&turn(messages, Value::Null)).unwrap();
        assert!(told.contains("newest") && !told.contains("oldest") && told.len() < HISTORY_BYTES_MAX + 200);
        assert_eq!(history(&turn(Vec::new(), Value::Null)), None);
        let huge = "x".repeat(2 * HISTORY_BYTES_MAX);
        assert_eq!(history(&turn(vec![said(Role::User, &huge)], Value::Null)), None);
    }

    #[test]
    fn a_session_of_the_agents_is_for_those_alone_who_may_know_what_it_heard() {
        let of = |remembers: Remembers| label(&Turn { remembers, ..turn(Vec::new(), Value::Null) });
        assert_eq!(of(Remembers::Session).as_deref(), Some("dm:me"));
        assert_eq!(of(Remembers::Nothing), None);
        let own = |who: &str| of(Remembers::Own(who.to_owned()));
        assert!(own("a").is_some() && own("a") == own("a") && own("a") != own("b") && own("a") != of(Remembers::Session));
    }

    #[test]
    fn attachments_are_links() {
        let attachments = json!([
            { "id": "a", "filename": "plan.pdf", "content_type": "application/pdf", "size_bytes": 7, "url": "https://example.org/p" },
            { "id": "b", "path": "/tmp/b.txt" },
            { "id": "nowhere" },
            "no attachment",
        ]);
        let blocks = prompt(&turn(Vec::new(), attachments), true);
        let links: Vec<Value> = blocks[1..].iter().map(|block| serde_json::to_value(block).unwrap()).collect();
        assert_eq!(links.len(), 2);
        let of = |link: &Value, keys: [&str; 3]| keys.map(|key| link[key].clone());
        let first = [json!("https://example.org/p"), json!("application/pdf"), json!(7)];
        assert_eq!(of(&links[0], ["uri", "mimeType", "size"]), first);
        assert_eq!(of(&links[1], ["uri", "name", "type"]), [json!("file:///tmp/b.txt"), json!("b"), json!("resource_link")]);
    }
}
