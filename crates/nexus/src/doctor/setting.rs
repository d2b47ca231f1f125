//! The lock and the configuration: whether a daemon runs, and whether one could.

use super::{Check, Finding, Presence, capped};
use crate::daemon::config::{self, LoadError};
use crate::daemon::{Paths, lock};
use crate::error_text::describe;
use crate::ledger::lock::user;
use nexus_core::config::{Config, Problem, WARNING_MARK};
use std::path::Path;

/// Whether a daemon runs, by the lock of the state directory.
pub fn presence(paths: &Paths) -> Presence {
    match lock::holder(paths) {
        Some(pid) => Presence::Running { pid },
        None if lock::is_free(paths) => Presence::Absent,
        None => Presence::Cleaning,
    }
}

/// The lock of the state directory, and what a dead daemon left beside it.
pub fn lock(paths: &Paths, presence: Presence) -> Vec<Finding> {
    match presence {
        Presence::Running { pid } => {
            vec![Finding::ok(Check::Lock, format!("held by the running daemon (PID {pid})")).at(&paths.pid_file())]
        }
        Presence::Cleaning => {
            let what = "held, and by no running daemon: one is starting, or the keeper of a dead one still kills what that left";
            let fix = "try again in a moment; if it stays so, look with `ps` what the processes hang on";
            vec![Finding::warning(Check::Lock, what, fix).at(&paths.pid_file())]
        }
        Presence::Absent => {
            let fix = "`nexus doctor --repair`; the next start of the daemon does it too";
            let stale = [
                (paths.pid_file(), "a PID file that nobody holds: the last daemon was killed"),
                (paths.socket(), "a socket that nobody listens on"),
            ];
            let left =
                stale.iter().filter(|(path, _)| path.exists()).map(|(path, what)| Finding::warning(Check::Lock, *what, fix).at(path));
            let mut findings = vec![Finding::ok(Check::Lock, "free: no daemon runs").at(&paths.state_dir)];
            findings.extend(left);
            findings
        }
    }
}

/// With no daemon of this state directory, whether a command or a daemon of another has the ledgers.
pub fn ledgers_in_use(data: &Path) -> Option<Finding> {
    let by = user(data)?;
    let finding = if by.is_empty() {
        let what = "a daemon with another state directory has these ledgers; they were not looked at";
        let fix = "give each daemon its own ledgers.directory, or name that one's state by NEXUS_STATE_DIR";
        Finding::error(Check::Lock, what, fix)
    } else {
        let what = format!("{by} works on the ledgers; they were not looked at");
        Finding::warning(Check::Lock, what, "run `nexus doctor` again when it is done")
    };
    Some(finding.at(data))
}

/// The configuration, if it loads or a start would write one; and all that is wrong or odd about it.
pub fn configuration(paths: &Paths) -> (Option<Config>, Vec<Finding>) {
    let (config, mut findings) = match config::load(paths) {
        Ok(loaded) => {
            let warnings = loaded.warnings.iter().map(|problem| odd(problem, &problem.message)).collect();
            (Some(loaded.config), warnings)
        }
        Err(LoadError::Missing(_)) if !paths.config_named => {
            let what = "there is none; the first start writes one with every default";
            return (Some(Config::default()), vec![Finding::ok(Check::Config, what).at(&paths.config_file)]);
        }
        Err(LoadError::Invalid(problems)) => (None, problems.iter().map(wrong).collect()),
        Err(error @ (LoadError::Missing(_) | LoadError::Io { .. } | LoadError::NotUtf8 { .. })) => {
            let fix = "a start of the daemon ends with this error, until it is corrected";
            (None, vec![Finding::error(Check::Config, describe(&error), fix).at(&paths.config_file)])
        }
    };
    if config.is_some() {
        findings.insert(0, Finding::ok(Check::Config, "valid").at(&paths.config_file));
    }
    (config, capped(findings))
}

fn place(problem: &Problem) -> String {
    format!("{}:{}:{}", problem.file, problem.line, problem.column)
}

fn odd(problem: &Problem, message: &str) -> Finding {
    Finding::warning(Check::Config, message, "correct or remove it; `nexus config check` shows the line").at_place(place(problem))
}

fn wrong(problem: &Problem) -> Finding {
    if problem.is_warning {
        return odd(problem, problem.message.strip_prefix(WARNING_MARK).unwrap_or(&problem.message));
    }
    Finding::error(Check::Config, &problem.message, "correct it; `nexus config check` shows the line").at_place(place(problem))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::{Severity, worst};
    use super::*;

    fn place(directory: &Path, text: Option<&str>) -> Paths {
        let config_file = directory.join("nex.yaml");
        if let Some(text) = text {
            std::fs::write(&config_file, text).unwrap();
        }
        Paths { state_dir: directory.join("state"), config_file, workspace: directory.to_owned(), config_named: true }
    }

    #[test]
    fn every_mistake_of_the_configuration_has_its_place() {
        let directory = tempfile::tempdir().unwrap();
        let (config, found) = configuration(&place(directory.path(), Some("daemon: { port: 7400 }\nacess: {}\n")));
        assert!(config.is_some());
        assert_eq!((found[0].severity, found[1].severity), (Severity::Ok, Severity::Warning), "{found:?}");
        assert!(found[1].place.as_ref().unwrap().ends_with("nex.yaml:2:1"), "{found:?}");
        let (config, found) = configuration(&place(directory.path(), Some("daemon: { port: x }\nacess: {}\nbus: { ring: 1 }\n")));
        assert!(config.is_none());
        let severities: Vec<_> = found.iter().map(|finding| finding.severity).collect();
        assert_eq!(severities, [Severity::Error, Severity::Error, Severity::Warning], "{found:?}");
        assert!(found.iter().all(|finding| !finding.what.starts_with(WARNING_MARK)), "{found:?}");
    }

    #[test]
    fn no_configuration_is_wrong_only_if_one_was_named() {
        let directory = tempfile::tempdir().unwrap();
        let named = place(directory.path(), None);
        assert_eq!(worst(&configuration(&named).1), Severity::Error);
        let (config, found) = configuration(&Paths { config_named: false, ..named });
        assert!(config.is_some() && worst(&found) == Severity::Ok, "{found:?}");
    }

    #[test]
    fn a_dead_daemons_files_are_stale_and_held_ledgers_are_not_ours() {
        let directory = tempfile::tempdir().unwrap();
        let paths = place(directory.path(), None);
        assert_eq!((presence(&paths), worst(&lock(&paths, Presence::Absent))), (Presence::Absent, Severity::Ok));
        std::fs::create_dir(&paths.state_dir).unwrap();
        std::fs::write(paths.pid_file(), "1").unwrap();
        assert_eq!(worst(&lock(&paths, presence(&paths))), Severity::Warning);
        let held = crate::ledger::lock::take(directory.path(), None).unwrap();
        assert_eq!(ledgers_in_use(directory.path()).unwrap().severity, Severity::Error);
        drop(held);
        assert_eq!(ledgers_in_use(directory.path()), None);
        let _held = crate::ledger::lock::take(directory.path(), Some("nexus backup")).unwrap();
        let busy = ledgers_in_use(directory.path()).unwrap();
        assert!(busy.severity == Severity::Warning && busy.what.starts_with("`nexus backup` (PID"), "{busy:?}");
    }
}
