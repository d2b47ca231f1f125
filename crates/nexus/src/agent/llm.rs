//! The `llm` runner: a turn is a streamed chat completion, and one more after each round of tool calls, with what was
//! said to the agent meanwhile. This module and those below it are the only ones that know the `genai` crate. Keeps no
//! conversation, and reads keys and prompts anew for each turn.
//!
//! `genai` collects one event of a stream, and the body of an error answer, whole before it hands
//! them over; what a server may send is bounded below it, by `relay`.

mod answer;
mod event_bound;
mod fault;
mod provider;
mod relay;
mod talk;
mod text_file;
mod tools;

use std::path::{Path, PathBuf};
use std::time::Duration;

use genai::chat::{ChatMessage, ChatRequest};
use genai::resolver::{AuthData, Endpoint};
use genai::{ModelIden, ServiceTarget};
use nexus_core::config::{Agent, Provider};
use nexus_core::spend::Allowance;
use reqwest::Url;
use secrecy::{ExposeSecret, SecretString};

use self::fault::{Fault, no_way};
use self::relay::{Destination, Relay};
use self::talk::Talk;
use self::text_file::Audience;
use self::tools::Toolbox;
use super::mcp::Servers;
use super::{AgentError, Finished, Input, Role, Sink, Turn, notes, plain};

pub use self::event_bound::EVENT_BYTES_MAX;
pub use self::relay::RESPONSE_BYTES_MAX;
pub use self::talk::TALK_BYTES_MAX;
pub use self::text_file::TextFileError;
pub use self::tools::RECORDED_BYTES_MAX;
pub(super) use self::tools::head;

/// How long an endpoint may be silent, before its headers or between two reads of its stream.
pub const STREAM_IDLE_MS: u64 = 60_000;

/// The longest system prompt, in bytes.
pub const SYSTEM_PROMPT_BYTES_MAX: u64 = 256 * 1024;

/// The longest key file, in bytes.
pub const KEY_BYTES_MAX: u64 = 8 * 1024;

/// The most reasoning of one turn, in bytes. It is passed on and not kept.
pub const REASONING_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Where the key of an endpoint comes from, each time it is needed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeySource {
    /// The endpoint wants none; no `Authorization` header is sent.
    None,
    /// A variable of the daemon's own environment.
    Env(String),
    /// A file that only its owner may read. White space around the key is dropped.
    File(PathBuf),
}

/// An endpoint and what to ask of it.
#[derive(Debug, Clone)]
pub struct LlmEndpoint {
    /// Whose wire format it speaks.
    pub provider: Provider,
    /// The API base, such as `http://127.0.0.1:8080/v1/`, or the full address under it.
    pub url: String,
    /// The model's name, passed on as it is.
    pub model: String,
    pub key: KeySource,
    pub system_prompt_file: Option<PathBuf>,
    /// How long the endpoint may be silent; normally [`STREAM_IDLE_MS`].
    pub stream_idle: Duration,
    pub max_tokens: Option<u32>,
    /// Rounds of tool calls in one turn.
    pub tool_rounds_max: u32,
}

/// What one turn has instead of what is configured, or beside it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Wishes {
    /// Instead of the system prompt of the file.
    pub system: Option<String>,
    /// The longest answer.
    pub max_tokens: Option<u32>,
    /// Budgets besides the turn's own.
    pub allowances: Vec<Allowance>,
}

/// Runs turns against one endpoint, each question on a connection of its own.
#[derive(Debug)]
pub struct LlmRunner {
    agent: String,
    base: Url,
    destination: Destination,
    endpoint: LlmEndpoint,
    /// Where its tools come from, if it has any.
    servers: Option<Servers>,
}

impl LlmRunner {
    /// Takes an agent's configuration; file names are relative to the workspace.
    ///
    /// # Errors
    /// [`AgentError::Config`] if `url` or `model` is missing or unusable, or both `key_file` and
    /// `key_env` are set.
    pub fn new(agent: &Agent, name: impl Into<String>, workspace: &Path, servers: &Servers) -> Result<LlmRunner, AgentError> {
        let runner = LlmRunner::alone(agent, name, workspace)?;
        Ok(LlmRunner { servers: (!agent.mcp.is_empty()).then(|| servers.clone()), ..runner })
    }

    /// The same for an agent without tools.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn alone(agent: &Agent, name: impl Into<String>, workspace: &Path) -> Result<LlmRunner, AgentError> {
        let name = name.into();
        let missing = |key: &str, example: &str| misconfigured(&name, format!("`{key}` is missing, for example `{key}: {example}`"));
        let in_workspace = |file: &String| workspace.join(file);
        let key = match (&agent.key_file, &agent.key_env) {
            (None, None) => KeySource::None,
            (None, Some(variable)) => KeySource::Env(variable.clone()),
            (Some(file), None) => KeySource::File(in_workspace(file)),
            (Some(_), Some(_)) => {
                let problem = "both `key_file` and `key_env` are set: remove one";
                return Err(misconfigured(&name, problem));
            }
        };
        let url = agent.url.as_deref().or(agent.provider.default_url());
        let endpoint = LlmEndpoint {
            provider: agent.provider,
            url: url.ok_or_else(|| missing("url", "http://127.0.0.1:8080/v1/"))?.to_owned(),
            model: agent.model.clone().ok_or_else(|| missing("model", "llama3.2"))?,
            key,
            system_prompt_file: agent.system_prompt_file.as_ref().map(in_workspace),
            stream_idle: Duration::from_millis(STREAM_IDLE_MS),
            max_tokens: agent.max_tokens,
            tool_rounds_max: agent.tool_rounds_max,
        };
        LlmRunner::connect_to(name, endpoint)
    }

    /// Prepares to talk to an endpoint, without tools. Connects to nothing yet.
    ///
    /// # Errors
    /// [`AgentError::Config`] if the URL is unusable or, for https, the system has no certificates.
    pub fn connect_to(agent: impl Into<String>, endpoint: LlmEndpoint) -> Result<LlmRunner, AgentError> {
        let agent = agent.into();
        let base = provider::api_base(endpoint.provider, &endpoint.url).map_err(|problem| misconfigured(&agent, problem))?;
        let destination = Destination::new(&base, endpoint.provider);
        let destination = destination.map_err(|error| misconfigured(&agent, format!("failed to prepare https: {error}")))?;
        Ok(LlmRunner { agent, base, destination, endpoint, servers: None })
    }

    /// Runs one turn. Dropping the future closes the connection. What comes by `input` is told with the next question
    /// behind a round of tool calls; without tools it takes none.
    ///
    /// # Errors
    /// See [`AgentError`]; a status of 408, 425, 429 or 5xx, no connection, silence and an answer
    /// that broke off are retryable.
    pub async fn run(&self, turn: &Turn, out: &Sink, input: Option<Input>) -> Result<Finished, AgentError> {
        self.answer(turn, &Wishes::default(), self.servers.as_ref(), out, input).await
    }

    /// As [`Self::run`], with wishes of the caller's own and without tools.
    ///
    /// # Errors
    /// As [`Self::run`].
    pub async fn run_with(&self, turn: &Turn, wishes: &Wishes, out: &Sink) -> Result<Finished, AgentError> {
        self.answer(turn, wishes, None, out, None).await
    }

    async fn answer(
        &self,
        turn: &Turn,
        wishes: &Wishes,
        servers: Option<&Servers>,
        out: &Sink,
        input: Option<Input>,
    ) -> Result<Finished, AgentError> {
        let key = self.key().await?;
        let request = self.request(turn, wishes.system.as_deref()).await?;
        let toolbox = match servers {
            Some(servers) => Toolbox::open(servers, turn, &self.agent).await,
            None => Toolbox::default(),
        };
        let max_tokens = wishes.max_tokens.or(self.endpoint.max_tokens);
        let allowances = turn.allowance.iter().chain(&wishes.allowances).cloned().collect();
        let mut talk = Talk::new(self, key, request, max_tokens, toolbox, allowances);
        talk.deadline = turn.deadline;
        talk.listen(input);
        let ended = talk.rounds(out).await;
        let (content, usage) = (talk.answer.content, talk.usage);
        match ended {
            Ok(stop_reason) => {
                let (model, provider) = (Some(self.endpoint.model.clone()), self.base.host_str().map(str::to_owned));
                Ok(Finished { content, usage, stop_reason, model, provider })
            }
            Err(fault) => Err(self.failed(fault, content)),
        }
    }

    /// Bytes of the system prompt; 0 for one that can't be read, which the turn will tell.
    pub(super) async fn prompt_bytes(&self) -> usize {
        let Some(path) = &self.endpoint.system_prompt_file else { return 0 };
        let bytes = tokio::fs::metadata(path).await.map_or(0, |file| file.len().min(SYSTEM_PROMPT_BYTES_MAX));
        usize::try_from(bytes).unwrap_or(usize::MAX)
    }

    async fn key(&self) -> Result<Option<SecretString>, AgentError> {
        let (key, origin) = match &self.endpoint.key {
            KeySource::None => return Ok(None),
            KeySource::Env(name) => {
                let problem = || format!("`key_env`: `{name}` is not set for the daemon");
                let key = std::env::var(name).map_err(|_| misconfigured(&self.agent, problem()))?;
                (key, format!("`key_env` ({name})"))
            }
            KeySource::File(path) => {
                let key = text_file::read(path, KEY_BYTES_MAX, Audience::OwnerOnly).await;
                (key.map_err(|source| self.bad_file(source))?, "`key_file`".to_owned())
            }
        };
        let key = SecretString::from(key.trim().to_owned());
        let visible = |byte: u8| byte.is_ascii_graphic();
        if key.expose_secret().is_empty() || !key.expose_secret().bytes().all(visible) {
            let problem = format!("{origin} must hold one line of visible ASCII: the key alone");
            return Err(misconfigured(&self.agent, problem));
        }
        Ok(Some(key))
    }

    async fn request(&self, turn: &Turn, system: Option<&str>) -> Result<ChatRequest, AgentError> {
        let earlier = turn.history.iter().map(|message| match message.role {
            Role::User => ChatMessage::user(message.text()),
            Role::Assistant => ChatMessage::assistant(message.content.as_str()),
        });
        let notes = notes::text(&turn.memory).map(ChatMessage::system);
        let question = ChatMessage::user(plain::with_attached(&turn.text, &turn.attachments));
        let messages = notes.into_iter().chain(earlier).chain([question]).collect();
        let request = ChatRequest::from_messages(messages);
        if let Some(system) = system.or(turn.instructions.as_deref()) {
            return Ok(request.with_system(system));
        }
        let Some(path) = &self.endpoint.system_prompt_file else { return Ok(request) };
        let prompt = text_file::read(path, SYSTEM_PROMPT_BYTES_MAX, Audience::Anyone).await;
        Ok(request.with_system(prompt.map_err(|source| self.bad_file(source))?))
    }

    /// What the next question goes through.
    fn way(&self) -> Result<(Relay, genai::Client), Fault> {
        let relay = Relay::open(&self.destination).map_err(|error| no_way(&error))?;
        let unusable = |problem: String| Fault::endpoint(format!("failed to prepare the HTTP client: {problem}"), false);
        let web = provider::web_client(relay.path()).map_err(|error| unusable(format!("{error:?}")))?;
        let client = genai::Client::builder().with_reqwest(web).build().map_err(|error| unusable(error.to_string()))?;
        Ok((relay, client))
    }

    /// The address and headers are set outright: it is the one way to send no `Authorization`.
    fn target(&self, key: Option<&SecretString>) -> ServiceTarget {
        let (provider, model) = (self.endpoint.provider, self.endpoint.model.as_str());
        let url = provider::plain_address(provider, &self.base, model).into();
        ServiceTarget {
            endpoint: Endpoint::from_owned(self.base.as_str()),
            auth: AuthData::RequestOverride { url, headers: provider::headers(provider, key) },
            model: ModelIden::new(provider::kind(provider), model),
        }
    }

    fn failed(&self, fault: Fault, partial: String) -> AgentError {
        let agent = self.agent.clone();
        match fault {
            Fault::Endpoint { problem, retryable, retry_after, is_unworked } => {
                AgentError::Endpoint { agent, problem, retryable, retry_after, is_unworked, partial }
            }
            Fault::Stalled => {
                let idle_ms = self.endpoint.stream_idle.as_millis();
                let idle_ms = u64::try_from(idle_ms).unwrap_or(u64::MAX);
                AgentError::Stalled { agent, idle_ms, partial }
            }
            Fault::Unfinished { problem } => AgentError::Unfinished { agent, problem, partial },
            Fault::TooLarge { what, limit_bytes } => AgentError::TooLarge { agent, what, limit_bytes, partial },
            Fault::Exhausted { problem } => AgentError::Exhausted { agent, problem, partial },
        }
    }

    fn bad_file(&self, source: TextFileError) -> AgentError {
        AgentError::File { agent: self.agent.clone(), source }
    }
}

fn misconfigured(agent: &str, problem: impl Into<String>) -> AgentError {
    AgentError::Config { agent: agent.to_owned(), problem: problem.into() }
}
