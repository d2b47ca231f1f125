//! What subscribers hear of the processes that agents need: their own, and those of their MCP servers. Agents without a
//! process that stays have no status.

use crate::bus::Bus;
use crate::supervisor::{ChildStatus, Phase};
use nexus_core::notice::NoticeType;
use serde_json::json;

/// Tells that the process of an agent, or of its MCP server `server`, is in another phase.
pub(super) fn announce(bus: &Bus, agent: &str, server: Option<&str>, status: &ChildStatus) {
    let mut notice = json!({ "agent": agent, "status": status.phase.as_str(), "pid": status.pid });
    if let Some(server) = server {
        notice["server"] = server.into();
    }
    if matches!(status.phase, Phase::Backoff | Phase::Errored) {
        notice["error"] = status.last_error.clone().into();
    }
    bus.publish(NoticeType::AgentStatus, notice);
}
