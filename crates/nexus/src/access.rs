//! Who a sender is and what was decided about senders: one way to find it for stages 2 and 3 and for
//! `nexus access`, with a running daemon and without one. It never enforces and never counts; the policies
//! themselves are `nexus_core::access`.

mod check;
mod edit;
mod people;

pub use check::{Check, CheckError, Rules, local_time};
pub use edit::{Edit, EditError};
pub use people::{People, sender};

use crate::ledger::identity::{Entity, OWNER_ENTITY, entity, entity_of};
use crate::nostr;
use crate::routes::{CLI_CHANNEL, TIMER_CHANNEL};
use jiff::civil;
use jiff::tz::TimeZone;
use nexus_core::access::{Principal, WHITELIST, is_owner};
use nexus_core::config::{self, Day, PrincipalType};
use nexus_core::request::PrincipalSection;
use rusqlite::Connection;

/// The channel of the bundled webhook adapter: machines speak there.
const WEBHOOK_CHANNEL: &str = "webhook";
/// The relationship of an entity that is no person but an agent of somebody's.
const AGENT_RELATIONSHIP: &str = "agent";

/// Why a request ends that was let in and asks no agent.
pub fn recorded_only(content_type: &str) -> String {
    format!("recorded only: no policy that allows it names the content type `{content_type}`")
}

/// What is known of a sender before anybody is looked up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Given {
    System,
    Owner,
    /// Its key is in `nostr.whitelist`.
    Whitelisted,
    Anybody,
}

impl Given {
    /// By the adapter, which no adapter's own words can change, and by the configuration.
    pub fn of(access: &config::Access, adapter: &str, channel: &str, sender_id: &str) -> Self {
        if adapter == TIMER_CHANNEL {
            return Self::System;
        }
        if adapter == CLI_CHANNEL || is_owner(access, &[(channel.to_owned(), sender_id.to_owned())]) {
            return Self::Owner;
        }
        if adapter == nostr::ADAPTER && access.whitelist.contains(sender_id) {
            return Self::Whitelisted;
        }
        Self::Anybody
    }
}

/// Somebody who says something. With identity.db it decides who that is, and nothing else does.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Speaker {
    pub given: Given,
    pub channel: String,
    pub sender_id: String,
    /// As the channel gives it.
    pub name: Option<String>,
}

impl Speaker {
    /// The principal that needs no ledger: the daemon itself.
    pub fn without_ledger(&self) -> Option<Principal> {
        match self.given {
            Given::System => Some(self.plain(PrincipalType::System, None)),
            Given::Owner | Given::Whitelisted | Given::Anybody => None,
        }
    }

    /// The principal, by identity.db.
    pub fn look_up(&self, connection: &Connection) -> rusqlite::Result<Principal> {
        let principal = match self.given {
            Given::System => self.plain(PrincipalType::System, None),
            Given::Owner => self.of_entity(PrincipalType::Owner, entity(connection, OWNER_ENTITY)?),
            Given::Whitelisted => {
                let known = entity_of(connection, &self.channel, &self.sender_id)?;
                let mut principal = self.of_entity(PrincipalType::Known, known);
                principal.tags.push(WHITELIST.to_owned());
                principal.name = principal.name.or_else(|| self.name.clone());
                principal
            }
            Given::Anybody => match entity_of(connection, &self.channel, &self.sender_id)? {
                Some(known) => self.of_entity(type_of(&known), Some(known)),
                None if self.channel == WEBHOOK_CHANNEL => self.plain(PrincipalType::Webhook, self.name.clone()),
                None => self.plain(PrincipalType::Unknown, self.name.clone()),
            },
        };
        Ok(principal)
    }

    fn plain(&self, type_: PrincipalType, name: Option<String>) -> Principal {
        let identifiers = vec![(self.channel.clone(), self.sender_id.clone())];
        Principal { type_, entity_id: None, name, relationship: None, tags: Vec::new(), identifiers }
    }

    fn of_entity(&self, type_: PrincipalType, entity: Option<Entity>) -> Principal {
        let mut principal = self.plain(type_, None);
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
}

/// What a linked sender is.
fn type_of(entity: &Entity) -> PrincipalType {
    match entity.relationship.as_deref() {
        Some(AGENT_RELATIONSHIP) => PrincipalType::Agent,
        Some(_) | None => PrincipalType::Known,
    }
}

/// A principal as a request shows it.
pub fn section(principal: &Principal) -> PrincipalSection {
    PrincipalSection {
        type_: principal.type_,
        entity_id: principal.entity_id.clone(),
        name: principal.name.clone(),
        relationship: principal.relationship.clone(),
        tags: principal.tags.clone(),
        identities: principal.identifiers.iter().map(|(channel, sender)| format!("{channel}:{sender}")).collect(),
    }
}

/// The local date and time of an instant in Unix ms.
pub fn to_local(unix_ms: i64, zone: &TimeZone) -> civil::DateTime {
    let instant = jiff::Timestamp::from_millisecond(unix_ms).unwrap_or(jiff::Timestamp::UNIX_EPOCH);
    instant.to_zoned(zone.clone()).datetime()
}

/// What policies know of a local time: the minute of its day, and the day of the week.
pub fn minute_and_day(local: civil::DateTime) -> (u16, Day) {
    let minute = u16::try_from(i32::from(local.hour()) * 60 + i32::from(local.minute())).unwrap_or(0);
    let day = match local.weekday() {
        civil::Weekday::Monday => Day::Mon,
        civil::Weekday::Tuesday => Day::Tue,
        civil::Weekday::Wednesday => Day::Wed,
        civil::Weekday::Thursday => Day::Thu,
        civil::Weekday::Friday => Day::Fri,
        civil::Weekday::Saturday => Day::Sat,
        civil::Weekday::Sunday => Day::Sun,
    };
    (minute, day)
}
