//! People at a terminal: the questions of `nexus project setup` and the lines of `nexus chat`, answered, mistyped, given up
//! and interrupted. The terminal, the command and the daemon are real.
#![allow(clippy::unwrap_used)]

mod common;

use common::terminal::{CTRL_C, CTRL_D, Terminal};
use common::{Daemon, config, eventually};
use serde_json::json;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

const PROVIDER: &str = "Provider (";
const MODEL: &str = "Model: ";
const ADDRESS: &str = "Address of the interface: ";
const VARIABLE: &str = "Environment variable that has the key";
const KEY: &str = "(not shown): ";
const PROMPT: &str = "you> ";

fn overlay(daemon: &Daemon) -> PathBuf {
    daemon.workspace().join("state/overlay.yaml")
}

fn keys(daemon: &Daemon) -> PathBuf {
    daemon.workspace().join("state/credentials/agents")
}

#[test]
fn answers_become_the_configuration_and_wrong_ones_are_asked_again_with_why() {
    let daemon = Daemon::start(&config(json!({})));
    let mut terminal = Terminal::start(&daemon, &["project", "setup"]);
    for (question, answer, wrong) in [
        (PROVIDER, "antropic", Some("`antropic` is no provider; there are openai, ")),
        (PROVIDER, "", Some("an answer is needed")),
        (PROVIDER, "openai", None),
        (MODEL, "", Some("an answer is needed")),
        (MODEL, "m-1", None),
        (ADDRESS, "127.0.0.1/v1", Some("is not a URL; write http://host/path")),
        (ADDRESS, "http://127.0.0.1:9/v1", None),
        (VARIABLE, "no-name", Some("that is no name of a variable")),
        (VARIABLE, "", None),
        (KEY, "", Some("the value is empty")),
        (KEY, "hush-hush", None),
    ] {
        terminal.wait_for(question);
        terminal.type_in(&format!("{answer}\r"));
        wrong.into_iter().for_each(|why| terminal.wait_for(why));
    }
    terminal.wait_for("agent projects does the turns of all projects that have no other");
    terminal.wait_for("configuration reloaded:");
    assert_eq!(terminal.wait(), Some(0));
    assert!(!terminal.shown().contains("hush"), "{}", terminal.shown());

    let written = fs::read_to_string(overlay(&daemon)).unwrap();
    for part in [r#""default": "projects""#, r#""model": "m-1""#, r#""url": "http://127.0.0.1:9/v1""#, r#""key_file": "#] {
        assert!(written.contains(part), "no {part} in {written}");
    }
    assert!(!written.contains("hush"), "{written}");
    let key = keys(&daemon).join("projects.key");
    assert_eq!(fs::read_to_string(&key).unwrap(), "hush-hush");
    assert_eq!(fs::metadata(&key).unwrap().permissions().mode() & 0o777, 0o600);
}

#[test]
fn who_leaves_amid_the_questions_has_changed_nothing() {
    let daemon = Daemon::start(&config(json!({})));
    let steps = [(PROVIDER, "anthropic\r"), (MODEL, "m\r"), (VARIABLE, "\r"), (KEY, "half a key")];
    for leave in [CTRL_C, CTRL_D] {
        for answered in 0..=steps.len() {
            let mut terminal = Terminal::start(&daemon, &["project", "setup"]);
            for (question, answer) in &steps[..answered] {
                terminal.wait_for(question);
                terminal.type_in(answer);
            }
            if let Some((question, _)) = steps.get(answered) {
                terminal.wait_for(question);
            }
            terminal.type_in(leave);
            terminal.wait_for("error: nothing was ");
            assert_eq!(terminal.wait(), Some(1), "{}", terminal.shown());
            assert!(!terminal.shown().contains("half a key"), "{}", terminal.shown());
        }
    }
    assert!(!overlay(&daemon).exists() && !keys(&daemon).exists());
}

#[test]
fn a_key_for_a_configuration_that_does_not_load_is_not_stored() {
    let daemon = Daemon::new();
    let mut wanted = config(json!({}));
    wanted["agents"] = json!({ "projects": { "runner": "llm", "provider": "anthropic", "model": "m", "key_env": "SOME_KEY" } });
    daemon.configure(&wanted);
    let args = ["project", "setup", "--provider", "anthropic", "--model", "m", "--key-stdin"];
    let ran = daemon.nexus_told("hush-hush\n", &args);
    assert!(ran.code == Some(78) && ran.stderr.contains("keep one"), "{ran:?}");
    assert!(!overlay(&daemon).exists() && !keys(&daemon).exists());
}

#[test]
fn a_line_of_a_chat_is_answered_and_ctrl_d_leaves() {
    let daemon = Daemon::start(&config(json!({})));
    let mut terminal = Terminal::start(&daemon, &["chat"]);
    for (line, answer) in [("hello", "echo> hello"), ("/nothing", "there is no /nothing"), ("again", "echo> again")] {
        terminal.wait_for(PROMPT);
        terminal.type_in(&format!("{line}\r"));
        terminal.wait_for(answer);
    }
    terminal.wait_for(PROMPT);
    // It takes a line back, and ends nothing.
    terminal.type_in(CTRL_C);
    terminal.wait_for(PROMPT);
    terminal.type_in(CTRL_D);
    assert_eq!(terminal.wait(), Some(0), "{}", terminal.shown());
    let history = daemon.state("chat_history");
    assert!(fs::read_to_string(&history).unwrap().contains("again"));
    assert_eq!(fs::metadata(&history).unwrap().permissions().mode() & 0o777, 0o600);
}

#[test]
fn ctrl_c_stops_waiting_for_an_answer_and_the_chat_goes_on() {
    let mut wanted = config(json!({}));
    let command = "sh -c 'cat > /dev/null; exec sleep 1000'";
    wanted["agents"] = json!({ "default": "slow", "slow": { "runner": "command", "command": command } });
    let daemon = Daemon::start(&wanted);
    let mut terminal = Terminal::start(&daemon, &["chat"]);
    terminal.wait_for(PROMPT);
    terminal.type_in("hello\r");
    eventually("it is being answered", || daemon.status()["pipeline"]["active_requests"] == 1);
    terminal.type_in(CTRL_C);
    terminal.wait_for("stopped waiting; `nexus trace ");
    terminal.wait_for(PROMPT);
    terminal.type_in(CTRL_D);
    assert_eq!(terminal.wait(), Some(0), "{}", terminal.shown());
}
