//! What differs between two configurations, key by key. Every section is taken apart without `..`, so
//! that a new key does not compile until its change has a class. It decides nothing about applying.

pub use super::change::{Change, Effect};
use super::{Access, Account, Adapter, Bus, Config, Daemon, Ledgers, Pipeline, Plugins};
use std::collections::{BTreeMap, BTreeSet};

/// The changes that lead from `old` to `new`; empty exactly when the two are equal.
pub fn diff(old: &Config, new: &Config) -> Vec<Change> {
    let Config { daemon, pipeline, ledgers, adapters, access, agents, plugins, automations, timer, bus, nostr, projects } = new;
    let mut changes = Changes::default();
    diff_daemon(&old.daemon, daemon, &mut changes);
    diff_pipeline(&old.pipeline, pipeline, &mut changes);
    diff_ledgers(&old.ledgers, ledgers, &mut changes);
    diff_adapters(&old.adapters, adapters, &mut changes);
    changes.note(is_other_access(&old.access, access), || Change::Access);
    changes.note(old.agents != *agents, || Change::Agents);
    diff_plugins(&old.plugins, plugins, &mut changes);
    changes.note(old.automations != *automations, || Change::Automations);
    changes.note(old.timer != *timer, || Change::TimerSchedule);
    diff_bus(&old.bus, bus, &mut changes);
    changes.note(old.nostr != *nostr, || Change::Nostr);
    changes.note(old.projects != *projects, || Change::Projects);
    changes.list
}

#[derive(Default)]
struct Changes {
    list: Vec<Change>,
}

impl Changes {
    fn note(&mut self, is_changed: bool, change: impl FnOnce() -> Change) {
        if is_changed {
            self.list.push(change());
        }
    }

    fn note_restart(&mut self, is_changed: bool, key: &'static str) {
        self.note(is_changed, || Change::NeedsRestart { key });
    }
}

/// The whitelist that access knows is one of `nostr`, whose change is told as that.
fn is_other_access(old: &Access, new: &Access) -> bool {
    let Access { owner, default, owner_words, policies, whitelist: _ } = new;
    old.owner != *owner || old.default != *default || old.owner_words != *owner_words || old.policies != *policies
}

fn diff_daemon(old: &Daemon, new: &Daemon, changes: &mut Changes) {
    let Daemon { host, port, log_level, allow_external, token_file } = new;
    changes.note_restart(old.host != *host, "daemon.host");
    changes.note_restart(old.port != *port, "daemon.port");
    changes.note(old.log_level != *log_level, || Change::LogLevel);
    changes.note_restart(old.allow_external != *allow_external, "daemon.allow_external");
    changes.note_restart(old.token_file != *token_file, "daemon.token_file");
}

fn diff_pipeline(old: &Pipeline, new: &Pipeline, changes: &mut Changes) {
    let Pipeline { timeout_ms, max_concurrent, on_interrupted } = new;
    changes.note(old.timeout_ms != *timeout_ms, || Change::PipelineTimeout);
    changes.note(old.max_concurrent != *max_concurrent, || Change::PipelineConcurrency);
    changes.note(old.on_interrupted != *on_interrupted, || Change::OnInterrupted);
}

fn diff_ledgers(old: &Ledgers, new: &Ledgers, changes: &mut Changes) {
    let Ledgers { directory, retention, min_free_mb } = new;
    changes.note_restart(old.directory != *directory, "ledgers.directory");
    changes.note(old.retention != *retention, || Change::Retention);
    changes.note(old.min_free_mb != *min_free_mb, || Change::MinFree);
}

fn diff_plugins(old: &Plugins, new: &Plugins, changes: &mut Changes) {
    let Plugins { directory, enabled, grants, budgets, circuit } = new;
    changes.note_restart(old.directory != *directory, "plugins.directory");
    changes.note(old.enabled != *enabled, || {
        let before: BTreeSet<&String> = old.enabled.iter().collect();
        let after: BTreeSet<&String> = enabled.iter().collect();
        Change::PluginsEnabled {
            added: after.difference(&before).map(|name| (*name).clone()).collect(),
            removed: before.difference(&after).map(|name| (*name).clone()).collect(),
        }
    });
    changes.note(old.grants != *grants, || Change::PluginGrants);
    changes.note(old.budgets != *budgets, || Change::PluginBudgets);
    changes.note(old.circuit != *circuit, || Change::PluginCircuit);
}

fn diff_bus(old: &Bus, new: &Bus, changes: &mut Changes) {
    let Bus { mode, ring, retention_days } = new;
    changes.note(old.mode != *mode, || Change::BusMode(*mode));
    changes.note(old.ring != *ring, || Change::BusRing);
    changes.note(old.retention_days != *retention_days, || Change::BusRetention);
}

type Adapters = BTreeMap<String, Adapter>;

fn diff_adapters(old: &Adapters, new: &Adapters, changes: &mut Changes) {
    for name in old.keys() {
        changes.note(!new.contains_key(name), || Change::AdapterRemoved(name.clone()));
    }
    for (name, adapter) in new {
        match old.get(name) {
            None => changes.list.push(Change::AdapterAdded(name.clone())),
            Some(before) => diff_adapter(name, before, adapter, changes),
        }
    }
}

fn diff_adapter(name: &str, old: &Adapter, new: &Adapter, changes: &mut Changes) {
    let Adapter { command, channel, env, pass_env, cwd, restart, max_line_bytes, max_pending, send, catch_up, accounts, argv } = new;
    let is_other_program = old.command != *command
        || old.argv != *argv
        || old.channel != *channel
        || old.env != *env
        || old.pass_env != *pass_env
        || old.cwd != *cwd;
    let has_other_settings = old.restart != *restart
        || old.max_line_bytes != *max_line_bytes
        || old.max_pending != *max_pending
        || old.send != *send
        || old.catch_up != *catch_up;
    changes.note(has_other_settings, || Change::AdapterSettings { name: name.to_owned() });
    if is_other_program {
        // All its accounts are stopped, and those that are wanted now are started.
        changes.list.push(Change::AdapterChanged { name: name.to_owned() });
    } else {
        diff_accounts(name, &old.accounts, accounts, changes);
    }
}

type Accounts = BTreeMap<String, Account>;

fn diff_accounts(adapter: &str, old: &Accounts, new: &Accounts, changes: &mut Changes) {
    let named = |account: &String| (adapter.to_owned(), account.clone());
    for id in old.keys().filter(|id| !new.contains_key(*id)) {
        let (adapter, account) = named(id);
        changes.list.push(Change::AccountRemoved { adapter, account });
    }
    for (id, account) in new {
        let (adapter, id) = named(id);
        match old.get(&id) {
            None => changes.list.push(Change::AccountAdded { adapter, account: id }),
            Some(before) => changes.list.extend(diff_account(adapter, id, before, account)),
        }
    }
}

/// At most one change: starting or stopping an account takes all its other keys with it.
fn diff_account(adapter: String, id: String, old: &Account, new: &Account) -> Option<Change> {
    let Account { monitor, backfill, credential_ref, enabled, config } = new;
    let is_other = old.monitor != *monitor || old.backfill != *backfill || old.credential_ref != *credential_ref || old.config != *config;
    match (old.enabled, *enabled) {
        (false, true) => Some(Change::AccountEnabled { adapter, account: id }),
        (true, false) => Some(Change::AccountDisabled { adapter, account: id }),
        (true, true) | (false, false) => is_other.then_some(Change::AccountChanged { adapter, account: id }),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::tests::{FULL_YAML, loaded};
    // Two types are called `Effect`; here the plain name is a policy's.
    use super::super::access::Effect;
    use super::super::*;
    use super::*;
    use proptest::prelude::*;
    use serde_json::Value;

    type Mutation = (&'static str, fn(&mut Config));

    fn gog(config: &mut Config) -> &mut Adapter {
        config.adapters.get_mut("gog").unwrap()
    }

    fn me(config: &mut Config) -> &mut Account {
        gog(config).accounts.get_mut("me").unwrap()
    }

    fn policy(config: &mut Config) -> &mut Policy {
        &mut config.access.policies[0]
    }

    fn smart(config: &mut Config) -> &mut Agent {
        config.agents.named.get_mut("smart").unwrap()
    }

    /// The dotted key of the one project of the full text.
    macro_rules! one_project {
        ($key:literal) => {
            concat!("projects.overrides.31933:1111111111111111111111111111111111111111111111111111111111111111:a:b", $key)
        };
    }

    fn one(config: &mut Config) -> &mut ProjectOverride {
        config.projects.overrides.values_mut().next().unwrap()
    }

    fn restart(config: &mut Config) -> &mut ProjectRestart {
        one(config).restart.as_mut().unwrap()
    }

    fn files(config: &mut Config) -> &mut McpServer {
        smart(config).mcp.get_mut("files").unwrap()
    }

    fn watch(config: &mut Config) -> &mut CallBudget {
        config.plugins.budgets.get_mut("watch").unwrap()
    }

    fn digest(config: &mut Config) -> &mut CallBudget {
        config.automations.budgets.get_mut("digest").unwrap()
    }

    fn deliver(config: &mut Config) -> &mut CronDeliver {
        config.timer.cron[0].deliver.as_mut().unwrap()
    }

    /// One change of each key of every section; lists count as one key.
    const MUTATIONS: &[Mutation] = &[
        ("daemon.host", |c| c.daemon.host.push('1')),
        ("daemon.port", |c| c.daemon.port += 1),
        ("daemon.log_level", |c| c.daemon.log_level = LogLevel::Error),
        ("daemon.allow_external", |c| c.daemon.allow_external ^= true),
        ("daemon.token_file", |c| c.daemon.token_file = None),
        ("pipeline.timeout_ms", |c| c.pipeline.timeout_ms += 1),
        ("pipeline.max_concurrent", |c| c.pipeline.max_concurrent += 1),
        ("pipeline.on_interrupted", |c| c.pipeline.on_interrupted = OnInterrupted::Fail),
        ("ledgers.directory", |c| c.ledgers.directory.push('1')),
        ("ledgers.retention.snapshots_days", |c| c.ledgers.retention.snapshots_days += 1),
        ("ledgers.retention.traces_days", |c| c.ledgers.retention.traces_days += 1),
        ("ledgers.retention.audit_days", |c| c.ledgers.retention.audit_days += 1),
        ("ledgers.min_free_mb", |c| c.ledgers.min_free_mb += 1),
        ("adapters.gog.command", |c| gog(c).command.push('1')),
        ("adapters.gog.channel", |c| gog(c).channel = None),
        ("adapters.gog.env.TOKEN", |c| gog(c).env.clear()),
        ("adapters.gog.pass_env", |c| gog(c).pass_env.clear()),
        ("adapters.gog.cwd", |c| gog(c).cwd = None),
        ("adapters.gog.restart.max_restarts", |c| gog(c).restart.max_restarts += 1),
        ("adapters.gog.restart.backoff_base_ms", |c| gog(c).restart.backoff_base_ms += 1),
        ("adapters.gog.restart.backoff_multiplier", |c| gog(c).restart.backoff_multiplier += 1.0),
        ("adapters.gog.restart.backoff_max_ms", |c| gog(c).restart.backoff_max_ms += 1),
        ("adapters.gog.restart.reset_after_ms", |c| gog(c).restart.reset_after_ms += 1),
        ("adapters.gog.restart.errored_retry_ms", |c| gog(c).restart.errored_retry_ms += 1),
        ("adapters.gog.max_line_bytes", |c| gog(c).max_line_bytes += 1),
        ("adapters.gog.max_pending", |c| gog(c).max_pending += 1),
        ("adapters.gog.send.timeout_ms", |c| gog(c).send.timeout_ms += 1),
        ("adapters.gog.send.retries", |c| gog(c).send.retries += 1),
        ("adapters.gog.send.on_uncertain", |c| gog(c).send.on_uncertain = OnUncertain::Hold),
        ("adapters.gog.send.ttl_ms", |c| gog(c).send.ttl_ms += 1),
        ("adapters.gog.send.stream", |c| gog(c).send.stream = Streaming::Whole),
        ("adapters.gog.catch_up.overlap_ms", |c| gog(c).catch_up.overlap_ms += 1),
        ("adapters.gog.catch_up.max_age_ms", |c| gog(c).catch_up.max_age_ms += 1),
        ("adapters.gog.catch_up.late", |c| gog(c).catch_up.late = Late::Run),
        ("adapters.gog.accounts.me.monitor", |c| me(c).monitor ^= true),
        ("adapters.gog.accounts.me.backfill", |c| me(c).backfill ^= true),
        ("adapters.gog.accounts.me.credential_ref", |c| me(c).credential_ref = None),
        ("adapters.gog.accounts.me.enabled", |c| me(c).enabled ^= true),
        ("adapters.gog.accounts.me.config.label", |c| me(c).config.clear()),
        ("access.owner", |c| c.access.owner.clear()),
        ("access.default", |c| c.access.default = Effect::Deny),
        ("access.owner_words", |c| c.access.owner_words ^= true),
        ("access.policies.name", |c| policy(c).name.push('1')),
        ("access.policies.description", |c| policy(c).description = None),
        ("access.policies.match.principal.type", |c| policy(c).match_.principal.type_ = None),
        ("access.policies.match.principal.relationship", |c| policy(c).match_.principal.relationship = None),
        ("access.policies.match.principal.tags", |c| policy(c).match_.principal.tags.clear()),
        ("access.policies.match.principal.entity", |c| policy(c).match_.principal.entity = None),
        ("access.policies.match.principal.name", |c| policy(c).match_.principal.name = None),
        ("access.policies.match.conditions.channel", |c| policy(c).match_.conditions[0].channel = None),
        ("access.policies.match.conditions.account", |c| policy(c).match_.conditions[0].account = None),
        ("access.policies.match.conditions.peer_kind", |c| policy(c).match_.conditions[0].peer_kind = None),
        ("access.policies.match.conditions.content_type", |c| policy(c).match_.conditions[0].content_type.clear()),
        ("access.policies.match.conditions.time", |c| policy(c).match_.conditions[0].time = None),
        ("access.policies.match.conditions.days", |c| policy(c).match_.conditions[0].days.clear()),
        ("access.policies.effect", |c| policy(c).effect = Effect::Deny),
        ("access.policies.permissions.tools.allow", |c| policy(c).permissions.tools.allow.clear()),
        ("access.policies.permissions.tools.deny", |c| policy(c).permissions.tools.deny.clear()),
        ("access.policies.permissions.credentials", |c| policy(c).permissions.credentials.clear()),
        ("access.policies.permissions.data_access", |c| policy(c).permissions.data_access = DataAccess::None),
        ("access.policies.session.agent", |c| policy(c).session.agent = None),
        ("access.policies.session.key", |c| policy(c).session.key = None),
        ("access.policies.queue_mode", |c| policy(c).queue_mode = QueueMode::Steer),
        ("access.policies.queue.cap", |c| policy(c).queue.cap = None),
        ("access.policies.queue.drop", |c| policy(c).queue.drop = QueueDrop::Old),
        ("access.policies.rate.per_minute", |c| policy(c).rate = None),
        ("access.policies.priority", |c| policy(c).priority += 1),
        ("agents.default", |c| c.agents.default.push('1')),
        ("agents.smart.runner", |c| smart(c).runner = Runner::Command),
        ("agents.smart.command", |c| smart(c).command = None),
        ("agents.smart.url", |c| smart(c).url = None),
        ("agents.smart.model", |c| smart(c).model = None),
        ("agents.smart.key_file", |c| smart(c).key_file = Some("k".to_owned())),
        ("agents.smart.key_env", |c| smart(c).key_env = None),
        ("agents.smart.system_prompt_file", |c| smart(c).system_prompt_file = None),
        ("agents.smart.env.A", |c| smart(c).env.clear()),
        ("agents.smart.pass_env", |c| smart(c).pass_env.clear()),
        ("agents.smart.cwd", |c| smart(c).cwd = None),
        ("agents.smart.provider", |c| smart(c).provider = Provider::Xai),
        ("agents.smart.fallback", |c| smart(c).fallback.clear()),
        ("agents.smart.max_tokens", |c| smart(c).max_tokens = None),
        ("agents.smart.context_tokens", |c| smart(c).context_tokens = None),
        ("agents.smart.tool_rounds_max", |c| smart(c).tool_rounds_max += 1),
        ("agents.smart.budget.tokens_per_session", |c| smart(c).budget.tokens_per_session = None),
        ("agents.smart.budget.tokens_per_day", |c| smart(c).budget.tokens_per_day = None),
        ("agents.smart.budget.usd_per_session", |c| smart(c).budget.usd_per_session = None),
        ("agents.smart.budget.usd_per_day", |c| smart(c).budget.usd_per_day = None),
        ("agents.smart.budget.usd_per_million_input", |c| smart(c).budget.usd_per_million_input = Some(9.0)),
        ("agents.smart.budget.usd_per_million_output", |c| smart(c).budget.usd_per_million_output = Some(9.0)),
        ("agents.smart.mcp.files.command", |c| files(c).command.push('1')),
        ("agents.smart.mcp.files.env.A", |c| files(c).env.clear()),
        ("agents.smart.mcp.files.pass_env", |c| files(c).pass_env.clear()),
        ("agents.smart.mcp.files.tools", |c| files(c).tools.clear()),
        ("agents.smart.timeout_ms", |c| smart(c).timeout_ms += 1),
        ("agents.smart.max_concurrent", |c| smart(c).max_concurrent += 1),
        ("agents.smart.memory.matches", |c| smart(c).memory.matches += 1),
        ("agents.smart.memory.max_bytes", |c| smart(c).memory.max_bytes += 1),
        ("agents.smart.steering", |c| smart(c).steering = true),
        ("agents.smart.permissions.ask", |c| smart(c).permissions.ask = PermissionAsk::Always),
        ("agents.smart.permissions.timeout_ms", |c| smart(c).permissions.timeout_ms += 1),
        ("plugins.directory", |c| c.plugins.directory.push('1')),
        ("plugins.enabled", |c| c.plugins.enabled.clear()),
        ("plugins.grants.watch", |c| c.plugins.grants.clear()),
        ("plugins.budgets.watch.tokens_per_day", |c| watch(c).tokens_per_day = None),
        ("plugins.budgets.watch.usd_per_day", |c| watch(c).usd_per_day = None),
        ("plugins.circuit.errors", |c| c.plugins.circuit.errors += 1),
        ("plugins.circuit.half_open_ms", |c| c.plugins.circuit.half_open_ms += 1),
        ("automations.disabled", |c| c.automations.disabled.clear()),
        ("automations.grants.digest", |c| c.automations.grants.clear()),
        ("automations.budgets.digest.tokens_per_day", |c| digest(c).tokens_per_day = None),
        ("automations.budgets.digest.usd_per_day", |c| digest(c).usd_per_day = Some(9.0)),
        ("timer.heartbeat_interval_ms", |c| c.timer.heartbeat_interval_ms += 1),
        ("timer.timezone", |c| c.timer.timezone.push('1')),
        ("timer.cron.expr", |c| c.timer.cron[0].expr.push('1')),
        ("timer.cron.label", |c| c.timer.cron[0].label.push('1')),
        ("timer.cron.missed", |c| c.timer.cron[0].missed = Missed::All),
        ("timer.cron.max_lateness_ms", |c| c.timer.cron[0].max_lateness_ms += 1),
        ("timer.cron.deliver.adapter", |c| deliver(c).adapter.push('1')),
        ("timer.cron.deliver.account", |c| deliver(c).account.push('1')),
        ("timer.cron.deliver.to", |c| deliver(c).to.push('1')),
        ("bus.mode", |c| c.bus.mode = BusMode::Memory),
        ("bus.ring", |c| c.bus.ring += 1),
        ("bus.retention_days", |c| c.bus.retention_days += 1),
        ("nostr.relays", |c| c.nostr.relays.clear()),
        ("nostr.whitelist", |c| c.nostr.whitelist.clear()),
        ("nostr.secret_key", |c| c.nostr.secret_key = None),
        ("nostr.auth", |c| c.nostr.auth.clear()),
        ("nostr.max_frame_bytes", |c| c.nostr.max_frame_bytes += 1),
        ("nostr.max_pending", |c| c.nostr.max_pending += 1),
        ("nostr.publish_per_minute", |c| c.nostr.publish_per_minute += 1),
        ("nostr.project_kinds", |c| c.nostr.project_kinds.push(1)),
        ("projects.path", |c| c.projects.path.push('1')),
        ("projects.command", |c| c.projects.command = None),
        ("projects.protocol", |c| c.projects.protocol = ProjectProtocol::Jsonl),
        ("projects.max_running", |c| c.projects.max_running = None),
        ("projects.warm", |c| c.projects.warm += 1),
        ("projects.prepare_concurrent", |c| c.projects.prepare_concurrent += 1),
        ("projects.idle_stop_ms", |c| c.projects.idle_stop_ms += 1),
        ("projects.ready_timeout_ms", |c| c.projects.ready_timeout_ms += 1),
        ("projects.ping_ms", |c| c.projects.ping_ms += 1),
        ("projects.restart.backoff_base_ms", |c| c.projects.restart.backoff_base_ms += 1),
        ("projects.restart.backoff_max_ms", |c| c.projects.restart.backoff_max_ms += 1),
        ("projects.restart.reset_after_ms", |c| c.projects.restart.reset_after_ms += 1),
        ("projects.restart.max_crashes", |c| c.projects.restart.max_crashes += 1),
        ("projects.restart.window_ms", |c| c.projects.restart.window_ms += 1),
        ("projects.git.program", |c| c.projects.git.program.push('1')),
        ("projects.git.allow_schemes", |c| c.projects.git.allow_schemes.clear()),
        ("projects.git.allow_hosts", |c| c.projects.git.allow_hosts.clear()),
        ("projects.git.allow_private", |c| c.projects.git.allow_private ^= true),
        ("projects.git.depth", |c| c.projects.git.depth = None),
        ("projects.git.max_mb", |c| c.projects.git.max_mb += 1),
        ("projects.git.timeout_ms", |c| c.projects.git.timeout_ms += 1),
        ("projects.git.ca_file", |c| c.projects.git.ca_file = None),
        ("projects.auto_approve_authors", |c| c.projects.auto_approve_authors ^= true),
        (one_project!(".command"), |c| one(c).command = None),
        (one_project!(".protocol"), |c| one(c).protocol = None),
        (one_project!(".env.A"), |c| one(c).env.clear()),
        (one_project!(".pass_env"), |c| one(c).pass_env.clear()),
        (one_project!(".restart.backoff_base_ms"), |c| restart(c).backoff_base_ms += 1),
        (one_project!(".restart.backoff_max_ms"), |c| restart(c).backoff_max_ms += 1),
        (one_project!(".restart.reset_after_ms"), |c| restart(c).reset_after_ms += 1),
        (one_project!(".restart.max_crashes"), |c| restart(c).max_crashes += 1),
        (one_project!(".restart.window_ms"), |c| restart(c).window_ms += 1),
        (one_project!(".agent"), |c| one(c).agent = None),
        (one_project!(".idle_stop_ms"), |c| one(c).idle_stop_ms = None),
    ];

    /// The dotted keys of a value; the entries of a list of sections count as their first.
    fn leaves(path: &str, value: &Value, found: &mut BTreeSet<String>) {
        let inner: Vec<(String, &Value)> = match value {
            Value::Object(fields) if !fields.is_empty() => fields.iter().map(|(key, value)| (format!("{path}.{key}"), value)).collect(),
            Value::Array(items) if items.first().is_some_and(Value::is_object) => {
                items.iter().map(|item| (path.to_owned(), item)).collect()
            }
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) | Value::Object(_) => {
                found.insert(path.trim_start_matches('.').to_owned());
                return;
            }
        };
        for (path, value) in inner {
            leaves(&path, value, found);
        }
    }

    #[test]
    fn there_is_a_mutation_for_every_key() {
        let mut config = loaded(FULL_YAML).config;
        config.agents.named.retain(|name, _| name == "smart");
        let mut keys = BTreeSet::new();
        leaves("", &serde_json::to_value(&config).unwrap(), &mut keys);
        let mutated: BTreeSet<String> = MUTATIONS.iter().map(|(key, _)| (*key).to_owned()).collect();
        assert_eq!(keys, mutated);
    }

    #[test]
    fn every_single_change_is_noticed_as_one_change() {
        let old = loaded(FULL_YAML).config;
        for (key, mutate) in MUTATIONS {
            let mut new = old.clone();
            mutate(&mut new);
            let changes = diff(&old, &new);
            assert_eq!(changes.len(), 1, "{key}: {changes:?}");
            assert!(!changes[0].to_string().is_empty());
        }
    }

    #[test]
    fn what_the_requirement_lists_needs_a_restart() {
        let old = loaded(FULL_YAML).config;
        let restart: Vec<&str> = MUTATIONS
            .iter()
            .filter(|(_, mutate)| {
                let mut new = old.clone();
                mutate(&mut new);
                diff(&old, &new).iter().any(|change| change.effect() == super::Effect::NeedsDaemonRestart)
            })
            .map(|(key, _)| *key)
            .collect();
        assert_eq!(
            restart,
            ["daemon.host", "daemon.port", "daemon.allow_external", "daemon.token_file", "ledgers.directory", "plugins.directory",]
        );
    }

    #[test]
    fn adapters_and_accounts_come_and_go_alone() {
        let none = loaded("").config;
        let one = loaded("adapters: {gog: {command: gog, accounts: {me: {}}}}").config;
        let two = loaded("adapters: {gog: {command: gog, accounts: {me: {enabled: false}, you: {}}}}").config;
        let texts = |old, new| diff(old, new).iter().map(Change::to_string).collect::<Vec<_>>();
        assert_eq!(texts(&none, &one), ["adapter `gog` added: start its accounts"]);
        assert_eq!(texts(&one, &none), ["adapter `gog` removed: stop its accounts"]);
        assert_eq!(texts(&one, &two), ["account `gog/me` disabled: stop it", "account `gog/you` added: start it"]);
        assert_eq!(texts(&two, &one), ["account `gog/you` removed: stop it", "account `gog/me` enabled: start it"]);
    }

    #[test]
    fn plugins_name_who_comes_and_who_goes() {
        let old = loaded("plugins: {enabled: [logging]}").config;
        let new = loaded("plugins: {enabled: [analytics]}").config;
        let changes = diff(&old, &new);
        assert_eq!(changes[0].to_string(), "plugins changed: load analytics; unload logging");
    }

    #[test]
    fn the_mode_of_the_bus_says_what_is_kept_from_now_on() {
        let memory = loaded("").config;
        let kept = loaded("bus: {mode: write-through}").config;
        let text = |old, new| diff(old, new)[0].to_string();
        assert_eq!(text(&memory, &kept), "bus.mode changed: write-through on, notices are kept in bus.db from now on");
        assert_eq!(text(&kept, &memory), "bus.mode changed: write-through off, notices are kept in memory only");
    }

    #[test]
    fn another_program_takes_all_accounts_with_it() {
        let old = loaded(FULL_YAML).config;
        let mut new = old.clone();
        gog(&mut new).command.push('1');
        let more = me(&mut new).clone();
        gog(&mut new).accounts.insert("more".into(), more);
        me(&mut new).enabled ^= true;
        assert_eq!(diff(&old, &new), [Change::AdapterChanged { name: "gog".into() }]);
    }

    proptest! {
        #[test]
        fn equal_exactly_when_nothing_differs(picks in prop::collection::vec(0..MUTATIONS.len(), 0..6)) {
            let old = loaded(FULL_YAML).config;
            let mut new = old.clone();
            for pick in picks {
                let (_, mutate) = MUTATIONS[pick];
                mutate(&mut new);
            }
            prop_assert!(diff(&new, &new).is_empty());
            prop_assert_eq!(diff(&old, &new).is_empty(), old == new);
            prop_assert_eq!(diff(&new, &old).is_empty(), old == new);
        }
    }
}
