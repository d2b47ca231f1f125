//! Which plugins there are, and which of them are called at which hook, in their order.

use super::found::Stamp;
use super::loaded::{Declared, Plugin};
use arc_swap::ArcSwap;
use nexus_core::config::PluginMode;
use nexus_core::hook::Hook;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// A plugin in the table, with what it declared when that was made.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) plugin: Arc<Plugin>,
    pub(super) declared: Arc<Declared>,
}

/// The plugins of each hook, swapped whole.
#[derive(Debug, Default)]
pub(super) struct Table {
    /// Those whose answers are waited for.
    asked: [Vec<Entry>; Hook::ALL.len()],
    told: [Vec<Entry>; Hook::ALL.len()],
}

impl Table {
    pub(super) fn asked(&self, hook: Hook) -> &[Entry] {
        &self.asked[hook.index()]
    }

    pub(super) fn told(&self, hook: Hook) -> &[Entry] {
        &self.told[hook.index()]
    }
}

/// What is known under the name of an enabled plugin.
#[derive(Debug, Clone, Default)]
pub(super) struct Slot {
    pub(super) plugin: Option<Arc<Plugin>>,
    /// The files that don't load, and why.
    pub(super) refused: Option<(Stamp, String)>,
}

/// The enabled plugins that aren't built in.
#[derive(Default)]
pub(super) struct Roster {
    slots: Mutex<BTreeMap<String, Slot>>,
    table: ArcSwap<Table>,
    /// Ids of calls: never the same one twice.
    ids: AtomicU64,
}

// Its plugins lead back to it.
impl std::fmt::Debug for Roster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Roster").finish_non_exhaustive()
    }
}

impl Roster {
    pub(super) fn table(&self) -> arc_swap::Guard<Arc<Table>> {
        self.table.load()
    }

    pub(super) fn table_full(&self) -> Arc<Table> {
        self.table.load_full()
    }

    /// Whoever is asked at `hook` under that name by now: while others were asked, another version may have come.
    pub(super) fn asked_now(&self, hook: Hook, name: &str) -> Option<Entry> {
        self.table.load().asked(hook).iter().find(|now| *now.plugin.name == *name).cloned()
    }

    pub(super) fn next_id(&self) -> u64 {
        self.ids.fetch_add(1, Ordering::Relaxed) + 1
    }

    pub(super) fn names(&self) -> Vec<String> {
        self.lock().keys().cloned().collect()
    }

    pub(super) fn slot(&self, name: &str) -> Option<Slot> {
        self.lock().get(name).cloned()
    }

    pub(super) fn slots(&self) -> Vec<(String, Slot)> {
        self.lock().iter().map(|(name, slot)| (name.clone(), slot.clone())).collect()
    }

    pub(super) fn set(&self, name: &str, slot: Slot) {
        self.lock().insert(name.to_owned(), slot);
        self.rebuild();
    }

    pub(super) fn take(&self, name: &str) -> Option<Slot> {
        let taken = self.lock().remove(name);
        self.rebuild();
        taken
    }

    /// Makes the table anew: lowest priority first, equals by name.
    pub(super) fn rebuild(&self) {
        // Held to the end, so that no older table can come after a newer one.
        let slots = self.lock();
        let mut entries: Vec<Entry> = slots
            .values()
            .filter_map(|slot| slot.plugin.clone())
            .filter_map(|plugin| plugin.declared().map(|declared| Entry { plugin, declared }))
            .collect();
        entries.sort_by(|a, b| (a.declared.priority, &a.plugin.name).cmp(&(b.declared.priority, &b.plugin.name)));
        let mut table = Table::default();
        for entry in entries {
            for hook in &entry.declared.hooks {
                let is_asked = hook.is_asked() && entry.declared.mode == PluginMode::Mutate;
                let list = if is_asked { &mut table.asked } else { &mut table.told };
                list[hook.index()].push(entry.clone());
            }
        }
        self.table.store(Arc::new(table));
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Slot>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
