//! Every decision about who may do what is kept: whoever was let in to an agent, or denied, has a row that says so.

use super::{Copy, rows};
use anyhow::Result;

/// Most events that one finding names.
const NAMED_MAX: usize = 5;

/// No run without a row, no denial without one that denies, and no row twice.
pub(super) fn decisions(copy: &Copy) -> Result<Vec<String>> {
    let each = [
        (
            "agents ran for requests about which no decision is kept",
            "SELECT event_id FROM nexus_requests q WHERE EXISTS (SELECT 1 FROM runs r WHERE r.event_seq = q.event_seq)
               AND NOT EXISTS (SELECT 1 FROM access_audit a WHERE a.event_seq = q.event_seq)",
        ),
        (
            "requests were denied, and no such decision is kept",
            "SELECT event_id FROM nexus_requests q WHERE status = 'denied'
               AND NOT EXISTS (SELECT 1 FROM access_audit a WHERE a.event_seq = q.event_seq AND a.decision = 'deny')",
        ),
        (
            "requests have several decisions",
            "SELECT q.event_id FROM nexus_requests q JOIN access_audit a ON a.event_seq = q.event_seq GROUP BY q.event_seq HAVING count(*) > 1",
        ),
    ];
    let mut found = Vec::new();
    for (what, sql) in each {
        let mut events: Vec<String> = rows(&copy.nexus, sql, |row| row.get(0))?;
        events.truncate(NAMED_MAX);
        if !events.is_empty() {
            found.push(format!("{what}: {events:?}"));
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::made::Made;
    use crate::world::Kind;

    #[test]
    fn a_decision_that_is_missing_or_wrong_or_twice_is_found() {
        let after = |sql: &str| {
            let made = Made::whole(Kind::Acked, 2);
            made.nexus.execute_batch(sql).unwrap();
            made
        };
        after("").holds();
        after("DELETE FROM access_audit WHERE event_seq = 1").breaks("about which no decision is kept");
        after("UPDATE nexus_requests SET status = 'denied' WHERE event_seq = 1; DELETE FROM runs WHERE event_seq = 1")
            .breaks("no such decision");
        after("INSERT INTO access_audit VALUES (1, 'allow')").breaks("several decisions");
    }
}
