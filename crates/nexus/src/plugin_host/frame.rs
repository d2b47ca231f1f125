//! The lines of the hook protocol, as this end of it reads and writes them. It owns their form and their
//! length; it never decides what they mean.

use super::trouble::Trouble;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;
use std::io::{self, BufRead};
use std::time::Duration;

/// Longest line that is read: a request, or the answer to a call.
pub(super) const LINE_IN_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Longest line that is written.
pub(super) const LINE_OUT_BYTES_MAX: usize = 1024 * 1024;

/// What the daemon wants.
#[derive(Debug)]
pub(super) enum Order<'a> {
    /// Run a hook. `request` and `error` are JSON.
    Hook { id: u64, hook: String, request: &'a str, error: Option<&'a str>, deadline: Option<Duration> },
    /// A call has come to its end: with JSON, or with what went wrong.
    Answer { call: u64, outcome: Result<&'a str, String> },
}

#[derive(Debug, Deserialize)]
struct Line<'a> {
    id: Option<u64>,
    hook: Option<String>,
    #[serde(borrow, default)]
    request: Option<&'a RawValue>,
    deadline_ms: Option<u64>,
    #[serde(borrow, default)]
    error: Option<&'a RawValue>,
    call: Option<u64>,
    #[serde(borrow, default)]
    result: Option<&'a RawValue>,
}

/// Reads one line.
///
/// # Errors
/// What is wrong with it, in words.
pub(super) fn parse(line: &[u8]) -> Result<Order<'_>, String> {
    let Line { id, hook, request, deadline_ms, error, call, result } = serde_json::from_slice(line).map_err(|error| error.to_string())?;
    if let Some(call) = call {
        let outcome = match error {
            Some(error) => Err(words(error)),
            None => Ok(result.map_or("null", RawValue::get)),
        };
        return Ok(Order::Answer { call, outcome });
    }
    let (Some(id), Some(hook), Some(request)) = (id, hook, request) else {
        return Err("neither `id`, `hook` and `request` nor `call` are there".to_owned());
    };
    let deadline = deadline_ms.map(Duration::from_millis);
    Ok(Order::Hook { id, hook, request: request.get(), error: error.map(RawValue::get), deadline })
}

/// An error's text; its JSON if it is no text.
fn words(error: &RawValue) -> String {
    let text = serde_json::from_str::<String>(error.get()).ok().filter(|text| !text.is_empty());
    text.unwrap_or_else(|| error.get().to_owned())
}

/// What this process says.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub(super) enum Up<'a> {
    /// What the file says of itself, as the prelude described it.
    Ready {
        ready: &'a Value,
    },
    Fatal {
        fatal: &'a Trouble,
    },
    Result {
        id: u64,
        result: &'static str,
    },
    Patch {
        id: u64,
        patch: &'a Value,
    },
    Returned {
        id: u64,
        returned: &'a Value,
    },
    Error {
        id: u64,
        error: &'a str,
        /// Another call is to blame.
        #[serde(skip_serializing_if = "std::ops::Not::not")]
        taken_along: bool,
        #[serde(skip_serializing_if = "Option::is_none")]
        file: Option<&'a str>,
        #[serde(skip_serializing_if = "Option::is_none")]
        line: Option<u32>,
        #[serde(skip_serializing_if = "Option::is_none")]
        column: Option<u32>,
    },
    Log {
        log: Log<'a>,
    },
    Call {
        call: u64,
        id: u64,
        method: &'a str,
        params: &'a Value,
    },
}

#[derive(Debug, Serialize)]
pub(super) struct Log<'a> {
    pub(super) level: &'a str,
    pub(super) message: &'a str,
}

/// A frame of one automation among those that share the process.
#[derive(Debug, Serialize)]
struct OfGuest<'a> {
    guest: u64,
    #[serde(flatten)]
    up: &'a Up<'a>,
}

impl<'a> Up<'a> {
    pub(super) fn error(id: u64, trouble: &'a Trouble) -> Self {
        let (file, line, column) = (trouble.file.as_deref(), trouble.line, trouble.column);
        Self::Error { id, error: &trouble.message, taken_along: false, file, line, column }
    }

    /// The error of a call that ends for what another one did.
    pub(super) fn taken_along(id: u64, why: &'a str) -> Self {
        Self::Error { id, error: why, taken_along: true, file: None, line: None, column: None }
    }

    /// Appends the frame as a line, with the number of whose it is where several share the process.
    ///
    /// # Errors
    /// Its length in bytes, when that is more than a line may have. Nothing is appended then.
    pub(super) fn append(&self, guest: Option<u64>, lines: &mut Vec<u8>) -> Result<(), usize> {
        let before = lines.len();
        let written = match guest {
            None => serde_json::to_writer(&mut *lines, self),
            Some(guest) => serde_json::to_writer(&mut *lines, &OfGuest { guest, up: self }),
        };
        written.expect("a frame is plain data, and memory takes it");
        let bytes = lines.len() - before;
        if bytes > LINE_OUT_BYTES_MAX {
            lines.truncate(before);
            return Err(bytes);
        }
        lines.push(b'\n');
        Ok(())
    }
}

/// What came on stdin.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Came {
    Line,
    /// A line that is too long, and was skipped.
    TooLong,
    End,
}

/// Reads one line without its newline into `line`. A last one without newline doesn't count: who wrote it
/// died within it.
pub(super) fn read_line(input: &mut impl BufRead, line: &mut Vec<u8>) -> io::Result<Came> {
    line.clear();
    let mut too_long = false;
    loop {
        let chunk = match input.fill_buf() {
            Ok(chunk) => chunk,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        if chunk.is_empty() {
            return Ok(Came::End);
        }
        let end = memchr::memchr(b'\n', chunk);
        let taken = end.map_or(chunk.len(), |end| end + 1);
        let part = &chunk[..end.unwrap_or(chunk.len())];
        too_long |= line.len() + part.len() > LINE_IN_BYTES_MAX;
        if !too_long {
            line.extend_from_slice(part);
        }
        input.consume(taken);
        if end.is_some() {
            return Ok(if too_long { Came::TooLong } else { Came::Line });
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    #[test]
    fn hooks_and_answers_are_told_apart() {
        let line = br#"{"id":7,"hook":"onError","request":{"a":[1]},"deadline_ms":20,"error":{"stage":"runAgent"},"later":1}"#;
        let Order::Hook { id, hook, request, error, deadline } = parse(line).unwrap() else { panic!("no hook") };
        assert_eq!((id, hook.as_str(), request, error), (7, "onError", r#"{"a":[1]}"#, Some(r#"{"stage":"runAgent"}"#)));
        assert_eq!(deadline, Some(Duration::from_millis(20)));
        let answers: [(&[u8], Result<&str, String>); 4] = [
            (br#"{"call":3,"result":[1, 2]}"#, Ok("[1, 2]")),
            (br#"{"call":3,"result":null}"#, Ok("null")),
            (br#"{"call":3,"error":"not granted"}"#, Err("not granted".to_owned())),
            (br#"{"call":3,"error":{"code":1}}"#, Err(r#"{"code":1}"#.to_owned())),
        ];
        for (line, expected) in answers {
            let Order::Answer { call: 3, outcome } = parse(line).unwrap() else { panic!("no answer to call 3") };
            assert_eq!(outcome, expected);
        }
        for line in [&b"{}"[..], b"[]", b"", b"{\"id\":1}", b"{\"id\":-1,\"hook\":\"onError\",\"request\":{}}", b"\xff"] {
            assert!(parse(line).is_err(), "{line:?}");
        }
    }

    #[test]
    fn a_long_line_is_skipped_and_half_a_line_is_none() {
        let mut input = vec![b'x'; LINE_IN_BYTES_MAX + 1];
        input.extend_from_slice(b"\nshort\n\nhalf");
        let mut input = io::BufReader::with_capacity(1000, &input[..]);
        let mut line = Vec::new();
        assert_eq!(read_line(&mut input, &mut line).unwrap(), Came::TooLong);
        assert_eq!((read_line(&mut input, &mut line).unwrap(), line.as_slice()), (Came::Line, &b"short"[..]));
        assert_eq!((read_line(&mut input, &mut line).unwrap(), line.as_slice()), (Came::Line, &b""[..]));
        assert_eq!(read_line(&mut input, &mut line).unwrap(), Came::End);
    }

    #[test]
    fn a_frame_that_is_too_long_is_not_written() {
        let mut lines = b"before\n".to_vec();
        let patch = json!("x".repeat(LINE_OUT_BYTES_MAX));
        assert!(Up::Patch { id: 1, patch: &patch }.append(None, &mut lines).unwrap_err() > LINE_OUT_BYTES_MAX);
        Up::Result { id: 1, result: "skip" }.append(None, &mut lines).unwrap();
        assert_eq!(lines, b"before\n{\"id\":1,\"result\":\"skip\"}\n");
    }

    #[test]
    fn a_frame_of_a_guest_says_whose_it_is() {
        let mut lines = Vec::new();
        let returned = json!({ "fire": true });
        Up::Returned { id: 1, returned: &returned }.append(Some(4), &mut lines).unwrap();
        Up::error(2, &Trouble::new("boom")).append(Some(5), &mut lines).unwrap();
        let expected = b"{\"guest\":4,\"id\":1,\"returned\":{\"fire\":true}}\n{\"guest\":5,\"id\":2,\"error\":\"boom\"}\n";
        assert_eq!(String::from_utf8(lines).unwrap().as_bytes(), expected);
    }
}
