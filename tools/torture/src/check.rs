//! The checker: it knows what the platform and the agents wrote down and what the ledgers' documented
//! tables say, shares no code with the daemon, and names every promise that was broken.

mod acp;
mod advice;
mod audit;
pub(crate) mod causes;
pub(crate) mod children;
mod cut_off;
mod effects;
pub(crate) mod events;
#[cfg(test)]
pub(crate) mod made;
mod nostr;
mod order;
mod people;
mod project;
mod snapshots;
mod speech;
mod stays;
mod steering;
mod stops;
mod waits;

pub(crate) use snapshots::Snapshots;

use crate::daemon;
use crate::report::Counts;
use crate::world::{OnInterrupted, World};
use anyhow::{Context, Result};
use rusqlite::{Connection, OpenFlags, Row};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Requests and deliveries that are not at their end.
const OPEN_REQUESTS: &str = "status NOT IN ('completed', 'denied', 'handled_by_automation', 'failed', 'expired')";
const OPEN_DELIVERIES: &str = "status IN ('pending', 'sending')";

/// How long a question to a ledger in use may wait for it.
const BUSY_LIMIT: Duration = Duration::from_secs(10);

/// A copy of the ledgers that are looked at, as they are on the disk now. The rest of a world's data (its bus, its other logs) is most of
/// it, and a copy of that for each look was the harness's own work on the disk.
pub(crate) struct Copy {
    pub(crate) events: Connection,
    pub(crate) nexus: Connection,
    /// Where the ledgers themselves are. Nothing runs there while this lives.
    data: PathBuf,
    /// Where the copy is, gone when this is dropped.
    dir: tempfile::TempDir,
}

impl Copy {
    /// Copies the ledgers of facts and of work, with their logs, to a directory beside `data`.
    ///
    /// # Errors
    /// When they can't be copied or opened.
    pub(crate) fn of(data: &Path) -> Result<Self> {
        let beside = data.parent().with_context(|| format!("nothing is beside `{}`", data.display()))?;
        let dir = tempfile::Builder::new().prefix("look-").tempdir_in(beside).context("failed to make a directory")?;
        let (events, nexus) = (copy_of(data, dir.path(), "events")?, copy_of(data, dir.path(), "nexus")?);
        Ok(Self { events, nexus, data: data.to_owned(), dir })
    }

    /// Another ledger, copied now.
    ///
    /// # Errors
    /// When it can't be copied or opened.
    pub(crate) fn open(&self, name: &str) -> Result<Connection> {
        copy_of(&self.data, self.dir.path(), name)
    }
}

/// One ledger of a copy, without the index of its log, which is made anew. What isn't there is empty.
fn copy_of(data: &Path, to: &Path, name: &str) -> Result<Connection> {
    for file in [format!("{name}.db"), format!("{name}.db-wal")] {
        match fs::copy(data.join(&file), to.join(&file)) {
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(error).with_context(|| format!("failed to copy `{file}`")),
        }
    }
    Connection::open(to.join(format!("{name}.db"))).with_context(|| format!("failed to open {name}.db"))
}

/// Copies the files of a directory, which are not directories themselves.
///
/// # Errors
/// Of the file system.
pub(crate) fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to).context("failed to make a directory")?;
    for entry in fs::read_dir(from).with_context(|| format!("failed to list `{}`", from.display()))? {
        let entry = entry.context("failed to list a directory")?;
        let name = entry.file_name();
        let is_log_index = name.to_string_lossy().ends_with("-shm");
        if entry.file_type().context("failed to read a file's type")?.is_file() && !is_log_index {
            fs::copy(entry.path(), to.join(name)).context("failed to copy a ledger")?;
        }
    }
    Ok(())
}

/// All rows of a query.
pub(crate) fn rows<T>(connection: &Connection, sql: &str, read: impl Fn(&Row<'_>) -> rusqlite::Result<T>) -> Result<Vec<T>> {
    let mut statement = connection.prepare(sql).with_context(|| format!("failed to prepare {sql}"))?;
    let rows = statement.query_map([], read).and_then(Iterator::collect);
    rows.with_context(|| format!("failed to read {sql}"))
}

pub(crate) fn count(connection: &Connection, sql: &str) -> Result<u64> {
    connection.query_row(sql, [], |row| row.get(0)).with_context(|| format!("failed to read {sql}"))
}

pub(crate) fn pairs(connection: &Connection, sql: &str) -> Result<Vec<(String, u64)>> {
    rows(connection, sql, |row| Ok((row.get(0)?, row.get(1)?)))
}

pub(crate) fn pairs_of_text(connection: &Connection, sql: &str) -> Result<Vec<(String, String)>> {
    rows(connection, sql, |row| Ok((row.get(0)?, row.get(1)?)))
}

/// A ledger of a daemon that runs: a copy of files that are being written may be torn.
///
/// # Errors
/// When it can't be opened.
pub(crate) fn in_use(data: &Path, name: &str) -> Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let opened =
        Connection::open_with_flags(data.join(format!("{name}.db")), flags).with_context(|| format!("failed to open {name}.db"))?;
    opened.busy_timeout(BUSY_LIMIT).context("failed to limit waiting")?;
    Ok(opened)
}

/// What is not at its end yet, once nothing new comes; `None` when all is.
///
/// # Errors
/// When a ledger can't be read.
pub(crate) fn open_work(world: &World) -> Result<Option<String>> {
    let (facts, work) = (in_use(&world.data(), "events")?, in_use(&world.data(), "nexus")?);
    let mut missing = events::missing(world, &facts)?;
    missing.extend(nostr::missing(world, &facts)?);
    if let Some(first) = missing.first() {
        return Ok(Some(format!("{} messages were not accepted, the first is {first}", missing.len())));
    }
    let unread = count(
        &facts,
        "SELECT coalesce(max(seq), 0) FROM events WHERE direction = 'inbound' AND channel != 'timer' AND disposition != 'history'",
    )?;
    let read = count(&work, "SELECT value FROM counters WHERE name = 'intake_seq'")?;
    if read < unread {
        return Ok(Some(format!("events {read} to {unread} have no request yet")));
    }
    // A heartbeat comes and goes all the time.
    let requests = count(&work, &format!("SELECT count(*) FROM nexus_requests WHERE channel != 'timer' AND {OPEN_REQUESTS}"))?;
    let deliveries = count(&work, &format!("SELECT count(*) FROM deliveries WHERE {OPEN_DELIVERIES}"))?;
    let (publications, waits) = (nostr::unpublished(world, &work)?, waits::open(world, &work)?);
    if requests + deliveries + publications + waits == 0 {
        return Ok(None);
    }
    let by_status = pairs(&work, "SELECT status, count(*) FROM nexus_requests GROUP BY 1")?;
    let by_delivery = pairs(&work, "SELECT status, count(*) FROM deliveries GROUP BY 1")?;
    Ok(Some(format!(
        "requests {by_status:?}, deliveries {by_delivery:?}, events that wait to be published: {publications}, for their project: {waits}"
    )))
}

/// Every promise, over a world whose daemon has stopped.
///
/// # Errors
/// When something can't be read.
pub(crate) fn everything(world: &World, on_interrupted: OnInterrupted, counts: &mut Counts) -> Result<Vec<String>> {
    let copy = Copy::of(&world.data())?;
    let mut found = events::acknowledged_are_there(world, &copy.events, u64::MAX)?;
    found.extend(events::once_and_ended(world, &copy, counts)?);
    found.extend(effects::invocations(world, &copy, on_interrupted, counts)?);
    found.extend(effects::replies(world, &copy, counts)?);
    found.extend(stops::kept(world, &copy)?);
    found.extend(steering::joined(world, &copy, on_interrupted, counts)?);
    found.extend(acp::answered(world, &copy)?);
    found.extend(events::as_written(world, &copy.events)?);
    found.extend(audit::decisions(&copy)?);
    found.extend(order::acceptance(&copy.events)?);
    found.extend(order::conversations(world, &copy)?);
    found.extend(order::targets(world, &copy)?);
    found.extend(speech::whole(world, &copy, counts)?);
    found.extend(advice::once(world, &copy, counts)?);
    found.extend(nostr::kept(world, &copy, counts)?);
    found.extend(project::quarantined(world, &copy)?);
    found.extend(project::handed(world, &copy, on_interrupted, counts)?);
    found.extend(waits::run_again(world, &copy, counts)?);
    Ok(found)
}

/// What the daemon's program says of its own data: whether it is content, and why not.
///
/// # Errors
/// When it can't be run.
pub(crate) fn doctor(nexus: &Path, world: &World) -> Result<(bool, String)> {
    let output = daemon::command(world, nexus).args(["doctor", "--json"]).output().context("failed to run `nexus doctor`")?;
    Ok((output.status.success(), format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))))
}

/// Numbers by key.
pub(crate) fn tally<K: Ord>(keys: impl Iterator<Item = K>) -> BTreeMap<K, u64> {
    let mut tally = BTreeMap::new();
    keys.for_each(|key| *tally.entry(key).or_default() += 1);
    tally
}

/// What a line of a journal has under this key; empty where that is no text.
fn text(line: &Value, key: &str) -> String {
    line[key].as_str().unwrap_or_default().to_owned()
}
