//! Events that failed because their project waited: what for by now, whether it still does, and which of them are run again
//! once it doesn't. It decides; preparing the project and running them is the daemon's.

use super::Projects;
use super::coordinate::Coordinate;
use super::prepare::is_there;
use crate::ledger::ReadError;
use crate::ledger::nexus::{self, ApprovalKind, Awaited, ProjectRow, Wait};

/// Events of one project that are run again; older ones stay failed.
pub const TAKEN_MAX: usize = 100;
/// Longest that an event waits, in ms; one that waited for longer stays failed.
pub const WAIT_MS_MAX: i64 = 24 * 60 * 60 * 1000;
/// Steps from one awaited thing to the next that are followed at once: an approval, the source, the configuration.
const STEPS_MAX: usize = 4;

/// How it stands with what events wait for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Prospect {
    Waits,
    /// Nobody has to decide anything: it waits for a preparation that succeeds.
    Unprepared,
    /// Nothing is in the way any more.
    Over,
    /// It will never be: what waited for it stays failed.
    Refused,
}

/// One look at what is waited for.
enum Step {
    /// It waits for this instead.
    To(Awaited),
    Is(Prospect),
}

/// Events that wait, by what becomes of them once it is their turn. Both in their order.
#[derive(Debug, PartialEq, Eq)]
pub struct Sorted {
    pub taken: Vec<Wait>,
    /// They have waited for too long, or are too many.
    pub left: Vec<Wait>,
}

/// Sorts the events that wait for one project; `is_over` says of a time, in Unix ms, whether it has surely passed.
pub fn sorted(waits: Vec<Wait>, is_over: impl Fn(i64) -> bool) -> Sorted {
    let (mut left, mut taken): (Vec<Wait>, Vec<Wait>) = waits.into_iter().partition(|wait| is_over(wait.at.saturating_add(WAIT_MS_MAX)));
    left.extend(taken.drain(..taken.len().saturating_sub(TAKEN_MAX)));
    left.sort_by_key(|wait| wait.event_seq);
    Sorted { taken, left }
}

impl Projects {
    /// What is waited for by now, and how it stands with that; by the ledger, so that nobody has to be told of a decision.
    ///
    /// # Errors
    /// When the ledger can't be read.
    pub async fn prospect(&self, project: &str, awaited: Awaited) -> Result<(Awaited, Prospect), ReadError> {
        let mut now = awaited;
        for _ in 0..STEPS_MAX {
            let step = match now {
                Awaited::Approval(id) => self.approval_step(project, id).await?,
                Awaited::Configuration => self.configuration_step(project).await?,
                Awaited::Source => self.source_step(project).await?,
            };
            match step {
                Step::To(next) => now = next,
                Step::Is(prospect) => return Ok((now, prospect)),
            }
        }
        Ok((now, Prospect::Waits)) // something changes under our eyes
    }

    /// After an approval the project has yet to be prepared.
    async fn approval_step(&self, project: &str, id: i64) -> Result<Step, ReadError> {
        let name = project.to_owned();
        let asked = self.inner.ledgers.nexus.readers.read(move |connection| nexus::approvals(connection, Some(&name))).await?;
        let is_open =
            |one: &nexus::Approval| one.status == nexus::ApprovalStatus::Pending && !self.inner.ground.preparer.is_host_allowed(one);
        Ok(match asked.iter().find(|one| one.id == id) {
            Some(one) if one.status == nexus::ApprovalStatus::Denied => Step::Is(Prospect::Refused),
            Some(one) if is_open(one) => Step::Is(Prospect::Waits),
            Some(_) => Step::To(Awaited::Source),
            // A newer definition wants another host, or none.
            None => {
                let other = asked.iter().rev().find(|one| one.kind == ApprovalKind::Host && is_open(one));
                Step::To(other.map_or(Awaited::Source, |one| Awaited::Approval(one.id)))
            }
        })
    }

    /// Whoever prepares a project, or looks at it anew, says in the ledger what it lacks.
    async fn configuration_step(&self, project: &str) -> Result<Step, ReadError> {
        Ok(match self.row_of(project).await? {
            // One in quarantine would only fail again, and one that was put away is brought back by another event.
            Some(row) if row.quarantined.is_none() && row.status != "archived" => match is_there(&row) {
                true if self.is_answering(&row) => Step::Is(Prospect::Over),
                true => Step::Is(Prospect::Waits),
                false => Step::To(Awaited::Source),
            },
            Some(_) | None => Step::Is(Prospect::Waits),
        })
    }

    async fn source_step(&self, project: &str) -> Result<Step, ReadError> {
        Ok(match self.row_of(project).await? {
            Some(row) if row.quarantined.is_some() => Step::Is(Prospect::Waits),
            Some(row) if is_there(&row) && self.is_answering(&row) => Step::Is(Prospect::Over),
            Some(row) if is_there(&row) => Step::To(Awaited::Configuration),
            Some(_) | None => Step::Is(Prospect::Unprepared),
        })
    }

    async fn row_of(&self, project: &str) -> Result<Option<ProjectRow>, ReadError> {
        let name = project.to_owned();
        self.inner.ledgers.nexus.readers.read(move |connection| nexus::project(connection, &name)).await
    }

    /// Whether one that is there lacks nothing for its turns.
    fn is_answering(&self, row: &ProjectRow) -> bool {
        let needs_none = || Coordinate::parse(&row.coordinate).is_ok_and(|project| self.agent_of(&project).is_none());
        row.status == "ready" || needs_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wait(event_seq: i64, at: i64) -> Wait {
        Wait { event_seq, project: "p".to_owned(), awaited: Awaited::Configuration, at }
    }

    fn seqs(waits: &[Wait]) -> Vec<i64> {
        waits.iter().map(|wait| wait.event_seq).collect()
    }

    #[test]
    fn what_waited_for_too_long_stays_failed_unless_the_clock_is_in_doubt() {
        let all = || vec![wait(1, 0), wait(2, 50), wait(3, 10)];
        let Sorted { taken, left } = sorted(all(), |at| at <= WAIT_MS_MAX + 10);
        assert_eq!((seqs(&taken), seqs(&left)), (vec![2], vec![1, 3]));
        let Sorted { taken, left } = sorted(all(), |_| false);
        assert_eq!((seqs(&taken), left.len()), (vec![1, 2, 3], 0));
    }

    #[test]
    fn of_too_many_the_newest_are_taken() {
        let max = TAKEN_MAX as i64;
        let all: Vec<Wait> = (1..=max + 3).map(|seq| wait(seq, if seq == 5 { 0 } else { 1 })).collect();
        let Sorted { taken, left } = sorted(all, |at| at == WAIT_MS_MAX);
        assert_eq!((taken.len(), seqs(&left)), (TAKEN_MAX, vec![1, 2, 5]));
        assert!(taken.is_sorted_by_key(|wait| wait.event_seq));
    }
}
