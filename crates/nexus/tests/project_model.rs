//! Projects whose agents are a model's: it answers, calls the tools of approved MCP servers and no others, and uses up the
//! budget of the agent that does the turns. Relay, daemon, the project's process and the server (`testing/fake_mcp.rs`) are
//! real; the model is a server on the loopback.
#![allow(clippy::unwrap_used)]

mod common;
mod gitserver;
mod relays;

use common::model::{INPUT_TOKENS, Model, OUTPUT_TOKENS, call, text};
use common::{DEADLINE, NEXUS, eventually, find, lines, zone_at_noon};
use gitserver::world::{World, answered, ask};
use relays::{Client, is_verified};
use serde_json::{Value, json};
use std::path::PathBuf;

const TOKENS: u64 = INPUT_TOKENS + OUTPUT_TOKENS;
const TOOL_CALLS: &str = "SELECT name || ' ' || status FROM tool_calls ORDER BY turn_id, n";

/// Whose projects are this model's, with such a budget.
fn world(model: &Model, budget: &Value) -> World {
    World::with_all(|config| {
        let agent = json!({ "runner": "llm", "url": model.url(), "model": "m", "budget": budget });
        config["agents"] = json!({ "default": "model", "model": agent });
        config["timer"]["timezone"] = json!(zone_at_noon());
        // The whitelist alone grants no tools.
        let all = json!({ "tools": { "allow": ["*"] } });
        config["access"]["policies"] = json!([{ "name": "tools", "match": {}, "effect": "allow", "permissions": all }]);
    })
}

/// A project of these agents, by the ids of their definitions, with the fake server; all that waits is approved.
fn with_server(world: &World, agents: &[&str]) -> String {
    let path = PathBuf::from(NEXUS).with_file_name("examples").join("fake-mcp");
    assert!(path.exists(), "{} is missing: cargo build --example fake-mcp", path.display());
    let command = shell_words::join([path.to_string_lossy().into_owned(), "good".to_owned(), world.daemon.file("calls")]);
    let server = world.tell(4200, &[&["name", "File server"], &["command", &command]], "");
    let mut tags = vec![["d", "demo"], ["title", "Demo"], ["mcp", server.as_str()]];
    tags.extend(agents.iter().map(|agent| ["agent", *agent]));
    let tags: Vec<&[&str]> = tags.iter().map(|tag| &tag[..]).collect();
    world.tell(31_933, &tags, "");
    let project = world.coordinate("demo");
    assert_eq!(world.prepared(&project)["mcp"], json!([]), "nothing runs that nobody approved");
    world.approvals().iter().for_each(|approval| world.approve(approval));
    eventually("the server is installed", || world.prepared(&project)["mcp"][0]["slug"] == "file-server");
    project
}

#[test]
fn a_model_answers_as_the_agent_of_the_project() {
    let model = Model::start(vec![text("openai", "All is well.")]);
    let world = world(&model, &json!({}));
    let project = world.project("demo", None);
    let agent = world.prepared(&project)["agents"][0]["pubkey"].clone();
    let answer = answered(&world, &ask(&world, &project, "how are you?"));
    assert_eq!((&answer["content"], &answer["pubkey"]), (&json!("All is well."), &agent));
    assert!(is_verified(&answer), "{answer}");
    let (_, body) = model.asked().remove(0);
    let prompt = "You are Project Manager, manager, in the project \"demo\".\n\nBe brief.";
    assert_eq!(body["messages"][0], json!({ "role": "system", "content": prompt }));
    assert!(body["messages"][1]["content"].as_str().unwrap().contains("how are you?"), "{body}");
    assert_eq!(body.get("tools"), None, "it has no server");
}

#[test]
fn a_model_calls_the_tools_that_its_agent_names_and_that_were_approved() {
    let (forbidden, echo) = (call("openai", "file-server__forbidden", "pong"), call("openai", "file-server__echo", "ping"));
    let model = Model::start(vec![forbidden, echo, text("openai", "It said ping.")]);
    let world = world(&model, &json!({}));
    let agent = world.tell(4199, &[&["title", "Reader"], &["tool", "echo"]], "Be brief.");
    let project = with_server(&world, &[&agent]);
    let pubkey = world.prepared(&project)["agents"][0]["pubkey"].clone();
    let answer = answered(&world, &ask(&world, &project, "what does it say?"));
    assert_eq!((&answer["content"], &answer["pubkey"]), (&json!("It said ping."), &pubkey));
    let asked: Vec<String> = model.asked().iter().map(|(_, body)| body.to_string()).collect();
    assert_eq!(asked.len(), 3);
    assert!(asked[0].contains("file-server__echo") && !asked[0].contains("file-server__forbidden"), "{}", asked[0]);
    assert!(asked[1].contains("may not be used here"), "{}", asked[1]);
    assert!(asked[2].contains("echo: ping"), "{}", asked[2]);
    assert_eq!(lines(world.daemon.file("calls")), ["call echo ping"]);
    let kept = find("the turn is in the ledger", || Some(world.daemon.texts("agents", TOOL_CALLS)).filter(|calls| !calls.is_empty()));
    assert_eq!(kept, ["file-server__forbidden failed", "file-server__echo completed", "publish completed"]);
}

#[test]
fn the_turns_of_a_project_use_up_the_budget_of_the_agent_that_does_them() {
    let model = Model::start(vec![call("openai", "file-server__echo", "ping"), text("openai", "It said ping."), text("openai", "never")]);
    let world = world(&model, &json!({ "tokens_per_day": 2 * TOKENS }));
    let agent = world.tell(4199, &[&["title", "Reader"]], "Be brief.");
    let project = with_server(&world, &[&agent]);
    assert_eq!(answered(&world, &ask(&world, &project, "what does it say?"))["content"], "It said ping.");
    eventually("the turn is over", || world.daemon.ended("completed") == 1);
    let charged = "SELECT charged || ' ' || input_tokens || ' ' || output_tokens FROM turns";
    let kept = find("the turn is in the ledger", || world.daemon.texts("agents", charged).pop());
    assert_eq!(kept, format!("model {} {}", 2 * INPUT_TOKENS, 2 * OUTPUT_TOKENS));
    let told = "The agent's budget for today is used up (26 of 26 tokens); it continues at ";
    let refused = answered(&world, &ask(&world, &project, "and again?"));
    assert!(refused["content"].as_str().unwrap().starts_with(told), "{refused}");
    let reasons = world.daemon.texts("nexus", "SELECT reason FROM nexus_requests WHERE status = 'failed'");
    assert!(reasons.len() == 1 && reasons[0].starts_with(told), "{reasons:?}");
    assert_eq!(model.asked().len(), 2, "a hard stop asks nobody");
}

#[test]
fn a_status_tells_the_tools_of_servers_that_are_up_with_those_who_may_call_them() {
    let model = Model::start(Vec::new());
    let world = world(&model, &json!({}));
    let reader = world.tell(4199, &[&["title", "Reader"], &["tool", "echo"]], "");
    let writer = world.tell(4199, &[&["title", "Writer"]], "");
    with_server(&world, &[&reader, &writer]);
    let mut listening = Client::connect(world.relay.url());
    listening.subscribe("status", &[json!({ "kinds": [24_010] })]);
    world.daemon.nexus_ok(&["project", "start", "demo"]);
    // The first one may come before the server is up; the next one takes half a minute.
    listening.set_patience(2 * DEADLINE);
    let named = |status: &Value, name: &str| -> Vec<Value> {
        status["tags"].as_array().unwrap().iter().filter(|tag| tag[0] == name).cloned().collect()
    };
    let told = listening.until(|message| message[0] == "EVENT" && message[1] == "status" && !named(&message[2], "tool").is_empty());
    let tools = [json!(["tool", "file-server__echo", "reader", "writer"]), json!(["tool", "file-server__forbidden", "writer"])];
    assert_eq!(named(&told[2], "tool"), tools);
    assert_eq!(named(&told[2], "model"), [json!(["model", "m", "reader", "writer"])]);
    assert!(is_verified(&told[2]), "{told}");
}
