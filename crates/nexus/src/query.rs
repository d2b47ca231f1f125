//! Questions about the record, answered alike by a running daemon and, when none runs, by the CLI
//! straight from the ledger files.

use crate::ledger::agents::{SessionBudget, SessionBudgets};
use crate::ledger::events::{self, Disposition, StoredEvent};
use crate::ledger::migrate::{self, MigrateError};
use crate::ledger::{Ledger, OpenError, ReadError, Readers, agents, lock, nexus};
use nexus_core::config;
use nexus_core::ids::AccountKey;
use nexus_core::request::Status;
use rusqlite::Connection;
use serde::Serialize;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::path::Path;

/// Rows that one answer has at most.
pub const ROWS_MAX: usize = 1000;

/// Which events to list.
#[derive(Debug, Clone, Default)]
pub struct EventsQuery {
    pub limit: usize,
    /// Only those before this seq.
    pub before: Option<i64>,
    /// Only those behind this seq: then the first ones, not the newest.
    pub after: Option<i64>,
    pub channel: Option<String>,
    /// Only those whose content contains this, whatever the case.
    pub text: Option<String>,
}

#[derive(Debug, thiserror::Error)]
pub enum QueryError {
    #[error("there is no ledger in `{0}`; has the daemon ever run with this configuration?")]
    NoLedger(std::path::PathBuf),
    #[error(transparent)]
    HalfRestored(#[from] OpenError),
    #[error(transparent)]
    Schema(#[from] MigrateError),
    #[error(transparent)]
    Read(#[from] ReadError),
}

/// What is known of an account of an adapter, whether it runs or not.
#[derive(Debug, Clone, Default)]
pub struct KnownAccount {
    pub channel: Option<String>,
    /// What the adapter said of itself when it was last asked.
    pub info: Option<Value>,
    pub events: u64,
    pub restarts: u64,
    pub last_error: Option<String>,
    /// Unix ms.
    pub last_event_at: Option<i64>,
}

/// One of the times that an event was to be worked on: as it came, or a replay.
#[derive(Debug, Clone, Serialize)]
pub struct Attempt {
    pub event_seq: i64,
    pub event_id: String,
    /// `None` for history, and for an event that was accepted a moment ago.
    pub request_id: Option<String>,
    pub status: Option<String>,
    /// It has no end yet, and will have one.
    #[serde(skip)]
    pub is_open: bool,
}

/// Readers of the ledgers that questions go to.
#[derive(Debug, Clone)]
pub struct Record {
    pub events: Readers,
    pub nexus: Readers,
    pub agents: Readers,
}

/// Readers of two ledgers in `directory`, which no daemon has open; errors as of [`Record::offline`].
pub(crate) fn offline(directory: &Path, [one, other]: [Ledger; 2]) -> Result<[Readers; 2], QueryError> {
    lock::refuse_half_restored(directory)?;
    Ok([checked(directory, one)?, checked(directory, other)?])
}

impl Record {
    /// The ledgers in `directory`, which no daemon has open.
    ///
    /// # Errors
    /// [`QueryError::NoLedger`]; [`QueryError::Schema`] for files of another version of this program;
    /// [`QueryError::HalfRestored`] where they may not be of one set.
    pub fn offline(directory: &Path) -> Result<Self, QueryError> {
        let [events, nexus] = offline(directory, [Ledger::Events, Ledger::Nexus])?;
        // Of the third only sessions know, and look whether it can be read.
        let agents = Readers::new(directory.join(Ledger::Agents.file_name()));
        Ok(Self { events, nexus, agents })
    }

    /// What the record knows of an account; nothing much of one that was never used.
    ///
    /// # Errors
    /// When a ledger can't be read; so with all questions here.
    pub fn account(&self, key: &AccountKey) -> Result<KnownAccount, ReadError> {
        let instance = self.nexus.read_now(|connection| nexus::instance(connection, &key.adapter, &key.account))?;
        let cursor = self.events.read_now(|connection| events::cursor(connection, &key.adapter, &key.account))?;
        let mut known = KnownAccount { last_event_at: cursor.as_ref().and_then(events::Cursor::last_event_at), ..KnownAccount::default() };
        if let Some(instance) = instance {
            known.info = instance.info.as_deref().and_then(|text| serde_json::from_str(text).ok());
            known.channel = instance.channel;
            known.restarts = instance.restart_count;
            known.events = instance.events_received;
            known.last_error = instance.last_error;
        }
        // A daemon that was killed could not say its last count.
        known.events = known.events.max(cursor.map_or(0, |cursor| cursor.events));
        Ok(known)
    }

    /// Events, oldest first, and `last_seq`: the newest of all, of which the answer leaves none out
    /// that it was asked for, unless it is full.
    pub fn events(&self, query: &EventsQuery) -> Result<Value, ReadError> {
        let before = query.before.unwrap_or(i64::MAX);
        let limit = query.limit.min(ROWS_MAX);
        let (channel, text) = (query.channel.as_deref(), query.text.as_deref());
        let (last_seq, rows) = self.events.read_now(|connection| {
            // Asked first: a row that is committed between the two may be in the list, never behind the mark.
            let last_seq = events::last_seq(connection)?;
            let rows = match query.after {
                Some(after) => events::following(connection, after, before, limit, channel, text)?,
                None => events::tail(connection, before, limit, channel, text)?,
            };
            Ok((last_seq, rows))
        })?;
        Ok(json!({ "events": rows.iter().map(event_json).collect::<Vec<_>>(), "last_seq": last_seq }))
    }

    /// One event; `id` as in [`Self::stored`].
    pub fn event(&self, id: &str) -> Result<Option<Value>, ReadError> {
        Ok(self.stored(id)?.as_ref().map(event_json))
    }

    /// One event as it is stored; `id` is its id or its seq, or the id of its request.
    pub fn stored(&self, id: &str) -> Result<Option<StoredEvent>, ReadError> {
        match self.seq_of(id)? {
            Some(seq) => self.events.read_now(|connection| events::by_seq(connection, seq)),
            None => self.events.read_now(|connection| events::by_id(connection, id)),
        }
    }

    /// The place of an event that is named by a number or by its request.
    fn seq_of(&self, id: &str) -> Result<Option<i64>, ReadError> {
        match id.parse::<i64>() {
            Ok(seq) => Ok(Some(seq)),
            Err(_) if id.starts_with("req_") => {
                Ok(self.nexus.read_now(|connection| nexus::request_by_id(connection, id))?.map(|request| request.event_seq))
            }
            Err(_) => Ok(None),
        }
    }

    /// One request with its event and deliveries, what it repeats and what repeats it; `id` as in
    /// [`Self::stored`].
    pub fn trace(&self, id: &str) -> Result<Option<Value>, ReadError> {
        let Some(event) = self.stored(id)? else { return Ok(None) };
        let seq = event.seq;
        let (request, deliveries, runs, wait) = self.nexus.read_now(|connection| {
            let request = nexus::request_by_event(connection, seq)?;
            Ok((request, nexus::deliveries_of(connection, seq)?, runs(connection, seq)?, nexus::wait_of(connection, seq)?))
        })?;
        let Some(mut request) = request else { return Ok(None) };
        add_text(request.trace.as_mut(), &runs);
        let mut attempts = self.attempts(event.first_id())?;
        let is_first = |attempt: &Attempt| attempt.event_id == event.first_id();
        let first = event.replay_of.as_ref().and_then(|_| attempts.iter().find(|attempt| is_first(attempt)).cloned());
        // A replay of a replay is one of the first event.
        attempts.retain(|attempt| event.replay_of.is_none() && !is_first(attempt));
        Ok(Some(json!({
            "request": request, "event": event_json(&event), "deliveries": deliveries, "runs": runs,
            "replay_of": first, "replays": attempts, "waits": wait.as_ref().map(wait_json),
        })))
    }

    /// The first event of this id with its replays, oldest first.
    pub fn attempts(&self, first_id: &str) -> Result<Vec<Attempt>, ReadError> {
        let (first, replays) =
            self.events.read_now(|connection| Ok((events::by_id(connection, first_id)?, events::replays_of(connection, first_id)?)))?;
        let first = first.map(|event| (event.seq, event.event.event_id, event.disposition));
        let replays = replays.into_iter().map(|(seq, event_id)| (seq, event_id, Disposition::Run));
        let all: Vec<_> = first.into_iter().chain(replays).collect();
        self.nexus.read_now(|connection| {
            let attempt = |(event_seq, event_id, disposition): (i64, String, Disposition)| -> rusqlite::Result<Attempt> {
                let (request_id, status) = nexus::request_state(connection, event_seq)?.unzip();
                let is_open = match &status {
                    Some(status) => Status::parse(status).is_some_and(|status| !status.is_terminal()),
                    None => disposition != Disposition::History,
                };
                Ok(Attempt { event_seq, event_id, request_id, status, is_open })
            };
            all.into_iter().map(attempt).collect()
        })
    }

    /// Requests, newest first, in one status if given; at most `limit` and [`ROWS_MAX`] of them.
    pub fn traces(&self, status: Option<&str>, limit: usize) -> Result<Value, ReadError> {
        let rows = self.nexus.read_now(|connection| nexus::requests(connection, status, limit.min(ROWS_MAX)))?;
        Ok(json!({ "requests": rows }))
    }

    /// Sessions with the newest turns, newest first; archived ones only if `all` are wanted.
    pub fn sessions(&self, all: bool, limit: usize) -> Result<Value, ReadError> {
        let rows = self.agents.read_now(|connection| agents::sessions(connection, all, limit.min(ROWS_MAX)))?;
        Ok(json!({ "sessions": rows }))
    }

    /// A session, by its label or an alias, with its newest turns and what is used of the agents' budgets.
    pub fn session(&self, name: &str, limit: usize, budgets: &SessionBudgets) -> Result<Option<Value>, ReadError> {
        self.agents.read_now(|connection| agents::session(connection, name, limit.min(ROWS_MAX), budgets))
    }

    /// Deliveries, newest first, in one status and of one adapter if given; at most `limit` and [`ROWS_MAX`] of them.
    pub fn deliveries(&self, status: Option<&str>, adapter: Option<&str>, limit: usize) -> Result<Value, ReadError> {
        let rows = self.nexus.read_now(|connection| nexus::deliveries(connection, status, adapter, limit.min(ROWS_MAX)))?;
        Ok(json!({ "deliveries": rows }))
    }

    /// The ids alone, the oldest first: texts of many would be too much for one answer.
    pub fn delivery_ids(&self, status: &str, adapter: Option<&str>, limit: usize) -> Result<Value, ReadError> {
        let ids = self.nexus.read_now(|connection| nexus::delivery_ids(connection, status, adapter, limit.min(ROWS_MAX)))?;
        Ok(json!({ "ids": ids }))
    }

    /// One delivery; `None` for an id that isn't known.
    pub fn delivery(&self, id: &str) -> Result<Option<Value>, ReadError> {
        let row = self.nexus.read_now(|connection| nexus::delivery(connection, id))?;
        Ok(row.map(|row| json!(row)))
    }
}

/// Readers of one file, which must be there and of this program's version.
fn checked(directory: &Path, ledger: Ledger) -> Result<Readers, QueryError> {
    let path = directory.join(ledger.file_name());
    if !path.exists() {
        return Err(QueryError::NoLedger(directory.to_owned()));
    }
    let readers = Readers::new(path.clone());
    readers.read_now(|connection| Ok(migrate::check(connection, &path, ledger.migrations())))??;
    Ok(readers)
}

/// The agent's text is kept once, in its run's turn; the trace is shown with it.
fn add_text(trace: Option<&mut Value>, runs: &[Value]) {
    // The last run's only: an earlier one was interrupted.
    let text = runs.last().and_then(|run| run["turn"]["assistant"].as_str());
    let response = trace.and_then(|trace| trace.get_mut("response")).and_then(Value::as_object_mut);
    if let (Some(text), Some(response)) = (text, response) {
        response.insert("content".into(), text.into());
    }
}

fn runs(connection: &Connection, seq: i64) -> rusqlite::Result<Vec<Value>> {
    let sql = "SELECT run_id, attempt, agent, session, status, acted, started_at, finished_at, turn_json FROM runs
               WHERE event_seq = ?1 OR run_id = (SELECT run_id FROM nexus_requests WHERE event_seq = ?1) ORDER BY rowid";
    let mut query = connection.prepare_cached(sql)?;
    let rows = query.query_map([seq], |row| {
        let turn: Option<String> = row.get(8)?;
        let turn: Option<Value> = turn.and_then(|text| serde_json::from_str(&text).ok());
        Ok(json!({
            "run_id": row.get::<_, String>(0)?, "attempt": row.get::<_, i64>(1)?, "agent": row.get::<_, String>(2)?,
            "session": row.get::<_, String>(3)?, "status": row.get::<_, String>(4)?, "acted": row.get::<_, bool>(5)?,
            "started_at": row.get::<_, i64>(6)?, "finished_at": row.get::<_, Option<i64>>(7)?, "turn": turn,
        }))
    })?;
    rows.collect()
}

/// What an event waits for that failed for nothing else.
fn wait_json(wait: &nexus::Wait) -> Value {
    json!({ "for": wait.awaited.code(), "approval": wait.awaited.approval(), "project": wait.project, "since": wait.at })
}

fn event_json(row: &StoredEvent) -> Value {
    let mut value = json!(row.event);
    if let Some(fields) = value.as_object_mut() {
        fields.insert("seq".into(), row.seq.into());
        fields.insert("adapter".into(), row.adapter.clone().into());
        fields.insert("direction".into(), row.direction.clone().into());
        fields.insert("received_at".into(), row.received_at.into());
        fields.insert("disposition".into(), row.disposition.as_str().into());
        fields.insert("replay_of".into(), row.replay_of.clone().into());
    }
    value
}

/// Events from the files in `directory`; no daemon may have them open.
///
/// # Errors
/// [`QueryError`]; so with all below.
pub fn events(directory: &Path, query: &EventsQuery) -> Result<Value, QueryError> {
    Ok(Record::offline(directory)?.events(query)?)
}

/// As [`Record::event`].
pub fn event(directory: &Path, id: &str) -> Result<Option<Value>, QueryError> {
    Ok(Record::offline(directory)?.event(id)?)
}

/// As [`Record::trace`].
pub fn trace(directory: &Path, id: &str) -> Result<Option<Value>, QueryError> {
    Ok(Record::offline(directory)?.trace(id)?)
}

/// As [`Record::traces`].
pub fn traces(directory: &Path, status: Option<&str>, limit: usize) -> Result<Value, QueryError> {
    Ok(Record::offline(directory)?.traces(status, limit)?)
}

/// As [`Record::sessions`].
pub fn sessions(directory: &Path, all: bool, limit: usize) -> Result<Value, QueryError> {
    Ok(with_sessions(directory)?.sessions(all, limit)?)
}

/// As [`Record::session`].
pub fn session(directory: &Path, name: &str, limit: usize, budgets: &SessionBudgets) -> Result<Option<Value>, QueryError> {
    Ok(with_sessions(directory)?.session(name, limit, budgets)?)
}

/// The agents that there are turns of; none where nothing was ever recorded.
pub fn agents_with_turns(directory: &Path) -> Result<BTreeSet<String>, QueryError> {
    match checked(directory, Ledger::Agents) {
        Ok(readers) => Ok(readers.read_now(agents::with_turns)?),
        Err(QueryError::NoLedger(_)) => Ok(BTreeSet::new()),
        Err(error) => Err(error),
    }
}

/// What each agent with a model may use in one session.
pub fn session_budgets(agents: &config::Agents) -> SessionBudgets {
    let with_model = agents.named.iter().filter(|(_, agent)| agent.runner == config::Runner::Llm);
    let budget = |agent: &config::Agent| SessionBudget {
        tokens_per_session: agent.budget.tokens_per_session,
        usd_per_session: agent.budget.usd_per_session,
    };
    with_model.map(|(name, agent)| (name.clone(), budget(agent))).collect()
}

fn with_sessions(directory: &Path) -> Result<Record, QueryError> {
    let record = Record::offline(directory)?;
    Ok(Record { agents: checked(directory, Ledger::Agents)?, ..record })
}

/// The accounts of `keys`, in their order.
pub fn accounts(directory: &Path, keys: &[AccountKey]) -> Result<Vec<KnownAccount>, QueryError> {
    let record = Record::offline(directory)?;
    let known: Result<Vec<_>, ReadError> = keys.iter().map(|key| record.account(key)).collect();
    Ok(known?)
}

/// As [`Record::deliveries`].
pub fn deliveries(directory: &Path, status: Option<&str>, adapter: Option<&str>, limit: usize) -> Result<Value, QueryError> {
    Ok(Record::offline(directory)?.deliveries(status, adapter, limit)?)
}

/// As [`Record::delivery`].
pub fn delivery(directory: &Path, id: &str) -> Result<Option<Value>, QueryError> {
    Ok(Record::offline(directory)?.delivery(id)?)
}
