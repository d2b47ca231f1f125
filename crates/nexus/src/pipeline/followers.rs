//! The followers: agents.db follows finished runs, identity.db follows events, and events.db follows
//! what was sent. Each repeats from its own mark after any failure or crash.

use crate::bus::Bus;
use crate::clock;
use crate::error_text::describe;
use crate::ledger::agents::{ApplyTurns, NewSessions, TurnRecord};
use crate::ledger::events::{Disposition, NewEvent, RecordOutbound, SCAN_ROWS, SENT_SOURCE, senders_after};
use crate::ledger::identity::ApplyContacts;
use crate::ledger::nexus::{Delivery, finished_after, sent_after};
use crate::ledger::writer::WriteError;
use crate::ledger::{Ledgers, agents, follow, identity};
use nexus_core::event::PeerKind;
use nexus_core::notice::NoticeType;
use serde_json::json;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

/// Rows taken at a time.
const PAGE: usize = 256;
/// Pause after a failure.
const RETRY: Duration = Duration::from_millis(500);
/// Contacts are gathered for so long.
const CONTACTS_INTERVAL: Duration = Duration::from_millis(500);
/// What was sent is gathered for so long.
const SENT_INTERVAL: Duration = Duration::from_millis(500);

/// Whether there is more to follow at once.
type Step = Result<bool, Box<dyn std::error::Error + Send + Sync>>;

/// What a follower does after a step.
enum Next {
    AtOnce,
    /// For its bell.
    Wait,
    Stop,
}

/// What comes after a step; after one that failed, which is told as `trouble`, a pause.
async fn after(step: Step, trouble: &'static str, stop: &CancellationToken) -> Next {
    match step {
        Ok(true) => Next::AtOnce,
        Ok(false) => Next::Wait,
        Err(error) => {
            tracing::warn!(error = %describe(&*error), "{trouble}; trying again");
            if pause(RETRY, stop).await { Next::Stop } else { Next::AtOnce }
        }
    }
}

/// agents.db follows finished runs; `applied` tells how far.
pub async fn follow_turns(ledgers: Ledgers, bus: Bus, bell: Arc<Notify>, applied: watch::Sender<i64>, stop: CancellationToken) {
    loop {
        crate::torture::point("task.agents follower");
        match after(apply_turns(&ledgers, &bus, &applied).await, "the agents ledger can't follow", &stop).await {
            Next::AtOnce => continue,
            Next::Wait => {}
            Next::Stop => return,
        }
        tokio::select! {
            () = bell.notified() => {}
            () = stop.cancelled() => return,
        }
    }
}

async fn apply_turns(ledgers: &Ledgers, bus: &Bus, applied: &watch::Sender<i64>) -> Step {
    let mark = *applied.borrow();
    let (upto, turns) = ledgers.nexus.readers.read(move |connection| finished_after(connection, mark, PAGE)).await?;
    if upto == mark {
        return Ok(false);
    }
    let is_full = upto - mark >= PAGE as i64; // finish_seq leaves none out
    let page = turns.iter().map(|(_, turn)| turn.clone()).collect();
    let applied_now = match ledgers.agents.writer.write(ApplyTurns { upto_finish_seq: upto, turns: page }).await {
        Err(WriteError::Refused { message, .. }) => {
            tracing::error!(error = message, "a page of turns is refused; applying them one by one");
            one_by_one(ledgers, upto, turns).await?
        }
        done => done?,
    };
    for session in applied_now {
        bus.publish(NoticeType::SessionCreated, session);
    }
    applied.send_replace(upto);
    Ok(is_full)
}

/// A turn that the ledger refuses must not keep the others from it: it is left out, and told.
async fn one_by_one(ledgers: &Ledgers, upto: i64, turns: Vec<(i64, TurnRecord)>) -> Result<NewSessions, WriteError> {
    let mut sessions = Vec::new();
    for (seq, turn) in turns {
        let id = turn.turn_id.clone();
        match ledgers.agents.writer.write(ApplyTurns { upto_finish_seq: seq, turns: vec![turn] }).await {
            Ok(new) => sessions.extend(new),
            Err(WriteError::Refused { message, .. }) => tracing::error!(turn = id, error = message, "turn left out of the agents ledger"),
            Err(error) => return Err(error),
        }
    }
    ledgers.agents.writer.write(ApplyTurns { upto_finish_seq: upto, turns: Vec::new() }).await?;
    Ok(sessions)
}

/// Where agents.db stands at a start.
///
/// # Errors
/// When it can't be read.
pub async fn turns_mark(ledgers: &Ledgers) -> Result<i64, crate::ledger::ReadError> {
    ledgers.agents.readers.read(|connection| follow::applied(connection, agents::SOURCE)).await
}

/// identity.db follows events.
pub async fn follow_contacts(ledgers: Ledgers, mut committed: watch::Receiver<i64>, stop: CancellationToken) {
    let mut mark = None;
    loop {
        crate::torture::point("task.identity follower");
        match after(apply_contacts(&ledgers, &mut mark).await, "the identity ledger can't follow", &stop).await {
            Next::AtOnce => continue,
            Next::Wait => {}
            Next::Stop => return,
        }
        tokio::select! {
            changed = committed.changed() => if changed.is_err() { return },
            () = stop.cancelled() => return,
        }
        // Contacts are in no hurry; a commit for each would be taken from the others' disk.
        if pause(CONTACTS_INTERVAL, &stop).await {
            return;
        }
    }
}

/// `mark` is how far the file has come, if that is known: after a failure the file has to be asked.
async fn apply_contacts(ledgers: &Ledgers, mark: &mut Option<i64>) -> Step {
    let from = match mark.take() {
        Some(mark) => mark,
        None => ledgers.identity.readers.read(|connection| follow::applied(connection, identity::SOURCE)).await?,
    };
    let (upto_seq, senders) = ledgers.events.readers.read(move |connection| senders_after(connection, from)).await?;
    if upto_seq > from {
        ledgers.identity.writer.write(ApplyContacts { upto_seq, senders }).await?;
    }
    *mark = Some(upto_seq);
    Ok(upto_seq - from >= SCAN_ROWS)
}

/// events.db records what was said, under the platform's message ids. An adapter that hears our own
/// message come back brings a known id.
pub async fn follow_sent(ledgers: Ledgers, bell: Arc<Notify>, stop: CancellationToken) {
    let mut mark = None;
    loop {
        crate::torture::point("task.outbound follower");
        match after(apply_sent(&ledgers, &mut mark).await, "the events ledger can't record what was sent", &stop).await {
            Next::AtOnce => continue,
            Next::Wait => {}
            Next::Stop => return,
        }
        tokio::select! {
            () = bell.notified() => {}
            () = stop.cancelled() => return,
        }
        if pause(SENT_INTERVAL, &stop).await {
            return;
        }
    }
}

/// `mark` as above.
async fn apply_sent(ledgers: &Ledgers, mark: &mut Option<i64>) -> Step {
    let from = match mark.take() {
        Some(mark) => mark,
        None => ledgers.events.readers.read(|connection| follow::applied(connection, SENT_SOURCE)).await?,
    };
    let (upto, sent) = ledgers.nexus.readers.read(move |connection| sent_after(connection, from, PAGE)).await?;
    if upto > from {
        let events = sent.iter().map(|delivery| (delivery.adapter.clone(), said(delivery))).collect();
        ledgers.events.writer.write(RecordOutbound { upto_sent_seq: upto, events }).await?;
    }
    *mark = Some(upto);
    Ok(upto - from >= PAGE as i64) // what sent_seq leaves out costs one more look
}

fn said(delivery: &Delivery) -> NewEvent {
    let ids: Vec<String> = delivery.message_ids.as_deref().and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
    let id = ids.first().cloned().unwrap_or_else(|| delivery.delivery_id.clone());
    let event_id = if id.starts_with(&format!("{}:", delivery.channel)) { id } else { format!("{}:{id}", delivery.channel) };
    NewEvent {
        event_id,
        channel: delivery.channel.clone(),
        account_id: delivery.account_id.clone(),
        sender_id: format!("account:{}", delivery.account_id),
        sender_name: None,
        peer_id: delivery.target.clone(),
        peer_kind: PeerKind::Dm,
        thread_id: delivery.thread_id.clone(),
        reply_to_id: delivery.reply_to_id.clone(),
        content_type: "text".into(),
        content: delivery.content.clone(),
        attachments: None,
        metadata: Some(json!({ "delivery_id": delivery.delivery_id, "message_ids": ids }).to_string()),
        timestamp: delivery.updated_at,
        received_at: clock::wall_ms(),
        disposition: Disposition::History,
    }
}

/// True when it is time to stop.
async fn pause(length: Duration, stop: &CancellationToken) -> bool {
    tokio::select! {
        () = tokio::time::sleep(length) => false,
        () = stop.cancelled() => true,
    }
}
