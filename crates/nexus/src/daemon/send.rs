//! `nexus send` and `nexus chat`: a message on the control socket becomes an event, once per id. Who asks again under the same
//! id is told the same end.

use super::control::Control;
use crate::clock;
use crate::error_text::describe;
use crate::http::control::Refusal;
use crate::http::send::{Accepted, Message};
use crate::ledger::events::{Append, Disposition, Lines, NewEvent, by_id};
use crate::replies::End;
use crate::routes::{CLI_CHANNEL, DEFAULT_ACCOUNT};
use axum::http::StatusCode;
use nexus_core::event::{EVENT_ID_BYTES_MAX, ID_BYTES_MAX, PeerKind};
use nexus_core::ids::AccountKey;
use std::sync::Arc;

/// Longest message of `nexus send`.
const MESSAGE_BYTES_MAX: usize = 1024 * 1024;

/// Writes the message, and says where what becomes of it is told.
pub(super) async fn accept(control: &Control, message: Message) -> Result<Accepted, Refusal> {
    let event_id = message.event_id.unwrap_or_else(|| format!("{CLI_CHANNEL}:{}", ulid::Ulid::generate()));
    check(&event_id, &message.text, &message.conversation, &message.sender)
        .map_err(|error| Refusal::new(StatusCode::BAD_REQUEST, error))?;
    let now = clock::wall_ms();
    let event = NewEvent {
        event_id: event_id.clone(),
        channel: CLI_CHANNEL.into(),
        account_id: DEFAULT_ACCOUNT.into(),
        sender_id: message.sender,
        sender_name: None,
        peer_id: message.conversation,
        peer_kind: PeerKind::Dm,
        thread_id: None,
        reply_to_id: None,
        content_type: "text".into(),
        content: message.text,
        attachments: None,
        metadata: None,
        timestamp: now,
        received_at: now,
        disposition: Disposition::Run,
    };
    let append = Append {
        adapter: CLI_CHANNEL.into(),
        account: DEFAULT_ACCOUNT.into(),
        lines: Arc::new(Lines { events: vec![event], rejects: Vec::new() }),
    };
    // Before the commit: another message's wakes the router, which may end this one's request at once.
    let replies = &control.pipeline.replies;
    let parts = replies.listen(&event_id);
    match commit(control, append, &event_id).await {
        Ok(None) => {}
        Ok(Some(end)) => replies.end(&event_id, &end),
        Err(error) => {
            drop(parts);
            replies.sweep(&event_id);
            // Nobody knows whether it is on disk: 503 has the client ask again, under the same id.
            return Err(Refusal::new(StatusCode::SERVICE_UNAVAILABLE, error));
        }
    }
    Ok(Accepted { event_id, parts })
}

/// Commits one event and wakes the router; of an event that was answered before it tells the end.
async fn commit(control: &Control, append: Append, event_id: &str) -> Result<Option<End>, String> {
    let new = control.ledgers.events.writer.write(append).await.map_err(|error| error.to_string())?.into_iter().flatten().next();
    let seq = match new {
        Some(seq) => {
            control.sinks.pending.raise(&AccountKey::new(CLI_CHANNEL, DEFAULT_ACCOUNT), 1);
            seq
        }
        None => seq_of(control, event_id).await?,
    };
    // Also when it was known: an earlier call may have been told that it failed though it had not.
    crate::ledger::raise(&control.sinks.committed, seq);
    if new.is_some() { Ok(None) } else { control.known_end(seq).await }
}

async fn seq_of(control: &Control, event_id: &str) -> Result<i64, String> {
    let id = event_id.to_owned();
    let row = control.ledgers.events.readers.read(move |connection| by_id(connection, &id)).await.map_err(|error| describe(&error))?;
    row.map(|row| row.seq).ok_or_else(|| format!("event `{event_id}` vanished"))
}

fn check(event_id: &str, text: &str, conversation: &str, sender: &str) -> Result<(), String> {
    if !event_id.starts_with("cli:") || event_id.len() <= 4 || event_id.len() > EVENT_ID_BYTES_MAX {
        return Err(format!("event_id must be `cli:` and up to {EVENT_ID_BYTES_MAX} bytes in all"));
    }
    if text.trim().is_empty() || text.len() > MESSAGE_BYTES_MAX {
        return Err(format!("a message has 1 to {MESSAGE_BYTES_MAX} bytes"));
    }
    for (name, value) in [("conversation", conversation), ("sender", sender)] {
        if value.is_empty() || value.len() > ID_BYTES_MAX {
            return Err(format!("{name} has 1 to {ID_BYTES_MAX} bytes"));
        }
    }
    Ok(())
}
