//! Events that failed because their project waited for somebody: whether it still does, and which of them are run again
//! once it doesn't. It decides; running them is the daemon's.

use super::Projects;
use super::coordinate::Coordinate;
use crate::ledger::ReadError;
use crate::ledger::nexus::{self, Awaited, Wait};

/// Events of one project that are run again for one decision; older ones stay failed.
pub const TAKEN_MAX: usize = 100;
/// Longest that an event waits, in ms; one that waited for longer stays failed.
pub const WAIT_MS_MAX: i64 = 24 * 60 * 60 * 1000;

/// How it stands with what events wait for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Prospect {
    Waits,
    /// Nothing is in the way any more.
    Over,
    /// It will never be: what waited for it stays failed.
    Refused,
}

/// Events that wait, by what becomes of them once it is their turn. Both in their order.
#[derive(Debug, PartialEq, Eq)]
pub struct Sorted {
    pub taken: Vec<Wait>,
    /// They have waited for too long, or are too many.
    pub left: Vec<Wait>,
}

/// Sorts the events that wait for one thing; `is_over` says of a time, in Unix ms, whether it has surely passed.
pub fn sorted(waits: Vec<Wait>, is_over: impl Fn(i64) -> bool) -> Sorted {
    let (mut left, mut taken): (Vec<Wait>, Vec<Wait>) = waits.into_iter().partition(|wait| is_over(wait.at.saturating_add(WAIT_MS_MAX)));
    left.extend(taken.drain(..taken.len().saturating_sub(TAKEN_MAX)));
    left.sort_by_key(|wait| wait.event_seq);
    Sorted { taken, left }
}

impl Projects {
    /// How it stands with what events wait for; by the ledger, so that nobody has to be told of a decision.
    ///
    /// # Errors
    /// When the ledger can't be read.
    pub async fn prospect(&self, project: &str, awaited: Awaited) -> Result<Prospect, ReadError> {
        match awaited {
            Awaited::Approval(id) => self.approval_prospect(id).await,
            Awaited::Configuration => self.configuration_prospect(project).await,
        }
    }

    async fn approval_prospect(&self, id: i64) -> Result<Prospect, ReadError> {
        let asked = self.inner.ledgers.nexus.readers.read(move |connection| nexus::approval(connection, id)).await?;
        // One that is gone is wanted no more, as by a newer definition.
        let Some(asked) = asked else { return Ok(Prospect::Over) };
        if asked.status == "denied" {
            return Ok(Prospect::Refused);
        }
        let is_over = asked.is_approved() || self.inner.ground.preparer.is_host_allowed(&asked);
        Ok(if is_over { Prospect::Over } else { Prospect::Waits })
    }

    /// Whoever prepares a project, or looks at it anew, says in the ledger what it lacks.
    async fn configuration_prospect(&self, project: &str) -> Result<Prospect, ReadError> {
        let name = project.to_owned();
        let row = self.inner.ledgers.nexus.readers.read(move |connection| nexus::project(connection, &name)).await?;
        let is_ready = row.is_some_and(|row| {
            let needs_none = || Coordinate::parse(&row.coordinate).is_ok_and(|project| self.agent_of(&project).is_none());
            // One in quarantine would only fail again.
            row.quarantined.is_none() && (row.status == "ready" || (row.status == "needs_configuration" && needs_none()))
        });
        Ok(if is_ready { Prospect::Over } else { Prospect::Waits })
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
