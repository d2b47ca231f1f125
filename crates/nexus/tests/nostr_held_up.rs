//! The Nostr client where one thing must not hold up another: what a relay has that is good for nothing and what is older
//! than that, what can't be taken in and what is to be published.
#![allow(clippy::unwrap_used)]

mod common;
mod relays;
mod scripted;

use common::{DEADLINE, Daemon, config, eventually};
use relays::{Key, now_s};
use rusqlite::Connection;
use scripted::Scripted;
use serde_json::{Value, json};

/// A daemon that listens to a relay and heeds one key, but denies whatever it asks for: no agent's time counts.
struct Scene {
    daemon: Daemon,
    relay: Scripted,
    ann: Key,
    own: String,
}

impl Scene {
    fn new() -> Self {
        let (relay, ann) = (Scripted::start(), Key::new(1));
        let mut all = config(json!({}));
        all["nostr"] = json!({ "relays": [relay.url()], "whitelist": [ann.npub()] });
        all["access"]["policies"] =
            json!([{ "name": "none", "priority": 1000, "match": { "principal": { "type": "known" } }, "effect": "deny" }]);
        let daemon = Daemon::start(&all);
        let own = daemon.get("/control/nostr").json()["pubkey"].as_str().expect("the daemon has a key").to_owned();
        let scene = Self { daemon, relay, ann, own };
        scene.live();
        scene
    }

    /// How the relay is.
    fn status(&self) -> Value {
        self.daemon.get("/control/nostr").json()["relays"][0].clone()
    }

    fn live(&self) {
        eventually("the relay is live", || self.status()["state"] == "live");
    }

    /// A message to the daemon, so many seconds old.
    fn message(&self, age_s: u64, content: &str) -> Value {
        self.ann.sign_at(now_s() - age_s, 1, &[&["p", &self.own]], content)
    }

    fn contents(&self) -> Vec<String> {
        self.daemon.texts("events", "SELECT content FROM events WHERE channel = 'nostr' AND direction = 'inbound' ORDER BY seq")
    }

    fn counted(&self, result: &str) -> u64 {
        self.daemon.metric(&format!("nexus_nostr_events_total{{relay=\"{}\",result=\"{result}\"}}", self.relay.url()))
    }
}

#[test]
fn what_is_refused_hides_nothing_that_is_older() {
    /// Characters of a message that is longer than what is looked at.
    const LONG: usize = 70_000;
    let scene = Scene::new();
    let forged = |age_s: u64| {
        let (mut event, other) = (scene.message(age_s, "forged"), scene.message(age_s, "another"));
        event["sig"] = other["sig"].clone();
        event
    };
    let long = |age_s: u64| scene.message(age_s, &"x".repeat(LONG));
    {
        let mut state = scene.relay.state();
        // Each answer of the relay has nothing but what is refused, until what is good comes.
        state.most = 2;
        state.events.extend([scene.message(300, "older than all of it"), long(203), long(202), forged(101), forged(100)]);
        state.hang_up();
    }
    eventually("what is older is heard", || scene.contents() == ["older than all of it"]);
    scene.live();
    assert!(scene.counted("bad_signature") >= 2 && scene.counted("too_long") >= 2);
    assert_eq!(scene.contents().len(), 1);
}

#[test]
fn what_is_to_be_published_leaves_while_nothing_can_be_taken_in() {
    /// A few more of that length than the 8 MiB that may wait to be taken in.
    const MANY: u64 = 145;
    const LONG: usize = 60_000;
    let scene = Scene::new();
    let large: Vec<Value> = (0..MANY).map(|n| scene.message(0, &format!("{n}{}", "x".repeat(LONG)))).collect();
    let ledger = Connection::open(scene.daemon.workspace().join("data/events.db")).unwrap();
    ledger.busy_timeout(DEADLINE).unwrap();
    ledger.execute_batch("BEGIN IMMEDIATE").unwrap();
    scene.relay.add(&scene.message(0, "first"));
    eventually("it can't be taken in", || scene.daemon.get("/health").json()["ledgers"]["events_db"] == "error");
    scene.relay.state().events.extend(large);
    let handed_on = || scene.status()["events"].as_u64().unwrap();
    eventually("there is no room for more", || handed_on() > MANY * 9 / 10);
    scene.daemon.post("/control/nostr/publish", &json!({ "kind": 1, "content": "hello", "once": "k" }));
    let published = || scene.daemon.count("nexus", "SELECT count(*) FROM nostr_published WHERE status = 'accepted'");
    eventually("the relay has it, and its word is heard", || published() == 1);
    assert_eq!(scene.relay.state().published.len(), 1);
    assert!(handed_on() < MANY, "there was room");
    ledger.execute_batch("COMMIT").unwrap();
    let taken_in = || scene.daemon.count("events", "SELECT count(*) FROM events WHERE channel = 'nostr' AND direction = 'inbound'");
    eventually("all of it is taken in", || taken_in() == i64::try_from(MANY).unwrap() + 1);
    assert_eq!(scene.contents()[0], "first", "in its order");
}
