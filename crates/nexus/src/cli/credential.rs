//! `nexus credential ...`: storing what adapters log in with. A value comes from stdin or a prompt,
//! never from the command line, and is never shown.

use super::failure::{Exit, Failure};
use super::out::{note, visible};
use super::{Global, running};
use crate::credential;
use anyhow::Context;
use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};
use serde_json::json;
use std::io::{BufRead, IsTerminal, Read, Stdin, Write};
use zeroize::Zeroizing;

/// Longest value that is read, in bytes; what a credential may have is less.
const INPUT_BYTES_MAX: u64 = 1024 * 1024;
const CTRL_C: u8 = 3;
const CTRL_D: u8 = 4;
const BACKSPACE: u8 = 8;
const DELETE: u8 = 127;

#[derive(Debug, clap::Subcommand)]
pub(crate) enum Verb {
    /// Store a credential; its value is asked for, or read from stdin
    #[command(after_help = "Example:\n  nexus credential set google/me < token.txt")]
    Set {
        /// Its name, as `service/account`
        name: String,
    },
    /// List the names of stored credentials
    #[command(after_help = "Example:\n  nexus credential list")]
    List,
    /// Remove a stored credential
    #[command(after_help = "Example:\n  nexus credential remove google/me")]
    Remove {
        /// Its name, as `service/account`
        name: String,
    },
}

pub(crate) fn run(verb: &Verb, global: &Global) -> anyhow::Result<Exit> {
    let directory = running::paths(global)?.credentials_dir();
    let out = global.out();
    match verb {
        Verb::Set { name } => {
            credential::set(&directory, name, &value(name)?)?;
            if out.json { out.json(&json!({ "stored": name }))? } else { out.line(&format!("stored credential {name}"))? }
        }
        Verb::List => {
            let names = credential::list(&directory)?;
            if out.json {
                out.json(&json!({ "credentials": names }))?;
            } else if names.is_empty() {
                note("no credentials are stored; store one with `nexus credential set SERVICE/ACCOUNT`");
            } else {
                names.iter().try_for_each(|name| out.line(&visible(name)))?;
            }
        }
        Verb::Remove { name } => {
            if !credential::remove(&directory, name)? {
                let missing = format!("no credential `{name}` is stored; `nexus credential list` shows those that are");
                return Err(Failure::not_found(missing).into());
            }
            if out.json { out.json(&json!({ "removed": name }))? } else { out.line(&format!("removed credential {name}"))? }
        }
    }
    Ok(Exit::Done)
}

/// The value: a line typed at a hidden prompt, or all of stdin without its last line end.
pub(crate) fn value(name: &str) -> anyhow::Result<Zeroizing<String>> {
    let stdin = std::io::stdin();
    let bytes = if stdin.is_terminal() {
        let hidden = HiddenInput::start(&stdin).context("failed to hide what is typed")?;
        prompt(&format!("Value of {name} (not shown): "));
        let line = typed_line(stdin.lock());
        drop(hidden);
        prompt("\n");
        line.context("failed to read the value")?.ok_or_else(|| Failure::new(Exit::Failed, "nothing was stored"))?
    } else {
        let mut bytes = Zeroizing::new(Vec::new());
        stdin.lock().take(INPUT_BYTES_MAX).read_to_end(&mut bytes).context("failed to read the value from stdin")?;
        bytes
    };
    let text = std::str::from_utf8(&bytes).context("the value is not UTF-8")?.trim_end_matches(['\r', '\n']);
    if text.is_empty() {
        return Err(Failure::new(Exit::Usage, "the value is empty").into());
    }
    Ok(Zeroizing::new(text.to_owned()))
}

/// What is typed until Enter, on a terminal that sends every key; `None` after Ctrl+C or Ctrl+D.
fn typed_line(keys: impl BufRead) -> std::io::Result<Option<Zeroizing<Vec<u8>>>> {
    let mut line = Zeroizing::new(Vec::new());
    for key in keys.take(INPUT_BYTES_MAX).bytes() {
        match key? {
            b'\r' | b'\n' => return Ok(Some(line)),
            CTRL_C | CTRL_D => return Ok(None),
            BACKSPACE | DELETE => {
                // A character is its first byte and those that continue it (10xxxxxx).
                while line.pop().is_some_and(|byte| byte & 0b1100_0000 == 0b1000_0000) {}
            }
            byte => line.push(byte),
        }
    }
    Ok(None)
}

/// To stderr, since stdout may be a file. Without a prompt the value can still be typed.
fn prompt(text: &str) {
    let mut stderr = std::io::stderr().lock();
    drop(write!(stderr, "{text}").and_then(|()| stderr.flush()));
}

/// A terminal that shows nothing and sends every key, Ctrl+C too, until this is dropped: an
/// interrupt in between would leave it without echo.
struct HiddenInput<'s> {
    stdin: &'s Stdin,
    before: Termios,
}

impl<'s> HiddenInput<'s> {
    fn start(stdin: &'s Stdin) -> std::io::Result<Self> {
        let before = tcgetattr(stdin)?;
        let mut hidden = before.clone();
        hidden.local_modes.remove(LocalModes::ECHO | LocalModes::ICANON | LocalModes::ISIG);
        tcsetattr(stdin, OptionalActions::Flush, &hidden)?;
        Ok(Self { stdin, before })
    }
}

impl Drop for HiddenInput<'_> {
    fn drop(&mut self) {
        // A terminal that is gone needs no echo.
        tcsetattr(self.stdin, OptionalActions::Flush, &self.before).ok();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn typed(keys: &[u8]) -> Option<Vec<u8>> {
        typed_line(keys).unwrap().map(|line| line.to_vec())
    }

    #[test]
    fn a_line_can_be_corrected_and_given_up() {
        assert_eq!(typed(b"hush\nmore").as_deref(), Some(&b"hush"[..]));
        assert_eq!(typed("aé\u{7f}\u{7f}\u{7f}b\r".as_bytes()).as_deref(), Some(&b"b"[..]));
        assert_eq!(typed(b"hu\x03sh\n"), None);
        assert_eq!(typed(b"no end"), None);
    }
}
