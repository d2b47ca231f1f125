//! The `stream` child of an account: one process that says its answers while they are being made, when it is wanted,
//! and what is heard from it. What is told to it about one answer is [`crate::live`]'s; whether an answer is streamed,
//! the pipeline's.

use super::account::Account;
use super::program::Command;
use crate::framing::{Framing, Piece};
use crate::keeper::{Process, SpawnSpec, Stdin};
use crate::live::{Heard, Held, Line};
use crate::routes::Streamer;
use crate::stderr::log_errors;
use crate::supervisor::{BoxFuture, Child, ChildSpec, NotReady, Phase, Program, after_exit};
use nexus_core::config::{self, Streaming};
use nexus_core::ids::ChildId;
use nexus_core::lifecycle::RestartPolicy;
use nexus_core::stream::StreamStatus;
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::sync::{Mutex, mpsc};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// Longest line that the process may write, in bytes.
const STATUS_BYTES_MAX: usize = 64 * 1024;
/// Statuses that wait for who tells the process an answer; more are left out.
const STATUSES_MAX: usize = 256;
/// Places among these for last words alone, of which the first counts.
const LAST_WORDS: usize = 128;
/// Bytes read at a time.
const CHUNK_BYTES: usize = 8 * 1024;
/// How long is read after the exit: a descriptor that was passed to a stranger must not hold the restart.
const LATE: Duration = Duration::from_secs(5);

fn child_id(account: &Account) -> ChildId {
    ChildId::new(format!("stream/{}", account.key))
}

/// Whether an account's `stream` process is wanted, for who changes that.
#[derive(Debug, Default)]
pub(super) struct Wanted {
    child: OnceLock<Child>,
    /// Locked while it is being changed; true once the account is being removed.
    is_over: Mutex<bool>,
}

impl Wanted {
    /// Takes the child in, stopped.
    pub(super) fn add(&self, account: &Arc<Account>, policy: RestartPolicy) {
        let program = Arc::new(StreamProgram { account: Arc::downgrade(account) });
        let child = account.shared.supervisor.add(ChildSpec { id: child_id(account), policy, program });
        // Set once, at the account's start.
        drop(self.child.set(child));
    }

    pub(super) fn child(&self) -> Option<&Child> {
        self.child.get()
    }

    /// Has it started or stopped; nothing where it is so already.
    pub(super) async fn want(&self, is_wanted: bool) {
        let is_over = self.is_over.lock().await;
        let Some(child) = self.child().filter(|_| !*is_over) else { return };
        let is_stopped = child.status().phase == Phase::Stopped;
        match (is_wanted, is_stopped) {
            (true, true) => child.start().await,
            (false, false) => child.stop().await,
            (true, false) | (false, true) => {}
        }
    }

    /// With a clean sheet, if it isn't stopped.
    pub(super) async fn restart(&self) {
        let is_over = self.is_over.lock().await;
        if let Some(child) = self.child().filter(|child| !*is_over && child.status().phase != Phase::Stopped) {
            child.restart().await;
        }
    }

    /// Stops it for good; returns once it is gone.
    pub(super) async fn remove(&self, account: &Account) {
        *self.is_over.lock().await = true;
        account.shared.supervisor.remove(&child_id(account)).await;
    }
}

/// Keeps the process up while the account's monitor is wanted, its adapter streams, and its configuration says so.
pub(super) async fn keep_up(account: Arc<Account>, monitor: Child) {
    let (mut phase, mut info, mut streaming) = (monitor.watch(), account.channel.subscribe(), account.streaming.subscribe());
    loop {
        crate::torture::point("task.stream");
        let is_up = !matches!(phase.borrow_and_update().phase, Phase::Stopping | Phase::Stopped);
        let can_stream = info.borrow_and_update().as_ref().is_some_and(|info| info.streams());
        let is_live = *streaming.borrow_and_update() == Streaming::Auto;
        account.streamer.want(is_up && can_stream && is_live).await;
        tokio::select! {
            changed = phase.changed() => if changed.is_err() { return },
            changed = info.changed() => if changed.is_err() { return },
            changed = streaming.changed() => if changed.is_err() { return },
            () = account.stop.cancelled() => return,
        }
    }
}

/// The lines of one adapter's accounts.
#[derive(Debug)]
pub(super) struct Streams {
    command: Arc<Command>,
    patience: Duration,
}

impl Streams {
    pub(super) fn new(command: Arc<Command>, send: &config::Send) -> Self {
        Self { command, patience: Duration::from_millis(send.timeout_ms) }
    }
}

impl Streamer for Streams {
    fn take<'a>(&'a self, account: &'a str) -> BoxFuture<'a, Held> {
        Box::pin(async move { self.command.desk(account).take(self.patience).await })
    }
}

#[derive(Debug)]
struct StreamProgram {
    /// Weak: the account owns the child that owns this.
    account: Weak<Account>,
}

impl StreamProgram {
    async fn spec(&self) -> Result<SpawnSpec, NotReady> {
        let account = self.account.upgrade().ok_or_else(|| "the account was removed".to_owned())?;
        let (_, context) = account.ready().await?;
        let words = ["stream", "--account", account.key.account.as_str(), "--format", "jsonl"];
        Ok(account.command.spec(child_id(&account), &words, Some((&account.key.account, &context)), Stdin::Piped))
    }
}

impl Program for StreamProgram {
    fn prepare(&self) -> BoxFuture<'_, Result<SpawnSpec, NotReady>> {
        Box::pin(self.spec())
    }

    fn attach(&self, process: &mut Process, exited: CancellationToken) -> JoinHandle<()> {
        let (stdin, stdout, errors) = (process.stdin.take(), process.stdout.take(), process.stderr.take());
        let (account, killer) = (self.account.upgrade(), process.killer());
        crate::watch::helper("stream.reader", async move {
            let (Some(account), Some(stdin), Some(stdout), Some(errors)) = (account, stdin, stdout, errors) else { return };
            let (child, desk) = (child_id(&account), account.command.desk(&account.key.account));
            let (heard, statuses) = mpsc::channel(STATUSES_MAX);
            desk.put(Line { stdin: Box::new(stdin), statuses, last_ids: Vec::new(), killer: Some(killer) }).await;
            let listening = listen(child.clone(), stdout, heard, exited.clone());
            tokio::join!(listening, log_errors(child, errors, exited));
            desk.clear().await;
        })
    }
}

/// Reads what the process says, to its end or a little longer than it lives. It is read whether or not somebody
/// listens, so that it never waits for us.
async fn listen(child: ChildId, mut stdout: pipe::Receiver, heard: mpsc::Sender<Heard>, exited: CancellationToken) {
    let reading = async {
        let (mut framing, mut chunk) = (Framing::new(STATUS_BYTES_MAX), vec![0; CHUNK_BYTES]);
        while let Ok(got @ 1..) = stdout.read(&mut chunk).await {
            framing.push(&chunk[..got], |piece| pass_on(&child, piece, &heard));
        }
    };
    tokio::select! {
        () = reading => {}
        () = after_exit(&exited, LATE) => tracing::warn!(%child, "stdout still open after the exit; given up"),
    }
}

fn pass_on(child: &ChildId, piece: Piece<'_>, heard: &mpsc::Sender<Heard>) {
    let status = match piece {
        Piece::Line(line) => match StreamStatus::read(line) {
            Ok((_, StreamStatus::Unknown)) => return,
            Ok((run_id, status)) => Heard::Status { run_id, status },
            Err(problem) => Heard::Garbage(problem),
        },
        Piece::TooLong { bytes, .. } => Heard::Garbage(format!("longer than {STATUS_BYTES_MAX} bytes ({bytes})")),
    };
    if let Heard::Garbage(problem) = &status {
        tracing::debug!(%child, problem, "a line of a stream process");
    }
    // That something is shown is known after the first of them; a last word always has a place, unless as many wait.
    let is_shown = matches!(&status, Heard::Status { status: StreamStatus::Shown, .. });
    if (is_shown && heard.capacity() <= LAST_WORDS) || heard.try_send(status).is_err() {
        tracing::trace!(%child, "a status of a stream process is left out");
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_last_word_has_its_place_behind_any_number_of_others() {
        let (sender, mut statuses) = mpsc::channel(STATUSES_MAX);
        let child = ChildId::new("stream/fake/me");
        let say = |line: &str| pass_on(&child, Piece::Line(line.as_bytes()), &sender);
        for _ in 0..STATUSES_MAX * 4 {
            say(r#"{"type":"message_updated","messageId":"m"}"#);
            say(r#"{"type":"typing"}"#);
        }
        say(r#"{"type":"delivery_complete","messageIds":["m"]}"#);
        let heard: Vec<Heard> = std::iter::from_fn(|| statuses.try_recv().ok()).collect();
        let (last, others) = heard.split_last().unwrap();
        assert!(matches!(last, Heard::Status { status: StreamStatus::Complete { .. }, .. }), "{last:?}");
        let is_shown = |heard: &Heard| matches!(heard, Heard::Status { status: StreamStatus::Shown, .. });
        assert!(!others.is_empty() && others.iter().all(is_shown));
    }
}
