//! What a restore decides about work that was open when its backup was made, in the copies that are about
//! to take the ledgers' place. All that is written here is one transaction of one file.
//!
//! What was open may have been done since, and nobody can tell: no agent runs again and no message leaves
//! again unless a person says so. Whoever restores what nothing happened since says that too, and then
//! everything goes on as after a crash.

use crate::clock::rfc3339;
use crate::ledger::events::{SENT_SOURCE, page_after};
use crate::ledger::nexus::{Admit, RESTORED_AT, counter};
use crate::ledger::writer::{Command, Write};
use crate::pipeline::router::row_of;
use rusqlite::{Connection, TransactionBehavior, params};

/// Events admitted at a time.
const PAGE: usize = 256;
/// The epoch rises by this at least, so that no place in the event stream is given twice: daemons may have
/// started since.
const EPOCH_MARGIN: i64 = 1_000_000;

/// What was decided.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Marked {
    /// Requests that ended as failed.
    pub(super) requests: u64,
    /// Those of them whose event no request existed for.
    pub(super) never_admitted: u64,
    /// Deliveries that a person has to decide about.
    pub(super) deliveries: u64,
    pub(super) epoch: i64,
}

/// Raises the epoch and, unless `resume`, ends or holds whatever is open.
///
/// # Errors
/// Of SQLite; nothing was written then.
pub(super) fn mark(nexus: &mut Connection, events: &Connection, resume: bool, made_at: i64, now_ms: i64) -> rusqlite::Result<Marked> {
    let transaction = nexus.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let mut marked = if resume { Marked::default() } else { hold_all(&transaction, events, made_at, now_ms)? };
    // By the clock, so that another restore of the same backup comes to other numbers.
    let raise = "UPDATE counters SET value = max(value + ?1, ?2) WHERE name = 'epoch' RETURNING value";
    marked.epoch = transaction.query_row(raise, params![EPOCH_MARGIN, now_ms], |row| row.get(0))?;
    transaction.commit()?;
    Ok(marked)
}

fn hold_all(nexus: &Connection, events: &Connection, made_at: i64, now_ms: i64) -> rusqlite::Result<Marked> {
    let never_admitted = admit_the_rest(nexus, events, now_ms)?;
    let made = rfc3339(made_at);
    let requests = nexus.execute(
        "UPDATE nexus_requests SET status = 'failed', completed_at = ?1,
           reason = 'it was open when the backup of ' || ?2 || ' was made, and may have been answered since; `nexus events replay '
             || event_id || '` runs it again'
         WHERE status IN ('waiting', 'processing', 'interrupted')",
        params![now_ms, made],
    )?;
    nexus.execute("UPDATE runs SET status = 'interrupted', finished_at = ?1 WHERE status = 'running'", [now_ms])?;
    // Not `uncertain`: an adapter's `on_uncertain: retry` would send it again without asking.
    let deliveries = nexus.execute(
        "UPDATE deliveries SET status = 'failed', next_attempt_at = NULL, updated_at = ?1,
           error = 'it was `' || status || '` when the backup of ' || ?2 || ' was made, and may have been sent since; `nexus deliveries retry '
             || delivery_id || '` sends it'
         WHERE status IN ('pending', 'sending', 'uncertain')",
        params![now_ms, made],
    )?;
    // What waited for its project may have been taken up since. Each request has its end already.
    nexus.execute("DELETE FROM project_waits", [])?;
    // Slots of the timer up to now may have fired since.
    let slots = "INSERT INTO counters VALUES (?1, ?2) ON CONFLICT (name) DO UPDATE SET value = max(value, ?2)";
    nexus.execute(slots, params![RESTORED_AT, now_ms])?;
    Ok(Marked { requests: requests as u64, never_admitted, deliveries: deliveries as u64, epoch: 0 })
}

/// Accepted events that no request exists for become requests, as the router would make them; how many
/// of them are open.
fn admit_the_rest(nexus: &Connection, events: &Connection, now_ms: i64) -> rusqlite::Result<u64> {
    let epoch = counter(nexus, "epoch")?;
    let mut from_seq = counter(nexus, "intake_seq")?;
    let mut open = 0;
    loop {
        let (upto_seq, page) = page_after(events, from_seq, PAGE)?;
        if upto_seq <= from_seq {
            return Ok(open);
        }
        let rows: Vec<_> = page.iter().map(|event| row_of(event, now_ms)).collect();
        open += rows.iter().filter(|row| !row.status.is_terminal()).count() as u64;
        drop(Admit { from_seq, upto_seq, rows, epoch }.into_command().apply(nexus)?);
        from_seq = upto_seq;
    }
}

/// `events.db` is copied last and may know of messages that the copy of `nexus.db` hasn't sent. Their
/// numbers will be given to others, which would be left out.
///
/// # Errors
/// Of SQLite.
pub(super) fn lower_sent(events: &Connection, sent_seq: i64) -> rusqlite::Result<()> {
    let sql = "UPDATE applied SET seq = ?2 WHERE source = ?1 AND seq > ?2";
    events.execute(sql, params![SENT_SOURCE, sent_seq]).map(drop)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::ledger::events::{Append, Disposition, Lines, NewEvent, RecordOutbound};
    use crate::ledger::follow;
    use std::sync::Arc;

    const MADE_AT: i64 = 1_770_301_807_123;
    const NOW: i64 = MADE_AT + 3_600_000;

    fn event(id: &str, disposition: Disposition) -> NewEvent {
        NewEvent { disposition, ..crate::samples::new_event(format!("fake:{id}")) }
    }

    fn events(list: Vec<NewEvent>) -> Connection {
        let connection = crate::samples::events_ledger();
        let lines = Arc::new(Lines { events: list, rejects: Vec::new() });
        Append { adapter: "fake".into(), account: "me".into(), lines }.into_command().apply(&connection).unwrap();
        connection
    }

    /// Requests 1 to 5, one of each kind of status, and a delivery of each.
    fn nexus() -> Connection {
        let connection = crate::samples::nexus_ledger();
        for (seq, status) in [(1, "waiting"), (2, "processing"), (3, "interrupted"), (4, "completed"), (5, "expired")] {
            let sql = "INSERT INTO nexus_requests (event_seq, request_id, event_id, channel, account_id, adapter, conversation, status, stage, created_at, epoch)
                       VALUES (?1, 'req_' || ?1, 'fake:' || ?1, 'fake', 'me', 'fake', 'c', ?2, 'receiveEvent', 1, 3)";
            connection.execute(sql, params![seq, status]).unwrap();
        }
        connection
            .execute("INSERT INTO runs (run_id, event_seq, attempt, agent, session, status, started_at, epoch) VALUES ('r', 2, 1, 'a', 's', 'running', 1, 3)", [])
            .unwrap();
        for status in ["pending", "sending", "uncertain", "sent", "failed", "expired", "discarded"] {
            let sql = "INSERT INTO deliveries (delivery_id, request_id, event_seq, adapter, channel, account_id, target, idempotency_key, content,
                         status, created_at, updated_at, expires_at, epoch)
                       VALUES ('dlv_' || ?1, 'req_4', 4, 'fake', 'fake', 'me', 'p', ?1, 'text', ?1, 1, 1, 9, 3)";
            connection.execute(sql, [status]).unwrap();
        }
        connection
            .execute_batch("UPDATE counters SET value = 5 WHERE name = 'intake_seq'; UPDATE counters SET value = 3 WHERE name = 'epoch';")
            .unwrap();
        connection
    }

    /// Five known events, then one of each disposition.
    fn with_more() -> Connection {
        let mut list: Vec<NewEvent> = (1..=5).map(|n| event(&n.to_string(), Disposition::Run)).collect();
        let more =
            [("run", Disposition::Run), ("late", Disposition::Late), ("filed", Disposition::Filed), ("history", Disposition::History)];
        list.extend(more.into_iter().map(|(id, disposition)| event(id, disposition)));
        events(list)
    }

    fn texts(connection: &Connection, sql: &str) -> Vec<String> {
        connection.prepare(sql).unwrap().query_map([], |row| row.get(0)).unwrap().collect::<rusqlite::Result<_>>().unwrap()
    }

    #[test]
    fn what_was_open_ends_and_what_was_over_stays() {
        let (mut nexus, events) = (nexus(), with_more());
        let marked = mark(&mut nexus, &events, false, MADE_AT, NOW).unwrap();
        assert_eq!(marked, Marked { requests: 5, never_admitted: 2, deliveries: 3, epoch: NOW });
        let statuses = texts(&nexus, "SELECT event_id || ' ' || status FROM nexus_requests ORDER BY event_seq");
        let expected = ["1 failed", "2 failed", "3 failed", "4 completed", "5 expired", "run failed", "late failed", "filed expired"];
        assert_eq!(statuses, expected.map(|line| format!("fake:{line}")));
        let open = "SELECT event_id FROM nexus_requests WHERE status = 'failed' AND completed_at IS NOT 1770305407123";
        assert!(texts(&nexus, open).is_empty(), "failed without an end");
        let reason = &texts(&nexus, "SELECT reason FROM nexus_requests WHERE event_id = 'fake:late'")[0];
        assert!(reason.contains("backup of 2026-02-05T14:30:07.123Z") && reason.contains("`nexus events replay fake:late`"), "{reason}");
        assert_eq!(counter(&nexus, "intake_seq").unwrap(), 9);
        assert_eq!(texts(&nexus, "SELECT status FROM runs"), ["interrupted"]);
        let again = mark(&mut nexus, &events, false, MADE_AT, NOW + 1).unwrap();
        assert_eq!(again, Marked { epoch: NOW + EPOCH_MARGIN, ..Marked::default() });
    }

    #[test]
    fn what_waited_for_its_project_is_not_run_again_by_itself() {
        let wait = "INSERT INTO project_waits (event_seq, project, awaits, at) VALUES (5, 'p', 'source', 1)";
        let count = "SELECT CAST(count(*) AS TEXT) FROM project_waits";
        for (resume, left) in [(false, "0"), (true, "1")] {
            let mut nexus = nexus();
            nexus.execute(wait, []).unwrap();
            mark(&mut nexus, &events(Vec::new()), resume, MADE_AT, NOW).unwrap();
            assert_eq!(texts(&nexus, count), [left]);
        }
    }

    #[test]
    fn no_message_leaves_by_itself() {
        let mut nexus = nexus();
        mark(&mut nexus, &events(Vec::new()), false, MADE_AT, NOW).unwrap();
        let sql = "SELECT idempotency_key || ' ' || status FROM deliveries ORDER BY seq";
        let expected = [
            "pending failed",
            "sending failed",
            "uncertain failed",
            "sent sent",
            "failed failed",
            "expired expired",
            "discarded discarded",
        ];
        assert_eq!(texts(&nexus, sql), expected);
        let error = &texts(&nexus, "SELECT error FROM deliveries WHERE idempotency_key = 'uncertain'")[0];
        assert!(error.starts_with("it was `uncertain` when") && error.contains("`nexus deliveries retry dlv_uncertain`"), "{error}");
        assert!(texts(&nexus, "SELECT error FROM deliveries WHERE idempotency_key = 'failed' AND error IS NOT NULL").is_empty());
        assert_eq!(counter(&nexus, RESTORED_AT).unwrap(), NOW);
    }

    #[test]
    fn resumed_work_is_left_alone_under_a_new_epoch() {
        let (mut nexus, events) = (nexus(), with_more());
        let before = texts(&nexus, "SELECT status FROM nexus_requests UNION ALL SELECT status FROM deliveries");
        let marked = mark(&mut nexus, &events, true, MADE_AT, 7).unwrap();
        assert_eq!(marked, Marked { epoch: 3 + EPOCH_MARGIN, ..Marked::default() }, "the clock is far back");
        assert_eq!(texts(&nexus, "SELECT status FROM nexus_requests UNION ALL SELECT status FROM deliveries"), before);
        assert_eq!(counter(&nexus, "intake_seq").unwrap(), 5);
        assert!(counter(&nexus, RESTORED_AT).is_err(), "slots of the timer are passed by");
    }

    #[test]
    fn what_was_said_is_recorded_once_though_it_is_applied_again() {
        let events = events(Vec::new());
        let record = |upto: i64, id: &str| {
            let said = vec![("fake".to_owned(), event(id, Disposition::History))];
            RecordOutbound { upto_sent_seq: upto, events: said }.into_command().apply(&events).unwrap();
        };
        record(1, "a");
        record(2, "b");
        lower_sent(&events, 1).unwrap();
        assert_eq!(follow::applied(&events, SENT_SOURCE).unwrap(), 1);
        record(2, "b");
        record(3, "c");
        assert_eq!(texts(&events, "SELECT event_id FROM events ORDER BY seq"), ["fake:a", "fake:b", "fake:c"]);
        lower_sent(&events, 9).unwrap();
        assert_eq!(follow::applied(&events, SENT_SOURCE).unwrap(), 3, "it is never raised");
    }
}
