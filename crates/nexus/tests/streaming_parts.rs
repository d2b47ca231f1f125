//! What else is said where an answer is being given: it comes behind what was said before it, ahead of the rest, and no
//! later than it must; and no disk keeps a turn beyond its time.
#![allow(clippy::unwrap_used)]

mod automation;
mod common;
mod streamed;

use automation::{doing, put};
use common::{DEADLINE, NEXUS, eventually, fake, find};
use serde_json::{Value, json};
use std::fs;
use std::path::PathBuf;
use streamed::{asking, in_blocks, streaming};

/// The code of a question.
fn code_in(question: &str) -> String {
    let (_, rest) = question.split_once("`yes ").unwrap();
    rest.split('`').next().unwrap().to_owned()
}

#[test]
fn a_question_comes_behind_what_was_said_before_it_and_ahead_of_the_rest() {
    for how in ["auto", "blocks", "whole"] {
        let mut place = asking(how);
        place.daemon.launch();
        if how == "auto" {
            eventually("its first words are shown", || place.types().iter().any(|kind| kind == "token"));
        }
        place.open_gate();
        let is_question = |text: &String| text.contains("`yes ");
        let question = find("the owner is asked", || place.sends().into_iter().map(|(_, text)| text).find(is_question));
        let code = code_in(&question);
        let answered = place.daemon.nexus(&["send", "yes", &code]);
        assert!(answered.stderr.contains(&format!("permission {code}")), "{how}: {answered:?}");
        let rest = "the answer was yes".to_owned();
        let wanted = match how {
            "whole" => vec![question, format!("Let me see. {rest}")],
            _ => vec!["Let me see.".to_owned(), question, rest],
        };
        find("all is delivered in order", || {
            let all = place.deliveries();
            let is_sent = all.iter().all(|(status, attempts, _)| status == "sent" && *attempts == 1);
            (is_sent && all.into_iter().map(|(_, _, text)| text).eq(wanted.iter().cloned())).then_some(())
        });
        // The rest may be over before its stream can begin.
        assert_eq!(place.types().iter().any(|kind| kind == "stream_end"), how == "auto", "{how}: {:?}", place.types());
        let turn = "SELECT content FROM messages WHERE role = 'assistant'";
        eventually("the turn is whole", || place.daemon.texts("agents", turn) == ["Let me see. the answer was yes"]);
    }
}

#[test]
fn the_question_of_another_run_does_not_wait_for_the_answer_that_is_being_shown() {
    let mut place = streaming(json!({}));
    let text = fs::read_to_string(place.daemon.config_file()).unwrap();
    let mut wanted: Value = serde_json::from_str(&text).unwrap();
    let program = PathBuf::from(NEXUS).with_file_name("examples").join("fake-acp-agent");
    let (command, env) = (shell_words::quote(&program.to_string_lossy()).into_owned(), json!({ "FAKE_ACP_CONFIG": r#"{"mode":"ask"}"# }));
    wanted["agents"]["asks"] = json!({ "runner": "acp", "command": command, "env": env });
    wanted["access"]["policies"] = json!([
        { "name": "guests", "match": { "conditions": [{ "channel": "guest" }] }, "effect": "allow", "session": { "agent": "asks" } },
    ]);
    place.daemon.configure(&wanted);
    place.launch_streaming();
    eventually("its first words are shown", || place.types().iter().any(|kind| kind == "token"));
    wanted["adapters"]["guest"] = fake(json!({ "channel": "guest", "sender": "g1", "events": 1 }));
    place.daemon.configure(&wanted);
    place.daemon.nexus_ok(&["daemon", "reload"]);
    let is_question = |text: &String| text.contains("working for g1 on guest, wants to edit");
    let question = find("the owner is asked", || place.sends().into_iter().map(|(_, text)| text).find(is_question));
    assert_eq!(place.daemon.ended("completed"), 0, "the agent at the gate still speaks");
    let answered = place.daemon.nexus(&["send", "yes", &code_in(&question)]);
    assert!(answered.stderr.contains("permission"), "{answered:?}");
    let of_guest = "SELECT content FROM deliveries WHERE adapter = 'guest'";
    eventually("the guest has the answer", || place.daemon.texts("nexus", of_guest) == ["the answer was yes"]);
    place.open_gate();
    eventually("both have their end", || place.daemon.ended("completed") == 2);
    let of_owner = "SELECT status || ' ' || content FROM deliveries WHERE adapter = 'fake' ORDER BY sent_seq";
    let wanted = ["sent Hello".to_owned(), format!("sent {question}"), "sent world.".to_owned()];
    let words = |text: &String| text.split_whitespace().collect::<Vec<_>>().join(" ");
    eventually("all is delivered in order", || place.daemon.texts("nexus", of_owner).iter().map(words).eq(wanted.iter().map(words)));
    let turn = "SELECT content FROM messages JOIN turns USING (turn_id) WHERE role = 'assistant' AND agent = 'slow'";
    eventually("the turn is whole", || place.daemon.texts("agents", turn) == ["Hello world."]);
}

#[test]
fn a_disk_that_takes_no_block_keeps_no_agent_beyond_its_time() {
    let (mut place, first) = in_blocks(json!({}));
    let text = fs::read_to_string(place.daemon.config_file()).unwrap();
    let mut wanted: Value = serde_json::from_str(&text).unwrap();
    let [go, gate, said] = ["go", "gate", "first"].map(|name| place.daemon.file(name));
    let script = format!("until [ -e {go} ]; do sleep 0.05; done; cat {said}; until [ -e {gate} ]; do sleep 0.05; done");
    wanted["agents"]["slow"] = json!({ "runner": "command", "command": format!("sh -c '{script}'"), "timeout_ms": 6000 });
    place.daemon.configure(&wanted);
    place.daemon.launch();
    let agent = find("the agent runs", || place.daemon.children().into_iter().find(|child| child.argv.contains(&go)));
    let ledger = rusqlite::Connection::open(place.daemon.workspace().join("data/nexus.db")).unwrap();
    ledger.busy_timeout(DEADLINE).unwrap();
    ledger.execute_batch("BEGIN IMMEDIATE").unwrap();
    fs::write(&go, "").unwrap();
    eventually("its time is up all the same", || !agent.is_alive());
    ledger.execute_batch("COMMIT").unwrap();
    eventually("the request has its end", || place.daemon.ended("failed") == 1);
    eventually("the user is told", || place.sends().last().is_some_and(|(_, text)| text.contains("took too long")));
    let said: String = place.sends().iter().map(|(_, text)| text.as_str()).collect::<Vec<_>>().join("\n");
    assert_eq!(said.matches(&first).count(), 1, "{said}");
}

#[test]
fn what_an_automation_answers_waits_for_the_answer_that_is_being_shown() {
    let mut place = streaming(json!({}));
    let body = "if (ctx.request.event.event_id.includes('#replay:')) return { reply: 'Noted.' };";
    put(&place.daemon, "noted.js", &doing("noted", "", body));
    place.launch_streaming();
    eventually("its first words are shown", || place.types().iter().any(|kind| kind == "token"));
    // Another event of the same conversation.
    place.daemon.nexus_ok(&["events", "replay", "fake:me-1"]);
    eventually("the automation has answered it", || place.daemon.ended("handled_by_automation") == 1);
    let waiting: Vec<(String, u32)> = place.deliveries().into_iter().map(|(status, attempts, _)| (status, attempts)).collect();
    assert_eq!(waiting, [("sending".to_owned(), 1), ("pending".to_owned(), 0)]);
    place.open_gate();
    place.delivered(&[("sent", 1, "Hello world."), ("sent", 1, "Noted.")]);
    let left = place.daemon.texts("nexus", "SELECT content FROM deliveries ORDER BY sent_seq");
    assert_eq!(left, ["Hello world.", "Noted."], "it left first");
}
