//! Turns that a person stops, by the command and by the owner's words in a chat: what ends, what goes on, and what a crash
//! in between leaves.
#![allow(clippy::unwrap_used)]

mod common;

use common::{Ask, Body, Daemon, config, eventually, find, json_lines, only};
use serde_json::{Value, json};
use std::fs;

const WAITING: &str = "SELECT count(*) FROM nexus_requests WHERE status = 'waiting'";
const EXIT_NOT_FOUND: Option<i32> = Some(4);

/// An agent that writes down what it is told, says half of its answer, and goes on once a file is there.
struct Slow {
    daemon: Daemon,
    log: String,
    gate: String,
}

impl Slow {
    fn start(more: Value) -> Self {
        let mut daemon = Daemon::new();
        let (log, gate) = (daemon.file("told"), daemon.file("gate"));
        let script = format!("cat >> {log}; echo half of it; until rm {gate} 2>/dev/null; do sleep 0.1; done; echo and the rest");
        let mut wanted = config(json!({}));
        wanted["agents"] = json!({ "default": "slow", "slow": { "runner": "command", "command": format!("sh -c '{script}'") } });
        wanted["access"].as_object_mut().unwrap().extend(more.as_object().cloned().unwrap());
        daemon.configure(&wanted);
        daemon.launch();
        Self { daemon, log, gate }
    }

    /// Sends a message and doesn't wait for its answer.
    fn send(&self, text: &str) -> Body {
        let answer = self.daemon.open(&Ask::post("/control/send", &json!({ "text": text })));
        assert_eq!(answer.status, 200);
        answer.body
    }

    fn called(&self, times: usize) {
        eventually("the agent is called", || json_lines(&self.log).len() == times);
    }

    fn pass(&self) {
        fs::write(&self.gate, "").unwrap();
    }

    fn told(&self) -> Vec<Value> {
        json_lines(&self.log).iter().map(|turn| turn["message"]["content"].clone()).collect()
    }

    /// Whether anything of an agent's is left, its own children too.
    fn is_at_work(&self) -> bool {
        self.daemon.children().iter().any(|child| child.argv.contains(&self.gate))
    }

    fn stop(&self) -> Value {
        serde_json::from_str(&self.daemon.nexus_ok(&["sessions", "stop", "dm:owner", "--json"])).unwrap()
    }

    fn row(&self, event_seq: i64) -> (String, String) {
        let sql = format!("SELECT status || '|' || coalesce(reason, '') FROM nexus_requests WHERE event_seq = {event_seq}");
        let row = self.daemon.texts("nexus", &sql).remove(0);
        let (status, reason) = row.split_once('|').unwrap();
        (status.to_owned(), reason.to_owned())
    }
}

#[test]
fn the_command_ends_the_turn_with_its_processes_and_says_when_nothing_runs() {
    let slow = Slow::start(json!({}));
    let first = slow.send("one");
    slow.called(1);
    assert!(slow.is_at_work());
    let told = slow.daemon.nexus_ok(&["sessions", "stop", "dm:owner"]);
    assert!(told.starts_with("dm:owner: its turn was stopped (req_"), "{told}");
    let end = first.end();
    assert_eq!((&end["status"], end["text"].as_str().unwrap_or_default()), (&json!("completed"), ""));
    let by = "stopped: by `nexus sessions stop`".to_owned();
    assert_eq!(slow.row(1), ("completed".to_owned(), by.clone()));
    assert!(slow.daemon.nexus_ok(&["trace", "show", "1", "--json"]).contains(&by));
    eventually("its processes are gone", || !slow.is_at_work());
    assert_eq!(slow.daemon.count("nexus", "SELECT count(*) FROM deliveries"), 0, "half an answer was sent");
    let kept = "SELECT t.stop_reason || ': ' || trim(m.content, char(10)) FROM turns t JOIN messages m ON m.turn_id = t.turn_id
                WHERE m.role = 'assistant'";
    assert_eq!(slow.daemon.texts("agents", kept), ["aborted: half of it"]);
    for _ in 0..2 {
        assert_eq!(slow.daemon.nexus_ok(&["sessions", "stop", "dm:owner"]).trim(), "dm:owner: nothing runs");
    }
    assert_eq!(slow.daemon.nexus(&["sessions", "stop", "nobody"]).code, EXIT_NOT_FOUND);
}

#[test]
fn what_waits_goes_on_after_the_turn_that_was_stopped() {
    let slow = Slow::start(json!({}));
    let first = slow.send("one");
    slow.called(1);
    let second = slow.send("two");
    eventually("it waits", || slow.daemon.count("nexus", WAITING) == 1);
    assert_eq!(slow.stop()["result"], "stopped");
    assert_eq!(first.end()["status"], "completed");
    slow.called(2);
    slow.pass();
    assert_eq!(second.end()["text"].as_str().map(str::trim), Some("half of it\nand the rest"));
    assert_eq!(slow.told(), ["one", "two"]);
    assert_eq!(slow.row(2), ("completed".to_owned(), String::new()));
}

#[test]
fn the_owner_stops_a_turn_past_the_messages_that_wait_behind_it() {
    let slow = Slow::start(json!({}));
    let first = slow.send("one");
    slow.called(1);
    let second = slow.send("two");
    eventually("it waits", || slow.daemon.count("nexus", WAITING) == 1);
    let word = slow.send(" /stop ").end();
    assert_eq!((&word["status"], &word["text"]), (&json!("handled_by_automation"), &json!("Stopped.")));
    assert_eq!(word["reason"], "owner: /stop");
    assert_eq!(first.end()["status"], "completed");
    assert!(slow.row(1).1.starts_with("stopped: the owner said /stop (req_"), "{:?}", slow.row(1));
    slow.called(2);
    slow.pass();
    assert_eq!(second.end()["status"], "completed");
    assert_eq!(slow.told(), ["one", "two"], "an agent was given the word");
    assert_eq!(slow.send("/stop").end()["text"], "Nothing runs here.");
    assert_eq!(slow.daemon.nexus(&["doctor"]).code, Some(0));
}

#[test]
fn the_owner_begins_anew_and_asks_how_it_is() {
    let slow = Slow::start(json!({}));
    let say = |text: &str| slow.send(text).end()["text"].as_str().unwrap_or_default().to_owned();
    assert_eq!(say("/new"), "There is nothing to put away.");
    let first = slow.send("one");
    slow.called(1);
    let status = say("/status");
    assert!(status.starts_with("slow has been answering here for ") && status.contains(" s.\nThe daemon is "), "{status}");
    slow.pass();
    assert_eq!(first.end()["status"], "completed");
    assert!(say("/status").starts_with("Nothing runs here.\n"));
    assert_eq!(say("/new"), "This conversation begins anew; 1 turn is put away.");
    let second = slow.send("two");
    slow.called(2);
    slow.pass();
    assert_eq!(second.end()["status"], "completed");
    let history = json_lines(&slow.log)[1]["history"].clone();
    assert!(history.as_array().is_none_or(Vec::is_empty), "it was told what was put away: {history}");
    let sessions = slow.daemon.texts("agents", "SELECT label || ' ' || turns FROM sessions");
    assert_eq!(sessions, ["dm:owner 1"]);
    let undone = slow.daemon.nexus(&["sessions", "archive", "--undo", "dm:owner"]);
    assert!(undone.code == Some(1) && undone.stderr.contains("sessions fork dm:owner NEW-LABEL --at turn_"), "{undone:?}");
}

#[test]
fn words_can_be_switched_off() {
    let slow = Slow::start(json!({ "owner_words": false }));
    let ends = ["/stop", "/new", "/status"].map(|word| slow.send(word));
    for end in ends {
        slow.pass();
        assert_eq!(end.end()["status"], "completed");
    }
    assert_eq!(slow.told(), ["/stop", "/new", "/status"]);
}

#[test]
fn what_never_was_archived_is_not_taken_back() {
    let daemon = Daemon::start(&config(json!({})));
    daemon.nexus_ok(&["send", "one"]);
    let undone = daemon.nexus(&["sessions", "archive", "--undo", "dm:owner"]);
    assert!(undone.code == Some(1) && undone.stderr.contains("is not archived"), "{undone:?}");
}

fn line(n: u32, sender: &str, content: &str) -> String {
    let event = json!({
        "event_id": format!("fake:{n}"), "timestamp": 1, "content": content, "content_type": "text", "channel": "fake",
        "account_id": "me", "sender_id": sender, "peer_id": sender, "peer_kind": "dm",
    });
    format!("{event}\n")
}

#[test]
fn a_strangers_word_is_a_message() {
    let mut daemon = Daemon::new();
    let (lines, sends) = (daemon.file("lines"), daemon.file("sends"));
    fs::write(&lines, line(1, "stranger", "/status") + &line(2, "me", "/status")).unwrap();
    let mut wanted = only("fake", json!({ "lines_file": lines, "send_log": sends }));
    wanted["access"] = json!({ "default": "allow", "owner": ["fake:me"] });
    daemon.configure(&wanted);
    daemon.launch();
    eventually("both are answered", || json_lines(&sends).len() == 2);
    let said_to = |peer: &str| json_lines(&sends).into_iter().find(|call| call["to"] == peer).unwrap()["text"].clone();
    assert_eq!(said_to("stranger"), "/status", "echoed, as every message is");
    assert!(said_to("me").as_str().is_some_and(|text| text.starts_with("Nothing runs here")), "{}", said_to("me"));
    eventually("both have an end", || daemon.terminal() == 2);
    assert_eq!((daemon.ended("completed"), daemon.ended("handled_by_automation")), (1, 1));
}

#[test]
fn a_kill_before_the_answer_left_neither_loses_nor_repeats_it() {
    let mut daemon = Daemon::new();
    let (lines, sends, how) = (daemon.file("lines"), daemon.file("sends"), daemon.file("how"));
    fs::write(&lines, line(1, "me", "/status")).unwrap();
    fs::write(&how, "hang").unwrap();
    let mut wanted = only("fake", json!({ "lines_file": lines, "send_log": sends, "send_file": how }));
    wanted["adapters"]["fake"]["send"] = json!({ "on_uncertain": "retry" });
    daemon.configure(&wanted);
    daemon.launch();
    eventually("its answer is on its way", || daemon.deliveries("sending") == 1);
    assert_eq!(daemon.ended("handled_by_automation"), 1, "the end and the answer are one commit");
    let key = daemon.texts("nexus", "SELECT idempotency_key FROM deliveries").remove(0);
    daemon.kill9();
    fs::write(&how, "ok").unwrap();
    daemon.launch();
    eventually("it is sent", || daemon.deliveries("sent") == 1);
    let sent = find("the adapter was told", || Some(json_lines(&sends)).filter(|sends| !sends.is_empty()));
    assert_eq!(sent.iter().map(|call| call["idempotency_key"].as_str().unwrap()).collect::<Vec<_>>(), [key.as_str()]);
    assert_eq!(daemon.count("nexus", "SELECT count(*) FROM deliveries"), 1);
    assert_eq!((daemon.accepted(), daemon.terminal()), (1, 1));
}

#[test]
fn a_kill_while_a_turn_is_stopped_leaves_one_end_for_each() {
    let mut slow = Slow::start(json!({}));
    let first = slow.send("one");
    slow.called(1);
    let word = slow.send("/stop");
    let accepted = "SELECT count(*) FROM events WHERE direction = 'inbound'";
    eventually("the word is accepted", || slow.daemon.count("events", accepted) == 2);
    slow.daemon.kill9();
    drop((first, word));
    slow.daemon.launch();
    eventually("both have an end", || slow.daemon.terminal() == 2);
    assert_eq!(slow.row(2), ("handled_by_automation".to_owned(), "owner: /stop".to_owned()));
    let answers = "SELECT count(*) FROM deliveries WHERE event_seq = 2";
    assert_eq!(slow.daemon.count("nexus", answers), 1);
    eventually("nothing is left", || !slow.is_at_work());
}
