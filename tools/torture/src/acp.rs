//! This program as an agent of the `acp` runner (docs/agents.md): a process that stays, and speaks the JSON-RPC lines of the
//! Agent Client Protocol, written by hand. It writes down each message and each effect of a tool before anything else
//! happens, and then answers or fails as its seed says. It isn't told which run it answers, so a message stands for that.

use crate::adapter::alone;
use crate::agent::{CALLED, FAILS};
use crate::chance::Chance;
use crate::project::hear_from;
use crate::world::World;
use crate::{clock, journal, procfs};
use anyhow::{Context, Result, bail};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::collections::{HashMap, HashSet};
use std::io::{self, BufRead, Write};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

/// The first argument that makes this program such an agent.
pub(crate) const WORD: &str = "__acp";
/// The agent's name.
pub(crate) const NAME: &str = "acp";
/// In the agents' journal: the process is about to end or to hear nothing any more, with all that goes on in it.
pub(crate) const DIES: &str = "dies";
/// And: one began.
pub(crate) const BEGAN: &str = "began";
/// And: a turn goes on until it is told to stop, and it was told so.
pub(crate) const HANGS: &str = "hangs";
pub(crate) const CANCELLED: &str = "cancelled";
/// How long a turn may take.
pub(crate) const TURN_MS: u64 = 1500;
const PAUSE: Duration = Duration::from_millis(300);
/// Lines that are no message.
const NOISE: [&str; 3] = ["starting up", "{\"jsonrpc\":", "7"];
/// Codes of the protocol's errors.
const NO_METHOD: i32 = -32601;
const INTERNAL: i32 = -32603;
const NOT_FOUND: i32 = -32002;

/// The agent in the configuration. Nothing of it changes with a reload, which leaves its process alone.
pub(crate) fn settings(world: &World, own: &Path, seed: u64) -> Value {
    let command = format!("'{}' {WORD} '{}' {seed}", own.display(), world.root().display());
    json!({ "runner": "acp", "command": command, "timeout_ms": TURN_MS })
}

/// What it answers to a message.
pub(crate) fn answer_to(content: &str) -> String {
    format!("re: {content}")
}

/// What it may do instead of answering, or before it does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Whim {
    None,
    Exit,
    Die,
    /// Ends in the middle of a line.
    Half,
    Freeze,
    /// Doesn't end its turn, whatever it is told.
    Wedge,
    ActAndExit,
    /// Ends its turn once it is told to stop.
    Hang,
    Fail,
    Refuse,
    Noise,
    Pause,
    Act,
}

impl Whim {
    /// An end of the process is seldom: all sessions share it, and the next one begins a second later.
    fn choose(chance: &mut Chance) -> Self {
        match chance.below(240) {
            0 => Self::Exit,
            1 => Self::Die,
            2 => Self::Half,
            3 => Self::Freeze,
            4 => Self::Wedge,
            5 => Self::ActAndExit,
            6..=9 => Self::Hang,
            10..=13 => Self::Fail,
            14..=16 => Self::Refuse,
            17..=22 => Self::Noise,
            23..=30 => Self::Pause,
            31..=70 => Self::Act,
            _ => Self::None,
        }
    }

    fn ends_the_process(self) -> bool {
        match self {
            Self::Exit | Self::Die | Self::Half | Self::Freeze | Self::Wedge | Self::ActAndExit => true,
            Self::None | Self::Hang | Self::Fail | Self::Refuse | Self::Noise | Self::Pause | Self::Act => false,
        }
    }

    fn ends_without_an_answer(self) -> bool {
        self.ends_the_process() || matches!(self, Self::Hang | Self::Fail | Self::Refuse)
    }
}

/// A turn that isn't ended.
struct Open {
    /// Of the request that is to be answered.
    id: Value,
    content: String,
    is_deaf: bool,
}

struct Agent<W> {
    world: World,
    chance: Chance,
    out: W,
    /// Those that this process began or loaded.
    sessions: HashSet<String>,
    /// By session.
    open: HashMap<String, Open>,
}

/// `WORLD SEED`, and messages on stdin, until the daemon closes it.
///
/// # Errors
/// Of the file system, and a message that can't be read.
pub(crate) fn run(args: &[String]) -> Result<ExitCode> {
    let [root, seed] = args else { bail!("an agent that stays is called with WORLD SEED") };
    let world = World::at(Path::new(root));
    let seed = seed.parse::<u64>().context("the seed is no number")?;
    let _alone = alone(&world, &world.acp_lock(), "processes of the ACP agent")?;
    let starts = journal::values_with(&world.agent_journal(), BEGAN)?.iter().filter(|one| one["what"] == BEGAN).count();
    let mut agent = Agent::new(world, Chance::new(seed), io::stdout().lock());
    agent.note(BEGAN, "")?;
    match agent.chance.about(&["acp start", &starts.to_string()]).below(24) {
        _ if agent.world.is_calm() => {}
        0 => {
            agent.note(DIES, "")?;
            return Ok(ExitCode::from(3));
        }
        1 => clock::pause(PAUSE),
        _ => {}
    }
    agent.serve(&mut io::stdin().lock())
}

impl<W: Write> Agent<W> {
    fn new(world: World, chance: Chance, out: W) -> Self {
        Self { world, chance, out, sessions: HashSet::new(), open: HashMap::new() }
    }

    /// Until its input or the process ends.
    fn serve(&mut self, input: &mut impl BufRead) -> Result<ExitCode> {
        while let Some(message) = hear_from(input)? {
            if let Some(code) = self.take(&message)? {
                return Ok(code);
            }
        }
        Ok(ExitCode::SUCCESS)
    }

    fn note(&self, what: &str, content: &str) -> Result<()> {
        let line = json!({ "what": what, "content": content, "at": clock::monotonic_ns() });
        journal::append(&self.world.agent_journal(), &line.to_string())
    }

    /// An exit code ends the process.
    fn take(&mut self, message: &Value) -> Result<Option<ExitCode>> {
        let (id, params) = (&message["id"], &message["params"]);
        let session = params["sessionId"].as_str().unwrap_or_default();
        match message["method"].as_str() {
            Some("initialize") => {
                let can = json!({ "loadSession": true, "sessionCapabilities": { "close": {} } });
                self.answer(id, &json!({ "protocolVersion": 1, "agentCapabilities": can }))?;
            }
            Some("session/new") => self.begin(id)?,
            Some("session/load") => self.load(id, session)?,
            Some("session/close") => {
                self.sessions.remove(session);
                self.answer(id, &json!({}))?;
            }
            Some("session/prompt") => return self.prompt(id, session, &params["prompt"]),
            Some("session/cancel") => self.cancel(session)?,
            Some(_) if !id.is_null() => self.refuse(id, NO_METHOD, "no such method")?,
            Some(_) | None => {}
        }
        Ok(None)
    }

    /// A session is written down before the daemon knows of it.
    fn begin(&mut self, id: &Value) -> Result<()> {
        let session = format!("s{}", journal::lines(&self.world.acp_sessions())?.len());
        journal::append(&self.world.acp_sessions(), &session)?;
        self.sessions.insert(session.clone());
        self.answer(id, &json!({ "sessionId": session }))
    }

    /// Plays back what nobody may take for an answer.
    fn load(&mut self, id: &Value, session: &str) -> Result<()> {
        if !journal::lines(&self.world.acp_sessions())?.iter().any(|known| known == session) {
            self.world.violated(&format!("the ACP agent was asked for a session that it never began: `{session}`"))?;
            return self.refuse(id, NOT_FOUND, "no such session");
        }
        self.sessions.insert(session.to_owned());
        self.tell(session, "what was said before; ")?;
        self.answer(id, &json!({}))
    }

    fn prompt(&mut self, id: &Value, session: &str, blocks: &Value) -> Result<Option<ExitCode>> {
        // What was said before stands before the message.
        let content = blocks.as_array().into_iter().flatten().rev().find_map(|block| block["text"].as_str());
        let content = content.context("a prompt has no text")?;
        if !self.sessions.contains(session) {
            self.world.violated(&format!("the ACP agent was told `{content}` in a session that this process has not: `{session}`"))?;
            return self.refuse(id, NOT_FOUND, "no such session").map(|()| None);
        }
        if self.open.contains_key(session) {
            self.world.violated(&format!("the ACP agent was told `{content}` in a session whose turn goes on"))?;
        }
        let calls = journal::values_with(&self.world.agent_journal(), content)?;
        let calls = calls.iter().filter(|one| one["content"] == content && one["what"] == CALLED).count();
        self.note(CALLED, content)?;
        let mut chance = self.chance.about(&["acp", content, &calls.to_string()]);
        let whim = if self.world.is_calm() { Whim::None } else { Whim::choose(&mut chance) };
        // Noted first: nobody but this tells why the daemon has no answer.
        if whim.ends_without_an_answer() {
            self.note(FAILS, content)?;
        }
        if whim.ends_the_process() {
            self.note(DIES, content)?;
        }
        match whim {
            Whim::Exit => return Ok(Some(ExitCode::from(1))),
            Whim::Die => procfs::signal_self(Signal::KILL),
            Whim::Half => {
                self.say("{\"jsonrpc\":\"2.0\",\"method\":\"session/up")?;
                return Ok(Some(ExitCode::from(1)));
            }
            Whim::Freeze => procfs::signal_self(Signal::STOP),
            Whim::Wedge | Whim::Hang => {
                if whim == Whim::Hang {
                    self.note(HANGS, content)?;
                }
                let open = Open { id: id.clone(), content: content.to_owned(), is_deaf: whim == Whim::Wedge };
                self.open.insert(session.to_owned(), open);
                return Ok(None);
            }
            Whim::Fail => return self.refuse(id, INTERNAL, "made up").map(|()| None),
            Whim::Refuse => return self.end(id, "refusal").map(|()| None),
            Whim::Noise => NOISE.iter().try_for_each(|line| self.say(&format!("{line}\n")))?,
            Whim::Pause => clock::pause(PAUSE),
            Whim::Act | Whim::ActAndExit => {
                self.update(
                    session,
                    &json!({ "sessionUpdate": "tool_call", "toolCallId": "t1", "title": "pay", "kind": "execute", "status": "pending" }),
                )?;
                self.note("paid", content)?;
                if whim == Whim::ActAndExit {
                    return Ok(Some(ExitCode::from(1)));
                }
                self.update(session, &json!({ "sessionUpdate": "tool_call_update", "toolCallId": "t1", "status": "completed" }))?;
            }
            Whim::None => {}
        }
        let whole = answer_to(content);
        let (first, rest) = whole.split_at(whole.len() - content.len());
        self.tell(session, first)?;
        self.tell(session, rest)?;
        // Noted first: once the end is said, the run may be finished and this process killed.
        self.note("answered", content)?;
        self.end(id, "end_turn").map(|()| None)
    }

    fn cancel(&mut self, session: &str) -> Result<()> {
        if self.open.get(session).is_none_or(|open| open.is_deaf) {
            return Ok(());
        }
        let Some(Open { id, content, .. }) = self.open.remove(session) else { return Ok(()) };
        self.note(CANCELLED, &content)?;
        self.end(&id, "cancelled")
    }

    fn say(&mut self, text: &str) -> Result<()> {
        self.out.write_all(text.as_bytes()).and_then(|()| self.out.flush()).context("failed to write to the daemon")
    }

    fn write(&mut self, message: &Value) -> Result<()> {
        self.say(&format!("{message}\n"))
    }

    fn answer(&mut self, id: &Value, result: &Value) -> Result<()> {
        self.write(&json!({ "jsonrpc": "2.0", "id": id, "result": result }))
    }

    fn refuse(&mut self, id: &Value, code: i32, why: &str) -> Result<()> {
        self.write(&json!({ "jsonrpc": "2.0", "id": id, "error": { "code": code, "message": why } }))
    }

    fn end(&mut self, id: &Value, reason: &str) -> Result<()> {
        self.answer(id, &json!({ "stopReason": reason }))
    }

    fn update(&mut self, session: &str, update: &Value) -> Result<()> {
        self.write(&json!({ "jsonrpc": "2.0", "method": "session/update", "params": { "sessionId": session, "update": update } }))
    }

    fn tell(&mut self, session: &str, text: &str) -> Result<()> {
        self.update(session, &json!({ "sessionUpdate": "agent_message_chunk", "content": { "type": "text", "text": text } }))
    }
}

#[cfg(test)]
#[path = "acp_tests.rs"]
mod tests;
