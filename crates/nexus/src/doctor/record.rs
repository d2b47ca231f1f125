//! The ledger files: that they are there, of this version and undamaged, and what their rows say of
//! promise 1. It reads, on connections of its own that nothing else waits for: a read that fails here
//! is a finding and no trouble of the daemon. What spans two files is `cross`.

use super::rows::{self, Rule};
use super::{Check, Finding, NAMED_MAX, cortex, counted, cross, permissions, worst};
use crate::ledger::migrate::{self, MigrateError};
use crate::ledger::{Ledger, read_only};
use nexus_core::doubt::{Believed, Reading};
use rusqlite::{Connection, ErrorCode};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long all of it may take while a daemon runs: a long read keeps the log from being emptied, and
/// who asked waits 60 s at most.
pub const RUNNING_LIMIT: Duration = Duration::from_secs(30);
/// Steps of SQLite's machine, or pages of its own check, between two looks at the clock. Each may be a read of a slow disk.
const STEPS_BETWEEN_LOOKS: std::ffi::c_int = 1_000;
/// Findings of SQLite's own check that are asked for, per file.
const DAMAGES_MAX: usize = 5;
/// Age from which a request without an end is told while a daemon runs.
const OPEN_MS_MAX: i64 = 600_000;
const FILES: [Ledger; 5] = [Ledger::Events, Ledger::Agents, Ledger::Identity, Ledger::Nexus, Ledger::Bus];

/// What is examined.
#[derive(Debug, Clone)]
pub struct Examined {
    pub directory: PathBuf,
    /// Of the daemon that runs, and asks this about its own files.
    pub epoch: Option<i64>,
    /// Unix ms.
    pub now_ms: i64,
}

/// An open file of this version.
#[derive(Debug)]
pub(super) struct File {
    pub(super) path: PathBuf,
    pub(super) connection: Connection,
}

/// The four ledgers, as far as they can be read.
#[derive(Debug, Default)]
pub(super) struct Files {
    pub(super) events: Option<File>,
    pub(super) agents: Option<File>,
    pub(super) identity: Option<File>,
    pub(super) nexus: Option<File>,
    pub(super) bus: Option<File>,
}

impl Files {
    fn slot(&mut self, ledger: Ledger) -> &mut Option<File> {
        match ledger {
            Ledger::Events => &mut self.events,
            Ledger::Agents => &mut self.agents,
            Ledger::Identity => &mut self.identity,
            Ledger::Nexus => &mut self.nexus,
            Ledger::Bus => &mut self.bus,
        }
    }

    fn is_complete(&self) -> bool {
        [&self.events, &self.agents, &self.identity, &self.nexus].into_iter().all(Option::is_some)
    }
}

/// Looks at all files and says what was found. Blocks; for at most [`RUNNING_LIMIT`] with a daemon.
pub fn examine(asked: &Examined) -> Vec<Finding> {
    let missing = |ledger: &Ledger| !asked.directory.join(ledger.file_name()).exists();
    let unusable = permissions::unusable(&asked.directory);
    if Ledger::ALL.iter().all(missing) {
        let what = "there are no ledgers yet; the first start of the daemon makes them";
        return vec![unusable.unwrap_or_else(|| Finding::ok(Check::Schema, what).at(&asked.directory))];
    }
    let until = asked.epoch.map(|_| Instant::now() + RUNNING_LIMIT);
    let (mut files, mut findings) = (Files::default(), Vec::from_iter(unusable));
    for ledger in FILES {
        *files.slot(ledger) = open(asked, ledger, until, &mut findings);
    }
    findings.extend(all_sound(Check::Schema, &findings, "every file has the schema of this version", &asked.directory));
    let mut rows = rules(&files);
    rows.extend(cross::promise(&files));
    rows.extend(cross::followers(&files));
    rows.extend(cross::cursors(&files));
    rows.extend(under_way(&files, asked));
    rows.extend(deliveries(&files, asked));
    for (check, what) in [
        (Check::Promise, "every end has its time and its run, and nothing under way has been given up"),
        (Check::Records, "runs, turns, sessions, contacts and cursors fit together"),
        (Check::Deliveries, "every message has its request and its run, and those sent are in order"),
    ] {
        // Of a file that can't be read nothing was looked at.
        if files.is_complete() {
            rows.extend(all_sound(check, &rows, what, &asked.directory));
        }
    }
    findings.append(&mut rows);
    findings.extend(clock(&files, asked));
    findings.extend(integrity(&mut files, asked));
    findings.extend(cortex::findings(&asked.directory, until));
    findings
}

/// Says that all is well with a check of which nothing else was found.
fn all_sound(check: Check, findings: &[Finding], what: &str, directory: &Path) -> Option<Finding> {
    let of_it: Vec<Finding> = findings.iter().filter(|finding| finding.check == check).cloned().collect();
    (worst(&of_it) == super::Severity::Ok).then(|| Finding::ok(check, what).at(directory))
}

fn open(asked: &Examined, ledger: Ledger, until: Option<Instant>, findings: &mut Vec<Finding>) -> Option<File> {
    let path = asked.directory.join(ledger.file_name());
    if !path.exists() {
        if ledger != Ledger::Bus {
            let fix = "restore the ledgers, all of them as of one backup, with `nexus restore`; no daemon starts without it";
            findings.push(Finding::error(Check::Schema, "this ledger is missing though others are there", fix).at(&path));
        }
        return None;
    }
    let connection = match read_only(&path).and_then(|connection| bounded(connection, until)) {
        Ok(connection) => connection,
        Err(error) => {
            findings.push(unreadable(Check::Schema, &path, &error));
            return None;
        }
    };
    match migrate::check(&connection, &path, ledger.migrations()) {
        Ok(()) => Some(File { path, connection }),
        Err(error) => {
            findings.push(schema(&error, &path));
            None
        }
    }
}

/// The same connection, whose queries end when the time is over.
pub(super) fn bounded(mut connection: Connection, until: Option<Instant>) -> rusqlite::Result<Connection> {
    if let Some(until) = until {
        connection.progress_handler(STEPS_BETWEEN_LOOKS, Some(move || Instant::now() >= until))?;
    }
    Ok(connection)
}

fn schema(error: &MigrateError, path: &Path) -> Finding {
    match error {
        MigrateError::Read { source, .. } => unreadable(Check::Schema, path, source),
        MigrateError::Older { found: 0, .. } => {
            let what = "it has no tables: a first start was killed, or the file was emptied";
            let fix = "start the daemon, which makes them if nothing was recorded yet; else `nexus restore` all ledgers from one backup";
            Finding::error(Check::Schema, what, fix).at(path)
        }
        MigrateError::Older { found, known, .. } => {
            let what = format!("it has schema {found}, this version has {known}; its rows were not looked at");
            Finding::warning(Check::Schema, what, "start the daemon once: it copies the file and brings it up to date").at(path)
        }
        MigrateError::Newer { found, known, .. } => {
            let what = format!("it has schema {found}, this version knows {known}");
            Finding::error(Check::Schema, what, "run the newer nexus that made it, or restore a backup with `nexus restore`").at(path)
        }
        MigrateError::Changed { version, .. } => {
            let what = format!("step {version} of its schema is another than this version's");
            Finding::error(Check::Schema, what, "run the build of nexus that made it, or restore a backup with `nexus restore`").at(path)
        }
        MigrateError::Backup { .. } | MigrateError::BackupDirectory { .. } | MigrateError::Step { .. } => {
            Finding::error(Check::Schema, error.to_string(), "start the daemon; it says what is in the way").at(path)
        }
    }
}

/// A read that failed: the file is damaged, can't be opened, or was given up because time was over.
pub(super) fn unreadable(check: Check, path: &Path, error: &rusqlite::Error) -> Finding {
    let finding = match error.sqlite_error_code() {
        Some(ErrorCode::OperationInterrupted) => {
            let what = format!("not looked at to its end within the {} s that there are while a daemon runs", RUNNING_LIMIT.as_secs());
            Finding::warning(check, what, "run `nexus doctor` while the daemon is stopped: then it takes the time that it needs")
        }
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => {
            let fix = "stop the daemon, keep a copy of the file, and restore the ledgers with `nexus restore`";
            Finding::error(check, format!("the file is damaged: {error}"), fix)
        }
        Some(_) | None => {
            let fix = "check the owner and permissions of the file and its directory, and the disk";
            Finding::error(check, format!("it can't be read: {error}"), fix)
        }
    };
    finding.at(path)
}

fn rules(files: &Files) -> Vec<Finding> {
    let each: [(&Option<File>, &[Rule]); 4] =
        [(&files.events, rows::EVENTS), (&files.agents, rows::AGENTS), (&files.identity, rows::IDENTITY), (&files.nexus, rows::NEXUS)];
    let mut findings = Vec::new();
    for (file, rules) in each {
        let Some(file) = file else { continue };
        for rule in rules {
            let finding = match rows::broken(&file.connection, rule) {
                Ok(broken) => broken.map(|finding| finding.at(&file.path)),
                Err(error) => Some(unreadable(rule.check, &file.path, &error)),
            };
            // What can't be read says so once for each check.
            findings.extend(finding.filter(|finding| !findings.contains(finding)));
        }
    }
    findings
}

const OPEN: &str = "status IN ('waiting', 'processing', 'interrupted')";

/// Requests without an end: with nothing running the next start takes them up; a daemon has to be at them.
fn under_way(files: &Files, asked: &Examined) -> Vec<Finding> {
    let Some(file) = &files.nexus else { return Vec::new() };
    let read = match asked.epoch {
        Some(epoch) => forgotten(&file.connection, epoch, asked.now_ms),
        None => left_open(&file.connection),
    };
    let findings = read.unwrap_or_else(|error| vec![unreadable(Check::Promise, &file.path, &error)]);
    findings.into_iter().map(|finding| finding.at(&file.path)).collect()
}

fn count(connection: &Connection, sql: &str) -> rusqlite::Result<u64> {
    connection.query_row(sql, [], |row| row.get(0))
}

fn left_open(connection: &Connection) -> rusqlite::Result<Vec<Finding>> {
    let waiting = count(connection, &format!("SELECT count(*) FROM nexus_requests WHERE {OPEN} AND status = 'waiting'"))?;
    let begun = count(connection, &format!("SELECT count(*) FROM nexus_requests WHERE {OPEN} AND status <> 'waiting'"))?;
    let mut findings = Vec::new();
    if waiting > 0 {
        findings.push(Finding::ok(Check::Promise, format!("{} waiting: the next start takes them up", counted(waiting, "request"))));
    }
    if begun > 0 {
        let what =
            format!("{} under way when the daemon ended: the next start decides, by pipeline.on_interrupted", counted(begun, "request"));
        findings.push(Finding::ok(Check::Promise, what));
    }
    Ok(findings)
}

fn forgotten(connection: &Connection, epoch: i64, now_ms: i64) -> rusqlite::Result<Vec<Finding>> {
    let mut findings = Vec::new();
    let former = format!(
        "SELECT request_id FROM nexus_requests WHERE {OPEN} AND status IN ('processing', 'interrupted') AND epoch < ?1
         UNION ALL SELECT run_id FROM runs WHERE status = 'running' AND epoch < ?1
         UNION ALL SELECT delivery_id FROM deliveries WHERE status IN ('pending', 'sending', 'uncertain') AND status = 'sending' AND epoch < ?1"
    );
    let former = rows::find(connection, &former, [epoch])?;
    if former.count > 0 {
        let what = format!("{} of a former daemon are still under way {}", former.count, former.named());
        findings.push(Finding::error(Check::Promise, what, "restart the daemon: its start decides about each"));
    }
    let old = format!("SELECT request_id FROM nexus_requests WHERE {OPEN} AND created_at < ?1 ORDER BY event_seq");
    let old = rows::find(connection, &old, [now_ms - OPEN_MS_MAX])?;
    if old.count > 0 {
        let what = format!("{} without an end for longer than {} min {}", counted(old.count, "request"), OPEN_MS_MAX / 60_000, old.named());
        let fix = "`nexus trace show ID` shows what each waits for; a restart of the daemon takes them up again";
        findings.push(Finding::warning(Check::Promise, what, fix));
    }
    Ok(findings)
}

/// Messages that only a person can decide about.
fn deliveries(files: &Files, asked: &Examined) -> Vec<Finding> {
    let Some(file) = &files.nexus else { return Vec::new() };
    let mut findings = Vec::new();
    let sending = match asked.epoch {
        Some(_) => Ok(0),
        None => count(
            &file.connection,
            "SELECT count(*) FROM deliveries WHERE status IN ('pending', 'sending', 'uncertain') AND status = 'sending'",
        ),
    };
    match sending {
        Ok(0) => {}
        Ok(sending) => {
            let what = format!("{} being sent when the daemon ended: the next start calls them uncertain", counted(sending, "message"));
            findings.push(Finding::ok(Check::Deliveries, what).at(&file.path));
        }
        Err(error) => return vec![unreadable(Check::Deliveries, &file.path, &error)],
    }
    // The lists are those of the indexes.
    let kinds = [
        ("uncertain", "'pending', 'sending', 'uncertain'", "may or may not have arrived"),
        ("failed", "'failed', 'expired'", "could not be sent"),
    ];
    for (status, indexed, what) in kinds {
        let sql = format!("SELECT delivery_id FROM deliveries WHERE status IN ({indexed}) AND status = '{status}' ORDER BY seq DESC");
        match rows::find(&file.connection, &sql, []) {
            Ok(found) if found.count > 0 => {
                let what = format!("{} {what} {}", counted(found.count, "message"), found.named());
                let fix = format!("`nexus deliveries list --status {status}`, then `nexus deliveries retry ID` or `discard ID`");
                findings.push(Finding::warning(Check::Deliveries, what, fix).at(&file.path));
            }
            Ok(_) => {}
            Err(error) => findings.push(unreadable(Check::Deliveries, &file.path, &error)),
        }
    }
    findings
}

/// The clock against the newest event. A daemon says itself what it doubts.
fn clock(files: &Files, asked: &Examined) -> Vec<Finding> {
    let (Some(file), None) = (&files.events, asked.epoch) else { return Vec::new() };
    let newest = match crate::ledger::events::newest_received_at(&file.connection) {
        Ok(newest) => newest,
        Err(error) => return vec![unreadable(Check::Clock, &file.path, &error)],
    };
    vec![super::host::clock(Believed::new(newest).judge(Reading { wall_ms: asked.now_ms, boot_ms: 0 }))]
}

/// SQLite's own check of each file: the whole of it with nothing running, else the quicker one.
fn integrity(files: &mut Files, asked: &Examined) -> Vec<Finding> {
    let pragma = if asked.epoch.is_some() { "quick_check" } else { "integrity_check" };
    let mut findings = Vec::new();
    for ledger in FILES {
        let Some(file) = files.slot(ledger).take() else { continue };
        match damages(&file.connection, pragma) {
            Ok(damages) if damages.is_empty() => {
                findings.push(Finding::ok(Check::Integrity, format!("{pragma} found nothing")).at(&file.path))
            }
            Ok(damages) => {
                let fix = "stop the daemon, keep a copy of the file, and restore the ledgers with `nexus restore`";
                findings.push(Finding::error(Check::Integrity, format!("the file is damaged: {}", damages.join("; ")), fix).at(&file.path));
            }
            Err(error) => findings.push(unreadable(Check::Integrity, &file.path, &error)),
        }
    }
    findings
}

pub(super) fn damages(connection: &Connection, pragma: &str) -> rusqlite::Result<Vec<String>> {
    let mut query = connection.prepare(&format!("PRAGMA {pragma}({DAMAGES_MAX})"))?;
    let texts: Vec<String> = query.query_map([], |row| row.get(0))?.collect::<rusqlite::Result<_>>()?;
    let mut damages: Vec<String> = texts.into_iter().filter(|text| text != "ok").collect();
    let mut query = connection.prepare("PRAGMA foreign_key_check")?;
    let mut rows = query.query([])?;
    while let Some(row) = rows.next()? {
        if damages.len() >= NAMED_MAX {
            break;
        }
        damages.push(format!("a row of `{}` refers to nothing in `{}`", row.get::<_, String>(0)?, row.get::<_, String>(2)?));
    }
    Ok(damages)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::Severity;
    use super::*;

    fn made() -> (tempfile::TempDir, Examined) {
        let directory = tempfile::tempdir().unwrap();
        for ledger in Ledger::ALL {
            drop(crate::ledger::open(directory.path(), ledger, 1).unwrap());
        }
        let asked = Examined { directory: directory.path().to_owned(), epoch: None, now_ms: 1_000_000 };
        (directory, asked)
    }

    fn write(asked: &Examined, ledger: Ledger, sql: &str) {
        Connection::open(asked.directory.join(ledger.file_name())).unwrap().execute_batch(sql).unwrap();
    }

    fn bad(asked: &Examined) -> Vec<Finding> {
        examine(asked).into_iter().filter(|finding| finding.severity > Severity::Ok).collect()
    }

    const OPEN_REQUEST: &str = "INSERT INTO nexus_requests (event_seq, request_id, event_id, channel, account_id, adapter, conversation,
        status, stage, created_at, epoch) VALUES (1, 'req_1', 'f:1', 'f', 'me', 'f', 'c', 'interrupted', 'runAgent', 1, 1);
        UPDATE counters SET value = 1 WHERE name IN ('epoch', 'intake_seq')";
    const EVENT: &str = "INSERT INTO events (key, event_id, channel, account_id, adapter, direction, sender_id, peer_id, peer_kind,
        content_type, timestamp, received_at, disposition, content)
        VALUES (x'00000000000000000000000000000001', 'f:1', 'f', 'me', 'f', 'inbound', 'u', 'p', 'dm', 'text', 1, 1, 'run', 'hi')";

    #[test]
    fn every_check_of_new_files_says_that_all_is_well() {
        let (_directory, asked) = made();
        let findings = examine(&asked);
        assert_eq!(worst(&findings), Severity::Ok, "{findings:?}");
        let checks = [Check::Schema, Check::Promise, Check::Records, Check::Deliveries, Check::Clock, Check::Integrity];
        assert!(checks.iter().all(|check| findings.iter().any(|finding| finding.check == *check)), "{findings:?}");
        let nothing = Examined { directory: asked.directory.join("none"), ..asked };
        let findings = examine(&nothing);
        assert!(findings[0].what.contains("no ledgers yet") && worst(&findings) == Severity::Ok, "{findings:?}");
    }

    #[test]
    fn a_missing_a_newer_and_a_foreign_file_are_each_told() {
        let (_directory, asked) = made();
        std::fs::remove_file(asked.directory.join("agents.db")).unwrap();
        write(&asked, Ledger::Identity, "INSERT INTO schema_version VALUES (99, 'x', 1)");
        std::fs::write(asked.directory.join("bus.db"), "this is no database at all, but long enough to look like one".repeat(20)).unwrap();
        let bad = bad(&asked);
        let told = |text: &str| bad.iter().any(|finding| finding.severity == Severity::Error && finding.what.contains(text));
        assert!(told("missing though others are there") && told("schema 99") && told("damaged"), "{bad:?}");
        let missing = bad.iter().find(|finding| finding.what.contains("missing")).unwrap();
        assert!(missing.fix.as_ref().unwrap().ends_with("no daemon starts without it"), "{missing:?}");
    }

    #[test]
    fn a_file_in_the_place_of_the_directory_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        let data = directory.path().join("data");
        std::fs::write(&data, "mine").unwrap();
        let bad = bad(&Examined { directory: data.clone(), epoch: None, now_ms: 1 });
        assert!(bad.len() == 1 && bad[0].severity == Severity::Error && bad[0].place.as_deref() == data.to_str(), "{bad:?}");
    }

    #[test]
    fn what_a_former_daemon_left_is_the_next_starts_and_an_error_only_while_one_runs() {
        let (_directory, asked) = made();
        write(&asked, Ledger::Events, EVENT);
        write(&asked, Ledger::Nexus, OPEN_REQUEST);
        assert_eq!(bad(&asked), []);
        assert!(examine(&asked).iter().any(|finding| finding.what.contains("1 request under way when the daemon ended")));
        let running = Examined { epoch: Some(2), ..asked };
        let bad = bad(&running);
        assert!(bad.iter().any(|finding| finding.severity == Severity::Error && finding.what.contains("of a former daemon")), "{bad:?}");
        assert!(bad.iter().any(|finding| finding.severity == Severity::Warning && finding.what.contains("longer than 10 min")), "{bad:?}");
    }

    #[test]
    fn a_request_that_this_daemon_interrupts_as_it_stops_is_no_error() {
        let (_directory, asked) = made();
        write(&asked, Ledger::Events, EVENT);
        write(&asked, Ledger::Nexus, OPEN_REQUEST);
        let stopping = Examined { epoch: Some(1), now_ms: 2, ..asked };
        assert_eq!(bad(&stopping), []);
    }

    #[test]
    fn what_was_not_looked_at_to_its_end_is_not_called_sound() {
        let (_directory, asked) = made();
        let mut files = Files::default();
        for ledger in FILES {
            *files.slot(ledger) = open(&asked, ledger, None, &mut Vec::new());
        }
        let file = files.nexus.as_ref().unwrap();
        file.connection.execute_batch("PRAGMA query_only = OFF").unwrap();
        file.connection.execute_batch("CREATE TEMP TABLE runs (finish_seq INTEGER)").unwrap();
        let checks: Vec<Check> = rules(&files).iter().map(|finding| finding.check).collect();
        assert!([Check::Promise, Check::Records, Check::Deliveries].iter().all(|check| checks.contains(check)), "{checks:?}");
    }

    #[test]
    fn a_damaged_page_is_found_and_restoring_is_the_fix() {
        let (_directory, asked) = made();
        write(&asked, Ledger::Events, "PRAGMA wal_checkpoint(TRUNCATE)");
        let path = asked.directory.join("events.db");
        let mut bytes = std::fs::read(&path).unwrap();
        let middle = bytes.len() / 8192 / 2 * 8192;
        bytes[middle..middle + 8192].fill(0x5a);
        std::fs::write(&path, bytes).unwrap();
        let bad = bad(&asked);
        assert!(bad.iter().any(|finding| finding.fix.as_ref().is_some_and(|fix| fix.contains("nexus restore"))), "{bad:?}");
        let errors = bad.iter().filter(|finding| finding.severity == Severity::Error);
        assert!(errors.clone().count() > 0 && errors.clone().all(|finding| finding.place.as_deref() == path.to_str()), "{bad:?}");
    }

    #[test]
    fn a_look_whose_time_is_over_is_no_damage() {
        let (_directory, asked) = made();
        let connection = bounded(read_only(&asked.directory.join("events.db")).unwrap(), Some(Instant::now())).unwrap();
        let endless = "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n";
        let error = count(&connection, endless).unwrap_err();
        let finding = unreadable(Check::Promise, &asked.directory, &error);
        assert_eq!((finding.severity, finding.what.contains("not looked at to its end")), (Severity::Warning, true), "{finding:?}");
    }

    #[test]
    fn a_clock_before_the_newest_event_is_told() {
        let (_directory, asked) = made();
        write(&asked, Ledger::Events, &format!("{EVENT}; UPDATE events SET received_at = 9000000, disposition = 'history'"));
        let bad = bad(&asked);
        assert_eq!(bad.iter().map(|finding| finding.check).collect::<Vec<_>>(), [Check::Clock], "{bad:?}");
        assert!(bad[0].what.contains("nothing expires"), "{bad:?}");
    }
}
