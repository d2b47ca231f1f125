//! identity.db: who is who. Contacts follow the events ledger; entities, links, tags and merges are primary
//! here. What a person decides is in `edit`, what is asked in `read`; who may do what is decided elsewhere.

mod edit;
mod read;
#[cfg(test)]
mod tests;

pub use edit::{Link, Linked, Merge, Refused, SetEntity, Tag, Unlink, Unmerge, Untag};
pub use read::{Contact, Details, Entity, Identity, LinkRow, Member, contact, contacts, details, entity, entity_of, link_of, root_of};

use super::events::Senders;
use super::writer::{Weight, commands};
use super::{Ledger, follow};
use rusqlite::{Connection, params};

/// The entity that every owner's identities belong to. It is never merged into another.
pub const OWNER_ENTITY: &str = "owner";
/// How sure a link must be to make its sender known. Less sure ones are shown, and count for nothing.
pub const CONFIDENCE_MIN: f64 = 0.5;
/// Entities that count as one, merged one by one; so it bounds the way from an entity to its root as well.
pub const MERGED_MAX: usize = 32;
/// Senders linked to one entity.
pub const LINKS_MAX: usize = 64;
/// Tags of one entity.
pub const TAGS_MAX: usize = 64;

/// The senders of all inbound events up to `upto_seq` that weren't applied yet.
#[derive(Debug, Clone)]
pub struct ApplyContacts {
    pub upto_seq: i64,
    pub senders: Senders,
}

commands! { Ledger::Identity, IdentityCommand / IdentityReply {
    ApplyContacts -> (),
    Link -> Result<Linked, Refused>,
    Unlink -> Option<String>,
    SetEntity -> Result<(), Refused>,
    Tag -> Result<(), Refused>,
    Untag -> Result<(), Refused>,
    Merge -> Result<(), Refused>,
    Unmerge -> Result<Option<String>, Refused>,
} }

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
