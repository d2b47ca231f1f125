//! Why a running daemon isn't healthy, and what to do about each reason. It repeats what the daemon says of itself; plugins
//! and automations, and the clock, have checks of their own.

use super::{Check, Finding, Severity};
use nexus_core::health::{Overall, Parts, overall};

/// For what has no advice of its own.
const ELSE: &str = "`nexus daemon status --verbose` and `nexus daemon logs` say more";

/// One finding for each reason, or that there is none.
pub fn findings(parts: &Parts) -> Vec<Finding> {
    let elsewhere = reasons(&Parts { plugins_unwell: parts.plugins_unwell.clone(), clock_doubt: parts.clock_doubt, ..Parts::well() });
    let advised = advised(parts);
    let (word, all) = overall(parts);
    let fix_of = |reason: &str| advised.iter().find(|(reasons, _)| reasons.iter().any(|one| one == reason)).map_or(ELSE, |(_, fix)| *fix);
    let finding = |reason: String| {
        let fix = fix_of(&reason);
        match severity(parts, &reason) {
            Severity::Error => Finding::error(Check::Health, reason, fix),
            Severity::Ok | Severity::Warning => Finding::warning(Check::Health, reason, fix),
        }
    };
    let found: Vec<Finding> = all.into_iter().filter(|reason| !elsewhere.contains(reason)).map(finding).collect();
    match (found.is_empty(), word) {
        (false, _) => found,
        (true, Overall::Healthy) => vec![Finding::ok(Check::Health, "healthy")],
        (true, Overall::Degraded | Overall::Unhealthy) => vec![Finding::ok(Check::Health, "nothing but what is told above")],
    }
}

/// What makes the daemon unhealthy is an error.
fn severity(parts: &Parts, reason: &str) -> Severity {
    let (ledgers, ledgers_damaged) = (parts.ledgers.clone(), parts.ledgers_damaged.clone());
    let (pipeline_ok, disk_ok) = (parts.pipeline_ok, parts.disk_ok);
    let broken = reasons(&Parts { ledgers, ledgers_damaged, pipeline_ok, disk_ok, ..Parts::well() });
    if broken.iter().any(|one| one == reason) { Severity::Error } else { Severity::Warning }
}

/// The reasons that each part gives, with what to do.
fn advised(parts: &Parts) -> Vec<(Vec<String>, &'static str)> {
    let of = |some: Parts, fix: &'static str| (reasons(&some), fix);
    vec![
        of(Parts { pipeline_ok: parts.pipeline_ok, ..Parts::well() }, "`nexus daemon restart`; `nexus daemon logs` says what failed"),
        of(Parts { ledgers: parts.ledgers.clone(), ..Parts::well() }, "mend the disk or put the file back; work goes on by itself then"),
        of(
            Parts { ledgers_damaged: parts.ledgers_damaged.clone(), ..Parts::well() },
            "stop the daemon, keep a copy of the file, and restore the ledgers with `nexus restore`",
        ),
        of(
            Parts { ledgers_unchecked: parts.ledgers_unchecked.clone(), ..Parts::well() },
            "run `nexus doctor` while the daemon is stopped: it looks to the end; each start looks again too",
        ),
        of(Parts { disk_ok: parts.disk_ok, ..Parts::well() }, "make room, or lower ledgers.min_free_mb; work goes on by itself then"),
        of(
            Parts { adapters: parts.adapters.clone(), ..Parts::well() },
            "`nexus adapter list` names them, `nexus adapter health NAME/ACCOUNT` says why",
        ),
        of(
            Parts { tasks_restarted: parts.tasks_restarted, tasks_lost: parts.tasks_lost.clone(), ..Parts::well() },
            "`nexus daemon status --json` names them in `failed_tasks`; `nexus daemon restart` starts what was given up",
        ),
        of(
            Parts { stuck_deliveries: parts.stuck_deliveries, ..Parts::well() },
            "`nexus deliveries list` shows them; `nexus deliveries retry` or `discard` decides",
        ),
        of(
            Parts { sessions_stopped: parts.sessions_stopped.clone(), ..Parts::well() },
            "`nexus sessions show LABEL` says what came; another message, or ten quiet minutes, let it go on",
        ),
        of(Parts { projects_unwell: parts.projects_unwell.clone(), ..Parts::well() }, "`nexus project list` says how each is"),
        of(Parts { nostr_unwell: parts.nostr_unwell.clone(), ..Parts::well() }, "`nexus nostr status` says how each relay is"),
    ]
}

fn reasons(parts: &Parts) -> Vec<String> {
    overall(parts).1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reason_is_told_once_with_what_to_do() {
        assert_eq!(findings(&Parts::well()), [Finding::ok(Check::Health, "healthy")]);
        let found = findings(&Parts {
            disk_ok: false,
            stuck_deliveries: 2,
            plugins_unwell: vec!["plugin `tags`: it does not load".to_owned()],
            ..Parts::well()
        });
        let told: Vec<_> = found.iter().map(|one| (one.severity, one.what.as_str())).collect();
        assert_eq!(told, [(Severity::Error, "free disk space is below its floor"), (Severity::Warning, "2 deliveries are stuck")]);
        let fixes: Vec<&str> = found.iter().filter_map(|one| one.fix.as_deref()).collect();
        assert!(fixes[0].contains("ledgers.min_free_mb") && fixes[1].contains("nexus deliveries"), "{fixes:?}");
        let plugins = Parts { plugins_unwell: vec!["plugin `tags`: it does not load".to_owned()], ..Parts::well() };
        assert_eq!(findings(&plugins), [Finding::ok(Check::Health, "nothing but what is told above")]);
        let found = findings(&Parts { ledgers_unchecked: vec!["ledger `nexus.db` was not looked at".to_owned()], ..Parts::well() });
        assert_eq!((found.len(), found[0].severity), (1, Severity::Warning));
        assert!(found[0].fix.as_deref().is_some_and(|fix| fix.contains("nexus doctor")), "{found:?}");
    }
}
