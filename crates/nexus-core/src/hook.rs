//! The points at which plugins are called, what of a request they see there, and what of it they may
//! change. It calls nobody.

mod patch;

pub use patch::{CONTEXT_BYTES_MAX, PatchError, TEXT_BYTES_MAX, apply_patch};

use crate::config::PluginSection;
use crate::request::{NexusRequest, Stage};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

/// A point at which plugins are called.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Hook {
    AfterReceiveEvent,
    AfterResolveIdentity,
    AfterResolveAccess,
    AfterRunAutomations,
    AfterAssembleContext,
    AfterRunAgent,
    AfterDeliverResponse,
    OnFinalize,
    OnError,
}

impl Hook {
    /// In the order in which a request passes them.
    pub const ALL: [Self; 9] = [
        Self::AfterReceiveEvent,
        Self::AfterResolveIdentity,
        Self::AfterResolveAccess,
        Self::AfterRunAutomations,
        Self::AfterAssembleContext,
        Self::AfterRunAgent,
        Self::AfterDeliverResponse,
        Self::OnFinalize,
        Self::OnError,
    ];
    /// The wire names, in the same order.
    pub const WORDS: [&'static str; 9] = [
        "afterReceiveEvent",
        "afterResolveIdentity",
        "afterResolveAccess",
        "afterRunAutomations",
        "afterAssembleContext",
        "afterRunAgent",
        "afterDeliverResponse",
        "onFinalize",
        "onError",
    ];

    /// Its place in [`Self::ALL`].
    pub fn index(self) -> usize {
        self as usize
    }

    /// The name on the wire.
    pub fn as_str(self) -> &'static str {
        Self::WORDS[self.index()]
    }

    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|hook| hook.as_str() == text)
    }

    /// The hook behind a stage.
    pub fn after(stage: Stage) -> Self {
        match stage {
            Stage::ReceiveEvent => Self::AfterReceiveEvent,
            Stage::ResolveIdentity => Self::AfterResolveIdentity,
            Stage::ResolveAccess => Self::AfterResolveAccess,
            Stage::RunAutomations => Self::AfterRunAutomations,
            Stage::AssembleContext => Self::AfterAssembleContext,
            Stage::RunAgent => Self::AfterRunAgent,
            Stage::DeliverResponse => Self::AfterDeliverResponse,
            Stage::Finalize => Self::OnFinalize,
        }
    }

    /// What a patch may change here, as paths of at most two keys. Nothing: plugins are told, and not asked.
    pub fn changeable(self) -> &'static [&'static str] {
        match self {
            Self::AfterReceiveEvent => &["event.content", "event.metadata"],
            Self::AfterResolveIdentity => &["principal.name", "principal.relationship", "principal.tags"],
            Self::AfterResolveAccess => &["access.agent", "access.session_key", "access.permissions"],
            Self::AfterRunAutomations => &["triggers.enrichment", "triggers.routing_override"],
            Self::AfterAssembleContext => &["context"],
            Self::AfterRunAgent => &["response.content"],
            Self::AfterDeliverResponse | Self::OnFinalize | Self::OnError => &[],
        }
    }

    /// Whether the pipeline waits for the answers of plugins that may change something.
    pub fn is_asked(self) -> bool {
        !self.changeable().is_empty()
    }

    /// Whether `skip` can still end the request: nothing was done for it yet.
    pub fn may_skip(self) -> bool {
        self.is_asked() && self != Self::AfterRunAgent
    }
}

/// What a plugin sees of a request: its id, and the sections that it declared.
pub fn view(request: &NexusRequest, sections: &[PluginSection]) -> Value {
    let mut shown = Map::new();
    shown.insert("request_id".to_owned(), Value::from(request.request_id.as_str()));
    for section in sections {
        let value = match section {
            PluginSection::Event => json!(request.event),
            PluginSection::Delivery => json!(request.delivery),
            PluginSection::Principal => json!(request.principal),
            PluginSection::Access => json!(request.access),
            PluginSection::Triggers => json!(request.triggers),
            PluginSection::Agent => json!(request.agent),
            PluginSection::Context => json!(request.context),
            PluginSection::Response => json!(request.response),
            PluginSection::DeliveryResult => json!(request.delivery_result),
            PluginSection::Pipeline => json!(request.pipeline),
            PluginSection::Status => json!({ "status": request.status, "reason": request.reason }),
        };
        shown.insert(section.as_str().to_owned(), value);
    }
    Value::Object(shown)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn names_on_the_wire_agree() {
        for hook in Hook::ALL {
            assert_eq!(serde_json::to_value(hook).unwrap(), hook.as_str());
            assert_eq!(Hook::parse(hook.as_str()), Some(hook));
            assert_eq!(Hook::ALL[hook.index()], hook);
        }
        assert_eq!(Hook::parse("afterReceive"), None);
    }

    #[test]
    fn every_stage_has_its_hook_and_only_undone_work_can_be_skipped() {
        let hooks: Vec<Hook> = Stage::ALL.into_iter().map(Hook::after).collect();
        assert_eq!(hooks, Hook::ALL[..8]);
        let skippable: Vec<Hook> = Hook::ALL.into_iter().filter(|hook| hook.may_skip()).collect();
        assert_eq!(skippable, Hook::ALL[..5]);
    }

    #[test]
    fn only_what_was_declared_is_seen() {
        let request = patch::tests::request();
        let seen = view(&request, &[PluginSection::Status, PluginSection::Event]);
        let keys: BTreeSet<&str> = seen.as_object().unwrap().keys().map(String::as_str).collect();
        assert_eq!(keys, BTreeSet::from(["event", "request_id", "status"]));
        assert_eq!(view(&request, &[]).as_object().unwrap().len(), 1);
    }
}
