//! `nexus project gc`: what projects take on the disk, and putting away those that nobody uses.

use crate::cli::failure::Exit;
use crate::cli::out::{Color, Out, note, one_line, visible};
use crate::cli::table::{self, Cell};
use crate::cli::{Global, units};
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
    let answer = super::ask(global, &format!("/control/prepare/gc?days={days}"), None)?;
    let out = global.out();
    if out.json {
        out.json(&answer)?;
        return Ok(Exit::Done);
    }
    let zone = TimeZone::system();
    let rows: Vec<[Cell; 5]> = answer["projects"].as_array().into_iter().flatten().map(|one| row(one, &zone)).collect();
    if rows.is_empty() {
        note("no project could be put away");
    }
    for line in table::lines(&rows, &[], out.paint) {
        out.line(&line)?;
    }
    Ok(Exit::Done)
}

fn row(one: &Value, zone: &TimeZone) -> [Cell; 5] {
    let used = one["last_used"].as_i64().map_or_else(|| "never used".to_owned(), |ms| units::second(ms, zone));
    let unsaved: Vec<&str> = one["unsaved"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    [
        Cell::new(one["slug"].as_str().unwrap_or("-")),
        Cell::colored(if one["running"] == true { "running" } else { "" }, Color::Green),
        Cell::new(format!("{} MiB", units::thousands(one["bytes"].as_u64().unwrap_or(0) / MIB))),
        Cell::colored(used, Color::Dim),
        Cell::colored(one_line(&unsaved.join(", "), REASON_CHARS_MAX), Color::Yellow),
    ]
}

fn put_away(args: &Args, global: &Global) -> anyhow::Result<Exit> {
    let body = json!({ "projects": args.projects, "delete": args.delete, "force": args.force });
    let answer = super::ask(global, "/control/prepare/gc", Some(&body))?;
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
        let (project, path) = (text(&one["project"]), text(&one["path"]));
        out.line(&match one["done"].as_str() {
            Some("deleted") => format!("deleted {project}"),
            Some("before") => format!("{project} is archived already"),
            Some("missing") => format!("{project} had no directory any more; it counts as archived"),
            Some(_) | None => format!("archived {project} in {path}"),
        })?;
    }
    refused.iter().for_each(|one| note(&format!("kept {}: {}", text(&one["project"]), text(&one["error"]))));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::out::Paint;

    #[test]
    fn those_that_run_are_marked() {
        let mut one = json!({ "slug": "demo-1", "bytes": 3 * MIB, "running": true, "last_used": null, "unsaved": ["1 stash(es)"] });
        let line = |one: &Value| table::lines(&[row(one, &TimeZone::UTC)], &[], Paint::PLAIN);
        assert_eq!(line(&one), ["demo-1  running  3 MiB  never used  1 stash(es)"]);
        one["running"] = false.into();
        assert_eq!(line(&one), ["demo-1    3 MiB  never used  1 stash(es)"]);
    }
}
