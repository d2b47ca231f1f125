//! Admission: pages of committed events become `waiting` requests. Work on a page begins before its
//! commit returns; the first write of each request is queued behind it.

use crate::clock;
use crate::ledger::events::{Disposition, StoredEvent, page_after};
use crate::ledger::nexus::{Admit, AdmitRow, Claim, OpenRequest, counter};
use crate::ledger::writer::WriteError;
use crate::panics;
use crate::pipeline::{Pipeline, words};
use nexus_core::event::Event;
use nexus_core::request::Status;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio_util::task::TaskTracker;

/// Events read at a time.
const PAGE: usize = 256;
/// The name of a page that is refused, in the watch over the daemon's tasks.
pub const ADMISSION: &str = "admission";
/// Pause before a page that is not on disk is tried again.
const REPEAT: Duration = Duration::from_millis(20);

/// A request that was admitted, with its event.
pub(super) type Admitted = (OpenRequest, Box<StoredEvent>);

pub(super) struct Admission {
    pipeline: Arc<Pipeline>,
    admitted: watch::Sender<i64>,
    /// Commits on their way.
    commits: TaskTracker,
    /// Read up to here; `None` before the ledger was asked.
    upto: Option<i64>,
}

impl Admission {
    pub(super) fn new(pipeline: &Arc<Pipeline>, admitted: &watch::Sender<i64>, commits: &TaskTracker) -> Self {
        Self { pipeline: pipeline.clone(), admitted: admitted.clone(), commits: commits.clone(), upto: None }
    }

    /// Hands pages to the router until it stops. A task of its own: a page that is half admitted
    /// must not be dropped because something else happened.
    pub(super) async fn run(mut self, mut committed: watch::Receiver<i64>, pages: mpsc::Sender<Vec<Admitted>>) {
        while let Some(page) = self.next(&mut committed).await {
            crate::torture::point("task.admission");
            if !page.is_empty() && pages.send(page).await.is_err() {
                return;
            }
        }
    }

    /// Waits for events beyond what was read and admits one page of them; `None` when the daemon stops.
    async fn next(&mut self, committed: &mut watch::Receiver<i64>) -> Option<Vec<Admitted>> {
        let (ledgers, stop) = (&self.pipeline.ledgers, &self.pipeline.abandon);
        let from = match self.upto {
            Some(seq) => seq,
            None => {
                let seq = ledgers.nexus.readers.read_until_done(|connection| counter(connection, "intake_seq"), stop).await?;
                self.admitted.send_replace(seq);
                *self.upto.insert(seq)
            }
        };
        if committed.wait_for(|seq| *seq > from).await.is_err() {
            return std::future::pending().await; // nothing will be committed any more
        }
        let (upto, page) = ledgers.events.readers.read_until_done(move |connection| page_after(connection, from, PAGE), stop).await?;
        let admitted = self.admit(from, upto, page).await;
        self.upto = Some(upto);
        Some(admitted)
    }

    async fn admit(&self, from: i64, upto: i64, page: Vec<StoredEvent>) -> Vec<Admitted> {
        let (now, settings) = (clock::wall_ms(), self.pipeline.settings.load_full());
        let mut rows = Vec::with_capacity(page.len());
        let mut admitted = Vec::with_capacity(page.len());
        for event in page {
            let mut row = row_of(&event, now);
            row.conversation = words::lane(&settings.access, &event, row.conversation);
            if row.status == Status::Waiting {
                let request = OpenRequest {
                    event_seq: row.event_seq,
                    request_id: row.request_id.clone(),
                    conversation: row.conversation.clone(),
                    adapter: row.adapter.clone(),
                    account_id: row.account_id.clone(),
                    attempts: 0,
                };
                admitted.push((request, Box::new(event)));
            }
            rows.push(row);
        }
        self.commit(Admit { from_seq: from, upto_seq: upto, rows, epoch: self.pipeline.epoch }).await;
        admitted
    }

    /// Submits the page and watches its commit from a task of its own, repeating it until it is on
    /// disk: nothing that comes after it can be admitted before. Submitting is what orders it before the
    /// writes of its requests.
    async fn commit(&self, admit: Admit) {
        let pipeline = self.pipeline.clone();
        let admitted = self.admitted.clone();
        let first = pipeline.ledgers.nexus.writer.submit(admit.clone()).await;
        let committing = async move {
            let repeating = async {
                let first = match first {
                    Ok(commit) => commit.await,
                    Err(error) => Err(error),
                };
                until_admitted(&pipeline, &admit, first).await
            };
            match panics::caught(repeating).await {
                Ok(true) => crate::ledger::raise(&admitted, admit.upto_seq),
                Ok(false) => {}
                // Whatever comes after this page waits for it: that must not look well.
                Err(panicked) => pipeline.watch_over.part(ADMISSION).give_up(&panicked.to_string()),
            }
        };
        crate::watch::tracked("admission.page", &self.commits, committing);
    }
}

/// Repeats a page, whose last attempt came to `result`, until it is on disk. False when it is left to the next
/// start.
async fn until_admitted(pipeline: &Pipeline, admit: &Admit, mut result: Result<Claim, WriteError>) -> bool {
    let writer = &pipeline.ledgers.nexus.writer;
    let mut refused = None;
    loop {
        // The page may never get in now, and this task's handle keeps the ledger open.
        let stops = writer.stops_repeating();
        let is_repeated = match &result {
            Ok(Claim::Done) => return true,
            // Lost: the page before failed and is being repeated; this one has to follow it.
            Err(WriteError::Unknown { .. }) | Ok(Claim::Lost) => tokio::select! {
                () = tokio::time::sleep(REPEAT) => true,
                () = stops => false,
            },
            // A defect. It may pass; if it doesn't, health says that nothing is processed.
            Err(error @ WriteError::Refused { .. }) => {
                let (error, part) = (error.to_string(), refused.get_or_insert_with(|| pipeline.watch_over.part(ADMISSION)));
                tokio::select! {
                    is_repeated = part.failed(&error, &pipeline.abandon) => is_repeated,
                    () = stops => false,
                }
            }
            Err(WriteError::Closed { .. }) => false,
        };
        if !is_repeated {
            tracing::warn!(upto = admit.upto_seq, "events not admitted; the next start admits them");
            return false;
        }
        result = writer.write_until_done(admit.clone()).await;
    }
}

/// The conversation of an event. Of its adapter: two may serve one channel under one account id, and are counted
/// and held apart.
pub(crate) fn conversation_of(adapter: &str, event: &Event) -> String {
    format!("{adapter}\u{1f}{}", event.conversation())
}

fn why_filed(event: &StoredEvent) -> &'static str {
    if event.adapter == crate::nostr::ADAPTER {
        "filed: it names several projects and not an agent of each, or may have been answered before a restore"
    } else {
        "late: older than catch_up.max_age_ms, filed by catch_up.late"
    }
}

/// The request that an accepted event becomes.
pub(crate) fn row_of(event: &StoredEvent, now: i64) -> AdmitRow {
    let filed = event.disposition == Disposition::Filed;
    AdmitRow {
        event_seq: event.seq,
        request_id: format!("req_{}", ulid::Ulid::generate()),
        event_id: event.event.event_id.clone(),
        channel: event.event.channel.clone(),
        account_id: event.event.account_id.clone(),
        adapter: event.adapter.clone(),
        conversation: conversation_of(&event.adapter, &event.event),
        late: matches!(event.disposition, Disposition::Late | Disposition::Filed),
        created_at: now,
        status: if filed { Status::Expired } else { Status::Waiting },
        reason: filed.then_some(why_filed(event)),
    }
}
