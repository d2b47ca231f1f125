//! The ways in which a running daemon's configuration can change, and what each one does to it.

use super::BusMode;
use std::fmt;

/// What applying a change does to what runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Effect {
    /// Applied at once; nothing is interrupted.
    Live,
    /// Applied to requests that start from now on.
    NewRequestsOnly,
    /// Starts, stops or restarts child processes, of the named adapter or account only.
    RestartsChild,
    /// Not applied until the daemon is restarted.
    NeedsDaemonRestart,
}

/// One difference between two configurations. `Display` says what changed and what follows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// `daemon.log_level`.
    LogLevel,
    /// Any key of `timer`.
    TimerSchedule,
    /// `bus.mode`, with the new one.
    BusMode(BusMode),
    /// `bus.ring`.
    BusRing,
    /// `bus.retention_days`.
    BusRetention,
    /// `plugins.enabled`: names that came and names that went, sorted.
    PluginsEnabled { added: Vec<String>, removed: Vec<String> },
    /// `plugins.grants`.
    PluginGrants,
    /// `plugins.budgets`.
    PluginBudgets,
    /// Any key of `plugins.circuit`.
    PluginCircuit,
    /// Any key of `automations`.
    Automations,
    /// A new adapter.
    AdapterAdded(String),
    /// An adapter that is gone, with all its accounts.
    AdapterRemoved(String),
    /// Command, environment, working directory or channel: all its accounts restart.
    AdapterChanged { name: String },
    /// Restart policy, limits, sending or catching up.
    AdapterSettings { name: String },
    /// A new account of an adapter that was there before.
    AccountAdded { adapter: String, account: String },
    /// An account that is gone from an adapter that stays.
    AccountRemoved { adapter: String, account: String },
    /// `enabled` became true.
    AccountEnabled { adapter: String, account: String },
    /// `enabled` became false.
    AccountDisabled { adapter: String, account: String },
    /// Any other key of an account: only this account restarts.
    AccountChanged { adapter: String, account: String },
    /// Any key of `access`.
    Access,
    /// Any key of `agents`.
    Agents,
    /// `pipeline.timeout_ms`.
    PipelineTimeout,
    /// `pipeline.max_concurrent`.
    PipelineConcurrency,
    /// `pipeline.on_interrupted`.
    OnInterrupted,
    /// `ledgers.retention`.
    Retention,
    /// `ledgers.min_free_mb`.
    MinFree,
    /// Any key of `nostr`.
    Nostr,
    /// Any key of `projects`.
    Projects,
    /// A key that is read only when the daemon starts.
    NeedsRestart {
        /// Dotted, such as `daemon.port`.
        key: &'static str,
    },
}

impl Change {
    /// What applying the change does to what runs.
    pub fn effect(&self) -> Effect {
        match self {
            Self::LogLevel
            | Self::TimerSchedule
            | Self::BusMode(_)
            | Self::BusRing
            | Self::BusRetention
            | Self::PluginsEnabled { .. }
            | Self::PluginGrants
            | Self::PluginBudgets
            | Self::PluginCircuit
            | Self::Automations
            | Self::AdapterSettings { .. }
            | Self::PipelineConcurrency
            | Self::OnInterrupted
            | Self::Retention
            | Self::MinFree
            | Self::Nostr
            | Self::Projects => Effect::Live,
            Self::Access | Self::Agents | Self::PipelineTimeout => Effect::NewRequestsOnly,
            Self::AdapterAdded(_)
            | Self::AdapterRemoved(_)
            | Self::AdapterChanged { .. }
            | Self::AccountAdded { .. }
            | Self::AccountRemoved { .. }
            | Self::AccountEnabled { .. }
            | Self::AccountDisabled { .. }
            | Self::AccountChanged { .. } => Effect::RestartsChild,
            Self::NeedsRestart { .. } => Effect::NeedsDaemonRestart,
        }
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::LogLevel => f.write_str("log level changed: applied at once"),
            Self::TimerSchedule => f.write_str("timer changed: reschedule"),
            Self::BusMode(BusMode::WriteThrough) => {
                f.write_str("bus.mode changed: write-through on, notices are kept in bus.db from now on")
            }
            Self::BusMode(BusMode::Memory) => f.write_str("bus.mode changed: write-through off, notices are kept in memory only"),
            Self::BusRing => f.write_str("bus ring changed: resize it"),
            Self::BusRetention => f.write_str("bus retention changed: applied at the next clean-up"),
            Self::PluginsEnabled { added, removed } => plugins(f, added, removed),
            Self::PluginGrants => f.write_str("plugins.grants changed: applied to calls from now on"),
            Self::PluginBudgets => f.write_str("plugins.budgets changed: applied to calls from now on"),
            Self::PluginCircuit => f.write_str("plugins.circuit changed: applied at once"),
            Self::Automations => f.write_str("automations changed: applied to events from now on"),
            Self::AdapterAdded(name) => write!(f, "adapter `{name}` added: start its accounts"),
            Self::AdapterRemoved(name) => write!(f, "adapter `{name}` removed: stop its accounts"),
            Self::AdapterChanged { name } => write!(f, "adapter `{name}` changed: restart its accounts"),
            Self::AdapterSettings { name } => write!(f, "settings of adapter `{name}` changed: applied at once"),
            Self::AccountAdded { adapter, account } => write!(f, "account `{adapter}/{account}` added: start it"),
            Self::AccountRemoved { adapter, account } => write!(f, "account `{adapter}/{account}` removed: stop it"),
            Self::AccountEnabled { adapter, account } => write!(f, "account `{adapter}/{account}` enabled: start it"),
            Self::AccountDisabled { adapter, account } => write!(f, "account `{adapter}/{account}` disabled: stop it"),
            Self::AccountChanged { adapter, account } => write!(f, "account `{adapter}/{account}` changed: restart it"),
            Self::Access => f.write_str("access changed: applies to new requests"),
            Self::Agents => f.write_str("agents changed: applies to new requests"),
            Self::PipelineTimeout => f.write_str("pipeline.timeout_ms changed: applies to new requests"),
            Self::PipelineConcurrency => f.write_str("pipeline.max_concurrent changed: applied at once"),
            Self::OnInterrupted => f.write_str("pipeline.on_interrupted changed: applied at once"),
            Self::Retention => f.write_str("ledgers.retention changed: applied at the next clean-up"),
            Self::MinFree => f.write_str("ledgers.min_free_mb changed: applied at once"),
            Self::Nostr => f.write_str("nostr changed: connections, keys and the whitelist follow at once"),
            Self::Projects => f.write_str("projects changed: applied to what is prepared and started from now on"),
            Self::NeedsRestart { key } => write!(f, "{key} changed: needs a restart of the daemon"),
        }
    }
}

fn plugins(f: &mut fmt::Formatter<'_>, added: &[String], removed: &[String]) -> fmt::Result {
    let actions = [("load", added), ("unload", removed)]
        .into_iter()
        .filter(|(_, names)| !names.is_empty())
        .map(|(verb, names)| format!("{verb} {}", names.join(", ")))
        .collect::<Vec<_>>();
    if actions.is_empty() {
        return f.write_str("plugins changed: their order");
    }
    write!(f, "plugins changed: {}", actions.join("; "))
}
