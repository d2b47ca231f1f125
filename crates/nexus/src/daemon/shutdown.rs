//! The twelve steps of the shutdown, in order. The running daemon is taken apart by exhaustive
//! destructuring, so that a new part doesn't compile until it has its place here.

use super::control::Control;
use super::housekeeping::write_analytics;
use super::paths::Paths;
use super::signals::Signals;
use crate::http::Server;
use crate::ledger::Threads;
use crate::logging::Logging;
use crate::pipeline::router::Router;
use nexus_core::notice::NoticeType;
use serde_json::json;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// Active requests get this long to complete.
const DRAIN: Duration = Duration::from_secs(30);
/// Sends under way get this long, after the drain.
const SENDS: Duration = Duration::from_secs(5);
/// A backup gets this long to put away what it made.
const BACKUP_END: Duration = Duration::from_secs(5);
/// Open event streams get this long.
const STREAMS: Duration = Duration::from_secs(5);

/// A daemon whose start is complete.
#[derive(Debug)]
pub(super) struct Running {
    pub(super) signals: Signals,
    pub(super) paths: Paths,
    pub(super) logging: Logging,
    pub(super) control: Arc<Control>,
    pub(super) server: Server,
    pub(super) router: Router,
    pub(super) router_task: JoinHandle<()>,
    pub(super) keeper_task: JoinHandle<()>,
    pub(super) threads: Vec<Threads>,
    pub(super) tasks: Vec<JoinHandle<()>>,
    /// Stops the timer, the followers and everything that waits.
    pub(super) timer_stop: CancellationToken,
}

impl Running {
    /// Steps 1 to 10; the last two are [`super::run`]'s. The signals come back at once, to be
    /// listened to meanwhile.
    pub(super) fn shutdown(self, reason: &'static str) -> (impl Future<Output = ()>, Signals) {
        let Self { signals, paths, logging: _, control, server, router, router_task, keeper_task, threads, tasks, timer_stop } = self;
        let shutdown = async move {
            let began = Instant::now();
            let progress = control.progress.clone();
            progress.enter(1);
            let step = |number: u32, what: &str| {
                tracing::info!(step = number, ms = began.elapsed().as_millis() as u64, "stop: {what}");
                progress.enter(number + 1);
                crate::torture::step("stop", number);
            };
            tracing::info!(reason, "Daemon stopping");
            control.ready.store(false, Ordering::Release);
            control.bus.publish(NoticeType::SystemStopping, json!({ "reason": reason }));
            step(1, "announced");
            // Children go on writing, and what they write is committed; it waits for the next start.
            let drained = async {
                let drained = router.drain(crate::torture::drain(DRAIN)).await;
                // Before writes are given up: what a run is about to do can't be noted then, and it must not go on.
                if !drained {
                    control.pipeline.abandon.cancel();
                }
                // From here on a write that fails isn't repeated: a stop ends on a full disk too.
                control.ledgers.stop_repeating();
                if !drained {
                    router.wait().await;
                }
                control.pipeline.settling.close();
                control.pipeline.settling.wait().await;
            };
            step(2, "nothing new is admitted");
            drained.await;
            control.outbox.stop(SENDS).await;
            step(3, "active requests drained");
            timer_stop.cancel();
            for task in tasks {
                drop(task.await); // a panic was told when it happened
            }
            step(4, "timer and followers stopped");
            // A reload that is under way may be bringing an adapter up; none begins any more.
            drop(control.reloading.lock().await);
            // A backup sees the stop as well, and puts away what it made. What it can't is no backup.
            tokio::time::timeout(BACKUP_END, control.backing_up.lock()).await.ok();
            step(5, "adapter, plugin, automation, agent, MCP server and project processes get TERM");
            let (adapters, automations) = (control.adapters.shutdown(), control.pipeline.automations.shutdown());
            let agents = async { tokio::join!(control.servers.shutdown(), control.acp.shutdown(), control.projects.shutdown()) };
            tokio::join!(adapters, control.plugins.shutdown(), automations, agents, control.nostr.shutdown());
            step(6, "these processes waited for");
            step(7, "those that stayed were killed");
            server.stop(STREAMS).await;
            step(8, "HTTP server closed");
            write_analytics(&control).await;
            finish_store(&control).await;
            drop(router_task.await); // it ended in step 2; a panic was told when it happened
            drop((router, server));
            // The last handles of ledgers and keeper: their threads end when these are gone.
            drop(control);
            drop(keeper_task.await);
            step(9, "writes flushed, keeper gone");
            drop(crate::watch::blocking("ledger.threads", move || threads.into_iter().for_each(Threads::join)).await);
            step(10, "databases closed");
            drop(std::fs::remove_file(paths.socket())); // the next start removes it otherwise
            tracing::info!(ms = began.elapsed().as_millis() as u64, "Daemon stopped");
        };
        (shutdown, signals)
    }
}

async fn finish_store(control: &Control) {
    control.store.store(None);
    let tasks: Vec<_> = control.store_tasks.lock().await.drain(..).collect();
    for (stop, task, threads) in tasks {
        stop.cancel();
        drop(task.await);
        drop(crate::watch::blocking("ledger.threads", move || threads.join()).await);
    }
}
