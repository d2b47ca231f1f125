//! The one process in which all automations run, a runtime each. It is there while there is an automation; a
//! new one is given them all before it is asked anything.

use super::super::calls::{CallerKind, Calls};
use super::super::fault::Fault;
use super::super::frame;
use super::super::loaded::Shared;
use super::super::loader::LOAD_LIMIT;
use super::super::session::{Desk, Desks, Guests, Session, Standing};
use super::one::Automation;
use crate::environment;
use crate::keeper::{Process, SpawnSpec, Stdin};
use crate::panics::finally;
use crate::supervisor::{self, BoxFuture, Child, ChildSpec, ChildStatus, NotReady, Phase};
use arc_swap::ArcSwapOption;
use nexus_core::config::Grant;
use nexus_core::ids::ChildId;
use nexus_core::lifecycle::RestartPolicy;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use tokio::sync::{MutexGuard, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// What one automation may use (`nexus __automation-host`); the CPU time is that of one call.
const MEMORY_MB: &str = "32";
const STACK_KB: &str = "512";
const CALL_MS: &str = "100";
/// Who waits for an answer waits for the next process as well: it comes at once, as long as it doesn't fail on and on.
const POLICY: RestartPolicy = RestartPolicy {
    max_restarts: 20,
    backoff_base_ms: 50,
    backoff_multiplier: 2.0,
    backoff_max_ms: 5_000,
    reset_after_ms: 60_000,
    errored_retry_ms: 60_000,
    stop_grace_ms: 2_000,
    on_demand: None,
};

/// The process, and who is in it.
#[derive(Debug)]
pub(super) struct Host {
    pub(super) shared: Shared,
    pub(super) calls: Arc<ArcSwapOption<Calls>>,
    guests: Arc<Guests>,
    /// Those that each process is given, by number.
    automations: Mutex<BTreeMap<u64, Arc<Automation>>>,
    session: watch::Sender<Option<Arc<Session>>>,
    child: Mutex<Option<Child>>,
    /// One gives the process automations or takes it down at a time, so that none is left out of a new one.
    giving: tokio::sync::Mutex<()>,
    /// Calls that a process took down with it are repeated one at a time: whoever did that does it alone then.
    repeating: tokio::sync::Mutex<()>,
    ids: AtomicU64,
}

impl Host {
    pub(super) fn new(shared: Shared, calls: Arc<ArcSwapOption<Calls>>) -> Arc<Self> {
        Arc::new(Self {
            shared,
            calls,
            guests: Arc::default(),
            automations: Mutex::default(),
            session: watch::Sender::new(None),
            child: Mutex::default(),
            giving: tokio::sync::Mutex::default(),
            repeating: tokio::sync::Mutex::default(),
            ids: AtomicU64::new(0),
        })
    }

    /// A number that nothing else has or had: of a call, or of a guest.
    pub(super) fn next_id(&self) -> u64 {
        self.ids.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Takes in an automation; [`Self::said`] tells what became of it.
    pub(super) async fn add(self: &Arc<Self>, automation: Arc<Automation>) {
        let _one = self.giving.lock().await;
        self.run().await;
        self.lock_guests().insert(automation.guest, automation.desk.clone());
        self.lock_automations().insert(automation.guest, automation.clone());
        let session = self.session.borrow().clone();
        if let Some(session) = session {
            // A process that is gone is followed by one that gets it with all others.
            session.tell(automation.line()).await;
        }
    }

    /// Lets go of an automation that nobody asks any more.
    pub(super) async fn remove(&self, guest: u64) {
        let _one = self.giving.lock().await;
        self.lock_guests().remove(&guest);
        self.lock_automations().remove(&guest);
        let session = self.session.borrow().clone();
        if let Some(session) = session {
            session.tell(frame::unload(guest)).await; // a process that is gone has forgotten it
        }
    }

    /// Ends the process, if nobody is in it.
    pub(super) async fn rest(&self) {
        let _one = self.giving.lock().await;
        if self.lock_automations().is_empty() {
            self.stop().await;
        }
    }

    /// Ends the process.
    pub(super) async fn stop(&self) {
        let child = self.child.lock().unwrap_or_else(PoisonError::into_inner).take();
        if child.is_some() {
            self.shared.supervisor.remove(&id()).await;
            self.session.send_replace(None);
        }
    }

    pub(super) fn child(&self) -> Option<Child> {
        self.child.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits until the process has said what an automation is.
    ///
    /// # Errors
    /// Why there is none.
    pub(super) async fn said(&self, automation: &Automation) -> Result<(), String> {
        let Some(child) = self.child() else { return Err("it has no process".to_owned()) };
        let (mut status, mut standing) = (child.watch(), automation.standing.subscribe());
        tokio::select! {
            biased;
            standing = standing.wait_for(|standing| *standing != Standing::Unsaid) => match standing.as_deref() {
                Ok(Standing::Ready(_)) => Ok(()),
                Ok(Standing::Fatal(message)) => Err(message.clone()),
                Ok(Standing::Unsaid) | Err(_) => Err("it was removed".to_owned()),
            },
            ended = status.wait_for(is_errored) => Err(ended.map_or_else(|_| "it was removed".to_owned(), |status| why(&status))),
            () = self.shared.stop.cancelled() => Err("the daemon stops".to_owned()),
            () = tokio::time::sleep(LOAD_LIMIT) => Err(format!("it did not say what it is within {} s", LOAD_LIMIT.as_secs())),
        }
    }

    /// The process, once there is one.
    ///
    /// # Errors
    /// [`Fault::Down`], when there will be none soon.
    pub(super) async fn session(&self) -> Result<Arc<Session>, Fault> {
        let Some(child) = self.child() else { return Err(Fault::Down("it was unloaded".to_owned())) };
        let (mut session, mut status) = (self.session.subscribe(), child.watch());
        loop {
            if let Some(session) = session.borrow_and_update().clone().filter(|session| !session.is_gone()) {
                return Ok(session);
            }
            let now = status.borrow_and_update().clone();
            match now.phase {
                Phase::Starting | Phase::Running | Phase::Stopping | Phase::Backoff => {}
                Phase::Stopped | Phase::Errored => return Err(Fault::Down(why(&now))),
            }
            let changed = tokio::select! {
                changed = session.changed() => changed,
                changed = status.changed() => changed,
            };
            changed.map_err(|_| Fault::Down("it is being stopped".to_owned()))?;
        }
    }

    /// Whoever has this repeats a call.
    pub(super) async fn alone(&self) -> MutexGuard<'_, ()> {
        self.repeating.lock().await
    }

    /// Starts the process, unless it runs.
    async fn run(self: &Arc<Self>) {
        let new = {
            let mut child = self.child.lock().unwrap_or_else(PoisonError::into_inner);
            if child.is_some() {
                return;
            }
            let program = Arc::new(Program { host: Arc::downgrade(self) });
            let new = self.shared.supervisor.add(ChildSpec { id: id(), policy: POLICY, program });
            child.insert(new).clone()
        };
        new.start().await;
    }

    /// Gives a new process all automations, then lets them be asked. Those that it could not be done with before
    /// are left out.
    async fn welcome(&self, session: &Arc<Session>) {
        let _one = self.giving.lock().await;
        let all: Vec<Arc<Automation>> = self.lock_automations().values().filter(|one| !one.is_fatal()).cloned().collect();
        for automation in all {
            if !session.tell(automation.line()).await {
                return;
            }
        }
        self.session.send_replace(Some(session.clone()));
    }

    /// What the process says in nobody's name.
    fn own_desk(&self) -> Desk {
        let nothing: Arc<[Grant]> = Arc::from(Vec::new());
        let (grants, standing) = (watch::Sender::new(nothing).subscribe(), watch::Sender::new(Standing::Unsaid));
        Desk::new(CallerKind::Automation, "automations".into(), grants, self.calls.clone(), standing, Arc::default())
    }

    fn lock_guests(&self) -> std::sync::MutexGuard<'_, BTreeMap<u64, Arc<Desk>>> {
        self.guests.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_automations(&self) -> std::sync::MutexGuard<'_, BTreeMap<u64, Arc<Automation>>> {
        self.automations.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Debug)]
struct Program {
    /// Weak: the host owns the child that owns this.
    host: Weak<Host>,
}

impl supervisor::Program for Program {
    fn prepare(&self) -> BoxFuture<'_, Result<SpawnSpec, NotReady>> {
        Box::pin(std::future::ready(Ok(spec(id()))))
    }

    fn attach(&self, process: &mut Process, exited: CancellationToken) -> JoinHandle<()> {
        let host = self.host.upgrade();
        let session = host.as_ref().and_then(|host| Session::new(process, Desks::many(host.own_desk(), host.guests.clone())));
        let host = self.host.clone();
        crate::watch::helper("automations.reader", async move {
            let Some((session, pipes)) = session else { return };
            let _gone = finally(|| {
                if let Some(host) = host.upgrade() {
                    host.session.send_replace(None);
                }
            });
            let welcoming = async {
                if let Some(host) = host.upgrade() {
                    host.welcome(&session).await;
                }
                std::future::pending::<()>().await;
            };
            tokio::select! {
                () = session.clone().serve(id(), pipes, exited) => {}
                () = welcoming => {} // never
            }
        })
    }
}

fn id() -> ChildId {
    ChildId::new("automations")
}

/// How the process is started. It gets no environment but the keeper's mark.
pub(super) fn spec(child: ChildId) -> SpawnSpec {
    let words = ["__automation-host", "--memory-mb", MEMORY_MB, "--stack-kb", STACK_KB, "--call-ms", CALL_MS];
    let argv = std::iter::once(environment::own_binary()).chain(words.map(str::to_owned)).collect();
    SpawnSpec { child, argv, env: Vec::new(), cwd: None, stdin: Stdin::Piped }
}

fn is_errored(status: &ChildStatus) -> bool {
    status.phase == Phase::Errored
}

fn why(status: &ChildStatus) -> String {
    status.last_error.clone().unwrap_or_else(|| "the process of the automations does not run".to_owned())
}
