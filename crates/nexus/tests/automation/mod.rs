//! What tests of automations have in common: files put in place, and what the daemon says of them.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used)]

use crate::common::{Ask, Daemon, replace};
use serde_json::{Value, json};
use std::fs;

pub const EXAMPLES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/examples/automations");

/// Puts a file among the automations.
pub fn put(daemon: &Daemon, file: &str, text: &str) {
    let directory = daemon.workspace().join("state/automations");
    fs::create_dir_all(&directory).unwrap();
    replace(&directory.join(file), text);
}

/// An example of the documentation.
pub fn example(name: &str) -> String {
    fs::read_to_string(format!("{EXAMPLES}/{name}.ts")).unwrap()
}

/// An automation NAME whose handler does `body`, with `keys` beside it.
pub fn doing(name: &str, keys: &str, body: &str) -> String {
    format!("let calls = 0;\nexport const automation = {{ name: '{name}', {keys} handler(ctx) {{\n{body}\n}} }};\n")
}

/// The answer to a message, once its request has ended.
pub fn sent(daemon: &Daemon, text: &str) -> Value {
    end_of(daemon, &json!({ "text": text }))
}

/// The same, as part of a conversation of its own.
pub fn sent_in(daemon: &Daemon, conversation: &str, text: &str) -> Value {
    end_of(daemon, &json!({ "text": text, "conversation": conversation }))
}

fn end_of(daemon: &Daemon, message: &Value) -> Value {
    daemon.open(&Ask::post("/control/send", message)).body.end()
}

/// How an automation is, by the daemon's word; null if there is none.
pub fn report(daemon: &Daemon, name: &str) -> Value {
    let all = daemon.get("/control/automations").json();
    all["automations"].as_array().unwrap().iter().find(|one| one["name"] == name).cloned().unwrap_or(Value::Null)
}

/// `triggers` of the newest request that ended.
pub fn triggers(daemon: &Daemon) -> Value {
    let sql = "SELECT trace FROM nexus_requests WHERE trace IS NOT NULL ORDER BY event_seq DESC LIMIT 1";
    let trace: Value = serde_json::from_str(&daemon.texts("nexus", sql)[0]).unwrap();
    trace["triggers"].clone()
}

pub fn text_of<'v>(value: &'v Value, key: &str) -> &'v str {
    value[key].as_str().unwrap_or_default()
}
