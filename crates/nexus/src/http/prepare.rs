//! `/control/prepare/...`: projects prepared, looked at, approved and put away. It maps requests to the
//! [`Preparer`](crate::project::prepare::Preparer), and back.

use super::Api;
use super::control::{Answer, Refusal, answer, whole};
use crate::clock;
use crate::error_text::describe;
use crate::ledger::nexus::{Approval, ProjectRow, approvals, waits, waits_by_approval};
use crate::project::coordinate::Coordinate;
use crate::project::definition::Definition;
use crate::project::prepare::{Ask, PrepareError, Prepared, Preparer, Progress, defined};
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
/// What is told of a project's process, as in the list.
const OF_PROCESS: [&str; 14] = [
    "state",
    "startedAt",
    "pid",
    "uptime_ms",
    "restarts",
    "crashes",
    "last_error",
    "queue",
    "doing",
    "last_used",
    "cpu_seconds",
    "rss_bytes",
    "fds",
    "receive_to_ready_ms",
];

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
    } else if matches!(error, PrepareError::Name(_)) {
        StatusCode::BAD_REQUEST
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
    let project = preparer.wanted(&ask.project).await.map_err(refused)?;
    let progress = Progress::new(preparer.bus(), &project);
    let prepared = preparer.prepare(&project, &progress, Ask { anew: ask.anew, path: ask.path, is_start: false });
    match tokio::time::timeout(PREPARE_WAIT, prepared).await {
        Ok(prepared) => Ok(json!({ "prepared": prepared.map_err(refused)? })),
        Err(_) => Ok(json!({ "pending": project })),
    }
}

async fn show(State(api): State<Api>, Path(name): Path<String>) -> Response {
    answer(show_whole(&api, &name).await)
}

/// With what its process is doing, which no ledger knows.
async fn show_whole(api: &Api, name: &str) -> Answer {
    let preparer = api.daemon.preparer();
    let mut shown = match preparer.find(name).await {
        Ok(row) => look(&preparer, row).await?,
        Err(error) => {
            let is_unknown = matches!(error, PrepareError::Unknown { .. });
            let unmade = if is_unknown { api.daemon.unmade_project(name.to_owned()).await? } else { None };
            look(&preparer, unmade.ok_or_else(|| refused(error))?).await?
        }
    };
    shown["waiting"] = waiting(&preparer, &shown["project"]["coordinate"]).await?;
    let all = api.daemon.projects().await;
    let is_it = |one: &&Value| one["id"] == shown["project"]["coordinate"];
    if let Some(one) = all["projects"].as_array().into_iter().flatten().find(is_it) {
        for key in OF_PROCESS {
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

async fn look(preparer: &Preparer, row: ProjectRow) -> Answer {
    let asked = of_project(preparer, Some(row.coordinate.clone())).await?;
    let project = Coordinate::parse(&row.coordinate).map_err(|error| Refusal::new(StatusCode::CONFLICT, error.to_string()))?;
    // Of one that was never prepared to its end, or was put away, there is no directory to look into.
    let is_there = row.definition.is_some() && row.status != "archived";
    let looked = if is_there { Some(preparer.look(&row).await) } else { None };
    let (prepared, error) = match looked {
        Some(Ok((_, prepared))) => (Some(prepared), None),
        Some(Err(error)) => (None, Some(describe(&error))),
        None => (None, None),
    };
    let mut shown = shown(&row, &project, defined(&row).ok().as_ref(), prepared.as_ref(), &preparer.settings().relays);
    shown["approvals"] = json!(asked);
    if let Some(error) = error {
        shown["error"] = error.into();
    }
    // Its address may stand in the announcement of its repository only.
    if let Some(prepared) = prepared.filter(|_| shown["repoUrl"].is_null()) {
        match preparer.repo_url(&prepared.path).await {
            Ok(address) => shown["repoUrl"] = json!(address),
            Err(error) => shown["error"] = describe(&error).into(),
        }
    }
    Ok(shown)
}

/// The requirement's ProjectData, with what is known beside it: the same names whatever is known.
fn shown(row: &ProjectRow, project: &Coordinate, definition: Option<&Definition>, prepared: Option<&Prepared>, relays: &[String]) -> Value {
    json!({
        "identifier": project.identifier,
        "pubkey": project.pubkey,
        "naddr": project.naddr(relays),
        "title": definition.map_or(&row.title, |definition| &definition.title),
        "description": definition.and_then(|definition| definition.description.as_ref()),
        "repoUrl": definition.and_then(|definition| definition.repo.as_ref()),
        "hashtags": definition.map(|definition| definition.hashtags.as_slice()).unwrap_or_default(),
        "agentEventIds": definition.map(|definition| definition.agents.as_slice()).unwrap_or_default(),
        "mcpEventIds": definition.map(|definition| definition.mcp.as_slice()).unwrap_or_default(),
        "project": row,
        "agents": prepared.map(|prepared| prepared.agents.as_slice()).unwrap_or_default(),
        "mcp": prepared.map(|prepared| prepared.mcp.as_slice()).unwrap_or_default(),
        "missing": prepared.map(|prepared| prepared.missing.as_slice()).unwrap_or_default(),
        "problems": prepared.map(|prepared| prepared.problems.as_slice()).unwrap_or_default(),
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
    if away.projects.len() > ARCHIVED_MAX {
        let why = format!("{ARCHIVED_MAX} projects can be put away at once; these are {}", away.projects.len());
        return Err(Refusal::new(StatusCode::BAD_REQUEST, why));
    }
    // All names first: a mistyped one must not be found out when others are gone.
    let mut rows = Vec::new();
    for name in &away.projects {
        rows.push(preparer.find(name).await.map_err(refused)?);
    }
    let (mut done, mut refusals) = (Vec::new(), Vec::new());
    for row in rows {
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
