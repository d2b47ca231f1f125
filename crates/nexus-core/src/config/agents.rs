//! The section `agents`: who answers. A key of it is an agent's name, save `default`. What an agent may
//! spend and the programs that give it tools are sections of their own, in `models`.

use super::adapter::{environment, split_command, variable_names};
use super::decode::{Decode, RUN_MS_MAX, Section, check_name, is_section, nonempty, optional_text};
use super::field_schema::{FieldSchema, ObjectSchema};
use super::models::{McpServer, Provider, Spending, mcp_servers, tokens_per_answer, tokens_per_prompt};
use super::node::{Node, Position};
use super::problem::{Faults, quoted};
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::Serialize;
use serde_json::Value;
use std::borrow::Cow;
use std::collections::BTreeMap;

/// The agent that exists always: it answers with what it was told.
pub const ECHO: &str = "echo";
/// The agent that answers for projects: the daemon's own, and nobody can configure it.
pub const PROJECT: &str = "project";
/// Most runs of one agent that may be allowed at one time.
const CONCURRENT_RUNS_MAX: u32 = 1024;
/// Most rounds of tool calls that one turn may be allowed.
const TOOL_ROUNDS_MAX: u32 = 64;
/// Most earlier texts that may be given along with a message, and the bounds of their bytes.
const MEMORY_MATCHES_MAX: u32 = 20;
const MEMORY_BYTES_MIN: u32 = 256;
const MEMORY_BYTES_MAX: u32 = 64 * 1024;
/// Most names that a message lists.
const LISTED_NAMES_MAX: usize = 10;
const DEFAULT_DOC: &str = "Name of the agent that answers when no policy names another.";

words! {
    /// How an agent runs.
    Runner {
        /// It answers with what it was told.
        #[default]
        Echo = "echo",
        /// A program: one JSON on stdin, stream events or plain text on stdout.
        Command = "command",
        /// A model behind an HTTP interface.
        Llm = "llm",
        /// A program that stays and speaks the Agent Client Protocol.
        Acp = "acp",
    }
}

words! {
    /// Who is asked about what an agent wants permission for.
    PermissionAsk {
        /// The owner, where access control neither allows nor denies.
        #[default]
        Owner = "owner",
        /// The owner, also where access control allows.
        Always = "always",
        /// Nobody: what access control doesn't allow is refused.
        Never = "never",
    }
}

section! {
    /// What happens to an agent's requests for permission (runner `acp`).
    AgentPermissions {
        /// Who is asked: the `owner` about what access control leaves open, the owner `always`, or `never` anybody.
        ask: PermissionAsk = PermissionAsk::default();
        /// Milliseconds the owner has to answer; then it is refused.
        timeout_ms: u64 [1..=RUN_MS_MAX] = 120_000;
    }
}

section! {
    /// One agent.
    Agent check completeness {
        /// How it runs: `echo`, a `command`, an `llm`, or `acp`.
        runner: Runner = Runner::default(), required "command";
        /// Runners `command` and `acp`: the program and its arguments, split as a shell would and never run by one.
        command: Option<String> = None => optional_text;
        /// Runner `llm`: whose wire format it speaks; `openai` is any OpenAI-compatible interface.
        provider: Provider = Provider::default();
        /// Runner `llm`: base URL of the interface, http or https; left out, the provider's own.
        url: Option<String> = None => http_url;
        /// Runner `llm`: name of the model.
        model: Option<String> = None => optional_text;
        /// Runner `llm`: file with the key.
        key_file: Option<String> = None => optional_text;
        /// Runner `llm`: name of the environment variable with the key.
        key_env: Option<String> = None => optional_text;
        /// Runner `llm`: file with the system prompt, relative to the configuration file.
        system_prompt_file: Option<String> = None => optional_text;
        /// Runner `llm`: other `llm` agents that answer in its place, in this order, while its interface
        /// can't be reached or is busy.
        fallback: Vec<String> = Vec::new();
        /// Runner `llm`: longest answer, in tokens; left out, the interface's own limit.
        max_tokens: Option<u32> = None => tokens_per_answer;
        /// Runner `llm`: most tokens of system prompt, memory, history and message together, at 4 bytes
        /// each; left out, 64 KiB of history.
        context_tokens: Option<u64> = None => tokens_per_prompt;
        /// Runner `llm`: most rounds of tool calls in one turn.
        tool_rounds_max: u32 [1..=TOOL_ROUNDS_MAX] = 8;
        /// Runner `llm`: what it may use.
        budget: Spending = Spending::default();
        /// Runner `llm`: MCP servers whose tools it may call, by name.
        mcp: BTreeMap<String, McpServer> = BTreeMap::new() => mcp_servers;
        /// Environment variables to set for the program.
        env: BTreeMap<String, String> = BTreeMap::new() => environment;
        /// Names of the daemon's own environment variables to pass on.
        pass_env: Vec<String> = Vec::new() => variable_names;
        /// Working directory of the program, relative to the configuration file.
        cwd: Option<String> = None => optional_text;
        /// Milliseconds one run may take.
        timeout_ms: u64 [1..=RUN_MS_MAX] = 120_000;
        /// Runs of this agent that may go on at one time; those of the timer have slots of their own, a quarter as many.
        max_concurrent: u32 [1..=CONCURRENT_RUNS_MAX] = 16;
        /// What it is told of the past beyond its session's newest turns.
        memory: Memory = Memory::default();
        /// Runner `command`: its stdin stays open after the turn, for messages of `queue_mode: steer` that come while it
        /// runs. It must not read to the end of stdin.
        steering: bool = false;
        /// Runner `acp`: what happens to its requests for permission.
        permissions: AgentPermissions = AgentPermissions::default();
    }
    derived {
        /// `command` split into the program and its arguments; empty without one.
        argv: Vec<String> = Vec::new();
    }
}

section! {
    /// What an agent is told of the past, as far as `data_access` allows.
    Memory {
        /// Earlier texts that match a message best and are given along with it; 0 for none.
        matches: u32 [0..=MEMORY_MATCHES_MAX] = 0;
        /// Bytes that they may have together.
        max_bytes: u32 [MEMORY_BYTES_MIN..=MEMORY_BYTES_MAX] = 4096;
    }
}

/// The agents by name. `echo` is always among them.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Agents {
    /// Name of the agent that answers when no policy names another.
    pub default: String,
    /// Every agent by its name.
    #[serde(flatten)]
    pub named: BTreeMap<String, Agent>,
}

impl Default for Agents {
    fn default() -> Self {
        let named = BTreeMap::from([(ECHO.to_owned(), Agent::default())]);
        Self { default: ECHO.to_owned(), named }
    }
}

impl Section for Agents {
    const KEYS: &'static [&'static str] = &["default"];
    const ALIASES: &'static [&'static str] = &[];
}

impl Decode for Agents {
    fn decode(node: &Node, name: &str, faults: &mut Faults) -> Option<Self> {
        if !is_section(node, name, faults) {
            return None;
        }
        let mut agents = Self::default();
        for (key, field) in node.fields() {
            if key == "default" {
                if !field.value.is_null()
                    && let Some(text) = nonempty(&field.value, key, faults)
                {
                    agents.default = text;
                }
                continue;
            }
            check_name(key, field.key_at, faults);
            if key == PROJECT {
                faults.error(field.key_at, "`project` is the agent that answers for projects; give this one another name");
            }
            // A wrong agent keeps its name, so that those who refer to it are not called wrong too.
            let agent = Agent::decode(&field.value, key, faults).unwrap_or_default();
            agents.named.insert(key.clone(), agent);
        }
        Some(agents)
    }
}

impl JsonSchema for Agents {
    fn schema_name() -> Cow<'static, str> {
        "Agents".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let mut object = ObjectSchema::new(&["Who answers. Each key but `default` is the name of an agent."]);
        let text = generator.subschema_for::<String>();
        object.add("default", FieldSchema::new(text, &[DEFAULT_DOC], &ECHO));
        let mut schema = object.finish();
        let agent = Value::from(generator.subschema_for::<Agent>());
        schema.insert("additionalProperties".to_owned(), agent);
        schema
    }
}

/// What each runner can't do without.
fn completeness(mut agent: Agent, node: &Node, faults: &mut Faults) -> Agent {
    let mut need = |key: &str, is_given: bool, example: &str| {
        if !is_given && node.get(key).is_none_or(Node::is_null) {
            let runner = agent.runner;
            faults.error(node.at, format!("an agent with `runner: {runner}` needs `{key}`, for example `{key}: {example}`"));
        }
    };
    match agent.runner {
        Runner::Echo => {}
        Runner::Command | Runner::Acp => need("command", agent.command.is_some(), "my-agent --stdio"),
        Runner::Llm => {
            need("url", agent.url.is_some() || agent.provider.default_url().is_some(), "https://api.example.org/v1");
            need("model", agent.model.is_some(), "small-1");
        }
    }
    if agent.key_file.is_some()
        && let Some(key_env) = node.get("key_env").filter(|key| !key.is_null())
    {
        faults.error(key_env.at, "`key_env` and `key_file` are both given; keep one");
    }
    refuse_misplaced(&agent, node, faults);
    if let (Some(command), Some(command_node)) = (&agent.command, node.get("command"))
        && let Some(argv) = split_command(command, command_node, faults)
    {
        agent.argv = argv;
    }
    agent
}

/// Notes each key that another runner would heed: whoever gives a budget to one that nobody counts believes it is kept.
fn refuse_misplaced(agent: &Agent, node: &Node, faults: &mut Faults) {
    let usual = Agent::default();
    let of_llm = [
        ("provider", agent.provider != usual.provider),
        ("url", agent.url.is_some()),
        ("model", agent.model.is_some()),
        ("key_file", agent.key_file.is_some()),
        ("key_env", agent.key_env.is_some()),
        ("system_prompt_file", agent.system_prompt_file.is_some()),
        ("fallback", !agent.fallback.is_empty()),
        ("max_tokens", agent.max_tokens.is_some()),
        ("context_tokens", agent.context_tokens.is_some()),
        ("tool_rounds_max", agent.tool_rounds_max != usual.tool_rounds_max),
        ("budget", agent.budget != usual.budget),
        ("mcp", !agent.mcp.is_empty()),
    ];
    let of_llm = of_llm.into_iter().map(|(key, is_given)| (key, is_given, Runner::Llm));
    for (key, is_given, runner) in of_llm.chain([("steering", agent.steering, Runner::Command)]) {
        if is_given && agent.runner != runner {
            let at = node.get(key).map_or(node.at, |given| given.at);
            faults.error(at, format!("`{key}` is for `runner: {runner}`, and this one has `runner: {}`; remove it", agent.runner));
        }
    }
}

fn http_url(node: &Node, name: &str, faults: &mut Faults) -> Option<Option<String>> {
    let text = nonempty(node, name, faults)?;
    let rest = text.strip_prefix("http://").or_else(|| text.strip_prefix("https://"));
    let is_url = rest
        .is_some_and(|rest| !rest.is_empty() && !rest.starts_with('/') && !rest.contains(|c: char| c.is_whitespace() || c.is_control()));
    if !is_url {
        let text = quoted(&text);
        faults.error(node.at, format!("`{name}` {text} is not a URL; write http://host/path or https://host/path"));
        return None;
    }
    Some(Some(text))
}

/// Notes each agent of a `fallback` that can't take the place of the one that names it.
pub(crate) fn check_fallbacks(agents: &Agents, node: &Node, faults: &mut Faults) {
    for (name, field) in node.fields() {
        let items = field.value.get("fallback").map(Node::items).unwrap_or_default();
        let mut seen = Vec::new();
        for item in items {
            let Some(other) = item.text() else { continue };
            check_agent(agents, other, item.at, faults);
            let (shown, is_llm) = (quoted(other), agents.named.get(other).is_none_or(|agent| agent.runner == Runner::Llm));
            if other == name {
                faults.error(item.at, format!("{shown} can't take its own place; remove it from `fallback`"));
            } else if !is_llm {
                faults.error(item.at, format!("{shown} is no `llm` agent; only those can be a `fallback`"));
            } else if seen.contains(&other) {
                faults.error(item.at, format!("{shown} is in `fallback` twice; name each agent once"));
            }
            seen.push(other);
        }
    }
}

/// Warns of agents that are given more time than their requests have.
pub(crate) fn check_times(agents: &Agents, node: &Node, request_ms: u64, faults: &mut Faults) {
    for (name, agent) in agents.named.iter().filter(|(_, agent)| agent.timeout_ms > request_ms) {
        // What nobody wrote is nobody's mistake.
        let Some(written) = node.path(&[name.as_str(), "timeout_ms"]) else { continue };
        let given = agent.timeout_ms;
        let told = || format!("`timeout_ms` of {given} is more than the {request_ms} of `pipeline.timeout_ms`, which ends the run");
        faults.warn(written.at, told);
    }
}

/// Notes a reference to an agent that does not exist.
pub(crate) fn check_agent(agents: &Agents, name: &str, at: Position, faults: &mut Faults) {
    if agents.named.contains_key(name) {
        return;
    }
    let known: Vec<&str> = agents.named.keys().take(LISTED_NAMES_MAX).map(String::as_str).collect();
    let more = if agents.named.len() > known.len() { " and others" } else { "" };
    let (name, known) = (quoted(name), known.join(", "));
    faults.error(at, format!("{name} is not an agent; `agents` has {known}{more}"));
}
