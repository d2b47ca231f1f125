//! Requests and runs: admitted, claimed by a run, settled.

use super::audit::Audit;
use super::deliveries::NewDelivery;
use super::speak::StreamText;
use super::waits::NewWait;
use super::{Claim, counter, next};
use crate::ledger::writer::Weight;
use nexus_core::request::Status;
use rusqlite::{Connection, params};

/// One accepted event becoming a request.
#[derive(Debug, Clone)]
pub struct AdmitRow {
    pub event_seq: i64,
    pub request_id: String,
    pub event_id: String,
    pub channel: String,
    pub account_id: String,
    pub adapter: String,
    pub conversation: String,
    pub late: bool,
    pub created_at: i64,
    /// `Waiting`, or `Expired` for an event that its account files.
    pub status: Status,
    pub reason: Option<&'static str>,
}

/// A page of events becomes requests, and the page's end is remembered with them.
#[derive(Debug, Clone)]
pub struct Admit {
    /// The end of the page before: this one is refused until that one is on disk, or a crash between
    /// the two would skip it for ever.
    pub from_seq: i64,
    pub upto_seq: i64,
    pub rows: Vec<AdmitRow>,
    pub epoch: i64,
}

impl Admit {
    pub(super) fn apply(&self, connection: &Connection) -> rusqlite::Result<Claim> {
        if counter(connection, "intake_seq")? < self.from_seq {
            return Ok(Claim::Lost);
        }
        let mut insert = connection.prepare_cached(
            "INSERT INTO nexus_requests (event_seq, request_id, event_id, channel, account_id, adapter, conversation, status, stage, late,
               created_at, completed_at, reason, epoch)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, 'receiveEvent', ?9, ?10, ?11, ?12, ?13) ON CONFLICT (event_seq) DO NOTHING",
        )?;
        for row in &self.rows {
            let completed = row.status.is_terminal().then_some(row.created_at);
            insert.execute(params![
                row.event_seq,
                row.request_id,
                row.event_id,
                row.channel,
                row.account_id,
                row.adapter,
                row.conversation,
                row.status.as_str(),
                row.late,
                row.created_at,
                completed,
                row.reason,
                self.epoch
            ])?;
        }
        let sql = "UPDATE counters SET value = max(value, ?1) WHERE name = 'intake_seq'";
        connection.prepare_cached(sql)?.execute([self.upto_seq])?;
        Ok(Claim::Done)
    }
}

/// A request ends without a run: denied, handled, expired, or failed before stage 6.
#[derive(Debug, Clone)]
pub struct SettleRequest {
    pub event_seq: i64,
    pub status: Status,
    pub stage: &'static str,
    pub reason: Option<String>,
    pub trace: String,
    /// The decision of stage 3, if the request came that far.
    pub audit: Option<Audit>,
    /// The answer of an automation, where there is one.
    pub deliveries: Vec<NewDelivery>,
    pub at: i64,
    pub epoch: i64,
}

impl SettleRequest {
    pub(super) fn apply(&self, connection: &Connection) -> rusqlite::Result<Claim> {
        let sql = "UPDATE nexus_requests SET status = ?2, stage = ?3, reason = ?4, trace = ?5, completed_at = ?6, epoch = ?7
                   WHERE event_seq = ?1 AND status IN ('waiting', 'interrupted') AND ?7 = (SELECT value FROM counters WHERE name = 'epoch')";
        let changed = connection.prepare_cached(sql)?.execute(params![
            self.event_seq,
            self.status.as_str(),
            self.stage,
            self.reason,
            self.trace,
            self.at,
            self.epoch
        ])?;
        if changed == 0 {
            return is_now(connection, self.event_seq, self.status);
        }
        if let Some(audit) = &self.audit {
            audit.insert(connection, self.event_seq, self.at)?;
        }
        for delivery in &self.deliveries {
            delivery.insert(connection, self.epoch)?;
        }
        Ok(Claim::Done)
    }
}

/// An earlier request that shares the run of another.
#[derive(Debug, Clone)]
pub struct Fellow {
    pub event_seq: i64,
    /// The decision of stage 3 that let it in.
    pub audit: Option<Audit>,
}

/// An agent is about to start: from this commit on it may have acted.
#[derive(Debug, Clone)]
pub struct StartRun {
    pub event_seq: i64,
    /// Those that share it.
    pub fellows: Vec<Fellow>,
    pub run_id: String,
    pub agent: String,
    pub session: String,
    /// It may act from its first moment on, whatever it tells: any program.
    pub acted: bool,
    /// The decision of stage 3 that let it in.
    pub audit: Option<Audit>,
    pub at: i64,
    pub epoch: i64,
}

impl StartRun {
    pub(super) fn apply(&self, connection: &Connection) -> rusqlite::Result<Claim> {
        // All of them or none: looked at before anything is written.
        if !self.are_free(connection)? {
            let known = "SELECT count(*) FROM runs WHERE run_id = ?1 AND status = 'running'";
            let known: i64 = connection.prepare_cached(known)?.query_row([&self.run_id], |row| row.get(0))?;
            return Ok(if known == 1 { Claim::Done } else { Claim::Lost });
        }
        let claim = "UPDATE nexus_requests SET status = 'processing', stage = 'runAgent', session = ?2, agent = ?3, run_id = ?5,
                     attempts = attempts + 1, epoch = ?4 WHERE event_seq = ?1";
        let mut claim = connection.prepare_cached(claim)?;
        for (seq, audit) in self.requests() {
            claim.execute(params![seq, self.session, self.agent, self.epoch, self.run_id])?;
            if let Some(audit) = audit {
                audit.insert(connection, seq, self.at)?;
            }
        }
        let insert = "INSERT INTO runs (run_id, event_seq, attempt, agent, session, status, started_at, epoch, acted)
                      SELECT ?1, ?2, attempts, ?3, ?4, 'running', ?5, ?6, ?7 FROM nexus_requests WHERE event_seq = ?2";
        connection.prepare_cached(insert)?.execute(params![
            self.run_id,
            self.event_seq,
            self.agent,
            self.session,
            self.at,
            self.epoch,
            self.acted
        ])?;
        Ok(Claim::Done)
    }

    /// All of its requests, each with the decision about it.
    fn requests(&self) -> impl Iterator<Item = (i64, Option<&Audit>)> {
        let fellows = self.fellows.iter().map(|fellow| (fellow.event_seq, fellow.audit.as_ref()));
        std::iter::once((self.event_seq, self.audit.as_ref())).chain(fellows)
    }

    /// Whether each of its requests waits for a run of this daemon.
    fn are_free(&self, connection: &Connection) -> rusqlite::Result<bool> {
        let sql = "SELECT 1 FROM nexus_requests
                   WHERE event_seq = ?1 AND status IN ('waiting', 'interrupted') AND ?2 = (SELECT value FROM counters WHERE name = 'epoch')";
        let mut free = connection.prepare_cached(sql)?;
        for (seq, _) in self.requests() {
            if !free.exists(params![seq, self.epoch])? {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// The agent of a run took in a message while it went on: from this commit on its request shares the run, as if both
/// had begun it.
#[derive(Debug, Clone)]
pub struct JoinRun {
    pub event_seq: i64,
    pub run_id: String,
    /// The decision of stage 3 that let it in.
    pub audit: Option<Audit>,
    pub at: i64,
    pub epoch: i64,
}

impl JoinRun {
    /// Lost when the run is over, or the request isn't free.
    pub(super) fn apply(&self, connection: &Connection) -> rusqlite::Result<Claim> {
        let join = "UPDATE nexus_requests SET status = 'processing', stage = 'runAgent', run_id = ?2, attempts = attempts + 1, epoch = ?3,
                      session = (SELECT session FROM runs WHERE run_id = ?2), agent = (SELECT agent FROM runs WHERE run_id = ?2)
                    WHERE event_seq = ?1 AND status IN ('waiting', 'interrupted') AND ?3 = (SELECT value FROM counters WHERE name = 'epoch')
                      AND EXISTS (SELECT 1 FROM runs WHERE run_id = ?2 AND status = 'running' AND epoch = ?3)";
        if connection.prepare_cached(join)?.execute(params![self.event_seq, self.run_id, self.epoch])? == 0 {
            let known = "SELECT count(*) FROM nexus_requests WHERE event_seq = ?1 AND run_id = ?2 AND status = 'processing' AND epoch = ?3";
            let known: i64 =
                connection.prepare_cached(known)?.query_row(params![self.event_seq, self.run_id, self.epoch], |row| row.get(0))?;
            return Ok(if known == 1 { Claim::Done } else { Claim::Lost });
        }
        if let Some(audit) = &self.audit {
            audit.insert(connection, self.event_seq, self.at)?;
        }
        Ok(Claim::Done)
    }
}

/// The run's first tool call is starting: after this commit a rerun would repeat its effect.
#[derive(Debug, Clone)]
pub struct MarkActed {
    pub run_id: String,
}

impl MarkActed {
    pub(super) fn apply(&self, connection: &Connection) -> rusqlite::Result<()> {
        connection.prepare_cached("UPDATE runs SET acted = 1 WHERE run_id = ?1")?.execute([&self.run_id]).map(drop)
    }
}

/// The end of a request that shared another's run.
#[derive(Debug, Clone)]
pub struct FellowEnd {
    pub event_seq: i64,
    pub reason: Option<String>,
    pub trace: String,
}

/// Blocks of a run that was aborted before they left.
const DROP_REST: &str = "UPDATE deliveries SET status = 'discarded', error = 'its turn was aborted', updated_at = ?3, epoch = ?4
  WHERE event_seq = ?1 AND run_id = ?2 AND status = 'pending'";

/// A run is over: its turn, its deliveries and the terminal status of all its requests, together.
#[derive(Debug, Clone)]
pub struct FinishRun {
    pub event_seq: i64,
    /// Those that shared it; they end as it does.
    pub fellows: Vec<FellowEnd>,
    pub run_id: String,
    pub ok: bool,
    /// A newer message ended it: nobody waits for what of it hasn't left yet.
    pub is_aborted: bool,
    pub status: Status,
    pub reason: Option<String>,
    /// Given to the agents ledger; `None` when nothing was said.
    pub turn_json: Option<String>,
    pub deliveries: Vec<NewDelivery>,
    /// What its stream has said; that delivery is on its way already.
    pub stream: Option<StreamText>,
    /// What its project waits for, where it failed for nothing else.
    pub wait: Option<NewWait>,
    pub trace: String,
    pub at: i64,
    pub epoch: i64,
}

impl FinishRun {
    /// The run's `finish_seq`; `None` when this run isn't the request's running one (any more).
    pub(super) fn apply(&self, connection: &Connection) -> rusqlite::Result<Option<i64>> {
        let known = "SELECT finish_seq FROM runs WHERE run_id = ?1 AND finish_seq IS NOT NULL";
        if let Some(seq) = crate::ledger::optional(connection.prepare_cached(known)?.query_row([&self.run_id], |row| row.get(0)))? {
            return Ok(Some(seq)); // a repetition
        }
        // Its status is final; what is left of stage 7 is the outbox's.
        let settle = "UPDATE nexus_requests SET status = ?2, stage = 'finalize', reason = ?3, trace = ?4, completed_at = ?5
                      WHERE event_seq = ?1 AND status = 'processing' AND epoch = ?6";
        let mut settle = connection.prepare_cached(settle)?;
        let status = self.status.as_str();
        if settle.execute(params![self.event_seq, status, self.reason, self.trace, self.at, self.epoch])? == 0 {
            return Ok(None);
        }
        for fellow in &self.fellows {
            settle.execute(params![fellow.event_seq, status, fellow.reason, fellow.trace, self.at, self.epoch])?;
        }
        let seq = next(connection, "finish_seq")?;
        let finish = "UPDATE runs SET status = ?2, finished_at = ?3, finish_seq = ?4, turn_json = ?5 WHERE run_id = ?1";
        let status = if self.ok { "finished" } else { "failed" };
        connection.prepare_cached(finish)?.execute(params![self.run_id, status, self.at, seq, self.turn_json])?;
        if let Some(stream) = &self.stream {
            stream.save(connection)?;
        }
        if self.is_aborted {
            connection.prepare_cached(DROP_REST)?.execute(params![self.event_seq, self.run_id, self.at, self.epoch])?;
        }
        for delivery in &self.deliveries {
            delivery.insert(connection, self.epoch)?;
        }
        if let Some(wait) = &self.wait {
            let seqs = self.fellows.iter().map(|fellow| fellow.event_seq).chain([self.event_seq]);
            wait.insert(connection, seqs, self.at)?;
        }
        Ok(Some(seq))
    }
}

/// The daemon stops while this run is under way: not terminal, the next start decides.
#[derive(Debug, Clone)]
pub struct InterruptRun {
    pub event_seq: i64,
    /// Those that share it.
    pub fellows: Vec<i64>,
    pub run_id: String,
    /// What the agent had said and done so far; kept here, and never given to the agents ledger.
    pub turn_json: Option<String>,
    /// What its stream has said.
    pub stream: Option<StreamText>,
    pub at: i64,
    pub epoch: i64,
}

impl InterruptRun {
    pub(super) fn apply(&self, connection: &Connection) -> rusqlite::Result<Claim> {
        let run = "UPDATE runs SET status = 'interrupted', finished_at = ?2, turn_json = ?4
                   WHERE run_id = ?1 AND status = 'running' AND epoch = ?3";
        connection.prepare_cached(run)?.execute(params![self.run_id, self.at, self.epoch, self.turn_json])?;
        if let Some(stream) = &self.stream {
            stream.save(connection)?;
        }
        let request = "UPDATE nexus_requests SET status = 'interrupted' WHERE event_seq = ?1 AND status = 'processing' AND epoch = ?2";
        let mut request = connection.prepare_cached(request)?;
        for fellow in &self.fellows {
            request.execute(params![fellow, self.epoch])?;
        }
        let changed = request.execute(params![self.event_seq, self.epoch])?;
        Ok(if changed == 1 { Claim::Done } else { Claim::Lost })
    }
}

/// The trace with its last two stages, after the request's end.
#[derive(Debug, Clone)]
pub struct SaveTrace {
    pub event_seq: i64,
    pub trace: String,
}

impl SaveTrace {
    pub(super) fn apply(&self, connection: &Connection) -> rusqlite::Result<()> {
        let sql = "UPDATE nexus_requests SET trace = ?2 WHERE event_seq = ?1 AND completed_at IS NOT NULL";
        connection.prepare_cached(sql)?.execute(params![self.event_seq, self.trace]).map(drop)
    }
}

fn is_now(connection: &Connection, event_seq: i64, status: Status) -> rusqlite::Result<Claim> {
    let sql = "SELECT count(*) FROM nexus_requests WHERE event_seq = ?1 AND status = ?2";
    let same: i64 = connection.prepare_cached(sql)?.query_row(params![event_seq, status.as_str()], |row| row.get(0))?;
    Ok(if same == 1 { Claim::Done } else { Claim::Lost })
}

impl Weight for Admit {
    fn bytes(&self) -> usize {
        self.rows.len() * 400 + 64
    }
    fn rows(&self) -> usize {
        self.rows.len().max(1)
    }
}

impl Weight for SettleRequest {
    fn bytes(&self) -> usize {
        let deliveries: usize = self.deliveries.iter().map(|delivery| delivery.content.len() + 256).sum();
        self.trace.len() + self.audit.as_ref().map_or(0, Audit::bytes) + deliveries + 128
    }
    fn rows(&self) -> usize {
        1 + self.deliveries.len()
    }
}

impl Weight for SaveTrace {
    fn bytes(&self) -> usize {
        self.trace.len() + 64
    }
}

impl Weight for StartRun {
    fn bytes(&self) -> usize {
        let audits: usize = self.requests().filter_map(|(_, audit)| audit).map(Audit::bytes).sum();
        audits + self.fellows.len() * 64 + 256
    }
    fn rows(&self) -> usize {
        2 + self.fellows.len()
    }
}

impl Weight for JoinRun {
    fn bytes(&self) -> usize {
        self.audit.as_ref().map_or(0, Audit::bytes) + 256
    }
}

impl Weight for MarkActed {}

impl Weight for InterruptRun {
    fn bytes(&self) -> usize {
        self.turn_json.as_ref().map_or(0, String::len) + self.stream.as_ref().map_or(0, |stream| stream.content.len()) + 128
    }
}

impl Weight for FinishRun {
    fn bytes(&self) -> usize {
        let deliveries: usize = self.deliveries.iter().map(|delivery| delivery.content.len() + 256).sum();
        let fellows: usize = self.fellows.iter().map(|fellow| fellow.trace.len() + 128).sum();
        let stream = self.stream.as_ref().map_or(0, |stream| stream.content.len());
        self.turn_json.as_ref().map_or(0, String::len) + self.trace.len() + deliveries + stream + fellows + 256
    }
    fn rows(&self) -> usize {
        2 + self.deliveries.len() + self.fellows.len()
    }
}
