//! `nexus doctor`: looks at everything that a daemon needs and keeps, and says what is wrong and what
//! to do about it. Looking changes nothing; what may be mended is in `repair`. It never prints.
//!
//! Who looks: the files of a running daemon are examined by that daemon (`record`), all else by the
//! command itself, which examines the files too when nothing runs.

pub mod adapters;
pub mod agents;
mod cortex;
mod cross;
pub mod git;
pub mod health;
pub mod host;
pub mod leftovers;
pub mod permissions;
pub mod plugins;
pub mod record;
pub mod repair;
mod rows;
pub mod setting;

use serde::{Deserialize, Serialize};
use std::fmt::Display;
use std::path::Path;

/// Places or ids that one finding names; the others are counted.
pub const NAMED_MAX: usize = 10;

/// What was looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Check {
    Lock,
    Permissions,
    Config,
    Schema,
    Integrity,
    /// Each accepted event has one request, and that one end.
    Promise,
    /// Runs, sessions and files that follow others.
    Records,
    Deliveries,
    /// The indexes for `nexus search`.
    Search,
    Leftovers,
    /// How surely nothing outlives a daemon that is killed together with its keeper.
    KillLevel,
    Disk,
    Clock,
    Port,
    Adapters,
    /// Whether those that are enabled load, and are asked.
    Plugins,
    Automations,
    /// Their programs and keys.
    Agents,
    /// The programs that give agents tools.
    Mcp,
    /// Why a running daemon isn't healthy.
    Health,
    /// The program that clones projects' repositories.
    Git,
    Repair,
}

impl Check {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Lock => "lock",
            Self::Permissions => "permissions",
            Self::Config => "config",
            Self::Schema => "schema",
            Self::Integrity => "integrity",
            Self::Promise => "promise",
            Self::Records => "records",
            Self::Deliveries => "deliveries",
            Self::Search => "search",
            Self::Leftovers => "leftovers",
            Self::KillLevel => "kill_level",
            Self::Disk => "disk",
            Self::Clock => "clock",
            Self::Port => "port",
            Self::Adapters => "adapters",
            Self::Plugins => "plugins",
            Self::Automations => "automations",
            Self::Agents => "agents",
            Self::Mcp => "mcp",
            Self::Health => "health",
            Self::Git => "git",
            Self::Repair => "repair",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    Ok,
    Warning,
    Error,
}

impl Severity {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Error => "error",
        }
    }
}

/// One thing that was looked at, as it was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    pub check: Check,
    pub severity: Severity,
    pub what: String,
    /// A path or an address.
    #[serde(rename = "where")]
    pub place: Option<String>,
    /// What to do about it.
    pub fix: Option<String>,
}

impl Finding {
    pub fn ok(check: Check, what: impl Into<String>) -> Self {
        Self { check, severity: Severity::Ok, what: what.into(), place: None, fix: None }
    }

    pub fn warning(check: Check, what: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { check, severity: Severity::Warning, what: what.into(), place: None, fix: Some(fix.into()) }
    }

    pub fn error(check: Check, what: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { check, severity: Severity::Error, what: what.into(), place: None, fix: Some(fix.into()) }
    }

    #[must_use]
    pub fn at(mut self, path: &Path) -> Self {
        self.place = Some(path.display().to_string());
        self
    }

    #[must_use]
    pub fn at_place(mut self, place: impl Display) -> Self {
        self.place = Some(place.to_string());
        self
    }
}

/// Whether there is a daemon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Presence {
    /// None, and the lock is free.
    Absent,
    /// It died, and its keeper still kills what it left.
    Cleaning,
    Running {
        pid: u32,
    },
}

/// The worst of some findings.
pub fn worst(findings: &[Finding]) -> Severity {
    findings.iter().map(|finding| finding.severity).max().unwrap_or(Severity::Ok)
}

/// The first [`NAMED_MAX`] of some findings; the rest as one that counts them, as bad as the worst.
pub(crate) fn capped(mut findings: Vec<Finding>) -> Vec<Finding> {
    if findings.len() <= NAMED_MAX {
        return findings;
    }
    findings.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
    let rest = findings.split_off(NAMED_MAX);
    if let Some(first) = rest.first() {
        findings.push(Finding { what: format!("{} more of this kind", rest.len()), place: None, ..first.clone() });
    }
    findings
}

/// `1 event`, `2 events`.
pub(crate) fn counted(count: u64, one: &str) -> String {
    if count == 1 { format!("1 {one}") } else { format!("{count} {one}s") }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_finding_is_read_as_it_was_written() {
        let finding = Finding::error(Check::Promise, "lost", "restore").at(Path::new("/data"));
        let value = serde_json::to_value(&finding).unwrap();
        let told = serde_json::json!({ "check": "promise", "severity": "error", "what": "lost", "where": "/data", "fix": "restore" });
        assert_eq!(value, told);
        assert_eq!(serde_json::from_value::<Finding>(value).unwrap(), finding);
    }

    #[test]
    fn a_flood_is_cut_and_its_worst_is_kept() {
        let mut many: Vec<_> = (0..30).map(|n| Finding::warning(Check::Leftovers, n.to_string(), "remove it")).collect();
        many.push(Finding::error(Check::Leftovers, "bad", "mend it"));
        let capped = capped(many);
        assert_eq!(capped.len(), NAMED_MAX + 1);
        assert_eq!((capped[0].what.as_str(), worst(&capped)), ("bad", Severity::Error));
        assert_eq!(capped.last().unwrap().what, "21 more of this kind");
        assert_eq!(worst(&[]), Severity::Ok);
    }

    #[test]
    fn check_names_are_those_of_the_json() {
        for check in [Check::Lock, Check::Records, Check::Repair, Check::Mcp, Check::Automations] {
            assert_eq!(serde_json::to_value(check).unwrap(), check.as_str());
        }
    }
}
