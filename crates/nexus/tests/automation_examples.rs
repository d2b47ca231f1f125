//! The automations of the documentation, with a real daemon.
#![allow(clippy::unwrap_used)]

mod automation;
mod common;

use automation::{example, put, report, sent, text_of, triggers};
use common::model::{Model, text};
use common::{Ask, DEADLINE, Daemon, Response, config, eventually, fake, http, json_lines, lines, only};
use serde_json::{Value, json};
use std::fs;
use std::net::TcpStream;

/// Every second.
fn with_heartbeats(mut wanted: Value) -> Value {
    wanted["timer"]["heartbeat_interval_ms"] = json!(1000);
    wanted
}

fn heartbeats(daemon: &Daemon) -> i64 {
    daemon.count("nexus", "SELECT count(*) FROM nexus_requests WHERE channel = 'timer' AND completed_at IS NOT NULL")
}

/// Some more heartbeats came to their end.
fn wait_for_heartbeats(daemon: &Daemon, more: i64) {
    let before = heartbeats(daemon);
    eventually("heartbeats come and go", || heartbeats(daemon) >= before + more);
}

#[test]
fn a_condition_at_a_heartbeat_has_an_agent_called_once() {
    let mut daemon = Daemon::new();
    put(&daemon, "undelivered.ts", &example("undelivered"));
    let mut wanted = with_heartbeats(config(json!({ "fake": fake(json!({ "events": 0, "send": "not_found" })) })));
    wanted["agents"] = json!({ "default": "echo", "helper": { "runner": "echo" } });
    wanted["automations"] = json!({ "grants": { "undelivered": ["ledger.query"] } });
    daemon.configure(&wanted);
    daemon.launch();
    wait_for_heartbeats(&daemon, 2);
    assert_eq!(daemon.count("nexus", "SELECT count(*) FROM runs"), 0, "nothing is wrong yet");
    // One message that can't be delivered: the peer is not there.
    let lines = daemon.file("lines");
    let event = json!({
        "event_id": "fake:1", "timestamp": 1, "content": "hello", "content_type": "text", "channel": "fake", "account_id": "me",
        "sender_id": "u1", "peer_id": "p1", "peer_kind": "dm",
    });
    fs::write(&lines, format!("{event}\n")).unwrap();
    wanted["adapters"]["fake"] = fake(json!({ "events": 0, "send": "not_found", "lines_file": lines }));
    daemon.configure(&wanted);
    daemon.nexus_ok(&["daemon", "reload"]);
    let session = "SELECT count(*) FROM runs WHERE session = 'system:automation@undelivered' AND agent = 'helper'";
    eventually("the agent is called", || daemon.count("nexus", session) == 1);
    wait_for_heartbeats(&daemon, 3);
    assert_eq!(daemon.count("nexus", session), 1, "once");
    let asked = "SELECT content FROM messages m WHERE role = 'user' AND content LIKE '%could not be delivered%'";
    eventually("it was asked", || daemon.texts("agents", asked).len() == 1);
    assert_eq!(report(&daemon, "undelivered")["disabled_itself"], true);
    assert!(daemon.nexus_ok(&["automation", "list"]).contains("disabled itself"));
    assert!(daemon.nexus_ok(&["daemon", "status", "--verbose"]).contains("undelivered disabled ("));
    // It stays so over a restart, and a person enables it again.
    daemon.stop();
    daemon.launch();
    wait_for_heartbeats(&daemon, 2);
    assert_eq!(daemon.count("nexus", session), 1);
    daemon.nexus_ok(&["automation", "enable", "undelivered"]);
    eventually("it is called again", || daemon.count("nexus", session) == 2);
}

#[test]
fn a_model_says_where_a_message_goes() {
    let model = Model::start(["Spam.", "urgent", "A question, I think"].map(|said| text("openai", said)).to_vec());
    let mut daemon = Daemon::new();
    put(&daemon, "classify.ts", &example("classify"));
    let mut wanted = config(json!({}));
    wanted["agents"] = json!({
        "default": "echo", "helper": { "runner": "command", "command": "sh -c 'cat >/dev/null; echo helped'" },
        "small": { "runner": "llm", "url": model.url(), "model": "m" },
    });
    wanted["automations"] = json!({ "grants": { "classify": ["llm"] } });
    daemon.configure(&wanted);
    daemon.launch();
    let spam = sent(&daemon, "buy now");
    assert_eq!((&spam["status"], &spam["reason"]), (&json!("handled_by_automation"), &json!("automation:classify")), "{spam}");
    assert_eq!(text_of(&sent(&daemon, "fire!"), "text").trim(), "helped");
    let answered = sent(&daemon, "what is this?");
    assert_eq!(answered["text"], "A model takes this for: question.\n\nwhat is this?", "{answered}");
    let asked = model.asked();
    assert_eq!(asked.len(), 3);
    assert!(asked[1].1.to_string().contains("fire!"), "{asked:?}");
    let found = triggers(&daemon);
    assert_eq!((&found["evaluated"], &found["results"][0]["did"]), (&json!(1), &json!(["enrich"])), "{found}");
}

#[test]
fn somebody_is_asked_how_it_goes_once_a_day() {
    let mut daemon = Daemon::new();
    put(&daemon, "check-in.ts", &example("check-in"));
    let log = daemon.file("sends");
    let mut wanted = with_heartbeats(only("fake", json!({ "events": 0, "send_log": log })));
    wanted["automations"] = json!({ "grants": { "check-in": ["send"] } });
    daemon.configure(&wanted);
    daemon.launch();
    eventually("the message is sent", || lines(&log).len() == 1);
    assert!(lines(&log)[0].contains("How is it going?"), "{:?}", lines(&log));
    wait_for_heartbeats(&daemon, 2);
    daemon.kill9();
    daemon.launch();
    wait_for_heartbeats(&daemon, 2);
    assert_eq!(lines(&log).len(), 1);
    assert!(report(&daemon, "check-in")["state"]["asked_at"].as_i64().is_some_and(|at| at > 0));
}

/// What a shop sends to the bundled receiver.
fn posted(address: &str, n: u32, body: &str) -> Response {
    let socket = TcpStream::connect(address).unwrap();
    socket.set_read_timeout(Some(DEADLINE)).unwrap();
    let headers = vec![("content-type", "application/json".to_owned()), ("x-request-id", n.to_string())];
    let ask = Ask { method: "POST", path: "/shop", host: "localhost", headers, body: Some(body.to_owned()) };
    http::exchange(Box::new(socket), &ask).unwrap()
}

#[test]
fn small_payments_go_to_no_agent() {
    let mut daemon = Daemon::new();
    put(&daemon, "large-payments.ts", &example("large-payments"));
    let address = http::free_address();
    let account = json!({ "config": { "verify": "none", "bind": address } });
    let mut wanted = config(json!({ "hooks": { "command": "builtin:webhook", "accounts": { "shop": account } } }));
    let allow = json!({ "name": "shop", "effect": "allow", "match": { "principal": { "type": "webhook" } } });
    wanted["access"] = json!({ "policies": [allow] });
    daemon.configure(&wanted);
    daemon.launch();
    eventually("it listens", || TcpStream::connect(&address).is_ok());
    let all = [r#"{"amount":12,"currency":"EUR"}"#, r#"{"amount":5000,"currency":"EUR"}"#, "no JSON", "null", r#"{"amount":"9000"}"#];
    for (n, body) in (1..).zip(all) {
        let answer = posted(&address, n, body);
        assert_eq!(answer.status, 200, "{answer:?}");
    }
    eventually("all have ended", || daemon.terminal() == 5);
    let ends = "SELECT event_id || ' ' || status FROM nexus_requests ORDER BY event_seq";
    let expected = [1, 2, 3, 4, 5].map(|n| format!("webhook:shop:{n} {}", if n == 2 { "completed" } else { "handled_by_automation" }));
    assert_eq!(daemon.texts("nexus", ends), expected, "what can't be read goes to no agent either");
    let told = || daemon.texts("agents", "SELECT content FROM messages WHERE role = 'assistant' ORDER BY turn_id, n");
    eventually("the turns are recorded", || told().len() == 1);
    assert!(told()[0].starts_with("A payment of 5000 EUR, which is large."), "{:?}", told());
    let found = report(&daemon, "large-payments");
    assert_eq!(found["errors"], 0, "{found}");
    eventually("it is logged", || daemon.stdout().contains("webhook:shop:3 is no payment that can be read"));
}

#[test]
fn a_sender_is_answered_by_itself_once() {
    let mut daemon = Daemon::new();
    put(&daemon, "follow-up.ts", &example("follow-up"));
    let log = daemon.file("sends");
    daemon.configure(&only("fake", json!({ "events": 3, "send_log": log })));
    daemon.launch();
    eventually("all have ended", || daemon.terminal() == 3);
    assert_eq!((daemon.ended("handled_by_automation"), daemon.ended("completed")), (1, 2));
    eventually("all are sent", || lines(&log).len() == 3);
    let thanks = json_lines(&log).iter().filter(|send| send.to_string().contains("Thank you")).count();
    assert_eq!(thanks, 1);
    // The answer is the daemon's own: it is told to who asks for it.
    let end = sent(&daemon, "hello");
    assert_eq!((&end["status"], text_of(&end, "text").starts_with("Thank you")), (&json!("handled_by_automation"), true), "{end}");
    assert_eq!(sent(&daemon, "hello again")["text"], "hello again");
    daemon.kill9();
    daemon.launch();
    assert_eq!(sent(&daemon, "and again")["text"], "and again");
}

#[test]
fn senders_with_long_names_do_not_outgrow_the_state() {
    let mut daemon = Daemon::new();
    put(&daemon, "follow-up.ts", &example("follow-up"));
    let file = daemon.file("lines");
    let event = |n: u32| {
        let event = json!({
            "event_id": format!("fake:{n}"), "timestamp": 1, "content": "hello", "content_type": "text", "channel": "fake",
            "account_id": "me", "sender_id": format!("{n}{}", "s".repeat(1000)), "peer_id": format!("p{n}"), "peer_kind": "dm",
        });
        format!("{event}\n")
    };
    fs::write(&file, (1..=80).map(event).collect::<String>()).unwrap();
    daemon.configure(&only("fake", json!({ "events": 0, "lines_file": file })));
    daemon.launch();
    eventually("all have ended", || daemon.terminal() == 80);
    let found = report(&daemon, "follow-up");
    assert_eq!((&found["calls"], &found["errors"]), (&json!(80), &json!(0)), "{}", found["last_error"]);
    assert!(found["state"]["answered"].as_array().is_some_and(|all| all.len() > 1 && all.len() < 30), "the oldest are forgotten");
}
