//! Identity promotion: a stranger's session goes on as that of the contact whom the sender turned out to
//! be. Part of the transaction of the first turn after that; repeating it changes nothing. It never decides
//! who is who.

use super::sessions::retire;
use rusqlite::{Connection, params};

/// Makes `formerly` another name of `label`, if there is a session of that name: one that has no turn of
/// its own takes over its newest turn, beside one that has, the former one stays as history.
pub(super) fn promote(connection: &Connection, formerly: &str, label: &str, at: i64) -> rusqlite::Result<()> {
    if formerly == label || !exists(connection, formerly)? {
        return Ok(());
    }
    if exists(connection, label)? {
        retire(connection, formerly, "promoted", Some(label), at)?;
    } else {
        connection.prepare_cached("UPDATE sessions SET label = ?2 WHERE label = ?1")?.execute([formerly, label])?;
        // What it was before, and what led to it, is this one's now.
        connection.prepare_cached("UPDATE session_aliases SET label = ?2 WHERE label = ?1")?.execute([formerly, label])?;
    }
    let alias = "INSERT INTO session_aliases VALUES (?1, ?2, ?3) ON CONFLICT (alias) DO UPDATE SET label = ?2, created_at = ?3";
    connection.prepare_cached(alias)?.execute(params![formerly, label, at]).map(drop)
}

/// An archived one is none: it is over, and stays so.
fn exists(connection: &Connection, label: &str) -> rusqlite::Result<bool> {
    connection.prepare_cached("SELECT 1 FROM sessions WHERE label = ?1 AND archived_at IS NULL")?.exists([label])
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::tests::{ledger, texts, turn};
    use super::super::{ApplyTurns, Reach, TurnRecord, history};
    use super::*;

    const KNOWN: &str = "dm:e1";
    const STRANGER: &str = "dm:sms:+1";

    fn apply(connection: &Connection, seq: i64, turn: TurnRecord) {
        ApplyTurns { upto_finish_seq: seq, turns: vec![turn] }.apply(connection).unwrap();
    }

    fn promoted(id: &str) -> TurnRecord {
        TurnRecord { formerly: Some(STRANGER.to_owned()), ..turn(id, KNOWN) }
    }

    fn said(connection: &Connection, label: &str, formerly: Option<&str>) -> Vec<String> {
        let told = history(connection, label, formerly, &Reach::All, 50, 1 << 20).unwrap();
        told.messages.into_iter().filter(|said| said.role == "user").map(|said| said.content).collect()
    }

    #[test]
    fn a_session_without_turns_takes_over_the_strangers() {
        let connection = ledger();
        apply(&connection, 1, turn("t1", STRANGER));
        assert_eq!(said(&connection, KNOWN, Some(STRANGER)), ["asked t1"], "the first turn must know what was said");
        apply(&connection, 2, promoted("t2"));
        apply(&connection, 3, promoted("t3"));
        assert_eq!(said(&connection, KNOWN, None), ["asked t1", "asked t2", "asked t3"]);
        assert_eq!(texts(&connection, "SELECT label || ' ' || turns FROM sessions"), ["dm:e1 3"]);
        assert_eq!(texts(&connection, "SELECT alias || ' ' || label FROM session_aliases"), ["dm:sms:+1 dm:e1"]);
        assert!(texts(&connection, "SELECT label FROM session_history").is_empty());
    }

    #[test]
    fn beside_a_session_with_turns_the_strangers_is_history() {
        let connection = ledger();
        apply(&connection, 1, turn("t1", STRANGER));
        apply(&connection, 2, turn("t2", KNOWN));
        apply(&connection, 3, promoted("t3"));
        assert_eq!(said(&connection, KNOWN, Some(STRANGER)), ["asked t2", "asked t3"]);
        let past = "SELECT label || ' ' || head || ' ' || reason || ' ' || successor FROM session_history";
        assert_eq!(texts(&connection, past), ["dm:sms:+1 t1 promoted dm:e1"]);
        assert_eq!(texts(&connection, "SELECT label FROM session_aliases"), [KNOWN]);
    }

    #[test]
    fn a_turn_that_comes_late_for_the_strangers_is_kept_and_promoted_next() {
        let connection = ledger();
        apply(&connection, 1, turn("t1", STRANGER));
        apply(&connection, 2, promoted("t2"));
        apply(&connection, 3, turn("t3", STRANGER));
        assert_eq!(said(&connection, STRANGER, None), ["asked t3"]);
        apply(&connection, 4, promoted("t4"));
        assert_eq!(texts(&connection, "SELECT head FROM session_history"), ["t3"]);
        assert_eq!(said(&connection, KNOWN, None), ["asked t1", "asked t2", "asked t4"]);
    }

    #[test]
    fn a_repeated_page_promotes_nothing_twice() {
        let connection = ledger();
        apply(&connection, 1, turn("t1", STRANGER));
        apply(&connection, 2, promoted("t2"));
        apply(&connection, 2, promoted("t2"));
        assert_eq!(texts(&connection, "SELECT label || ' ' || turns FROM sessions"), ["dm:e1 2"]);
    }

    #[test]
    fn an_archived_session_of_a_stranger_is_not_taken_over() {
        let connection = ledger();
        apply(&connection, 1, turn("t1", STRANGER));
        connection.execute("UPDATE sessions SET archived_at = 5", []).unwrap();
        assert!(said(&connection, KNOWN, Some(STRANGER)).is_empty());
        apply(&connection, 2, promoted("t2"));
        assert_eq!(said(&connection, KNOWN, None), ["asked t2"]);
    }
}
