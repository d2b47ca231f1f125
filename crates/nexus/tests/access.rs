//! Who is who and what they may, with the real daemon: what a person says takes effect at the next message, is
//! never lost, and every decision is kept once with its reason.
#![allow(clippy::unwrap_used)]

mod common;

use common::{Daemon, eventually, find, only};
use serde_json::{Value, json};
use std::fs;

const USAGE: Option<i32> = Some(2);
const NOT_RUNNING: Option<i32> = Some(3);
const NOT_FOUND: Option<i32> = Some(4);

/// One adapter that writes what stands in the file `lines` whenever it starts.
fn wanted(daemon: &Daemon, access: Value) -> Value {
    let mut config = only("fake", json!({ "lines_file": daemon.file("lines") }));
    config["access"] = access;
    config
}

fn start(access: Value) -> Daemon {
    let mut daemon = Daemon::new();
    fs::write(daemon.file("lines"), "").unwrap();
    daemon.configure(&wanted(&daemon, access));
    daemon.launch();
    daemon.adapter_once("fake/me", "running");
    daemon
}

fn line(n: u32, sender: &str) -> String {
    let event = json!({
        "event_id": format!("fake:{n}"), "timestamp": 0, "content": format!("message {n}"), "content_type": "text", "channel": "fake",
        "account_id": "me", "sender_id": sender, "peer_id": sender, "peer_kind": "dm",
    });
    format!("{event}\n")
}

/// The request of message `n`, once it has come to its end.
fn ended(daemon: &Daemon, n: u32) -> Value {
    find(&format!("message {n} comes to an end"), || {
        let answer = daemon.get(&format!("/control/trace/fake:{n}"));
        let request = (answer.status == 200).then(|| answer.json()["request"].take())?;
        Some(request).filter(|request| request["completed_at"].is_i64())
    })
}

/// `sender` writes message `n`; its request, once that has come to its end.
fn say(daemon: &Daemon, n: u32, sender: &str) -> Value {
    fs::write(daemon.file("lines"), line(n, sender)).unwrap();
    daemon.nexus_ok(&["adapter", "restart", "fake/me"]);
    ended(daemon, n)
}

fn access(daemon: &Daemon, args: &[&str]) -> Value {
    let text = daemon.nexus_ok(&[&["access"][..], args, &["--json"][..]].concat());
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error} in {text}"))
}

/// What the audit has, newest first, as `decision reason`.
fn audited(daemon: &Daemon, args: &[&str]) -> Vec<String> {
    let answer = access(daemon, &[&["audit"][..], args].concat());
    let decisions = answer["decisions"].as_array().unwrap();
    decisions.iter().map(|one| format!("{} {}", one["decision"].as_str().unwrap(), one["reason"].as_str().unwrap())).collect()
}

fn allow(name: &str, principal: Value) -> Value {
    json!({ "name": name, "effect": "allow", "match": { "principal": principal } })
}

#[test]
fn who_is_linked_is_known_at_the_next_message_and_each_decision_is_kept() {
    let daemon = start(json!({ "policies": [allow("family", json!({ "relationship": "family" }))] }));
    let stranger = say(&daemon, 1, "u1");
    assert_eq!((&stranger["status"], &stranger["reason"]), (&json!("denied"), &json!("no policy allows this sender")));
    let told = daemon.nexus_ok(&["access", "link", "fake:u1", "ann", "--name", "Ann", "--relationship", "family"]);
    assert!(told.contains("linked fake:u1 to ann, which is a new entity"), "{told}");
    let known = say(&daemon, 2, "u1");
    assert_eq!((&known["status"], &known["session"]), (&json!("completed"), &json!("dm:ann")));
    let principal = &known["trace"]["principal"];
    assert_eq!((&principal["type"], &principal["entity_id"], &principal["name"]), (&json!("known"), &json!("ann"), &json!("Ann")));
    let (allowed, denied) = ("allow allowed by policy `family`", "deny denied by `access.default`: no policy applies");
    assert_eq!(audited(&daemon, &[]), [allowed, denied]);
    assert_eq!(audited(&daemon, &["--denied"]), [denied]);
    assert_eq!(audited(&daemon, &["--limit", "1"]), [allowed]);
    assert_eq!(audited(&daemon, &["--sender", "fake:u1", "--since", "1h"]), [allowed, denied]);
    assert!(audited(&daemon, &["--sender", "fake:u2"]).is_empty());
    let row = &access(&daemon, &["audit"])["decisions"][0];
    assert_eq!((&row["principal"], &row["entity_id"], &row["policy"]), (&json!("known"), &json!("ann"), &json!("family")));
    assert_eq!((&row["request_id"], &row["account_id"]), (&known["request_id"], &json!("me")));

    let contact = find("the contact is there", || access(&daemon, &["who"])["contacts"].get(0).cloned());
    assert_eq!((&contact["sender_id"], &contact["entity"]["entity_id"]), (&json!("u1"), &json!("ann")));
    eventually("both messages are counted", || access(&daemon, &["who", "fake:u1"])["contact"]["messages"] == 2);
    assert_eq!(access(&daemon, &["who", "ann"])["entity"]["identities"][0]["link"]["source"], "owner");

    daemon.nexus_ok(&["access", "unlink", "fake:u1"]);
    assert_eq!(say(&daemon, 3, "u1")["status"], "denied");
    let unsure = daemon.nexus(&["access", "link", "fake:u1", "ann", "--confidence", "0.4"]);
    assert!(unsure.code == Some(0) && unsure.stderr.contains("makes nobody known"), "{unsure:?}");
    assert_eq!(access(&daemon, &["who", "fake:u1"])["link"]["counts"], false);
    assert_eq!(say(&daemon, 4, "u1")["status"], "denied");
    daemon.nexus_ok(&["access", "link", "fake:u1", "ann", "--confidence", "0.5"]);
    assert_eq!(say(&daemon, 5, "u1")["status"], "completed");
}

#[test]
fn a_contact_that_is_an_agent_is_none_of_the_known() {
    let policies = [allow("people", json!({ "type": "known" })), allow("agents", json!({ "type": "agent" }))];
    let daemon = start(json!({ "policies": policies }));
    daemon.nexus_ok(&["access", "link", "fake:u1", "bot", "--relationship", "agent"]);
    let bot = say(&daemon, 1, "u1");
    let decided = |request: &Value| (request["trace"]["principal"]["type"].clone(), request["trace"]["access"]["matched_policy"].clone());
    assert_eq!(decided(&bot), (json!("agent"), json!("agents")));
    assert_eq!(bot["session"], "dm:bot");
    daemon.nexus_ok(&["access", "set", "bot", "--relationship", "friend"]);
    assert_eq!(decided(&say(&daemon, 2, "u1")), (json!("known"), json!("people")));
}

#[test]
fn whoever_the_configuration_names_as_the_owner_is_shown_as_that() {
    let mut daemon = start(json!({ "owner": ["fake:u1"], "default": "allow" }));
    say(&daemon, 1, "u1");
    say(&daemon, 2, "u2");
    let entity_of = |daemon: &Daemon, sender: &str| {
        let all = access(daemon, &["who"])["contacts"].take();
        let contact = all.as_array().unwrap().iter().find(|contact| contact["sender_id"] == sender).cloned()?;
        Some(contact["entity"]["entity_id"].clone())
    };
    assert_eq!(find("the owner wrote", || entity_of(&daemon, "u1")), "owner");
    assert_eq!(find("somebody else wrote", || entity_of(&daemon, "u2")), Value::Null);
    let told = daemon.nexus_ok(&["access", "who", "fake:u1"]);
    assert!(told.contains("the owner, by `access.owner`"), "{told}");
    daemon.stop();
    assert_eq!(entity_of(&daemon, "u1"), Some(json!("owner")), "from the files");
}

#[test]
fn the_merged_have_their_tags_in_common_until_they_are_parted() {
    let daemon = start(json!({ "policies": [allow("trusted", json!({ "tags": ["trusted"] }))] }));
    daemon.nexus_ok(&["access", "link", "fake:u1", "ann"]);
    daemon.nexus_ok(&["access", "link", "fake:u2", "work"]);
    daemon.nexus_ok(&["access", "tag", "ann", "trusted", "old"]);
    daemon.nexus_ok(&["access", "untag", "ann", "old"]);
    assert_eq!(say(&daemon, 1, "u2")["status"], "denied");
    daemon.nexus_ok(&["access", "merge", "work", "ann"]);
    let merged = say(&daemon, 2, "u2");
    assert_eq!((&merged["status"], &merged["session"]), (&json!("completed"), &json!("dm:ann")));
    assert_eq!(merged["trace"]["principal"]["identities"], json!(["fake:u2", "fake:u1"]));
    assert_eq!(merged["trace"]["principal"]["tags"], json!(["trusted"]));
    let circle = daemon.nexus(&["access", "merge", "ann", "work"]);
    assert!(circle.code == Some(1) && circle.stderr.contains("counts as `ann` already"), "{circle:?}");
    daemon.nexus_ok(&["access", "set", "ann", "--name", "Ann"]);
    assert_eq!(access(&daemon, &["who", "work"])["entity"]["name"], "Ann");
    let told = daemon.nexus_ok(&["access", "unmerge", "work"]);
    assert!(told.contains("no longer as ann"), "{told}");
    assert_eq!(say(&daemon, 3, "u2")["status"], "denied");
    assert_eq!(say(&daemon, 4, "u1")["status"], "completed");
    for args in [&["merge", "work", "owner"][..], &["link", "fake:u2", "owner"], &["link", "fake:u3", "owner", "--name", "Mallory"]] {
        let told = daemon.nexus(&[&["access"][..], args].concat());
        assert!(told.code == Some(1) && told.stderr.contains("add --as-owner"), "{told:?}");
    }
    assert_eq!(say(&daemon, 5, "u2")["session"], Value::Null, "denied as before");
    assert_eq!(access(&daemon, &["check", "fake:u3"])["principal"]["type"], "unknown");
    let told = daemon.nexus(&["access", "merge", "work", "owner", "--as-owner"]);
    assert!(told.code == Some(0) && told.stderr.contains("makes nobody the owner"), "{told:?}");
    let told = daemon.nexus(&["access", "merge", "owner", "ann"]);
    assert!(told.code == Some(1) && told.stderr.contains("the owner can't be merged"), "{told:?}");
    assert_eq!(access(&daemon, &["check", "fake:u2"])["principal"]["type"], "known", "only the configuration names owners");
}

#[test]
fn a_merge_leaves_what_was_said_where_it_is_and_a_fork_takes_it_along() {
    let mut policy = allow("known", json!({ "type": "known" }));
    policy["permissions"] = json!({ "data_access": "contextual" });
    let mut daemon = Daemon::new();
    fs::write(daemon.file("lines"), "").unwrap();
    let mut config = wanted(&daemon, json!({ "policies": [policy] }));
    let notes = json!({ "runner": "command", "command": "sh -c 'cat > /dev/null; echo noted'" });
    config["agents"] = json!({ "default": "notes", "notes": notes });
    daemon.configure(&config);
    daemon.launch();
    daemon.adapter_once("fake/me", "running");
    for (sender, entity) in [("fake:u1", "zed"), ("fake:u2", "zoe"), ("fake:u3", "max")] {
        daemon.nexus_ok(&["access", "link", sender, entity]);
    }
    // The session that message `n` is in, and what of it the agent was told.
    let heard = |n: u32, sender: &str| {
        let request = say(&daemon, n, sender);
        (request["session"].as_str().unwrap().to_owned(), request["trace"]["agent"]["history_messages"].as_u64().unwrap())
    };
    assert_eq!(heard(1, "u1"), ("dm:zed".to_owned(), 0));
    daemon.nexus_ok(&["access", "merge", "zed", "max"]);
    assert_eq!(heard(2, "u1"), ("dm:max".to_owned(), 0));
    daemon.nexus_ok(&["access", "unmerge", "zed"]);
    assert_eq!(heard(3, "u1"), ("dm:zed".to_owned(), 2));
    daemon.nexus_ok(&["access", "merge", "zed", "zoe"]);
    eventually("both turns are kept", || daemon.count("agents", "SELECT count(*) FROM turns WHERE session = 'dm:zed'") == 2);
    daemon.nexus_ok(&["sessions", "fork", "dm:zed", "dm:zoe"]);
    assert_eq!(heard(4, "u1"), ("dm:zoe".to_owned(), 4));
}

/// Both say the same of message `n`: what was announced, and what was then decided.
fn agree(daemon: &Daemon, n: u32, sender: &str, expected: &str) {
    let announced = access(daemon, &["check", &format!("fake:{sender}"), "--account", "me"]);
    let request = say(daemon, n, sender);
    let decided = &request["trace"]["access"];
    assert_eq!(announced["decision"], expected, "{announced}");
    for key in ["decision", "matched_policy", "permissions", "queue_mode", "why"] {
        assert_eq!(announced[key], decided[key], "{key} of {sender}: {announced}, {decided}");
    }
    assert_eq!(announced["principal"], request["trace"]["principal"], "{sender}");
    assert_eq!((&announced["agent"], &announced["session_label"]), (&request["agent"], &request["session"]), "{sender}");
}

#[test]
fn a_check_announces_what_is_then_decided_and_a_reload_changes_both() {
    let shut = json!({ "name": "shut", "effect": "deny", "match": { "principal": { "entity": "bad" } }, "priority": -5 });
    let mut open = allow("open", json!({}));
    open["priority"] = json!(100);
    open["queue_mode"] = json!("steer-backlog");
    open["permissions"] = json!({ "tools": { "allow": ["calendar"] }, "data_access": "full" });
    let mut ann = allow("ann", json!({ "type": "known" }));
    ann["permissions"] = json!({ "tools": { "allow": ["mail"] }, "data_access": "minimal" });
    ann["session"] = json!({ "key": "people:{entity_id}" });
    ann["priority"] = json!(200);
    let daemon = start(json!({ "policies": [open, ann, shut] }));
    daemon.nexus_ok(&["access", "link", "fake:u1", "ann"]);
    daemon.nexus_ok(&["access", "link", "fake:u2", "bad"]);
    agree(&daemon, 1, "u1", "allow");
    agree(&daemon, 2, "u2", "deny");
    agree(&daemon, 3, "u3", "allow");
    let known = access(&daemon, &["check", "fake:u1"]);
    assert_eq!(known["permissions"]["tools"]["allow"], json!(["calendar", "mail"]), "lists are united");
    assert_eq!((&known["permissions"]["data_access"], &known["session_label"]), (&json!("minimal"), &json!("people:ann")));
    assert_eq!(access(&daemon, &["check", "fake:u3"])["queue_mode"], "steer");
    let told = daemon.nexus_ok(&["access", "check", "fake:u2"]);
    assert!(told.contains("fake:u2 would be denied") && told.contains("policy `shut` applies and denies"), "{told}");
    let names = |daemon: &Daemon| {
        let answer = access(daemon, &["policies"]);
        answer["policies"].as_array().unwrap().iter().map(|policy| policy["name"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(names(&daemon), ["open", "ann", "shut"]);

    daemon.configure(&wanted(&daemon, json!({ "policies": [allow("only", json!({ "entity": "bad" }))] })));
    assert_eq!(names(&daemon).len(), 3, "a file is not in force before it is loaded");
    daemon.nexus_ok(&["daemon", "reload"]);
    assert_eq!(names(&daemon), ["only"]);
    agree(&daemon, 4, "u1", "deny");
    agree(&daemon, 5, "u2", "allow");
    agree(&daemon, 6, "u3", "deny");
}

#[test]
fn hours_are_checked_by_any_time() {
    let night = json!([{ "time": "22:00-06:00", "days": ["fri"] }]);
    let daemon = start(json!({ "policies": [{ "name": "night", "effect": "allow", "match": { "conditions": night } }] }));
    let at = |time: &str| access(&daemon, &["check", "fake:u1", "--peer-kind", "group", "--peer", "g", "--at", time])["decision"].clone();
    assert_eq!((at("2026-01-02T23:30"), at("2026-01-03T05:59")), (json!("allow"), json!("allow")));
    assert_eq!((at("2026-01-02T12:00"), at("2026-01-03T06:00"), at("2026-01-03T23:30")), (json!("deny"), json!("deny"), json!("deny")));
}

#[test]
fn more_than_the_rate_is_denied_and_never_runs() {
    let mut few = allow("few", json!({}));
    few["rate"] = json!({ "per_minute": 1 });
    let mut daemon = Daemon::new();
    // All at once: the next place in the bucket is a minute away.
    let lines: String = (1..=4).map(|n| line(n, "u1")).chain([line(5, "u2")]).collect();
    fs::write(daemon.file("lines"), lines).unwrap();
    daemon.configure(&wanted(&daemon, json!({ "policies": [few] })));
    daemon.launch();
    let ends: Vec<Value> = (1..=5).map(|n| ended(&daemon, n)).collect();
    let statuses: Vec<&str> = ends.iter().map(|end| end["status"].as_str().unwrap()).collect();
    assert_eq!(statuses, ["completed", "denied", "denied", "denied", "completed"]);
    let reason = "rate limit of policy `few`: 1 per minute";
    assert!(ends[1..4].iter().all(|end| end["reason"] == reason), "{ends:?}");
    assert_eq!(daemon.count("nexus", "SELECT count(*) FROM runs"), 2);
    assert_eq!(audited(&daemon, &["--denied"]), [format!("deny {reason}"), format!("deny {reason}"), format!("deny {reason}")]);
    let check = access(&daemon, &["check", "fake:u1"]);
    assert_eq!((&check["decision"], &check["per_minute"]), (&json!("allow"), &json!(1)), "a check counts for nothing");
}

#[test]
fn a_link_outlives_a_kill() {
    let mut daemon = start(json!({ "policies": [allow("known", json!({ "type": "known" }))] }));
    daemon.nexus_ok(&["access", "link", "fake:u1", "ann", "--relationship", "family"]);
    daemon.nexus_ok(&["access", "tag", "ann", "trusted"]);
    daemon.kill9();
    daemon.launch();
    daemon.adapter_once("fake/me", "running");
    let known = say(&daemon, 1, "u1");
    assert_eq!(known["status"], "completed");
    assert_eq!(
        (&known["trace"]["principal"]["tags"], &known["trace"]["principal"]["relationship"]),
        (&json!(["trusted"]), &json!("family"))
    );
}

#[test]
fn a_request_that_runs_again_after_a_kill_has_one_row() {
    let mut daemon = Daemon::new();
    let gate = daemon.file("gate");
    rustix::fs::mknodat(rustix::fs::CWD, &gate, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
    fs::write(daemon.file("lines"), line(1, "u1")).unwrap();
    let mut config = wanted(&daemon, json!({ "policies": [allow("open", json!({}))] }));
    config["agents"] =
        json!({ "default": "gated", "gated": { "runner": "command", "command": format!("sh -c 'cat {gate} >/dev/null; echo done'") } });
    config["pipeline"] = json!({ "on_interrupted": "rerun" });
    daemon.configure(&config);
    daemon.launch();
    let runs = |daemon: &Daemon, attempt: u32| {
        daemon.count("nexus", &format!("SELECT count(*) FROM runs WHERE status = 'running' AND attempt = {attempt}"))
    };
    eventually("it runs", || runs(&daemon, 1) == 1);
    let row = "SELECT event_seq || ' ' || decision || ' ' || reason FROM access_audit";
    let expected = ["1 allow allowed by policy `open`"];
    assert_eq!(daemon.texts("nexus", row), expected, "written with the start of the run");
    daemon.kill9();
    assert_eq!(daemon.texts("nexus", row), expected);
    daemon.launch();
    eventually("it runs again", || runs(&daemon, 2) == 1);
    assert_eq!(daemon.texts("nexus", row), expected);
    fs::write(&gate, "").unwrap();
    assert_eq!(ended(&daemon, 1)["status"], "completed");
    assert_eq!(daemon.texts("nexus", row), expected);
}

#[test]
fn what_a_kill_interrupted_counts_for_no_rate_again() {
    let mut daemon = Daemon::new();
    // One sender in two places, and so in two sessions.
    let lines: String = (1..=2).map(|n| line(n, "u1").replace(r#""peer_id":"u1""#, &format!(r#""peer_id":"p{n}""#))).collect();
    fs::write(daemon.file("lines"), lines).unwrap();
    let config = |daemon: &Daemon, per_minute: u32| {
        let mut few = allow("few", json!({}));
        (few["rate"], few["session"]) = (json!({ "per_minute": per_minute }), json!({ "key": "{peer_id}" }));
        let mut config = wanted(daemon, json!({ "policies": [few] }));
        config["agents"] = json!({ "default": "stuck", "stuck": { "runner": "command", "command": "sleep 1000" } });
        config["pipeline"] = json!({ "on_interrupted": "rerun" });
        config
    };
    daemon.configure(&config(&daemon, 2));
    daemon.launch();
    let running = "SELECT count(*) FROM runs WHERE status = 'running' AND attempt = ";
    eventually("both run", || daemon.count("nexus", &format!("{running} 1")) == 2);
    daemon.kill9();
    daemon.configure(&config(&daemon, 1));
    daemon.launch();
    eventually("both run again", || daemon.count("nexus", &format!("{running} 2")) == 2);
}

#[test]
fn every_way_in_has_its_row() {
    let daemon = start(json!({}));
    daemon.nexus_ok(&["send", "hello"]);
    say(&daemon, 1, "u1");
    let replayed = daemon.nexus(&["events", "replay", "fake:1", "--wait"]);
    assert_eq!(replayed.code, Some(1), "denied again: {replayed:?}");
    let unlike = "SELECT count(*) FROM nexus_requests q LEFT JOIN access_audit a ON a.event_seq = q.event_seq
        WHERE a.request_id IS NOT q.request_id OR (a.decision = 'deny') <> (q.status = 'denied')";
    assert_eq!(daemon.count("nexus", unlike), 0);
    assert_eq!(daemon.count("nexus", "SELECT count(*) FROM access_audit"), 3);
    let principals = daemon.texts("nexus", "SELECT channel || ' ' || principal FROM access_audit ORDER BY event_seq");
    assert_eq!(principals, ["cli owner", "fake unknown", "fake unknown"]);
}

#[test]
fn what_is_known_can_be_asked_without_a_daemon_and_not_changed() {
    let mut daemon = start(json!({ "policies": [allow("family", json!({ "relationship": "family" }))] }));
    say(&daemon, 1, "u1");
    daemon.nexus_ok(&["access", "link", "fake:u1", "ann", "--relationship", "family"]);
    eventually("the contact is there", || daemon.count("identity", "SELECT count(*) FROM contacts WHERE channel = 'fake'") == 1);
    let asked: [&[&str]; 7] = [
        &["who"],
        &["who", "fake:u1"],
        &["who", "ann"],
        &["policies"],
        &["check", "fake:u1", "--at", "2026-01-02T23:30"],
        &["audit"],
        &["audit", "--denied", "--sender", "fake:u1"],
    ];
    let running: Vec<Value> = asked.iter().map(|args| access(&daemon, args)).collect();
    daemon.stop();
    for (args, before) in asked.iter().zip(&running) {
        assert_eq!(&access(&daemon, args), before, "{args:?}");
    }
    let changes: [&[&str]; 4] = [&["link", "fake:u2", "bob"], &["unlink", "fake:u1"], &["tag", "ann", "x"], &["merge", "ann", "owner"]];
    for args in changes {
        let ran = daemon.nexus(&[&["access"][..], args].concat());
        assert!(ran.code == NOT_RUNNING && ran.stderr.contains("not running"), "{args:?}: {ran:?}");
    }
    assert_eq!(daemon.count("identity", "SELECT count(*) FROM identity_mappings"), 1);
}

#[test]
fn mistakes_are_told_and_change_nothing() {
    let daemon = start(json!({}));
    daemon.nexus_ok(&["access", "link", "fake:u1", "ann"]);
    let cases: [(&[&str], Option<i32>, &str); 14] = [
        (&["link", "nobody", "ann"], USAGE, "CHANNEL:SENDER"),
        (&["link", "fake:u2", "two words"], USAGE, "is no entity id"),
        (&["link", "fake:u2", "bob", "--confidence", "1.5"], USAGE, "from 0 to 1"),
        (&["link", "fake channel:u2", "bob"], USAGE, "neither colon nor blank"),
        (&["tag", "ann", ""], USAGE, "must not be empty"),
        (&["set", "ann"], USAGE, "--name"),
        (&["check", "fake:u1", "--at", "yesterday"], USAGE, "2026-01-02T23:30"),
        (&["audit", "--since", "soon"], USAGE, "as in 1h"),
        (&["tag", "ghost", "x"], NOT_FOUND, "no entity `ghost`"),
        (&["merge", "ann", "ghost"], NOT_FOUND, "no entity `ghost`"),
        (&["unmerge", "ghost"], NOT_FOUND, "no entity `ghost`"),
        (&["who", "ghost"], NOT_FOUND, "`ghost`"),
        (&["who", "fake:ghost"], NOT_FOUND, "`fake:ghost`"),
        (&["merge", "ann", "ann"], Some(1), "into itself"),
    ];
    for (args, code, told) in cases {
        let ran = daemon.nexus(&[&["access"][..], args].concat());
        assert!(ran.code == code && ran.stderr.contains(told), "{args:?}: {ran:?}");
    }
    let body = json!({ "verb": "tag", "entity": "ann", "tags": ["x".repeat(1000)] });
    assert_eq!(daemon.post("/control/access/edit", &body).status, 400, "the daemon looks for itself");
    assert_eq!(daemon.count("identity", "SELECT count(*) FROM entities"), 2);
    assert_eq!(daemon.count("identity", "SELECT count(*) FROM entity_tags"), 0);
}

#[test]
fn a_template_that_names_a_template_is_refused_and_the_old_policies_stay() {
    let daemon = start(json!({ "policies": [allow("open", json!({}))] }));
    let template = |name: &str, key: &str| json!({ "name": name, "effect": "allow", "match": {}, "session": { "key": key } });
    daemon.configure(&wanted(&daemon, json!({ "policies": [template("a", "x-{b}"), template("b", "y-{a}")] })));
    let ran = daemon.nexus(&["daemon", "reload"]);
    assert_eq!(ran.code, Some(78), "{ran:?}");
    assert!(ran.stderr.contains("`key` names `{b}`") && ran.stderr.contains("`key` names `{a}`"), "{ran:?}");
    assert_eq!(access(&daemon, &["check", "fake:u1"])["matched_policy"], "open");
}

#[test]
fn a_policy_with_a_misspelt_key_is_refused_and_the_old_policies_stay() {
    let mut daemon = start(json!({ "policies": [allow("open", json!({ "type": "known" }))] }));
    let slips = json!([
        allow("tag", json!({ "tag": ["trusted"] })),
        { "name": "condition", "effect": "allow", "match": { "condition": [{ "channel": "mail" }] } },
        { "name": "chanel", "effect": "allow", "match": { "conditions": [{ "chanel": "mail" }] } },
        { "name": "tool", "effect": "allow", "match": {}, "permissions": { "tool": { "deny": ["*"] } } },
    ]);
    daemon.configure(&wanted(&daemon, json!({ "policies": slips })));
    let ran = daemon.nexus(&["daemon", "reload"]);
    assert_eq!(ran.code, Some(78), "{ran:?}");
    for slip in ["`tag` in `principal`", "`condition` in `match`", "`chanel` in `conditions`", "`tool` in `permissions`"] {
        assert!(ran.stderr.contains(&format!("unknown key {slip}; did you mean ")), "{slip}: {ran:?}");
    }
    assert_eq!(access(&daemon, &["check", "fake:u1"])["decision"], "deny");
    daemon.stop();
    assert_eq!(daemon.nexus(&["daemon", "start"]).code, Some(78));
}
