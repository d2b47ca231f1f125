//! Whether the ledgers' files are undamaged: looked at in the background once the daemon is ready, after an end that
//! was no clean one, by SQLite's quick check of each. It keeps what was found, for health, and mends nothing.
//!
//! The look takes as long as the files are large, which a start must not. What every start looks at before it is
//! ready, that each is a database and of this schema, is the ledger's own.

use super::control::Control;
use crate::ledger::copy::beside;
use crate::ledger::{Ledger, read_only};
use rusqlite::{Connection, ErrorCode};
use std::ffi::c_int;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
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

/// What is known of the files.
#[derive(Debug)]
pub(super) struct Soundness {
    /// Until each was found sound: otherwise the next start looks as well.
    due: Arc<AtomicBool>,
    damaged: Mutex<Vec<(Ledger, String)>>,
}

impl Soundness {
    pub(super) fn new(due: Arc<AtomicBool>) -> Self {
        Self { due, damaged: Mutex::default() }
    }

    pub(super) fn is_damaged(&self, ledger: Ledger) -> bool {
        self.lock().iter().any(|(one, _)| *one == ledger)
    }

    /// A sentence for each damaged file, with what to do.
    pub(super) fn told(&self) -> Vec<String> {
        let told = |(ledger, damage): &(Ledger, String)| {
            format!(
                "ledger `{}` is damaged: stop the daemon, keep a copy of the file, and put a backup in place with `nexus restore` ({damage})",
                ledger.file_name()
            )
        };
        self.lock().iter().map(told).collect()
    }

    fn note(&self, ledger: Ledger, looked: &Looked) -> bool {
        let mut damaged = self.lock();
        damaged.retain(|(one, _)| *one != ledger);
        match looked {
            Looked::Sound => return true,
            Looked::Damaged(damage) => damaged.push((ledger, damage.clone())),
            Looked::NotToItsEnd(_) => {}
        }
        false
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<(Ledger, String)>> {
        self.damaged.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a look at one file came to.
#[derive(Debug, PartialEq, Eq)]
enum Looked {
    Sound,
    Damaged(String),
    NotToItsEnd(String),
}

/// Looks at each file in turn, if that is due; ends with the last, or at `stop`.
pub(super) async fn check(control: Arc<Control>, directory: PathBuf, stop: CancellationToken) {
    crate::torture::point("task.ledger check");
    let soundness = &control.soundness;
    if !soundness.due.load(Ordering::Acquire) {
        return;
    }
    let began = Instant::now();
    let mut all_sound = true;
    for ledger in Ledger::ALL {
        let looked = look_at(&control, ledger, &directory, &stop).await;
        if stop.is_cancelled() {
            return; // the next start looks
        }
        all_sound &= soundness.note(ledger, &looked);
        tell(ledger, &looked);
    }
    if all_sound {
        soundness.due.store(false, Ordering::Release);
        tracing::info!(ms = began.elapsed().as_millis() as u64, "the files of the ledgers are sound");
    }
}

async fn look_at(control: &Control, ledger: Ledger, directory: &Path, stop: &CancellationToken) -> Looked {
    let (path, stop, ledgers) = (directory.join(ledger.file_name()), stop.clone(), &control.ledgers);
    // No writer waits for a checkpoint that could only wait for this.
    let long_read = match ledger {
        Ledger::Events => ledgers.events.writer.long_read(),
        Ledger::Agents => ledgers.agents.writer.long_read(),
        Ledger::Identity => ledgers.identity.writer.long_read(),
        // The bus's store is none of the four.
        Ledger::Nexus | Ledger::Bus => ledgers.nexus.writer.long_read(),
    };
    let looked = crate::watch::blocking("ledger.check", move || {
        let looked = look(&path, &stop);
        drop(long_read);
        looked
    });
    // A panic was told by its name.
    looked.await.unwrap_or_else(|_| Looked::NotToItsEnd("it broke off".to_owned()))
}

fn tell(ledger: Ledger, looked: &Looked) {
    let file = ledger.file_name();
    match looked {
        Looked::Sound => tracing::debug!(file, "the file of the ledger is sound"),
        Looked::Damaged(damage) => {
            let fix = "stop the daemon, keep a copy of the file, and put a backup in place with `nexus restore`";
            tracing::error!(file, damage, fix, "a ledger is damaged");
        }
        Looked::NotToItsEnd(why) => {
            let fix = "the next start looks again; `nexus doctor` does while the daemon is stopped";
            tracing::warn!(file, why, fix, "the file of a ledger was not looked at to its end");
        }
    }
}

fn look(path: &Path, stop: &CancellationToken) -> Looked {
    match read_only(path).and_then(|connection| quick_check(connection, path, stop)) {
        Ok(found) if found == "ok" => Looked::Sound,
        Ok(found) => Looked::Damaged(one_line(&found)),
        Err(error) => match error.sqlite_error_code() {
            // So far from a database that not even the check can go on.
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => Looked::Damaged(one_line(&error.to_string())),
            Some(_) | None => Looked::NotToItsEnd(error.to_string()),
        },
    }
}

/// The first thing that SQLite finds wrong, or `ok`.
fn quick_check(mut connection: Connection, path: &Path, stop: &CancellationToken) -> rusqlite::Result<String> {
    let (stop, log) = (stop.clone(), beside(path, "-wal"));
    let log_bytes = move || std::fs::metadata(&log).map_or(0, |log| log.len());
    let (began, log_before) = (Instant::now(), log_bytes());
    let mut rested = Instant::now();
    let is_over = move || {
        let worked = rested.elapsed();
        if worked >= WORK {
            pause(worked.min(PAUSE_MAX));
            rested = Instant::now();
        }
        stop.is_cancelled()
            || (worked >= WORK && (began.elapsed() >= FILE_LIMIT || log_bytes().saturating_sub(log_before) > LOG_GROWTH_BYTES_MAX))
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

    #[test]
    fn a_page_that_is_damaged_is_found_and_a_stop_ends_the_look() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("t.db");
        ledger(&path);
        let stop = CancellationToken::new();
        assert_eq!(look(&path, &stop), Looked::Sound);
        let mut bytes = std::fs::read(&path).unwrap();
        let middle = bytes.len() / 2 / 8192 * 8192;
        bytes[middle..middle + 8192].fill(0xAB);
        std::fs::write(&path, &bytes).unwrap();
        let Looked::Damaged(damage) = look(&path, &stop) else { panic!("nothing was found") };
        assert!(!damage.contains('\n') && damage.chars().count() <= DAMAGE_CHARS_MAX, "{damage}");
        std::fs::write(&path, "not a database ".repeat(1_000)).unwrap();
        assert!(matches!(look(&path, &stop), Looked::Damaged(_)));
        std::fs::remove_file(&path).unwrap();
        assert!(matches!(look(&path, &stop), Looked::NotToItsEnd(_)), "of one that isn't there nothing is known");
        ledger(&path);
        stop.cancel();
        assert!(matches!(look(&path, &stop), Looked::NotToItsEnd(_)));
    }

    #[test]
    fn what_is_damaged_is_named_until_it_is_found_sound() {
        let soundness = Soundness::new(Arc::new(AtomicBool::new(true)));
        assert!(!soundness.note(Ledger::Events, &Looked::Damaged("Tree 5 page 7".to_owned())));
        assert!(!soundness.note(Ledger::Nexus, &Looked::NotToItsEnd("interrupted".to_owned())));
        assert!(soundness.note(Ledger::Agents, &Looked::Sound));
        assert_eq!((soundness.is_damaged(Ledger::Events), soundness.is_damaged(Ledger::Nexus)), (true, false));
        let told = soundness.told();
        assert_eq!(told.len(), 1);
        assert!(["`events.db`", "nexus restore", "Tree 5 page 7"].iter().all(|part| told[0].contains(part)), "{told:?}");
        assert!(soundness.note(Ledger::Events, &Looked::Sound));
        assert!(soundness.told().is_empty());
    }
}
