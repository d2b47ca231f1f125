//! Which session of an ACP agent's own belongs to which of ours, and what it has heard of it. A
//! convenience: where there is none that fits, the agent is told what was said before.

use crate::ledger::optional;
use crate::ledger::writer::Weight;
use rusqlite::{Connection, params};

/// Sessions of one agent that are kept; the one that was used longest ago makes room.
const SESSIONS_MAX: i64 = 1024;

/// Notes that the agent's own session of a label is about to hear a turn. A later note wins.
#[derive(Debug, Clone)]
pub struct KeepAcpSession {
    pub agent: String,
    pub label: String,
    pub session_id: String,
    pub turn_id: String,
    /// The turn before it.
    pub parent_turn_id: Option<String>,
}

impl KeepAcpSession {
    pub(super) fn apply(&self, connection: &Connection) -> rusqlite::Result<()> {
        let sql = "INSERT INTO acp_sessions (agent, label, session_id, turn_id, parent_turn_id) VALUES (?1, ?2, ?3, ?4, ?5)
                   ON CONFLICT (agent, label) DO UPDATE SET session_id = ?3, turn_id = ?4, parent_turn_id = ?5";
        let Self { agent, label, session_id, turn_id, parent_turn_id } = self;
        connection.prepare_cached(sql)?.execute(params![agent, label, session_id, turn_id, parent_turn_id])?;
        let sql = "SELECT count(*) FROM acp_sessions WHERE agent = ?1";
        let kept: i64 = connection.prepare_cached(sql)?.query_row([agent], |row| row.get(0))?;
        if kept <= SESSIONS_MAX {
            return Ok(());
        }
        // Ids of turns sort by when they were made.
        let sql = "DELETE FROM acp_sessions WHERE agent = ?1 AND label IN (
                     SELECT label FROM acp_sessions WHERE agent = ?1 ORDER BY turn_id DESC LIMIT -1 OFFSET ?2)";
        connection.prepare_cached(sql)?.execute(params![agent, SESSIONS_MAX]).map(drop)
    }
}

impl Weight for KeepAcpSession {}

/// The agent's own session of a label, if it has heard all turns up to `head`, and no others. A turn that it
/// heard and that has no place in the ledger, since its run was interrupted, does no harm.
pub fn acp_session(connection: &Connection, agent: &str, label: &str, head: Option<&str>) -> rusqlite::Result<Option<String>> {
    let sql = "SELECT session_id FROM acp_sessions a WHERE agent = ?1 AND label = ?2 AND (turn_id = ?3
                 OR (parent_turn_id IS ?3 AND NOT EXISTS (SELECT 1 FROM turns t WHERE t.turn_id = a.turn_id)))";
    optional(connection.prepare_cached(sql)?.query_row(params![agent, label, head], |row| row.get(0)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::super::ApplyTurns;
    use super::super::tests::{ledger, turn};
    use super::*;

    fn keep(connection: &Connection, session_id: &str, turn_id: &str, parent: Option<&str>) {
        let [agent, label, session_id, turn_id] = ["a", "dm:me", session_id, turn_id].map(str::to_owned);
        KeepAcpSession { agent, label, session_id, turn_id, parent_turn_id: parent.map(str::to_owned) }.apply(connection).unwrap();
    }

    #[test]
    fn the_last_note_wins_however_often_it_is_written() {
        let connection = ledger();
        assert_eq!(acp_session(&connection, "a", "dm:me", None).unwrap(), None);
        keep(&connection, "s1", "t1", None);
        keep(&connection, "s2", "t2", Some("t1"));
        keep(&connection, "s2", "t2", Some("t1"));
        assert_eq!(acp_session(&connection, "a", "dm:me", Some("t2")).unwrap().as_deref(), Some("s2"));
        assert_eq!(acp_session(&connection, "b", "dm:me", Some("t2")).unwrap(), None);
        assert_eq!(acp_session(&connection, "a", "dm:you", Some("t2")).unwrap(), None);
    }

    #[test]
    fn of_many_sessions_those_used_last_are_kept_of_each_agent() {
        let connection = ledger();
        let note = |agent: &str, n: i64| {
            let (agent, turn_id) = (agent.to_owned(), format!("turn_{n:08}"));
            let (label, session_id) = (format!("dm:{n}"), format!("s{n}"));
            KeepAcpSession { agent, label, session_id, turn_id, parent_turn_id: None }.apply(&connection).unwrap();
        };
        note("b", 1);
        (1..=SESSIONS_MAX + 3).for_each(|n| note("a", n));
        let kept = |agent: &str| {
            let sql = "SELECT count(*), min(turn_id) FROM acp_sessions WHERE agent = ?1";
            connection.query_row(sql, [agent], |row| Ok((row.get::<_, i64>(0)?, row.get::<_, String>(1)?))).unwrap()
        };
        assert_eq!(kept("a"), (SESSIONS_MAX, "turn_00000004".to_owned()));
        assert_eq!(kept("b"), (1, "turn_00000001".to_owned()));
    }

    #[test]
    fn a_session_that_missed_a_turn_or_heard_others_does_not_fit() {
        let connection = ledger();
        let found = |head: Option<&str>| acp_session(&connection, "a", "dm:me", head).unwrap();
        keep(&connection, "s1", "t1", None);
        assert_eq!(found(None).as_deref(), Some("s1"), "the run of the first turn was interrupted");
        ApplyTurns { upto_finish_seq: 1, turns: vec![turn("t1", "dm:me")] }.apply(&connection).unwrap();
        assert_eq!(found(None), None, "the label was archived, and begins anew");
        assert_eq!(found(Some("t1")).as_deref(), Some("s1"));
        keep(&connection, "s1", "t2", Some("t1"));
        assert_eq!(found(Some("t1")).as_deref(), Some("s1"), "the run of the second turn was interrupted");
        assert_eq!(found(Some("t3")), None, "another agent answered in between");
    }
}
