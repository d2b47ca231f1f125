//! How each relay is, and what waits to be published, for `status`, health and the command line.

use super::machine::State;
use crate::ledger::nexus::OutboxCounts;
use serde::Serialize;

/// How one relay is, as its task last showed it.
#[derive(Debug, Clone)]
pub(crate) struct View {
    pub(crate) state: State,
    pub(crate) may_publish: bool,
    pub(crate) connected_at: Option<i64>,
    pub(crate) last_eose_at: Option<i64>,
    pub(crate) deaf: Vec<(String, String)>,
    pub(crate) error: Option<String>,
    pub(crate) notice: Option<String>,
    pub(crate) events: u64,
    pub(crate) refused: u64,
    pub(crate) published: u64,
    pub(crate) holes: u64,
}

impl Default for View {
    fn default() -> Self {
        Self {
            state: State::Connecting,
            may_publish: false,
            connected_at: None,
            last_eose_at: None,
            deaf: Vec::new(),
            error: None,
            notice: None,
            events: 0,
            refused: 0,
            published: 0,
            holes: 0,
        }
    }
}

impl View {
    pub(crate) fn connected(&mut self, at: i64) {
        self.connected_at = Some(at);
        self.error = None;
    }

    pub(crate) fn failed(&mut self, error: &str) {
        self.connected_at = None;
        self.error = Some(error.to_owned());
    }

    /// True if that is another state than before.
    pub(crate) fn show(&mut self, state: State, deaf: Vec<(String, String)>, may_publish: bool) -> bool {
        let is_other = self.state != state || self.may_publish != may_publish || self.deaf != deaf;
        (self.state, self.deaf, self.may_publish) = (state, deaf, may_publish);
        is_other
    }
}

/// How the Nostr client is.
#[derive(Debug, Clone, Serialize)]
pub struct NostrStatus {
    /// False while `nostr.relays` is empty: then nothing runs.
    pub running: bool,
    /// The daemon's own public key, once it is known.
    pub pubkey: Option<String>,
    pub npub: Option<String>,
    /// Keys that are heeded.
    pub whitelist: usize,
    /// Events that were accepted since the start.
    pub accepted: u64,
    pub relays: Vec<RelayStatus>,
    pub outbox: OutboxCounts,
    /// Why the daemon's own key can't be used.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// How one relay is.
#[derive(Debug, Clone, Serialize)]
pub struct RelayStatus {
    pub url: String,
    /// `connecting`, `authenticating`, `subscribing`, `live`, `deaf` or `backoff`.
    pub state: &'static str,
    /// Unix ms.
    pub connected_at: Option<i64>,
    /// When it last said that it has sent all that it has, in Unix ms.
    pub last_eose_at: Option<i64>,
    /// The subscriptions that it doesn't answer, and why.
    pub deaf: Vec<Deaf>,
    pub error: Option<String>,
    /// The last thing that it said to people.
    pub notice: Option<String>,
    pub events: u64,
    pub refused: u64,
    pub published: u64,
    /// Times that it may have had older events, or more of one second, which could not be asked for, since the start.
    pub holes: u64,
    /// Events that it is to get.
    pub pending: u64,
}

/// A subscription that a relay doesn't answer.
#[derive(Debug, Clone, Serialize)]
pub struct Deaf {
    pub subscription: String,
    pub why: String,
}

impl RelayStatus {
    pub(crate) fn of(url: &str, view: &View, outbox: &OutboxCounts) -> Self {
        Self {
            url: url.to_owned(),
            state: view.state.as_str(),
            connected_at: view.connected_at,
            last_eose_at: view.last_eose_at,
            deaf: view.deaf.iter().map(|(sub, why)| Deaf { subscription: sub.clone(), why: why.clone() }).collect(),
            error: view.error.clone(),
            notice: view.notice.clone(),
            events: view.events,
            refused: view.refused,
            published: view.published,
            holes: view.holes,
            pending: outbox.pending.get(url).copied().unwrap_or(0),
        }
    }
}

impl NostrStatus {
    /// A sentence for each thing that isn't well. One relay of several that can't be reached is no trouble yet.
    pub fn unwell(&self) -> Vec<String> {
        let mut reasons: Vec<String> = self.problem.iter().map(|why| format!("nostr: the daemon's key can't be used: {why}")).collect();
        // Also while it is tried once more: what went wrong stands until there is a connection.
        let is_down = |relay: &&RelayStatus| ["backoff", "connecting"].contains(&relay.state) && relay.error.is_some();
        if self.running && self.relays.iter().filter(is_down).count() == self.relays.len() {
            reasons.push("nostr: no relay can be reached".to_owned());
        }
        for relay in self.relays.iter().filter(|relay| !relay.deaf.is_empty()) {
            let why: Vec<String> = relay.deaf.iter().map(|deaf| format!("{}: {}", deaf.subscription, deaf.why)).collect();
            reasons.push(format!("nostr: `{}` does not let us hear: {}", relay.url, why.join("; ")));
        }
        reasons
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(relays: &[(State, Option<&str>)]) -> NostrStatus {
        let relay = |(state, error): &(State, Option<&str>)| {
            let view = View { state: *state, error: error.map(str::to_owned), ..View::default() };
            RelayStatus::of("ws://r", &view, &OutboxCounts::default())
        };
        NostrStatus {
            running: !relays.is_empty(),
            pubkey: None,
            npub: None,
            whitelist: 0,
            accepted: 0,
            relays: relays.iter().map(relay).collect(),
            outbox: OutboxCounts::default(),
            problem: None,
        }
    }

    #[test]
    fn one_relay_down_is_no_trouble_and_all_are() {
        let (down, live) = ((State::Backoff, Some("refused")), (State::Live, None));
        assert!(status(&[]).unwell().is_empty());
        assert!(status(&[down, live]).unwell().is_empty());
        assert_eq!(status(&[down, down]).unwell(), ["nostr: no relay can be reached"]);
        assert_eq!(status(&[down, (State::Connecting, Some("refused"))]).unwell().len(), 1, "tried once more");
        assert!(status(&[(State::Backoff, None)]).unwell().is_empty(), "the first connection isn't made yet");
        let mut deaf = status(&[live]);
        deaf.relays[0].deaf = vec![Deaf { subscription: "s".to_owned(), why: "no".to_owned() }];
        assert_eq!(deaf.unwell(), ["nostr: `ws://r` does not let us hear: s: no"]);
    }
}
