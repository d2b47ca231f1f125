//! Tools of MCP servers, with a real daemon, a real server process (`testing/fake_mcp.rs`) and a model that
//! asks for them in each provider's way.
#![allow(clippy::unwrap_used)]

mod common;

use common::model::{Model, PROVIDERS, call, reply, text};
use common::{Daemon, NEXUS, config, eventually, fake, find, lines};
use serde_json::{Value, json};
use std::path::PathBuf;

const CHILD: &str = "mcp/model/fake";

fn server(daemon: &Daemon, mode: &str) -> Value {
    let path = PathBuf::from(NEXUS).with_file_name("examples").join("fake-mcp");
    assert!(path.exists(), "{} is missing: cargo build --example fake-mcp", path.display());
    let words = [path.to_string_lossy().into_owned(), mode.to_owned(), daemon.file("calls")];
    json!({ "command": shell_words::join(words) })
}

/// A configuration whose agent is this model, with the server `fake`.
fn with_model(daemon: &Daemon, provider: &str, model: &Model, mode: &str) -> Value {
    let mut wanted = config(json!({}));
    let mcp = json!({ "fake": server(daemon, mode) });
    let agent = json!({ "runner": "llm", "provider": provider, "url": model.url(), "model": "m", "timeout_ms": 60_000, "mcp": mcp });
    wanted["agents"] = json!({ "default": "model", "model": agent });
    wanted
}

fn started(provider: &str, model: &Model, mode: &str) -> Daemon {
    let mut daemon = Daemon::new();
    daemon.configure(&with_model(&daemon, provider, model, mode));
    daemon.launch();
    daemon
}

fn calls(daemon: &Daemon) -> Vec<String> {
    lines(daemon.file("calls"))
}

fn restarts(daemon: &Daemon) -> u64 {
    daemon.metric(&format!("nexus_child_restarts_total{{child=\"{CHILD}\"}}"))
}

/// What the model was told after its first answer.
fn told(model: &Model) -> String {
    model.asked()[1].1.to_string()
}

#[test]
fn a_tool_is_offered_called_and_recorded_for_each_provider() {
    let mut daemon = Daemon::new();
    for (n, provider) in PROVIDERS.into_iter().enumerate() {
        let model = Model::start(vec![call(provider, "fake__echo", "ping"), text(provider, "It said ping.")]);
        daemon.configure(&with_model(&daemon, provider, &model, "good"));
        if n == 0 {
            daemon.launch();
        } else {
            daemon.nexus_ok(&["daemon", "reload"]);
        }
        let answer = daemon.nexus_ok(&["send", "what does it say?"]);
        assert!(answer.contains("It said ping."), "{provider}: {answer}");
        let offered = model.asked()[0].1.to_string();
        assert!(offered.contains("fake__echo") && !offered.contains("not a name"), "{provider}: {offered}");
        assert!(told(&model).contains("echo: ping"), "{provider}: {}", told(&model));
        assert_eq!(calls(&daemon), vec!["call echo ping"; n + 1], "{provider}");
        let kept = find("the turn is in the ledger", || {
            let sql = "SELECT name || ' ' || status || ' ' || arguments || ' ' || result FROM tool_calls";
            Some(daemon.texts("agents", sql)).filter(|rows| rows.len() == n + 1)
        });
        assert!(kept.iter().all(|row| row == r#"fake__echo completed {"text":"ping"} echo: ping"#), "{provider}: {kept:?}");
    }
    assert_eq!(daemon.count("nexus", "SELECT count(*) FROM runs WHERE acted = 1"), PROVIDERS.len() as i64);
    assert_eq!(restarts(&daemon), 0, "another address of the model is no reason to restart a server");
    let child = daemon.children().into_iter().find(|child| child.argv.contains("fake-mcp")).expect("the server runs");
    daemon.stop();
    eventually("the server is gone with the daemon", || !child.is_alive());
}

#[test]
fn what_is_denied_is_neither_offered_nor_called() {
    let model = Model::start(vec![call("openai", "fake__forbidden", "ping"), text("openai", "I may not.")]);
    let mut daemon = Daemon::new();
    let mut wanted = with_model(&daemon, "openai", &model, "good");
    wanted["access"]["policies"] =
        json!([{ "name": "careful", "match": {}, "effect": "allow", "permissions": { "tools": { "deny": ["fake__forb*"] } } }]);
    daemon.configure(&wanted);
    daemon.launch();
    assert!(daemon.nexus_ok(&["send", "do it"]).contains("I may not."));
    let offered = model.asked()[0].1.to_string();
    assert!(offered.contains("fake__echo") && !offered.contains("fake__forbidden"), "{offered}");
    assert!(told(&model).contains("may not be used here"), "{}", told(&model));
    assert_eq!(calls(&daemon), Vec::<String>::new());
}

#[test]
fn only_the_tools_that_the_configuration_names_are_offered() {
    let model = Model::start(vec![text("openai", "Hello.")]);
    let mut daemon = Daemon::new();
    let mut wanted = with_model(&daemon, "openai", &model, "good");
    wanted["agents"]["model"]["mcp"]["fake"]["tools"] = json!(["forb*"]);
    daemon.configure(&wanted);
    daemon.launch();
    daemon.nexus_ok(&["send", "hello"]);
    let offered = model.asked()[0].1.to_string();
    assert!(offered.contains("fake__forbidden") && !offered.contains("fake__echo"), "{offered}");
}

#[test]
fn a_server_that_dies_or_floods_costs_the_call_and_is_started_again() {
    for (mode, log) in [("dies", "child exited"), ("floods", "floods its stdout")] {
        let model = Model::start(vec![call("openai", "fake__echo", "ping"), text("openai", "It failed.")]);
        let daemon = started("openai", &model, mode);
        assert!(daemon.nexus_ok(&["send", "try it"]).contains("It failed."), "{mode}");
        assert!(told(&model).contains("The tool failed"), "{mode}: {}", told(&model));
        assert_eq!(calls(&daemon), ["call echo ping"], "{mode}: a call is never repeated by itself");
        eventually("it is started again", || restarts(&daemon) > 0);
        eventually("the reason is logged", || daemon.stdout().contains(log));
    }
}

#[test]
fn a_turn_waits_for_a_server_that_a_reload_exchanges() {
    let model = Model::start(vec![text("openai", "One."), text("openai", "Two.")]);
    let mut daemon = Daemon::new();
    let mut wanted = with_model(&daemon, "openai", &model, "good");
    // It stays after the word to stop, until it is killed.
    let (server, told) = (server(&daemon, "good"), daemon.file("told"));
    let stays = format!("(trap '' TERM; exec {} <&3) & wait", server["command"].as_str().unwrap());
    let script = format!("exec 3<&0; trap 'echo stop >> {told}' TERM; {stays}; wait");
    wanted["agents"]["model"]["mcp"]["fake"] = json!({ "command": shell_words::join(["sh", "-c", script.as_str()]) });
    daemon.configure(&wanted);
    daemon.launch();
    daemon.nexus_ok(&["send", "hello"]);
    wanted["agents"]["model"]["mcp"]["fake"]["env"] = json!({ "OTHER": "1" });
    daemon.configure(&wanted);
    std::thread::scope(|scope| {
        let reload = scope.spawn(|| daemon.nexus_ok(&["daemon", "reload"]));
        eventually("the old one is told to stop", || lines(&told) == ["stop"]);
        daemon.nexus_ok(&["send", "and now?"]);
        reload.join().unwrap();
    });
    for (_, body) in model.asked() {
        assert!(body.to_string().contains("fake__echo"), "{body}");
    }
}

#[test]
fn a_reload_exchanges_servers_before_it_waits_for_adapters() {
    let model = Model::start(Vec::new());
    let mut daemon = Daemon::new();
    let mut wanted = with_model(&daemon, "openai", &model, "good");
    wanted["adapters"] = json!({ "fake": fake(json!({})) });
    daemon.configure(&wanted);
    daemon.launch();
    eventually("the adapter runs", || daemon.adapter("fake/me")["status"] == "running");
    eventually("the server runs", || daemon.children().iter().any(|child| child.argv.contains("fake-mcp")));
    wanted["adapters"]["fake"]["env"]["OTHER"] = json!("1");
    wanted["agents"]["model"]["mcp"]["fake"]["env"] = json!({ "OTHER": "1" });
    daemon.configure(&wanted);
    daemon.nexus_ok(&["daemon", "reload"]);
    let place = |log: &str, child: &str| log.lines().position(|line| line.contains("child stopped") && line.contains(child));
    let (server, adapter) = find("both were stopped", || {
        let log = daemon.stdout();
        place(&log, CHILD).zip(place(&log, "adapter/fake/me"))
    });
    assert!(server < adapter, "a turn would have waited for the adapter as well");
}

#[test]
fn a_server_that_lies_or_says_too_much_is_kept_within_bounds() {
    let model = Model::start(vec![call("openai", "fake__echo", "ping"), text("openai", "Fine.")]);
    let daemon = started("openai", &model, "lies");
    daemon.nexus_ok(&["send", "try it"]);
    assert!(told(&model).contains("echo: ping") && !told(&model).contains("of another call"), "{}", told(&model));
    assert_eq!(restarts(&daemon), 0);

    let model = Model::start(vec![call("openai", "fake__echo", "ping"), text("openai", "Long.")]);
    let daemon = started("openai", &model, "huge");
    daemon.nexus_ok(&["send", "try it"]);
    let told = told(&model);
    assert!(told.contains("[cut: 1048576 bytes in all]") && told.len() < 300 * 1024, "{}", told.len());
    let longest = find("the turn is in the ledger", || {
        daemon.rows("agents", "SELECT length(result) FROM tool_calls", |row| row.get::<_, i64>(0)).pop()
    });
    assert!(longest < 9 * 1024, "{longest}");
}

#[test]
fn a_turn_that_is_given_up_cancels_its_call_and_leaves_the_server_alone() {
    let model = Model::start(vec![call("openai", "fake__echo", "ping"), text("openai", "never")]);
    let mut daemon = Daemon::new();
    let mut wanted = with_model(&daemon, "openai", &model, "slow");
    wanted["agents"]["model"]["timeout_ms"] = json!(8_000);
    daemon.configure(&wanted);
    daemon.launch();
    daemon.nexus(&["send", "wait for it"]);
    assert_eq!(daemon.ended("failed"), 1);
    eventually("the server hears that nobody waits", || calls(&daemon) == ["call echo ping", "cancelled"]);
    assert_eq!(restarts(&daemon), 0);
}

#[test]
fn a_turn_that_called_a_tool_does_not_wait_as_long_as_it_is_asked_to() {
    let body = r#"{"error": {"message": "Rate limit reached"}}"#;
    let busy = reply("429 Too Many Requests", "retry-after: 50\r\n", body);
    let model = Model::start(vec![call("openai", "fake__echo", "ping"), busy, text("openai", "much later")]);
    let daemon = started("openai", &model, "good");
    assert_eq!(daemon.nexus(&["send", "try it"]).code, Some(1));
    let reasons = daemon.texts("nexus", "SELECT reason FROM nexus_requests WHERE status = 'failed'");
    assert!(reasons[0].contains("HTTP 429"), "{reasons:?}");
    assert_eq!((model.asked().len(), calls(&daemon).len()), (2, 1));
}

#[test]
fn no_tool_is_called_before_it_is_on_disk_that_one_may_be() {
    let model = Model::start(vec![call("openai", "fake__echo", "ping"), text("openai", "never")]);
    let daemon = started("openai", &model, "good");
    let refuse = "CREATE TRIGGER refuse BEFORE UPDATE OF acted ON runs BEGIN SELECT RAISE(ABORT, 'of the test'); END";
    let ledger = rusqlite::Connection::open(daemon.workspace().join("data/nexus.db")).unwrap();
    ledger.busy_timeout(common::DEADLINE).unwrap();
    ledger.execute_batch(refuse).unwrap();
    assert_eq!(daemon.nexus(&["send", "try it"]).code, Some(1));
    let reasons = daemon.texts("nexus", "SELECT reason FROM nexus_requests WHERE status = 'failed'");
    assert!(reasons.len() == 1 && reasons[0].contains("can't be noted"), "{reasons:?}");
    assert_eq!((calls(&daemon), model.asked().len()), (Vec::new(), 1));
}

#[test]
fn a_call_that_a_crash_interrupted_is_never_made_again() {
    let model = Model::start((0..4).map(|_| call("openai", "fake__echo", "ping")).collect());
    let mut daemon = Daemon::new();
    let mut wanted = with_model(&daemon, "openai", &model, "slow");
    wanted["adapters"] = json!({ "fake": fake(json!({ "events": 1 })) });
    daemon.configure(&wanted);
    daemon.launch();
    eventually("the tool is called", || calls(&daemon) == ["call echo ping"]);
    daemon.kill9();
    daemon.launch();
    eventually("the request has its end", || daemon.ended("failed") == 1);
    assert_eq!(calls(&daemon), ["call echo ping"]);
}
