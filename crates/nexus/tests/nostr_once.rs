//! What a Nostr event is for is decided once, and which kinds of events ask an agent: what a relay gives again after a
//! restart, when other projects are known than before, is not answered again. Relay, git server, daemon and processes
//! are real; what answers is the daemon's own process with the agent `echo`.
#![allow(clippy::unwrap_used)]

mod common;
mod gitserver;
mod relays;

use common::{Ask, eventually, find};
use gitserver::world::{World, is_live};
use relays::{Client, Key, id, now_s};
use rusqlite::Connection;
use serde_json::{Value, json};

fn answers(world: &World, to: &str) -> Vec<Value> {
    Client::connect(world.relay.url()).stored(json!({ "kinds": [1, 1111], "#e": [to] }))
}

fn answered(world: &World, to: &str) -> Value {
    find("the event is answered", || answers(world, to).pop())
}

/// A project of somebody who isn't whitelisted, with one agent of theirs; its coordinate.
fn foreign(world: &World, author: &Key) -> String {
    let agent = author.sign(4199, &[&["title", "Theirs"], &["role", "manager"]], "Be brief.");
    world.publish(&agent);
    world.publish(&author.sign(31_933, &[&["d", "foreign"], &["title", "foreign"], &["agent", id(&agent)]], ""));
    format!("31933:{}:foreign", author.public())
}

/// Has a project prepared; the public key of its agent.
fn prepared(world: &World, project: &str) -> String {
    world.prepared(project)["agents"][0]["pubkey"].as_str().unwrap().to_owned()
}

/// Puts a project away: its agents are nobody's until it is prepared again.
fn put_away(world: &World, project: &str) {
    let put_away = || world.daemon.nexus(&["project", "gc", project, "--force", "--json"]).code == Some(0);
    eventually("it is put away, once it is not at work", put_away);
}

/// How many rows the ledger has of a Nostr event.
fn rows(world: &World, event: &str) -> i64 {
    let sql = format!("SELECT count(*) FROM events WHERE direction = 'inbound' AND event_id LIKE 'nostr:{event}%'");
    world.daemon.count("events", &sql)
}

/// How many events the relay has given so far of which this became.
fn given(world: &World, result: &str) -> u64 {
    world.daemon.metric(&format!("nexus_nostr_events_total{{relay=\"{}\",result=\"{result}\"}}", world.relay.url()))
}

/// Restarts the daemon, and waits until it was given again what it had.
fn given_again(world: &mut World, project: &str) {
    world.daemon.stop();
    world.daemon.launch();
    eventually("the relay gives its events again", || given(world, "duplicate") > 0);
    let last = world.tell(1, &[&["a", project]], "the last");
    assert_eq!(answered(world, &last)["content"], "the last");
}

#[test]
fn an_event_is_answered_once_though_more_of_its_projects_are_known_later() {
    let mut world = World::new();
    let (mine, theirs) = (world.project("mine", None), foreign(&world, &Key::new(9)));
    let agents = [prepared(&world, &theirs), prepared(&world, &mine)];
    put_away(&world, &theirs);
    let tags: [&[&str]; 4] = [&["a", &theirs], &["a", &mine], &["p", &agents[0]], &["p", &agents[1]]];
    let event = world.tell(1, &tags, "hello");
    assert_eq!(answered(&world, &event)["pubkey"], agents[1], "the only one that is known");
    assert_eq!(prepared(&world, &theirs), agents[0], "it is known again, by the same key");
    given_again(&mut world, &mine);
    assert_eq!((rows(&world, &event), answers(&world, &event).len()), (1, 1));
}

#[test]
fn an_event_that_was_filed_stays_so_though_it_would_be_clear_later() {
    let mut world = World::new();
    let projects = ["one", "two"].map(|name| world.project(name, None));
    let agents = [prepared(&world, &projects[0]), prepared(&world, &projects[1])];
    put_away(&world, &projects[1]);
    let tags: [&[&str]; 4] = [&["a", &projects[0]], &["a", &projects[1]], &["p", &agents[0]], &["p", &agents[1]]];
    let event = world.tell(1, &tags, "hello");
    eventually("it is filed", || world.daemon.ended("expired") == 1);
    assert_eq!(prepared(&world, &projects[1]), agents[1], "its agents are known again, by the same key");
    given_again(&mut world, &projects[0]);
    assert_eq!((rows(&world, &event), answers(&world, &event).len()), (1, 0));
}

#[test]
fn a_project_that_was_prepared_by_hand_is_known_at_once() {
    let world = World::new();
    let theirs = foreign(&world, &Key::new(9));
    let unheard = world.tell(1, &[&["a", &theirs]], "is anybody there?");
    eventually("it is nobody's", || given(&world, "unaddressed") == 1);
    let agent = prepared(&world, &theirs);
    let event = world.tell(1, &[&["a", &theirs]], "hello");
    let answer = answered(&world, &event);
    assert_eq!((&answer["content"], &answer["pubkey"]), (&json!("hello"), &json!(agent)));
    assert_eq!(rows(&world, &unheard), 0);
    put_away(&world, &theirs);
    let late = world.tell(1, &[&["a", &theirs]], "and now?");
    eventually("what was put away is known no more", || given(&world, "unaddressed") == 2);
    assert_eq!(rows(&world, &late), 0);
}

#[test]
fn who_is_not_whitelisted_redefines_and_deletes_what_is_known_of_theirs() {
    let world = World::new();
    let author = Key::new(9);
    let theirs = foreign(&world, &author);
    prepared(&world, &theirs);
    let of = |name: &str| world.daemon.get("/control/projects").json()["projects"][0][name].clone();
    let first = world.show(&theirs)["agentEventIds"][0].as_str().unwrap().to_owned();
    let second = author.sign(4199, &[&["title", "Second"]], "Be brief.");
    world.publish(&second);
    let tags: [&[&str]; 4] = [&["d", "foreign"], &["title", "again"], &["agent", &first], &["agent", id(&second)]];
    world.publish(&author.sign_at(now_s() + 1, 31_933, &tags, ""));
    eventually("the new definition is followed", || world.show(&theirs)["project"]["title"] == "again");
    assert_eq!(world.show(&theirs)["agentEventIds"], json!([first, id(&second)]));
    // What else they say is nobody's concern.
    world.publish(&author.sign(1, &[&["a", &theirs]], "hello?"));
    world.publish(&author.sign_at(now_s() + 2, 31_933, &[&["d", "other"], &["title", "other"]], ""));
    let event = world.tell(1, &[&["a", &theirs]], "hello");
    answered(&world, &event);
    eventually("its process runs", || of("state") == "running");
    world.publish(&author.sign_at(now_s() + 2, 5, &[&["a", &theirs]], ""));
    eventually("its process is stopped", || of("pid").is_null());
    world.tell(1, &[&["a", &theirs]], "is anybody there?");
    eventually("the event has its end", || world.daemon.ended("failed") == 1);
    assert!(of("reason").as_str().unwrap_or_default().contains("deleted the definition"), "{}", of("reason"));
    assert_eq!(world.daemon.count("nexus", "SELECT count(*) FROM nostr_events WHERE slot LIKE '%:other'"), 0);
    assert_eq!(world.daemon.accepted(), 2, "nothing that they said");
}

#[test]
fn what_the_ledger_refuses_is_told_by_its_id_and_costs_nothing_else() {
    let world = World::new();
    let project = world.project("demo", None);
    let ledger = Connection::open(world.daemon.workspace().join("data/events.db")).unwrap();
    let refuse = "CREATE TRIGGER refuse BEFORE INSERT ON events WHEN NEW.content = 'poison' BEGIN SELECT RAISE(ABORT, 'of the test'); END";
    ledger.execute_batch(refuse).unwrap();
    let poison = world.tell(1, &[&["a", &project]], "poison");
    let event = world.tell(1, &[&["a", &project]], "hello");
    answered(&world, &event);
    let logged = world.daemon.logged("Error handling event");
    assert_eq!(logged["event"], poison);
    assert!(logged["error"].is_string(), "{logged}");
    assert_eq!((rows(&world, &poison), rows(&world, &event)), (0, 1));
}

#[test]
fn what_says_nothing_starts_the_project_and_asks_no_agent() {
    let world = World::new();
    let project = world.project("demo", None);
    let kinds = [24_000, 7, 6, 513, 30_023, 9_735, 1_984];
    eventually("the relay is live, which keeps no event of the kind 24000", || is_live(&world));
    let first = world.tell(kinds[0], &[&["a", &project]], "boot");
    let all = || world.daemon.get("/control/projects").json();
    let is_running = |one: &Value| one["id"] == project && one["state"] == "running";
    eventually("it has the project started", || all()["projects"].as_array().unwrap().iter().any(is_running));
    let others: Vec<String> = kinds[1..].iter().map(|kind| world.tell(*kind, &[&["a", &project], &["d", "x"]], "+")).collect();
    let said = world.tell(1, &[&["a", &project]], "hello");
    assert_eq!(answered(&world, &said)["content"], "hello");
    let count = i64::try_from(kinds.len() + 1).unwrap();
    eventually("each has its end", || world.daemon.ended("completed") == count);
    assert!(others.iter().chain([&first]).all(|event| rows(&world, event) == 1 && answers(&world, event).is_empty()));
    let types = world.daemon.texts("events", "SELECT DISTINCT content_type FROM events WHERE direction = 'inbound' ORDER BY 1");
    let system = ["1984", "24000", "30023", "513", "6", "9735"].map(|kind| format!("system/nostr/{kind}"));
    let wanted: Vec<String> = ["reaction".to_owned()].into_iter().chain(system).chain(["text".to_owned()]).collect();
    assert_eq!(types, wanted);
    assert_eq!(world.daemon.terminal(), count);
}

#[test]
fn a_policy_may_have_an_agent_asked_about_a_reaction() {
    let world = World::with_all(|config| {
        let conditions = json!([{ "channel": "nostr", "content_type": ["text", "reaction"] }]);
        config["access"] = json!({ "policies": [
            { "name": "reactions", "match": { "principal": { "tags": ["whitelist"] }, "conditions": conditions }, "effect": "allow" },
        ] });
    });
    let project = world.project("demo", None);
    let event = world.tell(7, &[&["a", &project]], "+");
    assert_eq!(answered(&world, &event)["content"], "+");
}

#[test]
fn a_refused_repository_is_told_in_the_projects_thread() {
    let world = World::new();
    let mut told = world.daemon.sse(&Ask::get("/api/events/stream?types=adapter.*,nex.request.*,acl.*,nostr.published"));
    let project = world.project("demo", Some("ftp://127.0.0.1/good"));
    let event = world.tell(1, &[&["a", &project]], "hello");
    let answer = answered(&world, &event);
    let text = answer["content"].as_str().unwrap();
    assert!(text.contains("has the scheme `ftp`") && text.contains("was not answered"), "{text}");
    assert!(answer["tags"].as_array().unwrap().contains(&json!(["a", project])), "{answer}");
    for notice in ["adapter.in.received", "nex.request.started", "acl.decision", "nostr.published"] {
        assert_eq!(told.wait_for(notice).json()["properties"]["project"], project, "{notice}");
    }
}
