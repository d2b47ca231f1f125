//! The projects in sight (which ones, `sight` says): how each is, who works in it, and when it was used last.
//! Bookkeeping only; what is done about it, [`super::Projects`] says.

use super::coordinate::Coordinate;
use super::prepare::Prepared;
use super::process::{Ground, Post, Program, is_ready};
use crate::clock;
use crate::ledger::nexus::{ProjectRow, Quarantine};
use crate::supervisor::{Child, ChildSpec, Phase, Supervisor};
use nexus_core::config::ProjectProtocol;
use nexus_core::lifecycle::RestartPolicy;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;

/// Projects that may be known to one daemon.
pub(super) const LANES_MAX: usize = 10_000;

/// Where a project is, in the requirement's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProjectState {
    Discovered,
    Preparing,
    NeedsConfiguration,
    /// Prepared, and stopped until there is something to do.
    Ready,
    Starting,
    Running,
    Stopping,
    Backoff,
    Quarantined,
    Archived,
}

impl ProjectState {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Discovered => "discovered",
            Self::Preparing => "preparing",
            Self::NeedsConfiguration => "needs_configuration",
            Self::Ready => "ready",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Stopping => "stopping",
            Self::Backoff => "backoff",
            Self::Quarantined => "quarantined",
            Self::Archived => "archived",
        }
    }

    /// Of a project whose process isn't looked at; `None` for a word that isn't known.
    pub fn of_row(status: &str, is_quarantined: bool) -> Option<Self> {
        if is_quarantined {
            return Some(Self::Quarantined);
        }
        let durable = [Self::Discovered, Self::Preparing, Self::NeedsConfiguration, Self::Ready, Self::Archived];
        durable.into_iter().find(|state| state.as_str() == status)
    }
}

/// What changes about a project from moment to moment.
#[derive(Debug, Default)]
struct View {
    prepared: Option<Arc<Prepared>>,
    is_preparing: bool,
    quarantined: Option<Quarantine>,
    /// It is being put away: nobody takes it into use any more.
    is_leaving: bool,
    /// A person stopped it: it isn't kept warm until an event or a person starts it. The daemon's next start knows nothing of it.
    is_held_down: bool,
    /// Turns that are going on or wait for it.
    in_use: usize,
    /// By the monotonic clock.
    last_used_ms: u64,
    /// When an event was last handed to it, also before this daemon's start. Unix ms.
    last_event_at: Option<i64>,
    /// How the ledger had it when it came in sight.
    before: Option<ProjectState>,
    /// Why it could not be prepared, when it was tried last.
    problem: Option<String>,
    /// How long it took from the receipt of the event that was handed over last until the process was ready.
    receive_to_ready: Option<Duration>,
}

impl View {
    /// As the ledger has it.
    fn of(row: Option<ProjectRow>) -> Self {
        let last_used_ms = clock::mono_ms();
        let Some(row) = row else { return Self { last_used_ms, ..Self::default() } };
        Self {
            before: ProjectState::of_row(&row.status, false),
            quarantined: row.quarantined,
            problem: row.reason,
            last_event_at: row.last_used,
            last_used_ms,
            ..Self::default()
        }
    }

    fn may_warm(&self) -> bool {
        let is_whole = self.prepared.as_ref().is_some_and(|prepared| prepared.missing.is_empty());
        is_whole && self.quarantined.is_none() && !self.is_held_down
    }

    /// Whether somebody has to configure something, as far as the ledger knows.
    fn lacks_configuration(&self) -> bool {
        self.prepared.is_none() && self.before == Some(ProjectState::NeedsConfiguration)
    }
}

/// One project.
#[derive(Debug)]
pub(super) struct Lane {
    pub(super) post: Arc<Post>,
    pub(super) child: Child,
    /// Held while it is prepared or updated: one at a time, the others wait.
    pub(super) preparing: tokio::sync::Mutex<()>,
    /// Held while its process is brought up, stopped or restarted: who was to be handed an event before that is seen
    /// by its use, and who comes later waits.
    pub(super) turning: tokio::sync::Mutex<()>,
    view: Mutex<View>,
    changed: Arc<Notify>,
}

/// As long as it lives its project isn't stopped as idle.
#[derive(Debug)]
pub(super) struct Use {
    lane: Arc<Lane>,
}

impl Drop for Use {
    fn drop(&mut self) {
        let mut view = self.lane.view();
        view.in_use = view.in_use.saturating_sub(1);
        view.last_used_ms = clock::mono_ms();
        drop(view);
        self.lane.changed.notify_one();
    }
}

impl Lane {
    fn view(&self) -> std::sync::MutexGuard<'_, View> {
        self.view.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes it into use; `None` while it is being put away.
    pub(super) fn take(self: &Arc<Self>) -> Option<Use> {
        let mut view = self.view();
        if view.is_leaving {
            return None;
        }
        view.in_use += 1;
        view.last_used_ms = clock::mono_ms();
        drop(view);
        Some(Use { lane: self.clone() })
    }

    /// Lets nobody in any more, if nobody is in it. Whoever asks holds `turning`, until it is gone or [`Self::stay`]s.
    pub(super) fn leave(&self) -> bool {
        let mut view = self.view();
        view.is_leaving = view.in_use == 0;
        view.is_leaving
    }

    pub(super) fn stay(&self) {
        self.view().is_leaving = false;
    }

    pub(super) fn hold_down(&self, is_held_down: bool) {
        self.view().is_held_down = is_held_down;
    }

    pub(super) fn is_held_down(&self) -> bool {
        self.view().is_held_down
    }

    /// Has its process run, unless a person stopped it meanwhile. Whoever asks holds `turning`.
    pub(super) async fn wake(&self) {
        if !self.is_held_down() {
            self.child.wake().await;
        }
    }

    /// Whether it may be brought up without an event, as far as is known here.
    pub(super) fn may_warm(&self) -> bool {
        self.view().may_warm()
    }

    pub(super) fn in_use(&self) -> usize {
        self.view().in_use
    }

    /// Whether somebody works in it or puts it away. Nobody else is to stop it then, or to wait until it can be.
    pub(super) fn is_taken(&self) -> bool {
        let view = self.view();
        view.in_use > 0 || view.is_leaving
    }

    pub(super) fn last_used_ms(&self) -> u64 {
        self.view().last_used_ms
    }

    pub(super) fn last_event_at(&self) -> Option<i64> {
        self.view().last_event_at
    }

    pub(super) fn set_last_event_at(&self, at: i64) {
        self.view().last_event_at = Some(at);
    }

    pub(super) fn before(&self) -> Option<ProjectState> {
        self.view().before
    }

    pub(super) fn problem(&self) -> Option<String> {
        self.view().problem.clone()
    }

    pub(super) fn set_problem(&self, problem: Option<String>) {
        self.view().problem = problem;
    }

    pub(super) fn receive_to_ready(&self) -> Option<Duration> {
        self.view().receive_to_ready
    }

    pub(super) fn set_receive_to_ready(&self, took: Duration) {
        self.view().receive_to_ready = Some(took);
    }

    pub(super) fn ring(&self) {
        self.changed.notify_one();
    }

    pub(super) fn prepared(&self) -> Option<Arc<Prepared>> {
        self.view().prepared.clone()
    }

    /// What the ledger had of it is out of date by that.
    pub(super) fn set_prepared(&self, prepared: Option<Arc<Prepared>>) {
        let mut view = self.view();
        if prepared.is_some() {
            (view.before, view.problem) = (None, None);
        }
        view.prepared = prepared;
    }

    /// Whether the ledger had it as lacking configuration, and nothing newer is known here.
    pub(super) fn lacks_configuration(&self) -> bool {
        self.view().lacks_configuration()
    }

    /// Takes over how the ledger has it, unless it was prepared meanwhile.
    pub(super) fn set_before(&self, row: &ProjectRow) {
        let mut view = self.view();
        if view.prepared.is_none() {
            (view.before, view.problem) = (ProjectState::of_row(&row.status, false), row.reason.clone());
        }
    }

    /// Whether nothing was made of it, nothing of it runs, nobody is in it, and nobody has to look at it.
    pub(super) fn is_unmade(&self) -> bool {
        let view = self.view();
        let is_idle = view.in_use == 0 && !view.is_leaving && !view.is_preparing;
        let is_well = view.quarantined.is_none() && !view.lacks_configuration();
        is_idle && is_well && view.prepared.is_none() && self.child.status().phase == Phase::Stopped
    }

    pub(super) fn set_preparing(&self, is_preparing: bool) {
        self.view().is_preparing = is_preparing;
    }

    pub(super) fn quarantined(&self) -> Option<String> {
        self.view().quarantined.as_ref().map(|quarantine| quarantine.reason.clone())
    }

    /// The mark of the configuration under which it was quarantined, if it is.
    pub(super) fn quarantined_under(&self) -> Option<String> {
        self.view().quarantined.as_ref().map(|quarantine| quarantine.under.clone())
    }

    /// True if that is news.
    pub(super) fn set_quarantined(&self, quarantine: Option<Quarantine>) -> bool {
        let mut view = self.view();
        let is_news = view.quarantined.is_some() != quarantine.is_some();
        view.quarantined = quarantine;
        is_news
    }

    /// Whether it has a process, or is about to have one.
    pub(super) fn is_up(&self) -> bool {
        match self.child.status().phase {
            Phase::Starting | Phase::Running | Phase::Stopping | Phase::Backoff => true,
            Phase::Stopped | Phase::Errored => false,
        }
    }

    pub(super) fn state(&self) -> ProjectState {
        let view = self.view();
        let is_incomplete = view.prepared.as_ref().is_some_and(|prepared| !prepared.missing.is_empty());
        if view.quarantined.is_some() {
            return ProjectState::Quarantined;
        }
        if view.is_preparing {
            return ProjectState::Preparing;
        }
        match self.child.status().phase {
            Phase::Stopped if view.lacks_configuration() => ProjectState::NeedsConfiguration,
            Phase::Stopped if view.prepared.is_none() => ProjectState::Discovered,
            Phase::Stopped if is_incomplete => ProjectState::NeedsConfiguration,
            Phase::Stopped => ProjectState::Ready,
            Phase::Starting => ProjectState::Starting,
            Phase::Running if self.is_ready() => ProjectState::Running,
            Phase::Running => ProjectState::Starting,
            Phase::Stopping => ProjectState::Stopping,
            Phase::Backoff => ProjectState::Backoff,
            Phase::Errored => ProjectState::Quarantined,
        }
    }

    /// Whether its process takes events; one that speaks no protocol is believed to.
    fn is_ready(&self) -> bool {
        let speaks = self.post.plan.load().as_ref().is_none_or(|plan| plan.protocol == ProjectProtocol::Jsonl);
        !speaks || is_ready(&self.post.session.borrow())
    }
}

/// All of them. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Lanes {
    lanes: Arc<Mutex<HashMap<Coordinate, Arc<Lane>>>>,
    /// Rings when one was used, or stopped.
    pub(super) changed: Arc<Notify>,
}

impl Default for Lanes {
    fn default() -> Self {
        Self { lanes: Arc::default(), changed: Arc::new(Notify::new()) }
    }
}

impl Lanes {
    pub(super) fn get(&self, project: &Coordinate) -> Option<Arc<Lane>> {
        self.lock().get(project).cloned()
    }

    /// The project's lane, a new one if there is none; `row` is what the ledger knows of it. `None` when there are too many.
    pub(super) fn open(
        &self,
        project: &Coordinate,
        supervisor: &Supervisor,
        ground: &Ground,
        policy: RestartPolicy,
        row: Option<ProjectRow>,
    ) -> Option<Arc<Lane>> {
        let mut lanes = self.lock();
        if let Some(lane) = lanes.get(project) {
            return Some(lane.clone());
        }
        if lanes.len() >= LANES_MAX {
            return None;
        }
        let post = Arc::new(Post::new(project.clone(), ground.clone()));
        let spec = ChildSpec { id: post.child_id(), policy, program: Arc::new(Program(post.clone())) };
        let child = supervisor.add(spec);
        let view = Mutex::new(View::of(row));
        let (preparing, turning) = (tokio::sync::Mutex::new(()), tokio::sync::Mutex::new(()));
        let lane = Arc::new(Lane { post, child, preparing, turning, view, changed: self.changed.clone() });
        lanes.insert(project.clone(), lane.clone());
        Some(lane)
    }

    pub(super) fn remove(&self, project: &Coordinate) -> Option<Arc<Lane>> {
        self.lock().remove(project)
    }

    pub(super) fn all(&self) -> Vec<Arc<Lane>> {
        self.lock().values().cloned().collect()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Coordinate, Arc<Lane>>> {
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn what_a_person_stopped_is_not_kept_warm() {
        let coordinate = Coordinate::parse(&format!("31933:{}:demo", "a".repeat(64))).unwrap();
        let prepared = Prepared {
            slug: coordinate.slug(),
            coordinate,
            path: "/nowhere".into(),
            title: "Demo".to_owned(),
            agents: Vec::new(),
            mcp: Vec::new(),
            missing: Vec::new(),
            definition_id: String::new(),
            problems: Vec::new(),
        };
        let view = View { prepared: Some(Arc::new(prepared)), ..View::default() };
        assert!(view.may_warm());
        assert!(!View { is_held_down: true, ..view }.may_warm());
        assert!(!View::default().may_warm(), "nobody prepared it");
    }
}
