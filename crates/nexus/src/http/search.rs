//! `POST /control/search` and `/control/search/rebuild`. The first changes nothing; it is a POST because a
//! question may be longer than an address.

use super::Api;
use super::control::{answer, whole};
use crate::search::Question;
use axum::Json;
use axum::extract::State;
use axum::response::Response;
use serde::Deserialize;

#[derive(Debug, Deserialize)]
pub(super) struct Rebuild {
    /// Only this agent's index; else those of all.
    #[serde(default)]
    agent: Option<String>,
}

pub(super) async fn search(State(api): State<Api>, Json(question): Json<Question>) -> Response {
    answer(api.daemon.search(question).await)
}

pub(super) async fn rebuild(State(api): State<Api>, Json(ask): Json<Rebuild>) -> Response {
    answer(whole(api.verbs.clone(), async move { api.daemon.rebuild_search(ask.agent).await }).await)
}
