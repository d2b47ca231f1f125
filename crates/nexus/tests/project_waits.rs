//! Events that find their project waiting for an approval or for its configuration: they fail, and once nothing is waited for
//! any more each is answered, once and in order, whoever dies in between. Relay, git server, daemon and processes are real;
//! what answers is the daemon's own process with the agent `echo`.
#![allow(clippy::unwrap_used)]

mod common;
mod gitserver;
mod relays;

use common::{eventually, find};
use gitserver::world::World;
use relays::Client;
use rusqlite::Connection;
use serde_json::{Value, json};
use std::fs;

const EXIT_USAGE: Option<i32> = Some(2);
const ENDS: &str = "SELECT event_id || status || reason || completed_at FROM nexus_requests WHERE status = 'failed' ORDER BY event_seq";
const ONCE_MORE: &str = "SELECT replay_of FROM events WHERE replay_of IS NOT NULL ORDER BY seq";
const WAITS: &str = "SELECT count(*) FROM project_waits";

/// A project whose repository lies on a host that nobody approved.
fn unapproved() -> (World, String) {
    let world = World::with(|projects| projects["git"]["allow_hosts"] = json!(["*"]));
    world.server.repository("good", |_| {});
    let project = world.project("demo", Some(&world.server.url("good")));
    (world, project)
}

/// A project whose turns are to be done by an agent that can't do them, where another could.
fn unconfigured() -> (World, String) {
    let world = World::with_all(|config| {
        let program = json!({ "runner": "acp", "command": "true" });
        config["agents"] = json!({ "default": "program", "program": program, "parrot": { "runner": "echo" } });
    });
    let project = world.project("demo", None);
    (world, project)
}

/// Has so many events of the project fail, and wait; their ids.
fn waiting(world: &World, project: &str, count: i64) -> Vec<String> {
    let is_live = || world.daemon.get("/control/nostr").json()["relays"][0]["state"] == "live";
    eventually("the relay is live", is_live);
    let events = (0..count).map(|n| world.tell(1, &[&["a", project]], &text(n))).collect();
    eventually("they have failed", || world.daemon.ended("failed") == count);
    assert_eq!(world.daemon.count("nexus", WAITS), count);
    events
}

fn text(n: impl std::fmt::Display) -> String {
    format!("question {n}")
}

/// What was said in answer to an event.
fn said(world: &World, to: &str) -> Vec<String> {
    let stored = Client::connect(world.relay.url()).stored(json!({ "kinds": [1], "#e": [to] }));
    stored.iter().map(|event| event["content"].as_str().unwrap().to_owned()).collect()
}

/// Once all events were answered: each was once, in their order, and what had failed is as it was.
fn answered(world: &World, events: &[String], ends: &[String]) {
    let count = i64::try_from(events.len()).unwrap();
    eventually("all are answered", || world.daemon.ended("completed") == count);
    let ids: Vec<String> = events.iter().map(|event| format!("nostr:{event}")).collect();
    assert_eq!(world.daemon.texts("events", ONCE_MORE), ids);
    let ended = "SELECT event_id FROM nexus_requests WHERE status = 'completed' ORDER BY completed_at, event_seq";
    let ended: Vec<String> = world.daemon.texts("nexus", ended).iter().map(|id| id.split('#').next().unwrap().to_owned()).collect();
    assert_eq!(ended, ids);
    for (n, event) in events.iter().enumerate() {
        find("its answer is published", || said(world, event).contains(&text(n)).then_some(()));
    }
    nothing_more(world, events, ends);
}

/// An event that comes now is the only other one that is answered, here or there.
fn nothing_more(world: &World, events: &[String], ends: &[String]) {
    let (before, replays) = (world.daemon.ended("completed"), world.daemon.texts("events", ONCE_MORE));
    let project = world.coordinate("demo");
    let next = format!("and after {before}?");
    let last = world.tell(1, &[&["a", &project]], &next);
    find("the next one is answered", || said(world, &last).contains(&next).then_some(()));
    eventually("it is over", || world.daemon.ended("completed") == before + 1);
    for (n, event) in events.iter().enumerate() {
        assert!(said(world, event).iter().filter(|said| **said == text(n)).count() <= 1, "{event} was answered twice");
    }
    assert_eq!(world.daemon.texts("nexus", ENDS), ends, "an end was rewritten");
    assert_eq!((world.daemon.count("nexus", WAITS), world.daemon.texts("events", ONCE_MORE)), (0, replays));
}

fn ends(world: &World) -> Vec<String> {
    world.daemon.texts("nexus", ENDS)
}

fn trace(world: &World, id: &str) -> Value {
    serde_json::from_str(&world.daemon.nexus_ok(&["trace", "show", id, "--json"])).unwrap()
}

/// Changes the ledger of work of a daemon that doesn't run.
fn change(world: &World, sql: &str) {
    let ledger = Connection::open(world.daemon.workspace().join("data/nexus.db")).unwrap();
    assert!(ledger.execute(sql, []).unwrap() > 0, "{sql}");
}

/// Changes the configuration file.
fn configure(world: &World, edit: impl FnOnce(&mut Value)) {
    let mut config: Value = serde_json::from_slice(&fs::read(world.daemon.config_file()).unwrap()).unwrap();
    edit(&mut config);
    world.daemon.configure(&config);
}

#[test]
fn what_waited_for_an_approval_is_answered_once_and_in_order() {
    let (world, project) = unapproved();
    let events = waiting(&world, &project, 3);
    let ends = ends(&world);
    find("who asked is told", || said(&world, &events[0]).pop().filter(|said| said.contains("waits for an approval")));
    let approval = world.approvals().remove(0);
    assert_eq!((&approval["kind"], &approval["waiting"]), (&json!("host"), &json!(3)));
    assert_eq!(world.show("demo")["waiting"], json!({ "events": 3, "left": 0 }));
    assert!(world.daemon.nexus_ok(&["project", "show", "demo"]).contains("3 event(s) wait"));
    assert!(world.daemon.nexus_ok(&["project", "approvals"]).contains("3 waiting"));
    let first = format!("nostr:{}", events[0]);
    let told = trace(&world, &first)["waits"].clone();
    assert_eq!((&told["for"], &told["approval"], &told["project"]), (&json!("project_approval"), &approval["id"], &json!(project)));
    assert!(world.daemon.nexus_ok(&["trace", "show", &first]).contains("Waits for: approval"));

    world.approve(&approval);
    answered(&world, &events, &ends);
    let told = trace(&world, &first);
    assert_eq!((&told["waits"], told["replays"].as_array().map(Vec::len)), (&Value::Null, Some(1)));
    assert!(world.daemon.nexus_ok(&["trace", "show", &first]).contains("Replayed as: req_"));
    assert_eq!(world.show("demo")["waiting"]["events"], 0);
    world.approve(&approval);
    nothing_more(&world, &events, &ends);
}

#[test]
fn a_daemon_that_dies_before_and_after_the_decision_loses_and_repeats_nothing() {
    let (mut world, project) = unapproved();
    let events = waiting(&world, &project, 2);
    let ends = ends(&world);
    world.daemon.kill9();
    world.daemon.launch();
    let approval = world.approvals().remove(0);
    assert_eq!(approval["waiting"], 2);
    world.approve(&approval);
    world.daemon.kill9();
    world.daemon.launch();
    answered(&world, &events, &ends);
}

#[test]
fn what_a_daemon_did_not_come_to_after_its_last_commit_the_next_one_does() {
    let (mut world, project) = unapproved();
    let events = waiting(&world, &project, 2);
    let ends = ends(&world);
    let seq = world.daemon.count("nexus", "SELECT min(event_seq) FROM project_waits");
    let approval = world.approvals()[0]["id"].clone();
    world.daemon.stop();
    // The moment between the decision's commit and all that follows from it.
    change(&world, "UPDATE approvals SET status = 'approved', decided_at = 1");
    world.daemon.launch();
    answered(&world, &events, &ends);
    world.daemon.stop();
    // The moment between the commit of the new event and that of what it was made from.
    let columns = "event_seq, project, approval, at";
    change(&world, &format!("INSERT INTO project_waits ({columns}) VALUES ({seq}, '{project}', {approval}, {})", i64::MAX / 2));
    world.daemon.launch();
    eventually("it is seen to be done", || world.daemon.count("nexus", WAITS) == 0);
    nothing_more(&world, &events, &ends);
}

#[test]
fn what_waited_for_an_approval_that_was_denied_stays_failed() {
    let (world, project) = unapproved();
    let events = waiting(&world, &project, 2);
    let ends = ends(&world);
    let id = world.approvals()[0]["id"].to_string();
    world.daemon.nexus_ok(&["project", "approve", &id, "--deny"]);
    eventually("nothing waits any more", || world.daemon.count("nexus", WAITS) == 0);
    // Who changes their mind decides about what comes then.
    world.daemon.nexus_ok(&["project", "approve", &id]);
    nothing_more(&world, &events, &ends);
    assert_eq!((world.daemon.ended("completed"), world.daemon.texts("events", ONCE_MORE)), (1, Vec::new()));
}

#[test]
fn a_host_that_the_configuration_names_by_now_needs_no_approval() {
    let (world, project) = unapproved();
    let events = waiting(&world, &project, 2);
    let ends = ends(&world);
    configure(&world, |config| config["projects"]["git"]["allow_hosts"] = json!(["127.0.0.1"]));
    world.daemon.nexus_ok(&["daemon", "reload"]);
    answered(&world, &events, &ends);
}

#[test]
fn what_was_retried_by_hand_is_not_done_again() {
    let (world, project) = unapproved();
    let events = waiting(&world, &project, 1);
    let first = format!("nostr:{}", events[0]);
    // It asks twice under one key, the second time to be told the end.
    let ran = world.daemon.nexus(&["trace", "retry", &first, "--wait"]);
    assert!(ran.code == Some(1) && ran.stdout.contains("awaits approval"), "{ran:?}");
    assert_eq!(world.daemon.ended("failed"), 2);
    assert_eq!(world.daemon.count("nexus", WAITS), 1, "the newest attempt alone waits");
    let ends = ends(&world);
    world.approve(&world.approvals()[0]);
    eventually("it is answered", || world.daemon.ended("completed") == 1);
    assert_eq!(world.daemon.texts("events", ONCE_MORE), [first.clone(), first]);
    find("its answer is published", || said(&world, &events[0]).contains(&text(0)).then_some(()));
    nothing_more(&world, &events, &ends);
}

#[test]
fn what_waited_for_the_configuration_is_answered_after_the_setup() {
    let (world, project) = unconfigured();
    // An agent that can't do turns of projects is told of at once, and can't be chosen.
    eventually("it is logged", || world.daemon.stdout().contains("which does no turns of projects"));
    let events = waiting(&world, &project, 2);
    let ends = ends(&world);
    assert!(ends.iter().all(|end| end.contains("it needs configuration: agents.program has `runner: acp`")), "{ends:?}");
    find("who asked is told", || said(&world, &events[0]).pop().filter(|said| said.contains("waits until the project is configured")));
    assert_eq!(world.show("demo")["waiting"], json!({ "events": 2, "left": 0 }));
    assert_eq!(trace(&world, &format!("nostr:{}", events[0]))["waits"]["for"], "project_configuration");
    let ran = world.daemon.nexus(&["project", "setup", "demo", "--agent", "program"]);
    assert!(ran.code == EXIT_USAGE && ran.stderr.contains("does no turns of projects"), "{ran:?}");
    world.daemon.nexus_ok(&["project", "setup", "demo", "--agent", "parrot"]);
    answered(&world, &events, &ends);
}

#[test]
fn what_waited_for_the_configuration_is_answered_after_a_reload() {
    let (world, project) = unconfigured();
    let events = waiting(&world, &project, 2);
    let ends = ends(&world);
    configure(&world, |config| config["agents"]["default"] = json!("parrot"));
    world.daemon.nexus_ok(&["daemon", "reload"]);
    answered(&world, &events, &ends);
}

#[test]
fn a_configuration_that_was_mended_while_nothing_ran_counts_at_the_start() {
    let (mut world, project) = unconfigured();
    let events = waiting(&world, &project, 2);
    let ends = ends(&world);
    world.daemon.kill9();
    configure(&world, |config| config["agents"]["default"] = json!("parrot"));
    world.daemon.launch();
    answered(&world, &events, &ends);
}
