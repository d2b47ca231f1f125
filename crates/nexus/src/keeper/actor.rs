//! The one task that talks to the keeper process: sends orders, routes answers, replaces a dead keeper.
#![allow(unsafe_code)]

use super::stdio::{out_pipe, stdin_of};
use super::wire::{self, Down, Packet, Received, Up, receive};
use super::{Cgroup, ExitStatus, Link, Process, SpawnError, SpawnSpec, launch, leftovers};
use crate::panics;
use crate::watch::Part;
use nexus_core::ids::ChildId;
use rustix::fd::{AsFd, OwnedFd};
use rustix::io::Errno;
use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio_util::sync::CancellationToken;

/// Spawn orders in flight: each holds six descriptors until it is answered.
const SPAWNS_IN_FLIGHT_MAX: usize = 64;
/// Keepers in a row that may die within a second of their start before the daemon gives up on them.
const RELAUNCH_MAX: u32 = 5;
/// Pauses between attempts to start one at all.
const LAUNCH_PAUSE_FIRST: Duration = Duration::from_millis(100);
const LAUNCH_PAUSE_MAX: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub(super) enum Order {
    Spawn(Box<Pending>),
    Signal {
        id: u64,
        signal: i32,
    },
    Kill {
        id: u64,
    },
    /// Answered once nothing of this child lives.
    Gone {
        mark: String,
        answer: oneshot::Sender<()>,
    },
}

#[derive(Debug)]
pub(super) struct Pending {
    order: wire::Order,
    stdio: [OwnedFd; 3],
    reply: Reply,
    exit: oneshot::Sender<ExitStatus>,
}

type Reply = oneshot::Sender<Result<Started, Refusal>>;

/// A child that runs and is nobody's yet. Dropped instead of taken, it is killed: whoever waited for
/// it may be gone before the answer is read.
#[derive(Debug)]
struct Started {
    id: u64,
    pid: u32,
    orders: mpsc::UnboundedSender<Order>,
    taken: bool,
}

impl Started {
    fn take(mut self) -> (u64, u32, mpsc::UnboundedSender<Order>) {
        self.taken = true;
        (self.id, self.pid, self.orders.clone())
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        if !self.taken && self.orders.send(Order::Kill { id: self.id }).is_err() {
            tracing::debug!(pid = self.pid, "keeper is gone, nothing to kill");
        }
    }
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
    /// name, which marks every child; `lock` is handed to a replacement keeper should this one die, and
    /// `cgroup` is where that one goes.
    ///
    /// The task ends when every handle and every [`Process`] is dropped and the keeper has exited. `part`
    /// is its place in the watch over the daemon's tasks.
    ///
    /// # Errors
    /// When the socket can't be watched.
    pub fn start(
        link: Link,
        instance: &str,
        lock: File,
        cgroup: Arc<Cgroup>,
        part: Part,
    ) -> std::io::Result<(Self, tokio::task::JoinHandle<()>)> {
        #[expect(clippy::disallowed_methods, reason = "bounded by the semaphore beside it, see Keeper")]
        let (orders, inbox) = mpsc::unbounded_channel();
        let actor = Actor::new(link, instance, lock, cgroup, orders.downgrade())?;
        let keeper = Self { orders, spawns: Arc::new(Semaphore::new(SPAWNS_IN_FLIGHT_MAX)), instance: instance.into() };
        Ok((keeper, crate::watch::helper("keeper", actor.serve(inbox, part))))
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
        let order = wire::Order { id: 0, argv: spec.argv, env, cwd, mark, cgroup: None };
        let pending = Pending { order, stdio: [their_stdin, their_stdout, their_stderr], reply, exit: exit_sender };
        crate::torture::point("spawn.before");
        self.orders.send(Order::Spawn(Box::new(pending))).map_err(|_| gone())?;
        let answer = answer.await;
        crate::torture::point("spawn.after");
        let (id, pid, orders) = match answer.map_err(|_| gone())? {
            Ok(started) => started.take(),
            Err(Refusal { at, errno }) => {
                let source = std::io::Error::from_raw_os_error(errno);
                return Err(SpawnError::Refused { at, program, source });
            }
        };
        let (stdout, stderr, given_up) = (Some(stdout), Some(stderr), Arc::default());
        Ok(Process { pid, stdin, stdout, stderr, id, orders, exit, ended: None, given_up })
    }

    /// Returns once nothing lives of any process that was started as `child`, which may have been dropped or never
    /// taken. A tree that can't be killed is given up by the keeper, and counts as gone.
    pub async fn gone(&self, child: &ChildId) {
        let (answer, answered) = oneshot::channel();
        let mark = format!("{}:{child}", self.instance);
        let asked = self.orders.send(Order::Gone { mark, answer });
        if asked.is_err() || answered.await.is_err() {
            tracing::debug!(%child, "the keeper is gone, and its children with it");
        }
    }
}

fn watched(socket: OwnedFd) -> std::io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` names one open socket for as long as it lives, and always the same.
    unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE | Interest::WRITABLE) }.map_err(Into::into)
}

/// A message that waits for room in the socket, and the spawn that is refused if it can't be sent.
struct Outgoing {
    packet: Packet,
    fds: Vec<OwnedFd>,
    spawn: Option<u64>,
}

struct Actor {
    socket: AsyncFd<OwnedFd>,
    pid: i32,
    lock: File,
    cgroup: Arc<Cgroup>,
    instance: Arc<str>,
    next_id: u64,
    /// Weak, or the task would keep itself alive.
    orders: mpsc::WeakUnboundedSender<Order>,
    outgoing: VecDeque<Outgoing>,
    starting: HashMap<u64, (Reply, oneshot::Sender<ExitStatus>)>,
    running: HashMap<u64, oneshot::Sender<ExitStatus>>,
    /// The marks of all that are starting or running.
    marks: HashMap<u64, String>,
    /// Who waits until nothing has a mark any more. Bounded by those who ask: one for each turn that was cut off.
    awaited: Vec<(String, oneshot::Sender<()>)>,
    relaunches: u32,
    launched: tokio::time::Instant,
}

impl Actor {
    fn new(link: Link, instance: &str, lock: File, cgroup: Arc<Cgroup>, orders: mpsc::WeakUnboundedSender<Order>) -> std::io::Result<Self> {
        Ok(Self {
            socket: watched(link.socket)?,
            pid: link.pid,
            lock,
            cgroup,
            instance: instance.into(),
            next_id: 1,
            orders,
            outgoing: VecDeque::new(),
            starting: HashMap::new(),
            running: HashMap::new(),
            marks: HashMap::new(),
            awaited: Vec::new(),
            relaunches: 0,
            launched: tokio::time::Instant::now(),
        })
    }

    /// Runs to the end. After a panic nobody knows what the keeper was told: it goes, and another one takes
    /// over the orders that wait.
    async fn serve(mut self, mut inbox: mpsc::UnboundedReceiver<Order>, mut part: Part) {
        let never = CancellationToken::new(); // only its last handle ends it
        while let Err(panicked) = panics::caught(self.run(&mut inbox)).await {
            self.dismiss().await;
            self.forget_all();
            if !part.failed(&panicked.to_string(), &never).await || !self.replace().await {
                break;
            }
        }
        if !inbox.is_closed() {
            part.give_up("no child can be started");
        }
        self.dismiss().await;
    }

    /// The keeper is gone, and with it whatever it was asked for.
    fn forget_all(&mut self) {
        self.outgoing.clear();
        self.starting.clear(); // their askers read "keeper gone"
        self.running.clear(); // read as `Lost`
        self.marks.clear();
        self.tell_gone();
    }

    /// The keeper sees EOF, kills what is left and exits; it holds the lock until then.
    async fn dismiss(&mut self) {
        // An error means that its end is closed: it is gone.
        rustix::net::shutdown(self.socket.get_ref(), rustix::net::Shutdown::Both).ok();
        let pid = self.pid;
        let waited = crate::watch::blocking("keeper.reap", move || leftovers::reap(pid)).await;
        if waited.is_err_and(|error| error.is_panic()) {
            tracing::warn!(pid, "could not wait for the keeper");
        }
    }

    async fn run(&mut self, inbox: &mut mpsc::UnboundedReceiver<Order>) {
        let mut buffer = Vec::new();
        loop {
            crate::torture::point("task.keeper");
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
    }

    fn take(&mut self, order: Order) {
        let (message, fds, spawn) = match order {
            Order::Spawn(pending) => {
                let Pending { mut order, stdio, reply, exit } = *pending;
                let id = self.next_id;
                order.id = id;
                order.cgroup = self.cgroup.home();
                self.next_id += 1;
                self.marks.insert(id, order.mark.clone());
                self.starting.insert(id, (reply, exit));
                (Down::Spawn(order), Vec::from(stdio), Some(id))
            }
            Order::Signal { id, signal } => (Down::Signal { id, signal }, Vec::new(), None),
            Order::Kill { id } => (Down::Kill { id }, Vec::new(), None),
            Order::Gone { mark, answer } => {
                self.awaited.push((mark, answer));
                return self.tell_gone();
            }
        };
        match (Packet::new(&message), spawn) {
            (Ok(packet), _) => self.outgoing.push_back(Outgoing { packet, fds, spawn }),
            (Err(error), Some(id)) => self.refuse(id, error.raw_os_error().unwrap_or(libc::EINVAL)),
            (Err(error), None) => tracing::error!(%error, "an order to the keeper could not be written"),
        }
    }

    /// Answers a spawn whose order can't be sent.
    fn refuse(&mut self, id: u64, errno: i32) {
        if let Some((reply, _)) = self.starting.remove(&id) {
            answer(reply, Err(Refusal { at: wire::Step::Order, errno }));
        }
        self.unmark(id);
    }

    /// Nothing of this one lives any more.
    fn unmark(&mut self, id: u64) {
        self.marks.remove(&id);
        self.tell_gone();
    }

    fn tell_gone(&mut self) {
        let marks = &self.marks;
        for (_, answer) in self.awaited.extract_if(.., |(mark, _)| !marks.values().any(|live| live == mark)) {
            if answer.send(()).is_err() {
                tracing::trace!("nobody waits for this child's end");
            }
        }
    }

    /// Sends what waits, as far as the socket takes it. An order that can't be sent is refused, so that
    /// it doesn't hold the ones behind it.
    fn flush(&mut self) {
        while let Some(first) = self.outgoing.front() {
            let (spawn, borrowed) = (first.spawn, first.fds.iter().map(AsFd::as_fd).collect::<Vec<_>>());
            match (first.packet.send(self.socket.get_ref(), &borrowed), spawn) {
                (Ok(()), _) => drop(self.outgoing.pop_front()),
                (Err(Errno::INTR), _) => {}
                // Full, or the keeper is gone, which shows on the reading side.
                (Err(Errno::AGAIN | Errno::PIPE | Errno::CONNRESET | Errno::NOTCONN | Errno::CONNREFUSED), _) => return,
                (Err(error), Some(id)) => {
                    drop(self.outgoing.pop_front());
                    self.refuse(id, error.raw_os_error());
                }
                // A signal is small and carries no descriptor: it can only want for memory, and is kept.
                (Err(_), None) => return,
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
            Up::Spawned { id, pid, outside } => {
                if let Some(errno) = outside {
                    self.cgroup.is_shared(&std::io::Error::from_raw_os_error(errno));
                }
                if let Some((reply, exit)) = self.starting.remove(&id) {
                    self.running.insert(id, exit);
                    self.hand_over(reply, id, pid);
                }
            }
            Up::Failed { id, at, errno } => {
                if let Some((reply, _)) = self.starting.remove(&id) {
                    answer(reply, Err(Refusal { at, errno }));
                }
                self.unmark(id);
            }
            Up::Exited { id, code, signal, stragglers } => {
                if code.is_none() && signal.is_none() {
                    tracing::error!(id, "a child did not die of KILL and was given up; it may still run");
                } else if stragglers > 0 {
                    tracing::error!(stragglers, "descendants of a child could not be killed");
                }
                let status = code.map(ExitStatus::Code).or(signal.map(ExitStatus::Signal)).unwrap_or(ExitStatus::Lost);
                if let Some(exit) = self.running.remove(&id)
                    && exit.send(status).is_err()
                {
                    tracing::trace!(id, "nobody waits for this child's exit");
                }
                self.unmark(id);
            }
        }
    }

    fn hand_over(&mut self, reply: Reply, id: u64, pid: u32) {
        if let Some(orders) = self.orders.upgrade() {
            answer(reply, Ok(Started { id, pid, orders, taken: false }));
        } else {
            // Every handle is gone, and so is whoever asked.
            self.take(Order::Kill { id });
            self.flush();
        }
    }

    /// The keeper is dead. Its children got their death signal; what they left became ours.
    async fn replace(&mut self) -> bool {
        tracing::error!(pid = self.pid, children = self.running.len(), "keeper died; clearing up and starting another");
        let (keeper, instance, cgroup) = (self.pid, self.instance.clone(), self.cgroup.clone());
        let clear = move || {
            let inside = cgroup.clear();
            let own = leftovers::clear_own_descendants(keeper);
            // An orphan goes elsewhere when a child was a subreaper itself.
            let marked = leftovers::clear_marked(&instance);
            inside && own && marked.left.is_empty()
        };
        let cleared = crate::watch::blocking("keeper.clear", clear).await;
        if !cleared.unwrap_or(false) {
            tracing::error!("descendants of the dead keeper could not all be killed");
        }
        self.forget_all();
        let young = self.launched.elapsed() < Duration::from_secs(1);
        self.relaunches = if young { self.relaunches + 1 } else { 0 };
        if self.relaunches > RELAUNCH_MAX {
            tracing::error!("the keeper dies at once, again and again; no child can be started until a restart");
            return false;
        }
        let Some((socket, pid)) = self.launch_patiently().await else { return false };
        tracing::info!(pid, instance = %self.instance, "keeper restarted");
        (self.socket, self.pid, self.launched) = (socket, pid, tokio::time::Instant::now());
        let cgroup = self.cgroup.clone();
        // Before it reads its first order.
        if let Err(error) = crate::watch::blocking("cgroup", move || cgroup.admit(pid)).await {
            tracing::error!(%error, "the keeper was not put into its cgroup");
        }
        true
    }

    /// Starts a keeper, however long descriptors or memory are short. `None` once nobody wants a child any more.
    async fn launch_patiently(&self) -> Option<(AsyncFd<OwnedFd>, i32)> {
        let mut pause = LAUNCH_PAUSE_FIRST;
        loop {
            match launch(&self.lock).and_then(|link| Ok((watched(link.socket)?, link.pid))) {
                Ok(launched) => return Some(launched),
                Err(error) => tracing::error!(%error, "failed to start another keeper; no child can be started until one is, trying again"),
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LAUNCH_PAUSE_MAX);
            self.orders.upgrade()?;
        }
    }
}

fn answer(reply: Reply, result: Result<Started, Refusal>) {
    if reply.send(result).is_err() {
        tracing::trace!("nobody waits for this spawn's answer");
    }
}

#[cfg(test)]
#[path = "actor_tests.rs"]
mod tests;
