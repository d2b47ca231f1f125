//! Delivery: one task per target with something to say, one send in flight per target, so that a
//! retry never lets a later message pass. A row is `sending` before its first byte leaves.

use crate::bus::Bus;
use crate::clock::{self, Expiry};
use crate::error_text::describe;
use crate::ledger::Ledgers;
use crate::ledger::nexus::{
    Claim, ClaimDelivery, Delivery, NewDelivery, Resolution, ResolveDelivery, SettleDelivery, Settled, delivery, open_deliveries,
    uncertain_deliveries,
};
use crate::metrics::{ChannelStatus, Metrics};
use crate::routes::{Route, Routes};
use futures_util::FutureExt;
use nexus_core::config::OnUncertain;
use nexus_core::notice::NoticeType;
use nexus_core::protocol::{SendOutcome, send_retry_delay_ms};
use serde_json::json;
use std::collections::{HashMap, VecDeque};
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, Semaphore, oneshot};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Sends under way at once, over all targets: each may be a process.
const SENDS_MAX: usize = 64;
/// Texts up to this many bytes wait in memory; longer ones are read back when it is their turn.
const INLINE_BYTES_MAX: usize = 4096;
/// Deliveries that wait in memory; beyond, only their ids do.
const AT_HAND_MAX: usize = 1024;
/// Sends under way at once for one adapter, so that one that hangs leaves room for the others.
const SENDS_PER_ADAPTER: usize = 16;
/// Pause before a delivery that can't be read is read again.
const READ_RETRY: Duration = Duration::from_millis(500);

/// Handle to the outbox. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Outbox {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    ledgers: Ledgers,
    routes: Routes,
    bus: Bus,
    metrics: Metrics,
    expiry: Expiry,
    epoch: i64,
    lanes: Mutex<HashMap<String, Lane>>,
    sends: Semaphore,
    sends_of: Mutex<HashMap<String, Arc<Semaphore>>>,
    /// Rung when something was sent, for the events ledger to follow.
    sent: Arc<Notify>,
    /// Rows in all lanes.
    depth: AtomicUsize,
    tasks: TaskTracker,
    /// Begin nothing new.
    stop: CancellationToken,
    /// Leave what is under way: it is uncertain then.
    abandon: CancellationToken,
}

#[derive(Debug, Default)]
struct Lane {
    queue: VecDeque<Queued>,
    /// Rung when a person decides about a delivery that waits for its next attempt.
    hurry: Arc<Notify>,
}

#[derive(Debug)]
struct Queued {
    delivery_id: String,
    row: Option<Box<Delivery>>,
    settled: Option<oneshot::Sender<Outcome>>,
}

/// Why uncertain deliveries could not be taken up.
#[derive(Debug, thiserror::Error)]
pub enum TakeUpError {
    #[error(transparent)]
    Read(#[from] crate::ledger::ReadError),
    #[error(transparent)]
    Write(#[from] crate::ledger::writer::WriteError),
}

/// How one delivery ended.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Outcome {
    pub delivery_id: String,
    pub status: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// Deliveries whose end can be waited for.
#[derive(Debug)]
pub struct Waiting(Vec<oneshot::Receiver<Outcome>>);

impl Waiting {
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The outcomes of those that end within `patience`.
    pub async fn settle(self, patience: Duration, abandon: &CancellationToken) -> Vec<Outcome> {
        let deadline = tokio::time::Instant::now() + patience;
        let mut outcomes = Vec::with_capacity(self.0.len());
        for receiver in self.0 {
            tokio::select! {
                outcome = receiver => outcomes.extend(outcome.ok()),
                () = tokio::time::sleep_until(deadline) => break,
                () = abandon.cancelled() => break,
            }
        }
        outcomes
    }
}

impl Outbox {
    pub fn new(ledgers: Ledgers, routes: Routes, bus: Bus, metrics: Metrics, expiry: Expiry, epoch: i64) -> Self {
        let shared = Shared {
            ledgers,
            routes,
            bus,
            metrics,
            expiry,
            epoch,
            lanes: Mutex::default(),
            sends: Semaphore::new(SENDS_MAX),
            sends_of: Mutex::default(),
            sent: Arc::default(),
            depth: AtomicUsize::new(0),
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
            abandon: CancellationToken::new(),
        };
        Self { shared: Arc::new(shared) }
    }

    /// The bell that is to be rung when a reply was recorded as sent.
    pub fn sent(&self) -> &Arc<Notify> {
        &self.shared.sent
    }

    /// Takes up what a former daemon left pending. Called once, before anything new is enqueued.
    ///
    /// # Errors
    /// When the ledger can't be read.
    pub async fn resume(&self) -> Result<usize, crate::ledger::ReadError> {
        let rows = self.shared.ledgers.nexus.readers.read(open_deliveries).await?;
        let count = rows.len();
        for row in rows {
            self.push(row.lane(), Queued { delivery_id: row.delivery_id.clone(), row: None, settled: None });
        }
        Ok(count)
    }

    /// Before [`Self::resume`]: makes the uncertain deliveries pending again that `retry` names, those
    /// only whose time isn't up. Answers how many stay uncertain.
    ///
    /// # Errors
    /// When the ledger can't be read or written.
    pub async fn take_up_uncertain(&self, retry: impl Fn(&Delivery) -> bool) -> Result<usize, TakeUpError> {
        let ledger = &self.shared.ledgers.nexus;
        let (mut held, now) = (0, clock::wall_ms());
        for row in ledger.readers.read(uncertain_deliveries).await? {
            if retry(&row) && !self.shared.expiry.is_over(row.expires_at) {
                let command = ResolveDelivery { delivery_id: row.delivery_id, resolution: Resolution::Retry, at: now, ttl_ms: 0 };
                ledger.writer.write(command).await?;
            } else {
                held += 1;
            }
        }
        Ok(held)
    }

    /// Queues deliveries whose rows are committed, in order.
    pub fn enqueue(&self, rows: Vec<NewDelivery>) -> Waiting {
        let mut waiting = Vec::with_capacity(rows.len());
        for row in rows {
            let (settled, outcome) = oneshot::channel();
            waiting.push(outcome);
            let delivery = pending(row);
            let lane = delivery.lane();
            let at_hand = delivery.content.len() <= INLINE_BYTES_MAX && self.depth() < AT_HAND_MAX;
            let delivery_id = delivery.delivery_id.clone();
            self.push(lane, Queued { delivery_id, row: at_hand.then(|| Box::new(delivery)), settled: Some(settled) });
        }
        Waiting(waiting)
    }

    /// Carries out a person's decision. `None` when the delivery isn't in a state for it.
    ///
    /// # Errors
    /// When the ledger can't be written or read.
    pub async fn resolve(&self, delivery_id: &str, resolution: Resolution) -> anyhow::Result<Option<String>> {
        let ledger = &self.shared.ledgers.nexus;
        let id = delivery_id.to_owned();
        let row = ledger.readers.read(move |connection| delivery(connection, &id)).await?;
        let Some(row) = row else { return Ok(None) };
        let ttl = self.shared.routes.get(&row.adapter).map_or(3_600_000, |route| route.ttl_ms);
        let command = ResolveDelivery {
            delivery_id: row.delivery_id.clone(),
            resolution,
            at: clock::wall_ms(),
            ttl_ms: i64::try_from(ttl).unwrap_or(i64::MAX),
        };
        let before = ledger.writer.write(command).await?;
        if before.is_some() {
            match resolution {
                Resolution::Retry => self.push(row.lane(), Queued { delivery_id: row.delivery_id, row: None, settled: None }),
                Resolution::Discard => self.hurry(&row.lane()),
            }
        }
        Ok(before)
    }

    /// Deliveries waiting or under way.
    pub fn depth(&self) -> usize {
        self.shared.depth.load(Ordering::Relaxed)
    }

    /// Lets sends that are under way end, up to `patience`; rows that wait stay pending.
    pub async fn stop(&self, patience: Duration) {
        self.shared.stop.cancel();
        self.shared.tasks.close();
        if tokio::time::timeout(patience, self.shared.tasks.wait()).await.is_err() {
            tracing::warn!("sends still under way at shutdown are ended; the next start shows them as uncertain");
            self.shared.abandon.cancel();
            self.shared.tasks.wait().await;
        }
    }

    fn push(&self, lane: String, queued: Queued) {
        self.shared.depth.fetch_add(1, Ordering::Relaxed);
        let mut lanes = self.lanes();
        if let Some(known) = lanes.get_mut(&lane) {
            known.queue.push_back(queued);
            return;
        }
        let mut new = Lane::default();
        new.queue.push_back(queued);
        let hurry = new.hurry.clone();
        lanes.insert(lane.clone(), new);
        drop(lanes);
        let this = self.clone();
        self.shared.tasks.spawn(async move { this.serve(lane, hurry).await });
    }

    fn hurry(&self, lane: &str) {
        if let Some(lane) = self.lanes().get(lane) {
            lane.hurry.notify_one();
        }
    }

    /// Serves one target until nothing waits for it.
    async fn serve(&self, lane: String, hurry: Arc<Notify>) {
        loop {
            let next = {
                let mut lanes = self.lanes();
                match lanes.get_mut(&lane).and_then(|lane| lane.queue.pop_front()) {
                    Some(next) if !self.shared.stop.is_cancelled() => next,
                    Some(_) | None => {
                        lanes.remove(&lane);
                        return;
                    }
                }
            };
            // A defect in one must not end the lane: nobody would serve what is queued in it after that.
            let delivery_id = next.delivery_id.clone();
            if AssertUnwindSafe(self.deliver(next, &hurry)).catch_unwind().await.is_err() {
                tracing::error!(delivery_id, "delivering panicked; the next start decides about this delivery");
            }
            self.shared.depth.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Brings one delivery to its end, however many attempts that takes.
    async fn deliver(&self, queued: Queued, hurry: &Notify) {
        let Queued { delivery_id, mut row, settled } = queued;
        loop {
            let current = match row.take() {
                Some(row) => *row,
                None => match self.load(&delivery_id).await {
                    Some(row) if row.status == "pending" => row,
                    Some(_) | None => return, // decided by a person meanwhile
                },
            };
            let wait_ms = current.next_attempt_at.map_or(0, |at| (at - clock::wall_ms()).max(0));
            if wait_ms > 0 {
                tokio::select! {
                    () = tokio::time::sleep(Duration::from_millis(wait_ms.unsigned_abs())) => {}
                    () = hurry.notified() => continue,
                    () = self.shared.stop.cancelled() => return,
                }
            }
            let Some(outcome) = self.attempt(&current).await else { return };
            let done = match &outcome {
                Settled::Retry { .. } => None,
                Settled::Sent { .. } => Some(Outcome { delivery_id: delivery_id.clone(), status: "sent", error: None }),
                Settled::Failed { error } => {
                    Some(Outcome { delivery_id: delivery_id.clone(), status: "failed", error: Some(error.clone()) })
                }
                Settled::Uncertain { error } => {
                    Some(Outcome { delivery_id: delivery_id.clone(), status: "uncertain", error: Some(error.clone()) })
                }
                Settled::Expired { error } => {
                    Some(Outcome { delivery_id: delivery_id.clone(), status: "expired", error: Some(error.clone()) })
                }
            };
            if !self.settle(&current, outcome).await {
                return;
            }
            if let Some(outcome) = done {
                if let Some(settled) = settled
                    && settled.send(outcome).is_err()
                {
                    tracing::trace!(delivery_id, "nobody waits for this delivery any more");
                }
                return;
            }
        }
    }

    /// One attempt; `None` when it isn't ours to make (any more).
    async fn attempt(&self, delivery: &Delivery) -> Option<Settled> {
        if self.shared.expiry.is_over(delivery.expires_at) {
            return Some(Settled::Expired { error: "not delivered within its time to live".into() });
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
        let sent = tokio::select! {
            sent = sender.send(delivery) => sent,
            // Dropping it kills the process; the row stays `sending`, which a start reads as uncertain.
            () = self.shared.abandon.cancelled() => return None,
        };
        drop(permits);
        Some(judge(sent.map_err(|error| describe(&error)), delivery.attempts + 1, &route))
    }

    /// Commits how an attempt ended, and tells. False when the ledger is closed.
    async fn settle(&self, delivery: &Delivery, settled: Settled) -> bool {
        let (status, kind, error) = match &settled {
            Settled::Sent { .. } => ("sent", NoticeType::DeliverySent, None),
            Settled::Retry { error, .. } => ("pending", NoticeType::DeliveryError, Some(error.clone())),
            Settled::Failed { error } => ("failed", NoticeType::DeliveryError, Some(error.clone())),
            Settled::Uncertain { error } => ("uncertain", NoticeType::DeliveryError, Some(error.clone())),
            Settled::Expired { error } => ("expired", NoticeType::DeliveryError, Some(error.clone())),
        };
        let sent = matches!(settled, Settled::Sent { .. });
        let command = SettleDelivery { delivery_id: delivery.delivery_id.clone(), settled, at: clock::wall_ms(), epoch: self.shared.epoch };
        match self.shared.ledgers.nexus.writer.write_until_done(command).await {
            Ok(Claim::Done) => {}
            Ok(Claim::Lost) => return false, // a person decided meanwhile
            Err(error) => {
                tracing::warn!(delivery_id = delivery.delivery_id, %error, "the end of a send could not be written; it shows as uncertain");
                return false;
            }
        }
        if sent {
            self.shared.sent.notify_one();
        }
        if let Some(error) = &error {
            tracing::warn!(delivery_id = delivery.delivery_id, adapter = delivery.adapter, status, %error, "delivery");
        }
        let label = ChannelStatus { channel: delivery.channel.clone(), status };
        self.shared.metrics.deliveries.get_or_create(&label).inc();
        self.notice(kind, delivery, error.as_deref());
        true
    }

    fn notice(&self, kind: NoticeType, delivery: &Delivery, error: Option<&str>) {
        let notice = json!({
            "delivery_id": delivery.delivery_id, "request_id": delivery.request_id, "run_id": delivery.run_id,
            "adapter": delivery.adapter, "account": delivery.account_id, "target": delivery.target, "error": error,
        });
        self.shared.bus.publish(kind, notice);
    }

    /// Reads a delivery, however often that takes: going on without it would let later ones pass. `None`
    /// when there is none, or nothing is begun any more.
    async fn load(&self, delivery_id: &str) -> Option<Delivery> {
        loop {
            let id = delivery_id.to_owned();
            match self.shared.ledgers.nexus.readers.read(move |connection| delivery(connection, &id)).await {
                Ok(row) => return row,
                Err(error) => tracing::error!(delivery_id, error = %describe(&error), "delivery can't be read; trying again"),
            }
            tokio::select! {
                () = tokio::time::sleep(READ_RETRY) => {}
                () = self.shared.stop.cancelled() => return None,
            }
        }
    }

    fn sends_of(&self, adapter: &str) -> Arc<Semaphore> {
        let mut all = self.shared.sends_of.lock().unwrap_or_else(PoisonError::into_inner);
        all.entry(adapter.to_owned()).or_insert_with(|| Arc::new(Semaphore::new(SENDS_PER_ADAPTER))).clone()
    }

    fn lanes(&self) -> std::sync::MutexGuard<'_, HashMap<String, Lane>> {
        self.shared.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the ledger is told about an attempt: number `attempt`, from 1.
fn judge(sent: Result<SendOutcome, String>, attempt: u32, route: &Route) -> Settled {
    let again = |error: String, wish: Option<u64>| {
        let delay = send_retry_delay_ms(attempt, wish);
        Settled::Retry { at: clock::wall_ms().saturating_add(i64::try_from(delay).unwrap_or(i64::MAX)), error }
    };
    match sent {
        Ok(SendOutcome::Sent { message_ids }) => Settled::Sent { message_ids },
        Ok(SendOutcome::Failed { error }) => Settled::Failed { error },
        // The process never ran: nothing can have been sent.
        Err(error) | Ok(SendOutcome::Retry { error, after_ms: None }) if attempt > route.retries => Settled::Failed { error },
        Err(error) => again(error, None),
        Ok(SendOutcome::Retry { error, .. }) if attempt > route.retries => Settled::Failed { error },
        Ok(SendOutcome::Retry { error, after_ms }) => again(error, after_ms),
        Ok(SendOutcome::Uncertain { error }) => match route.on_uncertain {
            OnUncertain::Retry if attempt <= route.retries => again(error, None),
            OnUncertain::Retry | OnUncertain::Hold => Settled::Uncertain { error },
        },
    }
}

fn pending(row: NewDelivery) -> Delivery {
    Delivery {
        seq: 0,
        delivery_id: row.delivery_id,
        request_id: row.request_id,
        event_seq: row.event_seq,
        run_id: row.run_id,
        adapter: row.adapter,
        channel: row.channel,
        account_id: row.account_id,
        target: row.target,
        thread_id: row.thread_id,
        reply_to_id: row.reply_to_id,
        idempotency_key: row.idempotency_key,
        content: row.content,
        status: "pending".into(),
        attempts: 0,
        next_attempt_at: None,
        message_ids: None,
        error: None,
        created_at: row.created_at,
        updated_at: row.created_at,
        expires_at: row.expires_at,
    }
}

#[cfg(test)]
#[path = "outbox_tests.rs"]
mod tests;
