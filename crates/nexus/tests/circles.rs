//! Sessions that go round in circles, end to end: a heartbeat that is routed to an agent, an adapter that brings back
//! what was sent, a mailbox that answers everything by itself. Each is stopped, and the daemon says so.
#![allow(clippy::unwrap_used)]

mod common;

use common::loops::loop_platform;
use common::{Daemon, config, eventually, lines};
use serde_json::{Value, json};
use std::fs;

/// An agent that says something else each time.
const VARIES: &str = "sh -c 'cat > /dev/null; echo I am process $$'";

/// A daemon that talks with that peer, who says `hello` first and then answers with what a shell makes of `answer`.
fn with_peer(answer: &str, access: Value) -> Daemon {
    let mut daemon = Daemon::new();
    fs::write(daemon.workspace().join("loop.sh"), loop_platform("peer", &format!("text=$(echo \"$text\"); echo \"{answer}\" >> said")))
        .unwrap();
    fs::write(daemon.workspace().join("said"), "hello\n").unwrap();
    let mut wanted = config(json!({ "loop": { "command": "sh loop.sh", "accounts": { "me": {} } } }));
    wanted["agents"] = json!({ "default": "varies", "varies": { "runner": "command", "command": VARIES } });
    wanted["access"] = access;
    daemon.configure(&wanted);
    daemon.launch();
    daemon
}

fn reasons(daemon: &Daemon) -> Vec<String> {
    let status: Value = serde_json::from_str(&daemon.nexus(&["daemon", "status", "--json"]).stdout).unwrap();
    status["reasons"].as_array().unwrap().iter().map(|reason| reason.as_str().unwrap().to_owned()).collect()
}

/// Waits until the session is stopped for that reason, after so many of its turns.
fn stopped(daemon: &Daemon, session: &str, why: &str, turns: i64) {
    eventually("it is stopped", || daemon.ended("handled_by_automation") > 0);
    eventually("its turns have ended", || daemon.ended("completed") == turns);
    let ends = daemon.texts("nexus", "SELECT DISTINCT reason FROM nexus_requests WHERE status = 'handled_by_automation'");
    assert!(ends.len() == 1 && ends[0].starts_with(&format!("breaker: {why}, ")), "{ends:?}");
    let told = reasons(daemon);
    assert!(told.contains(&format!("session `{session}` goes round in circles and is stopped: {why}")), "{told:?}");
    let shown: Value = serde_json::from_str(&daemon.nexus_ok(&["sessions", "show", session, "--json"])).unwrap();
    assert_eq!(shown["session"]["stopped"], why);
    let listed: Value = serde_json::from_str(&daemon.nexus_ok(&["sessions", "list", "--json"])).unwrap();
    assert_eq!(listed["sessions"][0]["stopped"], why);
}

#[test]
fn a_heartbeat_that_leads_to_an_agent_is_stopped_and_health_says_so() {
    let mut wanted = config(json!({}));
    wanted["timer"] = json!({ "heartbeat_interval_ms": 1000 });
    wanted["agents"] = json!({ "varies": { "runner": "command", "command": VARIES } });
    wanted["access"]["policies"] = json!([{
        "name": "beat", "match": { "principal": { "type": "system" } }, "effect": "allow", "session": { "agent": "varies" },
    }]);
    let daemon = Daemon::start(&wanted);
    stopped(&daemon, "system:system", "the same message without a person behind it", 5);
    assert_eq!(daemon.get("/health").json()["status"], "degraded");
}

#[test]
fn an_adapter_that_brings_back_what_is_sent_is_stopped_though_the_words_change() {
    let daemon = with_peer("$text", json!({ "default": "allow" }));
    stopped(&daemon, "dm:loop:peer", "what the agent said came back", 5);
    assert_eq!(lines(daemon.workspace().join("said")).len(), 6, "the first message, and five answers");
    assert_eq!(daemon.ended("handled_by_automation"), 1);
}

#[test]
fn a_mailbox_that_answers_everything_by_itself_is_stopped_whoever_it_belongs_to() {
    let (changes, same) = ("I am out of office until 24.12., ticket $$", "I am out of office");
    let (stranger, owner) = (json!({ "default": "allow" }), json!({ "owner": ["loop:*"] }));
    for (answer, access, session) in [(changes, stranger, "dm:loop:peer"), (same, owner, "dm:owner")] {
        let daemon = with_peer(answer, access);
        // The first message, and ten of its answers.
        stopped(&daemon, session, "the same message in answer to each of ours", 11);
        assert_eq!(daemon.ended("handled_by_automation"), 1);
        assert_eq!(lines(daemon.workspace().join("said")).len(), 12);
    }
}
