//! What the daemon says on Nostr by itself: an answer to an event, as a reply that clients show in its thread. A
//! delivery is sent once one relay has it; the outbox goes on until all have.

use super::reply::{Answered, NOTE, reply};
use super::template::Template;
use super::{ADAPTER, Inner, Nostr, PublishError, keys};
use crate::error_text::describe;
use crate::keeper::SpawnError;
use crate::ledger::events::{StoredEvent, by_seq};
use crate::ledger::nexus::{Delivery, PublishedStatus};
use crate::routes::{Route, Sender};
use crate::supervisor::BoxFuture;
use nexus_core::config::OnUncertain;
use nexus_core::protocol::SendOutcome;
use serde_json::{Value, json};
use std::sync::{Arc, Weak};
use std::time::Duration;

/// How long one attempt waits for a relay's word.
const ACCEPTED_WAIT: Duration = Duration::from_secs(20);
/// After which the delivery looks again whether a relay has it, in ms.
const LOOK_AGAIN_MS: u64 = 30_000;
/// Longest text of one event, in characters: four bytes each are within what relays take.
const TEXT_CHARS_MAX: usize = 12_000;

/// What an answer answers.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Parent {
    id: String,
    pubkey: String,
    kind: u16,
    tags: Vec<Vec<String>>,
    relay: String,
    /// Of which project it was heard; what is said about it belongs there.
    project: Option<String>,
}

/// Says deliveries of the channel `nostr`. The client knows the routes, so these don't keep the client.
struct Replies(Weak<Inner>);

/// The way of the daemon's own answers.
pub(crate) fn route(nostr: &Nostr, ttl_ms: u64) -> Route {
    Route {
        known: true,
        here: false,
        sender: Some(Arc::new(Replies(Arc::downgrade(&nostr.inner)))),
        text_limit: TEXT_CHARS_MAX,
        capabilities: json!({ "supports_markdown": true, "supports_code_blocks": true, "supports_threads": true }),
        // An event is published once, however often that is asked for: only its time ends it.
        retries: u32::MAX,
        on_uncertain: OnUncertain::Retry,
        ttl_ms,
        blocks: false,
        streamer: None,
        channel: None,
    }
}

/// The same before the client runs: answers of an earlier daemon wait for it.
pub(crate) fn route_to_be(ttl_ms: u64) -> Route {
    Route {
        known: false,
        here: false,
        sender: None,
        text_limit: TEXT_CHARS_MAX,
        capabilities: Value::Null,
        retries: u32::MAX,
        on_uncertain: OnUncertain::Retry,
        ttl_ms,
        blocks: false,
        streamer: None,
        channel: None,
    }
}

impl Sender for Replies {
    fn send<'a>(&'a self, delivery: &'a Delivery) -> BoxFuture<'a, Result<SendOutcome, SpawnError>> {
        Box::pin(async move {
            Ok(match self.0.upgrade() {
                Some(inner) => say(&Nostr { inner }, delivery).await,
                None => SendOutcome::Retry { error: "the daemon is stopping".to_owned(), after_ms: None },
            })
        })
    }
}

async fn say(nostr: &Nostr, delivery: &Delivery) -> SendOutcome {
    let again = |error: String| SendOutcome::Retry { error, after_ms: Some(LOOK_AGAIN_MS) };
    let seq = delivery.event_seq;
    let read = nostr.inner.ground.ledgers.events.readers.read(move |connection| by_seq(connection, seq)).await;
    let asked = match read {
        Ok(asked) => asked,
        Err(error) => return again(describe(&error)),
    };
    let template = match asked.as_ref().and_then(parent) {
        Some(parent) => {
            let Parent { id, pubkey, kind, tags, relay, project } = &parent;
            let to = Answered { id, pubkey, kind: *kind, tags, relay };
            reply(to, delivery.content.clone(), nostr.inner.own().as_deref(), project.as_deref())
        }
        None => match addressed(&delivery.target, &delivery.content) {
            Some(template) => template,
            None => return SendOutcome::Failed { error: format!("`{}` is nobody on Nostr", delivery.target) },
        },
    };
    match nostr.publish(keys::DAEMON, template, &delivery.idempotency_key).await {
        Ok(event_id) => accepted(nostr, event_id).await,
        Err(PublishError::Template(error)) => SendOutcome::Failed { error: error.to_string() },
        Err(error) => again(describe(&error)),
    }
}

async fn accepted(nostr: &Nostr, event_id: String) -> SendOutcome {
    match nostr.accepted(&event_id, ACCEPTED_WAIT).await {
        Ok(Some((PublishedStatus::Accepted, _))) => SendOutcome::Sent { message_ids: vec![event_id] },
        Ok(Some((status @ (PublishedStatus::Refused | PublishedStatus::Expired), why))) => {
            let why = why.map_or_else(String::new, |why| format!(": {why}"));
            SendOutcome::Failed { error: format!("no relay has it: {}{why}", status.as_str()) }
        }
        Ok(Some((PublishedStatus::Waiting, _)) | None) => {
            SendOutcome::Retry { error: "no relay has it yet".to_owned(), after_ms: Some(LOOK_AGAIN_MS) }
        }
        Err(error) => SendOutcome::Retry { error: describe(&error), after_ms: Some(LOOK_AGAIN_MS) },
    }
}

/// What an event of the ledger says of the event on Nostr that it was made of.
fn parent(asked: &StoredEvent) -> Option<Parent> {
    let event = asked.event.metadata.get(ADAPTER).filter(|_| asked.adapter == ADAPTER)?;
    let text = |key: &str| event[key].as_str().map(str::to_owned);
    let kind = event["kind"].as_u64().and_then(|kind| u16::try_from(kind).ok())?;
    let tags = serde_json::from_value(event["tags"].clone()).ok()?;
    let project = asked.event.metadata.get("project").and_then(Value::as_str).map(str::to_owned);
    Some(Parent { id: text("id")?, pubkey: text("pubkey")?, kind, tags, relay: text("relay").unwrap_or_default(), project })
}

/// Something that answers nothing: a note to somebody, by public key.
fn addressed(target: &str, content: &str) -> Option<Template> {
    let key = nexus_core::config::public_key_hex(target)?;
    Some(Template { kind: NOTE, content: content.to_owned(), tags: vec![vec!["p".to_owned(), key]], created_at: None })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_answers_nothing_is_addressed_by_key() {
        let key = "ab".repeat(32);
        assert_eq!(addressed(&key, "hi").map(|template| template.tags), Some(vec![vec!["p".to_owned(), key.clone()]]));
        assert_eq!(addressed("ann", "hi"), None);
    }
}
