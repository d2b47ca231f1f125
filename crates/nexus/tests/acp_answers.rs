//! Who may answer what an ACP agent asks, and where: behind messages that wait for an agent of another kind as well.
#![allow(clippy::unwrap_used)]

mod common;

use common::{Ask, Daemon, NEXUS, config, eventually, fake, find, json_lines};
use serde_json::{Value, json};
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;

/// Characters of a question's code.
const CODE_CHARS: usize = 7;

/// The owner `boss`, whom a program answers once the file `gate` is there; guests, for whom an ACP agent works that asks;
/// others, whom the echo answers.
fn place() -> (Daemon, Value) {
    let daemon = Daemon::new();
    let program = PathBuf::from(NEXUS).with_file_name("examples").join("fake-acp-agent");
    assert!(program.exists(), "{} is missing: cargo build --example fake-acp-agent", program.display());
    let script = format!("until [ -e {} ]; do sleep 0.05; done; echo done", daemon.file("gate"));
    let boss = json!({ "channel": "boss", "sender": "b1", "events": 1, "send_log": daemon.file("sends") });
    let mut wanted = config(json!({ "boss": fake(boss) }));
    wanted["agents"] = json!({
        "default": "slow",
        "slow": { "runner": "command", "command": shell_words::join(["sh", "-c", script.as_str()]) },
        "asks": {
            "runner": "acp", "command": shell_words::quote(&program.to_string_lossy()),
            "env": { "FAKE_ACP_CONFIG": json!({ "mode": "ask" }).to_string() },
        },
    });
    let policy = |channel: &str, agent: &str| {
        let only = json!({ "conditions": [{ "channel": channel }] });
        json!({ "name": channel, "match": only, "effect": "allow", "session": { "agent": agent } })
    };
    wanted["access"] = json!({ "owner": ["boss:*"], "policies": [policy("guest", "asks"), policy("other", "echo")] });
    daemon.configure(&wanted);
    (daemon, wanted)
}

/// Brings an adapter up while the daemon runs.
fn add(daemon: &Daemon, wanted: &mut Value, name: &str, behaviour: Value) {
    wanted["adapters"][name] = fake(behaviour);
    daemon.configure(wanted);
    daemon.nexus_ok(&["daemon", "reload"]);
}

/// The end of an answer.
fn end_of(body: impl Read) -> Value {
    let ends = |line: String| serde_json::from_str::<Value>(&line).ok().filter(|part| part["type"] == "end");
    BufReader::new(body).lines().find_map(|line| ends(line.unwrap())).expect("an end")
}

#[test]
fn the_owner_answers_behind_what_waits_for_another_agent_and_nobody_else_can() {
    let (mut daemon, mut wanted) = place();
    daemon.launch();
    eventually("the owner has a turn", || daemon.count("nexus", "SELECT count(*) FROM runs WHERE status = 'running'") == 1);
    let say = |text: &str| daemon.open(&Ask::post("/control/send", &json!({ "text": text, "conversation": "one" }))).body;
    let waiting = say("one more thing");
    let prepared = r#"nexus_stage_seconds_count{stage="assembleContext"}"#;
    eventually("it waits for that turn's end", || daemon.metric(prepared) == 2);
    add(&daemon, &mut wanted, "guest", json!({ "channel": "guest", "sender": "g1", "events": 1 }));
    let question = find("the owner is asked", || {
        let all = json_lines(daemon.file("sends"));
        all.iter().filter_map(|send| send["text"].as_str()).find(|text| text.contains("working for g1")).map(str::to_owned)
    });
    let (_, rest) = question.split_once("`yes ").unwrap();
    let code = &rest[..CODE_CHARS];
    let word = json!({
        "event_id": "other:1", "timestamp": 1, "content": format!("yes {code}"), "content_type": "text", "channel": "other",
        "account_id": "me", "sender_id": "o1", "peer_id": "o1", "peer_kind": "dm",
    });
    fs::write(daemon.file("word"), format!("{word}\n")).unwrap();
    add(&daemon, &mut wanted, "other", json!({ "channel": "other", "events": 0, "lines_file": daemon.file("word") }));
    let of_other = "SELECT status FROM nexus_requests WHERE channel = 'other'";
    eventually("to others it is a message like any", || daemon.texts("nexus", of_other) == ["completed"]);
    let answered = end_of(say(&format!("no {code}")));
    assert_eq!((&answered["status"], &answered["reason"]), (&json!("handled_by_automation"), &json!(format!("permission {code}"))));
    let of_guest = "SELECT content FROM deliveries WHERE adapter = 'guest'";
    eventually("the guest has the answer", || daemon.texts("nexus", of_guest) == ["the answer was no"]);
    fs::write(daemon.file("gate"), "").unwrap();
    assert_eq!(end_of(waiting)["text"], "done");
}
