//! Supervises the long-running children: one task per child drives a pure
//! [`nexus_core::lifecycle::Lifecycle`]; everybody else holds a handle.
//!
//! Theory of operation: a verb changes what is wanted; the task works towards it. A process is
//! spawned only after the one before it is gone with its whole tree and its output is read to EOF. A
//! panic in what a child's program does is a reason why it can't be started, or an exit; a panic in the
//! task itself costs its process, and the handle stays.

mod child;

use crate::keeper::{ExitStatus, Keeper, Process, SpawnSpec};
use crate::metrics::Metrics;
use crate::watch::Watch;
use nexus_core::health::AdapterStatus;
use nexus_core::ids::ChildId;
use nexus_core::lifecycle::RestartPolicy;
use std::collections::HashMap;
use std::fmt;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// Verbs that may wait for one child's task.
const VERBS_MAX: usize = 16;

pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// What a supervised child runs and who reads it.
pub trait Program: Send + Sync + 'static {
    /// Called before every spawn: resolves the credential, writes the child's files.
    ///
    /// An error is the reason why the child can't be started.
    fn prepare(&self) -> BoxFuture<'_, Result<SpawnSpec, NotReady>>;

    /// Takes the pipes of a started process. The task ends when its output is read and committed;
    /// the next spawn waits for that, however long a full disk or a slow commit makes it. `exited`
    /// tells that the whole tree is gone: from then on only a descriptor passed to a stranger can keep
    /// a pipe open, and a reader that finds nothing to read for a while must end.
    fn attach(&self, process: &mut Process, exited: CancellationToken) -> JoinHandle<()>;

    /// Called once a process is gone and read to its end. `was_told`: it was to stop.
    fn ended(&self, _status: ExitStatus, _was_told: bool) {}

    /// Called whenever the child is in another phase, which who asks for its status sees by then. It must not wait.
    fn changed(&self, _status: &ChildStatus) {}
}

/// Ends `patience` after a process is gone with its tree: from then on only a descriptor that was passed to a stranger
/// can keep a pipe open, and that must not hold the restart.
pub(crate) async fn after_exit(exited: &CancellationToken, patience: Duration) {
    exited.cancelled().await;
    tokio::time::sleep(patience).await;
}

/// Why a child can't be started now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NotReady {
    pub reason: String,
    /// Trying again in a row is no use: somebody has to do something.
    pub lasting: bool,
}

impl From<String> for NotReady {
    fn from(reason: String) -> Self {
        Self { reason, lasting: false }
    }
}

impl From<NotReady> for String {
    fn from(not_ready: NotReady) -> Self {
        not_ready.reason
    }
}

/// An intended child.
pub struct ChildSpec {
    pub id: ChildId,
    pub policy: RestartPolicy,
    pub program: Arc<dyn Program>,
}

impl fmt::Debug for ChildSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChildSpec").field("id", &self.id).field("policy", &self.policy).finish_non_exhaustive()
    }
}

/// Where a child is, in the requirement's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    Stopped,
    Starting,
    Running,
    Stopping,
    Backoff,
    Errored,
}

impl From<Phase> for AdapterStatus {
    fn from(phase: Phase) -> Self {
        match phase {
            Phase::Stopped => Self::Stopped,
            Phase::Starting => Self::Starting,
            Phase::Running => Self::Running,
            Phase::Stopping => Self::Stopping,
            Phase::Backoff => Self::Backoff,
            Phase::Errored => Self::Errored,
        }
    }
}

impl Phase {
    /// The name on the wire, the same for every kind of child.
    pub fn as_str(self) -> &'static str {
        AdapterStatus::from(self).as_str()
    }
}

/// A child as its task last reported it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChildStatus {
    pub phase: Phase,
    pub pid: Option<u32>,
    /// Unix ms.
    pub started_at: Option<i64>,
    pub restarts: u64,
    /// Spawns so far, so that an observer can tell one process from the next.
    pub generation: u64,
    /// Why it last failed.
    pub last_error: Option<String>,
}

impl ChildStatus {
    fn new() -> Self {
        Self { phase: Phase::Stopped, pid: None, started_at: None, restarts: 0, generation: 0, last_error: None }
    }
}

#[derive(Debug)]
enum Verb {
    Start,
    Wake,
    Stop,
    Restart,
    Policy(RestartPolicy),
    /// Stop, and end the task once stopped.
    Remove,
}

type Order = (Verb, oneshot::Sender<()>);

/// Handle to one supervised child. Dropping it changes nothing; removal is a verb.
#[derive(Debug, Clone)]
pub struct Child {
    id: ChildId,
    orders: mpsc::Sender<Order>,
    status: watch::Receiver<ChildStatus>,
}

impl Child {
    /// How it is now.
    pub fn status(&self) -> ChildStatus {
        self.status.borrow().clone()
    }

    /// A view that can be waited on.
    pub fn watch(&self) -> watch::Receiver<ChildStatus> {
        self.status.clone()
    }

    /// Wants it up, and clears the count of restarts and the last error. Returns once the status shows
    /// it, however long the spawn takes.
    pub async fn start(&self) {
        self.order(Verb::Start).await;
    }

    /// Wants it up because there is something to do: one that backs off or is errored goes on with that.
    pub async fn wake(&self) {
        self.order(Verb::Wake).await;
    }

    /// Waits until it is neither starting nor stopping, for `patience` at most.
    pub async fn settled(&self, patience: Duration) {
        let settled = self.wait_for(|status| !matches!(status.phase, Phase::Starting | Phase::Stopping));
        // Whoever asks finds in the status how far it came.
        drop(tokio::time::timeout(patience, settled).await);
    }

    /// Wants it down; returns once it is.
    pub async fn stop(&self) {
        self.order(Verb::Stop).await;
        self.wait_for(|status| status.phase == Phase::Stopped).await;
    }

    /// Stop and start anew, with a clean sheet as at [`Self::start`]; returns once the status shows it.
    pub async fn restart(&self) {
        self.order(Verb::Restart).await;
    }

    /// New numbers apply from its next decision on; a running process isn't touched.
    pub async fn set_policy(&self, policy: RestartPolicy) {
        self.order(Verb::Policy(policy)).await;
    }

    async fn wait_for(&self, condition: impl FnMut(&ChildStatus) -> bool) {
        let mut status = self.status.clone();
        // An error means that the task is gone, and the child with it.
        drop(status.wait_for(condition).await);
    }

    async fn order(&self, verb: Verb) {
        let (taken, note) = oneshot::channel();
        if self.orders.send((verb, taken)).await.is_ok() {
            // The task answers every order that it takes; an error means that it ended.
            drop(note.await);
        }
    }
}

/// Handle and task of each child.
type Children = HashMap<ChildId, (Child, JoinHandle<()>)>;

/// All supervised children.
#[derive(Debug, Clone)]
pub struct Supervisor {
    keeper: Keeper,
    metrics: Metrics,
    watch_over: Watch,
    children: Arc<Mutex<Children>>,
}

impl Supervisor {
    pub fn new(keeper: Keeper, metrics: Metrics, watch_over: Watch) -> Self {
        Self { keeper, metrics, watch_over, children: Arc::default() }
    }

    pub fn keeper(&self) -> &Keeper {
        &self.keeper
    }

    /// Takes in a child, stopped. One of the same id must have been removed before: its task is
    /// returned untouched otherwise.
    pub fn add(&self, spec: ChildSpec) -> Child {
        let mut children = self.lock();
        if let Some((child, task)) = children.get(&spec.id)
            && !task.is_finished()
        {
            return child.clone();
        }
        let (orders, inbox) = mpsc::channel(VERBS_MAX);
        let (report, status) = watch::channel(ChildStatus::new());
        let child = Child { id: spec.id.clone(), orders, status };
        let part = self.watch_over.part(task_name(&spec.id));
        let task = crate::watch::helper("child", child::run(spec, self.keeper.clone(), self.metrics.clone(), inbox, report, part));
        children.insert(child.id.clone(), (child.clone(), task));
        child
    }

    /// Stops a child and forgets it; returns once it is gone.
    pub async fn remove(&self, id: &ChildId) {
        let Some((child, task)) = self.lock().remove(id) else { return };
        child.order(Verb::Remove).await;
        if let Err(error) = task.await {
            tracing::error!(child = %id, %error, "a child's task failed");
        }
        self.watch_over.forget(&task_name(id));
    }

    /// Every child with its status, by id.
    pub fn list(&self) -> Vec<(ChildId, ChildStatus)> {
        let mut list: Vec<_> = self.lock().iter().map(|(id, (child, _))| (id.clone(), child.status())).collect();
        list.sort_by(|a, b| a.0.cmp(&b.0));
        list
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Children> {
        self.children.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A child's task in the watch over the daemon's own.
fn task_name(id: &ChildId) -> String {
    format!("child {id}")
}
