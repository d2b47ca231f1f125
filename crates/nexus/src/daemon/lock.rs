//! One daemon per state directory: an `flock` on the open PID file, which the keeper inherits, so
//! that the lock lasts until the last child of a dead daemon is gone.

use super::paths::{Paths, private_dir};
use crate::clock;
use crate::keeper::{Cgroup, leftovers, tree};
use serde::{Deserialize, Serialize};
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// How long a start waits for the keeper of a dead daemon.
const CLEANUP_LIMIT: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(20);

#[derive(Debug, thiserror::Error)]
pub enum LockError {
    #[error("NEX daemon already running (PID {0})")]
    Running(u32),
    #[error("the processes of the daemon before (PID {pid}) are still being killed after {} s; see what they hang on with `ps`", CLEANUP_LIMIT.as_secs())]
    StillCleaning { pid: u32 },
    #[error("failed to {operation} `{path}`; check its owner and permissions")]
    Io {
        operation: &'static str,
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
}

/// The held lock. Dropping it without [`Lock::release`] leaves the file, as a crash does.
#[derive(Debug)]
pub struct Lock {
    file: File,
    path: PathBuf,
}

impl Lock {
    /// Takes the lock and writes our PID, waiting up to ten seconds while the children of a dead
    /// daemon are being killed; `waiting` is called once if so.
    ///
    /// # Errors
    /// [`LockError`].
    pub fn acquire(paths: &Paths, waiting: impl FnOnce(u32)) -> Result<Self, LockError> {
        let path = paths.pid_file();
        let io = |operation| {
            let path = path.clone();
            move |source| LockError::Io { operation, path, source }
        };
        private_dir(&paths.state_dir).map_err(|source| LockError::Io { operation: "create", path: paths.state_dir.clone(), source })?;
        let deadline = Instant::now() + CLEANUP_LIMIT;
        let mut waiting = Some(waiting);
        loop {
            let mut file = open(&path).map_err(io("open"))?;
            match file.try_lock() {
                // The file may have been unlinked between open and lock: then this is nobody's lock.
                Ok(()) if is_at(&file, &path) => {
                    write_pid(&mut file).map_err(io("write"))?;
                    return Ok(Self { file, path });
                }
                Ok(()) => continue,
                Err(TryLockError::WouldBlock) => {}
                Err(TryLockError::Error(source)) => return Err(io("lock")(source)),
            }
            let pid = read_pid(&mut file).unwrap_or(0);
            if is_that_daemon(paths, pid) {
                return Err(LockError::Running(pid));
            }
            if Instant::now() >= deadline {
                return Err(LockError::StillCleaning { pid });
            }
            if let Some(waiting) = waiting.take() {
                waiting(pid);
            }
            pause();
        }
    }

    /// Removes the file while it is still locked, so that nobody can lock a file that is about to go.
    ///
    /// # Errors
    /// Of the file system.
    pub fn release(self) -> std::io::Result<()> {
        std::fs::remove_file(&self.path)
    }
}

/// PID of the daemon that runs with this state directory, if one does.
pub fn holder(paths: &Paths) -> Option<u32> {
    let mut file = OpenOptions::new().read(true).open(paths.pid_file()).ok()?;
    match file.try_lock_shared() {
        Err(TryLockError::WouldBlock) => read_pid(&mut file).filter(|&pid| is_that_daemon(paths, pid)),
        Ok(()) | Err(TryLockError::Error(_)) => None,
    }
}

/// Whether the lock is free: the daemon and all its children are gone.
pub fn is_free(paths: &Paths) -> bool {
    match OpenOptions::new().read(true).open(paths.pid_file()) {
        Ok(file) => file.try_lock_shared().is_ok(),
        Err(_) => true,
    }
}

fn open(path: &std::path::Path) -> std::io::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)
}

fn is_at(file: &File, path: &std::path::Path) -> bool {
    match (file.metadata(), std::fs::metadata(path)) {
        (Ok(ours), Ok(there)) => ours.ino() == there.ino() && ours.dev() == there.dev(),
        (Ok(_) | Err(_), _) => false,
    }
}

fn write_pid(file: &mut File) -> std::io::Result<()> {
    file.set_len(0)?;
    file.seek(SeekFrom::Start(0))?;
    write!(file, "{}", std::process::id())
}

fn read_pid(file: &mut File) -> Option<u32> {
    let mut text = String::new();
    file.seek(SeekFrom::Start(0)).ok()?;
    file.take(32).read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

/// Whether `pid` is the process that wrote last-run.json, and not another with its number.
fn is_that_daemon(paths: &Paths, pid: u32) -> bool {
    let Some(run) = LastRun::read(paths) else { return false };
    run.pid == pid
        && run.ended_at.is_none()
        && run.boot_id == boot_id()
        && i32::try_from(pid).ok().and_then(tree::start_ticks) == Some(run.start_ticks)
}

/// This boot's random id.
fn boot_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

/// `last-run.json`: who ran last, and how that ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastRun {
    pub pid: u32,
    /// Unix ms.
    pub started_at: i64,
    pub ended_at: Option<i64>,
    pub clean: Option<bool>,
    /// It was told to stop at once: not clean, and not a crash either.
    #[serde(default)]
    pub forced: bool,
    /// Its ledgers' files are to be looked at by the next start, though it ended as it should.
    #[serde(default)]
    pub check_due: bool,
    #[serde(default)]
    boot_id: String,
    #[serde(default)]
    start_ticks: u64,
}

impl LastRun {
    /// This process, started now.
    pub fn this() -> Self {
        let pid = std::process::id();
        Self {
            pid,
            started_at: clock::wall_ms(),
            ended_at: None,
            clean: None,
            forced: false,
            check_due: false,
            boot_id: boot_id(),
            start_ticks: i32::try_from(pid).ok().and_then(tree::start_ticks).unwrap_or(0),
        }
    }

    /// `None` when nothing ever ran, or the file can't be read.
    pub fn read(paths: &Paths) -> Option<Self> {
        serde_json::from_slice(&std::fs::read(paths.last_run()).ok()?).ok()
    }

    /// # Errors
    /// Of the file system.
    pub fn write(&self, paths: &Paths) -> std::io::Result<()> {
        crate::credential::write_private(&paths.last_run(), serde_json::to_string(self)?.as_bytes())
    }

    /// It ended as it should.
    #[must_use]
    pub fn ended(mut self, check_due: bool) -> Self {
        (self.ended_at, self.clean, self.check_due) = (Some(clock::wall_ms()), Some(true), check_due);
        self
    }

    /// It was stopped by force.
    #[must_use]
    pub fn cut_short(mut self) -> Self {
        (self.ended_at, self.clean, self.forced) = (Some(clock::wall_ms()), Some(false), true);
        self
    }
}

/// What this process holds from its first step to its last: the lock, the record of its run, and the
/// keeper's cgroup.
/// Dropped before `ended`, as when a start fails, it puts both back as they were.
#[derive(Debug)]
pub struct Hold {
    paths: Paths,
    lock: Option<Lock>,
    before: Option<LastRun>,
    this: Option<LastRun>,
    check_due: Arc<AtomicBool>,
    keeper: Option<i32>,
    cgroup: Option<Arc<Cgroup>>,
}

impl Hold {
    pub(super) fn new(paths: Paths, lock: Lock, before: Option<LastRun>) -> Self {
        // Of one that nobody knows of, nobody knows how it ended.
        let is_due = before.as_ref().is_none_or(|run| run.clean != Some(true) || run.check_due);
        let check_due = Arc::new(AtomicBool::new(is_due));
        Self { paths, lock: Some(lock), before, this: None, check_due, keeper: None, cgroup: None }
    }

    /// Writes that this process runs now.
    pub(super) fn begin(&mut self) -> std::io::Result<()> {
        let this = LastRun::this();
        this.write(&self.paths)?;
        self.this = Some(this);
        Ok(())
    }

    /// Whether the ledgers' files are still to be looked at; what it is at a clean end, the next start finds.
    pub(super) fn check_due(&self) -> Arc<AtomicBool> {
        self.check_due.clone()
    }

    /// The locked file, for the keeper to inherit.
    pub(super) fn lock_file(&self) -> std::io::Result<File> {
        match &self.lock {
            Some(lock) => lock.file.try_clone(),
            None => Err(std::io::ErrorKind::NotFound.into()),
        }
    }

    pub(super) fn keeper_is(&mut self, pid: i32) {
        self.keeper = Some(pid);
    }

    /// To be removed once the keeper is gone.
    pub(super) fn cgroup_is(&mut self, cgroup: Arc<Cgroup>) {
        self.cgroup = Some(cgroup);
    }

    /// A clean end: steps 11 and 12 of the shutdown. The keeper is gone by now.
    pub(super) fn ended(mut self) {
        let check_due = self.check_due.load(Ordering::Acquire);
        let written = self.this.take().map(|run| run.ended(check_due).write(&self.paths));
        if let Some(Err(error)) = written {
            tracing::warn!(%error, "last-run.json not written: `status` will call this a crash");
        }
        self.remove_cgroup();
        self.release();
        tracing::info!(step = 11, "stop: PID file removed");
        crate::torture::point("stop.11");
        tracing::info!(step = 12, "stop: exit 0");
    }

    /// The daemon was told to stop at once. Its lock stays as after a crash, which this is to the next
    /// start: the keeper holds it until the last child is gone. Only for people it was none.
    pub(super) fn abandoned(mut self) {
        let written = self.this.take().map(|run| run.cut_short().write(&self.paths));
        if let Some(Err(error)) = written {
            tracing::warn!(%error, "last-run.json not written: `status` will call this a crash");
        }
        self.lock = None;
    }

    /// While the lock is held: afterwards it may be the next daemon's.
    fn remove_cgroup(&mut self) {
        if let Some(cgroup) = self.cgroup.take() {
            cgroup.remove();
        }
    }

    fn release(&mut self) {
        if let Some(lock) = self.lock.take()
            && let Err(error) = lock.release()
        {
            tracing::warn!(%error, "PID file not removed; the next start takes it over");
        }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        if self.lock.is_none() {
            return;
        }
        if let Some(keeper) = self.keeper {
            // It kills what was started, holding the lock; its socket is closed by now.
            leftovers::reap(keeper);
        }
        self.remove_cgroup();
        if self.this.is_some() {
            let restored = match &self.before {
                Some(before) => before.write(&self.paths),
                None => std::fs::remove_file(self.paths.last_run()),
            };
            if let Err(error) = restored {
                tracing::warn!(%error, "last-run.json not put back");
            }
        }
        self.release();
    }
}

#[expect(clippy::disallowed_methods, reason = "before the runtime exists, for a lock that can't be waited on with a deadline")]
fn pause() {
    std::thread::sleep(POLL);
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn paths(directory: &std::path::Path) -> Paths {
        Paths {
            state_dir: directory.join("state"),
            config_file: directory.join("nex.yaml"),
            workspace: directory.to_owned(),
            config_named: true,
        }
    }

    #[test]
    fn a_second_daemon_is_refused_by_pid_and_a_released_lock_is_free() {
        let directory = tempfile::tempdir().unwrap();
        let paths = paths(directory.path());
        let lock = Lock::acquire(&paths, |_| panic!("nobody to wait for")).unwrap();
        LastRun::this().write(&paths).unwrap();
        assert_eq!(holder(&paths), Some(std::process::id()));
        let error = Lock::acquire(&paths, |_| ()).unwrap_err().to_string();
        assert_eq!(error, format!("NEX daemon already running (PID {})", std::process::id()));
        lock.release().unwrap();
        assert_eq!(holder(&paths), None);
        assert!(is_free(&paths));
        assert!(!paths.pid_file().exists());
    }

    #[test]
    fn a_forced_end_is_remembered_as_one_and_leaves_the_lock_to_the_keeper() {
        let directory = tempfile::tempdir().unwrap();
        let paths = paths(directory.path());
        let lock = Lock::acquire(&paths, |_| panic!("nobody to wait for")).unwrap();
        let mut hold = Hold::new(paths.clone(), lock, None);
        hold.begin().unwrap();
        let keepers = hold.lock_file().unwrap();
        hold.abandoned();
        let run = LastRun::read(&paths).unwrap();
        assert_eq!((run.clean, run.forced, run.ended_at.is_some()), (Some(false), true, true));
        assert_eq!(holder(&paths), None, "the daemon is over");
        assert!(!is_free(&paths), "its children may not be");
        drop(keepers);
        assert!(is_free(&paths) && paths.pid_file().exists());
    }

    #[test]
    fn a_check_is_due_until_one_was_made_whatever_the_ends_in_between() {
        let directory = tempfile::tempdir().unwrap();
        let paths = paths(directory.path());
        // Begins a run, which finds a check due or not, and ends it with one due or not.
        let run = |found: bool, left: Option<bool>| {
            let lock = Lock::acquire(&paths, |_| panic!("nobody to wait for")).unwrap();
            let mut hold = Hold::new(paths.clone(), lock, LastRun::read(&paths));
            hold.begin().unwrap();
            assert_eq!(hold.check_due().load(Ordering::Acquire), found);
            match left {
                Some(left) => {
                    hold.check_due().store(left, Ordering::Release);
                    hold.ended();
                }
                None => hold.abandoned(),
            }
        };
        run(true, Some(true));
        run(true, Some(false));
        run(false, Some(false));
        run(false, None);
        run(true, Some(false));
        LastRun::this().write(&paths).unwrap();
        run(true, Some(true));
    }

    #[test]
    fn a_stale_file_or_a_reused_pid_does_not_hold() {
        let directory = tempfile::tempdir().unwrap();
        let paths = paths(directory.path());
        std::fs::create_dir(&paths.state_dir).unwrap();
        std::fs::write(paths.pid_file(), "1").unwrap();
        let lock = Lock::acquire(&paths, |_| panic!("the file isn't locked")).unwrap();
        // Locked by us, but last-run.json speaks of another process with our number.
        let mut other = LastRun::this();
        other.start_ticks += 1;
        other.write(&paths).unwrap();
        assert_eq!(holder(&paths), None);
        drop(lock);
    }
}
