//! Running again what came in: a new request, linked to the first, which keeps its end; and what is left
//! of a request that was interrupted.
#![allow(clippy::unwrap_used)]

mod common;

use common::{Daemon, Ran, config, eventually, fake, find, json_lines, lines, only};
use serde_json::{Value, json};
use std::fs;
use std::time::Duration;

const EXIT_FAILED: Option<i32> = Some(1);
const EXIT_NOT_RUNNING: Option<i32> = Some(3);
const EXIT_NOT_FOUND: Option<i32> = Some(4);
const RUNNING: &str = "SELECT count(*) FROM runs WHERE status = 'running'";
/// Running requests get 30 s to complete before a stop interrupts them.
const STOP_DEADLINE: Duration = Duration::from_secs(60);

/// A daemon whose `echo` has answered one event of a fake platform; and the log of sends.
fn answered() -> (Daemon, String) {
    let mut daemon = Daemon::new();
    let sends = daemon.file("sends");
    daemon.configure(&only("fake", json!({ "events": 1, "send_log": sends })));
    daemon.launch();
    eventually("the event is answered", || daemon.ended("completed") == 1 && daemon.deliveries("sent") == 1);
    (daemon, sends)
}

/// A daemon whose agent says something and then waits for a gate to open, while it works on one event.
fn waiting_agent() -> (Daemon, String, String) {
    let mut daemon = Daemon::new();
    let (sends, gate) = (daemon.file("sends"), daemon.file("gate"));
    let mut wanted = only("fake", json!({ "events": 1, "send_log": sends }));
    let agent = format!("sh -c 'cat >/dev/null; echo half of it; until test -e {gate}; do sleep 0.1; done; echo and the rest'");
    wanted["agents"] = json!({ "default": "waits", "waits": { "runner": "command", "command": agent } });
    daemon.configure(&wanted);
    daemon.launch();
    eventually("the agent runs", || daemon.count("nexus", RUNNING) == 1);
    (daemon, sends, gate)
}

fn request_ids(daemon: &Daemon) -> Vec<String> {
    daemon.texts("nexus", "SELECT request_id FROM nexus_requests ORDER BY event_seq")
}

fn trace(daemon: &Daemon, id: &str) -> Value {
    serde_json::from_str(&daemon.nexus_ok(&["trace", "show", id, "--json"])).unwrap()
}

fn refused(ran: &Ran, code: Option<i32>, why: &str) {
    assert_eq!(ran.code, code, "{ran:?}");
    assert!(ran.stderr.contains(why), "no `{why}` in {ran:?}");
    assert_eq!(ran.stdout, "", "{ran:?}");
}

#[test]
fn a_replay_is_answered_where_the_message_was() {
    let (daemon, sends) = answered();
    let before = daemon.rows("events", "SELECT last_event_id, last_received_at, events FROM cursors", cursor);
    let said = daemon.nexus_ok(&["events", "replay", "fake:me-1", "--wait"]);
    let ids = request_ids(&daemon);
    assert_eq!(ids.len(), 2);
    assert_eq!(said.trim(), format!("{} completed", ids[1]));
    eventually("it is answered again", || daemon.deliveries("sent") == 2);
    let calls = json_lines(&sends);
    for call in &calls {
        assert_eq!((&call["to"], &call["reply_to_id"], &call["text"]), (&json!("p0"), &json!("me-1"), &json!("message 1")));
    }
    assert_ne!(calls[0]["idempotency_key"], calls[1]["idempotency_key"]);
    assert_eq!(daemon.rows("events", "SELECT last_event_id, last_received_at, events FROM cursors", cursor), before);
    assert_eq!(daemon.adapter("fake/me")["events"], 1, "it is no news of the account");
    check_links(&daemon, &ids);
}

fn cursor(row: &rusqlite::Row<'_>) -> rusqlite::Result<(String, i64, i64)> {
    Ok((row.get(0)?, row.get(1)?, row.get(2)?))
}

fn check_links(daemon: &Daemon, ids: &[String]) {
    let (old, new) = (trace(daemon, &ids[0]), trace(daemon, &ids[1]));
    assert_eq!((&old["replay_of"], &old["replays"][0]["request_id"]), (&Value::Null, &json!(ids[1])), "{old}");
    assert_eq!((&new["replay_of"]["request_id"], &new["replays"]), (&json!(ids[0]), &json!([])), "{new}");
    assert_eq!(new["event"]["replay_of"], "fake:me-1", "{new}");
    let text = daemon.nexus_ok(&["trace", "show", &ids[0]]);
    assert!(text.contains(&format!("Replayed as: {}", ids[1])), "{text}");
    let text = daemon.nexus_ok(&["trace", "show", &ids[1]]);
    assert!(text.contains(&format!("Replay of: {}", ids[0])), "{text}");
    let event: Value = serde_json::from_str(&daemon.nexus_ok(&["events", "show", &ids[1], "--json"])).unwrap();
    assert_eq!(event["replay_of"], "fake:me-1");
}

#[test]
fn a_chain_of_replays_names_its_first_event() {
    let (daemon, sends) = answered();
    for n in 1..=3_usize {
        // By request id, by the event's number, by the event's id.
        let ids = request_ids(&daemon);
        let numbers = daemon.texts("events", "SELECT CAST(max(seq) AS TEXT) FROM events WHERE direction = 'inbound'");
        let events = daemon.texts("events", "SELECT event_id FROM events WHERE direction = 'inbound' ORDER BY seq");
        let newest = [&ids[ids.len() - 1], &numbers[0], &events[events.len() - 1]][n - 1].clone();
        daemon.nexus_ok(&["events", "replay", &newest, "--wait"]);
        eventually("it is answered", || daemon.deliveries("sent") == i64::try_from(n).unwrap() + 1);
    }
    let named = daemon.texts("events", "SELECT replay_of FROM events WHERE replay_of IS NOT NULL");
    assert_eq!(named, ["fake:me-1"; 3]);
    assert!(json_lines(&sends).iter().all(|call| call["reply_to_id"] == "me-1"));
    assert_eq!(trace(&daemon, "fake:me-1")["replays"].as_array().map(Vec::len), Some(3));
    let newest = daemon.count("events", "SELECT max(seq) FROM events WHERE direction = 'inbound'");
    eventually("contacts have followed", || daemon.count("identity", "SELECT coalesce(max(seq), 0) FROM applied") >= newest);
    assert_eq!(daemon.count("identity", "SELECT messages FROM contacts WHERE channel = 'fake'"), 1, "its sender said it once");
}

#[test]
fn the_same_key_is_one_replay_also_after_a_kill() {
    let (mut daemon, _) = answered();
    let ask = |daemon: &Daemon| daemon.post("/control/events/fake:me-1/replay", &json!({ "key": "once" })).json();
    let first = ask(&daemon);
    assert_eq!((&first["new"], &first["replay_of"]), (&json!(true), &json!("fake:me-1")), "{first}");
    daemon.kill9();
    daemon.launch();
    eventually("it runs all the same", || daemon.ended("completed") == 2);
    let again = ask(&daemon);
    assert_eq!(again["new"], false);
    for same in ["event_id", "event_seq", "request_id"] {
        assert_eq!(again[same], first[same], "{same}");
    }
    assert_eq!(request_ids(&daemon).len(), 2);
    // Who asks again to wait is told the end that it missed.
    let waited = daemon.post("/control/events/fake:me-1/replay", &json!({ "key": "once", "wait": true }));
    let end: Value = serde_json::from_str(waited.body.lines().rfind(|line| line.contains("\"end\"")).unwrap()).unwrap();
    assert_eq!((&end["status"], &end["request_id"]), (&json!("completed"), &first["request_id"]));
    assert_eq!(daemon.post("/control/events/fake:me-1/replay", &json!({ "key": "no blank" })).status, 400);
}

#[test]
fn what_was_told_here_is_answered_here() {
    let daemon = Daemon::start(&config(json!({})));
    daemon.nexus_ok(&["send", "--event-id", "job-1", "hello"]);
    assert_eq!(daemon.nexus_ok(&["events", "replay", "cli:job-1"]), "hello\n");
    let end: Value = serde_json::from_str(&daemon.nexus_ok(&["events", "replay", "cli:job-1", "--json"])).unwrap();
    assert_eq!((&end["status"], &end["text"], &end["replay_of"]), (&json!("completed"), &json!("hello"), &json!("cli:job-1")), "{end}");
    assert_eq!(request_ids(&daemon).len(), 3);
}

#[test]
fn what_cannot_be_run_again_is_refused_with_the_reason() {
    let (mut daemon, _) = answered();
    refused(&daemon.nexus(&["trace", "retry", "fake:me-1"]), EXIT_FAILED, "`nexus events replay fake:me-1`");
    for verb in [["events", "replay", "fake:none"], ["trace", "retry", "req_none"], ["events", "replay", "4711"]] {
        refused(&daemon.nexus(&verb), EXIT_NOT_FOUND, "no event");
    }
    let outbound = || daemon.texts("events", "SELECT event_id FROM events WHERE direction = 'outbound'");
    let sent = find("what was sent is recorded", || outbound().pop());
    refused(&daemon.nexus(&["events", "replay", &sent]), EXIT_FAILED, "was sent");
    assert_eq!(request_ids(&daemon).len(), 1);
    daemon.stop();
    for verb in [["events", "replay", "fake:me-1"], ["trace", "retry", "fake:me-1"]] {
        refused(&daemon.nexus(&verb), EXIT_NOT_RUNNING, "not running");
    }
}

#[test]
fn history_can_be_run_but_not_retried() {
    let mut daemon = Daemon::new();
    let mut old = fake(json!({ "supports": ["monitor", "send", "backfill"], "backfill_events": 1, "backfill_old": 1 }));
    old["accounts"]["me"]["backfill"] = json!(true);
    daemon.configure(&config(json!({ "fake": old })));
    daemon.launch();
    eventually("the history is there", || daemon.accepted() == 1);
    assert_eq!(daemon.texts("events", "SELECT disposition FROM events"), ["history"]);
    refused(&daemon.nexus(&["trace", "retry", "fake:me-1"]), EXIT_FAILED, "is history");
    assert!(request_ids(&daemon).is_empty());
    let said = daemon.nexus_ok(&["events", "replay", "fake:me-1", "--wait"]);
    assert!(said.trim().ends_with(" completed"), "{said}");
}

#[test]
fn an_interrupted_request_is_retried_and_keeps_its_end() {
    let (mut daemon, sends, gate) = waiting_agent();
    refused(&daemon.nexus(&["trace", "retry", "fake:me-1"]), EXIT_FAILED, "is still open: processing");
    daemon.kill9();
    daemon.launch();
    eventually("it failed, since it may have acted", || daemon.ended("failed") == 1);
    let old = request_ids(&daemon).remove(0);
    eventually("its sender is told", || !lines(&sends).is_empty());
    let told = json_lines(&sends).remove(0);
    assert!(told["text"].as_str().unwrap().contains(&format!("`nexus trace retry {old}`")), "{told}");
    let text = daemon.nexus_ok(&["trace", "show", &old]);
    for part in ["may have acted", "attempt 1: interrupted", "Run again: nexus trace retry", "Attempts: 1"] {
        assert!(text.contains(part), "no `{part}` in {text}");
    }
    let failed = daemon.texts("nexus", "SELECT status || reason || completed_at || trace FROM nexus_requests");

    let new = daemon.nexus_ok(&["trace", "retry", &old]).trim().to_owned();
    assert!(new.starts_with("req_") && new != old, "{new}");
    refused(&daemon.nexus(&["trace", "retry", &old]), EXIT_FAILED, &format!("`{new}` runs the same event and is still open"));
    fs::write(gate, "").unwrap();
    eventually("the retry is answered", || daemon.ended("completed") == 1 && lines(&sends).len() == 2);
    let answer = json_lines(&sends).remove(1);
    assert_eq!((&answer["text"], &answer["reply_to_id"]), (&json!("half of it\nand the rest"), &json!("me-1")));
    let of_old = "SELECT status || reason || completed_at || trace FROM nexus_requests ORDER BY event_seq LIMIT 1";
    assert_eq!(daemon.texts("nexus", of_old), failed, "an end was rewritten");
    assert_eq!(request_ids(&daemon), [old, new]);
}

#[test]
fn a_graceful_stop_keeps_what_the_agent_had_said() {
    let (mut daemon, _, _) = waiting_agent();
    daemon.signal(common::Signal::TERM);
    assert_eq!(daemon.wait_within(STOP_DEADLINE).code(), Some(0));
    daemon.launch();
    eventually("it failed, since it may have acted", || daemon.ended("failed") == 1);
    let old = trace(&daemon, "fake:me-1");
    let response = &old["request"]["trace"]["response"];
    assert_eq!((&response["content"], &response["stop_reason"]), (&json!("half of it"), &json!("aborted")), "{old}");
    assert_eq!(daemon.count("agents", "SELECT count(*) FROM turns"), 0, "half an answer is no turn");
    let text = daemon.nexus_ok(&["trace", "show", "fake:me-1"]);
    assert!(text.contains("Response (aborted") && text.contains("  half of it"), "{text}");
}
