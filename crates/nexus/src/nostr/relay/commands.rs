//! What the outbox and fetches ask of one relay, and what becomes of it. How the connection is, the machine says.

use super::asked;
use super::{Command, FETCH_MS, OK_MS, Relay, Told};
use crate::nostr::codec;

impl Relay {
    /// Does what the outbox and fetches ask for.
    pub(super) async fn told(&mut self, command: Command) {
        let is_up = self.socket.is_some() && self.machine.may_publish();
        match command {
            Command::Publish { event_id, frame } if is_up => {
                let until = self.now().mono_ms + OK_MS;
                self.awaiting.insert(event_id, until);
                self.send_or_lose(frame).await;
            }
            Command::Publish { event_id, .. } => self.tell(event_id, None).await,
            Command::Announce(frame) if is_up => self.send_or_lose(frame).await,
            Command::Announce(_) => {}
            Command::Fetch { filter, answer } if is_up => {
                let until = self.now().mono_ms + FETCH_MS;
                let frame = self.asked.fetch(filter, answer, until);
                if let Some(frame) = frame {
                    self.send_or_lose(frame).await;
                }
            }
            Command::Fetch { answer, .. } => asked::give_up(answer, "it is not connected"),
        }
    }

    async fn send_or_lose(&mut self, frame: String) {
        if let Some(lost) = self.send(frame).await {
            self.step(lost).await;
        }
    }

    /// Ends what the relay doesn't answer.
    pub(super) async fn give_up_late(&mut self) {
        let now = self.now().mono_ms;
        for id in self.asked.late(now) {
            self.send_or_lose(codec::close(&id)).await;
        }
        let late: Vec<String> = self.awaiting.iter().filter(|(_, until)| **until <= now).map(|(id, _)| id.clone()).collect();
        for event_id in late {
            self.awaiting.remove(&event_id);
            // Not as after a lost connection: one that never answers would be sent it again and again.
            self.tell(event_id, Some((false, "error: it gave no answer".to_owned()))).await;
        }
    }

    pub(super) async fn tell_unanswered(&mut self) {
        for (event_id, _) in std::mem::take(&mut self.awaiting) {
            self.tell(event_id, None).await;
        }
    }

    pub(super) async fn tell(&self, event_id: String, answer: Option<(bool, String)>) {
        let told = Told { relay: self.parts.url.clone(), event_id, answer };
        tokio::select! {
            biased;
            // An error means that nothing is published any more; the ledger still has it to be published.
            _ = self.parts.told.send(told) => {}
            // Whoever would read it may have stopped already.
            () = self.stop.cancelled() => {}
        }
    }
}
