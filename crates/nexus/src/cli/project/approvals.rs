//! `nexus project approvals`: what projects want to run, and what was decided.

use crate::cli::client::Client;
use crate::cli::failure::Exit;
use crate::cli::out::{Color, note, one_line};
use crate::cli::table::{self, Cell};
use crate::cli::{Global, block_on};
use serde_json::{Value, json};

/// Longest project and command in a table, in characters.
const PROJECT_CHARS_MAX: usize = 40;
const COMMAND_CHARS_MAX: usize = 400;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Those that were decided about too
    #[arg(long)]
    all: bool,
}

pub(crate) fn run(args: &Args, global: &Global) -> anyhow::Result<Exit> {
    let paths = global.paths()?;
    let answer = block_on(async { Client::new(&paths).get("/control/prepare/approvals").await })??;
    let listed = answer["approvals"].as_array().into_iter().flatten();
    let wanted: Vec<&Value> = listed.filter(|one| args.all || one["status"] == "pending").collect();
    let out = global.out();
    if out.json {
        out.json(&json!({ "approvals": wanted }))?;
        return Ok(Exit::Done);
    }
    if wanted.is_empty() {
        note("nothing waits for an approval");
    }
    let rows: Vec<[Cell; 6]> = wanted.into_iter().map(row).collect();
    for line in table::lines(&rows, &[], out.paint) {
        out.line(&line)?;
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
    // The identifier is what people know it by.
    let project = text("project").splitn(3, ':').nth(2).unwrap_or("-");
    let waiting = one["waiting"].as_u64().filter(|events| *events > 0).map(|events| format!("{events} waiting")).unwrap_or_default();
    [
        Cell::new(one["id"].to_string()),
        Cell::colored(text("status"), color),
        Cell::new(one_line(project, PROJECT_CHARS_MAX)),
        Cell::new(format!("{} {}", text("kind"), text("subject"))),
        Cell::new(waiting),
        Cell::new(one_line(text("command"), COMMAND_CHARS_MAX)),
    ]
}
