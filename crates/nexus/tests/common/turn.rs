//! A turn with a little history, for tests of runners that need no daemon.

use nexus::agent::{Message, Role, Sender, Turn};

pub(crate) fn turn() -> Turn {
    let sender = Sender { id: "u1".into(), name: None, principal: "owner".into() };
    let history = vec![Message { role: Role::User, content: "Hi".into() }, Message { role: Role::Assistant, content: "Hello".into() }];
    let message = Turn::of_message("run_1".into(), "model".into(), "And now?".into(), sender);
    Turn { session_label: "dm:me".into(), channel: "webchat".into(), history, ..message }
}
