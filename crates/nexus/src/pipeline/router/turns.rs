//! Turns of the router's sessions: how they begin, are given messages, are aborted and come to their end, and the end of
//! what a session drops. Which of them, `sessions` says.

use super::sessions::{Pushed, Turn};
use super::{PREPARED_MAX, State, Told, tell};
use crate::clock;
use crate::panics;
use crate::pipeline::running::Abort;
use crate::pipeline::steering::{Held, Release};
use crate::pipeline::{Outcome, Prepared};
use nexus_core::lane::STEER_MESSAGES_MAX;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};

/// Why a request is dropped that found too many of its session waiting, or was the oldest of too many.
const DROPPED: &str = "dropped: more messages of its session waited than `queue.cap` of its policy lets wait";

/// A run that is under way.
#[derive(Debug)]
pub(super) struct Begun {
    /// Ends it.
    abort: Abort,
    /// Where it gets messages, if its agent may take input.
    give: Option<mpsc::Sender<Box<Prepared>>>,
    /// Those that it was given.
    given: Vec<i64>,
}

/// Comes when `due_ms`, by [`clock::mono_ms`], is reached; never without it.
pub(super) async fn due(due_ms: Option<u64>) {
    match due_ms {
        Some(due_ms) => tokio::time::sleep(Duration::from_millis(due_ms.saturating_sub(clock::mono_ms()))).await,
        None => std::future::pending().await,
    }
}

impl State {
    /// Does what a request brought about that came to its session.
    pub(super) fn pushed(&mut self, seq: i64, pushed: Pushed) {
        let Pushed { look, aborts, steers, dropped, lets_go } = pushed;
        if lets_go {
            self.let_go(seq);
        }
        if let Some(turn) = aborts.and_then(|running| self.turns.get(&running)) {
            turn.abort.cancel();
        }
        if let Some((running, prepared)) = steers {
            self.give(running, prepared);
        }
        for (seq, prepared) in dropped {
            self.let_go(seq);
            self.expire(seq, prepared);
        }
        self.start_runs(&look);
    }

    /// Gives a message to the run under way of its session. One that it has no room for waits for a turn of its own.
    fn give(&mut self, running: i64, prepared: Box<Prepared>) {
        let seq = prepared.request.event_seq;
        let refused = match self.turns.get_mut(&running) {
            Some(Begun { give: Some(give), given, .. }) => match give.try_send(prepared) {
                Ok(()) => return given.push(seq),
                Err(refused) => refused.into_inner(),
            },
            Some(_) | None => prepared,
        };
        self.sessions.restore(refused, PREPARED_MAX, clock::mono_ms());
    }

    /// What a run was given is over with it, or the session's again.
    pub(super) fn take_back(&mut self, running: i64, release: Release) {
        let Release { joined, left } = release;
        let mut lost = self.turns.remove(&running).map(|turn| turn.given).unwrap_or_default();
        lost.retain(|seq| !joined.contains(seq) && left.iter().all(|prepared| prepared.request.event_seq != *seq));
        joined.into_iter().for_each(|seq| self.over(seq));
        for prepared in left {
            self.sessions.restore(Box::new(prepared), PREPARED_MAX, clock::mono_ms());
        }
        // The run broke off with it.
        for seq in lost {
            self.lanes.preparing_again();
            self.prepare(seq);
        }
    }

    /// Ends a request that its session dropped. From here on the later runs of its conversation wait for that.
    fn expire(&self, seq: i64, prepared: Option<Box<Prepared>>) {
        let Some(known) = self.requests.get(&seq) else { return };
        let (pipeline, told) = (self.pipeline.clone(), self.told.clone());
        let ending = pipeline.unsettled.begin(&known.conversation, seq);
        let work = self.under_way.track_future(async move {
            let expired = panics::caught(pipeline.expire(seq, prepared, DROPPED.to_owned(), ending.clone())).await;
            let outcome = match expired {
                Ok(outcome) => outcome,
                Err(panicked) => pipeline.break_off(seq, ending, &panicked).await,
            };
            let is_over = match outcome {
                Outcome::Settled => true,
                Outcome::Run(_) | Outcome::Abandoned => false,
            };
            tell(&told, Told::Dropped { seq, is_over }).await;
        });
        crate::watch::tracked("request", &self.runs, work);
    }

    /// Starts every run of these agents that may start now.
    pub(super) fn start_runs(&mut self, agents: &[String]) {
        for agent in agents {
            self.start_runs_of(agent);
        }
    }

    fn start_runs_of(&mut self, agent: &str) {
        while let Some(Turn { seq, prepared, is_aborted, given }) = self.sessions.start_next(agent) {
            match prepared {
                Some(prepared) => {
                    // From here on the conversations may prepare their next requests.
                    prepared.fellow_seqs().into_iter().chain([seq]).for_each(|seq| self.let_go(seq));
                    self.start_run(seq, prepared, is_aborted);
                    given.into_iter().for_each(|one| self.give(seq, Box::new(one)));
                }
                // It was too many to keep in memory: stages 1 to 5 again, then its turn at once.
                None => {
                    self.lanes.preparing_again();
                    self.prepare(seq);
                }
            }
        }
    }

    fn start_run(&mut self, seq: i64, mut prepared: Box<Prepared>, is_aborted: bool) {
        let (pipeline, told) = (self.pipeline.clone(), self.told.clone());
        let (session, agent, system) = (prepared.session.clone(), prepared.agent.name.clone(), prepared.is_system());
        let (fellows, abort) = (prepared.fellow_seqs(), Abort::default());
        if is_aborted {
            abort.cancel();
        }
        prepared.abort = abort.clone();
        let at_work = pipeline.turns.begin(&prepared);
        let (give, given) = prepared.agent.takes_input.then(|| mpsc::channel(STEER_MESSAGES_MAX)).unzip();
        self.turns.insert(seq, Begun { abort, give, given: Vec::new() });
        let work = self.under_way.track_future(async move {
            let (session_held, released) = oneshot::channel();
            let run = crate::watch::helper("run", async move { pipeline.run(*prepared, Held::new(session_held, given)).await });
            let release = released.await.unwrap_or_default(); // an error: it broke off
            drop(at_work); // what runs in the session next is another turn
            tell(&told, Told::Released { seq, fellows, session, agent, system, release }).await;
            if let Err(error) = run.await {
                tracing::error!(seq, %error, "a run failed; the next start decides by on_interrupted");
            }
        });
        crate::watch::tracked("request", &self.runs, work);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::lanes::Lanes;
    use super::super::sessions::Sessions;
    use super::super::{INBOX_MAX, RouterStats};
    use super::*;
    use crate::ledger::nexus::OpenRequest;
    use crate::pipeline::Pipeline;
    use crate::pipeline::broken::tests::Place;
    use crate::pipeline::pending::Pending;
    use futures_util::FutureExt;
    use nexus_core::pace::Paces;
    use std::collections::HashMap;
    use std::sync::Arc;
    use tokio::sync::{mpsc, watch};
    use tokio_util::task::TaskTracker;

    /// How long anything here may take.
    const DEADLINE: Duration = Duration::from_secs(60);

    fn state(pipeline: Arc<Pipeline>) -> (State, mpsc::Receiver<Told>) {
        let (told, inbox) = mpsc::channel(INBOX_MAX);
        let state = State {
            pipeline,
            pending: Pending::default(),
            admitted: watch::channel(0).0,
            lanes: Lanes::default(),
            sessions: Sessions::default(),
            requests: HashMap::new(),
            turns: HashMap::new(),
            paces: Paces::new(1, 1),
            told,
            runs: TaskTracker::new(),
            under_way: TaskTracker::new(),
            stats: watch::channel(RouterStats::default()).0,
        };
        (state, inbox)
    }

    fn open(event_seq: i64, adapter: &str) -> OpenRequest {
        OpenRequest {
            event_seq,
            request_id: format!("req_{event_seq}"),
            conversation: "c".to_owned(),
            adapter: adapter.to_owned(),
            account_id: "me".to_owned(),
            attempts: 0,
        }
    }

    #[tokio::test]
    async fn a_flood_of_nostr_that_is_read_back_is_let_through_at_its_pace() {
        let place = Place::with_a_request().await;
        let (mut state, _inbox) = state(place.pipeline.clone());
        for (seq, adapter) in [(1, crate::nostr::ADAPTER), (2, crate::nostr::ADAPTER), (3, "fake")] {
            state.know(open(seq, adapter), None);
        }
        let not_before = |seq: i64| state.requests[&seq].not_before_ms;
        assert!(not_before(2) >= not_before(1) + 1_000);
        assert_eq!(not_before(3), 0, "nobody else waits");
    }

    #[tokio::test]
    async fn a_run_waits_for_the_end_of_what_its_session_dropped() {
        let place = Place::with_a_request().await;
        let (mut state, _inbox) = state(place.pipeline.clone());
        state.know(open(1, "fake"), None);
        state.pushed(1, Pushed { dropped: vec![(1, None)], ..Pushed::default() });
        let mut later_run = std::pin::pin!(place.pipeline.unsettled.none_before("c", 2));
        assert!((&mut later_run).now_or_never().is_none(), "a later run would overtake it");
        assert!(tokio::time::timeout(DEADLINE, later_run).await.unwrap(), "its end was not written");
    }
}
