//! Projects that somebody should look at, and until when: quarantines that a change of the configuration ends, what is told of
//! projects after a restart, and how many that nobody defined are told. Relay, daemon and processes are real.
#![allow(clippy::unwrap_used)]

mod common;
mod gitserver;
mod relays;

use common::eventually;
use gitserver::world::{World, ask, once, state};
use serde_json::{Value, json};
use std::fs;

/// A program that says at once that its configuration is of no use.
const BROKEN: &str = "sh -c 'exit 78'";
/// Projects that are kept in sight though nobody defined them, and some more.
const UNMADE: usize = 64;
const GHOSTS: usize = 80;

fn answered(world: &World, project: &str) {
    assert_eq!(gitserver::world::answered(world, &ask(world, project, "anew"))["content"], "anew");
}

/// Writes another configuration; nobody is told.
fn configure(world: &World, change: impl FnOnce(&mut Value)) {
    let mut known: Value = serde_json::from_str(&fs::read_to_string(world.daemon.config_file()).unwrap()).unwrap();
    change(&mut known);
    world.daemon.configure(&known);
}

/// A project whose program is of no use, and that is quarantined for that.
fn quarantined() -> (World, String) {
    let world = World::with(|projects| projects["command"] = json!(BROKEN));
    let project = world.project("demo", None);
    world.tell(1, &[&["a", &project]], "hello");
    once(&world, &project, "quarantined");
    eventually("the event has its end", || world.daemon.ended("failed") == 1);
    (world, project)
}

fn mend(config: &mut Value) {
    config["projects"].as_object_mut().unwrap().remove("command");
}

/// The configuration is mended and read anew; the project works again.
fn a_reload_mends(world: &World, project: &str) {
    assert_eq!(state(world, project)["state"], "quarantined");
    configure(world, mend);
    world.daemon.nexus_ok(&["daemon", "reload"]);
    once(world, project, "ready");
    answered(world, project);
}

fn unwell(world: &World) -> Vec<Value> {
    world.daemon.get("/health").json()["projects"]["unwell"].as_array().unwrap().clone()
}

#[test]
fn a_reload_that_changes_how_it_is_run_ends_a_quarantine_and_another_does_not() {
    let (world, project) = quarantined();
    configure(&world, |config| config["projects"]["max_running"] = json!(7));
    world.daemon.nexus_ok(&["daemon", "reload"]);
    a_reload_mends(&world, &project);
}

#[test]
fn a_quarantine_of_an_earlier_daemon_ends_by_a_reload() {
    let (mut world, project) = quarantined();
    world.daemon.stop();
    world.daemon.launch();
    a_reload_mends(&world, &project);
}

#[test]
fn a_quarantine_of_an_earlier_daemon_ends_by_a_start_with_another_configuration() {
    let (mut world, project) = quarantined();
    world.daemon.stop();
    configure(&world, mend);
    world.daemon.launch();
    assert_eq!(state(&world, &project)["state"], "ready");
    assert_eq!(world.daemon.count("nexus", "SELECT count(*) FROM projects WHERE quarantined IS NOT NULL"), 0);
    answered(&world, &project);
}

#[test]
fn what_is_quarantined_is_told_after_a_restart_too() {
    let (mut world, project) = quarantined();
    world.daemon.stop();
    world.daemon.launch();
    let health = world.daemon.get("/health").json();
    assert_eq!((&health["status"], &health["projects"]["states"]["quarantined"]), (&json!("degraded"), &json!(1)), "{health}");
    assert!(unwell(&world)[0].as_str().unwrap().contains("is quarantined"), "{health}");
    let told = world.daemon.status()["projects"][0].clone();
    assert_eq!((&told["id"], &told["state"]), (&json!(project), &json!("quarantined")));
    let metric = format!("nexus_project_queue{{project=\"{}\"}}", told["slug"].as_str().unwrap());
    assert!(world.daemon.get("/metrics").body.lines().any(|line| line.starts_with(&metric)), "{metric}");
    world.daemon.nexus_ok(&["project", "release", "demo"]);
    assert!(unwell(&world).is_empty());
}

#[test]
fn what_lacks_configuration_is_told_after_a_restart_until_it_has_it() {
    let mut world = World::with_all(|config| {
        let model = json!({ "runner": "llm", "provider": "anthropic", "model": "m", "key_env": "NOBODY_SETS_THIS" });
        config["agents"] = json!({ "default": "model", "model": model });
    });
    let project = world.project("demo", None);
    world.prepared(&project);
    assert_eq!(state(&world, &project)["state"], "needs_configuration");
    world.daemon.stop();
    world.daemon.launch();
    assert!(unwell(&world)[0].as_str().unwrap().contains("needs configuration"));
    let told = world.daemon.status()["projects"][0].clone();
    assert!(told["state"] == "needs_configuration" && told["reason"].is_string(), "{told}");
    configure(&world, |config| config["agents"] = json!({ "default": "echo" }));
    world.daemon.nexus_ok(&["daemon", "reload"]);
    eventually("nothing is lacking", || unwell(&world).is_empty());
    answered(&world, &project);
}

#[test]
fn projects_that_nobody_defined_make_room_for_one_another() {
    let world = World::new();
    let ghosts: Vec<String> = (0..GHOSTS).map(|n| world.coordinate(&format!("ghost{n}"))).collect();
    let (first, last) = ghosts.split_at(GHOSTS / 2);
    for (half, ended) in [(first, first.len()), (last, GHOSTS)] {
        half.iter().for_each(|ghost| drop(world.tell(1, &[&["a", ghost]], "is anybody there?")));
        eventually("their events have their ends", || world.daemon.terminal() == i64::try_from(ended).unwrap());
    }
    let listed = || world.daemon.get("/control/projects").json()["projects"].as_array().unwrap().clone();
    eventually("those named first are let go", || listed().len() == UNMADE);
    let all = listed();
    assert!(last.iter().all(|ghost| all.iter().any(|one| one["id"] == *ghost)), "those that were used last are kept");
    let project = world.project("ghost0", None);
    answered(&world, &project);
}
