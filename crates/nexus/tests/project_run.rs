//! Projects at work: events of a relay that start their processes, what those say, and what becomes of them when they
//! misbehave or the daemon dies. The relay, the daemon and the processes are real.
#![allow(clippy::unwrap_used)]

mod common;
mod project_world;
mod relays;

use common::{Daemon, Signal, config, eventually, find, lines, send_signal};
use project_world::{World, started};
use relays::{Key, id, is_verified, now_s};
use serde_json::{Value, json};
use std::fs;
use std::path::Path;

#[test]
fn an_event_starts_the_project_and_the_next_one_finds_it_running() {
    let (mut world, project) = started("answer", json!({}));
    assert_eq!(world.starts(), 0, "a definition activates nothing");
    let first = world.ask(&project, "hello");
    let answer = world.answer(&first);
    assert!(is_verified(&answer));
    assert_eq!(answer["content"], "echo: hello");
    assert_ne!(answer["pubkey"], world.owner.public(), "the agent signs with a key of its own");
    let running = world.once(&project, "running");
    let second = world.ask(&project, "again");
    assert_eq!(world.answer(&second)["content"], "echo: again");
    assert_eq!(world.starts(), 1);
    let listed: Value = serde_json::from_str(&world.daemon.nexus_ok(&["project", "list", "--json"])).unwrap();
    assert_eq!(listed[0]["id"], project);
    assert_eq!((&listed[0]["pid"], &listed[0]["startedAt"]), (&running["pid"], &running["startedAt"]));
    assert!(listed[0]["path"].as_str().is_some_and(|path| Path::new(path).join(".tenex").is_dir()), "{listed}");
    let told = world.daemon.status()["projects"][0].clone();
    assert!(told["last_used"].is_i64() && told["last_used"] == listed[0]["last_used"], "{told}");
    assert_eq!(world.daemon.metric("nexus_project_spawns_total"), 1);
    assert_eq!(world.daemon.metric("nexus_project_active"), 1);
    eventually("both are over", || world.daemon.ended("completed") == 2);
    assert_eq!(world.daemon.get("/health").json()["projects"]["states"]["running"], 1);
    world.daemon.stop();
    let without: Value = serde_json::from_str(&world.daemon.nexus_ok(&["project", "list", "--json"])).unwrap();
    assert_eq!(without[0]["last_used"], listed[0]["last_used"]);
}

#[test]
fn events_go_to_a_project_one_at_a_time_and_in_their_order() {
    let (world, project) = started("answer", json!({}));
    let texts: Vec<String> = (0..8).map(|n| n.to_string()).collect();
    // Of what the relay had stored before it was asked, those of one second would come by their ids.
    let event = |(text, second): (&String, u64)| world.owner.sign_at(second, 1, &[&["a", &project]], text);
    let ids: Vec<String> = texts.iter().zip(now_s()..).map(|one| world.publish(&event(one))).collect();
    ids.iter().for_each(|id| drop(world.answer(id)));
    let handed: Vec<Value> = world.handed().iter().map(|frame| frame["event"]["content"].clone()).collect();
    assert_eq!(handed, texts.iter().map(|text| json!(text)).collect::<Vec<_>>());
    assert!(ids.iter().all(|id| world.answers(id).len() == 1), "each is answered once");
    assert_eq!(world.starts(), 1);
}

#[test]
fn what_a_relay_had_stored_comes_by_its_dates() {
    let mut world = World::new("answer", json!({}));
    let project = world.define("demo");
    // Published in the wrong order, and told by the relay in another one: the newest first.
    let first = now_s() - 30;
    let mut dated: Vec<(u64, String)> = (0..8).map(|n| (first + n, n.to_string())).collect();
    dated.rotate_left(3);
    for (at, text) in &dated {
        world.publish(&world.owner.sign_at(*at, 1, &[&["a", &project]], text));
    }
    world.daemon.launch();
    eventually("all were handed over", || world.handed().len() == 8);
    let handed: Vec<Value> = world.handed().iter().map(|frame| frame["event"]["content"].clone()).collect();
    assert_eq!(handed, (0..8).map(|n| json!(n.to_string())).collect::<Vec<_>>());
}

#[test]
fn what_never_is_ready_is_quarantined_and_can_be_released() {
    let (world, project) = started("mute", json!({ "ready_timeout_ms": 100 }));
    let first = world.ask(&project, "hello");
    let quarantined = world.once(&project, "quarantined");
    assert!(quarantined["reason"].as_str().unwrap().contains("did not say `ready` within 100 ms"), "{quarantined}");
    eventually("the event has its end", || world.daemon.ended("failed") == 1);
    assert_eq!(world.starts(), 5);
    world.ask(&project, "hello?");
    eventually("no event wakes it", || world.daemon.ended("failed") == 2);
    assert_eq!(world.starts(), 5);
    let line = world.daemon.logged("Error handling event");
    assert_eq!(line["event"], first);
    assert!(line["error"].as_str().unwrap().contains("did not say `ready`"), "{line}");
    world.set_mode("answer");
    let released = world.daemon.nexus_ok(&["project", "release", "demo", "--json"]);
    assert!(released.contains("\"ready\""), "{released}");
    let event = world.ask(&project, "now");
    assert_eq!(world.answer(&event)["content"], "echo: now");
}

#[test]
fn a_quarantine_outlives_the_daemon() {
    let (mut world, project) = started("config", json!({}));
    world.ask(&project, "hello");
    world.once(&project, "quarantined");
    assert_eq!(world.starts(), 1, "exit 78 is not tried again");
    eventually("the event has its end", || world.daemon.ended("failed") == 1);
    world.daemon.stop();
    world.daemon.launch();
    world.ask(&project, "hello?");
    eventually("the next one fails too", || world.daemon.ended("failed") == 2);
    assert_eq!(world.starts(), 1);
}

#[test]
fn another_version_of_the_protocol_is_not_spoken_to() {
    let (world, project) = started("version 9", json!({}));
    world.ask(&project, "hello");
    let quarantined = world.once(&project, "quarantined");
    assert!(quarantined["reason"].as_str().unwrap().contains("version 9"), "{quarantined}");
    assert!(world.handed().is_empty());
}

#[test]
fn a_frame_that_is_too_long_costs_its_process_and_nobody_else() {
    let (world, project) = started("wide", json!({}));
    world.ask(&project, "hello");
    eventually("the event has its end", || world.daemon.terminal() == 1);
    assert!(world.daemon.stdout().contains("may be written"));
    world.set_mode("answer");
    let event = world.ask(&project, "again");
    assert_eq!(world.answer(&event)["content"], "echo: again");
}

#[test]
fn lines_that_are_no_frames_are_left_out() {
    let (world, project) = started("garbage", json!({}));
    let event = world.ask(&project, "hello");
    assert_eq!(world.answer(&event)["content"], "echo: hello");
    let said = world.daemon.nexus_ok(&["project", "logs", "demo"]);
    assert!(said.contains("wrote what can't be used"), "{said}");
}

#[test]
fn an_event_that_nobody_accepts_is_a_dead_letter_after_three_tries() {
    let (world, project) = started("die", json!({ "restart": { "backoff_base_ms": 1, "backoff_max_ms": 2, "max_crashes": 100 } }));
    world.ask(&project, "hello");
    eventually("the event has its end", || world.daemon.ended("failed") == 1);
    let handed = world.handed();
    assert_eq!(handed.len(), 3, "{handed:?}");
    assert!(handed.iter().all(|frame| frame["id"] == handed[0]["id"]), "under one id");
}

#[test]
fn a_process_that_is_killed_is_started_again() {
    let (world, project) = started("answer", json!({}));
    let first = world.ask(&project, "hello");
    world.answer(&first);
    let pid = world.once(&project, "running")["pid"].as_i64().unwrap();
    send_signal(i32::try_from(pid).unwrap(), Signal::KILL);
    eventually("another one runs", || world.starts() == 2);
    let line = world.daemon.logged("Project process exited");
    assert_eq!((&line["projectId"], line.get("code"), &line["signal"]), (&json!(project), Some(&Value::Null), &json!(9)));
    let second = world.ask(&project, "again");
    assert_eq!(world.answer(&second)["content"], "echo: again");
    assert_eq!(world.project(&project)["crashes"], 1);
}

#[test]
fn a_clean_exit_is_followed_by_a_start_with_the_next_event() {
    let (world, project) = started("leave", json!({}));
    let first = world.ask(&project, "hello");
    world.answer(&first);
    assert_eq!(world.once(&project, "ready")["pid"], Value::Null);
    let line = world.daemon.logged("Project process exited");
    assert_eq!((&line["projectId"], &line["code"], line.get("signal")), (&json!(project), &json!(0), Some(&Value::Null)));
    let second = world.ask(&project, "again");
    assert_eq!(world.answer(&second)["content"], "echo: again");
    assert_eq!((world.starts(), world.daemon.metric("nexus_project_crashes_total")), (2, 0));
}

#[test]
fn who_is_deaf_to_pings_is_restarted() {
    let (world, project) =
        started("deaf", json!({ "ping_ms": 200, "restart": { "backoff_base_ms": 1, "backoff_max_ms": 2, "max_crashes": 1000 } }));
    let event = world.ask(&project, "hello");
    world.answer(&event);
    eventually("it is restarted", || world.starts() >= 2);
    assert!(world.daemon.stdout().contains("did not answer 3 pings"));
}

#[test]
fn the_idle_stop_and_come_back() {
    let (world, project) = started("answer", json!({ "idle_stop_ms": 200 }));
    let first = world.ask(&project, "hello");
    world.answer(&first);
    world.once(&project, "ready");
    let second = world.ask(&project, "again");
    world.answer(&second);
    assert_eq!((world.starts(), world.daemon.metric("nexus_project_crashes_total")), (2, 0));
}

#[test]
fn one_that_is_needed_takes_the_place_of_the_one_used_least_recently() {
    let (world, first) = started("answer", json!({ "max_running": 1 }));
    let second = world.define("other");
    let event = world.ask(&first, "hello");
    world.answer(&event);
    world.once(&first, "running");
    let event = world.ask(&second, "hello");
    world.answer(&event);
    assert_eq!(world.once(&second, "running")["state"], "running");
    assert_eq!(world.project(&first)["state"], "ready");
}

#[test]
fn people_start_stop_and_restart_a_project() {
    let (world, project) = started("answer", json!({}));
    let event = world.ask(&project, "hello");
    world.answer(&event);
    let stopped = world.daemon.nexus_ok(&["project", "stop", "demo"]);
    assert!(stopped.contains(": stopped"), "{stopped}");
    let shown = || serde_json::from_str::<Value>(&world.daemon.nexus_ok(&["project", "show", "demo", "--json"])).unwrap();
    assert!(shown()["state"] == "ready" && shown()["startedAt"].is_null(), "{}", shown());
    let begun: Value = serde_json::from_str(&world.daemon.nexus_ok(&["project", "start", "demo", "--json"])).unwrap();
    assert_eq!(begun["state"], "running");
    assert_eq!((&shown()["state"], &shown()["startedAt"]), (&begun["state"], &begun["startedAt"]));
    let other: Value = serde_json::from_str(&world.daemon.nexus_ok(&["project", "restart", "demo", "--json"])).unwrap();
    assert_ne!(other["pid"], begun["pid"]);
    assert_eq!(world.starts(), 3);
    let process = world.daemon.nexus_ok(&["project", "show", "demo"]);
    assert!(process.contains(&format!("PID {}, up ", other["pid"])), "{other} {process}");
    let unknown = ["stop", "show"].map(|verb| world.daemon.nexus(&["project", verb, "nothing"]));
    assert!(unknown.iter().all(|ran| ran.code == Some(4) && ran.stderr == unknown[0].stderr), "in one sentence: {unknown:?}");
}

#[test]
fn a_stop_of_the_daemon_waits_for_the_answer_and_leaves_nobody() {
    let (mut world, project) = started("slow", json!({}));
    let event = world.ask(&project, "hello");
    eventually("it is at work", || world.handed().len() == 1 && world.project(&project)["doing"] == "at work");
    world.daemon.signal(Signal::TERM);
    eventually("the stop is under way", || world.daemon.stdout().contains("Daemon stopping"));
    fs::write(world.fake("go"), "").unwrap();
    assert_eq!(world.daemon.wait().code(), Some(0));
    assert_eq!((world.daemon.ended("completed"), world.daemon.terminal()), (1, 1));
    assert_eq!(world.starts(), 1);
    world.daemon.launch();
    assert_eq!(world.answer(&event)["content"], "echo: hello");
    assert_eq!(world.answers(&event).len(), 1);
}

#[test]
fn a_daemon_that_is_killed_amid_a_hand_over_hands_it_over_again_and_publishes_once() {
    let (mut world, project) = started("slow", json!({}));
    let event = world.ask(&project, "hello");
    eventually("it is at work", || world.handed().len() == 1 && world.project(&project)["doing"] == "at work");
    world.daemon.kill9();
    world.daemon.launch();
    eventually("it is handed over again", || world.handed().len() == 2);
    fs::write(world.fake("go"), "").unwrap();
    assert_eq!(world.answer(&event)["content"], "echo: hello");
    eventually("it has one end", || world.daemon.ended("completed") == 1);
    assert_eq!((world.answers(&event).len(), world.daemon.terminal()), (1, 1));
    let handed = world.handed();
    assert_eq!(handed[0]["id"], handed[1]["id"]);
}

#[test]
fn a_daemon_that_is_killed_while_a_reply_is_published_publishes_it_once_and_says_how_that_ended() {
    let (mut world, project) = started("linger", json!({}));
    let event = world.ask(&project, "hello");
    eventually("it is at work", || world.handed().len() == 1 && world.project(&project)["doing"] == "at work");
    // The relay takes nothing any more, so that it is not known whether it has the reply.
    send_signal(world.relay.pid(), Signal::STOP);
    fs::write(world.fake("go"), "").unwrap();
    let replies = |daemon: &Daemon| daemon.count("nexus", "SELECT count(*) FROM nostr_published WHERE once LIKE 'project/%'");
    eventually("the reply is to be published", || replies(&world.daemon) == 1);
    world.daemon.kill9();
    send_signal(world.relay.pid(), Signal::CONT);
    fs::write(world.fake("gone"), "").unwrap();
    world.daemon.launch();
    eventually("the event has its end", || world.daemon.terminal() == 1);
    let pending = "SELECT count(*) FROM nostr_outbox WHERE status = 'pending'";
    eventually("the relay has all that was to be published", || world.daemon.count("nexus", pending) == 0);
    let said: Vec<Value> = world.answers(&event).into_iter().filter(|answer| answer["content"] == "echo: hello").collect();
    assert_eq!((said.len(), replies(&world.daemon)), (1, 1), "{said:?}");
    assert_eq!((world.handed().len(), world.daemon.ended("failed")), (1, 1), "who may have acted is not asked again");
    let reason = world.daemon.texts("nexus", "SELECT reason FROM nexus_requests");
    assert!(reason[0].contains("interrupted"), "{reason:?}");
}

#[test]
fn a_stop_over_nostr_ends_what_is_going_on_and_starts_nothing() {
    let (world, project) = started("slow", json!({}));
    let stop = |why: &str| drop(world.publish(&world.owner.sign(24_134, &[&["a", &project]], why)));
    let first = world.ask(&project, "hello");
    eventually("it is at work", || world.handed().len() == 1 && world.project(&project)["doing"] == "at work");
    stop("enough");
    eventually("both have their end", || world.daemon.ended("completed") == 2);
    eventually("another process waits for work", || world.starts() == 2);
    world.set_mode("answer");
    let second = world.ask(&project, "again");
    assert_eq!(world.answer(&second)["content"], "echo: again");
    assert!(world.answers(&first).is_empty(), "what was stopped says nothing any more");
    eventually("the third has its end", || world.daemon.ended("completed") == 3);
    world.daemon.nexus_ok(&["project", "stop", "demo"]);
    stop("again");
    eventually("a stop of nothing has its end too", || world.daemon.ended("completed") == 4);
    let handed: Vec<Value> = world.handed().iter().map(|frame| frame["event"]["content"].clone()).collect();
    assert_eq!((handed, world.starts()), (vec![json!("hello"), json!("again")], 2), "no stop is handed over, and none starts it");
    assert_eq!(world.daemon.metric("nexus_project_crashes_total"), 0);
}

#[test]
fn two_authors_may_use_one_identifier() {
    let mut world = World::with(Daemon::new(), json!({}));
    let other = Key::new(9);
    let mut wanted = config(json!({}));
    let path = world.daemon.config_file();
    let known: Value = serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
    wanted["projects"] = known["projects"].clone();
    wanted["nostr"] = json!({ "relays": [world.relay.url()], "whitelist": [world.owner.npub(), other.npub()] });
    world.daemon.configure(&wanted);
    world.daemon.launch();
    let (mine, theirs) = (world.define("demo"), world.define_by(&other, "demo"));
    let answering = [&mine, &theirs].map(|project| {
        let answer = world.answer(&world.ask(project, "hello"));
        let prepared: Value = serde_json::from_str(&world.daemon.nexus_ok(&["project", "init", project, "--json"])).unwrap();
        let is_its_own = prepared["agents"].as_array().unwrap().iter().any(|agent| agent["pubkey"] == answer["pubkey"]);
        assert!(is_its_own, "{answer}: none of {prepared}");
        assert!(answer["tags"].as_array().unwrap().contains(&json!(["a", project])), "{answer}");
        answer["pubkey"].clone()
    });
    assert_ne!(answering[0], answering[1]);
    let paths = [&mine, &theirs].map(|project| world.project(project)["path"].as_str().unwrap_or_default().to_owned());
    assert!(!paths[0].is_empty() && paths[0] != paths[1], "{paths:?}");
}

#[test]
fn a_program_without_a_protocol_is_started_and_left_alone() {
    let daemon = Daemon::new();
    let mark = daemon.file("ran");
    let command = format!("sh -c {}", shell_words::quote(&format!("echo $NEXUS_PROJECT > {mark}; echo said; exec sleep 1000")));
    let mut world = World::with(daemon, json!({ "command": command, "protocol": "none" }));
    world.daemon.launch();
    let project = world.define("demo");
    world.ask(&project, "hello");
    eventually("it runs", || lines(&mark) == [project.clone()]);
    eventually("the event has its end", || world.daemon.ended("completed") == 1);
    world.ask(&project, "again");
    eventually("the next one as well", || world.daemon.ended("completed") == 2);
    assert_eq!(world.daemon.metric("nexus_project_spawns_total"), 1);
    assert!(world.daemon.nexus_ok(&["project", "logs", "demo"]).contains("said"));
}

#[test]
fn the_daemons_own_process_answers_with_the_agent_that_is_spoken_to() {
    let mut world = World::with(Daemon::new(), json!({}));
    world.daemon.launch();
    let project = world.define("demo");
    let mut listening = world.client();
    listening.subscribe("status", &[json!({ "kinds": [24_010] })]);
    let first = world.ask(&project, "hello");
    let answer = world.answer(&first);
    assert_eq!(answer["content"], "hello", "the default agent is echo");
    let tags = answer["tags"].as_array().unwrap();
    assert!(tags.contains(&json!(["e", first, "", "root", world.owner.public()])), "{tags:?}");
    assert!(tags.contains(&json!(["p", world.owner.public()])) && tags.contains(&json!(["a", project])), "{tags:?}");
    let status = listening.event("status");
    let agents: Vec<&Value> = status["tags"].as_array().unwrap().iter().filter(|tag| tag[0] == "agent").collect();
    assert_eq!(agents.len(), 2, "{status}");
    assert_eq!(agents[0][1], answer["pubkey"], "the manager answers who speaks to nobody");
    let builder = agents[1][1].as_str().unwrap();
    let event = world.owner.sign(1, &[&["a", &project], &["e", &first, "", "root"], &["p", builder]], "and you?");
    world.client().published(&event);
    let second = find("the other agent answers", || {
        let answers = world.client().stored(json!({ "kinds": [1], "#e": [id(&event)] }));
        answers.into_iter().find(|answer| answer["pubkey"] == builder)
    });
    let tags = second["tags"].as_array().unwrap();
    assert!(tags.contains(&json!(["e", id(&event), "", "reply", world.owner.public()])), "{tags:?}");
    world.daemon.stop();
    eventually("no process of a project is left", || world.daemon.children().is_empty());
}
