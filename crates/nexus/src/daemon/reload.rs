//! Reload: read, compare, apply what can be applied live, say what can't. An invalid file changes
//! nothing.

use super::build::settings;
use super::config::{LoadError, load_whole};
use super::control::Control;
use super::start::effective;
use crate::clock;
use crate::error_text::describe;
use crate::http::control::{Answer, Refusal};
use crate::ledger::nexus::RecordConfig;
use crate::project::prepare;
use axum::http::StatusCode;
use nexus_core::config::Config;
use nexus_core::config::diff::{Change, Effect, diff};
use nexus_core::ids::AccountKey;
use nexus_core::notice::NoticeType;
use serde_json::{Value, json};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Reads the configuration anew and applies it; with `dry_run` only tells what would change.
pub(super) async fn reload(control: &Control, dry_run: bool) -> Answer {
    // One at a time: a second one compares with what the first applied.
    let _one = control.reloading.lock().await;
    if !control.ready.load(Ordering::Acquire) {
        let why = "the daemon is starting or stopping; it reads its configuration at its start";
        return Err(Refusal::new(StatusCode::SERVICE_UNAVAILABLE, why));
    }
    let loaded = load_whole(&control.paths).map_err(|error| invalid(control, &error))?;
    let mut new = effective(&loaded.config, &control.options);
    let old = control.config.load_full();
    let changes = diff(&old, &new);
    keep_restart_only(&old, &mut new);
    let new = Arc::new(new);
    let (servers, acp, projects) = (&control.servers, &control.acp, &control.projects);
    let built = settings(&new, control.supervisor.keeper(), servers, acp, projects, &control.paths.workspace);
    let built = built.map_err(|error| Refusal::new(StatusCode::UNPROCESSABLE_ENTITY, describe(&error)))?;
    let warnings: Vec<String> = loaded.warnings.iter().map(ToString::to_string).collect();
    let answer = json!({ "changes": changes.iter().map(shown).collect::<Vec<_>>(), "warnings": warnings, "applied": !dry_run });
    if dry_run {
        return Ok(answer);
    }
    crate::torture::point("reload.before");
    // First, since it is all that can fail.
    if let Err(error) = control.set_bus_mode(&new).await {
        let why = format!("`bus.mode` could not be changed, and nothing else was: {}", describe(&error));
        return Err(Refusal::new(StatusCode::SERVICE_UNAVAILABLE, why));
    }
    // Before the agents that name them.
    control.servers.expect(&new.agents);
    control.pipeline.settings.store(Arc::new(built));
    control.config.store(new.clone());
    control.preparer.configure(prepare::Settings::of(&new, &control.paths));
    // Turns wait for these, and not for as long as projects and adapters may take to stop.
    control.servers.apply(&new.agents).await;
    control.projects.apply(&new).await;
    super::projects::tell_missing(&new, &control.paths);
    for change in &changes {
        if !control.ready.load(Ordering::Acquire) {
            break; // a stop waits for this, and would only undo it; the next start reads the file
        }
        apply(control, change, &new).await;
        crate::torture::point("reload.change");
    }
    control.plugins.look_at_files().await;
    control.pipeline.automations.look_at_files(true).await;
    let text = loaded.show();
    if let Err(error) = control.ledgers.nexus.writer.write(RecordConfig { text, at: clock::wall_ms() }).await {
        tracing::warn!(%error, "the new configuration was not recorded");
    }
    crate::torture::point("reload.after");
    tracing::info!(changes = changes.len(), "Config reloaded");
    control.bus.publish(NoticeType::ConfigReloaded, &answer);
    Ok(answer)
}

/// What only a restart changes stays as it is in force, so that the next reload warns again.
fn keep_restart_only(old: &Config, new: &mut Config) {
    let log_level = new.daemon.log_level;
    new.daemon = old.daemon.clone();
    new.daemon.log_level = log_level;
    new.ledgers.directory.clone_from(&old.ledgers.directory);
    new.plugins.directory.clone_from(&old.plugins.directory);
}

fn invalid(control: &Control, error: &LoadError) -> Refusal {
    tracing::error!(error = %describe(error), "reload failed; the old configuration stays in force");
    control.bus.publish(NoticeType::SystemError, json!({ "what": "reload", "error": describe(error) }));
    let problems = match error {
        LoadError::Invalid(problems) => problems.iter().map(ToString::to_string).collect(),
        LoadError::Missing(_) | LoadError::Io { .. } | LoadError::NotUtf8 { .. } => vec![describe(error)],
    };
    Refusal { status: StatusCode::UNPROCESSABLE_ENTITY, error: "the configuration is invalid; nothing was changed".into(), problems }
}

fn shown(change: &Change) -> Value {
    let effect = match change.effect() {
        Effect::Live => "live",
        Effect::NewRequestsOnly => "new_requests_only",
        Effect::RestartsChild => "restarts_child",
        Effect::NeedsDaemonRestart => "needs_daemon_restart",
    };
    json!({ "text": change.to_string(), "effect": effect })
}

async fn apply(control: &Control, change: &Change, new: &Config) {
    let adapters = &control.adapters;
    match change {
        Change::LogLevel => control.logging.set_level(new.daemon.log_level),
        Change::TimerSchedule => drop(control.timer_settings.send_replace(new.timer.clone())),
        Change::BusRing => control.bus.resize(usize::try_from(new.bus.ring).unwrap_or(usize::MAX)),
        Change::PluginsEnabled { .. } | Change::PluginGrants | Change::PluginCircuit => {
            control.plugins.configure(&new.plugins).await;
            control.pipeline.automations.configure(&new.automations, &new.plugins.circuit).await;
        }
        Change::Automations => control.pipeline.automations.configure(&new.automations, &new.plugins.circuit).await,
        Change::AdapterAdded(name) => {
            if let Some(adapter) = new.adapters.get(name) {
                adapters.add(name, adapter).await;
            }
        }
        Change::AdapterRemoved(name) => adapters.remove(name).await,
        Change::AdapterChanged { name } => {
            if let Some(adapter) = new.adapters.get(name) {
                adapters.replace(name, adapter).await;
            }
        }
        Change::AdapterSettings { name } => {
            if let Some(adapter) = new.adapters.get(name) {
                adapters.set_rules(name, adapter).await;
            }
        }
        Change::AccountAdded { adapter, account } | Change::AccountEnabled { adapter, account } => {
            start_account(control, new, adapter, account).await
        }
        Change::AccountRemoved { adapter, account } | Change::AccountDisabled { adapter, account } => {
            adapters.remove_account(&AccountKey::new(adapter, account)).await;
        }
        Change::AccountChanged { adapter, account } => {
            adapters.remove_account(&AccountKey::new(adapter, account)).await;
            start_account(control, new, adapter, account).await;
        }
        Change::Nostr => control.nostr.apply(&new.nostr).await,
        // Done already, or read from the new settings or configuration by whoever needs them.
        Change::BusMode(_)
        | Change::BusRetention
        | Change::Access
        | Change::Agents
        | Change::PluginBudgets
        | Change::PipelineTimeout
        | Change::PipelineConcurrency
        | Change::OnInterrupted
        | Change::Retention
        | Change::MinFree
        | Change::Projects => {}
        Change::NeedsRestart { key } => tracing::warn!(key, "changed, but in force only after `nexus daemon restart`"),
    }
}

async fn start_account(control: &Control, new: &Config, name: &str, id: &str) {
    let Some(adapter) = new.adapters.get(name) else { return };
    if let Some(account) = adapter.accounts.get(id).filter(|account| account.enabled) {
        control.adapters.add_account(name, id, adapter, account).await;
    }
}
