//! What the daemon says of its own health while something is wrong that it can't but meet, and when that is over
//! (docs/operations.md, "Health"). One that is gone says nothing, and isn't judged.

use crate::clock;
use crate::daemon::Daemon;
use anyhow::Result;
use serde_json::Value;
use std::time::Duration;

/// How long it may take to tell. It waits five seconds for a locked ledger, and looks at the disk as often.
const TOLD_LIMIT: Duration = Duration::from_secs(60);
/// A failed write shows for a minute, if nothing is written after it.
const OVER_LIMIT: Duration = Duration::from_secs(120);
/// Between two questions.
const STEP: Duration = Duration::from_millis(50);
/// HTTP status of one that is `unhealthy`.
const UNHEALTHY: u16 = 503;
/// In why a ledger isn't accessible that is written again: this shows for a minute, whatever is read after it.
const WAS_NOT_READ: &str = "a read of it failed within the last minute";
const NO_ROOM: &str = "free disk space is below its floor";
/// The ledger that something is written to all the time: people write, and the timer beats.
pub(crate) const EVENTS: &str = "events";

/// What is wrong with it for a while.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ailment {
    /// This ledger can't be written.
    Ledger(&'static str),
    /// The disk has no room, so that no ledger can be written either.
    Disk,
}

impl Ailment {
    fn ledger(self) -> &'static str {
        match self {
            Self::Ledger(name) => name,
            Self::Disk => EVENTS,
        }
    }

    /// Whether the document gives it as a reason.
    fn is_a_reason(self, health: &Value) -> bool {
        let not_accessible = format!("ledger `{}_db` is not accessible: ", self.ledger());
        let mut reasons = health["reasons"].as_array().into_iter().flatten().filter_map(Value::as_str);
        reasons.any(|reason| {
            let is_unwritten = reason.strip_prefix(&not_accessible).is_some_and(|why| why != WAS_NOT_READ);
            is_unwritten || (self == Self::Disk && reason == NO_ROOM)
        })
    }

    fn is_told(self, status: u16, health: &Value) -> bool {
        status == UNHEALTHY && health["status"] == "unhealthy" && self.is_a_reason(health)
    }

    /// Whatever else is wrong.
    fn is_over(self, health: &Value) -> bool {
        health["status"].is_string() && !self.is_a_reason(health)
    }
}

/// What was heard of an ailment.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Heard {
    AsDue,
    /// The daemon has ended.
    Nothing,
    /// Another thing for all the time that there is; this at last.
    Otherwise(String),
}

/// Waits until the daemon tells of it. `meanwhile` sees to it that it lasts.
///
/// # Errors
/// Those of `meanwhile`.
pub(crate) fn is_told(daemon: &Daemon, ailment: Ailment, meanwhile: impl Fn() -> Result<()>) -> Result<Heard> {
    hear(daemon, TOLD_LIMIT, meanwhile, |status, health| ailment.is_told(status, health))
}

/// Waits until it tells of it no more.
///
/// # Errors
/// None of its own.
pub(crate) fn is_over(daemon: &Daemon, ailment: Ailment) -> Result<Heard> {
    hear(daemon, OVER_LIMIT, || Ok(()), |_, health| ailment.is_over(health))
}

fn hear(daemon: &Daemon, limit: Duration, meanwhile: impl Fn() -> Result<()>, is_due: impl Fn(u16, &Value) -> bool) -> Result<Heard> {
    let mut last = String::new();
    let heard = clock::until(limit, || {
        meanwhile()?;
        match daemon.ask("GET", "/health", "") {
            Ok((status, body)) => {
                if serde_json::from_str::<Value>(&body).is_ok_and(|health| is_due(status, &health)) {
                    return Ok(Some(Heard::AsDue));
                }
                last = format!("{status} {body}");
            }
            Err(error) => last = format!("{error:#}"),
        }
        clock::pause(STEP);
        Ok((!daemon.is_running()).then_some(Heard::Nothing))
    })?;
    Ok(heard.unwrap_or(Heard::Otherwise(last)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn document(status: &str, reasons: &[&str]) -> Value {
        json!({ "status": status, "reasons": reasons })
    }

    #[test]
    fn a_fault_is_told_with_its_reason_and_its_status() {
        let locked = document("unhealthy", &["ledger `nexus_db` is not accessible: database is locked"]);
        let nexus = Ailment::Ledger("nexus");
        assert!(nexus.is_told(503, &locked));
        assert!(!nexus.is_told(200, &locked), "by its status no probe sees it");
        assert!(!Ailment::Ledger(EVENTS).is_told(503, &locked), "it is another ledger");
        assert!(!Ailment::Disk.is_told(503, &locked), "nor has the disk to do with it");
        for unaware in [document("healthy", &[]), document("degraded", &["1 adapter is in backoff"]), json!({})] {
            assert!(!nexus.is_told(503, &unaware), "{unaware}");
        }
        for full in [NO_ROOM, "ledger `events_db` is not accessible: database or disk is full"] {
            assert!(Ailment::Disk.is_told(503, &document("unhealthy", &["1 adapter is degraded", full])), "{full}");
        }
        assert!(!nexus.is_told(503, &document("unhealthy", &[NO_ROOM])));
    }

    #[test]
    fn what_is_over_is_told_no_more_whatever_else_is_wrong() {
        let nexus = Ailment::Ledger("nexus");
        assert!(nexus.is_over(&document("healthy", &[])) && Ailment::Disk.is_over(&document("healthy", &[])));
        assert!(nexus.is_over(&document("unhealthy", &[NO_ROOM, "1 adapter is in backoff"])));
        assert!(!Ailment::Disk.is_over(&document("unhealthy", &[NO_ROOM])));
        assert!(!nexus.is_over(&document("unhealthy", &["ledger `nexus_db` is not accessible: database is locked"])));
        let was_not_read = format!("ledger `nexus_db` is not accessible: {WAS_NOT_READ}");
        assert!(nexus.is_over(&document("unhealthy", &[&was_not_read])), "that shows for a minute");
        assert!(!nexus.is_over(&json!({})), "that is no answer");
    }
}
