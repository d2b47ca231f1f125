//! Writing for people and programs: stdout that may be closed at any time, colours, and text of
//! strangers made harmless. It knows nothing of what is written.

use serde_json::Value;
use std::io::{self, IsTerminal, Write};

/// Why nothing more can be written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OutputError {
    /// Whoever read stdout has seen enough, as `head` does.
    #[error("stdout was closed")]
    Closed,
    #[error("failed to write to stdout")]
    Failed(#[source] io::Error),
}

impl From<io::Error> for OutputError {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe { Self::Closed } else { Self::Failed(error) }
    }
}

/// How a piece of text stands out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Color {
    Bold,
    Dim,
    Red,
    Green,
    Yellow,
}

/// Colours, or none.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Paint {
    enabled: bool,
}

impl Paint {
    #[cfg(test)]
    pub(crate) const PLAIN: Self = Self { enabled: false };

    /// `text` between the SGR sequences (ECMA-48, 8.3.117) of a colour.
    pub(crate) fn apply(self, color: Color, text: &str) -> String {
        if !self.enabled || text.is_empty() {
            return text.to_owned();
        }
        let code = match color {
            Color::Bold => 1,
            Color::Dim => 2,
            Color::Red => 31,
            Color::Green => 32,
            Color::Yellow => 33,
        };
        format!("\u{1b}[{code}m{text}\u{1b}[0m")
    }
}

/// Stdout as one verb uses it. It holds no lock between writes: a foreground daemon logs there too.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Out {
    /// Whether the answer is wanted as JSON.
    pub(crate) json: bool,
    pub(crate) terminal: bool,
    pub(crate) paint: Paint,
}

impl Out {
    pub(crate) fn new(json: bool) -> Self {
        let stdout = io::stdout();
        let terminal = stdout.is_terminal();
        // Knows NO_COLOR, CLICOLOR, CLICOLOR_FORCE and TERM=dumb.
        let choice = anstream::AutoStream::choice(&stdout);
        Self { json, terminal, paint: Paint { enabled: choice != anstream::ColorChoice::Never } }
    }

    /// Writes a line, or several.
    pub(crate) fn line(self, text: &str) -> Result<(), OutputError> {
        let mut stdout = io::stdout().lock();
        Ok(writeln!(stdout, "{text}")?)
    }

    /// Writes a piece of a line, which is seen at once.
    pub(crate) fn piece(self, text: &str) -> Result<(), OutputError> {
        self.raw(text.as_bytes())
    }

    pub(crate) fn raw(self, bytes: &[u8]) -> Result<(), OutputError> {
        let mut stdout = io::stdout().lock();
        stdout.write_all(bytes)?;
        Ok(stdout.flush()?)
    }

    /// Writes a value: indented on a terminal, else on one line.
    pub(crate) fn json(self, value: &Value) -> Result<(), OutputError> {
        let text = if self.terminal { format!("{value:#}") } else { value.to_string() };
        self.line(&text)
    }
}

/// Writes a line to stderr. One that can't be written has nobody to read it.
pub(crate) fn note(text: &str) {
    drop(writeln!(io::stderr().lock(), "{text}"));
}

/// Text of strangers as a terminal may see it: it must not obey what a message contains.
pub(crate) fn visible(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && c != '\n' && c != '\t' { char::REPLACEMENT_CHARACTER } else { c }).collect()
}

/// The same on one line of at most `chars_max` characters.
pub(crate) fn one_line(text: &str, chars_max: usize) -> String {
    let mut line: String = text.chars().take(chars_max).map(|c| if c.is_whitespace() { ' ' } else { c }).collect();
    if text.chars().nth(chars_max).is_some() {
        line.push('…');
    }
    visible(&line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_does_not_obey_strangers() {
        assert_eq!(visible("a\u{1b}]0;title\u{7}\n\tb\r\u{9b}31m"), "a\u{fffd}]0;title\u{fffd}\n\tb\u{fffd}\u{fffd}31m");
        assert_eq!(one_line("one\ntwo\u{1b}", 20), "one two\u{fffd}");
        assert_eq!(one_line("abcdef", 3), "abc…");
        assert_eq!(one_line("abc", 3), "abc");
    }

    #[test]
    fn colours_are_only_where_wanted() {
        assert_eq!(Paint::PLAIN.apply(Color::Red, "x"), "x");
        assert_eq!(Paint { enabled: true }.apply(Color::Red, "x"), "\u{1b}[31mx\u{1b}[0m");
        assert_eq!(Paint { enabled: true }.apply(Color::Red, ""), "");
    }

    #[test]
    fn a_closed_stdout_is_not_a_failure() {
        assert!(matches!(OutputError::from(io::Error::from(io::ErrorKind::BrokenPipe)), OutputError::Closed));
        assert!(matches!(OutputError::from(io::Error::from(io::ErrorKind::StorageFull)), OutputError::Failed(_)));
    }
}
