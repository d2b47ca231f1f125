//! `nexus project gc`: what projects take on the disk, and putting away those that nobody uses.

use crate::cli::client::Client;
use crate::cli::failure::Exit;
use crate::cli::out::{Color, Out, note, one_line, visible};
use crate::cli::table::{self, Cell};
use crate::cli::{Global, block_on, units};
use jiff::tz::TimeZone;
use serde_json::{Value, json};

/// Longest reason in a table, in characters.
const REASON_CHARS_MAX: usize = 160;
const MIB: u64 = 1024 * 1024;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Put these away; without any, those that could be are listed
    #[arg(value_name = "PROJECT")]
    projects: Vec<String>,
    /// List those that were not used for so many days
    #[arg(long, value_name = "N", default_value_t = 0, conflicts_with = "projects")]
    days: u32,
    /// Delete them instead of keeping them in an archive
    #[arg(long, requires = "projects")]
    delete: bool,
    /// Also with uncommitted files, unpushed commits or stashes
    #[arg(long, requires = "projects")]
    force: bool,
}

pub(crate) fn run(args: &Args, global: &Global) -> anyhow::Result<Exit> {
    if args.projects.is_empty() { list(args.days, global) } else { put_away(args, global) }
}

fn list(days: u32, global: &Global) -> anyhow::Result<Exit> {
    let paths = global.paths()?;
    let answer = block_on(async { Client::new(&paths).get(&format!("/control/prepare/gc?days={days}")).await })??;
    let out = global.out();
    if out.json {
        out.json(&answer)?;
        return Ok(Exit::Done);
    }
    let zone = TimeZone::system();
    let rows: Vec<[Cell; 4]> = answer["projects"].as_array().into_iter().flatten().map(|one| row(one, &zone)).collect();
    if rows.is_empty() {
        note("no such projects");
    }
    for line in table::lines(&rows, &[], out.paint) {
        out.line(&line)?;
    }
    Ok(Exit::Done)
}

fn row(one: &Value, zone: &TimeZone) -> [Cell; 4] {
    let used = one["last_used"].as_i64().map_or_else(|| "never used".to_owned(), |ms| units::second(ms, zone));
    let unsaved: Vec<&str> = one["unsaved"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    [
        Cell::new(one["slug"].as_str().unwrap_or("-")),
        Cell::new(format!("{} MiB", units::thousands(one["bytes"].as_u64().unwrap_or(0) / MIB))),
        Cell::colored(used, Color::Dim),
        Cell::colored(one_line(&unsaved.join(", "), REASON_CHARS_MAX), Color::Yellow),
    ]
}

fn put_away(args: &Args, global: &Global) -> anyhow::Result<Exit> {
    let paths = global.paths()?;
    let body = json!({ "projects": args.projects, "delete": args.delete, "force": args.force });
    let answer = block_on(async { Client::new(&paths).post("/control/prepare/gc", &body).await })??;
    let out = global.out();
    let refused = answer["refused"].as_array().map(Vec::as_slice).unwrap_or_default();
    if out.json {
        out.json(&answer)?
    } else {
        tell(&answer, refused, out)?
    }
    Ok(if refused.is_empty() { Exit::Done } else { Exit::Failed })
}

fn tell(answer: &Value, refused: &[Value], out: Out) -> anyhow::Result<()> {
    let text = |value: &Value| visible(value.as_str().unwrap_or("-"));
    for one in answer["archived"].as_array().into_iter().flatten() {
        match one["path"].as_str() {
            Some(path) => out.line(&format!("archived {} in {}", text(&one["project"]), visible(path)))?,
            None => out.line(&format!("deleted {}", text(&one["project"])))?,
        }
    }
    refused.iter().for_each(|one| note(&format!("kept {}: {}", text(&one["project"]), text(&one["error"]))));
    Ok(())
}
