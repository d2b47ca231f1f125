//! Puts the pipeline together on open ledgers: recovery, outbox, followers, router.

use super::build::settings;
use super::error::StartError;
use crate::agent::acp::AcpAgents;
use crate::agent::mcp::Servers;
use crate::agent::questions::Questions;
use crate::bus::Bus;
use crate::clock::Expiry;
use crate::error_text::describe;
use crate::keeper::Keeper;
use crate::ledger::Ledgers;
use crate::ledger::events::{last_seq, newest_received_at};
use crate::ledger::known::Known;
use crate::ledger::nexus::{Delivery, Interrupted, stopped_requests};
use crate::metrics::Metrics;
use crate::nostr;
use crate::pipeline::breakers::Breakers;
use crate::pipeline::outbox::Outbox;
use crate::pipeline::pending::Pending;
use crate::pipeline::recovery::Recovered;
use crate::pipeline::router::{Router, RouterStats};
use crate::pipeline::running::Turns;
use crate::pipeline::spending::Meters;
use crate::pipeline::{Pipeline, SETTLING_MAX, followers, recovery};
use crate::plugin::calls::{Calls, CallsNeed};
use crate::plugin::{Automations, Plugins, Shared as PluginShared};
use crate::project::Projects;
use crate::replies::Replies;
use crate::routes::{CLI_CHANNEL, Route, Routes};
use crate::search::Search;
use crate::watch::Watch;
use arc_swap::ArcSwap;
use nexus_core::config::{Config, OnUncertain};
use serde_json::json;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::sync::{Notify, Semaphore, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// What is there before it.
pub(super) struct Ground<'a> {
    pub(super) config: &'a Config,
    pub(super) workspace: &'a Path,
    pub(super) keeper: &'a Keeper,
    pub(super) servers: &'a Servers,
    pub(super) acp: &'a AcpAgents,
    pub(super) questions: &'a Questions,
    pub(super) projects: &'a Projects,
    pub(super) ledgers: &'a Ledgers,
    pub(super) bus: &'a Bus,
    pub(super) metrics: &'a Metrics,
    pub(super) plugins: &'a Arc<Plugins>,
    pub(super) plugins_need: PluginShared,
    pub(super) automations_dir: PathBuf,
    pub(super) watch_over: &'a Watch,
    pub(super) stop: &'a CancellationToken,
    pub(super) epoch: i64,
}

/// The running pipeline and what others need of it.
pub(super) struct Engine {
    pub(super) pipeline: Arc<Pipeline>,
    pub(super) routes: Routes,
    pub(super) outbox: Outbox,
    pub(super) router: Router,
    pub(super) router_task: JoinHandle<()>,
    pub(super) router_stats: watch::Receiver<RouterStats>,
    pub(super) committed: Arc<watch::Sender<i64>>,
    pub(super) pending: Pending,
    pub(super) expiry: Expiry,
    pub(super) tasks: Vec<JoinHandle<()>>,
    pub(super) recovered: Recovered,
}

/// Decides about interrupted requests, has the plugins and automations loaded, then starts the router: what is open in the
/// ledger is its ordinary input, and passes no plugin by. `plugins_loaded` is called in between.
///
/// # Errors
/// When an agent can't be set up, or a ledger can't be read or written.
pub(super) async fn start(ground: Ground<'_>, interrupted: Vec<Interrupted>, plugins_loaded: impl FnOnce()) -> Result<Engine, StartError> {
    let Ground { config, workspace, keeper, servers, ledgers, bus, metrics, plugins, ref plugins_need, watch_over, epoch, .. } = ground;
    let settings = settings(config, keeper, servers, ground.acp, ground.projects, workspace);
    let settings = settings.map_err(|error| StartError::Setting(describe(&error)))?;
    let (recovered, ended) = recovery::recover(ledgers, &settings, interrupted, epoch).await?;
    let stopped = ledgers.nexus.readers.read(stopped_requests).await?;
    let routes = routes(config);
    let expiry = Expiry::new(ledgers.events.readers.read(newest_received_at).await?);
    let outbox = outbox(&ground, &routes, &expiry).await?;
    let committed = Arc::new(watch::Sender::new(ledgers.events.readers.read(last_seq).await?));
    let (turns, turns_applied) = watch::channel(followers::turns_mark(ledgers).await?);
    let (admitted, admitted_view) = watch::channel(0);
    let (settings, search) = (Arc::new(ArcSwap::from_pointee(settings)), Search::beside(ledgers));
    // Before the first plugin runs, so that none is ever told that the daemon isn't there yet.
    let (breakers, meters) = (Breakers::default(), Meters::default());
    let calls = Calls::new(CallsNeed {
        ledgers: ledgers.clone(),
        settings: settings.clone(),
        routes: routes.clone(),
        outbox: outbox.clone(),
        breakers: breakers.clone(),
        admitted: admitted_view.clone(),
        search: search.clone(),
        meters: meters.clone(),
        metrics: metrics.clone(),
    });
    let (calls, automations) = (Arc::new(calls), Arc::new(Automations::default()));
    plugins.answer_with(calls.clone());
    automations.answer_with(calls);
    plugins.load(plugins_need.clone(), &config.plugins).await;
    let automations_need = PluginShared { directory: ground.automations_dir.clone(), ..plugins_need.clone() };
    automations.load(automations_need, &config.automations, &config.plugins.circuit).await;
    plugins_loaded();
    let pipeline = Arc::new(Pipeline {
        ledgers: ledgers.clone(),
        settings,
        bus: bus.clone(),
        watch_over: watch_over.clone(),
        metrics: metrics.clone(),
        plugins: plugins.clone(),
        automations,
        routes: routes.clone(),
        replies: Replies::default(),
        questions: ground.questions.clone(),
        outbox: outbox.clone(),
        search,
        turns_applied,
        admitted: admitted_view,
        finished: Arc::new(Notify::new()),
        epoch,
        abandon: CancellationToken::new(),
        breakers,
        settling: TaskTracker::new(),
        settle_room: Arc::new(Semaphore::new(SETTLING_MAX)),
        unsettled: Default::default(),
        rates: std::sync::Mutex::default(),
        speakers: Known::of(&ledgers.identity.writer),
        meters,
        turns: Turns::after(stopped),
        wellbeing: Default::default(),
    });
    pipeline.tell_of_ended(ended);
    let tasks = follow(&ground, &pipeline, turns, &committed);
    let pending = Pending::default();
    let (stats, router_stats) = watch::channel(RouterStats::default());
    let (router, router_task) = Router::start(pipeline.clone(), committed.subscribe(), admitted, pending.clone(), stats).await?;
    Ok(Engine { pipeline, routes, outbox, router, router_task, router_stats, committed, pending, expiry, tasks, recovered })
}

/// What is to be sent, with all of it that waits already in its lanes.
async fn outbox(ground: &Ground<'_>, routes: &Routes, expiry: &Expiry) -> Result<Outbox, StartError> {
    let outbox = Outbox::new(
        ground.ledgers.clone(),
        routes.clone(),
        ground.bus.clone(),
        ground.watch_over.clone(),
        ground.metrics.clone(),
        expiry.clone(),
        ground.epoch,
    );
    outbox.tell(ground.plugins);
    // Before the router: nothing new may enter a lane ahead of what waits in it.
    let held = outbox.take_up_uncertain(|delivery| may_retry(ground.config, delivery)).await?;
    if held > 0 {
        tracing::warn!(deliveries = held, "it is uncertain whether these arrived; see `nexus deliveries list --status uncertain`");
    }
    outbox.resume().await?;
    Ok(outbox)
}

/// The followers, each started again from its own mark.
fn follow(
    ground: &Ground<'_>,
    pipeline: &Arc<Pipeline>,
    turns: watch::Sender<i64>,
    committed: &Arc<watch::Sender<i64>>,
) -> Vec<JoinHandle<()>> {
    let Ground { ledgers, bus, watch_over, stop, .. } = *ground;
    let (of_turns, of_contacts, of_sent) = (ledgers.clone(), ledgers.clone(), ledgers.clone());
    let (finished, sent, committed) = (pipeline.finished.clone(), pipeline.outbox.sent().clone(), committed.clone());
    let (bus, stop_turns, stop_contacts, stop_sent) = (bus.clone(), stop.clone(), stop.clone(), stop.clone());
    vec![
        watch_over.keep("agents follower", stop, move || {
            followers::follow_turns(of_turns.clone(), bus.clone(), finished.clone(), turns.clone(), stop_turns.clone())
        }),
        watch_over.keep("identity follower", stop, move || {
            followers::follow_contacts(of_contacts.clone(), committed.subscribe(), stop_contacts.clone())
        }),
        watch_over.keep("outbound follower", stop, move || followers::follow_sent(of_sent.clone(), sent.clone(), stop_sent.clone())),
    ]
}

/// Whether the adapter's config wants an uncertain delivery sent again.
fn may_retry(config: &Config, delivery: &Delivery) -> bool {
    if delivery.adapter == nostr::ADAPTER {
        return true; // what is published once can't be published twice
    }
    let send = config.adapters.get(&delivery.adapter).map(|adapter| &adapter.send);
    send.is_some_and(|send| send.on_uncertain == OnUncertain::Retry && delivery.attempts <= send.retries)
}

/// The control socket's route, and one for each adapter that isn't up yet: recovered requests may be
/// answered before it is.
fn routes(config: &Config) -> Routes {
    let routes = Routes::default();
    routes.set(CLI_CHANNEL, cli_route());
    for (name, adapter) in &config.adapters {
        routes.set(name, Route::unknown(&adapter.send, None, None));
    }
    if !config.nostr.relays.is_empty() {
        routes.set(nostr::ADAPTER, nostr::route_to_be(nostr::PUBLISH_TTL_MS));
    }
    routes
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
        here: true,
        sender: Some(Arc::new(ControlSocket)),
        text_limit: 0,
        capabilities: json!({ "supports_markdown": true, "supports_code_blocks": true }),
        retries: 0,
        on_uncertain: OnUncertain::Hold,
        ttl_ms: 3_600_000,
        blocks: false,
        streamer: None,
        channel: None,
    }
}
