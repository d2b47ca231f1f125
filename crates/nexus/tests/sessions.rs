//! Sessions end to end: what becomes of messages that come while a turn runs, in each queue mode and
//! across `kill -9`; the timer's lanes; a stranger who becomes known; forks and archives; the breaker.
#![allow(clippy::unwrap_used)]

mod common;

use common::{Ask, Body, Daemon, config, eventually, json_lines, only};
use rusqlite::Connection;
use serde_json::{Value, json};
use std::fs;
use std::io::{BufRead, BufReader, Lines};

const RUNNING: &str = "SELECT count(*) FROM runs WHERE status = 'running'";
const WAITING: &str = "SELECT count(*) FROM nexus_requests WHERE status = 'waiting'";
const EXIT_NOT_RUNNING: Option<i32> = Some(3);
const EXIT_NOT_FOUND: Option<i32> = Some(4);

/// An agent that writes down what it is told, says half of its answer, and goes on when it may: each time
/// that [`Gated::pass`] is called, once.
struct Gated {
    daemon: Daemon,
    log: String,
    gate: String,
}

impl Gated {
    /// A daemon with that agent alone, and all messages in this mode.
    fn start(policy: Value, pipeline: Value) -> Self {
        let mut daemon = Daemon::new();
        let (log, gate) = (daemon.file("told"), daemon.file("gate"));
        let script = format!("cat >> {log}; echo half of it; until rm {gate} 2>/dev/null; do sleep 0.1; done; echo and the rest");
        let mut wanted = config(json!({}));
        wanted["agents"] = json!({ "default": "waits", "waits": { "runner": "command", "command": format!("sh -c '{script}'") } });
        let mut all = json!({ "name": "all", "match": {}, "effect": "allow" });
        all.as_object_mut().unwrap().extend(policy.as_object().cloned().unwrap());
        wanted["access"]["policies"] = json!([all]);
        wanted["pipeline"] = pipeline;
        daemon.configure(&wanted);
        daemon.launch();
        Self { daemon, log, gate }
    }

    /// Sends a message and doesn't wait for its answer.
    fn send(&self, text: &str) -> Waiting {
        let answer = self.daemon.open(&Ask::post("/control/send", &json!({ "text": text })));
        assert_eq!(answer.status, 200);
        Waiting { lines: BufReader::new(answer.body).lines() }
    }

    /// Waits until the agent was called so often.
    fn called(&self, times: usize) {
        eventually("the agent is called", || json_lines(&self.log).len() == times);
    }

    fn waiting(&self, count: i64) {
        eventually("they wait for their session", || self.daemon.count("nexus", WAITING) == count);
    }

    /// Lets the agent's present turn, or its next one, come to its end.
    fn pass(&self) {
        fs::write(&self.gate, "").unwrap();
    }

    fn told(&self) -> Vec<Value> {
        json_lines(&self.log).iter().map(|turn| turn["message"]["content"].clone()).collect()
    }

    fn trace(&self, event_seq: i64) -> Value {
        serde_json::from_str(&self.daemon.nexus_ok(&["trace", "show", &event_seq.to_string(), "--json"])).unwrap()
    }
}

/// A message whose answer is still to come.
struct Waiting {
    lines: Lines<BufReader<Body>>,
}

impl Waiting {
    fn until(&mut self, kind: &str) -> Value {
        for line in self.lines.by_ref().map_while(Result::ok).filter(|line| line.starts_with('{')) {
            let part: Value = serde_json::from_str(&line).unwrap();
            if part["type"] == kind {
                return part;
            }
        }
        panic!("the answer ended without `{kind}`")
    }

    fn end(mut self) -> Value {
        self.until("end")
    }
}

#[test]
fn a_message_that_interrupts_ends_the_turn_before_it_and_keeps_what_was_said() {
    let gated = Gated::start(json!({ "queue_mode": "interrupt" }), json!({}));
    let mut first = gated.send("one");
    first.until("token");
    let second = gated.send("two");
    let ended = first.end();
    gated.called(2);
    assert_eq!((&ended["status"], ended["text"].as_str().unwrap_or("")), (&json!("completed"), ""));
    gated.pass();
    assert_eq!(second.end()["text"].as_str().map(str::trim), Some("half of it\nand the rest"));
    assert_eq!(gated.told(), ["one", "two"]);
    let trace = gated.trace(1);
    assert_eq!(trace["request"]["trace"]["response"]["stop_reason"], "aborted");
    assert!(trace["request"]["reason"].as_str().is_some_and(|reason| reason.starts_with("aborted: ")), "{trace}");
    let turns = "SELECT t.stop_reason || ': ' || trim(m.content, char(10)) FROM turns t JOIN messages m ON m.turn_id = t.turn_id
                 WHERE m.role = 'assistant' ORDER BY t.depth";
    let kept = ["aborted: half of it", "end_turn: half of it\nand the rest"];
    eventually("both turns are recorded", || gated.daemon.texts("agents", turns) == kept);
    assert_eq!(gated.daemon.count("nexus", "SELECT count(*) FROM deliveries"), 1, "half an answer was sent");
}

#[test]
fn who_sent_the_message_of_an_interrupted_turn_is_told_and_takes_nothing_for_an_answer() {
    let gated = Gated::start(json!({ "queue_mode": "interrupt" }), json!({}));
    let ran = std::thread::scope(|scope| {
        let sent = scope.spawn(|| gated.daemon.nexus(&["send", "one"]));
        gated.called(1);
        let second = gated.send("two");
        gated.called(2);
        gated.pass();
        assert_eq!(second.end()["status"], "completed");
        sent.join().unwrap()
    });
    assert_eq!((ran.code, ran.stdout.as_str()), (Some(1), ""), "{ran:?}");
    assert!(ran.stderr.contains("aborted: a newer message of its session ended this turn"), "{ran:?}");
}

#[test]
fn to_steer_is_to_interrupt_where_no_runner_takes_input() {
    let gated = Gated::start(json!({ "queue_mode": "steer-backlog" }), json!({}));
    let first = gated.send("one");
    gated.called(1);
    let second = gated.send("two");
    assert_eq!(first.end()["status"], "completed");
    gated.called(2);
    gated.pass();
    assert_eq!(second.end()["status"], "completed");
}

/// A turn under way, and three messages that wait to be collected.
fn collecting(pipeline: Value) -> (Gated, Waiting, [Waiting; 3]) {
    let gated = Gated::start(json!({ "queue_mode": "collect" }), pipeline);
    let zero = gated.send("zero");
    gated.called(1);
    let others = ["one", "two", "three"].map(|text| gated.send(text));
    gated.waiting(3);
    (gated, zero, others)
}

#[test]
fn what_is_collected_is_one_turn_with_one_reply() {
    let (gated, zero, [one, two, three]) = collecting(json!({}));
    gated.pass();
    assert_eq!(zero.end()["status"], "completed");
    gated.called(2);
    gated.pass();
    assert_eq!(three.end()["text"].as_str().map(str::trim), Some("half of it\nand the rest"));
    for fellow in [one, two] {
        let end = fellow.end();
        assert_eq!((&end["status"], &end["text"]), (&json!("completed"), &Value::Null));
    }
    assert_eq!(gated.told(), ["zero", "one\n\ntwo\n\nthree"]);
    assert_eq!(gated.daemon.count("nexus", "SELECT count(*) FROM runs WHERE status = 'finished'"), 2);
    assert_eq!(gated.daemon.count("nexus", "SELECT count(*) FROM deliveries"), 2);
    let (first, last) = (gated.trace(2), gated.trace(4));
    let lead = last["request"]["request_id"].as_str().unwrap();
    assert_eq!(first["request"]["reason"], format!("collected: answered with {lead}"));
    assert_eq!(first["runs"][0]["run_id"], last["runs"][0]["run_id"]);
    assert_eq!(first["request"]["trace"]["agent"]["run_id"], last["runs"][0]["run_id"]);
    assert_eq!(first["request"]["trace"]["response"]["chars"], last["request"]["trace"]["response"]["chars"]);
    assert_eq!(last["request"]["trace"]["agent"]["fellows"].as_array().map(Vec::len), Some(2));
    let shown = gated.daemon.nexus_ok(&["trace", "2"]);
    assert!(shown.contains("Together: ") && shown.contains(lead), "{shown}");
    assert_eq!(gated.daemon.nexus(&["doctor"]).code, Some(0));
}

#[test]
fn a_collected_turn_that_a_kill_interrupts_is_run_again_once_for_all() {
    let (mut gated, zero, others) = collecting(json!({ "on_interrupted": "rerun" }));
    gated.pass();
    assert_eq!(zero.end()["status"], "completed");
    gated.called(2);
    gated.daemon.kill9();
    drop(others);
    gated.daemon.launch();
    gated.called(3);
    gated.pass();
    eventually("all are answered", || gated.daemon.ended("completed") == 4);
    assert_eq!(gated.told(), ["zero", "one\n\ntwo\n\nthree", "one\n\ntwo\n\nthree"]);
    let runs = |status: &str| gated.daemon.count("nexus", &format!("SELECT count(*) FROM runs WHERE status = '{status}'"));
    assert_eq!((runs("finished"), runs("interrupted")), (2, 1));
    assert_eq!(gated.daemon.count("nexus", "SELECT count(*) FROM deliveries"), 2, "one reply, once");
    eventually("two turns", || gated.daemon.count("agents", "SELECT count(*) FROM turns") == 2);
}

#[test]
fn a_collected_turn_that_may_have_acted_fails_as_a_whole() {
    let (mut gated, zero, others) = collecting(json!({}));
    gated.pass();
    assert_eq!(zero.end()["status"], "completed");
    gated.called(2);
    gated.daemon.kill9();
    drop(others);
    gated.daemon.launch();
    eventually("all three have failed", || gated.daemon.ended("failed") == 3);
    assert_eq!(gated.daemon.count("nexus", "SELECT count(*) FROM runs"), 2, "it ran again");
    assert_eq!(gated.told().len(), 2);
}

#[test]
fn messages_that_wait_for_quiet_survive_a_kill() {
    let mut gated = Gated::start(json!({ "queue_mode": "collect" }), json!({ "on_interrupted": "rerun" }));
    let one = gated.send("one");
    gated.waiting(1);
    gated.daemon.kill9();
    drop(one);
    gated.daemon.launch();
    gated.pass();
    eventually("it is answered", || gated.daemon.ended("completed") == 1);
}

#[test]
fn a_cap_drops_the_oldest_that_waits_or_the_new_one() {
    for (drop, dropped) in [("old", "one"), ("new", "two")] {
        let gated = Gated::start(json!({ "queue": { "cap": 1, "drop": drop } }), json!({}));
        let zero = gated.send("zero");
        gated.called(1);
        let one = gated.send("one");
        gated.waiting(1);
        let two = gated.send("two");
        let (gone, kept) = if dropped == "one" { (one, two) } else { (two, one) };
        let end = gone.end();
        assert_eq!(end["status"], "expired");
        assert!(end["reason"].as_str().is_some_and(|reason| reason.contains("queue.cap")), "{end}");
        gated.pass();
        assert_eq!(zero.end()["status"], "completed");
        gated.pass();
        assert_eq!(kept.end()["status"], "completed");
        assert_eq!(gated.told().len(), 2);
        assert!(!gated.told().contains(&json!(dropped)), "a message that was dropped was answered");
    }
}

#[test]
fn a_cap_drops_nothing_that_a_kill_interrupted() {
    let mut gated = Gated::start(json!({ "queue_mode": "collect", "queue": { "cap": 2 } }), json!({ "on_interrupted": "rerun" }));
    let zero = gated.send("zero");
    gated.called(1);
    let others = ["one", "two"].map(|text| gated.send(text));
    gated.waiting(2);
    gated.daemon.kill9();
    drop((zero, others));
    // All three wait for quiet now, and two may.
    gated.daemon.launch();
    eventually("all have an end", || {
        gated.pass();
        gated.daemon.terminal() == 3
    });
    assert_eq!(gated.daemon.ended("completed"), 3);
}

#[test]
fn a_turn_of_the_timer_stands_in_nobodys_way() {
    let mut wanted = config(json!({}));
    wanted["timer"] = json!({ "heartbeat_interval_ms": 1000 });
    wanted["agents"] = json!({ "stuck": { "runner": "command", "command": "sleep 1000" } });
    wanted["access"]["policies"] = json!([{
        "name": "beat", "match": { "principal": { "type": "system" } }, "effect": "allow",
        "session": { "agent": "stuck", "key": "dm:owner" },
    }]);
    let daemon = Daemon::start(&wanted);
    eventually("a turn of the timer is under way", || daemon.count("nexus", RUNNING) == 1);
    assert_eq!(daemon.texts("nexus", "SELECT session FROM runs"), ["system:dm:owner"]);
    assert_eq!(daemon.nexus_ok(&["send", "are", "you", "there"]).trim(), "are you there");
    assert_eq!(daemon.texts("nexus", "SELECT session FROM runs WHERE status = 'finished'"), ["dm:owner"]);
}

/// Answers with how many messages of earlier turns it was told.
const COUNTS: &str = "sh -c 'grep -o \\\"role\\\" | wc -l'";

#[test]
fn a_strangers_session_goes_on_once_the_sender_is_known() {
    let mut wanted = only("fake", json!({ "events": 1 }));
    wanted["access"] = json!({ "default": "allow" });
    wanted["agents"] = json!({ "default": "counts", "counts": { "runner": "command", "command": COUNTS } });
    let mut daemon = Daemon::start(&wanted);
    let turns = |daemon: &Daemon| daemon.texts("agents", "SELECT session FROM turns ORDER BY depth");
    eventually("the stranger is answered", || turns(&daemon) == ["dm:fake:u1"]);
    daemon.stop();
    let known = "INSERT INTO entities (entity_id, name, created_at) VALUES ('e1', 'Ann', 1);
                 INSERT INTO identity_mappings VALUES ('fake', 'u1', 'e1', 1.0, 'test', 1);";
    Connection::open(daemon.workspace().join("data/identity.db")).unwrap().execute_batch(known).unwrap();
    wanted["adapters"]["fake"] = common::fake(json!({ "events": 2 }));
    daemon.configure(&wanted);
    daemon.launch();
    eventually("the contact is answered", || turns(&daemon) == ["dm:fake:u1", "dm:e1"]);
    let said = daemon.texts("agents", "SELECT trim(content) FROM messages WHERE role = 'assistant' ORDER BY CAST(content AS INTEGER)");
    assert_eq!(said.iter().map(|text| text.trim()).collect::<Vec<_>>(), ["0", "2"], "the first turn as a contact knows what was said");
    assert_eq!(daemon.texts("agents", "SELECT label FROM sessions"), ["dm:e1"]);
    let shown: Value = serde_json::from_str(&daemon.nexus_ok(&["sessions", "show", "dm:fake:u1", "--json"])).unwrap();
    assert_eq!((&shown["session"]["label"], &shown["aliases"]), (&json!("dm:e1"), &json!(["dm:fake:u1"])));
}

fn listed(daemon: &Daemon, words: &[&str]) -> Vec<(String, i64)> {
    let args = [&["sessions", "list", "--json"][..], words].concat();
    let answer: Value = serde_json::from_str(&daemon.nexus_ok(&args)).unwrap();
    let one = |session: &Value| (session["label"].as_str().unwrap().to_owned(), session["turns"].as_i64().unwrap());
    answer["sessions"].as_array().unwrap().iter().map(one).collect()
}

#[test]
fn sessions_are_listed_shown_forked_and_archived() {
    let mut wanted = config(json!({}));
    wanted["agents"] = json!({ "default": "counts", "counts": { "runner": "command", "command": COUNTS } });
    let mut daemon = Daemon::start(&wanted);
    let send = |daemon: &Daemon, text: &str| daemon.nexus_ok(&["send", text]).trim().to_owned();
    assert_eq!((send(&daemon, "one"), send(&daemon, "two")), ("0".to_owned(), "2".to_owned()));
    assert_eq!(listed(&daemon, &[]), [("dm:owner".to_owned(), 2)]);
    let shown: Value = serde_json::from_str(&daemon.nexus_ok(&["sessions", "show", "dm:owner", "--json"])).unwrap();
    let first = shown["turns"][0]["turn_id"].as_str().unwrap();
    daemon.nexus_ok(&["sessions", "fork", "dm:owner", "what/if", "--at", first]);
    assert!(daemon.nexus_ok(&["sessions", "show", "what/if"]).contains("> one\n"));
    let again = daemon.nexus(&["sessions", "fork", "dm:owner", "what/if"]);
    assert!(again.code == Some(1) && again.stderr.contains("already"), "{again:?}");
    assert_eq!(daemon.nexus(&["sessions", "fork", "dm:owner", "other", "--at", "turn_x"]).code, EXIT_NOT_FOUND);
    assert_eq!(daemon.nexus_ok(&["sessions", "archive", "dm:owner"]), "dm:owner: archived with its 2 turns\n");
    assert_eq!(daemon.nexus_ok(&["sessions", "archive", "dm:owner"]), "dm:owner: archived already, with its 2 turns\n");
    let again: Value = serde_json::from_str(&daemon.nexus_ok(&["sessions", "archive", "dm:owner", "--json"])).unwrap();
    assert!(again["changed"] == false && again["session"]["archived_at"].is_i64(), "{again}");
    assert_eq!(listed(&daemon, &[]), [("what/if".to_owned(), 1)]);
    daemon.nexus_ok(&["sessions", "archive", "--undo", "dm:owner"]);
    let again = daemon.nexus(&["sessions", "archive", "--undo", "dm:owner"]);
    assert!(again.code == Some(1) && again.stderr.contains("nothing to take back"), "{again:?}");
    assert_eq!(send(&daemon, "three"), "4");
    daemon.nexus_ok(&["sessions", "archive", "dm:owner"]);
    assert_eq!(send(&daemon, "four"), "0", "an archived session's label begins anew");
    assert!(daemon.nexus_ok(&["sessions", "show", "dm:owner"]).contains("Before:   dm:owner, 3 turns up to "));
    daemon.stop();
    let all = [("dm:owner".to_owned(), 1), ("what/if".to_owned(), 1)];
    assert_eq!(listed(&daemon, &["--all"]), all, "from the files");
    assert_eq!(daemon.nexus(&["sessions", "archive", "dm:owner"]).code, EXIT_NOT_RUNNING);
    assert_eq!(daemon.nexus(&["sessions", "show", "nobody"]).code, EXIT_NOT_FOUND);
}

#[test]
fn what_only_repeats_is_stopped_and_said_once() {
    let mut daemon = Daemon::new();
    let lines = daemon.file("lines");
    let line = |n: u32| {
        let event = json!({
            "event_id": format!("webhook:{n}"), "timestamp": 1, "content": "disk is full", "content_type": "text", "channel": "webhook",
            "account_id": "me", "sender_id": "monitor", "peer_id": "monitor", "peer_kind": "dm",
        });
        format!("{event}\n")
    };
    fs::write(&lines, (1..=8).map(line).collect::<String>()).unwrap();
    let mut wanted = only("hooks", json!({ "channel": "webhook", "lines_file": lines, "supports": ["monitor"] }));
    wanted["access"] = json!({ "default": "allow" });
    daemon.configure(&wanted);
    daemon.launch();
    eventually("all have an end", || daemon.terminal() == 8);
    assert_eq!((daemon.ended("completed"), daemon.ended("handled_by_automation")), (5, 3));
    let reasons = daemon.texts("nexus", "SELECT reason FROM nexus_requests WHERE status = 'handled_by_automation'");
    assert!(reasons.iter().all(|reason| reason.starts_with("breaker: ")), "{reasons:?}");
    assert!(daemon.nexus_ok(&["trace", "list", "--status", "handled_by_automation"]).contains("breaker: "));
    let log = daemon.stdout() + &daemon.stderr();
    assert_eq!(log.matches("a session goes round in circles").count(), 1, "{log}");
}
