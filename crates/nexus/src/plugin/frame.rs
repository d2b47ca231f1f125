//! The frames of the hook protocol: one JSON object per line. It says what a line means, never what
//! follows from it.

use nexus_core::config::PluginSection;
use nexus_core::hook::Hook;
use serde::Deserialize;
use serde_json::{Value, json};
use std::time::Duration;

/// Longest line that a plugin may write, in bytes.
pub(super) const LINE_BYTES_MAX: usize = 1024 * 1024;
/// What an automation is called at.
const HANDLER: &str = "handler";
/// Longest text of an error that is kept, in characters.
const ERROR_CHARS_MAX: usize = 2000;

/// What a script's host says of the script, before anything else: of a plugin, or of an automation.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(super) struct Ready {
    pub(super) name: String,
    #[serde(default = "default_priority")]
    pub(super) priority: i64,
    #[serde(default)]
    pub(super) hooks: Vec<Hook>,
    /// What it sees of a request, if not all.
    pub(super) sections: Option<Vec<PluginSection>>,
    pub(super) description: Option<String>,
    /// As the file has them.
    #[serde(default)]
    pub(super) triggers: Value,
    /// It has a state.
    #[serde(default)]
    pub(super) remembers: bool,
}

fn default_priority() -> i64 {
    100
}

/// What a plugin answers to a call of a hook.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Reply {
    Continue,
    Skip {
        reason: Option<String>,
    },
    Patch(Value),
    /// What an automation's handler returned.
    Returned(Value),
    /// It threw.
    Error(String),
    /// It ended for what another call did.
    TakenAlong(String),
    /// An answer that is none.
    Nonsense(String),
}

/// A line of a plugin.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Up {
    Ready(Ready),
    /// The script can't be loaded.
    Fatal(String),
    Log {
        level: String,
        message: String,
    },
    /// It asks for something, in the call `id` of a hook or beside any.
    Call {
        number: u64,
        id: Option<u64>,
        method: String,
        params: Value,
    },
    Answer {
        id: u64,
        reply: Reply,
    },
}

/// A line, and whose it is where several share the process.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Frame {
    pub(super) guest: Option<u64>,
    pub(super) up: Up,
}

/// All keys that a line can have.
#[derive(Debug, Deserialize)]
struct Line {
    guest: Option<u64>,
    ready: Option<Ready>,
    fatal: Option<Thrown>,
    log: Option<Log>,
    call: Option<u64>,
    id: Option<u64>,
    result: Option<Value>,
    reason: Option<String>,
    patch: Option<Value>,
    returned: Option<Value>,
    error: Option<String>,
    #[serde(default)]
    taken_along: bool,
    file: Option<String>,
    line: Option<u64>,
    column: Option<u64>,
    method: Option<String>,
    #[serde(default)]
    params: Value,
}

#[derive(Debug, Deserialize)]
struct Thrown {
    message: String,
    file: Option<String>,
    line: Option<u64>,
    column: Option<u64>,
}

#[derive(Debug, Deserialize)]
struct Log {
    #[serde(default)]
    level: String,
    #[serde(default)]
    message: String,
}

/// Reads one line.
///
/// # Errors
/// What is wrong with it.
pub(super) fn read(line: &[u8]) -> Result<Frame, String> {
    let line: Line = serde_json::from_slice(line).map_err(|error| format!("not a frame: {error}"))?;
    Ok(Frame { guest: line.guest, up: up(line)? })
}

fn up(line: Line) -> Result<Up, String> {
    if let Some(ready) = line.ready {
        return Ok(Up::Ready(ready));
    }
    if let Some(Thrown { message, file, line, column }) = line.fatal {
        return Ok(Up::Fatal(thrown(&message, file.as_deref(), line, column)));
    }
    if let Some(Log { level, message }) = line.log {
        return Ok(Up::Log { level, message });
    }
    if let (Some(number), Some(method)) = (line.call, line.method.clone()) {
        return Ok(Up::Call { number, id: line.id, method, params: line.params });
    }
    match line.id {
        Some(id) => Ok(Up::Answer { id, reply: reply(line) }),
        None => Err("a frame has one of: id, log, call with method, ready, fatal".to_owned()),
    }
}

fn reply(line: Line) -> Reply {
    if let Some(message) = line.error {
        let message = thrown(&message, line.file.as_deref(), line.line, line.column);
        return if line.taken_along { Reply::TakenAlong(message) } else { Reply::Error(message) };
    }
    if let Some(returned) = line.returned {
        return Reply::Returned(returned);
    }
    match (line.patch, line.result) {
        (Some(patch), None) => Reply::Patch(patch),
        (None, Some(result)) => match result.as_str() {
            Some("continue") => Reply::Continue,
            Some("skip") => Reply::Skip { reason: line.reason.map(|reason| short(&reason)) },
            Some(_) | None => Reply::Nonsense(format!("`result` is {}; it can be continue or skip", short(&result.to_string()))),
        },
        (Some(_), Some(_)) => Reply::Nonsense("both `patch` and `result`".to_owned()),
        (None, None) => Reply::Nonsense("neither `result` nor `patch` nor `error`".to_owned()),
    }
}

/// What was thrown, and where.
fn thrown(message: &str, file: Option<&str>, line: Option<u64>, column: Option<u64>) -> String {
    let message = short(message);
    let Some(file) = file else { return message };
    let place: String = [line, column].into_iter().map_while(|number| number).map(|number| format!(":{number}")).collect();
    format!("{}{place}: {message}", short(file))
}

fn short(text: &str) -> String {
    text.chars().take(ERROR_CHARS_MAX).collect()
}

/// The call of a hook.
pub(super) fn call(id: u64, hook: Hook, request: Value, deadline: Duration, error: Option<Value>) -> Vec<u8> {
    let deadline_ms = u64::try_from(deadline.as_millis()).unwrap_or(u64::MAX);
    let mut frame = json!({ "id": id, "hook": hook, "deadline_ms": deadline_ms });
    frame["request"] = request;
    if let Some(error) = error {
        frame["error"] = error;
    }
    to_line(&frame)
}

/// The answer to what a plugin asked for.
pub(super) fn answer(guest: Option<u64>, number: u64, result: Result<Value, String>) -> Vec<u8> {
    let mut frame = match result {
        Ok(result) => json!({ "call": number, "result": result }),
        Err(error) => json!({ "call": number, "error": error }),
    };
    if let Some(guest) = guest {
        frame["guest"] = guest.into();
    }
    to_line(&frame)
}

/// Has a guest loaded from the text of its file.
pub(super) fn load(guest: u64, name: &str, file: &str, source: &str) -> Vec<u8> {
    to_line(&json!({ "guest": guest, "load": { "name": name, "file": file, "source": source } }))
}

/// Has a guest forgotten.
pub(super) fn unload(guest: u64) -> Vec<u8> {
    to_line(&json!({ "guest": guest, "unload": true }))
}

/// The call of a guest's handler.
pub(super) fn advise(guest: u64, id: u64, context: Value, deadline: Duration) -> Vec<u8> {
    let deadline_ms = u64::try_from(deadline.as_millis()).unwrap_or(u64::MAX);
    let mut frame = json!({ "guest": guest, "id": id, "hook": HANDLER, "deadline_ms": deadline_ms });
    frame["request"] = context;
    to_line(&frame)
}

fn to_line(frame: &Value) -> Vec<u8> {
    format!("{frame}\n").into_bytes()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn answer_of(line: &str) -> Reply {
        let heard = read(line.as_bytes()).unwrap().up;
        let Up::Answer { id: 7, reply } = heard else { panic!("not an answer to 7: {heard:?}") };
        reply
    }

    #[test]
    fn answers_are_read() {
        assert_eq!(answer_of(r#"{"id":7,"result":"continue"}"#), Reply::Continue);
        assert_eq!(answer_of(r#"{"id":7,"result":"skip","reason":"spam"}"#), Reply::Skip { reason: Some("spam".to_owned()) });
        assert_eq!(answer_of(r#"{"id":7,"patch":{"context":"x"}}"#), Reply::Patch(json!({ "context": "x" })));
        assert_eq!(answer_of(r#"{"id":7,"error":"boom","file":"a.ts","line":3,"column":9}"#), Reply::Error("a.ts:3:9: boom".to_owned()));
        assert_eq!(answer_of(r#"{"id":7,"error":"boom","line":3}"#), Reply::Error("boom".to_owned()));
        assert_eq!(answer_of(r#"{"id":7,"error":"anew","taken_along":true}"#), Reply::TakenAlong("anew".to_owned()));
        for nonsense in [r#"{"id":7}"#, r#"{"id":7,"result":"maybe"}"#, r#"{"id":7,"result":1}"#, r#"{"id":7,"patch":1,"result":"skip"}"#] {
            assert!(matches!(answer_of(nonsense), Reply::Nonsense(_)), "{nonsense}");
        }
    }

    #[test]
    fn other_frames_are_read() {
        let up = |line: &[u8]| read(line).unwrap().up;
        let ready = up(br#"{"ready":{"name":"tags","hooks":["onError"]}}"#);
        let (name, hooks, triggers) = ("tags".to_owned(), vec![Hook::OnError], Value::Null);
        let expected = Ready { name, priority: 100, hooks, sections: None, description: None, triggers, remembers: false };
        assert_eq!(ready, Up::Ready(expected));
        let part = up(br#"{"ready":{"name":"part","hooks":["onError"],"sections":["status"]}}"#);
        assert!(matches!(part, Up::Ready(Ready { sections: Some(sections), .. }) if sections == [PluginSection::Status]));
        assert_eq!(up(br#"{"fatal":{"message":"no","file":"x.ts","line":1}}"#), Up::Fatal("x.ts:1: no".to_owned()));
        assert!(matches!(up(br#"{"log":{"level":"info","message":"hi"}}"#), Up::Log { .. }));
        let call = up(br#"{"call":3,"id":7,"method":"llm","params":{"prompt":"x"}}"#);
        assert_eq!(call, Up::Call { number: 3, id: Some(7), method: "llm".to_owned(), params: json!({ "prompt": "x" }) });
    }

    #[test]
    fn frames_of_guests_say_whose_they_are() {
        let frame = read(br#"{"guest":4,"id":7,"returned":{"fire":true}}"#).unwrap();
        let reply = Reply::Returned(json!({ "fire": true }));
        assert_eq!(frame, Frame { guest: Some(4), up: Up::Answer { id: 7, reply } });
        let ready = read(br#"{"guest":4,"ready":{"name":"x","description":null,"triggers":{"event":{}},"remembers":true}}"#).unwrap();
        assert!(matches!(ready.up, Up::Ready(Ready { remembers: true, description: None, .. })), "{ready:?}");
        assert_eq!(read(br#"{"id":7,"result":"skip"}"#).unwrap().guest, None);
    }

    #[test]
    fn what_is_no_frame_is_refused() {
        for bad in ["", "x", "[]", "{}", "null", r#"{"id":-1}"#, r#"{"id":"7","result":"continue"}"#, r#"{"call":3}"#, "{\"id\":\u{7f}"] {
            assert!(read(bad.as_bytes()).is_err(), "{bad}");
        }
        assert!(read(b"\xff\xfe").is_err());
        assert!(read("[".repeat(100_000).as_bytes()).is_err());
    }
}
