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
    /// Its last run, which several requests may share.
    pub run_id: Option<String>,
    pub agent: Option<String>,
    pub session: Option<String>,
    pub attempts: u32,
    /// A tool call had started.
    pub acted: bool,
    /// A part of its answer had left, or was to leave.
    pub spoke: bool,
    /// A person had told its turn to end.
    pub was_stopped: bool,
    /// Unix ms.
    pub started_at: Option<i64>,
    /// When a graceful stop cut it short; nobody knows when a daemon that was killed did. Unix ms.
    pub stopped_at: Option<i64>,
}

// Each names the condition of a partial index as it stands there: SQLite sees no other way that the index
// will do, and would read the whole table at every start.
const MARK_SENDS: &str = "UPDATE deliveries SET status = 'uncertain', error = ?1, updated_at = ?2, epoch = ?3
  WHERE status IN ('pending', 'sending', 'uncertain') AND status = 'sending'";
/// Up to which epoch plugins were told of the sends that starts found cut off. A ledger in which nobody counted that yet
/// begins with the start that does.
const COUNT_TOLD: &str = "INSERT INTO counters VALUES ('cut_off_told', ?1 - 1) ON CONFLICT (name) DO NOTHING";
/// Where nothing is to be told, what becomes uncertain from now on isn't either: this daemon tells it when it does.
const NONE_TO_TELL: &str = "UPDATE counters SET value = ?1 WHERE name = 'cut_off_told' AND NOT EXISTS (SELECT 1 FROM deliveries
  WHERE status IN ('pending', 'sending', 'uncertain') AND status = 'uncertain' AND epoch > value)";
const TELL: &str = "UPDATE counters SET value = max(value, ?1) WHERE name = 'cut_off_told'";
const MARK_RUNS: &str = "UPDATE runs SET status = 'interrupted' WHERE status = 'running'";
const MARK_REQUESTS: &str = "UPDATE nexus_requests SET status = 'interrupted'
  WHERE status IN ('waiting', 'processing', 'interrupted') AND status = 'processing'";
const INTERRUPTED: &str =
    "SELECT q.event_seq, q.attempts, q.agent, r.run_id, coalesce(r.acted, 0), q.session, r.started_at, r.finished_at, coalesce(r.spoke, 0),
    coalesce(q.stopped,
      (SELECT lead.stopped FROM nexus_requests lead WHERE lead.event_seq = r.event_seq AND lead.run_id = q.run_id)) IS NOT NULL
  FROM nexus_requests q LEFT JOIN runs r ON r.run_id = q.run_id
  WHERE q.status IN ('waiting', 'processing', 'interrupted') AND q.status = 'interrupted' ORDER BY q.event_seq";
/// Blocks of a run that is done again.
const TAKE_BACK: &str = "UPDATE deliveries SET status = 'discarded', error = 'its run began anew', updated_at = ?2, epoch = ?3
  WHERE event_seq = ?1 AND status = 'pending' AND run_id IS NOT NULL";
const DROP_TRACES: &str = "UPDATE nexus_requests SET trace = NULL WHERE event_seq IN (SELECT event_seq FROM nexus_requests
  WHERE trace IS NOT NULL AND completed_at IS NOT NULL AND completed_at < ?1 ORDER BY completed_at LIMIT ?2)";
const DROP_TURNS: &str = "UPDATE runs SET turn_json = NULL WHERE run_id IN (SELECT run_id FROM runs
  WHERE turn_json IS NOT NULL AND finished_at < ?1 AND (finish_seq <= ?2 OR status = 'interrupted') LIMIT ?3)";
const DROP_AUDIT: &str =
    "DELETE FROM access_audit WHERE event_seq IN (SELECT event_seq FROM access_audit WHERE at < ?1 ORDER BY at LIMIT ?2)";

const DROP_RESULTS: &str = "DELETE FROM automation_results WHERE event_seq IN (SELECT r.event_seq FROM automation_results r
  WHERE r.at < ?1 AND EXISTS (SELECT 1 FROM nexus_requests q WHERE q.event_seq = r.event_seq AND q.completed_at IS NOT NULL)
  ORDER BY r.at LIMIT ?2)";

impl BeginEpoch {
    pub(super) fn apply(&self, connection: &Connection) -> rusqlite::Result<Begun> {
        let epoch = next(connection, "epoch")?;
        let error = "the daemon stopped while this was being sent; it may or may not have arrived";
        connection.execute(MARK_SENDS, params![error, self.at, epoch])?;
        connection.execute(COUNT_TOLD, [epoch])?;
        connection.execute(NONE_TO_TELL, [epoch])?;
        connection.execute(MARK_RUNS, [])?;
        connection.execute(MARK_REQUESTS, [])?;
        let mut list = connection.prepare(INTERRUPTED)?;
        let interrupted = list
            .query_map([], |row| {
                Ok(Interrupted {
                    event_seq: row.get(0)?,
                    attempts: row.get(1)?,
                    agent: row.get(2)?,
                    run_id: row.get(3)?,
                    acted: row.get(4)?,
                    session: row.get(5)?,
                    started_at: row.get(6)?,
                    stopped_at: row.get(7)?,
                    spoke: row.get(8)?,
                    was_stopped: row.get(9)?,
                })
            })?
            .collect::<rusqlite::Result<_>>()?;
        connection.execute("UPDATE adapter_instances SET status = 'stopped', health = 'unknown', pid = NULL", [])?;
        Ok(Begun { epoch, interrupted })
    }
}

/// Plugins were told of all sends that starts up to this epoch found cut off.
#[derive(Debug, Clone)]
pub struct ToldCutOff {
    pub epoch: i64,
}

impl ToldCutOff {
    pub(super) fn apply(&self, connection: &Connection) -> rusqlite::Result<()> {
        connection.execute(TELL, [self.epoch]).map(drop)
    }
}

/// An interrupted request goes back to waiting, or ends as failed with one line for the user.
#[derive(Debug, Clone)]
pub struct ReviveRequest {
    pub event_seq: i64,
    /// `Waiting` or `Failed`.
    pub to: Status,
    pub reason: Option<String>,
    /// Of one that failed: what is known of it.
    pub trace: Option<String>,
    pub delivery: Option<super::NewDelivery>,
    pub at: i64,
    pub epoch: i64,
}

impl ReviveRequest {
    pub(super) fn apply(&self, connection: &Connection) -> rusqlite::Result<Claim> {
        let completed = self.to.is_terminal().then_some(self.at);
        let sql = "UPDATE nexus_requests SET status = ?2, reason = ?3, completed_at = ?4, epoch = ?5, trace = ?6
                   WHERE event_seq = ?1 AND status = 'interrupted'";
        let row = (self.event_seq, self.to.as_str(), &self.reason, completed, self.epoch, &self.trace);
        let changed = connection.prepare_cached(sql)?.execute(row)?;
        if changed == 0 {
            return Ok(Claim::Lost);
        }
        if self.to == Status::Waiting {
            connection.prepare_cached(TAKE_BACK)?.execute(params![self.event_seq, self.at, self.epoch])?;
        }
        if let Some(delivery) = &self.delivery {
            delivery.insert(connection, self.epoch)?;
        }
        Ok(Claim::Done)
    }
}

/// Forgets traces and the texts of finished runs that are old, whose rows themselves stay, old rows of the audit, and
/// what automations said about events whose requests have ended long ago.
#[derive(Debug, Clone)]
pub struct Prune {
    /// Unix ms: traces of requests that ended before are dropped.
    pub traces_before: i64,
    /// Unix ms: turn texts of runs that ended before are dropped once the agents ledger has them; those of
    /// interrupted runs it never gets. So is what automations said before.
    pub snapshots_before: i64,
    pub applied_finish_seq: i64,
    /// Unix ms: decisions that were made before are dropped.
    pub audit_before: i64,
    pub rows_max: u32,
}

impl Prune {
    /// How many rows were lightened or removed; as many as `rows_max` means that more may be left.
    pub(super) fn apply(&self, connection: &Connection) -> rusqlite::Result<u64> {
        let traces = connection.execute(DROP_TRACES, params![self.traces_before, self.rows_max])?;
        let turns = connection.execute(DROP_TURNS, params![self.snapshots_before, self.applied_finish_seq, self.rows_max])?;
        let audit = connection.execute(DROP_AUDIT, params![self.audit_before, self.rows_max])?;
        let results = connection.execute(DROP_RESULTS, params![self.snapshots_before, self.rows_max])?;
        Ok((traces + turns + audit + results) as u64)
    }
}

impl Weight for BeginEpoch {}
impl Weight for ToldCutOff {}

impl Weight for ReviveRequest {
    fn bytes(&self) -> usize {
        let trace = self.trace.as_ref().map_or(0, String::len);
        256 + trace + self.delivery.as_ref().map_or(0, |delivery| delivery.content.len() + 256)
    }
}

impl Weight for Prune {
    fn rows(&self) -> usize {
        1024 // a transaction of its own
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::{
        Admit, AdmitRow, ClaimDelivery, Fellow, FellowEnd, FinishRun, InterruptRun, JoinRun, SettleDelivery, Settled, StartRun,
        cut_off_sends, finished_after, request_by_event, run_turn, uncertain_deliveries,
    };
    use super::*;

    const TURN: &str = r#"{"turn_id":"turn_1","request_id":"req_1","session":"s","agent":"a","user":"hello","assistant":"half",
        "model":null,"provider":null,"stop_reason":"aborted","input_tokens":null,"output_tokens":null,"started_at":2,"duration_ms":3.0,
        "tool_calls":[]}"#;

    /// A ledger in its first epoch with one request whose agent runs.
    fn ledger() -> Connection {
        let connection = crate::samples::nexus_ledger();
        BeginEpoch { at: 1 }.apply(&connection).unwrap();
        let row = AdmitRow { conversation: "c".into(), ..crate::samples::row() };
        Admit { from_seq: 0, upto_seq: 1, rows: vec![row], epoch: 1 }.apply(&connection).unwrap();
        let run_id = "run_1".to_owned();
        let (agent, session) = ("a".to_owned(), "s".to_owned());
        let fellows = Vec::new();
        let start = StartRun { event_seq: 1, fellows, run_id, agent, session, acted: true, audit: None, at: 2, epoch: 1 };
        start.apply(&connection).unwrap();
        connection
    }

    fn interrupt(connection: &Connection) {
        let turn_json = Some(TURN.to_owned());
        let run_id = "run_1".to_owned();
        let interrupt = InterruptRun { event_seq: 1, fellows: Vec::new(), run_id, turn_json, stream: None, at: 5, epoch: 1 };
        let done = interrupt.apply(connection).unwrap();
        assert_eq!(done, Claim::Done);
    }

    #[test]
    fn no_start_and_no_pruning_reads_a_whole_table() {
        let connection = ledger();
        let all =
            [MARK_SENDS, NONE_TO_TELL, MARK_RUNS, MARK_REQUESTS, INTERRUPTED, TAKE_BACK, DROP_TRACES, DROP_TURNS, DROP_AUDIT, DROP_RESULTS];
        for sql in all {
            for step in crate::samples::plan(&connection, sql) {
                assert!(!step.starts_with("SCAN") || step.contains("USING INDEX"), "{step} in {sql}");
            }
        }
    }

    #[test]
    fn a_send_is_found_cut_off_by_each_start_until_it_is_told() {
        let connection = ledger();
        let claim = |delivery_id: &str, epoch: i64| {
            crate::samples::delivery(delivery_id).insert(&connection, epoch).unwrap();
            let claim = ClaimDelivery { delivery_id: delivery_id.to_owned(), at: 3, epoch };
            assert_eq!(claim.apply(&connection).unwrap(), Claim::Done);
        };
        let begin = |at: i64| {
            let epoch = BeginEpoch { at }.apply(&connection).unwrap().epoch;
            (epoch, uncertain_deliveries(&connection).unwrap().len(), cut_off_sends(&connection).unwrap().len())
        };
        claim("cut off", 1);
        assert_eq!(begin(10), (2, 1, 1));
        assert_eq!(begin(20), (3, 1, 1), "the daemon before ended before it had told it");
        ToldCutOff { epoch: 3 }.apply(&connection).unwrap();
        assert_eq!(begin(30), (4, 1, 0));
        claim("settled", 4);
        let settled = Settled::Uncertain { error: "nobody knows".to_owned() };
        let settle = SettleDelivery { delivery_id: "settled".to_owned(), settled, at: 31, epoch: 4 };
        assert_eq!(settle.apply(&connection).unwrap(), Claim::Done);
        assert_eq!(begin(40), (5, 2, 0), "the daemon that saw it end told it");
        claim("again", 5);
        assert_eq!(begin(50), (6, 3, 1));
    }

    #[test]
    fn what_was_said_before_a_graceful_stop_is_kept_and_is_no_turn() {
        let connection = ledger();
        interrupt(&connection);
        let begun = BeginEpoch { at: 9 }.apply(&connection).unwrap();
        let [one] = begun.interrupted.as_slice() else { panic!("{begun:?}") };
        assert_eq!((one.attempts, one.started_at, one.stopped_at, one.acted), (1, Some(2), Some(5), true));
        assert_eq!(run_turn(&connection, "run_1").unwrap().unwrap().assistant, "half");
        assert_eq!(finished_after(&connection, 0, 10).unwrap().0, 0, "the agents ledger must not get it");
    }

    /// A ledger in its first epoch with two requests that share a run.
    fn collected() -> Connection {
        let connection = crate::samples::nexus_ledger();
        BeginEpoch { at: 1 }.apply(&connection).unwrap();
        let row = |seq: i64| AdmitRow { event_seq: seq, request_id: format!("req_{seq}"), ..crate::samples::row() };
        Admit { from_seq: 0, upto_seq: 2, rows: vec![row(1), row(2)], epoch: 1 }.apply(&connection).unwrap();
        assert_eq!(start(&connection, "run_1", 1), Claim::Done);
        connection
    }

    fn start(connection: &Connection, run_id: &str, epoch: i64) -> Claim {
        let (run_id, agent, session) = (run_id.to_owned(), "a".to_owned(), "s".to_owned());
        let fellows = vec![Fellow { event_seq: 1, audit: None }];
        StartRun { event_seq: 2, fellows, run_id, agent, session, acted: false, audit: None, at: 2, epoch }.apply(connection).unwrap()
    }

    fn finish(connection: &Connection, run_id: &str, epoch: i64) -> Option<i64> {
        let fellow = FellowEnd { event_seq: 1, reason: Some("collected".to_owned()), trace: "{}".to_owned() };
        let finish = FinishRun {
            event_seq: 2,
            fellows: vec![fellow],
            run_id: run_id.to_owned(),
            ok: true,
            is_aborted: false,
            status: Status::Completed,
            reason: None,
            turn_json: None,
            deliveries: Vec::new(),
            stream: None,
            wait: None,
            trace: "{}".to_owned(),
            at: 3,
            epoch,
        };
        finish.apply(connection).unwrap()
    }

    fn ends(connection: &Connection) -> Vec<(String, u32)> {
        let row = |seq| request_by_event(connection, seq).unwrap().unwrap();
        [1, 2].map(|seq| (row(seq).status, row(seq).attempts)).to_vec()
    }

    #[test]
    fn requests_that_share_a_run_end_with_it_once() {
        let connection = collected();
        assert_eq!(start(&connection, "run_1", 1), Claim::Done, "the same claim, once more");
        assert_eq!(start(&connection, "run_2", 1), Claim::Lost);
        assert_eq!(finish(&connection, "run_1", 1), Some(1));
        assert_eq!(finish(&connection, "run_1", 1), Some(1), "the same end, once more");
        assert_eq!(ends(&connection), [("completed".to_owned(), 1), ("completed".to_owned(), 1)]);
        assert!(BeginEpoch { at: 9 }.apply(&connection).unwrap().interrupted.is_empty());
    }

    #[test]
    fn requests_that_share_a_run_are_interrupted_and_run_again_together() {
        let connection = collected();
        let begun = BeginEpoch { at: 9 }.apply(&connection).unwrap();
        let runs: Vec<_> = begun.interrupted.iter().map(|one| (one.event_seq, one.run_id.as_deref())).collect();
        assert_eq!(runs, [(1, Some("run_1")), (2, Some("run_1"))]);
        assert_eq!(finish(&connection, "run_1", 1), None, "a former daemon's run");
        for event_seq in [1, 2] {
            let revive = ReviveRequest { event_seq, to: Status::Waiting, reason: None, trace: None, delivery: None, at: 9, epoch: 2 };
            assert_eq!(revive.apply(&connection).unwrap(), Claim::Done);
        }
        assert_eq!(start(&connection, "run_2", 2), Claim::Done);
        assert_eq!(finish(&connection, "run_2", 2), Some(1));
        assert_eq!(ends(&connection), [("completed".to_owned(), 2), ("completed".to_owned(), 2)]);
    }

    /// As [`collected`], with a third request that waits.
    fn with_one_more() -> Connection {
        let connection = collected();
        let row = AdmitRow { event_seq: 3, request_id: "req_3".into(), ..crate::samples::row() };
        Admit { from_seq: 2, upto_seq: 3, rows: vec![row], epoch: 1 }.apply(&connection).unwrap();
        connection
    }

    fn join(connection: &Connection, event_seq: i64, run_id: &str, epoch: i64) -> Claim {
        JoinRun { event_seq, run_id: run_id.to_owned(), audit: None, at: 3, epoch }.apply(connection).unwrap()
    }

    #[test]
    fn a_request_joins_a_run_under_way_once_and_is_interrupted_with_it() {
        let connection = with_one_more();
        assert_eq!(join(&connection, 3, "run_2", 1), Claim::Lost, "there is no such run");
        assert_eq!(join(&connection, 3, "run_1", 0), Claim::Lost, "a former daemon");
        assert_eq!(join(&connection, 3, "run_1", 1), Claim::Done);
        assert_eq!(join(&connection, 3, "run_1", 1), Claim::Done, "the same, once more");
        let joined = request_by_event(&connection, 3).unwrap().unwrap();
        assert_eq!((joined.status.as_str(), joined.attempts), ("processing", 1));
        assert_eq!((joined.session.as_deref(), joined.agent.as_deref()), (Some("s"), Some("a")));
        let begun = BeginEpoch { at: 9 }.apply(&connection).unwrap();
        let runs: Vec<_> = begun.interrupted.iter().map(|one| (one.event_seq, one.run_id.as_deref())).collect();
        assert_eq!(runs, [(1, Some("run_1")), (2, Some("run_1")), (3, Some("run_1"))]);
        assert_eq!(join(&connection, 3, "run_1", 2), Claim::Lost, "it is no daemon's run any more");
    }

    #[test]
    fn no_request_joins_a_run_that_is_over_or_two_runs() {
        let connection = with_one_more();
        assert_eq!(finish(&connection, "run_1", 1), Some(1));
        assert_eq!(join(&connection, 3, "run_1", 1), Claim::Lost);
        assert_eq!(join(&connection, 1, "run_1", 1), Claim::Lost, "it has its end");
        let waiting = request_by_event(&connection, 3).unwrap().unwrap();
        assert_eq!((waiting.status.as_str(), waiting.attempts), ("waiting", 0));
    }

    #[test]
    fn a_run_takes_all_of_its_requests_or_none() {
        let connection = collected();
        let torn = "UPDATE runs SET status = 'interrupted'; UPDATE nexus_requests SET status = 'waiting' WHERE event_seq = 2";
        connection.execute_batch(torn).unwrap();
        assert_eq!(start(&connection, "run_2", 1), Claim::Lost);
        assert_eq!(ends(&connection), [("processing".to_owned(), 1), ("waiting".to_owned(), 1)]);
    }

    #[test]
    fn nobody_says_when_a_killed_run_ended() {
        let connection = ledger();
        let begun = BeginEpoch { at: 9 }.apply(&connection).unwrap();
        assert_eq!((begun.interrupted[0].started_at, begun.interrupted[0].stopped_at), (Some(2), None));
        assert!(run_turn(&connection, "run_1").unwrap().is_none());
    }

    #[test]
    fn a_request_that_is_given_up_has_a_trace_and_keeps_its_end() {
        let connection = ledger();
        interrupt(&connection);
        let epoch = BeginEpoch { at: 9 }.apply(&connection).unwrap().epoch;
        let revive = |to: Status, trace: &str| {
            let (reason, trace) = (Some("why".to_owned()), Some(trace.to_owned()));
            ReviveRequest { event_seq: 1, to, reason, trace, delivery: None, at: 9, epoch }.apply(&connection).unwrap()
        };
        assert_eq!(revive(Status::Failed, r#"{"n":1}"#), Claim::Done);
        assert_eq!(revive(Status::Waiting, r#"{"n":2}"#), Claim::Lost);
        let request = request_by_event(&connection, 1).unwrap().unwrap();
        assert_eq!((request.status.as_str(), request.attempts), ("failed", 1));
        assert_eq!(request.trace, Some(serde_json::json!({ "n": 1 })));
    }

    #[test]
    fn the_text_of_an_interrupted_run_is_forgotten_in_time() {
        let connection = ledger();
        interrupt(&connection);
        let prune = |snapshots_before| Prune { traces_before: 0, snapshots_before, applied_finish_seq: 0, audit_before: 0, rows_max: 10 };
        assert_eq!(prune(5).apply(&connection).unwrap(), 0);
        assert_eq!(prune(6).apply(&connection).unwrap(), 1);
        assert!(run_turn(&connection, "run_1").unwrap().is_none());
    }
}
