//! Projects over their lives: slow clones, deaths of the daemon in the middle of a preparation, restarts, definitions that
//! come late or are deleted, projects put away under traffic, and what is told of all that. Relay, git server, daemon and
//! processes are real; what answers is the daemon's own process with the agent `echo`.
#![allow(clippy::unwrap_used)]

mod common;
mod gitserver;
mod relays;
mod scripted;

use common::{Ask, Signal, cgroup, eventually, find, procfs, send_signal};
use gitserver::world::{World, answered, answers, ask, is_live, once, path_of, state};
use relays::{Client, Key, Relay, now_s};
use rusqlite::Connection;
use scripted::Scripted;
use serde_json::{Value, json};
use std::path::PathBuf;

#[test]
fn a_slow_clone_holds_up_nobody_and_loses_nothing() {
    let world = World::new();
    world.server.repository("good", |_| {});
    let slow = world.project("slow", Some(&world.server.url("slow/good")));
    let quick = world.project("quick", None);
    eventually("the relay is live", || is_live(&world));
    let waiting: Vec<String> = (0..4).map(|n| ask(&world, &slow, &n.to_string())).collect();
    eventually("the clone is under way", || world.server.clones("slow/good") == 1);
    assert_eq!(once(&world, &slow, "preparing")["pid"], Value::Null);
    let other = ask(&world, &quick, "hello");
    answered(&world, &other);
    assert!(is_live(&world), "the connection lives on");
    assert!(waiting.iter().all(|event| answers(&world, event).is_empty()));
    world.server.release();
    waiting.iter().for_each(|event| drop(answered(&world, event)));
    eventually("all are over", || world.daemon.ended("completed") == 5);
    assert!(waiting.iter().all(|event| answers(&world, event).len() == 1), "each is answered once");
    let ended = "SELECT event_id FROM nexus_requests WHERE status = 'completed' ORDER BY completed_at, event_seq";
    let ended = world.daemon.texts("nexus", ended);
    let of_slow: Vec<&str> = ended.iter().filter_map(|id| id.strip_prefix("nostr:")).filter(|id| *id != other).collect();
    assert_eq!(of_slow, waiting, "in their order");
    assert_eq!(world.server.clones("slow/good"), 1);
    assert_eq!(world.daemon.metric("nexus_project_spawns_total"), 2);
}

#[test]
fn a_daemon_that_dies_while_an_event_has_its_project_cloned_begins_anew() {
    let mut world = World::new();
    world.server.repository("good", |_| {});
    let project = world.project("demo", Some(&world.server.url("slow/good")));
    let event = ask(&world, &project, "hello");
    eventually("the clone is under way", || world.server.clones("slow/good") == 1);
    world.daemon.kill9();
    world.daemon.launch();
    eventually("it is cloned again", || world.server.clones("slow/good") == 2);
    world.server.release();
    assert_eq!(answered(&world, &event)["content"], "hello");
    eventually("it is over", || world.daemon.ended("completed") == 1);
    assert_eq!((answers(&world, &event).len(), world.daemon.terminal(), world.left().len()), (1, 1, 1));
}

#[test]
fn an_event_may_speak_to_agents_of_two_projects() {
    let world = World::new();
    let projects = ["one", "two"].map(|name| world.project(name, None));
    let agents: Vec<String> =
        projects.iter().map(|project| world.prepared(project)["agents"][0]["pubkey"].as_str().unwrap().to_owned()).collect();
    let tags: [&[&str]; 4] = [&["a", &projects[0]], &["a", &projects[1]], &["p", &agents[0]], &["p", &agents[1]]];
    let event = world.tell(1, &tags, "hello");
    let both = find("both answer", || Some(answers(&world, &event)).filter(|all| all.len() == 2));
    assert_ne!(both[0]["pubkey"], both[1]["pubkey"]);
}

#[test]
fn a_deleted_definition_starts_nothing_until_there_is_another() {
    let world = World::new();
    let project = world.project("demo", None);
    answered(&world, &ask(&world, &project, "hello"));
    once(&world, &project, "running");
    let shown = world.show(&project);
    let (definition, agent) = (shown["project"]["definition_id"].as_str().unwrap(), shown["agentEventIds"][0].as_str().unwrap());
    world.publish(&Key::new(9).sign(5, &[&["e", definition]], ""));
    answered(&world, &ask(&world, &project, "nobody else deletes it"));
    world.tell(5, &[&["e", definition]], "");
    eventually("its process is stopped", || state(&world, &project)["pid"].is_null());
    ask(&world, &project, "is anybody there?");
    eventually("the event has its end", || world.daemon.ended("failed") == 1);
    assert!(state(&world, &project)["pid"].is_null());
    let reason = state(&world, &project)["reason"].as_str().unwrap_or_default().to_owned();
    assert!(reason.contains("deleted the definition"), "{reason}");
    world.publish(&world.owner.sign_at(now_s() + 1, 31_933, &[&["d", "demo"], &["title", "again"], &["agent", agent]], ""));
    eventually("the new one counts", || world.show(&project)["project"]["title"] == "again");
    assert_eq!(answered(&world, &ask(&world, &project, "and now?"))["content"], "and now?");
    assert_eq!(state(&world, &project)["reason"], Value::Null);
}

/// Has the daemon started again, with its relay dead.
fn restarted_without_relay(world: &mut World) {
    world.daemon.stop();
    let relay = std::mem::replace(&mut world.relay, Relay::start(&world.daemon.root().join("relay-2"), &[]));
    relay.kill9();
    world.daemon.launch();
}

#[test]
fn the_warm_are_brought_up_by_a_start_with_every_relay_down() {
    let mut world = World::with(|projects| projects["warm"] = json!(1));
    let projects = ["old", "new"].map(|name| world.project(name, None));
    projects.iter().for_each(|project| drop(answered(&world, &ask(&world, project, "hello"))));
    restarted_without_relay(&mut world);
    once(&world, &projects[1], "running");
    assert_eq!(state(&world, &projects[0])["pid"], Value::Null, "the one used last is warm");
}

#[test]
fn one_that_takes_its_time_to_be_prepared_holds_up_no_other_that_is_warm() {
    let mut world = World::with(|projects| projects["warm"] = json!(2));
    let plain = world.project("plain", None);
    answered(&world, &ask(&world, &plain, "hello"));
    world.tell(31_933, &[&["d", "roster"], &["p", &Key::new(6).public()]], "");
    let roster = world.coordinate("roster");
    answered(&world, &ask(&world, &roster, "hello"));
    restarted_without_relay(&mut world);
    once(&world, &plain, "running");
    assert_eq!(state(&world, &roster)["state"], "preparing", "its agent's profile is looked for, of a relay that is dead");
    once(&world, &roster, "running");
}

/// A world with a second relay, which answers nothing that it is asked for once.
fn beside_a_silent_relay() -> (World, Scripted) {
    let silent = Scripted::start();
    silent.state().late = Some("nexus-fetch".to_owned());
    let world = World::with_all(|config| config["nostr"]["relays"].as_array_mut().unwrap().push(json!(silent.url())));
    eventually("both relays are live", || is_live(&world));
    (world, silent)
}

/// The definition of `demo`, which the daemon has heard.
fn defined(world: &World, tags: &[&[&str]]) -> String {
    let all: Vec<&[&str]> = [&["d", "demo"] as &[&str]].into_iter().chain(tags.iter().copied()).collect();
    world.tell(31_933, &all, "");
    let kept = "SELECT count(*) FROM nostr_events WHERE kind = 31933";
    eventually("its definition is there", || world.daemon.count("nexus", kept) == 1);
    world.coordinate("demo")
}

#[test]
fn a_start_does_not_wait_for_a_profile_that_nobody_has() {
    let (world, silent) = beside_a_silent_relay();
    let project = defined(&world, &[&["p", &Key::new(6).public()]]);
    let asked = || silent.state().of("REQ").iter().filter(|question| question[2]["kinds"] == json!([0])).count();
    world.prepared(&project);
    assert_eq!(asked(), 1);
    assert_eq!(answered(&world, &ask(&world, &project, "hello"))["content"], "hello");
    assert_eq!(asked(), 1, "a start doesn't ask again for a while");
    world.prepared(&project);
    assert_eq!(asked(), 2, "who prepares it by hand does");
}

#[test]
fn a_start_does_not_wait_for_an_agent_that_nobody_has() {
    let (world, silent) = beside_a_silent_relay();
    let there = world.tell(4_199, &[&["title", "Coder"], &["role", "coder"]], "Write code.");
    let nobodys = "ab".repeat(32);
    let project = defined(&world, &[&["agent", &there], &["agent", &nobodys]]);
    let asks = |question: &Value| question[2]["ids"].as_array().is_some_and(|ids| ids.contains(&json!(nobodys)));
    let asked = || silent.state().of("REQ").iter().filter(|question| asks(question)).count();
    world.prepared(&project);
    assert_eq!(asked(), 1);
    assert_eq!(answered(&world, &ask(&world, &project, "hello"))["content"], "hello");
    assert_eq!(asked(), 1, "a start doesn't ask again for a while");
    assert_eq!(state(&world, &project)["reason"], Value::Null, "it runs");
    world.prepared(&project);
    assert_eq!(asked(), 2, "who prepares it by hand does");
}

#[test]
fn an_agent_that_a_start_did_not_find_is_there_at_the_next_once_it_was_heard_of() {
    let (world, _silent) = beside_a_silent_relay();
    let there = world.tell(4_199, &[&["title", "Coder"]], "Write code.");
    let late = world.owner.sign(4_199, &[&["title", "Late"]], "Be brief.");
    let project = defined(&world, &[&["agent", &there], &["agent", late["id"].as_str().unwrap()]]);
    assert_eq!(world.prepared(&project)["agents"].as_array().map(Vec::len), Some(1));
    world.publish(&late);
    eventually("it was heard of", || world.daemon.count("nexus", "SELECT count(*) FROM nostr_events WHERE kind = 4199") == 2);
    assert_eq!(answered(&world, &ask(&world, &project, "hello"))["content"], "hello");
    let shown: Value = serde_json::from_str(&world.daemon.nexus_ok(&["project", "show", &project, "--json"])).unwrap();
    let agents = &shown["agents"];
    assert_eq!(agents.as_array().map(Vec::len), Some(2), "{agents}");
}

#[test]
fn one_that_is_stopped_while_it_is_warmed_stays_down() {
    let mut world = World::with(|projects| projects["warm"] = json!(1));
    let plain = world.project("plain", None);
    answered(&world, &ask(&world, &plain, "hello"));
    world.tell(31_933, &[&["d", "roster"], &["p", &Key::new(6).public()]], "");
    let roster = world.coordinate("roster");
    answered(&world, &ask(&world, &roster, "hello"));
    restarted_without_relay(&mut world);
    eventually("it is being prepared", || state(&world, &roster)["state"] == "preparing");
    world.daemon.nexus_ok(&["project", "stop", "roster"]);
    once(&world, &roster, "ready");
    // One after another is brought up.
    world.daemon.nexus_ok(&["project", "start", "plain"]);
    assert_eq!((&state(&world, &roster)["pid"], state(&world, &plain)["pid"].is_u64()), (&Value::Null, true));
}

#[test]
fn one_project_may_be_run_otherwise() {
    let own = format!("31933:{}:own", Key::new(1).public());
    let world = World::with(|projects| {
        let command = "sh -c 'echo $COLOUR > seen; exec sleep 1000'";
        projects["overrides"] = json!({ own.clone(): { "command": command, "protocol": "none", "env": { "COLOUR": "red" } } });
    });
    assert_eq!(world.project("own", None), own);
    let plain = world.project("plain", None);
    ask(&world, &own, "hello");
    let seen = find("its own program runs", || {
        let path = state(&world, &own)["path"].as_str().map(PathBuf::from)?;
        std::fs::read_to_string(path.join("seen")).ok().filter(|text| text.ends_with('\n'))
    });
    assert_eq!(seen, "red\n");
    assert_eq!(answered(&world, &ask(&world, &plain, "hello"))["content"], "hello");
}

#[test]
fn what_becomes_of_a_project_is_told() {
    let world = World::new();
    let mut told = world.daemon.sse(&Ask::get("/api/events/stream?types=project.*"));
    let project = world.project("demo", None);
    assert_eq!(told.wait_for("project.discovered").json()["properties"]["project"], project);
    answered(&world, &ask(&world, &project, "hello"));
    for notice in ["project.preparing", "project.started", "project.ready"] {
        assert_eq!(told.wait_for(notice).json()["properties"]["project"], project, "{notice}");
    }
    let running = once(&world, &project, "running");
    let shown = world.show(&project);
    for name in ["startedAt", "pid", "uptime_ms", "cpu_seconds", "rss_bytes", "fds", "queue", "restarts", "crashes", "receive_to_ready_ms"]
    {
        assert!(!running[name].is_null() && !shown[name].is_null(), "{name}: {running} {shown}");
    }
    assert_eq!(world.daemon.get("/health").json()["projects"]["states"]["running"], 1);
    assert_eq!(world.daemon.status()["projects"][0]["id"], project);
    let disposable: Value = serde_json::from_str(&world.daemon.nexus_ok(&["project", "gc", "--json"])).unwrap();
    assert_eq!(disposable["projects"][0]["running"], true);
    assert!(world.daemon.nexus_ok(&["project", "gc"]).contains("  running  "));
    let metrics = world.daemon.get("/metrics").body;
    let slug = running["slug"].as_str().unwrap();
    let (own, child) = (format!("{{project=\"{slug}\"}}"), format!("{{child=\"project/{slug}\"}}"));
    for name in [
        "nexus_project_active ",
        "nexus_project_spawns_total ",
        "nexus_project_exits_total ",
        "nexus_project_crashes_total ",
        "nexus_project_lifetime_seconds_count ",
        "nexus_project_ready_seconds_count ",
        "nexus_project_receive_to_ready_seconds_count ",
        &format!("nexus_project_last_receive_to_ready_seconds{own}"),
        &format!("nexus_project_uptime_seconds{own}"),
        &format!("nexus_project_queue{own}"),
        &format!("nexus_child_cpu_seconds_total{child}"),
        &format!("nexus_child_rss_bytes{child}"),
        &format!("nexus_child_fds{child}"),
    ] {
        assert!(metrics.lines().any(|line| line.starts_with(name)), "no {name} in {metrics}");
    }
    send_signal(i32::try_from(running["pid"].as_i64().unwrap()).unwrap(), Signal::KILL);
    let exited = told.wait_for("project.exited").json();
    assert_eq!((&exited["properties"]["signal"], &exited["properties"]["crash"]), (&json!(9), &json!(true)));
    let logged = world.daemon.logged("Project process exited");
    assert_eq!((&logged["projectId"], &logged["signal"]), (&json!(project), &json!(9)));
}

#[test]
fn an_event_that_comes_while_its_project_is_put_away_is_answered() {
    let world = World::new();
    let project = world.project("demo", None);
    answered(&world, &ask(&world, &project, "hello"));
    let mut asked = 1;
    for round in 0..4 {
        let event = ask(&world, &project, &format!("before {round}"));
        // Put away, at work, or put away still since the round before: whichever comes first.
        let ran = world.daemon.nexus(&["project", "gc", "demo", "--force", "--json"]);
        assert!(ran.code == Some(0) || ran.stdout.contains("it is at work"), "{ran:?}");
        answered(&world, &event);
        asked += 1;
    }
    eventually("each has its end", || world.daemon.ended("completed") == asked);
    assert_eq!(world.daemon.terminal(), asked, "none failed");
}

#[test]
fn a_refused_putting_away_leaves_the_project_as_it_was() {
    let world = World::new();
    let project = world.project("demo", None);
    let path = path_of(&world.prepared(&project));
    answered(&world, &ask(&world, &project, "hello"));
    std::fs::write(path.join("work"), "x").unwrap();
    let ran = find("it is not at work any more", || {
        let ran = world.daemon.nexus(&["project", "gc", "demo", "--json"]);
        (!ran.stdout.contains("it is at work")).then_some(ran)
    });
    assert!(ran.code == Some(1) && ran.stdout.contains("uncommitted") && path.join("work").exists(), "{ran:?}");
    answered(&world, &ask(&world, &project, "again"));
    assert_eq!(state(&world, &project)["path"], path.to_str().unwrap());
}

#[test]
fn what_was_approved_when_the_daemon_died_is_installed_by_the_next() {
    let mut world = World::new();
    let server = world.tell(4200, &[&["name", "files"], &["command", "file-server"]], "");
    let agent = world.tell(4199, &[&["title", "coder"]], "");
    world.tell(31_933, &[&["d", "demo"], &["agent", &agent], &["mcp", &server]], "");
    let project = world.coordinate("demo");
    assert!(world.prepared(&project)["mcp"].as_array().unwrap().is_empty());
    world.daemon.stop();
    // The moment between the decision's commit and what follows from it.
    let ledger = Connection::open(world.daemon.workspace().join("data/nexus.db")).unwrap();
    assert_eq!(ledger.execute("UPDATE approvals SET status = 'approved', decided_at = 1 WHERE kind = 'mcp'", []).unwrap(), 1);
    drop(ledger);
    world.daemon.launch();
    assert_eq!(world.prepared(&project)["mcp"][0]["slug"], "files");
}

/// The newest profile of an agent that the relay has.
fn profile(world: &World, agent: &str) -> Option<Value> {
    let event = Client::connect(world.relay.url()).stored(json!({ "kinds": [0], "authors": [agent] })).pop()?;
    serde_json::from_str(event["content"].as_str()?).ok()
}

#[test]
fn a_profile_that_was_not_published_when_the_daemon_died_is_by_the_next() {
    let mut world = World::new();
    let project = world.project("demo", None);
    let agent = world.prepared(&project)["agents"][0]["pubkey"].as_str().unwrap().to_owned();
    eventually("the profile is published", || profile(&world, &agent).is_some());
    world.daemon.stop();
    // The moment between the project's commit and that of its agent's profile.
    let ledger = Connection::open(world.daemon.workspace().join("data/nexus.db")).unwrap();
    ledger.execute_batch("DELETE FROM nostr_outbox; DELETE FROM nostr_published").unwrap();
    drop(ledger);
    world.daemon.launch();
    answered(&world, &ask(&world, &project, "hello"));
    let accepted = "SELECT count(*) FROM nostr_published WHERE once LIKE 'profile:%' AND status = 'accepted'";
    eventually("the next one publishes it", || world.daemon.count("nexus", accepted) == 1);
}

#[test]
fn a_profile_that_changes_and_changes_back_is_published_each_time() {
    let world = World::new();
    let project = world.project("demo", None);
    let prepared = world.prepared(&project);
    let agent = prepared["agents"][0]["pubkey"].as_str().unwrap();
    let name = || profile(&world, agent).map(|profile| profile["name"].clone());
    eventually("the profile is published", || name() == Some(json!("Project Manager")));
    let mut files = std::fs::read_dir(path_of(&prepared).join(".tenex/agents")).unwrap();
    let file = files.next().unwrap().unwrap().path();
    for other in ["Somebody Else", "Project Manager"] {
        let mut known: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
        known["name"] = json!(other);
        std::fs::write(&file, known.to_string()).unwrap();
        // Twice: what it says already is not published again.
        for _ in 0..2 {
            world.prepared(&project);
        }
        eventually("the change is published", || name() == Some(json!(other)));
    }
    assert_eq!(world.daemon.count("nexus", "SELECT count(*) FROM nostr_published WHERE once LIKE 'profile:%'"), 3);
}

#[test]
fn an_agent_whose_definition_comes_late_is_installed_then() {
    let world = World::new();
    let agent = world.owner.sign(4199, &[&["title", "late"]], "Be brief.");
    let agent_id = agent["id"].as_str().unwrap();
    world.tell(31_933, &[&["d", "demo"], &["agent", agent_id]], "");
    let project = world.coordinate("demo");
    let first = world.prepared(&project);
    assert!(first["missing"].to_string().contains("no agent"), "{first}");
    world.publish(&agent);
    let prepared = find("the agent is there", || Some(world.prepared(&project)).filter(|one| one["agents"][0]["slug"] == "late"));
    assert_eq!(prepared["missing"], json!([]));
    let event = ask(&world, &project, "hello");
    assert_eq!(answered(&world, &event)["pubkey"], prepared["agents"][0]["pubkey"]);
}

#[test]
fn what_waits_for_a_definition_waits_for_nobodys_clone() {
    let world = World::with(|projects| projects["prepare_concurrent"] = json!(1));
    world.server.repository("good", |_| {});
    let absent = world.owner.sign(4199, &[&["title", "late"]], "Be brief.");
    let agent = world.tell(4199, &[&["title", "here"]], "Be brief.");
    world.tell(31_933, &[&["d", "demo"], &["agent", &agent], &["agent", absent["id"].as_str().unwrap()]], "");
    let project = world.coordinate("demo");
    world.prepared(&project);
    let slow = world.project("slow", Some(&world.server.url("slow/good")));
    ask(&world, &slow, "hello");
    eventually("the clone is under way", || world.server.clones("slow/good") == 1);
    let event = ask(&world, &project, "hello");
    answered(&world, &event);
    assert_eq!(state(&world, &slow)["state"], "preparing");
    world.server.release();
}

#[test]
fn who_does_the_turns_of_a_project_gets_its_secrets() {
    let world = World::with_all(|config| {
        let command = "sh -c 'cat > /dev/null; echo \"$API_KEY, $TOLD, $ALIKE\"'";
        config["agents"] = json!({ "default": "shell", "shell": { "runner": "command", "command": command } });
    });
    world.tell(31_933, &[&["d", "demo"], &["agent", &world.tell(4199, &[&["title", "coder"]], "")]], "");
    let project = world.coordinate("demo");
    world.prepared(&project);
    for (name, value) in [("API_KEY", "hush-hush\n"), ("ALIKE", "command:echo loud\n")] {
        let ran = world.daemon.nexus_told(value, &["project", "secret", "set", "demo", name]);
        assert_eq!(ran.code, Some(0), "{ran:?}");
    }
    world.daemon.nexus_ok(&["project", "secret", "set", "demo", "TOLD", "--command", "echo 'tell nobody'"]);
    let answer = answered(&world, &ask(&world, &project, "hello"));
    let told = "hush-hush, tell nobody, command:echo loud";
    assert_eq!(answer["content"].as_str().unwrap().trim(), told, "what a command tells, and no value is run");
}

#[test]
fn the_servers_of_a_project_get_its_secrets() {
    let world = World::with_all(|config| {
        // Nobody answers there: only whose tools it would use matters.
        let model = json!({ "runner": "llm", "provider": "ollama", "model": "m", "url": "http://127.0.0.1:9/v1" });
        config["agents"] = json!({ "default": "model", "model": model });
    });
    let command = "sh -c 'printf %s \"$API_KEY\" > seen; exec sleep 1000'";
    let server = world.tell(4200, &[&["name", "files"], &["command", command]], "");
    let agent = world.tell(4199, &[&["title", "coder"]], "");
    world.tell(31_933, &[&["d", "demo"], &["agent", &agent], &["mcp", &server]], "");
    let project = world.coordinate("demo");
    let seen = path_of(&world.prepared(&project)).join("seen");
    world.approve(&world.approvals()[0]);
    eventually("the server is installed", || world.prepared(&project)["mcp"][0]["slug"] == "files");
    let ran = world.daemon.nexus_told("hush-hush\n", &["project", "secret", "set", "demo", "API_KEY"]);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    ask(&world, &project, "hello");
    eventually("the project's server has it", || std::fs::read_to_string(&seen).is_ok_and(|text| text == "hush-hush"));
}

#[test]
fn what_an_agent_of_a_project_left_ends_with_its_turn_and_the_project_goes_on() {
    let place = tempfile::tempdir().unwrap();
    let [pid, gate] = ["escapee", "gate"].map(|name| place.path().join(name));
    let script = format!(
        r#"env -i setsid sh -c 'echo $$ >{}; exec sleep 1000' </dev/null >/dev/null 2>&1 &
           cat >/dev/null; until rm {} 2>/dev/null; do sleep 0.1; done; echo done"#,
        pid.display(),
        gate.display()
    );
    let world = World::with_all(|config| {
        let command = shell_words::join(["sh", "-c", script.as_str()]);
        config["agents"] = json!({ "default": "leaver", "leaver": { "runner": "command", "command": command } });
    });
    world.tell(31_933, &[&["d", "demo"], &["agent", &world.tell(4199, &[&["title", "coder"]], "")]], "");
    let project = world.coordinate("demo");
    world.prepared(&project);
    let event = ask(&world, &project, "hello");
    let escapee = find("a process that was left behind", || {
        let written = std::fs::read_to_string(&pid).ok()?.trim().parse().ok()?;
        procfs::Process::of(written).filter(procfs::Process::is_alive)
    });
    let process = once(&world, &project, "running")["pid"].clone();
    std::fs::write(&gate, "").unwrap();
    assert_eq!(answered(&world, &event)["content"].as_str().unwrap().trim(), "done");
    if cgroup::is_usable() {
        eventually("what it left is gone", || !escapee.is_alive());
        assert_eq!(once(&world, &project, "running")["pid"], process, "it went only with its project");
    } else {
        assert!(escapee.is_alive(), "more is promised than `scan` means: change what is said of it");
        send_signal(escapee.pid, Signal::KILL);
    }
}

#[test]
fn what_ends_the_keeper_of_one_project_ends_no_other() {
    let world = World::with_all(|config| {
        config["agents"] = json!({ "default": "cat", "cat": { "runner": "command", "command": "cat" } });
    });
    let agent = world.tell(4199, &[&["title", "coder"]], "");
    let running = ["one", "other"].map(|name| {
        world.tell(31_933, &[&["d", name], &["agent", &agent]], "");
        let project = world.coordinate(name);
        world.prepared(&project);
        answered(&world, &ask(&world, &project, "hello"));
        let pid = once(&world, &project, "running")["pid"].as_i64().unwrap();
        (project, i32::try_from(pid).unwrap())
    });
    let [(project, process), (_, other)] = &running;
    let other = procfs::Process::of(*other).unwrap();
    let [keeper] = procfs::children_of(*process).try_into().unwrap();
    send_signal(keeper.pid, Signal::KILL);
    eventually("it has another keeper", || procfs::children_of(*process).iter().any(|child| child.pid != keeper.pid));
    answered(&world, &ask(&world, project, "and after it?"));
    assert!(other.is_alive(), "the process of another project was ended");
}
