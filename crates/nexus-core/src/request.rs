//! What is in progress: one accepted event on its way through the eight stages.

use crate::access::Decision;
use crate::config::PrincipalType;
use crate::event::Event;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The eight stages, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Stage {
    ReceiveEvent,
    ResolveIdentity,
    ResolveAccess,
    RunAutomations,
    AssembleContext,
    RunAgent,
    DeliverResponse,
    Finalize,
}

impl Stage {
    pub const ALL: [Stage; 8] = [
        Self::ReceiveEvent,
        Self::ResolveIdentity,
        Self::ResolveAccess,
        Self::RunAutomations,
        Self::AssembleContext,
        Self::RunAgent,
        Self::DeliverResponse,
        Self::Finalize,
    ];

    /// The name on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ReceiveEvent => "receiveEvent",
            Self::ResolveIdentity => "resolveIdentity",
            Self::ResolveAccess => "resolveAccess",
            Self::RunAutomations => "runAutomations",
            Self::AssembleContext => "assembleContext",
            Self::RunAgent => "runAgent",
            Self::DeliverResponse => "deliverResponse",
            Self::Finalize => "finalize",
        }
    }
}

/// Where a request stands. The last five are terminal and never rewritten.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    Waiting,
    Processing,
    Interrupted,
    Completed,
    Denied,
    HandledByAutomation,
    Failed,
    Expired,
}

impl Status {
    pub const ALL: [Status; 8] = [
        Self::Waiting,
        Self::Processing,
        Self::Interrupted,
        Self::Completed,
        Self::Denied,
        Self::HandledByAutomation,
        Self::Failed,
        Self::Expired,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Processing => "processing",
            Self::Interrupted => "interrupted",
            Self::Completed => "completed",
            Self::Denied => "denied",
            Self::HandledByAutomation => "handled_by_automation",
            Self::Failed => "failed",
            Self::Expired => "expired",
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|status| status.as_str() == text)
    }

    pub fn is_terminal(self) -> bool {
        match self {
            Self::Waiting | Self::Processing | Self::Interrupted => false,
            Self::Completed | Self::Denied | Self::HandledByAutomation | Self::Failed | Self::Expired => true,
        }
    }
}

/// One stage as it went.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct StageTrace {
    pub stage: Stage,
    /// Unix milliseconds.
    pub started_at: i64,
    /// Milliseconds with fraction, by the monotonic clock.
    pub duration_ms: f64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_reason: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// The plugins that were asked behind it, in their order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hooks: Vec<HookTrace>,
}

/// One plugin's part in a stage.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct HookTrace {
    pub plugin: String,
    /// Milliseconds with fraction, by the monotonic clock.
    pub ms: f64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// Where an answer goes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct DeliveryTarget {
    pub channel: String,
    pub account_id: String,
    pub target: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub thread_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reply_to_id: Option<String>,
}

/// Who speaks, as stage 2 found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PrincipalSection {
    #[serde(rename = "type")]
    pub type_: PrincipalType,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entity_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub relationship: Option<String>,
    pub tags: Vec<String>,
    /// `channel:sender` pairs known to be this principal.
    pub identities: Vec<String>,
}

/// One automation's part in stage 4.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct AutomationTrace {
    pub automation: String,
    /// Milliseconds with fraction, by the monotonic clock.
    pub ms: f64,
    /// What it did: `fire`, `enrich`, `handled`, `reply`, `disable`, `state`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub did: Vec<String>,
    /// It said so about this event before, and was not asked again.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub repeated: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// What stage 4 did.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct TriggersSection {
    pub evaluated: u32,
    pub fired: u32,
    pub handled: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub handled_by: Option<String>,
    /// The first automation that fired.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fired_by: Option<String>,
    /// What those that fired ask the agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub context: Option<String>,
    /// The automations that were asked, in their order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub results: Vec<AutomationTrace>,
    /// What the agent is told before the message.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enrichment: Option<String>,
    /// The agent that answers, whatever the policy says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub routing_override: Option<String>,
}

/// Which agent answers, chosen by stage 5.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct AgentSection {
    pub agent_id: String,
    pub session_label: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent_turn_id: Option<String>,
    /// What the run is recorded as, once it has ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub turn_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub provider: Option<String>,
    /// The agent that answered in place of this one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answered_by: Option<String>,
    /// Why this one did not answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fallback_from: Option<String>,
    /// Messages of earlier turns given along, and how many were left out by the budget.
    pub history_messages: u32,
    pub history_dropped: u32,
    /// Messages of those turns that were kept back by `data_access`.
    #[serde(default)]
    pub history_withheld: u32,
    /// Other texts of the past that were found for the message and given along.
    #[serde(default)]
    pub memory_matches: u32,
    /// Why none could be looked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_error: Option<String>,
    /// Ids of the requests that shared the run.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub fellows: Vec<String>,
}

impl AgentSection {
    /// Of an agent that has not run yet, and was given nothing.
    pub fn new(agent_id: String, session_label: String) -> Self {
        Self {
            agent_id,
            session_label,
            parent_turn_id: None,
            turn_id: None,
            run_id: None,
            model: None,
            provider: None,
            answered_by: None,
            fallback_from: None,
            history_messages: 0,
            history_dropped: 0,
            history_withheld: 0,
            memory_matches: 0,
            memory_error: None,
            fellows: Vec::new(),
        }
    }
}

/// What the agent answered.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ResponseSection {
    pub content: String,
    pub tool_calls: Vec<Value>,
    pub usage: Value,
    pub stop_reason: String,
    pub duration_ms: f64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// A request with one section per stage, as hooks see it and as its snapshot is kept.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct NexusRequest {
    pub request_id: String,
    /// The event's place in the ledger: the only order there is.
    pub event_seq: i64,
    /// Unix milliseconds.
    pub created_at: i64,
    /// Who delivers the answer: whose event it is, or from stage 5 on where the entry of a scheduled one leads. By the
    /// name in the configuration; not shown.
    #[serde(skip)]
    pub adapter: String,
    pub event: Event,
    pub delivery: DeliveryTarget,
    #[serde(default)]
    pub principal: Option<PrincipalSection>,
    #[serde(default)]
    pub access: Option<Decision>,
    #[serde(default)]
    pub triggers: Option<TriggersSection>,
    #[serde(default)]
    pub agent: Option<AgentSection>,
    /// What a plugin has the agent told before the message.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub context: Option<String>,
    #[serde(default)]
    pub response: Option<ResponseSection>,
    #[serde(default)]
    pub delivery_result: Option<Value>,
    pub pipeline: Vec<StageTrace>,
    pub status: Status,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

impl NexusRequest {
    /// A request at the door of stage 1.
    pub fn new(request_id: String, event_seq: i64, created_at: i64, event: Event) -> Self {
        let delivery = DeliveryTarget {
            channel: event.channel.clone(),
            account_id: event.account_id.clone(),
            target: event.peer_id.clone(),
            thread_id: event.thread_id.clone(),
            reply_to_id: platform_id(&event.event_id),
        };
        Self {
            request_id,
            event_seq,
            created_at,
            adapter: String::new(),
            event,
            delivery,
            principal: None,
            access: None,
            triggers: None,
            agent: None,
            context: None,
            response: None,
            delivery_result: None,
            pipeline: Vec::with_capacity(Stage::ALL.len()),
            status: Status::Waiting,
            reason: None,
        }
    }

    /// The same, with an answer that quotes another message than this event's: the one that it repeats.
    pub fn quoting(mut self, event_id: &str) -> Self {
        self.delivery.reply_to_id = platform_id(event_id);
        self
    }
}

/// The platform's own id: what stands behind the channel's prefix.
fn platform_id(event_id: &str) -> Option<String> {
    event_id.split_once(':').map(|(_, id)| id.to_owned())
}
