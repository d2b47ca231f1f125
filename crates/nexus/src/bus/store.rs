//! bus.db: notices kept across restarts in `bus.mode: write-through`, so that a client may resume
//! where it was. Never waited for: a notice that the disk can't take is counted and gone.

use super::{Batch, Bus, Subscriber};
use crate::clock::{Expiry, wall_ms};
use crate::ledger::writer::{Weight, commands};
use crate::ledger::{Database, Ledger};
use bytes::Bytes;
use rusqlite::{Connection, params};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Frames of one write.
const BATCH: usize = 256;
const DAY_MS: i64 = 86_400_000;

/// Frames to keep.
#[derive(Debug, Clone)]
pub struct Keep {
    pub epoch: i64,
    pub frames: Vec<(u64, &'static str, i64, Bytes)>,
    /// Unix ms: older ones are dropped in passing.
    pub drop_before: i64,
}

commands! { Ledger::Bus, BusCommand / BusReply { Keep -> () } }

impl Keep {
    fn apply(&self, connection: &Connection) -> rusqlite::Result<()> {
        let mut insert = connection.prepare_cached("INSERT INTO bus_events VALUES (?1, ?2, ?3, ?4, ?5) ON CONFLICT DO NOTHING")?;
        for (seq, kind, ts, frame) in &self.frames {
            insert.execute(params![self.epoch, seq, kind, ts, &frame[..]])?;
        }
        let sql = "DELETE FROM bus_events WHERE (epoch, seq) IN (SELECT epoch, seq FROM bus_events WHERE ts < ?1 ORDER BY ts LIMIT 512)";
        connection.prepare_cached(sql)?.execute([self.drop_before]).map(drop)
    }
}

impl Weight for Keep {
    fn bytes(&self) -> usize {
        self.frames.iter().map(|(.., frame)| frame.len() + 64).sum::<usize>() + 64
    }
    fn rows(&self) -> usize {
        self.frames.len().max(1)
    }
}

/// Copies the bus into `database` until `stop`, then what is left.
pub async fn write_through(
    bus: Bus,
    mut subscriber: Subscriber,
    database: Database<BusCommand>,
    retention_days: watch::Receiver<u32>,
    expiry: Expiry,
    stop: CancellationToken,
) {
    loop {
        crate::torture::point("task.bus store");
        let stopping = tokio::select! {
            more = subscriber.changed() => !more,
            () = stop.cancelled() => true,
        };
        loop {
            match subscriber.take(BATCH) {
                Batch::Frames(frames) => {
                    let drop_before = match expiry.doubt() {
                        None => wall_ms() - i64::from(*retention_days.borrow()) * DAY_MS,
                        Some(_) => i64::MIN, // nothing is that old
                    };
                    let kept = frames.into_iter().filter(|frame| frame.kind.is_kept());
                    let frames = kept.map(|frame| (frame.seq, frame.kind.as_str(), frame.ts, frame.bytes)).collect();
                    if let Err(error) = database.writer.write(Keep { epoch: bus.epoch(), frames, drop_before }).await {
                        tracing::warn!(%error, "notices could not be kept");
                    }
                }
                Batch::Lagged { missed } => tracing::warn!(missed, "the bus was faster than its store"),
                Batch::Empty => break,
            }
        }
        if stopping {
            return;
        }
    }
}

/// Kept frames after `(epoch, seq)`, at most `limit`, each with its place.
pub fn after(connection: &Connection, epoch: i64, seq: u64, limit: usize) -> rusqlite::Result<Vec<(i64, u64, String, Bytes)>> {
    let sql = "SELECT epoch, seq, type, frame FROM bus_events WHERE (epoch, seq) > (?1, ?2) ORDER BY epoch, seq LIMIT ?3";
    connection
        .prepare_cached(sql)?
        .query_map(params![epoch, seq, limit], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, Bytes::from(row.get::<_, Vec<u8>>(3)?))))?
        .collect()
}

/// Whether the notice `(epoch, seq)` is kept, so that what follows it is known to be whole.
pub fn has(connection: &Connection, epoch: i64, seq: u64) -> rusqlite::Result<bool> {
    connection.prepare_cached("SELECT 1 FROM bus_events WHERE epoch = ?1 AND seq = ?2")?.exists(params![epoch, seq])
}
