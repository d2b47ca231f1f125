//! `nexus daemon ...`: the verbs of the requirement's section "CLI Commands".

pub(crate) mod detach;
mod logs;
pub(crate) mod reload;
pub(crate) mod start;
pub(crate) mod status;
mod stop;
mod tail;

use super::failure::{Exit, Failure};
use super::out::note;
use super::{Global, block_on};
use crate::cli::client::Client;
use crate::daemon::Paths;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use nexus_core::config::LogLevel;
use serde_json::json;
use std::path::{Path, PathBuf};

#[derive(Debug, clap::Subcommand)]
pub(crate) enum Verb {
    /// Start the daemon, in the foreground unless --detach is given
    #[command(after_help = "Examples:\n  nexus daemon start\n  nexus daemon start --detach --config ./nex.yaml --log-level debug")]
    Start(start::Args),
    /// Stop the daemon: what runs is finished and recorded first, for at most 45 s
    #[command(after_help = "Example:\n  nexus daemon stop")]
    Stop,
    /// Stop and start, with the flags it was started with
    #[command(after_help = "Example:\n  nexus daemon restart")]
    Restart,
    /// Show what runs, and how it is
    #[command(after_help = "Examples:\n  nexus daemon status --json\n  nexus daemon status --verbose")]
    Status {
        /// Also how surely no child outlives the daemon, how plugins and automations are, and what is used of budgets
        #[arg(long)]
        verbose: bool,
    },
    /// Apply a changed configuration to the running daemon
    #[command(after_help = "Example:\n  nexus daemon reload --dry-run")]
    Reload {
        /// Only say what would change
        #[arg(long)]
        dry_run: bool,
    },
    /// Show the log of a detached daemon
    #[command(after_help = "Examples:\n  nexus daemon logs -f\n  nexus daemon logs -n 100 --level error")]
    Logs(logs::Args),
}

pub(crate) fn run(verb: &Verb, global: &Global) -> anyhow::Result<Exit> {
    match verb {
        Verb::Start(args) => start::run(args, global),
        Verb::Stop => stop_verb(global),
        Verb::Restart => restart(global),
        Verb::Status { verbose } => status::run(*verbose, global),
        Verb::Reload { dry_run } => reload::run(*dry_run, global),
        Verb::Logs(args) => logs::run(args, global),
    }
}

/// Accepts the levels of the configuration.
fn levels() -> impl TypedValueParser<Value = LogLevel> {
    PossibleValuesParser::new(LogLevel::WORDS.iter().copied()).try_map(|word| LogLevel::parse(&word).ok_or("no such level"))
}

fn stop_verb(global: &Global) -> anyhow::Result<Exit> {
    let paths = global.paths()?;
    stop::refuse_inside(&paths, "stop")?;
    let ended = stop::stop(&paths)?;
    let out = global.out();
    let (exit, text, json) = match ended {
        stop::Ended::NotRunning => (Exit::NotRunning, "NEX Daemon: not running".to_owned(), json!({ "stopped": false, "pid": null })),
        stop::Ended::Stopped { pid } => (Exit::Done, format!("NEX Daemon: stopped (PID {pid})"), json!({ "stopped": true, "pid": pid })),
        stop::Ended::StillRunning { pid } => return Err(still_running(pid).into()),
    };
    if out.json {
        out.json(&json)?
    } else {
        out.line(&text)?
    }
    Ok(exit)
}

fn still_running(pid: u32) -> Failure {
    let seconds = stop::STOP_LIMIT.as_secs();
    let advice = "It was not killed. `nexus daemon logs` may say what it waits for.";
    Failure::new(Exit::Failed, format!("the daemon (PID {pid}) or its keeper still runs after {seconds} s\n{advice}"))
}

/// `stop && start`, with the flags of the one that ran. It is started detached in any case: the
/// terminal of a foreground daemon belongs to somebody else.
fn restart(global: &Global) -> anyhow::Result<Exit> {
    let paths = global.paths()?;
    stop::refuse_inside(&paths, "restart")?;
    let before = block_on(async { Client::new(&paths).get("/control/status").await })?;
    let before: Option<status::Status> = before.ok().and_then(|value| serde_json::from_value(value).ok());
    let config = restart_config(global.config()?, before.as_ref());
    // A daemon that runs is worth more than one that can't start: look before stopping it.
    let next = Paths::resolve(config.as_deref())?;
    if next.config_file.exists() {
        crate::cli::ledger::configuration(&next)?;
    }
    let was_running = match stop::stop(&paths)? {
        stop::Ended::NotRunning => false,
        stop::Ended::StillRunning { pid } => return Err(still_running(pid).into()),
        stop::Ended::Stopped { .. } => true,
    };
    match &before {
        _ if !was_running => note("No daemon was running; starting one."),
        Some(before) if !before.detached => note("The daemon ran in the foreground of a terminal; the new one runs in the background."),
        Some(_) => {}
        None => note("The daemon did not tell its flags; the new one is started without any."),
    }
    let flags = before.map(|before| before.flags.into()).unwrap_or_default();
    detach::start(&paths, config.as_deref(), flags)?.tell(global.out())?;
    Ok(Exit::Done)
}

/// The configuration to start with: the one asked for, else the one that was in use.
fn restart_config(asked: Option<PathBuf>, before: Option<&status::Status>) -> Option<PathBuf> {
    let used = || before.map(|before| Path::new(&before.config_path)).filter(|path| path.is_file()).map(Path::to_path_buf);
    asked.or_else(used)
}
