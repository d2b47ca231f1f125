//! One turn of an agent: what goes in, what streams out, how it ends, how it fails, and which
//! runner does it. Never decides when a turn runs, never retries it, enforces no time limit and
//! stores nothing; dropping the future of [`Runner::run`] is how a turn is cancelled.

pub mod acp;
pub mod command;
pub mod command_output;
pub mod echo;
mod error;
pub mod llm;
pub mod mcp;
mod notes;
pub(crate) mod plain;
pub mod project;
pub mod questions;
mod status;
mod steer;

use nexus_core::config::Tools;
use nexus_core::spend::Allowance;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tokio::time::Instant;

pub use error::{AgentError, TRIES_MAX, pause_after};
pub use steer::{Input, Steer};

/// The longest answer a runner collects, in bytes of UTF-8. A longer one fails the turn.
pub const MAX_ANSWER_BYTES: usize = 1024 * 1024;

/// Where a runner sends what it produces while it runs. The channel is bounded: awaiting it is the
/// back-pressure. A closed channel does not end the turn, since the whole answer is returned too.
pub type Sink = mpsc::Sender<Output>;

/// Everything an agent is told about one message it has to answer.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Turn {
    pub run_id: String,
    pub session_label: String,
    pub agent: String,
    /// The text of the message.
    pub content: String,
    /// The same for an agent that is told nothing but text: behind its sender's name where others may speak, and never empty.
    pub text: String,
    /// The event's attachments as they came: an array, or null.
    pub attachments: serde_json::Value,
    pub sender: Sender,
    pub channel: String,
    /// The channel's capabilities as its adapter's `info` tells them, or null.
    pub capabilities: serde_json::Value,
    /// The turn before this one in its session, as far as the ledger knows.
    pub parent_turn_id: Option<String>,
    /// Earlier messages of the session, oldest first, without the one to answer.
    pub history: Vec<Message>,
    /// What else of the past may belong to the message, best first. Texts of others, to be trusted no more
    /// than the message itself.
    pub memory: Vec<Memory>,
    /// What access control allows this run.
    pub permissions: serde_json::Value,
    /// What this run may use, where the agent has a budget.
    pub allowance: Option<Allowance>,
    /// When the turn is ended, where somebody does that.
    #[serde(skip)]
    pub deadline: Option<Instant>,
    /// Instead of the system prompt that is configured: what a project's definition says of its agent.
    pub instructions: Option<String>,
    /// What an agent that remembers conversations by itself may know of this one.
    #[serde(skip)]
    pub remembers: Remembers,
    /// What the process of a project is handed, where the event is one's.
    #[serde(skip)]
    pub project: Option<project::ProjectTurn>,
}

impl Turn {
    /// A message by itself: without a session, a past or anything that it is allowed.
    pub fn of_message(run_id: String, agent: String, content: String, sender: Sender) -> Self {
        Self {
            run_id,
            session_label: String::new(),
            agent,
            text: content.clone(),
            content,
            attachments: serde_json::Value::Null,
            sender,
            channel: String::new(),
            capabilities: serde_json::Value::Null,
            parent_turn_id: None,
            history: Vec::new(),
            memory: Vec::new(),
            permissions: serde_json::Value::Null,
            allowance: None,
            deadline: None,
            instructions: None,
            remembers: Remembers::Nothing,
            project: None,
        }
    }

    /// The tools that access control allows and denies. What can't be read allows nothing.
    fn tools(&self) -> Tools {
        let tools = self.permissions.get("tools").and_then(|tools| serde_json::from_value(tools.clone()).ok());
        tools.unwrap_or_default()
    }
}

/// What may be known of a session beyond the message, as `data_access` of its request says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Remembers {
    /// Nothing of it.
    #[default]
    Nothing,
    /// The turns in which nobody else spoke than this one, by a key of ours.
    Own(String),
    /// All.
    Session,
}

/// Who wrote the message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sender {
    pub id: String,
    pub name: Option<String>,
    /// The principal's type, such as `owner` or `known`.
    pub principal: String,
}

/// One earlier message of the session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    pub role: Role,
    pub content: String,
    /// Who said it, where others may speak too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

/// An earlier text that was found for the message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    pub text: String,
    /// Unix ms.
    pub at: i64,
    pub session: String,
}

/// Who said a message of the history.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    User,
    Assistant,
}

/// One piece of what an agent produces while it runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Output {
    /// The next piece of the answer.
    Token(String),
    /// The next piece of the agent's reasoning; never part of the answer.
    Reasoning(String),
    Tool {
        name: String,
        call_id: String,
        status: ToolStatus,
        summary: Option<String>,
        /// The arguments of a call that started, the result of one that ended; bounded by the runner.
        detail: Option<String>,
    },
    /// A question goes to a model. What it used follows, unless it fails.
    Asked { bytes: usize },
    /// What the next part of the run has used.
    Used(Usage),
    /// Something the owner has to decide; the turn goes on once that is answered.
    Ask(Question),
    /// From now on it takes input.
    Steering,
    /// It took in a message that reached it while it ran.
    Steered { message_id: String },
}

/// A question for the owner, open under its code in [`questions::Questions`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Question {
    pub code: String,
    /// What the agent wants, as the end of a sentence that begins with its name.
    pub wants: String,
    /// How long an answer counts.
    pub timeout_ms: u64,
}

/// How far a tool call of the agent has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ToolStatus {
    Started,
    Completed,
    Failed,
}

/// A turn that came to its end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finished {
    pub content: String,
    pub usage: Usage,
    pub stop_reason: StopReason,
    pub model: Option<String>,
    pub provider: Option<String>,
}

/// More tokens than one answer can have used: whoever tells more can't count.
const TOKENS_MAX: u64 = 1_000_000_000;

/// A number of tokens as it was told; none, where it can't be.
fn plausible(tokens: u64) -> Option<u64> {
    (tokens <= TOKENS_MAX).then_some(tokens)
}

/// Tokens that were used, where anybody counts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Usage {
    pub input_tokens: Option<u64>,
    pub output_tokens: Option<u64>,
    /// Some of it is counted from the length of texts, since the model didn't.
    #[serde(default)]
    pub estimated: bool,
}

impl Usage {
    /// Both together.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        let sum = |a: Option<u64>, b: Option<u64>| match (a, b) {
            (None, None) => None,
            (a, b) => Some(a.unwrap_or(0).saturating_add(b.unwrap_or(0))),
        };
        Self {
            input_tokens: sum(self.input_tokens, other.input_tokens),
            output_tokens: sum(self.output_tokens, other.output_tokens),
            estimated: self.estimated || other.estimated,
        }
    }
}

/// Why the answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum StopReason {
    EndTurn,
    MaxTokens,
    Timeout,
    Aborted,
    Error,
}

/// A configured way to run turns; one per agent, shared by all its turns.
#[derive(Debug)]
pub enum Runner {
    Echo,
    Command(command::CommandRunner),
    Llm(Box<llm::LlmRunner>),
    Acp(acp::AcpRunner),
    /// The process of the project whose event it is.
    Project(project::ProjectRunner),
}

impl Runner {
    /// Runs one turn to its end. Cancel it by dropping the future: a command's whole process tree
    /// is then killed, which [`Self::gone`] waits for, a connection closed, and a process that stays told to stop.
    /// There is no time limit here but the caller's. A command takes `input`, and so does a model that has tools.
    ///
    /// # Errors
    /// [`AgentError`], with the answer as far as it had come.
    pub async fn run(&self, turn: &Turn, out: &Sink, input: Option<Input>) -> Result<Finished, AgentError> {
        match self {
            Self::Echo => Ok(echo::run(turn, out).await),
            Self::Command(runner) => runner.run(turn, out, input).await,
            Self::Llm(runner) => runner.run(turn, out, input).await,
            Self::Acp(runner) => runner.run(turn, out).await,
            Self::Project(runner) => runner.run(turn, out).await,
        }
    }

    /// Returns once nothing of a turn that was cancelled goes on: the next one of its session must not meet its
    /// process. Where others than the turn own the process, that is at once.
    pub async fn gone(&self, turn: &Turn) {
        match self {
            Self::Command(runner) => runner.gone(turn).await,
            Self::Echo | Self::Llm(_) | Self::Acp(_) | Self::Project(_) => {}
        }
    }

    /// Bytes that each prompt has before its history: the system prompt, where the runner sends one.
    pub async fn prompt_bytes(&self) -> usize {
        match self {
            Self::Echo | Self::Command(_) | Self::Acp(_) | Self::Project(_) => 0,
            Self::Llm(runner) => runner.prompt_bytes().await,
        }
    }
}

/// Hands one piece on, waiting while the reader is behind. Without a reader the piece is dropped:
/// nobody streams this turn, but its answer is still wanted.
pub(crate) async fn emit(out: &Sink, piece: Output) {
    if out.send(piece).await.is_err() {
        tracing::trace!(target: "nexus::agent", "nobody reads the stream of this turn");
    }
}

/// Waits until all pieces were taken. The pipeline reads in the task that runs the agent and before it goes
/// on with it, so what was taken then is dealt with too.
pub(crate) async fn taken(out: &Sink) {
    while !out.is_closed() && out.capacity() < out.max_capacity() {
        tokio::task::yield_now().await;
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn wire_names_are_snake_case() {
        let tool = Output::Tool { name: "ls".into(), call_id: "c1".into(), status: ToolStatus::Completed, summary: None, detail: None };
        let json = serde_json::to_value(&tool).unwrap();
        assert_eq!(json["tool"]["status"], "completed");
        assert_eq!(serde_json::to_value(StopReason::MaxTokens).unwrap(), "max_tokens");
        assert_eq!(serde_json::to_value(Role::Assistant).unwrap(), "assistant");
    }

    #[test]
    fn usage_adds_up_and_stays_unknown_where_nobody_counts() {
        let counted = Usage { input_tokens: Some(1), output_tokens: None, estimated: false };
        let guessed = Usage { input_tokens: Some(2), output_tokens: Some(3), estimated: true };
        assert_eq!(counted.plus(guessed), Usage { input_tokens: Some(3), output_tokens: Some(3), estimated: true });
        assert_eq!(Usage::default().plus(Usage::default()), Usage::default());
    }

    #[test]
    fn an_absurd_number_of_tokens_is_none() {
        assert_eq!([0, TOKENS_MAX, TOKENS_MAX + 1, u64::MAX].map(plausible), [Some(0), Some(TOKENS_MAX), None, None]);
    }

    #[test]
    fn a_process_that_stays_is_given_a_message_once() {
        let died = AgentError::Died { agent: "a".into(), problem: "signal 9".into(), partial: String::new() };
        assert!(!died.retryable());
        let gone = |lasting| AgentError::Unavailable { agent: "a".into(), problem: "p".into(), lasting };
        assert_eq!((gone(true).retryable(), gone(false).retryable()), (false, true));
    }

    #[tokio::test]
    async fn a_missing_reader_does_not_stop_the_turn() {
        let (out, reader) = mpsc::channel(1);
        drop(reader);
        emit(&out, Output::Token("one".into())).await;
        emit(&out, Output::Token("two".into())).await;
        assert!(out.is_closed());
    }
}
