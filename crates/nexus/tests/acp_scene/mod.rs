//! A daemon with an ACP agent, and how a test talks to it. The agent is `testing/fake_acp_agent.rs`.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used)]

use crate::common::{Ask, Body, Daemon, NEXUS, config, json_lines};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader};
use std::path::PathBuf;

/// Characters of a question's code.
const CODE_CHARS: usize = 7;

pub fn command() -> String {
    let path = PathBuf::from(NEXUS).with_file_name("examples").join("fake-acp-agent");
    assert!(path.exists(), "{} is missing: cargo build --example fake-acp-agent", path.display());
    shell_words::quote(&path.to_string_lossy()).into_owned()
}

/// The log of the fake agent.
pub fn log(daemon: &Daemon) -> Vec<Value> {
    json_lines(daemon.file("agent.log"))
}

/// What the log has under this key, in order.
pub fn logged(daemon: &Daemon, key: &str) -> Vec<Value> {
    log(daemon).iter().filter_map(|line| line.get(key).cloned()).collect()
}

/// A configuration in which the fake agent answers everybody, and each conversation of the command line
/// has a session of its own.
pub fn with(daemon: &Daemon, keys: Value, rest: Value) -> Value {
    let mut wanted = config(json!({}));
    let mut behaviour = keys;
    behaviour["log"] = json!(daemon.file("agent.log"));
    let mut agent = rest;
    agent["runner"] = json!("acp");
    agent["command"] = json!(command());
    agent["env"] = json!({ "FAKE_ACP_CONFIG": behaviour.to_string() });
    wanted["agents"] = json!({ "default": "fake", "fake": agent });
    wanted["access"]["policies"] = json!([{ "name": "each", "match": {}, "effect": "allow", "session": { "key": "cli:{peer_id}" } }]);
    wanted
}

pub fn started(keys: Value, rest: Value) -> Daemon {
    let mut daemon = Daemon::new();
    daemon.configure(&with(&daemon, keys, rest));
    daemon.launch();
    daemon
}

/// An answer that is being given, line by line.
pub struct Talk {
    lines: std::io::Lines<BufReader<Body>>,
}

impl Talk {
    pub fn begin(daemon: &Daemon, text: &str, conversation: &str) -> Self {
        let ask = Ask::post("/control/send", &json!({ "text": text, "conversation": conversation }));
        Self { lines: BufReader::new(daemon.open(&ask).body).lines() }
    }

    /// The next part of this type; parts before it are passed by.
    pub fn next(&mut self, type_: &str) -> Value {
        loop {
            let line = self.lines.next().unwrap_or_else(|| panic!("an answer without `{type_}`")).unwrap();
            let part: Value = serde_json::from_str(&line).unwrap_or(Value::Null);
            if part["type"] == type_ {
                return part;
            }
            assert!(part["type"] != "end", "no `{type_}` before {part}");
        }
    }

    /// The code of the next question.
    pub fn code(&mut self) -> String {
        code_in(self.next("question")["text"].as_str().unwrap())
    }
}

pub fn code_in(text: &str) -> String {
    let (_, rest) = text.split_once("`yes ").unwrap_or_else(|| panic!("no code in {text}"));
    rest[..CODE_CHARS].to_owned()
}

pub fn say_in(daemon: &Daemon, text: &str, conversation: &str) -> Value {
    Talk::begin(daemon, text, conversation).next("end")
}

pub fn say(daemon: &Daemon, text: &str) -> Value {
    say_in(daemon, text, "default")
}

/// What was said by an agent that came to its end.
pub fn said(daemon: &Daemon, text: &str) -> String {
    let end = say(daemon, text);
    assert_eq!(end["status"], "completed", "{end}: {}", daemon.stdout());
    end["text"].as_str().unwrap().to_owned()
}

/// Why a request failed.
pub fn failure(end: &Value) -> &str {
    assert_eq!(end["status"], "failed", "{end}");
    end["reason"].as_str().unwrap()
}
