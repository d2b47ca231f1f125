//! Events that find their project waiting for an approval, for its configuration, or for what it is made from: they fail, and
//! once nothing is waited for any more each is answered, once and in order, whoever dies in between. Relay, git server, daemon
//! and processes are real; what answers is the daemon's own process with the agent `echo`.
#![allow(clippy::unwrap_used)]

mod common;
mod gitserver;
mod relays;

use common::{eventually, find};
use gitserver::world::{World, is_live};
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
    eventually("the relay is live", || is_live(world));
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

/// How many events wait for this, in the ledger's word.
fn awaiting(world: &World, word: &str) -> i64 {
    world.daemon.count("nexus", &format!("SELECT count(*) FROM project_waits WHERE awaits = '{word}'"))
}

/// None of these was run again, and who asked was told once why not.
fn told_once(world: &World, events: &[String], why: &str) {
    for event in events {
        find("who asked is told", || said(world, event).pop().filter(|said| said.contains(why)));
        assert_eq!(said(world, event).len(), 1, "{event}");
    }
    assert_eq!(world.daemon.texts("events", ONCE_MORE), Vec::<String>::new());
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
    let columns = "event_seq, project, awaits, approval, at";
    change(&world, &format!("INSERT INTO project_waits ({columns}) VALUES ({seq}, '{project}', 'approval', {approval}, {})", i64::MAX / 2));
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

#[test]
fn what_waited_for_a_day_waits_no_more_though_nobody_decided() {
    let (mut world, project) = unapproved();
    let events = waiting(&world, &project, 2);
    let ends = ends(&world);
    world.daemon.stop();
    change(&world, "UPDATE project_waits SET at = 1");
    world.daemon.launch();
    eventually("nothing waits any more", || world.daemon.count("nexus", WAITS) == 0);
    let approval = world.approvals().remove(0);
    assert_eq!((&approval["status"], &approval["waiting"]), (&json!("pending"), &json!(0)));
    eventually("it is told", || world.daemon.stdout().contains("events have waited too long"));
    world.approve(&approval);
    nothing_more(&world, &events, &ends);
}

#[test]
fn a_repository_that_is_away_for_a_while_costs_no_event() {
    let world = World::new();
    let project = world.project("demo", Some(&world.server.url("good")));
    let events = waiting(&world, &project, 2);
    let ends = ends(&world);
    assert!(ends.iter().all(|end| end.contains("git failed to clone")), "{ends:?}");
    let first = format!("nostr:{}", events[0]);
    assert_eq!(trace(&world, &first)["waits"]["for"], "project_source");
    assert!(world.daemon.nexus_ok(&["trace", "show", &first]).contains("Waits for: its project's definition or repository"));
    let before = world.server.clones("good");
    eventually("it is tried again", || world.server.clones("good") > before);
    told_once(&world, &events, "waits until the project can be prepared");
    world.server.repository("good", |_| {});
    answered(&world, &events, &ends);
}

#[test]
fn a_definition_that_arrives_after_its_events_has_them_answered() {
    let mut world = World::new();
    let events = waiting(&world, &world.coordinate("demo"), 2);
    let ends = ends(&world);
    assert!(ends.iter().all(|end| end.contains("no relay has it")), "{ends:?}");
    assert_eq!(awaiting(&world, "source"), 2);
    // The next daemon knows of the project by its events alone.
    world.daemon.kill9();
    world.daemon.launch();
    world.project("demo", None);
    answered(&world, &events, &ends);
}

#[test]
fn an_approval_counts_once_the_project_was_prepared() {
    let world = World::with(|projects| projects["git"]["allow_hosts"] = json!(["*"]));
    let project = world.project("demo", Some(&world.server.url("good")));
    let events = waiting(&world, &project, 2);
    let ends = ends(&world);
    let id = world.approvals()[0]["id"].to_string();
    let ran = world.daemon.nexus(&["project", "approve", &id]);
    assert!(ran.code == Some(0) && ran.stderr.contains("`nexus project show demo-"), "{ran:?}");
    eventually("they wait for the repository", || awaiting(&world, "source") == 2);
    eventually("it is tried again", || world.server.clones("good") > 1);
    told_once(&world, &events, "waits for an approval");
    world.server.repository("good", |_| {});
    answered(&world, &events, &ends);
}

#[test]
fn what_waits_for_one_thing_after_another_is_told_of_the_first() {
    let world = World::with_all(|config| {
        config["projects"]["git"]["allow_hosts"] = json!(["*"]);
        let program = json!({ "runner": "acp", "command": "true" });
        config["agents"] = json!({ "default": "program", "program": program, "parrot": { "runner": "echo" } });
    });
    world.server.repository("good", |_| {});
    let project = world.project("demo", Some(&world.server.url("good")));
    let events = waiting(&world, &project, 2);
    let ends = ends(&world);
    world.approve(&world.approvals()[0]);
    eventually("they wait for the configuration", || awaiting(&world, "configuration") == 2);
    told_once(&world, &events, "waits for an approval");
    world.daemon.nexus_ok(&["project", "setup", "demo", "--agent", "parrot"]);
    answered(&world, &events, &ends);
}

#[test]
fn what_waited_for_a_host_waits_for_the_one_that_a_newer_definition_names() {
    let world = World::with(|projects| projects["git"]["allow_hosts"] = json!(["*"]));
    world.server.repository("good", |_| {});
    let url = world.server.url("good");
    let project = world.project("demo", Some(&url.replace("127.0.0.1", "127.0.0.2")));
    let events = waiting(&world, &project, 2);
    let ends = ends(&world);
    let first = world.approvals().remove(0);
    assert_eq!(first["subject"], "127.0.0.2");
    let agent = world.tell(4199, &[&["title", "Another"]], "Be brief.");
    let tags: &[&[&str]] = &[&["d", "demo"], &["title", "demo"], &["agent", &agent], &["repo", &url]];
    world.publish(&world.owner.sign_at(relays::now_s() + 1, 31_933, tags, ""));
    let next = find("the other host is asked for", || world.approvals().pop().filter(|one| one["id"] != first["id"]));
    eventually("they wait for that", || world.approvals()[0]["waiting"] == 2);
    told_once(&world, &events, "waits for an approval");
    world.approve(&next);
    answered(&world, &events, &ends);
}

#[test]
fn what_a_project_lacks_is_seen_also_where_its_agents_cannot_be_fetched() {
    let world = World::with_all(|config| {
        let program = json!({ "runner": "acp", "command": "true" });
        config["agents"] = json!({ "default": "parrot", "program": program, "parrot": { "runner": "echo" } });
    });
    let agent = world.tell(4199, &[&["title", "Project Manager"]], "Be brief.");
    let nowhere = "b".repeat(64);
    world.tell(31_933, &[&["d", "demo"], &["title", "demo"], &["agent", &agent], &["agent", &nowhere]], "");
    let event = world.tell(1, &[&["a", &world.coordinate("demo")]], &text(0));
    eventually("it is answered", || world.daemon.ended("completed") == 1);
    let shown = "SELECT status FROM projects";
    assert_eq!(world.daemon.texts("nexus", shown), ["ready"]);
    // Nobody can be asked for the other agent, and the one that does the turns can't any more.
    let World { mut daemon, relay, .. } = world;
    daemon.stop();
    relay.kill9();
    let mut config: Value = serde_json::from_slice(&fs::read(daemon.config_file()).unwrap()).unwrap();
    config["agents"]["default"] = json!("program");
    daemon.configure(&config);
    daemon.launch();
    daemon.nexus_ok(&["events", "replay", &format!("nostr:{event}")]);
    eventually("it waits", || daemon.count("nexus", WAITS) == 1);
    assert_eq!(daemon.texts("nexus", shown), ["needs_configuration"]);
    config["agents"]["default"] = json!("parrot");
    daemon.configure(&config);
    daemon.nexus_ok(&["daemon", "reload"]);
    eventually("it is answered again", || daemon.ended("completed") == 2);
    assert_eq!((daemon.ended("failed"), daemon.texts("events", ONCE_MORE).len()), (1, 2));
}
