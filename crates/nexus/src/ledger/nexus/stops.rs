//! Turns that a person told to end, before their end is on disk: a daemon that finds such a request open asks no agent about it
//! again. Whom a stop is for is decided elsewhere.

use super::Claim;
use crate::ledger::writer::Weight;
use rusqlite::{Connection, params};

/// Requests without an end whose turn was told to end. One that shares the run of another was told with it.
const STOPPED: &str = "SELECT q.event_seq, coalesce(q.stopped, lead.stopped) AS why FROM nexus_requests q
  LEFT JOIN runs r ON r.run_id = q.run_id LEFT JOIN nexus_requests lead ON lead.event_seq = r.event_seq AND lead.run_id = q.run_id
  WHERE q.status IN ('waiting', 'processing', 'interrupted') AND why IS NOT NULL ORDER BY q.event_seq";

/// A turn is told to end, and with it all that share its run, for the reason that its trace is to give. Of two
/// the first one counts.
#[derive(Debug, Clone)]
pub struct StopRequest {
    /// All that share the turn: the one that would be replied to may have an end of its own by now.
    pub event_seqs: Vec<i64>,
    pub why: String,
}

impl StopRequest {
    /// Lost when all of them have their ends.
    pub(super) fn apply(&self, connection: &Connection) -> rusqlite::Result<Claim> {
        let sql = "UPDATE nexus_requests SET stopped = coalesce(stopped, ?2)
                   WHERE status IN ('waiting', 'processing', 'interrupted') AND (event_seq = ?1
                     OR run_id = (SELECT run_id FROM nexus_requests WHERE event_seq = ?1 AND status = 'processing'))";
        let mut stop = connection.prepare_cached(sql)?;
        let mut changed = 0;
        for event_seq in &self.event_seqs {
            changed += stop.execute(params![event_seq, self.why])?;
        }
        Ok(if changed == 0 { Claim::Lost } else { Claim::Done })
    }
}

impl Weight for StopRequest {}

/// Each request without an end whose turn was told to end, and why.
pub fn stopped_requests(connection: &Connection) -> rusqlite::Result<Vec<(i64, String)>> {
    connection.prepare(STOPPED)?.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?.collect()
}

/// Whether a turn of these requests ended for this reason: one that was withdrawn from it has another. `None` while one of them
/// has no end.
pub fn ended_for(connection: &Connection, event_seqs: &[i64], why: &str) -> rusqlite::Result<Option<bool>> {
    let sql = "SELECT status IN ('waiting', 'processing', 'interrupted'), reason IS ?2 FROM nexus_requests WHERE event_seq = ?1";
    let mut asked = connection.prepare_cached(sql)?;
    let mut is_so = false;
    for event_seq in event_seqs {
        let end: Option<(bool, bool)> =
            crate::ledger::optional(asked.query_row(params![event_seq, why], |row| Ok((row.get(0)?, row.get(1)?))))?;
        match end {
            Some((false, for_this)) => is_so |= for_this,
            Some((true, _)) | None => return Ok(None),
        }
    }
    Ok(Some(is_so))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::{Admit, AdmitRow, BeginEpoch, Fellow, ReviveRequest, StartRun};
    use super::*;
    use nexus_core::request::Status;

    /// A ledger in its first epoch: requests 1 and 2 share a run, and 3 waits.
    fn ledger() -> Connection {
        let connection = crate::samples::nexus_ledger();
        BeginEpoch { at: 1 }.apply(&connection).unwrap();
        let row = |seq: i64| AdmitRow { event_seq: seq, request_id: format!("req_{seq}"), ..crate::samples::row() };
        Admit { from_seq: 0, upto_seq: 3, rows: vec![row(1), row(2), row(3)], epoch: 1 }.apply(&connection).unwrap();
        let (run_id, agent, session) = ("run_1".to_owned(), "a".to_owned(), "s".to_owned());
        let fellows = vec![Fellow { event_seq: 1, audit: None }];
        let start = StartRun { event_seq: 2, fellows, run_id, agent, session, acted: false, audit: None, at: 2, epoch: 1 };
        assert_eq!(start.apply(&connection).unwrap(), Claim::Done);
        connection
    }

    fn stop(connection: &Connection, event_seq: i64, why: &str) -> Claim {
        StopRequest { event_seqs: vec![event_seq], why: why.to_owned() }.apply(connection).unwrap()
    }

    #[test]
    fn a_stop_is_of_the_whole_turn_and_outlasts_the_daemon() {
        let connection = ledger();
        assert!(stopped_requests(&connection).unwrap().is_empty());
        assert_eq!((stop(&connection, 2, "first"), stop(&connection, 2, "second")), (Claim::Done, Claim::Done));
        let both = [(1, "first".to_owned()), (2, "first".to_owned())];
        assert_eq!(stopped_requests(&connection).unwrap(), both);
        let begun = BeginEpoch { at: 9 }.apply(&connection).unwrap();
        assert!(begun.interrupted.len() == 2 && begun.interrupted.iter().all(|one| one.was_stopped));
        for event_seq in [1, 2] {
            let revive = ReviveRequest { event_seq, to: Status::Waiting, reason: None, trace: None, delivery: None, at: 9, epoch: 2 };
            assert_eq!(revive.apply(&connection).unwrap(), Claim::Done);
        }
        assert_eq!(stopped_requests(&connection).unwrap(), both);
        // One of them alone is run again, and broken off again.
        let (run_id, agent, session) = ("run_2".to_owned(), "a".to_owned(), "s".to_owned());
        let start = StartRun { event_seq: 1, fellows: Vec::new(), run_id, agent, session, acted: false, audit: None, at: 10, epoch: 2 };
        assert_eq!(start.apply(&connection).unwrap(), Claim::Done);
        let begun = BeginEpoch { at: 11 }.apply(&connection).unwrap();
        assert!(begun.interrupted.iter().all(|one| one.was_stopped));
        assert_eq!(stopped_requests(&connection).unwrap(), both);
    }

    #[test]
    fn a_turn_ended_for_a_reason_once_all_have_ends_and_one_has_it() {
        let connection = ledger();
        let ended = |seqs: &[i64]| ended_for(&connection, seqs, "told").unwrap();
        let set = |sql: &str| assert_eq!(connection.execute(sql, []).unwrap(), 1);
        set("UPDATE nexus_requests SET status = 'expired', reason = 'deleted' WHERE event_seq = 2");
        assert_eq!((ended(&[1, 2]), ended(&[2]), ended(&[9])), (None, Some(false), None));
        set("UPDATE nexus_requests SET status = 'completed', reason = 'told' WHERE event_seq = 1");
        assert_eq!(ended(&[1, 2]), Some(true));
    }

    #[test]
    fn what_has_an_end_is_not_stopped_and_what_waits_is() {
        let connection = ledger();
        connection.execute("UPDATE nexus_requests SET status = 'completed' WHERE event_seq <> 3", []).unwrap();
        assert_eq!((stop(&connection, 2, "late"), stop(&connection, 3, "in time")), (Claim::Lost, Claim::Done));
        assert_eq!(stopped_requests(&connection).unwrap(), [(3, "in time".to_owned())]);
    }
}
