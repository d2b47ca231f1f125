//! `/control/prepare/...`: projects prepared, looked at, approved and put away. It maps requests to the
//! [`Preparer`](crate::project::prepare::Preparer), and back.

use super::Api;
use super::control::{Answer, Refusal, answer, whole};
use crate::clock;
use crate::error_text::describe;
use crate::ledger::nexus::{Approval, ProjectRow, approvals, waits, waits_by_approval};
use crate::project::coordinate::Coordinate;
use crate::project::definition::Definition;
use crate::project::prepare::{Ask, PrepareError, Prepared, Preparer, Progress};
use crate::project::waits::{Sorted, sorted};
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::Response;
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::{Value, json};
use std::path::PathBuf;
use std::time::Duration;

/// How long one answer waits for a preparation: whoever asks again joins the same one.
const PREPARE_WAIT: Duration = Duration::from_secs(20);
/// Projects that one command may put away.
const ARCHIVED_MAX: usize = 100;
const DAY_MS: i64 = 24 * 60 * 60 * 1000;

#[derive(Debug, Deserialize)]
struct Init {
    project: String,
    #[serde(default)]
    path: Option<PathBuf>,
    /// The definition is looked through anew.
    #[serde(default)]
    anew: bool,
}

#[derive(Debug, Deserialize)]
struct Decision {
    approve: bool,
}

#[derive(Debug, Deserialize)]
struct Idle {
    #[serde(default)]
    days: u32,
}

/// What is to be put away.
#[derive(Debug, Deserialize)]
struct Away {
    projects: Vec<String>,
    #[serde(default)]
    delete: bool,
    #[serde(default)]
    force: bool,
}

pub(super) fn routes() -> Router<Api> {
    Router::new()
        .route("/control/prepare/init", post(init))
        .route("/control/prepare/show/{name}", get(show))
        .route("/control/prepare/approvals", get(list))
        .route("/control/prepare/approvals/{id}", post(decide))
        .route("/control/prepare/gc", get(disposable).post(put_away))
}

fn refused(error: PrepareError) -> Refusal {
    let status = if matches!(error, PrepareError::Unknown { .. }) {
        StatusCode::NOT_FOUND
    } else if error.retryable() {
        StatusCode::SERVICE_UNAVAILABLE
    } else {
        StatusCode::CONFLICT
    };
    Refusal::new(status, describe(&error))
}

async fn init(State(api): State<Api>, Json(ask): Json<Init>) -> Response {
    answer(whole(api.verbs.clone(), begin(api.daemon.preparer(), ask)).await)
}

async fn begin(preparer: Preparer, ask: Init) -> Answer {
    let project = wanted(&preparer, &ask.project).await?;
    let progress = Progress::new(preparer.bus(), &project);
    let prepared = preparer.prepare(&project, &progress, Ask { anew: ask.anew, path: ask.path });
    match tokio::time::timeout(PREPARE_WAIT, prepared).await {
        Ok(prepared) => Ok(json!({ "prepared": prepared.map_err(refused)? })),
        Err(_) => Ok(json!({ "pending": project })),
    }
}

/// A project that isn't known yet is named by its address, one that is by any of its names.
async fn wanted(preparer: &Preparer, name: &str) -> Result<Coordinate, Refusal> {
    if let Ok(coordinate) = Coordinate::read(name) {
        return Ok(coordinate);
    }
    let row = preparer.find(name).await.map_err(refused)?;
    Coordinate::parse(&row.coordinate).map_err(|error| Refusal::new(StatusCode::CONFLICT, error.to_string()))
}

async fn show(State(api): State<Api>, Path(name): Path<String>) -> Response {
    answer(show_whole(&api, &name).await)
}

/// With what its process is doing, which no ledger knows.
async fn show_whole(api: &Api, name: &str) -> Answer {
    let preparer = api.daemon.preparer();
    let mut shown = look(&preparer, name).await?;
    shown["waiting"] = waiting(&preparer, &shown["project"]["coordinate"]).await?;
    let all = api.daemon.projects().await;
    let is_it = |one: &&Value| one["id"] == shown["project"]["coordinate"];
    if let Some(one) = all["projects"].as_array().into_iter().flatten().find(is_it) {
        for key in ["state", "startedAt"] {
            shown[key] = one[key].clone();
        }
    }
    Ok(shown)
}

/// How many events wait for the project, and how many have waited for too long.
async fn waiting(preparer: &Preparer, coordinate: &Value) -> Answer {
    let project = coordinate.as_str().unwrap_or_default().to_owned();
    let all = preparer.ledgers().nexus.readers.read(move |connection| waits(connection, &project)).await;
    let now = clock::wall_ms();
    let Sorted { taken, left } = sorted(all.map_err(|error| refused(error.into()))?, |at| at < now);
    Ok(json!({ "events": taken.len(), "left": left.len() }))
}

async fn look(preparer: &Preparer, name: &str) -> Answer {
    let row = preparer.find(name).await.map_err(refused)?;
    let asked = of_project(preparer, Some(row.coordinate.clone())).await?;
    // One that was never prepared to its end has no directory to look into.
    if row.definition.is_none() || row.status == "archived" {
        return Ok(json!({ "project": row, "approvals": asked }));
    }
    Ok(match preparer.look(&row).await {
        Ok((definition, prepared)) => shown(&row, &definition, &prepared, &preparer.settings().relays, &asked),
        Err(error) => json!({ "project": row, "error": describe(&error), "approvals": asked }),
    })
}

/// The requirement's ProjectData, with what is known beside it.
fn shown(row: &ProjectRow, definition: &Definition, prepared: &Prepared, relays: &[String], asked: &[Approval]) -> Value {
    json!({
        "identifier": definition.coordinate.identifier,
        "pubkey": definition.coordinate.pubkey,
        "naddr": definition.coordinate.naddr(relays),
        "title": definition.title,
        "description": definition.description,
        "repoUrl": definition.repo,
        "hashtags": definition.hashtags,
        "agentEventIds": definition.agents,
        "mcpEventIds": definition.mcp,
        "project": row,
        "agents": prepared.agents,
        "mcp": prepared.mcp,
        "missing": prepared.missing,
        "problems": prepared.problems,
        "approvals": asked,
    })
}

async fn of_project(preparer: &Preparer, project: Option<String>) -> Result<Vec<Approval>, Refusal> {
    let read = preparer.ledgers().nexus.readers.read(move |connection| approvals(connection, project.as_deref())).await;
    read.map_err(|error| refused(error.into()))
}

async fn list(State(api): State<Api>) -> Response {
    answer(listed(&api.daemon.preparer()).await)
}

/// Each with how many events wait for it.
async fn listed(preparer: &Preparer) -> Answer {
    let asked = of_project(preparer, None).await?;
    let waiting = preparer.ledgers().nexus.readers.read(waits_by_approval).await.map_err(|error| refused(error.into()))?;
    let told = asked.iter().map(|one| {
        let events = waiting.iter().find(|(id, _)| *id == one.id).map_or(0, |(_, events)| *events);
        let mut told = json!(one);
        told["waiting"] = events.into();
        told
    });
    Ok(json!({ "approvals": told.collect::<Vec<Value>>() }))
}

async fn decide(State(api): State<Api>, Path(id): Path<i64>, Json(decision): Json<Decision>) -> Response {
    answer(whole(api.verbs.clone(), decided(api.daemon.preparer(), id, decision.approve)).await)
}

async fn decided(preparer: Preparer, id: i64, approve: bool) -> Answer {
    match preparer.decide(id, approve).await.map_err(refused)? {
        Some(approval) => Ok(json!({ "approval": approval })),
        None => Err(Refusal::new(StatusCode::NOT_FOUND, format!("no approval {id}; `nexus project approvals` lists them"))),
    }
}

async fn disposable(State(api): State<Api>, Query(idle): Query<Idle>) -> Response {
    let listed = api.daemon.preparer().disposable(i64::from(idle.days) * DAY_MS).await;
    answer(listed.map(|projects| json!({ "projects": projects })).map_err(refused))
}

async fn put_away(State(api): State<Api>, Json(away): Json<Away>) -> Response {
    answer(whole(api.verbs.clone(), archive(api, away)).await)
}

async fn archive(api: Api, away: Away) -> Answer {
    let preparer = api.daemon.preparer();
    let (mut done, mut refusals) = (Vec::new(), Vec::new());
    for name in away.projects.iter().take(ARCHIVED_MAX) {
        let row = preparer.find(name).await.map_err(refused)?;
        let coordinate = row.coordinate.clone();
        let refusal = match api.daemon.put_away(row, away.delete, away.force).await {
            Ok(Some(archived)) => {
                done.push(archived);
                continue;
            }
            Ok(None) => "it is at work; try again, or stop it with `nexus project stop`".to_owned(),
            Err(error) => describe(&error),
        };
        refusals.push(json!({ "project": coordinate, "error": refusal }));
    }
    Ok(json!({ "archived": done, "refused": refusals }))
}
