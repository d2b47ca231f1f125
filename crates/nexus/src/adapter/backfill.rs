//! `backfill`: an account's history, fetched once, and the process that fetches it or a catch-up.

use super::account::Account;
use super::catch_up;
use super::intake::{Ended, Kind};
use crate::clock;
use crate::error_text::describe;
use crate::keeper::Stdin;
use crate::ledger::nexus::BackfillDone;
use crate::panics;
use crate::stderr::log_errors;
use crate::watch::Watch;
use nexus_core::ids::ChildId;
use nexus_core::protocol::Capability;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Pauses between attempts.
const RETRY_FIRST: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(300);
/// How long a backfill may write nothing, or go on after it closed its stdout, before it is killed.
const SILENCE_MAX: Duration = Duration::from_secs(600);

/// Pauses that grow.
#[derive(Debug)]
pub(super) struct Pauses {
    next: Duration,
}

impl Default for Pauses {
    fn default() -> Self {
        Self { next: RETRY_FIRST }
    }
}

impl Pauses {
    /// How long the next one is, in seconds.
    pub(super) fn next_s(&self) -> u64 {
        self.next.as_secs()
    }

    pub(super) async fn wait(&mut self) {
        tokio::time::sleep(self.next).await;
        self.next = (self.next * 2).min(RETRY_MAX);
    }
}

/// What `attempt` comes to; a panic in it is told as one of `task`, and is an error like any other, to be tried again. What
/// it changed is its own, or in the ledger.
pub(super) async fn panic_as_error<T>(
    watch_over: &Watch,
    task: &str,
    attempt: impl Future<Output = Result<T, String>>,
) -> Result<T, String> {
    panics::caught(attempt).await.unwrap_or_else(|panicked| {
        watch_over.tell(task, &panicked.to_string());
        Err(format!("a defect of the daemon: {panicked}"))
    })
}

/// Says that a history is being fetched, for as long as it lives.
struct Fetching<'a>(&'a AtomicBool);

impl<'a> Fetching<'a> {
    /// `None` if one is fetched already.
    fn begin(flag: &'a AtomicBool) -> Option<Self> {
        (!flag.swap(true, Ordering::AcqRel)).then(|| Self(flag))
    }
}

impl Drop for Fetching<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

/// Fetches the history until it came to its end once, and remembers that.
pub(super) async fn run_until_done(account: Arc<Account>) {
    let Some(_fetching) = Fetching::begin(&account.backfilling) else { return };
    tokio::select! {
        () = fetch_history(&account) => {}
        () = account.stop.cancelled() => {}
    }
}

async fn fetch_history(account: &Account) {
    let mut pauses = Pauses::default();
    while let Err(error) = panic_as_error(&account.shared.watch_over, "backfill", attempt(account)).await {
        tracing::warn!(account = %account.key, %error, retry_s = pauses.next_s(), "backfill failed");
        pauses.wait().await;
    }
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
}

async fn attempt(account: &Account) -> Result<(), String> {
    account.ready().await?;
    if !account.can(Capability::Backfill) {
        return Err(format!("adapter `{}` doesn't support backfill", account.key.adapter));
    }
    let before = live_since(account).await?;
    run(account, 0, Kind::History { before }).await
}

/// From when on (Unix ms) the account's events are live: since it was started, or since the gap
/// began that its catch-up closes. Without a monitor none ever is.
async fn live_since(account: &Account) -> Result<i64, String> {
    if !account.config.monitor {
        return Ok(i64::MAX);
    }
    let missing = catch_up::since(account).await?;
    Ok(missing.map_or(account.started_at, |since| since.min(account.started_at)))
}

/// Runs one backfill process to its end; an error says why it doesn't count. Dropping this kills it;
/// what it wrote until then is read and committed all the same, by a task that the account waits for.
pub(super) async fn run(account: &Account, since_ms: i64, kind: Kind) -> Result<(), String> {
    let info = account.channel.borrow().clone().ok_or("its info is not known yet")?;
    let since = clock::rfc3339(since_ms);
    let words = ["backfill", "--account", account.key.account.as_str(), "--since", since.as_str(), "--format", "jsonl"];
    let child = ChildId::new(format!("backfill/{}", account.key));
    let spec = account.command.spec(child.clone(), &words, Some((&account.key.account, &account.context_file())), Stdin::Null);
    let mut process = account.shared.keeper().spawn(spec).await.map_err(|error| describe(&error))?;
    let (Some(stdout), Some(errors)) = (process.stdout.take(), process.stderr.take()) else { return Err("no pipes".into()) };
    let (over, exited) = (CancellationToken::new(), CancellationToken::new());
    let _over_with_this = over.clone().drop_guard();
    crate::watch::helper("backfill.errors", log_errors(child, errors, over));
    // Not told when this is dropped: the process is killed then, and its pipe has an end.
    let intake = account.intake(&info.channel, kind, None, Some(SILENCE_MAX), exited.clone());
    let mut reading = crate::watch::tracked("backfill.intake", &account.tasks, intake.run(stdout));
    let early = tokio::select! {
        ended = &mut reading => Some(ended),
        _ = process.wait() => None,
    };
    let ended = match early {
        Some(ended) => ended,
        None => {
            exited.cancel();
            reading.await
        }
    };
    let ended = ended.map_err(|error| format!("reading it failed: {error}"))?;
    let status = match ended {
        Ended::Eof | Ended::Lost => tokio::time::timeout(SILENCE_MAX, process.wait()).await.ok(),
        Ended::Silent => None,
    };
    match status {
        None => {
            process.kill_tree().await;
            Err(format!("it said nothing for {} minutes and was killed", SILENCE_MAX.as_secs() / 60))
        }
        Some(status) if !status.is_success() => Err(format!("it ended with {status}")),
        Some(_) if ended == Ended::Lost => Err("not all of its lines were accepted".into()),
        Some(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::metrics::{Metrics, TaskLabel};

    async fn breaks() -> Result<(), String> {
        panic!("a defect")
    }

    #[tokio::test]
    async fn a_panic_is_an_error_to_be_tried_again() {
        let metrics = Metrics::new();
        let watch_over = Watch::new(metrics.clone());
        let failures = || metrics.task_failures.get_or_create(&TaskLabel { task: "backfill".to_owned() }).get();
        assert_eq!(panic_as_error(&watch_over, "backfill", async { Ok(1) }).await, Ok(1));
        assert_eq!(failures(), 0);
        assert!(panic_as_error(&watch_over, "backfill", breaks()).await.unwrap_err().contains("panicked"));
        assert_eq!(failures(), 1, "told to nobody");
    }

    #[tokio::test]
    async fn a_history_that_breaks_off_may_be_fetched_again() {
        let flag = Arc::new(AtomicBool::new(false));
        let its = flag.clone();
        #[expect(clippy::disallowed_methods, reason = "a test waits for it, or is over before it")]
        let task = tokio::spawn(async move {
            let _fetching = Fetching::begin(&its).unwrap();
            assert!(Fetching::begin(&its).is_none(), "two at once");
            panic!("a defect");
        });
        assert!(task.await.unwrap_err().is_panic());
        assert!(Fetching::begin(&flag).is_some());
    }
}
