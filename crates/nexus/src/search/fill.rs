//! The follower that fills every agent's cortex with its finished runs, a page at a time and behind all
//! others: nothing waits for it. Each file goes on from its own mark, so a new one, one that was removed and
//! one that was damaged begin at the beginning, whatever the others do. One that fails is tried again after a
//! pause of its own.

use super::{Search, Why};
use crate::clock;
use crate::error_text::describe;
use crate::ledger::agents::with_turns;
use crate::ledger::cortex::source::{self, SCAN_RUNS};
use crate::ledger::cortex::{self, CortexError};
use crate::ledger::{Ledgers, ReadError};
use crate::pipeline::Pipeline;
use rusqlite::Connection;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Finished runs are gathered for so long.
const GATHER: Duration = Duration::from_millis(500);
/// Pause between two pages, in which the disk is the others'.
const BREATHER: Duration = Duration::from_millis(10);
/// How often it is looked whether the files are still there, and the disk has room again.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// Pause after a failure, doubling: of one agent, or of all when the ledgers can't be read.
const RETRY_FIRST: Duration = Duration::from_millis(500);
const RETRY_MAX: Duration = Duration::from_secs(30);
/// Files that are kept open to be filled.
const OPEN_MAX: usize = 8;

#[derive(Debug, thiserror::Error)]
enum FillError {
    #[error(transparent)]
    Index(#[from] CortexError),
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error("failed to list the search indexes")]
    List(#[from] std::io::Error),
}

/// Follows until `stop`. While the disk is nearly full, files are made anew but not filled.
pub async fn follow(pipeline: Arc<Pipeline>, disk_low: watch::Receiver<bool>, stop: CancellationToken) {
    let mut applied = pipeline.turns_applied.clone();
    let mut filler = Filler::new(pipeline.ledgers.clone(), pipeline.search.clone());
    let (mut retry, mut told) = (RETRY_FIRST, None);
    loop {
        crate::torture::point("task.cortex follower");
        let configured = pipeline.settings.load().agents.keys().cloned().collect();
        let is_low = *disk_low.borrow();
        let Some((back, done)) = round(filler, configured, is_low).await else { return };
        filler = back;
        let is_over = match done {
            Ok(has_more) => {
                (retry, told) = (RETRY_FIRST, None);
                let look_in = filler.look_in(Instant::now());
                if has_more { pause(BREATHER, &stop).await } else { idle(&mut applied, &pipeline.search, look_in, &stop).await }
            }
            Err(error) => {
                tell(&error, &mut told);
                let now = retry;
                retry = (retry * 2).min(RETRY_MAX);
                tokio::select! {
                    is_over = pause(now, &stop) => is_over,
                    () = pipeline.search.inner.bell.notified() => false,
                }
            }
        };
        if is_over {
            break;
        }
    }
    // Closing a file moves its log into it. A panic there was told by its hook.
    drop(crate::watch::blocking("cortex.close", move || drop(filler)).await);
}

/// Says it once, not with each try.
fn tell(error: &FillError, told: &mut Option<String>) {
    let text = describe(error);
    if told.as_ref() != Some(&text) {
        tracing::warn!(error = text, "no search index can follow; trying again");
        *told = Some(text);
    }
}

/// One round on a thread that may block; nothing when the runtime is going down.
async fn round(mut filler: Filler, configured: BTreeSet<String>, is_low: bool) -> Option<(Filler, Result<bool, FillError>)> {
    #[expect(clippy::disallowed_methods, reason = "a panic goes on to the kept task that waits to the end, and is told there")]
    let working = tokio::task::spawn_blocking(move || {
        let done = filler.round(configured, is_low, Instant::now());
        (filler, done)
    });
    match working.await {
        Ok(done) => Some(done),
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        Err(_) => None,
    }
}

/// Waits until there may be something to do, for `look_in` at most. True when it is time to stop.
async fn idle(applied: &mut watch::Receiver<i64>, search: &Search, look_in: Duration, stop: &CancellationToken) -> bool {
    let more = async {
        if applied.changed().await.is_err() {
            std::future::pending::<()>().await; // nobody applies turns any more
        }
        tokio::time::sleep(GATHER).await;
    };
    tokio::select! {
        () = more => false,
        () = search.inner.bell.notified() => false,
        () = tokio::time::sleep(look_in) => false,
        () = stop.cancelled() => true,
    }
}

/// True when it is time to stop.
async fn pause(length: Duration, stop: &CancellationToken) -> bool {
    tokio::select! {
        () = tokio::time::sleep(length) => false,
        () = stop.cancelled() => true,
    }
}

/// How far an agent's file has come.
#[derive(Debug, Clone, Copy, Default)]
struct State {
    /// Device and inode; nothing while there is no file.
    file: Option<(u64, u64)>,
    /// What the file says.
    stored: i64,
    /// Up to here there is nothing of this agent.
    seen: i64,
}

#[derive(Debug)]
struct Open {
    agent: String,
    connection: Connection,
    file: Option<(u64, u64)>,
}

/// An agent whose file could not be filled or put away.
#[derive(Debug)]
struct Trouble {
    /// When it is tried again, and after which pause.
    until: Instant,
    pause: Duration,
    told: String,
}

#[derive(Debug)]
struct Filler {
    ledgers: Ledgers,
    search: Search,
    /// The one that was used last is the last.
    open: Vec<Open>,
    states: BTreeMap<String, State>,
    troubles: BTreeMap<String, Trouble>,
    /// When each agent's file was put away last.
    put_away_at: BTreeMap<String, Instant>,
}

impl Filler {
    fn new(ledgers: Ledgers, search: Search) -> Self {
        Self { ledgers, search, open: Vec::new(), states: BTreeMap::new(), troubles: BTreeMap::new(), put_away_at: BTreeMap::new() }
    }

    /// A page for each agent that isn't paused. True when there is more at once. What fails for one agent is told
    /// and holds up no other; the error is one of all.
    fn round(&mut self, configured: BTreeSet<String>, is_low: bool, now: Instant) -> Result<bool, FillError> {
        self.make_anew(now);
        self.search.inner.rounds.send_modify(|rounds| *rounds += 1);
        let upto = source::followable(&self.ledgers)?;
        let (mut agents, _) = cortex::list(&self.search.inner.directory)?;
        agents.extend(configured);
        // Of one that is configured no more the turns are there still, and its file may be gone.
        agents.extend(self.ledgers.agents.readers.read_now(with_turns)?);
        let mut has_more = false;
        for agent in &agents {
            if self.is_paused(agent, now) {
                continue;
            }
            match self.fill(agent, upto, is_low) {
                Ok(more) => {
                    has_more |= more;
                    self.troubles.remove(agent);
                }
                Err(error) => {
                    let error = self.begin_anew(agent, error);
                    self.failed(agent, &error, now);
                }
            }
        }
        self.troubles.retain(|agent, _| agents.contains(agent));
        Ok(has_more)
    }

    fn is_paused(&self, agent: &str, now: Instant) -> bool {
        self.troubles.get(agent).is_some_and(|trouble| trouble.until > now)
    }

    /// Says of an agent why its file can't be filled, once and not with each try, and pauses it. Meanwhile no answer
    /// that needs its file is complete.
    fn failed(&mut self, agent: &str, error: &FillError, now: Instant) {
        self.search.reached().remove(agent);
        let text = describe(error);
        let before = self.troubles.get(agent);
        if before.is_none_or(|before| before.told != text) {
            tracing::warn!(agent, error = text, "the search index can't be filled; trying again");
        }
        let pause = before.map_or(RETRY_FIRST, |before| (before.pause * 2).min(RETRY_MAX));
        self.troubles.insert(agent.to_owned(), Trouble { until: now + pause, pause, told: text });
    }

    /// How long until an agent that failed is tried again, or until it is looked at the files.
    fn look_in(&self, now: Instant) -> Duration {
        let due = self.troubles.values().map(|trouble| trouble.until.saturating_duration_since(now)).min();
        due.map_or(LOOK_EVERY, |due| due.clamp(BREATHER, LOOK_EVERY))
    }

    /// Puts away the files that somebody wants anew.
    fn make_anew(&mut self, now: Instant) {
        let wanted = self.search.wanted().clone();
        for (agent, one) in wanted {
            if one.was_tried && self.is_paused(&agent, now) {
                continue;
            }
            match self.put_away(&agent, one.why) {
                Ok(()) => {
                    // What was asked for meanwhile is not done yet.
                    self.search.wanted().retain(|name, wanted| *name != agent || *wanted != one);
                    if one.why == Why::Asked {
                        self.troubles.remove(&agent); // nobody who asks waits for a pause
                    }
                }
                Err(error) => {
                    if let Some(wanted) = self.search.wanted().get_mut(&agent) {
                        wanted.was_tried = true;
                    }
                    self.failed(&agent, &FillError::from(error), now);
                }
            }
        }
    }

    fn put_away(&mut self, agent: &str, why: Why) -> Result<(), CortexError> {
        if let Why::Damaged(began) = why
            && self.put_away_at.get(agent).is_some_and(|at| *at >= began)
        {
            return Ok(()); // it was seen in the file before this one
        }
        let path = cortex::path(&self.search.inner.directory, agent);
        self.close(agent);
        self.states.remove(agent);
        self.search.reached().remove(agent);
        match why {
            Why::Asked => {
                tracing::info!(agent, "the search index is made anew");
                cortex::discard(&path)?;
            }
            Why::Damaged(_) => {
                tracing::warn!(agent, path = %path.display(), "the search index is damaged; it is set aside and made anew");
                cortex::set_aside(&path, clock::wall_ms())?;
            }
        }
        self.put_away_at.insert(agent.to_owned(), Instant::now());
        Ok(())
    }

    /// After a failure nothing is taken for known; a file that can't be followed on goes.
    fn begin_anew(&mut self, agent: &str, error: FillError) -> FillError {
        self.close(agent);
        self.states.remove(agent);
        let why = match &error {
            FillError::Index(CortexError::Damaged { .. }) => Some(Why::Damaged(Instant::now())),
            FillError::Index(CortexError::Foreign { .. }) => Some(Why::Asked),
            FillError::Index(CortexError::Failed { .. } | CortexError::File(_)) | FillError::Read(_) | FillError::List(_) => None,
        };
        let Some(why) = why else { return error };
        // The error is told all the same: a disk that damages each file is not to be written for ever without a pause.
        self.put_away(agent, why).map_or_else(FillError::from, |()| error)
    }

    /// The next page of one agent. True when there is more at once.
    fn fill(&mut self, agent: &str, upto: i64, is_low: bool) -> Result<bool, FillError> {
        let path = cortex::path(&self.search.inner.directory, agent);
        let mut state = self.state(agent, &path)?;
        if state.stored > upto {
            let why = format!("it has runs up to {}, they have {upto}", state.stored);
            return Err(CortexError::Foreign { path, why }.into());
        }
        if !is_low && state.seen < upto {
            let page = source::page(&self.ledgers, agent, state.seen, upto)?;
            state.seen = page.upto;
            // A file for each agent that never ran would be of no use, nor a commit for each run of another.
            if !page.entries.is_empty() || state.seen - state.stored >= SCAN_RUNS {
                let open = self.opened(agent, &path)?;
                cortex::apply(&mut open.connection, page.upto, &page.entries).map_err(|source| cortex::unwritten(&path, source))?;
                state = State { file: open.file, stored: page.upto, seen: page.upto };
            }
            self.states.insert(agent.to_owned(), state);
        }
        self.search.reached().insert(agent.to_owned(), state.seen);
        Ok(!is_low && state.seen < upto)
    }

    /// What is known of an agent's file, or what it says if it isn't the one that was known.
    fn state(&mut self, agent: &str, path: &Path) -> Result<State, CortexError> {
        let file = cortex::identity(path)?;
        if let Some(state) = self.states.get(agent).filter(|state| state.file == file) {
            return Ok(*state);
        }
        self.close(agent);
        let mut state = State::default();
        if file.is_some() {
            let open = self.opened(agent, path)?;
            let mark = cortex::mark(&open.connection).map_err(|source| cortex::unwritten(path, source))?;
            state = State { file: open.file, stored: mark, seen: mark };
        }
        self.states.insert(agent.to_owned(), state);
        Ok(state)
    }

    /// The file of an agent, opened, and made if it isn't there.
    fn opened(&mut self, agent: &str, path: &Path) -> Result<&mut Open, CortexError> {
        let one = match self.open.iter().position(|one| one.agent == agent) {
            Some(place) => self.open.remove(place),
            None => {
                let connection = cortex::open(path, clock::wall_ms())?;
                Open { agent: agent.to_owned(), connection, file: cortex::identity(path)? }
            }
        };
        if self.open.len() >= OPEN_MAX {
            self.open.remove(0);
        }
        self.open.push(one);
        Ok(self.open.last_mut().expect("one was added just now"))
    }

    fn close(&mut self, agent: &str) {
        self.open.retain(|one| one.agent != agent);
    }
}

#[cfg(test)]
#[path = "fill_tests.rs"]
mod tests;
