//! The process `nexus project run`: one project's agents at work. The daemon starts it, hands it events and
//! publishes what it asks for (docs/project-process.md); it has no key, no ledger and no connection to a relay. What
//! its agents need is started below a keeper of its own, with the same code as the daemon's agents.

mod answer;
mod link;
mod serve;
mod status;

use crate::agent::Runner;
use crate::agent::command::CommandRunner;
use crate::agent::llm::LlmRunner;
use crate::agent::mcp::Servers;
use crate::daemon::config::{LoadError, load};
use crate::daemon::{Paths, PathsError};
use crate::keeper::{self, Cgroup, Keeper};
use crate::logging::Logging;
use crate::metrics::Metrics;
use crate::project::prepare::ProjectMcp;
use crate::project::process::{CONTEXT_VARIABLE, CONTEXT_VERSION, Context};
use crate::project::secrets::in_place;
use crate::project::slug;
use crate::supervisor::Supervisor;
use crate::watch::Watch;
use link::Link;
use nexus_core::config::{self, Agents, Config, McpServer};
use nexus_core::lifecycle::EXIT_CONFIG;
use rustix::fd::{BorrowedFd, OwnedFd};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::net::unix::pipe;

/// Largest context file.
const CONTEXT_BYTES_MAX: u64 = 16 * 1024 * 1024;
/// Longest name of an MCP server, in bytes; see the configuration's own.
const SERVER_NAME_BYTES_MAX: usize = 32;
/// Characters of an event's id in such a name.
const ID_CHARS: usize = 8;
/// Room for what parts it from the rest, and for a number at its end.
const NUMBER_BYTES_MAX: usize = 6;

/// Why it can't run.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error("`{CONTEXT_VARIABLE}` is not set: the daemon starts this process and says there what it is to do; see `nexus project start`")]
    NoContext,
    #[error("failed to read the context file `{path}`")]
    Context {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("the context file `{path}` can't be used: {problem}")]
    BadContext { path: PathBuf, problem: String },
    #[error(transparent)]
    Paths(#[from] PathsError),
    #[error(transparent)]
    Config(#[from] LoadError),
    #[error("agent `{0}` is not configured; see `agents:` in nex.yaml")]
    NoAgent(String),
    #[error("agent `{0}` has `runner: acp`, which does no turns of projects; name another one by `projects.overrides`")]
    Acp(String),
    #[error("the agent can't be used")]
    Agent(#[from] crate::agent::AgentError),
    #[error("failed to start the keeper")]
    Keeper(#[source] std::io::Error),
    #[error("failed to start the runtime")]
    Runtime(#[source] std::io::Error),
    #[error("stdin and stdout must be pipes of the daemon's")]
    Pipes(#[source] std::io::Error),
    #[error("the logger can't be installed: {0}")]
    Logging(String),
}

impl RunError {
    /// The exit code: 78 where only a change of the configuration helps, so that it isn't tried in vain.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::NoContext
            | Self::BadContext { .. }
            | Self::Paths(_)
            | Self::Config(_)
            | Self::NoAgent(_)
            | Self::Acp(_)
            | Self::Agent(_) => u8::try_from(EXIT_CONFIG).unwrap_or(1),
            Self::Context { .. } | Self::Keeper(_) | Self::Runtime(_) | Self::Pipes(_) | Self::Logging(_) => 1,
        }
    }
}

/// What there is before the runtime and its threads.
struct Prologue {
    context: Context,
    agent: config::Agent,
    workspace: PathBuf,
    /// None where nothing is started.
    keeper: Option<keeper::Link>,
    lock: File,
    /// Its own, within the daemon's, which finds leftovers by it.
    mark: String,
}

/// Works for the daemon until it says that this is enough, or is gone.
///
/// # Errors
/// [`RunError`].
pub fn run(config: Option<&Path>) -> Result<(), RunError> {
    rustix::thread::set_name(c"nexus-project").ok(); // a wrong name is no reason to stop
    crate::memory::bound_arenas();
    let prologue = prologue(config)?;
    // One thread: it waits nearly all the time, and there may be a hundred of these.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(RunError::Runtime)?;
    let result = runtime.block_on(work(prologue));
    runtime.shutdown_background();
    result
}

fn prologue(config: Option<&Path>) -> Result<Prologue, RunError> {
    let context = read_context()?;
    let paths = Paths::resolve(config)?;
    let Config { agents, daemon, .. } = load(&paths)?.config;
    Logging::install_on_stderr(daemon.log_level).map_err(|error| RunError::Logging(error.to_string()))?;
    crate::panics::install();
    let mut agent = agents.named.get(&context.agent).cloned().ok_or_else(|| RunError::NoAgent(context.agent.clone()))?;
    let of_project = servers(&context, &agent.mcp);
    agent.mcp.extend(of_project);
    // What works for the project gets its secrets: whoever does its turns, and its own servers. Those of the agent get
    // what their `pass_env` names.
    agent.pass_env.extend(context.secrets.iter().cloned());
    // What its keeper starts is marked as its own, within the daemon's: whatever it ends is its own as well.
    let mark = std::env::var("NEXUS_CHILD_ID").ok().filter(|mark| mark.contains(':')).unwrap_or_else(|| ulid::Ulid::generate().to_string());
    let lock = File::open("/dev/null").map_err(RunError::Keeper)?;
    let starts_nothing = agent.runner == config::Runner::Echo || (agent.runner == config::Runner::Llm && agent.mcp.is_empty());
    let keeper = if starts_nothing { None } else { Some(keeper::launch(&lock).map_err(RunError::Keeper)?) };
    Ok(Prologue { context, agent, workspace: paths.workspace, keeper, lock, mark })
}

/// The daemon's, whose child this process is.
fn instance_of(mark: &str) -> &str {
    mark.split_once(':').map_or(mark, |(instance, _)| instance)
}

fn read_context() -> Result<Context, RunError> {
    let path = std::env::var_os(CONTEXT_VARIABLE).filter(|path| !path.is_empty()).map(PathBuf::from).ok_or(RunError::NoContext)?;
    let failed = |source| RunError::Context { path: path.clone(), source };
    let mut text = String::new();
    File::open(&path).map_err(failed)?.take(CONTEXT_BYTES_MAX).read_to_string(&mut text).map_err(failed)?;
    let bad = |problem: String| RunError::BadContext { path: path.clone(), problem };
    let context: Context = serde_json::from_str(&text).map_err(|error| bad(error.to_string()))?;
    match context.version {
        CONTEXT_VERSION => Ok(context),
        version => Err(bad(format!("it has version {version}; this program knows {CONTEXT_VERSION}"))),
    }
}

/// The approved servers of the project, as those of an agent of the configuration. None takes the name of one of `own`: who writes a
/// definition doesn't stand in for the operator's servers.
fn servers(context: &Context, own: &BTreeMap<String, McpServer>) -> BTreeMap<String, McpServer> {
    let mut taken: BTreeSet<String> = own.keys().cloned().collect();
    let server = |one: &ProjectMcp| {
        let argv: Vec<String> = std::iter::once(one.command.clone()).chain(one.args.iter().cloned()).collect();
        let is_secret = |name: &str| context.secrets.iter().any(|known| known == name);
        let env = in_place(&one.env, |name| if is_secret(name) { std::env::var(name).ok() } else { None });
        let (command, pass_env) = (argv.join(" "), context.secrets.clone());
        let name = server_name(&one.slug, &one.event_id, &taken);
        taken.insert(name.clone());
        (name, McpServer { command, argv, env, pass_env, ..McpServer::default() })
    };
    context.project.mcp.iter().map(server).collect()
}

/// The name of a server as the names of its tools may begin with it: its slug, if there is room and nobody has that; else with the
/// beginning of its event's id. Who has none, or shares that too, gets a number.
fn server_name(slug: &str, event_id: &str, taken: &BTreeSet<String>) -> String {
    let name = slug::of(slug, "server", usize::MAX);
    if name.len() <= SERVER_NAME_BYTES_MAX && !taken.contains(&name) {
        return name;
    }
    let id: String = event_id.chars().take(ID_CHARS).collect();
    let begin = slug::of(slug, "server", SERVER_NAME_BYTES_MAX - ID_CHARS - NUMBER_BYTES_MAX);
    slug::free(&slug::of(&format!("{begin}-{id}"), "server", SERVER_NAME_BYTES_MAX), taken)
}

/// From here on there is a runtime.
async fn work(prologue: Prologue) -> Result<(), RunError> {
    let Prologue { context, agent, workspace, keeper, lock, mark } = prologue;
    let (stdin, stdout) = pipes().map_err(RunError::Pipes)?;
    let link = Link::new(stdout);
    let name = context.agent.clone();
    let (runner, servers, keeper_task) = match keeper {
        None if agent.runner == config::Runner::Echo => (Runner::Echo, None, None),
        None => (Runner::Llm(Box::new(LlmRunner::alone(&agent, name.clone(), &workspace)?)), None, None),
        Some(keeper) => {
            let watch_over = Watch::new(Metrics::new());
            let started = Keeper::start(keeper, &mark, lock, Arc::new(Cgroup::inside(instance_of(&mark))), watch_over.part("keeper"));
            let (keeper, task) = started.map_err(RunError::Keeper)?;
            let supervisor = Supervisor::new(keeper.clone(), Metrics::new(), watch_over);
            let servers = Servers::new(supervisor, place_of(&context.project.path, &workspace), None);
            let runner = runner(&name, &agent, &keeper, &servers, &workspace)?;
            let named = BTreeMap::from([(name.clone(), agent.clone())]);
            servers.apply(&Agents { default: name.clone(), named }).await;
            (runner, Some(servers), Some(task))
        }
    };
    let desk = answer::Desk::new(context, &agent, runner, link.clone()).with_servers(servers.clone(), name);
    serve::serve(desk, stdin, link).await;
    if let Some(servers) = servers {
        servers.shutdown().await;
    }
    drop(keeper_task); // it ends with its last handle, and the keeper with this process
    Ok(())
}

/// The way in which the agent runs, below this process's keeper.
fn runner(name: &str, agent: &config::Agent, keeper: &Keeper, servers: &Servers, workspace: &Path) -> Result<Runner, RunError> {
    Ok(match agent.runner {
        config::Runner::Echo => Runner::Echo,
        config::Runner::Command => Runner::Command(CommandRunner::new(keeper.clone(), agent, name, workspace)),
        config::Runner::Llm => Runner::Llm(Box::new(LlmRunner::new(agent, name, workspace, servers)?)),
        // What it needs is the daemon's: the ledger that has its sessions, and the owner whom it asks.
        config::Runner::Acp => return Err(RunError::Acp(name.to_owned())),
    })
}

/// The project's own servers run in its directory.
fn place_of(project: &Path, workspace: &Path) -> PathBuf {
    if project.is_dir() { project.to_owned() } else { workspace.to_owned() }
}

fn pipes() -> std::io::Result<(pipe::Receiver, pipe::Sender)> {
    let own = |fd: BorrowedFd<'_>| -> std::io::Result<OwnedFd> { Ok(rustix::io::fcntl_dupfd_cloexec(fd, 3)?) };
    let stdin = pipe::Receiver::from_owned_fd(own(rustix::stdio::stdin())?)?;
    Ok((stdin, pipe::Sender::from_owned_fd(own(rustix::stdio::stdout())?)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_servers_have_one_name_and_none_has_that_of_the_operators() {
        let mut taken = BTreeSet::from(["files".to_owned()]);
        let long = format!("{}-one", "a".repeat(32));
        let slugs = ["files", "mail", &long, &long.replace("one", "two"), "日本", "files", ""];
        let name = |slug: &str, taken: &BTreeSet<String>| server_name(slug, "ab12cd34ef", taken);
        for slug in slugs {
            let name = name(slug, &taken);
            assert!(name.len() <= SERVER_NAME_BYTES_MAX && !name.contains(nexus_core::config::TOOL_SEPARATOR), "{name}");
            assert!(taken.insert(name), "{slug}: {taken:?}");
        }
        for expected in ["mail", "files-ab12cd34", "files-ab12cd34-2", "server"] {
            assert!(taken.contains(expected), "{expected}: {taken:?}");
        }
        assert_eq!(server_name("files", "", &BTreeSet::from(["files".to_owned()])), "files-2");
    }
}
