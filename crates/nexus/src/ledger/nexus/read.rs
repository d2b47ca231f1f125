//! Questions to nexus.db.

use super::deliveries::{COLUMNS, Delivery, from_row, lane};
use crate::ledger::agents::TurnRecord;
use crate::ledger::optional;
use rusqlite::{Connection, Row, params};
use serde::Serialize;
use std::collections::{HashMap, HashSet};

/// Requests among which one is looked for that ended for a reason.
const REASONS_LOOKED_AT: i64 = 10_000;

/// A request as `trace` shows it.
#[derive(Debug, Clone, Serialize)]
pub struct RequestRow {
    pub request_id: String,
    pub event_seq: i64,
    pub event_id: String,
    pub channel: String,
    pub account_id: String,
    pub status: String,
    pub stage: String,
    pub session: Option<String>,
    pub agent: Option<String>,
    pub attempts: u32,
    pub late: bool,
    pub created_at: i64,
    pub completed_at: Option<i64>,
    pub reason: Option<String>,
    pub trace: Option<serde_json::Value>,
}

const REQUEST: &str = "request_id, event_seq, event_id, channel, account_id, status, stage, session, agent, attempts, late, created_at, completed_at, reason, trace";

fn request(row: &Row<'_>) -> rusqlite::Result<RequestRow> {
    let trace: Option<String> = row.get(14)?;
    Ok(RequestRow {
        request_id: row.get(0)?,
        event_seq: row.get(1)?,
        event_id: row.get(2)?,
        channel: row.get(3)?,
        account_id: row.get(4)?,
        status: row.get(5)?,
        stage: row.get(6)?,
        session: row.get(7)?,
        agent: row.get(8)?,
        attempts: row.get(9)?,
        late: row.get(10)?,
        created_at: row.get(11)?,
        completed_at: row.get(12)?,
        reason: row.get(13)?,
        trace: trace.and_then(|text| serde_json::from_str(&text).ok()),
    })
}

/// One request, by its own id.
pub fn request_by_id(connection: &Connection, request_id: &str) -> rusqlite::Result<Option<RequestRow>> {
    let sql = format!("SELECT {REQUEST} FROM nexus_requests WHERE request_id = ?1");
    optional(connection.prepare_cached(&sql)?.query_row([request_id], request))
}

/// The request that an event became.
pub fn request_by_event(connection: &Connection, event_seq: i64) -> rusqlite::Result<Option<RequestRow>> {
    let sql = format!("SELECT {REQUEST} FROM nexus_requests WHERE event_seq = ?1");
    optional(connection.prepare_cached(&sql)?.query_row([event_seq], request))
}

/// Whether one of the newest requests before `before` ended for this reason.
pub fn was_ended_for(connection: &Connection, reason: &str, before: i64) -> rusqlite::Result<bool> {
    let sql = "SELECT 1 FROM nexus_requests WHERE event_seq < ?1 AND event_seq >= ?1 - ?2 AND reason = ?3";
    connection.prepare_cached(sql)?.exists(params![before, REASONS_LOOKED_AT, reason])
}

/// The newest `limit` requests, newest first, of one status if given.
pub fn requests(connection: &Connection, status: Option<&str>, limit: usize) -> rusqlite::Result<Vec<RequestRow>> {
    let sql = format!("SELECT {REQUEST} FROM nexus_requests WHERE ?1 IS NULL OR status = ?1 ORDER BY event_seq DESC LIMIT ?2");
    connection.prepare_cached(&sql)?.query_map(params![status, limit], request)?.collect()
}

/// A request that has no end yet, as the router keeps it.
#[derive(Debug, Clone)]
pub struct OpenRequest {
    pub event_seq: i64,
    pub request_id: String,
    pub conversation: String,
    pub adapter: String,
    pub account_id: String,
    /// How often a run of it was begun: none, unless a stop or a crash interrupted it.
    pub attempts: u32,
}

/// Every waiting request, in order.
pub fn open_requests(connection: &Connection) -> rusqlite::Result<Vec<OpenRequest>> {
    let sql = "SELECT event_seq, request_id, conversation, adapter, account_id, attempts FROM nexus_requests
               WHERE status IN ('waiting', 'processing', 'interrupted') AND status = 'waiting' ORDER BY event_seq";
    connection
        .prepare_cached(sql)?
        .query_map([], |row| {
            Ok(OpenRequest {
                event_seq: row.get(0)?,
                request_id: row.get(1)?,
                conversation: row.get(2)?,
                adapter: row.get(3)?,
                account_id: row.get(4)?,
                attempts: row.get(5)?,
            })
        })?
        .collect()
}

/// Requests of an adapter that are not over, by conversation.
pub fn open_by_conversation(connection: &Connection, adapter: &str) -> rusqlite::Result<Vec<(String, u64)>> {
    let sql = "SELECT conversation, count(*) FROM nexus_requests
               WHERE status IN ('waiting', 'processing', 'interrupted') AND adapter = ?1 GROUP BY conversation";
    connection.prepare_cached(sql)?.query_map([adapter], |row| Ok((row.get(0)?, row.get(1)?)))?.collect()
}

/// The id of the request of an event.
pub fn request_id_of(connection: &Connection, event_seq: i64) -> rusqlite::Result<Option<String>> {
    optional(
        connection.prepare_cached("SELECT request_id FROM nexus_requests WHERE event_seq = ?1")?.query_row([event_seq], |row| row.get(0)),
    )
}

/// Id and status of the request of an event.
pub fn request_state(connection: &Connection, event_seq: i64) -> rusqlite::Result<Option<(String, String)>> {
    let sql = "SELECT request_id, status FROM nexus_requests WHERE event_seq = ?1";
    optional(connection.prepare_cached(sql)?.query_row([event_seq], |row| Ok((row.get(0)?, row.get(1)?))))
}

/// What was said in a run, if that is kept.
pub fn run_turn(connection: &Connection, run_id: &str) -> rusqlite::Result<Option<TurnRecord>> {
    let sql = "SELECT turn_json FROM runs WHERE run_id = ?1";
    let text: Option<Option<String>> = optional(connection.prepare_cached(sql)?.query_row([run_id], |row| row.get(0)))?;
    Ok(text.flatten().and_then(|text| serde_json::from_str(&text).ok()))
}

/// How many requests each status has.
pub fn status_counts(connection: &Connection) -> rusqlite::Result<Vec<(String, u64)>> {
    connection
        .prepare_cached("SELECT status, count(*) FROM nexus_requests GROUP BY status ORDER BY status")?
        .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?
        .collect()
}

/// One delivery, by its id.
pub fn delivery(connection: &Connection, delivery_id: &str) -> rusqlite::Result<Option<Delivery>> {
    let sql = format!("SELECT {COLUMNS} FROM deliveries WHERE delivery_id = ?1");
    optional(connection.prepare_cached(&sql)?.query_row([delivery_id], from_row))
}

/// Every delivery that waits to be sent, in order.
pub fn open_deliveries(connection: &Connection) -> rusqlite::Result<Vec<Delivery>> {
    let sql =
        format!("SELECT {COLUMNS} FROM deliveries WHERE status IN ('pending', 'sending', 'uncertain') AND status = 'pending' ORDER BY seq");
    connection.prepare_cached(&sql)?.query_map([], from_row)?.collect()
}

/// Every delivery of which nobody knows whether it arrived, in order.
pub fn uncertain_deliveries(connection: &Connection) -> rusqlite::Result<Vec<Delivery>> {
    let sql = format!(
        "SELECT {COLUMNS} FROM deliveries WHERE status IN ('pending', 'sending', 'uncertain') AND status = 'uncertain' ORDER BY seq"
    );
    connection.prepare_cached(&sql)?.query_map([], from_row)?.collect()
}

/// The seq of the newest that was begun to be sent, by lane, of all after `seq`.
pub fn begun_after(connection: &Connection, seq: i64) -> rusqlite::Result<HashMap<String, i64>> {
    let sql = "SELECT channel, account_id, target, max(seq) FROM deliveries WHERE seq > ?1 AND attempts > 0
               GROUP BY channel, account_id, target";
    let read = |row: &Row<'_>| {
        let (channel, account_id, target): (String, String, String) = (row.get(0)?, row.get(1)?, row.get(2)?);
        Ok((lane(&channel, &account_id, &target), row.get(3)?))
    };
    connection.prepare_cached(sql)?.query_map([seq], read)?.collect()
}

/// The ids of those whose sends a start found cut off, and of which plugins weren't told yet, as far as that is known.
/// Asked before this daemon sends anything itself.
pub fn cut_off_sends(connection: &Connection) -> rusqlite::Result<HashSet<String>> {
    connection.prepare_cached(CUT_OFF)?.query_map([], |row| row.get(0))?.collect()
}

const CUT_OFF: &str = "SELECT delivery_id FROM deliveries
   WHERE status IN ('pending', 'sending', 'uncertain') AND status = 'uncertain'
     AND epoch > (SELECT value FROM counters WHERE name = 'cut_off_told')";

/// Deliveries that somebody should look at.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct DeliveryCounts {
    /// Nobody knows whether they arrived.
    pub uncertain: u64,
    /// Given up, until a person retries or discards them.
    pub failed: u64,
    pub expired: u64,
    /// Those that are uncertain, and those that wait for long.
    pub stuck: u64,
}

/// Counts by two small indexes, however many deliveries there are; one that waits since before `before`
/// (Unix ms) is stuck.
pub fn delivery_counts(connection: &Connection, before: i64) -> rusqlite::Result<DeliveryCounts> {
    let (uncertain, stuck) = connection.prepare_cached(COUNT_OPEN)?.query_row([before], |row| Ok((row.get(0)?, row.get(1)?)))?;
    let (failed, expired) = connection.prepare_cached(COUNT_DEAD)?.query_row([], |row| Ok((row.get(0)?, row.get(1)?)))?;
    Ok(DeliveryCounts { uncertain, failed, expired, stuck })
}

const COUNT_OPEN: &str =
    "SELECT count(*) FILTER (WHERE status = 'uncertain'), count(*) FILTER (WHERE status = 'uncertain' OR created_at < ?1)
   FROM deliveries WHERE status IN ('pending', 'sending', 'uncertain')";
const COUNT_DEAD: &str = "SELECT count(*) FILTER (WHERE status = 'failed'), count(*) FILTER (WHERE status = 'expired')
   FROM deliveries WHERE status IN ('failed', 'expired')";

/// The deliveries of one event, in the order in which they were made.
pub fn deliveries_of(connection: &Connection, event_seq: i64) -> rusqlite::Result<Vec<Delivery>> {
    let sql = format!("SELECT {COLUMNS} FROM deliveries WHERE event_seq = ?1 ORDER BY seq");
    connection.prepare_cached(&sql)?.query_map([event_seq], from_row)?.collect()
}

/// The newest `limit` deliveries, newest first, of one status and one adapter if given.
pub fn deliveries(connection: &Connection, status: Option<&str>, adapter: Option<&str>, limit: usize) -> rusqlite::Result<Vec<Delivery>> {
    let sql = format!(
        "SELECT {COLUMNS} FROM deliveries WHERE (?1 IS NULL OR status = ?1) AND (?2 IS NULL OR adapter = ?2) ORDER BY seq DESC LIMIT ?3"
    );
    connection.prepare_cached(&sql)?.query_map(params![status, adapter, limit], from_row)?.collect()
}

/// The ids of the oldest `limit` deliveries of a status, and of one adapter if given, in the order in which they leave.
pub fn delivery_ids(connection: &Connection, status: &str, adapter: Option<&str>, limit: usize) -> rusqlite::Result<Vec<String>> {
    let sql = "SELECT delivery_id FROM deliveries WHERE status = ?1 AND (?2 IS NULL OR adapter = ?2) ORDER BY seq LIMIT ?3";
    connection.prepare_cached(sql)?.query_map(params![status, adapter, limit], |row| row.get(0))?.collect()
}

/// Deliveries sent after `sent_seq`, in the order of their sending, and the last one's place.
pub fn sent_after(connection: &Connection, sent_seq: i64, limit: usize) -> rusqlite::Result<(i64, Vec<Delivery>)> {
    let sql = format!("SELECT {COLUMNS}, sent_seq FROM deliveries WHERE sent_seq > ?1 ORDER BY sent_seq LIMIT ?2");
    let rows: Vec<(Delivery, i64)> = connection
        .prepare_cached(&sql)?
        .query_map(params![sent_seq, limit], |row| Ok((from_row(row)?, row.get(21)?)))?
        .collect::<rusqlite::Result<_>>()?;
    let upto = rows.last().map_or(sent_seq, |(_, seq)| *seq);
    Ok((upto, rows.into_iter().map(|(delivery, _)| delivery).collect()))
}

/// Turns of runs finished after `finish_seq`, in order, each with its place, and the last run's place.
pub fn finished_after(connection: &Connection, finish_seq: i64, limit: usize) -> rusqlite::Result<(i64, Vec<(i64, TurnRecord)>)> {
    let mut query =
        connection.prepare_cached("SELECT finish_seq, turn_json FROM runs WHERE finish_seq > ?1 ORDER BY finish_seq LIMIT ?2")?;
    let rows: Vec<(i64, Option<String>)> =
        query.query_map(params![finish_seq, limit], |row| Ok((row.get(0)?, row.get(1)?)))?.collect::<rusqlite::Result<_>>()?;
    let upto = rows.last().map_or(finish_seq, |(seq, _)| *seq);
    let turn = |seq: i64, json: &str| match serde_json::from_str(json) {
        Ok(turn) => Some((seq, turn)),
        Err(error) => {
            tracing::error!(seq, %error, "a run's turn can't be read; left out of the agents ledger");
            None
        }
    };
    let turns = rows.iter().filter_map(|(seq, json)| turn(*seq, json.as_deref()?)).collect();
    Ok((upto, turns))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn ledger() -> Connection {
        crate::samples::nexus_ledger()
    }

    #[test]
    fn who_ended_a_request_is_found_among_those_before_it() {
        let connection = ledger();
        let insert = "INSERT INTO nexus_requests (event_seq, request_id, event_id, channel, account_id, adapter, conversation, status,
                        stage, created_at, reason, epoch)
                      VALUES (?1, ?2, '', '', '', '', '', 'completed', '', 0, ?3, 1)";
        for (event_seq, reason) in [(1, Some("one")), (REASONS_LOOKED_AT, Some("two")), (REASONS_LOOKED_AT + 1, None)] {
            connection.execute(insert, params![event_seq, event_seq.to_string(), reason]).unwrap();
        }
        let ended = |reason: &str, before: i64| was_ended_for(&connection, reason, before).unwrap();
        assert!(ended("one", 2) && !ended("one", 1) && !ended("three", 2));
        assert!(ended("two", REASONS_LOOKED_AT + 2) && !ended("one", REASONS_LOOKED_AT + 2), "it is not looked for any further");
    }

    #[test]
    fn deliveries_are_counted_by_what_is_wrong_with_them() {
        let connection = ledger();
        assert_eq!(delivery_counts(&connection, 10).unwrap(), DeliveryCounts::default());
        let old = [("pending", 5), ("sent", 5), ("failed", 5), ("expired", 5), ("discarded", 5)];
        let new = [("pending", 15), ("uncertain", 15), ("failed", 15)];
        let insert = "INSERT INTO deliveries (delivery_id, request_id, event_seq, adapter, channel, account_id, target, idempotency_key,
                        content, status, created_at, updated_at, expires_at, epoch)
                      VALUES (?1, '', 1, '', '', '', '', ?1, '', ?2, ?3, 0, 0, 1)";
        for (n, (status, created_at)) in old.into_iter().chain(new).enumerate() {
            connection.execute(insert, params![n.to_string(), status, created_at]).unwrap();
        }
        let counts = DeliveryCounts { uncertain: 1, failed: 2, expired: 1, stuck: 2 };
        assert_eq!(delivery_counts(&connection, 10).unwrap(), counts);
    }

    #[test]
    fn no_count_reads_the_whole_table() {
        let connection = ledger();
        for (sql, index) in [(COUNT_OPEN, "deliveries_open"), (CUT_OFF, "deliveries_open"), (COUNT_DEAD, "deliveries_dead")] {
            let plan = crate::samples::plan(&connection, sql);
            assert!(plan.iter().any(|step| step.contains(index)), "{plan:?}");
        }
    }
}
