//! What automations and plugins have to say is said once: an automation's state counts each event that it was asked about
//! once, an agent is told that count and no other, and what a plugin adds to a request is there once, or the trace says why
//! it isn't.

use super::{Copy, count, rows};
use crate::advisers::{COUNTED, COUNTER, PROGRAM, SAID, SAYS_ONE_IN, SCRIPT, SENDER, SENT_AS};
use crate::agent::CALLED;
use crate::journal;
use crate::report::Counts;
use crate::world::World;
use anyhow::{Context, Result};
use serde_json::Value;
use std::collections::{BTreeSet, HashMap};

/// Most findings that one look names.
const NAMED_MAX: usize = 10;

/// What the ledger says of the counter.
struct Counter {
    /// By its state.
    count: u64,
    /// What it said about each event, by that one's seq.
    said: HashMap<i64, u64>,
}

impl Counter {
    fn read(copy: &Copy) -> Result<Self> {
        let states: Vec<Option<String>> =
            rows(&copy.nexus, &format!("SELECT state FROM automations WHERE name = '{COUNTER}'"), |row| row.get(0))?;
        let state: Value = match states.into_iter().flatten().next() {
            Some(text) => serde_json::from_str(&text).context("the counter's state is no JSON")?,
            None => Value::Null,
        };
        let sql = format!("SELECT event_seq, result FROM automation_results WHERE name = '{COUNTER}'");
        let results: Vec<(i64, String)> = rows(&copy.nexus, &sql, |row| Ok((row.get(0)?, row.get(1)?)))?;
        let read = |(seq, text): (i64, String)| {
            let result: Value = serde_json::from_str(&text).ok()?;
            Some((seq, counted(result["enrich"].as_str()?)?))
        };
        let said = results.into_iter().map(|row| read(row).context("a result of the counter has no count")).collect::<Result<_>>()?;
        Ok(Self { count: state["count"].as_u64().unwrap_or(0), said })
    }

    /// Its state is the number of events that it decided about, and each of those got a number of its own.
    fn wrong(&self) -> Vec<String> {
        let mut found = Vec::new();
        if self.count != self.said.len() as u64 {
            found.push(format!("the counter is at {}, and {} events were counted", self.count, self.said.len()));
        }
        let numbers: BTreeSet<u64> = self.said.values().copied().collect();
        if !numbers.iter().copied().eq(1..=self.said.len() as u64) {
            found.push(format!("{} events were counted, and got {} numbers up to {:?}", self.said.len(), numbers.len(), numbers.last()));
        }
        found
    }
}

/// The count that a line tells.
fn counted(line: &str) -> Option<u64> {
    line.strip_prefix(COUNTED)?.parse().ok()
}

/// A run whose agent was called.
struct Call {
    event_seq: i64,
    event_id: String,
    /// Of its request, if this is the last run of that.
    trace: Option<Value>,
    told: String,
}

impl Call {
    fn all(world: &World, copy: &Copy) -> Result<Vec<Self>> {
        let called = journal::values(&world.agent_journal())?;
        let read = |line: &Value| Some((line["run_id"].as_str()?.to_owned(), line["told"].as_str().unwrap_or_default().to_owned()));
        let told: HashMap<String, String> = called.iter().filter(|line| line["what"] == CALLED).filter_map(read).collect();
        let sql = "SELECT r.run_id, r.event_seq, q.event_id, CASE WHEN q.attempts = r.attempt THEN q.trace END
                   FROM runs r JOIN nexus_requests q ON q.event_seq = r.event_seq";
        let runs: Vec<(String, i64, String, Option<String>)> =
            rows(&copy.nexus, sql, |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?)))?;
        let call = |(run, event_seq, event_id, trace): (String, i64, String, Option<String>)| {
            let (told, trace) = (told.get(&run)?.clone(), trace.and_then(|text| serde_json::from_str(&text).ok()));
            Some(Self { event_seq, event_id, trace, told })
        };
        Ok(runs.into_iter().filter_map(call).collect())
    }

    /// The agent was told the count of its event, which was in the ledger before.
    fn miscounted(&self, counter: &Counter) -> Option<String> {
        let told = self.told.lines().find_map(counted)?;
        let known = counter.said.get(&self.event_seq).copied();
        let id = &self.event_id;
        (known != Some(told)).then(|| format!("an agent was told of {id} that it is number {told}, and the ledger says {known:?}"))
    }

    /// Each line is there as often as the trace says that it was added; never more than once.
    fn mismarked(&self) -> Vec<String> {
        let is_known = self.trace.as_ref().is_some_and(|trace| stages(trace).any(|stage| stage["stage"] == "assembleContext"));
        let mut found = Vec::new();
        for name in [COUNTER, SCRIPT.0, PROGRAM.0] {
            let is_mark = |line: &&str| match name {
                COUNTER => counted(line).is_some(),
                _ => (name == SCRIPT.0 && *line == SCRIPT.1) || (name == PROGRAM.0 && *line == PROGRAM.1),
            };
            let times = self.told.lines().filter(is_mark).count();
            let due = self.trace.as_ref().filter(|_| is_known).map(|trace| added(trace, name));
            if times > 1 || due.is_some_and(|due| due != times) {
                let Self { event_id: id, told, .. } = self;
                found.push(format!("of {id} an agent was told {times} times what `{name}` says, and the trace has {due:?}: `{told}`"));
            }
        }
        found
    }
}

/// What an automation sends by itself about an event is about that event, and is decided once, however often it was asked.
fn sent_once(copy: &Copy, counts: &mut Counts) -> Result<Vec<String>> {
    let sql = format!("SELECT event_seq, content FROM deliveries WHERE idempotency_key LIKE '%:automation~{SENDER}:{SENT_AS}'");
    let sent: Vec<(i64, String)> = rows(&copy.nexus, &sql, |row| Ok((row.get(0)?, row.get(1)?)))?;
    counts.said += sent.len() as u64;
    let sql = "SELECT seq, content FROM events WHERE direction = 'inbound'";
    let events: HashMap<i64, String> = rows(&copy.events, sql, |row| Ok((row.get(0)?, row.get(1)?)))?.into_iter().collect();
    let mut known = BTreeSet::new();
    let mut found = Vec::new();
    for (seq, content) in sent {
        let event = events.get(&seq).map_or("", String::as_str);
        if content.strip_prefix(SAID) != Some(event) {
            found.push(format!("an automation sent `{content}` about event {seq}, which is `{event}`"));
        }
        if !known.insert(seq) {
            found.push(format!("an automation sent twice what it says about event {seq}"));
        }
    }
    Ok(found)
}

/// One that came to the end of an event of which it has something to say, by the trace of its request, has sent that.
fn unsent(copy: &Copy) -> Result<Vec<String>> {
    let sql = format!(
        "SELECT event_seq, event_id, trace FROM nexus_requests q WHERE trace IS NOT NULL AND NOT EXISTS (
           SELECT 1 FROM deliveries d WHERE d.event_seq = q.event_seq AND d.idempotency_key LIKE '%:automation~{SENDER}:{SENT_AS}%')"
    );
    let requests: Vec<(i64, String, String)> = rows(&copy.nexus, &sql, |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
    let sql = "SELECT seq, content FROM events WHERE direction = 'inbound'";
    let mut events: HashMap<i64, String> = rows(&copy.events, sql, |row| Ok((row.get(0)?, row.get(1)?)))?.into_iter().collect();
    events.retain(|_, content| {
        let number = content.rsplit(' ').next().and_then(|number| number.parse::<u64>().ok());
        number.is_some_and(|number| number.is_multiple_of(SAYS_ONE_IN))
    });
    let due = requests.into_iter().filter(|(seq, _, _)| events.contains_key(seq));
    let was_asked = |trace: &str| {
        let trace: Value = serde_json::from_str(trace).unwrap_or_default();
        let mut results = trace["triggers"]["results"].as_array().into_iter().flatten();
        results.any(|one| one["automation"] == SENDER && one["error"].is_null())
    };
    let lost = due.filter(|(_, _, trace)| was_asked(trace));
    Ok(lost.map(|(_, id, _)| format!("an automation was asked about {id}, and did not send what it says")).collect())
}

fn stages(trace: &Value) -> impl Iterator<Item = &Value> {
    trace["pipeline"].as_array().into_iter().flatten()
}

/// How often an automation or a plugin added something to a request, by that one's trace.
fn added(trace: &Value, name: &str) -> usize {
    let automations = trace["triggers"]["results"].as_array().into_iter().flatten().filter(|one| one["automation"] == name);
    let plugins = stages(trace).filter_map(|stage| stage["hooks"].as_array()).flatten().filter(|one| one["plugin"] == name);
    automations.chain(plugins).filter(|one| one["error"].is_null()).count()
}

/// Everything that automations and plugins said.
pub(super) fn once(world: &World, copy: &Copy, counts: &mut Counts) -> Result<Vec<String>> {
    if world.cast().advisers { said(world, copy, counts) } else { Ok(Vec::new()) }
}

fn said(world: &World, copy: &Copy, counts: &mut Counts) -> Result<Vec<String>> {
    let counter = Counter::read(copy)?;
    counts.counted += counter.said.len() as u64;
    let calls = Call::all(world, copy)?;
    counts.marked += calls.iter().flat_map(|call| call.told.lines()).filter(|line| [SCRIPT.1, PROGRAM.1].contains(line)).count() as u64;
    let mut found = counter.wrong();
    found.extend(calls.iter().filter_map(|call| call.miscounted(&counter)));
    found.extend(calls.iter().flat_map(Call::mismarked));
    found.extend(sent_once(copy, counts)?);
    found.extend(unsent(copy)?);
    // Whoever is broken costs nobody their answer.
    let failed = count(&copy.nexus, "SELECT count(*) FROM nexus_requests WHERE status = 'failed' AND reason LIKE 'plugin `%'")?;
    if failed > 0 {
        found.push(format!("{failed} requests failed for a plugin whose errors are to be skipped"));
    }
    found.truncate(NAMED_MAX);
    Ok(found)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::made::Made;
    use super::*;
    use crate::world::Kind;
    use serde_json::json;

    const TABLES: &str = "
        CREATE TABLE automations (name TEXT, state TEXT);
        CREATE TABLE automation_results (event_seq INTEGER, name TEXT, result TEXT);
        ALTER TABLE nexus_requests ADD COLUMN trace TEXT;
        ALTER TABLE nexus_requests ADD COLUMN reason TEXT;
        INSERT INTO automations VALUES ('counter', '{\"count\":2}');
        INSERT INTO automation_results VALUES (1, 'counter', '{\"enrich\":\"counted 1\"}'), (2, 'counter', '{\"enrich\":\"counted 2\"}');";
    const TRACE: &str = r#"{"triggers":{"results":[{"automation":"counter","ms":1}]},
        "pipeline":[{"stage":"assembleContext","hooks":[{"plugin":"mark","ms":1},{"plugin":"stamp","ms":1,"error":"too slow"}]}]}"#;

    /// What is found where two events were counted, an agent was told this about the first one, and then this happened.
    fn after(told: &[&str], sql: &str) -> String {
        let made = Made::new(Kind::Acked);
        made.written(1);
        made.accepted(1, 1);
        made.nexus.execute_batch(TABLES).unwrap();
        made.nexus.execute("UPDATE nexus_requests SET trace = ?1", [TRACE]).unwrap();
        for (number, told) in told.iter().enumerate() {
            let run = format!("run-{number}");
            made.nexus.execute("INSERT INTO runs VALUES (?1, 1, ?2, 'worker', 'finished')", rusqlite::params![run, number + 1]).unwrap();
            journal::append(&made.world.agent_journal(), &json!({ "what": CALLED, "run_id": run, "told": told }).to_string()).unwrap();
        }
        made.nexus.execute_batch(sql).unwrap();
        said(&made.world, &made.copy(), &mut Counts::default()).unwrap().join("; ")
    }

    const TOLD: &str = "counted 1\n\nmarked by a script\n\nacked a 1";

    #[test]
    fn a_count_that_is_too_low_or_too_high_is_found() {
        assert_eq!(after(&[TOLD], ""), "");
        let state = |count: u64| format!("UPDATE automations SET state = '{{\"count\":{count}}}'");
        assert!(after(&[TOLD], &state(1)).contains("the counter is at 1, and 2 events were counted"));
        assert!(after(&[TOLD], &state(3)).contains("the counter is at 3, and 2 events were counted"));
        assert!(after(&[TOLD], "DELETE FROM automations").contains("the counter is at 0, and 2 events were counted"));
        let lost = "DELETE FROM automation_results WHERE event_seq = 1";
        assert!(after(&[], lost).contains("the counter is at 2, and 1 events were counted"));
        let same = "UPDATE automation_results SET result = '{\"enrich\":\"counted 1\"}'";
        assert!(after(&[TOLD], same).contains("2 events were counted, and got 1 numbers up to Some(1)"));
    }

    #[test]
    fn an_agent_is_told_the_count_that_the_ledger_has() {
        let other = TOLD.replace("counted 1", "counted 2");
        assert!(after(&[other.as_str()], "").contains("of acked:a-1 that it is number 2, and the ledger says Some(1)"));
        let without = "DELETE FROM automation_results WHERE event_seq = 1; DELETE FROM automations";
        assert!(after(&[TOLD], without).contains("it is number 1, and the ledger says None"));
        assert!(after(&[TOLD, TOLD], "UPDATE nexus_requests SET attempts = 2").is_empty(), "told the same a second time");
    }

    #[test]
    fn what_is_added_is_there_once_or_the_trace_says_why_not() {
        let twice = TOLD.replace("marked by a script", "marked by a script\nmarked by a script");
        assert!(after(&[twice.as_str()], "").contains("was told 2 times what `mark` says"));
        let (unmarked, uncounted) = (TOLD.replace("marked by a script", ""), TOLD.replace("counted 1", ""));
        assert!(after(&[unmarked.as_str()], "").contains("was told 0 times what `mark` says, and the trace has Some(1)"));
        assert!(after(&[uncounted.as_str()], "").contains("was told 0 times what `counter` says"));
        let stamped = TOLD.replace("acked a 1", "marked by a program\n\nacked a 1");
        assert!(after(&[stamped.as_str()], "").contains("was told 1 times what `stamp` says, and the trace has Some(0)"));
        assert_eq!(after(&[stamped.as_str()], "UPDATE nexus_requests SET trace = NULL"), "", "nobody knows");
        assert!(after(&[twice.as_str()], "UPDATE nexus_requests SET trace = NULL").contains("was told 2 times what `mark` says"));
    }

    #[test]
    fn what_an_automation_sends_is_decided_once_and_about_its_event() {
        let sent = |key: &str, content: &str| {
            format!(
                "INSERT INTO deliveries VALUES (9, 1, '{key}:automation~says:noted', 'sent', 'acked', 'a', 'p', '{content}', 1, NULL, 0, 0);"
            )
        };
        let once = sent("req_1", "noted acked a 1");
        assert_eq!(after(&[TOLD], &once), "");
        assert!(after(&[TOLD], &sent("req_1", "noted acked a 2")).contains("sent `noted acked a 2` about event 1, which is `acked a 1`"));
        let twice = format!("{once}{}", sent("req_2", "noted acked a 1"));
        assert!(after(&[TOLD], &twice).contains("sent twice what it says about event 1"));
    }

    #[test]
    fn what_an_automation_has_to_say_is_sent_once_it_was_asked() {
        let made = Made::new(Kind::Acked);
        for number in [4, 5] {
            made.written(number);
            made.accepted(number, number);
        }
        made.nexus.execute_batch("ALTER TABLE nexus_requests ADD COLUMN trace TEXT").unwrap();
        let found = |results: &str| {
            let trace = format!(r#"{{"triggers":{{"results":[{results}]}}}}"#);
            made.nexus.execute("UPDATE nexus_requests SET trace = ?1", [trace]).unwrap();
            unsent(&made.copy()).unwrap().join("; ")
        };
        let asked = r#"{"automation":"says","ms":1}"#;
        assert_eq!(found(asked), "an automation was asked about acked:a-5, and did not send what it says");
        assert_eq!(found(r#"{"automation":"counter","ms":1}"#), "", "that is another");
        assert_eq!(found(r#"{"automation":"says","ms":1,"error":"too slow"}"#), "", "it may not have come to that");
        let sent = "INSERT INTO deliveries VALUES (9, 5, 'req_5:automation~says:noted', 'sent', 'acked', 'a', 'p', 'noted acked a 5', 1, NULL, 0, 0)";
        made.nexus.execute_batch(sent).unwrap();
        assert_eq!(found(asked), "");
    }

    #[test]
    fn a_plugin_costs_nobody_their_answer() {
        let failed = "UPDATE nexus_requests SET status = 'failed', reason = 'plugin `stamp`: it took too long'";
        assert!(after(&[TOLD], failed).contains("1 requests failed for a plugin"));
    }
}
