//! `nexus sessions fork` and `archive`: labels moved in `agents.db`, where they are primary. Turns under way
//! are not touched by that: each finds its label as it is when the turn ends. `nexus sessions stop` ends one.

use super::control::Control;
use crate::clock;
use crate::error_text::describe;
use crate::http::control::{Answer, Refusal};
use crate::http::sessions::Fork;
use crate::ledger::Ledgers;
use crate::ledger::agents::{ArchiveSession, Archived, ForkSession, Forked, label_of, put_away};
use crate::ledger::nexus::ended_for;
use crate::ledger::writer::WriteError;
use axum::http::StatusCode;
use nexus_core::access::LABEL_BYTES_MAX;
use serde_json::json;
use std::time::Duration;

/// What the trace of a turn says that was ended by the verb.
const STOPPED: &str = "stopped: by `nexus sessions stop`";
/// How long the answer to `stop` waits for the turn's end: an agent that is told to stop has a part of that.
const STOP_PATIENCE: Duration = Duration::from_secs(10);

/// Gives a session, or an earlier turn of it, a second label.
pub(super) async fn fork(ledgers: &Ledgers, from: String, fork: Fork) -> Answer {
    let Fork { to, turn } = fork;
    if to.trim().is_empty() || to.len() > LABEL_BYTES_MAX || to.contains(char::is_control) {
        let why = format!("a label has 1 to {LABEL_BYTES_MAX} bytes, and no control characters");
        return Err(Refusal::new(StatusCode::BAD_REQUEST, why));
    }
    let asked = ForkSession { from, to, turn, at: clock::wall_ms() };
    match ledgers.agents.writer.write_until_done(asked.clone()).await.map_err(not_now)? {
        Forked::Done(made) => Ok(json!({ "session": made, "from": asked.from })),
        Forked::NoSession => Err(missing(&asked.from)),
        Forked::NoTurn => {
            let turn = asked.turn.as_deref().unwrap_or("-");
            let why = format!("session `{}` has no turn `{turn}`; `nexus sessions show` lists its turns", asked.from);
            Err(Refusal::new(StatusCode::NOT_FOUND, why))
        }
        Forked::Taken => {
            let why = format!("`{}` names a session already; a fork needs a new label", asked.to);
            Err(Refusal::new(StatusCode::CONFLICT, why))
        }
    }
}

/// Puts a session away, or takes it back.
pub(super) async fn archive(ledgers: &Ledgers, name: String, undo: bool) -> Answer {
    let found = if undo { found_put_away(ledgers, name.clone()).await? } else { None };
    let asked = ArchiveSession { name, formerly: None, undo, found, begun_by: None, at: clock::wall_ms() };
    let name = &asked.name;
    match ledgers.agents.writer.write_until_done(asked.clone()).await.map_err(not_now)? {
        Archived::Done(session) => Ok(json!({ "session": session, "changed": true })),
        Archived::Before(session) => Ok(json!({ "session": session, "changed": false })),
        Archived::NoSession => Err(missing(name)),
        Archived::NotArchived => {
            Err(Refusal::new(StatusCode::CONFLICT, format!("session `{name}` is not archived: there is nothing to take back")))
        }
        Archived::BegunAnew { head, turns } => {
            let why = format!(
                "`{name}` has begun anew since it was archived with {turns} turn{}; `nexus sessions fork {name} NEW-LABEL --at {head}` \
                 brings what was said back under another label",
                if turns == 1 { "" } else { "s" }
            );
            Err(Refusal::new(StatusCode::CONFLICT, why))
        }
    }
}

async fn found_put_away(ledgers: &Ledgers, name: String) -> Result<Option<i64>, Refusal> {
    let found = ledgers.agents.readers.read(move |connection| put_away(connection, &name)).await;
    found.map_err(|error| Refusal::new(StatusCode::SERVICE_UNAVAILABLE, describe(&error)))
}

/// Ends the turn that runs in a session. What waits there goes on after that.
pub(super) async fn stop(control: &Control, name: String) -> Answer {
    let turns = &control.pipeline.turns;
    // The label first: the session of its first turn is in no file yet.
    let mut found = turns.stop(&name, STOPPED);
    let mut label = name;
    if found.is_none() {
        let asked = label.clone();
        let known = control.ledgers.agents.readers.read(move |connection| label_of(connection, &asked)).await;
        let known = known.map_err(|error| Refusal::new(StatusCode::SERVICE_UNAVAILABLE, describe(&error)))?;
        let Some(known) = known else { return Err(missing(&label)) };
        found = turns.stop(&known, STOPPED);
        label = known;
    }
    let Some(mut stopping) = found else { return Ok(json!({ "session": label, "result": "idle" })) };
    let request_id = stopping.request_id.clone();
    tracing::info!(session = label, request_id, "a turn is stopped by `nexus sessions stop`");
    let is_kept = control.pipeline.keep_stop(&stopping, STOP_PATIENCE).await.map_err(not_now)?;
    let result = match is_kept && stopping.is_over(STOP_PATIENCE).await {
        false => "stopping",
        true => {
            let stopped = stopping.event_seqs.clone();
            let is_ours = control.ledgers.nexus.readers.read(move |connection| ended_for(connection, &stopped, STOPPED)).await;
            match is_ours.map_err(|error| Refusal::new(StatusCode::SERVICE_UNAVAILABLE, describe(&error)))? {
                Some(true) => "stopped",
                Some(false) => "ended",
                None => "stopping",
            }
        }
    };
    Ok(json!({ "session": label, "result": result, "request_id": request_id }))
}

fn missing(name: &str) -> Refusal {
    Refusal::new(StatusCode::NOT_FOUND, crate::unknown::session(name))
}

fn not_now(error: WriteError) -> Refusal {
    Refusal::new(StatusCode::SERVICE_UNAVAILABLE, error.to_string())
}
