//! Whether a project could answer if it ran: what the operator still has to configure, each in a sentence that says
//! what to do. It looks, and asks nobody.

use super::prepare::ProjectMcp;
use super::secrets::referred;
use nexus_core::config::{Agent, Agents, Config, Projects, Provider, Runner};
use std::collections::BTreeSet;
use std::path::Path;

/// What one project's process has beside the daemon's environment.
#[derive(Debug, Clone, Copy)]
pub struct Own<'a> {
    pub slug: &'a str,
    /// Names of its secrets, which are variables there.
    pub secrets: &'a [String],
}

impl Own<'_> {
    fn has(self, variable: &str) -> bool {
        self.secrets.iter().any(|name| name == variable)
    }
}

/// Which agent of the configuration does a project's turns.
pub fn agent_name<'a>(projects: &'a Projects, agents: &'a Agents, coordinate: &str) -> &'a str {
    let own = projects.overrides.get(coordinate).and_then(|one| one.agent.as_deref());
    own.unwrap_or(&agents.default)
}

/// What is missing for the agent `name` to answer, in a project or at all; nothing for one that can.
pub fn missing(agents: &Agents, name: &str, workspace: &Path, own: Option<Own<'_>>) -> Vec<String> {
    let variable = |name: &str| std::env::var(name).is_ok_and(|value| !value.is_empty());
    look(agents, name, workspace, own, &variable)
}

/// The secrets that servers of a project refer to, and that nobody stored.
pub fn missing_secrets(servers: &[ProjectMcp], own: Own<'_>) -> Vec<String> {
    let mut missing: BTreeSet<(&str, &str)> = BTreeSet::new();
    for server in servers {
        let names = server.env.values().filter_map(|value| referred(value)).filter(|name| !own.has(name));
        missing.extend(names.map(|name| (server.slug.as_str(), name)));
    }
    let slug = own.slug;
    let told = missing.into_iter().map(|(server, name)| {
        format!("the MCP server `{server}` needs the secret {name}; `nexus project secret set {slug} {name}` stores it")
    });
    told.collect()
}

/// What the agents lack that are to do the turns of projects, before there is any project. Nothing where no event can
/// come for one, or where another program runs them.
pub fn missing_at_all(config: &Config, workspace: &Path) -> Vec<String> {
    let Config { projects, agents, nostr, .. } = config;
    if nostr.relays.is_empty() || !projects.argv.is_empty() {
        return Vec::new();
    }
    let own = projects.overrides.values().filter(|one| one.argv.is_empty()).filter_map(|one| one.agent.as_deref());
    let names: BTreeSet<&str> = own.chain([agents.default.as_str()]).collect();
    names.into_iter().flat_map(|name| missing(agents, name, workspace, None)).collect()
}

fn look(agents: &Agents, name: &str, workspace: &Path, own: Option<Own<'_>>, is_set: &dyn Fn(&str) -> bool) -> Vec<String> {
    let Some(agent) = agents.named.get(name) else {
        return vec![format!("agent `{name}` is not in `agents`; add it, or name another with `nexus project setup --agent`")];
    };
    let found = match agent.runner {
        Runner::Echo => None,
        Runner::Command => of_program(agent, name, workspace),
        Runner::Llm => of_model(agent, name, workspace, own, is_set),
        Runner::Acp => Some(format!(
            "agents.{name} has `runner: acp`, which does no turns of projects; name another with `nexus project setup --agent`"
        )),
    };
    found.into_iter().collect()
}

/// As the keeper looks for a program: a path, or a name in PATH.
fn of_program(agent: &Agent, name: &str, workspace: &Path) -> Option<String> {
    let program = agent.argv.first()?;
    let directory = agent.cwd.as_ref().map_or_else(|| workspace.to_owned(), |cwd| workspace.join(cwd));
    let is_there = if program.contains('/') {
        directory.join(program).is_file()
    } else {
        std::env::var_os("PATH").is_some_and(|path| std::env::split_paths(&path).any(|directory| directory.join(program).is_file()))
    };
    (!is_there).then(|| format!("the program `{program}` of agents.{name}.command was not found; install it, or correct the key"))
}

fn of_model(agent: &Agent, name: &str, workspace: &Path, own: Option<Own<'_>>, is_set: &dyn Fn(&str) -> bool) -> Option<String> {
    if agent.model.is_none() {
        return Some(format!("agents.{name}.model is missing; `nexus project setup` asks for it"));
    }
    if let Some(variable) = &agent.key_env {
        let is_there = is_set(variable) || own.is_some_and(|own| own.has(variable));
        let told = format!("the environment variable {variable} of agents.{name}.key_env is not set for the daemon");
        return (!is_there).then(|| match own {
            Some(own) => format!("{told}; set it there, or store it with `nexus project secret set {} {variable}`", own.slug),
            None => told,
        });
    }
    if let Some(file) = &agent.key_file {
        let path = workspace.join(file);
        return (!path.is_file()).then(|| format!("the file `{}` of agents.{name}.key_file is not there", path.display()));
    }
    let needs_key = match agent.provider {
        // A server of one's own may want none.
        Provider::Openai | Provider::Ollama => false,
        Provider::OpenaiResp | Provider::Anthropic | Provider::Gemini | Provider::Groq | Provider::Deepseek | Provider::Xai => {
            agent.url.is_none()
        }
    };
    needs_key.then(|| {
        format!("agents.{name} has neither key_file nor key_env, and {} needs a key; `nexus project setup` sets one", agent.provider)
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use nexus_core::config::{ECHO, Source, load};

    fn agents(text: &str) -> Agents {
        load(Source { name: "nex.yaml", text }, None).unwrap().config.agents
    }

    #[test]
    fn what_is_missing_is_named() {
        let workspace = tempfile::tempdir().unwrap();
        std::fs::write(workspace.path().join("key"), "k").unwrap();
        let none = |_: &str| false;
        for (agent, expected) in [
            ("{runner: llm, provider: anthropic, model: m}", "needs a key"),
            ("{runner: llm, provider: anthropic, model: m, key_env: SOME_KEY}", "SOME_KEY"),
            ("{runner: llm, provider: anthropic, model: m, key_file: nothing}", "key_file is not there"),
            ("{runner: command, command: surely-no-program-of-this-name}", "was not found"),
            ("{runner: command, command: ./no/such}", "was not found"),
            ("{runner: acp, command: sh}", "does no turns of projects"),
        ] {
            let found = look(&agents(&format!("agents: {{a: {agent}}}")), "a", workspace.path(), None, &none);
            assert!(found.len() == 1 && found[0].contains(expected), "{agent}: {found:?}");
        }
        for agent in [
            "{runner: llm, provider: anthropic, model: m, key_file: key}",
            "{runner: llm, provider: ollama, model: m}",
            "{runner: llm, url: 'http://127.0.0.1:1/v1', model: m}",
            "{runner: command, command: sh -c true}",
            "{runner: echo}",
        ] {
            let found = look(&agents(&format!("agents: {{a: {agent}}}")), "a", workspace.path(), None, &none);
            assert!(found.is_empty(), "{agent}: {found:?}");
        }
        assert!(look(&agents(""), "nobody", workspace.path(), None, &none)[0].contains("nobody"));
    }

    #[test]
    fn a_secret_that_nobody_stored_is_named_with_what_stores_it() {
        let (workspace, none) = (Path::new("/nowhere"), |_: &str| false);
        let agents = agents("agents: {a: {runner: llm, provider: anthropic, model: m, key_env: SOME_KEY}}");
        let (nothing, all) = (Own { slug: "demo-1", secrets: &[] }, ["SOME_KEY".to_owned(), "TOKEN".to_owned()]);
        let found = look(&agents, "a", workspace, Some(nothing), &none);
        assert!(found.len() == 1 && found[0].contains("`nexus project secret set demo-1 SOME_KEY`"), "{found:?}");
        let everything = Own { slug: "demo-1", secrets: &all };
        assert!(look(&agents, "a", workspace, Some(everything), &none).is_empty(), "its process has it");

        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let env = [pair("A", "${TOKEN}"), pair("B", "${TOKEN}"), pair("C", "$TOKEN"), pair("D", ""), pair("E", "${NEXUS_X}")];
        let server = ProjectMcp {
            slug: "files".to_owned(),
            name: String::new(),
            command: "x".to_owned(),
            args: Vec::new(),
            env: env.into(),
            event_id: String::new(),
        };
        let found = missing_secrets(std::slice::from_ref(&server), nothing);
        assert_eq!(found, ["the MCP server `files` needs the secret TOKEN; `nexus project secret set demo-1 TOKEN` stores it"]);
        assert!(missing_secrets(&[server], everything).is_empty());
    }

    #[test]
    fn what_is_missing_is_known_before_there_is_a_project() {
        let key = format!("31933:{}:d", "a".repeat(64));
        let brain = "{runner: llm, provider: anthropic, model: m}";
        let agents = format!("agents: {{default: brain, brain: {brain}, hand: {{runner: command, command: ./no/such}}}}\n");
        let found = |rest: &str| {
            let config = load(Source { name: "nex.yaml", text: &format!("{agents}{rest}") }, None).unwrap().config;
            missing_at_all(&config, Path::new("/nowhere")).join("; ")
        };
        let relays = "nostr: {relays: ['ws://127.0.0.1:1']}\n";
        assert!(found(relays).contains("agents.brain") && !found(relays).contains("agents.hand"), "{}", found(relays));
        let overrides = format!("{relays}projects: {{overrides: {{'{key}': {{agent: hand}}}}}}");
        assert!(found(&overrides).contains("agents.brain") && found(&overrides).contains("agents.hand"), "{}", found(&overrides));
        for silent in [String::new(), format!("{relays}projects: {{command: sh}}")] {
            assert_eq!(found(&silent), "", "{silent}");
        }
    }

    #[test]
    fn an_override_names_the_agent() {
        let key = format!("31933:{}:d", "a".repeat(64));
        let text = format!("agents: {{other: {{runner: echo}}}}\nprojects: {{overrides: {{'{key}': {{agent: other}}}}}}");
        let config = load(Source { name: "nex.yaml", text: &text }, None).unwrap().config;
        assert_eq!(agent_name(&config.projects, &config.agents, &key), "other");
        assert_eq!(agent_name(&config.projects, &config.agents, "31933:x:e"), ECHO);
    }
}
