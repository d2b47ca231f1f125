//! What the running daemon answers and does when it is asked: the [`Verbs`] of the HTTP server.

use super::error::StartError;
use super::paths::Paths;
use super::progress::Progress;
use super::soundness::Soundness;
use super::{StartOptions, automations, backup, housekeeping, projects, reload, replay, search, send, sessions, status};
use crate::access::{Edit, People, Rules};
use crate::adapter::intake::Sinks;
use crate::adapter::{Adapters, VerbError};
use crate::agent::acp::AcpAgents;
use crate::agent::mcp::Servers;
use crate::bus::Bus;
use crate::bus::store::{BusCommand, write_through};
use crate::clock;
use crate::doctor;
use crate::error_text::describe;
use crate::http::automations::Decision;
use crate::http::backup::Lines as BackupLines;
use crate::http::control::{Answer, PluginTest, Refusal, Verbs};
use crate::http::replay::{Replay, Replayed};
use crate::http::send::{Accepted, Message};
use crate::http::sessions::Fork;
use crate::keeper::Cgroup;
use crate::ledger::agents::SessionBudgets;
use crate::ledger::nexus::{DeliveryCounts, ProjectRow, Resolution, deliveries_of, request_by_event};
use crate::ledger::{Database, Ledgers, Threads};
use crate::logging::Logging;
use crate::metrics::Metrics;
use crate::nostr::Nostr;
use crate::pipeline::Pipeline;
use crate::pipeline::outbox::{Outbox, Resolved};
use crate::pipeline::router::{Router, RouterStats};
use crate::plugin::{Plugins, TrialError};
use crate::project::gc::Archived;
use crate::project::prepare::{PrepareError, Preparer};
use crate::project::{ProjectVerb, Projects};
use crate::query::{self, Record};
use crate::replies::End;
use crate::search::Question;
use crate::supervisor::{BoxFuture, Supervisor};
use crate::watch::Watch;
use arc_swap::{ArcSwap, ArcSwapOption};
use axum::http::StatusCode;
use nexus_core::config::{self, BusMode, Config};
use nexus_core::health::Overall;
use nexus_core::ids::AccountKey;
use nexus_core::protocol::Capability;
use nexus_core::request::Status;
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};
use tokio::sync::{Mutex, Semaphore, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// How long the answer to `start` and `restart` waits for the new process: most are up, or failed, by then.
const SETTLE_LIMIT: Duration = Duration::from_secs(5);
/// The name of what keeps notices, in the watch over the daemon's tasks.
const STORE: &str = "bus store";

/// The parts that verbs reach for.
pub(super) struct Control {
    pub(super) paths: Paths,
    /// What the command line says: it survives a reload.
    pub(super) options: StartOptions,
    pub(super) logging: Logging,
    pub(super) config: ArcSwap<Config>,
    pub(super) ledgers: Ledgers,
    pub(super) bus: Bus,
    pub(super) store: Arc<ArcSwapOption<Database<BusCommand>>>,
    /// The write-through task with its stop and its threads, while it runs.
    pub(super) store_tasks: Mutex<Vec<(CancellationToken, JoinHandle<()>, Threads)>>,
    pub(super) retention_days: watch::Sender<u32>,
    pub(super) metrics: Metrics,
    pub(super) plugins: Arc<Plugins>,
    pub(super) pipeline: Arc<Pipeline>,
    pub(super) router: Router,
    pub(super) router_stats: watch::Receiver<RouterStats>,
    pub(super) adapters: Arc<Adapters>,
    pub(super) acp: AcpAgents,
    pub(super) supervisor: Supervisor,
    /// The MCP servers of the agents.
    pub(super) servers: Servers,
    pub(super) preparer: Preparer,
    pub(super) projects: Projects,
    pub(super) nostr: Nostr,
    pub(super) outbox: Outbox,
    pub(super) timer_settings: watch::Sender<config::Timer>,
    pub(super) sinks: Sinks,
    pub(super) disk_low: watch::Receiver<bool>,
    pub(super) soundness: Soundness,
    pub(super) watch_over: Watch,
    pub(super) http_address: OnceLock<SocketAddr>,
    pub(super) ready: AtomicBool,
    /// How far a shutdown is.
    pub(super) progress: Progress,
    pub(super) reloading: Mutex<()>,
    /// Room for one look at the ledgers: each holds their logs from being emptied.
    pub(super) examining: Arc<Semaphore>,
    /// Held while a backup is made.
    pub(super) backing_up: Arc<Mutex<()>>,
    pub(super) began: Instant,
    /// Knows the kill level.
    pub(super) cgroup: Arc<Cgroup>,
    /// One at a time: whether another attempt is open must not change meanwhile.
    pub(super) replaying: Mutex<()>,
    /// Deliveries that somebody should look at, as last counted.
    pub(super) deliveries: ArcSwap<DeliveryCounts>,
    pub(super) stop: CancellationToken,
}

impl std::fmt::Debug for Control {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Control").field("paths", &self.paths).finish_non_exhaustive()
    }
}

impl Control {
    /// Turns write-through on or off, and keeps notices for as long, as `config` says.
    ///
    /// # Errors
    /// When the store can't be opened.
    pub(super) async fn set_bus_mode(&self, config: &Config) -> Result<(), StartError> {
        let mut tasks = self.store_tasks.lock().await;
        self.retention_days.send_replace(config.bus.retention_days);
        let on = !tasks.is_empty();
        match config.bus.mode {
            BusMode::WriteThrough if !on => {
                let directory = self.paths.data_dir(&config.ledgers.directory);
                let (database, threads) = crate::ledger::start(&directory, clock::wall_ms())?;
                let stop = CancellationToken::new();
                self.store.store(Some(Arc::new(Database::clone(&database))));
                tasks.push((stop.clone(), self.keep_store(database, stop), threads));
            }
            BusMode::Memory => {
                self.store.store(None);
                for (stop, task, threads) in tasks.drain(..) {
                    stop.cancel();
                    drop(task.await); // it was told if it failed; nothing is lost but notices
                    drop(crate::watch::blocking("ledger.threads", move || threads.join()).await);
                }
                self.watch_over.forget(STORE);
            }
            BusMode::WriteThrough => {}
        }
        Ok(())
    }

    /// Copies the bus into `database` until `stop`; after a failure from then on.
    fn keep_store(&self, database: Database<BusCommand>, stop: CancellationToken) -> JoinHandle<()> {
        let (bus, retention_days, expiry) = (self.bus.clone(), self.retention_days.clone(), self.sinks.expiry.clone());
        let mut subscriber = Some(self.bus.subscribe());
        let until = stop.clone();
        self.watch_over.keep(STORE, &stop, move || {
            let subscriber = subscriber.take().unwrap_or_else(|| bus.subscribe());
            write_through(bus.clone(), subscriber, database.clone(), retention_days.subscribe(), expiry.clone(), until.clone())
        })
    }

    /// How the request of a known event ended, if it has.
    pub(super) async fn known_end(&self, seq: i64) -> Result<Option<End>, String> {
        let read =
            self.ledgers.nexus.readers.read(move |connection| Ok((request_by_event(connection, seq)?, deliveries_of(connection, seq)?)));
        let (request, deliveries) = read.await.map_err(|error| describe(&error))?;
        let Some(request) = request else { return Ok(None) };
        let status = Status::parse(&request.status).filter(|status| status.is_terminal());
        let answer = deliveries.iter().filter(|delivery| delivery.is_answer());
        let text: String = answer.map(|delivery| delivery.content.as_str()).collect();
        Ok(status.map(|status| End {
            request_id: request.request_id,
            status,
            reason: request.reason,
            text: (!text.is_empty()).then_some(text),
            agent: request.agent,
            session: request.session,
        }))
    }

    /// Looks at this daemon's ledgers and what its agents need, on a thread that may block; at its clock, plugins and health.
    async fn look(&self) -> Answer {
        let Ok(room) = self.examining.clone().try_acquire_owned() else {
            return Err(Refusal::new(StatusCode::CONFLICT, "the ledgers are being examined; try again in a moment"));
        };
        let directory = self.ledgers.nexus.readers.path().parent().map(std::path::Path::to_owned).unwrap_or_default();
        let kept = (room, self.ledgers.long_reads());
        let asked = doctor::record::Examined { directory, epoch: Some(self.pipeline.epoch), now_ms: clock::wall_ms() };
        let (config, workspace) = (self.config.load_full(), self.paths.workspace.clone());
        let looked = crate::watch::blocking("doctor", move || {
            let _kept = kept; // to the end, whether or not who asked still waits
            let mut findings = doctor::record::examine(&asked);
            findings.extend(doctor::agents::findings(&config, &workspace, doctor::agents::Looker::Daemon));
            findings
        });
        let mut findings = looked.await.map_err(|error| Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))?;
        findings.push(doctor::host::clock(self.sinks.expiry.doubt()));
        findings.extend(doctor::plugins::reported(&self.plugins.report(), &self.pipeline.automations.report()));
        findings.extend(doctor::health::findings(&status::parts(self)));
        Ok(json!({ "findings": findings }))
    }

    async fn adapter_do(&self, adapter: String, account: String, verb: String) -> Answer {
        let key = AccountKey::new(adapter, account);
        let handle = self.adapters.get(&key).map_err(refused)?;
        match (verb.as_str(), handle.child()) {
            ("start" | "stop" | "restart", None) => {
                return Err(Refusal::new(
                    StatusCode::CONFLICT,
                    format!("account `{key}` has `monitor: false`: there is nothing to {verb}"),
                ));
            }
            ("start", Some(child)) => {
                child.start().await;
                child.settled(SETTLE_LIMIT).await;
            }
            ("stop", Some(_)) => handle.stop(false).await,
            ("restart", Some(child)) => {
                handle.restart().await;
                child.settled(SETTLE_LIMIT).await;
            }
            ("backfill", _) => {
                let info = self.adapters.info(&key.adapter).await.map_err(refused)?;
                if !info.can(Capability::Backfill) {
                    return Err(Refusal::new(StatusCode::CONFLICT, format!("adapter `{}` doesn't support backfill", key.adapter)));
                }
                if !handle.backfill() {
                    return Err(Refusal::new(StatusCode::CONFLICT, format!("a backfill of `{key}` is running")));
                }
            }
            ("health", _) => {
                let (health, error) = handle.probe().await;
                return Ok(json!({ "adapter": key.adapter, "account": key.account, "health": health, "error": error }));
            }
            _ => return Err(Refusal::new(StatusCode::NOT_FOUND, "an account can be told start, stop, restart, backfill or health")),
        }
        Ok(json!(handle.report()))
    }

    async fn resolve(&self, delivery_id: String, retry: bool, seen: Option<String>) -> Answer {
        let resolution = if retry { Resolution::Retry } else { Resolution::Discard };
        let failed = |error: String| Refusal::new(StatusCode::SERVICE_UNAVAILABLE, error);
        match self.outbox.resolve(&delivery_id, resolution, seen.as_deref()).await.map_err(|error| failed(format!("{error:#}")))? {
            Resolved::Done { before } => {
                Ok(json!({ "delivery_id": delivery_id, "before": before, "now": if retry { "pending" } else { "discarded" } }))
            }
            Resolved::NotNow { status } => {
                Err(Refusal::new(StatusCode::CONFLICT, format!("delivery `{delivery_id}` was `{status}`: that can't be done now")))
            }
            Resolved::Unknown => Err(Refusal::new(StatusCode::NOT_FOUND, crate::unknown::delivery(&delivery_id))),
        }
    }
}

fn refused(error: VerbError) -> Refusal {
    let status = match &error {
        VerbError::NoAdapter(_) | VerbError::NoAccount(_) => StatusCode::NOT_FOUND,
        VerbError::Refused(_) => StatusCode::CONFLICT,
    };
    Refusal::new(status, error.to_string())
}

impl Verbs for Control {
    fn health(&self) -> (Overall, Value) {
        status::health(self)
    }

    fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Acquire)
    }

    fn metrics(&self) -> Result<String, String> {
        housekeeping::refresh_gauges(self);
        self.metrics.text().map_err(|error| error.to_string())
    }

    fn status(&self) -> Value {
        status::status(self)
    }

    fn budgets(&self) -> BoxFuture<'_, Answer> {
        Box::pin(async move {
            let budgets = self.pipeline.budgets().await;
            budgets.map(|budgets| json!(budgets)).map_err(|error| Refusal::new(StatusCode::SERVICE_UNAVAILABLE, describe(&error)))
        })
    }

    fn session_budgets(&self) -> SessionBudgets {
        query::session_budgets(&self.config.load().agents)
    }

    fn adapters(&self) -> BoxFuture<'_, Value> {
        Box::pin(status::adapters(self))
    }

    fn record(&self) -> Record {
        let Ledgers { events, nexus, agents, .. } = &self.ledgers;
        Record { events: events.readers.clone(), nexus: nexus.readers.clone(), agents: agents.readers.clone() }
    }

    fn people(&self) -> People {
        People { identity: self.ledgers.identity.readers.clone(), nexus: self.ledgers.nexus.readers.clone() }
    }

    fn rules(&self) -> Rules {
        let settings = self.pipeline.settings.load();
        Rules { access: settings.access.clone(), default_agent: settings.default_agent.clone(), time_zone: settings.time_zone.clone() }
    }

    fn edit_identity(&self, edit: Edit) -> BoxFuture<'_, Answer> {
        Box::pin(async move {
            let answer = edit.write(&self.ledgers.identity.writer, clock::wall_ms()).await?;
            tracing::info!(%answer, "who is who was changed");
            Ok(answer)
        })
    }

    fn send(&self, message: Message) -> BoxFuture<'_, Result<Accepted, Refusal>> {
        Box::pin(send::accept(self, message))
    }

    fn examine(&self) -> BoxFuture<'_, Answer> {
        Box::pin(self.look())
    }

    fn replay(&self, id: String, ask: Replay) -> BoxFuture<'_, Result<Replayed, Refusal>> {
        Box::pin(replay::replay(self, id, ask))
    }

    fn reload(&self, dry_run: bool) -> BoxFuture<'_, Answer> {
        Box::pin(reload::reload(self, dry_run))
    }

    fn search(&self, question: Question) -> BoxFuture<'_, Answer> {
        Box::pin(search::search(self, question))
    }

    fn rebuild_search(&self, agent: Option<String>) -> BoxFuture<'_, Answer> {
        Box::pin(search::rebuild(self, agent))
    }

    fn resolve_delivery(&self, delivery_id: String, retry: bool, seen: Option<String>) -> BoxFuture<'_, Answer> {
        Box::pin(self.resolve(delivery_id, retry, seen))
    }

    fn backup(&self, directory: Option<PathBuf>) -> BoxFuture<'_, Result<BackupLines, Refusal>> {
        Box::pin(std::future::ready(backup::begin(self, directory)))
    }

    fn fork_session(&self, name: String, fork: Fork) -> BoxFuture<'_, Answer> {
        Box::pin(sessions::fork(&self.ledgers, name, fork))
    }

    fn archive_session(&self, name: String, undo: bool) -> BoxFuture<'_, Answer> {
        Box::pin(sessions::archive(&self.ledgers, name, undo))
    }

    fn session_stopped(&self, label: &str) -> Option<&'static str> {
        self.pipeline.breakers.open_in(label, clock::mono_ms())
    }

    fn stop_session(&self, name: String) -> BoxFuture<'_, Answer> {
        Box::pin(sessions::stop(self, name))
    }

    fn adapter_info(&self, name: String) -> BoxFuture<'_, Answer> {
        Box::pin(async move { Ok(json!(self.adapters.info(&name).await.map_err(refused)?)) })
    }

    fn adapter_accounts(&self, name: String) -> BoxFuture<'_, Answer> {
        Box::pin(async move {
            let reported = self.adapters.reported_accounts(&name).await.map_err(refused)?;
            let configured: Vec<String> =
                self.config.load().adapters.get(&name).map(|adapter| adapter.accounts.keys().cloned().collect()).unwrap_or_default();
            Ok(json!({ "configured": configured, "reported": reported }))
        })
    }

    fn adapter_verb(&self, adapter: String, account: String, verb: String) -> BoxFuture<'_, Answer> {
        Box::pin(self.adapter_do(adapter, account, verb))
    }

    fn plugins(&self) -> BoxFuture<'_, Value> {
        Box::pin(status::plugins(self))
    }

    fn plugin_test(&self, name: String, ask: PluginTest) -> BoxFuture<'_, Answer> {
        Box::pin(async move {
            let PluginTest { event, hook } = ask;
            self.plugins.test(&name, event, hook).await.map_err(|error| {
                let status = match &error {
                    TrialError::Unknown(_) => StatusCode::NOT_FOUND,
                    TrialError::Event(_) => StatusCode::BAD_REQUEST,
                    TrialError::Failed(_) => StatusCode::CONFLICT,
                };
                Refusal::new(status, error.to_string())
            })
        })
    }

    fn automations(&self) -> BoxFuture<'_, Answer> {
        Box::pin(automations::list(self))
    }

    fn automation_test(&self, name: String, event: Value) -> BoxFuture<'_, Answer> {
        Box::pin(async move { automations::test(self, &name, event).await })
    }

    fn automation_decide(&self, name: String, decision: Decision) -> BoxFuture<'_, Answer> {
        Box::pin(automations::decide(self, name, decision))
    }

    fn projects(&self) -> BoxFuture<'_, Value> {
        Box::pin(projects::list(self))
    }

    fn project_verb(&self, name: String, verb: ProjectVerb) -> BoxFuture<'_, Answer> {
        Box::pin(projects::verb(self, name, verb))
    }

    fn unmade_project(&self, name: String) -> BoxFuture<'_, Result<Option<ProjectRow>, Refusal>> {
        Box::pin(projects::unmade(self, name))
    }

    fn project_logs(&self, name: String, after: u64, lines: usize) -> BoxFuture<'_, Answer> {
        Box::pin(projects::logs(self, name, after, lines))
    }

    fn nostr(&self) -> Nostr {
        self.nostr.clone()
    }

    fn preparer(&self) -> Preparer {
        self.preparer.clone()
    }

    fn put_away(&self, row: ProjectRow, delete: bool, force: bool) -> BoxFuture<'_, Result<Option<Archived>, PrepareError>> {
        Box::pin(async move { self.projects.put_away(&row, delete, force).await })
    }

    fn stream_opened(&self) {
        self.metrics.sse_clients.inc();
    }

    fn stream_closed(&self) {
        self.metrics.sse_clients.dec();
    }
}
