//! What comes in: one event of a channel, read from one adapter line.
//!
//! Parsing borrows from the line (`Cow`, `RawValue`), since it runs once for every line of every
//! adapter. It never repairs an event: what is wrong is named and the line is rejected.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use std::borrow::Cow;

/// Longest `event_id`, in bytes: it is a key, and is echoed in acknowledgements and logs.
pub const EVENT_ID_BYTES_MAX: usize = 512;
/// Longest `content_type`, in bytes: decisions name it.
pub const CONTENT_TYPE_BYTES_MAX: usize = 128;
/// Longest sender, peer or thread id, in bytes.
pub const ID_BYTES_MAX: usize = 1024;
/// Largest `metadata`, in bytes of JSON as it is written.
pub const METADATA_BYTES_MAX: usize = 64 * 1024;
/// The last millisecond of the year 9999, beyond which a timestamp is a mistake.
pub const TIMESTAMP_MS_MAX: i64 = 253_402_300_799_999;

/// Kinds of content besides those of [`SYSTEM_CONTENT`].
pub const CONTENT_TYPES: [&str; 6] = ["text", "image", "audio", "video", "file", "reaction"];
/// What the kinds begin with that tell of something instead of saying it, such as `system/member_joined`.
pub const SYSTEM_CONTENT: &str = "system/";
/// Somebody's mark on another message.
const REACTION: &str = "reaction";

/// Where a message was said.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum PeerKind {
    Dm,
    Group,
    Channel,
}

impl PeerKind {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Dm => "dm",
            Self::Group => "group",
            Self::Channel => "channel",
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        [Self::Dm, Self::Group, Self::Channel].into_iter().find(|kind| kind.as_str() == text)
    }
}

/// One adapter line, borrowed. Field meanings: adapter protocol v1.
#[derive(Debug, Deserialize)]
pub struct EventLine<'a> {
    #[serde(borrow)]
    pub event_id: Cow<'a, str>,
    /// Unix milliseconds, as the platform says; 0 when it doesn't know.
    pub timestamp: i64,
    #[serde(borrow)]
    pub content: Cow<'a, str>,
    #[serde(borrow)]
    pub content_type: Cow<'a, str>,
    #[serde(borrow)]
    pub channel: Cow<'a, str>,
    #[serde(borrow)]
    pub account_id: Cow<'a, str>,
    #[serde(borrow)]
    pub sender_id: Cow<'a, str>,
    #[serde(borrow)]
    pub peer_id: Cow<'a, str>,
    pub peer_kind: PeerKind,
    #[serde(borrow, default)]
    pub sender_name: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    pub thread_id: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    pub reply_to_id: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    pub attachments: Option<&'a RawValue>,
    #[serde(borrow, default)]
    pub metadata: Option<&'a RawValue>,
}

/// An accepted event, owned, as the ledger holds it and as a request shows it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Event {
    pub event_id: String,
    /// Unix milliseconds by the platform's clock.
    pub timestamp: i64,
    pub content: String,
    pub content_type: String,
    pub channel: String,
    pub account_id: String,
    pub sender_id: String,
    pub peer_id: String,
    pub peer_kind: PeerKind,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sender_name: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub thread_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reply_to_id: Option<String>,
    #[serde(default, skip_serializing_if = "serde_json::Value::is_null")]
    #[schemars(with = "Option<Vec<Attachment>>")]
    pub attachments: serde_json::Value,
    #[serde(default, skip_serializing_if = "serde_json::Value::is_null")]
    #[schemars(with = "Option<std::collections::BTreeMap<String, serde_json::Value>>")]
    pub metadata: serde_json::Value,
}

/// What came with a message, by the adapter protocol. It is kept as the adapter wrote it, and nothing of it is checked.
#[derive(Debug, JsonSchema)]
pub struct Attachment {
    pub id: Option<String>,
    pub filename: Option<String>,
    /// A media type, such as `image/png`.
    pub content_type: Option<String>,
    pub size_bytes: Option<u64>,
    pub url: Option<String>,
    pub path: Option<String>,
}

impl Event {
    /// The lane in which order is promised: channel, account, peer and thread. The unit separator
    /// keeps parts apart that contain each other's characters.
    pub fn conversation(&self) -> String {
        let thread = self.thread_id.as_deref().unwrap_or("");
        [&self.channel, &self.account_id, &self.peer_id, thread].join("\u{1f}")
    }
}

/// Whether an event of this kind says nothing to anybody: it asks an agent only where a policy names its kind.
pub fn is_incidental(content_type: &str) -> bool {
    content_type == REACTION || content_type.starts_with(SYSTEM_CONTENT)
}

/// Why a line is not an event. The text says what is wrong and what would be right.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Reject {
    #[error("line of {bytes} bytes is longer than max_line_bytes ({max}); shorten it or raise the limit")]
    TooLong { bytes: u64, max: u64 },
    #[error("line is not UTF-8 (first bad byte at {at}); send UTF-8, base64 for binary content")]
    NotUtf8 { at: usize },
    #[error("line is not JSON: {0}; send one JSON object per line")]
    NotJson(String),
    #[error("line is not an event: {0}")]
    NotAnEvent(String),
    #[error("event is for channel `{got}`, this adapter's channel is `{expected}`")]
    WrongChannel { got: String, expected: String },
    #[error("event is for account `{got}`, this process was started for `{expected}`")]
    WrongAccount { got: String, expected: String },
    #[error("output ended in the middle of a line of {bytes} bytes")]
    Unfinished { bytes: u64 },
}

impl Reject {
    /// A short stable word for counters and for the `rejected_lines` table.
    pub fn code(&self) -> &'static str {
        match self {
            Self::TooLong { .. } => "too_long",
            Self::NotUtf8 { .. } => "not_utf8",
            Self::NotJson(_) => "not_json",
            Self::NotAnEvent(_) => "not_an_event",
            Self::WrongChannel { .. } => "wrong_channel",
            Self::WrongAccount { .. } => "wrong_account",
            Self::Unfinished { .. } => "unfinished",
        }
    }
}

/// Reads one line (without its newline) spoken by the adapter process for `channel`/`account`.
///
/// # Errors
/// [`Reject`], for anything the adapter protocol doesn't allow.
pub fn parse_line<'a>(line: &'a [u8], channel: &str, account: &str) -> Result<EventLine<'a>, Reject> {
    let text = match simdutf8::basic::from_utf8(line) {
        Ok(text) => text,
        // The fast check doesn't say where; the slow one runs only for a line that is bad anyway.
        Err(_) => match std::str::from_utf8(line) {
            Ok(text) => text,
            Err(error) => return Err(Reject::NotUtf8 { at: error.valid_up_to() }),
        },
    };
    let event: EventLine<'a> = serde_json::from_str(text).map_err(|error| match error.classify() {
        serde_json::error::Category::Data => Reject::NotAnEvent(error.to_string()),
        serde_json::error::Category::Syntax | serde_json::error::Category::Eof | serde_json::error::Category::Io => {
            Reject::NotJson(error.to_string())
        }
    })?;
    validate(&event)?;
    if event.channel != channel {
        return Err(Reject::WrongChannel { got: event.channel.into_owned(), expected: channel.to_owned() });
    }
    if event.account_id != account {
        return Err(Reject::WrongAccount { got: event.account_id.into_owned(), expected: account.to_owned() });
    }
    Ok(event)
}

fn validate(event: &EventLine<'_>) -> Result<(), Reject> {
    let wrong = |text: String| Err(Reject::NotAnEvent(text));
    let source = event.event_id.strip_prefix(&*event.channel).and_then(|rest| rest.strip_prefix(':'));
    if source.is_none_or(str::is_empty) {
        return wrong(format!("event_id must be `{}:<id of the platform>`", event.channel));
    }
    if event.event_id.len() > EVENT_ID_BYTES_MAX {
        return wrong(format!("event_id is longer than {EVENT_ID_BYTES_MAX} bytes"));
    }
    for (name, value) in [("sender_id", &event.sender_id), ("peer_id", &event.peer_id)] {
        if value.is_empty() || value.len() > ID_BYTES_MAX {
            return wrong(format!("{name} must have 1 to {ID_BYTES_MAX} bytes"));
        }
    }
    if event.thread_id.as_ref().is_some_and(|id| id.len() > ID_BYTES_MAX) {
        return wrong(format!("thread_id is longer than {ID_BYTES_MAX} bytes"));
    }
    if let Some(bytes) = event.metadata.map(|metadata| metadata.get().len()).filter(|bytes| *bytes > METADATA_BYTES_MAX) {
        return wrong(format!("metadata has {bytes} bytes of JSON, and {METADATA_BYTES_MAX} are allowed; texts belong into content"));
    }
    if !(0..=TIMESTAMP_MS_MAX).contains(&event.timestamp) {
        return wrong(format!("timestamp {} is not Unix milliseconds up to the year 9999 (0 = unknown)", event.timestamp));
    }
    let known = CONTENT_TYPES.contains(&&*event.content_type);
    if !known && !event.content_type.starts_with(SYSTEM_CONTENT) {
        return wrong(format!("content_type `{}` is none of text image audio video file reaction system/...", event.content_type));
    }
    if event.content_type.len() > CONTENT_TYPE_BYTES_MAX {
        return wrong(format!("content_type is longer than {CONTENT_TYPE_BYTES_MAX} bytes"));
    }
    Ok(())
}

/// The `event_id` of a line that was rejected, if one can be read: such a line is acknowledged once
/// its reject row is committed, so that its adapter doesn't send it for ever.
pub fn readable_id(line: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct Only<'a> {
        #[serde(borrow)]
        event_id: Cow<'a, str>,
    }
    let only: Only<'_> = serde_json::from_slice(line).ok()?;
    (!only.event_id.is_empty() && only.event_id.len() <= EVENT_ID_BYTES_MAX).then(|| only.event_id.into_owned())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn line(change: impl Fn(&mut serde_json::Value)) -> Vec<u8> {
        let mut value = serde_json::json!({
            "event_id": "chat:1", "timestamp": 5, "content": "hi \u{1F680}", "content_type": "text",
            "channel": "chat", "account_id": "me", "sender_id": "u", "peer_id": "p", "peer_kind": "dm"
        });
        change(&mut value);
        serde_json::to_vec(&value).unwrap()
    }

    fn reject(line: &[u8]) -> Reject {
        parse_line(line, "chat", "me").unwrap_err()
    }

    #[test]
    fn reads_a_plain_event_and_ignores_unknown_fields() {
        let bytes = line(|v| v["new_field"] = serde_json::json!([1, 2]));
        let event = parse_line(&bytes, "chat", "me").unwrap();
        assert_eq!(event.content, "hi \u{1F680}");
        assert_eq!(event.peer_kind, PeerKind::Dm);
        assert!(event.thread_id.is_none());
    }

    #[test]
    fn names_what_is_wrong() {
        assert_eq!(reject(b"\xff").code(), "not_utf8");
        assert_eq!(reject(b"hello").code(), "not_json");
        assert_eq!(reject(b"{\"event_id\":").code(), "not_json");
        assert_eq!(reject(b"{}").code(), "not_an_event");
        assert_eq!(reject(&line(|v| v["account_id"] = "you".into())).code(), "wrong_account");
        assert_eq!(
            reject(&line(|v| {
                v["channel"] = "mail".into();
                v["event_id"] = "mail:1".into()
            }))
            .code(),
            "wrong_channel"
        );
        for bad in ["chat", "chat:", "mail:1", ""] {
            assert_eq!(reject(&line(|v| v["event_id"] = bad.into())).code(), "not_an_event", "{bad}");
        }
        assert_eq!(reject(&line(|v| v["content_type"] = "exe".into())).code(), "not_an_event");
        assert_eq!(reject(&line(|v| v["content_type"] = format!("system/{}", "x".repeat(200)).into())).code(), "not_an_event");
        assert_eq!(reject(&line(|v| v["event_id"] = format!("chat:{}", "x".repeat(600)).into())).code(), "not_an_event");
    }

    #[test]
    fn what_says_nothing_is_told_from_what_does() {
        let incidental = ["reaction", "system/member_joined", "system/"].map(is_incidental);
        assert_eq!((incidental, CONTENT_TYPES.iter().filter(|kind| !is_incidental(kind)).count()), ([true; 3], CONTENT_TYPES.len() - 1));
    }

    #[test]
    fn metadata_has_a_bound() {
        // A text of that many bytes, quoted.
        let of = |bytes: usize| line(|v| v["metadata"] = "x".repeat(bytes - 2).into());
        assert!(parse_line(&of(METADATA_BYTES_MAX), "chat", "me").is_ok());
        let Reject::NotAnEvent(why) = reject(&of(METADATA_BYTES_MAX + 1)) else { panic!("another reject") };
        assert!(why.starts_with("metadata has 65537 bytes"), "{why}");
    }

    #[test]
    fn odd_timestamps() {
        assert!(parse_line(&line(|v| v["timestamp"] = 0.into()), "chat", "me").is_ok());
        assert!(parse_line(&line(|v| v["timestamp"] = 253_402_300_799_000_i64.into()), "chat", "me").is_ok());
        assert_eq!(reject(&line(|v| v["timestamp"] = (-1).into())).code(), "not_an_event");
        assert_eq!(reject(&line(|v| v["timestamp"] = 253_402_300_800_000_i64.into())).code(), "not_an_event");
        assert_eq!(reject(&line(|v| v["timestamp"] = "soon".into())).code(), "not_an_event");
    }

    #[test]
    fn finds_the_id_of_a_rejected_line() {
        assert_eq!(readable_id(b"{\"event_id\":\"chat:9\",\"timestamp\":\"x\"}").as_deref(), Some("chat:9"));
        assert_eq!(readable_id(b"nonsense"), None);
    }

    #[test]
    fn conversations_do_not_run_into_each_other() {
        let event = |peer: &str, thread: Option<&str>| Event {
            event_id: "c:1".into(),
            timestamp: 0,
            content: String::new(),
            content_type: "text".into(),
            channel: "c".into(),
            account_id: "a".into(),
            sender_id: "s".into(),
            peer_id: peer.into(),
            peer_kind: PeerKind::Group,
            sender_name: None,
            thread_id: thread.map(Into::into),
            reply_to_id: None,
            attachments: serde_json::Value::Null,
            metadata: serde_json::Value::Null,
        };
        assert_ne!(event("p:t", None).conversation(), event("p", Some("t")).conversation());
    }
}
