//! The eleven steps of the start, in order, each logged with its time.

use super::build::settings;
use super::config::{LoadError, ensure_default, load};
use super::control::Control;
use super::lock::{Hold, LastRun, Lock, LockError};
use super::paths::{Paths, PathsError, private_dir};
use super::ready::Ready;
use super::shutdown::Running;
use super::signals::Signals;
use super::{Prologue, StartOptions, housekeeping, status};
use crate::adapter::intake::Sinks;
use crate::adapter::{Adapters, Shared};
use crate::bus::Bus;
use crate::clock;
use crate::error_text::describe;
use crate::http::{Api, Guard, Server};
use crate::keeper::{Keeper, leftovers};
use crate::ledger::events::{last_seq, newest_slot};
use crate::ledger::nexus::{BeginEpoch, RecordConfig, Resolution, instances, uncertain_deliveries};
use crate::ledger::{Ledgers, OpenError, ReadError, writer::WriteError};
use crate::logging::Logging;
use crate::metrics::Metrics;
use crate::pipeline::outbox::Outbox;
use crate::pipeline::pending::Pending;
use crate::pipeline::router::{Router, RouterStats};
use crate::pipeline::{Pipeline, followers, recovery};
use crate::plugin::Plugins;
use crate::replies::Replies;
use crate::routes::{CLI_CHANNEL, Route, Routes};
use crate::supervisor::Supervisor;
use crate::timer;
use arc_swap::ArcSwap;
use nexus_core::config::{Config, OnUncertain};
use nexus_core::notice::NoticeType;
use nexus_core::schedule::{Job, Schedule};
use secrecy::SecretString;
use serde_json::json;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

/// Why a daemon could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Paths(#[from] PathsError),
    #[error(transparent)]
    Lock(#[from] LockError),
    #[error(transparent)]
    Config(#[from] LoadError),
    #[error("{0}")]
    Setting(String),
    #[error("failed to {operation} `{path}`")]
    File {
        operation: &'static str,
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("failed to set up logging: {0}")]
    Logging(String),
    #[error("failed to start the keeper")]
    Keeper(#[source] std::io::Error),
    #[error("failed to start the runtime")]
    Runtime(#[source] std::io::Error),
    #[error(transparent)]
    Ledger(#[from] OpenError),
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error(transparent)]
    Write(#[from] WriteError),
    #[error(transparent)]
    Recovery(#[from] recovery::RecoveryError),
    #[error("failed to listen on {address}; is something else using the port? Choose another with daemon.port or --port")]
    Listen {
        address: String,
        #[source]
        source: std::io::Error,
    },
    #[error("timer: {0}")]
    Timer(String),
}

impl StartError {
    /// 78 (`EX_CONFIG`) when only another configuration can help, else 1.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Config(_) | Self::Setting(_) | Self::Timer(_) => 78,
            Self::Paths(_)
            | Self::Lock(_)
            | Self::File { .. }
            | Self::Logging(_)
            | Self::Keeper(_)
            | Self::Runtime(_)
            | Self::Ledger(_)
            | Self::Read(_)
            | Self::Write(_)
            | Self::Recovery(_)
            | Self::Listen { .. } => 1,
        }
    }
}

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
    }
}

/// Steps 1 to 3 and the keeper, before the runtime and its threads exist.
pub(super) fn prologue(options: StartOptions) -> Result<(Hold, Prologue), StartError> {
    let began = Instant::now();
    let paths = Paths::resolve(options.config.as_deref())?;
    let before = LastRun::read(&paths);
    let lock = Lock::acquire(&paths, |pid| say(&format!("cleaning up after PID {pid}")))?;
    let unclean_start = before.as_ref().is_some_and(|run| run.clean != Some(true));
    let mut hold = Hold::new(paths.clone(), lock, before);
    ensure_default(&paths)
        .map(|made| {
            if made {
                say(&format!("created {}", paths.config_file.display()))
            }
        })
        .map_err(|source| StartError::File { operation: "create", path: paths.config_file.clone(), source })?;
    let loaded = load(&paths)?;
    let level = options.log_level.unwrap_or(loaded.config.daemon.log_level);
    let log_file = options.detached.then(|| paths.log_file());
    for directory in [paths.run_dir(), paths.state_dir.join("logs")] {
        private_dir(&directory).map_err(|source| StartError::File { operation: "create", path: directory, source })?;
    }
    let logging = Logging::install(level, log_file).map_err(|error| StartError::Logging(error.to_string()))?;
    hold.begin().map_err(|source| StartError::File { operation: "write", path: paths.last_run(), source })?;
    let instance = instance(&paths)?;
    let cleared = leftovers::clear_marked(&instance);
    if !cleared.killed.is_empty() || !cleared.left.is_empty() {
        tracing::warn!(
            killed = cleared.killed.len(),
            left = cleared.left.len(),
            "leftovers of a daemon and its keeper that were both killed"
        );
    }
    let lock_file = hold.lock_file().map_err(StartError::Keeper)?;
    let keeper = crate::keeper::launch(&lock_file).map_err(StartError::Keeper)?;
    hold.keeper_is(keeper.pid);
    Ok((hold, Prologue { options, paths, lock_file, unclean_start, instance, loaded, logging, keeper, began }))
}

/// The random name of this state directory, made once.
fn instance(paths: &Paths) -> Result<String, StartError> {
    let path = paths.instance();
    let known = std::fs::read_to_string(&path).unwrap_or_default().trim().to_owned();
    if known.len() == 26 {
        return Ok(known);
    }
    let new = ulid::Ulid::generate().to_string();
    crate::credential::write_private(&path, new.as_bytes()).map_err(|source| StartError::File { operation: "write", path, source })?;
    Ok(new)
}

/// A line for whoever watches the start; JSON logs go elsewhere.
fn say(line: &str) {
    use std::io::Write;
    drop(writeln!(std::io::stderr(), "{line}")); // nobody may be there to read it
}

/// Steps 4 to 11.
pub(super) async fn start(prologue: Prologue, ready: &Ready) -> Result<Running, StartError> {
    let Prologue { options, paths, lock_file, unclean_start, instance, loaded, logging, keeper, began } = prologue;
    // Heard from now on, obeyed once the start is complete.
    let signals = Signals::listen().map_err(StartError::Runtime)?;
    let mut steps = Steps { last: began, number: 0 };
    steps.done("lock, config and logging (steps 1 to 3)");
    steps.number = 3;
    let config = Arc::new(effective(&loaded.config, &options));
    loaded.warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
    let (keeper, keeper_task) = Keeper::start(keeper, &instance, lock_file).map_err(StartError::Keeper)?;

    let data_dir = paths.data_dir(&config.ledgers.directory);
    let (ledgers, threads) = Ledgers::start(&data_dir, clock::wall_ms())?;
    let begun = ledgers.nexus.writer.write(BeginEpoch { at: clock::wall_ms(), owner: instance.clone() }).await?;
    let epoch = begun.epoch;
    steps.done("databases");

    let metrics = Metrics::new();
    let bus = Bus::new(epoch, usize::try_from(config.bus.ring).unwrap_or(usize::MAX));
    steps.done("event bus");

    let plugins = Arc::new(Plugins::new(&config.plugins.enabled));
    steps.done("plugins");

    let settings = settings(&config, &keeper, &paths.workspace).map_err(|error| StartError::Setting(describe(&error)))?;
    let recovered = recovery::recover(&ledgers, &settings, begun.interrupted, epoch).await?;
    let routes = Routes::default();
    routes.set(CLI_CHANNEL, cli_route());
    let outbox = Outbox::new(ledgers.clone(), routes.clone(), bus.clone(), metrics.clone(), epoch);
    let stop = CancellationToken::new();
    let committed = Arc::new(watch::Sender::new(ledgers.events.readers.read(last_seq).await?));
    let (turns, turns_applied) = watch::channel(followers::turns_mark(&ledgers).await?);
    let finished = Arc::new(Notify::new());
    let (admitted, admitted_view) = watch::channel(0);
    let pipeline = Arc::new(Pipeline {
        ledgers: ledgers.clone(),
        settings: ArcSwap::from_pointee(settings),
        bus: bus.clone(),
        metrics: metrics.clone(),
        plugins: plugins.clone(),
        routes: routes.clone(),
        replies: Replies::default(),
        outbox: outbox.clone(),
        turns_applied,
        admitted: admitted_view,
        finished: finished.clone(),
        epoch,
        abandon: CancellationToken::new(),
    });
    let watch_over = housekeeping::Watch::new(bus.clone());
    let tasks = vec![
        watch_over.spawn("agents follower", followers::follow_turns(ledgers.clone(), bus.clone(), finished, turns, stop.clone()), &stop),
        watch_over.spawn("identity follower", followers::follow_contacts(ledgers.clone(), committed.subscribe(), stop.clone()), &stop),
        watch_over.spawn("outbound follower", followers::follow_sent(ledgers.clone(), stop.clone()), &stop),
    ];
    for (name, adapter) in &config.adapters {
        // Recovered requests may be answered before their adapter is up: they wait for its route.
        routes.set(name, Route::unknown(&adapter.send, None));
    }
    let pending = Pending::default();
    let (stats, router_stats) = watch::channel(RouterStats::default());
    let (router, router_task) = Router::start(pipeline.clone(), committed.subscribe(), admitted, pending.clone(), stats).await?;
    steps.done("pipeline");

    let (disk, disk_low) = watch::channel(false);
    let sinks = Sinks {
        writer: ledgers.events.writer.clone(),
        committed,
        pending,
        bus: bus.clone(),
        metrics: metrics.clone(),
        disk_low: disk_low.clone(),
    };
    let supervisor = Supervisor::new(keeper, metrics.clone());
    let known = ledgers.nexus.readers.read(instances).await?;
    let shared = Shared {
        supervisor: supervisor.clone(),
        ledgers: ledgers.clone(),
        sinks: sinks.clone(),
        routes: routes.clone(),
        router: router.clone(),
        workspace: paths.workspace.clone(),
        credentials: paths.credentials_dir(),
        run_dir: paths.run_dir(),
        epoch,
        unclean_start,
        stop: stop.clone(),
    };
    let adapters = Arc::new(Adapters::new(shared, known));
    let (timer_settings, timer_view) = watch::channel(config.timer.clone());
    let control = Arc::new(Control {
        paths: paths.clone(),
        flags: (options.log_level, options.port),
        detached: options.detached,
        logging: logging.clone(),
        config: ArcSwap::new(config.clone()),
        ledgers: ledgers.clone(),
        bus: bus.clone(),
        store: Arc::default(),
        store_tasks: tokio::sync::Mutex::new(Vec::new()),
        metrics: metrics.clone(),
        plugins,
        pipeline: pipeline.clone(),
        router_stats,
        adapters: adapters.clone(),
        supervisor: supervisor.clone(),
        outbox: outbox.clone(),
        timer_settings,
        sinks: sinks.clone(),
        disk_low,
        watch_over: watch_over.clone(),
        http_address: std::sync::OnceLock::new(),
        ready: std::sync::atomic::AtomicBool::new(false),
        reloading: tokio::sync::Mutex::new(()),
        began,
        stop: stop.clone(),
    });
    control.set_bus_mode(&config).await?;
    let server = Server::new();
    let listener = listen(&config).await?;
    let address = listener.local_addr().map_err(|source| StartError::Listen { address: config.daemon.host.clone(), source })?;
    // Set once, here.
    control.http_address.set(address).ok();
    let api = Api { bus: bus.clone(), store: control.store.clone(), daemon: control.clone(), stop: stop.clone() };
    server.serve_tcp(listener, api.clone(), guard(&config, &paths)?);
    server.serve_unix(socket(&paths)?, api);
    steps.done("HTTP server");

    outbox.resume().await?;
    retry_uncertain(&control, &config).await?;
    for (name, adapter) in &config.adapters {
        adapters.add(name, adapter).await;
    }
    steps.done("adapters");

    let schedule = schedule(&config, &ledgers).await?;
    let mut tasks = tasks;
    tasks.push(watch_over.spawn("timer", timer::run(schedule, timer_view, sinks, stop.clone()), &stop));
    tasks.push(watch_over.spawn("housekeeping", housekeeping::run(control.clone(), disk, data_dir, stop.clone()), &stop));
    steps.done("timer");

    let text = loaded.show();
    ledgers.nexus.writer.write(RecordConfig { text, at: clock::wall_ms() }).await?;
    control.ready.store(true, std::sync::atomic::Ordering::Release);
    bus.publish(NoticeType::SystemStarted, json!({ "version": env!("CARGO_PKG_VERSION"), "pid": std::process::id() }));
    steps.done("ready");
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        pid = std::process::id(),
        ms = began.elapsed().as_millis() as u64,
        recovered = recovered.rerun,
        failed = recovered.failed,
        "Daemon started"
    );
    let summary = status::summary(&control);
    if !options.detached {
        say(&summary);
    }
    ready.succeeded(&summary);
    Ok(Running { signals, paths, logging, control, server, router, router_task, keeper_task, threads, tasks, timer_stop: stop })
}

/// The configuration with what the command line says on top.
pub(super) fn effective(config: &Config, options: &StartOptions) -> Config {
    let mut config = config.clone();
    config.daemon.log_level = options.log_level.unwrap_or(config.daemon.log_level);
    config.daemon.port = options.port.unwrap_or(config.daemon.port);
    config
}

fn cli_route() -> Route {
    struct ControlSocket;
    impl crate::routes::Sender for ControlSocket {
        fn send<'a>(
            &'a self,
            delivery: &'a crate::ledger::nexus::Delivery,
        ) -> crate::supervisor::BoxFuture<'a, Result<nexus_core::protocol::SendOutcome, crate::keeper::SpawnError>> {
            Box::pin(async { Ok(nexus_core::protocol::SendOutcome::Sent { message_ids: vec![delivery.delivery_id.clone()] }) })
        }
    }
    Route {
        known: true,
        sender: Some(Arc::new(ControlSocket)),
        text_limit: 0,
        capabilities: json!({ "supports_markdown": true, "supports_code_blocks": true }),
        retries: 0,
        on_uncertain: OnUncertain::Hold,
        ttl_ms: 3_600_000,
    }
}

/// Takes up uncertain deliveries again where the adapter's config says so. All of them, not only
/// those of the last stop: the daemon may have been killed before it came this far.
async fn retry_uncertain(control: &Control, config: &Config) -> Result<(), StartError> {
    let uncertain = control.ledgers.nexus.readers.read(uncertain_deliveries).await?;
    let mut held = 0;
    for delivery in uncertain {
        let send = config.adapters.get(&delivery.adapter).map(|adapter| &adapter.send);
        if send.is_some_and(|send| send.on_uncertain == OnUncertain::Retry && delivery.attempts <= send.retries) {
            if let Err(error) = control.outbox.resolve(&delivery.delivery_id, Resolution::Retry).await {
                tracing::warn!(delivery_id = delivery.delivery_id, %error, "an uncertain delivery was not taken up again");
            }
        } else {
            held += 1;
        }
    }
    if held > 0 {
        tracing::warn!(deliveries = held, "it is uncertain whether these arrived; see `nexus deliveries list --status uncertain`");
    }
    Ok(())
}

async fn listen(config: &Config) -> Result<TcpListener, StartError> {
    let address = format!("{}:{}", config.daemon.host, config.daemon.port);
    TcpListener::bind(&address).await.map_err(|source| StartError::Listen { address, source })
}

fn guard(config: &Config, paths: &Paths) -> Result<Guard, StartError> {
    let token = match &config.daemon.token_file {
        Some(file) => {
            let path = paths.workspace.join(file);
            let text =
                std::fs::read_to_string(&path).map_err(|source| StartError::File { operation: "read", path: path.clone(), source })?;
            let token = text.trim().to_owned();
            if token.len() < 16 {
                return Err(StartError::Setting(format!("the token in `{}` is shorter than 16 characters", path.display())));
            }
            Some(Arc::new(SecretString::from(token)))
        }
        None => None,
    };
    Ok(Guard { host: config.daemon.host.clone(), token })
}

fn socket(paths: &Paths) -> Result<UnixListener, StartError> {
    use std::os::unix::fs::PermissionsExt;
    let path = paths.socket();
    let failed = |operation| {
        let path = path.clone();
        move |source| StartError::File { operation, path, source }
    };
    // The lock is ours, so a socket that lies there is a dead daemon's.
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(failed("remove")(error)),
        Ok(()) | Err(_) => {}
    }
    let listener = UnixListener::bind(&path).map_err(failed("listen on"))?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).map_err(failed("protect"))?;
    Ok(listener)
}

/// The timer's schedule, going on from the newest slot that each job has in the ledger.
async fn schedule(config: &Config, ledgers: &Ledgers) -> Result<Schedule, StartError> {
    let zone = timer::zone(&config.timer.timezone).map_err(StartError::Timer)?;
    let timer = config.timer.clone();
    let built = ledgers.events.readers.read(move |connection| {
        let last = |job: &Job| {
            let prefix = match job {
                Job::Heartbeat => "timer:heartbeat:".to_owned(),
                Job::Cron { label, .. } => format!("timer:cron:{label}:"),
            };
            newest_slot(connection, &prefix).ok().flatten()
        };
        Ok(Schedule::new(&timer, zone, clock::wall_ms(), &last))
    });
    built.await?.map_err(|error| StartError::Timer(error.to_string()))
}

/// The address that the daemon listens on, as shown.
pub(super) fn shown(address: Option<&SocketAddr>) -> String {
    address.map_or_else(|| "-".into(), ToString::to_string)
}
