//! Where the answer to a slot of a schedule goes: to whom its entry in `timer.cron` named when it fired, which its event
//! says; and so does what is said where there is none. It sends nothing.

use super::{Exit, Pipeline};
use crate::ledger::nexus::channel_of;
use crate::ledger::{Ledgers, ReadError};
use crate::routes::{CLI_CHANNEL, CRON_DELIVER, CRON_TYPE, Place, TIMER_CHANNEL};
use nexus_core::request::{DeliveryTarget, NexusRequest};

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

impl Deliver {
    fn place(self, channel: String) -> Place {
        let Self { adapter, account, to } = self;
        let target = DeliveryTarget { channel, account_id: account, target: to, thread_id: None, reply_to_id: None };
        Place { adapter, target }
    }
}

/// Where it is told that a request, as it was recorded, gets no answer. `None` for the client of the control socket, which
/// asks for the request's end, and for what the timer says to nobody.
///
/// # Errors
/// When nexus.db can't be read, which knows the channel of the adapter of a slot.
pub(super) async fn place_of(ledgers: &Ledgers, request: &NexusRequest) -> Result<Option<Place>, ReadError> {
    match request.event.channel.as_str() {
        CLI_CHANNEL => Ok(None),
        TIMER_CHANNEL => {
            let Some(deliver) = deliver_of(request) else { return Ok(None) };
            let name = deliver.adapter.clone();
            let channel = ledgers.nexus.readers.read(move |connection| channel_of(connection, &name)).await?;
            Ok(channel.map(|channel| deliver.place(channel)))
        }
        _ => Ok(Some(Place { adapter: request.adapter.clone(), target: request.delivery.clone() })),
    }
}

/// The adapter whose event it is, also once the answer is led elsewhere.
pub(super) fn heard_by(request: &NexusRequest) -> &str {
    if request.event.channel == TIMER_CHANNEL { TIMER_CHANNEL } else { &request.adapter }
}

/// What has no answer, for a sentence that says so: whoever reads it about a slot has written nothing.
pub(super) fn asked(request: &NexusRequest, written: &str) -> String {
    let label = request.event.metadata.get("cron_label").and_then(serde_json::Value::as_str);
    let label = label.filter(|_| request.event.channel == TIMER_CHANNEL);
    label.map_or_else(|| written.to_owned(), |label| format!("the scheduled `{label}`"))
}

impl Pipeline {
    /// Leads the answer to where the slot's entry says. Asked before the agent is: what nobody could be told costs nothing.
    pub(super) async fn lead_answer(&self, request: &mut NexusRequest, deliver: Deliver) -> Result<(), Exit> {
        let adapter = deliver.adapter.clone();
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
        Place { adapter: request.adapter, target: request.delivery } = deliver.place(channel);
        Ok(())
    }

    /// The channel of an adapter that doesn't say it now.
    async fn former_channel(&self, adapter: &str) -> Result<Option<String>, Exit> {
        let name = adapter.to_owned();
        self.look_up(move |connection| channel_of(connection, &name)).await
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

    #[test]
    fn whoever_wrote_nothing_is_not_told_of_a_message() {
        let mut slot = request(TIMER_CHANNEL, CRON_TYPE);
        slot.event.channel = TIMER_CHANNEL.to_owned();
        assert_eq!(asked(&slot, "this message"), "the scheduled `daily`");
        slot.adapter = "chat".to_owned();
        assert_eq!(heard_by(&slot), TIMER_CHANNEL, "led elsewhere, it still is the timer's");
        let written = request("chat", CRON_TYPE);
        assert_eq!((asked(&written, "this message").as_str(), heard_by(&written)), ("this message", "chat"), "whatever it says");
    }
}
