//! A person who ends turns with `nexus sessions stop`, at random times, and writes down what was asked and what was answered.

use crate::chance::Chance;
use crate::feeder::PEERS;
use crate::world::World;
use crate::{daemon, journal};
use anyhow::{Context, Result};
use serde_json::{Value, json};

/// A channel on which a command answers, in every world: its turns take a while.
const CHANNEL: &str = "acked";
/// Status of an answer that says that it is done.
const DONE: u16 = 200;
/// Why a request has ended whose turn was stopped.
pub(crate) const REASON: &str = "stopped: by `nexus sessions stop`";
/// In the journal: a stop was asked for, and was answered.
pub(crate) const ASKED: &str = "asked";
pub(crate) const ANSWERED: &str = "answered";
/// What is answered when the turn has ended for it.
pub(crate) const STOPPED: &str = "stopped";

/// Asks for the turn to end that some session has, if it has one. The daemon may die of it, or be dead.
///
/// # Errors
/// Of the file system, and an answer that is no JSON.
pub(crate) fn ask(world: &World, chance: &mut Chance) -> Result<()> {
    let session = format!("dm:{CHANNEL}:u{}", chance.below(PEERS));
    let note = |line: Value| journal::append(&world.stops(), &line.to_string());
    note(json!({ "what": ASKED, "session": session }))?;
    let Ok((DONE, body)) = daemon::ask(world, "POST", &format!("/control/sessions/{session}/stop"), "{}") else { return Ok(()) };
    let told: Value = serde_json::from_str(&body).context("the answer to a stop is no JSON")?;
    note(json!({ "what": ANSWERED, "session": session, "result": told["result"], "request_id": told["request_id"] }))
}
