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

    /// Ends a request that its session dropped.
    fn expire(&self, seq: i64, prepared: Option<Box<Prepared>>) {
        let (pipeline, told) = (self.pipeline.clone(), self.told.clone());
        self.runs.spawn(self.under_way.track_future(async move {
            let expired = panics::caught(pipeline.expire(seq, prepared, DROPPED.to_owned())).await;
            let outcome = match expired {
                Ok(outcome) => outcome,
                Err(panicked) => pipeline.break_off(seq, &panicked).await,
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
            let (release, released) = oneshot::channel();
            let release = move || {
                release.send(()).ok();
            };
            let work = tokio::spawn(async move { pipeline.run(*prepared, release).await });
            // Dropped without a word, by a panic, it frees the session too: the others go on.
            drop(released.await);
            tell(&told, Told::Released { seq, fellows, session, agent, system }).await;
            if let Err(error) = work.await {
                tracing::error!(seq, %error, "a run failed; the next start decides by on_interrupted");
            }
        }));
    }
}
