//! The Nostr client where one thing must not hold up another: what a relay has that is good for nothing and what is older
//! than that, what can't be taken in and what is to be published.
#![allow(clippy::unwrap_used)]

mod common;
mod relays;
mod scripted;

use common::{DEADLINE, Daemon, config, eventually};
use relays::{Key, now_s};
use rusqlite::Connection;
use scripted::{Scripted, State};
use serde_json::{Value, json};

/// Large messages, a few more than the 8 MiB that may wait to be taken in; and characters of one.
const MANY: u64 = 145;
const LONG: usize = 60_000;

/// A daemon that listens to a relay and heeds one key, but denies whatever it asks for: no agent's time counts.
struct Scene {
    daemon: Daemon,
    relay: Scripted,
    ann: Key,
    own: String,
}

impl Scene {
    fn new() -> Self {
        let scene = Self::with(|_, _| {});
        scene.live();
        scene
    }

    /// With a relay that was told something before; whether it is heard yet is not waited for.
    fn with(tell: impl FnOnce(&mut State, &Key)) -> Self {
        let (relay, ann) = (Scripted::start(), Key::new(1));
        tell(&mut relay.state(), &ann);
        let mut daemon = Daemon::new();
        let mut all = config(json!({}));
        all["projects"] = json!({ "path": daemon.file("projects") });
        all["nostr"] = json!({ "relays": [relay.url()], "whitelist": [ann.npub()] });
        all["access"]["policies"] =
            json!([{ "name": "none", "priority": 1000, "match": { "principal": { "type": "known" } }, "effect": "deny" }]);
        daemon.configure(&all);
        daemon.launch();
        let own = daemon.get("/control/nostr").json()["pubkey"].as_str().expect("the daemon has a key").to_owned();
        Self { daemon, relay, ann, own }
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

    fn taken_in(&self) -> i64 {
        self.daemon.count("events", "SELECT count(*) FROM events WHERE channel = 'nostr' AND direction = 'inbound'")
    }

    fn handed_on(&self) -> u64 {
        self.status()["events"].as_u64().unwrap()
    }

    fn large(&self, many: u64) -> Vec<Value> {
        (0..many).map(|n| self.message(0, &format!("{n}{}", "x".repeat(LONG)))).collect()
    }

    /// Has nothing be taken in any more, from a first message on, until this is committed.
    fn lock(&self) -> Connection {
        let ledger = Connection::open(self.daemon.workspace().join("data/events.db")).unwrap();
        ledger.busy_timeout(DEADLINE).unwrap();
        ledger.execute_batch("BEGIN IMMEDIATE").unwrap();
        self.relay.add(&self.message(0, "first"));
        eventually("it can't be taken in", || self.daemon.get("/health").json()["ledgers"]["events_db"] == "error");
        ledger
    }

    /// Has so much come live that there is no room for the rest of it, as [`Self::lock`].
    fn hold_up(&self) -> Connection {
        let (large, ledger) = (self.large(MANY), self.lock());
        self.relay.state().events.extend(large);
        eventually("there is no room for more", || self.handed_on() > MANY * 9 / 10);
        ledger
    }

    fn publish(&self) {
        self.daemon.post("/control/nostr/publish", &json!({ "kind": 1, "content": "hello", "once": "k" }));
    }

    fn published(&self) -> i64 {
        self.daemon.count("nexus", "SELECT count(*) FROM nostr_published WHERE status = 'accepted'")
    }

    /// The questions about subscriptions whose id begins so, but for those about their pages.
    fn asked(&self, prefix: &str) -> usize {
        let is_of = |id: &str| id.starts_with(prefix) && !id.contains("-p.");
        self.relay.state().of("REQ").iter().filter(|request| is_of(request[1].as_str().unwrap())).count()
    }

    fn counted(&self, result: &str) -> u64 {
        self.daemon.metric(&format!("nexus_nostr_events_total{{relay=\"{}\",result=\"{result}\"}}", self.relay.url()))
    }
}

#[test]
fn a_second_of_which_a_relay_gives_only_a_part_is_counted() {
    let scene = Scene::with(|state, ann| {
        let at = now_s() - 30;
        state.most = 100;
        state.events = (0..150).map(|n| ann.sign_at(at, 1, &[], &n.to_string())).collect();
    });
    scene.live();
    let holes = scene.status()["holes"].as_u64().unwrap();
    assert!(holes > 0, "{}", scene.status());
    assert_eq!(scene.daemon.get("/health").json()["nostr"]["holes"], holes);
    assert_eq!(scene.daemon.metric(&format!("nexus_nostr_holes_total{{relay=\"{}\"}}", scene.relay.url())), holes);
    assert!(scene.daemon.stdout().contains("events may be missing"));
}

#[test]
fn what_is_refused_hides_nothing_that_is_older() {
    /// Characters of a message that is longer than what is looked at.
    const TOO_LONG: usize = 70_000;
    let scene = Scene::new();
    let forged = |age_s: u64| {
        let (mut event, other) = (scene.message(age_s, "forged"), scene.message(age_s, "another"));
        event["sig"] = other["sig"].clone();
        event
    };
    let long = |age_s: u64| scene.message(age_s, &"x".repeat(TOO_LONG));
    {
        let mut state = scene.relay.state();
        // Each answer of the relay has nothing but what is refused, until what is good comes.
        state.most = 2;
        state.events.extend([scene.message(50, "older than all of it"), long(33), long(32), forged(21), forged(20)]);
        state.hang_up();
    }
    eventually("what is older is heard", || scene.contents() == ["older than all of it"]);
    scene.live();
    assert!(scene.counted("bad_signature") >= 2 && scene.counted("too_long") >= 2);
    assert_eq!(scene.contents().len(), 1);
}

#[test]
fn what_is_to_be_published_leaves_while_nothing_can_be_taken_in() {
    let scene = Scene::new();
    let ledger = scene.hold_up();
    scene.publish();
    eventually("the relay has it, and its word is heard", || scene.published() == 1);
    assert_eq!(scene.relay.state().published.len(), 1);
    assert!(scene.handed_on() < MANY, "there was room");
    ledger.execute_batch("COMMIT").unwrap();
    eventually("all of it is taken in", || scene.taken_in() == i64::try_from(MANY).unwrap() + 1);
    assert_eq!(scene.contents()[0], "first", "in its order");
}

#[test]
fn a_connection_that_is_lost_while_nothing_can_be_taken_in_is_made_again_for_what_is_to_be_published() {
    let scene = Scene::new();
    let ledger = scene.hold_up();
    scene.relay.state().silent = true;
    scene.publish();
    eventually("the relay has it, and says nothing", || scene.relay.state().published.len() == 1);
    let asked = scene.relay.state().of("REQ").len();
    {
        let mut state = scene.relay.state();
        state.silent = false;
        state.hang_up();
    }
    eventually("it is published over the next connection", || scene.published() == 1);
    scene.relay.hang_up();
    scene.daemon.post("/control/nostr/publish", &json!({ "kind": 1, "content": "hello again", "once": "l" }));
    eventually("and over the one after that", || scene.published() == 2);
    assert!(scene.handed_on() < MANY, "there was room");
    assert_eq!(scene.relay.state().of("REQ").len(), asked, "there is no room for what it would be asked for");
    assert_ne!(scene.status()["state"], "live", "nothing is heard over it");
    ledger.execute_batch("COMMIT").unwrap();
    scene.live();
    eventually("all of it is taken in", || scene.taken_in() == i64::try_from(MANY).unwrap() + 1);
}

#[test]
fn a_connection_that_is_lost_in_the_middle_of_what_was_stored_holds_up_nothing_that_is_to_be_published() {
    let scene = Scene::new();
    let (mut last, other) = (scene.message(40, "forged"), scene.message(40, "another"));
    last["sig"] = other["sig"].clone();
    let (large, ledger) = (scene.large(MANY), scene.lock());
    {
        let mut state = scene.relay.state();
        // The newest comes first: once the oldest is counted, all the others are held back, with no end of them in sight.
        state.events.push(last);
        state.events.extend(large);
        state.late = Some("nexus-".to_owned());
        state.hang_up();
    }
    eventually("all of it came", || scene.counted("bad_signature") > 0);
    assert!(scene.handed_on() < 2, "it is held back");
    scene.relay.hang_up();
    eventually("there is no room for more", || scene.handed_on() > MANY * 9 / 10);
    let asked = scene.relay.state().of("REQ").len();
    scene.publish();
    eventually("the relay has it, and its word is heard", || scene.published() == 1);
    assert!(scene.handed_on() < MANY, "there was room");
    assert_eq!(scene.relay.state().of("REQ").len(), asked, "there is no room for what it would be asked for");
    scene.relay.state().late = None;
    ledger.execute_batch("COMMIT").unwrap();
    scene.live();
    eventually("all of it is taken in", || scene.taken_in() == i64::try_from(MANY).unwrap() + 1);
}

#[test]
fn a_fetch_is_answered_while_nothing_can_be_taken_in() {
    let (scene, bob) = (Scene::new(), Key::new(2));
    // Nobody has asked for what he says.
    let agent = bob.sign(4_199, &[&["title", "helper"], &["role", "helper"]], "Be brief.");
    scene.relay.add(&agent);
    scene.relay.add(&bob.sign(31_933, &[&["d", "demo"], &["title", "demo"], &["agent", agent["id"].as_str().unwrap()]], ""));
    let ledger = scene.hold_up();
    let prepared = scene.daemon.nexus_ok(&["project", "init", &format!("31933:{}:demo", bob.public()), "--json"]);
    let prepared: Value = serde_json::from_str(&prepared).unwrap();
    assert_eq!(prepared["agents"][0]["slug"], "helper", "{prepared}");
    assert!(scene.handed_on() < MANY, "there was room");
    ledger.execute_batch("COMMIT").unwrap();
    eventually("all of it is taken in", || scene.taken_in() == i64::try_from(MANY).unwrap() + 1);
}

#[test]
fn an_end_that_was_put_aside_proves_what_came_before_it() {
    /// Large messages, a few more than the 16 MiB that may be held back to be sorted.
    const MANY: u64 = 290;
    let scene = Scene::new();
    let (large, ledger) = (scene.large(MANY), scene.lock());
    {
        let mut state = scene.relay.state();
        state.events.extend(large);
        state.heard.clear();
        state.hang_up();
    }
    eventually("there is no room for more", || scene.handed_on() > 125);
    assert!(scene.handed_on() < MANY, "there was room");
    assert_ne!(scene.status()["state"], "live");
    ledger.execute_batch("COMMIT").unwrap();
    scene.live();
    eventually("all of it is taken in", || scene.taken_in() == i64::try_from(MANY).unwrap() + 1);
    assert_eq!((scene.asked("nexus-activations"), scene.asked("nexus-direct")), (1, 1), "each end was heard");
}

#[test]
fn a_late_end_of_an_earlier_answer_proves_nothing_of_a_later_one() {
    const DEFINITIONS: &str = "nexus-definitions";
    /// Older than what other subscriptions ask a new relay for, in seconds.
    const OLD_S: u64 = 300_000;
    let scene = Scene::with(|state, ann| {
        let project = |name: &str, age_s: u64| ann.sign_at(now_s() - age_s, 31_933, &[&["d", name]], "");
        state.events.extend([project("older", OLD_S), project("newer", OLD_S - 1)]);
        // The newest comes at once; the end of it when that was given up, and was asked for again.
        (state.most, state.late) = (1, Some(DEFINITIONS.to_owned()));
    });
    let kept = || scene.daemon.count("nexus", "SELECT count(*) FROM nostr_events WHERE kind = 31933");
    eventually("it is asked again", || scene.asked(DEFINITIONS) == 2);
    eventually("what came at once is kept", || kept() == 1);
    scene.relay.state().late = None;
    eventually("what is older is there too", || kept() == 2);
    scene.live();
}

/// What may be pending in [`Crowd`]; half of it is anybody's, and a quarter each author's share.
const PENDING_MAX: u64 = 40;
/// More than that.
const FLOOD: u64 = 60;

/// A daemon that listens to a relay and heeds two keys, whose requests end once it is let go.
struct Crowd {
    daemon: Daemon,
    relay: Scripted,
    ann: Key,
    bob: Key,
    own: String,
}

impl Crowd {
    fn new() -> Self {
        let (relay, ann, bob) = (Scripted::start(), Key::new(1), Key::new(2));
        let mut daemon = Daemon::new();
        let mut all = config(json!({}));
        all["projects"] = json!({ "path": daemon.file("projects") });
        all["nostr"] = json!({ "relays": [relay.url()], "whitelist": [ann.npub(), bob.npub()], "max_pending": PENDING_MAX });
        let waits = format!("sh -c 'until [ -e {} ]; do sleep 0.05; done; cat'", daemon.file("go"));
        all["agents"] = json!({ "default": "waits", "waits": { "runner": "command", "command": waits } });
        daemon.configure(&all);
        daemon.launch();
        let own = daemon.get("/control/nostr").json()["pubkey"].as_str().expect("the daemon has a key").to_owned();
        let crowd = Self { daemon, relay, ann, bob, own };
        crowd.live();
        crowd
    }

    fn live(&self) {
        eventually("the relay is live", || self.daemon.get("/control/nostr").json()["relays"][0]["state"] == "live");
    }

    /// Lets what is at work end, and all after it.
    fn let_go(&self) {
        std::fs::write(self.daemon.file("go"), "").unwrap();
    }

    fn message(&self, author: &Key, age_s: u64, content: &str) -> Value {
        author.sign_at(now_s() - age_s, 1, &[&["p", &self.own]], content)
    }

    /// Has more come of the first of them than is taken in.
    fn flood(&self) {
        let flood: Vec<Value> = (0..FLOOD).map(|n| self.message(&self.ann, 0, &format!("flood {n}"))).collect();
        self.relay.state().events.extend(flood);
        eventually("the rest of it is left out", || self.by(&self.ann) >= 20 && self.left() > 0);
    }

    /// Changes what the ledger knows while no daemon runs.
    fn change(&self, sql: &str) {
        let ledger = Connection::open(self.daemon.workspace().join("data/events.db")).unwrap();
        ledger.execute(sql, []).unwrap();
    }

    fn by(&self, author: &Key) -> i64 {
        let sql = format!("SELECT count(*) FROM events WHERE direction = 'inbound' AND sender_id = '{}'", author.public());
        self.daemon.count("events", &sql)
    }

    /// How often an event was left out.
    fn left(&self) -> u64 {
        self.daemon.metric(&format!("nexus_nostr_events_total{{relay=\"{}\",result=\"left\"}}", self.relay.url()))
    }
}

#[test]
fn what_one_author_says_keeps_out_nobody_else_and_is_not_lost() {
    let crowd = Crowd::new();
    crowd.flood();
    crowd.relay.add(&crowd.message(&crowd.bob, 0, "am I heard?"));
    eventually("somebody else is heard", || crowd.by(&crowd.bob) == 1);
    assert!(crowd.by(&crowd.ann) < i64::try_from(FLOOD).unwrap(), "there was room");
    crowd.let_go();
    eventually("nothing was lost", || crowd.by(&crowd.ann) == i64::try_from(FLOOD).unwrap());
    assert_eq!(crowd.by(&crowd.bob), 1);
}

#[test]
fn what_was_left_out_is_asked_for_however_old_it_is_also_by_the_next_start() {
    /// How far the relay was whole when the daemon was started, in seconds back; and how old what it says late is.
    const AWAY_S: i64 = 7_200;
    const OLD_S: u64 = 3_600;
    let whole_until =
        |crowd: &Crowd| crowd.daemon.count("events", "SELECT coalesce(min(until), 0) FROM relay_cursors WHERE relay <> ''").unsigned_abs();
    let mut crowd = Crowd::new();
    crowd.daemon.stop();
    let ledger = Connection::open(crowd.daemon.workspace().join("data/events.db")).unwrap();
    ledger.execute("UPDATE relay_cursors SET until = until - ?1", [AWAY_S]).unwrap();
    drop(ledger);
    crowd.daemon.launch();
    crowd.live();
    eventually("the relay is whole again", || whole_until(&crowd) + OLD_S / 2 > now_s());
    crowd.flood();
    crowd.relay.add(&crowd.message(&crowd.ann, OLD_S, "an hour old"));
    eventually("the relay is whole no further than what was left out", || whole_until(&crowd) + OLD_S <= now_s());
    crowd.daemon.kill9();
    crowd.let_go();
    crowd.daemon.launch();
    let all = i64::try_from(FLOOD).unwrap() + 1;
    eventually("nothing was lost", || crowd.by(&crowd.ann) == all);
    eventually("the relay is whole again", || whole_until(&crowd) + OLD_S / 2 > now_s());
}

#[test]
fn what_was_left_out_of_a_relays_first_answer_is_asked_for_however_little_the_next_start_looks_back() {
    /// For how long the daemon has listened, in seconds; how old the flood is; and how far a relay of which nothing is known is asked.
    const LISTENS_S: u64 = 7_200;
    const OLD_S: u64 = 3_600;
    const DAY_S: u64 = 86_400;
    let mut crowd = Crowd::new();
    crowd.daemon.stop();
    // As if the relay were new to it.
    crowd.change("DELETE FROM relay_cursors WHERE relay <> ''");
    crowd.change(&format!("UPDATE relay_cursors SET until = until - {LISTENS_S}"));
    let flood = |old_s: u64| (0..FLOOD).map(|n| crowd.message(&crowd.ann, old_s, &format!("flood {n}"))).collect::<Vec<_>>();
    crowd.relay.state().events.extend(flood(OLD_S));
    let later = flood(OLD_S + DAY_S);
    crowd.daemon.launch();
    let kept = "SELECT count(*) FROM relay_cursors WHERE filter LIKE 'nexus-activations-%'";
    eventually("from when on it is asked is kept, though nothing is whole", || crowd.daemon.count("events", kept) == 1);
    assert!(crowd.left() > 0 && crowd.by(&crowd.ann) < i64::try_from(FLOOD).unwrap(), "there was room");
    crowd.daemon.kill9();
    // As if a day had passed: all that the daemon has is older by that, and so is what the relay has.
    crowd.change(&format!("UPDATE relay_cursors SET until = until - {DAY_S}"));
    let before = crowd.by(&crowd.ann);
    crowd.relay.state().events = later;
    crowd.let_go();
    crowd.daemon.launch();
    eventually("nothing was lost", || crowd.by(&crowd.ann) == before + i64::try_from(FLOOD).unwrap());
}
