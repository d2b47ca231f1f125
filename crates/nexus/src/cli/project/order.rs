//! `nexus project start|stop|restart|release`: the daemon does it, and tells how the project is then.

use crate::cli::Global;
use crate::cli::client::encoded;
use crate::cli::failure::Exit;
use crate::cli::out::visible;
use serde_json::{Value, json};

/// One project.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Target {
    /// The project: its slug or the beginning of it, naddr1..., or kind:pubkey:identifier
    #[arg(value_name = "PROJECT")]
    project: String,
}

pub(crate) fn run(target: &Target, verb: &str, global: &Global) -> anyhow::Result<Exit> {
    let path = format!("/control/projects/{}/{verb}", encoded(&target.project));
    let answer = super::ask(global, &path, Some(&json!({})))?;
    let out = global.out();
    if out.json {
        out.json(&answer)?;
    } else {
        out.line(&told(verb, &answer))?;
    }
    Ok(exit_of(verb, &answer))
}

/// What was to come up and is quarantined is an answer too, but a script wants to know.
fn exit_of(verb: &str, answer: &Value) -> Exit {
    let is_down = matches!(verb, "start" | "restart") && answer["state"] == "quarantined";
    if is_down { Exit::Failed } else { Exit::Done }
}

fn told(verb: &str, answer: &Value) -> String {
    let text = |key: &str| answer[key].as_str().map(visible);
    let is_stopped = verb == "stop" && answer["state"] == "ready";
    let state = if is_stopped { Some("stopped".to_owned()) } else { text("state") };
    let mut facts: Vec<String> = state.into_iter().collect();
    if answer["ended"].is_string() {
        facts.push("the turn under way was ended".to_owned());
    }
    if let Some(queue) = answer["queue"].as_u64().filter(|queue| is_stopped && *queue > 0) {
        facts.push(format!("{queue} event(s) wait until the next one or `nexus project start`"));
    }
    facts.extend(answer["pid"].as_u64().map(|pid| format!("PID {pid}")));
    facts.extend(text("reason").or_else(|| text("last_error")));
    format!("{}: {}", text("slug").unwrap_or_default(), facts.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_tells_how_the_project_is_then() {
        let running = json!({ "slug": "demo-1", "state": "running", "pid": 7, "reason": null, "last_error": null });
        assert_eq!(told("start", &running), "demo-1: running, PID 7");
        assert_eq!(exit_of("start", &running), Exit::Done);
        let failed = json!({ "slug": "demo-1", "state": "quarantined", "reason": "exit code 78", "pid": null });
        assert_eq!(told("stop", &failed), "demo-1: quarantined, exit code 78");
        let stopped = json!({ "slug": "demo-1", "state": "ready", "queue": 2, "ended": "req_1" });
        let waits = "2 event(s) wait until the next one or `nexus project start`";
        assert_eq!(told("stop", &stopped), format!("demo-1: stopped, the turn under way was ended, {waits}"));

        assert_eq!((exit_of("restart", &failed), exit_of("stop", &failed)), (Exit::Failed, Exit::Done));
    }
}
