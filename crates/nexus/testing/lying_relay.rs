//! A relay for end-to-end tests that lies as it is told, and is honest otherwise. It never uses the daemon's code,
//! so that both can't be wrong in the same way.
//!
//! `lying-relay CONTROL` prints `listening on ws://...`. CONTROL is a JSON file, read again at each step:
//! - `secret`: the key of the user whose events are asked for; `tags`: those of the lies' events
//! - `events`: correct events that it tells honestly, also those that are added later
//! - `seed`: which subscriptions `closed-at-random` closes, when, and with what word
//! - `log`: a file that gets a JSON line for each `connection`, `req`, `close`, `closed`, `auth` and `event`, with `at_ms`
//! - `lies`: names out of those of `lying_relay/lies.rs`, told once per connection, and of these:
//!   `flood` (10,000 strangers' events per second), `unknown-subscription`, `closed-at-first` (the first REQ of
//!   each subscription is closed, on each connection; one is known by its id up to the number behind the last dot),
//!   `closed-at-random` (now and then one that is open is closed, four times on each connection),
//!   `notice-only`, `no-eose`, `silence`, `auth` (asks who it is),
//!   `disconnect-at-{connect,handshake,auth,req,publish}`, and `disconnect-at-{event,eose}` in the answer to the REQ that
//!   asks for the user's messages: after the lies, and after the honest events

#[path = "lying_relay/lies.rs"]
mod lies;

use futures_util::{SinkExt, StreamExt};
use lies::Maker;
use nostr::key::Keys;
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashSet};
use std::fs::OpenOptions;
use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::interval;
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{WebSocketStream, accept_async};

/// 100 events each 10 ms are 10,000 per second.
const FLOOD_INTERVAL: Duration = Duration::from_millis(10);
const FLOOD_EVENTS: usize = 100;
const FLOOD_DISTINCT: u64 = 500;
/// How often it looks for events that were added.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);

/// One look in so many closes a subscription, up to a number per connection.
const CLOSING_ODDS: usize = 4;
const CLOSINGS_MAX: u32 = 4;
/// What relays say when they close one (NIP-01), and nothing.
const CLOSING_WORDS: [&str; 5] =
    ["error: shutting down idle subscription", "rate-limited: later", "restricted: no", "auth-required: who", ""];

const MESSAGE_KIND: u16 = 1;

type Wire = WebSocketStream<TcpStream>;

#[tokio::main]
async fn main() -> io::Result<()> {
    let control =
        Arc::new(Control { path: std::env::args_os().nth(1).map(PathBuf::from).ok_or_else(|| io::Error::other("no control file"))? });
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let mut out = io::stdout();
    writeln!(out, "listening on ws://{}", listener.local_addr()?)?;
    out.flush()?;
    loop {
        let (stream, _) = listener.accept().await?;
        let control = control.clone();
        #[expect(clippy::disallowed_methods, reason = "a program for tests")]
        tokio::spawn(async move {
            if let Err(error) = converse(stream, &control).await {
                // Who is lied to may break off.
                writeln!(io::stderr(), "connection: {error}").ok();
            }
        });
    }
}

struct Control {
    path: PathBuf,
}

impl Control {
    /// As it stands. It is replaced whole, so that nobody reads half of it.
    fn read(&self) -> Value {
        let text = std::fs::read_to_string(&self.path).expect("the control file can be read");
        serde_json::from_str(&text).expect("the control file is JSON")
    }

    /// Whose events are asked for.
    fn user(&self) -> Keys {
        Keys::parse(self.read()["secret"].as_str().unwrap_or_default()).expect("`secret` is a key")
    }

    fn lies(&self) -> HashSet<String> {
        texts(&self.read()["lies"]).into_iter().collect()
    }

    fn is_told(&self, lie: &str) -> bool {
        self.lies().contains(lie)
    }

    /// Adds a line to the log; one write, so that lines don't mix.
    fn log(&self, did: &str, what: &Value) {
        let control = self.read();
        let Some(path) = control["log"].as_str() else { return };
        let line = format!("{}\n", json!({ "did": did, "what": what, "at_ms": now_ms() }));
        let file = OpenOptions::new().create(true).append(true).open(path);
        file.and_then(|mut file| file.write_all(line.as_bytes())).expect("the log can be written");
    }
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

fn texts(list: &Value) -> Vec<String> {
    list.as_array().into_iter().flatten().filter_map(|item| item.as_str().map(str::to_owned)).collect()
}

async fn converse(mut stream: TcpStream, control: &Control) -> Result<(), Error> {
    control.log("connection", &Value::Null);
    if control.is_told("disconnect-at-connect") {
        return Ok(());
    }
    if control.is_told("disconnect-at-handshake") {
        let _first = stream.read(&mut [0; 64]).await?;
        return Ok(());
    }
    let mut wire = accept_async(stream).await?;
    if control.is_told("silence") {
        std::future::pending::<()>().await;
    }
    if control.is_told("auth") || control.is_told("disconnect-at-auth") {
        say(&mut wire, &json!(["AUTH", "riddle"])).await?;
    }
    if control.is_told("disconnect-at-auth") {
        return Ok(());
    }
    let random = control.read()["seed"].as_u64().unwrap_or(0);
    let (subscriptions, closed, told) = (BTreeMap::new(), HashSet::new(), HashSet::new());
    Talk { wire, control, subscriptions, closed, closings: 0, random, told, is_told: false, flood: None }.run().await
}

async fn say(wire: &mut Wire, message: &Value) -> Result<(), Error> {
    wire.send(Message::text(message.to_string())).await
}

/// One connection.
struct Talk<'c> {
    wire: Wire,
    control: &'c Control,
    /// In an order, so that a seed says which of them is closed.
    subscriptions: BTreeMap<String, Vec<Value>>,
    /// Subscriptions that were closed at first.
    closed: HashSet<String>,
    /// Subscriptions that were closed at random.
    closings: u32,
    random: u64,
    /// What was told honestly, by subscription and event.
    told: HashSet<(String, String)>,
    /// The lies were told.
    is_told: bool,
    flood: Option<Flood>,
}

struct Flood {
    subscription: String,
    events: Vec<String>,
    next: usize,
}

impl Talk<'_> {
    async fn run(&mut self) -> Result<(), Error> {
        let (mut look, mut pulse) = (interval(LOOK_INTERVAL), interval(FLOOD_INTERVAL));
        loop {
            tokio::select! {
                message = self.wire.next() => {
                    let Some(message) = message else { return Ok(()) };
                    let Message::Text(text) = message? else { continue };
                    let Ok(said) = serde_json::from_str::<Value>(text.as_str()) else { continue };
                    if !self.heard(&said).await? {
                        return Ok(());
                    }
                }
                _ = look.tick() => {
                    self.tell_events().await?;
                    self.close_at_random().await?;
                }
                _ = pulse.tick(), if self.flood.is_some() => self.pour().await?,
            }
        }
    }

    /// False when the connection is to be dropped.
    async fn heard(&mut self, said: &Value) -> Result<bool, Error> {
        match said[0].as_str() {
            Some("REQ") => self.requested(said).await,
            Some("CLOSE") => {
                self.control.log("close", &said[1]);
                self.subscriptions.remove(said[1].as_str().unwrap_or_default());
                Ok(true)
            }
            Some("EVENT") => self.published(&said[1]).await,
            Some("AUTH") => {
                self.control.log("auth", &said[1]);
                say(&mut self.wire, &json!(["OK", said[1]["id"], true, ""])).await?;
                Ok(true)
            }
            Some(_) | None => Ok(true),
        }
    }

    async fn published(&mut self, event: &Value) -> Result<bool, Error> {
        self.control.log("event", event);
        if self.control.is_told("disconnect-at-publish") {
            return Ok(false);
        }
        let answer = if self.control.is_told("notice-only") { json!(["NOTICE", "no"]) } else { json!(["OK", event["id"], true, ""]) };
        say(&mut self.wire, &answer).await?;
        Ok(true)
    }

    async fn requested(&mut self, said: &Value) -> Result<bool, Error> {
        let name = said[1].as_str().unwrap_or_default().to_owned();
        let filters: Vec<Value> = said.as_array().into_iter().flatten().skip(2).cloned().collect();
        self.control.log("req", said);
        let lies = self.control.lies();
        if lies.contains("disconnect-at-req") {
            return Ok(false);
        }
        if lies.contains("notice-only") {
            say(&mut self.wire, &json!(["NOTICE", "I don't like your subscription"])).await?;
            return Ok(true);
        }
        let asked = name.rsplit_once('.').map_or(&*name, |(asked, _)| asked);
        if lies.contains("closed-at-first") && self.closed.insert(asked.to_owned()) {
            say(&mut self.wire, &json!(["CLOSED", name, "error: shutting down idle subscription"])).await?;
            return Ok(true);
        }
        self.subscriptions.insert(name.clone(), filters.clone());
        let user = self.control.user();
        let is_for_messages = filters.iter().any(|filter| asks_for_messages(filter, &user.public_key().to_hex()));
        self.lie(&name, &filters, &lies).await?;
        if is_for_messages && lies.contains("disconnect-at-event") {
            return Ok(false);
        }
        self.tell_events().await?;
        if is_for_messages && lies.contains("disconnect-at-eose") {
            return Ok(false);
        }
        if !lies.contains("no-eose") {
            say(&mut self.wire, &json!(["EOSE", name])).await?;
        }
        Ok(true)
    }

    /// Tells the lies, once, to the first subscription that asks for the user's messages.
    async fn lie(&mut self, name: &str, filters: &[Value], lies: &HashSet<String>) -> Result<(), Error> {
        let control = self.control.read();
        let user = self.control.user();
        let Some(filter) = filters.iter().find(|filter| asks_for_messages(filter, &user.public_key().to_hex())) else { return Ok(()) };
        if std::mem::replace(&mut self.is_told, true) {
            return Ok(());
        }
        let maker = Maker { user, kind: MESSAGE_KIND, tags: tags_for(filter, &control["tags"]), now_s: now_ms() / 1000 };
        for lie in lies {
            for event in lies::told(lie, &maker) {
                self.feed(name, &event).await?;
            }
        }
        if lies.contains("unknown-subscription") {
            for event in maker.strangers(1) {
                self.feed("nobody", &event).await?;
            }
        }
        if lies.contains("flood") {
            self.flood = Some(Flood { subscription: name.to_owned(), events: maker.strangers(FLOOD_DISTINCT), next: 0 });
        }
        self.wire.flush().await
    }

    async fn close_at_random(&mut self) -> Result<(), Error> {
        let may_be = self.closings < CLOSINGS_MAX && !self.subscriptions.is_empty() && self.control.is_told("closed-at-random");
        if !may_be || self.draw(CLOSING_ODDS) > 0 {
            return Ok(());
        }
        let (nth, word) = (self.draw(self.subscriptions.len()), CLOSING_WORDS[self.draw(CLOSING_WORDS.len())]);
        let Some(name) = self.subscriptions.keys().nth(nth).cloned() else { return Ok(()) };
        self.subscriptions.remove(&name);
        self.closings += 1;
        self.control.log("closed", &json!([name, word]));
        say(&mut self.wire, &json!(["CLOSED", name, word])).await
    }

    /// A number below another: the upper half of a linear congruential generator (Knuth's MMIX).
    fn draw(&mut self, below: usize) -> usize {
        self.random = self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.random >> 33).unwrap_or(0) % below
    }

    async fn feed(&mut self, subscription: &str, event: &str) -> Result<(), Error> {
        let text = format!("[\"EVENT\",{},{event}]", json!(subscription));
        self.wire.feed(Message::text(text)).await
    }

    async fn pour(&mut self) -> Result<(), Error> {
        let Some(mut flood) = self.flood.take() else { return Ok(()) };
        for _ in 0..FLOOD_EVENTS {
            flood.next = (flood.next + 1) % flood.events.len();
            let event = flood.events[flood.next].clone();
            self.feed(&flood.subscription, &event).await?;
        }
        self.flood = Some(flood);
        self.wire.flush().await
    }

    /// Tells whatever honest events were not told yet.
    async fn tell_events(&mut self) -> Result<(), Error> {
        let control = self.control.read();
        let events = control["events"].as_array().cloned().unwrap_or_default();
        let mut due = Vec::new();
        for (name, filters) in &self.subscriptions {
            for event in events.iter().filter(|event| filters.iter().any(|filter| admits(filter, event))) {
                let id = event["id"].as_str().unwrap_or_default().to_owned();
                if self.told.insert((name.clone(), id)) {
                    due.push((name.clone(), event.to_string()));
                }
            }
        }
        for (name, event) in due {
            self.feed(&name, &event).await?;
        }
        self.wire.flush().await
    }
}

fn has(list: &Value, value: &Value) -> bool {
    list.as_array().is_none_or(|items| items.contains(value))
}

/// Whether a filter lets an event through (NIP-01).
fn admits(filter: &Value, event: &Value) -> bool {
    let Some(fields) = filter.as_object() else { return false };
    let at = event["created_at"].as_u64().unwrap_or(0);
    let tags = event["tags"].as_array().cloned().unwrap_or_default();
    let is_tagged = |letter: &str, wanted: &Value| tags.iter().any(|tag| tag[0] == letter && has(wanted, &tag[1]));
    fields.iter().all(|(name, wanted)| match name.as_str() {
        "ids" => has(wanted, &event["id"]),
        "authors" => has(wanted, &event["pubkey"]),
        "kinds" => has(wanted, &event["kind"]),
        "since" => wanted.as_u64().is_none_or(|since| at >= since),
        "until" => wanted.as_u64().is_none_or(|until| at <= until),
        "limit" => wanted.as_u64() != Some(0),
        other => other.strip_prefix('#').is_none_or(|letter| is_tagged(letter, wanted)),
    })
}

/// Whether the user's ordinary messages are asked for, and not one event by its id.
fn asks_for_messages(filter: &Value, user: &str) -> bool {
    filter["ids"].is_null() && has(&filter["authors"], &json!(user)) && has(&filter["kinds"], &json!(MESSAGE_KIND))
}

/// The tags of the lies, and those that the filter wants besides.
fn tags_for(filter: &Value, tags: &Value) -> Vec<Vec<String>> {
    let mut all: Vec<Vec<String>> = tags.as_array().into_iter().flatten().map(texts).collect();
    for (name, wanted) in filter.as_object().into_iter().flatten() {
        let Some(letter) = name.strip_prefix('#') else { continue };
        let wanted = texts(wanted);
        let is_there = all
            .iter()
            .any(|tag| tag.first().is_some_and(|first| first == letter) && tag.get(1).is_some_and(|value| wanted.contains(value)));
        if let (false, Some(value)) = (is_there, wanted.first()) {
            all.push(vec![letter.to_owned(), value.clone()]);
        }
    }
    all
}
