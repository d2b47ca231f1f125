//! What an agent says in one turn, out of the protocol's updates: its answer, its thoughts, its tool
//! calls. Owns the bounds of all three. Reads no connection: updates go in, pieces come out.

use super::permission::Wish;
use crate::agent::llm::{REASONING_BYTES_MAX, RECORDED_BYTES_MAX, head};
use crate::agent::{MAX_ANSWER_BYTES, Output, ToolStatus};
use agent_client_protocol::v1::schema::{
    ContentBlock, ContentChunk, MessageId, SessionUpdate, ToolCallContent, ToolCallStatus, ToolCallUpdate, ToolCallUpdateFields, ToolKind,
};
use std::collections::HashMap;

/// Tool calls of one turn whose title is remembered; later ones go by their id.
const TOOLS_MAX: usize = 1000;
/// Characters of a title that are kept.
const TITLE_CHARS_MAX: usize = 200;
/// Between two messages of one turn.
const BETWEEN_MESSAGES: &str = "\n\n";

#[derive(Debug)]
struct Tool {
    title: String,
    name: Option<String>,
    kind: ToolKind,
    status: ToolStatus,
}

#[derive(Debug, Default)]
pub(super) struct Said {
    answer: String,
    /// The message that the end of the answer belongs to, if the agent tells messages apart.
    message: Option<MessageId>,
    tools: HashMap<String, Tool>,
    thought_bytes: usize,
    is_too_long: bool,
}

impl Said {
    /// Takes one update; returns what it adds, in order.
    pub(super) fn take(&mut self, update: SessionUpdate) -> Option<Output> {
        match update {
            SessionUpdate::AgentMessageChunk(chunk) => self.say(chunk),
            SessionUpdate::AgentThoughtChunk(chunk) => self.think(chunk),
            SessionUpdate::ToolCall(call) => self.tool(call.into()),
            SessionUpdate::ToolCallUpdate(update) => self.tool(update),
            SessionUpdate::UserMessageChunk(_)
            | SessionUpdate::Plan(_)
            | SessionUpdate::AvailableCommandsUpdate(_)
            | SessionUpdate::CurrentModeUpdate(_)
            | SessionUpdate::ConfigOptionUpdate(_)
            | SessionUpdate::SessionInfoUpdate(_)
            | SessionUpdate::UsageUpdate(_)
            | SessionUpdate::Notice(_)
            | SessionUpdate::CompactionUpdate(_)
            | SessionUpdate::CompactionSummaryChunk(_) => None,
            _ => None,
        }
    }

    /// Whether the answer is longer than an answer may be; what came after the bound is lost.
    pub(super) fn is_too_long(&self) -> bool {
        self.is_too_long
    }

    /// Gives the answer away.
    pub(super) fn take_answer(&mut self) -> String {
        std::mem::take(&mut self.answer)
    }

    /// What a request for permission is about, with what was told of that call before.
    pub(super) fn wish(&self, call: &ToolCallUpdate) -> Wish {
        let id = cut(&call.tool_call_id.0);
        let known = self.tools.get(&id);
        let title = call.fields.title.as_deref().map(cut).or_else(|| known.map(|tool| tool.title.clone()));
        Wish {
            kind: word(call.fields.kind.or_else(|| known.map(|tool| tool.kind)).unwrap_or_default()),
            title: title.unwrap_or(id),
            name: call.fields.name.as_deref().map(cut).or_else(|| known.and_then(|tool| tool.name.clone())),
        }
    }

    /// Of thoughts without end only the beginning is passed on.
    fn think(&mut self, chunk: ContentChunk) -> Option<Output> {
        let text = text_of(chunk.content)?;
        self.thought_bytes = self.thought_bytes.saturating_add(text.len());
        (self.thought_bytes <= REASONING_BYTES_MAX).then_some(Output::Reasoning(text))
    }

    fn say(&mut self, chunk: ContentChunk) -> Option<Output> {
        let mut text = text_of(chunk.content)?;
        let is_other = self.message.is_some() && chunk.message_id.is_some() && self.message != chunk.message_id;
        if is_other && !self.answer.is_empty() {
            text.insert_str(0, BETWEEN_MESSAGES);
        }
        self.message = chunk.message_id.or_else(|| self.message.take());
        if self.is_too_long || self.answer.len() + text.len() > MAX_ANSWER_BYTES {
            self.is_too_long = true;
            return None;
        }
        self.answer.push_str(&text);
        Some(Output::Token(text))
    }

    /// A call, or news of one: told when it begins and when it ends.
    fn tool(&mut self, call: ToolCallUpdate) -> Option<Output> {
        let id = cut(&call.tool_call_id.0);
        let wish = self.wish(&call);
        let known = self.tools.get(&id);
        let (before, kind) = (known.map(|tool| tool.status), call.fields.kind.or_else(|| known.map(|tool| tool.kind)));
        // Without a word about its status a call that is new has begun, and one that is known goes on.
        let status = status_of(call.fields.status).or(before).unwrap_or(ToolStatus::Started);
        if self.tools.len() < TOOLS_MAX || before.is_some() {
            let tool = Tool { title: wish.title.clone(), name: wish.name.clone(), kind: kind.unwrap_or_default(), status };
            self.tools.insert(id.clone(), tool);
        }
        let is_news = before.is_none_or(|before| before != status && status != ToolStatus::Started);
        let name = wish.name.clone().unwrap_or_else(|| wish.title.clone());
        let detail = detail(call.fields, status);
        is_news.then(|| Output::Tool { name, call_id: id, status, summary: Some(wish.told()), detail })
    }
}

/// What goes into a call that begins, or came out of one that ended.
fn detail(fields: ToolCallUpdateFields, status: ToolStatus) -> Option<String> {
    let text = match status {
        ToolStatus::Started => fields.raw_input?.to_string(),
        ToolStatus::Completed | ToolStatus::Failed => match fields.raw_output {
            Some(output) => output.to_string(),
            None => fields.content.into_iter().flatten().filter_map(text_in).collect::<Vec<_>>().join("\n"),
        },
    };
    Some(head(&text, RECORDED_BYTES_MAX)).filter(|text| !text.is_empty())
}

fn text_in(content: ToolCallContent) -> Option<String> {
    match content {
        ToolCallContent::Content(content) => text_of(content.content),
        ToolCallContent::Diff(diff) => Some(diff.path.display().to_string()),
        ToolCallContent::Terminal(_) => None,
        _ => None,
    }
}

fn status_of(status: Option<ToolCallStatus>) -> Option<ToolStatus> {
    match status? {
        ToolCallStatus::Pending | ToolCallStatus::InProgress => Some(ToolStatus::Started),
        ToolCallStatus::Completed => Some(ToolStatus::Completed),
        ToolCallStatus::Failed => Some(ToolStatus::Failed),
        _ => None,
    }
}

/// Text that isn't empty; an answer has no place for images and sounds.
fn text_of(content: ContentBlock) -> Option<String> {
    match content {
        ContentBlock::Text(text) => Some(text.text).filter(|text| !text.is_empty()),
        ContentBlock::ResourceLink(link) => Some(link.uri).filter(|uri| !uri.is_empty()),
        ContentBlock::Image(_) | ContentBlock::Audio(_) | ContentBlock::Resource(_) => None,
        _ => None,
    }
}

/// The protocol's own word for a kind of tool.
fn word(kind: ToolKind) -> String {
    let word = serde_json::to_value(kind).ok().and_then(|word| word.as_str().map(str::to_owned));
    word.unwrap_or_else(|| "other".to_owned())
}

/// One line of bounded length: it is logged and sent to people.
fn cut(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(TITLE_CHARS_MAX).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use serde_json::{Value, json};

    fn update(value: Value) -> SessionUpdate {
        serde_json::from_value(value).unwrap()
    }

    fn chunk(text: &str, message: Option<&str>) -> SessionUpdate {
        update(json!({ "sessionUpdate": "agent_message_chunk", "content": { "type": "text", "text": text }, "messageId": message }))
    }

    fn tool(status: ToolStatus, detail: Option<&str>) -> Option<Output> {
        let (name, call_id, summary) = ("Reading files".to_owned(), "c1".to_owned(), Some("to read: Reading files".to_owned()));
        Some(Output::Tool { name, call_id, status, summary, detail: detail.map(str::to_owned) })
    }

    #[test]
    fn messages_of_one_turn_are_told_apart_and_pieces_of_one_are_not() {
        let mut said = Said::default();
        for (text, message) in [("Hello ", None), ("there.", Some("m1")), ("", Some("m1")), ("Now", Some("m2")), (" this.", None)] {
            said.take(chunk(text, message));
        }
        assert_eq!(said.take_answer(), "Hello there.\n\nNow this.");
    }

    #[test]
    fn an_answer_ends_where_answers_end() {
        let mut said = Said::default();
        said.take(chunk(&"x".repeat(MAX_ANSWER_BYTES), None));
        assert!(!said.is_too_long());
        assert_eq!(said.take(chunk("y", None)), None);
        assert!(said.is_too_long());
        assert_eq!(said.take_answer().len(), MAX_ANSWER_BYTES);
    }

    #[test]
    fn a_tool_call_is_told_at_its_beginning_and_at_its_end() {
        let mut said = Said::default();
        let mut call = json!({ "sessionUpdate": "tool_call", "toolCallId": "c1", "title": "Reading\nfiles", "kind": "read" });
        call["rawInput"] = json!({ "path": "/a" });
        assert_eq!(said.take(update(call)), tool(ToolStatus::Started, Some(r#"{"path":"/a"}"#)));
        let news = |status: Value| update(json!({ "sessionUpdate": "tool_call_update", "toolCallId": "c1", "status": status }));
        assert_eq!(said.take(news(json!("in_progress"))), None);
        assert_eq!(said.take(news(Value::Null)), None);
        assert_eq!(said.take(news(json!("completed"))), tool(ToolStatus::Completed, None));
        assert_eq!(said.take(news(json!("completed"))), None);
    }

    #[test]
    fn what_came_out_of_a_call_is_told_whole_or_cut() {
        let ended = |mut fields: Value| {
            fields["sessionUpdate"] = json!("tool_call_update");
            fields["toolCallId"] = json!("c1");
            fields["status"] = json!("failed");
            match Said::default().take(update(fields)) {
                Some(Output::Tool { detail, .. }) => detail,
                other => panic!("{other:?}"),
            }
        };
        let content = json!([
            { "type": "content", "content": { "type": "text", "text": "no such file" } },
            { "type": "diff", "path": "/a", "newText": "x" },
        ]);
        assert_eq!(ended(json!({ "content": content })).as_deref(), Some("no such file\n/a"));
        assert_eq!(ended(json!({ "rawOutput": 7, "content": content })).as_deref(), Some("7"));
        assert_eq!(ended(json!({})), None);
        let long = ended(json!({ "rawOutput": "x".repeat(RECORDED_BYTES_MAX) })).unwrap();
        assert!(long.ends_with(" bytes in all]") && long.len() < RECORDED_BYTES_MAX + 100, "{}", long.len());
    }

    #[test]
    fn ids_names_and_thoughts_are_bounded() {
        let mut said = Said::default();
        let long = "x".repeat(100_000);
        let begun = json!({ "sessionUpdate": "tool_call", "toolCallId": long, "title": "t", "name": long, "kind": "edit" });
        match said.take(update(begun)) {
            Some(Output::Tool { name, call_id, .. }) => assert!(name.len() <= TITLE_CHARS_MAX && call_id.len() <= TITLE_CHARS_MAX),
            other => panic!("{other:?}"),
        }
        assert!(said.tools.keys().all(|id| id.len() <= TITLE_CHARS_MAX));
        let asked: ToolCallUpdate = serde_json::from_value(json!({ "toolCallId": long })).unwrap();
        assert_eq!(said.wish(&asked).kind, "edit", "it is still known by its id");
        let thought = |bytes: usize| {
            let text = "x".repeat(bytes);
            update(json!({ "sessionUpdate": "agent_thought_chunk", "content": { "type": "text", "text": text } }))
        };
        assert!(said.take(thought(REASONING_BYTES_MAX)).is_some());
        assert!(said.take(thought(1)).is_none());
    }

    #[test]
    fn a_wish_is_what_was_told_of_the_call_unless_it_says_more() {
        let mut said = Said::default();
        said.take(update(json!({ "sessionUpdate": "tool_call", "toolCallId": "c1", "title": "Edit a", "kind": "edit" })));
        let asked = |value: Value| serde_json::from_value::<ToolCallUpdate>(value).unwrap();
        let wish = said.wish(&asked(json!({ "toolCallId": "c1" })));
        assert_eq!((wish.kind.as_str(), wish.title.as_str()), ("edit", "Edit a"));
        let wish = said.wish(&asked(json!({ "toolCallId": "c2", "title": "x".repeat(1000), "kind": "from_the_future" })));
        assert_eq!((wish.kind.as_str(), wish.title.len()), ("other", TITLE_CHARS_MAX));
        assert_eq!(said.wish(&asked(json!({ "toolCallId": "c3" }))).told(), "to other: c3");
    }
}
