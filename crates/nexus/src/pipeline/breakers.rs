//! The breakers of all sessions: each [`nexus_core::breaker`] with a clock, and who is told when one opens.
//! In memory only: after a start every session begins with a closed one.

use super::{Exit, Pipeline};
use crate::clock;
use crate::routes::CLI_CHANNEL;
use nexus_core::breaker::{Breaker, Message, QUIET_MS, REPEATS_MAX, Verdict, WINDOW_MS};
use nexus_core::config::PrincipalType;
use nexus_core::notice::NoticeType;
use nexus_core::request::NexusRequest;
use serde_json::json;
use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex, PoisonError};

/// Sessions that are watched; those that were quiet for longest make room.
const SESSIONS_MAX: usize = 4096;
const MINUTE_MS: u64 = 60_000;

/// A breaker per session. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Breakers {
    sessions: Arc<Mutex<HashMap<String, Breaker>>>,
}

/// Why a message has no turn.
#[derive(Debug)]
pub(super) struct Stopped {
    pub(super) reason: String,
    /// It is the first one that is stopped.
    pub(super) is_first: bool,
}

impl Breakers {
    /// Whether the message may have a turn in its session.
    pub(super) fn look(&self, request: &NexusRequest, principal: PrincipalType, session: &str, at_ms: u64) -> Option<Stopped> {
        let event = &request.event;
        // Who types a message or asks for a replay means it.
        if event.channel == CLI_CHANNEL || event.event_id.contains("#replay:") {
            return None;
        }
        let is_automatic = match principal {
            PrincipalType::System | PrincipalType::Webhook | PrincipalType::Agent => true,
            PrincipalType::Owner | PrincipalType::Known | PrincipalType::Unknown => false,
        };
        let message = Message { seq: request.event_seq, hash: hash_of(&event.content), is_automatic, at_ms };
        let mut sessions = self.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        make_room(&mut sessions, session, at_ms);
        match sessions.entry(session.to_owned()).or_default().step(message) {
            Verdict::Pass => None,
            Verdict::Stop { is_first, is_echo } => Some(Stopped { reason: reason(is_echo), is_first }),
        }
    }

    /// Remembers what a session's agent said, and the messages that it goes out in, to know it when it comes back.
    pub(super) fn replied(&self, session: &str, text: &str, messages: &[&str]) {
        let messages: Vec<u64> = messages.iter().map(|message| hash_of(message)).collect();
        let mut sessions = self.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        // Sessions whose messages aren't looked at have none.
        if let Some(breaker) = sessions.get_mut(session) {
            breaker.replied(hash_of(text), &messages);
        }
    }

    /// Remembers a message that left while the session's agent still spoke: it may come back before the rest.
    pub(super) fn said(&self, session: &str, message: &str) {
        let mut sessions = self.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(breaker) = sessions.get_mut(session) {
            breaker.said(hash_of(message));
        }
    }
}

fn hash_of(text: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    text.trim().hash(&mut hasher);
    hasher.finish()
}

fn make_room(sessions: &mut HashMap<String, Breaker>, session: &str, at_ms: u64) {
    if sessions.len() < SESSIONS_MAX || sessions.contains_key(session) {
        return;
    }
    sessions.retain(|_, breaker| !breaker.is_quiet(at_ms));
    while sessions.len() >= SESSIONS_MAX {
        let oldest = sessions.iter().min_by_key(|(_, breaker)| breaker.last_ms()).map(|(session, _)| session.clone());
        let Some(oldest) = oldest else { return };
        sessions.remove(&oldest);
    }
}

fn reason(is_echo: bool) -> String {
    let (window, quiet) = (WINDOW_MS / MINUTE_MS, QUIET_MS / MINUTE_MS);
    let what = if is_echo {
        format!("what the agent said came back, more than {REPEATS_MAX} times in a row within {window} minutes")
    } else {
        format!("the same message without a person behind it, more than {REPEATS_MAX} times in a row within {window} minutes")
    };
    format!("breaker: {what}; closes after {quiet} quiet minutes, or with another message")
}

impl Pipeline {
    /// Ends a request that only repeats, and says so when that begins.
    pub(super) fn ask_breaker(&self, request: &NexusRequest, principal: PrincipalType, session: &str) -> Result<(), Exit> {
        let Some(Stopped { reason, is_first }) = self.breakers.look(request, principal, session, clock::mono_ms()) else { return Ok(()) };
        if is_first {
            let event_id = &request.event.event_id;
            tracing::warn!(session, event_id, reason, "a session goes round in circles; its turns are stopped");
            let notice = json!({
                "what": "breaker", "error": reason, "session": session, "event_id": event_id, "request_id": request.request_id,
            });
            self.bus.publish(NoticeType::SystemError, notice);
        }
        Err(Exit::Handled { by: reason })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn request(seq: i64, channel: &str, content: &str) -> NexusRequest {
        let event_id = format!("{channel}:{seq}");
        let event =
            nexus_core::event::Event { channel: channel.to_owned(), content: content.to_owned(), ..crate::samples::event(event_id) };
        NexusRequest::new(format!("req_{seq}"), seq, 0, event)
    }

    /// How many of `count` equal messages pass.
    fn passed(breakers: &Breakers, channel: &str, principal: PrincipalType, count: i64) -> usize {
        let look = |seq: i64| breakers.look(&request(seq, channel, "again"), principal, "s", seq.unsigned_abs());
        (1..=count).filter(|seq| look(*seq).is_none()).count()
    }

    #[test]
    fn what_no_person_sent_repeats_five_times_and_is_told_once() {
        for principal in [PrincipalType::System, PrincipalType::Webhook, PrincipalType::Agent] {
            let breakers = Breakers::default();
            assert_eq!(passed(&breakers, "fake", principal, 5), 5);
            let sixth = breakers.look(&request(6, "fake", "again"), principal, "s", 6).unwrap();
            assert!(sixth.is_first && sixth.reason.starts_with("breaker: "), "{sixth:?}");
            assert!(!breakers.look(&request(7, "fake", "again"), principal, "s", 7).unwrap().is_first);
            assert!(breakers.look(&request(8, "fake", "again"), principal, "other", 8).is_none());
        }
    }

    #[test]
    fn people_may_repeat_and_the_control_socket_always_may() {
        assert_eq!(passed(&Breakers::default(), "fake", PrincipalType::Owner, 50), 50);
        let breakers = Breakers::default();
        assert_eq!(passed(&breakers, CLI_CHANNEL, PrincipalType::System, 50), 50);
        breakers.replied("s", "again", &["again"]);
        assert_eq!(passed(&breakers, CLI_CHANNEL, PrincipalType::Owner, 50), 50);
    }

    #[test]
    fn our_own_words_are_known_when_they_come_back() {
        let breakers = Breakers::default();
        let mut stopped = None;
        for seq in 1..=10 {
            stopped = breakers.look(&request(seq, "fake", "hello"), PrincipalType::Known, "s", seq.unsigned_abs());
            if stopped.is_some() {
                break;
            }
            breakers.replied("s", "hello\n", &["hello\n"]);
        }
        assert!(stopped.unwrap().reason.contains("what the agent said came back"));
    }

    #[test]
    fn what_went_out_in_several_messages_is_known_by_each() {
        let breakers = Breakers::default();
        let look = |seq: i64, content| breakers.look(&request(seq, "fake", content), PrincipalType::Known, "s", 1);
        assert!(look(1, "what is new?").is_none());
        breakers.replied("s", "one\n\ntwo", &["one", "two"]);
        breakers.replied("s", "and this", &["and this"]);
        let stopped: Vec<bool> = (2..=7).map(|seq| look(seq, if seq % 2 == 0 { "one" } else { " two" }).is_some()).collect();
        assert_eq!(stopped, [false, false, false, false, true, true]);
    }

    #[test]
    fn no_more_sessions_are_kept_than_may() {
        let breakers = Breakers::default();
        for n in 0..SESSIONS_MAX + 100 {
            let seq = i64::try_from(n + 1).unwrap();
            assert!(breakers.look(&request(seq, "fake", "x"), PrincipalType::System, &n.to_string(), n as u64).is_none());
        }
        assert_eq!(breakers.sessions.lock().unwrap().len(), SESSIONS_MAX);
    }
}
