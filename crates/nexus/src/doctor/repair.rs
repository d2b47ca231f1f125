//! What may be mended without asking: modes, what a dead daemon left, and a log that was not moved into
//! its file. It touches no row of a ledger, and while a daemon runs nothing but modes.

use super::{Check, Finding, Presence, leftovers, permissions};
use crate::daemon::lock::Lock;
use crate::daemon::{Paths, instance};
use crate::error_text::describe;
use crate::keeper::cgroup;
use crate::keeper::leftovers::clear_marked;
use crate::ledger::lock::take;
use crate::ledger::{Ledger, empty_log};
use nexus_core::config::Config;
use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// What was done, and what could not be.
#[derive(Debug, Default)]
pub struct Repaired {
    pub done: Vec<String>,
    pub failed: Vec<Finding>,
}

impl Repaired {
    fn note(&mut self, path: &Path, what: &str, done: std::io::Result<()>) {
        match done {
            Ok(()) => self.done.push(format!("{what}: {}", path.display())),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {} // somebody else was there first
            Err(error) => {
                let fix = "see who owns it, and whether its file system can be written";
                self.failed.push(Finding::error(Check::Repair, format!("not {what}: {error}"), fix).at(path));
            }
        }
    }
}

/// Sets every mode to what it should be.
pub fn modes(paths: &Paths, data: Option<&Path>, repaired: &mut Repaired) {
    for wrong in permissions::wrong(paths, data) {
        let done = fs::set_permissions(&wrong.path, fs::Permissions::from_mode(wrong.wanted));
        repaired.note(&wrong.path, &format!("mode {:o} set to {:o}", wrong.is, wrong.wanted), done);
    }
    let path = &paths.config_file;
    let Ok(metadata) = fs::metadata(path) else { return };
    let is = metadata.permissions().mode() & 0o777;
    if is & 0o022 != 0 {
        let wanted = is & !0o022;
        repaired.note(path, &format!("mode {is:o} set to {wanted:o}"), fs::set_permissions(path, fs::Permissions::from_mode(wanted)));
    }
}

/// Kills what a dead daemon left running, by its cgroup and then by mark, as the next start would.
fn processes(paths: &Paths, repaired: &mut Repaired) {
    let Some(instance) = instance::known(paths) else { return };
    for cleared in [cgroup::clear_left(&paths.state_dir, &instance), clear_marked(&instance)] {
        repaired.done.extend(cleared.killed.iter().map(|pid| format!("killed process {pid} of a dead daemon")));
        for pid in cleared.left {
            let fix = format!("look what process {pid} hangs on with `ps`");
            repaired.failed.push(Finding::error(Check::Repair, format!("process {pid} could not be killed"), fix));
        }
    }
}

/// Removes what a dead daemon left, holding its lock, so that none starts meanwhile.
pub fn leftovers(paths: &Paths, config: Option<&Config>, repaired: &mut Repaired) {
    if !paths.state_dir.exists() {
        return;
    }
    let had_pid_file = paths.pid_file().exists();
    let lock = match Lock::acquire(paths, |_| ()) {
        Ok(lock) => lock,
        Err(error) => {
            let what = format!("nothing of a dead daemon was removed: {}", describe(&error));
            repaired.failed.push(Finding::error(Check::Repair, what, "try again in a moment").at(&paths.pid_file()));
            return;
        }
    };
    processes(paths, repaired);
    for path in leftovers::contexts(paths, config).into_iter().chain(leftovers::temporaries(paths)).chain([paths.socket()]) {
        repaired.note(&path, "removed", fs::remove_file(&path));
    }
    match lock.release() {
        Ok(()) if had_pid_file => repaired.done.push(format!("removed: {}", paths.pid_file().display())),
        Ok(()) => {}
        Err(error) => repaired.note(&paths.pid_file(), "removed", Err(error)),
    }
}

/// Takes the ledgers, so that nobody else opens them meanwhile.
fn hold(data: &Path, repaired: &mut Repaired) -> Option<File> {
    match take(data, Some("nexus doctor --repair")) {
        Ok(held) => Some(held),
        Err(error) => {
            repaired.failed.push(Finding::error(Check::Repair, describe(&error), "try again when that has ended").at(data));
            None
        }
    }
}

/// Removes the copies of a restore that was killed before it exchanged anything.
pub fn staged(paths: &Paths, config: &Config, data: &Path, repaired: &mut Repaired) {
    let stages = leftovers::stages(paths, Some(config), data);
    if stages.is_empty() {
        return;
    }
    let Some(_held) = hold(data, repaired) else { return };
    for stage in stages {
        repaired.note(&stage, "removed", fs::remove_dir_all(&stage));
    }
}

/// Moves the logs of sound ledgers into their files.
pub fn logs(data: &Path, repaired: &mut Repaired) {
    let has_log = |ledger: &Ledger| fs::metadata(data.join(format!("{}-wal", ledger.file_name()))).is_ok_and(|log| log.len() > 0);
    let with_log: Vec<Ledger> = Ledger::ALL.into_iter().chain([Ledger::Bus]).filter(has_log).collect();
    if with_log.is_empty() {
        return;
    }
    let Some(_held) = hold(data, repaired) else { return };
    for ledger in with_log {
        let path = data.join(ledger.file_name());
        match empty_log(&path) {
            Ok(true) => repaired.done.push(format!("log moved into its file: {}", path.display())),
            Ok(false) => {
                let fix = "end whatever reads it, and try again";
                repaired
                    .failed
                    .push(Finding::warning(Check::Repair, "the log could not be emptied: somebody reads the file", fix).at(&path));
            }
            Err(error) => repaired.failed.push(super::record::unreadable(Check::Repair, &path, &error)),
        }
    }
}

/// All that may be mended before anything is looked at.
pub fn before(paths: &Paths, config: Option<&Config>, data: Option<&Path>, presence: Presence) -> Repaired {
    let mut repaired = Repaired::default();
    modes(paths, data, &mut repaired);
    match presence {
        Presence::Absent => leftovers(paths, config, &mut repaired),
        Presence::Cleaning | Presence::Running { .. } => {}
    }
    repaired
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::{Severity, worst};
    use super::*;
    use crate::backup::restore_stages;
    use rusqlite::Connection;

    #[test]
    fn what_a_dead_daemon_left_goes_and_what_a_living_one_has_stays() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        let paths =
            Paths { state_dir: root.join("s"), config_file: root.join("w/nex.yaml"), workspace: root.join("w"), config_named: true };
        crate::daemon::paths::private_dir(&paths.run_dir()).unwrap();
        let left = [paths.pid_file(), paths.socket(), paths.run_dir().join("fake:me.json")];
        left.iter().for_each(|path| fs::write(path, "1").unwrap());
        left.iter().for_each(|path| fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap());
        let config = Config::default();
        let running = before(&paths, Some(&config), None, Presence::Running { pid: 1 });
        assert!(running.done.is_empty() && left.iter().all(|path| path.exists()), "{running:?}");
        let repaired = before(&paths, Some(&config), None, Presence::Absent);
        assert!(repaired.failed.is_empty() && left.iter().all(|path| !path.exists()), "{repaired:?}");
        assert_eq!(repaired.done.len(), 3, "{repaired:?}");
        assert!(before(&paths, Some(&config), None, Presence::Absent).done.is_empty(), "twice");
    }

    #[test]
    fn modes_are_set_and_told() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        let paths = Paths { state_dir: root.join("s"), config_file: root.join("nex.yaml"), workspace: root.to_owned(), config_named: true };
        crate::daemon::paths::private_dir(&paths.state_dir).unwrap();
        for (path, mode) in [(paths.last_run(), 0o644), (paths.config_file.clone(), 0o666), (paths.state_dir.clone(), 0o755)] {
            if !path.exists() {
                fs::write(&path, "").unwrap();
            }
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        }
        assert_eq!(worst(&permissions::findings(&paths, None)), Severity::Error);
        let repaired = before(&paths, None, None, Presence::Running { pid: 1 });
        assert_eq!((repaired.done.len(), repaired.failed.len()), (3, 0), "{repaired:?}");
        assert!(repaired.done.iter().any(|done| done.starts_with("mode 666 set to 644")), "{repaired:?}");
        assert_eq!(worst(&permissions::findings(&paths, None)), Severity::Ok);
    }

    #[test]
    fn a_log_is_moved_into_its_file_unless_somebody_has_the_ledgers() {
        let directory = tempfile::tempdir().unwrap();
        let data = directory.path();
        let connection = crate::ledger::open(data, Ledger::Identity, 1).unwrap();
        let log = data.join("identity.db-wal");
        assert!(fs::metadata(&log).unwrap().len() > 0);
        let paths = Paths { state_dir: data.join("s"), config_file: data.join("nex.yaml"), workspace: data.to_owned(), config_named: true };
        let stages = restore_stages(data, Some(&paths.programs("plugins", data)));
        assert_eq!(stages.len(), 3);
        stages.iter().for_each(|stage| fs::create_dir_all(stage.join("half")).unwrap());
        let are_there = || stages.iter().filter(|stage| stage.exists()).count();
        let held = take(data, None).unwrap();
        let mut repaired = Repaired::default();
        logs(data, &mut repaired);
        staged(&paths, &Config::default(), data, &mut repaired);
        assert!(repaired.done.is_empty() && repaired.failed.len() == 2 && are_there() == 3, "{repaired:?}");
        drop(held);
        let mut repaired = Repaired::default();
        logs(data, &mut repaired);
        staged(&paths, &Config::default(), data, &mut repaired);
        assert!(repaired.done.len() == 4 && repaired.failed.is_empty() && are_there() == 0, "{repaired:?}");
        assert_eq!(fs::metadata(&log).map_or(0, |log| log.len()), 0);
        let entities: i64 = connection.query_row("SELECT count(*) FROM entities", [], |row| row.get(0)).unwrap();
        assert_eq!(entities, 1);
        let twice = Connection::open(data.join("identity.db")).unwrap();
        assert!(twice.prepare("SELECT 1 FROM contacts").is_ok());
    }
}
