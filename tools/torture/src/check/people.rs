//! What a person was told to be done, about who is who and about sessions, is in the ledgers, and nothing by half.

use super::{Copy, pairs_of_text};
use crate::people::{self, Deed, Verb};
use crate::world::World;
use anyhow::Result;
use std::collections::{HashMap, HashSet};

/// Most deeds that one look names.
const NAMED_MAX: usize = 5;
const HALF: &str = "is there by half";
const LOST: &str = "was answered as done, and is not there";

/// The rows that deeds make.
struct Rows {
    /// Entities by sender, names by entity, tags with their entity.
    links: HashMap<String, String>,
    names: HashMap<String, String>,
    tags: HashSet<(String, String)>,
    /// By label: `open`, `archived`, or `headless` without its turn.
    sessions: HashMap<String, String>,
}

impl Rows {
    fn of(copy: &Copy) -> Result<Self> {
        let (identity, agents) = (copy.open("identity")?, copy.open("agents")?);
        let sessions = "SELECT label, CASE WHEN NOT EXISTS (SELECT 1 FROM turns t WHERE t.turn_id = s.head) THEN 'headless'
                                           WHEN archived_at IS NULL THEN 'open' ELSE 'archived' END FROM sessions s";
        Ok(Self {
            links: pairs_of_text(&identity, "SELECT sender_id, entity_id FROM identity_mappings")?.into_iter().collect(),
            names: pairs_of_text(&identity, "SELECT entity_id, coalesce(name, '') FROM entities")?.into_iter().collect(),
            tags: pairs_of_text(&identity, "SELECT entity_id, tag FROM entity_tags")?.into_iter().collect(),
            sessions: pairs_of_text(&agents, sessions)?.into_iter().collect(),
        })
    }

    /// What is wrong with one deed. A link may have been taken back since.
    fn wrong(&self, deed: Deed, is_done: bool, may_be_unlinked: bool) -> Option<&'static str> {
        let lost = is_done.then_some(LOST);
        let is_linked = self.links.get(&deed.sender()) == Some(&deed.entity());
        match deed.verb {
            Verb::Link => match (self.names.get(&deed.entity()), is_linked) {
                (None, false) => lost,
                (Some(name), linked) if *name == deed.called() && (linked || may_be_unlinked) => None,
                (Some(_) | None, _) => Some(HALF),
            },
            Verb::Unlink => lost.filter(|_| is_linked).map(|_| "was answered as done, and the link is there"),
            Verb::Tag => match deed.tags().into_iter().filter(|tag| self.tags.contains(&(deed.entity(), tag.clone()))).count() {
                0 => lost,
                2 => None,
                _ => Some(HALF),
            },
            Verb::Fork => match self.sessions.get(&deed.label()).map(String::as_str) {
                None => lost,
                Some("headless") => Some(HALF),
                Some(_) => None,
            },
            Verb::Archive => lost.filter(|_| self.sessions.get(&deed.label()).is_none_or(|state| state != "archived")),
        }
    }
}

/// Looks at every deed of the world's person.
pub(super) fn kept(world: &World, copy: &Copy) -> Result<Vec<String>> {
    let deeds = people::deeds(world)?;
    if deeds.is_empty() {
        return Ok(Vec::new());
    }
    let rows = Rows::of(copy)?;
    let unlinked: HashSet<u64> = deeds.iter().filter(|(deed, _)| deed.verb == Verb::Unlink).map(|(deed, _)| deed.of).collect();
    let wrong = |&(deed, is_done): &(Deed, bool)| {
        let why = rows.wrong(deed, is_done, unlinked.contains(&deed.of))?;
        Some(format!("what a person asked for {why}: {deed:?}"))
    };
    Ok(deeds.iter().filter_map(wrong).take(NAMED_MAX).collect())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::made::Made;
    use super::*;
    use crate::journal;
    use crate::world::Kind;
    use rusqlite::Connection;
    use serde_json::json;

    const IDENTITY: &str = "
        CREATE TABLE identity_mappings (sender_id TEXT, entity_id TEXT);
        CREATE TABLE entities (entity_id TEXT, name TEXT);
        CREATE TABLE entity_tags (entity_id TEXT, tag TEXT);
        INSERT INTO identity_mappings VALUES ('ghost1', 'person1');
        INSERT INTO entities VALUES ('owner', NULL), ('person1', 'Person 1'), ('person3', 'Person 3');
        INSERT INTO entity_tags VALUES ('person1', 'a2'), ('person1', 'b2');";
    const AGENTS: &str = "
        CREATE TABLE turns (turn_id TEXT);
        CREATE TABLE sessions (label TEXT, head TEXT, archived_at INTEGER);
        INSERT INTO turns VALUES ('t');
        INSERT INTO sessions VALUES ('dm:both:u0', 't', NULL), ('fork5', 't', 7);";

    /// What is found in a world where all was done, and then this happened to its ledgers.
    fn after(done: bool, identity: &str, agents: &str) -> String {
        let made = Made::new(Kind::Both);
        for (name, tables, change) in [("identity", IDENTITY, identity), ("agents", AGENTS, agents)] {
            let file = Connection::open(made.world.data().join(format!("{name}.db"))).unwrap();
            file.execute_batch(tables).unwrap();
            file.execute_batch(change).unwrap();
        }
        for (number, verb, of) in [(1, "link", 1), (2, "tag", 1), (3, "link", 3), (4, "unlink", 3), (5, "fork", 5), (6, "archive", 5)] {
            for done in [false, done] {
                let line = json!({ "number": number, "verb": verb, "of": of, "done": done });
                journal::append(&made.world.people(), &line.to_string()).unwrap();
            }
        }
        kept(&made.world, &made.copy()).unwrap().join("; ")
    }

    #[test]
    fn what_is_done_stays() {
        assert_eq!(after(true, "", ""), "");
        let lost = |identity: &str, agents: &str, deed: &str| {
            let found = after(true, identity, agents);
            assert!(found.contains("answered as done") && found.contains(deed), "{found}");
            assert_eq!(after(false, identity, agents), "", "nobody was told so");
        };
        lost("DELETE FROM identity_mappings; DELETE FROM entities WHERE entity_id = 'person1'", "", "verb: Link");
        lost("INSERT INTO identity_mappings VALUES ('ghost3', 'person3')", "", "verb: Unlink");
        lost("DELETE FROM entity_tags", "", "verb: Tag");
        lost("", "DELETE FROM sessions WHERE label = 'fork5'", "verb: Fork");
        lost("", "UPDATE sessions SET archived_at = NULL", "verb: Archive");
    }

    #[test]
    fn nothing_is_there_by_half_whatever_was_answered() {
        for done in [true, false] {
            let half = |identity: &str, agents: &str, deed: &str| {
                let found = after(done, identity, agents);
                assert!(found.contains(HALF) && found.contains(deed), "{found}");
            };
            half("DELETE FROM identity_mappings", "", "number: 1, verb: Link");
            half("DELETE FROM entities WHERE entity_id = 'person1'", "", "number: 1, verb: Link");
            half("UPDATE entities SET name = NULL WHERE entity_id = 'person3'", "", "number: 3, verb: Link");
            half("DELETE FROM entity_tags WHERE tag = 'b2'", "", "verb: Tag");
            half("", "DELETE FROM turns", "verb: Fork");
        }
    }

    #[test]
    fn a_world_without_such_a_person_needs_no_such_ledgers() {
        let made = Made::whole(Kind::Both, 1);
        assert_eq!(kept(&made.world, &made.copy()).unwrap(), Vec::<String>::new());
    }
}
