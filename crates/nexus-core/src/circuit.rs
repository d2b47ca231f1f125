//! Whether a plugin that keeps failing is asked at all: a pure machine, one per hook of a plugin. It never asks
//! anybody; instants are monotonic milliseconds.

/// When a circuit opens, and for how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CircuitPolicy {
    /// Errors in a row after which nobody is asked any more; at least 1.
    pub errors: u32,
    /// Until one call may try again.
    pub half_open_ms: u64,
}

/// Where a circuit stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CircuitState {
    Closed {
        /// Errors since the last success.
        errors: u32,
    },
    Open {
        until_ms: u64,
    },
    /// One call is trying. Another may once `until_ms` is over: the first may have been given up.
    HalfOpen {
        until_ms: u64,
    },
}

impl CircuitState {
    /// Whether nobody is asked at `now_ms`. Where the time is over, the next call tries, whenever that comes.
    pub fn rests(self, now_ms: u64) -> bool {
        match self {
            Self::Closed { .. } => false,
            Self::Open { until_ms } | Self::HalfOpen { until_ms } => now_ms < until_ms,
        }
    }
}

/// Leave to ask, which is given back with how it went. One from before the last change of state says
/// nothing about the present one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Leave {
    generation: u64,
}

/// The machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Circuit {
    policy: CircuitPolicy,
    state: CircuitState,
    generation: u64,
}

impl Circuit {
    /// One that lets everything pass.
    pub fn new(policy: CircuitPolicy) -> Self {
        Self { policy, state: CircuitState::Closed { errors: 0 }, generation: 0 }
    }

    pub fn state(&self) -> CircuitState {
        self.state
    }

    /// Holds from the next error on.
    pub fn set_policy(&mut self, policy: CircuitPolicy) {
        self.policy = policy;
    }

    /// Leave to ask now; `None` while the circuit is open.
    pub fn admit(&mut self, now_ms: u64) -> Option<Leave> {
        if self.state.rests(now_ms) {
            return None;
        }
        match self.state {
            CircuitState::Closed { .. } => {}
            CircuitState::Open { .. } | CircuitState::HalfOpen { .. } => {
                self.turn(CircuitState::HalfOpen { until_ms: now_ms.saturating_add(self.policy.half_open_ms) });
            }
        }
        Some(Leave { generation: self.generation })
    }

    /// It went well. True when that closed the circuit.
    pub fn succeeded(&mut self, leave: Leave) -> bool {
        if leave.generation != self.generation {
            return false;
        }
        match self.state {
            CircuitState::Closed { .. } => {
                self.state = CircuitState::Closed { errors: 0 };
                false
            }
            CircuitState::HalfOpen { .. } => {
                self.turn(CircuitState::Closed { errors: 0 });
                true
            }
            CircuitState::Open { .. } => false,
        }
    }

    /// It failed. True when that opened the circuit.
    pub fn failed(&mut self, leave: Leave, now_ms: u64) -> bool {
        if leave.generation != self.generation {
            return false;
        }
        let errors = match self.state {
            CircuitState::Closed { errors } => errors.saturating_add(1),
            CircuitState::HalfOpen { .. } => self.policy.errors,
            CircuitState::Open { .. } => return false,
        };
        if errors < self.policy.errors {
            self.state = CircuitState::Closed { errors };
            return false;
        }
        self.turn(CircuitState::Open { until_ms: now_ms.saturating_add(self.policy.half_open_ms) });
        true
    }

    /// Enters another state: what was asked before has nothing to say about it.
    fn turn(&mut self, state: CircuitState) {
        self.state = state;
        self.generation += 1;
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    const POLICY: CircuitPolicy = CircuitPolicy { errors: 5, half_open_ms: 300_000 };

    fn fail(circuit: &mut Circuit, now_ms: u64) -> bool {
        let leave = circuit.admit(now_ms).unwrap();
        circuit.failed(leave, now_ms)
    }

    #[test]
    fn it_opens_at_the_fifth_error_in_a_row_and_tries_again_after_five_minutes() {
        let mut circuit = Circuit::new(POLICY);
        for _ in 0..4 {
            assert!(!fail(&mut circuit, 0));
        }
        let leave = circuit.admit(0).unwrap();
        assert!(!circuit.succeeded(leave), "it was closed");
        for _ in 0..4 {
            assert!(!fail(&mut circuit, 0));
        }
        assert!(fail(&mut circuit, 10));
        assert_eq!(circuit.admit(300_009), None);
        assert!(circuit.state().rests(300_009) && !circuit.state().rests(300_010), "nobody has to call for its time to be over");
        let leave = circuit.admit(300_010).unwrap();
        assert_eq!(circuit.admit(300_011), None, "one at a time");
        assert!(circuit.succeeded(leave));
        assert_eq!(circuit.state(), CircuitState::Closed { errors: 0 });
    }

    #[test]
    fn a_try_that_fails_opens_it_again_and_one_that_is_given_up_is_followed_by_another() {
        let mut circuit = Circuit::new(CircuitPolicy { errors: 1, half_open_ms: 100 });
        assert!(fail(&mut circuit, 0));
        assert!(fail(&mut circuit, 100));
        assert_eq!(circuit.admit(199), None);
        let lost = circuit.admit(200).unwrap();
        assert_eq!(circuit.admit(299), None);
        let next = circuit.admit(300).unwrap();
        assert!(!circuit.failed(lost, 301) && circuit.succeeded(next));
    }

    #[test]
    fn who_was_asked_before_it_opened_has_no_say_in_it() {
        let mut circuit = Circuit::new(CircuitPolicy { errors: 1, half_open_ms: 100 });
        let (early, late) = (circuit.admit(0).unwrap(), circuit.admit(0).unwrap());
        assert!(circuit.failed(early, 0));
        assert!(!circuit.failed(late, 50) && !circuit.succeeded(late));
        assert_eq!(circuit.state(), CircuitState::Open { until_ms: 100 });
    }

    #[derive(Debug, Clone, Copy)]
    enum Step {
        Pass(u64),
        Ask,
        End(usize, bool),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0_u64..150).prop_map(Step::Pass),
            Just(Step::Ask),
            (0_usize..8, any::<bool>()).prop_map(|(which, well)| Step::End(which, well)),
        ]
    }

    proptest! {
        /// Beside a model that counts errors: nobody is asked while it is open, one at a time while it
        /// is half open, and it never stays open for longer than its time.
        #[test]
        fn it_keeps_its_word(steps in prop::collection::vec(step(), 0..200), errors in 1_u32..4) {
            let mut circuit = Circuit::new(CircuitPolicy { errors, half_open_ms: 100 });
            let (mut now_ms, mut out) = (0_u64, Vec::new());
            for step in steps {
                let before = circuit.state();
                match step {
                    Step::Pass(ms) => now_ms += ms,
                    Step::Ask => {
                        let leave = circuit.admit(now_ms);
                        let may = match before {
                            CircuitState::Closed { .. } => true,
                            CircuitState::Open { until_ms } | CircuitState::HalfOpen { until_ms } => now_ms >= until_ms,
                        };
                        prop_assert_eq!(leave.is_some(), may);
                        out.extend(leave);
                    }
                    Step::End(which, well) if !out.is_empty() => {
                        let leave = out.swap_remove(which % out.len());
                        let counts = leave.generation == circuit.generation;
                        let turned = if well { circuit.succeeded(leave) } else { circuit.failed(leave, now_ms) };
                        prop_assert!(counts || !turned);
                        if !counts {
                            prop_assert_eq!(circuit.state(), before);
                        }
                    }
                    Step::End(..) => {}
                }
                match circuit.state() {
                    CircuitState::Closed { errors: seen } => prop_assert!(seen < errors),
                    CircuitState::Open { until_ms } | CircuitState::HalfOpen { until_ms } => prop_assert!(until_ms <= now_ms + 100),
                }
            }
        }
    }
}
