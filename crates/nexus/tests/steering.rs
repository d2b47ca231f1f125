//! `queue_mode: steer` with an agent that takes messages while it runs (`testing/fake_agent.rs`): what it took in shares its
//! run, what it didn't has a turn of its own, and each message is answered once, also across `kill -9`.
#![allow(clippy::unwrap_used)]

mod common;

use common::{Ask, Body, Daemon, NEXUS, Signal, config, eventually, json_lines};
use serde_json::{Value, json};
use std::fs;
use std::io::{BufRead, BufReader, Lines};
use std::path::PathBuf;

const PROCESSING: &str = "SELECT count(*) FROM nexus_requests WHERE status = 'processing'";

/// A daemon whose agent is the fake one, with a directory of its own.
struct Steered {
    daemon: Daemon,
    wanted: Value,
    place: PathBuf,
}

impl Steered {
    fn start(mode: &str, agent: Value, pipeline: Value) -> Self {
        let mut daemon = Daemon::new();
        let place = PathBuf::from(daemon.file("agent"));
        fs::create_dir(&place).unwrap();
        let mut wanted = config(json!({}));
        let program = PathBuf::from(NEXUS).with_file_name("examples").join("fake-agent");
        assert!(program.exists(), "{} is missing: cargo build --example fake-agent", program.display());
        let words = [program.to_string_lossy(), place.to_string_lossy(), mode.into()];
        let mut takes = json!({ "runner": "command", "command": shell_words::join(words), "steering": true });
        takes.as_object_mut().unwrap().extend(agent.as_object().cloned().unwrap());
        wanted["agents"] = json!({ "default": "takes", "takes": takes });
        wanted["access"]["policies"] = json!([{ "name": "all", "match": {}, "effect": "allow", "queue_mode": "steer" }]);
        wanted["pipeline"] = pipeline;
        daemon.configure(&wanted);
        daemon.launch();
        Self { daemon, wanted, place }
    }

    fn of(mode: &str) -> Self {
        Self::start(mode, json!({}), json!({}))
    }

    /// Sends a message and doesn't wait for its answer.
    fn send(&self, text: &str) -> Sent {
        let answer = self.daemon.open(&Ask::post("/control/send", &json!({ "text": text })));
        assert_eq!(answer.status, 200);
        Sent { lines: BufReader::new(answer.body).lines() }
    }

    /// Waits until the agent was told this, as its last.
    fn told(&self, what: &str, text: &str) {
        let last = json!({ what: text });
        eventually(&format!("the agent is told {last}"), || self.log().last() == Some(&last));
    }

    fn log(&self) -> Vec<Value> {
        json_lines(self.place.join("log"))
    }

    /// Lets the agent's present turn, or its next one, come to its end.
    fn pass(&self) {
        fs::write(self.place.join("go"), "").unwrap();
    }

    /// Waits until so many requests share the run.
    fn joined(&self, count: i64) {
        eventually("they share the run", || self.daemon.count("nexus", PROCESSING) == count);
    }

    fn runs(&self, status: &str) -> i64 {
        self.daemon.count("nexus", &format!("SELECT count(*) FROM runs WHERE status = '{status}'"))
    }

    fn trace(&self, event_seq: i64) -> Value {
        serde_json::from_str(&self.daemon.nexus_ok(&["trace", "show", &event_seq.to_string(), "--json"])).unwrap()
    }
}

/// A message whose end is still to come.
struct Sent {
    lines: Lines<BufReader<Body>>,
}

impl Sent {
    /// Its status, and its text.
    fn end(self) -> (String, Option<String>) {
        for line in self.lines.map_while(Result::ok).filter(|line| line.starts_with('{')) {
            let part: Value = serde_json::from_str(&line).unwrap();
            if part["type"] == "end" {
                let word = |key: &str| part[key].as_str().map(str::to_owned);
                return (word("status").unwrap(), word("text").filter(|text| !text.is_empty()));
            }
        }
        panic!("the answer ended without its end")
    }
}

fn completed(text: &str) -> (String, Option<String>) {
    ("completed".to_owned(), (!text.is_empty()).then(|| text.to_owned()))
}

#[test]
fn what_a_running_agent_takes_in_is_answered_with_its_turn() {
    let steered = Steered::of("takes");
    let one = steered.send("one");
    steered.told("turn", "one");
    let two = steered.send("two");
    steered.told("steer", "two");
    let three = steered.send("three");
    steered.told("steer", "three");
    steered.joined(3);
    steered.pass();
    assert_eq!(one.end(), completed("one + two + three"));
    assert_eq!((two.end(), three.end()), (completed(""), completed("")));
    assert_eq!((steered.runs("finished"), steered.daemon.count("nexus", "SELECT count(*) FROM runs")), (1, 1));
    assert_eq!(steered.daemon.count("nexus", "SELECT count(*) FROM deliveries"), 1, "one reply, to the first");
    let (first, second) = (steered.trace(1), steered.trace(2));
    let lead = first["request"]["request_id"].as_str().unwrap();
    assert_eq!(second["request"]["reason"], format!("steered: answered with {lead}"));
    assert_eq!(first["request"]["trace"]["agent"]["fellows"].as_array().map(Vec::len), Some(2));
    assert_eq!(second["runs"][0]["run_id"], first["runs"][0]["run_id"]);
    assert_eq!(second["request"]["attempts"], 1);
    assert_eq!(steered.daemon.count("nexus", "SELECT count(*) FROM access_audit WHERE decision = 'allow'"), 3);
    let said = "SELECT content FROM messages WHERE role = 'user'";
    eventually("the session has one turn", || steered.daemon.texts("agents", said) == ["one\n\ntwo\n\nthree"]);
    assert_eq!(steered.daemon.nexus(&["doctor"]).code, Some(0));
}

#[test]
fn what_it_does_not_say_to_have_taken_in_has_a_turn_of_its_own() {
    let steered = Steered::of("mute");
    let one = steered.send("one");
    steered.told("turn", "one");
    let two = steered.send("two");
    steered.told("steer", "two");
    let three = steered.send("three");
    steered.told("steer", "three");
    steered.pass();
    assert_eq!(one.end(), completed("one"));
    steered.told("turn", "two");
    steered.pass();
    assert_eq!(two.end(), completed("two"));
    steered.told("turn", "three");
    steered.pass();
    assert_eq!(three.end(), completed("three"));
    assert_eq!(steered.runs("finished"), 3);
}

#[test]
fn an_agent_that_reads_nothing_holds_nobody_and_loses_nothing() {
    let steered = Steered::of("deaf");
    let one = steered.send("one");
    steered.told("turn", "one");
    // More than are with it and on their way to it, and some that are long.
    let texts: Vec<String> = (0..20).map(|n| format!("{n} {}", "x".repeat(10_000))).collect();
    let others: Vec<Sent> = texts.iter().map(|text| steered.send(text)).collect();
    let all = "SELECT count(*) FROM nexus_requests WHERE status = 'waiting'";
    eventually("they wait", || steered.daemon.count("nexus", all) == 20);
    steered.daemon.nexus_ok(&["daemon", "status"]);
    steered.pass();
    assert_eq!(one.end(), completed("one"));
    for (text, other) in texts.iter().zip(others) {
        let begin: String = text.chars().take(100).collect();
        steered.told("turn", &begin);
        steered.pass();
        assert_eq!(other.end(), completed(&begin));
    }
    assert_eq!(steered.runs("finished"), 21);
}

#[test]
fn an_agent_that_never_says_that_it_takes_input_is_interrupted() {
    let steered = Steered::of("silent");
    let one = steered.send("one");
    steered.told("turn", "one");
    let two = steered.send("two");
    assert_eq!(one.end(), completed(""));
    assert_eq!(steered.trace(1)["request"]["trace"]["response"]["stop_reason"], "aborted");
    steered.told("turn", "two");
    steered.pass();
    assert_eq!(two.end(), completed("two"));
}

#[test]
fn what_is_said_twice_of_nothing_or_too_late_changes_nothing() {
    let steered = Steered::of("lies");
    let one = steered.send("one");
    steered.told("turn", "one");
    let two = steered.send("two");
    steered.told("steer", "two");
    steered.joined(2);
    steered.pass();
    assert_eq!((one.end(), two.end()), (completed("one + two"), completed("")));
    assert_eq!(steered.daemon.count("nexus", "SELECT count(*) FROM runs"), 1);
    assert_eq!(steered.daemon.ended("completed"), 2);
    let log = steered.daemon.stdout() + &steered.daemon.stderr();
    assert!(log.contains("messages that it was not given"), "{log}");
}

#[test]
fn what_was_not_taken_in_before_a_kill_has_its_turn_after_it() {
    let mut steered = Steered::of("mute");
    let one = steered.send("one");
    steered.told("turn", "one");
    let two = steered.send("two");
    steered.told("steer", "two");
    steered.daemon.kill9();
    drop((one, two));
    steered.daemon.launch();
    steered.told("turn", "two");
    steered.pass();
    eventually("both have an end", || steered.daemon.terminal() == 2);
    // The first may have acted, so it is not repeated.
    assert_eq!((steered.daemon.ended("failed"), steered.daemon.ended("completed")), (1, 1));
    assert_eq!((steered.runs("interrupted"), steered.runs("finished")), (1, 1));
}

#[test]
fn what_was_taken_in_before_a_kill_shares_what_becomes_of_the_run() {
    for (decision, status, runs) in [("auto", "failed", 1), ("rerun", "completed", 3)] {
        let mut steered = Steered::start("takes", json!({}), json!({ "on_interrupted": decision }));
        let one = steered.send("one");
        steered.told("turn", "one");
        let two = steered.send("two");
        steered.told("steer", "two");
        steered.joined(2);
        steered.daemon.kill9();
        drop((one, two));
        steered.daemon.launch();
        if decision == "rerun" {
            for text in ["one", "two"] {
                steered.told("turn", text);
                steered.pass();
            }
        }
        eventually("both have an end", || steered.daemon.ended(status) == 2);
        assert_eq!(steered.daemon.count("nexus", "SELECT count(*) FROM runs"), runs, "{decision}");
        assert_eq!(steered.runs("interrupted"), 1);
    }
}

#[test]
fn a_stop_interrupts_what_was_taken_in_with_its_run() {
    let mut steered = Steered::start("takes", json!({}), json!({ "on_interrupted": "fail" }));
    let one = steered.send("one");
    steered.told("turn", "one");
    let two = steered.send("two");
    steered.told("steer", "two");
    steered.joined(2);
    let mut notices = steered.daemon.sse(&Ask::get("/api/events/stream?types=system.stopping"));
    steered.daemon.signal(Signal::INT);
    notices.wait_for("system.stopping");
    steered.daemon.signal(Signal::INT);
    steered.daemon.wait();
    drop((one, two));
    steered.daemon.launch();
    eventually("both have failed", || steered.daemon.ended("failed") == 2);
    assert_eq!(steered.daemon.count("nexus", "SELECT count(*) FROM runs"), 1);
}

#[test]
fn a_turn_that_no_pipe_holds_is_told_whole_and_interrupted() {
    let steered = Steered::of("takes");
    // Each quotation mark is two bytes of JSON.
    let long = steered.send(&"\"".repeat(1_000_000));
    steered.told("turn", &"\"".repeat(100));
    let two = steered.send("two");
    assert_eq!(long.end(), completed(""));
    steered.told("turn", "two");
    steered.pass();
    assert_eq!(two.end(), completed("two"));
}

#[test]
fn an_agent_that_waits_for_the_end_of_stdin_is_stopped_by_its_deadline() {
    let steered = Steered::start("whole", json!({ "timeout_ms": 1000 }), json!({}));
    let (status, text) = steered.send("one").end();
    assert_eq!(status, "failed", "{text:?}");
    let reason = steered.trace(1)["request"]["reason"].as_str().unwrap().to_owned();
    assert!(reason.contains("time is up"), "{reason}");
}

#[test]
fn an_agent_that_listens_after_its_answer_sees_the_end_of_stdin() {
    let steered = Steered::of("lingers");
    let one = steered.send("one");
    steered.told("turn", "one");
    let two = steered.send("two");
    steered.told("steer", "two");
    steered.joined(2);
    steered.pass();
    assert_eq!((one.end(), two.end()), (completed("one + two"), completed("")));
}

#[test]
fn a_reload_that_turns_it_off_counts_for_the_next_turn() {
    let mut steered = Steered::of("takes");
    let one = steered.send("one");
    steered.told("turn", "one");
    let two = steered.send("two");
    steered.told("steer", "two");
    steered.wanted["agents"]["takes"]["steering"] = json!(false);
    steered.daemon.configure(&steered.wanted);
    steered.daemon.nexus_ok(&["daemon", "reload"]);
    let three = steered.send("three");
    steered.told("steer", "three");
    steered.pass();
    assert_eq!(one.end(), completed("one + two + three"));
    assert_eq!((two.end(), three.end()), (completed(""), completed("")));
    let four = steered.send("four");
    steered.told("turn", "four");
    let five = steered.send("five");
    assert_eq!(four.end(), completed(""), "it was interrupted");
    steered.told("turn", "five");
    steered.pass();
    assert_eq!(five.end(), completed("five"));
}
