//! `nexus plugin ...`: which plugins there are and how they are, which of them run, and what one does
//! with an event. It never starts a plugin's process itself.

use super::adapter::edit::{Done, edit_and_tell};
use super::client::{Client, encoded};
use super::failure::{Exit, Failure};
use super::out::{Color, note, one_line, visible};
use super::script::{self, PROBLEM_CHARS_MAX};
use super::table::Cell;
use super::{Global, block_on, generate, ledger, running};
use crate::daemon::Paths;
use crate::plugin::names_on_disk;
use nexus_core::config::PLUGINS;
use nexus_core::hook::Hook;
use serde_json::{Map, Value, json};
use std::path::PathBuf;

/// What `info` tells, in this order.
const TOLD: [&str; 24] = [
    "name",
    "kind",
    "status",
    "pid",
    "restarts",
    "hooks",
    "mode",
    "sections",
    "priority",
    "timeout_ms",
    "on_error",
    "grants",
    "budget",
    "circuit",
    "open_at",
    "calls",
    "mean_ms",
    "p50_ms",
    "told_p50_ms",
    "errors",
    "dropped",
    "ignored",
    "last_error",
    "problem",
];

#[derive(Debug, clap::Subcommand)]
pub(crate) enum Verb {
    /// List the plugins, those that run and those that could
    #[command(after_help = "Example:\n  nexus plugin list")]
    List,
    /// Show what a plugin is, and how it does
    #[command(after_help = "Example:\n  nexus plugin info tags")]
    Info {
        /// The plugin
        name: String,
    },
    /// Have a plugin run
    #[command(after_help = "Example:\n  nexus plugin enable tags")]
    Enable {
        /// The plugin
        name: String,
    },
    /// Have a plugin run no more
    #[command(after_help = "Example:\n  nexus plugin disable tags")]
    Disable {
        /// The plugin
        name: String,
    },
    /// Start a plugin on its own, call it with an event, and show what it answers
    #[command(after_help = "Example:\n  nexus plugin test tags --event ./event.json --hook afterReceiveEvent")]
    Test(Test),
    /// Print the types that plugins and automations in TypeScript are written against
    #[command(after_help = "Example:\n  nexus plugin types > ~/nexus/plugins/nexus.d.ts")]
    Types,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Test {
    /// The plugin; it need not be enabled
    name: String,
    /// A file with one event, as an adapter writes it
    #[arg(long, value_name = "FILE")]
    event: PathBuf,
    /// Only this hook [default: all that it has]
    #[arg(long, value_parser = clap::builder::PossibleValuesParser::new(Hook::WORDS))]
    hook: Option<String>,
}

pub(crate) fn run(verb: Verb, global: &Global) -> anyhow::Result<Exit> {
    match verb {
        Verb::List => list(global),
        Verb::Info { name } => info(&name, global),
        Verb::Enable { name } => set_enabled(&name, true, global),
        Verb::Disable { name } => set_enabled(&name, false, global),
        Verb::Test(args) => test(&args, global),
        Verb::Types => {
            global.out().raw(generate::types().as_bytes())?;
            Ok(Exit::Done)
        }
    }
}

/// What the daemon says of its plugins, or the configured ones, stopped.
fn look(global: &Global) -> anyhow::Result<Value> {
    let paths = global.paths()?;
    match running::ask(&paths, "/control/plugins")? {
        Some(answer) => Ok(answer),
        None => configured(&paths),
    }
}

/// The same shape as the daemon's answer.
fn configured(paths: &Paths) -> anyhow::Result<Value> {
    let plugins = ledger::configuration(paths)?.config.plugins;
    let found = names_on_disk(&paths.plugins_dir(&plugins.directory));
    let of = |name: &String| {
        let known = PLUGINS.contains(&name.as_str()) || found.contains(name);
        let problem = (!known).then(|| format!("there is no such plugin in `{}`", plugins.directory));
        let grants = plugins.grants.get(name).cloned().unwrap_or_default();
        json!({ "name": name, "status": "stopped", "grants": grants, "problem": problem })
    };
    let enabled: Vec<Value> = plugins.enabled.iter().map(of).collect();
    let all = PLUGINS.iter().copied().chain(found.iter().map(String::as_str));
    let disabled: Vec<&str> = all.filter(|name| !plugins.enabled.iter().any(|enabled| enabled == name)).collect();
    Ok(json!({ "plugins": enabled, "disabled": disabled }))
}

fn list(global: &Global) -> anyhow::Result<Exit> {
    script::list(&look(global)?, "plugins", row, global.out())
}

fn row(plugin: &Value) -> [Cell; 4] {
    let text = |key: &str| plugin[key].as_str().unwrap_or("");
    let color = match text("status") {
        "running" => Color::Green,
        "stopped" => Color::Dim,
        "errored" => Color::Red,
        _ => Color::Yellow,
    };
    let hooks: Vec<&str> = plugin["hooks"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    [
        Cell::new(text("name")),
        Cell::colored(text("status"), color),
        Cell::new(hooks.join(" ")),
        Cell::colored(one_line(text("problem"), PROBLEM_CHARS_MAX), Color::Red),
    ]
}

fn info(name: &str, global: &Global) -> anyhow::Result<Exit> {
    let missing = || Failure::not_found(format!("no plugin `{name}`; `nexus plugin list` shows those that are there"));
    let shown = script::find(&look(global)?, "plugins", name).ok_or_else(missing)?;
    let out = global.out();
    script::tell(&if out.json { shown } else { rounded(shown) }, &TOLD, out)
}

/// Times to the microsecond, for people.
fn rounded(mut shown: Value) -> Value {
    for key in ["mean_ms", "p50_ms", "told_p50_ms"] {
        if let Some(ms) = shown[key].as_f64() {
            shown[key] = format!("{ms:.3}").into();
        }
    }
    shown
}

fn set_enabled(name: &str, enabled: bool, global: &Global) -> anyhow::Result<Exit> {
    let paths = running::paths(global)?;
    let exit = edit_and_tell(global, "plugins", |fields, before| {
        let plugins = &before.loaded.config.plugins;
        let is_there = PLUGINS.contains(&name) || names_on_disk(&paths.plugins_dir(&plugins.directory)).contains(name);
        let is_enabled = plugins.enabled.iter().any(|known| known == name);
        if !is_there && (enabled || !is_enabled) {
            let places = format!("{name}.ts, {name}.js or {name}/plugin.yaml");
            return Err(Failure::not_found(format!("no plugin `{name}`: there is no {places} in `{}`", plugins.directory)));
        }
        let mut names = plugins.enabled.clone();
        if enabled && !is_enabled {
            names.push(name.to_owned());
        } else if !enabled {
            names.retain(|known| known != name);
        }
        set_names(fields, names, before.in_main(&["enabled"]));
        Ok(Done { text: format!("{} {name}", if enabled { "enabled" } else { "disabled" }), still_disabled: Vec::new() })
    })?;
    match problem(&paths, name)? {
        Some(problem) if enabled => {
            note(&visible(&format!("{name}: {problem}")));
            Ok(Exit::Failed)
        }
        Some(_) | None => Ok(exit),
    }
}

/// What is wrong with a plugin by the word of a running daemon, which has loaded it by now, or tried to.
fn problem(paths: &Paths, name: &str) -> anyhow::Result<Option<String>> {
    let answer = running::ask(paths, "/control/plugins")?;
    let found = answer.and_then(|answer| script::find(&answer, "plugins", name));
    Ok(found.and_then(|one| one["problem"].as_str().map(str::to_owned)))
}

/// Writes the list, or takes it away where it would say what nex.yaml says.
fn set_names(fields: &mut Map<String, Value>, names: Vec<String>, in_main: Option<&Value>) {
    let names = Value::from(names);
    if in_main == Some(&names) {
        fields.remove("enabled");
    } else {
        fields.insert("enabled".to_owned(), names);
    }
}

fn test(args: &Test, global: &Global) -> anyhow::Result<Exit> {
    let Test { name, event, hook } = args;
    let event = script::event(event)?;
    let paths = global.paths()?;
    let path = format!("/control/plugins/{}/test", encoded(name));
    let body = json!({ "event": event, "hook": hook });
    let answer = block_on(async { Client::new(&paths).post(&path, &body).await })??;
    let out = global.out();
    let calls = answer["calls"].as_array().map(Vec::as_slice).unwrap_or_default();
    if out.json {
        out.json(&answer)?;
    } else {
        for call in calls {
            out.line(&told(call))?;
        }
    }
    let failed = calls.iter().any(|call| call["error"].is_string());
    Ok(if failed { Exit::Failed } else { Exit::Done })
}

fn told(call: &Value) -> String {
    let text = |key: &str| call[key].as_str().map(visible);
    let mut line = format!("{}: {}", text("hook").unwrap_or_default(), text("result").unwrap_or_else(|| "failed".to_owned()));
    if !call["patch"].is_null() {
        line.push_str(&format!(" {}", visible(&call["patch"].to_string())));
    }
    line.push_str(&format!(" ({:.1} ms)", call["ms"].as_f64().unwrap_or(0.0)));
    if let Some(error) = text("error") {
        line.push_str(&format!("\n  {error}"));
    }
    line
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_overlay_says_only_what_the_main_file_does_not() {
        let mut fields = Map::new();
        let main = json!(["logging"]);
        set_names(&mut fields, vec!["logging".to_owned(), "tags".to_owned()], Some(&main));
        assert_eq!(Value::Object(fields.clone()), json!({ "enabled": ["logging", "tags"] }));
        set_names(&mut fields, vec!["logging".to_owned()], Some(&main));
        assert!(fields.is_empty());
        set_names(&mut fields, Vec::new(), None);
        assert_eq!(fields["enabled"], json!([]));
    }

    #[test]
    fn times_are_told_to_the_microsecond() {
        let shown = rounded(json!({ "name": "a", "mean_ms": 243.653_574_8, "p50_ms": 0.012_345_6 }));
        assert_eq!((&shown["mean_ms"], &shown["p50_ms"]), (&json!("243.654"), &json!("0.012")));
        assert_eq!(rounded(json!({ "name": "a", "mean_ms": null })), json!({ "name": "a", "mean_ms": null }));
    }

    #[test]
    fn an_answer_is_told_with_what_is_wrong_with_it() {
        let call = json!({ "hook": "afterRunAgent", "ms": 1.5, "result": "patch", "patch": { "x": 1 }, "error": "no" });
        assert_eq!(told(&call), "afterRunAgent: patch {\"x\":1} (1.5 ms)\n  no");
        assert_eq!(told(&json!({ "hook": "onError", "ms": 2.0, "error": "late" })), "onError: failed (2.0 ms)\n  late");
        assert_eq!(told(&json!({ "hook": "onError", "ms": 2.0, "result": "continue" })), "onError: continue (2.0 ms)");
    }
}
