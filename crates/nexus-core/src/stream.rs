//! What goes to an adapter's `stream` process and what comes back (contract, 'Adapter protocol v1'), and the bounded
//! queue of what a process that is slow hasn't taken yet. Reads and writes no pipe, and decides about no delivery.

use crate::protocol::{DeliveryError, SendOutcome};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::VecDeque;

/// Bytes of text that wait for a process; what comes beyond is left out, and in the end told as a whole.
pub const QUEUE_BYTES_MAX: usize = 1024 * 1024;
/// Events that wait for a process, of which neighbours of one kind count as one.
pub const QUEUE_EVENTS_MAX: usize = 256;
/// Message ids of one answer, and bytes of one of them.
const MESSAGE_IDS_MAX: usize = 1000;
const MESSAGE_ID_BYTES_MAX: usize = 1024;
/// Characters that are kept of an adapter's reason.
const REASON_CHARS_MAX: usize = 2000;

/// Where an answer goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct StreamTarget {
    pub channel: String,
    pub account_id: String,
    pub to: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub thread_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reply_to_id: Option<String>,
}

/// One line to the process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "type", rename_all = "snake_case", rename_all_fields = "camelCase")]
pub enum StreamEvent {
    StreamStart {
        run_id: String,
        session_label: String,
        /// Unique to this stream, and the key under which it's sent if it can't be shown.
        idempotency_key: String,
        target: StreamTarget,
    },
    Token {
        text: String,
    },
    Reasoning {
        text: String,
    },
    ToolStatus {
        tool_name: String,
        tool_call_id: String,
        status: String,
        #[serde(skip_serializing_if = "Option::is_none")]
        summary: Option<String>,
    },
    /// The answer is over, and this is all of it.
    StreamEnd {
        run_id: String,
        #[serde(rename = "final")]
        whole: String,
    },
    /// No more comes of it.
    StreamError {
        error: String,
        partial: String,
    },
}

impl StreamEvent {
    /// Bytes of its texts.
    fn bytes(&self) -> usize {
        match self {
            Self::Token { text } | Self::Reasoning { text } => text.len(),
            Self::ToolStatus { tool_name, tool_call_id, summary, .. } => {
                tool_name.len() + tool_call_id.len() + summary.as_ref().map_or(0, String::len)
            }
            Self::StreamStart { .. } => 0,
            Self::StreamEnd { whole: text, .. } | Self::StreamError { partial: text, .. } => text.len(),
        }
    }

    /// Takes in what follows it, if the two can be told as one; gives it back otherwise.
    fn join(&mut self, next: Self) -> Option<Self> {
        match (self, next) {
            (Self::Token { text }, Self::Token { text: more }) | (Self::Reasoning { text }, Self::Reasoning { text: more }) => {
                text.push_str(&more);
                None
            }
            (_, next) => Some(next),
        }
    }
}

/// Events that the process has yet to take.
#[derive(Debug, Default)]
pub struct EventQueue {
    events: VecDeque<StreamEvent>,
    bytes: usize,
}

impl EventQueue {
    /// Adds one, to the one before it where that goes. False when there is no room: it is left out.
    pub fn push(&mut self, event: StreamEvent) -> bool {
        let bytes = event.bytes();
        if self.bytes + bytes > QUEUE_BYTES_MAX {
            return false;
        }
        let event = match self.events.back_mut() {
            Some(last) => last.join(event),
            None => Some(event),
        };
        if let Some(event) = event {
            if self.events.len() >= QUEUE_EVENTS_MAX {
                return false;
            }
            self.events.push_back(event);
        }
        self.bytes += bytes;
        true
    }

    /// All that is there, in order.
    pub fn take(&mut self) -> Vec<StreamEvent> {
        self.bytes = 0;
        self.events.drain(..).collect()
    }
}

/// One line from the process, as far as it matters.
#[derive(Debug, Clone, PartialEq)]
pub enum StreamStatus {
    /// A message of the answer is on the platform.
    Shown,
    /// The answer is there, in these messages.
    Complete {
        message_ids: Vec<String>,
    },
    Failed {
        error: Value,
    },
    /// What a newer adapter may say.
    Unknown,
}

#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", rename_all_fields = "camelCase")]
enum Wire {
    MessageCreated {
        run_id: Option<String>,
    },
    MessageUpdated {
        run_id: Option<String>,
    },
    MessageSent {
        run_id: Option<String>,
    },
    DeliveryComplete {
        run_id: Option<String>,
        message_ids: Vec<String>,
    },
    DeliveryError {
        run_id: Option<String>,
        #[serde(default)]
        error: Value,
    },
    #[serde(other)]
    Unknown,
}

impl StreamStatus {
    /// Reads one line: of which run it says something, where it tells, and what.
    ///
    /// # Errors
    /// A sentence about what is wrong with it: it isn't JSON, no status, or beyond a bound.
    pub fn read(line: &[u8]) -> Result<(Option<String>, Self), String> {
        let wire: Wire = serde_json::from_slice(line).map_err(|error| format!("no status of a stream: {error}"))?;
        match wire {
            Wire::MessageCreated { run_id } | Wire::MessageUpdated { run_id } | Wire::MessageSent { run_id } => Ok((run_id, Self::Shown)),
            Wire::DeliveryComplete { run_id, message_ids } => {
                let is_odd = |id: &String| id.is_empty() || id.len() > MESSAGE_ID_BYTES_MAX;
                if message_ids.len() > MESSAGE_IDS_MAX || message_ids.iter().any(is_odd) {
                    return Err(format!("`delivery_complete` with more than {MESSAGE_IDS_MAX} ids, or an empty or too long one"));
                }
                Ok((run_id, Self::Complete { message_ids }))
            }
            Wire::DeliveryError { run_id, error } => Ok((run_id, Self::Failed { error })),
            Wire::Unknown => Ok((None, Self::Unknown)),
        }
    }
}

/// What `delivery_complete` comes to.
#[must_use]
pub fn completed(message_ids: Vec<String>) -> SendOutcome {
    if message_ids.is_empty() {
        return SendOutcome::Uncertain { error: "the adapter reports the end of a stream without a message id".into() };
    }
    SendOutcome::Sent { message_ids }
}

/// What `delivery_error` comes to: before a message was shown, by the adapter's own word, nothing is on the platform.
#[must_use]
pub fn refused(error: &Value, was_shown: bool) -> SendOutcome {
    let known = serde_json::from_value::<DeliveryError>(error.clone()).ok();
    let told = known.as_ref().map(|known| known.message.clone()).or_else(|| error.as_str().map(str::to_owned));
    let reason: String = told.unwrap_or_else(|| error.to_string()).chars().take(REASON_CHARS_MAX).collect();
    if was_shown {
        return SendOutcome::Uncertain { error: format!("the stream broke off after a part was shown: {reason}") };
    }
    match known {
        Some(known) if known.type_.is_final() => SendOutcome::Failed { error: reason },
        Some(known) => SendOutcome::Retry { error: reason, after_ms: known.retry_after_ms },
        None => SendOutcome::Retry { error: reason, after_ms: None },
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn token(text: &str) -> StreamEvent {
        StreamEvent::Token { text: text.to_owned() }
    }

    #[test]
    fn events_have_the_names_of_the_contract() {
        let target = StreamTarget {
            channel: "fake".into(),
            account_id: "me".into(),
            to: "p".into(),
            thread_id: None,
            reply_to_id: Some("1".into()),
        };
        let (run_id, session_label, idempotency_key) = ("run_1".into(), "dm:u".into(), "run_1:1:0".into());
        let start = StreamEvent::StreamStart { run_id, session_label, idempotency_key, target };
        let wanted = json!({ "type": "stream_start", "runId": "run_1", "sessionLabel": "dm:u", "idempotencyKey": "run_1:1:0",
            "target": { "channel": "fake", "account_id": "me", "to": "p", "reply_to_id": "1" } });
        assert_eq!(serde_json::to_value(start).unwrap(), wanted);
        let tool = StreamEvent::ToolStatus { tool_name: "ls".into(), tool_call_id: "c".into(), status: "started".into(), summary: None };
        let wanted = json!({ "type": "tool_status", "toolName": "ls", "toolCallId": "c", "status": "started" });
        assert_eq!(serde_json::to_value(tool).unwrap(), wanted);
        let end = StreamEvent::StreamEnd { run_id: "run_1".into(), whole: "all".into() };
        assert_eq!(serde_json::to_value(end).unwrap(), json!({ "type": "stream_end", "runId": "run_1", "final": "all" }));
    }

    #[test]
    fn statuses_are_read_and_what_is_none_is_told() {
        let read = |line: &str| StreamStatus::read(line.as_bytes());
        assert_eq!(read(r#"{"type":"message_created","messageId":"m1"}"#).unwrap(), (None, StreamStatus::Shown));
        assert_eq!(read(r#"{"type":"message_updated","messageId":"m1","chars":7}"#).unwrap(), (None, StreamStatus::Shown));
        let complete = StreamStatus::Complete { message_ids: vec!["m1".into()] };
        assert_eq!(read(r#"{"type":"delivery_complete","messageIds":["m1"]}"#).unwrap(), (None, complete));
        let of_a_run = r#"{"type":"delivery_error","runId":"run_1","error":"no"}"#;
        assert_eq!(read(of_a_run).unwrap(), (Some("run_1".into()), StreamStatus::Failed { error: json!("no") }));
        assert_eq!(read(r#"{"type":"typing"}"#).unwrap(), (None, StreamStatus::Unknown));
        for bad in ["connecting", "{}", "[]", r#"{"type":"delivery_complete"}"#, r#"{"type":"delivery_complete","messageIds":[""]}"#] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn only_what_surely_is_not_there_is_sent_again() {
        let network = json!({ "type": "network", "message": "gone", "retry": true });
        assert!(matches!(refused(&network, false), SendOutcome::Retry { .. }));
        assert!(matches!(refused(&network, true), SendOutcome::Uncertain { .. }));
        assert!(matches!(refused(&json!("no edits here"), false), SendOutcome::Retry { .. }));
        let final_one = json!({ "type": "not_found", "message": "no such peer" });
        assert_eq!(refused(&final_one, false), SendOutcome::Failed { error: "no such peer".into() });
        assert!(matches!(completed(Vec::new()), SendOutcome::Uncertain { .. }));
    }

    #[test]
    fn a_queue_that_nobody_takes_from_is_bounded() {
        let mut queue = EventQueue::default();
        let half = "x".repeat(QUEUE_BYTES_MAX / 2);
        assert_eq!([queue.push(token(&half)), queue.push(token(&half)), queue.push(token("y"))], [true, true, false]);
        assert_eq!(queue.take().len(), 1);
        assert!(queue.push(token("y")));
        let tool = |n: usize| StreamEvent::ToolStatus {
            tool_name: "t".into(),
            tool_call_id: n.to_string(),
            status: "started".into(),
            summary: None,
        };
        let taken = (0..QUEUE_EVENTS_MAX * 2).filter(|n| queue.push(tool(*n))).count();
        assert_eq!(taken, QUEUE_EVENTS_MAX - 1);
    }

    proptest! {
        #[test]
        fn however_it_is_taken_the_text_is_the_same(steps in prop::collection::vec(("[a-z]{0,5}", any::<bool>(), any::<bool>()), 0..50)) {
            let (mut queue, mut said, mut taken) = (EventQueue::default(), String::new(), Vec::new());
            for (text, is_token, is_taken) in steps {
                let event = if is_token {
                    said.push_str(&text);
                    StreamEvent::Token { text }
                } else {
                    StreamEvent::Reasoning { text }
                };
                let has_room = queue.push(event);
                prop_assert!(has_room);
                if is_taken {
                    taken.extend(queue.take());
                }
            }
            taken.extend(queue.take());
            let texts = taken.iter().filter_map(|event| match event {
                StreamEvent::Token { text } => Some(text.as_str()),
                StreamEvent::Reasoning { .. } => None,
                other @ (StreamEvent::StreamStart { .. } | StreamEvent::ToolStatus { .. } | StreamEvent::StreamEnd { .. }
                    | StreamEvent::StreamError { .. }) => panic!("{other:?}"),
            });
            prop_assert_eq!(texts.collect::<String>(), said);
        }
    }
}
