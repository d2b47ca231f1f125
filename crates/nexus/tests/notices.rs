//! What the bus says of a request, from one source with what adapters are streamed and the ledger keeps; whose each notice
//! is, and in which order they come.
#![allow(clippy::unwrap_used)]

mod automation;
mod common;
mod streamed;

use automation::{doing, put, sent};
use common::model::{Model, PROVIDERS, call, text};
use common::{Ask, Daemon, NEXUS, Signal, Sse, config, eventually, find, send_signal};
use serde_json::{Value, json};
use std::path::PathBuf;
use streamed::streaming;

/// What the bus has said since the daemon's start, of these types.
fn since_start(daemon: &Daemon, types: &str) -> Sse {
    let mut notices = daemon.sse(&Ask::get(&format!("/api/events/stream?types={types}&since=0:0")));
    assert_eq!(notices.wait().event, "gap", "no daemon has this place");
    notices
}

/// Notices up to the first of type `last`, as type and properties.
fn until(notices: &mut Sse, last: &str) -> Vec<(String, Value)> {
    let mut seen = Vec::new();
    while seen.last().is_none_or(|(event, _): &(String, Value)| event != last) {
        let notice = notices.wait();
        seen.push((notice.event.clone(), notice.json()["properties"].clone()));
    }
    seen
}

fn of<'n>(seen: &'n [(String, Value)], event: &str) -> Vec<&'n Value> {
    seen.iter().filter(|(kind, _)| kind == event).map(|(_, properties)| properties).collect()
}

fn place(seen: &[(String, Value)], event: &str) -> usize {
    seen.iter().position(|(kind, _)| kind == event).unwrap_or_else(|| panic!("no {event} in {seen:?}"))
}

/// The ids of a run's notice.
fn ids(properties: &Value) -> Vec<Value> {
    let keys = ["event_id", "request_id", "run_id", "adapter", "account", "agent", "session"];
    keys.into_iter().map(|key| properties[key].clone()).collect()
}

fn joined(texts: impl Iterator<Item = Value>) -> String {
    texts.map(|text| text.as_str().unwrap_or_default().to_owned()).collect()
}

#[test]
fn the_bus_the_stream_and_the_ledger_have_the_same_words() {
    let mut place_of = streaming(json!({}));
    place_of.launch_streaming();
    place_of.open_gate();
    let seen = until(&mut since_start(&place_of.daemon, "*"), "turn.completed");
    place_of.delivered(&[("sent", 1, "Hello world.")]);

    let on_the_bus = joined(of(&seen, "agent.streaming.token").into_iter().map(|token| token["text"].clone()));
    let streamed = place_of.streamed();
    let shown = joined(streamed.iter().filter(|event| event["type"] == "token").map(|event| event["text"].clone()));
    let kept = place_of.daemon.texts("agents", "SELECT content FROM messages WHERE role = 'assistant'").concat();
    assert_eq!((on_the_bus.as_str(), shown.as_str(), kept.as_str()), ("Hello world.", "Hello world.", "Hello world."));
    assert_eq!(streamed.last().unwrap()["final"], "Hello world.");

    let run = place_of.daemon.texts("nexus", "SELECT run_id FROM runs").remove(0);
    let request = place_of.daemon.texts("nexus", "SELECT request_id FROM nexus_requests").remove(0);
    let session = place_of.daemon.texts("nexus", "SELECT session FROM runs").remove(0);
    let event = place_of.daemon.texts("events", "SELECT event_id FROM events WHERE direction = 'inbound'").remove(0);
    let wanted = [event.as_str(), &request, &run, "fake", "me", "slow", &session].map(Value::from).to_vec();
    for kind in ["turn.created", "agent.streaming.start", "agent.streaming.token", "agent.streaming.end", "turn.completed"] {
        let all = of(&seen, kind);
        assert!(!all.is_empty() && all.iter().all(|properties| ids(properties) == wanted), "{kind}: {all:?}");
    }
    assert_eq!(of(&seen, "turn.completed")[0]["stop_reason"], "end_turn");
    assert_eq!(streamed[0]["runId"], run.as_str());
}

#[test]
fn each_notice_of_a_request_says_whose_it_is_and_comes_in_its_order() {
    let mut daemon = Daemon::new();
    put(&daemon, "calm.js", &doing("calm", "", "return {};"));
    put(&daemon, "wild.js", &doing("wild", "", "throw new Error('as told');"));
    daemon.configure(&config(json!({})));
    daemon.launch();
    assert_eq!(sent(&daemon, "hello")["status"], "completed");
    let seen = until(&mut since_start(&daemon, "*"), "nex.request.completed");
    let request = daemon.texts("nexus", "SELECT request_id FROM nexus_requests").remove(0);
    let event = daemon.texts("events", "SELECT event_id FROM events WHERE direction = 'inbound'").remove(0);
    let is_ours = |properties: &Value| properties["request_id"] == request.as_str() && properties["event_id"] == event.as_str();
    for kind in ["nex.request.started", "nex.request.stage", "acl.decision", "nex.request.completed"] {
        let all = of(&seen, kind);
        assert!(!all.is_empty() && all.iter().all(|properties| is_ours(properties)), "{kind}: {all:?}");
        assert!(all.iter().all(|properties| properties["adapter"] == "cli" && properties["account"] == "default"), "{kind}: {all:?}");
    }
    let decided = of(&seen, "acl.decision")[0];
    assert_eq!((&decided["decision"], &decided["principal"]), (&json!("allow"), &json!("owner")));
    let fired = of(&seen, "hook.fired").into_iter().find(|properties| properties["automation"] == "calm").unwrap();
    assert!(is_ours(fired) && fired["ms"].is_number(), "{fired}");
    let failed = of(&seen, "hook.error")[0];
    assert!(is_ours(failed) && failed["automation"] == "wild", "{failed}");
    assert!(failed["error"].as_str().is_some_and(|error| error.contains("as told")), "{failed}");

    let created = of(&seen, "session.created")[0];
    let turn = daemon.texts("agents", "SELECT turn_id FROM turns").remove(0);
    assert_eq!(*created, json!({ "session": "dm:owner", "agent": "echo", "turn_id": turn, "request_id": request }));
    let order = ["nex.request.started", "acl.decision", "turn.created", "session.created", "turn.completed", "nex.request.completed"];
    let places = order.map(|kind| place(&seen, kind));
    assert!(places.is_sorted(), "{order:?} came as {places:?}");
    let run = &of(&seen, "turn.completed")[0]["run_id"];
    let ended = of(&seen, "nex.request.completed")[0];
    assert_eq!((&ended["run_id"], &ended["session"]), (run, &json!("dm:owner")));

    sent(&daemon, "again");
    let mut later = since_start(&daemon, "session.created,turn.completed");
    let (mut turns, mut sessions) = (0, 0);
    while turns < 2 {
        match later.wait().event.as_str() {
            "turn.completed" => turns += 1,
            _ => sessions += 1,
        }
    }
    assert_eq!(sessions, 1, "a session is created once");
}

/// A daemon with a model that calls a tool of its server `fake` for each message.
fn with_tools(model: &Model) -> Daemon {
    let mut daemon = Daemon::new();
    let program = PathBuf::from(NEXUS).with_file_name("examples").join("fake-mcp");
    assert!(program.exists(), "{} is missing: cargo build --example fake-mcp", program.display());
    let server = shell_words::join([program.to_string_lossy().into_owned(), "good".to_owned(), daemon.file("calls")]);
    let mut wanted = config(json!({}));
    let agent = json!({
        "runner": "llm", "provider": PROVIDERS[0], "url": model.url(), "model": "m", "timeout_ms": 60_000,
        "mcp": { "fake": { "command": server } },
    });
    wanted["agents"] = json!({ "default": "model", "model": agent });
    daemon.configure(&wanted);
    daemon.launch();
    daemon
}

#[test]
fn tools_and_the_processes_behind_them_are_told_of() {
    let provider = PROVIDERS[0];
    let model = Model::start(vec![call(provider, "fake__echo", "ping"), text(provider, "It said ping.")]);
    let daemon = with_tools(&model);
    assert!(daemon.nexus_ok(&["send", "what does it say?"]).contains("It said ping."));
    let seen = until(&mut since_start(&daemon, "agent.*,turn.*"), "turn.completed");
    let run = ids(of(&seen, "turn.completed")[0]);
    assert!(run.iter().all(Value::is_string), "{run:?}");
    for (kind, status) in [("agent.tool.started", "started"), ("agent.tool.completed", "completed")] {
        let [tool] = of(&seen, kind)[..] else { panic!("{kind}: {seen:?}") };
        assert_eq!((ids(tool), &tool["tool"], &tool["status"]), (run.clone(), &json!("fake__echo"), &json!(status)));
        assert!(tool["call_id"].is_string(), "{tool}");
    }
    assert!(place(&seen, "agent.tool.started") < place(&seen, "agent.tool.completed"));

    let child = find("the server runs", || daemon.children().into_iter().find(|child| child.argv.contains("fake-mcp")));
    send_signal(child.pid, Signal::KILL);
    eventually("it is dead", || !child.is_alive());
    let mut notices = since_start(&daemon, "agent.status.changed");
    let mut statuses = Vec::new();
    while statuses.iter().filter(|status| *status == "running").count() < 2 {
        let said = notices.wait().json()["properties"].clone();
        assert_eq!((&said["agent"], &said["server"]), (&json!("model"), &json!("fake")), "{said}");
        assert_eq!(said["pid"].is_number(), said["status"] == "running", "{said}");
        assert_eq!(said["error"].is_string(), said["status"] == "backoff", "{said}");
        statuses.push(said["status"].as_str().unwrap().to_owned());
    }
    assert_eq!(statuses, ["starting", "running", "backoff", "starting", "running"]);
}

#[test]
fn the_process_of_an_acp_agent_is_told_of() {
    let program = PathBuf::from(NEXUS).with_file_name("examples").join("fake-acp-agent");
    assert!(program.exists(), "{} is missing: cargo build --example fake-acp-agent", program.display());
    let mut wanted = config(json!({}));
    let command = shell_words::quote(&program.to_string_lossy()).into_owned();
    wanted["agents"] = json!({ "default": "asks", "asks": { "runner": "acp", "command": command, "env": { "FAKE_ACP_CONFIG": "{}" } } });
    let daemon = Daemon::start(&wanted);
    daemon.nexus_ok(&["send", "hello"]);
    let mut notices = since_start(&daemon, "agent.status.changed");
    for status in ["starting", "running"] {
        let said = notices.wait().json()["properties"].clone();
        assert_eq!((&said["agent"], &said["status"], &said["server"]), (&json!("asks"), &json!(status), &Value::Null));
    }
}
