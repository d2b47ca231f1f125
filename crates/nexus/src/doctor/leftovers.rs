//! What should be gone: processes of a dead daemon, files with secrets that were made for its children,
//! and halves of files that were being written. It finds them; `repair` removes them.

use super::{Check, Finding, NAMED_MAX, Presence, counted};
use crate::adapter::account::context_name;
use crate::backup::restore_stages;
use crate::daemon::{Paths, instance};
use crate::keeper::{cgroup, leftovers};
use crate::ledger::lock::{RESTORE_MARKER, user};
use nexus_core::config::Config;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// Age from which a temporary file belongs to nobody who still writes it.
const WRITTEN_WITHIN: Duration = Duration::from_secs(60);
/// Length of the random end of a temporary file's name.
const RANDOM_CHARS: usize = 26;
/// Files of backups that are counted.
const KEPT_FILES_MAX: usize = 200_000;
const REPAIR: &str = "`nexus doctor --repair`";

/// All that is left over. `data` is where the ledgers are; it and the configuration, if they are known.
pub fn findings(paths: &Paths, config: Option<&Config>, data: Option<&Path>, presence: Presence) -> Vec<Finding> {
    let mut findings = Vec::new();
    if presence == Presence::Absent {
        let pids = processes(paths);
        if !pids.is_empty() {
            let shown: Vec<String> = pids.iter().take(NAMED_MAX).map(ToString::to_string).collect();
            let what = format!("{} of a dead daemon (PID {})", process_count(pids.len()), shown.join(", "));
            let fix = "`nexus doctor --repair` kills them; so does the next start of the daemon";
            findings.push(Finding::warning(Check::Leftovers, what, fix));
        }
        findings.extend(files(
            &contexts(paths, config),
            "file made for an account that isn't configured any more; it may hold a credential",
            REPAIR,
        ));
    }
    let by_hand = "remove them, or run `nexus doctor --repair` while the daemon is stopped";
    let fix = if presence == Presence::Absent { REPAIR } else { by_hand };
    findings.extend(files(&temporaries(paths), "half of a file that was being written when its process was killed", fix));
    findings.extend(data.and_then(|data| staged(paths, config, data, presence)));
    if findings.is_empty() {
        findings.push(Finding::ok(Check::Leftovers, "nothing is left of what ran before").at(&paths.state_dir));
    }
    findings.extend(data.and_then(|data| kept(&data.join("backup"), "backups, and copies from before a migration or a restore")));
    findings.extend(diagnostics(paths));
    findings
}

fn process_count(count: usize) -> String {
    if count == 1 { "1 process".to_owned() } else { format!("{count} processes") }
}

fn files(paths: &[PathBuf], what: &str, fix: &str) -> Option<Finding> {
    let first = paths.first()?;
    let count = if paths.len() == 1 { String::new() } else { format!("{} times: ", paths.len()) };
    Some(Finding::warning(Check::Leftovers, format!("{count}{what}"), fix).at(first))
}

/// A restore that was killed while it exchanged the ledgers: what is there is of two sets.
pub fn half_restored(data: &Path) -> Option<Finding> {
    let marker = data.join(RESTORE_MARKER);
    let what = "a restore did not come to its end: no daemon starts, and the ledgers were not looked at";
    let fix = "run `nexus restore DIRECTORY` again, with that backup or another, to finish it";
    marker.exists().then(|| Finding::error(Check::Leftovers, what, fix).at(&marker))
}

/// Copies of a restore that was killed before it exchanged anything; not of one that is at work.
fn staged(paths: &Paths, config: Option<&Config>, data: &Path, presence: Presence) -> Option<Finding> {
    let stages = stages(paths, config, data);
    let is_used = data.join(RESTORE_MARKER).exists() || (presence == Presence::Absent && user(data).is_some());
    let fix = if presence == Presence::Absent { REPAIR } else { "remove it" };
    let what = "copies for a restore that was killed before it changed anything";
    if is_used { None } else { files(&stages, what, fix) }
}

/// Where copies for a restore lie.
pub(super) fn stages(paths: &Paths, config: Option<&Config>, data: &Path) -> Vec<PathBuf> {
    let programs = config.map(|config| paths.programs(&config.plugins.directory, data));
    restore_stages(data, programs.as_ref()).into_iter().filter(|stage| stage.exists()).collect()
}

/// Told and no more: nobody but their owner knows what they are kept for.
fn kept(directory: &Path, what: &str) -> Option<Finding> {
    let (mut count, mut bytes) = (0, 0);
    for file in files_below(directory) {
        count += 1;
        bytes += fs::symlink_metadata(&file).map_or(0, |metadata| metadata.len());
    }
    let finding = Finding::ok(Check::Leftovers, format!("{what}: {}, {} KiB", counted(count, "file"), bytes / 1024));
    (count > 0).then(|| finding.at(directory))
}

fn diagnostics(paths: &Paths) -> Option<Finding> {
    let is_one = |name: &str| name.starts_with("diagnostics-") && name.ends_with(".json");
    let count = entries(&paths.state_dir).iter().filter(|path| is_one(&name(path))).count() as u64;
    let what = format!("{} of diagnostics; remove what isn't needed any more", counted(count, "file"));
    (count > 0).then(|| Finding::ok(Check::Leftovers, what).at(&paths.state_dir))
}

/// Marked as children of this state directory's daemon, or in its cgroup.
fn processes(paths: &Paths) -> Vec<i32> {
    let Some(instance) = instance::known(paths) else { return Vec::new() };
    let mut pids = leftovers::marked(&instance);
    pids.extend(cgroup::left(&paths.state_dir, &instance));
    pids.sort_unstable();
    pids.dedup();
    pids
}

/// Context files of accounts that are not configured. Those of others stay: what is to be sent right
/// after a start may be sent before its account has written its file anew.
pub(super) fn contexts(paths: &Paths, config: Option<&Config>) -> Vec<PathBuf> {
    let Some(config) = config else { return Vec::new() };
    let known = |file: &str| config.adapters.iter().any(|(name, adapter)| adapter.accounts.keys().any(|id| context_name(name, id) == file));
    let files = entries(&paths.run_dir()).into_iter();
    files.filter(|path| name(path).ends_with(".json") && !is_temporary(path) && !known(&name(path))).collect()
}

/// Files that `credential::write_private` did not come to rename, and an overlay that was not put in place.
pub(super) fn temporaries(paths: &Paths) -> Vec<PathBuf> {
    let mut directories = vec![paths.state_dir.clone(), paths.run_dir(), paths.workspace.clone(), paths.workspace.join("state")];
    directories.extend(entries(&paths.credentials_dir()));
    let overlay = paths.overlay_file().with_extension("yaml.new");
    let found = directories.iter().flat_map(|directory| entries(directory)).filter(|path| is_temporary(path) || *path == overlay);
    found.filter(|path| is_old(path)).collect()
}

/// `.NAME.RANDOM`, where the end is a ULID.
fn is_temporary(path: &Path) -> bool {
    let name = name(path);
    let random = name.strip_prefix('.').and_then(|rest| rest.rsplit_once('.')).map(|(_, random)| random);
    random.is_some_and(|random| random.len() == RANDOM_CHARS && random.chars().all(|c| c.is_ascii_digit() || c.is_ascii_uppercase()))
}

fn is_old(path: &Path) -> bool {
    let written = fs::symlink_metadata(path).and_then(|metadata| metadata.modified());
    written.is_ok_and(|at| SystemTime::now().duration_since(at).is_ok_and(|age| age >= WRITTEN_WITHIN))
}

fn name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// All that is in a directory and no directory itself, as far as there are not too many.
fn files_below(directory: &Path) -> Vec<PathBuf> {
    let (mut files, mut waiting) = (Vec::new(), vec![directory.to_owned()]);
    while let Some(path) = waiting.pop().filter(|_| files.len() < KEPT_FILES_MAX) {
        let inside = entries(&path).into_iter().partition(|path| fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_dir()));
        let (directories, others): (Vec<PathBuf>, Vec<PathBuf>) = inside;
        waiting.extend(directories);
        files.extend(others);
    }
    files
}

fn entries(directory: &Path) -> Vec<PathBuf> {
    let mut all: Vec<PathBuf> = fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    all.sort();
    all
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::{Severity, worst};
    use super::*;

    #[test]
    fn what_is_left_is_found_and_what_is_being_written_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        let paths =
            Paths { state_dir: root.join("s"), config_file: root.join("w/nex.yaml"), workspace: root.join("w"), config_named: true };
        fs::create_dir_all(paths.run_dir()).unwrap();
        fs::create_dir_all(paths.credentials_dir().join("google")).unwrap();
        let config = Config::default();
        let look = |presence| findings(&paths, Some(&config), None, presence);
        assert_eq!((look(Presence::Absent).len(), worst(&look(Presence::Absent))), (1, Severity::Ok));
        let half = paths.credentials_dir().join("google/.me.json.01JBXY0000000000000000000Z");
        let file = fs::File::create(&half).unwrap();
        fs::write(paths.run_dir().join("fake:me.json"), "{}").unwrap();
        fs::write(paths.state_dir.join(".profile.old"), "").unwrap();
        assert_eq!(temporaries(&paths), Vec::<PathBuf>::new(), "it may be in the writing");
        file.set_modified(SystemTime::now() - WRITTEN_WITHIN).unwrap();
        assert_eq!(temporaries(&paths), [half]);
        let whats: Vec<String> = look(Presence::Absent).into_iter().map(|finding| finding.what).collect();
        assert!(
            whats.len() == 2 && whats[0].contains("an account that isn't configured") && whats[1].contains("half of a file"),
            "{whats:?}"
        );
        let running = look(Presence::Running { pid: 1 });
        assert!(running.len() == 1 && running[0].what.contains("half of a file"), "{running:?}");
    }

    #[test]
    fn copies_of_a_restore_are_left_over_unless_one_is_at_work() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        let paths =
            Paths { state_dir: root.to_owned(), config_file: root.join("nex.yaml"), workspace: root.to_owned(), config_named: true };
        let look = || worst(&findings(&paths, Some(&Config::default()), Some(root), Presence::Absent));
        let stages = restore_stages(root, Some(&paths.programs(&Config::default().plugins.directory, root)));
        for stage in &stages {
            fs::create_dir_all(stage).unwrap();
            assert_eq!(look(), Severity::Warning, "{}", stage.display());
            fs::remove_dir(stage).unwrap();
        }
        assert_eq!(look(), Severity::Ok);
        fs::create_dir(&stages[0]).unwrap();
        assert_eq!((look(), half_restored(root)), (Severity::Warning, None));
        let held = crate::ledger::lock::take(root, Some("nexus restore")).unwrap();
        assert_eq!(look(), Severity::Ok);
        drop(held);
        fs::write(root.join(RESTORE_MARKER), "").unwrap();
        assert_eq!((look(), half_restored(root).unwrap().severity), (Severity::Ok, Severity::Error));
    }

    #[test]
    fn copies_and_diagnostics_are_told_and_no_trouble() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        let paths =
            Paths { state_dir: root.to_owned(), config_file: root.join("nex.yaml"), workspace: root.to_owned(), config_named: true };
        fs::create_dir(root.join("backup")).unwrap();
        fs::write(root.join("backup/nexus-v1.db"), [0; 2048]).unwrap();
        fs::create_dir_all(root.join("backup/one/state")).unwrap();
        fs::write(root.join("backup/one/state/overlay.yaml"), [0; 1024]).unwrap();
        fs::write(root.join("diagnostics-1.json"), "{}").unwrap();
        let found = findings(&paths, None, Some(root), Presence::Absent);
        assert_eq!(worst(&found), Severity::Ok);
        assert!(found[1].what.ends_with("2 files, 3 KiB") && found[2].what.starts_with("1 file of diagnostics"), "{found:?}");
    }
}
