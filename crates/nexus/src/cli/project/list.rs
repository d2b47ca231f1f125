//! `nexus project list`: from the daemon, or without one from the ledger, where nothing runs.

use crate::cli::failure::Exit;
use crate::cli::out::{Color, note, one_line};
use crate::cli::table::{self, Cell};
use crate::cli::{Global, block_on, ledger, units};
use crate::ledger::nexus::{ProjectRow, projects};
use crate::project::{ProjectState, ProjectStatus};
use crate::query::{QueryError, Record};
use serde_json::{Value, json};
use std::path::Path;

/// Longest text that tells why, in characters.
const REASON_CHARS_MAX: usize = 120;

pub(crate) fn run(global: &Global) -> anyhow::Result<Exit> {
    let answer = block_on(ledger::ask(global, "/control/projects", |directory| stored(&directory)))??;
    let (out, projects) = (global.out(), &answer["projects"]);
    if out.json {
        out.json(projects)?;
        return Ok(Exit::Done);
    }
    let rows: Vec<_> = projects.as_array().into_iter().flatten().map(row).collect();
    if rows.is_empty() {
        note("no projects; one comes with the first event for it, or with `nexus project init`");
    }
    for line in table::lines(&rows, &[], out.paint) {
        out.line(&line)?;
    }
    Ok(Exit::Done)
}

/// The same shape as the daemon's answer, of what none runs of. No ledger is no mistake: nothing ever ran.
fn stored(directory: &Path) -> Result<Value, QueryError> {
    let mut rows = match Record::offline(directory) {
        Ok(record) => record.nexus.read_now(projects)?,
        Err(QueryError::NoLedger(_)) => Vec::new(),
        Err(error @ (QueryError::HalfRestored(_) | QueryError::Schema(_) | QueryError::Read(_))) => return Err(error),
    };
    rows.sort_by(|a, b| a.coordinate.cmp(&b.coordinate));
    Ok(json!({ "projects": rows.iter().map(of_row).collect::<Vec<_>>() }))
}

fn of_row(row: &ProjectRow) -> ProjectStatus {
    let mut status = ProjectStatus::of_row(row);
    // Nobody is at it: the next start of a daemon says so too.
    if status.state == ProjectState::Preparing.as_str() {
        status.state = ProjectState::Discovered.as_str();
    }
    status
}

fn row(project: &Value) -> [Cell; 6] {
    let text = |key: &str| project[key].as_str().unwrap_or("");
    let color = match text("state") {
        "running" => Color::Green,
        "quarantined" => Color::Red,
        "ready" | "archived" | "discovered" => Color::Dim,
        _ => Color::Yellow,
    };
    let uptime = project["uptime_ms"].as_u64().map(units::duration).unwrap_or_default();
    let queue = project["queue"].as_u64().filter(|queue| *queue > 0).map(|queue| format!("{queue} waiting")).unwrap_or_default();
    let told = if text("reason").is_empty() { text("doing") } else { text("reason") };
    [
        Cell::new(text("slug")),
        Cell::colored(text("state"), color),
        Cell::new(uptime),
        Cell::new(queue),
        Cell::new(text("path")),
        Cell::new(one_line(told, REASON_CHARS_MAX)),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::out::Paint;

    #[test]
    fn a_project_at_rest_has_its_state_and_what_it_waits_for() {
        let at_rest = [
            ("discovered", "the host `h` awaits approval"),
            ("needs_configuration", "agents.a.model is missing"),
            ("ready", ""),
            ("quarantined", "it crashed too often"),
            ("archived", ""),
        ];
        for (state, reason) in at_rest {
            let project = json!({ "slug": "demo-1", "state": state, "path": "/p", "reason": reason, "queue": 0 });
            let told = table::lines(&[row(&project)], &[], Paint::PLAIN).join("");
            let end = if reason.is_empty() { "/p" } else { reason };
            assert!(told.starts_with(&format!("demo-1  {state}")) && told.ends_with(end), "{told}");
        }
    }
}
