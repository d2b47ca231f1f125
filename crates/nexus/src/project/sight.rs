//! Which projects are in sight, so that their state is known: those that something was to be done with since the start, and
//! those that somebody should look at, from the start on. What was never made of an event's word alone makes room for others.
//! It prepares nothing and starts nothing.

use super::coordinate::Coordinate;
use super::lanes::{LANES_MAX, Lane};
use super::{Fault, Inner, Projects};
use crate::error_text::describe;
use crate::ledger::nexus::{self, ProjectRow};
use crate::metrics::{ChildLabel, ProjectLabel};
use std::sync::Arc;

/// Projects that are kept in sight though nothing could be made of them; those used least recently go.
const UNMADE_MAX: usize = 64;

impl Projects {
    /// The project's lane; a new one takes from the ledger what that knows of it.
    pub(super) async fn lane(&self, project: &Coordinate) -> Result<Arc<Lane>, Fault> {
        let lane = match self.inner.lanes.get(project) {
            Some(lane) => lane,
            None => {
                let name = project.to_string();
                let row = self.inner.ledgers.nexus.readers.read(move |connection| nexus::project(connection, &name)).await;
                let row = row.map_err(|error| Fault::passing(describe(&error)))?;
                self.open(project, row).ok_or_else(|| Fault::last(format!("more than {LANES_MAX} projects are known")))?
            }
        };
        self.heed(&lane).await;
        Ok(lane)
    }

    fn open(&self, project: &Coordinate, row: Option<ProjectRow>) -> Option<Arc<Lane>> {
        let Inner { lanes, supervisor, ground, settings, .. } = &*self.inner;
        lanes.open(project, supervisor, ground, settings.load().policy_of(project), row)
    }

    /// At the start: one that somebody should look at is in sight, unless the configuration has changed meanwhile.
    pub(super) async fn look_again(&self, project: &Coordinate, row: ProjectRow) {
        if row.quarantined.is_none() && row.status != "needs_configuration" {
            return;
        }
        match self.open(project, Some(row)) {
            Some(lane) => self.heed(&lane).await,
            None => tracing::warn!(%project, "more than {LANES_MAX} projects are known; how this one is, is not told by health"),
        }
    }

    /// Ends a quarantine that another configuration led to.
    pub(super) async fn heed(&self, lane: &Lane) {
        let Some(under) = lane.quarantined_under() else { return };
        if under != self.inner.settings.load().mark(&lane.post.coordinate) {
            self.release(lane).await;
        }
    }

    /// What lacked configuration may have been prepared, or put right, without its lane.
    pub(super) async fn follow_rows(&self) {
        let lacking: Vec<Arc<Lane>> = self.inner.lanes.all().into_iter().filter(|lane| lane.lacks_configuration()).collect();
        if lacking.is_empty() {
            return;
        }
        match self.rows().await {
            Ok(rows) => lacking.iter().for_each(|lane| {
                let name = lane.post.coordinate.to_string();
                if let Some(row) = rows.iter().find(|row| row.coordinate == name) {
                    lane.set_before(row);
                }
            }),
            Err(error) => tracing::debug!(%error, "whether projects still lack configuration can't be read"),
        }
    }

    /// Lets go of lanes of which nothing was made, but for those used last: whoever may activate projects can name any number.
    pub(super) async fn let_go_of_unmade(&self) {
        let mut unmade: Vec<Arc<Lane>> = self.inner.lanes.all().into_iter().filter(|lane| lane.is_unmade()).collect();
        let too_many = unmade.len().saturating_sub(UNMADE_MAX);
        unmade.sort_by_key(|lane| lane.last_used_ms());
        for lane in unmade.iter().take(too_many) {
            self.let_go(lane).await;
        }
    }

    async fn let_go(&self, lane: &Arc<Lane>) {
        // Whoever holds one of them is about to do something with it.
        let (Ok(_preparing), Ok(_turning)) = (lane.preparing.try_lock(), lane.turning.try_lock()) else { return };
        if !lane.is_unmade() || !lane.leave() {
            return;
        }
        let mut leaving = Leaving::of(lane);
        let (child, slug) = (lane.post.child_id(), lane.post.slug.clone());
        // Before another lane of it can be made: that has a child of the same id.
        self.inner.supervisor.remove(&child).await;
        self.inner.lanes.remove(&lane.post.coordinate);
        leaving.is_over();
        let metrics = &self.inner.ground.metrics;
        let (project, child) = (ProjectLabel { project: slug }, ChildLabel { child: child.to_string() });
        metrics.project_uptime.remove(&project);
        metrics.project_queue.remove(&project);
        metrics.project_receive_to_ready_last.remove(&project);
        metrics.child_running.remove(&child);
    }
}

/// A project whose lane is being let go of stays if that comes to nothing.
pub(super) struct Leaving<'a> {
    lane: &'a Lane,
    is_gone: bool,
}

impl<'a> Leaving<'a> {
    /// Of a lane that has let nobody in since [`Lane::leave`].
    pub(super) fn of(lane: &'a Lane) -> Self {
        Self { lane, is_gone: false }
    }

    pub(super) fn is_over(&mut self) {
        self.is_gone = true;
    }
}

impl Drop for Leaving<'_> {
    fn drop(&mut self) {
        if !self.is_gone {
            self.lane.stay();
        }
    }
}
