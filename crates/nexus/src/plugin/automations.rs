//! Automations: files in `state/automations` that are asked about the events that their triggers fit, in stage 4.
//!
//! Theory of operation: they share one process, a runtime each, which is the plugins' host with several in it; the
//! daemon reads the files, matches the triggers and keeps what an automation knows. A file that changes becomes
//! another guest of the process, and takes the place of the one before once it has loaded. Whatever goes wrong with
//! one is counted, opens its circuit in the end, and never keeps the event from going on.

mod disk;
mod files;
mod host;
mod one;
mod report;
mod trial;

pub(super) use disk::judge;
pub(crate) use disk::on_disk as load_on_disk;
pub(crate) use files::{SOURCE_BYTES_MAX, names_on_disk};
pub use report::AutomationReport;

use super::calls::Calls;
use super::fault::Fault;
use super::found::Stamp;
use super::loaded::Shared;
use super::{FILES_EVERY, TrialError};
use arc_swap::{ArcSwap, ArcSwapOption};
use files::{File, Refused};
use futures_util::future::join_all;
use host::Host;
use nexus_core::automation::Advice;
use nexus_core::circuit::CircuitPolicy;
use nexus_core::config::{self, Grant};
use nexus_core::request::NexusRequest;
use one::Automation;
use serde_json::Value;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant};
use tokio::sync::{OwnedRwLockReadGuard, OwnedRwLockWriteGuard};
use tokio_util::sync::CancellationToken;

/// How often what did not load is tried again: it may have been for want of time or memory.
const AGAIN_EVERY: Duration = Duration::from_secs(180);
/// How long an automation that is to be forgotten is waited for: a call, and the writing of what it said.
const UNASKED_WAIT: Duration = Duration::from_secs(40);

/// What is known under the name of an automation.
#[derive(Debug, Clone, Default)]
struct Slot {
    automation: Option<Arc<Automation>>,
    /// The file that is none, and why.
    refused: Option<Refused>,
}

/// Held by whoever asks an automation: alone where it has a state, beside others where it has none.
type Turn = tokio::sync::RwLock<()>;

/// An automation that is asked about what fits.
#[derive(Debug, Clone)]
pub(crate) struct Candidate {
    automation: Arc<Automation>,
    turn: Arc<Turn>,
}

/// An automation whose turn it is with one event, until this is dropped.
#[derive(Debug)]
pub(crate) struct InTurn {
    pub(crate) candidate: Candidate,
    /// It has a state, which the event before may have changed.
    pub(crate) is_alone: bool,
    _held: (Option<OwnedRwLockWriteGuard<()>>, Option<OwnedRwLockReadGuard<()>>),
}

impl Candidate {
    pub(crate) fn name(&self) -> &str {
        &self.automation.name
    }

    async fn in_turn(self) -> InTurn {
        let is_alone = self.automation.remembers();
        let held = match is_alone {
            true => (Some(self.turn.clone().write_owned().await), None),
            false => (None, Some(self.turn.clone().read_owned().await)),
        };
        InTurn { candidate: self, is_alone, _held: held }
    }
}

/// What configures them.
#[derive(Debug, Default)]
struct Settings {
    automations: config::Automations,
    circuit: config::PluginCircuit,
}

/// What is there once children may be started.
#[derive(Debug)]
struct Engine {
    host: Arc<Host>,
    settings: Mutex<Settings>,
    /// One change at a time.
    changing: tokio::sync::Mutex<()>,
}

/// The automations.
#[derive(Debug, Default)]
pub struct Automations {
    slots: Mutex<BTreeMap<String, Slot>>,
    /// Those that are asked, by name; swapped whole.
    table: ArcSwap<Vec<Candidate>>,
    /// By name, over all versions, and as long as anybody has one.
    turns: Mutex<BTreeMap<String, Weak<Turn>>>,
    /// What they may ask for: there before any of them is started, and gone after the stop.
    calls: Arc<ArcSwapOption<Calls>>,
    engine: OnceLock<Engine>,
}

impl Automations {
    /// Loads those that lie on the disk, in `shared.directory`; returns once each has loaded or can't.
    pub async fn load(&self, shared: Shared, config: &config::Automations, circuit: &config::PluginCircuit) {
        let make = || {
            let host = Host::new(shared, self.calls.clone());
            Engine { host, settings: Mutex::default(), changing: tokio::sync::Mutex::default() }
        };
        let engine = self.engine.get_or_init(make);
        self.configure_engine(engine, config, circuit).await;
    }

    /// From now on automations may ask for what they are granted.
    pub fn answer_with(&self, calls: Arc<Calls>) {
        self.calls.store(Some(calls));
    }

    /// Brings what runs in line with another configuration.
    pub async fn configure(&self, config: &config::Automations, circuit: &config::PluginCircuit) {
        if let Some(engine) = self.engine.get() {
            self.configure_engine(engine, config, circuit).await;
        }
    }

    async fn configure_engine(&self, engine: &Engine, config: &config::Automations, circuit: &config::PluginCircuit) {
        let _one = engine.changing.lock().await;
        *engine.lock() = Settings { automations: config.clone(), circuit: circuit.clone() };
        for automation in self.lock().values().filter_map(|slot| slot.automation.clone()) {
            automation.set_grants(engine.grants(&automation.name));
            automation.set_circuit(engine.policy());
        }
        self.reconcile(engine, false).await;
    }

    /// Loads what is new or has changed, and lets go of what is gone; with `again` also tries what was refused.
    pub async fn look_at_files(&self, again: bool) {
        let Some(engine) = self.engine.get() else { return };
        let _one = engine.changing.lock().await;
        self.reconcile(engine, again).await;
    }

    /// Looks at the files from time to time, and at those that did not load again, until `stop`.
    pub async fn watch_files(self: Arc<Self>, stop: CancellationToken) {
        let mut tried = Instant::now();
        loop {
            crate::torture::point("task.automations");
            let is_due = tried.elapsed() >= AGAIN_EVERY;
            tokio::select! {
                () = tokio::time::sleep(FILES_EVERY) => self.look_at_files(is_due).await,
                () = stop.cancelled() => return,
            }
            if is_due {
                tried = Instant::now();
            }
        }
    }

    /// Ends all; nothing is answered to them any more.
    pub async fn shutdown(&self) {
        if let Some(engine) = self.engine.get() {
            let _one = engine.changing.lock().await;
            self.lock().clear();
            self.rebuild();
            engine.host.stop().await;
        }
        self.calls.store(None);
    }

    /// How each of them is.
    pub fn report(&self) -> Vec<AutomationReport> {
        let Some(engine) = self.engine.get() else { return Vec::new() };
        let status = engine.host.child().map(|child| child.status());
        let slots = self.lock().clone();
        slots.iter().map(|(name, slot)| report::of(name, slot, status.as_ref(), &engine.grants(name))).collect()
    }

    /// A sentence for each that isn't well.
    pub fn unwell(&self) -> Vec<String> {
        let unwell = |report: AutomationReport| report.problem.map(|problem| format!("automation `{}`: {problem}", report.name));
        self.report().into_iter().filter_map(unwell).collect()
    }

    /// Starts an automation in a process of its own, and asks it about a request made from `event`.
    ///
    /// # Errors
    /// When there is no such automation, the event is none, or the process can't be talked with.
    pub async fn test(&self, name: &str, event: Value) -> Result<Value, TrialError> {
        let engine = self.engine.get().ok_or_else(|| TrialError::Failed("the daemon is starting".to_owned()))?;
        trial::run(&engine.host, name, event).await
    }

    /// Those whose triggers fit `request`, by name. Costs no more than a load where there are none.
    pub(crate) fn matching(&self, request: &NexusRequest) -> Vec<Candidate> {
        self.table.load().iter().filter(|one| one.automation.fits(request)).cloned().collect()
    }

    /// Waits for the turn with `one`, of which another version may have come meanwhile: that is who is asked then.
    /// `None` if there is none any more that fits.
    pub(crate) async fn turn(&self, one: &Candidate, request: &NexusRequest) -> Option<InTurn> {
        let mut turn = one.clone().in_turn().await;
        loop {
            let now = self.table.load().iter().find(|now| now.name() == one.name()).cloned();
            let now = now.filter(|now| now.automation.fits(request))?;
            if turn.is_alone || !now.automation.remembers() {
                return Some(InTurn { candidate: now, ..turn });
            }
            // The new version has a state, and the one before had none.
            drop(turn);
            turn = now.in_turn().await;
        }
    }

    /// Held while nobody asks the automation `name`, of which all that was said is written by then. `None` if that takes
    /// longer than a call may.
    pub(crate) async fn unasked(&self, name: &str) -> Option<OwnedRwLockWriteGuard<()>> {
        tokio::time::timeout(UNASKED_WAIT, self.turn_of(name).write_owned()).await.ok()
    }

    /// Asks one about `request`, within `left`. Advice that doesn't pass `check` counts as its failure.
    ///
    /// # Errors
    /// A sentence, without the automation's name.
    pub(crate) async fn ask(
        &self,
        one: &Candidate,
        request: &NexusRequest,
        state: Option<Value>,
        left: Duration,
        check: impl FnOnce(&Advice) -> Result<(), String>,
    ) -> Result<Advice, String> {
        let Some(engine) = self.engine.get() else { return Err("the daemon is starting".to_owned()) };
        let began = Instant::now();
        let (leave, answer) = one.automation.call(&engine.host, request, state, left).await;
        let judged = answer.and_then(|advice| check(&advice).map(|()| advice).map_err(Fault::Nonsense));
        one.automation.settle(&engine.host, request, leave, began.elapsed(), judged.as_ref().map(|_advice| ()));
        judged.map_err(|fault| fault.to_string())
    }

    async fn reconcile(&self, engine: &Engine, again: bool) {
        let directory = engine.host.shared.directory.clone();
        // An error means that looking panicked, of which its hook has told.
        let Ok(mut found) = crate::watch::blocking("automations.look", move || files::look(&directory)).await else { return };
        let off = engine.lock().automations.disabled.clone();
        found.retain(|name, _| !off.contains(name));
        let gone: Vec<String> = self.lock().keys().filter(|name| !found.contains_key(*name)).cloned().collect();
        gone.iter().for_each(|name| self.unload(engine, name));
        join_all(found.into_iter().map(|(name, version)| self.update(engine, name, version, again))).await;
        engine.host.rest().await;
    }

    async fn update(&self, engine: &Engine, name: String, version: Result<Stamp, Refused>, again: bool) {
        let slot = self.lock().get(&name).cloned().unwrap_or_default();
        let known = slot.refused.as_ref().map(|(stamp, _)| stamp).or(slot.automation.as_ref().map(|one| &one.file.stamp));
        let stamp = version.as_ref().unwrap_or_else(|(stamp, _)| stamp);
        let is_broken = slot.refused.is_some() || slot.automation.as_ref().is_some_and(|one| one.is_fatal());
        let is_same = known == Some(stamp) && !(again && is_broken);
        if is_same {
            return;
        }
        let new = match version {
            Ok(_) => self.start(engine, &name).await,
            Err(refused) => Err(refused),
        };
        match new {
            Ok(new) => {
                let old = slot.automation.clone();
                self.set(&name, Slot { automation: Some(new), refused: None });
                let what = if old.is_some() { "automation loaded anew: its file changed" } else { "automation loaded" };
                tracing::info!(automation = name, "{what}");
                retire(engine, old);
            }
            Err(refused) => {
                let rest = if slot.automation.is_some() { "the version before goes on" } else { "events go on without it" };
                tracing::error!(automation = name, error = refused.1, "an automation does not load; {rest}");
                self.set(&name, Slot { refused: Some(refused), ..slot });
            }
        }
    }

    /// Reads the file and has the process load it.
    async fn start(&self, engine: &Engine, name: &str) -> Result<Arc<Automation>, Refused> {
        let host = &engine.host;
        let (directory, owned) = (host.shared.directory.clone(), name.to_owned());
        let read = crate::watch::blocking("automations.read", move || files::read(&directory, &owned)).await;
        let file: File = read.unwrap_or_else(|error| Err((Stamp::default(), error.to_string())))?;
        let stamp = file.stamp.clone();
        let automation = Automation::new(file, host, engine.grants(name), engine.policy());
        host.add(automation.clone()).await;
        let loaded = match host.said(&automation).await {
            Ok(()) => automation.adopt(),
            Err(why) => Err(why),
        };
        match loaded {
            Ok(()) => Ok(automation),
            Err(why) => {
                host.remove(automation.guest).await;
                Err((stamp, why))
            }
        }
    }

    fn unload(&self, engine: &Engine, name: &str) {
        let slot = self.lock().remove(name);
        self.rebuild();
        retire(engine, slot.and_then(|slot| slot.automation));
        tracing::info!(automation = name, "automation unloaded");
    }

    fn set(&self, name: &str, slot: Slot) {
        self.lock().insert(name.to_owned(), slot);
        self.rebuild();
    }

    fn rebuild(&self) {
        // Held to the end, so that no older table can come after a newer one.
        let slots = self.lock();
        let candidate = |automation: Arc<Automation>| Candidate { turn: self.turn_of(&automation.name), automation };
        self.table.store(Arc::new(slots.values().filter_map(|slot| slot.automation.clone()).map(candidate).collect()));
    }

    fn turn_of(&self, name: &str) -> Arc<Turn> {
        let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(turn) = turns.get(name).and_then(Weak::upgrade) {
            return turn;
        }
        turns.retain(|_, turn| turn.strong_count() > 0);
        let turn = Arc::new(Turn::default());
        turns.insert(name.to_owned(), Arc::downgrade(&turn));
        turn
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Slot>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Engine {
    fn grants(&self, name: &str) -> Arc<[Grant]> {
        self.lock().automations.grants.get(name).map_or_else(|| Arc::from(Vec::new()), |grants| Arc::from(grants.as_slice()))
    }

    fn policy(&self) -> CircuitPolicy {
        let settings = self.lock();
        CircuitPolicy { errors: settings.circuit.errors, half_open_ms: settings.circuit.half_open_ms }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Settings> {
        self.settings.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Lets go of a version that nobody is given any more, once those who asked it have their answers.
fn retire(engine: &Engine, old: Option<Arc<Automation>>) {
    let Some(old) = old else { return };
    let host = engine.host.clone();
    crate::watch::helper("automations.retire", async move {
        old.finished().await;
        host.remove(old.guest).await;
        // The process goes with its last guest.
        host.rest().await;
    });
}
