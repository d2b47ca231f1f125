//! The catch-up: what an account missed while its monitor did not run, fetched as live events.
//!
//! Theory of operation: before a monitor starts, its account's gap is opened in the ledger, where it
//! stays over failures and restarts until a backfill from its beginning on came to its end. One that
//! closes it begins only when the monitor is connected: what came in between would else be heard by
//! neither. For as long as that takes, but a minute at most, the account's requests are held, so that
//! they run in their order. An account that a person stops is not fetched for: its next start begins
//! anew. Adapters with `ack` bring what was missed by themselves. Nothing here can leave an
//! account held or a gap forgotten: the router ends what is held, and whether a catch-up is under way
//! is asked of its task.

use super::account::Account;
use super::backfill::{self, Pauses, panic_as_error};
use super::intake::Kind;
use super::probe;
use crate::clock;
use crate::error_text::describe;
use crate::ledger::events::{CloseGap, Cursor, OpenGap, cursor};
use crate::supervisor::Phase;
use nexus_core::protocol::Capability;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// How long an account's requests wait for its catch-up.
const HOLD_MAX: Duration = Duration::from_secs(60);
/// How long a monitor may take to be connected before the gap is fetched all the same, and stays open.
const CONNECT_MAX: Duration = Duration::from_secs(30);
/// How long a monitor whose adapter can't tell its health, or doesn't, is given to connect.
const CONNECT_UNSEEN: Duration = Duration::from_secs(3);
/// Pauses between the questions whether it is.
const ASK_FIRST: Duration = Duration::from_millis(50);
const ASK_MAX: Duration = Duration::from_secs(5);

/// An account's gap, as far as its tasks have to agree on it.
#[derive(Debug, Default)]
pub(super) struct Gap {
    /// How often it was opened.
    opened: u64,
    /// The newest catch-up, until it closed the gap.
    catching_up: Option<JoinHandle<()>>,
}

impl Gap {
    fn is_catching_up(&self) -> bool {
        self.catching_up.as_ref().is_some_and(|task| !task.is_finished())
    }
}

/// What an attempt came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Attempt {
    /// The gap is closed.
    Closed,
    /// The monitor was started anew meanwhile: more may be missing than was fetched.
    Outdated,
    /// The account was stopped.
    CalledOff,
}

/// Opens the account's gap. Once this returns the monitor may start: the gap is on disk, and the
/// account's requests are held if there is something to fetch.
pub(super) async fn begin(account: &Arc<Account>) -> Result<(), String> {
    if !account.can(Capability::Backfill) || account.can(Capability::Ack) {
        return Ok(());
    }
    let mut gap = account.gap.lock().await;
    let since = since(account).await?.unwrap_or(account.started_at);
    let open = OpenGap { adapter: account.key.adapter.clone(), account: account.key.account.clone(), since };
    let is_open = account.shared.ledgers.events.writer.write_until_done(open).await.map_err(|error| describe(&error))?;
    gap.opened += 1;
    // A catch-up that is under way sees that there is more to fetch.
    if !is_open || gap.is_catching_up() {
        return Ok(());
    }
    let (held, in_force) = oneshot::channel();
    gap.catching_up = Some(crate::watch::tracked("catch-up", &account.tasks, catch_up(account.clone(), held)));
    drop(gap);
    drop(in_force.await); // it is told before anything can go wrong
    Ok(())
}

/// Holds the account's requests while it closes its gap, unless the account is stopped.
async fn catch_up(account: Arc<Account>, held: oneshot::Sender<()>) {
    let hold = account.shared.router.hold(&account.key, HOLD_MAX).await;
    held.send(()).ok(); // the monitor's start may have been called off
    tokio::select! {
        () = close_gap(&account) => {}
        () = account.stop.cancelled() => {}
    }
    drop(hold);
}

/// Tries until the gap is closed, or the account is stopped.
async fn close_gap(account: &Account) {
    let mut pauses = Pauses::default();
    let mut has_failed = false;
    loop {
        match panic_as_error(&account.shared.watch_over, "catch-up", attempt(account, has_failed)).await {
            Ok(Attempt::Closed) => {
                tracing::info!(account = %account.key, "caught up");
                return;
            }
            Ok(Attempt::CalledOff) => {
                tracing::info!(account = %account.key, "catch-up called off: what was missed is fetched when the account is started again");
                return;
            }
            Ok(Attempt::Outdated) => {}
            Err(error) => {
                let retry_s = pauses.next_s();
                tracing::warn!(account = %account.key, %error, retry_s, "catch-up failed; what was missed is still to be fetched");
                pauses.wait().await;
                has_failed = true;
            }
        }
    }
}

/// Fetches the gap as it is now and closes it.
async fn attempt(account: &Account, is_repeated: bool) -> Result<Attempt, String> {
    if is_called_off(account).await {
        return Ok(Attempt::CalledOff);
    }
    if is_repeated {
        account.ready().await?; // the credential may be another one by now
    }
    let opened = account.gap.lock().await.opened;
    let is_connected = tokio::time::timeout(CONNECT_MAX, connected(account)).await.unwrap_or(false);
    if is_called_off(account).await {
        return Ok(Attempt::CalledOff);
    }
    if let Some(since) = since(account).await? {
        backfill::run(account, since, Kind::Live).await?;
    }
    let mut gap = account.gap.lock().await;
    if gap.opened != opened {
        return Ok(Attempt::Outdated);
    }
    if !is_connected {
        return Err("its monitor is not connected: what comes until it is would be missing".to_owned());
    }
    let close = CloseGap { adapter: account.key.adapter.clone(), account: account.key.account.clone() };
    account.shared.ledgers.events.writer.write_until_done(close).await.map_err(|error| describe(&error))?;
    gap.catching_up = None;
    Ok(Attempt::Closed)
}

/// Whether the account is stopped. If so, no catch-up is under way any more: a start from now on begins
/// one, and one before would show, since both have the lock.
async fn is_called_off(account: &Account) -> bool {
    let mut gap = account.gap.lock().await;
    let is_stopped = account.child().is_some_and(|child| child.status().phase == Phase::Stopped);
    if is_stopped {
        gap.catching_up = None;
    }
    is_stopped
}

/// Waits until the monitor hears what is new; false when it is stopped. One of which nobody can tell is
/// given a while.
async fn connected(account: &Account) -> bool {
    let mut pause = ASK_FIRST;
    loop {
        match account.child().map(|child| child.status().phase) {
            Some(Phase::Stopped) => return false,
            Some(Phase::Running) => match probe::is_connected(account).await {
                Some(true) => return true,
                Some(false) => {}
                None => {
                    tokio::time::sleep(CONNECT_UNSEEN).await;
                    return true;
                }
            },
            Some(Phase::Starting | Phase::Stopping | Phase::Backoff | Phase::Errored) | None => {}
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(ASK_MAX);
    }
}

/// From when on (Unix ms) events of the account may be missing; `None` before it was first started.
pub(super) async fn since(account: &Account) -> Result<Option<i64>, String> {
    let (adapter, id) = (account.key.adapter.clone(), account.key.account.clone());
    let found = account.shared.ledgers.events.readers.read(move |connection| cursor(connection, &adapter, &id)).await;
    let overlap_ms = i64::try_from(account.rules.borrow().catch_up.overlap_ms).unwrap_or(i64::MAX);
    Ok(found.map_err(|error| describe(&error))?.map(|cursor| missing_since(&cursor, clock::wall_ms(), overlap_ms)))
}

/// The beginning of the open gap, else a little before the last thing that is known. A timestamp
/// from the future can't move it, since cursors never pass the time of receipt; nor can a clock that was
/// ahead and has been set right, since nothing is known of the time after `now` (Unix ms).
fn missing_since(cursor: &Cursor, now: i64, overlap_ms: i64) -> i64 {
    let known = cursor.last_timestamp.min(cursor.last_received_at).min(now);
    match cursor.gap_since {
        Some(since) => since.min(now.saturating_sub(overlap_ms)),
        // Nothing came yet: the time is that of the first start, and nothing before it is wanted.
        None if cursor.last_event_id.is_empty() => known,
        None => known.saturating_sub(overlap_ms).max(0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cursor(last_event_id: &str, gap_since: Option<i64>) -> Cursor {
        Cursor { last_event_id: last_event_id.to_owned(), last_timestamp: 5_000, last_received_at: 5_500, events: 1, gap_since }
    }

    #[test]
    fn a_gap_begins_where_it_was_opened_or_a_little_before_the_last_event() {
        assert_eq!(missing_since(&cursor("fake:1", None), 9_000, 600), 4_400);
        assert_eq!(missing_since(&cursor("fake:1", None), 9_000, i64::MAX), 0);
        assert_eq!(missing_since(&cursor("fake:1", None), 2_000, 600), 1_400, "the clock was ahead then");
        assert_eq!(missing_since(&cursor("fake:1", Some(5_000)), 2_000, 600), 1_400, "the clock was ahead then");
        assert_eq!(missing_since(&cursor("fake:1", Some(1_000)), 9_000, 600), 1_000);
        assert_eq!(missing_since(&cursor("", None), 9_000, 600), 5_000, "before the first start nothing was missed");
    }
}
