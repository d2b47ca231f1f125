//! Copies a database while it is in use: one snapshot of it, as a single file, whole or not at all.
//!
//! The snapshot is held from the first page to the last. Taken anew for each step, it would start over
//! after every commit of somebody else, and never come to its end on a busy ledger. It holds no writer
//! up, since the log is written on behind it; only the log can't be begun anew meanwhile (see
//! [`super::writer::LongRead`]).

use crate::file_error::FileError;
use rusqlite::Connection;
use rusqlite::backup::{Backup, StepResult};
use std::ffi::c_int;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

/// Pages copied at a time, of 8 KiB each: 2 MiB.
const STEP_PAGES: c_int = 256;
/// What SQLite puts beside a database.
pub(crate) const COMPANIONS: [&str; 3] = ["-wal", "-shm", "-journal"];

#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error("failed to copy a ledger to `{to}`; check that the disk is not full")]
    Sqlite {
        to: PathBuf,
        #[source]
        source: rusqlite::Error,
    },
    #[error("the copy `{path}` stays in journal mode `{mode}`, so that it is no single file")]
    Journal { path: PathBuf, mode: String },
    #[error("the log of `{path}` grew by {mib} MiB while it was copied; try again when less is written, or to a faster disk")]
    LogTooLong { path: PathBuf, mib: u64 },
    #[error("it was called off")]
    Stopped,
}

/// How far a copy has come, in pages.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Step {
    pub(crate) done: u64,
    pub(crate) all: u64,
}

/// Copies the database of `source` to `to`, mode 0600, in the place of a file that is there. After each
/// step that leaves something to do `after_step` is called; an error of it ends the copy.
///
/// # Errors
/// [`CopyError`]; `to` is then as it was.
pub(crate) fn copy(source: &Connection, to: &Path, after_step: &mut dyn FnMut(Step) -> Result<(), CopyError>) -> Result<(), CopyError> {
    let partial = beside(to, ".partial");
    // What an attempt left that was killed.
    clear(&partial).map_err(FileError::of("remove", &partial))?;
    let made = copy_pages(source, &partial, after_step).and_then(|()| to_single_file(&partial)).and_then(|()| Ok(put(&partial, to)?));
    if made.is_err() {
        drop(clear(&partial)); // the next attempt does it otherwise
    }
    made
}

fn copy_pages(source: &Connection, to: &Path, after_step: &mut dyn FnMut(Step) -> Result<(), CopyError>) -> Result<(), CopyError> {
    super::private_file(to).map_err(FileError::of("create", to))?;
    let failed = |source| CopyError::Sqlite { to: to.to_owned(), source };
    let mut target = Connection::open(to).map_err(failed)?;
    // It is synced as a whole before it gets its name; half of it is worth nothing.
    target.execute_batch("PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF;").map_err(failed)?;
    let snapshot = source.unchecked_transaction().map_err(failed)?;
    // A transaction is begun by its first read only.
    snapshot.query_row("SELECT count(*) FROM sqlite_schema", [], |_| Ok(())).map_err(failed)?;
    let backup = Backup::new(source, &mut target).map_err(failed)?;
    loop {
        let result = backup.step(STEP_PAGES).map_err(failed)?;
        if result == StepResult::Done {
            break;
        }
        if result != StepResult::More {
            return Err(failed(rusqlite::Error::SqliteFailure(rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_BUSY), None)));
        }
        let (pages, remaining) = (backup.progress().pagecount, backup.progress().remaining);
        let count = |pages: c_int| u64::try_from(pages).unwrap_or(0);
        after_step(Step { done: count(pages - remaining), all: count(pages) })?;
    }
    drop(backup);
    drop(snapshot);
    target.close().map_err(|(_, source)| failed(source))
}

/// The pages came from a database with a log, and say so: as it is it would get one again.
fn to_single_file(path: &Path) -> Result<(), CopyError> {
    let failed = |source| CopyError::Sqlite { to: path.to_owned(), source };
    let connection = Connection::open(path).map_err(failed)?;
    let mode: String = connection.query_row("PRAGMA journal_mode = DELETE", [], |row| row.get(0)).map_err(failed)?;
    connection.close().map_err(|(_, source)| failed(source))?;
    if mode == "delete" { Ok(()) } else { Err(CopyError::Journal { path: path.to_owned(), mode }) }
}

/// Syncs `partial`, gives it its name, and syncs the directory.
fn put(partial: &Path, to: &Path) -> Result<(), FileError> {
    let synced = OpenOptions::new().read(true).write(true).open(partial).and_then(|file| file.sync_all());
    synced.map_err(FileError::of("write", partial))?;
    crate::torture::rename(partial, to).map_err(FileError::of("put in place", to))?;
    sync_directory_of(to).map_err(FileError::of("sync the directory of", to))
}

/// A file and what SQLite put beside it.
fn clear(path: &Path) -> io::Result<()> {
    remove_if_there(path)?;
    COMPANIONS.iter().try_for_each(|ending| remove_if_there(&beside(path, ending)))
}

/// `path` with `ending` behind its name.
pub(crate) fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(ending);
    PathBuf::from(name)
}

pub(crate) fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Makes the names in a directory survive a loss of power.
pub(crate) fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

pub(crate) fn sync_directory_of(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), sync_directory)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn source(directory: &Path) -> Connection {
        let connection = Connection::open(directory.join("t.db")).unwrap();
        connection.execute_batch("PRAGMA journal_mode = WAL; CREATE TABLE t (x BLOB) STRICT;").unwrap();
        connection
    }

    fn names(directory: &Path) -> Vec<String> {
        fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect()
    }

    fn count(path: &Path) -> i64 {
        Connection::open(path).unwrap().query_row("SELECT count(*) FROM t", [], |row| row.get(0)).unwrap()
    }

    #[test]
    fn a_copy_is_one_private_file_and_replaces_what_is_there() {
        let directory = tempfile::tempdir().unwrap();
        let connection = source(directory.path());
        let to = directory.path().join("copy.db");
        fs::write(&to, "an older one").unwrap();
        fs::write(beside(&to, ".partial"), "half of one").unwrap();
        connection.execute_batch("INSERT INTO t VALUES (x'00')").unwrap();
        copy(&connection, &to, &mut |_| Ok(())).unwrap();
        assert_eq!(to.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        let beside_it = names(directory.path()).into_iter().filter(|name| name.starts_with("copy.db")).count();
        assert_eq!(beside_it, 1, "{:?}", names(directory.path()));
        assert_eq!(&fs::read(&to).unwrap()[18..20], [1, 1], "it asks for a log");
        assert_eq!(count(&to), 1);
    }

    #[test]
    fn commits_in_between_are_left_out_and_do_not_start_it_anew() {
        let directory = tempfile::tempdir().unwrap();
        let writer = source(directory.path());
        let pages =
            "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 2000) INSERT INTO t SELECT zeroblob(4000) FROM n";
        writer.execute_batch(pages).unwrap();
        let reader = Connection::open(directory.path().join("t.db")).unwrap();
        let to = directory.path().join("copy.db");
        let mut steps = 0;
        copy(&reader, &to, &mut |step| {
            steps += 1;
            assert!(step.done < step.all && steps < 100, "it came to no end");
            writer.execute_batch("INSERT INTO t VALUES (x'01')").unwrap();
            Ok(())
        })
        .unwrap();
        assert!(steps > 1, "it was copied in one step");
        assert_eq!(count(&to), 2000);
        assert!(reader.is_autocommit(), "the snapshot is still held");
    }

    #[test]
    fn one_that_is_called_off_leaves_what_was_there() {
        let directory = tempfile::tempdir().unwrap();
        let connection = source(directory.path());
        connection.execute_batch("INSERT INTO t VALUES (zeroblob(8000000))").unwrap();
        let to = directory.path().join("copy.db");
        fs::write(&to, "an older one").unwrap();
        let error = copy(&connection, &to, &mut |_| Err(CopyError::Stopped)).unwrap_err();
        assert!(matches!(error, CopyError::Stopped), "{error}");
        assert_eq!(fs::read_to_string(&to).unwrap(), "an older one");
        assert!(!names(directory.path()).iter().any(|name| name.contains("partial")));
    }
}
