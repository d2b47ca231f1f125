//! `/control/automations/...`: how automations are, one on its own, and what a person decides about one. What that
//! means is the daemon's.

use super::Api;
use super::control::{answer, refusal, whole};
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::Response;
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::Value;

/// What a person decides about an automation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// It may be asked again, though it disabled itself.
    Enable,
    /// What it knows is thrown away.
    Forget,
}

pub(super) fn routes() -> Router<Api> {
    Router::new()
        .route("/control/automations", get(async |State(api): State<Api>| answer(api.daemon.automations().await)))
        .route("/control/automations/{name}/test", post(test))
        .route("/control/automations/{name}/{verb}", post(decide))
}

#[derive(Debug, Deserialize)]
struct Test {
    /// As an adapter writes one.
    event: Value,
}

async fn test(State(api): State<Api>, Path(name): Path<String>, Json(test): Json<Test>) -> Response {
    answer(whole(api.verbs.clone(), async move { api.daemon.automation_test(name, test.event).await }).await)
}

async fn decide(State(api): State<Api>, Path((name, verb)): Path<(String, String)>) -> Response {
    let decision = match verb.as_str() {
        "enable" => Decision::Enable,
        "forget" => Decision::Forget,
        _ => return refusal(StatusCode::NOT_FOUND, "an automation can be told `enable`, `forget` or `test`"),
    };
    answer(whole(api.verbs.clone(), async move { api.daemon.automation_decide(name, decision).await }).await)
}
