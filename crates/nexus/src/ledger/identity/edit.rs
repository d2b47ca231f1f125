//! What a person decides about who is who. Each command is a whole transaction: it changes all that it says,
//! or nothing and answers why. Repeating one changes nothing more.

use super::read::{link_of, members, merged_into, root_of};
use super::{LINKS_MAX, MERGED_MAX, OWNER_ENTITY, TAGS_MAX};
use crate::ledger::writer::Weight;
use rusqlite::{Connection, params};
use std::collections::BTreeSet;

/// Why a decision can't be carried out; nothing was changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    #[error("no entity `{0}`; `nexus access link CHANNEL:SENDER {0}` makes it")]
    NoEntity(String),
    #[error("the owner can't be merged into another entity; merge that one into `{OWNER_ENTITY}`")]
    Owner,
    /// Nobody said that it is meant.
    #[error("`{0}` has the owner's session, name and tags, and shares them with whoever counts as it; if that is meant, add --as-owner")]
    AsOwner(String),
    #[error("`{0}` can't be merged into itself")]
    Itself(String),
    #[error("`{entity}` is merged into `{into}` already; `nexus access unmerge {entity}` first")]
    Merged { entity: String, into: String },
    #[error("`{into}` counts as `{from}` already; `nexus access unmerge` what is merged into that first")]
    Circle { from: String, into: String },
    #[error("`{entity}` would have more than {max} {what}")]
    Full { entity: String, max: usize, what: &'static str },
}

/// A sender belongs to an entity, which is made if there is none of that id.
#[derive(Debug, Clone)]
pub struct Link {
    pub channel: String,
    pub sender_id: String,
    pub entity_id: String,
    /// As in [`SetEntity`].
    pub name: Option<String>,
    pub relationship: Option<String>,
    /// 0 to 1; see [`super::CONFIDENCE_MIN`].
    pub confidence: f64,
    /// Who says so.
    pub source: &'static str,
    /// It may be an entity that counts as the owner.
    pub as_owner: bool,
    /// Unix ms.
    pub at: i64,
}

/// A link that was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Linked {
    /// The entity is new.
    pub created: bool,
    /// The other entity that the sender was linked to.
    pub before: Option<String>,
}

impl Link {
    pub(super) fn apply(&self, connection: &Connection) -> rusqlite::Result<Result<Linked, Refused>> {
        if !self.as_owner && root_of(connection, &self.entity_id)?.is_some_and(|root| root == OWNER_ENTITY) {
            return Ok(Err(Refused::AsOwner(self.entity_id.clone())));
        }
        let before = link_of(connection, &self.channel, &self.sender_id)?.map(|link| link.entity_id);
        let is_other = before.as_ref() != Some(&self.entity_id);
        let links = "SELECT count(*) FROM identity_mappings WHERE entity_id = ?1";
        let links: usize = connection.prepare_cached(links)?.query_row([&self.entity_id], |row| row.get(0))?;
        if is_other && links >= LINKS_MAX {
            return Ok(Err(Refused::Full { entity: self.entity_id.clone(), max: LINKS_MAX, what: "senders" }));
        }
        let made = "INSERT INTO entities (entity_id, created_at) VALUES (?1, ?2) ON CONFLICT (entity_id) DO NOTHING";
        connection.prepare_cached(made)?.execute(params![self.entity_id, self.at])?;
        describe(connection, &self.entity_id, self.name.as_deref(), self.relationship.as_deref())?;
        connection
            .prepare_cached(
                "INSERT INTO identity_mappings (channel, sender_id, entity_id, confidence, source, linked_at)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6) ON CONFLICT (channel, sender_id)
                 DO UPDATE SET entity_id = ?3, confidence = ?4, source = ?5, linked_at = ?6",
            )?
            .execute(params![self.channel, self.sender_id, self.entity_id, self.confidence, self.source, self.at])?;
        // By its time and not by the insert's count: repeated, the command finds what it made itself.
        let created = "SELECT created_at = ?2 FROM entities WHERE entity_id = ?1";
        let created = connection.prepare_cached(created)?.query_row(params![self.entity_id, self.at], |row| row.get(0))?;
        Ok(Ok(Linked { created, before: before.filter(|_| is_other) }))
    }
}

/// A sender belongs to no entity any more. The entity it belonged to, if there was one.
#[derive(Debug, Clone)]
pub struct Unlink {
    pub channel: String,
    pub sender_id: String,
}

impl Unlink {
    pub(super) fn apply(&self, connection: &Connection) -> rusqlite::Result<Option<String>> {
        let before = link_of(connection, &self.channel, &self.sender_id)?.map(|link| link.entity_id);
        let sql = "DELETE FROM identity_mappings WHERE channel = ?1 AND sender_id = ?2";
        connection.prepare_cached(sql)?.execute([&self.channel, &self.sender_id])?;
        Ok(before)
    }
}

/// Says what an entity is called and what it is to the owner. `None` leaves a value as it is, an empty text takes it
/// away.
#[derive(Debug, Clone)]
pub struct SetEntity {
    pub entity_id: String,
    pub name: Option<String>,
    pub relationship: Option<String>,
}

impl SetEntity {
    pub(super) fn apply(&self, connection: &Connection) -> rusqlite::Result<Result<(), Refused>> {
        if merged_into(connection, &self.entity_id)?.is_none() {
            return Ok(Err(Refused::NoEntity(self.entity_id.clone())));
        }
        describe(connection, &self.entity_id, self.name.as_deref(), self.relationship.as_deref())?;
        Ok(Ok(()))
    }
}

fn describe(connection: &Connection, entity_id: &str, name: Option<&str>, relationship: Option<&str>) -> rusqlite::Result<()> {
    let sql = "UPDATE entities SET name = CASE WHEN ?2 IS NULL THEN name ELSE nullif(?2, '') END,
                 relationship = CASE WHEN ?3 IS NULL THEN relationship ELSE nullif(?3, '') END WHERE entity_id = ?1";
    connection.prepare_cached(sql)?.execute(params![entity_id, name, relationship]).map(drop)
}

/// Puts tags on an entity.
#[derive(Debug, Clone)]
pub struct Tag {
    pub entity_id: String,
    pub tags: Vec<String>,
}

impl Tag {
    pub(super) fn apply(&self, connection: &Connection) -> rusqlite::Result<Result<(), Refused>> {
        if merged_into(connection, &self.entity_id)?.is_none() {
            return Ok(Err(Refused::NoEntity(self.entity_id.clone())));
        }
        let mut known = connection.prepare_cached("SELECT tag FROM entity_tags WHERE entity_id = ?1")?;
        let mut tags: BTreeSet<String> = known.query_map([&self.entity_id], |row| row.get(0))?.collect::<rusqlite::Result<_>>()?;
        tags.extend(self.tags.iter().cloned());
        if tags.len() > TAGS_MAX {
            return Ok(Err(Refused::Full { entity: self.entity_id.clone(), max: TAGS_MAX, what: "tags" }));
        }
        let mut insert = connection.prepare_cached("INSERT INTO entity_tags VALUES (?1, ?2) ON CONFLICT DO NOTHING")?;
        for tag in &self.tags {
            insert.execute([&self.entity_id, tag])?;
        }
        Ok(Ok(()))
    }
}

/// Takes tags off an entity.
#[derive(Debug, Clone)]
pub struct Untag {
    pub entity_id: String,
    pub tags: Vec<String>,
}

impl Untag {
    pub(super) fn apply(&self, connection: &Connection) -> rusqlite::Result<Result<(), Refused>> {
        if merged_into(connection, &self.entity_id)?.is_none() {
            return Ok(Err(Refused::NoEntity(self.entity_id.clone())));
        }
        let mut delete = connection.prepare_cached("DELETE FROM entity_tags WHERE entity_id = ?1 AND tag = ?2")?;
        for tag in &self.tags {
            delete.execute([&self.entity_id, tag])?;
        }
        Ok(Ok(()))
    }
}

/// One entity counts as another from now on, with all that is merged into it.
#[derive(Debug, Clone)]
pub struct Merge {
    pub from: String,
    pub into: String,
    /// As in [`Link`].
    pub as_owner: bool,
}

impl Merge {
    pub(super) fn apply(&self, connection: &Connection) -> rusqlite::Result<Result<(), Refused>> {
        let Self { from, into, .. } = self;
        if let Err(refused) = self.can_be(connection)? {
            return Ok(Err(refused));
        }
        let sql = "UPDATE entities SET merged_into = ?2 WHERE entity_id = ?1";
        connection.prepare_cached(sql)?.execute([from, into])?;
        Ok(Ok(()))
    }

    fn can_be(&self, connection: &Connection) -> rusqlite::Result<Result<(), Refused>> {
        let Self { from, into, as_owner } = self;
        let missing = |id: &String| Ok(Err(Refused::NoEntity(id.clone())));
        let Some(merged) = merged_into(connection, from)? else { return missing(from) };
        let Some(root) = root_of(connection, into)? else { return missing(into) };
        if from == OWNER_ENTITY {
            return Ok(Err(Refused::Owner));
        }
        if from == into {
            return Ok(Err(Refused::Itself(from.clone())));
        }
        if root == OWNER_ENTITY && !as_owner {
            return Ok(Err(Refused::AsOwner(into.clone())));
        }
        if let Some(merged) = merged {
            let is_repeated = merged == *into;
            return Ok(if is_repeated { Ok(()) } else { Err(Refused::Merged { entity: from.clone(), into: merged }) });
        }
        // What is not merged is a root: the way up from the other one leads here or past it.
        if root == *from {
            return Ok(Err(Refused::Circle { from: from.clone(), into: into.clone() }));
        }
        if members(connection, from)?.len() + members(connection, &root)?.len() > MERGED_MAX {
            return Ok(Err(Refused::Full { entity: root, max: MERGED_MAX, what: "merged entities" }));
        }
        Ok(Ok(()))
    }
}

/// An entity counts for itself again, with all that is merged into it. What it was merged into.
#[derive(Debug, Clone)]
pub struct Unmerge {
    pub entity_id: String,
}

impl Unmerge {
    pub(super) fn apply(&self, connection: &Connection) -> rusqlite::Result<Result<Option<String>, Refused>> {
        let Some(merged) = merged_into(connection, &self.entity_id)? else {
            return Ok(Err(Refused::NoEntity(self.entity_id.clone())));
        };
        connection.prepare_cached("UPDATE entities SET merged_into = NULL WHERE entity_id = ?1")?.execute([&self.entity_id])?;
        Ok(Ok(merged))
    }
}

impl Weight for Link {
    fn rows(&self) -> usize {
        2
    }
    fn outdates(&self) -> bool {
        true
    }
}

impl Weight for Tag {
    fn rows(&self) -> usize {
        self.tags.len().max(1)
    }
    fn outdates(&self) -> bool {
        true
    }
}

impl Weight for Untag {
    fn rows(&self) -> usize {
        self.tags.len().max(1)
    }
    fn outdates(&self) -> bool {
        true
    }
}

impl Weight for Unlink {
    fn outdates(&self) -> bool {
        true
    }
}

impl Weight for SetEntity {
    fn outdates(&self) -> bool {
        true
    }
}

impl Weight for Merge {
    fn outdates(&self) -> bool {
        true
    }
}

impl Weight for Unmerge {
    fn outdates(&self) -> bool {
        true
    }
}
