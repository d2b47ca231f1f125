//! What an agent with a model may use, who takes its place, and what it remembers; with a real daemon.
#![allow(clippy::unwrap_used)]

mod common;

use common::model::{INPUT_TOKENS, Model, OUTPUT_TOKENS, endless_text, reply, text};
use common::{Ask, Daemon, config, eventually, find, zone_at_noon};
use serde_json::{Value, json};

const TOKENS: u64 = INPUT_TOKENS + OUTPUT_TOKENS;

fn agent(model: &Model) -> Value {
    json!({ "runner": "llm", "url": model.url(), "model": "m" })
}

fn with(agents: Value) -> Value {
    let mut wanted = config(json!({}));
    wanted["agents"] = agents;
    wanted["timer"]["timezone"] = json!(zone_at_noon());
    wanted
}

/// The newest request's trace.
fn trace(daemon: &Daemon) -> Value {
    let rows = daemon.texts("nexus", "SELECT trace FROM nexus_requests ORDER BY event_seq DESC LIMIT 1");
    serde_json::from_str(&rows[0]).unwrap()
}

fn busy() -> String {
    reply("429 Too Many Requests", "retry-after: 0\r\n", r#"{"error": {"message": "Rate limit reached"}}"#)
}

#[test]
fn a_budget_stops_the_agent_before_it_is_asked() {
    for (limit, told) in [
        (json!({ "tokens_per_day": TOKENS }), "The agent's budget for today is used up (13 of 13 tokens); it continues at "),
        (json!({ "tokens_per_session": TOKENS }), "The agent's budget for this session is used up (13 of 13 tokens)."),
        (
            json!({ "usd_per_session": 0.0001, "usd_per_million_input": 10, "usd_per_million_output": 10 }),
            "The agent's budget for this session is used up ($0.0001 of $0.0001).",
        ),
        (
            json!({ "usd_per_day": 0.0001, "usd_per_million_input": 10, "usd_per_million_output": 10 }),
            "The agent's budget for today is used up ($0.0001 of $0.0001); it continues at ",
        ),
    ] {
        let model = Model::start(vec![text("openai", "First."), text("openai", "Second.")]);
        let mut one = agent(&model);
        one["budget"] = limit;
        let daemon = Daemon::start(&with(json!({ "default": "model", "model": one })));
        assert!(daemon.nexus_ok(&["send", "one"]).contains("First."));
        let refused = daemon.nexus(&["send", "two"]);
        assert_eq!(refused.code, Some(1), "{refused:?}");
        assert_eq!((daemon.ended("completed"), daemon.ended("failed")), (1, 1));
        let reasons = daemon.texts("nexus", "SELECT reason FROM nexus_requests WHERE status = 'failed'");
        assert!(reasons[0].starts_with(told), "{reasons:?}");
        assert_eq!(model.asked().len(), 1, "a hard stop asks nobody");
        assert_eq!(daemon.metric("nexus_agent_tokens_total{agent=\"model\",kind=\"input\"}"), INPUT_TOKENS);
    }
}

#[test]
fn an_answer_without_end_is_cut_at_the_budget_and_what_came_is_told_and_counted() {
    let (begin, piece) = endless_text("openai", 400);
    let model = Model::endless(begin, piece);
    let mut one = agent(&model);
    one["budget"] = json!({ "tokens_per_session": 2_000 });
    let mut daemon = Daemon::start(&with(json!({ "default": "model", "model": one })));
    let end = daemon.open(&Ask::post("/control/send", &json!({ "text": "one" }))).body.end();
    let told = "The agent's budget for this session is used up (2,000 tokens).";
    assert_eq!((&end["status"], &end["reason"]), (&json!("failed"), &json!(told)), "{end}");
    let text = end["text"].as_str().unwrap();
    assert!(text.starts_with("xxxx") && text.ends_with(&format!("{told} Its answer above is not complete.")), "{text}");
    let rows = "SELECT t.output_tokens || ' ' || ((length(m.content) + 3) / 4) || ' ' || t.input_tokens
                FROM turns t JOIN messages m ON m.turn_id = t.turn_id AND m.role = 'assistant'";
    let row = find("the turn is in the ledger", || daemon.texts("agents", rows).pop());
    let numbers: Vec<u64> = row.split(' ').map(|number| number.parse().unwrap()).collect();
    assert!(matches!(numbers[..], [counted, said, 1] if counted == said && (2_000..2_100).contains(&counted)), "{row}");
    daemon.kill9();
    daemon.launch();
    assert_eq!(daemon.nexus(&["send", "two"]).code, Some(1));
    assert_eq!(model.asked().len(), 1, "nor is it asked again, after a crash");
}

#[test]
fn a_session_that_begins_anew_has_its_budget_again() {
    let model = Model::start(vec![text("openai", "First."), text("openai", "Second.")]);
    let mut one = agent(&model);
    one["budget"] = json!({ "tokens_per_session": TOKENS });
    let daemon = Daemon::start(&with(json!({ "default": "model", "model": one })));
    assert!(daemon.nexus_ok(&["send", "one"]).contains("First."));
    assert_eq!(daemon.nexus(&["send", "two"]).code, Some(1));
    eventually("both turns are in the ledger", || daemon.count("agents", "SELECT count(*) FROM turns") == 2);
    let label = daemon.texts("agents", "SELECT label FROM sessions").pop().unwrap();
    daemon.nexus_ok(&["sessions", "fork", &label, "what-if"]);
    let shown = daemon.nexus_ok(&["sessions", "show", "what-if"]);
    assert!(shown.contains("model 13 of 13 tokens"), "a fork has used what led to it: {shown}");
    daemon.nexus_ok(&["sessions", "archive", &label]);
    assert!(daemon.nexus_ok(&["send", "three"]).contains("Second."));
    eventually("its turn is in the ledger", || daemon.count("agents", "SELECT count(*) FROM turns") == 3);
    let shown = daemon.nexus_ok(&["sessions", "show", &label]);
    assert!(shown.contains("model 13 of 13 tokens"), "{shown}");
    assert_eq!(daemon.nexus(&["send", "four"]).code, Some(1));
    assert_eq!(model.asked().len(), 2);
}

#[test]
fn what_is_used_of_a_days_budget_is_shown() {
    let model = Model::start(vec![text("openai", "First.")]);
    let (mut one, mut other) = (agent(&model), agent(&model));
    one["budget"] = json!({ "tokens_per_day": 50_000, "usd_per_day": 2, "usd_per_million_input": 10, "usd_per_million_output": 10 });
    other["budget"] = json!({ "tokens_per_session": 5 });
    let daemon = Daemon::start(&with(json!({ "default": "model", "model": one, "other": other })));
    let shown = || daemon.nexus_ok(&["daemon", "status", "--verbose"]);
    let before = shown();
    assert!(before.contains("\n\nBudgets:\n  model 0 of 50,000 tokens, $0.0000 of $2.0000 until "), "{before}");
    assert!(!before.contains("\n  other "), "{before}");
    daemon.nexus_ok(&["send", "one"]);
    eventually("it is counted", || shown().contains("  model 13 of 50,000 tokens, $0.0001 of $2.0000 until "));
    let told: Value = serde_json::from_str(&daemon.nexus_ok(&["daemon", "status", "--verbose", "--json"])).unwrap();
    assert_eq!((&told["budgets"][0]["tokens"], &told["budgets"][1]), (&json!(TOKENS), &Value::Null), "{told}");
}

#[test]
fn a_session_is_shown_with_what_is_used_of_its_budget_with_a_daemon_and_without() {
    let model = Model::start(vec![text("openai", "First.")]);
    let mut one = agent(&model);
    let (tokens, usd) = (200_000, 1);
    one["budget"] = json!({
        "tokens_per_session": tokens, "usd_per_session": usd, "usd_per_million_input": 10, "usd_per_million_output": 10,
    });
    let mut daemon = Daemon::start(&with(json!({ "default": "model", "model": one })));
    daemon.nexus_ok(&["send", "one"]);
    let label = find("the session is there", || daemon.texts("agents", "SELECT label FROM sessions").pop());
    let is_shown = |daemon: &Daemon| {
        let shown = daemon.nexus_ok(&["sessions", "show", &label]);
        assert!(shown.contains("\n  Used:     model 13 of 200,000 tokens, $0.0001 of $1.0000\n"), "{shown}");
        let told: Value = serde_json::from_str(&daemon.nexus_ok(&["sessions", "show", &label, "--json"])).unwrap();
        let used = &told["used"][0];
        assert_eq!((&used["agent"], &used["tokens"], &used["tokens_per_session"]), (&json!("model"), &json!(TOKENS), &json!(tokens)));
        assert_eq!(used["usd_per_session"].as_f64(), Some(1.0), "{used}");
    };
    is_shown(&daemon);
    daemon.stop();
    is_shown(&daemon);
}

#[test]
fn another_agent_takes_the_place_of_one_that_is_busy() {
    let (first, second) = (Model::start(vec![busy(), busy(), busy()]), Model::start(vec![text("openai", "From the spare.")]));
    let mut asked = agent(&first);
    asked["fallback"] = json!(["spare"]);
    let daemon = Daemon::start(&with(json!({ "default": "model", "model": asked, "spare": agent(&second) })));
    assert!(daemon.nexus_ok(&["send", "hello"]).contains("From the spare."));
    assert_eq!((first.asked().len(), second.asked().len()), (3, 1));
    let section = trace(&daemon)["agent"].clone();
    assert_eq!((&section["agent_id"], &section["answered_by"]), (&json!("model"), &json!("spare")), "{section}");
    assert!(section["fallback_from"].as_str().unwrap().contains("HTTP 429"), "{section}");
    let charged = find("the turn is in the ledger", || daemon.texts("agents", "SELECT agent || ' ' || charged FROM turns").pop());
    assert_eq!(charged, "model spare");
}

#[test]
fn a_wrong_key_is_told_and_not_covered_by_another_agent() {
    let refused = reply("401 Unauthorized", "", r#"{"error": {"message": "no such key"}}"#);
    let (first, second) = (Model::start(vec![refused]), Model::start(vec![text("openai", "From the spare.")]));
    let mut asked = agent(&first);
    asked["fallback"] = json!(["spare"]);
    let daemon = Daemon::start(&with(json!({ "default": "model", "model": asked, "spare": agent(&second) })));
    daemon.nexus(&["send", "hello"]);
    assert_eq!(daemon.ended("failed"), 1);
    assert_eq!((first.asked().len(), second.asked().len()), (1, 0));
}

#[test]
fn a_question_that_nobody_answers_is_charged_and_a_refused_one_is_not() {
    let model = Model::start(vec![String::new(), busy(), busy(), busy()]);
    let mut one = agent(&model);
    one["timeout_ms"] = json!(2_000);
    one["budget"] = json!({ "tokens_per_day": 1_000_000 });
    let daemon = Daemon::start(&with(json!({ "default": "model", "model": one })));
    assert_eq!(daemon.nexus(&["send", "twelve bytes"]).code, Some(1));
    let used = || daemon.texts("agents", "SELECT input_tokens || ' ' || output_tokens || ' ' || charged FROM turns");
    let first = find("the turn is in the ledger", || used().pop());
    assert_eq!(first, "3 0 model", "its question, and no answer");
    daemon.nexus(&["send", "again"]);
    let sql = "SELECT coalesce(sum(input_tokens), 0) FROM turns";
    eventually("the second turn is in the ledger", || daemon.count("agents", "SELECT count(*) FROM turns") == 2);
    assert_eq!(daemon.count("agents", sql), 3);
}

#[test]
fn an_error_behind_a_status_of_success_is_charged() {
    let error = json!({ "error": { "message": "too much to think", "code": 400 } });
    let model = Model::start(vec![reply("200 OK", "content-type: text/event-stream\r\n", &format!("data: {error}\n\n"))]);
    let mut one = agent(&model);
    one["budget"] = json!({ "tokens_per_day": 1_000_000 });
    let daemon = Daemon::start(&with(json!({ "default": "model", "model": one })));
    assert_eq!(daemon.nexus(&["send", "twelve bytes"]).code, Some(1));
    let reasons = daemon.texts("nexus", "SELECT reason FROM nexus_requests");
    assert!(reasons[0].contains("too much to think"), "{reasons:?}");
    let used = || daemon.texts("agents", "SELECT coalesce(input_tokens, 0) || ' ' || coalesce(output_tokens, 0) FROM turns");
    assert_eq!(find("the turn is in the ledger", || used().pop()), "3 0");
    assert_eq!(model.asked().len(), 1);
}

#[test]
fn an_end_without_an_answer_is_told() {
    let ended = |reason: &str| {
        let choice = json!({ "index": 0, "delta": {}, "finish_reason": reason });
        let chunk = json!({ "id": "1", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice] });
        reply("200 OK", "content-type: text/event-stream\r\n", &format!("data: {chunk}\n\ndata: [DONE]\n\n"))
    };
    let model = Model::start(vec![ended("content_filter"), ended("length"), ended("stop")]);
    let daemon = Daemon::start(&with(json!({ "default": "model", "model": agent(&model) })));
    for (n, why) in [(1, "refused to answer"), (2, "before its first word")] {
        assert_eq!(daemon.nexus(&["send", "hello"]).code, Some(1), "{why}");
        let reasons = daemon.texts("nexus", "SELECT reason FROM nexus_requests ORDER BY event_seq DESC LIMIT 1");
        assert!(reasons[0].contains(why), "{reasons:?}");
        assert_eq!(daemon.ended("failed"), n);
    }
    daemon.nexus_ok(&["send", "hello"]);
    assert_eq!(daemon.ended("completed"), 1, "to say nothing is the model's choice");
}

#[test]
fn the_oldest_turns_are_left_out_of_a_small_context() {
    let model = Model::start((1..=3).map(|n| text("openai", &format!("Answer {n}."))).collect());
    let mut one = agent(&model);
    one["context_tokens"] = json!(256);
    let daemon = Daemon::start(&with(json!({ "default": "model", "model": one })));
    for n in 1..=3 {
        daemon.nexus_ok(&["send", &format!("question {n} {}", "x".repeat(400))]);
    }
    let (_, body) = &model.asked()[2];
    let said: Vec<&str> = body["messages"].as_array().unwrap().iter().map(|message| message["content"].as_str().unwrap()).collect();
    let starts: Vec<String> = said.iter().map(|text| text.chars().take(10).collect()).collect();
    assert_eq!(starts, ["question 2", "Answer 2.", "question 3"]);
    let section = trace(&daemon)["agent"].clone();
    assert_eq!((&section["history_messages"], &section["history_dropped"]), (&json!(2), &json!(2)), "{section}");
}
