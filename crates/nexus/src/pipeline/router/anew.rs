//! The router's own panics. What it has in memory is not trusted after one: what is under way comes to
//! its end first, so that no session has two turns at once, and the rest is read back from the ledger.
//! Events are accepted meanwhile, and wait.

use super::lanes::Lanes;
use super::sessions::Sessions;
use super::{ROUTER, State, Told};
use crate::clock;
use crate::ledger::nexus::open_requests;
use crate::panics;
use crate::pipeline::{Outcome, SETTLING_MAX};
use std::collections::HashSet;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

impl State {
    /// Routes until `stop`.
    pub(super) async fn serve(mut self, mut inbox: mpsc::Receiver<Told>, committed: watch::Receiver<i64>, stop: CancellationToken) {
        let mut part = self.pipeline.watch_over.part(ROUTER);
        loop {
            let error = match panics::caught(self.run(&mut inbox, committed.clone(), &stop)).await {
                Ok(Ok(())) if stop.is_cancelled() => return,
                Ok(Ok(())) => "it ended by itself".to_owned(),
                Ok(Err(error)) => error,
                Err(panicked) => panicked.to_string(),
            };
            if !part.failed(&error, &stop).await {
                return;
            }
            match panics::caught(self.begin_anew(&mut inbox, &stop)).await {
                Ok(Some(())) => {}
                Ok(None) => return,
                Err(panicked) => {
                    part.give_up(&panicked.to_string());
                    return;
                }
            }
        }
    }

    /// `None` when the daemon stops.
    async fn begin_anew(&mut self, inbox: &mut mpsc::Receiver<Told>, stop: &CancellationToken) -> Option<()> {
        self.under_way.close();
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return None,
                Some(told) = inbox.recv() => self.note(told),
                () = self.under_way.wait() => break,
            }
        }
        while let Ok(told) = inbox.try_recv() {
            self.note(told);
        }
        // Ends that are on their way to the disk would be read back as requests that have none.
        let every_end = u32::try_from(SETTLING_MAX).unwrap_or(u32::MAX);
        tokio::select! {
            () = stop.cancelled() => return None,
            room = self.pipeline.settle_room.acquire_many(every_end) => drop(room),
        }
        let open = self.pipeline.ledgers.nexus.readers.read_until_done(open_requests, stop).await?;
        tracing::info!(requests = open.len(), "the router goes on with what is open in the ledger");
        self.under_way = TaskTracker::new();
        self.lanes = Lanes::holding_as(std::mem::take(&mut self.lanes));
        self.sessions = Sessions::resting_as(std::mem::take(&mut self.sessions));
        self.turns.clear();
        self.pipeline.unsettled.forget_left();
        let still_open: HashSet<i64> = open.iter().map(|request| request.event_seq).collect();
        for (seq, known) in std::mem::take(&mut self.requests) {
            // Told of its end, the panic came before that was counted.
            if !still_open.contains(&seq) {
                self.pending.lower(&known.account);
            }
        }
        for request in open {
            self.know(request, None);
        }
        Some(())
    }

    /// Hears of what ends before it begins anew, and starts nothing.
    fn note(&mut self, told: Told) {
        match told {
            Told::Prepared { seq, outcome: Outcome::Settled } | Told::Dropped { seq, is_over: true } => self.over(seq),
            Told::Released { seq, fellows, release, .. } => {
                fellows.into_iter().chain([seq]).chain(release.joined).for_each(|seq| self.over(seq));
            }
            // Read back.
            Told::Prepared { outcome: Outcome::Run(_) | Outcome::Abandoned, .. } | Told::Dropped { is_over: false, .. } => {}
            Told::Hold(account, done) => {
                self.lanes.hold(&account);
                done.send(()).ok(); // the asker may have given up
            }
            Told::Release(account) => self.lanes.release(&account),
            Told::Rest(session, done) => {
                self.sessions.rest(session, clock::mono_ms());
                done.send(()).ok(); // the asker may have given up
            }
            // What it lets begin is read back.
            Told::Wake(session) => drop(self.sessions.wake(&session, clock::mono_ms())),
        }
    }
}
