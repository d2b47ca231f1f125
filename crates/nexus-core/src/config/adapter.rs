//! One entry of `adapters`: the program, what it gets, how it is restarted, and its accounts.

use super::decode::{Decode, WAIT_MS_MAX, named, nonempty, optional_text};
use super::node::{Node, Position};
use super::problem::{Faults, quoted};
use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// The adapter that this binary brings itself, as a command.
pub const BUILTIN_WEBHOOK: &str = "builtin:webhook";
/// Shortest and longest limit of an adapter line, in bytes.
const LINE_BYTES_MIN: u64 = 1024;
const LINE_BYTES_MAX: u64 = 16 * 1024 * 1024;
/// Most requests that may be allowed to wait for one account.
pub(super) const PENDING_REQUESTS_MAX: u64 = 10_000_000;
/// Most restarts in a row, and most retries of a send, that may be allowed.
const RESTARTS_MAX: u32 = 1000;
const SEND_RETRIES_MAX: u32 = 100;
/// Largest growth of the restart delay from one restart to the next, as a factor.
const BACKOFF_MULTIPLIER_MAX: f64 = 100.0;

words! {
    /// What happens to a send that may or may not have reached the platform.
    OnUncertain {
        /// It stays `uncertain` until a person decides.
        #[default]
        Hold = "hold",
        /// It is sent again, and may arrive twice.
        Retry = "retry",
    }
}

words! {
    /// How an answer leaves while it is still being made.
    Streaming {
        /// Live, where the adapter supports `stream`; else as a whole.
        #[default]
        Auto = "auto",
        /// In blocks, each a message of its own.
        Blocks = "blocks",
        /// As a whole, once it is complete.
        Whole = "whole",
    }
}

words! {
    /// What happens to an event that arrives late.
    Late {
        /// It runs as any other.
        #[default]
        Run = "run",
        /// It is recorded and runs no pipeline.
        File = "file",
    }
}

section! {
    /// One adapter: a program that speaks adapter protocol v1.
    Adapter check program {
        /// The program and its arguments, split as a shell would and never run by one;
        /// `builtin:webhook` is this binary's own.
        command: String = String::new() => nonempty, required "gog";
        /// The channel it serves; left out, the program's `info` tells.
        channel: Option<String> = None => optional_text;
        /// Environment variables to set, beside PATH, HOME, LANG, TZ, TMPDIR and NEXUS_*.
        env: BTreeMap<String, String> = BTreeMap::new() => environment;
        /// Names of the daemon's own environment variables to pass on.
        pass_env: Vec<String> = Vec::new() => variable_names;
        /// Working directory, relative to the configuration file.
        cwd: Option<String> = None => optional_text;
        /// How its processes are restarted.
        restart: Restart = Restart::default();
        /// Longest line it may write, in bytes; a longer one is rejected.
        max_line_bytes: u64 [LINE_BYTES_MIN..=LINE_BYTES_MAX] = 1_048_576;
        /// Waiting requests of one account at which its reader stops.
        max_pending: u64 [1..=PENDING_REQUESTS_MAX] = 100_000;
        /// How messages are sent.
        send: Send = Send::default();
        /// How events are fetched that were missed while nothing ran.
        catch_up: CatchUp = CatchUp::default();
        /// Its accounts, by id.
        accounts: BTreeMap<String, Account> = BTreeMap::new() => named;
    }
    derived {
        /// `command` split into the program and its arguments; never empty in a loaded configuration.
        argv: Vec<String> = Vec::new();
    }
}

section! {
    /// How the processes of an adapter are restarted.
    Restart {
        /// Restarts in a row before the status is `errored`.
        max_restarts: u32 [0..=RESTARTS_MAX] = 5;
        /// Delay before the first restart, in milliseconds.
        backoff_base_ms: u64 [1..=WAIT_MS_MAX] = 1000;
        /// Growth of the delay from one restart to the next, as a factor.
        backoff_multiplier: f64 [1.0..=BACKOFF_MULTIPLIER_MAX] = 2.0;
        /// Longest delay, in milliseconds.
        backoff_max_ms: u64 [1..=WAIT_MS_MAX] = 300_000;
        /// Milliseconds of running after which the count of restarts begins anew.
        reset_after_ms: u64 [0..=WAIT_MS_MAX] = 600_000;
        /// Milliseconds between retries while `errored`; 0 waits for a person.
        errored_retry_ms: u64 [0..=WAIT_MS_MAX] = 300_000;
    }
}

section! {
    /// How messages are sent.
    Send {
        /// Milliseconds one send may take.
        timeout_ms: u64 [1..=WAIT_MS_MAX] = 30_000;
        /// Repeats of a send that failed and may be repeated.
        retries: u32 [0..=SEND_RETRIES_MAX] = 3;
        /// What happens to a send that may or may not have arrived: `hold` it for a person, or `retry`.
        on_uncertain: OnUncertain = OnUncertain::default();
        /// Age, in milliseconds, at which an unsent message expires.
        ttl_ms: u64 [1..=WAIT_MS_MAX] = 3_600_000;
        /// How an answer leaves while it is still being made: live where the adapter supports `stream` and else as a
        /// whole (`auto`), in `blocks`, or always as a `whole`.
        stream: Streaming = Streaming::default();
    }
}

section! {
    /// How events are fetched that were missed while nothing ran.
    CatchUp {
        /// Milliseconds before the last known event from which fetching starts.
        overlap_ms: u64 [0..=WAIT_MS_MAX] = 600_000;
        /// Age, in milliseconds, from which a fetched event counts as late.
        max_age_ms: u64 [0..=WAIT_MS_MAX] = 3_600_000;
        /// What happens to a late event: `run` it, or only `file` it.
        late: Late = Late::default();
    }
}

section! {
    /// One account of an adapter.
    Account {
        /// Whether its events are read for ever.
        monitor: bool = true;
        /// Whether its history is fetched once.
        backfill: bool = false;
        /// The credential it needs, as `service/account`, `env:NAME` or `command:...`; `credential` is
        /// another name for this key.
        credential_ref or "credential": Option<String> = None => optional_text;
        /// Whether it is used at all.
        enabled: bool = true;
        /// Anything the adapter wants to know about the account.
        config: Map<String, Value> = Map::new();
    }
}

fn program(mut adapter: Adapter, node: &Node, faults: &mut Faults) -> Adapter {
    let Some(command) = node.get("command") else { return adapter };
    let Some(argv) = split_command(&adapter.command, command, faults) else { return adapter };
    let first = argv.first().map_or("", String::as_str);
    if first.starts_with("builtin:") && (first != BUILTIN_WEBHOOK || argv.len() > 1) {
        let shown = quoted(&adapter.command);
        faults.error(command.at, format!("`command` {shown} is no built-in; the only one is `{BUILTIN_WEBHOOK}`, without arguments"));
    }
    adapter.argv = argv;
    adapter
}

/// Splits a command as a shell would, without running one. `None`, noted where it is wrong, for an
/// open quote; `None` too for nothing at all, which its decoder has noted.
pub(crate) fn split_command(command: &str, node: &Node, faults: &mut Faults) -> Option<Vec<String>> {
    if command.trim().is_empty() {
        return None;
    }
    let Ok(argv) = shell_words::split(command) else {
        faults.error(node.at, format!("`command` {} has an open quote; close it", quoted(command)));
        return None;
    };
    if argv.first().is_none_or(String::is_empty) {
        faults.error(node.at, format!("`command` {} names no program; begin with one", quoted(command)));
        return None;
    }
    Some(argv)
}

/// Reads environment variables to set.
pub(crate) fn environment(node: &Node, name: &str, faults: &mut Faults) -> Option<BTreeMap<String, String>> {
    for (key, field) in node.fields() {
        check_variable_name(key, field.key_at, faults);
    }
    BTreeMap::decode(node, name, faults)
}

/// Reads names of environment variables.
pub(crate) fn variable_names(node: &Node, name: &str, faults: &mut Faults) -> Option<Vec<String>> {
    let names = Vec::decode(node, name, faults)?;
    for item in node.items() {
        if let Some(text) = item.text() {
            check_variable_name(text, item.at, faults);
        }
    }
    Some(names)
}

/// The environment's own rule (`environ(7)`): not empty, and no `=`, which ends a name.
fn check_variable_name(name: &str, at: Position, faults: &mut Faults) {
    if name.is_empty() || name.contains(['=', '\0']) {
        let name = quoted(name);
        faults.error(at, format!("{name} is not a variable name; write one without `=`, as in PATH"));
    }
}
