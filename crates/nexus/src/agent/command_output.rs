//! What a command agent writes on stdout, read as stream events (contract, 'Adapter protocol v1')
//! or as plain text. Owns that decision, the joining of lines and characters over read boundaries,
//! and every bound. Reads no pipe and runs nothing: bytes go in, pieces come out.

use serde::Deserialize;
use serde_json::Value;

use super::{MAX_ANSWER_BYTES, Output, ToolStatus};

/// The longest line of stream events, in bytes without its newline.
pub const MAX_LINE_BYTES: usize = 1024 * 1024;

/// The most characters kept of what a `stream_error` says.
const MAX_REPORT_CHARS: usize = 2000;

/// Why no more output is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum OutputFault {
    #[error("answer is longer than {} bytes", MAX_ANSWER_BYTES)]
    AnswerTooLarge,
    #[error("line is longer than {} bytes", MAX_LINE_BYTES)]
    LineTooLong,
}

/// The output of one command run, as far as it has come.
///
/// The first line that isn't blank decides: a JSON object whose `type` is a known stream event
/// makes every line an event; anything else makes the whole output the answer, streamed as it
/// comes but for the white space at its end.
#[derive(Debug, Default)]
pub struct CommandOutput {
    form: Form,
    /// The unfinished line, or in plain text the unfinished character.
    unread: Vec<u8>,
    answer: String,
    /// White space in plain text that is only part of the answer if more text follows.
    held: String,
    ended: bool,
    reported: Option<String>,
    fault: Option<OutputFault>,
    invalid_sequences: u64,
    ignored_lines: u64,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Form {
    #[default]
    Undecided,
    Events,
    Plain,
}

/// One line of stream events. Fields that aren't used here may have any shape.
#[derive(Debug, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Event {
    StreamStart {},
    Steering {},
    Steered {
        #[serde(rename = "messageId")]
        message_id: String,
    },
    Token {
        text: String,
    },
    Reasoning {
        text: String,
    },
    ToolStatus {
        #[serde(rename = "toolName")]
        name: String,
        #[serde(rename = "toolCallId")]
        call_id: String,
        status: ToolStatus,
        #[serde(default)]
        summary: Option<String>,
    },
    StreamEnd {
        #[serde(default, rename = "final")]
        whole: Value,
    },
    StreamError {
        #[serde(default)]
        error: Value,
        #[serde(default)]
        partial: Value,
    },
}

/// The values of `type` that make output a stream of events.
const EVENT_TYPES: [&str; 8] = ["stream_start", "token", "reasoning", "tool_status", "stream_end", "stream_error", "steering", "steered"];

#[derive(Deserialize)]
struct Kind {
    #[serde(rename = "type")]
    kind: String,
}

impl CommandOutput {
    /// Takes the next bytes read from stdout and returns what they complete, in order. After a
    /// [`fault`](Self::fault) it takes nothing more.
    pub fn push(&mut self, bytes: &[u8]) -> Vec<Output> {
        let mut out = Vec::new();
        let mut rest = bytes;
        while !rest.is_empty() && self.fault.is_none() {
            rest = match self.form {
                Form::Undecided | Form::Events => self.take_line(rest, &mut out),
                Form::Plain => {
                    self.take_text(rest, false, &mut out);
                    &[]
                }
            };
        }
        out
    }

    /// Takes the end of stdout and returns what it completes. Call once.
    pub fn finish(&mut self) -> Vec<Output> {
        let mut out = Vec::new();
        if self.fault.is_none() && self.form != Form::Plain {
            self.end_line(&mut out);
        }
        if self.fault.is_none() && self.form == Form::Plain {
            self.take_text(&[], true, &mut out);
        }
        out
    }

    /// The answer so far.
    pub fn answer(&self) -> &str {
        &self.answer
    }

    /// Gives the answer away, leaving an empty one.
    pub fn take_answer(&mut self) -> String {
        std::mem::take(&mut self.answer)
    }

    /// The bound that was broken, if one was.
    pub fn fault(&self) -> Option<OutputFault> {
        self.fault
    }

    /// What a `stream_error` said, if one came.
    pub fn reported(&self) -> Option<&str> {
        self.reported.as_deref()
    }

    /// A `stream_end` or a `stream_error` came: what follows is ignored.
    pub fn has_ended(&self) -> bool {
        self.ended
    }

    /// How many byte sequences were not UTF-8 and became U+FFFD.
    pub fn invalid_sequences(&self) -> u64 {
        self.invalid_sequences
    }

    /// How many lines of a stream were no event, or came after its end.
    pub fn ignored_lines(&self) -> u64 {
        self.ignored_lines
    }

    /// Moves bytes up to a newline into the unfinished line; returns what comes after it.
    fn take_line<'a>(&mut self, bytes: &'a [u8], out: &mut Vec<Output>) -> &'a [u8] {
        let (part, rest, complete) = match memchr::memchr(b'\n', bytes) {
            Some(at) => (&bytes[..at], &bytes[at + 1..], true),
            None => (bytes, &bytes[bytes.len()..], false),
        };
        if self.form == Form::Undecided && self.cannot_be_an_event(part) {
            self.form = Form::Plain;
            return bytes;
        }
        if self.unread.len() + part.len() > MAX_LINE_BYTES {
            self.fault = Some(OutputFault::LineTooLong);
            return rest;
        }
        self.unread.extend_from_slice(part);
        if complete {
            self.end_line(out);
        }
        rest
    }

    /// Whether the line, with `part` next, starts with something else than an object: plain text
    /// is known without waiting for its first newline.
    fn cannot_be_an_event(&self, part: &[u8]) -> bool {
        let mut line = self.unread.iter().chain(part);
        line.find(|byte| !byte.is_ascii_whitespace()).is_some_and(|byte| *byte != b'{')
    }

    fn end_line(&mut self, out: &mut Vec<Output>) {
        if self.unread.iter().all(u8::is_ascii_whitespace) {
            self.unread.clear();
            return;
        }
        if self.form == Form::Undecided {
            let line = decode(&self.unread, true).text;
            let kind = serde_json::from_str::<Kind>(&line);
            let known = kind.is_ok_and(|line| EVENT_TYPES.contains(&line.kind.as_str()));
            self.form = if known { Form::Events } else { Form::Plain };
        }
        match self.form {
            Form::Events => self.take_event(out),
            Form::Undecided | Form::Plain => self.take_text(b"\n", false, out),
        }
    }

    fn take_event(&mut self, out: &mut Vec<Output>) {
        let line = std::mem::take(&mut self.unread);
        let decoded = decode(&line, true);
        self.invalid_sequences += decoded.invalid;
        let event = serde_json::from_str::<Event>(&decoded.text);
        let (Ok(event), false) = (event, self.ended) else {
            self.ignored_lines += 1;
            return;
        };
        match event {
            Event::StreamStart {} => {}
            Event::Steering {} => out.push(Output::Steering),
            Event::Steered { message_id } => out.push(Output::Steered { message_id }),
            Event::Token { text } => self.say(text, out),
            Event::Reasoning { text } => out.push(Output::Reasoning(text)),
            Event::ToolStatus { name, call_id, status, summary } => {
                out.push(Output::Tool { name, call_id, status, summary, detail: None });
            }
            Event::StreamEnd { whole } => self.end(whole.as_str().unwrap_or_default(), out),
            Event::StreamError { error, partial } => {
                self.report(&error, partial.as_str().unwrap_or_default());
            }
        }
    }

    /// A `final` text is the answer, whatever the tokens were; what it adds to them is streamed.
    fn end(&mut self, whole: &str, out: &mut Vec<Output>) {
        self.ended = true;
        if let Some(rest) = whole.strip_prefix(self.answer.as_str()) {
            self.say(rest.to_owned(), out);
        } else if whole.len() > MAX_ANSWER_BYTES {
            self.fault = Some(OutputFault::AnswerTooLarge);
        } else if !whole.is_empty() {
            self.answer = whole.to_owned();
        }
    }

    fn report(&mut self, error: &Value, partial: &str) {
        self.ended = true;
        let told = error.as_str().map_or_else(|| error.to_string(), str::to_owned);
        self.reported = Some(told.chars().take(MAX_REPORT_CHARS).collect());
        if partial.len() > self.answer.len() && partial.len() <= MAX_ANSWER_BYTES {
            self.answer = partial.to_owned();
        }
    }

    /// Plain text: all of it is the answer, but white space waits for what follows it.
    fn take_text(&mut self, bytes: &[u8], last: bool, out: &mut Vec<Output>) {
        let mut unread = std::mem::take(&mut self.unread);
        unread.extend_from_slice(bytes);
        let decoded = decode(&unread, last);
        unread.drain(..unread.len() - decoded.unread_bytes);
        self.unread = unread;
        self.invalid_sequences += decoded.invalid;

        let (text, blank) = decoded.text.split_at(decoded.text.trim_end().len());
        if !text.is_empty() {
            let mut token = std::mem::take(&mut self.held);
            token.push_str(text);
            self.say(token, out);
        }
        self.held.push_str(blank);
        if self.answer.len() + self.held.len() > MAX_ANSWER_BYTES {
            self.fault = Some(OutputFault::AnswerTooLarge);
        }
    }

    fn say(&mut self, token: String, out: &mut Vec<Output>) {
        if self.answer.len() + token.len() > MAX_ANSWER_BYTES {
            self.fault = Some(OutputFault::AnswerTooLarge);
        } else if !token.is_empty() {
            self.answer.push_str(&token);
            out.push(Output::Token(token));
        }
    }
}

struct Decoded {
    text: String,
    /// Bytes at the end that may yet become a character.
    unread_bytes: usize,
    invalid: u64,
}

/// Reads UTF-8, putting U+FFFD for what isn't. Unless these are the last bytes, a character cut
/// off at the end is left unread: at most three bytes.
fn decode(bytes: &[u8], last: bool) -> Decoded {
    let mut decoded = Decoded { text: String::with_capacity(bytes.len()), unread_bytes: 0, invalid: 0 };
    let mut rest = bytes;
    while !rest.is_empty() {
        let error = match std::str::from_utf8(rest) {
            Ok(valid) => {
                decoded.text.push_str(valid);
                break;
            }
            Err(error) => error,
        };
        let (valid, after) = rest.split_at(error.valid_up_to());
        decoded.text.push_str(&String::from_utf8_lossy(valid));
        if error.error_len().is_none() && !last {
            decoded.unread_bytes = after.len();
            break;
        }
        decoded.text.push(char::REPLACEMENT_CHARACTER);
        decoded.invalid += 1;
        rest = &after[error.error_len().unwrap_or(after.len())..];
    }
    decoded
}

#[cfg(test)]
#[path = "command_output_tests.rs"]
mod tests;
