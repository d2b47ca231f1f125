//! Tests of the intake, on a real pipe and a real ledger.
#![allow(clippy::unwrap_used)]

use super::*;
use crate::ledger::{self, Database};
use nexus_core::doubt::Reading;
use serde_json::Value;
use tokio::io::AsyncWriteExt;
use tokio::net::unix::pipe::{Sender, pipe};

/// Looks at a condition that another task is about to make true.
const LOOKS_MAX: u32 = 100_000;

/// A ledger and all that an intake needs besides.
struct Place {
    ledger: Database<EventsCommand>,
    rules: watch::Sender<Rules>,
    intake: Intake,
    _directory: tempfile::TempDir,
}

fn place(pending_max: u64) -> Place {
    place_with(pending_max, Expiry::new(0))
}

fn place_with(pending_max: u64, expiry: Expiry) -> Place {
    let directory = tempfile::tempdir().unwrap();
    let (ledger, _threads) = ledger::start::<EventsCommand>(directory.path(), 0).unwrap();
    let rules = watch::Sender::new(Rules { line_bytes_max: 4096, pending_max, catch_up: CatchUp::default() });
    let sinks = Sinks {
        writer: ledger.writer.clone(),
        readers: ledger.readers.clone(),
        committed: Arc::new(watch::Sender::new(0)),
        pending: Pending::default(),
        expiry,
        bus: Bus::new(1, 16),
        metrics: Metrics::new(),
        disk_low: watch::channel(false).1,
    };
    let intake = Intake {
        account: AccountKey::new("fake", "me"),
        channel: "fake".to_owned(),
        kind: Kind::Live,
        rules: rules.subscribe(),
        sinks,
        stats: Arc::default(),
        acks: None,
        silence_max: None,
        exited: CancellationToken::new(),
    };
    Place { ledger, rules, intake, _directory: directory }
}

fn count(ledger: &Database<EventsCommand>, table: &str) -> i64 {
    let sql = format!("SELECT count(*) FROM {table}");
    ledger.readers.read_now(|connection| connection.query_row(&sql, [], |row| row.get(0))).unwrap()
}

fn line(n: u32) -> String {
    let line: Value = json!({
        "event_id": format!("fake:me-{n}"), "timestamp": 1, "content": "", "content_type": "text", "channel": "fake",
        "account_id": "me", "sender_id": "u1", "peer_id": "p1", "peer_kind": "dm",
    });
    line.to_string()
}

async fn say(pipe: &mut Sender, numbers: std::ops::RangeInclusive<u32>) {
    for n in numbers {
        pipe.write_all(format!("{}\n", line(n)).as_bytes()).await.unwrap();
    }
}

/// When all lines of [`batch`] are received.
const NOW: i64 = 1_000_000;

fn batch(intake: &Intake, numbers: &[u32]) -> Batch {
    let mut batch = Batch::default();
    for n in numbers {
        intake.take(Piece::Line(line(*n).as_bytes()), 4096, NOW, &mut batch);
    }
    batch
}

async fn soon(what: &str, mut is_so: impl FnMut() -> bool) {
    for _ in 0..LOOKS_MAX {
        if is_so() {
            return;
        }
        tokio::task::yield_now().await;
    }
    panic!("not soon: {what}");
}

#[test]
fn late_is_decided_by_age_and_never_for_unknown_or_future_times() {
    let mut rules = CatchUp { max_age_ms: 1000, late: Late::Run, ..CatchUp::default() };
    let live = |timestamp, rules: &CatchUp| disposition(Kind::Live, timestamp, 10_000, rules);
    assert_eq!(live(9_000, &rules), Disposition::Run);
    assert_eq!(live(8_999, &rules), Disposition::Late);
    assert_eq!(live(0, &rules), Disposition::Run);
    assert_eq!(live(253_402_300_799_000, &rules), Disposition::Run);
    rules.late = Late::File;
    assert_eq!(live(1, &rules), Disposition::Filed);
}

#[test]
fn a_history_takes_no_live_message_away() {
    let rules = CatchUp { max_age_ms: 1000, late: Late::Run, ..CatchUp::default() };
    let history = |timestamp| disposition(Kind::History { before: 9_500 }, timestamp, 10_000, &rules);
    assert_eq!(history(9_499), Disposition::History);
    assert_eq!(history(0), Disposition::History);
    assert_eq!(history(9_500), Disposition::Run);
    let long_ago = disposition(Kind::History { before: 5_000 }, 5_000, 10_000, &rules);
    assert_eq!(long_ago, Disposition::Late, "of a gap, and old by now");
}

#[tokio::test]
async fn what_the_dead_left_is_read_though_held_and_strangers_are_not_waited_for() {
    let Place { ledger, rules: _rules, intake, _directory } = place(1);
    let (mut stranger, stdout) = pipe().unwrap();
    say(&mut stranger, 1..=50).await;
    stranger.write_all(b"half a li").await.unwrap();
    let (stats, exited) = (intake.stats.clone(), intake.exited.clone());
    intake.sinks.pending.raise(&intake.account, 1);
    #[expect(clippy::disallowed_methods, reason = "a test waits for it, or is over before it")]
    let reader = tokio::spawn(intake.run(stdout));
    soon("it is held", || stats.trouble().is_some()).await;
    exited.cancel();
    assert_eq!(reader.await.unwrap(), Ended::Eof);
    assert_eq!(stats.trouble(), None);
    assert_eq!((count(&ledger, "events"), count(&ledger, "rejected_lines")), (50, 1));
    drop(stranger);
}

#[tokio::test]
async fn a_held_reader_goes_on_when_it_may_have_more() {
    let Place { ledger, rules, intake, _directory } = place(1);
    let (mut child, stdout) = pipe().unwrap();
    say(&mut child, 1..=3).await;
    drop(child);
    let stats = intake.stats.clone();
    intake.sinks.pending.raise(&intake.account, 1);
    #[expect(clippy::disallowed_methods, reason = "a test waits for it, or is over before it")]
    let reader = tokio::spawn(intake.run(stdout));
    soon("it is held", || stats.trouble().is_some()).await;
    assert!(!reader.is_finished());
    assert_eq!(count(&ledger, "events"), 0);
    rules.send_modify(|rules| rules.pending_max = 100);
    assert_eq!(reader.await.unwrap(), Ended::Eof);
    assert_eq!(count(&ledger, "events"), 3);
}

#[tokio::test]
async fn one_that_says_nothing_is_given_up() {
    let Place { ledger, rules: _rules, mut intake, _directory } = place(100);
    intake.silence_max = Some(Duration::from_millis(20));
    let (mut child, stdout) = pipe().unwrap();
    say(&mut child, 1..=2).await;
    assert_eq!(intake.run(stdout).await, Ended::Silent);
    assert_eq!(count(&ledger, "events"), 2);
    drop(child);
}

#[tokio::test]
async fn a_repetition_counts_what_an_earlier_attempt_had_written_and_nothing_twice() {
    let Place { ledger, rules: _rules, intake, _directory } = place(100);
    let mut flight = intake.launch(&mut batch(&intake, &[1])).await.unwrap();
    let landed = (&mut flight.commit).await;
    assert!(intake.land(flight, landed).await);
    let mut flight = intake.launch(&mut batch(&intake, &[1, 2, 3, 3])).await.unwrap();
    (&mut flight.commit).await.unwrap();
    let unknown = Err(WriteError::Unknown { ledger: "events", message: "the answer was lost".to_owned() });
    assert!(intake.land(flight, unknown).await);
    assert_eq!(count(&ledger, "events"), 3);
    assert_eq!(*intake.sinks.pending.watch(&intake.account).borrow(), 3);
    assert_eq!(*intake.sinks.committed.borrow(), 3, "the router was not told");
    assert_eq!(intake.stats.events(), 3);
}

#[tokio::test]
async fn late_events_are_not_filed_while_the_clock_is_in_doubt() {
    let in_doubt = Expiry::with_clocks(NOW + 1, || Reading { wall_ms: NOW, boot_ms: 0 });
    for (expiry, expected) in [(Expiry::new(0), Disposition::Filed), (in_doubt, Disposition::Late)] {
        let Place { ledger: _ledger, rules, intake, _directory } = place_with(100, expiry);
        rules.send_modify(|rules| rules.catch_up = CatchUp { max_age_ms: 1000, late: Late::File, ..CatchUp::default() });
        assert_eq!(batch(&intake, &[1]).lines.events[0].disposition, expected);
    }
}
