//! What is done from time to time: disk watch, metrics, analytics, pruning, reaping.

use super::control::Control;
use crate::clock;
use crate::ledger::agents::PruneCalls;
use crate::ledger::nexus::{CountAnalytics, NexusCommand, Prune, delivery_counts};
use crate::ledger::writer::Writer;
use crate::metrics::{DbLabel, QueueLabel};
use crate::plugin::{Batch, Counts};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

const DISK_EVERY: Duration = Duration::from_secs(5);
const ANALYTICS_EVERY: Duration = Duration::from_secs(60);
/// What couldn't be written, and what was counted since.
const BATCHES_AT_ONCE_MAX: usize = 2;
const PRUNE_EVERY: Duration = Duration::from_secs(3600);
/// When a start is over, and adapters and plugins are up: the code of it is let go of.
const START_OVER: Duration = Duration::from_secs(10);
/// And what code an hour has used, which the next may not.
const CODE_EVERY: Duration = Duration::from_secs(3600);
/// Rows lightened per transaction.
const PRUNE_ROWS: u32 = 1000;
/// How long it is kept what each call of a model by a plugin or an automation used. Budgets need a day of it.
const CALLS_KEPT_DAYS: i64 = 7;
/// Age at which a delivery that isn't sent counts as stuck.
const STUCK_MS: i64 = 600_000;
const DAY_MS: i64 = 86_400_000;

/// Runs until `stop`.
pub(super) async fn run(control: Arc<Control>, disk: watch::Sender<bool>, data_dir: PathBuf, stop: CancellationToken) {
    let mut disk_tick = tokio::time::interval(DISK_EVERY);
    let mut analytics_tick = tokio::time::interval(ANALYTICS_EVERY);
    let mut prune_tick = tokio::time::interval(PRUNE_EVERY);
    let mut code_tick = tokio::time::interval_at(Instant::now() + START_OVER, CODE_EVERY);
    loop {
        crate::torture::point("task.housekeeping");
        tokio::select! {
            _ = disk_tick.tick() => {
                control.sinks.expiry.look();
                control.ledgers.look_at_files();
                count_deliveries(&control).await;
                control.nostr.look().await;
                watch_disk(&data_dir, control.config.load().ledgers.min_free_mb, &disk);
                crate::keeper::leftovers::reap_all();
            }
            _ = analytics_tick.tick() => write_analytics(&control).await,
            _ = prune_tick.tick() => {
                prune(&control).await;
                prune_calls(&control).await;
            }
            _ = code_tick.tick() => if let Err(error) = crate::memory::let_go_of_code() {
                tracing::debug!(%error, "code that isn't used stays mapped");
            },
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

/// Looks whether the disk has room, and tells when that changed.
pub(super) fn watch_disk(directory: &Path, min_free_mb: u64, disk: &watch::Sender<bool>) {
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
    write_counts(control.plugins.counts(), &control.ledgers.nexus.writer, control.pipeline.epoch).await;
}

/// Writes what was counted; what couldn't be written before comes first. What can't be now stays for the next time.
async fn write_counts(counts: &Counts, writer: &Writer<NexusCommand>, epoch: i64) {
    for _ in 0..BATCHES_AT_ONCE_MAX {
        let Some(Batch { number, hours }) = counts.unwritten() else { return };
        match writer.write(CountAnalytics { hours, number, epoch }).await {
            Ok(()) => counts.written(number),
            Err(error) => {
                tracing::warn!(%error, "analytics not written; they are kept until they can be, or the daemon ends");
                return;
            }
        }
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
            audit_before: now - i64::from(retention.audit_days) * DAY_MS,
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

async fn prune_calls(control: &Control) {
    if control.sinks.expiry.doubt().is_some() {
        return; // by a wrong clock today's would be old
    }
    let before = clock::wall_ms() - CALLS_KEPT_DAYS * DAY_MS;
    loop {
        match control.ledgers.agents.writer.write(PruneCalls { before, rows_max: PRUNE_ROWS }).await {
            Ok(rows) if rows >= PRUNE_ROWS as usize => {}
            Ok(_) => return,
            Err(error) => {
                tracing::warn!(%error, "old calls of models not pruned");
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
    control.projects.measure();
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::ledger::Ledgers;
    use crate::plugin::Plugins;
    use nexus_core::request::{NexusRequest, Stage};

    #[tokio::test]
    async fn what_could_not_be_written_is_written_later_and_once() {
        let directory = tempfile::tempdir().unwrap();
        let (ledgers, _threads) = Ledgers::start(directory.path(), 0).unwrap();
        let (plugins, writer) = (Plugins::new(&["analytics".to_owned()]), &ledgers.nexus.writer);
        let request = NexusRequest::new("req_1".to_owned(), 1, 0, crate::samples::event("fake:1"));
        let counted = || {
            let sql = "SELECT coalesce(sum(requests), 0) FROM analytics_hourly";
            let connection = rusqlite::Connection::open(directory.path().join("nexus.db")).unwrap();
            connection.query_row(sql, [], |row| row.get::<_, i64>(0)).unwrap()
        };
        let refuse = |sql: &str| rusqlite::Connection::open(directory.path().join("nexus.db")).unwrap().execute_batch(sql).unwrap();
        plugins.after(Stage::Finalize, &request);
        refuse("CREATE TRIGGER refuse BEFORE INSERT ON analytics_hourly BEGIN SELECT RAISE(ABORT, 'of the test'); END");
        write_counts(plugins.counts(), writer, 1).await;
        assert_eq!(counted(), 0);
        plugins.after(Stage::Finalize, &request);
        refuse("DROP TRIGGER refuse");
        write_counts(plugins.counts(), writer, 1).await;
        assert_eq!(counted(), 2, "what was refused, and what came since");
        write_counts(plugins.counts(), writer, 1).await;
        assert_eq!(counted(), 2);
    }
}
