//! The hook `onError`: each stage that fails, what fails once nobody waits for it any more, and what a start ends.
#![allow(clippy::unwrap_used)]

mod automation;
mod common;

use automation::{doing, put};
use common::{Ask, Daemon, NEXUS, config, eventually, fake, find, json_lines, replace};
use serde_json::{Value, json};
use std::fs;
use std::path::PathBuf;

/// Writes a program among the plugins that does with a call what `mode` says.
fn plugin(daemon: &Daemon, name: &str, mode: &str, keys: &Value) {
    let program = PathBuf::from(NEXUS).with_file_name("examples").join("fake-plugin");
    assert!(program.exists(), "{} is missing: cargo build --example fake-plugin", program.display());
    let place = daemon.workspace().join("plugins").join(name);
    fs::create_dir_all(&place).unwrap();
    replace(&place.join(".mode"), mode);
    let mut file = json!({ "command": shell_words::quote(&program.to_string_lossy()), "timeout_ms": 20_000 });
    file.as_object_mut().unwrap().extend(keys.as_object().unwrap().clone());
    replace(&place.join("plugin.yaml"), &file.to_string());
}

/// A place whose plugin `sees` is told of errors.
fn place() -> Daemon {
    let daemon = Daemon::new();
    plugin(&daemon, "sees", "continue", &json!({ "hooks": ["onError"], "mode": "observe", "sections": ["event", "status"] }));
    daemon
}

fn with(names: &[&str]) -> Value {
    let mut wanted = config(json!({}));
    wanted["plugins"]["enabled"] = json!(names);
    wanted
}

/// An adapter that tells one event and does this with the answer to it.
fn answering(send: &str) -> Value {
    let mut adapter = fake(json!({ "events": 1, "send": send }));
    adapter["send"] = json!({ "timeout_ms": 1000 });
    adapter
}

/// The first error that the plugin is told of: stage, message, and how the request stood.
fn told(daemon: &Daemon) -> (String, String, Value) {
    let log = daemon.workspace().join("plugins/sees/.log");
    eventually("it is told", || fs::read_to_string(&log).is_ok_and(|text| text.ends_with('\n')));
    let mut seen = json_lines(&log);
    assert_eq!(seen.len(), 1, "{seen:?}");
    let call = seen.remove(0);
    assert_eq!(call["hook"], "onError", "{call}");
    let text = |key: &str| call["error"][key].as_str().unwrap_or_default().to_owned();
    (text("stage"), text("message"), call["request"].clone())
}

#[test]
fn each_stage_before_the_answer_is_told() {
    for (hook, stage) in [
        ("afterReceiveEvent", "receiveEvent"),
        ("afterResolveIdentity", "resolveIdentity"),
        ("afterResolveAccess", "resolveAccess"),
        ("afterRunAutomations", "runAutomations"),
        ("afterAssembleContext", "assembleContext"),
        ("afterRunAgent", "runAgent"),
    ] {
        let mut daemon = place();
        plugin(&daemon, "bad", "throw", &json!({ "hooks": [hook], "mode": "mutate", "on_error": "fail" }));
        daemon.configure(&with(&["sees", "bad"]));
        daemon.launch();
        let end = daemon.open(&Ask::post("/control/send", &json!({ "text": "hello" }))).body.end();
        assert_eq!(end["status"], "failed", "{hook}: {end}");
        let (at, message, request) = told(&daemon);
        assert_eq!(at, stage, "{hook}: {message}");
        assert!(message.contains("plugin `bad`") && message.contains("boom"), "{hook}: {message}");
        assert_eq!(request["status"]["status"], "failed", "{hook}: {request}");
    }
}

#[test]
fn an_answer_that_surely_or_perhaps_did_not_arrive_is_told() {
    for (send, ended, says) in [("not_found", "failed", "no such peer"), ("deliver_then_hang", "uncertain", "")] {
        let mut daemon = place();
        let mut wanted = with(&["sees"]);
        wanted["adapters"] = json!({ "fake": answering(send) });
        daemon.configure(&wanted);
        daemon.launch();
        let (at, message, request) = told(&daemon);
        assert_eq!((at.as_str(), daemon.deliveries(ended)), ("deliverResponse", 1), "{send}: {message}");
        assert!(!message.is_empty() && message.contains(says), "{send}: {message}");
        assert_eq!((&request["event"]["channel"], &request["status"]["status"]), (&json!("fake"), &json!("completed")), "{send}");
    }
}

#[test]
fn an_automations_answer_that_did_not_arrive_is_told() {
    let mut daemon = place();
    put(&daemon, "x.js", &doing("x", "", "return { reply: 'no' };"));
    let mut wanted = with(&["sees"]);
    wanted["adapters"] = json!({ "fake": answering("not_found") });
    daemon.configure(&wanted);
    daemon.launch();
    let (at, message, request) = told(&daemon);
    assert_eq!(at, "deliverResponse", "{message}");
    assert!(message.contains("no such peer"), "{message}");
    let status = &request["status"];
    assert_eq!((&status["status"], &status["reason"]), (&json!("handled_by_automation"), &json!("automation:x")), "{request}");
}

#[test]
fn an_answer_that_expired_while_no_daemon_ran_is_told() {
    let mut daemon = place();
    let mut wanted = with(&["sees"]);
    wanted["adapters"] = json!({ "fake": answering("down") });
    daemon.configure(&wanted);
    daemon.launch();
    eventually("an attempt failed", || daemon.count("nexus", "SELECT count(*) FROM deliveries WHERE attempts > 0") == 1);
    daemon.kill9();
    let ledger = rusqlite::Connection::open(daemon.workspace().join("data/nexus.db")).unwrap();
    assert_eq!(ledger.execute("UPDATE deliveries SET status = 'pending', expires_at = 1", []).unwrap(), 1);
    drop(ledger);
    daemon.launch();
    let (at, message, _) = told(&daemon);
    assert_eq!(at, "deliverResponse", "{message}");
    assert!(message.contains("within its time to live"), "{message}");
    assert_eq!(daemon.deliveries("expired"), 1);
}

/// A place whose daemon was killed while it sent an answer.
fn cut_off() -> Daemon {
    let mut daemon = place();
    let mut adapter = fake(json!({ "events": 1, "send": "hang" }));
    adapter["send"] = json!({ "timeout_ms": 3_600_000 });
    let mut wanted = with(&["sees"]);
    wanted["adapters"] = json!({ "fake": adapter });
    daemon.configure(&wanted);
    daemon.launch();
    eventually("it is being sent", || daemon.deliveries("sending") == 1);
    daemon.kill9();
    daemon
}

#[test]
fn an_answer_whose_send_a_crash_cut_off_is_told_by_the_next_start() {
    let mut daemon = cut_off();
    daemon.launch();
    let (at, message, request) = told(&daemon);
    assert_eq!((at.as_str(), daemon.deliveries("uncertain")), ("deliverResponse", 1), "{message}");
    assert!(message.contains("it may or may not have arrived"), "{message}");
    assert_eq!((&request["event"]["channel"], &request["status"]["status"]), (&json!("fake"), &json!("completed")));
}

#[test]
fn an_answer_whose_send_a_crash_cut_off_is_told_until_a_plugin_has_heard_of_it() {
    let mut daemon = cut_off();
    let place = daemon.workspace().join("plugins/sees");
    replace(&place.join(".mode"), "hang");
    daemon.launch();
    told(&daemon);
    daemon.kill9();
    // What the plugin did with it, nobody knows.
    replace(&place.join(".mode"), "continue");
    fs::remove_file(place.join(".log")).unwrap();
    daemon.launch();
    let (at, message, _) = told(&daemon);
    assert_eq!(at, "deliverResponse", "{message}");
    assert!(message.contains("it may or may not have arrived"), "{message}");
    let are_told =
        "SELECT count(*) FROM counters WHERE name = 'cut_off_told' AND value = (SELECT value FROM counters WHERE name = 'epoch')";
    eventually("that it was told is on disk", || daemon.count("nexus", are_told) == 1);
}

#[test]
fn a_request_that_a_start_ends_is_told_and_counted() {
    let mut daemon = place();
    let mut wanted = with(&["sees", "analytics"]);
    wanted["pipeline"] = json!({ "on_interrupted": "fail" });
    wanted["agents"] = json!({ "default": "stuck", "stuck": { "runner": "command", "command": "sleep 1000" } });
    daemon.configure(&wanted);
    daemon.launch();
    let asked = daemon.open(&Ask::post("/control/send", &json!({ "text": "hello" })));
    eventually("its agent runs", || daemon.count("nexus", "SELECT count(*) FROM runs WHERE status = 'running'") == 1);
    daemon.kill9();
    drop(asked);
    daemon.launch();
    let (at, message, request) = told(&daemon);
    assert_eq!((at.as_str(), message.as_str()), ("runAgent", "interrupted (on_interrupted: fail)"));
    assert_eq!((&request["event"]["content"], &request["status"]["status"]), (&json!("hello"), &json!("failed")));
    let counted = r#"nexus_analytics_requests_total{channel="cli",agent="stuck",status="failed"}"#;
    assert_eq!((daemon.metric(counted), daemon.metric(r#"nexus_requests_total{status="failed"}"#)), (1, 1));
    assert!(find("it has ended", || daemon.texts("nexus", "SELECT reason FROM nexus_requests").pop()).contains("on_interrupted"));
}
