//! Definitions that came over Nostr: projects, agents, servers, profiles, announcements, and what their authors
//! deleted. Of a replaceable one only the newest stays, of two of one second that with the lower id (NIP-01).
//! Everything here was verified before.

use crate::ledger::optional;
use crate::ledger::writer::Weight;
use rusqlite::{Connection, params};
use std::sync::Arc;

/// Events that replace none which are kept, and events that replace others; of each sort those that came first make room.
const REGULAR_KEPT: i64 = 20_000;
const REPLACEABLE_KEPT: i64 = 50_000;
/// Deletions that are remembered; the oldest make room.
const DELETED_KEPT: i64 = 50_000;
/// Rows between two looks at how many there are.
const TRIM_EVERY: i64 = 1_024;

/// A verified event that defines something, or deletes what its author defined.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Definition {
    pub id: String,
    pub kind: u16,
    pub pubkey: String,
    /// Of an addressable event its `d` tag, of a replaceable one nothing; `None` for an event that replaces none.
    pub identifier: Option<String>,
    /// Unix seconds.
    pub created_at: i64,
    /// As JSON.
    pub event: String,
    /// What it deletes: ids, and coordinates of its own author.
    pub deletes: Vec<Deleted>,
}

/// One thing that a deletion names (NIP-09).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Deleted {
    Event(String),
    /// What it had up to the time of the deletion.
    Coordinate(String),
}

/// What became of a definition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Put {
    /// It is the one that counts.
    Counts,
    /// It is a deletion that counts and took something away by its id: the coordinates of that.
    Deletes(Vec<String>),
    /// A newer one is known, or it was deleted.
    Outdated,
}

/// Stores definitions, in order. Repeated, it changes nothing and answers the same, but for what was deleted before.
#[derive(Debug, Clone)]
pub struct PutDefinitions {
    pub definitions: Arc<Vec<Definition>>,
    /// Unix ms.
    pub at: i64,
}

impl Definition {
    /// The place of which only one event counts.
    fn slot(&self) -> String {
        match &self.identifier {
            Some(identifier) => coordinate(self.kind, &self.pubkey, identifier),
            None => self.id.clone(),
        }
    }

    fn put(&self, connection: &Connection, at: i64) -> rusqlite::Result<Put> {
        let mut gone = Vec::new();
        for deleted in &self.deletes {
            gone.extend(self.delete(connection, deleted)?);
        }
        let slot = self.slot();
        if self.is_deleted(connection, &slot)? {
            return Ok(Put::Outdated);
        }
        let sql = "INSERT INTO nostr_events (slot, id, kind, pubkey, identifier, created_at, received_at, event)
                   VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8) ON CONFLICT (slot) DO UPDATE SET
                     id = excluded.id, created_at = excluded.created_at, received_at = excluded.received_at, event = excluded.event
                   WHERE excluded.created_at > created_at OR (excluded.created_at = created_at AND excluded.id < id)";
        let row = params![slot, self.id, self.kind, self.pubkey, self.identifier, self.created_at, at, self.event];
        if connection.prepare_cached(sql)?.execute(row)? == 1 {
            trim(connection)?;
        }
        let id: String = connection.prepare_cached("SELECT id FROM nostr_events WHERE slot = ?1")?.query_row([&slot], |row| row.get(0))?;
        Ok(match (id == self.id, gone.is_empty()) {
            (true, true) => Put::Counts,
            (true, false) => Put::Deletes(gone),
            (false, _) => Put::Outdated,
        })
    }

    /// Nobody deletes what another wrote. Where the event was that is gone by its id, if it was one of several versions.
    fn delete(&self, connection: &Connection, deleted: &Deleted) -> rusqlite::Result<Option<String>> {
        let mut gone = None;
        let (target, until) = match deleted {
            Deleted::Event(id) => {
                let sql = "DELETE FROM nostr_events WHERE id = ?1 AND pubkey = ?2 AND kind <> 5 RETURNING slot";
                gone = optional(connection.prepare_cached(sql)?.query_row([id, &self.pubkey], |row| row.get::<_, String>(0)))?;
                (id, i64::MAX)
            }
            Deleted::Coordinate(coordinate) => {
                let sql = "DELETE FROM nostr_events WHERE slot = ?1 AND pubkey = ?2 AND created_at <= ?3";
                connection.prepare_cached(sql)?.execute(params![coordinate, self.pubkey, self.created_at])?;
                (coordinate, self.created_at)
            }
        };
        let sql = "INSERT INTO nostr_deleted (target, pubkey, until) VALUES (?1, ?2, ?3)
                   ON CONFLICT (target, pubkey) DO UPDATE SET until = max(until, excluded.until)";
        connection.prepare_cached(sql)?.execute(params![target, self.pubkey, until])?;
        trim_deleted(connection)?;
        Ok(gone.filter(|slot| slot != target))
    }

    fn is_deleted(&self, connection: &Connection, slot: &str) -> rusqlite::Result<bool> {
        nostr_is_deleted(connection, &self.pubkey, [&self.id, slot], self.created_at)
    }
}

fn trim(connection: &Connection) -> rusqlite::Result<()> {
    if connection.last_insert_rowid() % TRIM_EVERY != 0 {
        return Ok(());
    }
    keep_newest(connection, false, REGULAR_KEPT)?;
    keep_newest(connection, true, REPLACEABLE_KEPT)
}

/// Of the events that replace others, or of those that replace none, only those that came last stay.
fn keep_newest(connection: &Connection, replaceable: bool, kept: i64) -> rusqlite::Result<()> {
    let sql = "DELETE FROM nostr_events WHERE slot IN
                 (SELECT slot FROM nostr_events WHERE (identifier IS NOT NULL) = ?1 ORDER BY received_at DESC, slot LIMIT -1 OFFSET ?2)";
    connection.execute(sql, params![replaceable, kept]).map(drop)
}

/// One event may delete thousands.
fn trim_deleted(connection: &Connection) -> rusqlite::Result<()> {
    if connection.last_insert_rowid() % TRIM_EVERY != 0 {
        return Ok(());
    }
    let sql = "DELETE FROM nostr_deleted WHERE rowid <= (SELECT max(rowid) FROM nostr_deleted) - ?1";
    connection.execute(sql, [DELETED_KEPT]).map(drop)
}

/// `kind:pubkey:identifier`.
pub fn coordinate(kind: u16, pubkey: &str, identifier: &str) -> String {
    format!("{kind}:{pubkey}:{identifier}")
}

impl PutDefinitions {
    pub(super) fn apply(&self, connection: &Connection) -> rusqlite::Result<Vec<Put>> {
        self.definitions.iter().map(|definition| definition.put(connection, self.at)).collect()
    }
}

impl Weight for PutDefinitions {
    fn bytes(&self) -> usize {
        self.definitions.iter().map(|definition| definition.event.len() + 512).sum::<usize>() + 64
    }
    fn rows(&self) -> usize {
        self.definitions.iter().map(|definition| 1 + definition.deletes.len()).sum::<usize>().max(1)
    }
}

/// Whether an author deleted an event of theirs, by its id or, up to `created_at`, by its coordinate (NIP-09).
pub fn nostr_is_deleted(connection: &Connection, pubkey: &str, names: [&str; 2], created_at: i64) -> rusqlite::Result<bool> {
    let sql = "SELECT 1 FROM nostr_deleted WHERE pubkey = ?1 AND target IN (?2, ?3) AND until >= ?4";
    connection.prepare_cached(sql)?.exists(params![pubkey, names[0], names[1], created_at])
}

/// The event that counts at a coordinate, as JSON.
pub fn nostr_event(connection: &Connection, kind: u16, pubkey: &str, identifier: &str) -> rusqlite::Result<Option<String>> {
    let slot = coordinate(kind, pubkey, identifier);
    optional(connection.prepare_cached("SELECT event FROM nostr_events WHERE slot = ?1")?.query_row([slot], |row| row.get(0)))
}

/// Events by their ids, as JSON; those that aren't there are left out.
pub fn nostr_events_by_ids(connection: &Connection, ids: &[String]) -> rusqlite::Result<Vec<String>> {
    let mut query = connection.prepare_cached("SELECT event FROM nostr_events WHERE id = ?1")?;
    let found = ids.iter().map(|id| optional(query.query_row([id], |row| row.get::<_, String>(0))));
    found.filter_map(Result::transpose).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn project(id: &str, created_at: i64) -> Definition {
        Definition {
            id: id.to_owned(),
            kind: 31_933,
            pubkey: "alice".to_owned(),
            identifier: Some("d".to_owned()),
            created_at,
            event: format!("{{\"id\":\"{id}\"}}"),
            deletes: Vec::new(),
        }
    }

    fn deletion(of: Deleted, pubkey: &str, created_at: i64) -> Definition {
        let id = format!("deletion by {pubkey} at {created_at}");
        Definition { kind: 5, pubkey: pubkey.to_owned(), identifier: None, deletes: vec![of], ..project(&id, created_at) }
    }

    fn put(connection: &Connection, definition: Definition) -> Put {
        PutDefinitions { definitions: Arc::new(vec![definition]), at: 1 }.apply(connection).unwrap().remove(0)
    }

    fn counts(connection: &Connection) -> Option<String> {
        nostr_event(connection, 31_933, "alice", "d").unwrap()
    }

    #[test]
    fn the_newest_counts_and_of_one_second_that_with_the_lowest_id() {
        let connection = crate::samples::nexus_ledger();
        assert_eq!(put(&connection, project("m", 10)), Put::Counts);
        assert_eq!(put(&connection, project("m", 10)), Put::Counts, "repeated");
        assert_eq!(put(&connection, project("a", 9)), Put::Outdated);
        assert_eq!(put(&connection, project("z", 10)), Put::Outdated);
        assert_eq!(put(&connection, project("b", 10)), Put::Counts);
        assert_eq!(put(&connection, project("y", 11)), Put::Counts);
        assert_eq!(counts(&connection).as_deref(), Some("{\"id\":\"y\"}"));
        let other = Definition { pubkey: "bob".to_owned(), ..project("c", 1) };
        assert_eq!(put(&connection, other), Put::Counts, "another author's of the same name is another project");
        assert_eq!(nostr_events_by_ids(&connection, &["c".to_owned(), "gone".to_owned(), "y".to_owned()]).unwrap().len(), 2);
    }

    #[test]
    fn an_author_deletes_what_was_and_nobody_elses() {
        let connection = crate::samples::nexus_ledger();
        let slot = || Deleted::Coordinate("31933:alice:d".to_owned());
        put(&connection, project("a", 10));
        put(&connection, deletion(slot(), "bob", 99));
        put(&connection, deletion(Deleted::Event("a".to_owned()), "bob", 99));
        assert!(counts(&connection).is_some(), "bob is somebody else");
        put(&connection, deletion(slot(), "alice", 10));
        assert_eq!(counts(&connection), None);
        assert_eq!(put(&connection, project("b", 9)), Put::Outdated, "an older copy comes late");
        assert_eq!(put(&connection, project("c", 11)), Put::Counts, "what came after the deletion is new");
        let deleted = put(&connection, deletion(Deleted::Event("c".to_owned()), "alice", 12));
        assert_eq!(deleted, Put::Deletes(vec!["31933:alice:d".to_owned()]), "by its id, and still known whose place it had");
        assert_eq!((counts(&connection), put(&connection, project("c", 11))), (None, Put::Outdated));
    }

    #[test]
    fn what_replaces_none_is_deleted_by_its_id_and_stays_so() {
        let connection = crate::samples::nexus_ledger();
        let agent = || Definition { kind: 4_199, identifier: None, ..project("agent", 10) };
        assert_eq!(put(&connection, agent()), Put::Counts);
        assert_eq!(put(&connection, deletion(Deleted::Event("agent".to_owned()), "alice", 11)), Put::Counts);
        assert!(nostr_events_by_ids(&connection, &["agent".to_owned()]).unwrap().is_empty());
        assert_eq!(put(&connection, agent()), Put::Outdated, "whichever relay still has it");
    }

    #[test]
    fn a_deletion_that_comes_first_counts_too() {
        let connection = crate::samples::nexus_ledger();
        put(&connection, deletion(Deleted::Event("a".to_owned()), "alice", 12));
        assert_eq!(put(&connection, project("a", 10)), Put::Outdated);
    }

    fn count(connection: &Connection, table: &str) -> i64 {
        connection.query_row(&format!("SELECT count(*) FROM {table}"), [], |row| row.get(0)).unwrap()
    }

    #[test]
    fn of_each_sort_those_that_came_last_stay() {
        let connection = crate::samples::nexus_ledger();
        for n in 0..8_i64 {
            let own = Definition { identifier: Some(format!("d{n}")), ..project(&format!("project {n}"), 10) };
            let agent = Definition { kind: 4_199, identifier: None, ..project(&format!("agent {n}"), 10) };
            PutDefinitions { definitions: Arc::new(vec![own, agent]), at: n }.apply(&connection).unwrap();
        }
        keep_newest(&connection, true, 3).unwrap();
        assert_eq!(count(&connection, "nostr_events"), 3 + 8, "the others are not touched");
        let at = |name: &str| nostr_event(&connection, 31_933, "alice", name).unwrap();
        assert!(at("d4").is_none() && at("d5").is_some() && at("d7").is_some());
        keep_newest(&connection, false, 2).unwrap();
        assert_eq!(count(&connection, "nostr_events"), 3 + 2);
    }

    #[test]
    fn deletions_are_bounded_however_few_events_bring_them() {
        let connection = crate::samples::nexus_ledger();
        let sql = "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?1)
                   INSERT INTO nostr_deleted (target, pubkey, until) SELECT 'old ' || i, 'alice', 1 FROM n";
        connection.execute(sql, [2 * DELETED_KEPT]).unwrap();
        let deletes = (0..TRIM_EVERY).map(|n| Deleted::Event(format!("new {n}"))).collect();
        put(&connection, Definition { deletes, ..deletion(Deleted::Event(String::new()), "alice", 12) });
        assert!(count(&connection, "nostr_deleted") <= DELETED_KEPT + TRIM_EVERY);
        assert_eq!(put(&connection, project("new 0", 10)), Put::Outdated, "the newest count still");
    }
}
