//! Searching what agents were asked and what they answered: for people, and for what an agent is told of
//! the past. It reads the files of `ledger::cortex`, each search with a time limit of its own; filling them
//! is `fill`'s. A file that turns out to be damaged is made anew, and costs nothing but what isn't found
//! meanwhile.

pub mod fill;

use crate::ledger::agents::with_turns;
use crate::ledger::cortex::find::{Ask, Hit, each};
use crate::ledger::cortex::{self, CortexError, Kind};
use crate::ledger::{Ledgers, ReadError, Readers};
use nexus_core::search::{QUERY_BYTES_MAX, all_of, cut};
use rusqlite::ErrorCode;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{Notify, Semaphore, watch};

/// Hits of one answer.
pub const HITS_MAX: usize = 100;
/// Hits of an answer that doesn't say how many it wants.
pub const HITS_DEFAULT: usize = 10;
/// How long a person's search may take.
pub const SEARCH_LIMIT: Duration = Duration::from_secs(10);
/// Searches of people and plugins at a time, and as many again for turns; more wait, within their limits.
const SEARCHES_MAX: usize = 4;
/// How long who asked for a file to be made anew waits until that has begun.
const REBUILD_LIMIT: Duration = Duration::from_secs(30);

/// What somebody looks for.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Question {
    pub query: String,
    /// Only this agent's; else that of all.
    #[serde(default)]
    pub agent: Option<String>,
    #[serde(default)]
    pub session: Option<String>,
    #[serde(default)]
    pub kind: Option<Kind>,
    /// Unix ms: nothing older.
    #[serde(default)]
    pub since: Option<i64>,
    #[serde(default = "default_limit")]
    pub limit: usize,
    /// Bytes of each text that are answered: none to people, who are shown the snippet.
    #[serde(skip)]
    pub text_bytes_max: usize,
}

fn default_limit() -> usize {
    HITS_DEFAULT
}

/// A hit, and in whose file.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Found {
    pub agent: String,
    #[serde(flatten)]
    pub hit: Hit,
}

/// What was found, best first.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Answer {
    pub hits: Vec<Found>,
    /// Agents whose files can't be read; they are made anew.
    pub damaged: Vec<String>,
}

#[derive(Debug, thiserror::Error)]
pub enum SearchError {
    #[error("a query has at most {QUERY_BYTES_MAX} bytes")]
    TooLong,
    #[error("no agent `{0}` is configured, and nothing is recorded of one")]
    UnknownAgent(String),
    #[error("the search took longer than {} ms; look for rarer words, or name an agent", .0.as_millis())]
    Late(Duration),
    #[error("the search broke off: {0}")]
    Broken(String),
    #[error("failed to list the search indexes in `{path}`")]
    List {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error(transparent)]
    Index(#[from] CortexError),
    #[error(transparent)]
    Read(#[from] ReadError),
}

/// For whom is searched. Each has room of its own: no person's search holds up a turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum For {
    /// Or a plugin.
    Person,
    Turn,
}

/// Why a file is to be made anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Why {
    Asked,
    /// Whoever saw it began to look then: of a file that was made since, that says nothing.
    Damaged(Instant),
}

/// A file that is to be made anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Wanted {
    why: Why,
    /// It failed, and the next attempt may wait.
    was_tried: bool,
}

impl Wanted {
    fn new(why: Why) -> Self {
        Self { why, was_tried: false }
    }
}

/// The search of one daemon. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Search {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    directory: PathBuf,
    /// Which agents anything is recorded of.
    recorded: Readers,
    /// Agents whose files are to be made anew.
    wanted: Mutex<BTreeMap<String, Wanted>>,
    /// The `finish_seq` up to which each agent's file has its runs.
    reached: Mutex<BTreeMap<String, i64>>,
    /// Rings the follower.
    bell: Notify,
    /// Counts the follower's rounds.
    rounds: watch::Sender<u64>,
    people: Arc<Semaphore>,
    turns: Arc<Semaphore>,
}

impl Search {
    /// The search over what lies beside these ledgers.
    pub fn beside(ledgers: &Ledgers) -> Self {
        let directory = ledgers.nexus.readers.path().parent().unwrap_or(Path::new(".")).join(cortex::DIRECTORY);
        Self {
            inner: Arc::new(Inner {
                directory,
                recorded: ledgers.agents.readers.clone(),
                wanted: Mutex::default(),
                reached: Mutex::default(),
                bell: Notify::new(),
                rounds: watch::Sender::new(0),
                people: Arc::new(Semaphore::new(SEARCHES_MAX)),
                turns: Arc::new(Semaphore::new(SEARCHES_MAX)),
            }),
        }
    }

    /// What is found for `question`, within `limit`. `configured` are the agents that there are now.
    ///
    /// # Errors
    /// [`SearchError`]. A damaged file is none: the answer names it.
    pub async fn hits(&self, question: Question, configured: BTreeSet<String>, limit: Duration) -> Result<Answer, SearchError> {
        let began = Instant::now();
        let recorded = self.inner.recorded.clone();
        let work = move |directory: &Path, until: Instant| {
            let mut known = recorded.read_now(with_turns)?;
            known.extend(configured);
            look(directory, &question, known, until)
        };
        let answer = self.within(For::Person, limit, work).await?;
        answer.damaged.iter().for_each(|agent| self.suspect(agent, began));
        Ok(answer)
    }

    /// Searches on a thread that may block, for `limit` at most: what is found later is found for nobody.
    ///
    /// # Errors
    /// Those of `work`; [`SearchError::Late`], [`SearchError::Broken`].
    pub(crate) async fn within<T: Send + 'static>(
        &self,
        whose: For,
        limit: Duration,
        work: impl FnOnce(&Path, Instant) -> Result<T, SearchError> + Send + 'static,
    ) -> Result<T, SearchError> {
        let until = Instant::now() + limit;
        let room = match whose {
            For::Person => self.inner.people.clone(),
            For::Turn => self.inner.turns.clone(),
        };
        let searched = async {
            let Ok(room) = room.acquire_owned().await else { return Err(SearchError::Late(limit)) };
            let directory = self.inner.directory.clone();
            let searching = crate::watch::blocking("search", move || {
                let _room = room; // to the end, whether or not who asked still waits
                work(&directory, until)
            });
            searching.await.unwrap_or_else(|error| Err(SearchError::Broken(error.to_string())))
        };
        match tokio::time::timeout(limit, searched).await {
            Ok(Err(SearchError::Index(error))) if is_interrupted(&error) => Err(SearchError::Late(limit)),
            Ok(done) => done,
            Err(_) => Err(SearchError::Late(limit)),
        }
    }

    /// The file of `agent` can't be read: it is set aside and made anew, unless that was done since `began`,
    /// when whoever saw it began to look.
    pub(crate) fn suspect(&self, agent: &str, began: Instant) {
        self.wanted().entry(agent.to_owned()).or_insert(Wanted::new(Why::Damaged(began)));
        self.inner.bell.notify_one();
    }

    /// Has the files of `agents` made anew. True once that has begun; it goes on in the background.
    pub async fn rebuild(&self, agents: &BTreeSet<String>) -> bool {
        let mut rounds = self.inner.rounds.subscribe();
        self.wanted().extend(agents.iter().map(|agent| (agent.clone(), Wanted::new(Why::Asked))));
        self.inner.bell.notify_one();
        let is_begun = |_: &u64| !self.wanted().keys().any(|agent| agents.contains(agent));
        let begun = tokio::time::timeout(REBUILD_LIMIT, rounds.wait_for(is_begun)).await;
        begun.is_ok_and(|begun| begun.is_ok())
    }

    /// Whether the files of `agents` have everything up to `finish_seq`.
    pub fn is_complete<'a>(&self, agents: impl IntoIterator<Item = &'a String>, finish_seq: i64) -> bool {
        let reached = self.reached();
        agents.into_iter().all(|agent| reached.get(agent).is_some_and(|reached| *reached >= finish_seq))
    }

    /// The agents that a search may be about: those of `configured`, those that have turns, and those that have a file.
    ///
    /// # Errors
    /// [`SearchError`]; [`SearchError::UnknownAgent`] if `only` is none of them.
    pub async fn agents(&self, only: Option<&str>, configured: BTreeSet<String>) -> Result<BTreeSet<String>, SearchError> {
        let mut known = self.inner.recorded.read(with_turns).await?;
        known.extend(configured);
        agents(&self.inner.directory, only, known)
    }

    fn wanted(&self) -> MutexGuard<'_, BTreeMap<String, Wanted>> {
        self.inner.wanted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn reached(&self) -> MutexGuard<'_, BTreeMap<String, i64>> {
        self.inner.reached.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn is_interrupted(error: &CortexError) -> bool {
    match error {
        CortexError::Failed { source, .. } => source.sqlite_error_code() == Some(ErrorCode::OperationInterrupted),
        CortexError::Damaged { .. } | CortexError::Foreign { .. } | CortexError::File(_) => false,
    }
}

/// As [`Search::agents`], in any directory of indexes: those of `known`, and those that have a file.
///
/// # Errors
/// As there.
pub fn agents(directory: &Path, only: Option<&str>, mut known: BTreeSet<String>) -> Result<BTreeSet<String>, SearchError> {
    let (files, _) = cortex::list(directory).map_err(|source| SearchError::List { path: directory.to_owned(), source })?;
    known.extend(files);
    match only {
        None => Ok(known),
        // A name that is known is the name of a file.
        Some(agent) => known.take(agent).map(|agent| BTreeSet::from([agent])).ok_or_else(|| SearchError::UnknownAgent(agent.to_owned())),
    }
}

/// What is found in a directory of indexes, until about `until`; `known` as of [`agents`]. Blocks.
///
/// # Errors
/// [`SearchError`].
pub fn look(directory: &Path, question: &Question, known: BTreeSet<String>, until: Instant) -> Result<Answer, SearchError> {
    if question.query.len() > QUERY_BYTES_MAX {
        return Err(SearchError::TooLong);
    }
    let agents = agents(directory, question.agent.as_deref(), known)?;
    let mut answer = Answer::default();
    let Some(expression) = all_of(&question.query) else { return Ok(answer) };
    let limit = question.limit.clamp(1, HITS_MAX);
    let (session, since) = (question.session.clone(), question.since.unwrap_or(i64::MIN));
    let ask = Ask { expression, session, turns: None, kind: question.kind, since, limit };
    for agent in agents {
        let hits = &mut answer.hits;
        let take = |hit: Hit| {
            // Nobody is shown the whole text, which may be long.
            let text = cut(&hit.text, question.text_bytes_max).to_owned();
            hits.push(Found { agent: agent.clone(), hit: Hit { text, ..hit } });
            true
        };
        match each(&cortex::path(directory, &agent), &ask, until, take) {
            Ok(()) => {}
            Err(CortexError::Damaged { .. }) => answer.damaged.push(agent),
            Err(error) => return Err(error.into()),
        }
        answer.hits.sort_by(|left, right| left.hit.score.total_cmp(&right.hit.score).then(right.hit.at.cmp(&left.hit.at)));
        answer.hits.truncate(limit);
    }
    Ok(answer)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::ledger::cortex::{Entry, apply, open, path};

    fn question(query: &str) -> Question {
        Question { query: query.into(), agent: None, session: None, kind: None, since: None, limit: HITS_DEFAULT, text_bytes_max: 0 }
    }

    fn put(directory: &Path, agent: &str, text: &str) {
        let entry = Entry {
            kind: Kind::Event,
            source: "fake:1".into(),
            turn: "turn_1".into(),
            session: "s".into(),
            channel: "fake".into(),
            sender: "ann".into(),
            at: 1,
            text: text.into(),
        };
        apply(&mut open(&path(directory, agent), 1).unwrap(), 1, &[entry]).unwrap();
    }

    fn found(directory: &Path, question: &Question) -> Result<Answer, SearchError> {
        let configured = BTreeSet::from(["idle".to_owned()]);
        look(directory, question, configured, Instant::now() + SEARCH_LIMIT)
    }

    #[test]
    fn all_agents_are_searched_or_one_that_is_known() {
        let directory = tempfile::tempdir().unwrap();
        put(directory.path(), "a", "the needle");
        put(directory.path(), "b", "a needle as well, in a longer text");
        let agents = |question: &Question| -> Vec<String> {
            found(directory.path(), question).unwrap().hits.into_iter().map(|found| found.agent).collect()
        };
        assert_eq!(agents(&question("needle")), ["a", "b"]);
        assert_eq!(agents(&Question { agent: Some("b".into()), ..question("needle") }), ["b"]);
        assert!(agents(&Question { agent: Some("idle".into()), ..question("needle") }).is_empty());
        for unknown in ["c", "../a", "", "a.db"] {
            let error = found(directory.path(), &Question { agent: Some(unknown.into()), ..question("needle") }).unwrap_err();
            assert!(matches!(error, SearchError::UnknownAgent(_)), "{error}");
        }
        assert!(matches!(found(directory.path(), &question(&"x".repeat(QUERY_BYTES_MAX + 1))), Err(SearchError::TooLong)));
        assert_eq!(found(directory.path(), &question("\" *")).unwrap(), Answer::default());
    }

    #[test]
    fn of_all_agents_hits_the_best_are_kept_and_of_texts_what_was_asked_for() {
        let directory = tempfile::tempdir().unwrap();
        for (agent, text) in [("a", "a needle in a long text about hay"), ("b", "needle"), ("c", "a needle in hay")] {
            put(directory.path(), agent, text);
        }
        let answer = found(directory.path(), &Question { limit: 2, ..question("needle") }).unwrap();
        let of: Vec<&str> = answer.hits.iter().map(|found| found.agent.as_str()).collect();
        assert_eq!(of.len(), 2);
        assert!(answer.hits.iter().all(|found| found.hit.text.is_empty() && !found.hit.snippet.is_empty()), "{answer:?}");
        let all = found(directory.path(), &question("needle")).unwrap();
        let best: Vec<&str> = all.hits.iter().take(2).map(|found| found.agent.as_str()).collect();
        assert_eq!(of, best);
        let told = found(directory.path(), &Question { agent: Some("a".into()), text_bytes_max: 8, ..question("needle") }).unwrap();
        assert_eq!(told.hits[0].hit.text, "a needle");
    }

    #[tokio::test]
    async fn however_many_people_search_turns_have_room() {
        let directory = tempfile::tempdir().unwrap();
        let (ledgers, _threads) = Ledgers::start(directory.path(), 1).unwrap();
        let search = Search::beside(&ledgers);
        let everybody = search.inner.people.clone().acquire_many_owned(u32::try_from(SEARCHES_MAX).unwrap()).await.unwrap();
        let late = search.within(For::Person, Duration::ZERO, |_, _| Ok(())).await;
        assert!(matches!(late, Err(SearchError::Late(_))), "{late:?}");
        assert_eq!(search.within(For::Turn, SEARCH_LIMIT, |_, _| Ok(7)).await.unwrap(), 7);
        drop(everybody);
        assert_eq!(search.within(For::Person, SEARCH_LIMIT, |_, _| Ok(7)).await.unwrap(), 7);
    }

    #[test]
    fn a_damaged_file_hides_no_other() {
        let directory = tempfile::tempdir().unwrap();
        put(directory.path(), "a", "the needle");
        std::fs::write(path(directory.path(), "b"), "this is no database at all, but long enough to look like one".repeat(20)).unwrap();
        let answer = found(directory.path(), &question("needle")).unwrap();
        assert_eq!((answer.hits.len(), answer.damaged), (1, vec!["b".to_owned()]));
    }
}
