//! What is said of a thing that isn't there: the same by a running daemon and by a command without one. Words only.

pub(crate) fn event(id: &str) -> String {
    format!("no event `{id}`; give an event id, an event's number or a request id")
}

pub(crate) fn request(id: &str) -> String {
    format!("no request `{id}`; give a request id, an event id or an event's number")
}

pub(crate) fn session(label: &str) -> String {
    format!("no session `{label}`; `nexus sessions list --all` shows all labels")
}

pub(crate) fn sender(of: &str) -> String {
    format!("nothing is known of `{of}`; give CHANNEL:SENDER or the id of an entity")
}

pub(crate) fn delivery(id: &str) -> String {
    format!("no delivery `{id}`; `nexus deliveries list` shows the newest")
}

pub(crate) fn project(name: &str) -> String {
    format!("no project `{name}`, or more than one whose name begins so; `nexus project list` shows them")
}
