//! One child's life: a pure machine that turns what happened into what to do.
//!
//! Desired state is apart from actual state: a verb changes what is wanted, and the machine works
//! towards it from wherever the process is. It never spawns or kills by itself, and it asks for a
//! spawn only when no process of this child is alive: that is promise 4, and the property test below.
//!
//! Adapters are always wanted. A project's process is wanted while there is something to do ([`OnDemand`]):
//! it may end by itself, and what counts is how often it crashes.

use crate::config::Restart;
use std::collections::VecDeque;

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
    /// For a child that is started when there is something to do, and rests in between.
    pub on_demand: Option<OnDemand>,
}

/// The rules of a child that is started on demand. It rests after an exit with code 0; its delays are drawn
/// from zero to what `RestartPolicy` says ("full jitter"), so that those that fell together don't rise together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OnDemand {
    /// So many crashes within `window_ms`, and it is errored, whatever `max_restarts` says.
    pub crashes_max: u32,
    pub window_ms: u64,
}

impl RestartPolicy {
    /// As `restart` says, of a child that is always wanted; `stop_grace_ms` is for the kind of child to know.
    pub fn new(restart: &Restart, stop_grace_ms: u64) -> Self {
        Self {
            max_restarts: restart.max_restarts,
            backoff_base_ms: restart.backoff_base_ms,
            backoff_multiplier: restart.backoff_multiplier,
            backoff_max_ms: restart.backoff_max_ms,
            reset_after_ms: restart.reset_after_ms,
            errored_retry_ms: restart.errored_retry_ms,
            stop_grace_ms,
            on_demand: None,
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
    /// There is something to do: wants it up, and clears nothing. One that backs off or is errored stays so.
    Wake,
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
    /// When it crashed of late; kept on demand only.
    crashes: VecDeque<u64>,
    /// Where the next delay is drawn from.
    seed: u64,
}

impl Lifecycle {
    /// One that is stopped, and wanted down.
    pub fn new(policy: RestartPolicy) -> Self {
        let (desired, state) = (Desired::Down, State::Stopped);
        Self { policy, desired, state, restarts_in_row: 0, restarts_total: 0, crashes: VecDeque::new(), seed: 0 }
    }

    /// The same with delays of its own: two machines of one seed draw the same ones.
    #[must_use]
    pub fn seeded(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    pub fn state(&self) -> State {
        self.state
    }

    pub fn desired(&self) -> Desired {
        self.desired
    }

    /// Restarts over the machine's life.
    pub fn restarts_total(&self) -> u64 {
        self.restarts_total
    }

    /// Restarts since the last reset: what the next delay and the give-up go by.
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
            Input::Wake => self.wake(),
            Input::Stop => self.stop(now_ms),
            Input::Restart => self.restart(now_ms),
            Input::Spawned => self.spawned(now_ms),
            Input::SpawnFailed { lasting } => self.gone(now_ms, lasting),
            Input::Exited { code: Some(0) } if self.policy.on_demand.is_some() => self.rest(now_ms),
            Input::Exited { code } => self.gone(now_ms, code == Some(EXIT_CONFIG)),
            Input::Tick => self.tick(now_ms),
        }
    }

    fn start(&mut self) -> Option<Action> {
        self.desired = Desired::Up;
        self.restarts_in_row = 0;
        self.crashes.clear();
        match self.state {
            State::Stopped | State::Backoff { .. } | State::Errored { .. } => self.spawn(),
            // A stopping process is started again once it is gone.
            State::Starting | State::Running { .. } | State::Stopping { .. } => None,
        }
    }

    fn wake(&mut self) -> Option<Action> {
        match self.state {
            State::Stopped => {
                self.desired = Desired::Up;
                self.spawn()
            }
            // A stopping process is started again once it is gone.
            State::Starting | State::Running { .. } | State::Stopping { .. } => {
                self.desired = Desired::Up;
                None
            }
            State::Backoff { .. } | State::Errored { .. } => None,
        }
    }

    /// It ended well: nobody wants it up until there is something to do.
    fn rest(&mut self, now_ms: u64) -> Option<Action> {
        if let State::Running { .. } = self.state {
            self.desired = Desired::Down;
        }
        self.gone(now_ms, false)
    }

    fn stop(&mut self, now_ms: u64) -> Option<Action> {
        self.desired = Desired::Down;
        match self.state {
            State::Running { .. } => self.term(now_ms),
            State::Backoff { .. } | State::Errored { .. } => {
                self.state = State::Stopped;
                self.crashes.clear();
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
        let is_too_often = match self.policy.on_demand {
            None => self.restarts_in_row >= self.policy.max_restarts,
            Some(rules) => self.crashed_too_often(now_ms, rules),
        };
        if hopeless || is_too_often {
            let retry = self.policy.errored_retry_ms;
            self.state = State::Errored { retry_at_ms: (retry > 0).then(|| now_ms.saturating_add(retry)) };
        } else {
            self.restarts_in_row = self.restarts_in_row.saturating_add(1);
            let wait_ms = self.wait_ms();
            self.state = State::Backoff { until_ms: now_ms.saturating_add(wait_ms) };
        }
    }

    /// Counts a crash; no more of them are kept than decide.
    fn crashed_too_often(&mut self, now_ms: u64, rules: OnDemand) -> bool {
        let crashes_max = usize::try_from(rules.crashes_max).unwrap_or(usize::MAX).max(1);
        self.crashes.retain(|at| now_ms.saturating_sub(*at) < rules.window_ms);
        self.crashes.push_back(now_ms);
        while self.crashes.len() > crashes_max {
            self.crashes.pop_front();
        }
        self.crashes.len() >= crashes_max
    }

    /// How long to wait before the next restart.
    fn wait_ms(&mut self) -> u64 {
        let full_ms = self.policy.backoff_ms(self.restarts_in_row);
        match self.policy.on_demand {
            None => full_ms,
            Some(_) => {
                let drawn = (u128::from(self.draw()) * (u128::from(full_ms) + 1)) >> 64;
                u64::try_from(drawn).unwrap_or(full_ms)
            }
        }
    }

    /// The next of a row of evenly spread numbers (SplitMix64).
    fn draw(&mut self) -> u64 {
        self.seed = self.seed.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.seed ^ (self.seed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
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
mod tests;
