//! The conversation with one process of a plugin: calls down, answers up in any order, what it logs and
//! what it asks for. It decides nothing about the plugin; when the process can't be talked with any
//! more it is killed, and who waits is told.

use super::calls::{Caller, CallerKind, CallerRequest, Calls};
use super::frame::{self, Frame, LINE_BYTES_MAX, Ready, Reply, Up};
use crate::clock;
use crate::framing::{Framing, Piece};
use crate::keeper::{Killer, Process};
use crate::panics::finally;
use crate::stderr::log_errors;
use crate::supervisor::after_exit;
use arc_swap::ArcSwapOption;
use nexus_core::config::Grant;
use nexus_core::ids::ChildId;
use serde_json::Value;
use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::pipe;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

/// Bytes read at a time: what a pipe holds.
const CHUNK_BYTES: usize = 64 * 1024;
/// Lines on their way to a plugin that doesn't read them.
const LINES_DOWN_MAX: usize = 64;
/// Lines that are no frames, after which a process is not listened to any more.
const BAD_LINES_MAX: u32 = 100;
/// Calls of one process whose answers it has not taken yet. How many are carried out at once, and how long
/// one may take, is for [`Calls`].
const CALLS_MAX: usize = 64;
/// Refusals that wait until a process has taken what is before them; more are left out, and counted.
const REFUSALS_MAX: usize = 1024;
/// Lines that a plugin may log per window; more are counted.
const LOGS_PER_WINDOW: u32 = 200;
const LOG_WINDOW: Duration = Duration::from_secs(10);
/// Longest line that is logged, in characters.
const LOG_CHARS_MAX: usize = 4000;
/// How long stdout is read after the exit: a descriptor that was passed to a stranger must not hold the
/// restart.
const STDOUT_DEADLINE: Duration = Duration::from_secs(5);

/// Why a call has no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lost {
    Late,
    /// The process is gone, or isn't listened to any more.
    Gone,
}

/// What a script's host has said of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Standing {
    Unsaid,
    Ready(Ready),
    Fatal(String),
}

/// What one plugin or automation is to its process: who calls, what it may, and what is known of it.
#[derive(Debug)]
pub(super) struct Desk {
    kind: CallerKind,
    plugin: Arc<str>,
    grants: watch::Receiver<Arc<[Grant]>>,
    calls: Arc<ArcSwapOption<Calls>>,
    standing: watch::Sender<Standing>,
    /// Answers that nobody waited for any more, and lines that were no frames.
    ignored: Arc<AtomicU64>,
    log: Mutex<Log>,
}

impl Desk {
    pub(super) fn new(
        kind: CallerKind,
        plugin: Arc<str>,
        grants: watch::Receiver<Arc<[Grant]>>,
        calls: Arc<ArcSwapOption<Calls>>,
        standing: watch::Sender<Standing>,
        ignored: Arc<AtomicU64>,
    ) -> Self {
        let log = Mutex::new(Log::new(plugin.clone()));
        Self { kind, plugin, grants, calls, standing, ignored, log }
    }

    fn log(&self, level: &str, text: &str) {
        self.log.lock().unwrap_or_else(PoisonError::into_inner).line(level, text);
    }
}

/// Those that share a process, by their numbers.
pub(super) type Guests = Mutex<BTreeMap<u64, Arc<Desk>>>;

/// Whose frames a process writes.
#[derive(Debug, Clone)]
pub(super) struct Desks {
    /// The plugin's, or the host's own.
    own: Arc<Desk>,
    guests: Option<Arc<Guests>>,
}

impl Desks {
    /// A process with one plugin.
    pub(super) fn one(desk: Desk) -> Self {
        Self { own: Arc::new(desk), guests: None }
    }

    /// A process that several share; `own` is for what is none of theirs.
    pub(super) fn many(own: Desk, guests: Arc<Guests>) -> Self {
        Self { own: Arc::new(own), guests: Some(guests) }
    }

    /// `None` for a guest that is gone, or never was.
    fn of(&self, guest: Option<u64>) -> Option<Arc<Desk>> {
        match (guest, &self.guests) {
            (Some(guest), Some(guests)) => guests.lock().unwrap_or_else(PoisonError::into_inner).get(&guest).cloned(),
            (None, _) | (Some(_), None) => Some(self.own.clone()),
        }
    }
}

/// A call that waits for its answer.
#[derive(Debug)]
struct Waiting {
    answer: oneshot::Sender<Reply>,
    request: Option<CallerRequest>,
}

/// What a plugin asks for.
struct Asked {
    guest: Option<u64>,
    number: u64,
    id: Option<u64>,
    method: String,
    params: Value,
}

/// One process.
#[derive(Debug)]
pub(super) struct Session {
    desks: Desks,
    down: mpsc::Sender<Vec<u8>>,
    waiting: Mutex<HashMap<u64, Waiting>>,
    killer: Killer,
    gone: CancellationToken,
    /// Room for what it asks for.
    room: Arc<Semaphore>,
    /// Room for refusals that wait for their place among the lines down.
    refusals: Arc<Semaphore>,
    /// When it last wrote anything, in monotonic ms.
    heard_ms: AtomicU64,
    /// A call was found to be what ended it, or taken for that.
    blamed: AtomicBool,
}

/// The ends of a process's pipes, and what is to be written.
#[derive(Debug)]
pub(super) struct Pipes {
    stdin: pipe::Sender,
    stdout: pipe::Receiver,
    stderr: pipe::Receiver,
    lines: mpsc::Receiver<Vec<u8>>,
}

/// Takes a call out of those that wait, however its asker ended.
struct Waits<'s> {
    session: &'s Session,
    id: u64,
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.session.lock().remove(&self.id);
    }
}

impl Session {
    /// Takes the pipes of a process that was started with a piped stdin; `None` when it has none.
    pub(super) fn new(process: &mut Process, desks: Desks) -> Option<(Arc<Self>, Pipes)> {
        let (stdin, stdout, stderr) = (process.stdin.take()?, process.stdout.take()?, process.stderr.take()?);
        let (down, lines) = mpsc::channel(LINES_DOWN_MAX);
        let (waiting, gone, room) = (Mutex::default(), CancellationToken::new(), Arc::new(Semaphore::new(CALLS_MAX)));
        let refusals = Arc::new(Semaphore::new(REFUSALS_MAX));
        let (heard_ms, blamed) = (AtomicU64::new(0), AtomicBool::new(false));
        let session = Self { desks, down, waiting, killer: process.killer(), gone, room, refusals, heard_ms, blamed };
        Some((Arc::new(session), Pipes { stdin, stdout, stderr, lines }))
    }

    /// Kills the process: it can't be trusted to answer any more.
    pub(super) fn kill(&self, why: &str) {
        self.end();
        self.killer.kill(why);
    }

    /// Puts the end of the process down to one call; whether no other was blamed before. Of a process that ends by
    /// itself nobody knows for which call it did, so that it counts once.
    pub(super) fn blame(&self) -> bool {
        !self.blamed.swap(true, Ordering::Relaxed)
    }

    /// Sends what has no answer; whether the process still takes anything.
    pub(super) async fn tell(&self, line: Vec<u8>) -> bool {
        tokio::select! {
            sent = self.down.send(line) => sent.is_ok(),
            () = self.gone.cancelled() => false,
        }
    }

    /// Whether the process is gone, or isn't listened to any more.
    pub(super) fn is_gone(&self) -> bool {
        self.gone.is_cancelled()
    }

    /// Whether it wrote anything since `mono_ms`.
    pub(super) fn was_heard_since(&self, mono_ms: u64) -> bool {
        self.heard_ms.load(Ordering::Relaxed) >= mono_ms
    }

    /// Sends one call and waits for its answer until `deadline`.
    pub(super) async fn call(
        &self,
        id: u64,
        line: Vec<u8>,
        request: Option<CallerRequest>,
        deadline: tokio::time::Instant,
    ) -> Result<Reply, Lost> {
        let (answer, heard) = oneshot::channel();
        self.lock().insert(id, Waiting { answer, request });
        let _waits = Waits { session: self, id };
        let talk = async {
            self.down.send(line).await.map_err(|_| Lost::Gone)?;
            heard.await.map_err(|_| Lost::Gone)
        };
        tokio::select! {
            // An answer that came before the end counts.
            biased;
            said = tokio::time::timeout_at(deadline, talk) => said.unwrap_or(Err(Lost::Late)),
            () = self.gone.cancelled() => Err(Lost::Gone),
        }
    }

    /// Talks until the process has said its last.
    pub(super) async fn serve(self: Arc<Self>, child: ChildId, pipes: Pipes, exited: CancellationToken) {
        let Pipes { stdin, stdout, stderr, lines } = pipes;
        // Also when this breaks off.
        let _gone = finally(|| self.end());
        let reading = async {
            self.read(stdout, &exited).await;
            // Nobody hears it any more, so it can't answer.
            self.kill("nobody read its stdout any more");
        };
        // In this task: were it to break alone, nobody would be asked anything any more.
        let writing = async {
            write(stdin, lines).await;
            std::future::pending::<()>().await;
        };
        tokio::select! {
            _ = async { tokio::join!(reading, log_errors(child, stderr, exited.clone())) } => {}
            () = writing => {} // never
        }
    }

    async fn read(self: &Arc<Self>, mut stdout: pipe::Receiver, exited: &CancellationToken) {
        let mut late = std::pin::pin!(after_exit(exited, STDOUT_DEADLINE));
        let (mut framing, mut chunk) = (Framing::new(LINE_BYTES_MAX), vec![0; CHUNK_BYTES]);
        let (own, mut bad) = (self.desks.own.clone(), 0);
        while bad < BAD_LINES_MAX {
            crate::torture::point("task.plugin");
            let got = tokio::select! {
                got = stdout.read(&mut chunk) => got.unwrap_or(0),
                () = &mut late => 0,
            };
            if got == 0 {
                return;
            }
            self.heard_ms.store(clock::mono_ms(), Ordering::Relaxed);
            framing.push(&chunk[..got], |piece| {
                let heard = match piece {
                    Piece::Line(line) => frame::read(line).map(|frame| self.hear(frame)),
                    Piece::TooLong { bytes, .. } => Err(format!("a line of {bytes} bytes; {LINE_BYTES_MAX} may be written")),
                };
                if let Err(problem) = heard {
                    bad += 1;
                    own.ignored.fetch_add(1, Ordering::Relaxed);
                    own.log("warn", &format!("wrote what can't be read: {problem}"));
                }
            });
        }
        tracing::error!(plugin = %own.plugin, lines = bad, "a plugin writes what can't be read; it is killed");
    }

    fn hear(self: &Arc<Self>, Frame { guest, up }: Frame) {
        match (up, self.desks.of(guest)) {
            (Up::Answer { id, reply }, desk) => self.deliver(desk.as_deref(), id, reply),
            // Of one that was unloaded meanwhile nobody wants to know anything else.
            (Up::Ready(_) | Up::Fatal(_) | Up::Log { .. } | Up::Call { .. }, None) => {}
            (Up::Ready(ready), Some(desk)) => drop(desk.standing.send_replace(Standing::Ready(ready))),
            (Up::Fatal(message), Some(desk)) => {
                tracing::error!(plugin = %desk.plugin, error = message, "{} can't be loaded", desk.kind.with_article());
                desk.standing.send_replace(Standing::Fatal(message));
            }
            (Up::Log { level, message }, Some(desk)) => desk.log(&level, &message),
            (Up::Call { number, id, method, params }, Some(desk)) => {
                self.dispatch(&desk, Asked { guest, number, id, method, params });
            }
        }
    }

    /// Gives an answer to who waits for it, also when whose it is was unloaded meanwhile.
    fn deliver(&self, desk: Option<&Desk>, id: u64, reply: Reply) {
        let waiting = self.lock().remove(&id);
        // Unknown, too late, or a second one.
        let ignored = waiting.is_none_or(|waiting| waiting.answer.send(reply).is_err());
        if let Some(desk) = desk.filter(|_| ignored) {
            desk.ignored.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Has what the plugin asks for done, beside everything else.
    fn dispatch(self: &Arc<Self>, desk: &Desk, asked: Asked) {
        let Asked { guest, number, id, method, mut params } = asked;
        let refuse = |why: String| self.refuse(desk, guest, number, why);
        let request = match id.map(|id| (id, self.request_of(id))) {
            None => None,
            Some((_, Some(request))) => request,
            Some((id, None)) => return refuse(format!("the call {id} of a hook is not under way")),
        };
        let Some(calls) = desk.calls.load_full() else { return refuse("the daemon is starting or stopping".to_owned()) };
        let Ok(room) = self.room.clone().try_acquire_owned() else {
            return refuse(format!("{CALLS_MAX} calls wait for their answers; take some first"));
        };
        let (kind, plugin, grants) = (desk.kind, desk.plugin.as_ref().to_owned(), desk.grants.borrow().clone());
        let caller = Caller { kind, plugin, grants, request };
        // Here, where the calls still are in their order: the tasks may overtake each other.
        caller.number(&method, &mut params);
        let this = self.clone();
        crate::watch::helper("plugin.call", async move {
            let _room = room;
            let result = tokio::select! {
                called = calls.call(&caller, &method, params) => called.map_err(|error| error.told()),
                () = this.gone.cancelled() => return,
            };
            // An error means that the process is gone, and its question with it.
            this.down.send(frame::answer(guest, number, result)).await.ok();
        });
    }

    /// The request in whose hook the call `id` is; nothing when that isn't under way.
    fn request_of(&self, id: u64) -> Option<Option<CallerRequest>> {
        self.lock().get(&id).map(|waiting| waiting.request.clone())
    }

    /// Answers that nothing is done. While the lines down are full of what is on its way, a task waits for its place.
    fn refuse(self: &Arc<Self>, desk: &Desk, guest: Option<u64>, number: u64, why: String) {
        let line = match self.down.try_send(frame::answer(guest, number, Err(why))) {
            Ok(()) => return,
            Err(TrySendError::Full(line)) => line,
            Err(TrySendError::Closed(_)) => return, // it is gone, and its question with it
        };
        let Ok(room) = self.refusals.clone().try_acquire_owned() else {
            // It doesn't read what it asked for.
            desk.ignored.fetch_add(1, Ordering::Relaxed);
            return;
        };
        let this = self.clone();
        crate::watch::helper("plugin.refusal", async move {
            let _room = room;
            this.tell(line).await; // one that is gone needs no answer
        });
    }

    /// Tells everybody who waits that no answer will come.
    fn end(&self) {
        self.gone.cancel();
        self.lock().clear();
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<u64, Waiting>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn write(mut stdin: pipe::Sender, mut lines: mpsc::Receiver<Vec<u8>>) {
    while let Some(line) = lines.recv().await {
        if stdin.write_all(&line).await.is_err() {
            return;
        }
    }
}

/// What a plugin logs, bounded in length and rate.
#[derive(Debug)]
struct Log {
    plugin: Arc<str>,
    since: Instant,
    logged: u32,
}

impl Log {
    fn new(plugin: Arc<str>) -> Self {
        Self { plugin, since: Instant::now(), logged: 0 }
    }

    fn line(&mut self, level: &str, text: &str) {
        if self.since.elapsed() >= LOG_WINDOW {
            let dropped = self.logged.saturating_sub(LOGS_PER_WINDOW);
            if dropped > 0 {
                tracing::warn!(plugin = %self.plugin, lines = dropped, "lines of a plugin left out: more than {LOGS_PER_WINDOW} in 10 s");
            }
            (self.since, self.logged) = (Instant::now(), 0);
        }
        self.logged = self.logged.saturating_add(1);
        if self.logged > LOGS_PER_WINDOW {
            return;
        }
        let plugin: &str = &self.plugin;
        let text: String = text.chars().take(LOG_CHARS_MAX).collect();
        match level {
            "debug" => tracing::debug!(target: "plugin", plugin, "{text}"),
            "warn" => tracing::warn!(target: "plugin", plugin, "{text}"),
            "error" => tracing::error!(target: "plugin", plugin, "{text}"),
            _ => tracing::info!(target: "plugin", plugin, "{text}"),
        }
    }
}
