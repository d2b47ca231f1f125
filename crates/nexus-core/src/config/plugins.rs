//! The section `plugins`: which of the plugins of this version run.

use super::decode::{Decode, nonempty};
use super::node::Node;
use super::problem::{Faults, quoted};

/// The plugins that this version has.
pub const PLUGINS: &[&str] = &["logging", "analytics"];

section! {
    /// Which plugins run.
    Plugins {
        /// Directory of plugins, relative to the configuration file. A change needs a restart.
        directory: String = "./plugins".to_owned() => nonempty;
        /// Names of the plugins that run: `logging` (one line per stage) and `analytics` (counters and
        /// latency by channel, agent and status).
        enabled: Vec<String> = PLUGINS.iter().map(|name| (*name).to_owned()).collect() => known_plugins;
    }
}

fn known_plugins(node: &Node, name: &str, faults: &mut Faults) -> Option<Vec<String>> {
    let names = Vec::<String>::decode(node, name, faults)?;
    for item in node.items() {
        let Some(text) = item.text() else { continue };
        if !PLUGINS.contains(&text) {
            let (known, text) = (PLUGINS.join(", "), quoted(text));
            faults.error(item.at, format!("{text} is not a plugin of this version; it has: {known}"));
        }
    }
    Some(names)
}
