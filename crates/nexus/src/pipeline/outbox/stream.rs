//! An answer whose agent still speaks, in its turn among what is said to its target: its row is written, then its first
//! byte leaves. What couldn't be streamed is sent, once its run is over. Never makes the run wait.

use super::deliver::{again, judge};
use super::{Outbox, Queued, Waiting, pending};
use crate::clock;
use crate::ledger::nexus::{Claim, Delivery, NewDelivery, Settled, Speak, lane_of};
use crate::live::pump::pump;
use crate::live::{End, Live};
use crate::routes::Route;
use nexus_core::notice::NoticeType;
use nexus_core::protocol::SendOutcome;
use nexus_core::request::DeliveryTarget;
use std::sync::Arc;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

impl Outbox {
    /// Queues an answer of which something was said, behind what waits for the same target.
    pub(in crate::pipeline) fn stream(&self, live: Arc<Live>) -> Waiting {
        let (settled, outcome) = oneshot::channel();
        let delivery = pending(live.row.clone());
        let delivery_id = live.row.delivery_id.clone();
        self.push(delivery.lane(), Queued { delivery_id, row: None, settled: Some(settled), live: Some(live) });
        Waiting(vec![outcome])
    }

    /// Has every answer parted that is streamed to this target or is to be, for what waits behind it and can't for long.
    pub(in crate::pipeline) fn part(&self, target: &DeliveryTarget) {
        let lanes = self.lanes();
        let Some(lane) = lanes.get(&lane_of(target)) else { return };
        let queued = lane.queue.iter().filter_map(|queued| queued.live.as_ref());
        lane.live.iter().chain(queued).for_each(|live| live.want_part());
    }

    /// Has a part of a running answer written that leaves as a message, and queues it; also if nobody waits for it any
    /// more. `None` when it leaves with the rest.
    pub(in crate::pipeline) fn say_part(&self, row: NewDelivery, run_id: String) -> JoinHandle<Option<Waiting>> {
        let this = self.clone();
        crate::watch::tracked("deliveries.part", &self.shared.tasks, async move {
            let (row, at, epoch) = ([row], clock::wall_ms(), this.shared.epoch);
            let order = this.order(&row).await;
            let [row] = row;
            let is_written = this.write_part(Speak { row: row.clone(), run_id, is_stream: false, at, epoch }).await;
            is_written.then(|| this.enqueue(vec![row], order))
        })
    }

    /// Has a part of a running answer written, and says whether it is to leave.
    async fn write_part(&self, speak: Speak) -> bool {
        let delivery_id = speak.row.delivery_id.clone();
        match self.shared.ledgers.nexus.writer.write_until_done(speak).await {
            Ok(Claim::Done) => true,
            Ok(Claim::Lost) => false,
            Err(error) => {
                tracing::warn!(delivery_id, %error, "a part of an answer could not be written; it leaves with the rest");
                false
            }
        }
    }

    /// Returns once something else waits for a target that is being served.
    async fn is_wanted(&self, lane: &str) {
        loop {
            let more = match self.lanes().get(lane) {
                Some(lane) if lane.queue.is_empty() => lane.more.clone(),
                Some(_) | None => return,
            };
            more.notified().await;
        }
    }

    /// Streams one answer to its end. `None` when nothing left: the run sends it, or the daemon stops.
    pub(super) async fn stream_out(&self, live: &Live) -> Option<(Delivery, Settled)> {
        let lane = pending(live.row.clone()).lane();
        let route = self.shared.routes.get(&live.row.adapter)?;
        let streamer = route.streamer.clone()?;
        let held = tokio::select! {
            biased;
            held = streamer.take(&live.row.account_id) => held,
            // Before it was its turn, or without a process: the run sends it.
            _ = live.ended() => return None,
            // Its agent may speak for long, and nobody sees it speak.
            () = self.is_wanted(&lane) => return None,
            () = self.shared.stop.cancelled() => return None,
        };
        let at = clock::wall_ms();
        let (row, run_id, epoch) = (live.row.clone(), live.run_id.clone(), self.shared.epoch);
        if !live.begin(self.write_part(Speak { row, run_id, is_stream: true, at, epoch })).await {
            return None;
        }
        let mut delivery = pending(live.row.clone());
        (delivery.status, delivery.attempts, delivery.updated_at) = ("sending".into(), 1, at);
        self.notice(NoticeType::DeliverySending, &delivery, None);
        crate::torture::point("stream.begun");
        let (outcome, end) = tokio::select! {
            streamed = pump(live, held) => streamed,
            // The row stays `sending`, which a start reads as uncertain.
            () = self.shared.abandon.cancelled() => return None,
        };
        crate::torture::point("stream.ended");
        let settled = judge_streamed(outcome, &end, &route);
        Some((delivery, settled))
    }
}

/// What the ledger is told: of an answer that was cut off nothing is sent again.
fn judge_streamed(outcome: SendOutcome, end: &End, route: &Route) -> Settled {
    match (end, outcome) {
        // The stream is no try of `send`, which has its own number of them.
        (End::Said(_) | End::Failed { .. }, SendOutcome::Retry { error, after_ms }) => again(1, error, after_ms),
        (End::Said(_) | End::Failed { .. }, outcome) => judge(Ok(outcome), 1, route),
        (End::Cut { .. }, SendOutcome::Sent { message_ids }) => Settled::Sent { message_ids },
        (End::Cut { .. }, SendOutcome::Retry { error, .. } | SendOutcome::Failed { error }) => Settled::Failed { error },
        (End::Cut { .. }, SendOutcome::Uncertain { error }) => Settled::Uncertain { error },
        (End::Lost, _) => Settled::Uncertain { error: "a defect of the daemon broke this answer off while it was streamed".to_owned() },
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use nexus_core::config;

    fn judged(outcome: SendOutcome, end: &End) -> &'static str {
        judge_streamed(outcome, end, &Route::unknown(&config::Send::default(), None, None)).status()
    }

    #[test]
    fn an_answer_that_was_cut_off_is_not_sent_again() {
        let (said, cut) = (End::Said("a".to_owned()), End::Cut { error: "aborted".to_owned(), partial: "a".to_owned() });
        let sent = || SendOutcome::Sent { message_ids: vec!["m".to_owned()] };
        let retry = || SendOutcome::Retry { error: "e".to_owned(), after_ms: None };
        let uncertain = || SendOutcome::Uncertain { error: "e".to_owned() };
        assert_eq!([judged(sent(), &said), judged(retry(), &said), judged(uncertain(), &said)], ["sent", "pending", "uncertain"]);
        assert_eq!([judged(sent(), &cut), judged(retry(), &cut), judged(uncertain(), &cut)], ["sent", "failed", "uncertain"]);
        assert_eq!(judged(sent(), &End::Lost), "uncertain", "nobody knows its text");
    }

    #[test]
    fn what_was_refused_is_sent_also_where_a_send_is_tried_once() {
        let route = Route { retries: 0, ..Route::unknown(&config::Send::default(), None, None) };
        let refused = SendOutcome::Retry { error: "e".to_owned(), after_ms: None };
        let failed = End::Failed { error: "e".to_owned(), partial: "a".to_owned() };
        for end in [End::Said("a".to_owned()), failed] {
            assert_eq!(judge_streamed(refused.clone(), &end, &route).status(), "pending", "{end:?}");
        }
    }
}
