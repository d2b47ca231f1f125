//! The quarantine of the project, as a person meets it who looks on for a while, and then releases it: nothing starts the
//! project meanwhile, nothing is handed to it, and it goes on behind that.

use crate::check::children::Intake;
use crate::check::{count, in_use, rows};
use crate::fault::Fault;
use crate::inflict;
use crate::posters::coordinate;
use crate::run::Run;
use crate::world::World;
use crate::{clock, daemon, journal};
use anyhow::{Context, Result};
use serde_json::Value;
use std::time::Duration;

/// How long somebody looks on.
const LOOK: Duration = Duration::from_millis(300);
/// Status of an answer that it was done, and of one that nobody spoke to the project yet.
const DONE: u16 = 200;
const UNKNOWN: u16 = 404;

/// What was answered to a release.
#[derive(Debug, PartialEq, Eq)]
enum Answer {
    Done,
    Unknown,
    Other(String),
}

impl Answer {
    fn of(asked: Result<(u16, String)>) -> Self {
        match asked {
            Ok((DONE, _)) => Self::Done,
            Ok((UNKNOWN, _)) => Self::Unknown,
            Ok((status, body)) => Self::Other(format!("{status} {body}")),
            Err(error) => Self::Other(format!("{error:#}")),
        }
    }

    /// What is wrong with it, where the ledger knows so many projects.
    fn wrong(self, projects: u64) -> Option<String> {
        match self {
            Self::Done => None,
            Self::Unknown => (projects > 0).then(|| "the project is in the ledger, and to release it was answered with 404".to_owned()),
            Self::Other(said) => Some(format!("to release the project was answered with {said}")),
        }
    }
}

/// A person releases the project, in quarantine or not.
fn release(world: &World) -> Answer {
    Answer::of(daemon::ask(world, "POST", &format!("/control/projects/{}/release", coordinate()), "{}"))
}

/// The same while the daemon may die of it.
pub(crate) fn release_if_it_lives(world: &World) {
    drop(release(world));
}

impl Run<'_> {
    /// After a start, before the fault.
    pub(crate) fn look_on_and_release(&mut self, fault: &Fault) -> Result<()> {
        // Of a fail point nobody knows when it is passed, and a ledger may be damaged since before the start.
        if fault.fail_point().is_some() || inflict::intake_under(fault) != Intake::Goes {
            release_if_it_lives(&self.world);
            return Ok(());
        }
        self.look_on_and_release_for_good()
    }

    /// While nothing is done to the daemon.
    pub(crate) fn look_on_and_release_for_good(&mut self) -> Result<()> {
        if let Some(found) = look_on(&self.world)? {
            self.counts.quarantine_looks += 1;
            self.violations.extend(found);
        }
        self.release_for_good()
    }

    fn release_for_good(&mut self) -> Result<()> {
        // Before: somebody may speak to it for the first time meanwhile.
        let projects = count(&in_use(&self.world.data(), "nexus")?, "SELECT count(*) FROM projects")?;
        if let Some(wrong) = release(&self.world).wrong(projects) {
            self.violated(format!("{wrong}; the log:\n{}", daemon::last_words(&self.world)));
        }
        Ok(())
    }

    /// Notes for the checker that what comes now finds the project released, and nothing that would make it crash.
    pub(crate) fn note_released(&self) -> Result<()> {
        let last = count(&in_use(&self.world.data(), "nexus")?, "SELECT coalesce(max(event_seq), 0) FROM nexus_requests")?;
        journal::append(&self.world.released(), &last.to_string())
    }
}

/// What a quarantine is known by: why and under which configuration and definition there is one.
type Standing = (String, Option<String>, Option<String>);

/// Looks on where the project is in quarantine; what is wrong with what its processes did meanwhile. `None` if there was nothing to
/// look at.
fn look_on(world: &World) -> Result<Option<Vec<String>>> {
    let Some(before) = standing(world)? else { return Ok(None) };
    let from = clock::monotonic_ns();
    clock::pause(LOOK);
    let to = clock::monotonic_ns();
    // A new definition may have ended it.
    if standing(world)?.as_ref() != Some(&before) {
        return Ok(None);
    }
    Ok(Some(done_between(&journal::values(&world.project_journal())?, from, to)))
}

/// The quarantine that there is now, by the daemon and by the ledger.
fn standing(world: &World) -> Result<Option<Standing>> {
    let Ok((DONE, body)) = daemon::ask(world, "GET", "/control/projects", "") else { return Ok(None) };
    let told: Value = serde_json::from_str(&body).context("the projects are no JSON")?;
    let own = coordinate();
    let is_quarantined = |one: &Value| one["id"] == *own && one["state"] == "quarantined";
    if !told["projects"].as_array().into_iter().flatten().any(is_quarantined) {
        return Ok(None);
    }
    let sql = "SELECT quarantined, quarantined_under, definition_id FROM projects WHERE quarantined IS NOT NULL";
    Ok(rows(&in_use(&world.data(), "nexus")?, sql, |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?.pop())
}

/// Lines of the project's journal from between these times, of which there should be none.
fn done_between(journal: &[Value], from: u64, to: u64) -> Vec<String> {
    let is_between = |line: &&Value| line["at"].as_u64().is_some_and(|at| from < at && at < to);
    let told = |line: &Value| format!("the project was in quarantine, and its process noted {line}");
    journal.iter().filter(is_between).take(1).map(told).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::anyhow;
    use serde_json::json;

    #[test]
    fn a_release_is_answered_as_done_or_meets_a_project_that_nobody_knows() {
        let wrong = |asked: Result<(u16, String)>, projects: u64| Answer::of(asked).wrong(projects);
        assert_eq!(wrong(Ok((200, "{}".to_owned())), 1), None);
        assert_eq!(wrong(Ok((404, "{}".to_owned())), 0), None);
        assert!(wrong(Ok((404, "{}".to_owned())), 1).is_some_and(|wrong| wrong.contains("is in the ledger")));
        assert!(wrong(Ok((409, "no".to_owned())), 1).is_some_and(|wrong| wrong.contains("409 no")));
        assert!(wrong(Err(anyhow!("nobody listens")), 0).is_some_and(|wrong| wrong.contains("nobody listens")));
    }

    #[test]
    fn what_a_project_does_in_quarantine_is_found() {
        let journal = [json!({ "what": "began", "at": 10 }), json!({ "what": "handed", "id": "nostr:1", "at": 20 })];
        assert_eq!(done_between(&journal, 20, 30), Vec::<String>::new(), "before it");
        assert_eq!(done_between(&journal, 11, 20), Vec::<String>::new(), "behind it");
        assert!(done_between(&journal, 9, 15).concat().contains("began") && done_between(&journal, 15, 30).concat().contains("nostr:1"));
    }
}
