//! One account's way from a request to an acknowledged event.
//! Owns the order of the checks and every limit on what requests may hold; never touches stdin,
//! stdout or a listening socket.
//!
//! A 200 leaves only after the daemon's ack. The line is put on the queue to stdout while the
//! in-flight queue is locked, so that both have the same order and a cumulative ack means the same
//! on both sides.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use http_body_util::BodyExt;
use hyper::body::{Body, Incoming};
use hyper::header::EXPECT;
use hyper::http::request::Parts;
use hyper::{HeaderMap, Method, Request, StatusCode};
use serde_json::{Value, json};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::timeout;

use super::complaint::{Complaints, say};
use super::config::{HEALTH_PATH, Settings};
use super::event;
use super::inflight::{InFlight, NotAdmitted, Waiting};
use super::protocol::Line;
use super::refusal::{Refusal, Reply, answer};

const MAX_CONCURRENT_REQUESTS: u32 = 256;
const MAX_UNACKNOWLEDGED_EVENTS: usize = 1024;
/// What all bodies and unwritten lines together may hold.
const BODY_BUDGET_BYTES: usize = 64 << 20;
/// With the listener's limit on headers, a request arrives within 30 s or not at all.
const BODY_TIMEOUT_S: u64 = 20;
/// How much of a refused body is read and thrown away. Closing a socket with unread bytes resets
/// it, and the sender would see the reset in place of the answer.
const DISCARD_BYTES: usize = 128 << 20;
const DISCARD_TIMEOUT_S: u64 = 2;

/// What a request asks for.
enum Route {
    Health,
    Event,
}

/// The state shared by all connections of one account.
#[derive(Debug)]
pub(super) struct Intake {
    settings: Settings,
    lines: mpsc::Sender<Line>,
    in_flight: Mutex<InFlight>,
    requests: Semaphore,
    body_budget: Arc<Semaphore>,
    complaints: Mutex<Complaints>,
    accepted: AtomicU64,
    refused: AtomicU64,
    /// Unix milliseconds; 0 before the first event.
    last_event_at_ms: AtomicI64,
}

impl Intake {
    /// Events go to `lines` in the order in which they must be acknowledged.
    pub(super) fn new(settings: Settings, lines: mpsc::Sender<Line>) -> Self {
        Self {
            settings,
            lines,
            in_flight: Mutex::new(InFlight::new(MAX_UNACKNOWLEDGED_EVENTS)),
            requests: Semaphore::new(MAX_CONCURRENT_REQUESTS as usize),
            body_budget: Arc::new(Semaphore::new(BODY_BUDGET_BYTES)),
            complaints: Mutex::default(),
            accepted: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            last_event_at_ms: AtomicI64::new(0),
        }
    }

    /// Answers one request; a POST to the account's path only after the event's ack.
    pub(super) async fn answer(&self, request: Request<Incoming>) -> Reply {
        let (head, mut body) = request.into_parts();
        match self.respond(&head, &mut body).await {
            Ok(reply) => reply,
            Err(refusal) => {
                self.refused.fetch_add(1, Ordering::Relaxed);
                self.complain(refusal.cause(), &format!("refused a request: {refusal}"));
                // Who waits for "100 Continue" sends nothing more once it is refused.
                if !head.headers.contains_key(EXPECT) {
                    discard(body);
                }
                refusal.reply()
            }
        }
    }

    /// Applies the daemon's ack.
    pub(super) fn release(&self, event_id: &str) {
        self.in_flight().release(event_id);
    }

    /// Takes no more events; those written still get their answer.
    pub(super) fn stop(&self) {
        self.in_flight().stop();
    }

    /// Answers 503 to whoever still waits.
    pub(super) fn abandon(&self) {
        self.in_flight().abandon();
    }

    /// Resolves when no request is in progress.
    pub(super) async fn all_answered(&self) {
        // Never closed, so the only outcome is to hold every permit.
        drop(self.requests.acquire_many(MAX_CONCURRENT_REQUESTS).await);
    }

    /// Resolves when nothing written can reach the daemon any more.
    pub(super) async fn daemon_gone(&self) {
        self.lines.closed().await;
    }

    /// Says `text` on stderr unless the same cause was named a moment ago.
    pub(super) fn complain(&self, cause: &'static str, text: &str) {
        let due = self.complaints.lock().unwrap_or_else(PoisonError::into_inner).due(cause, Instant::now());
        match due {
            Some(0) => say(text),
            Some(repeats) => say(format!("{text} (and {repeats} more of the kind)")),
            None => {}
        }
    }

    async fn respond(&self, head: &Parts, body: &mut Incoming) -> Result<Reply, Refusal> {
        match self.route(head)? {
            Route::Health => Ok(answer(StatusCode::OK, &self.health())),
            Route::Event => {
                let event_id = self.receive(&head.headers, body).await?;
                self.accepted.fetch_add(1, Ordering::Relaxed);
                self.last_event_at_ms.store(unix_now_ms(), Ordering::Relaxed);
                let accepted = json!({ "event_id": event_id, "status": "accepted" });
                Ok(answer(StatusCode::OK, &accepted))
            }
        }
    }

    fn route(&self, head: &Parts) -> Result<Route, Refusal> {
        let path = head.uri.path();
        if path == HEALTH_PATH {
            return if head.method == Method::GET { Ok(Route::Health) } else { Err(Refusal::WrongMethod { allow: "GET" }) };
        }
        if path != self.settings.path {
            return Err(Refusal::NotFound);
        }
        if head.method != Method::POST {
            return Err(Refusal::WrongMethod { allow: "POST" });
        }
        Ok(Route::Event)
    }

    fn health(&self) -> Value {
        let (unacknowledged, waiting) = {
            let in_flight = self.in_flight();
            (in_flight.unacknowledged(), in_flight.waiting())
        };
        let last_event_at_ms = self.last_event_at_ms.load(Ordering::Relaxed);
        json!({
            "status": "ok",
            "account": self.settings.account_id,
            "last_event_at": (last_event_at_ms > 0).then_some(last_event_at_ms),
            "accepted": self.accepted.load(Ordering::Relaxed),
            "refused": self.refused.load(Ordering::Relaxed),
            "unacknowledged": unacknowledged,
            "waiting": waiting,
        })
    }

    /// Verifies, writes and waits. Returns the id of the acknowledged event.
    async fn receive(&self, headers: &HeaderMap, body: &mut Incoming) -> Result<String, Refusal> {
        let _turn = self.requests.try_acquire().map_err(|_| Refusal::Busy)?;
        let now_s = u64::try_from(unix_now_ms() / 1000).unwrap_or(0);
        let claim = self.settings.verifier.claim(headers, now_s)?;
        let limit = Duration::from_secs(BODY_TIMEOUT_S);
        let (body, budget) = timeout(limit, self.read_body(body)).await.map_err(|_| Refusal::SlowBody)??;
        claim.prove(&body)?;
        // Only the id is kept while waiting, which may take long and be done by many at once.
        let (event_id, bytes) = self.encode(headers, body)?;
        let line = Line { bytes, _budget: budget };
        timeout(self.settings.ack_timeout, self.deliver(&event_id, line)).await.map_err(|_| Refusal::NotAcknowledged)??;
        Ok(event_id)
    }

    /// The id and the line of the event that a verified body makes.
    fn encode(&self, headers: &HeaderMap, body: Vec<u8>) -> Result<(String, Vec<u8>), Refusal> {
        let event = event::build(&self.settings, headers, body, unix_now_ms())?;
        let line = event.to_line().map_err(Refusal::Encode)?;
        let limit_bytes = self.settings.max_line_bytes;
        if line.len() > limit_bytes {
            return Err(Refusal::LineTooLong { limit_bytes });
        }
        Ok((event.event_id, line))
    }

    /// Reads at most `max_body_bytes`, paying for each chunk out of the shared budget. A declared
    /// length over the limit is refused before the first byte is read.
    async fn read_body(&self, body: &mut Incoming) -> Result<(Vec<u8>, Option<OwnedSemaphorePermit>), Refusal> {
        let limit_bytes = self.settings.max_body_bytes;
        if body.size_hint().lower() > limit_bytes as u64 {
            return Err(Refusal::TooLarge { limit_bytes });
        }
        let mut bytes = Vec::new();
        let mut budget: Option<OwnedSemaphorePermit> = None;
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(Refusal::BrokenBody)?;
            let Some(chunk) = frame.data_ref() else {
                continue;
            };
            if chunk.len() > limit_bytes - bytes.len() {
                return Err(Refusal::TooLarge { limit_bytes });
            }
            let cost = u32::try_from(chunk.len()).map_err(|_| Refusal::TooLarge { limit_bytes })?;
            let paid = Arc::clone(&self.body_budget).try_acquire_many_owned(cost).map_err(|_| Refusal::Busy)?;
            match budget.as_mut() {
                Some(sum) => sum.merge(paid),
                None => budget = Some(paid),
            }
            bytes.extend_from_slice(chunk);
        }
        Ok((bytes, budget))
    }

    /// Writes the event unless it is on its way already, then waits for its ack.
    async fn deliver(&self, event_id: &str, line: Line) -> Result<(), Refusal> {
        let joined = self.in_flight().join(event_id);
        let waiting = match joined {
            Some(waiting) => {
                // Its memory is not needed while waiting for the copy that went ahead.
                drop(line);
                waiting
            }
            None => {
                let slot = self.lines.reserve().await.map_err(|_| Refusal::Stopping)?;
                self.enqueue(event_id, line, slot)?
            }
        };
        waiting.await.map_err(|_| Refusal::Stopping)
    }

    fn enqueue(&self, event_id: &str, line: Line, slot: mpsc::Permit<'_, Line>) -> Result<Waiting, Refusal> {
        let mut in_flight = self.in_flight();
        // The same delivery may have been written while this one waited for its slot.
        if let Some(waiting) = in_flight.join(event_id) {
            return Ok(waiting);
        }
        let waiting = in_flight.admit(event_id).map_err(|reason| match reason {
            NotAdmitted::Full => Refusal::Backlog,
            NotAdmitted::Stopped => Refusal::Stopping,
        })?;
        slot.send(line);
        Ok(waiting)
    }

    fn in_flight(&self) -> MutexGuard<'_, InFlight> {
        self.in_flight.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Throws away what a refused sender is still sending, within limits, beside the answer.
fn discard(mut body: Incoming) {
    if body.is_end_stream() {
        return;
    }
    let rest = async move {
        let mut left = DISCARD_BYTES;
        while let Some(Ok(frame)) = body.frame().await {
            let length = frame.data_ref().map_or(0, |chunk| chunk.len());
            if length > left {
                return;
            }
            left -= length;
        }
    };
    #[expect(clippy::disallowed_methods, reason = "no daemon is here that could count; it ends with its time, and keeps nothing")]
    tokio::spawn(timeout(Duration::from_secs(DISCARD_TIMEOUT_S), rest));
}

fn unix_now_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}
