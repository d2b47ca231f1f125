//! Projects: where each lies, what it was prepared from, and how far it has come. What lies in the
//! directory itself is not known here.

use super::Claim;
use crate::ledger::optional;
use crate::ledger::writer::Weight;
use rusqlite::{Connection, Row, params};
use serde_json::Value;

/// Why a project isn't started any more. Serialized as that alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quarantine {
    pub reason: String,
    /// A mark of the configuration by which it ran then: another one ends the quarantine.
    pub under: String,
}

impl serde::Serialize for Quarantine {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.reason)
    }
}

/// One project as last known.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct ProjectRow {
    /// `kind:pubkey:identifier`.
    pub coordinate: String,
    pub slug: String,
    /// Absolute.
    pub path: String,
    pub title: String,
    /// `discovered`, `preparing`, `needs_configuration`, `ready` or `archived`; whether it runs is not kept.
    pub status: String,
    pub reason: Option<String>,
    pub quarantined: Option<Quarantine>,
    pub definition_id: Option<String>,
    /// The signed event, as JSON.
    #[serde(skip)]
    pub definition: Option<String>,
    /// Public keys of its agents, as it was prepared last: an event may speak to one before it is prepared again.
    #[serde(skip)]
    pub agents: Vec<String>,
    /// What of its definition could not be used when it was prepared from that; saved with a definition only.
    #[serde(skip)]
    pub problems: Vec<String>,
    /// Unix ms, as all times.
    pub prepared_at: Option<i64>,
    pub last_used: Option<i64>,
    pub created_at: i64,
    pub updated_at: i64,
}

/// Writes what is known of a project. What the row doesn't know stays as it was; a new definition ends its quarantine.
#[derive(Debug, Clone)]
pub struct SaveProject {
    pub row: ProjectRow,
}

impl SaveProject {
    pub(super) fn apply(&self, connection: &Connection) -> rusqlite::Result<()> {
        let sql = "INSERT INTO projects (coordinate, slug, path, title, status, reason, definition_id, definition, prepared_at, last_used,
                     created_at, updated_at, agents, problems)
                   VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14)
                   ON CONFLICT (coordinate) DO UPDATE SET slug = ?2, path = ?3, title = ?4, status = ?5, reason = ?6,
                     definition_id = coalesce(?7, definition_id), definition = coalesce(?8, definition),
                     prepared_at = coalesce(?9, prepared_at), last_used = coalesce(?10, last_used), updated_at = ?12,
                     agents = CASE ?13 WHEN '[]' THEN agents ELSE ?13 END,
                     problems = CASE WHEN ?8 IS NULL THEN problems ELSE ?14 END,
                     quarantined = CASE WHEN coalesce(?7, definition_id) IS definition_id THEN quarantined END,
                     quarantined_under = CASE WHEN coalesce(?7, definition_id) IS definition_id THEN quarantined_under END";
        let (row, agents) = (&self.row, Value::from(self.row.agents.clone()).to_string());
        let problems = Value::from(row.problems.clone()).to_string();
        let values = params![
            row.coordinate,
            row.slug,
            row.path,
            row.title,
            row.status,
            row.reason,
            row.definition_id,
            row.definition,
            row.prepared_at,
            row.last_used,
            row.created_at,
            row.updated_at,
            agents,
            problems
        ];
        connection.prepare_cached(sql)?.execute(values).map(drop)
    }
}

/// Says how far a project has come.
#[derive(Debug, Clone)]
pub struct MarkProject {
    pub coordinate: String,
    pub status: String,
    pub reason: Option<String>,
    pub at: i64,
}

impl MarkProject {
    pub(super) fn apply(&self, connection: &Connection) -> rusqlite::Result<Claim> {
        let sql = "UPDATE projects SET status = ?2, reason = ?3, updated_at = ?4 WHERE coordinate = ?1";
        let changed = connection.prepare_cached(sql)?.execute(params![self.coordinate, self.status, self.reason, self.at])?;
        Ok(if changed == 1 { Claim::Done } else { Claim::Lost })
    }
}

/// Quarantines a project, or releases it.
#[derive(Debug, Clone)]
pub struct QuarantineProject {
    pub coordinate: String,
    pub quarantine: Option<Quarantine>,
    pub at: i64,
}

impl QuarantineProject {
    pub(super) fn apply(&self, connection: &Connection) -> rusqlite::Result<Claim> {
        let sql = "UPDATE projects SET quarantined = ?2, quarantined_under = ?3, updated_at = ?4 WHERE coordinate = ?1";
        let (reason, under) = self.quarantine.as_ref().map(|one| (&one.reason, &one.under)).unzip();
        let changed = connection.prepare_cached(sql)?.execute(params![self.coordinate, reason, under, self.at])?;
        Ok(if changed == 1 { Claim::Done } else { Claim::Lost })
    }
}

/// An event was handed to it.
#[derive(Debug, Clone)]
pub struct UseProject {
    pub coordinate: String,
    pub at: i64,
}

impl UseProject {
    pub(super) fn apply(&self, connection: &Connection) -> rusqlite::Result<Claim> {
        let sql = "UPDATE projects SET last_used = max(coalesce(last_used, 0), ?2) WHERE coordinate = ?1";
        let changed = connection.prepare_cached(sql)?.execute(params![self.coordinate, self.at])?;
        Ok(if changed == 1 { Claim::Done } else { Claim::Lost })
    }
}

/// What was being prepared when the daemon ended is not being prepared any more.
#[derive(Debug, Clone)]
pub struct SettleProjects {
    pub reason: String,
    pub at: i64,
}

impl SettleProjects {
    pub(super) fn apply(&self, connection: &Connection) -> rusqlite::Result<usize> {
        let sql = "UPDATE projects SET status = 'discovered', reason = ?1, updated_at = ?2 WHERE status = 'preparing'";
        connection.prepare_cached(sql)?.execute(params![self.reason, self.at])
    }
}

const COLUMNS: &str = "coordinate, slug, path, title, status, reason, quarantined, definition_id, definition, prepared_at, last_used,
    created_at, updated_at, agents, problems, quarantined_under";

/// One project.
pub fn project(connection: &Connection, coordinate: &str) -> rusqlite::Result<Option<ProjectRow>> {
    let sql = format!("SELECT {COLUMNS} FROM projects WHERE coordinate = ?1");
    optional(connection.prepare_cached(&sql)?.query_row([coordinate], read))
}

/// The project that a person means: by coordinate, by slug, or by the beginning of a slug that only one has.
pub fn project_named(connection: &Connection, name: &str) -> rusqlite::Result<Option<ProjectRow>> {
    let exact = format!("SELECT {COLUMNS} FROM projects WHERE coordinate = ?1 OR slug = ?1");
    if let Some(row) = optional(connection.prepare_cached(&exact)?.query_row([name], read))? {
        return Ok(Some(row));
    }
    let beginning = format!("SELECT {COLUMNS} FROM projects WHERE substr(slug, 1, length(?1)) = ?1 LIMIT 2");
    let mut query = connection.prepare_cached(&beginning)?;
    let mut found: Vec<ProjectRow> = query.query_map([name], read)?.collect::<rusqlite::Result<_>>()?;
    Ok(if found.len() == 1 && !name.is_empty() { found.pop() } else { None })
}

/// The coordinates of the projects of `pubkey` that were prepared from one of these events.
pub fn projects_defined_by(connection: &Connection, pubkey: &str, event_ids: &[String]) -> rusqlite::Result<Vec<String>> {
    let sql =
        "SELECT coordinate FROM projects WHERE definition_id = ?1 AND substr(coordinate, instr(coordinate, ':') + 1, length(?2)) = ?2";
    let mut query = connection.prepare_cached(sql)?;
    let mut found = Vec::new();
    for id in event_ids {
        let of_one: Vec<String> = query.query_map([id.as_str(), pubkey], |row| row.get(0))?.collect::<rusqlite::Result<_>>()?;
        found.extend(of_one);
    }
    Ok(found)
}

/// All projects, those used last first.
pub fn projects(connection: &Connection) -> rusqlite::Result<Vec<ProjectRow>> {
    let sql = format!("SELECT {COLUMNS} FROM projects ORDER BY coalesce(last_used, 0) DESC, coordinate");
    connection.prepare_cached(&sql)?.query_map([], read)?.collect()
}

fn read(row: &Row<'_>) -> rusqlite::Result<ProjectRow> {
    Ok(ProjectRow {
        coordinate: row.get(0)?,
        slug: row.get(1)?,
        path: row.get(2)?,
        title: row.get(3)?,
        status: row.get(4)?,
        reason: row.get(5)?,
        quarantined: quarantine(row.get(6)?, row.get(15)?),
        definition_id: row.get(7)?,
        definition: row.get(8)?,
        prepared_at: row.get(9)?,
        last_used: row.get(10)?,
        created_at: row.get(11)?,
        updated_at: row.get(12)?,
        // Written by us alone; what can't be read is known again after the next preparation.
        agents: serde_json::from_str(&row.get::<_, String>(13)?).unwrap_or_default(),
        problems: serde_json::from_str(&row.get::<_, String>(14)?).unwrap_or_default(),
    })
}

/// What no mark was kept of ends with the first look at it.
fn quarantine(reason: Option<String>, under: Option<String>) -> Option<Quarantine> {
    reason.map(|reason| Quarantine { reason, under: under.unwrap_or_default() })
}

impl Weight for SaveProject {
    fn bytes(&self) -> usize {
        let agents: usize = self.row.agents.iter().map(|key| key.len() + 3).sum();
        let problems: usize = self.row.problems.iter().map(|problem| problem.len() + 3).sum();
        self.row.definition.as_ref().map_or(0, String::len) + self.row.path.len() + self.row.title.len() + agents + problems + 512
    }
}

impl Weight for MarkProject {}

impl Weight for QuarantineProject {}

impl Weight for UseProject {}

impl Weight for SettleProjects {}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn row(identifier: &str) -> ProjectRow {
        ProjectRow {
            coordinate: format!("31933:aa:{identifier}"),
            slug: format!("{identifier}-00"),
            path: format!("/p/{identifier}"),
            title: identifier.to_owned(),
            status: "discovered".into(),
            reason: None,
            quarantined: None,
            definition_id: Some("e1".into()),
            definition: Some("{}".into()),
            agents: Vec::new(),
            problems: Vec::new(),
            prepared_at: None,
            last_used: None,
            created_at: 1,
            updated_at: 1,
        }
    }

    #[test]
    fn what_a_later_row_does_not_know_stays() {
        let connection = crate::samples::nexus_ledger();
        SaveProject { row: ProjectRow { prepared_at: Some(5), ..row("demo") } }.apply(&connection).unwrap();
        SaveProject { row: ProjectRow { definition: None, definition_id: None, updated_at: 9, ..row("demo") } }.apply(&connection).unwrap();
        let kept = project(&connection, "31933:aa:demo").unwrap().unwrap();
        assert_eq!((kept.definition.as_deref(), kept.prepared_at, kept.updated_at), (Some("{}"), Some(5), 9));
        assert_eq!(kept.definition_id.as_deref(), Some("e1"));
    }

    #[test]
    fn problems_are_those_of_the_definition_that_was_prepared_from_last() {
        let connection = crate::samples::nexus_ledger();
        let save = |problems: &[&str], definition: Option<&str>| {
            let (problems, definition) = (problems.iter().map(|one| (*one).to_owned()).collect(), definition.map(str::to_owned));
            SaveProject { row: ProjectRow { problems, definition, ..row("demo") } }.apply(&connection).unwrap();
            project(&connection, "31933:aa:demo").unwrap().unwrap().problems
        };
        assert_eq!(save(&["p1", "p2"], Some("{}")), ["p1", "p2"]);
        assert_eq!(save(&[], None), ["p1", "p2"]);
        assert!(save(&[], Some("{}")).is_empty());
    }

    #[test]
    fn agents_are_known_until_others_are() {
        let connection = crate::samples::nexus_ledger();
        let save = |agents: &[&str]| {
            let agents = agents.iter().map(|key| (*key).to_owned()).collect();
            SaveProject { row: ProjectRow { agents, ..row("demo") } }.apply(&connection).unwrap();
            project(&connection, "31933:aa:demo").unwrap().unwrap().agents
        };
        assert_eq!((save(&["k1", "k2"]), save(&[])), (vec!["k1".to_owned(), "k2".to_owned()], vec!["k1".to_owned(), "k2".to_owned()]));
        assert_eq!(save(&["k3"]), ["k3"]);
    }

    #[test]
    fn who_prepared_from_an_event_is_found_if_it_is_its_author() {
        let connection = crate::samples::nexus_ledger();
        SaveProject { row: row("demo") }.apply(&connection).unwrap();
        let found = |pubkey: &str, id: &str| projects_defined_by(&connection, pubkey, &["other".to_owned(), id.to_owned()]).unwrap();
        assert_eq!(found("aa", "e1"), ["31933:aa:demo"]);
        assert!(found("bb", "e1").is_empty() && found("aa", "e2").is_empty());
    }

    #[test]
    fn what_a_dead_daemon_was_preparing_is_settled() {
        let connection = crate::samples::nexus_ledger();
        for (identifier, status) in [("a", "preparing"), ("b", "ready")] {
            SaveProject { row: ProjectRow { status: status.into(), ..row(identifier) } }.apply(&connection).unwrap();
        }
        assert_eq!(SettleProjects { reason: "r".into(), at: 9 }.apply(&connection).unwrap(), 1);
        let status = |identifier: &str| project(&connection, &format!("31933:aa:{identifier}")).unwrap().unwrap().status;
        assert_eq!((status("a").as_str(), status("b").as_str()), ("discovered", "ready"));
    }

    #[test]
    fn only_a_new_definition_ends_a_quarantine_by_itself() {
        let connection = crate::samples::nexus_ledger();
        let save = |id: Option<&str>| {
            SaveProject { row: ProjectRow { definition_id: id.map(str::to_owned), ..row("demo") } }.apply(&connection).unwrap();
            project(&connection, "31933:aa:demo").unwrap().unwrap().quarantined
        };
        save(Some("e1"));
        let quarantine = Some(Quarantine { reason: "5 crashes".to_owned(), under: "mark".to_owned() });
        let put = |quarantine: &Option<Quarantine>| {
            QuarantineProject { coordinate: "31933:aa:demo".into(), quarantine: quarantine.clone(), at: 2 }.apply(&connection).unwrap()
        };
        assert_eq!(put(&quarantine), Claim::Done);
        assert_eq!((save(Some("e1")), save(None)), (quarantine.clone(), quarantine.clone()));
        assert_eq!(save(Some("e2")), None);
        assert_eq!((put(&quarantine), put(&None), save(None)), (Claim::Done, Claim::Done, None));
        let marks = "SELECT count(*) FROM projects WHERE quarantined_under IS NOT NULL";
        assert_eq!(connection.query_row(marks, [], |row| row.get::<_, i64>(0)).unwrap(), 0, "no mark outlives its quarantine");
    }

    #[test]
    fn a_project_is_found_by_the_beginning_of_its_slug_if_only_one_has_it() {
        let connection = crate::samples::nexus_ledger();
        for identifier in ["demo", "demon", "other"] {
            SaveProject { row: row(identifier) }.apply(&connection).unwrap();
        }
        let found = |name: &str| project_named(&connection, name).unwrap().map(|row| row.title);
        assert_eq!(found("31933:aa:other").as_deref(), Some("other"));
        assert_eq!(found("demo-00").as_deref(), Some("demo"));
        assert_eq!(found("oth").as_deref(), Some("other"));
        assert_eq!(found("demon").as_deref(), Some("demon"));
        assert_eq!((found("dem"), found(""), found("x")), (None, None, None));
        assert_eq!(found("%"), None, "nobody's pattern is obeyed");
    }

    #[test]
    fn only_what_is_there_is_marked_and_used() {
        let connection = crate::samples::nexus_ledger();
        let mark = |status: &str| MarkProject { coordinate: "31933:aa:demo".into(), status: status.into(), reason: None, at: 7 };
        assert_eq!(mark("ready").apply(&connection).unwrap(), Claim::Lost);
        SaveProject { row: row("demo") }.apply(&connection).unwrap();
        assert_eq!(mark("ready").apply(&connection).unwrap(), Claim::Done);
        assert!(mark("asleep").apply(&connection).is_err(), "the states are a closed list");
        let used = |at| UseProject { coordinate: "31933:aa:demo".into(), at }.apply(&connection).unwrap();
        assert_eq!((used(20), used(10)), (Claim::Done, Claim::Done));
        let kept = projects(&connection).unwrap().remove(0);
        assert_eq!((kept.status.as_str(), kept.last_used), ("ready", Some(20)));
    }
}
