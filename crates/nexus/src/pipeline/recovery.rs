//! What a start decides about requests that were under way when the daemon before it stopped
//! (contract: `on_interrupted`). The rest of recovery is normal running.

use super::Settings;
use crate::clock;
use crate::ledger::events::by_seq;
use crate::ledger::nexus::{Interrupted, NewDelivery, ReviveRequest, request_id_of};
use crate::ledger::{Ledgers, ReadError, writer::WriteError};
use crate::routes::CLI_CHANNEL;
use nexus_core::config::OnInterrupted;
use nexus_core::request::{NexusRequest, Status};

/// Attempts after which a request counts as poison.
const ATTEMPTS_MAX: u32 = 3;
/// How long the line that tells of a failed request may wait to be delivered.
const NOTE_TTL_MS: i64 = 3_600_000;

#[derive(Debug, thiserror::Error)]
pub enum RecoveryError {
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error(transparent)]
    Write(#[from] WriteError),
}

/// What became of them.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Recovered {
    pub rerun: usize,
    pub failed: usize,
}

/// Decides about each interrupted request, and writes it.
///
/// # Errors
/// When a ledger can't be read or written; nothing is half decided.
pub async fn recover(
    ledgers: &Ledgers,
    settings: &Settings,
    interrupted: Vec<Interrupted>,
    epoch: i64,
) -> Result<Recovered, RecoveryError> {
    let mut recovered = Recovered::default();
    for one in interrupted {
        let verdict = decide(&one, settings);
        let seq = one.event_seq;
        let (to, reason, delivery) = match verdict {
            Verdict::Rerun => (Status::Waiting, None, None),
            Verdict::Fail(reason) => (Status::Failed, Some(reason), note(ledgers, &one).await?),
        };
        match to {
            Status::Waiting => recovered.rerun += 1,
            Status::Processing
            | Status::Interrupted
            | Status::Completed
            | Status::Denied
            | Status::HandledByAutomation
            | Status::Failed
            | Status::Expired => {
                recovered.failed += 1;
            }
        }
        tracing::info!(event_seq = seq, attempts = one.attempts, to = to.as_str(), reason, "interrupted request");
        let revive = ReviveRequest { event_seq: seq, to, reason: reason.map(Into::into), delivery, at: clock::wall_ms(), epoch };
        ledgers.nexus.writer.write(revive).await?;
    }
    Ok(recovered)
}

#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Rerun,
    Fail(&'static str),
}

fn decide(one: &Interrupted, settings: &Settings) -> Verdict {
    let harmless = one.agent.as_ref().and_then(|name| settings.agents.get(name)).is_some_and(|agent| agent.harmless);
    if one.attempts >= ATTEMPTS_MAX && !harmless {
        return Verdict::Fail("interrupted three times: it may be what stops the daemon");
    }
    match settings.pipeline.on_interrupted {
        OnInterrupted::Rerun => Verdict::Rerun,
        OnInterrupted::Auto if harmless || !one.acted => Verdict::Rerun,
        OnInterrupted::Auto => Verdict::Fail("interrupted after it may have acted; running it again might repeat its effect"),
        OnInterrupted::Fail => Verdict::Fail("interrupted (on_interrupted: fail)"),
    }
}

/// One line for the user whose message was not answered.
async fn note(ledgers: &Ledgers, one: &Interrupted) -> Result<Option<NewDelivery>, ReadError> {
    let seq = one.event_seq;
    let event = ledgers.events.readers.read(move |connection| by_seq(connection, seq)).await?;
    let request_id = ledgers.nexus.readers.read(move |connection| request_id_of(connection, seq)).await?;
    let (Some(event), Some(request_id)) = (event, request_id) else { return Ok(None) };
    if event.event.channel == CLI_CHANNEL {
        return Ok(None); // its client asks for the request's end
    }
    let adapter = event.adapter.clone();
    let now = clock::wall_ms();
    let target = NexusRequest::new(request_id.clone(), seq, now, event.event).delivery;
    let run = one.run_id.clone().unwrap_or_else(|| request_id.clone());
    Ok(Some(NewDelivery {
        delivery_id: format!("dlv_{}", ulid::Ulid::generate()),
        content: format!("Your message was interrupted while it was being answered (see `nexus trace show {request_id}`)."),
        request_id,
        event_seq: seq,
        run_id: one.run_id.clone(),
        adapter,
        channel: target.channel,
        account_id: target.account_id,
        target: target.target,
        thread_id: target.thread_id,
        reply_to_id: target.reply_to_id,
        idempotency_key: format!("{run}:interrupted:0"),
        created_at: now,
        expires_at: now + NOTE_TTL_MS,
        here: false,
    }))
}
