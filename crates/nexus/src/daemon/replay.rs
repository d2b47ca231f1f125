//! `nexus events replay`, `nexus trace retry`, and what waited for its project: a recorded event becomes a new one, and that
//! a new request, which names the first. The old request keeps its end; access is decided anew.

use super::control::Control;
use crate::clock;
use crate::error_text::describe;
use crate::http::control::{Refusal, Verbs};
use crate::http::replay::{Replay, Replayed};
use crate::ledger::events::{self, Disposition, StoredEvent, is_of_wait, replay_id, waited_key};
use crate::ledger::nexus::{ForgetWaits, Wait, request_id_of};
use crate::ledger::writer::WriteError;
use crate::ledger::{ReadError, raise};
use crate::nostr;
use crate::query::Attempt;
use crate::replies::End;
use axum::http::StatusCode;
use nexus_core::ids::AccountKey;
use nexus_core::request::Status;
use serde_json::json;
use std::time::Duration;

/// Longest key of a replay: it becomes a part of the event's id.
const KEY_BYTES_MAX: usize = 64;
/// How long the answer waits for the new request's id.
const ADMISSION_WAIT: Duration = Duration::from_secs(5);
/// Attempts at one event, whoever asked for them, after which it is not run again for having waited: something is wrong
/// then with what it waits for.
const ATTEMPTS_MAX: usize = 10;
/// Pause before an event that was run again for having waited is so once more; it doubles with each time.
const PAUSE_MS_MIN: i64 = 5000;

/// What is known before anything is written.
struct Found {
    event: StoredEvent,
    /// The first event and its replays.
    attempts: Vec<Attempt>,
    /// Under this key it was replayed before.
    is_known: bool,
}

/// Writes the replay, once per key, and says which request it became.
pub(super) async fn replay(control: &Control, id: String, ask: Replay) -> Result<Replayed, Refusal> {
    check_key(&ask.key)?;
    let one = control.replaying.lock().await;
    let found = find(control, &id, &ask.key).await?;
    if !found.is_known {
        check_direction(&id, &found.event)?;
        if ask.only_failed {
            may_be_retried(&found.event, &found.attempts)?;
        }
    }
    let event_id = replay_id(found.event.first_id(), &ask.key);
    // Before the commit: another event's wakes the router, which may end this one's request at once.
    let replies = &control.pipeline.replies;
    let parts = ask.wait.then(|| replies.listen(&event_id));
    let accepted = accept(control, &found, ask).await;
    drop(one);
    let seq = match accepted {
        Ok((seq, None)) => seq,
        Ok((seq, Some(end))) => {
            replies.end(&event_id, &end);
            seq
        }
        Err(refusal) => {
            drop(parts);
            replies.sweep(&event_id);
            return Err(refusal);
        }
    };
    let request_id = request_id(control, seq).await?;
    let answer = json!({
        "event_id": event_id, "event_seq": seq, "request_id": request_id, "channel": found.event.event.channel,
        "replay_of": found.event.first_id(), "new": !found.is_known,
    });
    Ok(Replayed { answer, parts })
}

/// What became of an event that waited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TakenUp {
    Again,
    /// That was done already, by a person or before a crash; or it never will be.
    Settled,
    /// It was run again a moment ago, and waits once more.
    Later,
}

/// Runs an event again that waited for its project.
pub(super) async fn take_up(control: &Control, wait: &Wait) -> Result<TakenUp, Refusal> {
    let key = waited_key(wait.event_seq);
    let _one = control.replaying.lock().await;
    let found = find(control, &wait.event_seq.to_string(), &key).await?;
    let is_done = found.is_known || found.attempts.iter().any(|attempt| attempt.event_seq > wait.event_seq);
    if !is_done && found.attempts.len() < ATTEMPTS_MAX {
        let times = found.attempts.iter().filter(|attempt| is_of_wait(&attempt.event_id)).count();
        if is_too_soon(times, clock::wall_ms().saturating_sub(wait.at)) {
            return Ok(TakenUp::Later);
        }
        write(control, &found, key).await?;
        return Ok(TakenUp::Again);
    }
    if !is_done {
        tracing::warn!(event = found.event.first_id(), attempts = found.attempts.len(), "an event waited too often; it stays failed");
    }
    wait_no_more(control, vec![wait.event_seq]).await;
    Ok(TakenUp::Settled)
}

/// Whether an event that was run again so many `times` and failed so long ago rests. Of a clock that went back nothing is
/// known: then it doesn't.
fn is_too_soon(times: usize, failed_ms_ago: i64) -> bool {
    let doubled = u32::try_from(times).ok().and_then(|times| times.checked_sub(1));
    let pause = doubled.map_or(0, |doubled| PAUSE_MS_MIN << doubled.min(ATTEMPTS_MAX as u32));
    (0..pause).contains(&failed_ms_ago)
}

/// These wait for their project no more, if they did.
async fn wait_no_more(control: &Control, event_seqs: Vec<i64>) {
    if let Err(error) = control.ledgers.nexus.writer.write(ForgetWaits { event_seqs }).await {
        tracing::warn!(%error, "that an event waits for its project no more could not be written; it is seen by its replay");
    }
}

/// Where the replay is in the ledger, and of one that is waited for and was answered before its end.
async fn accept(control: &Control, found: &Found, ask: Replay) -> Result<(i64, Option<End>), Refusal> {
    let seq = write(control, found, ask.key).await?;
    let end = if ask.wait && found.is_known { control.known_end(seq).await.map_err(not_now)? } else { None };
    Ok((seq, end))
}

fn check_key(key: &str) -> Result<(), Refusal> {
    let is_plain = key.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte));
    if is_plain && (1..=KEY_BYTES_MAX).contains(&key.len()) {
        return Ok(());
    }
    let why = format!("key has 1 to {KEY_BYTES_MAX} letters, digits, `-` or `_`");
    Err(Refusal::new(StatusCode::BAD_REQUEST, why))
}

fn not_now(error: impl Into<String>) -> Refusal {
    Refusal::new(StatusCode::SERVICE_UNAVAILABLE, error)
}

async fn find(control: &Control, id: &str, key: &str) -> Result<Found, Refusal> {
    let (record, name, key) = (control.record(), id.to_owned(), key.to_owned());
    let look = move || -> Result<Option<Found>, ReadError> {
        let Some(event) = record.stored(&name)? else { return Ok(None) };
        let attempts = record.attempts(event.first_id())?;
        let replay = replay_id(event.first_id(), &key);
        let known = record.stored(&replay)?;
        let is_known = known.is_some_and(|known| known.replay_of.as_deref() == Some(event.first_id()));
        Ok(Some(Found { event, attempts, is_known }))
    };
    match crate::watch::blocking("replay", look).await {
        Ok(Ok(Some(found))) => Ok(found),
        Ok(Ok(None)) => Err(Refusal::new(StatusCode::NOT_FOUND, crate::unknown::event(id))),
        Ok(Err(error)) => Err(not_now(describe(&error))),
        Err(error) => Err(Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string())),
    }
}

fn check_direction(id: &str, event: &StoredEvent) -> Result<(), Refusal> {
    if event.direction == "inbound" {
        return Ok(());
    }
    let why = format!("event `{id}` was sent, and only what came in can be replayed; see `nexus deliveries list`");
    Err(Refusal::new(StatusCode::CONFLICT, why))
}

/// Only what ended badly is run again, and not twice at a time.
fn may_be_retried(event: &StoredEvent, attempts: &[Attempt]) -> Result<(), Refusal> {
    let conflict = |why: String| Err(Refusal::new(StatusCode::CONFLICT, why));
    let id = &event.event.event_id;
    if let Some(open) = attempts.iter().find(|attempt| attempt.is_open) {
        let status = open.status.as_deref().unwrap_or(Status::Waiting.as_str());
        let name = open.request_id.as_ref().unwrap_or(&open.event_id);
        return conflict(match open.event_seq == event.seq {
            true => format!("`{name}` is still open: {status}"),
            false => format!("`{name}` runs the same event and is still open: {status}"),
        });
    }
    let status = match attempts.iter().find(|attempt| attempt.event_seq == event.seq) {
        Some(attempt) => attempt.status.as_deref().and_then(Status::parse),
        // More replays than are told.
        None => return conflict(format!("event `{id}` was replayed too often since; `nexus events replay {id}` runs it again")),
    };
    match status {
        Some(Status::Failed | Status::Expired) => Ok(()),
        Some(ended) => {
            let word = ended.as_str();
            conflict(format!("only what failed or expired is retried, and this ended `{word}`; `nexus events replay {id}` runs it again"))
        }
        None if event.disposition == Disposition::History => {
            conflict(format!("event `{id}` is history and never had a request; `nexus events replay {id}` makes one"))
        }
        None => conflict(format!("`{id}` is still open: {}", Status::Waiting.as_str())),
    }
}

/// Commits the replay and wakes the router; the answer is its seq. Not repeated when that fails: nobody
/// else's replay could be asked for meanwhile, and who asked does so again, under the same key.
async fn write(control: &Control, found: &Found, key: String) -> Result<i64, Refusal> {
    let event = &found.event;
    let replay = events::Replay {
        of_seq: event.seq,
        channel: event.event.channel.clone(),
        replay_of: event.first_id().to_owned(),
        key,
        received_at: clock::wall_ms(),
    };
    let written = control.ledgers.events.writer.write(replay).await.map_err(|error| unwritten(&error))?;
    let Some(replayed) = written else {
        return Err(Refusal::new(StatusCode::CONFLICT, "another event has the id that this replay would have; use another key"));
    };
    if !found.is_known {
        control.sinks.pending.raise(&AccountKey::new(&event.adapter, &event.event.account_id), 1);
    }
    raise(&control.sinks.committed, replayed.seq);
    // The attempts before this one: it may itself have to wait. Only events of Nostr are of projects.
    if !found.is_known && event.adapter == nostr::ADAPTER {
        wait_no_more(control, found.attempts.iter().map(|attempt| attempt.event_seq).collect()).await;
    }
    Ok(replayed.seq)
}

fn unwritten(error: &WriteError) -> Refusal {
    match error {
        WriteError::Unknown { .. } | WriteError::Closed { .. } => not_now(error.to_string()),
        WriteError::Refused { .. } => Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
    }
}

/// The id of the new request; `None` when it isn't admitted soon: the daemon is stopping, say.
async fn request_id(control: &Control, seq: i64) -> Result<Option<String>, Refusal> {
    let mut admitted = control.pipeline.admitted.clone();
    tokio::select! {
        // An error means that nothing is admitted any more, a time-out that it is later.
        waited = tokio::time::timeout(ADMISSION_WAIT, admitted.wait_for(|upto| *upto >= seq)) => drop(waited),
        () = control.stop.cancelled() => {}
    }
    let read = control.ledgers.nexus.readers.read(move |connection| request_id_of(connection, seq));
    read.await.map_err(|error| not_now(describe(&error)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use nexus_core::event::Event;

    fn event(seq: i64, disposition: Disposition) -> StoredEvent {
        let event = Event { content: String::new(), ..crate::samples::event(format!("fake:{seq}")) };
        let (adapter, direction) = ("fake".to_owned(), "inbound".to_owned());
        StoredEvent { seq, adapter, direction, received_at: 0, disposition, replay_of: None, event }
    }

    fn attempt(event_seq: i64, status: Option<Status>) -> Attempt {
        Attempt {
            event_seq,
            event_id: format!("fake:{event_seq}"),
            request_id: status.map(|_| format!("req_{event_seq}")),
            status: status.map(|status| status.as_str().to_owned()),
            is_open: status.is_some_and(|status| !status.is_terminal()),
        }
    }

    fn refused(attempts: &[Attempt]) -> Option<String> {
        may_be_retried(&event(1, Disposition::Run), attempts).err().map(|refusal| refusal.error)
    }

    #[test]
    fn only_what_failed_or_expired_is_retried() {
        for status in Status::ALL {
            let told = refused(&[attempt(1, Some(status))]);
            match status {
                Status::Failed | Status::Expired => assert_eq!(told, None),
                Status::Waiting | Status::Processing | Status::Interrupted => {
                    assert_eq!(told.unwrap(), format!("`req_1` is still open: {}", status.as_str()));
                }
                Status::Completed | Status::Denied | Status::HandledByAutomation => {
                    assert!(told.unwrap().contains("`nexus events replay fake:1`"));
                }
            }
        }
    }

    #[test]
    fn not_while_another_attempt_is_open() {
        let failed = || attempt(1, Some(Status::Failed));
        assert_eq!(refused(&[failed(), attempt(2, Some(Status::Completed))]), None);
        let told = refused(&[failed(), attempt(2, Some(Status::Processing))]).unwrap();
        assert_eq!(told, "`req_2` runs the same event and is still open: processing");
        let accepted = Attempt { is_open: true, ..attempt(2, None) };
        assert_eq!(refused(&[failed(), accepted]).unwrap(), "`fake:2` runs the same event and is still open: waiting");
    }

    #[test]
    fn history_has_nothing_to_retry() {
        let told = may_be_retried(&event(1, Disposition::History), &[attempt(1, None)]).unwrap_err().error;
        assert!(told.contains("history") && told.contains("nexus events replay"), "{told}");
    }

    #[test]
    fn what_waits_again_rests_for_longer_each_time() {
        assert!(!is_too_soon(0, 0), "what was never run again doesn't rest");
        for (times, pause) in [(1, PAUSE_MS_MIN), (2, 2 * PAUSE_MS_MIN), (4, 8 * PAUSE_MS_MIN)] {
            assert!(is_too_soon(times, 0) && is_too_soon(times, pause - 1) && !is_too_soon(times, pause), "{times}");
            assert!(!is_too_soon(times, -1), "the clock went back");
        }
        assert!(!is_too_soon(usize::MAX, i64::MAX));
        let of_wait = replay_id("nostr:ab", &waited_key(7));
        assert!(is_of_wait(&of_wait) && !is_of_wait("nostr:ab") && !is_of_wait(&replay_id("nostr:ab", "01J")));
    }

    #[test]
    fn a_key_is_short_and_plain() {
        let long = "x".repeat(KEY_BYTES_MAX + 1);
        for good in ["a", "01JBX-2_3", &long[1..]] {
            assert!(check_key(good).is_ok(), "{good}");
        }
        for bad in ["", "a b", "a#replay:b", "é", &long[..]] {
            assert!(check_key(bad).is_err(), "{bad}");
        }
    }
}
