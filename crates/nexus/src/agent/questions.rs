//! What agents want the owner to decide: the questions that are open, and where the owner can be asked. Owns
//! the codes by which an answer finds its question. Sends nothing and stores nothing: a question ends with the
//! run that asked it, and so with the daemon.

use crate::routes::Place;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::mpsc;

/// Questions of one agent that may be open at a time.
pub const OPEN_MAX: usize = 8;
/// How many codes there are: `000-000` to `999-999`.
const CODES: u128 = 1_000_000;
/// Codes that are tried for a question before it is given up: of so many at most a few are taken.
const CODE_TRIES_MAX: u32 = 100;
/// Characters of a code.
const CODE_CHARS: usize = 7;

/// What became of a question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    Yes,
    No,
    /// It could not be put to the owner.
    NotAsked,
}

/// A code with what its question came to.
pub type Answered = (String, Answer);

#[derive(Debug)]
struct Open {
    agent: String,
    answers: mpsc::Sender<Answered>,
}

/// All open questions. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Questions {
    open: Arc<Mutex<HashMap<String, Open>>>,
    /// Where the owner was heard last and alone.
    owner: Arc<Mutex<Option<Place>>>,
}

/// An open question. Dropping it closes the question: an answer comes too late then.
#[derive(Debug)]
pub struct Ticket {
    code: String,
    questions: Questions,
}

impl Ticket {
    pub fn code(&self) -> &str {
        &self.code
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.questions.lock().remove(&self.code);
    }
}

impl Questions {
    /// Opens a question of `agent`, whose answer goes to `answers`, which must have room for one answer of
    /// each of its questions. `None` while [`OPEN_MAX`] are open.
    pub fn open(&self, agent: &str, answers: &mpsc::Sender<Answered>) -> Option<Ticket> {
        let mut open = self.lock();
        if open.values().filter(|one| one.agent == agent).count() >= OPEN_MAX {
            return None;
        }
        let code = (0..CODE_TRIES_MAX).map(|_| new_code()).find(|code| !open.contains_key(code))?;
        open.insert(code.clone(), Open { agent: agent.to_owned(), answers: answers.clone() });
        drop(open);
        Some(Ticket { code, questions: self.clone() })
    }

    /// Answers a question, once. False when none of this code is open.
    pub fn answer(&self, code: &str, answer: Answer) -> bool {
        let Some(open) = self.lock().remove(code) else { return false };
        open.answers.try_send((code.to_owned(), answer)).is_ok()
    }

    /// Whether any question waits for its answer.
    pub fn are_open(&self) -> bool {
        !self.lock().is_empty()
    }

    /// The owner said something here.
    pub fn owner_is_at(&self, place: Place) {
        *self.owner.lock().unwrap_or_else(PoisonError::into_inner) = Some(place);
    }

    /// The owner said something here before the daemon started; what they said since then counts for more. Returns where
    /// they can be answered.
    pub fn owner_was_at(&self, place: Place) -> Place {
        self.owner.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(place).clone()
    }

    /// Where the owner said something last, as far as it is known here, and can be answered.
    pub fn owner_place(&self) -> Option<Place> {
        self.owner.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Open>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn new_code() -> String {
    let number = ulid::Ulid::generate().random() % CODES;
    format!("{:03}-{:03}", number / 1000, number % 1000)
}

/// Reads `yes 482-913` or `no 482-913`; `None` for any other text.
pub fn read(text: &str) -> Option<Answered> {
    let (word, code) = text.trim().split_once(char::is_whitespace)?;
    let answer = match word.to_ascii_lowercase().as_str() {
        "yes" => Answer::Yes,
        "no" => Answer::No,
        _ => return None,
    };
    let code = code.trim();
    let fits = |(at, byte): (usize, u8)| if at == CODE_CHARS / 2 { byte == b'-' } else { byte.is_ascii_digit() };
    (code.len() == CODE_CHARS && code.bytes().enumerate().all(fits)).then(|| (code.to_owned(), answer))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use nexus_core::request::DeliveryTarget;

    #[test]
    fn an_answer_is_two_words_and_nothing_else_is_one() {
        assert_eq!(read(" Yes 482-913\n"), Some(("482-913".to_owned(), Answer::Yes)));
        assert_eq!(read("no  000-001"), Some(("000-001".to_owned(), Answer::No)));
        for other in ["", "yes", "no thanks", "yes 482913", "yes 48a-913", "maybe 482-913", "yes 482-913 please", "yes 4é2-91"] {
            assert_eq!(read(other), None, "{other}");
        }
    }

    #[test]
    fn a_question_is_answered_once_and_ends_with_its_ticket() {
        let (questions, (sender, mut answers)) = (Questions::default(), mpsc::channel(OPEN_MAX));
        assert!(!questions.are_open());
        let ticket = questions.open("a", &sender).unwrap();
        assert!(questions.are_open());
        let code = ticket.code().to_owned();
        assert_eq!(read(&format!("yes {code}")), Some((code.clone(), Answer::Yes)));
        assert!(questions.answer(&code, Answer::Yes));
        assert!(!questions.answer(&code, Answer::No), "a code is used up");
        assert_eq!(answers.try_recv().unwrap(), (code, Answer::Yes));
        let late = questions.open("a", &sender).unwrap().code().to_owned();
        assert!(!questions.answer(&late, Answer::Yes), "nobody waits for it any more");
        assert!(!questions.are_open());
    }

    #[test]
    fn where_the_owner_was_before_the_start_counts_for_less_than_where_they_were_since() {
        let place = |adapter: &str| {
            let target = DeliveryTarget {
                channel: adapter.to_owned(),
                account_id: "me".to_owned(),
                target: "p1".to_owned(),
                thread_id: None,
                reply_to_id: None,
            };
            Place { adapter: adapter.to_owned(), target }
        };
        let questions = Questions::default();
        assert_eq!(questions.owner_was_at(place("old")), place("old"));
        questions.owner_is_at(place("new"));
        assert_eq!(questions.owner_was_at(place("old")), place("new"));
        assert_eq!(questions.owner_place(), Some(place("new")));
    }

    #[test]
    fn one_agent_has_so_many_questions_and_leaves_room_for_others() {
        let (questions, (sender, _answers)) = (Questions::default(), mpsc::channel(2 * OPEN_MAX));
        let mut tickets: Vec<Ticket> = (0..OPEN_MAX).map(|_| questions.open("a", &sender).unwrap()).collect();
        assert!(questions.open("a", &sender).is_none());
        assert!(questions.open("b", &sender).is_some());
        tickets.pop();
        assert!(questions.open("a", &sender).is_some());
    }
}
