//! The configuration: from the text of `nex.yaml` and its overlay to typed, validated values.
//!
//! All mistakes are found in one reading, each with its place. Nothing here reads a file, an
//! environment variable or a clock: the texts come in, and paths go out as they were written.

#[macro_use]
mod section;

mod access;
mod adapter;
mod agents;
mod automations;
mod change;
mod daemon;
mod decode;
mod default_file;
pub mod diff;
mod field_schema;
mod grant;
#[cfg(test)]
mod hostile_tests;
mod models;
mod node;
mod nostr;
mod parse;
mod plugin_file;
mod plugins;
mod problem;
mod projects;
mod reference;
mod show;
mod storage;
#[cfg(test)]
mod tests;
mod timer;

pub use access::{
    Access, Condition, DataAccess, Day, Effect, Match, PER_MINUTE_MAX, Permissions, Policy, PrincipalMatch, PrincipalType, Queue,
    QueueDrop, QueueMode, Rate, SessionRoute, TimeRange, Tools,
};
pub use adapter::{Account, Adapter, BUILTIN_WEBHOOK, CatchUp, Late, OnUncertain, Restart, Send, Streaming};
pub use agents::{Agent, AgentPermissions, Agents, ECHO, Memory, PROJECT, PermissionAsk, Runner};
pub use automations::Automations;
pub use daemon::{Daemon, LogLevel, OnInterrupted, Pipeline};
pub use default_file::DEFAULT_YAML;
pub use grant::Grant;
pub use models::{CallBudget, McpServer, Provider, Spending, TOOL_SEPARATOR};
pub use nostr::{Nostr, WHITELIST_MAX, canonical_relay, public_key_hex};
pub use plugin_file::{OnPluginError, PLUGIN_FILE, PluginFile, PluginMode, PluginSection, load_plugin_file};
pub use plugins::{PLUGINS, PluginCircuit, Plugins};
pub use problem::{Problem, WARNING_MARK};
pub use projects::{GIT_SCHEMES, Git, ProjectOverride, ProjectProtocol, ProjectRestart, Projects};
pub use reference::reference_markdown;
pub use storage::{Bus, BusMode, Ledgers, Retention};
pub use timer::{Cron, CronDeliver, Missed, Timer};

use decode::{Decode, Section, named};
use node::{FileId, Kind, Node};
use problem::{Faults, quoted};
use std::collections::{BTreeMap, BTreeSet};

/// Most plugins that a message lists.
const LISTED_PLUGINS_MAX: usize = 20;

section! {
    /// The configuration of the daemon.
    Config check references {
        /// Where the daemon listens and what it logs.
        daemon: Daemon = Daemon::default();
        /// How requests run.
        pipeline: Pipeline = Pipeline::default();
        /// Where records are kept and for how long.
        ledgers: Ledgers = Ledgers::default();
        /// The adapters, by name.
        adapters: BTreeMap<String, Adapter> = BTreeMap::new() => named;
        /// Who may use the daemon, and how.
        access: Access = Access::default();
        /// Who answers.
        agents: Agents = Agents::default();
        /// Which plugins run.
        plugins: Plugins = Plugins::default();
        /// What automations may do, and which of them don't run.
        automations: Automations = Automations::default();
        /// Events that the daemon makes itself.
        timer: Timer = Timer::default();
        /// How much of what happens is held for those who follow it.
        bus: Bus = Bus::default();
        /// Nostr: relays that events come from and go to.
        nostr: Nostr = Nostr::default();
        /// Projects: directories in which agents work, activated by events of Nostr.
        projects: Projects = Projects::default();
    }
}

/// A configuration text, and the name under which problems in it are told.
#[derive(Debug, Clone, Copy)]
pub struct Source<'a> {
    /// For example `nex.yaml`.
    pub name: &'a str,
    /// YAML, at most 1 MiB.
    pub text: &'a str,
}

/// A valid configuration, what was odd about its text, and where each value came from.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// The values in force.
    pub config: Config,
    /// Unknown keys, in the order of their places; at most 100.
    pub warnings: Vec<Problem>,
    /// The texts as one tree, whose nodes know their file.
    origins: Node,
}

impl Loaded {
    /// The effective configuration as YAML, with ` # overlay` behind values of the overlay and
    /// ` # default` behind values that no text sets. Values of `env` and of account `config` whose key
    /// sounds like a secret are shown as `"<redacted>"`.
    pub fn show(&self) -> String {
        show::render(&self.config, &self.origins)
    }

    /// Each enabled plugin that is neither built in nor among those that were `found` on the disk, at its
    /// place in the texts that this was loaded from.
    pub fn unknown_plugins(&self, found: &BTreeSet<String>, main: Source<'_>, overlay: Option<Source<'_>>) -> Vec<Problem> {
        let mut faults = Faults::default();
        let enabled = self.origins.path(&["plugins", "enabled"]).map(Node::items).unwrap_or_default();
        for item in enabled {
            let Some(name) = item.text() else { continue };
            if PLUGINS.contains(&name) || found.contains(name) {
                continue;
            }
            let known: Vec<&str> = PLUGINS.iter().copied().chain(found.iter().map(String::as_str)).take(LISTED_PLUGINS_MAX).collect();
            let (name, known, directory) = (quoted(name), known.join(", "), &self.config.plugins.directory);
            faults.error(item.at, format!("{name} is no plugin: it is neither built in nor in `{directory}`; there are: {known}"));
        }
        faults.finish(main, overlay).err().unwrap_or_default()
    }
}

/// Reads the main text and, laid over it, the overlay that CLI verbs write.
///
/// # Errors
/// All that is wrong in both texts, in the order of their places and at most 100 (the last then says
/// how many more): bad YAML, wrong types, values out of range, references to what does not exist. A
/// text that is not YAML hides what else is wrong.
pub fn load(main: Source<'_>, overlay: Option<Source<'_>>) -> Result<Loaded, Vec<Problem>> {
    let mut faults = Faults::default();
    let below = root(FileId::Main, main.text, &mut faults);
    let above = overlay.map(|overlay| root(FileId::Overlay, overlay.text, &mut faults));
    let tree = match (below, above) {
        (Some(below), None) => Some(below),
        (Some(below), Some(Some(mut above))) => {
            drop_leftovers(&below, &mut above, &mut faults);
            Some(below.overlaid(above))
        }
        (None, _) | (_, Some(None)) => None,
    };
    let decoded = tree.and_then(|tree| Config::decode(&tree, "", &mut faults).map(|config| (config, tree)));
    let warnings = faults.finish(main, overlay)?;
    // Without a fault there is a tree, and a configuration decoded from it.
    let (config, origins) = decoded.ok_or_else(Vec::new)?;
    Ok(Loaded { config, warnings, origins })
}

/// Takes out of the overlay what it says about adapters that the main file has no more: a file that
/// verbs write must not make the one that people write invalid.
fn drop_leftovers(below: &Node, above: &mut Node, faults: &mut Faults) {
    let known = |name: &str| below.path(&["adapters", name]).is_some();
    let Kind::Mapping(sections) = &mut above.kind else { return };
    let Some(adapters) = sections.get_mut("adapters") else { return };
    let Kind::Mapping(adapters) = &mut adapters.value.kind else { return };
    adapters.retain(|name, field| {
        let keep = known(name) || field.value.get("command").is_some();
        if !keep {
            faults.warn(field.key_at, || format!("adapter `{name}` is not configured any more; what the overlay says of it is ignored"));
        }
        keep
    });
}

/// The overlay's text as a plain value, for CLI verbs that change it and write it back. It is not
/// checked as a configuration: the changed text is, by [`load`].
///
/// # Errors
/// Where the text is not YAML.
pub fn overlay_value(text: &str) -> Result<serde_json::Value, Vec<Problem>> {
    let source = Source { name: "overlay.yaml", text };
    let mut faults = Faults::default();
    let node = root(FileId::Main, text, &mut faults);
    faults.finish(source, None)?;
    Ok(node.as_ref().map_or(serde_json::Value::Null, decode::to_json))
}

/// The JSON Schema (2020-12) of the configuration, for editors.
pub fn schema() -> serde_json::Value {
    schemars::schema_for!(Config).to_value()
}

/// One text as a tree whose root is a mapping of sections, or nothing.
fn root(file: FileId, text: &str, faults: &mut Faults) -> Option<Node> {
    let node = parse::parse(file, text, faults)?.without_wrapper(Config::KEYS);
    match &node.kind {
        Kind::Null | Kind::Mapping(_) => Some(node),
        Kind::Scalar { .. } | Kind::Sequence(_) => {
            let found = decode::described(&node);
            faults.error(node.at, format!("a configuration is sections such as `daemon:` with keys, not {found}"));
            None
        }
    }
}

/// Rules that span sections: whoever is named must exist.
fn references(mut config: Config, node: &Node, faults: &mut Faults) -> Config {
    config.know_whitelist();
    let default = node.path(&["agents", "default"]);
    let policies = node.path(&["access", "policies"]).map(Node::items).unwrap_or_default();
    let routes = policies.iter().filter_map(|policy| policy.path(&["session", "agent"]));
    let overrides = node.path(&["projects", "overrides"]);
    let of_projects = overrides.into_iter().flat_map(Node::fields).filter_map(|(_, field)| field.value.get("agent"));
    for reference in default.into_iter().chain(routes).chain(of_projects) {
        if let Some(name) = reference.text() {
            agents::check_agent(&config.agents, name, reference.at, faults);
        }
    }
    if let Some(agents) = node.get("agents") {
        agents::check_fallbacks(&config.agents, agents, faults);
        agents::check_times(&config.agents, agents, config.pipeline.timeout_ms, faults);
    }
    if let Some(timer) = node.get("timer") {
        timer::check_deliver(&config.adapters, timer, faults);
    }
    config
}
