//! Projects: definitions of Nostr made into directories with agents, each run by a process of its own while there
//! is something to do. This is the handle by which events are handed to them and people say what is to become of
//! them. It decides nothing about an event, and publishes nothing by itself.
//!
//! Theory of operation: an event of a project is a request like any other, and the pipeline runs one turn per
//! session: that is the project's queue. A turn brings the project up, prepared and running, hands the event over
//! and follows it to its end. The supervisor keeps the process; what is idle is stopped, and comes up with the next
//! event.

pub mod activate;
pub mod approvals;
pub mod coordinate;
pub mod definition;
pub mod files;
pub mod gc;
pub mod git;
mod hearing;
mod idle;
mod lanes;
mod notes;
pub mod prepare;
pub mod process;
pub mod protocol;
mod publish;
pub mod readiness;
mod remote;
mod report;
mod run;
pub mod secrets;
mod session;
mod settings;
mod sight;
pub(crate) mod slug;
mod tree;
mod upkeep;
mod verbs;
pub mod waits;

use crate::agent::{AgentError, Finished, Sink, StopReason, Turn, Usage};
use crate::bus::Bus;
use crate::clock;
use crate::error_text::describe;
use crate::ledger::Ledgers;
use crate::ledger::events::by_id;
use crate::ledger::nexus::{self, Awaited, ProjectRow, Quarantine, QuarantineProject, SettleProjects, UseProject};
use crate::metrics::Metrics;
use crate::nostr::{FetchError, Nostr};
use crate::supervisor::{Phase, Supervisor};
use activate::Roster;
use arc_swap::ArcSwap;
use coordinate::Coordinate;
use idle::least_recently_used;
use lanes::{Lane, Lanes, Use};
use nexus_core::config::{Config, ProjectProtocol};
use nexus_core::notice::NoticeType;
use prepare::{PrepareError, Prepared, Preparer, Progress};
use process::Ground;
use protocol::EventFrame;
use run::Fault;
use serde_json::json;
use session::{Session, Standing};
use settings::Settings;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

pub use lanes::ProjectState;
pub use notes::{LINES_MAX, Line};
pub use report::ProjectStatus;
pub use settings::Places;
pub use verbs::{ProjectVerb, VerbError};

/// The event that ends what is going on in a project; it is answered by that.
pub const STOP_KIND: u16 = 24_134;
/// How long one look for room waits for a project that becomes idle, before it looks again.
const ROOM_LOOK: Duration = Duration::from_secs(1);
/// How long a process that was asked to end may take before it is told by TERM.
const END_PATIENCE: Duration = Duration::from_secs(3);

/// What projects need of the daemon.
#[derive(Debug)]
pub struct Parts {
    pub supervisor: Supervisor,
    pub preparer: Preparer,
    pub nostr: Nostr,
    pub ledgers: Ledgers,
    pub bus: Bus,
    pub metrics: Metrics,
    pub roster: Roster,
    pub places: Places,
}

/// All projects. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Projects {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    supervisor: Supervisor,
    ledgers: Ledgers,
    ground: Ground,
    roster: Roster,
    settings: ArcSwap<Settings>,
    lanes: Lanes,
    /// Held from the count of those that run to the start of one more.
    starting: tokio::sync::Mutex<()>,
    /// Events that wait, by project, as last counted.
    queues: ArcSwap<HashMap<String, u64>>,
}

impl Projects {
    /// Knows none yet; see [`Self::begin`].
    pub fn new(parts: Parts, config: &Config) -> Self {
        let Parts { supervisor, preparer, nostr, ledgers, bus, metrics, roster, places } = parts;
        let settings = Settings::new(config, places);
        let run_dir = settings.places().run_dir.clone();
        let inner = Inner {
            supervisor,
            ledgers,
            ground: Ground { preparer, nostr, bus, metrics, run_dir },
            roster,
            lanes: Lanes::default(),
            starting: tokio::sync::Mutex::new(()),
            queues: ArcSwap::default(),
            settings: ArcSwap::from_pointee(settings),
        };
        Self { inner: Arc::new(inner) }
    }

    /// Takes in what the ledger knows: those projects are activated whoever their author is, and their agents spoken to.
    /// What was put away is no project any more until it is prepared again. Those that somebody should look at are in sight.
    ///
    /// # Errors
    /// When it can't be read.
    pub async fn begin(&self) -> Result<(), crate::ledger::ReadError> {
        let settled = SettleProjects { reason: "the daemon ended while it was being prepared".to_owned(), at: clock::wall_ms() };
        if let Err(error) = self.inner.ledgers.nexus.writer.write(settled).await {
            tracing::warn!(%error, "projects that a daemon left half prepared are shown as being prepared");
        }
        for row in self.rows().await?.into_iter().filter(|row| row.status != "archived") {
            let Ok(project) = Coordinate::parse(&row.coordinate) else { continue };
            if row.prepared_at.is_some() {
                self.inner.roster.set(project.clone(), row.agents.clone());
                row.definition_id.iter().for_each(|id| self.inner.roster.set_definition(&project, id));
            }
            self.look_again(&project, row).await;
        }
        Ok(())
    }

    async fn rows(&self) -> Result<Vec<ProjectRow>, crate::ledger::ReadError> {
        self.inner.ledgers.nexus.readers.read(nexus::projects).await
    }

    /// Whether there is no project here that an event was for.
    pub fn has_none(&self) -> bool {
        self.inner.lanes.all().is_empty()
    }

    /// Whether a project's process is there; it keeps nothing alive.
    pub fn up_by_coordinate(&self) -> impl Fn(&Coordinate) -> bool + Send + Sync + use<> {
        let inner = Arc::downgrade(&self.inner);
        move |project| inner.upgrade().and_then(|inner| inner.lanes.get(project)).is_some_and(|lane| lane.is_up())
    }

    /// Which agent of the configuration does a project's turns; none for one that a program of the user's runs.
    pub(crate) fn agent_of(&self, project: &Coordinate) -> Option<String> {
        let settings = self.inner.settings.load();
        settings.is_ours(project).then(|| settings.agent_of(project))
    }

    /// Hands the event of a turn to the process of its project, which is prepared and started as need be, and
    /// follows it to its end. Of a turn that is dropped the process is restarted: it can't be told to let go.
    ///
    /// # Errors
    /// [`AgentError::Project`].
    pub async fn hand_over(&self, project: &Coordinate, turn: &Turn, sink: &Sink) -> Result<Finished, AgentError> {
        let Some(asked) = &turn.project else {
            let problem = "the event is not one of a project".to_owned();
            return Err(AgentError::Config { agent: turn.agent.clone(), problem });
        };
        self.handed(project, turn, sink).await.map_err(|Fault { problem, retryable, awaits, told, .. }| {
            tracing::error!(error = problem, event = asked.event.id, project = %project, "Error handling event");
            AgentError::Project { project: project.slug(), problem, retryable, awaits, told, partial: String::new() }
        })
    }

    async fn handed(&self, project: &Coordinate, turn: &Turn, sink: &Sink) -> Result<Finished, Fault> {
        let Some(asked) = &turn.project else { return Err(Fault::last("the event is not one of a project")) };
        let (lane, _use) = self.enter(project).await?;
        if asked.event.kind == STOP_KIND {
            return Ok(nothing_to_say()); // what it was to end, its arrival has ended
        }
        if let Some(reason) = lane.quarantined() {
            return Err(quarantined(&lane, &reason));
        }
        lane.hold_down(false);
        self.prepare(&lane).await?;
        self.note_use(&lane).await;
        self.bring_up(&lane).await?;
        if !asked.is_asked {
            return Ok(nothing_to_say()); // it was to start the project
        }
        let plan = lane.post.plan.load_full();
        if plan.is_some_and(|plan| plan.protocol == ProjectProtocol::None) {
            return Ok(nothing_to_say()); // it finds its events itself
        }
        let (session, received_at) = tokio::join!(self.ready(&lane), self.received_at(&asked.id));
        let session = session?;
        if let Some(received_at) = received_at {
            let took = Duration::from_millis(clock::wall_ms().saturating_sub(received_at).max(0).unsigned_abs());
            lane.set_receive_to_ready(took);
            self.inner.ground.metrics.project_receive_to_ready.observe(took.as_secs_f64());
        }
        let frame = EventFrame {
            id: asked.id.clone(),
            event: protocol::Received { content: turn.content.clone(), ..asked.event.clone() },
            sender: turn.sender.clone(),
            history: turn.history.clone(),
            permissions: turn.permissions.clone(),
        };
        let limit = self.inner.settings.load().turn_limit;
        let mut handing = Handing { lane: &lane, session: &session, leaves_work: true };
        let ended = run::hand_over(&session, frame, limit, sink).await;
        handing.leaves_work = ended.as_ref().is_err_and(|fault| fault.leaves_work);
        ended
    }

    /// When an event was taken in, in Unix ms; nothing where that can't be read.
    async fn received_at(&self, event_id: &str) -> Option<i64> {
        let id = event_id.to_owned();
        match self.inner.ledgers.events.readers.read(move |connection| by_id(connection, &id)).await {
            Ok(event) => event.map(|event| event.received_at),
            Err(error) => {
                tracing::debug!(%error, event = event_id, "how long its project took until it was ready is not known");
                None
            }
        }
    }

    /// The project's lane, in use. One that is being put away is waited for: the next one is another.
    async fn enter(&self, project: &Coordinate) -> Result<(Arc<Lane>, Use), Fault> {
        loop {
            let lane = self.lane(project).await?;
            if let Some(in_use) = lane.take() {
                return Ok((lane, in_use));
            }
            drop(lane.turning.lock().await);
        }
    }

    /// Has it prepared, unless it is. A second event waits here and finds it done.
    async fn prepare(&self, lane: &Arc<Lane>) -> Result<(), Fault> {
        let _one = lane.preparing.lock().await;
        // One that is about to be started is looked at anew: something may have been approved meanwhile.
        if lane.is_up() && lane.prepared().is_some_and(|prepared| prepared.missing.is_empty()) {
            return Ok(());
        }
        let preparing = Preparing::begin(lane);
        let progress = Progress::new(self.inner.ground.bus.clone(), &lane.post.coordinate);
        let prepared = self.inner.ground.preparer.ensure(&lane.post.coordinate, &progress).await;
        drop(preparing);
        let fault = |error: PrepareError| Fault {
            retryable: error.retryable(),
            awaits: error.awaits(),
            told: error.told(),
            ..Fault::last(describe(&error))
        };
        lane.set_problem(prepared.as_ref().err().map(unprepared));
        let prepared = prepared.map_err(fault)?;
        let missing = prepared.missing.join("; ");
        self.adopt(lane, prepared).await;
        let is_ours = self.inner.settings.load().is_ours(&lane.post.coordinate);
        if !missing.is_empty() && is_ours {
            let awaits = Some(Awaited::Configuration);
            return Err(Fault { awaits, ..Fault::last(format!("it needs configuration: {missing}")) });
        }
        Ok(())
    }

    /// Takes over how a project was prepared. Another definition ends its quarantine.
    async fn adopt(&self, lane: &Arc<Lane>, prepared: Prepared) {
        let before = lane.prepared();
        let is_other = before.is_some_and(|before| before.definition_id != prepared.definition_id);
        lane.post.plan.store(Some(Arc::new(self.inner.settings.load().plan(&prepared))));
        lane.set_prepared(Some(Arc::new(prepared)));
        if is_other {
            self.release(lane).await;
        }
    }

    async fn note_use(&self, lane: &Lane) {
        let used = UseProject { coordinate: lane.post.coordinate.to_string(), at: clock::wall_ms() };
        lane.set_last_event_at(used.at);
        if let Err(error) = self.inner.ledgers.nexus.writer.write(used).await {
            tracing::warn!(project = %lane.post.coordinate, %error, "that a project was used is not recorded");
        }
    }

    /// Sees to it that its process is wanted, with the plan that it has now.
    async fn bring_up(&self, lane: &Arc<Lane>) -> Result<(), Fault> {
        let turning = lane.turning.lock().await;
        if lane.is_up() && lane.post.is_stale() && lane.in_use() <= 1 {
            ask_to_end(lane).await;
            lane.child.restart().await;
            return Ok(());
        }
        if lane.is_up() {
            lane.wake().await;
            return Ok(());
        }
        drop(turning);
        let _one = self.inner.starting.lock().await;
        self.make_room(lane).await;
        let _turning = lane.turning.lock().await;
        lane.wake().await;
        Ok(())
    }

    /// Waits until one more may run, having the one stopped that was used least recently.
    async fn make_room(&self, lane: &Arc<Lane>) {
        loop {
            let seen = self.seen();
            let others: Vec<idle::Seen> = seen.into_iter().filter(|one| one.project != lane.post.coordinate).collect();
            if others.iter().filter(|one| one.is_up).count() < self.inner.settings.load().running_max {
                return;
            }
            match least_recently_used(&others).and_then(|project| self.inner.lanes.get(&project)) {
                Some(idle) => self.rest(&idle).await,
                // All that run are at work.
                None => drop(tokio::time::timeout(ROOM_LOOK, self.inner.lanes.changed.notified()).await),
            }
        }
    }

    /// Stops a project that nobody uses, until there is something to do.
    async fn rest(&self, lane: &Arc<Lane>) {
        let _turning = lane.turning.lock().await;
        if lane.in_use() > 0 {
            return;
        }
        self.stop_process(lane).await;
        lane.ring();
    }

    /// Asks the process to end, then tells it to.
    async fn stop_process(&self, lane: &Lane) {
        ask_to_end(lane).await;
        lane.child.stop().await;
    }

    /// Waits for a process that takes events, over all the restarts that it is allowed.
    async fn ready(&self, lane: &Arc<Lane>) -> Result<Arc<Session>, Fault> {
        let patience = self.inner.settings.load().ready_patience(&lane.post.coordinate);
        let deadline = tokio::time::Instant::now() + patience;
        let (mut sessions, mut status) = (lane.post.session.subscribe(), lane.child.watch());
        let mut why = "its process ended before it was ready".to_owned();
        loop {
            let session = sessions.borrow_and_update().clone();
            let is_ready = match &session {
                Some(session) => session.is_ready().await,
                None => false,
            };
            let (phase, last_error) = {
                let status = status.borrow_and_update();
                (status.phase, status.last_error.clone())
            };
            match session {
                // A process may be ready before its child's task tells of it.
                Some(session) if is_ready && phase == Phase::Running => return Ok(session),
                Some(session) if !is_ready => why = session.why(),
                Some(_) | None => {}
            }
            match phase {
                Phase::Errored => {
                    self.quarantine(lane).await;
                    return Err(quarantined(lane, &lane.quarantined().or(last_error).unwrap_or(why)));
                }
                Phase::Stopped => return Err(Fault::passing(why)),
                Phase::Starting | Phase::Running | Phase::Stopping | Phase::Backoff => {}
            }
            tokio::select! {
                changed = sessions.changed() => drop(changed), // the post has the sender
                changed = status.changed() => {
                    if changed.is_err() {
                        return Err(Fault::last("it was removed"));
                    }
                }
                () = tokio::time::sleep_until(deadline) => return Err(Fault::passing(format!("it was not ready in time: {why}"))),
            }
        }
    }

    /// Keeps in the ledger that a project crashed too often.
    async fn quarantine(&self, lane: &Lane) {
        let status = lane.child.status();
        let reason = lane.post.why().or(status.last_error).unwrap_or_else(|| "it crashed too often".to_owned());
        let quarantine = Quarantine { reason: reason.clone(), under: self.inner.settings.load().mark(&lane.post.coordinate) };
        if status.phase != Phase::Errored || !lane.set_quarantined(Some(quarantine.clone())) {
            return;
        }
        let (project, slug) = (lane.post.coordinate.to_string(), &lane.post.slug);
        tracing::error!(project, reason, "project quarantined: `nexus project release {slug}` lets it run again");
        let kept = QuarantineProject { coordinate: project.clone(), quarantine: Some(quarantine), at: clock::wall_ms() };
        if let Err(error) = self.inner.ledgers.nexus.writer.write(kept).await {
            tracing::warn!(project, %error, "the quarantine of a project is not recorded; it ends with this daemon");
        }
        self.inner.ground.bus.publish(NoticeType::ProjectQuarantined, json!({ "project": project, "slug": slug, "reason": reason }));
    }

    /// Ends a quarantine, if there is one: the next event starts the project, with a clean sheet.
    async fn release(&self, lane: &Lane) {
        // First: who finds it errored quarantines it.
        if lane.child.status().phase == Phase::Errored {
            lane.child.stop().await;
        }
        if lane.set_quarantined(None) {
            tracing::info!(project = %lane.post.coordinate, "project released");
            let released = QuarantineProject { coordinate: lane.post.coordinate.to_string(), quarantine: None, at: clock::wall_ms() };
            if let Err(error) = self.inner.ledgers.nexus.writer.write(released).await {
                tracing::warn!(project = %lane.post.coordinate, %error, "the release of a project is not recorded");
            }
        }
    }
}

/// Asks the process to end by itself, and waits until it has, for as long as it may take. Nobody hands it anything any more.
async fn ask_to_end(lane: &Lane) {
    let Some(session) = lane.post.leave_session() else { return };
    session.ask_to_end();
    let mut status = lane.child.watch();
    let ended = status.wait_for(|status| status.pid.is_none());
    // Whoever asked tells it to end next, whether it did or not.
    drop(tokio::time::timeout(END_PATIENCE, ended).await);
}

fn nothing_to_say() -> Finished {
    Finished { content: String::new(), usage: Usage::default(), stop_reason: StopReason::EndTurn, model: None, provider: None }
}

/// Why a project could not be prepared, for people.
fn unprepared(error: &PrepareError) -> String {
    if let PrepareError::Fetch { source: FetchError::NotFound { silent, .. }, .. } = error
        && silent.is_empty()
    {
        return "no relay has its definition".to_owned();
    }
    describe(error)
}

fn quarantined(lane: &Lane, reason: &str) -> Fault {
    Fault::last(format!("it is quarantined ({reason}); `nexus project release {}` lets it run again", lane.post.slug))
}

/// Says that a project is being prepared, however that ends.
struct Preparing<'a>(&'a Lane);

impl<'a> Preparing<'a> {
    fn begin(lane: &'a Lane) -> Self {
        lane.set_preparing(true);
        Self(lane)
    }
}

impl Drop for Preparing<'_> {
    fn drop(&mut self) {
        self.0.set_preparing(false);
    }
}

/// An event that a process has. One that is given up leaves the process at work on it, for nobody.
struct Handing<'a> {
    lane: &'a Arc<Lane>,
    session: &'a Arc<Session>,
    leaves_work: bool,
}

impl Drop for Handing<'_> {
    fn drop(&mut self) {
        if !self.leaves_work || self.session.standing() != Standing::Ready {
            return;
        }
        // At once: the next event must not go to a process that is about to be restarted.
        self.lane.post.leave_session();
        let lane = self.lane.clone();
        // Without a runtime the daemon is ending, and its children with it.
        if tokio::runtime::Handle::try_current().is_ok() {
            crate::watch::helper("project.restart", async move {
                let _turning = lane.turning.lock().await;
                // Whoever stopped it meanwhile wants it down.
                if lane.is_up() {
                    lane.child.restart().await;
                }
            });
        }
    }
}
