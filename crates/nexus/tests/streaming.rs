//! Answers that leave while their agent still speaks: live through one `stream` process per account, in blocks by `send`;
//! each word once, in order, and nothing of an interrupted one said again.
#![allow(clippy::unwrap_used)]

mod common;
mod streamed;

use common::{Ask, Signal, eventually, find, send_signal};
use serde_json::{Value, json};
use std::fs;
use streamed::{Place, in_blocks, streaming};

#[test]
fn an_answer_is_shown_while_it_is_made_and_is_one_delivery() {
    let mut place = streaming(json!({}));
    place.launch_streaming();
    eventually("its first words are shown", || place.types().iter().any(|kind| kind == "token"));
    assert_eq!(place.deliveries()[0].0, "sending", "its row comes before its first byte");
    assert_eq!(place.daemon.ended("completed"), 0);
    place.open_gate();
    place.delivered(&[("sent", 1, "Hello world.")]);
    let streamed = place.streamed();
    assert_eq!(streamed[0]["target"]["to"], "p0");
    assert!(streamed[0]["sessionLabel"].is_string() && streamed[0]["target"]["account_id"] == "me", "{}", streamed[0]);
    assert_eq!(streamed.last().unwrap()["final"], "Hello world.");
    let keys = place.daemon.texts("nexus", "SELECT idempotency_key FROM deliveries");
    assert_eq!(keys, [streamed[0]["idempotencyKey"].as_str().unwrap()]);
    assert!(place.sends().is_empty(), "sent as well");
    let ids = place.daemon.texts("nexus", "SELECT message_ids FROM deliveries");
    assert!(ids[0].starts_with("[\"s-run_"), "{ids:?}");
    let outbound = "SELECT content FROM events WHERE direction = 'outbound'";
    eventually("it is in the record", || place.daemon.texts("events", outbound) == ["Hello world."]);
}

#[test]
fn one_process_shows_one_answer_after_the_other_and_stops_with_the_daemon() {
    let mut place = streaming(json!({ "events": 3, "peers": 1 }));
    place.open_gate();
    place.daemon.launch();
    eventually("all are answered", || place.daemon.deliveries("sent") == 3);
    eventually("the status shows the process", || place.daemon.adapter("fake/me")["stream"]["status"] == "running");
    eventually("it was started", || place.starts() > 0);
    assert_eq!(place.starts(), 1);
    place.daemon.nexus_ok(&["adapter", "stop", "fake/me"]);
    eventually("it is stopped with its account", || place.daemon.adapter("fake/me")["stream"]["status"] == "stopped");
    place.daemon.nexus_ok(&["adapter", "start", "fake/me"]);
    place.stream_process();
    place.daemon.stop();
    place.daemon.nothing_runs();
}

#[test]
fn a_process_that_dies_in_the_middle_leaves_it_uncertain_and_comes_back() {
    let mut place = streaming(json!({ "stream": "die" }));
    place.launch_streaming();
    eventually("it was started again", || place.starts() >= 2);
    assert_eq!(place.deliveries()[0].0, "sending", "its agent still speaks");
    place.open_gate();
    place.delivered(&[("uncertain", 1, "Hello world.")]);
    assert!(place.sends().is_empty(), "sent again without being asked");
    let id = place.daemon.texts("nexus", "SELECT delivery_id FROM deliveries").remove(0);
    place.daemon.nexus_ok(&["deliveries", "retry", &id]);
    place.delivered(&[("sent", 2, "Hello world.")]);
    assert_eq!(place.sends()[0].1, "Hello world.");
}

#[test]
fn what_may_be_retried_is_sent_as_a_whole_under_the_same_key() {
    let send = json!({ "timeout_ms": 2000, "on_uncertain": "retry" });
    let mut place = Place::new("Hello", " world.", json!({ "stream": "garbage" }), send);
    place.launch_streaming();
    eventually("who talks nonsense was replaced", || place.starts() >= 2);
    place.open_gate();
    place.delivered(&[("sent", 2, "Hello world.")]);
    let key = place.daemon.texts("nexus", "SELECT idempotency_key FROM deliveries").remove(0);
    assert_eq!(place.sends(), [(key, "Hello world.".to_owned())]);
}

#[test]
fn lies_about_what_was_delivered_are_not_believed() {
    for mode in ["no_id", "early", "deaf"] {
        let mut place = streaming(json!({ "stream": mode }));
        place.launch_streaming();
        if mode == "early" {
            eventually("the liar was replaced", || place.starts() >= 2);
        }
        place.open_gate();
        place.delivered(&[("uncertain", 1, "Hello world.")]);
        assert!(place.sends().is_empty(), "{mode}: sent again without being asked");
        assert_eq!(place.daemon.ended("completed"), 1, "{mode}");
    }
}

#[test]
fn what_a_process_refuses_or_nobody_streams_is_sent() {
    let mut place = streaming(json!({ "stream": "refuse" }));
    place.launch_streaming();
    place.open_gate();
    place.delivered(&[("sent", 2, "Hello world.")]);
    assert_eq!(place.sends()[0].1, "Hello world.");

    let mut place = Place::new("Hello", " world.", json!({}), json!({ "stream": "whole" }));
    place.open_gate();
    place.daemon.launch();
    place.delivered(&[("sent", 1, "Hello world.")]);
    assert!(place.streamed().is_empty() && place.starts() == 0);
}

#[test]
fn what_is_refused_is_sent_where_a_send_is_tried_once_and_split_as_the_channel_asks() {
    let send = json!({ "timeout_ms": 2000, "retries": 0 });
    let mut place = Place::new("Hello there,", " wide world.", json!({ "stream": "refuse", "text_limit": 15 }), send);
    place.launch_streaming();
    place.open_gate();
    let text = |sends: &[(String, String)]| sends.iter().map(|(_, text)| text.trim().to_owned()).collect::<Vec<_>>().join(" ");
    eventually("all of it is sent", || text(&place.sends()) == "Hello there, wide world.");
    let (sends, key) = (place.sends(), place.streamed()[0]["idempotencyKey"].as_str().unwrap().to_owned());
    assert!(sends.len() > 1 && sends.iter().all(|(_, text)| text.chars().count() <= 15), "{sends:?}");
    for (n, (of_piece, _)) in sends.iter().enumerate() {
        assert_eq!(*of_piece, format!("{key}/{}", n + 1));
    }
    let pieces = i64::try_from(sends.len()).unwrap();
    eventually("each is on record", || place.daemon.deliveries("sent") == pieces);
    assert_eq!(place.deliveries().len(), sends.len(), "the whole is left over");
}

#[test]
fn an_agent_that_fails_ends_its_stream_and_the_user_is_told_once() {
    let mut place = streaming(json!({}));
    place.launch_streaming();
    eventually("its first words are shown", || place.types().iter().any(|kind| kind == "token"));
    fs::write(place.daemon.file("end"), format!("{}\n", json!({ "type": "stream_error", "error": "no disk" }))).unwrap();
    place.open_gate();
    eventually("both are sent", || place.daemon.deliveries("sent") == 2);
    let last = place.streamed().pop().unwrap();
    assert_eq!((&last["type"], &last["partial"]), (&json!("stream_error"), &json!("Hello world.")));
    let sends = place.sends();
    assert!(sends.len() == 1 && sends[0].0.ends_with(":1:1") && sends[0].1.starts_with("The agent failed"), "{sends:?}");
    assert_eq!(place.deliveries()[0].2, "Hello world.");
}

#[test]
fn a_kill_in_the_middle_of_a_stream_repeats_nothing() {
    let mut place = streaming(json!({}));
    place.launch_streaming();
    eventually("its first words are shown", || place.types().iter().any(|kind| kind == "token"));
    place.daemon.kill9();
    place.open_gate();
    place.daemon.launch();
    eventually("the request has its end", || place.daemon.ended("failed") == 1);
    eventually("the user is told", || place.sends().len() == 1);
    assert!(place.sends()[0].1.contains("nexus trace retry"), "{:?}", place.sends());
    assert_eq!(place.deliveries()[0].0, "uncertain");
    assert_eq!(place.daemon.count("nexus", "SELECT count(*) FROM runs"), 1);
    let id = place.daemon.texts("nexus", "SELECT delivery_id FROM deliveries ORDER BY seq").remove(0);
    assert_eq!(place.daemon.nexus(&["deliveries", "retry", &id]).code, Some(1), "it has no text to send");
    place.daemon.nexus_ok(&["deliveries", "discard", &id]);
}

#[test]
fn a_block_leaves_before_the_answer_is_over_and_the_rest_after_it() {
    let (mut place, first) = in_blocks(json!({}));
    place.daemon.launch();
    eventually("the block is sent", || place.daemon.deliveries("sent") == 1);
    assert_eq!((place.daemon.ended("completed"), place.sends()[0].1.as_str()), (0, first.as_str()));
    place.open_gate();
    eventually("the request ends", || place.daemon.ended("completed") == 1);
    eventually("all of it is sent", || place.sends().iter().map(|(_, text)| text.as_str()).collect::<String>().ends_with("more"));
    let said: String = place.sends().iter().map(|(_, text)| text.as_str()).collect::<Vec<_>>().join(" ");
    assert_eq!(said.split_whitespace().collect::<Vec<_>>().join(" "), format!("{first} and more"));
    let keys: Vec<String> = place.sends().into_iter().map(|(key, _)| key).collect();
    let numbers: Vec<String> = (0..keys.len()).map(|n| n.to_string()).collect();
    assert_eq!(keys.iter().filter_map(|key| key.rsplit(':').next()).collect::<Vec<_>>(), numbers);
    let turn = "SELECT content FROM messages WHERE role = 'assistant'";
    eventually("the turn is whole", || place.daemon.texts("agents", turn) == [format!("{first}\n\nand more")]);
    assert!(place.streamed().is_empty());
}

#[test]
fn what_is_there_after_a_second_of_silence_is_a_block() {
    let mut place = Place::new("Let me look.", "\n\nIt is 5.", json!({}), json!({ "stream": "blocks" }));
    place.daemon.launch();
    eventually("the first words are sent", || place.sends().len() == 1);
    place.open_gate();
    place.delivered(&[("sent", 1, "Let me look."), ("sent", 1, "It is 5.")]);
}

#[test]
fn a_run_of_which_a_block_left_is_not_run_again() {
    let (mut place, first) = in_blocks(json!({}));
    place.daemon.launch();
    eventually("the block is sent", || place.daemon.deliveries("sent") == 1);
    place.daemon.kill9();
    assert_eq!(place.daemon.count("nexus", "SELECT spoke FROM runs"), 1);
    place.open_gate();
    place.daemon.launch();
    eventually("the user is told", || place.sends().last().is_some_and(|(_, text)| text.contains("nexus trace retry")));
    assert_eq!((place.daemon.ended("failed"), place.daemon.count("nexus", "SELECT count(*) FROM runs")), (1, 1));
    let reasons = place.daemon.texts("nexus", "SELECT reason FROM nexus_requests");
    assert!(reasons[0].contains("a part of its answer had left"), "{reasons:?}");
    assert_eq!(place.sends().iter().filter(|(_, text)| *text == first).count(), 1);
}

#[test]
fn a_killed_stream_process_and_a_reload_change_nothing_else() {
    let mut place = streaming(json!({}));
    place.open_gate();
    place.daemon.launch();
    let process = place.stream_process();
    let monitor = place.daemon.only_monitor();
    send_signal(process.pid, Signal::KILL);
    let next = find("another one", || Some(place.stream_process()).filter(|next| next.pid != process.pid));
    assert_eq!(place.daemon.only_monitor().pid, monitor.pid, "the monitor was restarted too");
    let text = fs::read_to_string(place.daemon.config_file()).unwrap();
    let mut now: Value = serde_json::from_str(&text).unwrap();
    now["adapters"]["fake"]["send"] = json!({ "stream": "whole" });
    place.daemon.configure(&now);
    place.daemon.nexus_ok(&["daemon", "reload"]);
    eventually("it isn't wanted any more", || !next.is_alive());
    assert_eq!(place.daemon.only_monitor().pid, monitor.pid);
    place.daemon.stop();
}

/// Puts all messages into one session, where the newest ends the turn before it.
fn interrupting(place: &Place) {
    let text = fs::read_to_string(place.daemon.config_file()).unwrap();
    let mut wanted: Value = serde_json::from_str(&text).unwrap();
    let (session, queue_mode) = (json!({ "key": "one" }), "interrupt");
    wanted["access"]["policies"] = json!([{ "name": "one", "match": {}, "effect": "allow", "session": session, "queue_mode": queue_mode }]);
    place.daemon.configure(&wanted);
}

#[test]
fn what_was_cut_off_is_not_sent_again_at_the_next_start_either() {
    let send = json!({ "timeout_ms": 2000, "on_uncertain": "retry" });
    let mut place = Place::new("Hello", " world.", json!({ "stream": "no_id" }), send);
    interrupting(&place);
    place.launch_streaming();
    eventually("its first words are shown", || place.types().iter().any(|kind| kind == "token"));
    let newer = place.daemon.open(&Ask::post("/control/send", &json!({ "text": "stop" })));
    let shown = "SELECT status || ' ' || content FROM deliveries WHERE adapter = 'fake'";
    eventually("nobody knows whether it is there", || place.daemon.texts("nexus", shown) == ["uncertain Hello"]);
    place.open_gate();
    eventually("both have their end", || place.daemon.ended("completed") == 2);
    drop(newer);
    place.daemon.stop();
    place.daemon.launch();
    assert_eq!(place.daemon.texts("nexus", shown), ["uncertain Hello"], "it was taken up");
    assert!(place.sends().is_empty(), "{:?}", place.sends());
    let id = place.daemon.texts("nexus", "SELECT delivery_id FROM deliveries WHERE adapter = 'fake'").remove(0);
    place.daemon.nexus_ok(&["deliveries", "retry", &id]);
    eventually("a person may have it sent", || place.daemon.texts("nexus", shown) == ["sent Hello"]);
}

#[test]
fn a_block_that_has_not_left_when_its_turn_is_ended_never_does() {
    let (mut place, first) = in_blocks(json!({ "send": "hang" }));
    interrupting(&place);
    place.daemon.launch();
    // The second one after a second of silence, behind the first.
    place.delivered(&[("sending", 1, first.as_str()), ("pending", 0, "and")]);
    let newer = place.daemon.open(&Ask::post("/control/send", &json!({ "text": "stop" })));
    place.delivered(&[("sending", 1, first.as_str()), ("discarded", 0, "and")]);
    place.open_gate();
    eventually("both have their end", || place.daemon.ended("completed") == 2);
    drop(newer);
}

#[test]
fn a_newer_message_ends_the_stream_of_the_turn_before_it() {
    let mut place = streaming(json!({}));
    interrupting(&place);
    place.launch_streaming();
    eventually("its first words are shown", || place.types().iter().any(|kind| kind == "token"));
    // Of the same session, though said elsewhere.
    let newer = place.daemon.open(&Ask::post("/control/send", &json!({ "text": "stop" })));
    eventually("the stream was ended", || place.types().last().is_some_and(|kind| kind == "stream_error"));
    assert_eq!(place.streamed().last().unwrap()["partial"], "Hello");
    place.open_gate();
    eventually("both have their end", || place.daemon.ended("completed") == 2);
    drop(newer);
    let shown = "SELECT status || ' ' || content FROM deliveries WHERE adapter = 'fake'";
    eventually("it is on record as it was shown", || place.daemon.texts("nexus", shown) == ["sent Hello"]);
    assert!(place.sends().is_empty(), "{:?}", place.sends());
}
