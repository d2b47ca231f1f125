//! `POST /control/backup`: a backup by the running daemon, told of line by line as it is made.

use super::Api;
use super::control::whole;
use super::send::line;
use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::Value;
use std::path::PathBuf;
use tokio::sync::mpsc;

/// Lines of a backup that is being made: any number with `type: progress`, then one with `done`, and the
/// directory and its manifest, or with `failed` and the error.
pub type Lines = mpsc::Receiver<Value>;

#[derive(Debug, Deserialize)]
pub(super) struct Wanted {
    /// Absolute; by default one below the ledgers.
    #[serde(default)]
    directory: Option<PathBuf>,
}

pub(super) async fn backup(State(api): State<Api>, Json(wanted): Json<Wanted>) -> Response {
    let lines = match whole(api.verbs.clone(), async move { api.daemon.backup(wanted.directory).await }).await {
        Ok(lines) => lines,
        Err(refused) => return refused.into_response(),
    };
    let lines = futures_util::stream::unfold(lines, |mut lines| async move {
        let next = lines.recv().await?;
        Some((Ok::<_, std::convert::Infallible>(line(&next)), lines))
    });
    let mut response = Response::new(Body::from_stream(lines));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/x-ndjson"));
    response
}
