//! What must never change, as it was seen after each death: a fact stays, and what has ended stays as it is.

use super::waits::WAITED;
use super::{Copy, OPEN_REQUESTS, count, events, pairs_of_text, people};
use crate::world::World;
use anyhow::Result;
use rusqlite::Connection;
use std::collections::BTreeMap;

/// Most findings that one look names.
const NAMED_MAX: usize = 5;

/// What was seen so far: by its name, as what.
#[derive(Debug, Default)]
pub(crate) struct Snapshots {
    fixed: BTreeMap<String, String>,
}

impl Snapshots {
    /// Looks at the files of a dead daemon: what it accepted is there, and what has ended stays so.
    ///
    /// # Errors
    /// When a ledger can't be read, which is a broken promise too.
    pub(crate) fn look(&mut self, world: &World) -> Result<Vec<String>> {
        if !world.data().join("events.db").exists() && self.fixed.is_empty() {
            return nothing_was_acknowledged(world);
        }
        self.compare(world, &Copy::of(&world.data())?)
    }

    fn compare(&mut self, world: &World, copy: &Copy) -> Result<Vec<String>> {
        // A death within the first migration leaves files that have no tables, or not all.
        if !has_table(&copy.events, "cursors")? || !has_table(&copy.nexus, "nexus_requests")? {
            let mut found = nothing_was_acknowledged(world)?;
            found.extend((!self.fixed.is_empty()).then(|| "a ledger has lost its tables".to_owned()));
            return Ok(found);
        }
        let mut found = events::acknowledged_are_there(world, &copy.events, u64::MAX)?;
        found.extend(events::cursors_are_covered(world, &copy.events)?);
        found.extend(people::kept(world, copy)?);
        found.extend(self.changed(fixed(&copy.events, &copy.nexus)?));
        Ok(found)
    }

    /// Looks at the ledgers of a daemon that runs: what has ended in its own life stays so too, whatever is done to it next.
    ///
    /// # Errors
    /// When a ledger can't be read.
    pub(crate) fn look_meanwhile(&mut self, events: &Connection, nexus: &Connection) -> Result<Vec<String>> {
        Ok(self.changed(fixed(events, nexus)?))
    }

    /// What is another now.
    fn changed(&mut self, now: BTreeMap<String, String>) -> Vec<String> {
        let before = std::mem::replace(&mut self.fixed, now);
        let changed = before.iter().filter(|(name, before)| self.fixed.get(*name) != Some(*before)).take(NAMED_MAX);
        changed.map(|(name, before)| format!("{name} was `{before}` and is {:?} now", self.fixed.get(name))).collect()
    }
}

/// Everything in the ledgers that is final. The harness retries no delivery as a person may.
fn fixed(events: &Connection, nexus: &Connection) -> Result<BTreeMap<String, String>> {
    let ended = format!(
        "SELECT 'the request of event ' || event_seq, status || ' at ' || coalesce(completed_at, 'no time')
         FROM nexus_requests WHERE NOT ({OPEN_REQUESTS})"
    );
    let waited = format!(
        "SELECT 'that event ' || substr(event_id, instr(event_id, '{WAITED}') + {}) || ' waits or is run again', 'so'
         FROM events WHERE event_id LIKE '%{WAITED}%'",
        WAITED.len()
    );
    let mut all = BTreeMap::new();
    for (file, sql) in [
        (events, "SELECT 'event ' || seq, channel || ' ' || event_id || ' ' || disposition FROM events WHERE direction = 'inbound'"),
        (nexus, ended.as_str()),
        (nexus, "SELECT 'run ' || run_id, status FROM runs WHERE status IN ('finished', 'failed')"),
        (nexus, "SELECT 'delivery ' || idempotency_key, status FROM deliveries WHERE status IN ('sent', 'failed', 'expired', 'discarded')"),
        (nexus, "SELECT 'what is published under ' || once, event_id FROM nostr_published"),
        (nexus, "SELECT 'the publication ' || event_id, status FROM nostr_published WHERE status != 'waiting'"),
        (nexus, "SELECT 'approval ' || id, status FROM approvals WHERE status != 'pending'"),
        // What waits for its project stops waiting only by being run again: nobody denies anything here.
        (nexus, "SELECT 'that event ' || event_seq || ' waits or is run again', 'so' FROM project_waits"),
        (events, waited.as_str()),
    ] {
        all.extend(pairs_of_text(file, sql)?);
    }
    Ok(all)
}

fn nothing_was_acknowledged(world: &World) -> Result<Vec<String>> {
    let told = events::acknowledged(world)?;
    Ok((told > 0).then(|| format!("{told} events were acknowledged, and a ledger has no tables")).into_iter().collect())
}

pub(super) fn has_table(connection: &Connection, name: &str) -> Result<bool> {
    Ok(count(connection, &format!("SELECT count(*) FROM sqlite_master WHERE type = 'table' AND name = '{name}'"))? > 0)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::made::Made;
    use super::*;
    use crate::world::Kind;

    /// What the second look says after this happened to a ledger since the first one.
    fn after(events: &str, nexus: &str) -> String {
        let made = Made::whole(Kind::Acked, 2);
        let mut snapshots = Snapshots::default();
        assert_eq!(snapshots.look(&made.world).unwrap(), Vec::<String>::new());
        made.events.execute_batch(events).unwrap();
        made.nexus.execute_batch(nexus).unwrap();
        snapshots.look(&made.world).unwrap().join("; ")
    }

    #[test]
    fn what_is_final_stays() {
        assert_eq!(after("", ""), "");
        assert_eq!(after("", "INSERT INTO nexus_requests VALUES (3, 'x', 'acked', 'failed', 1, 9)"), "");
        assert!(
            after("", "UPDATE nexus_requests SET status = 'failed' WHERE event_seq = 1")
                .contains("the request of event 1 was `completed at 5`")
        );
        assert!(after("", "UPDATE nexus_requests SET completed_at = 6 WHERE event_seq = 1").contains("is Some(\"completed at 6\") now"));
        assert!(after("", "DELETE FROM nexus_requests WHERE event_seq = 2").contains("the request of event 2"));
        assert!(
            after("", "UPDATE deliveries SET status = 'uncertain' WHERE seq = 1").contains("delivery key-1 was `sent` and is None now")
        );
        assert!(after("", "UPDATE runs SET status = 'running' WHERE event_seq = 1").contains("run run-1 was `finished`"));
        assert!(after("UPDATE events SET disposition = 'filed' WHERE seq = 1", "").contains("event 1 was `acked acked:a-1 run`"));
    }

    #[test]
    fn what_ended_while_the_daemon_lived_stays_too() {
        let after = |sql: &str| {
            let (made, mut snapshots) = (Made::whole(Kind::Acked, 1), Snapshots::default());
            assert_eq!(snapshots.look_meanwhile(&made.events, &made.nexus).unwrap(), Vec::<String>::new());
            made.nexus.execute_batch(sql).unwrap();
            let meanwhile = snapshots.look_meanwhile(&made.events, &made.nexus).unwrap().join("; ");
            (meanwhile, snapshots.look(&made.world).unwrap().join("; "))
        };
        assert_eq!(after(""), (String::new(), String::new()));
        assert!(after("DELETE FROM runs").0.contains("run run-1 was `finished` and is None now"));
        assert!(after("UPDATE deliveries SET status = 'pending'").0.contains("delivery key-1 was `sent` and is None now"));
        let made = Made::whole(Kind::Acked, 1);
        let mut snapshots = Snapshots::default();
        snapshots.look_meanwhile(&made.events, &made.nexus).unwrap();
        made.nexus.execute_batch("UPDATE runs SET status = 'interrupted'").unwrap();
        assert!(snapshots.look(&made.world).unwrap().concat().contains("run run-1 was `finished`"), "after its death");
    }

    #[test]
    fn what_is_published_is_made_once() {
        let after = |sql: &str| {
            let made = Made::whole(Kind::Acked, 1);
            made.nexus.execute_batch("INSERT INTO nostr_published VALUES ('e1', 'k1', 'accepted'), ('e2', 'k2', 'waiting')").unwrap();
            let mut snapshots = Snapshots::default();
            assert_eq!(snapshots.look(&made.world).unwrap(), Vec::<String>::new());
            made.nexus.execute_batch(sql).unwrap();
            snapshots.look(&made.world).unwrap().join("; ")
        };
        assert_eq!(after("UPDATE nostr_published SET status = 'refused' WHERE once = 'k2'"), "");
        assert!(after("UPDATE nostr_published SET event_id = 'e3' WHERE once = 'k2'").contains("what is published under k2 was `e2`"));
        assert!(after("UPDATE nostr_published SET status = 'waiting' WHERE once = 'k1'").contains("the publication e1 was `accepted`"));
    }

    #[test]
    fn what_waits_for_its_project_is_run_again_or_waits() {
        let after = |events: &str, nexus: &str| {
            let made = Made::whole(Kind::Acked, 1);
            made.nexus.execute_batch("INSERT INTO project_waits VALUES (1, 7); INSERT INTO approvals VALUES (7, 'approved')").unwrap();
            let mut snapshots = Snapshots::default();
            assert_eq!(snapshots.look(&made.world).unwrap(), Vec::<String>::new());
            made.events.execute_batch(events).unwrap();
            made.nexus.execute_batch(nexus).unwrap();
            snapshots.look(&made.world).unwrap().join("; ")
        };
        let again = "INSERT INTO events VALUES (9, 'acked:a-1#replay:waited-1', 'acked', 'a', 'p', 'inbound', 'run', 'x')";
        assert_eq!((after("", ""), after(again, "DELETE FROM project_waits")), (String::new(), String::new()));
        assert!(after("", "DELETE FROM project_waits").contains("that event 1 waits or is run again was `so` and is None now"));
        assert!(after("", "UPDATE approvals SET status = 'pending'").contains("approval 7 was `approved`"));
    }

    #[test]
    fn what_was_open_may_end() {
        let made = Made::whole(Kind::Acked, 1);
        made.nexus.execute_batch("UPDATE nexus_requests SET status = 'processing', completed_at = NULL").unwrap();
        made.nexus.execute_batch("UPDATE deliveries SET status = 'uncertain'").unwrap();
        let mut snapshots = Snapshots::default();
        assert!(snapshots.look(&made.world).unwrap().is_empty());
        made.nexus.execute_batch("UPDATE nexus_requests SET status = 'failed', completed_at = 7").unwrap();
        made.nexus.execute_batch("UPDATE deliveries SET status = 'discarded'").unwrap();
        assert!(snapshots.look(&made.world).unwrap().is_empty());
    }

    #[test]
    fn a_ledger_without_tables_is_one_before_its_first_start_only() {
        let made = Made::whole(Kind::Filled, 1);
        made.nexus.execute_batch("DROP TABLE nexus_requests").unwrap();
        assert!(Snapshots::default().look(&made.world).unwrap().is_empty());
        let acked = Made::whole(Kind::Acked, 1);
        acked.nexus.execute_batch("DROP TABLE nexus_requests").unwrap();
        assert!(Snapshots::default().look(&acked.world).unwrap().concat().contains("1 events were acknowledged"));
        assert!(after("", "DROP TABLE nexus_requests").contains("a ledger has lost its tables"));
    }
}
