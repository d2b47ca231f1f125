//! Runs the events again that failed only because their project waited for somebody, once it doesn't any more: each becomes
//! a replay, in their order, and once, whoever dies in between. It goes by what the ledgers say, so that a decision that
//! nobody heard of, or that was made before a crash, counts like any other. What failed keeps its end.

use super::control::Control;
use super::replay;
use crate::error_text::describe;
use crate::ledger::ReadError;
use crate::ledger::nexus::{Awaited, ForgetWaits, Wait, wait_groups, waits};
use crate::project::waits::{Prospect, Sorted, sorted};
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// How often is looked whether a project still waits, while events wait for it.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Looks between two at what projects lack: what is mended without a reload, as a key's file, is seen then.
const RECONSIDER_EVERY: u32 = 60;

/// Runs until `stop`.
pub(super) async fn run(control: Arc<Control>, stop: CancellationToken) {
    let mut tick = tokio::time::interval(LOOK_EVERY);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut looks = 0_u32;
    loop {
        crate::torture::point("task.project waits");
        tokio::select! {
            _ = tick.tick() => {}
            () = stop.cancelled() => return,
        }
        if let Err(error) = look(&control, looks.is_multiple_of(RECONSIDER_EVERY)).await {
            tracing::debug!(error = %describe(&error), "what waits for projects can't be read");
        }
        looks = looks.wrapping_add(1);
    }
}

async fn look(control: &Control, reconsiders: bool) -> Result<(), ReadError> {
    if *control.disk_low.borrow() {
        return Ok(()); // nothing is accepted
    }
    let groups = control.ledgers.nexus.readers.read(wait_groups).await?;
    if reconsiders && groups.iter().any(|(_, awaited)| *awaited == Awaited::Configuration) {
        control.projects.reconsider().await;
    }
    for (project, awaited) in groups {
        match control.projects.prospect(&project, awaited).await? {
            Prospect::Waits => {}
            Prospect::Over => take_up(control, &project, awaited).await?,
            Prospect::Refused => {
                let refused = waiting(control, &project, awaited).await?;
                tracing::info!(project, events = refused.len(), "what waited for an approval that was denied stays failed");
                forget(control, &refused).await;
            }
        }
    }
    Ok(())
}

/// The events that wait for this, in their order.
async fn waiting(control: &Control, project: &str, awaited: Awaited) -> Result<Vec<Wait>, ReadError> {
    let name = project.to_owned();
    let mut all = control.ledgers.nexus.readers.read(move |connection| waits(connection, &name)).await?;
    all.retain(|wait| wait.awaited == awaited);
    Ok(all)
}

/// Runs again what waited, as long as it hasn't waited for too long.
async fn take_up(control: &Control, project: &str, awaited: Awaited) -> Result<(), ReadError> {
    let expiry = &control.sinks.expiry;
    let Sorted { taken, left } = sorted(waiting(control, project, awaited).await?, |at| expiry.is_over(at));
    if !left.is_empty() {
        tracing::warn!(project, events = left.len(), "events have waited too long for their project, or are too many, and stay failed");
        // First: of what is left afterwards none is too many any more.
        if !forget(control, &left).await {
            return Ok(());
        }
    }
    let mut events = 0;
    for wait in taken {
        match replay::take_up(control, &wait).await {
            Ok(is_new) => events += usize::from(is_new),
            Err(refusal) => {
                tracing::warn!(project, seq = wait.event_seq, error = refusal.error, "an event that waited is not run again yet");
                break; // none overtakes it
            }
        }
    }
    if events > 0 {
        tracing::info!(project, events, "events that waited for their project are run again");
    }
    Ok(())
}

/// Their rows go. False when that could not be written; then the next look tries again.
async fn forget(control: &Control, waits: &[Wait]) -> bool {
    let event_seqs = waits.iter().map(|wait| wait.event_seq).collect();
    let written = control.ledgers.nexus.writer.write(ForgetWaits { event_seqs }).await;
    written.inspect_err(|error| tracing::warn!(%error, "that events wait for a project no more could not be written")).is_ok()
}
