//! Promises 1 and 3: what was accepted is there, once, and has come to one end; what was missed was
//! fetched.

use super::{Copy, OPEN_REQUESTS, count, pairs, pairs_of_text, rows, tally};
use crate::adapter::{Feed, LIE, Line};
use crate::journal;
use crate::report::Counts;
use crate::world::{Kind, World};
use anyhow::{Context, Result};
use rusqlite::Connection;
use std::collections::{HashMap, HashSet};

/// Most ids that one finding names.
const NAMED_MAX: usize = 5;

pub(super) fn accounts() -> impl Iterator<Item = (Kind, &'static str)> {
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
        acked.retain(|id| !there.contains(id) && (rejected == 0 || !id.contains(LIE)));
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

/// How many acknowledgements all adapters got.
pub(crate) fn acknowledged(world: &World) -> Result<u64> {
    accounts().map(|(kind, account)| -> Result<u64> { Ok(journal::acked(&world.acks(kind, account))?.len() as u64) }).sum()
}

/// A cursor stands at an event that is there. Of accounts whose only source is a monitor that goes on behind
/// the last acknowledgement, nothing before that event is missing.
pub(crate) fn cursors_are_covered(world: &World, events: &Connection) -> Result<Vec<String>> {
    let sql = "SELECT adapter || '/' || account || ' at ' || last_event_id FROM cursors c
               WHERE last_event_id != '' AND NOT EXISTS (SELECT 1 FROM events e WHERE e.event_id = c.last_event_id)";
    let ahead: Vec<String> = rows(events, sql, |row| row.get(0))?;
    let mut found: Vec<String> = ahead.into_iter().map(|what| format!("a cursor is past what was committed: {what}")).collect();
    let places: HashMap<String, String> =
        pairs_of_text(events, "SELECT adapter || '/' || account, last_event_id FROM cursors")?.into_iter().collect();
    let there = ids_in(events)?;
    for (kind, account) in accounts().filter(|(kind, _)| kind.acks() && !kind.fills()) {
        let Some(place) = places.get(&format!("{}/{account}", kind.name())) else { continue };
        let published = published(world, kind, account)?;
        let Some(at) = published.iter().position(|id| id == place) else { continue };
        let missing: Vec<&String> = published[..at].iter().filter(|id| !there.contains(*id)).take(NAMED_MAX).collect();
        if !missing.is_empty() {
            found.push(format!(
                "the cursor of {}/{account} is at {place}, and these before it were never committed: {missing:?}",
                kind.name()
            ));
        }
    }
    Ok(found)
}

/// What was accepted is what was written on the platform: the same words, of the same account and peer.
pub(super) fn as_written(world: &World, events: &Connection) -> Result<Vec<String>> {
    let mut written: HashMap<String, String> = HashMap::new();
    for (kind, account) in accounts() {
        for Line { event, .. } in Feed::open(&world.feed(kind, account))?.news()? {
            let text = |key: &str| event[key].as_str().unwrap_or_default().to_owned();
            let words = ["channel", "account_id", "peer_id", "content"].map(text).join(" | ");
            written.insert(text("event_id"), words);
        }
    }
    let sql = "SELECT event_id, channel || ' | ' || account_id || ' | ' || peer_id || ' | ' || content FROM events
               WHERE direction = 'inbound'";
    let differs = |(id, now): (String, String)| {
        let before = written.get(&id).filter(|before| **before != now)?;
        Some(format!("{id} was written as `{before}` and is in the ledger as `{now}`"))
    };
    Ok(pairs_of_text(events, sql)?.into_iter().filter_map(differs).take(NAMED_MAX).collect())
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
pub(super) fn original(id: &str) -> &str {
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
    }
    counts.acknowledged += acknowledged(world)?;
    let there = ids_in(&copy.events)?;
    // Who posted what on Nostr is looked at by itself.
    let is_elsewhere = |id: &str| id.starts_with("timer:") || id.starts_with("nostr:");
    let invented: Vec<&String> = there.iter().filter(|id| !is_elsewhere(id) && !known.contains(original(id))).take(NAMED_MAX).collect();
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::made::Made;
    use super::super::open_work;
    use super::*;

    #[test]
    fn nothing_is_found_where_everything_holds() {
        for kind in Kind::ALL {
            Made::new(kind).holds();
            let made = Made::whole(kind, 3);
            made.holds();
            assert_eq!(open_work(&made.world).unwrap(), None);
        }
    }

    #[test]
    fn a_lost_event_is_found() {
        let made = Made::whole(Kind::Acked, 2);
        made.events.execute("DELETE FROM events WHERE seq = 1", []).unwrap();
        made.breaks("acknowledged and not in the ledger: [\"acked:a-1\"]");
        assert!(open_work(&made.world).unwrap().is_some_and(|open| open.contains("1 messages were not accepted")));
    }

    #[test]
    fn an_acknowledgement_covers_what_was_before_it() {
        let made = Made::new(Kind::Acked);
        (1..=3).for_each(|number| made.written(number));
        made.accepted(1, 2);
        made.breaks("covered by the acknowledgement of acked:a-2 and not in the ledger: [\"acked:a-1\"]");
        let made = Made::new(Kind::Acked);
        (1..=3).for_each(|number| made.written(number));
        made.accepted(1, 1);
        made.holds();
    }

    #[test]
    fn an_acknowledgement_counts_from_its_time_on() {
        let made = Made::new(Kind::Acked);
        made.written(1);
        made.acknowledged("acked:a-1");
        assert_eq!(acknowledged_are_there(&made.world, &made.events, 1).unwrap().len(), 0);
        assert_eq!(acknowledged_are_there(&made.world, &made.events, 2).unwrap().len(), 1);
    }

    #[test]
    fn a_lie_is_acknowledged_only_with_its_rejection() {
        let made = Made::whole(Kind::Acked, 1);
        made.acknowledged("acked:lie-0");
        made.breaks("acknowledged and not in the ledger");
        made.events.execute("INSERT INTO rejected_lines VALUES (1)", []).unwrap();
        made.holds();
    }

    #[test]
    fn a_doubled_event_and_an_invented_one_are_found() {
        let made = Made::whole(Kind::Filled, 1);
        made.accepted(2, 1);
        made.breaks("filled filled:a-1 is in the ledger 2 times");
        let made = Made::whole(Kind::Filled, 1);
        made.accepted(2, 7);
        made.breaks("never written by anybody: [\"filled:a-7\"]");
    }

    #[test]
    fn other_words_than_those_written_are_found() {
        let made = Made::whole(Kind::Both, 2);
        made.events.execute("UPDATE events SET content = 'both a 1both a 2' WHERE seq = 2", []).unwrap();
        made.breaks("both:a-2 was written as `both | a | p | both a 2`");
    }

    #[test]
    fn each_event_has_one_request_with_one_end() {
        let broken = |sql: &str, what: &str| {
            let made = Made::whole(Kind::Plain, 2);
            made.nexus.execute_batch(sql).unwrap();
            made.breaks(what);
        };
        broken("INSERT INTO nexus_requests SELECT * FROM nexus_requests WHERE event_seq = 1", "an event has several requests");
        broken("DELETE FROM nexus_requests WHERE event_seq = 1", "events without a request: [1]");
        broken("UPDATE nexus_requests SET event_seq = 9 WHERE event_seq = 1", "requests without an event: [9]");
        broken("UPDATE nexus_requests SET completed_at = NULL WHERE event_seq = 1", "a request is at its end without a time");
        broken("UPDATE nexus_requests SET status = 'processing' WHERE event_seq = 1", "has a time without an end");
    }

    #[test]
    fn what_is_open_is_not_at_its_end() {
        let open = |sql: &str| {
            let made = Made::whole(Kind::Plain, 2);
            made.nexus.execute_batch(sql).unwrap();
            open_work(&made.world).unwrap().unwrap_or_default()
        };
        assert!(open("UPDATE counters SET value = 1").contains("have no request yet"));
        assert!(open("UPDATE nexus_requests SET status = 'interrupted'").contains("interrupted"));
        assert!(open("UPDATE deliveries SET status = 'sending' WHERE seq = 2").contains("sending"));
        assert_eq!(open("UPDATE deliveries SET status = 'uncertain'"), "");
    }

    #[test]
    fn a_cursor_that_is_ahead_is_found() {
        let found = |kind: Kind, at: &str, without: i64| {
            let made = Made::whole(kind, 3);
            made.events.execute("INSERT INTO cursors VALUES (?1, 'a', ?2)", [kind.name(), at]).unwrap();
            made.events.execute("DELETE FROM events WHERE seq = ?1", [without]).unwrap();
            cursors_are_covered(&made.world, &made.copy().events).unwrap().concat()
        };
        assert_eq!(found(Kind::Acked, "acked:a-3", 0), "");
        assert_eq!(found(Kind::Acked, "", 1), "");
        assert!(found(Kind::Plain, "plain:a-3", 3).contains("a cursor is past what was committed: plain/a at plain:a-3"));
        assert!(found(Kind::Acked, "acked:a-3", 2).contains("never committed: [\"acked:a-2\"]"));
        assert_eq!(found(Kind::Plain, "plain:a-3", 2), "", "what nobody read is gone on this platform");
    }
}
