//! Whether the agents of the configuration have what they need: their programs with their directories, their keys and system
//! prompts, and the programs of their MCP servers. It starts none of them and asks no model; whether a key is right, only its
//! endpoint knows.

use super::{Check, Finding};
use crate::agent::llm::{KEY_BYTES_MAX, SYSTEM_PROMPT_BYTES_MAX};
use crate::environment;
use nexus_core::config::{Agent, Config, Provider, Runner};
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// Where a program is looked for whose environment names no PATH.
const DEFAULT_PATH: &str = "/usr/local/bin:/usr/bin:/bin";

/// Said where only the environment of a daemon could tell.
const OTHER_ENVIRONMENT: &str = "; a daemon that is started elsewhere, as by a service, may have another environment";

/// Whose environment is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Looker {
    /// That of the running daemon: what isn't there is missing.
    Daemon,
    /// That of a command while no daemon runs: the next one may be started with another.
    Command,
}

/// Why a program isn't found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct NoProgram {
    why: String,
    /// Another `PATH` may lead to one.
    is_by_path: bool,
}

/// A line for each program and each key.
pub fn findings(config: &Config, workspace: &Path, looker: Looker) -> Vec<Finding> {
    let mut found: Vec<Finding> = config.agents.named.iter().flat_map(|(name, agent)| needs(name, agent, workspace, looker)).collect();
    if found.is_empty() {
        found.push(Finding::ok(Check::Agents, "none needs a program or a key"));
    }
    let servers = config.agents.named.iter().flat_map(|(name, agent)| agent.mcp.iter().map(move |(server, its)| (name, server, its)));
    let mut programs: Vec<Finding> = servers
        .map(|(name, server, its)| {
            let key = format!("agents.{name}.mcp.{server}.command");
            let env = environment::with(&its.env, &its.pass_env);
            let looker = if its.env.contains_key("PATH") { Looker::Daemon } else { looker };
            judge(Check::Mcp, &format!("{name}/{server}"), &key, program(&its.argv, &env, workspace), looker)
        })
        .collect();
    if programs.is_empty() {
        programs.push(Finding::ok(Check::Mcp, "no server is configured"));
    }
    found.append(&mut programs);
    found
}

fn needs(name: &str, agent: &Agent, workspace: &Path, looker: Looker) -> Vec<Finding> {
    match agent.runner {
        Runner::Echo => Vec::new(),
        Runner::Command | Runner::Acp => vec![process(name, agent, workspace, looker)],
        Runner::Llm => std::iter::once(key(name, agent, workspace, looker)).chain(prompt(name, agent, workspace)).collect(),
    }
}

/// The program of an agent, and the directory in which it is started.
fn process(name: &str, agent: &Agent, workspace: &Path, looker: Looker) -> Finding {
    let cwd = agent.cwd.as_ref().map_or_else(|| workspace.to_owned(), |cwd| workspace.join(cwd));
    let unusable = match fs::metadata(&cwd) {
        Ok(found) if found.is_dir() => None,
        Ok(_) => Some(format!("`{}`, in which it is to run, is no directory", cwd.display())),
        Err(error) => Some(format!("`{}`, in which it is to run, can't be used: {error}", cwd.display())),
    };
    if let Some(why) = unusable {
        return Finding::error(Check::Agents, why, format!("make the directory, or correct agents.{name}.cwd")).at_place(name);
    }
    let env = environment::with(&agent.env, &agent.pass_env);
    let looker = if agent.env.contains_key("PATH") { Looker::Daemon } else { looker };
    judge(Check::Agents, name, &format!("agents.{name}.command"), program(&agent.argv, &env, &cwd), looker)
}

/// What is wrong with the system prompt, without which no turn begins.
fn prompt(name: &str, agent: &Agent, workspace: &Path) -> Option<Finding> {
    let path = workspace.join(agent.system_prompt_file.as_ref()?);
    let why = text(&path, SYSTEM_PROMPT_BYTES_MAX).err()?;
    Some(Finding::error(Check::Agents, why, format!("correct agents.{name}.system_prompt_file, or the file")).at_place(name))
}

/// What was found of the program that `key` names.
pub(super) fn judge(check: Check, place: &str, key: &str, found: Result<PathBuf, NoProgram>, looker: Looker) -> Finding {
    let fix = format!("install the program, or correct {key}");
    let finding = match found {
        Ok(path) => Finding::ok(check, format!("its program is `{}`", path.display())),
        Err(NoProgram { why, is_by_path: true }) if looker == Looker::Command => {
            Finding::warning(check, format!("{why}{OTHER_ENVIRONMENT}"), fix)
        }
        Err(NoProgram { why, .. }) => Finding::error(check, why, fix),
    };
    finding.at_place(place)
}

/// The program that would be started, as the keeper looks for it: by its path, or by its name in PATH.
///
/// # Errors
/// That there is none, or none that can be executed.
pub(super) fn program(argv: &[String], env: &[(String, String)], cwd: &Path) -> Result<PathBuf, NoProgram> {
    let Some(name) = argv.first().map(String::as_str).filter(|name| !name.is_empty()) else {
        return Err(NoProgram { why: "no program is named".to_owned(), is_by_path: false });
    };
    let path = env.iter().find(|(key, _)| key == "PATH").map_or(DEFAULT_PATH, |(_, path)| path.as_str());
    let is_by_path = !name.contains('/');
    let candidates: Vec<PathBuf> = match is_by_path {
        true => path.split(':').map(|directory| cwd.join(directory).join(name)).collect(),
        false => vec![cwd.join(name)],
    };
    let files: Vec<PathBuf> = candidates.into_iter().filter(|path| path.is_file()).collect();
    let is_executable = |path: &&PathBuf| fs::metadata(path).is_ok_and(|file| file.permissions().mode() & 0o111 != 0);
    let why = match (files.iter().find(is_executable), files.first()) {
        (Some(path), _) => return Ok(path.clone()),
        (None, Some(path)) => format!("`{}` can't be executed", path.display()),
        (None, None) if is_by_path => format!("there is no program `{name}` in PATH ({path})"),
        (None, None) => format!("there is no program `{name}`"),
    };
    Err(NoProgram { why, is_by_path })
}

fn key(name: &str, agent: &Agent, workspace: &Path, looker: Looker) -> Finding {
    let ok = |what: String| Finding::ok(Check::Agents, what).at_place(name);
    let wrong = |what: String, fix: String| Finding::error(Check::Agents, what, fix).at_place(name);
    match (&agent.key_env, &agent.key_file) {
        (Some(variable), _) if std::env::var(variable).is_ok_and(|value| is_key(&value)) => {
            ok(format!("its key is in the environment variable {variable}"))
        }
        (Some(variable), _) => {
            let fix = format!("set {variable} where the daemon is started, or correct agents.{name}.key_env");
            let what = format!("the environment variable {variable} is not set, or holds no key");
            match looker {
                Looker::Daemon => wrong(what, fix),
                Looker::Command => Finding::warning(Check::Agents, what + OTHER_ENVIRONMENT, fix).at_place(name),
            }
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
    let shown = path.display();
    if fs::metadata(path).is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o077 != 0) {
        return Err(format!("`{shown}` can be read by others; run `chmod 600 {shown}`"));
    }
    if is_key(&text(path, KEY_BYTES_MAX)?) { Ok(()) } else { Err(format!("`{shown}` holds no key")) }
}

/// A whole file, as turns read it.
fn text(path: &Path, bytes_max: u64) -> Result<String, String> {
    let (shown, failed) = (path.display(), |error: std::io::Error| format!("`{}` can't be read: {error}", path.display()));
    // To open a FIFO would wait for a writer.
    if !fs::metadata(path).map_err(failed)?.is_file() {
        return Err(format!("`{shown}` is no file"));
    }
    let mut text = String::new();
    File::open(path).map_err(failed)?.take(bytes_max + 1).read_to_string(&mut text).map_err(failed)?;
    if text.len() as u64 > bytes_max {
        return Err(format!("`{shown}` is longer than {bytes_max} bytes"));
    }
    Ok(text)
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
            "away": { "runner": "command", "command": "sh", "cwd": "no-such-place" },
            "astray": { "runner": "acp", "command": "sh", "cwd": "flat" },
            "placed": { "runner": "command", "command": "../run", "cwd": "inner" },
            "mute": llm(json!({ "url": "http://127.0.0.1:1/", "system_prompt_file": "no-such-prompt" })),
            "prompted": llm(json!({ "url": "http://127.0.0.1:1/", "system_prompt_file": "flat" })),
            "its-path": { "runner": "command", "command": "no-such-program", "env": { "PATH": "/nowhere" } },
        });
        fs::create_dir(place.path().join("inner")).unwrap();
        let text = json!({ "agents": agents }).to_string();
        let config = load(Source { name: "nex.yaml", text: &text }, None).unwrap().config;
        let (found, seen) = (findings(&config, place.path(), Looker::Daemon), findings(&config, place.path(), Looker::Command));
        // The worst of what is said of it.
        let worst = |found: &[Finding], name: &str| {
            let all = found.iter().filter(|one| one.place.as_deref() == Some(name)).cloned();
            all.max_by_key(|one| one.severity).unwrap_or_else(|| panic!("{name}: {found:?}"))
        };
        let of = |name: &str| worst(&found, name);
        for name in ["here", "named", "key", "own", "key/a", "placed", "prompted"] {
            assert_eq!(of(name).severity, Severity::Ok, "{:?}", of(name));
        }
        for (name, severity) in [
            ("gone", Severity::Warning),
            ("unset", Severity::Warning),
            ("flat", Severity::Error),
            ("open", Severity::Error),
            ("key/b", Severity::Error),
            ("its-path", Severity::Error),
        ] {
            let one = worst(&seen, name);
            assert!(one.severity == severity && one.fix.is_some(), "{one:?}");
            assert_eq!(one.what.contains("another environment"), severity == Severity::Warning, "{one:?}");
        }
        for (name, told) in [
            ("gone", "no program `no-such-acp` in PATH"),
            ("flat", "can't be executed"),
            ("open", "can be read by others"),
            ("empty", "holds no key"),
            ("unset", "NEXUS_TEST_NEVER_SET"),
            ("bare", "anthropic wants one"),
            ("key/b", "no program `./nowhere`"),
            ("away", "no-such-place`, in which it is to run, can't be used"),
            ("astray", "is no directory"),
            ("mute", "no-such-prompt` can't be read"),
            ("its-path", "in PATH (/nowhere)"),
        ] {
            assert!(of(name).severity == Severity::Error && of(name).what.contains(told) && of(name).fix.is_some(), "{:?}", of(name));
        }
    }

    #[test]
    fn a_daemon_without_agents_needs_nothing() {
        let found = findings(&Config::default(), Path::new("/"), Looker::Daemon);
        assert!(found.iter().all(|one| one.severity == Severity::Ok) && found.len() == 2, "{found:?}");
    }
}
