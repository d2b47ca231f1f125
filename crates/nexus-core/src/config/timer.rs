//! The section `timer`: the heartbeat and scheduled events. When a slot is due is decided elsewhere.

use super::adapter::{Adapter, BUILTIN_WEBHOOK};
use super::decode::{Decode, NAME_CHARS_MAX, WAIT_MS_MAX, check_unique, nonempty, number};
use super::node::Node;
use super::problem::{Faults, quoted};
use jiff::tz::TimeZone;
use std::collections::BTreeMap;
use std::str::FromStr;

/// Shortest heartbeat period, in milliseconds.
const HEARTBEAT_MS_MIN: u64 = 1000;
/// Longest cron expression, in characters: no sensible one is longer.
const EXPR_CHARS_MAX: usize = 256;
/// Longest id of whom something is sent to, in bytes; longer ones no event has.
const TARGET_BYTES_MAX: usize = 1024;

words! {
    /// What happens to slots that passed while nothing ran.
    Missed {
        /// They are dropped.
        Skip = "skip",
        /// The newest of them fires.
        #[default]
        Once = "once",
        /// Each of them fires.
        All = "all",
    }
}

section! {
    /// Events that the daemon makes itself.
    Timer {
        /// Milliseconds between heartbeat events, at least 1000; 0 for none.
        heartbeat_interval_ms: u64 [0..=WAIT_MS_MAX] = 60_000 => heartbeat;
        /// Time zone of cron expressions: `local`, or an IANA name such as `Europe/Berlin`.
        timezone: String = "local".to_owned() => timezone;
        /// Scheduled events.
        cron: Vec<Cron> = Vec::new() => cron_list;
    }
}

section! {
    /// One scheduled event.
    Cron {
        /// Cron expression: minute, hour, day of month, month, day of week; seconds may come first.
        expr: String = String::new() => expression, required "\"0 8 * * *\"";
        /// Name of the schedule, which its events carry; unique, of `a-z 0-9 . _ -`.
        label: String = String::new() => label, required "morning-summary";
        /// What happens to slots that passed while nothing ran: `skip`, fire `once`, or fire `all`.
        missed: Missed = Missed::default();
        /// Lateness, in milliseconds, beyond which a missed slot is dropped in any case.
        max_lateness_ms: u64 [0..=WAIT_MS_MAX] = 86_400_000;
        /// Where an agent's answer to its events is sent; nowhere, if not given.
        deliver: Option<CronDeliver> = None;
    }
}

section! {
    /// Where answers to a scheduled event are sent.
    CronDeliver {
        /// The adapter that sends them, by its name in `adapters`.
        adapter: String = String::new() => nonempty, required "chat";
        /// The account that they come from.
        account: String = String::new() => nonempty, required "me";
        /// Whom they go to: a person, group or channel as the adapter names it in `peer_id`.
        to: String = String::new() => target, required "\"+15551234567\"";
    }
}

/// Whoever a scheduled event's answers are sent by must exist and be able to send.
pub(super) fn check_deliver(adapters: &BTreeMap<String, Adapter>, timer: &Node, faults: &mut Faults) {
    let entries = timer.get("cron").map(Node::items).unwrap_or_default();
    for deliver in entries.iter().filter_map(|entry| entry.get("deliver")) {
        let Some((node, name)) = deliver.get("adapter").and_then(|node| Some((node, node.text()?))) else { continue };
        let Some(adapter) = adapters.get(name) else {
            faults.error(node.at, format!("{} is not an adapter; `adapters` has {}", quoted(name), names(adapters)));
            continue;
        };
        if adapter.argv.first().is_some_and(|program| program == BUILTIN_WEBHOOK) {
            faults.error(node.at, format!("{} can't send: it is `{BUILTIN_WEBHOOK}`; name another adapter", quoted(name)));
        }
        let Some((node, id)) = deliver.get("account").and_then(|node| Some((node, node.text()?))) else { continue };
        if !adapter.accounts.contains_key(id) {
            let known = names(&adapter.accounts);
            faults.error(node.at, format!("{} is not an account of {}, which has {known}", quoted(id), quoted(name)));
        }
    }
}

fn names<T>(all: &BTreeMap<String, T>) -> String {
    let names: Vec<&str> = all.keys().map(String::as_str).collect();
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}

/// Reads whom something is sent to: it becomes an argument.
fn target(node: &Node, name: &str, faults: &mut Faults) -> Option<String> {
    let text = nonempty(node, name, faults)?;
    if text.len() > TARGET_BYTES_MAX || text.chars().any(char::is_control) {
        faults.error(node.at, format!("`{name}` must be at most {TARGET_BYTES_MAX} bytes without control characters"));
        return None;
    }
    Some(text)
}

fn heartbeat(node: &Node, name: &str, faults: &mut Faults) -> Option<u64> {
    let period_ms = number(node, name, &(0..=WAIT_MS_MAX), faults)?;
    if period_ms != 0 && period_ms < HEARTBEAT_MS_MIN {
        faults.error(node.at, format!("`{name}` must be 0 (no heartbeat) or at least {HEARTBEAT_MS_MIN}, not {period_ms}"));
        return None;
    }
    Some(period_ms)
}

fn timezone(node: &Node, name: &str, faults: &mut Faults) -> Option<String> {
    let text = String::decode(node, name, faults)?;
    if text != "local" && TimeZone::get(&text).is_err() {
        let text = quoted(&text);
        faults.error(node.at, format!("`{name}` {text} is unknown; use local or an IANA name such as Europe/Berlin"));
        return None;
    }
    Some(text)
}

fn cron_list(node: &Node, name: &str, faults: &mut Faults) -> Option<Vec<Cron>> {
    let list = Vec::decode(node, name, faults)?;
    check_unique(node, "label", faults);
    Some(list)
}

fn expression(node: &Node, name: &str, faults: &mut Faults) -> Option<String> {
    let text = String::decode(node, name, faults)?;
    let reason = if text.chars().count() > EXPR_CHARS_MAX {
        format!("longer than {EXPR_CHARS_MAX} characters")
    } else {
        match croner::Cron::from_str(&text) {
            Ok(_) => return Some(text),
            Err(error) => error.to_string().trim_end_matches('.').to_owned(),
        }
    };
    let text = quoted(&text);
    faults.error(
        node.at,
        format!("`{name}` {text} is not a cron expression: {reason}; write minute hour day month weekday, as in \"0 8 * * *\""),
    );
    None
}

fn label(node: &Node, name: &str, faults: &mut Faults) -> Option<String> {
    let text = String::decode(node, name, faults)?;
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "._-".contains(c);
    if text.is_empty() || text.len() > NAME_CHARS_MAX || !text.chars().all(allowed) {
        let rule = "1 to 64 characters of a-z 0-9 . _ -";
        faults.error(node.at, format!("`{name}` {} is not usable; a label has {rule}", quoted(&text)));
        return None;
    }
    Some(text)
}
