//! What adapters and webhook senders may bring that is odd, wrong or huge: it is taken in whole or
//! refused with its reason, once, and what is good beside it goes on.
#![allow(clippy::unwrap_used)]

mod common;

use common::procfs::memory_kib;
use common::{Ask, DEADLINE, Daemon, Response, config, eventually, fake, find, http, json_lines, only};
use hmac::{Hmac, KeyInit, Mac};
use serde_json::{Value, json};
use sha2::Sha256;
use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;

/// The last millisecond of the year 9999.
const LAST_MS: i64 = 253_402_300_799_999;
/// In April 9999, which calendars of all time zones have.
const FAR_MS: i64 = 253_380_000_000_000;
const CONTENT_BYTES: usize = 1024 * 1024;
/// Longest text that travels as one argument, in characters.
const ARGUMENT_CHARS_MAX: usize = 25_000;
const SEND_LIMIT_MS: u64 = 2_000;
const SECRET: &str = "s3cret-of-the-hook";
/// A body of 100 MiB, in blocks.
const BLOCK_BYTES: usize = 64 * 1024;
const BLOCKS: usize = 1_600;
/// What such a body may cost the receiver at its peak, in KiB.
const BODY_COST_KIB_MAX: u64 = 32 * 1024;

/// An event of the account `me` as one line.
fn line(id: &str, change: Value) -> String {
    let mut event = json!({
        "event_id": format!("fake:{id}"), "timestamp": 0, "content": id, "content_type": "text", "channel": "fake",
        "account_id": "me", "sender_id": "u1", "peer_id": "p1", "peer_kind": "dm",
    });
    event.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
    format!("{event}\n")
}

/// A daemon whose adapter says these lines; the file can be changed and said again.
fn saying(lines: &str, more: Value) -> (Daemon, Value) {
    let daemon = Daemon::new();
    let file = daemon.file("lines");
    fs::write(&file, lines).unwrap();
    let mut behaviour = json!({ "lines_file": file });
    behaviour.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let wanted = only("fake", behaviour);
    daemon.configure(&wanted);
    (daemon, wanted)
}

#[test]
fn timestamps_at_the_ends_of_time_are_taken_and_those_beyond_are_refused() {
    let good = [("zero", 0), ("far", FAR_MS), ("last", LAST_MS)];
    let outside = [-1, i64::MIN, LAST_MS + 1];
    let no_integers = [json!(9_223_372_036_854_775_808_u64), json!(1e300), json!("soon"), json!(null)];
    let bad: Vec<Value> = outside.iter().map(|ms| json!(ms)).chain(no_integers).collect();
    let mut said: String = good.iter().map(|(id, ms)| line(id, json!({ "timestamp": ms }))).collect();
    said.extend(bad.iter().enumerate().map(|(n, time)| line(&format!("bad{n}"), json!({ "timestamp": time }))));
    let (mut daemon, mut wanted) = saying(&said, json!({ "supports": ["monitor", "send", "backfill"] }));
    let backfills = daemon.file("backfills");
    wanted["adapters"]["fake"]["accounts"]["me"]["config"]["backfill_log"] = json!(backfills);
    daemon.configure(&wanted);
    daemon.launch();
    eventually("the good ones are done", || daemon.ended("completed") == 3);
    let reasons = daemon.texts("events", "SELECT reason FROM rejected_lines WHERE code = 'not_an_event' ORDER BY seq");
    assert_eq!(reasons.len(), bad.len(), "{reasons:?}");
    for (ms, reason) in outside.iter().zip(&reasons) {
        assert!(reason.contains(&format!("timestamp {ms} is not Unix milliseconds up to the year 9999")), "{reason}");
    }
    assert_eq!(daemon.accepted(), 3);
    for (id, ms) in good {
        let event = daemon.nexus_ok(&["events", "show", &format!("fake:{id}"), "--json"]);
        assert_eq!(serde_json::from_str::<Value>(&event).unwrap()["timestamp"], ms, "{event}");
        daemon.nexus_ok(&["trace", &format!("fake:{id}")]);
    }
    assert!(daemon.nexus_ok(&["events", "show", "fake:far"]).contains("9999-04-"));
    daemon.nexus_ok(&["events"]);
    daemon.stop();
    // A time to come must not make the next catch-up begin then.
    daemon.launch();
    let call = find("it catches up", || json_lines(&backfills).into_iter().next());
    let since = call["since"].as_str().unwrap();
    assert!(since.starts_with("20") || since.starts_with("1970"), "{since}");
    assert_eq!(daemon.accepted(), 3);
}

#[test]
fn an_id_counts_once_whatever_comes_with_it_and_whoever_says_it() {
    let daemon = Daemon::new();
    let say = |account: &str| {
        let of = |content: &str| line("same", json!({ "account_id": account, "content": format!("{content} of {account}") }));
        let file = daemon.file(account);
        fs::write(&file, [of("first"), of("second")].concat()).unwrap();
        json!({ "config": { "lines_file": file } })
    };
    let mut adapter = fake(json!({}));
    adapter["accounts"] = json!({ "a": say("a"), "b": say("b") });
    let mut daemon = daemon;
    daemon.configure(&config(json!({ "fake": adapter })));
    daemon.launch();
    eventually("all are read", || daemon.metric("nexus_events_total{channel=\"fake\",result=\"duplicate\"}") == 3);
    eventually("the one is done", || daemon.ended("completed") == 1);
    let contents = daemon.texts("events", "SELECT content FROM events WHERE direction = 'inbound'");
    assert!(contents.len() == 1 && contents[0].starts_with("first of "), "{contents:?}");
    assert_eq!(daemon.count("nexus", "SELECT count(*) FROM runs"), 1);
    assert_eq!(daemon.count("events", "SELECT count(*) FROM rejected_lines"), 0);
}

#[test]
fn a_mebibyte_is_refused_with_the_limits_name_then_answered_whole_in_pieces() {
    let content = format!("{}end.", "wörd ".repeat((CONTENT_BYTES - 4) / 6));
    assert_eq!(content.len(), CONTENT_BYTES);
    let (mut daemon, mut wanted) = saying(&line("big", json!({ "content": content })), json!({}));
    let sends = daemon.file("sends");
    wanted["adapters"]["fake"]["accounts"]["me"]["config"]["send_log"] = json!(sends);
    daemon.configure(&wanted);
    daemon.launch();
    let reason = find("it is refused", || daemon.texts("events", "SELECT reason FROM rejected_lines").pop());
    assert!(reason.contains("max_line_bytes (1048576); shorten it or raise the limit"), "{reason}");
    wanted["adapters"]["fake"]["max_line_bytes"] = json!(2 * CONTENT_BYTES);
    daemon.configure(&wanted);
    daemon.nexus_ok(&["daemon", "reload"]);
    daemon.nexus_ok(&["adapter", "restart", "fake/me"]);
    eventually("it is answered", || daemon.ended("completed") == 1);
    eventually("all pieces are sent", || daemon.deliveries("pending") + daemon.deliveries("sending") == 0);
    assert_eq!(daemon.texts("events", "SELECT content FROM events WHERE direction = 'inbound'"), [content.as_str()]);
    let calls = json_lines(&sends);
    let pieces: Vec<&str> = calls.iter().filter_map(|call| call["text"].as_str()).collect();
    assert!(pieces.len() > content.chars().count() / ARGUMENT_CHARS_MAX, "{} pieces", pieces.len());
    assert_eq!(i64::try_from(pieces.len()).unwrap(), daemon.deliveries("sent"));
    assert!(pieces.iter().all(|piece| piece.chars().count() <= ARGUMENT_CHARS_MAX));
    let keys: BTreeSet<&str> = calls.iter().filter_map(|call| call["idempotency_key"].as_str()).collect();
    assert_eq!(keys.len(), pieces.len(), "two pieces under one key");
    assert!(pieces.iter().flat_map(|piece| piece.split_whitespace()).eq(content.split_whitespace()), "a word is lost, cut or out of order");
}

#[test]
fn a_send_that_hangs_holds_up_nobody_elses_and_leaves_no_process() {
    let mut daemon = Daemon::new();
    let sends = daemon.file("sends");
    let mut wanted = only("fake", json!({ "events": 5, "peers": 5, "hang_to": "p1", "send_log": sends }));
    wanted["adapters"]["fake"]["send"] = json!({ "timeout_ms": SEND_LIMIT_MS });
    daemon.configure(&wanted);
    daemon.launch();
    eventually("the others' replies are sent", || daemon.deliveries("sent") == 4);
    eventually("the hanging one is given up", || daemon.deliveries("uncertain") == 1);
    assert_eq!(json_lines(&sends).len(), 4);
    let held = daemon.get("/control/deliveries?status=uncertain&limit=10").json()["deliveries"][0].take();
    assert_eq!((&held["target"], &held["attempts"]), (&json!("p1"), &json!(1)), "{held}");
    let error = held["error"].as_str().unwrap_or_default();
    let limit = format!("did not end within {} s and was killed", SEND_LIMIT_MS / 1000);
    assert!(error.contains(&limit), "{held}");
    assert!(!daemon.children().iter().any(|child| child.argv.contains(" send ")), "{:?}", daemon.children());
    let shown = daemon.nexus_ok(&["deliveries", "list", "--status", "uncertain"]);
    assert!(shown.contains("p1"), "{shown}");
    daemon.stop();
    daemon.nothing_runs();
}

/// A daemon that receives webhooks signed as GitHub signs, and where.
fn receiving() -> (Daemon, String) {
    let mut daemon = Daemon::new();
    let address = http::free_address();
    nexus::credential::set(&daemon.workspace().join("state/credentials"), "ci/hook", SECRET).unwrap();
    let account = json!({ "credential_ref": "ci/hook", "config": { "verify": "github", "bind": address } });
    daemon.configure(&config(json!({ "webhook": { "command": "builtin:webhook", "accounts": { "hooks": account } } })));
    daemon.launch();
    eventually("it listens", || TcpStream::connect(&address).is_ok());
    (daemon, address)
}

fn signature(body: &str) -> String {
    let mac = Hmac::<Sha256>::new_from_slice(SECRET.as_bytes()).unwrap();
    let tag: [u8; 32] = mac.chain_update(body.as_bytes()).finalize().into_bytes().into();
    format!("sha256={}", hex::encode(tag))
}

fn connect(address: &str) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream.set_write_timeout(Some(DEADLINE)).unwrap();
    stream
}

fn deliver(address: &str, id: &str, body: &str, signature: &str) -> Response {
    let headers = [("x-github-delivery", id), ("x-github-event", "push"), ("x-hub-signature-256", signature)];
    let headers = headers.map(|(name, value)| (name, value.to_owned())).into();
    let ask = Ask { method: "POST", path: "/hooks", host: "localhost", headers, body: Some(body.to_owned()) };
    http::exchange(Box::new(connect(address)), &ask).unwrap()
}

fn recorded(daemon: &Daemon) -> Vec<String> {
    daemon.texts("events", "SELECT event_id FROM events WHERE channel = 'webhook' ORDER BY seq")
}

#[test]
fn a_webhook_with_a_bad_signature_is_refused_and_a_good_one_beside_it_is_recorded() {
    let (mut daemon, address) = receiving();
    let body = json!({ "ref": "main" }).to_string();
    let forged = [(signature("{}"), "the same secret"), ("sha256=00".to_owned(), "in the form"), ("nonsense".to_owned(), "in the form")];
    for (forged, advice) in forged {
        let answer = deliver(&address, "forged", &body, &forged);
        let told = answer.json();
        assert_eq!(answer.status, 401, "{answer:?}");
        assert!(told["error"].as_str().is_some_and(|error| error.contains("not verified")), "{told}");
        assert!(told["advice"].as_str().is_some_and(|told| told.contains(advice)), "{told}");
    }
    let answer = deliver(&address, "good", &body, &signature(&body));
    assert_eq!((answer.status, &answer.json()["event_id"]), (200, &json!("webhook:hooks:good")), "{answer:?}");
    assert_eq!(recorded(&daemon), ["webhook:hooks:good"], "200 means recorded, 401 means not");
    eventually("the refusals are logged", || daemon.stdout().contains("the request is not verified"));
    assert_eq!(daemon.adapter("webhook/hooks")["status"], "running");
    daemon.stop();
    daemon.nothing_runs();
    assert!(!daemon.stdout().contains(SECRET), "the secret is in the log");
}

/// Sends 100 MiB below this head, and reads the answer meanwhile: its status and body.
fn pour(address: &str, framing: &str) -> (u16, String) {
    let mut stream = connect(address);
    let head = format!(
        "POST /hooks HTTP/1.1\r\nhost: localhost\r\nx-github-delivery: huge\r\nx-hub-signature-256: {}\r\n{framing}\r\n\r\n",
        signature("")
    );
    stream.write_all(head.as_bytes()).unwrap();
    let mut block = vec![b'x'; BLOCK_BYTES];
    if framing.contains("chunked") {
        block = [format!("{BLOCK_BYTES:x}\r\n").into_bytes(), block, b"\r\n".to_vec()].concat();
    }
    let mut sender = stream.try_clone().unwrap();
    // Who is refused may be cut off before all is sent.
    let sending = std::thread::spawn(move || (0..BLOCKS).all(|_| sender.write_all(&block).is_ok()));
    let mut answer = http::answer(Box::new(stream)).unwrap();
    let mut body = String::new();
    answer.body.read_to_string(&mut body).unwrap();
    sending.join().unwrap();
    (answer.status, body)
}

#[test]
fn a_webhook_body_of_100_mib_is_refused_and_costs_little() {
    let (mut daemon, address) = receiving();
    assert_eq!(deliver(&address, "before", "{}", &signature("{}")).status, 200);
    let monitor = daemon.only_monitor();
    let before = memory_kib(monitor.pid, "VmHWM");
    for framing in [format!("content-length: {}", BLOCK_BYTES * BLOCKS), "transfer-encoding: chunked".to_owned()] {
        let (status, body) = pour(&address, &framing);
        assert_eq!(status, 413, "{framing}: {body}");
        assert!(body.contains("the body is larger than 786432 bytes") && body.contains("raise `max_body_bytes`"), "{body}");
    }
    let cost = memory_kib(monitor.pid, "VmHWM") - before;
    assert!(cost <= BODY_COST_KIB_MAX, "a refused body cost {cost} KiB");
    assert_eq!(deliver(&address, "after", "{}", &signature("{}")).status, 200);
    assert_eq!(recorded(&daemon), ["webhook:hooks:before", "webhook:hooks:after"]);
    assert!(monitor.is_alive(), "the receiver was restarted");
    daemon.stop();
    daemon.nothing_runs();
}
