//! The order that was promised: within a conversation agents are called in the order of acceptance, and
//! what is said to one target arrives in the order in which it was decided.

use super::{Copy, rows};
use crate::journal;
use crate::world::World;
use anyhow::{Context, Result};
use serde_json::Value;
use std::collections::HashMap;

/// Agents were called in the order of the events' seqs, conversation by conversation. A run that is
/// repeated comes before what follows it.
pub(super) fn conversations(world: &World, copy: &Copy) -> Result<Vec<String>> {
    let sql = "SELECT content, seq, channel || '/' || account_id || '/' || peer_id FROM events WHERE direction = 'inbound'";
    let events: HashMap<String, (i64, String)> =
        rows(&copy.events, sql, |row| Ok((row.get(0)?, (row.get(1)?, row.get(2)?))))?.into_iter().collect();
    let calls = journal::values(&world.agent_journal())?;
    let calls = calls.iter().filter(|one| one["what"] == "called").filter_map(|one| events.get(one["content"].as_str()?));
    Ok(out_of_order(calls.map(|(seq, conversation)| (conversation.clone(), *seq)), "conversation"))
}

/// Replies arrived in the order of the deliveries, target by target.
pub(super) fn targets(world: &World, copy: &Copy) -> Result<Vec<String>> {
    let sql = "SELECT idempotency_key, seq FROM deliveries";
    let seqs: HashMap<String, i64> = rows(&copy.nexus, sql, |row| Ok((row.get(0)?, row.get(1)?)))?.into_iter().collect();
    let sends = journal::values(&world.sends())?;
    let of = |send: &Value| -> Result<Option<(String, i64)>> {
        let key = send["key"].as_str().context("a send has no key")?;
        Ok(seqs.get(key).map(|seq| (format!("{}/{}/{}", send["channel"], send["account"], send["to"]), *seq)))
    };
    let sends: Vec<(String, i64)> = sends.iter().filter_map(|send| of(send).transpose()).collect::<Result<_>>()?;
    Ok(out_of_order(sends.into_iter(), "target"))
}

/// Findings for numbers that go back within their lane.
fn out_of_order(all: impl Iterator<Item = (String, i64)>, lane: &str) -> Vec<String> {
    let mut newest: HashMap<String, i64> = HashMap::new();
    let mut found = Vec::new();
    for (name, seq) in all {
        let known = newest.entry(name.clone()).or_insert(seq);
        if seq < *known {
            found.push(format!("in {lane} {name} number {seq} came after {known}"));
        }
        *known = seq.max(*known);
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_may_repeat_but_not_go_back() {
        let all = |numbers: &[(&str, i64)]| out_of_order(numbers.iter().map(|(name, seq)| ((*name).to_owned(), *seq)), "lane").len();
        assert_eq!(all(&[("a", 1), ("b", 5), ("a", 1), ("a", 2), ("b", 6)]), 0);
        assert_eq!(all(&[("a", 2), ("a", 1)]), 1);
    }
}
