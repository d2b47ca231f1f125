//! Patches: what they change, what they can't, and hostile ones.
#![allow(clippy::unwrap_used)]

use super::*;
use crate::access::Decision;
use crate::config::{DataAccess, Effect, PrincipalType, Queue, QueueMode, Tools};
use crate::event::{Event, PeerKind};
use crate::request::{PrincipalSection, ResponseSection, TriggersSection};
use crate::tool_filter::permits;
use proptest::prelude::*;
use serde_json::json;

/// A request with all that patches can change.
pub(in crate::hook) fn request() -> NexusRequest {
    let event = Event {
        event_id: "fake:1".to_owned(),
        timestamp: 1,
        content: "hello".to_owned(),
        content_type: "text".to_owned(),
        channel: "fake".to_owned(),
        account_id: "me".to_owned(),
        sender_id: "ann".to_owned(),
        peer_id: "ann".to_owned(),
        peer_kind: PeerKind::Dm,
        sender_name: None,
        thread_id: None,
        reply_to_id: None,
        attachments: Value::Null,
        metadata: json!({ "a": 1, "b": { "c": 2 } }),
    };
    let allow = ["read", "write", "files__*"].map(str::to_owned).to_vec();
    let tools = Tools { allow, deny: vec!["shell".to_owned()] };
    let permissions = Permissions { tools, credentials: vec!["*".to_owned()], data_access: DataAccess::Contextual };
    let mut request = NexusRequest::new("req_1".to_owned(), 1, 0, event);
    request.principal = Some(PrincipalSection {
        type_: PrincipalType::Known,
        entity_id: Some("e1".to_owned()),
        name: Some("Ann".to_owned()),
        relationship: Some("family".to_owned()),
        tags: vec!["trusted".to_owned()],
        identities: Vec::new(),
    });
    request.access = Some(Decision {
        effect: Effect::Allow,
        matched_policy: None,
        permissions,
        agent: None,
        session_key: None,
        queue_mode: QueueMode::default(),
        queue: Queue::default(),
        per_minute: None,
        names_content_type: false,
        why: Vec::new(),
    });
    request.triggers = Some(TriggersSection::default());
    request.response = Some(ResponseSection {
        content: "answer".to_owned(),
        tool_calls: Vec::new(),
        usage: Value::Null,
        stop_reason: "end_turn".to_owned(),
        duration_ms: 1.0,
        error: None,
    });
    request
}

fn patched(hook: Hook, patch: Value) -> Result<NexusRequest, String> {
    let mut request = request();
    apply_patch(hook, &mut request, &patch).map(|()| request).map_err(|error| error.to_string())
}

fn refusal(hook: Hook, patch: Value) -> String {
    let mut changed = request();
    let error = apply_patch(hook, &mut changed, &patch).unwrap_err();
    assert_eq!(changed, request(), "a refused patch changes nothing");
    error.to_string()
}

#[test]
fn it_is_the_merge_patch_of_the_rfc() {
    // RFC 7396, appendix A.
    let cases = [
        (json!({ "a": "b" }), json!({ "a": "c" }), json!({ "a": "c" })),
        (json!({ "a": "b" }), json!({ "b": "c" }), json!({ "a": "b", "b": "c" })),
        (json!({ "a": "b" }), json!({ "a": null }), json!({})),
        (json!({ "a": "b", "b": "c" }), json!({ "a": null }), json!({ "b": "c" })),
        (json!({ "a": ["b"] }), json!({ "a": "c" }), json!({ "a": "c" })),
        (json!({ "a": "c" }), json!({ "a": ["b"] }), json!({ "a": ["b"] })),
        (json!({ "a": { "b": "c" } }), json!({ "a": { "b": "d", "c": null } }), json!({ "a": { "b": "d" } })),
        (json!({ "a": [{ "b": "c" }] }), json!({ "a": [1] }), json!({ "a": [1] })),
        (json!(["a", "b"]), json!(["c", "d"]), json!(["c", "d"])),
        (json!({ "a": "b" }), json!(["c"]), json!(["c"])),
        (json!({ "a": "foo" }), json!(null), json!(null)),
        (json!({ "e": null }), json!({ "a": 1 }), json!({ "e": null, "a": 1 })),
        (json!([1, 2]), json!({ "a": "b", "c": null }), json!({ "a": "b" })),
        (json!({}), json!({ "a": { "bb": { "ccc": null } } }), json!({ "a": { "bb": {} } })),
    ];
    for (mut target, patch, expected) in cases {
        merge(&mut target, &patch);
        assert_eq!(target, expected, "{patch}");
    }
}

#[test]
fn each_hook_changes_what_is_its_own() {
    let event = patched(Hook::AfterReceiveEvent, json!({ "event": { "content": "hi", "metadata": { "b": { "c": null } } } })).unwrap();
    assert_eq!((event.event.content.as_str(), event.event.metadata), ("hi", json!({ "a": 1, "b": {} })));
    let principal = json!({ "principal": { "name": null, "relationship": "boss", "tags": ["x"] } });
    let principal = patched(Hook::AfterResolveIdentity, principal).unwrap().principal.unwrap();
    assert_eq!((principal.name, principal.relationship.as_deref(), principal.tags), (None, Some("boss"), vec!["x".to_owned()]));
    let access = json!({ "access": { "agent": "smart", "session_key": "team:{peer_id}" } });
    let access = patched(Hook::AfterResolveAccess, access).unwrap().access.unwrap();
    assert_eq!((access.agent.as_deref(), access.session_key.as_deref()), (Some("smart"), Some("team:{peer_id}")));
    let triggers = json!({ "triggers": { "enrichment": "it rains", "routing_override": "smart" } });
    let triggers = patched(Hook::AfterRunAutomations, triggers).unwrap().triggers.unwrap();
    assert_eq!((triggers.enrichment.as_deref(), triggers.routing_override.as_deref()), (Some("it rains"), Some("smart")));
    assert_eq!(patched(Hook::AfterAssembleContext, json!({ "context": "be brief" })).unwrap().context.as_deref(), Some("be brief"));
    let response = patched(Hook::AfterRunAgent, json!({ "response": { "content": "" } })).unwrap().response.unwrap();
    assert_eq!(response.content, "");
    assert_eq!(patched(Hook::AfterRunAgent, json!({})).unwrap(), request());
}

#[test]
fn what_is_not_its_own_is_refused_by_name() {
    let cases = [
        (Hook::AfterReceiveEvent, json!({ "event": { "sender_id": "owner" } }), "`event.sender_id` can't be changed at afterReceiveEvent"),
        (Hook::AfterReceiveEvent, json!({ "principal": { "type": "owner" } }), "`principal.type`"),
        (Hook::AfterReceiveEvent, json!({ "principal": {} }), "`principal`"),
        (Hook::AfterReceiveEvent, json!({ "event": "hi" }), "`event`"),
        (Hook::AfterReceiveEvent, json!({ "event": { "content": "x" }, "status": "completed" }), "`status`"),
        (Hook::AfterResolveIdentity, json!({ "principal": { "type": "owner" } }), "`principal.type`"),
        (Hook::AfterResolveAccess, json!({ "access": { "decision": "allow" } }), "`access.decision`"),
        (Hook::AfterAssembleContext, json!({ "agent": { "agent_id": "x" } }), "`agent.agent_id`"),
        (Hook::OnFinalize, json!({ "event": { "content": "x" } }), "nothing can"),
        (Hook::OnError, json!({ "x": null }), "`x`"),
    ];
    for (hook, patch, told) in cases {
        let error = refusal(hook, patch.clone());
        assert!(error.contains(told), "{patch}: {error}");
    }
}

#[test]
fn wrong_types_sizes_and_templates_are_refused() {
    let long = "x".repeat(TEXT_BYTES_MAX + 1);
    let cases = [
        (Hook::AfterReceiveEvent, json!([1])),
        (Hook::AfterReceiveEvent, Value::Null),
        (Hook::AfterReceiveEvent, json!({ "event": { "content": 5 } })),
        (Hook::AfterReceiveEvent, json!({ "event": { "content": null } })),
        (Hook::AfterReceiveEvent, json!({ "event": { "content": long } })),
        (Hook::AfterReceiveEvent, json!({ "event": { "content": "a\0b" } })),
        (Hook::AfterReceiveEvent, json!({ "event": { "metadata": [] } })),
        (Hook::AfterReceiveEvent, json!({ "event": { "metadata": { "x": "y".repeat(METADATA_BYTES_MAX) } } })),
        (Hook::AfterResolveIdentity, json!({ "principal": { "tags": "x" } })),
        (Hook::AfterResolveIdentity, json!({ "principal": { "tags": [1] } })),
        (Hook::AfterResolveIdentity, json!({ "principal": { "tags": vec!["t"; TAGS_MAX + 1] } })),
        (Hook::AfterResolveIdentity, json!({ "principal": { "name": "n".repeat(NAME_BYTES_MAX + 1) } })),
        (Hook::AfterResolveAccess, json!({ "access": { "session_key": "{nobody}" } })),
        (Hook::AfterResolveAccess, json!({ "access": { "permissions": "full" } })),
        (Hook::AfterResolveAccess, json!({ "access": { "permissions": { "data_access": "everything" } } })),
        (Hook::AfterResolveAccess, json!({ "access": { "permissions": { "root": true } } })),
        (Hook::AfterRunAgent, json!({ "response": { "content": ["x"] } })),
    ];
    for (hook, patch) in cases {
        assert!(!refusal(hook, patch).is_empty());
    }
}

#[test]
fn permissions_only_become_narrower() {
    let access = |permissions: Value| json!({ "access": { "permissions": permissions } });
    for wider in [
        json!({ "tools": { "allow": ["read", "shell"] } }),
        json!({ "tools": { "allow": ["*"] } }),
        json!({ "tools": { "allow": ["file*"] } }),
        json!({ "tools": { "allow": ["read*"] } }),
        json!({ "tools": { "allow": ["files_"] } }),
        json!({ "tools": { "deny": [] } }),
        json!({ "tools": { "deny": null } }),
        json!({ "data_access": "full" }),
    ] {
        let error = refusal(Hook::AfterResolveAccess, access(wider));
        assert!(error.contains("narrower"), "{error}");
    }
    let narrower =
        json!({ "tools": { "allow": ["read"], "deny": ["shell", "write"] }, "credentials": ["google/me"], "data_access": "none" });
    let permissions = patched(Hook::AfterResolveAccess, access(narrower)).unwrap().access.unwrap().permissions;
    assert_eq!(permissions.tools.allow, ["read"]);
    assert_eq!(permissions.credentials, ["google/me"]);
    assert_eq!(permissions.data_access, DataAccess::None);
    for within in ["files__read", "files__re*", "files__*"] {
        let patch = access(json!({ "tools": { "allow": [within] } }));
        let permissions = patched(Hook::AfterResolveAccess, patch).unwrap().access.unwrap().permissions;
        assert_eq!(permissions.tools.allow, [within], "the pattern that was granted stands for it");
    }
    let kept = patched(Hook::AfterResolveAccess, access(json!({ "data_access": null, "tools": { "allow": null } }))).unwrap();
    let kept = kept.access.unwrap().permissions;
    assert_eq!((kept.data_access, kept.tools.allow.len()), (DataAccess::Contextual, 0));
}

#[test]
fn a_section_that_is_not_there_is_not_made() {
    let mut bare = request();
    bare.response = None;
    let error = apply_patch(Hook::AfterRunAgent, &mut bare, &json!({ "response": { "content": "x" } })).unwrap_err();
    assert_eq!(error, PatchError::Absent { key: "response" });
}

#[test]
fn no_key_pollutes_whatever_its_depth() {
    for key in POLLUTING {
        let deep = json!({ "event": { "metadata": { "a": [{ key: { "admin": true } }] } } });
        assert!(refusal(Hook::AfterReceiveEvent, deep).contains(key));
        assert!(refusal(Hook::AfterReceiveEvent, json!({ key: {} })).contains(key));
    }
}

fn any_json() -> impl Strategy<Value = Value> {
    let keys = prop::sample::select(vec![
        "event",
        "content",
        "metadata",
        "access",
        "permissions",
        "tools",
        "allow",
        "deny",
        "credentials",
        "data_access",
        "agent",
        "context",
        "principal",
        "tags",
        "name",
        "response",
        "__proto__",
        "x",
    ]);
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        prop::sample::select(vec!["*", "read", "r*", "files__*", "files__read", "shell", "full", "none", ""]).prop_map(Value::from),
    ];
    leaf.prop_recursive(5, 40, 5, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map(keys.clone(), inner, 0..4)
                .prop_map(|fields| Value::Object(fields.into_iter().map(|(key, value)| (key.to_owned(), value)).collect())),
        ]
    })
}

proptest! {
    /// Whatever a plugin says, it grants nothing, and a refusal changes nothing.
    #[test]
    fn no_patch_widens_or_half_applies(patch in any_json(), hook in prop::sample::select(Hook::ALL.to_vec())) {
        let (before, mut after) = (request(), request());
        let applied = apply_patch(hook, &mut after, &patch);
        if applied.is_err() {
            prop_assert_eq!(&after, &before);
        }
        let (was, is) = (before.access.unwrap().permissions, after.access.unwrap().permissions);
        for tool in ["read", "reads", "write", "files__read", "files_", "shell", "*", ""] {
            prop_assert!(!permits(&is.tools, tool) || permits(&was.tools, tool), "{}", tool);
        }
        prop_assert!(was.tools.deny.iter().all(|tool| is.tools.deny.contains(tool)));
        prop_assert!(is.data_access <= was.data_access);
        prop_assert_eq!(after.event.sender_id, before.event.sender_id);
    }
}
