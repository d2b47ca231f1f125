//! Requests that a panic broke off: each ends as failed, with the reason, and the others go on. Which
//! lane and session that frees is the router's.

use super::unsettled::Ending;
use super::{Active, Exit, Outcome, Pipeline, recovery, router, scheduled};
use crate::clock;
use crate::error_text::describe;
use crate::ledger::nexus::{Audit, Fellow, FellowEnd, FinishRun, NewDelivery, StartRun, deliveries_of, request_by_event};
use crate::panics::{self, Panicked};
use nexus_core::request::{NexusRequest, Stage, Status};
use rusqlite::Connection;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

/// What the requests of a turn have had of their ends, by their places. A panic that breaks the turn off later leaves that out: an
/// end that is told twice is counted twice.
#[derive(Debug, Default)]
pub(super) struct Ends {
    /// And with which status, which the ledger may contradict: stage 8 of some comes before the commit of their end.
    finalized: HashMap<i64, Status>,
    announced: HashSet<i64>,
}

impl Pipeline {
    /// Stage 8 of a request of a turn.
    pub(super) fn finalize_in(&self, request: &mut NexusRequest, ends: &mut Ends) {
        ends.finalized.insert(request.event_seq, request.status);
        self.finalize(request);
    }

    /// Tells how a request of a turn ended, unless that was told.
    pub(super) fn announce_end_in(&self, request: &NexusRequest, text: Option<&str>, ends: &mut Ends) {
        if ends.announced.insert(request.event_seq) {
            self.announce_end(request, text);
        }
    }

    /// Tells of a panic in the work on a request; why the request failed.
    pub(super) fn defect(&self, event_seq: i64, panicked: &Panicked) -> String {
        let reason = format!("a defect of the daemon: {panicked}");
        tracing::error!(seq = event_seq, error = %panicked, "the work on a request broke off");
        self.watch_over.tell("request", &panicked.to_string());
        reason
    }

    /// Writes the end of a request that broke off before it had a run.
    pub(super) async fn break_off(self: &Arc<Self>, event_seq: i64, ending: Arc<Ending>, panicked: &Panicked) -> Outcome {
        let reason = self.defect(event_seq, panicked);
        self.end_broken(event_seq, ending, None, reason).await
    }

    /// Writes the end of a run that broke off, and of all its requests, which are of one conversation. It may have
    /// begun or not; `start` is what would have begun it, `ends` what its requests have had of their ends.
    pub(super) async fn break_off_run(self: &Arc<Self>, start: StartRun, conversation: &str, ends: &mut Ends, panicked: &Panicked) {
        let StartRun { event_seq, fellows, run_id, audit, .. } = start;
        let reason = self.defect(event_seq, panicked);
        let seqs = fellows.iter().map(|fellow| fellow.event_seq).chain([event_seq]);
        let endings: Vec<Arc<Ending>> = seqs.map(|seq| self.unsettled.begin(conversation, seq)).collect();
        let ended = panics::caught(async {
            let (request_id, event) = router::load(self, event_seq, None).await?;
            let mut request = event.into_request(request_id, clock::wall_ms());
            let mut others = Vec::with_capacity(fellows.len());
            for fellow in &fellows {
                let (request_id, event) = router::load(self, fellow.event_seq, None).await?;
                others.push(event.into_request(request_id, clock::wall_ms()));
            }
            self.fail_run(&mut request, others, run_id, &reason, &endings, ends).await
        });
        match ended.await {
            Ok(Some(true) | None) => {}
            Ok(Some(false)) => {
                let all = fellows.into_iter().chain([Fellow { event_seq, audit }]);
                for (Fellow { event_seq, audit }, ending) in all.zip(endings) {
                    drop(self.end_broken(event_seq, ending, audit, reason.clone()).await);
                }
            }
            Err(again) => unended(event_seq, &again),
        }
    }

    async fn end_broken(self: &Arc<Self>, event_seq: i64, ending: Arc<Ending>, audit: Option<Audit>, reason: String) -> Outcome {
        let ended = panics::caught(async {
            let (request_id, event) = router::load(self, event_seq, None).await?;
            let request = event.into_request(request_id, clock::wall_ms());
            Some(self.settle_with(request, Exit::Failed(reason), audit, Active::begin(&self.metrics), ending).await)
        });
        match ended.await {
            Ok(outcome) => outcome.unwrap_or(Outcome::Abandoned),
            Err(again) => {
                unended(event_seq, &again);
                Outcome::Abandoned
            }
        }
    }

    /// What is said in place of the answer.
    async fn apology(&self, request: &NexusRequest, run_id: &str) -> Option<NewDelivery> {
        let place = scheduled::place_of(&self.ledgers, request).await.unwrap_or_else(|error| {
            tracing::error!(run_id, error = %describe(&error), "nobody is told that a run broke off: where to could not be read");
            None
        })?;
        Some(recovery::note(request, &self.settings.load().access, place, Some(run_id.to_owned())))
    }

    /// Stage 8 of a request whose run broke off. One that had it is told of only where its end became another one.
    fn finalize_broken(&self, request: &mut NexusRequest, ends: &mut Ends) {
        let failed = request.reason.clone().filter(|_| request.status == Status::Failed);
        // Its end is on disk, whatever a hook does.
        let told = panics::catch(|| match (ends.finalized.get(&request.event_seq).copied(), failed) {
            (None, failed) => {
                if let Some(reason) = failed {
                    self.record(request, Stage::RunAgent, clock::wall_ms(), Duration::ZERO, Some(&Exit::Failed(reason)), Vec::new());
                }
                self.finalize_in(request, ends);
            }
            (Some(before), Some(reason)) if before != Status::Failed => self.plugins.failed(request, Stage::Finalize, &reason),
            (Some(_), _) => {}
        });
        if let Err(panicked) = told {
            self.defect(request.event_seq, &panicked);
        }
    }

    /// Ends the run as failed, and has said what there is to say. False when it is not the request's run, `None` when
    /// that could not be written.
    async fn fail_run(
        &self,
        request: &mut NexusRequest,
        mut others: Vec<NexusRequest>,
        run_id: String,
        reason: &str,
        endings: &[Arc<Ending>],
        ends: &mut Ends,
    ) -> Option<bool> {
        (request.status, request.reason) = (Status::Failed, Some(reason.to_owned()));
        let event_seq = request.event_seq;
        for other in &mut others {
            (other.status, other.reason) = (Status::Failed, Some(reason.to_owned()));
        }
        let fellows = others.iter().map(|other| FellowEnd {
            event_seq: other.event_seq,
            reason: other.reason.clone(),
            trace: super::trace::trace_json(other),
        });
        let finish = FinishRun {
            event_seq,
            fellows: fellows.collect(),
            run_id: run_id.clone(),
            ok: false,
            is_aborted: false,
            status: Status::Failed,
            reason: request.reason.clone(),
            turn_json: None,
            deliveries: self.apology(request, &run_id).await.into_iter().collect(),
            stream: None,
            wait: None,
            trace: super::trace::trace_json(request),
            at: clock::wall_ms(),
            epoch: self.epoch,
        };
        let order = self.outbox.order(&finish.deliveries).await;
        let finish_seq = match self.ledgers.nexus.writer.write_until_done(finish).await {
            Ok(Some(finish_seq)) => finish_seq,
            Ok(None) => return Some(false),
            Err(error) => {
                tracing::error!(run_id, %error, "the end of a broken run could not be written; the next start decides by on_interrupted");
                return None;
            }
        };
        endings.iter().for_each(|ending| ending.written());
        // It may have ended before it broke: then its answer is committed, and not on its way yet.
        let read = move |connection: &Connection| Ok((request_by_event(connection, event_seq)?, deliveries_of(connection, event_seq)?));
        let text = match self.ledgers.nexus.readers.read(read).await {
            Ok((row, deliveries)) => {
                if let Some(row) = row {
                    (request.status, request.reason) = (Status::parse(&row.status).unwrap_or(Status::Failed), row.reason);
                }
                let answer = deliveries.iter().filter(|delivery| delivery.is_answer());
                let text: String = answer.map(|delivery| delivery.content.as_str()).collect();
                self.outbox.take_up(deliveries.into_iter().filter(|delivery| delivery.status == "pending").collect());
                drop(order);
                text
            }
            Err(error) => {
                tracing::error!(run_id, error = %describe(&error), "what a broken run has to say waits for the next start");
                String::new()
            }
        };
        for other in &mut others {
            (other.status, other.reason) = (request.status, request.reason.clone());
            self.finalize_broken(other, ends);
            self.announce_end_in(other, None, ends);
        }
        self.finalize_broken(request, ends);
        self.announce_end_in(request, (!text.is_empty()).then_some(text.as_str()), ends);
        self.wait_for_turn(finish_seq).await;
        Some(true)
    }
}

fn unended(event_seq: i64, again: &Panicked) {
    tracing::error!(seq = event_seq, error = %again, "a broken request has no end; the next start decides about it");
}

#[cfg(test)]
#[path = "broken_tests.rs"]
pub(super) mod tests;
