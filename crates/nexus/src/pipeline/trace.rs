//! What is kept of how a request went, as JSON: the request without its event (which the events ledger has) and without
//! the answer's text (which the run has). `trace` shows it beside them; what it says, the stages decide.

use nexus_core::access::Decision;
use nexus_core::request::{AgentSection, NexusRequest, PrincipalSection, ResponseSection, StageTrace, TriggersSection};
use serde::Serialize;
use serde_json::Value;

/// Typed, since each request has one and it is long.
#[derive(Serialize)]
struct Trace<'a> {
    principal: Option<&'a PrincipalSection>,
    access: Option<&'a Decision>,
    triggers: Option<&'a TriggersSection>,
    agent: Option<&'a AgentSection>,
    #[serde(skip_serializing_if = "Option::is_none")]
    context: Option<&'a str>,
    response: Option<Response<'a>>,
    delivery_result: Option<&'a Value>,
    pipeline: &'a [StageTrace],
}

#[derive(Serialize)]
struct Response<'a> {
    chars: usize,
    usage: &'a Value,
    stop_reason: &'a str,
    duration_ms: f64,
    error: Option<&'a str>,
    tool_calls: &'a [Value],
}

impl<'a> Trace<'a> {
    fn of(request: &'a NexusRequest) -> Self {
        Self {
            principal: request.principal.as_ref(),
            access: request.access.as_ref(),
            triggers: request.triggers.as_ref(),
            agent: request.agent.as_ref(),
            context: request.context.as_deref(),
            response: request.response.as_ref().map(Response::of),
            delivery_result: request.delivery_result.as_ref(),
            pipeline: &request.pipeline,
        }
    }
}

impl<'a> Response<'a> {
    fn of(response: &'a ResponseSection) -> Self {
        Self {
            chars: response.content.chars().count(),
            usage: &response.usage,
            stop_reason: &response.stop_reason,
            duration_ms: response.duration_ms,
            error: response.error.as_deref(),
            tool_calls: &response.tool_calls,
        }
    }
}

pub(super) fn trace_json(request: &NexusRequest) -> String {
    serde_json::to_string(&Trace::of(request)).expect("texts and numbers are JSON")
}

pub(super) fn trace_value(request: &NexusRequest) -> Value {
    serde_json::to_value(Trace::of(request)).expect("texts and numbers are JSON")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::samples;
    use nexus_core::config::PrincipalType;
    use serde_json::json;

    #[test]
    fn what_is_not_there_yet_is_null_and_of_an_answer_only_its_length_is_told() {
        let mut request = NexusRequest::new("req_1".to_owned(), 1, 0, samples::event("fake:1"));
        let nothing = json!({
            "principal": null, "access": null, "triggers": null, "agent": null, "response": null, "delivery_result": null, "pipeline": [],
        });
        assert_eq!(trace_value(&request), nothing);
        let (type_, tags, identities) = (PrincipalType::Unknown, Vec::new(), vec!["fake:u".to_owned()]);
        request.principal = Some(PrincipalSection { type_, entity_id: None, name: None, relationship: None, tags, identities });
        request.context = Some("known before".to_owned());
        request.response = Some(ResponseSection {
            content: "h\u{e9}llo".to_owned(),
            tool_calls: Vec::new(),
            usage: json!({ "total": 3 }),
            stop_reason: "end_turn".to_owned(),
            duration_ms: 1.5,
            error: None,
        });
        let trace: Value = serde_json::from_str(&trace_json(&request)).unwrap();
        assert_eq!(trace, trace_value(&request));
        assert_eq!(trace["principal"], json!({ "type": "unknown", "tags": [], "identities": ["fake:u"] }));
        assert_eq!(trace["context"], "known before");
        let told = json!({
            "chars": 5, "usage": { "total": 3 }, "stop_reason": "end_turn", "duration_ms": 1.5, "error": null, "tool_calls": [],
        });
        assert_eq!(trace["response"], told);
    }
}
