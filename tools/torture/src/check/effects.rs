//! Promise 2: an agent that may have acted is not run again but where the configuration says so; a
//! reply arrives at least once, and again only where it was uncertain and is to be retried.

use super::{Copy, rows, tally};
use crate::journal;
use crate::report::Counts;
use crate::world::{Kind, OnInterrupted, World};
use anyhow::Result;
use serde_json::Value;
use std::collections::{BTreeMap, HashMap, HashSet};

/// Runs of one request after which it counts as poison.
const ATTEMPTS_MAX: u64 = 3;

fn text(value: &Value, key: &str) -> String {
    value[key].as_str().unwrap_or_default().to_owned()
}

/// How often agents were called and acted, by what they were told.
pub(super) fn invocations(world: &World, copy: &Copy, on_interrupted: OnInterrupted, counts: &mut Counts) -> Result<Vec<String>> {
    let journal = journal::values(&world.agent_journal())?;
    let of = |what: &str| tally(journal.iter().filter(|one| one["what"] == what).map(|one| text(one, "content")));
    let (called, paid) = (of("called"), of("paid"));
    counts.invocations += called.values().sum::<u64>();
    counts.effects += paid.values().sum::<u64>();
    let most = if on_interrupted == OnInterrupted::Rerun { ATTEMPTS_MAX } else { 1 };
    let mut found = Vec::new();
    for (content, times) in &called {
        if *times > most {
            found.push(format!("with on_interrupted: {} the agent was called {times} times for `{content}`", on_interrupted.name()));
        }
    }
    found.extend(
        paid.iter().filter(|(_, times)| **times > most).map(|(content, times)| format!("`{content}` had its effect {times} times")),
    );
    let runs: HashSet<String> = rows(&copy.nexus, "SELECT run_id FROM runs", |row| row.get(0))?.into_iter().collect();
    let by_run = tally(journal.iter().filter(|one| one["what"] == "called").map(|one| text(one, "run_id")));
    for (run, times) in by_run {
        if times > 1 || !runs.contains(&run) {
            found.push(format!("run {run} was started {times} times, and is in the ledger: {}", runs.contains(&run)));
        }
    }
    found.extend(completed_were_answered(copy, &journal)?);
    Ok(found)
}

/// A request that completed with the recording agent was answered by it, to the end.
fn completed_were_answered(copy: &Copy, journal: &[Value]) -> Result<Vec<String>> {
    let answered: HashSet<String> = journal.iter().filter(|one| one["what"] == "answered").map(|one| text(one, "run_id")).collect();
    let sql = "SELECT r.run_id FROM runs r JOIN nexus_requests q ON q.event_seq = r.event_seq AND q.attempts = r.attempt
               WHERE q.status = 'completed' AND r.agent = 'worker' AND r.status = 'finished'";
    let finished: Vec<String> = rows(&copy.nexus, sql, |row| row.get(0))?;
    // The note is written after the answer: an agent may be killed in between, once its pipe is read.
    let silent = finished.iter().filter(|run| !answered.contains(*run)).count();
    let called: HashSet<String> = journal.iter().map(|one| text(one, "run_id")).collect();
    let never = finished.iter().filter(|run| !called.contains(*run)).count();
    let mut found = Vec::new();
    if never > 0 {
        found.push(format!("{never} runs are finished that no agent ever saw"));
    }
    if silent > never + 1 {
        found.push(format!("{silent} runs are finished whose agents did not come to their end"));
    }
    Ok(found)
}

/// Each delivery that is `sent` arrived; again only if it was uncertain and is to be retried.
pub(super) fn replies(world: &World, copy: &Copy, counts: &mut Counts) -> Result<Vec<String>> {
    let arrived: BTreeMap<String, u64> = tally(journal::values(&world.sends())?.iter().map(|one| text(one, "key")));
    let deliveries: Vec<(String, String, String)> =
        rows(&copy.nexus, "SELECT idempotency_key, status, channel FROM deliveries", |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
    let mut found = Vec::new();
    let mut known: HashMap<&str, &str> = HashMap::new();
    for (key, status, channel) in &deliveries {
        known.insert(key, channel);
        let times = arrived.get(key).copied().unwrap_or(0);
        counts.uncertain += u64::from(status == "uncertain");
        if status == "sent" && times == 0 {
            found.push(format!("{key} is `sent` and never arrived"));
        }
        if status == "failed" && times > 0 && !Kind::parse(channel).is_some_and(Kind::retries_uncertain) {
            found.push(format!("{key} is `failed` and arrived {times} times"));
        }
        let again = Kind::parse(channel).is_some_and(Kind::retries_uncertain);
        if times > 1 && !again {
            found.push(format!("{key} arrived {times} times under on_uncertain: hold"));
        }
        counts.twice_as_allowed += times.saturating_sub(1);
    }
    counts.replies += arrived.values().sum::<u64>();
    found.extend(arrived.keys().filter(|key| !known.contains_key(key.as_str())).map(|key| format!("{key} arrived and is no delivery")));
    Ok(found)
}
