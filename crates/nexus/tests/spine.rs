//! The daemon's life as its user sees it: start, one at a time, stop, what is said afterwards, and
//! what each mistake in starting it is answered with.
#![allow(clippy::unwrap_used)]

mod common;

use common::{Ask, Daemon, Signal, config, eventually, fake, find, only, procfs};
use serde_json::{Value, json};
use std::fs;
use std::net::TcpListener;
use std::time::Duration;

/// From the second SIGINT to the end: far less than the 30 s that a drain may take.
const AT_ONCE: Duration = Duration::from_secs(10);
/// `daemon stop` says so when nothing runs; so does `daemon status`.
const EXIT_NOT_RUNNING: Option<i32> = Some(3);
const EXIT_CONFIG: Option<i32> = Some(78);

fn last_run(daemon: &Daemon) -> Value {
    serde_json::from_str(&fs::read_to_string(daemon.state("last-run.json")).unwrap()).unwrap()
}

#[test]
fn a_message_is_answered_by_echo_and_recorded() {
    let daemon = Daemon::start(&config(json!({})));
    let answer = daemon.nexus_ok(&["send", "hello there"]);
    assert!(answer.contains("hello there"), "{answer}");
    assert_eq!(daemon.ended("completed"), 1);
    let events = daemon.texts("events", "SELECT content FROM events WHERE channel = 'cli' AND direction = 'inbound'");
    assert_eq!(events, ["hello there"]);
}

#[test]
fn the_start_is_summed_up_on_stderr() {
    let daemon = Daemon::start(&only("fake", json!({})));
    let http = daemon.http();
    let expected = [
        format!("[NEX] Daemon started (v{})", env!("CARGO_PKG_VERSION")),
        format!("  PID:       {}", daemon.pid()),
        format!("  HTTP:      {http}"),
        "  Adapters:  ".to_owned(),
        "    fake/me".to_owned(),
        "  Plugins:   2 loaded (logging, analytics)".to_owned(),
        "  Timer:     ".to_owned(),
        "  Ledgers:   4/4 ok".to_owned(),
    ];
    eventually("the summary is written", || daemon.stderr().contains("Ledgers:"));
    let summary = daemon.stderr();
    for line in &expected {
        assert!(summary.lines().any(|found| found.starts_with(line.as_str())), "no `{line}` in\n{summary}");
    }
    let log = daemon.stdout();
    // The last line may be only half written yet.
    let (whole, _) = log.rsplit_once('\n').expect("the start is logged");
    for line in whole.lines() {
        let record: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        assert!(record["ts"].is_string() && record["level"].is_string() && record["msg"].is_string(), "{line}");
    }
}

#[test]
fn the_status_says_what_runs() {
    let daemon = Daemon::start(&only("fake", json!({ "events": 2 })));
    daemon.adapter_once("fake/me", "running");
    let text = find("both events are done", || {
        let text = daemon.nexus_ok(&["daemon", "status"]);
        let is_idle = text.contains("  Active requests: 0\n") && text.contains("  Total processed: 2\n");
        is_idle.then_some(text)
    });
    let first = format!("NEX Daemon: running (PID {}, uptime ", daemon.pid());
    assert!(text.starts_with(&first), "{text}");
    assert!(text.contains(&format!("\nHTTP: {}\n", daemon.http())), "{text}");
    let adapter = text.lines().find(|line| line.starts_with("  fake/me")).unwrap_or_else(|| panic!("{text}"));
    assert!(adapter.contains("● running") && adapter.contains("events: 2"), "{adapter}");
    for part in ["\nAdapters:\n", "\nPipeline:\n", "  Avg latency: "] {
        assert!(text.contains(part), "no `{part}` in\n{text}");
    }
    assert!(text.contains("\nPlugins: logging, analytics\n") && text.contains("\nTimer: "), "{text}");
    assert!(text.contains("\nLedgers: 4/4 ok"), "{text}");
    let json: Value = serde_json::from_str(&daemon.nexus_ok(&["daemon", "status", "--json"])).unwrap();
    assert_eq!(json["pid"], daemon.pid());
    // Denied or not, each has gone through all the stages that it has a trace of, and one end.
    let plugin = |name: &str| -> Value { serde_json::from_str(&daemon.nexus_ok(&["plugin", "info", name, "--json"])).unwrap() };
    let (logging, analytics) = (plugin("logging"), plugin("analytics"));
    assert_eq!(analytics["calls"], 2, "{analytics}");
    assert!(
        logging["calls"].as_u64().is_some_and(|calls| calls > 2)
            && logging["mean_ms"].as_f64().is_some_and(|ms| ms > 0.0)
            && logging["p50_ms"].is_number(),
        "{logging}"
    );
    assert_eq!(daemon.metric(r#"nexus_plugin_calls_total{plugin="analytics",result="continue"}"#), 2);
}

#[test]
fn a_second_daemon_is_refused_and_changes_nothing() {
    let mut daemon = Daemon::start(&config(json!({})));
    let second = daemon.nexus(&["daemon", "start"]);
    assert_eq!(second.code, Some(1), "{second:?}");
    let refusal = format!("NEX daemon already running (PID {})", daemon.pid());
    assert!(second.stderr.contains(&refusal), "{second:?}");
    assert_eq!(daemon.pid_file(), Some(daemon.pid()));
    assert!(daemon.is_running());
    assert_eq!(daemon.get("/readyz").status, 200);
}

#[test]
fn a_term_ends_it_cleanly_and_is_remembered() {
    let mut daemon = Daemon::start(&config(json!({})));
    let pid = daemon.pid();
    assert_eq!(daemon.pid_file(), Some(pid));
    daemon.stop();
    assert!(!daemon.state("nex.pid").exists(), "the PID file is left");
    let run = last_run(&daemon);
    assert_eq!(run["pid"], pid);
    assert_eq!(run["clean"], true);
    assert!(run["ended_at"].as_i64() >= run["started_at"].as_i64(), "{run}");
    let status = daemon.nexus(&["daemon", "status"]);
    assert_eq!(status.code, EXIT_NOT_RUNNING, "{status:?}");
    assert!(status.stdout.starts_with("NEX Daemon: not running"), "{status:?}");
    assert!(status.stdout.contains(&format!("(PID {pid}, exited cleanly)")), "{status:?}");
    assert_eq!(daemon.nexus(&["daemon", "stop"]).code, EXIT_NOT_RUNNING);
}

#[test]
fn a_crash_is_told_from_a_stop_and_the_next_start_works() {
    let mut daemon = Daemon::start(&config(json!({})));
    let pid = daemon.pid();
    daemon.kill9();
    let status = daemon.nexus(&["daemon", "status"]);
    assert_eq!(status.code, EXIT_NOT_RUNNING, "{status:?}");
    assert!(status.stdout.contains("not running") && status.stdout.contains("crashed"), "{status:?}");
    assert!(status.stdout.contains(&format!("PID {pid}")), "{status:?}");
    daemon.launch();
    assert_eq!(daemon.pid_file(), Some(daemon.pid()));
    assert!(daemon.nexus_ok(&["send", "back again"]).contains("back again"));
}

#[test]
fn detached_it_is_ready_at_once_outlives_its_starter_and_can_be_stopped() {
    let daemon = Daemon::new();
    daemon.configure(&config(json!({})));
    let started = daemon.nexus(&["daemon", "start", "-d"]);
    assert_eq!(started.code, Some(0), "{started:?}");
    assert_eq!(daemon.get("/readyz").status, 200, "exit 0 means ready");
    let pid = daemon.pid_file().expect("the PID file is written");
    let process = procfs::Process::of(pid).expect("the PID file names a process");
    let open = procfs::standard_files(pid);
    for file in &started.files {
        assert!(!open.contains(&file.to_string_lossy().into_owned()), "keeps its starter's output open: {open:?}");
    }
    let log = daemon.state("logs/nex.log");
    eventually("the log is written", || fs::metadata(&log).is_ok_and(|log| log.len() > 0));
    fs::rename(&log, daemon.state("logs/rotated")).unwrap();
    common::send_signal(pid, Signal::HUP);
    eventually("SIGHUP makes it reopen its log", || log.exists());
    assert!(daemon.nexus_ok(&["send", "still here"]).contains("still here"));
    daemon.nexus_ok(&["daemon", "stop"]);
    assert!(!process.is_alive(), "stop returned before the daemon ended");
    assert!(!daemon.state("nex.pid").exists());
    assert_eq!(last_run(&daemon)["clean"], true);
}

#[test]
fn detaching_with_a_bad_configuration_fails_with_the_reason() {
    let daemon = Daemon::new();
    daemon.configure_text("daemon:\n  port: x\n");
    let started = daemon.nexus(&["daemon", "start", "--detach"]);
    assert_eq!(started.code, EXIT_CONFIG, "{started:?}");
    assert!(started.stderr.contains("nex.yaml:2:9: `port` must be"), "{started:?}");
    assert_eq!(daemon.nexus(&["daemon", "status"]).code, EXIT_NOT_RUNNING);
}

#[test]
fn every_mistake_in_the_file_is_named_with_its_place_before_anything_is_touched() {
    let daemon = Daemon::new();
    daemon.configure_text("daemon:\n  port: x\n  log_level: loud\nadapters:\n  a: {}\n");
    let started = daemon.nexus(&["daemon", "start"]);
    assert_eq!(started.code, EXIT_CONFIG, "{started:?}");
    for place in ["nex.yaml:2:9: ", "nex.yaml:3:14: ", "nex.yaml:5:6: ", "  |   port: x"] {
        assert!(started.stderr.contains(place), "no `{place}` in {}", started.stderr);
    }
    assert!(!daemon.config_file().with_file_name("data").join("events.db").exists());

    daemon.configure_text("daemon: [1, 2\nadapters: {\n");
    let started = daemon.nexus(&["daemon", "start"]);
    assert_eq!(started.code, EXIT_CONFIG, "{started:?}");
    assert!(started.stderr.contains("nex.yaml:") && started.stderr.contains("not valid YAML"), "{started:?}");
}

#[test]
fn a_port_that_is_taken_is_named() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let daemon = Daemon::new();
    let mut wanted = config(json!({}));
    wanted["daemon"]["port"] = json!(address.port());
    daemon.configure(&wanted);
    let started = daemon.nexus(&["daemon", "start"]);
    assert_eq!(started.code, Some(1), "{started:?}");
    assert!(started.stderr.contains(&address.to_string()) && started.stderr.contains("in use"), "{started:?}");
    assert!(!daemon.state("nex.pid").exists(), "the lock is left behind");
    let other = daemon.nexus(&["daemon", "start", "-d", "--port", "0"]);
    assert_eq!(other.code, Some(0), "--port wins over the file: {other:?}");
    daemon.nexus_ok(&["daemon", "stop"]);
}

/// An agent that never answers, so that a graceful stop has something to wait for.
fn with_stuck_agent() -> Value {
    let mut config = config(json!({}));
    config["agents"] = json!({ "default": "stuck", "stuck": { "runner": "command", "command": "sleep 1000" } });
    config
}

#[test]
fn the_second_interrupt_does_not_wait_for_running_agents() {
    let mut daemon = Daemon::start(&with_stuck_agent());
    let ask = Ask::post("/control/send", &json!({ "text": "are you there?" }));
    let answer = daemon.open(&ask);
    assert_eq!(answer.status, 200);
    eventually("the agent runs", || daemon.count("nexus", "SELECT count(*) FROM runs WHERE status = 'running'") == 1);
    let agent = find("the agent's process", || daemon.children().into_iter().find(|child| child.argv == "sleep 1000"));
    let mut notices = daemon.sse(&Ask::get("/api/events/stream?types=system.stopping"));
    daemon.signal(Signal::INT);
    notices.wait_for("system.stopping");
    assert!(daemon.is_running(), "the first interrupt drains");
    assert!(agent.is_alive(), "the first interrupt lets runs end");
    daemon.signal(Signal::INT);
    let pid = daemon.pid();
    daemon.wait_within(AT_ONCE);
    eventually("the agent is gone too", || !agent.is_alive());
    let status = daemon.nexus(&["daemon", "status"]);
    assert_eq!(status.code, EXIT_NOT_RUNNING, "{status:?}");
    assert!(status.stdout.contains(&format!("(PID {pid}, stopped at once by a second signal)")), "{status:?}");
    let status: Value = serde_json::from_str(&daemon.nexus(&["daemon", "status", "--json"]).stdout).unwrap();
    assert_eq!((&status["last_run"]["end"], &status["last_run"]["clean"]), (&json!("forced"), &json!(false)));
    assert_eq!(daemon.terminal(), 0, "the request isn't over");
}

#[test]
fn a_hangup_in_the_foreground_is_a_graceful_stop() {
    let mut daemon = Daemon::start(&config(json!({ "fake": fake(json!({})) })));
    let monitor = daemon.only_monitor();
    daemon.signal(Signal::HUP);
    assert_eq!(daemon.wait().code(), Some(0));
    assert!(!monitor.is_alive());
    assert_eq!(last_run(&daemon)["clean"], true);
}

#[test]
fn usr2_writes_diagnostics_and_logs_where() {
    let mut daemon = Daemon::start(&config(json!({})));
    daemon.signal(Signal::USR2);
    let file = find("a diagnostics file", || {
        let listings = [daemon.state(""), daemon.state("logs")].map(fs::read_dir);
        let mut paths = listings.into_iter().flatten().flatten().flatten().map(|entry| entry.path());
        let is_whole = |name: &str| name.starts_with("diagnostics-") && name.ends_with(".json"); // not the one that is being written
        paths.find(|path| path.file_name().is_some_and(|name| is_whole(&name.to_string_lossy())))
    });
    eventually("its path is logged", || daemon.stdout().contains(&*file.file_name().unwrap().to_string_lossy()));
    assert!(!fs::read_to_string(&file).unwrap().is_empty());
    assert!(daemon.is_running());
}

#[test]
fn two_daemons_cannot_share_ledgers() {
    let first = Daemon::start(&config(json!({})));
    let mut other = common::program(common::NEXUS);
    other.args(["daemon", "start", "--config"]).arg(first.config_file());
    let other = other.env("NEXUS_STATE_DIR", first.home().join("other")).env("HOME", first.home()).output().unwrap();
    assert_eq!(other.status.code(), Some(1), "{other:?}");
    assert!(String::from_utf8_lossy(&other.stderr).contains("in use by another daemon"), "{other:?}");
    assert_eq!(first.nexus_ok(&["send", "still", "here"]).trim(), "still here");
}

#[test]
fn while_it_stops_it_says_so_and_what_it_waits_for() {
    let mut daemon = Daemon::new();
    let (began, gate) = (daemon.file("began"), daemon.file("gate"));
    let script = format!("cat > {began}; until rm {gate} 2>/dev/null; do sleep 0.1; done; echo done");
    let mut wanted = config(json!({}));
    wanted["agents"] = json!({ "default": "slow", "slow": { "runner": "command", "command": format!("sh -c '{script}'") } });
    daemon.configure(&wanted);
    daemon.launch();
    assert!(daemon.status()["stopping"].is_null());
    let answer = daemon.open(&Ask::post("/control/send", &json!({ "text": "work" })));
    eventually("the agent is called", || fs::metadata(&began).is_ok_and(|told| told.len() > 0));

    daemon.signal(Signal::TERM);
    let status = find("it waits for the agent", || Some(daemon.status()).filter(|status| status["stopping"]["step"] == 3));
    assert_eq!(status["stopping"], json!({ "step": 3, "of": 12, "active_requests": 1, "waits_for": "1 request to end" }));
    let reason = "the daemon is stopping, step 3 of 12: it waits for 1 request to end";
    assert_eq!((&status["health"], &status["reasons"][0]), (&json!("degraded"), &json!(reason)));
    let health = daemon.get("/health");
    assert_eq!((health.status, &health.json()["reasons"][0]), (200, &json!(reason)));
    let text = daemon.nexus_ok(&["daemon", "status"]);
    assert!(text.starts_with(&format!("NEX Daemon: stopping (PID {}, ", daemon.pid())) && text.contains(reason), "{text}");

    fs::write(&gate, "").unwrap();
    assert_eq!(answer.body.end()["status"], "completed");
    assert_eq!(daemon.wait().code(), Some(0), "{}", daemon.stderr());
}

#[test]
fn an_agent_cannot_end_the_daemon_that_it_belongs_to() {
    let mut daemon = Daemon::new();
    let log = daemon.file("log");
    let place = [
        "env".to_owned(),
        format!("NEXUS_STATE_DIR={}", daemon.root().join("state").display()),
        format!("NEXUS_CONFIG={}", daemon.config_file().display()),
        common::NEXUS.to_owned(),
    ];
    let nexus = shell_words::join(place);
    let verbs = format!("for verb in stop restart reload; do {nexus} daemon $verb; echo \"$verb: $?\"; done");
    let script = format!("cat >/dev/null; {{ {verbs}; }} > {log} 2>&1; echo done");
    let mut wanted = config(json!({}));
    let command = shell_words::join(["sh", "-c", script.as_str()]);
    wanted["agents"] = json!({ "default": "ends", "ends": { "runner": "command", "command": command } });
    daemon.configure(&wanted);
    daemon.launch();
    assert_eq!(daemon.nexus_ok(&["send", "end it"]).trim(), "done");
    let said = fs::read_to_string(&log).unwrap();
    for line in ["stop: 1", "restart: 1", "reload: 0"] {
        assert!(said.lines().any(|found| found == line), "no `{line}` in\n{said}");
    }
    for verb in ["stop", "restart"] {
        let why = format!("`nexus daemon {verb}` is run by a child of the daemon (PID {})", daemon.pid());
        assert!(said.contains(&why) && said.contains(&format!("systemd-run nexus daemon {verb}")), "{said}");
    }
    assert!(daemon.is_running() && daemon.status()["stopping"].is_null());
    daemon.nexus_ok(&["daemon", "stop"]);
    assert_eq!(daemon.wait().code(), Some(0), "{}", daemon.stderr());
}
