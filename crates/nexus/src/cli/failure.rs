//! Exit codes, and how a failure is told: what went wrong and what to do, on stderr for people, or as
//! one JSON object on stdout for programs.

use super::client::ClientError;
use super::out::{Out, OutputError, note};
use clap::error::{ContextKind, ContextValue};
use serde_json::{Value, json};
use std::ffi::OsString;
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
#[error("{message}{}", listed(.problems))]
pub(crate) struct Failure {
    pub(crate) exit: Exit,
    message: String,
    problems: Vec<String>,
}

/// Each on a line of its own, below what was said.
fn listed(problems: &[String]) -> String {
    problems.iter().map(|problem| format!("\n{problem}")).collect()
}

impl Failure {
    pub(crate) fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self { exit, message: message.into(), problems: Vec::new() }
    }

    pub(crate) fn not_found(message: impl Into<String>) -> Self {
        Self::new(Exit::NotFound, message)
    }

    /// All problems of a configuration, each with its place.
    pub(crate) fn bad_config(problems: &[impl Display]) -> Self {
        let problems = problems.iter().map(ToString::to_string).collect();
        Self { exit: Exit::BadConfig, message: "the configuration is invalid".to_owned(), problems }
    }
}

/// Tells a failure, on stdout if JSON is wanted and else on stderr, and finds its exit code.
pub(crate) fn report(error: &anyhow::Error, out: Out) -> Exit {
    let exit = exit_of(error);
    if exit == Exit::Done {
        return exit;
    }
    if out.json && tell_json(&json_of(error), out) {
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

/// Has the mistake of a verb that is given without its group say where there is one: `daemon status` for `status`.
pub(crate) fn suggest(error: &mut clap::Error, root: &clap::Command, words: impl IntoIterator<Item = OsString>) {
    let Some(ContextValue::String(verb)) = error.get(ContextKind::InvalidSubcommand) else { return };
    let groups: Vec<&clap::Command> = root.get_subcommands().filter(|group| !group.is_hide_set()).collect();
    let is_group = |word: OsString| groups.iter().any(|group| word == group.get_name());
    if words.into_iter().take_while(|word| word != verb.as_str()).any(is_group) {
        return; // which group is meant is said already
    }
    let has_it = |group: &clap::Command| group.find_subcommand(verb).is_some_and(|found| !found.is_hide_set());
    let full: Vec<String> = groups.iter().filter(|group| has_it(group)).map(|group| format!("{} {verb}", group.get_name())).collect();
    if !full.is_empty() {
        error.insert(ContextKind::SuggestedSubcommand, ContextValue::Strings(full));
    }
}

/// Wrong usage, as clap words it.
pub(crate) fn report_usage(text: &str, out: Out) -> bool {
    let text = text.trim();
    tell_json(&json!({ "error": text.strip_prefix("error: ").unwrap_or(text) }), out)
}

/// Whether nothing is left to tell: a reader who has gone wants nothing, but a full disk hides the failure.
fn tell_json(value: &Value, out: Out) -> bool {
    !matches!(out.json(value), Err(OutputError::Failed(_)))
}

/// `error`, and `problems` and `advice` where there are any.
fn json_of(error: &anyhow::Error) -> Value {
    let mut text = format!("{error:#}");
    let mut problems: &[String] = &[];
    if let Some(failure) = error.downcast_ref::<Failure>() {
        problems = &failure.problems;
        text.truncate(text.strip_suffix(listed(problems).as_str()).map_or(text.len(), str::len));
    }
    let client: Option<&ClientError> = error.downcast_ref();
    if let Some(ClientError::Refused { problems: refused, .. }) = client {
        problems = refused;
    }
    let mut value = json!({ "error": text });
    if !problems.is_empty() {
        value["problems"] = json!(problems);
    }
    if let Some(advice) = client.and_then(ClientError::advice) {
        value["advice"] = advice.into();
    }
    value
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
    fn as_json_the_parts_of_a_failure_are_apart() {
        let bad = anyhow::Error::new(Failure::bad_config(&["a: 1", "b: 2"]));
        assert_eq!(bad.to_string(), "the configuration is invalid\na: 1\nb: 2");
        assert_eq!(json_of(&bad), json!({ "error": "the configuration is invalid", "problems": ["a: 1", "b: 2"] }));
        let refused = ClientError::Refused { status: 422, error: "no".into(), problems: vec!["c: 3".into()] };
        assert_eq!(json_of(&anyhow::Error::new(refused)), json!({ "error": "no", "problems": ["c: 3"] }));
        let gone = json_of(&anyhow::Error::new(ClientError::NotRunning));
        assert!(gone["advice"].as_str().is_some_and(|advice| advice.contains("nexus daemon start")), "{gone}");
        let missing = anyhow::Error::new(Failure::not_found("no event `7`")).context("while looking");
        assert_eq!(json_of(&missing), json!({ "error": "while looking: no event `7`" }));
    }

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
