//! Stops that don't come at a good moment: while parts of the answer have left, while the turn takes its time to end, while the
//! disk takes nothing, and just before a kill.
#![allow(clippy::unwrap_used)]

mod common;
mod streamed;

use common::{Ask, Daemon, Signal, config, eventually, json_lines, procfs, send_signal};
use rusqlite::Connection;
use serde_json::{Value, json};
use std::fs;
use std::process::{Child, Stdio};
use std::time::Duration;
use streamed::{Place, in_blocks, streaming};

const BY_THE_COMMAND: &str = "stopped: by `nexus sessions stop`";
/// How long the ledger is waited for by who keeps it from the daemon.
const LOCK_PATIENCE: Duration = Duration::from_secs(30);

/// `nexus sessions stop`, not waited for.
fn stopping(daemon: &Daemon, words: &[&str]) -> Child {
    let mut command = daemon.command(&[]);
    command.args(["sessions", "stop"]).args(words).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().unwrap()
}

/// What a command said that ended well.
fn said(command: Child) -> String {
    let ran = command.wait_with_output().unwrap();
    assert!(ran.status.success(), "{ran:?}");
    String::from_utf8(ran.stdout).unwrap()
}

/// Keeps the daemon from writing to its ledger of work until this is dropped.
fn locked(daemon: &Daemon) -> Connection {
    let ledger = Connection::open(daemon.workspace().join("data/nexus.db")).unwrap();
    ledger.busy_timeout(LOCK_PATIENCE).unwrap();
    ledger.execute_batch("BEGIN IMMEDIATE").unwrap();
    ledger
}

/// A daemon whose agent is in a turn that can't end: its keeper stands still, and it waits for the keeper's word that nothing of
/// the agent lives. It runs again what a kill interrupts.
fn wedged() -> Daemon {
    let mut daemon = Daemon::new();
    let log = daemon.file("agent.log");
    let mut wanted = config(json!({}));
    let command = format!("sh -c 'cat >> {log}; exec sleep 1000'");
    wanted["agents"] = json!({ "default": "wedge", "wedge": { "runner": "command", "command": command } });
    wanted["pipeline"] = json!({ "on_interrupted": "rerun" });
    daemon.configure(&wanted);
    daemon.launch();
    daemon
}

/// How often the wedged agent was asked.
fn prompts(daemon: &Daemon) -> usize {
    json_lines(daemon.file("agent.log")).len()
}

/// Lets it stand still.
fn stopped_keeper(daemon: &Daemon) -> procfs::Process {
    let keeper = daemon.keeper();
    send_signal(keeper.pid, Signal::STOP);
    eventually("the keeper stands still", || procfs::is_stopped(keeper.pid));
    keeper
}

fn ends(daemon: &Daemon) -> Vec<String> {
    daemon.texts("nexus", "SELECT status || ': ' || coalesce(reason, '') FROM nexus_requests WHERE channel <> 'timer' ORDER BY event_seq")
}

#[test]
fn a_stop_is_obeyed_by_the_daemon_after_the_one_that_was_killed_before_the_turn_was_over() {
    let mut daemon = wedged();
    let first = daemon.open(&Ask::post("/control/send", &json!({ "text": "one" })));
    eventually("the agent is asked", || prompts(&daemon) == 1);
    let keeper = stopped_keeper(&daemon);
    let command = stopping(&daemon, &["dm:owner"]);
    eventually("the stop is on disk", || daemon.count("nexus", "SELECT count(*) FROM nexus_requests WHERE stopped IS NOT NULL") == 1);
    daemon.kill9();
    // It would have ended with the daemon, if it could have noticed.
    send_signal(keeper.pid, Signal::KILL);
    assert_eq!(ends(&daemon), ["processing: "], "the turn had ended by then");
    assert!(!command.wait_with_output().unwrap().status.success(), "nobody could say how it ended");
    drop(first);
    daemon.launch();
    eventually("the turn has its end", || ends(&daemon) == [format!("completed: {BY_THE_COMMAND}")]);
    assert_eq!(prompts(&daemon), 1, "the agent was asked again");
    assert_eq!(daemon.count("nexus", "SELECT count(*) FROM deliveries"), 0);
    assert_eq!(daemon.texts("nexus", "SELECT status FROM runs ORDER BY attempt"), ["interrupted", "finished"]);
}

#[test]
fn a_turn_that_has_not_ended_after_a_while_is_said_to_be_stopping() {
    let daemon = wedged();
    let first = daemon.open(&Ask::post("/control/send", &json!({ "text": "one" })));
    eventually("the agent is asked", || prompts(&daemon) == 1);
    let keeper = stopped_keeper(&daemon);
    let command = stopping(&daemon, &["dm:owner"]);
    eventually("the stop is on disk", || daemon.count("nexus", "SELECT count(*) FROM nexus_requests WHERE stopped IS NOT NULL") == 1);
    let told = said(command);
    assert!(told.starts_with("dm:owner: its turn was told to stop and has not ended yet (req_"), "{told}");
    send_signal(keeper.pid, Signal::CONT);
    eventually("the turn has its end", || ends(&daemon) == [format!("completed: {BY_THE_COMMAND}")]);
    assert_eq!(first.body.end()["status"], "completed");
}

#[test]
fn a_turn_whose_answer_was_whole_is_said_to_have_ended() {
    let mut daemon = Daemon::new();
    let [log, gate] = ["told", "gate"].map(|name| daemon.file(name));
    let script = format!("cat >> {log}; until [ -e {gate} ]; do sleep 0.1; done; echo all of it");
    let mut wanted = config(json!({}));
    wanted["agents"] = json!({ "default": "slow", "slow": { "runner": "command", "command": format!("sh -c '{script}'") } });
    daemon.configure(&wanted);
    daemon.launch();
    let first = daemon.open(&Ask::post("/control/send", &json!({ "text": "one" })));
    eventually("the agent is called", || json_lines(&log).len() == 1);
    let ledger = locked(&daemon);
    fs::write(&gate, "").unwrap();
    eventually("it has answered", || !daemon.children().iter().any(|child| child.argv.contains(&gate)));
    eventually("its end can't be written", || daemon.stdout().contains("write failed, repeating it"));
    let (plain, as_json) = (stopping(&daemon, &["dm:owner"]), stopping(&daemon, &["dm:owner", "--json"]));
    eventually("both are heard", || daemon.stdout().matches("a turn is stopped by").count() == 2);
    ledger.execute_batch("ROLLBACK").unwrap();
    let (told, answer) = (said(plain), said(as_json));
    assert!(told.starts_with("dm:owner: its turn had just come to its end (req_"), "{told}");
    let answer: Value = serde_json::from_str(&answer).unwrap();
    assert_eq!((&answer["result"], &answer["session"]), (&json!("ended"), &json!("dm:owner")));
    assert_eq!(first.body.end()["text"].as_str().map(str::trim), Some("all of it"));
    assert_eq!(ends(&daemon), ["completed: "]);
}

/// Puts all messages into one session.
fn in_one_session(place: &Place) {
    let text = fs::read_to_string(place.daemon.config_file()).unwrap();
    let mut wanted: Value = serde_json::from_str(&text).unwrap();
    wanted["access"]["policies"] = json!([{ "name": "one", "match": {}, "effect": "allow", "session": { "key": "one" } }]);
    place.daemon.configure(&wanted);
}

fn stop_one(place: &Place) {
    let told = place.daemon.nexus_ok(&["sessions", "stop", "one"]);
    assert!(told.starts_with("one: its turn was stopped (req_"), "{told}");
    assert_eq!(ends(&place.daemon), [format!("completed: {BY_THE_COMMAND}")]);
}

#[test]
fn of_an_answer_that_is_stopped_between_its_blocks_nothing_more_leaves() {
    let (mut place, first) = in_blocks(json!({ "send": "hang" }));
    in_one_session(&place);
    place.daemon.launch();
    // The second one after a second of silence, behind the first.
    place.delivered(&[("sending", 1, first.as_str()), ("pending", 0, "and")]);
    stop_one(&place);
    place.delivered(&[("sending", 1, first.as_str()), ("discarded", 0, "and")]);
    place.daemon.kill9();
    place.open_gate();
    place.daemon.launch();
    place.delivered(&[("uncertain", 1, first.as_str()), ("discarded", 0, "and")]);
    assert_eq!(place.daemon.count("nexus", "SELECT count(*) FROM runs"), 1, "it was run again");
    let turn = "SELECT t.stop_reason FROM turns t";
    eventually("the turn says how it ended", || place.daemon.texts("agents", turn) == ["aborted"]);
    assert!(place.sends().len() <= 1, "{:?}", place.sends());
}

#[test]
fn a_stream_that_is_stopped_shows_nothing_more_now_or_at_the_next_start() {
    let mut place = streaming(json!({}));
    in_one_session(&place);
    place.launch_streaming();
    eventually("its first words are shown", || place.types().iter().any(|kind| kind == "token"));
    stop_one(&place);
    eventually("the stream was ended", || place.types().last().is_some_and(|kind| kind == "stream_error"));
    assert_eq!(place.streamed().last().unwrap()["partial"], "Hello");
    place.delivered(&[("sent", 1, "Hello")]);
    place.open_gate();
    let shown = place.streamed().len();
    place.daemon.kill9();
    place.daemon.launch();
    place.stream_process();
    place.delivered(&[("sent", 1, "Hello")]);
    assert_eq!((place.streamed().len(), place.sends().len()), (shown, 0));
    assert_eq!(place.daemon.count("nexus", "SELECT count(*) FROM runs"), 1, "it was run again");
}

#[test]
fn a_session_that_was_to_begin_anew_does_so_after_a_kill() {
    let mut daemon = Daemon::new();
    let log = daemon.file("told");
    let mut wanted = config(json!({}));
    let script = format!("cat >> {log}; echo heard");
    wanted["agents"] = json!({ "default": "quick", "quick": { "runner": "command", "command": format!("sh -c '{script}'") } });
    daemon.configure(&wanted);
    daemon.launch();
    daemon.nexus_ok(&["send", "one"]);
    let word = daemon.open(&Ask::post("/control/send", &json!({ "text": "/new" }))).body.end();
    assert_eq!(word["text"], "This conversation begins anew; 1 turn is put away.");
    daemon.kill9();
    daemon.launch();
    daemon.nexus_ok(&["send", "two"]);
    let turns = json_lines(&log);
    let history = |turn: &Value| turn["history"].as_array().map_or(0, Vec::len);
    assert_eq!(turns.iter().map(|turn| turn["message"]["content"].as_str().unwrap()).collect::<Vec<_>>(), ["one", "two"]);
    assert_eq!(history(&turns[1]), 0, "it was told what was put away");
    let sessions = "SELECT label || ' ' || turns FROM sessions WHERE archived_at IS NULL";
    eventually("its turn is the first of the new one", || daemon.texts("agents", sessions) == ["dm:owner 1"]);
}
