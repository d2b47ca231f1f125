//! `nexus search` and agents' memory, with a real daemon: found soon and once, whatever becomes of the index;
//! asked by anybody with anything; and never what an agent was not asked.
#![allow(clippy::unwrap_used)]

mod common;

use common::{Daemon, config, eventually, fake, find, lines};
use serde_json::{Value, json};
use std::fs::{self, OpenOptions};
use std::io::{Seek, SeekFrom, Write};
use std::path::PathBuf;

const EXIT_USAGE: Option<i32> = Some(2);
const EXIT_NOT_FOUND: Option<i32> = Some(4);
const ENTRIES: &str = "SELECT count(*) FROM entries";
const ECHO: &str = "cortex/echo";
const PAGE_BYTES: u64 = 8192;

fn index(daemon: &Daemon, agent: &str) -> PathBuf {
    daemon.workspace().join(format!("data/cortex/{agent}.db"))
}

/// What is found by a command; it must succeed.
fn hits(daemon: &Daemon, words: &[&str]) -> Vec<Value> {
    let answer: Value = serde_json::from_str(&daemon.nexus_ok(&[&["search", "--json"][..], words].concat())).unwrap();
    answer["hits"].as_array().unwrap().clone()
}

/// Waits until as many are found.
fn found(daemon: &Daemon, words: &[&str], count: usize) -> Vec<Value> {
    find(&format!("{words:?} finds {count}"), || Some(hits(daemon, words)).filter(|hits| hits.len() == count))
}

/// Waits until the index has all that was said so far.
fn filled(daemon: &Daemon) {
    let ask = json!({ "query": "anything" });
    eventually("the index is filled", || daemon.post("/control/search", &ask).json()["complete"] == true);
}

/// An event of the channel `fake`, as a line.
fn line(n: u32, sender: &str, peer: &str, content: &str) -> String {
    let event = json!({
        "event_id": format!("fake:{n}"), "timestamp": 0, "content": content, "content_type": "text", "channel": "fake",
        "account_id": "me", "sender_id": sender, "peer_id": peer, "peer_kind": "dm",
    });
    format!("{event}\n")
}

#[test]
fn what_was_said_is_found_with_a_daemon_without_one_and_once_after_a_crash() {
    let mut daemon = Daemon::start(&config(json!({})));
    daemon.nexus_ok(&["send", "the dentist is on Tuesday"]);
    let both = found(&daemon, &["dentist", "tues*"], 2);
    assert_eq!(both.iter().filter(|hit| hit["kind"] == "event").count(), 1, "{both:?}");
    let turn = &found(&daemon, &["dentist", "--kind", "turn", "--agent", "echo", "--since", "1h"], 1)[0];
    assert!(turn["source"].as_str().unwrap().starts_with("turn_") && turn["channel"] == "cli", "{turn}");
    let session = turn["session"].as_str().unwrap().to_owned();
    assert_eq!(hits(&daemon, &["dentist", "--session", &session]).len(), 2);
    assert!(hits(&daemon, &["dentist", "--session", "another"]).is_empty());
    assert_eq!(hits(&daemon, &["dentist", "--limit", "1"]).len(), 1);
    let text = daemon.nexus_ok(&["search", "dentist"]);
    assert!(text.contains("the dentist is on Tuesday") && text.contains("→"), "{text}");

    daemon.kill9();
    assert_eq!(hits(&daemon, &["dentist"]).len(), 2, "without a daemon");
    daemon.launch();
    daemon.nexus_ok(&["send", "a plumber too"]);
    found(&daemon, &["plumber"], 2);
    assert_eq!(daemon.count(ECHO, ENTRIES), 4, "something is there twice");
    daemon.stop();
}

#[test]
fn an_unknown_agent_is_not_found_and_nothing_found_is_no_failure() {
    let mut daemon = Daemon::start(&config(json!({})));
    daemon.nexus_ok(&["send", "hello"]);
    found(&daemon, &["hello"], 2);
    for _ in ["with a daemon", "without one"] {
        for words in [&["search", "hello", "--agent", "nobody"][..], &["search", "--rebuild", "--agent", "../data/events"]] {
            let ran = daemon.nexus(words);
            assert_eq!(ran.code, EXIT_NOT_FOUND, "{ran:?}");
        }
        let ran = daemon.nexus(&["search", "goodbye"]);
        assert!(ran.code == Some(0) && ran.stderr.contains("nothing found") && ran.stdout.is_empty(), "{ran:?}");
        assert_eq!(daemon.nexus(&["search", &"x".repeat(5000)]).code, EXIT_USAGE);
        if daemon.is_running() {
            daemon.stop();
        }
    }
}

#[test]
fn hostile_queries_are_words_or_nothing() {
    let daemon = Daemon::start(&config(json!({})));
    daemon.nexus_ok(&["send", "NEAR the river"]);
    found(&daemon, &["river"], 2);
    let syntax = ["\"", "*", "NEAR(", "text:river", "river AND", "river)", "{river}", "^river", "-- -x", "\\"];
    for query in syntax.into_iter().chain(["'; DROP TABLE words; --", "🎉"]) {
        let ran = daemon.nexus(&["search", "--", query]);
        assert_eq!(ran.code, Some(0), "{query:?}: {ran:?}");
    }
    assert_eq!(hits(&daemon, &["NEAR("]).len(), 2);
    for query in ["\0", "river\0\"", "\"river\0", "\u{1}\u{2}", "\u{301}\u{200d}"] {
        let answer = daemon.post("/control/search", &json!({ "query": query }));
        assert!(answer.status == 200 && answer.json()["hits"].is_array(), "{query:?}: {answer:?}");
    }
    let long = daemon.post("/control/search", &json!({ "query": "x".repeat(1024 * 1024) }));
    assert_eq!(long.status, 400, "{long:?}");
    let many = daemon.post("/control/search", &json!({ "query": "river", "limit": 1_000_000 }));
    assert_eq!(many.json()["hits"].as_array().unwrap().len(), 2);
    assert_eq!(daemon.post("/control/search", &json!({ "query": "river", "agent": "../../etc" })).status, 404);
}

#[test]
fn an_index_that_is_removed_is_made_again_under_a_daemon_and_by_the_next_start() {
    let mut daemon = Daemon::start(&config(json!({})));
    daemon.nexus_ok(&["send", "the needle"]);
    found(&daemon, &["needle"], 2);
    fs::remove_file(index(&daemon, "echo")).unwrap();
    found(&daemon, &["needle"], 2);
    daemon.stop();
    fs::remove_dir_all(daemon.workspace().join("data/cortex")).unwrap();
    assert!(hits(&daemon, &["needle"]).is_empty());
    daemon.launch();
    found(&daemon, &["needle"], 2);
    daemon.stop();
    // By a command, without a daemon: gone until the next start.
    let said = daemon.nexus_ok(&["search", "--rebuild"]);
    assert!(said.contains("echo: the index is made anew; the next start of the daemon fills it"), "{said}");
    assert!(hits(&daemon, &["needle"]).is_empty());
    daemon.launch();
    found(&daemon, &["needle"], 2);
    assert_eq!(daemon.count(ECHO, ENTRIES), 2);
}

#[test]
fn a_damaged_index_is_set_aside_made_anew_and_told_and_nothing_else_suffers() {
    let mut daemon = Daemon::start(&config(json!({})));
    let text = format!("the needle {}", "and hay ".repeat(2000));
    daemon.nexus_ok(&["send", &text]);
    found(&daemon, &["needle"], 2);
    daemon.stop();
    let path = index(&daemon, "echo");
    let bytes = fs::metadata(&path).unwrap().len();
    let mut file = OpenOptions::new().write(true).open(&path).unwrap();
    file.seek(SeekFrom::Start(PAGE_BYTES)).unwrap();
    file.write_all(&vec![0x5a; usize::try_from(bytes - PAGE_BYTES).unwrap()]).unwrap();
    drop(file);

    daemon.launch();
    assert_eq!(daemon.nexus_ok(&["send", "still", "there"]).trim(), "still there");
    assert_eq!(daemon.get("/health").status, 200);
    found(&daemon, &["needle"], 2);
    found(&daemon, &["still"], 2);
    assert!(daemon.stdout().contains("the search index is damaged"));
    let doctor: Value = serde_json::from_str(&daemon.nexus(&["doctor", "--json"]).stdout).unwrap();
    let told = doctor["findings"].as_array().unwrap().iter().find(|finding| finding["check"] == "search").unwrap();
    assert!(told["severity"] == "warning" && told["where"].as_str().unwrap().contains("echo.db.corrupt-"), "{told}");
}

#[test]
fn an_index_that_is_made_anew_while_messages_flow_has_each_once() {
    const MESSAGES: usize = 60;
    let daemon = Daemon::start(&config(json!({})));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for n in 0..MESSAGES {
                daemon.nexus_ok(&["send", &format!("message number{n}")]);
            }
        });
        for _ in 0..5 {
            let said = daemon.nexus_ok(&["search", "--rebuild", "--agent", "echo"]);
            assert!(said.contains("the daemon is filling it"), "{said}");
        }
    });
    found(&daemon, &["message", "--kind", "turn", "--limit", "100"], MESSAGES);
    found(&daemon, &["message", "--kind", "event", "--limit", "100"], MESSAGES);
    filled(&daemon);
    assert_eq!(daemon.count(ECHO, ENTRIES), 2 * i64::try_from(MESSAGES).unwrap());
}

#[test]
fn what_a_denied_sender_wrote_is_in_no_index() {
    let mut daemon = Daemon::new();
    let file = daemon.file("lines");
    fs::write(&file, line(1, "ann", "ann", "welcome words") + &line(2, "mallory", "mallory", "poisoned words")).unwrap();
    let mut wanted = config(json!({ "fake": fake(json!({ "lines_file": file, "events": 0 })) }));
    wanted["access"]["owner"] = json!(["fake:ann"]);
    daemon.configure(&wanted);
    daemon.launch();
    eventually("one is answered and one denied", || daemon.ended("completed") == 1 && daemon.ended("denied") == 1);
    found(&daemon, &["words"], 2);
    filled(&daemon);
    assert!(hits(&daemon, &["poisoned"]).is_empty());
    assert_eq!(daemon.texts(ECHO, "SELECT DISTINCT text FROM entries"), ["welcome words"]);
}

/// A daemon whose agent notes the memory that it is told, one line for each run.
fn remembering(access: Value) -> (Daemon, Value) {
    let mut daemon = Daemon::new();
    let (script, log, feed) = (daemon.file("agent.sh"), daemon.file("memory"), daemon.file("lines"));
    fs::write(&script, format!("grep -o '\"memory\":\\[[^]]*\\]' >> {log} || echo none >> {log}\necho noted\n")).unwrap();
    fs::write(&feed, "").unwrap();
    let mut wanted = config(json!({ "fake": fake(json!({ "lines_file": feed, "events": 0 })) }));
    wanted["agents"] = json!({ "default": "helper", "helper": {
        "runner": "command", "command": format!("sh {script}"), "memory": { "matches": 5, "max_bytes": 1024 },
    } });
    wanted["access"] = access;
    daemon.configure(&wanted);
    daemon.launch();
    daemon.adapter_once("fake/me", "running");
    (daemon, wanted)
}

/// Brings one more event, and waits for what its agent notes.
fn ask(daemon: &Daemon, n: u32, peer: &str, content: &str) -> String {
    let before = lines(daemon.file("memory")).len();
    let mut feed = OpenOptions::new().append(true).open(daemon.file("lines")).unwrap();
    feed.write_all(line(n, "ann", peer, content).as_bytes()).unwrap();
    daemon.nexus_ok(&["adapter", "restart", "fake/me"]);
    find("the agent ran", || lines(daemon.file("memory")).get(before).cloned())
}

fn policy(data_access: &str) -> Value {
    json!({ "owner": [], "policies": [{
        "name": "ann", "match": { "conditions": [{ "channel": "fake" }] }, "effect": "allow",
        "permissions": { "data_access": data_access }, "session": { "key": "fake:{peer_id}" },
    }] })
}

#[test]
fn an_agent_is_told_of_the_past_what_the_access_decision_lets_it_see() {
    let (daemon, mut wanted) = remembering(policy("full"));
    assert_eq!(ask(&daemon, 1, "kitchen", "the saffron stands behind the cinnamon"), "none");
    found(&daemon, &["saffron", "--kind", "event"], 1);
    // A search that takes too long tells nothing, so one of many is enough.
    let mut n = 1;
    let told = find("another session is told of it", || {
        n += 1;
        Some(ask(&daemon, n, "garden", &format!("where is the saffron? ({n})"))).filter(|told| told.contains("cinnamon"))
    });
    let told: Value = serde_json::from_str(&format!("{{{told}}}")).unwrap();
    let memory = told["memory"].as_array().unwrap();
    assert!(memory.iter().any(|one| one["session"] == "fake:kitchen" && one["at"].is_i64()), "{told}");
    assert!(memory.iter().all(|one| !one["text"].as_str().unwrap().starts_with("where is")), "it is told of its own history: {told}");
    eventually("its trace counts them", || {
        let trace: Value = serde_json::from_str(&daemon.nexus_ok(&["trace", &format!("fake:{n}"), "--json"])).unwrap();
        trace["request"]["trace"]["agent"]["memory_matches"] == json!(memory.len())
    });

    for data_access in ["contextual", "minimal", "none"] {
        wanted["access"] = policy(data_access);
        daemon.configure(&wanted);
        daemon.nexus_ok(&["daemon", "reload"]);
        n += 1;
        assert_eq!(ask(&daemon, n, "cellar", &format!("where is the saffron? ({n})")), "none", "{data_access}");
    }
}

#[test]
fn a_session_that_was_put_away_is_remembered_no_more() {
    // More than is told of a session's newest turns: what was said before it has to be found.
    const HAY_BYTES: usize = 70 * 1024;
    let (daemon, _) = remembering(policy("contextual"));
    ask(&daemon, 1, "kitchen", "the saffron stands behind the cinnamon");
    ask(&daemon, 2, "garden", "the saffron grows beside the cinnamon");
    found(&daemon, &["saffron", "--kind", "event"], 2);
    ask(&daemon, 3, "kitchen", &"hay ".repeat(HAY_BYTES / 4));
    let mut n = 3;
    let told = find("its own session is told of it", || {
        n += 1;
        Some(ask(&daemon, n, "kitchen", &format!("where is the saffron? ({n})"))).filter(|told| told.contains("cinnamon"))
    });
    assert!(told.contains("behind") && !told.contains("beside"), "another session's: {told}");
    daemon.nexus_ok(&["sessions", "archive", "fake:kitchen"]);
    for _ in 0..2 {
        n += 1;
        let told = ask(&daemon, n, "kitchen", &format!("where is the saffron? ({n})"));
        assert!(!told.contains("cinnamon"), "{told}");
    }
}

#[test]
fn a_restored_backup_is_searched_and_not_what_came_after_it() {
    let mut daemon = Daemon::start(&config(json!({})));
    daemon.nexus_ok(&["send", "before the backup"]);
    found(&daemon, &["before"], 2);
    let backup = daemon.file("copy");
    daemon.nexus_ok(&["backup", &backup]);
    daemon.nexus_ok(&["send", "after the backup"]);
    found(&daemon, &["after"], 2);
    assert!(!PathBuf::from(&backup).join("cortex").exists());
    daemon.stop();
    daemon.nothing_runs();
    daemon.nexus_ok(&["restore", &backup, "--resume", "--yes"]);
    daemon.launch();
    found(&daemon, &["before"], 2);
    filled(&daemon);
    assert!(hits(&daemon, &["after"]).is_empty());
}

#[test]
fn what_an_agent_said_that_is_configured_no_more_is_found_after_a_rebuild_and_a_restore() {
    let mut daemon = Daemon::new();
    let mut wanted = config(json!({}));
    wanted["agents"] = json!({ "default": "gone", "gone": { "runner": "command", "command": "sh -c 'cat > /dev/null; echo a needle'" } });
    daemon.configure(&wanted);
    daemon.launch();
    daemon.nexus_ok(&["send", "hello"]);
    found(&daemon, &["needle"], 1);
    let backup = daemon.file("copy");
    daemon.nexus_ok(&["backup", &backup]);
    daemon.stop();
    wanted["agents"] = json!({});
    daemon.configure(&wanted);
    daemon.launch();
    let said = daemon.nexus_ok(&["search", "--rebuild"]);
    assert!(said.contains("gone: the index is made anew; the daemon is filling it"), "{said}");
    filled(&daemon);
    assert_eq!(hits(&daemon, &["needle", "--agent", "gone"]).len(), 1);
    daemon.stop();

    daemon.nexus_ok(&["search", "--rebuild"]);
    assert!(!index(&daemon, "gone").exists());
    // Its turns are there all the same: it is known, and the next start fills it.
    assert!(hits(&daemon, &["needle", "--agent", "gone"]).is_empty());
    let said = daemon.nexus_ok(&["search", "--rebuild", "--agent", "gone"]);
    assert!(said.contains("gone: the index is made anew; the next start of the daemon fills it"), "{said}");
    daemon.launch();
    found(&daemon, &["needle", "--agent", "gone"], 1);
    daemon.stop();

    daemon.nothing_runs();
    daemon.nexus_ok(&["restore", &backup, "--resume", "--yes"]);
    assert!(!index(&daemon, "gone").exists());
    daemon.launch();
    filled(&daemon);
    assert_eq!(hits(&daemon, &["needle", "--agent", "gone"]).len(), 1);
}
