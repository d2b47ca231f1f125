//! The section `plugins`: which plugins run, what they may call and use, and when one that keeps failing is left
//! out. Which ones lie on the disk is not known here.

use super::decode::{Decode, WAIT_MS_MAX, check_name, check_unique_items, named, nonempty};
use super::grant::Grant;
use super::models::CallBudget;
use super::node::Node;
use super::problem::Faults;
use std::collections::BTreeMap;

/// The plugins that this version has built in.
pub const PLUGINS: &[&str] = &["logging", "analytics"];
/// Most errors in a row that may be wanted.
const ERRORS_MAX: u32 = 1000;

section! {
    /// Which plugins run.
    Plugins {
        /// Directory of plugins, relative to the configuration file. A change needs a restart.
        directory: String = "./plugins".to_owned() => nonempty;
        /// Names of the plugins that run: `logging` (a line per request, and per stage with `log_level: debug`) and `analytics`
        /// (counters and latency by channel, agent and status) are built in; any other is NAME.ts, NAME.js or a directory NAME
        /// with a plugin.yaml in `directory`.
        enabled: Vec<String> = PLUGINS.iter().map(|name| (*name).to_owned()).collect() => plugin_names;
        /// What each plugin may call, by its name: `ledger.query` (read the ledgers), `llm` (ask an agent with `runner: llm`),
        /// `search` (search what agents were asked and said), `send` (send messages), `fetch:HOST` or `fetch:HOST:PORT` (HTTP
        /// requests to that host). Nothing by default.
        grants: BTreeMap<String, Vec<Grant>> = BTreeMap::new() => named;
        /// What each plugin may use of models in a day, by its name. Without one only the budgets of the agents count that it asks.
        budgets: BTreeMap<String, CallBudget> = BTreeMap::new() => named;
        /// When a plugin or an automation that keeps failing is not asked any more.
        circuit: PluginCircuit = PluginCircuit::default();
    }
}

section! {
    /// When a plugin that keeps failing is not asked any more. Holds for automations as well.
    PluginCircuit {
        /// Errors in a row after which it is not asked.
        errors: u32 [1..=ERRORS_MAX] = 5;
        /// Milliseconds until one call tries again.
        half_open_ms: u64 [1..=WAIT_MS_MAX] = 300_000;
    }
}

/// A list of names, each of them once.
pub(super) fn plugin_names(node: &Node, name: &str, faults: &mut Faults) -> Option<Vec<String>> {
    let names = Vec::<String>::decode(node, name, faults)?;
    for item in node.items() {
        if let Some(text) = item.text() {
            check_name(text, item.at, faults);
        }
    }
    check_unique_items(node, name, faults);
    Some(names)
}
