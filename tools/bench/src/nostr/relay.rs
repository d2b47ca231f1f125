//! A relay, the user who publishes there, and the wire between them. The relay is killed when it is dropped.

use crate::daemon::Place;
use ::nostr::event::{EventBuilder, FinalizeEvent, Kind, Tag};
use ::nostr::key::Keys;
use ::nostr::types::Timestamp;
use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader};
use std::net::TcpStream;
use std::process::{Child, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tungstenite::{Message, WebSocket};

/// Events that are published before their answers are read: no more than the relay takes at once.
const WINDOW: usize = 200;
const ANSWER_LIMIT: Duration = Duration::from_secs(60);

pub(crate) fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Somebody with a key that is the same in each run.
#[derive(Debug)]
pub(crate) struct User {
    keys: Keys,
}

impl User {
    pub(crate) fn new(number: u8) -> Result<Self> {
        Ok(Self { keys: Keys::parse(&format!("{number:02x}").repeat(32)).context("it is no key")? })
    }

    pub(crate) fn public(&self) -> String {
        self.keys.public_key().to_hex()
    }

    pub(crate) fn secret(&self) -> String {
        self.keys.secret_key().to_secret_hex()
    }

    /// A signed event as JSON; `created_at` in Unix seconds.
    pub(crate) fn sign(&self, created_at: u64, kind: u16, tags: &[&[&str]], content: &str) -> Result<String> {
        let tags = tags.iter().map(|tag| Tag::parse(tag.iter().copied())).collect::<Result<Vec<_>, _>>().context("a tag is empty")?;
        let made = EventBuilder::new(Kind::from(kind), content).tags(tags).custom_created_at(Timestamp::from_secs(created_at));
        Ok(made.finalize(&self.keys).context("failed to sign an event")?.as_json())
    }
}

/// `nexus nostr relay`.
#[derive(Debug)]
pub(crate) struct Relay {
    child: Child,
    url: String,
}

impl Relay {
    /// Starts one on any free port, with its files in the place's directory `name`.
    ///
    /// # Errors
    /// When it can't be started, or doesn't say where it listens.
    pub(crate) fn start(place: &Place, name: &str) -> Result<Self> {
        let directory = place.file(name);
        let mut command = place.command(&["nostr", "relay", "--listen", "127.0.0.1:0", "--directory"]);
        let mut child = command.arg(&directory).stdout(Stdio::piped()).spawn().context("failed to start a relay")?;
        let output = child.stdout.take().context("the relay has no output")?;
        let mut relay = Self { child, url: String::new() };
        let mut line = String::new();
        BufReader::new(output).read_line(&mut line).context("failed to hear from the relay")?;
        relay.url = line.trim().strip_prefix("listening on ").context("the relay does not listen")?.to_owned();
        Ok(relay)
    }

    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// A connection to a relay.
#[derive(Debug)]
pub(crate) struct Wire {
    socket: WebSocket<TcpStream>,
}

impl Wire {
    pub(crate) fn connect(url: &str) -> Result<Self> {
        let address = url.strip_prefix("ws://").context("it is no relay of this machine")?;
        let stream = TcpStream::connect(address).with_context(|| format!("failed to connect to {url}"))?;
        stream.set_read_timeout(Some(ANSWER_LIMIT)).context("failed to limit reading")?;
        stream.set_write_timeout(Some(ANSWER_LIMIT)).context("failed to limit writing")?;
        stream.set_nodelay(true).context("failed to have it send at once")?;
        match tungstenite::client(url, stream) {
            Ok((socket, _)) => Ok(Self { socket }),
            Err(error) => bail!("failed to speak to {url}: {error}"),
        }
    }

    /// Publishes events; returns once the relay has all of them.
    ///
    /// # Errors
    /// When one is refused.
    pub(crate) fn publish(&mut self, events: &[String]) -> Result<()> {
        for window in events.chunks(WINDOW) {
            for event in window {
                self.socket.write(Message::text(format!("[\"EVENT\",{event}]"))).context("failed to publish")?;
            }
            self.socket.flush().context("failed to publish")?;
            for _ in window {
                let answer = self.answer()?;
                ensure!(answer[0] == "OK" && answer[2] == json!(true), "an event was not taken: {answer}");
            }
        }
        Ok(())
    }

    fn answer(&mut self) -> Result<Value> {
        loop {
            let message = self.socket.read().context("the relay does not answer")?;
            if let Message::Text(text) = message {
                return serde_json::from_str(text.as_str()).context("the relay does not speak JSON");
            }
        }
    }
}
