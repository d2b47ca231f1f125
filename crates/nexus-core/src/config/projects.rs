//! The section `projects`: where the projects lie that agents work on, what runs them, and which
//! repositories may be cloned. What a project is, its definition says; that is not known here.

use super::adapter::{environment, split_command, variable_names};
use super::decode::{Decode, RUN_MS_MAX, WAIT_MS_MAX, nonempty, number, optional_text};
use super::node::Node;
use super::problem::{Faults, quoted};
use std::collections::BTreeMap;

/// Most projects that may be allowed to run at one time, and be kept running.
const RUNNING_MAX: u32 = 1024;
/// Most preparations that may be allowed at one time.
const PREPARATIONS_MAX: u32 = 64;
/// Shortest time between two questions whether a process is alive, in milliseconds.
const PING_MS_MIN: u64 = 50;
/// Most crashes that may be wanted before a project is quarantined.
const CRASHES_MAX: u32 = 1000;
/// Largest repository that may be allowed, in MiB: one TiB.
const REPOSITORY_MB_MAX: u64 = 1024 * 1024;
/// Most commits that a shallow clone may have.
const DEPTH_MAX: u32 = 1_000_000;
/// The transports that can be allowed; each but `ssh` is one of HTTP.
pub const GIT_SCHEMES: &[&str] = &["https", "ssh", "http"];

words! {
    /// What a project's process speaks on its stdin and stdout.
    ProjectProtocol {
        /// One JSON per line.
        #[default]
        Jsonl = "jsonl",
        /// Nothing: it is any program, which finds its events itself.
        None = "none",
    }
}

section! {
    /// Projects: directories in which agents work, activated by events of Nostr.
    Projects check program {
        /// Directory that holds the projects, relative to the configuration file; `~` is the home directory.
        path: String = "~/projects".to_owned() => nonempty;
        /// The program that runs a project, split as a shell would and never run by one; left out, this
        /// binary's own `project run`.
        command: Option<String> = None => optional_text;
        /// What it speaks: `jsonl`, or `none` for a program that finds its events itself.
        protocol: ProjectProtocol = ProjectProtocol::default();
        /// Projects that may run at one time; left out, one for each 512 MiB of memory, at most 64.
        max_running: Option<u32> = None => processes;
        /// So many of the projects used last are kept prepared and running.
        warm: u32 [0..=RUNNING_MAX] = 0;
        /// Projects that may be prepared at one time.
        prepare_concurrent: u32 [1..=PREPARATIONS_MAX] = 2;
        /// Milliseconds without work after which a project is stopped; 0 for never.
        idle_stop_ms: u64 [0..=WAIT_MS_MAX] = 1_800_000;
        /// Milliseconds that a project's process may take to say that it is ready.
        ready_timeout_ms: u64 [1..=RUN_MS_MAX] = 30_000;
        /// Milliseconds between two questions whether it is alive; three without an answer restart it.
        ping_ms: u64 [PING_MS_MIN..=RUN_MS_MAX] = 30_000;
        /// How its process is restarted.
        restart: ProjectRestart = ProjectRestart::default();
        /// How repositories are cloned.
        git: Git = Git::default();
        /// Whether what the definitions of whitelisted authors install is approved by that alone.
        auto_approve_authors: bool = false;
        /// What differs for single projects, by coordinate: kind:pubkey:identifier.
        overrides: BTreeMap<String, ProjectOverride> = BTreeMap::new() => coordinates;
    }
    derived {
        /// `command` split into the program and its arguments; empty without one.
        argv: Vec<String> = Vec::new();
    }
}

section! {
    /// How repositories are cloned.
    Git {
        /// The git program.
        program: String = "git".to_owned() => nonempty;
        /// Transports that may be used, of https, ssh and http.
        allow_schemes: Vec<String> = vec!["https".to_owned(), "ssh".to_owned()] => schemes;
        /// Hosts that may be cloned from: `host`, `host:port`, `*.domain`, or `*` for any. A host that is
        /// named counts as approved; one that only a `*` lets in waits for an approval.
        allow_hosts: Vec<String> = vec!["*".to_owned()] => hosts;
        /// Whether addresses may be used that are of this machine or a private network.
        allow_private: bool = false;
        /// Commits that are cloned; left out, all.
        depth: Option<u32> = None => commits;
        /// Largest repository, in MiB, with its working tree.
        max_mb: u64 [1..=REPOSITORY_MB_MAX] = 1024;
        /// Milliseconds that one command of git may take.
        timeout_ms: u64 [1..=RUN_MS_MAX] = 600_000;
        /// File with the certificates of authorities that are trusted instead of the system's.
        ca_file: Option<String> = None => optional_text;
    }
}

section! {
    /// What differs for one project.
    ProjectOverride check override_program {
        /// The program that runs it.
        command: Option<String> = None => optional_text;
        /// What it speaks; left out, as for all.
        protocol: Option<ProjectProtocol> = None;
        /// Environment variables to set for it. Secrets do not belong here: see `nexus project secret`.
        env: BTreeMap<String, String> = BTreeMap::new() => environment;
        /// Names of the daemon's own environment variables to pass on.
        pass_env: Vec<String> = Vec::new() => variable_names;
        /// How its process is restarted; left out, as for all.
        restart: Option<ProjectRestart> = None;
        /// The agent of `agents` that answers in it; left out, the default one.
        agent: Option<String> = None => optional_text;
        /// Milliseconds without work after which it is stopped; 0 for never.
        idle_stop_ms: Option<u64> = None => optional_wait;
    }
    derived {
        /// `command` split into the program and its arguments; empty without one.
        argv: Vec<String> = Vec::new();
    }
}

section! {
    /// How the process of a project is restarted.
    ProjectRestart {
        /// Delay before the first restart, in milliseconds; it doubles from one to the next.
        backoff_base_ms: u64 [1..=WAIT_MS_MAX] = 1000;
        /// Longest delay, in milliseconds.
        backoff_max_ms: u64 [1..=WAIT_MS_MAX] = 60_000;
        /// Milliseconds of running after which the delay begins anew.
        reset_after_ms: u64 [0..=WAIT_MS_MAX] = 60_000;
        /// Crashes within `window_ms` after which it is quarantined.
        max_crashes: u32 [1..=CRASHES_MAX] = 5;
        /// The time in which crashes are counted, in milliseconds.
        window_ms: u64 [1..=WAIT_MS_MAX] = 600_000;
    }
}

fn program(mut projects: Projects, node: &Node, faults: &mut Faults) -> Projects {
    projects.argv = argv(projects.command.as_deref(), node, faults);
    projects
}

fn override_program(mut one: ProjectOverride, node: &Node, faults: &mut Faults) -> ProjectOverride {
    one.argv = argv(one.command.as_deref(), node, faults);
    one
}

fn argv(command: Option<&str>, node: &Node, faults: &mut Faults) -> Vec<String> {
    let (Some(command), Some(at)) = (command, node.get("command")) else { return Vec::new() };
    split_command(command, at, faults).unwrap_or_default()
}

fn processes(node: &Node, name: &str, faults: &mut Faults) -> Option<Option<u32>> {
    number(node, name, &(1..=RUNNING_MAX), faults).map(Some)
}

fn commits(node: &Node, name: &str, faults: &mut Faults) -> Option<Option<u32>> {
    number(node, name, &(1..=DEPTH_MAX), faults).map(Some)
}

fn optional_wait(node: &Node, name: &str, faults: &mut Faults) -> Option<Option<u64>> {
    number(node, name, &(0..=WAIT_MS_MAX), faults).map(Some)
}

fn schemes(node: &Node, name: &str, faults: &mut Faults) -> Option<Vec<String>> {
    let schemes = Vec::<String>::decode(node, name, faults)?;
    for item in node.items() {
        if let Some(text) = item.text().filter(|text| !GIT_SCHEMES.contains(text)) {
            let known = GIT_SCHEMES.join(", ");
            faults.error(item.at, format!("`{name}` {} can't be allowed; there are {known}", quoted(text)));
        }
    }
    Some(schemes)
}

fn hosts(node: &Node, name: &str, faults: &mut Faults) -> Option<Vec<String>> {
    let hosts = Vec::<String>::decode(node, name, faults)?;
    for item in node.items() {
        if let Some(text) = item.text().filter(|text| !is_host(text)) {
            let text = quoted(text);
            faults.error(item.at, format!("`{name}` {text} is no host; write host, host:port, *.domain or *, in lower case"));
        }
    }
    Some(hosts)
}

/// A name or address, after a `*.` and before a `:port` if need be. An address of version 6 is in brackets.
fn is_host(text: &str) -> bool {
    if text == "*" {
        return true;
    }
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
        Some(_) | None => (text, None),
    };
    let host = host.strip_prefix("*.").unwrap_or(host);
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || ".-".contains(c);
    let is_v6 =
        host.strip_prefix('[').and_then(|inner| inner.strip_suffix(']')).is_some_and(|inner| inner.parse::<std::net::Ipv6Addr>().is_ok());
    let is_name = !host.is_empty() && host.chars().all(allowed);
    (is_name || is_v6) && port.is_none_or(|port| port.parse::<u16>().is_ok())
}

/// Reads what differs for single projects. A key is split into three parts: an identifier may have colons.
fn coordinates(node: &Node, name: &str, faults: &mut Faults) -> Option<BTreeMap<String, ProjectOverride>> {
    for (key, field) in node.fields() {
        if !is_coordinate(key) {
            let rule = "a project is named kind:pubkey:identifier, with a public key of 64 hexadecimal digits, in quotes";
            faults.error(field.key_at, format!("{} names no project; {rule}", quoted(key)));
        }
    }
    BTreeMap::decode(node, name, faults)
}

fn is_coordinate(text: &str) -> bool {
    let mut parts = text.splitn(3, ':');
    let (kind, key, identifier) = (parts.next(), parts.next(), parts.next());
    let is_hex = |key: &str| key.len() == 64 && key.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte));
    kind.is_some_and(|kind| kind.parse::<u16>().is_ok()) && key.is_some_and(is_hex) && identifier.is_some()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::tests::{FULL_YAML, errors, loaded};
    use super::*;

    #[test]
    fn every_key_is_read() {
        let projects = loaded(FULL_YAML).config.projects;
        assert_eq!(projects.argv, ["tenex", "project", "run"]);
        assert_eq!((projects.protocol, projects.max_running, projects.warm), (ProjectProtocol::None, Some(9), 1));
        assert_eq!((projects.git.depth, projects.git.max_mb, projects.git.allow_private), (Some(1), 2, true));
        let (coordinate, one) = projects.overrides.first_key_value().unwrap();
        assert!(coordinate.ends_with(":a:b"), "{coordinate}");
        assert_eq!((one.agent.as_deref(), one.idle_stop_ms), (Some("smart"), Some(0)));
        assert_eq!((one.restart.as_ref().unwrap().max_crashes, one.argv.len()), (4, 2));
    }

    #[test]
    fn what_is_wrong_is_told_where_it_is_written() {
        for (projects, expected) in [
            ("{git: {allow_schemes: [https, 'ext']}}", "`allow_schemes` `ext` can't be allowed; there are https, ssh, http"),
            ("{git: {allow_hosts: ['https://x']}}", "`allow_hosts` `https://x` is no host"),
            ("{git: {allow_hosts: ['x:70000']}}", "is no host"),
            ("{git: {allow_hosts: ['[::1']}}", "is no host"),
            ("{git: {depth: 0}}", "`depth` must be a whole number from 1"),
            ("{max_running: 0}", "`max_running` must be a whole number from 1"),
            ("{protocol: grpc}", "`protocol` must be one of jsonl, none"),
            ("{command: 'a \"b'}", "has an open quote"),
            ("{overrides: {demo: {}}}", "`demo` names no project"),
        ] {
            let found = errors(&format!("projects: {projects}"));
            assert_eq!(found.len(), 1, "{projects}: {found:?}");
            assert!(found[0].starts_with("1:") && found[0].contains(expected), "{found:?}");
        }
    }

    #[test]
    fn hosts_have_ports_and_brackets() {
        for good in ["*", "example.org", "*.example.org", "127.0.0.1:8080", "[::1]", "[::1]:80"] {
            assert!(is_host(good), "{good}");
        }
        for bad in ["", "*.", "EXAMPLE.org", "a b", "user@host", "a/b", "::1", "host:", "-x y"] {
            assert!(!is_host(bad), "{bad}");
        }
    }

    #[test]
    fn an_agent_of_a_project_must_exist() {
        let key = format!("31933:{}:d", "a".repeat(64));
        let found = errors(&format!("projects: {{overrides: {{'{key}': {{agent: nobody}}}}}}"));
        assert!(found[0].contains("`nobody` is not an agent"), "{found:?}");
    }
}
