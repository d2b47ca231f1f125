//! `queue_mode: steer` with a model that calls tools, a real daemon and a real MCP server: what is said while the turn goes on is
//! told behind the results of the tools and shares the run, what comes after the last question has a turn of its own, and
//! each message is answered once, also across `kill -9`.
#![allow(clippy::unwrap_used)]

mod common;

use common::model::{Model, OUTPUT_TOKENS, PROVIDERS, asked_with, call, reply, text};
use common::{Ask, Body, Daemon, NEXUS, config, eventually, fake, find, lines};
use serde_json::{Value, json};
use std::fs;
use std::path::PathBuf;
use std::sync::mpsc::SyncSender;

const WAITING: &str = "SELECT count(*) FROM nexus_requests WHERE status = 'waiting'";
const PROCESSING: &str = "SELECT count(*) FROM nexus_requests WHERE status = 'processing'";
/// Rounds of tool calls in one of which a message that was accepted must have reached the turn.
const ROUNDS_MAX: usize = 60;

/// A daemon whose agent is a model that answers when the test says so.
struct Steered {
    daemon: Daemon,
    wanted: Value,
    provider: &'static str,
    model: Model,
    replies: SyncSender<String>,
}

impl Steered {
    /// `mode` is the MCP server's.
    fn start(provider: &'static str, mode: &str, alter: impl FnOnce(&mut Value)) -> Self {
        let mut daemon = Daemon::new();
        let (model, replies) = Model::given();
        let server = PathBuf::from(NEXUS).with_file_name("examples").join("fake-mcp");
        assert!(server.exists(), "{} is missing: cargo build --example fake-mcp", server.display());
        let words = [server.to_string_lossy().into_owned(), mode.to_owned(), daemon.file("calls")];
        let mut wanted = config(json!({}));
        wanted["agents"] = json!({ "default": "model", "model": {
            "runner": "llm", "provider": provider, "url": model.url(), "model": "m", "timeout_ms": 60_000, "tool_rounds_max": ROUNDS_MAX,
            "mcp": { "fake": { "command": shell_words::join(words) } },
        } });
        wanted["access"]["policies"] = json!([{ "name": "all", "match": {}, "effect": "allow", "queue_mode": "steer" }]);
        alter(&mut wanted);
        daemon.configure(&wanted);
        daemon.launch();
        Self { daemon, wanted, provider, model, replies }
    }

    fn of(mode: &str) -> Self {
        Self::start("openai", mode, |_| {})
    }

    /// Sends a message and doesn't wait for its answer.
    fn send(&self, text: &str) -> Body {
        let answer = self.daemon.open(&Ask::post("/control/send", &json!({ "text": text })));
        assert_eq!(answer.status, 200);
        answer.body
    }

    fn waiting(&self, count: i64) {
        eventually("they wait", || self.daemon.count("nexus", WAITING) == count);
    }

    /// What the model is told with the question of this number, from 1, once it is asked.
    fn question(&self, number: usize) -> Vec<Value> {
        find("the model is asked", || self.model.asked().get(number - 1).map(|(_, body)| said(body)))
    }

    /// Answers the next question, or the one that waits for it.
    fn give(&self, reply: String) {
        self.replies.send(reply).unwrap();
    }

    fn give_text(&self, words: &str) {
        self.give(text(self.provider, words));
    }

    fn give_call(&self) {
        self.give(call(self.provider, "fake__echo", "ping"));
    }

    /// Answers this question and those after it with a call of a tool, until one says all of `texts`; its number.
    fn call_until_told(&self, first: usize, texts: &[&str]) -> usize {
        for number in first..first + ROUNDS_MAX {
            let users = users(&self.question(number));
            if texts.iter().all(|text| users.iter().any(|user| user == text)) {
                return number;
            }
            self.give_call();
        }
        panic!("the model was not told {texts:?}")
    }

    /// Lets the call of a tool that waits come to its end, and others after it, until a question ends with `text`; its number.
    /// So many questions were of other turns.
    fn pass_until_told(&self, text: &str, others: usize) -> usize {
        for calls in 1..ROUNDS_MAX {
            self.called(calls);
            assert_eq!(self.daemon.count("nexus", PROCESSING), 1, "it joined before it was told");
            fs::write(self.daemon.file("calls.go"), "").unwrap();
            let number = calls + others + 1;
            if self.question(number).last().unwrap().to_string().contains(text) {
                return number;
            }
            self.give_call();
        }
        panic!("the model was not told {text}")
    }

    /// Waits until the tool was called so often.
    fn called(&self, times: usize) {
        eventually("the tool is called", || lines(self.daemon.file("calls")).len() == times);
    }

    fn runs(&self) -> i64 {
        self.daemon.count("nexus", "SELECT count(*) FROM runs")
    }

    fn trace(&self, event_seq: i64) -> Value {
        serde_json::from_str(&self.daemon.nexus_ok(&["trace", "show", &event_seq.to_string(), "--json"])).unwrap()
    }

    /// Waits until the ledger of turns has these, as what was said to the agent.
    fn turns(&self, texts: &[&str]) {
        let sql = "SELECT m.content FROM messages m JOIN turns t ON t.turn_id = m.turn_id WHERE m.role = 'user' ORDER BY t.depth";
        eventually("the turns are recorded", || self.daemon.texts("agents", sql) == texts);
    }
}

/// The messages of a question, however the provider calls them.
fn said(body: &Value) -> Vec<Value> {
    ["messages", "contents", "input"].iter().find_map(|key| body[*key].as_array()).unwrap().clone()
}

/// What users said in a question of OpenAI's shape.
fn users(question: &[Value]) -> Vec<String> {
    let of_users = question.iter().filter(|message| message["role"] == "user");
    of_users.map(|message| message["content"].as_str().unwrap().to_owned()).collect()
}

/// Status and text of an end.
fn ended(body: Body) -> (String, String) {
    let end = body.end();
    (end["status"].as_str().unwrap().to_owned(), end["text"].as_str().unwrap_or("").trim().to_owned())
}

fn completed(text: &str) -> (String, String) {
    ("completed".to_owned(), text.to_owned())
}

#[test]
fn what_is_said_while_a_tool_runs_is_told_behind_its_result_and_answered_with_the_run() {
    let steered = Steered::of("gated");
    let one = steered.send("one");
    steered.question(1);
    steered.give_call();
    steered.called(1);
    let two = steered.send("two");
    steered.waiting(1);
    let number = steered.pass_until_told("two", 0);
    assert_eq!(steered.daemon.count("nexus", PROCESSING), 2, "the model was told before it was on disk");
    let question = steered.question(number);
    let [.., result, last] = question.as_slice() else { panic!("{question:?}") };
    assert_eq!((&result["role"], &last["role"], &last["content"]), (&json!("tool"), &json!("user"), &json!("two")));
    assert!(result.to_string().contains("echo: ping"), "{result}");
    assert_eq!(users(&question), ["one", "two"]);
    steered.give_text("Both.");
    assert_eq!((ended(one), ended(two)), (completed("Both."), completed("")));
    assert_eq!((steered.runs(), steered.daemon.count("nexus", "SELECT count(*) FROM deliveries")), (1, 1));
    let (first, second) = (steered.trace(1), steered.trace(2));
    let lead = first["request"]["request_id"].as_str().unwrap();
    assert_eq!(second["request"]["reason"], format!("steered: answered with {lead}"));
    assert_eq!(first["request"]["trace"]["agent"]["fellows"].as_array().map(Vec::len), Some(1));
    assert_eq!(second["runs"][0]["run_id"], first["runs"][0]["run_id"]);
    let three = steered.send("three");
    assert_eq!(users(&steered.question(number + 1)), ["one\n\ntwo", "three"]);
    steered.give_text("Third.");
    assert_eq!(ended(three), completed("Third."));
    steered.turns(&["one\n\ntwo", "three"]);
    assert_eq!(steered.model.asked().len(), number + 1);
}

#[test]
fn what_comes_after_the_last_question_has_a_turn_of_its_own() {
    let steered = Steered::of("good");
    let one = steered.send("one");
    steered.question(1);
    steered.give_call();
    steered.question(2);
    let two = steered.send("two");
    steered.waiting(1);
    steered.give_text("One.");
    assert_eq!(ended(one), completed("One."));
    let question = steered.question(3);
    assert_eq!(users(&question), ["one", "two"]);
    assert!(question.iter().all(|message| message["role"] != "tool"), "it is not the same turn: {question:?}");
    steered.give_text("Two.");
    assert_eq!(ended(two), completed("Two."));
    assert_eq!((steered.runs(), steered.model.asked().len()), (2, 3));
    steered.turns(&["one", "two"]);
}

#[test]
fn several_messages_are_told_in_their_order() {
    let steered = Steered::of("good");
    let one = steered.send("one");
    steered.question(1);
    let two = steered.send("two");
    steered.waiting(1);
    let three = steered.send("three");
    steered.waiting(2);
    let number = steered.call_until_told(1, &["two", "three"]);
    assert_eq!(steered.daemon.count("nexus", PROCESSING), 3);
    let question = steered.question(number);
    assert_eq!(users(&question), ["one", "two", "three"]);
    let place = question.iter().position(|message| message["content"] == "two").unwrap();
    assert_eq!(question[place - 1]["role"], "tool", "{question:?}");
    steered.give_text("All.");
    assert_eq!((ended(one), ended(two), ended(three)), (completed("All."), completed(""), completed("")));
    assert_eq!(steered.runs(), 1);
    steered.turns(&["one\n\ntwo\n\nthree"]);
}

#[test]
fn each_provider_is_told_in_its_own_shape() {
    for provider in PROVIDERS {
        let steered = Steered::start(provider, "gated", |_| {});
        let one = steered.send("one");
        steered.question(1);
        steered.give_call();
        steered.called(1);
        let two = steered.send("two");
        steered.waiting(1);
        let question = steered.question(steered.pass_until_told("two", 0));
        let [.., result, last] = question.as_slice() else { panic!("{provider}: {question:?}") };
        assert!(result.to_string().contains("echo: ping"), "{provider}: {question:?}");
        assert_eq!(last["role"], "user", "{provider}: {question:?}");
        steered.give_text("Both.");
        assert_eq!((ended(one), ended(two)), (completed("Both."), completed("")), "{provider}");
    }
}

#[test]
fn what_was_told_before_a_kill_shares_what_becomes_of_the_run() {
    for (decision, status, runs) in [("auto", "failed", 1), ("rerun", "completed", 3)] {
        let mut steered = Steered::start("openai", "good", |wanted| wanted["pipeline"] = json!({ "on_interrupted": decision }));
        let one = steered.send("one");
        steered.question(1);
        let two = steered.send("two");
        steered.waiting(1);
        let number = steered.call_until_told(1, &["two"]);
        steered.daemon.kill9();
        drop((one, two));
        steered.give_text("To nobody.");
        steered.daemon.launch();
        if decision == "rerun" {
            assert_eq!(users(&steered.question(number + 1)), ["one"], "each has a turn of its own");
            steered.give_text("First.");
            assert_eq!(users(&steered.question(number + 2)), ["one", "two"]);
            steered.give_text("Second.");
        }
        eventually("both have an end", || steered.daemon.ended(status) == 2);
        assert_eq!(steered.runs(), runs, "{decision}");
        assert_eq!(steered.daemon.count("nexus", "SELECT count(*) FROM runs WHERE status = 'interrupted'"), 1);
    }
}

#[test]
fn what_was_not_told_before_a_kill_has_its_turn_after_it() {
    let mut steered = Steered::of("gated");
    let one = steered.send("one");
    steered.question(1);
    steered.give_call();
    steered.called(1);
    let two = steered.send("two");
    steered.waiting(1);
    steered.daemon.kill9();
    drop((one, two));
    steered.daemon.launch();
    assert_eq!(users(&steered.question(2)), ["two"]);
    steered.give_text("Two.");
    eventually("both have an end", || steered.daemon.terminal() == 2);
    // The first has acted, so it is not repeated.
    assert_eq!((steered.daemon.ended("failed"), steered.daemon.ended("completed")), (1, 1));
    assert_eq!(steered.runs(), 2);
}

#[test]
fn a_run_that_fails_or_takes_too_long_ends_for_all_that_it_was_told() {
    let refused = reply("400 Bad Request", "", r#"{"error": {"message": "too much"}}"#);
    for (answer, why) in [(Some(refused), "HTTP 400"), (None, "time is up")] {
        let steered = Steered::start("openai", "good", |wanted| wanted["agents"]["model"]["timeout_ms"] = json!(10_000));
        let one = steered.send("one");
        steered.question(1);
        let two = steered.send("two");
        steered.waiting(1);
        let number = steered.call_until_told(1, &["two"]);
        answer.into_iter().for_each(|answer| steered.give(answer));
        assert_eq!((ended(one).0, ended(two).0), ("failed".to_owned(), "failed".to_owned()), "{why}");
        for event_seq in [1, 2] {
            let reason = steered.trace(event_seq)["request"]["reason"].as_str().unwrap().to_owned();
            assert!(reason.contains(why), "{reason}");
        }
        assert_eq!((steered.runs(), steered.model.asked().len()), (1, number), "{why}");
        steered.turns(&["one\n\ntwo"]);
    }
}

#[test]
fn what_a_budget_kept_the_model_from_hearing_has_a_turn_of_its_own() {
    // Enough for the question with its tools.
    let tokens = 20_000;
    let limit = json!({ "tokens_per_session": tokens });
    let steered = Steered::start("openai", "good", |wanted| wanted["agents"]["model"]["budget"] = limit);
    let one = steered.send("one");
    steered.question(1);
    let two = steered.send("two");
    steered.waiting(1);
    steered.give(asked_with(&call("openai", "fake__echo", "ping"), tokens - OUTPUT_TOKENS));
    assert_eq!((ended(one).0, ended(two).0), ("failed".to_owned(), "failed".to_owned()));
    assert_eq!((steered.runs(), steered.model.asked().len()), (2, 1));
    steered.turns(&["one", "two"]);
}

#[test]
fn other_sessions_of_the_agent_go_on_meanwhile() {
    let mut steered = Steered::start("openai", "gated", |wanted| wanted["access"]["owner"] = json!(["boss:*"]));
    let one = steered.send("one");
    steered.question(1);
    steered.give_call();
    steered.called(1);
    let two = steered.send("two");
    steered.waiting(1);
    steered.wanted["adapters"] = json!({ "guest": fake(json!({ "channel": "guest", "sender": "g1", "events": 1 })) });
    steered.daemon.configure(&steered.wanted);
    steered.daemon.nexus_ok(&["daemon", "reload"]);
    let other = users(&steered.question(2));
    assert!(other.len() == 1 && other[0].starts_with("message "), "{other:?}");
    steered.give_text("For the guest.");
    eventually("the guest is answered", || steered.daemon.ended("completed") == 1);
    assert_eq!(steered.daemon.count("nexus", WAITING), 1);
    let number = steered.pass_until_told("two", 1);
    assert_eq!(users(&steered.question(number)), ["one", "two"]);
    steered.give_text("Both.");
    assert_eq!((ended(one), ended(two)), (completed("Both."), completed("")));
    assert_eq!(steered.runs(), 2);
}

#[test]
fn a_cap_counts_what_the_turn_has_no_room_for() {
    let cap = json!({ "cap": 1, "drop": "new" });
    let steered = Steered::start("openai", "good", |wanted| wanted["access"]["policies"][0]["queue"] = cap);
    let one = steered.send("one");
    steered.question(1);
    let others: Vec<Body> = (0..30).map(|n| steered.send(&format!("more {n}"))).collect();
    // 8 that the agent was told, 8 on their way to it, and the one that may wait.
    eventually("the rest is dropped", || steered.daemon.ended("expired") >= 30 - 17);
    (0..31).for_each(|_| steered.give_text("Fine."));
    assert_eq!(ended(one), completed("Fine."));
    eventually("all have an end", || steered.daemon.terminal() == 31);
    drop(others);
    let (answered, dropped) = (steered.daemon.ended("completed"), steered.daemon.ended("expired"));
    assert!(answered >= 2 && answered + dropped == 31, "{answered} and {dropped}");
    assert_eq!((steered.runs(), steered.model.asked().len()), (answered, usize::try_from(answered).unwrap()));
}

#[test]
fn a_model_without_tools_is_interrupted() {
    let has_none: fn(&mut Value) = |wanted| wanted["agents"]["model"]["mcp"] = json!({});
    let may_use_none: fn(&mut Value) = |wanted| wanted["access"]["policies"][0]["permissions"] = json!({ "tools": { "deny": ["*"] } });
    for alter in [has_none, may_use_none] {
        let steered = Steered::start("openai", "good", alter);
        let one = steered.send("one");
        steered.question(1);
        let two = steered.send("two");
        assert_eq!(ended(one), completed(""));
        assert_eq!(steered.trace(1)["request"]["trace"]["response"]["stop_reason"], "aborted");
        steered.give_text("To nobody.");
        assert!(steered.question(2).last().unwrap().to_string().contains("two"));
        steered.give_text("Two.");
        assert_eq!(ended(two), completed("Two."));
    }
}
