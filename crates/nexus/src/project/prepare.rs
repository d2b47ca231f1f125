//! Prepares projects: definition, directory, agents, servers, profiles (requirement: Project Initialization Flow). One
//! preparation per project at a time, each whole or not at all; it goes on if nobody waits for it any more. It runs
//! nothing but git.

mod error;
mod find;
mod install;
mod load;
mod members;
mod progress;
mod roster;
mod row;
mod source;
mod stage;

pub use error::PrepareError;
pub(crate) use find::defined;
pub use load::{Prepared, ProjectAgent, ProjectMcp};
pub use progress::Progress;
pub(super) use row::{is_there, readiness_of};
pub(super) use source::blocking;

use super::activate::Roster;
use super::approvals;
use super::coordinate::Coordinate;
use super::definition::Definition;
use super::git::Git;
use super::secrets::Secrets;
use crate::bus::Bus;
use crate::daemon::Paths;
use crate::error_text::describe;
use crate::keeper::Keeper;
use crate::ledger::Ledgers;
use crate::ledger::nexus::{Approval, ProjectRow, nostr_is_deleted};
use crate::nostr::Nostr;
use ::nostr::event::Event;
use arc_swap::ArcSwap;
use members::Sought;
use nexus_core::config::{Agents, Config, Projects};
use row::{check_place, row_of};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use tokio::sync::{OwnedMutexGuard, Semaphore, broadcast};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Changed projects that who listens may be behind.
const DECIDED_MAX: usize = 64;

/// What the configuration says that preparing needs.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Where projects lie.
    pub directory: PathBuf,
    pub workspace: PathBuf,
    pub projects: Projects,
    pub agents: Agents,
    /// Hints in addresses that are given out.
    pub relays: Vec<String>,
    /// Kinds of events that define projects.
    pub kinds: Vec<u16>,
    pub min_free_mb: u64,
    credentials: PathBuf,
    /// Room for preparations.
    room: Arc<Semaphore>,
}

impl Settings {
    pub fn of(config: &Config, paths: &Paths) -> Self {
        let room = usize::try_from(config.projects.prepare_concurrent).unwrap_or(1);
        Self {
            directory: directory(&config.projects.path, paths),
            workspace: paths.workspace.clone(),
            projects: config.projects.clone(),
            agents: config.agents.clone(),
            relays: config.nostr.relays.clone(),
            kinds: config.nostr.project_kinds.clone(),
            min_free_mb: config.ledgers.min_free_mb,
            credentials: paths.credentials_dir(),
            room: Arc::new(Semaphore::new(room)),
        }
    }
}

/// `projects.path`: from the home directory behind a `~`, else from the workspace.
pub fn directory(configured: &str, paths: &Paths) -> PathBuf {
    let home = std::env::var_os("HOME").filter(|home| !home.is_empty()).map(PathBuf::from);
    match (configured.strip_prefix('~'), home) {
        (Some(rest), Some(home)) if rest.is_empty() || rest.starts_with('/') => home.join(rest.trim_start_matches('/')),
        (Some(_) | None, _) => paths.data_dir(configured),
    }
}

/// What it works with.
#[derive(Debug)]
pub struct Ground {
    pub settings: Settings,
    pub keeper: Keeper,
    pub ledgers: Ledgers,
    pub nostr: Nostr,
    pub bus: Bus,
    /// Kept here: what is prepared is known from then on, what was put away is not.
    pub roster: Roster,
}

type Runs = Arc<dyn Fn(&Coordinate) -> bool + Send + Sync>;

/// Handle to all preparations. Cheap to clone.
#[derive(Clone)]
pub struct Preparer {
    inner: Arc<Inner>,
}

struct Inner {
    settings: ArcSwap<Settings>,
    keeper: Keeper,
    ledgers: Ledgers,
    nostr: Nostr,
    bus: Bus,
    roster: Roster,
    flights: Mutex<BTreeMap<Coordinate, Arc<tokio::sync::Mutex<()>>>>,
    /// Whether a project's process is there.
    runs: OnceLock<Runs>,
    sought: Sought,
    /// Projects that a decision changed.
    decided: broadcast::Sender<Coordinate>,
    /// Preparations under way, which the daemon's stop breaks off.
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl std::fmt::Debug for Preparer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Preparer").finish_non_exhaustive()
    }
}

/// How a project is asked for.
#[derive(Debug, Clone, Default)]
pub struct Ask {
    /// Its definition is looked through anew, though it is the one that was prepared.
    pub anew: bool,
    /// The directory that it is to have, which may be there already.
    pub path: Option<PathBuf>,
    /// A start waits for it: profiles that nobody had a moment ago are not looked for.
    pub is_start: bool,
}

impl Preparer {
    pub fn new(ground: Ground) -> Self {
        let Ground { settings, keeper, ledgers, nostr, bus, roster } = ground;
        let inner = Inner {
            settings: ArcSwap::from_pointee(settings),
            keeper,
            ledgers,
            nostr,
            bus,
            roster,
            flights: Mutex::default(),
            runs: OnceLock::new(),
            sought: Sought::default(),
            decided: broadcast::Sender::new(DECIDED_MAX),
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
        };
        Self { inner: Arc::new(inner) }
    }

    /// Another configuration, for what is prepared from now on.
    pub fn configure(&self, settings: Settings) {
        self.inner.settings.store(Arc::new(settings));
    }

    /// By whom it is known whether a project runs.
    pub fn runs_if(&self, runs: impl Fn(&Coordinate) -> bool + Send + Sync + 'static) {
        self.inner.runs.set(Arc::new(runs)).ok(); // said once, by the start
    }

    /// Tells of each project that a decision about an approval has changed. Who is too slow finds it changed later.
    pub fn decided(&self) -> broadcast::Receiver<Coordinate> {
        self.inner.decided.subscribe()
    }

    pub(super) fn runs(&self, project: &Coordinate) -> bool {
        self.inner.runs.get().is_some_and(|runs| runs(project))
    }

    pub fn settings(&self) -> Arc<Settings> {
        self.inner.settings.load_full()
    }

    pub(crate) fn bus(&self) -> Bus {
        self.inner.bus.clone()
    }

    pub(crate) fn ledgers(&self) -> &Ledgers {
        &self.inner.ledgers
    }

    /// Its events are heeded only if its author's are, until it is prepared again.
    pub(super) fn forget(&self, project: &Coordinate) {
        self.inner.roster.remove(project);
    }

    pub(super) fn git(&self, settings: &Settings) -> Git {
        let rules = settings.projects.git.clone();
        let ca_file = rules.ca_file.as_ref().map(|file| settings.workspace.join(file));
        Git::new(self.inner.keeper.clone(), rules, ca_file, settings.min_free_mb)
    }

    /// Has the project prepared, for a start. Comes back at once if it is, by its newest definition.
    ///
    /// # Errors
    /// [`PrepareError`]; there is then no directory, or the one that was there before.
    pub async fn ensure(&self, project: &Coordinate, progress: &Progress) -> Result<Prepared, PrepareError> {
        self.prepare(project, progress, Ask { is_start: true, ..Ask::default() }).await
    }

    /// Takes up a newer definition, and what was approved since: agents and servers come and go, others are not touched.
    ///
    /// # Errors
    /// [`PrepareError`]; the project is then as it was.
    pub async fn update(&self, project: &Coordinate) -> Result<Prepared, PrepareError> {
        let progress = Progress::new(self.inner.bus.clone(), project);
        self.prepare(project, &progress, Ask { anew: true, ..Ask::default() }).await
    }

    /// # Errors
    /// [`PrepareError`].
    pub async fn prepare(&self, project: &Coordinate, progress: &Progress, ask: Ask) -> Result<Prepared, PrepareError> {
        let (this, project, progress) = (self.clone(), project.clone(), progress.clone());
        // In a task of its own: whoever asked may be gone before a clone is done, and the next one wants it too.
        let task = crate::watch::tracked("project.prepare", &self.inner.tasks, async move {
            tokio::select! {
                done = this.alone(&project, &progress, ask) => done,
                // As if it were killed here: what has no place yet is removed, and the next start prepares anew.
                () = this.inner.stop.cancelled() => Err(PrepareError::Broken("the daemon stops".to_owned())),
            }
        });
        task.await.unwrap_or_else(|error| Err(PrepareError::Broken(error.to_string())))
    }

    /// Breaks off what is being prepared; returns once that is over. Nothing is prepared after that.
    pub(super) async fn shutdown(&self) {
        self.inner.stop.cancel();
        self.inner.tasks.close();
        self.inner.tasks.wait().await;
    }

    /// The environment of a project's process: its secrets.
    ///
    /// # Errors
    /// [`PrepareError`].
    pub async fn secrets(&self, project: &Coordinate) -> Result<BTreeMap<String, String>, PrepareError> {
        let secrets = Secrets::new(&self.settings().credentials);
        Ok(secrets.resolve(&project.slug(), &self.inner.keeper).await?)
    }

    /// Decides about an approval, and has what it allows installed in the background: that may take a clone. `None` when
    /// there is none of this id.
    ///
    /// # Errors
    /// [`PrepareError`].
    pub async fn decide(&self, id: i64, approve: bool) -> Result<Option<Approval>, PrepareError> {
        let decided = approvals::decide(&self.inner.ledgers.nexus, id, approve).await?;
        let Some(approval) = decided else { return Ok(None) };
        // Not the command: a server that somebody put there by hand may have a key in its variables.
        let Approval { project, subject, .. } = &approval;
        tracing::info!(%project, %subject, approve, "an approval was decided");
        if let Ok(coordinate) = Coordinate::parse(&approval.project) {
            let this = self.clone();
            crate::watch::helper("project.decide", async move {
                let row = this.row(&coordinate).await;
                if row.is_ok_and(|row| row.is_some_and(|row| row.status == "archived")) {
                    return; // its next event prepares it, by this decision
                }
                match this.update(&coordinate).await {
                    // Nobody may listen.
                    Ok(_) => drop(this.inner.decided.send(coordinate)),
                    Err(error) => {
                        tracing::warn!(error = %describe(&error), project = %coordinate, "a decision counts at the next preparation only");
                    }
                }
            });
        }
        Ok(Some(approval))
    }

    /// Waits for its turn: a second event of a project starts no second preparation.
    pub(super) async fn turn(&self, project: &Coordinate) -> OwnedMutexGuard<()> {
        let lock = {
            let mut flights = self.inner.flights.lock().unwrap_or_else(PoisonError::into_inner);
            // Those that nobody holds or waits for.
            flights.retain(|_, lock| Arc::strong_count(lock) > 1);
            flights.entry(project.clone()).or_default().clone()
        };
        lock.lock_owned().await
    }

    async fn alone(&self, project: &Coordinate, progress: &Progress, ask: Ask) -> Result<Prepared, PrepareError> {
        let _turn = self.turn(project).await;
        let settings = self.settings();
        let row = self.row(project).await?;
        let present = row.clone().filter(is_there);
        if let (Some(present), Some(wanted)) = (&present, &ask.path) {
            check_place(present, wanted)?;
        }
        let (event, definition) = match self.definition(project, row.as_ref()).await {
            Ok(found) => found,
            Err(error) => {
                self.note_failure(project, row.as_ref(), &error).await;
                return Err(error);
            }
        };
        if let Some(present) = &present
            && !ask.anew
            && present.definition_id.as_ref() == Some(&definition.id)
            && !self.owes(&definition, Path::new(&present.path), ask.is_start).await?
        {
            let prepared = self.load(&definition, &settings, Path::new(&present.path)).await?;
            self.note_readiness(&definition, present, &prepared).await?;
            self.inner.roster.set(project.clone(), prepared.pubkeys());
            // Whoever prepared it may have been killed before, and files may have been changed by hand.
            self.publish_profiles(&prepared).await;
            return Ok(prepared.with_problems(&present.problems));
        }
        let _room = match present {
            None => Some(settings.room.clone().acquire_owned().await.map_err(|error| PrepareError::Broken(error.to_string()))?),
            Some(_) => None, // nothing is cloned for it, so it waits for nobody's clone
        };
        let default = || settings.directory.join(project.slug());
        let path = match (&present, ask.path.clone()) {
            (Some(present), _) => PathBuf::from(&present.path),
            (None, path) => path.unwrap_or_else(default),
        };
        if present.is_none() {
            let row = row_of(&definition, &path, ("preparing", None), None, Vec::new());
            self.save(row).await?;
        }
        let made = self.make(&definition, &settings, &path, present.is_some(), progress).await;
        match made {
            Ok((prepared, problems)) => {
                let readiness = readiness_of(&prepared);
                let status = readiness.0;
                let row = row_of(&definition, &path, readiness, Some(&event), prepared.pubkeys());
                self.save(ProjectRow { problems, ..row }).await?;
                // Whoever had it prepared: its events are heeded, as after a restart.
                self.inner.roster.set(project.clone(), prepared.pubkeys());
                self.publish_profiles(&prepared).await;
                progress.step(status);
                Ok(prepared)
            }
            Err(error) => {
                // What is there works on; the relays may have the rest later.
                if let Some(present) = present.as_ref().filter(|_| !ask.anew && error.retryable())
                    && let Ok((definition, prepared)) = self.look(present).await
                {
                    tracing::warn!(%project, error = %describe(&error), "a project goes on as it was prepared before");
                    self.note_readiness(&definition, present, &prepared).await?;
                    return Ok(prepared);
                }
                self.note_failure(project, present.as_ref(), &error).await;
                Err(error)
            }
        }
    }

    /// Beside what is prepared, what of its definition could not be used.
    async fn make(
        &self,
        definition: &Definition,
        settings: &Settings,
        path: &Path,
        is_there: bool,
        progress: &Progress,
    ) -> Result<(Prepared, Vec<String>), PrepareError> {
        progress.step("fetching agents");
        let members = self.members(definition).await?;
        let mut problems = members.problems.clone();
        if is_there {
            self.follow(definition, settings, path, &mut problems).await?;
            self.fill(definition, settings, path, &members, &mut problems).await?;
        } else {
            let notes = &mut problems;
            let members = &members;
            let fill = move |work: PathBuf| async move {
                progress.step("installing agents");
                self.fill(definition, settings, &work, members, notes).await
            };
            self.make_directory(definition, settings, path, progress, fill).await?;
        }
        let prepared = self.load(definition, settings, path).await?;
        problems.iter().for_each(|problem| tracing::warn!(project = %definition.coordinate, "{problem}"));
        Ok((prepared.with_problems(&problems), problems))
    }

    /// The newest definition: of what was prepared from and what the relays have. Ties go to the lowest id (NIP-01). What
    /// its author deleted doesn't count, also where a project was prepared from it (NIP-09).
    async fn definition(&self, project: &Coordinate, row: Option<&ProjectRow>) -> Result<(Event, Definition), PrepareError> {
        let kept = row.and_then(|row| row.definition.as_deref()).and_then(|json| Event::from_json(json).ok());
        let was_deleted = match &kept {
            Some(kept) => self.is_deleted(project, kept).await?,
            None => false,
        };
        let kept = kept.filter(|_| !was_deleted);
        let event = match (self.inner.nostr.definition(project).await, kept) {
            (Ok(found), Some(kept)) => {
                if is_newer(&found, &kept) {
                    found
                } else {
                    kept
                }
            }
            (Ok(found), None) => found,
            (Err(error), Some(kept)) => {
                tracing::debug!(error = %describe(&error), %project, "going on with the definition that was prepared from");
                kept
            }
            (Err(_), None) if was_deleted => return Err(PrepareError::Deleted { project: project.to_string() }),
            (Err(source), None) => return Err(PrepareError::Fetch { project: project.to_string(), source }),
        };
        let definition = Definition::of(&event).map_err(|source| PrepareError::Definition { project: project.to_string(), source })?;
        if definition.coordinate != *project {
            return Err(PrepareError::OtherProject { project: project.to_string(), id: definition.id });
        }
        Ok((event, definition))
    }

    async fn is_deleted(&self, project: &Coordinate, event: &Event) -> Result<bool, PrepareError> {
        let (id, name, pubkey) = (event.id.to_hex(), project.to_string(), project.pubkey.clone());
        let created_at = i64::try_from(event.created_at.as_secs()).unwrap_or(i64::MAX);
        let read = move |connection: &rusqlite::Connection| nostr_is_deleted(connection, &pubkey, [&id, &name], created_at);
        Ok(self.inner.ledgers.nexus.readers.read(read).await?)
    }
}

fn is_newer(found: &Event, kept: &Event) -> bool {
    let age = |event: &Event| event.created_at.as_secs();
    age(found) > age(kept) || (age(found) == age(kept) && found.id.to_hex() < kept.id.to_hex())
}
