//! events.db: facts. Events in and out, rejected lines, and the cursor of each account.

mod read;
mod relays;
mod replay;

pub use read::*;
pub(crate) use relays::nostr_event_of;
pub use relays::{FIRST, RelayCursor, TakeIn, relay_cursors};
pub use replay::{Replay, Replayed, is_of_wait, replay_id, waited_key};

use super::Ledger;
use super::writer::{Weight, commands};
use nexus_core::event::PeerKind;
use rusqlite::{Connection, params};
use sha2::{Digest, Sha256};
use std::sync::Arc;

/// Reject rows kept per account; older ones make room.
const REJECTS_KEPT: i64 = 10_000;
/// Bytes of a rejected line that are kept.
pub const REJECT_HEAD_BYTES: usize = 4096;

/// The name under which events.db follows what nexus.db has sent.
pub const SENT_SOURCE: &str = "nexus.sent";

/// How far a platform's clock may be ahead of ours, in ms.
const AHEAD_MS_MAX: i64 = 3_600_000;

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
    Replay -> Option<Replayed>,
    TakeIn -> Appended,
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
        self.apply_by(connection, |event| self.insert(connection, event))
    }

    fn insert(&self, connection: &Connection, event: &NewEvent) -> rusqlite::Result<Option<i64>> {
        insert(connection, &self.adapter, "inbound", event)
    }

    /// Where `put` says which events are new.
    fn apply_by<'s>(
        &'s self,
        connection: &Connection,
        put: impl FnMut(&'s NewEvent) -> rusqlite::Result<Option<i64>>,
    ) -> rusqlite::Result<Appended> {
        let seqs = self.lines.events.iter().map(put).collect::<rusqlite::Result<Appended>>()?;
        for reject in &self.lines.rejects {
            insert_reject(connection, &self.adapter, &self.account, reject)?;
        }
        let live = || self.lines.events.iter().filter(|event| is_live(event));
        if let Some(last) = live().next_back() {
            let timestamp = live().filter_map(known_until).max();
            let new = seqs.iter().zip(&self.lines.events).filter(|(seq, event)| seq.is_some() && is_live(event)).count();
            let mut upsert = connection.prepare_cached(
                "INSERT INTO cursors (adapter, account, last_event_id, last_timestamp, last_received_at, events)
                 VALUES (?1, ?2, ?3, coalesce(?4, ?5), ?5, ?6) ON CONFLICT (adapter, account) DO UPDATE SET
                   last_event_id = ?3, last_timestamp = max(min(last_timestamp, ?5), coalesce(?4, 0)), last_received_at = ?5,
                   events = events + ?6",
            )?;
            upsert.execute(params![self.adapter, self.account, last.event_id, timestamp, last.received_at, new])?;
        }
        Ok(seqs)
    }
}

/// How far an event says that its account has come: never past what this machine's clock has seen, so that
/// a later catch-up skips nothing. One from far ahead says nothing at all, since that clock may itself be
/// ahead just now; and what it said while it was is taken back by the next event that comes in.
fn known_until(event: &NewEvent) -> Option<i64> {
    let is_believed = event.timestamp <= event.received_at.saturating_add(AHEAD_MS_MAX);
    is_believed.then(|| event.timestamp.min(event.received_at))
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
        if super::follow::advance(connection, SENT_SOURCE, self.upto_sent_seq)? {
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn ledger() -> Connection {
        crate::samples::events_ledger()
    }

    fn event(id: &str, timestamp: i64, disposition: Disposition) -> NewEvent {
        NewEvent { timestamp, disposition, received_at: 5_000, ..crate::samples::new_event(id) }
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
    fn of_those_who_are_wanted_each_adapters_newest_direct_word_is_found() {
        let connection = ledger();
        let said = |id: &str, sender: &str| NewEvent { sender_id: sender.to_owned(), ..event(id, 0, Disposition::Run) };
        let in_group = NewEvent { peer_kind: PeerKind::Group, ..said("fake:3", "boss") };
        let old = NewEvent { disposition: Disposition::History, ..said("fake:4", "boss") };
        append(&connection, vec![said("fake:1", "boss"), said("fake:2", "boss"), in_group, old, said("fake:5", "guest")]);
        let lines = Arc::new(Lines { events: vec![said("fake:6", "boss")], rejects: Vec::new() });
        Append { adapter: "other".into(), account: "me".into(), lines }.apply(&connection).unwrap();
        let found = |channel: &str| -> Vec<String> {
            let is_wanted = |_: &str, of: &str, sender: &str| of == channel && sender == "boss";
            newest_direct(&connection, is_wanted).unwrap().into_iter().map(|found| found.event.event_id).collect()
        };
        assert_eq!(found("fake"), ["fake:6", "fake:2"]);
        assert!(found("mail").is_empty());
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
    fn a_wrong_clock_moves_no_cursor_for_good() {
        let connection = ledger();
        let at = |id: &str, timestamp: i64, received_at: i64| NewEvent { received_at, ..event(id, timestamp, Disposition::Run) };
        let hour = AHEAD_MS_MAX;
        append(&connection, vec![at("fake:1", 4_000, 5_000)]);
        // Our clock is ahead by hours, and somebody else's by thousands of years.
        append(&connection, vec![at("fake:2", 4_100, 9 * hour), at("fake:3", i64::MAX / 2, 9 * hour)]);
        assert_eq!(found(&connection).last_timestamp, 4_100);
        // Slightly ahead of us is believed as far as we have come.
        append(&connection, vec![at("fake:4", 9 * hour + 7, 9 * hour)]);
        assert_eq!(found(&connection).last_timestamp, 9 * hour);
        // Set right again.
        append(&connection, vec![at("fake:5", 4_200, 5_200)]);
        assert_eq!(found(&connection).last_timestamp, 5_200);
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
