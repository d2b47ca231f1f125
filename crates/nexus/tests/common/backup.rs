//! Backups in tests: making one, reading its files, and what must hold in every set of ledgers.

use super::{Daemon, Ran};
use rusqlite::{Connection, OpenFlags};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};

pub const LEDGERS: [&str; 4] = ["events", "agents", "identity", "nexus"];

/// Makes a backup where it goes by itself.
pub fn make(daemon: &Daemon) -> PathBuf {
    let answer: Value = serde_json::from_str(&daemon.nexus_ok(&["backup", "--json"])).unwrap();
    PathBuf::from(answer["directory"].as_str().expect("the answer names the directory"))
}

pub fn manifest(directory: &Path) -> Value {
    serde_json::from_str(&fs::read_to_string(directory.join("manifest.json")).unwrap()).unwrap()
}

pub fn set_manifest(directory: &Path, manifest: &Value) {
    fs::write(directory.join("manifest.json"), manifest.to_string()).unwrap();
}

/// `nexus restore DIRECTORY --yes` with more arguments.
pub fn restore(daemon: &Daemon, directory: &Path, more: &[&str]) -> Ran {
    let directory = directory.to_string_lossy();
    daemon.nexus(&[&["restore", &*directory, "--yes"][..], more].concat())
}

/// One that must succeed; what it did.
pub fn restored(daemon: &Daemon, directory: &Path, more: &[&str]) -> Value {
    let ran = restore(daemon, directory, &[&["--json"][..], more].concat());
    assert_eq!(ran.code, Some(0), "{ran:?}");
    let looked = daemon.nexus(&["doctor"]);
    assert_eq!(looked.code, Some(0), "{looked:?}");
    serde_json::from_str(&ran.stdout).unwrap()
}

/// All four files as one database, read-only: `nexus.runs` and so on.
fn attached(directory: &Path) -> Connection {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(directory.join("events.db"), flags).unwrap();
    for name in ["agents", "identity", "nexus"] {
        let path = directory.join(format!("{name}.db"));
        connection.execute("ATTACH ?1 AS ?2", [path.to_str().unwrap(), name]).unwrap();
    }
    connection
}

/// Fails if a ledger needs another file beside it.
pub fn assert_single_files(directory: &Path) {
    for name in LEDGERS {
        for ending in ["db-wal", "db-shm", "db-journal"] {
            let beside = directory.join(format!("{name}.{ending}"));
            assert!(!beside.exists(), "{beside:?}");
        }
    }
}

/// Fails unless the ledgers in a directory that nobody writes to are sound, and fit each other.
pub fn assert_whole(directory: &Path) {
    for name in LEDGERS {
        let path = directory.join(format!("{name}.db"));
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(&path, flags).unwrap();
        let found: String = connection.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
        assert_eq!(found, "ok", "{name}");
    }
    let ledgers = attached(directory);
    let rules = [
        (
            "a mark of agents.db points behind the end",
            "SELECT count(*) FROM agents.applied WHERE source = 'nexus.finish' AND seq > (SELECT value FROM nexus.counters WHERE name = 'finish_seq')",
        ),
        (
            "a mark of identity.db points behind the end",
            "SELECT count(*) FROM identity.applied WHERE source = 'events' AND seq > (SELECT coalesce(max(seq), 0) FROM main.events)",
        ),
        (
            "intake_seq points behind the end",
            "SELECT count(*) FROM nexus.counters WHERE name = 'intake_seq' AND value > (SELECT coalesce(max(seq), 0) FROM main.events)",
        ),
        (
            "an admitted event has no request",
            "SELECT count(*) FROM main.events WHERE direction = 'inbound' AND disposition <> 'history'
               AND seq <= (SELECT value FROM nexus.counters WHERE name = 'intake_seq') AND seq NOT IN (SELECT event_seq FROM nexus.nexus_requests)",
        ),
        ("a request has no event", "SELECT count(*) FROM nexus.nexus_requests WHERE event_seq NOT IN (SELECT seq FROM main.events)"),
        ("a run has no request", "SELECT count(*) FROM nexus.runs WHERE event_seq NOT IN (SELECT event_seq FROM nexus.nexus_requests)"),
        (
            "a turn has no request",
            "SELECT count(*) FROM agents.turns WHERE request_id NOT IN (SELECT request_id FROM nexus.nexus_requests)",
        ),
        (
            "an applied turn is missing",
            "SELECT count(*) FROM nexus.runs WHERE turn_json IS NOT NULL
               AND finish_seq <= (SELECT coalesce(max(seq), 0) FROM agents.applied WHERE source = 'nexus.finish')
               AND json_extract(turn_json, '$.turn_id') NOT IN (SELECT turn_id FROM agents.turns)",
        ),
    ];
    for (what, sql) in rules {
        let broken: i64 = ledgers.query_row(sql, [], |row| row.get(0)).unwrap_or_else(|error| panic!("{sql}: {error}"));
        assert_eq!(broken, 0, "{what}");
    }
}
