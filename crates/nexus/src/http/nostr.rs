//! `/control/nostr...`: how the client is, and publishing. It maps requests to [`crate::nostr::Nostr`] and back.

use super::Api;
use super::control::{Answer, Refusal, answer, whole};
use crate::error_text::describe;
use crate::nostr::{Nostr, PublishError, Template, keys};
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::json;
use std::time::Duration;

/// How long the answer to `publish` waits for a relay.
const ACCEPTED_WAIT: Duration = Duration::from_secs(10);

pub(super) fn routes() -> Router<Api> {
    Router::new()
        .route("/control/nostr", get(async |State(api): State<Api>| answer(status(api.daemon.nostr()).await)))
        .route("/control/nostr/publish", post(publish))
}

async fn status(nostr: Nostr) -> Answer {
    nostr.look().await;
    Ok(json!(nostr.status()))
}

#[derive(Debug, Deserialize)]
struct Ask {
    /// Whose key signs: `daemon`, or `PROJECT/AGENT`.
    #[serde(rename = "as", default = "daemon")]
    key: String,
    #[serde(flatten)]
    template: Template,
    /// The key under which it is made once.
    once: Option<String>,
}

fn daemon() -> String {
    keys::DAEMON.to_owned()
}

async fn publish(State(api): State<Api>, Json(ask): Json<Ask>) -> Response {
    let nostr = api.daemon.nostr();
    answer(whole(api.verbs.clone(), async move { carry_out(&nostr, ask).await }).await)
}

async fn carry_out(nostr: &Nostr, ask: Ask) -> Answer {
    let Ask { key, template, once } = ask;
    let once = once.unwrap_or_else(|| format!("cli:{}", ulid::Ulid::generate()));
    let event_id = nostr.publish(&key, template, &once).await.map_err(|error| refused(&error))?;
    let found = nostr.accepted(&event_id, ACCEPTED_WAIT).await;
    let (status, error) = found.map_err(|error| Refusal::new(StatusCode::SERVICE_UNAVAILABLE, describe(&error)))?.unzip();
    Ok(json!({ "event_id": event_id, "status": status, "error": error.flatten() }))
}

fn refused(error: &PublishError) -> Refusal {
    let status = match error {
        PublishError::NoRelays | PublishError::Full | PublishError::Key(_) => StatusCode::CONFLICT,
        PublishError::Once | PublishError::Template(_) => StatusCode::BAD_REQUEST,
        PublishError::Read(_) | PublishError::Write(_) => StatusCode::SERVICE_UNAVAILABLE,
    };
    Refusal::new(status, describe(error))
}
