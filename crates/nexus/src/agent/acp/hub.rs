//! Which turn hears what an agent says of a session. What is said of a session that no turn listens to
//! (a history that is played back, words after the end) goes nowhere. Interprets nothing.

use agent_client_protocol::v1::Responder;
use agent_client_protocol::v1::schema::{
    RequestPermissionRequest, RequestPermissionResponse, SessionId, SessionNotification, SessionUpdate,
};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::mpsc;

/// Events of one turn that may wait; then the agent's stdout isn't read any further.
const EVENTS_MAX: usize = 64;

/// A request for permission, which has to be answered.
#[derive(Debug)]
pub(super) struct Asking {
    pub(super) request: RequestPermissionRequest,
    pub(super) responder: Responder<RequestPermissionResponse>,
}

/// What an agent says of a session.
#[derive(Debug)]
pub(super) enum Event {
    Update(Box<SessionUpdate>),
    Permission(Box<Asking>),
}

#[derive(Debug, Default)]
pub(super) struct Hub {
    turns: Mutex<HashMap<SessionId, mpsc::Sender<Event>>>,
}

/// A turn's ear. Dropping it ends the listening.
#[derive(Debug)]
pub(super) struct Ear {
    hub: Arc<Hub>,
    session: SessionId,
    sender: mpsc::Sender<Event>,
    pub(super) events: mpsc::Receiver<Event>,
}

impl Drop for Ear {
    fn drop(&mut self) {
        let mut turns = self.hub.lock();
        // An agent may give one session to two turns; the later one stays.
        if turns.get(&self.session).is_some_and(|known| known.same_channel(&self.sender)) {
            turns.remove(&self.session);
        }
    }
}

impl Hub {
    pub(super) fn listen(self: &Arc<Self>, session: &SessionId) -> Ear {
        let (sender, events) = mpsc::channel(EVENTS_MAX);
        self.lock().insert(session.clone(), sender.clone());
        Ear { hub: self.clone(), session: session.clone(), sender, events }
    }

    /// Hands an update to its turn, waiting while that is behind.
    pub(super) async fn update(&self, notification: SessionNotification) {
        let SessionNotification { session_id, update, .. } = notification;
        if let Some(turn) = self.turn(&session_id) {
            turn.send(Event::Update(Box::new(update))).await.ok(); // the turn may have ended meanwhile
        }
    }

    /// Hands a request for permission to its turn. Without one it is cancelled: the responder's own
    /// answer would be an error.
    pub(super) async fn ask(&self, request: RequestPermissionRequest, responder: Responder<RequestPermissionResponse>) {
        let turn = self.turn(&request.session_id);
        let event = Event::Permission(Box::new(Asking { request, responder }));
        let unheard = match turn {
            Some(turn) => turn.send(event).await.err().map(|error| error.0),
            None => Some(event),
        };
        if let Some(Event::Permission(asking)) = unheard {
            super::permission::cancel(asking.responder);
        }
    }

    /// Whether a turn listens to it.
    pub(super) fn hears(&self, session: &SessionId) -> bool {
        self.lock().contains_key(session)
    }

    fn turn(&self, session: &SessionId) -> Option<mpsc::Sender<Event>> {
        self.lock().get(session).cloned()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<SessionId, mpsc::Sender<Event>>> {
        self.turns.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn words(session: &str, text: &str) -> SessionNotification {
        let update = serde_json::json!({ "sessionUpdate": "agent_message_chunk", "content": { "type": "text", "text": text } });
        serde_json::from_value(serde_json::json!({ "sessionId": session, "update": update })).unwrap()
    }

    #[tokio::test]
    async fn each_turn_hears_its_session_and_a_later_one_is_not_silenced_by_the_end_of_an_earlier() {
        let hub = Arc::new(Hub::default());
        let (one, other) = (SessionId::new("s1"), SessionId::new("s2"));
        let (first, mut others) = (hub.listen(&one), hub.listen(&other));
        let mut second = hub.listen(&one);
        drop(first);
        hub.update(words("s1", "a")).await;
        hub.update(words("s2", "b")).await;
        hub.update(words("s3", "nobody")).await;
        assert!(matches!(second.events.try_recv().unwrap(), Event::Update(_)));
        assert!(matches!(others.events.try_recv().unwrap(), Event::Update(_)));
        assert!(second.events.try_recv().is_err() && others.events.try_recv().is_err());
        assert_eq!([&one, &other, &SessionId::new("s3")].map(|id| hub.hears(id)), [true, true, false]);
        drop((second, others));
        assert!(hub.lock().is_empty());
    }
}
