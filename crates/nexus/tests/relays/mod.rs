//! Relays in tests: the embedded one and the lying one as processes of their own, a user's key, and a client
//! that speaks the protocol as text. Owns what it starts; never uses the daemon's code.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used)]

use crate::common::{DEADLINE, NEXUS, Signal, find, json_lines, program, replace, send_signal};
use nostr::event::{EventBuilder, FinalizeEvent, Kind, Tag};
use nostr::key::Keys;
use nostr::nips::nip19::ToBech32;
use nostr::types::Timestamp;
use serde_json::{Value, json};
use std::fs::{self, File};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio_tungstenite::tungstenite::{self, Message, WebSocket};

pub fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// A key that is the same in each run.
#[derive(Debug, Clone)]
pub struct Key {
    keys: Keys,
}

impl Key {
    pub fn new(number: u8) -> Self {
        Self { keys: Keys::parse(&format!("{number:02x}").repeat(32)).unwrap() }
    }

    pub fn public(&self) -> String {
        self.keys.public_key().to_hex()
    }

    pub fn npub(&self) -> String {
        self.keys.public_key().to_bech32().unwrap()
    }

    pub fn nsec(&self) -> String {
        self.keys.secret_key().to_bech32().unwrap()
    }

    pub fn secret(&self) -> String {
        self.keys.secret_key().to_secret_hex()
    }

    pub fn sign(&self, kind: u16, tags: &[&[&str]], content: &str) -> Value {
        self.sign_at(now_s(), kind, tags, content)
    }

    pub fn sign_at(&self, created_at: u64, kind: u16, tags: &[&[&str]], content: &str) -> Value {
        let tags = tags.iter().map(|tag| Tag::parse(tag.iter().copied()).unwrap());
        let made = EventBuilder::new(Kind::from(kind), content).tags(tags).custom_created_at(Timestamp::from_secs(created_at));
        serde_json::to_value(made.finalize(&self.keys).unwrap()).unwrap()
    }
}

/// Whether an event's id and signature are right.
pub fn is_verified(event: &Value) -> bool {
    nostr::event::Event::from_json(event.to_string()).is_ok_and(|event| event.verify().is_ok())
}

pub fn id(event: &Value) -> &str {
    event["id"].as_str().expect("an event has an id")
}

/// A process that says where it listens.
#[derive(Debug)]
struct Process {
    child: Child,
    url: String,
}

impl Process {
    fn start(mut command: Command, output: &Path) -> Self {
        command.stdin(Stdio::null()).stdout(File::create(output).unwrap()).stderr(File::create(output.with_extension("stderr")).unwrap());
        let mut child = command.spawn().expect("the relay can be started");
        let url = find("the relay listens", || {
            let said = fs::read_to_string(output).unwrap();
            if let Some(status) = child.try_wait().unwrap() {
                panic!("the relay ended with {status}: {}", fs::read_to_string(output.with_extension("stderr")).unwrap());
            }
            said.lines().find_map(|line| line.strip_prefix("listening on ")).filter(|_| said.ends_with('\n')).map(str::to_owned)
        });
        Self { child, url }
    }

    fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).unwrap()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// `nexus nostr relay`.
#[derive(Debug)]
pub struct Relay {
    process: Process,
}

impl Relay {
    /// On any free port, with its files in `directory`.
    pub fn start(directory: &Path, more: &[&str]) -> Self {
        Self::start_at(directory, "127.0.0.1:0", more)
    }

    pub fn start_at(directory: &Path, listen: &str, more: &[&str]) -> Self {
        fs::create_dir_all(directory).unwrap();
        let mut command = program(NEXUS);
        command.args(["nostr", "relay", "--listen", listen, "--directory"]).arg(directory).args(more);
        Self { process: Process::start(command, &directory.join("relay.out")) }
    }

    pub fn url(&self) -> &str {
        &self.process.url
    }

    /// `127.0.0.1:PORT`.
    pub fn address(&self) -> &str {
        address(self.url())
    }

    pub fn pid(&self) -> i32 {
        self.process.pid()
    }

    /// Stops it as a user does; how it ended.
    pub fn stop(mut self) -> ExitStatus {
        send_signal(self.pid(), Signal::TERM);
        find("the relay ends", || self.process.child.try_wait().unwrap())
    }

    pub fn kill9(mut self) {
        self.process.child.kill().unwrap();
        self.process.child.wait().unwrap();
    }
}

/// `testing/lying_relay.rs`.
#[derive(Debug)]
pub struct Lying {
    process: Process,
    directory: PathBuf,
    control: Value,
}

impl Lying {
    /// `control` as the program's own description says; `log` is set here.
    pub fn start(directory: &Path, control: Value) -> Self {
        let path = PathBuf::from(NEXUS).with_file_name("examples").join("lying-relay");
        assert!(path.exists(), "{} is missing: cargo build --example lying-relay", path.display());
        fs::create_dir_all(directory).unwrap();
        let mut control = control;
        control["log"] = json!(directory.join("log"));
        replace(&directory.join("control"), &control.to_string());
        let mut command = program(path.to_str().unwrap());
        command.arg(directory.join("control"));
        let process = Process::start(command, &directory.join("lying.out"));
        Self { process, directory: directory.to_owned(), control }
    }

    pub fn url(&self) -> &str {
        &self.process.url
    }

    /// Goes on otherwise, from the next step on.
    pub fn set(&mut self, name: &str, value: Value) {
        self.control[name] = value;
        replace(&self.directory.join("control"), &self.control.to_string());
    }

    /// Tells one more event honestly.
    pub fn add(&mut self, event: &Value) {
        let mut events = self.control["events"].as_array().cloned().unwrap_or_default();
        events.push(event.clone());
        self.set("events", Value::Array(events));
    }

    /// What it saw of a kind, in order.
    pub fn log(&self, did: &str) -> Vec<Value> {
        let path = self.directory.join("log");
        json_lines(path).into_iter().filter(|line| line["did"] == did).collect()
    }
}

fn address(url: &str) -> &str {
    url.strip_prefix("ws://").expect("a relay of this machine")
}

/// A client of a relay, message by message.
#[derive(Debug)]
pub struct Client {
    socket: WebSocket<TcpStream>,
    asked: u32,
}

impl Client {
    pub fn connect(url: &str) -> Self {
        Self::try_connect(url).unwrap_or_else(|error| panic!("{url}: {error}"))
    }

    pub fn try_connect(url: &str) -> Result<Self, String> {
        let stream = TcpStream::connect(address(url)).map_err(|error| error.to_string())?;
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream.set_write_timeout(Some(DEADLINE)).unwrap();
        let (socket, _) = tungstenite::client(url, stream).map_err(|error| error.to_string())?;
        Ok(Self { socket, asked: 0 })
    }

    /// Bears a silence of this length from now on.
    pub fn set_patience(&self, patience: Duration) {
        self.socket.get_ref().set_read_timeout(Some(patience)).unwrap();
    }

    pub fn say(&mut self, message: &Value) {
        self.say_text(&message.to_string());
    }

    pub fn say_text(&mut self, text: &str) {
        self.socket.send(Message::text(text)).expect("the relay takes a message");
    }

    /// Writes, whether or not the relay is still there.
    pub fn try_say(&mut self, message: Message) -> bool {
        self.socket.send(message).is_ok()
    }

    /// The next message.
    pub fn next(&mut self) -> Value {
        self.try_next().expect("the relay goes on")
    }

    /// The next message; nothing when the connection is over.
    pub fn try_next(&mut self) -> Option<Value> {
        loop {
            match self.socket.read() {
                Ok(Message::Text(text)) => return Some(serde_json::from_str(text.as_str()).expect("the relay speaks JSON")),
                Ok(Message::Close(_)) => return None,
                Ok(Message::Ping(_) | Message::Pong(_) | Message::Binary(_) | Message::Frame(_)) => {}
                Err(tungstenite::Error::Io(error)) if error.kind() == std::io::ErrorKind::WouldBlock => panic!("the relay is silent"),
                Err(_) => return None,
            }
        }
    }

    /// Reads until the relay closes the connection; how.
    pub fn closing(&mut self) -> Option<u16> {
        loop {
            match self.socket.read() {
                Ok(Message::Close(frame)) => return frame.map(|frame| frame.code.into()),
                Ok(_) => {}
                Err(tungstenite::Error::Io(error)) if error.kind() == std::io::ErrorKind::WouldBlock => panic!("the relay is silent"),
                Err(_) => return None,
            }
        }
    }

    /// Publishes; whether it was taken, and the reason.
    pub fn publish(&mut self, event: &Value) -> (bool, String) {
        self.say(&json!(["EVENT", event]));
        let answer = self.until(|message| message[0] == "OK" && message[1] == event["id"]);
        (answer[2].as_bool().unwrap(), answer[3].as_str().unwrap().to_owned())
    }

    /// Publishes what must be taken.
    pub fn published(&mut self, event: &Value) {
        let (is_taken, reason) = self.publish(event);
        assert!(is_taken, "{event}: {reason}");
    }

    /// Subscribes; returns the stored events once all of them came.
    pub fn subscribe(&mut self, name: &str, filters: &[Value]) -> Vec<Value> {
        let mut message = vec![json!("REQ"), json!(name)];
        message.extend(filters.iter().cloned());
        self.say(&Value::Array(message));
        let mut events = Vec::new();
        loop {
            let message = self.next();
            match message[0].as_str() {
                Some("EVENT") if message[1] == name => events.push(message[2].clone()),
                Some("EOSE") if message[1] == name => return events,
                Some("CLOSED") if message[1] == name => panic!("{message}"),
                Some(_) | None => {}
            }
        }
    }

    /// What is stored for a filter.
    pub fn stored(&mut self, filter: Value) -> Vec<Value> {
        self.asked += 1;
        let name = format!("stored-{}", self.asked);
        let events = self.subscribe(&name, &[filter]);
        self.say(&json!(["CLOSE", name]));
        events
    }

    /// The next event of a subscription.
    pub fn event(&mut self, name: &str) -> Value {
        self.until(|message| message[0] == "EVENT" && message[1] == name)[2].clone()
    }

    /// The first message that is meant; others are passed over.
    pub fn until(&mut self, is_meant: impl Fn(&Value) -> bool) -> Value {
        loop {
            let message = self.next();
            if is_meant(&message) {
                return message;
            }
        }
    }

    /// Says who it is, once it is asked (NIP-42).
    pub fn prove(&mut self, key: &Key, url: &str) {
        let challenge = self.until(|message| message[0] == "AUTH")[1].as_str().unwrap().to_owned();
        let proof = key.sign(22_242, &[&["relay", url], &["challenge", &challenge]], "");
        self.say(&json!(["AUTH", proof]));
        let answer = self.until(|message| message[0] == "OK" && message[1] == proof["id"]);
        assert_eq!(answer[2], true, "{answer}");
    }
}
