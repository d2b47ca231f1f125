//! Part statuses in, one honest word out: healthy, degraded or unhealthy, and why.
//!
//! Pure rules (requirement "Health Endpoint", contract "Probes"). It never probes anything itself,
//! and knows no names of adapters: the health endpoint lists those.

use crate::doubt::Doubt;
use serde::{Deserialize, Serialize};

/// Milliseconds without an event after which a healthy adapter counts as quiet.
pub const QUIET_MS: u64 = 300_000;
/// Milliseconds between two probes of a healthy adapter that has events.
pub const PROBE_HEALTHY_MS: u64 = 60_000;
/// Milliseconds between two probes of a healthy adapter that is quiet.
pub const PROBE_QUIET_MS: u64 = 30_000;
/// Milliseconds between two probes of a degraded adapter.
pub const PROBE_DEGRADED_MS: u64 = 15_000;
/// Milliseconds between two probes of an adapter that is disconnected or unknown.
pub const PROBE_LOST_MS: u64 = 10_000;

/// Where an adapter's process stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AdapterStatus {
    Stopped,
    Starting,
    Running,
    Stopping,
    /// Exited, and waiting for its next restart.
    Backoff,
    /// Out of restarts.
    Errored,
    Backfilling,
}

impl AdapterStatus {
    pub const ALL: [Self; 7] =
        [Self::Stopped, Self::Starting, Self::Running, Self::Stopping, Self::Backoff, Self::Errored, Self::Backfilling];

    /// The name on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stopped => "stopped",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Stopping => "stopping",
            Self::Backoff => "backoff",
            Self::Errored => "errored",
            Self::Backfilling => "backfilling",
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|status| status.as_str() == text)
    }
}

/// What an adapter's last probe said of its connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Health {
    Healthy,
    Degraded,
    Disconnected,
    /// Not probed yet, or it can't be.
    Unknown,
}

impl Health {
    pub const ALL: [Self; 4] = [Self::Healthy, Self::Degraded, Self::Disconnected, Self::Unknown];

    /// The name on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Healthy => "healthy",
            Self::Degraded => "degraded",
            Self::Disconnected => "disconnected",
            Self::Unknown => "unknown",
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|health| health.as_str() == text)
    }
}

/// The daemon as a whole, from best to worst.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Overall {
    Healthy,
    Degraded,
    Unhealthy,
}

impl Overall {
    /// The name on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Healthy => "healthy",
            Self::Degraded => "degraded",
            Self::Unhealthy => "unhealthy",
        }
    }
}

/// One adapter account.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AdapterHealth {
    pub status: AdapterStatus,
    pub health: Health,
}

/// All that the overall word is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parts {
    /// Each ledger's name, and why it can't be read or written, if it can't.
    pub ledgers: Vec<(String, Option<String>)>,
    /// What is wrong with the file of each ledger that is damaged; a sentence with its name.
    pub ledgers_damaged: Vec<String>,
    /// Why it isn't known of the file of a ledger whether it is damaged, though that was looked at; a sentence with its name.
    pub ledgers_unchecked: Vec<String>,
    pub pipeline_ok: bool,
    /// Whether free disk space is above the floor under which intake stops.
    pub disk_ok: bool,
    pub adapters: Vec<AdapterHealth>,
    /// Internal tasks that had to be restarted of late.
    pub tasks_restarted: usize,
    /// Internal tasks that failed too often to be started again.
    pub tasks_lost: Vec<String>,
    /// Deliveries that wait far longer than their retries explain.
    pub stuck_deliveries: u64,
    /// What is wrong with each plugin that isn't well; a sentence with its name.
    pub plugins_unwell: Vec<String>,
    /// What is wrong with each project that somebody has to look at; a sentence with its name.
    pub projects_unwell: Vec<String>,
    /// What is wrong with relays of Nostr; a sentence for each thing.
    pub nostr_unwell: Vec<String>,
    /// Sessions that a breaker stops; a sentence for each.
    pub sessions_stopped: Vec<String>,
    /// Why the wall clock isn't believed, if it isn't.
    pub clock_doubt: Option<Doubt>,
}

impl Parts {
    /// A daemon of which nothing is wrong.
    pub fn well() -> Self {
        Self {
            ledgers: Vec::new(),
            ledgers_damaged: Vec::new(),
            ledgers_unchecked: Vec::new(),
            pipeline_ok: true,
            disk_ok: true,
            adapters: Vec::new(),
            tasks_restarted: 0,
            tasks_lost: Vec::new(),
            stuck_deliveries: 0,
            plugins_unwell: Vec::new(),
            projects_unwell: Vec::new(),
            nostr_unwell: Vec::new(),
            sessions_stopped: Vec::new(),
            clock_doubt: None,
        }
    }
}

/// The overall state and one reason for each thing that is wrong, the worst first; none when healthy.
///
/// Unhealthy: the pipeline, a ledger or the disk fails. Degraded: an adapter is errored, in
/// backoff, degraded or disconnected, a plugin, a project or Nostr isn't well, a breaker stops a session, a task was
/// restarted or given up, deliveries are stuck, a ledger's file wasn't looked at to its end, or the clock is in doubt. An adapter that is or is being stopped counts
/// for nothing, and health nobody knows yet is no fault.
pub fn overall(parts: &Parts) -> (Overall, Vec<String>) {
    let mut reasons = broken(parts);
    let state = if reasons.is_empty() { Overall::Degraded } else { Overall::Unhealthy };
    reasons.extend(worn(parts));
    if reasons.is_empty() { (Overall::Healthy, reasons) } else { (state, reasons) }
}

fn broken(parts: &Parts) -> Vec<String> {
    let mut reasons = Vec::new();
    if !parts.pipeline_ok {
        reasons.push("the pipeline is not processing".to_owned());
    }
    for (name, trouble) in &parts.ledgers {
        reasons.extend(trouble.iter().map(|trouble| format!("ledger `{name}` is not accessible: {trouble}")));
    }
    reasons.extend(parts.ledgers_damaged.iter().cloned());
    if !parts.disk_ok {
        reasons.push("free disk space is below its floor".to_owned());
    }
    reasons
}

fn worn(parts: &Parts) -> Vec<String> {
    let ailments = parts.adapters.iter().filter_map(|adapter| ailment(*adapter));
    let mut counts: [(&str, u64); 4] = [("errored", 0), ("in backoff", 0), ("disconnected", 0), ("degraded", 0)];
    for found in ailments {
        for (name, count) in &mut counts {
            *count += u64::from(*name == found);
        }
    }
    let mut reasons: Vec<String> = counts
        .into_iter()
        .filter(|(_, count)| *count > 0)
        .map(|(name, count)| format!("{count} {} {name}", plural(count, "adapter is", "adapters are")))
        .collect();
    let lost = |name: &String| format!("task `{name}` failed for good; restart the daemon");
    reasons.extend(parts.tasks_lost.iter().map(lost));
    if parts.tasks_restarted > 0 {
        let count = parts.tasks_restarted as u64;
        reasons.push(format!("{count} {} restarted", plural(count, "internal task was", "internal tasks were")));
    }
    if parts.stuck_deliveries > 0 {
        let count = parts.stuck_deliveries;
        reasons.push(format!("{count} {} stuck", plural(count, "delivery is", "deliveries are")));
    }
    let sentences = [&parts.ledgers_unchecked, &parts.plugins_unwell, &parts.projects_unwell, &parts.nostr_unwell, &parts.sessions_stopped];
    reasons.extend(sentences.into_iter().flatten().cloned());
    reasons.extend(parts.clock_doubt.map(|doubt| format!("nothing but timer slots expires: {doubt}")));
    reasons
}

fn ailment(adapter: AdapterHealth) -> Option<&'static str> {
    match adapter.status {
        AdapterStatus::Stopped | AdapterStatus::Stopping => None,
        AdapterStatus::Errored => Some("errored"),
        AdapterStatus::Backoff => Some("in backoff"),
        AdapterStatus::Starting | AdapterStatus::Running | AdapterStatus::Backfilling => match adapter.health {
            Health::Healthy | Health::Unknown => None,
            Health::Degraded => Some("degraded"),
            Health::Disconnected => Some("disconnected"),
        },
    }
}

fn plural(count: u64, one: &'static str, many: &'static str) -> &'static str {
    if count == 1 { one } else { many }
}

/// Milliseconds until the next probe of an adapter whose newest event is `quiet_for_ms` old.
pub fn probe_interval_ms(health: Health, quiet_for_ms: u64) -> u64 {
    match health {
        Health::Healthy if quiet_for_ms >= QUIET_MS => PROBE_QUIET_MS,
        Health::Healthy => PROBE_HEALTHY_MS,
        Health::Degraded => PROBE_DEGRADED_MS,
        Health::Disconnected | Health::Unknown => PROBE_LOST_MS,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use proptest::prelude::*;

    fn well() -> Parts {
        Parts { ledgers: ["events.db", "nexus.db"].map(|name| (name.to_owned(), None)).to_vec(), ..Parts::well() }
    }

    fn with(status: AdapterStatus, health: Health) -> (Overall, Vec<String>) {
        overall(&Parts { adapters: vec![AdapterHealth { status, health }], ..well() })
    }

    #[test]
    fn all_well_is_healthy_without_reasons() {
        assert_eq!(overall(&well()), (Overall::Healthy, Vec::new()));
        assert_eq!(with(AdapterStatus::Running, Health::Healthy).0, Overall::Healthy);
        assert_eq!(with(AdapterStatus::Starting, Health::Unknown).0, Overall::Healthy);
        assert_eq!(with(AdapterStatus::Backfilling, Health::Healthy).0, Overall::Healthy);
    }

    #[test]
    fn a_stopped_adapter_counts_for_nothing() {
        for health in Health::ALL {
            assert_eq!(with(AdapterStatus::Stopped, health).0, Overall::Healthy);
            assert_eq!(with(AdapterStatus::Stopping, health).0, Overall::Healthy);
        }
    }

    #[test]
    fn a_failing_adapter_degrades() {
        for health in Health::ALL {
            assert_eq!(with(AdapterStatus::Errored, health).0, Overall::Degraded);
            assert_eq!(with(AdapterStatus::Backoff, health).0, Overall::Degraded);
        }
        for status in [AdapterStatus::Starting, AdapterStatus::Running, AdapterStatus::Backfilling] {
            assert_eq!(with(status, Health::Degraded).0, Overall::Degraded);
            assert_eq!(with(status, Health::Disconnected).0, Overall::Degraded);
        }
    }

    #[test]
    fn a_broken_core_is_unhealthy() {
        let mut ledger = well();
        ledger.ledgers[1].1 = Some("database is locked".to_owned());
        let reason = "ledger `nexus.db` is not accessible: database is locked".to_owned();
        assert_eq!(overall(&ledger), (Overall::Unhealthy, vec![reason]));
        let damaged = vec!["ledger `nexus.db` is damaged".to_owned()];
        assert_eq!(overall(&Parts { ledgers_damaged: damaged.clone(), ..well() }), (Overall::Unhealthy, damaged));
        assert_eq!(overall(&Parts { pipeline_ok: false, ..well() }).0, Overall::Unhealthy);
        assert_eq!(overall(&Parts { disk_ok: false, ..well() }).0, Overall::Unhealthy);
    }

    #[test]
    fn every_fault_has_its_reason_the_worst_first() {
        let adapter = |status, health| AdapterHealth { status, health };
        let parts = Parts {
            pipeline_ok: false,
            adapters: vec![
                adapter(AdapterStatus::Running, Health::Degraded),
                adapter(AdapterStatus::Errored, Health::Unknown),
                adapter(AdapterStatus::Errored, Health::Unknown),
            ],
            tasks_restarted: 1,
            tasks_lost: vec!["timer".to_owned()],
            stuck_deliveries: 3,
            ledgers_unchecked: vec!["ledger `nexus.db` was not looked at to its end".to_owned()],
            plugins_unwell: vec!["plugin `tags` is not asked: 5 errors in a row".to_owned()],
            projects_unwell: vec!["project demo is quarantined".to_owned()],
            nostr_unwell: vec!["nostr: no relay can be reached".to_owned()],
            sessions_stopped: vec!["session `s` is stopped".to_owned()],
            clock_doubt: Some(Doubt::Behind { by_ms: 5_000 }),
            ..well()
        };
        let reasons = [
            "the pipeline is not processing",
            "2 adapters are errored",
            "1 adapter is degraded",
            "task `timer` failed for good; restart the daemon",
            "1 internal task was restarted",
            "3 deliveries are stuck",
            "ledger `nexus.db` was not looked at to its end",
            "plugin `tags` is not asked: 5 errors in a row",
            "project demo is quarantined",
            "nostr: no relay can be reached",
            "session `s` is stopped",
            "nothing but timer slots expires: the clock is 5 s before the newest event of earlier runs; set it",
        ];
        assert_eq!(overall(&parts), (Overall::Unhealthy, reasons.map(str::to_owned).to_vec()));
    }

    #[test]
    fn names_on_the_wire_agree() {
        for status in AdapterStatus::ALL {
            assert_eq!(serde_json::to_value(status).unwrap(), status.as_str());
            assert_eq!(AdapterStatus::parse(status.as_str()), Some(status));
        }
        for health in Health::ALL {
            assert_eq!(serde_json::to_value(health).unwrap(), health.as_str());
            assert_eq!(Health::parse(health.as_str()), Some(health));
        }
        for state in [Overall::Healthy, Overall::Degraded, Overall::Unhealthy] {
            assert_eq!(serde_json::to_value(state).unwrap(), state.as_str());
        }
        assert_eq!(AdapterStatus::parse("Running"), None);
        assert_eq!(Health::parse(""), None);
    }

    #[test]
    fn probes_come_faster_the_worse_it_is() {
        assert_eq!(probe_interval_ms(Health::Healthy, 0), 60_000);
        assert_eq!(probe_interval_ms(Health::Healthy, 299_999), 60_000);
        assert_eq!(probe_interval_ms(Health::Healthy, 300_000), 30_000);
        assert_eq!(probe_interval_ms(Health::Degraded, 0), 15_000);
        assert_eq!(probe_interval_ms(Health::Disconnected, u64::MAX), 10_000);
        assert_eq!(probe_interval_ms(Health::Unknown, 0), 10_000);
    }

    prop_compose! {
        fn any_parts()(
            ledgers in prop::collection::vec(("[a-z]{1,4}", prop::option::weighted(0.1, "[a-z]{1,4}")), 0..5),
            ledgers_damaged in prop::collection::vec("[a-z]{1,4}", 0..2),
            ledgers_unchecked in prop::collection::vec("[a-z]{1,4}", 0..2),
            pipeline_ok in prop::bool::weighted(0.9),
            disk_ok in prop::bool::weighted(0.9),
            adapters in prop::collection::vec(
                (prop::sample::select(AdapterStatus::ALL.to_vec()), prop::sample::select(Health::ALL.to_vec()))
                    .prop_map(|(status, health)| AdapterHealth { status, health }),
                0..5,
            ),
            tasks_restarted in 0_usize..2,
            tasks_lost in prop::collection::vec("[a-z]{1,4}", 0..2),
            stuck_deliveries in 0_u64..2,
            plugins_unwell in prop::collection::vec("[a-z]{1,4}", 0..2),
            projects_unwell in prop::collection::vec("[a-z]{1,4}", 0..2),
            nostr_unwell in prop::collection::vec("[a-z]{1,4}", 0..2),
            sessions_stopped in prop::collection::vec("[a-z]{1,4}", 0..2),
            clock_doubt in prop::option::of((1_i64..i64::MAX).prop_map(|by_ms| Doubt::Behind { by_ms })),
        ) -> Parts {
            Parts { ledgers, ledgers_damaged, ledgers_unchecked, pipeline_ok, disk_ok, adapters, tasks_restarted, tasks_lost, stuck_deliveries, plugins_unwell, projects_unwell, nostr_unwell, sessions_stopped, clock_doubt }
        }
    }

    proptest! {
        #[test]
        fn one_more_fault_never_looks_better(parts in any_parts(), fault in 0..6) {
            let (before, reasons) = overall(&parts);
            prop_assert_eq!(before == Overall::Healthy, reasons.is_empty());
            let mut worse = parts;
            let least = match fault {
                0 => {
                    worse.adapters.push(AdapterHealth { status: AdapterStatus::Errored, health: Health::Unknown });
                    Overall::Degraded
                }
                1 => {
                    worse.stuck_deliveries += 1;
                    Overall::Degraded
                }
                2 => {
                    worse.ledgers.push(("cortex".to_owned(), Some("gone".to_owned())));
                    Overall::Unhealthy
                }
                3 => {
                    worse.tasks_lost.push("timer".to_owned());
                    Overall::Degraded
                }
                4 => {
                    worse.pipeline_ok = false;
                    Overall::Unhealthy
                }
                _ => {
                    worse.disk_ok = false;
                    Overall::Unhealthy
                }
            };
            prop_assert!(overall(&worse).0 >= before.max(least));
        }
    }
}
