//! Tools from MCP servers: which servers run, what each offers, and a call of a tool. This module and those
//! below it are the only ones that know the `rmcp` crate. A server is a supervised child like every other, one
//! for each agent that names it; what a turn may call is for the turn's runner to say.

mod guard;
mod server;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use nexus_core::config::{self, Agents, McpServer, TOOL_SEPARATOR};
use nexus_core::tool_filter::matches_any;
use rmcp::ServiceError;
use rmcp::model::{CallToolRequestParams, CallToolResult};
use serde_json::{Map, Value};
use tokio::sync::{Mutex, watch};

use self::server::{Link, Server};
use super::llm::head;
use crate::bus::Bus;
use crate::supervisor::Supervisor;

/// How long one call of a tool may take.
const CALL_LIMIT: Duration = Duration::from_secs(60);

/// How long a turn waits for a server whose former process is still being stopped: longer than it takes to kill one.
const EXCHANGE_PATIENCE: Duration = Duration::from_secs(10);

/// The most of a result that the model is given, in bytes.
pub const RESULT_BYTES_MAX: usize = 256 * 1024;

/// The longest name of a tool with its server's, in bytes; that of the strictest provider.
const TOOL_NAME_BYTES_MAX: usize = 64;

/// Agent and server.
type Name = (String, String);

/// All MCP servers. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Servers {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    supervisor: Supervisor,
    workspace: PathBuf,
    /// Where their statuses are told, if anywhere.
    bus: Option<Bus>,
    state: watch::Sender<State>,
    /// Held while servers are exchanged.
    exchange: Mutex<()>,
}

#[derive(Debug, Default)]
struct State {
    wanted: BTreeMap<Name, McpServer>,
    /// Of those that are wanted, as they are wanted.
    running: BTreeMap<Name, Server>,
    /// Still to be stopped. Nobody is offered their tools any more.
    leaving: Vec<Server>,
}

impl State {
    /// Whether all servers of an agent are there, though some may be starting.
    fn is_complete_for(&self, agent: &str) -> bool {
        self.wanted.keys().filter(|(of, _)| of == agent).all(|name| self.running.contains_key(name))
    }

    fn want(&mut self, wanted: BTreeMap<Name, McpServer>) {
        for (name, mut server) in std::mem::take(&mut self.running) {
            match wanted.get(&name).filter(|config| server.is_as(config)) {
                Some(config) => {
                    server.set_tools(config.tools.clone());
                    self.running.insert(name, server);
                }
                None => self.leaving.push(server),
            }
        }
        self.wanted = wanted;
    }
}

impl Servers {
    /// None yet. Commands run in the workspace.
    pub fn new(supervisor: Supervisor, workspace: PathBuf, bus: Option<Bus>) -> Self {
        let (state, exchange) = (watch::Sender::new(State::default()), Mutex::default());
        Self { inner: Arc::new(Inner { supervisor, workspace, bus, state, exchange }) }
    }

    /// Says which servers are about to be wanted, before the agents are that name them: from here on their turns wait
    /// for what [`Self::apply`] has yet to start.
    pub fn expect(&self, agents: &Agents) {
        self.inner.state.send_modify(|state| state.want(wanted(agents)));
    }

    /// Stops servers that are not wanted any more, or not as they are, and starts those that are. Waits for the
    /// first, not for the others.
    pub async fn apply(&self, agents: &Agents) {
        let _alone = self.inner.exchange.lock().await;
        self.expect(agents);
        self.remove_leaving().await;
        let missing: Vec<(Name, McpServer)> = {
            let state = self.inner.state.borrow();
            let is_missing = |(name, _): &(&Name, &McpServer)| !state.running.contains_key(*name);
            state.wanted.iter().filter(is_missing).map(|(name, config)| (name.clone(), config.clone())).collect()
        };
        for (name, config) in missing {
            let Inner { supervisor, workspace, bus, .. } = &*self.inner;
            let server = Server::start(supervisor, &name, config, workspace, bus.clone()).await;
            self.inner.state.send_modify(|state| drop(state.running.insert(name, server)));
        }
    }

    /// Stops them all.
    pub async fn shutdown(&self) {
        let _alone = self.inner.exchange.lock().await;
        self.inner.state.send_modify(|state| state.want(BTreeMap::new()));
        self.remove_leaving().await;
    }

    async fn remove_leaving(&self) {
        let mut leaving = Vec::new();
        self.inner.state.send_modify(|state| leaving = std::mem::take(&mut state.leaving));
        join_all(leaving.iter().map(|server| server.remove(&self.inner.supervisor))).await;
    }

    /// The names of the tools that an agent's servers offer now, as `SERVER__TOOL`. It waits for none of them.
    pub fn tools_now(&self, agent: &str) -> Vec<String> {
        let state = self.inner.state.borrow();
        let mut names = Vec::new();
        for ((_, name), server) in state.running.iter().filter(|((of, _), _)| of == agent) {
            if let Some(link) = server.link_now() {
                names.extend(offers_of(name, server.tools(), &link).into_iter().map(|offer| offer.name));
            }
        }
        names
    }

    /// Every tool of an agent's servers. A server that isn't up is waited for, for a while, and then left out.
    pub(super) async fn offers(&self, agent: &str) -> Vec<Offer> {
        let mut state = self.inner.state.subscribe();
        let complete = state.wait_for(|state| state.is_complete_for(agent));
        // What isn't there after that is left out below; the sender lives as long as this.
        drop(tokio::time::timeout(EXCHANGE_PATIENCE, complete).await);
        let (servers, is_complete) = {
            let state = self.inner.state.borrow();
            let of_agent = state.running.iter().filter(|((of, _), _)| of == agent);
            let servers: Vec<(String, Server)> = of_agent.map(|((_, name), server)| (name.clone(), server.clone())).collect();
            (servers, state.is_complete_for(agent))
        };
        if !is_complete {
            tracing::warn!(agent, "MCP servers are still being exchanged; the tools of some are not offered");
        }
        let links = join_all(servers.iter().map(|(_, server)| server.link())).await;
        let mut offers = Vec::new();
        for ((name, server), link) in servers.iter().zip(links) {
            match link {
                Some(link) => offers.extend(offers_of(name, server.tools(), &link)),
                None => tracing::warn!(agent, server = name, "an MCP server does not run; its tools are not offered"),
            }
        }
        offers
    }
}

fn wanted(agents: &Agents) -> BTreeMap<Name, McpServer> {
    let models = agents.named.iter().filter(|(_, agent)| agent.runner == config::Runner::Llm);
    let of = |(name, agent): (&String, &config::Agent)| {
        let named = |(server, config): (&String, &McpServer)| ((name.clone(), server.clone()), config.clone());
        agent.mcp.iter().map(named).collect::<Vec<_>>()
    };
    models.flat_map(of).collect()
}

/// The tools of one server that the configuration lets through, and that a model can be told of.
fn offers_of(server: &str, patterns: &[String], link: &Arc<Link>) -> Vec<Offer> {
    let offer = |tool: &rmcp::model::Tool| {
        let name = format!("{server}{TOOL_SEPARATOR}{}", tool.name);
        let is_wanted = matches_any(patterns, &tool.name);
        (is_wanted && is_tellable(&name)).then(|| Offer { name, tool: tool.clone(), link: link.clone() })
    };
    link.tools.iter().filter_map(offer).collect()
}

/// Whether every provider takes it for the name of a tool.
fn is_tellable(name: &str) -> bool {
    name.len() <= TOOL_NAME_BYTES_MAX && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-')
}

/// Why a call of a tool has no result.
#[derive(Debug, thiserror::Error)]
pub(super) enum ToolFault {
    #[error("it took longer than {} s", CALL_LIMIT.as_secs())]
    TimedOut,
    #[error("{0}")]
    Reported(String),
    #[error("its server did not answer: {0}")]
    Service(#[source] ServiceError),
}

/// One tool of a server that ran when the turn began.
#[derive(Debug, Clone)]
pub(super) struct Offer {
    /// `SERVER__TOOL`.
    pub(super) name: String,
    tool: rmcp::model::Tool,
    link: Arc<Link>,
}

impl Offer {
    pub(super) fn description(&self) -> Option<&str> {
        self.tool.description.as_deref()
    }

    /// The JSON schema of the arguments.
    pub(super) fn schema(&self) -> &Map<String, Value> {
        &self.tool.input_schema
    }

    /// Calls the tool. When this is dropped, the server is told that nobody waits any more.
    ///
    /// # Errors
    /// When the tool failed, took too long, or its server is gone.
    pub(super) async fn call(&self, arguments: Map<String, Value>) -> Result<String, ToolFault> {
        let params = CallToolRequestParams::new(self.tool.name.clone()).with_arguments(arguments);
        let called = tokio::time::timeout(CALL_LIMIT, self.link.peer.call_tool(params)).await;
        let result = called.map_err(|_| ToolFault::TimedOut)?.map_err(ToolFault::Service)?;
        let text = head(&text_of(&result), RESULT_BYTES_MAX);
        if result.is_error == Some(true) { Err(ToolFault::Reported(text)) } else { Ok(text) }
    }
}

/// A result as text. What isn't text is named only: it would be of no use as such.
fn text_of(result: &CallToolResult) -> String {
    let mut parts = Vec::new();
    for block in &result.content {
        // By way of JSON, whose names are the protocol's: the crate's types grow with each version.
        let Ok(block) = serde_json::to_value(block) else { continue };
        let text = |key: &str| block.pointer(key).and_then(Value::as_str);
        parts.push(match (text("/type"), text("/text"), text("/resource/text")) {
            (Some("text"), Some(text), _) | (Some("resource"), _, Some(text)) => text.to_owned(),
            (kind, _, _) => {
                let about = text("/uri").or(text("/resource/uri")).or(text("/mimeType")).unwrap_or("without a name");
                format!("[{}, {about}: left out]", kind.unwrap_or("content"))
            }
        });
    }
    match &result.structured_content {
        Some(value) if parts.is_empty() => value.to_string(),
        Some(_) | None => parts.join("\n"),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use serde_json::json;

    #[test]
    fn only_names_that_every_provider_takes_are_told() {
        assert!(is_tellable("files__read-all_2"));
        for name in ["files__a.b", "files__a b", "files__ä", &format!("files__{}", "x".repeat(58))] {
            assert!(!is_tellable(name), "{name}");
        }
    }

    #[test]
    fn a_result_is_text_and_names_what_is_not() {
        let read = |value: Value| text_of(&serde_json::from_value(value).unwrap());
        let mixed = json!({"content": [
            {"type": "text", "text": "one"},
            {"type": "image", "data": "QUJD", "mimeType": "image/png"},
            {"type": "text", "text": "two"},
        ]});
        assert_eq!(read(mixed), "one\n[image, image/png: left out]\ntwo");
        assert_eq!(read(json!({"content": [], "structuredContent": {"a": 1}})), r#"{"a":1}"#);
        assert_eq!(read(json!({"content": []})), "");
    }
}
