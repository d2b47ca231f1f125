//! Ledgers that can't be reached: while the daemon runs, which says so, accepts nothing that it can't keep,
//! and goes on by itself; and at a start, which is refused with the reason.
#![allow(clippy::unwrap_used)]

mod common;

use common::{Ask, Daemon, config, eventually, fake, json_lines, lines};
use rusqlite::Connection;
use serde_json::{Value, json};
use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

const EVENTS: u64 = 10;
const EXIT_FAILED: i32 = 1;
const HISTORY: u64 = 20_000;
/// What `ledgers.min_free_mb` may be at most.
const MIN_FREE_MB_MAX: u64 = 1024 * 1024;
const PAGE_BYTES: u64 = 8192;

fn ledger(daemon: &Daemon, name: &str) -> PathBuf {
    daemon.workspace().join(format!("data/{name}.db"))
}

/// A daemon whose adapter, once it is enabled, brings some events of several people, and writes down
/// what is acknowledged and what is sent.
fn bringing_events() -> (Daemon, Value) {
    let mut daemon = Daemon::new();
    let behaviour = json!({
        "supports": ["monitor", "send", "ack"], "events": EVENTS, "peers": EVENTS,
        "ack_log": daemon.file("acks"), "send_log": daemon.file("sends"),
    });
    let mut wanted = config(json!({ "fake": fake(behaviour) }));
    wanted["adapters"]["fake"]["accounts"]["me"]["enabled"] = json!(false);
    // A session for each, so that none waits for another's turn.
    wanted["access"]["policies"] = json!([{
        "name": "each", "match": { "conditions": [{ "channel": "fake" }] }, "effect": "allow", "session": { "key": "fake:{peer_id}" },
    }]);
    daemon.configure(&wanted);
    daemon.launch();
    wanted["adapters"]["fake"]["accounts"]["me"]["enabled"] = json!(true);
    (daemon, wanted)
}

fn enable(daemon: &Daemon, wanted: &Value) {
    daemon.configure(wanted);
    daemon.nexus_ok(&["daemon", "reload"]);
}

/// Somebody else who holds the ledger's lock, until it is told otherwise.
fn stranger(daemon: &Daemon, name: &str) -> Connection {
    let connection = Connection::open(ledger(daemon, name)).unwrap();
    connection.busy_timeout(common::DEADLINE).unwrap();
    connection.execute_batch("BEGIN EXCLUSIVE").unwrap();
    connection
}

/// Waits until health says that this ledger, and why.
fn unhealthy(daemon: &Daemon, name: &str, why: &str) {
    eventually("health says so", || {
        let health = daemon.get("/health");
        health.status == 503 && health.json()["ledgers"][format!("{name}_db")] == "error"
    });
    let reasons = daemon.status()["reasons"].to_string();
    assert!(reasons.contains(&format!("ledger `{name}_db` is not accessible")) && reasons.contains(why), "{reasons}");
}

/// Waits until every event is answered, and sees that none was twice.
fn answered_once(daemon: &Daemon) {
    let all = i64::try_from(EVENTS).unwrap();
    eventually("every event is answered", || daemon.ended("completed") == all && daemon.deliveries("sent") == all);
    let sends = json_lines(daemon.file("sends"));
    let keys: HashSet<&str> = sends.iter().filter_map(|send| send["idempotency_key"].as_str()).collect();
    assert_eq!((daemon.accepted(), sends.len(), keys.len() as u64), (all, keys.len(), EVENTS));
    eventually("health says that it is over", || daemon.get("/health").status == 200);
}

#[test]
fn events_that_cannot_be_kept_are_not_accepted_and_come_in_once_they_can() {
    let (mut daemon, wanted) = bringing_events();
    let stranger = stranger(&daemon, "events");
    enable(&daemon, &wanted);
    unhealthy(&daemon, "events", "locked");
    assert_eq!((daemon.accepted(), lines(daemon.file("acks"))), (0, Vec::new()));
    assert_eq!(daemon.adapter("fake/me")["status"], "running", "its adapter waits");
    let refused = daemon.post("/control/send", &json!({ "text": "hello" }));
    assert_eq!(refused.status, 503, "{refused:?}");

    stranger.execute_batch("COMMIT").unwrap();
    answered_once(&daemon);
    eventually("the last is acknowledged", || lines(daemon.file("acks")).last().is_some_and(|ack| ack.contains(&format!("me-{EVENTS}"))));
    daemon.stop();
}

#[test]
fn what_was_accepted_waits_for_the_ledger_of_work() {
    let mut daemon = Daemon::start(&config(json!({})));
    let stranger = stranger(&daemon, "nexus");
    let answer = daemon.open(&Ask::post("/control/send", &json!({ "text": "hello" })));
    unhealthy(&daemon, "nexus", "locked");
    assert_eq!(daemon.count("events", "SELECT count(*) FROM events WHERE channel = 'cli' AND direction = 'inbound'"), 1);
    assert_eq!(daemon.terminal(), 0);

    stranger.execute_batch("COMMIT").unwrap();
    let end = answer.body.end();
    assert_eq!((&end["status"], &end["text"]), (&json!("completed"), &json!("hello")));
    assert_eq!(daemon.count("nexus", "SELECT count(*) FROM runs"), 1);
    eventually("health says that it is over", || daemon.get("/health").status == 200);
    daemon.stop();
}

#[test]
fn a_replay_that_cannot_be_kept_is_refused_and_done_once_when_asked_for_again() {
    let mut daemon = Daemon::start(&config(json!({})));
    daemon.nexus_ok(&["send", "--event-id", "job-1", "hello"]);
    let ask = |daemon: &Daemon| daemon.post("/control/events/cli:job-1/replay", &json!({ "key": "once" }));
    let stranger = stranger(&daemon, "events");
    let refused = ask(&daemon);
    assert_eq!(refused.status, 503, "{refused:?}");

    stranger.execute_batch("COMMIT").unwrap();
    let first = ask(&daemon).json();
    assert_eq!(first["replay_of"], "cli:job-1", "{first}");
    assert_eq!(ask(&daemon).json()["request_id"], first["request_id"]);
    eventually("it runs", || daemon.ended("completed") == 2);
    assert_eq!(daemon.count("events", "SELECT count(*) FROM events WHERE direction = 'inbound'"), 2);
    daemon.stop();
}

#[test]
fn events_that_a_defect_keeps_from_becoming_requests_are_tried_again() {
    let mut daemon = Daemon::start(&config(json!({})));
    let stranger = Connection::open(ledger(&daemon, "nexus")).unwrap();
    stranger.busy_timeout(common::DEADLINE).unwrap();
    let defect = "CREATE TRIGGER defect BEFORE INSERT ON nexus_requests BEGIN SELECT RAISE(ABORT, 'of the test'); END";
    stranger.execute_batch(defect).unwrap();
    let answer = daemon.open(&Ask::post("/control/send", &json!({ "text": "hello" })));
    eventually("status says so", || daemon.status()["failed_tasks"].to_string().contains("of the test"));
    assert_eq!((daemon.terminal(), &daemon.status()["health"]), (0, &json!("degraded")));

    stranger.execute_batch("DROP TRIGGER defect").unwrap();
    let end = answer.body.end();
    assert_eq!((&end["status"], &end["text"]), (&json!("completed"), &json!("hello")));
    assert_eq!(daemon.count("nexus", "SELECT count(*) FROM runs"), 1);
    daemon.stop();
}

#[test]
fn answers_go_out_while_the_ledger_of_turns_is_locked_and_it_follows_later() {
    let (mut daemon, wanted) = bringing_events();
    let stranger = stranger(&daemon, "agents");
    enable(&daemon, &wanted);
    let all = i64::try_from(EVENTS).unwrap();
    eventually("every answer is sent", || daemon.deliveries("sent") == all);
    unhealthy(&daemon, "agents", "locked");
    assert_eq!(daemon.count("agents", "SELECT count(*) FROM turns"), 0);

    stranger.execute_batch("COMMIT").unwrap();
    eventually("the turns follow", || daemon.count("agents", "SELECT count(*) FROM turns") == all);
    answered_once(&daemon);
    daemon.stop();
}

#[test]
fn a_ledger_that_vanishes_is_missed_and_not_written_until_it_is_back() {
    let (mut daemon, wanted) = bringing_events();
    assert_eq!(daemon.nexus_ok(&["send", "kept"]).trim(), "kept");
    let (path, aside) = (ledger(&daemon, "events"), daemon.workspace().join("aside.db"));
    fs::rename(&path, &aside).unwrap();
    unhealthy(&daemon, "events", "is gone; put the same file back");
    enable(&daemon, &wanted);
    eventually("its adapter is held", || daemon.stdout().contains("holding this account"));
    assert_eq!(lines(daemon.file("acks")), Vec::<String>::new());

    // Another file under that name is no better, and stays as it is.
    fs::write(&path, "").unwrap();
    eventually("health says so", || daemon.status()["reasons"].to_string().contains("is another file"));
    assert_eq!((lines(daemon.file("acks")).len(), fs::read(&path).unwrap().len()), (0, 0));
    let backup = daemon.nexus(&["backup", "copy"]);
    assert!(backup.code != Some(0) && backup.stderr.contains("is another file"), "{backup:?}");
    assert!(!daemon.home().join("copy").exists(), "a copy of a stranger's file was made");

    fs::rename(&aside, &path).unwrap();
    eventually("every event is in", || daemon.accepted() == i64::try_from(EVENTS).unwrap());
    let sent = i64::try_from(EVENTS).unwrap() + 1;
    eventually("every event is answered", || daemon.ended("completed") == sent && daemon.deliveries("sent") == sent);
    eventually("health says that it is over", || daemon.get("/health").status == 200);
    daemon.stop();
    daemon.launch();
    assert_eq!(daemon.accepted(), i64::try_from(EVENTS).unwrap(), "what was accepted was lost with the daemon");
    daemon.stop();
}

#[test]
fn a_log_that_vanishes_is_missed_and_not_written_until_it_is_back() {
    let (mut daemon, wanted) = bringing_events();
    assert_eq!(daemon.nexus_ok(&["send", "kept"]).trim(), "kept");
    let (log, aside) = (daemon.workspace().join("data/events.db-wal"), daemon.workspace().join("aside.wal"));
    fs::rename(&log, &aside).unwrap();
    unhealthy(&daemon, "events", "events.db-wal` is gone; put the same file back");
    enable(&daemon, &wanted);
    eventually("its adapter is held", || daemon.stdout().contains("holding this account"));
    assert_eq!(lines(daemon.file("acks")), Vec::<String>::new());

    fs::rename(&aside, &log).unwrap();
    let all = i64::try_from(EVENTS).unwrap();
    eventually("every event is in", || daemon.accepted() == all && daemon.ended("completed") == all + 1);
    eventually("health says that it is over", || daemon.get("/health").status == 200);
    daemon.kill9();
    daemon.launch();
    assert_eq!(daemon.accepted(), all, "what was accepted was lost with the daemon");
    daemon.stop();
}

#[test]
fn a_ledger_that_is_older_than_the_others_or_was_emptied_is_refused_at_the_start() {
    let mut daemon = Daemon::start(&config(json!({})));
    assert_eq!(daemon.nexus_ok(&["send", "one"]).trim(), "one");
    daemon.stop();
    let kept = daemon.workspace().join("kept");
    fs::create_dir(&kept).unwrap();
    let copy = |name: &str, to: &Path| fs::copy(ledger(&daemon, name), to.join(format!("{name}.db"))).unwrap();
    for name in ["events", "nexus"] {
        copy(name, &kept);
    }
    daemon.launch();
    assert_eq!(daemon.nexus_ok(&["send", "two"]).trim(), "two");
    eventually("the turn is recorded", || daemon.count("agents", "SELECT count(*) FROM turns") == 2);
    daemon.stop();
    for (name, why) in [("events", "is ahead of events.db"), ("nexus", "agents.db is ahead of nexus.db")] {
        let (path, aside) = (ledger(&daemon, name), daemon.workspace().join("aside.db"));
        fs::rename(&path, &aside).unwrap();
        for (older, why) in [(true, why), (false, "is missing, or was emptied, while the others are there")] {
            if older {
                fs::copy(kept.join(format!("{name}.db")), &path).unwrap();
            } else {
                fs::write(&path, "").unwrap();
                let doctor = daemon.nexus(&["doctor"]);
                assert!(doctor.code != Some(0) && doctor.stdout.contains("it has no tables"), "{doctor:?}");
            }
            let ran = daemon.nexus(&["daemon", "start"]);
            assert_eq!(ran.code, Some(EXIT_FAILED), "{ran:?}");
            assert!(ran.stderr.contains(why) && ran.stderr.contains("nexus restore"), "no `{why}` in {ran:?}");
            daemon.nothing_runs();
        }
        fs::rename(&aside, &path).unwrap();
    }
    daemon.launch();
    let ran = daemon.count("nexus", "SELECT count(*) FROM runs");
    assert_eq!((ran, daemon.ended("completed")), (2, 2), "nothing is run again");
    daemon.stop();
}

#[test]
fn a_start_names_the_file_that_is_no_ledger_and_leaves_it_alone() {
    let mut daemon = Daemon::new();
    daemon.configure(&config(json!({})));
    daemon.launch();
    assert_eq!(daemon.nexus_ok(&["send", "kept"]).trim(), "kept");
    daemon.stop();
    for name in ["events", "agents", "identity", "nexus"] {
        let (path, aside) = (ledger(&daemon, name), daemon.workspace().join("aside.db"));
        fs::rename(&path, &aside).unwrap();
        let refused = |said: &[&str]| {
            let ran = daemon.nexus(&["daemon", "start"]);
            assert_eq!(ran.code, Some(EXIT_FAILED), "{ran:?}");
            assert!(ran.stderr.contains(&path.display().to_string()), "{ran:?}");
            assert!(said.iter().all(|part| ran.stderr.contains(part)), "no {said:?} in {ran:?}");
            daemon.nothing_runs();
        };
        refused(&["is missing, or was emptied, while the others are there", "nexus restore"]);
        fs::create_dir(&path).unwrap();
        refused(&["failed to open", "for writing", "Is a directory"]);
        fs::remove_dir(&path).unwrap();
        let garbage = "not a database ".repeat(1_000);
        fs::write(&path, &garbage).unwrap();
        refused(&["failed to open ledger", "not a database"]);
        assert_eq!(fs::read_to_string(&path).unwrap(), garbage, "it was changed");
        fs::rename(&aside, &path).unwrap();
    }
    let [events, nexus] = ["events", "nexus"].map(|name| ledger(&daemon, name));
    let [one, other] = ["aside.db", "aside-too.db"].map(|name| daemon.workspace().join(name));
    fs::rename(&events, &one).unwrap();
    fs::rename(&nexus, &other).unwrap();
    fs::write(&nexus, "not a database ".repeat(1_000)).unwrap();
    let ran = daemon.nexus(&["daemon", "start"]);
    assert!(ran.stderr.contains("events.db` is missing, or was emptied, while the others are there"), "{ran:?}");
    assert!(!events.exists(), "an empty ledger was made beside one that can't be read");
    fs::rename(&one, &events).unwrap();
    fs::rename(&other, &nexus).unwrap();
    daemon.launch();
    assert_eq!(daemon.texts("events", "SELECT content FROM events WHERE direction = 'inbound' ORDER BY seq"), ["kept"]);
    daemon.stop();
}

/// Fills the ledger of events of a stopped daemon with history that nobody has to read again.
fn fill(events: &Path) {
    let events = Connection::open(events).unwrap();
    let rows = format!(
        "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {HISTORY})
         INSERT INTO events (key, event_id, channel, account_id, adapter, direction, sender_id, peer_id, peer_kind, content_type,
           timestamp, received_at, disposition, content)
         SELECT CAST(printf('%016d', i) AS BLOB), 'old:' || i, 'old', 'me', 'old', 'inbound', 's', 'p', 'dm', 'text', 1, 1, 'history',
           printf('%0500d', i) FROM n"
    );
    events.execute_batch(&rows).unwrap();
}

/// As a disk that fails leaves it: a page in the middle is of something else.
fn damage(path: &Path) {
    let middle = fs::metadata(path).unwrap().len() / 2 / PAGE_BYTES * PAGE_BYTES;
    let file = fs::File::options().write(true).open(path).unwrap();
    file.write_all_at(&[0xAB; PAGE_BYTES as usize], middle).unwrap();
}

#[test]
fn a_page_that_was_damaged_is_told_after_a_crash_until_a_backup_is_in_place() {
    let mut daemon = Daemon::start(&config(json!({})));
    assert_eq!(daemon.nexus_ok(&["send", "kept"]).trim(), "kept");
    daemon.stop();
    fill(&ledger(&daemon, "events"));
    daemon.launch();
    let followed = format!("SELECT count(*) FROM applied WHERE seq >= {HISTORY}");
    eventually("who follows the events has read them", || daemon.count("identity", &followed) == 1);
    daemon.stop();
    let backup = common::backup::make(&daemon);
    // Nothing of the middle is in the log then, and nobody reads it.
    daemon.launch();
    daemon.kill9();
    daemon.nothing_runs();
    damage(&ledger(&daemon, "events"));

    daemon.launch();
    let told = |daemon: &Daemon| {
        eventually("health names the file", || daemon.get("/health").json()["reasons"].to_string().contains("`events.db` is damaged"));
        let health = daemon.get("/health");
        assert_eq!((health.status, &health.json()["ledgers"]["events_db"]), (503, &json!("error")), "{health:?}");
        assert_eq!(health.json()["ledgers"]["nexus_db"], "ok", "{health:?}");
        let status = daemon.nexus(&["daemon", "status"]);
        for part in ["unhealthy", "`events.db` is damaged", "nexus restore"] {
            assert!(status.stdout.contains(part), "no `{part}` in {status:?}");
        }
        assert!(daemon.stdout().contains("a ledger is damaged"), "the log doesn't say so");
    };
    told(&daemon);
    // A stop that is clean makes nothing whole.
    daemon.stop();
    daemon.launch();
    told(&daemon);
    daemon.stop();

    common::backup::restored(&daemon, &backup, &[]);
    let found_sound = |daemon: &Daemon| daemon.stdout().matches("the files of the ledgers are sound").count();
    let before = found_sound(&daemon);
    daemon.launch();
    eventually("the files are looked at", || found_sound(&daemon) > before);
    assert_eq!(daemon.get("/health").status, 200);
    daemon.stop();
    let last: Value = serde_json::from_str(&fs::read_to_string(daemon.state("last-run.json")).unwrap()).unwrap();
    assert_eq!((&last["clean"], &last["check_due"]), (&json!(true), &json!(false)), "{last}");
}

#[test]
fn a_look_that_a_full_disk_ended_is_told_until_there_is_room() {
    // One with less room than the most that can be asked for.
    let small = tempfile::tempdir_in("/dev/shm").unwrap();
    let mut daemon = Daemon::new();
    let with_floor = |min_free_mb: u64| {
        let mut wanted = config(json!({}));
        wanted["ledgers"] = json!({ "directory": small.path(), "min_free_mb": min_free_mb });
        wanted
    };
    daemon.configure(&with_floor(1));
    daemon.launch();
    daemon.stop();
    fill(&small.path().join("events.db"));
    daemon.launch();
    daemon.kill9();
    daemon.nothing_runs();

    daemon.configure(&with_floor(MIN_FREE_MB_MAX));
    daemon.launch();
    let is_told = |daemon: &Daemon| {
        let reasons = daemon.get("/health").json()["reasons"].to_string();
        reasons.contains("`events.db` was not looked at to its end") && reasons.contains("the disk is nearly full")
    };
    eventually("health names the file", || is_told(&daemon));
    assert_eq!(daemon.get("/health").status, 503, "for the disk");
    let status = daemon.nexus(&["daemon", "status"]);
    assert!(status.stdout.contains("was not looked at to its end"), "{status:?}");
    let found_sound = |daemon: &Daemon| daemon.stdout().matches("the files of the ledgers are sound").count();
    let before = found_sound(&daemon);
    daemon.configure(&with_floor(1));
    daemon.nexus_ok(&["daemon", "reload"]);
    eventually("the files are looked at, once there is room", || found_sound(&daemon) > before);
    eventually("nothing is told any more", || daemon.get("/health").json()["reasons"] == json!([]));
    daemon.stop();
}
