//! `nexus sessions fork` and `archive`: labels moved in `agents.db`, where they are primary. Turns under way
//! are not touched: each finds its label as it is when the turn ends.

use crate::clock;
use crate::http::control::{Answer, Refusal};
use crate::http::sessions::Fork;
use crate::ledger::Ledgers;
use crate::ledger::agents::{ArchiveSession, Archived, ForkSession, Forked};
use crate::ledger::writer::WriteError;
use axum::http::StatusCode;
use nexus_core::access::LABEL_BYTES_MAX;
use serde_json::json;

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
    let asked = ArchiveSession { name, undo, at: clock::wall_ms() };
    match ledgers.agents.writer.write_until_done(asked.clone()).await.map_err(not_now)? {
        Archived::Done(session) => Ok(json!({ "session": session, "changed": true })),
        Archived::Before(session) => Ok(json!({ "session": session, "changed": false })),
        Archived::NoSession => Err(missing(&asked.name)),
    }
}

fn missing(name: &str) -> Refusal {
    Refusal::new(StatusCode::NOT_FOUND, crate::unknown::session(name))
}

fn not_now(error: WriteError) -> Refusal {
    Refusal::new(StatusCode::SERVICE_UNAVAILABLE, error.to_string())
}
