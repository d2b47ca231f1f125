//! How far a preparation has come, for whoever looks: notices on the bus. Nothing waits for anybody to read them.

use crate::bus::Bus;
use crate::project::coordinate::Coordinate;
use nexus_core::notice::NoticeType;
use serde_json::json;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

const MIB: u64 = 1024 * 1024;
/// A clone is told again after so many more MiB.
const STEP_MIB: u64 = 8;

/// Where the steps of one preparation are told.
#[derive(Debug, Clone)]
pub struct Progress {
    to: Option<(Bus, String)>,
    /// MiB that were told last, plus one.
    told: Arc<AtomicU64>,
}

impl Progress {
    /// Told to nobody.
    pub fn none() -> Self {
        Self { to: None, told: Arc::default() }
    }

    /// Published as `project.preparing`.
    pub fn new(bus: Bus, project: &Coordinate) -> Self {
        Self { to: Some((bus, project.to_string())), told: Arc::default() }
    }

    pub(super) fn step(&self, step: &str) {
        self.tell(step, None);
    }

    /// Bytes of a clone on the disk.
    pub(super) fn received(&self, bytes: u64) {
        let mib = bytes / MIB;
        let told = self.told.load(Ordering::Relaxed);
        if told == 0 || mib + 1 >= told + STEP_MIB {
            self.told.store(mib + 1, Ordering::Relaxed);
            self.tell("cloning", Some(mib));
        }
    }

    fn tell(&self, step: &str, mib: Option<u64>) {
        let Some((bus, project)) = &self.to else { return };
        tracing::info!(%project, step, mib, "preparing a project");
        bus.publish(NoticeType::ProjectPreparing, json!({ "project": project, "step": step, "mib": mib }));
    }
}
