//! The circuits of one plugin, one for each hook: where it keeps failing it is not asked, and its other hooks go
//! on. What counts as an error, others decide.

use crate::clock;
use nexus_core::circuit::{Circuit, CircuitPolicy, CircuitState, Leave};
use nexus_core::hook::Hook;
use std::sync::{Mutex, MutexGuard, PoisonError};

#[derive(Debug)]
pub(super) struct Circuits([Mutex<OfHook>; Hook::ALL.len()]);

#[derive(Debug)]
struct OfHook {
    circuit: Circuit,
    last_error: Option<String>,
}

/// A circuit that isn't closed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Open {
    pub(super) hook: Hook,
    pub(super) state: CircuitState,
    pub(super) last_error: Option<String>,
}

impl Circuits {
    pub(super) fn new(policy: CircuitPolicy) -> Self {
        Self(std::array::from_fn(|_| Mutex::new(OfHook { circuit: Circuit::new(policy), last_error: None })))
    }

    pub(super) fn set_policy(&self, policy: CircuitPolicy) {
        Hook::ALL.into_iter().for_each(|hook| self.of(hook).circuit.set_policy(policy));
    }

    /// Leave to call `hook` now; `None` while its circuit is open.
    pub(super) fn admit(&self, hook: Hook) -> Option<Leave> {
        self.of(hook).circuit.admit(clock::mono_ms())
    }

    /// It went well. True when that closed the circuit.
    pub(super) fn succeeded(&self, hook: Hook, leave: Leave) -> bool {
        self.of(hook).circuit.succeeded(leave)
    }

    /// It failed. True when that opened the circuit.
    pub(super) fn failed(&self, hook: Hook, leave: Leave, error: String) -> bool {
        let mut of = self.of(hook);
        of.last_error = Some(error);
        of.circuit.failed(leave, clock::mono_ms())
    }

    /// Those that aren't closed, in the order of the hooks.
    pub(super) fn open(&self) -> Vec<Open> {
        let open = |hook: Hook| {
            let of = self.of(hook);
            match of.circuit.state() {
                CircuitState::Closed { .. } => None,
                state @ (CircuitState::Open { .. } | CircuitState::HalfOpen { .. }) => {
                    Some(Open { hook, state, last_error: of.last_error.clone() })
                }
            }
        };
        Hook::ALL.into_iter().filter_map(open).collect()
    }

    fn of(&self, hook: Hook) -> MutexGuard<'_, OfHook> {
        self.0[hook.index()].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn what_goes_well_at_one_hook_says_nothing_about_another() {
        let circuits = Circuits::new(CircuitPolicy { errors: 5, half_open_ms: 300_000 });
        for n in 1..=5 {
            let well = circuits.admit(Hook::AfterReceiveEvent).unwrap();
            assert!(!circuits.succeeded(Hook::AfterReceiveEvent, well), "it was closed");
            let bad = circuits.admit(Hook::AfterAssembleContext).unwrap();
            assert_eq!(circuits.failed(Hook::AfterAssembleContext, bad, format!("error {n}")), n == 5, "{n}");
        }
        assert!(circuits.admit(Hook::AfterReceiveEvent).is_some() && circuits.admit(Hook::AfterAssembleContext).is_none());
        let open = circuits.open();
        assert_eq!(open.len(), 1, "{open:?}");
        assert_eq!((open[0].hook, open[0].last_error.as_deref()), (Hook::AfterAssembleContext, Some("error 5")));
    }

    #[test]
    fn another_policy_holds_for_every_hook() {
        let circuits = Circuits::new(CircuitPolicy { errors: 5, half_open_ms: 300_000 });
        circuits.set_policy(CircuitPolicy { errors: 1, half_open_ms: 300_000 });
        for hook in Hook::ALL {
            let leave = circuits.admit(hook).unwrap();
            assert!(circuits.failed(hook, leave, "x".to_owned()), "{}", hook.as_str());
        }
        assert_eq!(circuits.open().len(), Hook::ALL.len());
    }
}
