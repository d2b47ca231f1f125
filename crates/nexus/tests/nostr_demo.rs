//! `nexus nostr demo`: the whole story in one command, which leaves nothing running and nothing behind.
#![allow(clippy::unwrap_used)]

mod common;
mod relays;

use common::{NEXUS, Signal, eventually, find, find_within, procfs, program, send_signal};
use relays::is_verified;
use serde_json::Value;
use std::fs::{self, File};
use std::process::{Child, Stdio};
use std::time::Duration;

/// It prepares a project and starts a process, and then stops a daemon.
const DEMO_DEADLINE: Duration = Duration::from_secs(180);

/// An empty place where the demonstration runs.
struct Place {
    directory: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        Self { directory: tempfile::tempdir().unwrap() }
    }

    fn file(&self, name: &str) -> std::path::PathBuf {
        self.directory.path().join(name)
    }

    fn start(&self, more: &[&str]) -> Child {
        let mut command = program(NEXUS);
        command.args(["nostr", "demo", "--json"]).args(more).env("TMPDIR", self.directory.path()).env("HOME", self.directory.path());
        for variable in ["NEXUS_CONFIG", "NEXUS_STATE_DIR"] {
            command.env_remove(variable);
        }
        let (stdout, stderr) = (File::create(self.file("stdout")).unwrap(), File::create(self.file("stderr")).unwrap());
        command.stdin(Stdio::null()).stdout(stdout).stderr(stderr).spawn().unwrap()
    }

    fn output(&self, name: &str) -> String {
        fs::read_to_string(self.file(name)).unwrap_or_default()
    }

    /// One demonstration, and what it says.
    fn demo(&self, more: &[&str]) -> Value {
        let mut child = self.start(more);
        let status = find_within(DEMO_DEADLINE, "the demonstration ends", || child.try_wait().unwrap());
        assert!(status.success(), "{status}: {}{}", self.output("stdout"), self.output("stderr"));
        serde_json::from_str(&self.output("stdout")).unwrap()
    }

    fn nothing_runs(&self) {
        let root = self.directory.path().canonicalize().unwrap();
        find("nothing of this place runs", || procfs::using(&root).is_empty().then_some(()));
    }
}

#[test]
fn an_agent_answers_and_nothing_is_left() {
    let place = Place::new();
    let told = place.demo(&["--say", "What is the answer?"]);
    let (question, answer) = (&told["question"], &told["answer"]);
    assert!(is_verified(question) && is_verified(answer), "{told}");
    assert_ne!(question["pubkey"], answer["pubkey"], "the agent has a key of its own");
    assert_eq!(question["content"], "What is the answer?");
    assert!(answer["content"].as_str().unwrap().contains("What is the answer?"), "the agent says what it was told: {answer}");
    let names = answer["tags"].as_array().unwrap().iter().filter(|tag| tag[0] == "e").map(|tag| &tag[1]);
    assert!(names.clone().any(|id| *id == question["id"]), "{answer}");
    place.nothing_runs();
    let left: Vec<String> =
        fs::read_dir(place.directory.path()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    assert!(!left.iter().any(|name| name.starts_with("nexus-demo-")), "{left:?}");
}

#[test]
fn a_home_is_gone_on_with() {
    let place = Place::new();
    let home = place.file("home");
    let home = home.to_str().unwrap();
    let first = place.demo(&["--home", home]);
    let second = place.demo(&["--home", home, "--say", "again"]);
    assert_eq!(first["user"], second["user"]);
    assert_eq!(first["answer"]["pubkey"], second["answer"]["pubkey"], "the same agent");
    assert_ne!(first["answer"]["id"], second["answer"]["id"]);
    place.nothing_runs();
}

#[test]
fn a_killed_demonstration_leaves_nothing_running() {
    let place = Place::new();
    let mut child = place.start(&[]);
    let root = place.directory.path().canonicalize().unwrap();
    eventually("its daemon runs", || procfs::using(&root).iter().any(|process| process.argv.contains("daemon start")));
    child.kill().unwrap();
    child.wait().unwrap();
    place.nothing_runs();
}

#[test]
fn an_interrupted_demonstration_ends_what_it_started() {
    let place = Place::new();
    let mut child = place.start(&[]);
    let root = place.directory.path().canonicalize().unwrap();
    eventually("its daemon runs", || procfs::using(&root).iter().any(|process| process.argv.contains("daemon start")));
    send_signal(i32::try_from(child.id()).unwrap(), Signal::INT);
    let status = find_within(DEMO_DEADLINE, "the demonstration ends", || child.try_wait().unwrap());
    assert_eq!(status.code(), Some(1), "{}", place.output("stderr"));
    place.nothing_runs();
}
