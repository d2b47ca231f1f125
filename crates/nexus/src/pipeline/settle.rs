//! Ends of requests that have no run: denied, handled, failed, dropped. Each is on its way to the ledger when the
//! stages let go of it, and never lost by a panic; which end it is, the stages and the router decide.

use super::outbox::Order;
use super::reply::Answer;
use super::trace::trace_json;
use super::unsettled::Ending;
use super::{Active, Budget, Exit, Outcome, Pipeline, Prepared, identify, router};
use crate::clock;
use crate::ledger::nexus::{Audit, Claim, NewDelivery, SettleRequest};
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
        let deliveries = answer.as_ref().map(|answer| answer.deliveries.clone()).unwrap_or_default();
        let Some(order) = self.order_of(request.event_seq, &deliveries).await else { return Outcome::Abandoned };
        let Ok(room) = self.settle_room.clone().acquire_owned().await else { return Outcome::Abandoned };
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
            deliveries,
            at: clock::wall_ms(),
            epoch: self.epoch,
        };
        let this = self.clone();
        crate::watch::tracked("request.end", &self.settling, async move {
            let seq = request.event_seq;
            if let Err(panicked) = panics::caught(this.write_end(request, command, answer.map(|answer| (answer, order)), &ending)).await {
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

    /// The right to say these next to their target. Had before there is room for the end, so that who waits for it
    /// holds up no other end, and only by requests that are admitted, so that it is held no longer than one commit
    /// takes. `None` when the daemon stops.
    async fn order_of(&self, event_seq: i64, deliveries: &[NewDelivery]) -> Option<Order> {
        if !deliveries.is_empty() {
            let mut admitted = self.admitted.clone();
            tokio::select! {
                known = admitted.wait_for(|seq| *seq >= event_seq) => drop(known.ok()?),
                () = self.abandon.cancelled() => return None,
            }
        }
        Some(self.outbox.order(deliveries).await)
    }

    async fn write_end(&self, request: NexusRequest, command: SettleRequest, answer: Option<(Answer, Order)>, ending: &Ending) {
        let written = self.write_admitted(request.event_seq, command).await;
        if written.is_ok() {
            ending.written();
        }
        match written {
            Ok(Claim::Done) => {
                let text = answer.map(|(answer, order)| self.say_answer(answer, order));
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::keeper::SpawnError;
    use crate::ledger::nexus::deliveries_of;
    use crate::ledger::nexus::{Delivery, request_by_event};
    use crate::patience::{eventually, soon};
    use crate::pipeline::SETTLING_MAX;
    use crate::pipeline::broken::tests::{Place, conversation, prepared};
    use crate::routes::Sender;
    use crate::samples;
    use crate::supervisor::BoxFuture;
    use nexus_core::protocol::SendOutcome;

    /// Takes everything.
    struct Platform;

    impl Sender for Platform {
        fn send<'a>(&'a self, delivery: &'a Delivery) -> BoxFuture<'a, Result<SendOutcome, SpawnError>> {
            Box::pin(async { Ok(SendOutcome::Sent { message_ids: vec![delivery.delivery_id.clone()] }) })
        }
    }

    #[tokio::test]
    async fn an_end_that_waits_for_the_order_of_its_target_holds_up_no_other() {
        let place = Place::with_a_request().await;
        place.add_a_request().await;
        let pipeline = &place.pipeline;
        pipeline.routes.set("fake", samples::route(Platform));
        let request = |seq| NexusRequest { adapter: "fake".to_owned(), ..prepared(seq, Duration::ZERO).request };
        let end = |seq, exit| {
            let ending = pipeline.unsettled.begin(&conversation(), seq);
            pipeline.settle(request(seq), exit, Active::begin(&pipeline.metrics), ending)
        };
        let status = |seq| {
            let read = pipeline.ledgers.nexus.readers.read_now(move |connection| request_by_event(connection, seq));
            read.unwrap().unwrap().status
        };
        let (by, automation, text, session) = ("automation:a".to_owned(), "a".to_owned(), "hello".to_owned(), "s".to_owned());
        // Room for one end, and somebody else who is about to say something where the first is to be answered.
        let _taken = pipeline.settle_room.acquire_many(u32::try_from(SETTLING_MAX - 1).unwrap()).await.unwrap();
        let answer = pipeline.answer_with(&mut request(1), "b", "first".to_owned(), session.clone()).await;
        let order = pipeline.outbox.order(&answer.deliveries).await;
        let answered = end(1, Exit::Replied { by, automation, text, session });
        let denied = async {
            assert!(matches!(end(2, Exit::Denied("of the test".to_owned())).await, Outcome::Settled));
            eventually(async || status(2) == "denied").await;
            assert_eq!(status(1), "waiting", "it was answered out of its order");
            drop(order);
        };
        let (answered, ()) = soon(async { tokio::join!(answered, denied) }).await;
        assert!(matches!(answered, Outcome::Settled));
        eventually(async || status(1) == "handled_by_automation").await;
        let said = pipeline.ledgers.nexus.readers.read_now(|connection| deliveries_of(connection, 1)).unwrap();
        assert_eq!(said.into_iter().map(|delivery| delivery.content).collect::<Vec<_>>(), ["hello"]);
    }
}
