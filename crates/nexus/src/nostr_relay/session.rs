//! One client's conversation: what it subscribed to, whether it said who it is, and what each of its messages
//! leads to. Plain decisions; it reads no socket, no database and no clock.

use super::event::{AUTH_KIND, Class, Event};
use super::filter::Filter;
use super::limits::{AUTH_S_MAX, FILTERS_MAX, STRIKES_MAX, SUBSCRIPTION_CHARS_MAX, SUBSCRIPTIONS_MAX};
use super::message::{self, Said};
use std::collections::BTreeMap;
use std::sync::Arc;

/// What the relay wants to know of a client before it serves it (NIP-42).
#[derive(Debug)]
pub(super) struct Demand {
    pub(super) is_required: bool,
    pub(super) challenge: String,
    /// As the client addressed this relay: the `Host` of its request.
    pub(super) host: String,
}

/// What a message leads to.
#[derive(Debug)]
pub(super) enum Effect {
    Say(String),
    /// Keep it; the client hears when it is kept.
    Keep(Event),
    /// Nothing to keep: pass it on to whoever listens.
    Pass(Event),
    /// Look up what is stored; the subscription stands once that is found.
    Find {
        subscription: String,
        filters: Arc<[Filter]>,
    },
    /// Close the connection.
    End,
}

#[derive(Debug)]
struct Subscription {
    filters: Arc<[Filter]>,
    /// Number of the last stored event that it was told of; `None` while those are looked up.
    told_to: Option<i64>,
}

#[derive(Debug)]
pub(super) struct Session {
    demand: Demand,
    is_known: bool,
    subscriptions: BTreeMap<String, Subscription>,
    strikes: u32,
}

impl Session {
    pub(super) fn new(demand: Demand) -> Self {
        Self { demand, is_known: false, subscriptions: BTreeMap::new(), strikes: 0 }
    }

    /// What is said before the client says anything.
    pub(super) fn greeting(&self) -> Option<String> {
        self.demand.is_required.then(|| message::challenge(&self.demand.challenge))
    }

    /// What a message leads to; `now_s` is the wall time in Unix seconds.
    pub(super) fn take(&mut self, text: &str, now_s: u64) -> Vec<Effect> {
        match message::parse(text) {
            Ok(Said::Event(event)) => self.event(event, now_s),
            Ok(Said::Auth(event)) => self.prove(event, now_s),
            Ok(Said::Req { subscription, filters }) => vec![self.request(subscription, &filters)],
            Ok(Said::Close { subscription }) => {
                self.subscriptions.remove(&subscription);
                Vec::new()
            }
            Err(problem) => self.strike(message::notice(&problem)),
        }
    }

    /// A message that isn't one of text.
    pub(super) fn take_binary(&mut self) -> Vec<Effect> {
        self.strike(message::notice("invalid: messages are text"))
    }

    fn strike(&mut self, told: String) -> Vec<Effect> {
        self.strikes += 1;
        let mut effects = vec![Effect::Say(told)];
        if self.strikes >= STRIKES_MAX {
            effects.push(Effect::End);
        }
        effects
    }

    fn is_stranger(&self) -> bool {
        self.demand.is_required && !self.is_known
    }

    fn event(&mut self, text: &str, now_s: u64) -> Vec<Effect> {
        let event = match checked(text, now_s) {
            Ok(event) => event,
            Err(told) => return self.strike(told),
        };
        let refused = if self.is_stranger() {
            Some("auth-required: say who you are before you publish")
        } else if event.kind == AUTH_KIND {
            Some("invalid: a proof of who you are goes into AUTH")
        } else if event.is_expired(now_s) {
            Some("invalid: it is expired")
        } else {
            None
        };
        match (refused, event.class()) {
            (Some(reason), _) => vec![Effect::Say(message::ok(&event.id, false, reason))],
            (None, Class::Ephemeral) => vec![Effect::Say(message::ok(&event.id, true, "")), Effect::Pass(event)],
            (None, Class::Regular | Class::Replaceable | Class::Addressable) => vec![Effect::Keep(event)],
        }
    }

    fn prove(&mut self, text: &str, now_s: u64) -> Vec<Effect> {
        let event = match checked(text, now_s) {
            Ok(event) => event,
            Err(told) => return self.strike(told),
        };
        match self.fault_of(&event, now_s) {
            Some(fault) => self.strike(message::ok(&event.id, false, fault)),
            None => {
                self.is_known = true;
                vec![Effect::Say(message::ok(&event.id, true, ""))]
            }
        }
    }

    /// What is wrong with a proof (NIP-42, "Signed Event Verification").
    fn fault_of(&self, event: &Event, now_s: u64) -> Option<&'static str> {
        if event.kind != AUTH_KIND {
            Some("invalid: the kind of a proof is 22242")
        } else if event.created_at.abs_diff(now_s) > AUTH_S_MAX {
            Some("invalid: the proof is too old, or a clock is wrong")
        } else if event.tag("challenge") != Some(self.demand.challenge.as_str()) {
            Some("invalid: the proof is for another challenge")
        } else if !event.tag("relay").is_some_and(|url| is_at(url, &self.demand.host)) {
            Some("invalid: the proof is for another relay")
        } else {
            None
        }
    }

    fn request(&mut self, subscription: String, filters: &[&str]) -> Effect {
        match self.admitted(&subscription, filters) {
            Ok(filters) => {
                self.subscriptions.insert(subscription.clone(), Subscription { filters: filters.clone(), told_to: None });
                Effect::Find { subscription, filters }
            }
            Err(reason) => {
                // One of that name is replaced, also by one that is refused.
                self.subscriptions.remove(&subscription);
                let name: String = subscription.chars().take(SUBSCRIPTION_CHARS_MAX).collect();
                Effect::Say(message::closed(&name, &reason))
            }
        }
    }

    fn admitted(&self, subscription: &str, filters: &[&str]) -> Result<Arc<[Filter]>, String> {
        if self.is_stranger() {
            return Err("auth-required: say who you are before you subscribe".to_owned());
        }
        if subscription.is_empty() || subscription.chars().count() > SUBSCRIPTION_CHARS_MAX {
            return Err(format!("invalid: a subscription's id has 1 to {SUBSCRIPTION_CHARS_MAX} characters"));
        }
        if !self.subscriptions.contains_key(subscription) && self.subscriptions.len() >= SUBSCRIPTIONS_MAX {
            return Err(format!("error: a connection may have {SUBSCRIPTIONS_MAX} subscriptions"));
        }
        if filters.is_empty() || filters.len() > FILTERS_MAX {
            return Err(format!("invalid: a subscription has 1 to {FILTERS_MAX} filters"));
        }
        filters.iter().map(|filter| Filter::parse(filter)).collect()
    }

    /// Whether stored events are being looked up. New ones have to wait until it is known which of them were found.
    pub(super) fn is_finding(&self) -> bool {
        self.subscriptions.values().any(|one| one.told_to.is_none())
    }

    /// The stored events up to number `told_to` were found.
    pub(super) fn found(&mut self, subscription: &str, told_to: i64) {
        if let Some(one) = self.subscriptions.get_mut(subscription) {
            one.told_to = Some(told_to);
        }
    }

    /// The stored events can't be told; the subscription is over.
    pub(super) fn lost(&mut self, subscription: &str) {
        self.subscriptions.remove(subscription);
    }

    /// The subscriptions that want a new event; `seq` is its number if it was stored.
    pub(super) fn wanted<'s>(&'s self, seq: Option<i64>, event: &'s Event) -> impl Iterator<Item = &'s str> {
        let is_new = move |one: &Subscription| one.told_to.is_some_and(|told_to| seq.is_none_or(|seq| seq > told_to));
        let all = self.subscriptions.iter();
        all.filter(move |(_, one)| is_new(one) && one.filters.iter().any(|filter| filter.matches(event))).map(|(name, _)| name.as_str())
    }
}

/// An event, or what its sender is told.
fn checked(text: &str, now_s: u64) -> Result<Event, String> {
    Event::checked(text, now_s).map_err(|refused| match &refused.id {
        Some(id) => message::ok(id, false, &refused.reason),
        None => message::notice(&refused.reason),
    })
}

/// Whether a relay's address leads to this host.
fn is_at(url: &str, host: &str) -> bool {
    let rest = url.strip_prefix("ws://").or_else(|| url.strip_prefix("wss://"));
    rest.and_then(|rest| rest.split('/').next()).is_some_and(|place| place.eq_ignore_ascii_case(host))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::event::tests::{NOW_S, event, signed};
    use super::*;
    use serde_json::{Value, json};

    fn session(is_required: bool) -> Session {
        Session::new(Demand { is_required, challenge: "riddle".to_owned(), host: "127.0.0.1:7410".to_owned() })
    }

    /// The one message that is said in answer.
    fn said(effects: Vec<Effect>) -> Value {
        let [Effect::Say(text)] = effects.as_slice() else { panic!("{effects:?}") };
        serde_json::from_str(text).unwrap()
    }

    fn publish(event: &str) -> String {
        format!("[\"EVENT\",{event}]")
    }

    #[test]
    fn events_are_kept_passed_on_or_refused() {
        let mut session = session(false);
        assert!(session.greeting().is_none());
        let kept = session.take(&publish(&signed(1, 1, NOW_S, &[], "hi")), NOW_S);
        assert!(matches!(kept.as_slice(), [Effect::Keep(event)] if event.kind == 1), "{kept:?}");
        let passed = session.take(&publish(&signed(1, 20_001, NOW_S, &[], "hi")), NOW_S);
        assert!(matches!(passed.as_slice(), [Effect::Say(_), Effect::Pass(_)]), "{passed:?}");
        let expired = said(session.take(&publish(&signed(1, 1, NOW_S, &[&["expiration", "5"]], "")), NOW_S));
        assert_eq!((&expired[2], &expired[3]), (&json!(false), &json!("invalid: it is expired")));
        let proof = said(session.take(&publish(&signed(1, AUTH_KIND, NOW_S, &[], "")), NOW_S));
        assert_eq!(proof[2], false);
    }

    #[test]
    fn who_must_say_who_it_is_is_served_after_that() {
        let mut session = session(true);
        assert_eq!(session.greeting().unwrap(), r#"["AUTH","riddle"]"#);
        let event = publish(&signed(1, 1, NOW_S, &[], "hi"));
        assert!(said(session.take(&event, NOW_S))[3].as_str().unwrap().starts_with("auth-required: "));
        assert!(said(session.take(r#"["REQ","s",{}]"#, NOW_S))[2].as_str().unwrap().starts_with("auth-required: "));
        let proof = |kind, at, challenge: &str, relay: &str| {
            format!("[\"AUTH\",{}]", signed(1, kind, at, &[&["challenge", challenge], &["relay", relay]], ""))
        };
        let here = "ws://127.0.0.1:7410";
        let wrong = [
            proof(1, NOW_S, "riddle", here),
            proof(AUTH_KIND, NOW_S - AUTH_S_MAX - 1, "riddle", here),
            proof(AUTH_KIND, NOW_S, "another", here),
            proof(AUTH_KIND, NOW_S, "riddle", "ws://127.0.0.1:7411"),
            proof(AUTH_KIND, NOW_S, "riddle", "127.0.0.1:7410"),
        ];
        for one in wrong {
            assert_eq!(said(session.take(&one, NOW_S))[2], false, "{one}");
        }
        assert_eq!(said(session.take(&proof(AUTH_KIND, NOW_S, "riddle", "ws://127.0.0.1:7410/"), NOW_S))[2], true);
        assert!(matches!(session.take(&event, NOW_S).as_slice(), [Effect::Keep(_)]));
    }

    #[test]
    fn a_subscription_tells_each_event_once() {
        let mut session = session(false);
        let found = session.take(r#"["REQ","s",{"kinds":[1]}]"#, NOW_S);
        assert!(matches!(found.as_slice(), [Effect::Find { subscription, .. }] if subscription == "s"), "{found:?}");
        let event = event(1, 1, NOW_S, &[], "");
        assert!(session.is_finding());
        assert_eq!(session.wanted(Some(9), &event).count(), 0);
        session.found("s", 7);
        assert!(!session.is_finding());
        assert_eq!(session.wanted(Some(7), &event).count(), 0, "it was among the stored ones");
        assert_eq!(session.wanted(Some(8), &event).collect::<Vec<_>>(), ["s"]);
        assert_eq!(session.wanted(None, &event).collect::<Vec<_>>(), ["s"]);
        session.take(r#"["CLOSE","s"]"#, NOW_S);
        assert_eq!(session.wanted(None, &event).count(), 0);
        session.found("s", 9);
        assert_eq!(session.wanted(None, &event).count(), 0, "what was closed stays closed");
    }

    #[test]
    fn requests_have_bounds() {
        let mut session = session(false);
        let long = "x".repeat(SUBSCRIPTION_CHARS_MAX + 1);
        let many = ",{}".repeat(FILTERS_MAX + 1);
        for text in [format!("[\"REQ\",\"{long}\",{{}}]"), format!("[\"REQ\",\"s\"{many}]"), "[\"REQ\",\"s\"]".to_owned()] {
            assert_eq!(said(session.take(&text, NOW_S))[0], "CLOSED", "{text}");
        }
        for n in 0..SUBSCRIPTIONS_MAX {
            let effects = session.take(&format!("[\"REQ\",\"{n}\",{{}}]"), NOW_S);
            assert!(matches!(effects.as_slice(), [Effect::Find { .. }]));
        }
        assert_eq!(said(session.take(r#"["REQ","more",{}]"#, NOW_S))[0], "CLOSED");
        assert!(matches!(session.take(r#"["REQ","0",{}]"#, NOW_S).as_slice(), [Effect::Find { .. }]), "one of that name is replaced");
    }

    #[test]
    fn whoever_talks_nonsense_is_left() {
        let mut session = session(false);
        for _ in 1..STRIKES_MAX {
            assert_eq!(said(session.take("nonsense", NOW_S))[0], "NOTICE");
        }
        assert!(matches!(session.take_binary().as_slice(), [Effect::Say(_), Effect::End]));
    }
}
