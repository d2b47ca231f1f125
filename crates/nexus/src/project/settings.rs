//! What the configuration says of projects, and how it and a definition make the plan of a process. It reads no
//! file and starts nothing.

use super::coordinate::Coordinate;
use super::idle::default_running_max;
use super::prepare::Prepared;
use super::process::{CONTEXT_VERSION, Context, Plan, environment_of};
use crate::environment;
use nexus_core::config::{self, Config, ProjectOverride, ProjectProtocol};
use nexus_core::lifecycle::{OnDemand, RestartPolicy};
use serde_json::json;
use sha2::{Digest, Sha256};
use std::path::PathBuf;
use std::time::Duration;

/// From TERM to KILL.
const STOP_GRACE_MS: u64 = 5_000;
/// How its delays grow.
const BACKOFF_MULTIPLIER: f64 = 2.0;

/// Where a project's own process finds what the daemon reads too.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Places {
    pub config_file: PathBuf,
    pub state_dir: PathBuf,
    pub run_dir: PathBuf,
}

/// The parts of the configuration that projects are run by, swapped whole by a reload.
#[derive(Debug, Clone)]
pub(super) struct Settings {
    projects: config::Projects,
    agents: config::Agents,
    places: Places,
    /// How long one event may be worked on once it is accepted.
    pub(super) turn_limit: Duration,
    pub(super) running_max: usize,
    pub(super) warm: usize,
}

impl Settings {
    pub(super) fn new(config: &Config, places: Places) -> Self {
        let running_max = config.projects.max_running.unwrap_or_else(|| default_running_max(memory_mb()));
        let size = |number: u32| usize::try_from(number).unwrap_or(usize::MAX);
        Self {
            projects: config.projects.clone(),
            agents: config.agents.clone(),
            places,
            turn_limit: Duration::from_millis(config.pipeline.timeout_ms),
            running_max: size(running_max).max(1),
            warm: size(config.projects.warm),
        }
    }

    pub(super) fn places(&self) -> &Places {
        &self.places
    }

    fn own(&self, project: &Coordinate) -> Option<&ProjectOverride> {
        self.projects.overrides.get(&project.to_string())
    }

    /// The agent of `agents` that does the project's turns.
    pub(super) fn agent_of(&self, project: &Coordinate) -> String {
        self.own(project).and_then(|own| own.agent.clone()).unwrap_or_else(|| self.agents.default.clone())
    }

    /// Whether this binary's own process runs it.
    pub(super) fn is_ours(&self, project: &Coordinate) -> bool {
        self.argv_of(project).is_empty()
    }

    fn argv_of(&self, project: &Coordinate) -> &[String] {
        match self.own(project) {
            Some(own) if !own.argv.is_empty() => &own.argv,
            Some(_) | None => &self.projects.argv,
        }
    }

    pub(super) fn idle_stop_ms(&self, project: &Coordinate) -> u64 {
        self.own(project).and_then(|own| own.idle_stop_ms).unwrap_or(self.projects.idle_stop_ms)
    }

    pub(super) fn policy_of(&self, project: &Coordinate) -> RestartPolicy {
        let restart = self.own(project).and_then(|own| own.restart.as_ref()).unwrap_or(&self.projects.restart);
        RestartPolicy {
            max_restarts: restart.max_crashes,
            backoff_base_ms: restart.backoff_base_ms,
            backoff_multiplier: BACKOFF_MULTIPLIER,
            backoff_max_ms: restart.backoff_max_ms,
            reset_after_ms: restart.reset_after_ms,
            errored_retry_ms: 0,
            stop_grace_ms: STOP_GRACE_MS,
            on_demand: Some(OnDemand { crashes_max: restart.max_crashes, window_ms: restart.window_ms }),
        }
    }

    /// How long a project may take until it is ready, with all the restarts that it is allowed.
    pub(super) fn ready_patience(&self, project: &Coordinate) -> Duration {
        let policy = self.policy_of(project);
        let each = self.projects.ready_timeout_ms.saturating_add(policy.backoff_max_ms).saturating_add(2 * STOP_GRACE_MS);
        Duration::from_millis(each.saturating_mul(u64::from(policy.max_restarts).saturating_add(1)))
    }

    pub(super) fn plan(&self, prepared: &Prepared) -> Plan {
        let project = &prepared.coordinate;
        let own = self.own(project);
        let empty = ProjectOverride::default();
        let ProjectOverride { env, pass_env, .. } = own.unwrap_or(&empty);
        let protocol = own.and_then(|own| own.protocol).unwrap_or(self.projects.protocol);
        let agent = self.agent_of(project);
        let is_ours = self.is_ours(project);
        let argv = if is_ours { self.own_argv() } else { self.argv_of(project).to_vec() };
        // Our own process reads what the daemon reads: the agent's key and servers have their variables.
        let config = self.agents.named.get(&agent).filter(|_| is_ours).cloned();
        let mut pass_env = pass_env.clone();
        if let Some(config) = &config {
            pass_env.extend(config.key_env.iter().chain(&config.pass_env).cloned());
            pass_env.extend(config.mcp.values().flat_map(|server| server.pass_env.iter().cloned()));
        }
        let state_dir = ("NEXUS_STATE_DIR", self.places.state_dir.to_string_lossy().into_owned());
        Plan {
            argv,
            env: environment_of(env, &pass_env, &[state_dir]),
            // Ours speaks it, whatever is said of programs.
            protocol: if is_ours { ProjectProtocol::Jsonl } else { protocol },
            // Which secrets there are is known when it starts.
            context: Context { version: CONTEXT_VERSION, project: prepared.clone(), agent, secrets: Vec::new() },
            config,
            ready_limit: Duration::from_millis(self.projects.ready_timeout_ms),
            ping_every: Duration::from_millis(self.projects.ping_ms),
        }
    }

    /// A mark of how this configuration runs a project: another configuration of it has another one. No definition and no
    /// variable of the daemon's own environment is in it.
    pub(super) fn mark(&self, project: &Coordinate) -> String {
        let config::Projects { command, protocol, ready_timeout_ms, ping_ms, restart, .. } = &self.projects;
        let name = self.agent_of(project);
        let agent = self.agents.named.get(&name).filter(|_| self.is_ours(project));
        let how = json!([command, protocol, ready_timeout_ms, ping_ms, restart, self.own(project), name, agent]);
        hex::encode(&Sha256::digest(how.to_string().as_bytes())[..8])
    }

    fn own_argv(&self) -> Vec<String> {
        let config = self.places.config_file.to_string_lossy().into_owned();
        vec![environment::own_binary(), "--config".to_owned(), config, "project".to_owned(), "run".to_owned()]
    }
}

/// Memory of this machine, in MiB; none known is little.
fn memory_mb() -> u64 {
    let pages = rustix::system::sysinfo();
    pages.totalram.saturating_mul(u64::from(pages.mem_unit)) / (1024 * 1024)
}
