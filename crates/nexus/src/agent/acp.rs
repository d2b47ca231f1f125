//! The `acp` runner: agents that speak the Agent Client Protocol, each a process that stays. Owns those
//! processes and what is said to them; nothing outside sees a type of the protocol's crate. Never
//! spawns by itself (the supervisor does), decides no time limit of a turn, and offers agents neither
//! files nor terminals.

mod agent;
mod hub;
mod link;
mod permission;
mod process;
mod said;
mod session;
mod turn;
mod wire;

use super::questions::Questions;
use super::{AgentError, Finished, Sink, Turn};
use crate::bus::Bus;
use crate::ledger::Database;
use crate::ledger::agents::AgentsCommand;
use crate::supervisor::Supervisor;
use crate::watch::Watch;
use agent::{AcpAgent, Call};
use nexus_core::config::{self, AgentPermissions};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// What all ACP agents need.
#[derive(Debug)]
struct Shared {
    supervisor: Supervisor,
    ledger: Database<AgentsCommand>,
    questions: Questions,
    bus: Bus,
    watch_over: Watch,
    /// Turns, and who waits to end a process that nobody needs any more.
    tasks: TaskTracker,
    /// The daemon stops: no process is started any more.
    stop: CancellationToken,
    /// Every agent that somebody can still run.
    agents: Mutex<Vec<Weak<AcpAgent>>>,
    /// Agents so far, to tell the processes of one name apart.
    made: AtomicU64,
}

/// All ACP agents of the daemon. Cheap to clone.
#[derive(Debug, Clone)]
pub struct AcpAgents {
    shared: Arc<Shared>,
}

impl AcpAgents {
    pub fn new(supervisor: Supervisor, ledger: Database<AgentsCommand>, questions: Questions, bus: Bus, watch_over: Watch) -> Self {
        let shared = Shared {
            supervisor,
            ledger,
            questions,
            bus,
            watch_over,
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
            agents: Mutex::default(),
            made: AtomicU64::new(0),
        };
        Self { shared: Arc::new(shared) }
    }

    /// The runner of a configured agent. One whose program is called in the same way as before is the
    /// same agent, with its process; nothing is started before its first turn.
    pub fn runner(&self, agent: &config::Agent, name: &str, workspace: &Path) -> AcpRunner {
        let call = Call::new(agent, workspace);
        let mut agents = self.shared.agents.lock().unwrap_or_else(PoisonError::into_inner);
        agents.retain(|known| known.strong_count() > 0);
        let known = agents.iter().filter_map(Weak::upgrade).find(|known| known.is(name, &call));
        let agent_of_name = known.unwrap_or_else(|| {
            let number = self.shared.made.fetch_add(1, Ordering::Relaxed) + 1;
            let made = Arc::new(AcpAgent::new(name, number, call, self.shared.clone()));
            agents.push(Arc::downgrade(&made));
            made
        });
        AcpRunner { agent: agent_of_name, permissions: agent.permissions.clone() }
    }

    /// Ends all processes, and waits for what was said to them. Nothing is started after that.
    pub async fn shutdown(&self) {
        self.shared.stop.cancel();
        self.shared.tasks.close();
        self.shared.tasks.wait().await;
    }
}

/// Runs the turns of one configured agent. Its process ends when the last of its runners is dropped.
#[derive(Debug)]
pub struct AcpRunner {
    agent: Arc<AcpAgent>,
    permissions: AgentPermissions,
}

impl AcpRunner {
    /// Runs one turn. Dropping the future has the agent told to stop; if it doesn't within five seconds,
    /// its whole process tree is killed.
    ///
    /// # Errors
    /// [`AgentError`], with the answer as far as it had come.
    pub async fn run(&self, turn: &Turn, out: &Sink) -> Result<Finished, AgentError> {
        let cancelled = CancellationToken::new();
        let _cancelled_with_this = cancelled.clone().drop_guard();
        // In a task of its own: it outlives this future for as long as it takes to end the turn well.
        let task = turn::run(self.agent.clone(), self.permissions.clone(), turn.clone(), out.clone(), cancelled);
        match crate::watch::tracked("acp.turn", self.agent.tasks(), task).await {
            Ok(result) => result,
            Err(error) => match error.try_into_panic() {
                Ok(panicked) => std::panic::resume_unwind(panicked), // it is the end of the run, as with any agent
                Err(_) => std::future::pending().await,              // the runtime goes down, and with it whoever asked
            },
        }
    }
}
