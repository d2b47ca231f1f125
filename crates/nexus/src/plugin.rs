//! The hook points and the plugins behind them. Two are built in and only observe; the others are
//! supervised processes of their own.
//!
//! Theory of operation: a plugin that may change requests is asked, in the order of the priorities, and
//! the pipeline waits within the plugin's time; one that observes is told through a bounded queue and
//! nothing waits for it. Whatever goes wrong with a plugin is counted, opens that hook's circuit in the end, and
//! costs a request its answer only if the plugin says so (`on_error: fail`).

mod analytics;
mod automations;
mod builtin;
pub mod calls;
mod circuits;
mod disk;
mod fault;
mod found;
mod frame;
mod judge;
mod large;
mod loaded;
mod loader;
mod process;
mod recent;
mod report;
mod session;
mod table;
mod told;
mod trial;

pub use analytics::{Batch, Counts};
pub use automations::{AutomationReport, Automations};
pub use loaded::Shared;
pub use report::PluginReport;
pub use trial::TrialError;

pub(crate) use automations::{Candidate, SOURCE_BYTES_MAX as AUTOMATION_BYTES_MAX, load_on_disk, names_on_disk as automations_on_disk};
pub(crate) use disk::{Load, heard, plugin as plugin_on_disk};
pub(crate) use found::names as names_on_disk;

use arc_swap::{ArcSwap, ArcSwapOption};
use builtin::Builtin;
use calls::{CallerRequest, Calls};
use fault::Fault;
use judge::Verdict;
use loaded::Ask;
use loader::Loader;
use nexus_core::config::{self, OnPluginError};
use nexus_core::hook::Hook;
use nexus_core::request::{HookTrace, NexusRequest, Stage};
use serde_json::{Value, json};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};
use table::Roster;
use tokio::sync::{oneshot, watch};
use tokio_util::sync::CancellationToken;

/// How often the files of plugins are looked at.
const FILES_EVERY: Duration = Duration::from_secs(2);

/// The loaded plugins.
#[derive(Debug)]
pub struct Plugins {
    enabled: ArcSwap<Vec<Builtin>>,
    builtin: builtin::Figures,
    counts: Arc<Counts>,
    roster: Arc<Roster>,
    /// What plugins may ask for: there before any of them is started, and gone after the stop.
    calls: Arc<ArcSwapOption<Calls>>,
    /// Set once, when children may be started.
    loader: OnceLock<Loader>,
    /// Those that lie on the disk were loaded, as far as they could be.
    loaded: watch::Sender<bool>,
}

/// How a request ends by the word of a plugin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum HookExit {
    Handled { by: String },
    Failed(String),
}

/// What became of asking the plugins of a hook.
#[derive(Debug, Default)]
pub(crate) struct Asked {
    pub(crate) traces: Vec<HookTrace>,
    pub(crate) exit: Option<HookExit>,
}

impl Plugins {
    /// The built-in ones of `plugins.enabled`; the others come with [`Self::load`].
    pub fn new(names: &[String]) -> Self {
        let roster = Arc::default();
        let (calls, loader) = (Arc::new(ArcSwapOption::empty()), OnceLock::new());
        Self {
            enabled: ArcSwap::from_pointee(Builtin::of(names)),
            builtin: builtin::Figures::default(),
            counts: Arc::default(),
            roster,
            calls,
            loader,
            loaded: watch::Sender::new(false),
        }
    }

    /// Loads the plugins that lie on the disk; returns once each has loaded or can't.
    pub async fn load(&self, shared: Shared, config: &config::Plugins) {
        self.builtin.tell(&shared.metrics);
        self.counts.tell(&shared.metrics);
        let loader = self.loader.get_or_init(|| Loader::new(shared, self.roster.clone(), self.calls.clone()));
        loader.configure(config).await;
        self.loaded.send_replace(true);
    }

    /// From now on plugins may ask for what they are granted.
    pub fn answer_with(&self, calls: Arc<Calls>) {
        self.calls.store(Some(calls));
    }

    /// Brings what runs in line with another configuration.
    pub async fn configure(&self, config: &config::Plugins) {
        self.enabled.store(Arc::new(Builtin::of(&config.enabled)));
        if let Some(loader) = self.loader.get() {
            loader.configure(config).await;
        }
    }

    /// Loads anew each plugin whose files changed.
    pub async fn look_at_files(&self) {
        if let Some(loader) = self.loader.get() {
            loader.look().await;
        }
    }

    /// Looks at the files from time to time, until `stop`.
    pub async fn watch_files(self: Arc<Self>, stop: CancellationToken) {
        loop {
            crate::torture::point("task.plugins");
            tokio::select! {
                () = tokio::time::sleep(FILES_EVERY) => self.look_at_files().await,
                () = stop.cancelled() => return,
            }
        }
    }

    /// Stops all plugins, once they were told what waits for them; nothing is answered to them any more.
    pub async fn shutdown(&self) {
        if let Some(loader) = self.loader.get() {
            loader.shutdown().await;
        }
        self.calls.store(None);
    }

    /// The names of those that are enabled, the built-in ones first.
    pub fn names(&self) -> Vec<String> {
        let builtin = self.enabled.load().iter().map(|plugin| plugin.name().to_owned()).collect::<Vec<_>>();
        builtin.into_iter().chain(self.roster.names()).collect()
    }

    /// How each of them is.
    pub fn report(&self) -> Vec<PluginReport> {
        let mut all: Vec<PluginReport> =
            self.enabled.load().iter().map(|plugin| report::of_builtin(*plugin, self.builtin.of(*plugin))).collect();
        for (name, slot) in self.roster.slots() {
            let grants = self.loader.get().map(|loader| loader.granted(&name)).unwrap_or_default();
            all.push(report::of_slot(&name, &slot, grants));
        }
        all
    }

    /// A sentence for each that isn't well.
    pub fn unwell(&self) -> Vec<String> {
        let unwell = |report: PluginReport| report.problem.map(|problem| format!("plugin `{}`: {problem}", report.name));
        self.report().into_iter().filter_map(unwell).collect()
    }

    /// Starts a plugin on its own and calls it with a request made from `event`.
    ///
    /// # Errors
    /// When there is no such plugin, the event is none, or the process can't be talked with.
    pub async fn test(&self, name: &str, event: Value, hook: Option<Hook>) -> Result<Value, TrialError> {
        let loader = self.loader.get().ok_or_else(|| TrialError::Failed("the daemon is starting".to_owned()))?;
        trial::run(loader, name, event, hook).await
    }

    /// What analytics has counted and isn't known to be written.
    pub fn counts(&self) -> &Counts {
        &self.counts
    }

    /// Whether the pipeline has to wait for anybody at `hook`. Costs no more than two loads.
    pub fn is_asked(&self, hook: Hook) -> bool {
        !self.roster.table().asked(hook).is_empty()
    }

    /// Whether anybody is told of `hook`; known once all are loaded.
    pub(crate) async fn is_told(&self, hook: Hook) -> bool {
        // An error can't be: the sender is its own.
        drop(self.loaded.subscribe().wait_for(|is_loaded| *is_loaded).await);
        !self.roster.table().told(hook).is_empty()
    }

    /// Asks the plugins of `hook` one after the other, each on what the one before it has left, within
    /// `left` in all.
    pub(crate) async fn ask(&self, hook: Hook, request: &mut NexusRequest, left: Duration) -> Asked {
        let (table, began, mut asked) = (self.roster.table_full(), Instant::now(), Asked::default());
        for before in table.asked(hook) {
            let Some(table::Entry { plugin, declared }) = self.roster.asked_now(hook, &before.plugin.name) else { continue };
            let (view, started) = (declared.sees.view(request), Instant::now());
            let mut ask = Ask { hook, view, error: None, request: caller(request, hook), event_id: request.event.event_id.clone() };
            let (leave, answer) = plugin.call(&declared, &mut ask, left.saturating_sub(began.elapsed())).await;
            let judged =
                answer.and_then(|reply| judge::apply(&plugin.name, hook, request, &reply).map(|verdict| (verdict, judge::word(&reply))));
            let (took, error) = (started.elapsed(), judged.as_ref().err().map(ToString::to_string));
            plugin.settle(&ask, leave, took, judged.as_ref().map(|(_, word)| *word));
            asked.traces.push(HookTrace { plugin: plugin.name.as_ref().to_owned(), ms: took.as_secs_f64() * 1000.0, error });
            asked.exit = match judged {
                Ok((Verdict::GoOn, _)) => None,
                Ok((Verdict::Skip, _)) => Some(handled(request, &plugin.name)),
                Err(fault @ Fault::OutOfTime) => Some(HookExit::Failed(format!("plugin `{}`: {fault}", plugin.name))),
                Err(fault) => match declared.on_error {
                    OnPluginError::Skip => None,
                    OnPluginError::Fail => Some(HookExit::Failed(format!("plugin `{}`: {fault}", plugin.name))),
                },
            };
            if asked.exit.is_some() {
                break;
            }
        }
        asked
    }

    /// The hook behind `stage`: `afterReceiveEvent` ... `afterDeliverResponse`, `onFinalize`. Who may
    /// change the request was asked already.
    pub fn after(&self, stage: Stage, request: &NexusRequest) {
        for plugin in self.enabled.load().iter() {
            let began = Instant::now();
            match plugin {
                Builtin::Logging => log_stage(stage, request),
                Builtin::Analytics if stage == Stage::Finalize => self.counts.count(request),
                Builtin::Analytics => continue,
            }
            self.builtin.of(*plugin).took(began.elapsed());
        }
        self.tell(Hook::after(stage), request, None);
    }

    /// The hook `onError`: a request that failed in any stage.
    pub fn on_error(&self, request: &NexusRequest) {
        let stage = failed_stage(request);
        for plugin in self.enabled.load().iter() {
            match plugin {
                Builtin::Logging => {
                    let stage = stage.map(Stage::as_str);
                    tracing::error!(request_id = request.request_id, error = request.reason, stage, "Pipeline error");
                }
                Builtin::Analytics => {}
            }
        }
        self.failed(request, stage.unwrap_or(Stage::ReceiveEvent), request.reason.as_deref().unwrap_or("unknown"));
    }

    /// The hook `onError` for a stage that failed without the request ending as failed.
    pub fn failed(&self, request: &NexusRequest, stage: Stage, message: &str) {
        if !self.roster.table().told(Hook::OnError).is_empty() {
            self.tell(Hook::OnError, request, Some(&json!({ "stage": stage, "message": message })));
        }
    }

    /// As [`Self::failed`], and waits until each that is told was called; false if one wasn't, since too much waited for
    /// it, or it ended.
    pub(crate) async fn failed_and_heard(&self, request: &NexusRequest, stage: Stage, message: &str) -> bool {
        let (table, error, mut all) = (self.roster.table_full(), json!({ "stage": stage, "message": message }), true);
        for table::Entry { plugin, declared } in table.told(Hook::OnError) {
            let (heard, called) = oneshot::channel();
            told::tell(plugin, declared, Hook::OnError, request, Some(&error), Some(heard));
            all &= called.await.is_ok();
        }
        all
    }

    fn tell(&self, hook: Hook, request: &NexusRequest, error: Option<&Value>) {
        for table::Entry { plugin, declared } in self.roster.table().told(hook) {
            told::tell(plugin, declared, hook, request, error, None);
        }
    }
}

/// Ends a request in the name of a plugin.
fn handled(request: &mut NexusRequest, plugin: &str) -> HookExit {
    let by = format!("plugin:{plugin}");
    let triggers = request.triggers.get_or_insert_default();
    (triggers.handled, triggers.handled_by) = (true, Some(by.clone()));
    HookExit::Handled { by }
}

/// The request in whose hook a plugin is called, for what it asks meanwhile. One per call of a hook.
fn caller(request: &NexusRequest, hook: Hook) -> CallerRequest {
    CallerRequest::new(request, &request.adapter, hook.as_str())
}

/// The stage that failed. Behind it there may be others: its notice is delivered.
fn failed_stage(request: &NexusRequest) -> Option<Stage> {
    let failed = request.pipeline.iter().rev().find(|trace| trace.error.is_some());
    failed.or_else(|| request.pipeline.last()).map(|trace| trace.stage)
}

fn log_stage(stage: Stage, request: &NexusRequest) {
    let last = request.pipeline.last();
    if stage == Stage::Finalize {
        let duration_ms = request.pipeline.iter().map(|trace| trace.duration_ms).sum::<f64>().round();
        tracing::info!(
            request_id = request.request_id,
            status = request.status.as_str(),
            duration_ms,
            stage_count = request.pipeline.len() + 1,
            "Pipeline complete"
        );
    } else if let Some(trace) = last {
        tracing::debug!(
            request_id = request.request_id,
            stage = stage.as_str(),
            duration_ms = trace.duration_ms,
            error = trace.error,
            "stage"
        );
    }
}
