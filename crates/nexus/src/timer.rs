//! The timer: turns due slots into events that enter the ledger like any other. The schedule itself
//! is [`nexus_core::schedule`]; here is the clock, the ledger and the waiting.

use crate::adapter::intake::Sinks;
use crate::clock;
use crate::ledger::events::{Append, Disposition, Lines, NewEvent};
use crate::routes::{CRON_DELIVER, CRON_TYPE, DEFAULT_ACCOUNT, TIMER_CHANNEL};
use jiff::tz::TimeZone;
use nexus_core::config;
use nexus_core::event::PeerKind;
use nexus_core::ids::AccountKey;
use nexus_core::notice::NoticeType;
use nexus_core::schedule::{Due, Job, Schedule};
use serde_json::json;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Longest sleep: the wall clock may be set, the machine may have slept.
const SLICE: Duration = Duration::from_secs(60);

/// The configured zone; `local` is the machine's.
///
/// # Errors
/// The name, if the time zone database doesn't have it.
pub fn zone(name: &str) -> Result<TimeZone, String> {
    if name == "local" {
        return Ok(TimeZone::system());
    }
    TimeZone::get(name).map_err(|error| format!("time zone `{name}`: {error}"))
}

/// Fires until `stop`; a change of `settings` reschedules without a burst.
pub async fn run(mut schedule: Schedule, mut settings: watch::Receiver<config::Timer>, sinks: Sinks, stop: CancellationToken) {
    loop {
        crate::torture::point("task.timer");
        for due in schedule.step(clock::wall_ms()) {
            let deliver = deliver(&due, &settings.borrow());
            fire(due, deliver, &sinks).await;
        }
        let wait = schedule.deadline().map_or(SLICE, |at| {
            let left = at.saturating_sub(clock::wall_ms()).max(0);
            Duration::from_millis(left.unsigned_abs()).min(SLICE)
        });
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            changed = settings.changed() => {
                if changed.is_err() { return }
                let new = settings.borrow_and_update().clone();
                let rescheduled = zone(&new.timezone).and_then(|zone| schedule.reschedule(&new, zone, clock::wall_ms()).map_err(|error| error.to_string()));
                if let Err(error) = rescheduled {
                    tracing::error!(error, "timer not rescheduled, the old schedule goes on");
                }
            }
            () = stop.cancelled() => return,
        }
    }
}

/// Where answers to a slot go, as its entry says when it fires.
fn deliver(due: &Due, timer: &config::Timer) -> Option<config::CronDeliver> {
    match due {
        Due::Fire { job: Job::Cron { label, .. }, .. } => timer.cron.iter().find(|entry| entry.label == *label)?.deliver.clone(),
        Due::Fire { job: Job::Heartbeat, .. } | Due::Missed { .. } => None,
    }
}

async fn fire(due: Due, deliver: Option<config::CronDeliver>, sinks: &Sinks) {
    match due {
        Due::Missed { job, slot_ms_first, slot_ms_last, count } => {
            let notice = json!({ "job": name(&job), "first_slot": slot_ms_first, "last_slot": slot_ms_last, "count": count });
            sinks.bus.publish(NoticeType::TimerMissed, notice);
            if matches!(job, Job::Cron { .. }) {
                tracing::warn!(job = name(&job), count, "timer slots missed");
            }
        }
        Due::Fire { job, slot_ms, event_id } => {
            let event = event(&job, slot_ms, event_id.clone(), deliver.as_ref());
            let append = Append {
                adapter: TIMER_CHANNEL.into(),
                account: DEFAULT_ACCOUNT.into(),
                lines: Arc::new(Lines { events: vec![event], rejects: Vec::new() }),
            };
            match sinks.append(append).await {
                Ok(seqs) => {
                    // A slot that a former daemon fired already is known.
                    if let Some(seq) = seqs.into_iter().flatten().next() {
                        sinks.pending.raise(&AccountKey::new(TIMER_CHANNEL, DEFAULT_ACCOUNT), 1);
                        crate::ledger::raise(&sinks.committed, seq);
                        sinks.bus.publish(NoticeType::TimerFired, json!({ "event_id": event_id, "job": name(&job), "slot": slot_ms }));
                    }
                }
                Err(error) => tracing::error!(event_id, %error, "timer event not accepted"),
            }
        }
    }
}

/// The requirement's timer events, field by field, and with a slot where its answer goes.
fn event(job: &Job, slot_ms: i64, event_id: String, deliver: Option<&config::CronDeliver>) -> NewEvent {
    let (content_type, metadata) = match job {
        Job::Heartbeat => ("system/heartbeat", None),
        Job::Cron { label, expr } => {
            let mut metadata = json!({ "cron_label": label, "cron_expr": expr });
            if let Some(deliver) = deliver {
                metadata[CRON_DELIVER] = json!(deliver);
            }
            (CRON_TYPE, Some(metadata.to_string()))
        }
    };
    NewEvent {
        event_id,
        channel: TIMER_CHANNEL.into(),
        account_id: DEFAULT_ACCOUNT.into(),
        sender_id: "system".into(),
        sender_name: None,
        peer_id: "system".into(),
        peer_kind: PeerKind::Dm,
        thread_id: None,
        reply_to_id: None,
        content_type: content_type.into(),
        content: String::new(),
        attachments: None,
        metadata,
        timestamp: slot_ms,
        received_at: clock::wall_ms(),
        disposition: Disposition::Run,
    }
}

fn name(job: &Job) -> String {
    match job {
        Job::Heartbeat => "heartbeat".into(),
        Job::Cron { label, .. } => format!("cron:{label}"),
    }
}
