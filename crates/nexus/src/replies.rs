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
    Accepted { event_id: String, request_id: Option<String> },
    Token { text: String },
    Tool { name: String, status: String },
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

/// The clients that wait, by event seq. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Replies {
    waiting: Arc<Mutex<HashMap<i64, Vec<mpsc::Sender<Part>>>>>,
}

impl Replies {
    /// Begins to listen for the event at `seq`.
    pub fn listen(&self, seq: i64) -> mpsc::Receiver<Part> {
        let (sender, receiver) = mpsc::channel(PARTS_MAX);
        let mut waiting = self.lock();
        let list = waiting.entry(seq).or_default();
        list.retain(|client| !client.is_closed());
        list.push(sender);
        receiver
    }

    /// Whether anybody listens; saves the making of parts.
    pub fn has(&self, seq: i64) -> bool {
        self.lock().contains_key(&seq)
    }

    /// Tells a part to whoever listens and has room.
    pub fn tell(&self, seq: i64, part: &Part) {
        let mut waiting = self.lock();
        if let Some(list) = waiting.get_mut(&seq) {
            list.retain(|client| !matches!(client.try_send(part.clone()), Err(mpsc::error::TrySendError::Closed(_))));
            if list.is_empty() {
                waiting.remove(&seq);
            }
        }
    }

    /// Tells the end, and forgets the listeners.
    pub fn end(&self, seq: i64, end: &End) {
        let Some(list) = self.lock().remove(&seq) else { return };
        for client in list {
            if let Err(mpsc::error::TrySendError::Full(part)) = client.try_send(Part::End(end.clone())) {
                // Full of tokens: the end waits until the client has taken one, or is gone.
                tokio::spawn(async move { client.send(part).await.ok() });
            }
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<i64, Vec<mpsc::Sender<Part>>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
