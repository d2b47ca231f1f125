//! Which projects an event activates, by its tags, and which projects are known here. It never fetches a
//! definition, and starts nothing.

use super::coordinate::Coordinate;
use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, PoisonError, RwLock};
use tokio::sync::watch;

/// Tags of one event that are looked at; an event has at most 64 KiB, and so fewer that can name a project.
const TAGS_MAX: usize = 2000;
/// Projects that one event may activate together.
pub const PROJECTS_MAX: usize = 16;

/// The projects that are known, each with the public keys of its agents, in hex. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Roster {
    known: Arc<RwLock<HashMap<Coordinate, Vec<String>>>>,
    /// The definition that a project was prepared from, by its id.
    definitions: Arc<RwLock<HashMap<String, Coordinate>>>,
    /// Rises when another project is known, or one no more.
    changes: Arc<watch::Sender<u64>>,
}

impl Roster {
    /// Takes a project in, or its agents anew.
    pub fn set(&self, project: Coordinate, agents: Vec<String>) {
        let before = self.known.write().unwrap_or_else(PoisonError::into_inner).insert(project, agents);
        if before.is_none() {
            self.changes.send_modify(|changes| *changes += 1);
        }
    }

    /// Notes which definition a project was prepared from.
    pub fn set_definition(&self, project: &Coordinate, id: &str) {
        let mut definitions = self.definitions.write().unwrap_or_else(PoisonError::into_inner);
        definitions.retain(|_, of| *of != *project);
        definitions.insert(id.to_owned(), project.clone());
    }

    pub fn remove(&self, project: &Coordinate) {
        self.definitions.write().unwrap_or_else(PoisonError::into_inner).retain(|_, of| *of != *project);
        let before = self.known.write().unwrap_or_else(PoisonError::into_inner).remove(project);
        if before.is_some() {
            self.changes.send_modify(|changes| *changes += 1);
        }
    }

    /// Rises when other projects are known.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Who defined the projects that are known, in hex.
    pub(crate) fn authors(&self) -> BTreeSet<String> {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        known.keys().map(|project| project.pubkey.clone()).collect()
    }

    /// Whether a project of this author was prepared from this event.
    pub(crate) fn is_definition(&self, id: &str, pubkey: &str) -> bool {
        let definitions = self.definitions.read().unwrap_or_else(PoisonError::into_inner);
        definitions.get(id).is_some_and(|project| project.pubkey == pubkey)
    }

    pub fn knows(&self, project: &Coordinate) -> bool {
        self.known.read().unwrap_or_else(PoisonError::into_inner).contains_key(project)
    }

    /// The project that has an agent of this public key.
    fn has_agent(&self, project: &Coordinate, pubkeys: &[&str]) -> bool {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        known.get(project).is_some_and(|agents| agents.iter().any(|agent| pubkeys.contains(&agent.as_str())))
    }
}

/// What an event activates.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Activation {
    None,
    /// These, in the order of their tags.
    Projects(Vec<Coordinate>),
    /// It names these, and says of none to which of their agents it speaks: it is filed.
    Ambiguous(Vec<Coordinate>),
}

/// What the event of a whitelisted author activates. A project counts if it is of one of `kinds`, and its author
/// is whitelisted or it is known already. Of several, all count if the event `p`-tags an agent of each.
pub fn activation(tags: &[Vec<String>], kinds: &[u16], roster: &Roster, whitelisted: impl Fn(&str) -> bool) -> Activation {
    let mut named: Vec<Coordinate> = Vec::new();
    for tag in tags.iter().take(TAGS_MAX) {
        let [name, value, ..] = tag.as_slice() else { continue };
        if name != "a" && name != "A" {
            continue;
        }
        // What is no coordinate, or of another kind, names something else than a project.
        let Ok(project) = Coordinate::parse(value) else { continue };
        let counts = kinds.contains(&project.kind) && (roster.knows(&project) || whitelisted(&project.pubkey));
        if counts && !named.contains(&project) {
            named.push(project);
        }
        if named.len() > PROJECTS_MAX {
            return Activation::Ambiguous(named);
        }
    }
    let spoken_to: Vec<&str> = tags.iter().take(TAGS_MAX).filter_map(|tag| mentioned(tag)).collect();
    match named.len() {
        0 => Activation::None,
        1 => Activation::Projects(named),
        _ if named.iter().all(|project| roster.has_agent(project, &spoken_to)) => Activation::Projects(named),
        _ => Activation::Ambiguous(named),
    }
}

fn mentioned(tag: &[String]) -> Option<&str> {
    match tag {
        [name, pubkey, ..] if name == "p" => Some(pubkey),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const KINDS: &[u16] = &[31933];

    fn coordinate(author: char, identifier: &str) -> Coordinate {
        Coordinate::parse(&format!("31933:{}:{identifier}", String::from(author).repeat(64))).unwrap()
    }

    fn tags(list: &[(&str, &str)]) -> Vec<Vec<String>> {
        list.iter().map(|(name, value)| vec![(*name).to_owned(), (*value).to_owned()]).collect()
    }

    /// Whether `a...` is whitelisted, and nobody else.
    fn of(list: &[(&str, &str)], roster: &Roster) -> Activation {
        activation(&tags(list), KINDS, roster, |key| key.starts_with('a'))
    }

    #[test]
    fn a_tag_of_a_whitelisted_authors_project_activates_it_with_all_of_its_identifier() {
        let project = coordinate('a', "x:y:z");
        let named = project.to_string();
        assert_eq!(of(&[("t", "b"), ("a", &named)], &Roster::default()), Activation::Projects(vec![project.clone()]));
        assert_eq!(of(&[("A", &named), ("a", &named)], &Roster::default()), Activation::Projects(vec![project]));
    }

    #[test]
    fn strangers_projects_other_kinds_and_nonsense_activate_nothing() {
        let (foreign, note) = (coordinate('b', "x").to_string(), format!("30023:{}:x", "a".repeat(64)));
        for value in [foreign.as_str(), &note, "31933", "31933:zz:x", "", ":::"] {
            assert_eq!(of(&[("a", value)], &Roster::default()), Activation::None, "{value}");
        }
        assert_eq!(activation(&[Vec::new(), vec!["a".into()]], KINDS, &Roster::default(), |_| true), Activation::None);
        let roster = Roster::default();
        roster.set(coordinate('b', "x"), Vec::new());
        assert_eq!(of(&[("a", &foreign)], &roster), Activation::Projects(vec![coordinate('b', "x")]), "it is known already");
        roster.remove(&coordinate('b', "x"));
        assert_eq!(of(&[("a", &foreign)], &roster), Activation::None);
    }

    #[test]
    fn who_defined_what_is_known_is_told_and_when_that_changes() {
        let (roster, project) = (Roster::default(), coordinate('b', "x"));
        let changes = roster.changes();
        roster.set(project.clone(), Vec::new());
        roster.set(project.clone(), vec!["k1".into()]);
        assert_eq!((*changes.borrow(), roster.authors()), (1, BTreeSet::from(["b".repeat(64)])));
        for id in ["one", "two"] {
            roster.set_definition(&project, id);
        }
        let is_one = |id: &str, author: &str| roster.is_definition(id, &author.repeat(64));
        assert_eq!((is_one("one", "b"), is_one("two", "b"), is_one("two", "a")), (false, true, false));
        roster.remove(&project);
        assert!(*changes.borrow() == 2 && roster.authors().is_empty() && !roster.is_definition("two", &"b".repeat(64)));
    }

    #[test]
    fn several_projects_are_ambiguous_unless_an_agent_of_each_is_spoken_to() {
        let (one, two) = (coordinate('a', "x"), coordinate('a', "y"));
        let (first, second) = (one.to_string(), two.to_string());
        let roster = Roster::default();
        roster.set(one.clone(), vec!["k1".into()]);
        roster.set(two.clone(), vec!["k2".into(), "k3".into()]);
        let both = [("a", first.as_str()), ("a", second.as_str())];
        assert_eq!(of(&both, &roster), Activation::Ambiguous(vec![one.clone(), two.clone()]));
        let mentions = |keys: &[&'static str]| [both.to_vec(), keys.iter().map(|key| ("p", *key)).collect()].concat();
        assert_eq!(of(&mentions(&["k1"]), &roster), Activation::Ambiguous(vec![one.clone(), two.clone()]));
        assert_eq!(of(&mentions(&["k3", "k1"]), &roster), Activation::Projects(vec![one, two]));
    }

    #[test]
    fn of_more_projects_than_one_event_may_activate_none_is() {
        let names: Vec<String> = (0..100).map(|n| coordinate('a', &n.to_string()).to_string()).collect();
        let list: Vec<(&str, &str)> = names.iter().map(|name| ("a", name.as_str())).collect();
        assert!(matches!(of(&list, &Roster::default()), Activation::Ambiguous(named) if named.len() == PROJECTS_MAX + 1));
    }
}
