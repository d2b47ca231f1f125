//! Makes the pipeline's settings out of the configuration.

use crate::agent::acp::AcpAgents;
use crate::agent::command::CommandRunner;
use crate::agent::llm::LlmRunner;
use crate::agent::mcp::Servers;
use crate::agent::project::ProjectRunner;
use crate::agent::{AgentError, Runner};
use crate::keeper::Keeper;
use crate::pipeline::spending::Payer;
use crate::pipeline::{Agent, Settings};
use crate::project::Projects;
use nexus_core::config::{self, Config, ECHO, PROJECT};
use nexus_core::spend::BYTES_PER_TOKEN;
use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// Longest run of an event of a project: it may have to be cloned first, behind others that are.
const PROJECT_RUN_MAX: Duration = Duration::from_secs(6 * 60 * 60);
/// Projects that may have an event under way at one time.
const PROJECT_RUNS_MAX: usize = 1024;

#[derive(Debug, thiserror::Error)]
pub(super) enum BuildError {
    #[error("agent `{name}` can't be used")]
    Agent {
        name: String,
        #[source]
        source: Box<AgentError>,
    },
    #[error("{0}")]
    Zone(String),
}

/// # Errors
/// When an agent's endpoint can't be set up or the time zone is unknown.
pub(super) fn settings(
    config: &Config,
    keeper: &Keeper,
    servers: &Servers,
    acp: &AcpAgents,
    projects: &Projects,
    workspace: &Path,
) -> Result<Settings, BuildError> {
    let mut agents = HashMap::new();
    let echo = config::Agent::default();
    let named = config.agents.named.iter().map(|(name, agent)| (name.as_str(), agent));
    // `echo` is always there, unless the config gives that name to something else.
    for (name, agent) in std::iter::once((ECHO, &echo)).chain(named) {
        agents.insert(name.to_owned(), Arc::new(build(name, agent, keeper, servers, acp, workspace)?));
    }
    agents.insert(PROJECT.to_owned(), Arc::new(for_projects(projects.clone())));
    Ok(Settings {
        pipeline: config.pipeline.clone(),
        access: config.access.clone(),
        default_agent: config.agents.default.clone(),
        agents,
        callers: callers(config),
        time_zone: crate::timer::zone(&config.timer.timezone).map_err(BuildError::Zone)?,
    })
}

/// What plugins and automations may use of models.
fn callers(config: &Config) -> BTreeMap<Payer, config::CallBudget> {
    let plugins = config.plugins.budgets.iter().map(|(name, budget)| (Payer::Plugin(name.clone()), budget.clone()));
    let automations = config.automations.budgets.iter().map(|(name, budget)| (Payer::Automation(name.clone()), budget.clone()));
    plugins.chain(automations).collect()
}

/// The agent that hands events to projects. What a turn comes to its parts limit: preparing, starting, answering.
fn for_projects(projects: Projects) -> Agent {
    Agent {
        name: PROJECT.to_owned(),
        runner: Runner::Project(ProjectRunner::new(projects)),
        timeout: PROJECT_RUN_MAX,
        max_concurrent: PROJECT_RUNS_MAX,
        harmless: false,
        acts: false,
        takes_input: false,
        memory: config::Memory::default(),
        spending: None,
        fallback: Vec::new(),
        prompt_bytes_max: None,
    }
}

fn build(
    name: &str,
    agent: &config::Agent,
    keeper: &Keeper,
    servers: &Servers,
    acp: &AcpAgents,
    workspace: &Path,
) -> Result<Agent, BuildError> {
    let runner = match agent.runner {
        config::Runner::Echo => Runner::Echo,
        config::Runner::Command => Runner::Command(CommandRunner::new(keeper.clone(), agent, name, workspace)),
        config::Runner::Llm => {
            let runner = LlmRunner::new(agent, name, workspace, servers);
            Runner::Llm(Box::new(runner.map_err(|source| BuildError::Agent { name: name.to_owned(), source: Box::new(source) })?))
        }
        config::Runner::Acp => Runner::Acp(acp.runner(agent, name, workspace)),
    };
    let is_llm = matches!(runner, Runner::Llm(_));
    let takes_input = match &runner {
        Runner::Command(_) => agent.steering,
        // Without tools its turn is one question.
        Runner::Llm(_) => !agent.mcp.is_empty(),
        Runner::Echo | Runner::Acp(_) | Runner::Project(_) => false,
    };
    let prompt_tokens = agent.context_tokens.filter(|_| is_llm).map(|tokens| usize::try_from(tokens).unwrap_or(usize::MAX));
    Ok(Agent {
        name: name.to_owned(),
        spending: is_llm.then(|| agent.budget.clone()),
        fallback: if is_llm { agent.fallback.clone() } else { Vec::new() },
        prompt_bytes_max: prompt_tokens.map(|tokens| tokens.saturating_mul(BYTES_PER_TOKEN)),
        harmless: matches!(runner, Runner::Echo),
        acts: matches!(runner, Runner::Command(_) | Runner::Acp(_)),
        takes_input,
        runner,
        timeout: Duration::from_millis(agent.timeout_ms),
        max_concurrent: usize::try_from(agent.max_concurrent).unwrap_or(usize::MAX),
        memory: agent.memory.clone(),
    })
}
