//! The tools of one turn: which are offered, and what becomes of each call. What the access decision doesn't
//! allow is neither. Never talks to a server itself, and knows no model.

use genai::chat::Tool;
use nexus_core::tool_filter::permits;
use serde_json::Value;

use super::answer::Call;
use crate::agent::mcp::{Offer, RESULT_BYTES_MAX, Servers};
use crate::agent::{Output, Sink, ToolStatus, Turn, emit, taken};

/// The most of a call's arguments, and of its result, that is kept, in bytes.
pub const RECORDED_BYTES_MAX: usize = 8 * 1024;

/// The most characters of a result that its summary has.
const SUMMARY_CHARS_MAX: usize = 200;

/// The tools that a turn may call.
#[derive(Debug, Default)]
pub(super) struct Toolbox {
    offers: Vec<Offer>,
}

impl Toolbox {
    /// What the servers of this agent offer, as far as the turn may use it.
    pub(super) async fn open(servers: &Servers, turn: &Turn, agent: &str) -> Self {
        let permitted = turn.tools();
        if permitted.allow.is_empty() {
            return Self::default();
        }
        let mut offers = servers.offers(agent).await;
        offers.retain(|offer| permits(&permitted, &offer.name));
        Self { offers }
    }

    /// The tools as the model is told of them; `None` without any.
    pub(super) fn definitions(&self) -> Option<Vec<Tool>> {
        let define = |offer: &Offer| {
            let tool = Tool::new(offer.name.as_str()).with_schema(Value::Object(offer.schema().clone()));
            match offer.description() {
                Some(description) => tool.with_description(description),
                None => tool,
            }
        };
        (!self.offers.is_empty()).then(|| self.offers.iter().map(define).collect())
    }

    /// Calls a tool and tells of it under that id; its result for the model, or why there is none.
    pub(super) async fn call(&self, call: &Call, told_as: String, out: &Sink) -> String {
        let tell = |status, summary: Option<String>, detail: &str| {
            let (name, call_id, detail) = (call.name.clone(), told_as.clone(), Some(head(detail, RECORDED_BYTES_MAX)));
            emit(out, Output::Tool { name, call_id, status, summary, detail })
        };
        let offer = self.offers.iter().find(|offer| offer.name == call.name);
        let (offer, arguments) = match (offer, &call.arguments) {
            (Some(offer), Ok(arguments)) => (offer, arguments),
            (None, _) => {
                let refusal = "There is no such tool, or it may not be used here.";
                tell(ToolStatus::Failed, summary(refusal), refusal).await;
                return refusal.to_owned();
            }
            (Some(_), Err(_)) => {
                let refusal = "The arguments are not a JSON object; nothing was called.";
                tell(ToolStatus::Failed, summary(refusal), refusal).await;
                return refusal.to_owned();
            }
        };
        tell(ToolStatus::Started, None, &Value::Object(arguments.clone()).to_string()).await;
        // That something may be done from here on must be on disk before it is.
        taken(out).await;
        let (status, result) = match offer.call(arguments.clone()).await {
            Ok(result) => (ToolStatus::Completed, result),
            Err(fault) => (ToolStatus::Failed, head(&format!("The tool failed: {fault}"), RESULT_BYTES_MAX)),
        };
        tell(status, summary(&result), &result).await;
        result
    }
}

/// The beginning of a result, on one line.
fn summary(result: &str) -> Option<String> {
    let line = result.lines().find(|line| !line.trim().is_empty())?;
    Some(line.trim().chars().filter(|c| !c.is_control()).take(SUMMARY_CHARS_MAX).collect())
}

/// As much of a text as fits, and how much there was of one that doesn't.
pub(in crate::agent) fn head(text: &str, bytes_max: usize) -> String {
    if text.len() <= bytes_max {
        return text.to_owned();
    }
    format!("{}\n[cut: {} bytes in all]", &text[..text.floor_char_boundary(bytes_max)], text.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_text_is_cut_between_characters_and_says_so() {
        assert_eq!(head("abc", 3), "abc");
        assert_eq!(head("aäb", 2), "a\n[cut: 4 bytes in all]");
    }

    #[test]
    fn a_summary_is_one_short_line() {
        assert_eq!(summary("\n  first\u{1b}[1m\nsecond").as_deref(), Some("first[1m"));
        assert_eq!(summary(" \n"), None);
        assert_eq!(summary(&"x".repeat(1000)).map_or(0, |text| text.len()), SUMMARY_CHARS_MAX);
    }
}
