//! Counters and gauges for `/metrics` (OpenMetrics text). Names: docs, "Metrics".

use prometheus_client::encoding::{EncodeLabelSet, text::encode};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ChannelResult {
    pub channel: String,
    pub result: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct StatusLabel {
    pub status: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct RequestLabel {
    pub channel: String,
    /// Empty where none was asked.
    pub agent: String,
    pub status: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct StageLabel {
    pub stage: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ChannelStatus {
    pub channel: String,
    pub status: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ChildLabel {
    pub child: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct TaskLabel {
    pub task: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct PluginLabel {
    pub plugin: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct PluginResult {
    pub plugin: String,
    pub result: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct AutomationLabel {
    pub automation: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct AutomationResult {
    pub automation: String,
    pub result: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct RelayLabel {
    pub relay: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct RelayResult {
    pub relay: String,
    pub result: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ProjectLabel {
    /// Its slug.
    pub project: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct AgentLabel {
    pub agent: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct AgentTokens {
    pub agent: String,
    /// `input` or `output`.
    pub kind: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct CallerLabel {
    /// `plugin:NAME` or `automation:NAME`.
    pub caller: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct CallerTokens {
    pub caller: String,
    /// `input` or `output`.
    pub kind: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct QueueLabel {
    pub queue: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct DbLabel {
    pub db: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct VersionLabel {
    pub version: &'static str,
}

/// Everything that is counted. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Metrics {
    registry: Arc<Registry>,
    pub events: Family<ChannelResult, Counter>,
    pub requests: Family<StatusLabel, Counter>,
    /// By the plugin `analytics`, which bounds how many series there are.
    pub analytics_requests: Family<RequestLabel, Counter>,
    pub analytics_latency: Family<RequestLabel, Counter<f64, AtomicU64>>,
    pub stages: Family<StageLabel, Histogram>,
    pub deliveries: Family<ChannelStatus, Counter>,
    pub child_restarts: Family<ChildLabel, Counter>,
    pub child_running: Family<ChildLabel, Gauge>,
    /// Set, not added to: the kernel counts.
    pub child_cpu: Family<ChildLabel, Counter<f64, AtomicU64>>,
    pub child_rss: Family<ChildLabel, Gauge>,
    pub child_fds: Family<ChildLabel, Gauge>,
    pub plugin_calls: Family<PluginResult, Counter>,
    pub plugin_seconds: Family<PluginLabel, Histogram>,
    pub automation_calls: Family<AutomationResult, Counter>,
    pub automation_seconds: Family<AutomationLabel, Histogram>,
    pub queues: Family<QueueLabel, Gauge>,
    /// Read off the writers when scraped.
    pub commit_seconds: Family<DbLabel, Gauge<f64, AtomicU64>>,
    pub commits: Family<DbLabel, Counter>,
    pub sse_clients: Gauge,
    pub agent_tokens: Family<AgentTokens, Counter>,
    pub agent_cost: Family<AgentLabel, Counter<f64, AtomicU64>>,
    /// Of models that plugins and automations asked; it is in the agents' figures as well.
    pub call_tokens: Family<CallerTokens, Counter>,
    pub call_cost: Family<CallerLabel, Counter<f64, AtomicU64>>,
    /// Events of relays, by what became of them.
    pub nostr_events: Family<RelayResult, Counter>,
    /// Times that a relay may have had more than could be asked for.
    pub nostr_holes: Family<RelayLabel, Counter>,
    /// Projects whose process runs.
    pub project_active: Gauge,
    pub project_spawns: Counter,
    pub project_exits: Counter,
    pub project_crashes: Counter,
    pub project_lifetime: Histogram,
    /// From the spawn to `ready`.
    pub project_ready: Histogram,
    /// From an event's receipt to a process that takes it.
    pub project_receive_to_ready: Histogram,
    /// The same of each project's last event.
    pub project_receive_to_ready_last: Family<ProjectLabel, Gauge<f64, AtomicU64>>,
    pub project_uptime: Family<ProjectLabel, Gauge<f64, AtomicU64>>,
    pub project_queue: Family<ProjectLabel, Gauge>,
    /// The daemon's own tasks that panicked or ended by themselves.
    pub task_failures: Family<TaskLabel, Counter>,
    /// For the health document.
    pub totals: Arc<Totals>,
}

/// Plain numbers that health shows.
#[derive(Debug, Default)]
pub struct Totals {
    pub active: AtomicI64,
    pub processed: AtomicU64,
    /// Microseconds, summed over processed requests.
    pub latency_us: AtomicU64,
}

impl Totals {
    /// Mean time of a processed request in milliseconds.
    pub fn avg_latency_ms(&self) -> f64 {
        let processed = self.processed.load(Ordering::Relaxed);
        if processed == 0 { 0.0 } else { self.latency_us.load(Ordering::Relaxed) as f64 / processed as f64 / 1000.0 }
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    pub fn new() -> Self {
        let stage_seconds = || Histogram::new(exponential_buckets(0.000_05, 4.0, 10));
        let mut metrics = Self {
            registry: Arc::default(),
            events: Family::default(),
            requests: Family::default(),
            analytics_requests: Family::default(),
            analytics_latency: Family::default(),
            stages: Family::new_with_constructor(stage_seconds),
            deliveries: Family::default(),
            child_restarts: Family::default(),
            child_running: Family::default(),
            child_cpu: Family::default(),
            child_rss: Family::default(),
            child_fds: Family::default(),
            plugin_calls: Family::default(),
            plugin_seconds: Family::new_with_constructor(stage_seconds),
            automation_calls: Family::default(),
            automation_seconds: Family::new_with_constructor(stage_seconds),
            queues: Family::default(),
            commit_seconds: Family::default(),
            commits: Family::default(),
            sse_clients: Gauge::default(),
            agent_tokens: Family::default(),
            agent_cost: Family::default(),
            call_tokens: Family::default(),
            call_cost: Family::default(),
            nostr_events: Family::default(),
            nostr_holes: Family::default(),
            project_active: Gauge::default(),
            project_spawns: Counter::default(),
            project_exits: Counter::default(),
            project_crashes: Counter::default(),
            project_lifetime: Histogram::new(exponential_buckets(0.1, 8.0, 9)),
            project_ready: Histogram::new(exponential_buckets(0.005, 2.0, 14)),
            project_receive_to_ready: Histogram::new(exponential_buckets(0.000_1, 4.0, 12)),
            project_receive_to_ready_last: Family::default(),
            project_uptime: Family::default(),
            project_queue: Family::default(),
            task_failures: Family::default(),
            totals: Arc::default(),
        };
        metrics.registry = Arc::new(metrics.registered());
        metrics
    }

    fn registered(&self) -> Registry {
        let mut registry = Registry::with_prefix("nexus");
        // The library adds `_total` to counters by itself.
        registry.register("events", "Adapter lines by result", self.events.clone());
        registry.register("requests", "Requests by terminal status", self.requests.clone());
        let by = "by channel, agent and status, as `analytics` counts them";
        registry.register("analytics_requests", format!("Requests that ended, {by}"), self.analytics_requests.clone());
        registry.register("analytics_latency_seconds", format!("Their time until then, {by}"), self.analytics_latency.clone());
        registry.register("stage_seconds", "Time in each stage", self.stages.clone());
        registry.register("deliveries", "Deliveries by final status", self.deliveries.clone());
        registry.register("child_restarts", "Restarts of a child", self.child_restarts.clone());
        registry.register("child_running", "1 while the child runs", self.child_running.clone());
        registry.register("child_cpu_seconds", "CPU time of the running child's main process", self.child_cpu.clone());
        registry.register("child_rss_bytes", "Resident memory of the child's main process", self.child_rss.clone());
        registry.register("child_fds", "Open descriptors of the child's main process", self.child_fds.clone());
        registry.register("plugin_calls", "Calls of plugins by result", self.plugin_calls.clone());
        registry.register("plugin_seconds", "Time of calls of plugins", self.plugin_seconds.clone());
        registry.register("automation_calls", "Calls of automations by result", self.automation_calls.clone());
        registry.register("automation_seconds", "Time of calls of automations", self.automation_seconds.clone());
        registry.register("queue_depth", "Entries waiting", self.queues.clone());
        registry.register("commit_seconds", "Time spent in commits since the start", self.commit_seconds.clone());
        registry.register("commits", "Commits", self.commits.clone());
        registry.register("sse_clients", "Open event streams", self.sse_clients.clone());
        registry.register("agent_tokens", "Tokens that agents used", self.agent_tokens.clone());
        registry.register("agent_cost_usd", "What they cost in US dollars, where prices are set", self.agent_cost.clone());
        registry.register("call_tokens", "Tokens that plugins and automations used of agents' models", self.call_tokens.clone());
        registry.register("call_cost_usd", "What they cost in US dollars, where prices are set", self.call_cost.clone());
        registry.register("nostr_events", "Events of relays by result", self.nostr_events.clone());
        registry.register("nostr_holes", "Times that a relay may have had more than could be asked for", self.nostr_holes.clone());
        self.register_projects(&mut registry);
        registry.register("task_failures", "Failures of the daemon's own tasks", self.task_failures.clone());
        let build: Family<VersionLabel, Gauge> = Family::default();
        build.get_or_create(&VersionLabel { version: env!("CARGO_PKG_VERSION") }).set(1);
        registry.register("build_info", "1, with the version", build);
        registry
    }

    fn register_projects(&self, registry: &mut Registry) {
        registry.register("project_active", "Projects whose process runs", self.project_active.clone());
        registry.register("project_spawns", "Processes of projects that were started", self.project_spawns.clone());
        registry.register("project_exits", "Processes of projects that ended", self.project_exits.clone());
        registry.register("project_crashes", "Those of them that crashed", self.project_crashes.clone());
        registry.register("project_lifetime_seconds", "How long processes of projects lived", self.project_lifetime.clone());
        registry.register("project_ready_seconds", "From the spawn of a project to its readiness", self.project_ready.clone());
        let to_ready = "From an event's receipt to a process that takes it";
        registry.register("project_receive_to_ready_seconds", to_ready, self.project_receive_to_ready.clone());
        let last = "The same of the project's last event";
        registry.register("project_last_receive_to_ready_seconds", last, self.project_receive_to_ready_last.clone());
        registry.register("project_uptime_seconds", "How long the project's process has run", self.project_uptime.clone());
        registry.register("project_queue", "Events that wait for the project or are being answered", self.project_queue.clone());
    }

    /// The text of `/metrics`.
    ///
    /// # Errors
    /// Never in practice: writing to a string.
    pub fn text(&self) -> Result<String, std::fmt::Error> {
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(text)
    }
}
