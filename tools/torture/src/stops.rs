//! A person who ends turns with `nexus sessions stop`, at random times, and writes down what was asked and what was answered.

use crate::chance::Chance;
use crate::feeder::PEERS;
use crate::world::World;
use crate::{daemon, journal};
use anyhow::Result;
use serde_json::{Value, json};

/// A channel on which a command answers, in every world: its turns take a while.
const CHANNEL: &str = "acked";
/// Status of an answer that says what was done, and of one that no session is called that yet.
const DONE: u16 = 200;
const UNKNOWN: u16 = 404;
/// Why a request has ended whose turn was stopped.
pub(crate) const REASON: &str = "stopped: by `nexus sessions stop`";
/// In the journal: a stop was asked for, and was answered.
pub(crate) const ASKED: &str = "asked";
pub(crate) const ANSWERED: &str = "answered";
/// What is answered when the turn has ended for it.
pub(crate) const STOPPED: &str = "stopped";
/// What is answered when no turn went on, or it ended otherwise.
pub(crate) const IDLE: &str = "idle";
pub(crate) const ENDED: &str = "ended";

/// Asks for the turn to end that some session has, if it has one. The daemon may die of it, or be dead.
///
/// # Errors
/// Of the file system.
pub(crate) fn ask(world: &World, chance: &mut Chance) -> Result<()> {
    let session = format!("dm:{CHANNEL}:u{}", chance.below(PEERS));
    let note = |line: Value| journal::append(&world.stops(), &line.to_string());
    note(json!({ "what": ASKED, "session": session }))?;
    let answer = daemon::ask(world, "POST", &format!("/control/sessions/{session}/stop"), "{}");
    let (result, request_id) = match answer {
        Ok((DONE, body)) => {
            // A death may cut it off, and then nothing was answered.
            let Ok(told) = serde_json::from_str::<Value>(&body) else { return Ok(()) };
            (told["result"].clone(), told["request_id"].clone())
        }
        Ok((UNKNOWN, _)) => (json!(IDLE), Value::Null),
        Ok(_) | Err(_) => return Ok(()),
    };
    note(json!({ "what": ANSWERED, "session": session, "result": result, "request_id": request_id }))
}
