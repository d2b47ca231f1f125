//! The adapters: from their configuration to supervised processes, intake, probes and sending.
//!
//! Theory of operation: each configured account is one [`account::Account`], a supervised `monitor`
//! child with what belongs to it. The adapter's `info` is asked as part of preparing a spawn, so an
//! adapter that can't answer it fails and is retried like one that can't start. A reload changes the
//! set of accounts; nothing here reads the configuration file.

pub mod account;
mod backfill;
mod catch_up;
pub mod intake;
mod monitor;
mod probe;
mod program;
mod send;
pub mod stats;
mod stream;

use crate::error_text::describe;
use crate::keeper::Keeper;
use crate::ledger::events::{Cursor, cursor};
use crate::ledger::nexus::{Instance, instance};
use crate::ledger::{Ledgers, ReadError};
use crate::pipeline::router::Router;
use crate::routes::{Route, Routes};
use crate::supervisor::Supervisor;
use crate::watch::Watch;
use account::{Account, AccountReport};
use intake::{Rules, Sinks};
use nexus_core::config::{self, Streaming};
use nexus_core::health::{AdapterStatus, Health};
use nexus_core::ids::AccountKey;
use nexus_core::lifecycle::RestartPolicy;
use program::Command;
pub(crate) use program::{Call, PROBE_LIMIT, call, read_info};
use stats::AccountStats;
use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use tokio_util::sync::CancellationToken;

/// From TERM to KILL (requirement: shutdown steps 5 to 7).
const STOP_GRACE_MS: u64 = 5_000;

/// What all adapters share.
#[derive(Debug, Clone)]
pub struct Shared {
    pub supervisor: Supervisor,
    pub ledgers: Ledgers,
    pub sinks: Sinks,
    pub routes: Routes,
    pub router: Router,
    pub watch_over: Watch,
    /// Working directory of adapters without `cwd`.
    pub workspace: PathBuf,
    pub credentials: PathBuf,
    /// Where context files are written.
    pub run_dir: PathBuf,
    pub epoch: i64,
    pub stop: CancellationToken,
}

impl Shared {
    pub fn keeper(&self) -> &Keeper {
        self.supervisor.keeper()
    }
}

/// All configured adapters.
#[derive(Debug)]
pub struct Adapters {
    shared: Shared,
    commands: Mutex<HashMap<String, Arc<Command>>>,
    accounts: Mutex<BTreeMap<AccountKey, Arc<Account>>>,
}

/// What the ledgers know of an account from its earlier runs.
#[derive(Debug, Default)]
struct Known {
    instance: Option<Instance>,
    cursor: Option<Cursor>,
}

/// The settings of an adapter that change without touching a process.
#[derive(Debug, Clone)]
struct How {
    rules: Rules,
    policy: RestartPolicy,
    streaming: Streaming,
}

/// Why a verb can't be carried out.
#[derive(Debug, thiserror::Error)]
pub enum VerbError {
    #[error("no adapter `{0}` is configured; `nexus adapter list` shows which are")]
    NoAdapter(String),
    #[error("no account `{0}` is configured and enabled; `nexus adapter status` shows those that are")]
    NoAccount(AccountKey),
    #[error("{0}")]
    Refused(String),
}

impl Adapters {
    pub fn new(shared: Shared) -> Self {
        Self { shared, commands: Mutex::default(), accounts: Mutex::default() }
    }

    /// Brings up one adapter with its enabled accounts, in parallel; does not wait for them.
    pub async fn add(&self, name: &str, adapter: &config::Adapter) {
        let command = Arc::new(Command::new(name, adapter, &self.shared));
        self.lock_commands().insert(name.to_owned(), command.clone());
        self.set_route(name, adapter, &command).await;
        for (id, account) in adapter.accounts.iter().filter(|(_, account)| account.enabled) {
            self.add_account(name, id, adapter, account).await;
        }
    }

    /// Brings up one account of a known adapter.
    pub async fn add_account(&self, name: &str, id: &str, adapter: &config::Adapter, account: &config::Account) {
        let Some(command) = self.lock_commands().get(name).cloned() else { return };
        let key = AccountKey::new(name, id);
        let known = self.known(&key).await.unwrap_or_else(|error| {
            tracing::warn!(account = %key, error = %describe(&error), "not known from before; a backfill may run again");
            Known::default()
        });
        let account = Account::start(self.shared.clone(), command, key.clone(), account.clone(), how(adapter), known).await;
        self.lock().insert(key, account);
    }

    /// What the ledgers know of an account from its earlier runs, those of this daemon included.
    async fn known(&self, key: &AccountKey) -> Result<Known, ReadError> {
        let (ledgers, of_instance, of_cursor) = (&self.shared.ledgers, key.clone(), key.clone());
        let instance =
            ledgers.nexus.readers.read(move |connection| instance(connection, &of_instance.adapter, &of_instance.account)).await?;
        let cursor = ledgers.events.readers.read(move |connection| cursor(connection, &of_cursor.adapter, &of_cursor.account)).await?;
        Ok(Known { instance, cursor })
    }

    /// Stops an adapter with all its accounts and forgets it.
    pub async fn remove(&self, name: &str) {
        self.take_down(name).await;
        self.shared.routes.remove(name);
    }

    /// Stops an adapter with all its accounts and starts it as `adapter` says now. Its route stays in
    /// between: without one, what is to be said through it would fail for good.
    pub async fn replace(&self, name: &str, adapter: &config::Adapter) {
        self.take_down(name).await;
        self.add(name, adapter).await;
    }

    async fn take_down(&self, name: &str) {
        let keys: Vec<AccountKey> = self.lock().keys().filter(|key| key.adapter == name).cloned().collect();
        futures_util::future::join_all(keys.iter().map(|key| self.remove_account(key))).await;
        self.lock_commands().remove(name);
    }

    pub async fn remove_account(&self, key: &AccountKey) {
        let account = self.lock().remove(key);
        if let Some(account) = account {
            account.stop(true).await;
        }
    }

    /// Applies limits and restart numbers without touching a process.
    pub async fn set_rules(&self, name: &str, adapter: &config::Adapter) {
        let command = self.lock_commands().get(name).cloned();
        if let Some(command) = command {
            self.set_route(name, adapter, &command).await;
        }
        for account in self.of(name) {
            account.set(how(adapter)).await;
        }
    }

    async fn set_route(&self, name: &str, adapter: &config::Adapter, command: &Arc<Command>) {
        let sender = send::ProcessSender::new(command.clone(), &adapter.send);
        let streams = stream::Streams::new(command.clone(), &adapter.send);
        self.shared.routes.set(name, Route::unknown(&adapter.send, Some(Arc::new(sender)), Some(Arc::new(streams))));
        command.publish_route().await;
    }

    /// One account's handle.
    ///
    /// # Errors
    /// When it isn't configured or is disabled.
    pub fn get(&self, key: &AccountKey) -> Result<Arc<Account>, VerbError> {
        self.lock().get(key).cloned().ok_or_else(|| VerbError::NoAccount(key.clone()))
    }

    /// The adapter's `info`, asked now if it isn't known.
    ///
    /// # Errors
    /// When the adapter isn't configured or can't answer.
    pub async fn info(&self, name: &str) -> Result<nexus_core::protocol::AdapterInfo, VerbError> {
        let command = self.lock_commands().get(name).cloned().ok_or_else(|| VerbError::NoAdapter(name.to_owned()))?;
        command.info().await.map(|info| (*info).clone()).map_err(VerbError::Refused)
    }

    /// What `accounts list` reports, if the adapter supports it.
    ///
    /// # Errors
    /// When the adapter isn't configured or can't answer.
    pub async fn reported_accounts(&self, name: &str) -> Result<Option<serde_json::Value>, VerbError> {
        let command = self.lock_commands().get(name).cloned().ok_or_else(|| VerbError::NoAdapter(name.to_owned()))?;
        command.accounts().await.map_err(VerbError::Refused)
    }

    /// Every account as it stands, by name.
    pub fn report(&self) -> Vec<AccountReport> {
        self.lock().values().map(|account| account.report()).collect()
    }

    /// How an account stands that is configured and disabled, from what the ledgers know.
    pub async fn disabled(&self, name: &str, id: &str, adapter: &config::Adapter) -> AccountReport {
        let key = AccountKey::new(name, id);
        let Known { instance, cursor } = self.known(&key).await.unwrap_or_else(|error| {
            tracing::warn!(account = %key, error = %describe(&error), "what is known of a disabled account can't be read");
            Known::default()
        });
        let told = self.lock_commands().get(name).and_then(|command| command.told().map(|info| info.channel.clone()));
        let before = instance.as_ref().and_then(|one| one.channel.clone());
        let events = instance.as_ref().map_or(0, |one| one.events_received).max(cursor.as_ref().map_or(0, |cursor| cursor.events));
        let stats = AccountStats::going_on(events, cursor.as_ref().and_then(Cursor::last_event_at));
        AccountReport {
            channel: told.or_else(|| adapter.channel.clone()).or(before),
            adapter: key.adapter,
            account: key.account,
            status: AdapterStatus::Stopped,
            health: Health::Unknown,
            pid: None,
            last_event_age_ms: stats.last_event_age_ms(),
            events,
            restarts: instance.as_ref().map_or(0, |one| one.restart_count),
            last_error: instance.and_then(|one| one.last_error),
            stream: None,
        }
    }

    /// Stops all accounts, reading each child to EOF; returns once all are gone.
    pub async fn shutdown(&self) {
        let all: Vec<Arc<Account>> = self.lock().values().cloned().collect();
        futures_util::future::join_all(all.iter().map(|account| account.stop(true))).await;
        // A route leads to its command and that to everything shared, the routes among it: cut here,
        // or the ledgers' threads would wait for handles that hold each other.
        self.lock().clear();
        for (name, _) in self.lock_commands().drain() {
            self.shared.routes.remove(&name);
        }
    }

    fn of(&self, name: &str) -> Vec<Arc<Account>> {
        self.lock().iter().filter(|(key, _)| key.adapter == name).map(|(_, account)| account.clone()).collect()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<AccountKey, Arc<Account>>> {
        self.accounts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_commands(&self) -> std::sync::MutexGuard<'_, HashMap<String, Arc<Command>>> {
        self.commands.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn how(adapter: &config::Adapter) -> How {
    let policy = RestartPolicy::new(&adapter.restart, STOP_GRACE_MS);
    How { rules: rules(adapter), policy, streaming: adapter.send.stream }
}

fn rules(adapter: &config::Adapter) -> Rules {
    Rules {
        line_bytes_max: usize::try_from(adapter.max_line_bytes).unwrap_or(usize::MAX),
        pending_max: adapter.max_pending,
        catch_up: adapter.catch_up.clone(),
    }
}
