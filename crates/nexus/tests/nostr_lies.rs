//! A daemon that listens to a relay that lies, beside an honest one. Whatever it is told: it goes on, counts what it
//! refuses, keeps none of it, and hears what is true.
#![allow(clippy::unwrap_used)]

mod common;
mod relays;

use common::{Daemon, config, eventually, find};
use relays::{Client, Key, Lying, Relay, id};
use serde_json::{Value, json};
use std::collections::BTreeSet;

/// The lowest pause between two connections that fail at once, in ms.
const PAUSE_MS_MIN: u64 = 400;
/// Events of a flood that must have been refused before the honest one is sent.
const FLOOD_SEEN: u64 = 5_000;
/// How often the lying relay closes a subscription of a connection at random, and what it draws them from; any seed does.
const CLOSINGS: usize = 4;
const SEED: u64 = 7;

struct Scene {
    daemon: Daemon,
    lying: Lying,
    honest: Relay,
    user: Key,
    own: Key,
}

impl Scene {
    /// A daemon that listens to both relays, and to one user.
    fn new(lies: &[&str]) -> Self {
        let (user, own) = (Key::new(1), Key::new(9));
        let mut daemon = Daemon::new();
        let control = json!({ "secret": user.secret(), "tags": [["p", own.public()]], "seed": SEED, "events": [], "lies": lies });
        let lying = Lying::start(&daemon.root().join("lying"), control);
        let honest = Relay::start(&daemon.root().join("honest"), &[]);
        let mut settings = config(json!({}));
        settings["nostr"] = json!({
            "relays": [lying.url(), honest.url()],
            "auth": [lying.url()],
            "whitelist": [user.npub()],
            "secret_key": "nostr/daemon",
        });
        daemon.configure(&settings);
        let ran = daemon.nexus_told(&own.nsec(), &["credential", "set", "nostr/daemon"]);
        assert_eq!(ran.code, Some(0), "{ran:?}");
        daemon.launch();
        Self { daemon, lying, honest, user, own }
    }

    /// A message of the user to the daemon.
    fn message(&self, content: &str) -> Value {
        self.user.sign(1, &[&["p", &self.own.public()]], content)
    }

    fn status(&self) -> Value {
        let status = self.daemon.get("/control/nostr").json();
        let relays = status["relays"].as_array().expect("relays are a list");
        relays.iter().find(|relay| relay["url"] == self.lying.url()).cloned().expect("the lying relay is among them")
    }

    fn is(&self, state: &str) {
        eventually(&format!("the lying relay is {state}"), || self.status()["state"] == state);
    }

    /// Events of the lying relay that came to this end.
    fn counted(&self, result: &str) -> u64 {
        self.daemon.metric(&format!("nexus_nostr_events_total{{relay=\"{}\",result=\"{result}\"}}", self.lying.url()))
    }

    fn kept(&self) -> Vec<String> {
        self.daemon.texts("events", "SELECT event_id FROM events WHERE channel = 'nostr' AND direction = 'inbound' ORDER BY seq")
    }

    fn hears(&self, event: &Value) {
        let event_id = format!("nostr:{}", id(event));
        eventually(&format!("{} is kept", event["content"]), || self.kept().contains(&event_id));
    }

    /// Whatever the lying relay did: the daemon runs, and hears the honest one.
    fn goes_on(&mut self) {
        let event = self.message("by the honest relay");
        Client::connect(self.honest.url()).published(&event);
        self.hears(&event);
        assert!(self.daemon.is_running(), "{}", self.daemon.stderr());
    }

    /// What the lying relay tells truly is heard too, and nothing of what it lied is there.
    fn believes_only_the_truth(&mut self) {
        let event = self.message("by the lying relay");
        self.lying.add(&event);
        self.hears(&event);
        self.goes_on();
        assert_eq!(self.kept().len(), 2, "{:?}", self.kept());
    }

    /// What it says when it no longer lies is heard, and is all besides what the honest one said.
    fn believes_it_again(&mut self) {
        let event = self.message("by the relay that lied");
        self.lying.add(&event);
        self.hears(&event);
        assert_eq!(self.kept().len(), 2, "{:?}", self.kept());
    }

    /// The ids of all questions to the lying relay, in order.
    fn asked(&self) -> Vec<String> {
        self.lying.log("req").iter().map(|line| line["what"][1].as_str().unwrap().to_owned()).collect()
    }

    fn asked_each_by_its_own_id(&self) {
        let all = self.asked();
        let distinct: BTreeSet<&String> = all.iter().collect();
        assert_eq!(distinct.len(), all.len(), "no answer can be taken for that to another question: {all:?}");
    }

    /// Connections of the daemon so far, in Unix ms.
    fn connections(&self) -> Vec<u64> {
        self.lying.log("connection").iter().map(|line| line["at_ms"].as_u64().unwrap()).collect()
    }
}

/// What a question is about, and its number: behind the last dot of its id.
fn question(name: &str) -> (String, u64) {
    let (about, nth) = name.rsplit_once('.').unwrap();
    (about.to_owned(), nth.parse().unwrap())
}

/// Tells these lies; each of these ends was come to by some, and nothing else of it is left.
fn refused_as(lies: &[&str], results: &[&str]) {
    let mut scene = Scene::new(lies);
    for result in results {
        eventually(&format!("{lies:?} are counted as {result}"), || scene.counted(result) > 0);
    }
    scene.believes_only_the_truth();
}

/// Tells one lie; all of its so many events came to this end and none to another, and nothing of it is left.
fn all_refused_as(lie: &str, result: &str, many: u64) {
    let mut scene = Scene::new(&[lie]);
    eventually(&format!("all of {lie} is counted as {result}"), || scene.counted(result) == many);
    // Before there is more: what comes to a question that was closed a moment ago is unasked, however true it is.
    for end in ["too_long", "malformed", "unasked", "stranger", "wrong_id", "bad_signature"] {
        assert_eq!(scene.counted(end), if end == result { many } else { 0 }, "{lie} as {end}");
    }
    scene.believes_only_the_truth();
    assert_eq!(scene.counted(result), many, "{lie}");
}

#[test]
fn forged_events_are_refused() {
    all_refused_as("bad-signature", "bad_signature", 3);
    all_refused_as("wrong-id", "wrong_id", 3);
}

#[test]
fn events_that_are_none_are_refused() {
    all_refused_as("duplicate-keys", "malformed", 2);
    all_refused_as("lone-surrogates", "malformed", 3);
    all_refused_as("big-kind", "malformed", 4);
    all_refused_as("odd-dates", "malformed", 6);
    all_refused_as("non-string-tags", "malformed", 6);
}

#[test]
fn what_nobody_asked_for_is_dropped() {
    refused_as(&["outside-filter", "unknown-subscription"], &["unasked"]);
    refused_as(&["strangers"], &["stranger"]);
}

#[test]
fn one_id_with_two_signatures_is_one_event() {
    let mut scene = Scene::new(&["two-signatures"]);
    eventually("the forged one is counted", || scene.counted("bad_signature") > 0);
    eventually("the true one is kept", || scene.kept().len() == 1);
    scene.lying.set("lies", json!([]));
    scene.goes_on();
    assert_eq!(scene.kept().len(), 2);
}

#[test]
fn too_much_at_once_is_not_read() {
    for lie in ["many-tags", "long-content"] {
        let mut scene = Scene::new(&[lie]);
        eventually(&format!("{lie} is not taken"), || scene.counted("too_long") > 0 || scene.connections().len() > 1);
        scene.goes_on();
        // On a connection without the lie, if this one was given up.
        scene.lying.set("lies", json!([]));
        scene.believes_it_again();
    }
}

#[test]
fn an_event_from_the_future_hides_none_of_the_present() {
    let mut scene = Scene::new(&["future"]);
    scene.is("live");
    scene.lying.set("lies", json!([]));
    scene.daemon.stop();
    // It comes while nobody listens, with the date of today.
    let event = scene.message("meanwhile");
    scene.lying.add(&event);
    scene.daemon.launch();
    scene.hears(&event);
    scene.goes_on();
}

#[test]
fn who_forges_too_much_is_left_alone_for_a_while() {
    let mut scene = Scene::new(&["forgeries"]);
    eventually("some are counted", || scene.counted("bad_signature") > 0);
    scene.is("backoff");
    let before = scene.connections().len();
    scene.goes_on();
    assert_eq!(scene.connections().len(), before, "it is not connected to again at once");
    assert_eq!(scene.kept().len(), 1);
}

#[test]
fn a_subscription_that_is_closed_is_asked_again() {
    let mut scene = Scene::new(&["closed-at-first"]);
    eventually("a subscription is asked again", || {
        let all: Vec<String> = scene.asked().iter().map(|name| question(name).0).collect();
        all.iter().any(|name| all.iter().filter(|other| other == &name).count() > 1)
    });
    scene.asked_each_by_its_own_id();
    scene.believes_only_the_truth();
    scene.is("live");
}

#[test]
fn an_open_subscription_that_is_closed_is_asked_again() {
    let mut scene = Scene::new(&[]);
    scene.is("live");
    scene.lying.set("lies", json!(["closed-at-random"]));
    let closed = find("subscriptions are closed", || Some(scene.lying.log("closed")).filter(|all| all.len() == CLOSINGS));
    for line in &closed {
        let (about, nth) = question(line["what"][0].as_str().unwrap());
        let is_later = |name: &String| question(name).0 == about && question(name).1 > nth;
        eventually(&format!("{line} is asked again"), || scene.asked().iter().any(is_later));
    }
    scene.asked_each_by_its_own_id();
    scene.believes_only_the_truth();
    scene.is("live");
    assert_eq!((scene.connections().len(), scene.lying.log("closed").len()), (1, CLOSINGS), "it takes no connection with it");
}

#[test]
fn who_refuses_by_notice_or_never_ends_is_not_taken_for_live() {
    for lie in ["notice-only", "no-eose"] {
        let mut scene = Scene::new(&[lie]);
        eventually(&format!("{lie}: it is asked"), || !scene.lying.log("req").is_empty());
        scene.goes_on();
        assert_ne!(scene.status()["state"], "live", "{lie}");
        scene.is("deaf");
    }
}

#[test]
fn an_end_that_never_comes_holds_nothing_back() {
    let mut scene = Scene::new(&["no-eose"]);
    let event = scene.message("of an answer without an end");
    scene.lying.add(&event);
    scene.hears(&event);
    scene.is("deaf");
    scene.goes_on();
    assert_eq!(scene.kept().len(), 2);
    let whole = "SELECT count(*) FROM relay_cursors WHERE relay = ";
    assert_eq!(scene.daemon.count("events", &format!("{whole}'{}'", scene.lying.url())), 0, "nothing says that it told all");
}

#[test]
fn silence_is_not_health() {
    let mut scene = Scene::new(&["silence"]);
    eventually("it is connected to", || !scene.connections().is_empty());
    scene.goes_on();
    assert_ne!(scene.status()["state"], "live");
    scene.is("deaf");
}

#[test]
fn a_refusal_that_only_people_understand_is_no_answer() {
    let mut scene = Scene::new(&["notice-only"]);
    let event = scene.message("say something");
    Client::connect(scene.honest.url()).published(&event);
    eventually("the honest relay has the answer", || scene.daemon.deliveries("sent") == 1);
    let url = scene.lying.url().to_owned();
    let of_it = |scene: &Scene, and: &str| {
        scene.daemon.count("nexus", &format!("SELECT count(*) FROM nostr_outbox WHERE relay = '{url}' AND {and}"))
    };
    eventually("nobody waits for its word any more", || of_it(&scene, "status = 'pending' AND error LIKE '%no answer%'") == 1);
    scene.lying.set("lies", json!([]));
    eventually("it is offered again, and taken", || of_it(&scene, "status = 'accepted'") == 1);
    let answers = scene.lying.log("event").into_iter().filter(|line| line["what"]["kind"] == 1);
    let offered: Vec<String> = answers.map(|line| id(&line["what"]).to_owned()).collect();
    assert!(offered.len() > 1 && offered.iter().all(|one| *one == offered[0]), "{offered:?}");
}

#[test]
fn a_flood_of_strangers_drowns_nobody() {
    let mut scene = Scene::new(&["flood"]);
    eventually("the flood is counted", || scene.counted("stranger") > FLOOD_SEEN);
    scene.believes_only_the_truth();
}

#[test]
fn a_relay_that_breaks_off_is_come_back_to_after_a_pause() {
    for lie in ["disconnect-at-connect", "disconnect-at-handshake", "disconnect-at-auth", "disconnect-at-req", "disconnect-at-eose"] {
        let mut scene = Scene::new(&[lie]);
        let connections = find(&format!("{lie}: it comes back"), || Some(scene.connections()).filter(|all| all.len() > 2));
        let pauses: Vec<u64> = connections.windows(2).map(|pair| pair[1] - pair[0]).collect();
        assert!(pauses.iter().all(|pause| *pause >= PAUSE_MS_MIN), "{lie}: {pauses:?}");
        scene.goes_on();
        // Once it behaves, it is listened to.
        scene.lying.set("lies", json!([]));
        scene.believes_it_again();
    }
}

#[test]
fn what_came_before_the_connection_broke_off_is_kept_once() {
    let mut scene = Scene::new(&["disconnect-at-eose"]);
    let event = scene.message("before the end");
    scene.lying.add(&event);
    scene.hears(&event);
    eventually("it came again over the next connection", || scene.counted("known") > 0);
    scene.goes_on();
    scene.lying.set("lies", json!([]));
    scene.is("live");
    assert_eq!(scene.kept().len(), 2);
}

#[test]
fn a_connection_that_breaks_off_after_a_strangers_event_is_made_again() {
    let mut scene = Scene::new(&["disconnect-at-event", "strangers"]);
    eventually("strangers are counted", || scene.counted("stranger") > 0);
    scene.lying.set("lies", json!([]));
    scene.goes_on();
    scene.believes_it_again();
}

#[test]
fn an_answer_that_was_not_taken_is_published_again() {
    let mut scene = Scene::new(&["disconnect-at-publish"]);
    let event = scene.message("say something");
    scene.lying.add(&event);
    scene.hears(&event);
    let offered = |scene: &Scene| -> Vec<String> {
        let is_answer = |line: &&Value| line["what"]["kind"] == 1;
        scene.lying.log("event").iter().filter(is_answer).map(|line| id(&line["what"]).to_owned()).collect()
    };
    eventually("the answer is offered again", || offered(&scene).len() > 1);
    scene.lying.set("lies", json!([]));
    scene.goes_on();
    let answers = offered(&scene);
    let first = answers[0].clone();
    assert!(answers.iter().filter(|one| **one == first).count() > 1, "the same one, not another: {answers:?}");
}
