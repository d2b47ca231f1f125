//! Tests of the machine: single lives, and any order of inputs.

use super::*;
use proptest::prelude::*;

fn policy() -> RestartPolicy {
    RestartPolicy {
        max_restarts: 5,
        backoff_base_ms: 1000,
        backoff_multiplier: 2.0,
        backoff_max_ms: 300_000,
        reset_after_ms: 600_000,
        errored_retry_ms: 300_000,
        stop_grace_ms: 5000,
        on_demand: None,
    }
}

#[test]
fn crashes_five_times_then_errored_then_slow_retries() {
    let mut life = Lifecycle::new(policy());
    assert_eq!(life.step(0, Input::Start), Some(Action::Spawn));
    let mut now = 0;
    let mut waits = Vec::new();
    for _ in 0..5 {
        life.step(now, Input::Spawned);
        life.step(now, Input::Exited { code: Some(1) });
        let until = life.deadline_ms().expect("a restart is planned");
        waits.push(until - now);
        assert_eq!(life.step(until - 1, Input::Tick), None);
        now = until;
        assert_eq!(life.step(now, Input::Tick), Some(Action::Spawn));
    }
    assert_eq!(waits, [1000, 2000, 4000, 8000, 16000]);
    life.step(now, Input::Spawned);
    life.step(now, Input::Exited { code: None });
    assert_eq!(life.state(), State::Errored { retry_at_ms: Some(now + 300_000) });
    assert_eq!(life.step(now + 300_000, Input::Tick), Some(Action::Spawn));
    life.step(now + 300_000, Input::SpawnFailed { lasting: false });
    assert!(matches!(life.state(), State::Errored { .. }), "a slow retry that fails stays errored");
    assert_eq!(life.restarts_total(), 6);
}

#[test]
fn ten_healthy_minutes_clear_the_count() {
    let mut life = Lifecycle::new(policy());
    life.step(0, Input::Start);
    life.step(0, Input::SpawnFailed { lasting: false });
    life.step(1000, Input::Tick);
    life.step(1000, Input::Spawned);
    assert_eq!(life.restarts_in_row(), 1);
    assert_eq!(life.deadline_ms(), Some(601_000));
    life.step(601_000, Input::Tick);
    assert_eq!(life.restarts_in_row(), 0);
    life.step(700_000, Input::Exited { code: Some(0) });
    assert_eq!(life.state(), State::Backoff { until_ms: 701_000 });
}

#[test]
fn a_config_error_is_errored_at_once_and_a_manual_start_heals_it() {
    let mut life = Lifecycle::new(policy());
    life.step(0, Input::Start);
    life.step(0, Input::Spawned);
    life.step(1, Input::Exited { code: Some(EXIT_CONFIG) });
    assert!(matches!(life.state(), State::Errored { .. }));
    assert_eq!(life.step(2, Input::Start), Some(Action::Spawn));
    assert_eq!(life.restarts_total(), 0, "manual starts never count");
}

#[test]
fn stop_is_term_then_kill_and_restart_waits_for_the_exit() {
    let mut life = Lifecycle::new(policy());
    life.step(0, Input::Start);
    life.step(0, Input::Spawned);
    assert_eq!(life.step(10, Input::Stop), Some(Action::Term));
    assert_eq!(life.step(5009, Input::Tick), None);
    assert_eq!(life.step(5010, Input::Tick), Some(Action::Kill));
    assert_eq!(life.step(5011, Input::Start), None, "not before the old one is gone");
    assert_eq!(life.step(5012, Input::Exited { code: None }), Some(Action::Spawn));
}

#[test]
fn a_stop_during_spawn_takes_effect_when_it_is_answered() {
    let mut life = Lifecycle::new(policy());
    life.step(0, Input::Start);
    assert_eq!(life.step(0, Input::Stop), None);
    assert_eq!(life.step(1, Input::Spawned), Some(Action::Term));
}

#[test]
fn backoff_never_overflows() {
    assert_eq!(policy().backoff_ms(u32::MAX), 300_000);
    let flat = RestartPolicy { backoff_base_ms: 0, ..policy() };
    assert_eq!(flat.backoff_ms(3), 0);
}

fn on_demand() -> RestartPolicy {
    let rules = OnDemand { crashes_max: 5, window_ms: 600_000 };
    RestartPolicy { backoff_max_ms: 60_000, reset_after_ms: 60_000, errored_retry_ms: 0, on_demand: Some(rules), ..policy() }
}

#[test]
fn on_demand_a_process_rests_after_a_good_end_and_wakes() {
    let mut life = Lifecycle::new(on_demand());
    assert_eq!(life.step(0, Input::Wake), Some(Action::Spawn));
    life.step(0, Input::Spawned);
    assert_eq!(life.step(5, Input::Exited { code: Some(0) }), None);
    assert_eq!((life.state(), life.deadline_ms()), (State::Stopped, None));
    assert_eq!(life.step(6, Input::Wake), Some(Action::Spawn));
    assert_eq!(life.step(6, Input::Wake), None, "it is being started already");
    assert_eq!(life.restarts_total(), 0);
}

#[test]
fn on_demand_five_crashes_within_the_window_end_in_errored_and_no_event_wakes_it() {
    let mut life = Lifecycle::new(on_demand()).seeded(7);
    life.step(0, Input::Wake);
    let mut now = 0;
    for _ in 0..4 {
        life.step(now, Input::Spawned);
        life.step(now, Input::Exited { code: None });
        let State::Backoff { until_ms } = life.state() else { panic!("{:?}", life.state()) };
        assert_eq!(life.step(now, Input::Wake), None, "a delay isn't cut short");
        now = until_ms;
        assert_eq!(life.step(now, Input::Tick), Some(Action::Spawn));
    }
    life.step(now, Input::Spawned);
    life.step(now, Input::Exited { code: Some(1) });
    assert_eq!(life.state(), State::Errored { retry_at_ms: None });
    assert_eq!(life.step(now, Input::Wake), None);
    assert_eq!(life.step(now, Input::Start), Some(Action::Spawn), "a person releases it");
    life.step(now, Input::Spawned);
    life.step(now, Input::Exited { code: Some(1) });
    assert!(matches!(life.state(), State::Backoff { .. }), "with a clean sheet");
}

#[test]
fn on_demand_crashes_far_apart_are_forgotten_and_a_healthy_minute_resets_the_delay() {
    let mut life = Lifecycle::new(on_demand());
    let mut now = 0;
    life.step(now, Input::Wake);
    for _ in 0..20 {
        life.step(now, Input::Spawned);
        now += 200_000;
        life.step(now, Input::Exited { code: Some(1) });
        assert_eq!(life.restarts_in_row(), 1, "it ran for over a minute");
        let State::Backoff { until_ms } = life.state() else { panic!("{:?}", life.state()) };
        assert!(until_ms <= now + 1000, "the first delay");
        now = until_ms;
        life.step(now, Input::Tick);
    }
}

#[test]
fn on_demand_a_config_error_is_errored_at_once() {
    let mut life = Lifecycle::new(on_demand());
    life.step(0, Input::Wake);
    life.step(0, Input::Spawned);
    life.step(1, Input::Exited { code: Some(EXIT_CONFIG) });
    assert_eq!(life.state(), State::Errored { retry_at_ms: None });
}

#[test]
fn what_wakes_while_it_stops_comes_up_again() {
    let mut life = Lifecycle::new(on_demand());
    life.step(0, Input::Wake);
    life.step(0, Input::Spawned);
    assert_eq!(life.step(1, Input::Stop), Some(Action::Term));
    assert_eq!(life.step(2, Input::Wake), None);
    assert_eq!(life.step(3, Input::Exited { code: Some(0) }), Some(Action::Spawn));
}

#[derive(Debug, Clone, Copy)]
enum Do {
    Start,
    Wake,
    Stop,
    Restart,
    Answer(bool),
    Exit(Option<i32>),
    Wait(u64),
}

fn any_do() -> impl Strategy<Value = Do> {
    prop_oneof![
        Just(Do::Start),
        Just(Do::Wake),
        Just(Do::Stop),
        Just(Do::Restart),
        any::<bool>().prop_map(Do::Answer),
        prop_oneof![Just(Some(0)), Just(Some(1)), Just(Some(78)), Just(None)].prop_map(Do::Exit),
        (0_u64..700_000).prop_map(Do::Wait),
    ]
}

proptest! {
    /// Whatever happens in whatever order: at most one process, and in the end what is desired.
    #[test]
    fn one_process_at_most_and_it_converges(script in proptest::collection::vec(any_do(), 0..200)) {
        let mut life = Lifecycle::new(policy());
        let (mut now, mut alive, mut asked) = (0_u64, false, false);
        let apply = |action: Option<Action>, alive: bool, asked: &mut bool| {
            if action == Some(Action::Spawn) {
                assert!(!alive && !*asked, "spawned a second process");
                *asked = true;
            }
            if action == Some(Action::Kill) || action == Some(Action::Term) {
                assert!(alive, "signalled a process that isn't there");
            }
        };
        for step in script {
            let input = match step {
                Do::Start => Input::Start,
                Do::Wake => Input::Wake,
                Do::Stop => Input::Stop,
                Do::Restart => Input::Restart,
                Do::Answer(ok) if asked => { asked = false; alive = ok; if ok { Input::Spawned } else { Input::SpawnFailed { lasting: false } } }
                Do::Exit(code) if alive => { alive = false; Input::Exited { code } }
                Do::Answer(_) | Do::Exit(_) => continue,
                Do::Wait(ms) => { now += ms; Input::Tick }
            };
            apply(life.step(now, input), alive, &mut asked);
            if let Some(at) = life.deadline_ms() { prop_assert!(at <= now + 600_000 + 5000); }
        }
        // A world that answers every spawn and dies on every TERM reaches what is desired.
        for _ in 0..8 {
            if asked { asked = false; alive = true; apply(life.step(now, Input::Spawned), alive, &mut asked); }
            match life.state() {
                State::Stopping { .. } => { alive = false; apply(life.step(now, Input::Exited { code: None }), alive, &mut asked); }
                State::Backoff { .. } | State::Errored { .. } => { now += 300_000; apply(life.step(now, Input::Tick), alive, &mut asked); }
                State::Stopped | State::Starting | State::Running { .. } => {}
            }
        }
        prop_assert_eq!(alive, life.desired() == Desired::Up);
    }

    /// The delays of one that is started on demand are within bounds, whatever the seed; two seeds differ somewhere.
    #[test]
    fn drawn_delays_are_within_bounds(seed in any::<u64>()) {
        let rules = OnDemand { crashes_max: 1000, window_ms: 1 };
        let mut life = Lifecycle::new(RestartPolicy { on_demand: Some(rules), ..on_demand() }).seeded(seed);
        life.step(0, Input::Wake);
        let mut now = 0;
        for restart in 1..40 {
            life.step(now, Input::Spawned);
            life.step(now, Input::Exited { code: Some(1) });
            let State::Backoff { until_ms } = life.state() else { panic!("{:?}", life.state()) };
            prop_assert!(until_ms - now <= on_demand().backoff_ms(restart));
            now = until_ms;
            life.step(now, Input::Tick);
        }
    }

    /// Of one that is started on demand there is never a second process either, and it keeps no more crashes than count.
    #[test]
    fn one_process_at_most_on_demand(script in proptest::collection::vec(any_do(), 0..200)) {
        let mut life = Lifecycle::new(on_demand());
        let (mut now, mut alive, mut asked) = (0_u64, false, false);
        for step in script {
            let input = match step {
                Do::Start => Input::Start,
                Do::Wake => Input::Wake,
                Do::Stop => Input::Stop,
                Do::Restart => Input::Restart,
                Do::Answer(ok) if asked => { asked = false; alive = ok; if ok { Input::Spawned } else { Input::SpawnFailed { lasting: false } } }
                Do::Exit(code) if alive => { alive = false; Input::Exited { code } }
                Do::Answer(_) | Do::Exit(_) => continue,
                Do::Wait(ms) => { now += ms; Input::Tick }
            };
            match life.step(now, input) {
                Some(Action::Spawn) => { prop_assert!(!alive && !asked); asked = true; }
                Some(Action::Kill | Action::Term) => prop_assert!(alive),
                None => {}
            }
            prop_assert!(life.crashes.len() <= 5);
        }
    }
}
