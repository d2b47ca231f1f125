//! One account: its supervised `monitor`, its backfills, its probes and its report.

use super::catch_up::Gap;
use super::intake::{Intake, Kind, Rules};
use super::monitor::Monitor;
use super::probe::Found;
use super::program::Command;
use super::stats::AccountStats;
use super::{How, Known, Shared, backfill, probe, stream};
use crate::clock;
use crate::credential::CredentialError;
use crate::ledger::events::Cursor;
use crate::ledger::nexus::{Instance, SaveInstance};
use crate::supervisor::{Child, ChildSpec, ChildStatus, NotReady, Phase};
use nexus_core::config::{self, Streaming};
use nexus_core::health::{AdapterStatus, Health};
use nexus_core::ids::{AccountKey, ChildId};
use nexus_core::notice::NoticeType;
use nexus_core::protocol::{AdapterInfo, Capability};
use serde::Serialize;
use serde_json::json;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Its tasks that are started again.
const PROBES: &str = "probes";
const REPORT: &str = "report";
const STREAM: &str = "stream";

/// How one account stands, for status, health and the ledger.
#[derive(Debug, Clone, Serialize)]
pub struct AccountReport {
    pub adapter: String,
    pub account: String,
    pub channel: Option<String>,
    pub status: AdapterStatus,
    pub health: Health,
    pub pid: Option<u32>,
    pub last_event_age_ms: Option<u64>,
    pub events: u64,
    pub restarts: u64,
    pub last_error: Option<String>,
    /// Its `stream` process, if it has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stream: Option<StreamReport>,
}

/// How an account's `stream` process stands.
#[derive(Debug, Clone, Serialize)]
pub struct StreamReport {
    pub status: AdapterStatus,
    pub pid: Option<u32>,
    pub restarts: u64,
    pub last_error: Option<String>,
}

/// One configured, enabled account.
#[derive(Debug)]
pub struct Account {
    pub(super) key: AccountKey,
    pub(super) command: Arc<Command>,
    pub(super) config: config::Account,
    pub(super) shared: Shared,
    pub(super) stats: Arc<AccountStats>,
    pub(super) rules: watch::Sender<Rules>,
    pub(super) health: watch::Sender<Found>,
    pub(super) channel: watch::Sender<Option<Arc<AdapterInfo>>>,
    pub(super) backfilling: AtomicBool,
    /// Locked while the gap's row is being written.
    pub(super) gap: tokio::sync::Mutex<Gap>,
    /// Unix ms.
    pub(super) started_at: i64,
    pub(super) stop: CancellationToken,
    pub(super) tasks: TaskTracker,
    restarts_before: u64,
    /// The channel as the ledger knows it, until the adapter says it itself.
    channel_before: Option<String>,
    child: std::sync::OnceLock<Child>,
    pub(super) streaming: watch::Sender<Streaming>,
    pub(super) streamer: stream::Wanted,
}

impl Account {
    /// Starts the account's tasks and, if wanted, its monitor; waits for neither.
    pub(super) async fn start(
        shared: Shared,
        command: Arc<Command>,
        key: AccountKey,
        config: config::Account,
        how: How,
        known: Known,
    ) -> Arc<Self> {
        let How { rules, policy, streaming } = how;
        let Known { instance, cursor } = known;
        let instance = instance.as_ref();
        // A daemon that was killed could not save its last count.
        let events = instance.map_or(0, |one| one.events_received).max(cursor.as_ref().map_or(0, |cursor| cursor.events));
        let account = Arc::new(Self {
            stats: Arc::new(AccountStats::going_on(events, cursor.as_ref().and_then(Cursor::last_event_at))),
            rules: watch::Sender::new(rules),
            health: watch::Sender::new(Found { generation: 0, health: Health::Unknown, error: None }),
            channel: watch::Sender::new(None),
            backfilling: AtomicBool::new(false),
            gap: tokio::sync::Mutex::default(),
            started_at: clock::wall_ms(),
            stop: shared.stop.child_token(),
            tasks: TaskTracker::new(),
            restarts_before: instance.map_or(0, |one| one.restart_count),
            channel_before: instance.and_then(|one| one.channel.clone()),
            child: std::sync::OnceLock::new(),
            streaming: watch::Sender::new(streaming),
            streamer: stream::Wanted::default(),
            key,
            command,
            config,
            shared,
        });
        if account.config.monitor {
            let program = Arc::new(Monitor::new(&account));
            let id = ChildId::new(format!("adapter/{}", account.key));
            let child = account.shared.supervisor.add(ChildSpec { id, policy: policy.clone(), program });
            child.start().await;
            // Set once, right here.
            drop(account.child.set(child.clone()));
            account.streamer.add(&account, policy);
            account.keep(PROBES, child.clone(), probe::watch_health);
            account.keep(STREAM, child.clone(), stream::keep_up);
            account.keep(REPORT, child, Self::keep_report);
        }
        if account.config.backfill && instance.is_none_or(|one| one.backfill_completed_at.is_none()) {
            crate::watch::tracked("backfill", &account.tasks, backfill::run_until_done(account.clone()));
        }
        account
    }

    /// Runs one of the account's tasks to its end, also after a failure.
    fn keep<F: Future<Output = ()> + Send + 'static>(
        self: &Arc<Self>,
        what: &'static str,
        child: Child,
        make: impl Fn(Arc<Self>, Child) -> F + Send + 'static,
    ) {
        let this = self.clone();
        crate::watch::tracked("account", &self.tasks, async move {
            let (name, watch_over, stop) = (this.task_name(what), this.shared.watch_over.clone(), this.stop.clone());
            watch_over.until_done(name, &stop, move || make(this.clone(), child.clone())).await;
        });
    }

    /// Its name in the watch over the daemon's tasks.
    fn task_name(&self, what: &str) -> String {
        format!("{what} of {}", self.key)
    }

    /// The monitor's handle; `None` with `monitor: false`.
    pub fn child(&self) -> Option<&Child> {
        self.child.get()
    }

    pub(super) async fn set(&self, how: How) {
        let How { rules, policy, streaming } = how;
        self.rules.send_replace(rules);
        self.streaming.send_replace(streaming);
        for child in self.child().into_iter().chain(self.streamer.child()) {
            child.set_policy(policy.clone()).await;
        }
    }

    /// Stops and starts its processes, with a clean sheet.
    pub async fn restart(&self) {
        if let Some(child) = self.child() {
            self.streamer.restart().await;
            child.restart().await;
        }
    }

    /// Stops everything of this account. With `remove` its supervisor task goes too.
    pub async fn stop(&self, remove: bool) {
        if let Some(child) = self.child() {
            if remove {
                let monitor = ChildId::new(format!("adapter/{}", self.key));
                tokio::join!(self.shared.supervisor.remove(&monitor), self.streamer.remove(self));
            } else {
                tokio::join!(child.stop(), self.streamer.want(false));
            }
        }
        if remove {
            self.stop.cancel();
            self.tasks.close();
            self.tasks.wait().await;
            [PROBES, REPORT, STREAM].iter().for_each(|what| self.shared.watch_over.forget(&self.task_name(what)));
            self.save(AdapterStatus::Stopped).await;
        }
    }

    /// Runs a history backfill now, in the background. False when one is running.
    pub fn backfill(self: &Arc<Self>) -> bool {
        if self.backfilling.load(Ordering::Acquire) {
            return false;
        }
        crate::watch::tracked("backfill", &self.tasks, backfill::run_until_done(self.clone()));
        true
    }

    /// Asks the adapter for its health now; with why, unless it is healthy. One whose process doesn't
    /// run isn't healthy, whatever the adapter says of the account.
    pub async fn probe(&self) -> (Health, Option<String>) {
        let (health, error) = probe::probe(self).await;
        let child = self.child().map(Child::status);
        let health_if_down = if health == Health::Healthy { Health::Unknown } else { health };
        match (child, health) {
            (Some(child), _) if child.phase != Phase::Running => {
                let status = self.status(Some(&child)).as_str();
                let is_stopped = child.phase == Phase::Stopped;
                let cause = error.or(child.last_error).unwrap_or_else(|| match is_stopped {
                    true => format!("`nexus adapter start {}` starts it", self.key),
                    false => "try again in a moment".to_owned(),
                });
                (health_if_down, Some(format!("its process is {status}: {cause}")))
            }
            (_, Health::Healthy) => (health, None),
            (_, Health::Unknown | Health::Degraded | Health::Disconnected) => {
                let cause = error.unwrap_or_else(|| "it has no process, and its adapter was not found to support `health`".to_owned());
                (health, Some(cause))
            }
        }
    }

    pub fn report(&self) -> AccountReport {
        let child = self.child().map(Child::status);
        let running = child.as_ref().is_none_or(|child| child.phase == Phase::Running);
        // Of one that doesn't run only the reason of its end counts.
        let (health, trouble) = if running { self.condition(child.as_ref()) } else { (Health::Unknown, None) };
        AccountReport {
            adapter: self.key.adapter.clone(),
            account: self.key.account.clone(),
            channel: self.channel_name(),
            status: self.status(child.as_ref()),
            health,
            pid: child.as_ref().and_then(|child| child.pid),
            last_event_age_ms: self.stats.last_event_age_ms(),
            events: self.stats.events(),
            restarts: self.restarts_before + child.as_ref().map_or(0, |child| child.restarts),
            last_error: child.and_then(|child| child.last_error).or(trouble),
            stream: self.stream_report(),
        }
    }

    /// None of an adapter that doesn't stream.
    fn stream_report(&self) -> Option<StreamReport> {
        let child = self.streamer.child().map(Child::status)?;
        let is_used = child.phase != Phase::Stopped || child.generation > 0;
        is_used.then(|| StreamReport { status: child.phase.into(), pid: child.pid, restarts: child.restarts, last_error: child.last_error })
    }

    /// Why answers aren't streamed that should be.
    fn stream_trouble(&self) -> Option<String> {
        let child = self.streamer.child().map(Child::status).filter(|child| child.phase == Phase::Errored)?;
        let why = child.last_error.unwrap_or_else(|| "it ended too often".to_owned());
        Some(format!("its stream process is errored ({why}): answers are sent as a whole"))
    }

    /// How a running account is, and why it isn't well.
    fn condition(&self, child: Option<&ChildStatus>) -> (Health, Option<String>) {
        let (health, trouble) = self.probed(child);
        match self.stats.trouble().or_else(|| self.stream_trouble()) {
            Some(trouble) if health == Health::Healthy || health == Health::Unknown => (Health::Degraded, Some(trouble)),
            Some(_) | None => (health, trouble),
        }
    }

    /// What the last probe found of this process; that of the one before it is over.
    fn probed(&self, child: Option<&ChildStatus>) -> (Health, Option<String>) {
        let found = self.health.borrow();
        let is_over = child.is_some_and(|child| child.generation != found.generation);
        if is_over { (Health::Unknown, None) } else { (found.health, found.error.clone()) }
    }

    /// The adapter's word, else the configuration's, else what was known before.
    fn channel_name(&self) -> Option<String> {
        let told = self.command.told().map(|info| info.channel.clone());
        told.or_else(|| self.command.configured_channel().map(str::to_owned)).or_else(|| self.channel_before.clone())
    }

    fn status(&self, child: Option<&ChildStatus>) -> AdapterStatus {
        let backfilling = self.backfilling.load(Ordering::Acquire);
        let status = child.map_or(AdapterStatus::Stopped, |child| child.phase.into());
        if backfilling && status == AdapterStatus::Stopped { AdapterStatus::Backfilling } else { status }
    }

    /// Tells the bus and the ledger of every change.
    async fn keep_report(self: Arc<Self>, child: Child) {
        let mut status = child.watch();
        let mut health = self.health.subscribe();
        let mut last = None;
        loop {
            crate::torture::point("task.report");
            let report = self.report();
            let phase = status.borrow_and_update().phase;
            if last != Some(phase) {
                self.announce(phase, &report);
                last = Some(phase);
            }
            self.save(report.status).await;
            tokio::select! {
                changed = status.changed() => if changed.is_err() { return },
                changed = health.changed() => if changed.is_err() { return },
                () = self.stop.cancelled() => return,
            }
        }
    }

    fn announce(&self, phase: Phase, report: &AccountReport) {
        let kind = match phase {
            Phase::Running => NoticeType::AdapterStarted,
            Phase::Stopped | Phase::Backoff => NoticeType::AdapterStopped,
            Phase::Errored => NoticeType::AdapterErrored,
            Phase::Starting | Phase::Stopping => return,
        };
        let notice = json!({
            "adapter": self.key.adapter, "account": self.key.account, "status": report.status, "pid": report.pid, "error": report.last_error,
        });
        self.shared.sinks.bus.publish(kind, notice);
    }

    async fn save(&self, status: AdapterStatus) {
        let report = self.report();
        let instance = Instance {
            adapter: report.adapter,
            account: report.account,
            status: status.as_str().to_owned(),
            health: report.health.as_str().to_owned(),
            pid: report.pid,
            restart_count: report.restarts,
            events_received: report.events,
            last_error: report.last_error,
            backfill_completed_at: None,
            channel: report.channel,
            info: self.command.told().and_then(|info| serde_json::to_string(info.as_ref()).ok()),
        };
        let save = SaveInstance { instance, at: clock::wall_ms(), epoch: self.shared.epoch };
        if let Err(error) = self.shared.ledgers.nexus.writer.write(save).await {
            tracing::debug!(account = %self.key, %error, "adapter_instances not updated");
        }
    }

    /// An intake of this account, of a process that has ended when `exited` is cancelled.
    pub(super) fn intake(
        &self,
        channel: &str,
        kind: Kind,
        acks: Option<watch::Sender<Option<String>>>,
        silence_max: Option<Duration>,
        exited: CancellationToken,
    ) -> Intake {
        Intake {
            account: self.key.clone(),
            channel: channel.to_owned(),
            kind,
            rules: self.rules.subscribe(),
            sinks: self.shared.sinks.clone(),
            stats: self.stats.clone(),
            acks,
            silence_max,
            exited,
        }
    }

    /// Asks `info`, resolves the credential and writes the context file: everything before a spawn.
    pub(super) async fn ready(&self) -> Result<(Arc<AdapterInfo>, PathBuf), NotReady> {
        let info = self.command.info().await?;
        self.channel.send_replace(Some(info.clone()));
        let credential = match &self.config.credential_ref {
            Some(reference) => {
                let resolved = crate::credential::resolve(reference, &self.shared.credentials, self.shared.keeper()).await;
                let not_ready =
                    |error: CredentialError| NotReady { reason: crate::error_text::describe(&error), lasting: !error.is_passing() };
                Some(resolved.map_err(not_ready)?)
            }
            None => None,
        };
        let path = self.context_file();
        self.write_context(&path, &info.channel, credential.as_ref())
            .map_err(|error| format!("failed to write the context file `{}`: {error}", path.display()))?;
        Ok((info, path))
    }

    pub(super) fn context_file(&self) -> PathBuf {
        self.shared.run_dir.join(context_name(&self.key.adapter, &self.key.account))
    }

    fn write_context(
        &self,
        path: &std::path::Path,
        channel: &str,
        credential: Option<&crate::credential::Credential>,
    ) -> std::io::Result<()> {
        use secrecy::ExposeSecret;
        let mut context = json!({ "version": 1, "channel": channel, "account_id": self.key.account, "config": self.config.config });
        if let Some(credential) = credential {
            context["credential"] = json!({ "kind": credential.kind, "value": credential.value.expose_secret() });
        }
        let text = zeroize::Zeroizing::new(context.to_string());
        crate::credential::write_private(path, text.as_bytes())
    }

    pub(super) fn can(&self, capability: Capability) -> bool {
        self.channel.borrow().as_ref().is_some_and(|info| info.can(capability))
    }
}

/// The context file's name. Neither part can hold a `:`, so no two accounts share a file.
pub(crate) fn context_name(adapter: &str, account: &str) -> String {
    format!("{adapter}:{account}.json")
}
