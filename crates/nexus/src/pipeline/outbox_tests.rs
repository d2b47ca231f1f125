//! Tests of the outbox on real ledgers: what expires, how long is waited, and what becomes of a delivery
//! when something breaks.
#![allow(clippy::unwrap_used)]

use super::deliver::nap_ms;
use super::*;
use crate::keeper::SpawnError;
use crate::ledger::nexus::{Admit, AdmitRow, BeginEpoch, ClaimDelivery, FinishRun, SettleDelivery, Settled, StartRun, lane_of};
use crate::live::Held;
use crate::patience::{DEADLINE, eventually, soon};
use crate::routes::{Route, Sender, Streamer};
use crate::supervisor::BoxFuture;
use futures_util::FutureExt;
use futures_util::future::join_all;
use nexus_core::config::OnUncertain;
use nexus_core::doubt::Reading;
use nexus_core::protocol::SendOutcome;
use nexus_core::request::{DeliveryTarget, Status};
use rusqlite::Connection;
use std::sync::atomic::AtomicI64;
use tokio::sync::watch;

const NOW: i64 = 1_000_000;
const DAY_MS: i64 = 86_400_000;
const EPOCH: i64 = 1;
/// What a delivery says at which the platform panics.
const DEFECT: &str = "a defect";

/// Says everything but [`DEFECT`].
struct Platform;

impl Sender for Platform {
    fn send<'a>(&'a self, delivery: &'a Delivery) -> BoxFuture<'a, Result<SendOutcome, SpawnError>> {
        Box::pin(async move {
            assert_ne!(delivery.content, DEFECT);
            Ok(SendOutcome::Sent { message_ids: vec![delivery.delivery_id.clone()] })
        })
    }
}

/// Its process is busy with another answer for ever.
struct Busy;

impl Streamer for Busy {
    fn take<'a>(&'a self, _account: &'a str) -> BoxFuture<'a, Held> {
        Box::pin(std::future::pending())
    }
}

/// An outbox with its ledgers, where one request was answered; one adapter, `fake`, can send.
struct Place {
    outbox: Outbox,
    directory: tempfile::TempDir,
}

impl Place {
    fn new(expiry: Expiry) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let (ledgers, _threads) = Ledgers::start(directory.path(), 0).unwrap();
        let routes = Routes::default();
        routes.set("fake", crate::samples::route(Platform));
        let (bus, watch_over) = (Bus::new(EPOCH, 16), Watch::new(Metrics::new()));
        Self { outbox: Outbox::new(ledgers, routes, bus, watch_over, Metrics::new(), expiry, EPOCH), directory }
    }

    /// The same with these deliveries in the ledger, pending.
    async fn with(expiry: Expiry, deliveries: Vec<NewDelivery>) -> Self {
        let place = Self::new(expiry);
        let ledger = &place.outbox.shared.ledgers.nexus.writer;
        ledger.write(BeginEpoch { at: 1 }).await.unwrap();
        let row = AdmitRow { request_id: "req".into(), ..crate::samples::row() };
        ledger.write(Admit { from_seq: 0, upto_seq: 1, rows: vec![row], epoch: EPOCH }).await.unwrap();
        let (run_id, agent, session) = ("run".to_owned(), "echo".to_owned(), "s".to_owned());
        let (run, fellows) = (run_id.clone(), Vec::new());
        let start = StartRun { event_seq: 1, fellows, run_id: run, agent, session, acted: false, audit: None, at: 1, epoch: EPOCH };
        assert_eq!(ledger.write(start).await.unwrap(), Claim::Done);
        let finish = FinishRun {
            event_seq: 1,
            fellows: Vec::new(),
            run_id,
            ok: true,
            is_aborted: false,
            status: Status::Completed,
            reason: None,
            turn_json: None,
            deliveries,
            stream: None,
            wait: None,
            trace: "{}".to_owned(),
            at: 1,
            epoch: EPOCH,
        };
        assert!(ledger.write(finish).await.unwrap().is_some());
        place
    }

    /// Changes something about how the adapter delivers.
    fn adapt(&self, change: impl FnOnce(&mut Route)) {
        let routes = &self.outbox.shared.routes;
        let mut route = routes.get("fake").unwrap();
        change(&mut route);
        routes.set("fake", route);
    }

    /// Keys and texts of all deliveries, in this order.
    fn texts(&self, order: &str) -> Vec<String> {
        let sql = format!("SELECT idempotency_key || ': ' || content FROM deliveries ORDER BY {order}");
        let connection = self.stranger();
        let mut list = connection.prepare(&sql).unwrap();
        list.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect()
    }

    /// Writes that an attempt at this one began and ended at this instant.
    async fn attempted(&self, delivery_id: &str, at: i64, settled: Settled) {
        let ledger = &self.outbox.shared.ledgers.nexus.writer;
        let claim = ClaimDelivery { delivery_id: delivery_id.to_owned(), at, epoch: EPOCH };
        assert_eq!(ledger.write(claim).await.unwrap(), Claim::Done);
        let settle = SettleDelivery { delivery_id: delivery_id.to_owned(), settled, at, epoch: EPOCH };
        assert_eq!(ledger.write(settle).await.unwrap(), Claim::Done);
    }

    /// Hands `d` to its lane; how it ended.
    async fn outcome(&self) -> Outcome {
        let (settled, outcome) = oneshot::channel();
        let lane = row("d", "hello", 0, 0).lane();
        self.outbox.push(lane, Queued { delivery_id: "d".to_owned(), row: None, settled: Some(settled), live: None });
        soon(outcome).await.unwrap()
    }

    /// Queues what the ledger has.
    async fn enqueue(&self, rows: Vec<NewDelivery>) -> Waiting {
        let order = self.outbox.order(&rows).await;
        self.outbox.enqueue(rows, order)
    }

    async fn status(&self, delivery_id: &'static str) -> String {
        let readers = &self.outbox.shared.ledgers.nexus.readers;
        readers.read(move |connection| delivery(connection, delivery_id)).await.unwrap().unwrap().status
    }

    /// Somebody else who has the file open.
    fn stranger(&self) -> Connection {
        let connection = Connection::open(self.directory.path().join("nexus.db")).unwrap();
        connection.busy_timeout(DEADLINE).unwrap();
        connection
    }
}

fn new(delivery_id: &str, content: &str, created_at: i64, expires_at: i64) -> NewDelivery {
    let (request_id, content) = ("req".to_owned(), content.to_owned());
    NewDelivery { request_id, run_id: None, content, created_at, expires_at, ..crate::samples::delivery(delivery_id) }
}

fn row(delivery_id: &str, content: &str, created_at: i64, expires_at: i64) -> Delivery {
    pending(new(delivery_id, content, created_at, expires_at))
}

/// One that nobody has reason to let expire.
fn lasting(delivery_id: &str, content: &str) -> NewDelivery {
    new(delivery_id, content, clock::wall_ms(), clock::wall_ms() + DAY_MS)
}

/// What an attempt at a delivery whose time is up comes to. Its adapter isn't configured.
async fn attempt_late(expiry: Expiry) -> Settled {
    let place = Place::new(expiry);
    place.outbox.shared.routes.remove("fake");
    place.outbox.attempt(&row("d", "hello", 1, NOW - 1)).await.unwrap()
}

#[tokio::test]
async fn what_is_too_old_expires_but_not_while_the_clock_is_in_doubt() {
    let clocks = || Reading { wall_ms: NOW, boot_ms: 0 };
    let believed = attempt_late(Expiry::with_clocks(NOW, clocks)).await;
    assert!(matches!(believed, Settled::Expired { .. }), "{believed:?}");
    let in_doubt = attempt_late(Expiry::with_clocks(NOW + 1, clocks)).await;
    assert!(matches!(in_doubt, Settled::Failed { .. }), "it was not tried: {in_doubt:?}");
}

/// What a start makes of an uncertain `d` whose time is up, with the adapter's `retry`: how many stay uncertain, and the
/// status of `d`. Something newer was begun to be sent to this target since.
async fn start_late(expiry: Expiry, newer_target: &str) -> (usize, String) {
    let newer = NewDelivery { target: newer_target.to_owned(), ..new("newer", "hello", NOW - 1, NOW + 1) };
    let waits = new("waits", "hello", NOW - 1, NOW + 1);
    let place = Place::with(expiry, vec![new("d", "hello", NOW - 2, NOW - 1), newer, waits]).await;
    place.attempted("d", NOW, Settled::Uncertain { error: "nobody knows".to_owned() }).await;
    place.attempted("newer", NOW, Settled::Retry { at: NOW, error: "no route".to_owned() }).await;
    let held = place.outbox.take_up_uncertain(|_| true).await.unwrap();
    (held, place.status("d").await)
}

#[tokio::test]
async fn what_newer_ones_passed_is_not_sent_behind_them_while_the_clock_is_in_doubt() {
    let clocks = || Reading { wall_ms: NOW, boot_ms: 0 };
    let (believed, in_doubt) = (|| Expiry::with_clocks(NOW, clocks), || Expiry::with_clocks(NOW + 1, clocks));
    let (same, other) = (crate::samples::delivery("d").target, "elsewhere");
    let (held, taken_up) = ((1, "uncertain".to_owned()), (0, "pending".to_owned()));
    assert_eq!(start_late(believed(), other).await, held, "its time is up");
    assert_eq!(start_late(in_doubt(), other).await, taken_up, "nothing for its target was begun");
    assert_eq!(start_late(in_doubt(), &same).await, held, "its target would see it behind what is newer");
}

#[tokio::test]
async fn what_becomes_too_old_behind_the_sends_of_others_expires() {
    let passed = Arc::new(AtomicI64::new(0));
    let later = passed.clone();
    let clocks = move || Reading { wall_ms: NOW + passed.load(Ordering::Relaxed), boot_ms: passed.load(Ordering::Relaxed) };
    let place = Place::with(Expiry::with_clocks(NOW, clocks), vec![new("d", "hello", NOW, NOW + 5)]).await;
    let sends = place.outbox.sends_of("fake");
    let all = u32::try_from(sends.available_permits()).unwrap();
    let others = sends.acquire_many(all).await.unwrap();
    let waiting = row("d", "hello", NOW, NOW + 5);
    let mut attempt = std::pin::pin!(place.outbox.attempt(&waiting));
    assert!(futures_util::poll!(attempt.as_mut()).is_pending());
    later.store(6, Ordering::Relaxed);
    drop(others);
    let ended = soon(attempt).await;
    assert!(matches!(ended, Some(Settled::Expired { .. })), "{ended:?}");
}

#[tokio::test]
async fn a_wish_to_wait_for_years_ends_with_the_time_of_its_delivery() {
    let now = clock::wall_ms();
    let place = Place::with(Expiry::new(0), vec![new("d", "hello", now, now + 100)]).await;
    place.attempted("d", now, Settled::Retry { at: i64::MAX, error: "slow down".to_owned() }).await;
    assert_eq!(place.outcome().await.status, "expired");
}

#[tokio::test]
async fn a_clock_that_went_back_keeps_nobody_waiting() {
    let tomorrow = clock::wall_ms() + DAY_MS;
    let place = Place::with(Expiry::new(0), vec![new("d", "hello", tomorrow, tomorrow + DAY_MS)]).await;
    place.attempted("d", tomorrow, Settled::Retry { at: tomorrow + 20, error: "no route".to_owned() }).await;
    assert_eq!(place.outcome().await.status, "sent");
}

#[test]
fn nobody_sleeps_long_before_looking_at_the_clocks_again() {
    let mut waiting = row("d", "hello", NOW, NOW + DAY_MS);
    assert_eq!(nap_ms(&waiting, NOW, 0), 0, "it was never tried");
    waiting.next_attempt_at = Some(NOW + 5_000);
    assert_eq!(nap_ms(&waiting, NOW + 2_000, 2_000), 3_000);
    assert_eq!(nap_ms(&waiting, NOW + 5_000, 2_000), 0, "the machine slept");
    assert_eq!(nap_ms(&waiting, NOW - DAY_MS, 2_000), 3_000, "the clock was set back");
    waiting.next_attempt_at = Some(i64::MAX);
    assert_eq!(nap_ms(&waiting, NOW, 0), 30_000);
    assert_eq!(nap_ms(&waiting, NOW + DAY_MS - 10, DAY_MS - 10), 11, "it expires then");
    assert_eq!(nap_ms(&waiting, NOW - DAY_MS, DAY_MS + 1), 0, "it has lived, whatever the clock says");
    let ahead = NOW + 2 * DAY_MS;
    let doubtful = Delivery { updated_at: ahead, next_attempt_at: Some(ahead + 500), ..waiting };
    assert_eq!(nap_ms(&doubtful, ahead, 0), 500, "by a clock in doubt it has expired, and is tried as if it had not");
}

#[tokio::test]
async fn a_panic_in_one_delivery_leaves_its_lane_going() {
    let rows = vec![lasting("broken", DEFECT), lasting("d", "hello")];
    let place = Place::with(Expiry::new(0), rows.clone()).await;
    let outcomes = place.enqueue(rows).await.settle(DEADLINE, &CancellationToken::new()).await;
    let ends: Vec<_> = outcomes.iter().map(|outcome| (outcome.delivery_id.as_str(), outcome.status)).collect();
    assert_eq!(ends, [("d", "sent")]);
    assert_eq!(place.status("broken").await, "uncertain");
    let readers = &place.outbox.shared.ledgers.nexus.readers;
    let broken = readers.read(|connection| delivery(connection, "broken")).await.unwrap().unwrap();
    assert!(broken.error.is_some_and(|error| error.contains("a defect of the daemon while this was being sent")));
    let other = place.outbox.resolve("broken", Resolution::Discard, Some("failed")).await.unwrap();
    assert_eq!(other, Resolved::NotNow { status: "uncertain".to_owned() }, "decided in view of something else");
    let done = place.outbox.resolve("broken", Resolution::Discard, Some("uncertain")).await.unwrap();
    assert_eq!(done, Resolved::Done { before: "uncertain".to_owned() });
}

#[tokio::test]
async fn a_delivery_that_cannot_be_read_is_read_again_and_the_ledger_is_not_well() {
    let place = Place::with(Expiry::new(0), vec![lasting("d", "hello")]).await;
    let ledgers = place.outbox.shared.ledgers.clone();
    let unwell = || {
        let troubles = ledgers.troubles();
        troubles.iter().filter(|(_, trouble)| trouble.is_some()).map(|(ledger, _)| ledger.name()).collect::<Vec<_>>()
    };
    assert_eq!(unwell(), Vec::<&str>::new());

    let stranger = place.stranger();
    stranger.execute_batch("ALTER TABLE deliveries RENAME TO mislaid").unwrap();
    let outbox = place.outbox.clone();
    #[expect(clippy::disallowed_methods, reason = "a test waits for it, or is over before it")]
    let loading = tokio::spawn(async move { outbox.load("d").await });
    eventually(async || unwell() == ["nexus"]).await;
    assert!(!loading.is_finished());
    stranger.execute_batch("ALTER TABLE mislaid RENAME TO deliveries").unwrap();
    let found = soon(loading).await.unwrap();
    assert_eq!(found.map(|delivery| delivery.delivery_id).as_deref(), Some("d"));
    assert_eq!(unwell(), ["nexus"], "it still counts: one row that nobody can read must not be forgotten between two tries");
}

#[tokio::test]
async fn a_decision_outlives_a_ledger_that_cannot_be_written_and_whoever_asked_for_it() {
    let place = Place::with(Expiry::new(0), vec![lasting("d", "hello")]).await;
    place.attempted("d", clock::wall_ms(), Settled::Uncertain { error: "nobody knows".to_owned() }).await;
    let stranger = place.stranger();
    stranger.execute_batch("BEGIN IMMEDIATE").unwrap();
    let outbox = place.outbox.clone();
    #[expect(clippy::disallowed_methods, reason = "a test waits for it, or is over before it")]
    let asking = tokio::spawn(async move { outbox.resolve("d", Resolution::Retry, None).await });
    let writer = place.outbox.shared.ledgers.nexus.writer.stats().clone();
    eventually(async || writer.failing.load(Ordering::Relaxed)).await;
    asking.abort();
    assert!(soon(asking).await.unwrap_err().is_cancelled());
    stranger.execute_batch("COMMIT").unwrap();
    eventually(async || place.status("d").await == "sent").await;
    assert_eq!(place.outbox.resolve("d", Resolution::Discard, None).await.unwrap(), Resolved::NotNow { status: "sent".to_owned() });
}

#[tokio::test]
async fn what_is_too_long_for_one_message_is_several_ahead_of_what_waits() {
    let rows = vec![lasting("d", "one two three"), lasting("later", "four")];
    let place = Place::with(Expiry::new(0), rows.clone()).await;
    place.adapt(|route| route.text_limit = 5);
    let outcomes = place.enqueue(rows).await.settle(DEADLINE, &CancellationToken::new()).await;
    let ends: Vec<_> = outcomes.iter().map(|outcome| (outcome.delivery_id.as_str(), outcome.status)).collect();
    assert_eq!(ends, [("d", "sent"), ("later", "sent")]);
    let wanted = ["d/1: one", "d/2: two", "d/3: three", "later: four"];
    assert_eq!((place.texts("sent_seq"), place.texts("seq")), (wanted.map(str::to_owned).to_vec(), wanted.map(str::to_owned).to_vec()));
    eventually(async || place.outbox.depth() == 0).await;
}

#[tokio::test]
async fn an_answer_that_cannot_be_streamed_yet_keeps_nobody_waiting() {
    let place = Place::with(Expiry::new(0), vec![lasting("d", "hello")]).await;
    place.adapt(|route| route.streamer = Some(Arc::new(Busy)));
    let (live, speaking) = Live::new(lasting("live", ""), "run".to_owned(), "s".to_owned());
    let waiting = place.outbox.stream(live);
    assert_eq!(place.outcome().await.status, "sent");
    assert!(!speaking.has_begun().await, "it leaves with its run's end");
    assert!(soon(waiting.settle(DEADLINE, &CancellationToken::new())).await.is_empty());
}

#[tokio::test]
async fn an_answer_whose_turn_is_just_coming_is_found_by_who_wants_it_parted() {
    let place = Place::new(Expiry::new(0));
    let (live, _speaking) = Live::new(lasting("live", ""), "run".to_owned(), "s".to_owned());
    let _waiting = place.outbox.stream(live.clone());
    let (channel, account_id, to) = (live.row.channel.clone(), live.row.account_id.clone(), live.row.target.clone());
    let target = DeliveryTarget { channel, account_id, target: to, thread_id: None, reply_to_id: None };
    let is_asked = || {
        place.outbox.part(&target);
        live.part_wanted().now_or_never().is_some()
    };
    assert!(is_asked(), "it waits for its turn");
    let next = place.outbox.lanes().get_mut(&lane_of(&target)).and_then(Lane::take_next);
    assert!(next.is_some_and(|next| next.live.is_some()) && is_asked(), "nobody has begun to serve it yet");
}

#[tokio::test]
async fn a_stream_that_a_defect_broke_off_has_no_text_to_send_again() {
    for (content, status) in [("", "uncertain"), ("hello", "pending")] {
        let place = Place::with(Expiry::new(0), vec![lasting("d", content)]).await;
        place.adapt(|route| route.on_uncertain = OnUncertain::Retry);
        let claim = ClaimDelivery { delivery_id: "d".to_owned(), at: clock::wall_ms(), epoch: EPOCH };
        place.outbox.shared.ledgers.nexus.writer.write(claim).await.unwrap();
        let panicked = panics::caught(async { assert_eq!(content, "something else") }).await.unwrap_err();
        assert_eq!(place.outbox.break_off("d", &panicked).await, status == "pending");
        assert_eq!(place.status("d").await, status);
    }
}

#[tokio::test]
async fn an_end_is_heard_by_who_waits_or_known_to_be_unheard() {
    let outcome = |id: &str| Outcome { delivery_id: id.to_owned(), status: "failed", error: None };
    let ((early, ended), (late, goes_on)) = (oneshot::channel(), oneshot::channel());
    assert!(early.send(outcome("early")).is_ok());
    let over = CancellationToken::new();
    over.cancel();
    let heard = Waiting(vec![goes_on, ended]).settle(DEADLINE, &over).await;
    assert_eq!(heard.iter().map(|outcome| outcome.delivery_id.as_str()).collect::<Vec<_>>(), ["early"], "it had ended before");
    assert!(late.send(outcome("late")).is_err(), "nobody waits for it any more");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_shares_a_commit_leaves_in_the_order_of_its_rows() {
    let place = Place::with(Expiry::new(0), Vec::new()).await;
    let (_admitted, upto) = watch::channel(1);
    let say = |n: usize| {
        let row = lasting(&format!("d{n}"), "hello");
        let (outbox, key, upto) = (place.outbox.clone(), row.idempotency_key.clone(), upto.clone());
        async move { outbox.say(key, vec![row], upto).await.unwrap() }
    };
    join_all((0..500).map(say)).await;
    let sent = "SELECT count(*) FROM deliveries WHERE status = 'sent'";
    eventually(async || place.stranger().query_row(sent, [], |row| row.get::<_, usize>(0)).unwrap() == 500).await;
    assert_eq!(place.texts("sent_seq"), place.texts("seq"));
}
