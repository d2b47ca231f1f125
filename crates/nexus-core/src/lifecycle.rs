//! One child's life: a pure machine that turns what happened into what to do.
//!
//! Desired state is apart from actual state: a verb changes what is wanted, and the machine works
//! towards it from wherever the process is. It never spawns or kills by itself, and it asks for a
//! spawn only when no process of this child is alive: that is promise 4, and the property test below.

use crate::config::Restart;

/// How a child is restarted (requirement: Crash Recovery, On Adapter Crash). Times in milliseconds.
#[derive(Debug, Clone, PartialEq)]
pub struct RestartPolicy {
    /// Restarts in a row before the child counts as `errored`.
    pub max_restarts: u32,
    pub backoff_base_ms: u64,
    pub backoff_multiplier: f64,
    pub backoff_max_ms: u64,
    /// Up for this long, and the count of restarts begins anew.
    pub reset_after_ms: u64,
    /// Pause between slow retries once errored; 0 = wait for a person.
    pub errored_retry_ms: u64,
    /// From TERM to KILL.
    pub stop_grace_ms: u64,
}

impl RestartPolicy {
    /// As `restart` says; `stop_grace_ms` is for the kind of child to know.
    pub fn new(restart: &Restart, stop_grace_ms: u64) -> Self {
        Self {
            max_restarts: restart.max_restarts,
            backoff_base_ms: restart.backoff_base_ms,
            backoff_multiplier: restart.backoff_multiplier,
            backoff_max_ms: restart.backoff_max_ms,
            reset_after_ms: restart.reset_after_ms,
            errored_retry_ms: restart.errored_retry_ms,
            stop_grace_ms,
        }
    }

    /// Wait before restart number `restart` (from 1).
    pub fn backoff_ms(&self, restart: u32) -> u64 {
        let factor = self.backoff_multiplier.max(1.0).powi(i32::try_from(restart.saturating_sub(1)).unwrap_or(i32::MAX));
        let wait = self.backoff_base_ms as f64 * factor;
        // A float beyond the cap, infinity included, is the cap.
        if wait < self.backoff_max_ms as f64 { wait as u64 } else { self.backoff_max_ms }
    }
}

/// Exit status by which a program says that only a change of its configuration can help
/// (`EX_CONFIG`, sysexits.h). Restarting it in a row would be noise.
pub const EXIT_CONFIG: i32 = 78;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Desired {
    Up,
    Down,
}

/// Where the process is. Instants are monotonic milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    Stopped,
    /// A spawn was asked for and not answered yet.
    Starting,
    Running {
        since_ms: u64,
    },
    /// TERM was sent; `kill_at_ms` is `None` once KILL was sent too.
    Stopping {
        kill_at_ms: Option<u64>,
    },
    Backoff {
        until_ms: u64,
    },
    Errored {
        retry_at_ms: Option<u64>,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Input {
    /// A person or the config wants it up. Clears the count of restarts.
    Start,
    Stop,
    /// Stop, then start anew; does not count as a restart.
    Restart,
    Spawned,
    /// There is no process. `lasting`: only a person can help (a credential is missing), so that trying
    /// again in a row would be noise.
    SpawnFailed {
        lasting: bool,
    },
    /// The process and its whole tree are gone. `code` is `None` after a signal.
    Exited {
        code: Option<i32>,
    },
    /// Time passed; see [`Lifecycle::deadline_ms`].
    Tick,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    Spawn,
    Term,
    /// Kill the whole tree.
    Kill,
}

/// The machine. One per intended child.
#[derive(Debug, Clone, PartialEq)]
pub struct Lifecycle {
    policy: RestartPolicy,
    desired: Desired,
    state: State,
    /// Restarts since the last reset.
    restarts_in_row: u32,
    restarts_total: u64,
}

impl Lifecycle {
    pub fn new(policy: RestartPolicy) -> Self {
        Self { policy, desired: Desired::Down, state: State::Stopped, restarts_in_row: 0, restarts_total: 0 }
    }

    pub fn state(&self) -> State {
        self.state
    }

    pub fn desired(&self) -> Desired {
        self.desired
    }

    pub fn restarts_total(&self) -> u64 {
        self.restarts_total
    }

    pub fn restarts_in_row(&self) -> u32 {
        self.restarts_in_row
    }

    /// New numbers apply from the next decision on; a running process isn't touched.
    pub fn set_policy(&mut self, policy: RestartPolicy) {
        self.policy = policy;
    }

    /// When [`Input::Tick`] is due next, if at all.
    pub fn deadline_ms(&self) -> Option<u64> {
        match self.state {
            State::Stopping { kill_at_ms } => kill_at_ms,
            State::Backoff { until_ms } => Some(until_ms),
            State::Errored { retry_at_ms } => retry_at_ms,
            State::Running { since_ms } if self.restarts_in_row > 0 => Some(since_ms.saturating_add(self.policy.reset_after_ms)),
            State::Stopped | State::Starting | State::Running { .. } => None,
        }
    }

    /// Takes one input at `now_ms`; answers what to do, at most one thing.
    pub fn step(&mut self, now_ms: u64, input: Input) -> Option<Action> {
        match input {
            Input::Start => self.start(),
            Input::Stop => self.stop(now_ms),
            Input::Restart => self.restart(now_ms),
            Input::Spawned => self.spawned(now_ms),
            Input::SpawnFailed { lasting } => self.gone(now_ms, lasting),
            Input::Exited { code } => self.gone(now_ms, code == Some(EXIT_CONFIG)),
            Input::Tick => self.tick(now_ms),
        }
    }

    fn start(&mut self) -> Option<Action> {
        self.desired = Desired::Up;
        self.restarts_in_row = 0;
        match self.state {
            State::Stopped | State::Backoff { .. } | State::Errored { .. } => self.spawn(),
            // A stopping process is started again once it is gone.
            State::Starting | State::Running { .. } | State::Stopping { .. } => None,
        }
    }

    fn stop(&mut self, now_ms: u64) -> Option<Action> {
        self.desired = Desired::Down;
        match self.state {
            State::Running { .. } => self.term(now_ms),
            State::Backoff { .. } | State::Errored { .. } => {
                self.state = State::Stopped;
                None
            }
            // A spawn in flight is answered soon, and stopped then.
            State::Stopped | State::Starting | State::Stopping { .. } => None,
        }
    }

    fn restart(&mut self, now_ms: u64) -> Option<Action> {
        match self.state {
            State::Running { .. } => {
                self.desired = Desired::Up;
                self.restarts_in_row = 0;
                self.term(now_ms)
            }
            State::Stopped | State::Starting | State::Stopping { .. } | State::Backoff { .. } | State::Errored { .. } => self.start(),
        }
    }

    fn spawned(&mut self, now_ms: u64) -> Option<Action> {
        match self.state {
            State::Starting => {
                self.state = State::Running { since_ms: now_ms };
                match self.desired {
                    Desired::Up => None,
                    Desired::Down => self.term(now_ms),
                }
            }
            State::Stopped | State::Running { .. } | State::Stopping { .. } | State::Backoff { .. } | State::Errored { .. } => None,
        }
    }

    /// The process is gone, or never was.
    fn gone(&mut self, now_ms: u64, hopeless: bool) -> Option<Action> {
        match self.state {
            State::Stopping { .. } => match self.desired {
                Desired::Down => {
                    self.state = State::Stopped;
                    None
                }
                Desired::Up => self.spawn(),
            },
            State::Running { .. } | State::Starting => {
                if self.desired == Desired::Down {
                    self.state = State::Stopped;
                    return None;
                }
                self.fail(now_ms, hopeless);
                None
            }
            State::Stopped | State::Backoff { .. } | State::Errored { .. } => None,
        }
    }

    fn fail(&mut self, now_ms: u64, hopeless: bool) {
        if let State::Running { since_ms } = self.state
            && now_ms.saturating_sub(since_ms) >= self.policy.reset_after_ms
        {
            self.restarts_in_row = 0;
        }
        if hopeless || self.restarts_in_row >= self.policy.max_restarts {
            let retry = self.policy.errored_retry_ms;
            self.state = State::Errored { retry_at_ms: (retry > 0).then(|| now_ms.saturating_add(retry)) };
        } else {
            self.restarts_in_row += 1;
            self.state = State::Backoff { until_ms: now_ms.saturating_add(self.policy.backoff_ms(self.restarts_in_row)) };
        }
    }

    fn tick(&mut self, now_ms: u64) -> Option<Action> {
        match self.state {
            State::Stopping { kill_at_ms: Some(at) } if now_ms >= at => {
                self.state = State::Stopping { kill_at_ms: None };
                Some(Action::Kill)
            }
            State::Backoff { until_ms: at } | State::Errored { retry_at_ms: Some(at) } if now_ms >= at => {
                self.restarts_total += 1;
                self.spawn()
            }
            State::Running { since_ms } if now_ms.saturating_sub(since_ms) >= self.policy.reset_after_ms => {
                self.restarts_in_row = 0;
                None
            }
            State::Stopped
            | State::Starting
            | State::Running { .. }
            | State::Stopping { .. }
            | State::Backoff { .. }
            | State::Errored { .. } => None,
        }
    }

    fn spawn(&mut self) -> Option<Action> {
        self.state = State::Starting;
        Some(Action::Spawn)
    }

    fn term(&mut self, now_ms: u64) -> Option<Action> {
        self.state = State::Stopping { kill_at_ms: Some(now_ms.saturating_add(self.policy.stop_grace_ms)) };
        Some(Action::Term)
    }
}

#[cfg(test)]
mod tests {
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

    #[derive(Debug, Clone, Copy)]
    enum Do {
        Start,
        Stop,
        Restart,
        Answer(bool),
        Exit(Option<i32>),
        Wait(u64),
    }

    fn any_do() -> impl Strategy<Value = Do> {
        prop_oneof![
            Just(Do::Start),
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
    }
}
