//! Projects and the Nostr client within the daemon: made at its start, asked for by verbs. What they are and how they
//! run is `crate::project`'s and `crate::nostr`'s.

use super::control::Control;
use super::paths::Paths;
use crate::agent::project::session_of;
use crate::bus::Bus;
use crate::http::control::{Answer, Refusal};
use crate::ledger::nexus::ProjectRow;
use crate::ledger::{Ledgers, ReadError};
use crate::metrics::Metrics;
use crate::nostr::{self, Nostr};
use crate::project::activate::Roster;
use crate::project::prepare::{self, Preparer};
use crate::project::readiness::missing_at_all;
use crate::project::{LINES_MAX, Parts, Places, ProjectVerb, Projects, VerbError};
use crate::supervisor::Supervisor;
use crate::watch::Watch;
use axum::http::StatusCode;
use nexus_core::config::Config;
use serde_json::{Value, json};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Why a turn has no whole answer that ended with its project.
const STOPPED: &str = "stopped: by `nexus project stop`";
/// How long the end of such a turn is waited for.
const STOP_PATIENCE: Duration = Duration::from_secs(10);

/// What is there before them.
pub(super) struct Near<'a> {
    pub(super) paths: &'a Paths,
    pub(super) config: &'a Config,
    pub(super) supervisor: &'a Supervisor,
    pub(super) ledgers: &'a Ledgers,
    pub(super) bus: &'a Bus,
    pub(super) metrics: &'a Metrics,
    pub(super) watch_over: &'a Watch,
    pub(super) stop: &'a CancellationToken,
}

/// Says in the log what the agents lack that are to do the turns of projects: nobody has to wait for an event to know.
pub(super) fn tell_missing(config: &Config, paths: &Paths) {
    for missing in missing_at_all(config, &paths.workspace) {
        tracing::warn!(missing, "projects need configuration");
    }
}

/// Makes both, and takes in the projects that the ledger knows. Nothing is started.
///
/// # Errors
/// When the ledger can't be read.
pub(super) async fn make(near: Near<'_>) -> Result<(Nostr, Preparer, Projects), ReadError> {
    let Near { paths, config, supervisor, ledgers, bus, metrics, watch_over, stop } = near;
    let roster = Roster::default();
    let nostr = Nostr::new(nostr::Ground {
        ledgers: ledgers.clone(),
        keeper: supervisor.keeper().clone(),
        credentials: paths.credentials_dir(),
        bus: bus.clone(),
        metrics: metrics.clone(),
        watch_over: watch_over.clone(),
        roster: roster.clone(),
        stop: stop.clone(),
    });
    let preparer = Preparer::new(prepare::Ground {
        settings: prepare::Settings::of(config, paths),
        keeper: supervisor.keeper().clone(),
        ledgers: ledgers.clone(),
        nostr: nostr.clone(),
        bus: bus.clone(),
        roster: roster.clone(),
    });
    let places = Places { config_file: paths.config_file.clone(), state_dir: paths.state_dir.clone(), run_dir: paths.run_dir() };
    let parts = Parts {
        supervisor: supervisor.clone(),
        preparer: preparer.clone(),
        nostr: nostr.clone(),
        ledgers: ledgers.clone(),
        bus: bus.clone(),
        metrics: metrics.clone(),
        roster,
        places,
    };
    let projects = Projects::new(parts, config);
    preparer.runs_if(projects.up_by_coordinate());
    projects.begin().await?;
    tell_missing(config, paths);
    Ok((nostr, preparer, projects))
}

/// What `nexus project list` shows.
pub(super) async fn list(control: &Control) -> Value {
    json!({ "projects": control.projects.list().await })
}

/// Does what a person says. To stop a project ends what it is doing too, or it would begin the same anew: what waits behind that
/// stays until the project's next event, or until somebody starts it.
pub(super) async fn verb(control: &Control, name: String, verb: ProjectVerb) -> Answer {
    let session = session_of(&control.projects.meant(&name, verb).await.map_err(refused)?);
    let mut ended = None;
    let end_turn = async { ended = stop_turn(control, &session).await };
    let done = control.projects.verb(&name, verb, end_turn).await;
    let goes_on = match verb {
        ProjectVerb::Start | ProjectVerb::Restart => done.is_ok(),
        ProjectVerb::Stop => done.is_err(),
        ProjectVerb::Release => false,
    };
    if goes_on {
        control.router.wake(&session).await;
    }
    let mut answer = json!(done.map_err(refused)?);
    if verb == ProjectVerb::Stop {
        answer["ended"] = ended.into();
    }
    Ok(answer)
}

/// Begins no other turn of the session, and ends the one under way: the request of that.
async fn stop_turn(control: &Control, session: &str) -> Option<String> {
    control.router.rest(session).await;
    let mut stopping = control.pipeline.turns.stop(session, STOPPED)?;
    tracing::info!(session, request_id = stopping.request_id, "a turn is stopped by `nexus project stop`");
    if let Err(error) = control.pipeline.keep_stop(&stopping, STOP_PATIENCE).await {
        let request_id = &stopping.request_id;
        tracing::warn!(session, request_id, %error, "a stop could not be noted; the next start may run its turn again");
    }
    if !stopping.is_over(STOP_PATIENCE).await {
        tracing::warn!(session, request_id = stopping.request_id, "the end of a turn that was stopped is not on disk yet");
    }
    Some(stopping.request_id)
}

/// A project that no ledger knows, as one would.
pub(super) async fn unmade(control: &Control, name: String) -> Result<Option<ProjectRow>, Refusal> {
    control.projects.unmade(&name).await.map_err(refused)
}

pub(super) async fn logs(control: &Control, name: String, after: u64, lines: usize) -> Answer {
    let lines = control.projects.logs(&name, after, lines.min(LINES_MAX)).await.map_err(refused)?;
    Ok(json!({ "lines": lines }))
}

/// What `/health` has of them: how many are how.
pub(super) fn health(control: &Control) -> Value {
    json!({ "states": control.projects.counts(), "unwell": control.projects.unwell() })
}

fn refused(error: VerbError) -> Refusal {
    let status = match &error {
        VerbError::Unknown(_) => StatusCode::NOT_FOUND,
        VerbError::Name(_) => StatusCode::BAD_REQUEST,
        VerbError::Refused { .. } => StatusCode::CONFLICT,
        VerbError::Read(_) => StatusCode::SERVICE_UNAVAILABLE,
    };
    Refusal::new(status, crate::error_text::describe(&error))
}
