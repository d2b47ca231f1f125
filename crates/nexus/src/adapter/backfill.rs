//! `backfill`: an account's history, once, and the catch-up that closes the gap of a downtime.

use super::account::Account;
use super::intake::Kind;
use crate::clock;
use crate::error_text::describe;
use crate::keeper::Stdin;
use crate::ledger::events::cursor;
use crate::ledger::nexus::BackfillDone;
use crate::stderr;
use nexus_core::ids::ChildId;
use nexus_core::protocol::Capability;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// How long an account's requests wait for its catch-up.
const HOLD_MAX: Duration = Duration::from_secs(60);
/// Pauses between attempts at a history backfill.
const RETRY_FIRST: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(300);

/// Whether a gap may be there that only a backfill closes: adapters with `ack` bring it themselves.
pub(super) fn is_due(account: &Account, gap: bool) -> bool {
    gap && account.can(Capability::Backfill) && !account.can(Capability::Ack)
}

/// Fetches what was missed, as live events; then, or after a minute, lets the account's requests go.
pub(super) async fn catch_up(account: Arc<Account>) {
    let work = async {
        match since(&account).await {
            Ok(Some(since)) => run(&account, since, Kind::Live).await,
            Ok(None) => Ok(()), // nothing was ever seen of this account: no gap
            Err(error) => Err(error),
        }
    };
    tokio::pin!(work);
    let result = tokio::select! {
        result = &mut work => Some(result),
        () = tokio::time::sleep(HOLD_MAX) => None,
        () = account.stop.cancelled() => return,
    };
    account.shared.router.release(&account.key).await;
    let result = match result {
        Some(result) => result,
        None => {
            tracing::warn!(account = %account.key, "catch-up takes over a minute; its requests go on meanwhile");
            tokio::select! {
                result = work => result,
                () = account.stop.cancelled() => return,
            }
        }
    };
    match result {
        Ok(()) => tracing::info!(account = %account.key, "caught up"),
        Err(error) => tracing::warn!(account = %account.key, %error, "catch-up failed; events of the downtime may be missing"),
    }
}

/// Fetches the history until it came to its end once, and remembers that.
pub(super) async fn run_until_done(account: Arc<Account>) {
    if account.backfilling.swap(true, Ordering::AcqRel) {
        return;
    }
    let mut pause = RETRY_FIRST;
    loop {
        let attempt = async {
            account.ready().await?;
            if !account.can(Capability::Backfill) {
                return Err(format!("adapter `{}` doesn't support backfill", account.key.adapter));
            }
            run(&account, 0, Kind::History).await
        };
        let result = tokio::select! {
            result = attempt => result,
            () = account.stop.cancelled() => break,
        };
        match result {
            Ok(()) => {
                let done = BackfillDone {
                    adapter: account.key.adapter.clone(),
                    account: account.key.account.clone(),
                    at: clock::wall_ms(),
                    epoch: account.shared.epoch,
                };
                if let Err(error) = account.shared.ledgers.nexus.writer.write_until_done(done).await {
                    tracing::warn!(account = %account.key, %error, "the backfill's completion was not stored; it runs again at the next start");
                }
                tracing::info!(account = %account.key, "backfill complete");
                break;
            }
            Err(error) => tracing::warn!(account = %account.key, %error, retry_s = pause.as_secs(), "backfill failed"),
        }
        tokio::select! {
            () = tokio::time::sleep(pause) => pause = (pause * 2).min(RETRY_MAX),
            () = account.stop.cancelled() => break,
        }
    }
    account.backfilling.store(false, Ordering::Release);
}

/// Where the catch-up begins: a little before the last thing that is known. A timestamp from the
/// future can't move it, since cursors never pass the time of receipt.
async fn since(account: &Account) -> Result<Option<i64>, String> {
    let (adapter, id) = (account.key.adapter.clone(), account.key.account.clone());
    let found = account.shared.ledgers.events.readers.read(move |connection| cursor(connection, &adapter, &id)).await;
    let overlap = i64::try_from(account.rules.borrow().catch_up.overlap_ms).unwrap_or(i64::MAX);
    let found = found.map_err(|error| describe(&error))?;
    Ok(found.map(|cursor| cursor.last_timestamp.min(cursor.last_received_at).saturating_sub(overlap).max(0)))
}

async fn run(account: &Account, since_ms: i64, kind: Kind) -> Result<(), String> {
    let info = account.channel.borrow().clone().ok_or("its info is not known yet")?;
    let since = clock::rfc3339(since_ms);
    let words = ["backfill", "--account", account.key.account.as_str(), "--since", since.as_str(), "--format", "jsonl"];
    let child = ChildId::new(format!("backfill/{}", account.key));
    let spec = account.command.spec(child.clone(), &words, Some((&account.key.account, &account.context_file())), Stdin::Null);
    let mut process = account.shared.keeper().spawn(spec).await.map_err(|error| describe(&error))?;
    let (Some(stdout), Some(errors)) = (process.stdout.take(), process.stderr.take()) else { return Err("no pipes".into()) };
    let intake = account.intake(&info.channel, kind, None);
    tokio::join!(intake.run(stdout), stderr::log_lines(child, errors));
    let status = process.wait().await;
    if status.is_success() { Ok(()) } else { Err(format!("it ended with {status}")) }
}
