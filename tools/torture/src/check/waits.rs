//! What is promised about events that find their project waiting: each that does is run again once nothing is waited for any more,
//! once and in their order, and an approval that was answered as given is given. That none is lost on the way the snapshots see.

use super::events::original;
use super::order::out_of_order;
use super::{Copy, count, pairs_of_text, rows};
use crate::journal;
use crate::report::Counts;
use crate::world::World;
use anyhow::{Context, Result};
use rusqlite::Connection;
use std::collections::{HashMap, HashSet};

/// In the id of an event that is run again for having waited, before the number of the one that waited.
pub(super) const WAITED: &str = "#replay:waited-";
/// Most findings that one look names.
const NAMED_MAX: usize = 10;

/// How many events wait for something that nobody has to decide.
pub(super) fn open(world: &World, work: &Connection) -> Result<u64> {
    if !world.cast().nostr {
        return Ok(0);
    }
    count(work, "SELECT count(*) FROM project_waits w LEFT JOIN approvals a ON a.id = w.approval WHERE a.status IS NOT 'pending'")
}

/// Looks at all that was run again.
pub(super) fn run_again(world: &World, copy: &Copy, counts: &mut Counts) -> Result<Vec<String>> {
    let sql = "SELECT seq, event_id FROM events WHERE direction = 'inbound' AND channel = 'nostr' ORDER BY seq";
    let all: Vec<(i64, String)> = rows(&copy.events, sql, |row| Ok((row.get(0)?, row.get(1)?)))?;
    let ids: HashMap<i64, &str> = all.iter().map(|(seq, id)| (*seq, id.as_str())).collect();
    let sql = "SELECT event_seq FROM nexus_requests WHERE channel = 'nostr' AND status = 'failed'";
    let failed: HashSet<i64> = rows(&copy.nexus, sql, |row| row.get(0))?.into_iter().collect();
    let mut found = Vec::new();
    let mut taken: Vec<(String, i64)> = Vec::new();
    for (seq, id) in &all {
        let Some((first, number)) = id.split_once(WAITED) else { continue };
        let number: i64 = number.parse().with_context(|| format!("{id} says of no event that it waited"))?;
        let is_of_it = ids.get(&number).is_some_and(|before| original(before) == first);
        if !is_of_it || number >= *seq || !failed.contains(&number) {
            found.push(format!("{id} runs event {number} again, which is another one or did not fail"));
        }
        if taken.iter().any(|(_, known)| *known == number) {
            found.push(format!("event {number} was run again twice for having waited"));
        }
        taken.push(("demo".to_owned(), number));
    }
    counts.nostr.waited += taken.len() as u64;
    found.extend(out_of_order(taken.into_iter(), "what waited for project"));
    found.extend(forgotten(world, copy)?);
    found.truncate(NAMED_MAX);
    Ok(found)
}

/// Approvals that were answered as given, and are not.
fn forgotten(world: &World, copy: &Copy) -> Result<Vec<String>> {
    let answered = journal::values(&world.approvals())?;
    let known: HashMap<String, String> =
        pairs_of_text(&copy.nexus, "SELECT CAST(id AS TEXT), status FROM approvals")?.into_iter().collect();
    let status = |id: &str| known.get(id).map_or("unknown", String::as_str);
    let ids = answered.iter().map(|line| line["id"].to_string());
    let wrong = ids.filter(|id| status(id) != "approved");
    Ok(wrong.map(|id| format!("approval {id} was answered as given, and is `{}`", status(&id))).collect())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::made::{Made, tells};
    use super::*;
    use crate::world::Kind;
    use rusqlite::params;

    /// A world in which events 1 and 2 waited for approval 7 and were run again as 4 and 5.
    struct Waited(Made);

    impl Waited {
        fn new() -> Self {
            let waited = Self(Made::new(Kind::Plain));
            for (seq, id, status) in [(1, "nostr:a", "failed"), (2, "nostr:b", "failed"), (3, "nostr:c", "completed")] {
                waited.event(seq, id, status);
            }
            waited.event(4, "nostr:a#replay:waited-1", "completed");
            waited.event(5, "nostr:b#replay:waited-2", "failed");
            waited.0.nexus.execute_batch("INSERT INTO approvals VALUES (7, 'approved')").unwrap();
            journal::append(&waited.0.world.approvals(), "{\"id\":7}").unwrap();
            waited
        }

        fn event(&self, seq: i64, id: &str, status: &str) {
            let sql = "INSERT INTO events VALUES (?1, ?2, 'nostr', 'default', 'p', 'inbound', 'run', 'x')";
            self.0.events.execute(sql, params![seq, id]).unwrap();
            self.0.nexus.execute("INSERT INTO nexus_requests VALUES (?1, ?2, 'nostr', ?3, 1, 5)", params![seq, id, status]).unwrap();
        }

        fn found(&self) -> String {
            run_again(&self.0.world, &self.0.copy(), &mut Counts::default()).unwrap().join("; ")
        }

        #[track_caller]
        fn breaks(&self, what: &str) {
            tells(&self.found(), what);
        }
    }

    #[test]
    fn nothing_is_found_where_everything_holds() {
        let waited = Waited::new();
        waited.event(6, "nostr:b#replay:waited-5", "completed");
        assert_eq!(waited.found(), "", "the second waited twice");
        let mut counts = Counts::default();
        run_again(&waited.0.world, &waited.0.copy(), &mut counts).unwrap();
        assert_eq!(counts.nostr.waited, 3);
    }

    #[test]
    fn what_is_run_again_failed_and_is_run_again_once() {
        let waited = Waited::new();
        waited.event(6, "nostr:c#replay:waited-3", "completed");
        waited.breaks("nostr:c#replay:waited-3 runs event 3 again, which is another one or did not fail");
        let waited = Waited::new();
        waited.event(6, "nostr:a#replay:waited-5", "completed");
        waited.breaks("runs event 5 again, which is another one");
        let waited = Waited::new();
        waited.event(6, "nostr:b#replay:waited-2", "completed");
        waited.breaks("event 2 was run again twice");
    }

    #[test]
    fn none_overtakes_another() {
        let waited = Waited::new();
        waited.0.events.execute_batch("UPDATE events SET seq = 9 WHERE seq = 4").unwrap();
        waited.breaks("in what waited for project demo number 1 came after 2");
    }

    #[test]
    fn what_was_answered_as_approved_is() {
        let waited = Waited::new();
        waited.0.nexus.execute_batch("UPDATE approvals SET status = 'pending'").unwrap();
        waited.breaks("approval 7 was answered as given, and is `pending`");
        waited.0.nexus.execute_batch("DELETE FROM approvals").unwrap();
        waited.breaks("and is `unknown`");
    }

    #[test]
    fn what_waits_for_nobody_is_open() {
        let made = Made::new(Kind::Plain);
        let dir = tempfile::tempdir().unwrap();
        let world = World::make(dir.path(), crate::world::Cast { nostr: true, ..Default::default() }).unwrap();
        let open_of = |sql: &str| {
            made.nexus.execute_batch(sql).unwrap();
            open(&world, &made.nexus).unwrap()
        };
        assert_eq!(open_of("INSERT INTO approvals VALUES (7, 'pending'); INSERT INTO project_waits VALUES (1, 7)"), 0);
        assert_eq!(open_of("INSERT INTO project_waits VALUES (2, NULL)"), 1);
        assert_eq!(open_of("UPDATE approvals SET status = 'approved'"), 2);
        assert_eq!(open(&made.world, &made.nexus).unwrap(), 0, "it has no Nostr");
    }
}
