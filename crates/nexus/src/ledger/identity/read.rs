//! Questions to identity.db: who a sender is, through links and merges, and all that is known of one.

use super::{CONFIDENCE_MIN, MERGED_MAX};
use crate::ledger::optional;
use rusqlite::{Connection, Row, params};
use serde::Serialize;

/// An entity with all that stage 2 needs of it, those merged into it included.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entity {
    pub entity_id: String,
    pub name: Option<String>,
    pub relationship: Option<String>,
    pub tags: Vec<String>,
    /// Channels and senders whose link is sure enough.
    pub identities: Vec<(String, String)>,
}

/// What an entity is merged into, if there is such an entity.
pub(super) fn merged_into(connection: &Connection, entity_id: &str) -> rusqlite::Result<Option<Option<String>>> {
    let sql = "SELECT merged_into FROM entities WHERE entity_id = ?1";
    optional(connection.prepare_cached(sql)?.query_row([entity_id], |row| row.get(0)))
}

/// The entity that this one counts as: the end of its way through merges. `None` when there is no such entity.
pub fn root_of(connection: &Connection, entity_id: &str) -> rusqlite::Result<Option<String>> {
    let mut at = entity_id.to_owned();
    for _ in 0..=MERGED_MAX {
        match merged_into(connection, &at)? {
            None => return Ok(None),
            Some(None) => return Ok(Some(at)),
            Some(Some(into)) => at = into,
        }
    }
    // No command makes such a way. Nobody is taken for somebody by it.
    tracing::error!(entity = entity_id, "its merges have no end; `nexus doctor` names the entities");
    Ok(None)
}

/// The entity itself and all that count as it, as table `member`. No deeper than merges can be.
const MEMBERS: &str = "WITH RECURSIVE member (entity_id, depth) AS (
    SELECT ?1, 0 UNION ALL SELECT e.entity_id, m.depth + 1 FROM member m JOIN entities e ON e.merged_into = m.entity_id WHERE m.depth < ?2)";

/// The ids of an entity and of all that count as it, itself first.
pub(super) fn members(connection: &Connection, entity_id: &str) -> rusqlite::Result<Vec<String>> {
    let sql = format!("{MEMBERS} SELECT entity_id FROM member ORDER BY depth, entity_id");
    connection.prepare_cached(&sql)?.query_map(params![entity_id, MERGED_MAX], |row| row.get(0))?.collect()
}

/// The entity that `sender_id` of `channel` is linked to, surely enough, through merges.
pub fn entity_of(connection: &Connection, channel: &str, sender_id: &str) -> rusqlite::Result<Option<Entity>> {
    let link = link_of(connection, channel, sender_id)?.filter(|link| link.counts);
    link.map_or(Ok(None), |link| entity(connection, &link.entity_id))
}

/// The entity that `entity_id` counts as.
pub fn entity(connection: &Connection, entity_id: &str) -> rusqlite::Result<Option<Entity>> {
    let Some(root) = root_of(connection, entity_id)? else { return Ok(None) };
    let sql = "SELECT name, relationship FROM entities WHERE entity_id = ?1";
    let (name, relationship) = connection.prepare_cached(sql)?.query_row([&root], |row| Ok((row.get(0)?, row.get(1)?)))?;
    let tags = format!("{MEMBERS} SELECT DISTINCT tag FROM member JOIN entity_tags USING (entity_id) ORDER BY tag");
    let tags =
        connection.prepare_cached(&tags)?.query_map(params![root, MERGED_MAX], |row| row.get(0))?.collect::<rusqlite::Result<_>>()?;
    let identities = format!(
        "{MEMBERS} SELECT channel, sender_id FROM member JOIN identity_mappings USING (entity_id) WHERE confidence >= ?3 ORDER BY 1, 2"
    );
    let identities = connection
        .prepare_cached(&identities)?
        .query_map(params![root, MERGED_MAX, CONFIDENCE_MIN], |row| Ok((row.get(0)?, row.get(1)?)))?
        .collect::<rusqlite::Result<_>>()?;
    Ok(Some(Entity { entity_id: root, name, relationship, tags, identities }))
}

/// A sender's link.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LinkRow {
    /// As it was linked; what that counts as, [`root_of`] says.
    pub entity_id: String,
    pub confidence: f64,
    /// It is sure enough to make its sender known.
    pub counts: bool,
    pub source: String,
    /// Unix ms.
    pub linked_at: i64,
}

/// The link of a sender, sure enough or not.
pub fn link_of(connection: &Connection, channel: &str, sender_id: &str) -> rusqlite::Result<Option<LinkRow>> {
    let sql = "SELECT entity_id, confidence, source, linked_at FROM identity_mappings WHERE channel = ?1 AND sender_id = ?2";
    optional(connection.prepare_cached(sql)?.query_row([channel, sender_id], |row| link(row, 0)))
}

/// A link whose columns begin at `first`.
fn link(row: &Row<'_>, first: usize) -> rusqlite::Result<LinkRow> {
    let confidence: f64 = row.get(first + 1)?;
    Ok(LinkRow {
        entity_id: row.get(first)?,
        confidence,
        counts: confidence >= CONFIDENCE_MIN,
        source: row.get(first + 2)?,
        linked_at: row.get(first + 3)?,
    })
}

/// Somebody who wrote.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Contact {
    pub channel: String,
    pub sender_id: String,
    /// As the sender's channel gives it.
    pub name: Option<String>,
    /// Unix ms.
    pub first_seen: i64,
    pub last_seen: i64,
    pub messages: u64,
    pub link: Option<LinkRow>,
}

const CONTACT: &str = "SELECT c.channel, c.sender_id, c.name, c.first_seen, c.last_seen, c.messages,
      m.entity_id, m.confidence, m.source, m.linked_at
    FROM contacts c LEFT JOIN identity_mappings m ON m.channel = c.channel AND m.sender_id = c.sender_id";

fn contact_row(row: &Row<'_>) -> rusqlite::Result<Contact> {
    let linked: Option<String> = row.get(6)?;
    Ok(Contact {
        channel: row.get(0)?,
        sender_id: row.get(1)?,
        name: row.get(2)?,
        first_seen: row.get(3)?,
        last_seen: row.get(4)?,
        messages: row.get(5)?,
        link: if linked.is_some() { Some(link(row, 6)?) } else { None },
    })
}

/// The contacts that wrote last, those first.
pub fn contacts(connection: &Connection, limit: usize) -> rusqlite::Result<Vec<Contact>> {
    connection.prepare_cached(&contacts_sql())?.query_map([limit], contact_row)?.collect()
}

pub(super) fn contacts_sql() -> String {
    format!("{CONTACT} ORDER BY c.last_seen DESC, c.channel, c.sender_id LIMIT ?1")
}

pub fn contact(connection: &Connection, channel: &str, sender_id: &str) -> rusqlite::Result<Option<Contact>> {
    let sql = format!("{CONTACT} WHERE c.channel = ?1 AND c.sender_id = ?2");
    optional(connection.prepare_cached(&sql)?.query_row([channel, sender_id], contact_row))
}

/// An entity with all that is known of it and of those that count as it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Details {
    pub entity_id: String,
    pub name: Option<String>,
    pub relationship: Option<String>,
    /// Of all members together.
    pub tags: Vec<String>,
    /// Those that count as it, itself first.
    pub members: Vec<Member>,
    pub identities: Vec<Identity>,
}

/// An entity as it stands, merged or not.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Member {
    pub entity_id: String,
    pub name: Option<String>,
    pub relationship: Option<String>,
    pub merged_into: Option<String>,
    pub created_at: i64,
}

/// A sender that is linked to an entity, whether or not it ever wrote.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Identity {
    pub channel: String,
    pub sender_id: String,
    pub link: LinkRow,
    pub messages: u64,
    pub last_seen: Option<i64>,
}

/// The entity that `entity_id` counts as, with all of its members.
pub fn details(connection: &Connection, entity_id: &str) -> rusqlite::Result<Option<Details>> {
    let Some(Entity { entity_id, name, relationship, tags, .. }) = entity(connection, entity_id)? else { return Ok(None) };
    let members = format!(
        "{MEMBERS} SELECT e.entity_id, e.name, e.relationship, e.merged_into, e.created_at
           FROM member m JOIN entities e ON e.entity_id = m.entity_id ORDER BY m.depth, e.entity_id"
    );
    let members =
        connection.prepare_cached(&members)?.query_map(params![entity_id, MERGED_MAX], member)?.collect::<rusqlite::Result<_>>()?;
    let identities = format!(
        "{MEMBERS} SELECT i.channel, i.sender_id, i.entity_id, i.confidence, i.source, i.linked_at, coalesce(c.messages, 0), c.last_seen
           FROM member m JOIN identity_mappings i ON i.entity_id = m.entity_id
           LEFT JOIN contacts c ON c.channel = i.channel AND c.sender_id = i.sender_id ORDER BY 1, 2"
    );
    let identities =
        connection.prepare_cached(&identities)?.query_map(params![entity_id, MERGED_MAX], identity)?.collect::<rusqlite::Result<_>>()?;
    Ok(Some(Details { entity_id, name, relationship, tags, members, identities }))
}

fn member(row: &Row<'_>) -> rusqlite::Result<Member> {
    Ok(Member { entity_id: row.get(0)?, name: row.get(1)?, relationship: row.get(2)?, merged_into: row.get(3)?, created_at: row.get(4)? })
}

fn identity(row: &Row<'_>) -> rusqlite::Result<Identity> {
    Ok(Identity { channel: row.get(0)?, sender_id: row.get(1)?, link: link(row, 2)?, messages: row.get(6)?, last_seen: row.get(7)? })
}
