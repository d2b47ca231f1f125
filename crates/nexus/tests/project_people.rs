//! What people do with projects by hand, and what they are told: a stop in the middle of a turn, projects that nobody defined,
//! definitions of which a part is wrong, a place that is taken, flags of a start. Relay, daemon and processes are real.
#![allow(clippy::unwrap_used)]

mod common;
mod gitserver;
mod relays;
mod scripted;

use common::{Daemon, eventually, find, lines};
use gitserver::world::{World, answers, ask, is_live, state};
use relays::{Key, id};
use scripted::Scripted;
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;
use tempfile::TempDir;

/// Whose turns write a line into `begun`, and end once the file `go` is there.
struct Slow {
    world: World,
    project: String,
    place: TempDir,
}

impl Slow {
    fn new() -> Self {
        let place = tempfile::tempdir().unwrap();
        let at = place.path().display();
        let command = format!("sh -c 'cat > /dev/null; echo x >> {at}/begun; until [ -e {at}/go ]; do sleep 0.05; done; echo done'");
        let world = World::with_all(|config| {
            config["agents"] = json!({ "default": "slow", "slow": { "runner": "command", "command": command } });
        });
        let project = world.project("demo", None);
        Self { world, project, place }
    }

    fn begun(&self) -> usize {
        lines(self.place.path().join("begun")).len()
    }

    /// At work on one event, with another one behind it, and then stopped; the second event.
    fn stopped(&self) -> String {
        let first = ask(&self.world, &self.project, "first");
        eventually("it is at work", || self.begun() == 1);
        let second = ask(&self.world, &self.project, "second");
        eventually("the second waits", || state(&self.world, &self.project)["queue"] == 2);
        let said = self.world.daemon.nexus_ok(&["project", "stop", "demo"]);
        assert!(said.contains(": stopped, the turn under way was ended, 1 event(s) wait"), "{said}");
        let reasons = self.world.daemon.texts("nexus", "SELECT reason FROM nexus_requests WHERE status = 'completed'");
        assert_eq!(reasons, ["stopped: by `nexus project stop`"]);
        // It takes longer than a project that comes up again by itself.
        self.world.prepared(&self.world.project("other", None));
        assert_eq!((self.begun(), state(&self.world, &self.project)["pid"].is_null()), (1, true), "it stays down");
        fs::write(self.place.path().join("go"), "").unwrap();
        assert!(answers(&self.world, &first).is_empty(), "what was stopped says nothing any more");
        second
    }
}

#[test]
fn a_stop_ends_the_turn_and_what_waits_goes_on_with_the_next_event() {
    let slow = Slow::new();
    let second = slow.stopped();
    let third = ask(&slow.world, &slow.project, "third");
    for event in [&second, &third] {
        eventually("it is answered", || answers(&slow.world, event).len() == 1);
    }
    eventually("all are over", || slow.world.daemon.ended("completed") == 3);
    assert_eq!(slow.begun(), 3, "each had one turn");
}

#[test]
fn a_stop_ends_the_turn_and_what_waits_goes_on_with_a_start() {
    let slow = Slow::new();
    let second = slow.stopped();
    slow.world.daemon.nexus_ok(&["project", "start", "demo"]);
    eventually("it is answered", || answers(&slow.world, &second).len() == 1);
    eventually("all are over", || slow.world.daemon.ended("completed") == 2);
    assert_eq!(slow.begun(), 2);
}

#[test]
fn what_waited_for_a_stopped_project_goes_on_after_a_restart() {
    let mut slow = Slow::new();
    let second = slow.stopped();
    slow.world.daemon.kill9();
    slow.world.daemon.launch();
    eventually("it is answered", || answers(&slow.world, &second).len() == 1);
    assert_eq!(slow.begun(), 2, "the first one was over");
}

#[test]
fn how_long_an_event_waited_for_its_project_counts_from_its_receipt() {
    let slow = Slow::new();
    ask(&slow.world, &slow.project, "first");
    eventually("it is at work", || slow.begun() == 1);
    ask(&slow.world, &slow.project, "second");
    eventually("the second is taken in", || slow.world.daemon.accepted() == 2);
    let since = Instant::now();
    // Something that takes its time.
    slow.world.prepared(&slow.world.project("other", None));
    let waited_ms = since.elapsed().as_secs_f64() * 1000.0;
    fs::write(slow.place.path().join("go"), "").unwrap();
    eventually("both are over", || slow.world.daemon.ended("completed") == 2);
    let told_ms = state(&slow.world, &slow.project)["receive_to_ready_ms"].as_f64().unwrap();
    assert!(told_ms >= waited_ms - 1.0, "{told_ms} of at least {waited_ms}");
}

#[test]
fn a_project_that_nobody_defined_is_told_by_every_verb() {
    let world = World::new();
    let project = world.coordinate("ghost");
    ask(&world, &project, "hello");
    // Between two tries it is being prepared.
    let is_told = |one: &Value| one["reason"].is_string() && one["state"] == "discovered";
    let listed = find("why is told", || Some(state(&world, &project)).filter(is_told));
    assert_eq!(listed["reason"], "no relay has its definition");
    for name in ["ghost", listed["slug"].as_str().unwrap(), &project] {
        let shown = world.show(name);
        assert_eq!((&shown["project"]["coordinate"], &shown["project"]["reason"]), (&json!(project), &listed["reason"]), "{name}");
        for verb in ["logs", "stop"] {
            let ran = world.daemon.nexus(&["project", verb, name]);
            assert_eq!(ran.code, Some(0), "{verb} {name}: {ran:?}");
        }
        let ran = world.daemon.nexus(&["project", "start", name]);
        assert!(ran.code == Some(1) && ran.stderr.contains("no relay has it"), "{ran:?}");
    }
    assert_eq!(world.daemon.nexus(&["project", "show", "ghosts"]).code, Some(4));
    assert!(world.left().is_empty());
}

#[test]
fn what_is_wrong_with_a_definition_is_shown_however_it_was_prepared() {
    let mut world = World::new();
    let (good, bad) = (world.tell(4199, &[&["title", "good"]], "Be brief."), world.tell(4199, &[&["role", "nameless"]], ""));
    world.tell(31_933, &[&["d", "demo"], &["agent", &good], &["agent", &bad]], "");
    let project = world.coordinate("demo");
    let event = ask(&world, &project, "hello");
    eventually("it is answered", || answers(&world, &event).len() == 1);
    let problems = |world: &World| world.show(&project)["problems"].to_string();
    assert!(problems(&world).contains(&bad), "{}", problems(&world));
    world.daemon.stop();
    world.daemon.launch();
    assert!(problems(&world).contains(&bad), "{}", problems(&world));
    let text = world.daemon.nexus_ok(&["project", "show", "demo"]);
    assert!(text.contains("Not used: ") && text.contains(&bad), "{text}");
}

#[test]
fn a_profile_that_comes_too_late_is_there_the_next_time() {
    let (slow, agent) = (Scripted::start(), Key::new(6));
    slow.add(&agent.sign(0, &[], r#"{"name": "Coder"}"#));
    let takes_its_time = || slow.state().late = Some("nexus-fetch".to_owned());
    takes_its_time();
    let world = World::with_all(|config| config["nostr"]["relays"].as_array_mut().unwrap().push(json!(slow.url())));
    eventually("both relays are live", || is_live(&world));
    world.tell(31_933, &[&["d", "demo"], &["p", &agent.public()]], "");
    let kept = |kind: u16, author: &Key| {
        let sql = format!("SELECT count(*) FROM nostr_events WHERE kind = {kind} AND pubkey = '{}'", author.public());
        world.daemon.count("nexus", &sql)
    };
    eventually("its definition is there", || kept(31_933, &world.owner) == 1);
    let name = || world.prepared(&world.coordinate("demo"))["agents"][0]["name"].clone();
    assert_ne!(name(), "Coder", "the other relay has none");
    slow.state().late = None;
    eventually("what it brings is kept", || kept(0, &agent) == 1);
    takes_its_time();
    assert_eq!(name(), "Coder");
}

#[test]
fn what_lies_somewhere_gets_no_other_place() {
    let world = World::new();
    let project = world.project("demo", None);
    let (here, there) = (world.daemon.file("here"), world.daemon.file("there"));
    let init = |path: &str| world.daemon.nexus(&["project", "init", &project, "--path", path]);
    assert_eq!(init(&here).code, Some(0));
    assert_eq!(init(&here).code, Some(0), "the same place is fine");
    let ran = init(&there);
    assert!(ran.code == Some(1) && ran.stderr.contains(&here), "{ran:?}");
    assert!(!Path::new(&there).exists());
    assert_eq!(PathBuf::from(world.show("demo")["project"]["path"].as_str().unwrap()), PathBuf::from(&here));
}

#[test]
fn a_whitelist_without_relays_is_warned_of() {
    let home = Daemon::at_home();
    fs::create_dir_all(home.workspace().join("state")).unwrap();
    fs::write(home.workspace().join("state/overlay.yaml"), json!({ "daemon": { "port": 0 } }).to_string()).unwrap();
    let ran = home.nexus(&["daemon", "start", "--detach", "--whitelist", &Key::new(3).npub()]);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    let warnings = format!("{}{}", ran.stdout, ran.stderr).lines().filter(|line| line.starts_with("  Warning:")).count();
    assert_eq!(warnings, 1, "{ran:?}");
    home.nexus_ok(&["daemon", "stop"]);
    home.nothing_runs();
}

#[test]
fn the_flags_of_a_start_hold_after_a_reload_and_a_restart() {
    let mut world = World::with_all(|config| config["nostr"]["whitelist"] = json!([]));
    world.daemon.stop();
    world.daemon.nexus_ok(&["daemon", "start", "--detach", "--whitelist", &world.owner.npub(), "--projects-path", "mine"]);
    // Relative paths start where the command ran.
    let mine = world.daemon.home().canonicalize().unwrap().join("mine");
    let works = |identifier: &str| {
        let event = ask(&world, &world.project(identifier, None), "hello");
        eventually("it is answered", || answers(&world, &event).len() == 1);
        let path = PathBuf::from(world.show(identifier)["project"]["path"].as_str().unwrap());
        assert!(path.starts_with(&mine), "{identifier}: {}", path.display());
    };
    works("first");
    let other = Key::new(2);
    let mut config: Value = serde_json::from_str(&fs::read_to_string(world.daemon.config_file()).unwrap()).unwrap();
    config["nostr"]["whitelist"] = json!([other.npub()]);
    config["projects"]["path"] = json!(world.daemon.file("elsewhere"));
    world.daemon.configure(&config);
    world.daemon.nexus_ok(&["daemon", "reload"]);
    works("second");
    let event = other.sign(1, &[&["a", &world.coordinate("first")]], "hello");
    world.publish(&event);
    eventually("who is in the file is answered too", || answers(&world, id(&event)).len() == 1);
    world.daemon.nexus_ok(&["daemon", "restart"]);
    works("third");
    assert!(world.left().is_empty() && !Path::new(&world.daemon.file("elsewhere")).exists(), "nothing lies where the file says");
    world.daemon.nexus_ok(&["daemon", "stop"]);
}
