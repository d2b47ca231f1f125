//! What is done about projects without an event: the idle are stopped, the warm kept running, quarantines kept, new
//! definitions followed, a new configuration applied, and all of them ended with the daemon.

use super::coordinate::Coordinate;
use super::gc::Archived;
use super::idle::upkeep;
use super::lanes::Lane;
use super::prepare::{PrepareError, Prepared, readiness_of};
use super::settings::Settings;
use super::sight::Leaving;
use super::{Fault, Projects, ask_to_end};
use crate::clock;
use crate::error_text::describe;
use crate::ledger::nexus::{self, MarkProject, ProjectRow, open_by_conversation};
use crate::supervisor::Phase;
use crate::watch::Watch;
use futures_util::future::join_all;
use nexus_core::config::Config;
use nexus_core::notice::NoticeType;
use serde_json::json;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::broadcast::error::RecvError;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// How often is looked at who is idle and who has crashed too often.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// How often is looked at whether more are to be kept warm than before.
const WARM_LOOK_EVERY: Duration = Duration::from_secs(5);
/// How long a look at what a project lacks waits for a preparation that is under way.
const PREPARING_PATIENCE: Duration = Duration::from_secs(3);
/// Looks between two counts of what waits.
const COUNT_EVERY: u32 = 4;
/// Projects that are brought up at once without an event.
const WARMING_MAX: usize = 4;

impl Projects {
    /// Looks after projects until `stop`.
    pub fn keep(&self, watch_over: &Watch, stop: &CancellationToken) -> Vec<JoinHandle<()>> {
        let (looking, until) = (self.clone(), stop.clone());
        let (following, stop_following) = (self.clone(), stop.clone());
        vec![
            watch_over.keep("projects", stop, move || looking.clone().look_after(until.clone())),
            watch_over.keep("project definitions", stop, move || following.clone().follow_definitions(stop_following.clone())),
        ]
    }

    async fn look_after(self, stop: CancellationToken) {
        // A project that takes its time to be prepared doesn't keep others from being stopped.
        tokio::select! {
            _ = async { tokio::join!(self.keep_warm(), self.look_around()) } => {}
            () = stop.cancelled() => {}
        }
    }

    /// Never returns.
    async fn look_around(&self) {
        let mut tick = tokio::time::interval(LOOK_EVERY);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut looks = 0_u32;
        loop {
            crate::torture::point("task.projects");
            tick.tick().await;
            if looks > 0 && self.has_none() && self.inner.queues.load().is_empty() {
                continue; // who has no project pays for none
            }
            self.look().await;
            if looks.is_multiple_of(COUNT_EVERY) {
                self.count_queues().await;
                self.follow_rows().await;
            }
            looks = looks.wrapping_add(1);
        }
    }

    /// Brings up those that were used last before the daemon was started, and again when a reload has more of them kept warm: who is
    /// not in sight nobody else brings up. Never returns.
    async fn keep_warm(&self) {
        let mut tick = tokio::time::interval(WARM_LOOK_EVERY);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut before = 0;
        loop {
            tick.tick().await;
            let warm = self.inner.settings.load().warm;
            if warm > before {
                self.warm_up(warm).await;
            }
            before = warm;
        }
    }

    async fn warm_up(&self, warm: usize) {
        let rows = self.rows().await.unwrap_or_else(|error| {
            tracing::warn!(%error, "projects can't be read; none is kept warm until it is used");
            Vec::new()
        });
        let used = rows.into_iter().filter(|row| row.last_used.is_some() && row.quarantined.is_none() && row.status != "archived");
        let used = used.filter_map(|row| Coordinate::parse(&row.coordinate).ok());
        let is_held_down = |project: &Coordinate| self.inner.lanes.get(project).is_some_and(|lane| lane.is_held_down());
        let used: Vec<Coordinate> = used.filter(|project| !is_held_down(project)).take(warm).collect();
        // One that takes its time to be prepared doesn't hold up those beside it.
        for some in used.chunks(WARMING_MAX) {
            join_all(some.iter().map(|project| self.warm_used(project))).await;
        }
    }

    async fn warm_used(&self, project: &Coordinate) {
        match self.lane(project).await {
            Ok(lane) => self.warm(&lane).await,
            Err(Fault { problem, .. }) => tracing::warn!(project = %project, error = problem, "a project is not kept warm"),
        }
    }

    async fn warm(&self, lane: &Arc<Lane>) {
        // One that is put away is brought back by an event, not by this.
        let Some(_use) = lane.take() else { return };
        let up = async {
            self.prepare(lane).await?;
            self.bring_up(lane).await
        };
        if let Err(Fault { problem, .. }) = up.await {
            tracing::warn!(project = %lane.post.coordinate, error = problem, "a project is not kept warm");
        }
    }

    async fn look(&self) {
        // One that takes its time to end keeps none of the others from it.
        let looks = self.inner.lanes.all().into_iter().map(|lane| async move { self.look_at(&lane).await });
        join_all(looks).await;
        self.let_go_of_unmade().await;
        let (warm, running_max) = {
            let settings = self.inner.settings.load();
            (settings.warm, settings.running_max)
        };
        let due = upkeep(&self.seen(), warm, running_max);
        let idle = due.stop.into_iter().filter_map(|project| self.inner.lanes.get(&project));
        let stops = idle.map(|lane| async move {
            tracing::info!(project = %lane.post.coordinate, "idle project stopped");
            self.rest(&lane).await;
        });
        join_all(stops).await;
        for some in due.start.chunks(WARMING_MAX) {
            // None for one that was put away while others were brought up.
            let lanes = some.iter().filter_map(|project| self.inner.lanes.get(project));
            join_all(lanes.map(|lane| async move { self.warm(&lane).await })).await;
        }
    }

    async fn look_at(&self, lane: &Arc<Lane>) {
        if lane.child.status().phase == Phase::Errored && lane.quarantined().is_none() {
            self.quarantine(lane).await;
        }
        let is_free = lane.is_up() && !lane.is_taken();
        if is_free && lane.prepared().is_none() {
            self.rest(lane).await;
        } else if is_free && lane.post.is_stale() {
            self.renew(lane).await;
        }
    }

    /// Another process for one whose definition or configuration changed.
    async fn renew(&self, lane: &Arc<Lane>) {
        let _turning = lane.turning.lock().await;
        if lane.in_use() > 0 || !lane.is_up() {
            return;
        }
        tracing::info!(project = %lane.post.coordinate, "project restarted: its definition or configuration changed");
        ask_to_end(lane).await;
        lane.child.restart().await;
    }

    pub(super) async fn count_queues(&self) {
        match self.inner.ledgers.nexus.readers.read(|connection| open_by_conversation(connection, crate::nostr::ADAPTER)).await {
            Ok(counts) => {
                let mut queues: HashMap<String, u64> = HashMap::new();
                for (conversation, count) in counts {
                    if let Some(project) = Self::project_of_conversation(&conversation) {
                        *queues.entry(project.to_string()).or_insert(0) += count;
                    }
                }
                self.inner.queues.store(Arc::new(queues));
            }
            Err(error) => tracing::debug!(%error, "what waits for projects can't be counted"),
        }
    }

    async fn follow_definitions(self, stop: CancellationToken) {
        // One that takes its time to be looked up doesn't hold the daemon's stop.
        tokio::select! {
            () = self.follow_all() => {}
            () = stop.cancelled() => {}
        }
    }

    /// Never returns.
    async fn follow_all(&self) {
        let mut changes = self.inner.ground.nostr.redefined();
        let mut decisions = self.inner.ground.preparer.decided();
        loop {
            crate::torture::point("task.project definitions");
            let change = tokio::select! {
                change = changes.recv() => change,
                change = decisions.recv() => change,
            };
            match change {
                Ok(project) => self.redefined(&project).await,
                // Too many at once: whoever is known here is looked at.
                Err(RecvError::Lagged(_)) => {
                    for lane in self.inner.lanes.all() {
                        self.redefined(&lane.post.coordinate).await;
                    }
                }
                Err(RecvError::Closed) => return std::future::pending().await,
            }
        }
    }

    /// A newer definition: of a project that was prepared it is followed, of another one it is only known.
    async fn redefined(&self, project: &Coordinate) {
        if !self.inner.roster.knows(project) && self.inner.lanes.get(project).is_none() {
            self.inner.ground.bus.publish(NoticeType::ProjectDiscovered, json!({ "project": project.to_string(), "slug": project.slug() }));
            return;
        }
        let lane = match self.lane(project).await {
            Ok(lane) => lane,
            Err(Fault { problem, .. }) => return tracing::warn!(project = %project, error = problem, "a new definition is not followed"),
        };
        let one = lane.preparing.lock().await;
        if self.inner.lanes.get(project).is_none_or(|known| !Arc::ptr_eq(&known, &lane)) {
            return; // it was put away meanwhile: a definition alone doesn't bring it back
        }
        match self.inner.ground.preparer.update(project).await {
            Ok(prepared) => {
                self.adopt(&lane, prepared).await;
                self.follow_ledger(&lane).await;
            }
            Err(PrepareError::Deleted { .. }) => {
                tracing::info!(project = %project, "the author deleted the project's definition: nothing starts it until there is another");
                // What is going on ends first; the next look stops its process.
                lane.set_prepared(None);
            }
            Err(error) => {
                tracing::warn!(project = %project, error = %describe(&error), "a new definition is not followed; the project goes on as it was");
            }
        }
        drop(one);
    }

    /// A new definition ends a quarantine in the ledger, with the commit that takes it in.
    async fn follow_ledger(&self, lane: &Lane) {
        let name = lane.post.coordinate.to_string();
        let row = self.inner.ledgers.nexus.readers.read(move |connection| nexus::project(connection, &name)).await;
        if row.is_ok_and(|row| row.is_some_and(|row| row.quarantined.is_none())) {
            self.release(lane).await;
        }
    }

    /// Takes over a new configuration. What is at work goes on as it is; the next event finds it as it is to be.
    pub async fn apply(&self, config: &Config) {
        let places = self.inner.settings.load().places().clone();
        let settings = Arc::new(Settings::new(config, places));
        self.inner.settings.store(settings.clone());
        for lane in self.inner.lanes.all() {
            lane.child.set_policy(settings.policy_of(&lane.post.coordinate)).await;
            self.heed(&lane).await;
            let Some(prepared) = lane.prepared() else { continue };
            let plan = Arc::new(settings.plan(&prepared));
            let is_other = lane.post.plan.load().as_ref().is_none_or(|known| **known != *plan);
            lane.post.plan.store(Some(plan));
            if is_other {
                self.release(&lane).await;
            }
        }
        self.reconsider().await;
    }

    /// What lacked something when it was looked at last is looked at once more, not only with its next event.
    pub async fn reconsider(&self) {
        let rows = self.rows().await.unwrap_or_else(|error| {
            tracing::warn!(%error, "projects can't be read; what they lack is looked at with their next events");
            Vec::new()
        });
        for row in rows.iter().filter(|row| row.status == "needs_configuration") {
            let Ok(project) = Coordinate::parse(&row.coordinate) else { continue };
            let lane = self.inner.lanes.get(&project);
            // Whoever prepares it or puts it away tells how it is at the end of that, but by the configuration of its beginning: what
            // takes no longer than this is waited for.
            let _one = match &lane {
                Some(lane) => match tokio::time::timeout(PREPARING_PATIENCE, lane.preparing.lock()).await {
                    Ok(one) => Some(one),
                    Err(_) => continue,
                },
                None => None,
            };
            match self.inner.ground.preparer.look(row).await {
                Ok((_, prepared)) => self.reconsidered(row, lane.as_ref(), prepared).await,
                Err(error) => self.unreadable(row, &error).await,
            }
        }
        self.follow_rows().await;
    }

    /// Told once for as long as it is so: the ledger has it then.
    async fn unreadable(&self, row: &ProjectRow, error: &PrepareError) {
        let reason = format!("what it lacks can't be looked at: {}", describe(error));
        if row.reason.as_ref() == Some(&reason) {
            return;
        }
        tracing::warn!(project = row.coordinate, reason, "a project can't be looked at");
        let (coordinate, status) = (row.coordinate.clone(), row.status.clone());
        let mark = MarkProject { coordinate, status, reason: Some(reason), at: clock::wall_ms() };
        if let Err(error) = self.inner.ledgers.nexus.writer.write(mark).await {
            tracing::warn!(%error, project = row.coordinate, "that a project can't be looked at was not put down");
        }
    }

    async fn reconsidered(&self, row: &ProjectRow, lane: Option<&Arc<Lane>>, prepared: Prepared) {
        let (status, reason) = readiness_of(&prepared);
        if row.status != status || row.reason != reason {
            let mark = MarkProject { coordinate: row.coordinate.clone(), status: status.to_owned(), reason, at: clock::wall_ms() };
            if let Err(error) = self.inner.ledgers.nexus.writer.write(mark).await {
                tracing::warn!(%error, project = row.coordinate, "what a project lacks was not put down");
            }
        }
        // One that has no definition any more stays without.
        if let Some(lane) = lane.filter(|lane| lane.prepared().is_some()) {
            self.adopt(lane, prepared).await;
        }
    }

    /// Ends all preparations and processes; returns once they are gone.
    pub async fn shutdown(&self) {
        self.inner.ground.preparer.shutdown().await;
        let ends = self.inner.lanes.all().into_iter().map(|lane| async move {
            ask_to_end(&lane).await;
            self.inner.supervisor.remove(&lane.post.child_id()).await;
        });
        join_all(ends).await;
    }

    /// Ends a project's process and puts its directory away; until that is done no event gets in. `None` while it is at
    /// work.
    ///
    /// # Errors
    /// [`PrepareError`]; the project is as it was then, but stopped.
    pub async fn put_away(&self, row: &ProjectRow, delete: bool, force: bool) -> Result<Option<Archived>, PrepareError> {
        let unknown = || PrepareError::Unknown { name: row.coordinate.clone() };
        let project = Coordinate::parse(&row.coordinate).map_err(|_| unknown())?;
        let lane = self.lane(&project).await.map_err(|Fault { problem, .. }| PrepareError::Broken(problem))?;
        let _preparing = lane.preparing.lock().await;
        let _turning = lane.turning.lock().await;
        let is_known = self.inner.lanes.get(&project).is_some_and(|known| Arc::ptr_eq(&known, &lane));
        // It may have been let go of meanwhile, and another one be at work.
        if !is_known || !lane.leave() {
            return Ok(None);
        }
        let mut leaving = Leaving::of(&lane);
        self.stop_process(&lane).await;
        let archived = self.inner.ground.preparer.archive(row, delete, force).await?;
        // Before another lane of it can be made: that has a child of the same id.
        self.inner.supervisor.remove(&lane.post.child_id()).await;
        self.inner.lanes.remove(&project);
        leaving.is_over();
        Ok(Some(archived))
    }
}
