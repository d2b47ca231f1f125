//! Lanes and sessions together, driven as the router drives them, against a model that is nothing but
//! a list of requests; and what becomes of a hold whose holder fails.
#![allow(clippy::unwrap_used)]

use super::lanes::Lanes;
use super::sessions::Sessions;
use super::{Hold, INBOX_MAX, Router, Told};
use crate::agent::Runner;
use crate::pipeline::{Agent, Prepared};
use crate::routes::TIMER_CHANNEL;
use nexus_core::event::Event;
use nexus_core::ids::AccountKey;
use nexus_core::request::NexusRequest;
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

const CONVERSATIONS: usize = 5;
const SESSIONS: usize = 3;
const ACCOUNTS: usize = 2;
/// Slots of each agent.
const SLOTS: [usize; 3] = [1, 2, 5];
/// Requests in stages 1 to 5 at once, but for those that are prepared again.
const PREPARING_MAX: usize = 3;
/// How long anything here may take: a hold that is never let go must fail, not hang.
const DEADLINE: Duration = Duration::from_secs(30);
/// Contexts kept in memory: few, so that most are dropped.
const KEPT_MAX: usize = 1;

/// What stages 1 to 5 find out about a request.
#[derive(Debug, Clone, Copy)]
struct Found {
    session: usize,
    agent: usize,
    system: bool,
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
}

fn any_do() -> impl Strategy<Value = Do> {
    let found = (0..SESSIONS, 0..SLOTS.len(), any::<bool>()).prop_map(|(session, agent, system)| Found { session, agent, system });
    prop_oneof![
        6 => (0..CONVERSATIONS).prop_map(Do::Arrive),
        6 => (0..64_usize, prop::option::weighted(0.9, found)).prop_map(|(which, found)| Do::Prepare(which, found)),
        4 => (0..64_usize).prop_map(Do::Finish),
        1 => (0..ACCOUNTS).prop_map(Do::Hold),
        1 => (0..ACCOUNTS).prop_map(Do::Release),
    ]
}

/// Where the model has a request.
#[derive(Debug, Clone, Copy)]
enum At {
    Waiting,
    Preparing,
    /// It waits for its session.
    Ready(Found),
    /// Its turn has come, and its context is made again.
    Again(Found),
    Running(Found),
}

impl At {
    /// Whether it keeps the next request of its conversation waiting.
    fn holds_conversation(self) -> bool {
        match self {
            Self::Preparing | Self::Ready(_) | Self::Again(_) => true,
            Self::Waiting | Self::Running(_) => false,
        }
    }

    fn is_in_stages(self) -> bool {
        match self {
            Self::Preparing | Self::Again(_) => true,
            Self::Waiting | Self::Ready(_) | Self::Running(_) => false,
        }
    }

    /// What has a slot of its agent and the turn of its session.
    fn turn(self) -> Option<Found> {
        match self {
            Self::Again(found) | Self::Running(found) => Some(found),
            Self::Waiting | Self::Preparing | Self::Ready(_) => None,
        }
    }

    fn running(self) -> Option<Found> {
        match self {
            Self::Running(found) => Some(found),
            Self::Waiting | Self::Preparing | Self::Ready(_) | Self::Again(_) => None,
        }
    }

    fn ready(self) -> Option<Found> {
        match self {
            Self::Ready(found) => Some(found),
            Self::Waiting | Self::Preparing | Self::Again(_) | Self::Running(_) => None,
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
    let agent = Agent {
        name: agent(found.agent),
        runner: Runner::Echo,
        timeout: Duration::ZERO,
        max_concurrent: SLOTS[found.agent],
        harmless: true,
        acts: false,
        memory: nexus_core::config::Memory::default(),
    };
    Prepared {
        adapter: "fake".to_owned(),
        request: NexusRequest::new(format!("req_{seq}"), seq, 0, event),
        agent: Arc::new(agent),
        session: session(found.session),
        spent: Duration::ZERO,
        timeout: Duration::ZERO,
    }
}

/// The bookkeeping beside its model: every open request with its conversation and where it is.
#[derive(Default)]
struct World {
    lanes: Lanes,
    sessions: Sessions,
    requests: BTreeMap<i64, (usize, At)>,
    holds: [usize; ACCOUNTS],
    admitted: i64,
}

impl World {
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
        }
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

    fn prepare(&mut self, seq: i64, found: Option<Found>) {
        self.lanes.prepared();
        match found {
            Some(found) => {
                self.requests.get_mut(&seq).unwrap().1 = At::Ready(found);
                let agents = self.sessions.push(seq, prepared(seq, found), KEPT_MAX);
                self.start_runs(&agents);
            }
            None => {
                let (n, _) = self.requests.remove(&seq).unwrap();
                self.lanes.finished(&conversation(n));
                let agents = self.sessions.forget(seq);
                self.start_runs(&agents);
            }
        }
    }

    fn finish(&mut self, seq: i64) {
        let (_, at) = self.requests.remove(&seq).unwrap();
        let found = at.running().unwrap();
        let agents = self.sessions.released(&session(found.session), &agent(found.agent), found.system);
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
            while let Some((seq, context)) = self.sessions.start_next(agent) {
                let (n, at) = self.requests[&seq];
                let found = at.ready().unwrap_or_else(|| panic!("{seq} was started while {at:?}"));
                assert_eq!(*agent, self::agent(found.agent));
                assert_eq!(self.next_turn(found.session), Some(seq), "out of order, or two turns of a session at once");
                assert!(self.has_slot(found), "{seq} has no slot");
                let at = if context.is_some() {
                    self.lanes.finished(&conversation(n));
                    At::Running(found)
                } else {
                    self.lanes.preparing_again();
                    At::Again(found)
                };
                self.requests.get_mut(&seq).unwrap().1 = at;
            }
        }
    }

    fn count(&self, wanted: impl Fn(At) -> bool) -> usize {
        self.requests.values().filter(|(_, at)| wanted(*at)).count()
    }

    /// The request that a conversation may prepare next.
    fn next_of(&self, n: usize) -> Option<i64> {
        let mine = || self.requests.iter().filter(move |(_, (conversation, _))| *conversation == n);
        let is_busy = mine().any(|(_, (_, at))| at.holds_conversation());
        let first = mine().find(|(_, (_, at))| matches!(at, At::Waiting)).map(|(&seq, _)| seq);
        first.filter(|_| !is_busy)
    }

    /// The request whose turn it is in a session.
    fn next_turn(&self, session: usize) -> Option<i64> {
        let is_busy = self.count(|at| at.turn().is_some_and(|found| found.session == session)) > 0;
        let first = self.requests.iter().find(|(_, (_, at))| at.ready().is_some_and(|found| found.session == session));
        first.map(|(&seq, _)| seq).filter(|_| !is_busy)
    }

    fn has_slot(&self, wanted: Found) -> bool {
        let slots = SLOTS[wanted.agent];
        let taken = self.count(|at| at.turn().is_some_and(|found| found.agent == wanted.agent));
        let by_system = self.count(|at| at.turn().is_some_and(|found| found.agent == wanted.agent && found.system));
        taken < slots && (!wanted.system || by_system < (slots / 4).max(1))
    }

    fn check_nothing_is_forgotten(&self) {
        let in_stages = self.count(At::is_in_stages);
        assert_eq!(self.lanes.preparing(), in_stages);
        assert_eq!(self.sessions.running(), self.count(|at| at.running().is_some()));
        for n in 0..CONVERSATIONS {
            let may_start = self.holds[n % ACCOUNTS] == 0 && in_stages < PREPARING_MAX;
            assert!(!may_start || self.next_of(n).is_none(), "conversation {n} was forgotten: {:?}", self.requests);
        }
        for session in 0..SESSIONS {
            let next = self.next_turn(session).and_then(|seq| self.requests[&seq].1.ready());
            assert!(!next.is_some_and(|found| self.has_slot(found)), "session {session} was forgotten: {:?}", self.requests);
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
            } else {
                assert!(self.pick(0, At::is_in_stages).is_some(), "nothing moves any more: {:?}", self.requests);
                self.step(Do::Prepare(0, Some(Found { session: 0, agent: 0, system: false })));
            }
        }
    }
}

proptest! {
    /// In whatever order things happen: one at a time per conversation and per session, each in its
    /// order, never more than the limits, and everything comes to its end.
    #[test]
    fn order_and_limits_hold_and_nothing_is_forgotten(script in prop::collection::vec(any_do(), 0..150)) {
        let mut world = World::default();
        for what in script {
            world.step(what);
        }
        world.drain();
    }
}

fn run_through(script: impl IntoIterator<Item = Do>) {
    let mut world = World::default();
    script.into_iter().for_each(|what| world.step(what));
    world.drain();
}

fn found(session: usize, agent: usize) -> Option<Found> {
    Some(Found { session, agent, system: false })
}

#[test]
fn a_context_that_comes_back_for_another_agent_has_no_room_of_its_own() {
    let mut sessions = Sessions::default();
    let push = |sessions: &mut Sessions, seq, session, agent| {
        sessions.push(seq, prepared(seq, Found { session, agent, system: false }), 1);
    };
    push(&mut sessions, 1, 0, 0);
    push(&mut sessions, 2, 1, 0);
    push(&mut sessions, 3, 2, 0);
    let started = |sessions: &mut Sessions| sessions.start_next(&agent(0)).map(|(seq, context)| (seq, context.is_some()));
    assert_eq!(started(&mut sessions), Some((1, true)));
    push(&mut sessions, 4, 3, 0); // takes the room
    sessions.released(&session(0), &agent(0), false);
    assert_eq!(started(&mut sessions), Some((2, false)));
    push(&mut sessions, 2, 1, 1);
    assert_eq!(started(&mut sessions), Some((3, false)));
    let (seq, context) = sessions.start_next(&agent(1)).unwrap();
    assert_eq!((seq, context.is_some()), (2, false), "kept beyond the limit");
}

#[test]
fn a_session_of_two_agents_takes_one_turn_at_a_time() {
    // Agent 0 is busy with session 1; request 3 of session 0 is shown to it, then 2 to agent 1.
    run_through([
        Do::Arrive(0),
        Do::Prepare(0, found(1, 0)),
        Do::Arrive(1),
        Do::Arrive(2),
        Do::Prepare(1, found(0, 0)),
        Do::Prepare(0, found(0, 1)),
        Do::Finish(0),
    ]);
}

#[test]
fn a_request_that_is_prepared_again_for_another_session_frees_the_one_before() {
    // Agent 0 has one slot: 2 is kept, 3 is not; when its turn comes its session is another.
    run_through([
        Do::Arrive(0),
        Do::Prepare(0, found(0, 0)),
        Do::Arrive(1),
        Do::Prepare(0, found(1, 0)),
        Do::Arrive(2),
        Do::Prepare(0, found(2, 0)),
        Do::Arrive(3),
        Do::Prepare(0, found(2, 0)),
        Do::Finish(0),
        Do::Finish(0),
        Do::Prepare(0, found(0, 1)),
    ]);
}

fn router() -> (Router, mpsc::Receiver<Told>) {
    let (told, inbox) = mpsc::channel(INBOX_MAX);
    (Router { told, stop: CancellationToken::new(), runs: TaskTracker::new() }, inbox)
}

async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, what).await.expect("it comes within the deadline")
}

/// Takes the hold that is asked for, as the router does.
async fn take_hold(inbox: &mut mpsc::Receiver<Told>) -> AccountKey {
    let Some(Told::Hold(account, done)) = soon(inbox.recv()).await else { panic!("nothing was held") };
    done.send(()).unwrap();
    account
}

async fn released(inbox: &mut mpsc::Receiver<Told>) -> AccountKey {
    let Some(Told::Release(account)) = soon(inbox.recv()).await else { panic!("nothing was let go") };
    account
}

#[tokio::test]
async fn a_panic_lets_go_what_it_held() {
    let (router, mut inbox) = router();
    let holder = tokio::spawn(async move {
        let _hold: Hold = router.hold(&account(1), Duration::from_secs(3600)).await;
        panic!("a defect");
    });
    assert_eq!(take_hold(&mut inbox).await, account(1));
    assert!(soon(holder).await.unwrap_err().is_panic());
    assert_eq!(released(&mut inbox).await, account(1));
}

#[tokio::test]
async fn one_that_is_called_off_while_it_waits_lets_go_too() {
    let (router, mut inbox) = router();
    let holder = tokio::spawn(async move { drop(router.hold(&account(1), Duration::from_secs(3600)).await) });
    let Some(Told::Hold(_, _done)) = soon(inbox.recv()).await else { panic!("nothing was held") };
    holder.abort();
    assert_eq!(released(&mut inbox).await, account(1));
}

#[tokio::test]
async fn a_hold_has_a_limit() {
    let (router, mut inbox) = router();
    let holder = tokio::spawn(async move { router.hold(&account(1), Duration::from_millis(1)).await });
    take_hold(&mut inbox).await;
    let hold = soon(holder).await.unwrap();
    assert_eq!(released(&mut inbox).await, account(1));
    drop(hold);
}
