//! An agent that speaks for a while: numbered words, a few at a time, so that whoever hears them knows which message they
//! answer, which is missing, and which came twice. It may break off in the middle.

use crate::agent::{FAILS, FOR_EVER, say};
use crate::chance::Chance;
use crate::world::World;
use crate::{clock, journal, procfs};
use anyhow::Result;
use rustix::process::Signal;
use serde_json::{Value, json};
use std::ops::Range;
use std::process::ExitCode;
use std::time::Duration;

/// In the agents' journal: how many words an agent is about to say.
pub(crate) const SAYS: &str = "says";
/// Most words of one answer, words that are said at once, and ms between two pieces.
const WORDS_MAX: u64 = 60;
const PIECE_WORDS_MAX: u64 = 6;
const PAUSE_MS_MAX: u64 = 12;
/// A silence after which what was said so far leaves as a block.
const SILENCE: Duration = Duration::from_millis(1100);

/// Word `number` of the answer to a message.
pub(crate) fn word(content: &str, number: u64) -> String {
    format!("{}#{number}", content.replace(' ', "-"))
}

/// The numbers of the words that a text holds of the answer to this message, as they stand there.
pub(crate) fn numbers(text: &str, content: &str) -> Vec<u64> {
    let of = content.replace(' ', "-");
    let number = |word: &str| word.rsplit_once('#').filter(|(name, _)| *name == of)?.1.parse().ok();
    text.split_whitespace().filter_map(number).collect()
}

/// Whether a text holds a word that belongs to no answer, as what the daemon says itself does.
pub(crate) fn has_other_words(text: &str) -> bool {
    text.split_whitespace().any(|word| word.rsplit_once('#').is_none_or(|(_, number)| number.parse::<u64>().is_err()))
}

/// What a speaker may do in the middle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Whim {
    None,
    Exit,
    Die,
    Hang,
    Freeze,
    Fail,
    Pause(Duration),
    Act,
}

impl Whim {
    fn choose(chance: &mut Chance) -> Self {
        match chance.below(40) {
            0 => Self::Exit,
            1 => Self::Die,
            2 => Self::Hang,
            3 => Self::Freeze,
            4 => Self::Fail,
            5 | 6 => Self::Pause(SILENCE),
            7 => Self::Pause(Duration::from_millis(300)),
            8..=11 => Self::Act,
            _ => Self::None,
        }
    }

    fn ends_without_an_answer(self) -> bool {
        match self {
            Self::Exit | Self::Die | Self::Hang | Self::Freeze | Self::Fail => true,
            Self::None | Self::Pause(_) | Self::Act => false,
        }
    }
}

/// One turn of an agent that speaks.
pub(crate) struct Speaker<'a> {
    pub(crate) world: &'a World,
    pub(crate) run_id: &'a Value,
    pub(crate) content: &'a str,
    /// Writes a line of the agents' journal.
    pub(crate) note: &'a dyn Fn(&str) -> Result<()>,
}

impl Speaker<'_> {
    /// Says all, or a part.
    ///
    /// # Errors
    /// Of the file system, and when the daemon doesn't listen.
    pub(crate) fn speak(&self, chance: &mut Chance) -> Result<ExitCode> {
        let whim = if self.world.is_calm() { Whim::None } else { Whim::choose(chance) };
        if whim == Whim::None && !self.world.is_calm() && chance.one_in(40) {
            (self.note)("silent")?;
            return Ok(ExitCode::SUCCESS);
        }
        let words = chance.below(WORDS_MAX) + 1;
        let middle = chance.below(words);
        let line = json!({ "what": SAYS, "content": self.content, "run_id": self.run_id, "words": words, "at": clock::monotonic_ns() });
        journal::append(&self.world.agent_journal(), &line.to_string())?;
        let mut said = String::new();
        self.say_words(0..middle, &mut said, chance)?;
        if let Some(code) = self.indulge(whim, &said)? {
            return Ok(code);
        }
        self.say_words(middle..words, &mut said, chance)?;
        // Noted first: once the end is said, the run may be finished and this process killed.
        (self.note)("answered")?;
        say(&format!("{}\n", json!({ "type": "stream_end", "runId": self.run_id })))?;
        Ok(ExitCode::SUCCESS)
    }

    fn say_words(&self, numbers: Range<u64>, said: &mut String, chance: &mut Chance) -> Result<()> {
        let mut next = numbers.start;
        while next < numbers.end {
            let mut piece = String::new();
            let end = (next + chance.below(PIECE_WORDS_MAX) + 1).min(numbers.end);
            for number in next..end {
                if number > 0 {
                    piece.push_str(if chance.one_in(12) { "\n\n" } else { " " });
                }
                piece.push_str(&word(self.content, number));
            }
            next = end;
            say(&format!("{}\n", json!({ "type": "token", "text": piece })))?;
            said.push_str(&piece);
            clock::pause(Duration::from_millis(chance.below(PAUSE_MS_MAX)));
        }
        Ok(())
    }

    /// An exit code ends the turn.
    fn indulge(&self, whim: Whim, said: &str) -> Result<Option<ExitCode>> {
        let tool = |status: &str| {
            let event = json!({ "type": "tool_status", "toolName": "pay", "toolCallId": "t1", "status": status });
            say(&format!("{event}\n"))
        };
        if whim.ends_without_an_answer() {
            (self.note)(FAILS)?;
        }
        match whim {
            Whim::None => {}
            Whim::Exit => return Ok(Some(ExitCode::from(1))),
            Whim::Die => procfs::signal_self(Signal::KILL),
            Whim::Hang => clock::pause(FOR_EVER),
            Whim::Freeze => procfs::signal_self(Signal::STOP),
            Whim::Fail => {
                say(&format!("{}\n", json!({ "type": "stream_error", "error": "made up", "partial": said })))?;
                return Ok(Some(ExitCode::SUCCESS));
            }
            Whim::Pause(time) => clock::pause(time),
            Whim::Act => {
                tool("started")?;
                (self.note)("paid")?;
                tool("completed")?;
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_known_again() {
        let text = format!("{} {}\n\n{} {}", word("live a 1", 0), word("live a 1", 1), word("live a 2", 2), word("live a 12", 3));
        assert_eq!(text, "live-a-1#0 live-a-1#1\n\nlive-a-2#2 live-a-12#3");
        assert_eq!((numbers(&text, "live a 1"), numbers(&text, "live a 2")), (vec![0, 1], vec![2]));
        assert!(!has_other_words(&text) && has_other_words("live-a-1#0 The agent failed") && !has_other_words(""));
    }
}
