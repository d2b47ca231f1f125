//! Who may read and change the daemon's files: directories 0700, files 0600, all of them ours; and a
//! configuration that nobody else can write. It looks, and `repair` sets the modes that it finds. Also whether
//! the ledgers' directory can be used at all.

use super::{Check, Finding, Severity, capped};
use crate::backup::STAGE_DIRECTORY;
use crate::daemon::Paths;
use crate::ledger::lock::RESTORE_MARKER;
use crate::ledger::{Ledger, cortex};
use rustix::fs::{Access, access};
use std::fs::{self, Metadata};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// `bus.db` may be there as well.
const LEDGERS: [Ledger; 5] = [Ledger::Events, Ledger::Agents, Ledger::Identity, Ledger::Nexus, Ledger::Bus];
pub(super) const DIRECTORY_MODE: u32 = 0o700;
pub(super) const FILE_MODE: u32 = 0o600;
/// What the daemon and its commands make in the state directory, beside diagnostics.
const STATE_NAMES: [&str; 8] = ["nex.pid", "nex.sock", "last-run.json", "instance", "cgroup", "chat_history", "logs", "run"];
/// In the workspace's `state`.
const WORKSPACE_NAMES: [&str; 2] = ["credentials", "overlay.yaml"];
/// Beside the ledgers. Below them lie copies, in directories that are ours alone.
const DATA_NAMES: [&str; 5] = ["lock", "backup", cortex::DIRECTORY, RESTORE_MARKER, STAGE_DIRECTORY];
/// Levels below a directory that are looked at: credentials lie two below theirs.
const LEVELS_MAX: u32 = 3;
/// Entries looked at in all; what lies there beyond them is nothing that a daemon made.
const ENTRIES_MAX: usize = 10_000;

/// A file or directory whose mode should be another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Wrong {
    pub(super) path: PathBuf,
    pub(super) is: u32,
    pub(super) wanted: u32,
    /// Others may see a secret, or change what the daemon runs.
    severity: Severity,
}

/// What was found of all of a daemon's files. `data` is where the ledgers are, if that is known.
pub fn findings(paths: &Paths, data: Option<&Path>) -> Vec<Finding> {
    let mut findings: Vec<Finding> = wrong(paths, data).iter().map(told).collect();
    findings.extend(ours(paths, data).iter().filter_map(|(path, _)| owner(path)));
    findings.extend(configuration(&paths.config_file));
    if findings.is_empty() {
        return vec![Finding::ok(Check::Permissions, "only you can read and change the daemon's files").at(&paths.state_dir)];
    }
    capped(findings)
}

fn told(wrong: &Wrong) -> Finding {
    let Wrong { path, is, wanted, severity } = wrong;
    let what = match is & 0o077 {
        0 => format!("its mode is {is:o}: the daemon needs {wanted:o}"),
        _ => format!("its mode is {is:o}: others can get at it"),
    };
    let fix = format!("chmod {wanted:o} {}, or `nexus doctor --repair`", shell_words::quote(&path.to_string_lossy()));
    Finding { severity: *severity, ..Finding::warning(Check::Permissions, what, fix) }.at(path)
}

/// What has another mode than it should.
pub(super) fn wrong(paths: &Paths, data: Option<&Path>) -> Vec<Wrong> {
    let is_secret = |path: &Path| path.starts_with(paths.credentials_dir()) || path.starts_with(paths.run_dir());
    let judged = ours(paths, data).into_iter().filter_map(|(path, metadata)| {
        let wanted = if metadata.is_dir() { DIRECTORY_MODE } else { FILE_MODE };
        let is = metadata.permissions().mode() & 0o777;
        let severity = if is_secret(&path) && !metadata.is_dir() { Severity::Error } else { Severity::Warning };
        (is & 0o077 != 0 || is & wanted != wanted).then_some(Wrong { path, is, wanted, severity })
    });
    judged.collect()
}

/// All that the daemon and its commands make, as far as it is there, known by its name: the directories may
/// have been chosen to be shared with other files. Nothing behind a symbolic link.
fn ours(paths: &Paths, data: Option<&Path>) -> Vec<(PathBuf, Metadata)> {
    let mut all = Vec::new();
    let of_state = |name: &str| STATE_NAMES.contains(&name) || name.starts_with("diagnostics-");
    tree(&paths.state_dir, LEVELS_MAX, &of_state, &mut all);
    tree(&paths.workspace.join("state"), LEVELS_MAX, &|name| WORKSPACE_NAMES.contains(&name), &mut all);
    if let Some(data) = data {
        let ledgers = LEDGERS.map(Ledger::file_name);
        let of_data = |name: &str| DATA_NAMES.contains(&name) || ledgers.iter().any(|ledger| name.starts_with(ledger.as_str()));
        let from = all.len();
        tree(data, 1, &of_data, &mut all);
        if paths.workspace.starts_with(data) && all.len() > from {
            all.remove(from); // more than ledgers lies in it
        }
    }
    all
}

/// A directory, what is ours in it by name, and all below that.
fn tree(root: &Path, levels: u32, is_ours: &dyn Fn(&str) -> bool, all: &mut Vec<(PathBuf, Metadata)>) {
    let Ok(metadata) = fs::metadata(root) else { return };
    let is_directory = metadata.is_dir();
    all.push((root.to_owned(), metadata));
    if is_directory {
        below(root, levels, is_ours, all);
    }
}

fn below(directory: &Path, levels: u32, is_ours: &dyn Fn(&str) -> bool, all: &mut Vec<(PathBuf, Metadata)>) {
    // One that can't be read has a wrong mode or owner, which is told of itself.
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let Ok(metadata) = entry.metadata() else { continue };
        if metadata.is_symlink() || !is_ours(&entry.file_name().to_string_lossy()) || all.len() >= ENTRIES_MAX {
            continue;
        }
        let is_directory = metadata.is_dir();
        all.push((entry.path(), metadata));
        if is_directory && levels > 1 {
            below(&entry.path(), levels - 1, &|_| true, all);
        }
    }
}

/// Whether a path is another user's.
pub fn owner(path: &Path) -> Option<Finding> {
    let (owner, me) = (fs::metadata(path).ok()?.uid(), rustix::process::geteuid().as_raw());
    let fix = format!("run `nexus` as the user it belongs to, or as root: chown {me} {}", shell_words::quote(&path.to_string_lossy()));
    (owner != me).then(|| Finding::error(Check::Permissions, format!("it belongs to user {owner}, and you are {me}"), fix).at(path))
}

/// Why no daemon can keep its ledgers in `directory`; where there is none, why none can be made.
pub(super) fn unusable(directory: &Path) -> Option<Finding> {
    // A link that leads nowhere is there as well, and nothing can be made in its place.
    let there = directory.ancestors().find(|path| path.symlink_metadata().is_ok())?;
    let fix = |what: &str| format!("{what}, or name another with `ledgers.directory`; no daemon starts until then");
    let finding = if !there.is_dir() {
        Finding::error(Check::Permissions, "the ledgers belong here, and it is no directory that can be entered", fix("move it away"))
    } else {
        // Listing isn't needed: each file is opened by its name.
        let error = access(there, Access::WRITE_OK | Access::EXEC_OK).err()?;
        let what = format!("the ledgers belong here, and nothing can be written: {}", std::io::Error::from(error));
        Finding::error(Check::Permissions, what, fix("check the owner and permissions of the directory, and its disk"))
    };
    Some(finding.at(there))
}

/// It names the programs that the daemon runs.
fn configuration(path: &Path) -> Option<Finding> {
    let mode = fs::metadata(path).ok()?.permissions().mode() & 0o777;
    let fix = format!("chmod go-w {}, or `nexus doctor --repair`", shell_words::quote(&path.to_string_lossy()));
    let what = format!("its mode is {mode:o}: others can change what the daemon runs");
    (mode & 0o022 != 0).then(|| Finding::error(Check::Permissions, what, fix).at(path))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::worst;
    use super::*;

    fn place(directory: &Path) -> Paths {
        let paths = Paths {
            state_dir: directory.join("state"),
            config_file: directory.join("w/nex.yaml"),
            workspace: directory.join("w"),
            config_named: true,
        };
        crate::credential::set(&paths.credentials_dir(), "google/me", "secret").unwrap();
        crate::daemon::paths::private_dir(&paths.run_dir()).unwrap();
        fs::write(&paths.config_file, "").unwrap();
        for private in [paths.pid_file(), directory.join("w/data/nexus.db")] {
            crate::daemon::paths::private_dir(private.parent().unwrap()).unwrap();
            crate::credential::write_private(&private, b"1").unwrap();
        }
        set(&paths.config_file, 0o644);
        paths
    }

    fn set(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn each_wrong_mode_is_told_with_its_fix() {
        let directory = tempfile::tempdir().unwrap();
        let paths = place(directory.path());
        let data = paths.workspace.join("data");
        let found = || findings(&paths, Some(&data));
        assert_eq!((found().len(), worst(&found())), (1, Severity::Ok), "{:?}", found());
        let cases = [
            (data.join("nexus.db"), 0o644, Severity::Warning, "chmod 600"),
            (data.clone(), 0o755, Severity::Warning, "chmod 700"),
            (paths.pid_file(), 0o400, Severity::Warning, "chmod 600"),
            (paths.credentials_dir().join("google/me.json"), 0o640, Severity::Error, "chmod 600"),
            (paths.credentials_dir().join("google"), 0o750, Severity::Warning, "chmod 700"),
            (paths.config_file.clone(), 0o664, Severity::Error, "chmod go-w"),
        ];
        for (path, mode, severity, fix) in cases {
            let before = fs::metadata(&path).unwrap().permissions();
            set(&path, mode);
            let found = found();
            assert_eq!(found.len(), 1, "{found:?}");
            assert_eq!((found[0].severity, found[0].place.as_deref()), (severity, path.to_str()), "{found:?}");
            assert!(found[0].fix.as_ref().unwrap().starts_with(fix), "{found:?}");
            fs::set_permissions(&path, before).unwrap();
        }
    }

    #[test]
    fn what_a_link_leads_to_is_somebody_elses() {
        let directory = tempfile::tempdir().unwrap();
        let paths = place(directory.path());
        let foreign = directory.path().join("foreign");
        fs::write(&foreign, "").unwrap();
        set(&foreign, 0o666);
        std::os::unix::fs::symlink(&foreign, paths.state_dir.join("instance")).unwrap();
        assert_eq!(worst(&findings(&paths, None)), Severity::Ok);
    }

    #[test]
    fn other_files_in_a_shared_directory_are_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        let shared = root.join("w");
        let paths =
            Paths { state_dir: shared.clone(), config_file: shared.join("nex.yaml"), workspace: shared.clone(), config_named: true };
        fs::create_dir_all(root.join("w/state/mine")).unwrap();
        for (path, mode) in [("w", 0o700), ("w/state", 0o700), ("w/state/mine", 0o755)] {
            set(&root.join(path), mode);
        }
        for name in ["w/adapter.py", "adapter.py"] {
            fs::write(root.join(name), "").unwrap();
            set(&root.join(name), 0o755);
        }
        set(root, 0o755);
        for data in [root, paths.workspace.as_path()] {
            assert_eq!(wrong(&paths, Some(data)), []);
        }
        fs::write(root.join("nexus.db-wal"), "").unwrap();
        set(&root.join("nexus.db-wal"), 0o644);
        assert_eq!(wrong(&paths, Some(root)).len(), 1);
    }

    #[test]
    fn what_can_hold_no_ledgers_is_told() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        assert_eq!((unusable(root), unusable(&root.join("not/yet"))), (None, None));
        fs::write(root.join("file"), "").unwrap();
        std::os::unix::fs::symlink("/nowhere/at/all", root.join("link")).unwrap();
        for (data, there) in [("file", "file"), ("file/data", "file"), ("link", "link"), ("link/data", "link")] {
            let found = unusable(&root.join(data)).unwrap();
            assert!(found.severity == Severity::Error && found.what.contains("no directory"), "{data}: {found:?}");
            assert_eq!(found.place.as_deref(), root.join(there).to_str(), "{data}");
        }
        fs::create_dir(root.join("shut")).unwrap();
        set(&root.join("shut"), 0o500);
        for data in ["shut", "shut/data"] {
            let found = unusable(&root.join(data));
            // Root may write everywhere, and starts there.
            let is_told = found.as_ref().is_some_and(|finding| finding.what.contains("nothing can be written"));
            assert_eq!(is_told, !rustix::process::geteuid().is_root(), "{data}: {found:?}");
        }
    }

    #[test]
    fn nothing_there_is_nothing_wrong() {
        let directory = tempfile::tempdir().unwrap();
        let gone = directory.path().join("gone");
        let paths = Paths { state_dir: gone.clone(), config_file: gone.join("nex.yaml"), workspace: gone, config_named: true };
        assert_eq!(worst(&findings(&paths, None)), Severity::Ok);
    }
}
