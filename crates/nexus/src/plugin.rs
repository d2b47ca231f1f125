//! The hook points and the plugins behind them. Two are built in; both only observe.

mod analytics;

pub use analytics::Counts;

use arc_swap::ArcSwap;
use nexus_core::request::{NexusRequest, Stage};
use std::sync::Arc;

/// A built-in plugin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Builtin {
    /// One log line per request, and one per stage at level debug.
    Logging,
    /// Requests and latency by channel, agent and status, a row per hour.
    Analytics,
}

/// The loaded plugins, swapped whole by a reload.
#[derive(Debug)]
pub struct Plugins {
    enabled: ArcSwap<Vec<Builtin>>,
    counts: Arc<Counts>,
}

impl Plugins {
    /// Loads the plugins named in `plugins.enabled`; the config was checked for unknown names.
    pub fn new(names: &[String]) -> Self {
        Self { enabled: ArcSwap::from_pointee(load(names)), counts: Arc::default() }
    }

    pub fn set_enabled(&self, names: &[String]) {
        self.enabled.store(Arc::new(load(names)));
    }

    /// The names of those that run, in order.
    pub fn names(&self) -> Vec<&'static str> {
        self.enabled.load().iter().map(|plugin| plugin.name()).collect()
    }

    /// What analytics has counted since it was last written.
    pub fn counts(&self) -> &Counts {
        &self.counts
    }

    /// The hook behind `stage`: `afterReceiveEvent` ... `afterDeliverResponse`, `onFinalize`.
    pub fn after(&self, stage: Stage, request: &NexusRequest) {
        for plugin in self.enabled.load().iter() {
            match plugin {
                Builtin::Logging => log_stage(stage, request),
                Builtin::Analytics if stage == Stage::Finalize => self.counts.count(request),
                Builtin::Analytics => {}
            }
        }
    }

    /// The hook `onError`: a request that failed in any stage.
    pub fn on_error(&self, request: &NexusRequest) {
        for plugin in self.enabled.load().iter() {
            match plugin {
                Builtin::Logging => {
                    let stage = failed_stage(request).map(Stage::as_str);
                    tracing::error!(request_id = request.request_id, error = request.reason, stage, "Pipeline error");
                }
                Builtin::Analytics => {}
            }
        }
    }
}

impl Builtin {
    const ALL: [Self; 2] = [Self::Logging, Self::Analytics];

    fn name(self) -> &'static str {
        match self {
            Self::Logging => "logging",
            Self::Analytics => "analytics",
        }
    }
}

fn load(names: &[String]) -> Vec<Builtin> {
    names.iter().filter_map(|name| Builtin::ALL.into_iter().find(|plugin| plugin.name() == name)).collect()
}

/// The stage that failed. Behind it there may be others: its notice is delivered.
fn failed_stage(request: &NexusRequest) -> Option<Stage> {
    let failed = request.pipeline.iter().rev().find(|trace| trace.error.is_some());
    failed.or_else(|| request.pipeline.last()).map(|trace| trace.stage)
}

fn log_stage(stage: Stage, request: &NexusRequest) {
    let last = request.pipeline.last();
    if stage == Stage::Finalize {
        let duration_ms = request.pipeline.iter().map(|trace| trace.duration_ms).sum::<f64>().round();
        tracing::info!(
            request_id = request.request_id,
            status = request.status.as_str(),
            duration_ms,
            stage_count = request.pipeline.len() + 1,
            "Pipeline complete"
        );
    } else if let Some(trace) = last {
        tracing::debug!(
            request_id = request.request_id,
            stage = stage.as_str(),
            duration_ms = trace.duration_ms,
            error = trace.error,
            "stage"
        );
    }
}
