//! The supervised child of a project: what is started, with which environment and files, and what is told of its
//! end. When it runs, `lanes` says; how it is talked with, `session`.

use super::coordinate::Coordinate;
use super::notes::Notes;
use super::prepare::{Prepared, Preparer};
use super::publish::Publisher;
use super::session::{Desk, Session, Standing};
use crate::bus::Bus;
use crate::clock;
use crate::credential::write_private;
use crate::environment;
use crate::error_text::describe;
use crate::keeper::{ExitStatus, Process, SpawnSpec, Stdin};
use crate::metrics::Metrics;
use crate::nostr::Nostr;
use crate::panics::finally;
use crate::stderr;
use crate::supervisor::{self, BoxFuture, NotReady, after_exit};
use arc_swap::ArcSwapOption;
use nexus_core::config::{self, ProjectProtocol};
use nexus_core::ids::ChildId;
use nexus_core::notice::NoticeType;
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::net::unix::pipe;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// How long one that ended is not started for being warm.
const WARM_PAUSE_MS: u64 = 60_000;
/// The file that tells a process what it is, in its environment.
pub const CONTEXT_VARIABLE: &str = "NEXUS_CONTEXT_FILE";
/// Version of that file.
pub const CONTEXT_VERSION: u32 = 1;

/// How long the output of a process is read after its exit: a descriptor that was passed to a stranger must not hold
/// the restart.
const OUTPUT_PATIENCE: Duration = Duration::from_secs(5);

/// What a process is told of its project: the contents of its context file, which only this user may read.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Context {
    pub version: u32,
    pub project: Prepared,
    /// The agent of `agents` that does the turns.
    pub agent: String,
    /// Names of the project's secrets, which are variables of the process.
    #[serde(default)]
    pub secrets: Vec<String>,
}

/// How a project is run: of its definition and the configuration. Another one means another process.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Plan {
    pub(super) argv: Vec<String>,
    /// Without secrets, which are asked for at each start.
    pub(super) env: Vec<(String, String)>,
    pub(super) protocol: ProjectProtocol,
    pub(super) context: Context,
    /// How that agent is configured, where our own process does its turns.
    pub(super) config: Option<config::Agent>,
    pub(super) ready_limit: Duration,
    pub(super) ping_every: Duration,
}

/// What every project's process needs of the daemon.
#[derive(Debug, Clone)]
pub(super) struct Ground {
    pub(super) preparer: Preparer,
    pub(super) nostr: Nostr,
    pub(super) bus: Bus,
    pub(super) metrics: Metrics,
    pub(super) run_dir: PathBuf,
}

/// What a project's process and its lane have together.
#[derive(Debug)]
pub(super) struct Post {
    pub(super) coordinate: Coordinate,
    pub(super) slug: String,
    pub(super) ground: Ground,
    pub(super) plan: ArcSwapOption<Plan>,
    /// The process that events may be handed to, once it is ready.
    pub(super) session: watch::Sender<Option<Arc<Session>>>,
    pub(super) notes: Notes,
    pub(super) crashes: AtomicU64,
    /// When the last process ended, by the monotonic clock; 0 before any did.
    ended_ms: AtomicU64,
    /// Why the last process was ended, if it was: its exit says nothing of that.
    why: Mutex<Option<String>>,
    /// When the process that runs was started, by the monotonic clock, and with which plan.
    begun: Mutex<Option<(u64, Arc<Plan>)>>,
}

impl Post {
    pub(super) fn new(coordinate: Coordinate, ground: Ground) -> Self {
        Self {
            slug: coordinate.slug(),
            coordinate,
            ground,
            plan: ArcSwapOption::empty(),
            session: watch::Sender::new(None),
            notes: Notes::default(),
            crashes: AtomicU64::new(0),
            ended_ms: AtomicU64::new(0),
            why: Mutex::default(),
            begun: Mutex::default(),
        }
    }

    pub(super) fn child_id(&self) -> ChildId {
        ChildId::new(format!("project/{}", self.slug))
    }

    /// Whether the process that runs was started with another plan than would be now.
    pub(super) fn is_stale(&self) -> bool {
        let plan = self.plan.load_full();
        match (&*self.lock(), &plan) {
            (Some((_, with)), Some(plan)) => with != plan,
            (Some(_), None) | (None, _) => false,
        }
    }

    /// Whether a process of it ended a moment ago: it isn't kept warm against its will.
    pub(super) fn has_just_ended(&self) -> bool {
        let ended_ms = self.ended_ms.load(Ordering::Relaxed);
        ended_ms > 0 && clock::mono_ms().saturating_sub(ended_ms) < WARM_PAUSE_MS
    }

    /// Why the last process was ended, if it was.
    pub(super) fn why(&self) -> Option<String> {
        self.why.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set_why(&self, why: Option<String>) {
        *self.why.lock().unwrap_or_else(PoisonError::into_inner) = why;
    }

    /// Nobody talks with a process any more.
    fn forget(&self, session: &Arc<Session>) {
        self.set_why(session.failure());
        // Unless there is another by now, or it was left already.
        self.session.send_if_modified(|known| {
            let is_own = known.as_ref().is_some_and(|known| Arc::ptr_eq(known, session));
            if is_own {
                *known = None;
            }
            is_own
        });
        self.notes.set_status(None);
    }

    /// From now on nobody finds the process that runs: it is about to be stopped.
    pub(super) fn leave_session(&self) -> Option<Arc<Session>> {
        self.session.send_replace(None)
    }

    fn context_file(&self) -> PathBuf {
        self.ground.run_dir.join(format!("project-{}.json", self.slug))
    }

    async fn spec(&self) -> Result<SpawnSpec, NotReady> {
        let lasting = |reason: String| NotReady { reason, lasting: true };
        let plan = self.plan.load_full().ok_or_else(|| lasting("it is not prepared".to_owned()))?;
        let secrets = self.ground.preparer.secrets(&self.coordinate).await;
        let secrets = secrets.map_err(|error| NotReady { reason: describe(&error), lasting: !error.retryable() })?;
        let context = Context { secrets: secrets.keys().cloned().collect(), ..plan.context.clone() };
        let (path, text) = (self.context_file(), json!(context).to_string());
        let file = path.clone();
        let written = crate::watch::blocking("project.context", move || write_private(&file, text.as_bytes())).await;
        let failed = |error: String| NotReady::from(format!("failed to write `{}`: {error}", path.display()));
        written.map_err(|error| failed(error.to_string()))?.map_err(|error| failed(error.to_string()))?;
        let mut env: BTreeMap<String, String> = plan.env.iter().cloned().collect();
        env.extend(secrets);
        env.insert(CONTEXT_VARIABLE.to_owned(), path.to_string_lossy().into_owned());
        env.insert("NEXUS_PROJECT".to_owned(), self.coordinate.to_string());
        *self.lock() = Some((clock::mono_ms(), plan.clone()));
        Ok(SpawnSpec {
            child: self.child_id(),
            argv: plan.argv.clone(),
            env: env.into_iter().collect(),
            cwd: Some(plan.context.project.path.clone()),
            stdin: match plan.protocol {
                ProjectProtocol::Jsonl => Stdin::Piped,
                ProjectProtocol::None => Stdin::Null,
            },
        })
    }

    fn desk(&self, plan: &Plan) -> Desk {
        let agents = plan.context.project.agents.iter().map(|agent| agent.slug.clone()).collect();
        Desk {
            project: self.coordinate.to_string(),
            slug: self.slug.clone(),
            publisher: Publisher::new(self.ground.nostr.clone(), self.slug.clone(), agents),
            notes: self.notes.clone(),
            bus: self.ground.bus.clone(),
            metrics: self.ground.metrics.clone(),
            ready_limit: plan.ready_limit,
            ping_every: plan.ping_every,
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<(u64, Arc<Plan>)>> {
        self.begun.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the supervisor runs.
#[derive(Debug)]
pub(super) struct Program(pub(super) Arc<Post>);

impl supervisor::Program for Program {
    fn prepare(&self) -> BoxFuture<'_, Result<SpawnSpec, NotReady>> {
        Box::pin(self.0.spec())
    }

    fn attach(&self, process: &mut Process, exited: CancellationToken) -> JoinHandle<()> {
        let post = self.0.clone();
        post.set_why(None);
        let plan = post.lock().as_ref().map(|(_, plan)| plan.clone());
        let (metrics, pid) = (&post.ground.metrics, process.pid);
        metrics.project_spawns.inc();
        post.ground
            .bus
            .publish(NoticeType::ProjectStarted, json!({ "project": post.coordinate.to_string(), "slug": post.slug, "pid": pid }));
        let session = plan.as_ref().filter(|plan| plan.protocol == ProjectProtocol::Jsonl);
        let session = session.and_then(|plan| Session::new(process, post.desk(plan)));
        let child = post.child_id();
        let Some((session, pipes)) = session else {
            let output = [process.stdout.take(), process.stderr.take()];
            return crate::watch::helper("project.output", log_output(post, output, exited));
        };
        post.session.send_replace(Some(session.clone()));
        crate::watch::helper("project.reader", async move {
            // However that ends: the next event is not for one that nobody reads.
            let _over = finally(|| post.forget(&session));
            session.clone().serve(child, pipes, exited).await;
        })
    }

    fn ended(&self, status: ExitStatus, was_told: bool) {
        let Post { coordinate, slug, ground, crashes, .. } = &*self.0;
        let lasted_ms = self.0.lock().take().map_or(0, |(since_ms, _)| clock::mono_ms().saturating_sub(since_ms));
        self.0.ended_ms.store(clock::mono_ms().max(1), Ordering::Relaxed);
        let signal = match status {
            ExitStatus::Signal(signal) => Some(signal),
            ExitStatus::Code(_) | ExitStatus::Lost => None,
        };
        let is_crash = !was_told && !status.is_success();
        ground.metrics.project_exits.inc();
        ground.metrics.project_lifetime.observe(lasted_ms as f64 / 1000.0);
        if is_crash {
            ground.metrics.project_crashes.inc();
            crashes.fetch_add(1, Ordering::Relaxed);
        }
        tracing::info!(projectId = %coordinate, code = status.code(), signal, "Project process exited");
        let notice = json!({
            "project": coordinate.to_string(), "slug": slug, "code": status.code(), "signal": signal, "lifetime_ms": lasted_ms, "crash": is_crash,
        });
        ground.bus.publish(NoticeType::ProjectExited, notice);
    }
}

/// Of a program that speaks no protocol: what it writes is for people.
async fn log_output(post: Arc<Post>, output: [Option<pipe::Receiver>; 2], exited: CancellationToken) {
    let [stdout, errors] = output;
    tokio::join!(log_stream(&post, stdout, &exited), log_stream(&post, errors, &exited));
}

async fn log_stream(post: &Post, stream: Option<pipe::Receiver>, exited: &CancellationToken) {
    let Some(stream) = stream else { return };
    tokio::select! {
        () = stderr::log_and_tell(post.child_id(), stream, |line| post.notes.keep("info", line.to_owned())) => {}
        () = after_exit(exited, OUTPUT_PATIENCE) => {}
    }
}

/// Whether events may be handed to it now.
pub(super) fn is_ready(session: &Option<Arc<Session>>) -> bool {
    session.as_ref().is_some_and(|session| session.standing() == Standing::Ready)
}

/// The environment of a project's process, secrets aside.
pub(super) fn environment_of(env: &BTreeMap<String, String>, pass_env: &[String], own: &[(&str, String)]) -> Vec<(String, String)> {
    let mut all: BTreeMap<String, String> = environment::with(env, pass_env).into_iter().collect();
    all.extend(own.iter().map(|(name, value)| ((*name).to_owned(), value.clone())));
    all.into_iter().collect()
}
