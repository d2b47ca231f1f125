//! Answers that didn't arrive, and for whose end nobody waits any more: plugins are told of them. What becomes of a
//! delivery, `deliver` decides.

use super::Outbox;
use crate::error_text::describe;
use crate::ledger::ReadError;
use crate::ledger::events::by_seq;
use crate::ledger::nexus::{Delivery, Settled, ToldCutOff, request_by_event};
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
        if let Ok(Some((plugins, request))) = self.listeners(delivery).await {
            plugins.failed(&request, Stage::DeliverResponse, error);
        }
    }

    /// The plugins that are told of it, once they are loaded, with the request; `None` where nobody is.
    ///
    /// # Errors
    /// When the request can't be read, which is logged.
    async fn listeners(&self, delivery: &Delivery) -> Result<Option<(Arc<Plugins>, NexusRequest)>, ReadError> {
        let plugins = self.shared.plugins.get().and_then(Weak::upgrade).filter(|_| delivery.is_answer());
        let Some(plugins) = plugins else { return Ok(None) };
        let is_told = tokio::select! {
            biased;
            // What expired while no daemon ran is known before the plugins are loaded.
            is_told = plugins.is_told(Hook::OnError) => is_told,
            () = self.shared.stop.cancelled() => false,
        };
        if !is_told {
            return Ok(None);
        }
        let request = self.request_of(delivery.event_seq).await.inspect_err(|error| {
            let delivery_id = &delivery.delivery_id;
            tracing::warn!(delivery_id, error = %describe(error), "no plugin is told of it: its request can't be read");
        })?;
        Ok(request.map(|request| (plugins, request)))
    }

    /// The same for sends that the end of an earlier daemon cut off. Nothing waits for it: the start that found them
    /// has yet to load the plugins. That they were told is written once they were; until then the next start does it again.
    pub(super) fn tell_cut_off(&self, cut_off: Vec<Delivery>) {
        let this = self.clone();
        crate::watch::tracked("deliveries.cut_off", &self.shared.tasks, async move {
            if !this.have_heard(&cut_off).await {
                return;
            }
            let told = ToldCutOff { epoch: this.shared.epoch };
            if let Err(error) = this.shared.ledgers.nexus.writer.write_until_done(told).await {
                tracing::warn!(%error, "that plugins were told of sends that were cut off could not be written; the next start tells them again");
            }
        });
    }

    /// Tells plugins of them, one after the other; whether all who are told have heard of all.
    async fn have_heard(&self, cut_off: &[Delivery]) -> bool {
        let mut all = true;
        for delivery in cut_off {
            all &= match self.listeners(delivery).await {
                Ok(None) => true,
                Err(_) => false,
                Ok(Some((plugins, request))) => {
                    let error = delivery.error.as_deref().unwrap_or_default();
                    tokio::select! {
                        heard = plugins.failed_and_heard(&request, Stage::DeliverResponse, error) => heard,
                        () = self.shared.stop.cancelled() => false,
                    }
                }
            };
        }
        // Nobody listens any more either once the daemon stops.
        all && !self.shared.stop.is_cancelled()
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
