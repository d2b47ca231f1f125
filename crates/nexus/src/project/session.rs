//! The conversation with one process of a project: whether it is ready and alive, what it says of which event, and
//! what it asks to be published. A process that breaks the rules is ended; who waits for it is told why. What an
//! event comes to is for [`super::run`].

use super::hearing::Hearing;
use super::notes::Notes;
use super::protocol::{self, Down, FRAME_BYTES_MAX, PROTOCOL, Publish, Up};
use super::publish::{Publisher, is_ephemeral};
use crate::agent::Output;
use crate::bus::Bus;
use crate::clock;
use crate::framing::{Framing, Piece};
use crate::keeper::{Killer, Process};
use crate::metrics::Metrics;
use crate::panics::finally;
use crate::stderr;
use crate::supervisor::after_exit;
use nexus_core::ids::ChildId;
use nexus_core::notice::NoticeType;
use serde_json::json;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::pipe;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

/// Bytes read at a time: what a pipe holds.
const CHUNK_BYTES: usize = 64 * 1024;
/// Frames on their way to a process that doesn't read them.
const FRAMES_DOWN_MAX: usize = 64;
/// Frames about one event that wait to be dealt with; then the process isn't read.
const HEARD_MAX: usize = 256;
/// Lines that are no frames, after which a process is not listened to any more.
const BAD_LINES_MAX: u32 = 100;
/// Pings without an answer, after which a process is ended.
const PINGS_MISSED_MAX: u64 = 3;
/// Looks from one ping to the next while the time of a process stands still.
const LOOKS_PER_PING: u64 = 8;
/// How long a process that closed its stdout may take to exit, and how long its pipes are read after its exit.
const EXIT_PATIENCE: Duration = Duration::from_secs(5);

/// What stays the same while a process lives.
#[derive(Debug)]
pub(super) struct Desk {
    /// `kind:pubkey:identifier`, as notices and logs name it.
    pub(super) project: String,
    pub(super) slug: String,
    pub(super) publisher: Publisher,
    pub(super) notes: Notes,
    pub(super) bus: Bus,
    pub(super) metrics: Metrics,
    pub(super) ready_limit: Duration,
    pub(super) ping_every: Duration,
}

/// Whether events may be handed over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
    Booting,
    Ready,
    /// The process is gone, or isn't listened to any more.
    Gone,
}

/// What a process says of an event.
#[derive(Debug)]
pub(super) enum Heard {
    Accepted,
    Output(Output),
    Publish(Box<Publish>),
    Complete(Box<protocol::Complete>),
}

/// One process.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) desk: Desk,
    down: mpsc::Sender<Vec<u8>>,
    standing: watch::Sender<Standing>,
    turns: Mutex<HashMap<String, mpsc::Sender<Heard>>>,
    killer: Killer,
    /// Why it was ended, if it was.
    why: OnceLock<String>,
    began: Instant,
    pings: AtomicU64,
    pongs: AtomicU64,
    hearing: Mutex<Hearing>,
    /// Numbers what is published without an event.
    unasked: AtomicU64,
}

/// The ends of a process's pipes, and what is to be written.
#[derive(Debug)]
pub(super) struct Pipes {
    stdin: pipe::Sender,
    stdout: pipe::Receiver,
    stderr: pipe::Receiver,
    lines: mpsc::Receiver<Vec<u8>>,
}

/// What is heard of one event; nothing any more once it is dropped.
#[derive(Debug)]
pub(super) struct Listening {
    session: Arc<Session>,
    id: String,
    heard: mpsc::Receiver<Heard>,
}

impl Listening {
    /// What is said next; `None` when the process is gone and all that it said was heard.
    pub(super) async fn next(&mut self) -> Option<Heard> {
        let mut standing = self.session.standing.subscribe();
        tokio::select! {
            // What was said before the end counts.
            biased;
            heard = self.heard.recv() => heard,
            // An error can't be: the session has the sender.
            _ = standing.wait_for(|standing| *standing == Standing::Gone) => self.heard.try_recv().ok(),
        }
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.session.lock().remove(&self.id);
    }
}

impl Session {
    /// Takes the pipes of a process that was started with a piped stdin; `None` when it has none.
    pub(super) fn new(process: &mut Process, desk: Desk) -> Option<(Arc<Self>, Pipes)> {
        let (stdin, stdout, stderr) = (process.stdin.take()?, process.stdout.take()?, process.stderr.take()?);
        let (down, lines) = mpsc::channel(FRAMES_DOWN_MAX);
        let session = Self {
            desk,
            down,
            standing: watch::Sender::new(Standing::Booting),
            turns: Mutex::default(),
            killer: process.killer(),
            why: OnceLock::new(),
            began: Instant::now(),
            pings: AtomicU64::new(0),
            pongs: AtomicU64::new(0),
            hearing: Mutex::default(),
            unasked: AtomicU64::new(0),
        };
        Some((Arc::new(session), Pipes { stdin, stdout, stderr, lines }))
    }

    pub(super) fn standing(&self) -> Standing {
        *self.standing.borrow()
    }

    /// Waits until it is ready. False when it ended before.
    pub(super) async fn is_ready(&self) -> bool {
        let mut standing = self.standing.subscribe();
        let settled = standing.wait_for(|standing| *standing != Standing::Booting).await;
        settled.is_ok_and(|standing| *standing == Standing::Ready)
    }

    /// Why it was ended, if it was.
    pub(super) fn failure(&self) -> Option<String> {
        self.why.get().cloned()
    }

    /// The same, with a word for an end of its own.
    pub(super) fn why(&self) -> String {
        self.failure().unwrap_or_else(|| "its process ended".to_owned())
    }

    /// Begins to listen to what is said of an event. `None` when somebody does already.
    pub(super) fn listen(self: &Arc<Self>, id: &str) -> Option<Listening> {
        let (sender, heard) = mpsc::channel(HEARD_MAX);
        let mut turns = self.lock();
        if turns.contains_key(id) {
            return None;
        }
        turns.insert(id.to_owned(), sender);
        Some(Listening { session: self.clone(), id: id.to_owned(), heard })
    }

    /// Sends a frame, waiting while the process doesn't read. False when it is gone.
    pub(super) async fn send(&self, line: Vec<u8>) -> bool {
        let mut standing = self.standing.subscribe();
        tokio::select! {
            sent = self.down.send(line) => sent.is_ok(),
            _ = standing.wait_for(|standing| *standing == Standing::Gone) => false,
        }
    }

    /// Tells the process what became of what it wanted published.
    pub(super) async fn acknowledge(&self, id: u64, published: Result<Option<String>, String>) {
        let (event_id, error) = match published {
            Ok(event_id) => (event_id, None),
            Err(error) => (None, Some(error)),
        };
        match protocol::line(&Down::AckPublished { id, event_id, error }) {
            Ok(line) => {
                self.send(line).await; // nobody is there to be told when it is gone
            }
            Err(error) => tracing::error!(project = self.desk.project, error, "an acknowledgement could not be written"),
        }
    }

    /// Asks it to end by itself.
    pub(super) fn ask_to_end(&self) {
        if let Ok(line) = protocol::line(&Down::Shutdown)
            && self.down.try_send(line).is_err()
        {
            tracing::debug!(project = self.desk.project, "a process that doesn't read isn't asked to end");
        }
    }

    /// Ends a process that can't be relied on; the first reason stays.
    fn fail(&self, why: String) {
        tracing::error!(project = self.desk.project, why, "the process of a project is ended");
        self.desk.notes.keep("error", why.clone());
        drop(self.why.set(why.clone()));
        self.standing.send_replace(Standing::Gone);
        self.killer.kill(&why);
    }

    /// Talks until the process has said its last.
    pub(super) async fn serve(self: Arc<Self>, child: ChildId, pipes: Pipes, exited: CancellationToken) {
        let Pipes { stdin, stdout, stderr, lines } = pipes;
        // Also when this breaks off: whoever listens would wait for a word that nobody reads.
        let _gone = finally(|| {
            self.standing.send_replace(Standing::Gone);
        });
        let reading = async {
            self.read(stdout, &exited).await;
            self.standing.send_replace(Standing::Gone);
            // It may be about to end by itself, with an exit code that says how. Nobody hears it any more otherwise.
            if tokio::time::timeout(EXIT_PATIENCE, exited.cancelled()).await.is_err() {
                self.killer.kill("it closed its stdout and stayed");
            }
        };
        let notes = self.desk.notes.clone();
        let errors = async {
            tokio::select! {
                () = stderr::log_and_tell(child, stderr, |line| notes.keep("info", line.to_owned())) => {}
                () = after_exit(&exited, EXIT_PATIENCE) => {}
            }
        };
        tokio::select! {
            _ = async { tokio::join!(reading, errors) } => {}
            // Neither of them ends by itself.
            () = write(stdin, lines) => {}
            () = self.watch_over() => {}
        }
    }

    /// Ends a process that isn't ready in time, or doesn't answer pings. Never returns.
    async fn watch_over(&self) {
        if tokio::time::timeout(self.desk.ready_limit, self.is_ready()).await.is_err() {
            self.fail(format!("it did not say `ready` within {} ms", self.desk.ready_limit.as_millis()));
        }
        let every_ms = u64::try_from(self.desk.ping_every.as_millis()).unwrap_or(u64::MAX);
        let mut due_ms = self.heard_ms().saturating_add(every_ms);
        while self.standing() == Standing::Ready {
            let left_ms = due_ms.saturating_sub(self.heard_ms());
            if left_ms > 0 {
                tokio::time::sleep(Duration::from_millis(left_ms.max(every_ms / LOOKS_PER_PING).saturating_add(1))).await;
                continue;
            }
            due_ms = self.heard_ms().saturating_add(every_ms);
            let missed = self.pings.load(Ordering::Relaxed).saturating_sub(self.pongs.load(Ordering::Relaxed));
            if missed >= PINGS_MISSED_MAX && self.standing() == Standing::Ready {
                self.fail(format!("it did not answer {missed} pings"));
                break;
            }
            let n = self.pings.fetch_add(1, Ordering::Relaxed) + 1;
            // One that has no room for it doesn't read, and will not answer it either.
            if let Ok(line) = protocol::line(&Down::Ping { n }) {
                self.down.try_send(line).ok();
            }
        }
        std::future::pending().await
    }

    /// The time in which its answers could be heard.
    fn heard_ms(&self) -> u64 {
        self.hearing().heard_ms(clock::mono_ms(), self.is_read())
    }

    /// Whether the process takes what it is sent, as far as is known.
    fn is_read(&self) -> bool {
        self.down.capacity() > 0
    }

    /// Waits for something of ours, and reads nothing meanwhile.
    async fn unheard<T>(&self, work: impl Future<Output = T>) -> T {
        self.hearing().stop(clock::mono_ms());
        let done = work.await;
        self.hearing().go_on(clock::mono_ms(), self.is_read());
        done
    }

    fn hearing(&self) -> std::sync::MutexGuard<'_, Hearing> {
        self.hearing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn read(&self, mut stdout: pipe::Receiver, exited: &CancellationToken) {
        let mut late = std::pin::pin!(after_exit(exited, EXIT_PATIENCE));
        let (mut framing, mut chunk, mut bad) = (Framing::new(FRAME_BYTES_MAX), vec![0; CHUNK_BYTES], 0);
        loop {
            crate::torture::point("task.project");
            let got = tokio::select! {
                got = stdout.read(&mut chunk) => got.unwrap_or(0),
                () = &mut late => 0,
            };
            if got == 0 {
                return;
            }
            let mut frames = Vec::new();
            framing.push(&chunk[..got], |piece| frames.push(frame(piece)));
            for frame in frames {
                let heard = match frame {
                    Ok(up) => self.hear(up).await,
                    Err(fault) => Err(fault),
                };
                let fatal = match heard {
                    Ok(()) => continue,
                    Err(Fault::Fatal(why)) => Some(why),
                    Err(Fault::Bad(what)) => {
                        bad += 1;
                        self.desk.notes.line(&self.desk.project, "warn", &format!("wrote what can't be used: {what}"));
                        (bad >= BAD_LINES_MAX).then(|| format!("it wrote {bad} lines that are no frames"))
                    }
                };
                if let Some(why) = fatal {
                    return self.fail(why);
                }
            }
        }
    }

    async fn hear(&self, up: Up) -> Result<(), Fault> {
        let is_ready = self.standing() == Standing::Ready;
        match up {
            Up::Ready { .. } if is_ready => Err(Fault::Bad("`ready` twice".to_owned())),
            Up::Ready { protocol: PROTOCOL } => {
                self.become_ready();
                Ok(())
            }
            Up::Ready { protocol } => {
                Err(Fault::Fatal(format!("it speaks version {protocol} of the protocol; this daemon speaks {PROTOCOL}")))
            }
            Up::Log { level, text } => {
                self.desk.notes.line(&self.desk.project, &level, &text);
                Ok(())
            }
            Up::Status { text } => {
                self.desk.notes.set_status(Some(&text));
                Ok(())
            }
            Up::Accepted { .. } | Up::Publish(_) | Up::Stream { .. } | Up::Pong { .. } | Up::Complete(_) if !is_ready => {
                Err(Fault::Bad("a frame before `ready`".to_owned()))
            }
            Up::Pong { n } => {
                let sent = self.pings.load(Ordering::Relaxed);
                self.pongs.fetch_max(n.min(sent), Ordering::Relaxed);
                Ok(())
            }
            Up::Accepted { id } => self.tell(&id, Heard::Accepted).await,
            Up::Stream { output: Output::Ask(_), .. } => Err(Fault::Bad("a question for the owner, whom projects don't ask".to_owned())),
            Up::Stream { id, output } => self.tell(&id, Heard::Output(output)).await,
            Up::Complete(complete) => self.tell(&complete.id.clone(), Heard::Complete(complete)).await,
            Up::Publish(publish) => self.hear_publish(publish).await,
        }
    }

    /// What belongs to an answer waits its turn there; the rest is published as it comes.
    async fn hear_publish(&self, publish: Box<Publish>) -> Result<(), Fault> {
        if let Some(about) = publish.about.clone().filter(|_| !is_ephemeral(&publish.template)) {
            let number = publish.id;
            let told = self.tell(&about, Heard::Publish(publish)).await;
            if told.is_err() {
                let error = "no event of that id is being answered".to_owned();
                self.acknowledge(number, Err(error)).await;
            }
            return told;
        }
        let number = self.unasked.fetch_add(1, Ordering::Relaxed);
        let once = format!("unasked/{}/{number}", ulid::Ulid::generate());
        let published = self.unheard(self.desk.publisher.publish(&publish, &once)).await;
        self.acknowledge(publish.id, published).await;
        Ok(())
    }

    async fn tell(&self, id: &str, heard: Heard) -> Result<(), Fault> {
        let turn = self.lock().get(id).cloned();
        let Some(turn) = turn else { return Err(Fault::Bad("a frame about an event that is not being answered".to_owned())) };
        // Nobody listens any more to an answer that was given up.
        drop(self.unheard(turn.send(heard)).await);
        Ok(())
    }

    fn become_ready(&self) {
        self.standing.send_replace(Standing::Ready);
        let seconds = self.began.elapsed().as_secs_f64();
        self.desk.metrics.project_ready.observe(seconds);
        tracing::info!(project = self.desk.project, seconds, "project is ready");
        let notice = json!({ "project": self.desk.project, "slug": self.desk.slug, "ready_ms": seconds * 1000.0 });
        self.desk.bus.publish(NoticeType::ProjectReady, notice);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, mpsc::Sender<Heard>>> {
        self.turns.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is wrong with what a process wrote.
enum Fault {
    /// It is left out.
    Bad(String),
    /// Nothing that it writes can be relied on any more.
    Fatal(String),
}

fn frame(piece: Piece<'_>) -> Result<Up, Fault> {
    match piece {
        Piece::Line(line) => protocol::read_up(line).map_err(Fault::Bad),
        // What was in it, nobody knows: an answer, perhaps.
        Piece::TooLong { bytes, .. } => Err(Fault::Fatal(format!("it wrote a frame of {bytes} bytes; {FRAME_BYTES_MAX} may be written"))),
    }
}

/// Writes what there is to be written. Never returns: a process that doesn't read is found out by its pings.
async fn write(mut stdin: pipe::Sender, mut lines: mpsc::Receiver<Vec<u8>>) {
    while let Some(line) = lines.recv().await {
        if stdin.write_all(&line).await.is_err() {
            break;
        }
    }
    std::future::pending().await
}
