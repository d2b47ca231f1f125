//! One plugin that was loaded: its child, its circuits, and how it is called. What a call's answer does
//! to a request, others decide.

use super::calls::{CallerKind, CallerRequest, Calls};
use super::circuits::{Circuits, Open};
use super::fault::Fault;
use super::found::{Found, Kind};
use super::frame::{self, Ready, Reply};
use super::large::{self, Files};
use super::process;
use super::recent::Recent;
use super::session::{Desk, Lost, Session, Standing};
use super::table::Roster;
use super::told::{self, Told};
use crate::bus::Bus;
use crate::metrics::{Metrics, PluginLabel, PluginResult};
use crate::supervisor::{Child, ChildSpec, Phase, Supervisor};
use crate::watch::Watch;
use arc_swap::ArcSwapOption;
use nexus_core::circuit::{CircuitPolicy, Leave};
use nexus_core::config::{Grant, OnPluginError, PluginMode, PluginSection};
use nexus_core::hook::{Hook, view};
use nexus_core::ids::ChildId;
use nexus_core::notice::NoticeType;
use nexus_core::request::NexusRequest;
use serde_json::{Value, json};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Calls of one plugin that are under way at once; more wait.
const OUTSTANDING_MAX: u32 = 64;
/// How long a version that another one has followed may take for the calls that are under way.
const FINISH_LIMIT: Duration = Duration::from_secs(30);
/// How long one call of a script may take: longer than its host lets its JavaScript run, so that what comes
/// of a loop that never ends is the host's answer. One that was granted something may wait for that.
const SCRIPT_LIMIT: Duration = Duration::from_secs(3);
const SCRIPT_GRANTED_LIMIT: Duration = Duration::from_secs(30);

/// What all plugins share.
#[derive(Debug, Clone)]
pub struct Shared {
    pub supervisor: Supervisor,
    pub bus: Bus,
    pub metrics: Metrics,
    pub watch_over: Watch,
    /// `plugins.directory`.
    pub directory: PathBuf,
    /// Where texts lie that are too long for a frame.
    pub run_dir: PathBuf,
    pub stop: CancellationToken,
}

/// What a plugin sees of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Sees {
    /// All of it, each text in its place: a script's host can open no file.
    Whole,
    /// The sections that a script declared, each text in its place.
    Part(Vec<PluginSection>),
    /// The sections that a program declared, long texts as files.
    Sections(Vec<PluginSection>),
}

impl Sees {
    pub(super) fn of_script(ready: &Ready) -> Self {
        ready.sections.clone().map_or(Self::Whole, Self::Part)
    }

    pub(super) fn view(&self, request: &NexusRequest) -> Value {
        match self {
            Self::Whole => json!(request),
            Self::Part(sections) => typed(request, sections),
            Self::Sections(sections) => view(request, sections),
        }
    }

    /// A view as it goes into a frame, and the files that must stay until the answer.
    ///
    /// # Errors
    /// Of the file system.
    pub(super) async fn lent(&self, view: Value, run_dir: &Path) -> io::Result<(Value, Files)> {
        match self {
            Self::Whole | Self::Part(_) => Ok((view, Files::default())),
            Self::Sections(_) => large::lend(view, run_dir).await,
        }
    }

    /// The names of the sections.
    pub(super) fn words(&self) -> Vec<&'static str> {
        match self {
            Self::Whole => PluginSection::WORDS.to_vec(),
            Self::Part(sections) | Self::Sections(sections) => sections.iter().map(|section| section.as_str()).collect(),
        }
    }
}

/// A view in which a status is a word with its reason beside it, as the types of scripts have them.
fn typed(request: &NexusRequest, sections: &[PluginSection]) -> Value {
    let mut seen = view(request, sections);
    if sections.contains(&PluginSection::Status) {
        seen["status"] = json!(request.status);
        seen["reason"] = json!(request.reason);
    }
    seen
}

/// What a plugin wants, by its own word.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Declared {
    pub(super) hooks: Vec<Hook>,
    pub(super) mode: PluginMode,
    pub(super) sees: Sees,
    pub(super) priority: i64,
    pub(super) timeout: Duration,
    pub(super) on_error: OnPluginError,
}

/// What a hook is called with.
#[derive(Debug)]
pub(super) struct Ask {
    pub(super) hook: Hook,
    pub(super) view: Value,
    pub(super) error: Option<Value>,
    pub(super) request: CallerRequest,
    pub(super) event_id: String,
}

/// Figures of one plugin.
#[derive(Debug, Default)]
pub(super) struct Figures {
    pub(super) calls: AtomicU64,
    pub(super) took_ns: AtomicU64,
    pub(super) recent: Recent,
    /// What requests took to leave word for it, where nothing waits for its answer.
    pub(super) telling: Recent,
    pub(super) errors: AtomicU64,
    /// Of what it was to be told.
    pub(super) dropped: AtomicU64,
    pub(super) ignored: Arc<AtomicU64>,
    pub(super) last_error: Mutex<Option<String>>,
}

/// One plugin.
#[derive(Debug)]
pub(super) struct Plugin {
    pub(super) name: Arc<str>,
    pub(super) found: Found,
    pub(super) shared: Shared,
    pub(super) figures: Figures,
    pub(super) standing: watch::Sender<Standing>,
    pub(super) session: watch::Sender<Option<Arc<Session>>>,
    pub(super) told: mpsc::Sender<Told>,
    pub(super) told_bytes: AtomicUsize,
    /// What waits is told, and then its task ends.
    pub(super) finishing: CancellationToken,
    pub(super) stop: CancellationToken,
    /// `a` or `b`: of two processes of a plugin, while one follows the other.
    pub(super) slot: char,
    pub(super) tasks: TaskTracker,
    roster: Arc<Roster>,
    declared: ArcSwapOption<Declared>,
    grants: watch::Sender<Arc<[Grant]>>,
    calls: Arc<ArcSwapOption<Calls>>,
    circuits: Circuits,
    room: Semaphore,
    id: ChildId,
    child: OnceLock<Child>,
}

impl Plugin {
    /// Starts the plugin's process and its tasks; waits for neither.
    pub(super) async fn start(
        found: Found,
        slot: char,
        shared: Shared,
        roster: Arc<Roster>,
        calls: Arc<ArcSwapOption<Calls>>,
        grants: Arc<[Grant]>,
        policy: CircuitPolicy,
    ) -> Arc<Self> {
        let (told, queue) = told::queue();
        let plugin = Arc::new(Self {
            name: found.name.as_str().into(),
            figures: Figures::default(),
            standing: watch::Sender::new(Standing::Unsaid),
            session: watch::Sender::new(None),
            told,
            told_bytes: AtomicUsize::new(0),
            finishing: CancellationToken::new(),
            stop: CancellationToken::new(),
            slot,
            tasks: TaskTracker::new(),
            roster,
            declared: ArcSwapOption::empty(),
            grants: watch::Sender::new(grants),
            calls,
            circuits: Circuits::new(policy),
            room: Semaphore::new(OUTSTANDING_MAX as usize),
            id: ChildId::new(format!("plugin/{}/{slot}", found.name)),
            child: OnceLock::new(),
            found,
            shared,
        });
        plugin.adopt();
        let program = Arc::new(process::Program::new(&plugin));
        let child = plugin.shared.supervisor.add(ChildSpec { id: plugin.id.clone(), policy: process::policy(), program });
        child.start().await;
        // Set once, right here.
        drop(plugin.child.set(child));
        told::spawn(&plugin, queue);
        plugin
    }

    /// Returns once nobody asks it any more, or has waited too long for its answer.
    pub(super) async fn finished(&self) {
        let limit = self.declared().map_or(SCRIPT_LIMIT, |declared| declared.timeout).min(FINISH_LIMIT);
        // Late or not: it is let go of then.
        tokio::time::timeout(limit, self.room.acquire_many(OUTSTANDING_MAX)).await.ok();
    }

    /// Ends its tasks, once they have told what they can, and its process.
    pub(super) async fn stop(&self) {
        told::finish(self).await;
        self.shared.supervisor.remove(&self.id).await;
        self.session.send_replace(None);
    }

    pub(super) fn child_id(&self) -> ChildId {
        self.id.clone()
    }

    pub(super) fn child(&self) -> Option<&Child> {
        self.child.get()
    }

    pub(super) fn declared(&self) -> Option<Arc<Declared>> {
        self.declared.load_full()
    }

    /// Takes what the plugin says of itself as it is known now.
    pub(super) fn adopt(&self) {
        let declared = match (&self.found.kind, &*self.standing.borrow()) {
            (Kind::Program { file, .. }, _) => Declared {
                hooks: file.hooks.clone(),
                mode: file.mode,
                sees: Sees::Sections(file.sections.clone()),
                priority: file.priority,
                timeout: Duration::from_millis(file.timeout_ms),
                on_error: file.on_error,
            },
            (Kind::Script(_), Standing::Ready(ready)) => Declared {
                hooks: once_each(&ready.hooks),
                mode: PluginMode::Mutate,
                sees: Sees::of_script(ready),
                priority: ready.priority,
                // To log is no call, which takes time.
                timeout: if self.grants.borrow().iter().all(|grant| *grant == Grant::Log) { SCRIPT_LIMIT } else { SCRIPT_GRANTED_LIMIT },
                on_error: OnPluginError::Skip,
            },
            // One that was ready once may be again.
            (Kind::Script(_), Standing::Unsaid | Standing::Fatal(_)) => return,
        };
        self.declared.store(Some(Arc::new(declared)));
        self.roster.rebuild();
    }

    pub(super) fn set_grants(&self, grants: Arc<[Grant]>) {
        self.grants.send_replace(grants);
        self.adopt();
    }

    pub(super) fn set_circuit(&self, policy: CircuitPolicy) {
        self.circuits.set_policy(policy);
    }

    /// The hooks at which it is not asked now, or by one call that tries.
    pub(super) fn open_circuits(&self) -> Vec<Open> {
        self.circuits.open()
    }

    /// What its processes have in common.
    pub(super) fn desk(&self) -> Desk {
        let (grants, standing) = (self.grants.subscribe(), self.standing.clone());
        Desk::new(CallerKind::Plugin, self.name.clone(), grants, self.calls.clone(), standing, self.figures.ignored.clone())
    }

    /// Calls one hook, within the plugin's own time and `left`. Its outcome is to be given to
    /// [`Self::settle`] once it was judged.
    pub(super) async fn call(&self, declared: &Declared, ask: &mut Ask, left: Duration) -> (Option<Leave>, Result<Reply, Fault>) {
        let Some(leave) = self.circuits.admit(ask.hook) else { return (None, Err(Fault::Open)) };
        self.figures.calls.fetch_add(1, Ordering::Relaxed);
        let limit = declared.timeout.min(left);
        let deadline = Instant::now() + limit;
        let late = || if declared.timeout <= left { Fault::TimedOut { limit_ms: limit.as_millis() } } else { Fault::OutOfTime };
        let answer = match tokio::time::timeout_at(deadline, self.ready_to_ask()).await {
            Err(_) => Err(late()),
            Ok(Err(fault)) => Err(fault),
            Ok(Ok((_room, session))) => match self.converse(&session, &declared.sees, ask, deadline).await {
                Ok(Ok(reply)) => Ok(reply),
                Ok(Err(Lost::Late)) if left < declared.timeout => Err(late()),
                Ok(Err(Lost::Late)) if session.blame() => {
                    tracing::error!(plugin = %self.name, hook = ask.hook.as_str(), "a plugin does not answer; its process is killed");
                    session.kill("a hook did not answer in time");
                    Err(late())
                }
                Ok(Err(Lost::Gone)) if session.blame() => Err(Fault::Died),
                Ok(Err(Lost::Late | Lost::Gone)) => Err(Fault::TakenAlong("its process ended".to_owned())),
                Err(fault) => Err(fault),
            },
        };
        let answer = answer.and_then(|reply| match reply {
            Reply::Error(message) => Err(Fault::Threw(message)),
            Reply::TakenAlong(message) => Err(Fault::TakenAlong(message)),
            Reply::Nonsense(what) => Err(Fault::Nonsense(what)),
            Reply::Returned(_) => Err(Fault::returned()),
            reply @ (Reply::Continue | Reply::Skip { .. } | Reply::Patch(_)) => Ok(reply),
        });
        (Some(leave), answer)
    }

    /// Room for one more call, and a process to call. One that was just started is waited for, one that
    /// failed is not.
    async fn ready_to_ask(&self) -> Result<(tokio::sync::SemaphorePermit<'_>, Arc<Session>), Fault> {
        let room = self.room.acquire().await.map_err(|_| Fault::Down("it is being stopped".to_owned()))?;
        let mut session = self.session.subscribe();
        let mut status = self.child().map(Child::watch).ok_or_else(|| Fault::Down("it is being started".to_owned()))?;
        loop {
            if let Some(session) = session.borrow_and_update().clone() {
                return Ok((room, session));
            }
            let now = status.borrow_and_update().clone();
            match now.phase {
                Phase::Starting | Phase::Running => {}
                Phase::Stopped | Phase::Stopping | Phase::Backoff | Phase::Errored => {
                    return Err(Fault::Down(now.last_error.unwrap_or_else(|| "it is stopped".to_owned())));
                }
            }
            let changed = tokio::select! {
                changed = session.changed() => changed,
                changed = status.changed() => changed,
            };
            changed.map_err(|_| Fault::Down("it is being stopped".to_owned()))?;
        }
    }

    async fn converse(&self, session: &Session, sees: &Sees, ask: &mut Ask, deadline: Instant) -> Result<Result<Reply, Lost>, Fault> {
        let lent = sees.lent(ask.view.take(), &self.shared.run_dir).await;
        let (view, _files) = lent.map_err(|error| Fault::Unasked(error.to_string()))?;
        let id = self.roster.next_id();
        let line = frame::call(id, ask.hook, view, deadline.saturating_duration_since(Instant::now()), ask.error.take());
        Ok(session.call(id, line, Some(ask.request.clone()), deadline).await)
    }

    /// Counts a call and tells of it, once its answer was judged; `word` is what came of one that went well.
    pub(super) fn settle(&self, ask: &Ask, leave: Option<Leave>, took: Duration, outcome: Result<&'static str, &Fault>) {
        let word = outcome.unwrap_or_else(Fault::word);
        let (plugin, hook) = (self.name.as_ref(), ask.hook.as_str());
        self.shared.metrics.plugin_calls.get_or_create(&PluginResult { plugin: plugin.to_owned(), result: word }).inc();
        if leave.is_some() {
            self.note_time(took);
        }
        let opened = match (leave, outcome) {
            (Some(leave), Ok(_)) => {
                if self.circuits.succeeded(ask.hook, leave) {
                    tracing::info!(plugin, hook, "a plugin answers again");
                }
                false
            }
            (Some(leave), Err(fault)) if fault.counts() => self.circuits.failed(ask.hook, leave, fault.to_string()),
            (Some(_) | None, Err(_)) | (None, Ok(_)) => false,
        };
        let ms = took.as_secs_f64() * 1000.0;
        let (request_id, event_id) = (&ask.request.request_id, &ask.event_id);
        let Err(fault) = outcome else {
            let notice = json!({
                "plugin": plugin, "hook": hook, "request_id": request_id, "event_id": event_id, "ms": ms, "result": word,
            });
            return self.shared.bus.publish(NoticeType::HookFired, notice);
        };
        if *fault == Fault::Open {
            return; // told when it opened
        }
        self.note_error(fault);
        if opened {
            tracing::error!(plugin, hook, request_id, error = %fault, "a plugin failed too often in a row at a hook, which now rests");
        } else if fault.counts() {
            tracing::warn!(plugin, hook, request_id, error = %fault, "a plugin failed");
        }
        let notice = json!({
            "plugin": plugin, "hook": hook, "request_id": request_id, "event_id": event_id, "ms": ms, "error": fault.to_string(),
            "circuit_opened": opened,
        });
        self.shared.bus.publish(NoticeType::HookError, notice);
    }

    /// Something that it was to be told was left out: it is too slow.
    pub(super) fn note_dropped(&self, hook: Hook) {
        let dropped = self.figures.dropped.fetch_add(1, Ordering::Relaxed) + 1;
        self.shared.metrics.plugin_calls.get_or_create(&PluginResult { plugin: self.name.as_ref().to_owned(), result: "dropped" }).inc();
        if dropped.is_power_of_two() {
            tracing::warn!(plugin = %self.name, hook = hook.as_str(), dropped, "a plugin is too slow; it isn't told of everything");
        }
    }

    /// Of a call that was made.
    fn note_time(&self, took: Duration) {
        self.figures.recent.add(took);
        self.figures.took_ns.fetch_add(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
        let label = PluginLabel { plugin: self.name.as_ref().to_owned() };
        self.shared.metrics.plugin_seconds.get_or_create(&label).observe(took.as_secs_f64());
    }

    fn note_error(&self, fault: &Fault) {
        if !fault.counts() {
            return;
        }
        self.figures.errors.fetch_add(1, Ordering::Relaxed);
        *self.figures.last_error.lock().unwrap_or_else(PoisonError::into_inner) = Some(fault.to_string());
    }
}

fn once_each(hooks: &[Hook]) -> Vec<Hook> {
    let mut hooks = hooks.to_vec();
    hooks.sort();
    hooks.dedup();
    hooks
}
