//! A turn with a little history, for tests of runners that need no daemon.

use nexus::agent::{Message, Role, Sender, Turn};
use serde_json::Value;

pub(crate) fn turn() -> Turn {
    Turn {
        run_id: "run_1".into(),
        session_label: "dm:me".into(),
        agent: "model".into(),
        content: "And now?".into(),
        attachments: Value::Null,
        sender: Sender { id: "u1".into(), name: None, principal: "owner".into() },
        channel: "webchat".into(),
        capabilities: Value::Null,
        parent_turn_id: None,
        history: vec![Message { role: Role::User, content: "Hi".into() }, Message { role: Role::Assistant, content: "Hello".into() }],
        memory: Vec::new(),
        permissions: Value::Null,
        allowance: None,
        deadline: None,
        instructions: None,
        project: None,
    }
}
