//! More than a part can take: lines in a burst, an account that stands still for ever, clients that
//! never read. Each waits or is cut off alone, the others go on, and the daemon's memory stays bounded.
#![allow(clippy::unwrap_used)]

mod common;

use common::procfs::memory_kib;
use common::{Answer, Ask, DEADLINE, Daemon, Sse, config, eventually, fake, find_within, only};
use serde_json::{Value, json};
use std::fs;
use std::time::Duration;

const BURST_LINES: u64 = 200_000;
/// So many ids are in the burst, each of them again and again.
const BURST_IDS: u64 = 100;
const GARBAGE_LINES: usize = 20_000;
/// What is kept of them: the newest 10,000, made room for at every 1,024th.
const REJECTS_KEPT_MAX: i64 = 10_000 + 1_024;
/// How long a flood may take on a slow machine, in a debug build.
const FLOOD_PATIENCE: Duration = Duration::from_secs(240);
/// By how much the daemon may grow, in KiB, while one account floods it. The lines alone are twice that.
const GROWTH_KIB_MAX: u64 = 32 * 1024;
/// Requests without an end at which an account is held; and what it may have on its way besides: two
/// batches of 1,024, the second one filled by a read of 64 KiB that began below the limit.
const PENDING_MAX: u64 = 100;
const HELD_EVENTS_MAX: i64 = 4_000;
const HELD_LINES: u64 = 20_000;
const CONTENT_BYTES: u64 = 200;
/// Messages that each put as much on the bus, and the clients that read none of it: what waits for them
/// comes to 384 MiB, were it kept.
const MESSAGE_BYTES: usize = 512 * 1024;
const MESSAGES: usize = 48;
const WARM_UP_MESSAGES: usize = 10;
const DEAF_CLIENTS: usize = 16;
const DEAF_GROWTH_KIB_MAX: u64 = 96 * 1024;

#[test]
fn a_burst_of_200_000_lines_is_read_to_its_end_and_each_id_is_done_once() {
    let mut wanted = only("fake", json!({ "events": BURST_IDS, "repeat": BURST_LINES / BURST_IDS }));
    // Denied, so that reading is what takes the time.
    wanted["access"]["owner"] = json!(["fake:somebody-else"]);
    let mut daemon = Daemon::start(&wanted);
    let known = "nexus_events_total{channel=\"fake\",result=\"duplicate\"}";
    find_within(FLOOD_PATIENCE, "every line is read", || (daemon.metric(known) == BURST_LINES - BURST_IDS).then_some(()));
    let ids = i64::try_from(BURST_IDS).unwrap();
    eventually("each is denied", || daemon.ended("denied") == ids);
    assert_eq!(daemon.accepted(), ids);
    assert_eq!(daemon.count("nexus", "SELECT count(*) FROM nexus_requests"), ids);
    assert_eq!(daemon.count("events", "SELECT count(*) FROM rejected_lines"), 0);
    assert_eq!(daemon.adapter("fake/me")["status"], "running");
    daemon.stop();
    daemon.nothing_runs();
}

#[test]
fn a_burst_of_garbage_is_counted_kept_in_part_and_what_follows_is_done() {
    let mut daemon = Daemon::new();
    let file = daemon.file("lines");
    let garbage: String = (1..=GARBAGE_LINES).map(|n| format!("garbage {n}\n")).collect();
    fs::write(&file, garbage).unwrap();
    daemon.configure(&only("fake", json!({ "lines_file": file, "events": 5 })));
    daemon.launch();
    eventually("what follows is done", || daemon.ended("completed") == 5);
    let rejected = "nexus_events_total{channel=\"fake\",result=\"rejected\"}";
    eventually("each is counted", || daemon.metric(rejected) == GARBAGE_LINES as u64);
    assert!(daemon.count("events", "SELECT count(*) FROM rejected_lines") <= REJECTS_KEPT_MAX);
    let newest = daemon.texts("events", "SELECT CAST(head AS TEXT) FROM rejected_lines ORDER BY seq DESC LIMIT 1");
    assert_eq!(newest, [format!("garbage {GARBAGE_LINES}")], "the newest are those that are kept");
    let entry = daemon.adapter("fake/me");
    assert_eq!((&entry["status"], &entry["health"]), (&json!("running"), &json!("degraded")), "{entry}");
    let why = format!("{GARBAGE_LINES} rejected lines within a minute");
    assert!(entry["last_error"].as_str().is_some_and(|error| error.contains(&why)), "{entry}");
    let told = daemon.stdout().lines().filter(|line| line.contains("adapter lines rejected")).count();
    assert!(told > 0 && told < GARBAGE_LINES / 10, "a log line for nearly each: {told}");
}

/// Two accounts of one adapter: `held` says more than it may have pending, to an agent that never
/// answers; `flood` has a history of 200,000 events.
fn one_held_and_one_flooding() -> Value {
    let mut adapter = fake(json!({ "supports": ["monitor", "send", "backfill"] }));
    adapter["max_pending"] = json!(PENDING_MAX);
    adapter["accounts"] = json!({
        "held": { "config": { "events": HELD_LINES, "content_bytes": CONTENT_BYTES } },
        "flood": {
            "enabled": false, "monitor": false, "backfill": true,
            "config": { "backfill_events": BURST_LINES, "content_bytes": CONTENT_BYTES },
        },
    });
    let mut wanted = config(json!({ "fake": adapter }));
    wanted["agents"] = json!({ "stuck": { "runner": "command", "command": "sleep 100000", "max_concurrent": 1 } });
    wanted["access"]["policies"] = json!([{
        "name": "stuck", "match": { "conditions": [{ "channel": "fake" }] }, "effect": "allow",
        "session": { "agent": "stuck", "key": "fake:{peer_id}" }, // not that of `nexus send`, whose sender is the owner as well
    }]);
    wanted
}

#[test]
fn an_account_that_stands_still_for_ever_costs_another_nothing_and_the_daemon_little() {
    let mut wanted = one_held_and_one_flooding();
    let daemon = Daemon::start(&wanted);
    let is_held = || {
        let entry = daemon.adapter("fake/held");
        entry["health"] == "degraded" && entry["last_error"].as_str().is_some_and(|error| error.contains("max_pending"))
    };
    eventually("the reader is held", is_held);
    let held = daemon.only_monitor();
    assert_eq!(daemon.nexus_ok(&["send", "warm up"]).trim(), "warm up");
    let before = memory_kib(daemon.pid(), "VmRSS");

    wanted["adapters"]["fake"]["accounts"]["flood"]["enabled"] = json!(true);
    daemon.configure(&wanted);
    daemon.nexus_ok(&["daemon", "reload"]);
    let mut peak = before;
    find_within(FLOOD_PATIENCE, "the other one completes", || {
        peak = peak.max(memory_kib(daemon.pid(), "VmRSS"));
        (daemon.adapter("fake/flood")["events"] == BURST_LINES).then_some(())
    });
    let complete = "SELECT count(*) FROM adapter_instances WHERE account = 'flood' AND backfill_completed_at IS NOT NULL";
    eventually("its history is complete", || daemon.count("nexus", complete) == 1);
    peak = peak.max(memory_kib(daemon.pid(), "VmRSS"));

    let history = "SELECT count(DISTINCT event_id) FROM events WHERE account_id = 'flood' AND disposition = 'history'";
    assert_eq!(daemon.count("events", history), i64::try_from(BURST_LINES).unwrap());
    assert!(peak - before <= GROWTH_KIB_MAX, "grew from {before} to {peak} KiB");
    // The other one stood still all the time: most of its lines are still its own.
    assert!(is_held() && held.is_alive());
    let taken = daemon.count("events", "SELECT count(*) FROM events WHERE account_id = 'held'");
    assert!((i64::try_from(PENDING_MAX).unwrap()..=HELD_EVENTS_MAX).contains(&taken), "{taken} events of the held account");
    assert_eq!(daemon.terminal(), 1, "only the warm-up has come to an end");
    assert_eq!(daemon.nexus_ok(&["send", "still there"]).trim(), "still there");
}

/// Sends a message and sees its end at the client that reads.
fn converse(daemon: &Daemon, text: &str, reader: &mut Sse) {
    let answer = daemon.post("/control/send", &json!({ "text": text }));
    assert!(answer.body.trim_end().ends_with('}') && answer.body.contains("\"completed\""), "{} bytes", answer.body.len());
    assert_eq!(reader.wait().event, "nex.request.completed", "a client that reads is cut off too");
}

#[test]
fn clients_that_never_read_are_cut_off_and_the_memory_they_cost_is_bounded() {
    let mut wanted = config(json!({}));
    wanted["bus"] = json!({ "ring": 100 });
    let mut daemon = Daemon::start(&wanted);
    let text = "x".repeat(MESSAGE_BYTES);
    let mut reader = daemon.sse(&Ask::get("/api/events/stream?types=nex.request.completed"));
    for _ in 0..WARM_UP_MESSAGES {
        converse(&daemon, &text, &mut reader);
    }
    let before = memory_kib(daemon.pid(), "VmRSS");
    let deaf: Vec<Answer> = (0..DEAF_CLIENTS).map(|_| daemon.open_tcp(&Ask::get("/api/events/stream"))).collect();
    let mut peak = before;
    for _ in 0..MESSAGES {
        converse(&daemon, &text, &mut reader);
        peak = peak.max(memory_kib(daemon.pid(), "VmRSS"));
    }
    assert!(peak - before <= DEAF_GROWTH_KIB_MAX, "grew from {before} to {peak} KiB");
    for answer in deaf {
        let mut stream = Sse::new(answer, DEADLINE);
        let lagged = stream.wait_for("lagged").json();
        assert!(lagged["missed"].as_u64().is_some_and(|missed| missed > 0), "{lagged}");
        assert!(stream.is_over(), "it is told that it lags and served on");
    }
    eventually("only the reader is left", || daemon.metric("nexus_sse_clients ") == 1);
    converse(&daemon, "still served", &mut reader);
    drop(reader);
    daemon.stop();
    daemon.nothing_runs();
}
