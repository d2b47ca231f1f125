//! A relay, a daemon and the fake process of a project: what projects at work need, all of it real.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used)]

use crate::common::{Daemon, NEXUS, config, find, json_lines, lines, replace};
use crate::relays::{Client, Key, Relay, id};
use serde_json::{Value, json};
use std::fs;
use std::path::PathBuf;

fn fake_project() -> String {
    let path = PathBuf::from(NEXUS).with_file_name("examples").join("fake-project");
    assert!(path.exists(), "{} is missing: cargo build --example fake-project", path.display());
    shell_words::quote(&path.to_string_lossy()).into_owned()
}

/// A relay, a daemon that listens to it, and somebody whose projects it runs.
pub struct World {
    pub relay: Relay,
    pub daemon: Daemon,
    pub owner: Key,
}

impl World {
    /// With the fake process, which behaves as `mode` says; `more` are keys of `projects`.
    pub fn new(mode: &str, more: Value) -> Self {
        let daemon = Daemon::new();
        let place = daemon.root().join("fake");
        fs::create_dir(&place).unwrap();
        let command = format!("{} {}", fake_project(), shell_words::quote(&place.to_string_lossy()));
        let mut projects = json!({ "command": command, "restart": { "backoff_base_ms": 1, "backoff_max_ms": 20 } });
        projects.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let world = Self::with(daemon, projects);
        world.set_mode(mode);
        world
    }

    /// With these `projects`, and not started yet.
    pub fn with(daemon: Daemon, mut projects: Value) -> Self {
        let relay = Relay::start(&daemon.root().join("relay"), &[]);
        let owner = Key::new(7);
        projects["path"] = daemon.file("projects").into();
        let mut wanted = config(json!({}));
        wanted["nostr"] = json!({ "relays": [relay.url()], "whitelist": [owner.npub()] });
        wanted["projects"] = projects;
        daemon.configure(&wanted);
        Self { relay, daemon, owner }
    }

    pub fn fake(&self, file: &str) -> PathBuf {
        self.daemon.root().join("fake").join(file)
    }

    pub fn set_mode(&self, mode: &str) {
        replace(&self.fake("mode"), mode);
    }

    /// How often the fake process was started.
    pub fn starts(&self) -> usize {
        lines(self.fake("starts")).len()
    }

    /// The events that it got, in order.
    pub fn handed(&self) -> Vec<Value> {
        json_lines(self.fake("log")).into_iter().filter(|frame| frame["type"] == "event").collect()
    }

    pub fn client(&self) -> Client {
        Client::connect(self.relay.url())
    }

    /// Publishes the definition of a project with two agents, of which the first is the manager; its coordinate.
    pub fn define(&self, identifier: &str) -> String {
        self.define_by(&self.owner, identifier)
    }

    /// The same of another author's.
    pub fn define_by(&self, author: &Key, identifier: &str) -> String {
        let mut client = self.client();
        let agents: Vec<Value> = ["Planner", "Builder"]
            .into_iter()
            .map(|name| author.sign(4199, &[&["title", name], &["role", "helper"]], "Be brief."))
            .collect();
        agents.iter().for_each(|agent| client.published(agent));
        let tags: [&[&str]; 4] = [&["d", identifier], &["title", identifier], &["agent", id(&agents[0])], &["agent", id(&agents[1])]];
        client.published(&author.sign(31_933, &tags, "A project"));
        format!("31933:{}:{identifier}", author.public())
    }

    /// Publishes an event for a project; its id.
    pub fn ask(&self, project: &str, text: &str) -> String {
        self.publish(&self.owner.sign(1, &[&["a", project]], text))
    }

    pub fn publish(&self, event: &Value) -> String {
        self.client().published(event);
        id(event).to_owned()
    }

    /// The answers to an event.
    pub fn answers(&self, to: &str) -> Vec<Value> {
        self.client().stored(json!({ "kinds": [1], "#e": [to] }))
    }

    pub fn answer(&self, to: &str) -> Value {
        find("the event is answered", || self.answers(to).pop())
    }

    /// How a project is, by the daemon's word.
    pub fn project(&self, coordinate: &str) -> Value {
        let all = self.daemon.get("/control/projects").json();
        all["projects"].as_array().unwrap().iter().find(|one| one["id"] == coordinate).cloned().unwrap_or(Value::Null)
    }

    pub fn once(&self, coordinate: &str, state: &str) -> Value {
        find(&format!("the project is {state}"), || Some(self.project(coordinate)).filter(|one| one["state"] == state))
    }
}

/// A running daemon, and a project that it has never seen.
pub fn started(mode: &str, more: Value) -> (World, String) {
    let mut world = World::new(mode, more);
    world.daemon.launch();
    let project = world.define("demo");
    (world, project)
}
