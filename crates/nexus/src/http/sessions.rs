//! `/control/sessions...`: sessions listed, shown, forked, archived and stopped. It maps requests to [`super::control`]'s
//! verbs and to questions about the record, and back.

use super::Api;
use super::control::{answer, ask, found, shown, whole};
use axum::Json;
use axum::extract::{Path, Query, State};
use axum::response::Response;
use serde::Deserialize;
use serde_json::Value;

#[derive(Debug, Deserialize)]
pub(super) struct List {
    #[serde(default = "default_limit")]
    limit: usize,
    /// Archived ones too.
    #[serde(default)]
    all: bool,
}

fn default_limit() -> usize {
    50
}

/// A new label for a session, or for an earlier turn of it.
#[derive(Debug, Clone, Deserialize)]
pub struct Fork {
    pub to: String,
    /// A turn's id; the newest turn if not given.
    pub turn: Option<String>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Archive {
    #[serde(default)]
    undo: bool,
}

pub(super) async fn list(State(api): State<Api>, Query(list): Query<List>) -> Response {
    let mut answer = ask(&api, move |record| record.sessions(list.all, list.limit)).await;
    if let Some(sessions) = answer.as_mut().ok().and_then(|all| all["sessions"].as_array_mut()) {
        sessions.iter_mut().for_each(|session| add_stop(session, &api));
    }
    shown(answer)
}

pub(super) async fn show(State(api): State<Api>, Path(label): Path<String>, Query(list): Query<List>) -> Response {
    let (what, budgets) = (crate::unknown::session(&label), api.daemon.session_budgets());
    let mut answer = ask(&api, move |record| record.session(&label, list.limit, &budgets)).await;
    if let Ok(Some(shown)) = &mut answer {
        add_stop(&mut shown["session"], &api);
    }
    found(answer, &what)
}

/// Says of a session whose turns are stopped why that is: no ledger knows it.
fn add_stop(session: &mut Value, api: &Api) {
    if let Some(why) = session["label"].as_str().and_then(|label| api.daemon.session_stopped(label)) {
        session["stopped"] = why.into();
    }
}

pub(super) async fn fork(State(api): State<Api>, Path(label): Path<String>, Json(fork): Json<Fork>) -> Response {
    answer(whole(api.verbs.clone(), async move { api.daemon.fork_session(label, fork).await }).await)
}

pub(super) async fn archive(State(api): State<Api>, Path(label): Path<String>, Json(archive): Json<Archive>) -> Response {
    answer(whole(api.verbs.clone(), async move { api.daemon.archive_session(label, archive.undo).await }).await)
}

pub(super) async fn stop(State(api): State<Api>, Path(label): Path<String>) -> Response {
    answer(whole(api.verbs.clone(), async move { api.daemon.stop_session(label).await }).await)
}
