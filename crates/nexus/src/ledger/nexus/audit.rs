//! Who was let in or denied, and why: a row for each decision of stage 3, written in the transaction of what
//! followed from it. It never decides.

use rusqlite::{Connection, Row, params};
use serde::Serialize;

/// Decisions that are counted as left out of a list; of more it is only said that there are so many.
pub const LEFT_OUT_MAX: u64 = 10_000;

/// One decision, on its way into the ledger with the commit that acts on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Audit {
    pub request_id: String,
    pub channel: String,
    pub account_id: String,
    pub sender_id: String,
    /// The principal's type.
    pub principal: &'static str,
    pub entity_id: Option<String>,
    /// `allow` or `deny`.
    pub decision: &'static str,
    /// The policy that decided.
    pub policy: Option<String>,
    /// The sentence that decided.
    pub reason: String,
}

impl Audit {
    /// The request's row. A request that is decided about again, since a crash came between, has the last decision.
    pub(super) fn insert(&self, connection: &Connection, event_seq: i64, at: i64) -> rusqlite::Result<()> {
        let sql = "INSERT INTO access_audit VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11) ON CONFLICT (event_seq) DO UPDATE SET
                     at = ?2, principal = ?7, entity_id = ?8, decision = ?9, policy = ?10, reason = ?11";
        let row = params![
            event_seq,
            at,
            self.request_id,
            self.channel,
            self.account_id,
            self.sender_id,
            self.principal,
            self.entity_id,
            self.decision,
            self.policy,
            self.reason
        ];
        connection.prepare_cached(sql)?.execute(row).map(drop)
    }

    pub(super) fn bytes(&self) -> usize {
        let Self { request_id, channel, account_id, sender_id, entity_id, policy, reason, .. } = self;
        let given = [request_id, channel, account_id, sender_id, reason].into_iter().chain(entity_id).chain(policy);
        given.map(String::len).sum::<usize>() + 64
    }
}

/// Which decisions to list.
#[derive(Debug, Clone, Default)]
pub struct AuditQuery {
    pub limit: usize,
    pub denied_only: bool,
    /// Only those about this sender: a channel and an id there.
    pub sender: Option<(String, String)>,
    /// Only those from then on, in Unix ms.
    pub since: Option<i64>,
    /// Those about the timer too. It is asked about every minute; without this they are in the list only if it is
    /// narrowed to denials or to one sender.
    pub all: bool,
}

impl AuditQuery {
    fn leaves_out_the_timer(&self) -> bool {
        !self.all && !self.denied_only && self.sender.is_none()
    }

    /// With a sender or a time the rows are found by an index, else read from the end: never the whole table for
    /// a few.
    fn list_sql(&self) -> String {
        let sender = if self.sender.is_some() { "channel = ?1 AND sender_id = ?2" } else { "?1 IS NULL AND ?2 IS NULL" };
        let (since, order) = match self.since {
            Some(_) => ("at >= ?3", "at DESC, event_seq DESC"),
            None => ("?3 IS NULL", "event_seq DESC"),
        };
        let denied = if self.denied_only { " AND decision = 'deny'" } else { "" };
        let people = if self.leaves_out_the_timer() { " AND principal <> 'system'" } else { "" };
        format!(
            "SELECT event_seq, at, request_id, channel, account_id, sender_id, principal, entity_id, decision, policy, reason
             FROM access_audit WHERE {sender} AND {since}{denied}{people} ORDER BY {order} LIMIT ?4"
        )
    }
}

/// A decision as it was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct AuditRow {
    pub event_seq: i64,
    /// When what followed from it was committed, in Unix ms.
    pub at: i64,
    pub request_id: String,
    pub channel: String,
    pub account_id: String,
    pub sender_id: String,
    pub principal: String,
    pub entity_id: Option<String>,
    pub decision: String,
    pub policy: Option<String>,
    pub reason: String,
}

/// The newest decisions, newest first.
pub fn audit(connection: &Connection, query: &AuditQuery) -> rusqlite::Result<Vec<AuditRow>> {
    let (channel, sender_id) = query.sender.as_ref().map(|(channel, sender_id)| (channel, sender_id)).unzip();
    let asked = params![channel, sender_id, query.since, query.limit];
    connection.prepare_cached(&query.list_sql())?.query_map(asked, row)?.collect()
}

/// How many decisions about the timer the list `listed` leaves out: those as new as its oldest row, or all if there was
/// room for more. No more than [`LEFT_OUT_MAX`] are counted.
pub fn left_out(connection: &Connection, query: &AuditQuery, listed: &[AuditRow]) -> rusqlite::Result<u64> {
    if !query.leaves_out_the_timer() {
        return Ok(0);
    }
    let oldest = listed.iter().map(|row| row.event_seq).min().filter(|_| listed.len() >= query.limit);
    let since = if query.since.is_some() { "at >= ?1" } else { "?1 IS NULL" };
    let sql =
        format!("SELECT count(*) FROM (SELECT 1 FROM access_audit WHERE {since} AND principal = 'system' AND event_seq >= ?2 LIMIT ?3)");
    connection.prepare_cached(&sql)?.query_row(params![query.since, oldest.unwrap_or(0), LEFT_OUT_MAX], |row| row.get(0))
}

fn row(row: &Row<'_>) -> rusqlite::Result<AuditRow> {
    Ok(AuditRow {
        event_seq: row.get(0)?,
        at: row.get(1)?,
        request_id: row.get(2)?,
        channel: row.get(3)?,
        account_id: row.get(4)?,
        sender_id: row.get(5)?,
        principal: row.get(6)?,
        entity_id: row.get(7)?,
        decision: row.get(8)?,
        policy: row.get(9)?,
        reason: row.get(10)?,
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::{Admit, AdmitRow, BeginEpoch, Claim, Fellow, InterruptRun, Prune, SettleRequest, StartRun};
    use super::*;
    use nexus_core::request::Status;

    fn decided(decision: &'static str, reason: &str) -> Option<Audit> {
        Some(Audit {
            request_id: "req_1".to_owned(),
            channel: "fake".to_owned(),
            account_id: "me".to_owned(),
            sender_id: "u".to_owned(),
            principal: "unknown",
            entity_id: None,
            decision,
            policy: None,
            reason: reason.to_owned(),
        })
    }

    /// A ledger in its first epoch with so many requests that wait.
    fn ledger(requests: i64) -> Connection {
        let connection = crate::samples::nexus_ledger();
        BeginEpoch { at: 1 }.apply(&connection).unwrap();
        let row = |event_seq: i64| AdmitRow { event_seq, request_id: format!("req_{event_seq}"), ..crate::samples::row() };
        let admit = Admit { from_seq: 0, upto_seq: requests, rows: (1..=requests).map(row).collect(), epoch: 1 };
        assert_eq!(admit.apply(&connection).unwrap(), Claim::Done);
        connection
    }

    fn start(connection: &Connection, event_seq: i64, run_id: &str, at: i64, epoch: i64) -> Claim {
        start_with(connection, event_seq, Vec::new(), run_id, at, epoch)
    }

    fn start_with(connection: &Connection, event_seq: i64, fellows: Vec<Fellow>, run_id: &str, at: i64, epoch: i64) -> Claim {
        let (run_id, agent, session) = (run_id.to_owned(), "a".to_owned(), "s".to_owned());
        let audit = decided("allow", "first");
        StartRun { event_seq, fellows, run_id, agent, session, acted: false, audit, at, epoch }.apply(connection).unwrap()
    }

    fn deny(connection: &Connection, event_seq: i64, at: i64, epoch: i64) -> Claim {
        let (status, reason, trace) = (Status::Denied, None, String::new());
        let (audit, deliveries) = (decided("deny", "second"), Vec::new());
        SettleRequest { event_seq, status, stage: "resolveAccess", reason, trace, audit, deliveries, at, epoch }.apply(connection).unwrap()
    }

    #[test]
    fn no_list_reads_the_whole_table() {
        let connection = ledger(0);
        let of = |denied_only: bool, sender: bool, since: bool, all: bool| {
            let sender = sender.then(|| ("fake".to_owned(), "u".to_owned()));
            let query = AuditQuery { limit: 10, denied_only, sender, since: since.then_some(1), all };
            crate::samples::plan(&connection, &query.list_sql()).join("; ")
        };
        for (denied_only, all) in [(false, false), (false, true), (true, false)] {
            for since in [false, true] {
                let plan = of(denied_only, true, since, all);
                assert!(plan.contains("audit_by_sender"), "{plan}");
            }
            let plan = of(denied_only, false, true, all);
            assert!(plan.contains("audit_age"), "{plan}");
        }
        let plan = of(false, false, false, false);
        assert!(plan.contains("audit_people") && !plan.contains("TEMP B-TREE"), "{plan}");
        let plan = of(false, false, false, true);
        assert!(!plan.contains("TEMP B-TREE"), "read from the end: {plan}");
    }

    #[test]
    fn the_timers_are_left_out_and_counted_unless_they_are_asked_for() {
        let connection = ledger(6);
        for seq in [1, 2, 4, 6] {
            deny(&connection, seq, seq * 10, 1);
        }
        for seq in [3, 5] {
            start(&connection, seq, &format!("run_{seq}"), seq * 10, 1);
        }
        connection.execute("UPDATE access_audit SET principal = 'system', decision = 'allow' WHERE event_seq IN (1, 2, 4, 6)", []).unwrap();
        let asked = |query: &AuditQuery| -> (Vec<i64>, u64) {
            let rows = audit(&connection, query).unwrap();
            let left_out = left_out(&connection, query, &rows).unwrap();
            (rows.into_iter().map(|row| row.event_seq).collect(), left_out)
        };
        let some = || AuditQuery { limit: 10, ..AuditQuery::default() };
        assert_eq!(asked(&some()), (vec![5, 3], 4));
        assert_eq!(asked(&AuditQuery { limit: 1, ..some() }), (vec![5], 1), "those that would have been among them");
        assert_eq!(asked(&AuditQuery { since: Some(40), ..some() }), (vec![5], 2));
        assert_eq!(asked(&AuditQuery { all: true, ..some() }), (vec![6, 5, 4, 3, 2, 1], 0));
        let sender = Some(("fake".to_owned(), "u".to_owned()));
        assert_eq!(asked(&AuditQuery { sender, limit: 3, ..some() }), (vec![6, 5, 4], 0));
        connection.execute("UPDATE access_audit SET decision = 'deny' WHERE event_seq = 2", []).unwrap();
        assert_eq!(asked(&AuditQuery { denied_only: true, ..some() }), (vec![2], 0));
    }

    fn all(connection: &Connection) -> Vec<(i64, i64, String)> {
        let rows = audit(connection, &AuditQuery { limit: 100, ..AuditQuery::default() }).unwrap();
        rows.into_iter().map(|row| (row.event_seq, row.at, row.reason)).collect()
    }

    #[test]
    fn a_request_has_one_row_however_often_it_is_written() {
        let connection = ledger(2);
        assert_eq!((start(&connection, 1, "run_1", 10, 1), start(&connection, 1, "run_1", 10, 1)), (Claim::Done, Claim::Done));
        assert_eq!((deny(&connection, 2, 11, 1), deny(&connection, 2, 11, 1)), (Claim::Done, Claim::Done));
        let rows = vec![(2, 11, "second".to_owned()), (1, 10, "first".to_owned())];
        assert_eq!(all(&connection), rows);
        assert_eq!(deny(&connection, 1, 12, 1), Claim::Lost, "it runs");
        assert_eq!(start(&connection, 2, "run_2", 12, 1), Claim::Lost, "it was denied");
        assert_eq!(all(&connection), rows, "who loses decides nothing");
    }

    #[test]
    fn each_request_that_shares_a_run_has_its_own_row() {
        let connection = ledger(3);
        let fellows = || [1, 2].map(|event_seq| Fellow { event_seq, audit: decided("allow", "fellow") }).to_vec();
        let start = |run_id: &str, at: i64| start_with(&connection, 3, fellows(), run_id, at, 1);
        assert_eq!((start("run_1", 10), start("run_1", 11)), (Claim::Done, Claim::Done));
        let rows = vec![(3, 10, "first".to_owned()), (2, 10, "fellow".to_owned()), (1, 10, "fellow".to_owned())];
        assert_eq!(all(&connection), rows);
        assert_eq!(start("run_2", 12), Claim::Lost);
        assert_eq!(all(&connection), rows, "all of them or none");
    }

    #[test]
    fn after_an_interruption_the_last_decision_stands() {
        let connection = ledger(1);
        start(&connection, 1, "run_1", 10, 1);
        let (run_id, fellows) = ("run_1".to_owned(), Vec::new());
        InterruptRun { event_seq: 1, fellows, run_id, turn_json: None, stream: None, at: 11, epoch: 1 }.apply(&connection).unwrap();
        BeginEpoch { at: 12 }.apply(&connection).unwrap();
        assert_eq!(deny(&connection, 1, 13, 1), Claim::Lost, "a former daemon");
        assert_eq!(deny(&connection, 1, 14, 2), Claim::Done);
        assert_eq!(all(&connection), [(1, 14, "second".to_owned())]);
    }

    #[test]
    fn questions_narrow_and_old_rows_go() {
        let connection = ledger(4);
        start(&connection, 1, "run_1", 10, 1);
        deny(&connection, 2, 20, 1);
        deny(&connection, 3, 30, 1);
        let asked = |query: AuditQuery| -> Vec<i64> { audit(&connection, &query).unwrap().into_iter().map(|row| row.event_seq).collect() };
        let some = || AuditQuery { limit: 10, ..AuditQuery::default() };
        let of = |sender: &str| Some(("fake".to_owned(), sender.to_owned()));
        assert_eq!(asked(AuditQuery { denied_only: true, ..some() }), [3, 2]);
        assert_eq!(asked(AuditQuery { limit: 1, ..some() }), [3]);
        assert_eq!(asked(AuditQuery { since: Some(20), ..some() }), [3, 2]);
        assert_eq!(asked(AuditQuery { sender: of("u"), since: Some(10), ..some() }), [3, 2, 1]);
        assert!(asked(AuditQuery { sender: of("v"), ..some() }).is_empty());
        let prune = Prune { traces_before: 0, snapshots_before: 0, applied_finish_seq: 0, audit_before: 30, rows_max: 10 };
        assert_eq!((prune.apply(&connection).unwrap(), prune.apply(&connection).unwrap()), (2, 0));
        assert_eq!(asked(some()), [3]);
    }
}
