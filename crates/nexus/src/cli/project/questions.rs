//! Questions at a terminal, each with the flag that answers it too, and what an answer must be. What was wrong is told, and
//! asked again. It keeps nothing.

use crate::cli::failure::{Exit, Failure};
use crate::cli::out::note;
use anyhow::Context;
use nexus_core::config::{Provider, Source, load};
use rustyline::DefaultEditor;
use rustyline::error::ReadlineError;
use serde_json::json;
use std::io::IsTerminal;

/// Asks a person, or nobody.
pub(super) struct Questions {
    editor: Option<DefaultEditor>,
}

impl Questions {
    pub(super) fn new(json: bool) -> anyhow::Result<Self> {
        let is_terminal = !json && std::io::stdin().is_terminal() && std::io::stdout().is_terminal();
        let editor = is_terminal.then(DefaultEditor::new).transpose().context("failed to read from the terminal")?;
        Ok(Self { editor })
    }

    #[cfg(test)]
    pub(super) fn nobody() -> Self {
        Self { editor: None }
    }

    pub(super) fn is_interactive(&self) -> bool {
        self.editor.is_some()
    }

    /// What a flag says, else what is answered; either must pass `check`.
    pub(super) fn ask(
        &mut self,
        given: Option<String>,
        flag: &str,
        question: &str,
        default: Option<&str>,
        check: impl Fn(&str) -> Result<(), String>,
    ) -> anyhow::Result<String> {
        match given {
            Some(given) => {
                check(&given).map_err(|why| Failure::new(Exit::Usage, format!("{flag}: {why}")))?;
                Ok(given)
            }
            None if self.is_interactive() => self.line(question, default, check),
            None => Err(Failure::new(Exit::Usage, format!("{flag} is missing; give it, or run this at a terminal")).into()),
        }
    }

    /// One answer; asked again until there is one that passes `check`. Nothing stands for `default`.
    pub(super) fn line(
        &mut self,
        question: &str,
        default: Option<&str>,
        check: impl Fn(&str) -> Result<(), String>,
    ) -> anyhow::Result<String> {
        let Some(editor) = &mut self.editor else { return Ok(default.unwrap_or_default().to_owned()) };
        let prompt = match default {
            Some(default) if !default.is_empty() => format!("{question} [{default}]: "),
            Some(_) | None => format!("{question}: "),
        };
        loop {
            let line = match editor.readline(&prompt) {
                Ok(line) => line,
                Err(ReadlineError::Interrupted | ReadlineError::Eof) => {
                    return Err(Failure::new(Exit::Failed, "nothing was changed").into());
                }
                Err(error) => return Err(error).context("failed to read from the terminal"),
            };
            let answer = match (line.trim(), default) {
                ("", Some(default)) => default,
                (line, _) => line,
            };
            match check(answer) {
                Ok(()) => return Ok(answer.to_owned()),
                Err(why) => note(&why),
            }
        }
    }
}

pub(super) fn anything(answer: &str) -> Result<(), String> {
    if answer.trim().is_empty() { Err("an answer is needed; Ctrl+C leaves, and changes nothing".to_owned()) } else { Ok(()) }
}

pub(super) fn provider(answer: &str) -> Result<(), String> {
    anything(answer)?;
    let known = Provider::parse(answer).map(drop);
    known.ok_or_else(|| format!("`{}` is no provider; there are {}", answer.escape_debug(), Provider::WORDS.join(", ")))
}

/// As the configuration says it.
pub(super) fn url(answer: &str) -> Result<(), String> {
    anything(answer)?;
    let text = json!({ "agents": { "asked": { "runner": "llm", "model": "m", "url": answer } } }).to_string();
    let problems = load(Source { name: "the answer", text: &text }, None).err().unwrap_or_default();
    problems.into_iter().next().map_or(Ok(()), |problem| Err(problem.message))
}

/// A key that is given for the variable's name is not repeated.
pub(super) fn variable(answer: &str) -> Result<(), String> {
    let is_name = answer.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') && !answer.starts_with(|c: char| c.is_ascii_digit());
    if is_name && !answer.is_empty() {
        return Ok(());
    }
    Err("that is no name of a variable, which has letters, digits and _; the key itself is typed, or read by --key-stdin".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_with_an_answer_is_said() {
        assert_eq!((provider("anthropic"), url("https://h/v1"), variable("API_KEY"), anything("m")), (Ok(()), Ok(()), Ok(()), Ok(())));
        assert!(provider("antropic").is_err_and(|why| why.contains("no provider") && why.contains("anthropic")));
        assert!(url("h/v1").is_err_and(|why| why.contains("is not a URL")));
        for empty in [provider(""), url(" "), anything("")] {
            assert!(empty.is_err_and(|why| why.contains("an answer is needed")));
        }
        for wrong in ["", "1KEY", "sk-1234", "A B"] {
            assert!(variable(wrong).is_err_and(|why| why.contains("no name of a variable")), "{wrong}");
        }
    }
}
