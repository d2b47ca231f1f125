//! This program as the process of a project (docs/project-process.md): it writes down each event that is handed to it and
//! each step of its answer before it takes it, and answers or fails as its seed says.

use crate::adapter::alone;
use crate::agent::{FOR_EVER, say};
use crate::chance::Chance;
use crate::nostr::NOTE;
use crate::posters::coordinate;
use crate::world::World;
use crate::{clock, journal, procfs};
use anyhow::{Context, Result, bail};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::cell::Cell;
use std::io::{self, BufRead};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

/// The first argument that makes this program the process of a project.
pub(crate) const WORD: &str = "__project";
/// In the journal, in this order: an event was handed over, was accepted, has an answer that is about to be published, one
/// that is, and is answered. `nothing` stands for an answer without a word, `refused` for one that was not published.
pub(crate) const HANDED: &str = "handed";
pub(crate) const PUBLISHED: &str = "published";
pub(crate) const NOTHING: &str = "nothing";
pub(crate) const DONE: &str = "done";
/// What the daemon is told to wait for: readiness and a pong. Three pongs that are missing end a process.
const READY_MS: u64 = 2000;
const PING_MS: u64 = 400;
/// A process without work is stopped after this.
const IDLE_STOP_MS: u64 = 1500;
/// As many crashes as can be configured, in the shortest time: one that is quarantined does nothing more.
const CRASHES_MAX: u32 = 1000;
/// Crashes that quarantine the project in a world that is for that, and within which time.
const CRASHES_QUARANTINED: u32 = 3;
const CRASHES_MS: u64 = 2000;
/// In such a world it dies of one in so many events.
const DEADLY_ONE_IN: u64 = 6;

/// `projects` of the configuration.
pub(crate) fn settings(world: &World, own: &Path, seed: u64, variant: u64) -> Value {
    let (crashes, within_ms) = if world.cast().quarantine { (CRASHES_QUARANTINED, CRASHES_MS) } else { (CRASHES_MAX, 1) };
    json!({
        "path": world.file("projects"),
        "command": format!("'{}' {WORD} '{}' {seed}", own.display(), world.root().display()),
        "ready_timeout_ms": READY_MS, "ping_ms": PING_MS, "idle_stop_ms": IDLE_STOP_MS,
        "restart": { "backoff_base_ms": 20, "backoff_max_ms": 40, "max_crashes": crashes, "window_ms": within_ms },
        "overrides": { coordinate(): { "env": { "TORTURE_VARIANT": variant.to_string() } } },
    })
}

/// What a process may do instead of answering, or amid it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Whim {
    None,
    DieBefore,
    KillBefore,
    DieAccepted,
    Speak,
    Freeze,
    Fail,
    Quiet,
    Noise,
    Slow,
    DiePublishing,
    DiePublished,
    Leave,
}

impl Whim {
    fn choose(chance: &mut Chance) -> Self {
        match chance.below(50) {
            0 | 1 => Self::DieBefore,
            2 => Self::KillBefore,
            3 => Self::DieAccepted,
            4 => Self::Speak,
            5 => Self::Freeze,
            6 => Self::Fail,
            7 | 8 => Self::Quiet,
            9 => Self::Noise,
            10..=12 => Self::Slow,
            13 => Self::DiePublishing,
            14 => Self::DiePublished,
            15 => Self::Leave,
            _ => Self::None,
        }
    }
}

/// How an event left the process.
enum Left {
    Going,
    Ended(ExitCode),
}

/// `WORLD SEED`, and frames on stdin, until the daemon closes it.
///
/// # Errors
/// Of the file system, and a frame that can't be read.
pub(crate) fn run(args: &[String]) -> Result<ExitCode> {
    let [root, seed] = args else { bail!("a project is called with WORLD SEED") };
    let world = World::at(Path::new(root));
    let seed = seed.parse::<u64>().context("the seed is no number")?;
    let _alone = alone(&world, &world.project_lock(), "processes of the project")?;
    let process = Process { agent: agent()?, chance: Chance::new(seed), world, is_ending: Cell::new(false) };
    let starts = process.count("began", &Value::Null)?;
    process.note("began", &Value::Null, &Value::Null)?;
    match process.chance(&["start", &starts.to_string()]).below(40) {
        _ if process.world.is_calm() => {}
        0 => return Ok(ExitCode::from(3)),
        1 => return Ok(ExitCode::SUCCESS),
        2 => clock::pause(FOR_EVER),
        _ => {}
    }
    frame(&json!({ "type": "ready", "protocol": 1 }))?;
    process.serve()
}

/// The slug of the first agent, as the context file has it; empty where there is none yet.
fn agent() -> Result<String> {
    let path = std::env::var("NEXUS_CONTEXT_FILE").context("a project is told of no context file")?;
    let text = std::fs::read_to_string(path).context("failed to read what the project is")?;
    let context: Value = serde_json::from_str(&text).context("what the project is is no JSON")?;
    Ok(context["project"]["agents"][0]["slug"].as_str().unwrap_or_default().to_owned())
}

fn frame(frame: &Value) -> Result<()> {
    say(&format!("{frame}\n"))
}

/// The next frame; `None` once the daemon is gone, which may leave half a line.
fn hear() -> Result<Option<Value>> {
    hear_from(&mut io::stdin().lock())
}

/// The same of any input of lines.
pub(crate) fn hear_from(input: &mut impl BufRead) -> Result<Option<Value>> {
    let mut line = String::new();
    input.read_line(&mut line).context("failed to read a frame")?;
    if !line.ends_with('\n') {
        return Ok(None);
    }
    serde_json::from_str(&line).map(Some).context("a frame is no JSON")
}

fn pong(ping: &Value) -> Result<()> {
    frame(&json!({ "type": "pong", "n": ping["n"] }))
}

struct Process {
    world: World,
    chance: Chance,
    agent: String,
    /// The daemon wants it to end once what is under way is answered.
    is_ending: Cell<bool>,
}

impl Process {
    fn chance(&self, words: &[&str]) -> Chance {
        self.chance.about(&["project"]).about(words)
    }

    fn note(&self, what: &str, id: &Value, published: &Value) -> Result<()> {
        let line = json!({ "what": what, "id": id, "event_id": published, "pid": std::process::id(), "at": clock::monotonic_ns() });
        journal::append(&self.world.project_journal(), &line.to_string())
    }

    /// How often that was noted of an event.
    fn count(&self, what: &str, id: &Value) -> Result<usize> {
        let lines = journal::values_with(&self.world.project_journal(), id.as_str().unwrap_or_default())?;
        Ok(lines.iter().filter(|line| line["what"] == what && line["id"] == *id).count())
    }

    fn serve(&self) -> Result<ExitCode> {
        while let Some(heard) = hear()? {
            match heard["type"].as_str() {
                Some("ping") => pong(&heard)?,
                Some("shutdown") => return Ok(ExitCode::SUCCESS),
                Some("event") => {
                    if let Left::Ended(code) = self.event(&heard)? {
                        return Ok(code);
                    }
                    if self.is_ending.get() {
                        return Ok(ExitCode::SUCCESS);
                    }
                }
                Some(_) | None => {}
            }
        }
        Ok(ExitCode::SUCCESS)
    }

    fn event(&self, handed: &Value) -> Result<Left> {
        let id = &handed["id"];
        let times = self.count(HANDED, id)?;
        self.note(HANDED, id, &Value::Null)?;
        let event = id.as_str().unwrap_or_default();
        let mut chance = self.chance(&[event, &times.to_string()]);
        let whim = match () {
            () if self.world.is_calm() => Whim::None,
            // It dies of the same event each time, until it is in quarantine.
            () if self.world.cast().quarantine && self.chance(&[event]).one_in(DEADLY_ONE_IN) => Whim::DieBefore,
            () => Whim::choose(&mut chance),
        };
        if whim == Whim::DieBefore {
            return Ok(Left::Ended(ExitCode::from(9)));
        }
        if whim == Whim::KillBefore {
            procfs::signal_self(Signal::KILL);
        }
        frame(&json!({ "type": "accepted", "id": id }))?;
        match whim {
            Whim::DieAccepted => return Ok(Left::Ended(ExitCode::from(9))),
            Whim::Speak => {
                frame(&json!({ "type": "stream", "id": id, "output": { "token": "half" } }))?;
                return Ok(Left::Ended(ExitCode::from(9)));
            }
            Whim::Freeze => procfs::signal_self(Signal::STOP),
            Whim::Noise => ["{not json", "[]", "{\"type\":\"fly\"}"].iter().try_for_each(|line| say(&format!("{line}\n")))?,
            Whim::Slow => clock::pause(Duration::from_millis(chance.below(PING_MS))),
            Whim::Fail => {
                frame(&json!({ "type": "complete", "id": id, "error": "made up" }))?;
                return Ok(Left::Going);
            }
            Whim::None | Whim::DieBefore | Whim::KillBefore | Whim::Quiet | Whim::DiePublishing | Whim::DiePublished | Whim::Leave => {}
        }
        self.answer(handed, whim)
    }

    fn answer(&self, handed: &Value, whim: Whim) -> Result<Left> {
        let (id, event) = (&handed["id"], &handed["event"]);
        let content = format!("re: {}", event["content"].as_str().unwrap_or_default());
        if whim == Whim::Quiet {
            self.note(NOTHING, id, &Value::Null)?;
        } else {
            let tags = json!([["e", event["id"], "", "root"], ["p", event["pubkey"]]]);
            let template = json!({ "kind": NOTE, "content": content, "tags": tags });
            self.note("publishing", id, &Value::Null)?;
            frame(&json!({ "type": "publish", "id": 1, "as": self.agent, "for": id, "template": template }))?;
            if whim == Whim::DiePublishing {
                return Ok(Left::Ended(ExitCode::from(9)));
            }
            let Some(told) = self.acknowledged()? else { return Ok(Left::Ended(ExitCode::SUCCESS)) };
            if !told["event_id"].is_string() {
                self.note("refused", id, &told["error"])?;
                frame(&json!({ "type": "complete", "id": id, "error": "what it says was not published" }))?;
                return Ok(Left::Going);
            }
            self.note(PUBLISHED, id, &told["event_id"])?;
            if whim == Whim::DiePublished {
                return Ok(Left::Ended(ExitCode::from(9)));
            }
        }
        self.note(DONE, id, &Value::Null)?;
        frame(&json!({ "type": "complete", "id": id, "content": content }))?;
        Ok(if whim == Whim::Leave { Left::Ended(ExitCode::SUCCESS) } else { Left::Going })
    }

    /// What became of the publication; `None` when the daemon is gone. No other event comes in between.
    fn acknowledged(&self) -> Result<Option<Value>> {
        while let Some(heard) = hear()? {
            match heard["type"].as_str() {
                Some("ack_published") => return Ok(Some(heard)),
                Some("ping") => pong(&heard)?,
                Some("shutdown") => self.is_ending.set(true),
                Some("event") => {
                    let what = format!("the project was handed {} amid its answer to another event", heard["id"]);
                    self.world.violated(&what)?;
                }
                Some(_) | None => {}
            }
        }
        Ok(None)
    }
}
