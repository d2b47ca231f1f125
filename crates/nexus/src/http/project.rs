//! `/control/projects...`: projects listed, started, stopped, restarted and released, and what they said. It maps
//! requests to [`super::control`]'s verbs, and back.

use super::Api;
use super::control::{answer, refusal, whole};
use crate::project::ProjectVerb;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::Response;
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::Deserialize;

#[derive(Debug, Deserialize)]
struct Lines {
    /// Only those after this number.
    #[serde(default)]
    after: u64,
    #[serde(default = "default_lines")]
    lines: usize,
}

fn default_lines() -> usize {
    100
}

pub(super) fn routes() -> Router<Api> {
    Router::new()
        .route("/control/projects", get(async |State(api): State<Api>| Json(api.daemon.projects().await)))
        .route("/control/projects/{name}/logs", get(logs))
        .route("/control/projects/{name}/{verb}", post(verb))
}

async fn logs(State(api): State<Api>, Path(name): Path<String>, Query(lines): Query<Lines>) -> Response {
    answer(api.daemon.project_logs(name, lines.after, lines.lines).await)
}

async fn verb(State(api): State<Api>, Path((name, word)): Path<(String, String)>) -> Response {
    let Some(verb) = ProjectVerb::parse(&word) else {
        return refusal(StatusCode::NOT_FOUND, "a project can be told start, stop, restart or release");
    };
    answer(whole(api.verbs.clone(), async move { api.daemon.project_verb(name, verb).await }).await)
}
