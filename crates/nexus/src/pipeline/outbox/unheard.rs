//! Answers that didn't arrive, and for whose end nobody waits any more: plugins are told of them. What becomes of a
//! delivery, `deliver` decides.

use super::Outbox;
use crate::error_text::describe;
use crate::ledger::ReadError;
use crate::ledger::events::by_seq;
use crate::ledger::nexus::{Delivery, Settled, request_by_event};
use crate::plugin::Plugins;
use nexus_core::hook::Hook;
use nexus_core::request::{NexusRequest, Stage, Status};
use rusqlite::Connection;
use std::sync::{Arc, Weak};

impl Outbox {
    /// From now on these plugins are told of answers that don't arrive. Called once, before [`Self::resume`].
    pub fn tell(&self, plugins: &Arc<Plugins>) {
        // Set once, by the start.
        self.shared.plugins.set(Arc::downgrade(plugins)).ok();
    }

    /// Calls `onError` for an answer that ended otherwise than sent. What plugins say besides has no part in it: one
    /// that answers an error with a message would be told of that one's as well.
    pub(super) async fn tell_unheard(&self, delivery: &Delivery, ended: &Settled) {
        let error = match ended {
            Settled::Sent { .. } | Settled::Retry { .. } => return,
            Settled::Failed { error } | Settled::Uncertain { error } | Settled::Expired { error } => error,
        };
        let plugins = self.shared.plugins.get().and_then(Weak::upgrade);
        let Some(plugins) = plugins.filter(|_| delivery.is_answer()) else { return };
        let is_told = tokio::select! {
            biased;
            // What expired while no daemon ran is known before the plugins are loaded.
            is_told = plugins.is_told(Hook::OnError) => is_told,
            () = self.shared.stop.cancelled() => false,
        };
        if !is_told {
            return;
        }
        match self.request_of(delivery.event_seq).await {
            Ok(Some(request)) => plugins.failed(&request, Stage::DeliverResponse, error),
            Ok(None) => {}
            Err(error) => {
                let delivery_id = &delivery.delivery_id;
                tracing::warn!(delivery_id, error = %describe(&error), "no plugin is told of it: its request can't be read");
            }
        }
    }

    /// The same for sends that the end of the daemon before cut off. Nothing waits for it: the start that found them
    /// has yet to load the plugins.
    pub(super) fn tell_cut_off(&self, cut_off: Vec<Delivery>) {
        let this = self.clone();
        crate::watch::tracked("deliveries.cut_off", &self.shared.tasks, async move {
            for delivery in cut_off {
                let error = delivery.error.clone().unwrap_or_default();
                this.tell_unheard(&delivery, &Settled::Uncertain { error }).await;
            }
        });
    }

    /// The request with its event and its end. What its stages found out is in its trace only.
    async fn request_of(&self, seq: i64) -> Result<Option<NexusRequest>, ReadError> {
        let ledgers = &self.shared.ledgers;
        let event = ledgers.events.readers.read(move |connection: &Connection| by_seq(connection, seq)).await?;
        let row = ledgers.nexus.readers.read(move |connection: &Connection| request_by_event(connection, seq)).await?;
        Ok(event.zip(row).map(|(event, row)| {
            let mut request = event.into_request(row.request_id, row.created_at);
            (request.status, request.reason) = (Status::parse(&row.status).unwrap_or(request.status), row.reason);
            request
        }))
    }
}
