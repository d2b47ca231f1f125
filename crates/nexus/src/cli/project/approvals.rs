//! `nexus project approvals`: what projects want to run, and what was decided.

use crate::cli::Global;
use crate::cli::failure::Exit;
use crate::cli::out::{Color, note, one_line};
use crate::cli::table::{self, Cell};
use crate::project::coordinate::Coordinate;
use serde_json::{Value, json};

/// Longest project and command in a table, in characters.
const PROJECT_CHARS_MAX: usize = 60;
const COMMAND_CHARS_MAX: usize = 400;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Those that were decided about too
    #[arg(long)]
    all: bool,
}

pub(crate) fn run(args: &Args, global: &Global) -> anyhow::Result<Exit> {
    let answer = super::ask(global, "/control/prepare/approvals", None)?;
    let listed = answer["approvals"].as_array().into_iter().flatten();
    let wanted: Vec<&Value> = listed.filter(|one| args.all || one["status"] == "pending").collect();
    let out = global.out();
    if out.json {
        out.json(&json!({ "approvals": wanted }))?;
        return Ok(Exit::Done);
    }
    if wanted.is_empty() {
        note(if args.all { "no project has asked for an approval" } else { "nothing waits for an approval" });
    }
    let is_asked = wanted.iter().any(|one| one["status"] == "pending");
    let rows: Vec<[Cell; 6]> = wanted.into_iter().map(row).collect();
    for line in table::lines(&rows, &[], out.paint) {
        out.line(&line)?;
    }
    if is_asked {
        note("`nexus project approve ID` approves, with --deny denies");
    }
    Ok(Exit::Done)
}

fn row(one: &Value) -> [Cell; 6] {
    let text = |key: &str| one[key].as_str().unwrap_or("-");
    let color = match text("status") {
        "approved" => Color::Green,
        "denied" => Color::Red,
        _ => Color::Yellow,
    };
    // As other verbs take it: two authors may use one identifier.
    let project = Coordinate::parse(text("project")).map_or_else(|_| text("project").to_owned(), |project| project.slug());
    let waiting = one["waiting"].as_u64().filter(|events| *events > 0).map(|events| format!("{events} waiting")).unwrap_or_default();
    [
        Cell::new(one["id"].to_string()),
        Cell::colored(text("status"), color),
        Cell::new(one_line(&project, PROJECT_CHARS_MAX)),
        Cell::new(format!("{} {}", text("kind"), text("subject"))),
        Cell::new(waiting),
        Cell::new(one_line(text("command"), COMMAND_CHARS_MAX)),
    ]
}
