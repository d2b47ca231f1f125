//! Approvals: what a definition would have run, and what the operator decided about it. An answer holds for
//! the exact command of the exact event, and for nothing else.

use crate::ledger::optional;
use crate::ledger::writer::Weight;
use rusqlite::types::{FromSql, FromSqlError, FromSqlResult, ToSqlOutput, ValueRef};
use rusqlite::{Connection, Row, ToSql, params};
use serde::Serialize;

/// What is to be approved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ApprovalKind {
    /// A host to clone from.
    Host,
    /// A program that offers tools.
    Mcp,
    /// The tools that an agent may call.
    Tools,
}

impl ApprovalKind {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Host => "host",
            Self::Mcp => "mcp",
            Self::Tools => "tools",
        }
    }
}

impl ToSql for ApprovalKind {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::from(self.as_str()))
    }
}

impl FromSql for ApprovalKind {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
        match value.as_str()? {
            "host" => Ok(Self::Host),
            "mcp" => Ok(Self::Mcp),
            "tools" => Ok(Self::Tools),
            _ => Err(FromSqlError::InvalidType),
        }
    }
}

/// What was decided about a wish.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ApprovalStatus {
    Pending,
    Approved,
    Denied,
}

impl ToSql for ApprovalStatus {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::from(match self {
            Self::Pending => "pending",
            Self::Approved => "approved",
            Self::Denied => "denied",
        }))
    }
}

impl FromSql for ApprovalStatus {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
        match value.as_str()? {
            "pending" => Ok(Self::Pending),
            "approved" => Ok(Self::Approved),
            "denied" => Ok(Self::Denied),
            _ => Err(FromSqlError::InvalidType),
        }
    }
}

/// Something that a project wants to have run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wish {
    pub kind: ApprovalKind,
    /// The host, or the slug of the server or agent.
    pub subject: String,
    /// The exact command, or the tools.
    pub command: String,
    /// The event that asks for it; empty for what no event says.
    pub event_id: String,
    /// Approved without being asked, unless it was denied.
    pub trusted: bool,
}

/// A wish and what was decided about it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Approval {
    pub id: i64,
    /// The coordinate.
    pub project: String,
    pub kind: ApprovalKind,
    pub subject: String,
    pub command: String,
    pub event_id: String,
    pub status: ApprovalStatus,
    pub asked_at: i64,
    pub decided_at: Option<i64>,
}

impl Approval {
    pub fn is_approved(&self) -> bool {
        self.status == ApprovalStatus::Approved
    }

    /// Whether it is the answer to `wish`.
    pub fn is_for(&self, wish: &Wish) -> bool {
        (self.kind, &self.subject, &self.command, &self.event_id) == (wish.kind, &wish.subject, &wish.command, &wish.event_id)
    }
}

/// Puts down what a project wants of some kinds, and answers with what is known of exactly that. What it wanted of these
/// kinds before and nobody decided about is forgotten.
#[derive(Debug, Clone)]
pub struct AskApprovals {
    pub project: String,
    pub kinds: Vec<ApprovalKind>,
    pub wishes: Vec<Wish>,
    pub at: i64,
}

impl AskApprovals {
    pub(super) fn apply(&self, connection: &Connection) -> rusqlite::Result<Vec<Approval>> {
        self.forget(connection)?;
        let sql = "INSERT INTO approvals (project, kind, subject, command, event_id, status, asked_at, decided_at)
                   VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)
                   ON CONFLICT (project, kind, subject, command, event_id) DO UPDATE SET status = ?6, decided_at = ?8
                     WHERE status = 'pending'";
        for wish in &self.wishes {
            let (status, decided) = if wish.trusted { (ApprovalStatus::Approved, Some(self.at)) } else { (ApprovalStatus::Pending, None) };
            let values = params![self.project, wish.kind, wish.subject, wish.command, wish.event_id, status, self.at, decided];
            connection.prepare_cached(sql)?.execute(values)?;
        }
        let known = approvals(connection, Some(&self.project))?;
        Ok(known.into_iter().filter(|one| self.wishes.iter().any(|wish| one.is_for(wish))).collect())
    }

    fn forget(&self, connection: &Connection) -> rusqlite::Result<()> {
        let known = approvals(connection, Some(&self.project))?;
        let gone = |one: &&Approval| {
            one.status == ApprovalStatus::Pending && self.kinds.contains(&one.kind) && !self.wishes.iter().any(|wish| one.is_for(wish))
        };
        for one in known.iter().filter(gone) {
            connection.prepare_cached("DELETE FROM approvals WHERE id = ?1")?.execute([one.id])?;
        }
        Ok(())
    }
}

/// Decides about one. `None` when there is none of this id.
#[derive(Debug, Clone)]
pub struct DecideApproval {
    pub id: i64,
    pub approve: bool,
    pub at: i64,
}

impl DecideApproval {
    pub(super) fn apply(&self, connection: &Connection) -> rusqlite::Result<Option<Approval>> {
        let status = if self.approve { ApprovalStatus::Approved } else { ApprovalStatus::Denied };
        let sql = format!("UPDATE approvals SET status = ?2, decided_at = ?3 WHERE id = ?1 RETURNING {COLUMNS}");
        optional(connection.prepare_cached(&sql)?.query_row(params![self.id, status, self.at], read))
    }
}

const COLUMNS: &str = "id, project, kind, subject, command, event_id, status, asked_at, decided_at";

/// All approvals, or those of one project, oldest first.
pub fn approvals(connection: &Connection, project: Option<&str>) -> rusqlite::Result<Vec<Approval>> {
    let sql = format!("SELECT {COLUMNS} FROM approvals WHERE ?1 IS NULL OR project = ?1 ORDER BY id");
    connection.prepare_cached(&sql)?.query_map([project], read)?.collect()
}

fn read(row: &Row<'_>) -> rusqlite::Result<Approval> {
    Ok(Approval {
        id: row.get(0)?,
        project: row.get(1)?,
        kind: row.get(2)?,
        subject: row.get(3)?,
        command: row.get(4)?,
        event_id: row.get(5)?,
        status: row.get(6)?,
        asked_at: row.get(7)?,
        decided_at: row.get(8)?,
    })
}

impl Weight for AskApprovals {
    fn bytes(&self) -> usize {
        256 + self.wishes.iter().map(|wish| wish.subject.len() + wish.command.len() + 256).sum::<usize>()
    }

    fn rows(&self) -> usize {
        self.wishes.len().max(1)
    }
}

impl Weight for DecideApproval {}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn wish(command: &str, event_id: &str) -> Wish {
        Wish { kind: ApprovalKind::Mcp, subject: "files".into(), command: command.into(), event_id: event_id.into(), trusted: false }
    }

    fn ask(connection: &Connection, wishes: Vec<Wish>) -> Vec<Approval> {
        let ask = AskApprovals { project: "p".into(), kinds: vec![ApprovalKind::Mcp], wishes, at: 1 };
        ask.apply(connection).unwrap()
    }

    #[test]
    fn an_answer_holds_for_the_exact_command_of_the_exact_event() {
        let connection = crate::samples::nexus_ledger();
        let first = ask(&connection, vec![wish("npx a", "e1")]).remove(0);
        assert_eq!(ask(&connection, vec![wish("npx a", "e1")])[0].id, first.id, "asked twice it is one");
        assert!(DecideApproval { id: first.id, approve: true, at: 2 }.apply(&connection).unwrap().unwrap().is_approved());
        assert!(ask(&connection, vec![wish("npx a", "e1")])[0].is_approved());
        for other in [wish("npx b", "e1"), wish("npx a", "e2")] {
            assert!(!ask(&connection, vec![other])[0].is_approved());
        }
        assert!(ask(&connection, vec![wish("npx a", "e1")])[0].is_approved(), "what was decided is remembered");
    }

    #[test]
    fn what_nobody_wants_any_more_need_not_be_decided() {
        let connection = crate::samples::nexus_ledger();
        let old = ask(&connection, vec![wish("old", "e1")]).remove(0);
        ask(&connection, vec![wish("new", "e2")]);
        let left: Vec<String> = approvals(&connection, Some("p")).unwrap().into_iter().map(|one| one.command).collect();
        assert_eq!(left, ["new"]);
        assert_eq!(DecideApproval { id: old.id, approve: true, at: 2 }.apply(&connection).unwrap(), None);
        assert!(approvals(&connection, Some("q")).unwrap().is_empty());
    }

    #[test]
    fn a_denial_stays_one_whoever_approves_in_advance() {
        let connection = crate::samples::nexus_ledger();
        let asked = ask(&connection, vec![wish("a", "e1")]).remove(0);
        DecideApproval { id: asked.id, approve: false, at: 2 }.apply(&connection).unwrap();
        let trusted = |command: &str| Wish { trusted: true, ..wish(command, "e1") };
        assert_eq!(ask(&connection, vec![trusted("a")])[0].status, ApprovalStatus::Denied);
        assert_eq!(ask(&connection, vec![trusted("b")])[0].status, ApprovalStatus::Approved);
    }
}
