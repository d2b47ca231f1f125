//! Verified events of all relays into the ledgers: definitions first, then everything else in one commit with the
//! cursors that cover it. It takes in no more than there is room for; then no relay is read on, and each keeps
//! what it has. A cursor moves only behind the events that came before it.

use super::fair::{Fair, Limits, is_request};
use super::gate::Seen;
use super::refused::{is_left_out, is_refused};
use super::sort::{self, Purpose, Rules, sort};
use super::subscriptions::Cursors;
use super::{ADAPTER, Inner, Plan};
use crate::adapter::intake::Sinks;
use crate::clock;
use crate::error_text::describe;
use crate::ledger::events::{Append, Appended, Disposition, Lines, NewEvent, RelayCursor, TakeIn, appended_since, nostr_event_of};
use crate::ledger::nexus::{Definition, Put, RESTORED_AT, counter};
use crate::ledger::writer::WriteError;
use crate::ledger::{Ledgers, optional};
use crate::metrics::RelayResult;
use crate::routes::DEFAULT_ACCOUNT;
use ::nostr::event::Event;
use nexus_core::ids::AccountKey;
use nexus_core::notice::NoticeType;
use serde_json::json;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Events that wait to be taken in, and the bytes that they may have together.
const QUEUE_MAX: usize = 1_024;
const QUEUE_BYTES_MAX: usize = 8 * 1024 * 1024;
/// Bytes of the events that all relays together hold back until they can be sorted.
const HOLDING_BYTES_MAX: usize = 16 * 1024 * 1024;
/// What an event, each of its tags and each part of one take beside their texts.
const EVENT_BYTES: usize = 512;
const TAG_BYTES: usize = 48;
const PART_BYTES: usize = 40;
/// Events of one commit.
const BATCH_MAX: usize = 256;
/// How long after a look at the ledger that failed the next one is.
const RESTORED_AGAIN: Duration = Duration::from_secs(1);

/// What a relay hands over, in the order in which it came.
#[derive(Debug)]
pub(crate) enum Arrived {
    Event {
        relay: Arc<str>,
        event: Box<Event>,
        _bytes: OwnedSemaphorePermit,
    },
    /// All that came of a subscription up to `until` (Unix seconds) stands before this.
    Proven {
        relay: Arc<str>,
        filter: String,
        until: u64,
        /// Of the taking in under which the subscription was asked for.
        generation: u64,
    },
}

/// What became of an event at the door.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Handed {
    On,
    /// Another relay brought it first.
    Known,
    /// Nothing is taken in any more.
    Nowhere,
}

/// The relays' end.
#[derive(Debug, Clone)]
pub(crate) struct Door {
    queue: mpsc::Sender<Arrived>,
    bytes: Arc<Semaphore>,
    seen: Arc<Seen>,
}

/// What an event takes of the memory that there is for events.
pub(crate) fn bytes_of(event: &Event) -> u32 {
    let tag = |tag: &::nostr::event::Tag| TAG_BYTES + tag.as_slice().iter().map(|part| part.len() + PART_BYTES).sum::<usize>();
    let bytes = EVENT_BYTES + event.content.len() + event.tags.iter().map(tag).sum::<usize>();
    u32::try_from(bytes.min(QUEUE_BYTES_MAX)).unwrap_or(u32::MAX)
}

impl Door {
    /// Waits until there is room. Its id is known from then on, and not before: until it stands in the queue, another
    /// relay that has it too may be the one that brings it.
    pub(crate) async fn event(&self, relay: &Arc<str>, event: Box<Event>) -> Handed {
        let Ok(bytes) = self.bytes.clone().acquire_many_owned(bytes_of(&event)).await else { return Handed::Nowhere };
        let Ok(place) = self.queue.reserve().await else { return Handed::Nowhere };
        let id = event.id.to_bytes();
        let arrived = Arrived::Event { relay: relay.clone(), event, _bytes: bytes };
        if self.seen.once(id, || place.send(arrived)) { Handed::On } else { Handed::Known }
    }

    pub(crate) async fn proven(&self, relay: &Arc<str>, filter: String, until: u64, generation: u64) -> bool {
        self.queue.send(Arrived::Proven { relay: relay.clone(), filter, until, generation }).await.is_ok()
    }
}

/// What survives a failure of the taking in.
#[derive(Debug)]
pub(crate) struct Inbox {
    queue: Mutex<mpsc::Receiver<Arrived>>,
    door: Door,
    /// Rises whenever what was in hand may have been lost: relays ask again then.
    pub(crate) generation: watch::Sender<u64>,
    pub(crate) seen: Arc<Seen>,
    /// Bytes that may still be held back.
    pub(crate) holding: Arc<Semaphore>,
    pub(crate) cursors: Cursors,
    taken: AtomicU64,
}

impl Inbox {
    pub(crate) fn new() -> Self {
        let (queue, receiver) = mpsc::channel(QUEUE_MAX);
        let seen = Arc::new(Seen::default());
        Self {
            queue: Mutex::new(receiver),
            door: Door { queue, bytes: Arc::new(Semaphore::new(QUEUE_BYTES_MAX)), seen: seen.clone() },
            generation: watch::Sender::new(0),
            seen,
            holding: Arc::new(Semaphore::new(HOLDING_BYTES_MAX)),
            cursors: Cursors::default(),
            taken: AtomicU64::new(0),
        }
    }

    pub(crate) fn door(&self) -> Door {
        self.door.clone()
    }

    /// Events that were accepted since the start.
    pub(crate) fn taken(&self) -> u64 {
        self.taken.load(Ordering::Relaxed)
    }
}

/// Takes in until `stop`. After a failure the events that were in hand are asked for again.
pub(crate) async fn run(inner: Arc<Inner>, sinks: Sinks, stop: CancellationToken) {
    let inbox = &inner.inbox;
    inbox.seen.clear();
    inbox.generation.send_modify(|generation| *generation += 1);
    let mut queue = inbox.queue.lock().await;
    let Some(restored_at) = restored_at(&inner.ground.ledgers, &stop).await else { return };
    let account = AccountKey::new(ADAPTER, DEFAULT_ACCOUNT);
    let taking = Taking { inner: &inner, sinks: &sinks, account, restored_at, fair: std::sync::Mutex::default() };
    loop {
        crate::torture::point("task.nostr inbox");
        let first = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            first = taking.next(&mut queue) => first,
        };
        let Some(first) = first else { return };
        let mut batch = vec![first];
        while batch.len() < BATCH_MAX
            && let Ok(more) = queue.try_recv()
        {
            batch.push(more);
        }
        if let Err(error) = taking.take(batch).await {
            tracing::warn!(error = %describe(&error), "events of Nostr are not taken in any more; the next start asks for them again");
            stop.cancelled().await;
            return;
        }
    }
}

/// Reads the cursors, and notes since when this daemon listens, if that isn't known.
pub(crate) async fn begin(inner: &Inner, sinks: &Sinks) -> Result<(), String> {
    let stored = sinks.readers.read(crate::ledger::events::relay_cursors).await.map_err(|error| describe(&error))?;
    inner.inbox.cursors.moved(&stored);
    let at = clock::wall_ms();
    let Some(first) = inner.inbox.cursors.first_due(clock::seconds(at)) else { return Ok(()) };
    let take = TakeIn { append: append(Vec::new()), cursors: Arc::new(vec![first.clone()]), back_to: None, at };
    sinks.writer.write_until_done(take).await.map_err(|error| describe(&error))?;
    inner.inbox.cursors.moved(&[first]);
    Ok(())
}

/// When the ledgers were restored, if they were; `None` when the stop came before that could be read. Nothing is taken in
/// until it is known: what came before a restore may have been answered since.
async fn restored_at(ledgers: &Ledgers, stop: &CancellationToken) -> Option<Option<i64>> {
    loop {
        match ledgers.nexus.readers.read(|connection| optional(counter(connection, RESTORED_AT))).await {
            // The clock may have been ahead then.
            Ok(at) => return Some(at.map(|at| at.min(clock::wall_ms()))),
            Err(error) => tracing::error!(error = %describe(&error), "events wait until the ledger tells whether it was restored"),
        }
        tokio::select! {
            () = stop.cancelled() => return None,
            () = tokio::time::sleep(RESTORED_AGAIN) => {}
        }
    }
}

fn append(events: Vec<NewEvent>) -> Append {
    Append { adapter: ADAPTER.into(), account: DEFAULT_ACCOUNT.into(), lines: Arc::new(Lines { events, rejects: Vec::new() }) }
}

struct Taking<'a> {
    inner: &'a Inner,
    sinks: &'a Sinks,
    account: AccountKey,
    restored_at: Option<i64>,
    /// Never held while something is waited for.
    fair: std::sync::Mutex<Fair>,
}

/// A batch, sorted.
#[derive(Default)]
struct Sorted {
    definitions: Vec<(Arc<str>, Definition)>,
    events: Vec<NewEvent>,
    /// The relay of each of them.
    brought_by: Vec<Arc<str>>,
    cursors: Vec<RelayCursor>,
    /// The lowest time of what was left out, in Unix seconds.
    left_from: Option<u64>,
}

impl Taking<'_> {
    /// The next thing, once there is room for what it leads to.
    async fn next(&self, queue: &mut mpsc::Receiver<Arrived>) -> Option<Arrived> {
        let mut disk_low = self.sinks.disk_low.clone();
        // An error means that the daemon is stopping.
        drop(disk_low.wait_for(|low| !low).await);
        let mut pending = self.sinks.pending.watch(&self.account);
        loop {
            let (limits, total) = (self.limits(), u64::try_from(*pending.borrow_and_update()).unwrap_or(0));
            let (is_behind, rests_until) = self.catch_up(limits, total);
            let has_room = total < limits.pending_max;
            tokio::select! {
                arrived = queue.recv(), if has_room => return arrived,
                // An error means that the daemon is stopping: then it is waited for no more.
                changed = pending.changed(), if !has_room || is_behind => changed.ok()?,
                () = tokio::time::sleep_until(rests_until.unwrap_or_else(Instant::now)), if rests_until.is_some() => {}
            }
        }
    }

    fn limits(&self) -> Limits {
        let plan = self.inner.plan.load();
        Limits { pending_max: plan.max_pending, authors: u64::try_from(plan.whitelist.len()).unwrap_or(u64::MAX) }
    }

    fn fair(&self) -> MutexGuard<'_, Fair> {
        self.fair.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has the relays asked again for what was left out, once there is room for it. Whether something still is, and until
    /// when that isn't looked at.
    fn catch_up(&self, limits: Limits, total: u64) -> (bool, Option<Instant>) {
        let (mut fair, now) = (self.fair(), Instant::now());
        if fair.has_room(&self.sinks.pending, limits, total, now) {
            fair.catch_up(now);
            self.inner.inbox.generation.send_modify(|generation| *generation += 1);
        }
        (fair.is_behind(), fair.rests_until(now))
    }

    /// Whether an event may be taken in now, with what it became. Of one that relays don't keep there is no second time.
    fn admits(&self, event: &Event, messages: &[NewEvent]) -> bool {
        let many = messages.iter().filter(|message| is_request(message)).count();
        if many == 0 || event.kind.is_ephemeral() {
            return true;
        }
        let many = u64::try_from(many).unwrap_or(u64::MAX);
        self.fair().admits(&self.sinks.pending, self.limits(), &event.pubkey.to_hex(), many)
    }

    /// What the ledger refuses is offered once more by itself, so that it costs nothing but itself. The cursors come last.
    async fn take(&self, batch: Vec<Arrived>) -> Result<(), WriteError> {
        let Sorted { definitions, events, brought_by, cursors, left_from } = self.sort(batch);
        if let Some(to_s) = left_from {
            self.fall_back(to_s).await?;
        }
        if is_refused(self.put(&definitions).await)? {
            for one in definitions.chunks(1) {
                is_left_out(self.put(one).await, &one[0].1.id)?;
            }
        }
        let all = append(events);
        if is_refused(self.commit(all.clone(), &brought_by, &cursors).await)? {
            // What one Nostr event is for stays together: without its first row the others would never be written.
            let mut left = brought_by.as_slice();
            for one in all.lines.events.chunk_by(|a, b| nostr_event_of(&a.event_id) == nostr_event_of(&b.event_id)) {
                let (relays, others) = left.split_at(one.len());
                let id = nostr_event_of(&one[0].event_id).rsplit(':').next().unwrap_or_default();
                is_left_out(self.commit(append(one.to_vec()), relays, &[]).await, id)?;
                left = others;
            }
            is_refused(self.commit(append(Vec::new()), &[], &cursors).await)?;
        }
        Ok(())
    }

    /// What was left out may be much older than what the relays gave since: also the next start asks for it.
    async fn fall_back(&self, to_s: u64) -> Result<(), WriteError> {
        let (at, plan) = (clock::wall_ms(), self.inner.plan.load_full());
        let new = self.inner.inbox.cursors.fall_back(to_s, &plan.relays, &self.inner.subscriptions(), clock::seconds(at));
        let Some(cursors) = new.map(Arc::new) else { return Ok(()) };
        let (append, back_to) = (append(Vec::new()), Some(i64::try_from(to_s).unwrap_or(i64::MAX)));
        self.sinks.writer.write_until_done(TakeIn { append, cursors, back_to, at }).await.map(drop)
    }

    async fn commit(&self, append: Append, brought_by: &[Arc<str>], cursors: &[RelayCursor]) -> Result<(), WriteError> {
        if brought_by.is_empty() && cursors.is_empty() {
            return Ok(());
        }
        crate::torture::point("nostr.taking");
        let (at, moved) = (clock::wall_ms(), &self.inner.inbox.cursors);
        let first = if cursors.is_empty() { None } else { moved.first_due(clock::seconds(at)) };
        let cursors: Arc<Vec<RelayCursor>> = Arc::new(cursors.iter().cloned().chain(first).collect());
        let appended = self.write(TakeIn { append: append.clone(), cursors: cursors.clone(), back_to: None, at }).await?;
        moved.moved(&cursors);
        self.accepted(&append.lines.events, brought_by, &appended);
        Ok(())
    }

    fn sort(&self, batch: Vec<Arrived>) -> Sorted {
        let plan = self.inner.plan.load();
        let own = self.inner.own();
        let mut sorted = Sorted::default();
        let total = u64::try_from(*self.sinks.pending.watch(&self.account).borrow()).unwrap_or(0);
        self.fair().begin(&self.sinks.pending, total);
        for arrived in batch {
            match arrived {
                Arrived::Event { relay, event, .. } => self.sort_one(&relay, &event, &plan, own.as_deref(), &mut sorted),
                Arrived::Proven { relay, filter, until, generation } => {
                    // What stood before an older one may have been lost, and what was left out is to be asked for again.
                    if generation == *self.inner.inbox.generation.borrow() && !self.fair().is_behind() {
                        let until = i64::try_from(until).unwrap_or(0);
                        sorted.cursors.push(RelayCursor { relay: relay.to_string(), filter, until });
                    }
                }
            }
        }
        if sorted.left_from.is_some() {
            sorted.cursors.clear(); // they would be ahead of it
        }
        sorted
    }

    fn sort_one(&self, relay: &Arc<str>, event: &Event, plan: &Plan, own: Option<&str>, sorted: &mut Sorted) {
        let rules = Rules {
            whitelist: &plan.whitelist,
            project_kinds: &plan.project_kinds,
            roster: &self.inner.ground.roster,
            own,
            restored_at: self.restored_at,
            now_ms: clock::wall_ms(),
        };
        let mut keep = |event: NewEvent| {
            sorted.events.push(event);
            sorted.brought_by.push(relay.clone());
        };
        match sort(event, relay, &rules) {
            Purpose::Definition(definition) => sorted.definitions.push((relay.clone(), *definition)),
            Purpose::Messages(messages) if self.admits(event, &messages) => messages.into_iter().for_each(keep),
            Purpose::Messages(_) => {
                // What was taken in stays known: asked for again, it would take the room of what was not.
                self.inner.inbox.seen.forget(&event.id.to_bytes());
                let at = event.created_at.as_secs();
                sorted.left_from = Some(sorted.left_from.map_or(at, |lowest| lowest.min(at)));
                self.count(relay, "left");
            }
            Purpose::Ambiguous(event, projects) => {
                let named = sort::named(&projects);
                tracing::warn!(
                    event = event.event_id,
                    projects = named,
                    "an event names several projects, and an agent of each it does not: filed"
                );
                keep(*event);
            }
            Purpose::Own => self.count(relay, "own"),
            Purpose::Stranger => self.count(relay, "stranger"),
            Purpose::Unaddressed => self.count(relay, "unaddressed"),
            Purpose::Expired => self.count(relay, "expired"),
        }
    }

    async fn put(&self, definitions: &[(Arc<str>, Definition)]) -> Result<(), WriteError> {
        if definitions.is_empty() {
            return Ok(());
        }
        let put = self.inner.put(definitions.iter().map(|(_, definition)| definition.clone()).collect()).await?;
        for ((relay, _), put) in definitions.iter().zip(put) {
            let result = match put {
                Put::Counts | Put::Deletes(_) => "definition",
                Put::Outdated => "outdated",
            };
            self.count(relay, result);
        }
        Ok(())
    }

    /// Writes, however often that takes; the answer is that of all attempts together.
    async fn write(&self, take: TakeIn) -> Result<Appended, WriteError> {
        let before = *self.sinks.committed.borrow();
        match self.sinks.writer.write(take.clone()).await {
            Err(WriteError::Unknown { .. }) => {}
            done => return done,
        }
        let lines = take.append.lines.clone();
        let appended = self.sinks.writer.write_until_done(take).await?;
        match self.sinks.readers.read(move |connection| appended_since(connection, &lines, before)).await {
            Ok(of_all_attempts) => Ok(of_all_attempts),
            Err(error) => {
                tracing::warn!(error = %describe(&error), "what an earlier attempt committed is seen with the next event");
                Ok(appended)
            }
        }
    }

    fn accepted(&self, events: &[NewEvent], brought_by: &[Arc<str>], appended: &Appended) {
        let fresh = || events.iter().zip(appended).filter_map(|(event, seq)| seq.map(|seq| (event, seq)));
        let runs = || fresh().filter(|(event, _)| is_request(event));
        self.sinks.pending.raise(&self.account, runs().count() as u64);
        let mut fair = self.fair();
        runs().for_each(|(event, seq)| fair.committed(seq, &event.sender_id));
        drop(fair);
        if let Some(newest) = appended.iter().flatten().max() {
            crate::ledger::raise(&self.sinks.committed, *newest);
        }
        self.inner.inbox.taken.fetch_add(fresh().count() as u64, Ordering::Relaxed);
        for ((event, seq), relay) in events.iter().zip(appended).zip(brought_by) {
            let result = match (seq, event.disposition) {
                (None, _) => "duplicate",
                (Some(_), Disposition::Filed) => "filed",
                (Some(_), Disposition::Run | Disposition::Late | Disposition::History) => "accepted",
            };
            self.count(relay, result);
        }
        for (event, seq) in fresh() {
            let notice = json!({
                "event_id": event.event_id, "seq": seq, "adapter": ADAPTER, "account": DEFAULT_ACCOUNT, "channel": ADAPTER,
                "sender_id": event.sender_id, "disposition": event.disposition.as_str(), "project": sort::project_of(event),
            });
            self.sinks.bus.publish(NoticeType::EventReceived, notice);
        }
    }

    fn count(&self, relay: &Arc<str>, result: &'static str) {
        count(self.inner, relay, result);
    }
}

/// Counts what became of an event of a relay.
pub(crate) fn count(inner: &Inner, relay: &Arc<str>, result: &'static str) {
    let label = RelayResult { relay: relay.to_string(), result };
    inner.ground.metrics.nostr_events.get_or_create(&label).inc();
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::nostr::{Keys, Template};
    use futures_util::FutureExt;

    fn event(tags: Vec<Vec<String>>) -> Box<Event> {
        let template = Template { kind: 1, content: "hi".to_owned(), tags, created_at: None };
        Box::new(template.sign(&Keys::generate(), 7).unwrap())
    }

    #[tokio::test]
    async fn an_id_is_known_once_its_event_stands_in_the_queue_and_not_before() {
        let (inbox, event) = (Inbox::new(), event(Vec::new()));
        let (door, id) = (inbox.door(), event.id.to_bytes());
        let (a, b): (Arc<str>, Arc<str>) = ("ws://a".into(), "ws://b".into());
        let all = door.bytes.clone().try_acquire_many_owned(u32::try_from(QUEUE_BYTES_MAX).unwrap()).unwrap();
        let mut waiting = std::pin::pin!(door.event(&a, event.clone()));
        assert!((&mut waiting).now_or_never().is_none(), "there is no room");
        assert!(!inbox.seen.contains(&id), "what another relay proves would run ahead of it");
        drop(all);
        assert_eq!(waiting.await, Handed::On);
        assert!(inbox.seen.contains(&id));
        assert_eq!(door.event(&b, event).await, Handed::Known);
        assert!(door.proven(&b, "s".to_owned(), 1, 1).await);
        let mut queue = inbox.queue.lock().await;
        assert!(matches!(queue.try_recv(), Ok(Arrived::Event { relay, .. }) if relay == a));
        assert!(matches!(queue.try_recv(), Ok(Arrived::Proven { relay, .. }) if relay == b), "behind it");
    }

    #[test]
    fn an_event_of_many_short_tags_counts_for_what_it_takes() {
        let tags = vec![vec!["t".to_owned(), "x".to_owned()]; 2_000];
        assert!(usize::try_from(bytes_of(&event(tags))).unwrap() > 2_000 * (TAG_BYTES + 2 * PART_BYTES));
        assert!(usize::try_from(bytes_of(&event(Vec::new()))).unwrap() < 2 * EVENT_BYTES);
    }
}
