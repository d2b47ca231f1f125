//! What notices of a run say beside their own words: whose they are. Publishes nothing by itself.

use super::Prepared;
use crate::agent::project::ProjectTurn;
use serde::Serialize;
use serde_json::Value;

/// A notice of a run, with every id that somebody may want to follow it by.
#[derive(Debug, Serialize)]
pub(super) struct OfRun<'a> {
    event_id: &'a str,
    request_id: &'a str,
    run_id: &'a str,
    adapter: &'a str,
    account: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    project: Option<String>,
    agent: &'a str,
    session: &'a str,
    #[serde(flatten)]
    said: Value,
}

impl<'a> OfRun<'a> {
    /// `said` is an object.
    pub(super) fn new(prepared: &'a Prepared, run_id: &'a str, said: Value) -> Self {
        let request = &prepared.request;
        let is_for_project = prepared.agent.is_for_projects();
        Self {
            event_id: &request.event.event_id,
            request_id: &request.request_id,
            run_id,
            adapter: &prepared.adapter,
            account: &request.event.account_id,
            project: if is_for_project { ProjectTurn::of(request).map(|turn| turn.coordinate.to_string()) } else { None },
            agent: &prepared.agent.name,
            session: &prepared.session,
            said,
        }
    }
}
