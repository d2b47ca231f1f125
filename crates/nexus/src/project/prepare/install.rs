//! Puts the agents and MCP servers of a definition into `.tenex/`: what came is added, what went is removed, the rest is
//! not touched. One that is wrong is told and left out. Nothing that runs is installed before it is approved.

use super::roster::Seat;
use crate::error_text::describe;
use crate::nostr::Nostr;
use crate::project::approvals::{self, Answers};
use crate::project::coordinate::Coordinate;
use crate::project::definition::{AgentDefinition, Definition, McpDefinition};
use crate::project::files::{AgentFile, FilesError, Registered, Registry, SLUG_CHARS_MAX, ServerFile, Tenex};
use crate::project::slug;
use ::nostr::event::Event;
use serde_json::Map;
use std::collections::{BTreeMap, BTreeSet};

/// How the reference to a key of the daemon begins in a registry.
const SIGNER_PREFIX: &str = "daemon:";
/// Servers that the agents of one project may bring together; more are left out.
pub(super) const OWN_SERVERS_MAX: usize = 128;

/// The definitions that a project names, those that could be had.
#[derive(Debug, Default)]
pub(super) struct Members {
    /// Those that `agent` tags name.
    pub(super) agents: Vec<AgentDefinition>,
    /// Those that the roster names, each with its key there.
    pub(super) roster: Vec<(String, AgentDefinition)>,
    pub(super) servers: Vec<McpDefinition>,
    /// What is wrong with others.
    pub(super) problems: Vec<String>,
}

impl Members {
    pub(super) fn everyone(&self) -> impl Iterator<Item = &AgentDefinition> {
        self.agents.iter().chain(self.roster.iter().map(|(_, agent)| agent))
    }

    /// Reads those of `events` that `definition` names, or the profiles of its roster, in its order.
    pub(super) fn of(definition: &Definition, seats: &[Seat], events: &[Event]) -> Self {
        let by_id: BTreeMap<String, &Event> = events.iter().map(|event| (event.id.to_hex(), event)).collect();
        let mut members = Self { problems: definition.problems.clone(), ..Self::default() };
        for id in &definition.agents {
            match by_id.get(id).map(|event| AgentDefinition::of(event)) {
                Some(Ok(agent)) => {
                    members.problems.extend(agent.problems.iter().map(|problem| format!("agent {id}: {problem}")));
                    members.agents.push(agent);
                }
                Some(Err(error)) => members.problems.push(format!("agent skipped: {error}")),
                None => members.problems.push(format!("agent skipped: no relay has its definition {id}")),
            }
        }
        for seat in seats {
            let event = seat.definition.as_ref().and_then(|id| by_id.get(id));
            let agent = seat.agent(event.copied(), &mut members.problems);
            members.problems.extend(agent.problems.iter().map(|problem| format!("agent {}: {problem}", seat.key)));
            members.roster.push((seat.key.clone(), agent));
        }
        // An agent may bring servers of its own.
        let mut own = own_servers(definition, members.everyone());
        for id in own.drain(OWN_SERVERS_MAX.min(own.len())..) {
            let problem = format!("MCP server skipped: {id} is beyond the {OWN_SERVERS_MAX} that the agents of a project may bring");
            members.problems.push(problem);
        }
        for id in definition.mcp.iter().chain(&own) {
            match by_id.get(id).map(|event| McpDefinition::of(event)) {
                Some(Ok(server)) => members.servers.push(server),
                Some(Err(error)) => members.problems.push(format!("MCP server skipped: {error}")),
                None => members.problems.push(format!("MCP server skipped: no relay has its definition {id}")),
            }
        }
        members
    }
}

/// The servers that agents bring beside those of their project, each once.
pub(super) fn own_servers<'a>(definition: &'a Definition, agents: impl Iterator<Item = &'a AgentDefinition>) -> Vec<String> {
    let mut seen: BTreeSet<&String> = definition.mcp.iter().collect();
    agents.flat_map(|agent| &agent.mcp).filter(|id| seen.insert(*id)).cloned().collect()
}

/// A key of the daemon's, by the names of project and agent.
pub(super) fn key_name(project: &Coordinate, agent: &str) -> String {
    format!("{}/{agent}", project.slug())
}

/// Adds what `agent` tags name to the registry, with its file, and removes what nothing names any more. Whoever has
/// neither `eventId` nor `rosterKey` was put there by hand and stays.
pub(super) fn agents(tenex: &Tenex, definition: &Definition, members: &Members) -> Result<Registry, FilesError> {
    let mut registry = tenex.registry()?;
    let is_named = |one: &Registered| {
        one.event_id.as_ref().is_some_and(|id| definition.agents.contains(id))
            || one.roster_key.as_ref().is_some_and(|key| members.roster.iter().any(|(named, _)| named == key))
    };
    let is_gone = |one: &Registered| (one.event_id.is_some() || one.roster_key.is_some()) && !is_named(one);
    let gone: Vec<String> = registry.iter().filter(|(_, one)| is_gone(one)).map(|(slug, _)| slug.clone()).collect();
    let mut leftover = Vec::new();
    for slug in gone {
        leftover.extend(registry.remove(&slug).map(|one| one.file));
    }
    for agent in &members.agents {
        if !registry.values().any(|one| one.event_id == agent.id) {
            add(tenex, &definition.coordinate, agent, None, &mut registry)?;
        }
    }
    // Whom the roster no longer names is spoken to by that key no more.
    for one in registry.values_mut() {
        one.roster_key.take_if(|key| !members.roster.iter().any(|(named, _)| named == key));
    }
    // The registry first: it must not name a file that is gone.
    tenex.set_registry(&registry)?;
    let used: BTreeSet<&String> = registry.values().map(|one| &one.file).collect();
    for file in leftover.iter().filter(|file| !used.contains(file)) {
        tenex.remove_agent(file)?;
    }
    Ok(registry)
}

/// Adds one under a name of its own.
pub(super) fn add(
    tenex: &Tenex,
    project: &Coordinate,
    agent: &AgentDefinition,
    roster_key: Option<String>,
    registry: &mut Registry,
) -> Result<(), FilesError> {
    let taken: BTreeSet<String> = registry.keys().cloned().collect();
    // Room for the number of a clash.
    let slug = slug::free(&slug::of(&agent.name, "agent", SLUG_CHARS_MAX - 6), &taken);
    let file = file_name(agent);
    tenex.set_agent(&file, &file_of(agent))?;
    let signer = Some(format!("{SIGNER_PREFIX}{}", key_name(project, &slug)));
    registry.insert(slug, Registered { file, event_id: agent.id.clone(), roster_key, signer, nsec: None, other: Map::new() });
    Ok(())
}

/// The file of one without a definition is called by its key.
pub(super) fn file_name(agent: &AgentDefinition) -> String {
    format!("{}.json", agent.id.as_ref().unwrap_or(&agent.author))
}

pub(super) fn file_of(agent: &AgentDefinition) -> AgentFile {
    AgentFile {
        name: agent.name.clone(),
        role: agent.role.clone(),
        description: agent.description.clone(),
        instructions: agent.instructions.clone(),
        use_criteria: agent.use_criteria.clone(),
        tools: agent.tools.clone(),
        mcp: agent.mcp.clone(),
        other: Map::new(),
    }
}

/// Takes over the keys that a registry has in the open: each goes to the daemon once, and leaves a reference.
pub(super) async fn take_keys(nostr: &Nostr, project: &Coordinate, registry: &mut Registry, problems: &mut Vec<String>) -> bool {
    let mut changed = false;
    for (slug, one) in registry.iter_mut() {
        let Some(nsec) = one.nsec.as_deref() else { continue };
        let key = key_name(project, slug);
        let taken = nostr.import_key(&key, nsec).await;
        match taken {
            Ok(_) => {
                (one.nsec, one.signer) = (None, Some(format!("{SIGNER_PREFIX}{key}")));
                changed = true;
            }
            Err(error) => problems.push(format!("the key of agent `{slug}` was not taken over: {}", describe(&error))),
        }
    }
    changed
}

/// The name under which each server's definition is installed: what it has already, else one of its own.
pub(super) fn server_slugs(present: &BTreeMap<String, ServerFile>, members: &Members) -> BTreeMap<String, String> {
    let mut slugs: BTreeMap<String, String> =
        present.iter().filter(|(_, file)| !file.event_id.is_empty()).map(|(slug, file)| (file.event_id.clone(), slug.clone())).collect();
    let mut taken: BTreeSet<String> = present.keys().cloned().collect();
    for server in &members.servers {
        if !slugs.contains_key(&server.id) {
            let slug = slug::free(&slug::of(&server.name, "server", SLUG_CHARS_MAX - 6), &taken);
            taken.insert(slug.clone());
            slugs.insert(server.id.clone(), slug);
        }
    }
    slugs
}

/// Writes the files of the servers that are approved, and removes those of definitions that are named no more.
pub(super) fn servers(
    tenex: &Tenex,
    present: &BTreeMap<String, ServerFile>,
    members: &Members,
    named: &BTreeSet<String>,
    slugs: &BTreeMap<String, String>,
    answers: &Answers,
) -> Result<(), FilesError> {
    for (slug, file) in present {
        if !file.event_id.is_empty() && !named.contains(&file.event_id) {
            tenex.remove_server(slug)?;
        }
    }
    for server in &members.servers {
        let Some(slug) = slugs.get(&server.id).filter(|slug| !present.contains_key(*slug)) else { continue };
        if !answers.allows(&approvals::of_definition(slug, server, false)) {
            continue;
        }
        let (command, args) = server.argv.split_first().map(|(first, rest)| (first.clone(), rest.to_vec())).unwrap_or_default();
        let file = ServerFile {
            name: server.name.clone(),
            command,
            args,
            env: BTreeMap::new(),
            description: server.description.clone(),
            event_id: server.id.clone(),
            other: Map::new(),
        };
        tenex.set_server(slug, &file)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::project::coordinate::PROJECT_KIND;
    use crate::project::definition::{AGENT_KIND, MCP_KIND, MEMBERS_MAX};
    use ::nostr::event::{EventBuilder, FinalizeEvent, Kind, Tag};
    use ::nostr::key::Keys;

    fn event(kind: u16, tags: &[(&str, &str)]) -> Event {
        let tags = tags.iter().map(|(name, value)| Tag::parse([*name, *value]).unwrap());
        EventBuilder::new(Kind::from(kind), "").tags(tags).finalize(&Keys::generate()).unwrap()
    }

    fn agent(name: &str) -> Event {
        event(AGENT_KIND, &[("title", name), ("tool", "search")])
    }

    fn definition(members: &[&Event]) -> Definition {
        let ids: Vec<(&str, String)> =
            members.iter().map(|event| (if event.kind.as_u16() == AGENT_KIND { "agent" } else { "mcp" }, event.id.to_hex())).collect();
        let mut tags = vec![("d", "demo")];
        tags.extend(ids.iter().map(|(name, id)| (*name, id.as_str())));
        Definition::of(&event(PROJECT_KIND, &tags)).unwrap()
    }

    fn slugs(registry: &Registry) -> Vec<&str> {
        registry.keys().map(String::as_str).collect()
    }

    #[test]
    fn what_is_beyond_a_bound_or_malformed_is_told() {
        let ids: Vec<String> = (0..MEMBERS_MAX + 2).map(|n| format!("{n:064x}")).collect();
        // Together they bring more servers than may be, none of them too many by itself.
        let bringing = |name: &str, prefix: &str| {
            let mcp: Vec<String> = (0..50).map(|n| format!("{prefix}{n:063x}")).collect();
            let mut tags = vec![("title", name), ("tool", "rm -rf *")];
            tags.extend(mcp.iter().map(|id| ("mcp", id.as_str())));
            event(AGENT_KIND, &tags)
        };
        let agents = [bringing("one", "a"), bringing("two", "b"), bringing("three", "c")];
        let named: Vec<&Event> = agents.iter().collect();
        let problems = Members::of(&definition(&named), &[], &agents).problems;
        let beyond = format!("c{:063x}", 49);
        let told = |text: &str| problems.iter().any(|problem| problem.contains(text));
        assert!(told(&format!("{beyond} is beyond the 128")), "{problems:?}");
        assert!(!problems.iter().any(|problem| problem.contains("no relay") && problem.contains(&beyond)), "{problems:?}");
        assert!(told(&format!("agent {}: 1 `tool` tag(s) left out", agents[0].id.to_hex())), "{problems:?}");

        let mut tags = vec![("d", "demo"), ("mcp", "nonsense")];
        tags.extend(ids.iter().map(|id| ("agent", id.as_str())));
        let problems = Members::of(&Definition::of(&event(PROJECT_KIND, &tags)).unwrap(), &[], &[]).problems;
        let told = |text: &str| problems.iter().any(|problem| problem.contains(text));
        assert!(told("`mcp`: `nonsense` is no id of 64 hexadecimal digits"), "{problems:?}");
        assert!(told(&format!("2 `agent` tag(s) beyond the first 64 left out, such as `{}`", ids[64])), "{problems:?}");
        assert_eq!(problems.iter().filter(|problem| problem.contains("no relay")).count(), MEMBERS_MAX);
    }

    #[test]
    fn agents_come_and_go_and_the_others_are_not_touched() {
        let directory = tempfile::tempdir().unwrap();
        let tenex = Tenex::open(directory.path()).unwrap();
        let (one, two, three) = (agent("Project Manager"), agent("Project Manager"), agent("coder"));
        let all = [one.clone(), two.clone(), three.clone()];
        let put = |named: &[&Event]| {
            let definition = definition(named);
            agents(&tenex, &definition, &Members::of(&definition, &[], &all)).unwrap()
        };
        assert_eq!(slugs(&put(&[&one, &two])), ["project-manager", "project-manager-2"]);
        let file = directory.path().join(".tenex/agents").join(format!("{}.json", one.id.to_hex()));
        let edited = std::fs::read_to_string(&file).unwrap().replace("search", "edited");
        std::fs::write(&file, &edited).unwrap();

        let registry = put(&[&one, &three]);
        assert_eq!(slugs(&registry), ["coder", "project-manager"]);
        assert_eq!(std::fs::read_to_string(&file).unwrap(), edited);
        assert_eq!(std::fs::read_dir(directory.path().join(".tenex/agents")).unwrap().count(), 2);
        assert_eq!(put(&[&one, &three]), registry, "done twice it is as done once");
    }

    #[test]
    fn who_was_put_there_by_hand_stays() {
        let directory = tempfile::tempdir().unwrap();
        let tenex = Tenex::open(directory.path()).unwrap();
        let own = Registered { file: "own.json".into(), ..Registered::default() };
        tenex.set_registry(&Registry::from([("coder".to_owned(), own)])).unwrap();
        let coder = agent("coder");
        let definition = definition(&[&coder]);
        let registry = agents(&tenex, &definition, &Members::of(&definition, &[], &[coder])).unwrap();
        assert_eq!(slugs(&registry), ["coder", "coder-2"]);
    }

    #[test]
    fn a_bad_member_is_told_and_left_out() {
        let (good, bad) = (agent("good"), event(AGENT_KIND, &[]));
        let server = event(MCP_KIND, &[("name", "x"), ("command", "a \"b")]);
        let missing = agent("missing");
        let definition = definition(&[&good, &bad, &server, &missing]);
        let members = Members::of(&definition, &[], &[good, bad, server]);
        assert_eq!((members.agents.len(), members.servers.len(), members.problems.len()), (1, 0, 3));
        assert!(members.problems.iter().any(|problem| problem.contains(&missing.id.to_hex())), "{:?}", members.problems);
    }

    #[test]
    fn no_server_is_installed_before_it_is_approved() {
        let directory = tempfile::tempdir().unwrap();
        let tenex = Tenex::open(directory.path()).unwrap();
        let server = event(MCP_KIND, &[("name", "Files"), ("command", "npx files")]);
        let definition = definition(&[&server]);
        let members = Members::of(&definition, &[], &[server]);
        let named: BTreeSet<String> = definition.mcp.iter().cloned().collect();
        let names = server_slugs(&BTreeMap::new(), &members);
        assert_eq!(names.values().collect::<Vec<_>>(), ["files"]);
        servers(&tenex, &BTreeMap::new(), &members, &named, &names, &Answers::default()).unwrap();
        assert!(tenex.servers().unwrap().0.is_empty());
    }
}
