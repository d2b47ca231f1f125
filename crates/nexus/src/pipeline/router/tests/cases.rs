//! Cases that the property found once, and the modes one by one.
#![allow(clippy::unwrap_used)]

use super::*;

fn run_through(script: impl IntoIterator<Item = Do>) {
    let mut world = World::keeping(1);
    script.into_iter().for_each(|what| world.step(what));
    world.drain();
}

#[test]
fn what_is_collected_waits_for_quiet_and_runs_together() {
    let mut world = World::keeping(9);
    for conversation in 0..3 {
        world.step(Do::Arrive(conversation));
        world.step(Do::Prepare(0, moded(0, 2, QueueMode::Collect)));
        world.step(Do::Pass(lane::COLLECT_QUIET_MS - 1));
    }
    assert_eq!(world.count(|at| at.running().is_some()), 0);
    world.step(Do::Pass(1));
    assert_eq!(world.count(|at| matches!(at, At::Joined(3))), 2, "{:?}", world.requests);
    assert!(world.requests[&3].1.running().is_some());
    world.drain();
}

#[test]
fn a_conversation_that_never_rests_is_answered_all_the_same() {
    let mut world = World::keeping(9);
    for _ in 0..=lane::COLLECT_WAIT_MS_MAX / 250 {
        world.step(Do::Arrive(0));
        world.step(Do::Prepare(0, moded(0, 2, QueueMode::Collect)));
        world.step(Do::Pass(250));
    }
    assert_eq!(world.count(|at| at.running().is_some()), 1);
    world.drain();
}

#[test]
fn what_is_prepared_again_has_waited_for_quiet_already() {
    let mut sessions = Sessions::default();
    let push = |sessions: &mut Sessions, now_ms| {
        drop(sessions.push(1, prepared(1, moded(0, 2, QueueMode::Collect).unwrap()), 0, now_ms));
    };
    push(&mut sessions, 0);
    assert_eq!(sessions.offer_due(LONG_MS), [agent(2)]);
    assert!(sessions.start_next(&agent(2)).unwrap().prepared.is_none(), "there was no room for its context");
    push(&mut sessions, LONG_MS);
    assert!(sessions.start_next(&agent(2)).is_some_and(|turn| turn.prepared.is_some()), "it waits once more");
}

#[test]
fn no_cap_drops_or_counts_what_a_stop_interrupted() {
    for (which, expected) in [(QueueDrop::Old, 3_i64), (QueueDrop::New, 4)] {
        let mut sessions = Sessions::default();
        let mut push = |seq: i64, is_revived: bool| -> Vec<i64> {
            let capped = Found { cap: Some((1, which)), ..found(0, 0).unwrap() };
            let pushed = sessions.push(seq, Prepared { is_revived, ..prepared(seq, capped) }, 9, 0);
            pushed.dropped.into_iter().map(|(seq, _)| seq).collect()
        };
        assert!(push(1, true).is_empty() && push(2, true).is_empty() && push(3, false).is_empty(), "{which:?}");
        assert_eq!(push(4, false), [expected]);
        assert!(push(5, true).is_empty(), "{which:?}");
    }
}

#[test]
fn only_the_newest_of_messages_that_interrupt_runs_to_its_end() {
    let mut sessions = Sessions::default();
    let push = |sessions: &mut Sessions, seq| sessions.push(seq, prepared(seq, moded(0, 2, QueueMode::Interrupt).unwrap()), 9, 0);
    let begun = |sessions: &mut Sessions| sessions.start_next(&agent(2)).map(|turn| (turn.seq, turn.is_aborted));
    assert_eq!(push(&mut sessions, 1).aborts, None);
    assert_eq!(begun(&mut sessions), Some((1, false)));
    assert_eq!(push(&mut sessions, 2).aborts, Some(1));
    assert_eq!(push(&mut sessions, 3).aborts, Some(1));
    sessions.released(&session(0), &agent(2), false, 0);
    assert_eq!(begun(&mut sessions), Some((2, true)));
    sessions.released(&session(0), &agent(2), false, 0);
    assert_eq!(begun(&mut sessions), Some((3, false)));
}

#[test]
fn people_and_the_timer_take_no_slot_of_each_other() {
    let mut sessions = Sessions::default();
    let of = |session: usize, system: bool| Found { system, ..found(session, 0).unwrap() };
    let push = |sessions: &mut Sessions, seq, found| drop(sessions.push(seq, prepared(seq, found), 9, 0));
    let begun = |sessions: &mut Sessions| sessions.start_next(&agent(0)).map(|turn| turn.seq);
    push(&mut sessions, 1, of(0, true));
    push(&mut sessions, 2, of(1, true));
    push(&mut sessions, 3, of(2, false));
    push(&mut sessions, 4, of(3, false));
    assert_eq!((begun(&mut sessions), begun(&mut sessions), begun(&mut sessions)), (Some(1), Some(3), None));
    sessions.released(&session(2), &agent(0), false, 0);
    assert_eq!((begun(&mut sessions), begun(&mut sessions)), (Some(4), None), "the timer's slot is still taken");
    sessions.released(&session(0), &agent(0), true, 0);
    assert_eq!((begun(&mut sessions), begun(&mut sessions), sessions.running()), (Some(2), None, 2));
}

#[test]
fn a_message_is_not_collected_with_one_that_may_do_more() {
    let mut sessions = Sessions::default();
    let more = |seq| {
        let mut prepared = prepared(seq, moded(0, 2, QueueMode::Collect).unwrap());
        prepared.request.access.as_mut().unwrap().permissions.tools.allow.push("shell".to_owned());
        prepared
    };
    sessions.push(1, prepared(1, moded(0, 2, QueueMode::Collect).unwrap()), 9, 0);
    sessions.push(2, more(2), 9, 0);
    sessions.push(3, more(3), 9, 0);
    assert_eq!(sessions.offer_due(LONG_MS), [agent(2)]);
    let groups = |sessions: &mut Sessions| {
        let turn = sessions.start_next(&agent(2)).unwrap();
        let group: Vec<i64> = turn.prepared.unwrap().requests().map(|request| request.event_seq).collect();
        sessions.released(&session(0), &agent(2), false, LONG_MS);
        group
    };
    assert_eq!(groups(&mut sessions), [1]);
    assert_eq!(groups(&mut sessions), [2, 3]);
}

#[test]
fn a_context_that_comes_back_for_another_agent_has_no_room_of_its_own() {
    let mut sessions = Sessions::default();
    let push = |sessions: &mut Sessions, seq, session, agent| {
        drop(sessions.push(seq, prepared(seq, found(session, agent).unwrap()), 1, 0));
    };
    push(&mut sessions, 1, 0, 0);
    push(&mut sessions, 2, 1, 0);
    push(&mut sessions, 3, 2, 0);
    let started = |sessions: &mut Sessions| sessions.start_next(&agent(0)).map(|turn| (turn.seq, turn.prepared.is_some()));
    assert_eq!(started(&mut sessions), Some((1, true)));
    push(&mut sessions, 4, 3, 0); // takes the room
    sessions.released(&session(0), &agent(0), false, 0);
    assert_eq!(started(&mut sessions), Some((2, false)));
    push(&mut sessions, 2, 1, 1);
    assert_eq!(started(&mut sessions), Some((3, false)));
    let turn = sessions.start_next(&agent(1)).unwrap();
    assert_eq!((turn.seq, turn.prepared.is_some()), (2, false), "kept beyond the limit");
}

#[test]
fn a_session_of_two_agents_takes_one_turn_at_a_time() {
    // Agent 0 is busy with session 1; request 3 of session 0 is shown to it, then 2 to agent 1.
    run_through([
        Do::Arrive(0),
        Do::Prepare(0, found(1, 0)),
        Do::Arrive(1),
        Do::Arrive(2),
        Do::Prepare(1, found(0, 0)),
        Do::Prepare(0, found(0, 1)),
        Do::Finish(0),
    ]);
}

#[test]
fn a_request_that_is_prepared_again_for_another_session_frees_the_one_before() {
    // Agent 0 has one slot: 2 is kept, 3 is not; when its turn comes its session is another.
    run_through([
        Do::Arrive(0),
        Do::Prepare(0, found(0, 0)),
        Do::Arrive(1),
        Do::Prepare(0, found(1, 0)),
        Do::Arrive(2),
        Do::Prepare(0, found(2, 0)),
        Do::Arrive(3),
        Do::Prepare(0, found(2, 0)),
        Do::Finish(0),
        Do::Finish(0),
        Do::Prepare(0, found(0, 1)),
    ]);
}

#[test]
fn only_messages_of_one_place_share_a_turn() {
    let message = |seq| prepared(seq, found(0, 0).unwrap());
    assert!(message(1).may_share(&message(2)));
    let mut elsewhere = message(2);
    elsewhere.request.event.peer_id = "somebody else".to_owned();
    assert!(!elsewhere.may_share(&message(1)));
    let mut by_another = message(2);
    by_another.adapter = "another".to_owned();
    assert!(!by_another.may_share(&message(1)));
    // What was told to end before a crash would have its agent asked, with what came later.
    let to_end = |seq| Prepared { is_to_end: true, ..message(seq) };
    assert!(to_end(1).may_share(&to_end(2)) && !message(2).may_share(&to_end(1)));
}

/// A message that steers, for an agent that takes input.
fn steering(seq: i64) -> Prepared {
    let mut prepared = prepared(seq, moded(0, 2, QueueMode::Steer).unwrap());
    prepared.agent = Arc::new(Agent { name: agent(2), max_concurrent: SLOTS[2], takes_input: true, ..crate::samples::echo() });
    prepared
}

fn begun(sessions: &mut Sessions) -> Option<(i64, bool, Vec<i64>)> {
    let turn = sessions.start_next(&agent(2))?;
    Some((turn.seq, turn.is_aborted, turn.given.iter().map(|given| given.request.event_seq).collect()))
}

/// What a message does to the turn under way: whose it is to be told to, and whose it ends.
fn comes(sessions: &mut Sessions, prepared: Prepared) -> (Option<i64>, Option<i64>) {
    let seq = prepared.request.event_seq;
    let pushed = sessions.push(seq, prepared, 9, 0);
    assert!(pushed.lets_go && pushed.dropped.is_empty());
    (pushed.steers.map(|(running, _)| running), pushed.aborts)
}

#[test]
fn what_steers_is_for_the_turn_under_way_and_waits_as_any_other_if_that_did_not_take_it_in() {
    let mut sessions = Sessions::default();
    assert_eq!(comes(&mut sessions, steering(1)), (None, None));
    assert_eq!(begun(&mut sessions), Some((1, false, vec![])));
    assert_eq!(comes(&mut sessions, steering(2)), (Some(1), None));
    assert_eq!(comes(&mut sessions, steering(3)), (Some(1), None));
    for seq in [3, 2] {
        sessions.restore(Box::new(steering(seq)), 9, 0);
    }
    assert_eq!(comes(&mut sessions, steering(4)), (None, None), "it would overtake them");
    sessions.released(&session(0), &agent(2), false, 0);
    assert_eq!(begun(&mut sessions), Some((2, false, vec![])), "3 was given to a turn once");
    sessions.released(&session(0), &agent(2), false, 0);
    assert_eq!(begun(&mut sessions), Some((3, false, vec![4])), "4 never was");
    sessions.restore(Box::new(steering(4)), 9, 0);
    sessions.released(&session(0), &agent(2), false, 0);
    assert_eq!(begun(&mut sessions), Some((4, false, vec![])));
    sessions.released(&session(0), &agent(2), false, 0);
    assert_eq!((begun(&mut sessions), sessions.running()), (None, 0));
}

#[test]
fn what_interrupts_ends_a_turn_that_takes_input_too() {
    let mut sessions = Sessions::default();
    comes(&mut sessions, steering(1));
    assert_eq!(begun(&mut sessions), Some((1, false, vec![])));
    assert_eq!(comes(&mut sessions, prepared(2, moded(0, 2, QueueMode::Interrupt).unwrap())), (None, Some(1)));
}

#[test]
fn what_a_stop_interrupted_ends_no_other_turn_and_is_told_to_none() {
    let revived = |seq| Prepared { is_revived: true, ..steering(seq) };
    let mut sessions = Sessions::default();
    comes(&mut sessions, revived(1));
    assert_eq!(begun(&mut sessions), Some((1, false, vec![])));
    assert_eq!(comes(&mut sessions, revived(2)), (None, None));
    sessions.released(&session(0), &agent(2), false, 0);
    assert_eq!(begun(&mut sessions), Some((2, false, vec![])));
}

#[test]
fn a_context_that_a_turn_gave_back_is_kept_only_while_there_is_room() {
    let mut sessions = Sessions::default();
    comes(&mut sessions, steering(1));
    assert_eq!(begun(&mut sessions), Some((1, false, vec![])));
    assert_eq!(comes(&mut sessions, steering(2)), (Some(1), None));
    sessions.restore(Box::new(steering(2)), 0, 0);
    sessions.released(&session(0), &agent(2), false, 0);
    let turn = sessions.start_next(&agent(2)).unwrap();
    assert_eq!((turn.seq, turn.prepared.is_some()), (2, false), "it is prepared again");
}

/// A request of a project whose event has this kind.
fn of_project(seq: i64, kind: u16) -> Prepared {
    let mut prepared = prepared(seq, moded(0, 2, QueueMode::Followup).unwrap());
    prepared.request.adapter = crate::nostr::ADAPTER.to_owned();
    let project = format!("31933:{}:demo", "a".repeat(64));
    prepared.request.event.metadata = json!({ "project": project, "nostr": { "kind": kind } });
    prepared
}

#[test]
fn a_session_that_rests_goes_on_once_it_is_woken_whatever_was_under_way() {
    let mut sessions = Sessions::default();
    sessions.push(1, of_project(1, 1), 9, 0);
    assert_eq!(begun(&mut sessions), Some((1, false, vec![])));
    sessions.push(2, of_project(2, 1), 9, 0);
    sessions.rest(session(0), 0);
    sessions.released(&session(0), &agent(2), false, 0);
    assert_eq!(begun(&mut sessions), None);
    let mut sessions = Sessions::resting_as(sessions);
    sessions.push(2, of_project(2, 1), 9, 0);
    assert_eq!(begun(&mut sessions), None, "it rests after a panic of the router too");
    assert_eq!(sessions.wake(&session(0), 0), Some(agent(2)));
    assert_eq!(begun(&mut sessions), Some((2, false, vec![])));
}

#[test]
fn what_was_shown_is_taken_back_by_a_rest_and_what_only_ends_something_may_go() {
    let mut sessions = Sessions::default();
    sessions.push(1, of_project(1, 1), 9, 0);
    sessions.rest(session(0), 0);
    assert_eq!(begun(&mut sessions), None, "it was about to begin");
    let mut sessions = Sessions::default();
    sessions.rest(session(0), 0);
    sessions.push(1, of_project(1, crate::project::STOP_KIND), 9, 0);
    assert_eq!(begun(&mut sessions), Some((1, false, vec![])));
}
