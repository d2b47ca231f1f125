//! Adapter instances, the configurations that were in force, and the hourly analytics.

use crate::ledger::optional;
use crate::ledger::writer::Weight;
use rusqlite::{Connection, Row, params};

/// The keeps of the `config` table.
const CONFIGS_KEPT: i64 = 20;

/// One account of one adapter as last known.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Instance {
    pub adapter: String,
    pub account: String,
    pub status: String,
    pub health: String,
    pub pid: Option<u32>,
    pub restart_count: u64,
    pub events_received: u64,
    pub last_error: Option<String>,
    pub backfill_completed_at: Option<i64>,
    /// As the adapter last said; kept when a save knows none.
    pub channel: Option<String>,
    /// The adapter's whole `info`, as JSON; kept likewise.
    pub info: Option<String>,
}

#[derive(Debug, Clone)]
pub struct SaveInstance {
    pub instance: Instance,
    pub at: i64,
    pub epoch: i64,
}

impl SaveInstance {
    pub(super) fn apply(&self, connection: &Connection) -> rusqlite::Result<()> {
        let sql = "INSERT INTO adapter_instances (adapter, account, status, health, pid, restart_count, events_received, last_error,
                     updated_at, epoch, channel, info)
                   VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)
                   ON CONFLICT (adapter, account) DO UPDATE SET status = ?3, health = ?4, pid = ?5, restart_count = ?6, events_received = ?7,
                     last_error = ?8, updated_at = ?9, epoch = ?10, channel = coalesce(?11, channel), info = coalesce(?12, info)
                   WHERE epoch <= ?10";
        let one = &self.instance;
        connection
            .prepare_cached(sql)?
            .execute(params![
                one.adapter,
                one.account,
                one.status,
                one.health,
                one.pid,
                one.restart_count,
                one.events_received,
                one.last_error,
                self.at,
                self.epoch,
                one.channel,
                one.info
            ])
            .map(drop)
    }
}

/// A history backfill ran to its end.
#[derive(Debug, Clone)]
pub struct BackfillDone {
    pub adapter: String,
    pub account: String,
    pub at: i64,
    pub epoch: i64,
}

impl BackfillDone {
    pub(super) fn apply(&self, connection: &Connection) -> rusqlite::Result<()> {
        let sql = "INSERT INTO adapter_instances (adapter, account, status, health, backfill_completed_at, updated_at, epoch)
                   VALUES (?1, ?2, 'stopped', 'unknown', ?3, ?3, ?4)
                   ON CONFLICT (adapter, account) DO UPDATE SET backfill_completed_at = ?3, updated_at = ?3";
        connection.prepare_cached(sql)?.execute(params![self.adapter, self.account, self.at, self.epoch]).map(drop)
    }
}

/// One account as it was last saved.
pub fn instance(connection: &Connection, adapter: &str, account: &str) -> rusqlite::Result<Option<Instance>> {
    let sql = "SELECT adapter, account, status, health, pid, restart_count, events_received, last_error, backfill_completed_at,
                 channel, info FROM adapter_instances WHERE adapter = ?1 AND account = ?2";
    optional(connection.prepare_cached(sql)?.query_row([adapter, account], read))
}

fn read(row: &Row<'_>) -> rusqlite::Result<Instance> {
    Ok(Instance {
        adapter: row.get(0)?,
        account: row.get(1)?,
        status: row.get(2)?,
        health: row.get(3)?,
        pid: row.get(4)?,
        restart_count: row.get(5)?,
        events_received: row.get(6)?,
        last_error: row.get(7)?,
        backfill_completed_at: row.get(8)?,
        channel: row.get(9)?,
        info: row.get(10)?,
    })
}

/// The effective configuration that came into force.
#[derive(Debug, Clone)]
pub struct RecordConfig {
    pub text: String,
    pub at: i64,
}

impl RecordConfig {
    pub(super) fn apply(&self, connection: &Connection) -> rusqlite::Result<()> {
        let same = "SELECT count(*) FROM config WHERE seq = (SELECT max(seq) FROM config) AND text = ?1";
        let same: i64 = connection.query_row(same, [&self.text], |row| row.get(0))?;
        if same == 0 {
            connection.execute("INSERT INTO config (applied_at, text) VALUES (?1, ?2)", params![self.at, self.text])?;
            connection.execute("DELETE FROM config WHERE seq <= (SELECT max(seq) FROM config) - ?1", [CONFIGS_KEPT])?;
        }
        Ok(())
    }
}

/// Requests that ended within one hour, of one channel, agent and status.
#[derive(Debug, Clone, PartialEq)]
pub struct Hour {
    /// Unix hours.
    pub hour: i64,
    pub channel: String,
    pub agent: String,
    pub status: &'static str,
    pub requests: u64,
    /// Summed.
    pub latency_ms: f64,
}

/// Batches of one life of the daemon that have numbers of their own: one a minute for eight thousand years.
const BATCHES_MAX: i64 = 1 << 32;

/// What was counted since the batch before.
#[derive(Debug, Clone)]
pub struct CountAnalytics {
    pub hours: Vec<Hour>,
    /// The next one in this epoch, or the last one again.
    pub number: i64,
    pub epoch: i64,
}

impl CountAnalytics {
    /// A repetition adds nothing.
    pub(super) fn apply(&self, connection: &Connection) -> rusqlite::Result<()> {
        let batch = self.epoch.saturating_mul(BATCHES_MAX).saturating_add(self.number);
        let sql = "INSERT INTO counters VALUES ('analytics_batch', ?1) ON CONFLICT (name) DO UPDATE SET value = ?1 WHERE value < ?1";
        if connection.prepare_cached(sql)?.execute([batch])? == 0 {
            return Ok(());
        }
        let sql = "INSERT INTO analytics_hourly VALUES (?1, ?2, ?3, ?4, ?5, ?6) ON CONFLICT (hour, channel, agent, status)
                   DO UPDATE SET requests = requests + ?5, latency_ms = latency_ms + ?6";
        for hour in &self.hours {
            connection.prepare_cached(sql)?.execute(params![
                hour.hour,
                hour.channel,
                hour.agent,
                hour.status,
                hour.requests,
                hour.latency_ms
            ])?;
        }
        Ok(())
    }
}

impl Weight for SaveInstance {
    fn bytes(&self) -> usize {
        self.instance.info.as_ref().map_or(0, String::len) + 256
    }
}

impl Weight for BackfillDone {}

impl Weight for RecordConfig {
    fn bytes(&self) -> usize {
        self.text.len() + 64
    }
}

impl Weight for CountAnalytics {
    fn bytes(&self) -> usize {
        self.hours.len() * 128 + 64
    }
    fn rows(&self) -> usize {
        self.hours.len().max(1)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_batch_that_is_repeated_counts_once() {
        let connection = crate::samples::nexus_ledger();
        let count = |epoch: i64, number: i64, status: &'static str| {
            let hour = Hour { hour: 7, channel: "c".to_owned(), agent: "a".to_owned(), status, requests: 2, latency_ms: 1.5 };
            CountAnalytics { hours: vec![hour], number, epoch }.apply(&connection).unwrap();
        };
        // A life of the daemon counts its batches anew.
        for (epoch, number) in [(1, 1), (1, 1), (1, 2), (2, 1), (2, 1)] {
            count(epoch, number, "completed");
        }
        count(2, 2, "failed");
        let sql = "SELECT hour || ' ' || channel || ' ' || agent || ' ' || status || ' ' || requests || ' ' || latency_ms
                   FROM analytics_hourly ORDER BY status";
        let mut statement = connection.prepare(sql).unwrap();
        let rows: Vec<String> = statement.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect();
        assert_eq!(rows, ["7 c a completed 6 4.5", "7 c a failed 2 1.5"]);
    }
}
