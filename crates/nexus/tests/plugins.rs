//! Plugins as processes: what they may do to a request, and what becomes of it when they misbehave.
#![allow(clippy::unwrap_used)]

mod common;

use common::{Ask, Daemon, config, eventually, fake, find, json_lines, replace};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// The answer to a message, once its request has ended.
fn sent(daemon: &Daemon, text: &str) -> Value {
    daemon.open(&Ask::post("/control/send", &json!({ "text": text }))).body.end()
}

fn fake_plugin() -> String {
    let path = PathBuf::from(common::NEXUS).with_file_name("examples").join("fake-plugin");
    assert!(path.exists(), "{} is missing: cargo build --example fake-plugin", path.display());
    shell_words::quote(&path.to_string_lossy()).into_owned()
}

fn directory(daemon: &Daemon, name: &str) -> PathBuf {
    daemon.workspace().join("plugins").join(name)
}

/// Writes a plugin that behaves as `mode` says; `more` are keys of its `plugin.yaml` beside the command.
fn plugin(daemon: &Daemon, name: &str, mode: &str, more: Value) {
    let place = directory(daemon, name);
    fs::create_dir_all(&place).unwrap();
    set_mode(daemon, name, mode);
    let mut file = json!({ "command": fake_plugin(), "hooks": ["afterReceiveEvent"], "mode": "mutate" });
    file.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    replace(&place.join("plugin.yaml"), &file.to_string());
}

fn set_mode(daemon: &Daemon, name: &str, mode: &str) {
    replace(&directory(daemon, name).join(".mode"), mode);
}

/// The calls that a plugin has seen.
fn calls(daemon: &Daemon, name: &str) -> Vec<Value> {
    json_lines(directory(daemon, name).join(".log"))
}

fn with(names: &[&str]) -> Value {
    let mut wanted = config(json!({}));
    wanted["plugins"] = json!({ "enabled": names, "circuit": { "errors": 5, "half_open_ms": 300_000 } });
    wanted
}

/// A daemon with one plugin, named `it`.
fn daemon_with(mode: &str, more: Value) -> Daemon {
    let mut daemon = Daemon::new();
    plugin(&daemon, "it", mode, more);
    daemon.configure(&with(&["it"]));
    daemon.launch();
    daemon
}

/// How a plugin is, by the daemon's word.
fn report(daemon: &Daemon, name: &str) -> Value {
    let all = daemon.get("/control/plugins").json();
    all["plugins"].as_array().unwrap().iter().find(|one| one["name"] == name).cloned().unwrap_or(Value::Null)
}

fn hooks_of(daemon: &Daemon, stage: &str) -> Value {
    let id = daemon.texts("nexus", "SELECT request_id FROM nexus_requests ORDER BY event_seq DESC LIMIT 1").remove(0);
    let shown = daemon.get(&format!("/control/trace/{id}")).json();
    let text = shown.to_string();
    assert!(text.contains("receiveEvent"), "{text}");
    stages(&shown).into_iter().find(|one| one["stage"] == stage).map(|one| one["hooks"].clone()).unwrap_or(Value::Null)
}

/// Every stage in an answer of `trace`, wherever it stands there.
fn stages(value: &Value) -> Vec<Value> {
    if value["stage"].is_string() && value["duration_ms"].is_number() {
        return vec![value.clone()];
    }
    let inner = value.as_array().into_iter().flatten().chain(value.as_object().into_iter().flat_map(|map| map.values()));
    inner.flat_map(stages).collect()
}

#[test]
fn a_plugin_that_continues_sees_what_it_declared_and_nothing_else() {
    let daemon = daemon_with("continue", json!({ "sections": ["event", "status"], "timeout_ms": 20_000 }));
    assert_eq!(sent(&daemon, "hello")["text"], "hello");
    let seen = calls(&daemon, "it");
    assert_eq!(seen.len(), 1, "{seen:?}");
    assert_eq!(seen[0]["hook"], "afterReceiveEvent");
    assert_eq!(seen[0]["request"]["event"]["content"], "hello");
    let keys: BTreeSet<&str> = seen[0]["request"].as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(keys, BTreeSet::from(["event", "request_id", "status"]));
    assert!(seen[0]["deadline_ms"].as_u64().is_some_and(|ms| ms > 0 && ms <= 20_000), "{seen:?}");
    let hooks = hooks_of(&daemon, "receiveEvent");
    assert_eq!((&hooks[0]["plugin"], &hooks[0]["error"]), (&json!("it"), &Value::Null), "{hooks}");
    assert!(hooks_of(&daemon, "resolveAccess").is_null());
    assert_eq!(daemon.metric(r#"nexus_plugin_calls_total{plugin="it",result="continue"}"#), 1);
}

#[test]
fn a_skip_ends_the_request_in_the_plugins_name() {
    let daemon = daemon_with("skip", json!({ "timeout_ms": 20_000 }));
    let end = sent(&daemon, "hello");
    assert_eq!((&end["status"], &end["reason"]), (&json!("handled_by_automation"), &json!("plugin:it")), "{end}");
    assert_eq!(daemon.count("nexus", "SELECT count(*) FROM runs"), 0);
}

#[test]
fn patches_are_applied_in_the_order_of_the_priorities() {
    let mut daemon = Daemon::new();
    let patch = |text: &str| format!("patch {}", json!({ "event": { "content": text } }));
    plugin(&daemon, "a", &patch("from a"), json!({ "priority": 200, "timeout_ms": 20_000 }));
    plugin(&daemon, "b", &patch("from b"), json!({ "priority": 100, "timeout_ms": 20_000 }));
    daemon.configure(&with(&["a", "b"]));
    daemon.launch();
    assert_eq!(sent(&daemon, "hello")["text"], "from a");
    assert_eq!(calls(&daemon, "b")[0]["request"]["event"]["content"], "hello");
    assert_eq!(calls(&daemon, "a")[0]["request"]["event"]["content"], "from b");
}

#[test]
fn what_the_agent_is_told_and_what_it_says_can_be_changed() {
    let mut daemon = Daemon::new();
    let late = |hook: &str| json!({ "hooks": [hook], "sections": ["response"], "timeout_ms": 20_000 });
    plugin(&daemon, "context", r#"patch {"context":"be brief"}"#, late("afterAssembleContext"));
    plugin(&daemon, "review", r#"patch {"response":{"content":"reviewed"}}"#, late("afterRunAgent"));
    daemon.configure(&with(&["context", "review"]));
    daemon.launch();
    assert_eq!(sent(&daemon, "hello")["text"], "reviewed");
    assert_eq!(calls(&daemon, "review")[0]["request"]["response"]["content"], "be brief\n\nhello");
    let written = || daemon.texts("agents", "SELECT role || ' ' || content FROM messages ORDER BY turn_id, n");
    eventually("the turn is recorded", || written().len() == 2);
    assert_eq!(written(), ["user hello", "assistant reviewed"]);
}

#[test]
fn refused_patches_change_nothing_and_are_told() {
    for patch in [
        json!({ "event": { "sender_id": "owner" } }),
        json!({ "event": { "content": 5 } }),
        json!({ "event": { "metadata": { "__proto__": { "admin": true } } } }),
        json!({ "principal": { "type": "owner" } }),
    ] {
        let daemon = daemon_with(&format!("patch {patch}"), json!({ "timeout_ms": 20_000 }));
        assert_eq!(sent(&daemon, "hello")["text"], "hello", "{patch}");
        let hooks = hooks_of(&daemon, "receiveEvent");
        assert!(hooks[0]["error"].as_str().is_some_and(|error| error.contains("its patch was refused")), "{hooks}");
        assert_eq!(report(&daemon, "it")["errors"], 1);
    }
}

#[test]
fn permissions_are_not_widened() {
    let wider = json!({ "access": { "permissions": { "data_access": "full", "tools": { "deny": [] } } } });
    let mut daemon = Daemon::new();
    plugin(&daemon, "it", &format!("patch {wider}"), json!({ "hooks": ["afterResolveAccess"], "timeout_ms": 20_000 }));
    let mut wanted = with(&["it"]);
    wanted["access"] = json!({
        "owner": ["none:none"],
        "policies": [{ "name": "p", "match": {}, "effect": "allow", "permissions": { "tools": { "deny": ["shell"] } } }],
    });
    daemon.configure(&wanted);
    daemon.launch();
    assert_eq!(sent(&daemon, "hello")["status"], "completed");
    let hooks = hooks_of(&daemon, "resolveAccess");
    assert!(hooks[0]["error"].as_str().is_some_and(|error| error.contains("narrower")), "{hooks}");
}

#[test]
fn a_plugin_that_throws_talks_nonsense_or_dies_costs_nobody_their_answer() {
    for (mode, told) in [("throw", "fake.rs:7: boom"), ("nonsense", "its answer is none"), ("die", "ended before it answered")] {
        let daemon = daemon_with(mode, json!({ "timeout_ms": 20_000 }));
        assert_eq!(sent(&daemon, "hello")["text"], "hello", "{mode}");
        let hooks = hooks_of(&daemon, "receiveEvent");
        assert!(hooks[0]["error"].as_str().is_some_and(|error| error.contains(told)), "{mode}: {hooks}");
    }
}

#[test]
fn a_plugin_that_must_not_fail_fails_the_request_by_its_name() {
    let daemon = daemon_with("throw", json!({ "on_error": "fail", "timeout_ms": 20_000 }));
    let end = sent(&daemon, "hello");
    assert_eq!(end["status"], "failed", "{end}");
    assert!(end["reason"].as_str().is_some_and(|reason| reason.contains("plugin `it`") && reason.contains("boom")), "{end}");
}

#[test]
fn an_answer_that_could_not_be_reviewed_is_held_back() {
    let keys = json!({ "hooks": ["afterRunAgent"], "on_error": "fail", "timeout_ms": 20_000 });
    let daemon = daemon_with("throw", keys);
    let end = sent(&daemon, "a secret");
    assert_eq!(end["status"], "failed", "{end}");
    assert!(end["text"].as_str().is_some_and(|text| !text.contains("a secret") && text.contains("held back")), "{end}");
}

#[test]
fn one_that_hangs_is_killed_and_started_again() {
    let daemon = daemon_with("hang", json!({ "timeout_ms": 300 }));
    let before = find("its process", || report(&daemon, "it")["pid"].as_u64());
    assert_eq!(sent(&daemon, "hello")["text"], "hello");
    let hooks = hooks_of(&daemon, "receiveEvent");
    assert!(hooks[0]["error"].as_str().is_some_and(|error| error.contains("no answer within 300 ms")), "{hooks}");
    set_mode(&daemon, "it", "continue");
    eventually("it is another process", || report(&daemon, "it")["pid"].as_u64().is_some_and(|pid| pid != before));
    sent(&daemon, "again");
    eventually("it answers", || {
        sent(&daemon, "and again");
        daemon.metric(r#"nexus_plugin_calls_total{plugin="it",result="continue"}"#) > 0
    });
}

#[test]
fn lines_that_are_no_frames_are_left_out_and_a_flood_of_them_is_ended() {
    for mode in ["garbage", "wide", "wrong"] {
        let daemon = daemon_with(mode, json!({ "timeout_ms": 20_000 }));
        assert_eq!(sent(&daemon, "hello")["text"], "hello", "{mode}");
        assert!(hooks_of(&daemon, "receiveEvent")[0]["error"].is_null(), "{mode}");
        assert!(report(&daemon, "it")["ignored"].as_u64().is_some_and(|ignored| ignored > 0), "{mode}");
    }
    let daemon = daemon_with("flood", json!({ "timeout_ms": 20_000 }));
    let before = find("its process", || report(&daemon, "it")["pid"].as_u64());
    assert_eq!(sent(&daemon, "hello")["text"], "hello");
    eventually("it is another process", || report(&daemon, "it")["pid"].as_u64().is_some_and(|pid| pid != before));
}

#[test]
fn its_circuit_opens_after_five_errors_and_a_good_answer_closes_it() {
    let mut daemon = Daemon::new();
    plugin(&daemon, "it", "throw", json!({ "timeout_ms": 20_000 }));
    daemon.configure(&with(&["it"]));
    daemon.launch();
    let completes = |n: i32| assert_eq!(sent(&daemon, &n.to_string())["status"], "completed");
    let times = || ["mean_ms", "p50_ms"].map(|key| report(&daemon, "it")[key].clone());
    (0..5).for_each(completes);
    let before = times();
    (5..7).for_each(completes);
    assert_eq!(times(), before, "what isn't called takes no time");
    assert_eq!(daemon.metric(r#"nexus_plugin_seconds_count{plugin="it"}"#), 5);
    assert_eq!(calls(&daemon, "it").len(), 5, "it was asked while its circuit was open");
    assert_eq!(report(&daemon, "it")["circuit"], "open");
    assert_eq!(daemon.metric(r#"nexus_plugin_calls_total{plugin="it",result="open"}"#), 2);
    let (status, health) = (daemon.status(), daemon.get("/health").json());
    assert_eq!((&status["health"], &health["status"]), (&json!("degraded"), &json!("degraded")));
    assert!(health["reasons"].to_string().contains("plugin `it`: it is not asked at `afterReceiveEvent`"), "{health}");
    assert_eq!(status["reasons"], health["reasons"]);
    daemon.stop();
    // The same with a time that passes within a test: half open, and closed by a good answer.
    let mut wanted = with(&["it"]);
    wanted["plugins"]["circuit"]["half_open_ms"] = json!(100);
    daemon.configure(&wanted);
    daemon.launch();
    eventually("it is open again", || {
        sent(&daemon, "x");
        report(&daemon, "it")["circuit"] != "closed"
    });
    eventually("nobody has to call", || report(&daemon, "it")["circuit"] == "due" && daemon.status()["health"] == "healthy");
    set_mode(&daemon, "it", "continue");
    eventually("it is closed", || {
        sent(&daemon, "y");
        report(&daemon, "it")["circuit"] == "closed"
    });
    eventually("all is well", || daemon.status()["health"] == "healthy");
}

#[test]
fn messages_that_come_while_its_process_is_started_again_do_not_open_its_circuit() {
    let daemon = daemon_with("die", json!({ "timeout_ms": 20_000 }));
    sent(&daemon, "first");
    // Its process is down for a second, and for each of these.
    set_mode(&daemon, "it", "continue");
    for n in 0..10 {
        assert_eq!(sent(&daemon, &n.to_string())["status"], "completed");
    }
    assert_eq!(report(&daemon, "it")["circuit"], "closed");
    eventually("it is asked again", || {
        sent(&daemon, "again");
        calls(&daemon, "it").iter().any(|call| call["request"]["event"]["content"] == "again")
    });
}

#[test]
fn observers_are_told_of_all_points_and_hold_up_nobody() {
    let mut daemon = Daemon::new();
    let hooks = ["afterReceiveEvent", "afterRunAgent", "afterDeliverResponse", "onFinalize", "onError"];
    plugin(&daemon, "sees", "continue", json!({ "hooks": hooks, "mode": "observe", "sections": ["status"], "timeout_ms": 20_000 }));
    plugin(&daemon, "stuck", "hang", json!({ "hooks": hooks, "mode": "observe", "timeout_ms": 86_400_000 }));
    daemon.configure(&with(&["sees", "stuck"]));
    daemon.launch();
    assert_eq!(sent(&daemon, "hello")["text"], "hello");
    let seen = || calls(&daemon, "sees").iter().map(|call| call["hook"].as_str().unwrap().to_owned()).collect::<Vec<_>>();
    eventually("all were told", || seen().len() == 4);
    assert_eq!(seen(), &hooks[..4]);
    assert!(hooks_of(&daemon, "receiveEvent").is_null(), "nothing waited");
    let told = report(&daemon, "sees")["told_p50_ms"].clone();
    assert!(told.as_f64().is_some_and(|ms| ms > 0.0), "what it costs a request is measured: {told}");
    assert_eq!(sent(&daemon, "again")["text"], "again");
    // 4 frames wait for each request; the queue holds 256.
    eventually("the queue of the stuck one is full", || {
        sent(&daemon, "more");
        report(&daemon, "stuck")["dropped"].as_u64().is_some_and(|dropped| dropped > 0)
    });
    daemon.stop();
    daemon.nothing_runs();
}

#[test]
fn on_error_tells_of_the_stage_that_failed() {
    let mut daemon = Daemon::new();
    plugin(&daemon, "it", "continue", json!({ "hooks": ["onError"], "mode": "observe", "timeout_ms": 20_000 }));
    let mut wanted = with(&["it"]);
    wanted["agents"] = json!({ "default": "fails", "fails": { "runner": "command", "command": "sh -c 'cat >/dev/null; exit 7'" } });
    daemon.configure(&wanted);
    daemon.launch();
    assert_eq!(sent(&daemon, "hello")["status"], "failed");
    eventually("it was told", || !calls(&daemon, "it").is_empty());
    let seen = calls(&daemon, "it");
    assert_eq!(seen[0]["error"]["stage"], "runAgent", "{seen:?}");
    assert!(seen[0]["error"]["message"].as_str().is_some_and(|message| message.contains("exit code 7")), "{seen:?}");
}

#[test]
fn on_error_tells_of_an_end_that_could_not_be_written() {
    // The end of the run, and what its last two stages add to its trace.
    for change in ["NEW.status = 'completed' AND OLD.status != 'completed'", "OLD.status = 'completed'"] {
        let mut daemon = Daemon::new();
        let keys = json!({ "hooks": ["onError"], "mode": "observe", "sections": ["event"], "timeout_ms": 20_000 });
        plugin(&daemon, "it", "continue", keys);
        let mut wanted = with(&["it"]);
        wanted["adapters"] = json!({ "fake": fake(json!({ "events": 1 })) });
        wanted["adapters"]["fake"]["accounts"]["me"]["enabled"] = json!(false);
        daemon.configure(&wanted);
        daemon.launch();
        let refuse =
            format!("CREATE TRIGGER refuse BEFORE UPDATE ON nexus_requests WHEN {change} BEGIN SELECT RAISE(ABORT, 'of the test'); END");
        let ledger = rusqlite::Connection::open(daemon.workspace().join("data/nexus.db")).unwrap();
        ledger.busy_timeout(common::DEADLINE).unwrap();
        ledger.execute_batch(&refuse).unwrap();
        wanted["adapters"]["fake"]["accounts"]["me"]["enabled"] = json!(true);
        daemon.configure(&wanted);
        daemon.nexus_ok(&["daemon", "reload"]);
        let seen = find("it was told", || calls(&daemon, "it").pop());
        assert_eq!((&seen["hook"], &seen["error"]["stage"]), (&json!("onError"), &json!("finalize")), "{change}: {seen}");
        assert!(seen["error"]["message"].as_str().is_some_and(|message| message.contains("of the test")), "{change}: {seen}");
        assert_eq!(seen["request"]["event"]["channel"], "fake", "{change}: {seen}");
        assert_eq!(daemon.ended("completed"), i64::from(change.starts_with("OLD")), "{change}");
    }
}

#[test]
fn long_texts_are_lent_as_files() {
    let daemon = daemon_with("continue", json!({ "timeout_ms": 20_000 }));
    let long = ["long"; 40_000].join(" ");
    assert_eq!(sent(&daemon, &long)["text"], long.as_str());
    let path = calls(&daemon, "it")[0]["request"]["event"]["content"]["$file"].as_str().unwrap().to_owned();
    assert!(path.starts_with(&*daemon.state("run").to_string_lossy()), "{path}");
    assert!(!Path::new(&path).exists(), "it was lent and stays");
}

#[test]
fn what_is_not_granted_is_refused() {
    let daemon = daemon_with("call ledger.query", json!({ "timeout_ms": 20_000 }));
    assert_eq!(sent(&daemon, "hello")["text"], "hello");
    let seen = calls(&daemon, "it");
    assert_eq!(seen[1]["call"], 1, "{seen:?}");
    assert!(seen[1]["error"].as_str().is_some_and(|error| error.contains("not granted")), "{seen:?}");
}

#[test]
fn a_daemon_killed_amid_a_hook_asks_again_and_leaves_no_process() {
    let mut daemon = daemon_with("hang", json!({ "timeout_ms": 60_000 }));
    let asked = daemon.open(&Ask::post("/control/send", &json!({ "text": "hello" })));
    eventually("it is being asked", || calls(&daemon, "it").len() == 1);
    let children = daemon.children();
    assert!(!children.is_empty());
    daemon.kill9();
    drop(asked);
    set_mode(&daemon, "it", "continue");
    daemon.launch();
    eventually("the old process is gone", || children.iter().all(|child| !child.is_alive()));
    eventually("the request ends", || daemon.ended("completed") == 1);
    assert_eq!(calls(&daemon, "it").len(), 2);
}

#[test]
fn a_change_of_its_files_starts_it_anew_and_a_broken_one_is_not_taken() {
    let mut daemon = Daemon::new();
    plugin(&daemon, "it", "continue", json!({ "timeout_ms": 20_000 }));
    plugin(&daemon, "other", "continue", json!({ "timeout_ms": 20_000 }));
    daemon.configure(&with(&["it", "other"]));
    daemon.launch();
    let pid = |name: &str| report(&daemon, name)["pid"].as_u64();
    let (first, other) = (find("it runs", || pid("it")), find("the other runs", || pid("other")));
    plugin(&daemon, "it", "continue", json!({ "timeout_ms": 19_000 }));
    let second = find("another process", || pid("it").filter(|pid| *pid != first));
    assert_eq!(report(&daemon, "it")["timeout_ms"], 19_000);
    assert_eq!(pid("other"), Some(other), "the other was touched");
    // A file that isn't one, and a program that ends at once: the version before goes on and is asked.
    replace(&directory(&daemon, "it").join("plugin.yaml"), "hooks: [never]\n");
    daemon.nexus_ok(&["daemon", "reload"]);
    let told = |daemon: &Daemon| report(daemon, "it")["problem"].as_str().map(str::to_owned);
    eventually("it is told", || told(&daemon).is_some_and(|problem| problem.contains("its new version does not load")));
    assert_eq!(pid("it"), Some(second));
    let ends = json!({ "command": "sh -c 'exit 3'", "hooks": ["afterReceiveEvent"], "mode": "mutate" });
    replace(&directory(&daemon, "it").join("plugin.yaml"), &ends.to_string());
    eventually("it is told again", || told(&daemon).is_some_and(|problem| problem.contains("exit code 3")));
    assert_eq!(pid("it"), Some(second));
    assert_eq!(sent(&daemon, "hello")["text"], "hello");
    assert_eq!(calls(&daemon, "it").len(), 1);
}

#[test]
fn a_change_of_its_files_lets_a_call_that_is_under_way_end() {
    let more = |timeout_ms: u64| json!({ "timeout_ms": timeout_ms, "on_error": "fail" });
    let daemon = daemon_with("wait", more(20_000));
    let asked = daemon.open(&Ask::post("/control/send", &json!({ "text": "hello" })));
    eventually("it is being asked", || calls(&daemon, "it").len() == 1);
    plugin(&daemon, "it", "wait", more(19_000));
    eventually("another version is there", || report(&daemon, "it")["timeout_ms"] == 19_000);
    fs::write(directory(&daemon, "it").join(".go"), "").unwrap();
    let end = asked.body.end();
    assert_eq!(end["status"], "completed", "{end}");
    assert_eq!(calls(&daemon, "it").len(), 1, "it was asked once");
}

#[test]
fn one_late_call_counts_once_whoever_waits_beside_it() {
    let daemon = daemon_with("hang", json!({ "timeout_ms": 5_000 }));
    let asks: Vec<_> = (0..6).map(|n| json!({ "text": "x", "conversation": format!("c{n}") })).collect();
    // The first is late first, and is what the process is killed for.
    let first = daemon.open(&Ask::post("/control/send", &asks[0]));
    eventually("it is being asked", || calls(&daemon, "it").len() == 1);
    let others: Vec<_> = asks[1..].iter().map(|ask| daemon.open(&Ask::post("/control/send", ask))).collect();
    for one in std::iter::once(first).chain(others) {
        assert_eq!(one.body.end()["status"], "completed");
    }
    let found = report(&daemon, "it");
    assert_ne!(found["circuit"], "open", "one late call is one error: {found}");
}

#[test]
fn plugins_are_listed_enabled_and_disabled() {
    let mut daemon = Daemon::new();
    plugin(&daemon, "tags", "continue", json!({ "timeout_ms": 20_000 }));
    daemon.configure(&config(json!({})));
    let listed = daemon.nexus_ok(&["plugin", "list"]);
    assert!(listed.lines().any(|line| line.starts_with("tags") && line.contains("disabled")), "{listed}");
    daemon.launch();
    daemon.nexus_ok(&["plugin", "enable", "tags"]);
    eventually("it runs", || report(&daemon, "tags")["status"] == "running");
    let info = daemon.nexus_ok(&["plugin", "info", "tags"]);
    assert!(info.contains("hooks:       afterReceiveEvent") && info.contains("kind:        program"), "{info}");
    assert!(daemon.nexus_ok(&["daemon", "status", "--verbose"]).contains("tags running"));
    let process = find("its process", || report(&daemon, "tags")["pid"].as_u64());
    daemon.nexus_ok(&["plugin", "disable", "tags"]);
    eventually("its process is gone", || daemon.children().iter().all(|child| child.pid as u64 != process));
    assert!(report(&daemon, "tags").is_null());
    assert_eq!(daemon.nexus(&["plugin", "enable", "nowhere"]).code, Some(4));
    assert_eq!(daemon.nexus(&["plugin", "info", "nowhere"]).code, Some(4));
}

#[test]
fn an_enabled_plugin_that_is_nowhere_is_refused_at_the_start_and_by_a_reload() {
    let mut daemon = Daemon::new();
    plugin(&daemon, "tags", "continue", json!({}));
    daemon.configure(&with(&["tgas"]));
    daemon.spawn();
    assert_eq!(daemon.wait().code(), Some(78));
    let told = daemon.stderr() + &daemon.stdout();
    assert!(told.contains("`tgas` is no plugin") && told.contains("tags"), "{told}");
    assert_eq!(daemon.nexus(&["config", "check"]).code, Some(78));
    daemon.configure(&with(&["tags"]));
    daemon.launch();
    daemon.configure(&with(&["tgas"]));
    assert_eq!(daemon.nexus(&["daemon", "reload"]).code, Some(78));
    eventually("the old configuration stays in force", || report(&daemon, "tags")["status"] == "running");
}

#[test]
fn a_plugin_is_tried_on_its_own() {
    let mut daemon = Daemon::new();
    plugin(&daemon, "tags", r#"patch {"event":{"content":"tried"}}"#, json!({}));
    daemon.configure(&config(json!({})));
    let event = json!({
        "event_id": "fake:1", "timestamp": 1, "content": "hello", "content_type": "text", "channel": "fake", "account_id": "me",
        "sender_id": "ann", "peer_id": "ann", "peer_kind": "dm",
    });
    let file = daemon.file("event.json");
    fs::write(&file, event.to_string()).unwrap();
    assert_eq!(daemon.nexus(&["plugin", "test", "tags", "--event", &file]).code, Some(3), "nothing runs");
    daemon.launch();
    let told = daemon.nexus_ok(&["plugin", "test", "tags", "--event", &file]);
    assert!(told.contains("afterReceiveEvent: patch") && told.contains("tried"), "{told}");
    assert_eq!(calls(&daemon, "tags")[0]["request"]["event"]["content"], "hello");
    set_mode(&daemon, "tags", "throw");
    assert_eq!(daemon.nexus(&["plugin", "test", "tags", "--event", &file]).code, Some(1));
    assert_eq!(daemon.nexus(&["plugin", "test", "nowhere", "--event", &file]).code, Some(4));
    assert_eq!(daemon.count("events", "SELECT count(*) FROM events"), 0);
    eventually("nothing of it is left", || daemon.children().is_empty());
}
