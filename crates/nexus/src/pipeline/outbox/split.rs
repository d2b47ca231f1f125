//! A delivery that is longer than a message of its channel may be becomes several before it is sent: an answer that was
//! to be streamed, or one that was made before its adapter told its limit. Never sends.

use super::Outbox;
use crate::clock;
use crate::ledger::nexus::{Claim, Delivery, NewDelivery, SplitDelivery};

/// Whether a delivery can be sent.
pub(super) enum Fit {
    /// As it is.
    Whole,
    /// It is several now: itself the first, and the others next in its lane.
    Split,
    /// Not now, or not by us.
    Gone,
}

impl Outbox {
    /// Makes one that is too long several, each with a key of its own.
    pub(super) async fn fit(&self, delivery: &Delivery) -> Fit {
        if self.shared.expiry.is_over(delivery.expires_at) {
            return Fit::Whole; // and it ends as that
        }
        let route = tokio::select! {
            route = self.shared.routes.settled(&delivery.adapter) => route,
            () = self.shared.stop.cancelled() => return Fit::Gone,
        };
        // No text has more characters than bytes.
        let Some(route) = route.filter(|route| route.text_limit > 0 && delivery.content.len() > route.text_limit) else {
            return Fit::Whole;
        };
        let pieces = route.pieces(&delivery.content);
        let is_whole = pieces.first().is_none_or(|first| *first == delivery.content);
        if is_whole { Fit::Whole } else { self.split(delivery, pieces).await }
    }

    async fn split(&self, delivery: &Delivery, pieces: Vec<String>) -> Fit {
        let (is_split, key) = (pieces.len() > 1, &delivery.idempotency_key);
        let keyed = |(n, content): (usize, String)| (if is_split { format!("{key}/{}", n + 1) } else { key.clone() }, content);
        let mut pieces = pieces.into_iter().enumerate().map(keyed);
        let Some((idempotency_key, content)) = pieces.next() else { return Fit::Whole };
        let others: Vec<NewDelivery> = pieces.map(|(key, content)| beside(delivery, key, content)).collect();
        let delivery_ids = others.iter().map(|piece| piece.delivery_id.clone()).collect();
        let (at, epoch) = (clock::wall_ms(), self.shared.epoch);
        let command = SplitDelivery { delivery_id: delivery.delivery_id.clone(), content, idempotency_key, others, at, epoch };
        match self.shared.ledgers.nexus.writer.write_until_done(command).await {
            Ok(Claim::Done) => {
                self.push_next(&delivery.lane(), delivery_ids);
                Fit::Split
            }
            Ok(Claim::Lost) => Fit::Gone, // a person decided meanwhile
            Err(error) => {
                tracing::warn!(delivery_id = delivery.delivery_id, %error, "a delivery that is too long could not be split");
                Fit::Gone
            }
        }
    }
}

/// Another piece of a delivery.
fn beside(delivery: &Delivery, idempotency_key: String, content: String) -> NewDelivery {
    NewDelivery {
        delivery_id: format!("dlv_{}", ulid::Ulid::generate()),
        request_id: delivery.request_id.clone(),
        event_seq: delivery.event_seq,
        run_id: delivery.run_id.clone(),
        adapter: delivery.adapter.clone(),
        channel: delivery.channel.clone(),
        account_id: delivery.account_id.clone(),
        target: delivery.target.clone(),
        thread_id: delivery.thread_id.clone(),
        reply_to_id: delivery.reply_to_id.clone(),
        idempotency_key,
        content,
        created_at: delivery.created_at,
        expires_at: delivery.expires_at,
        here: false,
    }
}
