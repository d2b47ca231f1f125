//! Lanes and sessions together, driven as the router drives them, against a model that is nothing but
//! a list of requests.
#![allow(clippy::unwrap_used)]

mod cases;

use super::lanes::Lanes;
use super::sessions::{Pushed, Sessions, Turn};
use crate::pipeline::running::Abort;
use crate::pipeline::{Agent, Prepared};
use crate::routes::TIMER_CHANNEL;
use nexus_core::config::{QueueDrop, QueueMode};
use nexus_core::event::Event;
use nexus_core::ids::AccountKey;
use nexus_core::lane::{self, UnderWay};
use nexus_core::request::NexusRequest;
use proptest::prelude::*;
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

const CONVERSATIONS: usize = 5;
const SESSIONS: usize = 3;
const ACCOUNTS: usize = 2;
/// Slots of each agent.
const SLOTS: [usize; 3] = [1, 2, 5];
/// Requests in stages 1 to 5 at once, but for those that are prepared again.
const PREPARING_MAX: usize = 3;
/// Contexts kept in memory, at most: few, so that most are dropped.
const KEPT_MAX: usize = 5;
/// Longer than anything that is collected waits, in milliseconds.
const LONG_MS: u64 = 10_000;

/// What stages 1 to 5 find out about a request.
#[derive(Debug, Clone, Copy)]
struct Found {
    session: usize,
    agent: usize,
    system: bool,
    mode: QueueMode,
    cap: Option<(usize, QueueDrop)>,
}

#[derive(Debug, Clone)]
enum Do {
    /// A request of this conversation is admitted.
    Arrive(usize),
    /// Stages 1 to 5 of one request are over, with an end (`None`) or a run to come.
    Prepare(usize, Option<Found>),
    /// A run is over.
    Finish(usize),
    Hold(usize),
    Release(usize),
    /// So many milliseconds pass.
    Pass(u64),
}

fn any_do() -> impl Strategy<Value = Do> {
    let modes = vec![QueueMode::Followup, QueueMode::Collect, QueueMode::Collect, QueueMode::Interrupt, QueueMode::Steer];
    let cap = prop::option::weighted(0.3, (1..4_usize, prop::sample::select(vec![QueueDrop::Old, QueueDrop::New])));
    let found = (0..SESSIONS, 0..SLOTS.len(), any::<bool>(), prop::sample::select(modes), cap)
        .prop_map(|(session, agent, system, mode, cap)| Found { session, agent, system, mode, cap });
    prop_oneof![
        6 => (0..CONVERSATIONS).prop_map(Do::Arrive),
        6 => (0..64_usize, prop::option::weighted(0.9, found)).prop_map(|(which, found)| Do::Prepare(which, found)),
        4 => (0..64_usize).prop_map(Do::Finish),
        1 => (0..ACCOUNTS).prop_map(Do::Hold),
        1 => (0..ACCOUNTS).prop_map(Do::Release),
        2 => prop::sample::select(vec![1_u64, 300, 500, LONG_MS]).prop_map(Do::Pass),
    ]
}

/// Where the model has a request.
#[derive(Debug, Clone, Copy)]
enum At {
    Waiting,
    Preparing,
    /// It waits for its session, since then.
    Ready(Found, u64),
    /// Its turn has come, and its context is made again; it waited since then.
    Again(Found, u64),
    Running(Found),
    /// It is answered in the turn of that one.
    Joined(i64),
}

impl At {
    /// Whether it keeps the next request of its conversation waiting, unless it was let go.
    fn holds_conversation(self) -> bool {
        match self {
            Self::Preparing | Self::Ready(..) | Self::Again(..) => true,
            Self::Waiting | Self::Running(_) | Self::Joined(_) => false,
        }
    }

    fn is_in_stages(self) -> bool {
        match self {
            Self::Preparing | Self::Again(..) => true,
            Self::Waiting | Self::Ready(..) | Self::Running(_) | Self::Joined(_) => false,
        }
    }

    /// What has a slot of its agent and the turn of its session.
    fn turn(self) -> Option<Found> {
        match self {
            Self::Again(found, _) | Self::Running(found) => Some(found),
            Self::Waiting | Self::Preparing | Self::Ready(..) | Self::Joined(_) => None,
        }
    }

    fn running(self) -> Option<Found> {
        match self {
            Self::Running(found) => Some(found),
            Self::Waiting | Self::Preparing | Self::Ready(..) | Self::Again(..) | Self::Joined(_) => None,
        }
    }

    fn ready(self) -> Option<(Found, u64)> {
        match self {
            Self::Ready(found, since_ms) => Some((found, since_ms)),
            Self::Waiting | Self::Preparing | Self::Again(..) | Self::Running(_) | Self::Joined(_) => None,
        }
    }
}

fn account(n: usize) -> AccountKey {
    AccountKey::new("fake", n.to_string())
}

fn conversation(n: usize) -> String {
    format!("conversation {n}")
}

fn session(n: usize) -> String {
    format!("session {n}")
}

fn agent(n: usize) -> String {
    format!("agent {n}")
}

fn prepared(seq: i64, found: Found) -> Prepared {
    let event = Event {
        content: String::new(),
        channel: if found.system { TIMER_CHANNEL } else { "fake" }.to_owned(),
        ..crate::samples::event(format!("fake:{seq}"))
    };
    let agent = Agent { name: agent(found.agent), max_concurrent: SLOTS[found.agent], ..crate::samples::echo() };
    let mut request = NexusRequest::new(format!("req_{seq}"), seq, 0, event);
    let mut access = json!({ "decision": "allow", "permissions": {}, "queue_mode": found.mode });
    if let Some((cap, drop)) = found.cap {
        access["queue"] = json!({ "cap": cap, "drop": drop });
    }
    request.access = Some(serde_json::from_value(access).unwrap());
    Prepared {
        adapter: "fake".to_owned(),
        request,
        agent: Arc::new(agent),
        session: session(found.session),
        formerly: None,
        fellows: Vec::new(),
        joined: Vec::new(),
        abort: Abort::default(),
        spent: Duration::ZERO,
        timeout: Duration::ZERO,
        is_revived: false,
        is_to_end: false,
    }
}

/// The bookkeeping beside its model: every open request with its conversation and where it is.
#[derive(Default)]
struct World {
    lanes: Lanes,
    sessions: Sessions,
    requests: BTreeMap<i64, (usize, At)>,
    /// Those whose conversation goes on without them.
    gone: BTreeSet<i64>,
    holds: [usize; ACCOUNTS],
    admitted: i64,
    now_ms: u64,
    kept_max: usize,
}

impl World {
    fn keeping(kept_max: usize) -> Self {
        Self { kept_max, ..Self::default() }
    }

    fn step(&mut self, what: Do) {
        match what {
            Do::Arrive(conversation) => self.arrive(conversation),
            Do::Prepare(which, found) => {
                if let Some(seq) = self.pick(which, At::is_in_stages) {
                    self.prepare(seq, found);
                }
            }
            Do::Finish(which) => {
                if let Some(seq) = self.pick(which, |at| at.running().is_some()) {
                    self.finish(seq);
                }
            }
            Do::Hold(n) => {
                self.holds[n] += 1;
                self.lanes.hold(&account(n));
            }
            Do::Release(n) => {
                self.holds[n] = self.holds[n].saturating_sub(1);
                self.lanes.release(&account(n));
            }
            Do::Pass(ms) => self.now_ms += ms,
        }
        let agents = self.sessions.offer_due(self.now_ms);
        self.start_runs(&agents);
        self.start_lanes();
        self.check_nothing_is_forgotten();
    }

    fn pick(&self, which: usize, wanted: impl Fn(At) -> bool) -> Option<i64> {
        let candidates: Vec<i64> = self.requests.iter().filter(|(_, (_, at))| wanted(*at)).map(|(&seq, _)| seq).collect();
        candidates.get(which % candidates.len().max(1)).copied()
    }

    fn arrive(&mut self, n: usize) {
        self.admitted += 1;
        self.lanes.push(&conversation(n), &account(n % ACCOUNTS), self.admitted);
        self.requests.insert(self.admitted, (n, At::Waiting));
    }

    fn let_go(&mut self, seq: i64) {
        if self.gone.insert(seq) {
            self.lanes.finished(&conversation(self.requests[&seq].0));
        }
    }

    fn prepare(&mut self, seq: i64, found: Option<Found>) {
        self.lanes.prepared();
        let Some(found) = found else {
            self.let_go(seq);
            self.requests.remove(&seq).unwrap();
            let agents = self.sessions.forget(seq, self.now_ms);
            return self.start_runs(&agents);
        };
        let had_turn = self.requests[&seq].1.turn().is_some();
        let drops = if had_turn { Vec::new() } else { self.drops(seq, found) };
        let running = self.requests.iter().find(|(_, (_, at))| at.running().is_some_and(|other| other.session == found.session));
        let aborts = running.map(|(&running, _)| running).filter(|running| *running < seq);
        let aborts = aborts.filter(|_| lane::aborts(found.mode, UnderWay::Deaf) && !had_turn && !drops.contains(&seq));
        let since_ms = if let At::Again(_, since_ms) = self.requests[&seq].1 { since_ms } else { self.now_ms };
        self.requests.get_mut(&seq).unwrap().1 = At::Ready(found, since_ms);
        let pushed = self.sessions.push(seq, prepared(seq, found), self.kept_max, self.now_ms);
        assert_eq!(pushed.aborts, aborts, "{seq} comes to {:?}", self.requests);
        assert!(pushed.steers.is_none(), "no agent here takes input");
        assert_eq!(pushed.dropped.iter().map(|(seq, _)| *seq).collect::<Vec<_>>(), drops);
        self.pushed(seq, pushed);
    }

    fn pushed(&mut self, seq: i64, pushed: Pushed) {
        if pushed.lets_go {
            self.let_go(seq);
        }
        for (seq, _) in pushed.dropped {
            self.let_go(seq);
            self.requests.remove(&seq).unwrap();
        }
        self.start_runs(&pushed.look);
    }

    /// Those that the cap has no room for when `seq` comes.
    fn drops(&self, seq: i64, found: Found) -> Vec<i64> {
        let Some((cap, which)) = found.cap else { return Vec::new() };
        let waiting = self.ready_in(found.session);
        match which {
            QueueDrop::New if waiting.len() >= cap => vec![seq],
            QueueDrop::New => Vec::new(),
            QueueDrop::Old => waiting.iter().copied().take((waiting.len() + 1).saturating_sub(cap)).collect(),
        }
    }

    fn finish(&mut self, seq: i64) {
        let (_, at) = self.requests.remove(&seq).unwrap();
        self.requests.retain(|_, (_, at)| !matches!(at, At::Joined(lead) if *lead == seq));
        let found = at.running().unwrap();
        let agents = self.sessions.released(&session(found.session), &agent(found.agent), found.system, self.now_ms);
        self.start_runs(&agents);
    }

    fn start_lanes(&mut self) {
        while let Some(seq) = self.lanes.start_next(PREPARING_MAX) {
            let (n, at) = self.requests[&seq];
            assert!(matches!(at, At::Waiting), "{seq} was started while {at:?}");
            assert_eq!(self.holds[n % ACCOUNTS], 0, "{seq} is of an account that is held");
            assert_eq!(self.next_of(n), Some(seq), "out of order, or two of a conversation at once");
            assert!(self.count(At::is_in_stages) < PREPARING_MAX, "too many in stages 1 to 5");
            self.requests.get_mut(&seq).unwrap().1 = At::Preparing;
        }
    }

    fn start_runs(&mut self, agents: &[String]) {
        for agent in agents {
            while let Some(turn) = self.sessions.start_next(agent) {
                self.start_turn(agent, turn);
            }
        }
    }

    fn start_turn(&mut self, agent: &str, turn: Turn) {
        let Turn { seq, prepared, is_aborted, given } = turn;
        assert!(given.is_empty(), "no agent here takes input");
        let (found, since_ms) =
            self.requests[&seq].1.ready().unwrap_or_else(|| panic!("{seq} was started while {:?}", self.requests[&seq]));
        assert_eq!(agent, self::agent(found.agent));
        let Some(prepared) = prepared else {
            assert_eq!(self.next_turn(found.session), Some(seq), "out of order, too early, or two turns of a session at once");
            assert!(self.has_slot(found), "{seq} has no slot");
            self.lanes.preparing_again();
            self.requests.get_mut(&seq).unwrap().1 = At::Again(found, since_ms);
            return;
        };
        let group: Vec<i64> = prepared.requests().map(|request| request.event_seq).collect();
        let waiting = self.ready_in(found.session);
        assert_eq!(self.next_turn(found.session), group.first().copied(), "out of order, too early, or two turns of a session at once");
        assert!(waiting.starts_with(&group) && group.last() == Some(&seq), "{group:?} of {waiting:?}");
        assert!(self.has_slot(found), "{seq} has no slot");
        for one in &group {
            let (other, _) = self.requests[one].1.ready().unwrap();
            assert_eq!((other.agent, other.system), (found.agent, found.system));
            assert!(group.len() == 1 || other.mode == QueueMode::Collect, "{one} is not to be collected");
        }
        let interrupts = |one: &i64| self.requests[one].1.ready().is_some_and(|(other, _)| lane::aborts(other.mode, UnderWay::Deaf));
        assert_eq!(is_aborted, waiting[group.len()..].iter().any(interrupts));
        for one in group {
            self.let_go(one);
            self.requests.get_mut(&one).unwrap().1 = if one == seq { At::Running(found) } else { At::Joined(seq) };
        }
    }

    fn count(&self, wanted: impl Fn(At) -> bool) -> usize {
        self.requests.values().filter(|(_, at)| wanted(*at)).count()
    }

    /// The request that a conversation may prepare next.
    fn next_of(&self, n: usize) -> Option<i64> {
        let mine = || self.requests.iter().filter(move |(_, (conversation, _))| *conversation == n);
        let is_busy = mine().any(|(seq, (_, at))| at.holds_conversation() && !self.gone.contains(seq));
        let first = mine().find(|(_, (_, at))| matches!(at, At::Waiting)).map(|(&seq, _)| seq);
        first.filter(|_| !is_busy)
    }

    /// Those that wait for a session, in their order.
    fn ready_in(&self, session: usize) -> Vec<i64> {
        let waits = |at: &At| at.ready().is_some_and(|(found, _)| found.session == session);
        self.requests.iter().filter(|(_, (_, at))| waits(at)).map(|(&seq, _)| seq).collect()
    }

    /// The request whose turn it is in a session.
    fn next_turn(&self, session: usize) -> Option<i64> {
        let is_busy = self.count(|at| at.turn().is_some_and(|found| found.session == session)) > 0;
        let waiting = self.ready_in(session);
        let came = waiting.iter().filter_map(|seq| self.requests[seq].1.ready());
        let collected: Vec<u64> = came.filter(|(found, _)| found.mode == QueueMode::Collect).map(|(_, since_ms)| since_ms).collect();
        let first = waiting.first().and_then(|seq| self.requests[seq].1.ready());
        let is_collected = first.is_some_and(|(first, _)| first.mode == QueueMode::Collect);
        let due_ms = match (collected.iter().min(), collected.iter().max()) {
            (Some(first), Some(last)) if is_collected => lane::due_ms(*first, *last),
            (_, _) => 0,
        };
        waiting.first().copied().filter(|_| !is_busy && due_ms <= self.now_ms)
    }

    fn has_slot(&self, wanted: Found) -> bool {
        let of_people = SLOTS[wanted.agent];
        let slots = if wanted.system { (of_people / 4).max(1) } else { of_people };
        let taken = |found: Found| found.agent == wanted.agent && found.system == wanted.system;
        self.count(|at| at.turn().is_some_and(taken)) < slots
    }

    fn check_nothing_is_forgotten(&self) {
        let in_stages = self.count(At::is_in_stages);
        assert_eq!(self.lanes.preparing(), in_stages);
        assert_eq!(self.sessions.running(), self.count(|at| at.running().is_some()));
        assert!(self.sessions.next_due_ms().is_none_or(|due_ms| due_ms > self.now_ms));
        for n in 0..CONVERSATIONS {
            let may_start = self.holds[n % ACCOUNTS] == 0 && in_stages < PREPARING_MAX;
            assert!(!may_start || self.next_of(n).is_none(), "conversation {n} was forgotten: {:?}", self.requests);
        }
        for session in 0..SESSIONS {
            let next = self.next_turn(session).and_then(|seq| self.requests[&seq].1.ready());
            assert!(!next.is_some_and(|(found, _)| self.has_slot(found)), "session {session} was forgotten: {:?}", self.requests);
        }
    }

    /// Lets everything come to its end.
    fn drain(&mut self) {
        for n in 0..ACCOUNTS {
            while self.holds[n] > 0 {
                self.step(Do::Release(n));
            }
        }
        while !self.requests.is_empty() {
            if self.pick(0, |at| at.running().is_some()).is_some() {
                self.step(Do::Finish(0));
            } else if self.pick(0, At::is_in_stages).is_some() {
                self.step(Do::Prepare(0, found(0, 0)));
            } else {
                assert!(self.sessions.next_due_ms().is_some(), "nothing moves any more: {:?}", self.requests);
                self.step(Do::Pass(LONG_MS));
            }
        }
    }
}

fn found(session: usize, agent: usize) -> Option<Found> {
    moded(session, agent, QueueMode::Followup)
}

fn moded(session: usize, agent: usize, mode: QueueMode) -> Option<Found> {
    Some(Found { session, agent, system: false, mode, cap: None })
}

proptest! {
    /// In whatever order things happen: one at a time per conversation and per session, each in its
    /// order, together only what is collected, never more than the limits, and everything comes to its end.
    #[test]
    fn order_and_limits_hold_and_nothing_is_forgotten(kept_max in 1..=KEPT_MAX, script in prop::collection::vec(any_do(), 0..150)) {
        let mut world = World::keeping(kept_max);
        for what in script {
            world.step(what);
        }
        world.drain();
    }
}
