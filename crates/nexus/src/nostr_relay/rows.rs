//! The relay's database: what is stored, what replaces what, what was deleted (NIP-01, NIP-09, NIP-40).
//! It knows nothing of clients; who asks in which order, `store.rs` says.

use super::event::{Class, DELETION_KIND, Event};
use super::filter::Filter;
use super::find::{Found, find};
use super::limits::SWEEP_ROWS_MAX;
use rusqlite::{Connection, OptionalExtension, params};
use std::path::{Path, PathBuf};

/// Raised with each change of the tables.
const SCHEMA: i64 = 1;
const PAGE_BYTES: u32 = 4096;
const TABLES: &str = "
CREATE TABLE events (
    -- Never used twice, so that it says what a subscription was told of.
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    pubkey TEXT NOT NULL,
    kind INTEGER NOT NULL,
    created_at INTEGER NOT NULL,
    -- What all versions of a replaceable event share; only the newest is here.
    address TEXT UNIQUE,
    expires_at INTEGER,
    json TEXT NOT NULL
) STRICT;
CREATE INDEX events_by_time ON events (created_at DESC, id);
CREATE INDEX events_by_author ON events (pubkey, kind, created_at DESC);
CREATE INDEX events_by_kind ON events (kind, created_at DESC);
CREATE INDEX events_by_end ON events (expires_at) WHERE expires_at IS NOT NULL;
CREATE TABLE tags (
    name TEXT NOT NULL,
    value TEXT NOT NULL,
    event INTEGER NOT NULL REFERENCES events (seq) ON DELETE CASCADE,
    PRIMARY KEY (name, value, event)
) STRICT, WITHOUT ROWID;
CREATE INDEX tags_by_event ON tags (event);
PRAGMA user_version = 1;";

/// What became of an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Kept {
    /// Under this number.
    New(i64),
    Duplicate,
    /// A newer version is here.
    Older,
    /// Its author had it deleted.
    Deleted,
}

#[derive(Debug, thiserror::Error)]
pub enum RowsError {
    #[error("failed to open the relay's database `{path}`")]
    Open {
        path: PathBuf,
        #[source]
        source: rusqlite::Error,
    },
    #[error("`{path}` was written by another version of nexus (schema {found}, this one knows {SCHEMA}); move it away")]
    Schema { path: PathBuf, found: i64 },
}

#[derive(Debug)]
pub(super) struct Rows {
    connection: Connection,
}

impl Rows {
    /// Opens the database, or makes it; it grows to `max_mb` at most.
    ///
    /// # Errors
    /// [`RowsError`] when it can't be opened or isn't ours.
    pub(super) fn open(path: &Path, max_mb: u32) -> Result<Self, RowsError> {
        let failed = |source| RowsError::Open { path: path.to_owned(), source };
        let connection = Connection::open(path).map_err(failed)?;
        let pages = u64::from(max_mb) * 1024 * 1024 / u64::from(PAGE_BYTES);
        let settings = format!(
            "PRAGMA page_size = {PAGE_BYTES}; PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON;
             PRAGMA max_page_count = {pages};"
        );
        connection.execute_batch(&settings).map_err(failed)?;
        let found: i64 = connection.query_row("PRAGMA user_version", [], |row| row.get(0)).map_err(failed)?;
        match found {
            0 => connection.execute_batch(&format!("BEGIN IMMEDIATE; {TABLES} COMMIT;")).map_err(failed)?,
            SCHEMA => {}
            found => return Err(RowsError::Schema { path: path.to_owned(), found }),
        }
        Ok(Self { connection })
    }

    /// Keeps events, all of them in one commit.
    ///
    /// # Errors
    /// Of the database, as when it is full. None of them is kept then.
    pub(super) fn keep<'e>(&mut self, events: impl Iterator<Item = &'e Event>) -> rusqlite::Result<Vec<Kept>> {
        let transaction = self.connection.transaction()?;
        let kept = events.map(|event| keep_one(&transaction, event)).collect::<rusqlite::Result<Vec<_>>>()?;
        transaction.commit()?;
        Ok(kept)
    }

    /// What is stored for these filters, and the number of the last event that was looked at.
    ///
    /// # Errors
    /// Of the database.
    pub(super) fn find(&self, filters: &[Filter], now_s: i64) -> rusqlite::Result<(Found, i64)> {
        let last = self.connection.query_row("SELECT coalesce(max(seq), 0) FROM events", [], |row| row.get(0))?;
        Ok((find(&self.connection, filters, now_s)?, last))
    }

    /// Removes some of what is expired; how many.
    ///
    /// # Errors
    /// Of the database.
    pub(super) fn sweep(&self, now_s: i64) -> rusqlite::Result<usize> {
        let sql = format!("DELETE FROM events WHERE seq IN (SELECT seq FROM events WHERE expires_at <= ?1 LIMIT {SWEEP_ROWS_MAX})");
        self.connection.execute(&sql, [now_s])
    }
}

fn keep_one(connection: &Connection, event: &Event) -> rusqlite::Result<Kept> {
    let known = connection.prepare_cached("SELECT 1 FROM events WHERE id = ?1")?.exists([&event.id])?;
    if known {
        return Ok(Kept::Duplicate);
    }
    let created_at = i64::try_from(event.created_at).unwrap_or(i64::MAX);
    let address = event.address();
    if is_deleted(connection, event, created_at, address.as_deref())? {
        return Ok(Kept::Deleted);
    }
    if let Some(address) = &address
        && !replaces(connection, event, created_at, address)?
    {
        return Ok(Kept::Older);
    }
    let seq = insert(connection, event, created_at, address.as_deref())?;
    if event.kind == DELETION_KIND {
        delete(connection, event, created_at)?;
    }
    Ok(Kept::New(seq))
}

/// Whether the author asked for the deletion of this event, or of its address since then (NIP-09).
fn is_deleted(connection: &Connection, event: &Event, created_at: i64, address: Option<&str>) -> rusqlite::Result<bool> {
    if event.kind == DELETION_KIND {
        return Ok(false);
    }
    let sql =
        "SELECT 1 FROM tags JOIN events ON seq = event WHERE name = ?1 AND value = ?2 AND kind = 5 AND pubkey = ?3 AND created_at >= ?4";
    let mut asked = connection.prepare_cached(sql)?;
    if asked.exists(params!["e", event.id, event.pubkey, 0])? {
        return Ok(true);
    }
    match address {
        Some(address) => asked.exists(params!["a", address, event.pubkey, created_at]),
        None => Ok(false),
    }
}

/// Removes the version that is there, if this one is newer: at the same second, the lower id is (NIP-01).
fn replaces(connection: &Connection, event: &Event, created_at: i64, address: &str) -> rusqlite::Result<bool> {
    let sql = "SELECT created_at, id FROM events WHERE address = ?1";
    let there: Option<(i64, String)> =
        connection.prepare_cached(sql)?.query_row([address], |row| Ok((row.get(0)?, row.get(1)?))).optional()?;
    if let Some((at, id)) = there {
        if at > created_at || (at == created_at && id < event.id) {
            return Ok(false);
        }
        connection.execute("DELETE FROM events WHERE address = ?1", [address])?;
    }
    Ok(true)
}

fn insert(connection: &Connection, event: &Event, created_at: i64, address: Option<&str>) -> rusqlite::Result<i64> {
    let expires_at = event.expires_at().map(|at| i64::try_from(at).unwrap_or(i64::MAX));
    let sql = "INSERT INTO events (id, pubkey, kind, created_at, address, expires_at, json) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)";
    let row = params![event.id, event.pubkey, event.kind, created_at, address, expires_at, event.json];
    connection.prepare_cached(sql)?.execute(row)?;
    let seq = connection.last_insert_rowid();
    let mut tag = connection.prepare_cached("INSERT OR IGNORE INTO tags (name, value, event) VALUES (?1, ?2, ?3)")?;
    for (name, value) in event.indexed() {
        tag.execute(params![name, value, seq])?;
    }
    Ok(seq)
}

/// Does what a request to delete asks for, as far as it is about the author's own events. Requests themselves stay.
fn delete(connection: &Connection, request: &Event, created_at: i64) -> rusqlite::Result<()> {
    debug_assert_eq!(request.class(), Class::Regular);
    for id in request.values("e") {
        connection
            .prepare_cached("DELETE FROM events WHERE id = ?1 AND pubkey = ?2 AND kind <> 5")?
            .execute(params![id, request.pubkey])?;
    }
    for address in request.values("a") {
        connection.prepare_cached("DELETE FROM events WHERE address = ?1 AND pubkey = ?2 AND created_at <= ?3")?.execute(params![
            address,
            request.pubkey,
            created_at
        ])?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::event::tests::{NOW_S, event};
    use super::super::limits::ROWS_MAX;
    use super::*;
    use serde_json::{Value, json};

    const NOW: i64 = NOW_S as i64;

    struct Place {
        rows: Rows,
        directory: tempfile::TempDir,
    }

    fn place() -> Place {
        let directory = tempfile::tempdir().unwrap();
        Place { rows: Rows::open(&directory.path().join("relay.db"), 64).unwrap(), directory }
    }

    impl Place {
        fn keep(&mut self, event: &Event) -> Kept {
            self.rows.keep(std::iter::once(event)).unwrap().remove(0)
        }

        /// Contents of what is found, in their order.
        fn found(&self, filters: &[Value]) -> Vec<String> {
            let filters: Vec<Filter> = filters.iter().map(|one| Filter::parse(&one.to_string()).unwrap()).collect();
            let (found, _) = self.rows.find(&filters, NOW).unwrap();
            assert!(!found.is_cut);
            let content = |text: &String| serde_json::from_str::<Value>(text).unwrap()["content"].as_str().unwrap().to_owned();
            found.events.iter().map(content).collect()
        }
    }

    #[test]
    fn what_is_kept_is_found_newest_first_by_any_filter() {
        let mut place = place();
        let first = event(1, 1, NOW_S - 3, &[&["t", "x"], &["p", "bob"]], "first");
        let second = event(2, 1, NOW_S - 2, &[&["t", "x"], &["t", "y"]], "second");
        let third = event(1, 7, NOW_S - 1, &[&["e", &first.id], &["e", &first.id]], "third");
        for one in [&third, &first, &second] {
            assert!(matches!(place.keep(one), Kept::New(_)));
        }
        assert_eq!(place.keep(&first), Kept::Duplicate);
        assert_eq!(place.found(&[json!({})]), ["third", "second", "first"]);
        assert_eq!(place.found(&[json!({ "limit": 1 })]), ["third"]);
        assert_eq!(place.found(&[json!({ "limit": 0 })]).len(), 0);
        assert_eq!(place.found(&[json!({ "#t": ["y", "x"] })]), ["second", "first"]);
        assert_eq!(place.found(&[json!({ "#t": ["x"], "#p": ["bob"] })]), ["first"]);
        assert_eq!(place.found(&[json!({ "#e": [first.id] })]), ["third"]);
        assert_eq!(place.found(&[json!({ "ids": [second.id] })]), ["second"]);
        assert_eq!(place.found(&[json!({ "authors": [first.pubkey], "kinds": [1] })]), ["first"]);
        assert_eq!(place.found(&[json!({ "since": NOW_S - 2, "until": NOW_S - 2 })]), ["second"]);
        assert_eq!(place.found(&[json!({ "until": u64::MAX })]).len(), 3);
        assert_eq!(place.found(&[json!({ "kinds": [7] }), json!({ "kinds": [1, 7], "limit": 2 })]), ["third", "second"], "each once");
        assert_eq!(place.found(&[json!({ "ids": [] })]).len(), 0);
    }

    #[test]
    fn the_newest_version_counts_and_at_a_tie_the_lowest_id() {
        let mut place = place();
        let (old, new) = (event(1, 30_000, NOW_S - 9, &[&["d", "x"]], "old"), event(1, 30_000, NOW_S - 8, &[&["d", "x"]], "new"));
        assert!(matches!(place.keep(&new), Kept::New(_)));
        assert_eq!(place.keep(&old), Kept::Older);
        assert!(matches!(place.keep(&event(1, 30_000, NOW_S, &[&["d", "y"]], "another")), Kept::New(_)));
        assert!(matches!(place.keep(&event(2, 30_000, NOW_S, &[&["d", "x"]], "another's")), Kept::New(_)));
        assert_eq!(place.found(&[json!({ "authors": [new.pubkey], "#d": ["x"] })]), ["new"]);
        let mut tied: Vec<Event> = ["a", "b", "c"].map(|text| event(1, 0, NOW_S, &[], text)).into_iter().collect();
        tied.sort_by(|one, other| one.id.cmp(&other.id));
        for order in [[1, 0, 2], [2, 1, 0]] {
            let mut place = self::place();
            for n in order {
                place.keep(&tied[n]);
            }
            assert_eq!(place.found(&[json!({ "kinds": [0] })]).len(), 1);
            assert_eq!(place.found(&[json!({ "ids": [tied[0].id] })]).len(), 1, "{order:?}");
        }
    }

    #[test]
    fn authors_delete_their_own_events_and_those_stay_deleted() {
        let mut place = place();
        let (mine, other) = (event(1, 1, NOW_S - 5, &[], "mine"), event(2, 1, NOW_S - 5, &[], "other"));
        let versions = [NOW_S - 9, NOW_S - 1].map(|at| event(1, 30_000, at, &[&["d", "x:y"]], "version"));
        for one in [&mine, &other, &versions[0]] {
            place.keep(one);
        }
        let address = versions[0].address().unwrap();
        let request = event(1, 5, NOW_S - 4, &[&["e", &mine.id], &["e", &other.id], &["a", &address]], "request");
        assert!(matches!(place.keep(&request), Kept::New(_)));
        assert_eq!(place.found(&[json!({})]), ["request", "other"]);
        assert_eq!(place.keep(&mine), Kept::Deleted);
        assert_eq!(place.keep(&versions[0]), Kept::Deleted);
        assert!(matches!(place.keep(&versions[1]), Kept::New(_)), "a later version isn't meant");
        let undo = event(1, 5, NOW_S - 3, &[&["e", &request.id]], "undo");
        assert!(matches!(place.keep(&undo), Kept::New(_)));
        assert_eq!(place.keep(&mine), Kept::Deleted, "a deletion can't be deleted");
    }

    #[test]
    fn what_is_expired_is_not_found_and_goes() {
        let mut place = place();
        let soon = (NOW_S + 10).to_string();
        place.keep(&event(1, 1, NOW_S, &[&["expiration", &soon]], "short"));
        place.keep(&event(1, 1, NOW_S, &[], "long"));
        assert_eq!(place.found(&[json!({})]).len(), 2);
        let (found, _) = place.rows.find(&[Filter { limit: ROWS_MAX, ..Filter::default() }], NOW + 10).unwrap();
        assert_eq!(found.events.len(), 1);
        assert_eq!(place.rows.sweep(NOW + 9).unwrap(), 0);
        assert_eq!(place.rows.sweep(NOW + 10).unwrap(), 1);
        let tags: i64 = place.rows.connection.query_row("SELECT count(*) FROM tags", [], |row| row.get(0)).unwrap();
        assert_eq!(tags, 0);
    }

    #[test]
    fn numbers_are_never_used_twice_and_everything_survives() {
        let mut place = place();
        let Kept::New(first) = place.keep(&event(1, 0, NOW_S - 2, &[], "first")) else { panic!("it is new") };
        let Kept::New(second) = place.keep(&event(1, 0, NOW_S - 1, &[], "second")) else { panic!("it is new") };
        assert!(second > first);
        let path = place.directory.path().join("relay.db");
        drop(place.rows);
        let again = Rows::open(&path, 64).unwrap();
        let (found, last) = again.find(&[Filter { limit: ROWS_MAX, ..Filter::default() }], NOW).unwrap();
        assert_eq!((found.events.len(), last), (1, second));
    }

    #[test]
    fn a_full_database_keeps_nothing_of_a_batch_and_goes_on() {
        let directory = tempfile::tempdir().unwrap();
        let mut rows = Rows::open(&directory.path().join("relay.db"), 1).unwrap();
        let text = "x".repeat(100_000);
        let events: Vec<Event> = (0..20).map(|n| event(1, 1, NOW_S - n, &[], &text)).collect();
        assert!(rows.keep(events.iter()).is_err());
        let (found, _) = rows.find(&[Filter { limit: ROWS_MAX, ..Filter::default() }], NOW).unwrap();
        assert_eq!(found.events.len(), 0);
        assert!(matches!(rows.keep(events.iter().take(1)).unwrap().as_slice(), [Kept::New(_)]));
    }

    #[test]
    fn a_strange_database_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("relay.db");
        Connection::open(&path).unwrap().execute_batch("PRAGMA user_version = 7").unwrap();
        assert!(matches!(Rows::open(&path, 64), Err(RowsError::Schema { found: 7, .. })));
        std::fs::write(&path, "not a database, but long enough to look like something".repeat(100)).unwrap();
        assert!(matches!(Rows::open(&path, 64), Err(RowsError::Open { .. })));
    }
}
