//! How the plugins are, for status, health and `nexus plugin`.

use super::builtin::{Builtin, Figure};
use super::circuits::Open;
use super::found::Kind;
use super::session::Standing;
use super::table::Slot;
use crate::clock;
use crate::supervisor::{ChildStatus, Phase};
use nexus_core::circuit::CircuitState;
use serde::Serialize;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;

/// Words of circuits.
const CLOSED: &str = "closed";
const OPEN: &str = "open";
const HALF_OPEN: &str = "half_open";
/// Its time is over: the next call tries.
const DUE: &str = "due";

/// One plugin as it stands.
#[derive(Debug, Clone, Default, Serialize)]
pub struct PluginReport {
    pub name: String,
    /// `builtin`, `script` or `program`; nothing for one that can't be read.
    pub kind: Option<&'static str>,
    pub status: &'static str,
    pub pid: Option<u32>,
    pub restarts: u64,
    pub hooks: Vec<&'static str>,
    pub mode: Option<&'static str>,
    pub sections: Vec<&'static str>,
    pub priority: Option<i64>,
    pub timeout_ms: Option<u64>,
    pub on_error: Option<&'static str>,
    pub grants: Vec<String>,
    /// `closed`, or else the first of `open`, `half_open` and `due` in which one hook at least is.
    pub circuit: &'static str,
    /// The hooks whose circuit isn't closed.
    pub open_at: Vec<&'static str>,
    pub calls: u64,
    /// Of a call, on the average; nothing before the first.
    pub mean_ms: Option<f64>,
    /// Which half of the newest 1,024 calls did not exceed.
    pub p50_ms: Option<f64>,
    /// The same of what a request took to leave word for it, where nothing waits for its answer.
    pub told_p50_ms: Option<f64>,
    pub errors: u64,
    /// What it was not told of, because it is too slow.
    pub dropped: u64,
    /// Lines of it that were no frames, and answers that nobody waited for.
    pub ignored: u64,
    pub last_error: Option<String>,
    /// What is wrong now, if anything is.
    pub problem: Option<String>,
}

pub(super) fn of_builtin(plugin: Builtin, figure: &Figure) -> PluginReport {
    let (calls, took_ns) = (figure.calls.load(Ordering::Relaxed), figure.took_ns.load(Ordering::Relaxed));
    PluginReport {
        name: plugin.name().to_owned(),
        kind: Some("builtin"),
        status: "running",
        mode: Some("observe"),
        circuit: CLOSED,
        calls,
        mean_ms: mean_ms(calls, took_ns),
        p50_ms: figure.recent.median_ms(),
        ..PluginReport::default()
    }
}

fn mean_ms(calls: u64, took_ns: u64) -> Option<f64> {
    (calls > 0).then(|| took_ns as f64 / calls as f64 / 1_000_000.0)
}

pub(super) fn of_slot(name: &str, slot: &Slot, grants: Vec<String>) -> PluginReport {
    let refused = slot.refused.as_ref().map(|(_, why)| why.as_str());
    let Some(plugin) = &slot.plugin else {
        let problem = Some(format!("it does not load: {}", refused.unwrap_or("it was not looked for yet")));
        return PluginReport { name: name.to_owned(), status: "errored", circuit: CLOSED, grants, problem, ..PluginReport::default() };
    };
    let status = plugin.child().map(crate::supervisor::Child::status);
    let (declared, open, now_ms) = (plugin.declared(), plugin.open_circuits(), clock::mono_ms());
    let figures = &plugin.figures;
    let count = |figure: &std::sync::atomic::AtomicU64| figure.load(Ordering::Relaxed);
    let last_error = figures.last_error.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let of_process = status.as_ref().and_then(|status| status.last_error.clone());
    let of_child = down(status.as_ref(), "its process", "its process ended");
    let problem = problem(&plugin.standing.borrow(), not_asked_at(&open, now_ms), of_child, refused);
    let declared = declared.as_deref();
    PluginReport {
        name: name.to_owned(),
        kind: Some(match plugin.found.kind {
            Kind::Script(_) => "script",
            Kind::Program { .. } => "program",
        }),
        status: status.as_ref().map_or("starting", |status| status.phase.as_str()),
        pid: status.as_ref().and_then(|status| status.pid),
        restarts: status.as_ref().map_or(0, |status| status.restarts),
        hooks: declared.map(|declared| declared.hooks.iter().map(|hook| hook.as_str()).collect()).unwrap_or_default(),
        mode: declared.map(|declared| declared.mode.as_str()),
        sections: declared.map(|declared| declared.sees.words()).unwrap_or_default(),
        priority: declared.map(|declared| declared.priority),
        timeout_ms: declared.map(|declared| u64::try_from(declared.timeout.as_millis()).unwrap_or(u64::MAX)),
        on_error: declared.map(|declared| declared.on_error.as_str()),
        grants,
        circuit: worst_word(&open, now_ms),
        open_at: open.iter().map(|open| open.hook.as_str()).collect(),
        calls: count(&figures.calls),
        mean_ms: mean_ms(count(&figures.calls), count(&figures.took_ns)),
        p50_ms: figures.recent.median_ms(),
        told_p50_ms: figures.telling.median_ms(),
        errors: count(&figures.errors),
        dropped: count(&figures.dropped),
        ignored: count(&figures.ignored),
        last_error: last_error.or(of_process),
        problem,
    }
}

/// What is wrong with a plugin or an automation, in one sentence without its name; `not_asked` is that of its circuit.
pub(super) fn problem(standing: &Standing, not_asked: Option<String>, down: Option<String>, refused: Option<&str>) -> Option<String> {
    if let Standing::Fatal(message) = standing {
        return Some(format!("it does not load: {message}"));
    }
    let old = || refused.map(|why| format!("its new version does not load, the one before goes on: {why}"));
    not_asked.or(down).or_else(old)
}

/// That nobody asks, as long as a circuit rests.
pub(super) fn not_asked(circuit: CircuitState, now_ms: u64, last_error: Option<&str>) -> Option<String> {
    let told = || format!("it is not asked after too many errors in a row, the last: {}", last_error.unwrap_or("unknown"));
    circuit.rests(now_ms).then(told)
}

/// The same of a plugin, with the hooks.
fn not_asked_at(open: &[Open], now_ms: u64) -> Option<String> {
    let at = |open: &Open| {
        let (hook, error) = (open.hook.as_str(), open.last_error.as_deref().unwrap_or("unknown"));
        format!("at `{hook}` after too many errors in a row, the last: {error}")
    };
    let all: Vec<String> = open.iter().filter(|open| open.state.rests(now_ms)).map(at).collect();
    (!all.is_empty()).then(|| format!("it is not asked {}", all.join("; nor ")))
}

/// `open` if one is, or else `half_open` if one is.
fn worst_word(open: &[Open], now_ms: u64) -> &'static str {
    let words: Vec<&str> = open.iter().map(|open| circuit_word(open.state, now_ms)).collect();
    [OPEN, HALF_OPEN, DUE].into_iter().find(|word| words.contains(word)).unwrap_or(CLOSED)
}

/// That `process` is not up, where it should be, and why: `unknown` if nobody knows.
pub(super) fn down(status: Option<&ChildStatus>, process: &str, unknown: &str) -> Option<String> {
    let status = status.filter(|status| matches!(status.phase, Phase::Errored | Phase::Backoff))?;
    Some(format!("{process} is {}: {}", status.phase.as_str(), status.last_error.as_deref().unwrap_or(unknown)))
}

pub(super) fn circuit_word(circuit: CircuitState, now_ms: u64) -> &'static str {
    match circuit {
        CircuitState::Closed { .. } => CLOSED,
        CircuitState::Open { .. } if circuit.rests(now_ms) => OPEN,
        CircuitState::HalfOpen { .. } if circuit.rests(now_ms) => HALF_OPEN,
        CircuitState::Open { .. } | CircuitState::HalfOpen { .. } => DUE,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nexus_core::hook::Hook;

    #[test]
    fn each_hook_that_is_not_asked_is_named_with_its_error() {
        let open = |hook, state, error: &str| Open { hook, state, last_error: Some(error.to_owned()) };
        let half = open(Hook::AfterReceiveEvent, CircuitState::HalfOpen { until_ms: 1 }, "a");
        let whole = open(Hook::OnError, CircuitState::Open { until_ms: 1 }, "b");
        assert_eq!((not_asked_at(&[], 0), worst_word(&[], 0)), (None, "closed"));
        assert_eq!(worst_word(std::slice::from_ref(&half), 0), "half_open");
        let both = [half, whole];
        let told = "it is not asked at `afterReceiveEvent` after too many errors in a row, the last: a; nor at `onError` after too many \
                    errors in a row, the last: b";
        assert_eq!((not_asked_at(&both, 0).as_deref(), worst_word(&both, 0)), (Some(told), "open"));
    }

    #[test]
    fn a_hook_that_nobody_calls_is_no_problem_once_its_time_is_over() {
        let open = |hook, until_ms| Open { hook, state: CircuitState::Open { until_ms }, last_error: Some("a".to_owned()) };
        let (rare, other) = (open(Hook::OnError, 10), open(Hook::AfterReceiveEvent, 20));
        let both = [rare, other];
        let told = "it is not asked at `afterReceiveEvent` after too many errors in a row, the last: a";
        assert_eq!((not_asked_at(&both, 10).as_deref(), worst_word(&both, 10)), (Some(told), "open"));
        assert_eq!((not_asked_at(&both, 20), worst_word(&both, 20)), (None, "due"));
        let lone = CircuitState::HalfOpen { until_ms: 10 };
        assert!(not_asked(lone, 9, None).is_some_and(|told| told.ends_with("unknown")) && not_asked(lone, 10, None).is_none());
        assert_eq!((circuit_word(lone, 9), circuit_word(lone, 10)), ("half_open", "due"));
    }
}
