//! What becomes of messages that a run is given, on a real ledger, with the agent's side played by the test.
#![allow(clippy::unwrap_used)]

use super::*;
use crate::ledger::nexus::{Admit, AdmitRow, StartRun, request_by_event};
use crate::pipeline::broken::tests::Place;
use crate::pipeline::running::Abort;
use crate::samples;
use futures_util::FutureExt;
use nexus_core::request::NexusRequest;
use std::sync::Arc;

const EPOCH: i64 = 1;
/// How long anything here may take.
const DEADLINE: Duration = Duration::from_secs(60);

/// A request for an agent that may take input.
fn prepared(seq: i64) -> Prepared {
    Prepared {
        adapter: "fake".to_owned(),
        request: NexusRequest::new(format!("req_{seq}"), seq, 0, samples::event(format!("fake:{seq}"))),
        agent: Arc::new(Agent { takes_input: true, ..samples::echo() }),
        session: "s".to_owned(),
        formerly: None,
        fellows: Vec::new(),
        joined: Vec::new(),
        abort: Abort::default(),
        spent: Duration::ZERO,
        timeout: DEADLINE,
        is_revived: false,
        is_to_end: false,
    }
}

/// The run of `lead` with all that is at its ends.
struct Rig {
    place: Place,
    lead: Prepared,
    held: Held,
    give: mpsc::Sender<Box<Prepared>>,
    released: oneshot::Receiver<Release>,
    input: Input,
}

impl Rig {
    async fn new() -> Self {
        let (place, lead) = (Place::with_a_request().await, prepared(100));
        let (session, released) = oneshot::channel();
        let (give, given) = mpsc::channel(STEER_MESSAGES_MAX);
        let mut held = Held::new(session, Some(given));
        let input = held.steering.begin(&lead, &lead.agent).unwrap();
        Self { place, lead, held, give, released, input }
    }

    /// The run is in the ledger.
    async fn starts(&self) {
        let writer = &self.place.pipeline.ledgers.nexus.writer;
        let row = AdmitRow { event_seq: 100, request_id: "req_100".to_owned(), ..samples::row() };
        writer.write(Admit { from_seq: 1, upto_seq: 100, rows: vec![row], epoch: EPOCH }).await.unwrap();
        let (run_id, agent, session) = ("run_1".to_owned(), "echo".to_owned(), "s".to_owned());
        let start = StartRun { event_seq: 100, fellows: Vec::new(), run_id, agent, session, acted: true, audit: None, at: 1, epoch: EPOCH };
        assert_eq!(writer.write(start).await.unwrap(), Claim::Done);
    }

    fn gives(&self, given: Prepared) {
        assert!(self.give.try_send(Box::new(given)).is_ok(), "there is no room");
    }

    /// Deals with what comes next; false when nothing does.
    fn deals(&mut self) -> bool {
        let Some(next) = self.held.steering.next().now_or_never() else { return false };
        self.place.pipeline.steer(&self.lead, next, &mut self.held.steering);
        true
    }

    fn opens(&mut self) {
        self.place.pipeline.open(&self.lead, &mut self.held.steering);
    }

    fn takes_in(&mut self, message_id: &str) {
        self.place.pipeline.join("run_1", message_id, &mut self.held.steering);
    }

    fn told(&mut self) -> Vec<String> {
        std::iter::from_fn(|| self.input.try_recv().ok()).map(|told| told.message_id).collect()
    }

    /// Which requests joined the run, and which are the session's again.
    async fn ends(&mut self) -> (Vec<i64>, Vec<i64>) {
        let joined = tokio::time::timeout(DEADLINE, self.held.steering.settle()).await.unwrap();
        self.held.release();
        let release = tokio::time::timeout(DEADLINE, &mut self.released).await.unwrap().unwrap();
        assert_eq!(seqs(&joined), release.joined);
        (release.joined, seqs(&release.left))
    }
}

fn seqs(all: &[Prepared]) -> Vec<i64> {
    all.iter().map(|one| one.request.event_seq).collect()
}

#[tokio::test]
async fn a_message_is_told_once_the_agent_listens_and_joins_the_run_once_it_says_so() {
    let mut rig = Rig::new().await;
    rig.starts().await;
    rig.gives(prepared(1));
    assert!(rig.deals());
    assert!(rig.told().is_empty(), "it was told before it listened");
    rig.takes_in("req_1");
    rig.opens();
    assert_eq!(rig.told(), ["req_1"]);
    for message_id in ["req_1", "req_1", "req_9"] {
        rig.takes_in(message_id);
    }
    assert_eq!(rig.held.steering.unknown, 3, "before it was told, the second time, and what never was");
    assert!(!rig.lead.abort.is_cancelled());
    assert_eq!(rig.ends().await, (vec![1], vec![]));
    let readers = &rig.place.pipeline.ledgers.nexus.readers;
    let row = readers.read(|connection| request_by_event(connection, 1)).await.unwrap().unwrap();
    assert_eq!((row.status.as_str(), row.attempts, row.session.as_deref()), ("processing", 1, Some("s")));
}

#[tokio::test]
async fn a_message_of_somebody_else_has_their_name_where_those_of_one_have_none() {
    let mut rig = Rig::new().await;
    let mut other = prepared(2);
    other.request.event.sender_id = "u9".to_owned();
    rig.gives(prepared(1));
    rig.gives(other);
    assert!(rig.deals() && rig.deals());
    rig.opens();
    let texts: Vec<String> = std::iter::from_fn(|| rig.input.try_recv().ok()).map(|told| told.text).collect();
    assert_eq!(texts, ["hello", "(u9): hello"]);
}

#[tokio::test]
async fn the_agent_hears_whether_a_message_shares_its_run_once_that_is_on_disk() {
    for has_run in [true, false] {
        let mut rig = Rig::new().await;
        if has_run {
            rig.starts().await;
        }
        rig.opens();
        rig.gives(prepared(1));
        assert!(rig.deals());
        let told = rig.input.try_recv().unwrap();
        rig.takes_in("req_1");
        assert_eq!(tokio::time::timeout(DEADLINE, told.joined).await.unwrap(), Ok(has_run));
        let readers = &rig.place.pipeline.ledgers.nexus.readers;
        let row = readers.read(|connection| request_by_event(connection, 1)).await.unwrap().unwrap();
        assert_eq!(row.status, if has_run { "processing" } else { "waiting" });
    }
}

#[tokio::test]
async fn the_agent_hears_that_a_message_is_not_for_it_any_more() {
    let mut rig = Rig::new().await;
    rig.opens();
    rig.gives(prepared(1));
    assert!(rig.deals());
    let told = rig.input.try_recv().unwrap();
    assert_eq!(rig.ends().await, (vec![], vec![1]));
    assert!(tokio::time::timeout(DEADLINE, told.joined).await.unwrap().is_err());
}

#[tokio::test]
async fn a_message_that_joins_no_run_is_the_sessions_again() {
    let mut rig = Rig::new().await;
    rig.opens();
    rig.gives(prepared(1));
    assert!(rig.deals());
    rig.takes_in("req_1");
    assert_eq!(rig.ends().await, (vec![], vec![1]), "there is no such run");
}

#[tokio::test]
async fn so_many_are_told_and_the_others_wait_before_the_run() {
    let mut rig = Rig::new().await;
    rig.opens();
    let max = i64::try_from(STEER_MESSAGES_MAX).unwrap();
    for seq in 1..=max {
        rig.gives(prepared(seq));
        assert!(rig.deals());
    }
    assert_eq!(rig.told().len(), STEER_MESSAGES_MAX);
    rig.gives(prepared(max + 1));
    assert!(!rig.deals(), "more than it may have");
    assert!(rig.held.steering.taken_in("req_2").is_some());
    assert!(rig.deals() && !rig.deals());
    assert_eq!(rig.told(), [format!("req_{}", max + 1)]);
    rig.gives(prepared(max + 2));
    let left: Vec<i64> = (1..=max + 2).filter(|seq| *seq != 2).collect();
    assert_eq!(rig.ends().await, (vec![], left), "nothing is lost, and the order is kept");
}

#[tokio::test]
async fn an_agent_that_does_not_say_in_time_that_it_listens_is_interrupted() {
    let mut rig = Rig::new().await;
    rig.gives(prepared(1));
    rig.gives(prepared(2));
    assert!(rig.deals() && rig.held.steering.open_by.is_some());
    rig.place.pipeline.steer(&rig.lead, Next::Unopened, &mut rig.held.steering);
    assert!(rig.lead.abort.is_cancelled() && rig.give.is_closed());
    rig.opens();
    rig.takes_in("req_1");
    assert!(rig.told().is_empty() && !rig.deals(), "it comes too late");
    assert_eq!(rig.ends().await, (vec![], vec![1, 2]));
}

#[tokio::test]
async fn a_turn_that_nothing_can_be_told_is_interrupted_at_once() {
    let mut rig = Rig::new().await;
    rig.input.close();
    rig.opens();
    rig.gives(prepared(1));
    assert!(rig.deals() && rig.lead.abort.is_cancelled());
    assert_eq!(rig.ends().await, (vec![], vec![1]));
}

#[tokio::test]
async fn an_agent_that_stopped_listening_is_left_alone() {
    let mut rig = Rig::new().await;
    rig.opens();
    rig.input.close();
    rig.gives(prepared(1));
    assert!(rig.deals() && !rig.lead.abort.is_cancelled());
    assert!(rig.give.is_closed(), "the session keeps what comes");
    assert_eq!(rig.ends().await, (vec![], vec![1]));
}

#[tokio::test]
async fn a_message_of_another_place_interrupts_and_is_not_told() {
    let mut rig = Rig::new().await;
    rig.opens();
    let mut elsewhere = prepared(1);
    elsewhere.request.event.peer_id = "somebody else".to_owned();
    rig.gives(elsewhere);
    assert!(rig.deals() && rig.lead.abort.is_cancelled());
    assert!(rig.told().is_empty());
    assert_eq!(rig.ends().await, (vec![], vec![1]));
}

#[tokio::test]
async fn what_is_too_long_for_one_turn_has_one_of_its_own() {
    let mut rig = Rig::new().await;
    rig.opens();
    let mut long = prepared(1);
    long.request.event.content = "x".repeat(COLLECT_BYTES_MAX);
    rig.gives(long);
    rig.gives(prepared(2));
    assert!(rig.deals() && !rig.deals(), "what comes after it must not overtake it");
    assert!(rig.told().is_empty() && !rig.lead.abort.is_cancelled());
    assert_eq!(rig.ends().await, (vec![], vec![1, 2]));
}

/// A rig whose agent has not said yet that it listens, with a message for it and one behind that for which there is no room.
async fn with_one_too_long_behind() -> Rig {
    let mut rig = Rig::new().await;
    let mut long = prepared(2);
    long.request.event.content = "x".repeat(COLLECT_BYTES_MAX + 1);
    rig.gives(prepared(1));
    rig.gives(long);
    assert!(rig.deals() && rig.deals() && rig.give.is_closed());
    assert!(rig.told().is_empty() && !rig.lead.abort.is_cancelled());
    rig
}

#[tokio::test]
async fn a_message_is_told_though_one_behind_it_has_no_room() {
    let mut rig = with_one_too_long_behind().await;
    rig.opens();
    assert_eq!(rig.told(), ["req_1"]);
    assert!(rig.held.steering.taken_in("req_1").is_some());
    assert_eq!(rig.ends().await, (vec![], vec![2]));
}

#[tokio::test]
async fn a_message_interrupts_in_the_end_though_one_behind_it_has_no_room() {
    let mut rig = with_one_too_long_behind().await;
    rig.held.steering.open_by = rig.held.steering.open_by.map(|_| Instant::now());
    let next = tokio::time::timeout(DEADLINE, rig.held.steering.next()).await.unwrap();
    assert!(matches!(next, Next::Unopened), "{next:?}");
    rig.place.pipeline.steer(&rig.lead, next, &mut rig.held.steering);
    assert!(rig.lead.abort.is_cancelled() && !rig.deals(), "once is enough");
    assert_eq!(rig.ends().await, (vec![], vec![2, 1]));
}

#[tokio::test]
async fn what_an_aborted_turn_was_not_told_it_is_not_told_any_more() {
    let mut rig = Rig::new().await;
    let mut elsewhere = prepared(2);
    elsewhere.request.event.peer_id = "somebody else".to_owned();
    rig.gives(prepared(1));
    rig.gives(elsewhere);
    assert!(rig.deals() && rig.deals() && rig.lead.abort.is_cancelled());
    rig.opens();
    assert!(rig.told().is_empty() && !rig.deals());
    assert_eq!(rig.ends().await, (vec![], vec![2, 1]));
}

#[tokio::test]
async fn an_agent_without_the_setting_gets_nothing() {
    let (session, _released) = oneshot::channel();
    let (_give, given) = mpsc::channel(1);
    let (mut held, lead) = (Held::new(session, Some(given)), prepared(100));
    assert!(held.steering.begin(&lead, &samples::echo()).is_none());
    let (session, _released) = oneshot::channel();
    assert!(Held::new(session, None).steering.begin(&lead, &lead.agent).is_none());
}
