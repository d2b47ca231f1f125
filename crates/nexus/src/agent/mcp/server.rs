//! One MCP server: its child, the handshake with it, and the link that turns call its tools through. It is
//! restarted by the supervisor; what it offers is asked anew at each start, and not in between.

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use nexus_core::config::{McpServer, Restart};
use nexus_core::ids::ChildId;
use nexus_core::lifecycle::RestartPolicy;
use rmcp::model::{PaginatedRequestParams, Tool};
use rmcp::service::RunningService;
use rmcp::transport::async_rw::AsyncRwTransport;
use rmcp::{Peer, RoleClient, ServiceError};
use tokio::net::unix::pipe;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::Name;
use super::guard::{Guard, LINE_BYTES_MAX, Verdict};
use crate::agent::status::announce;
use crate::bus::Bus;
use crate::environment;
use crate::keeper::{Killer, Process, SpawnSpec, Stdin};
use crate::panics::finally;
use crate::stderr::log_errors;
use crate::supervisor::{BoxFuture, Child, ChildSpec, ChildStatus, NotReady, Phase, Program, Supervisor, after_exit};

/// How long a server may take until it has told its tools.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(30);
/// How long a turn waits for a server that is starting.
const LINK_PATIENCE: Duration = Duration::from_secs(10);
/// How long a server that closed its stdout may take to exit, and how long its stdout is read after its exit.
const EXIT_PATIENCE: Duration = Duration::from_secs(2);
/// Tools of one server that are taken, and pages in which it may tell them.
const TOOLS_MAX: usize = 128;
const TOOL_PAGES_MAX: usize = 16;
/// Definitions of one server's tools, in bytes: each question to a model carries them.
const DEFINITIONS_BYTES_MAX: usize = 256 * 1024;
/// From TERM to KILL.
const STOP_GRACE_MS: u64 = 5_000;

/// A server that has told its tools. It may be gone by now; a call tells.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) peer: Peer<RoleClient>,
    pub(super) tools: Vec<Tool>,
}

type LinkView = watch::Receiver<Option<Arc<Link>>>;

/// A server that is wanted. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Server {
    id: ChildId,
    config: McpServer,
    child: Child,
    link: LinkView,
}

impl Server {
    /// Starts it; waits neither for the process nor for its tools.
    pub(super) async fn start(supervisor: &Supervisor, name: &Name, config: McpServer, workspace: &Path, bus: Option<Bus>) -> Self {
        let (agent, server) = name;
        let id = ChildId::new(format!("mcp/{agent}/{server}"));
        let (sender, link) = watch::channel(None);
        let program = Stdio {
            id: id.clone(),
            name: name.clone(),
            bus,
            argv: config.argv.clone(),
            env: config.env.clone(),
            pass_env: config.pass_env.clone(),
            workspace: workspace.to_owned(),
            link: sender,
        };
        let policy = RestartPolicy::new(&Restart::default(), STOP_GRACE_MS);
        let child = supervisor.add(ChildSpec { id: id.clone(), policy, program: Arc::new(program) });
        child.start().await;
        Self { id, config, child, link }
    }

    /// Whether its process needn't change for this configuration.
    pub(super) fn is_as(&self, config: &McpServer) -> bool {
        self.config.argv == config.argv && self.config.env == config.env && self.config.pass_env == config.pass_env
    }

    pub(super) fn set_tools(&mut self, tools: Vec<String>) {
        self.config.tools = tools;
    }

    /// The patterns of its tools that are wanted.
    pub(super) fn tools(&self) -> &[String] {
        &self.config.tools
    }

    /// Stops it for good; returns once it is gone.
    pub(super) async fn remove(&self, supervisor: &Supervisor) {
        supervisor.remove(&self.id).await;
    }

    /// The way to its tools, if there is one now.
    pub(super) fn link_now(&self) -> Option<Arc<Link>> {
        self.link.borrow().clone()
    }

    /// The way to its tools. `None` when it can't be started, or takes too long.
    pub(super) async fn link(&self) -> Option<Arc<Link>> {
        let (mut link, mut status) = (self.link.clone(), self.child.watch());
        let comes = async { link.wait_for(Option::is_some).await.ok().and_then(|link| link.clone()) };
        let fails = async {
            let is_down = |phase: Phase| matches!(phase, Phase::Errored | Phase::Stopped);
            // An error means that the child is gone.
            drop(status.wait_for(|status| is_down(status.phase)).await);
        };
        tokio::select! {
            biased;
            link = comes => link,
            () = fails => None,
            () = tokio::time::sleep(LINK_PATIENCE) => None,
        }
    }
}

/// What is started, and who talks to it.
struct Stdio {
    id: ChildId,
    name: Name,
    bus: Option<Bus>,
    argv: Vec<String>,
    env: BTreeMap<String, String>,
    pass_env: Vec<String>,
    workspace: PathBuf,
    link: watch::Sender<Option<Arc<Link>>>,
}

impl Program for Stdio {
    fn prepare(&self) -> BoxFuture<'_, Result<SpawnSpec, NotReady>> {
        let spec = SpawnSpec {
            child: self.id.clone(),
            argv: self.argv.clone(),
            env: environment::with(&self.env, &self.pass_env),
            cwd: Some(self.workspace.clone()),
            stdin: Stdin::Piped,
        };
        Box::pin(async move { Ok(spec) })
    }

    fn attach(&self, process: &mut Process, exited: CancellationToken) -> JoinHandle<()> {
        let (stdin, stdout, errors) = (process.stdin.take(), process.stdout.take(), process.stderr.take());
        let (id, link, killer) = (self.id.clone(), self.link.clone(), process.killer());
        crate::watch::helper("mcp.reader", async move {
            let (Some(stdin), Some(stdout), Some(errors)) = (stdin, stdout, errors) else { return };
            let of_errors = (id.clone(), exited.clone());
            let talking = talk(id, stdin, stdout, &link, killer, exited);
            tokio::join!(talking, log_errors(of_errors.0, errors, of_errors.1));
        })
    }

    fn changed(&self, status: &ChildStatus) {
        if let Some(bus) = &self.bus {
            announce(bus, &self.name.0, Some(&self.name.1), status);
        }
    }
}

/// Talks to one process until it ends, or breaks the rules: then it is ended.
async fn talk(
    id: ChildId,
    stdin: pipe::Sender,
    stdout: pipe::Receiver,
    link: &watch::Sender<Option<Arc<Link>>>,
    killer: Killer,
    exited: CancellationToken,
) {
    // Also when this breaks off.
    let _gone = finally(|| {
        link.send_replace(None);
    });
    let verdict = Verdict::default();
    let transport = AsyncRwTransport::new_client(Guard::new(stdout, verdict.clone()), stdin).with_max_line_length(LINE_BYTES_MAX + 1);
    let greeted = tokio::select! {
        greeted = tokio::time::timeout(HANDSHAKE_LIMIT, greet(transport)) => {
            greeted.unwrap_or_else(|_| Err("it did not tell its tools in time".to_owned()))
        }
        () = after_exit(&exited, EXIT_PATIENCE) => Err("it ended before it told its tools".to_owned()),
    };
    let fault = match greeted {
        Ok((service, tools)) => {
            tracing::info!(child = %id, tools = tools.len(), "MCP server is ready");
            link.send_replace(Some(Arc::new(Link { peer: service.peer().clone(), tools })));
            tokio::select! {
                _ = service.waiting() => {}
                () = after_exit(&exited, EXIT_PATIENCE) => {}
            }
            None
        }
        Err(fault) => Some(fault),
    };
    link.send_replace(None);
    if let Some(why) = verdict.get() {
        tracing::error!(child = %id, why, "MCP server floods its stdout; it is killed");
        // It may end of its closed pipe before that; this is why all the same.
        return killer.give_up(&format!("it wrote {why}"));
    }
    let is_gone = tokio::time::timeout(EXIT_PATIENCE, exited.cancelled()).await.is_ok();
    if let Some(fault) = &fault {
        tracing::error!(child = %id, error = fault, "MCP server can't be used");
    }
    if is_gone {
        return;
    }
    // Nobody hears it any more; the supervisor starts another.
    killer.kill(&fault.unwrap_or_else(|| "it closed its stdout".to_owned()));
}

type Service = RunningService<RoleClient, ()>;

/// The handshake, and the tools. What went wrong is text: a server's own words may be in it.
async fn greet(transport: AsyncRwTransport<RoleClient, Guard<pipe::Receiver>, pipe::Sender>) -> Result<(Service, Vec<Tool>), String> {
    let told = |error: &dyn std::fmt::Display| super::head(&error.to_string(), 1024);
    let service = rmcp::serve_client((), transport).await.map_err(|error| told(&error))?;
    let tools = tools(service.peer()).await.map_err(|error| told(&error))?;
    Ok((service, tools))
}

/// All tools, or as many as are taken.
async fn tools(peer: &Peer<RoleClient>) -> Result<Vec<Tool>, ServiceError> {
    let (mut tools, mut cursor) = (Vec::new(), None);
    for _ in 0..TOOL_PAGES_MAX {
        let page = peer.list_tools(Some(PaginatedRequestParams::default().with_cursor(cursor))).await?;
        tools.extend(page.tools);
        cursor = page.next_cursor;
        if cursor.is_none() || tools.len() >= TOOLS_MAX {
            break;
        }
    }
    if cursor.is_some() || tools.len() > TOOLS_MAX {
        tracing::warn!(told = tools.len(), most = TOOLS_MAX, "an MCP server has more tools than are taken");
        tools.truncate(TOOLS_MAX);
    }
    Ok(usable(tools))
}

/// Those that can be told of: one of each name, and no more than every question to a model can carry.
fn usable(mut tools: Vec<Tool>) -> Vec<Tool> {
    let (mut names, mut bytes) = (HashSet::new(), 0_usize);
    let told = tools.len();
    tools.retain(|tool| {
        let size = serde_json::to_vec(tool).map_or(usize::MAX, |definition| definition.len());
        let fits = bytes.saturating_add(size) <= DEFINITIONS_BYTES_MAX;
        let is_taken = fits && names.insert(tool.name.clone());
        bytes += if is_taken { size } else { 0 };
        is_taken
    });
    if tools.len() < told {
        let limit_bytes = DEFINITIONS_BYTES_MAX;
        tracing::warn!(told, taken = tools.len(), limit_bytes, "an MCP server names tools twice or describes them at length; left out");
    }
    tools
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use serde_json::json;

    #[test]
    fn tools_of_one_name_or_without_measure_are_left_out() {
        let tool = |name: &str, about: &str| {
            let tool = json!({ "name": name, "description": about, "inputSchema": { "type": "object" } });
            serde_json::from_value::<Tool>(tool).unwrap()
        };
        let huge = "x".repeat(DEFINITIONS_BYTES_MAX);
        let taken = usable(vec![tool("a", "first"), tool("a", "second"), tool("b", &huge), tool("c", "third")]);
        let told: Vec<_> = taken.iter().map(|tool| (&*tool.name, tool.description.as_deref().unwrap_or_default())).collect();
        assert_eq!(told, [("a", "first"), ("c", "third")]);
    }
}
