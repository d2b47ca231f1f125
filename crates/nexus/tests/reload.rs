//! A change of the configuration while the daemon runs: it touches what it must and nothing else,
//! and a mistake changes nothing at all.
#![allow(clippy::unwrap_used)]

mod common;

use common::{Ask, Daemon, Signal, config, eventually, fake, find, procfs};
use serde_json::{Value, json};
use std::io::Write;

const EXIT_CONFIG: Option<i32> = Some(78);

/// An adapter on a channel of its own name.
fn on(channel: &str) -> Value {
    fake(json!({ "channel": channel }))
}

/// The adapter's process as the daemon tells it, once that lives.
fn monitor_of(daemon: &Daemon, adapter: &str) -> procfs::Process {
    find(&format!("the process of {adapter}"), || {
        let pid = daemon.adapter_once(adapter, "running")["pid"].as_i64()?;
        procfs::Process::of(i32::try_from(pid).ok()?).filter(procfs::Process::is_alive)
    })
}

fn info_lines(daemon: &Daemon) -> usize {
    daemon.stdout().lines().filter(|line| line.contains(r#""level":"info""#)).count()
}

#[test]
fn adapters_come_and_go_and_the_others_keep_their_process() {
    let before = config(json!({ "stays": on("stays"), "goes": on("goes") }));
    let daemon = Daemon::start(&before);
    let (stays, goes) = (monitor_of(&daemon, "stays/me"), monitor_of(&daemon, "goes/me"));
    daemon.configure(&config(json!({ "stays": on("stays"), "comes": on("comes") })));
    let told = daemon.nexus_ok(&["daemon", "reload"]);
    assert!(told.contains("`comes` added") && told.contains("`goes` removed"), "{told}");
    let comes = monitor_of(&daemon, "comes/me");
    eventually("the removed one is gone", || !goes.is_alive());
    assert!(stays.is_alive(), "an unaffected child was restarted");
    assert_eq!(monitor_of(&daemon, "stays/me"), stays);
    assert_eq!(daemon.adapter("goes/me"), Value::Null);

    let mut changed = config(json!({ "stays": on("stays"), "comes": on("comes") }));
    changed["adapters"]["comes"]["env"]["GREETING"] = json!("hello");
    daemon.configure(&changed);
    daemon.nexus_ok(&["daemon", "reload"]);
    eventually("the changed one is another process", || !comes.is_alive() && monitor_of(&daemon, "comes/me") != comes);
    assert!(stays.is_alive());
    assert_eq!(daemon.monitors().len(), 2, "{:?}", daemon.monitors());
}

#[test]
fn another_program_and_another_account_at_once_start_each_account_once() {
    let log = |daemon: &Daemon| std::fs::read_to_string(daemon.file("starts")).unwrap_or_default().lines().count();
    let mut daemon = Daemon::new();
    let mut wanted = config(json!({ "fake": fake(json!({ "start_log": daemon.file("starts"), "events": 3 })) }));
    daemon.configure(&wanted);
    daemon.launch();
    let before = monitor_of(&daemon, "fake/me");
    wanted["adapters"]["fake"]["env"]["GREETING"] = json!("hello");
    let behaviour = wanted["adapters"]["fake"]["accounts"]["me"].clone();
    wanted["adapters"]["fake"]["accounts"]["more"] = behaviour;
    daemon.configure(&wanted);
    let told = daemon.nexus_ok(&["daemon", "reload"]);
    assert!(told.contains("`fake`"), "{told}");
    assert_ne!(monitor_of(&daemon, "fake/me"), before);
    monitor_of(&daemon, "fake/more");
    eventually("the new account's events are counted", || daemon.adapter("fake/more")["events"] == 3);
    assert_eq!((daemon.monitors().len(), log(&daemon)), (2, 3), "{:?}", daemon.monitors());
}

/// A daemon whose one adapter ignores SIGTERM, so that a reload which replaces it takes its time; and
/// that reload, under way.
fn reloading_slowly() -> (Daemon, std::os::unix::net::UnixStream, procfs::Process) {
    let mut wanted = config(json!({ "fake": fake(json!({ "ignore_term": true, "events": 1 })) }));
    let daemon = Daemon::start(&wanted);
    eventually("it watches signals", || daemon.accepted() == 1);
    let before = monitor_of(&daemon, "fake/me");
    wanted["adapters"]["fake"]["env"]["GREETING"] = json!("hello");
    daemon.configure(&wanted);
    let mut client = std::os::unix::net::UnixStream::connect(daemon.state("nex.sock")).unwrap();
    client
        .write_all(b"POST /control/reload HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}")
        .unwrap();
    eventually("the adapter is being replaced", || daemon.adapter("fake/me").is_null());
    (daemon, client, before)
}

#[test]
fn a_reload_whose_client_hangs_up_is_done_to_its_end() {
    let (daemon, client, before) = reloading_slowly();
    drop(client);
    eventually("the old one is gone", || !before.is_alive());
    assert_ne!(monitor_of(&daemon, "fake/me"), before);
}

#[test]
fn a_stop_during_a_reload_leaves_nothing_running() {
    let (mut daemon, client, _) = reloading_slowly();
    daemon.stop();
    drop(client);
    daemon.nothing_runs();
}

#[test]
fn an_account_is_disabled_and_enabled_alone() {
    let mut two = fake(json!({}));
    two["accounts"] = json!({ "a": {}, "b": {} });
    let mut wanted = config(json!({ "fake": two }));
    let daemon = Daemon::start(&wanted);
    let (a, b) = (monitor_of(&daemon, "fake/a"), monitor_of(&daemon, "fake/b"));
    wanted["adapters"]["fake"]["accounts"]["b"]["enabled"] = json!(false);
    daemon.configure(&wanted);
    daemon.nexus_ok(&["daemon", "reload"]);
    eventually("the disabled one stops", || !b.is_alive());
    wanted["adapters"]["fake"]["accounts"]["b"]["enabled"] = json!(true);
    daemon.configure(&wanted);
    daemon.nexus_ok(&["daemon", "reload"]);
    assert_ne!(monitor_of(&daemon, "fake/b").pid, b.pid);
    assert!(a.is_alive(), "the other account was touched");
}

#[test]
fn the_log_level_and_the_timer_change_live() {
    let mut wanted = config(json!({ "fake": on("fake") }));
    let daemon = Daemon::start(&wanted);
    let first = monitor_of(&daemon, "fake/me");
    assert!(info_lines(&daemon) > 0);
    wanted["daemon"]["log_level"] = json!("error");
    wanted["timer"]["heartbeat_interval_ms"] = json!(1000);
    daemon.configure(&wanted);
    daemon.nexus_ok(&["daemon", "reload"]);
    let heartbeats = "SELECT count(*) FROM events WHERE channel = 'timer' AND content_type = 'system/heartbeat'";
    eventually("heartbeats begin", || daemon.count("events", heartbeats) >= 2);
    let handled = "SELECT count(*) FROM nexus_requests WHERE channel = 'timer' AND status = 'handled_by_automation'";
    eventually("nothing asks for them", || daemon.count("nexus", handled) >= 2);
    assert_eq!(daemon.status()["timer"]["heartbeat_interval_ms"], 1000);
    let quiet = info_lines(&daemon);
    daemon.nexus_ok(&["adapter", "restart", "fake/me"]);
    eventually("the adapter is another process", || !first.is_alive() && monitor_of(&daemon, "fake/me") != first);
    assert_eq!(info_lines(&daemon), quiet, "a start of a child is logged at info, which is off");

    wanted["daemon"]["log_level"] = json!("info");
    wanted["timer"]["heartbeat_interval_ms"] = json!(0);
    daemon.configure(&wanted);
    daemon.nexus_ok(&["daemon", "reload"]);
    daemon.nexus_ok(&["adapter", "restart", "fake/me"]);
    eventually("it is logged again", || info_lines(&daemon) > quiet);
}

#[test]
fn an_invalid_file_changes_nothing_and_says_why() {
    let daemon = Daemon::start(&config(json!({ "fake": on("fake") })));
    let monitor = monitor_of(&daemon, "fake/me");
    let status = daemon.status();
    daemon.configure_text("daemon:\n  port: x\n  log_level: loud\n");
    let ran = daemon.nexus(&["daemon", "reload"]);
    assert_eq!(ran.code, EXIT_CONFIG, "{ran:?}");
    assert!(ran.stderr.contains("nex.yaml:2:9: ") && ran.stderr.contains("nex.yaml:3:14: "), "{ran:?}");
    assert!(monitor.is_alive());
    let after = daemon.status();
    assert_eq!((&after["http"], &after["pid"]), (&status["http"], &status["pid"]));
    let answer = daemon.post("/control/reload", &json!({ "dry_run": false }));
    assert_eq!(answer.status, 422);
    assert_eq!(answer.json()["problems"].as_array().map(Vec::len), Some(2), "{}", answer.body);
    assert_eq!(daemon.get("/readyz").status, 200);
    assert!(daemon.nexus_ok(&["send", "still the old one"]).contains("still the old one"));
}

#[test]
fn a_dry_run_tells_and_changes_nothing() {
    let daemon = Daemon::start(&config(json!({ "fake": on("fake") })));
    let monitor = monitor_of(&daemon, "fake/me");
    daemon.configure(&config(json!({ "other": on("other") })));
    let told = daemon.nexus_ok(&["daemon", "reload", "--dry-run"]);
    assert!(told.contains("`fake` removed") && told.contains("`other` added"), "{told}");
    let answer = daemon.post("/control/reload", &json!({ "dry_run": true })).json();
    assert_eq!(answer["applied"], false, "{answer}");
    assert_eq!(answer["changes"].as_array().map(Vec::len), Some(2), "{answer}");
    assert!(monitor.is_alive());
    assert_eq!(daemon.adapter("other/me"), Value::Null);
    assert_eq!(daemon.adapter("fake/me")["status"], "running");
}

#[test]
fn what_needs_a_restart_is_said_and_the_rest_is_applied() {
    let mut wanted = config(json!({ "fake": on("fake") }));
    let daemon = Daemon::start(&wanted);
    let http = daemon.http();
    wanted["ledgers"]["directory"] = json!("./elsewhere");
    wanted["adapters"]["more"] = on("more");
    daemon.configure(&wanted);
    let ran = daemon.nexus(&["daemon", "reload"]);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    let told = format!("{}{}", ran.stdout, ran.stderr);
    assert!(told.contains("ledgers.directory changed: needs a restart"), "{told}");
    monitor_of(&daemon, "more/me");
    assert_eq!(daemon.http(), http);
    assert!(!daemon.config_file().with_file_name("elsewhere").exists());
}

#[test]
fn the_mode_of_the_bus_is_switched_and_the_text_says_which_way() {
    let mut wanted = config(json!({}));
    let daemon = Daemon::start(&wanted);
    let store = daemon.config_file().with_file_name("data").join("bus.db");
    wanted["bus"] = json!({ "mode": "write-through" });
    daemon.configure(&wanted);
    let planned = daemon.nexus_ok(&["daemon", "reload", "--dry-run"]);
    assert!(planned.contains("write-through on"), "{planned}");
    assert!(!store.exists(), "a dry run opened the store");
    let told = daemon.nexus_ok(&["daemon", "reload"]);
    assert!(told.contains("write-through on"), "{told}");
    assert!(store.exists());
    wanted["bus"] = json!({ "mode": "memory" });
    daemon.configure(&wanted);
    let told = daemon.nexus_ok(&["daemon", "reload"]);
    assert!(told.contains("write-through off"), "{told}");
}

#[test]
fn usr1_reloads_and_the_bus_tells() {
    let mut daemon = Daemon::start(&config(json!({})));
    let mut notices = daemon.sse(&Ask::get("/api/events/stream?types=system.*"));
    daemon.configure(&config(json!({ "fake": on("fake") })));
    daemon.signal(Signal::USR1);
    notices.wait_for("system.config_reloaded");
    monitor_of(&daemon, "fake/me");

    daemon.configure_text("daemon: {port: x}\n");
    daemon.signal(Signal::USR1);
    eventually("the mistake is logged", || daemon.stdout().contains("nex.yaml:1:16"));
    assert!(daemon.is_running());
    assert_eq!(daemon.adapter("fake/me")["status"], "running");
}
