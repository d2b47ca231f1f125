//! The agent that stays, told real lines of the protocol.
#![allow(clippy::unwrap_used)]

use super::*;
use crate::world::Cast;
use tempfile::TempDir;

const SEED: u64 = 10;

/// A world with nobody in it.
fn world() -> (World, TempDir) {
    let dir = tempfile::tempdir().unwrap();
    (World::make(dir.path(), Cast::default()).unwrap(), dir)
}

/// A message to which it has this whim the first time.
fn met_with(whim: Whim) -> String {
    let is_met = |content: &String| Whim::choose(&mut Chance::new(SEED).about(&["acp", content, "0"])) == whim;
    (0..10_000).map(|number| format!("filled a {number}")).find(is_met).unwrap()
}

fn ask(id: u64, method: &str, params: &Value) -> Value {
    json!({ "jsonrpc": "2.0", "id": id, "method": method, "params": params })
}

fn prompt(id: u64, content: &str) -> Value {
    let blocks = [json!({ "type": "text", "text": "what was said before" }), json!({ "type": "text", "text": content })];
    ask(id, "session/prompt", &json!({ "sessionId": "s0", "prompt": blocks }))
}

fn cancel() -> Value {
    json!({ "jsonrpc": "2.0", "method": "session/cancel", "params": { "sessionId": "s0" } })
}

/// What a process writes that is asked for a session and then told these.
fn written(world: &World, messages: &[Value]) -> String {
    let mut input = format!("{}\n", ask(0, "session/new", &json!({})));
    messages.iter().for_each(|message| input.push_str(&format!("{message}\n")));
    let mut agent = Agent::new(world.clone(), Chance::new(SEED), Vec::new());
    agent.serve(&mut input.as_bytes()).unwrap();
    String::from_utf8(agent.out).unwrap()
}

/// The same line by line, without what it says of the session.
fn answers(world: &World, messages: &[Value]) -> Vec<Value> {
    let lines: Vec<Value> = written(world, messages).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines[0], json!({ "jsonrpc": "2.0", "id": 0, "result": { "sessionId": "s0" } }));
    lines[1..].to_vec()
}

fn ended(id: u64, reason: &str) -> Value {
    json!({ "jsonrpc": "2.0", "id": id, "result": { "stopReason": reason } })
}

fn said(text: &str) -> Value {
    let update = json!({ "sessionUpdate": "agent_message_chunk", "content": { "type": "text", "text": text } });
    json!({ "jsonrpc": "2.0", "method": "session/update", "params": { "sessionId": "s0", "update": update } })
}

/// What it noted, and of which message.
fn noted(world: &World) -> Vec<(String, String)> {
    let text = |line: &Value, key: &str| line[key].as_str().unwrap().to_owned();
    journal::values(&world.agent_journal()).unwrap().iter().map(|line| (text(line, "what"), text(line, "content"))).collect()
}

/// These notes of one message.
fn notes(content: &str, all: &[&str]) -> Vec<(String, String)> {
    all.iter().map(|what| ((*what).to_owned(), content.to_owned())).collect()
}

#[test]
fn a_turn_is_told_piece_by_piece_and_ends() {
    let ((world, _dir), content) = (world(), met_with(Whim::None));
    assert_eq!(answers(&world, &[prompt(1, &content)]), [said("re: "), said(&content), ended(1, "end_turn")]);
    assert_eq!(noted(&world), notes(&content, &[CALLED, "answered"]));
}

#[test]
fn a_turn_that_hangs_ends_when_it_is_told_to_stop() {
    let ((world, _dir), hangs, next) = (world(), met_with(Whim::Hang), met_with(Whim::None));
    let told = [cancel(), prompt(1, &hangs), cancel(), cancel(), prompt(2, &next)];
    assert_eq!(answers(&world, &told), [ended(1, "cancelled"), said("re: "), said(&next), ended(2, "end_turn")]);
    let both = [notes(&hangs, &[CALLED, FAILS, HANGS, CANCELLED]), notes(&next, &[CALLED, "answered"])];
    assert_eq!(noted(&world), both.concat());
    assert!(journal::lines(&world.violations()).unwrap().is_empty());
}

#[test]
fn a_turn_beside_one_that_goes_on_is_a_broken_promise() {
    let ((world, _dir), hangs, next) = (world(), met_with(Whim::Hang), met_with(Whim::None));
    answers(&world, &[prompt(1, &hangs), prompt(2, &next)]);
    let broken = format!("the ACP agent was told `{next}` in a session whose turn goes on");
    assert_eq!(journal::lines(&world.violations()).unwrap(), [broken]);
}

#[test]
fn one_that_is_wedged_says_nothing_and_goes_on_elsewhere() {
    let ((world, _dir), wedged) = (world(), met_with(Whim::Wedge));
    assert!(answers(&world, &[prompt(1, &wedged), cancel()]).is_empty());
    assert_eq!(noted(&world), notes(&wedged, &[CALLED, FAILS, DIES]));
}

#[test]
fn an_end_of_the_process_is_noted_before_it_comes() {
    for (whim, last) in [(Whim::Exit, "}\n"), (Whim::Half, "session/up"), (Whim::ActAndExit, "}\n")] {
        let ((world, _dir), content) = (world(), met_with(whim));
        let written = written(&world, &[prompt(1, &content), prompt(2, &met_with(Whim::None))]);
        assert!(written.ends_with(last) && !written.contains("stopReason"), "{whim:?}: {written}");
        assert_eq!(noted(&world)[..3], notes(&content, &[CALLED, FAILS, DIES])[..], "{whim:?}");
    }
}

#[test]
fn an_effect_is_noted_between_the_two_words_about_it() {
    let ((world, _dir), content) = (world(), met_with(Whim::Act));
    let told = answers(&world, &[prompt(1, &content)]);
    let status = |line: &Value| line["params"]["update"]["status"].as_str().unwrap_or_default().to_owned();
    assert_eq!(told.iter().map(status).collect::<Vec<_>>(), ["pending", "completed", "", "", ""]);
    assert_eq!(noted(&world), notes(&content, &[CALLED, "paid", "answered"]));
}

#[test]
fn a_session_is_loaded_by_another_process_and_no_unknown_one_is() {
    let (world, _dir) = world();
    answers(&world, &[]);
    let load = |id: u64, session: &str| ask(id, "session/load", &json!({ "sessionId": session }));
    let input = format!("{}\n{}\n", load(1, "s0"), load(2, "s7"));
    let mut agent = Agent::new(world.clone(), Chance::new(SEED), Vec::new());
    agent.serve(&mut input.as_bytes()).unwrap();
    let written = String::from_utf8(agent.out).unwrap();
    let lines: Vec<Value> = written.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines[..2], [said("what was said before; "), json!({ "jsonrpc": "2.0", "id": 1, "result": {} })]);
    assert_eq!(lines[2]["error"]["code"], NOT_FOUND);
    assert_eq!(journal::lines(&world.violations()).unwrap(), ["the ACP agent was asked for a session that it never began: `s7`"]);
}

#[test]
fn what_it_does_not_know_is_refused_and_an_answer_is_none() {
    let (world, _dir) = world();
    let notice = json!({ "jsonrpc": "2.0", "method": "fly", "params": {} });
    let told = answers(&world, &[ask(1, "fly", &json!({})), notice, json!({ "jsonrpc": "2.0", "id": 9, "result": {} })]);
    assert_eq!(told.iter().map(|line| (&line["id"], &line["error"]["code"])).collect::<Vec<_>>(), [(&json!(1), &json!(NO_METHOD))]);
}

#[test]
fn in_the_calm_every_message_is_answered() {
    let ((world, _dir), content) = (world(), met_with(Whim::Hang));
    std::fs::write(world.calm(), "").unwrap();
    assert_eq!(answers(&world, &[prompt(1, &content)]).last(), Some(&ended(1, "end_turn")));
}

#[test]
fn every_whim_comes_and_an_end_of_the_process_seldom() {
    let chosen = |number: u64| Whim::choose(&mut Chance::new(10).about(&["acp", &number.to_string()]));
    let all: Vec<Whim> = (0..10_000).map(chosen).collect();
    let bad = [Whim::Exit, Whim::Die, Whim::Half, Whim::Freeze, Whim::Wedge, Whim::ActAndExit, Whim::Hang, Whim::Fail, Whim::Refuse];
    let good = [Whim::None, Whim::Noise, Whim::Pause, Whim::Act];
    assert!(bad.iter().chain(&good).all(|whim| all.contains(whim)));
    assert!(bad.iter().all(|whim| whim.ends_without_an_answer()) && !good.iter().any(|whim| whim.ends_without_an_answer()));
    assert!(all.iter().filter(|whim| whim.ends_the_process()).count() < all.len() / 20);
}
