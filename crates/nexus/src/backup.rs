//! Backup and restore of the four ledgers: what both have in common.
//!
//! Theory of operation. A backup is a directory with a copy of each ledger, the configuration files, the files of
//! automations and plugins, and a manifest that is written last. Nothing is ever written to two ledgers
//! together, so the copies are of different moments, and their order is what makes them fit: who follows is copied before whom it
//! follows. `identity.db` and `agents.db` come first, then `nexus.db`, then `events.db`; each mark of how
//! far a file has followed another then points to rows that the later copy has, as after a crash. One
//! mark runs the other way, what `events.db` has of the messages sent: a restore sets it back.
//!
//! A restore works on copies of the copies. Only when those are checked, and decided about what was open
//! in them, they take the place of the present files, which are moved aside.
//!
//! Credentials are never part of it, nor are the programs of adapters and agents, nor is `bus.db`, which holds
//! notices only.

pub mod copy;
pub mod manifest;
mod mark;
pub mod programs;
pub mod restore;
mod swap;

pub(crate) use swap::STAGE_DIRECTORY;
pub use swap::SwapError;

use rusqlite::{Connection, ErrorCode, OpenFlags};
use serde::Serialize;
use std::ffi::c_int;
use std::io;
use std::path::{Path, PathBuf};
use tokio_util::sync::CancellationToken;

/// The configuration and the overlay within a backup, which lie as in a workspace.
pub const CONFIG_FILE: &str = "nex.yaml";
pub const OVERLAY_FILE: &str = "state/overlay.yaml";
/// Where backups lie below the ledgers, if nobody says otherwise.
const BACKUPS_DIRECTORY: &str = "backup";
/// Longest configuration file, in bytes; the parser's own limit is lower.
const CONFIG_BYTES_MAX: u64 = 4 * 1024 * 1024;
/// Steps of SQLite's machine, or pages, between two looks at whether a check is to be ended.
const CHECK_OPS: c_int = 1_000;
const MIB: u64 = 1024 * 1024;

/// Where a restore's copies wait, of the ledgers and of automations and plugins; a restore that was killed leaves them.
pub(crate) fn restore_stages(ledgers: &Path, programs: Option<&programs::Places>) -> Vec<PathBuf> {
    let programs = programs.map(|places| [&places.automations, &places.plugins].map(|place| programs::stage_of(place)));
    std::iter::once(swap::stage(ledgers)).chain(programs.into_iter().flatten()).collect()
}

/// Who watches the work, and may end it.
pub struct Watch<'a> {
    pub tell: &'a mut dyn FnMut(Progress),
    pub stop: CancellationToken,
}

impl std::fmt::Debug for Watch<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watch").finish_non_exhaustive()
    }
}

/// How far it has come with a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Progress {
    /// `copying` or `checking`.
    pub doing: &'static str,
    pub file: String,
    pub percent: u64,
}

/// How thoroughly a database is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Check {
    /// Everything but whether each index fits its table.
    Quick,
    Whole,
}

impl Check {
    fn sql(self) -> &'static str {
        match self {
            Self::Quick => "PRAGMA quick_check(10)",
            Self::Whole => "PRAGMA integrity_check(10)",
        }
    }
}

/// What is wrong with a database, as SQLite's own check finds it; an error once `stop` is cancelled.
fn damage(connection: &mut Connection, check: Check, stop: &CancellationToken) -> rusqlite::Result<Option<String>> {
    let stop = stop.clone();
    connection.progress_handler(CHECK_OPS, Some(move || stop.is_cancelled()))?;
    let found = findings(connection, check);
    connection.progress_handler(0, None::<fn() -> bool>)?;
    match found {
        // So far from a database that not even the check can go on.
        Err(error) if matches!(error.sqlite_error_code(), Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase)) => {
            Ok(Some(error.to_string()))
        }
        found => found,
    }
}

fn findings(connection: &Connection, check: Check) -> rusqlite::Result<Option<String>> {
    let mut query = connection.prepare(check.sql())?;
    let lines: Vec<String> = query.query_map([], |row| row.get(0))?.collect::<rusqlite::Result<_>>()?;
    Ok((lines != ["ok"]).then(|| lines.join("; ")))
}

fn open_read_only(path: &Path) -> rusqlite::Result<Connection> {
    Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX)
}

/// Makes sure of a directory; what is made of its path only this user can enter, and a loss of power keeps.
fn private_directory(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    let new: Vec<&Path> = path.ancestors().take_while(|one| !one.exists()).collect();
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path)?;
    new.into_iter().try_for_each(crate::ledger::copy::sync_directory_of)
}

/// Bytes that this user may still write to the file system of `directory`.
fn free_bytes(directory: &Path) -> io::Result<u64> {
    let space = rustix::fs::statvfs(directory)?;
    Ok(space.f_bavail.saturating_mul(space.f_frsize))
}

/// A moment as the name of a directory: `20260205T143007.123Z`. Names sort by time.
fn moment(unix_ms: i64) -> String {
    jiff::Timestamp::from_millisecond(unix_ms).map_or_else(|_| unix_ms.to_string(), |time| time.strftime("%Y%m%dT%H%M%S%.3fZ").to_string())
}

/// A configuration file's text; `None` where there is none.
fn config_text(path: &Path) -> io::Result<Option<Vec<u8>>> {
    use std::io::Read;
    let file = match std::fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut bytes = Vec::new();
    file.take(CONFIG_BYTES_MAX + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > CONFIG_BYTES_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "it is longer than any configuration"));
    }
    Ok(Some(bytes))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn moments_are_names_that_sort() {
        assert_eq!(moment(1_770_301_807_123), "20260205T143007.123Z");
        assert!(moment(1_770_301_807_123) < moment(1_770_301_808_000));
    }

    #[test]
    fn damage_is_found_and_a_check_can_be_ended() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("t.db");
        let connection = Connection::open(&path).unwrap();
        let rows = "CREATE TABLE t (x TEXT) STRICT; CREATE INDEX i ON t (x);
            WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 20000) INSERT INTO t SELECT i || 'abcdefgh' FROM n;";
        connection.execute_batch(rows).unwrap();
        drop(connection);
        let stop = CancellationToken::new();
        for check in [Check::Quick, Check::Whole] {
            assert_eq!(damage(&mut open_read_only(&path).unwrap(), check, &stop).unwrap(), None);
        }
        stop.cancel();
        assert!(damage(&mut open_read_only(&path).unwrap(), Check::Whole, &stop).is_err());
        let mut bytes = std::fs::read(&path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle..middle + 8192].fill(0xAB);
        std::fs::write(&path, bytes).unwrap();
        let found = damage(&mut open_read_only(&path).unwrap(), Check::Whole, &CancellationToken::new()).unwrap();
        assert!(found.is_some());
    }
}
