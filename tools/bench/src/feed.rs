//! Files of event lines for adapters, and waiting until a daemon has committed them.

use crate::adapter::{self, Task, Verb};
use crate::daemon::{Daemon, Place};
use crate::event::{self, ACCOUNT};
use crate::{Bench, clock};
use anyhow::{Context, Result, ensure};
use serde_json::{Map, Value, json};
use std::fs::File;
use std::io::{BufWriter, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tempfile::TempDir;

/// How often the ledger is looked at.
const STEP: Duration = Duration::from_millis(2);
/// How long the first event may take, and the slowest pace of those that follow.
const FIRST_LIMIT_S: u64 = 60;
const PACE_MIN_PER_S: u64 = 500;

/// Prepared lines, a file per adapter.
#[derive(Debug)]
pub(crate) struct Feed {
    /// Removes the files in the end.
    _dir: TempDir,
    files: Vec<PathBuf>,
    pub(crate) events: u64,
    pub(crate) bytes: u64,
}

impl Feed {
    /// Events 0 to `events`, dealt out to `adapters` files.
    ///
    /// # Errors
    /// Of the file system.
    pub(crate) fn write(bench: &Bench, events: u64, adapters: u64, random_ids: bool) -> Result<Self> {
        let dir = tempfile::tempdir_in(&bench.dir).context("failed to make a temporary directory")?;
        let (mut files, mut bytes) = (Vec::new(), 0);
        for adapter in 0..adapters {
            let path = dir.path().join(format!("{adapter}.jsonl"));
            let lines = (adapter..events).step_by(usize::try_from(adapters)?).map(|number| event::line(&event::event(number, random_ids)));
            bytes += write_lines(&path, lines)?;
            files.push(path);
        }
        Ok(Self { _dir: dir, files, events, bytes })
    }

    /// The section `adapters` that feeds these lines to a daemon, each file by an adapter of its own.
    pub(crate) fn adapters(&self, bench: &Bench, place: &Place, verb: Verb) -> Value {
        let account = match verb {
            Verb::Monitor => json!({ "monitor": true }),
            Verb::Backfill => json!({ "monitor": false, "backfill": true }),
        };
        let mut adapters = Map::new();
        for (number, file) in self.files.iter().enumerate() {
            let task = Task { lines: Some(file.clone()), stamp: Some(stamp_file(place, number)), ..Task::default() };
            let mut entry = adapter::entry(&bench.own, verb, &task, &json!({ ACCOUNT: account }));
            // What is measured is how fast lines come in, not how long they may wait.
            entry["max_pending"] = json!(10_000_000);
            adapters.insert(format!("bench-{number}"), entry);
        }
        Value::Object(adapters)
    }

    /// When the first adapter began to write, by `CLOCK_MONOTONIC`.
    ///
    /// # Errors
    /// When one has not begun.
    pub(crate) fn begun_ns(&self, place: &Place) -> Result<u64> {
        let stamps =
            (0..self.files.len()).map(|number| adapter::stamp(&stamp_file(place, number)).context("an adapter has not begun to write"));
        let begun: Vec<u64> = stamps.map(|stamp| stamp.map(|stamp| stamp.begun_ns)).collect::<Result<_>>()?;
        begun.into_iter().min().context("there is no adapter")
    }
}

fn stamp_file(place: &Place, number: usize) -> PathBuf {
    place.file(&format!("stamp-{number}"))
}

/// Writes lines to a file and to the disk, so that nothing of it disturbs what is measured; their
/// size in bytes.
///
/// # Errors
/// Of the file system.
pub(crate) fn write_lines(path: &Path, lines: impl Iterator<Item = String>) -> Result<u64> {
    let failed = || format!("failed to write `{}`", path.display());
    let mut file = BufWriter::new(File::create(path).with_context(failed)?);
    let mut bytes = 0;
    for line in lines {
        file.write_all(line.as_bytes()).with_context(failed)?;
        bytes += line.len() as u64;
    }
    let file = file.into_inner().map_err(|error| error.into_error()).with_context(failed)?;
    file.sync_all().with_context(failed)?;
    Ok(bytes)
}

/// Lines for events `numbers`.
///
/// # Errors
/// Of the file system.
pub(crate) fn write_events(path: &Path, numbers: Range<u64>) -> Result<u64> {
    write_lines(path, numbers.map(|number| event::line(&event::event(number, false))))
}

/// How long so many new events may take.
pub(crate) fn limit(events: u64) -> Duration {
    Duration::from_secs(FIRST_LIMIT_S + events / PACE_MIN_PER_S)
}

/// Waits until the ledger of a daemon holds `events` events; the moment, by `CLOCK_MONOTONIC`.
///
/// # Errors
/// When they don't come within `limit`.
pub(crate) fn committed_ns(place: &Place, events: u64, limit: Duration) -> Result<u64> {
    let ledger = place.ledger("events")?;
    let mut newest = ledger.prepare("SELECT coalesce(max(seq), 0) FROM events").context("failed to ask the ledger")?;
    clock::wait_for("every event is committed", limit, STEP, || {
        let seq: u64 = newest.query_row([], |row| row.get(0)).context("failed to read the ledger")?;
        Ok((seq >= events).then(clock::monotonic_ns))
    })
}

/// Makes sure that the ledger holds `events` events and that nothing was rejected.
///
/// # Errors
/// When it is not so: the daemon has lost or made something.
pub(crate) fn check(place: &Place, events: u64) -> Result<()> {
    let ledger = place.ledger("events")?;
    let count = |sql: &str| ledger.query_row(sql, [], |row| row.get::<_, u64>(0)).context("failed to count the ledger's rows");
    let (stored, rejected) = (count("SELECT count(*) FROM events")?, count("SELECT count(*) FROM rejected_lines")?);
    ensure!(stored == events && rejected == 0, "the ledger has {stored} events of {events}, and {rejected} lines were rejected");
    Ok(())
}

/// Fills the ledger of `place` with `events` events of history, by a daemon that has stopped then.
///
/// # Errors
/// When the daemon misbehaves.
pub(crate) fn fill(bench: &Bench, place: &Place, events: u64) -> Result<()> {
    let feed = Feed::write(bench, events, 1, false)?;
    place.configure(&json!({ "adapters": feed.adapters(bench, place, Verb::Backfill) }))?;
    let daemon: Daemon<'_> = place.start()?;
    committed_ns(place, events, limit(events))?;
    daemon.settle()?;
    check(place, events)?;
    daemon.stop()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn lines_are_written_as_they_are_counted() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lines");
        let bytes = write_events(&path, 5..9).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!((text.len() as u64, text.lines().count()), (bytes, 4));
        assert!(text.starts_with(&event::line(&event::event(5, false))));
    }
}
