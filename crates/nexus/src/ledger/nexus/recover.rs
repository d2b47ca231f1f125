//! What a start does about work that a former daemon left in the middle, and what is thrown away
//! when it has become old.

use super::{Claim, next};
use crate::ledger::writer::Weight;
use nexus_core::request::Status;
use rusqlite::{Connection, params};

/// A new daemon begins: the epoch rises, so that nothing of the former one can finish any more, and
/// what it had in hand is marked.
#[derive(Debug, Clone)]
pub struct BeginEpoch {
    pub at: i64,
}

/// What the former daemon left.
#[derive(Debug, Clone, Default)]
pub struct Begun {
    pub epoch: i64,
    pub interrupted: Vec<Interrupted>,
}

/// A request whose run was under way.
#[derive(Debug, Clone)]
pub struct Interrupted {
    pub event_seq: i64,
    pub run_id: Option<String>,
    pub agent: Option<String>,
    pub attempts: u32,
    /// A tool call had started.
    pub acted: bool,
}

impl BeginEpoch {
    pub(super) fn apply(&self, connection: &Connection) -> rusqlite::Result<Begun> {
        let epoch = next(connection, "epoch")?;
        let error = "the daemon stopped while this was being sent; it may or may not have arrived";
        connection.execute(
            "UPDATE deliveries SET status = 'uncertain', error = ?1, updated_at = ?2, epoch = ?3 WHERE status = 'sending'",
            params![error, self.at, epoch],
        )?;
        connection.execute("UPDATE runs SET status = 'interrupted', finished_at = ?1 WHERE status = 'running'", [self.at])?;
        connection.execute("UPDATE nexus_requests SET status = 'interrupted' WHERE status = 'processing'", [])?;
        let mut list = connection.prepare(
            "SELECT q.event_seq, q.attempts, q.agent, r.run_id, coalesce(r.acted, 0) FROM nexus_requests q
             LEFT JOIN runs r ON r.event_seq = q.event_seq AND r.attempt = q.attempts
             WHERE q.status = 'interrupted' ORDER BY q.event_seq",
        )?;
        let interrupted = list
            .query_map([], |row| {
                Ok(Interrupted {
                    event_seq: row.get(0)?,
                    attempts: row.get(1)?,
                    agent: row.get(2)?,
                    run_id: row.get(3)?,
                    acted: row.get(4)?,
                })
            })?
            .collect::<rusqlite::Result<_>>()?;
        connection.execute("UPDATE adapter_instances SET status = 'stopped', health = 'unknown', pid = NULL", [])?;
        Ok(Begun { epoch, interrupted })
    }
}

/// An interrupted request goes back to waiting, or ends as failed with one line for the user.
#[derive(Debug, Clone)]
pub struct ReviveRequest {
    pub event_seq: i64,
    /// `Waiting` or `Failed`.
    pub to: Status,
    pub reason: Option<String>,
    pub delivery: Option<super::NewDelivery>,
    pub at: i64,
    pub epoch: i64,
}

impl ReviveRequest {
    pub(super) fn apply(&self, connection: &Connection) -> rusqlite::Result<Claim> {
        let completed = self.to.is_terminal().then_some(self.at);
        let sql = "UPDATE nexus_requests SET status = ?2, reason = ?3, completed_at = ?4, epoch = ?5 WHERE event_seq = ?1 AND status = 'interrupted'";
        let changed =
            connection.prepare_cached(sql)?.execute(params![self.event_seq, self.to.as_str(), self.reason, completed, self.epoch])?;
        if changed == 0 {
            return Ok(Claim::Lost);
        }
        if let Some(delivery) = &self.delivery {
            delivery.insert(connection, self.epoch)?;
        }
        Ok(Claim::Done)
    }
}

/// Forgets traces and the texts of finished runs that are old; the rows themselves stay.
#[derive(Debug, Clone)]
pub struct Prune {
    /// Unix ms: traces of requests that ended before are dropped.
    pub traces_before: i64,
    /// Unix ms: turn texts of runs that ended before are dropped once the agents ledger has them.
    pub snapshots_before: i64,
    pub applied_finish_seq: i64,
    pub rows_max: u32,
}

impl Prune {
    /// How many rows were lightened; as many as `rows_max` means that more may be left.
    pub(super) fn apply(&self, connection: &Connection) -> rusqlite::Result<u64> {
        let traces = connection.execute(
            "UPDATE nexus_requests SET trace = NULL WHERE event_seq IN (SELECT event_seq FROM nexus_requests
               WHERE trace IS NOT NULL AND completed_at IS NOT NULL AND completed_at < ?1 ORDER BY completed_at LIMIT ?2)",
            params![self.traces_before, self.rows_max],
        )?;
        let turns = connection.execute(
            "UPDATE runs SET turn_json = NULL WHERE run_id IN (SELECT run_id FROM runs
               WHERE turn_json IS NOT NULL AND finished_at < ?1 AND finish_seq <= ?2 LIMIT ?3)",
            params![self.snapshots_before, self.applied_finish_seq, self.rows_max],
        )?;
        Ok((traces + turns) as u64)
    }
}

impl Weight for BeginEpoch {}

impl Weight for ReviveRequest {
    fn bytes(&self) -> usize {
        256 + self.delivery.as_ref().map_or(0, |delivery| delivery.content.len() + 256)
    }
}

impl Weight for Prune {
    fn rows(&self) -> usize {
        1024 // a transaction of its own
    }
}
