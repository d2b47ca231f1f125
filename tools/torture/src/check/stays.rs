//! The notes of the agent that stays, in their order: when a process of it began and was about to end, which messages it was
//! told, and which of their turns such an end may have spoilt. It isn't told of its run, so of a message only what it was told
//! last counts: what it noted of an earlier attempt says nothing about a later one.

use crate::acp::{self, BEGAN, DIES};
use crate::agent::{CALLED, FAILS};
use serde_json::Value;
use std::collections::HashMap;

/// From the start of its run, so for less than this after the agent was told of it, a turn may be spoilt.
const TURN_NS: u64 = acp::TURN_MS * 1_000_000;

#[derive(Debug, Default)]
pub(super) struct Stays {
    /// In nanoseconds of `CLOCK_MONOTONIC`, as all times here.
    pub(super) began: Vec<u64>,
    pub(super) died: Vec<u64>,
    told: HashMap<String, Told>,
}

/// The last time that the agent was told a message, and how often it was by then.
#[derive(Debug, Default)]
struct Told {
    times: u64,
    at: u64,
    fails: bool,
}

/// From the note that a process is about to end until another has begun.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Outage {
    from: u64,
    to: u64,
}

/// How an end of the process may have spoilt a turn.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Spoilt {
    /// It was told to a process that then ended.
    Told,
    /// There was no process that it could have been told to.
    Untold,
}

impl Stays {
    /// From the agents' journal, where those that are run for each message note their run.
    pub(super) fn of(journal: &[Value]) -> Self {
        let mut stays = Self::default();
        for line in journal.iter().filter(|line| !line["run_id"].is_string()) {
            let (at, content) = (line["at"].as_u64().unwrap_or_default(), line["content"].as_str().unwrap_or_default());
            match line["what"].as_str() {
                Some(BEGAN) => stays.began.push(at),
                Some(DIES) => stays.died.push(at),
                Some(CALLED) => {
                    let told = stays.told.entry(content.to_owned()).or_default();
                    *told = Told { times: told.times + 1, at, fails: false };
                }
                Some(FAILS) => stays.told.entry(content.to_owned()).or_default().fails = true,
                Some(_) | None => {}
            }
        }
        stays
    }

    /// The last turn that it was told of this message was to end without an answer.
    pub(super) fn fails(&self, content: &str) -> bool {
        self.told.get(content).is_some_and(|told| told.fails)
    }

    /// The ends behind the first `known`. One that no start has followed lasts until `now`.
    pub(super) fn outages(&self, known: usize, now: u64) -> Vec<Outage> {
        let again = |from: u64| self.began.iter().copied().find(|began| *began > from).unwrap_or(now);
        self.died.iter().skip(known).map(|from| Outage { from: *from, to: again(*from) }).collect()
    }

    /// Whether the last of so many attempts to have a message answered, which was `written` then, overlaps one of these.
    pub(super) fn spoilt(&self, outages: &[Outage], content: &str, written: u64, attempts: u64) -> Option<Spoilt> {
        let last = self.told.get(content).filter(|told| told.times > 0 && told.times >= attempts);
        let Some(last) = last else { return outages.iter().any(|outage| written <= outage.to).then_some(Spoilt::Untold) };
        let overlaps = |outage: &Outage| last.at <= outage.to && last.at.saturating_add(TURN_NS) >= outage.from;
        outages.iter().any(overlaps).then_some(Spoilt::Told)
    }
}

impl Outage {
    /// How many turns of one conversation may have waited in vain for a process: each for its whole time, and one for the start
    /// that failed.
    pub(super) fn untold_max(&self) -> usize {
        1 + usize::try_from(self.to.saturating_sub(self.from) / TURN_NS).unwrap_or(usize::MAX - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// Notes at these times, in seconds.
    fn noted(notes: &[(&str, &str, u64)]) -> Stays {
        let line = |(what, content, second): &(&str, &str, u64)| json!({ "what": what, "content": content, "at": second * 1_000_000_000 });
        Stays::of(&notes.iter().map(line).collect::<Vec<_>>())
    }

    #[test]
    fn a_turn_is_spoilt_by_an_end_that_it_overlaps() {
        let second = |second: u64| second * 1_000_000_000;
        let told = |at: u64| noted(&[(BEGAN, "", 1), (CALLED, "m", at), (DIES, "", 20), (BEGAN, "", 30)]);
        let spoilt =
            |stays: &Stays, written: u64, attempts: u64| stays.spoilt(&stays.outages(0, second(99)), "m", second(written), attempts);
        assert_eq!([18, 19, 25, 30, 31].map(|at| spoilt(&told(at), 2, 1).is_some()), [false, true, true, true, false]);
        assert_eq!(spoilt(&told(25), 2, 1), Some(Spoilt::Told));
        assert_eq!(spoilt(&told(2), 2, 2), Some(Spoilt::Untold), "its second attempt was not told");
        let untold = noted(&[(DIES, "", 20), (BEGAN, "", 30)]);
        assert_eq!([19, 30, 31].map(|written| spoilt(&untold, written, 1).is_some()), [true, true, false]);
        assert!(untold.outages(1, second(99)).is_empty(), "that end was there before");
    }

    #[test]
    fn as_many_wait_in_vain_as_have_the_time() {
        let outages = noted(&[(BEGAN, "", 1), (DIES, "", 20), (BEGAN, "", 23), (DIES, "", 24)]).outages(0, 24_000_000_000);
        assert_eq!(outages.iter().map(Outage::untold_max).collect::<Vec<_>>(), [3, 1]);
    }

    #[test]
    fn what_was_noted_of_an_attempt_says_nothing_about_the_next() {
        assert!(noted(&[(CALLED, "m", 1), (FAILS, "m", 1)]).fails("m"));
        assert!(!noted(&[(CALLED, "m", 1), (FAILS, "m", 1), (CALLED, "m", 2)]).fails("m"));
        assert!(!noted(&[(CALLED, "m", 1)]).fails("m"));
    }
}
