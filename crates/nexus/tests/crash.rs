//! `kill -9`, again and again: nothing accepted is lost, nothing is done twice in silence, and no
//! child outlives its daemon.
#![allow(clippy::unwrap_used)]

mod common;

use common::{Daemon, Signal, eventually, find, find_within, json_lines, lines, only, procfs, send_signal};
use serde_json::{Value, json};
use std::collections::{HashMap, HashSet};
use std::time::Duration;

const EVENTS: i64 = 500;
const KILLS: i64 = 10;
/// Fast enough to be under way all the time, slow enough not to be over before the last kill.
const EVENTS_PER_S: u64 = 200;
/// More requests than this must have ended before the next kill that waits for progress.
const PROGRESS: i64 = 40;
/// For all 500 replies, each a process of its own, on a slow machine.
const LAST_REPLY_DEADLINE: Duration = Duration::from_secs(120);

/// Waits until the daemon that was just started holds the lock; the one before and all of its
/// children must be gone by then.
fn wait_locked(daemon: &mut Daemon, former: &[procfs::Process]) {
    let pid = daemon.pid();
    eventually("the new daemon has the lock", || {
        assert!(daemon.is_running(), "the daemon did not start again: {}", daemon.stderr());
        daemon.pid_file() == Some(pid)
    });
    let left: Vec<_> = former.iter().filter(|child| child.is_alive()).collect();
    assert!(left.is_empty(), "children of a dead daemon live: {left:?}");
    let stray = |daemon: &Daemon| daemon.children().into_iter().any(|child| !procfs::descends(child.pid, daemon.pid()));
    eventually("no child has another parent", || !stray(daemon));
}

#[test]
fn ten_kills_lose_nothing_and_repeat_nothing_in_silence() {
    let mut daemon = Daemon::new();
    let (sends, state) = (daemon.file("sends"), daemon.file("acknowledged"));
    let mut wanted = only(
        "fake",
        json!({
            "supports": ["monitor", "send", "ack"], "events": EVENTS, "rate_per_s": EVENTS_PER_S, "peers": 8,
            "state_file": state, "send_log": sends,
        }),
    );
    wanted["adapters"]["fake"]["send"] = json!({ "on_uncertain": "retry", "retries": 20 });
    daemon.configure(&wanted);
    daemon.launch();
    let mut on_their_way = HashSet::new();
    for kill in 0..KILLS {
        // Every other time at once: in the middle of the recovery from the kill before.
        if kill % 2 == 0 {
            eventually("some requests end", || daemon.terminal() > kill * PROGRESS);
        }
        let children = daemon.children();
        daemon.kill9();
        on_their_way.extend(daemon.texts("nexus", "SELECT idempotency_key FROM deliveries WHERE status = 'sending'"));
        daemon.spawn();
        wait_locked(&mut daemon, &children);
    }
    daemon.wait_ready();
    let done = || (daemon.terminal() == EVENTS && daemon.deliveries("sent") == EVENTS).then_some(());
    find_within(LAST_REPLY_DEADLINE, "all requests end and all replies are sent", done);
    check_facts(&daemon);
    check_sends(&daemon, &json_lines(&sends), &on_their_way);
    eventually("the last event is acknowledged", || lines(&state) == [EVENTS.to_string()]);
    daemon.stop();
}

fn check_facts(daemon: &Daemon) {
    assert_eq!(daemon.accepted(), EVENTS);
    let ids = "SELECT count(DISTINCT event_id) FROM events WHERE direction = 'inbound'";
    assert_eq!(daemon.count("events", ids), EVENTS);
    assert_eq!(daemon.count("nexus", "SELECT count(*) FROM nexus_requests"), EVENTS);
    assert_eq!(daemon.ended("completed"), EVENTS);
    let unfinished = "SELECT count(*) FROM nexus_requests WHERE completed_at IS NULL";
    assert_eq!(daemon.count("nexus", unfinished), 0);
    let odd = "SELECT count(*) FROM (SELECT q.event_seq FROM nexus_requests q LEFT JOIN runs r
               ON r.event_seq = q.event_seq AND r.status = 'finished' GROUP BY q.event_seq HAVING count(r.run_id) != 1)";
    assert_eq!(daemon.count("nexus", odd), 0, "requests without exactly one finished run");
    assert_eq!(daemon.count("nexus", "SELECT count(*) FROM deliveries"), EVENTS);
    assert_eq!(daemon.count("nexus", "SELECT count(DISTINCT event_seq) FROM deliveries"), EVENTS);
    let turns = "SELECT count(*) FROM turns";
    eventually("each finished run is a turn, once", || daemon.count("agents", turns) == EVENTS);
}

/// Each delivery left at least once; more often only if a kill caught it on its way.
fn check_sends(daemon: &Daemon, calls: &[Value], on_their_way: &HashSet<String>) {
    let mut times: HashMap<&str, u32> = HashMap::new();
    for call in calls {
        *times.entry(call["idempotency_key"].as_str().unwrap()).or_default() += 1;
    }
    for key in daemon.texts("nexus", "SELECT idempotency_key FROM deliveries") {
        let sent = times.remove(key.as_str()).unwrap_or(0);
        assert!(sent >= 1, "{key} is `sent` and never left");
        assert!(sent == 1 || on_their_way.contains(&key), "{key} was sent {sent} times without having been uncertain");
    }
    assert!(times.is_empty(), "sent without a delivery: {times:?}");
}

#[test]
fn a_killed_keeper_takes_its_children_along_and_they_come_back_once() {
    let mut daemon = Daemon::new();
    let starts = daemon.file("starts");
    daemon.configure(&only("fake", json!({ "events": 3, "start_log": starts })));
    daemon.launch();
    eventually("its events are done", || daemon.ended("completed") == 3);
    let (keeper, monitor) = (daemon.keeper(), daemon.only_monitor());
    send_signal(keeper.pid, Signal::KILL);
    eventually("the children die with it", || !monitor.is_alive());
    eventually("one comes back", || daemon.monitors().len() == 1);
    assert_ne!(daemon.keeper().pid, keeper.pid);
    daemon.adapter_once("fake/me", "running");
    // It runs from its exec on, and writes down that it started a moment later.
    eventually("it is started again", || lines(&starts).len() > 1);
    assert_eq!(lines(&starts).len(), 2, "started more than once");
    assert_eq!(daemon.monitors().len(), 1);
    assert!(daemon.is_running(), "the daemon died with its keeper");
    assert_eq!(daemon.get("/readyz").status, 200);
    assert_eq!(daemon.accepted(), 3);
    let new_monitor = daemon.only_monitor();
    daemon.kill9();
    eventually("the new keeper guards as well", || !new_monitor.is_alive());
}

/// The process whose PID stands in `path`.
fn process_in(path: &str) -> procfs::Process {
    find("the grandchild", || procfs::Process::of(lines(path).first()?.trim().parse().ok()?))
}

#[test]
fn a_killed_keeper_leaves_nobody_behind_in_a_session_of_its_own() {
    let mut daemon = Daemon::new();
    let file = daemon.file("grandchild");
    daemon.configure(&only("fake", json!({ "events": 1, "setsid_grandchild": true, "grandchild_file": file })));
    daemon.launch();
    eventually("its event is done", || daemon.ended("completed") == 1);
    let (keeper, grandchild) = (daemon.keeper(), process_in(&file));
    assert!(grandchild.is_alive());
    assert_eq!(procfs::parent_of(grandchild.pid), Some(keeper.pid), "it is not the keeper's orphan");
    send_signal(keeper.pid, Signal::KILL);
    let second = find("another grandchild", || Some(process_in(&file)).filter(|second| second.pid != grandchild.pid));
    assert!(!grandchild.is_alive(), "another keeper works while the dead one's leftovers live");
    assert!(!procfs::exists(grandchild.pid), "its zombie was not reaped");
    let own: Vec<i32> = procfs::children_of(daemon.pid()).into_iter().map(|child| child.pid).collect();
    assert_eq!(own, [daemon.keeper().pid], "the daemon has other children than its keeper");
    assert_ne!(own, [keeper.pid]);
    assert!(daemon.is_running(), "the daemon died with its keeper");
    daemon.kill9();
    eventually("the new keeper guards as well", || !second.is_alive());
}

#[test]
fn without_acknowledgements_a_gap_is_closed_by_backfill() {
    let mut daemon = Daemon::new();
    let (state, log) = (daemon.file("written"), daemon.file("backfills"));
    let behaviour = json!({
        "supports": ["monitor", "backfill"], "events": 3, "state_file": state, "backfill_events": 6, "backfill_log": log,
    });
    daemon.configure(&only("fake", behaviour));
    daemon.launch();
    eventually("the live events are done", || daemon.ended("completed") >= 3);
    assert!(lines(&log).is_empty(), "an account that is new has missed nothing");
    daemon.kill9();
    daemon.launch();
    eventually("what was missed is fetched and done", || daemon.ended("completed") == 6);
    assert_eq!(daemon.accepted(), 6);
    let calls = json_lines(&log);
    assert_eq!(calls.len(), 1, "not one backfill after an unclean end");
    let since = calls.last().unwrap()["since"].as_str().unwrap_or_default().to_owned();
    assert!(since.starts_with("20") && since.contains('T'), "`{since}` is not an ISO time");
    daemon.stop();
}
