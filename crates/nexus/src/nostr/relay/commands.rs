//! What the outbox and fetches ask of one relay, and what becomes of it. How the connection is, the machine says.

use super::asked;
use super::{Command, FETCH_MS, OK_MS, Relay, Told};
use crate::clock;
use crate::nostr::codec;
use crate::nostr::machine::Input;

impl Relay {
    /// Does what the outbox and fetches ask for; what is returned is that the connection is gone.
    pub(super) async fn obey(&mut self, command: Command) -> Option<Input> {
        let is_up = self.socket.is_some() && !self.is_lost() && self.machine.may_publish();
        match command {
            Command::Publish { event_id, frame } if is_up => {
                self.awaiting.insert(event_id, clock::mono_ms() + OK_MS);
                self.send(frame).await
            }
            Command::Publish { event_id, .. } => {
                self.tell(event_id, None).await;
                None
            }
            Command::Announce(frame) if is_up => self.send(frame).await,
            Command::Announce(_) => None,
            Command::Fetch { filter, answer } if is_up => {
                let frame = self.asked.fetch(filter, answer, clock::mono_ms() + FETCH_MS)?;
                self.send(frame).await
            }
            Command::Fetch { answer, .. } => {
                asked::give_up(answer, "it is not connected");
                None
            }
        }
    }

    /// Ends what the relay doesn't answer; what is returned is that the connection is gone.
    pub(super) async fn give_up_late(&mut self) -> Option<Input> {
        let (now, mut lost) = (clock::mono_ms(), None);
        for id in self.asked.late(now) {
            lost = lost.or(self.send(codec::close(&id)).await);
        }
        let late: Vec<String> = self.awaiting.iter().filter(|(_, until)| **until <= now).map(|(id, _)| id.clone()).collect();
        for event_id in late {
            self.awaiting.remove(&event_id);
            // Not as after a lost connection: one that never answers would be sent it again and again.
            self.tell(event_id, Some((false, "error: it gave no answer".to_owned()))).await;
        }
        lost
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
