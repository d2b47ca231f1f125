//! Agents and servers of a project: their definitions and profiles fetched, installed with what is approved, and the
//! profiles of our own agents published. How files change, `install` and `roster` say.

use super::error::PrepareError;
use super::install::{self, Members, OWN_SERVERS_MAX, key_name};
use super::roster::{self, Seat};
use super::{Prepared, Preparer, Settings};
use crate::error_text::describe;
use crate::ledger::nexus::{ApprovalKind, Wish};
use crate::nostr::{FetchError, Template};
use crate::project::approvals;
use crate::project::coordinate::Coordinate;
use crate::project::definition::{AgentDefinition, Definition};
use crate::project::files::{Registry, Tenex};
use ::nostr::event::Event;
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// How long the profile of a key, or an event, that was looked for isn't looked for by a start again.
const SOUGHT_FOR: Duration = Duration::from_secs(5 * 60);

/// The keys whose profiles, and the ids whose events were looked for lately, and when: where a relay is dead, that takes its time.
#[derive(Debug, Default)]
pub(super) struct Sought {
    all: Mutex<BTreeMap<String, Instant>>,
}

impl Sought {
    fn note(&self, keys: &[String], now: Instant) {
        let mut all = self.lock();
        all.retain(|_, at| now.duration_since(*at) < SOUGHT_FOR);
        all.extend(keys.iter().map(|key| (key.clone(), now)));
    }

    pub(super) fn has(&self, key: &str, now: Instant) -> bool {
        self.lock().get(key).is_some_and(|at| now.duration_since(*at) < SOUGHT_FOR)
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Instant>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Preparer {
    /// The events of the members, and of the servers that its agents bring.
    pub(super) async fn members(&self, definition: &Definition) -> Result<Members, PrepareError> {
        let failed = |source| PrepareError::Members { project: definition.coordinate.to_string(), source };
        let keys = self.named_agents(definition);
        let profiles = if keys.is_empty() { Vec::new() } else { self.profiles(&keys).await.map_err(failed)? };
        let seats = Seat::each(keys, &profiles);
        let of_seats = seats.iter().filter_map(|seat| seat.definition.as_ref());
        let mut seen = BTreeSet::new();
        let named = definition.agents.iter().chain(&definition.mcp).chain(of_seats);
        let ids: Vec<String> = named.filter(|id| seen.insert((*id).clone())).cloned().collect();
        let mut events = if ids.is_empty() { Vec::new() } else { self.by_ids(&ids).await.map_err(failed)? };
        let mut more = install::own_servers(definition, Members::of(definition, &seats, &events).everyone());
        more.truncate(OWN_SERVERS_MAX);
        more.retain(|id| !ids.contains(id));
        if !more.is_empty() {
            events.extend(self.by_ids(&more).await.map_err(failed)?);
        }
        Ok(Members::of(definition, &seats, &events))
    }

    async fn profiles(&self, keys: &[String]) -> Result<Vec<Event>, FetchError> {
        let found = self.inner.nostr.profiles(keys).await;
        self.inner.sought.note(keys, Instant::now()); // also where nobody answered
        found
    }

    async fn by_ids(&self, ids: &[String]) -> Result<Vec<Event>, FetchError> {
        let found = self.inner.nostr.by_ids(ids).await;
        let is_there = |id: &String| found.as_ref().is_ok_and(|events| events.iter().any(|event| event.id.to_hex() == *id));
        let missing: Vec<String> = ids.iter().filter(|id| !is_there(id)).cloned().collect();
        self.inner.sought.note(&missing, Instant::now()); // also where nobody answered
        found
    }

    /// The keys of the roster that are those of agents: its author, whoever is heeded, and the daemon are somebody else.
    pub(super) fn named_agents(&self, definition: &Definition) -> Vec<String> {
        let nostr = &self.inner.nostr;
        let is_agent = |key: &&String| **key != definition.coordinate.pubkey && !nostr.whitelisted(key) && !nostr.is_own(key);
        definition.roster.iter().filter(is_agent).cloned().collect()
    }

    /// The keys that agents of a project sign with, in hex.
    pub(super) async fn signing(&self, project: &Coordinate, slugs: Vec<String>) -> Result<BTreeSet<String>, PrepareError> {
        let mut keys = BTreeSet::new();
        for slug in slugs {
            keys.insert(self.inner.nostr.pubkey(&key_name(project, &slug)).await?);
        }
        Ok(keys)
    }

    /// Brings the registry up to the definition, and keys that lie in it to the daemon.
    async fn enrol(
        &self,
        tenex: &Tenex,
        definition: &Definition,
        members: &Members,
        problems: &mut Vec<String>,
    ) -> Result<Registry, PrepareError> {
        let project = &definition.coordinate;
        let mut registry = install::agents(tenex, definition, members)?;
        if install::take_keys(&self.inner.nostr, project, &mut registry, problems).await {
            tenex.set_registry(&registry)?;
        }
        if members.roster.is_empty() {
            return Ok(registry);
        }
        // Only now it is known who signs with a key of the roster.
        let signing = self.signing(project, registry.keys().cloned().collect()).await?;
        roster::agents(tenex, project, members, &signing, &mut registry)?;
        Ok(registry)
    }

    /// Whether what an author's events install is approved by that alone.
    pub(super) fn trusts(&self, settings: &Settings, author: &str) -> bool {
        settings.projects.auto_approve_authors && self.inner.nostr.whitelisted(author)
    }

    /// Brings `.tenex/` of the directory `work` up to the definition.
    pub(super) async fn fill(
        &self,
        definition: &Definition,
        settings: &Settings,
        work: &Path,
        members: &Members,
        problems: &mut Vec<String>,
    ) -> Result<(), PrepareError> {
        let tenex = Tenex::open(work)?;
        let registry = self.enrol(&tenex, definition, members, problems).await?;
        let (present, broken) = tenex.servers()?;
        problems.extend(broken.iter().map(|error| format!("MCP server skipped: {}", describe(error))));
        let slugs = install::server_slugs(&present, members);
        let mut wishes: Vec<Wish> = Vec::new();
        for server in &members.servers {
            let slug = slugs.get(&server.id).map_or("server", String::as_str);
            wishes.push(approvals::of_definition(slug, server, self.trusts(settings, &server.author)));
        }
        wishes.extend(present.iter().filter(|(_, file)| file.event_id.is_empty()).map(|(slug, file)| approvals::of_file(slug, file)));
        let mut kinds = vec![ApprovalKind::Mcp, ApprovalKind::Tools];
        for (slug, one) in &registry {
            // What it wishes nobody knows then, so nothing that was asked for is taken for given up. That it can't be read
            // is told where the directory is.
            let Ok(file) = tenex.agent(&one.file) else {
                kinds.retain(|kind| *kind != ApprovalKind::Tools);
                continue;
            };
            // Trust is in what the author signed, not in what became of the file.
            let is_signed = |agent: &&AgentDefinition| agent.id.is_some() && one.event_id == agent.id && agent.tools == file.tools;
            let signed = members.everyone().find(is_signed);
            let trusted = signed.is_some_and(|agent| self.trusts(settings, &agent.author));
            wishes.extend(approvals::of_tools(slug, &file.tools, one.event_id.as_deref(), trusted));
        }
        let answers = approvals::ask(&self.inner.ledgers.nexus, &definition.coordinate, kinds, wishes).await?;
        let named = definition.mcp.iter().chain(members.everyone().flat_map(|agent| &agent.mcp)).cloned().collect();
        Ok(install::servers(&tenex, &present, members, &named, &slugs, &answers)?)
    }

    /// Each agent's kind 0, unless the last one says the same (requirement: Republish Agent Profiles).
    pub(super) async fn publish_profiles(&self, prepared: &Prepared) {
        for agent in &prepared.agents {
            let content = json!({ "name": agent.name, "about": agent.description, "role": agent.role }).to_string();
            let owner = vec!["p".to_owned(), prepared.coordinate.pubkey.clone()];
            let project = vec!["a".to_owned(), prepared.coordinate.to_string()];
            let key = key_name(&prepared.coordinate, &agent.slug);
            let template = Template { kind: 0, content, tags: vec![owner, project], created_at: None };
            if let Err(error) = self.inner.nostr.replace(&key, template, &format!("profile:{key}:")).await {
                tracing::warn!(error = %describe(&error), agent = %key, "an agent's profile was not published");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_profile_that_was_looked_for_is_not_looked_for_at_once_again() {
        let (sought, now) = (Sought::default(), Instant::now());
        sought.note(&["a".to_owned()], now);
        assert!(sought.has("a", now) && !sought.has("b", now));
        let later = now + SOUGHT_FOR;
        assert!(!sought.has("a", later));
        sought.note(&["b".to_owned()], later);
        assert_eq!((sought.has("b", later), sought.lock().len()), (true, 1), "what is over is forgotten");
    }
}
