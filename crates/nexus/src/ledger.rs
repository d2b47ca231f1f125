//! The ledger databases: which files there are, and how they are opened.
//!
//! Writing goes through one [`writer::Writer`] per file; reading through its [`Readers`]. Nothing is ever written to two
//! files together: see `follow`.

pub mod agents;
mod checkpoint;
pub mod copy;
pub mod cortex;
mod counters;
pub mod events;
pub mod follow;
pub mod identity;
pub mod known;
pub(crate) mod lock;
pub mod migrate;
pub mod nexus;
mod place;
mod readers;
pub mod writer;

pub use checkpoint::Checkpoints;
pub use counters::Counters;
use migrate::{MigrateError, Migration};
use place::Place;
pub(crate) use readers::read_only;
pub use readers::{ReadError, Readers};
use rusqlite::{Connection, ErrorCode, OpenFlags};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// How long a connection waits for another's lock: only a checkpoint or a backup can hold one.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a failed read shows in health. Longer than the longest pause before one is repeated, so that
/// a single row that nobody can read shows all the time, though others can be read.
const READ_FAILURE_SHOWN: Duration = Duration::from_secs(60);
/// Page cache of one connection, in KiB. Memory is taken as pages are used.
const CACHE_KIB: u32 = 1024;
/// That of the writer of events: a full transaction of 1,024 rows touches about as many pages of the
/// unique index, and what doesn't fit is written to the log more than once.
const EVENTS_CACHE_KIB: u32 = 12 * 1024;
/// That of the writer of requests, runs and deliveries, of which a group touches a dozen trees.
const NEXUS_CACHE_KIB: u32 = 4 * 1024;

/// The four ledger files (requirement: Database Initialization).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Ledger {
    Events,
    Agents,
    Identity,
    Nexus,
    /// Not one of the four: notices of `bus.mode: write-through`.
    Bus,
}

impl Ledger {
    /// The four ledgers, in the requirement's order; the bus's store is not among them.
    pub const ALL: [Ledger; 4] = [Self::Events, Self::Agents, Self::Identity, Self::Nexus];

    pub fn name(self) -> &'static str {
        match self {
            Self::Events => "events",
            Self::Agents => "agents",
            Self::Identity => "identity",
            Self::Nexus => "nexus",
            Self::Bus => "bus",
        }
    }

    /// The file's name within the ledger directory.
    pub fn file_name(self) -> String {
        format!("{}.db", self.name())
    }

    /// The page cache of its writer, in KiB.
    fn writer_cache_kib(self) -> u32 {
        match self {
            Self::Events => EVENTS_CACHE_KIB,
            Self::Nexus => NEXUS_CACHE_KIB,
            Self::Agents | Self::Identity | Self::Bus => CACHE_KIB,
        }
    }

    /// The four ledgers survive power loss; the bus's store may lose its last moments.
    fn synchronous(self) -> &'static str {
        match self {
            Self::Events | Self::Agents | Self::Identity | Self::Nexus => "FULL",
            Self::Bus => "NORMAL",
        }
    }

    pub(crate) fn migrations(self) -> &'static [Migration] {
        match self {
            Self::Events => &[Migration { version: 1, sql: include_str!("../migrations/events/0001_facts.sql") }],
            Self::Agents => &[Migration { version: 1, sql: include_str!("../migrations/agents/0001_turns.sql") }],
            Self::Identity => &[Migration { version: 1, sql: include_str!("../migrations/identity/0001_contacts.sql") }],
            Self::Nexus => &[Migration { version: 1, sql: include_str!("../migrations/nexus/0001_work.sql") }],
            Self::Bus => &[Migration { version: 1, sql: include_str!("../migrations/bus/0001_events.sql") }],
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("failed to create the ledger directory `{path}`; check its owner and permissions")]
    Directory {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("failed to open `{path}` for writing; check the owner and permissions of it and its directory, and that the disk is not full")]
    File {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("failed to open ledger `{path}`; check its owner and permissions, and that the disk is not full")]
    Open {
        path: PathBuf,
        #[source]
        source: rusqlite::Error,
    },
    #[error("the ledgers in `{path}` are in use by another daemon, with another state directory; give each its own ledgers.directory")]
    InUse { path: PathBuf },
    #[error(
        "ledger `{path}` is missing, or was emptied, while the others are there; put it back, or `nexus restore` all of them from one backup"
    )]
    Missing { path: PathBuf },
    #[error("the ledgers in `{path}` don't fit together: {what}; put the right file back, or `nexus restore` all of them from one backup")]
    OutOfStep { path: PathBuf, what: &'static str },
    #[error("failed to look how far the ledgers have come")]
    Look(#[from] ReadError),
    /// While the daemon runs.
    #[error("{0}")]
    Moved(String),
    #[error("the ledgers in `{path}` are in use by {by}; try again when it is done")]
    Held { path: PathBuf, by: String },
    #[error(
        "a restore into `{path}` did not come to its end; run `nexus restore DIRECTORY` again, with that backup or another, to finish it"
    )]
    HalfRestored { path: PathBuf },
    #[error(transparent)]
    Migrate(#[from] MigrateError),
    #[error("failed to start the writer thread of ledger `{path}`")]
    Thread {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
}

/// Opens `ledger` in `directory` for writing, creating and migrating it as needed.
///
/// # Errors
/// [`OpenError`]; nothing is left half migrated.
pub fn open(directory: &Path, ledger: Ledger, now_ms: i64) -> Result<Connection, OpenError> {
    let path = directory.join(ledger.file_name());
    let failed = |source| OpenError::Open { path: path.clone(), source };
    private_file(&path).map_err(|source| OpenError::File { path: path.clone(), source })?;
    let mut connection = connect(&path, ledger).map_err(failed)?;
    migrate::migrate(&mut connection, &path, ledger.migrations(), now_ms)?;
    Ok(connection)
}

/// Creates the file with mode 0600 before SQLite would create it with the umask's.
fn private_file(path: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::OpenOptionsExt;
    std::fs::OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path).map(drop)
}

/// Never makes a file: a ledger that vanished must not come back empty.
fn connect(path: &Path, ledger: Ledger) -> rusqlite::Result<Connection> {
    let connection = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    connection.set_prepared_statement_cache_capacity(64);
    // The page size counts only for a new file. Checkpoints are made by another thread.
    connection.execute_batch(&format!(
        "PRAGMA page_size = 8192; PRAGMA journal_mode = WAL; PRAGMA synchronous = {}; PRAGMA foreign_keys = ON;
         PRAGMA wal_autocheckpoint = 0; PRAGMA cache_size = -{}; PRAGMA trusted_schema = OFF;",
        crate::torture::synchronous(ledger.synchronous()),
        ledger.writer_cache_kib()
    ))?;
    Ok(connection)
}

/// One file with its writer and its readers.
#[derive(Debug)]
pub struct Database<C: writer::Command> {
    pub writer: writer::Writer<C>,
    pub readers: Readers,
    place: Place,
}

impl<C: writer::Command> Clone for Database<C> {
    fn clone(&self) -> Self {
        Self { writer: self.writer.clone(), readers: self.readers.clone(), place: self.place.clone() }
    }
}

impl<C: writer::Command> Database<C> {
    /// Why it can't be written, or could not be read of late.
    pub fn trouble(&self) -> Option<String> {
        if self.writer.is_gone() {
            return Some("the thread that writes it has ended; restart the daemon".to_owned());
        }
        let unread = || self.readers.has_failed_within(READ_FAILURE_SHOWN).then(|| "a read of it failed within the last minute".to_owned());
        self.place.trouble().or_else(|| self.writer.stats().trouble()).or_else(unread)
    }
}

/// What must be waited for at shutdown, after the last handle of the file is dropped.
#[derive(Debug)]
pub struct Threads {
    writer: std::thread::JoinHandle<()>,
    checkpoint: std::thread::JoinHandle<()>,
}

impl Threads {
    /// Blocks until everything queued is on disk and the last checkpoint is made.
    pub fn join(self) {
        for thread in [self.writer, self.checkpoint] {
            if thread.join().is_err() {
                tracing::error!("a ledger thread panicked");
            }
        }
    }
}

/// Opens a ledger and starts its threads.
///
/// # Errors
/// [`OpenError`].
pub fn start<C: writer::Command>(directory: &Path, now_ms: i64) -> Result<(Database<C>, Threads), OpenError> {
    let connection = open(directory, C::LEDGER, now_ms)?;
    let path = directory.join(C::LEDGER.file_name());
    let place = Place::of(path.clone()).map_err(|source| OpenError::File { path: path.clone(), source })?;
    let thread = |source| OpenError::Thread { path: path.clone(), source };
    let (checkpoints, checkpoint) = Checkpoints::start(place.clone(), C::LEDGER).map_err(thread)?;
    let (reopen_path, reopen_place) = (path.clone(), place.clone());
    // The old connection lives until there is another, and the log with it: SQLite removes it with the last one.
    let reopen = move || match reopen_place.look() {
        Some(trouble) => Err(OpenError::Moved(trouble)),
        None => connect(&reopen_path, C::LEDGER).map_err(|source| OpenError::Open { path: reopen_path.clone(), source }),
    };
    let (writer, handle) = writer::Writer::start(connection, reopen, checkpoints, place.clone()).map_err(thread)?;
    let readers = Readers::new(path).of(place.clone());
    Ok((Database { writer, readers, place }, Threads { writer: handle, checkpoint }))
}

/// Moves all of a file's log into the file and empties it. True if that came to its end: a reader may
/// be in the way. The caller holds the directory by [`lock::take`], and no daemon has the file open.
///
/// # Errors
/// Of SQLite.
pub(crate) fn empty_log(path: &Path) -> rusqlite::Result<bool> {
    let connection = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    let busy: i64 = connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get(0))?;
    Ok(busy == 0)
}

/// Moves a mark forward, and wakes who waits for it if it moved.
pub(crate) fn raise(mark: &tokio::sync::watch::Sender<i64>, seq: i64) {
    mark.send_if_modified(|known| {
        let more = seq > *known;
        *known = seq.max(*known);
        more
    });
}

/// Reads one row or none.
pub(crate) fn optional<T>(result: rusqlite::Result<T>) -> rusqlite::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(rusqlite::Error::QueryReturnedNoRows) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Once all four were in use none is made anew, nor is one filled that was emptied: it would have nothing, while the others
/// remember what it had, and new events could be taken for known ones, or old ones be run again.
fn refuse_missing(directory: &Path) -> Result<(), OpenError> {
    // Not opened for that: a log that is made beside a file which may not be written could not be written later either.
    let is_missing = |ledger: &Ledger| std::fs::metadata(directory.join(ledger.file_name())).map_or(true, |file| file.len() == 0);
    let Some(first) = Ledger::ALL.into_iter().find(is_missing) else { return Ok(()) };
    // A first start that was killed has left some of them, without a table or a row; of one that can't be read nobody knows.
    let has_row = |ledger: Ledger, sql: &str| {
        let path = directory.join(ledger.file_name());
        let asked = read_only(&path).and_then(|connection| connection.prepare(sql)?.exists([]));
        path.exists() && asked.unwrap_or_else(|error| error.sqlite_error_code().is_some_and(|code| code != ErrorCode::Unknown))
    };
    let was_used = has_row(Ledger::Nexus, "SELECT 1 FROM counters WHERE name = 'epoch' AND value > 0")
        || has_row(Ledger::Events, "SELECT 1 FROM events");
    if was_used { Err(OpenError::Missing { path: directory.join(first.file_name()) }) } else { Ok(()) }
}

/// An old copy of one file among the others is whole by itself. What the others have beyond it would be passed over, or
/// done twice.
fn refuse_out_of_step(directory: &Path) -> Result<(), OpenError> {
    let found = Counters::read(directory)?.out_of_step();
    found.map_or(Ok(()), |what| Err(OpenError::OutOfStep { path: directory.to_owned(), what }))
}

/// The four ledgers with their writers and readers.
#[derive(Debug, Clone)]
pub struct Ledgers {
    /// Held as long as any handle is: no other daemon, whatever its state directory, opens these.
    _lock: Arc<std::fs::File>,
    pub events: Database<events::EventsCommand>,
    pub agents: Database<agents::AgentsCommand>,
    pub identity: Database<identity::IdentityCommand>,
    pub nexus: Database<nexus::NexusCommand>,
}

impl Ledgers {
    /// Opens all four, creating `directory` (mode 0700) as needed.
    ///
    /// # Errors
    /// [`OpenError`] of the first that fails.
    pub fn start(directory: &Path, now_ms: i64) -> Result<(Self, Vec<Threads>), OpenError> {
        use std::os::unix::fs::DirBuilderExt;
        let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(directory);
        made.map_err(|source| OpenError::Directory { path: directory.to_owned(), source })?;
        let lock = lock::take(directory, None)?;
        lock::refuse_half_restored(directory)?;
        refuse_missing(directory)?;
        let (events, a) = start(directory, now_ms)?;
        let (agents, b) = start(directory, now_ms)?;
        let (identity, c) = start(directory, now_ms)?;
        let (nexus, d) = start(directory, now_ms)?;
        refuse_out_of_step(directory)?;
        Ok((Self { _lock: Arc::new(lock), events, agents, identity, nexus }, vec![a, b, c, d]))
    }

    /// Has no writer wait for the log to be cut off as long as these live: for reads that take long.
    pub fn long_reads(&self) -> Vec<writer::LongRead> {
        vec![
            self.events.writer.long_read(),
            self.agents.writer.long_read(),
            self.identity.writer.long_read(),
            self.nexus.writer.long_read(),
        ]
    }

    /// Ends the repeating of failed writes, at a stop.
    pub fn stop_repeating(&self) {
        self.events.writer.stop_repeating();
        self.agents.writer.stop_repeating();
        self.identity.writer.stop_repeating();
        self.nexus.writer.stop_repeating();
    }

    /// Why each can't be written, or be read as far as anybody tried of late; `None` when it can.
    pub fn troubles(&self) -> [(Ledger, Option<String>); 4] {
        [
            (Ledger::Events, self.events.trouble()),
            (Ledger::Agents, self.agents.trouble()),
            (Ledger::Identity, self.identity.trouble()),
            (Ledger::Nexus, self.nexus.trouble()),
        ]
    }

    /// Looks whether each path still names the file that is open. While one doesn't, nothing is written
    /// there: it would be lost with the last descriptor. What is wrong with the first of those.
    pub fn look_at_files(&self) -> Option<String> {
        let places = [&self.events.place, &self.agents.place, &self.identity.place, &self.nexus.place];
        places.map(Place::look).into_iter().flatten().next()
    }

    /// Name and writer's figures of each.
    pub fn stats(&self) -> [(Ledger, &Arc<writer::WriterStats>); 4] {
        [
            (Ledger::Events, self.events.writer.stats()),
            (Ledger::Agents, self.agents.writer.stats()),
            (Ledger::Identity, self.identity.writer.stats()),
            (Ledger::Nexus, self.nexus.writer.stats()),
        ]
    }
}
