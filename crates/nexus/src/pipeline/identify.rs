//! Stages 2 and 3: who speaks, what they may, and what is kept about it. How that is found out,
//! `crate::access` and the core say; here it is done, counted and enforced.

use super::{Exit, Pipeline, READ_PATIENCE, Settings};
use crate::access::{Given, Speaker, minute_and_day, section, to_local};
use crate::agent::project::project_of;
use crate::clock;
use crate::ledger::nexus::Audit;
use nexus_core::access::{Ask, Decision, Principal, decide};
use nexus_core::config::Effect;
use nexus_core::notice::NoticeType;
use nexus_core::request::NexusRequest;
use rusqlite::Connection;
use serde_json::json;
use std::sync::PoisonError;

/// The longest name, as its channel gives it, of a speaker that is kept in memory, and how many senders and tags one may have.
const KNOWN_NAME_BYTES_MAX: usize = 256;
const KNOWN_PARTS_MAX: usize = 64;

impl Pipeline {
    /// Stage 2. The timer is `system`; the control socket is the owner, since only the daemon's own
    /// user can open it; owners are named in the config; the rest is looked up.
    /// The first two go by the adapter, which no adapter's own words can change.
    pub(super) async fn identify(&self, request: &mut NexusRequest, adapter: &str, settings: &Settings) -> Result<Principal, Exit> {
        let event = &request.event;
        let speaker = Speaker {
            given: Given::of(&settings.access, adapter, &event.channel, &event.sender_id),
            channel: event.channel.clone(),
            sender_id: event.sender_id.clone(),
            name: event.sender_name.clone(),
        };
        let principal = match speaker.without_ledger().or_else(|| self.speakers.get(&speaker)) {
            Some(principal) => principal,
            None => self.look_up_speaker(speaker).await?,
        };
        request.principal = Some(section(&principal));
        Ok(principal)
    }

    /// Who that is by identity.db, which is known from then on until somebody says otherwise.
    async fn look_up_speaker(&self, speaker: Speaker) -> Result<Principal, Exit> {
        let (version, asked) = (self.speakers.version(), speaker.clone());
        let look_up = move |connection: &Connection| asked.look_up(connection);
        let found = self.ledgers.identity.readers.read_patiently(look_up, READ_PATIENCE, &self.abandon).await;
        let principal = found.ok_or_else(|| match self.abandon.is_cancelled() {
            true => Exit::Stopping,
            false => Exit::Failed(format!("identity.db could not be read for {} s; see the log", READ_PATIENCE.as_secs())),
        })?;
        let is_small = speaker.name.as_ref().is_none_or(|name| name.len() <= KNOWN_NAME_BYTES_MAX);
        if is_small && principal.identifiers.len() + principal.tags.len() <= KNOWN_PARTS_MAX {
            self.speakers.keep(version, speaker, principal.clone());
        }
        Ok(principal)
    }

    /// Stage 3. Unknown senders are denied unless a policy lets them in, and whoever asks more often than that
    /// policy says.
    pub(super) fn authorize(&self, request: &mut NexusRequest, settings: &Settings, principal: &Principal) -> Result<(), Exit> {
        let (minute_of_day, day) = minute_and_day(to_local(clock::wall_ms(), &settings.time_zone));
        let event = &request.event;
        let ask = Ask {
            channel: event.channel.clone(),
            account: event.account_id.clone(),
            peer_kind: event.peer_kind,
            content_type: event.content_type.clone(),
            minute_of_day,
            day,
        };
        let decided = decide(&settings.access, principal, &ask);
        let is_often = self.is_too_often(&decided, principal, request);
        let decision = if is_often { decided.over_rate() } else { decided };
        let event = &request.event;
        let notice = json!({
            "request_id": request.request_id, "event_id": event.event_id, "adapter": request.adapter, "account": event.account_id,
            "decision": decision.effect, "policy": decision.matched_policy, "principal": principal.type_,
            "project": project_of(&request.adapter, &event.metadata),
        });
        self.bus.publish(NoticeType::AclDecision, notice);
        let exit = match (decision.effect, &decision.matched_policy) {
            (Effect::Allow, _) => Ok(()),
            (Effect::Deny, _) if is_often => Err(Exit::Denied(decision.reason().to_owned())),
            (Effect::Deny, Some(policy)) => Err(Exit::Denied(format!("denied by policy `{policy}`"))),
            (Effect::Deny, None) => Err(Exit::Denied("no policy allows this sender".into())),
        };
        request.access = Some(decision);
        exit
    }

    /// A request that was let in before a stop interrupted its run: it counts for no rate again.
    pub(super) fn let_in(&self, event_seq: i64) {
        self.rates.lock().unwrap_or_else(PoisonError::into_inner).let_in(event_seq);
    }

    /// Counts the request, if the policy that lets it in has a rate. One that is prepared again counts once.
    fn is_too_often(&self, decision: &Decision, principal: &Principal, request: &NexusRequest) -> bool {
        let (Effect::Allow, Some(per_minute)) = (decision.effect, decision.per_minute) else { return false };
        let event = &request.event;
        let policy = decision.matched_policy.as_deref().unwrap_or_default();
        let who = match &principal.entity_id {
            Some(entity_id) => format!("entity\u{1f}{entity_id}"),
            None => format!("sender\u{1f}{}", event.sender_id),
        };
        let bucket = format!("{policy}\u{1f}{}\u{1f}{who}", event.channel);
        // Whatever broke off while it held this: the counts are right, or one too low.
        let mut rates = self.rates.lock().unwrap_or_else(PoisonError::into_inner);
        !rates.take(&bucket, per_minute, request.event_seq, clock::mono_ms())
    }
}

/// What is kept about the decision of stage 3, if the request came that far.
pub(super) fn audit(request: &NexusRequest) -> Option<Audit> {
    let (principal, decision) = (request.principal.as_ref()?, request.access.as_ref()?);
    let event = &request.event;
    Some(Audit {
        request_id: request.request_id.clone(),
        channel: event.channel.clone(),
        account_id: event.account_id.clone(),
        sender_id: event.sender_id.clone(),
        principal: principal.type_.as_str(),
        entity_id: principal.entity_id.clone(),
        decision: decision.effect.as_str(),
        policy: decision.matched_policy.clone(),
        reason: decision.reason().to_owned(),
    })
}

/// Takes over what plugins made of the principal.
pub(super) fn adopt(principal: &mut Principal, request: &NexusRequest) {
    if let Some(section) = &request.principal {
        principal.name.clone_from(&section.name);
        principal.relationship.clone_from(&section.relationship);
        principal.tags.clone_from(&section.tags);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::ledger::identity::{Link, Unlink};
    use crate::pipeline::broken::tests::Place;
    use crate::samples;
    use nexus_core::config::PrincipalType;

    async fn who(place: &Place) -> (PrincipalType, Option<String>) {
        let mut request = NexusRequest::new("req_1".to_owned(), 1, 0, samples::event("fake:1".to_owned()));
        let settings = place.pipeline.settings.load_full();
        let principal = place.pipeline.identify(&mut request, "fake", &settings).await.unwrap();
        (principal.type_, principal.entity_id)
    }

    #[tokio::test]
    async fn a_speaker_is_looked_up_once_until_somebody_says_who_it_is() {
        let place = Place::with_a_request().await;
        let (writer, event) = (place.pipeline.ledgers.identity.writer.clone(), samples::event("fake:1".to_owned()));
        let speaker = Speaker {
            given: Given::Anybody,
            channel: event.channel.clone(),
            sender_id: event.sender_id.clone(),
            name: event.sender_name.clone(),
        };
        let link = Link { channel: event.channel.clone(), sender_id: event.sender_id.clone(), ..samples::link() };
        for _ in 0..2 {
            assert_eq!(who(&place).await, (PrincipalType::Unknown, None));
            assert!(place.pipeline.speakers.get(&speaker).is_some(), "nobody has to be asked");
        }
        writer.write(link).await.unwrap().unwrap();
        assert_eq!(who(&place).await, (PrincipalType::Known, Some("ann".to_owned())));
        assert_eq!(place.pipeline.speakers.get(&speaker).unwrap().entity_id.as_deref(), Some("ann"));
        writer.write(Unlink { channel: event.channel, sender_id: event.sender_id }).await.unwrap();
        assert_eq!(who(&place).await, (PrincipalType::Unknown, None));
    }
}
