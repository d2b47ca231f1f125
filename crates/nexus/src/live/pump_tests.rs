//! Answers told to processes of pipes in memory, good and bad.
#![allow(clippy::unwrap_used)]

use super::super::{Desk, Speaking};
use super::*;
use futures_util::FutureExt;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, BufReader, DuplexStream, Lines};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

const PIPE_BYTES: usize = 256;
/// More than any test needs.
const PATIENCE: Duration = Duration::from_secs(60);
/// For who waits in vain.
const SHORT: Duration = Duration::from_millis(20);

/// A process's side of its line.
struct Process {
    desk: Desk,
    stdin: Lines<BufReader<DuplexStream>>,
    statuses: mpsc::Sender<Heard>,
}

impl Process {
    async fn start() -> Self {
        let (ours, theirs) = tokio::io::duplex(PIPE_BYTES);
        let (statuses, receiver) = mpsc::channel(16);
        let desk = Desk::default();
        desk.put(Line { stdin: Box::new(ours), statuses: receiver, last_ids: Vec::new(), killer: None }).await;
        Self { desk, stdin: BufReader::new(theirs).lines(), statuses }
    }

    async fn line(&mut self) -> Value {
        serde_json::from_str(&self.stdin.next_line().await.unwrap().unwrap()).unwrap()
    }

    async fn says(&self, status: StreamStatus) {
        self.statuses.send(Heard::Status { run_id: None, status }).await.unwrap();
    }

    async fn says_of(&self, run_id: &str, status: StreamStatus) {
        self.statuses.send(Heard::Status { run_id: Some(run_id.to_owned()), status }).await.unwrap();
    }

    /// Whether another answer could have it now.
    fn is_free(&self) -> bool {
        self.desk.take(PATIENCE).now_or_never().is_some()
    }
}

#[expect(clippy::disallowed_methods, reason = "a test waits for it, or is over before it")]
async fn answer(desk: &Desk, patience: Duration) -> (Speaking, JoinHandle<(SendOutcome, End)>) {
    let (live, speaking) = Live::new(crate::samples::delivery("d"), "run".to_owned(), "s".to_owned());
    assert!(live.begin(async { true }).await);
    let held = desk.take(patience).await;
    (speaking, tokio::spawn(async move { pump(&live, held).await }))
}

fn token(text: &str) -> StreamEvent {
    StreamEvent::Token { text: text.to_owned() }
}

fn complete(ids: &[&str]) -> StreamStatus {
    StreamStatus::Complete { message_ids: ids.iter().map(|id| (*id).to_owned()).collect() }
}

fn said() -> End {
    End::Said("hello".to_owned())
}

#[tokio::test]
async fn an_answer_is_told_from_start_to_end_and_the_line_is_free_again() {
    let mut process = Process::start().await;
    let (speaking, pumping) = answer(&process.desk, PATIENCE).await;
    let start = process.line().await;
    assert_eq!((&start["type"], &start["idempotencyKey"]), (&Value::from("stream_start"), &Value::from("d")));
    speaking.push(token("hel"));
    assert_eq!(process.line().await["text"], "hel");
    speaking.end(said());
    assert_eq!(process.line().await["final"], "hello");
    process.says(StreamStatus::Shown).await;
    process.says(complete(&["m1"])).await;
    assert_eq!(pumping.await.unwrap(), (SendOutcome::Sent { message_ids: vec!["m1".to_owned()] }, said()));
    assert!(process.is_free());
}

#[tokio::test]
async fn a_process_that_takes_nothing_holds_nobody_and_is_given_up() {
    let process = Process::start().await;
    let (speaking, pumping) = answer(&process.desk, SHORT).await;
    for _ in 0..10_000 {
        speaking.push(token(&"x".repeat(1000)));
    }
    speaking.end(said());
    let (outcome, _) = pumping.await.unwrap();
    assert!(matches!(&outcome, SendOutcome::Uncertain { error } if error.contains("took nothing for 20 ms")), "{outcome:?}");
    assert!(!process.is_free());
}

#[tokio::test]
async fn one_that_is_gone_before_the_first_byte_took_nothing() {
    let Process { desk, stdin, statuses } = Process::start().await;
    drop(stdin);
    let (speaking, pumping) = answer(&desk, PATIENCE).await;
    speaking.end(said());
    let (outcome, _) = pumping.await.unwrap();
    assert!(matches!(&outcome, SendOutcome::Retry { .. }), "{outcome:?}");
    assert!(desk.take(PATIENCE).now_or_never().is_none());
    drop(statuses);
}

#[tokio::test]
async fn one_that_dies_lies_or_talks_nonsense_leaves_it_uncertain() {
    let wrong = [
        (None, "ended in the middle"),
        (Some(Heard::Garbage("no JSON".to_owned())), "no JSON"),
        (Some(Heard::Status { run_id: Some("run".to_owned()), status: complete(&["early"]) }), "before the end"),
    ];
    for (heard, told) in wrong {
        let mut process = Process::start().await;
        let (speaking, pumping) = answer(&process.desk, PATIENCE).await;
        assert_eq!(process.line().await["type"], "stream_start");
        match heard {
            Some(heard) => process.statuses.send(heard).await.unwrap(),
            None => process.statuses = mpsc::channel(1).0,
        }
        assert!(process.desk.line.lock().await.is_none(), "{told}: it was let go before the run's end");
        speaking.push(token("and more"));
        speaking.end(said());
        let (outcome, _) = pumping.await.unwrap();
        assert!(matches!(&outcome, SendOutcome::Uncertain { error } if error.contains(told)), "{outcome:?}");
    }
}

#[tokio::test]
async fn a_message_without_an_id_is_uncertain_and_silence_has_an_end() {
    let mut process = Process::start().await;
    let (speaking, pumping) = answer(&process.desk, PATIENCE).await;
    speaking.end(said());
    process.line().await;
    process.line().await;
    process.says(complete(&[])).await;
    assert!(matches!(pumping.await.unwrap().0, SendOutcome::Uncertain { .. }));
    let (speaking, pumping) = answer(&process.desk, SHORT).await;
    speaking.end(End::Cut { error: "aborted".to_owned(), partial: "hel".to_owned() });
    assert_eq!(process.line().await["type"], "stream_start");
    let last = process.line().await;
    assert_eq!((&last["type"], &last["partial"]), (&Value::from("stream_error"), &Value::from("hel")));
    assert!(matches!(pumping.await.unwrap().0, SendOutcome::Uncertain { .. }));
    assert!(!process.is_free());
}

#[tokio::test]
async fn what_is_said_of_another_answer_is_not_taken_for_this_one() {
    let mut process = Process::start().await;
    for (id, is_believed) in [("m1", true), ("m1", false)] {
        let (speaking, pumping) = answer(&process.desk, PATIENCE).await;
        assert_eq!(process.line().await["type"], "stream_start");
        process.says_of("another", StreamStatus::Failed { error: Value::from("it is over") }).await;
        speaking.end(said());
        assert_eq!(process.line().await["type"], "stream_end");
        process.says_of("another", complete(&["m0"])).await;
        process.says_of("run", complete(&[id])).await;
        let (outcome, _) = pumping.await.unwrap();
        if is_believed {
            assert_eq!(outcome, SendOutcome::Sent { message_ids: vec![id.to_owned()] });
        } else {
            assert!(matches!(&outcome, SendOutcome::Uncertain { error } if error.contains("the answer before")), "{outcome:?}");
        }
        assert_eq!(process.is_free(), is_believed);
    }
}

#[tokio::test]
async fn a_refusal_is_a_word_too() {
    let process = Process::start().await;
    let (speaking, pumping) = answer(&process.desk, PATIENCE).await;
    process.says(StreamStatus::Failed { error: Value::from("no edits here") }).await;
    drop(process.desk.take(PATIENCE).await); // free while the agent goes on
    speaking.end(said());
    assert!(matches!(pumping.await.unwrap().0, SendOutcome::Retry { .. }));
}
