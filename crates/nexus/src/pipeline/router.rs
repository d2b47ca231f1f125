//! The router: reads committed events in order, admits them as requests, and decides when each may
//! go through stages 1 to 5 (one at a time per conversation) and when its run may start (one at a
//! time per session, so many per agent).
//!
//! It keeps places (seqs), not requests: at most `PREPARED_MAX` requests wait in memory with their
//! context, the rest is read back from the ledger when its turn comes. How turns begin and are aborted is in
//! `turns`. One task owns all of this. After
//! a panic in it what is under way comes to its end, and the rest is read back: see `anew`.

mod admit;
mod anew;
#[cfg(test)]
mod hold_tests;
mod lanes;
mod line;
mod sessions;
#[cfg(test)]
mod tests;
mod turns;

pub use admit::ADMISSION;
pub(crate) use admit::{conversation_of, row_of};

use super::pending::{OfAuthor, Pending};
use super::steering::Release;
use super::{Outcome, Pipeline, READ_PATIENCE};
use crate::agent::project::session_to_wake;
use crate::clock;
use crate::ledger::events::{StoredEvent, by_seq, count_after};
use crate::ledger::nexus::{OpenRequest, counter, open_requests, request_id_of};
use crate::nostr;
use crate::panics;
use lanes::Lanes;
use nexus_core::ids::AccountKey;
use nexus_core::pace::Paces;
use rusqlite::Connection;
use sessions::Sessions;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::{AbortOnDropHandle, TaskTracker};
use turns::Begun;

/// Its name in the watch over the daemon's tasks.
pub const ROUTER: &str = "router";
/// Prepared requests that may wait in memory for their session.
const PREPARED_MAX: usize = 1024;
/// Finished tasks and verbs that may wait for the router.
const INBOX_MAX: usize = 4096;
/// Admitted pages that may wait for the router.
const PAGES_MAX: usize = 2;

/// Keeps an account's requests waiting while it lives; several of one account add up. Dropped in
/// whatever way, a panic included, it lets them go.
#[derive(Debug)]
#[must_use = "dropped at once, it holds nothing"]
pub struct Hold {
    _alive: oneshot::Sender<()>,
}

/// What the router is told.
#[derive(Debug)]
enum Told {
    /// Stages 1 to 5 of this request are over.
    Prepared {
        seq: i64,
        outcome: Outcome,
    },
    /// The run's session may go on.
    Released {
        seq: i64,
        /// Requests that shared it.
        fellows: Vec<i64>,
        session: String,
        agent: String,
        system: bool,
        /// What became of those that it was given meanwhile.
        release: Release,
    },
    /// A request that its session dropped is over, or is left to the next start.
    Dropped {
        seq: i64,
        is_over: bool,
    },
    /// Requests of an account wait until it has caught up.
    Hold(AccountKey, oneshot::Sender<()>),
    Release(AccountKey),
    /// No turn of this session begins until it is woken, or a new event of its project comes.
    Rest(String, oneshot::Sender<()>),
    Wake(String),
}

/// Handle to the router.
#[derive(Debug, Clone)]
pub struct Router {
    told: mpsc::Sender<Told>,
    stop: CancellationToken,
    runs: TaskTracker,
}

/// Figures for health and metrics.
#[derive(Debug, Clone, Copy, Default)]
pub struct RouterStats {
    pub waiting: usize,
    pub preparing: usize,
    pub running: usize,
}

impl Router {
    /// Starts the router on what is open in the ledger. `committed` says up to which seq events are
    /// committed, `admitted` is where the router says up to which they are requests.
    ///
    /// # Errors
    /// When the ledger can't be read.
    pub async fn start(
        pipeline: Arc<Pipeline>,
        committed: watch::Receiver<i64>,
        admitted: watch::Sender<i64>,
        pending: Pending,
        stats: watch::Sender<RouterStats>,
    ) -> Result<(Self, tokio::task::JoinHandle<()>), crate::ledger::ReadError> {
        let open = pipeline.ledgers.nexus.readers.read(open_requests).await?;
        let upto = pipeline.ledgers.nexus.readers.read(|connection| counter(connection, "intake_seq")).await?;
        let unadmitted = pipeline.ledgers.events.readers.read(move |connection| count_after(connection, upto)).await?;
        let (told, inbox) = mpsc::channel(INBOX_MAX);
        let router = Self { told: told.clone(), stop: CancellationToken::new(), runs: TaskTracker::new() };
        let mut state = State {
            pipeline,
            pending,
            admitted,
            lanes: Lanes::default(),
            sessions: Sessions::default(),
            requests: HashMap::new(),
            turns: HashMap::new(),
            paces: Paces::new(nostr::PER_SECOND_MAX, nostr::BURST_MAX),
            told,
            runs: router.runs.clone(),
            under_way: TaskTracker::new(),
            stats,
        };
        for (adapter, account, events) in unadmitted {
            state.pending.raise(&AccountKey::new(adapter, account), events);
        }
        for request in open {
            state.pending.raise(&AccountKey::new(&request.adapter, &request.account_id), 1);
            state.know(request, None);
        }
        let stop = router.stop.clone();
        Ok((router, crate::watch::helper("router", state.serve(inbox, committed, stop))))
    }

    /// Keeps the requests of `account` waiting for as long as the answer lives, but `limit` at most;
    /// returns once that is in force.
    pub async fn hold(&self, account: &AccountKey, limit: Duration) -> Hold {
        let (done, in_force) = oneshot::channel();
        let (alive, dropped) = oneshot::channel();
        crate::watch::helper("router.hold", keep_held(self.told.clone(), account.clone(), done, dropped, limit));
        drop(in_force.await); // an error means that the router has stopped
        Hold { _alive: alive }
    }

    /// Begins no turn of the session of a project until it is woken, a new event of the project comes, or the daemon is started
    /// again; returns once that is in force. The turn under way goes on.
    pub async fn rest(&self, session: &str) {
        let (done, in_force) = oneshot::channel();
        tell(&self.told, Told::Rest(session.to_owned(), done)).await;
        drop(in_force.await); // an error means that the router has stopped
    }

    /// Goes on with what waits in a session.
    pub async fn wake(&self, session: &str) {
        tell(&self.told, Told::Wake(session.to_owned())).await;
    }

    /// Cancelled once nothing new is to be started.
    pub fn stopping(&self) -> &CancellationToken {
        &self.stop
    }

    /// Starts nothing new, and waits up to `patience` for what runs. True when all ended.
    pub async fn drain(&self, patience: Duration) -> bool {
        self.stop.cancel();
        self.runs.close();
        tokio::time::timeout(patience, self.runs.wait()).await.is_ok()
    }

    /// Waits for every run to note its interruption, after `Pipeline::abandon` was cancelled.
    pub async fn wait(&self) {
        self.runs.wait().await;
    }
}

/// A request that is known but not over.
#[derive(Debug)]
struct Known {
    conversation: Arc<str>,
    account: Arc<AccountKey>,
    /// That it counts for its author, who is known of Nostr's.
    share: Option<OfAuthor>,
    /// Its id and event; kept only while its conversation can take it at once.
    at_hand: Option<Box<(String, StoredEvent)>>,
    /// Its conversation goes on without waiting for it any more.
    let_go: bool,
    /// A stop or a crash interrupted its run.
    is_revived: bool,
    /// It may not be prepared before, by [`clock::mono_ms`].
    not_before_ms: u64,
}

struct State {
    pipeline: Arc<Pipeline>,
    pending: Pending,
    admitted: watch::Sender<i64>,
    lanes: Lanes,
    sessions: Sessions,
    requests: HashMap<i64, Known>,
    /// Runs that are under way, each by the newest of those that began it.
    turns: HashMap<i64, Begun>,
    /// Of the authors of Nostr.
    paces: Paces,
    told: mpsc::Sender<Told>,
    runs: TaskTracker,
    /// What was begun from here and must end before anything is read back.
    under_way: TaskTracker,
    stats: watch::Sender<RouterStats>,
}

impl State {
    /// Routes until `stop`; an error is what broke.
    async fn run(
        &mut self,
        inbox: &mut mpsc::Receiver<Told>,
        committed: watch::Receiver<i64>,
        stop: &CancellationToken,
    ) -> Result<(), String> {
        let (sender, mut pages) = mpsc::channel(PAGES_MAX);
        let admission = admit::Admission::new(&self.pipeline, &self.admitted, &self.under_way).run(committed, sender);
        let admission = AbortOnDropHandle::new(crate::watch::tracked("admission", &self.under_way, admission));
        self.start_lanes();
        loop {
            self.publish();
            crate::torture::point("task.router");
            tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(()),
                Some(told) = inbox.recv() => self.take(told),
                () = turns::due(self.sessions.next_due_ms().into_iter().chain(self.lanes.next_due_ms()).min()) => {
                    let agents = self.sessions.offer_due(clock::mono_ms());
                    self.start_runs(&agents);
                }
                page = pages.recv() => match page {
                    Some(page) => page.into_iter().for_each(|(request, event)| self.know(request, Some(event))),
                    None => return admission.await.map_err(|error| format!("admitting events: {error}")),
                },
            }
            self.start_lanes();
        }
    }

    fn publish(&self) {
        let (preparing, running) = (self.lanes.preparing(), self.sessions.running());
        let waiting = self.requests.len().saturating_sub(preparing + running);
        self.stats.send_replace(RouterStats { waiting, preparing, running });
    }

    fn know(&mut self, request: OpenRequest, event: Option<Box<StoredEvent>>) {
        let not_before_ms = if request.adapter == nostr::ADAPTER {
            // Of what is read back nobody knows the author yet. Its conversation stands for that: a flood that waits on
            // disk is none the less one after a restart.
            let who = event.as_ref().map_or(&request.conversation, |event| &event.event.sender_id);
            self.paces.next(who, clock::mono_ms())
        } else {
            0
        };
        if let Some(event) = event.as_ref().filter(|_| self.sessions.is_any_resting())
            && let Some(session) = session_to_wake(&request.adapter, &event.event)
        {
            self.wake(&session);
        }
        let author = event.as_ref().filter(|_| request.adapter == nostr::ADAPTER).map(|event| event.event.sender_id.as_str());
        let share = author.map(|author| self.pending.open(request.event_seq, author));
        if share.is_none() {
            self.pending.pass(request.event_seq);
        }
        let account = AccountKey::new(request.adapter, request.account_id);
        let place = self.lanes.push(&request.conversation, &account, request.event_seq);
        let at_hand = event.filter(|_| place.soon).map(|event| Box::new((request.request_id, *event)));
        let is_revived = request.attempts > 0;
        let (conversation, account) = (place.conversation, place.account);
        let known = Known { conversation, account, share, at_hand, let_go: false, is_revived, not_before_ms };
        self.requests.insert(request.event_seq, known);
    }

    fn take(&mut self, told: Told) {
        match told {
            Told::Prepared { seq, outcome } => self.prepared(seq, outcome),
            Told::Released { seq, fellows, session, agent, system, release } => {
                self.take_back(seq, release);
                fellows.into_iter().chain([seq]).for_each(|seq| self.over(seq));
                let agents = self.sessions.released(&session, &agent, system, clock::mono_ms());
                self.start_runs(&agents);
            }
            Told::Dropped { seq, is_over: true } => self.over(seq),
            Told::Dropped { seq, is_over: false } => drop(self.requests.remove(&seq)),
            Told::Hold(account, done) => {
                self.lanes.hold(&account);
                done.send(()).ok(); // the asker may have given up
            }
            Told::Release(account) => self.lanes.release(&account),
            Told::Rest(session, done) => {
                self.sessions.rest(session, clock::mono_ms());
                done.send(()).ok(); // the asker may have given up
            }
            Told::Wake(session) => self.wake(&session),
        }
    }

    fn wake(&mut self, session: &str) {
        if let Some(agent) = self.sessions.wake(session, clock::mono_ms()) {
            self.start_runs(&[agent]);
        }
    }

    fn prepared(&mut self, seq: i64, outcome: Outcome) {
        self.lanes.prepared();
        match outcome {
            Outcome::Settled => {
                self.let_go(seq);
                self.over(seq);
                self.go_on_without(seq);
            }
            // The daemon is stopping, or the ledger is out of order: the row waits for a start.
            Outcome::Abandoned => {
                self.let_go(seq);
                self.requests.remove(&seq);
                self.go_on_without(seq);
            }
            Outcome::Run(prepared) => {
                let may_be_asked = self.pipeline.may_be_asked(&prepared);
                let mut pushed = self.sessions.push(seq, *prepared, PREPARED_MAX, clock::mono_ms());
                pushed.lets_go |= may_be_asked;
                self.pushed(seq, pushed);
            }
        }
    }

    /// The session that kept a place for this request need not wait for it.
    fn go_on_without(&mut self, seq: i64) {
        let agents = self.sessions.forget(seq, clock::mono_ms());
        self.start_runs(&agents);
    }

    /// The conversation of a request may prepare its next one, if it may not already.
    fn let_go(&mut self, seq: i64) {
        let Some(known) = self.requests.get_mut(&seq) else { return };
        if !std::mem::replace(&mut known.let_go, true) {
            self.lanes.finished(&known.conversation);
        }
    }

    /// A request has its end.
    fn over(&mut self, seq: i64) {
        if let Some(Known { account, share, .. }) = self.requests.remove(&seq) {
            drop(share); // before those are woken who wait for the account
            self.pending.lower(&account);
        }
    }

    fn start_lanes(&mut self) {
        let limit = usize::try_from(self.pipeline.settings.load().pipeline.max_concurrent).unwrap_or(usize::MAX);
        let now_ms = clock::mono_ms();
        self.lanes.offer_due(now_ms);
        while let Some(seq) = self.lanes.start_next(limit) {
            match self.requests.get_mut(&seq) {
                Some(known) if known.not_before_ms > now_ms => {
                    known.at_hand = None; // the disk has it
                    self.lanes.put_off(&known.conversation, seq, known.not_before_ms);
                }
                Some(_) | None => self.prepare(seq),
            }
        }
    }

    fn prepare(&mut self, seq: i64) {
        let Some(known) = self.requests.get_mut(&seq) else { return };
        let (at_hand, conversation, is_revived) = (known.at_hand.take(), known.conversation.clone(), known.is_revived);
        let (pipeline, told) = (self.pipeline.clone(), self.told.clone());
        let work = self.under_way.track_future(async move {
            let prepared = panics::caught(async {
                match load(&pipeline, seq, at_hand).await {
                    Some((request_id, event)) => pipeline.prepare(event, request_id, is_revived).await,
                    None => Outcome::Abandoned,
                }
            });
            let outcome = match prepared.await {
                Ok(outcome) => outcome,
                Err(panicked) => pipeline.break_off(seq, pipeline.unsettled.begin(&conversation, seq), &panicked).await,
            };
            tell(&told, Told::Prepared { seq, outcome }).await;
        });
        crate::watch::tracked("request", &self.runs, work);
    }
}

pub(super) async fn load(pipeline: &Pipeline, seq: i64, at_hand: Option<Box<(String, StoredEvent)>>) -> Option<(String, StoredEvent)> {
    if let Some(at_hand) = at_hand {
        return Some(*at_hand);
    }
    // Its page may still be on the way to the disk.
    let mut admitted = pipeline.admitted.clone();
    if admitted.wait_for(|upto| *upto >= seq).await.is_err() {
        return None;
    }
    let (ledgers, stop) = (&pipeline.ledgers, &pipeline.abandon);
    let (nexus, id) = (ledgers.nexus.readers.clone(), move |connection: &Connection| request_id_of(connection, seq));
    // Both at once: another thread's time costs more than the read.
    let both = move |connection: &Connection| -> rusqlite::Result<_> { Ok((by_seq(connection, seq)?, nexus.read_now(id).ok())) };
    let (event, request_id) = ledgers.events.readers.read_patiently(both, READ_PATIENCE, stop).await?;
    let request_id = match request_id {
        Some(found) => found,
        // It failed: from here on it is told, and repeated by itself.
        None => ledgers.nexus.readers.read_patiently(id, READ_PATIENCE, stop).await?,
    };
    if event.is_none() || request_id.is_none() {
        tracing::error!(seq, "a request or its event is not in its ledger; left waiting");
    }
    request_id.zip(event)
}

/// Holds an account until `dropped` says that nobody wants it any more, or for `limit`. A task of its
/// own: nothing that happens to who asked for it can leave the account held.
async fn keep_held(
    told: mpsc::Sender<Told>,
    account: AccountKey,
    done: oneshot::Sender<()>,
    dropped: oneshot::Receiver<()>,
    limit: Duration,
) {
    if told.send(Told::Hold(account.clone(), done)).await.is_err() {
        return; // the router has stopped
    }
    if tokio::time::timeout(limit, dropped).await.is_err() {
        tracing::warn!(%account, limit_s = limit.as_secs(), "held for its whole limit; the account's requests go on meanwhile");
    }
    tell(&told, Told::Release(account)).await;
}

async fn tell(told: &mpsc::Sender<Told>, what: Told) {
    if told.send(what).await.is_err() {
        tracing::trace!("the router has stopped");
    }
}
