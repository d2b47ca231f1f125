//! One event, handed to the process of its project and followed to its end. It says what came of it, and whether
//! the same event may be handed over again; whether that is done, the pipeline decides.

use super::protocol::{self, Complete, Down, EventFrame, Publish};
use super::session::{Heard, Listening, Session};
use crate::agent::{Finished, Output, Sink, StopReason, ToolStatus, emit, taken};
use crate::ledger::nexus::Awaited;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// How long a process that is ready may take to say that an event has come.
const ACCEPT_LIMIT: Duration = Duration::from_secs(30);
/// The tool as which the record has what was published.
const PUBLISH: &str = "publish";
/// Characters of what is published that the record has beside the event itself.
const RECORDED_CHARS_MAX: usize = 2000;

/// Why there is no answer.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Fault {
    pub(super) problem: String,
    /// The same event may be handed over again, if nothing was said or done.
    pub(super) retryable: bool,
    /// The process still works on the event, or may: it is of no use for another one.
    pub(super) leaves_work: bool,
    /// The event would have been handed over, did the project not wait for this.
    pub(super) awaits: Option<Awaited>,
    /// As whoever asked may be told, if it is nothing of the inside.
    pub(super) told: Option<String>,
}

impl Fault {
    pub(super) fn last(problem: impl Into<String>) -> Self {
        Self { problem: problem.into(), retryable: false, leaves_work: false, awaits: None, told: None }
    }

    pub(super) fn passing(problem: impl Into<String>) -> Self {
        Self { retryable: true, ..Self::last(problem) }
    }

    fn leaving_work(self) -> Self {
        Self { leaves_work: true, ..self }
    }
}

/// Hands `frame` over and follows what is said of it, for `limit` at most from its acceptance on.
///
/// # Errors
/// [`Fault`]. Whoever drops this before its end leaves a process that still works on the event.
pub(super) async fn hand_over(session: &Arc<Session>, frame: EventFrame, limit: Duration, sink: &Sink) -> Result<Finished, Fault> {
    let id = frame.id.clone();
    let line = protocol::line(&Down::Event(Box::new(frame))).map_err(Fault::last)?;
    let Some(mut listening) = session.listen(&id) else { return Err(Fault::last("this event is being answered already")) };
    let accept_by = Instant::now() + ACCEPT_LIMIT;
    crate::torture::point("project.hand_over");
    let sent = tokio::time::timeout_at(accept_by, session.send(line)).await;
    if !sent.unwrap_or(false) {
        return Err(Fault::passing(format!("the event could not be handed over: {}", session.why())).leaving_work());
    }
    accepted(session, &mut listening, accept_by).await?;
    crate::torture::point("project.accepted");
    let answer = Answer { session, id: &id, sink, published: 0 };
    match tokio::time::timeout(limit, answer.follow(&mut listening)).await {
        Ok(ended) => ended,
        Err(_) => Err(Fault::last(format!("it took longer than {} ms", limit.as_millis())).leaving_work()),
    }
}

/// Waits for the word that the event has come. Whatever else is said of it means the same.
async fn accepted(session: &Session, listening: &mut Listening, by: Instant) -> Result<(), Fault> {
    match tokio::time::timeout_at(by, listening.next()).await {
        Ok(Some(Heard::Accepted)) => Ok(()),
        Ok(Some(Heard::Output(_) | Heard::Publish(_) | Heard::Complete(_))) => {
            Err(Fault::last("it spoke of the event before it accepted it").leaving_work())
        }
        Ok(None) => Err(Fault::passing(format!("the event was not accepted: {}", session.why()))),
        Err(_) => Err(Fault::passing(format!("the event was not accepted within {} s", ACCEPT_LIMIT.as_secs())).leaving_work()),
    }
}

struct Answer<'a> {
    session: &'a Arc<Session>,
    id: &'a str,
    sink: &'a Sink,
    published: u32,
}

impl Answer<'_> {
    async fn follow(mut self, listening: &mut Listening) -> Result<Finished, Fault> {
        loop {
            match listening.next().await {
                Some(Heard::Accepted) => {}
                Some(Heard::Output(output)) => emit(self.sink, output).await,
                Some(Heard::Publish(publish)) => self.publish(*publish).await,
                Some(Heard::Complete(complete)) => return finished(*complete),
                None => return Err(Fault::passing(format!("the answer broke off: {}", self.session.why()))),
            }
        }
    }

    /// That something is done from here on must be on disk before it is.
    async fn publish(&mut self, publish: Publish) {
        let (sink, call_id) = (self.sink, format!("{PUBLISH}-{}", self.published));
        let tell = |status, summary: Option<String>, detail: Option<String>| {
            emit(sink, Output::Tool { name: PUBLISH.to_owned(), call_id: call_id.clone(), status, summary, detail })
        };
        let content: String = publish.template.content.chars().take(RECORDED_CHARS_MAX).collect();
        let as_whom = format!("kind {} as {}", publish.template.kind, publish.agent);
        tell(ToolStatus::Started, Some(as_whom), Some(content)).await;
        taken(sink).await;
        // By its place among those of this event: handed over again, the same one is published once.
        let once = format!("{}/{}", self.id, self.published);
        self.published += 1;
        let published = self.session.desk.publisher.publish(&publish, &once).await;
        let (status, said) = match &published {
            Ok(event_id) => (ToolStatus::Completed, event_id.clone()),
            Err(error) => (ToolStatus::Failed, Some(error.clone())),
        };
        tell(status, None, said).await;
        self.session.acknowledge(publish.id, published).await;
    }
}

fn finished(complete: Complete) -> Result<Finished, Fault> {
    let Complete { content, usage, model, provider, error, .. } = complete;
    match error {
        None => Ok(Finished { content, usage, stop_reason: StopReason::EndTurn, model, provider }),
        Some(error) => Err(Fault::last(error)),
    }
}
