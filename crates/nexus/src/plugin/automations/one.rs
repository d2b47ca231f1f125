//! One version of one automation: what it is, its circuit, and how it is called. When it is called and what its
//! advice does, others decide.

use super::super::calls::{CallerKind, CallerRequest};
use super::super::fault::Fault;
use super::super::frame::{self, Reply};
use super::super::loaded::Figures;
use super::super::session::{Desk, Lost, Session, Standing};
use super::files::File;
use super::host::Host;
use crate::clock;
use crate::metrics::{AutomationLabel, AutomationResult};
use nexus_core::automation::{Advice, DESCRIPTION_CHARS_MAX, Triggers};
use nexus_core::circuit::{Circuit, CircuitPolicy, Leave};
use nexus_core::config::Grant;
use nexus_core::notice::NoticeType;
use nexus_core::request::NexusRequest;
use serde_json::{Value, json};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;
use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;

/// How long one call may take, with all that it waits for.
pub(super) const WALL: Duration = Duration::from_secs(30);
/// How long the process may say nothing while it is asked something.
const SILENCE_MS_MAX: u64 = 10_000;
/// Calls of one automation that are under way at once; more wait.
const OUTSTANDING_MAX: u32 = 64;
/// What a message of an automation is counted under.
const HOOK: &str = "automation";

/// What an automation wants, by its own word.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Declared {
    pub(super) description: Option<String>,
    pub(super) triggers: Triggers,
    /// It has a state, and so is asked about one event at a time.
    pub(super) remembers: bool,
}

/// One version of an automation.
#[derive(Debug)]
pub(super) struct Automation {
    pub(super) name: Arc<str>,
    /// Its number among those that share the process; another version has another.
    pub(super) guest: u64,
    pub(super) file: File,
    pub(super) figures: Figures,
    pub(super) standing: watch::Sender<Standing>,
    pub(super) desk: Arc<Desk>,
    grants: watch::Sender<Arc<[Grant]>>,
    declared: OnceLock<Declared>,
    circuit: Mutex<Circuit>,
    room: Semaphore,
}

impl Automation {
    pub(super) fn new(file: File, host: &Host, grants: Arc<[Grant]>, policy: CircuitPolicy) -> Arc<Self> {
        let (name, figures) = (Arc::<str>::from(file.name.as_str()), Figures::default());
        let (standing, grants) = (watch::Sender::new(Standing::Unsaid), watch::Sender::new(grants));
        let calls = host.calls.clone();
        let desk = Desk::new(CallerKind::Automation, name.clone(), grants.subscribe(), calls, standing.clone(), figures.ignored.clone());
        Arc::new(Self {
            name,
            guest: host.next_id(),
            file,
            figures,
            standing,
            desk: Arc::new(desk),
            grants,
            declared: OnceLock::new(),
            circuit: Mutex::new(Circuit::new(policy)),
            room: Semaphore::new(OUTSTANDING_MAX as usize),
        })
    }

    /// The line that has a process load it.
    pub(super) fn line(&self) -> Vec<u8> {
        frame::load(self.guest, &self.name, &self.file.path.to_string_lossy(), &self.file.source)
    }

    /// A process could not load it, after all.
    pub(super) fn is_fatal(&self) -> bool {
        matches!(&*self.standing.borrow(), Standing::Fatal(_))
    }

    /// Takes what it has said of itself, once.
    ///
    /// # Errors
    /// What is wrong with that.
    pub(super) fn adopt(&self) -> Result<(), String> {
        let Standing::Ready(ready) = self.standing.borrow().clone() else { return Err("it has not said what it is".to_owned()) };
        let triggers = Triggers::read(&ready.triggers)?;
        let description = ready.description.map(|text| text.chars().take(DESCRIPTION_CHARS_MAX).collect());
        self.declared.set(Declared { description, triggers, remembers: ready.remembers }).ok(); // it can't change
        Ok(())
    }

    /// What it is; nothing but the defaults until it was adopted.
    pub(super) fn declared(&self) -> Declared {
        self.declared.get().cloned().unwrap_or_default()
    }

    pub(super) fn fits(&self, request: &NexusRequest) -> bool {
        self.declared.get().is_some_and(|declared| declared.triggers.fit(request))
    }

    pub(super) fn remembers(&self) -> bool {
        self.declared.get().is_some_and(|declared| declared.remembers)
    }

    pub(super) fn set_grants(&self, grants: Arc<[Grant]>) {
        self.grants.send_replace(grants);
    }

    pub(super) fn set_circuit(&self, policy: CircuitPolicy) {
        self.lock_circuit().set_policy(policy);
    }

    pub(super) fn circuit(&self) -> Circuit {
        self.lock_circuit().clone()
    }

    /// Returns once nobody asks it any more, or the longest time that a call may take is over.
    pub(super) async fn finished(&self) {
        // Late or not: it is let go of then.
        tokio::time::timeout(WALL, self.room.acquire_many(OUTSTANDING_MAX)).await.ok();
    }

    /// Calls the handler, within its own time and `left`; again, once, if the process ended meanwhile, which another
    /// automation may have brought about. Its outcome is to be given to [`Self::settle`].
    pub(super) async fn call(
        &self,
        host: &Host,
        request: &NexusRequest,
        state: Option<Value>,
        left: Duration,
    ) -> (Option<Leave>, Result<Advice, Fault>) {
        let Some(leave) = self.lock_circuit().admit(clock::mono_ms()) else { return (None, Err(Fault::Open)) };
        self.figures.calls.fetch_add(1, Ordering::Relaxed);
        let limit = WALL.min(left);
        let late = if WALL <= left { Fault::Late { limit_ms: limit.as_millis() } } else { Fault::OutOfTime };
        let context = json!({ "request": request, "state": state });
        let deadline = Instant::now() + limit;
        let asking = async {
            let _room = self.room.acquire().await.map_err(|_| Fault::Down("it is being stopped".to_owned()))?;
            match self.converse(host, request, &context, deadline).await {
                Err(Fault::Died) => {
                    let _alone = host.alone().await;
                    tracing::warn!(automation = %self.name, "the process of the automations ended; a call is repeated");
                    self.converse(host, request, &context, deadline).await
                }
                answer => answer,
            }
        };
        let answer = tokio::time::timeout_at(deadline, asking).await.unwrap_or_else(|_| Err(late.clone()));
        let answer = answer.map_err(|fault| if fault == Fault::OutOfTime { late } else { fault }); // by whose time it was
        (Some(leave), answer.and_then(|reply| self.advice(reply)))
    }

    async fn converse(&self, host: &Host, request: &NexusRequest, context: &Value, deadline: Instant) -> Result<Reply, Fault> {
        let session = host.session().await?;
        let (id, began_ms) = (host.next_id(), clock::mono_ms());
        let line = frame::advise(self.guest, id, context.clone(), deadline.saturating_duration_since(Instant::now()));
        let caller = CallerRequest::new(request, &request.adapter, HOOK);
        // However the waiting ends.
        let _ear = Ear { session: &session, began_ms };
        session.call(id, line, Some(caller), deadline).await.map_err(|lost| match lost {
            Lost::Gone => Fault::Died,
            Lost::Late => Fault::OutOfTime,
        })
    }

    fn advice(&self, reply: Reply) -> Result<Advice, Fault> {
        match reply {
            Reply::Continue => Ok(Advice::default()),
            Reply::Returned(value) => Advice::read(value, self.remembers()).map_err(Fault::Nonsense),
            Reply::Error(message) => Err(Fault::Threw(message)),
            Reply::TakenAlong(message) => Err(Fault::TakenAlong(message)),
            Reply::Nonsense(what) => Err(Fault::Nonsense(what)),
            Reply::Skip { .. } | Reply::Patch(_) => Err(Fault::Nonsense("`skip` and `patch` are for plugins".to_owned())),
        }
    }

    /// Counts a call and tells of it, once its advice was judged.
    pub(super) fn settle(&self, host: &Host, request: &NexusRequest, leave: Option<Leave>, took: Duration, outcome: Result<(), &Fault>) {
        let word = outcome.map_or_else(Fault::word, |()| "advice");
        let (automation, shared) = (self.name.as_ref(), &host.shared);
        shared.metrics.automation_calls.get_or_create(&AutomationResult { automation: automation.to_owned(), result: word }).inc();
        let label = AutomationLabel { automation: automation.to_owned() };
        shared.metrics.automation_seconds.get_or_create(&label).observe(took.as_secs_f64());
        let (request_id, ms) = (&request.request_id, took.as_secs_f64() * 1000.0);
        let mut notice = json!({ "automation": automation, "request_id": request_id, "event_id": request.event.event_id, "ms": ms });
        let Err(fault) = outcome else {
            if leave.is_some_and(|leave| self.lock_circuit().succeeded(leave)) {
                tracing::info!(automation, "an automation answers again");
            }
            return shared.bus.publish(NoticeType::HookFired, notice);
        };
        if *fault == Fault::Open {
            return; // told when it opened
        }
        let opened = fault.counts() && leave.is_some_and(|leave| self.lock_circuit().failed(leave, clock::mono_ms()));
        self.note_error(fault);
        if opened {
            tracing::error!(automation, request_id, error = %fault, "an automation failed too often in a row; it is not asked for a while");
        } else if fault.counts() {
            tracing::warn!(automation, request_id, error = %fault, "an automation failed; the event goes on");
        }
        notice["error"] = fault.to_string().into();
        notice["circuit_opened"] = opened.into();
        shared.bus.publish(NoticeType::HookError, notice);
    }

    fn note_error(&self, fault: &Fault) {
        if fault.counts() {
            self.figures.errors.fetch_add(1, Ordering::Relaxed);
            *self.figures.last_error.lock().unwrap_or_else(PoisonError::into_inner) = Some(fault.to_string());
        }
    }

    fn lock_circuit(&self) -> std::sync::MutexGuard<'_, Circuit> {
        self.circuit.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Kills a process that has said nothing at all, of no automation, for longer than any needs until it answers or
/// asks for something.
struct Ear<'s> {
    session: &'s Session,
    began_ms: u64,
}

impl Drop for Ear<'_> {
    fn drop(&mut self) {
        let waited_ms = clock::mono_ms().saturating_sub(self.began_ms);
        if waited_ms >= SILENCE_MS_MAX && !self.session.was_heard_since(self.began_ms) {
            tracing::error!(waited_ms, "the process of the automations says nothing; it is killed");
            self.session.kill("the process said nothing while it was asked something");
        }
    }
}
