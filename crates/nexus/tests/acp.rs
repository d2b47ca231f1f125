//! ACP agents with real processes: what is said to them and by them, permissions, and every way to go
//! wrong. Their counterpart is `testing/fake_acp_agent.rs`.
#![allow(clippy::unwrap_used)]

mod acp_scene;
mod common;

use acp_scene::{Talk, code_in, failure, logged, said, say, say_in, started, with};
use common::{Daemon, eventually, fake, find, find_within, json_lines, procfs};
use serde_json::{Value, json};
use std::fs;
use std::time::Duration;

/// Sessions that a process may have open, as the daemon has it.
const SESSIONS_OPEN_MAX: i64 = 256;
/// Longer than it takes until a process that never comes up is given up: five pauses of 31 s in all.
const GIVEN_UP_WITHIN: Duration = Duration::from_secs(90);

#[test]
fn one_process_and_one_session_answer_turn_after_turn() {
    let daemon = started(json!({}), json!({}));
    assert!(logged(&daemon, "start").is_empty(), "no process before the first turn");
    let mut talk = Talk::begin(&daemon, "hello there", "default");
    assert_eq!((talk.next("token")["text"].clone(), talk.next("token")["text"].clone()), (json!("You said: "), json!("hello there")));
    assert_eq!(talk.next("end")["text"], "You said: hello there");
    assert_eq!(said(&daemon, "blocks"), json!(["blocks"]).to_string(), "the agent has its own memory");
    assert_eq!(said(&daemon, "usage"), "counted");
    assert_eq!((logged(&daemon, "start").len(), logged(&daemon, "new").len()), (1, 1));
    assert_eq!(say_in(&daemon, "hi", "other")["text"], "You said: hi");
    assert_eq!((logged(&daemon, "start").len(), logged(&daemon, "new").len()), (1, 2));
    let tokens = daemon.rows("agents", "SELECT input_tokens, output_tokens FROM turns WHERE input_tokens IS NOT NULL", |row| {
        Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?))
    });
    assert_eq!(tokens, [(12, 7)]);
}

#[test]
fn tool_calls_are_recorded_with_their_end() {
    let daemon = started(json!({}), json!({}));
    assert_eq!(said(&daemon, "tools"), "read it");
    let calls =
        daemon.texts("agents", "SELECT name || '; ' || status || '; ' || summary || '; ' || arguments || '; ' || result FROM tool_calls");
    assert_eq!(calls, [r#"Reading; completed; to read: Reading; {"path":"/etc/motd"}; no news"#]);
}

#[test]
fn sessions_share_the_process_and_do_not_wait_for_each_other() {
    let daemon = started(json!({}), json!({}));
    let mut slow = Talk::begin(&daemon, "slow", "slow");
    slow.next("token");
    assert_eq!(said(&daemon, "meanwhile"), "You said: meanwhile");
    slow.next("token");
    assert_eq!(logged(&daemon, "start").len(), 1);
}

#[test]
fn the_owner_is_asked_and_answers_yes_or_no() {
    let daemon = started(json!({}), json!({ "permissions": { "ask": "always" } }));
    for (word, option) in [("yes", "yes"), ("no", "no")] {
        let mut talk = Talk::begin(&daemon, "ask edit", "default");
        let code = talk.code();
        let answered = say_in(&daemon, &format!("{word} {code}"), "elsewhere");
        assert_eq!((&answered["status"], &answered["reason"]), (&json!("handled_by_automation"), &json!(format!("permission {code}"))));
        assert_eq!(talk.next("end")["text"], format!("the answer was {option}"));
        let again = say(&daemon, &format!("{word} {code}"));
        assert_eq!(again["reason"], format!("permission {code}: no such question"), "a code is used up");
    }
    let told = daemon.texts("nexus", "SELECT content FROM deliveries WHERE idempotency_key LIKE '%:ask:%'");
    assert!(told.len() == 2 && told.iter().all(|text| text.contains("Agent fake wants to edit: Changing the configuration")), "{told:?}");
}

#[test]
fn an_answer_is_heard_behind_a_message_that_waits_for_the_same_turn() {
    let daemon = started(json!({}), json!({ "permissions": { "ask": "always" } }));
    let mut talk = Talk::begin(&daemon, "ask edit", "default");
    let code = talk.code();
    let mut waiting = Talk::begin(&daemon, "meanwhile", "default");
    assert_eq!(say(&daemon, &format!("yes {code}"))["reason"], format!("permission {code}"));
    assert_eq!(talk.next("end")["text"], "the answer was yes");
    assert_eq!(waiting.next("end")["text"], "You said: meanwhile");
}

#[test]
fn access_control_decides_without_a_question() {
    let mut daemon = Daemon::new();
    let mut wanted = with(&daemon, json!({}), json!({}));
    wanted["access"]["policies"][0]["permissions"] = json!({ "tools": { "deny": ["delete"] } });
    daemon.configure(&wanted);
    daemon.launch();
    assert_eq!(said(&daemon, "ask edit"), "the answer was yes", "the owner may everything");
    assert_eq!(said(&daemon, "ask delete"), "the answer was no", "but for what is denied");
    assert_eq!(daemon.count("nexus", "SELECT count(*) FROM deliveries WHERE idempotency_key LIKE '%:ask:%'"), 0);
}

#[test]
fn a_question_without_an_answer_is_refused_at_its_time() {
    let daemon = started(json!({}), json!({ "permissions": { "ask": "always", "timeout_ms": 200 } }));
    let mut talk = Talk::begin(&daemon, "ask edit", "default");
    let code = talk.code();
    assert_eq!(talk.next("end")["text"], "the answer was no");
    assert_eq!(say(&daemon, &format!("yes {code}"))["reason"], format!("permission {code}: no such question"));
}

#[test]
fn an_agent_that_asks_for_ever_asks_the_owner_so_often_and_no_more() {
    let daemon = started(json!({}), json!({ "timeout_ms": 4000, "permissions": { "ask": "always", "timeout_ms": 20 } }));
    let end = say(&daemon, "askforever edit");
    assert!(failure(&end).contains("time is up"), "{end}");
    assert_eq!(daemon.count("nexus", "SELECT count(*) FROM deliveries WHERE idempotency_key LIKE '%:ask:%'"), 20);
    assert_eq!(said(&daemon, "hello"), "You said: hello");
}

fn said_at_all(daemon: &Daemon, text: &str) -> bool {
    daemon.texts("agents", "SELECT content FROM messages").iter().any(|said| said == text)
}

/// A daemon that heard its owner on `boss`, and its configuration; whose adapter notes in the file `sends` what it says.
fn with_a_boss() -> (Daemon, Value) {
    let mut daemon = Daemon::new();
    let mut wanted = with(&daemon, json!({ "mode": "ask" }), json!({}));
    let sends = daemon.file("sends");
    wanted["access"]["owner"] = json!(["boss:*"]);
    wanted["access"]["policies"] = json!([
        { "name": "guests", "match": { "conditions": [{ "channel": "guest" }] }, "effect": "allow", "session": { "agent": "fake" } },
        { "name": "boss", "match": { "conditions": [{ "channel": "boss" }] }, "effect": "allow", "session": { "agent": "echo" } },
    ]);
    wanted["adapters"] = json!({ "boss": fake(json!({ "channel": "boss", "sender": "b1", "events": 1, "send_log": sends })) });
    daemon.configure(&wanted);
    daemon.launch();
    eventually("the owner was heard", || daemon.ended("completed") == 1);
    (daemon, wanted)
}

/// The owner is asked on `boss` and answers where the owner is too, on the command line.
fn boss_answers(daemon: &Daemon) {
    let text = find("the owner is asked", || {
        let all = json_lines(daemon.file("sends"));
        all.iter().map(Value::to_string).find(|send| send.contains("working for g1 on guest, wants to edit"))
    });
    let answered = say(daemon, &format!("yes {}", code_in(&text)));
    assert_eq!(answered["status"], "handled_by_automation", "{answered}");
    eventually("the guest has the answer", || said_at_all(daemon, "the answer was yes"));
}

#[test]
fn a_guests_question_goes_to_where_the_owner_was_heard_last() {
    let (daemon, mut wanted) = with_a_boss();
    wanted["adapters"]["guest"] = fake(json!({ "channel": "guest", "sender": "g1", "events": 1 }));
    daemon.configure(&wanted);
    daemon.nexus_ok(&["daemon", "reload"]);
    boss_answers(&daemon);
}

#[test]
fn a_guests_question_finds_the_owner_after_a_restart() {
    let (mut daemon, mut wanted) = with_a_boss();
    daemon.kill9();
    let sends = daemon.file("sends");
    wanted["adapters"] = json!({
        "boss": fake(json!({ "channel": "boss", "sender": "b1", "events": 0, "send_log": sends })),
        "guest": fake(json!({ "channel": "guest", "sender": "g1", "events": 1 })),
    });
    daemon.configure(&wanted);
    daemon.launch();
    boss_answers(&daemon);
}

#[test]
fn without_an_owner_to_ask_a_guest_is_refused() {
    let mut daemon = Daemon::new();
    let mut wanted = with(&daemon, json!({ "mode": "ask" }), json!({}));
    wanted["access"] = json!({ "owner": ["boss:*"], "policies": [{ "name": "guests", "match": {}, "effect": "allow" }] });
    wanted["adapters"] = json!({ "guest": fake(json!({ "channel": "guest", "sender": "g1", "events": 1 })) });
    daemon.configure(&wanted);
    daemon.launch();
    eventually("the guest has the answer", || said_at_all(&daemon, "the answer was no"));
}

#[test]
fn a_turn_that_takes_too_long_is_cancelled_and_the_process_goes_on() {
    let daemon = started(json!({}), json!({ "timeout_ms": 3000 }));
    said(&daemon, "are you up");
    let end = say(&daemon, "slow");
    assert!(failure(&end).contains("time is up") && end["text"].as_str().unwrap().contains("took too long"), "{end}");
    eventually("it was told to stop", || logged(&daemon, "cancel").len() == 1);
    assert_eq!(said(&daemon, "and now"), "You said: and now");
    assert_eq!((logged(&daemon, "start").len(), logged(&daemon, "new").len()), (1, 1));
}

#[test]
fn a_turn_that_a_newer_message_ends_is_cancelled_and_the_agent_goes_on_in_its_session() {
    let mut daemon = Daemon::new();
    let mut wanted = with(&daemon, json!({}), json!({}));
    wanted["access"]["policies"][0]["queue_mode"] = json!("interrupt");
    daemon.configure(&wanted);
    daemon.launch();
    let mut slow = Talk::begin(&daemon, "slow", "default");
    slow.next("token");
    assert_eq!(said(&daemon, "and now"), "You said: and now");
    assert_eq!(slow.next("end")["status"], "completed");
    assert_eq!((logged(&daemon, "cancel").len(), logged(&daemon, "start").len(), logged(&daemon, "new").len()), (1, 1, 1));
    let aborted = daemon.texts("agents", "SELECT content FROM messages JOIN turns USING (turn_id) WHERE stop_reason = 'aborted' AND n = 1");
    assert!(aborted.len() == 1 && aborted[0].starts_with("tick "), "{aborted:?}");
}

#[test]
fn of_one_that_ignores_the_word_to_stop_the_whole_tree_goes() {
    let mut daemon = Daemon::new();
    let grandchild = daemon.file("grandchild");
    daemon.configure(&with(&daemon, json!({ "grandchild_file": grandchild }), json!({ "timeout_ms": 3000 })));
    daemon.launch();
    said(&daemon, "are you up");
    let end = say(&daemon, "wedge");
    assert!(failure(&end).contains("time is up") && end["text"].as_str().unwrap().contains("took too long"), "{end}");
    assert_eq!(daemon.texts("agents", "SELECT stop_reason FROM turns ORDER BY depth"), ["end_turn", "timeout"]);
    let pid: i32 = find("the grandchild's PID", || fs::read_to_string(&grandchild).ok()?.trim().parse().ok());
    let agent = i32::try_from(logged(&daemon, "start")[0].as_i64().unwrap()).unwrap();
    eventually("the agent and its grandchild are gone", || !procfs::exists(pid) && !procfs::exists(agent));
    let turns = || said_at_last(&daemon, "hello");
    assert_eq!(find("another process answers", turns), "You said: hello");
    assert_eq!(logged(&daemon, "start").len(), 2);
}

/// The answer, unless the agent's process is still being replaced when the turn's time is up.
fn said_at_last(daemon: &Daemon, text: &str) -> Option<String> {
    let end = say(daemon, text);
    (end["status"] == "completed").then(|| end["text"].as_str().unwrap().to_owned())
}

#[test]
fn one_that_dies_before_it_is_given_the_message_is_tried_again_and_then_no_more() {
    let mut daemon = Daemon::new();
    daemon.configure(&with(&daemon, json!({ "died_file": daemon.file("died") }), json!({})));
    daemon.launch();
    assert_eq!(said(&daemon, "hello"), "You said: hello");
    assert_eq!((logged(&daemon, "start").len(), logged(&daemon, "prompt").len()), (2, 1));
    let end = say_in(&daemon, "die", "other");
    assert!(failure(&end).contains("died: exit code 3"), "{end}");
    assert_eq!(logged(&daemon, "prompt").len(), 2, "it may have acted");
    assert_eq!(said(&daemon, "hello"), "You said: hello");
}

#[test]
fn one_that_dies_in_the_middle_is_not_asked_again() {
    let daemon = started(json!({}), json!({}));
    let end = say(&daemon, "diemid");
    assert!(failure(&end).contains("exit code 3") && end["text"].as_str().unwrap().starts_with("half an answer"), "{end}");
    assert_eq!(logged(&daemon, "prompt").len(), 1);
    assert_eq!(said(&daemon, "hello"), "You said: hello");
}

#[test]
fn noise_is_left_out_and_nothing_but_garbage_ends_the_process() {
    let daemon = started(json!({}), json!({}));
    assert_eq!(said(&daemon, "noise"), "through the noise");
    let end = say(&daemon, "garbage");
    assert!(failure(&end).contains("lines that are no messages"), "{end}");
    assert_eq!(said(&daemon, "hello"), "You said: hello");
    assert!(daemon.stdout().contains("a line that is no message"), "garbage is logged");
}

#[test]
fn a_line_without_an_end_ends_the_process() {
    let daemon = started(json!({}), json!({}));
    let end = say(&daemon, "huge");
    assert!(failure(&end).contains("a line of more than"), "{end}");
    assert_eq!(said(&daemon, "hello"), "You said: hello");
}

#[test]
fn one_that_never_comes_up_is_told_of_and_given_up() {
    for (keys, why) in [(json!({ "init": "exit" }), "exit code 3"), (json!({ "init": "garbage" }), "no messages")] {
        let daemon = started(keys, json!({}));
        let end = say(&daemon, "hello");
        assert!(failure(&end).contains("not available") && failure(&end).contains(why), "{end}");
    }
    let mut daemon = Daemon::new();
    // No turn may take longer than this test reads.
    let mut wanted = with(&daemon, json!({}), json!({ "timeout_ms": 10_000 }));
    wanted["agents"]["fake"]["command"] = json!("/nonexistent/agent --acp");
    daemon.configure(&wanted);
    daemon.launch();
    let end = say(&daemon, "hello");
    assert!(failure(&end).contains("/nonexistent/agent"), "{end}");
    // After six starts in a row it is left alone for a while, and turns fail at once.
    let is_given_up = || failure(&say(&daemon, "hello")).contains("failed too often").then_some(());
    find_within(GIVEN_UP_WITHIN, "it is given up", is_given_up);
}

#[test]
fn a_refusal_is_no_answer() {
    let daemon = started(json!({}), json!({}));
    assert!(failure(&say(&daemon, "refuse")).contains("refuses to go on"));
}

#[test]
fn an_agent_that_stops_by_itself_has_not_answered() {
    let daemon = started(json!({}), json!({}));
    let end = say(&daemon, "quit");
    assert!(failure(&end).contains("it stopped by itself"), "{end}");
    assert_eq!(said(&daemon, "hello"), "You said: hello", "the next turn is none of that");
}

/// A daemon in which each turn of `count` strangers' messages has a session of the agent's own, which nobody needs after it.
fn forgetful(keys: Value, count: i64) -> Daemon {
    let mut daemon = Daemon::new();
    let mut wanted = with(&daemon, keys, json!({}));
    let nothing = json!({ "name": "all", "effect": "allow", "permissions": { "data_access": "none" } });
    wanted["access"] = json!({ "policies": [nothing] });
    wanted["adapters"] = json!({ "fake": fake(json!({ "events": count })) });
    daemon.configure(&wanted);
    daemon.launch();
    eventually("all are answered", || daemon.ended("completed") == count);
    daemon
}

#[test]
fn a_session_that_no_turn_goes_on_in_is_closed_where_the_agent_can() {
    let daemon = forgetful(json!({ "closes": true }), 3);
    eventually("each is closed", || logged(&daemon, "close").len() == 3);
    assert_eq!((logged(&daemon, "close"), logged(&daemon, "start").len()), (logged(&daemon, "new"), 1));
}

#[test]
fn one_that_closes_nothing_begins_anew_before_it_keeps_too_many() {
    let daemon = forgetful(json!({}), SESSIONS_OPEN_MAX + 3);
    let told = i64::try_from(logged(&daemon, "prompt").len()).unwrap();
    assert_eq!((logged(&daemon, "start").len(), told), (2, SESSIONS_OPEN_MAX + 3), "each was told once");
}

#[test]
fn after_a_restart_a_session_is_resumed_where_the_agent_can() {
    let mut daemon = Daemon::new();
    let sessions = daemon.file("sessions");
    daemon.configure(&with(&daemon, json!({ "sessions_file": sessions }), json!({})));
    daemon.launch();
    said(&daemon, "first");
    daemon.stop();
    daemon.launch();
    assert_eq!(said(&daemon, "blocks"), json!(["blocks"]).to_string(), "played back words are no answer");
    assert_eq!((logged(&daemon, "new").len(), logged(&daemon, "load")), (1, logged(&daemon, "new")));
    daemon.stop();
    // It has forgotten everything.
    fs::write(&sessions, "").unwrap();
    daemon.launch();
    let blocks = said(&daemon, "blocks");
    assert!(blocks.contains("user: first") && blocks.contains("you: You said: first"), "{blocks}");
    assert_eq!(logged(&daemon, "new").len(), 2);
    assert_eq!(daemon.count("agents", "SELECT count(*) FROM acp_sessions"), 1);
}

#[test]
fn after_a_restart_one_that_cannot_resume_is_told_what_was_said() {
    let mut daemon = started(json!({}), json!({}));
    said(&daemon, "first");
    daemon.kill9();
    daemon.launch();
    let blocks = said(&daemon, "blocks");
    assert!(blocks.contains("user: first") && blocks.contains("you: You said: first"), "{blocks}");
    assert!(logged(&daemon, "load").is_empty());
}

#[test]
fn a_session_that_was_archived_begins_anew_with_the_agent_too() {
    let daemon = started(json!({}), json!({}));
    said(&daemon, "first");
    daemon.nexus_ok(&["sessions", "archive", "cli:default"]);
    assert_eq!(said(&daemon, "blocks"), json!(["blocks"]).to_string(), "it is told nothing of the old one");
    assert_eq!((logged(&daemon, "start").len(), logged(&daemon, "new").len()), (1, 2), "the old one has its own memory");
}

#[test]
fn an_agent_that_missed_a_turn_of_its_session_is_told_of_it() {
    let daemon = started(json!({}), json!({}));
    said(&daemon, "first");
    let mut wanted = with(&daemon, json!({}), json!({}));
    for (answers, text) in [("echo", "of another"), ("fake", "blocks")] {
        wanted["agents"]["default"] = json!(answers);
        daemon.configure(&wanted);
        daemon.nexus_ok(&["daemon", "reload"]);
        let told = said(&daemon, text);
        assert!(answers == "echo" || told.contains("user: first") && told.contains("you: of another"), "{told}");
    }
    assert_eq!((logged(&daemon, "start").len(), logged(&daemon, "new").len()), (1, 2));
}

#[test]
fn an_answer_to_a_run_of_the_daemon_before_finds_no_question() {
    let mut daemon = started(json!({}), json!({ "permissions": { "ask": "always" } }));
    let code = Talk::begin(&daemon, "ask edit", "default").code();
    daemon.kill9();
    daemon.launch();
    assert_eq!(say(&daemon, &format!("yes {code}"))["reason"], format!("permission {code}: no such question"));
    eventually("the run was interrupted", || daemon.ended("failed") == 1);
    assert_eq!(logged(&daemon, "prompt").len(), 1, "it may have acted, and is not run again by itself");
}

#[test]
fn a_reload_replaces_the_process_of_a_changed_agent_only() {
    let daemon = started(json!({}), json!({}));
    said(&daemon, "hello");
    let mut wanted = with(&daemon, json!({}), json!({ "timeout_ms": 60000, "permissions": { "ask": "never" } }));
    daemon.configure(&wanted);
    daemon.nexus_ok(&["daemon", "reload"]);
    assert_eq!(said(&daemon, "hello"), "You said: hello");
    assert_eq!(logged(&daemon, "start").len(), 1, "how it is asked is no reason to start it anew");
    wanted["agents"]["fake"]["env"]["GREETING"] = json!("hello");
    daemon.configure(&wanted);
    daemon.nexus_ok(&["daemon", "reload"]);
    let before = i32::try_from(logged(&daemon, "start")[0].as_i64().unwrap()).unwrap();
    eventually("the old process is gone", || !procfs::exists(before));
    assert_eq!(said(&daemon, "hello"), "You said: hello");
    assert_eq!(logged(&daemon, "start").len(), 2);
}

#[test]
fn a_stop_ends_the_process_and_a_turn_under_way_is_interrupted() {
    let mut daemon = started(json!({}), json!({}));
    said(&daemon, "hello");
    daemon.stop();
    daemon.nothing_runs();
    daemon.launch();
    said(&daemon, "hello");
    Talk::begin(&daemon, "slow", "other").next("token");
    daemon.kill9();
    daemon.nothing_runs();
}

#[test]
fn the_command_line_shows_a_question() {
    let daemon = started(json!({}), json!({ "permissions": { "ask": "always", "timeout_ms": 200 } }));
    let ran = daemon.nexus(&["send", "ask", "edit"]);
    assert_eq!((ran.code, ran.stdout.trim()), (Some(0), "the answer was no"), "{ran:?}");
    assert!(ran.stderr.contains("Agent fake wants to edit") && ran.stderr.contains("`yes "), "{ran:?}");
}
