//! `/health`, `/readyz`, `/metrics`.

use super::Api;
use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use nexus_core::health::Overall;

/// The requirement's health document, with `reasons`, `projects` and `nostr` besides; 503 when unhealthy.
pub(super) async fn health(State(api): State<Api>) -> Response {
    let (overall, document) = api.daemon.health();
    let status = if overall == Overall::Unhealthy { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK };
    (status, Json(document)).into_response()
}

/// 200 once all eleven steps of the start are done.
pub(super) async fn ready(State(api): State<Api>) -> Response {
    if api.daemon.is_ready() {
        (StatusCode::OK, "ready\n").into_response()
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "starting or stopping\n").into_response()
    }
}

pub(super) async fn metrics(State(api): State<Api>) -> Response {
    match api.daemon.metrics() {
        Ok(text) => ([(header::CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error).into_response(),
    }
}
