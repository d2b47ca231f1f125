//! The conversation with the daemon: lines in, turns of the engine, lines out. It owns which hook calls are
//! open, how much time each has left, and what becomes of all when the runtime is of no use any more.

use super::engine::{Ended, Engine};
use super::frame::{Came, LINE_OUT_BYTES_MAX, Log, Order, Up, parse, read_line};
use super::stage::{Said, Stage};
use super::trouble::Trouble;
use super::watchdog::Watchdog;
use super::{Kind, Limits, Plugin, patch, say};
use serde_json::Value;
use std::collections::BTreeMap;
use std::io::{self, BufRead, Write};
use std::rc::Rc;
use std::time::{Duration, Instant};

/// What is told of JavaScript that the watchdog has to end.
const CAN_NOT_BE_ENDED: &str = "neither ended in its time nor could be interrupted; its process ended";
/// Hook calls of one plugin that wait for their answers.
const HOOKS_OPEN_MAX: usize = 1024;
/// Written bytes for which memory is kept.
const BUFFER_KEPT_BYTES: usize = 64 * 1024;

/// Why the conversation is over before the daemon ended it.
#[derive(Debug, thiserror::Error)]
pub(super) enum Lost {
    #[error("failed to read from stdin")]
    Input(#[source] io::Error),
    #[error("failed to write to stdout")]
    Output(#[source] io::Error),
    #[error("failed to confine the process")]
    Confine(#[source] io::Error),
    /// The plugin can't be loaded; the daemon was told why.
    #[error("the plugin can't be loaded: {0}")]
    Plugin(String),
}

/// A hook call that isn't answered yet.
#[derive(Debug)]
struct Open {
    /// What its JavaScript may take in all, and may still take.
    allowed: Duration,
    left: Duration,
    /// When the daemon doesn't want an answer any more.
    until: Option<Instant>,
}

/// One plugin, or one automation among others, with its end of the conversation.
pub(super) struct Host<W> {
    plugin: Plugin,
    /// Its number among the automations of this process.
    guest: Option<u64>,
    limits: Limits,
    watchdog: Rc<Watchdog>,
    stage: Rc<Stage>,
    engine: Engine,
    open: BTreeMap<u64, Open>,
    /// Which hook call each call belongs to.
    calls: BTreeMap<u64, u64>,
    lines: Vec<u8>,
    output: W,
}

/// Loads the plugin, says so, and serves until the daemon closes `input`.
///
/// # Errors
/// [`Lost`].
pub(super) fn serve(
    plugin: Plugin,
    limits: Limits,
    watchdog: Rc<Watchdog>,
    mut input: impl BufRead,
    output: impl Write,
) -> Result<(), Lost> {
    let mut host = Host::load(plugin, None, limits, watchdog, output)?;
    let mut line = Vec::new();
    loop {
        match read_line(&mut input, &mut line).map_err(Lost::Input)? {
            Came::Line => host.hear(&line)?,
            Came::TooLong => say("a line was longer than 16 MiB and is skipped"),
            Came::End => return Ok(()),
        }
    }
}

/// Tells the daemon why there is no plugin.
///
/// # Errors
/// Always: [`Lost::Plugin`], or that nobody could be told.
pub(super) fn refuse<T>(guest: Option<u64>, trouble: &Trouble, mut output: impl Write) -> Result<T, Lost> {
    let mut line = Vec::new();
    if (Up::Fatal { fatal: trouble }).append(guest, &mut line).is_ok() {
        output.write_all(&line).and_then(|()| output.flush()).map_err(Lost::Output)?;
    }
    Err(Lost::Plugin(trouble.message.clone()))
}

impl<W: Write> Host<W> {
    /// Loads the file, and says so.
    ///
    /// # Errors
    /// [`Lost`].
    pub(super) fn load(plugin: Plugin, guest: Option<u64>, limits: Limits, watchdog: Rc<Watchdog>, mut output: W) -> Result<Self, Lost> {
        let stage = Rc::new(Stage::new());
        watchdog.blame(never_loaded(guest));
        let (engine, manifest) = match Engine::start(&plugin, limits, &stage, &watchdog) {
            Ok(started) => started,
            Err(trouble) => return refuse(guest, &trouble, output),
        };
        let noun = plugin.kind.noun();
        let manifest: Value = match serde_json::from_str(&manifest) {
            Ok(manifest) => manifest,
            Err(error) => return refuse(guest, &Trouble::new(format!("the {noun} can't be described: {error}")), output),
        };
        let mut lines = Vec::new();
        if let Err(bytes) = (Up::Ready { ready: &manifest }).append(guest, &mut lines) {
            return refuse(guest, &Trouble::new(format!("the {noun}'s description has {bytes} bytes")), output);
        }
        output.write_all(&lines).and_then(|()| output.flush()).map_err(Lost::Output)?;
        let (open, calls, lines) = (BTreeMap::new(), BTreeMap::new(), Vec::new());
        let mut host = Self { plugin, guest, limits, watchdog, stage, engine, open, calls, lines, output };
        // What it said while it was loaded.
        host.tell();
        host.flush()?;
        Ok(host)
    }

    /// Takes one line, and writes what comes of it.
    ///
    /// # Errors
    /// [`Lost`].
    pub(super) fn hear(&mut self, line: &[u8]) -> Result<(), Lost> {
        match parse(line) {
            Ok(Order::Hook { id, hook, request, error, deadline }) => self.hook(id, &hook, request, error.unwrap_or_default(), deadline)?,
            Ok(Order::Answer { call, outcome }) => self.answer(call, &outcome)?,
            Err(problem) => say(format!("a line is no frame and is skipped: {problem}")),
        }
        self.flush()
    }

    fn hook(&mut self, id: u64, hook: &str, request: &str, error: &str, deadline: Option<Duration>) -> Result<(), Lost> {
        let now = Instant::now();
        self.forget_overdue(now);
        if self.open.len() >= HOOKS_OPEN_MAX || self.open.contains_key(&id) {
            let problem = format!("hook call {id} is open already, or {HOOKS_OPEN_MAX} others are");
            self.push_error(id, &Trouble::new(problem));
            return Ok(());
        }
        let allowed = deadline.unwrap_or(self.limits.call).min(self.limits.call);
        self.open.insert(id, Open { allowed, left: allowed, until: deadline.and_then(|deadline| now.checked_add(deadline)) });
        self.stage.open(id);
        self.blame(id);
        let ended = self.engine.run(allowed, id, hook, request, error);
        self.after_turn(id, ended)
    }

    fn answer(&mut self, call: u64, outcome: &Result<&str, String>) -> Result<(), Lost> {
        // Unknown: it belonged to a runtime that is gone.
        let Some(id) = self.calls.remove(&call) else { return Ok(()) };
        // What a hook left running after its end may finish as well.
        let left = self.open.get(&id).map_or(self.limits.call, |open| open.left);
        self.blame(id);
        let ended = self.engine.settle(left, id, call, outcome);
        self.after_turn(id, ended)
    }

    /// Whose turn it is, should the process have to end within it.
    fn blame(&self, id: u64) {
        if self.guest.is_some() {
            self.watchdog.blame(last_words(self.guest, &Up::error(id, &Trouble::new(CAN_NOT_BE_ENDED))));
        }
    }

    fn after_turn(&mut self, id: u64, ended: Ended) -> Result<(), Lost> {
        let used = self.stage.used();
        let used_up = self.tell();
        if let Some(open) = self.open.get_mut(&id) {
            open.left = open.left.saturating_sub(used);
        }
        match ended {
            Ended::Well if used_up => self.begin_anew(),
            Ended::Well => Ok(()),
            Ended::Late => {
                let allowed = self.open.get(&id).map_or(self.limits.call, |open| open.allowed);
                self.fail(id, &late(allowed, self.plugin.kind));
                self.begin_anew()
            }
            Ended::Broken(trouble) => {
                self.fail(id, &self.worded(trouble));
                self.begin_anew()
            }
        }
    }

    /// Makes lines of what was said. Whether memory was used up.
    fn tell(&mut self) -> bool {
        let mut used_up = false;
        for said in self.stage.take() {
            match said {
                Said::Same { id } => self.close(id, &Up::Result { id, result: "continue" }),
                Said::Skip { id } => self.close(id, &Up::Result { id, result: "skip" }),
                Said::Returned { id, result } => self.give(id, &result),
                Said::Changed { id, before, after } => self.change(id, &before, &after),
                Said::Failed { id, trouble } => {
                    used_up |= trouble.is_memory();
                    self.fail(id, &self.worded(trouble));
                }
                Said::Call { call, id, method, params } => self.call(call, id, &method, &params),
                Said::Log { level, message } => self.push(&Up::Log { log: Log { level, message: &message } }),
            }
        }
        used_up
    }

    /// The engine's words for memory that is used up say nothing of what follows.
    fn worded(&self, trouble: Trouble) -> Trouble {
        if trouble.is_memory() { trouble.saying(self.limits.memory(self.plugin.kind)) } else { trouble }
    }

    fn call(&mut self, call: u64, id: u64, method: &str, params: &Value) {
        self.calls.insert(call, id);
        self.push(&Up::Call { call, id, method, params });
    }

    fn give(&mut self, id: u64, result: &str) {
        // Parsed, a text takes many times its length.
        if result.len() > LINE_OUT_BYTES_MAX {
            let trouble = Trouble::new(format!("the handler returned {} bytes, and a line may have {LINE_OUT_BYTES_MAX}", result.len()));
            return self.fail(id, &trouble);
        }
        match serde_json::from_str::<Value>(result) {
            Ok(returned) => self.close(id, &Up::Returned { id, returned: &returned }),
            Err(error) => self.fail(id, &Trouble::new(format!("the handler returned no valid result: {error}"))),
        }
    }

    fn change(&mut self, id: u64, before: &str, after: &str) {
        // What was added is in the patch as a whole, so this much longer can't become a line.
        let added = after.len().saturating_sub(before.len());
        if added > LINE_OUT_BYTES_MAX {
            return self.fail(id, &too_long(added));
        }
        let read = |text: &str| serde_json::from_str::<Value>(text);
        match (read(before), read(after)) {
            (Ok(before), Ok(after)) => match patch::between(&before, after) {
                Some(patch) => self.close(id, &Up::Patch { id, patch: &patch }),
                None => self.close(id, &Up::Result { id, result: "continue" }),
            },
            (Err(error), _) | (_, Err(error)) => self.fail(id, &Trouble::new(format!("the hook left no valid request: {error}"))),
        }
    }

    fn fail(&mut self, id: u64, trouble: &Trouble) {
        self.close(id, &Up::error(id, trouble));
    }

    /// The one answer to a hook call. Later ones, and those that nobody waits for, are left out.
    fn close(&mut self, id: u64, answer: &Up<'_>) {
        self.stage.close(id);
        if self.open.remove(&id).is_some()
            && let Err(bytes) = answer.append(self.guest, &mut self.lines)
        {
            self.push_error(id, &too_long(bytes));
        }
    }

    fn push_error(&mut self, id: u64, trouble: &Trouble) {
        self.push(&Up::error(id, trouble));
    }

    fn push(&mut self, frame: &Up<'_>) {
        if let Err(bytes) = frame.append(self.guest, &mut self.lines) {
            say(format!("a frame of {bytes} bytes is too long and is left out"));
        }
    }

    /// Forgets hook calls whose answers the daemon doesn't want any more.
    fn forget_overdue(&mut self, now: Instant) {
        let stage = &self.stage;
        self.open.retain(|id, open| {
            let wanted = open.until.is_none_or(|until| now < until);
            if !wanted {
                stage.close(*id);
            }
            wanted
        });
    }

    /// Throws the runtime away, with the plugin's state, and loads the plugin into a fresh one.
    fn begin_anew(&mut self) -> Result<(), Lost> {
        let noun = self.plugin.kind.noun();
        let why = format!("the {noun} began anew, since another of its hook calls took too long or too much memory");
        let others: Vec<u64> = self.open.keys().copied().collect();
        for id in others {
            self.close(id, &Up::taken_along(id, &why));
        }
        self.calls.clear();
        self.watchdog.blame(never_loaded(self.guest));
        match Engine::start(&self.plugin, self.limits, &self.stage, &self.watchdog) {
            Ok((engine, _)) => self.engine = engine,
            Err(trouble) => {
                self.flush()?;
                return refuse(self.guest, &trouble, &mut self.output);
            }
        }
        self.tell();
        Ok(())
    }

    fn flush(&mut self) -> Result<(), Lost> {
        self.output.write_all(&self.lines).and_then(|()| self.output.flush()).map_err(Lost::Output)?;
        self.lines.clear();
        self.lines.shrink_to(BUFFER_KEPT_BYTES);
        Ok(())
    }
}

fn late(allowed: Duration, kind: Kind) -> Trouble {
    Trouble::new(format!("took longer than {} ms of JavaScript; {}", allowed.as_millis(), kind.begins_anew()))
}

/// A line that is written if the process has to end; nothing for a plugin, which has the process to itself.
fn last_words(guest: Option<u64>, frame: &Up<'_>) -> Vec<u8> {
    let mut line = Vec::new();
    if guest.is_some() && frame.append(guest, &mut line).is_err() {
        line.clear(); // too long, which these never are
    }
    line
}

/// The last words of one that is being loaded.
pub(super) fn never_loaded(guest: Option<u64>) -> Vec<u8> {
    last_words(guest, &Up::Fatal { fatal: &Trouble::new(CAN_NOT_BE_ENDED) })
}

fn too_long(bytes: usize) -> Trouble {
    Trouble::new(format!("the patch has {bytes} bytes or more, and a line may have {LINE_OUT_BYTES_MAX}; change less"))
}
