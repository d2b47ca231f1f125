//! Rules about the rows of one ledger: each is a query that finds nothing in a sound file. Rows are
//! counted as they come and never gathered.

use super::{Check, Finding, NAMED_MAX};
use rusqlite::{Connection, Params};

/// A query for what must not be; its first column names what it found.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rule {
    pub(super) check: Check,
    pub(super) sql: &'static str,
    /// What such rows are, behind their number.
    pub(super) what: &'static str,
}

/// How many rows there were, and the first of them.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) count: u64,
    pub(super) first: Vec<String>,
}

impl Found {
    pub(super) fn add(&mut self, name: impl FnOnce() -> String) {
        self.count += 1;
        if self.first.len() < NAMED_MAX {
            self.first.push(name());
        }
    }

    /// `3 (a, b, c)`.
    pub(super) fn named(&self) -> String {
        let dots = if self.count > self.first.len() as u64 { ", ..." } else { "" };
        format!("({}{dots})", self.first.join(", "))
    }
}

/// What to do about rows that can't have come about by themselves.
pub(super) const RESTORE: &str =
    "these rows can't have come about by themselves: restore the ledgers, all of them as of one backup, with `nexus restore`";

pub(super) fn find(connection: &Connection, sql: &str, params: impl Params) -> rusqlite::Result<Found> {
    let mut query = connection.prepare(sql)?;
    let mut rows = query.query(params)?;
    let mut found = Found::default();
    while let Some(row) = rows.next()? {
        let name: String = row.get(0)?;
        found.add(|| name);
    }
    Ok(found)
}

/// What there is to say of a rule, if it is broken.
pub(super) fn broken(connection: &Connection, rule: &Rule) -> rusqlite::Result<Option<Finding>> {
    let found = find(connection, rule.sql, [])?;
    let what = || format!("{} {} {}", found.count, rule.what, found.named());
    Ok((found.count > 0).then(|| Finding::error(rule.check, what(), RESTORE)))
}

/// What holds of `nexus.db` at every commit.
pub(super) const NEXUS: &[Rule] = &[
    Rule {
        check: Check::Promise,
        what: "request(s) that ended without a time",
        sql: "SELECT request_id FROM nexus_requests WHERE status NOT IN ('waiting', 'processing', 'interrupted') AND completed_at IS NULL",
    },
    Rule {
        check: Check::Promise,
        what: "request(s) without an end that have the time of one",
        sql: "SELECT request_id FROM nexus_requests WHERE status IN ('waiting', 'processing', 'interrupted') AND completed_at IS NOT NULL",
    },
    Rule {
        check: Check::Promise,
        what: "request(s) beyond what was admitted",
        sql: "SELECT request_id FROM nexus_requests WHERE event_seq > (SELECT value FROM counters WHERE name = 'intake_seq')",
    },
    Rule {
        check: Check::Promise,
        what: "request(s) in processing that no run works on",
        sql: "SELECT request_id FROM nexus_requests q WHERE status IN ('waiting', 'processing', 'interrupted') AND status = 'processing'
                AND NOT EXISTS (SELECT 1 FROM runs r WHERE (r.event_seq = q.event_seq OR r.run_id = q.run_id) AND r.status = 'running')",
    },
    Rule {
        check: Check::Promise,
        what: "completed request(s) without a finished run",
        sql: "SELECT request_id FROM nexus_requests q WHERE status = 'completed'
                AND NOT EXISTS (SELECT 1 FROM runs r WHERE (r.event_seq = q.event_seq OR r.run_id = q.run_id) AND r.status = 'finished')",
    },
    Rule {
        check: Check::Promise,
        what: "finished run(s) of a request that isn't completed",
        // One transaction ends both, and neither is changed afterwards.
        sql: "SELECT r.run_id FROM runs r JOIN nexus_requests q ON q.event_seq = r.event_seq
                WHERE r.status = 'finished' AND q.status <> 'completed'",
    },
    Rule {
        check: Check::Records,
        what: "run(s) under way for a request that isn't in processing",
        sql: "SELECT r.run_id FROM runs r LEFT JOIN nexus_requests q ON q.event_seq = r.event_seq
                WHERE r.status = 'running' AND (q.status IS NULL OR q.status <> 'processing')",
    },
    Rule {
        check: Check::Records,
        what: "run(s) of no request",
        sql: "SELECT run_id FROM runs r WHERE NOT EXISTS (SELECT 1 FROM nexus_requests q WHERE q.event_seq = r.event_seq)",
    },
    Rule {
        check: Check::Records,
        what: "run(s) whose end and its place don't fit together",
        sql: "SELECT run_id FROM runs WHERE (finish_seq IS NOT NULL) <> (status IN ('finished', 'failed'))
                OR (finished_at IS NULL AND status IN ('finished', 'failed')) OR (finished_at IS NOT NULL AND status = 'running')",
    },
    Rule {
        check: Check::Records,
        what: "counter(s) behind the rows that they number",
        sql: "SELECT name FROM counters WHERE (name = 'finish_seq' AND value < (SELECT coalesce(max(finish_seq), 0) FROM runs))
                OR (name = 'sent_seq' AND value < (SELECT coalesce(max(sent_seq), 0) FROM deliveries))",
    },
    Rule {
        check: Check::Records,
        what: "finished run(s) missing",
        // A place is given in the transaction that finishes a run, and no run is ever deleted.
        sql: "SELECT 'of ' || value || ' that were counted' FROM counters
                WHERE name = 'finish_seq' AND value > (SELECT count(finish_seq) FROM runs)",
    },
    Rule {
        check: Check::Deliveries,
        what: "sent message(s) missing",
        // As with runs: a place is given to a row that is there, and no row is ever deleted.
        sql: "SELECT 'of ' || value || ' that were counted' FROM counters
                WHERE name = 'sent_seq' AND value > (SELECT count(sent_seq) FROM deliveries)",
    },
    Rule {
        check: Check::Records,
        what: "kind(s) of rows of an epoch that has not begun",
        sql: "SELECT kind FROM (SELECT 'nexus_requests' AS kind, max(epoch) AS epoch FROM nexus_requests
                UNION ALL SELECT 'runs', max(epoch) FROM runs UNION ALL SELECT 'deliveries', max(epoch) FROM deliveries
                UNION ALL SELECT 'adapter_instances', max(epoch) FROM adapter_instances)
              WHERE epoch > (SELECT value FROM counters WHERE name = 'epoch')",
    },
    Rule {
        check: Check::Records,
        what: "automation(s) whose state can't be read",
        sql: "SELECT name FROM automations WHERE state IS NOT NULL AND NOT json_valid(state)",
    },
    Rule {
        check: Check::Deliveries,
        what: "message(s) to be sent for no request",
        // What a plugin says without a request is of no event.
        sql: "SELECT delivery_id FROM deliveries d WHERE NOT (d.event_seq = 0 AND d.request_id = '')
                AND NOT EXISTS (SELECT 1 FROM nexus_requests q WHERE q.event_seq = d.event_seq AND q.request_id = d.request_id)",
    },
    Rule {
        check: Check::Deliveries,
        what: "message(s) of no run",
        sql: "SELECT delivery_id FROM deliveries d WHERE run_id IS NOT NULL AND NOT EXISTS (SELECT 1 FROM runs r WHERE r.run_id = d.run_id)",
    },
    Rule {
        check: Check::Deliveries,
        what: "published event(s) whose status and the relays' answers don't fit together",
        sql: "SELECT event_id FROM nostr_published p WHERE (status = 'accepted') <> (accepted_at IS NOT NULL)
                OR (status = 'accepted' AND NOT EXISTS (SELECT 1 FROM nostr_outbox o WHERE o.event_id = p.event_id AND o.status = 'accepted'))",
    },
    Rule {
        check: Check::Deliveries,
        what: "event(s) for relays that were never published",
        sql: "SELECT event_id FROM nostr_outbox o WHERE NOT EXISTS (SELECT 1 FROM nostr_published p WHERE p.event_id = o.event_id)",
    },
    Rule {
        check: Check::Deliveries,
        what: "message(s) whose status and place among those sent don't fit together",
        sql: "SELECT delivery_id FROM deliveries WHERE (sent_seq IS NOT NULL) <> (status = 'sent')",
    },
    Rule {
        check: Check::Records,
        what: "project(s) that are prepared from nothing",
        sql: "SELECT coordinate FROM projects WHERE status IN ('ready', 'needs_configuration') AND (definition IS NULL OR prepared_at IS NULL)",
    },
    Rule {
        check: Check::Records,
        what: "approval(s) whose decision and its time don't fit together",
        sql: "SELECT project || ' ' || subject FROM approvals WHERE (decided_at IS NOT NULL) <> (status <> 'pending')",
    },
    Rule {
        check: Check::Records,
        what: "event(s) that wait for their project without having failed",
        sql: "SELECT w.event_seq || ' of ' || w.project FROM project_waits w
                WHERE NOT EXISTS (SELECT 1 FROM nexus_requests q WHERE q.event_seq = w.event_seq AND q.status = 'failed')",
    },
];

/// What holds of `events.db`.
pub(super) const EVENTS: &[Rule] = &[Rule {
    check: Check::Records,
    what: "account(s) ahead of the events that there are",
    sql: "SELECT 'all' FROM (SELECT coalesce(sum(events), 0) AS counted FROM cursors)
            WHERE counted > (SELECT coalesce(max(seq), 0) FROM events)",
}];

/// What holds of `agents.db`.
pub(super) const AGENTS: &[Rule] = &[
    Rule {
        check: Check::Records,
        what: "session(s) that point at no turn",
        sql: "SELECT label FROM sessions s WHERE NOT EXISTS (SELECT 1 FROM turns t WHERE t.turn_id = s.head)",
    },
    Rule {
        check: Check::Records,
        what: "past session(s) that point at no turn",
        sql: "SELECT label FROM session_history s WHERE NOT EXISTS (SELECT 1 FROM turns t WHERE t.turn_id = s.head)",
    },
    Rule {
        check: Check::Records,
        what: "alias(es) of no session",
        sql: "SELECT alias FROM session_aliases a WHERE NOT EXISTS (SELECT 1 FROM sessions s WHERE s.label = a.label)
                AND NOT EXISTS (SELECT 1 FROM session_history h WHERE h.label = a.label)",
    },
    Rule {
        check: Check::Records,
        what: "turn(s) that answer after one that isn't there",
        sql: "SELECT turn_id FROM turns t WHERE parent_turn_id IS NOT NULL
                AND NOT EXISTS (SELECT 1 FROM turns p WHERE p.turn_id = t.parent_turn_id)",
    },
    Rule {
        check: Check::Records,
        what: "turn(s) without what was asked",
        sql: "SELECT turn_id FROM turns t WHERE NOT EXISTS (SELECT 1 FROM messages m WHERE m.turn_id = t.turn_id AND m.role = 'user')",
    },
    Rule {
        check: Check::Records,
        what: "message(s), speaker(s), tool call(s) or sums of no turn",
        sql: "SELECT turn_id FROM messages m WHERE NOT EXISTS (SELECT 1 FROM turns t WHERE t.turn_id = m.turn_id)
              UNION ALL SELECT turn_id FROM speakers s WHERE NOT EXISTS (SELECT 1 FROM turns t WHERE t.turn_id = s.turn_id)
              UNION ALL SELECT turn_id FROM tool_calls c WHERE NOT EXISTS (SELECT 1 FROM turns t WHERE t.turn_id = c.turn_id)
              UNION ALL SELECT turn_id FROM line_use u WHERE NOT EXISTS (SELECT 1 FROM turns t WHERE t.turn_id = u.turn_id)",
    },
];

/// What holds of `identity.db`.
pub(super) const IDENTITY: &[Rule] = &[
    Rule {
        check: Check::Records,
        what: "entity missing",
        sql: "SELECT 'owner' WHERE NOT EXISTS (SELECT 1 FROM entities WHERE entity_id = 'owner')",
    },
    Rule {
        check: Check::Records,
        what: "entities whose merges have no end, so that their senders are unknown",
        // The number is `ledger::identity::MERGED_MAX`: no way through merges is longer.
        sql: "WITH RECURSIVE up (entity_id, at, n) AS (
                SELECT entity_id, merged_into, 1 FROM entities WHERE merged_into IS NOT NULL
                UNION ALL SELECT up.entity_id, e.merged_into, up.n + 1 FROM up JOIN entities e ON e.entity_id = up.at
                  WHERE e.merged_into IS NOT NULL AND up.n <= 32)
              SELECT entity_id FROM up WHERE n > 32 ORDER BY 1",
    },
];

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::ledger::Ledger;

    fn ledger(ledger: Ledger) -> Connection {
        let connection = Connection::open_in_memory().unwrap();
        ledger.migrations().iter().for_each(|step| connection.execute_batch(step.sql).unwrap());
        connection
    }

    const REQUEST: &str = "INSERT INTO nexus_requests (event_seq, request_id, event_id, channel, account_id, adapter, conversation, status,
        stage, created_at, completed_at, epoch) VALUES (1, 'req_1', 'f:1', 'f', 'me', 'f', 'c', 'completed', 'finalize', 1, 2, 1);
        INSERT INTO runs (run_id, event_seq, attempt, agent, session, status, started_at, finished_at, finish_seq, epoch)
        VALUES ('run_1', 1, 1, 'echo', 's', 'finished', 1, 2, 1, 1);
        INSERT INTO deliveries (delivery_id, request_id, event_seq, run_id, adapter, channel, account_id, target, idempotency_key, content,
          status, created_at, updated_at, expires_at, sent_seq, epoch)
        VALUES ('dlv_1', 'req_1', 1, 'run_1', 'f', 'f', 'me', 'p', 'k', 'hi', 'sent', 1, 2, 3, 1, 1);
        UPDATE counters SET value = 1";

    fn all_broken(connection: &Connection, rules: &[Rule]) -> Vec<Finding> {
        rules.iter().filter_map(|rule| broken(connection, rule).unwrap()).collect()
    }

    /// What is broken once `sql` was done to a sound file.
    fn after(sql: &str) -> Vec<(Check, String)> {
        let connection = ledger(Ledger::Nexus);
        connection.execute_batch(REQUEST).unwrap();
        connection.execute_batch(sql).unwrap();
        all_broken(&connection, NEXUS).into_iter().map(|finding| (finding.check, finding.what)).collect()
    }

    #[test]
    fn sound_files_break_no_rule() {
        assert_eq!(after(""), []);
        assert_eq!(after("UPDATE deliveries SET request_id = '', event_seq = 0, run_id = NULL"), [], "a plugin's, of no request");
        for (which, rules) in [(Ledger::Events, EVENTS), (Ledger::Agents, AGENTS), (Ledger::Identity, IDENTITY), (Ledger::Nexus, NEXUS)] {
            assert_eq!(all_broken(&ledger(which), rules), [], "{which:?}");
        }
    }

    #[test]
    fn each_broken_rule_is_told_with_its_row() {
        let cases = [
            ("UPDATE nexus_requests SET completed_at = NULL", "ended without a time (req_1)"),
            ("UPDATE nexus_requests SET status = 'waiting'", "the time of one (req_1)"),
            ("UPDATE counters SET value = 0 WHERE name = 'intake_seq'", "beyond what was admitted (req_1)"),
            ("UPDATE nexus_requests SET status = 'processing', completed_at = NULL", "no run works on (req_1)"),
            ("UPDATE runs SET status = 'failed'", "without a finished run (req_1)"),
            ("UPDATE runs SET status = 'running', finish_seq = NULL, finished_at = NULL", "isn't in processing (run_1)"),
            ("DELETE FROM nexus_requests", "run(s) of no request (run_1)"),
            ("UPDATE runs SET finished_at = NULL", "don't fit together (run_1)"),
            ("UPDATE counters SET value = 0 WHERE name = 'finish_seq'", "behind the rows that they number (finish_seq)"),
            ("UPDATE counters SET value = 0 WHERE name = 'sent_seq'", "behind the rows that they number (sent_seq)"),
            ("UPDATE counters SET value = 2 WHERE name = 'finish_seq'", "run(s) missing (of 2 that were counted)"),
            ("DELETE FROM deliveries WHERE status = 'sent'", "sent message(s) missing (of 1 that were counted)"),
            ("UPDATE nexus_requests SET status = 'denied'", "isn't completed (run_1)"),
            ("UPDATE nexus_requests SET status = 'expired'", "isn't completed (run_1)"),
            ("UPDATE runs SET epoch = 2", "an epoch that has not begun (runs)"),
            ("INSERT INTO automations VALUES ('x', '{', 0, 1)", "whose state can't be read (x)"),
            ("UPDATE deliveries SET request_id = 'req_2'", "for no request (dlv_1)"),
            ("UPDATE deliveries SET run_id = 'run_2'", "of no run (dlv_1)"),
            ("UPDATE deliveries SET sent_seq = NULL", "among those sent don't fit together (dlv_1)"),
            (
                "INSERT INTO nostr_published (event_id, once, kind, event, status, created_at, expires_at) VALUES ('e', 'k', 1, '{}', 'accepted', 1, 2)",
                "the relays' answers don't fit together (e)",
            ),
            (
                "INSERT INTO nostr_outbox (event_id, relay, status, next_attempt_at, updated_at) VALUES ('f', 'ws://r', 'pending', 1, 1)",
                "that were never published (f)",
            ),
            (
                "INSERT INTO projects (coordinate, slug, path, title, status, created_at, updated_at) VALUES ('c', 's', '/p', 't', 'ready', 1, 1)",
                "prepared from nothing (c)",
            ),
            (
                "INSERT INTO approvals (project, kind, subject, command, event_id, status, asked_at) VALUES ('c', 'mcp', 's', 'x', '', 'approved', 1)",
                "its time don't fit together (c s)",
            ),
            ("INSERT INTO project_waits (event_seq, project, awaits, at) VALUES (1, 'p', 'source', 1)", "without having failed (1 of p)"),
        ];
        for (sql, told) in cases {
            let broken = after(sql);
            assert!(broken.iter().any(|(_, what)| what.ends_with(told)), "{sql}: {broken:?}");
        }
    }

    #[test]
    fn sessions_turns_and_messages_belong_together() {
        let cases = [
            ("INSERT INTO sessions VALUES ('dm:a', 'echo', 't', 1, 1, 1, NULL)", "point at no turn (dm:a)"),
            (
                "INSERT INTO session_history VALUES (1, 'dm:b', 'echo', 't', 1, 1, 1, 2, 'archived', NULL)",
                "past session(s) that point at no turn (dm:b)",
            ),
            ("INSERT INTO session_aliases VALUES ('dm:c', 'dm:d', 1)", "of no session (dm:c)"),
            ("INSERT INTO messages VALUES ('t', 0, 'user', 'hi')", "of no turn (t)"),
            ("INSERT INTO speakers VALUES ('t', 'sms:1', NULL)", "of no turn (t)"),
            ("INSERT INTO line_use VALUES ('t', 'model', 1, 0.5)", "of no turn (t)"),
            (
                "INSERT INTO turns VALUES ('t', 'gone', 2, 's', 'echo', 'r', NULL, NULL, 'end_turn', NULL, NULL, 1, 1.0, 'echo', NULL)",
                "that isn't there (t)",
            ),
        ];
        for (sql, told) in cases {
            let connection = ledger(Ledger::Agents);
            connection.execute_batch(sql).unwrap();
            let broken = all_broken(&connection, AGENTS);
            assert!(broken.iter().any(|finding| finding.what.ends_with(told)), "{sql}: {broken:?}");
        }
    }

    #[test]
    fn merges_in_a_circle_are_told_and_the_longest_way_is_sound() {
        let connection = ledger(Ledger::Identity);
        for n in (0..crate::ledger::identity::MERGED_MAX).rev() {
            let into = if n + 1 == crate::ledger::identity::MERGED_MAX { "owner".to_owned() } else { format!("e{}", n + 1) };
            let sql = "INSERT INTO entities (entity_id, created_at, merged_into) VALUES (?1, 1, ?2)";
            connection.execute(sql, [format!("e{n}"), into]).unwrap();
        }
        assert_eq!(all_broken(&connection, IDENTITY), []);
        connection.execute("UPDATE entities SET merged_into = 'e0' WHERE entity_id = 'e1'", []).unwrap();
        let broken = all_broken(&connection, IDENTITY);
        assert!(broken.len() == 1 && broken[0].what.ends_with("unknown (e0, e1)"), "{broken:?}");
    }

    #[test]
    fn many_rows_are_counted_and_few_are_named() {
        let connection = Connection::open_in_memory().unwrap();
        let sql = "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 5000) SELECT 'r' || i FROM n";
        let found = find(&connection, sql, []).unwrap();
        assert_eq!((found.count, found.first.len()), (5000, NAMED_MAX));
        assert!(found.named().ends_with("r10, ...)"), "{}", found.named());
    }
}
