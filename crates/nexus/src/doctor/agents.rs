//! Whether the agents of the configuration have what they need: their programs, their keys, and the programs of their MCP
//! servers. It starts none of them and asks no model; whether a key is right, only its endpoint knows.

use super::{Check, Finding};
use crate::agent::llm::KEY_BYTES_MAX;
use crate::environment;
use nexus_core::config::{Agent, Config, Provider, Runner};
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// Where a program is looked for whose environment names no PATH.
const DEFAULT_PATH: &str = "/usr/local/bin:/usr/bin:/bin";

/// A line for each program and each key.
pub fn findings(config: &Config, workspace: &Path) -> Vec<Finding> {
    let mut found: Vec<Finding> = config.agents.named.iter().filter_map(|(name, agent)| needs(name, agent, workspace)).collect();
    if found.is_empty() {
        found.push(Finding::ok(Check::Agents, "none needs a program or a key"));
    }
    let servers = config.agents.named.iter().flat_map(|(name, agent)| agent.mcp.iter().map(move |(server, its)| (name, server, its)));
    let mut programs: Vec<Finding> = servers
        .map(|(name, server, its)| {
            let key = format!("agents.{name}.mcp.{server}.command");
            let env = environment::with(&its.env, &its.pass_env);
            judge(Check::Mcp, &format!("{name}/{server}"), &key, program(&its.argv, &env, workspace))
        })
        .collect();
    if programs.is_empty() {
        programs.push(Finding::ok(Check::Mcp, "no server is configured"));
    }
    found.append(&mut programs);
    found
}

fn needs(name: &str, agent: &Agent, workspace: &Path) -> Option<Finding> {
    match agent.runner {
        Runner::Echo => None,
        Runner::Command | Runner::Acp => {
            let cwd = agent.cwd.as_ref().map_or_else(|| workspace.to_owned(), |cwd| workspace.join(cwd));
            let env = environment::with(&agent.env, &agent.pass_env);
            Some(judge(Check::Agents, name, &format!("agents.{name}.command"), program(&agent.argv, &env, &cwd)))
        }
        Runner::Llm => Some(key(name, agent, workspace)),
    }
}

fn judge(check: Check, place: &str, key: &str, found: Result<PathBuf, String>) -> Finding {
    match found {
        Ok(path) => Finding::ok(check, format!("its program is `{}`", path.display())).at_place(place),
        Err(why) => Finding::error(check, why, format!("install the program, or correct {key}")).at_place(place),
    }
}

/// The program that would be started, as the keeper looks for it: by its path, or by its name in PATH.
///
/// # Errors
/// That there is none, or none that can be executed.
pub(super) fn program(argv: &[String], env: &[(String, String)], cwd: &Path) -> Result<PathBuf, String> {
    let name = argv.first().map(String::as_str).filter(|name| !name.is_empty()).ok_or("no program is named")?;
    let path = env.iter().find(|(key, _)| key == "PATH").map_or(DEFAULT_PATH, |(_, path)| path.as_str());
    let candidates: Vec<PathBuf> = match name.contains('/') {
        true => vec![cwd.join(name)],
        false => path.split(':').map(|directory| cwd.join(directory).join(name)).collect(),
    };
    let files: Vec<PathBuf> = candidates.into_iter().filter(|path| path.is_file()).collect();
    let is_executable = |path: &&PathBuf| fs::metadata(path).is_ok_and(|file| file.permissions().mode() & 0o111 != 0);
    match (files.iter().find(is_executable), files.first()) {
        (Some(path), _) => Ok(path.clone()),
        (None, Some(path)) => Err(format!("`{}` can't be executed", path.display())),
        (None, None) if name.contains('/') => Err(format!("there is no program `{name}`")),
        (None, None) => Err(format!("there is no program `{name}` in PATH ({path})")),
    }
}

fn key(name: &str, agent: &Agent, workspace: &Path) -> Finding {
    let ok = |what: String| Finding::ok(Check::Agents, what).at_place(name);
    let wrong = |what: String, fix: String| Finding::error(Check::Agents, what, fix).at_place(name);
    match (&agent.key_env, &agent.key_file) {
        (Some(variable), _) if std::env::var(variable).is_ok_and(|value| is_key(&value)) => {
            ok(format!("its key is in the environment variable {variable}"))
        }
        (Some(variable), _) => {
            let fix = format!("set {variable} where the daemon is started, or correct agents.{name}.key_env");
            wrong(format!("the environment variable {variable} is not set, or holds no key"), fix)
        }
        (None, Some(file)) => {
            let path = workspace.join(file);
            match readable(&path) {
                Ok(()) => ok(format!("its key can be read from `{}`", path.display())),
                Err(why) => wrong(why, format!("correct agents.{name}.key_file, or the file")),
            }
        }
        (None, None) if agent.url.is_none() && wants_key(agent.provider) => {
            wrong(format!("it has no key, and {} wants one", agent.provider), format!("write agents.{name}.key_file or key_env"))
        }
        (None, None) => ok("it has no key".to_owned()),
    }
}

/// As models take it: one line of visible ASCII.
fn is_key(text: &str) -> bool {
    let text = text.trim();
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic())
}

/// At its own address.
fn wants_key(provider: Provider) -> bool {
    provider.default_url().is_some_and(|url| url.starts_with("https:"))
}

/// Whether the file can hold a key, for us and for nobody else.
fn readable(path: &Path) -> Result<(), String> {
    let (shown, failed) = (path.display(), |error: std::io::Error| format!("`{}` can't be read: {error}", path.display()));
    let metadata = fs::metadata(path).map_err(failed)?;
    // To open a FIFO would wait for a writer.
    if !metadata.is_file() {
        return Err(format!("`{shown}` is no file"));
    }
    if metadata.permissions().mode() & 0o077 != 0 {
        return Err(format!("`{shown}` can be read by others; run `chmod 600 {shown}`"));
    }
    let mut text = String::new();
    File::open(path).map_err(failed)?.take(KEY_BYTES_MAX + 1).read_to_string(&mut text).map_err(failed)?;
    if text.len() as u64 <= KEY_BYTES_MAX && is_key(&text) { Ok(()) } else { Err(format!("`{shown}` holds no key")) }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::Severity;
    use super::*;
    use nexus_core::config::{Source, load};
    use serde_json::json;

    fn mode(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn programs_and_keys_are_looked_at() {
        let place = tempfile::tempdir().unwrap();
        for (file, bits) in [("run", 0o755), ("flat", 0o644), ("good", 0o600), ("open", 0o644), ("empty", 0o600)] {
            fs::write(place.path().join(file), if file == "empty" { "\n" } else { "x" }).unwrap();
            mode(&place.path().join(file), bits);
        }
        let llm = |more: serde_json::Value| {
            let mut agent = json!({ "runner": "llm", "model": "m", "provider": "anthropic" });
            agent.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            agent
        };
        let agents = json!({
            "here": { "runner": "command", "command": "./run it" }, "named": { "runner": "acp", "command": "sh" },
            "gone": { "runner": "acp", "command": "no-such-acp" }, "flat": { "runner": "command", "command": "./flat" },
            "key": llm(json!({ "key_file": "good", "mcp": { "a": { "command": "./run" }, "b": { "command": "./nowhere" } } })),
            "open": llm(json!({ "key_file": "open" })), "empty": llm(json!({ "key_file": "empty" })),
            "unset": llm(json!({ "key_env": "NEXUS_TEST_NEVER_SET" })), "bare": llm(json!({})),
            "own": llm(json!({ "url": "http://127.0.0.1:1/" })),
        });
        let text = json!({ "agents": agents }).to_string();
        let config = load(Source { name: "nex.yaml", text: &text }, None).unwrap().config;
        let found = findings(&config, place.path());
        let of = |name: &str| found.iter().find(|one| one.place.as_deref() == Some(name)).unwrap_or_else(|| panic!("{name}: {found:?}"));
        for name in ["here", "named", "key", "own", "key/a"] {
            assert_eq!(of(name).severity, Severity::Ok, "{:?}", of(name));
        }
        for (name, told) in [
            ("gone", "no program `no-such-acp` in PATH"),
            ("flat", "can't be executed"),
            ("open", "can be read by others"),
            ("empty", "holds no key"),
            ("unset", "NEXUS_TEST_NEVER_SET"),
            ("bare", "anthropic wants one"),
            ("key/b", "no program `./nowhere`"),
        ] {
            assert!(of(name).severity == Severity::Error && of(name).what.contains(told) && of(name).fix.is_some(), "{:?}", of(name));
        }
    }

    #[test]
    fn a_daemon_without_agents_needs_nothing() {
        let found = findings(&Config::default(), Path::new("/"));
        assert!(found.iter().all(|one| one.severity == Severity::Ok) && found.len() == 2, "{found:?}");
    }
}
