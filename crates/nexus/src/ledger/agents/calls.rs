//! What plugins and automations used of models beside all turns: a row per call, written once it is over. It decides
//! nothing; what may be used, others compare with it.

use super::super::writer::Weight;
use nexus_core::spend::Amount;
use rusqlite::{Connection, params};

/// What one call of a model used.
#[derive(Debug, Clone)]
pub struct RecordCall {
    pub call_id: String,
    /// `plugin:NAME` or `automation:NAME`.
    pub caller: String,
    /// Whose model it was, and whose day it counts for.
    pub agent: String,
    pub request_id: Option<String>,
    pub input_tokens: u64,
    pub output_tokens: u64,
    pub estimated: bool,
    pub cost_usd: Option<f64>,
    /// Unix milliseconds.
    pub started_at: i64,
}

impl RecordCall {
    /// Once, however often it is repeated.
    pub(super) fn apply(&self, connection: &Connection) -> rusqlite::Result<()> {
        let sql = "INSERT INTO calls (call_id, caller, agent, request_id, input_tokens, output_tokens, estimated, cost_usd, started_at)
                   VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9) ON CONFLICT (call_id) DO NOTHING";
        let row = params![
            self.call_id,
            self.caller,
            self.agent,
            self.request_id,
            self.input_tokens,
            self.output_tokens,
            self.estimated,
            self.cost_usd,
            self.started_at
        ];
        connection.prepare_cached(sql)?.execute(row).map(drop)
    }
}

impl Weight for RecordCall {}

/// Removes calls that no day's budget is counted from any more.
#[derive(Debug, Clone)]
pub struct PruneCalls {
    /// Unix milliseconds.
    pub before: i64,
    pub rows_max: u32,
}

impl PruneCalls {
    /// How many were removed.
    pub(super) fn apply(&self, connection: &Connection) -> rusqlite::Result<usize> {
        let sql = "DELETE FROM calls WHERE call_id IN (SELECT call_id FROM calls WHERE started_at < ?1 LIMIT ?2)";
        connection.prepare_cached(sql)?.execute(params![self.before, self.rows_max])
    }
}

impl Weight for PruneCalls {}

/// What a caller has used since a moment in Unix milliseconds. A call counts for the day on which it began.
pub fn called(connection: &Connection, caller: &str, since: i64) -> rusqlite::Result<Amount> {
    let sql = "SELECT coalesce(sum(input_tokens + output_tokens), 0), coalesce(sum(cost_usd), 0.0)
               FROM calls WHERE caller = ?1 AND started_at >= ?2";
    connection.prepare_cached(sql)?.query_row(params![caller, since], |row| Ok(Amount { tokens: row.get(0)?, usd: row.get(1)? }))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::tests::ledger;
    use super::super::{ApplyTurns, used_in_session, used_since};
    use super::*;

    fn call(id: &str, caller: &str, agent: &str, at: i64) -> RecordCall {
        RecordCall {
            call_id: id.to_owned(),
            caller: caller.to_owned(),
            agent: agent.to_owned(),
            request_id: None,
            input_tokens: 10,
            output_tokens: 3,
            estimated: false,
            cost_usd: (agent == "model").then_some(0.5),
            started_at: at,
        }
    }

    #[test]
    fn old_calls_are_removed_some_at_a_time_and_the_others_count_on() {
        let connection = ledger();
        (1..=5).for_each(|at| call(&format!("c{at}"), "plugin:a", "model", at).apply(&connection).unwrap());
        let prune = || PruneCalls { before: 4, rows_max: 2 }.apply(&connection).unwrap();
        assert_eq!([prune(), prune(), prune()], [2, 1, 0]);
        assert_eq!(called(&connection, "plugin:a", 0).unwrap().tokens, 26);
    }

    #[test]
    fn a_call_counts_once_for_its_caller_and_for_its_agent() {
        let connection = ledger();
        for one in [
            call("c1", "plugin:a", "model", 1),
            call("c2", "plugin:a", "model", 5),
            call("c2", "plugin:a", "model", 5),
            call("c3", "plugin:a", "free", 6),
            call("c4", "automation:a", "model", 7),
        ] {
            one.apply(&connection).unwrap();
        }
        let used = |caller: &str, since: i64| called(&connection, caller, since).unwrap();
        assert_eq!(used("plugin:a", 5), Amount { tokens: 26, usd: 0.5 }, "the repetition counts nothing, yesterday's neither");
        assert_eq!(used("automation:a", 0), Amount { tokens: 13, usd: 0.5 });
        assert_eq!(used("plugin:b", 0), Amount::default());
        let mut turn = super::super::tests::turn("t1", "s");
        (turn.agent, turn.started_at) = ("model".to_owned(), 5);
        ApplyTurns { upto_finish_seq: 1, turns: vec![turn] }.apply(&connection).unwrap();
        assert_eq!(used_since(&connection, "model", 5).unwrap(), Amount { tokens: 28, usd: 1.0 });
        assert_eq!(used_in_session(&connection, "model", "s", None).unwrap().tokens, 2, "a call is in no session");
    }
}
