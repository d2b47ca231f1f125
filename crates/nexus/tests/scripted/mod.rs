//! A relay that does what a test says: what it has, what it refuses, how much it gives back, when it hangs up. It
//! runs on threads of the test and never uses the daemon's code.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used)]

use serde_json::{Value, json};
use std::collections::VecDeque;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tokio_tungstenite::tungstenite::{self, Message, WebSocket};

/// How often a connection looks whether there is something new to say.
const LOOK: Duration = Duration::from_millis(20);

/// What the relay is like, and what it saw.
#[derive(Debug, Default)]
pub struct State {
    /// What it has, the oldest first.
    pub events: Vec<Value>,
    /// Most events that it gives back for one question; 0 for all.
    pub most: usize,
    /// It asks who is there, and refuses whoever didn't prove it.
    pub auth: bool,
    /// Subscriptions whose id begins so are refused with this message.
    pub refuse: Option<(String, String)>,
    /// Of subscriptions whose id begins so it doesn't say the end yet, nor what it has to say of them after that.
    pub late: Option<String>,
    /// It takes no event, and says why.
    pub rejects: Option<String>,
    /// It takes events without saying so.
    pub silent: bool,
    /// What is new goes to every subscription, whatever that asked for.
    pub careless: bool,
    /// Every message that came, in order.
    pub heard: Vec<Value>,
    /// What was published here, each as often as it came.
    pub published: Vec<Value>,
    /// Connections that were made.
    pub connections: u64,
    /// Connections up to this number are hung up.
    hung_up: u64,
    over: bool,
}

impl State {
    /// The messages of a kind, such as `REQ`.
    pub fn of(&self, label: &str) -> Vec<Value> {
        self.heard.iter().filter(|message| message[0] == label).cloned().collect()
    }

    /// Ends all connections that there are; none of them says anything more.
    pub fn hang_up(&mut self) {
        self.hung_up = self.connections;
    }
}

/// Runs until it is dropped.
#[derive(Debug)]
pub struct Scripted {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
    listening: Option<std::thread::JoinHandle<()>>,
}

impl Scripted {
    pub fn start() -> Self {
        Self::start_at("127.0.0.1:0".parse().unwrap())
    }

    pub fn start_at(address: SocketAddr) -> Self {
        let listener = TcpListener::bind(address).unwrap();
        let (address, state) = (listener.local_addr().unwrap(), Arc::new(Mutex::new(State::default())));
        let shared = state.clone();
        let listening = std::thread::spawn(move || listen(&listener, &shared));
        Self { address, state, listening: Some(listening) }
    }

    /// An address at which nobody listens yet.
    pub fn nowhere() -> SocketAddr {
        TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
    }

    pub fn url(&self) -> String {
        format!("ws://{}", self.address)
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Takes an event in as one that somebody published here.
    pub fn add(&self, event: &Value) {
        self.state().events.push(event.clone());
    }

    /// Ends all connections that there are.
    pub fn hang_up(&self) {
        self.state().hang_up();
    }
}

impl Drop for Scripted {
    fn drop(&mut self) {
        self.state().over = true;
        // Wakes who listens.
        drop(TcpStream::connect(self.address));
        if let Some(listening) = self.listening.take() {
            drop(listening.join());
        }
    }
}

fn listen(listener: &TcpListener, state: &Arc<Mutex<State>>) {
    for stream in listener.incoming() {
        if state.lock().unwrap().over {
            return;
        }
        let (Ok(stream), state) = (stream, state.clone()) else { continue };
        std::thread::spawn(move || {
            stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
            let Ok(socket) = tungstenite::accept(stream) else { return };
            let number = {
                let mut state = state.lock().unwrap();
                state.connections += 1;
                state.connections
            };
            Connection { socket, state, number, open: Vec::new(), late: VecDeque::new(), told: 0, is_proven: false }.serve();
        });
    }
}

struct Connection {
    socket: WebSocket<TcpStream>,
    state: Arc<Mutex<State>>,
    number: u64,
    /// Subscriptions with their filters.
    open: Vec<(String, Value)>,
    /// What it has to say later, in order.
    late: VecDeque<Value>,
    /// How many of the relay's events this connection was told of.
    told: usize,
    is_proven: bool,
}

impl Connection {
    fn serve(mut self) {
        self.socket.get_ref().set_read_timeout(Some(LOOK)).unwrap();
        self.told = self.state.lock().unwrap().events.len();
        if self.state.lock().unwrap().auth && !self.say(&json!(["AUTH", "challenge"])) {
            return;
        }
        loop {
            {
                let state = self.state.lock().unwrap();
                if state.over || state.hung_up >= self.number {
                    return;
                }
            }
            match self.socket.read() {
                Ok(Message::Text(text)) => {
                    let message: Value = serde_json::from_str(text.as_str()).expect("the daemon speaks JSON");
                    self.state.lock().unwrap().heard.push(message.clone());
                    if !self.answer(&message) {
                        return;
                    }
                }
                Ok(_) => {}
                Err(tungstenite::Error::Io(error)) if is_nothing(&error) => {}
                Err(_) => return,
            }
            if !self.catch_up() || !self.tell() {
                return;
            }
        }
    }

    fn say(&mut self, message: &Value) -> bool {
        self.socket.send(Message::text(message.to_string())).is_ok()
    }

    /// What it has to say, once it may.
    fn catch_up(&mut self) -> bool {
        if self.state.lock().unwrap().late.is_some() {
            return true;
        }
        std::mem::take(&mut self.late).iter().all(|frame| self.say(frame))
    }

    /// What is new, to whoever asked for it.
    fn tell(&mut self) -> bool {
        let (new, careless): (Vec<Value>, bool) = {
            let state = self.state.lock().unwrap();
            if state.hung_up >= self.number {
                return false;
            }
            (state.events.iter().skip(self.told).cloned().collect(), state.careless)
        };
        self.told += new.len();
        let open = self.open.clone();
        new.iter().all(|event| {
            let wanted = open.iter().filter(|(_, filter)| careless || fits(filter, event));
            let frames: Vec<Value> = wanted.map(|(id, _)| json!(["EVENT", id, event])).collect();
            frames.iter().all(|frame| self.say(frame))
        })
    }

    fn answer(&mut self, message: &Value) -> bool {
        match message[0].as_str() {
            Some("REQ") => self.question(message[1].as_str().unwrap_or_default(), &message[2]),
            Some("CLOSE") => {
                self.open.retain(|(id, _)| message[1] != id.as_str());
                true
            }
            Some("EVENT") => self.take(&message[1]),
            Some("AUTH") => {
                self.is_proven = true;
                self.say(&json!(["OK", message[1]["id"], true, ""]))
            }
            _ => true,
        }
    }

    fn question(&mut self, id: &str, filter: &Value) -> bool {
        let (refused, found, is_late) = {
            let state = self.state.lock().unwrap();
            let refused = if state.auth && !self.is_proven {
                Some("auth-required: who are you".to_owned())
            } else {
                state.refuse.as_ref().filter(|(prefix, _)| id.starts_with(prefix.as_str())).map(|(_, why)| why.clone())
            };
            // The newest first, as relays do, and no more than it likes.
            let limit = filter["limit"].as_u64().map_or(usize::MAX, |limit| limit as usize);
            let most = if state.most == 0 { limit } else { limit.min(state.most) };
            let mut found: Vec<Value> = state.events.iter().filter(|event| fits(filter, event)).cloned().collect();
            found.sort_by_key(|event| std::cmp::Reverse(event["created_at"].as_u64()));
            found.truncate(most);
            let is_late = state.late.as_ref().map_or(!self.late.is_empty(), |prefix| id.starts_with(prefix.as_str()));
            (refused, found, is_late)
        };
        if let Some(why) = refused {
            return self.say(&json!(["CLOSED", id, why]));
        }
        self.open.retain(|(open, _)| open != id);
        self.open.push((id.to_owned(), filter.clone()));
        let mut frames: VecDeque<Value> = found.iter().map(|event| json!(["EVENT", id, event])).collect();
        frames.push_back(json!(["EOSE", id]));
        if is_late {
            let at_once = if self.late.is_empty() { found.len() } else { 0 };
            self.late.extend(frames.split_off(at_once));
        }
        frames.iter().all(|frame| self.say(frame))
    }

    fn take(&mut self, event: &Value) -> bool {
        let is_silent = {
            let mut state = self.state.lock().unwrap();
            if let Some(why) = state.rejects.clone() {
                drop(state);
                return self.say(&json!(["OK", event["id"], false, why]));
            }
            state.published.push(event.clone());
            if !state.events.iter().any(|known| known["id"] == event["id"]) {
                state.events.push(event.clone());
            }
            state.silent
        };
        is_silent || self.say(&json!(["OK", event["id"], true, ""]))
    }
}

fn is_nothing(error: &std::io::Error) -> bool {
    matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut)
}

/// Whether a filter of NIP-01 lets an event through.
fn fits(filter: &Value, event: &Value) -> bool {
    let among = |key: &str, value: &Value| filter[key].as_array().is_none_or(|all| all.contains(value));
    let created_at = event["created_at"].as_u64().unwrap_or_default();
    among("ids", &event["id"])
        && among("authors", &event["pubkey"])
        && among("kinds", &event["kind"])
        && filter["since"].as_u64().is_none_or(|since| created_at >= since)
        && filter["until"].as_u64().is_none_or(|until| created_at <= until)
        && ["p", "d", "a"].iter().all(|letter| {
            let tags = event["tags"].as_array().into_iter().flatten();
            let has = |all: &Vec<Value>| tags.clone().any(|tag| tag[0] == *letter && all.contains(&tag[1]));
            filter[format!("#{letter}")].as_array().is_none_or(has)
        })
}
