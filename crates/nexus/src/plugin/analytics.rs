//! The analytics plugin: counts in memory, taken out and written once a minute and at shutdown.

use crate::clock;
use crate::ledger::nexus::Hour;
use nexus_core::request::NexusRequest;
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

/// Different channel-agent-status combinations kept between two writes; more are counted as `other`.
const KEYS_MAX: usize = 1000;
const HOUR_MS: i64 = 3_600_000;

type Key = (i64, String, String, &'static str);

/// What was counted and not yet taken.
#[derive(Debug, Default)]
pub struct Counts {
    counts: Mutex<HashMap<Key, (u64, f64)>>,
}

impl Counts {
    pub(super) fn count(&self, request: &NexusRequest) {
        let now = clock::wall_ms();
        let agent = request.agent.as_ref().map_or_else(String::new, |agent| agent.agent_id.clone());
        let mut key = (now / HOUR_MS, request.event.channel.clone(), agent, request.status.as_str());
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        if counts.len() >= KEYS_MAX && !counts.contains_key(&key) {
            (key.1, key.2) = ("other".into(), "other".into());
        }
        let entry = counts.entry(key).or_default();
        entry.0 += 1;
        entry.1 += (now - request.created_at).max(0) as f64;
    }

    /// Takes everything out.
    pub fn take(&self) -> Vec<Hour> {
        let counts = std::mem::take(&mut *self.counts.lock().unwrap_or_else(PoisonError::into_inner));
        let hour = |((hour, channel, agent, status), (requests, latency_ms))| Hour { hour, channel, agent, status, requests, latency_ms };
        counts.into_iter().map(hour).collect()
    }
}
