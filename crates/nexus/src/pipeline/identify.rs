//! Stages 2 and 3: who speaks, and what they may.

use super::{Exit, Pipeline, Settings};
use crate::clock;
use crate::ledger::identity::{Entity, entity, entity_of};
use crate::routes::{CLI_CHANNEL, TIMER_CHANNEL};
use nexus_core::access::{Ask, Principal, decide, is_owner};
use nexus_core::config::{Day, Effect, PrincipalType};
use nexus_core::notice::NoticeType;
use nexus_core::request::{NexusRequest, PrincipalSection};
use serde_json::json;

/// The entity that every owner's identity belongs to.
const OWNER_ENTITY: &str = "owner";
/// The channel of the bundled webhook adapter: machines speak there.
const WEBHOOK_CHANNEL: &str = "webhook";

impl Pipeline {
    /// Stage 2. The timer is `system`; the control socket is the owner, since only the daemon's own
    /// user can open it; owners are named in the config; the rest is looked up.
    /// The first two go by the adapter, which no adapter's own words can change.
    pub(super) async fn identify(&self, request: &mut NexusRequest, adapter: &str, settings: &Settings) -> Result<Principal, Exit> {
        let event = &request.event;
        let identifier = (event.channel.clone(), event.sender_id.clone());
        let principal = if adapter == TIMER_CHANNEL {
            plain(PrincipalType::System, identifier, None)
        } else if adapter == CLI_CHANNEL || is_owner(&settings.access, std::slice::from_ref(&identifier)) {
            let known = self.look_up(None).await?;
            of_entity(PrincipalType::Owner, known, identifier)
        } else {
            match self.look_up(Some(identifier.clone())).await? {
                Some(known) => of_entity(PrincipalType::Known, Some(known), identifier),
                None if event.channel == WEBHOOK_CHANNEL => plain(PrincipalType::Webhook, identifier, event.sender_name.as_deref()),
                None => plain(PrincipalType::Unknown, identifier, event.sender_name.as_deref()),
            }
        };
        request.principal = Some(PrincipalSection {
            type_: principal.type_,
            entity_id: principal.entity_id.clone(),
            name: principal.name.clone(),
            relationship: principal.relationship.clone(),
            tags: principal.tags.clone(),
            identities: principal.identifiers.iter().map(|(channel, sender)| format!("{channel}:{sender}")).collect(),
        });
        Ok(principal)
    }

    /// The entity behind an identifier, or the owner's.
    async fn look_up(&self, identifier: Option<(String, String)>) -> Result<Option<Entity>, Exit> {
        let found = self.ledgers.identity.readers.read(move |connection| match identifier {
            Some((channel, sender)) => entity_of(connection, &channel, &sender),
            None => entity(connection, OWNER_ENTITY),
        });
        found.await.map_err(|error| Exit::Failed(crate::error_text::describe(&error)))
    }

    /// Stage 3. Unknown senders are denied unless a policy lets them in.
    pub(super) fn authorize(&self, request: &mut NexusRequest, settings: &Settings, principal: &Principal) -> Result<(), Exit> {
        let (minute_of_day, day) = local_time(&settings.time_zone);
        let event = &request.event;
        let ask = Ask { channel: event.channel.clone(), account: event.account_id.clone(), peer_kind: event.peer_kind, minute_of_day, day };
        let decision = decide(&settings.access, principal, &ask);
        let notice = json!({
            "request_id": request.request_id, "event_id": event.event_id,
            "decision": decision.effect, "policy": decision.matched_policy, "principal": principal.type_,
        });
        self.bus.publish(NoticeType::AclDecision, notice);
        let denied = decision.effect == Effect::Deny;
        let reason = match &decision.matched_policy {
            Some(policy) => format!("denied by policy `{policy}`"),
            None => "no policy allows this sender".into(),
        };
        request.access = Some(decision);
        if denied { Err(Exit::Denied(reason)) } else { Ok(()) }
    }
}

fn plain(type_: PrincipalType, identifier: (String, String), name: Option<&str>) -> Principal {
    Principal { type_, entity_id: None, name: name.map(str::to_owned), relationship: None, tags: Vec::new(), identifiers: vec![identifier] }
}

fn of_entity(type_: PrincipalType, entity: Option<Entity>, identifier: (String, String)) -> Principal {
    let mut principal = plain(type_, identifier, None);
    if let Some(entity) = entity {
        principal.entity_id = Some(entity.entity_id);
        principal.name = entity.name;
        principal.relationship = entity.relationship;
        principal.tags = entity.tags;
        for identity in entity.identities {
            if !principal.identifiers.contains(&identity) {
                principal.identifiers.push(identity);
            }
        }
    }
    principal
}

fn local_time(zone: &jiff::tz::TimeZone) -> (u16, Day) {
    let now = jiff::Timestamp::from_millisecond(clock::wall_ms()).unwrap_or(jiff::Timestamp::UNIX_EPOCH).to_zoned(zone.clone());
    let minute = u16::try_from(i32::from(now.hour()) * 60 + i32::from(now.minute())).unwrap_or(0);
    let day = match now.weekday() {
        jiff::civil::Weekday::Monday => Day::Mon,
        jiff::civil::Weekday::Tuesday => Day::Tue,
        jiff::civil::Weekday::Wednesday => Day::Wed,
        jiff::civil::Weekday::Thursday => Day::Thu,
        jiff::civil::Weekday::Friday => Day::Fri,
        jiff::civil::Weekday::Saturday => Day::Sat,
        jiff::civil::Weekday::Sunday => Day::Sun,
    };
    (minute, day)
}
