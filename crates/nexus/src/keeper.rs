//! The daemon's side of the keeper: start a child, signal it, learn of its end.
//!
//! Theory of operation: only the keeper process forks. It is single-threaded and small, so a spawn
//! costs little and stalls nobody; it is a subreaper, so whatever a child leaves behind becomes its
//! own; and it outlives a killed daemon just long enough to kill everything. The daemon keeps the
//! pipes. If the keeper itself dies, its children die with it (death signal), their orphans become
//! the daemon's, which clears them up and starts another keeper. Where the machine allows it, keeper
//! and children are in a cgroup of their own, which is killed as a whole when both died at once, and each
//! child is in one below it, which is killed when the child has ended.

mod actor;
pub mod cgroup;
pub mod leftovers;
mod process;
mod spawn;
mod stdio;
pub(crate) mod tree;
mod wire;

pub use actor::Keeper;
pub use cgroup::{Cgroup, KillLevel};
pub use process::main;
pub use wire::Step;

use nexus_core::ids::ChildId;
use rustix::fd::OwnedFd;
use std::fmt;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use tokio::net::unix::pipe;
use tokio::sync::{mpsc, oneshot};

/// What a child gets as stdin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stdin {
    Null,
    Piped,
    /// These bytes, all there before it starts: through a pipe a daemon that is killed would leave it with
    /// half a text that looks like a whole one.
    Whole(Vec<u8>),
    /// As `Whole`, but more may follow: a pipe that has these bytes in it before it starts. Where no pipe holds so many
    /// they are all that there is, and [`Process::stdin`] is `None`.
    Open(Vec<u8>),
}

/// A program to start: always an argv, never a shell line.
#[derive(Debug, Clone)]
pub struct SpawnSpec {
    pub child: ChildId,
    pub argv: Vec<String>,
    /// The whole environment; nothing is inherited. `NEXUS_CHILD_ID` is added.
    pub env: Vec<(String, String)>,
    pub cwd: Option<PathBuf>,
    pub stdin: Stdin,
}

/// How a child ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExitStatus {
    Code(i32),
    Signal(i32),
    /// Nobody knows: the keeper died with it, or KILL did not end it and it was given up.
    Lost,
}

impl ExitStatus {
    pub fn is_success(self) -> bool {
        self == Self::Code(0)
    }

    /// The exit code, if it exited by itself.
    pub fn code(self) -> Option<i32> {
        match self {
            Self::Code(code) => Some(code),
            Self::Signal(_) | Self::Lost => None,
        }
    }
}

impl fmt::Display for ExitStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Code(code) => write!(f, "exit code {code}"),
            Self::Signal(signal) => write!(f, "signal {signal}"),
            Self::Lost => f.write_str("lost without an exit status"),
        }
    }
}

/// Why a child could not be started.
#[derive(Debug, thiserror::Error)]
pub enum SpawnError {
    #[error("failed to {} `{program}`: {source}{}", step_text(*.at), advice(*.at))]
    Refused {
        at: Step,
        program: String,
        #[source]
        source: std::io::Error,
    },
    #[error("failed to set up pipes for `{program}`")]
    Pipes {
        program: String,
        #[source]
        source: std::io::Error,
    },
    #[error("the keeper is gone; `{program}` may or may not have been started, and is dead by now")]
    KeeperGone { program: String },
}

impl SpawnError {
    /// Whether the same attempt may succeed later without anybody changing anything.
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Refused { source, .. } | Self::Pipes { source, .. } => crate::error_text::is_passing(source),
            // The daemon ends by that; nothing is wrong with what was to be started.
            Self::KeeperGone { .. } => true,
        }
    }
}

fn step_text(at: Step) -> &'static str {
    match at {
        Step::Order => "read the order for",
        Step::Clone => "fork for",
        Step::Stdio => "set up stdio of",
        Step::Chdir => "enter the working directory of",
        Step::Exec => "exec",
    }
}

fn advice(at: Step) -> &'static str {
    match at {
        Step::Order | Step::Clone | Step::Stdio => "",
        Step::Chdir => "; `cwd` must be a directory that can be entered",
        Step::Exec => "; `command` must begin with an executable file, or with the name of one in PATH",
    }
}

/// A running child and the daemon's ends of its pipes. Dropping it kills the whole tree.
#[derive(Debug)]
pub struct Process {
    pub pid: u32,
    pub stdin: Option<pipe::Sender>,
    pub stdout: Option<pipe::Receiver>,
    pub stderr: Option<pipe::Receiver>,
    id: u64,
    orders: mpsc::UnboundedSender<actor::Order>,
    exit: oneshot::Receiver<ExitStatus>,
    ended: Option<ExitStatus>,
    given_up: Arc<OnceLock<GivenUp>>,
}

impl Process {
    /// Waits until the process and everything it left behind is gone. Safe to cancel and to repeat.
    pub async fn wait(&mut self) -> ExitStatus {
        if let Some(status) = self.ended {
            return status;
        }
        let status = (&mut self.exit).await.unwrap_or(ExitStatus::Lost);
        self.ended = Some(status);
        status
    }

    /// TERM to its process group.
    pub fn terminate(&self) {
        self.order(actor::Order::Signal { id: self.id, signal: libc::SIGTERM });
    }

    /// KILL to its whole tree; [`Self::wait`] tells when it is gone.
    pub fn kill(&self) {
        self.order(actor::Order::Kill { id: self.id });
    }

    /// A handle by which others than its owner can kill it.
    pub fn killer(&self) -> Killer {
        Killer { id: self.id, orders: self.orders.clone(), given_up: self.given_up.clone() }
    }

    /// Why a [`Killer`] was used, if that is what made it end so: with `status`.
    pub fn given_up(&self, status: ExitStatus) -> Option<&str> {
        let told = self.given_up.get().filter(|told| told.is_cause || status == ExitStatus::Signal(libc::SIGKILL));
        told.map(|told| told.why.as_str())
    }

    /// KILL to its whole tree, and waits until it is gone.
    pub async fn kill_tree(&mut self) -> ExitStatus {
        self.kill();
        self.wait().await
    }

    fn order(&self, order: actor::Order) {
        // A keeper that is gone took the process with it.
        if self.ended.is_none() && self.orders.send(order).is_err() {
            tracing::debug!(pid = self.pid, "keeper is gone, nothing to signal");
        }
    }
}

/// Why a process was killed from outside, and whether that counts though it ended before.
#[derive(Debug)]
struct GivenUp {
    why: String,
    is_cause: bool,
}

/// Kills the whole tree of one process, which somebody else owns and waits for.
#[derive(Debug, Clone)]
pub struct Killer {
    id: u64,
    orders: mpsc::UnboundedSender<actor::Order>,
    given_up: Arc<OnceLock<GivenUp>>,
}

impl Killer {
    /// Nothing, when the process is gone already. `why` ends a sentence that begins with how it ended, and is told
    /// only if it was killed: else it ended for a reason of its own.
    pub fn kill(&self, why: &str) {
        self.end(why, false);
    }

    /// As [`Self::kill`], for what came before its end, however that was: its pipes may be closed by now, which a
    /// process can notice before it is killed.
    pub fn give_up(&self, why: &str) {
        self.end(why, true);
    }

    fn end(&self, why: &str, is_cause: bool) {
        self.given_up.set(GivenUp { why: why.to_owned(), is_cause }).ok(); // the first reason is the reason
        if self.orders.send(actor::Order::Kill { id: self.id }).is_err() {
            tracing::debug!("keeper is gone, nothing to kill");
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.ended.is_none() {
            self.kill();
        }
    }
}

/// A keeper process that was started but isn't served yet: what [`launch`] makes before the runtime.
#[derive(Debug)]
pub struct Link {
    pub(crate) socket: OwnedFd,
    pub(crate) pid: i32,
}

/// Starts the keeper process. Called before the runtime exists, and again should the keeper die.
/// Makes this process a subreaper (PR_SET_CHILD_SUBREAPER(2const)): what a dead keeper leaves behind
/// becomes ours, and `leftovers::reap_all` is due at every SIGCHLD.
///
/// # Errors
/// When this process can't be made a subreaper, or the socket pair, the pidfd or the keeper can't be made.
pub fn launch(lock: &std::fs::File) -> std::io::Result<Link> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?;
    let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    let me = rustix::process::pidfd_open(rustix::process::getpid(), rustix::process::PidfdFlags::empty())?;
    let exe = std::fs::read_link("/proc/self/exe")?;
    #[expect(clippy::disallowed_methods, reason = "the keeper is the one process that the daemon starts itself")]
    let child = std::process::Command::new("/proc/self/exe")
        .arg0(exe)
        .arg("__keeper")
        .env_clear()
        .stdin(theirs)
        .stdout(lock.try_clone()?)
        .stderr(me)
        .spawn()?;
    let pid = i32::try_from(child.id()).map_err(std::io::Error::other)?;
    crate::torture::keeper_is(pid);
    Ok(Link { socket: ours, pid })
}
