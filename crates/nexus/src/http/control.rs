//! The control verbs, on the Unix socket only. This file maps requests to [`Verbs`] and back; what a
//! verb does is the daemon's. What changes something runs in a task of its own: a handler is dropped
//! where it stands when its client hangs up.

use super::Api;
use super::access;
use super::automations::{self, Decision};
use super::backup::{Lines, backup};
use super::replay::{Replay, Replayed, replay};
use super::search::{rebuild, search};
use super::send::{Accepted, Message, send};
use super::sessions::{self, Fork};
use super::{nostr, prepare, project};
use crate::access::{Edit, People, Rules};
use crate::ledger::agents::SessionBudgets;
use crate::ledger::nexus::ProjectRow;
use crate::nostr::Nostr;
use crate::project::ProjectVerb;
use crate::project::gc::Archived;
use crate::project::prepare::{PrepareError, Preparer};
use crate::query::{EventsQuery, Record};
use crate::search::Question;
use crate::supervisor::BoxFuture;
use crate::unknown;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use nexus_core::health::Overall;
use nexus_core::hook::Hook;
use serde::Deserialize;
use serde_json::{Value, json};
use std::path::PathBuf;
use std::sync::Arc;
use tokio::sync::Semaphore;

/// Longest body of a control request: a message of 1 MiB, escaped.
const BODY_BYTES_MAX: usize = 8 * 1024 * 1024;

/// A refusal with its status.
#[derive(Debug)]
pub struct Refusal {
    pub status: StatusCode,
    pub error: String,
    pub problems: Vec<String>,
}

impl Refusal {
    pub fn new(status: StatusCode, error: impl Into<String>) -> Self {
        Self { status, error: error.into(), problems: Vec::new() }
    }
}

pub type Answer = Result<Value, Refusal>;

/// What the daemon can be asked and told.
pub trait Verbs: Send + Sync + 'static {
    fn health(&self) -> (Overall, Value);
    fn is_ready(&self) -> bool;
    fn metrics(&self) -> Result<String, String>;
    fn status(&self) -> Value;
    fn budgets(&self) -> BoxFuture<'_, Answer>;
    fn session_budgets(&self) -> SessionBudgets;
    fn adapters(&self) -> BoxFuture<'_, Value>;
    fn record(&self) -> Record;
    fn people(&self) -> People;
    fn rules(&self) -> Rules;
    fn edit_identity(&self, edit: Edit) -> BoxFuture<'_, Answer>;
    fn send(&self, message: Message) -> BoxFuture<'_, Result<Accepted, Refusal>>;
    fn examine(&self) -> BoxFuture<'_, Answer>;
    fn replay(&self, id: String, ask: Replay) -> BoxFuture<'_, Result<Replayed, Refusal>>;
    fn reload(&self, dry_run: bool) -> BoxFuture<'_, Answer>;
    fn search(&self, question: Question) -> BoxFuture<'_, Answer>;
    fn rebuild_search(&self, agent: Option<String>) -> BoxFuture<'_, Answer>;
    /// With `seen`, only a delivery that still has this status.
    fn resolve_delivery(&self, delivery_id: String, retry: bool, seen: Option<String>) -> BoxFuture<'_, Answer>;
    fn backup(&self, directory: Option<PathBuf>) -> BoxFuture<'_, Result<Lines, Refusal>>;
    fn fork_session(&self, name: String, fork: Fork) -> BoxFuture<'_, Answer>;
    fn archive_session(&self, name: String, undo: bool) -> BoxFuture<'_, Answer>;
    /// Why a breaker stops the session of this very label, if one does.
    fn session_stopped(&self, label: &str) -> Option<&'static str>;
    fn stop_session(&self, name: String) -> BoxFuture<'_, Answer>;
    fn adapter_info(&self, name: String) -> BoxFuture<'_, Answer>;
    fn adapter_accounts(&self, name: String) -> BoxFuture<'_, Answer>;
    fn adapter_verb(&self, adapter: String, account: String, verb: String) -> BoxFuture<'_, Answer>;
    fn plugins(&self) -> BoxFuture<'_, Value>;
    fn plugin_test(&self, name: String, ask: PluginTest) -> BoxFuture<'_, Answer>;
    fn automations(&self) -> BoxFuture<'_, Answer>;
    fn automation_test(&self, name: String, event: Value) -> BoxFuture<'_, Answer>;
    fn automation_decide(&self, name: String, decision: Decision) -> BoxFuture<'_, Answer>;
    fn projects(&self) -> BoxFuture<'_, Value>;
    fn project_verb(&self, name: String, verb: ProjectVerb) -> BoxFuture<'_, Answer>;
    /// A project that is in sight and was never prepared, as the ledger would have it.
    fn unmade_project(&self, name: String) -> BoxFuture<'_, Result<Option<ProjectRow>, Refusal>>;
    fn project_logs(&self, name: String, after: u64, lines: usize) -> BoxFuture<'_, Answer>;
    fn nostr(&self) -> Nostr;
    fn preparer(&self) -> Preparer;
    /// Has a project's process stopped and its directory put away; `None` while it is at work.
    fn put_away(&self, row: ProjectRow, delete: bool, force: bool) -> BoxFuture<'_, Result<Option<Archived>, PrepareError>>;
    fn stream_opened(&self);
    fn stream_closed(&self);
}

pub(super) fn routes(api: Api) -> Router {
    Router::new()
        .route("/control/status", get(async |State(api): State<Api>| Json(api.daemon.status())))
        .route("/control/budgets", get(async |State(api): State<Api>| answer(api.daemon.budgets().await)))
        .route("/control/doctor", get(async |State(api): State<Api>| answer(api.daemon.examine().await)))
        .route("/control/reload", post(reload))
        .route("/control/send", post(send))
        .route("/control/backup", post(backup))
        .route("/control/events", get(events))
        .route("/control/events/{id}", get(event))
        .route("/control/events/{id}/replay", post(replay))
        .route("/control/trace/{id}", get(trace))
        .route("/control/traces", get(traces))
        .route("/control/search", post(search))
        .route("/control/search/rebuild", post(rebuild))
        .route("/control/deliveries", get(deliveries))
        .route("/control/deliveries/ids", get(delivery_ids))
        .route("/control/deliveries/{id}", get(delivery))
        .route("/control/deliveries/{id}/{verb}", post(resolve))
        .route("/control/sessions", get(sessions::list))
        .route("/control/sessions/{label}", get(sessions::show))
        .route("/control/sessions/{label}/fork", post(sessions::fork))
        .route("/control/sessions/{label}/archive", post(sessions::archive))
        .route("/control/sessions/{label}/stop", post(sessions::stop))
        .route("/control/adapters", get(async |State(api): State<Api>| Json(api.daemon.adapters().await)))
        .route("/control/adapters/{name}/info", get(async |State(api): State<Api>, Path(name)| answer(api.daemon.adapter_info(name).await)))
        .route(
            "/control/adapters/{name}/accounts",
            get(async |State(api): State<Api>, Path(name)| answer(api.daemon.adapter_accounts(name).await)),
        )
        .route("/control/adapters/{name}/{account}/{verb}", post(adapter_verb))
        .merge(access::routes())
        .merge(automations::routes())
        .merge(nostr::routes())
        .merge(prepare::routes())
        .merge(project::routes())
        .route("/control/plugins", get(async |State(api): State<Api>| Json(api.daemon.plugins().await)))
        .route("/control/plugins/{name}/test", post(plugin_test))
        .layer(axum::extract::DefaultBodyLimit::max(BODY_BYTES_MAX))
        .with_state(api)
}

pub(super) fn refusal(status: StatusCode, error: &str) -> Response {
    (status, Json(json!({ "error": error }))).into_response()
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let Self { status, error, problems } = self;
        match problems.is_empty() {
            true => refusal(status, &error),
            false => (status, Json(json!({ "error": error, "problems": problems }))).into_response(),
        }
    }
}

pub(super) fn answer(result: Answer) -> Response {
    result.map_or_else(IntoResponse::into_response, |value| Json(value).into_response())
}

/// Runs a verb to its end, whether or not anybody waits for it any more. Refused when there is no room:
/// who hangs up and asks again must not pile verbs up.
pub(super) async fn whole<T: Send + 'static>(
    room: Arc<Semaphore>,
    verb: impl Future<Output = Result<T, Refusal>> + Send + 'static,
) -> Result<T, Refusal> {
    let Ok(taken) = room.try_acquire_owned() else {
        return Err(Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "too many commands are under way; try again in a moment"));
    };
    let task = async move {
        let _taken = taken;
        verb.await
    };
    let broken = |error: tokio::task::JoinError| Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string());
    crate::watch::helper("verb", task).await.unwrap_or_else(|error| Err(broken(error)))
}

#[derive(Debug, Deserialize)]
struct Reload {
    #[serde(default)]
    dry_run: bool,
}

async fn reload(State(api): State<Api>, Json(reload): Json<Reload>) -> Response {
    answer(whole(api.verbs.clone(), async move { api.daemon.reload(reload.dry_run).await }).await)
}

#[derive(Debug, Deserialize)]
struct List {
    #[serde(default = "default_limit")]
    limit: usize,
    before: Option<i64>,
    after: Option<i64>,
    channel: Option<String>,
    text: Option<String>,
    status: Option<String>,
    adapter: Option<String>,
}

pub(super) fn default_limit() -> usize {
    50
}

/// Asks the record on a thread that may block.
pub(super) async fn ask<T: Send + 'static>(
    api: &Api,
    question: impl FnOnce(Record) -> Result<T, crate::ledger::ReadError> + Send + 'static,
) -> Result<T, Response> {
    let record = api.daemon.record();
    looked(move || question(record)).await
}

/// The answer to any question to the ledgers, asked on a thread that may block.
pub(super) async fn looked<T: Send + 'static>(
    question: impl FnOnce() -> Result<T, crate::ledger::ReadError> + Send + 'static,
) -> Result<T, Response> {
    match crate::watch::blocking("question", question).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(refusal(StatusCode::SERVICE_UNAVAILABLE, &crate::error_text::describe(&error))),
        Err(error) => Err(refusal(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string())),
    }
}

pub(super) fn shown(result: Result<Value, Response>) -> Response {
    result.map_or_else(|refused| refused, |value| Json(value).into_response())
}

pub(super) fn found(result: Result<Option<Value>, Response>, what: &str) -> Response {
    match result {
        Ok(Some(value)) => Json(value).into_response(),
        Ok(None) => refusal(StatusCode::NOT_FOUND, what),
        Err(refused) => refused,
    }
}

async fn events(State(api): State<Api>, Query(list): Query<List>) -> Response {
    let query = EventsQuery { limit: list.limit, before: list.before, after: list.after, channel: list.channel, text: list.text };
    shown(ask(&api, move |record| record.events(&query)).await)
}

async fn event(State(api): State<Api>, Path(id): Path<String>) -> Response {
    let what = unknown::event(&id);
    found(ask(&api, move |record| record.event(&id)).await, &what)
}

async fn trace(State(api): State<Api>, Path(id): Path<String>) -> Response {
    let what = unknown::request(&id);
    found(ask(&api, move |record| record.trace(&id)).await, &what)
}

async fn traces(State(api): State<Api>, Query(list): Query<List>) -> Response {
    shown(ask(&api, move |record| record.traces(list.status.as_deref(), list.limit)).await)
}

async fn deliveries(State(api): State<Api>, Query(list): Query<List>) -> Response {
    shown(ask(&api, move |record| record.deliveries(list.status.as_deref(), list.adapter.as_deref(), list.limit)).await)
}

/// Deliveries that are to be decided about together.
#[derive(Debug, Deserialize)]
struct Alike {
    status: String,
    adapter: Option<String>,
    limit: usize,
}

async fn delivery_ids(State(api): State<Api>, Query(alike): Query<Alike>) -> Response {
    shown(ask(&api, move |record| record.delivery_ids(&alike.status, alike.adapter.as_deref(), alike.limit)).await)
}

async fn delivery(State(api): State<Api>, Path(id): Path<String>) -> Response {
    let what = unknown::delivery(&id);
    found(ask(&api, move |record| record.delivery(&id)).await, &what)
}

/// In view of what a delivery was told to do something.
#[derive(Debug, Deserialize)]
struct Seen {
    status: Option<String>,
}

async fn resolve(State(api): State<Api>, Path((id, verb)): Path<(String, String)>, Query(seen): Query<Seen>) -> Response {
    match verb.as_str() {
        "retry" | "discard" => {
            let room = api.verbs.clone();
            let decided = async move { api.daemon.resolve_delivery(id, verb == "retry", seen.status).await };
            answer(whole(room, decided).await)
        }
        _ => refusal(StatusCode::NOT_FOUND, "a delivery can be told `retry` or `discard`"),
    }
}

/// How a plugin is to be tried.
#[derive(Debug, Deserialize)]
pub struct PluginTest {
    /// As an adapter writes one.
    pub event: Value,
    /// Only this one.
    #[serde(default)]
    pub hook: Option<Hook>,
}

async fn plugin_test(State(api): State<Api>, Path(name): Path<String>, Json(ask): Json<PluginTest>) -> Response {
    answer(whole(api.verbs.clone(), async move { api.daemon.plugin_test(name, ask).await }).await)
}

async fn adapter_verb(State(api): State<Api>, Path((adapter, account, verb)): Path<(String, String, String)>) -> Response {
    if verb == "health" {
        return answer(api.daemon.adapter_verb(adapter, account, verb).await); // changes nothing
    }
    answer(whole(api.verbs.clone(), async move { api.daemon.adapter_verb(adapter, account, verb).await }).await)
}
