//! The breaker of one session: stops turns that only repeat, so that two programs that answer each other, or a timer
//! with nothing new to say, can't go on for ever. Who sent a message doesn't tell whether a person did: a mailbox that
//! answers by itself writes as its owner. Pure: it reads no clock, and what is stopped its caller decides. Session
//! labels and texts come in as hashes.

use std::collections::{BTreeSet, VecDeque};

/// Repetitions in a row that go through.
pub const REPEATS_MAX: usize = 5;
/// The same of messages that a person may have sent, each as an answer to ours: people do say one thing often.
pub const ANSWERS_MAX: usize = 10;
/// They count within this time, in milliseconds.
pub const WINDOW_MS: u64 = 10 * 60 * 1000;
/// Quiet after which it lets through again, in milliseconds.
pub const QUIET_MS: u64 = 10 * 60 * 1000;
/// Messages that are known to have passed. One that came before all of them counts as one.
pub const PASSED_MAX: usize = 64;
/// Messages of answers that went out in several, which are known when they come back.
pub const PIECES_MAX: usize = 1024;

/// A message on its way to a turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Message {
    /// Its event's place: a message that passes is counted once, however often it is asked about. They come in
    /// any order, since a session may have several conversations.
    pub seq: i64,
    /// Of all that it says, what is attached included.
    pub hash: u64,
    /// Of its words alone, as answers are known that come back.
    pub words: u64,
    /// The same, as answers are compared: without what may change from one to the next. `None` if it says nothing, as a
    /// picture does.
    pub likeness: Option<u64>,
    /// No person sent it: the timer, a webhook, another agent.
    pub is_automatic: bool,
    /// By a monotonic clock, in milliseconds.
    pub at_ms: u64,
}

/// Whether the message may have a turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Pass,
    Stop {
        /// The first one that is stopped: now somebody should be told.
        is_first: bool,
        circle: Circle,
    },
}

/// How a session repeats.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Circle {
    /// What its agent said comes back.
    Echo,
    /// The same message comes, and no person sent it.
    Same,
    /// Each thing that is said in it gets the same answer.
    Answers,
}

/// What is remembered of a session.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Breaker {
    /// Those that passed, by their places, the newest [`PASSED_MAX`].
    passed: BTreeSet<i64>,
    hash: Option<u64>,
    likeness: Option<u64>,
    /// Something was said since the last answer to it came; messages up to this place came before it.
    spoken_at: Option<i64>,
    reply: Option<u64>,
    /// The messages of answers that went out in several, the newest last: they come back one by one, while
    /// later answers are given.
    pieces: VecDeque<u64>,
    /// When the last repetitions in a row came, at most [`ANSWERS_MAX`], the newest last.
    times: VecDeque<u64>,
    /// Why it is open, if it is.
    open: Option<Circle>,
    last_ms: u64,
}

impl Breaker {
    /// Decides about a message and remembers it.
    pub fn step(&mut self, message: Message) -> Verdict {
        let Message { seq, hash, words: _, likeness, is_automatic: _, at_ms } = message;
        if self.has_passed(seq) {
            return Verdict::Pass;
        }
        if self.is_quiet(at_ms) {
            (self.open, self.hash, self.likeness) = (None, None, None);
            self.times.clear();
        }
        let is_alike = likeness.is_some() && self.likeness == likeness;
        let circle = self.circle(message);
        (self.hash, self.likeness, self.last_ms) = (Some(hash), likeness, at_ms);
        if circle.is_none() {
            if is_alike && self.open.is_none() {
                // Said again before it was answered: it repeats nothing, and ends nothing.
                self.note_passed(seq);
                return Verdict::Pass;
            }
            self.open = None;
            self.times.clear();
        }
        let is_loop = self.is_one_too_many(circle, at_ms);
        let Some(circle) = circle.filter(|_| is_loop || self.open.is_some()) else {
            self.note_passed(seq);
            return Verdict::Pass;
        };
        let is_first = self.open.is_none();
        Verdict::Stop { is_first, circle: *self.open.get_or_insert(circle) }
    }

    /// What the message repeats, if it does.
    fn circle(&mut self, message: Message) -> Option<Circle> {
        let Message { seq, hash, words, likeness, is_automatic, at_ms: _ } = message;
        let is_answer = self.spoken_at.take_if(|upto| seq > *upto).is_some();
        if self.reply == Some(words) || self.pieces.contains(&words) {
            Some(Circle::Echo)
        } else if is_automatic && self.hash == Some(hash) {
            Some(Circle::Same)
        } else {
            // What is stopped gets no answer, and so answers none.
            let goes_on = is_answer || self.open == Some(Circle::Answers);
            (goes_on && likeness.is_some() && self.likeness == likeness).then_some(Circle::Answers)
        }
    }

    /// Counts a message. Whether more of its kind came in the window than may.
    fn is_one_too_many(&mut self, circle: Option<Circle>, at_ms: u64) -> bool {
        let may_come = match circle {
            Some(Circle::Echo | Circle::Same) => REPEATS_MAX,
            Some(Circle::Answers) | None => ANSWERS_MAX,
        };
        let oldest = self.times.len().checked_sub(may_come).and_then(|at| self.times.get(at).copied());
        if self.times.len() >= ANSWERS_MAX {
            self.times.pop_front();
        }
        self.times.push_back(at_ms);
        oldest.is_some_and(|oldest| at_ms.saturating_sub(oldest) < WINDOW_MS)
    }

    /// Something is about to be said in the session: messages up to this place came before it.
    pub fn speaks(&mut self, upto: i64) {
        // One that comes while an answer leaves in pieces is an answer to the first of them.
        self.spoken_at.get_or_insert(upto);
    }

    /// Remembers what the session's agent said last, and the messages that it went out in.
    pub fn replied(&mut self, whole: u64, messages: &[u64]) {
        self.reply = Some(whole);
        if messages.len() > 1 {
            self.keep(messages);
        } else if self.pieces.back() == Some(&whole) {
            // It left by itself while more could still come, and was all of it.
            self.pieces.pop_back();
        }
    }

    /// Remembers a message that went out by itself, as a part of what is said.
    pub fn said(&mut self, message: u64) {
        self.keep(&[message]);
    }

    fn keep(&mut self, messages: &[u64]) {
        self.pieces.extend(messages.iter().take(PIECES_MAX));
        let excess = self.pieces.len().saturating_sub(PIECES_MAX);
        drop(self.pieces.drain(..excess));
    }

    fn has_passed(&self, seq: i64) -> bool {
        let is_older = self.passed.len() >= PASSED_MAX && self.passed.first().is_some_and(|first| seq < *first);
        is_older || self.passed.contains(&seq)
    }

    fn note_passed(&mut self, seq: i64) {
        self.passed.insert(seq);
        if self.passed.len() > PASSED_MAX {
            self.passed.pop_first();
        }
    }

    /// Nothing came for so long that nothing it remembers of messages counts any more.
    pub fn is_quiet(&self, at_ms: u64) -> bool {
        at_ms.saturating_sub(self.last_ms) >= QUIET_MS
    }

    /// When the last message came.
    pub fn last_ms(&self) -> u64 {
        self.last_ms
    }

    /// Why it lets nothing through that repeats, if that is so.
    pub fn open(&self, at_ms: u64) -> Option<Circle> {
        self.open.filter(|_| !self.is_quiet(at_ms))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    const SECOND_MS: u64 = 1000;

    fn message(seq: i64, hash: u64, at_ms: u64) -> Message {
        Message { seq, hash, words: hash, likeness: Some(hash), is_automatic: true, at_ms }
    }

    fn person(seq: i64, hash: u64) -> Message {
        Message { seq, hash, words: hash, likeness: Some(hash), is_automatic: false, at_ms: seq.unsigned_abs() }
    }

    /// Asks about messages that say the same, so far apart; which of them pass.
    fn passed(breaker: &mut Breaker, count: i64, apart_ms: u64) -> Vec<bool> {
        let at = |seq: i64| seq.unsigned_abs() * apart_ms;
        (1..=count).map(|seq| breaker.step(message(seq, 7, at(seq))) == Verdict::Pass).collect()
    }

    #[test]
    fn five_in_a_row_pass_and_the_next_are_stopped_and_told_once() {
        let mut breaker = Breaker::default();
        assert_eq!(passed(&mut breaker, 5, SECOND_MS), [true; 5]);
        assert_eq!(breaker.open(6 * SECOND_MS), None);
        assert_eq!(breaker.step(message(6, 7, 6 * SECOND_MS)), Verdict::Stop { is_first: true, circle: Circle::Same });
        assert_eq!(breaker.step(message(7, 7, 7 * SECOND_MS)), Verdict::Stop { is_first: false, circle: Circle::Same });
        assert_eq!(breaker.open(7 * SECOND_MS), Some(Circle::Same));
        assert_eq!(breaker.open(7 * SECOND_MS + QUIET_MS), None);
    }

    #[test]
    fn another_text_or_ten_quiet_minutes_close_it() {
        let mut breaker = Breaker::default();
        passed(&mut breaker, 6, SECOND_MS);
        assert_eq!(breaker.step(message(7, 8, 7 * SECOND_MS)), Verdict::Pass);
        assert_eq!(breaker.step(message(8, 7, 8 * SECOND_MS)), Verdict::Pass);
        let mut breaker = Breaker::default();
        passed(&mut breaker, 6, SECOND_MS);
        let not_yet = 6 * SECOND_MS + QUIET_MS - 1;
        assert!(matches!(breaker.step(message(7, 7, not_yet)), Verdict::Stop { .. }));
        assert_eq!(breaker.step(message(8, 7, not_yet + QUIET_MS)), Verdict::Pass);
    }

    #[test]
    fn what_repeats_slowly_goes_on() {
        assert_eq!(passed(&mut Breaker::default(), 50, WINDOW_MS / REPEATS_MAX as u64), [true; 50]);
        let slightly_faster = WINDOW_MS / REPEATS_MAX as u64 - 1;
        assert_eq!(passed(&mut Breaker::default(), 6, slightly_faster), [true, true, true, true, true, false]);
    }

    #[test]
    fn a_person_may_repeat_but_our_own_words_coming_back_are_stopped() {
        let mut breaker = Breaker::default();
        assert!((1..=50).all(|seq| breaker.step(person(seq, 7)) == Verdict::Pass));
        let mut breaker = Breaker::default();
        breaker.replied(7, &[7]);
        assert!((1..=5).all(|seq| breaker.step(person(seq, 7)) == Verdict::Pass));
        assert_eq!(breaker.step(person(6, 7)), Verdict::Stop { is_first: true, circle: Circle::Echo });
        breaker.replied(8, &[8]);
        assert_eq!(breaker.step(person(7, 7)), Verdict::Pass);
    }

    #[test]
    fn what_left_early_and_was_all_of_an_answer_is_known_until_the_next_one() {
        let mut breaker = Breaker::default();
        breaker.said(7);
        breaker.replied(7, &[]);
        assert!((1..=5).all(|seq| breaker.step(person(seq, 7)) == Verdict::Pass));
        assert_eq!(breaker.step(person(6, 7)), Verdict::Stop { is_first: true, circle: Circle::Echo });
        breaker.replied(8, &[8]);
        assert!((7..=50).all(|seq| breaker.step(person(seq, 7)) == Verdict::Pass));
    }

    #[test]
    fn an_echo_whose_words_change_is_one_all_the_same() {
        let mut breaker = Breaker::default();
        let mut passed = 0;
        for seq in 1..=20_i64 {
            let hash = seq.unsigned_abs();
            match breaker.step(person(seq, hash)) {
                Verdict::Pass => passed += 1,
                Verdict::Stop { .. } => break,
            }
            breaker.replied(hash + 1, &[hash + 1]); // and it comes back
        }
        assert_eq!(passed, REPEATS_MAX);
    }

    /// Messages that each come after we spoke, so far apart; which of them pass.
    fn answers(breaker: &mut Breaker, seqs: std::ops::RangeInclusive<i64>, apart_ms: u64) -> Vec<bool> {
        let answer = |seq: i64| {
            let passes = breaker.step(Message { at_ms: seq.unsigned_abs() * apart_ms, ..person(seq, 7) }) == Verdict::Pass;
            breaker.speaks(seq);
            breaker.replied(1_000 + seq.unsigned_abs(), &[]);
            passes
        };
        seqs.map(answer).collect()
    }

    #[test]
    fn who_answers_everything_with_the_same_words_is_stopped_whoever_that_is() {
        let mut breaker = Breaker::default();
        assert_eq!(answers(&mut breaker, 1..=10, SECOND_MS), [true; ANSWERS_MAX]);
        let next = |seq: i64| Message { at_ms: 11 * SECOND_MS, ..person(seq, 7) };
        assert_eq!(breaker.step(next(11)), Verdict::Stop { is_first: true, circle: Circle::Answers });
        assert_eq!(breaker.step(next(12)), Verdict::Stop { is_first: false, circle: Circle::Answers }, "nothing was said since");
        assert_eq!(breaker.step(Message { hash: 8, likeness: Some(8), ..next(13) }), Verdict::Pass);
        assert_eq!(breaker.open(12 * SECOND_MS), None);
        assert_eq!(answers(&mut Breaker::default(), 1..=50, WINDOW_MS / ANSWERS_MAX as u64), [true; 50], "slow ones go on");
    }

    #[test]
    fn answers_that_differ_only_in_what_may_change_are_the_same() {
        let mut breaker = Breaker::default();
        let mut steps = (1..=11_i64).map(|seq| {
            let verdict = breaker.step(Message { hash: 100 + seq.unsigned_abs(), ..person(seq, 7) });
            breaker.speaks(seq);
            verdict
        });
        assert!(steps.by_ref().take(ANSWERS_MAX).all(|verdict| verdict == Verdict::Pass));
        assert_eq!(steps.next(), Some(Verdict::Stop { is_first: true, circle: Circle::Answers }));
    }

    #[test]
    fn what_says_nothing_is_like_nothing() {
        let mut breaker = Breaker::default();
        for seq in 1..=50 {
            assert_eq!(breaker.step(Message { likeness: None, ..person(seq, 7) }), Verdict::Pass);
            breaker.speaks(seq);
        }
    }

    #[test]
    fn what_was_sent_before_we_spoke_answers_nothing() {
        let mut breaker = Breaker::default();
        for seq in 1..=50 {
            assert_eq!(breaker.step(person(seq, 7)), Verdict::Pass);
            breaker.speaks(50); // all of them were there by then
        }
    }

    #[test]
    fn a_message_that_is_asked_about_again_counts_once() {
        let mut breaker = Breaker::default();
        for seq in 1..=5 {
            for _ in 0..3 {
                assert_eq!(breaker.step(message(seq, 7, 1)), Verdict::Pass);
            }
        }
        assert!(matches!(breaker.step(message(6, 7, 2)), Verdict::Stop { .. }));
    }

    #[test]
    fn messages_that_come_out_of_order_count_as_well() {
        let mut breaker = Breaker::default();
        let mut passes = |seq| breaker.step(message(seq, 7, 1)) == Verdict::Pass;
        assert!([9, 4, 8, 3, 7].into_iter().all(&mut passes));
        assert!(!passes(2), "an earlier message is a message too");
        assert!([9, 4, 8, 3, 7].into_iter().all(&mut passes), "they passed before");
        assert!(!passes(2), "what was stopped did not");
    }

    #[test]
    fn what_passed_is_known_for_a_while_and_what_is_older_passes() {
        let mut breaker = Breaker::default();
        let newest = i64::try_from(PASSED_MAX).unwrap() + 10;
        for seq in 1..=newest {
            assert_eq!(breaker.step(message(seq, seq.unsigned_abs(), 1)), Verdict::Pass);
        }
        assert_eq!(breaker.passed.len(), PASSED_MAX);
        let before = breaker.clone();
        for seq in [1, 11, newest] {
            assert_eq!(breaker.step(message(seq, 7, 2)), Verdict::Pass);
        }
        assert_eq!(breaker, before, "it was counted again");
    }

    #[test]
    fn an_answer_that_comes_back_message_by_message_is_an_echo() {
        let mut breaker = Breaker::default();
        let mut coming = VecDeque::new();
        let say = |breaker: &mut Breaker, coming: &mut VecDeque<u64>, answer: u64| {
            let messages = [1, 2, 3].map(|n| answer * 10 + n);
            breaker.replied(answer, &messages);
            coming.extend(messages);
        };
        say(&mut breaker, &mut coming, 100);
        let mut passed = 0_usize;
        // Each is answered while those behind it are still to come.
        while let Some(hash) = coming.pop_front() {
            let seq = i64::try_from(passed + 1).unwrap();
            if breaker.step(person(seq, hash)) != Verdict::Pass {
                break;
            }
            passed += 1;
            assert!(passed < 100, "nothing stops it");
            say(&mut breaker, &mut coming, 100 + passed as u64);
        }
        assert_eq!(passed, REPEATS_MAX);
    }

    #[test]
    fn of_long_answers_no_more_is_kept_than_may() {
        let mut breaker = Breaker::default();
        for answer in 1..=3 {
            breaker.replied(answer, &[answer; 2 * PIECES_MAX]);
            assert_eq!(breaker.pieces.len(), PIECES_MAX);
        }
        assert!(breaker.pieces.iter().all(|piece| *piece == 3));
    }

    proptest! {
        /// Also of what persons may have sent: in no window do more than ten of one text in a row pass that each answer us.
        #[test]
        fn no_more_answers_pass_than_may(steps in prop::collection::vec((0_u64..2, 0_u64..100_000), 0..120)) {
            let mut breaker = Breaker::default();
            let (mut at_ms, mut in_a_row, mut before) = (0, Vec::new(), None);
            for (seq, (hash, apart_ms)) in (1_i64..).zip(steps) {
                at_ms += apart_ms;
                if before != Some(hash) {
                    in_a_row.clear();
                }
                before = Some(hash);
                if breaker.step(Message { at_ms, ..person(seq, hash) }) == Verdict::Pass {
                    in_a_row.push(at_ms);
                    let recent = in_a_row.iter().filter(|then| at_ms - **then < WINDOW_MS).count();
                    prop_assert!(recent <= ANSWERS_MAX, "{in_a_row:?}");
                    breaker.speaks(seq);
                }
            }
        }

        /// However they come: in no window do more than five of one text in a row pass.
        #[test]
        fn no_more_pass_than_may(steps in prop::collection::vec((0_u64..3, 0_u64..200_000), 0..120)) {
            let mut breaker = Breaker::default();
            let (mut at_ms, mut in_a_row, mut before) = (0, Vec::new(), None);
            for (seq, (hash, apart_ms)) in (1_i64..).zip(steps) {
                at_ms += apart_ms;
                if before != Some(hash) {
                    in_a_row.clear();
                }
                before = Some(hash);
                if breaker.step(message(seq, hash, at_ms)) == Verdict::Pass {
                    in_a_row.push(at_ms);
                    let recent = in_a_row.iter().filter(|then| at_ms - **then < WINDOW_MS).count();
                    prop_assert!(recent <= REPEATS_MAX, "{in_a_row:?}");
                }
            }
        }
    }
}
