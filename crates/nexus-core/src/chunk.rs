//! Long text into sends a channel takes: never longer than its limit, never losing a word.
//!
//! Breaks fall at a paragraph, else a line, a sentence, a word, a character; the edge of a code
//! fence counts as a paragraph's. A fence that must be split is closed in one chunk and opened
//! again, with its info string, in the next. It never looks at what a channel does with markup.

use std::num::NonZeroUsize;

mod cutter;
mod fence;

#[cfg(test)]
mod tests;

pub use cutter::{BLOCK_CHARS_MAX, Cutter, PARAGRAPH_CHARS};
use fence::{Block, Code};

/// Below this limit, in chars, a reopened fence would leave no room for code: fences are then
/// split like any text.
pub const FENCED_LIMIT_CHARS_MIN: usize = 16;
/// An info string is repeated while at least one part in this many of the limit is left for code.
const CODE_SHARE_MIN: usize = 4;

/// Splits `text` into chunks of at most `limit` chars (Unicode scalar values). Text that fits stays
/// as it is; text of nothing but white space gives no chunk. Only white space at breaks is dropped.
pub fn chunk(text: &str, limit: NonZeroUsize) -> Vec<String> {
    let limit = limit.get();
    if text.trim().is_empty() {
        return Vec::new();
    }
    if prefix_end(text, limit).is_none() {
        return vec![text.to_owned()];
    }
    let mut packer = Packer { limit, done: Vec::new(), current: String::new(), current_chars: 0 };
    if limit < FENCED_LIMIT_CHARS_MIN {
        packer.prose(text);
    } else {
        for block in fence::blocks(text) {
            match block {
                Block::Prose(prose) => packer.prose(prose),
                Block::Code(code) => packer.code(&code),
            }
        }
    }
    packer.flush();
    packer.done
}

/// Fills one chunk after the other.
struct Packer {
    limit: usize,
    done: Vec<String>,
    current: String,
    current_chars: usize,
}

impl Packer {
    fn push(&mut self, text: &str) {
        self.current.push_str(text);
        self.current_chars += text.chars().count();
    }

    fn flush(&mut self) {
        let chunk = self.current.trim_end();
        if !chunk.is_empty() {
            self.done.push(chunk.to_owned());
        }
        self.current.clear();
        self.current_chars = 0;
    }

    fn room(&self) -> usize {
        self.limit - self.current_chars
    }

    fn prose(&mut self, text: &str) {
        let mut rest = text;
        loop {
            if self.current.is_empty() {
                rest = skip_blank_lines(rest);
            }
            let Some(end) = prefix_end(rest, self.room()) else {
                self.push(rest);
                return;
            };
            let found = best_break(rest, end).filter(|(_, class)| self.current.is_empty() || *class <= Class::Line);
            match found {
                Some((at, _)) => {
                    self.push(&rest[..at]);
                    self.flush();
                    rest = skip_gap(&rest[at..]);
                }
                // Code stands before this text: the fence's edge is the better break.
                None if !self.current.is_empty() => self.flush(),
                None if rest[..end].trim().is_empty() => rest = rest.trim_start(),
                None => {
                    self.push(&rest[..end]);
                    self.flush();
                    rest = &rest[end..];
                }
            }
        }
    }

    fn code(&mut self, code: &Code<'_>) {
        if prefix_end(code.raw, self.room()).is_some() {
            self.flush();
        }
        if prefix_end(code.raw, self.room()).is_none() {
            self.push(code.raw);
            return;
        }
        match split_frame(code, self.limit) {
            Some(frame) => self.split_code(code, &frame),
            None => self.prose(code.raw),
        }
    }

    /// Splits code that fits in no single chunk. The last piece stays open for what follows it.
    fn split_code(&mut self, code: &Code<'_>, frame: &Frame) {
        let spilled;
        let mut rest = code.body;
        if frame.spills_info {
            spilled = format!("{}\n{}", code.info, code.body);
            rest = &spilled;
        }
        if rest.trim().is_empty() && !code.info.is_empty() {
            // No piece would be shown, and the info string is a word.
            self.push(&frame.head);
            self.push(frame.tail.trim_start());
            return;
        }
        while let Some(end) = prefix_end(rest, frame.room) {
            let (at, next) = match best_break(rest, end) {
                // Only the line end at the break goes: blank lines and indentation are code.
                Some((at, Class::Paragraph | Class::Line)) => (at, at + 1),
                Some((at, Class::Sentence | Class::Word | Class::Char)) => (at, at),
                None => (end, end),
            };
            self.push_framed(&rest[..at], frame);
            self.flush();
            rest = &rest[next..];
        }
        self.push_framed(rest, frame);
    }

    fn push_framed(&mut self, code: &str, frame: &Frame) {
        if !code.trim().is_empty() {
            self.push(&frame.head);
            self.push(code);
            self.push(&frame.tail);
        }
    }
}

/// What is put around each piece of a split fence.
struct Frame {
    /// The opening line with its line end.
    head: String,
    /// A line end and the closing line.
    tail: String,
    /// Chars left for code.
    room: usize,
    /// The info string is too long to repeat, and becomes the first line of code, so as to be kept.
    spills_info: bool,
}

/// `None` when the limit can't hold this fence.
fn split_frame(code: &Code<'_>, limit: usize) -> Option<Frame> {
    // A piece may begin or end within a line, and its backticks must not then read as a fence.
    let ticks = if code.longest_run >= code.ticks { code.longest_run + 1 } else { code.ticks };
    let bare_room = limit.checked_sub(ticks.checked_mul(2)?.checked_add(2)?).filter(|room| *room > 0)?;
    let info_room = bare_room.checked_sub(code.info.chars().count());
    let room_with_info = info_room.filter(|room| *room > 0 && *room >= limit / CODE_SHARE_MIN);
    let marker = "`".repeat(ticks);
    let tail = format!("\n{marker}");
    Some(match room_with_info {
        Some(room) => Frame { head: format!("{marker}{}\n", code.info), tail, room, spills_info: false },
        None => Frame { head: format!("{marker}\n"), tail, room: bare_room, spills_info: !code.info.is_empty() },
    })
}

/// Kinds of breaks, the best first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Class {
    Paragraph,
    Line,
    Sentence,
    Word,
    Char,
}

const CLASSES: [Class; 5] = [Class::Paragraph, Class::Line, Class::Sentence, Class::Word, Class::Char];

/// The last break of the best class at or before byte `end`, with something to show before it.
fn best_break(text: &str, end: usize) -> Option<(usize, Class)> {
    let window = &text[..end];
    let blank_bytes = window.len() - window.trim_start().len();
    let mut best = [None; CLASSES.len()];
    let mut before = '\n';
    // Whether the line so far would open a fence if it ended here.
    let mut opens = false;
    let mut marker_end = 0;
    for (at, ch) in text.char_indices().take_while(|(at, _)| *at <= end) {
        if before == '\n' {
            let marker = fence::marker(&window[at..]);
            opens = marker.is_some();
            marker_end = marker.map_or(at, |length| at + length);
        }
        if at > blank_bytes
            && let Some(class) = class_at(text, at, before, ch, opens)
        {
            best[class as usize] = Some(at);
        }
        if ch == '`' && at >= marker_end {
            opens = false;
        }
        before = ch;
    }
    CLASSES.into_iter().find_map(|class| Some((best[class as usize]?, class)))
}

/// What kind of break byte `at` is, between the chars `before` and `ch`. A place where a new chunk
/// would begin or end with what reads as a fence is none, except at a line end, where it is one.
fn class_at(text: &str, at: usize, before: char, ch: char, opens: bool) -> Option<Class> {
    if ch == '\n' {
        let blank_line = text[at + 1..].trim_start_matches([' ', '\t', '\r']).starts_with('\n');
        return Some(if blank_line { Class::Paragraph } else { Class::Line });
    }
    if opens || before.is_whitespace() {
        return None;
    }
    let class = match before {
        '。' | '！' | '？' => Class::Sentence,
        '.' | '!' | '?' | '…' if ch.is_whitespace() => Class::Sentence,
        _ if ch.is_whitespace() => Class::Word,
        _ => Class::Char,
    };
    (!text[at..].trim_start().starts_with("```")).then_some(class)
}

/// The byte where char number `limit` begins; `None` when the text is no longer than that.
fn prefix_end(text: &str, limit: usize) -> Option<usize> {
    text.char_indices().nth(limit).map(|(at, _)| at)
}

/// Past the white space at a break, but not past the indentation of the next line.
fn skip_gap(text: &str) -> &str {
    skip_blank_lines(text.trim_start_matches(|ch: char| ch.is_whitespace() && ch != '\n'))
}

fn skip_blank_lines(text: &str) -> &str {
    let blank = &text[..text.len() - text.trim_start().len()];
    match blank.rfind('\n') {
        Some(at) => &text[at + 1..],
        None => text,
    }
}
