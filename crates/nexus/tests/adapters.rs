//! Adapters that behave and adapters that don't: what they say is accepted once or rejected with a
//! reason, what was missed is fetched, and none of them takes the daemon or another adapter down.
#![allow(clippy::unwrap_used)]

mod common;

use common::procfs::Process;
use common::{Daemon, config, eventually, fake, find, json_lines, lines, only, only_with_restarts};
use serde_json::{Value, json};
use std::fs;
use std::time::{Duration, Instant};

/// A line ten times as long as an adapter may write.
const LONG_LINE_BYTES: usize = 10 * 1024 * 1024;
const OPEN_GAPS: &str = "SELECT count(*) FROM cursors WHERE gap_since IS NOT NULL";
/// A little less than the 5 s between TERM and KILL.
const MOST_OF_THE_GRACE: Duration = Duration::from_millis(4_500);

fn rejects(daemon: &Daemon) -> Vec<String> {
    daemon.texts("events", "SELECT code FROM rejected_lines ORDER BY code")
}

/// The process whose PID stands in `path`.
fn process_in(path: &str) -> Process {
    find("the grandchild", || Process::of(lines(path).first()?.trim().parse().ok()?))
}

#[test]
fn each_event_is_accepted_once_ends_once_and_is_acknowledged() {
    let mut daemon = Daemon::new();
    let acks = daemon.file("acks");
    let behaviour = json!({ "supports": ["monitor", "ack"], "events": 200, "peers": 4, "ack_log": acks });
    daemon.configure(&only("fake", behaviour));
    daemon.launch();
    eventually("all requests end", || daemon.ended("completed") == 200);
    assert_eq!(daemon.accepted(), 200);
    assert_eq!(daemon.count("events", "SELECT count(DISTINCT event_id) FROM events"), 200);
    assert_eq!(daemon.count("nexus", "SELECT count(*) FROM nexus_requests"), 200);
    let number = |ack: &Value| ack["ack"].as_str().and_then(|id| id.strip_prefix("fake:me-")?.parse::<u32>().ok());
    eventually("the last one is acknowledged", || json_lines(&acks).last().and_then(number) == Some(200));
    let numbers: Vec<u32> = json_lines(&acks).iter().filter_map(number).collect();
    assert_eq!(numbers.len(), json_lines(&acks).len(), "an acknowledgement of something else");
    assert!(numbers.windows(2).all(|pair| pair[0] < pair[1]), "not cumulative: {numbers:?}");
}

#[test]
fn strangers_are_recorded_and_denied() {
    let mut daemon = Daemon::new();
    let sends = daemon.file("sends");
    let mut wanted = only("fake", json!({ "events": 20, "send_log": sends }));
    wanted["access"]["owner"] = json!(["fake:somebody-else"]);
    daemon.configure(&wanted);
    daemon.launch();
    eventually("all are denied", || daemon.ended("denied") == 20);
    assert_eq!(daemon.count("nexus", "SELECT count(*) FROM runs"), 0);
    assert_eq!(daemon.count("nexus", "SELECT count(*) FROM deliveries"), 0);
    assert!(lines(&sends).is_empty(), "a stranger was answered");
}

#[test]
fn bad_lines_are_kept_with_their_reason_and_good_ones_go_on() {
    let mut daemon = Daemon::new();
    let file = daemon.file("lines");
    let mut bytes = b"\xff\xfe is no UTF-8\nnot json\n{}\n".to_vec();
    bytes.resize(bytes.len() + LONG_LINE_BYTES, b'x');
    bytes.push(b'\n');
    let elsewhere = json!({
        "event_id": "mail:1", "timestamp": 1, "content": "", "content_type": "text", "channel": "mail",
        "account_id": "me", "sender_id": "u1", "peer_id": "p1", "peer_kind": "dm",
    });
    bytes.extend(format!("{elsewhere}\n").bytes());
    fs::write(&file, bytes).unwrap();
    daemon.configure(&only("fake", json!({ "events": 10, "lines_file": file, "lie_account": true })));
    daemon.launch();
    eventually("the good ones end", || daemon.ended("completed") == 10);
    assert_eq!(daemon.accepted(), 10);
    let expected = ["not_an_event", "not_json", "not_utf8", "too_long", "wrong_account", "wrong_channel"];
    assert_eq!(rejects(&daemon), expected);
    let too_long = "SELECT bytes FROM rejected_lines WHERE code = 'too_long'";
    assert!(daemon.count("events", too_long) >= i64::try_from(LONG_LINE_BYTES).unwrap());
    let head = "SELECT length(head) FROM rejected_lines WHERE code = 'too_long'";
    assert_eq!(daemon.count("events", head), 4096, "its first 4 KiB are kept, and no more");
    let unexplained = "SELECT count(*) FROM rejected_lines WHERE reason = '' OR adapter != 'fake' OR account != 'me'";
    assert_eq!(daemon.count("events", unexplained), 0);
    assert_eq!(daemon.adapter("fake/me")["status"], "running");
}

#[test]
fn half_a_line_at_the_end_is_rejected_and_what_came_before_is_kept() {
    let daemon = Daemon::start(&only_with_restarts("fake", 0, json!({ "events": 5, "half_line_then_exit": true })));
    daemon.adapter_once("fake/me", "errored");
    assert_eq!(daemon.accepted(), 5);
    assert_eq!(rejects(&daemon), ["unfinished"]);
    eventually("what was accepted ends", || daemon.ended("completed") == 5);
}

#[test]
fn what_is_said_twice_is_done_once() {
    let mut daemon = Daemon::new();
    let acks = daemon.file("acks");
    let behaviour = json!({ "supports": ["monitor", "ack"], "events": 50, "repeat": 2, "ack_log": acks });
    daemon.configure(&only("fake", behaviour));
    daemon.launch();
    eventually("all requests end", || daemon.ended("completed") == 50);
    daemon.nexus_ok(&["adapter", "stop", "fake/me"]);
    daemon.adapter_once("fake/me", "stopped");
    let before = lines(&acks).len();
    // Now the adapter says everything a third and a fourth time.
    daemon.nexus_ok(&["adapter", "start", "fake/me"]);
    let again = || json_lines(&acks).into_iter().skip(before).any(|ack| ack["ack"] == "fake:me-50");
    eventually("what is known already is acknowledged too", again);
    daemon.stop();
    assert_eq!(daemon.accepted(), 50);
    assert_eq!(daemon.count("nexus", "SELECT count(*) FROM nexus_requests"), 50);
    assert_eq!(daemon.count("nexus", "SELECT count(*) FROM runs"), 50);
}

#[test]
fn a_crashing_adapter_is_restarted_then_errored_and_a_person_may_try_again() {
    let mut daemon = Daemon::new();
    let starts = daemon.file("starts");
    daemon.configure(&only_with_restarts("fake", 1, json!({ "crash_after": 0, "exit_code": 3, "start_log": starts })));
    daemon.launch();
    let entry = daemon.adapter_once("fake/me", "errored");
    assert_eq!(entry["restarts"], 1, "{entry}");
    assert!(entry["last_error"].as_str().is_some_and(|error| error.contains("exit code 3")), "{entry}");
    assert_eq!(entry["pid"], Value::Null);
    assert_eq!(lines(&starts).len(), 2, "one start and one restart");
    let health = daemon.get("/health").json();
    assert_eq!((health["status"].as_str(), health["adapters"]["errored"].as_i64()), (Some("degraded"), Some(1)));
    daemon.nexus(&["adapter", "restart", "fake/me"]);
    eventually("a manual start clears the count", || lines(&starts).len() == 4);
    daemon.adapter_once("fake/me", "errored");
    assert_eq!(lines(&starts).len(), 4);
    assert_eq!(daemon.get("/readyz").status, 200);
}

#[test]
fn a_program_that_does_not_exist_is_shown_with_the_kernels_words() {
    let missing = json!({
        "command": "/nonexistent/chat-bridge --fast",
        "restart": { "max_restarts": 0, "errored_retry_ms": 0 },
        "accounts": { "me": {} },
    });
    let daemon = Daemon::start(&config(json!({ "bridge": missing, "fake": fake(json!({})) })));
    let entry = daemon.adapter_once("bridge/me", "errored");
    let error = entry["last_error"].as_str().unwrap_or_default();
    assert!(error.contains("/nonexistent/chat-bridge") && error.contains("No such file or directory"), "{entry}");
    daemon.adapter_once("fake/me", "running");
    let text = daemon.nexus_ok(&["daemon", "status"]);
    let line = text.lines().find(|line| line.starts_with("  bridge/me")).unwrap_or_else(|| panic!("{text}"));
    assert!(line.contains("errored"), "{text}");
    assert!(daemon.nexus_ok(&["daemon", "status", "--json"]).contains("No such file or directory"));
}

#[test]
fn an_adapter_that_cannot_introduce_itself_is_errored_and_holds_nobody_up() {
    let introduces = |how: &str| {
        let mut adapter = fake(json!({ "info": how }));
        adapter["restart"]["max_restarts"] = json!(0);
        adapter
    };
    let adapters = json!({
        "garbage": introduces("garbage"), "hang": introduces("hang"), "newer": introduces("newer"),
        "good": fake(json!({ "channel": "good" })),
    });
    let daemon = Daemon::start(&config(adapters));
    assert_eq!(daemon.adapter("hang/me")["status"], "starting", "ready does not wait for a slow adapter");
    daemon.adapter_once("good/me", "running");
    let late = "adapter `hang`: `info` did not end within 10 s";
    for (name, part) in [("garbage/me", "info"), ("newer/me", "protocol version 99"), ("hang/me", late)] {
        let entry = daemon.adapter_once(name, "errored");
        assert!(entry["last_error"].as_str().is_some_and(|error| error.contains(part)), "{entry}");
    }
    assert_eq!(daemon.get("/readyz").status, 200);
    assert_eq!(daemon.monitors().len(), 1, "only the good one was asked for events");
    assert!(!daemon.children().iter().any(|child| child.argv.ends_with(" info")), "what hung was given up and lives on");
}

#[test]
fn a_disconnected_platform_makes_the_daemon_degraded() {
    let daemon = Daemon::start(&only("fake", json!({ "health": "disconnected" })));
    eventually("the probe is believed", || daemon.adapter("fake/me")["health"] == "disconnected");
    let health = daemon.get("/health");
    assert_eq!((health.status, health.json()["status"].as_str()), (200, Some("degraded")));
    assert_eq!(daemon.adapter("fake/me")["status"], "running");
}

#[test]
fn one_that_ignores_term_is_killed_after_its_grace() {
    let daemon = Daemon::start(&only("fake", json!({ "ignore_term": true, "events": 1 })));
    eventually("it watches signals", || daemon.accepted() == 1);
    let monitor = daemon.only_monitor();
    let asked = Instant::now();
    daemon.nexus_ok(&["adapter", "stop", "fake/me"]);
    daemon.adapter_once("fake/me", "stopped");
    assert!(asked.elapsed() > MOST_OF_THE_GRACE, "killed after {:?} only", asked.elapsed());
    assert!(!monitor.is_alive());
    assert!(daemon.monitors().is_empty());
}

#[test]
fn a_grandchild_in_its_own_session_dies_with_its_adapter() {
    let mut daemon = Daemon::new();
    let file = daemon.file("grandchild");
    daemon.configure(&only("fake", json!({ "setsid_grandchild": true, "grandchild_file": file, "events": 1 })));
    daemon.launch();
    eventually("it has started", || daemon.accepted() == 1);
    let grandchild = process_in(&file);
    assert!(grandchild.is_alive());
    daemon.nexus_ok(&["adapter", "stop", "fake/me"]);
    daemon.adapter_once("fake/me", "stopped");
    assert!(!grandchild.is_alive(), "stopped means that nothing of it is left");

    daemon.nexus_ok(&["adapter", "start", "fake/me"]);
    daemon.adapter_once("fake/me", "running");
    let second = find("another grandchild", || Some(process_in(&file)).filter(|second| *second != grandchild));
    assert!(second.is_alive());
    daemon.kill9();
    eventually("it dies with the daemon", || !second.is_alive());
}

#[test]
fn the_last_lines_of_a_stopping_adapter_are_kept() {
    let mut daemon = Daemon::start(&only("fake", json!({ "events": 3, "last_lines": 5 })));
    eventually("it watches signals", || daemon.accepted() == 3);
    daemon.stop();
    assert_eq!(daemon.accepted(), 8, "what it wrote after TERM was lost");
    daemon.launch();
    eventually("the next start takes them up", || daemon.ended("completed") == 8);
    assert_eq!(daemon.accepted(), 8);
}

#[test]
fn one_that_closes_its_stdout_or_says_nothing_can_still_be_stopped() {
    let mute = fake(json!({ "channel": "mute", "stall": true }));
    let closed = fake(json!({ "events": 4, "close_stdout_but_live": true }));
    let mut daemon = Daemon::start(&config(json!({ "closed": closed, "mute": mute })));
    eventually("what was said before counts", || daemon.accepted() == 4);
    daemon.adapter_once("mute/me", "running");
    assert_eq!(daemon.get("/readyz").status, 200);
    daemon.stop();
    assert!(daemon.children().is_empty(), "{:?}", daemon.children());
}

/// When each backfill was to begin, in the order of the calls.
fn backfills(log: &str) -> Vec<String> {
    json_lines(log).iter().map(|call| call["since"].as_str().unwrap_or_default().to_owned()).collect()
}

#[test]
fn a_gap_stays_open_over_failures_and_a_crash_until_it_is_fetched() {
    let mut daemon = Daemon::new();
    let (state, log) = (daemon.file("written"), daemon.file("backfills"));
    let behave = |events: u32, fails: u32| {
        only(
            "fake",
            json!({
                "supports": ["monitor", "backfill"], "events": events, "state_file": state,
                "backfill_events": 6, "backfill_fails": fails, "backfill_log": log,
            }),
        )
    };
    daemon.configure(&behave(3, 1000));
    daemon.launch();
    eventually("the first events are done", || daemon.ended("completed") == 3);
    daemon.stop();
    assert!(lines(&log).is_empty(), "an account that is new has missed nothing");

    daemon.configure(&behave(5, 1000));
    daemon.launch();
    eventually("a clean stop leaves a gap too, and a failed attempt is repeated", || lines(&log).len() >= 2);
    eventually("new events come meanwhile", || daemon.accepted() == 5);
    assert_eq!(daemon.count("events", OPEN_GAPS), 1);
    daemon.kill9();

    daemon.configure(&behave(5, 0));
    daemon.launch();
    eventually("what was missed is fetched and done", || daemon.ended("completed") == 6);
    eventually("the gap is closed", || daemon.count("events", OPEN_GAPS) == 0);
    let since = backfills(&log);
    assert!(since.iter().all(|one| *one == since[0]), "the gap began elsewhere after a failure: {since:?}");
    assert_eq!(daemon.accepted(), 6);
    daemon.stop();
}

/// A daemon whose account missed something and is not connected: its platform has six events, of which it
/// told of three before a stop. With the file that says how it is, and the log of backfills.
fn deaf() -> (Daemon, String, String) {
    let mut daemon = Daemon::new();
    let (health, log) = (daemon.file("health"), daemon.file("backfills"));
    daemon.configure(&only(
        "fake",
        json!({
            "supports": ["monitor", "backfill", "health"], "events": 3, "state_file": daemon.file("written"),
            "backfill_events": 6, "backfill_log": log, "health_file": health,
        }),
    ));
    daemon.launch();
    eventually("the first events are done", || daemon.ended("completed") == 3);
    daemon.stop();
    fs::write(&health, "disconnected").unwrap();
    daemon.launch();
    eventually("it has a gap", || daemon.count("events", OPEN_GAPS) == 1);
    daemon.adapter_once("fake/me", "running");
    (daemon, health, log)
}

#[test]
fn a_stopped_account_is_fetched_for_when_it_is_started_again() {
    let (daemon, health, log) = deaf();
    daemon.nexus_ok(&["adapter", "stop", "fake/me"]);
    eventually("its catch-up ends", || daemon.stdout().contains("catch-up called off"));
    assert!(lines(&log).is_empty(), "a backfill of an account that is stopped");
    assert_eq!((daemon.count("events", OPEN_GAPS), daemon.ended("completed")), (1, 3));
    fs::write(health, "ok").unwrap();
    daemon.nexus_ok(&["adapter", "start", "fake/me"]);
    eventually("what was missed is fetched and done", || daemon.ended("completed") == 6);
    eventually("the gap is closed", || daemon.count("events", OPEN_GAPS) == 0);
    assert_eq!(lines(&log).len(), 1);
}

#[test]
fn one_whose_health_nobody_can_read_catches_up_all_the_same() {
    let (mut daemon, health, log) = deaf();
    fs::write(health, "garbage").unwrap();
    eventually("the gap is closed", || daemon.count("events", OPEN_GAPS) == 0);
    eventually("what was missed is done", || daemon.ended("completed") == 6);
    assert!(!lines(&log).is_empty());
    daemon.stop();
}

#[test]
fn requests_held_for_a_catch_up_go_on_when_their_account_is_disabled() {
    let mut daemon = Daemon::new();
    let state = daemon.file("written");
    let behave = |events: u32, backfill: &str| {
        only("fake", json!({ "supports": ["monitor", "backfill"], "events": events, "state_file": state, "backfill": backfill }))
    };
    daemon.configure(&behave(3, "ok"));
    daemon.launch();
    eventually("the first events are done", || daemon.ended("completed") == 3);
    daemon.stop();
    let mut wanted = behave(5, "hang");
    daemon.configure(&wanted);
    daemon.launch();
    eventually("new events come while it catches up", || daemon.accepted() == 5);
    assert_eq!(daemon.ended("completed"), 3, "a request did not wait for the catch-up");
    wanted["adapters"]["fake"]["accounts"]["me"]["enabled"] = json!(false);
    daemon.configure(&wanted);
    daemon.nexus_ok(&["daemon", "reload"]);
    eventually("what was accepted ends", || daemon.ended("completed") == 5);
}

#[test]
fn a_history_is_fetched_once_and_takes_no_live_message_away() {
    let mut daemon = Daemon::new();
    let log = daemon.file("backfills");
    let behaviour = json!({ "supports": ["monitor", "backfill"], "backfill_events": 6, "backfill_old": 4, "backfill_log": log });
    let mut wanted = only("fake", behaviour);
    wanted["adapters"]["fake"]["accounts"]["me"]["backfill"] = json!(true);
    daemon.configure(&wanted);
    daemon.launch();
    let complete = "SELECT count(*) FROM adapter_instances WHERE backfill_completed_at IS NOT NULL";
    eventually("the history is complete", || daemon.count("nexus", complete) == 1);
    let dispositions = daemon.texts("events", "SELECT disposition FROM events WHERE direction = 'inbound' ORDER BY event_id");
    assert_eq!(dispositions, ["history", "history", "history", "history", "run", "run"]);
    eventually("what came since the start is done", || daemon.ended("completed") == 2);
    assert_eq!(daemon.count("nexus", "SELECT count(*) FROM nexus_requests"), 2);
    let messages = "SELECT coalesce(sum(messages), 0) FROM contacts WHERE channel = 'fake' AND sender_id = 'u1'";
    eventually("its senders are contacts", || daemon.count("identity", messages) == 6);
    for enabled in [false, true] {
        wanted["adapters"]["fake"]["accounts"]["me"]["enabled"] = json!(enabled);
        daemon.configure(&wanted);
        daemon.nexus_ok(&["daemon", "reload"]);
    }
    eventually("it catches up on the time in between", || lines(&log).len() == 2);
    daemon.adapter_once("fake/me", "running");
    let histories = backfills(&log).iter().filter(|since| since.starts_with("1970")).count();
    assert_eq!(histories, 1, "a history that is complete was fetched again");
}

#[test]
fn what_a_crashed_adapter_left_in_the_pipe_of_a_held_reader_is_kept() {
    let mut daemon = Daemon::new();
    let state = daemon.file("written");
    // A pipe has sixteen slots of a page. Twelve lines below a page fit in, wherever the reader begins to hold.
    let behave = |more: Value| {
        let mut behaviour = json!({ "supports": ["monitor", "backfill"], "state_file": state, "content_bytes": 3000 });
        behaviour.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let mut wanted = only_with_restarts("fake", 0, behaviour);
        wanted["adapters"]["fake"]["max_pending"] = json!(1);
        wanted
    };
    daemon.configure(&behave(json!({ "events": 1 })));
    daemon.launch();
    eventually("the first event is done", || daemon.ended("completed") == 1);
    daemon.stop();
    // None of it can end while the catch-up before it hangs.
    daemon.configure(&behave(json!({ "events": 13, "crash_after": 12, "backfill": "hang" })));
    daemon.launch();
    daemon.adapter_once("fake/me", "errored");
    assert_eq!(daemon.accepted(), 13);
}

#[test]
fn a_credential_that_is_missing_is_errored_at_once_and_heals_when_it_is_set() {
    let mut wanted = only("fake", json!({ "events": 1 }));
    wanted["adapters"]["fake"]["accounts"]["me"]["credential_ref"] = json!("chat/me");
    let daemon = Daemon::start(&wanted);
    let entry = daemon.adapter_once("fake/me", "errored");
    assert!(entry["last_error"].as_str().is_some_and(|error| error.contains("nexus credential set chat/me")), "{entry}");
    assert!(daemon.monitors().is_empty());
    let credentials = daemon.config_file().with_file_name("state").join("credentials");
    nexus::credential::set(&credentials, "chat/me", "s3cret").unwrap();
    daemon.nexus_ok(&["adapter", "start", "fake/me"]);
    eventually("its event is done", || daemon.ended("completed") == 1);
    let environments = common::procfs::with_environment(&["s3cret"]);
    assert!(environments.is_empty(), "the secret is in an environment");
}
