//! What an agent that stays was told and answered. It isn't told of its run, so its notes are known by the message: it is told
//! one as often as the ledger has runs of it at most, and what has completed it had answered, in these words and no others.

use super::{Copy, rows, tally};
use crate::acp::{NAME, answer_to};
use crate::agent::CALLED;
use crate::journal;
use crate::world::World;
use anyhow::Result;
use std::collections::HashMap;

/// Most findings that one look names.
const NAMED_MAX: usize = 5;

pub(super) fn answered(world: &World, copy: &Copy) -> Result<Vec<String>> {
    let journal = journal::values(&world.agent_journal())?;
    let of = |what: &str| {
        let lines = journal.iter().filter(|one| one["what"] == what && !one["run_id"].is_string());
        tally(lines.map(|one| one["content"].as_str().unwrap_or_default().to_owned()))
    };
    let (called, answered) = (of(CALLED), of("answered"));
    let sql = "SELECT seq, content FROM events WHERE direction = 'inbound'";
    let contents: HashMap<i64, String> = rows(&copy.events, sql, |row| Ok((row.get(0)?, row.get(1)?)))?.into_iter().collect();
    let runs: Vec<i64> = rows(&copy.nexus, &format!("SELECT event_seq FROM runs WHERE agent = '{NAME}'"), |row| row.get(0))?;
    let runs = tally(runs.iter().filter_map(|seq| contents.get(seq).cloned()));
    let mut found = Vec::new();
    for (content, times) in &called {
        let most = runs.get(content).copied().unwrap_or(0);
        if *times > most {
            found.push(format!("an agent that stays was told `{content}` {times} times, and the ledger has {most} runs of it"));
        }
    }
    let sql = format!(
        "SELECT r.event_seq, coalesce(d.content, '') FROM runs r
         JOIN nexus_requests q ON q.event_seq = r.event_seq AND q.attempts = r.attempt
         LEFT JOIN deliveries d ON d.run_id = r.run_id
         WHERE q.status = 'completed' AND r.status = 'finished' AND r.agent = '{NAME}'"
    );
    let completed: Vec<(i64, String)> = rows(&copy.nexus, &sql, |row| Ok((row.get(0)?, row.get(1)?)))?;
    for (seq, said) in completed {
        let Some(content) = contents.get(&seq) else { continue }; // which is looked at by itself
        if !answered.contains_key(content) {
            found.push(format!("`{content}` has completed, and the agent that stays did not come to its end"));
        }
        if said != answer_to(content) {
            found.push(format!("`{content}` was answered with `{said}`, which the agent that stays did not say"));
        }
    }
    found.truncate(NAMED_MAX);
    Ok(found)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::made::{Made, tells};
    use super::*;
    use crate::world::Kind;
    use serde_json::json;

    /// A message, these notes of its agent, and what is in the ledger besides a finished run whose answer has arrived.
    fn made(notes: &[&str], sql: &str) -> Made {
        let made = Made::new(Kind::Filled);
        made.written(1);
        made.accepted(1, 1);
        for what in notes {
            let line = json!({ "what": what, "content": made.content(1), "at": 1 });
            journal::append(&made.world.agent_journal(), &line.to_string()).unwrap();
        }
        let answer = answer_to(&made.content(1));
        let send = json!({ "key": "key-1", "channel": "filled", "account": "a", "to": "p", "text": answer, "at": 1 });
        made.begun(1, "key-1");
        journal::append(&made.world.sends(), &send.to_string()).unwrap();
        let whole = format!(
            "INSERT INTO runs VALUES ('run-1', 1, 1, '{NAME}', 'finished');
             INSERT INTO deliveries VALUES (1, 1, 'key-1', 'sent', 'filled', 'a', 'p', '{answer}', 1, 'run-1'); {sql}"
        );
        made.nexus.execute_batch(&whole).unwrap();
        made
    }

    fn found(notes: &[&str], sql: &str) -> String {
        let made = made(notes, sql);
        answered(&made.world, &made.copy()).unwrap().join("; ")
    }

    #[test]
    fn a_message_is_told_once_for_each_run() {
        made(&[CALLED, "answered"], "").holds();
        let twice = [CALLED, CALLED, "answered"];
        tells(&found(&twice, ""), "was told `filled a 1` 2 times, and the ledger has 1 runs of it");
        assert_eq!(found(&twice, "INSERT INTO runs VALUES ('run-0', 1, 0, 'acp', 'interrupted')"), "");
        tells(&found(&twice, "INSERT INTO runs VALUES ('run-0', 1, 0, 'worker', 'interrupted')"), "2 times");
    }

    #[test]
    fn what_completed_was_answered_in_these_words() {
        tells(&found(&[CALLED], ""), "`filled a 1` has completed, and the agent that stays did not come to its end");
        let played_back = "UPDATE deliveries SET content = 'what was said before; re: filled a 1'";
        tells(&found(&[CALLED, "answered"], played_back), "was answered with `what was said before; re: filled a 1`");
        tells(&found(&[CALLED, "answered"], "DELETE FROM deliveries"), "was answered with ``");
        assert_eq!(found(&[CALLED], "UPDATE nexus_requests SET status = 'failed'"), "");
    }
}
