//! The agents that a project's roster names: `p` tags with the keys of agents, whose profiles say who they are. Their
//! secret keys are elsewhere, so each signs with a key of the daemon's, and is spoken to by both. It changes the
//! registry and its files, and fetches nothing.

use super::install::{self, Members};
use crate::project::coordinate::Coordinate;
use crate::project::definition::{AgentDefinition, PROFILE_KIND, definition_of_profile};
use crate::project::files::{AgentFile, FilesError, Registered, Registry, Tenex};
use ::nostr::event::Event;
use std::collections::BTreeSet;

/// One agent of a roster.
#[derive(Debug)]
pub(super) struct Seat {
    /// In hex.
    pub(super) key: String,
    /// The definition that its profile names.
    pub(super) definition: Option<String>,
    profile: Option<Event>,
}

impl Seat {
    /// One for each key, with the profile that is its own.
    pub(super) fn each(keys: Vec<String>, profiles: &[Event]) -> Vec<Self> {
        let of = |key: String| {
            let is_its = |event: &&Event| event.kind.as_u16() == PROFILE_KIND && event.pubkey.to_hex() == key;
            let profile = profiles.iter().find(is_its).cloned();
            Self { definition: profile.as_ref().and_then(definition_of_profile), profile, key }
        };
        keys.into_iter().map(of).collect()
    }

    /// Who it is: by its definition, else by its profile, else by nothing but its key.
    pub(super) fn agent(&self, definition: Option<&Event>, problems: &mut Vec<String>) -> AgentDefinition {
        let told = |error: &dyn std::fmt::Display| format!("agent of the key {}: {error}", self.key);
        match (&self.definition, definition.map(AgentDefinition::of)) {
            (_, Some(Ok(agent))) => return agent,
            (_, Some(Err(error))) => problems.push(told(&error)),
            (Some(id), None) => problems.push(told(&format!("no relay has its definition {id}"))),
            (None, None) => {}
        }
        match self.profile.as_ref().map(AgentDefinition::of_profile) {
            Some(Ok(agent)) => return agent,
            Some(Err(error)) => problems.push(told(&error)),
            None => problems.push(told(&"no relay has its profile")),
        }
        AgentDefinition::unknown(&self.key)
    }
}

/// Gives each key of the roster an agent in the registry, but those that an agent of it signs with.
pub(super) fn agents(
    tenex: &Tenex,
    project: &Coordinate,
    members: &Members,
    signing: &BTreeSet<String>,
    registry: &mut Registry,
) -> Result<(), FilesError> {
    let before = registry.clone();
    for (key, agent) in members.roster.iter().filter(|(key, _)| !signing.contains(key)) {
        if let Some(one) = registry.values_mut().find(|one| one.roster_key.as_ref() == Some(key)) {
            renew(tenex, key, agent, one)?;
            continue;
        }
        // What an `agent` tag names too is there already, without its key.
        let same = |one: &&mut Registered| agent.id.is_some() && one.event_id == agent.id && one.roster_key.is_none();
        match registry.values_mut().find(same) {
            Some(one) => one.roster_key = Some(key.clone()),
            None => install::add(tenex, project, agent, Some(key.clone()), registry)?,
        }
    }
    if *registry == before {
        return Ok(());
    }
    tenex.set_registry(registry)?;
    let used: BTreeSet<&String> = registry.values().map(|one| &one.file).collect();
    for file in before.values().map(|one| &one.file).filter(|file| !used.contains(file)) {
        tenex.remove_agent(file)?;
    }
    Ok(())
}

/// Whether nothing but its key is known of an agent.
pub(super) fn is_unknown(key: &str, one: &Registered, file: &AgentFile) -> bool {
    one.event_id.is_none() && *file == install::file_of(&AgentDefinition::unknown(key))
}

/// Takes up another definition that its profile names by now, or a profile where there was none. Its name among the
/// project's agents stays, and so does the key that it signs with; a file that somebody edited does too.
fn renew(tenex: &Tenex, key: &str, agent: &AgentDefinition, one: &mut Registered) -> Result<(), FilesError> {
    let is_other = match &agent.id {
        Some(_) => one.event_id != agent.id,
        None => tenex.agent(&one.file).is_ok_and(|file| is_unknown(key, one, &file)),
    };
    if !is_other {
        return Ok(());
    }
    let file = install::file_name(agent);
    tenex.set_agent(&file, &install::file_of(agent))?;
    (one.file, one.event_id) = (file, agent.id.clone());
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::project::coordinate::PROJECT_KIND;
    use crate::project::definition::{AGENT_KIND, Definition};
    use ::nostr::event::{EventBuilder, FinalizeEvent, Kind, Tag};
    use ::nostr::key::Keys;

    fn event(keys: &Keys, kind: u16, content: &str, tags: &[(&str, &str)]) -> Event {
        let tags = tags.iter().map(|(name, value)| Tag::parse([*name, *value]).unwrap());
        EventBuilder::new(Kind::from(kind), content).tags(tags).finalize(keys).unwrap()
    }

    /// A project in a directory of its own.
    struct Place {
        directory: tempfile::TempDir,
        definition: Definition,
    }

    impl Place {
        fn new(tags: &[(&str, &str)]) -> Self {
            let definition = Definition::of(&event(&Keys::generate(), PROJECT_KIND, "", &[&[("d", "demo")][..], tags].concat())).unwrap();
            Self { directory: tempfile::tempdir().unwrap(), definition }
        }

        fn tenex(&self) -> Tenex {
            Tenex::open(self.directory.path()).unwrap()
        }

        /// As preparing does it; slugs and files, and what was told.
        fn put(&self, profiles: &[Event], events: &[Event], signing: &[&str]) -> (Registry, Vec<String>) {
            let seats = Seat::each(self.definition.roster.clone(), profiles);
            let members = Members::of(&self.definition, &seats, events);
            let tenex = self.tenex();
            let mut registry = install::agents(&tenex, &self.definition, &members).unwrap();
            let signing = signing.iter().map(|key| (*key).to_owned()).collect();
            agents(&tenex, &self.definition.coordinate, &members, &signing, &mut registry).unwrap();
            assert_eq!(tenex.registry().unwrap(), registry);
            let used: BTreeSet<String> = registry.values().map(|one| one.file.clone()).collect();
            let files = std::fs::read_dir(self.directory.path().join(".tenex/agents")).unwrap();
            assert_eq!(files.map(|file| file.unwrap().file_name().into_string().unwrap()).collect::<BTreeSet<_>>(), used);
            (registry, members.problems)
        }
    }

    fn slugs(registry: &Registry) -> Vec<&str> {
        registry.keys().map(String::as_str).collect()
    }

    #[test]
    fn each_key_of_a_roster_is_an_agent_by_what_is_known_of_it() {
        let (defined, described, unknown) = (Keys::generate(), Keys::generate(), Keys::generate());
        let [a, b, c] = [&defined, &described, &unknown].map(|keys| keys.public_key().to_hex());
        let place = Place::new(&[("p", &a), ("p", &b), ("p", &b.to_uppercase()), ("p", &c), ("p", "../../x"), ("p", "")]);
        let definition = event(&Keys::generate(), AGENT_KIND, "Be brief.", &[("title", "Planner")]);
        let id = definition.id.to_hex();
        let profiles = [
            event(&defined, PROFILE_KIND, r#"{"name": "planner of mine"}"#, &[("e", &id)]),
            event(&described, PROFILE_KIND, r#"{"name": "../Coder"}"#, &[("instructions", "Write."), ("tool", "shell")]),
        ];
        let (registry, problems) = place.put(&profiles, &[definition], &[]);
        let made = format!("agent-{}", &c[..8]);
        assert_eq!(slugs(&registry).into_iter().collect::<BTreeSet<_>>(), BTreeSet::from(["planner", "coder", &made]));
        let planner = &registry["planner"];
        assert_eq!((planner.event_id.as_ref(), planner.roster_key.as_ref(), &planner.file), (Some(&id), Some(&a), &format!("{id}.json")));
        let coder = place.tenex().agent(&registry["coder"].file).unwrap();
        assert_eq!((coder.instructions.as_str(), coder.tools.len(), registry["coder"].event_id.is_none()), ("Write.", 1, true));
        let malformed = "`p`: `../../x` is no id of 64 hexadecimal digits, nor are 1 others".to_owned();
        assert_eq!(problems, [malformed, format!("agent of the key {c}: no relay has its profile")]);
    }

    #[test]
    fn who_is_named_twice_is_one_agent() {
        let keys = Keys::generate();
        let (key, own) = (keys.public_key().to_hex(), "d".repeat(64));
        let definition = event(&Keys::generate(), AGENT_KIND, "", &[("title", "Planner")]);
        let id = definition.id.to_hex();
        let place = Place::new(&[("agent", &id), ("p", &key), ("p", &own)]);
        let profiles = [event(&keys, PROFILE_KIND, "{}", &[("e", &id)])];
        let (registry, _) = place.put(&profiles, std::slice::from_ref(&definition), &[&own]);
        assert_eq!((slugs(&registry), registry["planner"].roster_key.as_ref()), (vec!["planner"], Some(&key)));
        assert_eq!(place.put(&profiles, &[definition], &[&own]).0, registry, "done twice it is as done once");
    }

    #[test]
    fn what_becomes_known_of_an_agent_is_taken_up_and_it_stays_who_it_is() {
        let keys = Keys::generate();
        let key = keys.public_key().to_hex();
        let mut place = Place::new(&[("p", &key)]);
        let made = format!("agent-{}", &key[..8]);
        assert_eq!(slugs(&place.put(&[], &[], &[]).0), [&made]);
        let profile = event(&keys, PROFILE_KIND, r#"{"name": "Coder"}"#, &[]);
        let (registry, _) = place.put(std::slice::from_ref(&profile), &[], &[]);
        let name = |registry: &Registry| place.tenex().agent(&registry[&made].file).unwrap().name;
        assert_eq!(name(&registry), "Coder");

        let definition = event(&Keys::generate(), AGENT_KIND, "", &[("title", "Planner")]);
        let newer = event(&keys, PROFILE_KIND, "{}", &[("e", &definition.id.to_hex())]);
        let (registry, _) = place.put(&[newer], std::slice::from_ref(&definition), &[]);
        assert_eq!((name(&registry), registry[&made].event_id.clone()), ("Planner".to_owned(), Some(definition.id.to_hex())));
        // A relay that lost it takes nothing away.
        assert_eq!(place.put(&[profile], &[], &[]).0, registry);
        place.definition.roster.clear();
        assert!(place.put(&[], &[], &[]).0.is_empty(), "nobody names it any more");
    }

    #[test]
    fn a_profile_is_nobody_elses() {
        let (keys, other) = (Keys::generate(), Keys::generate());
        let profile = event(&other, PROFILE_KIND, r#"{"name": "Coder"}"#, &[]);
        let seats = Seat::each(vec![keys.public_key().to_hex()], &[profile]);
        let mut problems = Vec::new();
        assert_eq!(seats[0].agent(None, &mut problems), AgentDefinition::unknown(&keys.public_key().to_hex()));
        assert_eq!(problems.len(), 1);
    }
}
