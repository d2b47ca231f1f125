//! What is read from events.db: events by place, id or text, cursors, and the clock's past.

use super::{Appended, Disposition, Lines, key};
use crate::ledger::optional;
use nexus_core::event::{Event, PeerKind};
use nexus_core::request::NexusRequest;
use rusqlite::{Connection, Row, params};
use std::collections::{HashMap, HashSet};

/// Rows that one look for new events goes through at most.
pub const SCAN_ROWS: i64 = 4_096;
/// Replays of one event that are told, the newest.
const REPLAYS_MAX: usize = 100;
/// Newest rows among which it is looked for who said something directly.
const HEARD_ROWS: i64 = 16_384;
/// Newest rows among which the newest time of receipt is looked for.
const NEWEST_ROWS: i64 = 1_000;

/// A row of `events` with what a request doesn't carry.
#[derive(Debug, Clone)]
pub struct StoredEvent {
    pub seq: i64,
    pub adapter: String,
    pub direction: String,
    pub received_at: i64,
    pub disposition: Disposition,
    /// Of a replay: the id of the first event that it repeats.
    pub replay_of: Option<String>,
    pub event: Event,
}

impl StoredEvent {
    /// Its request, at the door of stage 1. A replay is answered as the message was that it repeats.
    pub fn into_request(self, request_id: String, created_at: i64) -> NexusRequest {
        let mut request = NexusRequest::new(request_id, self.seq, created_at, self.event);
        request.adapter = self.adapter;
        match self.replay_of {
            Some(first) => request.quoting(&first),
            None => request,
        }
    }

    /// The id of the event that all its replays name, which for most is its own.
    pub fn first_id(&self) -> &str {
        self.replay_of.as_deref().unwrap_or(&self.event.event_id)
    }
}

const COLUMNS: &str = "seq, event_id, channel, account_id, adapter, direction, sender_id, sender_name, peer_id, peer_kind,
   thread_id, reply_to_id, content_type, content, attachments, metadata, timestamp, received_at, disposition, replay_of";

fn stored(row: &Row<'_>) -> rusqlite::Result<StoredEvent> {
    let json = |text: Option<String>| text.and_then(|text| serde_json::from_str(&text).ok()).unwrap_or(serde_json::Value::Null);
    Ok(StoredEvent {
        seq: row.get(0)?,
        adapter: row.get(4)?,
        direction: row.get(5)?,
        received_at: row.get(17)?,
        disposition: Disposition::parse(row.get_ref(18)?.as_str()?),
        replay_of: row.get(19)?,
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

/// The next inbound events after `seq` that aren't history, at most `limit` of them, in order; and the
/// seq up to which they were looked for, in at most [`SCAN_ROWS`] rows.
pub fn page_after(connection: &Connection, seq: i64, limit: usize) -> rusqlite::Result<(i64, Vec<StoredEvent>)> {
    // Before the page: rows that are committed in between are seen the next time.
    let end = last_seq(connection)?.min(seq + SCAN_ROWS);
    let mut query = connection.prepare_cached(&format!(
        "SELECT {COLUMNS} FROM events WHERE seq > ?1 AND seq <= ?2 AND direction = 'inbound' AND disposition <> 'history' ORDER BY seq LIMIT ?3"
    ))?;
    let rows: Vec<StoredEvent> = query.query_map(params![seq, end, limit], stored)?.collect::<rusqlite::Result<_>>()?;
    let upto = if rows.len() < limit { end.max(seq) } else { rows.last().map_or(seq, |row| row.seq) };
    Ok((upto, rows))
}

/// A sender, as some events in a row showed them. Times are those of receipt, in Unix ms.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sender {
    /// The newest name that was given.
    pub name: Option<String>,
    pub first_seen: i64,
    pub last_seen: i64,
    pub messages: i64,
}

/// Senders by channel and their id there.
pub type Senders = HashMap<(String, String), Sender>;

/// The senders of the inbound events after `seq`, history included and replays not, and the seq up to which they were
/// looked for, in at most [`SCAN_ROWS`] rows.
pub fn senders_after(connection: &Connection, seq: i64) -> rusqlite::Result<(i64, Senders)> {
    let end = last_seq(connection)?.min(seq + SCAN_ROWS).max(seq);
    let sql = "SELECT channel, sender_id, sender_name, received_at FROM events
               WHERE seq > ?1 AND seq <= ?2 AND direction = 'inbound' AND replay_of IS NULL ORDER BY seq";
    let mut query = connection.prepare_cached(sql)?;
    let mut rows = query.query(params![seq, end])?;
    let mut senders = Senders::new();
    while let Some(row) = rows.next()? {
        let (channel, sender_id): (String, String) = (row.get(0)?, row.get(1)?);
        let (name, at): (Option<String>, i64) = (row.get(2)?, row.get(3)?);
        let sender = senders.entry((channel, sender_id)).or_insert(Sender { name: None, first_seen: at, last_seen: at, messages: 0 });
        sender.name = name.or(sender.name.take());
        sender.first_seen = sender.first_seen.min(at);
        sender.last_seen = sender.last_seen.max(at);
        sender.messages += 1;
    }
    Ok((end, senders))
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

/// Of each adapter the newest event that was said directly by somebody who is wanted, by adapter, channel and id; the
/// newest first, among the newest `HEARD_ROWS` rows, and neither history nor replays.
pub fn newest_direct(connection: &Connection, is_wanted: impl Fn(&str, &str, &str) -> bool) -> rusqlite::Result<Vec<StoredEvent>> {
    let sql = "SELECT seq, adapter, channel, sender_id FROM events WHERE seq > ?1 AND direction = 'inbound' AND peer_kind = 'dm'
                 AND disposition IN ('run', 'late') AND replay_of IS NULL ORDER BY seq DESC";
    let mut query = connection.prepare_cached(sql)?;
    let mut rows = query.query([last_seq(connection)? - HEARD_ROWS])?;
    let mut found: Vec<(String, i64)> = Vec::new();
    while let Some(row) = rows.next()? {
        let (adapter, channel, sender_id) = (row.get_ref(1)?.as_str()?, row.get_ref(2)?.as_str()?, row.get_ref(3)?.as_str()?);
        if found.iter().all(|(known, _)| known != adapter) && is_wanted(adapter, channel, sender_id) {
            found.push((adapter.to_owned(), row.get(0)?));
        }
    }
    found.into_iter().filter_map(|(_, seq)| by_seq(connection, seq).transpose()).collect()
}

/// Place and id of the newest replays of an event, oldest first.
pub fn replays_of(connection: &Connection, event_id: &str) -> rusqlite::Result<Vec<(i64, String)>> {
    let sql = "SELECT seq, event_id FROM events WHERE replay_of = ?1 ORDER BY seq DESC LIMIT ?2";
    let mut query = connection.prepare_cached(sql)?;
    let found = query.query_map(params![event_id, REPLAYS_MAX], |row| Ok((row.get(0)?, row.get(1)?)))?;
    let mut rows: Vec<(i64, String)> = found.collect::<rusqlite::Result<_>>()?;
    rows.reverse();
    Ok(rows)
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
    let mut rows = matching(connection, (i64::MIN, before), "DESC", limit, channel, text)?;
    rows.reverse();
    Ok(rows)
}

/// The first `limit` events after `after` and before `before` (both exclusive); the rest as in [`tail`].
pub fn following(
    connection: &Connection,
    after: i64,
    before: i64,
    limit: usize,
    channel: Option<&str>,
    text: Option<&str>,
) -> rusqlite::Result<Vec<StoredEvent>> {
    matching(connection, (after, before), "ASC", limit, channel, text)
}

/// The first `limit` events, in `order`, between two places (both exclusive) of a channel and with a text.
fn matching(
    connection: &Connection,
    (after, before): (i64, i64),
    order: &'static str,
    limit: usize,
    channel: Option<&str>,
    text: Option<&str>,
) -> rusqlite::Result<Vec<StoredEvent>> {
    let sql = format!(
        "SELECT {COLUMNS} FROM events WHERE seq > ?1 AND seq < ?2 AND (?4 IS NULL OR channel = ?4)
           AND (?5 IS NULL OR instr(lower(content), lower(?5)) > 0)
         ORDER BY seq {order} LIMIT ?3"
    );
    let mut query = connection.prepare_cached(&sql)?;
    query.query_map(params![after, before, limit, channel, text], stored)?.collect()
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
    let sql = "SELECT event_id FROM events WHERE channel = 'timer' AND replay_of IS NULL AND event_id >= ?1 AND event_id < ?2
               ORDER BY event_id DESC LIMIT 1";
    // ';' follows ':', with which every prefix ends.
    let end = format!("{};", prefix.trim_end_matches(':'));
    let id: Option<String> = optional(connection.prepare_cached(sql)?.query_row(params![prefix, end], |row| row.get(0)))?;
    Ok(id.and_then(|id| id.rsplit_once(':').and_then(|(_, slot)| slot.parse().ok())))
}

/// The newest seq, 0 for an empty ledger.
pub fn last_seq(connection: &Connection) -> rusqlite::Result<i64> {
    connection.prepare_cached("SELECT coalesce(max(seq), 0) FROM events")?.query_row([], |row| row.get(0))
}

/// The newest `received_at`, by which a clock that went back is noticed; 0 for an empty ledger. The
/// newest of some, since the very last may have been received after the clock went back.
pub fn newest_received_at(connection: &Connection) -> rusqlite::Result<i64> {
    let sql = "SELECT coalesce(max(received_at), 0) FROM (SELECT received_at FROM events ORDER BY seq DESC LIMIT ?1)";
    connection.query_row(sql, [NEWEST_ROWS], |row| row.get(0))
}

/// For each event of an [`super::Append`] that may have been written by an earlier attempt: its seq if it is
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
