//! Projects with settings of their own, processes that are asked to end before they are told to, and events of several
//! authors at once. Relays, daemon and processes are real.
#![allow(clippy::unwrap_used)]

mod common;
mod gitserver;
mod relays;

use common::{eventually, find, json_lines, lines, replace};
use gitserver::world::{World, answered, ask, once, state};
use relays::{Client, Key, Relay, id, now_s};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Authors, and the events that each of them publishes on each relay.
const AUTHORS: u8 = 4;
const EVENTS_EACH: usize = 5;

/// The command of the fake process of a project, which keeps its files in `place` and behaves as `mode` says.
fn fake(place: &Path, mode: &str) -> String {
    let program = PathBuf::from(common::NEXUS).with_file_name("examples").join("fake-project");
    assert!(program.exists(), "{} is missing: cargo build --example fake-project", program.display());
    fs::create_dir_all(place).unwrap();
    replace(&place.join("mode"), mode);
    shell_words::join([program.to_string_lossy(), place.to_string_lossy()])
}

/// Changes the configuration of a running daemon.
fn reconfigure(world: &World, change: impl FnOnce(&mut Value)) {
    let mut config: Value = serde_json::from_str(&fs::read_to_string(world.daemon.config_file()).unwrap()).unwrap();
    change(&mut config);
    world.daemon.configure(&config);
    world.daemon.nexus_ok(&["daemon", "reload"]);
}

#[test]
fn who_is_replaced_or_stopped_with_the_daemon_is_asked_first_and_has_time_for_its_end() {
    let place = tempfile::tempdir().unwrap();
    let mut world = World::with(|projects| projects["command"] = fake(place.path(), "tidy").into());
    let project = world.project("demo", None);
    answered(&world, &ask(&world, &project, "hello"));
    let [starts, tidied] = ["starts", "tidied"].map(|name| place.path().join(name));
    reconfigure(&world, |config| config["projects"]["overrides"] = json!({ project.clone(): { "env": { "COLOUR": "red" } } }));
    eventually("there is another process", || lines(&starts).len() == 2);
    assert_eq!(lines(&tidied), lines(&starts)[..1], "the first one was asked, and not cut off");
    once(&world, &project, "running");
    world.daemon.stop();
    assert_eq!(lines(&tidied), lines(&starts), "so was the second one");
}

#[test]
fn more_that_are_to_be_kept_warm_are_brought_up_by_the_reload() {
    let mut world = World::new();
    let project = world.project("demo", None);
    answered(&world, &ask(&world, &project, "hello"));
    world.daemon.stop();
    world.daemon.launch();
    assert!(state(&world, &project)["pid"].is_null(), "nobody needs it");
    reconfigure(&world, |config| config["projects"]["warm"] = json!(1));
    once(&world, &project, "running");
}

#[test]
fn projects_whose_settings_changed_are_replaced_together() {
    let place = tempfile::tempdir().unwrap();
    let world = World::with(|projects| projects["command"] = fake(place.path(), "together").into());
    let projects = ["one", "two"].map(|name| world.project(name, None));
    projects.iter().for_each(|project| drop(answered(&world, &ask(&world, project, "hello"))));
    let [starts, met] = ["starts", "met"].map(|name| place.path().join(name));
    // Each waits with its end until the other one is asked too. A look in the middle of a change sees only one of them:
    // then the next change tells.
    let are_together = ["red", "green", "blue"].iter().any(|colour| {
        projects.iter().for_each(|project| drop(once(&world, project, "running")));
        let (started, before) = (lines(&starts).len(), lines(&met).len());
        let own = json!({ "env": { "COLOUR": colour } });
        reconfigure(&world, |config| {
            config["projects"]["overrides"] = json!({ projects[0].clone(): own.clone(), projects[1].clone(): own });
        });
        eventually("both have another process", || lines(&starts).len() == started + 2);
        lines(&met).len() == before + 2
    });
    assert!(are_together, "one waited for the other's end");
}

#[test]
fn a_project_is_idle_and_given_variables_by_its_own_settings() {
    let own = format!("31933:{}:own", Key::new(1).public());
    let world = World::with(|projects| {
        // The tests set this variable for the daemon, which passes it to nobody by itself.
        let command = "sh -c 'echo \"<$NO_COLOR>\" >> seen; exec sleep 1000'";
        let settings = json!({ "command": command, "protocol": "none", "pass_env": ["NO_COLOR"], "idle_stop_ms": 200 });
        projects["overrides"] = json!({ own.clone(): settings });
    });
    let plain = world.project("plain", None);
    answered(&world, &ask(&world, &plain, "hello"));
    assert_eq!(world.project("own", None), own);
    ask(&world, &own, "hello");
    let seen = find("its own program runs", || {
        let path = state(&world, &own)["path"].as_str().map(PathBuf::from)?;
        fs::read_to_string(path.join("seen")).ok().filter(|text| text.ends_with('\n'))
    });
    assert_eq!(seen, "<1>\n");
    once(&world, &own, "ready");
    assert!(state(&world, &own)["pid"].is_null());
    assert_eq!(state(&world, &plain)["state"], "running", "the other one goes by what holds for all");
}

#[test]
fn what_waits_for_an_approval_is_not_forgotten_while_its_file_cannot_be_read() {
    let world = World::new();
    let agent = world.tell(4199, &[&["title", "coder"], &["tool", "read"]], "");
    world.tell(31_933, &[&["d", "demo"], &["agent", &agent]], "");
    let project = world.coordinate("demo");
    let prepared = world.prepared(&project);
    let waiting = world.approvals();
    assert_eq!((waiting.len(), &waiting[0]["kind"]), (1, &json!("tools")), "{waiting:?}");
    let file = Path::new(prepared["path"].as_str().unwrap()).join(format!(".tenex/agents/{agent}.json"));
    replace(&file, "{");
    let newer = world.owner.sign_at(now_s() + 1, 31_933, &[&["d", "demo"], &["title", "again"], &["agent", &agent]], "");
    world.publish(&newer);
    eventually("the newer definition counts", || world.show(&project)["project"]["title"] == "again");
    assert_eq!(world.approvals(), waiting);
}

#[test]
fn a_repository_that_is_announced_is_shown_with_its_address() {
    let world = World::new();
    world.server.repository("good", |_| {});
    let url = world.server.url("good");
    world.tell(30_617, &[&["d", "code"], &["clone", &url]], "");
    let agent = world.tell(4199, &[&["title", "coder"]], "");
    let announced = format!("30617:{}:code", world.owner.public());
    world.tell(31_933, &[&["d", "demo"], &["agent", &agent], &["a", &announced]], "");
    let project = world.coordinate("demo");
    world.prepared(&project);
    assert_eq!(world.show(&project)["repoUrl"], url);
}

#[test]
fn what_a_definition_has_too_much_or_wrong_is_shown() {
    let world = World::new();
    let agent = world.tell(4199, &[&["title", "coder"], &["tool", "rm -rf *"]], "");
    world.tell(31_933, &[&["d", "demo"], &["agent", &agent], &["mcp", "nonsense"]], "");
    let project = world.coordinate("demo");
    world.prepared(&project);
    let problems = world.show(&project)["problems"].to_string();
    assert!(problems.contains("`nonsense` is no id") && problems.contains(&format!("agent {agent}: 1 `tool` tag(s)")), "{problems}");
}

#[test]
fn a_project_is_given_up_by_its_own_settings() {
    let place = tempfile::tempdir().unwrap();
    let own = format!("31933:{}:own", Key::new(1).public());
    let world = World::with(|projects| {
        let restart = |crashes: u32| json!({ "backoff_base_ms": 1, "backoff_max_ms": 5, "max_crashes": crashes });
        projects["restart"] = restart(4);
        projects["command"] = fake(&place.path().join("all"), "crash").into();
        let command = fake(&place.path().join("own"), "crash");
        projects["overrides"] = json!({ own.clone(): { "command": command, "restart": restart(2) } });
    });
    assert_eq!(world.project("own", None), own);
    let other = world.project("other", None);
    for project in [&own, &other] {
        ask(&world, project, "hello");
        once(&world, project, "quarantined");
    }
    let starts = |name: &str| lines(place.path().join(name).join("starts")).len();
    assert!(starts("own") < starts("all"), "{} of its own, {} else", starts("own"), starts("all"));
}

#[test]
fn what_several_say_at_once_over_two_relays_is_handed_over_once_and_in_the_order_of_the_ledger() {
    let place = tempfile::tempdir().unwrap();
    let second = Relay::start(&place.path().join("relay"), &[]);
    let authors: Vec<Key> = (2..2 + AUTHORS).map(Key::new).collect();
    let world = World::with_all(|config| {
        config["projects"]["command"] = fake(&place.path().join("fake"), "answer").into();
        config["nostr"]["relays"].as_array_mut().unwrap().push(second.url().into());
        config["nostr"]["whitelist"].as_array_mut().unwrap().extend(authors.iter().map(|author| json!(author.npub())));
    });
    let project = world.project("demo", None);
    let signed = |author: &Key| -> Vec<Value> {
        (0..EVENTS_EACH).map(|n| author.sign(1, &[&["a", &project]], &format!("{n} by {}", author.public()))).collect()
    };
    let events: Vec<Vec<Value>> = authors.iter().map(signed).collect();
    let urls = [world.relay.url(), second.url()];
    std::thread::scope(|scope| {
        for (url, of_one) in urls.iter().flat_map(|url| events.iter().map(move |of_one| (*url, of_one))) {
            scope.spawn(move || {
                let mut client = Client::connect(url);
                of_one.iter().for_each(|event| client.published(event));
            });
        }
    });
    let all: BTreeSet<String> = events.iter().flatten().map(|event| id(event).to_owned()).collect();
    let count = i64::try_from(all.len()).unwrap();
    eventually("all are over", || world.daemon.ended("completed") == count);
    let frames = json_lines(place.path().join("fake/log")).into_iter().filter(|frame| frame["type"] == "event");
    let handed: Vec<String> = frames.map(|frame| id(&frame["event"]).to_owned()).collect();
    assert_eq!(handed.iter().cloned().collect::<BTreeSet<_>>(), all);
    let ledger = world.daemon.texts("nexus", "SELECT substr(event_id, 7) FROM nexus_requests ORDER BY event_seq");
    assert_eq!(handed, ledger, "each once, one after the other");
    assert_eq!((world.daemon.terminal(), lines(place.path().join("fake/starts")).len()), (count, 1));
}
