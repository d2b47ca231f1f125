//! What plugins and questions of agents say, on its way into a lane: committed once by its key, then queued. It
//! decides neither what is said nor where.

use super::{Order, Outbox};
use crate::clock;
use crate::ledger::nexus::{NO_REQUEST_SEQ, NewDelivery, Said, Say};
use crate::ledger::writer::WriteError;
use crate::routes::{Place, Route};
use tokio::sync::watch;

/// A message that is no answer of a run.
#[derive(Debug)]
pub struct Message<'a> {
    /// Under which it is said once, without a `/`.
    pub key: &'a str,
    /// Empty for no request, whose `event_seq` is [`NO_REQUEST_SEQ`].
    pub request_id: &'a str,
    pub event_seq: i64,
    pub place: &'a Place,
    pub text: &'a str,
    /// How long it may wait to be sent.
    pub ttl_ms: u64,
}

impl Message<'_> {
    /// The rows that it takes to say it, in order.
    pub fn pieces(&self, route: &Route) -> Vec<NewDelivery> {
        let (pieces, now) = (route.pieces(self.text), clock::wall_ms());
        let (is_split, Place { adapter, target }) = (pieces.len() > 1, self.place);
        let piece = |(n, content): (usize, String)| NewDelivery {
            delivery_id: format!("dlv_{}", ulid::Ulid::generate()),
            request_id: self.request_id.to_owned(),
            event_seq: self.event_seq,
            run_id: None,
            adapter: adapter.clone(),
            channel: target.channel.clone(),
            account_id: target.account_id.clone(),
            target: target.target.clone(),
            thread_id: target.thread_id.clone(),
            reply_to_id: target.reply_to_id.clone(),
            idempotency_key: if is_split { format!("{}/{}", self.key, n + 1) } else { self.key.to_owned() },
            content,
            created_at: now,
            expires_at: now.saturating_add(i64::try_from(self.ttl_ms).unwrap_or(i64::MAX)),
            here: route.here,
        };
        pieces.into_iter().enumerate().map(piece).collect()
    }
}

/// A message that is in the ledger.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Told {
    /// Its pieces, in order.
    pub delivery_ids: Vec<String>,
    /// It was there already: nothing was added.
    pub was_before: bool,
}

/// Why nothing is known to have been said.
#[derive(Debug, thiserror::Error)]
pub enum SayError {
    #[error(transparent)]
    Write(#[from] WriteError),
    #[error("the daemon is stopping")]
    Stopping,
    #[error("the request is not in the ledger")]
    NoRequest,
    #[error("a defect of the daemon")]
    Broken(#[source] tokio::task::JoinError),
}

impl Outbox {
    /// Commits the pieces of one message under `key` and queues them, once their request is `admitted`.
    /// Once begun it is carried out also if nobody waits any more: between the commit and the lane they
    /// would wait for the next start. If `key` was used before, whatever was said then stands.
    ///
    /// # Errors
    /// [`SayError`].
    pub async fn say(&self, key: String, pieces: Vec<NewDelivery>, admitted: watch::Receiver<i64>) -> Result<Told, SayError> {
        let this = self.clone();
        let saying = crate::watch::tracked("deliveries.say", &self.shared.tasks, async move { this.say_now(key, pieces, admitted).await });
        saying.await.map_err(SayError::Broken)?
    }

    async fn say_now(&self, key: String, pieces: Vec<NewDelivery>, mut admitted: watch::Receiver<i64>) -> Result<Told, SayError> {
        let event_seq = pieces.first().map_or(NO_REQUEST_SEQ, |piece| piece.event_seq);
        let say = Say { key, pieces, epoch: self.shared.epoch };
        let was_admitted = *admitted.borrow() >= event_seq;
        let writer = &self.shared.ledgers.nexus.writer;
        let mut order = self.order(&say.pieces).await;
        let mut said = writer.write_until_done(say.clone()).await?;
        if said == Said::Lost && !was_admitted {
            // Stages don't wait for the commit that admits their request, only what they write does.
            drop(order);
            let is_admitted = tokio::select! {
                known = admitted.wait_for(|seq| *seq >= event_seq) => known.is_ok(),
                () = self.shared.stop.cancelled() => false,
            };
            if !is_admitted {
                return Err(SayError::Stopping);
            }
            order = self.order(&say.pieces).await;
            said = writer.write_until_done(say.clone()).await?;
        }
        match said {
            Said::Now => {
                let delivery_ids = say.pieces.iter().map(|piece| piece.delivery_id.clone()).collect();
                self.queue(say.pieces, order);
                Ok(Told { delivery_ids, was_before: false })
            }
            Said::Before { delivery_ids } => Ok(Told { delivery_ids, was_before: true }),
            Said::Lost => Err(SayError::NoRequest),
        }
    }

    /// What is for the control socket is where it has to be already.
    fn queue(&self, pieces: Vec<NewDelivery>, order: Order) {
        let (here, away): (Vec<_>, Vec<_>) = pieces.into_iter().partition(|piece| piece.here);
        if !here.is_empty() {
            self.shared.sent.notify_one();
        }
        drop(self.enqueue(away, order));
    }
}
