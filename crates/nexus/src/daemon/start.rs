//! Steps 4 to 11 of the start, in order, each logged with its time.

use super::control::Control;
use super::engine::{self, Engine, Ground};
use super::error::StartError;
use super::paths::Paths;
use super::progress::Progress;
use super::prologue::say;
use super::ready::Ready;
use super::shutdown::Running;
use super::signals::Signals;
use super::soundness::{self, Soundness};
use super::{Prologue, StartOptions, housekeeping, listen, projects, status, waits};
use crate::adapter::intake::Sinks;
use crate::adapter::{Adapters, Shared};
use crate::agent::acp::AcpAgents;
use crate::agent::mcp::Servers;
use crate::agent::questions::Questions;
use crate::bus::Bus;
use crate::clock;
use crate::error_text::describe;
use crate::http::{Api, Server, VERBS_MAX};
use crate::keeper::{Cgroup, Keeper};
use crate::ledger::events::newest_slot;
use crate::ledger::nexus::{BeginEpoch, RESTORED_AT, RecordConfig, counter};
use crate::ledger::{Ledgers, optional};
use crate::metrics::Metrics;
use crate::pipeline::Pipeline;
use crate::plugin::{Plugins, Shared as PluginShared};
use crate::search::fill;
use crate::supervisor::Supervisor;
use crate::timer;
use crate::watch::Watch;
use arc_swap::ArcSwap;
use nexus_core::config::{self, Config};
use nexus_core::notice::NoticeType;
use nexus_core::schedule::{Job, Schedule};
use serde_json::json;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// How long the summary waits for adapters that are starting.
const SUMMARY_PATIENCE: Duration = Duration::from_millis(500);

/// Times the steps.
struct Steps {
    last: Instant,
    number: u32,
}

impl Steps {
    fn done(&mut self, what: &str) {
        self.number += 1;
        let now = Instant::now();
        let ms = now.duration_since(self.last).as_secs_f64() * 1000.0;
        self.last = now;
        tracing::info!(step = self.number, ms = (ms * 10.0).round() / 10.0, "start: {what}");
        crate::torture::step("start", what);
    }
}

/// Steps 4 to 11.
#[expect(clippy::too_many_lines, reason = "the eleven steps, top to bottom, and nothing else")]
pub(super) async fn start(prologue: Prologue, ready: &Ready) -> Result<Running, StartError> {
    let Prologue { options, paths, lock_file, instance, cgroup, loaded, logging, keeper, check_due, began } = prologue;
    // Heard from now on, obeyed once the start is complete.
    let signals = Signals::listen().map_err(StartError::Runtime)?;
    let mut steps = Steps { last: began, number: 0 };
    steps.done("lock");
    steps.done("config");
    steps.done("logging");
    let config = Arc::new(effective(&loaded.config, &options));
    loaded.warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
    let (metrics, stop) = (Metrics::new(), CancellationToken::new());
    let watch_over = Watch::new(metrics.clone());
    watch_over.hear_of_helpers();
    let admitted = admit(&cgroup, keeper.pid);
    let keeper_part = watch_over.part("keeper");
    let (keeper, keeper_task) = Keeper::start(keeper, &instance, lock_file, cgroup.clone(), keeper_part).map_err(StartError::Keeper)?;

    let data_dir = paths.data_dir(&config.ledgers.directory);
    let (ledgers, threads) = Ledgers::start(&data_dir, clock::wall_ms())?;
    let begun = ledgers.nexus.writer.write(BeginEpoch { at: clock::wall_ms() }).await?;
    steps.done("databases");

    let bus = Bus::new(begun.epoch, usize::try_from(config.bus.ring).unwrap_or(usize::MAX));
    watch_over.publish_on(bus.clone());
    steps.done("event bus");

    // From here on children may be started.
    admitted.await.map_err(|error| StartError::Keeper(std::io::Error::other(error)))?;
    let supervisor = Supervisor::new(keeper, metrics.clone(), watch_over.clone());
    let plugins = Arc::new(Plugins::new(&config.plugins.enabled));
    let servers = Servers::new(supervisor.clone(), paths.workspace.clone(), Some(bus.clone()));
    let questions = Questions::default();
    let acp = AcpAgents::new(supervisor.clone(), ledgers.agents.clone(), questions.clone(), bus.clone(), watch_over.clone());
    // Before the requests that an earlier daemon left.
    servers.apply(&config.agents).await;
    let near = projects::Near {
        paths: &paths,
        config: &config,
        supervisor: &supervisor,
        ledgers: &ledgers,
        bus: &bus,
        metrics: &metrics,
        watch_over: &watch_over,
        stop: &stop,
    };
    let (nostr, preparer, projects) = projects::make(near).await?;
    let ground = Ground {
        config: &config,
        workspace: &paths.workspace,
        keeper: supervisor.keeper(),
        servers: &servers,
        acp: &acp,
        questions: &questions,
        projects: &projects,
        ledgers: &ledgers,
        bus: &bus,
        metrics: &metrics,
        plugins: &plugins,
        plugins_need: PluginShared {
            supervisor: supervisor.clone(),
            bus: bus.clone(),
            metrics: metrics.clone(),
            watch_over: watch_over.clone(),
            directory: paths.plugins_dir(&config.plugins.directory),
            run_dir: paths.run_dir(),
            stop: stop.clone(),
        },
        automations_dir: paths.automations_dir(),
        watch_over: &watch_over,
        stop: &stop,
        epoch: begun.epoch,
    };
    let mut engine = engine::start(ground, begun.interrupted, || steps.done("plugins")).await?;
    steps.done("pipeline");

    let (disk, disk_low) = watch::channel(false);
    // Before any adapter is read.
    housekeeping::watch_disk(&data_dir, config.ledgers.min_free_mb, &disk);
    engine.tasks.push(keep_cortex(&watch_over, &engine.pipeline, &disk_low, &stop));
    let (timer_settings, timer_view) = watch::channel(config.timer.clone());
    let sinks = sinks(&ledgers, &engine, &bus, &metrics, &disk_low);
    let adapters = adapters(&paths, &ledgers, &supervisor, &sinks, &engine, &stop);
    let control = Arc::new(Control {
        paths: paths.clone(),
        options,
        logging: logging.clone(),
        config: ArcSwap::new(config.clone()),
        ledgers: ledgers.clone(),
        bus: bus.clone(),
        store: Arc::default(),
        store_tasks: tokio::sync::Mutex::new(Vec::new()),
        retention_days: tokio::sync::watch::Sender::new(config.bus.retention_days),
        metrics,
        plugins,
        pipeline: engine.pipeline.clone(),
        router: engine.router.clone(),
        router_stats: engine.router_stats.clone(),
        adapters,
        acp,
        supervisor,
        servers,
        preparer,
        projects,
        nostr,
        outbox: engine.outbox.clone(),
        timer_settings,
        sinks: sinks.clone(),
        disk_low,
        soundness: Soundness::new(check_due),
        watch_over: watch_over.clone(),
        http_address: std::sync::OnceLock::new(),
        ready: std::sync::atomic::AtomicBool::new(false),
        progress: Progress::default(),
        reloading: tokio::sync::Mutex::new(()),
        examining: Arc::new(Semaphore::new(1)),
        backing_up: Arc::default(),
        began,
        cgroup,
        replaying: tokio::sync::Mutex::new(()),
        deliveries: ArcSwap::default(),
        stop: stop.clone(),
    });
    let of_health = Arc::downgrade(&control);
    control.pipeline.wellbeing.ask(Box::new(move || of_health.upgrade().map(|control| status::wellbeing(&control))));
    control.set_bus_mode(&config).await?;
    let server = serve(&control, &config).await?;
    steps.done("HTTP server");

    for (name, adapter) in &config.adapters {
        control.adapters.add(name, adapter).await;
    }
    control.nostr.begin(control.sinks.clone(), engine.routes.clone());
    control.nostr.apply(&config.nostr).await;
    steps.done("adapters");

    engine.tasks.extend(control.projects.keep(&watch_over, &stop));
    let schedule = schedule(&config.timer, &ledgers).await?;
    engine.tasks.push(keep_timer(&watch_over, schedule, timer_view, sinks, ledgers.clone(), &stop));
    let (of_housekeeping, until, of_check) = (control.clone(), stop.clone(), data_dir.clone());
    engine
        .tasks
        .push(watch_over.keep("housekeeping", &stop, move || {
            housekeeping::run(of_housekeeping.clone(), disk.clone(), data_dir.clone(), until.clone())
        }));
    let (of_waits, until) = (control.clone(), stop.clone());
    engine.tasks.push(watch_over.keep("project waits", &stop, move || waits::run(of_waits.clone(), until.clone())));
    let (of_plugins, until) = (control.plugins.clone(), stop.clone());
    engine.tasks.push(watch_over.keep("plugins", &stop, move || of_plugins.clone().watch_files(until.clone())));
    let (of_automations, until) = (engine.pipeline.automations.clone(), stop.clone());
    engine.tasks.push(watch_over.keep("automations", &stop, move || of_automations.clone().watch_files(until.clone())));
    steps.done("timer");

    ledgers.nexus.writer.write(RecordConfig { text: loaded.show(), at: clock::wall_ms() }).await?;
    control.ready.store(true, std::sync::atomic::Ordering::Release);
    bus.publish(NoticeType::SystemStarted, json!({ "version": env!("CARGO_PKG_VERSION"), "pid": std::process::id() }));
    steps.done("ready");
    engine.tasks.push(check_ledgers(&control, of_check));
    tell(&control, &engine, ready).await;
    let Engine { router, router_task, tasks, .. } = engine;
    Ok(Running { signals, paths, logging, control, server, router, router_task, keeper_task, threads, tasks, timer_stop: stop })
}

/// The kernel takes its time to move a process; meanwhile the ledgers are opened.
fn admit(cgroup: &Arc<Cgroup>, keeper: i32) -> tokio::task::JoinHandle<()> {
    let cgroup = cgroup.clone();
    crate::watch::blocking("cgroup", move || cgroup.admit(keeper))
}

fn sinks(ledgers: &Ledgers, engine: &Engine, bus: &Bus, metrics: &Metrics, disk_low: &watch::Receiver<bool>) -> Sinks {
    Sinks {
        writer: ledgers.events.writer.clone(),
        readers: ledgers.events.readers.clone(),
        committed: engine.committed.clone(),
        pending: engine.pending.clone(),
        expiry: engine.expiry.clone(),
        bus: bus.clone(),
        metrics: metrics.clone(),
        disk_low: disk_low.clone(),
    }
}

/// No adapter yet, but all that they will share.
fn adapters(
    paths: &Paths,
    ledgers: &Ledgers,
    supervisor: &Supervisor,
    sinks: &Sinks,
    engine: &Engine,
    stop: &CancellationToken,
) -> Arc<Adapters> {
    let shared = Shared {
        supervisor: supervisor.clone(),
        ledgers: ledgers.clone(),
        sinks: sinks.clone(),
        routes: engine.routes.clone(),
        router: engine.router.clone(),
        watch_over: engine.pipeline.watch_over.clone(),
        workspace: paths.workspace.clone(),
        credentials: paths.credentials_dir(),
        run_dir: paths.run_dir(),
        epoch: engine.pipeline.epoch,
        stop: stop.clone(),
    };
    Arc::new(Adapters::new(shared))
}

/// Opens both listeners and serves them.
async fn serve(control: &Arc<Control>, config: &Config) -> Result<Server, StartError> {
    let server = Server::new(control.watch_over.clone());
    let listener = listen::tcp(config).await?;
    let address = listener.local_addr().map_err(|source| StartError::Listen { address: config.daemon.host.clone(), source })?;
    // Set once, here.
    control.http_address.set(address).ok();
    let api = Api {
        bus: control.bus.clone(),
        store: control.store.clone(),
        daemon: control.clone(),
        verbs: Arc::new(Semaphore::new(VERBS_MAX)),
        stop: control.stop.clone(),
    };
    server.serve_tcp(listener, api.clone(), listen::guard(config, &control.paths)?);
    server.serve_unix(listen::unix(&control.paths)?, api);
    Ok(server)
}

/// Says that the start is complete: to the log, to the terminal, to who waits for it.
async fn tell(control: &Control, engine: &Engine, ready: &Ready) {
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        pid = std::process::id(),
        ms = control.began.elapsed().as_millis() as u64,
        recovered = engine.recovered.rerun,
        failed = engine.recovered.failed,
        "Daemon started"
    );
    if let Some(warning) = status::unheard(control) {
        tracing::warn!("{warning}");
    }
    ready.succeeded(&status::summary(control));
    if !control.options.detached {
        // Ready is said already; the summary may wait until most adapters are what they will be.
        let settled = async {
            let mut tick = tokio::time::interval(Duration::from_millis(20));
            while status::is_anybody_starting(control) {
                tick.tick().await;
            }
        };
        tokio::time::timeout(SUMMARY_PATIENCE, settled).await.ok();
        say(&status::summary(control));
    }
}

/// The configuration with what the command line says on top.
pub(super) fn effective(config: &Config, options: &StartOptions) -> Config {
    let mut config = config.clone();
    config.daemon.log_level = options.log_level.unwrap_or(config.daemon.log_level);
    config.daemon.port = options.port.unwrap_or(config.daemon.port);
    let more = options.whitelist.iter().filter(|key| !config.nostr.whitelist.contains(key)).cloned().collect::<Vec<_>>();
    config.nostr.whitelist.extend(more);
    config.know_whitelist();
    if let Some(path) = &options.projects_path {
        config.projects.path.clone_from(path);
    }
    config
}

/// The follower that fills what can be searched; after a failure it goes on from what the files have.
fn keep_cortex(watch_over: &Watch, pipeline: &Arc<Pipeline>, disk_low: &watch::Receiver<bool>, stop: &CancellationToken) -> JoinHandle<()> {
    let (pipeline, disk_low, until) = (pipeline.clone(), disk_low.clone(), stop.clone());
    watch_over.keep("cortex follower", stop, move || fill::follow(pipeline.clone(), disk_low.clone(), until.clone()))
}

/// The look at the ledgers' files, which nothing waits for.
fn check_ledgers(control: &Arc<Control>, directory: PathBuf) -> JoinHandle<()> {
    let control = control.clone();
    crate::watch::helper(soundness::CHECK, async move {
        let (watch_over, stop) = (control.watch_over.clone(), control.stop.clone());
        watch_over.until_done(soundness::CHECK, &stop, || soundness::check(control.clone(), directory.clone(), stop.clone())).await;
    })
}

/// The timer; after a failure it goes on from what the ledger has of it.
fn keep_timer(
    watch_over: &Watch,
    first: Schedule,
    settings: watch::Receiver<config::Timer>,
    sinks: Sinks,
    ledgers: Ledgers,
    stop: &CancellationToken,
) -> JoinHandle<()> {
    let (mut first, until) = (Some(first), stop.clone());
    watch_over.keep("timer", stop, move || {
        let (first, settings, sinks, ledgers, until) = (first.take(), settings.clone(), sinks.clone(), ledgers.clone(), until.clone());
        async move {
            let now = settings.borrow().clone();
            let schedule = match first {
                Some(first) => Ok(first),
                None => schedule(&now, &ledgers).await,
            };
            match schedule {
                Ok(schedule) => timer::run(schedule, settings, sinks, until).await,
                Err(error) => tracing::error!(error = %describe(&error), "the timer's schedule can't be made"),
            }
        }
    })
}

/// The timer's schedule, going on from the newest slot that each job has in the ledger. Slots that were
/// due before a restore are settled: whatever ran then may have fired them.
async fn schedule(timer: &config::Timer, ledgers: &Ledgers) -> Result<Schedule, StartError> {
    let zone = timer::zone(&timer.timezone).map_err(StartError::Timer)?;
    let timer = timer.clone();
    let restored = ledgers.nexus.readers.read(|connection| optional(counter(connection, RESTORED_AT))).await?;
    // The clock may have been ahead then; no slot that is still to come is settled.
    let restored = restored.map(|at| at.min(clock::wall_ms()));
    let built = ledgers.events.readers.read(move |connection| {
        let last = |job: &Job| {
            let prefix = match job {
                Job::Heartbeat => "timer:heartbeat:".to_owned(),
                Job::Cron { label, .. } => format!("timer:cron:{label}:"),
            };
            let newest = newest_slot(connection, &prefix).ok().flatten();
            newest.map(|slot| slot.max(restored.unwrap_or(slot)))
        };
        Ok(Schedule::new(&timer, zone, clock::wall_ms(), &last))
    });
    built.await?.map_err(|error| StartError::Timer(error.to_string()))
}
