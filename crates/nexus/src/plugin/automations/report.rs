//! How the automations are, for status, health and `nexus automation`.

use super::super::report::{circuit_word, down, not_asked, problem};
use super::Slot;
use crate::clock;
use crate::supervisor::ChildStatus;
use nexus_core::automation::Triggers;
use nexus_core::config::Grant;
use serde::Serialize;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicU64, Ordering};

/// One automation as it stands.
#[derive(Debug, Clone, Default, Serialize)]
pub struct AutomationReport {
    pub name: String,
    pub status: &'static str,
    /// Of the process of all.
    pub pid: Option<u32>,
    pub description: Option<String>,
    pub triggers: Option<Triggers>,
    /// It has a state.
    pub remembers: bool,
    pub grants: Vec<String>,
    /// `closed`, `open`, `half_open`, or `due`: its time is over, and the next event tries.
    pub circuit: &'static str,
    pub calls: u64,
    pub errors: u64,
    /// Answers that nobody waited for.
    pub ignored: u64,
    pub last_error: Option<String>,
    /// What is wrong now, if anything is.
    pub problem: Option<String>,
}

/// `status` is that of the process of all.
pub(super) fn of(name: &str, slot: &Slot, status: Option<&ChildStatus>, grants: &[Grant]) -> AutomationReport {
    let refused = slot.refused.as_ref().map(|(_, why)| why.as_str());
    let grants = grants.iter().map(ToString::to_string).collect();
    let Some(one) = &slot.automation else {
        let problem = Some(format!("it does not load: {}", refused.unwrap_or("it was not looked at yet")));
        let (name, status, circuit) = (name.to_owned(), "errored", "closed");
        return AutomationReport { name, status, circuit, grants, problem, ..AutomationReport::default() };
    };
    let (declared, circuit, figures, now_ms) = (one.declared(), one.circuit().state(), &one.figures, clock::mono_ms());
    let count = |figure: &AtomicU64| figure.load(Ordering::Relaxed);
    let last_error = figures.last_error.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let down = down(status, "the process of the automations", "it ended");
    let problem = problem(&one.standing.borrow(), not_asked(circuit, now_ms, last_error.as_deref()), down, refused);
    AutomationReport {
        name: name.to_owned(),
        status: status.map_or("stopped", |status| status.phase.as_str()),
        pid: status.and_then(|status| status.pid),
        description: declared.description,
        triggers: Some(declared.triggers),
        remembers: declared.remembers,
        grants,
        circuit: circuit_word(circuit, now_ms),
        calls: count(&figures.calls),
        errors: count(&figures.errors),
        ignored: count(&figures.ignored),
        problem,
        last_error,
    }
}
