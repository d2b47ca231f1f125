//! The search indexes: whether they are sound, and which were set aside. Nothing that is wrong with them is
//! more than a warning: they are made again out of the ledgers.

use super::record::{bounded, damages, unreadable};
use super::{Check, Finding, capped};
use crate::ledger::{cortex, read_only};
use rusqlite::ErrorCode;
use std::path::Path;
use std::time::Instant;

/// What was found of the indexes beside the ledgers; nothing where there are none.
pub(super) fn findings(ledgers: &Path, until: Option<Instant>) -> Vec<Finding> {
    let directory = ledgers.join(cortex::DIRECTORY);
    let (agents, asides) = match cortex::list(&directory) {
        Ok(found) => found,
        Err(error) => {
            let fix = "check the owner and permissions of the directory";
            return vec![Finding::warning(Check::Search, format!("the search indexes can't be listed: {error}"), fix).at(&directory)];
        }
    };
    let mut findings: Vec<Finding> = agents.iter().filter_map(|agent| file(agent, &cortex::path(&directory, agent), until)).collect();
    findings.extend(asides.iter().map(|aside| {
        let fix = "look at the disk; the file can be removed";
        Finding::warning(Check::Search, "a search index that was damaged; another was made in its place", fix).at(aside)
    }));
    if findings.is_empty() && !agents.is_empty() {
        findings.push(Finding::ok(Check::Search, "every search index is sound").at(&directory));
    }
    capped(findings)
}

fn file(agent: &str, path: &Path, until: Option<Instant>) -> Option<Finding> {
    let connection = read_only(path).and_then(|connection| bounded(connection, until));
    let looked = connection.and_then(|connection| damages(&connection, "quick_check"));
    let fix = format!("`nexus search --rebuild --agent {agent}` makes it anew out of the ledgers");
    match looked {
        Ok(damages) if damages.is_empty() => None,
        Ok(damages) => Some(Finding::warning(Check::Search, format!("the search index is damaged: {}", damages.join("; ")), fix).at(path)),
        Err(_) if !path.exists() => None, // made anew just now
        Err(error) if error.sqlite_error_code() == Some(ErrorCode::OperationInterrupted) => Some(unreadable(Check::Search, path, &error)),
        Err(error) => Some(Finding::warning(Check::Search, format!("the search index can't be read: {error}"), fix).at(path)),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::Severity;
    use super::*;

    #[test]
    fn a_sound_index_a_damaged_one_and_one_that_was_set_aside() {
        let ledgers = tempfile::tempdir().unwrap();
        assert!(findings(ledgers.path(), None).is_empty());
        let file = |agent: &str| cortex::path(&ledgers.path().join(cortex::DIRECTORY), agent);
        drop(cortex::open(&file("a"), 1).unwrap());
        let sound = findings(ledgers.path(), None);
        assert_eq!((sound.len(), sound[0].severity), (1, Severity::Ok), "{sound:?}");
        std::fs::write(file("b"), "this is no database at all, but long enough to look like one".repeat(20)).unwrap();
        let found = findings(ledgers.path(), None);
        assert!(found.len() == 1 && found[0].fix.as_ref().unwrap().contains("--rebuild --agent b"), "{found:?}");
        cortex::set_aside(&file("b"), 7).unwrap();
        let found = findings(ledgers.path(), None);
        assert!(found.len() == 1 && found[0].place.as_ref().unwrap().ends_with("b.db.corrupt-7"), "{found:?}");
        assert_eq!(found[0].severity, Severity::Warning);
    }
}
