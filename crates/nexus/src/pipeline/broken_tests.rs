//! Requests that break off at different places, on real ledgers.
#![allow(clippy::unwrap_used)]

use super::*;
use crate::agent::questions::Questions;
use crate::bus::Bus;
use crate::clock::Expiry;
use crate::ledger::Ledgers;
use crate::ledger::events::{Append, Lines};
use crate::ledger::known::Known;
use crate::ledger::nexus::{Admit, AdmitRow, AuditQuery, BeginEpoch, Claim, RequestRow, audit};
use crate::metrics::Metrics;
use crate::pipeline::outbox::Outbox;
use crate::pipeline::running::Abort;
use crate::pipeline::steering::Held;
use crate::pipeline::unsettled::ENDS;
use crate::pipeline::{Agent, Prepared, SETTLING_MAX, Settings};
use crate::plugin::Plugins;
use crate::replies::Replies;
use crate::routes::Routes;
use crate::samples;
use crate::search::Search;
use crate::watch::Watch;
use arc_swap::ArcSwap;
use nexus_core::config;
use std::collections::HashMap;
use std::time::Duration;
use tokio::sync::{Notify, Semaphore, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

const EPOCH: i64 = 1;
/// How long anything here may take.
const DEADLINE: Duration = Duration::from_secs(60);

pub(in crate::pipeline) struct Place {
    pub(in crate::pipeline) pipeline: Arc<Pipeline>,
    /// Keeps the request admitted.
    admitted: watch::Sender<i64>,
    directory: tempfile::TempDir,
}

impl Place {
    /// A pipeline, and in its ledgers one event whose request waits.
    pub(in crate::pipeline) async fn with_a_request() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let (ledgers, _threads) = Ledgers::start(directory.path(), 0).unwrap();
        let lines = Arc::new(Lines { events: vec![samples::new_event("fake:1")], rejects: Vec::new() });
        let seqs = ledgers.events.writer.write(Append { adapter: "fake".into(), account: "me".into(), lines }).await.unwrap();
        assert_eq!(seqs, [Some(1)]);
        ledgers.nexus.writer.write(BeginEpoch { at: 1 }).await.unwrap();
        ledgers.nexus.writer.write(Admit { from_seq: 0, upto_seq: 1, rows: vec![samples::row()], epoch: EPOCH }).await.unwrap();
        let (admitted, admitted_view) = watch::channel(1);
        Self { pipeline: Arc::new(pipeline(ledgers, admitted_view)), admitted, directory }
    }

    async fn start_run(&self) {
        assert_eq!(self.pipeline.ledgers.nexus.writer.write(start("run_1")).await.unwrap(), Claim::Done);
    }

    /// Decisions that are kept, as `decision reason`.
    async fn decisions(&self) -> Vec<String> {
        let all = AuditQuery { limit: 10, ..AuditQuery::default() };
        let rows = self.pipeline.ledgers.nexus.readers.read(move |connection| audit(connection, &all)).await.unwrap();
        rows.into_iter().map(|row| format!("{} {}", row.decision, row.reason)).collect()
    }

    async fn break_off(&self, run_id: Option<&str>) -> RequestRow {
        self.break_off_after(run_id.map(start), &mut Ends::default()).await
    }

    /// The same, of a run whose requests have had this of their ends.
    async fn break_off_after(&self, start: Option<StartRun>, ends: &mut Ends) -> RequestRow {
        let panicked = panics::catch::<()>(|| panic!("of the test")).unwrap_err();
        let outcome = async {
            match start {
                Some(start) => self.pipeline.break_off_run(start, &conversation(), ends, &panicked).await,
                None => {
                    let ending = self.pipeline.unsettled.begin(&conversation(), 1);
                    assert!(matches!(self.pipeline.break_off(1, ending, &panicked).await, Outcome::Settled));
                }
            }
        };
        tokio::time::timeout(DEADLINE, outcome).await.unwrap();
        self.pipeline.settling.close();
        tokio::time::timeout(DEADLINE, self.pipeline.settling.wait()).await.unwrap();
        self.pipeline.ledgers.nexus.readers.read(|connection| request_by_event(connection, 1)).await.unwrap().unwrap()
    }

    /// Another event, whose request waits.
    pub(in crate::pipeline) async fn add_a_request(&self) {
        let lines = Arc::new(Lines { events: vec![samples::new_event("fake:2")], rejects: Vec::new() });
        let append = Append { adapter: "fake".into(), account: "me".into(), lines };
        assert_eq!(self.pipeline.ledgers.events.writer.write(append).await.unwrap(), [Some(2)]);
        let row = AdmitRow { event_seq: 2, request_id: "req_2".into(), event_id: "fake:2".into(), ..samples::row() };
        self.pipeline.ledgers.nexus.writer.write(Admit { from_seq: 1, upto_seq: 2, rows: vec![row], epoch: EPOCH }).await.unwrap();
        self.admitted.send_replace(2);
    }

    /// How many ends plugins were told of.
    fn counted(&self) -> u64 {
        self.pipeline.plugins.counts().unwritten().unwrap().hours.iter().map(|hour| hour.requests).sum()
    }

    async fn said(&self) -> Vec<String> {
        let read = self.pipeline.ledgers.nexus.readers.read(|connection| deliveries_of(connection, 1));
        read.await.unwrap().into_iter().map(|delivery| delivery.content).collect()
    }
}

/// That of every request here.
pub(in crate::pipeline) fn conversation() -> String {
    prepared(1, Duration::ZERO).conversation()
}

/// A request on its way to the built-in echo.
pub(in crate::pipeline) fn prepared(seq: i64, timeout: Duration) -> Prepared {
    let agent = Agent { timeout, ..samples::echo() };
    Prepared {
        adapter: "fake".to_owned(),
        request: NexusRequest::new(format!("req_{seq}"), seq, 0, samples::event(format!("fake:{seq}"))),
        agent: Arc::new(agent),
        session: "s".to_owned(),
        formerly: None,
        fellows: Vec::new(),
        joined: Vec::new(),
        abort: Abort::default(),
        spent: Duration::ZERO,
        timeout,
        is_revived: false,
        is_to_end: false,
    }
}

/// The start of the request's run, with the decision that let it in.
fn start(run_id: &str) -> StartRun {
    let (run_id, agent, session) = (run_id.to_owned(), "echo".to_owned(), "s".to_owned());
    let audit = Some(Audit {
        request_id: "req_1".to_owned(),
        channel: "fake".to_owned(),
        account_id: "me".to_owned(),
        sender_id: "u".to_owned(),
        principal: "known",
        entity_id: None,
        decision: "allow",
        policy: None,
        reason: "of the test".to_owned(),
    });
    StartRun { event_seq: 1, fellows: Vec::new(), run_id, agent, session, acted: false, audit, at: 1, epoch: EPOCH }
}

fn pipeline(ledgers: Ledgers, admitted: watch::Receiver<i64>) -> Pipeline {
    let (bus, metrics) = (Bus::new(EPOCH, 64), Metrics::new());
    let (watch_over, routes) = (Watch::new(metrics.clone()), Routes::default());
    let outbox = Outbox::new(ledgers.clone(), routes.clone(), bus.clone(), watch_over.clone(), metrics.clone(), Expiry::new(0), EPOCH);
    let (search, speakers) = (Search::beside(&ledgers), Known::of(&ledgers.identity.writer));
    Pipeline {
        ledgers,
        settings: Arc::new(ArcSwap::from_pointee(Settings {
            pipeline: config::Pipeline::default(),
            access: config::Access::default(),
            default_agent: "echo".to_owned(),
            agents: HashMap::new(),
            callers: Default::default(),
            time_zone: jiff::tz::TimeZone::UTC,
        })),
        bus,
        watch_over,
        metrics,
        plugins: Arc::new(Plugins::new(&["analytics".to_owned()])),
        automations: Arc::default(),
        routes,
        replies: Replies::default(),
        questions: Questions::default(),
        outbox,
        search,
        turns_applied: watch::channel(0).1,
        admitted,
        finished: Arc::new(Notify::new()),
        epoch: EPOCH,
        abandon: CancellationToken::new(),
        breakers: crate::pipeline::breakers::Breakers::default(),
        settling: TaskTracker::new(),
        settle_room: Arc::new(Semaphore::new(SETTLING_MAX)),
        unsettled: Default::default(),
        rates: std::sync::Mutex::default(),
        speakers,
        meters: Default::default(),
        turns: Default::default(),
        wellbeing: Default::default(),
    }
}

#[tokio::test]
async fn one_without_a_run_ends_as_failed_with_the_reason() {
    let place = Place::with_a_request().await;
    let row = place.break_off(None).await;
    assert_eq!(row.status, "failed");
    assert!(row.reason.is_some_and(|reason| reason.contains("a defect of the daemon") && reason.contains("of the test")));
    assert_eq!(place.pipeline.metrics.totals.active.load(std::sync::atomic::Ordering::Relaxed), 0);
}

#[tokio::test]
async fn one_whose_run_never_began_ends_as_failed_too() {
    let place = Place::with_a_request().await;
    assert_eq!(place.break_off(Some("run_1")).await.status, "failed");
    assert!(place.said().await.is_empty());
    assert_eq!(place.decisions().await, ["allow of the test"], "it was let in before it broke off");
}

#[tokio::test]
async fn a_panic_between_stages_leaves_the_request_to_who_began_them() {
    let place = Place::with_a_request().await;
    let broken = async {
        assert!(place.pipeline.epoch != EPOCH, "of the test");
        Ok(())
    };
    let exit = place.pipeline.whole(1, broken).await;
    assert!(matches!(&exit, Err(Exit::Failed(reason)) if reason.contains("of the test")), "{exit:?}");
    assert!(place.pipeline.whole(1, async { Ok(7) }).await.is_ok_and(|seven| seven == 7));
}

#[tokio::test]
async fn one_whose_run_began_ends_with_it_and_its_sender_is_told() {
    let place = Place::with_a_request().await;
    place.start_run().await;
    let row = place.break_off(Some("run_1")).await;
    assert_eq!((row.status.as_str(), row.attempts), ("failed", 1));
    let said = place.said().await;
    assert_eq!(said, ["Your message was interrupted while it was being answered."], "it is no owner's");
}

#[tokio::test]
async fn plugins_are_told_of_a_run_that_broke_off() {
    let place = Place::with_a_request().await;
    place.start_run().await;
    place.break_off(Some("run_1")).await;
    let hours = place.pipeline.plugins.counts().unwritten().unwrap().hours;
    assert_eq!(hours.iter().map(|hour| (hour.status, hour.requests)).collect::<Vec<_>>(), [("failed", 1)]);
}

#[tokio::test]
async fn one_that_had_its_end_keeps_it() {
    let place = Place::with_a_request().await;
    place.start_run().await;
    let finish = FinishRun {
        event_seq: 1,
        fellows: Vec::new(),
        run_id: "run_1".to_owned(),
        ok: true,
        is_aborted: false,
        status: Status::Completed,
        reason: None,
        turn_json: None,
        deliveries: Vec::new(),
        stream: None,
        wait: None,
        trace: "{}".to_owned(),
        at: 2,
        epoch: EPOCH,
    };
    assert!(place.pipeline.ledgers.nexus.writer.write(finish).await.unwrap().is_some());
    let row = place.break_off(Some("run_1")).await;
    assert_eq!((row.status.as_str(), row.reason), ("completed", None));
    assert!(place.said().await.is_empty(), "an apology for an answer that was given");
}

#[tokio::test]
async fn requests_that_break_off_behind_their_ends_are_not_ended_again() {
    let place = Place::with_a_request().await;
    place.add_a_request().await;
    let turn = Prepared { fellows: vec![prepared(1, DEADLINE)], ..prepared(2, DEADLINE) };
    let start = StartRun { event_seq: 2, fellows: vec![Fellow { event_seq: 1, audit: None }], audit: None, ..start("run_1") };
    let (session, _released) = oneshot::channel();
    let mut held = Held::new(session, None);
    tokio::time::timeout(DEADLINE, place.pipeline.run_whole(turn, start.clone(), &mut held)).await.unwrap();
    let processed = || place.pipeline.metrics.totals.processed.load(std::sync::atomic::Ordering::Relaxed);
    assert_eq!(processed(), 2, "both have their ends");
    assert_eq!(place.break_off_after(Some(start), &mut held.ends).await.status, "completed");
    assert_eq!((processed(), place.counted()), (2, 2));
}

#[tokio::test]
async fn the_last_stage_is_not_had_again_for_an_end_that_was_not_written() {
    let place = Place::with_a_request().await;
    place.start_run().await;
    let (mut request, mut ends) = (prepared(1, DEADLINE).request, Ends::default());
    request.status = Status::Completed;
    place.pipeline.finalize_in(&mut request, &mut ends);
    assert_eq!(place.break_off_after(Some(start("run_1")), &mut ends).await.status, "failed");
    assert_eq!(place.counted(), 1);
}

#[tokio::test]
async fn one_whose_sender_cannot_be_looked_up_is_left_to_the_next_start() {
    let place = Place::with_a_request().await;
    std::fs::remove_file(place.directory.path().join("identity.db")).unwrap();
    let event = place.pipeline.ledgers.events.readers.read(|connection| crate::ledger::events::by_seq(connection, 1));
    let event = event.await.unwrap().unwrap();
    let stopping = async { place.pipeline.abandon.cancel() };
    let (outcome, ()) = tokio::join!(place.pipeline.prepare(event, "req_1".to_owned(), false), stopping);
    assert!(matches!(outcome, Outcome::Abandoned), "{outcome:?}");
    let row = place.pipeline.ledgers.nexus.readers.read(|connection| request_by_event(connection, 1)).await.unwrap().unwrap();
    assert_eq!(row.status, "waiting");
}

#[tokio::test]
async fn one_that_breaks_off_holds_its_session_until_its_end_is_on_disk() {
    let place = Place::with_a_request().await;
    let (held, released) = oneshot::channel();
    // No clock goes so far: to find its deadline is a panic, after its run has begun.
    let run = place.pipeline.run(prepared(1, Duration::MAX), Held::new(held, None));
    let next_turn = async {
        drop(released.await);
        place.pipeline.ledgers.nexus.readers.read_now(|connection| request_by_event(connection, 1)).unwrap().unwrap()
    };
    let (row, ()) = tokio::time::timeout(DEADLINE, async { tokio::join!(next_turn, run) }).await.unwrap();
    assert_eq!((row.status.as_str(), row.attempts), ("failed", 1));
}

#[tokio::test]
async fn what_comes_after_an_end_that_is_refused_waits_for_the_next_start_as_well() {
    let place = Place::with_a_request().await;
    let refuse = "CREATE TRIGGER refuse BEFORE UPDATE ON nexus_requests BEGIN SELECT RAISE(ABORT, 'of the test'); END";
    Connection::open(place.directory.path().join("nexus.db")).unwrap().execute_batch(refuse).unwrap();
    assert_eq!(place.break_off(None).await.status, "waiting");
    assert!(place.pipeline.watch_over.lost().is_empty(), "nothing waits for it yet");
    let (held, released) = oneshot::channel();
    tokio::time::timeout(DEADLINE, place.pipeline.run(prepared(2, DEADLINE), Held::new(held, None))).await.unwrap();
    assert!(released.await.is_ok(), "its session goes on");
    assert_eq!(place.pipeline.watch_over.lost(), [ENDS], "health says nothing");
}
