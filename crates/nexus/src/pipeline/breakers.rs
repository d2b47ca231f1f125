//! The breakers of all sessions, and those of conversations in which what plugins and automations sent comes back:
//! each [`nexus_core::breaker`] with a clock, and who is told when one opens. In memory only: after a start all begin
//! closed.

use super::{Exit, Pipeline, router};
use crate::clock;
use crate::routes::CLI_CHANNEL;
use nexus_core::breaker::{Breaker, Message, QUIET_MS, REPEATS_MAX, Verdict, WINDOW_MS};
use nexus_core::config::PrincipalType;
use nexus_core::event::Event;
use nexus_core::notice::NoticeType;
use nexus_core::request::NexusRequest;
use serde_json::json;
use std::collections::{HashMap, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex, PoisonError};

/// Sessions that are watched; those that were quiet for longest make room.
const SESSIONS_MAX: usize = 4096;
/// Messages of plugins and automations that are remembered; the newest.
const SENT_MAX: usize = 1024;
const MINUTE_MS: u64 = 60_000;

/// A breaker per session, and per conversation that brings back what was sent. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Breakers {
    sessions: Arc<Mutex<HashMap<String, Breaker>>>,
    returns: Arc<Mutex<Returns>>,
}

/// What plugins and automations sent, and where it comes back.
#[derive(Debug, Default)]
struct Returns {
    /// Channel and text as one number, and when; the newest last.
    sent: VecDeque<(u64, u64)>,
    conversations: HashMap<String, Breaker>,
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
        if is_meant(event) {
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
            Verdict::Stop { is_first, is_echo: true } => Some(Stopped { reason: reason("what the agent said came back"), is_first }),
            Verdict::Stop { is_first, is_echo: false } => {
                Some(Stopped { reason: reason("the same message without a person behind it"), is_first })
            }
        }
    }

    /// Remembers what a plugin or an automation is about to send, to know it when it comes back.
    pub(crate) fn sent(&self, channel: &str, message: &str, at_ms: u64) {
        let mut returns = self.returns.lock().unwrap_or_else(PoisonError::into_inner);
        if returns.sent.len() >= SENT_MAX {
            returns.sent.pop_front();
        }
        returns.sent.push_back((hash_on(channel, message), at_ms));
    }

    /// Whether a message may be looked at by plugins and automations: they may send something for each that comes, and so
    /// answer themselves for ever.
    fn look_at_return(&self, request: &NexusRequest, conversation: &str, at_ms: u64) -> Option<Stopped> {
        let event = &request.event;
        let mut returns = self.returns.lock().unwrap_or_else(PoisonError::into_inner);
        if returns.sent.is_empty() || is_meant(event) {
            return None;
        }
        let hash = hash_on(&event.channel, &event.content);
        let is_recent = |then: u64| at_ms.saturating_sub(then) < WINDOW_MS;
        if !returns.sent.iter().any(|(sent, then)| *sent == hash && is_recent(*then)) {
            returns.conversations.remove(conversation);
            return None;
        }
        make_room(&mut returns.conversations, conversation, at_ms);
        // What repeats is that it comes back, whatever it says.
        let message = Message { seq: request.event_seq, hash: 0, is_automatic: true, at_ms };
        match returns.conversations.entry(conversation.to_owned()).or_default().step(message) {
            Verdict::Pass => None,
            Verdict::Stop { is_first, is_echo: _ } => {
                Some(Stopped { reason: reason("what plugins or automations sent came back"), is_first })
            }
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

/// Who types a message or asks for a replay means it.
fn is_meant(event: &Event) -> bool {
    event.channel == CLI_CHANNEL || event.event_id.contains("#replay:")
}

fn hash_on(channel: &str, text: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    (channel, text.trim()).hash(&mut hasher);
    hasher.finish()
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

fn reason(what: &str) -> String {
    let (window, quiet) = (WINDOW_MS / MINUTE_MS, QUIET_MS / MINUTE_MS);
    let often = format!("more than {REPEATS_MAX} times in a row within {window} minutes");
    format!("breaker: {what}, {often}; closes after {quiet} quiet minutes, or with another message")
}

impl Pipeline {
    /// Ends a request that only repeats, and says so when that begins.
    pub(super) fn ask_breaker(&self, request: &NexusRequest, principal: PrincipalType, session: &str) -> Result<(), Exit> {
        self.stop(request, session, self.breakers.look(request, principal, session, clock::mono_ms()))
    }

    /// The same before anybody is asked about the request, where it brings back what plugins and automations sent.
    pub(super) fn ask_breaker_of_returns(&self, request: &NexusRequest, adapter: &str) -> Result<(), Exit> {
        let conversation = router::conversation_of(adapter, &request.event);
        let stopped = self.breakers.look_at_return(request, &conversation, clock::mono_ms());
        self.stop(request, &conversation.replace('\u{1f}', "/"), stopped)
    }

    fn stop(&self, request: &NexusRequest, session: &str, stopped: Option<Stopped>) -> Result<(), Exit> {
        let Some(Stopped { reason, is_first }) = stopped else { return Ok(()) };
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
    fn what_was_sent_comes_back_five_times_whatever_it_says_and_another_message_closes_it() {
        let breakers = Breakers::default();
        let look = |seq: i64, content: &str| breakers.look_at_return(&request(seq, "fake", content), "c", 1);
        assert!((1..=50).all(|seq| look(seq, "ping").is_none()), "nobody sent anything");
        let came_back = |first: i64| -> usize {
            let send = |seq: &i64| breakers.sent("fake", &format!("n{seq}\n"), 1);
            (first..first + 10).inspect(send).filter(|seq| look(*seq, &format!("n{seq}")).is_none()).count()
        };
        assert_eq!(came_back(100), 5);
        assert!(look(200, "n109").unwrap().reason.starts_with("breaker: what plugins or automations sent came back"));
        assert!(breakers.look_at_return(&request(201, "fake", "n109"), "elsewhere", 1).is_none(), "each conversation has its own");
        assert!(breakers.look_at_return(&request(202, "other", "n109"), "c", 1).is_none(), "nobody sent it there");
        assert_eq!(came_back(300), 5);
        assert!(breakers.look_at_return(&request(400, "fake", "n309"), "c", 1 + WINDOW_MS).is_none(), "it was sent long ago");
    }

    #[test]
    fn no_more_of_what_was_sent_is_kept_than_may() {
        let breakers = Breakers::default();
        (0..2 * SENT_MAX).for_each(|n| breakers.sent("fake", &n.to_string(), 1));
        assert_eq!(breakers.returns.lock().unwrap().sent.len(), SENT_MAX);
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
