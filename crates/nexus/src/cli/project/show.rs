//! `nexus project show`: what a project is, where it lies, who works in it, and what it lacks.

use crate::cli::client::encoded;
use crate::cli::failure::Exit;
use crate::cli::out::{Color, Out, visible};
use crate::cli::{Global, units};
use serde_json::Value;

const MIB_BYTES: u64 = 1024 * 1024;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The project: its slug or the beginning of it, naddr1..., or kind:pubkey:identifier
    #[arg(value_name = "PROJECT")]
    project: String,
}

pub(crate) fn run(args: &Args, global: &Global) -> anyhow::Result<Exit> {
    let shown = super::ask(global, &format!("/control/prepare/show/{}", encoded(&args.project)), None)?;
    let out = global.out();
    if out.json {
        out.json(&shown)?;
    } else {
        tell(&shown, out)?;
    }
    Ok(Exit::Done)
}

fn tell(shown: &Value, out: Out) -> anyhow::Result<()> {
    let project = &shown["project"];
    let title = project["title"].as_str().map(visible).unwrap_or_default();
    out.line(&out.paint.apply(Color::Bold, &title))?;
    let rows = [
        ("Slug", &project["slug"]),
        ("Status", shown.get("state").unwrap_or(&project["status"])),
        ("Quarantined", &project["quarantined"]),
        ("Reason", &project["reason"]),
        ("Error", &shown["error"]),
        ("Path", &project["path"]),
        ("Address", &project["coordinate"]),
        ("naddr", &shown["naddr"]),
        ("Repository", &shown["repoUrl"]),
        ("About", &shown["description"]),
    ];
    for (name, value) in rows {
        if let Some(text) = value.as_str().filter(|text| !text.is_empty()) {
            out.line(&format!("  {:<12} {}", format!("{name}:"), visible(text)))?;
        }
    }
    if let Some(process) = process(shown) {
        out.line(&format!("  {:<12} {process}", "Process:"))?;
    }
    let text = |value: &Value| visible(value.as_str().unwrap_or("-"));
    for agent in shown["agents"].as_array().into_iter().flatten() {
        let manager = if agent["manager"] == true { ", manager" } else { "" };
        out.line(&format!("  Agent {}: {}{manager}, {}", text(&agent["slug"]), text(&agent["name"]), text(&agent["pubkey"])))?;
    }
    for server in shown["mcp"].as_array().into_iter().flatten() {
        let words = std::iter::once(&server["command"]).chain(server["args"].as_array().into_iter().flatten());
        let command = shell_words::join(words.filter_map(Value::as_str));
        out.line(&format!("  MCP server {}: {}", text(&server["slug"]), visible(&command)))?;
    }
    for (title, key) in [("Missing", "missing"), ("Not used", "problems")] {
        for one in shown[key].as_array().into_iter().flatten() {
            out.line(&out.paint.apply(Color::Yellow, &format!("  {title}: {}", text(one))))?;
        }
    }
    let count = |key: &str| shown["waiting"][key].as_u64().unwrap_or(0);
    let (events, left) = (count("events"), count("left"));
    if events > 0 {
        out.line(&out.paint.apply(Color::Yellow, &format!("  {events} event(s) wait until it is ready, and are run again then")))?;
    }
    if left > 0 {
        let why = "waited too long or are too many, and stay failed; `nexus trace retry` runs one again";
        out.line(&out.paint.apply(Color::Yellow, &format!("  {left} event(s) {why}")))?;
    }
    let pending = shown["approvals"].as_array().into_iter().flatten().filter(|one| one["status"] == "pending").count();
    if pending > 0 {
        out.line(&out.paint.apply(Color::Yellow, &format!("  {pending} wait(s) for your approval; see `nexus project approvals`")))?;
    }
    Ok(())
}

/// What its process is doing; nothing of one that does nothing and never had trouble.
fn process(shown: &Value) -> Option<String> {
    let count = |key: &str, what: &str| shown[key].as_u64().filter(|count| *count > 0).map(|count| format!("{count} {what}"));
    let text = |key: &str| shown[key].as_str().map(visible);
    let facts = [
        shown["pid"].as_u64().map(|pid| format!("PID {pid}")),
        shown["uptime_ms"].as_u64().map(|ms| format!("up {}", units::duration(ms))),
        shown["cpu_seconds"].as_f64().map(|seconds| format!("{seconds:.1} s CPU")),
        shown["rss_bytes"].as_u64().map(|bytes| format!("{} MiB memory", bytes / MIB_BYTES)),
        count("fds", "open files"),
        shown["receive_to_ready_ms"].as_f64().map(|ms| format!("ready for the last event after {ms:.0} ms")),
        count("queue", "waiting"),
        text("doing"),
        count("restarts", "restarted"),
        count("crashes", "crashed"),
        text("last_error"),
    ];
    let facts: Vec<String> = facts.into_iter().flatten().collect();
    (!facts.is_empty()).then(|| facts.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_a_process_does_is_one_line_and_nothing_is_none() {
        let shown = json!({ "pid": 7, "uptime_ms": 61_000, "queue": 2, "doing": "at work", "restarts": 1, "crashes": 0 });
        assert_eq!(process(&shown).as_deref(), Some("PID 7, up 1m 1s, 2 waiting, at work, 1 restarted"));
        let measured = json!({ "pid": 7, "cpu_seconds": 0.5, "fds": 12, "receive_to_ready_ms": 41.6 });
        let told = "PID 7, 0.5 s CPU, 12 open files, ready for the last event after 42 ms";
        assert_eq!(process(&measured).as_deref(), Some(told));
        assert_eq!(process(&json!({ "pid": null, "restarts": 0, "queue": 0 })), None);
    }
}
