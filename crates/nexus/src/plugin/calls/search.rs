//! `search`: what agents were asked and what they said, as `nexus search` finds it. What a request's own
//! permissions let its agent see of the past plays no part here: the grant is for all of it.

use super::CallError;
use super::params::{Params, wrong};
use super::shapes::{SearchAnswer, SearchAsk, SearchHit};
use crate::pipeline::Settings;
use crate::search::{Question, Search, SearchError};
use nexus_core::search::QUERY_BYTES_MAX;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::time::Duration;

/// Hits of one answer, and of one that doesn't say how many it wants.
const HITS_MAX: u32 = 20;
const HITS_DEFAULT: u32 = 5;
/// Longest name of an agent.
const AGENT_BYTES_MAX: usize = 64;
const TIME_MAX: Duration = Duration::from_secs(10);
/// How much of each text is given.
const TEXT_BYTES_MAX: usize = 16 * 1024;

/// Answers `{query, limit?, agent?}` with `{hits}`, best first.
pub(super) async fn call(search: &Search, settings: &Settings, params: Value) -> Result<Value, CallError> {
    let mut params = Params::of::<SearchAsk>(params)?;
    let query = params.text("query", QUERY_BYTES_MAX)?;
    let agent = params.optional_text("agent", AGENT_BYTES_MAX)?;
    let limit = params.whole("limit", 1..=HITS_MAX)?.unwrap_or(HITS_DEFAULT);
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    let question = Question { query, agent, session: None, kind: None, since: None, limit, text_bytes_max: TEXT_BYTES_MAX };
    let configured: BTreeSet<String> = settings.agents.keys().cloned().collect();
    let answer = search.hits(question, configured, TIME_MAX).await.map_err(refused)?;
    Ok(json!(SearchAnswer { hits: answer.hits.into_iter().map(SearchHit::from).collect() }))
}

fn refused(error: SearchError) -> CallError {
    match error {
        SearchError::TooLong | SearchError::Late(_) => CallError::Limit(error.to_string()),
        SearchError::UnknownAgent(_) => wrong("agent", format!("is unknown: {error}")),
        SearchError::Broken(_) | SearchError::List { .. } | SearchError::Index(_) | SearchError::Read(_) => {
            CallError::failed("search", error)
        }
    }
}
