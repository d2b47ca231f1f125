//! A project as it is prepared: what its directory and the answers to its wishes make of it. It makes the
//! directories of `.tenex/` that aren't there, and changes nothing else.

use super::error::PrepareError;
use super::install::key_name;
use super::source::blocking;
use super::{Preparer, Settings, roster};
use crate::error_text::describe;
use crate::ledger::nexus::{nostr_event, nostr_events_by_ids};
use crate::project::approvals::{self, Answers};
use crate::project::coordinate::Coordinate;
use crate::project::definition::{Definition, PROFILE_KIND, definition_of_profile};
use crate::project::files::{AgentFile, FilesError, Registered, ServerFile, Tenex};
use crate::project::readiness;
use crate::project::secrets::Secrets;
use ::nostr::event::Event;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use tokio::time::Instant;

/// A project that may run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Prepared {
    pub coordinate: Coordinate,
    pub slug: String,
    pub path: PathBuf,
    pub title: String,
    /// In the order of the definition; those that were put there by hand come last.
    pub agents: Vec<ProjectAgent>,
    /// Those that are approved.
    pub mcp: Vec<ProjectMcp>,
    /// What keeps it from answering, each with what to do about it; empty when nothing does.
    pub missing: Vec<String>,
    pub definition_id: String,
    /// What of the definition could not be used.
    pub problems: Vec<String>,
}

impl Prepared {
    /// The public keys by which its agents are spoken to.
    pub(in crate::project) fn pubkeys(&self) -> Vec<String> {
        self.agents.iter().flat_map(|agent| std::iter::once(&agent.pubkey).chain(&agent.roster_key)).cloned().collect()
    }

    /// With what else of the definition could not be used, which its directory doesn't show.
    pub(super) fn with_problems(mut self, problems: &[String]) -> Self {
        let more: Vec<String> = problems.iter().filter(|problem| !self.problems.contains(problem)).cloned().collect();
        self.problems.extend(more);
        self
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProjectAgent {
    pub slug: String,
    pub name: String,
    pub role: String,
    pub description: String,
    pub instructions: String,
    pub use_criteria: String,
    /// Those that are approved.
    pub tools: Vec<String>,
    /// Whether it names tools at all, approved or not: then it calls none but those in `tools`.
    pub names_tools: bool,
    pub event_id: Option<String>,
    /// That it signs with, in hexadecimal digits.
    pub pubkey: String,
    /// That the definition's roster names it by, if it does.
    #[serde(default)]
    pub roster_key: Option<String>,
    /// Who answers when nobody is addressed: of one project exactly one.
    pub manager: bool,
}

impl ProjectAgent {
    /// Whether who speaks to this key, in hex, speaks to it.
    pub fn is_named(&self, key: &str) -> bool {
        self.pubkey == key || self.roster_key.as_deref() == Some(key)
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProjectMcp {
    pub slug: String,
    pub name: String,
    pub command: String,
    pub args: Vec<String>,
    pub env: BTreeMap<String, String>,
    pub event_id: String,
}

/// What the files say.
#[derive(Debug)]
pub(super) struct Installed {
    pub(super) agents: Vec<(String, Registered, AgentFile)>,
    pub(super) servers: BTreeMap<String, ServerFile>,
    pub(super) problems: Vec<String>,
}

impl Installed {
    /// Reads `.tenex/`. A registry that can't be read is an error; an agent or server that can't is told and left out.
    pub(super) fn read(path: &Path, definition: &Definition) -> Result<Self, FilesError> {
        let tenex = Tenex::open(path)?;
        let mut problems = Vec::new();
        let mut agents = Vec::new();
        for (slug, one) in tenex.registry()? {
            match tenex.agent(&one.file) {
                Ok(file) => agents.push((slug, one, file)),
                Err(error) => problems.push(format!("agent `{slug}` skipped: {}", describe(&error))),
            }
        }
        let place = |one: &Registered| {
            let among = |all: &[String], name: &Option<String>| all.iter().position(|known| name.as_ref() == Some(known));
            let by_key = || among(&definition.roster, &one.roster_key).map(|at| definition.agents.len() + at);
            among(&definition.agents, &one.event_id).or_else(by_key).unwrap_or(usize::MAX)
        };
        agents.sort_by_key(|(_, one, _)| place(one));
        let (servers, broken) = tenex.servers()?;
        problems.extend(broken.iter().map(|error| format!("MCP server skipped: {}", describe(error))));
        Ok(Self { agents, servers, problems })
    }

    /// `named_keys` are the keys of the roster that an agent has to have of which more than the key is known. An agent
    /// that `is_sought` isn't looked for again now; a server that was approved is.
    fn lacks(&self, definition: &Definition, named_keys: &[String], answers: &Answers, is_sought: impl Fn(&str) -> bool) -> bool {
        let has_agent = |id: &String| is_sought(id) || self.agents.iter().any(|(_, one, _)| one.event_id.as_ref() == Some(id));
        let is_known =
            |key: &String, one: &Registered, file: &AgentFile| one.roster_key.as_ref() == Some(key) && !roster::is_unknown(key, one, file);
        let has_key = |key: &String| self.agents.iter().any(|(_, one, file)| is_known(key, one, file));
        let mut named = definition.mcp.iter().chain(self.agents.iter().flat_map(|(_, _, file)| &file.mcp));
        let owed = |id: &String| answers.approved_server(id) && !self.servers.values().any(|file| file.event_id == *id);
        let has_all_keys = named_keys.iter().all(|key| is_sought(key) || has_key(key));
        !definition.agents.iter().all(has_agent) || !has_all_keys || named.any(owed)
    }
}

impl Preparer {
    /// What is prepared in `path`.
    pub(super) async fn load(&self, definition: &Definition, settings: &Settings, path: &Path) -> Result<Prepared, PrepareError> {
        let coordinate = &definition.coordinate;
        let (at, of) = (path.to_owned(), definition.clone());
        let installed = blocking(move || Installed::read(&at, &of)).await?;
        let answers = approvals::known(&self.inner.ledgers.nexus, coordinate).await?;
        let mut agents = Vec::new();
        for (slug, registered, file) in installed.agents {
            let pubkey = self.inner.nostr.pubkey(&key_name(coordinate, &slug)).await?;
            agents.push(agent(slug, registered, file, pubkey, &answers));
        }
        appoint(&mut agents, &definition.roster);
        let allowed = installed.servers.into_iter().filter(|(slug, file)| answers.allows(&approvals::of_file(slug, file)));
        let mcp: Vec<ProjectMcp> = allowed.map(|(slug, file)| server(slug, file)).collect();
        let mut missing = self.missing(settings, coordinate, &mcp)?;
        if agents.is_empty() {
            missing.push("it has no agent; its definition names none that could be had".to_owned());
        }
        Ok(Prepared {
            slug: coordinate.slug(),
            path: path.to_owned(),
            title: definition.title.clone(),
            mcp,
            definition_id: definition.id.clone(),
            problems: installed.problems,
            coordinate: coordinate.clone(),
            agents,
            missing,
        })
    }

    /// Whether something of the definition is still to be installed: a server that was approved when the daemon ended, or
    /// an agent whose definition or profile no relay had yet. A start doesn't ask for them again and again.
    pub(super) async fn owes(&self, definition: &Definition, path: &Path, is_start: bool) -> Result<bool, PrepareError> {
        let (at, of) = (path.to_owned(), definition.clone());
        let installed = blocking(move || Installed::read(&at, &of)).await?;
        let known = approvals::known(&self.inner.ledgers.nexus, &definition.coordinate).await?;
        let mut named = self.named_agents(definition);
        if !named.is_empty() {
            // An agent that signs with a key of the roster needs no other.
            let slugs = installed.agents.iter().map(|(slug, _, _)| slug.clone()).collect();
            let signing = self.signing(&definition.coordinate, slugs).await?;
            named.retain(|key| !signing.contains(key));
        }
        let now = Instant::now();
        let heard = self.heard(&definition.agents).await?;
        let is_sought = |one: &str| is_start && self.inner.sought.has(one, now) && !heard.contains(one);
        if installed.lacks(definition, &named, &known, is_sought) {
            return Ok(true);
        }
        let is_undefined =
            |key: &String| installed.agents.iter().any(|(_, one, _)| one.roster_key.as_ref() == Some(key) && one.event_id.is_none());
        named.retain(is_undefined);
        Ok(!named.is_empty() && self.is_defined_by_profile(named).await?)
    }

    /// Which of these events are known by now: relays bring what was looked for in vain.
    async fn heard(&self, ids: &[String]) -> Result<BTreeSet<String>, PrepareError> {
        let ids = ids.to_vec();
        let read = move |connection: &rusqlite::Connection| {
            let mut heard = BTreeSet::new();
            for id in ids {
                if !nostr_events_by_ids(connection, std::slice::from_ref(&id))?.is_empty() {
                    heard.insert(id);
                }
            }
            Ok(heard)
        };
        Ok(self.inner.ledgers.nexus.readers.read(read).await?)
    }

    /// Whether the profile of one of these keys names a definition.
    async fn is_defined_by_profile(&self, keys: Vec<String>) -> Result<bool, PrepareError> {
        let read = move |connection: &rusqlite::Connection| {
            keys.iter().filter_map(|key| nostr_event(connection, PROFILE_KIND, key, "").transpose()).collect::<Result<Vec<_>, _>>()
        };
        let profiles = self.inner.ledgers.nexus.readers.read(read).await?;
        let names = |json: &String| Event::from_json(json).is_ok_and(|profile| definition_of_profile(&profile).is_some());
        Ok(profiles.iter().any(names))
    }

    /// What configuration and secrets lack for the agent that does the turns of a project, and for its servers.
    fn missing(&self, settings: &Settings, project: &Coordinate, servers: &[ProjectMcp]) -> Result<Vec<String>, PrepareError> {
        let name = readiness::agent_name(&settings.projects, &settings.agents, &project.to_string());
        let slug = project.slug();
        let secrets = Secrets::new(&settings.credentials).list(&slug)?;
        let own = readiness::Own { slug: &slug, secrets: &secrets };
        let mut missing = readiness::missing(&settings.agents, name, &settings.workspace, Some(own));
        missing.extend(readiness::missing_secrets(servers, own));
        Ok(missing)
    }
}

fn agent(slug: String, registered: Registered, file: AgentFile, pubkey: String, answers: &Answers) -> ProjectAgent {
    let wish = approvals::of_tools(&slug, &file.tools, registered.event_id.as_deref(), false);
    let names_tools = wish.is_some();
    let is_allowed = wish.is_some_and(|wish| answers.allows(&wish));
    ProjectAgent {
        slug,
        name: file.name,
        role: file.role,
        description: file.description,
        instructions: file.instructions,
        use_criteria: file.use_criteria,
        tools: if is_allowed { file.tools } else { Vec::new() },
        names_tools,
        event_id: registered.event_id,
        roster_key: registered.roster_key,
        pubkey,
        manager: false,
    }
}

/// The first of the roster that is here manages, else the first of all.
fn appoint(agents: &mut [ProjectAgent], roster: &[String]) {
    let named = roster.iter().find_map(|key| agents.iter().position(|agent| agent.is_named(key)));
    if let Some(agent) = agents.get_mut(named.unwrap_or(0)) {
        agent.manager = true;
    }
}

fn server(slug: String, file: ServerFile) -> ProjectMcp {
    ProjectMcp { slug, name: file.name, command: file.command, args: file.args, env: file.env, event_id: file.event_id }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(pubkey: &str) -> ProjectAgent {
        agent("a".into(), Registered::default(), AgentFile::default(), pubkey.into(), &Answers::default())
    }

    #[test]
    fn one_agent_manages() {
        let managers = |roster: &[&str]| {
            let mut agents = vec![of("k1"), of("k2"), of("k3")];
            appoint(&mut agents, &roster.iter().map(|key| (*key).to_owned()).collect::<Vec<_>>());
            agents.into_iter().filter(|agent| agent.manager).map(|agent| agent.pubkey).collect::<Vec<_>>()
        };
        assert_eq!(managers(&[]), ["k1"]);
        assert_eq!(managers(&["elsewhere", "k3", "k2"]), ["k3"]);
        appoint(&mut [], &[]);
        let mut agents = [of("k1"), ProjectAgent { roster_key: Some("r2".into()), ..of("k2") }];
        appoint(&mut agents, &["r2".to_owned()]);
        assert!(agents[1].manager && !agents[0].manager, "by the key that the roster names it by");
    }

    #[test]
    fn tools_that_nobody_approved_are_not_there() {
        let file = AgentFile { tools: vec!["shell".into()], ..AgentFile::default() };
        let unapproved = agent("a".into(), Registered::default(), file, "k".into(), &Answers::default());
        assert!(unapproved.tools.is_empty() && unapproved.names_tools && !of("k").names_tools);
    }
}
