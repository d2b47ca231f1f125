//! Turns of the router's sessions: how they begin, are aborted and come to their end, and the end of what a
//! session drops. Which of them, `sessions` says.

use super::sessions::{Pushed, Turn};
use super::{State, Told, tell};
use crate::clock;
use crate::panics;
use crate::pipeline::{Outcome, Prepared};
use std::time::Duration;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

/// Why a request is dropped that found too many of its session waiting, or was the oldest of too many.
const DROPPED: &str = "dropped: more messages of its session waited than `queue.cap` of its policy lets wait";

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
        let Pushed { look, aborts, dropped, lets_go } = pushed;
        if lets_go {
            self.let_go(seq);
        }
        if let Some(abort) = aborts.and_then(|running| self.aborts.get(&running)) {
            abort.cancel();
        }
        for (seq, prepared) in dropped {
            self.let_go(seq);
            self.expire(seq, prepared);
        }
        self.start_runs(&look);
    }

    /// Ends a request that its session dropped. From here on the later runs of its conversation wait for that.
    fn expire(&self, seq: i64, prepared: Option<Box<Prepared>>) {
        let Some(known) = self.requests.get(&seq) else { return };
        let (pipeline, told) = (self.pipeline.clone(), self.told.clone());
        let ending = pipeline.unsettled.begin(&known.conversation, seq);
        self.runs.spawn(self.under_way.track_future(async move {
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
        }));
    }

    /// Starts every run of these agents that may start now.
    pub(super) fn start_runs(&mut self, agents: &[String]) {
        for agent in agents {
            self.start_runs_of(agent);
        }
    }

    fn start_runs_of(&mut self, agent: &str) {
        while let Some(Turn { seq, prepared, is_aborted }) = self.sessions.start_next(agent) {
            match prepared {
                Some(prepared) => {
                    // From here on the conversations may prepare their next requests.
                    prepared.fellow_seqs().into_iter().chain([seq]).for_each(|seq| self.let_go(seq));
                    self.start_run(seq, prepared, is_aborted);
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
        let (fellows, abort) = (prepared.fellow_seqs(), CancellationToken::new());
        if is_aborted {
            abort.cancel();
        }
        prepared.abort = abort.clone();
        self.aborts.insert(seq, abort);
        self.runs.spawn(self.under_way.track_future(async move {
            let (held, released) = oneshot::channel();
            let work = tokio::spawn(async move { pipeline.run(*prepared, held).await });
            drop(released.await); // an error, always: nothing is sent, `held` is dropped
            tell(&told, Told::Released { seq, fellows, session, agent, system }).await;
            if let Err(error) = work.await {
                tracing::error!(seq, %error, "a run failed; the next start decides by on_interrupted");
            }
        }));
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
            aborts: HashMap::new(),
            paces: Paces::new(1, 1),
            told,
            runs: TaskTracker::new(),
            under_way: TaskTracker::new(),
            stats: watch::channel(RouterStats::default()).0,
        };
        (state, inbox)
    }

    #[tokio::test]
    async fn a_run_waits_for_the_end_of_what_its_session_dropped() {
        let place = Place::with_a_request().await;
        let (mut state, _inbox) = state(place.pipeline.clone());
        let open = OpenRequest {
            event_seq: 1,
            request_id: "req_1".to_owned(),
            conversation: "c".to_owned(),
            adapter: "fake".to_owned(),
            account_id: "me".to_owned(),
            attempts: 0,
        };
        state.know(open, None);
        state.pushed(1, Pushed { dropped: vec![(1, None)], ..Pushed::default() });
        let mut later_run = std::pin::pin!(place.pipeline.unsettled.none_before("c", 2));
        assert!((&mut later_run).now_or_never().is_none(), "a later run would overtake it");
        assert!(tokio::time::timeout(DEADLINE, later_run).await.unwrap(), "its end was not written");
    }
}
