//! What goes out: each reply once, under its own key; failures retried, given up or held for a person
//! as the platform's answer asks, and never sent twice in silence.
#![allow(clippy::unwrap_used)]

mod common;

use common::{DEADLINE, Daemon, eventually, find, json_lines, lines, only};
use rusqlite::Connection;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fs;

/// A little less than the fake platform's `retry_after_ms`.
const MOST_OF_THE_WISH_MS: i64 = 1_400;

/// A daemon whose adapter says `events` messages and answers sends as told; and its log of sends.
fn sending(events: u32, send: &str) -> (Daemon, String) {
    let mut daemon = Daemon::new();
    let sends = daemon.file("sends");
    let mut wanted = only(
        "fake",
        json!({ "events": events, "peers": 5, "send": send, "send_log": sends,
        "send_file": daemon.file("send-mode") }),
    );
    wanted["adapters"]["fake"]["send"] = json!({ "timeout_ms": 2000 });
    daemon.configure(&wanted);
    daemon.launch();
    (daemon, sends)
}

fn keys(calls: &[Value]) -> BTreeSet<String> {
    calls.iter().map(|call| call["idempotency_key"].as_str().unwrap_or_default().to_owned()).collect()
}

/// The only delivery, once it has this status.
fn delivery_once(daemon: &Daemon, status: &str) -> Value {
    find(&format!("the delivery is {status}"), || {
        let list = daemon.get("/control/deliveries?limit=10").json();
        let all = list["deliveries"].as_array().unwrap().clone();
        assert!(all.len() <= 1, "{list}");
        all.into_iter().find(|delivery| delivery["status"] == status)
    })
}

#[test]
fn every_reply_is_sent_once_under_its_own_key() {
    let (daemon, sends) = sending(20, "ok");
    eventually("all replies are sent", || daemon.deliveries("sent") == 20);
    let calls = json_lines(&sends);
    assert_eq!(calls.len(), 20);
    assert_eq!(keys(&calls).len(), 20, "a key was used twice");
    assert!(!keys(&calls).contains(""), "a reply without a key");
    let said: BTreeSet<&str> = calls.iter().filter_map(|call| call["text"].as_str()).collect();
    let expected: Vec<String> = (1..=20).map(|n| format!("message {n}")).collect();
    let expected: BTreeSet<&str> = expected.iter().map(String::as_str).collect();
    assert_eq!(said, expected);
    for call in &calls {
        let n: u32 = call["text"].as_str().unwrap().strip_prefix("message ").unwrap().parse().unwrap();
        assert_eq!(call["to"], format!("p{}", n % 5), "the reply went to somebody else: {call}");
        assert_eq!(call["account"], "me");
    }
    let known: BTreeSet<String> = daemon.texts("nexus", "SELECT idempotency_key FROM deliveries").into_iter().collect();
    assert_eq!(keys(&calls), known);
}

#[test]
fn a_lost_connection_is_tried_again_under_the_same_key() {
    let (daemon, sends) = sending(1, "fail_network_n:2");
    let delivery = delivery_once(&daemon, "sent");
    assert_eq!(delivery["attempts"], 3);
    let calls = json_lines(&sends);
    assert_eq!((calls.len(), keys(&calls).len()), (3, 1), "{calls:?}");
    assert_eq!(daemon.ended("completed"), 1);
}

#[test]
fn a_rate_limit_is_obeyed() {
    let (daemon, sends) = sending(1, "rate_limited");
    delivery_once(&daemon, "sent");
    let times: Vec<i64> = json_lines(&sends).iter().filter_map(|call| call["at"].as_i64()).collect();
    assert_eq!(times.len(), 2);
    assert!(times[1] - times[0] >= MOST_OF_THE_WISH_MS, "too early: {times:?}");
}

#[test]
fn what_can_never_arrive_is_not_tried_again() {
    let (daemon, sends) = sending(1, "not_found");
    let delivery = delivery_once(&daemon, "failed");
    assert_eq!(delivery["attempts"], 1);
    assert!(delivery["error"].as_str().is_some_and(|error| error.contains("no such peer")), "{delivery}");
    assert_eq!(lines(&sends).len(), 1);
    let counts = json!({ "uncertain": 0, "failed": 1, "expired": 0, "stuck": 0 });
    eventually("the status counts it", || daemon.status()["deliveries"] == counts);
    let status = daemon.nexus_ok(&["daemon", "status"]);
    assert!(status.contains("Undelivered: 1 failed"), "{status}");
    daemon.nexus_ok(&["deliveries", "discard", delivery["delivery_id"].as_str().unwrap()]);
    eventually("what was decided is no longer counted", || daemon.status()["deliveries"]["failed"] == 0);
}

#[test]
fn a_success_without_a_message_id_is_held_until_a_person_decides() {
    let (mut daemon, sends) = sending(1, "no_id");
    let held = delivery_once(&daemon, "uncertain");
    let counts = json!({ "uncertain": 1, "failed": 0, "expired": 0, "stuck": 1 });
    eventually("the status counts it", || daemon.status()["deliveries"] == counts);
    daemon.stop();
    daemon.launch();
    assert_eq!(delivery_once(&daemon, "uncertain")["delivery_id"], held["delivery_id"]);
    assert_eq!(lines(&sends).len(), 1, "sent again without being asked");
    fs::write(daemon.file("send-mode"), "ok").unwrap();
    let said = daemon.nexus_ok(&["deliveries", "retry", held["delivery_id"].as_str().unwrap()]);
    assert!(said.contains("was uncertain, now pending"), "{said}");
    delivery_once(&daemon, "sent");
    let calls = json_lines(&sends);
    assert_eq!((calls.len(), keys(&calls).len()), (2, 1), "{calls:?}");
    let again = daemon.nexus(&["deliveries", "retry", held["delivery_id"].as_str().unwrap()]);
    assert_eq!(again.code, Some(1), "what was sent can't be retried: {again:?}");
    assert_eq!(daemon.nexus(&["deliveries", "retry", "dlv_none"]).code, Some(4));
}

#[test]
fn many_are_decided_about_at_once_and_what_is_not_is_told() {
    let (daemon, sends) = sending(5, "no_id");
    eventually("all are uncertain", || daemon.deliveries("uncertain") == 5);
    let listed = daemon.nexus_ok(&["deliveries", "list", "--status", "uncertain", "--adapter", "fake"]);
    assert_eq!(listed.lines().count(), 5, "{listed}");
    for part in ["fake/me", " ago", "message 3"] {
        assert!(listed.contains(part), "no `{part}` in {listed}");
    }
    let of_other = daemon.nexus_ok(&["deliveries", "list", "--adapter", "other"]);
    assert_eq!(of_other, "");
    let ids = daemon.texts("nexus", "SELECT delivery_id FROM deliveries ORDER BY seq");
    let shown = daemon.nexus_ok(&["deliveries", "show", &ids[0]]);
    assert!(shown.contains("uncertain") && shown.contains("\n\nText\n  message "), "{shown}");
    assert_eq!(daemon.nexus(&["deliveries", "show", "dlv_none"]).code, Some(4));

    let ran = daemon.nexus(&["deliveries", "discard", &ids[0], "dlv_none", &ids[1], "--json"]);
    assert_eq!(ran.code, Some(1), "{ran:?}");
    let told: Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(told["decided"].as_array().map(Vec::len), Some(2), "{told}");
    assert_eq!((&told["undecided"][0]["delivery_id"], &told["more"]), (&json!("dlv_none"), &json!(false)), "{told}");
    assert_eq!(daemon.deliveries("discarded"), 2);

    let none = daemon.nexus_ok(&["deliveries", "retry", "--all", "--status", "uncertain", "--adapter", "other"]);
    assert_eq!(none.trim_end(), "decided: 0, not decided: 0");
    assert_eq!(daemon.deliveries("uncertain"), 3);
    fs::write(daemon.file("send-mode"), "ok").unwrap();
    let said = daemon.nexus_ok(&["deliveries", "retry", "--all", "--status", "uncertain", "--adapter", "fake"]);
    assert!(said.ends_with("decided: 3, not decided: 0\n"), "{said}");
    eventually("all that were held are sent", || daemon.deliveries("sent") == 3);
    assert_eq!((lines(&sends).len(), daemon.deliveries("discarded")), (8, 2));
}

#[test]
fn a_decision_in_view_of_another_status_does_not_count() {
    let (daemon, _) = sending(1, "no_id");
    let held = delivery_once(&daemon, "uncertain");
    let path = format!("/control/deliveries/{}/discard", held["delivery_id"].as_str().unwrap());
    assert_eq!(daemon.post(&format!("{path}?status=failed"), &json!({})).status, 409);
    assert_eq!(daemon.deliveries("uncertain"), 1);
    assert_eq!(daemon.post(&format!("{path}?status=uncertain"), &json!({})).status, 200);
    assert_eq!(daemon.deliveries("discarded"), 1);
}

#[test]
fn which_are_decided_about_is_said_in_one_way() {
    let daemon = Daemon::new();
    let wrongs = [
        &["retry"][..],
        &["retry", "dlv_1", "--all", "--status", "failed"],
        &["discard", "--all"],
        &["retry", "dlv_1", "--status", "failed"],
        &["discard", "dlv_1", "--adapter", "fake"],
        &["retry", "--status", "failed"],
        &["retry", "--all", "--status", "sent"],
    ];
    for wrong in wrongs {
        let ran = daemon.nexus(&[&["deliveries"][..], wrong].concat());
        assert_eq!(ran.code, Some(2), "{wrong:?}: {ran:?}");
    }
    let many: Vec<String> = (0..501).map(|n| format!("dlv_{n}")).collect();
    let args: Vec<&str> = ["deliveries", "discard"].into_iter().chain(many.iter().map(String::as_str)).collect();
    let ran = daemon.nexus(&args);
    assert_eq!(ran.code, Some(2), "{ran:?}");
    assert!(ran.stderr.contains("500 deliveries can be decided about at once; these are 501"), "{ran:?}");
}

#[test]
fn a_send_that_hangs_after_delivering_is_ended_and_may_be_discarded() {
    let (daemon, sends) = sending(1, "deliver_then_hang");
    let held = delivery_once(&daemon, "uncertain");
    let error = held["error"].as_str().unwrap_or_default();
    assert!(error.starts_with("adapter `fake`, account `me`: `send` did not end within 2 s"), "{held}");
    assert!(error.contains("adapters.fake.send.timeout_ms"), "{held}");
    assert_eq!(lines(&sends).len(), 1);
    let sends_run = || daemon.children().iter().any(|child| child.argv.contains(" send "));
    eventually("the hanging send is gone", || !sends_run());
    daemon.nexus_ok(&["deliveries", "discard", held["delivery_id"].as_str().unwrap()]);
    delivery_once(&daemon, "discarded");
    assert_eq!(lines(&sends).len(), 1);
}

#[test]
fn a_long_reply_is_split_and_nothing_of_it_is_lost() {
    let mut daemon = Daemon::new();
    let sends = daemon.file("sends");
    let behaviour = json!({ "events": 1, "content_bytes": 950, "text_limit": 100, "send_log": sends, "text_stdin": true });
    daemon.configure(&only("fake", behaviour));
    daemon.launch();
    eventually("the request ends", || daemon.ended("completed") == 1);
    eventually("all chunks are sent", || daemon.deliveries("pending") + daemon.deliveries("sending") == 0);
    let calls = json_lines(&sends);
    let chunks: Vec<&str> = calls.iter().filter_map(|call| call["text"].as_str()).collect();
    assert!(chunks.len() >= 10 && chunks.iter().all(|chunk| chunk.chars().count() <= 100), "{chunks:?}");
    assert_eq!(keys(&calls).len(), calls.len());
    let solid = |text: &str| text.split_whitespace().collect::<String>();
    let content = daemon.texts("events", "SELECT content FROM events WHERE direction = 'inbound'").remove(0);
    assert_eq!(solid(&chunks.concat()), solid(&content));
}

#[test]
fn a_reply_in_two_chunks_goes_on_where_a_kill_broke_it_off() {
    let mut daemon = Daemon::new();
    let sends = daemon.file("sends");
    // A word and a longer one, which a limit of 100 takes apart. After one chunk nobody can be reached.
    let behaviour = json!({
        "events": 2, "content_bytes": 105, "text_limit": 100, "send": "down_after:1", "send_log": sends,
        "send_file": daemon.file("send-mode"),
    });
    let mut wanted = only("fake", behaviour);
    // The kill may catch a send that is being refused.
    wanted["adapters"]["fake"]["send"] = json!({ "retries": 100, "on_uncertain": "retry" });
    daemon.configure(&wanted);
    daemon.launch();
    eventually("both are answered, and one chunk is sent", || daemon.ended("completed") == 2 && daemon.deliveries("sent") == 1);
    daemon.kill9();
    assert_eq!((daemon.deliveries("sent"), lines(&sends).len()), (1, 1), "the kill came too late");

    fs::write(daemon.file("send-mode"), "ok").unwrap();
    daemon.launch();
    eventually("the others follow", || daemon.deliveries("sent") == 4);
    let calls = json_lines(&sends);
    let said: Vec<&str> = calls.iter().filter_map(|call| call["idempotency_key"].as_str()).collect();
    let order = daemon.texts("nexus", "SELECT idempotency_key FROM deliveries ORDER BY seq");
    assert_eq!(said, order, "not each once and in order");
    let ends: Vec<&str> = said.iter().filter_map(|key| key.rsplit_once('/')).map(|(_, n)| n).collect();
    assert_eq!(ends, ["1", "2", "1", "2"]);
    let texts: Vec<String> = calls.iter().filter_map(|call| call["text"].as_str()).map(|text| text.chars().take(7).collect()).collect();
    assert_eq!(texts, ["message", "1xxxxxx", "message", "2xxxxxx"]);
    assert_eq!(daemon.count("nexus", "SELECT count(*) FROM runs"), 2, "an agent ran again");
    assert_eq!(daemon.ended("completed"), 2);
}

#[test]
fn a_ledger_that_cannot_be_read_makes_the_daemon_unhealthy() {
    let (daemon, _) = sending(1, "ok");
    let sent = delivery_once(&daemon, "sent");
    assert_eq!(daemon.get("/health").status, 200);
    let stranger = Connection::open(daemon.workspace().join("data/nexus.db")).unwrap();
    stranger.busy_timeout(DEADLINE).unwrap();
    stranger.execute_batch("ALTER TABLE deliveries RENAME TO mislaid").unwrap();
    eventually("health says so", || daemon.get("/health").status == 503);
    assert_eq!(daemon.get("/health").json()["ledgers"]["nexus_db"], "error");
    let reasons = daemon.status()["reasons"].to_string();
    assert!(reasons.contains("ledger `nexus_db` is not accessible"), "{reasons}");
    stranger.execute_batch("ALTER TABLE mislaid RENAME TO deliveries").unwrap();
    assert_eq!(delivery_once(&daemon, "sent")["delivery_id"], sent["delivery_id"]);
}
