//! What has come of a turn: its text and reasoning over all rounds, and the tool calls of the present one, put
//! together from what streams in. Owns their bounds; never asks anybody for anything.

use genai::chat::{ChatStreamEvent, StopReason as ModelStop, StreamEnd, ToolCall};
use serde_json::{Map, Value};

use super::REASONING_BYTES_MAX;
use super::fault::Fault;
use super::provider::CallStyle;
use crate::agent::{MAX_ANSWER_BYTES, Output, Sink, StopReason, emit};

/// Tool calls of one round.
pub(super) const CALLS_PER_ROUND_MAX: usize = 64;

/// Names and arguments of the tool calls of one round, in bytes.
pub(super) const CALLS_BYTES_MAX: usize = 1024 * 1024;

/// The answer of one turn, as far as it has come.
#[derive(Debug, Default)]
pub(super) struct Answer {
    pub(super) content: String,
    reasoning_bytes: usize,
    /// Bytes of text and reasoning of the present round.
    pub(super) round_bytes: usize,
    /// Text of the present round has come.
    has_text: bool,
    pub(super) calls: Calls,
}

impl Answer {
    /// Nothing of the present round has come, nor of those before it.
    pub(super) fn is_empty(&self) -> bool {
        self.content.is_empty() && self.reasoning_bytes == 0 && self.calls.bytes == 0
    }

    /// From now on what comes belongs to another round.
    pub(super) fn begin_round(&mut self) {
        self.round_bytes = 0;
        self.has_text = false;
        self.calls = Calls::default();
    }

    /// Takes the next event and passes it on; returns the end when it has come.
    pub(super) async fn take(&mut self, event: ChatStreamEvent, style: CallStyle, out: &Sink) -> Result<Option<StreamEnd>, Fault> {
        match event {
            ChatStreamEvent::Chunk(chunk) => self.say(chunk.content, out).await?,
            ChatStreamEvent::ReasoningChunk(chunk) => {
                self.round_bytes += chunk.content.len();
                self.reasoning_bytes += chunk.content.len();
                if self.reasoning_bytes > REASONING_BYTES_MAX {
                    let limit_bytes = REASONING_BYTES_MAX;
                    return Err(Fault::TooLarge { what: "reasoning", limit_bytes });
                }
                emit(out, Output::Reasoning(chunk.content)).await;
            }
            ChatStreamEvent::ToolCallChunk(chunk) => match style {
                CallStyle::Fragments => self.calls.add(chunk.tool_call)?,
                CallStyle::Whole => self.calls.see(&chunk.tool_call)?,
            },
            ChatStreamEvent::End(end) => return Ok(Some(end)),
            ChatStreamEvent::Start | ChatStreamEvent::Heartbeat | ChatStreamEvent::ThoughtSignatureChunk(_) => {}
        }
        Ok(None)
    }

    async fn say(&mut self, text: String, out: &Sink) -> Result<(), Fault> {
        const BREAK: &str = "\n\n";
        let is_first_of_more = !self.has_text && !self.content.is_empty() && !text.is_empty();
        let gap = if is_first_of_more { BREAK } else { "" };
        if self.content.len() + gap.len() + text.len() > MAX_ANSWER_BYTES {
            let limit_bytes = MAX_ANSWER_BYTES;
            return Err(Fault::TooLarge { what: "an answer", limit_bytes });
        }
        self.round_bytes += text.len();
        self.has_text |= !text.is_empty();
        if !gap.is_empty() {
            self.content.push_str(gap);
            emit(out, Output::Token(gap.to_owned())).await;
        }
        self.content.push_str(&text);
        emit(out, Output::Token(text)).await;
        Ok(())
    }
}

/// One call that the model asks for.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Call {
    pub(super) id: String,
    pub(super) name: String,
    /// What isn't an object is kept as it came.
    pub(super) arguments: Result<Map<String, Value>, String>,
}

impl Call {
    /// Of a call that is complete.
    pub(super) fn from_whole(call: &ToolCall) -> Self {
        let arguments = match &call.fn_arguments {
            Value::Object(arguments) => Ok(arguments.clone()),
            Value::Null => Ok(Map::new()),
            Value::String(text) => parse(text),
            other @ (Value::Bool(_) | Value::Number(_) | Value::Array(_)) => Err(other.to_string()),
        };
        Self { id: call.call_id.clone(), name: call.fn_name.clone(), arguments }
    }

    /// The call as it goes back to the model with its result.
    pub(super) fn to_whole(&self) -> ToolCall {
        ToolCall {
            call_id: self.id.clone(),
            fn_name: self.name.clone(),
            fn_arguments: Value::Object(self.arguments.clone().unwrap_or_default()),
            thought_signatures: None,
        }
    }
}

/// Arguments as text. Some models send none at all for a tool without parameters.
fn parse(text: &str) -> Result<Map<String, Value>, String> {
    if text.trim().is_empty() {
        return Ok(Map::new());
    }
    serde_json::from_str(text).map_err(|_| text.to_owned())
}

/// The calls of a round while their fragments come.
#[derive(Debug, Default)]
pub(super) struct Calls {
    begun: Vec<(String, String, String)>,
    /// Ids and bytes of those that others put together.
    whole: Vec<(String, usize)>,
    bytes: usize,
}

impl Calls {
    /// Takes a fragment. The first of a call names its tool; the others may name the call, or only its place,
    /// which `genai` makes `call_PLACE` of.
    pub(super) fn add(&mut self, fragment: ToolCall) -> Result<(), Fault> {
        let ToolCall { call_id, fn_name, fn_arguments, .. } = fragment;
        let text = match fn_arguments {
            Value::String(text) => text,
            other @ (Value::Null | Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_)) => other.to_string(),
        };
        self.bytes += text.len();
        let known = self.begun.iter().position(|(id, _, _)| *id == call_id);
        let by_place = || {
            let place = call_id.strip_prefix("call_")?.parse::<usize>().ok()?;
            (place < self.begun.len() && fn_name.is_empty()).then_some(place)
        };
        match known.or_else(by_place) {
            Some(place) => self.begun[place].2.push_str(&text),
            None if fn_name.is_empty() => {
                return Err(Fault::Unfinished { problem: "a part of a tool call came before its beginning".to_owned() });
            }
            None => {
                self.bytes += call_id.len() + fn_name.len();
                self.begun.push((call_id, fn_name, text));
            }
        }
        if self.bytes > CALLS_BYTES_MAX {
            return Err(Fault::TooLarge { what: "tool calls", limit_bytes: CALLS_BYTES_MAX });
        }
        if self.begun.len() > CALLS_PER_ROUND_MAX {
            return Err(too_many());
        }
        Ok(())
    }

    /// Counts a call that others put together: what comes of it has all that came before.
    fn see(&mut self, call: &ToolCall) -> Result<(), Fault> {
        let size = call.size();
        match self.whole.iter_mut().find(|(id, _)| *id == call.call_id) {
            Some((_, known)) => {
                self.bytes = self.bytes - *known + size;
                *known = size;
            }
            None => {
                self.bytes += size;
                self.whole.push((call.call_id.clone(), size));
            }
        }
        if self.bytes > CALLS_BYTES_MAX {
            return Err(Fault::TooLarge { what: "tool calls", limit_bytes: CALLS_BYTES_MAX });
        }
        if self.whole.len() > CALLS_PER_ROUND_MAX {
            return Err(too_many());
        }
        Ok(())
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn finish(self) -> Vec<Call> {
        let call = |(id, name, text): (String, String, String)| Call { id, name, arguments: parse(&text) };
        self.begun.into_iter().map(call).collect()
    }
}

pub(super) fn too_many() -> Fault {
    Fault::endpoint(format!("it asked for more than {CALLS_PER_ROUND_MAX} tool calls at once"), false)
}

pub(super) fn stop_reason(stop: Option<&ModelStop>) -> StopReason {
    match stop {
        Some(ModelStop::MaxTokens(_)) => StopReason::MaxTokens,
        Some(ModelStop::ContentFilter(_)) => StopReason::Error,
        Some(ModelStop::Other(raw)) if matches!(raw.as_str(), "error" | "failed" | "cancelled") => StopReason::Error,
        // Servers have many names for a natural end, and some give none before `[DONE]`.
        Some(ModelStop::Completed(_) | ModelStop::StopSequence(_) | ModelStop::ToolCall(_) | ModelStop::Other(_)) | None => {
            StopReason::EndTurn
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use serde_json::json;

    fn fragment(id: &str, name: &str, arguments: &str) -> ToolCall {
        ToolCall {
            call_id: id.to_owned(),
            fn_name: name.to_owned(),
            fn_arguments: Value::String(arguments.to_owned()),
            thought_signatures: None,
        }
    }

    #[test]
    fn unknown_stop_reasons_end_the_turn() {
        let stop = |raw: &str| stop_reason(Some(&ModelStop::from(raw.to_owned())));
        assert_eq!(stop("stop"), StopReason::EndTurn);
        assert_eq!(stop("eos_token"), StopReason::EndTurn);
        assert_eq!(stop("length"), StopReason::MaxTokens);
        assert_eq!(stop("content_filter"), StopReason::Error);
        assert_eq!(stop("error"), StopReason::Error);
        assert_eq!(stop_reason(None), StopReason::EndTurn);
    }

    #[test]
    fn calls_are_put_together_from_their_fragments() {
        let mut calls = Calls::default();
        for (id, name, text) in [
            ("toolu_a", "files__read", ""),
            ("call_0", "", "{\"path\":"),
            ("toolu_b", "files__list", ""),
            ("call_1", "", "{}"),
            ("toolu_a", "", "\"x\"}"),
        ] {
            calls.add(fragment(id, name, text)).unwrap();
        }
        let made = calls.finish();
        assert_eq!(made.len(), 2);
        assert_eq!((made[0].id.as_str(), made[0].name.as_str()), ("toolu_a", "files__read"));
        assert_eq!(made[0].to_whole().fn_arguments, json!({"path": "x"}));
        assert_eq!(made[1].arguments, Ok(Map::new()));
    }

    #[test]
    fn what_is_no_call_is_a_fault_and_bad_arguments_are_kept() {
        let mut calls = Calls::default();
        assert!(matches!(calls.add(fragment("call_7", "", "{")), Err(Fault::Unfinished { .. })));
        calls.add(fragment("a", "t", "{\"half")).unwrap();
        let made = calls.finish();
        assert_eq!(made[0].arguments, Err("{\"half".to_owned()));
        assert_eq!(made[0].to_whole().fn_arguments, json!({}));
        assert_eq!(Call::from_whole(&ToolCall { fn_arguments: json!([1]), ..fragment("a", "t", "") }).arguments, Err("[1]".to_owned()));
    }

    #[test]
    fn number_and_size_of_calls_are_bounded() {
        let mut many = Calls::default();
        for n in 0..CALLS_PER_ROUND_MAX {
            many.add(fragment(&format!("id{n}"), "t", "")).unwrap();
        }
        assert_eq!(many.add(fragment("one more", "t", "")), Err(too_many()));
        let mut large = Calls::default();
        large.add(fragment("a", "t", "")).unwrap();
        let over = large.add(fragment("a", "", &"x".repeat(CALLS_BYTES_MAX)));
        assert!(matches!(over, Err(Fault::TooLarge { .. })), "{over:?}");
    }

    #[test]
    fn a_call_that_grows_is_counted_once() {
        let mut calls = Calls::default();
        for text in ["", "{\"path\":", "{\"path\":\"x\"}"] {
            calls.see(&fragment("a", "t", text)).unwrap();
        }
        assert_eq!(calls.bytes(), fragment("a", "t", "{\"path\":\"x\"}").size());
        let other = fragment("b", "t", "{}");
        calls.see(&other).unwrap();
        assert_eq!(calls.bytes(), fragment("a", "t", "{\"path\":\"x\"}").size() + other.size());
        let over = calls.see(&fragment("b", "t", &"x".repeat(CALLS_BYTES_MAX)));
        assert!(matches!(over, Err(Fault::TooLarge { .. })), "{over:?}");
    }

    #[tokio::test]
    async fn the_answer_and_the_reasoning_are_bounded() {
        let (out, mut reader) = tokio::sync::mpsc::channel(64);
        #[expect(clippy::disallowed_methods, reason = "a test waits for it, or is over before it")]
        let drain = tokio::spawn(async move { while reader.recv().await.is_some() {} });
        let chunk = |bytes: usize| genai::chat::StreamChunk { content: "x".repeat(bytes) };

        let mut answer = Answer::default();
        let whole = ChatStreamEvent::Chunk(chunk(MAX_ANSWER_BYTES));
        assert!(matches!(answer.take(whole, CallStyle::Whole, &out).await, Ok(None)));
        let over = answer.take(ChatStreamEvent::Chunk(chunk(1)), CallStyle::Whole, &out).await.unwrap_err();
        assert!(matches!(over, Fault::TooLarge { what: "an answer", .. }), "{over:?}");
        assert_eq!(answer.content.len(), MAX_ANSWER_BYTES);

        let mut answer = Answer::default();
        let over = ChatStreamEvent::ReasoningChunk(chunk(REASONING_BYTES_MAX + 1));
        assert!(answer.take(over, CallStyle::Whole, &out).await.is_err());
        drop(out);
        drain.await.unwrap();
    }

    #[tokio::test]
    async fn texts_of_two_rounds_are_apart() {
        let (out, mut reader) = tokio::sync::mpsc::channel(64);
        let mut answer = Answer::default();
        for text in ["Let me", " look."] {
            answer.say(text.to_owned(), &out).await.unwrap();
        }
        answer.begin_round();
        for text in ["It is", " 5."] {
            answer.say(text.to_owned(), &out).await.unwrap();
        }
        assert_eq!(answer.content, "Let me look.\n\nIt is 5.");
        drop(out);
        let mut streamed = String::new();
        while let Some(Output::Token(text)) = reader.recv().await {
            streamed.push_str(&text);
        }
        assert_eq!(streamed, answer.content);
    }
}
