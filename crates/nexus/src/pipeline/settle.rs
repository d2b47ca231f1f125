//! Ends of requests that have no run: denied, handled, failed, dropped. Each is on its way to the ledger when the
//! stages let go of it, and never lost by a panic; which end it is, the stages and the router decide.

use super::reply::Answer;
use super::trace::trace_json;
use super::unsettled::Ending;
use super::{Active, Budget, Exit, Outcome, Pipeline, Prepared, identify, router};
use crate::clock;
use crate::ledger::nexus::{Audit, Claim, SettleRequest};
use crate::panics;
use nexus_core::request::{NexusRequest, Stage, Status};
use std::sync::Arc;
use std::time::Duration;

impl Pipeline {
    /// Ends a request that has no run; returns before that is on disk. The conversation goes on meanwhile: its next
    /// request's end is queued behind this one, and its next run waits for `ending`.
    pub(super) async fn settle(self: &Arc<Self>, request: NexusRequest, exit: Exit, active: Active, ending: Arc<Ending>) -> Outcome {
        let audit = identify::audit(&request);
        self.settle_with(request, exit, audit, active, ending).await
    }

    /// As [`Self::settle`], with the decision of stage 3 as it was kept.
    pub(super) async fn settle_with(
        self: &Arc<Self>,
        mut request: NexusRequest,
        exit: Exit,
        audit: Option<Audit>,
        active: Active,
        ending: Arc<Ending>,
    ) -> Outcome {
        let Ok(room) = self.settle_room.clone().acquire_owned().await else { return Outcome::Abandoned };
        let mut answer = None;
        let (status, reason) = match exit {
            Exit::Denied(reason) => (Status::Denied, Some(reason)),
            Exit::Handled { by } => (Status::HandledByAutomation, Some(by)),
            Exit::Replied { by, automation, text, session } => {
                answer = Some(self.answer_with(&mut request, &automation, text, session).await);
                (Status::HandledByAutomation, Some(by))
            }
            Exit::Failed(error) => (Status::Failed, Some(error)),
            Exit::Stopping => return Outcome::Abandoned,
            Exit::Expired(reason) => (Status::Expired, Some(reason)),
        };
        let stage = request.pipeline.last().map_or(Stage::ReceiveEvent, |trace| trace.stage);
        (request.status, request.reason) = (status, reason.clone());
        // Whatever a hook does, the end and the decision are written.
        if let Err(panicked) = panics::catch(|| self.finalize(&mut request)) {
            self.defect(request.event_seq, &panicked);
        }
        let command = SettleRequest {
            event_seq: request.event_seq,
            status,
            stage: stage.as_str(),
            reason,
            trace: trace_json(&request),
            audit,
            deliveries: answer.as_ref().map(|answer| answer.deliveries.clone()).unwrap_or_default(),
            at: clock::wall_ms(),
            epoch: self.epoch,
        };
        let this = self.clone();
        crate::watch::tracked("request.end", &self.settling, async move {
            let seq = request.event_seq;
            if let Err(panicked) = panics::caught(this.write_end(request, command, answer, &ending)).await {
                this.defect(seq, &panicked);
            }
            drop((active, ending, room)); // who takes all the room finds no end under way
        });
        Outcome::Settled
    }

    /// Ends a request that its session's queue has no room for. One whose context was not kept is decided about
    /// again, as it would be to run: its end has a decision as well.
    pub(super) async fn expire(
        self: &Arc<Self>,
        event_seq: i64,
        prepared: Option<Box<Prepared>>,
        reason: String,
        ending: Arc<Ending>,
    ) -> Outcome {
        let active = Active::begin(&self.metrics);
        let (request, exit) = match prepared {
            Some(prepared) => (prepared.request, Exit::Expired(reason)),
            None => {
                let Some((request_id, event)) = router::load(self, event_seq, None).await else { return Outcome::Abandoned };
                let (settings, adapter) = (self.settings.load_full(), event.adapter.clone());
                let mut request = event.into_request(request_id, clock::wall_ms());
                let mut budget = Budget { timeout: Duration::from_millis(settings.pipeline.timeout_ms), spent: Duration::ZERO };
                let decided = self.whole(event_seq, self.stages_to_access(&mut request, &adapter, &settings, &mut budget)).await;
                (request, decided.err().unwrap_or(Exit::Expired(reason)))
            }
        };
        self.settle(request, exit, active, ending).await
    }

    async fn write_end(&self, request: NexusRequest, command: SettleRequest, answer: Option<Answer>, ending: &Ending) {
        let order = self.outbox.order(&command.deliveries).await;
        let written = self.write_admitted(request.event_seq, command).await;
        if written.is_ok() {
            ending.written();
        }
        match written {
            Ok(Claim::Done) => {
                let text = answer.map(|answer| self.say_answer(answer, order));
                self.announce_end(&request, text.as_deref());
            }
            Ok(Claim::Lost) => tracing::error!(request_id = request.request_id, "the request was ended by somebody else"),
            Err(error) => {
                tracing::warn!(request_id = request.request_id, %error, "the end of a request could not be written; the next start decides again");
                self.plugins.failed(&request, Stage::Finalize, &error.to_string());
            }
        }
    }
}
