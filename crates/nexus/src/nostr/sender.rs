//! What the daemon says on Nostr by itself: an answer to an event, as a reply that clients show in its thread. A
//! delivery is sent once one relay has it; the outbox goes on until all have.

use super::template::Template;
use super::{ADAPTER, Inner, Nostr, PublishError, keys};
use crate::error_text::describe;
use crate::keeper::SpawnError;
use crate::ledger::events::{StoredEvent, by_seq};
use crate::ledger::nexus::Delivery;
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
/// Kind of a note and of a comment (NIP-22).
const NOTE: u16 = 1;
const COMMENT: u16 = 1_111;

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
        Some(parent) => reply(&parent, &delivery.content),
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
        Ok(Some((status, _))) if status == "accepted" => SendOutcome::Sent { message_ids: vec![event_id] },
        Ok(Some((status, why))) if status == "refused" || status == "expired" => {
            let why = why.map_or_else(String::new, |why| format!(": {why}"));
            SendOutcome::Failed { error: format!("no relay has it: {status}{why}") }
        }
        Ok(_) => SendOutcome::Retry { error: "no relay has it yet".to_owned(), after_ms: Some(LOOK_AGAIN_MS) },
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

/// A reply: a note to a note (NIP-10), a comment to anything else (NIP-22).
fn reply(to: &Parent, content: &str) -> Template {
    let (kind, mut tags) = if to.kind == NOTE { (NOTE, thread(to)) } else { (COMMENT, comment(to)) };
    for key in to.tags.iter().filter_map(|tag| mentioned(tag)).chain([to.pubkey.as_str()]) {
        let tag = vec!["p".to_owned(), key.to_owned()];
        if !tags.contains(&tag) {
            tags.push(tag);
        }
    }
    tags.extend(to.project.iter().map(|project| tag(&["a", project])));
    Template { kind, content: content.to_owned(), tags, created_at: None }
}

fn mentioned(tag: &[String]) -> Option<&str> {
    match tag {
        [name, key, ..] if name == "p" => Some(key),
        _ => None,
    }
}

fn tag(parts: &[&str]) -> Vec<String> {
    parts.iter().map(|part| (*part).to_owned()).collect()
}

/// The thread that a note is in, or begins.
fn thread(to: &Parent) -> Vec<Vec<String>> {
    let ids = || to.tags.iter().filter(|tag| tag.len() >= 2 && tag[0] == "e");
    let root = ids().find(|tag| tag.get(3).is_some_and(|mark| mark == "root"));
    let root = root.or_else(|| ids().find(|tag| tag.get(3).is_none_or(|mark| mark.is_empty())));
    match root {
        Some(root) => {
            vec![tag(&["e", &root[1], root.get(2).map_or("", String::as_str), "root"]), tag(&["e", &to.id, &to.relay, "reply", &to.pubkey])]
        }
        None => vec![tag(&["e", &to.id, &to.relay, "root", &to.pubkey])],
    }
}

/// Root and parent of a comment. What isn't a comment itself is the root.
fn comment(to: &Parent) -> Vec<Vec<String>> {
    let kind = to.kind.to_string();
    let roots = to.tags.iter().filter(|tag| tag.first().is_some_and(|name| ["A", "E", "I", "K", "P"].contains(&name.as_str())));
    let mut tags: Vec<Vec<String>> = if to.kind == COMMENT { roots.cloned().collect() } else { Vec::new() };
    if tags.is_empty() {
        tags = vec![tag(&["E", &to.id, &to.relay, &to.pubkey]), tag(&["K", &kind]), tag(&["P", &to.pubkey])];
    }
    tags.extend([tag(&["e", &to.id, &to.relay, &to.pubkey]), tag(&["k", &kind])]);
    tags
}

/// Something that answers nothing: a note to somebody, by public key.
fn addressed(target: &str, content: &str) -> Option<Template> {
    let key = nexus_core::config::public_key_hex(target)?;
    Some(Template { kind: NOTE, content: content.to_owned(), tags: vec![vec!["p".to_owned(), key]], created_at: None })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parent_of(kind: u16, tags: &[&[&str]]) -> Parent {
        let tags = tags.iter().map(|parts| tag(parts)).collect();
        Parent { id: "id".to_owned(), pubkey: "ann".to_owned(), kind, tags, relay: "ws://r".to_owned(), project: None }
    }

    #[test]
    fn what_is_said_about_an_event_of_a_project_names_that() {
        for kind in [1, 11] {
            let parent = Parent { project: Some("31933:ann:demo".to_owned()), ..parent_of(kind, &[&["a", "31933:ann:demo"]]) };
            let named = reply(&parent, "hi").tags.into_iter().filter(|one| *one == tag(&["a", "31933:ann:demo"]));
            assert_eq!(named.count(), 1, "{kind}");
        }
    }

    #[test]
    fn a_note_is_answered_in_its_thread() {
        let first = reply(&parent_of(1, &[&["p", "me"]]), "hi");
        assert_eq!(first.tags, [tag(&["e", "id", "ws://r", "root", "ann"]), tag(&["p", "me"]), tag(&["p", "ann"])]);
        let later = reply(&parent_of(1, &[&["e", "top", "ws://t", "root"], &["e", "mid", "", "reply"], &["p", "ann"]]), "hi");
        let e = [tag(&["e", "top", "ws://t", "root"]), tag(&["e", "id", "ws://r", "reply", "ann"])];
        assert_eq!((&later.tags[..2], &later.tags[2..], later.kind), (&e[..], &[tag(&["p", "ann"])][..], 1));
        let positional = reply(&parent_of(1, &[&["e", "top"], &["e", "mid"]]), "hi");
        assert_eq!(positional.tags[0], tag(&["e", "top", "", "root"]));
    }

    #[test]
    fn anything_else_is_commented() {
        let thread = reply(&parent_of(11, &[]), "hi");
        assert_eq!(thread.kind, 1_111);
        assert_eq!(thread.tags[..3], [tag(&["E", "id", "ws://r", "ann"]), tag(&["K", "11"]), tag(&["P", "ann"])]);
        assert_eq!(thread.tags[3..5], [tag(&["e", "id", "ws://r", "ann"]), tag(&["k", "11"])]);
        let comment = reply(&parent_of(1_111, &[&["E", "top"], &["K", "11"], &["P", "bob"], &["e", "mid"], &["k", "1111"]]), "hi");
        assert_eq!(comment.tags[..3], [tag(&["E", "top"]), tag(&["K", "11"]), tag(&["P", "bob"])]);
        assert_eq!(comment.tags[3..5], [tag(&["e", "id", "ws://r", "ann"]), tag(&["k", "1111"])]);
    }

    #[test]
    fn what_answers_nothing_is_addressed_by_key() {
        let key = "ab".repeat(32);
        assert_eq!(addressed(&key, "hi").map(|template| template.tags), Some(vec![tag(&["p", &key])]));
        assert_eq!(addressed("ann", "hi"), None);
    }
}
