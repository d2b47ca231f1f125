//! Exit codes, and how a failure is told: what went wrong and what to do, on stderr.

use super::client::ClientError;
use super::out::{OutputError, note};
use std::fmt::Display;

/// How a verb ended, as the shell sees it (contracts, "CLI").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exit {
    Done,
    Failed,
    Usage,
    NotRunning,
    NotFound,
    BadConfig,
    /// A code that a daemon gave.
    Code(u8),
}

impl Exit {
    pub(crate) fn code(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::Failed => 1,
            Self::Usage => 2,
            Self::NotRunning => 3,
            Self::NotFound => 4,
            // EX_CONFIG of sysexits(3).
            Self::BadConfig => 78,
            Self::Code(code) => code,
        }
    }
}

/// A failure that is told as it stands and ends with a certain code.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub(crate) struct Failure {
    pub(crate) exit: Exit,
    message: String,
}

impl Failure {
    pub(crate) fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self { exit, message: message.into() }
    }

    pub(crate) fn not_found(what: impl Display) -> Self {
        Self::new(Exit::NotFound, format!("{what} was not found"))
    }

    /// All problems of a configuration, each with its place.
    pub(crate) fn bad_config(problems: &[impl Display]) -> Self {
        let list: Vec<String> = problems.iter().map(ToString::to_string).collect();
        Self::new(Exit::BadConfig, format!("the configuration is invalid\n{}", list.join("\n")))
    }
}

/// Tells a failure on stderr and finds its exit code.
pub(crate) fn report(error: &anyhow::Error) -> Exit {
    let exit = exit_of(error);
    if exit == Exit::Done {
        return exit;
    }
    // Said plainly, unless there is more to say than that.
    let client: Option<&ClientError> = error.downcast_ref();
    if matches!(client, Some(ClientError::NotRunning)) && error.chain().count() == 1 {
        note("NEX Daemon: not running");
    } else {
        note(&format!("error: {error:#}"));
    }
    if let Some(ClientError::Refused { problems, .. }) = client {
        problems.iter().for_each(|problem| note(problem));
    }
    if let Some(advice) = client.and_then(ClientError::advice) {
        note(advice);
    }
    exit
}

fn exit_of(error: &anyhow::Error) -> Exit {
    if let Some(OutputError::Closed) = error.downcast_ref() {
        return Exit::Done;
    }
    if let Some(failure) = error.downcast_ref::<Failure>() {
        return failure.exit;
    }
    error.downcast_ref::<ClientError>().map_or(Exit::Failed, ClientError::exit)
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context;

    #[test]
    fn codes_survive_context() {
        let refused = |status| ClientError::Refused { status, error: "no".into(), problems: Vec::new() };
        let cases = [
            (anyhow::Error::new(ClientError::NotRunning), 3),
            (anyhow::Error::new(refused(404)), 4),
            (anyhow::Error::new(refused(422)), 78),
            (anyhow::Error::new(refused(409)), 1),
            (anyhow::Error::new(Failure::not_found("it")).context("while looking"), 4),
            (anyhow::Error::new(OutputError::Closed), 0),
            (anyhow::anyhow!("anything"), 1),
        ];
        for (error, code) in cases {
            assert_eq!(exit_of(&error).code(), code, "{error:#}");
        }
        let wrapped: anyhow::Result<()> = Err(ClientError::NotRunning).context("while asking");
        assert_eq!(wrapped.map_err(|error| exit_of(&error).code()), Err(3));
    }
}
