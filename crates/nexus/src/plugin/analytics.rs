//! The analytics plugin: counts in memory, for `/metrics` and for `nexus.db`. It writes nothing itself, and forgets
//! nothing before it's told that it is written.

use crate::clock;
use crate::ledger::nexus::Hour;
use crate::metrics::{Metrics, RequestLabel};
use nexus_core::request::NexusRequest;
use prometheus_client::metrics::counter::Counter;
use std::collections::HashMap;
use std::sync::atomic::AtomicU64;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

/// Different channel-agent-status combinations kept between two writes, and those in the metrics; more are counted as `other`.
const KEYS_MAX: usize = 1000;
const HOUR_MS: i64 = 3_600_000;

/// What was counted until it was to be written.
#[derive(Debug, Clone, PartialEq)]
pub struct Batch {
    /// Of this life of the daemon, from 1 on.
    pub number: i64,
    pub hours: Vec<Hour>,
}

/// What was counted and isn't known to be written.
#[derive(Debug, Default)]
pub struct Counts {
    kept: Mutex<Kept>,
    metrics: OnceLock<Metrics>,
}

#[derive(Debug, Default)]
struct Kept {
    counts: HashMap<(i64, RequestLabel), (u64, f64)>,
    /// On its way to the ledger. What is counted meanwhile is not added to it, since it may be there already.
    leaving: Option<Batch>,
    batches: i64,
    series: HashMap<RequestLabel, Series>,
}

/// One combination in the metrics.
#[derive(Debug, Clone)]
struct Series {
    requests: Counter,
    latency_seconds: Counter<f64, AtomicU64>,
}

impl Counts {
    /// From now on what is counted is in the metrics as well.
    pub(super) fn tell(&self, metrics: &Metrics) {
        // Set once, by the first start.
        self.metrics.set(metrics.clone()).ok();
    }

    pub(super) fn count(&self, request: &NexusRequest) {
        let now = clock::wall_ms();
        let agent = request.agent.as_ref().map_or_else(String::new, |agent| agent.agent_id.clone());
        let label = RequestLabel { channel: request.event.channel.clone(), agent, status: request.status.as_str() };
        self.add(now / HOUR_MS, label, (now - request.created_at).max(0) as f64);
    }

    fn add(&self, hour: i64, label: RequestLabel, latency_ms: f64) {
        let mut kept = self.lock();
        if let Some(metrics) = self.metrics.get() {
            let series = kept.series_of(&label, metrics);
            series.requests.inc();
            series.latency_seconds.inc_by(latency_ms / 1000.0);
        }
        let mut key = (hour, label);
        if kept.counts.len() >= KEYS_MAX && !kept.counts.contains_key(&key) {
            key.1 = other(key.1.status);
        }
        let entry = kept.counts.entry(key).or_default();
        entry.0 += 1;
        entry.1 += latency_ms;
    }

    /// What is to be written next: the same again, until [`Self::written`] is told its number.
    pub fn unwritten(&self) -> Option<Batch> {
        let mut kept = self.lock();
        if kept.leaving.is_none() && !kept.counts.is_empty() {
            kept.batches += 1;
            let counts = std::mem::take(&mut kept.counts);
            let hour = |((hour, label), (requests, latency_ms)): ((i64, RequestLabel), (u64, f64))| {
                let RequestLabel { channel, agent, status } = label;
                Hour { hour, channel, agent, status, requests, latency_ms }
            };
            kept.leaving = Some(Batch { number: kept.batches, hours: counts.into_iter().map(hour).collect() });
        }
        kept.leaving.clone()
    }

    /// That batch is on disk.
    pub fn written(&self, number: i64) {
        let mut kept = self.lock();
        if kept.leaving.as_ref().is_some_and(|leaving| leaving.number == number) {
            kept.leaving = None;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kept {
    fn series_of(&mut self, label: &RequestLabel, metrics: &Metrics) -> Series {
        if let Some(known) = self.series.get(label).cloned() {
            return known;
        }
        // A series stays for as long as the daemon runs, and a channel is whatever an adapter says.
        let label = if self.series.len() < KEYS_MAX { label.clone() } else { other(label.status) };
        let series = Series {
            requests: metrics.analytics_requests.get_or_create_owned(&label),
            latency_seconds: metrics.analytics_latency.get_or_create_owned(&label),
        };
        self.series.insert(label, series.clone());
        series
    }
}

fn other(status: &'static str) -> RequestLabel {
    RequestLabel { channel: "other".to_owned(), agent: "other".to_owned(), status }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn label(channel: impl Into<String>) -> RequestLabel {
        RequestLabel { channel: channel.into(), agent: "echo".to_owned(), status: "completed" }
    }

    #[test]
    fn what_is_counted_stays_until_it_is_written() {
        let counts = Counts::default();
        assert_eq!(counts.unwritten(), None);
        counts.add(1, label("a"), 2.0);
        counts.add(1, label("a"), 3.0);
        let first = counts.unwritten().unwrap();
        let Hour { requests, latency_ms, .. } = &first.hours[0];
        assert_eq!((first.number, first.hours.len(), *requests, *latency_ms as i64), (1, 1, 2, 5));
        counts.add(1, label("a"), 1.0);
        assert_eq!(counts.unwritten(), Some(first.clone()), "nobody knows whether it is on disk");
        counts.written(7);
        assert_eq!(counts.unwritten(), Some(first), "that was another one");
        counts.written(1);
        let second = counts.unwritten().unwrap();
        assert_eq!((second.number, second.hours[0].requests), (2, 1));
        counts.written(2);
        assert_eq!(counts.unwritten(), None);
    }

    #[test]
    fn many_combinations_are_counted_together_and_none_is_lost() {
        let (counts, metrics) = (Counts::default(), Metrics::new());
        counts.tell(&metrics);
        (0..KEYS_MAX + 7).for_each(|n| counts.add(1, label(n.to_string()), 1000.0));
        counts.add(1, label("0"), 1000.0);
        let hours = counts.unwritten().unwrap().hours;
        assert_eq!(hours.len(), KEYS_MAX + 1);
        let of = |channel: &str| hours.iter().find(|hour| hour.channel == channel).map(|hour| (hour.agent.as_str(), hour.requests));
        assert_eq!((of("0"), of("other")), (Some(("echo", 2)), Some(("other", 7))));
        counts.written(1);
        // Another batch makes room in the ledger, and none in the metrics.
        counts.add(2, label("late"), 500.0);
        let text = metrics.text().unwrap();
        let series = text.lines().filter(|line| line.starts_with("nexus_analytics_requests_total{")).count();
        assert_eq!(series, KEYS_MAX + 1);
        let others = r#"{channel="other",agent="other",status="completed"}"#;
        for line in [format!("nexus_analytics_requests_total{others} 8"), format!("nexus_analytics_latency_seconds_total{others} 7.5")] {
            assert!(text.lines().any(|found| found == line), "{line}");
        }
    }
}
