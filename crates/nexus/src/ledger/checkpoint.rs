//! Moving a file's write-ahead log into the database, off the writer. Never decides when: the writer asks.

use super::place::Place;
use super::{Ledger, connect};
use crate::panics;
use rusqlite::Connection;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Asks the checkpointing thread of one file to move the WAL into the database, off the writer.
#[derive(Debug, Clone)]
pub struct Checkpoints {
    request: std::sync::mpsc::SyncSender<()>,
    /// Pages in the log after the writer's last commit. The log's size on disk wouldn't tell: once
    /// checkpointed it is written anew from its start.
    pages: Arc<AtomicU64>,
}

impl Checkpoints {
    pub(super) fn start(place: Place, ledger: Ledger) -> std::io::Result<(Self, std::thread::JoinHandle<()>)> {
        let (request, inbox) = std::sync::mpsc::sync_channel::<()>(1);
        let thread = std::thread::Builder::new().name("checkpoint".into()).spawn(move || {
            while inbox.recv().is_ok() {
                let done = panics::catch(|| {
                    crate::torture::point("task.checkpoint");
                    checkpoint(&place, ledger)
                });
                let failed = done.map_or_else(|panicked| Some(panicked.to_string()), Result::err);
                if let Some(error) = failed {
                    tracing::warn!(path = %place.path().display(), error, "checkpoint failed; the log grows until one succeeds");
                    crate::watch::note(&format!("checkpoint {}", ledger.name()), &error);
                }
            }
        })?;
        Ok((Self { request, pages: Arc::default() }, thread))
    }

    /// Counts the log's pages of the writer's connection.
    pub(crate) fn watch(&self, connection: &mut Connection) -> rusqlite::Result<()> {
        let pages = self.pages.clone();
        connection.wal_hook(Some(move |_: &mut rusqlite::hooks::Wal, count: std::ffi::c_int| {
            pages.store(u64::try_from(count).unwrap_or(0), Ordering::Relaxed);
            Ok(())
        }))
    }

    pub(crate) fn wal_pages(&self) -> u64 {
        self.pages.load(Ordering::Relaxed)
    }

    pub(crate) fn request(&self) {
        // Full means that one is due already.
        self.request.try_send(()).ok();
    }
}

/// A connection per checkpoint: rare, and it holds no memory in between.
fn checkpoint(place: &Place, ledger: Ledger) -> Result<(), String> {
    if place.look().is_some() {
        return Ok(()); // health says so, and nothing is written there
    }
    let done = connect(place.path(), ledger).and_then(|connection| connection.execute_batch("PRAGMA wal_checkpoint(PASSIVE)"));
    done.map_err(|error| error.to_string())
}
