#![allow(clippy::unwrap_used)]
use super::*;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

fn at(mono_ms: u64) -> Now {
    Now { mono_ms, wall_s: 1_000_000 + mono_ms / 1000 }
}

/// A machine that is connected at 1,000 ms and wants these subscriptions.
fn connected(consent: bool, subs: &[&str]) -> (Machine, Vec<Action>) {
    let mut machine = Machine::new(consent, 7, at(0));
    assert!(machine.step(at(0), Input::Wanted(subs.iter().map(|id| (*id).to_owned()).collect())).is_empty());
    assert_eq!(machine.step(at(SPREAD_MS), Input::Tick), [Action::Connect]);
    assert_eq!((machine.state(), machine.deadline()), (State::Connecting, None));
    let actions = machine.step(at(1_000), Input::Opened);
    (machine, actions)
}

fn ask(id: &str) -> Action {
    Action::Ask(id.to_owned())
}

fn proven(id: &str, until: u64) -> Action {
    Action::Proven { sub: id.to_owned(), until }
}

fn eose(id: &str) -> Input {
    Input::Eose(id.to_owned())
}

fn event(id: &str, created_at: u64) -> Input {
    Input::Event { sub: id.to_owned(), created_at }
}

fn refused(id: &str, created_at: Option<u64>) -> Input {
    Input::Refused { sub: id.to_owned(), created_at }
}

fn closed(id: &str, message: &str) -> Input {
    Input::Closed { sub: id.to_owned(), message: message.to_owned() }
}

#[test]
fn readiness_is_the_end_of_what_was_stored() {
    let (mut machine, actions) = connected(false, &["a", "b"]);
    assert_eq!((actions, machine.state()), (vec![ask("a"), ask("b")], State::Subscribing));
    assert_eq!(machine.step(at(1_100), eose("a")), [proven("a", 1_000_001)]);
    assert_eq!(machine.state(), State::Subscribing);
    assert_eq!(machine.step(at(1_100), eose("b")), [proven("b", 1_000_001)]);
    assert_eq!((machine.state(), machine.deadline()), (State::Live, Some(1_000 + PROBE_EVERY_MS)));
}

#[test]
fn nothing_is_proven_before_an_older_page_is_empty() {
    let (mut machine, _) = connected(false, &["a"]);
    machine.step(at(1_100), event("a", 500));
    machine.step(at(1_100), event("a", 700));
    let page = |until: u64| Action::AskPage { sub: "a".to_owned(), until };
    let end = Action::Close("a-p".to_owned());
    assert_eq!(machine.step(at(1_200), eose("a")), [page(500)]);
    machine.step(at(1_200), event("a", 900)); // one that is new says nothing about what is old
    machine.step(at(1_200), event("a-p", 500));
    machine.step(at(1_200), event("a-p", 300));
    assert_eq!(machine.step(at(1_300), eose("a-p")), [end.clone(), page(300)]);
    machine.step(at(1_300), event("a-p", 300));
    assert_eq!(machine.step(at(1_400), eose("a-p")), [end.clone(), page(299)], "only what was known");
    assert_eq!(machine.state(), State::Subscribing);
    assert_eq!(machine.step(at(1_500), eose("a-p")), [end, proven("a", 1_000_001)], "by the time it was asked, not by any event's");
    assert_eq!(machine.state(), State::Live);
}

#[test]
fn an_answer_of_which_everything_was_refused_is_not_the_end() {
    let (mut machine, _) = connected(false, &["a"]);
    let page = |until: u64| Action::AskPage { sub: "a".to_owned(), until };
    let end = Action::Close("a-p".to_owned());
    machine.step(at(1_100), refused("a", Some(900)));
    machine.step(at(1_100), refused("a", Some(700)));
    assert_eq!(machine.step(at(1_200), eose("a")), [page(700)]);
    machine.step(at(1_200), refused("a-p", None));
    assert_eq!(machine.step(at(1_300), eose("a-p")), [end.clone(), page(699)], "without a time it leads back one second");
    machine.step(at(1_300), refused("a-p", Some(1)));
    machine.step(at(1_300), event("a-p", 500));
    assert_eq!(machine.step(at(1_400), eose("a-p")), [end.clone(), page(500)], "a forged time leads past nothing that came beside it");
    machine.step(at(1_400), refused("a", Some(3))); // under the id of what is new
    assert_eq!(machine.step(at(1_500), eose("a-p")), [end, proven("a", 1_000_001)]);
    assert_eq!(machine.state(), State::Live);
}

#[test]
fn answers_of_which_everything_was_refused_are_not_followed_for_ever() {
    /// As many as are looked at.
    const PAGES: u32 = 100;
    let (mut machine, _) = connected(false, &["a"]);
    machine.step(at(1_100), refused("a", None));
    machine.step(at(1_100), eose("a"));
    let (mut pages, mut last) = (0, Vec::new());
    while machine.state() != State::Live && pages <= PAGES {
        machine.step(at(1_200), refused("a-p", None));
        last = machine.step(at(1_200), eose("a-p"));
        pages += 1;
    }
    assert_eq!((pages, machine.state()), (PAGES, State::Live));
    assert!(last.iter().any(|action| matches!(action, Action::Hole(_))), "it is told: {last:?}");
}

#[test]
fn a_second_of_which_a_relay_may_have_more_than_it_gives_is_told() {
    /// The least that is taken for all that a relay gives at once.
    const FULL: u32 = 100;
    let holes = |first: u32, page: u32| {
        let (mut machine, _) = connected(false, &["a"]);
        (0..first).for_each(|_| drop(machine.step(at(1_100), event("a", 500))));
        machine.step(at(1_200), eose("a"));
        (0..page).for_each(|_| drop(machine.step(at(1_200), event("a-p", 500))));
        let actions = machine.step(at(1_300), eose("a-p"));
        assert!(actions.contains(&Action::AskPage { sub: "a".to_owned(), until: 499 }), "it goes on: {actions:?}");
        actions.iter().filter(|action| matches!(action, Action::Hole(_))).count()
    };
    assert_eq!((holes(FULL, FULL), holes(3 * FULL, 3 * FULL)), (1, 1));
    assert_eq!((holes(1, 1), holes(FULL - 1, FULL - 1)), (0, 0), "all of it came");
    assert_eq!(holes(2 * FULL, FULL), 0, "it gives more at once where it has more");
}

#[test]
fn a_page_that_is_refused_proves_nothing_and_all_is_asked_for_again() {
    let (mut machine, _) = connected(false, &["a"]);
    machine.step(at(1_100), event("a", 500));
    machine.step(at(1_100), eose("a"));
    assert_eq!(machine.step(at(1_200), closed("a-p", "error: no")), [Action::Close("a".to_owned())]);
    assert_eq!(machine.state(), State::Deaf);
    assert_eq!(machine.deaf(), [("a".to_owned(), "error: no".to_owned())]);
    assert_eq!(machine.step(at(machine.deadline().unwrap()), Input::Tick), [ask("a")]);
}

#[test]
fn a_refusal_is_a_state_that_is_left_by_asking_again() {
    let (mut machine, _) = connected(false, &["a", "b"]);
    machine.step(at(1_100), eose("a"));
    machine.step(at(1_100), eose("b"));
    assert!(machine.step(at(2_000), closed("a", "")).is_empty());
    assert_eq!((machine.state(), machine.deaf().len()), (State::Deaf, 1));
    let mut now = 2_000;
    for pause in [2_000, 4_000, 8_000] {
        now += pause;
        assert_eq!(machine.step(at(now), Input::Tick), [ask("a")], "after {pause}");
        machine.step(at(now), closed("a", "rate-limited: later"));
    }
    now += 16_000;
    machine.step(at(now), Input::Tick);
    machine.step(at(now), eose("a"));
    assert_eq!(machine.state(), State::Live);
}

#[test]
fn an_end_that_never_comes_is_a_refusal_too() {
    let (mut machine, _) = connected(false, &["a"]);
    let late = machine.deadline().unwrap();
    assert_eq!(machine.step(at(late), Input::Tick), [Action::Close("a".to_owned())]);
    assert_eq!(machine.state(), State::Deaf);
}

#[test]
fn with_consent_nothing_is_asked_before_it_is_settled_who_we_are() {
    let (mut machine, actions) = connected(true, &["a"]);
    assert_eq!((actions, machine.state(), machine.may_publish()), (Vec::new(), State::Authenticating, false));
    let proof = |address: Address| Action::Authenticate { challenge: "c".to_owned(), address };
    assert_eq!(machine.step(at(1_100), Input::Challenge("c".to_owned())), [proof(Address::AsConfigured)]);
    machine.step(at(1_100), Input::AuthSent("id".to_owned()));
    assert!(machine.step(at(1_150), Input::Ok { id: "other".to_owned(), accepted: true }).is_empty());
    let refused = machine.step(at(1_200), Input::Ok { id: "id".to_owned(), accepted: false });
    assert_eq!(refused, [proof(Address::OtherSlash)]);
    machine.step(at(1_200), Input::AuthSent("id2".to_owned()));
    assert_eq!(machine.step(at(1_300), Input::Ok { id: "id2".to_owned(), accepted: true }), [Action::Settled, ask("a")]);
    assert!(machine.may_publish());
}

#[test]
fn a_relay_that_asks_nobody_or_gives_no_answer_is_asked_all_the_same() {
    let (mut machine, _) = connected(true, &["a"]);
    assert_eq!(machine.step(at(1_000 + CHALLENGE_WAIT_MS), Input::Tick), [Action::Settled, ask("a")]);
    let (mut machine, _) = connected(true, &["a"]);
    machine.step(at(1_100), Input::Challenge("c".to_owned()));
    assert_eq!(machine.step(at(1_100 + AUTH_ANSWER_MS), Input::Tick), [Action::Settled, ask("a")]);
}

#[test]
fn without_consent_nobody_learns_who_we_are() {
    let (mut machine, _) = connected(false, &["a"]);
    assert!(machine.step(at(1_100), Input::Challenge("c".to_owned())).is_empty());
    machine.step(at(1_200), closed("a", "auth-required: who are you"));
    assert_eq!(machine.state(), State::Deaf);
}

#[test]
fn what_wants_a_proof_is_asked_for_right_after_it_but_not_for_ever() {
    let (mut machine, _) = connected(true, &["a"]);
    machine.step(at(3_000), Input::Tick);
    machine.step(at(3_100), Input::Challenge("c".to_owned()));
    let mut asked = 0;
    for n in 0..10 {
        machine.step(at(3_200), Input::AuthSent(format!("id{n}")));
        let actions = machine.step(at(3_200), Input::Ok { id: format!("id{n}"), accepted: true });
        asked += usize::from(actions.contains(&ask("a")));
        machine.step(at(3_200), closed("a", "auth-required: no"));
    }
    assert!((1..=3).contains(&asked), "{asked}");
    assert_eq!(machine.state(), State::Deaf);
}

#[test]
fn a_relay_that_never_says_which_address_it_knows_is_told_both() {
    let (mut machine, _) = connected(true, &["a"]);
    machine.step(at(1_100), Input::Challenge("c".to_owned()));
    machine.step(at(1_100 + AUTH_ANSWER_MS), Input::Tick);
    let actions = machine.step(at(7_000), closed("a", "auth-required: no"));
    assert_eq!(actions, [Action::Authenticate { challenge: "c".to_owned(), address: Address::OtherSlash }]);
    let actions = machine.step(at(7_000 + AUTH_ANSWER_MS), Input::Tick);
    assert_eq!(actions, [Action::Settled, ask("a")]);
}

#[test]
fn what_comes_before_the_end_of_a_page_was_stored_and_all_else_is_new() {
    let (mut machine, _) = connected(false, &["a", "b"]);
    let of = |machine: &Machine| (machine.is_gathering(), machine.is_stored("a"), machine.is_stored("a-p"));
    assert_eq!(of(&machine), (true, true, false));
    machine.step(at(1_100), event("a", 500));
    machine.step(at(1_100), eose("a"));
    assert_eq!(of(&machine), (true, false, true), "what is new comes meanwhile");
    machine.step(at(1_200), eose("a-p"));
    assert_eq!(of(&machine), (true, false, false), "the other one is not told whole yet");
    machine.step(at(1_300), closed("b", "error: no"));
    assert_eq!(of(&machine), (false, false, false), "nothing more is waited for");
    machine.step(at(4_000), Input::Tick);
    assert!(machine.is_gathering() && machine.is_stored("b") && !machine.is_stored("x"));
    machine.step(at(4_100), Input::Lost("gone".to_owned()));
    assert_eq!(of(&machine), (false, false, false));
}

#[test]
fn an_end_that_never_comes_is_not_waited_for() {
    let (mut machine, _) = connected(false, &["a"]);
    assert!(machine.is_gathering());
    machine.step(at(machine.deadline().unwrap()), Input::Tick);
    assert!(!machine.is_gathering());
}

#[test]
fn who_told_no_end_once_holds_up_nobody_again() {
    let (mut machine, _) = connected(false, &["a", "b"]);
    machine.step(at(1_100), eose("b"));
    let late = machine.deadline().unwrap();
    machine.step(at(late), Input::Tick);
    let again = machine.deadline().unwrap();
    assert_eq!(machine.step(at(again), Input::Tick), [ask("a")]);
    assert!(!machine.is_gathering() && machine.is_stored("a"), "what comes of it goes on at once");
    machine.step(at(again), event("a", 500));
    machine.step(at(again), eose("a"));
    assert!(!machine.is_gathering());
    machine.step(at(again), eose("a-p"));
    machine.step(at(again + 1), Input::Refresh);
    assert!(machine.is_gathering(), "the end came: it is believed again");
}

#[test]
fn who_asks_again_and_again_who_we_are_is_left() {
    let (mut machine, _) = connected(true, &["a"]);
    let ask_who = |machine: &mut Machine, ms: u64| machine.step(at(ms), Input::Challenge("c".to_owned()));
    for _ in 0..CHALLENGES_MAX {
        assert!(matches!(ask_who(&mut machine, 1_100).as_slice(), [Action::Authenticate { .. }]));
    }
    assert!(matches!(ask_who(&mut machine, 1_100).as_slice(), [Action::Disconnect(_)]));
    assert_eq!(machine.state(), State::Backoff);
    // One that asks now and then, over a long time, is as good as any.
    let (mut machine, _) = connected(true, &["a"]);
    let mut now = machine.deadline().unwrap();
    machine.step(at(now), Input::Tick);
    machine.step(at(now), eose("a"));
    for _ in 0..3 * CHALLENGES_MAX {
        now = machine.deadline().unwrap();
        machine.step(at(now), Input::Tick);
        machine.step(at(now), eose(PROBE_ID));
        assert!(matches!(ask_who(&mut machine, now).as_slice(), [Action::Authenticate { .. }]));
        now += AUTH_ANSWER_MS;
        machine.step(at(now), Input::Tick);
    }
    assert_eq!(machine.state(), State::Live);
}

#[test]
fn silence_is_not_health() {
    let (mut machine, _) = connected(false, &["a"]);
    machine.step(at(1_100), eose("a"));
    let probe_at = 1_000 + PROBE_EVERY_MS;
    assert_eq!(machine.step(at(probe_at), Input::Tick), [Action::Probe]);
    let answer = machine.step(at(probe_at + 50), eose(PROBE_ID));
    assert_eq!(answer, [Action::Close(PROBE_ID.to_owned()), proven("a", at(probe_at).wall_s)]);
    let next = machine.deadline().unwrap();
    assert_eq!(machine.step(at(next), Input::Tick), [Action::Probe]);
    let lost = machine.step(at(next + PROBE_ANSWER_MS), Input::Tick);
    assert!(matches!(lost.as_slice(), [Action::Disconnect(_)]), "{lost:?}");
    assert_eq!(machine.state(), State::Backoff);
}

#[test]
fn a_probe_proves_nothing_of_what_is_not_live() {
    let (mut machine, _) = connected(false, &["a", "b"]);
    machine.step(at(1_100), eose("a"));
    machine.step(at(1_100), eose("b"));
    let probe_at = 1_000 + PROBE_EVERY_MS;
    machine.step(at(probe_at), Input::Tick);
    machine.step(at(probe_at + 10), closed("b", "error: no"));
    assert_eq!(machine.step(at(probe_at + 50), eose(PROBE_ID))[1..], [proven("a", at(probe_at).wall_s)]);
}

#[test]
fn a_lost_take_in_has_everything_asked_for_again() {
    let (mut machine, _) = connected(false, &["a"]);
    machine.step(at(1_100), eose("a"));
    assert_eq!(machine.step(at(2_000), Input::Refresh), [Action::Close("a".to_owned()), ask("a")]);
}

#[test]
fn what_is_wanted_no_more_is_closed_and_what_stays_is_left_alone() {
    let (mut machine, _) = connected(false, &["a", "b"]);
    machine.step(at(1_100), eose("a"));
    let actions = machine.step(at(2_000), Input::Wanted(vec!["a".to_owned(), "c".to_owned()]));
    assert_eq!(actions, [Action::Close("b".to_owned()), ask("c")]);
}

#[test]
fn pauses_grow_and_a_connection_that_lasted_has_them_begin_anew() {
    let (mut machine, _) = connected(false, &[]);
    let mut now = 1_000;
    for full in [1_000, 2_000, 4_000, 8_000, 16_000, 32_000, 60_000, 60_000] {
        machine.step(at(now), Input::Lost("gone".to_owned()));
        let pause = machine.deadline().unwrap() - now;
        assert!((full / 2..=full).contains(&pause), "{pause} of {full}");
        now += pause;
        assert_eq!(machine.step(at(now), Input::Tick), [Action::Connect]);
        machine.step(at(now), Input::Opened);
    }
    now += BACKOFF_RESET_MS;
    machine.step(at(now), Input::Lost("gone".to_owned()));
    assert!(machine.deadline().unwrap() - now <= BACKOFF_BASE_MS && !machine.is_punishing());
    let (mut machine, _) = connected(false, &[]);
    machine.step(at(2_000), Input::Abused("forged".to_owned()));
    assert_eq!((machine.deadline(), machine.is_punishing()), (Some(2_000 + PUNISHMENT_MS), true));
}

/// Which inputs come, with the time that passes before each.
fn inputs() -> impl Strategy<Value = Vec<(u64, Input)>> {
    let id = prop_oneof![Just("a"), Just("b"), Just("c"), Just("a-p"), Just("b-p"), Just(PROBE_ID), Just("x")].prop_map(str::to_owned);
    let word = prop_oneof![Just("auth-required: who"), Just("error: no"), Just("")].prop_map(str::to_owned);
    let wanted = prop::sample::subsequence(vec!["a".to_owned(), "b".to_owned(), "c".to_owned()], 0..=3);
    let input = prop_oneof![
        4 => Just(Input::Opened),
        2 => Just(Input::Lost("gone".to_owned())),
        1 => Just(Input::Abused("forged".to_owned())),
        2 => Just(Input::Challenge("c".to_owned())),
        2 => Just(Input::AuthSent("id".to_owned())),
        2 => any::<bool>().prop_map(|accepted| Input::Ok { id: "id".to_owned(), accepted }),
        4 => (id.clone(), 0_u64..2_000_000).prop_map(|(sub, created_at)| Input::Event { sub, created_at }),
        2 => (id.clone(), prop::option::of(0_u64..2_000_000)).prop_map(|(sub, created_at)| Input::Refused { sub, created_at }),
        6 => id.clone().prop_map(Input::Eose),
        3 => (id, word).prop_map(|(sub, message)| Input::Closed { sub, message }),
        1 => Just(Input::Refresh),
        1 => wanted.prop_map(Input::Wanted),
        4 => Just(Input::Tick),
    ];
    prop::collection::vec((prop_oneof![Just(0_u64), 0..500_u64, 0..400_000_u64], input), 0..120)
}

/// What the wire must look like, whatever happens.
#[derive(Default)]
struct Wire {
    is_up: bool,
    is_connecting: bool,
    open: BTreeSet<String>,
    proven: BTreeMap<String, u64>,
}

impl Wire {
    fn check(&mut self, now: Now, actions: &[Action]) {
        for action in actions {
            match action {
                Action::Connect => {
                    assert!(!self.is_up && !self.is_connecting, "one connection at a time");
                    self.is_connecting = true;
                }
                Action::Disconnect(_) => {
                    assert!(self.is_up);
                    self.is_up = false;
                    self.open.clear();
                }
                Action::Ask(sub) => self.opens(sub.clone()),
                Action::AskPage { sub, .. } => {
                    assert!(self.open.contains(sub), "what is new is heard while pages come");
                    self.opens(page_id(sub));
                }
                Action::Probe => self.opens(PROBE_ID.to_owned()),
                Action::Close(id) => assert!(self.open.remove(id), "{id} is not open"),
                Action::Proven { sub, until } => {
                    assert!(self.open.contains(sub) && *until <= now.wall_s);
                    let known = self.proven.entry(sub.clone()).or_default();
                    *known = (*known).max(*until);
                }
                Action::Authenticate { .. } | Action::Settled | Action::Note(_) | Action::Hole(_) => assert!(self.is_up),
            }
        }
    }

    fn opens(&mut self, id: String) {
        assert!(self.is_up && self.open.insert(id.clone()), "{id} is open already");
    }
}

/// One input, if it can happen: nothing comes out of a connection that isn't there. False when it can't.
fn feed(machine: &mut Machine, wire: &mut Wire, now: Now, input: Input) -> bool {
    let can_be = match &input {
        Input::Opened => wire.is_connecting,
        Input::Lost(_) => wire.is_connecting || wire.is_up,
        Input::Wanted(_) | Input::Refresh | Input::Tick => true,
        Input::Abused(_) | Input::Challenge(_) | Input::AuthSent(_) | Input::Ok { .. } => wire.is_up,
        Input::Event { sub, .. } | Input::Refused { sub, .. } | Input::Eose(sub) => wire.is_up && (sub == "x" || wire.open.contains(sub)),
        Input::Closed { sub, .. } => wire.is_up && (sub == "x" || wire.open.contains(sub)),
    };
    if !can_be {
        return false;
    }
    match &input {
        Input::Opened => (wire.is_up, wire.is_connecting) = (true, false),
        Input::Lost(_) => wire.is_connecting = false,
        Input::Closed { sub, .. } => {
            wire.open.remove(sub);
        }
        Input::Wanted(_)
        | Input::Refresh
        | Input::Tick
        | Input::Abused(_)
        | Input::Challenge(_)
        | Input::AuthSent(_)
        | Input::Ok { .. }
        | Input::Event { .. }
        | Input::Refused { .. }
        | Input::Eose(_) => {}
    }
    let actions = machine.step(now, input);
    wire.check(now, &actions);
    true
}

proptest! {
    #[test]
    fn it_never_asks_twice_and_always_comes_to_hear(consent in any::<bool>(), seed in any::<u64>(), script in inputs()) {
        let mut machine = Machine::new(consent, seed, at(0));
        let mut wire = Wire::default();
        let mut now = 0;
        for (passed, input) in script {
            now += passed;
            if feed(&mut machine, &mut wire, at(now), input) && wire.is_up {
                prop_assert!(machine.deadline().is_some_and(|deadline| deadline > now), "somebody has to look again");
            }
        }
        // From here on with a relay that does what it is asked.
        feed(&mut machine, &mut wire, at(now), Input::Wanted(vec!["a".to_owned(), "b".to_owned()]));
        for _ in 0..60 {
            if machine.state() == State::Live {
                break;
            }
            if wire.is_connecting {
                feed(&mut machine, &mut wire, at(now), Input::Opened);
            }
            for id in wire.open.clone() {
                feed(&mut machine, &mut wire, at(now), Input::Eose(id));
            }
            if machine.state() != State::Live {
                now = machine.deadline().map_or(now, |deadline| deadline.max(now));
                feed(&mut machine, &mut wire, at(now), Input::Tick);
            }
        }
        prop_assert_eq!(machine.state(), State::Live);
        prop_assert!(wire.open.contains("a") && wire.open.contains("b"));
    }
}

#[test]
fn the_first_connection_waits_for_its_moment_and_backs_off_only_once_it_failed() {
    let mut machine = Machine::new(false, 1, at(0));
    assert_eq!(machine.state(), State::Connecting);
    let due = machine.deadline().unwrap();
    assert_eq!(machine.step(at(due), Input::Tick), [Action::Connect]);
    machine.step(at(due), Input::Lost("refused".to_owned()));
    assert_eq!(machine.state(), State::Backoff);
}
