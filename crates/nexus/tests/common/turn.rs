//! A turn with a little history, for tests of runners that need no daemon.

use nexus::agent::{Message, Remembers, Role, Sender, Turn};

pub(crate) fn turn() -> Turn {
    let sender = Sender { id: "u1".into(), name: None, principal: "owner".into() };
    let said = |role: Role, content: &str| Message { role, content: content.into(), name: None };
    let history = vec![said(Role::User, "Hi"), said(Role::Assistant, "Hello")];
    let message = Turn::of_message("run_1".into(), "model".into(), "And now?".into(), sender);
    Turn { session_label: "dm:me".into(), channel: "webchat".into(), history, remembers: Remembers::Session, ..message }
}
