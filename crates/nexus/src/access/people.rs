//! Questions about contacts, entities and decisions, answered alike by a running daemon and, when none runs,
//! by the CLI straight from the ledger files.

use super::Given;
use crate::ledger::identity::{Contact, OWNER_ENTITY, contact, contacts, details, entity, link_of};
use crate::ledger::nexus::{AuditQuery, audit, left_out};
use crate::ledger::{Ledger, ReadError, Readers};
use crate::query::{self, QueryError, ROWS_MAX};
use nexus_core::config;
use rusqlite::Connection;
use serde_json::{Value, json};
use std::path::Path;

/// Readers of the two ledgers that questions go to.
#[derive(Debug, Clone)]
pub struct People {
    pub identity: Readers,
    pub nexus: Readers,
}

/// The channel and the id there of `CHANNEL:SENDER`; `None` for anything else, as for the id of an entity.
pub fn sender(text: &str) -> Option<(&str, &str)> {
    text.split_once(':').filter(|(channel, sender_id)| !channel.is_empty() && !sender_id.is_empty())
}

impl People {
    /// The ledgers in `directory`, which no daemon has open.
    ///
    /// # Errors
    /// As [`query::Record::offline`].
    pub fn offline(directory: &Path) -> Result<Self, QueryError> {
        let [identity, nexus] = query::offline(directory, [Ledger::Identity, Ledger::Nexus])?;
        Ok(Self { identity, nexus })
    }

    /// The contacts that wrote last, those first, each with the entity that it counts as: that of the owner for whoever
    /// `access.owner` names, whatever it is linked to.
    ///
    /// # Errors
    /// When the ledger can't be read; so with all questions here.
    pub fn contacts(&self, access: &config::Access, limit: usize) -> Result<Value, ReadError> {
        let contacts = self.identity.read_now(|connection| {
            let found = contacts(connection, limit.min(ROWS_MAX))?;
            found.iter().map(|contact| contact_json(connection, access, contact)).collect::<rusqlite::Result<Vec<_>>>()
        })?;
        Ok(json!({ "contacts": contacts }))
    }

    /// All that is known of a sender (`CHANNEL:SENDER`) or of an entity; `None` of nobody.
    pub fn who(&self, access: &config::Access, of: &str) -> Result<Option<Value>, ReadError> {
        self.identity.read_now(|connection| match sender(of) {
            Some((channel, sender_id)) => known_sender(connection, access, channel, sender_id),
            None => Ok(details(connection, of)?.map(|entity| json!({ "entity": entity }))),
        })
    }

    /// Decisions, newest first, and how many about the timer are left out.
    pub fn audit(&self, query: &AuditQuery) -> Result<Value, ReadError> {
        let query = AuditQuery { limit: query.limit.min(ROWS_MAX), ..query.clone() };
        let (decisions, left_out) = self.nexus.read_now(|connection| {
            let decisions = audit(connection, &query)?;
            let left_out = left_out(connection, &query, &decisions)?;
            Ok((decisions, left_out))
        })?;
        Ok(json!({ "decisions": decisions, "left_out": left_out }))
    }
}

fn contact_json(connection: &Connection, access: &config::Access, contact: &Contact) -> rusqlite::Result<Value> {
    let is_owner = is_owner(access, &contact.channel, &contact.sender_id);
    let counted = match contact.link.as_ref().filter(|link| link.counts) {
        _ if is_owner => entity(connection, OWNER_ENTITY)?,
        Some(link) => entity(connection, &link.entity_id)?,
        None => None,
    };
    let mut value = json!(contact);
    value["is_owner"] = is_owner.into();
    value["entity"] = match counted {
        Some(entity) => json!({ "entity_id": entity.entity_id, "name": entity.name, "relationship": entity.relationship }),
        None => Value::Null,
    };
    Ok(value)
}

/// As stage 2 finds it: no adapter may serve the two channels whose adapter is the daemon.
fn is_owner(access: &config::Access, channel: &str, sender_id: &str) -> bool {
    Given::of(access, channel, channel, sender_id) == Given::Owner
}

fn known_sender(connection: &Connection, access: &config::Access, channel: &str, sender_id: &str) -> rusqlite::Result<Option<Value>> {
    let (contact, link) = (contact(connection, channel, sender_id)?, link_of(connection, channel, sender_id)?);
    if contact.is_none() && link.is_none() {
        return Ok(None);
    }
    let is_owner = is_owner(access, channel, sender_id);
    let entity = match &link {
        _ if is_owner => details(connection, OWNER_ENTITY)?,
        Some(link) => details(connection, &link.entity_id)?,
        None => None,
    };
    let sender = json!({
        "channel": channel, "sender_id": sender_id, "contact": contact, "link": link, "entity": entity, "is_owner": is_owner,
    });
    Ok(Some(sender))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sender_is_told_from_an_entity() {
        assert_eq!(sender("sms:+1555"), Some(("sms", "+1555")));
        assert_eq!(sender("x:a:b"), Some(("x", "a:b")));
        for text in ["ann", "sms:", ":1", "", ":"] {
            assert_eq!(sender(text), None, "{text}");
        }
    }
}
