//! The Nostr client with relays that do what the tests say: what is heeded and what isn't, what is missed and
//! comes all the same, what is published once.
#![allow(clippy::unwrap_used)]

mod common;
mod relays;
mod scripted;

use common::{Daemon, config, eventually, find, json_lines};
use relays::{Key, id, is_verified, now_s};
use rusqlite::{Connection, params};
use scripted::Scripted;
use serde_json::{Value, json};
use std::fs;

/// A configuration that listens to these relays and heeds these keys.
fn heeding(relays: &[&Scripted], keys: &[&Key]) -> Value {
    let mut all = config(json!({}));
    let urls: Vec<String> = relays.iter().map(|relay| relay.url()).collect();
    let keys: Vec<String> = keys.iter().map(|key| key.npub()).collect();
    all["nostr"] = json!({ "relays": urls, "whitelist": keys });
    all
}

fn status(daemon: &Daemon) -> Value {
    daemon.get("/control/nostr").json()
}

/// The daemon's own public key.
fn own(daemon: &Daemon) -> String {
    status(daemon)["pubkey"].as_str().expect("the daemon has a key").to_owned()
}

fn state_of(daemon: &Daemon, relay: &Scripted) -> Value {
    let all = status(daemon);
    let relays = all["relays"].as_array().unwrap();
    relays.iter().find(|one| one["url"] == relay.url()).map(|one| one["state"].clone()).unwrap_or_default()
}

fn live(daemon: &Daemon, relay: &Scripted) {
    eventually("the relay is live", || state_of(daemon, relay) == "live");
}

fn accepted(daemon: &Daemon) -> i64 {
    daemon.count("events", "SELECT count(*) FROM events WHERE channel = 'nostr' AND direction = 'inbound'")
}

/// What was accepted, in the order in which it was.
fn contents(daemon: &Daemon) -> Vec<String> {
    daemon.texts("events", "SELECT content FROM events WHERE channel = 'nostr' AND direction = 'inbound' ORDER BY seq")
}

fn result(daemon: &Daemon, relay: &Scripted, result: &str) -> u64 {
    daemon.metric(&format!("nexus_nostr_events_total{{relay=\"{}\",result=\"{result}\"}}", relay.url()))
}

#[test]
fn a_whitelisted_person_is_answered_once_whoever_brings_the_event() {
    let (one, two, ann) = (Scripted::start(), Scripted::start(), Key::new(1));
    let daemon = Daemon::start(&heeding(&[&one, &two], &[&ann]));
    live(&daemon, &one);
    live(&daemon, &two);
    let note = ann.sign(1, &[&["p", &own(&daemon)]], "hello");
    one.add(&note);
    two.add(&note);
    for relay in [&one, &two] {
        let answer = find("the answer is published", || relay.state().published.first().cloned());
        assert!(is_verified(&answer), "{answer}");
        assert_eq!((&answer["kind"], &answer["pubkey"]), (&json!(1), &json!(own(&daemon))));
        let tags = answer["tags"].as_array().unwrap();
        assert!(tags.iter().any(|tag| tag[0] == "e" && tag[1] == note["id"] && tag[3] == "root"), "{answer}");
        assert!(tags.contains(&json!(["p", ann.public()])), "{answer}");
        assert!(answer["content"].as_str().unwrap().contains("hello"));
    }
    eventually("the delivery is sent", || daemon.deliveries("sent") == 1);
    assert_eq!((accepted(&daemon), daemon.ended("completed")), (1, 1));
    let answers = daemon.count("nexus", "SELECT count(*) FROM nostr_published");
    assert_eq!(answers, 1, "one event for both relays");
    assert_eq!(one.state().published[0]["id"], two.state().published[0]["id"]);
}

#[test]
fn strangers_do_nothing() {
    let (relay, ann, stranger) = (Scripted::start(), Key::new(1), Key::new(2));
    let daemon = Daemon::start(&heeding(&[&relay], &[&ann]));
    live(&daemon, &relay);
    let own = own(&daemon);
    let subscriptions: Vec<Value> = relay.state().of("REQ").iter().map(|request| request[1].clone()).collect();
    assert!(subscriptions.len() >= 3, "{subscriptions:?}");
    assert!(subscriptions.iter().all(|id| id.as_str().unwrap().len() <= 64));
    relay.state().careless = true;
    relay.add(&stranger.sign(1, &[&["p", &own]], "let me in"));
    relay.add(&ann.sign(1, &[&["p", &own]], "hello"));
    eventually("the heeded event is answered", || daemon.ended("completed") == 1);
    assert_eq!((accepted(&daemon), daemon.terminal()), (1, 1));
    assert!(result(&daemon, &relay, "stranger") >= 1);
}

#[test]
fn what_was_missed_comes_when_the_relay_is_back_however_little_it_gives_at_a_time() {
    let (relay, ann) = (Scripted::start(), Key::new(1));
    let daemon = Daemon::start(&heeding(&[&relay], &[&ann]));
    live(&daemon, &relay);
    let own = own(&daemon);
    let now = now_s();
    {
        let mut state = relay.state();
        state.most = 2;
        for n in 0..9 {
            state.events.push(ann.sign_at(now - 50 + n, 1, &[&["p", &own]], &format!("missed {n}")));
        }
        // In the same breath, so that all of it has to be asked for.
        state.hang_up();
    }
    eventually("all of them are accepted", || accepted(&daemon) == 9);
    live(&daemon, &relay);
    eventually("all of them are answered", || daemon.ended("completed") == 9);
    let expected: Vec<String> = (0..9).map(|n| format!("missed {n}")).collect();
    assert_eq!(contents(&daemon), expected, "by their dates, whatever the relay sent first");
    let cursors = daemon.count("events", "SELECT count(*) FROM relay_cursors WHERE relay <> '' AND until > 0");
    assert!(cursors >= 3, "each subscription has proven what it has: {cursors}");
}

#[test]
fn a_daemon_starts_with_every_relay_down_and_publishes_when_one_comes() {
    let (address, ann) = (Scripted::nowhere(), Key::new(1));
    let mut all = config(json!({}));
    all["nostr"] = json!({ "relays": [format!("ws://{address}")], "whitelist": [ann.npub()] });
    let mut daemon = Daemon::start(&all);
    let said = daemon.nexus_ok(&["nostr", "publish", "--once", "k", "--json", "hello"]);
    let said: Value = serde_json::from_str(&said).unwrap();
    assert_eq!(said["status"], "waiting");
    daemon.kill9();
    daemon.launch();
    let again = daemon.nexus(&["nostr", "publish", "--once", "k", "hello"]);
    assert_eq!(again.stdout, format!("{} waiting\n", said["event_id"].as_str().unwrap()), "once, also after a crash");
    assert!(again.stderr.starts_with("waiting for a relay to take it\nno relay has it yet; "), "{again:?}");
    let relay = Scripted::start_at(address);
    let event = find("it is published", || relay.state().published.first().cloned());
    assert_eq!(event["id"], said["event_id"]);
    eventually("the relay's word is written", || daemon.count("nexus", "SELECT count(*) FROM nostr_outbox WHERE status = 'accepted'") == 1);
    assert_eq!(relay.state().published.len(), 1);
    assert_eq!(status(&daemon)["outbox"]["waiting"], 0);
}

#[test]
fn an_event_without_an_answer_is_sent_again_over_the_next_connection() {
    let relay = Scripted::start();
    let daemon = Daemon::start(&heeding(&[&relay], &[]));
    live(&daemon, &relay);
    relay.state().silent = true;
    daemon.post("/control/nostr/publish", &json!({ "kind": 1, "content": "hello", "once": "k" }));
    eventually("it was sent", || relay.state().published.len() == 1);
    relay.state().silent = false;
    relay.hang_up();
    eventually("it is taken", || daemon.count("nexus", "SELECT count(*) FROM nostr_published WHERE status = 'accepted'") == 1);
    let published = relay.state().published.clone();
    assert!(published.len() >= 2 && published.iter().all(|event| event["id"] == published[0]["id"]), "the same event");
}

#[test]
fn a_kind_over_its_rate_holds_up_no_other() {
    /// More than are looked at together.
    const MANY: usize = 60;
    let (relay, ann) = (Scripted::start(), Key::new(1));
    let mut all = heeding(&[&relay], &[]);
    all["nostr"]["publish_per_minute"] = json!(1);
    let mut daemon = Daemon::start(&all);
    daemon.stop();
    // As if all had been made while no relay could be reached.
    let ledger = Connection::open(daemon.workspace().join("data/nexus.db")).unwrap();
    let mut made: Vec<Value> = (0..MANY).map(|n| ann.sign(1, &[], &n.to_string())).collect();
    made.push(ann.sign(11, &[], "another kind"));
    for event in &made {
        let sql = "INSERT INTO nostr_published (event_id, once, kind, event, status, created_at, expires_at)
                   VALUES (?1, ?1, ?2, ?3, 'waiting', 0, 9000000000000)";
        ledger.execute(sql, params![id(event), event["kind"].as_u64(), event.to_string()]).unwrap();
    }
    drop(ledger);
    daemon.launch();
    let published = |kind: u64| relay.state().published.iter().filter(|event| event["kind"] == kind).count();
    eventually("the other kind is published", || published(11) == 1);
    assert!((1..=2).contains(&published(1)), "one per minute");
}

#[test]
fn a_refused_subscription_is_told_and_taken_up_again() {
    let (relay, ann) = (Scripted::start(), Key::new(1));
    relay.state().refuse = Some(("nexus-activations".to_owned(), "rate-limited: later".to_owned()));
    let daemon = Daemon::start(&heeding(&[&relay], &[&ann]));
    eventually("the relay is deaf", || state_of(&daemon, &relay) == "deaf");
    let health = daemon.get("/health").json();
    assert_eq!(health["status"], "degraded");
    assert!(health["nostr"]["deaf"][0]["deaf"][0]["why"].as_str().unwrap().contains("rate-limited"), "{health}");
    // The others go on by themselves.
    relay.add(&ann.sign(1, &[&["p", &own(&daemon)]], "hello"));
    eventually("the direct subscription hears", || daemon.ended("completed") == 1);
    relay.state().refuse = None;
    live(&daemon, &relay);
}

#[test]
fn nothing_is_asked_before_it_is_proven_who_we_are_and_only_where_that_is_wanted() {
    let (open, shy, ann) = (Scripted::start(), Scripted::start(), Key::new(1));
    open.state().auth = true;
    shy.state().auth = true;
    let mut all = heeding(&[&open, &shy], &[&ann]);
    all["nostr"]["auth"] = json!([open.url()]);
    let daemon = Daemon::start(&all);
    live(&daemon, &open);
    let heard = open.state().heard.clone();
    assert_eq!(heard[0][0], "AUTH", "{heard:?}");
    let proof = &heard[0][1];
    assert!(is_verified(proof));
    assert_eq!((&proof["kind"], &proof["pubkey"]), (&json!(22_242), &json!(own(&daemon))));
    assert!(proof["tags"].as_array().unwrap().contains(&json!(["relay", open.url()])));
    assert!(proof["tags"].as_array().unwrap().contains(&json!(["challenge", "challenge"])));
    eventually("the other one is deaf", || state_of(&daemon, &shy) == "deaf");
    assert!(shy.state().of("AUTH").is_empty(), "nobody consented");
}

#[test]
fn a_relay_that_comes_back_is_told_who_we_are_and_asked_anew() {
    let (relay, ann) = (Scripted::start(), Key::new(1));
    relay.state().auth = true;
    let mut all = heeding(&[&relay], &[&ann]);
    all["nostr"]["auth"] = json!([relay.url()]);
    let daemon = Daemon::start(&all);
    live(&daemon, &relay);
    let own = own(&daemon);
    relay.add(&ann.sign(1, &[&["p", &own]], "before"));
    eventually("the first one is answered", || daemon.deliveries("sent") == 1);
    {
        let mut state = relay.state();
        state.heard.clear();
        state.hang_up();
    }
    eventually("it is asked for everything again", || relay.state().of("REQ").len() >= 3);
    live(&daemon, &relay);
    let heard = relay.state().heard.clone();
    assert_eq!((&heard[0][0], relay.state().of("AUTH").len()), (&json!("AUTH"), 1), "{heard:?}");
    relay.add(&ann.sign(1, &[&["p", &own]], "after"));
    eventually("the second one is answered", || daemon.deliveries("sent") == 2);
    assert_eq!(contents(&daemon), ["before", "after"]);
    assert_eq!(relay.state().published.len(), 2, "nothing is published again");
}

#[test]
fn who_says_much_at_once_is_heard_all_the_same_and_at_a_pace() {
    /// Those beyond the hundred that go at once.
    const MORE: u64 = 40;
    let (relay, ann) = (Scripted::start(), Key::new(1));
    let mut all = heeding(&[&relay], &[&ann]);
    // Denied, so that no agent's time counts.
    all["access"]["policies"] =
        json!([{ "name": "none", "priority": 1000, "match": { "principal": { "type": "known" } }, "effect": "deny" }]);
    let daemon = Daemon::start(&all);
    live(&daemon, &relay);
    let (own, now) = (own(&daemon), now_s());
    let said: Vec<Value> = (0..100 + MORE).map(|n| ann.sign_at(now, 1, &[&["p", &own]], &n.to_string())).collect();
    relay.state().events.extend(said);
    eventually("each has its end", || daemon.ended("denied") == 140);
    // Twenty in a second, and never more.
    let spent_ms = daemon.count("nexus", "SELECT max(completed_at) - min(created_at) FROM nexus_requests WHERE channel = 'nostr'");
    assert!(spent_ms >= i64::try_from(MORE).unwrap() * 1_000 / 20 - 100, "{spent_ms}");
}

#[test]
fn a_whitelist_that_grows_brings_what_was_said_before() {
    let (relay, ann, bob) = (Scripted::start(), Key::new(1), Key::new(2));
    let daemon = Daemon::start(&heeding(&[&relay], &[&ann]));
    live(&daemon, &relay);
    let own = own(&daemon);
    relay.add(&bob.sign(1, &[&["p", &own]], "hello from bob"));
    relay.add(&ann.sign(1, &[&["p", &own]], "hello from ann"));
    eventually("ann is answered", || daemon.ended("completed") == 1);
    let told = daemon.nexus_ok(&["nostr", "whitelist", "add", &bob.npub()]);
    assert!(told.contains("nostr changed"), "{told}");
    eventually("bob is answered", || daemon.ended("completed") == 2);
    assert_eq!(accepted(&daemon), 2, "ann's is not taken in again");
    daemon.nexus_ok(&["nostr", "whitelist", "remove", &bob.public()]);
    let listed: Value = serde_json::from_str(&daemon.nexus_ok(&["nostr", "whitelist", "list", "--json"])).unwrap();
    assert_eq!(listed["whitelist"].as_array().unwrap().len(), 1);
}

#[test]
fn a_reload_swaps_relays_and_key() {
    let (before, after, ann) = (Scripted::start(), Scripted::start(), Key::new(1));
    let daemon = Daemon::start(&heeding(&[&before], &[&ann]));
    live(&daemon, &before);
    let first = own(&daemon);
    let imported = daemon.nexus_told(&Key::new(9).nsec(), &["credential", "set", "mine/nostr"]);
    assert_eq!(imported.code, Some(0), "{imported:?}");
    let mut new = heeding(&[&after], &[&ann]);
    new["nostr"]["secret_key"] = json!("mine/nostr");
    daemon.configure(&new);
    daemon.nexus_ok(&["daemon", "reload"]);
    live(&daemon, &after);
    assert_eq!((own(&daemon), first == own(&daemon)), (Key::new(9).public(), false));
    let connections = before.state().connections;
    after.add(&ann.sign(1, &[&["p", &Key::new(9).public()]], "hello"));
    let answer = find("the new key answers", || after.state().published.first().cloned());
    assert_eq!(answer["pubkey"], json!(Key::new(9).public()));
    assert_eq!(before.state().connections, connections, "the old relay is left alone");
    daemon.configure(&config(json!({})));
    daemon.nexus_ok(&["daemon", "reload"]);
    assert_eq!(status(&daemon)["running"], false, "nothing runs without relays");
}

#[test]
fn definitions_are_kept_the_newest_counts_and_they_start_nothing() {
    let (relay, ann) = (Scripted::start(), Key::new(1));
    let now = now_s();
    let project = |title: &str, at: u64| ann.sign_at(at, 31_933, &[&["d", "demo"], &["title", title]], "");
    relay.add(&project("newest", now - 10));
    relay.add(&project("older", now - 1_000_000));
    let daemon = Daemon::start(&heeding(&[&relay], &[&ann]));
    live(&daemon, &relay);
    let kept = || daemon.texts("nexus", "SELECT event FROM nostr_events WHERE kind = 31933");
    eventually("the definition is kept", || kept().len() == 1);
    assert!(kept()[0].contains("newest"));
    relay.add(&project("newer", now));
    eventually("the newer one counts", || kept()[0].contains("newer"));
    relay.add(&ann.sign_at(now + 1, 5, &[&["a", &format!("31933:{}:demo", ann.public())]], ""));
    eventually("its author has deleted it", || kept().is_empty());
    assert_eq!(accepted(&daemon), 0);
}

#[test]
fn of_definitions_that_come_live_the_newest_counts_and_of_one_second_the_lower_id() {
    let (relay, ann) = (Scripted::start(), Key::new(1));
    let mut daemon = Daemon::new();
    let mut all = heeding(&[&relay], &[&ann]);
    all["projects"] = json!({ "path": daemon.file("projects") });
    daemon.configure(&all);
    daemon.launch();
    live(&daemon, &relay);
    let now = now_s();
    let project = |name: &str, title: &str, at: u64| ann.sign_at(at, 31_933, &[&["d", name], &["title", title]], "");
    let tie = |name: &str| {
        let mut both = [project(name, "one", now), project(name, "two", now)];
        both.sort_by(|a, b| id(a).cmp(id(b)));
        both
    };
    let (low, [lower, higher]) = (tie("low"), tie("high"));
    let newer = [project("newer", "newer", now), project("newer", "older", now - 90)];
    let cases = [("newer", newer[0].clone(), newer), ("low", low[0].clone(), low), ("high", lower.clone(), [higher, lower])];
    let mut told = 0;
    for (name, counts, events) in cases {
        for event in events {
            relay.add(&event);
            told += 1;
            let heard = || result(&daemon, &relay, "definition") + result(&daemon, &relay, "outdated");
            eventually("it is heard", || heard() == told);
        }
        let project = format!("31933:{}:{name}", ann.public());
        daemon.nexus_ok(&["project", "init", &project, "--json"]);
        let shown: Value = serde_json::from_str(&daemon.nexus_ok(&["project", "show", &project, "--json"])).unwrap();
        assert_eq!(shown["title"], counts["tags"][1][1], "{name}: {shown}");
    }
}

#[test]
fn a_definition_is_deleted_by_its_id_whoever_still_has_it() {
    let (relay, ann, bob) = (Scripted::start(), Key::new(1), Key::new(2));
    let now = now_s();
    let project = ann.sign_at(now - 20, 31_933, &[&["d", "demo"]], "");
    relay.add(&project);
    let mut daemon = Daemon::start(&heeding(&[&relay], &[&ann, &bob]));
    live(&daemon, &relay);
    let kept = |daemon: &Daemon| daemon.count("nexus", "SELECT count(*) FROM nostr_events WHERE kind = 31933");
    eventually("it is kept", || kept(&daemon) == 1);
    relay.add(&bob.sign_at(now - 15, 5, &[&["e", id(&project)]], "not mine"));
    relay.add(&bob.sign_at(now - 14, 0, &[], "behind it"));
    eventually("the other one's was heard", || daemon.count("nexus", "SELECT count(*) FROM nostr_events WHERE kind = 0") == 1);
    assert_eq!(kept(&daemon), 1, "nobody deletes what another wrote");
    relay.add(&ann.sign_at(now - 10, 5, &[&["e", id(&project)]], "mine"));
    eventually("its author has deleted it", || kept(&daemon) == 0);
    // This relay heeds no deletions, and a daemon that starts has nothing in its head.
    daemon.stop();
    daemon.launch();
    live(&daemon, &relay);
    eventually("it came again", || result(&daemon, &relay, "outdated") >= 1);
    assert_eq!(kept(&daemon), 0);
}

#[test]
fn an_agent_that_was_deleted_is_not_fetched_again() {
    let (relay, ann) = (Scripted::start(), Key::new(1));
    let now = now_s();
    let agent = |title: &str| ann.sign_at(now - 100, 4_199, &[&["title", title], &["role", "helper"]], "Be brief.");
    let (stays, goes) = (agent("stays"), agent("goes"));
    for event in [&stays, &goes] {
        relay.add(event);
    }
    relay.add(&ann.sign_at(now - 50, 5, &[&["e", id(&goes)]], ""));
    relay.add(&ann.sign_at(now - 40, 31_933, &[&["d", "demo"], &["title", "demo"], &["agent", id(&stays)], &["agent", id(&goes)]], ""));
    let mut daemon = Daemon::new();
    let mut all = heeding(&[&relay], &[&ann]);
    all["projects"] = json!({ "path": daemon.file("projects") });
    daemon.configure(&all);
    daemon.launch();
    eventually("the deletion is known", || daemon.count("nexus", "SELECT count(*) FROM nostr_events WHERE kind = 5") == 1);
    let prepared = daemon.nexus_ok(&["project", "init", &format!("31933:{}:demo", ann.public()), "--json"]);
    let prepared: Value = serde_json::from_str(&prepared).unwrap();
    let agents: Vec<&Value> = prepared["agents"].as_array().unwrap().iter().map(|one| &one["slug"]).collect();
    assert_eq!(agents, [&json!("stays")], "{prepared}");
    let asked = relay.state().of("REQ");
    assert!(asked.iter().any(|request| request[2]["ids"] == json!([id(&goes)])), "the relay was asked, and had it");
}

#[test]
fn what_its_author_deletes_before_it_is_begun_is_not_done() {
    let (relay, ann, bob) = (Scripted::start(), Key::new(1), Key::new(2));
    let mut daemon = Daemon::new();
    let (told, gate) = (daemon.file("told"), daemon.file("gate"));
    let script = format!("cat >> {told}; until test -e {gate}; do sleep 0.1; done; echo done");
    let mut all = heeding(&[&relay], &[&ann, &bob]);
    all["agents"] = json!({ "default": "waits", "waits": { "runner": "command", "command": format!("sh -c '{script}'") } });
    daemon.configure(&all);
    daemon.launch();
    live(&daemon, &relay);
    let own = own(&daemon);
    let [first, second, third] = ["first", "second", "third"].map(|text| ann.sign(1, &[&["p", &own]], text));
    relay.add(&first);
    eventually("the agent is called", || json_lines(&told).len() == 1);
    relay.add(&second);
    relay.add(&third);
    let waiting = "SELECT count(*) FROM nexus_requests WHERE status = 'waiting'";
    eventually("the others wait for their turn", || daemon.count("nexus", waiting) == 2);
    relay.add(&bob.sign(5, &[&["e", id(&third)]], "not mine"));
    relay.add(&ann.sign(5, &[&["e", id(&first)], &["e", id(&second)]], "never mind"));
    eventually("the deletions are known", || daemon.count("nexus", "SELECT count(*) FROM nostr_events WHERE kind = 5") == 2);
    fs::write(&gate, "").unwrap();
    eventually("each has its end", || daemon.terminal() == 3);
    assert_eq!((daemon.ended("completed"), daemon.ended("expired")), (2, 1), "what has begun goes on");
    let asked: Vec<Value> = json_lines(&told).iter().map(|turn| turn["message"]["content"].clone()).collect();
    assert_eq!(asked, ["first", "third"]);
    let reasons = daemon.texts("nexus", "SELECT reason FROM nexus_requests WHERE status = 'expired'");
    assert!(reasons[0].contains("NIP-09"), "{reasons:?}");
}

#[test]
fn an_event_whose_time_is_over_is_not_answered() {
    let (relay, ann) = (Scripted::start(), Key::new(1));
    let daemon = Daemon::start(&heeding(&[&relay], &[&ann]));
    live(&daemon, &relay);
    let own = own(&daemon);
    relay.add(&ann.sign(1, &[&["p", &own], &["expiration", "1"]], "too late"));
    relay.add(&ann.sign(1, &[&["p", &own]], "in time"));
    eventually("the other one is answered", || daemon.ended("completed") == 1);
    assert_eq!(accepted(&daemon), 1);
    assert!(result(&daemon, &relay, "expired") >= 1);
}

#[test]
fn keys_are_listed_without_their_secrets_and_not_replaced() {
    let daemon = Daemon::new();
    daemon.configure(&config(json!({})));
    let imported = daemon.nexus_told(&Key::new(3).nsec(), &["nostr", "keys", "import", "demo-1a2b3c4d/coder"]);
    assert_eq!(imported.code, Some(0), "{imported:?}");
    let other = daemon.nexus_told(&Key::new(4).nsec(), &["nostr", "keys", "import", "demo-1a2b3c4d/coder"]);
    assert_eq!(other.code, Some(1), "{other:?}");
    let listed = daemon.nexus_ok(&["nostr", "keys", "list"]);
    assert!(listed.contains(&Key::new(3).npub()) && !listed.contains("nsec"), "{listed}");
    let nobody = daemon.nexus(&["nostr", "publish", "--as", "nobody", "hello"]);
    assert_eq!(nobody.code, Some(2), "{nobody:?}");
    let mistyped = daemon.nexus(&["nostr", "publish", "--as", "demo-1a2b3c4d/codr", "hello"]);
    assert!(mistyped.code == Some(4) && mistyped.stderr.contains("nexus nostr keys list"), "{mistyped:?}");
    assert_eq!(daemon.nexus_ok(&["nostr", "keys", "list"]), listed, "no key was made for it");
}

#[test]
fn what_no_relay_takes_is_a_failure_with_the_relays_reason() {
    let relay = Scripted::start();
    relay.state().rejects = Some("blocked: not you".to_owned());
    let daemon = Daemon::start(&heeding(&[&relay], &[]));
    live(&daemon, &relay);
    let refused = daemon.nexus(&["nostr", "publish", "hello"]);
    assert!(refused.code == Some(1) && refused.stdout.contains(" refused"), "{refused:?}");
    assert!(refused.stderr.contains("a relay said: ") && refused.stderr.contains("not you"), "{refused:?}");
    let told = daemon.nexus(&["nostr", "publish", "--json", "again"]);
    let told: Value = serde_json::from_str(&told.stdout).unwrap();
    assert!(told["status"] == "refused" && told["error"].as_str().unwrap().contains("not you"), "{told}");
}

#[test]
fn where_nothing_of_nostr_runs_the_status_says_what_to_do() {
    let daemon = Daemon::start(&config(json!({})));
    let told = daemon.nexus_ok(&["nostr", "status"]);
    assert!(told.contains("`nostr.relays` is empty") && told.contains("nexus nostr demo"), "{told}");
    let listed = daemon.nexus(&["nostr", "whitelist", "list"]);
    assert!(listed.code == Some(0) && listed.stderr.contains("nexus nostr whitelist add"), "{listed:?}");
}
