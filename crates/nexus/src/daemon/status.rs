//! The documents that tell how the daemon is: `/health`, `status`, the start summary.

use super::control::Control;
use super::progress::Stopping;
use super::projects;
use crate::adapter::account::AccountReport;
use crate::clock;
use crate::error_text::describe;
use crate::keeper::KillLevel;
use crate::pipeline::router::{ADMISSION, ROUTER};
use crate::pipeline::spending::Payer;
use crate::plugin::names_on_disk;
use crate::project::readiness::missing_at_all;
use nexus_core::config::{Grant, PLUGINS};
use nexus_core::health::{AdapterHealth, AdapterStatus, Overall, Parts, overall};
use serde_json::{Map, Value, json};
use std::sync::atomic::Ordering;

/// Health as the requirement's document, with why it isn't healthy beside it, and the overall word.
pub(super) fn health(control: &Control) -> (Overall, Value) {
    let reports = control.adapters.report();
    let (word, reasons) = judge(control, &reports);
    let count = |status: AdapterStatus| reports.iter().filter(|report| report.status == status).count();
    let details: Vec<Value> = reports
        .iter()
        .map(|report| {
            json!({
                "adapter": report.adapter, "account": report.account, "status": report.status, "health": report.health,
                "last_event_age_ms": report.last_event_age_ms,
            })
        })
        .collect();
    let document = json!({
        "status": word,
        "reasons": reasons,
        "version": env!("CARGO_PKG_VERSION"),
        "uptime_ms": uptime_ms(control),
        "pid": std::process::id(),
        "adapters": {
            "total": reports.len(), "running": count(AdapterStatus::Running), "errored": count(AdapterStatus::Errored), "details": details,
        },
        "pipeline": pipeline(control),
        "ledgers": ledgers(control),
        "projects": projects::health(control),
        "nostr": nostr_health(control),
    });
    (word, document)
}

/// The overall word, and why it isn't `healthy`.
pub(super) fn wellbeing(control: &Control) -> (&'static str, Vec<String>) {
    let (word, reasons) = judge(control, &control.adapters.report());
    (word.as_str(), reasons)
}

/// What `nexus daemon status` shows.
pub(super) fn status(control: &Control) -> Value {
    let reports = control.adapters.report();
    let (word, reasons) = judge(control, &reports);
    let config = control.config.load();
    let mut pipeline = pipeline(control);
    pipeline["waiting"] = control.router_stats.borrow().waiting.into();
    json!({
        "health": word,
        "reasons": reasons,
        "stopping": stopping(control),
        "version": env!("CARGO_PKG_VERSION"),
        "pid": std::process::id(),
        "uptime_ms": uptime_ms(control),
        "http": control.http_address.get().map(ToString::to_string),
        "detached": control.options.detached,
        "config_path": control.paths.config_file,
        "state_dir": control.paths.state_dir,
        "log_file": control.options.detached.then(|| control.paths.log_file()),
        "flags": {
            "log_level": control.options.log_level.map(|level| level.as_str()), "port": control.options.port,
            "whitelist": control.options.whitelist, "projects_path": control.options.projects_path,
        },
        "adapters": reports,
        "pipeline": pipeline,
        "deliveries": **control.deliveries.load(),
        "plugins": control.plugins.names(),
        "plugin_details": control.plugins.report(),
        "automations": control.pipeline.automations.report(),
        "projects": control.projects.in_sight(),
        "nostr": control.nostr.status(),
        "timer": { "heartbeat_interval_ms": config.timer.heartbeat_interval_ms, "cron_jobs": config.timer.cron.len() },
        "ledgers": ledgers(control),
        "kill_level": kill_level(&control.cgroup.level()),
        "failed_tasks": control.watch_over.failed(),
    })
}

fn kill_level(level: &KillLevel) -> Value {
    json!({ "level": level.name(), "meaning": level.meaning(), "why": level.why() })
}

/// What `nexus adapter list` and `status` show: every configured account, also the disabled ones, and
/// the adapters without any.
pub(super) async fn adapters(control: &Control) -> Value {
    let config = control.config.load_full();
    let mut all: Vec<(AccountReport, bool)> = control.adapters.report().into_iter().map(|report| (report, true)).collect();
    for (name, adapter) in &config.adapters {
        for id in adapter.accounts.iter().filter(|(_, account)| !account.enabled).map(|(id, _)| id) {
            // Amid a reload it may run still.
            if !all.iter().any(|(report, _)| report.adapter == *name && report.account == *id) {
                all.push((control.adapters.disabled(name, id, adapter).await, false));
            }
        }
    }
    all.sort_by(|(left, _), (right, _)| (&left.adapter, &left.account).cmp(&(&right.adapter, &right.account)));
    let accounts: Vec<Value> = all.into_iter().map(|(report, enabled)| account(&report, enabled)).collect();
    let bare: Vec<&String> = config.adapters.iter().filter(|(_, adapter)| adapter.accounts.is_empty()).map(|(name, _)| name).collect();
    json!({ "adapters": accounts, "without_accounts": bare })
}

fn account(report: &AccountReport, enabled: bool) -> Value {
    let mut value = json!(report);
    value["enabled"] = enabled.into();
    value
}

/// What `nexus plugin list` shows: those that are enabled as they stand, and the others that lie on the disk.
pub(super) async fn plugins(control: &Control) -> Value {
    let report = control.plugins.report();
    let directory = control.paths.plugins_dir(&control.config.load().plugins.directory);
    // An error means that looking panicked, of which its hook has told.
    let found = crate::watch::blocking("plugins.look", move || names_on_disk(&directory)).await.unwrap_or_default();
    let is_enabled = |name: &str| report.iter().any(|plugin| plugin.name == name);
    let disabled: Vec<&str> = PLUGINS.iter().copied().chain(found.iter().map(String::as_str)).filter(|name| !is_enabled(name)).collect();
    let mut shown = Vec::with_capacity(report.len());
    for plugin in &report {
        let mut one = json!(plugin);
        one["budget"] = budget(control, Payer::Plugin(plugin.name.clone()), &plugin.grants).await;
        shown.push(one);
    }
    json!({ "plugins": shown, "disabled": disabled })
}

/// What a plugin or an automation has used of models today, if it may ask any; null also where that can't be read.
pub(super) async fn budget(control: &Control, payer: Payer, grants: &[String]) -> Value {
    if !grants.contains(&Grant::Llm.to_string()) {
        return Value::Null;
    }
    match control.pipeline.used_today(payer).await {
        Ok(used) => json!(used),
        Err(error) => {
            tracing::warn!(error = describe(&error), "what was used of a budget can't be read");
            Value::Null
        }
    }
}

/// Whether an account is between its spawn and running.
pub(super) fn is_anybody_starting(control: &Control) -> bool {
    control.adapters.report().iter().any(|report| report.status == AdapterStatus::Starting)
}

/// The requirement's start summary.
pub(super) fn summary(control: &Control) -> String {
    let reports = control.adapters.report();
    let config = control.config.load();
    let count = |status: AdapterStatus| reports.iter().filter(|report| report.status == status).count();
    let names: Vec<String> = reports.iter().map(|report| format!("{}/{}", report.adapter, report.account)).collect();
    let width = names.iter().map(String::len).max().unwrap_or(0);
    let plugins = control.plugins.names();
    let ok = control.ledgers.troubles().iter().filter(|(_, trouble)| trouble.is_none()).count();
    let mut lines = vec![
        format!("[NEX] Daemon started (v{})", env!("CARGO_PKG_VERSION")),
        format!("  PID:       {}", std::process::id()),
        format!("  HTTP:      {}", control.http_address.get().map_or_else(|| "-".into(), ToString::to_string)),
        format!("  Adapters:  {} running, {} errored", count(AdapterStatus::Running), count(AdapterStatus::Errored)),
    ];
    for (name, report) in names.iter().zip(&reports) {
        let channel = report.channel.as_deref().unwrap_or("-");
        let mark = match report.status {
            AdapterStatus::Running => "●",
            AdapterStatus::Errored => "✗",
            AdapterStatus::Starting
            | AdapterStatus::Stopping
            | AdapterStatus::Stopped
            | AdapterStatus::Backoff
            | AdapterStatus::Backfilling => "○",
        };
        lines.push(format!("    {name:width$} {channel:<9} {mark} {}", report.status.as_str()));
    }
    lines.push(format!("  Plugins:   {} loaded ({})", plugins.len(), plugins.join(", ")));
    lines.push(format!("  Timer:     {}", timer(config.timer.heartbeat_interval_ms, config.timer.cron.len())));
    lines.push(format!("  Ledgers:   {ok}/4 ok"));
    lines.extend(missing_at_all(&config, &control.paths.workspace).into_iter().map(|missing| format!("  Projects:  {missing}")));
    lines.extend(unheard(control).map(|warning| format!("  Warning:   {warning}")));
    lines.join("\n")
}

/// That nobody of whom the command line speaks is heard.
pub(super) fn unheard(control: &Control) -> Option<&'static str> {
    let is_deaf = !control.options.whitelist.is_empty() && control.config.load().nostr.relays.is_empty();
    is_deaf.then_some("--whitelist is of no use while `nostr.relays` is empty: nothing of Nostr runs")
}

fn timer(heartbeat_ms: u64, cron_jobs: usize) -> String {
    let heartbeat = match heartbeat_ms {
        0 => "no heartbeat".to_owned(),
        ms if ms % 1000 == 0 => format!("heartbeat every {}s", ms / 1000),
        ms => format!("heartbeat every {ms}ms"),
    };
    match cron_jobs {
        0 => heartbeat,
        1 => format!("{heartbeat}, 1 cron job"),
        jobs => format!("{heartbeat}, {jobs} cron jobs"),
    }
}

/// A daemon that stops is degraded, and says so above all else.
fn judge(control: &Control, reports: &[AccountReport]) -> (Overall, Vec<String>) {
    let (word, mut reasons) = overall(&parts_of(control, reports));
    let Some(stopping) = stopping(control) else { return (word, reasons) };
    reasons.insert(0, stopping.reason());
    (word.max(Overall::Degraded), reasons)
}

fn stopping(control: &Control) -> Option<Stopping> {
    let active = control.metrics.totals.active.load(Ordering::Relaxed);
    control.progress.stopping(u64::try_from(active).unwrap_or(0))
}

/// All that health is made of.
pub(super) fn parts(control: &Control) -> Parts {
    parts_of(control, &control.adapters.report())
}

fn parts_of(control: &Control, reports: &[AccountReport]) -> Parts {
    let tasks_lost = control.watch_over.lost();
    Parts {
        ledgers: control.ledgers.troubles().into_iter().map(|(ledger, trouble)| (format!("{}_db", ledger.name()), trouble)).collect(),
        pipeline_ok: !tasks_lost.iter().any(|name| [ROUTER, ADMISSION].contains(&name.as_str())),
        ledgers_damaged: control.soundness.damaged(),
        ledgers_unchecked: control.soundness.unfinished(),
        disk_ok: !*control.disk_low.borrow(),
        adapters: reports.iter().map(|report| AdapterHealth { status: report.status, health: report.health }).collect(),
        tasks_restarted: control.watch_over.restarted(),
        tasks_lost,
        stuck_deliveries: control.deliveries.load().stuck,
        plugins_unwell: control.plugins.unwell().into_iter().chain(control.pipeline.automations.unwell()).collect(),
        projects_unwell: control.projects.unwell(),
        nostr_unwell: control.nostr.status().unwell(),
        sessions_stopped: control.pipeline.breakers.open(clock::mono_ms()),
        clock_doubt: control.sinks.expiry.doubt(),
    }
}

/// How many relays there are, and of those that don't hear everything which.
fn nostr_health(control: &Control) -> Value {
    let status = control.nostr.status();
    let of = |state: &str| status.relays.iter().filter(|relay| relay.state == state).count();
    let deaf: Vec<Value> = status
        .relays
        .iter()
        .filter(|relay| !relay.deaf.is_empty())
        .map(|relay| json!({ "relay": relay.url, "deaf": relay.deaf }))
        .collect();
    let holes: u64 = status.relays.iter().map(|relay| relay.holes).sum();
    json!({ "relays": status.relays.len(), "live": of("live"), "deaf": deaf, "holes": holes, "pending": status.outbox.waiting })
}

fn pipeline(control: &Control) -> Value {
    let totals = &control.metrics.totals;
    json!({
        "active_requests": totals.active.load(Ordering::Relaxed).max(0),
        "total_processed": totals.processed.load(Ordering::Relaxed),
        "avg_latency_ms": (totals.avg_latency_ms() * 10.0).round() / 10.0,
    })
}

fn ledgers(control: &Control) -> Value {
    let mut all = Map::new();
    for (ledger, trouble) in control.ledgers.troubles() {
        let is_ok = trouble.is_none() && !control.soundness.is_damaged(ledger);
        let state = if is_ok { "ok" } else { "error" };
        all.insert(format!("{}_db", ledger.name()), state.into());
    }
    Value::Object(all)
}

fn uptime_ms(control: &Control) -> u64 {
    u64::try_from(control.began.elapsed().as_millis()).unwrap_or(u64::MAX)
}
