//! What a plugin's answer does to a request.

use super::fault::Fault;
use super::frame::Reply;
use nexus_core::hook::{Hook, apply_patch};
use nexus_core::request::NexusRequest;

/// What follows from an answer that is valid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    GoOn,
    /// The plugin has seen to the request.
    Skip,
}

/// The word of an answer in metrics and notices.
pub(super) fn word(reply: &Reply) -> &'static str {
    match reply {
        Reply::Continue => "continue",
        Reply::Skip { .. } => "skip",
        Reply::Patch(_) => "patch",
        Reply::Error(_) | Reply::TakenAlong(_) => "error",
        Reply::Returned(_) | Reply::Nonsense(_) => "invalid",
    }
}

/// Applies an answer of the plugin `name`. A patch that is refused changes nothing.
///
/// # Errors
/// What makes the answer count as a failure of the plugin.
pub(super) fn apply(name: &str, hook: Hook, request: &mut NexusRequest, reply: &Reply) -> Result<Verdict, Fault> {
    match reply {
        Reply::Continue => Ok(Verdict::GoOn),
        Reply::Patch(patch) => {
            apply_patch(hook, request, patch)?;
            Ok(Verdict::GoOn)
        }
        Reply::Skip { reason } if hook.may_skip() => {
            tracing::info!(plugin = name, request_id = request.request_id, reason, "a plugin ends a request");
            Ok(Verdict::Skip)
        }
        Reply::Skip { .. } => {
            tracing::warn!(plugin = name, request_id = request.request_id, hook = hook.as_str(), "too late to skip; the request goes on");
            Ok(Verdict::GoOn)
        }
        Reply::Error(message) => Err(Fault::Threw(message.clone())),
        Reply::TakenAlong(message) => Err(Fault::TakenAlong(message.clone())),
        Reply::Returned(_) => Err(Fault::returned()),
        Reply::Nonsense(what) => Err(Fault::Nonsense(what.clone())),
    }
}
