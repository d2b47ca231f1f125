//! An account's stdout into the ledger: frame, parse, batch, commit, acknowledge.
//!
//! One batch is on its way to the disk while the next is read, never two: if a commit fails it is
//! repeated before anything later, so the account's order holds. When the batch is full, the account
//! has too much pending, or the disk is low, reading stops, the pipe fills and the child blocks. Once
//! the child is gone what it left in the pipe is read whatever there is room for: a pipe holds little,
//! and nobody would bring those lines again.

use super::stats::AccountStats;
use crate::bus::Bus;
use crate::clock::{self, Expiry};
use crate::error_text::describe;
use crate::framing::{Framing, Piece};
use crate::ledger::Readers;
use crate::ledger::events::{Append, Appended, Disposition, EventsCommand, Lines, NewEvent, NewReject, REJECT_HEAD_BYTES, appended_since};
use crate::ledger::writer::{WriteError, Writer};
use crate::metrics::{ChannelResult, Metrics};
use crate::pipeline::pending::Pending;
use nexus_core::config::{CatchUp, Late};
use nexus_core::event::{EventLine, Reject, parse_line, readable_id};
use nexus_core::ids::AccountKey;
use nexus_core::notice::NoticeType;
use serde::Serialize;
use serde_json::json;
use std::future::Future;
use std::ops::ControlFlow;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe::Receiver;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Bytes read at a time: what a pipe holds.
const CHUNK_BYTES: usize = 64 * 1024;
/// Rows of one batch.
const BATCH_ROWS_MAX: usize = 1024;
/// Bytes of one batch; a single longer line makes a batch of its own.
const BATCH_BYTES_MAX: usize = 1024 * 1024;
/// Rejects announced one by one per batch; the count is always told.
const REJECT_NOTICES_MAX: usize = 16;

/// What an intake serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `monitor`, or a catch-up: events run.
    Live,
    /// A history backfill: events from before this instant, in Unix ms, fill the ledger only. Later
    /// ones are live: if they come this way first, the monitor's copy is the duplicate.
    History { before: i64 },
}

/// How an intake came to its end. All that was read is on disk, but for [`Ended::Lost`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// Everything was read.
    Eof,
    /// Nothing came for `silence_max`.
    Silent,
    /// The ledger did not take some of the lines.
    Lost,
}

/// The limits and rules of one account; swapped by a reload.
#[derive(Debug, Clone)]
pub struct Rules {
    pub line_bytes_max: usize,
    pub pending_max: u64,
    pub catch_up: CatchUp,
}

/// Where all intakes put what they read. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Sinks {
    pub writer: Writer<EventsCommand>,
    /// Of the events ledger.
    pub readers: Readers,
    /// The seq up to which events are committed.
    pub committed: Arc<watch::Sender<i64>>,
    pub pending: Pending,
    /// Nothing is filed for being late while the clock is in doubt.
    pub expiry: Expiry,
    pub bus: Bus,
    pub metrics: Metrics,
    /// True while the disk has less room than `ledgers.min_free_mb`.
    pub disk_low: watch::Receiver<bool>,
}

impl Sinks {
    /// Appends, and repeats that until it is on disk. The answer is that of all attempts together.
    ///
    /// # Errors
    /// [`WriteError::Refused`] and [`WriteError::Closed`].
    pub async fn append(&self, append: Append) -> Result<Appended, WriteError> {
        let before = *self.committed.borrow();
        match self.writer.write(append.clone()).await {
            Err(WriteError::Unknown { .. }) => self.repeat(append, before).await,
            done => done,
        }
    }

    /// Repeats an append of which nobody knows whether it is on disk. `before` was committed ahead of
    /// its first attempt: if that one was written all the same, its rows are known by now and would
    /// count as duplicates, though nobody was told of them.
    async fn repeat(&self, append: Append, before: i64) -> Result<Appended, WriteError> {
        let lines = append.lines.clone();
        let appended = self.writer.write_until_done(append).await?;
        match self.readers.read(move |connection| appended_since(connection, &lines, before)).await {
            Ok(of_all_attempts) => Ok(of_all_attempts),
            Err(error) => {
                tracing::warn!(error = %describe(&error), "what an earlier attempt committed is seen with the next event");
                Ok(appended)
            }
        }
    }
}

/// One account's intake.
#[derive(Debug)]
pub struct Intake {
    pub account: AccountKey,
    pub channel: String,
    pub kind: Kind,
    pub rules: watch::Receiver<Rules>,
    pub sinks: Sinks,
    pub stats: Arc<AccountStats>,
    /// The newest event id that is on disk, for adapters with `ack`.
    pub acks: Option<watch::Sender<Option<String>>>,
    /// How long the process may say nothing; `None`: for ever.
    pub silence_max: Option<Duration>,
    /// Cancelled once the process is gone with all that it started.
    pub exited: CancellationToken,
}

/// Lines that wait to be committed.
#[derive(Debug, Default)]
struct Batch {
    lines: Lines,
    bytes: usize,
    /// The id of the last line that has one, rejected lines included.
    last_id: Option<String>,
}

impl Batch {
    fn is_empty(&self) -> bool {
        self.lines.events.is_empty() && self.lines.rejects.is_empty()
    }

    fn is_full(&self) -> bool {
        self.lines.events.len() + self.lines.rejects.len() >= BATCH_ROWS_MAX || self.bytes >= BATCH_BYTES_MAX
    }
}

/// `adapter.in.received`; typed, since there is one for each event.
#[derive(Debug, Serialize)]
struct ReceivedNotice<'a> {
    event_id: &'a str,
    seq: i64,
    adapter: &'a str,
    account: &'a str,
    channel: &'a str,
    sender_id: &'a str,
    disposition: &'a str,
}

/// A batch on its way to the disk.
struct Flight {
    append: Append,
    last_id: Option<String>,
    /// The seq up to which events were committed before it.
    before: i64,
    commit: Pin<Box<dyn Future<Output = Result<Appended, WriteError>> + Send>>,
}

impl Intake {
    /// Reads to the end and commits all of it.
    pub async fn run(self, mut stdout: Receiver) -> Ended {
        let mut framing = Framing::new(self.rules.borrow().line_bytes_max);
        let mut chunk = vec![0; CHUNK_BYTES];
        let mut left = None;
        let mut batch = Batch::default();
        let mut flight: Option<Flight> = None;
        let (mut ended, mut lost) = (None, false);
        while ended.is_none() || flight.is_some() || !batch.is_empty() {
            crate::torture::point("task.intake");
            if flight.is_none() && !batch.is_empty() {
                flight = self.launch(&mut batch).await;
                lost |= flight.is_none();
            }
            let landing = async {
                match &mut flight {
                    Some(flight) => (&mut flight.commit).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                result = landing => {
                    if let Some(landed) = flight.take() {
                        lost |= !self.land(landed, result).await;
                    }
                }
                got = self.read(&mut stdout, &mut chunk, &mut left), if ended.is_none() && !batch.is_full() => match got {
                    ControlFlow::Break(end) => {
                        ended = Some(end);
                        self.unfinished(&mut framing, &mut batch);
                    }
                    ControlFlow::Continue(got) => {
                        let (now, line_bytes_max) = (clock::wall_ms(), self.rules.borrow().line_bytes_max);
                        framing.set_line_bytes_max(line_bytes_max);
                        framing.push(&chunk[..got], |piece| self.take(piece, line_bytes_max, now, &mut batch));
                    }
                },
            }
        }
        if lost { Ended::Lost } else { ended.unwrap_or(Ended::Eof) }
    }

    /// Reads some bytes, at least one. `left` is what the pipe still holds of a process that is gone:
    /// whoever else may have its end open is a stranger, and isn't waited for. Safe to cancel.
    async fn read(&self, stdout: &mut Receiver, chunk: &mut [u8], left: &mut Option<usize>) -> ControlFlow<Ended, usize> {
        let rest = match *left {
            Some(rest) => rest,
            None => {
                let got = tokio::select! {
                    biased;
                    () = self.exited.cancelled() => None,
                    got = self.read_in_turn(stdout, chunk) => Some(got),
                };
                if let Some(got) = got {
                    return got;
                }
                let rest = rustix::io::ioctl_fionread(&*stdout).map_or(0, |bytes| usize::try_from(bytes).unwrap_or(0));
                *left = Some(rest);
                rest
            }
        };
        let wanted = rest.min(chunk.len());
        if wanted == 0 {
            return ControlFlow::Break(Ended::Eof);
        }
        let got = stdout.read(&mut chunk[..wanted]).await;
        if let Ok(got) = got {
            *left = Some(rest - got);
        }
        read_bytes(got)
    }

    /// Reads once there is room for what comes.
    async fn read_in_turn(&self, stdout: &mut Receiver, chunk: &mut [u8]) -> ControlFlow<Ended, usize> {
        self.wait_for_room().await;
        let reading = stdout.read(chunk);
        match self.silence_max {
            Some(silence) => tokio::time::timeout(silence, reading).await.map_or(ControlFlow::Break(Ended::Silent), read_bytes),
            None => read_bytes(reading.await),
        }
    }

    async fn wait_for_room(&self) {
        let mut disk_low = self.sinks.disk_low.clone();
        if *disk_low.borrow() {
            tokio::select! {
                // An error means that the daemon is stopping.
                room = disk_low.wait_for(|low| !low) => drop(room),
                () = self.exited.cancelled() => return,
            }
        }
        let (mut pending, mut rules) = (self.sinks.pending.watch(&self.account), self.rules.clone());
        let mut held = None;
        loop {
            let limit = rules.borrow_and_update().pending_max;
            if u64::try_from(*pending.borrow_and_update()).unwrap_or(0) < limit {
                return;
            }
            held.get_or_insert_with(|| self.stats.hold());
            // An error means that the account is gone: what is left of its output is taken in.
            let changed = tokio::select! {
                changed = pending.changed() => changed,
                changed = rules.changed() => changed,
                // What the pipe still holds is little, and nobody will write it again.
                () = self.exited.cancelled() => return,
            };
            if changed.is_err() {
                return;
            }
        }
    }

    fn take(&self, piece: Piece<'_>, line_bytes_max: usize, now: i64, batch: &mut Batch) {
        match piece {
            Piece::Line(line) => match parse_line(line, &self.channel, &self.account.account) {
                Ok(event) => {
                    let event = self.new_event(event, now);
                    batch.bytes += line.len();
                    batch.last_id = Some(event.event_id.clone());
                    batch.lines.events.push(event);
                }
                Err(reject) => {
                    if let Some(id) = readable_id(line) {
                        batch.last_id = Some(id);
                    }
                    let head = line[..line.len().min(REJECT_HEAD_BYTES)].to_vec();
                    reject_line(batch, &reject, line.len() as u64, head, now);
                }
            },
            Piece::TooLong { bytes, head } => {
                reject_line(batch, &Reject::TooLong { bytes, max: line_bytes_max as u64 }, bytes, head, now);
            }
        }
    }

    fn unfinished(&self, framing: &mut Framing, batch: &mut Batch) {
        if let Some((bytes, head)) = framing.finish() {
            reject_line(batch, &Reject::Unfinished { bytes }, bytes, head, clock::wall_ms());
        }
    }

    fn new_event(&self, event: EventLine<'_>, now: i64) -> NewEvent {
        let by_age = disposition(self.kind, event.timestamp, now, &self.rules.borrow().catch_up);
        let is_doubtful = by_age == Disposition::Filed && self.sinks.expiry.doubt().is_some();
        NewEvent {
            event_id: event.event_id.into_owned(),
            channel: event.channel.into_owned(),
            account_id: event.account_id.into_owned(),
            sender_id: event.sender_id.into_owned(),
            sender_name: event.sender_name.map(Into::into),
            peer_id: event.peer_id.into_owned(),
            peer_kind: event.peer_kind,
            thread_id: event.thread_id.map(Into::into),
            reply_to_id: event.reply_to_id.map(Into::into),
            content_type: event.content_type.into_owned(),
            content: event.content.into_owned(),
            attachments: event.attachments.map(|json| json.get().to_owned()),
            metadata: event.metadata.map(|json| json.get().to_owned()),
            timestamp: event.timestamp,
            received_at: now,
            disposition: if is_doubtful { Disposition::Late } else { by_age },
        }
    }

    async fn launch(&self, batch: &mut Batch) -> Option<Flight> {
        let Batch { lines, last_id, .. } = std::mem::take(batch);
        let append =
            Append { adapter: self.account.adapter.as_str().into(), account: self.account.account.as_str().into(), lines: Arc::new(lines) };
        let before = *self.sinks.committed.borrow();
        match self.sinks.writer.submit(append.clone()).await {
            Ok(commit) => Some(Flight { append, last_id, before, commit: Box::pin(commit) }),
            Err(error) => {
                tracing::warn!(account = %self.account, %error, "lines not accepted; the adapter has to bring them again");
                None
            }
        }
    }

    /// A commit returned: repeat it if nobody knows, else tell whom it concerns. False when its lines
    /// are not in the ledger.
    async fn land(&self, flight: Flight, result: Result<Appended, WriteError>) -> bool {
        let result = match result {
            Err(WriteError::Unknown { ledger, message }) => {
                tracing::warn!(account = %self.account, ledger, error = %message, "lines not on disk yet, holding this account");
                self.sinks.repeat(flight.append.clone(), flight.before).await
            }
            done => done,
        };
        match result {
            Ok(appended) => {
                self.accepted(&flight, &appended);
                true
            }
            Err(error) => {
                tracing::error!(account = %self.account, %error, "lines not accepted; the adapter has to bring them again");
                false
            }
        }
    }

    fn accepted(&self, flight: &Flight, appended: &Appended) {
        let Lines { events, rejects } = &*flight.append.lines;
        let fresh = || appended.iter().zip(events).filter_map(|(seq, event)| seq.map(|seq| (seq, event)));
        let runs = fresh().filter(|(_, event)| matches!(event.disposition, Disposition::Run | Disposition::Late)).count();
        self.sinks.pending.raise(&self.account, runs as u64);
        if let Some(newest) = appended.iter().flatten().max() {
            crate::ledger::raise(&self.sinks.committed, *newest);
        }
        let mut new = 0;
        for (seq, event) in fresh() {
            new += 1;
            let notice = ReceivedNotice {
                event_id: &event.event_id,
                seq,
                adapter: &self.account.adapter,
                account: &self.account.account,
                channel: &event.channel,
                sender_id: &event.sender_id,
                disposition: event.disposition.as_str(),
            };
            self.sinks.bus.publish(NoticeType::EventReceived, notice);
        }
        for reject in rejects.iter().take(REJECT_NOTICES_MAX) {
            let notice =
                json!({ "adapter": self.account.adapter, "account": self.account.account, "code": reject.code, "reason": reject.reason });
            self.sinks.bus.publish(NoticeType::LineRejected, notice);
        }
        if let Some(first) = rejects.first() {
            tracing::warn!(account = %self.account, lines = rejects.len(), first = first.reason, "adapter lines rejected");
        }
        self.count("accepted", new);
        self.count("duplicate", events.len() as u64 - new);
        self.count("rejected", rejects.len() as u64);
        self.stats.took(new, rejects.len() as u64, clock::mono_ms());
        if let (Some(acks), Some(last_id)) = (&self.acks, &flight.last_id) {
            acks.send_replace(Some(last_id.clone()));
        }
    }

    fn count(&self, result: &'static str, by: u64) {
        if by > 0 {
            self.sinks.metrics.events.get_or_create(&ChannelResult { channel: self.channel.clone(), result }).inc_by(by);
        }
    }
}

fn reject_line(batch: &mut Batch, reject: &Reject, bytes: u64, head: Vec<u8>, now: i64) {
    batch.bytes += head.len();
    batch.lines.rejects.push(NewReject { received_at: now, code: reject.code(), reason: reject.to_string(), bytes, head });
}

/// An error counts as EOF: a pipe has none that reading on would mend.
fn read_bytes(got: std::io::Result<usize>) -> ControlFlow<Ended, usize> {
    match got {
        Ok(got @ 1..) => ControlFlow::Continue(got),
        Ok(0) | Err(_) => ControlFlow::Break(Ended::Eof),
    }
}

/// A timestamp of 0 says nothing, one from the future is not old.
fn disposition(kind: Kind, timestamp: i64, now: i64, catch_up: &CatchUp) -> Disposition {
    match kind {
        Kind::History { before } if timestamp == 0 || timestamp < before => return Disposition::History,
        Kind::History { .. } | Kind::Live => {}
    }
    let age_ms = now.saturating_sub(timestamp);
    if timestamp == 0 || age_ms <= i64::try_from(catch_up.max_age_ms).unwrap_or(i64::MAX) {
        return Disposition::Run;
    }
    match catch_up.late {
        Late::Run => Disposition::Late,
        Late::File => Disposition::Filed,
    }
}

#[cfg(test)]
#[path = "intake_tests.rs"]
mod tests;
