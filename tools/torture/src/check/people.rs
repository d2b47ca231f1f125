//! What a person was told to be done, about who is who and about sessions, is in the ledgers, and nothing by half.

use super::{Copy, pairs_of_text, rows};
use crate::people::{self, Deed, Verb};
use crate::world::World;
use anyhow::Result;
use std::collections::{HashMap, HashSet};

/// Most deeds that one look names.
const NAMED_MAX: usize = 5;
const HALF: &str = "is there by half";
const LOST: &str = "was answered as done, and is not there";
const STAYS: &str = "was answered as done, and what it takes away is there";

/// The rows that deeds make.
struct Rows {
    /// Entities by sender, tags with their entity.
    links: HashMap<String, String>,
    tags: HashSet<(String, String)>,
    /// By entity: name and relationship, and what it is merged into.
    entities: HashMap<String, ([String; 2], String)>,
    /// By label: `open`, `archived`, or `headless` without its turn.
    sessions: HashMap<String, String>,
}

impl Rows {
    fn of(copy: &Copy) -> Result<Self> {
        let (identity, agents) = (copy.open("identity")?, copy.open("agents")?);
        let sessions = "SELECT label, CASE WHEN NOT EXISTS (SELECT 1 FROM turns t WHERE t.turn_id = s.head) THEN 'headless'
                                           WHEN archived_at IS NULL THEN 'open' ELSE 'archived' END FROM sessions s";
        let entities = "SELECT entity_id, coalesce(name, ''), coalesce(relationship, ''), coalesce(merged_into, '') FROM entities";
        Ok(Self {
            links: pairs_of_text(&identity, "SELECT sender_id, entity_id FROM identity_mappings")?.into_iter().collect(),
            entities: rows(&identity, entities, |row| Ok((row.get(0)?, ([row.get(1)?, row.get(2)?], row.get(3)?))))?.into_iter().collect(),
            tags: pairs_of_text(&identity, "SELECT entity_id, tag FROM entity_tags")?.into_iter().collect(),
            sessions: pairs_of_text(&agents, sessions)?.into_iter().collect(),
        })
    }

    /// What is wrong with one deed. Those that were asked for `since`, about the same thing, may have undone it.
    fn wrong(&self, deed: Deed, is_done: bool, since: &[Deed]) -> Option<&'static str> {
        let lost = is_done.then_some(LOST);
        let unless_since = |is_so: bool, verb: Verb| is_so || since.iter().any(|later| later.verb == verb);
        let is_linked = self.links.get(&deed.sender()) == Some(&deed.entity());
        let entity = self.entities.get(&deed.entity());
        match deed.verb {
            Verb::Link => match (entity, is_linked) {
                (None, false) => lost,
                (Some((called, _)), linked) if unless_since(*called == deed.called(), Verb::Set) && unless_since(linked, Verb::Unlink) => {
                    None
                }
                (Some(_) | None, _) => Some(HALF),
            },
            Verb::Unlink => lost.filter(|_| is_linked).map(|_| STAYS),
            Verb::Tag | Verb::Untag => {
                let there = deed.tags().into_iter().filter(|tag| self.tags.contains(&(deed.entity(), tag.clone()))).count();
                let may_be_off = since.iter().any(|later| later.verb == Verb::Untag && later.with == deed.number);
                match (deed.verb == Verb::Tag, there) {
                    (_, 1) => Some(HALF),
                    (true, 0) => lost.filter(|_| !may_be_off),
                    (true, _) => None,
                    (false, _) => lost.filter(|_| there > 0).map(|_| STAYS),
                }
            }
            Verb::Set => {
                let called = entity.map(|(called, _)| called.clone()).unwrap_or_default();
                let [name, relationship] = deed.called();
                let is_later = since.iter().any(|later| later.verb == Verb::Set && later.called() == called);
                match (called[0] == name, called[1] == relationship) {
                    (true, true) => None,
                    (true, false) | (false, true) => Some(HALF),
                    (false, false) => lost.filter(|_| !is_later),
                }
            }
            Verb::Merge | Verb::Unmerge => {
                let is_of = |deed: &Deed| entity.is_some_and(|(_, merged_into)| *merged_into == deed.counts_as());
                let is_later = since.iter().any(|later| matches!(later.verb, Verb::Merge | Verb::Unmerge) && is_of(later));
                lost.filter(|_| !is_of(&deed) && !is_later)
            }
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
    let mut of_things: HashMap<u64, Vec<Deed>> = HashMap::new();
    deeds.iter().for_each(|(deed, _)| of_things.entry(deed.of).or_default().push(*deed));
    let wrong = |&(deed, is_done): &(Deed, bool)| {
        let of_thing = of_things.get(&deed.of).map_or(&[][..], Vec::as_slice);
        let since = &of_thing[of_thing.partition_point(|other| other.number <= deed.number)..];
        let why = rows.wrong(deed, is_done, since)?;
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
        CREATE TABLE entities (entity_id TEXT, name TEXT, relationship TEXT, merged_into TEXT);
        CREATE TABLE entity_tags (entity_id TEXT, tag TEXT);
        INSERT INTO identity_mappings VALUES ('ghost1', 'person1'), ('ghost7', 'person7');
        INSERT INTO entities VALUES ('owner', NULL, 'owner', NULL), ('person1', 'Person 1', NULL, NULL),
          ('person3', 'Person 3', NULL, NULL), ('person7', 'Person 9', 'friend 9', 'person3');
        INSERT INTO entity_tags VALUES ('person1', 'a2'), ('person1', 'b2');";
    /// Number, verb, and the deeds that made what it is about.
    const DEEDS: [(u64, &str, u64, u64); 14] = [
        (1, "link", 1, 1),
        (2, "tag", 1, 2),
        (3, "link", 3, 3),
        (4, "unlink", 3, 4),
        (5, "fork", 5, 5),
        (6, "archive", 5, 6),
        (7, "link", 7, 7),
        (8, "set", 7, 8),
        (9, "set", 7, 9),
        (10, "tag", 7, 10),
        (11, "untag", 7, 10),
        (12, "merge", 7, 1),
        (13, "unmerge", 7, 13),
        (14, "merge", 7, 3),
    ];
    const ALL: u64 = u64::MAX;
    const NONE: u64 = 0;
    const AGENTS: &str = "
        CREATE TABLE turns (turn_id TEXT);
        CREATE TABLE sessions (label TEXT, head TEXT, archived_at INTEGER);
        INSERT INTO turns VALUES ('t');
        INSERT INTO sessions VALUES ('dm:both:u0', 't', NULL), ('fork5', 't', 7);";

    /// What is found in a world where all was done, and then this happened to its ledgers. Up to `done` they were
    /// answered so.
    fn after(done: u64, identity: &str, agents: &str) -> String {
        let made = Made::new(Kind::Both);
        for (name, tables, change) in [("identity", IDENTITY, identity), ("agents", AGENTS, agents)] {
            let file = Connection::open(made.world.data().join(format!("{name}.db"))).unwrap();
            file.execute_batch(tables).unwrap();
            file.execute_batch(change).unwrap();
        }
        for (number, verb, of, with) in DEEDS {
            for done in [false, number <= done] {
                let line = json!({ "number": number, "verb": verb, "of": of, "with": with, "done": done });
                journal::append(&made.world.people(), &line.to_string()).unwrap();
            }
        }
        kept(&made.world, &made.copy()).unwrap().join("; ")
    }

    #[test]
    fn what_is_done_stays() {
        for done in [ALL, 13, 8, NONE] {
            assert_eq!(after(done, "", ""), "", "{done}");
        }
        let lost = |identity: &str, agents: &str, deed: &str| {
            let found = after(ALL, identity, agents);
            assert!(found.contains("answered as done") && found.contains(deed), "{found}");
            assert_eq!(after(NONE, identity, agents), "", "nobody was told so");
        };
        let unlinked = "DELETE FROM identity_mappings WHERE sender_id = 'ghost1'; DELETE FROM entities WHERE entity_id = 'person1'";
        lost(unlinked, "", "verb: Link");
        lost("INSERT INTO identity_mappings VALUES ('ghost3', 'person3')", "", "verb: Unlink");
        lost("DELETE FROM entity_tags", "", "verb: Tag");
        lost("", "DELETE FROM sessions WHERE label = 'fork5'", "verb: Fork");
        lost("", "UPDATE sessions SET archived_at = NULL", "verb: Archive");
        lost("UPDATE entities SET name = 'Person 8', relationship = 'friend 8' WHERE entity_id = 'person7'", "", "number: 9, verb: Set");
        lost("UPDATE entities SET name = 'Person 7', relationship = NULL WHERE entity_id = 'person7'", "", "number: 9, verb: Set");
        lost("INSERT INTO entity_tags VALUES ('person7', 'a10'), ('person7', 'b10')", "", "verb: Untag");
        lost("UPDATE entities SET merged_into = NULL WHERE entity_id = 'person7'", "", "number: 14, verb: Merge");
        lost("UPDATE entities SET merged_into = 'person1' WHERE entity_id = 'person7'", "", "number: 14, verb: Merge");
    }

    #[test]
    fn a_last_verb_without_an_answer_is_there_or_what_it_would_change_is() {
        let unset = "UPDATE entities SET name = 'Person 8', relationship = 'friend 8' WHERE entity_id = 'person7'";
        assert_eq!(after(8, unset, ""), "");
        let untold = "UPDATE entities SET name = 'Person 7', relationship = NULL WHERE entity_id = 'person7'";
        assert!(after(8, untold, "").contains("number: 8, verb: Set"), "an answer counts whatever was asked for since");
        assert_eq!(after(10, "INSERT INTO entity_tags VALUES ('person7', 'a10'), ('person7', 'b10')", ""), "");
        let into = |done: u64, into: &str| {
            let merged = format!("UPDATE entities SET merged_into = {into} WHERE entity_id = 'person7'");
            after(done, &merged, "")
        };
        assert_eq!(into(13, "NULL"), "", "the unmerge was the last that was answered");
        assert_eq!(into(12, "NULL"), "", "the unmerge may have been done");
        assert!(into(13, "'person1'").contains("number: 13, verb: Unmerge"));
        assert!(into(13, "'owner'").contains("number: 13, verb: Unmerge"), "nobody asked for that");
    }

    #[test]
    fn nothing_is_there_by_half_whatever_was_answered() {
        for done in [ALL, NONE] {
            let half = |identity: &str, agents: &str, deed: &str| {
                let found = after(done, identity, agents);
                assert!(found.contains(HALF) && found.contains(deed), "{found}");
            };
            half("DELETE FROM identity_mappings", "", "number: 1, verb: Link");
            half("DELETE FROM entities WHERE entity_id = 'person1'", "", "number: 1, verb: Link");
            half("UPDATE entities SET name = NULL WHERE entity_id = 'person3'", "", "number: 3, verb: Link");
            half("DELETE FROM entity_tags WHERE tag = 'b2'", "", "verb: Tag");
            half("UPDATE entities SET relationship = NULL WHERE entity_id = 'person7'", "", "number: 9, verb: Set");
            half("UPDATE entities SET name = 'Person 8' WHERE entity_id = 'person7'", "", "number: 9, verb: Set");
            half("INSERT INTO entity_tags VALUES ('person7', 'b10')", "", "number: 11, verb: Untag");
            half("", "DELETE FROM turns", "verb: Fork");
        }
    }

    #[test]
    fn a_world_without_such_a_person_needs_no_such_ledgers() {
        let made = Made::whole(Kind::Both, 1);
        assert_eq!(kept(&made.world, &made.copy()).unwrap(), Vec::<String>::new());
    }
}
