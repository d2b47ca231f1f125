//! The embedded relay as its clients see it: a real process, spoken to by WebSocket and HTTP.
#![allow(clippy::unwrap_used)]

mod common;
mod relays;

use common::{NEXUS, eventually, find, program};
use relays::{Client, Key, Relay, id, is_verified, now_s};
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::Output;
use tokio_tungstenite::tungstenite::Message;

struct Place {
    directory: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        Self { directory: tempfile::tempdir().unwrap() }
    }

    fn files(&self) -> PathBuf {
        self.directory.path().join("relay")
    }

    fn start(&self, more: &[&str]) -> Relay {
        Relay::start(&self.files(), more)
    }

    /// A relay that is not expected to run.
    fn refused(&self, more: &[&str]) -> Output {
        program(NEXUS).args(["nostr", "relay", "--directory"]).arg(self.files()).args(more).output().unwrap()
    }
}

fn contents(events: &[Value]) -> Vec<&str> {
    events.iter().map(|event| event["content"].as_str().unwrap()).collect()
}

/// One request over HTTP, and the answer as it comes.
fn http(address: &str, head: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(common::DEADLINE)).unwrap();
    stream.write_all(format!("{head}\r\nConnection: close\r\n\r\n").as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn what_is_published_is_told_live_and_after_a_kill() {
    let place = Place::new();
    let relay = place.start(&[]);
    let key = Key::new(1);
    let (mut reader, mut writer) = (Client::connect(relay.url()), Client::connect(relay.url()));
    assert!(reader.subscribe("all", &[json!({ "kinds": [1, 20_001] })]).is_empty());
    let note = key.sign(1, &[&["t", "x"]], "kept \u{1f600}");
    writer.published(&note);
    assert_eq!(reader.event("all"), note);
    assert_eq!(writer.publish(&note), (true, "duplicate: it is here already".to_owned()));
    let passing = key.sign(20_001, &[], "not kept");
    writer.published(&passing);
    assert_eq!(reader.event("all"), passing, "the duplicate was not told again");
    relay.kill9();
    let relay = place.start(&[]);
    let stored = Client::connect(relay.url()).stored(json!({ "#t": ["x"] }));
    assert_eq!(stored, std::slice::from_ref(&note));
    assert!(is_verified(&stored[0]));
    assert!(Client::connect(relay.url()).stored(json!({ "kinds": [20_001] })).is_empty());
}

#[test]
fn a_subscription_misses_nothing_and_tells_nothing_twice() {
    const EVENTS: usize = 300;
    let place = Place::new();
    let relay = place.start(&[]);
    let url = relay.url().to_owned();
    let writer = std::thread::spawn(move || {
        let (key, mut client) = (Key::new(1), Client::connect(&url));
        for n in 0..EVENTS {
            client.published(&key.sign(1, &[], &n.to_string()));
        }
    });
    // Subscribed in the middle of it, again and again.
    let mut reader = Client::connect(relay.url());
    let mut found = 0;
    while found < EVENTS {
        found = reader.stored(json!({ "kinds": [1] })).len();
        let mut client = Client::connect(relay.url());
        let mut seen: Vec<String> = client.subscribe("s", &[json!({ "kinds": [1] })]).iter().map(|event| id(event).to_owned()).collect();
        while seen.len() < EVENTS {
            seen.push(id(&client.event("s")).to_owned());
        }
        seen.sort();
        seen.dedup();
        assert_eq!(seen.len(), EVENTS);
    }
    writer.join().unwrap();
}

#[test]
fn many_events_at_once_are_answered_each() {
    const EVENTS: usize = 1_000;
    let place = Place::new();
    let relay = place.start(&[]);
    let (key, mut client) = (Key::new(1), Client::connect(relay.url()));
    let mut reading = Client::connect(relay.url());
    let events: Vec<Value> = (0..EVENTS).map(|n| key.sign(1, &[], &n.to_string())).collect();
    reading.subscribe("s", &[json!({ "kinds": [1] })]);
    for event in &events {
        client.say(&json!(["EVENT", event]));
    }
    for event in &events {
        let answer = client.next();
        assert_eq!((&answer[0], &answer[1], &answer[2]), (&json!("OK"), &event["id"], &json!(true)), "{answer}");
    }
    let told: Vec<Value> = events.iter().map(|_| reading.event("s")).collect();
    assert_eq!(told, events, "in the order in which they were kept");
}

#[test]
fn versions_deletions_and_ends_are_heeded() {
    let place = Place::new();
    let relay = place.start(&[]);
    let (key, other) = (Key::new(1), Key::new(2));
    let mut client = Client::connect(relay.url());
    let now = now_s();
    let version = |at, content: &str| key.sign_at(at, 31_933, &[&["d", "x:y"]], content);
    client.published(&version(now - 5, "second"));
    assert!(client.publish(&version(now - 6, "first")).1.starts_with("replaced: "));
    client.published(&version(now - 4, "third"));
    assert_eq!(contents(&client.stored(json!({ "kinds": [31_933] }))), ["third"]);
    let address = format!("31933:{}:x:y", key.public());
    client.published(&other.sign(5, &[&["a", &address]], "not mine"));
    assert_eq!(client.stored(json!({ "kinds": [31_933] })).len(), 1);
    client.published(&key.sign(5, &[&["a", &address]], "mine"));
    assert!(client.stored(json!({ "kinds": [31_933] })).is_empty());
    assert!(client.publish(&version(now - 3, "fourth")).1.starts_with("deleted: "));
    let note = key.sign(1, &[], "note");
    client.published(&note);
    client.published(&key.sign(5, &[&["e", id(&note)]], ""));
    assert!(client.stored(json!({ "ids": [id(&note)] })).is_empty());
    assert!(client.publish(&key.sign(1, &[&["expiration", &(now - 1).to_string()]], "")).1.starts_with("invalid: "));
    client.published(&key.sign(1, &[&["expiration", &(now + 2).to_string()]], "soon over"));
    eventually("an event is over", || client.stored(json!({ "kinds": [1] })).is_empty());
}

#[test]
fn who_must_say_who_it_is_is_heard_only_then() {
    let place = Place::new();
    let relay = place.start(&["--auth"]);
    let key = Key::new(1);
    let mut client = Client::connect(relay.url());
    let note = key.sign(1, &[], "note");
    client.say(&json!(["REQ", "s", {}]));
    let closed = client.until(|message| message[0] == "CLOSED");
    assert!(closed[2].as_str().unwrap().starts_with("auth-required: "), "{closed}");
    let mut client = Client::connect(relay.url());
    client.prove(&key, relay.url());
    client.published(&note);
    assert_eq!(client.stored(json!({})), [note]);
    // A proof for one connection is none for another.
    let mut thief = Client::connect(relay.url());
    let challenge = thief.until(|message| message[0] == "AUTH");
    let stale = key.sign(22_242, &[&["relay", relay.url()], &["challenge", "another"]], "");
    thief.say(&json!(["AUTH", stale]));
    assert_eq!(thief.until(|message| message[0] == "OK")[2], false, "{challenge}");
    let document = http(relay.address(), &format!("GET / HTTP/1.1\r\nHost: {}\r\nAccept: application/nostr+json", relay.address()));
    assert!(document.contains("\"auth_required\":true"), "{document}");
}

#[test]
fn it_describes_itself_and_refuses_pages_of_others() {
    let place = Place::new();
    let relay = place.start(&[]);
    let address = relay.address();
    let document = http(address, &format!("GET / HTTP/1.1\r\nHost: {address}\r\nAccept: application/nostr+json"));
    assert!(document.starts_with("HTTP/1.1 200"), "{document}");
    assert!(document.to_lowercase().contains("access-control-allow-origin: *"), "{document}");
    let (_, body) = document.split_once("\r\n\r\n").unwrap();
    let body: Value = serde_json::from_str(body).unwrap();
    assert_eq!(body["supported_nips"], json!([1, 9, 11, 40, 42]));
    assert_eq!(body["limitation"]["auth_required"], false);
    assert!(http(address, &format!("GET / HTTP/1.1\r\nHost: {address}")).starts_with("HTTP/1.1 200"));
    assert!(http(address, "GET / HTTP/1.1\r\nHost: evil.example").starts_with("HTTP/1.1 403"));
    assert!(http(address, &format!("POST / HTTP/1.1\r\nHost: {address}\r\nContent-Length: 0")).starts_with("HTTP/1.1 405"));
    let upgrade = "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==";
    let page = http(address, &format!("GET / HTTP/1.1\r\nHost: {address}\r\nOrigin: https://evil.example\r\n{upgrade}"));
    assert!(page.starts_with("HTTP/1.1 403"), "{page}");
}

#[test]
fn nonsense_and_excess_are_told_and_end_only_their_own_connection() {
    let place = Place::new();
    let relay = place.start(&[]);
    let key = Key::new(1);
    let mut calm = Client::connect(relay.url());
    calm.subscribe("s", &[json!({})]);
    let mut client = Client::connect(relay.url());
    let mut forged = key.sign(1, &[], "before");
    forged["content"] = json!("after");
    assert!(client.publish(&forged).1.starts_with("invalid: "));
    client.say_text("nonsense");
    assert_eq!(client.next()[0], "NOTICE");
    client.say(&json!(["REQ", "s", { "kinds": ["x"] }]));
    assert_eq!(client.next()[0], "CLOSED");
    for _ in 0..40 {
        if !client.try_say(Message::text("nonsense")) {
            break;
        }
    }
    assert!(client.closing().is_none_or(|code| code == 1008), "who talks nonsense is left");
    let mut large = Client::connect(relay.url());
    large.try_say(Message::text("x".repeat(1_000_000)));
    assert!(large.closing().is_none_or(|code| code == 1009));
    let mut binary = Client::connect(relay.url());
    binary.try_say(Message::binary(vec![0; 10]));
    assert_eq!(binary.next()[0], "NOTICE");
    let note = key.sign(1, &[], "note");
    Client::connect(relay.url()).published(&note);
    assert_eq!(calm.event("s"), note);
}

#[test]
fn one_that_does_not_read_does_not_hold_up_the_others() {
    // More than it is held for one connection, and than the kernel takes meanwhile.
    const EVENTS: usize = 12_000;
    let place = Place::new();
    let relay = place.start(&[]);
    let mut stuck = Client::connect(relay.url());
    stuck.subscribe("s", &[json!({ "kinds": [20_001] })]);
    let (key, text) = (Key::new(1), "x".repeat(4_000));
    let mut writer = Client::connect(relay.url());
    // One event, again and again: what isn't kept is never a duplicate.
    let event = key.sign(20_001, &[], &text);
    for _ in 0..EVENTS {
        writer.published(&event);
    }
    let last = key.sign(20_001, &[], "last");
    let mut reader = Client::connect(relay.url());
    reader.subscribe("s", &[json!({ "kinds": [20_001] })]);
    writer.published(&last);
    assert_eq!(reader.until(|message| message[0] == "EVENT" && message[2] == last)[2], last);
    // It was left behind, and may find that out when it reads.
    let mut told = 0;
    while stuck.try_next().is_some() {
        told += 1;
        assert!(told <= EVENTS, "it was not left");
    }
}

#[test]
fn it_stops_cleanly_and_its_place_is_its_own() {
    let place = Place::new();
    let relay = place.start(&[]);
    let second = place.refused(&["--listen", "127.0.0.1:0"]);
    assert_eq!(second.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&second.stderr).contains("another relay uses"), "{second:?}");
    let external = place.refused(&["--listen", "0.0.0.0:0"]);
    assert_eq!(external.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&external.stderr).contains("--allow-external"), "{external:?}");
    let mut client = Client::connect(relay.url());
    client.published(&Key::new(1).sign(1, &[], "note"));
    let address = relay.address().to_owned();
    assert_eq!(relay.stop().code(), Some(0));
    assert_eq!(client.closing(), Some(1001), "it says goodbye");
    let again =
        find("the address is free", || TcpStream::connect(&address).is_err().then(|| Relay::start_at(&place.files(), &address, &[])));
    assert_eq!(Client::connect(again.url()).stored(json!({})).len(), 1);
    let mode = |name: &str| std::os::unix::fs::MetadataExt::mode(&std::fs::metadata(place.files().join(name)).unwrap()) & 0o777;
    assert_eq!((mode("relay.db"), mode("relay.lock")), (0o600, 0o600));
}
