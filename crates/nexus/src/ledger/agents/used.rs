//! What turns have used: of a session by sums that each turn takes over from the one before it, so that none walks along the
//! others, and of a day by the rows of its turns and calls. It decides nothing; limits, others compare with it.

use super::{TurnRecord, head_of};
use nexus_core::spend::Amount;
use rusqlite::{Connection, params};

/// Adds what a turn used to what the turns that lead to it did. Agents that nobody counts have no sum.
pub(super) fn add(connection: &Connection, turn: &TurnRecord, parent: Option<&str>) -> rusqlite::Result<()> {
    if let Some(parent) = parent {
        let sql = "INSERT INTO line_use (turn_id, charged, tokens, usd)
                   SELECT ?1, charged, tokens, usd FROM line_use WHERE turn_id = ?2";
        connection.prepare_cached(sql)?.execute([turn.turn_id.as_str(), parent])?;
    }
    let tokens = turn.input_tokens.unwrap_or(0).saturating_add(turn.output_tokens.unwrap_or(0));
    let usd = turn.cost_usd.unwrap_or(0.0);
    if tokens == 0 && usd <= 0.0 {
        return Ok(());
    }
    let sql = "INSERT INTO line_use (turn_id, charged, tokens, usd) VALUES (?1, ?2, ?3, ?4)
               ON CONFLICT (turn_id, charged) DO UPDATE SET tokens = tokens + ?3, usd = usd + ?4";
    let charged = turn.charged.as_ref().unwrap_or(&turn.agent);
    connection.prepare_cached(sql)?.execute(params![turn.turn_id, charged, tokens, usd]).map(drop)
}

/// What an agent has used in a session, by the turns that it is made of now. One that has none yet, or none any more, goes
/// on from that of `formerly`, as its next turn will.
pub fn used_in_session(connection: &Connection, charged: &str, session: &str, formerly: Option<&str>) -> rusqlite::Result<Amount> {
    let mut head = head_of(connection, session)?;
    if let (None, Some(formerly)) = (&head, formerly) {
        head = head_of(connection, formerly)?;
    }
    let Some((head, _)) = head else { return Ok(Amount::default()) };
    let sql = "SELECT coalesce(sum(tokens), 0), coalesce(sum(usd), 0.0) FROM line_use WHERE turn_id = ?1 AND charged = ?2";
    connection.prepare_cached(sql)?.query_row([head.as_str(), charged], |row| Ok(Amount { tokens: row.get(0)?, usd: row.get(1)? }))
}

/// What an agent has used since a moment in Unix milliseconds, with what plugins and automations asked it for. A turn counts
/// for the day on which it began.
pub fn used_since(connection: &Connection, charged: &str, since: i64) -> rusqlite::Result<Amount> {
    let sql = "SELECT coalesce(sum(coalesce(input_tokens, 0) + coalesce(output_tokens, 0)), 0), coalesce(sum(cost_usd), 0.0) FROM (
                 SELECT input_tokens, output_tokens, cost_usd FROM turns WHERE charged = ?1 AND started_at >= ?2 UNION ALL
                 SELECT input_tokens, output_tokens, cost_usd FROM calls WHERE agent = ?1 AND started_at >= ?2)";
    connection.prepare_cached(sql)?.query_row(params![charged, since], |row| Ok(Amount { tokens: row.get(0)?, usd: row.get(1)? }))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::tests::{ledger, turn};
    use super::super::{ApplyTurns, ArchiveSession, ForkSession, Forked};
    use super::*;

    fn used(n: i64, session: &str, charged: Option<&str>, tokens: Option<u64>) -> TurnRecord {
        TurnRecord {
            agent: "model".to_owned(),
            input_tokens: tokens,
            output_tokens: tokens,
            started_at: n,
            charged: charged.map(str::to_owned),
            cost_usd: tokens.map(|tokens| tokens as f64),
            ..turn(&format!("turn_{n}"), session)
        }
    }

    fn apply(connection: &Connection, turns: Vec<TurnRecord>) {
        let seq = turns.last().unwrap().started_at;
        ApplyTurns { upto_finish_seq: seq, turns }.apply(connection).unwrap();
    }

    fn tokens_in(connection: &Connection, session: &str) -> u64 {
        used_in_session(connection, "model", session, None).unwrap().tokens
    }

    fn archive(connection: &Connection, session: &str, undo: bool) {
        let name = session.to_owned();
        ArchiveSession { name, formerly: None, undo, found: None, begun_by: None, at: 90 }.apply(connection).unwrap();
    }

    #[test]
    fn what_was_used_is_counted_by_agent_session_and_day() {
        let turns = vec![
            used(1, "a", None, Some(5)),
            used(2, "a", None, Some(10)),
            used(3, "b", None, Some(100)),
            used(4, "a", Some("spare"), Some(1000)),
            used(5, "a", None, None),
        ];
        let connection = ledger();
        apply(&connection, turns.clone());
        apply(&connection, turns); // counts nothing twice
        let session = |agent: &str| used_in_session(&connection, agent, "a", None).unwrap();
        assert_eq!(session("model"), Amount { tokens: 30, usd: 15.0 });
        assert_eq!(session("spare"), Amount { tokens: 2000, usd: 1000.0 }, "also behind turns of others");
        assert_eq!(session("nobody"), Amount::default());
        assert_eq!(used_since(&connection, "model", 2).unwrap(), Amount { tokens: 220, usd: 110.0 });
        assert_eq!(used_since(&connection, "spare", 5).unwrap(), Amount::default());
    }

    #[test]
    fn a_session_that_begins_anew_has_used_nothing_and_one_that_is_taken_back_what_it_had() {
        let connection = ledger();
        apply(&connection, vec![used(1, "a", None, Some(5))]);
        archive(&connection, "a", false);
        assert_eq!(tokens_in(&connection, "a"), 0);
        archive(&connection, "a", true);
        assert_eq!(tokens_in(&connection, "a"), 10);
        archive(&connection, "a", false);
        apply(&connection, vec![used(2, "a", None, Some(7))]);
        assert_eq!(tokens_in(&connection, "a"), 14);
        assert_eq!(used_since(&connection, "model", 0).unwrap().tokens, 24, "the day has both");
    }

    #[test]
    fn a_fork_has_used_what_led_to_its_turn() {
        let connection = ledger();
        apply(&connection, vec![used(1, "a", None, Some(5)), used(2, "a", None, Some(50))]);
        for (to, turn) in [("whole", None), ("early", Some("turn_1"))] {
            let fork = ForkSession { from: "a".to_owned(), to: to.to_owned(), turn: turn.map(str::to_owned), at: 3 };
            assert!(matches!(fork.apply(&connection).unwrap(), Forked::Done(_)), "{to}");
        }
        apply(&connection, vec![used(4, "whole", None, Some(1)), used(5, "early", None, Some(2))]);
        assert_eq!(["a", "whole", "early"].map(|session| tokens_in(&connection, session)), [110, 112, 14]);
    }

    #[test]
    fn a_strangers_use_goes_on_as_the_contacts() {
        let connection = ledger();
        apply(&connection, vec![used(1, "dm:sms:1", None, Some(5))]);
        let first = used_in_session(&connection, "model", "dm:ann", Some("dm:sms:1")).unwrap();
        assert_eq!(first.tokens, 10, "before the first turn under the new label, too");
        apply(&connection, vec![TurnRecord { formerly: Some("dm:sms:1".to_owned()), ..used(2, "dm:ann", None, Some(1)) }]);
        assert_eq!((tokens_in(&connection, "dm:ann"), tokens_in(&connection, "dm:sms:1")), (12, 0));
    }
}
