//! One relay's connection as a pure machine: what happened and what time it is in, what to do next out. It
//! connects, answers who we are where we want that, asks for each subscription, goes back until nothing is
//! missing, and looks whether the relay still hears. It reads no clock and touches no socket; which filter a
//! subscription has, and what an event says, it doesn't know. Nor does it see ids on the wire: what it hears is of what
//! it asked last, which `relay/asked` tells from late answers to what was asked before.

mod subs;
#[cfg(test)]
mod tests;

pub(crate) use subs::page_id;
use subs::{Sub, Subs};

/// How long a relay may take to ask who we are, once it is connected: it need not ask at all.
const CHALLENGE_WAIT_MS: u64 = 1_000;
/// How long the answer to our proof may take; some relays never give one.
const AUTH_ANSWER_MS: u64 = 5_000;
/// How often it is looked whether the relay still hears us, and how long its answer may take.
pub(crate) const PROBE_EVERY_MS: u64 = 240_000;
const PROBE_ANSWER_MS: u64 = 30_000;
/// How often a relay may ask who we are between two answered probes: each answer costs us a signature and some time
/// in which nothing is asked.
const CHALLENGES_MAX: u32 = 16;
/// Pauses between connections; each is a random part of its upper half.
pub(crate) const BACKOFF_BASE_MS: u64 = 1_000;
const BACKOFF_MAX_MS: u64 = 60_000;
/// A connection that lasted so long has the pauses begin anew.
const BACKOFF_RESET_MS: u64 = 60_000;
/// Within which the first connections of a start are spread.
const SPREAD_MS: u64 = 250;
/// The pause after a relay that sent what no relay may.
const PUNISHMENT_MS: u64 = 300_000;
/// The subscription by which it is looked whether the relay hears.
pub(crate) const PROBE_ID: &str = "nexus-probe";

/// When something happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Now {
    /// Monotonic, and standing still while nothing could be read.
    pub(crate) mono_ms: u64,
    /// Unix seconds.
    pub(crate) wall_s: u64,
}

/// How the connection is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    Connecting,
    Authenticating,
    Subscribing,
    Live,
    /// Connected, but some of what is wanted isn't heard.
    Deaf,
    Backoff,
}

impl State {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Connecting => "connecting",
            Self::Authenticating => "authenticating",
            Self::Subscribing => "subscribing",
            Self::Live => "live",
            Self::Deaf => "deaf",
            Self::Backoff => "backoff",
        }
    }
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Input {
    /// The subscriptions that are wanted from now on.
    Wanted(Vec<String>),
    /// The connection stands.
    Opened,
    /// It is gone, or could not be made.
    Lost(String),
    /// The relay did what no relay may.
    Abused(String),
    /// The relay asks who we are.
    Challenge(String),
    /// Our proof left, as the event of this id.
    AuthSent(String),
    /// The relay took or refused an event.
    Ok { id: String, accepted: bool },
    /// An event that a subscription asked for, whether or not it is known.
    Event { sub: String, created_at: u64 },
    /// An event under a subscription's id that is good for nothing, with the time that it claims where that can be read.
    Refused { sub: String, created_at: Option<u64> },
    /// All that was stored of a subscription has come.
    Eose(String),
    /// The relay ended a subscription.
    Closed { sub: String, message: String },
    /// What was taken in was lost: ask for all of it again.
    Refresh,
    /// Nothing but time.
    Tick,
}

/// Which of the two ways of writing its address the relay is told in our proof.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Address {
    AsConfigured,
    /// With the slash at its end taken away, or added.
    OtherSlash,
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Action {
    Connect,
    Disconnect(String),
    Authenticate {
        challenge: String,
        address: Address,
    },
    /// Who we are is settled: what waits to be published may go, also what was refused before.
    Settled,
    /// Ask for a subscription from its cursor on.
    Ask(String),
    /// Ask for what a subscription has up to this second, inclusive.
    AskPage {
        sub: String,
        until: u64,
    },
    Close(String),
    Probe,
    /// All that a subscription has up to this second was received.
    Proven {
        sub: String,
        until: u64,
    },
    /// Something that belongs into the log.
    Note(String),
    /// The relay may have more than it gave, and can't be asked for it: what, for the log and the count.
    Hole(String),
}

/// Where the question who we are stands.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Auth {
    /// Waiting for the relay to ask.
    Listening {
        deadline: u64,
    },
    Proving {
        address: Address,
        id: Option<String>,
        deadline: u64,
    },
    Settled,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Link {
    Connecting,
    Up {
        since: u64,
    },
    /// Also before the first connection.
    Backoff {
        until: u64,
        is_punishment: bool,
    },
}

#[derive(Debug)]
struct Probe {
    asked_s: u64,
    deadline: u64,
    /// The subscriptions that were live when it was asked.
    live: Vec<String>,
}

/// One relay.
#[derive(Debug)]
pub(crate) struct Machine {
    /// The relay may learn who we are.
    consent: bool,
    link: Link,
    auth: Auth,
    challenge: Option<String>,
    /// Made over this connection.
    proofs: u32,
    /// Since the last probe that was answered.
    challenges: u32,
    subs: Subs,
    probe: Option<Probe>,
    next_probe: u64,
    /// Connections in a row that didn't last.
    failures: u32,
    /// Of the jitter's generator.
    seed: u64,
}

impl Machine {
    pub(crate) fn new(consent: bool, seed: u64, now: Now) -> Self {
        let mut machine = Self {
            consent,
            link: Link::Connecting,
            auth: Auth::Settled,
            challenge: None,
            proofs: 0,
            challenges: 0,
            subs: Subs::default(),
            probe: None,
            next_probe: u64::MAX,
            failures: 0,
            seed,
        };
        let spread = machine.random() % SPREAD_MS;
        machine.link = Link::Backoff { until: now.mono_ms + spread, is_punishment: false };
        machine
    }

    pub(crate) fn state(&self) -> State {
        match self.link {
            Link::Connecting => State::Connecting,
            // The first connection only waits for its moment.
            Link::Backoff { .. } if self.failures == 0 => State::Connecting,
            Link::Backoff { .. } => State::Backoff,
            Link::Up { .. } if self.auth != Auth::Settled => State::Authenticating,
            Link::Up { .. } if self.subs.any_refused() => State::Deaf,
            Link::Up { .. } if self.subs.all_live() => State::Live,
            Link::Up { .. } => State::Subscribing,
        }
    }

    /// What isn't heard, and why.
    pub(crate) fn deaf(&self) -> Vec<(String, String)> {
        self.subs.refused()
    }

    /// Whether the relay is still sending what it has stored, and an end of that can be expected.
    pub(crate) fn is_gathering(&self) -> bool {
        self.is_up() && self.subs.any_gathering()
    }

    /// Whether an event that comes under this id now is one that the relay had stored.
    pub(crate) fn is_stored(&self, wire: &str) -> bool {
        self.subs.is_stored(wire)
    }

    /// Whether events may be published.
    pub(crate) fn may_publish(&self) -> bool {
        matches!(self.link, Link::Up { .. }) && self.auth == Auth::Settled
    }

    /// Whether the relay is left alone for what it sent.
    pub(crate) fn is_punishing(&self) -> bool {
        matches!(self.link, Link::Backoff { is_punishment: true, .. })
    }

    /// When to call again with [`Input::Tick`] at the latest, in monotonic ms.
    pub(crate) fn deadline(&self) -> Option<u64> {
        match self.link {
            Link::Connecting => None,
            Link::Backoff { until, .. } => Some(until),
            Link::Up { .. } => match &self.auth {
                Auth::Listening { deadline } | Auth::Proving { deadline, .. } => Some(*deadline),
                Auth::Settled => {
                    let probe = self.probe.as_ref().map_or(self.next_probe, |probe| probe.deadline);
                    self.subs.deadline().into_iter().chain([probe]).min()
                }
            },
        }
    }

    pub(crate) fn step(&mut self, now: Now, input: Input) -> Vec<Action> {
        let mut actions = Vec::new();
        match input {
            Input::Wanted(ids) => {
                let gone = self.subs.want(ids);
                if self.is_up() {
                    actions.extend(gone.into_iter().flat_map(closes));
                }
            }
            Input::Opened => self.opened(now),
            Input::Lost(why) => self.lost(now, &why, None, &mut actions),
            Input::Abused(why) => self.lost(now, &why, Some(PUNISHMENT_MS), &mut actions),
            Input::Challenge(challenge) => self.challenged(now, challenge, &mut actions),
            Input::AuthSent(sent) => {
                if let Auth::Proving { id, .. } = &mut self.auth {
                    *id = Some(sent);
                }
            }
            Input::Ok { id, accepted } => self.answered(now, &id, accepted, &mut actions),
            Input::Event { sub, created_at } => self.subs.event(&sub, created_at),
            Input::Refused { sub, created_at } => self.subs.refused_event(&sub, created_at),
            Input::Eose(id) => self.eose(now, &id, &mut actions),
            Input::Closed { sub, message } => self.closed(now, &sub, &message, &mut actions),
            Input::Refresh => {
                let asked = self.subs.forget_all();
                if self.is_up() {
                    actions.extend(asked.into_iter().flat_map(closes));
                }
            }
            Input::Tick => {}
        }
        self.go_on(now, &mut actions);
        actions
    }

    fn is_up(&self) -> bool {
        matches!(self.link, Link::Up { .. })
    }

    fn opened(&mut self, now: Now) {
        self.link = Link::Up { since: now.mono_ms };
        self.auth = if self.consent { Auth::Listening { deadline: now.mono_ms + CHALLENGE_WAIT_MS } } else { Auth::Settled };
        self.challenge = None;
        self.proofs = 0;
        self.challenges = 0;
        self.probe = None;
        self.next_probe = now.mono_ms + PROBE_EVERY_MS;
    }

    /// The connection is over; another one is made after a pause.
    fn lost(&mut self, now: Now, why: &str, pause: Option<u64>, actions: &mut Vec<Action>) {
        match self.link {
            Link::Up { since } => {
                actions.push(Action::Disconnect(why.to_owned()));
                if now.mono_ms.saturating_sub(since) >= BACKOFF_RESET_MS {
                    self.failures = 0;
                }
            }
            Link::Connecting => {}
            Link::Backoff { .. } => return,
        }
        self.subs.disconnected();
        self.probe = None;
        self.auth = Auth::Settled;
        let is_punishment = pause.is_some();
        let pause = pause.unwrap_or_else(|| self.pause());
        self.failures = self.failures.saturating_add(1);
        self.link = Link::Backoff { until: now.mono_ms + pause, is_punishment };
    }

    fn pause(&mut self) -> u64 {
        let full = BACKOFF_BASE_MS.saturating_mul(1 << self.failures.min(16)).min(BACKOFF_MAX_MS);
        full / 2 + self.random() % (full / 2 + 1)
    }

    fn challenged(&mut self, now: Now, challenge: String, actions: &mut Vec<Action>) {
        if !self.is_up() || !self.consent {
            return; // who doesn't want to be known says nothing, and may be refused for it
        }
        self.challenges = self.challenges.saturating_add(1);
        if self.challenges > CHALLENGES_MAX {
            return self.lost(now, "it asks again and again who we are", None, actions);
        }
        self.challenge = Some(challenge);
        self.prove(now, Address::AsConfigured, actions);
    }

    fn prove(&mut self, now: Now, address: Address, actions: &mut Vec<Action>) {
        let Some(challenge) = self.challenge.clone() else { return };
        self.proofs = self.proofs.saturating_add(1);
        self.auth = Auth::Proving { address, id: None, deadline: now.mono_ms + AUTH_ANSWER_MS };
        actions.push(Action::Authenticate { challenge, address });
    }

    /// The relay's word about an event, which may be our proof.
    fn answered(&mut self, now: Now, of: &str, accepted: bool, actions: &mut Vec<Action>) {
        let Auth::Proving { address, id: Some(id), .. } = &self.auth else { return };
        if id != of {
            return;
        }
        match (accepted, *address) {
            (true, _) => self.settle(now, actions),
            (false, Address::AsConfigured) => self.prove(now, Address::OtherSlash, actions),
            (false, Address::OtherSlash) => {
                actions.push(Action::Note("the relay doesn't accept who we are".to_owned()));
                self.settle(now, actions);
            }
        }
    }

    fn settle(&mut self, now: Now, actions: &mut Vec<Action>) {
        self.auth = Auth::Settled;
        self.subs.authenticated(now);
        actions.push(Action::Settled);
    }

    fn eose(&mut self, now: Now, id: &str, actions: &mut Vec<Action>) {
        if id == PROBE_ID {
            let Some(probe) = self.probe.take() else { return };
            actions.push(Action::Close(PROBE_ID.to_owned()));
            self.probed(now);
            let still = probe.live.into_iter().filter(|sub| self.subs.is_live(sub));
            actions.extend(still.map(|sub| Action::Proven { sub, until: probe.asked_s }));
            return;
        }
        self.subs.eose(now, id, actions);
    }

    /// It answered: for a while it need not.
    fn probed(&mut self, now: Now) {
        self.challenges = 0;
        self.next_probe = now.mono_ms + PROBE_EVERY_MS;
    }

    fn closed(&mut self, now: Now, id: &str, message: &str, actions: &mut Vec<Action>) {
        if id == PROBE_ID {
            // An answer, if no proof that everything before it came.
            if self.probe.take().is_some() {
                self.probed(now);
            }
            return;
        }
        let is_known = self.subs.closed(now, id, message, actions);
        let wants_proof = is_known && message.starts_with("auth-required");
        if wants_proof && self.consent && self.auth == Auth::Settled && self.subs.may_prove(id) {
            // A relay that takes no proof and doesn't say so may know itself by the other address.
            let address = if self.proofs % 2 == 1 { Address::OtherSlash } else { Address::AsConfigured };
            self.prove(now, address, actions);
        }
    }

    /// What time alone brings about.
    fn go_on(&mut self, now: Now, actions: &mut Vec<Action>) {
        match self.link {
            Link::Connecting => return,
            Link::Backoff { until, .. } if now.mono_ms < until => return,
            Link::Backoff { .. } => {
                self.link = Link::Connecting;
                actions.push(Action::Connect);
                return;
            }
            Link::Up { .. } => {}
        }
        match &self.auth {
            Auth::Listening { deadline } | Auth::Proving { deadline, .. } if now.mono_ms < *deadline => return,
            // It didn't ask, or gave no answer: then it goes without.
            Auth::Listening { .. } | Auth::Proving { .. } => self.settle(now, actions),
            Auth::Settled => {}
        }
        self.subs.go_on(now, actions);
        self.look_after(now, actions);
    }

    /// Silence is not health: the relay has to answer now and then.
    fn look_after(&mut self, now: Now, actions: &mut Vec<Action>) {
        match &self.probe {
            Some(probe) if now.mono_ms >= probe.deadline => {
                self.lost(now, "it does not answer any more", None, actions);
            }
            None if now.mono_ms >= self.next_probe => {
                let live = self.subs.live();
                self.probe = Some(Probe { asked_s: now.wall_s, deadline: now.mono_ms + PROBE_ANSWER_MS, live });
                actions.push(Action::Probe);
            }
            Some(_) | None => {}
        }
    }

    /// SplitMix64: enough to spread connections.
    fn random(&mut self) -> u64 {
        self.seed = self.seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.seed;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

/// A subscription's two ids on the wire, as far as they are open.
fn closes((id, sub): (String, Sub)) -> Vec<Action> {
    sub.open_ids(&id).into_iter().map(Action::Close).collect()
}
