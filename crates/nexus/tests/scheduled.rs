//! Slots of `timer.cron` that lead to an agent, end to end: its answers are sent where `deliver` says, each once, also
//! across `kill -9`; they keep no person waiting, and are never taken for a circle.
#![allow(clippy::unwrap_used)]

mod common;

use common::{Ask, Daemon, config, eventually, fake, find, json_lines, lines};
use rusqlite::Connection;
use serde_json::{Value, json};
use std::fs;
use std::time::{SystemTime, UNIX_EPOCH};

const DAY_MS: i64 = 24 * 60 * 60 * 1000;
/// A slot each month: none comes while a test runs.
const MONTHLY: &str = "0 0 1 * *";

/// How many months began since the oldest event of the timer.
const MONTHS: &str = "SELECT strftime('%Y', 'now') * 12 + strftime('%m', 'now')
    - strftime('%Y', min(timestamp) / 1000, 'unixepoch') * 12 - strftime('%m', min(timestamp) / 1000, 'unixepoch')
  FROM events WHERE channel = 'timer'";

/// A place whose daemon was last awake so many days ago: slots since then are missed, and fired at its start.
fn asleep_for(days: i64) -> Daemon {
    let mut daemon = Daemon::start(&config(json!({})));
    daemon.stop();
    let now = i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis()).unwrap();
    let slot = now - days * DAY_MS;
    let insert = "INSERT INTO events (key, event_id, channel, account_id, adapter, direction, sender_id, peer_id, peer_kind, content_type,
                    timestamp, received_at, disposition, content)
                  VALUES (zeroblob(16), ?1, 'timer', 'default', 'timer', 'inbound', 'system', 'system', 'dm', 'system/cron', ?2, ?2,
                    'history', '')";
    let events = Connection::open(daemon.workspace().join("data/events.db")).unwrap();
    events.execute(insert, rusqlite::params![format!("timer:cron:monthly:{slot}"), slot]).unwrap();
    daemon
}

/// A schedule that leads to an agent with this command, and a platform that behaves so; answers go to `boss`.
fn wanted(missed: &str, command: &str, behaviour: Value) -> Value {
    let mut wanted = config(json!({ "fake": fake(behaviour) }));
    let deliver = json!({ "adapter": "fake", "account": "me", "to": "boss" });
    let job = json!({ "expr": MONTHLY, "label": "monthly", "missed": missed, "max_lateness_ms": 365 * DAY_MS, "deliver": deliver });
    wanted["timer"] = json!({ "heartbeat_interval_ms": 0, "timezone": "UTC", "cron": [job] });
    wanted["agents"] = json!({ "default": "tells", "tells": { "runner": "command", "command": command, "max_concurrent": 1 } });
    wanted["access"]["policies"] = json!([{
        "name": "schedule", "match": { "principal": { "type": "system" } }, "effect": "allow", "session": { "agent": "tells" },
    }]);
    wanted
}

fn slots(daemon: &Daemon) -> i64 {
    daemon.count("events", "SELECT count(*) FROM events WHERE channel = 'timer' AND disposition = 'run'")
}

#[test]
fn each_slot_is_answered_where_its_entry_says_and_however_many_they_are() {
    let mut daemon = asleep_for(360);
    let sends = daemon.file("sends");
    let wanted = wanted("all", "sh -c 'cat > /dev/null; echo good morning'", json!({ "send_log": sends }));
    daemon.configure(&wanted);
    daemon.launch();
    let due = daemon.count("events", MONTHS);
    assert!(due > 10);
    eventually("all slots are fired and answered", || daemon.deliveries("sent") == due);
    assert_eq!((slots(&daemon), daemon.ended("completed")), (due, due), "all say the same, and each is meant");
    let sent = json_lines(&sends);
    assert_eq!(i64::try_from(sent.len()).unwrap(), due);
    assert!(sent.iter().all(|call| call["to"] == "boss" && call["account"] == "me" && call["reply_to_id"].is_null()), "{sent:?}");
    assert!(sent.iter().all(|call| call["text"].as_str().unwrap().trim() == "good morning"), "{sent:?}");
    assert_eq!(daemon.texts("nexus", "SELECT DISTINCT adapter || ' ' || channel FROM deliveries"), ["fake fake"]);
    let seq = daemon.count("nexus", "SELECT max(event_seq) FROM deliveries").to_string();
    assert!(daemon.nexus_ok(&["trace", "show", &seq, "--json"]).contains("\"boss\""));
    assert!(daemon.nexus_ok(&["sessions", "show", "system:monthly"]).contains("< good morning"));
}

#[test]
fn an_answer_that_a_kill_interrupts_is_made_again_and_sent_once() {
    let mut daemon = asleep_for(60);
    let (sends, log, gate) = (daemon.file("sends"), daemon.file("told"), daemon.file("gate"));
    let command = format!("sh -c 'cat >> {log}; until [ -e {gate} ]; do sleep 0.1; done; echo good morning'");
    let mut wanted = wanted("once", &command, json!({ "send_log": sends }));
    wanted["pipeline"] = json!({ "on_interrupted": "rerun" });
    daemon.configure(&wanted);
    daemon.launch();
    eventually("the agent is called", || json_lines(&log).len() == 1);
    daemon.kill9();
    daemon.launch();
    eventually("it is called again", || json_lines(&log).len() == 2);
    fs::write(&gate, "").unwrap();
    eventually("its answer is sent", || daemon.deliveries("sent") == 1);
    daemon.kill9();
    daemon.launch();
    assert_eq!(daemon.nexus_ok(&["send", "anything else?"]).trim(), "good morning");
    let sent = json_lines(&sends);
    assert_eq!((slots(&daemon), sent.len(), &sent[0]["to"]), (1, 1, &json!("boss")), "{sent:?}");
}

#[test]
fn an_answer_that_the_platform_refuses_is_kept_for_a_person() {
    let mut daemon = asleep_for(60);
    daemon.configure(&wanted("once", "sh -c 'cat > /dev/null; echo good morning'", json!({ "send": "not_found" })));
    daemon.launch();
    eventually("it has failed", || daemon.deliveries("failed") == 1);
    assert!(daemon.nexus_ok(&["deliveries", "list", "--status", "failed"]).contains("boss"));
    assert_eq!(daemon.ended("completed"), 1);
}

#[test]
fn what_nobody_could_be_told_is_not_asked() {
    let mut daemon = asleep_for(60);
    let log = daemon.file("told");
    daemon.configure(&wanted("once", &format!("sh -c 'cat >> {log}'"), json!({ "supports": ["monitor"] })));
    daemon.launch();
    eventually("it has failed", || daemon.ended("failed") == 1);
    let why = daemon.texts("nexus", "SELECT reason FROM nexus_requests WHERE status = 'failed'");
    assert!(why[0].starts_with("the answer could not be delivered: adapter `fake` can't send"), "{why:?}");
    assert!(lines(&log).is_empty(), "the agent was called");
}

#[test]
fn a_place_that_is_not_there_is_a_mistake_of_the_configuration() {
    let daemon = Daemon::new();
    let mut wanted = wanted("once", "true", json!({}));
    wanted["timer"]["cron"][0]["deliver"]["account"] = json!("nobody");
    daemon.configure(&wanted);
    let checked = daemon.nexus(&["config", "check"]);
    assert_eq!(checked.code, Some(78), "{checked:?}");
    let told = checked.stdout + &checked.stderr;
    assert!(told.contains("`nobody` is not an account of `fake`, which has me"), "{told}");
}

#[test]
fn a_turn_of_the_timer_takes_nobodys_slot() {
    let mut daemon = asleep_for(60);
    let (started, gate) = (daemon.file("started"), daemon.file("gate"));
    let of_timer = format!("echo begun >> {started}; until [ -e {gate} ]; do sleep 0.1; done; echo done");
    let command = format!("sh -c 'told=$(cat); case $told in *\\\"channel\\\":\\\"timer\\\"*) {of_timer} ;; *) echo here ;; esac'");
    let sends = daemon.file("sends");
    daemon.configure(&wanted("once", &command, json!({ "send_log": sends })));
    daemon.launch();
    eventually("the timer's turn is under way", || lines(&started).len() == 1);
    assert_eq!(daemon.nexus_ok(&["send", "are", "you", "there"]).trim(), "here");
    assert_eq!(daemon.texts("nexus", "SELECT session FROM runs WHERE status = 'running'"), ["system:monthly"]);
    fs::write(&gate, "").unwrap();
    eventually("the timer's turn ends", || json_lines(&sends).len() == 1);
    assert_eq!(json_lines(&sends)[0]["text"].as_str().map(str::trim), Some("done"));
}

#[test]
fn whoever_waits_for_an_answer_hears_that_a_kill_took_it() {
    let mut daemon = asleep_for(60);
    let (sends, log) = (daemon.file("sends"), daemon.file("told"));
    let command = format!("sh -c 'cat >> {log}; sleep 100000'");
    daemon.configure(&wanted("once", &command, json!({ "send_log": sends })));
    daemon.launch();
    eventually("the agent is called", || json_lines(&log).len() == 1);
    let known = "SELECT count(*) FROM adapter_instances WHERE adapter = 'fake' AND channel = 'fake'";
    eventually("the adapter's channel is known", || daemon.count("nexus", known) == 1);
    daemon.kill9();
    daemon.launch();
    let told = find("it is told", || json_lines(&sends).pop());
    assert_eq!((&told["to"], &told["account"]), (&json!("boss"), &json!("me")));
    assert_eq!(told["text"], "The scheduled `monthly` was interrupted while it was being answered.");
    assert_eq!((daemon.ended("failed"), json_lines(&log).len()), (1, 1));
}

#[test]
fn whoever_wrote_nothing_is_not_told_of_their_message() {
    let mut daemon = asleep_for(60);
    let sends = daemon.file("sends");
    daemon.configure(&wanted("once", "sh -c 'cat > /dev/null; exit 3'", json!({ "send_log": sends })));
    daemon.launch();
    let told = find("it is told", || json_lines(&sends).pop());
    assert_eq!(told["text"], "The agent failed; the scheduled `monthly` was not answered.");
}

#[test]
fn the_notices_of_a_slot_name_the_timer_and_its_account() {
    let mut daemon = asleep_for(60);
    daemon.configure(&wanted("once", "sh -c 'cat > /dev/null; echo good morning'", json!({})));
    daemon.launch();
    eventually("it is answered", || daemon.deliveries("sent") == 1);
    let kinds = ["nex.request.started", "nex.request.stage", "nex.request.completed"];
    let mut notices = daemon.sse(&Ask::get(&format!("/api/events/stream?types={}&since=0:0", kinds.join(","))));
    assert_eq!(notices.wait().event, "gap", "no daemon has this place");
    let mut last = String::new();
    while last != kinds[2] {
        let notice = notices.wait();
        let said = notice.json()["properties"].clone();
        assert_eq!((&said["adapter"], &said["account"]), (&json!("timer"), &json!("default")), "{} {said}", notice.event);
        last = notice.event;
    }
}
