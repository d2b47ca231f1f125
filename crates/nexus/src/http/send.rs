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
                biased; // what was said before the stop is told: its end above all
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use nexus_core::request::Status;

    #[tokio::test]
    async fn an_end_that_came_before_the_stop_is_told() {
        for _ in 0..32 {
            let (sender, parts) = mpsc::channel(2);
            let stop = CancellationToken::new();
            let response = streamed(&json!({ "type": "accepted" }), parts, stop.clone());
            let end = crate::replies::End {
                request_id: "req_1".into(),
                status: Status::Completed,
                reason: None,
                text: None,
                agent: None,
                session: None,
            };
            sender.send(Part::End(end)).await.unwrap();
            stop.cancel();
            let told = axum::body::to_bytes(response.into_body(), 4096).await.unwrap();
            let last = told.split(|byte| *byte == b'\n').rfind(|line| !line.is_empty()).unwrap();
            let last: Value = serde_json::from_slice(last).unwrap();
            assert_eq!((&last["type"], &last["status"]), (&json!("end"), &json!("completed")));
        }
    }

    #[tokio::test]
    async fn a_stop_ends_an_answer_whose_end_does_not_come() {
        let (sender, parts) = mpsc::channel(2);
        let stop = CancellationToken::new();
        let response = streamed(&json!({ "type": "accepted" }), parts, stop.clone());
        stop.cancel();
        assert_eq!(axum::body::to_bytes(response.into_body(), 4096).await.unwrap(), "{\"type\":\"accepted\"}\n");
        drop(sender);
    }
}
