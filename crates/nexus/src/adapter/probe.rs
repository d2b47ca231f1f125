//! Health probes: `health --account ID`, as often as the account's state asks for.

use super::account::Account;
use super::program::{PROBE_LIMIT, no_answer};
use crate::clock;
use crate::keeper::{Stdin, tree};
use crate::metrics::ChildLabel;
use crate::oneshot;
use crate::supervisor::{Child, Phase};
use nexus_core::health::{Health, probe_interval_ms};
use nexus_core::ids::ChildId;
use nexus_core::notice::NoticeType;
use nexus_core::protocol::{AdapterProbe, Capability};
use serde_json::json;
use std::sync::Arc;
use std::time::Duration;

/// What the last probe found.
#[derive(Debug, Clone)]
pub(super) struct Found {
    /// Of which of the monitor's processes: it says nothing about the next one.
    pub(super) generation: u64,
    pub(super) health: Health,
    pub(super) error: Option<String>,
}

/// Probes while the monitor runs; a monitor that is gone is noticed at once.
pub(super) async fn watch_health(account: Arc<Account>, child: Child) {
    let mut status = child.watch();
    loop {
        crate::torture::point("task.probes");
        let (phase, pid, generation) = {
            let status = status.borrow_and_update();
            (status.phase, status.pid, status.generation)
        };
        let running = phase == Phase::Running;
        let asked = async { if running { probe(&account).await } else { (Health::Unknown, None) } };
        let (health, error) = tokio::select! {
            found = asked => found,
            () = account.stop.cancelled() => return,
        };
        measure(&account, pid);
        if health == Health::Degraded {
            tracing::warn!(account = %account.key, error, "Adapter health degraded");
        }
        set(&account, Found { generation, health, error });
        let quiet_ms = account.stats.last_event_age_ms().unwrap_or_else(clock::mono_ms);
        let interval = Duration::from_millis(probe_interval_ms(health, quiet_ms));
        tokio::select! {
            changed = status.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(interval), if running => {}
            () = account.stop.cancelled() => return,
        }
    }
}

/// One probe. An adapter that can't be asked is judged by its process alone.
pub(super) async fn probe(account: &Account) -> (Health, Option<String>) {
    if !account.can(Capability::Health) {
        let running = account.child().is_some_and(|child| child.status().phase == Phase::Running);
        return (if running { Health::Healthy } else { Health::Unknown }, None);
    }
    match ask(account).await {
        Ok(answer) if answer.connected && answer.error.is_none() => (Health::Healthy, None),
        Ok(answer) if answer.connected => (Health::Degraded, answer.error),
        Ok(answer) => (Health::Disconnected, answer.error.or_else(|| Some("not connected to its platform".into()))),
        Err(error) => (Health::Degraded, Some(error)),
    }
}

/// Whether the adapter says that the account hears what is new; `None` when it can't tell, or gave no
/// answer, which says nothing either way.
pub(super) async fn is_connected(account: &Account) -> Option<bool> {
    if !account.can(Capability::Health) {
        return None;
    }
    ask(account).await.ok().map(|answer| answer.connected)
}

/// What the adapter says of the account; an error is why it said nothing.
async fn ask(account: &Account) -> Result<AdapterProbe, String> {
    let words = ["health", "--account", account.key.account.as_str()];
    let child = ChildId::new(format!("health/{}", account.key));
    let spec = account.command.spec(child, &words, Some((&account.key.account, &account.context_file())), Stdin::Null);
    let output = oneshot::run(account.shared.keeper(), spec, None, PROBE_LIMIT).await;
    let output = output.map_err(|error| no_answer(&account.key.adapter, Some(&account.key.account), &words, &error))?;
    serde_json::from_slice(&output.stdout).map_err(|error| format!("`health` ({}) did not print an AdapterHealth: {error}", output.status))
}

fn set(account: &Account, found: Found) {
    let notice = json!({ "adapter": account.key.adapter, "account": account.key.account, "health": found.health, "error": found.error });
    let mut is_news = false;
    account.health.send_if_modified(|known| {
        is_news = known.health != found.health || known.error != found.error;
        // Of another process it is to be recorded, also when it is as the last one was.
        let is_other = known.generation != found.generation;
        *known = found;
        is_news || is_other
    });
    if is_news {
        account.shared.sinks.bus.publish(NoticeType::AdapterHealth, notice);
    }
}

/// What the monitor uses, for `/metrics`.
fn measure(account: &Account, pid: Option<u32>) {
    if let Some((cpu, rss, fds)) = pid.and_then(tree::usage) {
        let metrics = &account.shared.sinks.metrics;
        let label = ChildLabel { child: format!("adapter/{}", account.key) };
        metrics.child_cpu.get_or_create(&label).inner().store(cpu.to_bits(), std::sync::atomic::Ordering::Relaxed);
        metrics.child_rss.get_or_create(&label).set(rss);
        metrics.child_fds.get_or_create(&label).set(fds);
    }
}
