//! One agent: its program, its supervised process, and the lanes of its sessions. Starts the process at
//! the first turn and has it ended once nobody can run the agent any more; says nothing to it.

use super::Shared;
use super::link::Link;
use super::process::AcpProgram;
use crate::agent::AgentError;
use crate::agent::questions::Questions;
use crate::bus::Bus;
use crate::environment;
use crate::keeper::{SpawnSpec, Stdin};
use crate::ledger::Database;
use crate::ledger::agents::AgentsCommand;
use crate::supervisor::{Child, ChildSpec, ChildStatus, Phase};
use nexus_core::config::{self, Restart};
use nexus_core::ids::ChildId;
use nexus_core::lifecycle::RestartPolicy;
use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

/// From TERM to KILL.
const STOP_GRACE_MS: u64 = 2_000;
/// Sessions whose order is kept in memory before those that nobody uses are forgotten.
const LANES_MAX: usize = 1024;
/// How long a failed turn waits to learn how its process ended.
const OBITUARY_LIMIT: Duration = Duration::from_secs(2);

/// How an agent's program is called.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Call {
    argv: Vec<String>,
    env: Vec<(String, String)>,
    cwd: PathBuf,
}

impl Call {
    pub(super) fn new(agent: &config::Agent, workspace: &Path) -> Self {
        let cwd = agent.cwd.as_ref().map_or_else(|| workspace.to_owned(), |cwd| workspace.join(cwd));
        // The protocol wants it absolute. It fails for an empty path only.
        let cwd = std::path::absolute(&cwd).unwrap_or(cwd);
        Self { argv: agent.argv.clone(), env: environment::with(&agent.env, &agent.pass_env), cwd }
    }
}

/// The connection to the process that runs, if one does.
pub(super) type Links = watch::Sender<Option<Arc<Link>>>;

pub(super) struct AcpAgent {
    name: String,
    call: Call,
    shared: Arc<Shared>,
    child_id: ChildId,
    child: OnceLock<Child>,
    launched: AtomicBool,
    /// Shared with who reads the process, which must not keep the agent.
    links: Arc<Links>,
    lanes: Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>,
    /// Cancelled once nobody can run this agent any more.
    unused: CancellationToken,
    _unused_with_this: DropGuard,
}

impl fmt::Debug for AcpAgent {
    /// Leaves out the environment, whose values may be secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AcpAgent").field("name", &self.name).field("argv", &self.call.argv).finish_non_exhaustive()
    }
}

impl AcpAgent {
    /// `number` tells its processes from those of another agent of that name, which may still be ending.
    pub(super) fn new(name: &str, number: u64, call: Call, shared: Arc<Shared>) -> Self {
        let unused = CancellationToken::new();
        Self {
            name: name.to_owned(),
            call,
            shared,
            child_id: ChildId::new(format!("agent/{name}/{number}")),
            child: OnceLock::new(),
            launched: AtomicBool::new(false),
            links: Arc::new(watch::Sender::new(None)),
            lanes: Mutex::default(),
            _unused_with_this: unused.clone().drop_guard(),
            unused,
        }
    }

    pub(super) fn is(&self, name: &str, call: &Call) -> bool {
        self.name == name && self.call == *call
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn cwd(&self) -> &Path {
        &self.call.cwd
    }

    pub(super) fn tasks(&self) -> &TaskTracker {
        &self.shared.tasks
    }

    pub(super) fn ledger(&self) -> &Database<AgentsCommand> {
        &self.shared.ledger
    }

    pub(super) fn questions(&self) -> &Questions {
        &self.shared.questions
    }

    pub(super) fn bus(&self) -> &Bus {
        &self.shared.bus
    }

    pub(super) fn links(&self) -> &Arc<Links> {
        &self.links
    }

    pub(super) fn child_id(&self) -> &ChildId {
        &self.child_id
    }

    pub(super) fn spec(&self) -> SpawnSpec {
        let Call { argv, env, cwd } = self.call.clone();
        SpawnSpec { child: self.child_id.clone(), argv, env, cwd: Some(cwd), stdin: Stdin::Piped }
    }

    /// The lane of a session: whoever locks it says the next thing there.
    pub(super) fn lane(&self, label: &str) -> Arc<tokio::sync::Mutex<()>> {
        let mut lanes = self.lanes.lock().unwrap_or_else(PoisonError::into_inner);
        if lanes.len() >= LANES_MAX {
            lanes.retain(|_, lane| Arc::strong_count(lane) > 1);
        }
        lanes.entry(label.to_owned()).or_default().clone()
    }

    /// The connection to the process, once there is one. It isn't waited for beyond a start that fails.
    pub(super) async fn link(self: &Arc<Self>) -> Result<Arc<Link>, AgentError> {
        if self.shared.stop.is_cancelled() {
            return Err(self.unavailable("the daemon is stopping".to_owned(), true));
        }
        let (child, mut tried) = self.child().await;
        let (mut links, mut status) = (self.links.subscribe(), child.watch());
        let before = status.borrow().restarts;
        loop {
            let known = links.borrow_and_update().clone();
            if let Some(link) = known.filter(|link| !link.is_dead() && !link.is_retired()) {
                return Ok(link);
            }
            let now = status.borrow_and_update().clone();
            tried |= matches!(now.phase, Phase::Starting | Phase::Running) || now.restarts > before;
            if let Some(error) = self.trouble(&now, tried) {
                return Err(error);
            }
            let is_there = tokio::select! {
                changed = links.changed() => changed.is_ok(),
                changed = status.changed() => changed.is_ok(),
            };
            if !is_there {
                return Err(self.unavailable("its process is not supervised any more".to_owned(), false));
            }
        }
    }

    /// Why it is no use to wait for the process, of which a start was waited for if `tried`.
    fn trouble(&self, status: &ChildStatus, tried: bool) -> Option<AgentError> {
        let why = || status.last_error.clone().unwrap_or_else(|| "its process does not run".to_owned());
        match status.phase {
            Phase::Backoff | Phase::Stopped if tried => Some(self.unavailable(why(), false)),
            Phase::Starting | Phase::Running | Phase::Backoff | Phase::Stopped | Phase::Stopping => None,
            Phase::Errored => {
                let minutes = Restart::default().errored_retry_ms / 60_000;
                Some(self.unavailable(format!("{} (it failed too often, and is tried again every {minutes} minutes)", why()), true))
            }
        }
    }

    fn unavailable(&self, problem: String, lasting: bool) -> AgentError {
        AgentError::Unavailable { agent: self.name.clone(), problem, lasting }
    }

    /// What a turn comes to whose process ended before it was given the message.
    pub(super) async fn lost(&self, link: &Link) -> AgentError {
        self.unavailable(self.obituary(link).await, false)
    }

    /// What a turn comes to whose process ended after it was given the message.
    pub(super) async fn died(&self, link: &Link, partial: String) -> AgentError {
        AgentError::Died { agent: self.name.clone(), problem: self.obituary(link).await, partial }
    }

    /// How a process ended, as its child's status tells soon after, or else why it isn't heard any more.
    async fn obituary(&self, link: &Link) -> String {
        let Some(child) = self.child.get() else { return link.reason() };
        let (mut status, pid) = (child.watch(), link.pid());
        let over = status.wait_for(|status| status.pid != Some(pid));
        let told = match tokio::time::timeout(OBITUARY_LIMIT, over).await {
            Ok(Ok(status)) => status.last_error.clone(),
            Ok(Err(_)) | Err(_) => None,
        };
        told.unwrap_or_else(|| link.reason())
    }

    /// Has a process begin anew that keeps too many sessions, once nothing needs it.
    pub(super) fn retire(self: &Arc<Self>, link: &Link) {
        if link.is_dead() || !link.retires() {
            return;
        }
        tracing::info!(target: "nexus::agent", agent = self.name, pid = link.pid(), "an ACP agent keeps too many sessions; it begins anew");
        let agent = self.clone();
        let restarting = async move {
            if let Some(child) = agent.child.get() {
                child.restart().await;
            }
        };
        drop(crate::watch::tracked("acp.retire", &self.shared.tasks, restarting));
    }

    /// The supervised process, and whether this call was the first, which starts it.
    async fn child(self: &Arc<Self>) -> (&Child, bool) {
        let child = self.child.get_or_init(|| self.add());
        let is_first = !self.launched.swap(true, Ordering::AcqRel);
        if is_first {
            child.start().await;
        }
        (child, is_first)
    }

    fn add(self: &Arc<Self>) -> Child {
        // As adapters are by default.
        let policy = RestartPolicy::new(&Restart::default(), STOP_GRACE_MS);
        let program = Arc::new(AcpProgram::new(self));
        let child = self.shared.supervisor.add(ChildSpec { id: self.child_id.clone(), policy, program });
        let ending = end_when_unused(self.shared.clone(), self.child_id.clone(), self.unused.clone());
        crate::watch::tracked("acp.end", &self.shared.tasks, ending);
        child
    }
}

/// Ends a process once its agent is unused, or the daemon stops.
async fn end_when_unused(shared: Arc<Shared>, id: ChildId, unused: CancellationToken) {
    let (name, never) = (format!("end of {id}"), CancellationToken::new());
    let work = || async {
        crate::torture::point("task.acp");
        tokio::select! {
            () = unused.cancelled() => {}
            () = shared.stop.cancelled() => {}
        }
        shared.supervisor.remove(&id).await;
    };
    shared.watch_over.until_done(name.clone(), &never, work).await;
    shared.watch_over.forget(&name);
}
