//! How a turn fails: each reason in words, whether the same again could help, and how long to wait before that. Never decides
//! that it is tried again.

use std::io::ErrorKind;
use std::time::Duration;

use super::llm::TextFileError;
use crate::keeper::{ExitStatus, SpawnError};
use crate::ledger::nexus::Awaited;

/// Why a turn failed. `partial` is the answer as far as it had come.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    #[error("agent `{agent}` cannot run: {problem}")]
    Config { agent: String, problem: String },
    #[error("failed to read a file of agent `{agent}`")]
    File { agent: String, source: TextFileError },
    #[error("failed to start the command of agent `{agent}`")]
    Spawn { agent: String, source: Box<SpawnError> },
    #[error("failed to {operation} of agent `{agent}`")]
    Io { agent: String, operation: &'static str, source: std::io::Error, partial: String },
    #[error("command of agent `{agent}` ended with {status}{}", told(.stderr_tail))]
    Exit { agent: String, status: ExitStatus, stderr_tail: String, partial: String },
    #[error("agent `{agent}` reported an error: {problem}")]
    Reported { agent: String, problem: String, partial: String },
    #[error("agent `{agent}` sent {what} of more than {limit_bytes} bytes")]
    TooLarge { agent: String, what: &'static str, limit_bytes: usize, partial: String },
    #[error("endpoint of agent `{agent}` failed: {problem}")]
    Endpoint { agent: String, problem: String, retryable: bool, retry_after: Option<Duration>, is_unworked: bool, partial: String },
    #[error("endpoint of agent `{agent}` was silent for {idle_ms} ms")]
    Stalled { agent: String, idle_ms: u64, partial: String },
    #[error("answer of agent `{agent}` broke off: {problem}")]
    Unfinished { agent: String, problem: String, partial: String },
    /// `problem` is for the user to read.
    #[error("agent `{agent}` may not go on: {problem}")]
    Exhausted { agent: String, problem: String, partial: String },
    /// A process that stays could not be had; it wasn't given the message.
    #[error("agent `{agent}` is not available: {problem}")]
    Unavailable { agent: String, problem: String, lasting: bool },
    /// A process that stays ended after it was given the message.
    #[error("agent `{agent}` died: {problem}")]
    Died { agent: String, problem: String, partial: String },
    #[error("project `{project}`: {problem}")]
    Project { project: String, problem: String, retryable: bool, awaits: Option<Awaited>, told: Option<String>, partial: String },
}

impl AgentError {
    /// Whether running the same turn again could help. Once a command has started, or a process that stays was
    /// given the message, it may have acted, so whatever happens to it then is final; what a model did, its
    /// [`Output::Tool`](super::Output::Tool) told.
    pub fn retryable(&self) -> bool {
        match self {
            Self::Stalled { .. } | Self::Unfinished { .. } => true,
            Self::Unavailable { lasting, .. } => !lasting,
            Self::Endpoint { retryable, .. } | Self::Project { retryable, .. } => *retryable,
            Self::Spawn { source, .. } => may_start_later(source),
            Self::Config { .. }
            | Self::File { .. }
            | Self::Io { .. }
            | Self::Exit { .. }
            | Self::Reported { .. }
            | Self::TooLarge { .. }
            | Self::Exhausted { .. }
            | Self::Died { .. } => false,
        }
    }

    /// Whether a model was asked in vain: it can't have worked on the last question, for which nobody charges.
    pub fn is_unworked(&self) -> bool {
        if let Self::Endpoint { is_unworked, .. } = self { *is_unworked } else { false }
    }

    /// What the turn's project waits for, where that alone keeps it from being done.
    pub fn awaits(&self) -> Option<Awaited> {
        if let Self::Project { awaits, .. } = self { *awaits } else { None }
    }

    /// Why, as whoever asked may be told; nothing where that is of the inside.
    pub fn told(&self) -> Option<&str> {
        if let Self::Project { told, .. } = self { told.as_deref() } else { None }
    }

    /// How long the other side asked to be left alone.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Endpoint { retry_after, .. } => *retry_after,
            Self::Config { .. }
            | Self::File { .. }
            | Self::Spawn { .. }
            | Self::Io { .. }
            | Self::Exit { .. }
            | Self::Reported { .. }
            | Self::TooLarge { .. }
            | Self::Stalled { .. }
            | Self::Unfinished { .. }
            | Self::Exhausted { .. }
            | Self::Unavailable { .. }
            | Self::Died { .. }
            | Self::Project { .. } => None,
        }
    }

    /// The answer as far as it had come; empty if nothing came.
    pub fn partial(&self) -> &str {
        match self {
            Self::Config { .. } | Self::File { .. } | Self::Spawn { .. } | Self::Unavailable { .. } => "",
            Self::Io { partial, .. }
            | Self::Exit { partial, .. }
            | Self::Reported { partial, .. }
            | Self::TooLarge { partial, .. }
            | Self::Endpoint { partial, .. }
            | Self::Stalled { partial, .. }
            | Self::Unfinished { partial, .. }
            | Self::Exhausted { partial, .. }
            | Self::Died { partial, .. }
            | Self::Project { partial, .. } => partial,
        }
    }
}

/// Whether nothing was started, for a reason that may pass.
fn may_start_later(error: &SpawnError) -> bool {
    match error {
        SpawnError::Pipes { .. } => true,
        SpawnError::Refused { source, .. } => {
            let kind = source.kind();
            kind != ErrorKind::NotFound && kind != ErrorKind::PermissionDenied
        }
        SpawnError::KeeperGone { .. } => false,
    }
}

/// The end of an `Exit` message: what the command said on stderr, if it said anything.
fn told(stderr_tail: &str) -> String {
    if stderr_tail.is_empty() { String::new() } else { format!(": {stderr_tail}") }
}

/// Attempts at an error that may pass, as long as nothing was said or done.
pub const TRIES_MAX: u32 = 3;

const RETRY_BASE: Duration = Duration::from_secs(1);

/// How long to wait after this attempt (from 1): longer each time, and no less than was asked for.
pub fn pause_after(attempt: u32, asked: Option<Duration>) -> Duration {
    let own = RETRY_BASE * 2_u32.pow(attempt.clamp(1, TRIES_MAX) - 1);
    asked.map_or(own, |asked| asked.max(own))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_command_that_may_have_acted_is_final() {
        let status = ExitStatus::Code(3);
        let error = AgentError::Exit { agent: "a".into(), status, stderr_tail: "no disk".into(), partial: "half".into() };
        assert!(!error.retryable());
        assert_eq!(error.partial(), "half");
        assert!(error.to_string().ends_with(": no disk"), "{error}");
    }

    #[test]
    fn a_start_is_retried_only_if_nothing_ran_and_the_reason_may_pass() {
        let program = || "bot".to_owned();
        let failed = |source| AgentError::Spawn { agent: "a".into(), source: Box::new(source) };
        let full = std::io::Error::from(ErrorKind::WouldBlock);
        assert!(failed(SpawnError::Pipes { program: program(), source: full }).retryable());
        assert!(!failed(SpawnError::KeeperGone { program: program() }).retryable());
    }

    #[test]
    fn a_pause_grows_and_is_never_shorter_than_asked() {
        let seconds = |attempt, asked: Option<u64>| pause_after(attempt, asked.map(Duration::from_secs)).as_secs();
        assert_eq!([seconds(1, None), seconds(2, None), seconds(3, None), seconds(9, None)], [1, 2, 4, 4]);
        assert_eq!([seconds(1, Some(30)), seconds(2, Some(0))], [30, 2]);
    }
}
