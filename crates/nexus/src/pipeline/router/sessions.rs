//! Sessions and agents: which prepared request may run next. One turn at a time per session, in
//! order of arrival; so many runs per agent, and beside them some for the timer. What is collected waits
//! for quiet and runs together, what interrupts ends the turn before it, what steers is given to it, what is too much is
//! dropped: as `nexus_core::lane` decides. Pure bookkeeping; the time comes in as milliseconds of one clock.
//!
//! What changes something answers the agents of which a run may be able to start now; the router then
//! asks [`Sessions::start_next`] of each until there is none.

use super::line::{Line, Waiting};
use crate::agent::project::session_to_wake;
use crate::pipeline::Prepared;
use nexus_core::config::Queue;
use nexus_core::lane::{self, COLLECT_BYTES_MAX, COLLECT_REQUESTS_MAX, Lane, UnderWay, Verdict};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

#[derive(Debug, Default)]
struct Session {
    busy: bool,
    /// The newest message of the turn under way.
    running: Option<i64>,
    /// The agent of that turn may take input.
    listens: bool,
    waiting: Line,
    /// The agent that the first of them is shown to, and its place there: never more than one, or two
    /// agents would take two turns of the session.
    shown: Option<(String, i64)>,
    /// When what is collected may run, while that is still to come.
    due_ms: Option<u64>,
}

/// Turns of the timer have slots of their own, this part of an agent's but one at least: they keep nobody waiting, and
/// nobody them.
const SYSTEM_PART: usize = 4;

#[derive(Debug, Default)]
struct Agent {
    people: Slots,
    system: Slots,
}

impl Agent {
    fn slots(&mut self, system: bool) -> &mut Slots {
        if system { &mut self.system } else { &mut self.people }
    }

    /// The slots in which the oldest request may begin that may begin at all, and that request.
    fn next(&self) -> Option<(bool, i64)> {
        let next = |system: bool, slots: &Slots| slots.next().map(|seq| (seq, system));
        let (seq, system) = [next(false, &self.people), next(true, &self.system)].into_iter().flatten().min()?;
        Some((system, seq))
    }
}

#[derive(Debug, Default)]
struct Slots {
    /// How many are taken: by runs, and by requests that are prepared again to run in theirs.
    taken: usize,
    max: usize,
    /// First request of each idle session, by seq: its session.
    ready: BTreeMap<i64, String>,
}

impl Slots {
    fn next(&self) -> Option<i64> {
        self.ready.first_key_value().filter(|_| self.taken < self.max).map(|(seq, _)| *seq)
    }
}

/// A request whose context was dropped and which is prepared again: it has its session and its slot.
#[derive(Debug)]
struct Again {
    session: String,
    agent: String,
    system: bool,
    came_ms: u64,
}

/// What a request that came to its session brings about.
#[derive(Debug, Default)]
pub(super) struct Pushed {
    /// Agents of which a run may be able to start now.
    pub(super) look: Vec<String>,
    /// The run that is to be aborted, by its newest message.
    pub(super) aborts: Option<i64>,
    /// It is for the run of that newest message to take in; if it can't be given to it, it is to be [restored](Sessions::restore).
    pub(super) steers: Option<(i64, Box<Prepared>)>,
    /// Those that are dropped, itself perhaps, with their contexts where they were kept.
    pub(super) dropped: Vec<(i64, Option<Box<Prepared>>)>,
    /// The next of its conversation need not wait until it runs.
    pub(super) lets_go: bool,
}

/// A turn that may begin.
#[derive(Debug)]
pub(super) struct Turn {
    /// Its newest message.
    pub(super) seq: i64,
    /// Without it the request is to be prepared again, and takes its slot meanwhile: no more contexts come
    /// back at once than may run.
    pub(super) prepared: Option<Box<Prepared>>,
    /// A newer message that waits ends it at once.
    pub(super) is_aborted: bool,
    /// Newer messages that it is to be given.
    pub(super) given: Vec<Prepared>,
}

/// All sessions with something to do.
#[derive(Debug, Default)]
pub(super) struct Sessions {
    sessions: HashMap<String, Session>,
    agents: HashMap<String, Agent>,
    again: BTreeMap<i64, Again>,
    /// Sessions that collect, by when they are due.
    delayed: BTreeSet<(u64, String)>,
    /// Sessions of projects that somebody stopped, each project once: what waits there stays until they are woken.
    resting: HashSet<String>,
    kept: usize,
}

impl Sessions {
    /// None yet, of which the same are to rest.
    pub(super) fn resting_as(before: Self) -> Self {
        Self { resting: before.resting, ..Self::default() }
    }

    /// Begins no turn of a session any more.
    pub(super) fn rest(&mut self, session: String, now_ms: u64) {
        self.resting.insert(session.clone());
        self.offer(&session, now_ms); // it is shown to nobody now
    }

    /// Whether any rests.
    pub(super) fn is_any_resting(&self) -> bool {
        !self.resting.is_empty()
    }

    /// Goes on with what waits in a session; the agent of which a run may be able to start now.
    pub(super) fn wake(&mut self, session: &str, now_ms: u64) -> Option<String> {
        if self.resting.remove(session) { self.offer(session, now_ms) } else { None }
    }

    /// Takes in a prepared request; its context is kept only while fewer than `kept_max` are, or if it
    /// was prepared again for a slot that it still has.
    pub(super) fn push(&mut self, seq: i64, prepared: Prepared, kept_max: usize, now_ms: u64) -> Pushed {
        let (session, agent) = (prepared.session.clone(), prepared.agent.name.clone());
        let (system, max_concurrent) = (prepared.is_system(), prepared.agent.max_concurrent.max(1));
        let (mode, queue) = prepared.queueing();
        let again = self.again.remove(&seq);
        let mut pushed = Pushed { lets_go: lane::lets_go(mode, &queue), ..Pushed::default() };
        let is_revived = prepared.is_revived;
        let mode = if is_revived { lane::on_its_own(mode) } else { mode };
        // What was interrupted is not one too many: it waited once, and had its turn.
        let queue = if is_revived { Queue::default() } else { queue };
        let entry = self.sessions.entry(session.clone()).or_default();
        // Whose turn had come already is neither dropped nor drops another.
        if again.is_none() {
            let running = entry.running.filter(|running| *running < seq);
            let under_way = running.map_or(UnderWay::Nothing, |_| UnderWay::of(entry.listens));
            let lane = Lane { under_way, waiting: entry.waiting.counted(), is_next: entry.waiting.is_empty() };
            match lane::decide(mode, &queue, lane) {
                Verdict::Steer => {
                    pushed.steers = running.map(|running| (running, Box::new(prepared)));
                    return pushed;
                }
                Verdict::Refuse => {
                    pushed.dropped.push((seq, Some(Box::new(prepared))));
                    return pushed;
                }
                Verdict::Wait { drops, aborts } => {
                    pushed.aborts = running.filter(|_| aborts);
                    let oldest = (0..drops).map_while(|_| entry.waiting.pop_counted());
                    pushed.dropped.extend(oldest.map(|(seq, waiting)| (seq, waiting.prepared)));
                    self.kept -= pushed.dropped.iter().filter(|(_, kept)| kept.is_some()).count();
                }
            }
        }
        let has_slot = again.as_ref().is_some_and(|had| had.session == session && had.agent == agent && had.system == system);
        let keep = has_slot || self.kept < kept_max;
        self.kept += usize::from(keep);
        let prepared = keep.then(|| Box::new(prepared));
        // It waits for quiet once, however often it is prepared.
        let came_ms = again.as_ref().map_or(now_ms, |had| had.came_ms);
        entry.waiting.insert(seq, Waiting { agent, system, mode, came_ms, is_revived, prepared, max_concurrent });
        // What it had may be another session's and another agent's by now: settings change.
        pushed.look = again.map(|had| self.released(&had.session, &had.agent, had.system, now_ms)).unwrap_or_default();
        pushed.look.extend(self.offer(&session, now_ms));
        pushed
    }

    /// Takes back a message that the run under way of its session did not take in: it waits for a turn of its own.
    pub(super) fn restore(&mut self, prepared: Box<Prepared>, kept_max: usize, now_ms: u64) {
        let keep = self.kept < kept_max;
        self.kept += usize::from(keep);
        let (seq, system, is_revived) = (prepared.request.event_seq, prepared.is_system(), prepared.is_revived);
        let (agent, max_concurrent) = (prepared.agent.name.clone(), prepared.agent.max_concurrent.max(1));
        let mode = lane::on_its_own(prepared.queueing().0);
        let entry = self.sessions.entry(prepared.session.clone()).or_default();
        let prepared = keep.then_some(prepared);
        entry.waiting.insert(seq, Waiting { agent, system, mode, came_ms: now_ms, is_revived, prepared, max_concurrent });
    }

    /// Shows an idle session's first request to its agent, which is answered; one that is collected, once it
    /// is due.
    fn offer(&mut self, session: &str, now_ms: u64) -> Option<String> {
        let entry = self.sessions.get_mut(session).filter(|entry| !entry.busy)?;
        if let Some(due_ms) = entry.due_ms.take() {
            self.delayed.remove(&(due_ms, session.to_owned()));
        }
        // An earlier arrival may have taken the place of a later one, which another agent was shown.
        if let Some((before, place)) = entry.shown.take()
            && let Some(lane) = self.agents.get_mut(&before)
        {
            lane.people.ready.remove(&place);
            lane.system.ready.remove(&place);
        }
        let (seq, first) = entry.waiting.first()?;
        // What only ends something may go: it starts nothing.
        let is_work = |kept: &Prepared| session_to_wake(&kept.request.adapter, &kept.request.event).is_some();
        if self.resting.contains(session) && first.prepared.as_ref().is_none_or(|kept| is_work(kept)) {
            return None;
        }
        let due_ms = entry.waiting.due_ms();
        if due_ms > now_ms {
            entry.due_ms = Some(due_ms);
            self.delayed.insert((due_ms, session.to_owned()));
            return None;
        }
        let (agent, system, max_concurrent) = (first.agent.clone(), first.system, first.max_concurrent);
        entry.shown = Some((agent.clone(), seq));
        let lane = self.agents.entry(agent.clone()).or_default();
        (lane.people.max, lane.system.max) = (max_concurrent, (max_concurrent / SYSTEM_PART).max(1));
        lane.slots(system).ready.insert(seq, session.to_owned());
        Some(agent)
    }

    /// When the next session that collects is due.
    pub(super) fn next_due_ms(&self) -> Option<u64> {
        self.delayed.first().map(|(due_ms, _)| *due_ms)
    }

    /// Shows what is due by now.
    pub(super) fn offer_due(&mut self, now_ms: u64) -> Vec<String> {
        let mut look = Vec::new();
        while self.next_due_ms().is_some_and(|due_ms| due_ms <= now_ms)
            && let Some((_, session)) = self.delayed.pop_first()
        {
            look.extend(self.offer(&session, now_ms));
        }
        look
    }

    /// The next turn of `agent` that may begin.
    pub(super) fn start_next(&mut self, agent: &str) -> Option<Turn> {
        let lane = self.agents.get_mut(agent)?;
        let (system, seq) = lane.next()?;
        let slots = lane.slots(system);
        let session = slots.ready.remove(&seq)?;
        let entry = self.sessions.get_mut(&session)?;
        let first = entry.waiting.remove(seq)?;
        entry.busy = true; // no later request of the session may pass
        entry.shown = None;
        slots.taken += 1;
        let Some(prepared) = first.prepared else {
            self.again.insert(seq, Again { session, agent: agent.to_owned(), system, came_ms: first.came_ms });
            return Some(Turn { seq, prepared: None, is_aborted: false, given: Vec::new() });
        };
        let prepared = if lane::collects(first.mode) { gather(prepared, &mut entry.waiting) } else { prepared };
        let seq = prepared.request.event_seq;
        let listens = prepared.agent.takes_input;
        let given = if listens { entry.waiting.pop_steering() } else { Vec::new() };
        self.kept -= 1 + prepared.fellows.len() + given.len();
        (entry.running, entry.listens) = (Some(seq), listens);
        let is_aborted = entry.waiting.after(seq).any(|waiting| lane::aborts(waiting.mode, UnderWay::of(listens)));
        Some(Turn { seq, prepared: Some(prepared), is_aborted, given })
    }

    /// A request that was prepared again came to its end instead: its session goes on.
    pub(super) fn forget(&mut self, seq: i64, now_ms: u64) -> Vec<String> {
        self.again.remove(&seq).map(|had| self.released(&had.session, &had.agent, had.system, now_ms)).unwrap_or_default()
    }

    /// A run is over, or never started.
    pub(super) fn released(&mut self, session: &str, agent: &str, system: bool, now_ms: u64) -> Vec<String> {
        if let Some(lane) = self.agents.get_mut(agent) {
            let slots = lane.slots(system);
            slots.taken = slots.taken.saturating_sub(1);
        }
        let mut look = vec![agent.to_owned()];
        look.extend(self.go_on(session, now_ms));
        look
    }

    fn go_on(&mut self, session: &str, now_ms: u64) -> Option<String> {
        let entry = self.sessions.get_mut(session)?;
        (entry.busy, entry.running) = (false, None);
        if entry.waiting.is_empty() {
            self.sessions.remove(session);
            return None;
        }
        self.offer(session, now_ms)
    }

    pub(super) fn running(&self) -> usize {
        let taken: usize = self.agents.values().map(|agent| agent.people.taken + agent.system.taken).sum();
        taken.saturating_sub(self.again.len())
    }
}

/// Takes those that wait behind `first` and may be answered with it; the newest of them leads.
fn gather(first: Box<Prepared>, waiting: &mut Line) -> Box<Prepared> {
    let mut all = vec![first];
    let mut bytes = all[0].request.event.content.len();
    while all.len() < COLLECT_REQUESTS_MAX
        && let Some((seq, next)) = waiting.first()
        && lane::collects(next.mode)
        && let Some(prepared) = &next.prepared
        && prepared.may_share(&all[0])
        && bytes.saturating_add(prepared.request.event.content.len()) <= COLLECT_BYTES_MAX
    {
        bytes += prepared.request.event.content.len();
        all.extend(waiting.remove(seq).and_then(|next| next.prepared));
    }
    let mut lead = all.pop().expect("the first is among them");
    lead.fellows = all.into_iter().map(|fellow| *fellow).collect();
    lead
}
