//! A relay, a git server and a daemon that knows both: what preparing a project needs, all of it real.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used)]

use super::GitServer;
use crate::common::{Daemon, Ran, config, find};
use crate::relays::{Client, Key, Relay};
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

pub struct World {
    pub daemon: Daemon,
    pub relay: Relay,
    pub server: GitServer,
    pub owner: Key,
}

impl World {
    /// Whatever `change` does to the section `projects`.
    pub fn with(change: impl FnOnce(&mut Value)) -> Self {
        Self::with_all(|config| change(&mut config["projects"]))
    }

    pub fn with_all(change: impl FnOnce(&mut Value)) -> Self {
        Self::made(GitServer::start, change)
    }

    /// With a server that speaks TLS, and whatever `change` does to the section `projects`.
    pub fn with_tls(change: impl FnOnce(&mut Value)) -> Self {
        Self::made(GitServer::start_tls, |config| change(&mut config["projects"]))
    }

    fn made(serve: fn(&Path) -> GitServer, change: impl FnOnce(&mut Value)) -> Self {
        let daemon = Daemon::new();
        let relay = Relay::start(&daemon.root().join("relay"), &[]);
        let server = serve(&daemon.root().join("git"));
        let owner = Key::new(1);
        let mut config = config(json!({}));
        config["nostr"] = json!({ "relays": [relay.url()], "whitelist": [owner.npub()] });
        config["projects"] = json!({
            "path": daemon.file("projects"),
            "git": { "allow_schemes": [server.scheme()], "allow_hosts": ["127.0.0.1"], "allow_private": true, "timeout_ms": 30_000 },
        });
        change(&mut config);
        daemon.configure(&config);
        let mut world = Self { daemon, relay, server, owner };
        world.daemon.launch();
        world
    }

    pub fn new() -> Self {
        Self::with(|_| {})
    }

    pub fn publish(&self, event: &Value) {
        Client::connect(self.relay.url()).publish(event);
    }

    /// Signs and publishes; the event's id.
    pub fn tell(&self, kind: u16, tags: &[&[&str]], content: &str) -> String {
        let event = self.owner.sign(kind, tags, content);
        self.publish(&event);
        event["id"].as_str().unwrap().to_owned()
    }

    pub fn coordinate(&self, identifier: &str) -> String {
        format!("31933:{}:{identifier}", self.owner.public())
    }

    /// A project with one agent, and this repository.
    pub fn project(&self, identifier: &str, repo: Option<&str>) -> String {
        let agent = self.tell(4199, &[&["title", "Project Manager"], &["role", "manager"]], "Be brief.");
        let mut tags: Vec<Vec<&str>> = vec![vec!["d", identifier], vec!["title", identifier], vec!["agent", &agent]];
        tags.extend(repo.map(|repo| vec!["repo", repo]));
        let tags: Vec<&[&str]> = tags.iter().map(Vec::as_slice).collect();
        self.tell(31_933, &tags, "");
        self.coordinate(identifier)
    }

    pub fn init(&self, project: &str) -> Ran {
        self.daemon.nexus(&["project", "init", project, "--json"])
    }

    /// What was prepared.
    pub fn prepared(&self, project: &str) -> Value {
        let ran = self.init(project);
        assert_eq!(ran.code, Some(0), "{ran:?}");
        serde_json::from_str(&ran.stdout).unwrap()
    }

    /// Why nothing was.
    pub fn refused(&self, project: &str) -> String {
        let ran = self.init(project);
        assert_eq!(ran.code, Some(1), "{ran:?}");
        assert_eq!(self.left(), Vec::<String>::new(), "what could not be prepared left something");
        ran.stdout
    }

    /// The same in the background.
    pub fn begin(&self, project: &str) -> Child {
        let mut command = self.daemon.command(&[]);
        command.args(["project", "init", project, "--json"]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command.spawn().unwrap()
    }

    pub fn projects(&self) -> PathBuf {
        self.daemon.root().join("projects")
    }

    /// All that lies where projects do, but for directories of our own that are empty.
    pub fn left(&self) -> Vec<String> {
        let list = |path: PathBuf| {
            let entries = fs::read_dir(path).into_iter().flatten();
            entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect::<Vec<_>>()
        };
        let staged = list(self.projects().join(".staging"));
        list(self.projects()).into_iter().filter(|name| name != ".staging").chain(staged).collect()
    }

    pub fn show(&self, project: &str) -> Value {
        serde_json::from_str(&self.daemon.nexus_ok(&["project", "show", project, "--json"])).unwrap()
    }

    pub fn approvals(&self) -> Vec<Value> {
        let answer: Value = serde_json::from_str(&self.daemon.nexus_ok(&["project", "approvals", "--json"])).unwrap();
        answer["approvals"].as_array().unwrap().clone()
    }

    pub fn approve(&self, approval: &Value) {
        self.daemon.nexus_ok(&["project", "approve", &approval["id"].to_string()]);
    }
}

/// Publishes an event for a project; its id.
pub fn ask(world: &World, project: &str, text: &str) -> String {
    world.tell(1, &[&["a", project]], text)
}

/// The answers to an event.
pub fn answers(world: &World, to: &str) -> Vec<Value> {
    Client::connect(world.relay.url()).stored(json!({ "kinds": [1], "#e": [to] }))
}

pub fn answered(world: &World, to: &str) -> Value {
    find("the event is answered", || answers(world, to).pop())
}

/// How a project is, by the daemon's word.
pub fn state(world: &World, project: &str) -> Value {
    let all = world.daemon.get("/control/projects").json();
    all["projects"].as_array().unwrap().iter().find(|one| one["id"] == project).cloned().unwrap_or(Value::Null)
}

pub fn once(world: &World, project: &str, wanted: &str) -> Value {
    find(&format!("the project is {wanted}"), || Some(state(world, project)).filter(|one| one["state"] == wanted))
}

/// Whether the daemon hears each of its relays.
pub fn is_live(world: &World) -> bool {
    let relays = world.daemon.get("/control/nostr").json()["relays"].clone();
    relays.as_array().is_some_and(|relays| !relays.is_empty() && relays.iter().all(|relay| relay["state"] == "live"))
}

/// Where a project lies that was prepared.
pub fn path_of(prepared: &Value) -> PathBuf {
    PathBuf::from(prepared["path"].as_str().unwrap())
}
