//! The order that was promised: within a conversation agents are called in the order of acceptance, and
//! what is said to one target arrives in the order in which it was decided.

use super::{Copy, pairs_of_text, rows};
use crate::journal;
use crate::world::{Kind, World};
use anyhow::{Context, Result};
use rusqlite::Connection;
use serde_json::Value;
use std::collections::{HashMap, HashSet};

/// An account of an adapter with `ack` alone, which goes on where it was, is accepted in the order of its platform.
pub(super) fn acceptance(events: &Connection) -> Result<Vec<String>> {
    let channel = Kind::Acked.name();
    let sql = format!("SELECT account_id, event_id FROM events WHERE direction = 'inbound' AND channel = '{channel}' ORDER BY seq");
    let number = |(account, id): (String, String)| Some((account, id.rsplit_once('-')?.1.parse::<i64>().ok()?));
    let numbers = pairs_of_text(events, &sql)?.into_iter().filter_map(number);
    Ok(out_of_order(numbers, "account"))
}

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

/// Replies arrived in the order of the deliveries, target by target. A stream that was given up may still show its end
/// while what follows is sent: nobody knows then whether it is there.
pub(super) fn targets(world: &World, copy: &Copy) -> Result<Vec<String>> {
    let sql = "SELECT idempotency_key, seq, status FROM deliveries";
    let all: Vec<(String, i64, String)> = rows(&copy.nexus, sql, |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
    let given_up: HashSet<String> = all.iter().filter(|(_, _, status)| status == "uncertain").map(|(key, _, _)| key.clone()).collect();
    let seqs: HashMap<String, i64> = all.into_iter().map(|(key, seq, _)| (key, seq)).collect();
    let sends = journal::values(&world.sends())?;
    let of = |send: &Value| -> Result<Option<(String, i64)>> {
        let key = send["key"].as_str().context("a send has no key")?;
        if send["streamed"] == true && given_up.contains(key) {
            return Ok(None);
        }
        Ok(seqs.get(key).map(|seq| (format!("{}/{}/{}", send["channel"], send["account"], send["to"]), *seq)))
    };
    let sends: Vec<(String, i64)> = sends.iter().filter_map(|send| of(send).transpose()).collect::<Result<_>>()?;
    Ok(out_of_order(sends.into_iter(), "target"))
}

/// Findings for numbers that go back within their lane.
pub(super) fn out_of_order(all: impl Iterator<Item = (String, i64)>, lane: &str) -> Vec<String> {
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
    #![allow(clippy::unwrap_used)]
    use super::super::made::Made;
    use super::*;

    #[test]
    fn agents_are_called_in_the_order_of_acceptance() {
        let called = |numbers: [i64; 2]| {
            let made = Made::new(Kind::Acked);
            for number in [1, 2] {
                made.written(number);
                made.accepted(number, number);
            }
            for number in numbers {
                made.ran(number, number, &format!("run-{number}"));
                made.delivered(number, number, &format!("key-{number}"));
            }
            made
        };
        called([1, 2]).holds();
        let wrong = called([2, 1]);
        wrong.breaks("in conversation acked/a/p number 1 came after 2");
        wrong.breaks("in target \"acked\"/\"a\"/\"p\" number 1 came after 2");
        wrong.events.execute_batch("UPDATE events SET peer_id = 'q' WHERE seq = 2").unwrap();
        assert!(conversations(&wrong.world, &wrong.copy()).unwrap().is_empty(), "they are two conversations");
    }

    #[test]
    fn a_platform_that_goes_on_where_it_was_is_accepted_in_its_order() {
        let accepted = |kind: Kind| {
            let made = Made::new(kind);
            (1..=2).for_each(|number| made.written(number));
            made.accepted(1, 2);
            made.accepted(2, 1);
            acceptance(&made.copy().events).unwrap()
        };
        assert_eq!(accepted(Kind::Acked), ["in account a number 1 came after 2"]);
        assert!(accepted(Kind::Filled).is_empty(), "what was missed is fetched behind what is new");
    }

    #[test]
    fn numbers_may_repeat_but_not_go_back() {
        let all = |numbers: &[(&str, i64)]| out_of_order(numbers.iter().map(|(name, seq)| ((*name).to_owned(), *seq)), "lane").len();
        assert_eq!(all(&[("a", 1), ("b", 5), ("a", 1), ("a", 2), ("b", 6)]), 0);
        assert_eq!(all(&[("a", 2), ("a", 1)]), 1);
    }
}
