//! What the pipeline promises about order, memory and fairness, with real agents.
#![allow(clippy::unwrap_used)]

mod common;

use common::{Ask, Daemon, Signal, config, eventually, fake, find, procfs};
use serde_json::json;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;

const RUNNING: &str = "SELECT count(*) FROM runs WHERE status = 'running'";
const WAITING: &str = "SELECT count(*) FROM nexus_requests WHERE status = 'waiting'";

fn send(text: &str) -> Ask<'static> {
    Ask::post("/control/send", &json!({ "text": text }))
}

#[test]
fn the_next_turn_of_a_session_knows_the_one_before_it() {
    let mut daemon = Daemon::new();
    let gate = daemon.file("gate");
    rustix::fs::mknodat(rustix::fs::CWD, &gate, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
    // Waits to be let through, then answers with how many messages of earlier turns it was told.
    let counts = format!("sh -c 'cat {gate} >/dev/null; grep -o \\\"role\\\" | wc -l'");
    let mut wanted = config(json!({}));
    wanted["agents"] = json!({ "default": "counts", "counts": { "runner": "command", "command": counts } });
    daemon.configure(&wanted);
    daemon.launch();
    let first = daemon.open(&send("one"));
    eventually("the first is being answered", || daemon.count("nexus", RUNNING) == 1);
    let second = daemon.open(&send("two"));
    eventually("the second waits for its session", || daemon.count("nexus", WAITING) == 1);
    fs::write(&gate, "").unwrap();
    assert_eq!(first.body.end()["text"].as_str().map(str::trim), Some("0"));
    fs::write(&gate, "").unwrap();
    assert_eq!(second.body.end()["text"].as_str().map(str::trim), Some("2"));
}

#[test]
fn each_of_many_messages_at_once_is_told_its_end() {
    let mut wanted = config(json!({}));
    wanted["access"]["policies"] = json!([{ "name": "each", "match": {}, "effect": "allow", "session": { "key": "cli:{peer_id}" } }]);
    let daemon = Daemon::start(&wanted);
    std::thread::scope(|scope| {
        for client in 0..32 {
            let daemon = &daemon;
            scope.spawn(move || {
                for n in 0..25 {
                    let text = format!("{client}.{n}");
                    let body = json!({ "text": text, "conversation": format!("c{client}") });
                    let end = daemon.open(&Ask::post("/control/send", &body)).body.end();
                    assert_eq!((&end["status"], &end["text"]), (&json!("completed"), &json!(text)));
                }
            });
        }
    });
}

#[test]
fn an_agent_that_hangs_holds_up_no_other() {
    let mut wanted = config(json!({ "fake": fake(json!({ "events": 150, "peers": 150 })) }));
    wanted["agents"] = json!({ "stuck": { "runner": "command", "command": "sleep 1000", "max_concurrent": 1 } });
    wanted["access"]["policies"] = json!([{
        "name": "stuck", "match": { "conditions": [{ "channel": "fake" }] }, "effect": "allow",
        "session": { "agent": "stuck", "key": "fake:{peer_id}" },
    }]);
    let daemon = Daemon::start(&wanted);
    eventually("the stuck agent runs", || daemon.count("nexus", RUNNING) == 1);
    eventually("all others wait for it", || daemon.count("nexus", WAITING) == 149);
    assert_eq!(daemon.nexus_ok(&["send", "are", "you", "there"]).trim(), "are you there");
}

#[test]
fn a_client_that_never_reads_cannot_hold_the_stop() {
    let mut daemon = Daemon::start(&config(json!({})));
    let mut deaf = TcpStream::connect(daemon.http()).unwrap();
    deaf.write_all(b"GET /api/events/stream HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    let mut status = String::new();
    BufReader::new(deaf.try_clone().unwrap()).read_line(&mut status).unwrap();
    assert!(status.contains("200"), "{status}");
    // More than any socket buffer takes.
    let long = "word ".repeat(100_000);
    for _ in 0..40 {
        assert_eq!(daemon.open(&send(&long)).body.end()["status"], "completed");
    }
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.wait().code(), Some(0));
}

#[test]
fn no_adapter_can_speak_as_the_control_socket() {
    let daemon = Daemon::start(&config(json!({ "fake": fake(json!({ "channel": "cli", "events": 3 })) })));
    let entry = common::find("the adapter is refused", || {
        let entry = daemon.adapter("fake/me");
        entry["last_error"].is_string().then_some(entry)
    });
    assert!(entry["last_error"].as_str().unwrap().contains("the daemon's own"), "{entry}");
    assert_eq!(daemon.accepted(), 0);
}

#[test]
fn an_agent_that_never_stops_to_think_aloud_has_its_time_and_no_more() {
    let mut daemon = Daemon::new();
    let mut wanted = config(json!({}));
    let thought = r#"{"type":"reasoning","text":"x"}"#;
    let script = format!("cat >/dev/null; exec yes '{thought}'");
    let command = shell_words::join(["sh", "-c", script.as_str()]);
    wanted["agents"] = json!({ "default": "thinks", "thinks": { "runner": "command", "command": command, "timeout_ms": 500 } });
    daemon.configure(&wanted);
    daemon.launch();
    let end = daemon.open(&send("one")).body.end();
    assert_eq!((&end["status"], &end["reason"]), (&json!("failed"), &json!("the agent's time is up")), "{end}");
}

#[test]
fn of_a_wedged_agent_the_whole_tree_goes_at_its_time_and_the_user_is_told() {
    let mut daemon = Daemon::new();
    let (own, escaped) = (daemon.file("own"), daemon.file("escaped"));
    // It doesn't obey, and has a child that left its group and its session.
    let script = format!(
        "trap '' TERM; echo $$ >{own}; cat >/dev/null; setsid sleep 1000 >/dev/null 2>&1 & echo $! >{escaped}; while :; do sleep 1000; done"
    );
    let command = shell_words::join(["sh", "-c", script.as_str()]);
    let mut wanted = config(json!({}));
    wanted["agents"] = json!({ "default": "stuck", "stuck": { "runner": "command", "command": command, "timeout_ms": 3000 } });
    daemon.configure(&wanted);
    daemon.launch();
    let end = daemon.open(&send("one")).body.end();
    assert_eq!((&end["status"], &end["reason"]), (&json!("failed"), &json!("the agent's time is up")), "{end}");
    assert!(end["text"].as_str().is_some_and(|text| text.contains("took too long") && text.contains("nexus trace show req_")), "{end}");
    let pid = |file: &str| find("its PID", || fs::read_to_string(file).ok()?.trim().parse::<i32>().ok());
    let pids = [pid(&own), pid(&escaped)];
    eventually("the agent and what it left are gone", || !pids.into_iter().any(procfs::exists));
    eventually("the turn is recorded", || daemon.texts("agents", "SELECT stop_reason FROM turns") == ["timeout"]);
}

#[test]
fn a_notice_of_failure_is_delivered_but_is_no_word_of_the_agent() {
    let mut daemon = Daemon::new();
    let mut wanted = config(json!({}));
    wanted["agents"] = json!({ "default": "fails", "fails": { "runner": "command", "command": "sh -c 'cat >/dev/null; exit 7'" } });
    daemon.configure(&wanted);
    daemon.launch();
    let end = daemon.open(&send("one")).body.end();
    assert!(end["text"].as_str().is_some_and(|text| text.starts_with("The agent failed")), "{end}");
    eventually("the turn is recorded", || daemon.count("agents", "SELECT count(*) FROM turns") == 1);
    assert_eq!(daemon.texts("agents", "SELECT role || ' ' || content FROM messages"), ["user one"]);
    let log = daemon.stderr() + &daemon.stdout();
    let line = log.lines().find(|line| line.contains("Pipeline error")).unwrap_or_else(|| panic!("not logged: {log}"));
    assert!(line.contains("runAgent"), "{line}");
}
