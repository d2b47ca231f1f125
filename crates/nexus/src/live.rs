//! An answer on its way to a `stream` process while its agent still speaks: the queue between the run and the lane
//! of its target, what both know of how far it has come, and the process's line with who has it. It never makes the
//! run wait for the process, starts none and writes no ledger; what is said on the line is [`pump`]'s.

pub mod pump;

use crate::keeper::Killer;
use crate::ledger::nexus::NewDelivery;
use nexus_core::stream::{EventQueue, StreamEvent, StreamStatus};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::io::AsyncWrite;
use tokio::sync::{Notify, OwnedMutexGuard, mpsc};

/// How an answer ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// It is whole, and this.
    Said(String),
    /// The agent failed after it had said `partial`.
    Failed { error: String, partial: String },
    /// As [`Self::Failed`], but nobody waits for the partial: a newer message came, or the daemon stops.
    Cut { error: String, partial: String },
    /// Nobody knows: a defect of the daemon broke the run off.
    Lost,
}

impl End {
    /// All that was said.
    pub fn text(&self) -> &str {
        match self {
            Self::Said(text) | Self::Failed { partial: text, .. } | Self::Cut { partial: text, .. } => text,
            Self::Lost => "",
        }
    }
}

/// What comes next of an answer.
#[derive(Debug)]
pub enum Next {
    Events(Vec<StreamEvent>),
    End(End),
}

/// Whether the answer's row is in the ledger, so that bytes of it may leave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Begun {
    NotYet,
    Yes,
    /// It will leave in another way.
    Never,
}

#[derive(Debug, Default)]
struct Coming {
    events: EventQueue,
    end: Option<End>,
}

/// One answer, between its run and its lane.
#[derive(Debug)]
pub struct Live {
    /// The delivery that it is, without its text.
    pub row: NewDelivery,
    pub run_id: String,
    pub session: String,
    coming: Mutex<Coming>,
    /// For the lane, the only one that waits here.
    news: Notify,
    /// For the run, the only one that waits here.
    parting: Notify,
    /// Locked while the row is being written.
    begun: tokio::sync::Mutex<Begun>,
}

impl Live {
    /// An answer of which nothing was said yet, and the run's hold on it.
    pub fn new(row: NewDelivery, run_id: String, session: String) -> (Arc<Self>, Speaking) {
        let (coming, begun) = (Mutex::default(), tokio::sync::Mutex::new(Begun::NotYet));
        let live = Arc::new(Self { row, run_id, session, coming, news: Notify::new(), parting: Notify::new(), begun });
        (live.clone(), Speaking(live))
    }

    /// What comes next; after the end, the end again.
    pub async fn next(&self) -> Next {
        loop {
            {
                let mut coming = self.lock();
                let events = coming.events.take();
                if !events.is_empty() {
                    return Next::Events(events);
                }
                if let Some(end) = &coming.end {
                    return Next::End(end.clone());
                }
            }
            self.news.notified().await;
        }
    }

    /// Waits for the end, whatever comes before it.
    pub async fn ended(&self) -> End {
        loop {
            if let Some(end) = &self.lock().end {
                return end.clone();
            }
            self.news.notified().await;
        }
    }

    /// Has the row written, unless the answer leaves in another way by now. True when bytes may leave.
    pub async fn begin(&self, write: impl Future<Output = bool>) -> bool {
        let mut begun = self.begun.lock().await;
        if *begun == Begun::NotYet {
            let is_over = self.lock().end.is_some();
            *begun = if !is_over && write.await { Begun::Yes } else { Begun::Never };
        }
        *begun == Begun::Yes
    }

    /// Asks the run to end this part of its answer soon, and to go on in another.
    pub fn want_part(&self) {
        self.parting.notify_one();
    }

    /// Waits until somebody asks for that.
    pub async fn part_wanted(&self) {
        self.parting.notified().await;
    }

    fn push(&self, event: StreamEvent) {
        if !self.lock().events.push(event) {
            tracing::trace!(run_id = self.run_id, "a stream process is slow; the end of the answer tells all of it");
        }
        self.news.notify_one();
    }

    fn end(&self, end: End) {
        {
            let mut coming = self.lock();
            if coming.end.is_none() {
                coming.end = Some(end);
            }
        }
        self.news.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, Coming> {
        // Consistent between statements; a panic elsewhere is no reason to lose the answer.
        self.coming.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The run's hold on its answer. Dropped without an end, the answer is [`End::Lost`].
#[derive(Debug)]
pub struct Speaking(Arc<Live>);

impl Speaking {
    pub fn live(&self) -> &Arc<Live> {
        &self.0
    }

    /// Never waits: what a slow process doesn't take is put together, and left out in the end.
    pub fn push(&self, event: StreamEvent) {
        self.0.push(event);
    }

    /// Whether it leaves as a stream. Where it hasn't begun to, it never will.
    pub async fn has_begun(&self) -> bool {
        let mut begun = self.0.begun.lock().await;
        if *begun == Begun::NotYet {
            *begun = Begun::Never;
        }
        *begun == Begun::Yes
    }

    pub fn end(self, end: End) {
        self.0.end(end);
    }
}

impl Drop for Speaking {
    fn drop(&mut self) {
        self.0.end(End::Lost);
    }
}

/// What was heard from a process.
#[derive(Debug)]
pub enum Heard {
    Status {
        /// The run of which it says so, if it tells.
        run_id: Option<String>,
        status: StreamStatus,
    },
    /// A line that is no status, and why.
    Garbage(String),
}

/// A running process: its stdin, and what it says.
pub struct Line {
    pub stdin: Box<dyn AsyncWrite + Send + Unpin>,
    pub statuses: mpsc::Receiver<Heard>,
    /// The messages of the last answer that it said was there.
    pub last_ids: Vec<String>,
    /// Ends it.
    pub killer: Option<Killer>,
}

impl Line {
    /// Whether its process can be told an answer. What it said of one that is over is forgotten.
    fn is_ready(&mut self) -> bool {
        while self.statuses.try_recv().is_ok() {}
        !self.statuses.is_closed()
    }
}

impl fmt::Debug for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Line").field("killer", &self.killer).finish_non_exhaustive()
    }
}

/// Where the line of one account's process is found while it runs. One answer has it at a time.
#[derive(Debug, Clone, Default)]
pub struct Desk {
    line: Arc<tokio::sync::Mutex<Option<Line>>>,
    /// Rung when a process has come.
    came: Arc<Notify>,
}

impl Desk {
    /// Puts the line of a new process there.
    pub async fn put(&self, line: Line) {
        *self.line.lock().await = Some(line);
        self.came.notify_waiters();
    }

    /// The process is gone.
    pub async fn clear(&self) {
        *self.line.lock().await = None;
    }

    /// The line, once a process runs and no other answer has it. Each step of a talk over it may take `patience`.
    pub async fn take(&self, patience: Duration) -> Held {
        loop {
            // Before the look: it hears of what comes from here on.
            let came = self.came.notified();
            let mut guard = self.line.clone().lock_owned().await;
            if guard.as_mut().is_some_and(Line::is_ready) {
                return Held { guard, patience, is_in_step: true };
            }
            drop(guard);
            came.await;
        }
    }
}

/// A line in the hands of one answer. A process that is let go in the middle of one is ended: what it says of that
/// later would be taken for an answer's that is not its own.
#[derive(Debug)]
pub struct Held {
    guard: OwnedMutexGuard<Option<Line>>,
    patience: Duration,
    is_in_step: bool,
}

impl Drop for Held {
    fn drop(&mut self) {
        if self.is_in_step {
            return;
        }
        if let Some(killer) = self.guard.take().and_then(|line| line.killer) {
            killer.kill("it was let go in the middle of an answer");
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use futures_util::FutureExt;

    fn live() -> (Arc<Live>, Speaking) {
        Live::new(crate::samples::delivery("d"), "run".to_owned(), "s".to_owned())
    }

    fn token(text: &str) -> StreamEvent {
        StreamEvent::Token { text: text.to_owned() }
    }

    #[tokio::test]
    async fn pieces_that_nobody_took_are_one_and_the_end_comes_after_them() {
        let (live, speaking) = live();
        speaking.push(token("a"));
        speaking.push(token("b"));
        assert!(live.begin(async { true }).await && speaking.has_begun().await);
        speaking.end(End::Said("ab".to_owned()));
        assert!(matches!(live.next().await, Next::Events(events) if events == [token("ab")]));
        assert!(matches!(live.next().await, Next::End(End::Said(text)) if text == "ab"));
        assert_eq!(live.ended().await, End::Said("ab".to_owned()));
    }

    #[tokio::test]
    async fn an_answer_that_leaves_in_another_way_never_begins() {
        let (live, speaking) = live();
        assert!(!speaking.has_begun().await);
        assert!(!live.begin(async { panic!("its row was written") }).await);
    }

    #[tokio::test]
    async fn a_row_that_could_not_be_written_lets_nothing_leave() {
        let (live, speaking) = live();
        assert!(!live.begin(async { false }).await);
        assert!(!speaking.has_begun().await);
    }

    #[tokio::test]
    async fn a_run_that_vanishes_ends_its_answer() {
        let (live, speaking) = live();
        drop(speaking);
        assert_eq!(live.ended().await, End::Lost);
        assert!(!live.begin(async { true }).await);
    }

    #[tokio::test]
    async fn a_line_is_one_answers_at_a_time_and_an_old_status_is_nobodys() {
        let desk = Desk::default();
        let is_free = || desk.take(Duration::ZERO).now_or_never().is_some();
        assert!(!is_free(), "no process runs");
        #[expect(clippy::disallowed_methods, reason = "a test waits for it, or is over before it")]
        let waiting = tokio::spawn({
            let desk = desk.clone();
            async move { desk.take(Duration::ZERO).await }
        });
        let (heard, statuses) = mpsc::channel(4);
        let status = StreamStatus::Complete { message_ids: vec!["old".to_owned()] };
        heard.try_send(Heard::Status { run_id: None, status }).unwrap();
        desk.put(Line { stdin: Box::new(tokio::io::sink()), statuses, last_ids: Vec::new(), killer: None }).await;
        let mut first = waiting.await.unwrap();
        assert!(!is_free());
        assert!(first.guard.as_mut().unwrap().statuses.try_recv().is_err());
        drop(first);
        assert!(is_free());
        let mut second = desk.take(Duration::ZERO).await;
        second.is_in_step = false;
        drop(second);
        assert!(!is_free(), "a process out of step is not used again");
    }
}
