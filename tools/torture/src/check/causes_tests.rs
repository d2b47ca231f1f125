//! What ended badly, in ledgers made by hand.
#![allow(clippy::unwrap_used)]

use super::super::made::Made;
use super::*;
use crate::acp::{BEGAN, DIES};
use crate::agent::CALLED;
use serde_json::json;

/// So many messages that were answered, after which this happened to the ledger.
fn changed(kind: Kind, messages: i64, sql: &str) -> Made {
    let made = Made::whole(kind, messages);
    // Each is of a conversation, and for a target, of its own.
    let columns = "ALTER TABLE nexus_requests ADD COLUMN reason TEXT; ALTER TABLE deliveries ADD COLUMN error TEXT;
                   ALTER TABLE nexus_requests ADD COLUMN conversation TEXT; ALTER TABLE nexus_requests ADD COLUMN run_id TEXT;
                   UPDATE nexus_requests SET conversation = 'c' || event_seq, run_id = 'run-' || event_seq;
                   UPDATE deliveries SET target = 'p' || seq";
    made.nexus.execute_batch(columns).unwrap();
    made.nexus.execute_batch(sql).unwrap();
    made
}

fn judged(made: &Made, on_interrupted: OnInterrupted, leeway: Leeway) -> String {
    Causes::new(on_interrupted).judge(&made.world, &made.nexus, leeway).unwrap().join("; ")
}

/// The daemon died with these replies and requests begun, and then this happened to the ledger.
fn after_a_death(made: &Made, on_interrupted: OnInterrupted, begun: &str, then: &str) -> String {
    let mut causes = Causes::new(on_interrupted);
    made.nexus.execute_batch(begun).unwrap();
    let kill = Fault::Kill { victim: Victim::Daemon, after_ms: 0 };
    let mut found = causes.after(&made.world, &kill).unwrap();
    made.nexus.execute_batch(then).unwrap();
    found.extend(causes.settled(&made.world).unwrap());
    found.join("; ")
}

fn calm(made: &Made) -> String {
    judged(made, OnInterrupted::Auto, Leeway::AtMost(0))
}

fn faulty(made: &Made, key: &str, what: &str) {
    let line = json!({ "key": key, "channel": "acked", "what": what, "at": 1 });
    journal::append(&made.world.faults(), &line.to_string()).unwrap();
}

/// The message is written once more, as this person's and with this time.
fn rewritten(made: &Made, number: i64, peer_kind: &str, timestamp: i64) {
    let event = json!({ "event_id": made.id(number), "peer_kind": peer_kind, "timestamp": timestamp });
    let line = json!({ "at": 2 * OLD_MS, "ns": 1, "event": event });
    journal::append(&made.world.feed(Kind::Acked, "a"), &line.to_string()).unwrap();
}

#[test]
fn nothing_is_found_where_everything_ends_well() {
    for kind in [Kind::Acked, Kind::Filled, Kind::Live] {
        assert_eq!(calm(&changed(kind, 3, "")), "");
    }
}

#[test]
fn a_daemon_that_sends_everything_twice_is_found_also_where_it_may_retry() {
    let twice = changed(Kind::Filled, 80, "UPDATE deliveries SET attempts = 2");
    (1..=80).for_each(|number| twice.begun(number, &format!("key-{number}")));
    assert!(calm(&twice).contains("80 of 160 calls of `send` ended badly without a cause but the time they took, and 58 at most"));
    for number in 1..=80 {
        faulty(&twice, &format!("key-{number}"), LOST);
    }
    assert_eq!(calm(&twice), "");
    (1..=80).for_each(|number| twice.begun(number, &format!("key-{number}")));
    let mut causes = Causes::new(OnInterrupted::Auto);
    causes.sends = 160;
    let found = causes.judge(&twice.world, &twice.nexus, Leeway::AtMost(0)).unwrap().join("; ");
    assert!(found.contains("80 of 80 calls of `send`"), "{found}");
    let mut causes = Causes { sends: 160, ..Causes::new(OnInterrupted::Auto) };
    causes.cut_off.replies = (1..=80).map(|number| (format!("key-{number}"), 2)).collect();
    assert!(causes.judge(&twice.world, &twice.nexus, Leeway::AtMost(0)).unwrap().is_empty(), "a death cut off the second call of each");
}

#[test]
fn a_daemon_that_gives_up_on_everything_is_found() {
    let given_up = changed(
        Kind::Acked,
        80,
        "UPDATE nexus_requests SET status = 'failed', reason = 'I give up';
         UPDATE deliveries SET status = 'uncertain', error = 'who knows'",
    );
    for most in [0, conversations(&given_up.world)] {
        let found = judged(&given_up, OnInterrupted::Auto, Leeway::AtMost(most));
        assert!(found.contains(&format!("80 of 80 requests ended badly without a cause, and {most} at most could have")), "{found}");
        assert!(found.contains(&format!("80 of 80 replies ended badly without a cause, and {most} at most could have")), "{found}");
    }
    assert_eq!(judged(&given_up, OnInterrupted::Auto, Leeway::Unknown), "");
    for number in 1..=80 {
        given_up.noted(FAILS, number, &format!("run-{number}"));
        faulty(&given_up, &format!("key-{number}"), LOST);
    }
    assert_eq!(calm(&given_up), "", "each has its cause");
}

#[test]
fn few_are_slow() {
    let slow = |upto: i64| {
        let sql = format!("UPDATE nexus_requests SET status = 'failed', reason = 'the agent''s time is up' WHERE event_seq <= {upto}");
        calm(&changed(Kind::Acked, 80, &sql))
    };
    assert_eq!(slow(38), "", "one in each of 18 conversations as the machine stood still, and one of four");
    assert!(slow(39).contains("39 of 80 requests ended badly without a cause but the time they took, and 38 at most"), "{}", slow(39));
}

#[test]
fn what_may_be_run_again_is() {
    let interrupted = |attempts: u64| {
        let sql = format!("UPDATE nexus_requests SET attempts = {attempts}; UPDATE runs SET status = 'interrupted', attempt = {attempts}");
        changed(Kind::Acked, 1, &sql)
    };
    let after_a_death = |made: &Made, on_interrupted: OnInterrupted| {
        let begun = "UPDATE nexus_requests SET status = 'processing', completed_at = NULL";
        let failed = "UPDATE nexus_requests SET status = 'failed', reason = 'interrupted, alas', completed_at = 5";
        after_a_death(made, on_interrupted, begun, failed)
    };
    let (once, thrice) = (interrupted(1), interrupted(3));
    for on_interrupted in [OnInterrupted::Fail, OnInterrupted::Auto] {
        assert_eq!(after_a_death(&once, on_interrupted), "", "a command may have acted");
    }
    let refused = "acked:a-1 `failed` (interrupted, alas) was interrupted, and not run again though it may be";
    assert_eq!(after_a_death(&once, OnInterrupted::Rerun), refused);
    assert_eq!(after_a_death(&thrice, OnInterrupted::Rerun), "");
    assert!(judged(&once, OnInterrupted::Fail, Leeway::AtMost(0)).contains("1 of 1 requests ended badly without a cause"), "nobody died");
    for made in [&once, &thrice] {
        made.nexus.execute_batch("UPDATE runs SET agent = 'echo'").unwrap();
        for on_interrupted in [OnInterrupted::Auto, OnInterrupted::Rerun] {
            assert_eq!(after_a_death(made, on_interrupted), refused, "an echo changes nothing");
        }
    }
}

#[test]
fn who_may_ask_is_not_denied_and_who_may_not_is() {
    let denied = changed(Kind::Acked, 1, "UPDATE nexus_requests SET status = 'denied'");
    assert!(calm(&denied).contains("acked:a-1 `denied` () is of somebody who may ask, and was denied"));
    rewritten(&denied, 1, "channel", 2 * OLD_MS);
    assert_eq!(calm(&denied), "");
    let answered = changed(Kind::Acked, 1, "");
    rewritten(&answered, 1, "channel", 2 * OLD_MS);
    assert!(calm(&answered).contains("acked:a-1 `completed` () is a stranger's, and was not denied"));
}

#[test]
fn only_what_is_late_is_filed() {
    let filed = changed(Kind::Acked, 1, "UPDATE nexus_requests SET status = 'expired'");
    assert!(calm(&filed).contains("was never late"));
    let mut causes = Causes::new(OnInterrupted::Auto);
    assert!(causes.after(&filed.world, &Fault::Sleep).unwrap().is_empty(), "two hours passed");
    rewritten(&filed, 1, "dm", 2 * OLD_MS);
    assert!(calm(&filed).contains("was never late"));
    rewritten(&filed, 1, "dm", 0);
    assert!(calm(&filed).contains("was never late"), "it says nothing of its time");
    rewritten(&filed, 1, "dm", 1);
    assert_eq!(calm(&filed), "");
}

#[test]
fn a_reply_is_given_up_for_what_its_sender_did() {
    let ended = |status: &str, attempts: u64, fault: Option<&str>| {
        let sql = format!("UPDATE deliveries SET status = '{status}', attempts = {attempts}");
        let made = changed(Kind::Acked, 1, &sql);
        fault.iter().for_each(|fault| faulty(&made, "key-1", fault));
        calm(&made)
    };
    for (status, attempts, fault) in [("uncertain", 1, LOST), ("failed", 1, REJECTED), ("failed", 7, REFUSED)] {
        assert_eq!(ended(status, attempts, Some(fault)), "");
        assert!(ended(status, attempts, None).contains("1 of 1 replies ended badly without a cause"));
    }
    assert!(ended("uncertain", 1, Some(REFUSED)).contains("without a cause"), "it said that it sent nothing");
    assert!(ended("failed", 6, Some(REFUSED)).contains("without a cause"), "it is tried once more");
    assert!(ended("uncertain", 0, Some(LOST)).contains("key-1 `uncertain` () was never tried"));
    assert!(ended("expired", 1, Some(REFUSED)).contains("had its time to live left"));
    assert_eq!(ended("discarded", 1, None), "", "a person did that");
}

#[test]
fn a_daemon_that_fails_what_nothing_was_doing_at_its_death_is_found() {
    let begun = "UPDATE nexus_requests SET status = CASE WHEN event_seq <= 2 THEN 'processing' ELSE 'waiting' END, completed_at = NULL";
    let failed = |upto: i64, of_attempt: u64| {
        let sql = "UPDATE nexus_requests SET status = 'failed', reason = 'interrupted, alas', completed_at = 5";
        let then = format!("{sql}, attempts = {of_attempt} WHERE event_seq <= {upto}");
        after_a_death(&changed(Kind::Acked, 8, ""), OnInterrupted::Auto, begun, &then)
    };
    assert_eq!(failed(2, 1), "", "they were under way");
    assert!(failed(8, 1).contains("6 of 8 requests ended badly without a cause, and 0 at most could have"), "{}", failed(8, 1));
    assert!(failed(2, 2).contains("2 of 2 requests ended badly without a cause"), "another attempt");
}

#[test]
fn a_daemon_that_gives_up_what_nothing_sent_at_its_death_is_found() {
    let begun = "UPDATE deliveries SET status = CASE WHEN seq <= 2 THEN 'sending' ELSE 'pending' END";
    let given_up = |upto: i64, attempt: u64| {
        let then = format!("UPDATE deliveries SET status = 'uncertain', attempts = {attempt} WHERE seq <= {upto}");
        after_a_death(&changed(Kind::Acked, 8, ""), OnInterrupted::Auto, begun, &then)
    };
    assert_eq!(given_up(2, 1), "");
    assert!(given_up(8, 1).contains("6 of 8 replies ended badly without a cause, and 0 at most could have"), "{}", given_up(8, 1));
    assert!(given_up(2, 2).contains("2 of 2 replies ended badly without a cause"), "another attempt");
}

/// What is found of a daemon that died so.
fn in_hand(fault: &Fault, begun: &str) -> String {
    let made = changed(Kind::Acked, 20, begun);
    Causes::new(OnInterrupted::Auto).after(&made.world, fault).unwrap().join("; ")
}

#[test]
fn a_daemon_has_one_turn_in_hand_for_each_conversation_at_most() {
    let kill = Fault::Kill { victim: Victim::Daemon, after_ms: 0 };
    let died = |then: &str| in_hand(&kill, &format!("UPDATE nexus_requests SET status = 'processing', completed_at = NULL; {then}"));
    assert_eq!(died(""), "");
    assert_eq!(died("UPDATE nexus_requests SET conversation = 'c1', run_id = 'run-1' WHERE event_seq <= 3"), "", "they share a turn");
    let two = "UPDATE nexus_requests SET conversation = 'c1' WHERE event_seq = 2";
    assert!(died(two).contains("as it died the daemon had several turns in conversation acked c1: run-"), "{}", died(two));
    assert_eq!(died(&format!("{two}; UPDATE nexus_requests SET status = 'interrupted' WHERE event_seq = 2")), "", "that one had its turn");
    assert_eq!(died(&format!("{two}; UPDATE nexus_requests SET channel = 'timer'")), "", "that is nobody's conversation");
    let panic = Fault::Panic { name: "run.started".to_owned(), count: 1 };
    let both = format!("UPDATE nexus_requests SET status = 'processing', completed_at = NULL; {two}");
    assert_eq!(in_hand(&panic, &both), "", "a defect may have left one of them");
}

#[test]
fn a_daemon_sends_one_reply_to_each_target_at_most() {
    let kill = Fault::Kill { victim: Victim::Daemon, after_ms: 0 };
    let died = |then: &str| in_hand(&kill, &format!("UPDATE deliveries SET status = 'sending'; {then}"));
    assert_eq!(died(""), "");
    let two = died("UPDATE deliveries SET target = 'p1' WHERE seq = 2");
    assert!(two.contains("as it died the daemon had several sends to acked a/p1: key-"), "{two}");
    assert_eq!(died("UPDATE deliveries SET target = 'p1', account_id = 'b' WHERE seq = 2"), "", "another account's");
    assert_eq!(died("UPDATE deliveries SET target = 'p1', status = 'pending' WHERE seq = 2"), "", "it waits");
}

#[test]
fn what_ends_in_the_cycle_of_a_fault_is_one_for_each_conversation_at_most() {
    let judged = |fault: &Fault, failed: usize| {
        let made = changed(Kind::Acked, 0, "");
        let sql = format!(
            "WITH RECURSIVE all_of(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM all_of WHERE n < {failed})
             INSERT INTO nexus_requests SELECT n, 'acked:a-' || n, 'acked', 'failed', 1, 5, NULL, NULL, NULL FROM all_of"
        );
        made.nexus.execute_batch(&sql).unwrap();
        Causes::new(OnInterrupted::Auto).after(&made.world, fault).unwrap().concat()
    };
    let (stop, kill) = (Fault::Stop { patience_ms: 20 }, Fault::Kill { victim: Victim::Daemon, after_ms: 0 });
    assert_eq!(judged(&stop, 18), "");
    assert!(judged(&stop, 19).contains("19 of 19 requests ended badly without a cause, and 18 at most could have"));
    assert!(judged(&kill, 1).contains("1 of 1 requests ended badly without a cause, and 0 at most could have"));
    let point = |name: &str, victim: Victim| Fault::Point { name: name.to_owned(), count: 1, victim };
    assert!(
        judged(&point("run.started", Victim::Daemon), 1).contains("1 of 1 requests ended badly without a cause, and 0 at most could have")
    );
    for led_to in [point("stop.1", Victim::Daemon), point("reload.begun", Victim::Daemon), point("run.started", Victim::Both)] {
        assert_eq!(judged(&led_to, 18), "");
        assert!(judged(&led_to, 19).contains("and 18 at most could have"), "{led_to:?}");
    }
    assert_eq!(judged(&Fault::Descriptors, 150), "", "nobody knows how much that is");
}

#[test]
fn a_reply_that_is_sent_again_is_judged_again() {
    let (mut causes, made) = (Causes::new(OnInterrupted::Auto), changed(Kind::Filled, 1, ""));
    let mut judged = |status: &str, attempts: u64| {
        let sql = format!("UPDATE deliveries SET status = '{status}', attempts = {attempts}");
        made.nexus.execute_batch(&sql).unwrap();
        causes.judge(&made.world, &made.nexus, Leeway::AtMost(0)).unwrap().concat()
    };
    faulty(&made, "key-1", LOST);
    assert_eq!((judged("uncertain", 1), judged("uncertain", 2)), (String::new(), String::new()));
    assert!(judged("failed", 3).contains("1 of 1 replies ended badly without a cause"));
    assert_eq!(judged("failed", 3), "", "once");
}

/// What becomes of failed requests of this agent, of which this was noted, of message and nanosecond.
fn failed_with(agent: &str, messages: i64, notes: &[(&str, i64, u64)]) -> String {
    let sql = format!("UPDATE nexus_requests SET status = 'failed', reason = 'it died'; UPDATE runs SET agent = '{agent}'");
    let made = changed(Kind::Filled, messages, &sql);
    for (what, number, at) in notes {
        let line = json!({ "what": what, "content": made.content(*number), "at": at });
        journal::append(&made.world.agent_journal(), &line.to_string()).unwrap();
    }
    calm(&made)
}

#[test]
fn an_agent_that_stays_tells_by_the_message_that_it_fails() {
    assert_eq!(failed_with(acp::NAME, 1, &[(CALLED, 1, 5), (FAILS, 1, 5)]), "");
    assert!(failed_with(acp::NAME, 2, &[(CALLED, 1, 5), (FAILS, 1, 5)]).contains("1 of 2 requests ended badly without a cause"));
    let again = [(CALLED, 1, 5), (FAILS, 1, 5), (CALLED, 1, 6)];
    assert!(failed_with(acp::NAME, 1, &again).contains("1 of 1 requests ended badly without a cause"), "another attempt");
}

#[test]
fn an_end_of_its_process_spoils_the_turns_that_it_overlaps() {
    let later = |second: u64| second * 1_000_000_000;
    let (dies, again) = ((DIES, 1, later(10)), (BEGAN, 1, later(10) + 1));
    assert_eq!(failed_with(acp::NAME, 2, &[(CALLED, 1, later(9)), (CALLED, 2, later(9)), dies, again]), "", "they share the process");
    let found = failed_with(acp::NAME, 2, &[(CALLED, 1, later(8)), (CALLED, 2, later(9)), dies, again]);
    assert!(found.contains("1 of 2 requests ended badly without a cause"), "{found}");
    let found = failed_with("worker", 1, &[(CALLED, 1, later(9)), dies, again]);
    assert!(found.contains("1 of 1 requests ended badly without a cause"), "a process for each run: {found}");
    // Two accounts with three people each.
    assert_eq!(failed_with(acp::NAME, 6, &[dies, again]), "", "nobody was told");
    assert!(failed_with(acp::NAME, 7, &[dies, again]).contains("1 of 7 requests ended badly without a cause"));
}

#[test]
fn an_agent_that_stays_is_not_started_for_each_turn() {
    let started = |times: usize, ends: &[(&str, i64, u64)]| {
        let notes = [ends, vec![(BEGAN, 1, 9); times].as_slice()].concat();
        let made = changed(Kind::Filled, 1, "");
        for (what, number, at) in notes {
            let line = json!({ "what": what, "content": made.content(number), "at": at });
            journal::append(&made.world.agent_journal(), &line.to_string()).unwrap();
        }
        made
    };
    assert_eq!(calm(&started(3, &[])), "");
    assert_eq!(calm(&started(4, &[])), "the agent that stays was started 4 times, and 3 at most had a cause");
    assert_eq!(calm(&started(4, &[(DIES, 1, 8)])), "");
    assert_eq!(judged(&started(4, &[]), OnInterrupted::Auto, Leeway::Unknown), "", "somebody may have killed it");
}

#[test]
fn what_an_earlier_attempt_of_a_sender_did_says_nothing() {
    let made = changed(Kind::Acked, 1, "UPDATE deliveries SET status = 'uncertain', attempts = 2");
    faulty(&made, "key-1", LOST);
    assert_eq!(calm(&made), "");
    let call = json!({ "key": "key-1", "channel": "acked", "account": "a", "to": "p", "text": "", "at": 2 });
    journal::append(&made.world.send_calls(), &call.to_string()).unwrap();
    assert!(calm(&made).contains("1 of 1 replies ended badly without a cause"));
}
