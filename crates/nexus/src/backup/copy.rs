//! Makes a backup, of the ledgers of a running daemon or of one that is stopped. Blocks; it never opens a
//! ledger file but through SQLite, since closing it would drop the locks of this process's connections.

use super::manifest::{Entry, Fingerprint, MANIFEST_FILE, Manifest};
use super::programs::{self, Listing, PROGRAMS_FILE, Places, ProgramsError, Root};
use super::{BACKUPS_DIRECTORY, CONFIG_FILE, Check, MIB, OVERLAY_FILE, Progress, Watch};
use super::{config_text, damage, free_bytes, moment, open_read_only, private_directory};
use crate::credential::write_private;
use crate::file_error::FileError;
use crate::ledger::copy::{CopyError, Step, beside, copy, remove_if_there, sync_directory, sync_directory_of};
use crate::ledger::writer::LongRead;
use crate::ledger::{Counters, Ledger, ReadError, Readers};
use std::collections::BTreeMap;
use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

/// Who follows, before whom it follows.
const ORDER: [Ledger; 4] = [Ledger::Identity, Ledger::Agents, Ledger::Nexus, Ledger::Events];
/// A running daemon's disk is left to it for as long as a step took, but for no longer than this.
const STEP_PAUSE_MAX: Duration = Duration::from_millis(20);
/// How far the log of a ledger may grow that is being copied, which can't be begun anew meanwhile.
const LOG_MIB_MAX: u64 = 4 * 1024;

/// What is to be copied, and to where.
#[derive(Debug)]
pub struct Job {
    pub ledgers: PathBuf,
    /// Absolute. Made if there is none; one that has anything in it is refused.
    pub to: PathBuf,
    pub config_file: PathBuf,
    pub overlay_file: PathBuf,
    /// Automations and plugins.
    pub programs: Places,
    /// What must stay free on the disk beyond the copies.
    pub spare_bytes: u64,
    /// A daemon is running and needs the disk as well.
    pub online: bool,
    /// Of the daemon's writers; let go when all ledgers are copied.
    pub long_reads: Vec<LongRead>,
    /// Unix ms.
    pub now_ms: i64,
}

/// Why there is no backup.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    #[error("there is no ledger `{0}`; has the daemon ever run with this configuration?")]
    NoLedger(PathBuf),
    #[error("`{0}` is not empty; name a directory that is, or one that doesn't exist")]
    NotEmpty(PathBuf),
    #[error(transparent)]
    File(#[from] FileError),
    #[error("`{path}` has {free_mib} MiB free, and {needed_mib} MiB are needed")]
    NoRoom { path: PathBuf, free_mib: u64, needed_mib: u64 },
    #[error(transparent)]
    Copy(CopyError),
    #[error(transparent)]
    Programs(ProgramsError),
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error("failed to check the copy `{path}`")]
    Check {
        path: PathBuf,
        #[source]
        source: rusqlite::Error,
    },
    #[error("ledger `{file}` is damaged, and so would be its copy: {damage}")]
    Damaged { file: String, damage: String },
    #[error("the copies don't fit: {0}; the ledgers themselves don't")]
    OutOfStep(&'static str),
    #[error("the backup was called off")]
    Stopped,
}

impl From<CopyError> for BackupError {
    fn from(error: CopyError) -> Self {
        match error {
            CopyError::Stopped => Self::Stopped,
            other @ (CopyError::File(_) | CopyError::Sqlite { .. } | CopyError::Journal { .. } | CopyError::LogTooLong { .. }) => {
                Self::Copy(other)
            }
        }
    }
}

impl From<ProgramsError> for BackupError {
    fn from(error: ProgramsError) -> Self {
        match error {
            ProgramsError::Stopped => Self::Stopped,
            ProgramsError::File(error) => Self::File(error),
            other @ (ProgramsError::TooMuch { .. } | ProgramsError::Changed { .. }) => Self::Programs(other),
        }
    }
}

/// Where a backup of now goes, if nobody says otherwise.
pub fn default_directory(ledgers: &Path, now_ms: i64) -> PathBuf {
    ledgers.join(BACKUPS_DIRECTORY).join(moment(now_ms))
}

/// Makes the backup; its manifest.
///
/// # Errors
/// [`BackupError`]; what was written is removed again then.
pub fn make(job: Job, watch: &mut Watch<'_>) -> Result<Manifest, BackupError> {
    let to = job.to.clone();
    let is_new = prepare(&to)?;
    let made = fill(job, watch);
    if made.is_err() {
        clear(&to, is_new);
    }
    made
}

/// Makes sure of an empty directory that only this user can enter; whether it was made.
fn prepare(to: &Path) -> Result<bool, BackupError> {
    let is_new = match fs::read_dir(to) {
        Ok(mut entries) => match entries.next() {
            None => false,
            Some(_) => return Err(BackupError::NotEmpty(to.to_owned())),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            private_directory(to).map_err(FileError::of("create", to))?;
            true
        }
        Err(source) => return Err(FileError::of("open", to)(source).into()),
    };
    let mode = fs::metadata(to).map_err(FileError::of("open", to))?.permissions().mode();
    if mode & 0o077 != 0 {
        fs::set_permissions(to, Permissions::from_mode(0o700)).map_err(FileError::of("make private", to))?;
    }
    Ok(is_new)
}

/// Removes what was written. What can't be removed has no manifest, and is no backup.
fn clear(to: &Path, is_new: bool) {
    for ledger in ORDER {
        drop(remove_if_there(&to.join(ledger.file_name())));
    }
    for name in [MANIFEST_FILE, PROGRAMS_FILE, CONFIG_FILE, OVERLAY_FILE] {
        drop(remove_if_there(&to.join(name)));
    }
    // The directory was empty: all in it is ours.
    for root in Root::ALL {
        drop(fs::remove_dir_all(to.join(root.name())));
    }
    if let Some(directory) = Path::new(OVERLAY_FILE).parent() {
        drop(fs::remove_dir(to.join(directory)));
    }
    if is_new {
        drop(fs::remove_dir(to));
    }
}

fn fill(job: Job, watch: &mut Watch<'_>) -> Result<Manifest, BackupError> {
    let Job { ledgers, to, config_file, overlay_file, programs, spare_bytes, online, long_reads, now_ms } = job;
    let found = programs::find(&programs, &to)?;
    require_room(&ledgers, &to, spare_bytes.saturating_add(found.bytes))?;
    for ledger in ORDER {
        copy_ledger(ledger, &ledgers, &to, online, watch)?;
    }
    drop(long_reads);
    let mut files = BTreeMap::new();
    for ledger in ORDER {
        files.insert(ledger.file_name(), examine(ledger, &to, watch)?);
    }
    let counters = Counters::read(&to)?;
    if let Some(what) = counters.out_of_step() {
        return Err(BackupError::OutOfStep(what));
    }
    for (from, name) in [(config_file, CONFIG_FILE), (overlay_file, OVERLAY_FILE)] {
        if let Some(entry) = copy_config(&from, &to.join(name))? {
            files.insert(name.to_owned(), entry);
        }
    }
    let (listing, programs) = programs::copy(found, &to, watch)?;
    if let Some(listing) = listing {
        files.insert(PROGRAMS_FILE.to_owned(), write_listing(&listing, &to.join(PROGRAMS_FILE))?);
    }
    // Everything has its name on disk before the manifest has.
    sync_directory(&to).map_err(FileError::of("sync", &to))?;
    let manifest = Manifest::new(now_ms, online, files, counters, programs);
    let path = to.join(MANIFEST_FILE);
    let text = serde_json::to_string_pretty(&manifest).map_err(io::Error::from).map_err(FileError::of("write", &path))?;
    write_private(&path, text.as_bytes()).map_err(FileError::of("write", &path))?;
    sync_directory(&to).map_err(FileError::of("sync", &to))?;
    Ok(manifest)
}

/// The ledgers must be there, and their copies must have room.
fn require_room(ledgers: &Path, to: &Path, spare_bytes: u64) -> Result<(), BackupError> {
    let mut needed = spare_bytes;
    for ledger in ORDER {
        let path = ledgers.join(ledger.file_name());
        match fs::metadata(&path) {
            Ok(file) => needed = needed.saturating_add(file.len()).saturating_add(log_bytes(&path)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(BackupError::NoLedger(path)),
            Err(source) => return Err(FileError::of("open", &path)(source).into()),
        }
    }
    let free = free_bytes(to).map_err(FileError::of("find the free space of", to))?;
    if free < needed {
        return Err(BackupError::NoRoom { path: to.to_owned(), free_mib: free / MIB, needed_mib: needed.div_ceil(MIB) });
    }
    Ok(())
}

/// Bytes of a ledger's log; 0 if it has none.
fn log_bytes(path: &Path) -> u64 {
    fs::metadata(beside(path, "-wal")).map_or(0, |log| log.len())
}

fn copy_ledger(ledger: Ledger, ledgers: &Path, to: &Path, gently: bool, watch: &mut Watch<'_>) -> Result<(), BackupError> {
    let (path, to) = (ledgers.join(ledger.file_name()), to.join(ledger.file_name()));
    let Watch { tell, stop } = watch;
    let mut told = None;
    let mut began = Instant::now();
    // It may be long from before, and have room for what comes.
    let log_before = log_bytes(&path);
    let mut after_step = |step: Step| {
        if stop.is_cancelled() {
            return Err(CopyError::Stopped);
        }
        let mib = log_bytes(&path).saturating_sub(log_before) / MIB;
        if mib > LOG_MIB_MAX {
            return Err(CopyError::LogTooLong { path: path.clone(), mib });
        }
        let percent = step.done.saturating_mul(100) / step.all.max(1);
        if told != Some(percent) {
            told = Some(percent);
            tell(Progress { doing: "copying", file: ledger.file_name(), percent });
        }
        if gently {
            pause(began.elapsed().min(STEP_PAUSE_MAX));
        }
        began = Instant::now();
        Ok(())
    };
    Readers::new(path.clone()).read_now(|connection| Ok(copy(connection, &to, &mut after_step)))??;
    Ok(())
}

/// Looks at a copy as whoever restores it will.
fn examine(ledger: Ledger, to: &Path, watch: &mut Watch<'_>) -> Result<Entry, BackupError> {
    let (file, path) = (ledger.file_name(), to.join(ledger.file_name()));
    (watch.tell)(Progress { doing: "checking", file: file.clone(), percent: 0 });
    let failed = |source| match watch.stop.is_cancelled() {
        true => BackupError::Stopped,
        false => BackupError::Check { path: path.clone(), source },
    };
    let mut connection = open_read_only(&path).map_err(failed)?;
    if let Some(damage) = damage(&mut connection, Check::Quick, &watch.stop).map_err(failed)? {
        return Err(BackupError::Damaged { file, damage });
    }
    let schema = "SELECT coalesce(max(version), 0) FROM schema_version";
    let schema: u32 = connection.query_row(schema, [], |row| row.get(0)).map_err(failed)?;
    drop(connection);
    Ok(fingerprint(&path, &watch.stop)?.entry(Some(schema)))
}

/// Of a copy, which no connection of this process has open.
fn fingerprint(path: &Path, stop: &CancellationToken) -> Result<Fingerprint, BackupError> {
    let mut pass = |_: &[u8]| if stop.is_cancelled() { Err(io::Error::other("called off")) } else { Ok(()) };
    let read = File::open(path).and_then(|mut file| Fingerprint::read(&mut file, &mut pass));
    match read {
        Err(_) if stop.is_cancelled() => Err(BackupError::Stopped),
        read => Ok(read.map_err(FileError::of("read", path))?),
    }
}

/// Copies a configuration file, if there is one.
fn copy_config(from: &Path, to: &Path) -> Result<Option<Entry>, BackupError> {
    let Some(text) = config_text(from).map_err(FileError::of("read", from))? else { return Ok(None) };
    if let Some(directory) = to.parent() {
        private_directory(directory).map_err(FileError::of("create", directory))?;
    }
    write_private(to, &text).map_err(FileError::of("write", to))?;
    sync_directory_of(to).map_err(FileError::of("sync the directory of", to))?;
    let mut fingerprint = Fingerprint::default();
    fingerprint.add(&text);
    Ok(Some(fingerprint.entry(None)))
}

fn write_listing(listing: &Listing, path: &Path) -> Result<Entry, BackupError> {
    let text = listing.text(path)?;
    write_private(path, &text).map_err(FileError::of("write", path))?;
    let mut fingerprint = Fingerprint::default();
    fingerprint.add(&text);
    Ok(fingerprint.entry(None))
}

#[expect(clippy::disallowed_methods, reason = "leaves the disk to others between two steps; nothing is waited for")]
fn pause(length: Duration) {
    std::thread::sleep(length);
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// Ledgers of a daemon that never did anything.
    fn ledgers(directory: &Path) -> PathBuf {
        let ledgers = directory.join("data");
        fs::create_dir(&ledgers).unwrap();
        for ledger in Ledger::ALL {
            drop(crate::ledger::open(&ledgers, ledger, 1).unwrap());
        }
        ledgers
    }

    fn places(directory: &Path) -> Places {
        Places { automations: directory.join("state/automations"), plugins: directory.join("plugins"), never: Vec::new() }
    }

    fn job(directory: &Path, spare_bytes: u64) -> Job {
        Job {
            ledgers: directory.join("data"),
            to: directory.join("to"),
            config_file: directory.join("nex.yaml"),
            overlay_file: directory.join("state/overlay.yaml"),
            programs: places(directory),
            spare_bytes,
            online: false,
            long_reads: Vec::new(),
            now_ms: 5,
        }
    }

    fn run(job: Job, stop: &CancellationToken) -> Result<Manifest, BackupError> {
        make(job, &mut Watch { tell: &mut |_| {}, stop: stop.clone() })
    }

    #[test]
    fn everything_is_private_and_the_manifest_is_of_what_is_there() {
        let directory = tempfile::tempdir().unwrap();
        ledgers(directory.path());
        fs::write(directory.path().join("nex.yaml"), "daemon: {}\n").unwrap();
        let to = directory.path().join("to");
        fs::create_dir(&to).unwrap();
        fs::set_permissions(&to, Permissions::from_mode(0o755)).unwrap();
        let made = run(job(directory.path(), 0), &CancellationToken::new()).unwrap();
        assert_eq!(Manifest::read(&to).unwrap(), made);
        assert_eq!(to.metadata().unwrap().permissions().mode() & 0o777, 0o700);
        let mut names: Vec<String> = Vec::new();
        for entry in fs::read_dir(&to).unwrap().flatten() {
            assert_eq!(entry.metadata().unwrap().permissions().mode() & 0o777, 0o600, "{entry:?}");
            names.push(entry.file_name().to_string_lossy().into_owned());
        }
        names.sort();
        assert_eq!(names, ["agents.db", "events.db", "identity.db", "manifest.json", "nex.yaml", "nexus.db"]);
        for (name, entry) in &made.files {
            let fingerprint = fingerprint(&to.join(name), &CancellationToken::new()).unwrap();
            assert_eq!(&fingerprint.entry(entry.schema), entry, "{name}");
        }
        let again = run(job(directory.path(), 0), &CancellationToken::new()).unwrap_err();
        assert!(matches!(again, BackupError::NotEmpty(_)), "{again}");
        assert_eq!(Manifest::read(&to).unwrap(), made, "a refused one touched it");
    }

    #[test]
    fn one_that_fails_leaves_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let missing = run(job(directory.path(), 0), &CancellationToken::new()).unwrap_err();
        assert!(matches!(missing, BackupError::NoLedger(_)), "{missing}");
        let ledgers = ledgers(directory.path());
        let full = run(job(directory.path(), u64::MAX), &CancellationToken::new()).unwrap_err();
        assert!(matches!(full, BackupError::NoRoom { .. }), "{full}");
        let stop = CancellationToken::new();
        stop.cancel();
        let stopped = run(job(directory.path(), 0), &stop).unwrap_err();
        assert!(matches!(stopped, BackupError::Stopped), "{stopped}");
        fs::write(ledgers.join("nexus.db"), [7_u8; 65_536]).unwrap();
        let damaged = run(job(directory.path(), 0), &CancellationToken::new()).unwrap_err();
        assert!(!matches!(damaged, BackupError::Stopped), "{damaged}");
        assert!(!directory.path().join("to").exists(), "something is left");
    }

    #[test]
    fn followers_that_are_ahead_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        let ledgers = ledgers(directory.path());
        let agents = rusqlite::Connection::open(ledgers.join("agents.db")).unwrap();
        agents.execute_batch("INSERT INTO applied VALUES ('nexus.finish', 3)").unwrap();
        drop(agents);
        let error = run(job(directory.path(), 0), &CancellationToken::new()).unwrap_err();
        assert!(matches!(error, BackupError::OutOfStep(_)), "{error}");
        assert!(!directory.path().join("to").exists());
    }
}
