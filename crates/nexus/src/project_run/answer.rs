//! One event, answered: by the agent that it speaks to, through the runner of the configured agent, with what the
//! definition says of it as its prompt. The answer is published before the event counts as answered.

use super::link::Link;
use crate::agent::mcp::Servers;
use crate::agent::{Finished, Output, Remembers, Runner, Sender, Turn, plain};
use crate::error_text::describe;
use crate::nostr::{Answered, reply};
use crate::project::prepare::{Prepared, ProjectAgent};
use crate::project::process::Context;
use crate::project::protocol::{Complete, EventFrame, Received, Up};
use nexus_core::chunk::chunk;
use nexus_core::config::{self, TOOL_SEPARATOR, Tools};
use nexus_core::tool_filter::permits;
use serde_json::{Value, json};
use std::num::NonZeroUsize;
use tokio::sync::mpsc;

/// Pieces of output that may wait to be sent.
const OUTPUT_MAX: usize = 64;
/// Longest text of one event, in characters; of four bytes each they fit into what relays take.
const TEXT_CHARS_MAX: NonZeroUsize = NonZeroUsize::new(12_000).expect("it is not 0");
/// Characters of an id that tell people which event is meant.
const SHORT_ID_CHARS: usize = 8;

/// What answers are made with.
#[derive(Debug)]
pub(super) struct Desk {
    pub(super) project: Prepared,
    /// The configured agent's model, or its runner where it has none.
    pub(super) model: String,
    /// Names of the MCP servers whose tools there are.
    servers: Vec<String>,
    /// Those servers, where they are started, and the configured agent whose they are.
    started: Option<(Servers, String)>,
    runner: Runner,
    link: Link,
}

impl Desk {
    pub(super) fn new(context: Context, agent: &config::Agent, runner: Runner, link: Link) -> Self {
        let model = agent.model.clone().unwrap_or_else(|| agent.runner.to_string());
        Self { project: context.project, model, servers: agent.mcp.keys().cloned().collect(), started: None, runner, link }
    }

    /// With the servers of the configured agent `name`, of which the tools are told.
    pub(super) fn with_servers(self, servers: Option<Servers>, name: String) -> Self {
        Self { started: servers.map(|servers| (servers, name)), ..self }
    }

    /// The tools of servers that are up, each with the agents that may call it as far as the project says so.
    pub(super) fn tools(&self) -> Vec<(String, Vec<&str>)> {
        let names = self.started.as_ref().map(|(servers, name)| servers.tools_now(name)).unwrap_or_default();
        callable(names, &self.project.agents, &self.servers)
    }

    pub(super) fn manager(&self) -> Option<&ProjectAgent> {
        self.project.agents.iter().find(|agent| agent.manager).or(self.project.agents.first())
    }

    /// The agent that the event speaks to by a `p` tag, else the manager, else the first.
    fn addressed(&self, event: &Received) -> Option<&ProjectAgent> {
        let spoken_to = event.tags.iter().filter(|tag| tag.first().is_some_and(|name| name == "p")).filter_map(|tag| tag.get(1));
        let mut agents = spoken_to.filter_map(|pubkey| self.project.agents.iter().find(|agent| agent.is_named(pubkey)));
        agents.next().or_else(|| self.manager())
    }

    /// Answers one event, and tells the daemon all of it.
    pub(super) async fn answer(&self, frame: EventFrame) {
        let id = frame.id.clone();
        self.link.send(Up::Accepted { id: id.clone() }).await;
        let short: String = frame.event.id.chars().take(SHORT_ID_CHARS).collect();
        self.link.send(Up::Status { text: format!("answering {short}") }).await;
        let complete = match self.answered(frame).await {
            Ok(Finished { content, usage, model, provider, .. }) => Complete { id, content, usage, model, provider, error: None },
            Err(error) => Complete { id, error: Some(error), ..Complete::default() },
        };
        self.link.send(Up::Complete(Box::new(complete))).await;
        self.link.send(Up::Status { text: "idle".to_owned() }).await;
    }

    async fn answered(&self, frame: EventFrame) -> Result<Finished, String> {
        let agent = self.addressed(&frame.event).ok_or("the project has no agents")?;
        let (id, event) = (frame.id.clone(), frame.event.clone());
        let turn = self.turn(agent, frame);
        let (sink, mut output) = mpsc::channel(OUTPUT_MAX);
        let running = self.runner.run(&turn, &sink, None);
        tokio::pin!(running);
        let result = loop {
            tokio::select! {
                // Output first: what was said before the end belongs to it.
                biased;
                Some(piece) = output.recv() => self.stream(&id, piece).await,
                result = &mut running => break result,
            }
        };
        while let Ok(piece) = output.try_recv() {
            self.stream(&id, piece).await;
        }
        let finished = result.map_err(|error| describe(&error))?;
        self.publish(agent, &id, &event, &finished.content).await?;
        Ok(finished)
    }

    async fn stream(&self, id: &str, output: Output) {
        self.link.send(Up::Stream { id: id.to_owned(), output }).await;
    }

    /// Long texts are split, never cut off.
    async fn publish(&self, agent: &ProjectAgent, id: &str, event: &Received, content: &str) -> Result<(), String> {
        if content.trim().is_empty() {
            return Ok(());
        }
        let project = self.project.coordinate.to_string();
        let pieces = if content.chars().count() > TEXT_CHARS_MAX.get() { chunk(content, TEXT_CHARS_MAX) } else { vec![content.to_owned()] };
        let answered = Answered { id: &event.id, pubkey: &event.pubkey, kind: event.kind, tags: &event.tags, relay: "" };
        for piece in pieces {
            let template = reply(answered, piece, Some(&agent.pubkey), Some(&project));
            let published = self.link.publish(&agent.slug, template, Some(id.to_owned())).await;
            published.map_err(|error| format!("the answer was not published: {error}"))?;
        }
        Ok(())
    }

    fn turn(&self, agent: &ProjectAgent, frame: EventFrame) -> Turn {
        Turn {
            run_id: format!("prj_{}", ulid::Ulid::generate()),
            session_label: format!("project:{}", self.project.slug),
            parent_turn_id: None,
            agent: agent.slug.clone(),
            text: said(&frame.sender, &frame.event.content),
            content: frame.event.content,
            attachments: Value::Null,
            sender: frame.sender,
            channel: crate::nostr::ADAPTER.to_owned(),
            capabilities: json!({ "supports_markdown": true, "text_limit": TEXT_CHARS_MAX.get() }),
            history: frame.history,
            memory: Vec::new(),
            permissions: narrowed(frame.permissions, agent, &self.servers),
            allowance: None,
            deadline: None,
            instructions: Some(instructions(agent, &self.project.title)),
            remembers: Remembers::Session,
            project: None,
        }
    }
}

/// A message of the project, in which several may speak.
fn said(sender: &Sender, content: &str) -> String {
    let words = if content.trim().is_empty() { plain::wordless("a message") } else { content.to_owned() };
    plain::named(&plain::name(sender.name.as_deref().unwrap_or(&sender.id)), &words)
}

/// What an agent may call: of what access control allows those tools that it names and that were approved. A name fits a
/// tool with or without its server before it. An agent that names none is not limited by that.
fn narrowed(mut permissions: Value, agent: &ProjectAgent, servers: &[String]) -> Value {
    if !agent.names_tools {
        return permissions;
    }
    let tools = tools_of(&permissions);
    let spellings = |tool: &String| {
        let of_servers = servers.iter().map(move |server| format!("{server}{TOOL_SEPARATOR}{tool}"));
        std::iter::once(tool.clone()).chain(of_servers).collect::<Vec<_>>()
    };
    let plain = agent.tools.iter().filter(|tool| !tool.contains('*')); // what was approved is a name, no pattern
    let allow: Vec<String> = plain.flat_map(spellings).filter(|name| permits(&tools, name)).collect();
    let allowed = json!({ "allow": allow, "deny": tools.deny });
    match permissions.as_object_mut() {
        Some(known) => drop(known.insert("tools".to_owned(), allowed)),
        None => permissions = json!({ "tools": allowed }),
    }
    permissions
}

/// What permissions say of tools; none are allowed where that can't be read.
fn tools_of(permissions: &Value) -> Tools {
    permissions.get("tools").and_then(|tools| serde_json::from_value(tools.clone()).ok()).unwrap_or_default()
}

/// Who of the agents may call which tool. What nobody may call is left out.
fn callable<'a>(names: Vec<String>, agents: &'a [ProjectAgent], servers: &[String]) -> Vec<(String, Vec<&'a str>)> {
    let all = json!({ "tools": { "allow": ["*"], "deny": [] } });
    let allowed: Vec<(&str, Tools)> =
        agents.iter().map(|agent| (agent.slug.as_str(), tools_of(&narrowed(all.clone(), agent, servers)))).collect();
    let of = |name: &str| allowed.iter().filter(|(_, tools)| permits(tools, name)).map(|(slug, _)| *slug).collect::<Vec<_>>();
    let each = names.into_iter().map(|name| {
        let who = of(&name);
        (name, who)
    });
    each.filter(|(_, who)| !who.is_empty()).collect()
}

/// What the model is told of who it is.
fn instructions(agent: &ProjectAgent, title: &str) -> String {
    let role = if agent.role.is_empty() { String::new() } else { format!(", {}", agent.role) };
    let who = format!("You are {}{role}, in the project \"{title}\".", agent.name);
    let told = [who.as_str(), &agent.description, &agent.instructions];
    told.into_iter().map(str::trim).filter(|text| !text.is_empty()).collect::<Vec<_>>().join("\n\n")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::agent::Sender;
    use crate::project::coordinate::Coordinate;
    use crate::project::protocol::read_up;
    use tokio::io::{AsyncBufReadExt, BufReader};
    use tokio::net::unix::pipe;

    fn agent(slug: &str, manager: bool) -> ProjectAgent {
        ProjectAgent {
            slug: slug.into(),
            name: slug.to_uppercase(),
            role: String::new(),
            description: String::new(),
            instructions: "Be brief.".into(),
            use_criteria: String::new(),
            tools: Vec::new(),
            names_tools: false,
            event_id: None,
            pubkey: format!("key-{slug}"),
            roster_key: Some(format!("roster-{slug}")),
            manager,
        }
    }

    /// A desk, and what it tells the daemon.
    fn desk(agents: Vec<ProjectAgent>) -> (Desk, BufReader<pipe::Receiver>) {
        let (up, told) = pipe::pipe().unwrap();
        let coordinate = Coordinate::parse(&format!("31933:{}:demo", "a".repeat(64))).unwrap();
        let project = Prepared {
            slug: coordinate.slug(),
            coordinate,
            path: "/".into(),
            title: "Demo".into(),
            agents,
            mcp: Vec::new(),
            missing: Vec::new(),
            definition_id: "d".into(),
            problems: Vec::new(),
        };
        let context = Context { version: 1, project, agent: "echo".into(), secrets: Vec::new() };
        (Desk::new(context, &config::Agent::default(), Runner::Echo, Link::new(up)), BufReader::new(told))
    }

    fn frame(content: &str, tags: &[&[&str]]) -> EventFrame {
        let tags = tags.iter().map(|parts| parts.iter().map(|part| (*part).to_owned()).collect()).collect();
        let event = Received { id: "e".repeat(64), pubkey: "author".into(), kind: 1, content: content.into(), tags, ..Received::default() };
        let sender = Sender { id: "author".into(), name: None, principal: "known".into() };
        EventFrame { id: "nostr:e".into(), event, sender, history: Vec::new(), permissions: Value::Null }
    }

    async fn next(told: &mut BufReader<pipe::Receiver>) -> Up {
        let mut line = String::new();
        told.read_line(&mut line).await.unwrap();
        read_up(line.trim_end().as_bytes()).unwrap()
    }

    #[tokio::test]
    async fn an_answer_is_accepted_streamed_published_and_then_complete() {
        let (desk, mut told) = desk(vec![agent("one", false), agent("pm", true)]);
        let link = desk.link.clone();
        let answering = desk.answer(frame("hello", &[]));
        let listening = async {
            let mut kinds = Vec::new();
            loop {
                match next(&mut told).await {
                    Up::Accepted { .. } => kinds.push("accepted"),
                    Up::Status { .. } => kinds.push("status"),
                    Up::Stream { output, .. } => {
                        assert_eq!(output, Output::Token("hello".into()));
                        kinds.push("stream");
                    }
                    Up::Publish(publish) => {
                        assert_eq!((publish.agent.as_str(), publish.about.as_deref()), ("pm", Some("nostr:e")));
                        assert_eq!((publish.template.kind, publish.template.content.as_str()), (1, "hello"));
                        link.acknowledged(publish.id, Some("id".into()), None);
                        kinds.push("publish");
                    }
                    Up::Complete(complete) => {
                        assert_eq!((complete.content.as_str(), complete.error), ("hello", None));
                        kinds.push("complete");
                        return kinds;
                    }
                    Up::Ready { .. } | Up::Log { .. } | Up::Pong { .. } => kinds.push("other"),
                }
            }
        };
        let ((), kinds) = tokio::join!(answering, listening);
        assert_eq!(kinds, ["accepted", "status", "stream", "publish", "complete"]);
    }

    #[test]
    fn the_one_spoken_to_answers_else_the_manager_else_the_first() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let _inside = runtime.enter();
        let (both, _told) = desk(vec![agent("one", false), agent("pm", true)]);
        let of = |tags: &[&[&str]]| both.addressed(&frame("x", tags).event).map(|agent| agent.slug.clone());
        assert_eq!(of(&[]).as_deref(), Some("pm"));
        assert_eq!(of(&[&["p", "nobody"], &["p", "key-one"]]).as_deref(), Some("one"));
        assert_eq!(of(&[&["p", "roster-one"]]).as_deref(), Some("one"), "as the definition names it");
        let (alone, _told) = desk(vec![agent("one", false)]);
        assert_eq!(alone.addressed(&frame("x", &[]).event).map(|agent| agent.slug.as_str()), Some("one"));
        let (empty, _told) = desk(Vec::new());
        assert!(empty.addressed(&frame("x", &[]).event).is_none());
    }

    #[test]
    fn an_agent_calls_what_it_names_if_that_was_approved_and_is_allowed() {
        let servers = ["files".to_owned(), "shell".to_owned()];
        let named = |tools: &[&str]| {
            let tools = tools.iter().map(|tool| (*tool).to_owned()).collect();
            ProjectAgent { tools, names_tools: true, ..agent("pm", true) }
        };
        let all = json!({ "tools": { "allow": ["*"], "deny": ["shell__*"] }, "credentials": "none" });
        let left = narrowed(all.clone(), &named(&["read", "files__write", "*"]), &servers);
        let allow = ["read", "files__read", "files__write", "files__files__write"];
        assert_eq!(left, json!({ "tools": { "allow": allow, "deny": ["shell__*"] }, "credentials": "none" }));
        assert_eq!(narrowed(all.clone(), &named(&[]), &servers)["tools"]["allow"], json!([]), "nothing was approved");
        assert_eq!(narrowed(all.clone(), &agent("pm", true), &servers), all, "it names none");
        assert_eq!(narrowed(Value::Null, &named(&["read"]), &servers)["tools"]["allow"], json!([]), "access control allows nothing");
    }

    #[test]
    fn a_tool_is_told_with_those_who_may_call_it() {
        let named = |slug: &str, tools: &[&str]| {
            let tools = tools.iter().map(|tool| (*tool).to_owned()).collect();
            ProjectAgent { tools, names_tools: true, ..agent(slug, false) }
        };
        let names = || ["files__read", "files__write"].map(str::to_owned).to_vec();
        let servers = ["files".to_owned()];
        let of = |agents: &[ProjectAgent]| -> Vec<(String, Vec<String>)> {
            let told = callable(names(), agents, &servers);
            told.into_iter().map(|(name, who)| (name, who.into_iter().map(str::to_owned).collect())).collect()
        };
        let told = of(&[agent("pm", true), named("reader", &["read"]), named("unapproved", &[])]);
        let of_reading = ("files__read".to_owned(), vec!["pm".to_owned(), "reader".to_owned()]);
        assert_eq!(told, [of_reading, ("files__write".to_owned(), vec!["pm".to_owned()])]);
        assert_eq!(of(&[named("reader", &["read"])]).len(), 1, "what nobody may call is not told");
    }

    #[test]
    fn an_agent_knows_who_and_where_it_is() {
        let told = instructions(&ProjectAgent { role: "a reviewer".into(), ..agent("pm", true) }, "Demo");
        assert_eq!(told, "You are PM, a reviewer, in the project \"Demo\".\n\nBe brief.");
    }
}
