//! Requests that are not to be done any more when their turn comes: the time of their event is over (NIP-40), or its
//! author deleted it (NIP-09). Asked at the door of stage 1 and again right before a run begins, since a request may wait
//! for long between the two. A run that has begun goes on, and so does what it was given meanwhile.

use super::{Active, Exit, Pipeline, Prepared, READ_PATIENCE};
use crate::ledger::nexus::nostr_is_deleted;
use crate::nostr;
use nexus_core::request::NexusRequest;
use rusqlite::Connection;
use std::sync::Arc;

/// Why a request ends whose event its author deleted.
const DELETED: &str = "its author deleted it before it was begun (NIP-09)";

impl Pipeline {
    /// Whether a request may still be carried out. Only what came over Nostr is ever over or taken back.
    pub(super) async fn ask_whether_it_holds(&self, request: &NexusRequest) -> Result<(), Exit> {
        nostr::holds(request).map_err(Exit::Expired)?;
        let Some((pubkey, id)) = nostr::origin(request) else { return Ok(()) };
        // By its id, which is whole: whatever its time.
        let read = move |connection: &Connection| nostr_is_deleted(connection, &pubkey, [&id, &id], i64::MAX);
        match self.ledgers.nexus.readers.read_patiently(read, READ_PATIENCE, &self.abandon).await {
            Some(false) => Ok(()),
            Some(true) => Err(Exit::Expired(DELETED.to_owned())),
            None if self.abandon.is_cancelled() => Err(Exit::Stopping),
            None => Err(Exit::Failed(format!("nexus.db could not be read for {} s; see the log", READ_PATIENCE.as_secs()))),
        }
    }

    /// A turn without those of its messages that hold no more; each of these comes to its end. `None` when none is left.
    pub(super) async fn still_holding(self: &Arc<Self>, mut prepared: Prepared) -> Option<Prepared> {
        if prepared.adapter != nostr::ADAPTER {
            return Some(prepared);
        }
        let abort = prepared.abort.clone();
        let mut all = std::mem::take(&mut prepared.fellows);
        all.push(prepared);
        let mut kept = Vec::with_capacity(all.len());
        for one in all {
            match self.ask_whether_it_holds(&one.request).await {
                Ok(()) => kept.push(one),
                Err(exit) => {
                    let ending = self.unsettled.begin(&one.conversation(), one.request.event_seq);
                    // On its way, or left to the next start: either way there is nothing to run.
                    drop(self.settle(one.request, exit, Active::begin(&self.metrics), ending).await);
                }
            }
        }
        // The newest leads, by which the router ends the turn.
        let mut lead = kept.pop()?;
        (lead.fellows, lead.abort) = (kept, abort);
        Some(lead)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::clock;
    use crate::ledger::nexus::{BeginEpoch, Claim, Definition, Deleted, PutDefinitions, StartRun, stopped_requests};
    use crate::pipeline::broken::tests::Place;
    use crate::pipeline::running::Turns;
    use crate::samples;
    use serde_json::json;
    use std::time::Duration;

    /// How long anything here may take.
    const PATIENCE: Duration = Duration::from_secs(60);

    /// A message of `alice`, whose event has this id.
    fn prepared(seq: i64, id: &str) -> Prepared {
        let mut event = samples::event(format!("nostr:{id}"));
        event.metadata = json!({ "nostr": { "id": id, "pubkey": "alice", "tags": [] } });
        let mut request = NexusRequest::new(format!("req_{seq}"), seq, 0, event);
        request.adapter = nostr::ADAPTER.to_owned();
        Prepared {
            adapter: nostr::ADAPTER.to_owned(),
            request,
            agent: Arc::new(samples::echo()),
            session: "s".to_owned(),
            formerly: None,
            fellows: Vec::new(),
            joined: Vec::new(),
            abort: Default::default(),
            spent: Duration::ZERO,
            timeout: Duration::from_secs(60),
            is_revived: false,
            is_to_end: false,
        }
    }

    /// The same, which holds until a time, in Unix seconds.
    fn prepared_until(seq: i64, id: &str, at_s: i64) -> Prepared {
        let mut one = prepared(seq, id);
        one.request.event.metadata["nostr"]["tags"] = json!([["p", "bob"], ["expiration", at_s.to_string()]]);
        one
    }

    async fn delete(place: &Place, by: &str, id: &str) {
        let deletion = Definition {
            id: format!("deletion of {id} by {by}"),
            kind: 5,
            pubkey: by.to_owned(),
            identifier: None,
            created_at: 1,
            event: "{}".to_owned(),
            deletes: vec![Deleted::Event(id.to_owned())],
        };
        let put = PutDefinitions { definitions: Arc::new(vec![deletion]), at: 1 };
        place.pipeline.ledgers.nexus.writer.write_until_done(put).await.unwrap();
    }

    #[tokio::test]
    async fn what_its_author_deleted_holds_no_more_and_nobody_else_deletes_it() {
        let place = Place::with_a_request().await;
        let one = prepared(1, "a");
        delete(&place, "bob", "a").await;
        assert!(place.pipeline.ask_whether_it_holds(&one.request).await.is_ok());
        delete(&place, "alice", "a").await;
        let over = place.pipeline.ask_whether_it_holds(&one.request).await;
        assert!(matches!(over, Err(Exit::Expired(reason)) if reason == DELETED));
        let mut other = prepared(1, "a");
        other.request.adapter = "fake".to_owned();
        assert!(place.pipeline.ask_whether_it_holds(&other.request).await.is_ok(), "whatever another adapter calls itself");
    }

    #[tokio::test]
    async fn what_is_past_its_time_when_its_turn_comes_holds_no_more() {
        let place = Place::with_a_request().await;
        let now_s = clock::wall_ms() / 1000;
        let over = place.pipeline.ask_whether_it_holds(&prepared_until(1, "a", now_s).request).await;
        assert!(matches!(over, Err(Exit::Expired(reason)) if reason.contains("NIP-40")));
        assert!(place.pipeline.ask_whether_it_holds(&prepared_until(1, "a", now_s + 86_400).request).await.is_ok());
        let mut other = prepared_until(1, "a", now_s);
        other.request.adapter = "fake".to_owned();
        assert!(place.pipeline.ask_whether_it_holds(&other.request).await.is_ok(), "whatever another adapter calls itself");
        let mut turn = prepared_until(3, "c", now_s);
        turn.fellows = vec![prepared_until(1, "a", now_s), prepared_until(2, "b", now_s + 86_400)];
        let left = place.pipeline.still_holding(turn).await.unwrap();
        assert_eq!((left.request.event_seq, left.fellows.len()), (2, 0), "the time of the others passed while they waited");
    }

    #[tokio::test]
    async fn a_turn_goes_on_with_the_newest_that_is_left_of_it() {
        let place = Place::with_a_request().await;
        let mut turn = prepared(4, "d");
        turn.fellows = vec![prepared(1, "a"), prepared(2, "b"), prepared(3, "c")];
        let abort = turn.abort.clone();
        delete(&place, "alice", "d").await;
        delete(&place, "alice", "b").await;
        let left = place.pipeline.still_holding(turn).await.unwrap();
        assert_eq!((left.request.event_seq, left.fellow_seqs()), (3, vec![1]));
        abort.cancel();
        assert!(left.abort.is_cancelled(), "by the router as before");
        delete(&place, "alice", "c").await;
        delete(&place, "alice", "a").await;
        assert!(place.pipeline.still_holding(left).await.is_none());
    }

    #[tokio::test]
    async fn a_stop_outlasts_the_daemon_though_the_message_that_led_the_turn_was_deleted() {
        let place = Place::with_a_request().await;
        place.add_a_request().await;
        let mut turn = prepared(2, "b");
        turn.fellows = vec![prepared(1, "a")];
        let _at_work = place.pipeline.turns.begin(&turn);
        delete(&place, "alice", "b").await;
        let left = place.pipeline.still_holding(turn).await.unwrap();
        assert_eq!((left.request.event_seq, left.fellows.len()), (1, 0));
        place.pipeline.settling.close();
        tokio::time::timeout(PATIENCE, place.pipeline.settling.wait()).await.unwrap();
        let ledger = &place.pipeline.ledgers.nexus;
        let (run_id, agent, session) = ("run_1".to_owned(), "echo".to_owned(), "s".to_owned());
        let epoch = place.pipeline.epoch;
        let start = StartRun { event_seq: 1, fellows: Vec::new(), run_id, agent, session, acted: false, audit: None, at: 1, epoch };
        assert_eq!(ledger.writer.write(start).await.unwrap(), Claim::Done);
        let stopping = place.pipeline.turns.stop("s", "by the verb").unwrap();
        assert!(place.pipeline.keep_stop(&stopping, PATIENCE).await.unwrap());
        // The next daemon.
        let begun = ledger.writer.write(BeginEpoch { at: 9 }).await.unwrap();
        assert_eq!(begun.interrupted.iter().map(|one| (one.event_seq, one.was_stopped)).collect::<Vec<_>>(), [(1, true)]);
        let turns = Turns::after(ledger.readers.read(stopped_requests).await.unwrap());
        let again = prepared(1, "a");
        assert!(turns.is_to_end(1));
        drop(turns.begin(&again));
        assert_eq!((again.abort.is_cancelled(), again.abort.why()), (true, "by the verb"));
    }
}
