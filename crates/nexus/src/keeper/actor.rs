//! The one task that talks to the keeper process: sends orders, routes answers, replaces a dead keeper.
#![allow(unsafe_code)]

use super::wire::{self, Down, Packet, Received, Up, receive};
use super::{ExitStatus, Link, Process, SpawnError, SpawnSpec, Stdin, launch, leftovers};
use rustix::fd::{AsFd, OwnedFd};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::sync::Arc;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::net::unix::pipe;
use tokio::sync::{Semaphore, mpsc, oneshot};

/// Spawn orders in flight: each holds six descriptors until it is answered.
const SPAWNS_IN_FLIGHT_MAX: usize = 64;
/// Keepers in a row that may die within a second of their start before the daemon gives up on them.
const RELAUNCH_MAX: u32 = 5;

#[derive(Debug)]
pub(super) enum Order {
    Spawn(Box<Pending>),
    Signal { id: u64, signal: i32 },
    Kill { id: u64 },
}

#[derive(Debug)]
pub(super) struct Pending {
    order: wire::Order,
    stdio: [OwnedFd; 3],
    reply: oneshot::Sender<Result<(u64, u32), Refusal>>,
    exit: oneshot::Sender<ExitStatus>,
}

#[derive(Debug)]
struct Refusal {
    at: wire::Step,
    errno: i32,
}

/// Handle to the keeper. Cheap to clone.
///
/// The order queue is unbounded by type only: spawns are limited by a semaphore, and signals by the
/// number of processes that can be signalled.
#[derive(Debug, Clone)]
pub struct Keeper {
    orders: mpsc::UnboundedSender<Order>,
    spawns: Arc<Semaphore>,
    instance: Arc<str>,
}

impl Keeper {
    /// Serves `link` in a task of the current runtime. `instance` is the state directory's random
    /// name, which marks every child; `lock` is handed to a replacement keeper should this one die.
    ///
    /// The task ends when every handle and every [`Process`] is dropped and the keeper has exited.
    ///
    /// # Errors
    /// When the socket can't be watched.
    pub fn start(link: Link, instance: &str, lock: File) -> std::io::Result<(Self, tokio::task::JoinHandle<()>)> {
        #[expect(clippy::disallowed_methods, reason = "bounded by the semaphore beside it, see Keeper")]
        let (orders, inbox) = mpsc::unbounded_channel();
        let socket = watched(link.socket)?;
        let actor = Actor {
            socket,
            pid: link.pid,
            lock,
            instance: instance.into(),
            next_id: 1,
            outgoing: VecDeque::new(),
            starting: HashMap::new(),
            running: HashMap::new(),
            relaunches: 0,
            launched: tokio::time::Instant::now(),
        };
        let keeper = Self { orders, spawns: Arc::new(Semaphore::new(SPAWNS_IN_FLIGHT_MAX)), instance: instance.into() };
        Ok((keeper, tokio::spawn(actor.run(inbox))))
    }

    /// Starts `spec`; returns once exec has succeeded.
    ///
    /// # Errors
    /// [`SpawnError`], with the exec error of the kernel when there was one.
    pub async fn spawn(&self, spec: SpawnSpec) -> Result<Process, SpawnError> {
        let program = spec.argv.first().cloned().unwrap_or_default();
        let gone = || SpawnError::KeeperGone { program: program.clone() };
        let _permit = self.spawns.acquire().await.map_err(|_| gone())?;
        let pipes = |source| SpawnError::Pipes { program: program.clone(), source };
        let (stdin, their_stdin) = stdin_of(spec.stdin).map_err(pipes)?;
        let (stdout, their_stdout) = out_pipe().map_err(pipes)?;
        let (stderr, their_stderr) = out_pipe().map_err(pipes)?;
        let mark = format!("{}:{}", self.instance, spec.child);
        let mut env: Vec<String> = spec.env.iter().map(|(name, value)| format!("{name}={value}")).collect();
        env.push(format!("NEXUS_CHILD_ID={mark}"));
        let cwd = spec.cwd.map(|path| path.to_string_lossy().into_owned());
        let (reply, answer) = oneshot::channel();
        let (exit_sender, exit) = oneshot::channel();
        let order = wire::Order { id: 0, argv: spec.argv, env, cwd, mark };
        let pending = Pending { order, stdio: [their_stdin, their_stdout, their_stderr], reply, exit: exit_sender };
        self.orders.send(Order::Spawn(Box::new(pending))).map_err(|_| gone())?;
        let (id, pid) = match answer.await.map_err(|_| gone())? {
            Ok(started) => started,
            Err(Refusal { at, errno }) => {
                let source = std::io::Error::from_raw_os_error(errno);
                return Err(SpawnError::Refused { at, program, source });
            }
        };
        let orders = self.orders.clone();
        Ok(Process { pid, stdin, stdout: Some(stdout), stderr: Some(stderr), id, orders, exit, ended: None })
    }
}

fn watched(socket: OwnedFd) -> std::io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` names one open socket for as long as it lives, and always the same.
    unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE | Interest::WRITABLE) }.map_err(Into::into)
}

fn stdin_of(kind: Stdin) -> std::io::Result<(Option<pipe::Sender>, OwnedFd)> {
    match kind {
        Stdin::Null => Ok((None, File::open("/dev/null")?.into())),
        Stdin::Piped => {
            let (theirs, ours) = pipe_with(PipeFlags::CLOEXEC)?;
            Ok((Some(pipe::Sender::from_owned_fd(ours)?), theirs))
        }
    }
}

fn out_pipe() -> std::io::Result<(pipe::Receiver, OwnedFd)> {
    let (ours, theirs) = pipe_with(PipeFlags::CLOEXEC)?;
    Ok((pipe::Receiver::from_owned_fd(ours)?, theirs))
}

type Reply = oneshot::Sender<Result<(u64, u32), Refusal>>;

struct Actor {
    socket: AsyncFd<OwnedFd>,
    pid: i32,
    lock: File,
    instance: Arc<str>,
    next_id: u64,
    outgoing: VecDeque<(Packet, Vec<OwnedFd>)>,
    starting: HashMap<u64, (Reply, oneshot::Sender<ExitStatus>)>,
    running: HashMap<u64, oneshot::Sender<ExitStatus>>,
    relaunches: u32,
    launched: tokio::time::Instant,
}

impl Actor {
    async fn run(mut self, mut inbox: mpsc::UnboundedReceiver<Order>) {
        let mut buffer = Vec::new();
        loop {
            tokio::select! {
                order = inbox.recv() => match order {
                    Some(order) => {
                        self.take(order);
                        self.flush();
                    }
                    None => break,
                },
                ready = self.socket.readable() => {
                    let Ok(mut guard) = ready else { break };
                    guard.clear_ready();
                    drop(guard);
                    if !self.drain(&mut buffer) && !self.replace().await {
                        break;
                    }
                }
                ready = self.socket.writable(), if !self.outgoing.is_empty() => {
                    let Ok(mut guard) = ready else { break };
                    guard.clear_ready();
                    drop(guard);
                    self.flush();
                }
            }
        }
        // The keeper sees EOF, kills what is left and exits; it holds the lock until then.
        let pid = self.pid;
        drop(self.socket);
        let waited = tokio::task::spawn_blocking(move || leftovers::reap(pid)).await;
        if waited.is_err() {
            tracing::warn!(pid, "could not wait for the keeper");
        }
    }

    fn take(&mut self, order: Order) {
        let (message, fds) = match order {
            Order::Spawn(pending) => {
                let Pending { mut order, stdio, reply, exit } = *pending;
                order.id = self.next_id;
                self.next_id += 1;
                self.starting.insert(order.id, (reply, exit));
                (Down::Spawn(order), Vec::from(stdio))
            }
            Order::Signal { id, signal } => (Down::Signal { id, signal }, Vec::new()),
            Order::Kill { id } => (Down::Kill { id }, Vec::new()),
        };
        match Packet::new(&message) {
            Ok(packet) => self.outgoing.push_back((packet, fds)),
            Err(error) => {
                if let Down::Spawn(order) = message
                    && let Some((reply, _)) = self.starting.remove(&order.id)
                {
                    answer(reply, Err(Refusal { at: wire::Step::Order, errno: error.raw_os_error().unwrap_or(libc::E2BIG) }));
                }
            }
        }
    }

    /// Sends what waits, as far as the socket takes it. Errors show on the reading side.
    fn flush(&mut self) {
        while let Some((packet, fds)) = self.outgoing.front() {
            let borrowed: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
            match packet.send(self.socket.get_ref(), &borrowed) {
                Ok(()) => drop(self.outgoing.pop_front()),
                Err(Errno::INTR) => {}
                Err(_) => return,
            }
        }
    }

    /// Takes every message that is there. False when the keeper is gone.
    fn drain(&mut self, buffer: &mut Vec<u8>) -> bool {
        loop {
            match receive::<Up>(self.socket.get_ref(), buffer) {
                Received::Message(message, _) => self.hear(message),
                Received::Garbage(error) => tracing::error!(%error, "keeper said something unreadable"),
                Received::Empty => return true,
                Received::Closed => return false,
            }
        }
    }

    fn hear(&mut self, message: Up) {
        match message {
            Up::Hello { version } => tracing::debug!(version, pid = self.pid, "keeper is up"),
            Up::Spawned { id, pid } => {
                if let Some((reply, exit)) = self.starting.remove(&id) {
                    self.running.insert(id, exit);
                    if reply.send(Ok((id, pid))).is_err() {
                        self.take(Order::Kill { id }); // nobody waits for it any more
                        self.flush();
                    }
                }
            }
            Up::Failed { id, at, errno } => {
                if let Some((reply, _)) = self.starting.remove(&id) {
                    answer(reply, Err(Refusal { at, errno }));
                }
            }
            Up::Exited { id, code, signal, stragglers } => {
                if stragglers > 0 {
                    tracing::error!(stragglers, "descendants of a child could not be killed");
                }
                let status = code.map(ExitStatus::Code).or(signal.map(ExitStatus::Signal)).unwrap_or(ExitStatus::Lost);
                if let Some(exit) = self.running.remove(&id)
                    && exit.send(status).is_err()
                {
                    tracing::trace!(id, "nobody waits for this child's exit");
                }
            }
        }
    }

    /// The keeper is dead. Its children got their death signal; what they left became ours.
    async fn replace(&mut self) -> bool {
        tracing::error!(pid = self.pid, children = self.running.len(), "keeper died; clearing up and starting another");
        let keeper = self.pid;
        let cleared = tokio::task::spawn_blocking(move || leftovers::clear_own_descendants(keeper)).await;
        if !cleared.unwrap_or(false) {
            tracing::error!("descendants of the dead keeper could not all be killed");
        }
        self.outgoing.clear();
        self.starting.clear(); // their askers read "keeper gone"
        for (_, exit) in self.running.drain() {
            drop(exit); // read as `Lost`
        }
        let young = self.launched.elapsed() < std::time::Duration::from_secs(1);
        self.relaunches = if young { self.relaunches + 1 } else { 0 };
        if self.relaunches > RELAUNCH_MAX {
            tracing::error!("the keeper dies at once, again and again; no child can be started until a restart");
            return false;
        }
        match launch(&self.lock).and_then(|link| Ok((watched(link.socket)?, link.pid))) {
            Ok((socket, pid)) => {
                tracing::info!(pid, instance = %self.instance, "keeper restarted");
                (self.socket, self.pid, self.launched) = (socket, pid, tokio::time::Instant::now());
                true
            }
            Err(error) => {
                tracing::error!(%error, "failed to start another keeper; no child can be started until a restart");
                false
            }
        }
    }
}

fn answer(reply: Reply, refusal: Result<(u64, u32), Refusal>) {
    if reply.send(refusal).is_err() {
        tracing::trace!("nobody waits for this spawn's answer");
    }
}
