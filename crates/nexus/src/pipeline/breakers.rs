//! The breakers of all sessions, and those of conversations in which what plugins and automations sent comes back:
//! each [`nexus_core::breaker`] with a clock, and who is told when one opens. In memory only: after a start all begin
//! closed.

use super::{Exit, Pipeline, router};
use crate::clock;
use crate::routes::{CLI_CHANNEL, CRON_TYPE, TIMER_CHANNEL};
use nexus_core::breaker::{ANSWERS_MAX, Breaker, Circle, Message, QUIET_MS, REPEATS_MAX, Verdict, WINDOW_MS};
use nexus_core::config::PrincipalType;
use nexus_core::event::Event;
use nexus_core::notice::NoticeType;
use nexus_core::request::NexusRequest;
use serde_json::{Value, json};
use std::collections::{HashMap, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex, PoisonError};

/// Sessions that are watched; those that were quiet for longest make room.
const SESSIONS_MAX: usize = 4096;
/// Messages of plugins and automations that are remembered; the newest.
const SENT_MAX: usize = 1024;
const MINUTE_MS: u64 = 60_000;
/// Letters that a text has at least which is compared without its numbers: of shorter ones they may be all that it says.
const LETTERS_MIN: usize = 12;
/// Longest text that is, in bytes.
const COMPARED_BYTES_MAX: usize = 2048;
/// Sessions and conversations that are stopped of which is told; of the others how many there are.
const TOLD_MAX: usize = 10;

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

/// Of the breakers of conversations.
const CAME_BACK: &str = "what plugins or automations sent came back";

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
        let words = hash_of(&event.content);
        let hash = if has_attachments(event) { hash_with(words, &event.attachments) } else { words };
        // Machines report numbers, and so may the owner's own programs.
        let is_exact = is_automatic || principal == PrincipalType::Owner;
        let likeness = if is_exact { hash } else { likeness_of(&event.content) };
        let likeness = Some(likeness).filter(|_| !event.content.trim().is_empty());
        let message = Message { seq: request.event_seq, hash, words, likeness, is_automatic, at_ms };
        let mut sessions = self.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        make_room(&mut sessions, session, at_ms);
        match sessions.entry(session.to_owned()).or_default().step(message) {
            Verdict::Pass => None,
            Verdict::Stop { is_first, circle } => Some(Stopped { reason: reason(what(circle), max_of(circle)), is_first }),
        }
    }

    /// Sentences about the sessions that are stopped, and about the conversations in which what plugins and automations
    /// sent comes back; by their labels.
    pub fn open(&self, at_ms: u64) -> Vec<String> {
        let mut all = Vec::new();
        for (session, breaker) in self.sessions.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            let circle = breaker.open(at_ms);
            all.extend(circle.map(|circle| format!("session `{session}` goes round in circles and is stopped: {}", what(circle))));
        }
        for (conversation, breaker) in &self.returns.lock().unwrap_or_else(PoisonError::into_inner).conversations {
            if breaker.open(at_ms).is_some() {
                let conversation = shown(conversation);
                all.push(format!("conversation `{conversation}` goes round in circles and is stopped: {CAME_BACK}"));
            }
        }
        all.sort();
        let more = all.len().saturating_sub(TOLD_MAX);
        all.truncate(TOLD_MAX);
        all.extend((more > 0).then(|| format!("{more} more sessions and conversations are stopped")));
        all
    }

    /// Why a session is stopped, if it is.
    pub fn open_in(&self, session: &str, at_ms: u64) -> Option<&'static str> {
        let sessions = self.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        sessions.get(session).and_then(|breaker| breaker.open(at_ms)).map(what)
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
        let message = Message { seq: request.event_seq, hash: 0, words: 0, likeness: None, is_automatic: true, at_ms };
        match returns.conversations.entry(conversation.to_owned()).or_default().step(message) {
            Verdict::Pass => None,
            Verdict::Stop { is_first, circle: _ } => Some(Stopped { reason: reason(CAME_BACK, REPEATS_MAX), is_first }),
        }
    }

    /// Something is about to leave that answers a session's message; events up to this seq came before it.
    pub(super) fn speaks(&self, session: &str, upto: i64) {
        let mut sessions = self.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        // Sessions whose messages aren't looked at have none.
        if let Some(breaker) = sessions.get_mut(session) {
            breaker.speaks(upto);
        }
    }

    /// Remembers what a session's agent said, and the messages that it goes out in, to know it when it comes back.
    pub(super) fn replied(&self, session: &str, text: &str, messages: &[&str]) {
        let messages: Vec<u64> = messages.iter().map(|message| hash_of(message)).collect();
        let mut sessions = self.sessions.lock().unwrap_or_else(PoisonError::into_inner);
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

/// Who types a message or asks for a replay means it, and who configured a schedule each of its slots.
fn is_meant(event: &Event) -> bool {
    let is_scheduled = event.channel == TIMER_CHANNEL && event.content_type == CRON_TYPE;
    is_scheduled || event.channel == CLI_CHANNEL || event.event_id.contains("#replay:")
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

fn has_attachments(event: &Event) -> bool {
    event.attachments.as_array().is_some_and(|all| !all.is_empty())
}

/// Of words with what is attached to them, as far as that is told: pictures differ by their addresses and sizes.
fn hash_with(words: u64, attachments: &Value) -> u64 {
    let mut hasher = DefaultHasher::new();
    (words, attachments.to_string()).hash(&mut hasher);
    hasher.finish()
}

/// Of a text without its numbers: what answers by itself likes to name the time, or a ticket.
fn likeness_of(text: &str) -> u64 {
    let has_letters = || text.chars().filter(|c| c.is_alphabetic()).nth(LETTERS_MIN - 1).is_some();
    if text.len() > COMPARED_BYTES_MAX || !has_letters() {
        return hash_of(text);
    }
    let mut compared = String::with_capacity(text.len());
    for c in text.chars() {
        let c = if c.is_numeric() { '0' } else { c };
        if c != '0' || !compared.ends_with('0') {
            compared.push(c);
        }
    }
    hash_of(&compared)
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

fn what(circle: Circle) -> &'static str {
    match circle {
        Circle::Echo => "what the agent said came back",
        Circle::Same => "the same message without a person behind it",
        Circle::Answers => "the same message in answer to each of ours",
    }
}

fn max_of(circle: Circle) -> usize {
    match circle {
        Circle::Echo | Circle::Same => REPEATS_MAX,
        Circle::Answers => ANSWERS_MAX,
    }
}

fn reason(what: &str, max: usize) -> String {
    let (window, quiet) = (WINDOW_MS / MINUTE_MS, QUIET_MS / MINUTE_MS);
    let often = format!("more than {max} times in a row within {window} minutes");
    format!("breaker: {what}, {often}; closes after {quiet} quiet minutes, or with another message")
}

/// A conversation's key as people read it.
fn shown(conversation: &str) -> String {
    conversation.replace('\u{1f}', "/")
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
        self.stop(request, &shown(&conversation), stopped)
    }

    /// Something is about to leave in this session that answers what came so far.
    pub(super) fn speaks(&self, session: &str) {
        self.breakers.speaks(session, *self.admitted.borrow());
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
    fn whoever_answers_each_of_our_messages_alike_is_stopped_after_ten() {
        let said = |n: i64| format!("I am out of office until 2026-12-{}. Ticket {}", 10 + n, n * 77);
        for (principal, is_told_apart) in [(PrincipalType::Known, false), (PrincipalType::Unknown, false), (PrincipalType::Owner, true)] {
            let breakers = Breakers::default();
            let look = |seq: i64, content: &str| {
                let stopped = breakers.look(&request(seq, "fake", content), principal, "s", seq.unsigned_abs());
                breakers.speaks("s", seq);
                stopped.map(|stopped| stopped.reason)
            };
            assert!((1..=10).all(|seq| look(seq, &said(seq)).is_none()));
            let eleventh = look(11, &said(11));
            assert_eq!(eleventh.is_none(), is_told_apart, "{principal:?}: {eleventh:?}");
            assert!((21..=30).all(|seq| look(seq, "just so").is_none()));
            let reason = look(31, "just so").unwrap();
            assert!(reason.starts_with("breaker: the same message in answer to each of ours, more than 10 times"), "{reason}");
            assert_eq!(breakers.open_in("s", 32), Some("the same message in answer to each of ours"));
            assert_eq!(breakers.open(32).len(), 1);
            assert!(breakers.open(32 + QUIET_MS).is_empty());
        }
    }

    #[test]
    fn short_texts_are_told_apart_by_their_numbers() {
        assert_eq!(likeness_of("It is 9:05 at number 17 now"), likeness_of("It is 19:5 at number 1 now"));
        assert_ne!(likeness_of("It is 9:05 at number 17 now"), likeness_of("It was 9:05 at number 17 now"));
        assert_ne!(likeness_of("message 1"), likeness_of("message 2"));
        let long = |n: u32| format!("{}{n}", "x".repeat(COMPARED_BYTES_MAX));
        assert_ne!(likeness_of(&long(1)), likeness_of(&long(2)));
    }

    #[test]
    fn slots_of_a_schedule_are_meant_and_heartbeats_are_not() {
        let breakers = Breakers::default();
        let passed = |session: &str, content_type: &str| {
            let look = |seq: i64| {
                let mut request = request(seq, TIMER_CHANNEL, "");
                request.event.content_type = content_type.to_owned();
                breakers.look(&request, PrincipalType::System, session, seq.unsigned_abs())
            };
            (1..=50).filter(|seq| look(*seq).is_none()).count()
        };
        assert_eq!((passed("a", CRON_TYPE), passed("b", "system/heartbeat")), (50, REPEATS_MAX));
    }

    #[test]
    fn pictures_are_told_apart_and_a_picture_that_comes_again_is_not() {
        for (content, passed) in [("", [50, REPEATS_MAX]), ("Motion at the front door", [50, REPEATS_MAX])] {
            let breakers = Breakers::default();
            let look = |session: &str, seq: i64, picture: i64| {
                let mut request = request(seq, "fake", content);
                request.event.attachments = json!([{ "id": "a", "url": format!("https://cam/{picture}.jpg") }]);
                let stopped = breakers.look(&request, PrincipalType::Webhook, session, seq.unsigned_abs());
                breakers.speaks(session, seq);
                stopped
            };
            let different = (1..=50).filter(|seq| look("a", *seq, *seq).is_none()).count();
            let same = (1..=50).filter(|seq| look("b", *seq, 0).is_none()).count();
            assert_eq!([different, same], passed, "{content}");
        }
    }

    #[test]
    fn of_many_that_are_stopped_some_are_told_and_the_others_counted() {
        let breakers = Breakers::default();
        for session in 0..TOLD_MAX + 3 {
            let look = |seq: i64| breakers.look(&request(seq, "fake", "x"), PrincipalType::System, &session.to_string(), 1);
            assert_eq!((1..=6).filter(|seq| look(*seq).is_some()).count(), 1);
        }
        let told = breakers.open(1);
        assert_eq!((told.len(), told.last().map(String::as_str)), (TOLD_MAX + 1, Some("3 more sessions and conversations are stopped")));
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
