//! What people have done with a project: started, stopped, restarted, released; and its last lines. Which project is
//! meant, by coordinate, naddr, slug or the beginning of one.

use super::coordinate::{Coordinate, NameError};
use super::lanes::Lane;
use super::notes::Line;
use super::report::ProjectStatus;
use super::{Fault, Projects};
use crate::ledger::nexus::{self, ProjectRow};
use std::sync::Arc;
use std::time::Duration;

/// How long one answer waits for a project that is started.
const START_WAIT: Duration = Duration::from_secs(20);

/// Why a verb was not done.
#[derive(Debug, thiserror::Error)]
pub enum VerbError {
    #[error("{}", crate::unknown::project(.0))]
    Unknown(String),
    #[error(transparent)]
    Name(#[from] NameError),
    #[error("project `{project}`: {problem}")]
    Refused { project: String, problem: String },
    #[error("projects can't be read")]
    Read(#[from] crate::ledger::ReadError),
}

/// What can be done with a project.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProjectVerb {
    Start,
    Stop,
    Restart,
    Release,
}

impl ProjectVerb {
    pub fn parse(word: &str) -> Option<Self> {
        match word {
            "start" => Some(Self::Start),
            "stop" => Some(Self::Stop),
            "restart" => Some(Self::Restart),
            "release" => Some(Self::Release),
            _ => None,
        }
    }
}

impl Projects {
    /// The project that a verb is about.
    ///
    /// # Errors
    /// [`VerbError`].
    pub async fn meant(&self, name: &str, verb: ProjectVerb) -> Result<Coordinate, VerbError> {
        match verb {
            ProjectVerb::Start | ProjectVerb::Restart => self.named(name).await,
            // There is nothing to stop or to release of one that nobody knows.
            ProjectVerb::Stop | ProjectVerb::Release => self.known(name).await,
        }
    }

    /// Does it, and tells how the project is then. To stop it, `end_turn` ends what it is doing: its process is not brought up
    /// again meanwhile.
    ///
    /// # Errors
    /// [`VerbError`].
    pub async fn verb(&self, name: &str, verb: ProjectVerb, end_turn: impl Future<Output = ()> + Send) -> Result<ProjectStatus, VerbError> {
        let project = self.meant(name, verb).await?;
        let refused = |Fault { problem, .. }: Fault| VerbError::Refused { project: project.slug(), problem };
        let lane = self.lane(&project).await.map_err(refused)?;
        match verb {
            ProjectVerb::Start => self.start(&lane).await.map_err(refused)?,
            ProjectVerb::Stop => {
                let turning = lane.turning.lock().await;
                end_turn.await;
                lane.hold_down(true);
                self.stop_process(&lane).await;
                drop(turning);
                self.count_queues().await;
            }
            ProjectVerb::Restart => {
                if let Some(reason) = lane.quarantined() {
                    return Err(refused(super::quarantined(&lane, &reason)));
                }
                {
                    let _turning = lane.turning.lock().await;
                    self.stop_process(&lane).await;
                }
                self.start(&lane).await.map_err(refused)?;
            }
            ProjectVerb::Release => self.release(&lane).await,
        }
        lane.ring();
        let id = project.to_string();
        // As it is by now: a preparation writes down what came of it.
        let row = self.inner.ledgers.nexus.readers.read(move |connection| nexus::project(connection, &id)).await?;
        Ok(self.of_lane(&lane, row.as_ref()))
    }

    /// Who asked is answered in time; a preparation goes on without them.
    async fn start(&self, lane: &Arc<Lane>) -> Result<(), Fault> {
        // How far it has come, its state tells.
        tokio::time::timeout(START_WAIT, self.start_whole(lane)).await.unwrap_or(Ok(()))
    }

    async fn start_whole(&self, lane: &Arc<Lane>) -> Result<(), Fault> {
        let Some(_use) = lane.take() else { return Err(Fault::passing("it is being put away")) };
        if let Some(reason) = lane.quarantined() {
            return Err(super::quarantined(lane, &reason));
        }
        lane.hold_down(false);
        self.prepare(lane).await?;
        self.bring_up(lane).await?;
        let plan = lane.post.plan.load_full();
        if plan.is_some_and(|plan| plan.protocol == nexus_core::config::ProjectProtocol::Jsonl) {
            self.ready(lane).await?;
        }
        Ok(())
    }

    /// The last `count` lines of a project's process after line number `after`.
    ///
    /// # Errors
    /// [`VerbError`].
    pub async fn logs(&self, name: &str, after: u64, count: usize) -> Result<Vec<Line>, VerbError> {
        let project = self.known(name).await?;
        let lane = self.inner.lanes.get(&project);
        Ok(lane.map(|lane| lane.post.notes.lines(after, count)).unwrap_or_default())
    }

    /// The project that is meant. One that isn't known yet can be named in full.
    async fn named(&self, name: &str) -> Result<Coordinate, VerbError> {
        let known = self.known(name).await;
        if !matches!(known, Err(VerbError::Unknown(_))) {
            return known;
        }
        let Some(given) = Coordinate::meant(name)? else { return known };
        given.check_kind(&self.inner.ground.preparer.settings().kinds)?;
        Ok(given)
    }

    /// The project that is meant, of those that the ledger knows or something was to be done with.
    async fn known(&self, name: &str) -> Result<Coordinate, VerbError> {
        let given = Coordinate::meant(name)?;
        let asked = given.as_ref().map_or_else(|| name.to_owned(), ToString::to_string);
        let row = self.inner.ledgers.nexus.readers.read(move |connection| nexus::project_named(connection, &asked)).await?;
        if let Some(project) = row.and_then(|row| Coordinate::parse(&row.coordinate).ok()) {
            return Ok(project);
        }
        let in_sight = match given {
            Some(given) => self.inner.lanes.get(&given).map(|_| given),
            None => self.unmade(name).await?.and_then(|row| Coordinate::parse(&row.coordinate).ok()),
        };
        in_sight.ok_or_else(|| VerbError::Unknown(name.to_owned()))
    }

    /// The project of this address, slug or beginning of one that no ledger knows, since it was never prepared, but with which
    /// something was to be done: as the ledger would have it.
    ///
    /// # Errors
    /// [`VerbError`].
    pub async fn unmade(&self, name: &str) -> Result<Option<ProjectRow>, VerbError> {
        let given = Coordinate::meant(name)?;
        let rows = self.rows().await?;
        let mut lanes = self.inner.lanes.all();
        lanes.retain(|lane| rows.iter().all(|row| row.slug != lane.post.slug));
        let is_exact = |lane: &Arc<Lane>| given.as_ref().map_or(lane.post.slug == name, |given| lane.post.coordinate == *given);
        if let Some(lane) = lanes.iter().find(|lane| is_exact(lane)) {
            return Ok(Some(row_of(lane)));
        }
        let begins = |slug: &str| given.is_none() && !name.is_empty() && slug.starts_with(name);
        lanes.retain(|lane| begins(&lane.post.slug));
        let is_meant = lanes.len() == 1 && !rows.iter().any(|row| begins(&row.slug));
        Ok(lanes.first().filter(|_| is_meant).map(|lane| row_of(lane)))
    }
}

fn row_of(lane: &Lane) -> ProjectRow {
    let project = &lane.post.coordinate;
    ProjectRow {
        coordinate: project.to_string(),
        slug: lane.post.slug.clone(),
        path: String::new(),
        title: project.identifier.clone(),
        status: lane.state().as_str().to_owned(),
        reason: lane.problem(),
        quarantined: None,
        definition_id: None,
        definition: None,
        agents: Vec::new(),
        problems: Vec::new(),
        prepared_at: None,
        last_used: lane.last_event_at(),
        created_at: 0,
        updated_at: 0,
    }
}
