//! The limits of this machine, measured without a daemon: the same inserts in a bare loop, commits of
//! one row, and `fdatasync` of a file.

use crate::event::{self, ACCOUNT, CHANNEL, Event, mix};
use crate::{Bench, clock};
use anyhow::{Context, Result};
use rusqlite::{Connection, Statement, params};
use std::fs::OpenOptions;
use std::io::Write;
use std::path::Path;
use std::time::Instant;

/// The daemon's own schema of `events.db`.
const SCHEMA: &str = include_str!("../../../crates/nexus/migrations/events/0001_facts.sql");
/// WAL with a full sync for every commit and 8 KiB pages, as the daemon has them; the rest in favour
/// of the loop.
const PRAGMAS: &str = "PRAGMA page_size = 8192; PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL;
  PRAGMA wal_autocheckpoint = 1000; PRAGMA cache_size = -65536;";
const INSERT: &str = "INSERT INTO events (key, event_id, channel, account_id, adapter, direction, sender_id, sender_name, peer_id,
  peer_kind, thread_id, reply_to_id, content_type, content, attachments, metadata, timestamp, received_at, disposition)
  VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18, ?19) ON CONFLICT (key) DO NOTHING";
/// Rows of one transaction, as many as the daemon's largest.
const GROUP_ROWS: u64 = 1024;
/// Different rows kept in memory; beyond, only ids and times differ.
const POOL_ROWS: u64 = 65_536;
/// What one commit appends at least, and how often it is measured.
const SYNC_BYTES: usize = 4096;
const SYNCS: usize = 200;

/// What the bare loop came to.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bare {
    pub(crate) per_s: f64,
    pub(crate) cpu_us: f64,
}

/// Rows that are ready to be bound.
struct Pool {
    events: Vec<Event>,
    random_ids: bool,
}

impl Pool {
    fn new(rows: u64, random_ids: bool) -> Self {
        Self { events: (0..rows.clamp(1, POOL_ROWS)).map(|number| event::event(number, random_ids)).collect(), random_ids }
    }

    fn insert(&self, statement: &mut Statement<'_>, number: u64) -> Result<()> {
        let event = &self.events[(number % self.events.len() as u64) as usize];
        let timestamp = event::timestamp(number);
        statement
            .execute(params![
                key(number),
                event::id(number, self.random_ids),
                CHANNEL,
                ACCOUNT,
                "bare",
                "inbound",
                event.sender_id,
                event.sender_name,
                event.peer_id,
                "group",
                event.thread_id,
                None::<String>,
                "text",
                event.content,
                event.attachments,
                event.metadata,
                timestamp,
                timestamp,
                "history",
            ])
            .context("failed to insert a row")?;
        Ok(())
    }
}

/// Spread as a hash is, which costs the index what the daemon's key costs it.
fn key(number: u64) -> [u8; 16] {
    ((u128::from(mix(number)) << 64) | u128::from(mix(!number))).to_be_bytes()
}

fn open(dir: &Path) -> Result<Connection> {
    let connection = Connection::open(dir.join("bare.db")).context("failed to open a database for the bare loop")?;
    connection
        .execute_batch(PRAGMAS)
        .and_then(|()| connection.execute_batch(SCHEMA))
        .context("failed to make the schema for the bare loop")?;
    Ok(connection)
}

/// Inserts `events` rows, 1,024 in a transaction, by one thread that does nothing else.
///
/// # Errors
/// Of the file system and SQLite.
pub(crate) fn insert(bench: &Bench, events: u64, random_ids: bool) -> Result<Bare> {
    let dir = tempfile::tempdir_in(&bench.dir).context("failed to make a temporary directory")?;
    let connection = open(dir.path())?;
    let pool = Pool::new(events, random_ids);
    let mut statement = connection.prepare(INSERT).context("failed to prepare the insert")?;
    let (began, cpu) = (Instant::now(), clock::thread_cpu_ns());
    let mut next = 0;
    while next < events {
        let end = events.min(next + GROUP_ROWS);
        connection.execute_batch("BEGIN IMMEDIATE").context("failed to begin")?;
        for number in next..end {
            pool.insert(&mut statement, number)?;
        }
        connection.execute_batch("COMMIT").context("failed to commit")?;
        next = end;
    }
    let (seconds, cpu) = (began.elapsed().as_secs_f64(), clock::thread_cpu_ns() - cpu);
    Ok(Bare { per_s: events as f64 / seconds, cpu_us: cpu as f64 / 1e3 / events as f64 })
}

/// Milliseconds of commits with one row each.
///
/// # Errors
/// Of the file system and SQLite.
pub(crate) fn commits_ms(bench: &Bench) -> Result<Vec<f64>> {
    let dir = tempfile::tempdir_in(&bench.dir).context("failed to make a temporary directory")?;
    let connection = open(dir.path())?;
    let pool = Pool::new(SYNCS as u64, false);
    let mut statement = connection.prepare(INSERT).context("failed to prepare the insert")?;
    let mut times = Vec::with_capacity(SYNCS);
    for number in 0..SYNCS as u64 {
        let began = Instant::now();
        pool.insert(&mut statement, number)?;
        times.push(clock::ms(began.elapsed()));
    }
    Ok(times)
}

/// Milliseconds of appending 4 KiB and `fdatasync`.
///
/// # Errors
/// Of the file system.
pub(crate) fn syncs_ms(bench: &Bench) -> Result<Vec<f64>> {
    let dir = tempfile::tempdir_in(&bench.dir).context("failed to make a temporary directory")?;
    let path = dir.path().join("syncs");
    let mut file = OpenOptions::new().create_new(true).append(true).open(path).context("failed to open a file to sync")?;
    let block = [b'x'; SYNC_BYTES];
    let mut times = Vec::with_capacity(SYNCS);
    for _ in 0..SYNCS {
        let began = Instant::now();
        file.write_all(&block).and_then(|()| file.sync_data()).context("failed to sync")?;
        times.push(clock::ms(began.elapsed()));
    }
    Ok(times)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_schema_takes_the_rows_and_keys_are_unique() {
        let dir = tempfile::tempdir().unwrap();
        let connection = open(dir.path()).unwrap();
        let pool = Pool::new(10, true);
        let mut statement = connection.prepare(INSERT).unwrap();
        for number in (0..30).chain(0..5) {
            pool.insert(&mut statement, number).unwrap();
        }
        let count: i64 = connection.query_row("SELECT count(*) FROM events", [], |row| row.get(0)).unwrap();
        assert_eq!(count, 30);
    }
}
