//! A real `nexus __plugin-host` process with one plugin, and the test at the other end of its pipes.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used)]

use crate::common::{DEADLINE, NEXUS, find, program};
use serde_json::{Value, json};
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStdin, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread;
use tempfile::TempDir;

pub const HOOK: &str = "afterReceiveEvent";
/// Short, for plugins that never end.
pub const QUICK: [&str; 2] = ["--call-ms", "500"];
/// Far away: what fills memory takes a while where nothing is optimised.
pub const SLOW: [&str; 2] = ["--call-ms", "60000"];
/// Longest line that the host writes.
pub const LINE_OUT_BYTES_MAX: usize = 1024 * 1024;
/// Lines that the reader of a pipe is ahead of the test.
const LINES_AHEAD: usize = 4096;

/// A host with one plugin. Dropping it kills it.
pub struct Host {
    pub child: Child,
    pub stdin: Option<ChildStdin>,
    stdout: Receiver<String>,
    pub stderr: Receiver<String>,
    pub file: String,
    _dir: TempDir,
}

/// The lines of a pipe, as they come.
fn lines_of(pipe: impl Read + Send + 'static) -> Receiver<String> {
    let (sender, receiver) = sync_channel(LINES_AHEAD);
    thread::spawn(move || {
        for line in BufReader::new(pipe).lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    receiver
}

impl Host {
    /// A process that loads `source` as the plugin `NAME.EXTENSION`.
    pub fn start(file: &str, source: &str, words: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(file);
        fs::write(&path, source).unwrap();
        let (name, _) = file.split_once('.').unwrap();
        let file = path.to_string_lossy().into_owned();
        let mut child = program(NEXUS)
            .args(["__plugin-host", "--file", file.as_str(), "--name", name])
            .args(words)
            .env("SECRET", "s3cret")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let (stdout, stderr) = (lines_of(child.stdout.take().unwrap()), lines_of(child.stderr.take().unwrap()));
        Self { stdin: child.stdin.take(), child, stdout, stderr, file, _dir: dir }
    }

    /// The same, once it is ready.
    pub fn ready(file: &str, source: &str, words: &[&str]) -> Self {
        let host = Self::start(file, source, words);
        let ready = host.next();
        assert!(ready["ready"].is_object(), "{ready}");
        host
    }

    /// One hook that does `body`, in JavaScript, with `req` and `nexus`.
    pub fn doing(body: &str) -> Self {
        Self::doing_with(body, &[])
    }

    pub fn doing_with(body: &str, words: &[&str]) -> Self {
        Self::ready("x.js", &format!("let calls = 0;\nexport const plugin = {{ name: 'x', {HOOK}(req, nexus) {{\n{body}\n}} }};\n"), words)
    }

    pub fn say(&mut self, line: &[u8]) {
        let stdin = self.stdin.as_mut().unwrap();
        stdin.write_all(line).and_then(|()| stdin.write_all(b"\n")).and_then(|()| stdin.flush()).unwrap();
    }

    pub fn send(&mut self, frame: &Value) {
        self.say(frame.to_string().as_bytes());
    }

    pub fn call(&mut self, id: u64, hook: &str, request: &Value) {
        self.send(&json!({ "id": id, "hook": hook, "request": request, "deadline_ms": 30_000 }));
    }

    /// The next frame.
    pub fn next(&self) -> Value {
        let line = self.stdout.recv_timeout(DEADLINE).unwrap_or_else(|_| panic!("nothing came; stderr: {:?}", self.errors()));
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error} in {line}"))
    }

    /// A hook call and the next frame, which must be its answer.
    pub fn ask(&mut self, id: u64, request: &Value) -> Value {
        self.call(id, HOOK, request);
        let answer = self.next();
        assert_eq!(answer["id"], id, "{answer}");
        answer
    }

    pub fn ask_fails(&mut self, id: u64) -> String {
        let answer = self.ask(id, &request());
        answer["error"].as_str().unwrap_or_else(|| panic!("no error: {answer}")).to_owned()
    }

    /// What stands on stderr so far.
    pub fn errors(&self) -> Vec<String> {
        self.stderr.try_iter().collect()
    }

    pub fn wait(&mut self) -> ExitStatus {
        find("the host ends", || self.child.try_wait().unwrap())
    }

    /// No more input: it must end well, and have nothing left to say.
    pub fn finish(mut self) {
        self.stdin = None;
        assert_eq!(self.wait().code(), Some(0), "{:?}", self.errors());
        assert_eq!(self.stdout.recv_timeout(DEADLINE).ok(), None);
    }

    /// It must have refused the plugin; why.
    pub fn refused(mut self) -> Value {
        let fatal = self.next()["fatal"].clone();
        assert!(fatal["message"].is_string(), "{fatal}");
        assert_eq!(self.wait().code(), Some(1));
        fatal
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

pub fn refused(file: &str, source: &str) -> Value {
    Host::start(file, source, &[]).refused()
}

/// What Rust and JavaScript write differently is in it: whole floats, and integers that no double holds.
pub fn request() -> Value {
    json!({
        "request_id": "req_1", "event_seq": 7, "status": "processing",
        "event": { "event_id": "fake:1", "content": "hello", "metadata": { "snowflake": 1_234_567_890_123_456_789_u64 }, "tags": ["a", "b"] },
        "pipeline": [{ "stage": "receiveEvent", "started_at": 1, "duration_ms": 1.0 }],
    })
}

pub fn with_content(content: &str) -> Value {
    let mut request = request();
    request["event"]["content"] = json!(content);
    request
}
