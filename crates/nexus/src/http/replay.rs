//! `POST /control/events/{id}/replay`: a recorded event once more, and if wanted what becomes of it.

use super::Api;
use super::control::whole;
use super::send::streamed;
use crate::replies::Part;
use axum::Json;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::Value;
use tokio::sync::mpsc;

#[derive(Debug, Clone, Deserialize)]
pub struct Replay {
    /// Made by the client: the same key is the same replay, however often it is asked for.
    pub key: String,
    /// Only if the request failed or expired, and no other attempt is open.
    #[serde(default)]
    pub only_failed: bool,
    /// Answer with the parts of the new request's answer, to the end, as `/control/send` does.
    #[serde(default)]
    pub wait: bool,
}

/// A replay that is on disk.
#[derive(Debug)]
pub struct Replayed {
    pub answer: Value,
    /// What becomes of it, to the end, if that is wanted.
    pub parts: Option<mpsc::Receiver<Part>>,
}

pub(super) async fn replay(State(api): State<Api>, Path(id): Path<String>, Json(ask): Json<Replay>) -> Response {
    let stop = api.stop.clone();
    match whole(api.verbs.clone(), async move { api.daemon.replay(id, ask).await }).await {
        Ok(Replayed { answer, parts: None }) => Json(answer).into_response(),
        Ok(Replayed { mut answer, parts: Some(parts) }) => {
            answer["type"] = "accepted".into();
            streamed(&answer, parts, stop)
        }
        Err(refused) => refused.into_response(),
    }
}
