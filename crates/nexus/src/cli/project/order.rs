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
        out.line(&told(&answer))?;
    }
    Ok(exit_of(verb, &answer))
}

/// What was to come up and is quarantined is an answer too, but a script wants to know.
fn exit_of(verb: &str, answer: &Value) -> Exit {
    let is_down = matches!(verb, "start" | "restart") && answer["state"] == "quarantined";
    if is_down { Exit::Failed } else { Exit::Done }
}

fn told(answer: &Value) -> String {
    let text = |key: &str| answer[key].as_str().map(visible);
    let mut facts: Vec<String> = text("state").into_iter().collect();
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
        assert_eq!(told(&running), "demo-1: running, PID 7");
        assert_eq!(exit_of("start", &running), Exit::Done);
        let failed = json!({ "slug": "demo-1", "state": "quarantined", "reason": "exit code 78", "pid": null });
        assert_eq!(told(&failed), "demo-1: quarantined, exit code 78");
        assert_eq!((exit_of("restart", &failed), exit_of("stop", &failed)), (Exit::Failed, Exit::Done));
    }
}
