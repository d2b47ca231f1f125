//! What automations know from one event to the next, and what they said about the events that changed it. The
//! two are written together, so that neither a crash nor a repetition has an event counted twice.

use super::{Claim, counter};
use crate::ledger::optional;
use crate::ledger::writer::Weight;
use rusqlite::{Connection, params};
use serde::Serialize;

/// What an automation said about an event, and what it knows from then on.
#[derive(Debug, Clone)]
pub struct RememberAdvice {
    pub event_seq: i64,
    pub automation: String,
    /// JSON, without the state.
    pub result: String,
    /// JSON; `None` leaves what it knew.
    pub state: Option<String>,
    /// It is not to be asked any more.
    pub disable: bool,
    pub at: i64,
    pub epoch: i64,
}

impl RememberAdvice {
    /// Lost when another daemon has begun, or another event had it disabled meanwhile: it has said nothing about
    /// this one then.
    pub(super) fn apply(&self, connection: &Connection) -> rusqlite::Result<Claim> {
        if let Some(said) = said(connection, self.event_seq, &self.automation)? {
            return Ok(if said == self.result { Claim::Done } else { Claim::Lost }); // a repetition, or none
        }
        let known = knowledge(connection, &self.automation)?;
        if counter(connection, "epoch")? != self.epoch || known.is_some_and(|known| known.disabled) {
            return Ok(Claim::Lost);
        }
        let sql = "INSERT INTO automations (name, state, disabled, updated_at) VALUES (?1, ?2, ?3, ?4)
                   ON CONFLICT (name) DO UPDATE SET state = coalesce(excluded.state, state), disabled = excluded.disabled,
                     updated_at = excluded.updated_at";
        connection.prepare_cached(sql)?.execute(params![self.automation, self.state, self.disable, self.at])?;
        let sql = "INSERT INTO automation_results (event_seq, name, result, at) VALUES (?1, ?2, ?3, ?4)";
        connection.prepare_cached(sql)?.execute(params![self.event_seq, self.automation, self.result, self.at])?;
        Ok(Claim::Done)
    }
}

/// A person enables an automation that disabled itself. What it knows stays.
#[derive(Debug, Clone)]
pub struct ReviveAutomation {
    pub automation: String,
    pub at: i64,
}

impl ReviveAutomation {
    pub(super) fn apply(&self, connection: &Connection) -> rusqlite::Result<()> {
        let sql = "UPDATE automations SET disabled = 0, updated_at = ?2 WHERE name = ?1 AND disabled <> 0";
        connection.prepare_cached(sql)?.execute(params![self.automation, self.at]).map(drop)
    }
}

/// A person deletes an automation: nothing is known of it any more, nor what it said.
#[derive(Debug, Clone)]
pub struct ForgetAutomation {
    pub automation: String,
}

impl ForgetAutomation {
    pub(super) fn apply(&self, connection: &Connection) -> rusqlite::Result<()> {
        connection.prepare_cached("DELETE FROM automations WHERE name = ?1")?.execute([&self.automation])?;
        connection.prepare_cached("DELETE FROM automation_results WHERE name = ?1")?.execute([&self.automation]).map(drop)
    }
}

/// What is known of an automation.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Knowledge {
    pub name: String,
    /// JSON.
    pub state: Option<String>,
    /// It disabled itself.
    pub disabled: bool,
    /// Unix ms.
    pub updated_at: i64,
}

/// What an automation needs to be told before it is asked about an event.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Recollection {
    /// What it said about the event before, as JSON.
    pub said: Option<String>,
    pub state: Option<String>,
    pub disabled: bool,
}

/// What an automation said about an event, and what it knows.
pub fn recollect(connection: &Connection, event_seq: i64, automation: &str) -> rusqlite::Result<Recollection> {
    let said = said(connection, event_seq, automation)?;
    let known = knowledge(connection, automation)?.unwrap_or_default();
    Ok(Recollection { said, state: known.state, disabled: known.disabled })
}

/// What all automations know, by name.
pub fn all_knowledge(connection: &Connection) -> rusqlite::Result<Vec<Knowledge>> {
    connection.prepare_cached(&format!("{KNOWLEDGE} ORDER BY name"))?.query_map([], knowledge_of)?.collect()
}

const KNOWLEDGE: &str = "SELECT name, state, disabled, updated_at FROM automations";

fn said(connection: &Connection, event_seq: i64, automation: &str) -> rusqlite::Result<Option<String>> {
    let sql = "SELECT result FROM automation_results WHERE event_seq = ?1 AND name = ?2";
    optional(connection.prepare_cached(sql)?.query_row(params![event_seq, automation], |row| row.get(0)))
}

fn knowledge(connection: &Connection, automation: &str) -> rusqlite::Result<Option<Knowledge>> {
    let sql = format!("{KNOWLEDGE} WHERE name = ?1");
    optional(connection.prepare_cached(&sql)?.query_row([automation], knowledge_of))
}

fn knowledge_of(row: &rusqlite::Row<'_>) -> rusqlite::Result<Knowledge> {
    Ok(Knowledge { name: row.get(0)?, state: row.get(1)?, disabled: row.get(2)?, updated_at: row.get(3)? })
}

impl Weight for RememberAdvice {
    fn bytes(&self) -> usize {
        256 + self.result.len() + self.state.as_ref().map_or(0, String::len)
    }

    fn rows(&self) -> usize {
        2
    }
}

impl Weight for ReviveAutomation {}

impl Weight for ForgetAutomation {}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::BeginEpoch;
    use super::*;

    fn ledger() -> Connection {
        let connection = crate::samples::nexus_ledger();
        BeginEpoch { at: 1 }.apply(&connection).unwrap();
        connection
    }

    fn remember(event_seq: i64, state: Option<&str>, disable: bool) -> RememberAdvice {
        let (automation, result) = ("x".to_owned(), format!("{{\"enrich\":\"{event_seq}\"}}"));
        RememberAdvice { event_seq, automation, result, state: state.map(str::to_owned), disable, at: 5, epoch: 1 }
    }

    fn known(connection: &Connection, event_seq: i64) -> (Option<String>, Option<String>, bool) {
        let Recollection { said, state, disabled } = recollect(connection, event_seq, "x").unwrap();
        (said, state, disabled)
    }

    #[test]
    fn what_was_said_and_what_is_known_come_together_and_once() {
        let connection = ledger();
        assert_eq!(known(&connection, 1), (None, None, false));
        let first = remember(1, Some("1"), false);
        assert_eq!(first.apply(&connection).unwrap(), Claim::Done);
        assert_eq!(first.apply(&connection).unwrap(), Claim::Done, "the same command, repeated");
        assert_eq!(known(&connection, 1), (Some(first.result.clone()), Some("1".to_owned()), false));
        assert_eq!(remember(2, Some("2"), false).apply(&connection).unwrap(), Claim::Done);
        assert_eq!(first.apply(&connection).unwrap(), Claim::Done, "late");
        assert_eq!(known(&connection, 3), (None, Some("2".to_owned()), false), "the late one changed nothing");
        let other = RememberAdvice { result: "{}".to_owned(), ..remember(1, Some("9"), false) };
        assert_eq!(other.apply(&connection).unwrap(), Claim::Lost, "it has said something else about this one");
    }

    #[test]
    fn one_event_disables_it_and_a_person_enables_it_again() {
        let connection = ledger();
        assert_eq!(remember(1, Some("1"), false).apply(&connection).unwrap(), Claim::Done);
        assert_eq!(remember(2, None, true).apply(&connection).unwrap(), Claim::Done);
        assert_eq!(remember(3, None, true).apply(&connection).unwrap(), Claim::Lost);
        assert_eq!(known(&connection, 3), (None, Some("1".to_owned()), true));
        ReviveAutomation { automation: "x".to_owned(), at: 9 }.apply(&connection).unwrap();
        assert_eq!(known(&connection, 3), (None, Some("1".to_owned()), false));
        assert_eq!(all_knowledge(&connection).unwrap().len(), 1);
        ForgetAutomation { automation: "x".to_owned() }.apply(&connection).unwrap();
        for event_seq in 1..=3 {
            assert_eq!(known(&connection, event_seq), (None, None, false));
        }
    }

    #[test]
    fn nothing_of_a_former_daemon_counts() {
        let connection = ledger();
        BeginEpoch { at: 2 }.apply(&connection).unwrap();
        assert_eq!(remember(1, Some("1"), false).apply(&connection).unwrap(), Claim::Lost);
        assert!(all_knowledge(&connection).unwrap().is_empty());
    }
}
