//! Links, tags and merges on a real file's schema, each command repeated as after an answer that was lost.
#![allow(clippy::unwrap_used)]

use super::*;
use crate::ledger::writer::{Command, Write};
use proptest::prelude::*;

fn ledger() -> Connection {
    crate::samples::identity_ledger()
}

fn link_as(connection: &Connection, sender: &str, entity: &str, confidence: f64) -> Result<Linked, Refused> {
    let (channel, sender_id, entity_id) = ("sms".to_owned(), sender.to_owned(), entity.to_owned());
    let link = Link { channel, sender_id, entity_id, confidence, as_owner: true, at: 5, ..crate::samples::link() };
    link.apply(connection).unwrap()
}

fn link(connection: &Connection, sender: &str, entity: &str) -> Result<Linked, Refused> {
    link_as(connection, sender, entity, 1.0)
}

fn tag(connection: &Connection, entity: &str, tags: &[&str]) -> Result<(), Refused> {
    Tag { entity_id: entity.to_owned(), tags: tags.iter().map(|tag| (*tag).to_owned()).collect() }.apply(connection).unwrap()
}

fn merge(connection: &Connection, from: &str, into: &str) -> Result<(), Refused> {
    Merge { from: from.to_owned(), into: into.to_owned(), as_owner: true }.apply(connection).unwrap()
}

fn unmerge(connection: &Connection, entity: &str) -> Result<Option<String>, Refused> {
    Unmerge { entity_id: entity.to_owned() }.apply(connection).unwrap()
}

fn who(connection: &Connection, sender: &str) -> Option<Entity> {
    entity_of(connection, "sms", sender).unwrap()
}

fn root(connection: &Connection, entity: &str) -> Option<String> {
    root_of(connection, entity).unwrap()
}

/// Every row of the three tables, as text.
fn everything(connection: &Connection) -> Vec<String> {
    let sql = "SELECT entity_id || '|' || coalesce(name, '') || '|' || coalesce(relationship, '') || '|' || coalesce(merged_into, '') FROM entities
      UNION ALL SELECT channel || ':' || sender_id || '|' || entity_id || '|' || confidence FROM identity_mappings
      UNION ALL SELECT entity_id || '#' || tag FROM entity_tags ORDER BY 1";
    connection.prepare(sql).unwrap().query_map([], |row| row.get(0)).unwrap().collect::<rusqlite::Result<_>>().unwrap()
}

#[test]
fn a_link_makes_its_entity_and_moves_its_sender() {
    let connection = ledger();
    assert_eq!(who(&connection, "1"), None);
    let made = Linked { created: true, before: None };
    assert_eq!((link(&connection, "1", "ann"), link(&connection, "1", "ann")), (Ok(made.clone()), Ok(made)));
    assert_eq!(who(&connection, "1").unwrap().identities, [("sms".to_owned(), "1".to_owned())]);
    assert_eq!(link(&connection, "1", "owner"), Ok(Linked { created: false, before: Some("ann".to_owned()) }));
    assert_eq!(who(&connection, "1").unwrap().entity_id, "owner");
    let unlink = Unlink { channel: "sms".to_owned(), sender_id: "1".to_owned() };
    assert_eq!(unlink.apply(&connection).unwrap().as_deref(), Some("owner"));
    assert_eq!((unlink.apply(&connection).unwrap(), who(&connection, "1")), (None, None));
    assert!(entity(&connection, "ann").unwrap().unwrap().identities.is_empty(), "an entity stays without senders");
}

#[test]
fn a_link_that_is_not_sure_enough_is_shown_and_makes_nobody_known() {
    let connection = ledger();
    for (sender, confidence, known) in [("1", 0.0, false), ("2", 0.499, false), ("3", 0.5, true), ("4", 1.0, true)] {
        link_as(&connection, sender, "ann", confidence).unwrap();
        assert_eq!(who(&connection, sender).is_some(), known, "{confidence}");
        assert_eq!(link_of(&connection, "sms", sender).unwrap().unwrap().counts, known);
    }
    assert_eq!(who(&connection, "4").unwrap().identities.len(), 2, "the unsure ones aren't hers");
    assert_eq!(details(&connection, "ann").unwrap().unwrap().identities.len(), 4, "but they are told");
    link(&connection, "1", "ann").unwrap();
    assert!(who(&connection, "1").is_some(), "linked again, surely");
    for nonsense in [-0.1, 1.1] {
        let sql = "INSERT INTO identity_mappings VALUES ('c', 's', 'ann', ?1, 'owner', 1)";
        assert!(connection.execute(sql, [nonsense]).is_err(), "{nonsense}");
    }
}

#[test]
fn names_and_tags_are_set_and_taken_away() {
    let connection = ledger();
    link(&connection, "1", "ann").unwrap();
    let set = |name: Option<&str>, relationship: Option<&str>| {
        let (name, relationship) = (name.map(str::to_owned), relationship.map(str::to_owned));
        SetEntity { entity_id: "ann".to_owned(), name, relationship }.apply(&connection).unwrap().unwrap();
        let ann = who(&connection, "1").unwrap();
        (ann.name, ann.relationship)
    };
    assert_eq!(set(Some("Ann"), Some("friend")), (Some("Ann".to_owned()), Some("friend".to_owned())));
    assert_eq!(set(None, Some("family")), (Some("Ann".to_owned()), Some("family".to_owned())));
    assert_eq!(set(Some(""), None), (None, Some("family".to_owned())));
    assert_eq!((tag(&connection, "ann", &["b", "a"]), tag(&connection, "ann", &["a"])), (Ok(()), Ok(())));
    assert_eq!(who(&connection, "1").unwrap().tags, ["a", "b"]);
    let untag = Untag { entity_id: "ann".to_owned(), tags: vec!["a".to_owned(), "never".to_owned()] };
    assert_eq!((untag.apply(&connection).unwrap(), untag.apply(&connection).unwrap()), (Ok(()), Ok(())));
    assert_eq!(who(&connection, "1").unwrap().tags, ["b"]);
    assert_eq!(tag(&connection, "ghost", &["a"]), Err(Refused::NoEntity("ghost".to_owned())));
    let ghost = SetEntity { entity_id: "ghost".to_owned(), name: None, relationship: None };
    assert_eq!(ghost.apply(&connection).unwrap(), Err(Refused::NoEntity("ghost".to_owned())));
}

#[test]
fn the_merged_are_one_until_they_are_parted() {
    let connection = ledger();
    for (sender, entity) in [("1", "ann"), ("2", "work"), ("3", "old")] {
        link(&connection, sender, entity).unwrap();
        tag(&connection, entity, &[entity]).unwrap();
    }
    let before = everything(&connection);
    assert_eq!((merge(&connection, "old", "work"), merge(&connection, "work", "ann")), (Ok(()), Ok(())));
    assert_eq!(merge(&connection, "old", "work"), Ok(()), "repeated");
    for sender in ["1", "2", "3"] {
        let one = who(&connection, sender).unwrap();
        assert_eq!((one.entity_id.as_str(), one.identities.len()), ("ann", 3));
        assert_eq!(one.tags, ["ann", "old", "work"]);
    }
    let all = details(&connection, "old").unwrap().unwrap();
    assert_eq!(all.members.iter().map(|member| member.entity_id.as_str()).collect::<Vec<_>>(), ["ann", "work", "old"]);
    assert_eq!(unmerge(&connection, "work"), Ok(Some("ann".to_owned())));
    assert_eq!(unmerge(&connection, "work"), Ok(None), "repeated");
    assert_eq!(who(&connection, "1").unwrap().tags, ["ann"]);
    assert_eq!(who(&connection, "3").unwrap().entity_id, "work", "what was merged into it goes with it");
    assert_eq!(unmerge(&connection, "old"), Ok(Some("work".to_owned())));
    assert_eq!(everything(&connection), before);
}

#[test]
fn what_can_not_be_merged_is_refused_and_changes_nothing() {
    let connection = ledger();
    for (sender, entity) in [("1", "a"), ("2", "b"), ("3", "c")] {
        link(&connection, sender, entity).unwrap();
    }
    merge(&connection, "a", "b").unwrap();
    let before = everything(&connection);
    let id = str::to_owned;
    assert_eq!(merge(&connection, "owner", "a"), Err(Refused::Owner));
    assert_eq!(merge(&connection, "c", "c"), Err(Refused::Itself(id("c"))));
    assert_eq!(merge(&connection, "a", "c"), Err(Refused::Merged { entity: id("a"), into: id("b") }));
    assert_eq!(merge(&connection, "b", "a"), Err(Refused::Circle { from: id("b"), into: id("a") }));
    assert_eq!(merge(&connection, "c", "ghost"), Err(Refused::NoEntity(id("ghost"))));
    assert_eq!(merge(&connection, "ghost", "c"), Err(Refused::NoEntity(id("ghost"))));
    assert_eq!(unmerge(&connection, "ghost"), Err(Refused::NoEntity(id("ghost"))));
    assert_eq!(everything(&connection), before);
    merge(&connection, "b", "owner").unwrap();
    assert_eq!(root(&connection, "a").as_deref(), Some("owner"));
    assert!(connection.execute("UPDATE entities SET merged_into = 'c' WHERE entity_id = 'owner'", []).is_err());
}

#[test]
fn nobody_counts_as_the_owner_by_a_slip() {
    let connection = ledger();
    link(&connection, "1", "ann").unwrap();
    link(&connection, "2", "phone").unwrap();
    merge(&connection, "phone", "owner").unwrap();
    let before = everything(&connection);
    for entity in ["owner", "phone"] {
        let (channel, sender_id, entity_id) = ("sms".to_owned(), "3".to_owned(), entity.to_owned());
        let link = Link { channel, sender_id, entity_id, name: Some("Mallory".to_owned()), at: 5, ..crate::samples::link() };
        assert_eq!(link.apply(&connection).unwrap(), Err(Refused::AsOwner(entity.to_owned())));
        let merge = Merge { from: "ann".to_owned(), into: entity.to_owned(), as_owner: false };
        assert_eq!(merge.apply(&connection).unwrap(), Err(Refused::AsOwner(entity.to_owned())));
    }
    assert_eq!(everything(&connection), before);
}

#[test]
fn nothing_grows_without_end() {
    let connection = ledger();
    for n in 0..LINKS_MAX {
        link(&connection, &n.to_string(), "ann").unwrap();
    }
    let full = |what, max| Refused::Full { entity: "ann".to_owned(), max, what };
    assert_eq!(link(&connection, "more", "ann").unwrap_err(), full("senders", LINKS_MAX));
    assert!(link(&connection, "0", "ann").is_ok(), "it is linked already");
    let tags: Vec<String> = (0..TAGS_MAX).map(|n| n.to_string()).collect();
    tag(&connection, "ann", &tags.iter().map(String::as_str).collect::<Vec<_>>()).unwrap();
    assert_eq!(tag(&connection, "ann", &["0", "more"]).unwrap_err(), full("tags", TAGS_MAX));
    for n in 1..MERGED_MAX {
        link(&connection, &format!("m{n}"), &format!("e{n}")).unwrap();
        merge(&connection, &format!("e{n}"), "ann").unwrap();
    }
    link(&connection, "last", "last").unwrap();
    assert_eq!(merge(&connection, "last", "e1").unwrap_err(), full("merged entities", MERGED_MAX));
}

#[test]
fn the_longest_way_still_has_an_end_and_a_circle_made_by_hand_is_nobody() {
    let connection = ledger();
    for n in 0..MERGED_MAX {
        link(&connection, &n.to_string(), &format!("e{n}")).unwrap();
    }
    for n in 1..MERGED_MAX {
        merge(&connection, &format!("e{}", n - 1), &format!("e{n}")).unwrap();
    }
    let last = format!("e{}", MERGED_MAX - 1);
    assert_eq!(root(&connection, "e0"), Some(last.clone()));
    assert_eq!(who(&connection, "0").unwrap().identities.len(), MERGED_MAX);
    connection.execute("UPDATE entities SET merged_into = 'e0' WHERE entity_id = ?1", [&last]).unwrap();
    assert_eq!((root(&connection, "e0"), who(&connection, "0")), (None, None));
}

/// A list of all commands, so that nobody adds one without having thought about it here.
fn says_who_is_who(command: &IdentityCommand) -> bool {
    match command {
        IdentityCommand::ApplyContacts(_) => false,
        IdentityCommand::Link(_)
        | IdentityCommand::Unlink(_)
        | IdentityCommand::SetEntity(_)
        | IdentityCommand::Tag(_)
        | IdentityCommand::Untag(_)
        | IdentityCommand::Merge(_)
        | IdentityCommand::Unmerge(_) => true,
    }
}

#[test]
fn whatever_says_who_is_who_outdates_what_is_known_of_speakers() {
    let id = || "ann".to_owned();
    let all = [
        ApplyContacts { upto_seq: 1, senders: Senders::new() }.into_command(),
        crate::samples::link().into_command(),
        Unlink { channel: id(), sender_id: id() }.into_command(),
        SetEntity { entity_id: id(), name: None, relationship: None }.into_command(),
        Tag { entity_id: id(), tags: Vec::new() }.into_command(),
        Untag { entity_id: id(), tags: Vec::new() }.into_command(),
        Merge { from: id(), into: id(), as_owner: false }.into_command(),
        Unmerge { entity_id: id() }.into_command(),
    ];
    assert_eq!(all.len(), IdentityCommand::POINTS.len(), "one of each");
    assert!(all.iter().all(|command| command.outdates() == says_who_is_who(command)));
}

#[test]
fn contacts_tell_to_whom_they_belong() {
    let connection = ledger();
    let sql = "INSERT INTO contacts VALUES ('sms', '1', 'A', 1, 9, 3), ('sms', '2', NULL, 2, 5, 1)";
    connection.execute(sql, []).unwrap();
    link_as(&connection, "2", "ann", 0.2).unwrap();
    let all = contacts(&connection, 10).unwrap();
    assert_eq!(all.iter().map(|one| one.sender_id.as_str()).collect::<Vec<_>>(), ["1", "2"], "newest first");
    assert_eq!((all[0].link.is_none(), all[1].link.as_ref().map(|link| link.counts)), (true, Some(false)));
    assert_eq!(contacts(&connection, 1).unwrap().len(), 1);
    assert_eq!(contact(&connection, "sms", "1").unwrap().unwrap().messages, 3);
    assert_eq!(contact(&connection, "sms", "3").unwrap(), None);
    let known = &details(&connection, "ann").unwrap().unwrap().identities[0];
    assert_eq!((known.messages, known.last_seen), (1, Some(5)));
}

#[test]
fn the_newest_contacts_are_found_without_looking_at_all() {
    let connection = ledger();
    let plan = crate::samples::plan(&connection, &read::contacts_sql()).join("; ");
    assert!(plan.contains("contacts_seen") && !plan.contains("TEMP B-TREE FOR ORDER BY"), "{plan}");
}

proptest! {
    #[test]
    fn merges_never_go_in_circles_and_parting_all_brings_everything_back(
        steps in prop::collection::vec((0..3_u8, 0..8_usize, 0..8_usize), 1..60),
    ) {
        let connection = ledger();
        let id = |n: usize| if n == 0 { "owner".to_owned() } else { format!("e{n}") };
        for n in 0..8 {
            link(&connection, &n.to_string(), &id(n)).unwrap();
        }
        let before = everything(&connection);
        for (what, from, into) in steps {
            if what == 0 {
                unmerge(&connection, &id(from)).unwrap();
            } else {
                // Refused or done: either way all that follows must hold.
                drop(merge(&connection, &id(from), &id(into)));
            }
            for n in 0..8 {
                let counts_as = root(&connection, &id(n));
                prop_assert!(counts_as.is_some(), "{} has no end", id(n));
                let found = who(&connection, &n.to_string()).map(|entity| entity.entity_id);
                prop_assert_eq!(found, counts_as);
            }
            prop_assert_eq!(root(&connection, "owner"), Some("owner".to_owned()));
        }
        for n in 0..8 {
            unmerge(&connection, &id(n)).unwrap();
        }
        prop_assert_eq!(everything(&connection), before);
    }
}
