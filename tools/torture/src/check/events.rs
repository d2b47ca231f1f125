//! Promises 1 and 3: what was accepted is there, once, and has come to one end; what was missed was
//! fetched.

use super::{Copy, OPEN_REQUESTS, count, pairs, rows, tally};
use crate::adapter::Feed;
use crate::journal;
use crate::report::Counts;
use crate::world::{Kind, World};
use anyhow::{Context, Result};
use rusqlite::Connection;
use std::collections::HashSet;

/// Most ids that one finding names.
const NAMED_MAX: usize = 5;

fn accounts() -> impl Iterator<Item = (Kind, &'static str)> {
    Kind::ALL.into_iter().flat_map(|kind| kind.accounts().iter().map(move |&account| (kind, account)))
}

fn ids_in(events: &Connection) -> Result<HashSet<String>> {
    Ok(rows(events, "SELECT event_id FROM events WHERE direction = 'inbound'", |row| row.get(0))?.into_iter().collect())
}

/// What an account's adapter was told before this time, in nanoseconds of `CLOCK_MONOTONIC`.
fn acked(world: &World, kind: Kind, account: &str, before: u64) -> Result<Vec<String>> {
    let acked = journal::acked(&world.acks(kind, account))?;
    Ok(acked.into_iter().filter(|(_, at)| *at < before).map(|(id, _)| id).collect())
}

/// Every event that an adapter was told to be committed, before this time, is in the ledger.
pub(crate) fn acknowledged_are_there(world: &World, events: &Connection, before: u64) -> Result<Vec<String>> {
    let there = ids_in(events)?;
    // Rejected lines are acknowledged as well, once their row is committed.
    let rejected: u64 = count(events, "SELECT count(*) FROM rejected_lines")?;
    let mut found = Vec::new();
    for (kind, account) in accounts().filter(|(kind, _)| kind.acks()) {
        let mut acked: Vec<String> = acked(world, kind, account, before)?;
        acked.retain(|id| !there.contains(id) && !(rejected > 0 && id.contains(":lie-")));
        if !acked.is_empty() {
            acked.truncate(NAMED_MAX);
            found.push(format!("acknowledged and not in the ledger: {acked:?}"));
        }
        found.extend(cumulative(world, kind, account, before, &there)?);
    }
    Ok(found)
}

/// An acknowledgement covers everything before it.
fn cumulative(world: &World, kind: Kind, account: &str, before: u64, there: &HashSet<String>) -> Result<Option<String>> {
    let published: Vec<String> = published(world, kind, account)?;
    let acked: HashSet<String> = acked(world, kind, account, before)?.into_iter().collect();
    let Some(last) = published.iter().rposition(|id| acked.contains(id)) else { return Ok(None) };
    let missing: Vec<&String> = published[..last].iter().filter(|id| !there.contains(*id)).take(NAMED_MAX).collect();
    Ok((!missing.is_empty()).then(|| format!("covered by the acknowledgement of {} and not in the ledger: {missing:?}", published[last])))
}

fn published(world: &World, kind: Kind, account: &str) -> Result<Vec<String>> {
    let lines = Feed::open(&world.feed(kind, account))?.news()?;
    lines.iter().map(|line| line.event["event_id"].as_str().map(str::to_owned).context("a message has no id")).collect()
}

/// A cursor stands at an event that is there.
pub(crate) fn cursors_are_covered(events: &Connection) -> Result<Vec<String>> {
    let sql = "SELECT adapter || '/' || account || ' at ' || last_event_id FROM cursors c
               WHERE last_event_id != '' AND NOT EXISTS (SELECT 1 FROM events e WHERE e.event_id = c.last_event_id)";
    let ahead: Vec<String> = rows(events, sql, |row| row.get(0))?;
    Ok(ahead.into_iter().map(|what| format!("a cursor is past what was committed: {what}")).collect())
}

/// Messages of accounts that can fetch what they missed, and that are not in the ledger.
pub(super) fn missing(world: &World, events: &Connection) -> Result<Vec<String>> {
    let there = ids_in(events)?;
    let mut missing = Vec::new();
    for (kind, account) in accounts().filter(|(kind, _)| kind.acks() || kind.fills()) {
        missing.extend(published(world, kind, account)?.into_iter().filter(|id| !there.contains(id)));
    }
    Ok(missing)
}

/// The event that this one is, or that it is asked to be answered again.
fn original(id: &str) -> &str {
    id.split_once("#replay:").map_or(id, |(original, _)| original)
}

/// Each event is there once, has one request, and that has one end.
pub(super) fn once_and_ended(world: &World, copy: &Copy, counts: &mut Counts) -> Result<Vec<String>> {
    let mut found = Vec::new();
    let sql = "SELECT channel || ' ' || event_id FROM events WHERE direction = 'inbound'";
    let twice = tally(rows(&copy.events, sql, |row| row.get::<_, String>(0))?.into_iter());
    found.extend(twice.iter().filter(|(_, times)| **times > 1).map(|(id, times)| format!("{id} is in the ledger {times} times")));
    let mut known = HashSet::new();
    for (kind, account) in accounts() {
        known.extend(published(world, kind, account)?);
        counts.acknowledged += journal::acked(&world.acks(kind, account))?.len() as u64;
    }
    let there = ids_in(&copy.events)?;
    let invented: Vec<&String> =
        there.iter().filter(|id| !id.starts_with("timer:") && !known.contains(original(id))).take(NAMED_MAX).collect();
    if !invented.is_empty() {
        found.push(format!("in the ledger and never written by anybody: {invented:?}"));
    }
    counts.accepted += there.iter().filter(|id| !id.starts_with("timer:")).count() as u64;
    counts.rejected += count(&copy.events, "SELECT count(*) FROM rejected_lines")?;
    let run: HashSet<i64> =
        rows(&copy.events, "SELECT seq FROM events WHERE direction = 'inbound' AND disposition != 'history'", |row| row.get(0))?
            .into_iter()
            .collect();
    let requests: Vec<i64> = rows(&copy.nexus, "SELECT event_seq FROM nexus_requests", |row| row.get(0))?;
    let requested: HashSet<i64> = requests.iter().copied().collect();
    if requested.len() != requests.len() {
        found.push("an event has several requests".to_owned());
    }
    // The newest timer slots may have come after the last admission.
    let upto = count(&copy.nexus, "SELECT value FROM counters WHERE name = 'intake_seq'")?.cast_signed();
    let without: Vec<&i64> = run.iter().filter(|seq| **seq <= upto && !requested.contains(seq)).take(NAMED_MAX).collect();
    let for_nothing: Vec<&i64> = requested.iter().filter(|seq| !run.contains(seq)).take(NAMED_MAX).collect();
    if !without.is_empty() || !for_nothing.is_empty() {
        found.push(format!("events without a request: {without:?}; requests without an event: {for_nothing:?}"));
    }
    let odd = format!("SELECT count(*) FROM nexus_requests WHERE ({OPEN_REQUESTS}) = (completed_at IS NOT NULL)");
    if count(&copy.nexus, &odd)? > 0 {
        found.push("a request is at its end without a time, or has a time without an end".to_owned());
    }
    for (status, number) in pairs(&copy.nexus, "SELECT status, count(*) FROM nexus_requests WHERE channel != 'timer' GROUP BY 1")? {
        *counts.ends.entry(status).or_default() += number;
    }
    Ok(found)
}
