//! `nexus daemon reload`, and the same after a change of the overlay.

use crate::cli::client::{Client, ClientError};
use crate::cli::failure::Exit;
use crate::cli::out::{Color, Out, note};
use crate::cli::{Global, block_on};
use crate::daemon::Paths;
use serde_json::{Value, json};

pub(crate) fn run(dry_run: bool, global: &Global) -> anyhow::Result<Exit> {
    let paths = global.paths()?;
    let answer = ask(&paths, dry_run)??;
    let out = global.out();
    if out.json {
        out.json(&answer)?;
    } else {
        tell(out, &answer)?;
    }
    Ok(Exit::Done)
}

/// Asks the daemon to read its configuration again.
pub(crate) fn ask(paths: &Paths, dry_run: bool) -> anyhow::Result<Result<Value, ClientError>> {
    block_on(async { Client::new(paths).post("/control/reload", &json!({ "dry_run": dry_run })).await })
}

/// Says what changed, and on stderr what is odd about the configuration.
pub(crate) fn tell(out: Out, answer: &Value) -> anyhow::Result<()> {
    for warning in texts(&answer["warnings"]) {
        note(&out.paint.apply(Color::Yellow, &format!("warning: {warning}")));
    }
    let changes = answer["changes"].as_array().map(Vec::as_slice).unwrap_or_default();
    let head = match (changes.is_empty(), answer["applied"].as_bool()) {
        (true, _) => "no changes",
        (false, Some(true)) => "configuration reloaded:",
        (false, Some(false) | None) => "these changes would be applied:",
    };
    out.line(head)?;
    for change in changes {
        let text = change["text"].as_str().unwrap_or("a change without a description");
        let waits = change["effect"] == "needs_daemon_restart";
        out.line(&format!("  {}", if waits { out.paint.apply(Color::Yellow, text) } else { text.to_owned() }))?;
    }
    Ok(())
}

fn texts(list: &Value) -> impl Iterator<Item = &str> {
    list.as_array().map(Vec::as_slice).unwrap_or_default().iter().filter_map(Value::as_str)
}
