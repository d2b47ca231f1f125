//! One relay: a task that owns its connection and does what the machine says. What becomes of its events, `take` says;
//! what is asked of it, `commands`; what goes on while the inbox is full, `waiting`.

mod asked;
mod commands;
mod held;
mod socket;
mod take;
mod waiting;

use super::codec::{self, FromRelay};
use super::filter::Filter;
use super::gate::{Budget, Refused};
use super::inbox::Door;
use super::machine::{Action, Address, Input, Machine, Now, PROBE_ID, State, page_id};
use super::status::View;
use super::subscriptions::Subscription;
use super::template::Template;
use super::{Inner, keys};
use crate::clock;
use crate::metrics::RelayLabel;
use asked::{Asked, Fetched, id_of};
use held::{Held, Proof};
use nexus_core::notice::NoticeType;
use serde_json::json;
use socket::{Heard, Socket};
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OwnedMutexGuard, mpsc, oneshot, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use waiting::{Aside, Spare, hear};

/// The kind of a proof who we are (NIP-42).
const PROOF_KIND: u16 = 22_242;
/// Events of one page of a subscription's past.
const PAGE_EVENTS: u32 = 500;
/// How long a relay may take to answer a fetch, and to say whether it took an event, in ms.
const FETCH_MS: u64 = 10_000;
const OK_MS: u64 = 15_000;
/// Longest sleep: clocks are looked at again after it.
const NAP_MAX: Duration = Duration::from_secs(60);

/// What a relay is told to do.
#[derive(Debug)]
pub(crate) enum Command {
    /// Publish an event; how that went is told by [`Told`].
    Publish { event_id: String, frame: String },
    /// Publish without an answer, if it is connected.
    Announce(String),
    /// Ask once.
    Fetch { filter: Filter, answer: oneshot::Sender<Fetched> },
}

/// What became of an event that was to be published.
#[derive(Debug)]
pub(crate) struct Told {
    pub(crate) relay: Arc<str>,
    pub(crate) event_id: String,
    /// The relay's word: whether it took it, and what it says; `None` when it said nothing.
    pub(crate) answer: Option<(bool, String)>,
}

/// What every relay is to listen to.
#[derive(Debug, Default)]
pub(crate) struct Wanted {
    pub(crate) subscriptions: Vec<Subscription>,
    pub(crate) frame_bytes_max: usize,
}

/// What a relay's task is made of; it is made anew after a failure.
#[derive(Debug, Clone)]
pub(crate) struct Parts {
    pub(crate) url: Arc<str>,
    /// The relay may learn who we are.
    pub(crate) consent: bool,
    pub(crate) inner: Arc<Inner>,
    pub(crate) wanted: watch::Receiver<Arc<Wanted>>,
    pub(crate) commands: Arc<tokio::sync::Mutex<mpsc::Receiver<Command>>>,
    pub(crate) told: mpsc::Sender<Told>,
    pub(crate) view: Arc<watch::Sender<View>>,
}

struct Relay {
    parts: Parts,
    wanted: Arc<Wanted>,
    commands: OwnedMutexGuard<mpsc::Receiver<Command>>,
    door: Door,
    machine: Machine,
    socket: Option<Socket>,
    /// Read, and not looked at yet.
    aside: Aside,
    /// The loss of the connection, of which the machine doesn't know yet.
    lost: Option<Input>,
    budget: Budget,
    /// Time in which nothing could be handed on, and since when that is so again.
    blocked: Duration,
    waits_since: Option<Instant>,
    asked: Asked,
    held: Held,
    /// Events that the relay was sent, with the time (by [`clock::mono_ms`]) until which it may answer.
    awaiting: HashMap<String, u64>,
    /// There since the connection was lost while nothing could be handed on; whether it is in use.
    errands: Option<Box<Spare>>,
    is_out: bool,
    before: State,
    stop: CancellationToken,
}

/// Serves one relay until `stop`.
pub(crate) async fn run(parts: Parts, stop: CancellationToken) {
    let commands = parts.commands.clone().lock_owned().await;
    let seed = u64::from_le_bytes(ulid::Ulid::generate().to_bytes()[8..].try_into().unwrap_or_default());
    let mut wanted = parts.wanted.clone();
    let mut generation = parts.inner.inbox.generation.subscribe();
    let first = wanted.borrow_and_update().clone();
    let mut relay = Relay {
        wanted: first,
        commands,
        door: parts.inner.inbox.door(),
        machine: Machine::new(parts.consent, seed, now(Duration::ZERO)),
        socket: None,
        aside: Aside::default(),
        lost: None,
        budget: Budget::default(),
        blocked: Duration::ZERO,
        waits_since: None,
        asked: Asked::default(),
        held: Held::default(),
        awaiting: HashMap::new(),
        errands: None,
        is_out: false,
        before: State::Connecting,
        stop,
        parts,
    };
    relay.step(Input::Wanted(relay.ids())).await;
    while let Some(input) = relay.next(&mut wanted, &mut generation).await {
        relay.step(input).await;
    }
    relay.hang_up("the daemon is stopping or the relay is not wanted any more", true).await;
    relay.tell_unanswered().await;
}

fn now(blocked: Duration) -> Now {
    let blocked_ms = u64::try_from(blocked.as_millis()).unwrap_or(u64::MAX);
    Now { mono_ms: clock::mono_ms().saturating_sub(blocked_ms), wall_s: clock::seconds(clock::wall_ms()) }
}

impl Relay {
    fn now(&self) -> Now {
        now(self.blocked + self.waits_since.map_or(Duration::ZERO, |since| since.elapsed()))
    }

    fn ids(&self) -> Vec<String> {
        self.wanted.subscriptions.iter().map(|one| one.id.clone()).collect()
    }

    /// What happens next that the machine has to know; `None` when it is over.
    async fn next(&mut self, wanted: &mut watch::Receiver<Arc<Wanted>>, generation: &mut watch::Receiver<u64>) -> Option<Input> {
        loop {
            crate::torture::point("task.nostr relay");
            self.end_errands().await;
            if let Some(lost) = self.lost.take() {
                return Some(lost);
            }
            let Some(nap) = self.nap() else { return Some(self.give_up_late().await.unwrap_or(Input::Tick)) };
            tokio::select! {
                () = self.stop.cancelled() => return None,
                changed = wanted.changed() => {
                    changed.ok()?;
                    self.wanted = wanted.borrow_and_update().clone();
                    return Some(Input::Wanted(self.ids()));
                }
                changed = generation.changed() => return changed.ok().map(|()| Input::Refresh),
                heard = hear(&mut self.aside, &mut self.socket) => {
                    if let Some(input) = self.heard(heard).await {
                        return Some(input);
                    }
                }
                command = self.commands.recv() => return Some(self.obey(command?).await.unwrap_or(Input::Tick)),
                () = tokio::time::sleep(nap) => {}
            }
        }
    }

    /// How long nothing has to be done by itself; `None` when something has to be now.
    fn nap(&self) -> Option<Duration> {
        let due = self.machine.deadline().into_iter().chain(self.held.late_at_ms()).min();
        let now_ms = self.now().mono_ms;
        let until = |due: u64| due.checked_sub(now_ms).filter(|wait_ms| *wait_ms > 0).map(Duration::from_millis);
        let nap = match due {
            Some(due) => until(due)?,
            None => NAP_MAX,
        };
        let answers = self.nap_for_answers();
        // Clocks have milliseconds: one earlier would only be called for nothing.
        (!answers.is_zero()).then(|| nap.min(answers).min(NAP_MAX) + Duration::from_millis(1))
    }

    /// How long what the relay was sent or asked may still be without its answer. Who waits for that does so whether or
    /// not we can read, so it goes by our own clock.
    fn nap_for_answers(&self) -> Duration {
        let due = self.asked.deadline().into_iter().chain(self.awaiting.values().copied()).min();
        due.map_or(NAP_MAX, |due| Duration::from_millis(due.saturating_sub(clock::mono_ms())))
    }

    /// Tells the machine, and does what it says until it has nothing more to say.
    async fn step(&mut self, input: Input) {
        let mut inputs = VecDeque::from([input]);
        while let Some(input) = inputs.pop_front() {
            let now = self.now();
            for action in self.machine.step(now, input) {
                inputs.extend(self.act(action).await);
            }
        }
        self.release_due().await;
        self.show();
    }

    /// Carries one action out; what comes of it is the machine's next input.
    async fn act(&mut self, action: Action) -> Option<Input> {
        match action {
            Action::Connect => Some(self.connect().await),
            Action::Disconnect(why) => {
                self.hang_up(&why, true).await;
                // Shown before anything is told, and before what is held back waits for room: what is to be published
                // would be sent here meanwhile.
                self.show();
                self.tell_unanswered().await;
                None
            }
            Action::Authenticate { challenge, address } => self.prove(challenge, address).await,
            Action::Settled => None, // the outbox sees it by the view
            Action::Ask(sub) => self.ask(&sub).await,
            Action::AskPage { sub, until } => self.ask_page(&sub, until).await,
            Action::Close(id) => {
                let wire = self.asked.close(&id)?;
                self.send(codec::close(&wire)).await
            }
            Action::Probe => self.probe().await,
            Action::Proven { sub, until } => {
                let now_ms = self.now().mono_ms;
                if let Some(generation) = self.asked.generation(&sub) {
                    self.held.prove(sub, Proof { until, generation }, now_ms);
                }
                None
            }
            Action::Note(text) => {
                tracing::warn!(relay = %self.parts.url, "{text}");
                None
            }
            Action::Hole(text) => {
                tracing::warn!(relay = %self.parts.url, "events may be missing: {text}");
                self.parts.view.send_modify(|view| view.holes += 1);
                self.parts.inner.ground.metrics.nostr_holes.get_or_create(&RelayLabel { relay: self.parts.url.to_string() }).inc();
                None
            }
        }
    }

    async fn connect(&mut self) -> Input {
        let connecting = socket::connect(&self.parts.url, self.wanted.frame_bytes_max);
        let connected = tokio::select! {
            connected = connecting => connected,
            () = self.stop.cancelled() => Err("stopping".to_owned()),
        };
        match connected {
            Ok(socket) => {
                self.socket = Some(socket);
                self.budget.refill();
                self.parts.view.send_modify(|view| view.connected(clock::wall_ms()));
                self.notice(NoticeType::NostrConnected, None);
                tracing::info!(relay = %self.parts.url, "relay connected");
                Input::Opened
            }
            Err(error) => {
                self.note_error(&error);
                Input::Lost(error)
            }
        }
    }

    /// Ends the connection, with a good-bye unless it is broken anyway.
    async fn hang_up(&mut self, why: &str, politely: bool) {
        let Some(socket) = self.socket.take() else { return };
        self.aside.clear();
        if politely {
            socket::close(socket).await;
        }
        self.asked.hang_up();
        self.note_error(why);
        self.notice(NoticeType::NostrDisconnected, Some(why));
        tracing::info!(relay = %self.parts.url, why, "relay disconnected");
    }

    /// An error is told once, not at each attempt.
    fn note_error(&self, error: &str) {
        let is_new = self.parts.view.borrow().error.as_deref() != Some(error);
        if is_new {
            tracing::debug!(relay = %self.parts.url, error, "relay");
        }
        self.parts.view.send_modify(|view| view.failed(error));
    }

    async fn ask(&mut self, sub: &str) -> Option<Input> {
        let subscription = self.wanted.subscriptions.iter().find(|one| one.id == sub)?.clone();
        let inbox = &self.parts.inner.inbox;
        let since = inbox.cursors.since(&self.parts.url, &subscription, self.now().wall_s);
        let filter = Filter { since, ..subscription.filter };
        let generation = *inbox.generation.borrow();
        let frame = self.asked.open(sub, filter, generation);
        self.send(frame).await
    }

    async fn ask_page(&mut self, sub: &str, until: u64) -> Option<Input> {
        let filter = Filter { until: Some(until), limit: Some(PAGE_EVENTS), ..self.asked.filter(sub)?.clone() };
        let (id, generation) = (page_id(sub), self.asked.generation(sub)?);
        let frame = self.asked.open(&id, filter, generation);
        self.send(frame).await
    }

    /// Any question that the relay has an answer to; the answer itself doesn't matter.
    async fn probe(&mut self) -> Option<Input> {
        let first = self.wanted.subscriptions.first().map(|one| one.filter.clone()).unwrap_or_default();
        let filter = Filter { limit: Some(1), ..first };
        let frame = self.asked.open(PROBE_ID, filter, 0);
        self.send(frame).await
    }

    /// Proves who we are. Without a key there is nothing to prove, and the relay waits in vain.
    async fn prove(&mut self, challenge: String, address: Address) -> Option<Input> {
        let url = match address {
            Address::AsConfigured => self.parts.url.to_string(),
            Address::OtherSlash => other_slash(&self.parts.url),
        };
        let tags = vec![vec!["relay".to_owned(), url], vec!["challenge".to_owned(), challenge]];
        let template = Template { kind: PROOF_KIND, content: String::new(), tags, created_at: None };
        let keys = match self.parts.inner.keys.get(keys::DAEMON).await {
            Ok(keys) => keys,
            Err(error) => {
                self.note_error(&crate::error_text::describe(&error));
                return None;
            }
        };
        let event = match template.sign(&keys, self.now().wall_s) {
            Ok(event) => event,
            Err(error) => {
                self.note_error(&error.to_string());
                return None;
            }
        };
        match self.send(codec::auth(&event)).await {
            None => Some(Input::AuthSent(event.id.to_hex())),
            lost => lost,
        }
    }

    /// Sends a frame; what is returned is that the connection is gone.
    async fn send(&mut self, frame: String) -> Option<Input> {
        let socket = self.socket.as_mut()?;
        let sent = tokio::select! {
            sent = socket::send(socket, frame) => sent,
            () = self.stop.cancelled() => Err("stopping".to_owned()),
        };
        let why = sent.err()?;
        // What else was to be sent must not wait for it again.
        self.hang_up(&why, false).await;
        Some(Input::Lost(why))
    }

    /// Looks at what the relay says; what of it the machine has to know.
    async fn heard(&mut self, heard: Heard) -> Option<Input> {
        match heard {
            Heard::Text(text) => self.frame(&text).await,
            Heard::Nothing => None,
            Heard::End(why) => Some(Input::Lost(why)),
        }
    }

    async fn frame(&mut self, text: &str) -> Option<Input> {
        if text.len() > self.wanted.frame_bytes_max {
            return self.too_long(text);
        }
        let Some(frame) = codec::parse(text) else { return self.refused(Refused::Malformed, text.len()) };
        match frame {
            FromRelay::Event { sub, event } => self.event(&sub, event).await,
            FromRelay::Ok { id, accepted, message } => {
                if self.awaiting.remove(&*id).is_some() {
                    self.tell(id.into_owned(), Some((accepted, codec::short(&message)))).await;
                    return None;
                }
                Some(Input::Ok { id: id.into_owned(), accepted })
            }
            FromRelay::Eose { sub } => {
                self.parts.view.send_modify(|view| view.last_eose_at = Some(clock::wall_ms()));
                if self.asked.fetched(&sub, None) {
                    return self.send(codec::close(&sub)).await;
                }
                // An end of what was asked before proves nothing about what was asked since.
                self.asked.is_present(&sub).then(|| Input::Eose(id_of(&sub).to_owned()))
            }
            FromRelay::Closed { sub, message } => {
                let message = codec::short(&message);
                if self.asked.fetched(&sub, Some(&message)) {
                    return None;
                }
                if !self.asked.is_present(&sub) {
                    return None;
                }
                let id = id_of(&sub).to_owned();
                self.asked.close(&id);
                Some(Input::Closed { sub: id, message })
            }
            FromRelay::Notice { message } => {
                let message = codec::short(&message);
                tracing::debug!(relay = %self.parts.url, message, "relay notice");
                self.parts.view.send_modify(|view| view.notice = Some(message));
                None
            }
            FromRelay::Auth { challenge } => Some(Input::Challenge(challenge.into_owned())),
            FromRelay::Other => None,
        }
    }

    /// Shows how it is, and says so when that changed.
    fn show(&mut self) {
        let (state, may_publish) =
            if self.is_lost() { (State::Backoff, false) } else { (self.machine.state(), self.machine.may_publish()) };
        // Nothing is heard over a connection for errands.
        let state = if self.is_out && state == State::Live { State::Subscribing } else { state };
        let deaf = self.machine.deaf();
        if self.parts.view.send_if_modified(|view| view.show(state, deaf, may_publish)) && may_publish {
            self.parts.inner.to_publish.notify_one(); // what waits may go
        }
        if state == self.before {
            return;
        }
        self.before = state;
        match state {
            State::Live => self.notice(NoticeType::NostrSubscribed, None),
            State::Deaf => {
                let why = self.machine.deaf().into_iter().map(|(sub, why)| format!("{sub}: {why}")).collect::<Vec<_>>().join("; ");
                tracing::warn!(relay = %self.parts.url, why, "relay does not let us hear");
                self.notice(NoticeType::NostrDeaf, Some(&why));
            }
            State::Connecting | State::Authenticating | State::Subscribing | State::Backoff => {}
        }
    }

    fn notice(&self, kind: NoticeType, why: Option<&str>) {
        self.parts.inner.ground.bus.publish(kind, json!({ "relay": &*self.parts.url, "why": why }));
    }
}

/// The same address with the slash at its end, or without it.
fn other_slash(url: &str) -> String {
    url.strip_suffix('/').map_or_else(|| format!("{url}/"), str::to_owned)
}
