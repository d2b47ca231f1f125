//! The answer of an automation, which ends a request without an agent: committed with the request's end, then
//! queued as every other. It decides neither what is said nor when that is written.

use super::Pipeline;
use super::outbox::{DeliveryResult, Message, Order};
use crate::ledger::nexus::{NewDelivery, REPLY_MARK};
use crate::routes::Place;
use nexus_core::request::NexusRequest;
use serde_json::json;

/// What is said, and what of it goes into the ledger.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) deliveries: Vec<NewDelivery>,
    text: String,
    session: String,
}

impl Pipeline {
    /// Makes the deliveries of an answer; none if nothing can be said where the request came from.
    pub(super) async fn answer_with(&self, request: &mut NexusRequest, automation: &str, text: String, session: String) -> Answer {
        let route = self.routes.settled(&request.adapter).await.filter(|route| route.sender.is_some());
        let key = format!("{}{REPLY_MARK}{automation}", request.request_id);
        let place = Place { adapter: request.adapter.clone(), target: request.delivery.clone() };
        let (request_id, event_seq) = (request.request_id.as_str(), request.event_seq);
        let deliveries = route.map_or_else(Vec::new, |route| {
            Message { key: &key, request_id, event_seq, place: &place, text: &text, ttl_ms: route.ttl_ms }.pieces(&route)
        });
        let pending = deliveries.iter().filter(|delivery| !delivery.here).count();
        request.delivery_result = Some(json!(DeliveryResult { deliveries: deliveries.len(), settled: None, pending }));
        Answer { deliveries, text, session }
    }

    /// Has said what is in the ledger; the text. It comes behind what is being said in the same place, also where
    /// that is an answer whose agent still speaks.
    pub(super) fn say_answer(&self, answer: Answer, order: Order) -> String {
        let Answer { deliveries, text, session } = answer;
        // What comes back as a message is known by what was said, and by each message that it goes out in.
        let messages: Vec<&str> = deliveries.iter().map(|delivery| delivery.content.as_str()).collect();
        self.breakers.replied(&session, &text, &messages);
        if !deliveries.is_empty() {
            self.speaks(&session);
        }
        if deliveries.iter().any(|delivery| delivery.here) {
            self.outbox.sent().notify_one(); // sent with its request's end
        } else {
            drop(self.outbox.enqueue(deliveries, order));
        }
        text
    }
}
