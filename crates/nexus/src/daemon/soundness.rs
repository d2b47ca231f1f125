//! Whether the ledgers' files are undamaged: looked at in the background once the daemon is ready, after an end that
//! was no clean one, by SQLite's quick check of each. It keeps what was found, for health, and mends nothing.
//!
//! The look takes as long as the files are large, which a start must not. What every start looks at before it is
//! ready, that each is a database and of this schema, is the ledger's own.

use super::control::Control;
use crate::ledger::copy::beside;
use crate::ledger::{Ledger, read_only};
use rusqlite::{Connection, ErrorCode, ffi};
use std::ffi::c_int;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Its name in the watch over the daemon's tasks.
pub(super) const CHECK: &str = "ledger check";
/// How long the look at one file may take.
const FILE_LIMIT: Duration = Duration::from_secs(600);
/// How far the file's log may grow meanwhile, which can't be begun anew.
const LOG_GROWTH_BYTES_MAX: u64 = 1024 * 1024 * 1024;
/// Steps of SQLite's machine, or pages, between two looks at whether it is to go on.
const STEPS_BETWEEN_LOOKS: c_int = 1_000;
/// After so much work the disk and the processor are left to others for as long, but for no longer than [`PAUSE_MAX`].
const WORK: Duration = Duration::from_millis(5);
const PAUSE_MAX: Duration = Duration::from_millis(20);
/// Characters of what SQLite says of the damage.
const DAMAGE_CHARS_MAX: usize = 200;
/// The disk doesn't give back what is in the file. Other errors of input and output tell of memory, locks and descriptors.
const UNREADABLE: [c_int; 4] = [ffi::SQLITE_IOERR, ffi::SQLITE_IOERR_READ, ffi::SQLITE_IOERR_SHORT_READ, ffi::SQLITE_IOERR_CORRUPTFS];
const DAMAGED_FIX: &str = "stop the daemon, keep a copy of the file, and put a backup in place with `nexus restore`";
const UNFINISHED_FIX: &str =
    "the next start looks again, and the daemon itself once a full disk has room; `nexus doctor` does while it is stopped";

/// What is known of the files.
#[derive(Debug)]
pub(super) struct Soundness {
    /// Until each was found sound: otherwise the next start looks as well.
    due: Arc<AtomicBool>,
    /// Those that were not found sound.
    found: Mutex<Vec<(Ledger, Looked)>>,
}

impl Soundness {
    pub(super) fn new(due: Arc<AtomicBool>) -> Self {
        Self { due, found: Mutex::default() }
    }

    pub(super) fn is_damaged(&self, ledger: Ledger) -> bool {
        self.lock().iter().any(|(one, looked)| *one == ledger && matches!(looked, Looked::Damaged(_)))
    }

    /// A sentence for each damaged file, with what to do.
    pub(super) fn damaged(&self) -> Vec<String> {
        self.told(|file, looked| match looked {
            Looked::Damaged(damage) => Some(format!("ledger `{file}` is damaged: {DAMAGED_FIX} ({damage})")),
            Looked::Sound | Looked::NotToItsEnd(_) => None,
        })
    }

    /// A sentence for each file of which it isn't known, with what to do.
    pub(super) fn unfinished(&self) -> Vec<String> {
        self.told(|file, looked| match looked {
            Looked::NotToItsEnd(why) => {
                Some(format!("ledger `{file}` was not looked at to its end ({why}), so it may be damaged: {UNFINISHED_FIX}"))
            }
            Looked::Sound | Looked::Damaged(_) => None,
        })
    }

    fn told(&self, tell: impl Fn(&str, &Looked) -> Option<String>) -> Vec<String> {
        self.lock().iter().filter_map(|(ledger, looked)| tell(&ledger.file_name(), looked)).collect()
    }

    /// Whether it is sound.
    fn note(&self, ledger: Ledger, looked: Looked) -> bool {
        let mut found = self.lock();
        found.retain(|(one, _)| *one != ledger);
        let is_sound = looked == Looked::Sound;
        if !is_sound {
            found.push((ledger, looked));
        }
        is_sound
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<(Ledger, Looked)>> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What ends a look before the file's end.
#[derive(Debug, Clone)]
struct Until {
    stop: CancellationToken,
    /// The log of a file that is looked at only grows, and takes what room there is.
    disk_low: watch::Receiver<bool>,
}

impl Until {
    /// Waits for the disk to have room; false when the daemon stops first.
    async fn has_room(&self) -> bool {
        let mut disk_low = self.disk_low.clone();
        tokio::select! {
            known = disk_low.wait_for(|is_low| !is_low) => known.is_ok(),
            () = self.stop.cancelled() => false,
        }
    }
}

/// What a look at one file came to.
#[derive(Debug, PartialEq, Eq)]
enum Looked {
    Sound,
    Damaged(String),
    NotToItsEnd(Unfinished),
}

/// Why a look didn't come to the file's end.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Unfinished {
    Stopped,
    /// The only one after which it is looked at again by itself.
    DiskLow,
    TookTooLong,
    LogGrew,
    BrokeOff,
    /// In SQLite's words.
    Failed(String),
}

impl fmt::Display for Unfinished {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Stopped => "the daemon stops",
            Self::DiskLow => "the disk is nearly full",
            Self::TookTooLong => "it took too long",
            Self::LogGrew => "its log grew too long meanwhile",
            Self::BrokeOff => "it broke off",
            Self::Failed(error) => error,
        })
    }
}

/// Looks at each file in turn, if that is due; ends with the last, or at `stop`.
pub(super) async fn check(control: Arc<Control>, directory: PathBuf, stop: CancellationToken) {
    crate::torture::point("task.ledger check");
    let (soundness, until) = (&control.soundness, Until { stop, disk_low: control.disk_low.clone() });
    if !soundness.due.load(Ordering::Acquire) {
        return;
    }
    let began = Instant::now();
    let mut all_sound = true;
    for ledger in Ledger::ALL {
        loop {
            let looked = look_at(&control, ledger, &directory, &until).await;
            if until.stop.is_cancelled() {
                return; // the next start looks
            }
            tell(ledger, &looked);
            let is_over = looked != Looked::NotToItsEnd(Unfinished::DiskLow);
            let is_sound = soundness.note(ledger, looked);
            if is_over {
                all_sound &= is_sound;
                break;
            }
            if !until.has_room().await {
                return;
            }
        }
    }
    if all_sound {
        soundness.due.store(false, Ordering::Release);
        tracing::info!(ms = began.elapsed().as_millis() as u64, "the files of the ledgers are sound");
    }
}

async fn look_at(control: &Control, ledger: Ledger, directory: &Path, until: &Until) -> Looked {
    let (path, until, ledgers) = (directory.join(ledger.file_name()), until.clone(), &control.ledgers);
    // No writer waits for a checkpoint that could only wait for this.
    let long_read = match ledger {
        Ledger::Events => ledgers.events.writer.long_read(),
        Ledger::Agents => ledgers.agents.writer.long_read(),
        Ledger::Identity => ledgers.identity.writer.long_read(),
        // The bus's store is none of the four.
        Ledger::Nexus | Ledger::Bus => ledgers.nexus.writer.long_read(),
    };
    let looked = crate::watch::blocking("ledger.check", move || {
        let looked = look(&path, &until);
        drop(long_read);
        looked
    });
    // A panic was told by its name.
    looked.await.unwrap_or(Looked::NotToItsEnd(Unfinished::BrokeOff))
}

fn tell(ledger: Ledger, looked: &Looked) {
    let file = ledger.file_name();
    match looked {
        Looked::Sound => tracing::debug!(file, "the file of the ledger is sound"),
        Looked::Damaged(damage) => {
            tracing::error!(file, damage, fix = DAMAGED_FIX, "a ledger is damaged");
        }
        Looked::NotToItsEnd(why) => {
            tracing::warn!(file, %why, fix = UNFINISHED_FIX, "the file of a ledger was not looked at to its end");
        }
    }
}

fn look(path: &Path, until: &Until) -> Looked {
    let ended_by = Arc::new(OnceLock::new());
    match read_only(path).and_then(|connection| quick_check(connection, path, until.clone(), ended_by.clone())) {
        Ok(found) if found == "ok" => Looked::Sound,
        Ok(found) => Looked::Damaged(one_line(&found)),
        Err(error) => broken_off(&error, ended_by.get()),
    }
}

/// What it says of the file that the look at it failed, or was ended by something.
fn broken_off(error: &rusqlite::Error, ended_by: Option<&Unfinished>) -> Looked {
    let failed = error.sqlite_error();
    // So far from a database that not even the check can go on.
    if failed.is_some_and(|failed| [ErrorCode::DatabaseCorrupt, ErrorCode::NotADatabase].contains(&failed.code)) {
        return Looked::Damaged(one_line(&error.to_string()));
    }
    if failed.is_some_and(|failed| UNREADABLE.contains(&failed.extended_code)) {
        return Looked::Damaged(one_line(&format!("the disk doesn't give it back: {error}")));
    }
    Looked::NotToItsEnd(ended_by.cloned().unwrap_or_else(|| Unfinished::Failed(error.to_string())))
}

/// The first thing that SQLite finds wrong, or `ok`. What ends it earlier is left in `ended_by`.
fn quick_check(mut connection: Connection, path: &Path, until: Until, ended_by: Arc<OnceLock<Unfinished>>) -> rusqlite::Result<String> {
    let log = beside(path, "-wal");
    let log_bytes = move || std::fs::metadata(&log).map_or(0, |log| log.len());
    let (began, log_before) = (Instant::now(), log_bytes());
    let mut rested = Instant::now();
    let is_over = move || {
        let worked = rested.elapsed();
        if worked >= WORK {
            pause(worked.min(PAUSE_MAX));
            rested = Instant::now();
        }
        let why = if until.stop.is_cancelled() {
            Some(Unfinished::Stopped)
        } else if *until.disk_low.borrow() {
            Some(Unfinished::DiskLow)
        } else if worked >= WORK && began.elapsed() >= FILE_LIMIT {
            Some(Unfinished::TookTooLong)
        } else if worked >= WORK && log_bytes().saturating_sub(log_before) > LOG_GROWTH_BYTES_MAX {
            Some(Unfinished::LogGrew)
        } else {
            None
        };
        why.map(|why| ended_by.get_or_init(|| why)).is_some()
    };
    connection.progress_handler(STEPS_BETWEEN_LOOKS, Some(is_over))?;
    connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))
}

/// SQLite's words come in several lines.
fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(DAMAGE_CHARS_MAX).collect()
}

#[expect(clippy::disallowed_methods, reason = "leaves disk and processor to others; nothing is waited for")]
fn pause(length: Duration) {
    std::thread::sleep(length);
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn ledger(path: &Path) {
        let connection = Connection::open(path).unwrap();
        let rows = "PRAGMA page_size = 8192; CREATE TABLE t (x TEXT) STRICT;
            WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 20000) INSERT INTO t SELECT i || 'abcdefgh' FROM n;";
        connection.execute_batch(rows).unwrap();
    }

    fn until() -> (watch::Sender<bool>, Until) {
        let (disk, disk_low) = watch::channel(false);
        (disk, Until { stop: CancellationToken::new(), disk_low })
    }

    #[test]
    fn a_page_that_is_damaged_is_found_and_a_stop_ends_the_look() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("t.db");
        ledger(&path);
        let (_disk, until) = until();
        assert_eq!(look(&path, &until), Looked::Sound);
        let mut bytes = std::fs::read(&path).unwrap();
        let middle = bytes.len() / 2 / 8192 * 8192;
        bytes[middle..middle + 8192].fill(0xAB);
        std::fs::write(&path, &bytes).unwrap();
        let Looked::Damaged(damage) = look(&path, &until) else { panic!("nothing was found") };
        assert!(!damage.contains('\n') && damage.chars().count() <= DAMAGE_CHARS_MAX, "{damage}");
        std::fs::write(&path, "not a database ".repeat(1_000)).unwrap();
        assert!(matches!(look(&path, &until), Looked::Damaged(_)));
        std::fs::remove_file(&path).unwrap();
        assert!(matches!(look(&path, &until), Looked::NotToItsEnd(_)), "of one that isn't there nothing is known");
        ledger(&path);
        until.stop.cancel();
        assert_eq!(look(&path, &until), Looked::NotToItsEnd(Unfinished::Stopped));
    }

    #[test]
    fn a_look_ends_when_the_disk_is_nearly_full() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("t.db");
        ledger(&path);
        let (disk, until) = until();
        disk.send_replace(true);
        assert_eq!(look(&path, &until), Looked::NotToItsEnd(Unfinished::DiskLow));
        disk.send_replace(false);
        assert_eq!(look(&path, &until), Looked::Sound);
    }

    #[test]
    fn what_the_disk_does_not_give_back_is_damage_and_other_failures_are_not() {
        // Nothing is mapped at its beginning: the kernel answers a read with EIO.
        let Looked::Damaged(damage) = look(Path::new("/proc/self/mem"), &until().1) else { panic!("a read was to fail") };
        assert!(damage.contains("the disk doesn't give it back"), "{damage}");
        let came_to = |code: c_int| broken_off(&rusqlite::Error::SqliteFailure(ffi::Error::new(code), None), None);
        for code in
            [ffi::SQLITE_IOERR_READ, ffi::SQLITE_IOERR_SHORT_READ, ffi::SQLITE_IOERR_CORRUPTFS, ffi::SQLITE_CORRUPT, ffi::SQLITE_NOTADB]
        {
            assert!(matches!(came_to(code), Looked::Damaged(_)), "{code}");
        }
        for code in [ffi::SQLITE_NOMEM, ffi::SQLITE_IOERR_NOMEM, ffi::SQLITE_INTERRUPT, ffi::SQLITE_BUSY, ffi::SQLITE_IOERR_SHMOPEN] {
            assert!(matches!(came_to(code), Looked::NotToItsEnd(_)), "{code}");
        }
    }

    #[test]
    fn what_is_not_sound_is_named_until_it_is_found_sound() {
        let soundness = Soundness::new(Arc::new(AtomicBool::new(true)));
        assert!(!soundness.note(Ledger::Events, Looked::Damaged("Tree 5 page 7".to_owned())));
        assert!(!soundness.note(Ledger::Nexus, Looked::NotToItsEnd(Unfinished::TookTooLong)));
        assert!(soundness.note(Ledger::Agents, Looked::Sound));
        assert_eq!((soundness.is_damaged(Ledger::Events), soundness.is_damaged(Ledger::Nexus)), (true, false));
        for (told, parts) in [
            (soundness.damaged(), ["`events.db` is damaged", "nexus restore", "Tree 5 page 7"]),
            (soundness.unfinished(), ["`nexus.db` was not looked at to its end", "the next start", "it took too long"]),
        ] {
            assert_eq!(told.len(), 1, "{told:?}");
            assert!(parts.iter().all(|part| told[0].contains(part)), "{told:?}");
        }
        assert!(soundness.note(Ledger::Events, Looked::Sound) && soundness.note(Ledger::Nexus, Looked::Sound));
        assert!(soundness.damaged().is_empty() && soundness.unfinished().is_empty());
    }
}
