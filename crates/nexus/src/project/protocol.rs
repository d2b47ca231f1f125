//! The words between the daemon and the process of a project: one JSON object per line, both ways
//! (docs/project-process.md). Used by both sides; it decides nothing.

use crate::agent::{Message, Output, Sender, Usage};
use crate::nostr::Template;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The version that is spoken here.
pub const PROTOCOL: u32 = 1;
/// The longest frame, in bytes without its newline.
pub const FRAME_BYTES_MAX: usize = 1024 * 1024;

/// From the daemon.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Down {
    /// To be answered. The same one comes again if it is not known how far it came; its `id` is the same then.
    Event(Box<EventFrame>),
    /// What became of a `publish`: the id of the event that was signed, or why there is none.
    AckPublished {
        id: u64,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        event_id: Option<String>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        error: Option<String>,
    },
    /// To end with exit code 0 once what is under way is answered.
    Shutdown,
    Ping {
        n: u64,
    },
}

/// An event, and what the daemon knows beside it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EventFrame {
    /// Names it in every frame about it.
    pub id: String,
    pub event: Received,
    pub sender: Sender,
    /// What was said in the project before, oldest first.
    #[serde(default)]
    pub history: Vec<Message>,
    /// What access control allows.
    #[serde(default)]
    pub permissions: Value,
}

/// An event of Nostr as it came (NIP-01).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Received {
    pub id: String,
    pub pubkey: String,
    pub kind: u16,
    /// Unix seconds.
    pub created_at: u64,
    pub content: String,
    pub tags: Vec<Vec<String>>,
    #[serde(default)]
    pub sig: String,
}

/// From the process.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Up {
    /// First of all.
    Ready {
        protocol: u32,
    },
    /// The event has come to the process. Whatever it does from then on it tells before it does it.
    Accepted {
        id: String,
    },
    /// Asks to sign and send an event.
    Publish(Box<Publish>),
    /// What it does, for people.
    Status {
        text: String,
    },
    /// A piece of what an agent says or does about an event.
    Stream {
        id: String,
        output: Output,
    },
    Log {
        #[serde(default)]
        level: String,
        text: String,
    },
    Pong {
        n: u64,
    },
    /// The event is answered.
    Complete(Box<Complete>),
}

/// An event that a process wants published.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Publish {
    /// The process's own number for it, which the answer has too.
    pub id: u64,
    /// The slug of the agent that signs.
    #[serde(rename = "as")]
    pub agent: String,
    pub template: Template,
    /// The event whose answer it is part of.
    #[serde(default, rename = "for", skip_serializing_if = "Option::is_none")]
    pub about: Option<String>,
}

/// How the answer to an event ended.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Complete {
    pub id: String,
    /// What was said, for the record: it is not delivered, the process has published it.
    #[serde(default)]
    pub content: String,
    #[serde(default)]
    pub usage: Usage,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub provider: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// One frame as a line with its newline.
///
/// # Errors
/// With the size of one that is too long.
pub fn line(frame: &impl Serialize) -> Result<Vec<u8>, String> {
    let mut line = serde_json::to_vec(frame).map_err(|error| error.to_string())?;
    if line.len() > FRAME_BYTES_MAX {
        return Err(format!("a frame of {} bytes; {FRAME_BYTES_MAX} may be sent", line.len()));
    }
    line.push(b'\n');
    Ok(line)
}

/// What the process wrote.
///
/// # Errors
/// With what is wrong about a line that is no frame.
pub fn read_up(line: &[u8]) -> Result<Up, String> {
    serde_json::from_slice(line).map_err(|error| error.to_string())
}

/// What the daemon wrote.
///
/// # Errors
/// As [`read_up`].
pub fn read_down(line: &[u8]) -> Result<Down, String> {
    serde_json::from_slice(line).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    fn up(value: Value) -> Result<Up, String> {
        read_up(value.to_string().as_bytes())
    }

    #[test]
    fn frames_are_as_documented() {
        assert_eq!(up(json!({ "type": "ready", "protocol": 1 })), Ok(Up::Ready { protocol: 1 }));
        assert_eq!(up(json!({ "type": "pong", "n": 3, "more": true })), Ok(Up::Pong { n: 3 }));
        let token = Up::Stream { id: "e".into(), output: Output::Token("a".into()) };
        assert_eq!(up(json!({ "type": "stream", "id": "e", "output": { "token": "a" } })), Ok(token));
        let template = json!({ "kind": 1, "content": "hi", "tags": [["e", "x"]], "created_at": null });
        let Up::Publish(publish) = up(json!({ "type": "publish", "id": 7, "as": "pm", "template": template, "for": "e" })).unwrap() else {
            panic!("it is no publish");
        };
        assert_eq!((publish.id, publish.agent.as_str(), publish.about.as_deref(), publish.template.kind), (7, "pm", Some("e"), 1));
        let Up::Complete(complete) = up(json!({ "type": "complete", "id": "e" })).unwrap() else { panic!("it is no end") };
        assert_eq!((complete.content.as_str(), complete.error.as_deref()), ("", None));
        let ping = serde_json::to_value(Down::Ping { n: 1 }).unwrap();
        assert_eq!(ping, json!({ "type": "ping", "n": 1 }));
        assert_eq!(serde_json::to_value(Down::Shutdown).unwrap(), json!({ "type": "shutdown" }));
    }

    #[test]
    fn what_is_no_frame_is_told_and_harmless() {
        for line in ["", "{}", "[]", "ready", r#"{"type":"fly"}"#, r#"{"type":"ready","protocol":-1}"#, "\u{0}"] {
            assert!(read_up(line.as_bytes()).is_err(), "{line}");
        }
        assert!(read_up(b"\xff\xfe").is_err());
    }

    #[test]
    fn a_frame_comes_back_as_it_was_and_one_that_is_too_long_is_refused() {
        let event = Received { id: "i".into(), pubkey: "p".into(), kind: 1, content: "line\nline".into(), ..Received::default() };
        let sender = Sender { id: "p".into(), name: None, principal: "known".into() };
        let frame =
            Down::Event(Box::new(EventFrame { id: "nostr:i".into(), event, sender, history: Vec::new(), permissions: Value::Null }));
        let line_of = line(&frame).unwrap();
        assert_eq!(line_of.iter().filter(|byte| **byte == b'\n').count(), 1);
        assert_eq!(read_down(&line_of).unwrap(), frame);
        assert!(line(&Up::Status { text: "x".repeat(FRAME_BYTES_MAX) }).is_err());
    }
}
