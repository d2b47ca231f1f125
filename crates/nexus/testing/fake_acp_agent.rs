//! An agent of the Agent Client Protocol for end-to-end tests that does what it is told, good or bad. It
//! writes its JSON-RPC lines by hand and uses neither the daemon's code nor the protocol's crate, so that
//! both sides can't be wrong in the same way.
//!
//! What it does is the first word of a prompt's last text, unless `mode` in `FAKE_ACP_CONFIG` (JSON) says
//! it for all prompts:
//! - `tools`, `usage`, `refuse`, `quit` (ends as cancelled by itself), `blocks` (says the texts it got), `noise`
//!   (garbage before the answer); anything else is said back in two pieces
//! - `slow` (a word at a time until it is cancelled), `wedge` (never ends, whatever comes)
//! - `ask KIND` (permission, once), `askforever KIND`, `tellask` (says something, asks once the file `gate` is there)
//! - `die`, `diemid` (after half an answer), `garbage`, `huge`
//!
//! Other keys: `log` (a file that gets a JSON line for each thing that happens), `init: garbage|exit`,
//! `closes: true` (it can close sessions), `sessions_file` (sessions can be loaded, also by the next process),
//! `died_file` (the first process dies when it is to begin a session, and leaves that file), `grandchild_file` (`wedge` leaves a
//! process in a session of its own and puts its PID there).

use serde_json::{Value, json};
use std::collections::HashMap;
use std::fs::{self, OpenOptions};
use std::io::{self, BufRead, Write};
use std::process::{Command, ExitCode, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::Duration;

/// Between two words of a slow answer.
const TICK: Duration = Duration::from_millis(20);
/// Lines that wait to be looked at.
const LINES_MAX: usize = 64;
const EXIT_DEAD: u8 = 3;
const GARBAGE_LINES: usize = 200;
const NOISE_LINES: usize = 5;
const HUGE_BYTES: usize = 9 * 1024 * 1024;

fn main() -> io::Result<ExitCode> {
    let keys: Value = serde_json::from_str(&std::env::var("FAKE_ACP_CONFIG").unwrap_or_else(|_| "{}".to_owned()))?;
    let mut agent = Fake { keys, prompts: HashMap::new(), sessions: 0, requests: 0 };
    agent.log(&json!({ "start": std::process::id() }))?;
    if agent.text("init") == Some("exit") {
        return Ok(ExitCode::from(EXIT_DEAD));
    }
    let lines = stdin_lines();
    loop {
        let ended = match lines.recv_timeout(TICK) {
            Ok(message) => agent.take(&message)?,
            Err(RecvTimeoutError::Timeout) => agent.tick()?,
            Err(RecvTimeoutError::Disconnected) => return Ok(ExitCode::SUCCESS),
        };
        if let Some(code) = ended {
            return Ok(ExitCode::from(code));
        }
    }
}

fn stdin_lines() -> Receiver<Value> {
    let (sender, lines) = sync_channel(LINES_MAX);
    std::thread::spawn(move || -> io::Result<()> {
        for line in io::stdin().lock().lines() {
            if sender.send(serde_json::from_str(&line?)?).is_err() {
                return Ok(());
            }
        }
        Ok(())
    });
    lines
}

/// A prompt that isn't answered yet.
struct Prompt {
    id: Value,
    mode: String,
    kind: String,
    /// The id of our request for permission.
    asked: Option<u64>,
}

struct Fake {
    keys: Value,
    /// By session.
    prompts: HashMap<String, Prompt>,
    sessions: u64,
    requests: u64,
}

/// The exit status with which it is time to end.
type Ended = io::Result<Option<u8>>;

impl Fake {
    fn text(&self, key: &str) -> Option<&str> {
        self.keys[key].as_str()
    }

    fn log(&self, line: &Value) -> io::Result<()> {
        let Some(path) = self.text("log") else { return Ok(()) };
        OpenOptions::new().create(true).append(true).open(path)?.write_all(format!("{line}\n").as_bytes())
    }

    fn take(&mut self, message: &Value) -> Ended {
        let (id, params) = (message["id"].clone(), &message["params"]);
        match message["method"].as_str() {
            Some("initialize") if self.text("init") == Some("garbage") => write_garbage(GARBAGE_LINES)?,
            Some("initialize") => {
                let mut can = json!({ "loadSession": self.text("sessions_file").is_some() });
                if self.keys["closes"] == true {
                    can["sessionCapabilities"] = json!({ "close": {} });
                }
                answer(&id, &json!({ "protocolVersion": 1, "agentCapabilities": can }))?;
            }
            Some("session/new") if self.dies_now()? => return Ok(Some(EXIT_DEAD)),
            Some("session/new") => self.begin_session(&id)?,
            Some("session/load") => self.load_session(&id, &params["sessionId"])?,
            Some("session/prompt") => return self.begin(id, params),
            Some("session/cancel") => self.cancel(&params["sessionId"])?,
            Some("session/close") => {
                self.log(&json!({ "close": params["sessionId"] }))?;
                answer(&id, &json!({}))?;
            }
            Some(other) => {
                self.log(&json!({ "unknown": other }))?;
                if !id.is_null() {
                    write(&json!({ "jsonrpc": "2.0", "id": id, "error": { "code": -32601, "message": "Method not found" } }))?;
                }
            }
            None => self.permission(message)?,
        }
        Ok(None)
    }

    fn begin_session(&mut self, id: &Value) -> io::Result<()> {
        self.sessions += 1;
        let session = format!("s{}-{}", std::process::id(), self.sessions);
        if let Some(path) = self.text("sessions_file") {
            OpenOptions::new().create(true).append(true).open(path)?.write_all(format!("{session}\n").as_bytes())?;
        }
        self.log(&json!({ "new": session }))?;
        answer(id, &json!({ "sessionId": session }))
    }

    /// Plays back what nobody may take for an answer.
    fn load_session(&self, id: &Value, session: &Value) -> io::Result<()> {
        let known = self.text("sessions_file").and_then(|path| fs::read_to_string(path).ok()).unwrap_or_default();
        let session = session.as_str().unwrap_or_default();
        self.log(&json!({ "load": session }))?;
        if !known.lines().any(|line| line == session) {
            return write(&json!({ "jsonrpc": "2.0", "id": id, "error": { "code": -32002, "message": "Resource not found" } }));
        }
        say(session, "played back")?;
        answer(id, &json!({}))
    }

    fn begin(&mut self, id: Value, params: &Value) -> Ended {
        let session = params["sessionId"].as_str().unwrap_or_default().to_owned();
        let texts: Vec<&str> = params["prompt"].as_array().into_iter().flatten().filter_map(|block| block["text"].as_str()).collect();
        self.log(&json!({ "prompt": texts, "session": session }))?;
        let last = texts.last().copied().unwrap_or_default();
        let mut words = last.split_whitespace();
        let first = words.next().unwrap_or_default();
        let (mode, kind) = match self.text("mode") {
            Some(mode) => (mode.to_owned(), "edit".to_owned()),
            None => (first.to_owned(), words.next().unwrap_or("edit").to_owned()),
        };
        match mode.as_str() {
            "die" => return Ok(Some(EXIT_DEAD)),
            "diemid" => {
                say(&session, "half an answer")?;
                return Ok(Some(EXIT_DEAD));
            }
            "garbage" => write_garbage(GARBAGE_LINES)?,
            "huge" => write_line(&vec![b'x'; HUGE_BYTES])?,
            "wedge" => self.leave_grandchild()?,
            "slow" => {}
            "tellask" => say(&session, "Let me see. ")?,
            "ask" | "askforever" => {
                let asked = Some(self.ask(&session, &kind)?);
                self.prompts.insert(session, Prompt { id, mode, kind, asked });
                return Ok(None);
            }
            "tools" => {
                let about = json!({ "path": "/etc/motd" });
                let begun =
                    json!({ "sessionUpdate": "tool_call", "title": "Reading", "kind": "read", "status": "pending", "rawInput": about });
                tool(&session, &begun)?;
                tool(&session, &json!({ "sessionUpdate": "tool_call_update", "status": "in_progress" }))?;
                let news = json!([{ "type": "content", "content": { "type": "text", "text": "no news" } }]);
                tool(&session, &json!({ "sessionUpdate": "tool_call_update", "status": "completed", "content": news }))?;
                return say(&session, "read it").and_then(|()| end(&id, "end_turn")).map(|()| None);
            }
            "usage" => {
                let usage = json!({ "inputTokens": 12, "outputTokens": 7, "totalTokens": 19 });
                say(&session, "counted")?;
                return answer(&id, &json!({ "stopReason": "end_turn", "usage": usage })).map(|()| None);
            }
            "refuse" => return end(&id, "refusal").map(|()| None),
            "quit" => return say(&session, "half of it").and_then(|()| end(&id, "cancelled")).map(|()| None),
            "blocks" => return say(&session, &json!(texts).to_string()).and_then(|()| end(&id, "end_turn")).map(|()| None),
            "noise" => {
                write_garbage(NOISE_LINES)?;
                return say(&session, "through the noise").and_then(|()| end(&id, "end_turn")).map(|()| None);
            }
            _ => {
                say(&session, "You said: ")?;
                return say(&session, last).and_then(|()| end(&id, "end_turn")).map(|()| None);
            }
        }
        self.prompts.insert(session, Prompt { id, mode, kind, asked: None });
        Ok(None)
    }

    fn dies_now(&self) -> io::Result<bool> {
        let Some(path) = self.text("died_file") else { return Ok(false) };
        let is_first = !fs::exists(path)?;
        fs::write(path, "")?;
        Ok(is_first)
    }

    /// Asks for permission; the id of the request.
    fn ask(&mut self, session: &str, kind: &str) -> io::Result<u64> {
        self.requests += 1;
        let call = json!({ "toolCallId": "c1", "title": "Changing the configuration", "kind": kind, "status": "pending" });
        let mut update = call.clone();
        update["sessionUpdate"] = json!("tool_call");
        tool(session, &update)?;
        let options = json!([
            { "optionId": "always", "name": "Always", "kind": "allow_always" },
            { "optionId": "yes", "name": "Allow", "kind": "allow_once" },
            { "optionId": "no", "name": "Skip", "kind": "reject_once" },
        ]);
        let params = json!({ "sessionId": session, "toolCall": call, "options": options });
        write(&json!({ "jsonrpc": "2.0", "id": self.requests, "method": "session/request_permission", "params": params }))?;
        Ok(self.requests)
    }

    /// The answer to a request for permission.
    fn permission(&mut self, message: &Value) -> io::Result<()> {
        let outcome = &message["result"]["outcome"];
        self.log(&json!({ "permission": outcome, "error": message["error"] }))?;
        let asked = |prompt: &Prompt| prompt.asked.is_some() && prompt.asked == message["id"].as_u64();
        let Some(session) = self.prompts.iter().find(|(_, prompt)| asked(prompt)).map(|(session, _)| session.clone()) else {
            return Ok(());
        };
        let Some(mut prompt) = self.prompts.remove(&session) else { return Ok(()) };
        if outcome["outcome"] == "cancelled" {
            prompt.asked = None; // the word to stop is on its way
            self.prompts.insert(session, prompt);
            return Ok(());
        }
        if prompt.mode == "askforever" {
            prompt.asked = Some(self.ask(&session, &prompt.kind)?);
            self.prompts.insert(session, prompt);
            return Ok(());
        }
        say(&session, &format!("the answer was {}", outcome["optionId"].as_str().unwrap_or("none")))?;
        end(&prompt.id, "end_turn")
    }

    fn cancel(&mut self, session: &Value) -> io::Result<()> {
        self.log(&json!({ "cancel": session }))?;
        let session = session.as_str().unwrap_or_default();
        if self.prompts.get(session).is_none_or(|prompt| prompt.mode == "wedge") {
            return Ok(());
        }
        match self.prompts.remove(session) {
            Some(prompt) => end(&prompt.id, "cancelled"),
            None => Ok(()),
        }
    }

    /// The next word of each slow answer, and the question of who waits at the gate.
    fn tick(&mut self) -> Ended {
        let waits = |prompt: &Prompt| prompt.mode == "tellask" && prompt.asked.is_none();
        let at_gate = self.prompts.iter().find(|(_, prompt)| waits(prompt)).map(|(session, _)| session.clone());
        if let Some(session) = at_gate
            && self.text("gate").is_some_and(|path| fs::exists(path).unwrap_or(false))
        {
            let asked = self.ask(&session, "edit")?;
            if let Some(prompt) = self.prompts.get_mut(&session) {
                prompt.asked = Some(asked);
            }
        }
        for (session, _) in self.prompts.iter().filter(|(_, prompt)| prompt.mode == "slow") {
            say(session, "tick ")?;
        }
        Ok(None)
    }

    /// Leaves a process in a session of its own, with our stdout still open.
    #[expect(clippy::disallowed_methods, reason = "a stranger to the keeper is what the test is about")]
    fn leave_grandchild(&self) -> io::Result<()> {
        let Some(path) = self.text("grandchild_file") else { return Ok(()) };
        let script = r#"setsid sleep 1000 & echo $! > "$1""#;
        let status = Command::new("/bin/sh").args(["-c", script, "sh", path]).stdin(Stdio::null()).status()?;
        if status.success() { Ok(()) } else { Err(io::Error::other("the grandchild was not started")) }
    }
}

fn answer(id: &Value, result: &Value) -> io::Result<()> {
    write(&json!({ "jsonrpc": "2.0", "id": id, "result": result }))
}

fn end(id: &Value, reason: &str) -> io::Result<()> {
    answer(id, &json!({ "stopReason": reason }))
}

fn say(session: &str, text: &str) -> io::Result<()> {
    update(session, &json!({ "sessionUpdate": "agent_message_chunk", "content": { "type": "text", "text": text } }))
}

fn tool(session: &str, news: &Value) -> io::Result<()> {
    let mut news = news.clone();
    news["toolCallId"] = json!("c1");
    update(session, &news)
}

fn update(session: &str, update: &Value) -> io::Result<()> {
    write(&json!({ "jsonrpc": "2.0", "method": "session/update", "params": { "sessionId": session, "update": update } }))
}

fn write_garbage(lines: usize) -> io::Result<()> {
    (0..lines).try_for_each(|n| write_line(format!("starting part {n} ...").as_bytes()))
}

fn write(message: &Value) -> io::Result<()> {
    write_line(message.to_string().as_bytes())
}

fn write_line(line: &[u8]) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(line)?;
    stdout.write_all(b"\n")?;
    stdout.flush()
}
