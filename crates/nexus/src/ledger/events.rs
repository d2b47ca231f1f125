//! events.db: facts. Events in and out, rejected lines, and the cursor of each account.

use super::writer::{Weight, commands};
use super::{Ledger, optional};
use nexus_core::event::{Event, PeerKind};
use rusqlite::{Connection, Row, params};
use sha2::{Digest, Sha256};
use std::collections::HashSet;
use std::sync::Arc;

/// Reject rows kept per account; older ones make room.
const REJECTS_KEPT: i64 = 10_000;
/// Newest rows among which the newest time of receipt is looked for.
const NEWEST_ROWS: i64 = 1_000;
/// Bytes of a rejected line that are kept.
pub const REJECT_HEAD_BYTES: usize = 4096;

/// What is to become of an event, decided once, when it is accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Disposition {
    Run,
    /// Older than the account's `max_age_ms`, run all the same.
    Late,
    /// Older than that, and the account files such events.
    Filed,
    /// Of a history backfill: no pipeline.
    History,
}

impl Disposition {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Run => "run",
            Self::Late => "late",
            Self::Filed => "filed",
            Self::History => "history",
        }
    }

    fn parse(text: &str) -> Self {
        [Self::Late, Self::Filed, Self::History].into_iter().find(|one| one.as_str() == text).unwrap_or(Self::Run)
    }
}

/// An accepted event on its way into the ledger. Attachments and metadata are JSON texts.
#[derive(Debug, Clone)]
pub struct NewEvent {
    pub event_id: String,
    pub channel: String,
    pub account_id: String,
    pub sender_id: String,
    pub sender_name: Option<String>,
    pub peer_id: String,
    pub peer_kind: PeerKind,
    pub thread_id: Option<String>,
    pub reply_to_id: Option<String>,
    pub content_type: String,
    pub content: String,
    pub attachments: Option<String>,
    pub metadata: Option<String>,
    pub timestamp: i64,
    pub received_at: i64,
    pub disposition: Disposition,
}

/// A line that was no event.
#[derive(Debug, Clone)]
pub struct NewReject {
    pub received_at: i64,
    pub code: &'static str,
    pub reason: String,
    pub bytes: u64,
    pub head: Vec<u8>,
}

/// One account's lines, in order. All or nothing, with the cursor that covers them.
#[derive(Debug, Clone)]
pub struct Append {
    pub adapter: Arc<str>,
    pub account: Arc<str>,
    /// Shared, so that a repetition costs nothing.
    pub lines: Arc<Lines>,
}

/// What lines came to.
#[derive(Debug, Default)]
pub struct Lines {
    pub events: Vec<NewEvent>,
    pub rejects: Vec<NewReject>,
}

/// For each event of an [`Append`], in order: its seq if it was new, or `None` if it was known.
pub type Appended = Vec<Option<i64>>;

/// What was said to a platform, recorded after the delivery `sent_seq` was settled as sent.
#[derive(Debug, Clone)]
pub struct RecordOutbound {
    pub upto_sent_seq: i64,
    pub events: Vec<(String, NewEvent)>,
}

/// Notes that an account's events may be missing from `since` (Unix ms) on: its monitor is about to
/// start. A gap that is open already only grows. An account that was never heard of has none; it is
/// known from `since` on. True when there is a gap to close.
#[derive(Debug, Clone)]
pub struct OpenGap {
    pub adapter: String,
    pub account: String,
    pub since: i64,
}

/// All of an account's gap was fetched.
#[derive(Debug, Clone)]
pub struct CloseGap {
    pub adapter: String,
    pub account: String,
}

commands! { Ledger::Events, EventsCommand / EventsReply {
    Append -> Appended,
    RecordOutbound -> (),
    OpenGap -> bool,
    CloseGap -> (),
} }

/// The unique key of an event: 16 bytes, whatever its id looks like.
pub fn key(channel: &str, event_id: &str) -> [u8; 16] {
    let mut hash = Sha256::new();
    hash.update(channel.as_bytes());
    hash.update([0x1f]);
    hash.update(event_id.as_bytes());
    let mut key = [0; 16];
    key.copy_from_slice(&hash.finalize()[..16]);
    key
}

impl Append {
    fn apply(&self, connection: &Connection) -> rusqlite::Result<Appended> {
        let mut seqs = Vec::with_capacity(self.lines.events.len());
        for event in &self.lines.events {
            seqs.push(insert(connection, &self.adapter, "inbound", event)?);
        }
        for reject in &self.lines.rejects {
            insert_reject(connection, &self.adapter, &self.account, reject)?;
        }
        let live = || self.lines.events.iter().filter(|event| is_live(event));
        if let Some(last) = live().next_back() {
            // Never past what this machine's clock has seen: a timestamp from the future must not
            // make a later catch-up skip anything.
            let timestamp = live().map(|event| event.timestamp.min(event.received_at)).max().unwrap_or(0);
            let new = seqs.iter().zip(&self.lines.events).filter(|(seq, event)| seq.is_some() && is_live(event)).count();
            let mut upsert = connection.prepare_cached(
                "INSERT INTO cursors (adapter, account, last_event_id, last_timestamp, last_received_at, events)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6) ON CONFLICT (adapter, account) DO UPDATE SET
                   last_event_id = ?3, last_timestamp = max(last_timestamp, ?4), last_received_at = ?5, events = events + ?6",
            )?;
            upsert.execute(params![self.adapter, self.account, last.event_id, timestamp, last.received_at, new])?;
        }
        Ok(seqs)
    }
}

/// A history that was broken off in the middle must not look like how far its account has come.
fn is_live(event: &NewEvent) -> bool {
    event.disposition != Disposition::History
}

fn insert(connection: &Connection, adapter: &str, direction: &str, event: &NewEvent) -> rusqlite::Result<Option<i64>> {
    let mut insert = connection.prepare_cached(
        "INSERT INTO events (key, event_id, channel, account_id, adapter, direction, sender_id, sender_name, peer_id, peer_kind,
           thread_id, reply_to_id, content_type, content, attachments, metadata, timestamp, received_at, disposition)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18, ?19) ON CONFLICT (key) DO NOTHING",
    )?;
    let changed = insert.execute(params![
        key(&event.channel, &event.event_id),
        event.event_id,
        event.channel,
        event.account_id,
        adapter,
        direction,
        event.sender_id,
        event.sender_name,
        event.peer_id,
        event.peer_kind.as_str(),
        event.thread_id,
        event.reply_to_id,
        event.content_type,
        event.content,
        event.attachments,
        event.metadata,
        event.timestamp,
        event.received_at,
        event.disposition.as_str(),
    ])?;
    Ok((changed == 1).then(|| connection.last_insert_rowid()))
}

fn insert_reject(connection: &Connection, adapter: &str, account: &str, reject: &NewReject) -> rusqlite::Result<()> {
    let mut insert = connection.prepare_cached(
        "INSERT INTO rejected_lines (adapter, account, received_at, code, reason, bytes, head) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
    )?;
    insert.execute(params![adapter, account, reject.received_at, reject.code, reject.reason, reject.bytes, reject.head])?;
    let seq = connection.last_insert_rowid();
    if seq % 1024 == 0 {
        connection.execute("DELETE FROM rejected_lines WHERE seq <= ?1", [seq - REJECTS_KEPT])?;
    }
    Ok(())
}

impl RecordOutbound {
    fn apply(&self, connection: &Connection) -> rusqlite::Result<()> {
        if super::follow::advance(connection, "nexus.sent", self.upto_sent_seq)? {
            for (adapter, event) in &self.events {
                insert(connection, adapter, "outbound", event)?;
            }
        }
        Ok(())
    }
}

impl OpenGap {
    fn apply(&self, connection: &Connection) -> rusqlite::Result<bool> {
        let sql = "INSERT INTO cursors (adapter, account, last_event_id, last_timestamp, last_received_at, events)
                   VALUES (?1, ?2, '', ?3, ?3, 0)
                   ON CONFLICT (adapter, account) DO UPDATE SET gap_since = min(coalesce(gap_since, ?3), ?3)
                   RETURNING gap_since IS NOT NULL";
        connection.prepare_cached(sql)?.query_row(params![self.adapter, self.account, self.since], |row| row.get(0))
    }
}

impl CloseGap {
    fn apply(&self, connection: &Connection) -> rusqlite::Result<()> {
        let sql = "UPDATE cursors SET gap_since = NULL WHERE adapter = ?1 AND account = ?2";
        connection.prepare_cached(sql)?.execute(params![self.adapter, self.account]).map(drop)
    }
}

impl Weight for OpenGap {}
impl Weight for CloseGap {}

impl Weight for Append {
    fn bytes(&self) -> usize {
        let event = |event: &NewEvent| {
            event.content.len() + event.metadata.as_ref().map_or(0, String::len) + event.attachments.as_ref().map_or(0, String::len) + 512
        };
        self.lines.events.iter().map(event).sum::<usize>()
            + self.lines.rejects.iter().map(|reject| reject.head.len() + 128).sum::<usize>()
            + 128
    }
    fn rows(&self) -> usize {
        (self.lines.events.len() + self.lines.rejects.len()).max(1)
    }
}

impl Weight for RecordOutbound {
    fn bytes(&self) -> usize {
        self.events.iter().map(|(_, event)| event.content.len() + 512).sum::<usize>() + 64
    }
    fn rows(&self) -> usize {
        self.events.len().max(1)
    }
}

/// A row of `events` with what a request doesn't carry.
#[derive(Debug, Clone)]
pub struct StoredEvent {
    pub seq: i64,
    pub adapter: String,
    pub direction: String,
    pub received_at: i64,
    pub disposition: Disposition,
    pub event: Event,
}

const COLUMNS: &str = "seq, event_id, channel, account_id, adapter, direction, sender_id, sender_name, peer_id, peer_kind,
   thread_id, reply_to_id, content_type, content, attachments, metadata, timestamp, received_at, disposition";

fn stored(row: &Row<'_>) -> rusqlite::Result<StoredEvent> {
    let json = |text: Option<String>| text.and_then(|text| serde_json::from_str(&text).ok()).unwrap_or(serde_json::Value::Null);
    Ok(StoredEvent {
        seq: row.get(0)?,
        adapter: row.get(4)?,
        direction: row.get(5)?,
        received_at: row.get(17)?,
        disposition: Disposition::parse(row.get_ref(18)?.as_str()?),
        event: Event {
            event_id: row.get(1)?,
            channel: row.get(2)?,
            account_id: row.get(3)?,
            sender_id: row.get(6)?,
            sender_name: row.get(7)?,
            peer_id: row.get(8)?,
            peer_kind: PeerKind::parse(row.get_ref(9)?.as_str()?).unwrap_or(PeerKind::Dm),
            thread_id: row.get(10)?,
            reply_to_id: row.get(11)?,
            content_type: row.get(12)?,
            content: row.get(13)?,
            attachments: json(row.get(14)?),
            metadata: json(row.get(15)?),
            timestamp: row.get(16)?,
        },
    })
}

/// The next inbound events after `seq` that aren't history, in order, and the seq up to which they
/// were looked for (history and outbound rows included).
pub fn page_after(connection: &Connection, seq: i64, limit: usize) -> rusqlite::Result<(i64, Vec<StoredEvent>)> {
    let mut query = connection.prepare_cached(&format!("SELECT {COLUMNS} FROM events WHERE seq > ?1 ORDER BY seq LIMIT ?2"))?;
    let rows: Vec<StoredEvent> = query.query_map(params![seq, limit], stored)?.collect::<rusqlite::Result<_>>()?;
    let upto = rows.last().map_or(seq, |row| row.seq);
    Ok((upto, rows.into_iter().filter(|row| row.direction == "inbound" && row.disposition != Disposition::History).collect()))
}

/// How many events after `seq` are to become requests, by adapter and account.
pub fn count_after(connection: &Connection, seq: i64) -> rusqlite::Result<Vec<(String, String, u64)>> {
    let sql = "SELECT adapter, account_id, count(*) FROM events
               WHERE seq > ?1 AND direction = 'inbound' AND disposition IN ('run', 'late') GROUP BY 1, 2";
    connection.prepare_cached(sql)?.query_map([seq], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?.collect()
}

/// One event by its place.
pub fn by_seq(connection: &Connection, seq: i64) -> rusqlite::Result<Option<StoredEvent>> {
    optional(connection.prepare_cached(&format!("SELECT {COLUMNS} FROM events WHERE seq = ?1"))?.query_row([seq], stored))
}

/// One event by its id; the channel is the id's first part.
pub fn by_id(connection: &Connection, event_id: &str) -> rusqlite::Result<Option<StoredEvent>> {
    let channel = event_id.split_once(':').map_or("", |(channel, _)| channel);
    let sql = format!("SELECT {COLUMNS} FROM events WHERE key = ?1");
    optional(connection.prepare_cached(&sql)?.query_row([key(channel, event_id)], stored))
}

/// The newest `limit` events before `before` (exclusive), oldest first; `text` limits to content
/// that contains it, `channel` to one channel.
pub fn tail(
    connection: &Connection,
    before: i64,
    limit: usize,
    channel: Option<&str>,
    text: Option<&str>,
) -> rusqlite::Result<Vec<StoredEvent>> {
    let sql = format!(
        "SELECT {COLUMNS} FROM events WHERE seq < ?1 AND (?3 IS NULL OR channel = ?3) AND (?4 IS NULL OR instr(lower(content), lower(?4)) > 0)
         ORDER BY seq DESC LIMIT ?2"
    );
    let mut query = connection.prepare_cached(&sql)?;
    let mut rows: Vec<StoredEvent> = query.query_map(params![before, limit, channel, text], stored)?.collect::<rusqlite::Result<_>>()?;
    rows.reverse();
    Ok(rows)
}

/// How far an account has come with its live events. Times are Unix ms.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cursor {
    /// Empty before the first event: the times are then those from which on the account is known.
    pub last_event_id: String,
    pub last_timestamp: i64,
    pub last_received_at: i64,
    pub events: u64,
    /// From when on events may be missing, if any may.
    pub gap_since: Option<i64>,
}

impl Cursor {
    /// When the newest live event came, if one ever did.
    pub fn last_event_at(&self) -> Option<i64> {
        (!self.last_event_id.is_empty()).then_some(self.last_received_at)
    }
}

pub fn cursor(connection: &Connection, adapter: &str, account: &str) -> rusqlite::Result<Option<Cursor>> {
    let sql = "SELECT last_event_id, last_timestamp, last_received_at, events, gap_since FROM cursors WHERE adapter = ?1 AND account = ?2";
    optional(connection.prepare_cached(sql)?.query_row([adapter, account], |row| {
        Ok(Cursor {
            last_event_id: row.get(0)?,
            last_timestamp: row.get(1)?,
            last_received_at: row.get(2)?,
            events: row.get(3)?,
            gap_since: row.get(4)?,
        })
    }))
}

/// The newest event of a timer job: its slot, from the id `timer:<job>:<slot ms>`.
pub fn newest_slot(connection: &Connection, prefix: &str) -> rusqlite::Result<Option<i64>> {
    let sql = "SELECT event_id FROM events WHERE channel = 'timer' AND event_id >= ?1 AND event_id < ?2 ORDER BY event_id DESC LIMIT 1";
    // ';' follows ':', with which every prefix ends.
    let end = format!("{};", prefix.trim_end_matches(':'));
    let id: Option<String> = optional(connection.prepare_cached(sql)?.query_row(params![prefix, end], |row| row.get(0)))?;
    Ok(id.and_then(|id| id.rsplit_once(':').and_then(|(_, slot)| slot.parse().ok())))
}

/// The newest seq, 0 for an empty ledger.
pub fn last_seq(connection: &Connection) -> rusqlite::Result<i64> {
    connection.query_row("SELECT coalesce(max(seq), 0) FROM events", [], |row| row.get(0))
}

/// The newest `received_at`, by which a clock that went back is noticed; 0 for an empty ledger. The
/// newest of some, since the very last may have been received after the clock went back.
pub fn newest_received_at(connection: &Connection) -> rusqlite::Result<i64> {
    let sql = "SELECT coalesce(max(received_at), 0) FROM (SELECT received_at FROM events ORDER BY seq DESC LIMIT ?1)";
    connection.query_row(sql, [NEWEST_ROWS], |row| row.get(0))
}

/// For each event of an [`Append`] that may have been written by an earlier attempt: its seq if it is
/// beyond `before`, where the ledger ended ahead of the first attempt, and was received when this one
/// was. A line that came twice has its seq once.
pub fn appended_since(connection: &Connection, lines: &Lines, before: i64) -> rusqlite::Result<Appended> {
    let mut query = connection.prepare_cached("SELECT seq FROM events WHERE key = ?1 AND seq > ?2 AND received_at = ?3")?;
    let mut seen = HashSet::new();
    let mut seqs = Vec::with_capacity(lines.events.len());
    for event in &lines.events {
        let key = key(&event.channel, &event.event_id);
        let seq: Option<i64> = optional(query.query_row(params![key, before, event.received_at], |row| row.get(0)))?;
        seqs.push(seq.filter(|seq| seen.insert(*seq)));
    }
    Ok(seqs)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn ledger() -> Connection {
        let connection = Connection::open_in_memory().unwrap();
        connection.execute_batch(include_str!("../../migrations/events/0001_facts.sql")).unwrap();
        connection
    }

    fn event(id: &str, timestamp: i64, disposition: Disposition) -> NewEvent {
        NewEvent {
            event_id: id.to_owned(),
            channel: "fake".to_owned(),
            account_id: "me".to_owned(),
            sender_id: "u".to_owned(),
            sender_name: None,
            peer_id: "p".to_owned(),
            peer_kind: PeerKind::Dm,
            thread_id: None,
            reply_to_id: None,
            content_type: "text".to_owned(),
            content: String::new(),
            attachments: None,
            metadata: None,
            timestamp,
            received_at: 5_000,
            disposition,
        }
    }

    fn append(connection: &Connection, events: Vec<NewEvent>) {
        let lines = Arc::new(Lines { events, rejects: Vec::new() });
        Append { adapter: "fake".into(), account: "me".into(), lines }.apply(connection).unwrap();
    }

    fn open(connection: &Connection, since: i64) -> bool {
        OpenGap { adapter: "fake".into(), account: "me".into(), since }.apply(connection).unwrap()
    }

    fn found(connection: &Connection) -> Cursor {
        cursor(connection, "fake", "me").unwrap().unwrap()
    }

    #[test]
    fn a_clock_that_went_back_does_not_hide_the_newest_time() {
        let connection = ledger();
        assert_eq!(newest_received_at(&connection).unwrap(), 0);
        append(&connection, vec![event("fake:1", 0, Disposition::Run)]);
        append(&connection, vec![NewEvent { received_at: 70, ..event("fake:2", 0, Disposition::Run) }]);
        assert_eq!(newest_received_at(&connection).unwrap(), 5_000);
    }

    #[test]
    fn a_gap_only_grows_until_it_is_closed() {
        let connection = ledger();
        assert!(!open(&connection, 1_000), "an account that is new has missed nothing");
        assert_eq!(found(&connection).gap_since, None);
        assert!(open(&connection, 1_000));
        append(&connection, vec![event("fake:1", 4_000, Disposition::Run)]);
        assert!(open(&connection, 4_000));
        assert_eq!(found(&connection).gap_since, Some(1_000), "what came since doesn't cover what was missed");
        assert!(open(&connection, 500));
        assert_eq!(found(&connection).gap_since, Some(500));
        CloseGap { adapter: "fake".into(), account: "me".into() }.apply(&connection).unwrap();
        let cursor = found(&connection);
        assert_eq!((cursor.gap_since, cursor.last_timestamp, cursor.events), (None, 4_000, 1));
    }

    #[test]
    fn history_says_nothing_about_how_far_an_account_has_come() {
        let connection = ledger();
        append(&connection, vec![event("fake:1", 3_000, Disposition::History)]);
        assert_eq!(cursor(&connection, "fake", "me").unwrap(), None);
        let mixed = vec![event("fake:2", 2_000, Disposition::Run), event("fake:3", 3_000, Disposition::History)];
        append(&connection, mixed);
        let cursor = found(&connection);
        assert_eq!((cursor.last_event_id.as_str(), cursor.last_timestamp, cursor.events), ("fake:2", 2_000, 1));
    }
}
