//! Delivery: one task per target with something to say, one send in flight per target, so that a
//! retry never lets a later message pass. Here are the lanes and what enters them; `order` has it enter
//! in the order of commits, `deliver` brings one delivery to its end, `split` makes several of one that is too long, `stream` sees to one whose agent still speaks, `say`
//! takes in what plugins and questions of agents say.

mod deliver;
mod order;
mod say;
mod split;
mod stream;
mod unheard;

pub use order::Order;
pub use say::{Message, SayError, Told};

use crate::bus::Bus;
use crate::clock::{self, Expiry};
use crate::ledger::Ledgers;
use crate::ledger::nexus::{
    Claim, Delivery, NewDelivery, Resolution, ResolveDelivery, begun_after, cut_off_sends, delivery, open_deliveries, uncertain_deliveries,
};
use crate::ledger::writer::WriteError;
use crate::live::Live;
use crate::metrics::Metrics;
use crate::panics;
use crate::plugin::Plugins;
use crate::routes::Routes;
use crate::watch::Watch;
use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
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
/// How much longer a delivery lives that a person retries, if its adapter is not configured any more.
const TTL_MS_WITHOUT_ROUTE: u64 = 3_600_000;

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
    watch_over: Watch,
    metrics: Metrics,
    expiry: Expiry,
    epoch: i64,
    /// Told of answers that don't arrive. They lead back here.
    plugins: OnceLock<Weak<Plugins>>,
    lanes: Mutex<HashMap<String, Lane>>,
    orders: order::Orders,
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
    /// Rung when something is queued behind what is being served.
    more: Arc<Notify>,
    /// The answer that is being served, if its agent still spoke when its turn came.
    live: Option<Arc<Live>>,
}

#[derive(Debug)]
struct Queued {
    delivery_id: String,
    row: Option<Box<Delivery>>,
    settled: Option<oneshot::Sender<Outcome>>,
    /// It has no row yet: its agent still speaks.
    live: Option<Arc<Live>>,
}

impl Lane {
    /// Begins to serve what is next. Whoever looks for an answer that goes on finds it in the queue or being served.
    fn take_next(&mut self) -> Option<Queued> {
        let next = self.queue.pop_front()?;
        self.live.clone_from(&next.live);
        Some(next)
    }
}

/// What came of a person's decision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Resolved {
    Done {
        before: String,
    },
    /// It isn't in a state for that, or somebody or something else was first.
    NotNow {
        status: String,
    },
    /// There is no such delivery.
    Unknown,
}

/// Why uncertain deliveries could not be taken up.
#[derive(Debug, thiserror::Error)]
pub enum TakeUpError {
    #[error(transparent)]
    Read(#[from] crate::ledger::ReadError),
    #[error(transparent)]
    Write(#[from] WriteError),
}

/// What stage 7 came to, as a request's `delivery_result` tells it.
#[derive(Debug, Clone, serde::Serialize, schemars::JsonSchema)]
pub struct DeliveryResult {
    pub deliveries: usize,
    /// Those that were waited for; nothing of an answer without an agent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub settled: Option<Vec<Outcome>>,
    pub pending: usize,
}

/// How one delivery ended.
#[derive(Debug, Clone, serde::Serialize, schemars::JsonSchema)]
#[schemars(rename = "DeliveryOutcome")]
pub struct Outcome {
    pub delivery_id: String,
    pub status: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

impl Outcome {
    /// Why it wasn't sent, or not surely.
    pub fn failure(&self) -> Option<&str> {
        (self.status != "sent").then(|| self.error.as_deref().unwrap_or("a message could not be delivered"))
    }
}

/// Deliveries whose end can be waited for.
#[derive(Debug, Default)]
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

    /// Waits for those as well.
    pub fn add(&mut self, others: Self) {
        self.0.extend(others.0);
    }

    /// The outcomes of those that end within `patience`.
    pub async fn settle(self, patience: Duration, abandon: &CancellationToken) -> Vec<Outcome> {
        let deadline = tokio::time::Instant::now() + patience;
        let mut outcomes = Vec::with_capacity(self.0.len());
        let mut is_over = false;
        for mut receiver in self.0 {
            if !is_over {
                tokio::select! {
                    outcome = &mut receiver => {
                        outcomes.extend(outcome.ok());
                        continue;
                    }
                    () = tokio::time::sleep_until(deadline) => is_over = true,
                    () = abandon.cancelled() => is_over = true,
                }
            }
            // One that ended just now is heard here, and any later one elsewhere.
            receiver.close();
            outcomes.extend(receiver.try_recv().ok());
        }
        outcomes
    }
}

impl Outbox {
    pub fn new(ledgers: Ledgers, routes: Routes, bus: Bus, watch_over: Watch, metrics: Metrics, expiry: Expiry, epoch: i64) -> Self {
        let shared = Shared {
            ledgers,
            routes,
            bus,
            watch_over,
            metrics,
            expiry,
            epoch,
            plugins: OnceLock::new(),
            lanes: Mutex::default(),
            orders: order::Orders::default(),
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
        self.take_up(rows);
        Ok(count)
    }

    /// Queues deliveries that are in the ledger. One that is queued already is sent once all the same.
    pub(super) fn take_up(&self, rows: Vec<Delivery>) {
        for row in rows {
            self.push(row.lane(), Queued { delivery_id: row.delivery_id.clone(), row: None, settled: None, live: None });
        }
    }

    /// Before [`Self::resume`]: makes the uncertain deliveries pending again that `retry` names, those only whose time
    /// isn't up and that nothing newer for their target has passed: it would see them too late. Answers how many stay
    /// uncertain. Plugins are told of those that a start found cut off, until one lives to see that they were.
    ///
    /// # Errors
    /// When the ledger can't be read or written.
    pub async fn take_up_uncertain(&self, retry: impl Fn(&Delivery) -> bool) -> Result<usize, TakeUpError> {
        let ledger = &self.shared.ledgers.nexus;
        let read = ledger.readers.read(|connection| Ok((uncertain_deliveries(connection)?, cut_off_sends(connection)?)));
        let (uncertain, cut_off) = read.await?;
        // A stream that a crash broke off is empty: nobody knows its text.
        let is_due = |row: &Delivery| !row.content.is_empty() && retry(row) && !self.shared.expiry.is_over(row.expires_at);
        let (mut due, mut held): (Vec<_>, Vec<_>) = uncertain.into_iter().partition(is_due);
        if let Some(oldest) = due.first().map(|row| row.seq) {
            // One whose time was up was passed by others. While the clock is in doubt nothing's time is up.
            let begun = ledger.readers.read(move |connection| begun_after(connection, oldest)).await?;
            let is_passed = |row: &mut Delivery| begun.get(&row.lane()).is_some_and(|newest| *newest > row.seq);
            held.extend(due.extract_if(.., is_passed));
        }
        let (at, epoch) = (clock::wall_ms(), self.shared.epoch);
        for Delivery { delivery_id, status, updated_at, .. } in due {
            let command = ResolveDelivery { delivery_id, resolution: Resolution::Retry, status, updated_at, at, ttl_ms: 0, epoch };
            ledger.writer.write(command).await?;
        }
        let count = held.len();
        if !cut_off.is_empty() {
            held.retain(|row| cut_off.contains(&row.delivery_id));
            self.tell_cut_off(held);
        }
        Ok(count)
    }

    /// Queues deliveries whose rows are committed, by who has had the order of their target since before that.
    pub fn enqueue(&self, rows: Vec<NewDelivery>, order: Order) -> Waiting {
        let mut waiting = Vec::with_capacity(rows.len());
        for row in rows {
            let (settled, outcome) = oneshot::channel();
            waiting.push(outcome);
            let delivery = pending(row);
            let lane = delivery.lane();
            let at_hand = delivery.content.len() <= INLINE_BYTES_MAX && self.depth() < AT_HAND_MAX;
            let delivery_id = delivery.delivery_id.clone();
            self.push(lane, Queued { delivery_id, row: at_hand.then(|| Box::new(delivery)), settled: Some(settled), live: None });
        }
        drop(order);
        Waiting(waiting)
    }

    /// Carries out a person's decision, however long the ledger takes to write it. Once begun it is
    /// carried out also if nobody waits for the answer any more: between the commit and the lane it
    /// would be lost. Made in view of the status `seen`, it counts for no other.
    ///
    /// # Errors
    /// When the ledger can't be read, or refuses or is closed.
    pub async fn resolve(&self, delivery_id: &str, resolution: Resolution, seen: Option<&str>) -> anyhow::Result<Resolved> {
        let id = delivery_id.to_owned();
        let row = self.shared.ledgers.nexus.readers.read(move |connection| delivery(connection, &id)).await?;
        let Some(row) = row else { return Ok(Resolved::Unknown) };
        if seen.is_some_and(|seen| seen != row.status) {
            return Ok(Resolved::NotNow { status: row.status });
        }
        let this = self.clone();
        let decided = crate::watch::tracked("deliveries.resolve", &self.shared.tasks, async move {
            let done = this.decide(&row, resolution).await?;
            Ok::<_, WriteError>(if done { Resolved::Done { before: row.status } } else { Resolved::NotNow { status: row.status } })
        });
        Ok(decided.await??)
    }

    /// Writes a decision and has it carried out; false when the delivery isn't in a state for it.
    async fn decide(&self, row: &Delivery, resolution: Resolution) -> Result<bool, WriteError> {
        let ttl_ms = self.shared.routes.get(&row.adapter).map_or(TTL_MS_WITHOUT_ROUTE, |route| route.ttl_ms);
        let command = ResolveDelivery {
            delivery_id: row.delivery_id.clone(),
            resolution,
            status: row.status.clone(),
            updated_at: row.updated_at,
            at: clock::wall_ms(),
            ttl_ms: i64::try_from(ttl_ms).unwrap_or(i64::MAX),
            epoch: self.shared.epoch,
        };
        match self.shared.ledgers.nexus.writer.write_until_done(command).await? {
            Claim::Done => {}
            Claim::Lost => return Ok(false),
        }
        self.forget_rows(&row.lane(), &row.delivery_id);
        match resolution {
            Resolution::Retry => {
                self.push(row.lane(), Queued { delivery_id: row.delivery_id.clone(), row: None, settled: None, live: None });
            }
            Resolution::Discard => self.hurry(&row.lane()),
        }
        Ok(true)
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
            known.more.notify_one();
            return;
        }
        let mut new = Lane::default();
        new.queue.push_back(queued);
        let hurry = new.hurry.clone();
        lanes.insert(lane.clone(), new);
        drop(lanes);
        let this = self.clone();
        crate::watch::tracked("deliveries", &self.shared.tasks, async move {
            let name = format!("deliveries to {}", lane.replace('\u{1f}', "/"));
            this.shared.watch_over.until_done(name, &this.shared.stop, || this.serve(&lane, &hurry)).await;
        });
    }

    /// Puts deliveries whose rows are committed before all that waits in a lane that is being served.
    fn push_next(&self, lane: &str, delivery_ids: Vec<String>) {
        if let Some(lane) = self.lanes().get_mut(lane) {
            self.shared.depth.fetch_add(delivery_ids.len(), Ordering::Relaxed);
            for delivery_id in delivery_ids.into_iter().rev() {
                lane.queue.push_front(Queued { delivery_id, row: None, settled: None, live: None });
            }
        }
    }

    /// What a lane has in memory of a delivery that a person decided about isn't true any more.
    fn forget_rows(&self, lane: &str, delivery_id: &str) {
        if let Some(lane) = self.lanes().get_mut(lane) {
            lane.queue.iter_mut().filter(|queued| queued.delivery_id == delivery_id).for_each(|queued| queued.row = None);
        }
    }

    fn hurry(&self, lane: &str) {
        if let Some(lane) = self.lanes().get(lane) {
            lane.hurry.notify_one();
        }
    }

    /// Serves one target until nothing waits for it.
    async fn serve(&self, lane: &str, hurry: &Notify) {
        loop {
            crate::torture::point("task.lane");
            let next = {
                let mut lanes = self.lanes();
                match lanes.get_mut(lane).and_then(Lane::take_next) {
                    Some(next) if !self.shared.stop.is_cancelled() => next,
                    Some(_) | None => {
                        lanes.remove(lane);
                        return;
                    }
                }
            };
            let mut next = Some(next);
            while let Some(queued) = next.take() {
                next = self.deliver_safely(queued, hurry).await;
            }
            self.shared.depth.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Brings one delivery to its end, or back if a defect broke it off and it is to be tried again. A defect
    /// in one must not end the lane: nobody would serve what is queued in it after that.
    async fn deliver_safely(&self, queued: Queued, hurry: &Notify) -> Option<Queued> {
        let delivery_id = queued.delivery_id.clone();
        let Err(panicked) = panics::caught(self.deliver(queued, hurry)).await else { return None };
        self.shared.watch_over.tell("delivery", &panicked.to_string());
        match panics::caught(self.break_off(&delivery_id, &panicked)).await {
            Ok(is_again) => is_again.then_some(Queued { delivery_id, row: None, settled: None, live: None }),
            Err(panicked) => {
                tracing::error!(delivery_id, error = %panicked, "a broken delivery has no end; the next start decides about it");
                None
            }
        }
    }

    fn lanes(&self) -> std::sync::MutexGuard<'_, HashMap<String, Lane>> {
        self.shared.lanes.lock().unwrap_or_else(PoisonError::into_inner)
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
