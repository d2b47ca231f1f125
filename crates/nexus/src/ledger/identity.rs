//! identity.db: who is who. Contacts follow the events ledger; entities and mappings are primary.

use super::events::Senders;
use super::writer::{Weight, commands};
use super::{Ledger, follow, optional};
use rusqlite::{Connection, params};

/// The senders of all inbound events up to `upto_seq` that weren't applied yet.
#[derive(Debug, Clone)]
pub struct ApplyContacts {
    pub upto_seq: i64,
    pub senders: Senders,
}

commands! { Ledger::Identity, IdentityCommand / IdentityReply { ApplyContacts -> () } }

/// The name under which identity.db follows events.db.
pub const SOURCE: &str = "events";

impl ApplyContacts {
    fn apply(&self, connection: &Connection) -> rusqlite::Result<()> {
        if !follow::advance(connection, SOURCE, self.upto_seq)? {
            return Ok(());
        }
        let mut upsert = connection.prepare_cached(
            "INSERT INTO contacts VALUES (?1, ?2, ?3, ?4, ?5, ?6) ON CONFLICT (channel, sender_id) DO UPDATE SET
               name = coalesce(?3, name), last_seen = max(last_seen, ?5), messages = messages + ?6",
        )?;
        for ((channel, sender_id), seen) in &self.senders {
            upsert.execute(params![channel, sender_id, seen.name, seen.first_seen, seen.last_seen, seen.messages])?;
        }
        Ok(())
    }
}

impl Weight for ApplyContacts {
    fn bytes(&self) -> usize {
        self.senders.len() * 128 + 64
    }
    fn rows(&self) -> usize {
        self.senders.len().max(1)
    }
}

/// An entity with all that stage 2 needs of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entity {
    pub entity_id: String,
    pub name: Option<String>,
    pub relationship: Option<String>,
    pub tags: Vec<String>,
    pub identities: Vec<(String, String)>,
}

/// The entity that `sender_id` of `channel` is mapped to.
pub fn entity_of(connection: &Connection, channel: &str, sender_id: &str) -> rusqlite::Result<Option<Entity>> {
    let sql = "SELECT entity_id FROM identity_mappings WHERE channel = ?1 AND sender_id = ?2";
    let id: Option<String> = optional(connection.prepare_cached(sql)?.query_row([channel, sender_id], |row| row.get(0)))?;
    id.map_or(Ok(None), |id| entity(connection, &id))
}

/// The entity named `entity_id`.
pub fn entity(connection: &Connection, entity_id: &str) -> rusqlite::Result<Option<Entity>> {
    let sql = "SELECT name, relationship FROM entities WHERE entity_id = ?1";
    let Some((name, relationship)) =
        optional(connection.prepare_cached(sql)?.query_row([entity_id], |row| Ok((row.get(0)?, row.get(1)?))))?
    else {
        return Ok(None);
    };
    let mut tags = connection.prepare_cached("SELECT tag FROM entity_tags WHERE entity_id = ?1 ORDER BY tag")?;
    let tags = tags.query_map([entity_id], |row| row.get(0))?.collect::<rusqlite::Result<_>>()?;
    let mut identities =
        connection.prepare_cached("SELECT channel, sender_id FROM identity_mappings WHERE entity_id = ?1 ORDER BY 1, 2")?;
    let identities = identities.query_map([entity_id], |row| Ok((row.get(0)?, row.get(1)?)))?.collect::<rusqlite::Result<_>>()?;
    Ok(Some(Entity { entity_id: entity_id.to_owned(), name, relationship, tags, identities }))
}
