//! What `nexus automation` asks the running daemon: how automations are, one on its own, and what a person decides
//! about one that disabled itself or is to be forgotten.

use super::control::Control;
use super::status::budget;
use crate::clock;
use crate::error_text::describe;
use crate::http::automations::Decision;
use crate::http::control::{Answer, Refusal};
use crate::ledger::nexus::{ForgetAutomation, Knowledge, ReviveAutomation, all_knowledge};
use crate::pipeline::spending::Payer;
use crate::plugin::{AutomationReport, TrialError, automations_on_disk};
use axum::http::StatusCode;
use serde_json::{Value, json};

/// Those that run as they stand, and the others that lie on the disk.
pub(super) async fn list(control: &Control) -> Answer {
    let report = control.pipeline.automations.report();
    let known = control.ledgers.nexus.readers.read(all_knowledge).await.map_err(|error| not_now(&error))?;
    let directory = control.paths.automations_dir();
    let looked = crate::watch::blocking("automations.look", move || automations_on_disk(&directory)).await;
    let found = looked.map_err(|error| Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))?;
    let mut shown = Vec::with_capacity(report.len());
    for one in &report {
        let mut value = of(one, known.iter().find(|known| known.name == one.name));
        value["budget"] = budget(control, Payer::Automation(one.name.clone()), &one.grants).await;
        shown.push(value);
    }
    let config = control.config.load();
    let disabled: Vec<&String> = config.automations.disabled.iter().filter(|name| found.contains(*name)).collect();
    Ok(json!({ "automations": shown, "disabled": disabled }))
}

fn of(report: &AutomationReport, known: Option<&Knowledge>) -> Value {
    let mut shown = json!(report);
    let disabled_itself = known.is_some_and(|known| known.disabled);
    shown["disabled_itself"] = disabled_itself.into();
    if disabled_itself {
        shown["status"] = "disabled".into();
    }
    // It was written as JSON. What can't be read is shown as it is.
    let state = known.and_then(|known| known.state.as_deref());
    shown["state"] = state.map_or(Value::Null, |text| serde_json::from_str(text).unwrap_or_else(|_| Value::from(text)));
    shown
}

/// Asks one about a request made from `event`, in a process of its own.
pub(super) async fn test(control: &Control, name: &str, event: Value) -> Answer {
    control.pipeline.automations.test(name, event).await.map_err(|error| {
        let status = match &error {
            TrialError::Unknown(_) => StatusCode::NOT_FOUND,
            TrialError::Event(_) => StatusCode::BAD_REQUEST,
            TrialError::Failed(_) => StatusCode::CONFLICT,
        };
        Refusal::new(status, error.to_string())
    })
}

/// Writes what a person decided.
pub(super) async fn decide(control: &Control, name: String, decision: Decision) -> Answer {
    let (writer, automation) = (&control.ledgers.nexus.writer, name.clone());
    let written = match decision {
        Decision::Enable => writer.write_until_done(ReviveAutomation { automation, at: clock::wall_ms() }).await,
        Decision::Forget => {
            // Who asks it still would write what it knows after it was forgotten.
            let busy = || Refusal::new(StatusCode::SERVICE_UNAVAILABLE, format!("automation `{name}` is still being asked; try again"));
            let _unasked = control.pipeline.automations.unasked(&name).await.ok_or_else(busy)?;
            writer.write_until_done(ForgetAutomation { automation }).await
        }
    };
    written.map_err(|error| not_now(&error))?;
    let word = match decision {
        Decision::Enable => "enabled",
        Decision::Forget => "forgotten",
    };
    tracing::info!(automation = name, "automation {word}");
    Ok(json!({ "automation": name, "done": word }))
}

fn not_now(error: &dyn std::error::Error) -> Refusal {
    Refusal::new(StatusCode::SERVICE_UNAVAILABLE, describe(error))
}
