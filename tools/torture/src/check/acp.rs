//! What an agent that stays was told and answered. It isn't told of its run, so its notes are known by the message: it is told
//! one as often as the ledger has runs of it at most, and what has completed it had answered the last time, in these words and
//! no others. What doesn't come to its end is told to stop before anything else is said in its conversation.

use super::{Copy, pairs_of_text, rows, tally};
use crate::acp::{BEGAN, CANCELLED, HANGS, NAME, answer_to};
use crate::agent::CALLED;
use crate::journal;
use crate::world::World;
use anyhow::Result;
use serde_json::Value;
use std::collections::{HashMap, HashSet};

/// Most findings that one look names.
const NAMED_MAX: usize = 5;

pub(super) fn answered(world: &World, copy: &Copy) -> Result<Vec<String>> {
    let mut journal = journal::values(&world.agent_journal())?;
    journal.retain(|line| !line["run_id"].is_string());
    let called = tally(journal.iter().filter(|line| line["what"] == CALLED).map(|line| content_of(line).to_owned()));
    let answered = answered_the_last_time(&journal);
    let sql = "SELECT seq, content FROM events WHERE direction = 'inbound'";
    let contents: HashMap<i64, String> = rows(&copy.events, sql, |row| Ok((row.get(0)?, row.get(1)?)))?.into_iter().collect();
    let runs: Vec<i64> = rows(&copy.nexus, &format!("SELECT event_seq FROM runs WHERE agent = '{NAME}'"), |row| row.get(0))?;
    let runs = tally(runs.iter().filter_map(|seq| contents.get(seq).cloned()));
    let sql = "SELECT content, account_id || '/' || peer_id FROM events WHERE direction = 'inbound'";
    let mut found = told_amid_another(&journal, &pairs_of_text(&copy.events, sql)?.into_iter().collect());
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
        if !answered.contains(content.as_str()) {
            found.push(format!("`{content}` has completed, and the agent that stays did not come to its end"));
        }
        if said != answer_to(content) {
            found.push(format!("`{content}` was answered with `{said}`, which the agent that stays did not say"));
        }
    }
    found.truncate(NAMED_MAX);
    Ok(found)
}

fn content_of(line: &Value) -> &str {
    line["content"].as_str().unwrap_or_default()
}

/// The messages whose last turn came to its end.
fn answered_the_last_time(journal: &[Value]) -> HashSet<&str> {
    let mut answered = HashSet::new();
    for line in journal {
        match line["what"].as_str() {
            Some("answered") => answered.insert(content_of(line)),
            Some(CALLED) => answered.remove(content_of(line)),
            Some(_) | None => continue,
        };
    }
    answered
}

/// The daemon gives a turn up after its time, and the next of its conversation waits until the agent has ended it. One that
/// is never told to stop would go on beside that. With a process all its turns end.
fn told_amid_another(journal: &[Value], conversations: &HashMap<String, String>) -> Vec<String> {
    let (mut hanging, mut found) = (HashMap::new(), Vec::new());
    for line in journal {
        let content = content_of(line);
        match (line["what"].as_str(), conversations.get(content)) {
            (Some(BEGAN), _) => hanging.clear(),
            (Some(HANGS), Some(conversation)) => {
                hanging.insert(conversation, content);
            }
            (Some(CANCELLED), Some(conversation)) => {
                hanging.remove(conversation);
            }
            (Some(CALLED), Some(conversation)) => {
                let before = hanging.get(conversation);
                found.extend(before.map(|before| format!("`{content}` was told while `{before}` went on, which was not told to stop")));
            }
            (Some(_) | None, _) => {}
        }
    }
    found
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
             INSERT INTO deliveries VALUES (1, 1, 'key-1', 'sent', 'filled', 'a', 'p', '{answer}', 1, 'run-1', 0, 0); {sql}"
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
    fn a_turn_that_hangs_is_told_to_stop_before_the_next_one() {
        let noted = |notes: &[(&str, &str)]| {
            let line = |(what, content): &(&str, &str)| json!({ "what": what, "content": content, "at": 1 });
            let journal: Vec<Value> = notes.iter().map(line).collect();
            let of = |content: &str, conversation: &str| (content.to_owned(), conversation.to_owned());
            told_amid_another(&journal, &HashMap::from([of("m1", "a/p"), of("m2", "a/p"), of("m3", "a/q")])).join("; ")
        };
        let begun = [(BEGAN, ""), (CALLED, "m1"), (HANGS, "m1")];
        let then = |notes: &[(&str, &str)]| noted(&[begun.as_slice(), notes].concat());
        assert_eq!(then(&[(CANCELLED, "m1"), (CALLED, "m2")]), "");
        assert_eq!(then(&[(CALLED, "m3"), (CANCELLED, "m1"), (CALLED, "m2")]), "", "in another conversation");
        assert_eq!(then(&[(BEGAN, ""), (CALLED, "m2")]), "", "its process has ended");
        assert_eq!(then(&[(CALLED, "m2")]), "`m2` was told while `m1` went on, which was not told to stop");
    }

    #[test]
    fn an_earlier_turn_of_a_message_answers_no_later_one() {
        let again = "INSERT INTO runs VALUES ('run-0', 1, 0, 'acp', 'interrupted')";
        assert_eq!(found(&[CALLED, CALLED, "answered"], again), "");
        tells(&found(&[CALLED, "answered", CALLED], again), "has completed, and the agent that stays did not come to its end");
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
