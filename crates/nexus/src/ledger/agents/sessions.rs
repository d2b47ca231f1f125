//! Sessions as people see and change them: listed, shown with their turns, forked and archived. It never
//! changes a turn: forking and archiving move labels.

use super::super::optional;
use super::super::writer::Weight;
use rusqlite::{Connection, Row, params};
use serde::Serialize;
use serde_json::{Value, json};
use std::collections::HashMap;

/// Past states of one label that are told, the newest first.
const PAST_MAX: u32 = 100;
/// Aliases of one session that are told.
const ALIASES_MAX: u32 = 100;
/// Agents whose use of one session is told.
const AGENTS_MAX: u32 = 100;

/// What an agent may use in one session.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct SessionBudget {
    pub tokens_per_session: Option<u64>,
    pub usd_per_session: Option<f64>,
}

/// By the names of the agents.
pub type SessionBudgets = HashMap<String, SessionBudget>;

/// A session as it is listed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Listed {
    pub label: String,
    pub agent: String,
    pub head: String,
    pub turns: u32,
    /// Unix milliseconds, as all times here.
    pub created_at: i64,
    pub updated_at: i64,
    pub archived_at: Option<i64>,
}

const LISTED: &str = "label, agent, head, turns, created_at, updated_at, archived_at";

fn listed(row: &Row<'_>) -> rusqlite::Result<Listed> {
    Ok(Listed {
        label: row.get(0)?,
        agent: row.get(1)?,
        head: row.get(2)?,
        turns: row.get(3)?,
        created_at: row.get(4)?,
        updated_at: row.get(5)?,
        archived_at: row.get(6)?,
    })
}

/// The `limit` sessions with the newest turns, newest first; archived ones only if `all` are wanted.
pub fn sessions(connection: &Connection, all: bool, limit: usize) -> rusqlite::Result<Vec<Listed>> {
    let sql = format!("SELECT {LISTED} FROM sessions WHERE ?1 OR archived_at IS NULL ORDER BY updated_at DESC, label LIMIT ?2");
    connection.prepare_cached(&sql)?.query_map(params![all, limit], listed)?.collect()
}

/// The session of a label, or of an alias where no session has that label.
fn find(connection: &Connection, name: &str) -> rusqlite::Result<Option<Listed>> {
    if let Some(found) = own(connection, name)? {
        return Ok(Some(found));
    }
    let alias = connection.prepare_cached("SELECT label FROM session_aliases WHERE alias = ?1")?.query_row([name], |row| row.get(0));
    let label: Option<String> = optional(alias)?;
    label.map_or(Ok(None), |label| own(connection, &label))
}

/// The label of a session, by itself or by an alias.
pub fn label_of(connection: &Connection, name: &str) -> rusqlite::Result<Option<String>> {
    Ok(find(connection, name)?.map(|found| found.label))
}

/// The session of this very label.
fn own(connection: &Connection, label: &str) -> rusqlite::Result<Option<Listed>> {
    let sql = format!("SELECT {LISTED} FROM sessions WHERE label = ?1");
    optional(connection.prepare_cached(&sql)?.query_row([label], listed))
}

/// A session with its newest `limit` turns, newest last, what its label pointed at before, and what of `budgets` is used in it.
/// `None` when there is none of that label or alias.
pub fn session(connection: &Connection, name: &str, limit: usize, budgets: &SessionBudgets) -> rusqlite::Result<Option<Value>> {
    let Some(found) = find(connection, name)? else { return Ok(None) };
    let aliases: Vec<String> = connection
        .prepare_cached("SELECT alias FROM session_aliases WHERE label = ?1 ORDER BY alias LIMIT ?2")?
        .query_map(params![found.label, ALIASES_MAX], |row| row.get(0))?
        .collect::<rusqlite::Result<_>>()?;
    let sql = "SELECT head, turns, agent, created_at, updated_at, ended_at, reason, label FROM session_history
               WHERE label = ?1 OR successor = ?1 ORDER BY seq DESC LIMIT ?2";
    let past: Vec<Value> = connection
        .prepare_cached(sql)?
        .query_map(params![found.label, PAST_MAX], |row| {
            Ok(json!({
                "head": row.get::<_, String>(0)?, "turns": row.get::<_, u32>(1)?, "agent": row.get::<_, String>(2)?,
                "created_at": row.get::<_, i64>(3)?, "updated_at": row.get::<_, i64>(4)?, "ended_at": row.get::<_, i64>(5)?,
                "reason": row.get::<_, String>(6)?, "label": row.get::<_, String>(7)?,
            }))
        })?
        .collect::<rusqlite::Result<_>>()?;
    let turns = turns(connection, &found.head, limit)?;
    let used = used(connection, &found.head, budgets)?;
    Ok(Some(json!({ "session": found, "aliases": aliases, "past": past, "used": used, "turns": turns })))
}

/// What the turns that lead to `head` have used, by the agents that they count for: what a budget per session is compared
/// with. Agents that have counted nothing are left out.
fn used(connection: &Connection, head: &str, budgets: &SessionBudgets) -> rusqlite::Result<Vec<Value>> {
    let sql = "SELECT charged, tokens, usd FROM line_use WHERE turn_id = ?1 ORDER BY charged LIMIT ?2";
    let mut query = connection.prepare_cached(sql)?;
    let rows = query.query_map(params![head, AGENTS_MAX], |row| {
        let (agent, tokens, usd): (String, u64, f64) = (row.get(0)?, row.get(1)?, row.get(2)?);
        let SessionBudget { tokens_per_session, usd_per_session } = budgets.get(&agent).copied().unwrap_or_default();
        Ok(json!({
            "agent": agent, "tokens": tokens, "tokens_per_session": tokens_per_session,
            "usd": usd, "usd_per_session": usd_per_session,
        }))
    })?;
    rows.collect()
}

/// The line of turns that ends with `head`, the newest `limit` of them, newest last.
fn turns(connection: &Connection, head: &str, limit: usize) -> rusqlite::Result<Vec<Value>> {
    let sql = "WITH RECURSIVE line (turn_id, n) AS (
                 SELECT ?1, 1 UNION ALL
                 SELECT t.parent_turn_id, line.n + 1 FROM line JOIN turns t ON t.turn_id = line.turn_id
                   WHERE t.parent_turn_id IS NOT NULL AND line.n < ?2)
               SELECT t.turn_id, t.parent_turn_id, t.depth, t.agent, t.request_id, t.model, t.provider, t.stop_reason, t.input_tokens,
                 t.output_tokens, t.started_at, t.duration_ms,
                 (SELECT content FROM messages m WHERE m.turn_id = t.turn_id AND m.role = 'user'),
                 (SELECT content FROM messages m WHERE m.turn_id = t.turn_id AND m.role = 'assistant')
               FROM line JOIN turns t ON t.turn_id = line.turn_id ORDER BY t.depth";
    let mut query = connection.prepare_cached(sql)?;
    let rows = query.query_map(params![head, limit], |row| {
        Ok(json!({
            "turn_id": row.get::<_, String>(0)?, "parent_turn_id": row.get::<_, Option<String>>(1)?, "depth": row.get::<_, i64>(2)?,
            "agent": row.get::<_, String>(3)?, "request_id": row.get::<_, String>(4)?, "model": row.get::<_, Option<String>>(5)?,
            "provider": row.get::<_, Option<String>>(6)?, "stop_reason": row.get::<_, String>(7)?,
            "input_tokens": row.get::<_, Option<u64>>(8)?, "output_tokens": row.get::<_, Option<u64>>(9)?,
            "started_at": row.get::<_, i64>(10)?, "duration_ms": row.get::<_, f64>(11)?,
            "user": row.get::<_, Option<String>>(12)?, "assistant": row.get::<_, Option<String>>(13)?,
        }))
    })?;
    rows.collect()
}

/// A new label at a turn of a session: from there on two lines go on beside each other.
#[derive(Debug, Clone)]
pub struct ForkSession {
    /// A label or an alias.
    pub from: String,
    pub to: String,
    /// A turn of `from`, or of what that label pointed at before; its newest one if not given.
    pub turn: Option<String>,
    /// Unix ms. The same time for the same fork, however often it is repeated.
    pub at: i64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Forked {
    Done(Listed),
    NoSession,
    NoTurn,
    /// There is a session of the new label, or one that it leads to.
    Taken,
}

impl ForkSession {
    pub(super) fn apply(&self, connection: &Connection) -> rusqlite::Result<Forked> {
        if let Some(taken) = own(connection, &self.to)? {
            // Our own, by an attempt whose end nobody heard of.
            let is_ours = taken.created_at == self.at && self.turn.as_ref().is_none_or(|turn| *turn == taken.head);
            return Ok(if is_ours { Forked::Done(taken) } else { Forked::Taken });
        }
        // The name would lead nobody to that session any more.
        if connection.prepare_cached("SELECT 1 FROM session_aliases WHERE alias = ?1")?.exists([&self.to])? {
            return Ok(Forked::Taken);
        }
        let Some(from) = find(connection, &self.from)? else { return Ok(Forked::NoSession) };
        let head = match &self.turn {
            Some(turn) if !is_in_line(connection, &from.label, turn)? => return Ok(Forked::NoTurn),
            Some(turn) => turn.clone(),
            None => from.head,
        };
        let sql = "INSERT INTO sessions (label, agent, head, turns, created_at, updated_at)
                   SELECT ?1, agent, turn_id, depth, ?3, ?3 FROM turns WHERE turn_id = ?2";
        connection.prepare_cached(sql)?.execute(params![self.to, head, self.at])?;
        Ok(own(connection, &self.to)?.map_or(Forked::NoTurn, Forked::Done))
    }
}

/// Whether a turn leads to the label's newest, or to one that it pointed at before.
fn is_in_line(connection: &Connection, label: &str, turn: &str) -> rusqlite::Result<bool> {
    let sql = "WITH RECURSIVE line (turn_id) AS (
                 SELECT head FROM (SELECT head FROM sessions WHERE label = ?1
                                   UNION SELECT head FROM session_history WHERE label = ?1 OR successor = ?1)
                 UNION
                 SELECT t.parent_turn_id FROM line JOIN turns t ON t.turn_id = line.turn_id WHERE t.parent_turn_id IS NOT NULL)
               SELECT 1 FROM line WHERE turn_id = ?2";
    connection.prepare_cached(sql)?.exists([label, turn])
}

/// Whether a session of this label or alias is put away, and then when it began, in Unix ms.
pub fn put_away(connection: &Connection, name: &str) -> rusqlite::Result<Option<i64>> {
    Ok(find(connection, name)?.filter(|found| found.archived_at.is_some()).map(|found| found.created_at))
}

/// Puts a session away, or takes it back. Its label begins anew with its next turn.
#[derive(Debug, Clone)]
pub struct ArchiveSession {
    /// A label or an alias.
    pub name: String,
    /// The label from before its speaker was known, which the next turn would go on from: put away with it.
    pub formerly: Option<String>,
    pub undo: bool,
    /// Of one to be taken back that was found put away: when it began, in Unix ms. If that one isn't put away any more, an
    /// attempt whose end nobody heard of took it back.
    pub found: Option<i64>,
    /// Only one that began by then, in Unix ms: who asks twice doesn't put away what began in between.
    pub begun_by: Option<i64>,
    /// Unix ms.
    pub at: i64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Archived {
    Done(Listed),
    /// It had been put away before.
    Before(Listed),
    /// None of that label, or none that had begun by then.
    NoSession,
    /// To be taken back, it would have to be put away.
    NotArchived,
    /// It was put away with so many turns up to `head`, and its label has newer turns since.
    BegunAnew {
        head: String,
        turns: u32,
    },
}

impl ArchiveSession {
    pub(super) fn apply(&self, connection: &Connection) -> rusqlite::Result<Archived> {
        let named = self.apply_to(connection, find(connection, &self.name)?)?;
        let Some(formerly) = &self.formerly else { return Ok(named) };
        // By its own name: as an alias it leads to the one above.
        let former = self.apply_to(connection, own(connection, formerly)?)?;
        Ok(match (named, former) {
            (Archived::Done(one), Archived::Done(other)) => Archived::Done(Listed { turns: one.turns.saturating_add(other.turns), ..one }),
            (_, done @ Archived::Done(_)) => done,
            (Archived::NoSession, former) => former,
            (named, _) => named,
        })
    }

    fn apply_to(&self, connection: &Connection, found: Option<Listed>) -> rusqlite::Result<Archived> {
        let Some(found) = found else { return Ok(Archived::NoSession) };
        if self.begun_by.is_some_and(|by| found.created_at > by) {
            return Ok(Archived::NoSession);
        }
        if self.undo && found.archived_at.is_none() {
            return if self.found == Some(found.created_at) { Ok(Archived::Done(found)) } else { not_archived(connection, &found.label) };
        }
        // The same time is our own, by an attempt whose end nobody heard of.
        if !self.undo && found.archived_at.is_some_and(|at| at != self.at) {
            return Ok(Archived::Before(found));
        }
        let sql = "UPDATE sessions SET archived_at = CASE WHEN ?2 THEN NULL ELSE ?3 END WHERE label = ?1";
        connection.prepare_cached(sql)?.execute(params![found.label, self.undo, self.at])?;
        Ok(own(connection, &found.label)?.map_or(Archived::NoSession, Archived::Done))
    }
}

/// Why there is nothing to take back.
fn not_archived(connection: &Connection, label: &str) -> rusqlite::Result<Archived> {
    let sql = "SELECT head, turns FROM session_history WHERE label = ?1 AND reason = 'archived' ORDER BY seq DESC LIMIT 1";
    let begun_anew = |row: &Row<'_>| Ok(Archived::BegunAnew { head: row.get(0)?, turns: row.get(1)? });
    let before = connection.prepare_cached(sql)?.query_row([label], begun_anew);
    Ok(optional(before)?.unwrap_or(Archived::NotArchived))
}

/// The next turn of an archived session is its label's first.
pub(super) fn begin_anew_if_archived(connection: &Connection, label: &str, at: i64) -> rusqlite::Result<()> {
    let archived = connection.prepare_cached("SELECT 1 FROM sessions WHERE label = ?1 AND archived_at IS NOT NULL")?.exists([label])?;
    if archived { retire(connection, label, "archived", None, at) } else { Ok(()) }
}

/// A session becomes a part of its label's history.
pub(super) fn retire(connection: &Connection, label: &str, reason: &str, successor: Option<&str>, at: i64) -> rusqlite::Result<()> {
    let sql = "INSERT INTO session_history (label, agent, head, turns, created_at, updated_at, ended_at, reason, successor)
               SELECT label, agent, head, turns, created_at, updated_at, ?4, ?2, ?3 FROM sessions WHERE label = ?1";
    connection.prepare_cached(sql)?.execute(params![label, reason, successor, at])?;
    connection.prepare_cached("DELETE FROM sessions WHERE label = ?1")?.execute([label]).map(drop)
}

impl Weight for ForkSession {}
impl Weight for ArchiveSession {}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::tests::{ledger, texts, turn};
    use super::super::{ApplyTurns, Reach, TurnRecord, history};
    use super::*;

    fn apply(connection: &Connection, seq: i64, id: &str, label: &str) {
        ApplyTurns { upto_finish_seq: seq, turns: vec![turn(id, label)] }.apply(connection).unwrap();
    }

    /// Three turns of `dm:a`.
    fn three() -> Connection {
        let connection = ledger();
        (1..=3).for_each(|n| apply(&connection, n, &format!("t{n}"), "dm:a"));
        connection
    }

    fn fork(connection: &Connection, to: &str, turn: Option<&str>, at: i64) -> Forked {
        let (from, turn) = ("dm:a".to_owned(), turn.map(str::to_owned));
        ForkSession { from, to: to.to_owned(), turn, at }.apply(connection).unwrap()
    }

    fn archive(connection: &Connection, undo: bool) -> Archived {
        let (name, found) = ("dm:a".to_owned(), put_away(connection, "dm:a").unwrap());
        ArchiveSession { name, formerly: None, undo, found, begun_by: None, at: 50 }.apply(connection).unwrap()
    }

    fn said(connection: &Connection, label: &str) -> Vec<String> {
        let told = history(connection, label, None, &Reach::All, 50, 1 << 20).unwrap();
        told.messages.into_iter().filter(|said| said.role == "user").map(|said| said.content).collect()
    }

    #[test]
    fn a_fork_goes_on_from_its_turn_and_leaves_the_other_as_it_is() {
        let connection = three();
        let Forked::Done(forked) = fork(&connection, "b", Some("t2"), 9) else { panic!("not forked") };
        assert_eq!((forked.head.as_str(), forked.turns, forked.agent.as_str()), ("t2", 2, "echo"));
        apply(&connection, 4, "t4", "b");
        assert_eq!(said(&connection, "b"), ["asked t1", "asked t2", "asked t4"]);
        assert_eq!(said(&connection, "dm:a"), ["asked t1", "asked t2", "asked t3"]);
        assert!(matches!(fork(&connection, "c", None, 9), Forked::Done(whole) if whole.head == "t3"));
    }

    #[test]
    fn a_fork_is_made_once_and_over_nothing() {
        let connection = three();
        assert!(matches!(fork(&connection, "b", Some("t2"), 9), Forked::Done(_)));
        assert!(matches!(fork(&connection, "b", Some("t2"), 9), Forked::Done(_)), "the same, once more");
        assert_eq!(fork(&connection, "b", Some("t2"), 10), Forked::Taken);
        assert_eq!(fork(&connection, "dm:a", None, 10), Forked::Taken);
        connection.execute("INSERT INTO session_aliases VALUES ('dm:sms:1', 'dm:a', 1)", []).unwrap();
        assert_eq!(fork(&connection, "dm:sms:1", None, 10), Forked::Taken, "it leads to a session");
        apply(&connection, 4, "t4", "other");
        assert_eq!(fork(&connection, "c", Some("t4"), 10), Forked::NoTurn);
        let nobody = ForkSession { from: "nobody".to_owned(), to: "d".to_owned(), turn: None, at: 1 };
        assert_eq!(nobody.apply(&connection).unwrap(), Forked::NoSession);
    }

    #[test]
    fn an_archived_session_begins_anew_and_can_be_forked_from() {
        let connection = three();
        assert!(matches!(archive(&connection, false), Archived::Done(put) if put.archived_at == Some(50)));
        assert!(sessions(&connection, false, 10).unwrap().is_empty());
        assert_eq!(sessions(&connection, true, 10).unwrap().len(), 1);
        assert!(said(&connection, "dm:a").is_empty());
        apply(&connection, 4, "t4", "dm:a");
        assert_eq!(said(&connection, "dm:a"), ["asked t4"]);
        assert_eq!(texts(&connection, "SELECT head || ' ' || reason FROM session_history"), ["t3 archived"]);
        assert!(matches!(fork(&connection, "old", Some("t3"), 60), Forked::Done(old) if old.turns == 3));
    }

    #[test]
    fn what_was_put_away_can_be_taken_back_until_it_began_anew() {
        let connection = three();
        archive(&connection, false);
        assert!(matches!(archive(&connection, true), Archived::Done(back) if back.archived_at.is_none()));
        apply(&connection, 4, "t4", "dm:a");
        assert_eq!(said(&connection, "dm:a").len(), 4);
        assert!(texts(&connection, "SELECT label FROM session_history").is_empty());
    }

    #[test]
    fn what_was_put_away_before_is_told_so_and_stays_as_it_is() {
        let connection = three();
        assert!(matches!(archive(&connection, false), Archived::Done(_)));
        assert!(matches!(archive(&connection, false), Archived::Done(_)), "the same command, repeated");
        let later = ArchiveSession { name: "dm:a".to_owned(), formerly: None, undo: false, found: None, begun_by: None, at: 51 };
        let later = later.apply(&connection).unwrap();
        assert!(matches!(later, Archived::Before(put) if put.archived_at == Some(50)));
        assert!(matches!(archive(&connection, true), Archived::Done(_)));
    }

    #[test]
    fn what_is_not_put_away_can_not_be_taken_back() {
        let connection = three();
        assert_eq!(archive(&connection, true), Archived::NotArchived);
        archive(&connection, false);
        apply(&connection, 4, "t4", "dm:a");
        assert_eq!(archive(&connection, true), Archived::BegunAnew { head: "t3".to_owned(), turns: 3 });
        assert_eq!(said(&connection, "dm:a"), ["asked t4"], "nothing was changed");
    }

    #[test]
    fn what_is_taken_back_by_a_repeated_command_is_taken_back() {
        let connection = three();
        archive(&connection, false);
        let found = put_away(&connection, "dm:a").unwrap();
        let back = ArchiveSession { name: "dm:a".to_owned(), formerly: None, undo: true, found, begun_by: None, at: 60 };
        assert!(matches!(back.apply(&connection).unwrap(), Archived::Done(_)));
        assert!(matches!(back.apply(&connection).unwrap(), Archived::Done(back) if back.archived_at.is_none()), "repeated");
        assert_eq!(put_away(&connection, "dm:a").unwrap(), None);
        assert_eq!(archive(&connection, true), Archived::NotArchived, "asked anew");
    }

    #[test]
    fn what_its_speaker_said_as_a_stranger_is_put_away_too() {
        let connection = ledger();
        apply(&connection, 1, "t1", "dm:sms:1");
        let put = |at: i64| {
            let (name, formerly) = ("dm:a".to_owned(), Some("dm:sms:1".to_owned()));
            ArchiveSession { name, formerly, undo: false, found: None, begun_by: None, at }.apply(&connection).unwrap()
        };
        let told = || history(&connection, "dm:a", Some("dm:sms:1"), &Reach::All, 50, 1 << 20).unwrap().messages;
        assert!(matches!(put(50), Archived::Done(put) if put.turns == 1 && put.label == "dm:sms:1"));
        assert!(told().is_empty(), "the next message would be told of it");
        apply(&connection, 2, "t2", "dm:sms:1");
        apply(&connection, 3, "t3", "dm:a");
        assert!(matches!(put(60), Archived::Done(put) if put.turns == 2 && put.label == "dm:a"));
        assert!(told().is_empty());
        assert!(matches!(put(70), Archived::Before(_)));
    }

    #[test]
    fn who_asks_again_to_put_it_away_spares_what_began_since() {
        let connection = ledger();
        let apply = |seq: i64, id: &str, started_at: i64| {
            let turns = vec![TurnRecord { started_at, ..turn(id, "dm:a") }];
            ApplyTurns { upto_finish_seq: seq, turns }.apply(&connection).unwrap();
        };
        let asked = || {
            let again = ArchiveSession { name: "dm:a".to_owned(), formerly: None, undo: false, found: None, begun_by: Some(20), at: 21 };
            again.apply(&connection).unwrap()
        };
        apply(1, "t1", 10);
        assert!(matches!(asked(), Archived::Done(_)) && matches!(asked(), Archived::Done(_)));
        apply(2, "t2", 30);
        assert_eq!(asked(), Archived::NoSession);
        assert_eq!(said(&connection, "dm:a"), ["asked t2"]);
    }

    #[test]
    fn a_label_is_found_by_itself_and_by_its_aliases() {
        let connection = three();
        connection.execute("INSERT INTO session_aliases VALUES ('dm:sms:1', 'dm:a', 1)", []).unwrap();
        for (name, label) in [("dm:a", Some("dm:a")), ("dm:sms:1", Some("dm:a")), ("nobody", None)] {
            assert_eq!(label_of(&connection, name).unwrap().as_deref(), label, "{name}");
        }
    }

    #[test]
    fn a_session_is_shown_with_its_newest_turns_last() {
        let connection = three();
        connection.execute("INSERT INTO session_aliases VALUES ('dm:sms:1', 'dm:a', 1)", []).unwrap();
        let shown = session(&connection, "dm:sms:1", 2, &SessionBudgets::new()).unwrap().unwrap();
        assert_eq!(shown["session"]["label"], "dm:a");
        let ids: Vec<&str> = shown["turns"].as_array().unwrap().iter().filter_map(|turn| turn["turn_id"].as_str()).collect();
        assert_eq!(ids, ["t2", "t3"]);
        assert_eq!((&shown["turns"][1]["user"], &shown["turns"][1]["assistant"]), (&json!("asked t3"), &json!("answered t3")));
        assert_eq!(shown["aliases"], json!(["dm:sms:1"]));
        assert!(session(&connection, "dm:b", 2, &SessionBudgets::new()).unwrap().is_none());
    }

    #[test]
    fn a_session_is_shown_with_what_it_has_used_of_its_agents_budgets() {
        let connection = three();
        let used = |budgets: &SessionBudgets| session(&connection, "dm:a", 2, budgets).unwrap().unwrap()["used"].clone();
        assert_eq!(used(&SessionBudgets::new())[0]["tokens"], 6, "of all its turns, and not of those that are shown");
        let other = TurnRecord { charged: Some("spare".to_owned()), cost_usd: Some(0.25), ..turn("t4", "dm:a") };
        let silent = TurnRecord { charged: Some("silent".to_owned()), output_tokens: None, ..turn("t5", "dm:a") };
        ApplyTurns { upto_finish_seq: 4, turns: vec![other, silent] }.apply(&connection).unwrap();
        let budget = SessionBudget { tokens_per_session: Some(100), usd_per_session: Some(1.0) };
        let expected = json!([
            { "agent": "echo", "tokens": 6, "tokens_per_session": null, "usd": 0.0, "usd_per_session": null },
            { "agent": "spare", "tokens": 2, "tokens_per_session": 100, "usd": 0.25, "usd_per_session": 1.0 },
        ]);
        assert_eq!(used(&SessionBudgets::from([("spare".to_owned(), budget)])), expected, "who counts nothing isn't told");
    }
}
