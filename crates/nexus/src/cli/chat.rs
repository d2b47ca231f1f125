//! `nexus chat`: a conversation line by line, for a person at a terminal or for a script.

use super::client::Client;
use super::daemon::{detach, start};
use super::failure::Exit;
use super::out::{Color, Out, OutputError, note};
use super::reply::Reply;
use super::talk::{self, End, Message};
use super::{Global, runtime};
use crate::daemon::{Paths, config, lock};
use anyhow::Context;
use rustyline::DefaultEditor;
use rustyline::error::ReadlineError;
use std::io::IsTerminal;
use std::path::Path;
use tokio::runtime::Runtime;

const PROMPT: &str = "you> ";
/// Most lines that are kept for the up key.
const HISTORY_LINES_MAX: usize = 1000;
const HELP: &str = concat!(
    "Type a message and press Enter. Ctrl+C stops waiting for an answer.\n",
    "  /help    this text\n",
    "  /new     begin the conversation anew\n",
    "  /status  what runs, and how the daemon is\n",
    "  /stop    stop the answer that is being made\n",
    "  /quit    leave, as Ctrl+D does",
);

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  nexus chat\n  printf 'hello\\n' | nexus chat")]
pub(crate) struct Args {
    /// The conversation to go on with [default: default]
    #[arg(long, value_name = "NAME")]
    conversation: Option<String>,
}

pub(crate) fn run(args: Args, global: &Global) -> anyhow::Result<Exit> {
    let paths = global.paths()?;
    ensure_running(&paths, global)?;
    let out = global.out();
    let history = paths.state_dir.join("chat_history");
    let speaker = default_agent(&paths);
    let mut chat = Chat { runtime: runtime()?, client: Client::new(&paths), conversation: args.conversation, out, speaker };
    if std::io::stdin().is_terminal() && out.terminal { chat.edited(&history) } else { chat.scripted() }
}

/// Starts a daemon in the background if none runs.
fn ensure_running(paths: &Paths, global: &Global) -> anyhow::Result<()> {
    if lock::holder(paths).is_some() {
        return Ok(());
    }
    start::create_config(paths, global)?;
    match detach::start(paths, global.config()?.as_deref(), detach::Flags::default()) {
        Ok(started) => {
            note(&started.line());
            Ok(())
        }
        // Somebody else started one in the same moment.
        Err(_) if lock::holder(paths).is_some() => Ok(()),
        Err(error) => Err(error),
    }
}

/// Whose name stands before tokens until the first answer tells.
fn default_agent(paths: &Paths) -> String {
    config::load(paths).map_or_else(|_| "agent".to_owned(), |loaded| loaded.config.agents.default)
}

struct Chat<'p> {
    runtime: Runtime,
    client: Client<'p>,
    conversation: Option<String>,
    out: Out,
    speaker: String,
}

/// What a line asks for.
#[derive(Debug, PartialEq, Eq)]
enum Line<'l> {
    Nothing,
    Help,
    Quit,
    Unknown(&'l str),
    Say(&'l str),
}

fn read(line: &str) -> Line<'_> {
    match line.trim() {
        "" => Line::Nothing,
        "/help" | "/?" => Line::Help,
        "/quit" | "/exit" => Line::Quit,
        // The daemon's own.
        word @ ("/stop" | "/new" | "/status") => Line::Say(word),
        // A path or `//` is something to say.
        word if word.starts_with('/') && word[1..].chars().all(|c| c.is_ascii_lowercase()) && word.len() > 1 => Line::Unknown(word),
        text => Line::Say(text),
    }
}

impl Chat<'_> {
    /// A line editor with history, and tokens as they come.
    fn edited(&mut self, history: &Path) -> anyhow::Result<Exit> {
        let config = rustyline::Config::builder().max_history_size(HISTORY_LINES_MAX)?.history_ignore_dups(true)?.build();
        let mut editor = DefaultEditor::with_config(config).context("failed to set up line editing")?;
        // There is none at first, and a chat without history is still a chat.
        drop(editor.load_history(history));
        self.out.line(&self.out.paint.apply(Color::Dim, "Type a message; /help for help, Ctrl+D to leave."))?;
        loop {
            let line = match editor.readline(PROMPT) {
                Ok(line) => line,
                Err(ReadlineError::Interrupted) => continue,
                Err(ReadlineError::Eof) => break,
                Err(error) => return Err(error).context("failed to read a line"),
            };
            match read(&line) {
                Line::Nothing => continue,
                Line::Help => self.out.line(HELP)?,
                Line::Quit => break,
                Line::Unknown(word) => note(&format!("there is no {word}; /help lists what there is")),
                Line::Say(text) => {
                    drop(editor.add_history_entry(line.as_str()));
                    self.turn(text)?;
                }
            }
        }
        // Created with mode 0600 by the editor.
        editor.save_history(history).with_context(|| format!("failed to save the history to `{}`", history.display()))?;
        Ok(Exit::Done)
    }

    /// One turn of a person: an error is told and the chat goes on.
    fn turn(&mut self, text: &str) -> anyhow::Result<()> {
        let message = Message::new(text.to_owned(), self.conversation.clone());
        let mut reply = Reply::new(self.out, true).labelled(&self.speaker);
        let mut show = |part: &talk::Part| reply.take(part);
        let said = self.runtime.block_on(async {
            tokio::select! {
                end = talk::say(&self.client, &message, &mut show) => end.map(Some),
                interrupted = tokio::signal::ctrl_c() => interrupted.map(|()| None).context("failed to watch for Ctrl+C"),
            }
        });
        match said {
            Ok(Some(end)) => {
                if let Some(agent) = &end.agent {
                    self.speaker.clone_from(agent);
                }
                reply.finish(&end)?;
            }
            Ok(None) => note(&format!("\nstopped waiting; `nexus trace {}` shows what becomes of it", message.event_id())),
            Err(error) if error.is::<OutputError>() => return Err(error),
            Err(error) => note(&self.out.paint.apply(Color::Red, &format!("error: {error:#}"))),
        }
        Ok(())
    }

    /// Lines in, answers out; ends with the code of the last bad one.
    fn scripted(&mut self) -> anyhow::Result<Exit> {
        let mut stdin = std::io::stdin().lock();
        let mut exit = Exit::Done;
        while let Some(line) = talk::next_line(&mut stdin)? {
            match read(&line) {
                Line::Nothing => {}
                Line::Help => self.out.line(HELP)?,
                Line::Quit => break,
                Line::Unknown(word) => note(&format!("there is no {word}")),
                Line::Say(text) => {
                    let message = Message::new(text.to_owned(), self.conversation.clone());
                    let end = self.runtime.block_on(talk::say(&self.client, &message, &mut |_| Ok(())))?;
                    if self.answer(&end)? != Exit::Done {
                        exit = Exit::Failed;
                    }
                }
            }
        }
        Ok(exit)
    }

    fn answer(&self, end: &End) -> anyhow::Result<Exit> {
        if !self.out.json {
            return Ok(Reply::new(self.out, false).finish(end)?);
        }
        self.out.line(&serde_json::to_string(end)?)?;
        Ok(end.exit())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_and_messages_are_told_apart() {
        assert_eq!(read("  "), Line::Nothing);
        assert_eq!(read("/quit\n"), Line::Quit);
        assert_eq!(read(" /new "), Line::Say("/new"));
        assert_eq!(read(" /help "), Line::Help);
        assert_eq!(read("/fly"), Line::Unknown("/fly"));
        assert_eq!(read("/etc/passwd is what?"), Line::Say("/etc/passwd is what?"));
        assert_eq!(read("/"), Line::Say("/"));
        assert_eq!(read("hello "), Line::Say("hello"));
    }
}
