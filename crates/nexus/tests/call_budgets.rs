//! What plugins and automations may use of models: counted, stopped and shown; with a real daemon and real processes.
#![allow(clippy::unwrap_used)]

mod automation;
mod common;

use automation::{doing, put, sent, text_of};
use common::model::{INPUT_TOKENS, Model, OUTPUT_TOKENS, endless_text, reply, text};
use common::{Ask, Daemon, Signal, config, eventually, find, send_signal, zone_at_noon};
use serde_json::{Value, json};
use std::fs;

const TOKENS: u64 = INPUT_TOKENS + OUTPUT_TOKENS;

/// A plugin that asks a model about each message, and puts what it is told in its place: an answer, or why there is none.
const ASKS: &str = "export const plugin = { name: 'asks', async afterReceiveEvent(req, nexus) {
  try {
    req.event.content = (await nexus.llm({ agent: 'small', prompt: 'twelve bytes' })).text;
  } catch (error) {
    req.event.content = error.message;
  }
} };\n";

/// An automation that does the same, with what the agent is told before the message.
const ASKED: &str = "return ctx.nexus.llm({ agent: 'small', prompt: 'p' })
  .then(({ text }) => ({ enrich: text }), (error) => ({ enrich: error.message }));";

/// A daemon in which `echo` answers, the plugin `asks` may use `plugin` of models, and `small` is one with this budget.
fn wanted(model: &Model, agent: &Value, plugin: &Value) -> Value {
    let mut wanted = config(json!({}));
    let small = json!({ "runner": "llm", "url": model.url(), "model": "m", "budget": agent });
    wanted["agents"] = json!({ "default": "echo", "small": small });
    wanted["timer"]["timezone"] = json!(zone_at_noon());
    wanted["plugins"] = json!({ "enabled": ["asks"], "grants": { "asks": ["llm"] }, "budgets": { "asks": plugin } });
    wanted
}

fn daemon_with(wanted: &Value) -> Daemon {
    let mut daemon = Daemon::new();
    let directory = daemon.workspace().join("plugins");
    fs::create_dir_all(&directory).unwrap();
    fs::write(directory.join("asks.js"), ASKS).unwrap();
    daemon.configure(wanted);
    daemon.launch();
    daemon
}

fn told(daemon: &Daemon, message: &str) -> String {
    text_of(&sent(daemon, message), "text").to_owned()
}

/// What calls have used, by the ledger.
fn rows(daemon: &Daemon) -> Vec<String> {
    let used = "input_tokens || ' ' || output_tokens || ' ' || estimated";
    daemon.texts("agents", &format!("SELECT caller || ' ' || agent || ' ' || {used} FROM calls ORDER BY started_at"))
}

#[test]
fn a_plugin_that_has_used_up_its_day_is_told_so_also_after_a_crash() {
    let model = Model::start(vec![text("openai", "First."), text("openai", "Second.")]);
    let mut daemon = daemon_with(&wanted(&model, &json!({}), &json!({ "tokens_per_day": TOKENS })));
    assert_eq!(told(&daemon, "one"), "First.");
    assert_eq!(rows(&daemon), [format!("plugin:asks small {INPUT_TOKENS} {OUTPUT_TOKENS} 0")]);
    let stop = "the plugin's budget for today is used up (13 of 13 tokens); it continues at ";
    let refused = told(&daemon, "two");
    assert!(refused.starts_with(stop), "{refused}");
    let info = daemon.nexus_ok(&["plugin", "info", "asks"]);
    assert!(info.lines().any(|line| line.starts_with("budget:") && line.contains(" 13 of 13 tokens until ")), "{info}");
    let status = daemon.nexus_ok(&["daemon", "status", "--verbose"]);
    assert!(status.contains("\n\nBudgets:\n  plugin asks 13 of 13 tokens until "), "{status}");
    let status: Value = serde_json::from_str(&daemon.nexus_ok(&["daemon", "status", "--verbose", "--json"])).unwrap();
    assert_eq!((&status["budgets"][0]["plugin"], &status["budgets"][0]["tokens"]), (&json!("asks"), &json!(TOKENS)), "{status}");
    assert_eq!(daemon.metric("nexus_call_tokens_total{caller=\"plugin:asks\",kind=\"input\"}"), INPUT_TOKENS);
    assert_eq!(daemon.metric("nexus_agent_tokens_total{agent=\"small\",kind=\"output\"}"), OUTPUT_TOKENS);
    daemon.kill9();
    daemon.launch();
    let refused = told(&daemon, "three");
    assert!(refused.starts_with(stop), "{refused}");
    assert_eq!(model.asked().len(), 1, "a hard stop asks nobody");
    // Another limit counts from the next call.
    daemon.configure(&wanted(&model, &json!({}), &json!({ "tokens_per_day": 2 * TOKENS })));
    let reload = daemon.nexus_ok(&["daemon", "reload"]);
    assert!(reload.contains("plugins.budgets changed"), "{reload}");
    assert_eq!(told(&daemon, "four"), "Second.");
    assert!(daemon.nexus_ok(&["plugin", "info", "asks"]).contains(" 26 of 26 tokens until "));
}

#[test]
fn an_answer_without_end_is_cut_at_the_plugins_budget() {
    let (begin, piece) = endless_text("openai", 400);
    let model = Model::endless(begin, piece);
    let daemon = daemon_with(&wanted(&model, &json!({}), &json!({ "tokens_per_day": 2_000 })));
    let refused = told(&daemon, "one");
    assert!(refused.starts_with("the plugin's budget for today is used up (2,000 tokens); it continues at "), "{refused}");
    // The question's twelve bytes, and what is left behind them.
    assert_eq!(model.asked()[0].1["max_tokens"], 1_997);
    let row = find("it is counted", || rows(&daemon).pop());
    let output = row.strip_prefix("plugin:asks small 3 ").and_then(|rest| rest.strip_suffix(" 1")).unwrap_or_else(|| panic!("{row}"));
    assert!((1_998..2_100).contains(&output.parse::<u64>().unwrap()), "{row}");
    let refused = told(&daemon, "two");
    assert!(refused.starts_with("the plugin's budget for today is used up (2,"), "{refused}");
    assert_eq!(model.asked().len(), 1);
}

#[test]
fn dollars_are_counted_at_the_agents_prices_and_without_prices_nothing_is_asked() {
    let model = Model::start(vec![text("openai", "First.")]);
    let limit = json!({ "usd_per_day": 0.0001 });
    let daemon = daemon_with(&wanted(&model, &json!({}), &limit));
    let refused = told(&daemon, "one");
    assert!(refused.starts_with("the plugin's budget is in US dollars, and agent `small` has no prices"), "{refused}");
    assert!(rows(&daemon).is_empty());
    let prices = json!({ "usd_per_million_input": 10, "usd_per_million_output": 10 });
    daemon.configure(&wanted(&model, &prices, &limit));
    daemon.nexus_ok(&["daemon", "reload"]);
    assert_eq!(told(&daemon, "two"), "First.");
    let refused = told(&daemon, "three");
    assert!(refused.starts_with("the plugin's budget for today is used up ($0.0001 of $0.0001)"), "{refused}");
    assert_eq!(model.asked().len(), 1);
}

#[test]
fn what_an_automation_uses_counts_for_its_own_day_and_for_the_agents() {
    let model = Model::start(vec![text("openai", "First."), text("openai", "Second.")]);
    let mut wanted = wanted(&model, &json!({ "tokens_per_day": 2 * TOKENS }), &json!({}));
    wanted["plugins"]["enabled"] = json!([]);
    wanted["automations"] = json!({ "grants": { "x": ["llm"], "y": ["llm"] }, "budgets": { "x": { "tokens_per_day": TOKENS } } });
    let mut daemon = Daemon::new();
    put(&daemon, "x.js", &doing("x", "", ASKED));
    daemon.configure(&wanted);
    daemon.launch();
    assert_eq!(told(&daemon, "one"), "First.\n\none");
    let refused = told(&daemon, "two");
    assert!(refused.starts_with("the automation's budget for today is used up (13 of 13 tokens)"), "{refused}");
    let info = daemon.nexus_ok(&["automation", "info", "x"]);
    assert!(info.contains(" 13 of 13 tokens until "), "{info}");
    // Another one has no limit of its own, but the agent has.
    put(&daemon, "y.js", &doing("y", "", ASKED));
    fs::remove_file(daemon.workspace().join("state/automations/x.js")).unwrap();
    daemon.nexus_ok(&["daemon", "reload"]);
    assert_eq!(told(&daemon, "three"), "Second.\n\nthree");
    let info = daemon.nexus_ok(&["automation", "info", "y"]);
    assert!(info.contains(" 13 tokens today, without a limit"), "{info}");
    let refused = told(&daemon, "four");
    assert!(refused.starts_with("the agent's budget for today is used up (26 of 26 tokens)"), "{refused}");
    // And so for the agent's own runs.
    wanted["agents"]["default"] = json!("small");
    daemon.configure(&wanted);
    daemon.nexus_ok(&["daemon", "reload"]);
    let end = sent(&daemon, "five");
    assert!(text_of(&end, "reason").starts_with("The agent's budget for today is used up (26 of 26 tokens)"), "{end}");
    assert_eq!(model.asked().len(), 2);
}

#[test]
fn a_question_that_its_asker_did_not_live_to_hear_answered_is_counted_and_a_refused_one_is_not() {
    let busy = reply("429 Too Many Requests", "retry-after: 0\r\n", r#"{"error": {"message": "Rate limit reached"}}"#);
    let error = "data: {\"error\": {\"message\": \"lost\", \"code\": 400}}\n\n";
    let worked = reply("200 OK", "content-type: text/event-stream\r\n", error);
    let model = Model::start(vec![String::new(), busy, worked]);
    let daemon = daemon_with(&wanted(&model, &json!({}), &json!({ "tokens_per_day": 1_000_000 })));
    let report = || {
        let all = daemon.get("/control/plugins").json();
        all["plugins"].as_array().unwrap().iter().find(|one| one["name"] == "asks").cloned().unwrap_or_default()
    };
    let pid = find("the plugin runs", || report()["pid"].as_i64());
    let said = daemon.open(&Ask::post("/control/send", &json!({ "text": "one" })));
    eventually("the model is asked", || model.asked().len() == 1);
    send_signal(i32::try_from(pid).unwrap(), Signal::KILL);
    assert_eq!(said.body.end()["text"], "one", "the plugin changed nothing");
    let counted = vec!["plugin:asks small 3 0 1".to_owned()];
    eventually("its question is counted, by its length", || rows(&daemon) == counted);
    eventually("another process runs", || report()["pid"].as_i64().is_some_and(|now| now != pid));
    let refused = told(&daemon, "two");
    assert!(refused.contains("HTTP 429"), "{refused}");
    assert_eq!((rows(&daemon), model.asked().len()), (counted, 2));
    assert_eq!(report()["budget"]["tokens"], 3);
    let failed = told(&daemon, "three");
    assert!(failed.contains("lost"), "{failed}");
    eventually("a model that failed has worked", || report()["budget"]["tokens"] == 6);
}
