//! Events that failed only because their project waited: for an approval, for its configuration, or for where it comes from.
//! A row comes with the end of its request and goes when the event is run again, or never will be; the end itself stays.
//! When it is time for either is not decided here.

use crate::ledger::optional;
use crate::ledger::writer::Weight;
use rusqlite::{Connection, Row, params};

/// Rows kept of one project; the oldest make room.
const WAITS_KEPT_MAX: usize = 1000;

/// What a project waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Awaited {
    /// The approval of this id.
    Approval(i64),
    Configuration,
    /// What it is made from, a definition and perhaps a repository, which could not be had.
    Source,
}

impl Awaited {
    /// The word for programs.
    pub fn code(self) -> &'static str {
        match self {
            Self::Approval(_) => "project_approval",
            Self::Configuration => "project_configuration",
            Self::Source => "project_source",
        }
    }

    /// The word in the ledger.
    fn word(self) -> &'static str {
        match self {
            Self::Approval(_) => "approval",
            Self::Configuration => "configuration",
            Self::Source => "source",
        }
    }

    pub fn approval(self) -> Option<i64> {
        match self {
            Self::Approval(id) => Some(id),
            Self::Configuration | Self::Source => None,
        }
    }

    fn of(word: &str, approval: Option<i64>) -> rusqlite::Result<Self> {
        match (word, approval) {
            ("approval", Some(id)) => Ok(Self::Approval(id)),
            ("configuration", None) => Ok(Self::Configuration),
            ("source", None) => Ok(Self::Source),
            _ => Err(rusqlite::Error::InvalidQuery), // the table's checks let nothing else in
        }
    }
}

/// Why the requests of a run failed that failed for nothing else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewWait {
    /// The coordinate.
    pub project: String,
    pub awaited: Awaited,
}

impl NewWait {
    /// Has these events wait, in the transaction that ends their requests.
    pub(super) fn insert(&self, connection: &Connection, seqs: impl Iterator<Item = i64>, at: i64) -> rusqlite::Result<()> {
        let insert = "INSERT INTO project_waits (event_seq, project, awaits, approval, at) VALUES (?1, ?2, ?3, ?4, ?5)
                      ON CONFLICT (event_seq) DO NOTHING";
        let mut insert = connection.prepare_cached(insert)?;
        for seq in seqs {
            insert.execute(params![seq, self.project, self.awaited.word(), self.awaited.approval(), at])?;
        }
        let make_room = "DELETE FROM project_waits WHERE project = ?1 AND event_seq <=
                           (SELECT event_seq FROM project_waits WHERE project = ?1 ORDER BY event_seq DESC LIMIT 1 OFFSET ?2)";
        let dropped = connection.prepare_cached(make_room)?.execute(params![self.project, WAITS_KEPT_MAX])?;
        if dropped > 0 {
            tracing::warn!(project = self.project, events = dropped, "too many events wait for a project; the oldest stay failed");
        }
        Ok(())
    }
}

/// These events wait no more: they are run again, or never will be.
#[derive(Debug, Clone)]
pub struct ForgetWaits {
    pub event_seqs: Vec<i64>,
}

impl ForgetWaits {
    /// How many of them waited.
    pub(super) fn apply(&self, connection: &Connection) -> rusqlite::Result<usize> {
        let mut forget = connection.prepare_cached("DELETE FROM project_waits WHERE event_seq = ?1")?;
        let mut forgotten = 0;
        for seq in &self.event_seqs {
            forgotten += forget.execute([seq])?;
        }
        Ok(forgotten)
    }
}

/// What waits for one thing waits for another by now.
#[derive(Debug, Clone)]
pub struct MoveWaits {
    /// The coordinate.
    pub project: String,
    pub from: Awaited,
    pub to: Awaited,
}

impl MoveWaits {
    /// How many did.
    pub(super) fn apply(&self, connection: &Connection) -> rusqlite::Result<usize> {
        let Self { project, from, to } = self;
        let sql = "UPDATE project_waits SET awaits = ?4, approval = ?5 WHERE project = ?1 AND awaits = ?2 AND approval IS ?3";
        let values = params![project, from.word(), from.approval(), to.word(), to.approval()];
        connection.prepare_cached(sql)?.execute(values)
    }
}

/// An event that waits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wait {
    pub event_seq: i64,
    /// The coordinate.
    pub project: String,
    pub awaited: Awaited,
    /// Since when, in Unix ms.
    pub at: i64,
}

const COLUMNS: &str = "event_seq, project, awaits, approval, at";

/// All that wait for one project, in their order.
pub fn waits(connection: &Connection, project: &str) -> rusqlite::Result<Vec<Wait>> {
    let sql = format!("SELECT {COLUMNS} FROM project_waits WHERE project = ?1 ORDER BY event_seq");
    connection.prepare_cached(&sql)?.query_map([project], read)?.collect()
}

/// What one event waits for, if it does.
pub fn wait_of(connection: &Connection, event_seq: i64) -> rusqlite::Result<Option<Wait>> {
    let sql = format!("SELECT {COLUMNS} FROM project_waits WHERE event_seq = ?1");
    optional(connection.prepare_cached(&sql)?.query_row([event_seq], read))
}

/// The projects that events wait for, each with what it waits for itself; whose events came first is first.
pub fn wait_groups(connection: &Connection) -> rusqlite::Result<Vec<(String, Awaited)>> {
    let sql = "SELECT project, awaits, approval FROM project_waits GROUP BY project, awaits, approval ORDER BY min(event_seq)";
    connection.prepare_cached(sql)?.query_map([], |row| Ok((row.get(0)?, awaited(row, 1)?)))?.collect()
}

/// How many events wait for each approval.
pub fn waits_by_approval(connection: &Connection) -> rusqlite::Result<Vec<(i64, u64)>> {
    let sql = "SELECT approval, count(*) FROM project_waits WHERE approval IS NOT NULL GROUP BY approval ORDER BY approval";
    connection.prepare_cached(sql)?.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?.collect()
}

fn read(row: &Row<'_>) -> rusqlite::Result<Wait> {
    Ok(Wait { event_seq: row.get(0)?, project: row.get(1)?, awaited: awaited(row, 2)?, at: row.get(4)? })
}

/// From the column of the word and the one behind it.
fn awaited(row: &Row<'_>, column: usize) -> rusqlite::Result<Awaited> {
    Awaited::of(row.get_ref(column)?.as_str()?, row.get(column + 1)?)
}

impl Weight for ForgetWaits {
    fn bytes(&self) -> usize {
        self.event_seqs.len() * 8 + 64
    }
    fn rows(&self) -> usize {
        self.event_seqs.len().max(1)
    }
}

impl Weight for MoveWaits {
    fn rows(&self) -> usize {
        WAITS_KEPT_MAX
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::{Admit, AdmitRow, BeginEpoch, Claim, Fellow, FellowEnd, FinishRun, StartRun, request_by_event};
    use super::*;
    use nexus_core::request::Status;

    fn wait(project: &str, awaited: Awaited) -> NewWait {
        NewWait { project: project.to_owned(), awaited }
    }

    fn seqs(connection: &Connection, project: &str) -> Vec<i64> {
        waits(connection, project).unwrap().into_iter().map(|wait| wait.event_seq).collect()
    }

    #[test]
    fn all_requests_of_a_run_wait_from_the_commit_on_that_ends_them() {
        let connection = crate::samples::nexus_ledger();
        BeginEpoch { at: 1 }.apply(&connection).unwrap();
        let row = |seq: i64| AdmitRow { event_seq: seq, request_id: format!("req_{seq}"), ..crate::samples::row() };
        Admit { from_seq: 0, upto_seq: 2, rows: vec![row(1), row(2)], epoch: 1 }.apply(&connection).unwrap();
        let (run_id, agent, session) = ("run_1".to_owned(), "project".to_owned(), "s".to_owned());
        let fellows = vec![Fellow { event_seq: 1, audit: None }];
        let start = StartRun { event_seq: 2, fellows, run_id, agent, session, acted: false, audit: None, at: 2, epoch: 1 };
        assert_eq!(start.apply(&connection).unwrap(), Claim::Done);
        let finish = || FinishRun {
            event_seq: 2,
            fellows: vec![FellowEnd { event_seq: 1, reason: None, trace: "{}".to_owned() }],
            run_id: "run_1".to_owned(),
            ok: false,
            is_aborted: false,
            status: Status::Failed,
            reason: Some("it awaits approval".to_owned()),
            turn_json: None,
            deliveries: Vec::new(),
            stream: None,
            wait: Some(wait("p", Awaited::Approval(7))),
            trace: "{}".to_owned(),
            at: 3,
            epoch: 1,
        };
        assert!(finish().apply(&connection).unwrap().is_some());
        assert_eq!(seqs(&connection, "p"), [1, 2]);
        assert_eq!(ForgetWaits { event_seqs: vec![1, 2, 3] }.apply(&connection).unwrap(), 2);
        assert!(finish().apply(&connection).unwrap().is_some(), "a repetition");
        assert_eq!(seqs(&connection, "p"), Vec::<i64>::new(), "what was forgotten waits again");
        assert_eq!(request_by_event(&connection, 2).unwrap().unwrap().status, "failed");
    }

    #[test]
    fn what_each_waits_for_is_kept_apart_and_the_oldest_comes_first() {
        let connection = crate::samples::nexus_ledger();
        for (project, awaited, seq) in [("q", Awaited::Configuration, 5), ("p", Awaited::Approval(2), 3), ("p", Awaited::Approval(1), 9)] {
            wait(project, awaited).insert(&connection, [seq, seq + 10].into_iter(), seq).unwrap();
        }
        let groups = wait_groups(&connection).unwrap();
        let expected = [("p", Awaited::Approval(2)), ("q", Awaited::Configuration), ("p", Awaited::Approval(1))];
        assert_eq!(groups, expected.map(|(project, awaited)| (project.to_owned(), awaited)));
        assert_eq!(seqs(&connection, "p"), [3, 9, 13, 19]);
        assert_eq!(waits_by_approval(&connection).unwrap(), [(1, 2), (2, 2)]);
        let one = wait_of(&connection, 15).unwrap().unwrap();
        assert_eq!((one.awaited.code(), one.awaited.approval(), one.at), ("project_configuration", None, 5));
        assert_eq!(wait_of(&connection, 4).unwrap(), None);
    }

    #[test]
    fn what_is_waited_for_instead_is_waited_for_by_the_same_since_the_same_time() {
        let connection = crate::samples::nexus_ledger();
        for (project, awaited, seq) in [("p", Awaited::Approval(1), 1), ("p", Awaited::Source, 2), ("q", Awaited::Approval(1), 3)] {
            wait(project, awaited).insert(&connection, [seq].into_iter(), seq * 10).unwrap();
        }
        let moved = |from, to| MoveWaits { project: "p".to_owned(), from, to }.apply(&connection).unwrap();
        assert_eq!(moved(Awaited::Approval(1), Awaited::Source), 1);
        assert_eq!(wait_groups(&connection).unwrap()[0], ("p".to_owned(), Awaited::Source));
        assert_eq!(moved(Awaited::Source, Awaited::Approval(2)), 2);
        let kept: Vec<_> = waits(&connection, "p").unwrap().iter().map(|one| (one.event_seq, one.awaited, one.at)).collect();
        assert_eq!(kept, [(1, Awaited::Approval(2), 10), (2, Awaited::Approval(2), 20)]);
        assert_eq!(waits_by_approval(&connection).unwrap(), [(1, 1), (2, 2)]);
        assert_eq!(moved(Awaited::Configuration, Awaited::Source), 0);
    }

    #[test]
    fn of_too_many_the_oldest_make_room_and_no_other_projects() {
        let connection = crate::samples::nexus_ledger();
        wait("q", Awaited::Configuration).insert(&connection, [1].into_iter(), 1).unwrap();
        let max = i64::try_from(WAITS_KEPT_MAX).unwrap();
        wait("p", Awaited::Configuration).insert(&connection, 2..max + 5, 1).unwrap();
        let kept = seqs(&connection, "p");
        assert_eq!((kept.len(), kept[0], seqs(&connection, "q").len()), (WAITS_KEPT_MAX, 5, 1));
    }

    #[test]
    fn no_look_at_one_project_reads_the_others() {
        let connection = crate::samples::nexus_ledger();
        let sql = format!("SELECT {COLUMNS} FROM project_waits WHERE project = ?1 ORDER BY event_seq");
        let plan = crate::samples::plan(&connection, &sql);
        assert!(plan.iter().any(|step| step.contains("waits_by_project")), "{plan:?}");
    }
}
