//! One delivery, from its turn in the lane to its end: the wait for the next attempt, what it needs for
//! that, the send, and what is written of it. Never decides which delivery is next.

use super::split::Fit;
use super::{Outbox, Outcome, Queued};
use crate::clock;
use crate::error_text::describe;
use crate::ledger::nexus::{Claim, ClaimDelivery, Delivery, SettleDelivery, Settled, delivery};
use crate::metrics::ChannelStatus;
use crate::panics::Panicked;
use crate::routes::Route;
use nexus_core::config::OnUncertain;
use nexus_core::notice::NoticeType;
use nexus_core::protocol::{SendOutcome, send_retry_delay_ms};
use rusqlite::Connection;
use serde_json::json;
use std::sync::{Arc, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, Semaphore};
use tokio::time::Instant;

/// Sends under way at once for one adapter, so that one that hangs leaves room for the others.
const SENDS_PER_ADAPTER: usize = 16;
/// Longest sleep before the clocks are looked at again: one may be set, and the machine may sleep too.
const NAP_MS_MAX: i64 = 30_000;

/// Why a wait for the next attempt is over.
enum Turn {
    /// It is time for the attempt, or too late for any.
    Due,
    /// A person decided about a delivery of this lane: it may be this one.
    Decided,
    /// Nothing new is begun.
    Stopping,
}

impl Outbox {
    /// Brings one delivery to its end, however many attempts that takes.
    pub(super) async fn deliver(&self, queued: Queued, hurry: &Notify) {
        let Queued { delivery_id, mut row, settled, live } = queued;
        crate::torture::point("delivery.begun");
        let mut streamed = None;
        if let Some(live) = live {
            streamed = self.stream_out(&live).await;
            if streamed.is_none() {
                return; // nothing left
            }
        }
        loop {
            let (current, ended) = match streamed.take() {
                Some(streamed) => streamed,
                None => {
                    let current = match row.take() {
                        Some(row) => *row,
                        None => match self.load(&delivery_id).await {
                            Some(row) if row.status == "pending" => row,
                            Some(_) | None => return, // decided by a person meanwhile
                        },
                    };
                    match self.wait(&current, hurry).await {
                        Turn::Due => {}
                        Turn::Decided => continue,
                        Turn::Stopping => return,
                    }
                    match self.fit(&current).await {
                        Fit::Whole => {}
                        Fit::Split => continue,
                        Fit::Gone => return,
                    }
                    let Some(ended) = self.attempt(&current).await else { return };
                    (current, ended)
                }
            };
            if !self.settle(&current, &ended).await {
                return;
            }
            if matches!(ended, Settled::Retry { .. }) {
                continue;
            }
            let outcome = Outcome { delivery_id, status: ended.status(), error: ended.error().map(str::to_owned) };
            let is_heard = settled.is_some_and(|settled| settled.send(outcome).is_ok());
            if !is_heard {
                self.tell_unheard(&current, &ended).await;
            }
            return;
        }
    }

    /// Writes what a panic came to that broke off a delivery: one that may have left is uncertain, and
    /// tried again or not by its adapter's policy. True when it is to be tried again, before what follows.
    pub(super) async fn break_off(&self, delivery_id: &str, panicked: &Panicked) -> bool {
        let Some(row) = self.load(delivery_id).await else { return false };
        let ended = match row.status.as_str() {
            "sending" => {
                let error = format!("a defect of the daemon while this was being sent: {panicked}");
                // A stream whose agent still speaks has no text yet that could be sent.
                match self.shared.routes.get(&row.adapter).filter(|_| !row.content.is_empty()) {
                    Some(route) => judge(Ok(SendOutcome::Uncertain { error }), row.attempts, &route),
                    None => Settled::Uncertain { error },
                }
            }
            "pending" => Settled::Failed { error: format!("a defect of the daemon before this was sent: {panicked}") },
            _ => return false, // it has its end
        };
        if !self.settle(&row, &ended).await {
            return false;
        }
        self.tell_unheard(&row, &ended).await;
        matches!(ended, Settled::Retry { .. })
    }

    /// Waits until the next attempt is due, or the delivery's time is up.
    async fn wait(&self, delivery: &Delivery, hurry: &Notify) -> Turn {
        let began = Instant::now();
        loop {
            let now = clock::wall_ms();
            let waited_ms = i64::try_from(began.elapsed().as_millis()).unwrap_or(i64::MAX);
            let nap_ms = nap_ms(delivery, now, waited_ms);
            if nap_ms == 0 || self.shared.expiry.is_over(delivery.expires_at) {
                return Turn::Due;
            }
            tokio::select! {
                () = tokio::time::sleep(Duration::from_millis(nap_ms.unsigned_abs())) => {}
                () = hurry.notified() => return Turn::Decided,
                () = self.shared.stop.cancelled() => return Turn::Stopping,
            }
        }
    }

    /// One attempt; `None` when it isn't ours to make (any more).
    pub(super) async fn attempt(&self, delivery: &Delivery) -> Option<Settled> {
        if self.shared.expiry.is_over(delivery.expires_at) {
            return Some(expired());
        }
        let route = tokio::select! {
            route = self.shared.routes.settled(&delivery.adapter) => route,
            // A route that vanishes because the daemon stops says nothing about the delivery.
            () = self.shared.stop.cancelled() => return None,
        };
        let Some(route) = route else {
            return Some(Settled::Failed { error: format!("adapter `{}` is not configured any more", delivery.adapter) });
        };
        let Some(sender) = &route.sender else {
            return Some(Settled::Failed { error: format!("adapter `{}` can't send", delivery.adapter) });
        };
        let of_adapter = self.sends_of(&delivery.adapter);
        let permits = async { (of_adapter.acquire().await.ok(), self.shared.sends.acquire().await.ok()) };
        let permits = tokio::select! {
            permits = permits => permits,
            () = self.shared.stop.cancelled() => return None,
        };
        // Others' sends decide how long that took.
        if self.shared.expiry.is_over(delivery.expires_at) {
            return Some(expired());
        }
        let claim = ClaimDelivery { delivery_id: delivery.delivery_id.clone(), at: clock::wall_ms(), epoch: self.shared.epoch };
        match self.shared.ledgers.nexus.writer.write_until_done(claim).await {
            Ok(Claim::Done) => {}
            Ok(Claim::Lost) => return None,
            Err(error) => {
                tracing::warn!(delivery_id = delivery.delivery_id, %error, "delivery not claimed");
                return None;
            }
        }
        self.notice(NoticeType::DeliverySending, delivery, None);
        crate::torture::point("delivery.claimed");
        crate::torture::point("send.before");
        let sent = tokio::select! {
            sent = sender.send(delivery) => sent,
            // Dropping it kills the process; the row stays `sending`, which a start reads as uncertain.
            () = self.shared.abandon.cancelled() => return None,
        };
        crate::torture::point("send.after");
        drop(permits);
        Some(judge(sent.map_err(|error| describe(&error)), delivery.attempts + 1, &route))
    }

    /// Commits how an attempt ended, and tells. False when the ledger is closed.
    async fn settle(&self, delivery: &Delivery, settled: &Settled) -> bool {
        let command = SettleDelivery {
            delivery_id: delivery.delivery_id.clone(),
            settled: settled.clone(),
            at: clock::wall_ms(),
            epoch: self.shared.epoch,
        };
        match self.shared.ledgers.nexus.writer.write_until_done(command).await {
            Ok(Claim::Done) => {}
            Ok(Claim::Lost) => return false, // a person decided meanwhile
            Err(error) => {
                tracing::warn!(delivery_id = delivery.delivery_id, %error, "the end of a send could not be written; it shows as uncertain");
                return false;
            }
        }
        let status = settled.status();
        let kind = match settled {
            Settled::Sent { .. } => {
                self.shared.sent.notify_one();
                NoticeType::DeliverySent
            }
            Settled::Retry { .. } | Settled::Failed { .. } | Settled::Uncertain { .. } | Settled::Expired { .. } => {
                NoticeType::DeliveryError
            }
        };
        if let Some(error) = settled.error() {
            tracing::warn!(delivery_id = delivery.delivery_id, adapter = delivery.adapter, status, error, "delivery");
        }
        let label = ChannelStatus { channel: delivery.channel.clone(), status };
        self.shared.metrics.deliveries.get_or_create(&label).inc();
        self.notice(kind, delivery, settled.error());
        true
    }

    pub(super) fn notice(&self, kind: NoticeType, delivery: &Delivery, error: Option<&str>) {
        let notice = json!({
            "delivery_id": delivery.delivery_id, "request_id": delivery.request_id, "run_id": delivery.run_id,
            "adapter": delivery.adapter, "account": delivery.account_id, "target": delivery.target, "error": error,
        });
        self.shared.bus.publish(kind, notice);
    }

    /// Reads a delivery, however often that takes: going on without it would let later ones pass. `None`
    /// when there is none, or nothing is begun any more.
    pub(super) async fn load(&self, delivery_id: &str) -> Option<Delivery> {
        let id = delivery_id.to_owned();
        let read = move |connection: &Connection| delivery(connection, &id);
        self.shared.ledgers.nexus.readers.read_until_done(read, &self.shared.stop).await.flatten()
    }

    /// The permits of one adapter's sends.
    pub(super) fn sends_of(&self, adapter: &str) -> Arc<Semaphore> {
        let mut all = self.shared.sends_of.lock().unwrap_or_else(PoisonError::into_inner);
        all.entry(adapter.to_owned()).or_insert_with(|| Arc::new(Semaphore::new(SENDS_PER_ADAPTER))).clone()
    }
}

/// How long to sleep before the next look at the clocks, `waited_ms` after the wait began: 0 when the
/// attempt is due. The wall clock knows of sleep and restarts, but it may have been set; so nobody waits
/// for longer than was decided when the last attempt ended, nor than the delivery was to live.
pub(super) fn nap_ms(delivery: &Delivery, now: i64, waited_ms: i64) -> i64 {
    let Some(at) = delivery.next_attempt_at else { return 0 };
    // It expires one after the last that it lives in.
    let lifetime_ms = delivery.expires_at.saturating_sub(delivery.created_at).saturating_add(1);
    let decided_ms = at.saturating_sub(delivery.updated_at).min(lifetime_ms);
    let left_ms = at.saturating_sub(now).min(decided_ms.saturating_sub(waited_ms)).clamp(0, NAP_MS_MAX);
    match delivery.expires_at.saturating_sub(now) {
        last_ms @ 0.. => left_ms.min(last_ms.saturating_add(1)),
        // Past it and not expired: the clock is in doubt.
        _ => left_ms,
    }
}

fn expired() -> Settled {
    Settled::Expired { error: "not delivered within its time to live".into() }
}

/// There is to be another attempt after number `attempt`, and not before the platform's wish.
pub(super) fn again(attempt: u32, error: String, wish_ms: Option<u64>) -> Settled {
    let delay_ms = i64::try_from(send_retry_delay_ms(attempt, wish_ms)).unwrap_or(i64::MAX);
    Settled::Retry { at: clock::wall_ms().saturating_add(delay_ms), error }
}

/// What the ledger is told about an attempt: number `attempt`, from 1.
pub(super) fn judge(sent: Result<SendOutcome, String>, attempt: u32, route: &Route) -> Settled {
    match sent {
        Ok(SendOutcome::Sent { message_ids }) => Settled::Sent { message_ids },
        Ok(SendOutcome::Failed { error }) => Settled::Failed { error },
        // The process never ran: nothing can have been sent.
        Err(error) | Ok(SendOutcome::Retry { error, after_ms: None }) if attempt > route.retries => Settled::Failed { error },
        Err(error) => again(attempt, error, None),
        Ok(SendOutcome::Retry { error, .. }) if attempt > route.retries => Settled::Failed { error },
        Ok(SendOutcome::Retry { error, after_ms }) => again(attempt, error, after_ms),
        Ok(SendOutcome::Uncertain { error }) => match route.on_uncertain {
            OnUncertain::Retry if attempt <= route.retries => again(attempt, error, None),
            OnUncertain::Retry | OnUncertain::Hold => Settled::Uncertain { error },
        },
    }
}
