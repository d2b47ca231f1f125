//! What the running daemon answers to a search, and how it makes indexes anew.

use super::control::Control;
use crate::error_text::describe;
use crate::http::control::{Answer, Refusal};
use crate::search::{Question, SEARCH_LIMIT, SearchError};
use axum::http::StatusCode;
use serde_json::json;
use std::collections::BTreeSet;

/// What is found, and whether the indexes that were looked at have all that they should.
pub(super) async fn search(control: &Control, question: Question) -> Answer {
    let (search, only) = (&control.pipeline.search, question.agent.clone());
    // Before the search: what is recorded meanwhile may be missing in what is found.
    let asked_at = *control.pipeline.turns_applied.borrow();
    let agents = search.agents(only.as_deref(), configured(control)).await.map_err(refused)?;
    let is_complete = search.is_complete(&agents, asked_at);
    let found = search.hits(question, configured(control), SEARCH_LIMIT).await.map_err(refused)?;
    Ok(json!({ "hits": found.hits, "damaged": found.damaged, "complete": is_complete && found.damaged.is_empty() }))
}

/// Has the index of one agent, or of all, made anew; it is filled after the answer.
pub(super) async fn rebuild(control: &Control, agent: Option<String>) -> Answer {
    let search = &control.pipeline.search;
    let agents = search.agents(agent.as_deref(), configured(control)).await.map_err(refused)?;
    let is_begun = tokio::select! {
        is_begun = search.rebuild(&agents) => is_begun,
        () = control.stop.cancelled() => false, // its follower ends, and a stop waits for who holds the ledgers
    };
    if !is_begun {
        let why = "the indexes could not be put away in time; `nexus daemon logs` says why";
        return Err(Refusal::new(StatusCode::SERVICE_UNAVAILABLE, why));
    }
    Ok(json!({ "agents": agents }))
}

fn configured(control: &Control) -> BTreeSet<String> {
    control.pipeline.settings.load().agents.keys().cloned().collect()
}

fn refused(error: SearchError) -> Refusal {
    let status = match &error {
        SearchError::TooLong => StatusCode::BAD_REQUEST,
        SearchError::UnknownAgent(_) => StatusCode::NOT_FOUND,
        SearchError::Late(_) | SearchError::List { .. } | SearchError::Index(_) | SearchError::Read(_) => StatusCode::SERVICE_UNAVAILABLE,
        SearchError::Broken(_) => StatusCode::INTERNAL_SERVER_ERROR,
    };
    Refusal::new(status, describe(&error))
}
