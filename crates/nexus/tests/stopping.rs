//! Turns that a person stops, by the command and by the owner's words in a chat: what ends, what goes on, and what a crash
//! in between leaves.
#![allow(clippy::unwrap_used)]

mod common;

use common::model::{Model, text};
use common::{Ask, Body, Daemon, config, eventually, fake, find, json_lines, only};
use rusqlite::Connection;
use serde_json::{Value, json};
use std::fs;
use std::time::{SystemTime, UNIX_EPOCH};

const WAITING: &str = "SELECT count(*) FROM nexus_requests WHERE status = 'waiting'";
const EXIT_NOT_FOUND: Option<i32> = Some(4);

/// An agent that writes down what it is told, says half of its answer, and goes on once a file is there.
struct Slow {
    daemon: Daemon,
    wanted: Value,
    log: String,
    gate: String,
}

impl Slow {
    fn start(more: Value) -> Self {
        Self::altered(|wanted| wanted["access"].as_object_mut().unwrap().extend(more.as_object().cloned().unwrap()))
    }

    /// One that answers one message at a time, each conversation in a session of its own, and is asked again after a kill.
    fn start_apart() -> Self {
        Self::altered(|wanted| {
            wanted["agents"]["slow"]["max_concurrent"] = json!(1);
            wanted["pipeline"] = json!({ "on_interrupted": "rerun" });
            wanted["access"]["policies"] = json!([{ "name": "apart", "match": {}, "effect": "allow", "session": { "key": "{peer_id}" } }]);
        })
    }

    fn altered(alter: impl FnOnce(&mut Value)) -> Self {
        let mut daemon = Daemon::new();
        let (log, gate) = (daemon.file("told"), daemon.file("gate"));
        let script = format!("cat >> {log}; echo half of it; until rm {gate} 2>/dev/null; do sleep 0.1; done; echo and the rest");
        let mut wanted = config(json!({}));
        wanted["agents"] = json!({ "default": "slow", "slow": { "runner": "command", "command": format!("sh -c '{script}'") } });
        alter(&mut wanted);
        daemon.configure(&wanted);
        daemon.launch();
        Self { daemon, wanted, log, gate }
    }

    /// Sends a message and doesn't wait for its answer.
    fn send(&self, text: &str) -> Body {
        let answer = self.daemon.open(&Ask::post("/control/send", &json!({ "text": text })));
        assert_eq!(answer.status, 200);
        answer.body
    }

    /// The same, in a conversation.
    fn send_in(&self, conversation: &str, text: &str) -> Body {
        let answer = self.daemon.open(&Ask::post("/control/send", &json!({ "text": text, "conversation": conversation })));
        assert_eq!(answer.status, 200);
        answer.body
    }

    fn called(&self, times: usize) {
        eventually("the agent is called", || json_lines(&self.log).len() == times);
    }

    fn pass(&self) {
        fs::write(&self.gate, "").unwrap();
    }

    fn told(&self) -> Vec<Value> {
        json_lines(&self.log).iter().map(|turn| turn["message"]["content"].clone()).collect()
    }

    /// Whether anything of an agent's is left, its own children too.
    fn is_at_work(&self) -> bool {
        self.daemon.children().iter().any(|child| child.argv.contains(&self.gate))
    }

    fn stop(&self) -> Value {
        serde_json::from_str(&self.daemon.nexus_ok(&["sessions", "stop", "dm:owner", "--json"])).unwrap()
    }

    fn row(&self, event_seq: i64) -> (String, String) {
        let sql = format!("SELECT status || '|' || coalesce(reason, '') FROM nexus_requests WHERE event_seq = {event_seq}");
        let row = self.daemon.texts("nexus", &sql).remove(0);
        let (status, reason) = row.split_once('|').unwrap();
        (status.to_owned(), reason.to_owned())
    }
}

#[test]
fn the_command_ends_the_turn_with_its_processes_and_says_when_nothing_runs() {
    let slow = Slow::start(json!({}));
    let first = slow.send("one");
    slow.called(1);
    assert!(slow.is_at_work());
    let told = slow.daemon.nexus_ok(&["sessions", "stop", "dm:owner"]);
    assert!(told.starts_with("dm:owner: its turn was stopped (req_"), "{told}");
    let end = first.end();
    assert_eq!((&end["status"], end["text"].as_str().unwrap_or_default()), (&json!("completed"), ""));
    let by = "stopped: by `nexus sessions stop`".to_owned();
    assert_eq!(slow.row(1), ("completed".to_owned(), by.clone()));
    assert!(slow.daemon.nexus_ok(&["trace", "show", "1", "--json"]).contains(&by));
    eventually("its processes are gone", || !slow.is_at_work());
    assert_eq!(slow.daemon.count("nexus", "SELECT count(*) FROM deliveries"), 0, "half an answer was sent");
    let kept = "SELECT t.stop_reason || ': ' || trim(m.content, char(10)) FROM turns t JOIN messages m ON m.turn_id = t.turn_id
                WHERE m.role = 'assistant'";
    assert_eq!(slow.daemon.texts("agents", kept), ["aborted: half of it"]);
    for _ in 0..2 {
        assert_eq!(slow.daemon.nexus_ok(&["sessions", "stop", "dm:owner"]).trim(), "dm:owner: nothing runs");
    }
    assert_eq!(slow.daemon.nexus(&["sessions", "stop", "nobody"]).code, EXIT_NOT_FOUND);
}

#[test]
fn who_sent_the_message_of_a_stopped_turn_is_told_and_takes_nothing_for_an_answer() {
    let slow = Slow::start(json!({}));
    for (n, format) in [None, Some("--json")].into_iter().enumerate() {
        let words: Vec<&str> = ["send", "one"].into_iter().chain(format).collect();
        let ran = std::thread::scope(|scope| {
            let sent = scope.spawn(|| slow.daemon.nexus(&words));
            slow.called(n + 1);
            assert_eq!(slow.stop()["result"], "stopped");
            sent.join().unwrap()
        });
        assert_eq!(ran.code, Some(1), "{ran:?}");
        let told = if format.is_some() { &ran.stdout } else { &ran.stderr };
        assert!(told.contains("stopped: by `nexus sessions stop`"), "{ran:?}");
        assert!(format.is_some() || ran.stdout.is_empty(), "{ran:?}");
    }
}

#[test]
fn what_waits_goes_on_after_the_turn_that_was_stopped() {
    let slow = Slow::start(json!({}));
    let first = slow.send("one");
    slow.called(1);
    let second = slow.send("two");
    eventually("it waits", || slow.daemon.count("nexus", WAITING) == 1);
    assert_eq!(slow.stop()["result"], "stopped");
    assert_eq!(first.end()["status"], "completed");
    slow.called(2);
    slow.pass();
    assert_eq!(second.end()["text"].as_str().map(str::trim), Some("half of it\nand the rest"));
    assert_eq!(slow.told(), ["one", "two"]);
    assert_eq!(slow.row(2), ("completed".to_owned(), String::new()));
}

#[test]
fn the_owner_stops_a_turn_past_the_messages_that_wait_behind_it() {
    let slow = Slow::start(json!({}));
    let first = slow.send("one");
    slow.called(1);
    let second = slow.send("two");
    eventually("it waits", || slow.daemon.count("nexus", WAITING) == 1);
    let word = slow.send(" /stop ").end();
    assert_eq!((&word["status"], &word["text"]), (&json!("handled_by_automation"), &json!("Stopped.")));
    assert_eq!(word["reason"], "owner: /stop");
    assert_eq!(first.end()["status"], "completed");
    assert!(slow.row(1).1.starts_with("stopped: the owner said /stop (req_"), "{:?}", slow.row(1));
    slow.called(2);
    slow.pass();
    assert_eq!(second.end()["status"], "completed");
    assert_eq!(slow.told(), ["one", "two"], "an agent was given the word");
    assert_eq!(slow.send("/stop").end()["text"], "Nothing runs here.");
    assert_eq!(slow.daemon.nexus(&["doctor"]).code, Some(0));
}

#[test]
fn the_owner_begins_anew_and_asks_how_it_is() {
    let slow = Slow::start(json!({}));
    let say = |text: &str| slow.send(text).end()["text"].as_str().unwrap_or_default().to_owned();
    assert_eq!(say("/new"), "There is nothing to put away.");
    let first = slow.send("one");
    slow.called(1);
    let status = say("/status");
    assert!(status.starts_with("slow has been answering here for ") && status.contains(" s.\nThe daemon is "), "{status}");
    slow.pass();
    assert_eq!(first.end()["status"], "completed");
    assert!(say("/status").starts_with("Nothing runs here.\n"));
    assert_eq!(say("/new"), "This conversation begins anew; 1 turn is put away.");
    let second = slow.send("two");
    slow.called(2);
    slow.pass();
    assert_eq!(second.end()["status"], "completed");
    let history = json_lines(&slow.log)[1]["history"].clone();
    assert!(history.as_array().is_none_or(Vec::is_empty), "it was told what was put away: {history}");
    let sessions = slow.daemon.texts("agents", "SELECT label || ' ' || turns FROM sessions");
    assert_eq!(sessions, ["dm:owner 1"]);
    let undone = slow.daemon.nexus(&["sessions", "archive", "--undo", "dm:owner"]);
    assert!(undone.code == Some(1) && undone.stderr.contains("sessions fork dm:owner NEW-LABEL --at turn_"), "{undone:?}");
}

#[test]
fn words_can_be_switched_off() {
    let slow = Slow::start(json!({ "owner_words": false }));
    let ends = ["/stop", "/new", "/status"].map(|word| slow.send(word));
    for end in ends {
        slow.pass();
        assert_eq!(end.end()["status"], "completed");
    }
    assert_eq!(slow.told(), ["/stop", "/new", "/status"]);
}

#[test]
fn what_never_was_archived_is_not_taken_back() {
    let daemon = Daemon::start(&config(json!({})));
    daemon.nexus_ok(&["send", "one"]);
    let undone = daemon.nexus(&["sessions", "archive", "--undo", "dm:owner"]);
    assert!(undone.code == Some(1) && undone.stderr.contains("is not archived"), "{undone:?}");
}

fn line(n: u32, sender: &str, content: &str) -> String {
    line_at(n, sender, content, 1)
}

fn now_ms() -> i64 {
    i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis()).unwrap()
}

fn line_at(n: u32, sender: &str, content: &str, timestamp: i64) -> String {
    let event = json!({
        "event_id": format!("fake:{n}"), "timestamp": timestamp, "content": content, "content_type": "text", "channel": "fake",
        "account_id": "me", "sender_id": sender, "peer_id": sender, "peer_kind": "dm",
    });
    format!("{event}\n")
}

#[test]
fn a_strangers_word_is_a_message() {
    let mut daemon = Daemon::new();
    let (lines, sends) = (daemon.file("lines"), daemon.file("sends"));
    fs::write(&lines, line(1, "stranger", "/status") + &line(2, "me", "/status")).unwrap();
    let mut wanted = only("fake", json!({ "lines_file": lines, "send_log": sends }));
    wanted["access"] = json!({ "default": "allow", "owner": ["fake:me"] });
    daemon.configure(&wanted);
    daemon.launch();
    eventually("both are answered", || json_lines(&sends).len() == 2);
    let said_to = |peer: &str| json_lines(&sends).into_iter().find(|call| call["to"] == peer).unwrap()["text"].clone();
    assert_eq!(said_to("stranger"), "/status", "echoed, as every message is");
    assert!(said_to("me").as_str().is_some_and(|text| text.starts_with("Nothing runs here")), "{}", said_to("me"));
    eventually("both have an end", || daemon.terminal() == 2);
    assert_eq!((daemon.ended("completed"), daemon.ended("handled_by_automation")), (1, 1));
}

#[test]
fn a_kill_before_the_answer_left_neither_loses_nor_repeats_it() {
    let mut daemon = Daemon::new();
    let (lines, sends, how) = (daemon.file("lines"), daemon.file("sends"), daemon.file("how"));
    fs::write(&lines, line(1, "me", "/status")).unwrap();
    fs::write(&how, "hang").unwrap();
    let mut wanted = only("fake", json!({ "lines_file": lines, "send_log": sends, "send_file": how }));
    wanted["adapters"]["fake"]["send"] = json!({ "on_uncertain": "retry" });
    daemon.configure(&wanted);
    daemon.launch();
    eventually("its answer is on its way", || daemon.deliveries("sending") == 1);
    assert_eq!(daemon.ended("handled_by_automation"), 1, "the end and the answer are one commit");
    let key = daemon.texts("nexus", "SELECT idempotency_key FROM deliveries").remove(0);
    daemon.kill9();
    fs::write(&how, "ok").unwrap();
    daemon.launch();
    eventually("it is sent", || daemon.deliveries("sent") == 1);
    let sent = find("the adapter was told", || Some(json_lines(&sends)).filter(|sends| !sends.is_empty()));
    assert_eq!(sent.iter().map(|call| call["idempotency_key"].as_str().unwrap()).collect::<Vec<_>>(), [key.as_str()]);
    assert_eq!(daemon.count("nexus", "SELECT count(*) FROM deliveries"), 1);
    assert_eq!((daemon.accepted(), daemon.terminal()), (1, 1));
}

#[test]
fn a_kill_while_a_turn_is_stopped_leaves_one_end_for_each() {
    let mut slow = Slow::start(json!({}));
    let first = slow.send("one");
    slow.called(1);
    let word = slow.send("/stop");
    let accepted = "SELECT count(*) FROM events WHERE direction = 'inbound'";
    eventually("the word is accepted", || slow.daemon.count("events", accepted) == 2);
    slow.daemon.kill9();
    drop((first, word));
    slow.daemon.launch();
    eventually("both have an end", || slow.daemon.terminal() == 2);
    assert_eq!(slow.row(2), ("handled_by_automation".to_owned(), "owner: /stop".to_owned()));
    let answers = "SELECT count(*) FROM deliveries WHERE event_seq = 2";
    assert_eq!(slow.daemon.count("nexus", answers), 1);
    eventually("nothing is left", || !slow.is_at_work());
}

#[test]
fn a_turn_that_has_yet_to_begin_is_stopped_as_it_begins_and_the_next_is_not() {
    let slow = Slow::start_apart();
    let first = slow.send_in("a", "one");
    slow.called(1);
    let second = slow.send_in("b", "two");
    eventually("it waits for its agent", || slow.daemon.count("nexus", WAITING) == 1);
    assert_eq!(slow.send_in("b", "/stop").end()["text"], "Nothing runs here.");
    let third = slow.send_in("b", "three");
    slow.pass();
    assert_eq!(first.end()["status"], "completed");
    assert_eq!(second.end()["status"], "completed");
    assert!(slow.row(2).1.starts_with("stopped: the owner said /stop (req_"), "{:?}", slow.row(2));
    slow.called(2);
    slow.pass();
    assert_eq!(third.end()["text"].as_str().map(str::trim), Some("half of it\nand the rest"));
    assert_eq!(slow.told(), ["one", "three"]);
}

#[test]
fn a_word_that_no_daemon_heard_before_a_kill_stops_the_turn_that_runs_again() {
    let mut slow = Slow::start_apart();
    let first = slow.send_in("a", "one");
    slow.called(1);
    slow.daemon.kill9();
    drop(first);
    let insert = "INSERT INTO events (key, event_id, channel, account_id, adapter, direction, sender_id, sender_name, peer_id, peer_kind,
                    content_type, content, timestamp, received_at, disposition)
                  SELECT zeroblob(16), event_id || '-word', channel, account_id, adapter, direction, sender_id, sender_name, peer_id,
                    peer_kind, content_type, '/stop', timestamp, received_at, disposition FROM events WHERE seq = 1";
    let events = Connection::open(slow.daemon.workspace().join("data/events.db")).unwrap();
    assert_eq!(events.execute(insert, []).unwrap(), 1);
    drop(events);
    slow.daemon.launch();
    eventually("both have an end", || slow.daemon.terminal() == 2);
    assert!(slow.row(1).1.starts_with("stopped: the owner said /stop (req_"), "{:?}", slow.row(1));
    assert_eq!(slow.row(2), ("handled_by_automation".to_owned(), "owner: /stop".to_owned()));
    eventually("nothing is left", || !slow.is_at_work());
}

#[test]
fn words_that_come_hours_late_leave_alone_what_was_said_since() {
    let mut slow = Slow::start(json!({}));
    let first = slow.send("one");
    slow.called(1);
    slow.pass();
    assert_eq!(first.end()["status"], "completed");
    let second = slow.send("two");
    slow.called(2);
    let (lines, sends) = (slow.daemon.file("lines"), slow.daemon.file("sends"));
    let hours_ago = now_ms() - 2 * 60 * 60 * 1000;
    fs::write(&lines, line_at(1, "me", "/stop", hours_ago) + &line_at(2, "me", "/new", hours_ago)).unwrap();
    slow.wanted["adapters"] = json!({ "fake": fake(json!({ "lines_file": lines, "send_log": sends })) });
    slow.daemon.configure(&slow.wanted);
    slow.daemon.nexus_ok(&["daemon", "reload"]);
    eventually("both are answered", || json_lines(&sends).len() == 2);
    let mut answers: Vec<String> = json_lines(&sends).iter().map(|call| call["text"].as_str().unwrap().to_owned()).collect();
    answers.sort();
    assert!(answers[0].starts_with("This came late") && answers[1] == "What runs here came after that, and goes on.", "{answers:?}");
    slow.pass();
    assert_eq!(second.end()["text"].as_str().map(str::trim), Some("half of it\nand the rest"));
    let sessions = "SELECT label || ' ' || turns FROM sessions WHERE archived_at IS NULL";
    eventually("both turns are one session's", || slow.daemon.texts("agents", sessions) == ["dm:owner 2"]);
}

#[test]
fn the_owner_begins_anew_past_what_they_said_as_a_stranger() {
    let mut daemon = Daemon::new();
    let (lines, sends) = (daemon.file("lines"), daemon.file("sends"));
    fs::write(&lines, line(1, "me", "one")).unwrap();
    let mut wanted = only("fake", json!({ "lines_file": lines, "send_log": sends }));
    wanted["access"] = json!({ "default": "allow", "owner": [] });
    daemon.configure(&wanted);
    daemon.launch();
    let turns = "SELECT count(*) FROM turns";
    eventually("the stranger has a turn", || daemon.count("agents", turns) == 1 && daemon.deliveries("sent") == 1);
    daemon.stop();
    fs::write(&lines, line(1, "me", "one") + &line_at(2, "me", "/new", now_ms())).unwrap();
    wanted["access"]["owner"] = json!(["fake:me"]);
    daemon.configure(&wanted);
    daemon.launch();
    eventually("the word is answered", || json_lines(&sends).len() == 2);
    assert_eq!(json_lines(&sends)[1]["text"], "This conversation begins anew; 1 turn is put away.");
    assert_eq!(daemon.count("agents", "SELECT count(*) FROM sessions WHERE archived_at IS NULL"), 0);
}

#[test]
fn a_word_of_the_same_catch_up_stops_what_came_before_it_in_private_and_in_a_group() {
    let hours_ago = now_ms() - 2 * 60 * 60 * 1000;
    let private = line_at(1, "me", "one", hours_ago) + &line_at(2, "me", "/stop", hours_ago + 1_000);
    let in_group = line_at(3, "me", "two", hours_ago) + &line_at(4, "me", "/stop", hours_ago + 1_000);
    let in_group = in_group.replace(r#""peer_kind":"dm""#, r#""peer_kind":"group""#).replace(r#""peer_id":"me""#, r#""peer_id":"g""#);
    let mut slow = Slow::start(json!({}));
    let lines = slow.daemon.file("lines");
    fs::write(&lines, private + &in_group).unwrap();
    slow.wanted["adapters"] = json!({ "fake": fake(json!({ "lines_file": lines })) });
    slow.daemon.configure(&slow.wanted);
    slow.daemon.nexus_ok(&["daemon", "reload"]);
    eventually("all have an end", || slow.daemon.terminal() == 4);
    for (message, word) in [(1, 2), (3, 4)] {
        assert!(slow.row(message).1.starts_with("stopped: the owner said /stop (req_"), "{:?}", slow.row(message));
        assert_eq!(slow.row(word), ("handled_by_automation".to_owned(), "owner: /stop".to_owned()));
    }
    eventually("nothing is left", || !slow.is_at_work());
}

#[test]
fn a_models_turn_is_stopped_and_what_waits_is_asked_next() {
    let (model, replies) = Model::given();
    let mut wanted = config(json!({}));
    wanted["agents"] = json!({ "default": "model", "model": {
        "runner": "llm", "provider": "openai", "url": model.url(), "model": "m", "timeout_ms": 60_000,
    } });
    let daemon = Daemon::start(&wanted);
    let send = |text: &str| daemon.open(&Ask::post("/control/send", &json!({ "text": text }))).body;
    let first = send("one");
    eventually("the model is asked", || model.asked().len() == 1);
    let second = send("two");
    eventually("it waits", || daemon.count("nexus", WAITING) == 1);
    assert_eq!(send("/stop").end()["text"], "Stopped.");
    assert_eq!(first.end()["status"], "completed");
    replies.send(String::new()).unwrap(); // to who hung up
    replies.send(text("openai", "Second.")).unwrap();
    assert_eq!(second.end()["text"], "Second.");
    assert_eq!(daemon.count("nexus", "SELECT count(*) FROM nexus_requests WHERE reason LIKE 'stopped: %' AND event_seq = 1"), 1);
}
