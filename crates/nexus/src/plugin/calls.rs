//! What a plugin or an automation may ask of the daemon while it works: the methods that `plugins.grants` and
//! `automations.grants` name, each within its limits. It runs no plugin and reads no frames; whoever does hands calls over
//! here and the answers back. The grants come with each call, so that a reload counts at once.

mod account;
mod address;
mod fetch;
mod llm;
mod params;
mod query;
mod search;
mod send;
pub mod shapes;
#[cfg(test)]
mod tests;

pub(crate) use address::is_public;

use crate::error_text::describe;
use crate::ledger::Ledgers;
use crate::metrics::Metrics;
use crate::panics;
use crate::pipeline::Settings;
use crate::pipeline::breakers::Breakers;
use crate::pipeline::outbox::Outbox;
use crate::pipeline::spending::Meters;
use crate::routes::Routes;
use crate::search::Search;
use arc_swap::ArcSwap;
use fetch::Fetcher;
use nexus_core::config::Grant;
use nexus_core::request::{DeliveryTarget, NexusRequest};
use serde_json::Value;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

/// Calls of one plugin under way at once.
const CALLS_PER_PLUGIN_MAX: usize = 16;
/// Longest time of a call but `llm`, which has its agent's.
const CALL_MS_MAX: u64 = 30_000;
/// Longest answer, as JSON.
const ANSWER_BYTES_MAX: usize = 1024 * 1024;
/// Questions to the ledgers under way at once, over all plugins: each holds a thread.
const QUERIES_MAX: usize = 4;
/// The methods.
const METHODS: &str = "ledger.query, llm, search, send, fetch";

/// What calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CallerKind {
    Plugin,
    Automation,
}

impl CallerKind {
    pub(super) fn noun(self) -> &'static str {
        match self {
            Self::Plugin => "plugin",
            Self::Automation => "automation",
        }
    }

    pub(super) fn with_article(self) -> &'static str {
        match self {
            Self::Plugin => "a plugin",
            Self::Automation => "an automation",
        }
    }
}

/// Who calls, what it may, and about which request.
#[derive(Debug, Clone)]
pub struct Caller {
    pub kind: CallerKind,
    /// Its name, as in `plugins.grants` or `automations.grants`.
    pub plugin: String,
    pub grants: Arc<[Grant]>,
    /// `None` for an automation that no request woke.
    pub request: Option<CallerRequest>,
}

/// The request of one hook call.
#[derive(Debug, Clone)]
pub struct CallerRequest {
    pub request_id: String,
    pub event_seq: i64,
    /// The adapter that delivers its answer.
    pub adapter: String,
    pub target: DeliveryTarget,
    /// The hook point that is being called, or the automation. It is called once per request and, after a
    /// crash, again: what it sends has the same keys then.
    pub hook: String,
    /// Sends in this hook call so far.
    sends: Arc<AtomicU32>,
}

impl CallerRequest {
    /// To be made once per hook call; clones count together.
    #[must_use]
    pub fn new(request: &NexusRequest, adapter: &str, hook: &str) -> Self {
        Self {
            request_id: request.request_id.clone(),
            event_seq: request.event_seq,
            adapter: adapter.to_owned(),
            target: request.delivery.clone(),
            hook: hook.to_owned(),
            sends: Arc::default(),
        }
    }
}

impl Caller {
    /// Gives a `send` without an `n` its number within the hook call. Whoever reads a plugin's calls does
    /// this in their order, before the tasks that carry them out are begun: those may overtake each other, and the
    /// same message must have the same number after a crash. [`Calls::call`] makes up for it if it wasn't done.
    pub fn number(&self, method: &str, params: &mut Value) {
        let (Some(request), "send", Value::Object(fields)) = (&self.request, method, params) else { return };
        let count = request.sends.fetch_add(1, Ordering::Relaxed);
        if fields.get("n").is_none_or(Value::is_null) {
            fields.insert("n".to_owned(), Value::from(format!("{}.{count}", request.hook)));
        }
    }

    /// # Errors
    /// [`CallError::NotGranted`].
    fn needs(&self, grant: &Grant) -> Result<(), CallError> {
        if self.grants.contains(grant) { Ok(()) } else { Err(self.not_granted(grant)) }
    }

    fn not_granted(&self, grant: &Grant) -> CallError {
        CallError::NotGranted { kind: self.kind, plugin: self.plugin.clone(), grant: grant.to_string() }
    }

    /// Its name among all that call. No plugin's has a `~`, so that none can speak in an automation's name.
    fn who(&self) -> String {
        match self.kind {
            CallerKind::Plugin => self.plugin.clone(),
            CallerKind::Automation => format!("automation~{}", self.plugin),
        }
    }
}

/// Why a call has no result. [`CallError::told`] is what the plugin is told.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    #[error(
        "`{grant}` is not granted to {noun} `{plugin}`; to grant it, write in nex.yaml: `{noun}s: {{ grants: {{ {plugin}: [ \"{grant}\" ] }} }}`",
        noun = .kind.noun()
    )]
    NotGranted { kind: CallerKind, plugin: String, grant: String },
    #[error("`{field}` {problem}")]
    Params { field: String, problem: String },
    #[error("{0}")]
    Limit(String),
    #[error("failed to {what}")]
    Failed {
        what: &'static str,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl CallError {
    /// The error with its causes, in one line.
    #[must_use]
    pub fn told(&self) -> String {
        describe(self)
    }

    fn failed(what: &'static str, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Failed { what, source: source.into() }
    }
}

/// What calls reach for.
#[derive(Debug)]
pub struct CallsNeed {
    pub ledgers: Ledgers,
    pub settings: Arc<ArcSwap<Settings>>,
    pub routes: Routes,
    pub outbox: Outbox,
    /// Are told what is sent.
    pub breakers: Breakers,
    /// The event seq up to which requests are admitted.
    pub admitted: watch::Receiver<i64>,
    pub search: Search,
    /// Count what models are asked.
    pub meters: Meters,
    pub metrics: Metrics,
}

/// Carries out calls. Made once, at the start.
#[derive(Debug)]
pub struct Calls {
    ledgers: Ledgers,
    settings: Arc<ArcSwap<Settings>>,
    routes: Routes,
    outbox: Outbox,
    breakers: Breakers,
    admitted: watch::Receiver<i64>,
    search: Search,
    meters: Meters,
    metrics: Metrics,
    fetcher: Fetcher,
    queries: Arc<Semaphore>,
    /// Room for calls, by plugin.
    room: Mutex<HashMap<String, Arc<Semaphore>>>,
}

impl Calls {
    pub fn new(need: CallsNeed) -> Self {
        let CallsNeed { ledgers, settings, routes, outbox, breakers, admitted, search, meters, metrics } = need;
        let (fetcher, queries) = (Fetcher::default(), Arc::new(Semaphore::new(QUERIES_MAX)));
        let room = Mutex::default();
        Self { ledgers, settings, routes, outbox, breakers, admitted, search, meters, metrics, fetcher, queries, room }
    }

    /// Carries out one call. Dropping it ends what it does, but for a send that has begun.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn call(&self, caller: &Caller, method: &str, params: Value) -> Result<Value, CallError> {
        let _room = self.enter(&caller.who())?;
        let answer = match panics::caught(self.answer(caller, method, params)).await {
            Ok(answer) => answer?,
            Err(panicked) => return Err(CallError::failed("carry out the call", panicked)),
        };
        let bytes = serde_json::to_vec(&answer).map_or(usize::MAX, |text| text.len());
        if bytes > ANSWER_BYTES_MAX {
            return Err(CallError::Limit(format!("the answer has {bytes} bytes as JSON; at most {ANSWER_BYTES_MAX} are given")));
        }
        Ok(answer)
    }

    async fn answer(&self, caller: &Caller, method: &str, params: Value) -> Result<Value, CallError> {
        match method {
            "ledger.query" => {
                caller.needs(&Grant::LedgerQuery)?;
                in_time(query::call(&self.ledgers, &self.queries, params)).await
            }
            "llm" => {
                caller.needs(&Grant::Llm)?;
                llm::call(self, &self.settings.load_full(), caller, params).await
            }
            "search" => {
                caller.needs(&Grant::Search)?;
                in_time(search::call(&self.search, &self.settings.load_full(), params)).await
            }
            "send" => {
                caller.needs(&Grant::Send)?;
                in_time(send::call(self, caller, params)).await
            }
            "fetch" => in_time(self.fetcher.call(caller, params)).await,
            _ => Err(params::wrong("method", format!("`{}` does not exist; there are {METHODS}", params::shown(method)))),
        }
    }

    /// Takes a place among the caller's calls. Who calls faster than it waits for answers is told so:
    /// calls that queue up here would have no bound.
    fn enter(&self, plugin: &str) -> Result<OwnedSemaphorePermit, CallError> {
        let room = {
            let mut all = self.room.lock().unwrap_or_else(PoisonError::into_inner);
            all.entry(plugin.to_owned()).or_insert_with(|| Arc::new(Semaphore::new(CALLS_PER_PLUGIN_MAX))).clone()
        };
        let full = |_| CallError::Limit(format!("{CALLS_PER_PLUGIN_MAX} calls of `{plugin}` are under way; wait for one to end"));
        room.try_acquire_owned().map_err(full)
    }
}

async fn in_time(work: impl Future<Output = Result<Value, CallError>>) -> Result<Value, CallError> {
    let late = |_| CallError::Limit(format!("the call took longer than {CALL_MS_MAX} ms"));
    tokio::time::timeout(Duration::from_millis(CALL_MS_MAX), work).await.map_err(late)?
}
