//! Brings a database file to the schema this binary knows: forward only, one transaction a step,
//! a backup before the first. Never runs on a schema it doesn't know.

use super::copy::{CopyError, copy, sync_directory_of};
use rusqlite::Connection;
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};

/// One step: its number counts from 1, its SQL is compiled in.
#[derive(Debug, Clone, Copy)]
pub struct Migration {
    pub version: u32,
    pub sql: &'static str,
}

#[derive(Debug, thiserror::Error)]
pub enum MigrateError {
    #[error("`{file}` has schema {found}, this nexus knows {known}; run the newer nexus, or restore a backup")]
    Newer { file: PathBuf, found: u32, known: u32 },
    #[error("`{file}` has schema {found}, this nexus reads {known}; start the daemon once, it brings the file up to date")]
    Older { file: PathBuf, found: u32, known: u32 },
    #[error("step {version} of `{file}` was applied with another text than this nexus has; the file belongs to another build")]
    Changed { file: PathBuf, version: u32 },
    #[error("failed to back up `{file}` to `{to}` before migrating it")]
    Backup {
        file: PathBuf,
        to: PathBuf,
        #[source]
        source: Box<CopyError>,
    },
    #[error("failed to make the directory `{to}` for the backup of `{file}`")]
    BackupDirectory {
        file: PathBuf,
        to: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("failed to migrate `{file}` to schema {version}; it stays as it was")]
    Step {
        file: PathBuf,
        version: u32,
        #[source]
        source: rusqlite::Error,
    },
    #[error("failed to read the schema version of `{file}`")]
    Read {
        file: PathBuf,
        #[source]
        source: rusqlite::Error,
    },
}

/// Applies what is missing of `steps` to `connection`, whose file is `file`. `now_ms` is recorded.
///
/// # Errors
/// [`MigrateError`]; the file is then as it was before the failing step.
pub fn migrate(connection: &mut Connection, file: &Path, steps: &[Migration], now_ms: i64) -> Result<(), MigrateError> {
    let read = |source| MigrateError::Read { file: file.to_owned(), source };
    let create = "CREATE TABLE IF NOT EXISTS schema_version (version INTEGER PRIMARY KEY, checksum TEXT NOT NULL, applied_at INTEGER NOT NULL) STRICT";
    connection.execute_batch(create).map_err(read)?;
    let known = last_version(steps);
    let current = known_version(connection, file, steps)?;
    if current > 0 && current < known {
        back_up(connection, file, current)?;
    }
    for step in steps.iter().filter(|step| step.version > current) {
        crate::torture::point("migration.before");
        apply(connection, step, now_ms).map_err(|source| MigrateError::Step { file: file.to_owned(), version: step.version, source })?;
        crate::torture::point("migration.after");
    }
    Ok(())
}

/// Whether this binary can read the file as it is: for readers without a daemon, which migrate nothing.
///
/// # Errors
/// [`MigrateError::Newer`], [`MigrateError::Older`] or [`MigrateError::Changed`] when it can't.
pub fn check(connection: &Connection, file: &Path, steps: &[Migration]) -> Result<(), MigrateError> {
    let made = "SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = 'schema_version'";
    let made = connection.prepare(made).and_then(|mut query| query.exists([]));
    let made = made.map_err(|source| MigrateError::Read { file: file.to_owned(), source })?;
    // A daemon that was killed in its very first start leaves a file without one.
    let found = if made { known_version(connection, file, steps)? } else { 0 };
    let known = last_version(steps);
    if found < known {
        return Err(MigrateError::Older { file: file.to_owned(), found, known });
    }
    Ok(())
}

/// The version that the file has, once all that was applied to it turned out to be of `steps`.
fn known_version(connection: &Connection, file: &Path, steps: &[Migration]) -> Result<u32, MigrateError> {
    let applied = applied_steps(connection).map_err(|source| MigrateError::Read { file: file.to_owned(), source })?;
    let known = last_version(steps);
    if let Some(&(found, _)) = applied.last().filter(|(version, _)| *version > known) {
        return Err(MigrateError::Newer { file: file.to_owned(), found, known });
    }
    for (version, recorded) in &applied {
        let step = steps.iter().find(|step| step.version == *version);
        if step.is_none_or(|step| checksum(step.sql) != *recorded) {
            return Err(MigrateError::Changed { file: file.to_owned(), version: *version });
        }
    }
    Ok(applied.last().map_or(0, |(version, _)| *version))
}

fn last_version(steps: &[Migration]) -> u32 {
    steps.last().map_or(0, |step| step.version)
}

fn applied_steps(connection: &Connection) -> rusqlite::Result<Vec<(u32, String)>> {
    let mut query = connection.prepare("SELECT version, checksum FROM schema_version ORDER BY version")?;
    query.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?.collect()
}

fn apply(connection: &mut Connection, step: &Migration, now_ms: i64) -> rusqlite::Result<()> {
    let transaction = connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
    transaction.execute_batch(step.sql)?;
    transaction.execute("INSERT INTO schema_version VALUES (?1, ?2, ?3)", (step.version, checksum(step.sql), now_ms))?;
    transaction.commit()
}

/// Copies the database beside itself: `backup/<name>-v<schema>.db`, whole or not at all. One that an
/// earlier attempt at the same step made is replaced: the file may have changed since.
fn back_up(connection: &Connection, file: &Path, version: u32) -> Result<(), MigrateError> {
    use std::os::unix::fs::DirBuilderExt;
    let directory = file.parent().unwrap_or(Path::new(".")).join("backup");
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&directory);
    made.and_then(|()| sync_directory_of(&directory)).map_err(|source| MigrateError::BackupDirectory {
        file: file.to_owned(),
        to: directory.clone(),
        source,
    })?;
    let stem = file.file_stem().map_or_else(|| "ledger".into(), |stem| stem.to_string_lossy().into_owned());
    let to = directory.join(format!("{stem}-v{version}.db"));
    let copied = copy(connection, &to, &mut |_| Ok(()));
    copied.map_err(|source| MigrateError::Backup { file: file.to_owned(), to, source: Box::new(source) })
}

fn checksum(sql: &str) -> String {
    hex::encode(Sha256::digest(sql.as_bytes()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const ONE: Migration = Migration { version: 1, sql: "CREATE TABLE a (x INTEGER) STRICT; INSERT INTO a VALUES (7);" };
    const TWO: Migration = Migration { version: 2, sql: "CREATE TABLE b (x INTEGER) STRICT;" };
    const BAD: Migration = Migration { version: 2, sql: "CREATE TABLE b (x INTEGER) STRICT; NONSENSE;" };

    fn open(directory: &Path) -> (Connection, PathBuf) {
        let file = directory.join("t.db");
        (Connection::open(&file).unwrap(), file)
    }

    #[test]
    fn goes_forward_once_and_backs_up_first() {
        let directory = tempfile::tempdir().unwrap();
        let (mut connection, file) = open(directory.path());
        migrate(&mut connection, &file, &[ONE], 1).unwrap();
        migrate(&mut connection, &file, &[ONE], 2).unwrap();
        assert!(!directory.path().join("backup").exists());
        migrate(&mut connection, &file, &[ONE, TWO], 3).unwrap();
        let backup = Connection::open(directory.path().join("backup/t-v1.db")).unwrap();
        assert_eq!(backup.query_row("SELECT x FROM a", [], |row| row.get::<_, i64>(0)).unwrap(), 7);
        assert!(backup.prepare("SELECT * FROM b").is_err());
    }

    #[test]
    fn a_backup_is_private_and_replaces_what_a_killed_attempt_left() {
        use std::os::unix::fs::PermissionsExt;
        let directory = tempfile::tempdir().unwrap();
        let (mut connection, file) = open(directory.path());
        migrate(&mut connection, &file, &[ONE], 1).unwrap();
        let backup = directory.path().join("backup");
        std::fs::create_dir(&backup).unwrap();
        std::fs::write(backup.join("t-v1.db.partial"), "half").unwrap();
        std::fs::write(backup.join("t-v1.db"), "of an attempt before").unwrap();
        migrate(&mut connection, &file, &[ONE, TWO], 2).unwrap();
        let copy = backup.join("t-v1.db");
        assert_eq!(copy.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(std::fs::read_dir(&backup).unwrap().count(), 1, "something is left beside it");
        let copy = Connection::open(copy).unwrap();
        assert_eq!(copy.query_row("SELECT x FROM a", [], |row| row.get::<_, i64>(0)).unwrap(), 7);
    }

    #[test]
    fn without_a_backup_nothing_is_migrated() {
        let directory = tempfile::tempdir().unwrap();
        let (mut connection, file) = open(directory.path());
        migrate(&mut connection, &file, &[ONE], 1).unwrap();
        std::fs::write(directory.path().join("backup"), "no directory").unwrap();
        let error = migrate(&mut connection, &file, &[ONE, TWO], 2).unwrap_err();
        assert!(matches!(error, MigrateError::BackupDirectory { .. }), "{error}");
        assert!(connection.prepare("SELECT * FROM b").is_err());
    }

    #[test]
    fn a_failed_step_leaves_the_file_as_it_was() {
        let directory = tempfile::tempdir().unwrap();
        let (mut connection, file) = open(directory.path());
        migrate(&mut connection, &file, &[ONE], 1).unwrap();
        assert!(matches!(migrate(&mut connection, &file, &[ONE, BAD], 2), Err(MigrateError::Step { version: 2, .. })));
        assert!(connection.prepare("SELECT * FROM b").is_err());
        migrate(&mut connection, &file, &[ONE, TWO], 3).unwrap();
    }

    #[test]
    fn refuses_a_newer_or_foreign_schema_naming_both_versions() {
        let directory = tempfile::tempdir().unwrap();
        let (mut connection, file) = open(directory.path());
        migrate(&mut connection, &file, &[ONE, TWO], 1).unwrap();
        let error = migrate(&mut connection, &file, &[ONE], 2).unwrap_err().to_string();
        assert!(error.contains("schema 2") && error.contains("knows 1"), "{error}");
        let other = Migration { version: 2, sql: "CREATE TABLE c (x INTEGER) STRICT;" };
        assert!(matches!(migrate(&mut connection, &file, &[ONE, other], 2), Err(MigrateError::Changed { version: 2, .. })));
    }

    #[test]
    fn a_reader_takes_exactly_its_own_schema_and_changes_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let (mut connection, file) = open(directory.path());
        let refusal = |connection: &Connection, steps: &[Migration]| check(connection, &file, steps).unwrap_err().to_string();
        let text = refusal(&connection, &[ONE]);
        assert!(text.contains("schema 0") && text.contains("reads 1"), "{text}");
        assert!(connection.prepare("SELECT * FROM schema_version").is_err(), "a check made a table");
        migrate(&mut connection, &file, &[ONE], 1).unwrap();
        check(&connection, &file, &[ONE]).unwrap();
        let text = refusal(&connection, &[ONE, TWO]);
        assert!(text.contains("schema 1") && text.contains("reads 2"), "{text}");
        migrate(&mut connection, &file, &[ONE, TWO], 2).unwrap();
        let text = refusal(&connection, &[ONE]);
        assert!(text.contains("schema 2") && text.contains("knows 1"), "{text}");
        let other = Migration { version: 2, sql: "CREATE TABLE c (x INTEGER) STRICT;" };
        assert!(matches!(check(&connection, &file, &[ONE, other]), Err(MigrateError::Changed { version: 2, .. })));
    }
}
