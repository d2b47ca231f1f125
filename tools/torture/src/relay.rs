//! A relay of Nostr on this machine, as long as a world is: it has what people post and what the daemon publishes, gives it
//! to whoever asks, and writes down what was published. It refuses, breaks off, is silent and is gone at its seed's will,
//! and behaves while it is calm. It checks no signature: it may be one that lies.

use crate::chance::Chance;
use crate::nostr::{fits, id, is_ephemeral, is_spoken};
use crate::world::World;
use crate::{clock, journal};
use anyhow::{Context, Error, Result, anyhow};
use serde_json::{Value, json};
use std::cmp::Reverse;
use std::collections::HashMap;
use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tungstenite::{Message, WebSocket};

/// How often a connection looks whether there is something to say.
const LOOK: Duration = Duration::from_millis(10);
/// How long a handshake and a write may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// Most events that are given for one question: less than a daemon asks for.
const GIVEN_MAX: usize = 40;
/// Its moods change so often.
const MOOD_MS: u128 = 1500;
/// An event is put off so often at most: whoever publishes it waits longer each time.
const PUT_OFF_MAX: u64 = 2;

/// Whom something new is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum To {
    /// Every subscription that asks for it.
    Asked,
    /// Every subscription, whatever it asks for.
    All,
}

/// What it says of an event that is published.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Word {
    Taken,
    /// It takes it and says nothing, or hangs up.
    Silent,
    HungUp,
    /// It doesn't take it: not now, not before it hangs up, never.
    Later,
    Unheard,
    Never,
}

impl Word {
    /// `times` it came before this time. What is refused for ever is refused each time.
    fn about(event: &Value, times: u64, chance: &Chance, is_calm: bool) -> Self {
        if is_spoken(event) && chance.about(&["never", id(event)]).one_in(40) {
            return Self::Never;
        }
        if is_calm {
            return Self::Taken;
        }
        match chance.about(&["published", id(event), &times.to_string()]).below(24) {
            0 => Self::Silent,
            1 => Self::HungUp,
            2 => Self::Unheard,
            3 | 4 if times < PUT_OFF_MAX => Self::Later,
            _ => Self::Taken,
        }
    }

    fn takes(self) -> bool {
        matches!(self, Self::Taken | Self::Silent | Self::HungUp)
    }
}

#[derive(Debug, Default)]
struct State {
    /// What it keeps, in the order in which it came.
    events: Vec<Value>,
    /// What is to be told to those who are connected.
    news: Vec<(Value, To)>,
    /// How often each event was published here.
    published: HashMap<String, u64>,
}

#[derive(Debug)]
struct Shared {
    world: World,
    chance: Chance,
    began: Instant,
    state: Mutex<State>,
    connections: AtomicU64,
    over: AtomicBool,
    /// What this program failed at.
    problem: Mutex<Option<Error>>,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What it does for a while, to everybody or to one connection.
    fn mood(&self, what: &str, whom: u64, times: u64) -> bool {
        let slot = self.began.elapsed().as_millis() / MOOD_MS;
        !self.world.is_calm() && self.chance.about(&[what, &whom.to_string(), &slot.to_string()]).one_in(times)
    }

    fn is_down(&self) -> bool {
        self.mood("down", 0, 10)
    }

    fn note(&self, path: &Path, line: &Value) {
        if let Err(error) = journal::append(path, &line.to_string()) {
            self.problem.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
        }
    }

    /// Takes an event in that the daemon publishes, or doesn't.
    fn publish(&self, event: &Value) -> Word {
        let is_calm = self.world.is_calm();
        let mut state = self.state();
        let times = state.published.entry(id(event).to_owned()).or_default();
        let word = Word::about(event, *times, &self.chance, is_calm);
        *times += 1;
        // Noted under the lock, so that the journal has the order in which they were taken.
        self.note(&self.world.published(), &json!({ "event": event, "taken": word.takes() }));
        if word.takes() && !is_ephemeral(event) && !state.events.iter().any(|known| known["id"] == event["id"]) {
            state.events.push(event.clone());
        }
        word
    }

    /// The newest first, of one second by id, and no more than it likes.
    fn stored(&self, filters: &[Value]) -> Vec<Value> {
        let state = self.state();
        let mut found: Vec<Value> = state.events.iter().filter(|event| filters.iter().any(|filter| fits(filter, event))).cloned().collect();
        drop(state);
        found.sort_by_cached_key(|event| (Reverse(event["created_at"].as_u64()), id(event).to_owned()));
        let wanted = filters.iter().filter_map(|filter| filter["limit"].as_u64()).min();
        let wanted = wanted.and_then(|limit| usize::try_from(limit).ok()).unwrap_or(GIVEN_MAX);
        found.truncate(wanted.min(GIVEN_MAX));
        found
    }
}

/// A way to post to it. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Door {
    shared: Arc<Shared>,
}

impl Door {
    /// Keeps an event, and tells it to who asks for such.
    pub(crate) fn post(&self, event: &Value) {
        let mut state = self.shared.state();
        state.events.push(event.clone());
        state.news.push((event.clone(), To::Asked));
    }

    /// Tells an event, which is not kept for that.
    pub(crate) fn tell(&self, event: &Value, to: To) {
        self.shared.state().news.push((event.clone(), to));
    }
}

/// Listens until it is dropped.
#[derive(Debug)]
pub(crate) struct Relay {
    shared: Arc<Shared>,
    address: SocketAddr,
    listening: Option<JoinHandle<()>>,
}

impl Relay {
    /// Begins, and writes down where it is.
    ///
    /// # Errors
    /// When it can't listen, and of the file system.
    pub(crate) fn start(world: &World, chance: Chance) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").context("failed to listen as a relay")?;
        let address = listener.local_addr().context("failed to find where the relay listens")?;
        std::fs::write(world.relay_url(), format!("ws://{address}")).context("failed to write where the relay is")?;
        let shared = Arc::new(Shared {
            world: world.clone(),
            chance,
            began: Instant::now(),
            state: Mutex::default(),
            connections: AtomicU64::new(0),
            over: AtomicBool::new(false),
            problem: Mutex::default(),
        });
        let for_thread = shared.clone();
        let listening = std::thread::spawn(move || listen(&listener, &for_thread));
        Ok(Self { shared, address, listening: Some(listening) })
    }

    pub(crate) fn door(&self) -> Door {
        Door { shared: self.shared.clone() }
    }

    /// Ends.
    ///
    /// # Errors
    /// What it failed at as a part of this program; what it did to others is none.
    pub(crate) fn end(mut self) -> Result<()> {
        self.hang_up()?;
        self.shared.problem.lock().unwrap_or_else(PoisonError::into_inner).take().map_or(Ok(()), Err)
    }

    fn hang_up(&mut self) -> Result<()> {
        self.shared.over.store(true, Ordering::Relaxed);
        drop(TcpStream::connect(self.address)); // wakes who listens
        let Some(listening) = self.listening.take() else { return Ok(()) };
        listening.join().map_err(|_| anyhow!("the relay panicked"))
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.hang_up().ok(); // whoever wants to know how it went has called `end`
    }
}

fn listen(listener: &TcpListener, shared: &Arc<Shared>) {
    for stream in listener.incoming() {
        if shared.over.load(Ordering::Relaxed) {
            return;
        }
        let Ok(stream) = stream else { continue };
        if shared.is_down() {
            continue; // and so closed
        }
        let shared = shared.clone();
        std::thread::spawn(move || {
            let number = shared.connections.fetch_add(1, Ordering::Relaxed);
            if let Some(connection) = Connection::accept(stream, shared, number) {
                connection.serve();
            }
        });
    }
}

struct Connection {
    socket: WebSocket<TcpStream>,
    shared: Arc<Shared>,
    number: u64,
    /// Subscriptions with their filters.
    open: HashMap<String, Vec<Value>>,
    /// How much of the news this connection was told.
    told: usize,
    /// Messages that it sent.
    heard: u64,
}

/// The connection is over.
struct Over;

impl Connection {
    /// `None` when that one doesn't want to talk after all.
    fn accept(stream: TcpStream, shared: Arc<Shared>, number: u64) -> Option<Self> {
        stream.set_read_timeout(Some(PATIENCE)).and_then(|()| stream.set_write_timeout(Some(PATIENCE))).ok()?;
        let socket = tungstenite::accept(stream).ok()?;
        socket.get_ref().set_read_timeout(Some(LOOK)).ok()?;
        let told = shared.state().news.len();
        Some(Self { socket, shared, number, open: HashMap::new(), told, heard: 0 })
    }

    fn serve(mut self) {
        while !self.shared.over.load(Ordering::Relaxed) && !self.shared.is_down() {
            if self.shared.mood("silent", self.number, 20) {
                clock::pause(LOOK);
                continue;
            }
            let went = match self.socket.read() {
                Ok(Message::Text(text)) => self.hear(text.as_str()),
                Ok(Message::Binary(_) | Message::Ping(_) | Message::Pong(_) | Message::Frame(_)) => Ok(()),
                Ok(Message::Close(_)) => Err(Over),
                Err(tungstenite::Error::Io(error)) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => Ok(()),
                Err(_) => Err(Over),
            };
            if went.and_then(|()| self.tell_news()).is_err() {
                return;
            }
        }
    }

    fn say(&mut self, message: &Value) -> Result<(), Over> {
        self.socket.send(Message::text(message.to_string())).map_err(|_| Over)
    }

    /// Whether it is the one time out of so many that something is done to this connection.
    fn whim(&self, what: &str, times: u64) -> bool {
        let words = [what, &self.number.to_string(), &self.heard.to_string()];
        !self.shared.world.is_calm() && self.shared.chance.about(&words).one_in(times)
    }

    fn hear(&mut self, text: &str) -> Result<(), Over> {
        self.heard += 1;
        if self.whim("drop", 50) {
            return Err(Over);
        }
        let Ok(message) = serde_json::from_str::<Value>(text) else {
            let what = format!("the daemon said to its relay what is no JSON: {text}");
            return self.shared.world.violated(&what).map_err(|_| Over);
        };
        let name = message[1].as_str().unwrap_or_default().to_owned();
        match message[0].as_str() {
            Some("REQ") => {
                let filters = message.as_array().and_then(|parts| parts.get(2..)).map(<[Value]>::to_vec);
                self.answer(name, filters.unwrap_or_default())
            }
            Some("CLOSE") => {
                self.open.remove(&name);
                Ok(())
            }
            Some("EVENT") => self.take(&message[1]),
            Some(_) | None => Ok(()),
        }
    }

    fn answer(&mut self, name: String, filters: Vec<Value>) -> Result<(), Over> {
        if self.whim("closed", 30) {
            return self.say(&json!(["CLOSED", name, "error: made up"]));
        }
        let stored = self.shared.stored(&filters);
        self.open.insert(name.clone(), filters);
        for (number, event) in stored.iter().enumerate() {
            let message = json!(["EVENT", name, event]);
            self.say(&message)?;
            if number == 0 && self.whim("twice", 4) {
                self.say(&message)?;
            }
        }
        if self.whim("no end", 30) {
            return Err(Over);
        }
        self.say(&json!(["EOSE", name]))
    }

    fn take(&mut self, event: &Value) -> Result<(), Over> {
        let word = self.shared.publish(event);
        let (is_taken, why) = match word {
            Word::Taken => (true, ""),
            Word::Later => (false, "rate-limited: made up"),
            Word::Never => (false, "blocked: made up"),
            Word::Silent => return Ok(()),
            Word::HungUp | Word::Unheard => return Err(Over),
        };
        self.say(&json!(["OK", event["id"], is_taken, why]))
    }

    /// What is new, to whoever asked for it.
    fn tell_news(&mut self) -> Result<(), Over> {
        let news: Vec<(Value, To)> = self.shared.state().news[self.told..].to_vec();
        self.told += news.len();
        for (event, to) in news {
            let is_for = |filters: &[Value]| to == To::All || filters.iter().any(|filter| fits(filter, &event));
            let names: Vec<String> = self.open.iter().filter(|(_, filters)| is_for(filters)).map(|(name, _)| name.clone()).collect();
            for name in names {
                self.say(&json!(["EVENT", name, event]))?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::nostr::{Key, NOTE};
    use crate::world::Cast;

    /// A client, message by message.
    struct Client(WebSocket<TcpStream>);

    impl Client {
        fn connect(world: &World) -> Self {
            let url = std::fs::read_to_string(world.relay_url()).unwrap();
            let stream = TcpStream::connect(url.strip_prefix("ws://").unwrap()).unwrap();
            stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
            Self(tungstenite::client(url, stream).map_err(|error| error.to_string()).unwrap().0)
        }

        fn say(&mut self, message: &Value) {
            self.0.send(Message::text(message.to_string())).unwrap();
        }

        fn next(&mut self) -> Value {
            loop {
                if let Message::Text(text) = self.0.read().unwrap() {
                    return serde_json::from_str(text.as_str()).unwrap();
                }
            }
        }
    }

    /// A calm world with a relay.
    fn calm() -> (tempfile::TempDir, World, Relay) {
        let dir = tempfile::tempdir().unwrap();
        let world = World::make(dir.path(), Cast::default()).unwrap();
        std::fs::write(world.calm(), "").unwrap();
        let relay = Relay::start(&world, Chance::new(1)).unwrap();
        (dir, world, relay)
    }

    #[test]
    fn what_is_stored_comes_newest_first_and_then_what_is_new() {
        let (_dir, world, relay) = calm();
        let (ann, door) = (Key::new(1), relay.door());
        let mut old = ann.sign(NOTE, &[], "old");
        old["created_at"] = json!(1);
        let new = ann.sign(NOTE, &[], "new");
        [&old, &new, &Key::new(2).sign(NOTE, &[], "somebody else's")].into_iter().for_each(|event| door.post(event));
        let mut client = Client::connect(&world);
        client.say(&json!(["REQ", "mine", { "authors": [ann.public()] }]));
        let told = [client.next(), client.next(), client.next()];
        assert_eq!(told, [json!(["EVENT", "mine", new]), json!(["EVENT", "mine", old]), json!(["EOSE", "mine"])]);
        let strange = Key::new(3).sign(NOTE, &[], "strange");
        door.tell(&strange, To::Asked);
        door.tell(&strange, To::All);
        door.post(&ann.sign(NOTE, &[], "live"));
        assert_eq!((client.next()[2]["content"].clone(), client.next()[2]["content"].clone()), (json!("strange"), json!("live")));
        relay.end().unwrap();
    }

    #[test]
    fn what_is_published_is_taken_told_and_written_down() {
        let (_dir, world, relay) = calm();
        // One that is not refused for ever.
        let mut events = (0..100).map(|n| Key::new(1).sign(NOTE, &[], &n.to_string()));
        let event = events.find(|event| Word::about(event, 0, &Chance::new(1), true) == Word::Taken).unwrap();
        let mut client = Client::connect(&world);
        for _ in 0..2 {
            client.say(&json!(["EVENT", event]));
            assert_eq!(client.next(), json!(["OK", event["id"], true, ""]));
        }
        client.say(&json!(["REQ", "all", {}]));
        assert_eq!([client.next(), client.next()], [json!(["EVENT", "all", event]), json!(["EOSE", "all"])]);
        relay.end().unwrap();
        let noted = journal::values(&world.published()).unwrap();
        assert_eq!(noted, [json!({ "event": event, "taken": true }), json!({ "event": event, "taken": true })]);
    }

    #[test]
    fn its_word_is_the_same_each_time_where_it_is_final() {
        let (chance, ann) = (Chance::new(7), Key::new(1));
        let events: Vec<Value> = (0..200).map(|n| ann.sign(NOTE, &[], &n.to_string())).collect();
        let words = |times: u64, is_calm: bool| events.iter().map(|event| Word::about(event, times, &chance, is_calm)).collect::<Vec<_>>();
        let never = |words: &[Word]| words.iter().map(|word| *word == Word::Never).collect::<Vec<_>>();
        assert_eq!(never(&words(0, false)), never(&words(9, true)));
        assert!(words(0, false).contains(&Word::Never) && words(0, false).contains(&Word::Later));
        assert!(!words(PUT_OFF_MAX, false).contains(&Word::Later));
    }
}
