//! `nostr gate`: what an event costs that a relay sends, by whether and why it is refused, beside the calls of the bare
//! library that come to the same answer. From outside a microsecond can't be told from the socket's, so this is the one
//! figure that calls the daemon's code, from the text of a frame to what its gate says. Nothing is sent or stored.

use super::{RUNS, USERS, User, now_s, own, users};
use crate::{Bench, clock};
use ::nostr::event::Event;
use ::nostr::key::PublicKey;
use anyhow::{Context, Result, ensure};
use nexus::clock::mono_ms;
use nexus::nostr::codec::{self, FromRelay};
use nexus::nostr::filter::Filter;
use nexus::nostr::gate::{self, Budget, Passed, Refused, Seen};
use std::collections::BTreeSet;
use std::sync::Arc;

/// Length of each event as JSON, but for the digit that a malformed one lacks.
const EVENT_BYTES: usize = 714;
/// Each side is measured for so much CPU at least, in turns.
const TIME_NS: u64 = 500_000_000;
/// Somebody who isn't among those that are heeded.
const STRANGER: u8 = 210;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Case {
    /// Its signature lacks a digit.
    Malformed,
    Stranger,
    /// Its content isn't what its id says.
    Tampered,
    /// It has another event's signature.
    WrongSignature,
    Valid,
}

impl Case {
    const ALL: [Self; 5] = [Self::Malformed, Self::Stranger, Self::Tampered, Self::WrongSignature, Self::Valid];

    fn named(self) -> &'static str {
        match self {
            Self::Malformed => "doesn't parse",
            Self::Stranger => "of a stranger",
            Self::Tampered => "tampered",
            Self::WrongSignature => "wrong signature",
            Self::Valid => "valid",
        }
    }

    fn refusal(self) -> Option<Refused> {
        match self {
            Self::Malformed => Some(Refused::Malformed),
            Self::Stranger => Some(Refused::Stranger),
            Self::Tampered => Some(Refused::WrongId),
            Self::WrongSignature => Some(Refused::BadSignature),
            Self::Valid => None,
        }
    }

    /// Whether the bare library finds of an event what it is, with no call more than that takes.
    fn is_found(self, json: &str, heeded: &BTreeSet<PublicKey>) -> bool {
        let Ok(event) = Event::from_json(json) else { return self == Self::Malformed };
        match self {
            Self::Malformed => false,
            Self::Stranger => !heeded.contains(&event.pubkey),
            Self::Tampered => !event.verify_id(),
            Self::WrongSignature => event.verify_id() && !event.verify_signature(),
            Self::Valid => event.verify_id() && event.verify_signature(),
        }
    }

    /// So many different events of this case.
    fn events(self, count: u32) -> Result<Vec<String>> {
        let author = User::new(if self == Self::Stranger { STRANGER } else { *USERS.start() })?;
        let (own, at) = (own()?.public(), now_s());
        let sign = |content: &str| author.sign(at, 1, &[&["p", &own]], content);
        let numbered = |n: u32| format!("{n:08}");
        let filling = "x".repeat(EVENT_BYTES.saturating_sub(sign(&numbered(0))?.len()));
        let valid = (0..count).map(|n| sign(&(numbered(n) + &filling))).collect::<Result<Vec<_>>>()?;
        let signatures = valid.iter().map(|json| signature(json)).collect::<Result<Vec<_>>>()?;
        let each = valid.into_iter().zip(&signatures).zip(signatures.iter().cycle().skip(1));
        Ok(each.map(|((json, signature), next)| self.made_of(json, signature, next)).collect())
    }

    fn made_of(self, valid: String, signature: &str, others: &str) -> String {
        match self {
            Self::Malformed => valid.replace(signature, &signature[1..]),
            // Only the filling has this letter.
            Self::Tampered => valid.replacen('x', "y", 1),
            Self::WrongSignature => valid.replace(signature, others),
            Self::Stranger | Self::Valid => valid,
        }
    }
}

fn signature(json: &str) -> Result<String> {
    Ok(Event::from_json(json).context("an event can't be read")?.sig.to_hex())
}

/// What the daemon has of a relay whose subscription asks for what some people write.
#[derive(Debug)]
struct Gate {
    filter: Filter,
    seen: Seen,
    budget: Budget,
}

impl Gate {
    fn new(heeded: &BTreeSet<PublicKey>) -> Self {
        let authors = heeded.iter().map(PublicKey::to_hex).collect();
        let filter = Filter { authors: Some(Arc::new(authors)), ..Filter::default() };
        Self { filter, seen: Seen::default(), budget: Budget::default() }
    }

    /// Takes a frame as the task of a relay does.
    fn take(&mut self, frame: &str) -> Result<Passed, Refused> {
        let Self { filter, seen, budget } = self;
        let Some(FromRelay::Event { event, .. }) = codec::parse(frame) else { return Err(Refused::Malformed) };
        gate::pass(event, filter, |id| seen.contains(id), budget, mono_ms())
    }
}

fn frame(event: &str) -> String {
    format!("[\"EVENT\",\"messages-1\",{event}]")
}

fn heeded() -> Result<BTreeSet<PublicKey>> {
    users()?.iter().map(|user| PublicKey::from_hex(&user.public()).context("it is no key")).collect()
}

pub(crate) fn run(bench: &Bench, count: u32) -> Result<()> {
    let heeded = heeded()?;
    for case in Case::ALL {
        let (mut gate_us, mut bare_us, mut ratio) = (Vec::new(), Vec::new(), Vec::new());
        let events = case.events(count)?;
        let frames: Vec<String> = events.iter().map(|json| frame(json)).collect();
        for _ in 0..bench.runs(RUNS) {
            let (of_gate, of_bare) = measure(case, &events, &frames, &heeded)?;
            gate_us.push(of_gate);
            bare_us.push(of_bare);
            ratio.push(of_gate / of_bare);
        }
        let name = format!("nostr gate, events of {EVENT_BYTES} B: {}", case.named());
        bench.report.row(&format!("{name}: daemon's gate"), "CPU us/event", &gate_us)?;
        bench.report.row(&format!("{name}: bare library"), "CPU us/event", &bare_us)?;
        bench.report.row(&format!("{name}: of the bare library"), "ratio", &ratio)?;
    }
    Ok(())
}

/// Microseconds of CPU per event, of the daemon's gate and of the bare library.
fn measure(case: Case, events: &[String], frames: &[String], heeded: &BTreeSet<PublicKey>) -> Result<(f64, f64)> {
    let mut gate = Gate::new(heeded);
    let (mut gate_ns, mut bare_ns, mut looks) = (0_u64, 0_u64, 0_usize);
    while gate_ns.min(bare_ns) < TIME_NS {
        bare_ns += cpu_ns(case, || events.iter().all(|json| case.is_found(json, heeded)))?;
        gate_ns += cpu_ns(case, || frames.iter().all(|frame| gate.take(frame).err() == case.refusal()))?;
        looks += events.len();
    }
    let each_us = |ns: u64| ns as f64 / 1e3 / looks as f64;
    Ok((each_us(gate_ns), each_us(bare_ns)))
}

fn cpu_ns(case: Case, work: impl FnOnce() -> bool) -> Result<u64> {
    let began_ns = clock::thread_cpu_ns();
    let is_right = work();
    let used_ns = clock::thread_cpu_ns() - began_ns;
    ensure!(is_right, "an event is not found to be what it is: {}", case.named());
    Ok(used_ns)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn daemon_and_library_find_the_same_of_every_case() {
        let heeded = heeded().unwrap();
        let mut gate = Gate::new(&heeded);
        for case in Case::ALL {
            let events = case.events(3).unwrap();
            let bytes = if case == Case::Malformed { EVENT_BYTES - 1 } else { EVENT_BYTES };
            for json in &events {
                assert_eq!(json.len(), bytes, "{case:?}");
                assert!(case.is_found(json, &heeded), "{case:?}");
                assert_eq!(gate.take(&frame(json)).err(), case.refusal());
            }
            assert_ne!(events[0], events[1]);
        }
    }
}
