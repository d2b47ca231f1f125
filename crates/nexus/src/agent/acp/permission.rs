//! What a request for permission comes to: allowed, refused, or a question for the owner; and which of
//! the agent's own options says so. Asks nobody by itself.

use agent_client_protocol::v1::Responder;
use agent_client_protocol::v1::schema::{
    PermissionOption, PermissionOptionKind, RequestPermissionOutcome, RequestPermissionResponse, SelectedPermissionOutcome,
};
use nexus_core::config::{PermissionAsk, Tools};
use nexus_core::tool_filter::matches_any;

/// What an agent wants to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Wish {
    /// The protocol's word, such as `edit`.
    pub(super) kind: String,
    pub(super) title: String,
    /// The tool's own name, where it tells one.
    pub(super) name: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    Allow,
    Refuse(&'static str),
    Ask,
}

/// Decides by what access control says about tools. What is denied is denied even if it is allowed too.
pub(super) fn decide(tools: &Tools, ask: PermissionAsk, wish: &Wish) -> Verdict {
    if wish.is_denied(&tools.deny) {
        return Verdict::Refuse("denied by access control");
    }
    match (wish.is_allowed(&tools.allow), ask) {
        (true, PermissionAsk::Owner | PermissionAsk::Never) => Verdict::Allow,
        (true | false, PermissionAsk::Always) | (false, PermissionAsk::Owner) => Verdict::Ask,
        (false, PermissionAsk::Never) => Verdict::Refuse("not allowed by access control, and nobody is to be asked"),
    }
}

impl Wish {
    /// Whether a pattern names the kind or the name. The title doesn't open anything: it may quote anybody.
    fn is_allowed(&self, patterns: &[String]) -> bool {
        [Some(self.kind.as_str()), self.name.as_deref()].into_iter().flatten().any(|text| matches_any(patterns, text))
    }

    /// Whether a pattern names the kind, the name or the title.
    fn is_denied(&self, patterns: &[String]) -> bool {
        self.is_allowed(patterns) || matches_any(patterns, &self.title)
    }

    /// As the end of a sentence.
    pub(super) fn told(&self) -> String {
        format!("to {}: {}", self.kind, self.title)
    }
}

/// Answers with the option that means yes or no. A yes is for this once: where the agent offers none but for
/// always, it is a no. A no may be for always; without such an option, the request is cancelled.
pub(super) fn answer(responder: Responder<RequestPermissionResponse>, options: &[PermissionOption], is_allowed: bool) {
    let outcome = choice(options, is_allowed).map_or(RequestPermissionOutcome::Cancelled, |option| {
        RequestPermissionOutcome::Selected(SelectedPermissionOutcome::new(option.option_id.clone()))
    });
    respond(responder, outcome);
}

fn choice(options: &[PermissionOption], is_allowed: bool) -> Option<&PermissionOption> {
    let of = |kind: PermissionOptionKind| options.iter().find(|option| option.kind == kind);
    let yes = if is_allowed { of(PermissionOptionKind::AllowOnce) } else { None };
    yes.or_else(|| of(PermissionOptionKind::RejectOnce)).or_else(|| of(PermissionOptionKind::RejectAlways))
}

/// Answers that the turn is over.
pub(super) fn cancel(responder: Responder<RequestPermissionResponse>) {
    respond(responder, RequestPermissionOutcome::Cancelled);
}

fn respond(responder: Responder<RequestPermissionResponse>, outcome: RequestPermissionOutcome) {
    if let Err(error) = responder.respond(RequestPermissionResponse::new(outcome)) {
        tracing::debug!(target: "nexus::agent", %error, "an agent that is gone needs no permission");
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn wish() -> Wish {
        Wish { kind: "edit".to_owned(), title: "Edit /etc/hosts".to_owned(), name: Some("write_file".to_owned()) }
    }

    fn decided(allow: &[&str], deny: &[&str], ask: PermissionAsk) -> Verdict {
        let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        decide(&Tools { allow: owned(allow), deny: owned(deny) }, ask, &wish())
    }

    #[test]
    fn kind_and_name_are_matched_whole_or_by_their_beginning() {
        for pattern in ["edit", "ed*", "write_file", "*"] {
            assert_eq!(decided(&[pattern], &[], PermissionAsk::Owner), Verdict::Allow, "{pattern}");
        }
        for pattern in ["", "Edit", "edit ", "e", "read", "*edit", "write"] {
            assert_eq!(decided(&[pattern], &[], PermissionAsk::Owner), Verdict::Ask, "{pattern}");
        }
    }

    #[test]
    fn a_title_closes_and_never_opens() {
        for pattern in ["Edit /etc/hosts", "Edit*"] {
            assert_eq!(decided(&[pattern], &[], PermissionAsk::Owner), Verdict::Ask, "{pattern}");
            assert_eq!(decided(&["*"], &[pattern], PermissionAsk::Owner), Verdict::Refuse("denied by access control"), "{pattern}");
        }
    }

    #[test]
    fn a_yes_is_never_for_always() {
        let options = |kinds: &[&str]| -> Vec<PermissionOption> {
            let option = |kind: &&str| serde_json::json!({ "optionId": kind, "name": kind, "kind": kind });
            serde_json::from_value(kinds.iter().map(option).collect()).unwrap()
        };
        let chosen = |kinds: &[&str], is_allowed| choice(&options(kinds), is_allowed).map(|option| option.option_id.0.to_string());
        let all = ["allow_always", "allow_once", "reject_always", "reject_once"];
        assert_eq!(chosen(&all, true).as_deref(), Some("allow_once"));
        assert_eq!(chosen(&all, false).as_deref(), Some("reject_once"));
        assert_eq!(chosen(&["allow_always", "reject_always"], true).as_deref(), Some("reject_always"));
        assert_eq!(chosen(&["allow_always"], true), None);
    }

    #[test]
    fn a_denial_wins_and_what_is_left_open_is_asked_or_refused() {
        for ask in [PermissionAsk::Owner, PermissionAsk::Always, PermissionAsk::Never] {
            assert_eq!(decided(&["*"], &["edit"], ask), Verdict::Refuse("denied by access control"));
        }
        assert_eq!(decided(&["*"], &["read"], PermissionAsk::Always), Verdict::Ask);
        assert_eq!(decided(&["*"], &[], PermissionAsk::Never), Verdict::Allow);
        assert!(matches!(decided(&[], &[], PermissionAsk::Never), Verdict::Refuse(_)));
        assert_eq!(decided(&[], &[], PermissionAsk::Owner), Verdict::Ask);
    }
}
