//! How a ledger is read: through a small pool of read-only connections, again and again where the caller must not be passed
//! by. It never writes.

mod line;

use super::place::Place;
use super::{BUSY_TIMEOUT, CACHE_KIB};
use line::Line;
use rusqlite::{Connection, OpenFlags};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

/// Pauses before a failed read is repeated.
const READ_PAUSE_FIRST: Duration = Duration::from_millis(100);
const READ_PAUSE_MAX: Duration = Duration::from_secs(30);
/// Read-only connections kept open per file.
const READERS_KEPT: usize = 4;

/// A small pool of read-only connections to one file.
#[derive(Debug, Clone)]
pub struct Readers {
    path: Arc<PathBuf>,
    /// Of a running daemon: the path may come to name another file.
    place: Option<Place>,
    idle: Arc<Mutex<Vec<Connection>>>,
    /// Small reads that share threads.
    line: Line,
    /// Those that may take long, which keep no small one waiting.
    long: Line,
    /// When a read failed last.
    failed_at: Arc<Mutex<Option<Instant>>>,
}

#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    #[error("failed to read ledger `{path}`")]
    Sqlite {
        path: PathBuf,
        #[source]
        source: rusqlite::Error,
    },
    #[error("reading ledger `{path}` panicked")]
    Panicked { path: PathBuf },
}

impl Readers {
    /// Readers of the file at `path`, which must exist by the first read.
    pub fn new(path: PathBuf) -> Self {
        Self {
            path: Arc::new(path),
            place: None,
            idle: Arc::default(),
            line: Line::of_small(),
            long: Line::of_long(),
            failed_at: Arc::default(),
        }
    }

    /// The same, of a file that a running daemon has open.
    pub(super) fn of(self, place: Place) -> Self {
        Self { place: Some(place), ..self }
    }

    /// Runs `query` on a thread that may block, of its own: it may take long.
    ///
    /// # Errors
    /// [`ReadError`].
    pub async fn read<T: Send + 'static>(
        &self,
        query: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, ReadError> {
        let this = self.clone();
        match crate::watch::blocking("read", move || this.read_now(query)).await {
            Ok(read) => read,
            // The runtime is going down, and with it whoever asked.
            Err(error) if error.is_cancelled() => std::future::pending().await,
            Err(_) => Err(self.panicked()),
        }
    }

    fn panicked(&self) -> ReadError {
        self.note_failure();
        ReadError::Panicked { path: self.path.to_path_buf() }
    }

    /// As [`Self::read_until_done`], but for `patience` only: for who holds something that others need. It is to be answered at
    /// once: others wait behind it.
    pub async fn read_patiently<T: Send + 'static>(
        &self,
        query: impl Fn(&Connection) -> rusqlite::Result<T> + Clone + Send + 'static,
        patience: Duration,
        stop: &CancellationToken,
    ) -> Option<T> {
        tokio::time::timeout(patience, self.repeat(&self.line, query, stop)).await.ok().flatten()
    }

    /// As [`Self::read`], again after each failure, with a pause that grows to thirty seconds; for work
    /// that must not be passed by what comes after it. `None` once `stop` is cancelled. Such reads share threads with
    /// each other.
    pub async fn read_until_done<T: Send + 'static>(
        &self,
        query: impl Fn(&Connection) -> rusqlite::Result<T> + Clone + Send + 'static,
        stop: &CancellationToken,
    ) -> Option<T> {
        self.repeat(&self.long, query, stop).await
    }

    async fn repeat<T: Send + 'static>(
        &self,
        line: &Line,
        query: impl Fn(&Connection) -> rusqlite::Result<T> + Clone + Send + 'static,
        stop: &CancellationToken,
    ) -> Option<T> {
        let mut pause = READ_PAUSE_FIRST;
        loop {
            match self.read_in_line(line, query.clone()).await {
                Ok(value) => return Some(value),
                Err(error) => tracing::error!(error = %crate::error_text::describe(&error), "a read failed, repeating it"),
            }
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = stop.cancelled() => return None,
            }
            pause = (pause * 2).min(READ_PAUSE_MAX);
        }
    }

    /// Runs `query` on this thread.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn read_now<T>(&self, query: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> Result<T, ReadError> {
        let failed = |source| {
            self.note_failure();
            ReadError::Sqlite { path: self.path.to_path_buf(), source }
        };
        let pooled = self.idle.lock().ok().and_then(|mut idle| idle.pop());
        let connection = match pooled {
            Some(connection) => connection,
            None => self.open().map_err(failed)?,
        };
        // A connection whose query failed isn't kept: the next one starts afresh.
        let value = query(&connection).map_err(failed)?;
        if let Ok(mut idle) = self.idle.lock()
            && idle.len() < READERS_KEPT
        {
            idle.push(connection);
        }
        Ok(value)
    }

    /// Whether a read failed within the last `span`, whatever was read since.
    pub fn has_failed_within(&self, span: Duration) -> bool {
        let failed_at = *self.failed_at.lock().unwrap_or_else(PoisonError::into_inner);
        failed_at.is_some_and(|at| at.elapsed() < span)
    }

    fn note_failure(&self) {
        *self.failed_at.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    pub(crate) fn open(&self) -> rusqlite::Result<Connection> {
        if self.place.as_ref().is_some_and(|place| place.trouble().is_some()) {
            return Err(rusqlite::Error::InvalidPath(self.path.to_path_buf()));
        }
        read_only(&self.path)
    }

    /// The file that is read.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// A connection that only reads the file at `path`, which must exist.
pub(crate) fn read_only(path: &Path) -> rusqlite::Result<Connection> {
    let connection = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    connection.execute_batch(&format!("PRAGMA query_only = ON; PRAGMA cache_size = -{CACHE_KIB}; PRAGMA trusted_schema = OFF;"))?;
    connection.set_prepared_statement_cache_capacity(64);
    Ok(connection)
}
