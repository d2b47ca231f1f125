//! What is promised about messages that an agent takes while it runs: one shares a run if, and only if, its agent took it in and
//! answered then. It comes behind the run's own message in one conversation with it, ends as the run does, has no reply of its own,
//! and its agent is not asked about it besides.

use super::{Copy, rows, tally, text};
use crate::agent::{ANSWERED, CALLED, FAILS};
use crate::feeder::PEERS;
use crate::journal;
use crate::report::Counts;
use crate::steered::{LISTENS, NAME, TOOK_IN};
use crate::world::{Kind, OnInterrupted, World};
use anyhow::Result;
use serde_json::Value;
use std::collections::{BTreeMap, HashMap, HashSet};

/// Where such an agent answers.
const CHANNEL: Kind = Kind::Plain;
/// Why a request has ended whose turn a newer message ended.
const SUPERSEDED: &str = "aborted: a newer message of its session ended this turn";
/// A message interrupts a run whose process ended before the daemon heard that it listens. Where nothing hits processes but they
/// themselves that is one of each person at most, should the machine stand still.
const UNHEARD_MAX: usize = PEERS as usize;
/// Most findings that one look names.
const NAMED_MAX: usize = 5;

/// A request that joined the run of another.
struct Joined {
    event_seq: i64,
    /// The message that began the run.
    first_seq: i64,
    event_id: String,
    run: String,
    status: String,
    /// How the run ended, if it has, and its own request, if that is the last run of it.
    run_status: String,
    lead: Option<String>,
    /// But for the one notice that a run was interrupted, which answers the newest of what shared it.
    replies: u64,
}

impl Joined {
    fn all(copy: &Copy) -> Result<Vec<Self>> {
        let sql = format!(
            "SELECT q.event_seq, r.event_seq, q.event_id, q.run_id, q.status, r.status,
                    (SELECT l.status FROM nexus_requests l WHERE l.event_seq = r.event_seq AND l.attempts = r.attempt),
                    (SELECT count(*) FROM deliveries d WHERE d.event_seq = q.event_seq AND d.run_id = q.run_id
                       AND d.idempotency_key NOT LIKE '%:interrupted:0')
             FROM nexus_requests q JOIN runs r ON r.run_id = q.run_id WHERE r.event_seq != q.event_seq AND r.agent = '{NAME}'"
        );
        rows(&copy.nexus, &sql, |row| {
            let (event_seq, first_seq, event_id, run, status) = (row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?);
            Ok(Self { event_seq, first_seq, event_id, run, status, run_status: row.get(5)?, lead: row.get(6)?, replies: row.get(7)? })
        })
    }

    /// `calls` is how often its agent was asked about it, beside what it took in while it ran.
    fn wrong(&self, messages: &Messages, was_taken_in: bool, calls: u64, on_interrupted: OnInterrupted) -> Vec<String> {
        let Self { event_seq, first_seq, event_id: id, run, status, run_status, lead, replies } = self;
        let mut found = Vec::new();
        if messages.conversation(*event_seq) != messages.conversation(*first_seq) {
            found.push(format!("{id} shares run {run}, which is of another conversation"));
        }
        if event_seq < first_seq {
            found.push(format!("{id} shares run {run}, which a later message began"));
        }
        if !was_taken_in {
            found.push(format!("{id} shares run {run}, whose agent did not take it in"));
        }
        let is_over = matches!(run_status.as_str(), "finished" | "failed");
        if let Some(lead) = lead.as_ref().filter(|lead| is_over && *lead != status) {
            found.push(format!("{id} is `{status}`, and the request whose run {run} it shares is `{lead}`"));
        }
        if *replies > 0 {
            found.push(format!("{id} shares run {run} and has {replies} replies of its own"));
        }
        // One that is run again after a crash is so in a turn of its own, and may have joined another one then.
        if calls > 0 && on_interrupted != OnInterrupted::Rerun {
            found.push(format!("{id} shares run {run}, and its agent was asked {calls} times about it"));
        }
        found
    }
}

/// What people wrote where such an agent answers.
struct Messages {
    /// By number: the text, and where it was written.
    all: HashMap<i64, (String, String)>,
}

impl Messages {
    fn read(copy: &Copy) -> Result<Self> {
        let sql = format!(
            "SELECT seq, content, account_id || '/' || peer_id FROM events WHERE direction = 'inbound' AND channel = '{}'",
            CHANNEL.name()
        );
        let all = rows(&copy.events, &sql, |row| Ok((row.get(0)?, (row.get(1)?, row.get(2)?))))?;
        Ok(Self { all: all.into_iter().collect() })
    }

    fn content(&self, seq: i64) -> &str {
        self.all.get(&seq).map_or("", |(content, _)| content.as_str())
    }

    fn conversation(&self, seq: i64) -> Option<&str> {
        self.all.get(&seq).map(|(_, conversation)| conversation.as_str())
    }
}

/// What an agent took in before it answered, by run. One that was called anew knows nothing of what the one before took in.
fn answered_for(journal: &[Value]) -> Vec<(String, String)> {
    let mut open: HashMap<String, Vec<String>> = HashMap::new();
    let mut all = Vec::new();
    for line in journal {
        let run = text(line, "run_id");
        match line["what"].as_str() {
            Some(CALLED) => drop(open.remove(&run)),
            Some(TOOK_IN) => open.entry(run).or_default().push(text(line, "content")),
            Some(ANSWERED) => all.extend(open.remove(&run).unwrap_or_default().into_iter().map(|content| (run.clone(), content))),
            Some(_) | None => {}
        }
    }
    all
}

/// What was taken in, answered for by an agent that said all of it, and doesn't share that run.
fn left_out(copy: &Copy, messages: &Messages, journal: &[Value]) -> Result<Vec<String>> {
    // The answer of a turn that somebody ended is nobody's.
    let sql = format!(
        "SELECT r.run_id FROM runs r JOIN nexus_requests q ON q.event_seq = r.event_seq AND q.attempts = r.attempt
         WHERE r.agent = '{NAME}' AND r.status = 'finished' AND q.status = 'completed'
           AND coalesce(q.reason, '') NOT LIKE 'aborted:%' AND coalesce(q.reason, '') NOT LIKE 'stopped:%'"
    );
    let whole: HashSet<String> = rows(&copy.nexus, &sql, |row| row.get(0))?.into_iter().collect();
    let sql = format!("SELECT event_seq, coalesce(run_id, '') FROM nexus_requests WHERE channel = '{}'", CHANNEL.name());
    let requests: Vec<(i64, String)> = rows(&copy.nexus, &sql, |row| Ok((row.get(0)?, row.get(1)?)))?;
    let sharing: HashSet<(&str, &str)> = requests.iter().map(|(seq, run)| (run.as_str(), messages.content(*seq))).collect();
    let taken_in = answered_for(journal).into_iter().filter(|(run, _)| whole.contains(run));
    let lost = taken_in.filter(|(run, content)| !sharing.contains(&(run.as_str(), content.as_str())));
    Ok(lost.map(|(run, content)| format!("run {run} answered for `{content}`, whose request does not share it")).collect())
}

/// Everything that joined a run, where there is an agent that takes messages while it runs.
pub(super) fn joined(world: &World, copy: &Copy, on_interrupted: OnInterrupted, counts: &mut Counts) -> Result<Vec<String>> {
    if world.cast().steering { shared(world, copy, on_interrupted, counts) } else { Ok(Vec::new()) }
}

fn shared(world: &World, copy: &Copy, on_interrupted: OnInterrupted, counts: &mut Counts) -> Result<Vec<String>> {
    let journal = journal::values(&world.agent_journal())?;
    let of = |what: &'static str| journal.iter().filter(move |one| one["what"] == what);
    let taken_in: HashSet<(String, String)> = of(TOOK_IN).map(|one| (text(one, "run_id"), text(one, "content"))).collect();
    let calls: BTreeMap<String, u64> = tally(of(CALLED).map(|one| text(one, "content")));
    let messages = Messages::read(copy)?;
    let all = Joined::all(copy)?;
    counts.joined += all.len() as u64;
    let wrong = |joined: &Joined| {
        let content = messages.content(joined.event_seq).to_owned();
        let times = calls.get(&content).copied().unwrap_or(0);
        joined.wrong(&messages, taken_in.contains(&(joined.run.clone(), content)), times, on_interrupted)
    };
    let mut found: Vec<String> = all.iter().flat_map(wrong).collect();
    found.extend(left_out(copy, &messages, &journal)?);
    let superseded = superseded_runs(copy)?;
    let failing: HashSet<String> = of(FAILS).map(|one| text(one, "run_id")).collect();
    let hits = journal::values(&world.hits())?;
    let was_hit = |one: &&Value| {
        let at = one["at"].as_u64().unwrap_or_default();
        hits.iter().any(|hit| hit["from"].as_u64().is_some_and(|from| from <= at) && hit["to"].as_u64().is_some_and(|to| at <= to))
    };
    let unhit = of(LISTENS).filter(|one| !was_hit(one)).map(|one| text(one, "run_id"));
    let unheard = unhit.filter(|run| superseded.contains(run) && !failing.contains(run)).count();
    if unheard > UNHEARD_MAX {
        found.push(format!("{unheard} runs were ended by newer messages, though their agents listened and did not fail"));
    }
    found.truncate(NAMED_MAX);
    Ok(found)
}

/// The runs that a newer message ended instead, of such an agent alone. None in a world without one.
pub(super) fn superseded(world: &World, copy: &Copy) -> Result<HashSet<String>> {
    if world.cast().steering { superseded_runs(copy) } else { Ok(HashSet::new()) }
}

fn superseded_runs(copy: &Copy) -> Result<HashSet<String>> {
    let sql = format!(
        "SELECT r.run_id FROM runs r JOIN nexus_requests q ON q.event_seq = r.event_seq AND q.attempts = r.attempt
         WHERE r.agent = '{NAME}' AND r.status = 'finished' AND q.status = 'completed' AND q.reason = '{SUPERSEDED}'"
    );
    Ok(rows(&copy.nexus, &sql, |row| row.get(0))?.into_iter().collect())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::made::{Made, tells};
    use super::*;
    use serde_json::json;

    /// Message 2 was taken in by the agent that answered message 1, and then this happened to the ledger.
    fn made(sql: &str) -> Made {
        let made = Made::new(CHANNEL);
        for number in [1, 2] {
            made.written(number);
            made.accepted(number, number);
        }
        made.ran(1, 1, "run-1");
        made.noted(LISTENS, 1, "run-1");
        made.noted(TOOK_IN, 2, "run-1");
        made.delivered(1, 1, "key-1");
        let tables = "ALTER TABLE nexus_requests ADD COLUMN run_id TEXT; ALTER TABLE nexus_requests ADD COLUMN reason TEXT;
                      UPDATE nexus_requests SET run_id = 'run-1'; UPDATE runs SET agent = 'steered';";
        made.nexus.execute_batch(tables).unwrap();
        made.nexus.execute_batch(sql).unwrap();
        made
    }

    fn found(made: &Made, on_interrupted: OnInterrupted) -> String {
        shared(&made.world, &made.copy(), on_interrupted, &mut Counts::default()).unwrap().join("; ")
    }

    #[test]
    fn what_was_taken_in_ends_with_its_run() {
        let holds = made("");
        holds.holds();
        let mut counts = Counts::default();
        assert_eq!(shared(&holds.world, &holds.copy(), OnInterrupted::Auto, &mut counts).unwrap(), Vec::<String>::new());
        assert_eq!(counts.joined, 1);
        let other = made("UPDATE nexus_requests SET status = 'failed' WHERE event_seq = 2");
        tells(&found(&other, OnInterrupted::Auto), "plain:a-2 is `failed`, and the request whose run run-1 it shares is `completed`");
        let again = made("UPDATE nexus_requests SET attempts = 2, status = 'failed' WHERE event_seq = 1");
        assert_eq!(found(&again, OnInterrupted::Rerun), "", "its request had another run since");
    }

    #[test]
    fn what_joins_a_run_was_taken_in_and_is_answered_with_it() {
        let reply =
            "INSERT INTO deliveries SELECT 9, 2, 'key-9', status, channel, account_id, target, content, 1, 'run-1', 0, 0 FROM deliveries";
        tells(&found(&made(reply), OnInterrupted::Auto), "plain:a-2 shares run run-1 and has 1 replies of its own");
        let other = made("INSERT INTO runs VALUES ('run-9', 1, 0, 'steered', 'interrupted'); UPDATE nexus_requests SET run_id = 'run-9'");
        tells(&found(&other, OnInterrupted::Auto), "plain:a-2 shares run run-9, whose agent did not take it in");
        let asked = made("");
        asked.noted(CALLED, 2, "run-2");
        tells(&found(&asked, OnInterrupted::Auto), "plain:a-2 shares run run-1, and its agent was asked 1 times about it");
        assert_eq!(found(&asked, OnInterrupted::Rerun), "");
    }

    #[test]
    fn what_an_agent_answered_for_shares_its_run() {
        let own = "INSERT INTO runs VALUES ('run-2', 2, 1, 'steered', 'finished'); UPDATE nexus_requests SET run_id = 'run-2' WHERE event_seq = 2";
        let left_out = "run run-1 answered for `plain a 2`, whose request does not share it";
        let without = made(own);
        assert_eq!(found(&without, OnInterrupted::Auto), "", "it noted its answer before it took that in");
        without.noted(ANSWERED, 1, "run-1");
        tells(&found(&without, OnInterrupted::Auto), left_out);
        for ended in [SUPERSEDED, "stopped: by `nexus sessions stop`"] {
            without.nexus.execute("UPDATE nexus_requests SET reason = ?1 WHERE event_seq = 1", [ended]).unwrap();
            assert_eq!(found(&without, OnInterrupted::Auto), "", "{ended}");
        }
        let broken_off = made(own);
        broken_off.nexus.execute_batch("UPDATE runs SET status = 'interrupted' WHERE run_id = 'run-1'").unwrap();
        broken_off.noted(ANSWERED, 1, "run-1");
        assert_eq!(found(&broken_off, OnInterrupted::Auto), "", "nobody heard of it");
        let with = made("");
        with.noted(ANSWERED, 1, "run-1");
        assert_eq!(found(&with, OnInterrupted::Auto), "");
    }

    #[test]
    fn what_shares_a_run_comes_behind_its_message_in_its_conversation() {
        let elsewhere = made("");
        elsewhere.events.execute_batch("UPDATE events SET peer_id = 'q' WHERE seq = 2").unwrap();
        tells(&found(&elsewhere, OnInterrupted::Auto), "plain:a-2 shares run run-1, which is of another conversation");
        let before = made("UPDATE nexus_requests SET event_seq = 0 WHERE event_seq = 2");
        before.events.execute_batch("UPDATE events SET seq = 0 WHERE seq = 2").unwrap();
        assert_eq!(found(&before, OnInterrupted::Auto), "plain:a-2 shares run run-1, which a later message began");
    }

    /// Besides message 1 so many turns ended for newer messages, of which nothing says why.
    fn unheard() -> Made {
        let many = made("");
        let sql = "INSERT INTO nexus_requests SELECT event_seq + ?1, event_id || ?1, channel, 'completed', 1, 5, 'run-s' || ?1, ?2
                   FROM nexus_requests WHERE event_seq = 1";
        for number in 10..(10 + i64::try_from(UNHEARD_MAX).unwrap()) {
            many.nexus.execute(sql, rusqlite::params![number, SUPERSEDED]).unwrap();
            let sql = "INSERT INTO runs VALUES ('run-s' || ?1, ?1 + 1, 1, 'steered', 'finished')";
            many.nexus.execute(sql, [number]).unwrap();
            let line = json!({ "what": LISTENS, "content": "x", "run_id": format!("run-s{number}"), "at": 5 });
            journal::append(&many.world.agent_journal(), &line.to_string()).unwrap();
        }
        many
    }

    #[test]
    fn turns_that_end_for_newer_messages_though_their_agents_listen_are_few() {
        let many = unheard();
        assert_eq!(found(&many, OnInterrupted::Auto), "");
        assert_eq!(superseded_runs(&many.copy()).unwrap().len(), UNHEARD_MAX);
        many.nexus.execute("UPDATE nexus_requests SET reason = ?1 WHERE event_seq = 1", [SUPERSEDED]).unwrap();
        let too_many = format!("{} runs were ended by newer messages", UNHEARD_MAX + 1);
        tells(&found(&many, OnInterrupted::Auto), &too_many);
        let hit = |from: u64, to: u64| {
            journal::append(&many.world.hits(), &json!({ "from": from, "to": to }).to_string()).unwrap();
            found(&many, OnInterrupted::Auto)
        };
        tells(&hit(2, 4), &too_many);
        assert_eq!(hit(5, 9), "", "what listened then was hit by somebody");
    }

    #[test]
    fn a_turn_whose_agent_fails_may_end_for_a_newer_message() {
        let many = unheard();
        many.nexus.execute("UPDATE nexus_requests SET reason = ?1 WHERE event_seq = 1", [SUPERSEDED]).unwrap();
        many.noted(FAILS, 1, "run-1");
        assert_eq!(found(&many, OnInterrupted::Auto), "");
    }

    #[test]
    fn a_turn_that_a_death_cut_off_was_ended_by_no_message() {
        let many = unheard();
        many.nexus.execute("UPDATE nexus_requests SET reason = ?1 WHERE event_seq = 1", [SUPERSEDED]).unwrap();
        many.nexus.execute_batch("UPDATE runs SET status = 'interrupted' WHERE run_id = 'run-1'").unwrap();
        assert_eq!(found(&many, OnInterrupted::Auto), "", "its request was, while it waited to be run again");
    }
}
