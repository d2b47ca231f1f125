//! Sessions and agents: which prepared request may run next. One turn at a time per session, in
//! order of arrival; so many runs per agent, of which the timer may take a quarter. Pure bookkeeping.

use crate::pipeline::Prepared;
use std::collections::{BTreeMap, HashMap};

#[derive(Debug, Default)]
struct Session {
    busy: bool,
    waiting: BTreeMap<i64, Waiting>,
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
    running: usize,
    running_system: usize,
    /// First request of each idle session, by seq: (session, from the timer).
    ready: BTreeMap<i64, (String, bool)>,
    max_concurrent: usize,
}

/// All sessions with something to do.
#[derive(Debug, Default)]
pub(super) struct Sessions {
    sessions: HashMap<String, Session>,
    agents: HashMap<String, Agent>,
    /// Requests whose context was dropped and which are prepared again, with the session that waits.
    again: BTreeMap<i64, String>,
    kept: usize,
}

impl Sessions {
    /// Takes in a prepared request; its context is kept only while fewer than `kept_max` are.
    pub(super) fn push(&mut self, seq: i64, prepared: Prepared, kept_max: usize) {
        let (session, agent) = (prepared.session.clone(), prepared.agent.name.clone());
        let (system, max_concurrent) = (prepared.is_system(), prepared.agent.max_concurrent.max(1));
        let mine = self.again.remove(&seq).is_some();
        let keep = mine || self.kept < kept_max;
        self.kept += usize::from(keep);
        let waiting = Waiting { agent, system, prepared: keep.then(|| Box::new(prepared)), max_concurrent };
        let entry = self.sessions.entry(session.clone()).or_default();
        entry.busy &= !mine;
        entry.waiting.insert(seq, waiting);
        if !entry.busy {
            self.offer(&session);
        }
    }

    /// Shows the session's first request to its agent.
    fn offer(&mut self, session: &str) {
        let Some(entry) = self.sessions.get(session) else { return };
        if let Some((&seq, first)) = entry.waiting.first_key_value() {
            let agent = self.agents.entry(first.agent.clone()).or_default();
            agent.max_concurrent = first.max_concurrent;
            // An earlier arrival may have taken the place of a later one that was shown before.
            agent.ready.retain(|_, (name, _)| name != session);
            agent.ready.insert(seq, (session.to_owned(), first.system));
        }
    }

    /// The next run of `agent` that may start. Without its context it is to be prepared again.
    pub(super) fn start_next(&mut self, agent: &str) -> Option<(i64, Option<Box<Prepared>>)> {
        let lane = self.agents.get_mut(agent)?;
        if lane.running >= lane.max_concurrent {
            return None;
        }
        let system_max = (lane.max_concurrent / 4).max(1);
        let system_full = lane.running_system >= system_max;
        let seq = lane.ready.iter().find(|(_, (_, system))| !(*system && system_full)).map(|(&seq, _)| seq)?;
        let (session, system) = lane.ready.remove(&seq)?;
        let entry = self.sessions.get_mut(&session)?;
        let mut waiting = entry.waiting.remove(&seq)?;
        let prepared = waiting.prepared.take();
        match &prepared {
            Some(_) => {
                self.kept -= 1;
                entry.busy = true;
                lane.running += 1;
                lane.running_system += usize::from(system);
            }
            None => {
                entry.busy = true; // its place is kept: no later request of the session may pass
                drop(self.again.insert(seq, session));
            }
        }
        Some((seq, prepared))
    }

    /// A request that was prepared again came to its end instead: its session goes on. Answers the
    /// agent of the session's next request.
    pub(super) fn forget(&mut self, seq: i64) -> Option<String> {
        let session = self.again.remove(&seq)?;
        self.go_on(&session)
    }

    /// A run is over, or never started. Answers the agent of the session's next request.
    pub(super) fn released(&mut self, session: &str, agent: &str, system: bool) -> Option<String> {
        if let Some(lane) = self.agents.get_mut(agent) {
            lane.running = lane.running.saturating_sub(1);
            lane.running_system = lane.running_system.saturating_sub(usize::from(system));
        }
        self.go_on(session)
    }

    fn go_on(&mut self, session: &str) -> Option<String> {
        let entry = self.sessions.get_mut(session)?;
        entry.busy = false;
        let Some((_, first)) = entry.waiting.first_key_value() else {
            self.sessions.remove(session);
            return None;
        };
        let agent = first.agent.clone();
        self.offer(session);
        Some(agent)
    }

    pub(super) fn running(&self) -> usize {
        self.agents.values().map(|agent| agent.running).sum()
    }
}
