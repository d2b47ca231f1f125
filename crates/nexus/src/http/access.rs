//! `/control/access/...`: questions about who is who, what policies decide and what was decided, and the one
//! way to change who is who. What an answer means is `crate::access`'s.

use super::Api;
use super::control::{Answer, Refusal, answer, default_limit, found, looked, refusal, shown, whole};
use crate::access::{Check, CheckError, Edit, EditError};
use crate::clock;
use crate::error_text::describe;
use crate::ledger::identity::Refused;
use crate::ledger::nexus::AuditQuery;
use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::Deserialize;

pub(super) fn routes() -> Router<Api> {
    Router::new()
        .route("/control/access/who", get(who))
        .route("/control/access/audit", get(audit))
        .route("/control/access/policies", get(async |State(api): State<Api>| Json(api.daemon.rules().policies())))
        .route("/control/access/check", get(check))
        .route("/control/access/edit", post(edit))
}

#[derive(Debug, Deserialize)]
struct Who {
    /// `CHANNEL:SENDER` or an entity; without it the newest contacts.
    of: Option<String>,
    #[serde(default = "default_limit")]
    limit: usize,
}

async fn who(State(api): State<Api>, Query(asked): Query<Who>) -> Response {
    let (people, access) = (api.daemon.people(), api.daemon.rules().access);
    let Who { of: Some(of), .. } = asked else {
        return shown(looked(move || people.contacts(&access, asked.limit)).await);
    };
    let what = crate::unknown::sender(&of);
    found(looked(move || people.who(&access, &of)).await, &what)
}

#[derive(Debug, Deserialize)]
struct Decisions {
    #[serde(default = "default_limit")]
    limit: usize,
    #[serde(default)]
    denied: bool,
    channel: Option<String>,
    sender: Option<String>,
    /// Unix ms.
    since: Option<i64>,
    /// Those about the timer too.
    #[serde(default)]
    all: bool,
}

async fn audit(State(api): State<Api>, Query(asked): Query<Decisions>) -> Response {
    let people = api.daemon.people();
    let Decisions { limit, denied, channel, sender, since, all } = asked;
    if channel.is_some() != sender.is_some() {
        return refusal(StatusCode::BAD_REQUEST, "`channel` and `sender` go together: give both or neither");
    }
    let query = AuditQuery { limit, denied_only: denied, sender: channel.zip(sender), since, all };
    shown(looked(move || people.audit(&query)).await)
}

async fn check(State(api): State<Api>, Query(asked): Query<Check>) -> Response {
    let (people, rules) = (api.daemon.people(), api.daemon.rules());
    match crate::watch::blocking("question", move || rules.check(&people, &asked, clock::wall_ms())).await {
        Ok(Ok(decision)) => Json(decision).into_response(),
        Ok(Err(CheckError::Read(error))) => refusal(StatusCode::SERVICE_UNAVAILABLE, &describe(&error)),
        Ok(Err(error @ CheckError::At(_))) => refusal(StatusCode::BAD_REQUEST, &error.to_string()),
        Err(error) => refusal(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
    }
}

async fn edit(State(api): State<Api>, Json(edit): Json<Edit>) -> Response {
    let done: Answer = whole(api.verbs.clone(), async move { api.daemon.edit_identity(edit).await }).await;
    answer(done)
}

impl From<EditError> for Refusal {
    fn from(error: EditError) -> Self {
        let status = match &error {
            EditError::Wrong(_) => StatusCode::BAD_REQUEST,
            EditError::Refused(Refused::NoEntity(_)) => StatusCode::NOT_FOUND,
            EditError::Refused(
                Refused::Owner
                | Refused::AsOwner(_)
                | Refused::Itself(_)
                | Refused::Merged { .. }
                | Refused::Circle { .. }
                | Refused::Full { .. },
            ) => StatusCode::CONFLICT,
            EditError::Write(_) => StatusCode::SERVICE_UNAVAILABLE,
        };
        Self::new(status, describe(&error))
    }
}
