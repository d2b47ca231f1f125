//! Sessions and agents: which prepared request may run next. One turn at a time per session, in
//! order of arrival; so many runs per agent, of which the timer may take a quarter. Pure bookkeeping.
//!
//! What changes something answers the agents of which a run may be able to start now; the router then
//! asks [`Sessions::start_next`] of each until there is none.

use crate::pipeline::Prepared;
use std::collections::{BTreeMap, HashMap};

#[derive(Debug, Default)]
struct Session {
    busy: bool,
    waiting: BTreeMap<i64, Waiting>,
    /// The agent that the first of them is shown to, and its place there: never more than one, or two
    /// agents would take two turns of the session.
    shown: Option<(String, i64)>,
}

#[derive(Debug)]
struct Waiting {
    agent: String,
    system: bool,
    /// `None` when memory had no room for it.
    prepared: Option<Box<Prepared>>,
    max_concurrent: usize,
}

#[derive(Debug, Default)]
struct Agent {
    /// Slots that are taken: by runs, and by requests that are prepared again to run in theirs.
    taken: usize,
    taken_by_system: usize,
    /// First request of each idle session, by seq: (session, from the timer).
    ready: BTreeMap<i64, (String, bool)>,
    max_concurrent: usize,
}

/// A request whose context was dropped and which is prepared again: it has its session and its slot.
#[derive(Debug)]
struct Again {
    session: String,
    agent: String,
    system: bool,
}

/// All sessions with something to do.
#[derive(Debug, Default)]
pub(super) struct Sessions {
    sessions: HashMap<String, Session>,
    agents: HashMap<String, Agent>,
    again: BTreeMap<i64, Again>,
    kept: usize,
}

impl Sessions {
    /// Takes in a prepared request; its context is kept only while fewer than `kept_max` are, or if it
    /// was prepared again for a slot that it still has.
    pub(super) fn push(&mut self, seq: i64, prepared: Prepared, kept_max: usize) -> Vec<String> {
        let (session, agent) = (prepared.session.clone(), prepared.agent.name.clone());
        let (system, max_concurrent) = (prepared.is_system(), prepared.agent.max_concurrent.max(1));
        let again = self.again.remove(&seq);
        let has_slot = again.as_ref().is_some_and(|had| had.session == session && had.agent == agent && had.system == system);
        let keep = has_slot || self.kept < kept_max;
        self.kept += usize::from(keep);
        let waiting = Waiting { agent, system, prepared: keep.then(|| Box::new(prepared)), max_concurrent };
        self.sessions.entry(session.clone()).or_default().waiting.insert(seq, waiting);
        // What it had may be another session's and another agent's by now: settings change.
        let mut look = again.map(|had| self.released(&had.session, &had.agent, had.system)).unwrap_or_default();
        look.extend(self.offer(&session));
        look
    }

    /// Shows an idle session's first request to its agent, which is answered.
    fn offer(&mut self, session: &str) -> Option<String> {
        let entry = self.sessions.get_mut(session).filter(|entry| !entry.busy)?;
        let (&seq, first) = entry.waiting.first_key_value()?;
        let (agent, system, max_concurrent) = (first.agent.clone(), first.system, first.max_concurrent);
        // An earlier arrival may have taken the place of a later one, which another agent was shown.
        if let Some((before, place)) = entry.shown.replace((agent.clone(), seq))
            && let Some(lane) = self.agents.get_mut(&before)
        {
            lane.ready.remove(&place);
        }
        let lane = self.agents.entry(agent.clone()).or_default();
        lane.max_concurrent = max_concurrent;
        lane.ready.insert(seq, (session.to_owned(), system));
        Some(agent)
    }

    /// The next run of `agent` that may start. Without its context it is to be prepared again, and
    /// takes its slot meanwhile: no more contexts come back at once than may run.
    pub(super) fn start_next(&mut self, agent: &str) -> Option<(i64, Option<Box<Prepared>>)> {
        let lane = self.agents.get_mut(agent)?;
        if lane.taken >= lane.max_concurrent {
            return None;
        }
        let system_max = (lane.max_concurrent / 4).max(1);
        let system_full = lane.taken_by_system >= system_max;
        let seq = lane.ready.iter().find(|(_, (_, system))| !(*system && system_full)).map(|(&seq, _)| seq)?;
        let (session, system) = lane.ready.remove(&seq)?;
        let entry = self.sessions.get_mut(&session)?;
        let waiting = entry.waiting.remove(&seq)?;
        entry.busy = true; // no later request of the session may pass
        entry.shown = None;
        lane.taken += 1;
        lane.taken_by_system += usize::from(system);
        match &waiting.prepared {
            Some(_) => self.kept -= 1,
            None => drop(self.again.insert(seq, Again { session, agent: agent.to_owned(), system })),
        }
        Some((seq, waiting.prepared))
    }

    /// A request that was prepared again came to its end instead: its session goes on.
    pub(super) fn forget(&mut self, seq: i64) -> Vec<String> {
        self.again.remove(&seq).map(|had| self.released(&had.session, &had.agent, had.system)).unwrap_or_default()
    }

    /// A run is over, or never started.
    pub(super) fn released(&mut self, session: &str, agent: &str, system: bool) -> Vec<String> {
        if let Some(lane) = self.agents.get_mut(agent) {
            lane.taken = lane.taken.saturating_sub(1);
            lane.taken_by_system = lane.taken_by_system.saturating_sub(usize::from(system));
        }
        let mut look = vec![agent.to_owned()];
        look.extend(self.go_on(session));
        look
    }

    fn go_on(&mut self, session: &str) -> Option<String> {
        let entry = self.sessions.get_mut(session)?;
        entry.busy = false;
        if entry.waiting.is_empty() {
            self.sessions.remove(session);
            return None;
        }
        self.offer(session)
    }

    pub(super) fn running(&self) -> usize {
        let taken: usize = self.agents.values().map(|agent| agent.taken).sum();
        taken.saturating_sub(self.again.len())
    }
}
