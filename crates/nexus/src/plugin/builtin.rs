//! The plugins that are built in: they only observe, within the pipeline's own task, so that what they take counts.

use super::recent::Recent;
use crate::metrics::{Metrics, PluginLabel, PluginResult};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::histogram::Histogram;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Builtin {
    /// One log line per request, and one per stage at level debug.
    Logging,
    /// Requests and latency by channel, agent and status, a row per hour.
    Analytics,
}

impl Builtin {
    const ALL: [Self; 2] = [Self::Logging, Self::Analytics];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Logging => "logging",
            Self::Analytics => "analytics",
        }
    }

    /// Those of `names` that are built in.
    pub(super) fn of(names: &[String]) -> Vec<Self> {
        names.iter().filter_map(|name| Self::ALL.into_iter().find(|plugin| plugin.name() == name)).collect()
    }
}

/// What the built-in plugins took.
#[derive(Debug, Default)]
pub(super) struct Figures {
    logging: Figure,
    analytics: Figure,
}

#[derive(Debug, Default)]
pub(super) struct Figure {
    pub(super) calls: AtomicU64,
    pub(super) took_ns: AtomicU64,
    pub(super) recent: Recent,
    /// Looked up once: a call is shorter than the looking up.
    metrics: OnceLock<(Counter, Histogram)>,
}

impl Figures {
    pub(super) fn of(&self, plugin: Builtin) -> &Figure {
        match plugin {
            Builtin::Logging => &self.logging,
            Builtin::Analytics => &self.analytics,
        }
    }

    /// From now on each call is counted in the metrics as well.
    pub(super) fn tell(&self, metrics: &Metrics) {
        for plugin in Builtin::ALL {
            let name = plugin.name().to_owned();
            let calls = metrics.plugin_calls.get_or_create_owned(&PluginResult { plugin: name.clone(), result: "continue" });
            let seconds = metrics.plugin_seconds.get_or_create_owned(&PluginLabel { plugin: name });
            // Set once, by the first start.
            self.of(plugin).metrics.set((calls, seconds)).ok();
        }
    }
}

impl Figure {
    pub(super) fn took(&self, time: Duration) {
        self.calls.fetch_add(1, Ordering::Relaxed);
        self.recent.add(time);
        self.took_ns.fetch_add(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
        if let Some((calls, seconds)) = self.metrics.get() {
            calls.inc();
            seconds.observe(time.as_secs_f64());
        }
    }
}
