//! The `nexus __keeper` process: starts children on the daemon's orders, reaps them, and when the
//! daemon is gone kills everything that descends from it.
//!
//! One thread, no runtime, no logging, no configuration. It never reads a child's output and never
//! decides whether to restart one.
#![allow(unsafe_code)]

use super::cgroup::child::ChildCgroup;
use super::spawn::{Failure, Started, spawn};
use super::tree;
use super::wire::{Down, Order, Packet, Received, Step, Up, VERSION, receive};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use rustix::io::Errno;
use std::collections::{HashMap, VecDeque};
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// How long leftovers of one child may take to die before its exit is reported all the same: a
/// process in uninterruptible sleep must not hold a restart for ever.
const STRAGGLER_DEADLINE: Duration = Duration::from_secs(5);
/// How long a child may take to die of KILL before it is given up: one in uninterruptible sleep, or of
/// a user that may not be signalled, must not hold who waits for its end.
const KILL_DEADLINE: Duration = Duration::from_secs(5);
/// How long the last sweep may take before the lock is let go all the same.
const SWEEP_DEADLINE: Duration = Duration::from_secs(10);
const SWEEP_PAUSE_MS: i64 = 5;
/// While something is dying, look again this often even if no signal came.
const DYING_TICK_MS: i64 = 50;
/// Cgroups of children that were let go while something lived in them: it is tried again whenever a process
/// ends. Those beyond stay until the next start.
const UNREMOVED_MAX: usize = 64;

struct Child {
    id: u64,
    mark: String,
    /// What all that it starts is in, where it has one.
    cgroup: Option<ChildCgroup>,
    /// Set once the main process is reaped and what it left behind is being killed.
    closing: Option<Closing>,
    /// Set by the first KILL: when to give the child up.
    kill_by: Option<Instant>,
}

impl Child {
    /// Whether its end needs watching, and not only a signal.
    fn is_dying(&self) -> bool {
        self.closing.is_some() || self.kill_by.is_some()
    }
}

struct Closing {
    code: Option<i32>,
    signal: Option<i32>,
    deadline: Instant,
}

struct Keeper {
    socket: OwnedFd,
    /// By PID of the main process.
    children: HashMap<i32, Child>,
    by_id: HashMap<u64, i32>,
    outgoing: VecDeque<Packet>,
    /// Those that are not empty although their children were let go.
    unremoved: Vec<ChildCgroup>,
}

/// Runs the keeper until the daemon is gone and all descendants are dead.
///
/// The daemon hands over its end in descriptors: 0 the socket, 1 the open lock file (so that the
/// lock lasts until the last child is gone), 2 a pidfd of the daemon.
pub fn main() -> ExitCode {
    let Ok([socket, lock, daemon]) = take_descriptors() else { return ExitCode::from(2) };
    let Ok(signals) = watch_children() else { return ExitCode::from(2) };
    let mut keeper = Keeper::new(socket);
    keeper.say(&Up::Hello { version: VERSION });
    keeper.serve(&signals, &daemon);
    let clean = keeper.sweep();
    drop(lock);
    if clean { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Moves the three descriptors away from 0 to 2, closes all others and puts /dev/null in their place.
fn take_descriptors() -> std::io::Result<[OwnedFd; 3]> {
    let moved = [0, 1, 2].map(|fd| {
        // SAFETY: descriptors 0 to 2 were given to this process for this purpose and nothing else
        // in it uses them; fcntl_dupfd_cloexec makes the owned copies.
        let borrowed = unsafe { rustix::fd::BorrowedFd::borrow_raw(fd) };
        rustix::io::fcntl_dupfd_cloexec(borrowed, 3)
    });
    let [a, b, c] = moved;
    let fds = [a?, b?, c?];
    let highest = fds.iter().map(|fd| fd.as_raw_fd()).max().unwrap_or(2);
    // SAFETY: closes only what this process doesn't know of, inherited by mistake.
    unsafe { libc::close_range((highest + 1).unsigned_abs(), u32::MAX, 0) };
    let null = rustix::fs::open("/dev/null", rustix::fs::OFlags::RDWR | rustix::fs::OFlags::CLOEXEC, rustix::fs::Mode::empty())?;
    for target in 0..3 {
        // SAFETY: replaces the three standard descriptors, whose originals were duplicated above.
        unsafe { libc::dup2(null.as_raw_fd(), target) };
    }
    Ok(fds)
}

/// Own session, subreaper, name; all signals blocked, SIGCHLD through a descriptor.
fn watch_children() -> std::io::Result<OwnedFd> {
    // Fails only when this process leads a group already, which is as good.
    rustix::process::setsid().ok();
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?;
    rustix::thread::set_name(c"nexus-keeper")?;
    // SAFETY: plain system calls on a local, fully initialised signal set.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&raw mut set);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const set, std::ptr::null_mut());
        let mut only: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut only);
        libc::sigaddset(&raw mut only, libc::SIGCHLD);
        let fd = libc::signalfd(-1, &raw const only, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK);
        if fd < 0 { Err(std::io::Error::last_os_error()) } else { Ok(OwnedFd::from_raw_fd(fd)) }
    }
}

impl Keeper {
    fn new(socket: OwnedFd) -> Self {
        Self { socket, children: HashMap::new(), by_id: HashMap::new(), outgoing: VecDeque::new(), unremoved: Vec::new() }
    }

    /// Until the daemon is gone.
    fn serve(&mut self, signals: &OwnedFd, daemon: &OwnedFd) {
        let mut buffer = Vec::new();
        loop {
            let dying = self.children.values().any(Child::is_dying);
            let mut interest = PollFlags::IN;
            if !self.outgoing.is_empty() {
                interest |= PollFlags::OUT;
            }
            let tick = Timespec { tv_sec: 0, tv_nsec: DYING_TICK_MS * 1_000_000 };
            let timeout = dying.then_some(&tick);
            let mut fds = [PollFd::new(&self.socket, interest), PollFd::new(signals, PollFlags::IN), PollFd::new(daemon, PollFlags::IN)];
            match poll(&mut fds, timeout) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(_) => return,
            }
            let [socket_ready, child_died, daemon_died] = fds.map(|fd| !fd.revents().is_empty());
            if child_died {
                drain(signals);
            }
            if child_died || dying {
                self.reap();
            }
            if socket_ready && (!self.flush() || !self.take_orders(&mut buffer)) {
                return;
            }
            // After the socket: orders that the daemon wrote before it died may be dropped, but
            // answers to them must not be awaited.
            if daemon_died {
                return;
            }
        }
    }

    /// False when the daemon is gone.
    fn take_orders(&mut self, buffer: &mut Vec<u8>) -> bool {
        loop {
            match receive::<Down>(self.socket.as_fd(), buffer) {
                Received::Message(order, fds) => self.obey(order, fds),
                // The daemon is our own binary; a message that can't be read is an order that can't
                // be answered, and its sender sees no reply. Nothing else depends on it.
                Received::Garbage(_) => {}
                Received::Empty => return true,
                Received::Closed => return false,
            }
        }
    }

    fn obey(&mut self, order: Down, fds: Vec<OwnedFd>) {
        match order {
            Down::Spawn(order) => self.start(order, fds),
            Down::Signal { id, signal } => self.signal(id, signal),
            Down::Kill { id } => self.kill(id),
        }
    }

    fn start(&mut self, order: Order, fds: Vec<OwnedFd>) {
        let id = order.id;
        let (made, refused) = match order.cgroup.as_deref().map(|home| ChildCgroup::make(Path::new(home), id)) {
            None => (None, None),
            Some(Ok(made)) => (Some(made), None),
            Some(Err(error)) => (None, Some(error.raw_os_error().unwrap_or(libc::EIO))),
        };
        let (cgroup, opened) = made.unzip();
        let started = match <[OwnedFd; 3]>::try_from(fds) {
            Ok(stdio) => spawn(&order, &stdio, opened.as_ref()),
            Err(_) => Err(Failure { at: Step::Order, errno: libc::EBADF }),
        };
        let cgroup = match started {
            Ok(Started { outside: None, .. }) => cgroup,
            Ok(_) | Err(_) => {
                self.discard(cgroup); // nobody is in it
                None
            }
        };
        match started {
            Ok(Started { pid, outside }) => {
                // The PID of a closing child is free, and may come round before that child is closed.
                self.forget(pid, 0);
                self.by_id.insert(id, pid);
                self.children.insert(pid, Child { id, mark: order.mark, cgroup, closing: None, kill_by: None });
                self.say(&Up::Spawned { id, pid: pid.unsigned_abs(), outside: refused.or(outside) });
            }
            Err(Failure { at, errno }) => self.say(&Up::Failed { id, at, errno }),
        }
    }

    /// Signals the child's process group. A closing child's PID was let go: it may be a stranger's.
    fn signal(&self, id: u64, signal: i32) {
        if let Some(&pid) = self.by_id.get(&id)
            && self.children.get(&pid).is_some_and(|child| child.closing.is_none())
        {
            signal_group(pid, signal);
        }
    }

    /// KILL to the process group and the cgroup; the rest of the tree is reached through [`Self::reap`].
    fn kill(&mut self, id: u64) {
        self.signal(id, libc::SIGKILL);
        if let Some(child) = self.by_id.get(&id).and_then(|pid| self.children.get_mut(pid)) {
            if let Some(cgroup) = &child.cgroup {
                cgroup.kill();
            }
            child.kill_by.get_or_insert(Instant::now() + KILL_DEADLINE);
        }
    }

    /// Takes every exit status that is there, then sees to what closing children left behind.
    fn reap(&mut self) {
        while let Some((pid, code, signal)) = peek_exit() {
            if let Some(child) = self.children.get_mut(&pid) {
                // While the zombie holds its PID its process group can't be anybody else's.
                signal_group(pid, libc::SIGKILL);
                child.closing = Some(Closing { code, signal, deadline: Instant::now() + STRAGGLER_DEADLINE });
            }
            collect(pid);
        }
        self.unremoved.retain(|cgroup| !cgroup.clear());
        self.close(Instant::now());
    }

    /// Kills what closing children left; reports those of which nothing is left, or that won't die.
    fn close(&mut self, now: Instant) {
        self.give_up(now);
        if !self.children.values().any(|child| child.closing.is_some()) {
            return;
        }
        let mut left: HashMap<i32, u32> = HashMap::new();
        for orphan in tree::orphans(|pid| self.children.get(&pid).is_some_and(|child| child.closing.is_none())) {
            if let Some(owner) = self.owner_of(orphan)
                && self.children.get(&owner).is_some_and(|child| child.closing.is_some())
            {
                signal_one(orphan, libc::SIGKILL);
                *left.entry(owner).or_default() += 1;
            }
        }
        for (&pid, child) in self.children.iter().filter(|(_, child)| child.closing.is_some()) {
            if child.cgroup.as_ref().is_some_and(ChildCgroup::kill) {
                left.entry(pid).or_insert(1);
            }
        }
        let done: Vec<i32> = self
            .children
            .iter()
            .filter(|(pid, child)| child.closing.as_ref().is_some_and(|closing| !left.contains_key(pid) || now >= closing.deadline))
            .map(|(&pid, _)| pid)
            .collect();
        for pid in done {
            self.forget(pid, left.get(&pid).copied().unwrap_or(0));
        }
    }

    /// Lets go of children that KILL did not end in time. They stay ours, and are reaped if they end.
    fn give_up(&mut self, now: Instant) {
        let overdue = |child: &Child| child.closing.is_none() && child.kill_by.is_some_and(|by| now >= by);
        let given_up: Vec<i32> = self.children.iter().filter(|(_, child)| overdue(child)).map(|(&pid, _)| pid).collect();
        for pid in given_up {
            self.forget(pid, 1);
        }
    }

    /// Drops a child and reports its end, as far as it is known.
    fn forget(&mut self, pid: i32, stragglers: u32) {
        if let Some(Child { id, closing, cgroup, .. }) = self.children.remove(&pid) {
            self.by_id.remove(&id);
            self.discard(cgroup);
            let (code, signal) = closing.map_or((None, None), |closing| (closing.code, closing.signal));
            self.say(&Up::Exited { id, code, signal, stragglers });
        }
    }

    /// Kills and removes the cgroup of a child that is let go, now or when that is possible.
    fn discard(&mut self, cgroup: Option<ChildCgroup>) {
        let kept = cgroup.filter(|cgroup| !cgroup.clear());
        if self.unremoved.len() < UNREMOVED_MAX {
            self.unremoved.extend(kept);
        }
    }

    /// The main PID of the child that `orphan` descends from: by session, else by the mark in its
    /// environment. One that has its own session and a scrubbed environment has no owner: where its child
    /// has no cgroup either, it dies with the daemon.
    fn owner_of(&self, orphan: i32) -> Option<i32> {
        if let Some(session) = tree::session_of(orphan)
            && self.children.contains_key(&session)
        {
            return Some(session);
        }
        let mark = tree::mark_of(orphan)?;
        // A closing child and its successor carry one mark; the orphan is the elder's.
        // What it started by a keeper of its own is marked within it.
        let is_of = |child: &str| mark.strip_prefix(child).is_some_and(|rest| rest.is_empty() || rest.starts_with(':'));
        let mut owners = self.children.iter().filter(|(_, child)| is_of(&child.mark));
        let first = owners.next()?;
        Some(*owners.find(|(_, child)| child.closing.is_some()).unwrap_or(first).0)
    }

    fn say(&mut self, message: &Up) {
        // Serialising these small enums can't fail; were it to, the daemon would see no reply.
        if let Ok(packet) = Packet::new(message) {
            self.outgoing.push_back(packet);
        }
        self.flush();
    }

    /// Sends what waits, as far as the socket takes it. False when the daemon is gone.
    fn flush(&mut self) -> bool {
        while let Some(packet) = self.outgoing.front() {
            match packet.send(self.socket.as_fd(), &[]) {
                Ok(()) => drop(self.outgoing.pop_front()),
                Err(Errno::AGAIN | Errno::INTR) => return true,
                Err(_) => return false,
            }
        }
        true
    }

    /// Kills every descendant. True when none is left.
    fn sweep(&mut self) -> bool {
        let deadline = Instant::now() + SWEEP_DEADLINE;
        for (&pid, _) in self.children.iter().filter(|(_, child)| child.closing.is_none()) {
            signal_group(pid, libc::SIGKILL);
        }
        loop {
            while let Some((pid, ..)) = peek_exit() {
                collect(pid);
            }
            if !has_children() {
                return true;
            }
            if Instant::now() >= deadline {
                return false;
            }
            for pid in tree::orphans(|_| false) {
                signal_one(pid, libc::SIGKILL);
            }
            let pause = Timespec { tv_sec: 0, tv_nsec: SWEEP_PAUSE_MS * 1_000_000 };
            // Only the pause matters: an interrupted one is shorter.
            poll(&mut [], Some(&pause)).ok();
        }
    }
}

fn drain(signals: &OwnedFd) {
    let mut buffer = [0_u8; 1024];
    while rustix::io::read(signals, &mut buffer).is_ok_and(|bytes| bytes > 0) {}
}

/// The next child that has exited, left as a zombie: PID, exit code, signal.
fn peek_exit() -> Option<(i32, Option<i32>, Option<i32>)> {
    // SAFETY: siginfo_t is plain data that waitid fills; its fields are read only after success.
    unsafe {
        let mut info: libc::siginfo_t = std::mem::zeroed();
        let flags = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
        if libc::waitid(libc::P_ALL, 0, &raw mut info, flags) != 0 || info.si_pid() == 0 {
            return None;
        }
        let status = info.si_status();
        if info.si_code == libc::CLD_EXITED { Some((info.si_pid(), Some(status), None)) } else { Some((info.si_pid(), None, Some(status))) }
    }
}

fn collect(pid: i32) {
    // SAFETY: reaps one zombie that waitid named.
    unsafe { libc::waitpid(pid, std::ptr::null_mut(), libc::WNOHANG) };
}

fn has_children() -> bool {
    // SAFETY: siginfo_t is plain data; only the return value is used.
    unsafe {
        let mut info: libc::siginfo_t = std::mem::zeroed();
        libc::waitid(libc::P_ALL, 0, &raw mut info, libc::WEXITED | libc::WNOHANG | libc::WNOWAIT) == 0
    }
}

fn signal_group(pid: i32, signal: i32) {
    // SAFETY: kill(2); `pid` is a child of ours that wasn't reaped yet, so the number is its own.
    // ESRCH only says that nobody is left, which is what callers want.
    unsafe { libc::kill(-pid, signal) };
}

fn signal_one(pid: i32, signal: i32) {
    // SAFETY: as above.
    unsafe { libc::kill(pid, signal) };
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
    use std::os::unix::process::{CommandExt, ExitStatusExt};

    const ID: u64 = 7;

    /// A keeper whose one child is `pid`, and the daemon's end of its socket.
    fn keeper_of(pid: i32) -> (Keeper, OwnedFd) {
        let (socket, daemon) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
        let mut keeper = Keeper::new(socket);
        keeper.children.insert(pid, Child { id: ID, mark: "process-test:x".into(), cgroup: None, closing: None, kill_by: None });
        keeper.by_id.insert(ID, pid);
        (keeper, daemon)
    }

    #[test]
    fn a_child_that_does_not_die_of_kill_is_given_up_once() {
        // Nobody has this PID, so that no signal arrives and no exit is seen.
        let (mut keeper, daemon) = keeper_of(i32::MAX);
        keeper.obey(Down::Kill { id: ID }, Vec::new());
        let asked = Instant::now();
        keeper.obey(Down::Kill { id: ID }, Vec::new());
        assert!(keeper.children.values().any(Child::is_dying), "nothing would wake the keeper");
        keeper.close(asked);
        assert!(matches!(receive::<Up>(&daemon, &mut Vec::new()), Received::Empty), "given up at once");
        keeper.close(asked + KILL_DEADLINE);
        let heard = receive::<Up>(&daemon, &mut Vec::new());
        let given_up = matches!(heard, Received::Message(Up::Exited { id: ID, code: None, signal: None, stragglers: 1 }, _));
        assert!(given_up, "{heard:?}");
        assert!(keeper.children.is_empty() && keeper.by_id.is_empty());
        keeper.obey(Down::Kill { id: ID }, Vec::new());
        keeper.close(asked + 2 * KILL_DEADLINE);
        assert!(matches!(receive::<Up>(&daemon, &mut Vec::new()), Received::Empty), "reported twice");
    }

    #[test]
    fn an_end_is_told_once_nothing_lives_in_the_cgroup_or_too_long() {
        let home = tempfile::tempdir().unwrap();
        for (is_gone, stragglers) in [(true, 0), (false, 1)] {
            let (cgroup, _opened) = ChildCgroup::make(home.path(), ID).unwrap();
            let directory = home.path().join(format!("child-{ID}"));
            std::fs::write(directory.join("cgroup.events"), "populated 1\n").unwrap();
            std::fs::write(directory.join("cgroup.kill"), "").unwrap();
            let (mut keeper, daemon) = keeper_of(i32::MAX);
            let deadline = Instant::now() + STRAGGLER_DEADLINE;
            let child = keeper.children.get_mut(&i32::MAX).unwrap();
            child.cgroup = Some(cgroup);
            child.closing = Some(Closing { code: Some(0), signal: None, deadline });
            keeper.close(deadline - STRAGGLER_DEADLINE);
            assert!(matches!(receive::<Up>(&daemon, &mut Vec::new()), Received::Empty), "told while something lives");
            assert_eq!(std::fs::read_to_string(directory.join("cgroup.kill")).unwrap(), "1");
            if is_gone {
                std::fs::remove_dir_all(&directory).unwrap();
            }
            keeper.close(if is_gone { deadline - STRAGGLER_DEADLINE } else { deadline });
            let heard = receive::<Up>(&daemon, &mut Vec::new());
            let Received::Message(Up::Exited { id: ID, code: Some(0), stragglers: told, .. }, _) = heard else { panic!("{heard:?}") };
            assert_eq!(told, stragglers);
            assert_eq!(keeper.unremoved.len(), usize::from(!is_gone), "it is tried again as long as it isn't removed");
        }
    }

    #[test]
    #[expect(clippy::disallowed_methods, reason = "a process that is not the keeper's is what must be spared")]
    fn who_has_the_pid_of_a_closing_child_is_not_signalled() {
        let mut stranger = std::process::Command::new("sleep").arg("1000").process_group(0).spawn().unwrap();
        let pid = i32::try_from(stranger.id()).unwrap();
        let (mut keeper, _daemon) = keeper_of(pid);
        let closing = Closing { code: Some(0), signal: None, deadline: Instant::now() + STRAGGLER_DEADLINE };
        keeper.children.get_mut(&pid).unwrap().closing = Some(closing);
        keeper.obey(Down::Kill { id: ID }, Vec::new());
        keeper.children.get_mut(&pid).unwrap().closing = None;
        // It does reach a living child; had KILL been sent before, KILL would be the cause of death.
        keeper.obey(Down::Signal { id: ID, signal: libc::SIGTERM }, Vec::new());
        assert_eq!(stranger.wait().unwrap().signal(), Some(libc::SIGTERM));
    }
}
