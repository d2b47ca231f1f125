//! Where `nexus send` and `nexus chat` wait for what becomes of their event: tokens as they come,
//! then the end. What they are told is a convenience; the ledger is the record, and a client that
//! lost its connection asks for the same event again.

use nexus_core::request::Status;
use serde::Serialize;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::mpsc;

/// Parts that a slow client may have waiting; tokens beyond are left out, the end never is.
const PARTS_MAX: usize = 1024;

/// One thing told to a waiting client.
#[derive(Debug, Clone, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Part {
    Token {
        text: String,
    },
    Tool {
        name: String,
        status: String,
    },
    /// The agent waits for the owner to answer this, in a message of its own.
    Question {
        text: String,
    },
    End(End),
}

/// How a request ended.
#[derive(Debug, Clone, Serialize)]
pub struct End {
    pub request_id: String,
    pub status: Status,
    pub reason: Option<String>,
    pub text: Option<String>,
    pub agent: Option<String>,
    pub session: Option<String>,
}

/// By event id.
type Waiting = HashMap<Box<str>, Vec<mpsc::Sender<Part>>>;

/// The clients that wait. Cheap to clone.
///
/// Not by seq: a client listens before its event is committed, and thus before anything can become of it.
#[derive(Debug, Clone, Default)]
pub struct Replies {
    waiting: Arc<Mutex<Waiting>>,
}

impl Replies {
    /// Begins to listen for the event `event_id`, which need not be accepted yet.
    pub fn listen(&self, event_id: &str) -> mpsc::Receiver<Part> {
        let (sender, receiver) = mpsc::channel(PARTS_MAX);
        let mut waiting = self.lock();
        let list = waiting.entry(event_id.into()).or_default();
        list.retain(|client| !client.is_closed());
        list.push(sender);
        receiver
    }

    /// Forgets listeners of `event_id` that are gone: of an event that was not accepted no end comes.
    pub fn sweep(&self, event_id: &str) {
        let mut waiting = self.lock();
        if let Some(list) = waiting.get_mut(event_id) {
            list.retain(|client| !client.is_closed());
            if list.is_empty() {
                waiting.remove(event_id);
            }
        }
    }

    /// Whether anybody listens; saves the making of parts.
    pub fn has(&self, event_id: &str) -> bool {
        self.lock().contains_key(event_id)
    }

    /// Tells a part to whoever listens and has room.
    pub fn tell(&self, event_id: &str, part: &Part) {
        let mut waiting = self.lock();
        if let Some(list) = waiting.get_mut(event_id) {
            list.retain(|client| !matches!(client.try_send(part.clone()), Err(mpsc::error::TrySendError::Closed(_))));
            if list.is_empty() {
                waiting.remove(event_id);
            }
        }
    }

    /// Tells the end, and forgets the listeners.
    pub fn end(&self, event_id: &str, end: &End) {
        let Some(list) = self.lock().remove(event_id) else { return };
        for client in list {
            if let Err(mpsc::error::TrySendError::Full(part)) = client.try_send(Part::End(end.clone())) {
                // Full of tokens: the end waits until the client has taken one, or is gone.
                crate::watch::helper("reply.end", async move { client.send(part).await.ok() });
            }
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn end() -> End {
        End { request_id: "req_1".into(), status: Status::Completed, reason: None, text: None, agent: None, session: None }
    }

    #[tokio::test]
    async fn the_end_reaches_whoever_listens_however_full_and_nobody_is_kept() {
        let replies = Replies::default();
        let (mut slow, mut quick) = (replies.listen("cli:1"), replies.listen("cli:1"));
        let gone = replies.listen("cli:1");
        drop(gone);
        for _ in 0..2 * PARTS_MAX {
            replies.tell("cli:1", &Part::Token { text: "x".into() });
            assert!(matches!(quick.recv().await, Some(Part::Token { .. })));
        }
        replies.end("cli:1", &end());
        assert!(matches!(quick.recv().await, Some(Part::End(_))));
        assert!(quick.recv().await.is_none());
        for _ in 0..PARTS_MAX {
            assert!(matches!(slow.recv().await, Some(Part::Token { .. })));
        }
        assert!(matches!(slow.recv().await, Some(Part::End(_))));
        assert!(replies.lock().is_empty());
    }

    #[test]
    fn who_gave_up_before_the_event_was_accepted_is_forgotten() {
        let replies = Replies::default();
        let (gone, stays) = (replies.listen("cli:1"), replies.listen("cli:1"));
        drop(gone);
        replies.sweep("cli:1");
        assert!(replies.has("cli:1"));
        drop(stays);
        replies.sweep("cli:1");
        assert!(!replies.has("cli:1"));
    }
}
