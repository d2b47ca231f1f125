//! Session labels: which conversation a message continues.
//!
//! A label is a key, so parts that come from outside are escaped: no sender can write itself into
//! the session of another. It never decides who may speak.

use super::Principal;
use crate::config::PrincipalType;
use crate::event::PeerKind;

/// Longest label, in bytes; a longer one is cut and ends in a hash of the whole.
pub const LABEL_BYTES_MAX: usize = 200;
/// What a session template may name.
pub const PLACEHOLDERS: [&str; 6] = ["channel", "account", "sender_id", "peer_id", "entity_id", "thread_id"];

/// What labels of system principals begin with.
const SYSTEM: &str = "system:";
/// `%~` and 16 hexadecimal digits. No escaped part holds `%~`, so no whole label looks like a cut one.
const HASH_SUFFIX_BYTES: usize = 18;

/// Where a message was said, and by whom on that channel.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Conversation<'a> {
    pub channel: &'a str,
    pub account: &'a str,
    pub sender_id: &'a str,
    pub peer_kind: PeerKind,
    pub peer_id: &'a str,
    pub thread_id: Option<&'a str>,
}

/// What is wrong with a session template.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    #[error("unknown placeholder `{{{name}}}` in session template: use {known}", known = known())]
    UnknownPlaceholder { name: String },
    #[error("unclosed `{{` in session template at `{rest}`")]
    Unclosed { rest: String },
}

fn known() -> String {
    PLACEHOLDERS.map(|name| format!("{{{name}}}")).join(" ")
}

/// Checks a policy's session template before it is used.
///
/// # Errors
/// The first placeholder that is not one of [`PLACEHOLDERS`], or a brace that is never closed.
pub fn check_template(template: &str) -> Result<(), TemplateError> {
    for piece in pieces(template) {
        match piece {
            Piece::Text(_) => {}
            Piece::Placeholder(name) if PLACEHOLDERS.contains(&name) => {}
            Piece::Placeholder(name) => {
                return Err(TemplateError::UnknownPlaceholder { name: name.to_owned() });
            }
            Piece::Unclosed(rest) => return Err(TemplateError::Unclosed { rest: rest.to_owned() }),
        }
    }
    Ok(())
}

/// The session's label (contract "Session labels"): known senders `dm:{entity_id}`, others
/// `dm:{channel}:{sender_id}`, groups and channels `group:{channel}:{peer_id}[:thread:{id}]`, system
/// principals `system:{sender_id}` (a timer's label). With a template, that, less the placeholders nobody knows; one
/// that comes out empty is as none. What a template makes for a system principal begins with `system:` all the same:
/// no turn of the timer stands in the way of a person's. `:` and `%` within a part become `%3A` and `%25`.
pub fn session_label(principal: &Principal, conversation: &Conversation<'_>, template: Option<&str>) -> String {
    let templated = template.map(|template| fill(template, principal, conversation));
    let label = match templated {
        Some(label) if principal.type_ == PrincipalType::System && !label.is_empty() && !label.starts_with(SYSTEM) => {
            format!("{SYSTEM}{label}")
        }
        Some(label) if !label.is_empty() => label,
        Some(_) | None => plain(principal, conversation),
    };
    bounded(label)
}

fn plain(principal: &Principal, conversation: &Conversation<'_>) -> String {
    if principal.type_ == PrincipalType::System {
        return format!("{SYSTEM}{}", escaped(conversation.sender_id));
    }
    match conversation.peer_kind {
        PeerKind::Dm => format!("dm:{}", speaker(principal, conversation)),
        PeerKind::Group | PeerKind::Channel => {
            let group = format!("group:{}:{}", escaped(conversation.channel), escaped(conversation.peer_id));
            match conversation.thread_id {
                Some(thread_id) => format!("{group}:thread:{}", escaped(thread_id)),
                None => group,
            }
        }
    }
}

/// The entity; for whoever has none the channel and sender, since one empty word for all
/// strangers would put them into one session.
fn speaker(principal: &Principal, conversation: &Conversation<'_>) -> String {
    let entity_id = match principal.type_ {
        PrincipalType::Unknown => None,
        PrincipalType::Owner | PrincipalType::Known | PrincipalType::System | PrincipalType::Webhook | PrincipalType::Agent => {
            principal.entity_id.as_deref()
        }
    };
    match entity_id {
        Some(entity_id) => escaped(entity_id),
        None => format!("{}:{}", escaped(conversation.channel), escaped(conversation.sender_id)),
    }
}

fn fill(template: &str, principal: &Principal, conversation: &Conversation<'_>) -> String {
    let mut label = String::with_capacity(template.len());
    for piece in pieces(template) {
        match piece {
            Piece::Text(text) | Piece::Unclosed(text) => label.push_str(text),
            Piece::Placeholder("channel") => label.push_str(&escaped(conversation.channel)),
            Piece::Placeholder("account") => label.push_str(&escaped(conversation.account)),
            Piece::Placeholder("sender_id") => label.push_str(&escaped(conversation.sender_id)),
            Piece::Placeholder("peer_id") => label.push_str(&escaped(conversation.peer_id)),
            Piece::Placeholder("entity_id") => label.push_str(&speaker(principal, conversation)),
            Piece::Placeholder("thread_id") => {
                label.push_str(&conversation.thread_id.map(escaped).unwrap_or_default());
            }
            Piece::Placeholder(_) => {}
        }
    }
    label
}

#[derive(Debug, PartialEq)]
enum Piece<'a> {
    Text(&'a str),
    /// What stands between braces.
    Placeholder(&'a str),
    /// From a brace that is never closed to the end.
    Unclosed(&'a str),
}

fn pieces(template: &str) -> Vec<Piece<'_>> {
    let mut pieces = Vec::new();
    let mut rest = template;
    while let Some(open) = rest.find('{') {
        if open > 0 {
            pieces.push(Piece::Text(&rest[..open]));
        }
        let Some(close) = rest[open..].find('}').map(|length| open + length) else {
            pieces.push(Piece::Unclosed(&rest[open..]));
            return pieces;
        };
        pieces.push(Piece::Placeholder(&rest[open + 1..close]));
        rest = &rest[close + 1..];
    }
    if !rest.is_empty() {
        pieces.push(Piece::Text(rest));
    }
    pieces
}

fn escaped(part: &str) -> String {
    part.replace('%', "%25").replace(':', "%3A")
}

fn bounded(label: String) -> String {
    if label.len() <= LABEL_BYTES_MAX {
        return label;
    }
    let mut end = LABEL_BYTES_MAX - HASH_SUFFIX_BYTES;
    while !label.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}%~{:016x}", &label[..end], fnv1a_64(label.as_bytes()))
}

/// FNV-1a, 64 bits (draft-eastlake-fnv): the same in every build, which std's hasher doesn't promise.
fn fnv1a_64(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use proptest::prelude::*;

    fn principal(type_: PrincipalType, entity_id: Option<&str>) -> Principal {
        Principal {
            type_,
            entity_id: entity_id.map(str::to_owned),
            name: None,
            relationship: None,
            tags: Vec::new(),
            identifiers: Vec::new(),
        }
    }

    fn dm<'a>(channel: &'a str, sender_id: &'a str) -> Conversation<'a> {
        Conversation { channel, account: "me", sender_id, peer_kind: PeerKind::Dm, peer_id: "peer", thread_id: None }
    }

    fn label(type_: PrincipalType, entity_id: Option<&str>, conversation: &Conversation<'_>) -> String {
        session_label(&principal(type_, entity_id), conversation, None)
    }

    #[test]
    fn labels_follow_the_contract() {
        let chat = dm("imessage", "+1555");
        assert_eq!(label(PrincipalType::Known, Some("e1"), &chat), "dm:e1");
        assert_eq!(label(PrincipalType::Owner, Some("e0"), &chat), "dm:e0");
        assert_eq!(label(PrincipalType::Owner, None, &chat), "dm:imessage:+1555");
        assert_eq!(label(PrincipalType::Unknown, Some("e1"), &chat), "dm:imessage:+1555");
        let group = Conversation { peer_kind: PeerKind::Group, peer_id: "a:b", ..chat };
        assert_eq!(label(PrincipalType::Known, Some("e1"), &group), "group:imessage:a%3Ab");
        let thread = Conversation { peer_kind: PeerKind::Channel, thread_id: Some("7%"), ..chat };
        assert_eq!(label(PrincipalType::Unknown, None, &thread), "group:imessage:peer:thread:7%25");
        assert_eq!(label(PrincipalType::System, Some("e0"), &dm("timer", "a:b")), "system:a%3Ab");
    }

    #[test]
    fn templates_fill_what_they_may_name() {
        let mail = Conversation { thread_id: Some("t1"), ..dm("gmail", "a:b") };
        let known = principal(PrincipalType::Known, Some("e1"));
        let fill = |template: &str| session_label(&known, &mail, Some(template));
        assert_eq!(fill("vip:{channel}/{account}/{sender_id}"), "vip:gmail/me/a%3Ab");
        assert_eq!(fill("{peer_id}-{entity_id}-{thread_id}"), "peer-e1-t1");
        assert_eq!(fill("x{password}y"), "xy");
        assert_eq!(fill("a}b{open"), "a}b{open");
        assert_eq!(fill("{password}"), "dm:e1", "an empty label is no label");
    }

    #[test]
    fn a_template_keeps_strangers_apart() {
        let stranger = principal(PrincipalType::Unknown, None);
        let fill = |sender| session_label(&stranger, &dm("sms", sender), Some("support:{entity_id}"));
        assert_eq!(fill("1"), "support:sms:1");
        assert_ne!(fill("1"), fill("2"));
    }

    #[test]
    fn the_timer_has_lanes_of_its_own_whatever_the_template() {
        let timer = principal(PrincipalType::System, None);
        let fill = |template: &str| session_label(&timer, &dm("timer", "briefing"), Some(template));
        assert_eq!(fill("dm:owner"), "system:dm:owner");
        assert_eq!(fill("{sender_id}"), "system:briefing");
        assert_eq!(fill("system:{sender_id}"), "system:briefing");
        assert_eq!(fill("{password}"), "system:briefing");
    }

    #[test]
    fn templates_are_checked() {
        for name in PLACEHOLDERS {
            assert_eq!(check_template(&format!("a:{{{name}}}}}")), Ok(()));
        }
        let error = check_template("{channel}:{user}").unwrap_err();
        assert_eq!(error, TemplateError::UnknownPlaceholder { name: "user".to_owned() });
        assert!(error.to_string().starts_with("unknown placeholder `{user}` in session template: use {channel} "));
        let error = check_template("{channel}:{user").unwrap_err();
        assert_eq!(error, TemplateError::Unclosed { rest: "{user".to_owned() });
        assert!(check_template("{}").is_err());
    }

    #[test]
    fn what_a_placeholder_brings_is_no_template() {
        let sender = "{channel}{sender_id}";
        let hostile = Conversation { peer_id: "{entity_id}", ..dm("c", sender) };
        let known = principal(PrincipalType::Known, Some("{peer_id}"));
        let fill = |template: &str| session_label(&known, &hostile, Some(template));
        assert_eq!(fill("x-{sender_id}-{peer_id}-{entity_id}"), "x-{channel}{sender_id}-{entity_id}-{peer_id}");
        assert_eq!(check_template("{key}"), Err(TemplateError::UnknownPlaceholder { name: "key".to_owned() }));
    }

    #[test]
    fn every_placeholder_that_passes_the_check_is_filled() {
        let full = Conversation { thread_id: Some("t"), ..dm("c", "s") };
        let known = principal(PrincipalType::Known, Some("e"));
        for name in PLACEHOLDERS {
            assert_ne!(session_label(&known, &full, Some(&format!("-{{{name}}}"))), "-", "{name}");
        }
    }

    #[test]
    fn long_labels_keep_apart_and_stay_bounded() {
        let (a, b) = ("x".repeat(100_000) + "a", "x".repeat(100_000) + "b");
        let of = |sender: &str| label(PrincipalType::Unknown, None, &dm("c", sender));
        assert_ne!(of(&a), of(&b));
        assert_eq!(of(&a).len(), LABEL_BYTES_MAX);
        let hash = fnv1a_64(format!("dm:c:{a}").as_bytes());
        assert!(of(&a).ends_with(&format!("x%~{hash:016x}")));
        assert!(of(&"é".repeat(500)).len() <= LABEL_BYTES_MAX);
    }

    #[test]
    fn the_hash_is_fnv_1a() {
        assert_eq!(fnv1a_64(b""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(fnv1a_64(b"a"), 0xaf63_dc4c_8601_ec8c);
        assert_eq!(fnv1a_64(b"foobar"), 0x8594_4171_f739_67e8);
    }

    proptest! {
        #[test]
        fn two_senders_never_share_a_label(
            a in ("[a:%~3A]{0,6}", "[a:%~3A]{0,6}"),
            b in ("[a:%~3A]{0,6}", "[a:%~3A]{0,6}"),
        ) {
            let of = |(channel, sender): &(String, String)| label(PrincipalType::Unknown, None, &dm(channel, sender));
            prop_assert_eq!(of(&a) == of(&b), a == b);
        }

        #[test]
        fn a_group_is_never_taken_for_a_thread(peer in "[a:%]{0,8}", thread in "[a:%]{0,8}", other in "[athred:%]{0,20}") {
            let group = Conversation { peer_kind: PeerKind::Group, ..dm("c", "s") };
            let threaded = Conversation { peer_id: &peer, thread_id: Some(&thread), ..group };
            let plain = Conversation { peer_id: &other, ..group };
            let of = |conversation: &Conversation<'_>| label(PrincipalType::Unknown, None, conversation);
            prop_assert_ne!(of(&threaded), of(&plain));
        }

        #[test]
        fn any_input_gives_a_bounded_label(sender in "\\PC{0,300}", template in proptest::option::of("\\PC{0,60}")) {
            let stranger = principal(PrincipalType::Unknown, None);
            let label = session_label(&stranger, &dm("c", &sender), template.as_deref());
            prop_assert!(label.len() <= LABEL_BYTES_MAX && !label.is_empty());
        }
    }
}
