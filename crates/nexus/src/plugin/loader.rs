//! Loading, unloading and loading anew: which plugins of the configuration run, and what becomes of one
//! whose files change. A new version that doesn't load leaves the old one running.

use super::calls::Calls;
use super::found::{self, Found, Kind, Stamp};
use super::loaded::{Plugin, Shared};
use super::session::Standing;
use super::table::{Roster, Slot};
use crate::supervisor::{ChildStatus, Phase};
use arc_swap::ArcSwapOption;
use futures_util::future::join_all;
use nexus_core::circuit::CircuitPolicy;
use nexus_core::config::{self, Grant, PLUGINS};
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// How long a script may take until it has said what it is, and a program until it runs.
pub(super) const LOAD_LIMIT: Duration = Duration::from_secs(5);
/// How long the new version of a program must live until the old one goes.
const TRIAL: Duration = Duration::from_millis(500);
/// The two places of a plugin's processes: the new version starts in the one that is free.
const SLOTS: [char; 2] = ['a', 'b'];

/// Why a version of a plugin doesn't load, and which one.
type Refused = (Stamp, String);

#[derive(Debug)]
pub(super) struct Loader {
    pub(super) shared: Shared,
    roster: Arc<Roster>,
    pub(super) calls: Arc<ArcSwapOption<Calls>>,
    settings: Mutex<config::Plugins>,
    /// One change at a time.
    changing: tokio::sync::Mutex<()>,
}

impl Loader {
    pub(super) fn new(shared: Shared, roster: Arc<Roster>, calls: Arc<ArcSwapOption<Calls>>) -> Self {
        super::large::clear(&shared.run_dir);
        Self { shared, roster, calls, settings: Mutex::default(), changing: tokio::sync::Mutex::default() }
    }

    /// Brings what runs in line with `config`; returns once what is new has loaded, or can't.
    pub(super) async fn configure(&self, config: &config::Plugins) {
        let _one = self.changing.lock().await;
        *self.lock() = config.clone();
        let wanted: BTreeSet<&str> = config.enabled.iter().map(String::as_str).filter(|name| !PLUGINS.contains(name)).collect();
        let (stay, go): (Vec<String>, Vec<String>) = self.roster.names().into_iter().partition(|name| wanted.contains(name.as_str()));
        join_all(go.iter().map(|name| self.unload(name))).await;
        for plugin in stay.iter().filter_map(|name| self.roster.slot(name)?.plugin) {
            plugin.set_grants(self.grants(&plugin.name));
            plugin.set_circuit(self.policy());
        }
        let new = wanted.into_iter().filter(|name| !stay.iter().any(|known| known == name));
        join_all(new.map(|name| self.load(name))).await;
    }

    /// Loads anew what has other files than before.
    pub(super) async fn look(&self) {
        let _one = self.changing.lock().await;
        let known: Vec<(String, Stamp)> = self.roster.slots().into_iter().map(|(name, slot)| (name, stamp_of(&slot))).collect();
        if known.is_empty() {
            return;
        }
        let directory = self.shared.directory.clone();
        let looking = move || known.into_iter().filter(|(name, stamp)| found::stamp(&directory, name) != *stamp).collect::<Vec<_>>();
        let Ok(changed) = crate::watch::blocking("plugins.look", looking).await else { return }; // its hook told of a panic
        for (name, _) in changed {
            self.renew(&name).await;
        }
    }

    /// Stops all.
    pub(super) async fn shutdown(&self) {
        let _one = self.changing.lock().await;
        let names = self.roster.names();
        join_all(names.iter().map(|name| self.unload(name))).await;
    }

    /// The grants of a plugin, as the configuration writes them.
    pub(super) fn granted(&self, name: &str) -> Vec<String> {
        self.grants(name).iter().map(ToString::to_string).collect()
    }

    /// Looks for a plugin on the disk.
    pub(super) async fn find(&self, name: &str) -> Result<Found, Refused> {
        let (directory, name) = (self.shared.directory.clone(), name.to_owned());
        let finding = move || found::find(&directory, &name).map_err(|why| (found::stamp(&directory, &name), why));
        crate::watch::blocking("plugins.find", finding).await.unwrap_or_else(|error| Err((Stamp::default(), error.to_string())))
    }

    async fn load(&self, name: &str) {
        let found = match self.find(name).await {
            Ok(found) => found,
            Err(refused) => return self.refuse(name, None, refused),
        };
        let plugin = self.start(found, SLOTS[0]).await;
        self.roster.set(name, Slot { plugin: Some(plugin.clone()), refused: None });
        let loaded = match plugin.found.kind {
            Kind::Script(_) => self.said(&plugin).await,
            Kind::Program { .. } => Ok(()), // it has said all in its file, and is waited for when it is called
        };
        match loaded {
            Ok(()) => {
                plugin.adopt();
                tracing::info!(plugin = name, "plugin loaded");
            }
            Err(error) => tracing::error!(plugin = name, error, "a plugin does not load; requests go on without it"),
        }
    }

    async fn renew(&self, name: &str) {
        let Some(Slot { plugin, .. }) = self.roster.slot(name) else { return };
        let found = match self.find(name).await {
            Ok(found) => found,
            Err(refused) => return self.refuse(name, plugin, refused),
        };
        let Some(old) = plugin else { return self.load(name).await };
        if found.stamp == old.found.stamp {
            return self.roster.set(name, Slot { plugin: Some(old), refused: None }); // as it was, after all
        }
        let slot = if old.slot == SLOTS[0] { SLOTS[1] } else { SLOTS[0] };
        let new = self.start(found, slot).await;
        let up = match new.found.kind {
            Kind::Script(_) => self.said(&new).await,
            Kind::Program { .. } => self.lives(&new).await,
        };
        match up {
            Ok(()) => {
                new.adopt();
                self.roster.set(name, Slot { plugin: Some(new), refused: None });
                old.finished().await;
                old.stop().await;
                tracing::info!(plugin = name, "plugin loaded anew: its files changed");
            }
            Err(why) => {
                let stamp = new.found.stamp.clone();
                new.stop().await;
                self.refuse(name, Some(old), (stamp, why));
            }
        }
    }

    fn refuse(&self, name: &str, old: Option<Arc<Plugin>>, refused: Refused) {
        let rest = if old.is_some() { "the version before goes on" } else { "requests go on without it" };
        tracing::error!(plugin = name, error = refused.1, "a plugin does not load; {rest}");
        self.roster.set(name, Slot { plugin: old, refused: Some(refused) });
    }

    async fn unload(&self, name: &str) {
        if let Some(Slot { plugin: Some(plugin), .. }) = self.roster.take(name) {
            plugin.stop().await;
            tracing::info!(plugin = name, "plugin unloaded");
        }
    }

    async fn start(&self, found: Found, slot: char) -> Arc<Plugin> {
        let grants = self.grants(&found.name);
        let (shared, roster, calls) = (self.shared.clone(), self.roster.clone(), self.calls.clone());
        Plugin::start(found, slot, shared, roster, calls, grants, self.policy()).await
    }

    /// Waits until a script's host has said what it is.
    async fn said(&self, plugin: &Plugin) -> Result<(), String> {
        let Some(mut status) = plugin.child().map(crate::supervisor::Child::watch) else { return Err("it has no process".to_owned()) };
        let mut standing = plugin.standing.subscribe();
        tokio::select! {
            biased;
            standing = standing.wait_for(|standing| *standing != Standing::Unsaid) => match standing.as_deref() {
                Ok(Standing::Fatal(message)) => Err(message.clone()),
                Ok(Standing::Ready(ready)) if ready.name != *plugin.name => Err(format!("it says that its name is `{}`", ready.name)),
                Ok(Standing::Ready(_) | Standing::Unsaid) | Err(_) => Ok(()),
            },
            ended = status.wait_for(is_down) => Err(ended.map_or_else(|_| "it was removed".to_owned(), |status| why_down(&status))),
            () = self.shared.stop.cancelled() => Err("the daemon stops".to_owned()),
            () = tokio::time::sleep(LOAD_LIMIT) => Err(format!("it did not say what it is within {} s", LOAD_LIMIT.as_secs())),
        }
    }

    /// Waits until a program runs and has not ended at once.
    async fn lives(&self, plugin: &Plugin) -> Result<(), String> {
        let Some(mut status) = plugin.child().map(crate::supervisor::Child::watch) else { return Err("it has no process".to_owned()) };
        let mut ended = status.clone();
        let alive = async {
            // An error means that it was removed; then it is down as well.
            drop(status.wait_for(|status| status.phase == Phase::Running).await);
            tokio::time::sleep(TRIAL).await;
        };
        tokio::select! {
            ended = ended.wait_for(is_down) => Err(ended.map_or_else(|_| "it was removed".to_owned(), |status| why_down(&status))),
            () = alive => Ok(()),
            () = self.shared.stop.cancelled() => Err("the daemon stops".to_owned()),
            () = tokio::time::sleep(LOAD_LIMIT) => Err(format!("it did not run within {} s", LOAD_LIMIT.as_secs())),
        }
    }

    fn grants(&self, name: &str) -> Arc<[Grant]> {
        self.lock().grants.get(name).map_or_else(|| Arc::from(Vec::new()), |grants| Arc::from(grants.as_slice()))
    }

    fn policy(&self) -> CircuitPolicy {
        let settings = self.lock();
        CircuitPolicy { errors: settings.circuit.errors, half_open_ms: settings.circuit.half_open_ms }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, config::Plugins> {
        self.settings.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The files that were looked at last.
fn stamp_of(slot: &Slot) -> Stamp {
    let refused = slot.refused.as_ref().map(|(stamp, _)| stamp.clone());
    refused.or_else(|| slot.plugin.as_ref().map(|plugin| plugin.found.stamp.clone())).unwrap_or_default()
}

fn is_down(status: &ChildStatus) -> bool {
    match status.phase {
        Phase::Backoff | Phase::Errored => true,
        Phase::Stopped | Phase::Starting | Phase::Running | Phase::Stopping => false,
    }
}

fn why_down(status: &ChildStatus) -> String {
    status.last_error.clone().unwrap_or_else(|| "its process ended".to_owned())
}
