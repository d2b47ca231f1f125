//! Health probes: `health --account ID`, as often as the account's state asks for.

use super::account::Account;
use super::program::PROBE_LIMIT;
use crate::clock;
use crate::error_text::describe;
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

/// Probes while the monitor runs; a monitor that is gone is noticed at once.
pub(super) async fn watch_health(account: Arc<Account>, child: Child) {
    let mut status = child.watch();
    loop {
        let (phase, pid) = {
            let status = status.borrow_and_update();
            (status.phase, status.pid)
        };
        let running = phase == Phase::Running;
        let asked = async { if running { probe(&account).await } else { (Health::Unknown, None) } };
        let found = tokio::select! {
            found = asked => found,
            () = account.stop.cancelled() => return,
        };
        let degraded = found.0 == Health::Degraded;
        set(&account, found.clone());
        measure(&account, pid);
        if degraded {
            tracing::warn!(account = %account.key, error = found.1, "Adapter health degraded");
        }
        let quiet_ms = account.stats.last_event_age_ms().unwrap_or_else(clock::mono_ms);
        let interval = Duration::from_millis(probe_interval_ms(found.0, quiet_ms));
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
    let words = ["health", "--account", account.key.account.as_str()];
    let child = ChildId::new(format!("health/{}", account.key));
    let spec = account.command.spec(child, &words, Some((&account.key.account, &account.context_file())), Stdin::Null);
    match oneshot::run(account.shared.keeper(), spec, None, PROBE_LIMIT).await {
        Ok(output) => match serde_json::from_slice::<AdapterProbe>(&output.stdout) {
            Ok(answer) if answer.connected && answer.error.is_none() => (Health::Healthy, None),
            Ok(answer) if answer.connected => (Health::Degraded, answer.error),
            Ok(answer) => (Health::Disconnected, answer.error.or_else(|| Some("not connected to its platform".into()))),
            Err(error) => (Health::Degraded, Some(format!("`health` ({}) did not print an AdapterHealth: {error}", output.status))),
        },
        Err(error) => (Health::Degraded, Some(describe(&error))),
    }
}

fn set(account: &Account, found: (Health, Option<String>)) {
    let changed = account.health.send_if_modified(|known| {
        let changed = *known != found;
        known.clone_from(&found);
        changed
    });
    if changed {
        let notice = json!({ "adapter": account.key.adapter, "account": account.key.account, "health": found.0, "error": found.1 });
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
