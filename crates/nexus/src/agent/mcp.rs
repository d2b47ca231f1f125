//! Tools from MCP servers: which servers run, what each offers, and a call of a tool. This module and those
//! below it are the only ones that know the `rmcp` crate. A server is a supervised child like every other, one
//! for each agent that names it; what a turn may call is for the turn's runner to say.

mod guard;
mod server;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::join_all;
use nexus_core::config::{self, Agents, McpServer, TOOL_SEPARATOR};
use nexus_core::tool_filter::matches_any;
use rmcp::ServiceError;
use rmcp::model::{CallToolRequestParams, CallToolResult};
use serde_json::{Map, Value};

use self::server::{Link, Server};
use super::llm::head;
use crate::supervisor::Supervisor;

/// How long one call of a tool may take.
const CALL_LIMIT: Duration = Duration::from_secs(60);

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
    running: Mutex<BTreeMap<Name, Server>>,
}

impl Servers {
    /// None yet. Commands run in the workspace.
    pub fn new(supervisor: Supervisor, workspace: PathBuf) -> Self {
        Self { inner: Arc::new(Inner { supervisor, workspace, running: Mutex::default() }) }
    }

    /// Stops servers that are not wanted any more, or not as they are, and starts those that are. Waits for the
    /// first, not for the others.
    pub async fn apply(&self, agents: &Agents) {
        let mut wanted = wanted(agents);
        let gone: Vec<Server> = {
            let mut running = self.lock();
            let other = |name: &Name, server: &Server| wanted.get(name).is_none_or(|config| !server.is_as(config));
            let names: Vec<Name> = running.iter().filter(|(name, server)| other(name, server)).map(|(name, _)| name.clone()).collect();
            names.iter().filter_map(|name| running.remove(name)).collect()
        };
        join_all(gone.iter().map(|server| server.remove(&self.inner.supervisor))).await;
        {
            let mut running = self.lock();
            for (name, server) in running.iter_mut() {
                if let Some(config) = wanted.remove(name) {
                    server.set_tools(config.tools);
                }
            }
        }
        for (name, config) in wanted {
            let server = Server::start(&self.inner.supervisor, &name.0, &name.1, config, &self.inner.workspace).await;
            self.lock().insert(name, server);
        }
    }

    /// Stops them all.
    pub async fn shutdown(&self) {
        let all: Vec<Server> = std::mem::take(&mut *self.lock()).into_values().collect();
        join_all(all.iter().map(|server| server.remove(&self.inner.supervisor))).await;
    }

    /// Every tool of an agent's servers. A server that isn't up is waited for, for a while, and then left out.
    pub(super) async fn offers(&self, agent: &str) -> Vec<Offer> {
        let servers: Vec<(String, Server)> = {
            let running = self.lock();
            running.iter().filter(|((of, _), _)| of == agent).map(|((_, name), server)| (name.clone(), server.clone())).collect()
        };
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

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<Name, Server>> {
        self.inner.running.lock().unwrap_or_else(PoisonError::into_inner)
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
