//! Where the answer to a slot of a schedule goes: to whom its entry in `timer.cron` named when it fired, which its event
//! says. It decides nothing about what is said, and sends nothing.

use super::{Exit, Pipeline, READ_PATIENCE};
use crate::ledger::nexus::channel_of;
use crate::routes::{CRON_DELIVER, CRON_TYPE, TIMER_CHANNEL};
use nexus_core::request::{DeliveryTarget, NexusRequest};
use rusqlite::Connection;

/// What an entry's `deliver` says.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Deliver {
    adapter: String,
    account: String,
    to: String,
}

/// Where the slot's answer goes; `None` for another event, and where its entry named nobody.
pub(super) fn deliver_of(request: &NexusRequest) -> Option<Deliver> {
    // No adapter's event leads anywhere but back to itself, whatever it says.
    if request.adapter != TIMER_CHANNEL || request.event.content_type != CRON_TYPE {
        return None;
    }
    let deliver = request.event.metadata.get(CRON_DELIVER)?;
    let text = |key: &str| deliver.get(key)?.as_str().map(str::to_owned);
    Some(Deliver { adapter: text("adapter")?, account: text("account")?, to: text("to")? })
}

impl Pipeline {
    /// Leads the answer to where the slot's entry says. Asked before the agent is: what nobody could be told costs nothing.
    pub(super) async fn lead_answer(&self, request: &mut NexusRequest, deliver: Deliver) -> Result<(), Exit> {
        let Deliver { adapter, account, to } = deliver;
        let unusable = |why: &str| Exit::Failed(format!("the answer could not be delivered: adapter `{adapter}` {why}"));
        let route = self.routes.settled(&adapter).await.ok_or_else(|| unusable("is not configured any more"))?;
        if route.sender.is_none() {
            return Err(unusable("can't send, or its `info` did not say yet that it can"));
        }
        let channel = match route.channel {
            Some(channel) => Some(channel),
            None => self.former_channel(&adapter).await?,
        };
        let channel = channel.ok_or_else(|| unusable("never said which channel it is; see `nexus adapter info`"))?;
        request.delivery = DeliveryTarget { channel, account_id: account, target: to, thread_id: None, reply_to_id: None };
        request.adapter = adapter;
        Ok(())
    }

    /// The channel of an adapter that doesn't say it now.
    async fn former_channel(&self, adapter: &str) -> Result<Option<String>, Exit> {
        let name = adapter.to_owned();
        let look_up = move |connection: &Connection| channel_of(connection, &name);
        let known = self.ledgers.nexus.readers.read_patiently(look_up, READ_PATIENCE, &self.abandon).await;
        known.ok_or_else(|| match self.abandon.is_cancelled() {
            true => Exit::Stopping,
            false => Exit::Failed(format!("nexus.db could not be read for {} s; see the log", READ_PATIENCE.as_secs())),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::samples;
    use serde_json::json;

    fn request(adapter: &str, content_type: &str) -> NexusRequest {
        let mut event = samples::event("timer:cron:daily:1");
        event.content_type = content_type.to_owned();
        event.metadata = json!({ "cron_label": "daily", CRON_DELIVER: { "adapter": "chat", "account": "me", "to": "you" } });
        let mut request = NexusRequest::new("req_1".to_owned(), 1, 0, event);
        request.adapter = adapter.to_owned();
        request
    }

    #[test]
    fn only_slots_of_the_timer_lead_elsewhere() {
        let there = Deliver { adapter: "chat".to_owned(), account: "me".to_owned(), to: "you".to_owned() };
        assert_eq!(deliver_of(&request(TIMER_CHANNEL, CRON_TYPE)), Some(there));
        assert_eq!(deliver_of(&request(TIMER_CHANNEL, "system/heartbeat")), None);
        assert_eq!(deliver_of(&request("chat", CRON_TYPE)), None);
        let mut bare = request(TIMER_CHANNEL, CRON_TYPE);
        bare.event.metadata = json!({ "cron_label": "daily" });
        assert_eq!(deliver_of(&bare), None);
    }
}
