//! Small worlds made by hand, for the checker's own tests: journals, and ledgers with the columns that the checker
//! reads and none of the daemon's constraints, so that every promise can be broken.
#![allow(clippy::unwrap_used)]

use super::{Copy, everything};
use crate::journal;
use crate::report::Counts;
use crate::world::{Cast, Kind, OnInterrupted, World};
use rusqlite::{Connection, params};
use serde_json::json;
use std::fs;
use std::path::PathBuf;
use tempfile::TempDir;

const EVENTS: &str = "
    CREATE TABLE events (seq INTEGER, event_id TEXT, channel TEXT, account_id TEXT, peer_id TEXT, direction TEXT, disposition TEXT, content TEXT);
    CREATE TABLE cursors (adapter TEXT, account TEXT, last_event_id TEXT);
    CREATE TABLE rejected_lines (seq INTEGER);";
const NEXUS: &str = "
    CREATE TABLE counters (name TEXT, value INTEGER);
    INSERT INTO counters VALUES ('intake_seq', 0);
    CREATE TABLE nexus_requests (event_seq INTEGER, event_id TEXT, channel TEXT, status TEXT, attempts INTEGER, completed_at INTEGER);
    CREATE TABLE access_audit (event_seq INTEGER, decision TEXT);
    CREATE TABLE runs (run_id TEXT, event_seq INTEGER, attempt INTEGER, agent TEXT, status TEXT);
    CREATE TABLE deliveries (seq INTEGER, event_seq INTEGER, idempotency_key TEXT, status TEXT, channel TEXT, account_id TEXT, target TEXT,
                             content TEXT, attempts INTEGER, run_id TEXT, created_at INTEGER, updated_at INTEGER);
    CREATE TABLE nostr_published (event_id TEXT, once TEXT, status TEXT);
    CREATE TABLE approvals (id INTEGER, status TEXT);
    CREATE TABLE project_waits (event_seq INTEGER, approval INTEGER);";

/// A check has told this.
#[track_caller]
pub(crate) fn tells(found: &str, what: &str) {
    assert!(found.contains(what), "`{what}` is not in {found}");
}

/// A world, and the connections that make its ledgers.
pub(crate) struct Made {
    pub(crate) world: World,
    pub(crate) events: Connection,
    pub(crate) nexus: Connection,
    kind: Kind,
    _dir: TempDir,
}

impl Made {
    /// Nothing has happened yet. Everything will, on account `a` of this adapter.
    pub(crate) fn new(kind: Kind) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let world = World::make(dir.path(), Cast::default()).unwrap();
        fs::create_dir_all(world.data()).unwrap();
        let open = |name: &str, tables: &str| {
            let file = Connection::open(world.data().join(name)).unwrap();
            file.execute_batch(tables).unwrap();
            file
        };
        let (events, nexus) = (open("events.db", EVENTS), open("nexus.db", NEXUS));
        Self { world, events, nexus, kind, _dir: dir }
    }

    /// A world in which so many messages were written, accepted, answered and delivered as they should be.
    pub(crate) fn whole(kind: Kind, messages: i64) -> Self {
        let made = Self::new(kind);
        for number in 1..=messages {
            made.written(number);
            made.accepted(number, number);
            made.ran(number, number, &format!("run-{number}"));
            made.delivered(number, number, &format!("key-{number}"));
        }
        made
    }

    pub(crate) fn id(&self, number: i64) -> String {
        format!("{}:a-{number}", self.kind.name())
    }

    pub(crate) fn content(&self, number: i64) -> String {
        format!("{} a {number}", self.kind.name())
    }

    fn append(path: PathBuf, line: &serde_json::Value) {
        journal::append(&path, &line.to_string()).unwrap();
    }

    /// Somebody writes on the platform.
    pub(crate) fn written(&self, number: i64) {
        let event = json!({ "event_id": self.id(number), "channel": self.kind.name(), "account_id": "a", "peer_id": "p", "content": self.content(number) });
        Self::append(self.world.feed(self.kind, "a"), &json!({ "at": number, "ns": number, "event": event }));
    }

    /// The adapter is told that it is committed.
    pub(crate) fn acknowledged(&self, id: &str) {
        journal::append(&self.world.acks(self.kind, "a"), &format!("{id} 1")).unwrap();
    }

    /// Message `number` is event `seq`, has a completed request, and was acknowledged if it can be.
    pub(crate) fn accepted(&self, seq: i64, number: i64) {
        let (id, kind) = (self.id(number), self.kind.name());
        let sql = "INSERT INTO events VALUES (?1, ?2, ?3, 'a', 'p', 'inbound', 'run', ?4)";
        self.events.execute(sql, params![seq, id, kind, self.content(number)]).unwrap();
        self.nexus.execute("INSERT INTO nexus_requests VALUES (?1, ?2, ?3, 'completed', 1, 5)", params![seq, id, kind]).unwrap();
        self.nexus.execute("INSERT INTO access_audit VALUES (?1, 'allow')", [seq]).unwrap();
        self.nexus.execute("UPDATE counters SET value = ?1", [seq]).unwrap();
        if self.kind.acks() {
            self.acknowledged(&id);
        }
    }

    /// An agent notes what it does.
    pub(crate) fn noted(&self, what: &str, number: i64, run: &str) {
        Self::append(self.world.agent_journal(), &json!({ "what": what, "content": self.content(number), "run_id": run, "at": 1 }));
    }

    /// The agent is called for message `number`, which is event `seq`, and answers.
    pub(crate) fn ran(&self, seq: i64, number: i64, run: &str) {
        self.noted("called", number, run);
        self.noted("answered", number, run);
        self.nexus.execute("INSERT INTO runs VALUES (?1, ?2, 1, 'worker', 'finished')", params![run, seq]).unwrap();
    }

    /// The answer is sent and arrives, in one attempt.
    pub(crate) fn delivered(&self, seq: i64, number: i64, key: &str) {
        let sql = "INSERT INTO deliveries VALUES (?1, ?1, ?2, 'sent', ?3, 'a', 'p', ?4, 1, 'run-' || ?1, 0, 0)";
        self.nexus.execute(sql, params![seq, key, self.kind.name(), self.content(number)]).unwrap();
        self.begun(number, key);
        self.arrived(number, key);
    }

    fn send(&self, number: i64, key: &str) -> serde_json::Value {
        json!({ "key": key, "channel": self.kind.name(), "account": "a", "to": "p", "text": self.content(number), "at": 1 })
    }

    pub(crate) fn begun(&self, number: i64, key: &str) {
        Self::append(self.world.send_calls(), &self.send(number, key));
    }

    pub(crate) fn refused(&self, key: &str) {
        Self::append(self.world.refusals(), &json!({ "key": key, "at": 1 }));
    }

    pub(crate) fn arrived(&self, number: i64, key: &str) {
        Self::append(self.world.sends(), &self.send(number, key));
    }

    pub(crate) fn copy(&self) -> Copy {
        Copy::of(&self.world.data()).unwrap()
    }

    /// What the checker says of it.
    pub(crate) fn found(&self, on_interrupted: OnInterrupted) -> Vec<String> {
        everything(&self.world, on_interrupted, &mut Counts::default()).unwrap()
    }

    /// The checker finds this.
    #[track_caller]
    pub(crate) fn breaks(&self, what: &str) {
        let found = self.found(OnInterrupted::Auto);
        assert!(found.iter().any(|one| one.contains(what)), "`{what}` is not in {found:#?}");
    }

    #[track_caller]
    pub(crate) fn holds(&self) {
        assert_eq!(self.found(OnInterrupted::Auto), Vec::<String>::new());
    }
}
