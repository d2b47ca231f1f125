//! `POST /control/send`: one message over the control socket, answered as it is worked on.

use super::Api;
use super::control::whole;
use crate::replies::Part;
use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::StreamExt;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// A message that is on disk.
#[derive(Debug)]
pub struct Accepted {
    pub event_id: String,
    /// What becomes of it, to the end.
    pub parts: mpsc::Receiver<Part>,
}

#[derive(Debug, Clone, Deserialize)]
pub struct Message {
    pub text: String,
    pub event_id: Option<String>,
    #[serde(default = "default_conversation")]
    pub conversation: String,
    #[serde(default = "default_sender")]
    pub sender: String,
}

fn default_conversation() -> String {
    "default".into()
}

fn default_sender() -> String {
    "local".into()
}

pub(super) async fn send(State(api): State<Api>, Json(message): Json<Message>) -> Response {
    let stop = api.stop.clone();
    let Accepted { event_id, parts } = match whole(api.verbs.clone(), async move { api.daemon.send(message).await }).await {
        Ok(accepted) => accepted,
        Err(refused) => return refused.into_response(),
    };
    streamed(&json!({ "type": "accepted", "event_id": event_id }), parts, stop)
}

/// An answer of one line and a line for each part, as they come.
pub(super) fn streamed(accepted: &Value, parts: mpsc::Receiver<Part>, stop: CancellationToken) -> Response {
    let accepted = line(accepted);
    let first = futures_util::stream::once(std::future::ready(Ok(accepted)));
    let lines = futures_util::stream::unfold(parts, move |mut parts| {
        let stop = stop.clone();
        async move {
            let part = tokio::select! {
                part = parts.recv() => part?,
                () = stop.cancelled() => return None,
            };
            Some((Ok::<_, std::convert::Infallible>(line(&part)), parts))
        }
    });
    let mut response = Response::new(Body::from_stream(first.chain(lines)));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/x-ndjson"));
    response
}

/// One line of an answer that comes in lines.
pub(super) fn line(part: &impl Serialize) -> Bytes {
    let mut text = serde_json::to_string(part).unwrap_or_else(|error| format!("{{\"type\":\"error\",\"error\":\"{error}\"}}"));
    text.push('\n');
    text.into()
}
