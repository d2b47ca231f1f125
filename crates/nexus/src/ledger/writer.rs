//! One writer thread per database file, with group commit.
//!
//! A command is a whole, idempotent, conditional transaction. The thread takes what waits (up to
//! `GROUP_ROWS_MAX` rows), applies it, commits once and only then answers. No timer: a lone command
//! commits at once, a burst shares its fsync. If a command is refused, the group is rolled back and
//! applied again with a savepoint around each, so that a bad one fails alone; not from the start,
//! because a savepoint copies every page that is touched under it. After a failed commit nobody knows
//! what is on disk: everyone in the group is told `Unknown`, the connection is opened anew, and the
//! callers repeat, which is safe because commands are idempotent. A command that panics is refused like
//! one that is wrong; a panic elsewhere counts as a failed commit.

mod set;

pub(crate) use set::{Weight, commands};

use super::place::Place;
use super::{Ledger, OpenError};
use crate::panics;
use rusqlite::{Connection, ErrorCode};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio_util::sync::CancellationToken;

/// Commands that may wait for the thread.
const QUEUE_MAX: usize = 4096;
/// Bytes that waiting commands may hold. A larger single command takes the whole budget.
const QUEUE_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Rows of one transaction, so that no commit keeps others waiting for long.
const GROUP_ROWS_MAX: usize = 1024;
/// WAL size, in pages of 8 KiB, at which the checkpointing thread is called.
const CHECKPOINT_PAGES: u64 = 4_000;
/// How long a failed write shows in health, if nothing is written after it: whoever has to repeats it
/// every few seconds.
const WRITE_FAILURE_SHOWN: Duration = Duration::from_secs(60);
/// WAL size at which the writer itself waits for a truncating checkpoint: 256 MiB.
const WAL_PAGES_MAX: u64 = 32_768;

/// A closed set of commands for one file.
pub trait Command: Send + 'static {
    type Reply: Send + 'static;
    const LEDGER: Ledger;

    /// Runs inside the writer's transaction, which may be rolled back and begun again.
    fn apply(&self, connection: &Connection) -> rusqlite::Result<Self::Reply>;
    /// Roughly what it holds in memory.
    fn bytes(&self) -> usize;
    /// How many rows it writes, at least 1.
    fn rows(&self) -> usize;
    /// Whether its commit may change what is kept in memory of the file's answers (`ledger::known`).
    fn outdates(&self) -> bool;
    /// Its name, for logs.
    fn name(&self) -> &'static str;
    /// The fail points of every command of the set.
    const POINTS: &'static [[&'static str; 2]];
    /// Its own: before and after its commit.
    fn points(&self) -> [&'static str; 2];
}

/// One variant of a [`Command`] with its own reply type.
pub trait Write: Sized {
    type Set: Command;
    type Reply;
    fn into_command(self) -> Self::Set;
    fn from_reply(reply: <Self::Set as Command>::Reply) -> Option<Self::Reply>;
}

#[derive(Debug, Clone, thiserror::Error)]
pub enum WriteError {
    /// May or may not be on disk: repeat it.
    #[error("writing to ledger `{ledger}` failed: {message}")]
    Unknown { ledger: &'static str, message: String },
    /// This command can't be applied, now or later: a defect or a broken rule of the schema.
    #[error("ledger `{ledger}` refused `{command}`: {message}")]
    Refused { ledger: &'static str, command: &'static str, message: String },
    #[error("ledger `{ledger}` is closed")]
    Closed { ledger: &'static str },
}

struct Job<C: Command> {
    command: C,
    reply: oneshot::Sender<Result<C::Reply, WriteError>>,
    _bytes: OwnedSemaphorePermit,
}

/// What the writer has done so far, for metrics and health.
#[derive(Debug, Default)]
pub struct WriterStats {
    pub commits: AtomicU64,
    pub commands: AtomicU64,
    /// Nanoseconds spent in `COMMIT`.
    pub commit_ns: AtomicU64,
    /// The last group failed.
    pub failing: AtomicBool,
    /// When, and with what.
    last_error: std::sync::Mutex<Option<(Instant, String)>>,
    /// How many [`LongRead`]s live.
    long_reads: AtomicUsize,
    /// Groups with a command that [outdates](Command::outdates) answers.
    version: AtomicU64,
}

/// A read that takes long, as of a copy. While it lives the writer doesn't wait for a checkpoint that
/// cuts the log off, which could only wait for the read: the log grows instead.
#[derive(Debug)]
pub struct LongRead {
    stats: Arc<WriterStats>,
}

impl Drop for LongRead {
    fn drop(&mut self) {
        self.stats.long_reads.fetch_sub(1, Ordering::AcqRel);
    }
}

impl WriterStats {
    /// The error of the last group, if it failed, and not long ago.
    pub fn trouble(&self) -> Option<String> {
        let last = self.last_error.lock().unwrap_or_else(PoisonError::into_inner);
        last.as_ref().filter(|(at, _)| at.elapsed() < WRITE_FAILURE_SHOWN).map(|(_, error)| error.clone())
    }

    /// Another one once a command that [outdates](Command::outdates) answers may be on disk, before its caller hears of it.
    pub fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    fn set(&self, error: Option<String>) {
        self.failing.store(error.is_some(), Ordering::Release);
        *self.last_error.lock().unwrap_or_else(PoisonError::into_inner) = error.map(|error| (Instant::now(), error));
    }
}

/// Handle to one file's writer thread.
#[derive(Debug)]
pub struct Writer<C: Command> {
    jobs: mpsc::Sender<Job<C>>,
    bytes: Arc<Semaphore>,
    stats: Arc<WriterStats>,
    /// The daemon is stopping: nothing is repeated any more.
    last_try: CancellationToken,
}

impl<C: Command> Clone for Writer<C> {
    fn clone(&self) -> Self {
        Self { jobs: self.jobs.clone(), bytes: self.bytes.clone(), stats: self.stats.clone(), last_try: self.last_try.clone() }
    }
}

impl<C: Command> Writer<C> {
    /// Takes over `connection` to the file of `place`; `reopen` makes another after a failed group. The thread ends, with a
    /// last checkpoint, when every handle is dropped.
    ///
    /// # Errors
    /// When the thread can't be started.
    pub(super) fn start(
        mut connection: Connection,
        reopen: impl Fn() -> Result<Connection, OpenError> + Send + 'static,
        checkpoint: super::Checkpoints,
        place: Place,
    ) -> std::io::Result<(Self, std::thread::JoinHandle<()>)> {
        checkpoint.watch(&mut connection).map_err(std::io::Error::other)?;
        let (jobs, inbox) = mpsc::channel(QUEUE_MAX);
        let stats = Arc::new(WriterStats::default());
        let thread = Thread { connection, reopen: Box::new(reopen), stats: stats.clone(), checkpoint, place };
        let name = format!("ledger-{}", C::LEDGER.name());
        let handle = std::thread::Builder::new().name(name).spawn(move || thread.run(inbox))?;
        Ok((Self { jobs, bytes: Arc::new(Semaphore::new(QUEUE_BYTES_MAX)), stats, last_try: CancellationToken::new() }, handle))
    }

    pub fn stats(&self) -> &Arc<WriterStats> {
        &self.stats
    }

    /// Nobody writes any more: the thread has ended.
    pub fn is_gone(&self) -> bool {
        self.jobs.is_closed()
    }

    /// Announces a read that takes long.
    pub fn long_read(&self) -> LongRead {
        self.stats.long_reads.fetch_add(1, Ordering::AcqRel);
        LongRead { stats: self.stats.clone() }
    }

    /// From now on [`Self::write_until_done`] gives up after a failure instead of repeating: a stop
    /// must end on a full disk too. What wasn't written is decided about at the next start.
    pub fn stop_repeating(&self) {
        self.last_try.cancel();
    }

    /// Waits for [`Self::stop_repeating`].
    pub async fn stops_repeating(&self) {
        self.last_try.cancelled().await;
    }

    /// Commands waiting now.
    pub fn depth(&self) -> usize {
        QUEUE_MAX - self.jobs.capacity()
    }

    /// Runs one command; returns after its commit.
    ///
    /// # Errors
    /// [`WriteError`]; after `Unknown` repeat it.
    pub async fn write<W: Write<Set = C>>(&self, write: W) -> Result<W::Reply, WriteError> {
        self.submit(write).await?.await
    }

    /// Puts one command into the queue; the returned future waits for its commit. Commands of one
    /// caller are applied in the order in which they were submitted.
    ///
    /// # Errors
    /// [`WriteError::Closed`].
    pub async fn submit<W: Write<Set = C>>(
        &self,
        write: W,
    ) -> Result<impl Future<Output = Result<W::Reply, WriteError>> + use<W, C>, WriteError> {
        let closed = WriteError::Closed { ledger: C::LEDGER.name() };
        let command = write.into_command();
        let bytes = u32::try_from(command.bytes().clamp(1, QUEUE_BYTES_MAX)).unwrap_or(u32::MAX);
        let permit = self.bytes.clone().acquire_many_owned(bytes).await.map_err(|_| closed.clone())?;
        let (reply, answer) = oneshot::channel();
        self.jobs.send(Job { command, reply, _bytes: permit }).await.map_err(|_| closed.clone())?;
        let jobs = self.jobs.downgrade();
        Ok(async move {
            let Ok(reply) = answer.await else {
                let is_alive = jobs.upgrade().is_some_and(|jobs| !jobs.is_closed());
                return Err(if is_alive { broken_off::<C>() } else { closed });
            };
            W::from_reply(reply?).ok_or(closed)
        })
    }

    /// Repeats `write` until it is known to be done, with a pause that grows to five seconds. For
    /// work that must not be lost while the disk is full or gone: the caller is held, which is the
    /// back-pressure.
    ///
    /// # Errors
    /// [`WriteError::Refused`] and [`WriteError::Closed`], which no repetition mends.
    pub async fn write_until_done<W: Write<Set = C> + Clone>(&self, write: W) -> Result<W::Reply, WriteError> {
        const PAUSE_MAX: Duration = Duration::from_secs(5);
        let mut pause = Duration::from_millis(50);
        loop {
            match self.write(write.clone()).await {
                Err(WriteError::Unknown { ledger, message }) => {
                    tracing::warn!(ledger, error = %message, "write failed, repeating it");
                    tokio::select! {
                        () = tokio::time::sleep(pause) => {}
                        () = self.last_try.cancelled() => return Err(WriteError::Closed { ledger }),
                    }
                    pause = (pause * 2).min(PAUSE_MAX);
                }
                done => return done,
            }
        }
    }
}

struct Thread {
    connection: Connection,
    reopen: Box<dyn Fn() -> Result<Connection, OpenError> + Send>,
    stats: Arc<WriterStats>,
    checkpoint: super::Checkpoints,
    place: Place,
}

impl Thread {
    fn run<C: Command>(mut self, mut inbox: mpsc::Receiver<Job<C>>) {
        let mut held: Option<Job<C>> = None;
        while let Some(first) = held.take().or_else(|| inbox.blocking_recv()) {
            let mut rows = first.command.rows();
            let mut group = vec![first];
            while rows < GROUP_ROWS_MAX
                && let Ok(job) = inbox.try_recv()
            {
                rows += job.command.rows();
                if rows > GROUP_ROWS_MAX {
                    held = Some(job);
                    break;
                }
                group.push(job);
            }
            // What broke off in the middle of the answers: callers whom nobody answers repeat.
            if let Err(panicked) = panics::catch(|| self.run_group(group)) {
                tracing::error!(ledger = C::LEDGER.name(), error = %panicked, "a ledger's writer broke off a group");
                defect::<C>(&panicked);
                self.begin_anew::<C>(panicked.to_string());
            }
        }
        if let Err(error) = self.connection.execute_batch("PRAGMA wal_checkpoint(TRUNCATE)") {
            tracing::warn!(ledger = C::LEDGER.name(), %error, "last checkpoint failed; the next start makes it up");
        }
    }

    fn run_group<C: Command>(&mut self, group: Vec<Job<C>>) {
        let mut is_full = false;
        let committed = match self.place.trouble() {
            // What is written to a file that nobody can find any more is lost.
            Some(trouble) => Err(trouble),
            None => match panics::catch(|| self.commit_group(&group)) {
                Ok(committed) => committed.map_err(|error| {
                    is_full = error.sqlite_error_code() == Some(ErrorCode::DiskFull);
                    error.to_string()
                }),
                Err(panicked) => {
                    defect::<C>(&panicked);
                    Err(panicked.to_string())
                }
            },
        };
        // Whatever came of it: after a failure nobody knows what is on disk.
        if group.iter().any(|job| job.command.outdates()) {
            self.stats.version.fetch_add(1, Ordering::AcqRel);
        }
        match committed {
            Ok(outcomes) => {
                self.stats.commits.fetch_add(1, Ordering::Relaxed);
                self.stats.commands.fetch_add(group.len() as u64, Ordering::Relaxed);
                if self.stats.failing.load(Ordering::Acquire) {
                    tracing::info!(ledger = C::LEDGER.name(), "ledger writable again");
                    self.stats.set(None);
                }
                for (job, outcome) in group.into_iter().zip(outcomes) {
                    answer(job, outcome);
                }
                self.keep_wal_small();
            }
            Err(message) => {
                if !self.stats.failing.load(Ordering::Acquire) {
                    tracing::error!(ledger = C::LEDGER.name(), error = %message, "ledger write failed");
                }
                self.begin_anew::<C>(message.clone());
                if is_full {
                    self.make_room::<C>();
                }
                for job in group {
                    answer(job, Err(WriteError::Unknown { ledger: C::LEDGER.name(), message: message.clone() }));
                }
            }
        }
    }

    /// After a failure: another connection, which rolls back what is open, whatever state SQLite thinks
    /// the file is in.
    fn begin_anew<C: Command>(&mut self, failure: String) {
        self.stats.set(Some(failure));
        match (self.reopen)() {
            Ok(mut connection) => {
                if let Err(error) = self.checkpoint.watch(&mut connection) {
                    tracing::warn!(ledger = C::LEDGER.name(), %error, "the log's size is not watched");
                }
                self.connection = connection;
            }
            Err(error) => tracing::warn!(ledger = C::LEDGER.name(), %error, "reopening failed, will try again"),
        }
    }

    /// On a full disk: what the log holds twice is given back. The next attempt may fit then.
    fn make_room<C: Command>(&self) {
        if let Err(error) = self.connection.execute_batch("PRAGMA wal_checkpoint(TRUNCATE)") {
            tracing::debug!(ledger = C::LEDGER.name(), %error, "the log could not be emptied to make room");
        }
    }

    /// The inner results are per command; the outer error is the whole group's.
    fn commit_group<C: Command>(&self, group: &[Job<C>]) -> rusqlite::Result<Vec<Result<C::Reply, WriteError>>> {
        let connection = &self.connection;
        self.begin()?;
        let mut outcomes = Vec::with_capacity(group.len());
        for job in group {
            match panics::catch(|| job.command.apply(connection)) {
                Ok(Ok(reply)) => outcomes.push(Ok(reply)),
                Ok(Err(error)) if is_files_fault(&error) => return Err(error),
                Ok(Err(_)) | Err(_) => {
                    self.begin()?;
                    outcomes = self.apply_each_alone(group)?;
                    break;
                }
            }
        }
        pass_points(group, 0);
        let started = Instant::now();
        connection.prepare_cached("COMMIT")?.execute([])?;
        pass_points(group, 1);
        let spent = u64::try_from(started.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.stats.commit_ns.fetch_add(spent, Ordering::Relaxed);
        Ok(outcomes)
    }

    /// Begins a transaction, without whatever was done in one that is still open.
    fn begin(&self) -> rusqlite::Result<()> {
        if !self.connection.is_autocommit() {
            self.connection.prepare_cached("ROLLBACK")?.execute([])?;
        }
        self.connection.prepare_cached("BEGIN IMMEDIATE")?.execute([]).map(drop)
    }

    /// Applies a group in which some command is refused: that one leaves no trace, the others stay.
    fn apply_each_alone<C: Command>(&self, group: &[Job<C>]) -> rusqlite::Result<Vec<Result<C::Reply, WriteError>>> {
        let connection = &self.connection;
        let mut outcomes = Vec::with_capacity(group.len());
        for job in group {
            connection.prepare_cached("SAVEPOINT command")?.execute([])?;
            let outcome = match panics::catch(|| job.command.apply(connection)) {
                Ok(Err(error)) if is_files_fault(&error) => return Err(error),
                Ok(applied) => applied.map_err(|error| error.to_string()),
                Err(panicked) => {
                    defect::<C>(&panicked);
                    Err(panicked.to_string())
                }
            };
            let outcome = match outcome {
                Ok(reply) => Ok(reply),
                Err(message) => {
                    connection.prepare_cached("ROLLBACK TO command")?.execute([])?;
                    Err(WriteError::Refused { ledger: C::LEDGER.name(), command: job.command.name(), message })
                }
            };
            connection.prepare_cached("RELEASE command")?.execute([])?;
            outcomes.push(outcome);
        }
        Ok(outcomes)
    }

    fn keep_wal_small(&self) {
        let pages = self.checkpoint.wal_pages();
        if pages > WAL_PAGES_MAX && self.stats.long_reads.load(Ordering::Acquire) == 0 {
            if let Err(error) = self.connection.execute_batch("PRAGMA wal_checkpoint(TRUNCATE)") {
                tracing::warn!(%error, "truncating checkpoint failed");
            }
        } else if pages > CHECKPOINT_PAGES {
            self.checkpoint.request();
        }
    }
}

/// The thread goes on after a panic, however many there are: nobody else could write the file. Those who repeat what it broke
/// off pause before it.
fn defect<C: Command>(panicked: &panics::Panicked) {
    crate::watch::note(&format!("ledger {}", C::LEDGER.name()), &panicked.to_string());
}

/// Passes the fail points of a group's commands: the first ones before its commit, the others after it.
fn pass_points<C: Command>(group: &[Job<C>], which: usize) {
    if cfg!(feature = "torture") {
        group.iter().for_each(|job| crate::torture::point(job.command.points()[which]));
    }
}

fn answer<C: Command>(job: Job<C>, outcome: Result<C::Reply, WriteError>) {
    if let Err(error @ WriteError::Refused { .. }) = &outcome {
        tracing::error!(%error, "a ledger command was refused");
    }
    if job.reply.send(outcome).is_err() {
        tracing::trace!("the writer of this command has gone"); // it is on disk all the same
    }
}

/// What a caller is told whom nobody answered, though the thread lives: a panic came in between.
fn broken_off<C: Command>() -> WriteError {
    WriteError::Unknown { ledger: C::LEDGER.name(), message: "a defect broke off the writer's answers".to_owned() }
}

/// Errors that say something about the file and not about the command.
fn is_files_fault(error: &rusqlite::Error) -> bool {
    let Some(code) = error.sqlite_error_code() else { return false };
    matches!(
        code,
        ErrorCode::DiskFull
            | ErrorCode::SystemIoFailure
            | ErrorCode::DatabaseCorrupt
            | ErrorCode::NotADatabase
            | ErrorCode::ReadOnly
            | ErrorCode::CannotOpen
            | ErrorCode::DatabaseBusy
            | ErrorCode::DatabaseLocked
            | ErrorCode::OutOfMemory
            | ErrorCode::PermissionDenied
            | ErrorCode::FileLockingProtocolFailed
    )
}

#[cfg(test)]
mod tests;
