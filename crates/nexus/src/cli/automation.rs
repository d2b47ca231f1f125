//! `nexus automation ...`: which automations there are and how they are, which of them run, and what one says about an
//! event. It never starts an automation itself; the files in `state/automations` it writes and removes.

use super::adapter::edit::{Done, edit_and_tell};
use super::client::{Client, encoded, if_running};
use super::daemon::reload;
use super::failure::{Exit, Failure};
use super::out::{Color, note, one_line, visible};
use super::script::{self, PROBLEM_CHARS_MAX};
use super::table::Cell;
use super::{Global, block_on, ledger, running};
use crate::credential::write_private;
use crate::daemon::Paths;
use crate::daemon::paths::private_dir;
use crate::plugin::{AUTOMATION_BYTES_MAX, automations_on_disk};
use anyhow::Context;
use nexus_core::automation::is_name;
use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};

/// What `info` tells, in this order.
const TOLD: [&str; 15] = [
    "name",
    "description",
    "status",
    "disabled_itself",
    "pid",
    "triggers",
    "grants",
    "budget",
    "state",
    "circuit",
    "calls",
    "errors",
    "ignored",
    "last_error",
    "problem",
];
/// What a file can end in.
const ENDS: [&str; 2] = ["ts", "js"];

#[derive(Debug, clap::Subcommand)]
pub(crate) enum Verb {
    /// Put a file among the automations, from where it runs
    #[command(after_help = "Example:\n  nexus automation register ./follow-up.ts")]
    Register(Register),
    /// List the automations, those that run and those that don't
    #[command(after_help = "Example:\n  nexus automation list")]
    List,
    /// Show what an automation is, what it knows, and how it does
    #[command(after_help = "Example:\n  nexus automation info follow-up")]
    Info {
        /// The automation
        name: String,
    },
    /// Have an automation asked, also one that disabled itself
    #[command(after_help = "Example:\n  nexus automation enable follow-up")]
    Enable {
        /// The automation
        name: String,
    },
    /// Have an automation asked no more
    #[command(after_help = "Example:\n  nexus automation disable follow-up")]
    Disable {
        /// The automation
        name: String,
    },
    /// Remove an automation's file, and what it knows
    #[command(after_help = "Example:\n  nexus automation delete follow-up")]
    Delete {
        /// The automation
        name: String,
    },
    /// Ask an automation about an event in a process of its own, and show what it says
    #[command(after_help = "Example:\n  nexus automation test follow-up --event ./event.json")]
    Test(Test),
}

#[derive(Debug, clap::Args)]
pub(crate) struct Register {
    /// A file NAME.ts or NAME.js, which is copied; NAME is what the automation is called
    file: PathBuf,
    /// Put it in the place of the automation of that name; what that knows stays
    #[arg(long)]
    replace: bool,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Test {
    /// The automation; it need not be enabled
    name: String,
    /// A file with one event, as an adapter writes it
    #[arg(long, value_name = "FILE")]
    event: PathBuf,
}

pub(crate) fn run(verb: Verb, global: &Global) -> anyhow::Result<Exit> {
    match verb {
        Verb::Register(args) => register(&args, global),
        Verb::List => list(global),
        Verb::Info { name } => info(&name, global),
        Verb::Enable { name } => enable(&name, global),
        Verb::Disable { name } => set_enabled(&name, false, global),
        Verb::Delete { name } => delete(&name, global),
        Verb::Test(args) => test(&args, global),
    }
}

fn register(args: &Register, global: &Global) -> anyhow::Result<Exit> {
    let Register { file, replace } = args;
    let shown = file.display();
    let end = file.extension().and_then(|end| end.to_str()).filter(|end| ENDS.contains(end));
    let name = file.file_stem().and_then(|name| name.to_str()).filter(|name| is_name(name));
    let (Some(end), Some(name)) = (end, name) else {
        let rule = "a name has 1 to 64 characters of A-Z a-z 0-9 . _ @ + -, not starting with - or .";
        return Err(Failure::new(Exit::Failed, format!("`{shown}` must be called NAME.ts or NAME.js; {rule}")).into());
    };
    let text = script::read(file, AUTOMATION_BYTES_MAX)?;
    let paths = running::paths(global)?;
    let directory = paths.automations_dir();
    if automations_on_disk(&directory).contains(name) && !replace {
        let text = format!("there is an automation `{name}` already; `--replace` puts this one in its place");
        return Err(Failure::new(Exit::Failed, text).into());
    }
    private_dir(&directory).with_context(|| format!("failed to create `{}`", directory.display()))?;
    let path = directory.join(format!("{name}.{end}"));
    write_private(&path, text.as_bytes()).with_context(|| format!("failed to write `{}`", path.display()))?;
    // There would be two of the name.
    for other in ENDS.iter().filter(|other| **other != end) {
        remove(&directory.join(format!("{name}.{other}")))?;
    }
    let problem = if apply(&paths)? { reported(&paths, name)?["problem"].as_str().map(str::to_owned) } else { None };
    let out = global.out();
    if out.json {
        out.json(&json!({ "automation": name, "file": path.display().to_string(), "problem": problem }))?;
    } else {
        out.line(&format!("registered {name}"))?;
    }
    let Some(problem) = problem else { return Ok(Exit::Done) };
    note(&visible(&format!("{name}: {problem}")));
    Ok(Exit::Failed)
}

/// What the daemon says of its automations, or those on the disk, stopped.
fn look(global: &Global) -> anyhow::Result<Value> {
    let paths = global.paths()?;
    match running::ask(&paths, "/control/automations")? {
        Some(answer) => Ok(answer),
        None => configured(&paths),
    }
}

/// The same shape as the daemon's answer.
fn configured(paths: &Paths) -> anyhow::Result<Value> {
    let automations = ledger::configuration(paths)?.config.automations;
    let (disabled, enabled): (Vec<String>, Vec<String>) =
        automations_on_disk(&paths.automations_dir()).into_iter().partition(|name| automations.disabled.contains(name));
    let of = |name: &String| {
        let grants: Vec<String> = automations.grants.get(name).into_iter().flatten().map(ToString::to_string).collect();
        json!({ "name": name, "status": "stopped", "grants": grants })
    };
    Ok(json!({ "automations": enabled.iter().map(of).collect::<Vec<_>>(), "disabled": disabled }))
}

fn list(global: &Global) -> anyhow::Result<Exit> {
    let all = look(global)?;
    let is_empty = |key: &str| all[key].as_array().is_none_or(Vec::is_empty);
    if !global.json && is_empty("automations") && is_empty("disabled") {
        note("no automations; `nexus automation register FILE` puts one in place");
    }
    script::list(&all, "automations", row, global.out())
}

fn row(automation: &Value) -> [Cell; 4] {
    let text = |key: &str| automation[key].as_str().unwrap_or("");
    let itself = automation["disabled_itself"] == true;
    let color = match text("status") {
        "running" => Color::Green,
        "stopped" | "disabled" => Color::Dim,
        "errored" => Color::Red,
        _ => Color::Yellow,
    };
    [
        Cell::new(text("name")),
        Cell::colored(if itself { "disabled itself" } else { text("status") }, color),
        Cell::new(one_line(text("description"), PROBLEM_CHARS_MAX)),
        Cell::colored(one_line(text("problem"), PROBLEM_CHARS_MAX), Color::Red),
    ]
}

fn info(name: &str, global: &Global) -> anyhow::Result<Exit> {
    let shown = script::find(&look(global)?, "automations", name).ok_or_else(|| unknown(name))?;
    script::tell(&shown, &TOLD, global.out())
}

/// Takes it off the list of those that don't run, and has a running daemon ask it again though it disabled itself.
fn enable(name: &str, global: &Global) -> anyhow::Result<Exit> {
    let exit = set_enabled(name, true, global)?;
    let paths = global.paths()?;
    let path = format!("/control/automations/{}/enable", encoded(name));
    if if_running(block_on(async { Client::new(&paths).post(&path, &json!({})).await })?)?.is_none() {
        note("If it disabled itself, enable it again while the daemon runs.");
    }
    Ok(exit)
}

fn set_enabled(name: &str, enabled: bool, global: &Global) -> anyhow::Result<Exit> {
    let paths = running::paths(global)?;
    edit_and_tell(global, "automations", |fields, before| {
        let mut disabled = before.loaded.config.automations.disabled.clone();
        let is_disabled = disabled.iter().any(|known| known == name);
        if !automations_on_disk(&paths.automations_dir()).contains(name) && (!enabled || !is_disabled) {
            return Err(unknown(name));
        }
        if enabled {
            disabled.retain(|known| known != name);
        } else if !is_disabled {
            disabled.push(name.to_owned());
        }
        set_disabled(fields, disabled, before.in_main(&["disabled"]));
        Ok(Done { text: format!("{} {name}", if enabled { "enabled" } else { "disabled" }), still_disabled: Vec::new() })
    })
}

/// Writes the list, or takes it away where it would say what nex.yaml says.
fn set_disabled(fields: &mut Map<String, Value>, disabled: Vec<String>, in_main: Option<&Value>) {
    let says_main = match in_main {
        Some(list) if !list.is_null() => *list == json!(disabled),
        Some(_) | None => disabled.is_empty(),
    };
    if says_main {
        fields.remove("disabled");
    } else {
        fields.insert("disabled".to_owned(), json!(disabled));
    }
}

fn delete(name: &str, global: &Global) -> anyhow::Result<Exit> {
    let paths = running::paths(global)?;
    let directory = paths.automations_dir();
    if !automations_on_disk(&directory).contains(name) {
        return Err(unknown(name).into());
    }
    for end in ENDS {
        remove(&directory.join(format!("{name}.{end}")))?;
    }
    let is_running = apply(&paths)?;
    if is_running {
        // Once nothing asks it any more: what it knows would be written again.
        let path = format!("/control/automations/{}/forget", encoded(name));
        block_on(async { Client::new(&paths).post(&path, &json!({})).await })??;
    }
    let out = global.out();
    if out.json {
        out.json(&json!({ "automation": name, "deleted": true, "forgotten": is_running }))?;
    } else {
        out.line(&format!("deleted {name}"))?;
    }
    if !is_running {
        note("What it knows stays, for an automation of the same name: that is thrown away only while the daemon runs.");
    }
    Ok(Exit::Done)
}

fn test(args: &Test, global: &Global) -> anyhow::Result<Exit> {
    let Test { name, event } = args;
    let event = script::event(event)?;
    let paths = global.paths()?;
    let path = format!("/control/automations/{}/test", encoded(name));
    let answer = block_on(async { Client::new(&paths).post(&path, &json!({ "event": event })).await })??;
    let out = global.out();
    if out.json {
        out.json(&answer)?;
    } else {
        out.line(&told(&answer))?;
    }
    Ok(if answer["error"].is_string() { Exit::Failed } else { Exit::Done })
}

fn told(answer: &Value) -> String {
    let fits = if answer["matches"] == true { "its triggers fit" } else { "its triggers don't fit" };
    let said = match answer["error"].as_str() {
        Some(error) => format!("failed: {}", visible(error)),
        None => visible(&answer["advice"].to_string()),
    };
    format!("{said} ({fits}; {:.1} ms)", answer["ms"].as_f64().unwrap_or(0.0))
}

/// Has a running daemon look at the files; whether there is one.
fn apply(paths: &Paths) -> anyhow::Result<bool> {
    Ok(if_running(reload::ask(paths, false)?)?.is_some())
}

/// What the running daemon says of one automation; null if it isn't there.
fn reported(paths: &Paths, name: &str) -> anyhow::Result<Value> {
    let answer = block_on(async { Client::new(paths).get("/control/automations").await })??;
    Ok(answer["automations"].as_array().into_iter().flatten().find(|one| one["name"] == name).cloned().unwrap_or_default())
}

fn unknown(name: &str) -> Failure {
    Failure::not_found(format!("no automation `{name}` in `state/automations`; `nexus automation list` shows those that are there"))
}

fn remove(path: &Path) -> anyhow::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("failed to remove `{}`", path.display()))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_overlay_says_only_what_the_main_file_does_not() {
        let mut fields = Map::new();
        set_disabled(&mut fields, vec!["a".to_owned()], None);
        assert_eq!(Value::Object(fields.clone()), json!({ "disabled": ["a"] }));
        set_disabled(&mut fields, Vec::new(), None);
        assert!(fields.is_empty());
        let main = json!(["b"]);
        set_disabled(&mut fields, Vec::new(), Some(&main));
        assert_eq!(Value::Object(fields.clone()), json!({ "disabled": [] }));
        set_disabled(&mut fields, vec!["b".to_owned()], Some(&main));
        assert!(fields.is_empty());
    }

    #[test]
    fn an_answer_is_told_with_whether_it_would_have_been_asked() {
        let answer = json!({ "matches": true, "ms": 1.5, "advice": { "fire": true } });
        assert_eq!(told(&answer), "{\"fire\":true} (its triggers fit; 1.5 ms)");
        assert_eq!(told(&json!({ "matches": false, "ms": 2.0, "error": "boom" })), "failed: boom (its triggers don't fit; 2.0 ms)");
    }
}
