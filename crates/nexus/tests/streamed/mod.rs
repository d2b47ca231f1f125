//! What tests of answers in the making have in common: an adapter that shows them, and an agent that is slow.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used)]

use crate::common::{Daemon, NEXUS, eventually, find, json_lines, lines, only, procfs};
use serde_json::{Value, json};
use std::fs;
use std::path::PathBuf;

/// An adapter that is told `events` messages, and an agent that says `first`, waits until `gate` is there, and says `rest`.
pub struct Place {
    pub daemon: Daemon,
}

impl Place {
    pub fn new(first: &str, rest: &str, behaviour: Value, send: Value) -> Self {
        let daemon = Daemon::new();
        for (name, text) in [("first", first), ("rest", rest)] {
            fs::write(daemon.file(name), format!("{}\n", json!({ "type": "token", "text": text }))).unwrap();
        }
        fs::write(daemon.file("end"), format!("{}\n", json!({ "type": "stream_end" }))).unwrap();
        let mut told = json!({
            "events": 1, "supports": ["monitor", "send", "stream"], "send_log": daemon.file("sends"),
            "stream_log": daemon.file("streamed"), "stream_starts": daemon.file("starts"), "stream_file": daemon.file("stream-mode"),
        });
        told.as_object_mut().unwrap().extend(behaviour.as_object().cloned().unwrap());
        let mut wanted = only("fake", told);
        wanted["adapters"]["fake"]["send"] = send;
        let script = format!(
            "cat {}; until [ -e {} ]; do sleep 0.05; done; cat {} {}",
            daemon.file("first"),
            daemon.file("gate"),
            daemon.file("rest"),
            daemon.file("end")
        );
        let agent = json!({ "runner": "command", "command": format!("sh -c '{script}'") });
        wanted["agents"] = json!({ "default": "slow", "slow": agent });
        daemon.configure(&wanted);
        Self { daemon }
    }

    pub fn open_gate(&self) {
        fs::write(self.daemon.file("gate"), "").unwrap();
    }

    /// Keys and texts of what was sent, in order.
    pub fn sends(&self) -> Vec<(String, String)> {
        let calls = json_lines(self.daemon.file("sends"));
        let text = |call: &Value, key: &str| call[key].as_str().unwrap_or_default().to_owned();
        calls.iter().map(|call| (text(call, "idempotency_key"), text(call, "text"))).collect()
    }

    /// What the stream processes were told, in order.
    pub fn streamed(&self) -> Vec<Value> {
        json_lines(self.daemon.file("streamed"))
    }

    pub fn types(&self) -> Vec<String> {
        self.streamed().iter().map(|event| event["type"].as_str().unwrap_or_default().to_owned()).collect()
    }

    /// Status, attempts and text of each delivery, in order.
    pub fn deliveries(&self) -> Vec<(String, u32, String)> {
        let sql = "SELECT status, attempts, content FROM deliveries ORDER BY seq";
        self.daemon.rows("nexus", sql, |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))
    }

    pub fn delivered(&self, wanted: &[(&str, u32, &str)]) {
        let wanted: Vec<_> = wanted.iter().map(|(status, attempts, text)| ((*status).to_owned(), *attempts, (*text).to_owned())).collect();
        find("the deliveries are as wanted", || (self.deliveries() == wanted).then_some(()));
    }

    pub fn stream_process(&self) -> procfs::Process {
        find("the stream process runs", || {
            let all = self.daemon.children().into_iter().filter(|child| child.argv.contains(" stream "));
            <[procfs::Process; 1]>::try_from(all.collect::<Vec<_>>()).ok().map(|[one]| one)
        })
    }

    /// Starts the daemon; its answer has begun to be streamed then, and its agent waits at the gate.
    pub fn launch_streaming(&mut self) {
        self.daemon.launch();
        eventually("its answer is streamed", || !self.streamed().is_empty());
    }

    /// How often a stream process was started.
    pub fn starts(&self) -> usize {
        lines(self.daemon.file("starts")).len()
    }
}

pub fn streaming(behaviour: Value) -> Place {
    Place::new("Hello", " world.", behaviour, json!({ "timeout_ms": 2000 }))
}

/// Its agent says something, asks the owner, who wrote to it, once `gate` is there, and says the rest.
pub fn asking(how: &str) -> Place {
    let place = Place::new("", "", json!({}), json!({ "timeout_ms": 2000, "stream": how }));
    let program = PathBuf::from(NEXUS).with_file_name("examples").join("fake-acp-agent");
    assert!(program.exists(), "{} is missing: cargo build --example fake-acp-agent", program.display());
    let keys = json!({ "mode": "tellask", "gate": place.daemon.file("gate") });
    let text = fs::read_to_string(place.daemon.config_file()).unwrap();
    let mut wanted: Value = serde_json::from_str(&text).unwrap();
    let command = shell_words::quote(&program.to_string_lossy()).into_owned();
    let (env, permissions) = (json!({ "FAKE_ACP_CONFIG": keys.to_string() }), json!({ "ask": "always" }));
    let agent = json!({ "runner": "acp", "command": command, "env": env, "permissions": permissions });
    wanted["agents"] = json!({ "default": "asks", "asks": agent });
    place.daemon.configure(&wanted);
    place
}

/// Long enough to be a block, and its rest.
pub fn paragraphs() -> (String, String) {
    (format!("{}\n\nand", "word ".repeat(180).trim_end()), " more".to_owned())
}

pub fn in_blocks(behaviour: Value) -> (Place, String) {
    let (first, rest) = paragraphs();
    (Place::new(&first, &rest, behaviour, json!({ "stream": "blocks" })), "word ".repeat(180).trim_end().to_owned())
}
