//! What is promised about a project's process: each event is in the ledger before it is handed over, comes in its order, is
//! handed over again only as often as the ledger has tries for it, never once it was answered but where the configuration
//! says so, and one that is completed was answered to the end and once.

use super::causes::is_slow;
use super::nostr::{Relayed, recorded};
use super::order::out_of_order;
use super::waits::WAITED;
use super::{Copy, count, rows};
use crate::journal;
use crate::posters::{Sort, posts};
use crate::project::{DONE, HANDED, NOTHING, PUBLISHED};
use crate::report::Counts;
use crate::world::{OnInterrupted, World};
use anyhow::{Context, Result};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

/// Tries of one run as long as nothing was said or done, and runs of one request after which it counts as poison.
const TRIES_MAX: u64 = 3;
const RUNS_MAX: u64 = 3;
/// Most findings that one look names.
const NAMED_MAX: usize = 10;

/// What the ledger says of an event of the project.
struct Row {
    seq: i64,
    status: String,
    runs: u64,
    /// Of its last run.
    ended: String,
}

/// What the processes did about one event.
#[derive(Default)]
struct Work {
    handed: u64,
    /// It was handed over though its answer was published.
    again: bool,
    /// Ids of what was published for it.
    published: BTreeSet<String>,
    nothing: bool,
    done: bool,
}

impl Work {
    fn wrong(&self, id: &str, row: Option<&Row>, on_interrupted: OnInterrupted) -> Vec<String> {
        let Some(row) = row else { return vec![format!("the project was handed {id}, which has no request")] };
        let Row { status, runs, ended, .. } = row;
        let runs_max = if on_interrupted == OnInterrupted::Fail { 1 } else { RUNS_MAX };
        let mut found = Vec::new();
        if self.handed > TRIES_MAX * runs_max.min(*runs) {
            let configured = on_interrupted.name();
            found.push(format!("with on_interrupted: {configured} {id} was handed over {} times in {runs} runs", self.handed));
        }
        if self.again && on_interrupted != OnInterrupted::Rerun {
            found.push(format!("{id} was handed over again after its answer was published"));
        }
        if self.published.len() > 1 {
            found.push(format!("{id} has these answers: {:?}", self.published));
        }
        let is_answered = self.done && (self.nothing || !self.published.is_empty());
        if status == "completed" && ended == "finished" && !is_answered {
            found.push(format!("{id} is completed, and its process did not come to its end"));
        }
        found
    }
}

/// Of so many events one is answered, whatever else goes wrong.
const ENOUGH: usize = 3;

/// In why an event of the project failed: that was in quarantine.
const QUARANTINED: &str = "it is quarantined (";

/// The project is in quarantine only where few crashes are enough for that, and not after the calm: it was released then.
pub(super) fn quarantined(world: &World, copy: &Copy) -> Result<Vec<String>> {
    if world.cast().nostr { in_quarantine(world, copy) } else { Ok(Vec::new()) }
}

fn in_quarantine(world: &World, copy: &Copy) -> Result<Vec<String>> {
    let sql = format!("SELECT count(*) FROM nexus_requests WHERE instr(reason, '{QUARANTINED}') > 0");
    let failed = count(&copy.nexus, &sql)?;
    let still: Vec<String> = rows(&copy.nexus, "SELECT quarantined FROM projects WHERE quarantined IS NOT NULL", |row| row.get(0))?;
    let mut found = Vec::new();
    if failed > 0 && !world.cast().quarantine {
        found.push(format!("{failed} events failed for a quarantine of the project, which can't crash so often here"));
    }
    found.extend(not_failed_for_good(copy)?);
    found.extend(not_gone_on(world, copy)?);
    found.extend(still.iter().map(|why| format!("after the calm the project is in quarantine: {why}")));
    Ok(found)
}

/// What comes for a project in quarantine fails, and doesn't wait for its end.
fn not_failed_for_good(copy: &Copy) -> Result<Vec<String>> {
    let sql = format!(
        "SELECT q.event_seq, q.event_id, q.status, EXISTS (SELECT 1 FROM project_waits w WHERE w.event_seq = q.event_seq)
         FROM nexus_requests q WHERE instr(q.reason, '{QUARANTINED}') > 0"
    );
    let met: Vec<(i64, String, String, bool)> = rows(&copy.nexus, &sql, |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?)))?;
    let sql = format!("SELECT event_id FROM events WHERE direction = 'inbound' AND instr(event_id, '{WAITED}') > 0");
    let again: Vec<String> = rows(&copy.events, &sql, |row| row.get(0))?;
    let mut found = Vec::new();
    for (seq, id, status, waits) in met {
        if status != "failed" {
            found.push(format!("{id} met the project in quarantine, and is `{status}`"));
        }
        if waits || again.iter().any(|id| id.ends_with(&format!("{WAITED}{seq}"))) {
            found.push(format!("{id} met the project in quarantine, and was kept to be run again"));
        }
    }
    Ok(found)
}

/// Once the project was released for good, what people say to it is answered.
fn not_gone_on(world: &World, copy: &Copy) -> Result<Vec<String>> {
    let Some(released) = journal::lines(&world.released())?.pop() else { return Ok(Vec::new()) };
    let after: i64 = released.parse().context("the project was released after no request")?;
    let spoken: HashSet<String> = posts(world)?.into_iter().filter(|post| post.sort == Sort::Project).map(|post| post.event_id()).collect();
    let sql = format!("SELECT event_id, status, coalesce(reason, '') FROM nexus_requests WHERE event_seq > {after}");
    let mut came: Vec<(String, String, String)> = rows(&copy.nexus, &sql, |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
    came.retain(|(id, _, _)| spoken.contains(id));
    // On a busy machine its process may not be ready in its time, or answer.
    let has_failed = |(_, status, reason): &&(String, String, String)| status == "failed" && !is_slow(reason);
    let mut found: Vec<String> = came
        .iter()
        .filter(has_failed)
        .map(|(id, _, reason)| format!("the project was released for good, and {id} failed: {reason}"))
        .collect();
    if came.len() >= ENOUGH && came.iter().all(|(_, status, _)| status != "completed") {
        found.push(format!("the project was released for good, and of {} events for it none was answered", came.len()));
    }
    found.truncate(NAMED_MAX);
    Ok(found)
}

/// Looks at all that was handed over.
pub(super) fn handed(world: &World, copy: &Copy, on_interrupted: OnInterrupted, counts: &mut Counts) -> Result<Vec<String>> {
    let journal = journal::values(&world.project_journal())?;
    if journal.is_empty() {
        return Ok(Vec::new());
    }
    let known = ledger(copy)?;
    let mut all: BTreeMap<&str, Work> = BTreeMap::new();
    let mut order = Vec::new();
    for line in &journal {
        let Some(id) = line["id"].as_str() else { continue }; // of the process itself
        let work = all.entry(id).or_default();
        match line["what"].as_str() {
            Some(HANDED) => {
                work.handed += 1;
                work.again |= !work.published.is_empty();
                order.extend(known.get(id).map(|row| ("demo".to_owned(), row.seq)));
            }
            Some(PUBLISHED) => work.published.extend(line["event_id"].as_str().map(str::to_owned)),
            Some(NOTHING) => work.nothing = true,
            Some(DONE) => work.done = true,
            Some(_) | None => {}
        }
    }
    counts.nostr.handed += all.values().map(|work| work.handed).sum::<u64>();
    counts.nostr.handed_again += all.values().map(|work| work.handed.saturating_sub(1)).sum::<u64>();
    let mut found: Vec<String> = all.iter().flat_map(|(id, work)| work.wrong(id, known.get(*id), on_interrupted)).collect();
    found.extend(unpublished(world, copy, &all)?);
    // One that is repeated comes before what follows it.
    found.extend(out_of_order(order.into_iter(), "project"));
    found.truncate(NAMED_MAX);
    Ok(found)
}

fn ledger(copy: &Copy) -> Result<HashMap<String, Row>> {
    let sql = "SELECT q.event_id, q.event_seq, q.status, (SELECT count(*) FROM runs r WHERE r.event_seq = q.event_seq),
                      coalesce((SELECT r.status FROM runs r WHERE r.event_seq = q.event_seq AND r.attempt = q.attempts), '')
               FROM nexus_requests q WHERE q.channel = 'nostr'";
    let read = |row: &rusqlite::Row<'_>| {
        Ok((row.get::<_, String>(0)?, Row { seq: row.get(1)?, status: row.get(2)?, runs: row.get(3)?, ended: row.get(4)? }))
    };
    Ok(rows(&copy.nexus, sql, read)?.into_iter().collect())
}

/// What a process was told to be published the relay has, if it didn't refuse it.
fn unpublished(world: &World, copy: &Copy, all: &BTreeMap<&str, Work>) -> Result<Vec<String>> {
    let (relayed, recorded) = (Relayed::read(world)?, recorded(copy)?);
    let is_missing = |event: &&String| match recorded.get(*event).map(String::as_str) {
        Some("refused" | "expired") => false,
        Some(_) | None => !relayed.has(event),
    };
    let told = all.iter().flat_map(|(id, work)| work.published.iter().map(move |event| (*id, event)));
    let lost = told.filter(|(_, event)| is_missing(event));
    Ok(lost.map(|(id, event)| format!("the project was told that {event} is published for {id}, and no relay has it")).collect())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::made::{Made, tells};
    use super::*;
    use crate::world::Kind;
    use rusqlite::params;
    use serde_json::json;

    /// A world in which two events were handed over, answered and published.
    struct Worked(Made);

    impl Worked {
        fn new() -> Self {
            let worked = Self(Made::new(Kind::Plain)).noted("began", None, None);
            let insert = |number: i64| {
                let sql = "INSERT INTO nexus_requests VALUES (?1, ?2, 'nostr', 'completed', 1, 5)";
                worked.0.nexus.execute(sql, params![number, format!("nostr:{number}")]).unwrap();
                let sql = "INSERT INTO runs VALUES (?1, ?2, 1, 'project', 'finished')";
                worked.0.nexus.execute(sql, params![format!("run-{number}"), number]).unwrap();
            };
            [1, 2].into_iter().for_each(insert);
            worked.answered(1).answered(2)
        }

        fn noted(self, what: &str, number: Option<i64>, published: Option<&str>) -> Self {
            let line = json!({ "what": what, "id": number.map(|number| format!("nostr:{number}")), "event_id": published });
            journal::append(&self.0.world.project_journal(), &line.to_string()).unwrap();
            self
        }

        fn answered(self, number: i64) -> Self {
            let reply = format!("reply-{number}");
            let line = json!({ "event": { "id": reply, "kind": 1 }, "taken": true });
            journal::append(&self.0.world.published(), &line.to_string()).unwrap();
            self.noted(HANDED, Some(number), None).noted(PUBLISHED, Some(number), Some(&reply)).noted(DONE, Some(number), None)
        }

        fn with(self, sql: &str) -> Self {
            self.0.nexus.execute_batch(sql).unwrap();
            self
        }

        fn found(&self, on_interrupted: OnInterrupted) -> String {
            handed(&self.0.world, &self.0.copy(), on_interrupted, &mut Counts::default()).unwrap().join("; ")
        }

        #[track_caller]
        fn breaks(&self, what: &str) {
            tells(&self.found(OnInterrupted::Auto), what);
        }
    }

    const RUN_AGAIN: &str = "INSERT INTO runs VALUES ('run-9', 2, 2, 'project', 'finished');
                             UPDATE nexus_requests SET attempts = 2 WHERE event_seq = 2;
                             UPDATE runs SET status = 'interrupted' WHERE run_id = 'run-2'";

    #[test]
    fn nothing_is_found_where_everything_holds() {
        assert_eq!(Worked::new().found(OnInterrupted::Fail), "");
        assert_eq!(Worked(Made::new(Kind::Plain)).found(OnInterrupted::Fail), "", "nobody was handed anything");
        let failed = Worked::new().with("UPDATE nexus_requests SET status = 'failed' WHERE event_seq = 1");
        assert_eq!(failed.found(OnInterrupted::Fail), "");
    }

    #[test]
    fn a_quarantine_that_should_not_be_is_found() {
        let found = |sql: &str| {
            let tables = "ALTER TABLE nexus_requests ADD COLUMN reason TEXT; CREATE TABLE projects (quarantined TEXT);
                          INSERT INTO projects VALUES (NULL); UPDATE nexus_requests SET status = 'failed', reason = 'it is away';";
            let Worked(made) = Worked::new().with(tables).with(sql);
            in_quarantine(&made.world, &made.copy()).unwrap().join("; ")
        };
        assert_eq!(found(""), "");
        tells(&found("UPDATE projects SET quarantined = 'it died'"), "after the calm the project is in quarantine: it died");
        let failed = "UPDATE nexus_requests SET reason = 'failed: it is quarantined (it died); release it' WHERE event_seq = 1";
        tells(&found(failed), "1 events failed for a quarantine of the project");
    }

    /// Event 1 of two met the project in quarantine, and then this happened.
    fn met_quarantine(sql: &str) -> Made {
        let tables = "ALTER TABLE nexus_requests ADD COLUMN reason TEXT;
                      UPDATE nexus_requests SET status = 'failed', reason = 'failed: it is quarantined (it died); release it' WHERE event_seq = 1;";
        let Worked(made) = Worked::new().with(tables).with(sql);
        made
    }

    #[test]
    fn what_meets_a_quarantine_fails_and_is_not_run_again() {
        let found = |made: &Made| not_failed_for_good(&made.copy()).unwrap().join("; ");
        assert_eq!(found(&met_quarantine("INSERT INTO project_waits VALUES (2, NULL)")), "");
        let answered = met_quarantine("UPDATE nexus_requests SET status = 'completed'");
        tells(&found(&answered), "nostr:1 met the project in quarantine, and is `completed`");
        let waits = met_quarantine("INSERT INTO project_waits VALUES (1, NULL)");
        tells(&found(&waits), "nostr:1 met the project in quarantine, and was kept to be run again");
        let again = met_quarantine("");
        let run_again = |id: &str| {
            let sql = "INSERT INTO events VALUES (9, ?1, 'nostr', 'default', 'p', 'inbound', 'run', 'x')";
            again.events.execute(sql, [id]).unwrap();
            found(&again)
        };
        assert_eq!(run_again("nostr:1#replay:waited-21"), "");
        tells(&run_again("nostr:1#replay:waited-1"), "was kept to be run again");
    }

    #[test]
    fn a_project_that_was_released_goes_on() {
        let found = |after: i64, sql: &str| {
            let made = met_quarantine(sql);
            for number in 1..=4 {
                let post = json!({ "sort": "project", "id": number.to_string(), "content": "x", "author": "me" });
                journal::append(&made.world.posts(), &post.to_string()).unwrap();
            }
            journal::append(&made.world.released(), &after.to_string()).unwrap();
            not_gone_on(&made.world, &made.copy()).unwrap().join("; ")
        };
        assert_eq!(found(1, ""), "", "the first came before that");
        tells(&found(0, ""), "the project was released for good, and nostr:1 failed: failed: it is quarantined");
        let more = |status: &str, reason: &str| {
            let insert = |number: i64| {
                format!(
                    "INSERT INTO nexus_requests (event_seq, event_id, channel, status, attempts) VALUES ({number}, 'nostr:{number}', 'nostr', '{status}', 1);"
                )
            };
            [3, 4].map(insert).concat() + &format!("UPDATE nexus_requests SET status = 'failed', reason = '{reason}' WHERE event_seq = 2")
        };
        tells(&found(1, &more("completed", "it died")), "the project was released for good, and nostr:2 failed: it died");
        assert_eq!(found(1, &more("completed", "its time is up")), "", "on a busy machine");
        let slow = more("failed", "its time is up").replace("WHERE event_seq = 2", "WHERE event_seq > 1");
        tells(&found(1, &slow), "and of 3 events for it none was answered");
        assert_eq!(found(2, &slow), "", "two say little");
    }

    #[test]
    fn an_event_is_handed_over_as_often_as_the_ledger_has_tries() {
        let handed = |times: usize| {
            let sql = "INSERT INTO nexus_requests VALUES (3, 'nostr:3', 'nostr', 'failed', 1, 5);
                       INSERT INTO runs VALUES ('run-3', 3, 1, 'project', 'failed')";
            (0..times).fold(Worked::new().with(sql), |worked, _| worked.noted(HANDED, Some(3), None))
        };
        assert_eq!(handed(3).found(OnInterrupted::Fail), "");
        handed(4).breaks("nostr:3 was handed over 4 times in 1 runs");
        let again = handed(4).with("INSERT INTO runs VALUES ('run-9', 3, 2, 'project', 'failed')");
        assert_eq!(again.found(OnInterrupted::Auto), "");
        assert!(again.found(OnInterrupted::Fail).contains("with on_interrupted: fail nostr:3 was handed over 4 times in 2 runs"));
        Worked::new().noted(HANDED, Some(7), None).breaks("the project was handed nostr:7, which has no request");
    }

    #[test]
    fn what_was_answered_is_not_handed_over_again_but_where_it_may_be() {
        let again = Worked::new().with(RUN_AGAIN).noted(HANDED, Some(2), None);
        again.breaks("nostr:2 was handed over again after its answer was published");
        assert_eq!(again.found(OnInterrupted::Rerun), "");
        let twice = again.noted(PUBLISHED, Some(2), Some("reply-1"));
        assert!(twice.found(OnInterrupted::Rerun).contains("nostr:2 has these answers: {\"reply-1\", \"reply-2\"}"));
    }

    #[test]
    fn who_is_completed_was_answered_to_the_end() {
        let sql = "INSERT INTO nexus_requests VALUES (3, 'nostr:3', 'nostr', 'completed', 1, 5);
                   INSERT INTO runs VALUES ('run-3', 3, 1, 'project', 'finished')";
        let third = || Worked::new().with(sql).noted(HANDED, Some(3), None);
        third().breaks("nostr:3 is completed, and its process did not come to its end");
        third().noted(DONE, Some(3), None).breaks("its process did not come to its end");
        assert_eq!(third().noted(NOTHING, Some(3), None).noted(DONE, Some(3), None).found(OnInterrupted::Auto), "");
    }

    #[test]
    fn what_is_told_to_be_published_is_and_events_come_in_their_order() {
        let worked = Worked::new().noted(HANDED, Some(1), None);
        worked.breaks("in project demo number 1 came after 2");
        let lost = || Worked::new().noted(PUBLISHED, Some(1), Some("reply-1")).noted(PUBLISHED, Some(2), Some("reply-9"));
        lost().breaks("the project was told that reply-9 is published for nostr:2, and no relay has it");
        let refused = lost().with("INSERT INTO nostr_published VALUES ('reply-9', 'key', 'refused')");
        assert!(!refused.found(OnInterrupted::Auto).contains("no relay has it"));
    }
}
