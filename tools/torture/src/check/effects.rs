//! Promise 2: an agent that may have acted is not run again but where the configuration says so; a
//! reply arrives at least once, and again only where it was uncertain and is to be retried.

use super::{Copy, rows, steering, stops, tally, text};
use crate::journal;
use crate::report::Counts;
use crate::world::{Kind, OnInterrupted, REPLY_TTL_MS, SEND_RETRIES, World};
use anyhow::Result;
use serde_json::Value;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;

/// Runs of one request after which it counts as poison.
const ATTEMPTS_MAX: u64 = 3;
/// Most runs that one finding names.
const NAMED_MAX: usize = 5;

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
    // One that stays isn't told of its run, and is looked at by itself.
    let of_a_run = journal.iter().filter(|one| one["what"] == "called" && one["run_id"].is_string());
    let by_run = tally(of_a_run.map(|one| text(one, "run_id")));
    for (run, times) in by_run {
        if times > 1 || !runs.contains(&run) {
            found.push(format!("run {run} was started {times} times, and is in the ledger: {}", runs.contains(&run)));
        }
    }
    found.extend(completed_were_answered(copy, &journal, &(&stops::runs(world, copy)? | &steering::superseded(world, copy)?))?);
    Ok(found)
}

/// A request that completed with the recording agent was answered by it, to the end, and an answer goes out; but for those whose
/// turn a person, or a newer message, stopped.
fn completed_were_answered(copy: &Copy, journal: &[Value], stopped: &HashSet<String>) -> Result<Vec<String>> {
    let noted = |what: &str| -> HashSet<String> {
        let runs = journal.iter().filter(|one| one["what"] == what).map(|one| text(one, "run_id"));
        runs.collect()
    };
    // Both are noted before the agent says that it has come to its end.
    let (answered, silent) = (noted("answered"), noted("silent"));
    let sql = "SELECT r.run_id FROM runs r JOIN nexus_requests q ON q.event_seq = r.event_seq AND q.attempts = r.attempt
               WHERE q.status = 'completed' AND r.agent IN ('worker', 'speaker', 'steered') AND r.status = 'finished'";
    let finished: Vec<String> = rows(&copy.nexus, sql, |row| row.get(0))?;
    let unanswered: Vec<&String> =
        finished.iter().filter(|run| ![&answered, &silent, stopped].iter().any(|known| known.contains(*run))).take(NAMED_MAX).collect();
    let sql = "SELECT r.run_id FROM runs r JOIN nexus_requests q ON q.event_seq = r.event_seq AND q.attempts = r.attempt
               WHERE q.status = 'completed' AND q.channel != 'timer' AND q.event_id NOT LIKE '%#replay:%' AND r.status = 'finished'
                 AND r.agent != 'project'
                 AND NOT EXISTS (SELECT 1 FROM deliveries d WHERE d.event_seq = q.event_seq AND d.run_id IS NOT NULL)";
    let mut unsent: Vec<String> = rows(&copy.nexus, sql, |row| row.get(0))?;
    unsent.retain(|run| !silent.contains(run) && !stopped.contains(run));
    unsent.truncate(NAMED_MAX);
    let mut found = Vec::new();
    if !unanswered.is_empty() {
        found.push(format!("runs are finished whose agents did not come to their end: {unanswered:?}"));
    }
    if !unsent.is_empty() {
        found.push(format!("runs are finished whose answers are no delivery: {unsent:?}"));
    }
    Ok(found)
}

/// What a ledger says of one delivery.
struct Row {
    key: String,
    status: String,
    channel: String,
    attempts: u64,
    target: String,
    content: String,
    /// It got its state when it had been there for longer than a reply may wait.
    is_over: bool,
}

impl Row {
    fn all(copy: &Copy) -> Result<Vec<Self>> {
        // What is said on Nostr no adapter sends: that is looked at by itself.
        let sql = "SELECT idempotency_key, status, channel, attempts, account_id || ' ' || target, content,
                          updated_at - created_at FROM deliveries WHERE channel != 'nostr'";
        rows(&copy.nexus, sql, |row| {
            let (key, status, channel) = (row.get(0)?, row.get(1)?, row.get(2)?);
            let is_over = row.get::<_, i64>(6)? >= REPLY_TTL_MS;
            Ok(Self { key, status, channel, attempts: row.get(3)?, target: row.get(4)?, content: row.get(5)?, is_over })
        })
    }

    /// What is wrong with it, given how often it arrived, was begun to be sent, and was surely not sent.
    fn wrong(&self, arrived: u64, begun: u64, refused: u64) -> Vec<String> {
        let Self { key, status, attempts, .. } = self;
        let holds = !Kind::parse(&self.channel).is_some_and(Kind::retries_uncertain);
        let mut found = Vec::new();
        if status == "sent" && arrived == 0 {
            found.push(format!("{key} is `sent` and never arrived"));
        }
        if begun > *attempts {
            found.push(format!("{key} was begun to be sent {begun} times, and has {attempts} attempts in the ledger"));
        }
        if arrived > *attempts {
            found.push(format!("{key} arrived {arrived} times in {attempts} attempts"));
        }
        if holds && matches!(status.as_str(), "failed" | "expired") && arrived > 0 {
            found.push(format!("{key} is `{status}` and arrived {arrived} times"));
        }
        // After a jump of the clock it may be too old to be sent again.
        if !holds && status == "uncertain" && *attempts <= SEND_RETRIES && !self.is_over {
            found.push(format!("{key} is `uncertain` after {attempts} attempts, and may be sent again"));
        }
        if holds && arrived > 1 {
            found.push(format!("{key} arrived {arrived} times under on_uncertain: hold"));
        }
        // Nobody retries by hand in this world, so only a send that surely failed may be followed by another.
        if holds && begun > refused + 1 {
            found.push(format!("{key} was begun to be sent {begun} times under on_uncertain: hold, and surely failed {refused} times"));
        }
        found
    }
}

/// Each delivery that is `sent` arrived; again only if it was uncertain and is to be retried, and then at most
/// once for each attempt. It arrived as it was decided.
pub(super) fn replies(world: &World, copy: &Copy, counts: &mut Counts) -> Result<Vec<String>> {
    let sends = journal::values(&world.sends())?;
    let by_key = |path: &Path| -> Result<BTreeMap<String, u64>> { Ok(tally(journal::values(path)?.iter().map(|one| text(one, "key")))) };
    let (arrived, begun, refused) = (by_key(&world.sends())?, by_key(&world.send_calls())?, by_key(&world.refusals())?);
    let of = |tally: &BTreeMap<String, u64>, key: &str| tally.get(key).copied().unwrap_or(0);
    let rows = Row::all(copy)?;
    let mut found = Vec::new();
    for row in &rows {
        let times = of(&arrived, &row.key);
        counts.uncertain += u64::from(row.status == "uncertain");
        counts.twice_as_allowed += times.saturating_sub(1);
        found.extend(row.wrong(times, of(&begun, &row.key), of(&refused, &row.key)));
    }
    counts.replies += arrived.values().sum::<u64>();
    let known: HashMap<&str, &Row> = rows.iter().map(|row| (row.key.as_str(), row)).collect();
    // What was refused as a stream may be sent as several messages: the row has the first one's key from then on.
    let is_split = |key: &str| known.contains_key(format!("{key}/1").as_str()) && of(&arrived, key) == 0 && of(&refused, key) > 0;
    let unknown = begun.keys().filter(|key| !known.contains_key(key.as_str()) && !is_split(key));
    found.extend(unknown.map(|key| format!("{key} was sent and is no delivery")));
    let differs = |send: &Value| {
        let (key, target) = (text(send, "key"), format!("{} {}", text(send, "account"), text(send, "to")));
        let row = known.get(key.as_str())?;
        // Of a stream that a defect broke off, or whose end could not be written, one of the two sides knows no text.
        let is_unknown = send["partial"] == true && (row.content.is_empty() || text(send, "text").is_empty());
        let is_same = (is_unknown || row.content == text(send, "text")) && row.target == target && row.channel == text(send, "channel");
        (!is_same).then(|| format!("{key} arrived at {target} as `{}`, which is not what was decided", text(send, "text")))
    };
    found.extend(sends.iter().filter_map(differs));
    Ok(found)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::made::Made;
    use super::*;

    /// `acked` holds what is uncertain, `filled` retries it.
    fn changed(kind: Kind, sql: &str) -> Made {
        let made = Made::whole(kind, 1);
        made.nexus.execute_batch(sql).unwrap();
        made
    }

    #[test]
    fn an_agent_is_called_as_often_as_it_may_be() {
        let called = |runs: &[&str]| {
            let made = Made::whole(Kind::Acked, 1);
            for run in runs {
                made.noted("called", 1, run);
                made.nexus.execute("INSERT INTO runs VALUES (?1, 1, 1, 'worker', 'interrupted')", [run]).unwrap();
            }
            made
        };
        for on_interrupted in [OnInterrupted::Auto, OnInterrupted::Fail] {
            assert!(called(&[]).found(on_interrupted).is_empty());
            assert!(called(&["again"]).found(on_interrupted).concat().contains("the agent was called 2 times for `acked a 1`"));
        }
        assert!(called(&["again", "and again"]).found(OnInterrupted::Rerun).is_empty());
        let often = called(&["again", "and again", "and again and again"]);
        assert!(often.found(OnInterrupted::Rerun).concat().contains("with on_interrupted: rerun the agent was called 4 times"));
    }

    #[test]
    fn an_effect_comes_once() {
        let made = Made::whole(Kind::Acked, 1);
        made.noted("paid", 1, "run-1");
        made.holds();
        made.noted("paid", 1, "run-1");
        made.breaks("`acked a 1` had its effect 2 times");
    }

    #[test]
    fn a_run_is_known_before_its_agent_and_started_once() {
        changed(Kind::Acked, "UPDATE runs SET run_id = 'another'").breaks("run run-1 was started 1 times, and is in the ledger: false");
        let made = Made::whole(Kind::Acked, 1);
        made.noted("called", 1, "run-1");
        made.breaks("run run-1 was started 2 times");
    }

    #[test]
    fn who_finished_had_answered_and_the_answer_goes_out() {
        let made = Made::new(Kind::Acked);
        made.written(1);
        made.accepted(1, 1);
        made.noted("called", 1, "run-1");
        made.nexus.execute_batch("INSERT INTO runs VALUES ('run-1', 1, 1, 'worker', 'finished')").unwrap();
        made.breaks("whose agents did not come to their end: [\"run-1\"]");
        made.breaks("whose answers are no delivery: [\"run-1\"]");
        made.noted("silent", 1, "run-1");
        made.holds();
    }

    #[test]
    fn what_is_sent_arrived_as_it_was_decided() {
        let made = changed(
            Kind::Acked,
            "INSERT INTO deliveries SELECT 2, 1, 'key-2', status, channel, account_id, target, content, 1, run_id, 0, 0 FROM deliveries",
        );
        made.breaks("key-2 is `sent` and never arrived");
        changed(Kind::Acked, "UPDATE deliveries SET content = 'something else'").breaks("which is not what was decided");
        changed(Kind::Acked, "UPDATE deliveries SET target = 'somebody else'").breaks("key-1 arrived at a p as `acked a 1`");
        let made = Made::whole(Kind::Acked, 1);
        made.begun(1, "key-9");
        made.breaks("key-9 was sent and is no delivery");
    }

    #[test]
    fn a_held_reply_arrives_once() {
        let made = changed(Kind::Acked, "UPDATE deliveries SET attempts = 2");
        made.holds();
        made.begun(1, "key-1");
        made.breaks("key-1 was begun to be sent 2 times under on_uncertain: hold, and surely failed 0 times");
        made.refused("key-1");
        made.holds();
        made.arrived(1, "key-1");
        made.breaks("key-1 arrived 2 times under on_uncertain: hold");
        changed(Kind::Acked, "UPDATE deliveries SET status = 'failed'").breaks("key-1 is `failed` and arrived 1 times");
        changed(Kind::Acked, "UPDATE deliveries SET status = 'expired'").breaks("key-1 is `expired` and arrived 1 times");
        changed(Kind::Acked, "UPDATE deliveries SET status = 'uncertain'").holds();
    }

    #[test]
    fn what_was_refused_as_a_stream_may_be_sent_as_several() {
        let made = Made::whole(Kind::Live, 1);
        made.begun(1, "key-2");
        made.breaks("key-2 was sent and is no delivery");
        made.refused("key-2");
        let sql = "INSERT INTO deliveries SELECT 2, 1, 'key-2/1', 'failed', channel, account_id, target, content, 1, run_id, 0, 0 FROM deliveries";
        made.nexus.execute_batch(sql).unwrap();
        made.holds();
        made.arrived(1, "key-2");
        made.breaks("key-2 was sent and is no delivery");
    }

    #[test]
    fn a_retried_reply_arrives_once_for_each_attempt_at_most() {
        let made = changed(Kind::Filled, "UPDATE deliveries SET attempts = 2");
        made.begun(1, "key-1");
        made.arrived(1, "key-1");
        made.holds();
        made.begun(1, "key-1");
        made.breaks("key-1 was begun to be sent 3 times, and has 2 attempts in the ledger");
        made.arrived(1, "key-1");
        made.breaks("key-1 arrived 3 times in 2 attempts");
        changed(Kind::Filled, "UPDATE deliveries SET status = 'failed'").holds();
        changed(Kind::Filled, "UPDATE deliveries SET status = 'uncertain', attempts = 6").breaks("key-1 is `uncertain` after 6 attempts");
        changed(Kind::Filled, "UPDATE deliveries SET status = 'uncertain', attempts = 7").holds();
        let over = |ms: i64| changed(Kind::Filled, &format!("UPDATE deliveries SET status = 'uncertain', updated_at = created_at + {ms}"));
        over(REPLY_TTL_MS).holds();
        over(REPLY_TTL_MS - 1).breaks("key-1 is `uncertain` after 1 attempts");
    }
}
