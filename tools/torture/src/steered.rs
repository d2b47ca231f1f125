//! An agent that takes messages while it runs (docs/agents.md): it listens for a while, says of what comes that it took it in,
//! and answers then, or fails, as its seed says. It writes each of these down before anybody else knows.

use crate::agent::{ANSWERED, CALLED, FAILS, FOR_EVER, say};
use crate::chance::Chance;
use crate::world::World;
use crate::{clock, journal, procfs};
use anyhow::{Context, Result};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::io::{self, BufRead};
use std::process::ExitCode;
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::{Duration, Instant};

/// The agent's name, and the word behind `WORLD SEED` that makes a call one of it.
pub(crate) const NAME: &str = "steered";
/// In the agents' journal: it listens, and is about to say that it took in a message.
pub(crate) const LISTENS: &str = "listens";
pub(crate) const TOOK_IN: &str = "took in";
/// How long it listens, in ms; a turn takes longer than what comes to one session.
const LISTENS_MS_MIN: u64 = 100;
const LISTENS_MS_MORE: u64 = 300;
/// One message of so many it doesn't take in, and none that comes after it.
const LEAVES_ONE_IN: u64 = 8;
/// How long a turn may take, and lines that may wait until it reads them.
const TURN_MS: u64 = 1500;
const LINES_MAX: usize = 8;

/// The agent in the configuration.
pub(crate) fn settings(agent: &str) -> Value {
    json!({ "runner": "command", "command": format!("{agent} {NAME}"), "timeout_ms": TURN_MS, "steering": true })
}

/// What it may do instead of answering, or before it does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Whim {
    None,
    /// Ends before it listens.
    ExitAtOnce,
    Die,
    Hang,
    Fail,
    Act,
}

impl Whim {
    fn choose(chance: &mut Chance) -> Self {
        match chance.below(40) {
            0 => Self::ExitAtOnce,
            1 => Self::Die,
            2 => Self::Hang,
            3 => Self::Fail,
            4..=7 => Self::Act,
            _ => Self::None,
        }
    }

    fn ends_without_an_answer(self) -> bool {
        match self {
            Self::ExitAtOnce | Self::Die | Self::Hang | Self::Fail => true,
            Self::None | Self::Act => false,
        }
    }
}

/// One turn.
struct Turn<'a> {
    world: &'a World,
    run_id: Value,
    chance: Chance,
    lines: Receiver<String>,
}

/// The turn on stdin, and what comes behind it.
///
/// # Errors
/// Of the file system, a line that can't be read, and when the daemon doesn't listen.
pub(crate) fn run(world: &World, chance: &Chance) -> Result<ExitCode> {
    let (given, lines) = sync_channel(LINES_MAX);
    std::thread::spawn(move || -> io::Result<()> {
        for line in io::stdin().lock().lines() {
            if given.send(line?).is_err() {
                break;
            }
        }
        Ok(())
    });
    let turn: Value = serde_json::from_str(&lines.recv().context("there is no turn")?).context("the turn is no JSON")?;
    let content = turn["message"]["content"].as_str().context("the turn has no content")?;
    let calls = journal::values_with(&world.agent_journal(), content)?;
    let calls = calls.iter().filter(|one| one["content"] == content && one["what"] == CALLED).count();
    let chance = chance.about(&[NAME, content, &calls.to_string()]);
    Turn { world, run_id: turn["run_id"].clone(), chance, lines }.take(content)
}

impl Turn<'_> {
    fn note(&self, what: &str, content: &str) -> Result<()> {
        let line = json!({ "what": what, "content": content, "run_id": self.run_id, "at": clock::monotonic_ns() });
        journal::append(&self.world.agent_journal(), &line.to_string())
    }

    fn take(mut self, content: &str) -> Result<ExitCode> {
        self.note(CALLED, content)?;
        let whim = if self.world.is_calm() { Whim::None } else { Whim::choose(&mut self.chance) };
        // Noted first: nobody but this tells why the daemon has no answer.
        if whim.ends_without_an_answer() {
            self.note(FAILS, content)?;
        }
        if whim == Whim::ExitAtOnce {
            return Ok(ExitCode::from(1));
        }
        self.note(LISTENS, content)?;
        event(&json!({ "type": "steering" }))?;
        self.listen()?;
        match whim {
            Whim::None | Whim::ExitAtOnce => {}
            Whim::Die => procfs::signal(std::process::id().cast_signed(), Signal::KILL),
            Whim::Hang => clock::pause(FOR_EVER),
            Whim::Fail => {
                event(&json!({ "type": "stream_error", "error": "made up" }))?;
                return Ok(ExitCode::SUCCESS);
            }
            Whim::Act => {
                let tool = |status: &str| event(&json!({ "type": "tool_status", "toolName": "pay", "toolCallId": "t1", "status": status }));
                tool("started")?;
                self.note("paid", content)?;
                tool("completed")?;
            }
        }
        event(&json!({ "type": "token", "text": format!("re: {content}") }))?;
        // Noted first: once the end is said, the run may be finished and this process killed.
        self.note(ANSWERED, content)?;
        event(&json!({ "type": "stream_end" }))?;
        Ok(ExitCode::SUCCESS)
    }

    /// Takes in what comes, until its time is over or the daemon is gone.
    fn listen(&mut self) -> Result<()> {
        let until = Instant::now() + Duration::from_millis(LISTENS_MS_MIN + self.chance.below(LISTENS_MS_MORE));
        while let Some(left) = until.checked_duration_since(Instant::now()) {
            let Ok(line) = self.lines.recv_timeout(left) else { break };
            let given: Value = serde_json::from_str(&line).context("what comes while it runs is no JSON")?;
            let content = given["message"]["content"].as_str().context("a message has no content")?;
            if self.chance.one_in(LEAVES_ONE_IN) {
                break;
            }
            self.note(TOOK_IN, content)?;
            event(&json!({ "type": "steered", "messageId": given["messageId"] }))?;
        }
        Ok(())
    }
}

fn event(event: &Value) -> Result<()> {
    say(&format!("{event}\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_whim_comes_and_most_turns_are_answered() {
        let chosen = |number: u64| Whim::choose(&mut Chance::new(4).about(&[NAME, &number.to_string()]));
        let all: Vec<Whim> = (0..2_000).map(chosen).collect();
        let each = [Whim::None, Whim::ExitAtOnce, Whim::Die, Whim::Hang, Whim::Fail, Whim::Act];
        assert!(each.iter().all(|whim| all.contains(whim)));
        assert!(all.iter().filter(|whim| whim.ends_without_an_answer()).count() < all.len() / 5);
    }
}
