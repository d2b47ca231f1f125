//! The eight stages of a request, in order. Stages 1 to 5 run one request at a time per
//! conversation ([`Pipeline::prepare`]); 6 to 8 once its session is free (`run`). When
//! that is, the [`router`] decides; this module never waits for a lane.

pub mod assemble;
mod automate;
pub mod breakers;
mod broken;
mod collect;
mod finish;
pub mod followers;
mod identify;
mod notices;
pub mod outbox;
mod outlet;
pub mod pending;
mod questions;
mod reach;
mod recall;
mod record;
pub mod recovery;
mod reply;
pub mod router;
mod run;
pub mod running;
mod scheduled;
mod settle;
pub mod spending;
mod steering;
mod told;
mod trace;
pub mod unsettled;
mod verdict;
mod withdrawn;
pub mod words;

use crate::access::Speaker;
use crate::agent::Runner;
use crate::agent::project::project_of;
use crate::agent::questions::Questions;
use crate::bus::Bus;
use crate::clock;
use crate::ledger::Ledgers;
use crate::ledger::events::StoredEvent;
use crate::ledger::known::Known;
use crate::ledger::nexus::Claim;
use crate::ledger::writer::WriteError;
use crate::metrics::{Metrics, Totals};
use crate::panics;
use crate::plugin::{Automations, HookExit, Plugins};
use crate::replies::Replies;
use crate::routes::Routes;
use crate::search::Search;
use crate::watch::Watch;
use arc_swap::ArcSwap;
use nexus_core::access::{Principal, Rates};
use nexus_core::config::{self, Queue, QueueMode};
use nexus_core::hook::Hook;
use nexus_core::notice::NoticeType;
use nexus_core::request::{NexusRequest, Stage};
use scheduled::Deliver;
use serde_json::json;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// The parts of the configuration that requests are decided by, swapped whole by a reload.
#[derive(Debug)]
pub struct Settings {
    pub pipeline: config::Pipeline,
    pub access: config::Access,
    pub default_agent: String,
    pub agents: HashMap<String, Arc<Agent>>,
    /// What plugins and automations may use of models, where that is limited.
    pub callers: BTreeMap<spending::Payer, config::CallBudget>,
    pub time_zone: jiff::tz::TimeZone,
}

/// A configured agent, ready to run.
#[derive(Debug)]
pub struct Agent {
    pub name: String,
    pub runner: Runner,
    pub timeout: Duration,
    pub max_concurrent: usize,
    /// Running it again repeats nothing (the built-in echo).
    pub harmless: bool,
    /// It may act from its start on without telling: a program of the user's.
    pub acts: bool,
    /// It may take messages while it runs, once it says that it does.
    pub takes_input: bool,
    /// How much of the past is looked for.
    pub memory: config::Memory,
    /// Its use of tokens is counted, and at these prices.
    pub spending: Option<config::Spending>,
    /// Names of the agents that answer while its endpoint can't.
    pub fallback: Vec<String>,
    /// Bytes of one prompt, with its history; none for the usual history.
    pub prompt_bytes_max: Option<usize>,
}

impl Agent {
    /// It answers events of projects, whose processes publish what there is to say: nothing is delivered for them.
    pub fn is_for_projects(&self) -> bool {
        matches!(self.runner, Runner::Project(_))
    }
}

/// Everything the stages need.
#[derive(Debug)]
pub struct Pipeline {
    pub ledgers: Ledgers,
    pub settings: Arc<ArcSwap<Settings>>,
    pub bus: Bus,
    pub watch_over: Watch,
    pub metrics: Metrics,
    pub plugins: Arc<Plugins>,
    pub automations: Arc<Automations>,
    pub routes: Routes,
    pub replies: Replies,
    /// What agents wait for the owner to decide.
    pub questions: Questions,
    pub outbox: outbox::Outbox,
    pub search: Search,
    /// The `finish_seq` up to which the agents ledger has the turns.
    pub turns_applied: watch::Receiver<i64>,
    /// The event seq up to which requests are admitted.
    pub admitted: watch::Receiver<i64>,
    /// Rings the follower of finished runs.
    pub finished: Arc<tokio::sync::Notify>,
    pub epoch: i64,
    /// Cancelled when the drain of a shutdown is over: runs are interrupted.
    pub abandon: CancellationToken,
    /// What stops sessions that go round in circles.
    pub breakers: breakers::Breakers,
    /// Ends without a run that are on their way to the disk, and how many may be.
    pub settling: TaskTracker,
    pub settle_room: Arc<Semaphore>,
    pub unsettled: unsettled::Unsettled,
    /// How often each principal asked of late, for the rates of policies. In memory only: a start begins anew.
    pub rates: std::sync::Mutex<Rates>,
    /// Who spoke of late, by identity.db as it is.
    pub speakers: Known<Speaker, Principal>,
    /// What runs use before the ledger has it.
    pub meters: spending::Meters,
    /// The turns that run.
    pub turns: running::Turns,
    /// How the daemon is, for the owner who asks.
    pub wellbeing: words::Wellbeing,
}

/// How long a request is read again before it is left to the next start: it holds a place that others need.
const READ_PATIENCE: Duration = Duration::from_secs(60);

/// Ends on their way to the disk at once.
pub const SETTLING_MAX: usize = 1024;

/// A request that has an agent, a session and its context, and waits for its turn.
#[derive(Debug)]
pub struct Prepared {
    /// The adapter whose event it is; which one delivers the answer, the request says.
    pub adapter: String,
    pub request: NexusRequest,
    pub agent: Arc<Agent>,
    pub session: String,
    /// The session's label when its sender was not known.
    formerly: Option<String>,
    /// Earlier requests of the session that are answered in the same turn, oldest first.
    fellows: Vec<Prepared>,
    /// Later ones that its agent took in while the turn was under way, in their order.
    joined: Vec<Prepared>,
    /// Ends its turn.
    abort: running::Abort,
    /// Time spent in stages so far, which counts against `pipeline.timeout_ms`.
    spent: Duration,
    timeout: Duration,
    /// A stop or a crash interrupted its run, and it is taken up again.
    is_revived: bool,
    /// An earlier daemon told its turn to end: it is begun only to be ended.
    is_to_end: bool,
}

impl Prepared {
    /// Timer turns: they have slots of their own.
    pub fn is_system(&self) -> bool {
        self.request.event.channel == crate::routes::TIMER_CHANNEL
    }

    /// What becomes of it while a turn of its session runs, as its policy says.
    fn queueing(&self) -> (QueueMode, Queue) {
        let access = self.request.access.as_ref();
        access.map(|access| (access.queue_mode, access.queue.clone())).unwrap_or_default()
    }
}

/// What stages 1 to 5 came to.
#[derive(Debug)]
pub enum Outcome {
    /// Ended: denied, handled, failed.
    Settled,
    Run(Box<Prepared>),
    /// The ledger is closed: the daemon is stopping. The row stays as it is.
    Abandoned,
}

/// Why a stage ended the request.
#[derive(Debug)]
pub(crate) enum Exit {
    Denied(String),
    Handled {
        by: String,
    },
    /// An automation answers in place of an agent, or the daemon a word of its owner.
    Replied {
        by: String,
        /// Which of them, in the key of the answer.
        automation: String,
        text: String,
        /// Its session's label, by which the text is known when it comes back.
        session: String,
    },
    Failed(String),
    /// It has no end: the daemon stops, and the next start decides.
    Stopping,
    Expired(String),
}

/// Counts one request as active for as long as it lives.
#[derive(Debug)]
struct Active(Arc<Totals>);

impl Active {
    fn begin(metrics: &Metrics) -> Self {
        metrics.totals.active.fetch_add(1, Ordering::Relaxed);
        Self(metrics.totals.clone())
    }
}

impl Drop for Active {
    fn drop(&mut self) {
        self.0.active.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Time that stages may take and have taken.
#[derive(Debug)]
struct Budget {
    timeout: Duration,
    spent: Duration,
}

impl Budget {
    fn left(&self) -> Duration {
        self.timeout.saturating_sub(self.spent)
    }
}

impl Pipeline {
    /// Stages 1 to 5. An exit is on its way to the ledger when this returns.
    pub async fn prepare(self: &Arc<Self>, row: StoredEvent, request_id: String, is_revived: bool) -> Outcome {
        let settings = self.settings.load_full();
        let active = Active::begin(&self.metrics);
        let adapter = row.adapter.clone();
        let mut request = row.into_request(request_id, clock::wall_ms());
        // As it was recorded: a plugin may say something else in its metadata.
        let deliver = scheduled::deliver_of(&request);
        let notice = json!({
            "request_id": request.request_id, "event_id": request.event.event_id, "adapter": adapter, "account": request.event.account_id,
            "project": project_of(&adapter, &request.event.metadata),
        });
        self.bus.publish(NoticeType::RequestStarted, notice);
        if is_revived {
            self.let_in(request.event_seq);
        }
        let mut budget = Budget { timeout: Duration::from_millis(settings.pipeline.timeout_ms), spent: Duration::ZERO };
        let seq = request.event_seq;
        match self.whole(seq, self.stages_before_agent(&mut request, &adapter, deliver, &settings, &mut budget)).await {
            Ok((agent, session)) => {
                let formerly = assemble::formerly(&request, &session);
                let Budget { timeout, spent } = budget;
                Outcome::Run(Box::new(Prepared {
                    adapter,
                    request,
                    agent,
                    session,
                    formerly,
                    fellows: Vec::new(),
                    joined: Vec::new(),
                    abort: running::Abort::default(),
                    spent,
                    timeout,
                    is_revived,
                    is_to_end: self.turns.is_to_end(seq),
                }))
            }
            Err(exit) => {
                let ending = self.unsettled.begin(&router::conversation_of(&adapter, &request.event), request.event_seq);
                self.settle(request, exit, active, ending).await
            }
        }
    }

    async fn stages_before_agent(
        &self,
        request: &mut NexusRequest,
        adapter: &str,
        deliver: Option<Deliver>,
        settings: &Settings,
        budget: &mut Budget,
    ) -> Result<(Arc<Agent>, String), Exit> {
        let principal = self.stages_to_access(request, adapter, settings, budget).await?;
        let left = budget.left();
        self.stage(request, Stage::RunAutomations, budget, async |request| {
            self.take_answer(request, adapter).await?;
            self.take_word(request, settings, &principal, left).await?;
            self.automate(request, settings, &principal, left).await
        })
        .await?;
        self.stage(request, Stage::AssembleContext, budget, async |request| {
            let assembled = self.assemble(request, settings, &principal)?;
            if let Some(deliver) = deliver {
                self.lead_answer(request, deliver).await?;
            }
            Ok(assembled)
        })
        .await
    }

    /// Stages 1 to 3: who speaks, and whether they may.
    async fn stages_to_access(
        &self,
        request: &mut NexusRequest,
        adapter: &str,
        settings: &Settings,
        budget: &mut Budget,
    ) -> Result<Principal, Exit> {
        self.stage(request, Stage::ReceiveEvent, budget, async |request| {
            self.ask_whether_it_holds(request).await?;
            self.ask_breaker_of_returns(request, adapter)
        })
        .await?;
        let mut principal =
            self.stage(request, Stage::ResolveIdentity, budget, async |request| self.identify(request, adapter, settings).await).await?;
        if self.plugins.is_asked(Hook::AfterResolveIdentity) {
            identify::adopt(&mut principal, request);
        }
        self.stage(request, Stage::ResolveAccess, budget, async |request| self.authorize(request, settings, &principal)).await?;
        Ok(principal)
    }

    /// What stages came to. A panic between them, as in a hook, fails the request, of which the caller still has what
    /// was found out and decided.
    async fn whole<T>(&self, event_seq: i64, stages: impl Future<Output = Result<T, Exit>>) -> Result<T, Exit> {
        let staged = panics::caught(stages).await;
        staged.unwrap_or_else(|panicked| Err(Exit::Failed(self.defect(event_seq, &panicked))))
    }

    /// Runs one stage: span, time, time-out, hook, trace, notice. A panic in it fails the request; so may a
    /// plugin that is asked behind it, which can also end the request. A stage that ended it is only told of.
    async fn stage<T>(
        &self,
        request: &mut NexusRequest,
        stage: Stage,
        budget: &mut Budget,
        work: impl AsyncFnOnce(&mut NexusRequest) -> Result<T, Exit>,
    ) -> Result<T, Exit> {
        let (started_at, started) = (clock::wall_ms(), Instant::now());
        let mut result = match tokio::time::timeout(budget.left(), panics::caught(work(request))).await {
            Ok(Ok(result)) => result,
            Ok(Err(panicked)) => Err(Exit::Failed(self.defect(request.event_seq, &panicked))),
            Err(_) => Err(Exit::Failed(format!("timed out after {} ms of work in all stages", budget.timeout.as_millis()))),
        };
        let spent = started.elapsed();
        budget.spent += spent;
        let (hook, mut hooks) = (Hook::after(stage), Vec::new());
        if result.is_ok() && self.plugins.is_asked(hook) {
            let (began, asked) = (Instant::now(), self.plugins.ask(hook, request, budget.left()).await);
            budget.spent += began.elapsed();
            hooks = asked.traces;
            match asked.exit {
                None => {}
                Some(HookExit::Handled { by }) => result = Err(Exit::Handled { by }),
                Some(HookExit::Failed(error)) => result = Err(Exit::Failed(error)),
            }
        }
        self.record(request, stage, started_at, spent, result.as_ref().err(), hooks);
        self.plugins.after(stage, request);
        result
    }

    /// Repeats a conditional command until the row that it needs is admitted: stages don't wait for
    /// the commit that admits their request, only their first write does.
    pub(crate) async fn write_admitted<W>(&self, event_seq: i64, write: W) -> Result<Claim, WriteError>
    where
        W: crate::ledger::writer::Write<Set = crate::ledger::nexus::NexusCommand, Reply = Claim> + Clone,
    {
        if *self.admitted.borrow() >= event_seq {
            return self.ledgers.nexus.writer.write_until_done(write).await;
        }
        let claim = self.ledgers.nexus.writer.write_until_done(write.clone()).await?;
        if claim == Claim::Done {
            return Ok(claim);
        }
        let mut admitted = self.admitted.clone();
        if admitted.wait_for(|seq| *seq >= event_seq).await.is_err() {
            return Err(WriteError::Closed { ledger: "nexus" });
        }
        self.ledgers.nexus.writer.write_until_done(write).await
    }
}
