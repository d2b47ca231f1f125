//! What is done from time to time: disk watch, metrics, analytics, pruning, reaping. And the watch
//! over the daemon's own long-lived tasks.

use super::control::Control;
use crate::bus::Bus;
use crate::clock;
use crate::ledger::nexus::{CountAnalytics, Prune, delivery_counts};
use crate::metrics::{DbLabel, QueueLabel};
use nexus_core::notice::NoticeType;
use serde_json::json;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

const DISK_EVERY: Duration = Duration::from_secs(5);
const ANALYTICS_EVERY: Duration = Duration::from_secs(60);
const PRUNE_EVERY: Duration = Duration::from_secs(3600);
/// Rows lightened per transaction.
const PRUNE_ROWS: u32 = 1000;
/// Age at which a delivery that isn't sent counts as stuck.
const STUCK_MS: i64 = 600_000;
const DAY_MS: i64 = 86_400_000;

/// Notices when a long-lived task ends that should not have: its part is broken, health says so.
#[derive(Debug, Clone)]
pub(super) struct Watch {
    bus: Bus,
    lost: Arc<Mutex<Vec<&'static str>>>,
}

impl Watch {
    pub(super) fn new(bus: Bus) -> Self {
        Self { bus, lost: Arc::default() }
    }

    /// Runs `task`; its end is expected only after `stop`.
    pub(super) fn spawn(
        &self,
        name: &'static str,
        task: impl Future<Output = ()> + Send + 'static,
        stop: &CancellationToken,
    ) -> JoinHandle<()> {
        self.guard(name, tokio::spawn(task), stop)
    }

    /// The same for a task that runs already.
    pub(super) fn guard(&self, name: &'static str, task: JoinHandle<()>, stop: &CancellationToken) -> JoinHandle<()> {
        let (this, stop) = (self.clone(), stop.clone());
        tokio::spawn(async move {
            let ended = task.await;
            if !stop.is_cancelled() {
                this.lost.lock().unwrap_or_else(PoisonError::into_inner).push(name);
                let error = ended.err().map_or_else(|| "it ended by itself".to_owned(), |error| error.to_string());
                tracing::error!(task = name, error, "a task of the daemon is gone; restart the daemon");
                this.bus.publish(NoticeType::SystemError, json!({ "task": name, "error": error }));
            }
        })
    }

    /// Names of the tasks that are gone.
    pub(super) fn lost(&self) -> Vec<&'static str> {
        self.lost.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Runs until `stop`.
pub(super) async fn run(control: Arc<Control>, disk: watch::Sender<bool>, data_dir: PathBuf, stop: CancellationToken) {
    let mut disk_tick = tokio::time::interval(DISK_EVERY);
    let mut analytics_tick = tokio::time::interval(ANALYTICS_EVERY);
    let mut prune_tick = tokio::time::interval(PRUNE_EVERY);
    loop {
        tokio::select! {
            _ = disk_tick.tick() => {
                control.sinks.expiry.look();
                count_deliveries(&control).await;
                watch_disk(&data_dir, control.config.load().ledgers.min_free_mb, &disk);
                crate::keeper::leftovers::reap_all();
            }
            _ = analytics_tick.tick() => write_analytics(&control).await,
            _ = prune_tick.tick() => prune(&control).await,
            () = stop.cancelled() => break,
        }
    }
    write_analytics(&control).await;
}

/// Deliveries that nobody may see to; stuck are those that wait for longer than [`STUCK_MS`].
async fn count_deliveries(control: &Control) {
    let before = clock::wall_ms() - STUCK_MS;
    match control.ledgers.nexus.readers.read(move |connection| delivery_counts(connection, before)).await {
        Ok(counts) => control.deliveries.store(Arc::new(counts)),
        Err(error) => tracing::warn!(%error, "deliveries can't be counted"),
    }
}

fn watch_disk(directory: &Path, min_free_mb: u64, disk: &watch::Sender<bool>) {
    let low = match rustix::fs::statvfs(directory) {
        Ok(space) => space.f_bavail.saturating_mul(space.f_frsize) / (1024 * 1024) < min_free_mb,
        Err(error) => {
            tracing::warn!(%error, "free disk space can't be read");
            return;
        }
    };
    let changed = disk.send_if_modified(|known| std::mem::replace(known, low) != low);
    if changed && low {
        tracing::error!(min_free_mb, "disk nearly full: no adapter is read until there is room");
    } else if changed {
        tracing::info!("disk has room again");
    }
}

pub(super) async fn write_analytics(control: &Control) {
    let hours = control.plugins.counts().take();
    if !hours.is_empty()
        && let Err(error) = control.ledgers.nexus.writer.write(CountAnalytics { hours }).await
    {
        tracing::warn!(%error, "analytics not written");
    }
}

async fn prune(control: &Control) {
    if control.sinks.expiry.doubt().is_some() {
        return; // traces too expire by the clock
    }
    let retention = control.config.load().ledgers.retention.clone();
    let now = clock::wall_ms();
    loop {
        let prune = Prune {
            traces_before: now - i64::from(retention.traces_days) * DAY_MS,
            snapshots_before: now - i64::from(retention.snapshots_days) * DAY_MS,
            applied_finish_seq: *control.pipeline.turns_applied.borrow(),
            rows_max: PRUNE_ROWS,
        };
        match control.ledgers.nexus.writer.write(prune).await {
            Ok(rows) if rows >= u64::from(PRUNE_ROWS) => {}
            Ok(_) => return,
            Err(error) => {
                tracing::warn!(%error, "old traces not pruned");
                return;
            }
        }
    }
}

/// Brings the gauges up to date that are read off other parts.
pub(super) fn refresh_gauges(control: &Control) {
    let metrics = &control.metrics;
    for (ledger, stats) in control.ledgers.stats() {
        let label = DbLabel { db: ledger.name() };
        metrics.commits.get_or_create(&label).inner().store(stats.commits.load(Ordering::Relaxed), Ordering::Relaxed);
        let seconds = stats.commit_ns.load(Ordering::Relaxed) as f64 / 1e9;
        metrics.commit_seconds.get_or_create(&label).set(seconds);
    }
    let router = *control.router_stats.borrow();
    let ledgers = &control.ledgers;
    let queues = [
        ("requests", router.waiting),
        ("preparing", router.preparing),
        ("runs", router.running),
        ("deliveries", control.outbox.depth()),
        ("events_writer", ledgers.events.writer.depth()),
        ("nexus_writer", ledgers.nexus.writer.depth()),
        ("agents_writer", ledgers.agents.writer.depth()),
        ("identity_writer", ledgers.identity.writer.depth()),
    ];
    for (queue, depth) in queues {
        metrics.queues.get_or_create(&QueueLabel { queue }).set(i64::try_from(depth).unwrap_or(i64::MAX));
    }
}
