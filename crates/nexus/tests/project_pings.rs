//! A process of a project that answers its pings, and a daemon that can't read them for a while: what waits is the daemon's own
//! work. Relay, daemon and processes are real.
#![allow(clippy::unwrap_used)]

mod common;
mod gitserver;
mod relays;

use common::{DEADLINE, eventually, json_lines, lines};
use gitserver::world::World;
use relays::Key;
use rusqlite::Connection;
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};

/// More pings than a process may leave unanswered.
const PINGS: usize = 6;

fn fake_project(place: &Path) -> String {
    let path = PathBuf::from(common::NEXUS).with_file_name("examples").join("fake-project");
    assert!(path.exists(), "{} is missing: cargo build --example fake-project", path.display());
    format!("{} {}", shell_words::quote(&path.to_string_lossy()), shell_words::quote(&place.to_string_lossy()))
}

fn frames(place: &Path, kind: &str) -> usize {
    json_lines(place.join("log")).iter().filter(|frame| frame["type"] == kind).count()
}

#[test]
fn who_answers_its_pings_is_not_ended_because_the_daemon_waits_for_its_own_ledger() {
    let places = ["busy", "clock"].map(|_| tempfile::tempdir().unwrap());
    let [busy, clock] = [places[0].path(), places[1].path()];
    let other = format!("31933:{}:clock", Key::new(1).public());
    let mut world = World::with(|projects| {
        projects["command"] = json!(fake_project(busy));
        projects["ping_ms"] = json!(1_000);
        projects["overrides"] = json!({ other.clone(): { "command": fake_project(clock) } });
    });
    fs::write(busy.join("mode"), "unasked").unwrap();
    assert_eq!(world.project("clock", None), other);
    let project = world.project("busy", None);
    world.tell(1, &[&["a", &other]], "hello");
    eventually("the other one is answered", || world.daemon.ended("completed") == 1);
    world.tell(1, &[&["a", &project]], "hello");
    let doing = || {
        let all = world.daemon.get("/control/projects").json();
        all["projects"].as_array().unwrap().iter().find(|one| one["id"] == project).map_or(Value::Null, |one| one["doing"].clone())
    };
    eventually("it is at work", || frames(busy, "event") == 1 && doing() == "at work");
    let ledger = Connection::open(world.daemon.workspace().join("data/nexus.db")).unwrap();
    ledger.busy_timeout(DEADLINE).unwrap();
    ledger.execute_batch("BEGIN IMMEDIATE").unwrap();
    fs::write(busy.join("go"), "").unwrap();
    let before = frames(clock, "ping");
    eventually("the other one was asked often enough", || frames(clock, "ping") >= before + PINGS);
    ledger.execute_batch("COMMIT").unwrap();
    eventually("both have their ends", || world.daemon.ended("completed") == 2);
    assert_eq!((lines(busy.join("starts")).len(), world.daemon.metric("nexus_project_crashes_total")), (1, 0));
    assert!(world.daemon.is_running());
}
