//! The cortex: for each agent a file with what it was asked and what it answered, to be searched. It
//! follows finished runs and owns nothing: a file that is lost, damaged or of another version is made
//! again from the ledgers, never mended. What is found is `find`'s, where it comes from `source`'s.

pub mod find;
pub mod source;

use super::agents::SOURCE;
use super::copy::{beside, remove_if_there};
use super::migrate::{self, MigrateError, Migration};
use super::{BUSY_TIMEOUT, follow, private_file};
use crate::file_error::FileError;
use rusqlite::{Connection, ErrorCode, OpenFlags, TransactionBehavior, params};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

/// Its place in the ledger directory.
pub const DIRECTORY: &str = "cortex";
/// How much of a text can be found, in bytes; what is behind that is not.
pub const ENTRY_BYTES_MAX: usize = 64 * 1024;
/// Page cache of the connection that fills a file, in KiB.
const CACHE_KIB: u32 = 2048;
/// The end of a file's name, before which its agent stands.
const ENDING: &str = ".db";
/// What stands between the name of a damaged file and when it was set aside, in Unix ms.
const ASIDE: &str = ".corrupt-";
/// Files that SQLite keeps beside one.
const COMPANIONS: [&str; 2] = ["-wal", "-shm"];

pub(crate) const STEPS: &[Migration] = &[Migration { version: 1, sql: include_str!("../../migrations/cortex/0001_entries.sql") }];

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// What came in, and the agent was asked about.
    Event,
    /// What the agent said.
    Turn,
}

impl Kind {
    /// Each as it is written.
    pub const WORDS: [&str; 2] = [Self::Event.as_str(), Self::Turn.as_str()];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Event => "event",
            Self::Turn => "turn",
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        [Self::Event, Self::Turn].into_iter().find(|kind| kind.as_str() == text)
    }
}

/// One text that can be found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub kind: Kind,
    /// The event's id, or the turn's.
    pub source: String,
    /// The turn that it is a part of.
    pub turn: String,
    /// The label that the session had then.
    pub session: String,
    pub channel: String,
    pub sender: String,
    /// Unix ms.
    pub at: i64,
    pub text: String,
}

#[derive(Debug, thiserror::Error)]
pub enum CortexError {
    #[error("the search index `{path}` is damaged")]
    Damaged {
        path: PathBuf,
        #[source]
        source: rusqlite::Error,
    },
    /// It can't be followed on: of another version, or ahead of the ledgers.
    #[error("the search index `{path}` is not of these ledgers: {why}")]
    Foreign { path: PathBuf, why: String },
    #[error("the search index `{path}` can't be used")]
    Failed {
        path: PathBuf,
        #[source]
        source: rusqlite::Error,
    },
    #[error(transparent)]
    File(#[from] FileError),
}

impl CortexError {
    /// A failed statement on the file at `path`.
    pub(crate) fn of(path: &Path) -> impl Fn(rusqlite::Error) -> Self {
        let path = path.to_owned();
        move |source| {
            let path = path.clone();
            if is_damage(&source) { Self::Damaged { path, source } } else { Self::Failed { path, source } }
        }
    }
}

/// A failed write to the file at `path`. The statements are always the same, so one that can't even be
/// prepared, or that breaks a rule, says that the file isn't what it was made to be.
pub(crate) fn unwritten(path: &Path, source: rusqlite::Error) -> CortexError {
    let path = path.to_owned();
    let is_off = matches!(source.sqlite_error_code(), Some(ErrorCode::Unknown | ErrorCode::ConstraintViolation));
    let is_unknown = matches!(source, rusqlite::Error::SqlInputError { .. });
    if is_off || is_unknown || is_damage(&source) { CortexError::Damaged { path, source } } else { CortexError::Failed { path, source } }
}

/// Whether an error says that the file's pages are wrong.
pub fn is_damage(error: &rusqlite::Error) -> bool {
    matches!(error.sqlite_error_code(), Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase))
}

/// The file of an agent. Names of agents have no `/` (see `check_name` of the configuration).
pub fn path(directory: &Path, agent: &str) -> PathBuf {
    directory.join(format!("{agent}{ENDING}"))
}

/// The agents that have a file in `directory`, and the files that were set aside there.
///
/// # Errors
/// Of the file system; a directory that isn't there is empty.
pub fn list(directory: &Path) -> io::Result<(BTreeSet<String>, Vec<PathBuf>)> {
    let (mut agents, mut asides) = (BTreeSet::new(), Vec::new());
    let entries = match std::fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok((agents, asides)),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name();
        let Some(name) = name.to_str() else { continue };
        if is_aside(name) {
            asides.push(entry.path());
        } else if let Some(agent) = name.strip_suffix(ENDING).filter(|agent| !agent.is_empty()) {
            agents.insert(agent.to_owned());
        }
    }
    asides.sort();
    Ok((agents, asides))
}

fn is_aside(name: &str) -> bool {
    let is_time = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    name.rsplit_once(ASIDE).is_some_and(|(file, at)| file.ends_with(ENDING) && is_time(at))
}

/// Device and inode of what is at `path`, if anything is.
///
/// # Errors
/// When that can't be seen.
pub(crate) fn identity(path: &Path) -> Result<Option<(u64, u64)>, CortexError> {
    match std::fs::metadata(path) {
        Ok(found) => Ok(Some((found.dev(), found.ino()))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(FileError::of("look at", path)(error).into()),
    }
}

/// Opens the file at `path` to fill it, and makes it if it isn't there.
///
/// # Errors
/// [`CortexError`]; after `Damaged` and `Foreign` another file is to be made.
pub(crate) fn open(path: &Path, now_ms: i64) -> Result<Connection, CortexError> {
    if identity(path)?.is_none() {
        begin(path)?;
    }
    private_file(path).map_err(FileError::of("make", path))?;
    let mut connection = connect(path).map_err(CortexError::of(path))?;
    match migrate::check(&connection, path, STEPS) {
        Ok(()) => Ok(connection),
        // Made just now, or by somebody who was killed before its tables were.
        Err(MigrateError::Older { found: 0, .. }) => {
            let made = migrate::migrate(&mut connection, path, STEPS, now_ms);
            made.map(|()| connection).map_err(|error| refused(path, error))
        }
        Err(error) => Err(refused(path, error)),
    }
}

/// A log that a removed file left behind would be taken for the new one's.
fn begin(path: &Path) -> Result<(), CortexError> {
    if let Some(directory) = path.parent() {
        let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(directory);
        made.map_err(FileError::of("make", directory))?;
    }
    remove_companions(path)
}

fn connect(path: &Path) -> rusqlite::Result<Connection> {
    let connection = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    // It may lose its last moments, which are followed again. Nobody waits for its checkpoints.
    connection.execute_batch(&format!(
        "PRAGMA page_size = 8192; PRAGMA journal_mode = WAL; PRAGMA synchronous = {}; PRAGMA cache_size = -{CACHE_KIB};
         PRAGMA trusted_schema = OFF;",
        crate::torture::synchronous("NORMAL"),
    ))?;
    Ok(connection)
}

fn refused(path: &Path, error: MigrateError) -> CortexError {
    match error {
        MigrateError::Read { source, .. } | MigrateError::Step { source, .. } => CortexError::of(path)(source),
        MigrateError::Newer { .. }
        | MigrateError::Older { .. }
        | MigrateError::Changed { .. }
        | MigrateError::Backup { .. }
        | MigrateError::BackupDirectory { .. } => CortexError::Foreign { path: path.to_owned(), why: error.to_string() },
    }
}

/// The `finish_seq` up to which a file has its agent's runs.
pub(crate) fn mark(connection: &Connection) -> rusqlite::Result<i64> {
    follow::applied(connection, SOURCE)
}

/// Adds entries of runs up to `upto`, with that mark; nothing if it has them.
pub(crate) fn apply(connection: &mut Connection, upto: i64, entries: &[Entry]) -> rusqlite::Result<()> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    if follow::advance(&transaction, SOURCE, upto)? {
        for entry in entries {
            add(&transaction, entry)?;
        }
    }
    crate::torture::point("cortex.before");
    transaction.commit()?;
    crate::torture::point("cortex.after");
    Ok(())
}

fn add(connection: &Connection, entry: &Entry) -> rusqlite::Result<()> {
    let Entry { kind, source, turn, session, channel, sender, at, text } = entry;
    let insert = "INSERT INTO entries (kind, source, turn, session, channel, sender, at, text) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)
                  ON CONFLICT (kind, source) DO NOTHING";
    let added = connection.prepare_cached(insert)?.execute(params![kind.as_str(), source, turn, session, channel, sender, at, text])?;
    if added == 1 {
        let id = connection.last_insert_rowid();
        connection.prepare_cached("INSERT INTO words (rowid, text) VALUES (?1, ?2)")?.execute(params![id, text])?;
    }
    Ok(())
}

/// Removes an agent's file: it is to be made again. Whoever fills it has closed it.
///
/// # Errors
/// When it can't be removed.
pub(crate) fn discard(path: &Path) -> Result<(), CortexError> {
    remove(path)?;
    remove_companions(path)
}

/// Removes every file of `directory` that can be made again.
///
/// # Errors
/// Of the file system.
pub(crate) fn discard_all(directory: &Path) -> Result<(), CortexError> {
    let (agents, _) = list(directory).map_err(FileError::of("list", directory))?;
    agents.iter().try_for_each(|agent| discard(&path(directory, agent)))
}

/// Sets a damaged file aside, in the place of one that was before: for who wants to know why.
///
/// # Errors
/// Of the file system.
pub(crate) fn set_aside(path: &Path, now_ms: i64) -> Result<(), CortexError> {
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let prefix = format!("{name}{ASIDE}");
    let directory = path.parent().unwrap_or(Path::new("."));
    let (_, asides) = list(directory).map_err(FileError::of("list", directory))?;
    let is_its = |aside: &PathBuf| aside.file_name().is_some_and(|found| found.to_string_lossy().starts_with(&prefix));
    asides.iter().filter(|aside| is_its(aside)).try_for_each(|aside| remove(aside))?;
    let to = directory.join(format!("{prefix}{}", now_ms.max(0)));
    match crate::torture::rename(path, &to) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(FileError::of("set aside", path)(error).into()),
        Ok(()) | Err(_) => {} // one that is gone is as good
    }
    remove_companions(path)
}

fn remove_companions(path: &Path) -> Result<(), CortexError> {
    COMPANIONS.iter().try_for_each(|ending| remove(&beside(path, ending)))
}

fn remove(path: &Path) -> Result<(), CortexError> {
    Ok(remove_if_there(path).map_err(FileError::of("remove", path))?)
}

#[cfg(test)]
pub(crate) mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    pub(crate) fn entry(source: &str, text: &str) -> Entry {
        Entry {
            kind: Kind::Event,
            source: source.into(),
            turn: format!("turn_{source}"),
            session: "dm:ann".into(),
            channel: "fake".into(),
            sender: "ann".into(),
            at: 1,
            text: text.into(),
        }
    }

    fn count(connection: &Connection, sql: &str) -> i64 {
        connection.query_row(sql, [], |row| row.get(0)).unwrap()
    }

    #[test]
    fn what_is_applied_twice_is_there_once() {
        let directory = tempfile::tempdir().unwrap();
        let file = path(&directory.path().join(DIRECTORY), "helper");
        let mut connection = open(&file, 1).unwrap();
        apply(&mut connection, 2, &[entry("fake:1", "hello"), entry("fake:2", "world")]).unwrap();
        apply(&mut connection, 2, &[entry("fake:3", "late")]).unwrap();
        apply(&mut connection, 3, &[entry("fake:2", "world"), entry("fake:4", "new")]).unwrap();
        drop(connection);
        let connection = open(&file, 2).unwrap();
        assert_eq!((mark(&connection).unwrap(), count(&connection, "SELECT count(*) FROM entries")), (3, 3));
        assert_eq!(count(&connection, "SELECT count(*) FROM words WHERE words MATCH 'world'"), 1);
        connection.execute_batch("INSERT INTO words (words) VALUES ('integrity-check')").unwrap();
    }

    #[test]
    fn a_damaged_file_is_known_by_its_error_and_at_most_one_is_kept() {
        let directory = tempfile::tempdir().unwrap();
        let file = path(directory.path(), "a.b");
        for now_ms in [5, 6] {
            std::fs::write(&file, "this is no database at all, but long enough to look like one".repeat(20)).unwrap();
            assert!(matches!(open(&file, now_ms), Err(CortexError::Damaged { .. })));
            set_aside(&file, now_ms).unwrap();
        }
        drop(open(&file, 7).unwrap());
        let (agents, asides) = list(directory.path()).unwrap();
        assert_eq!(agents.into_iter().collect::<Vec<_>>(), ["a.b"]);
        assert_eq!(asides, [directory.path().join("a.b.db.corrupt-6")]);
    }

    #[test]
    fn a_file_of_another_version_is_not_ours() {
        let directory = tempfile::tempdir().unwrap();
        let file = path(directory.path(), "helper");
        let connection = open(&file, 1).unwrap();
        connection.execute("INSERT INTO schema_version VALUES (99, 'x', 1)", []).unwrap();
        drop(connection);
        assert!(matches!(open(&file, 1), Err(CortexError::Foreign { .. })));
        discard(&file).unwrap();
        drop(open(&file, 1).unwrap());
        discard_all(directory.path()).unwrap();
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
    }

    #[test]
    fn the_log_of_a_removed_file_is_not_taken_for_the_next_ones() {
        let directory = tempfile::tempdir().unwrap();
        let file = path(directory.path(), "helper");
        let mut connection = open(&file, 1).unwrap();
        apply(&mut connection, 1, &[entry("fake:1", "hello")]).unwrap();
        let log = directory.path().join("helper.db-wal");
        let kept = std::fs::read(&log).unwrap();
        drop(connection);
        std::fs::remove_file(&file).unwrap();
        std::fs::write(&log, kept).unwrap();
        assert_eq!(mark(&open(&file, 2).unwrap()).unwrap(), 0);
    }

    #[test]
    fn names_of_agents_stay_in_the_directory() {
        let directory = Path::new("/data/cortex");
        for agent in ["..", ".", "a.db", "a.db.corrupt-1", "me@example.org"] {
            let file = path(directory, agent);
            assert_eq!(file.parent(), Some(directory), "{agent}");
            assert!(!is_aside(file.file_name().unwrap().to_str().unwrap()), "{agent}");
        }
        assert!(is_aside("a.db.corrupt-17") && !is_aside("a.db.corrupt-") && !is_aside("corrupt-1.db"));
    }
}
