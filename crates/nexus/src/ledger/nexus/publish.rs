//! What is to be published on Nostr: signed events, and for each relay how far that has come. An event is signed
//! and written once for each key that its maker gives; sending it again is harmless, since a relay knows it by
//! its id.

use super::Claim;
use crate::ledger::optional;
use crate::ledger::writer::Weight;
use rusqlite::types::{FromSql, FromSqlError, FromSqlResult, ValueRef};
use rusqlite::{Connection, Row, params};
use serde::Serialize;

/// How long after its end an event is remembered, with the key under which it was made, in ms.
const REMEMBERED_MS: i64 = 30 * 24 * 60 * 60 * 1000;
/// No event is put off for longer, in ms: one that is was put off by a clock that was ahead, and is due.
pub const PUT_OFF_MS_MAX: i64 = 600_000;

/// Writes a signed event for these relays, unless one was made under the same key before.
#[derive(Debug, Clone)]
pub struct Publish {
    /// The key under which it is made once.
    pub once: String,
    pub event_id: String,
    pub kind: u16,
    /// As JSON.
    pub event: String,
    pub relays: Vec<String>,
    /// Unix ms, as the next.
    pub at: i64,
    pub expires_at: i64,
    /// No more may wait than these.
    pub waiting_max: i64,
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Published {
    Now,
    /// Under that key there is this event.
    Before {
        event_id: String,
    },
    /// Too many wait already.
    Full,
}

impl Publish {
    pub(super) fn apply(&self, connection: &Connection) -> rusqlite::Result<Published> {
        if let Some(event_id) = published_under(connection, &self.once)? {
            return Ok(if event_id == self.event_id { Published::Now } else { Published::Before { event_id } });
        }
        let waiting: i64 = connection.prepare_cached(WAITING)?.query_row([], |row| row.get(0))?;
        if waiting >= self.waiting_max {
            return Ok(Published::Full);
        }
        let sql = "INSERT INTO nostr_published (event_id, once, kind, event, status, created_at, expires_at)
                   VALUES (?1, ?2, ?3, ?4, 'waiting', ?5, ?6) ON CONFLICT (event_id) DO NOTHING";
        let row = params![self.event_id, self.once, self.kind, self.event, self.at, self.expires_at];
        connection.prepare_cached(sql)?.execute(row)?;
        let sql = "INSERT INTO nostr_outbox (event_id, relay, status, attempts, next_attempt_at, updated_at)
                   VALUES (?1, ?2, 'pending', 0, ?3, ?3) ON CONFLICT (event_id, relay) DO NOTHING";
        let mut insert = connection.prepare_cached(sql)?;
        for relay in &self.relays {
            insert.execute(params![self.event_id, relay, self.at])?;
        }
        Ok(Published::Now)
    }
}

const WAITING: &str = "SELECT count(*) FROM nostr_published WHERE status = 'waiting'";

/// What nobody has yet is also for these relays, which came later.
#[derive(Debug, Clone)]
pub struct SpreadPublished {
    pub relays: Vec<String>,
    pub at: i64,
}

impl SpreadPublished {
    pub(super) fn apply(&self, connection: &Connection) -> rusqlite::Result<()> {
        let sql = "INSERT INTO nostr_outbox (event_id, relay, status, attempts, next_attempt_at, updated_at)
                   SELECT event_id, ?1, 'pending', 0, ?2, ?2 FROM nostr_published WHERE status = 'waiting' AND expires_at > ?2
                   ON CONFLICT (event_id, relay) DO NOTHING";
        let mut insert = connection.prepare_cached(sql)?;
        self.relays.iter().try_for_each(|relay| insert.execute(params![relay, self.at]).map(drop))
    }
}

/// What a relay did with an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answered {
    Accepted,
    /// It never will.
    Refused {
        error: String,
    },
    /// Not now; again from this instant (Unix ms) on.
    Again {
        error: String,
        at: i64,
    },
    /// It could say nothing; again from this instant (Unix ms) on, and as if it had not been sent.
    Unanswered {
        error: String,
        at: i64,
    },
}

/// Writes a relay's answer.
#[derive(Debug, Clone)]
pub struct SettlePublished {
    pub event_id: String,
    pub relay: String,
    pub answered: Answered,
    pub at: i64,
}

impl SettlePublished {
    /// Lost when that relay isn't waited for (any more).
    pub(super) fn apply(&self, connection: &Connection) -> rusqlite::Result<Claim> {
        let (status, error, next, attempts) = match &self.answered {
            Answered::Accepted => ("accepted", None, self.at, 1),
            Answered::Refused { error } => ("refused", Some(error), self.at, 1),
            Answered::Again { error, at } => ("pending", Some(error), *at, 1),
            Answered::Unanswered { error, at } => ("pending", Some(error), *at, 0),
        };
        let sql = "UPDATE nostr_outbox SET status = ?3, error = ?4, next_attempt_at = ?5, updated_at = ?6, attempts = attempts + ?7
                   WHERE event_id = ?1 AND relay = ?2 AND status = 'pending'";
        let row = params![self.event_id, self.relay, status, error, next, self.at, attempts];
        let changed = connection.prepare_cached(sql)?.execute(row)?;
        match &self.answered {
            Answered::Accepted => {
                let sql = "UPDATE nostr_published SET status = 'accepted', accepted_at = ?2 WHERE event_id = ?1 AND status = 'waiting'";
                connection.prepare_cached(sql)?.execute(params![self.event_id, self.at])?;
            }
            Answered::Refused { .. } => {
                let sql = "UPDATE nostr_published SET status = 'refused' WHERE event_id = ?1 AND status = 'waiting'
                             AND NOT EXISTS (SELECT 1 FROM nostr_outbox o WHERE o.event_id = ?1 AND o.status IN ('pending', 'accepted'))";
                connection.prepare_cached(sql)?.execute([&self.event_id])?;
            }
            Answered::Again { .. } | Answered::Unanswered { .. } => {}
        }
        Ok(if changed == 1 { Claim::Done } else { Claim::Lost })
    }
}

/// Ends what is too old to be published, and forgets what ended long ago.
#[derive(Debug, Clone)]
pub struct PrunePublished {
    pub at: i64,
    pub rows_max: u32,
    /// Events that are remembered at most; of those beyond, the oldest that are at their end are forgotten.
    pub kept: i64,
}

impl PrunePublished {
    /// How many rows were changed or removed; as many as `rows_max` means that more may be left.
    pub(super) fn apply(&self, connection: &Connection) -> rusqlite::Result<u64> {
        let sql = "UPDATE nostr_outbox SET status = 'expired', updated_at = ?1 WHERE rowid IN
                     (SELECT o.rowid FROM nostr_outbox o JOIN nostr_published p ON p.event_id = o.event_id
                      WHERE o.status = 'pending' AND p.expires_at <= ?1 LIMIT ?2)";
        let mut changed = connection.prepare_cached(sql)?.execute(params![self.at, self.rows_max])?;
        let sql = "UPDATE nostr_published SET status = 'expired' WHERE status = 'waiting' AND expires_at <= ?1
                     AND NOT EXISTS (SELECT 1 FROM nostr_outbox o WHERE o.event_id = nostr_published.event_id AND o.status = 'pending')";
        changed += connection.prepare_cached(sql)?.execute([self.at])?;
        let forgotten = self.at.saturating_sub(REMEMBERED_MS);
        changed += self.forget(connection, "expires_at <= ?1 ORDER BY expires_at, seq", forgotten)?;
        let beyond = "seq <= (SELECT max(seq) FROM nostr_published) - ?1 AND status <> 'waiting'
                        AND NOT EXISTS (SELECT 1 FROM nostr_outbox o WHERE o.event_id = nostr_published.event_id AND o.status = 'pending')
                      ORDER BY seq";
        changed += self.forget(connection, beyond, self.kept)?;
        Ok(changed as u64)
    }

    /// Forgets events, and what relays did with them; `which` has one parameter.
    fn forget(&self, connection: &Connection, which: &str, parameter: i64) -> rusqlite::Result<usize> {
        let old = format!("SELECT event_id FROM nostr_published WHERE {which} LIMIT ?2");
        let mut changed = 0;
        for table in ["nostr_outbox", "nostr_published"] {
            let sql = format!("DELETE FROM {table} WHERE event_id IN ({old})");
            changed += connection.prepare_cached(&sql)?.execute(params![parameter, self.rows_max])?;
        }
        Ok(changed)
    }
}

impl Weight for Publish {
    fn bytes(&self) -> usize {
        self.event.len() + 64 * self.relays.len() + 256
    }
    fn rows(&self) -> usize {
        1 + self.relays.len()
    }
}
impl Weight for SpreadPublished {
    fn rows(&self) -> usize {
        1024 // a transaction of its own
    }
}
impl Weight for SettlePublished {}
impl Weight for PrunePublished {
    fn rows(&self) -> usize {
        1024 // a transaction of its own
    }
}

/// An event that a relay is to get.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DuePublication {
    pub event_id: String,
    pub kind: u16,
    pub event: String,
    pub attempts: u32,
}

/// What a relay is to get now, in the order in which it was made; nothing of the kinds `but`.
pub fn due_publications(
    connection: &Connection,
    relay: &str,
    but: &[u16],
    now: i64,
    limit: usize,
) -> rusqlite::Result<Vec<DuePublication>> {
    let sql = "SELECT p.event_id, p.kind, p.event, o.attempts FROM nostr_outbox o JOIN nostr_published p ON p.event_id = o.event_id
               WHERE o.relay = ?1 AND o.status = 'pending' AND p.expires_at > ?2
                 AND (o.next_attempt_at <= ?2 OR o.next_attempt_at > ?2 + ?5)
                 AND p.kind NOT IN (SELECT value FROM json_each(?3)) ORDER BY p.seq LIMIT ?4";
    let read = |row: &Row<'_>| Ok(DuePublication { event_id: row.get(0)?, kind: row.get(1)?, event: row.get(2)?, attempts: row.get(3)? });
    let but = serde_json::Value::from(but).to_string();
    connection.prepare_cached(sql)?.query_map(params![relay, now, but, limit, PUT_OFF_MS_MAX], read)?.collect()
}

/// When the next event is due for a relay, in Unix ms.
pub fn next_publication(connection: &Connection, relay: &str) -> rusqlite::Result<Option<i64>> {
    let sql = "SELECT min(next_attempt_at) FROM nostr_outbox WHERE relay = ?1 AND status = 'pending'";
    connection.prepare_cached(sql)?.query_row([relay], |row| row.get(0))
}

/// The event that was made under a key.
pub fn published_under(connection: &Connection, once: &str) -> rusqlite::Result<Option<String>> {
    optional(connection.prepare_cached("SELECT event_id FROM nostr_published WHERE once = ?1")?.query_row([once], |row| row.get(0)))
}

/// How an event that is published stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum PublishedStatus {
    Waiting,
    /// By one relay at least.
    Accepted,
    Refused,
    Expired,
}

impl PublishedStatus {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Accepted => "accepted",
            Self::Refused => "refused",
            Self::Expired => "expired",
        }
    }
}

impl FromSql for PublishedStatus {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
        match value.as_str()? {
            "waiting" => Ok(Self::Waiting),
            "accepted" => Ok(Self::Accepted),
            "refused" => Ok(Self::Refused),
            "expired" => Ok(Self::Expired),
            _ => Err(FromSqlError::InvalidType),
        }
    }
}

/// The event that was made last under a key that begins so, as JSON, and how it stands.
pub fn published_last(connection: &Connection, prefix: &str) -> rusqlite::Result<Option<(String, PublishedStatus)>> {
    let sql = "SELECT event, status FROM nostr_published WHERE once >= ?1 AND once < ?1 || char(1114111) ORDER BY seq DESC LIMIT 1";
    optional(connection.prepare_cached(sql)?.query_row([prefix], |row| Ok((row.get(0)?, row.get(1)?))))
}

/// How an event that is published stands, and the newest thing that a relay said against it.
pub fn published_status(connection: &Connection, event_id: &str) -> rusqlite::Result<Option<(PublishedStatus, Option<String>)>> {
    let sql = "SELECT status, (SELECT error FROM nostr_outbox o WHERE o.event_id = p.event_id AND error IS NOT NULL
                 ORDER BY updated_at DESC LIMIT 1) FROM nostr_published p WHERE event_id = ?1";
    optional(connection.prepare_cached(sql)?.query_row([event_id], |row| Ok((row.get(0)?, row.get(1)?))))
}

/// What waits to be published.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct OutboxCounts {
    /// Events that no relay has yet.
    pub waiting: u64,
    /// How many each relay is to get.
    pub pending: std::collections::BTreeMap<String, u64>,
}

/// Counts what waits.
pub fn outbox_counts(connection: &Connection) -> rusqlite::Result<OutboxCounts> {
    let waiting = connection.prepare_cached(WAITING)?.query_row([], |row| row.get(0))?;
    let sql = "SELECT relay, count(*) FROM nostr_outbox WHERE status = 'pending' GROUP BY relay";
    let pending = connection.prepare_cached(sql)?.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?.collect::<rusqlite::Result<_>>()?;
    Ok(OutboxCounts { waiting, pending })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn publish(once: &str, event_id: &str, at: i64) -> Publish {
        Publish {
            once: once.to_owned(),
            event_id: event_id.to_owned(),
            kind: 1,
            event: "{}".to_owned(),
            relays: vec!["ws://a".to_owned(), "ws://b".to_owned()],
            at,
            expires_at: at + 1_000,
            waiting_max: 2,
        }
    }

    fn settle(connection: &Connection, event_id: &str, relay: &str, answered: Answered) -> Claim {
        let (event_id, relay) = (event_id.to_owned(), relay.to_owned());
        SettlePublished { event_id, relay, answered, at: 50 }.apply(connection).unwrap()
    }

    fn due(connection: &Connection, relay: &str, now: i64) -> Vec<String> {
        due_publications(connection, relay, &[], now, 10).unwrap().into_iter().map(|one| one.event_id).collect()
    }

    fn status(connection: &Connection, event_id: &str) -> PublishedStatus {
        published_status(connection, event_id).unwrap().unwrap().0
    }

    #[test]
    fn what_was_published_last_by_a_name_is_found() {
        let connection = crate::samples::nexus_ledger();
        for (once, event_id) in [("p:a/b:1", "e1"), ("p:a/c:1", "e2"), ("p:a/b:0", "e3"), ("p:a/bc:9", "e4")] {
            let publish = Publish { event: event_id.to_owned(), waiting_max: 9, ..publish(once, event_id, 10) };
            assert_eq!(publish.apply(&connection).unwrap(), Published::Now);
        }
        let last = |prefix: &str| published_last(&connection, prefix).unwrap();
        assert_eq!(last("p:a/b:"), Some(("e3".to_owned(), PublishedStatus::Waiting)));
        assert_eq!(last("p:a/d:"), None);
    }

    #[test]
    fn a_key_makes_one_event_and_each_relay_gets_it_in_order() {
        let connection = crate::samples::nexus_ledger();
        assert_eq!(publish("k", "e1", 10).apply(&connection).unwrap(), Published::Now);
        assert_eq!(publish("k", "e1", 10).apply(&connection).unwrap(), Published::Now, "the same command, repeated");
        let before = Published::Before { event_id: "e1".to_owned() };
        assert_eq!(publish("k", "e2", 11).apply(&connection).unwrap(), before, "signed anew");
        assert_eq!(publish("l", "e3", 12).apply(&connection).unwrap(), Published::Now);
        assert_eq!(publish("m", "e4", 13).apply(&connection).unwrap(), Published::Full);
        assert_eq!((due(&connection, "ws://a", 20), due(&connection, "ws://a", 11)), (vec!["e1".into(), "e3".into()], vec!["e1".into()]));
    }

    #[test]
    fn what_a_clock_that_was_ahead_put_off_is_due_once_it_is_right() {
        let (connection, now) = (crate::samples::nexus_ledger(), 1_000_000);
        publish("k", "e1", now + 2 * 60 * 60 * 1000).apply(&connection).unwrap();
        assert_eq!(due(&connection, "ws://a", now), ["e1"]);
        publish("l", "e2", now + PUT_OFF_MS_MAX).apply(&connection).unwrap();
        assert_eq!(due(&connection, "ws://a", now), ["e1"], "the other one is put off as long as any is");
    }

    #[test]
    fn kinds_that_may_not_go_now_take_no_place() {
        let connection = crate::samples::nexus_ledger();
        publish("k", "e1", 10).apply(&connection).unwrap();
        Publish { kind: 1_111, ..publish("l", "e2", 10) }.apply(&connection).unwrap();
        let due = |but: &[u16]| -> Vec<String> {
            due_publications(&connection, "ws://a", but, 10, 1).unwrap().into_iter().map(|one| one.event_id).collect()
        };
        assert_eq!((due(&[]), due(&[7, 1]), due(&[1, 1_111])), (vec!["e1".to_owned()], vec!["e2".to_owned()], Vec::new()));
    }

    #[test]
    fn one_relay_is_enough_and_the_others_still_get_it() {
        let connection = crate::samples::nexus_ledger();
        publish("k", "e1", 10).apply(&connection).unwrap();
        let later = Answered::Again { error: "rate-limited".to_owned(), at: 90 };
        assert_eq!(settle(&connection, "e1", "ws://b", later), Claim::Done);
        assert_eq!((status(&connection, "e1"), due(&connection, "ws://b", 89).len()), (PublishedStatus::Waiting, 0));
        assert_eq!(settle(&connection, "e1", "ws://a", Answered::Accepted), Claim::Done);
        assert_eq!(settle(&connection, "e1", "ws://a", Answered::Accepted), Claim::Lost);
        assert_eq!((status(&connection, "e1"), due(&connection, "ws://b", 90).len()), (PublishedStatus::Accepted, 1));
        assert_eq!(next_publication(&connection, "ws://b").unwrap(), Some(90));
        assert_eq!(outbox_counts(&connection).unwrap().pending, [("ws://b".to_owned(), 1)].into());
    }

    #[test]
    fn only_what_a_relay_says_is_an_attempt() {
        let connection = crate::samples::nexus_ledger();
        publish("k", "e1", 10).apply(&connection).unwrap();
        let attempts = || due_publications(&connection, "ws://a", &[], 90, 10).unwrap()[0].attempts;
        let lost = Answered::Unanswered { error: "it gave no answer".to_owned(), at: 60 };
        assert_eq!(settle(&connection, "e1", "ws://a", lost), Claim::Done);
        assert_eq!((attempts(), due(&connection, "ws://a", 59).len(), status(&connection, "e1")), (0, 0, PublishedStatus::Waiting));
        settle(&connection, "e1", "ws://a", Answered::Again { error: "error: disk".to_owned(), at: 60 });
        assert_eq!(attempts(), 1);
    }

    #[test]
    fn what_all_refuse_is_refused_and_what_nobody_takes_expires() {
        let connection = crate::samples::nexus_ledger();
        publish("k", "e1", 10).apply(&connection).unwrap();
        publish("l", "e2", 10).apply(&connection).unwrap();
        let refused = || Answered::Refused { error: "blocked".to_owned() };
        settle(&connection, "e1", "ws://a", refused());
        assert_eq!(status(&connection, "e1"), PublishedStatus::Waiting);
        settle(&connection, "e1", "ws://b", refused());
        assert_eq!(published_status(&connection, "e1").unwrap(), Some((PublishedStatus::Refused, Some("blocked".to_owned()))));
        let prune = |at: i64| PrunePublished { at, rows_max: 100, kept: 100 }.apply(&connection).unwrap();
        prune(1_009);
        assert_eq!(status(&connection, "e2"), PublishedStatus::Waiting);
        prune(1_010);
        assert_eq!((status(&connection, "e2"), due(&connection, "ws://a", 1).len()), (PublishedStatus::Expired, 0));
        prune(1_010 + REMEMBERED_MS);
        assert_eq!(published_under(&connection, "k").unwrap(), None);
    }

    #[test]
    fn no_more_are_remembered_than_may_be_and_none_that_waits_is_forgotten() {
        let connection = crate::samples::nexus_ledger();
        for n in 1..=6 {
            let (once, event_id) = (format!("k{n}"), format!("e{n}"));
            Publish { waiting_max: 10, ..publish(&once, &event_id, 10) }.apply(&connection).unwrap();
            if n != 1 {
                for relay in ["ws://a", "ws://b"] {
                    settle(&connection, &event_id, relay, Answered::Accepted);
                }
            }
        }
        let prune = || PrunePublished { at: 20, rows_max: 2, kept: 2 }.apply(&connection).unwrap();
        let known = |once: &str| published_under(&connection, once).unwrap().is_some();
        assert!(prune() >= 2, "there is more to do");
        assert!(known("k1") && !known("k2") && !known("k3") && known("k4"));
        prune();
        assert_eq!(prune(), 0, "all is done");
        assert!(known("k1") && !known("k4") && known("k5") && known("k6"));
    }

    #[test]
    fn a_relay_that_comes_later_gets_what_nobody_has() {
        let connection = crate::samples::nexus_ledger();
        publish("k", "e1", 10).apply(&connection).unwrap();
        publish("l", "e2", 10).apply(&connection).unwrap();
        settle(&connection, "e1", "ws://a", Answered::Accepted);
        let spread = SpreadPublished { relays: vec!["ws://c".to_owned()], at: 20 };
        spread.apply(&connection).unwrap();
        spread.apply(&connection).unwrap();
        assert_eq!(due(&connection, "ws://c", 20), ["e2"]);
    }
}
