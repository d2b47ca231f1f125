//! Tokens into blocks: what of an answer can be said while the rest is still being made. A block ends at a
//! paragraph or at the limit, never inside a code fence without closing it and opening it again in the next.
//!
//! It reads no clock: who uses it says when nothing came for long enough. It never decides who gets blocks.

use super::fence::{self, Block, Code};
use super::{Class, FENCED_LIMIT_CHARS_MIN, best_break, prefix_end, skip_blank_lines, skip_gap, split_frame};
use std::borrow::Cow;
use std::num::NonZeroUsize;

/// Longest block, in chars; a channel with a lower limit has that.
pub const BLOCK_CHARS_MAX: usize = 1200;
/// From here on the end of a paragraph ends the block, in chars; less where the channel's limit is lower.
pub const PARAGRAPH_CHARS: usize = 800;

/// Cuts one answer, as it comes, into blocks.
#[derive(Debug, Clone)]
pub struct Cutter {
    limit: usize,
    paragraph: usize,
    /// What is in no block yet: the end of what was pushed, as it stands.
    pending: String,
    /// The line that opens the fence again in which the last block ended.
    head: String,
    /// Bytes of what was pushed that blocks cover.
    consumed: usize,
}

/// Where a text is cut.
struct Cut {
    block: String,
    /// What opens the fence again that was cut.
    head: String,
    /// The byte where the text goes on.
    next: usize,
}

impl Cut {
    fn plain(text: &str, end: usize, next: usize) -> Self {
        Self { block: text[..end].to_owned(), head: String::new(), next }
    }
}

impl Cutter {
    /// `limit` is the channel's, in chars.
    #[must_use]
    pub fn new(limit: Option<NonZeroUsize>) -> Self {
        let limit = limit.map_or(BLOCK_CHARS_MAX, NonZeroUsize::get).min(BLOCK_CHARS_MAX);
        let paragraph = PARAGRAPH_CHARS.min(limit * 2 / 3);
        Self { limit, paragraph, pending: String::new(), head: String::new(), consumed: 0 }
    }

    /// Takes the next piece of the answer.
    pub fn push(&mut self, text: &str) {
        self.pending.push_str(text);
    }

    /// The next block that is long enough, if there is one. To be called until there is none.
    pub fn next_block(&mut self) -> Option<String> {
        loop {
            self.drop_start();
            let cut = find_cut(&self.text(), self.limit, self.paragraph)?;
            let before = self.consumed;
            let block = self.take(cut);
            if block.is_some() || self.consumed == before {
                return block;
            }
        }
    }

    /// After a while in which nothing came: all that is there but for a fence that is still open.
    pub fn idle_block(&mut self) -> Option<String> {
        self.drop_start();
        let cut = idle_cut(&self.text())?;
        self.take(cut)
    }

    /// What of `content`, the answer as it was decided, is in no block. `source` is what was pushed. `None` when
    /// the blocks are not how `content` begins, but for blanks around them: they say something else than was decided
    /// in the end.
    #[must_use]
    pub fn rest(&self, source: &str, content: &str) -> Option<String> {
        let said = source.get(..self.consumed)?.trim_start();
        if said.is_empty() {
            return Some(content.to_owned());
        }
        // What was left behind the last block may not be there in the end; in a fence it is code.
        let said = if self.head.is_empty() { said.trim_end() } else { said };
        let rest = content.trim_start().strip_prefix(said)?;
        if self.head.is_empty() || rest.trim().is_empty() {
            return Some(skip_gap(rest).to_owned());
        }
        let (line, after) = rest.split_at(rest.find('\n').map_or(rest.len(), |at| at + 1));
        Some(if closes(&self.head, line) { skip_gap(after).to_owned() } else { format!("{}{rest}", self.head) })
    }

    /// What is in no block, with the fence opened again in which it begins.
    fn text(&self) -> Cow<'_, str> {
        if self.head.is_empty() { Cow::Borrowed(&self.pending) } else { Cow::Owned(format!("{}{}", self.head, self.pending)) }
    }

    fn take(&mut self, cut: Cut) -> Option<String> {
        self.drop_bytes(cut.next.saturating_sub(self.head.len()));
        self.head = cut.head;
        let block = cut.block.trim_end();
        let is_blank = block.trim().is_empty();
        (!is_blank).then(|| block.to_owned())
    }

    /// Drops what would begin a block with nothing: blank lines, and a fence that ends where it was cut.
    fn drop_start(&mut self) {
        if let Some(at) = self.pending.find('\n')
            && closes(&self.head, &self.pending[..at])
        {
            self.drop_bytes(at + 1);
            self.head.clear();
        }
        if self.head.is_empty() {
            self.drop_bytes(self.pending.len() - skip_blank_lines(&self.pending).len());
        }
    }

    fn drop_bytes(&mut self, bytes: usize) {
        self.pending.drain(..bytes);
        self.consumed += bytes;
    }
}

/// Whether this line closes the fence that `head` opens.
fn closes(head: &str, line: &str) -> bool {
    let ticks = head.bytes().take_while(|byte| *byte == b'`').count();
    let line = line.trim();
    ticks > 0 && line.len() >= ticks && line.bytes().all(|byte| byte == b'`')
}

fn find_cut(text: &str, limit: usize, paragraph: usize) -> Option<Cut> {
    let end = prefix_end(text, limit);
    match (paragraph_end(text, paragraph).filter(|at| end.is_none_or(|end| *at <= end)), end) {
        (Some(at), _) => Some(Cut::plain(text, at, at)),
        (None, Some(end)) => cut_at_limit(text, end, limit),
        (None, None) => None,
    }
}

fn idle_cut(text: &str) -> Option<Cut> {
    let held = held_from(text);
    (!text[..held].trim().is_empty()).then(|| Cut::plain(text, held, held))
}

/// The first end of a paragraph, or of a fence, past so many chars.
fn paragraph_end(text: &str, chars: usize) -> Option<usize> {
    let from = prefix_end(text, chars)?;
    let mut start = 0;
    for block in fence::blocks(text) {
        let stop = start + source(&block).len();
        match &block {
            Block::Prose(_) if stop > from => {
                let first = start.max(from);
                let ends = text[first..stop].match_indices('\n').map(|(at, _)| first + at);
                let mut paragraphs = ends.filter(|at| text[at + 1..].trim_start_matches([' ', '\t', '\r']).starts_with('\n'));
                if let Some(at) = paragraphs.next() {
                    return Some(at);
                }
            }
            Block::Code(_) if stop >= from && stop < text.len() => return Some(stop),
            Block::Prose(_) | Block::Code(_) => {}
        }
        start = stop;
    }
    None
}

/// Where the part begins that can't be shown yet, though nothing comes: a fence without its end, or a line that
/// may become the beginning of one.
fn held_from(text: &str) -> usize {
    let mut start = 0;
    for block in fence::blocks(text) {
        let stop = start + source(&block).len();
        if stop == text.len() {
            return match block {
                // The end of its last line isn't there: that may become another line than a closing one.
                Block::Code(_) => start,
                Block::Prose(prose) => {
                    let line = start + prose.rfind('\n').map_or(0, |at| at + 1);
                    let last = text[line..].trim();
                    if !last.is_empty() && last.bytes().all(|byte| byte == b'`') { line } else { stop }
                }
            };
        }
        start = stop;
    }
    text.len()
}

/// Cuts a text that is longer than the limit, whose char number `limit` is at byte `end`. `None` while only more
/// of the text can tell where.
fn cut_at_limit(text: &str, end: usize, limit: usize) -> Option<Cut> {
    if limit < FENCED_LIMIT_CHARS_MIN {
        return Some(cut_prose(text, 0, end));
    }
    let mut start = 0;
    for block in fence::blocks(text) {
        let stop = start + source(&block).len();
        if stop > end {
            return match block {
                Block::Prose(_) => Some(cut_prose(text, start, end)),
                // The fence moves to the next block as a whole.
                Block::Code(_) if start > 0 => Some(Cut::plain(text, start, start)),
                Block::Code(code) => cut_code(text, &code, end, limit),
            };
        }
        start = stop;
    }
    Some(cut_prose(text, 0, end)) // not reached: the text is longer than that
}

/// Cuts the prose that begins at `start`, at the best break up to `end`, or before it.
fn cut_prose(text: &str, start: usize, end: usize) -> Cut {
    let found = best_break(&text[start..], end - start).filter(|(_, class)| start == 0 || *class <= Class::Line);
    match found {
        Some((at, _)) => {
            let after = skip_gap(&text[start + at..]);
            Cut::plain(text, start + at, text.len() - after.len())
        }
        // Code stands before it: the fence's edge is the better break.
        None if start > 0 => Cut::plain(text, start, start),
        None => Cut::plain(text, end, end),
    }
}

/// Cuts the fence with which the text begins, and which is longer than the limit.
fn cut_code(text: &str, code: &Code<'_>, end: usize, limit: usize) -> Option<Cut> {
    // With its own marker, whatever it has inside: the line that closes it, which may not be there yet, must
    // close its last piece.
    let own = Code { raw: code.raw, ticks: code.ticks, info: code.info, body: code.body, longest_run: 0 };
    let Some(frame) = split_frame(&own, limit) else { return Some(Cut::plain(text, end, end)) };
    let first_line = code.raw.find('\n').map_or(code.raw.len(), |at| at + 1);
    let body_end = first_line + code.body.len();
    let body_start = if frame.spills_info { code.raw.find(code.info).unwrap_or(first_line) } else { first_line };
    let body = &text[body_start..body_end];
    let Some(room_end) = prefix_end(body, frame.room) else {
        // Only its indentation was too much. What follows the body is its last line end, or the closing line.
        let is_closed = code.raw[body_end..].trim().bytes().any(|byte| byte == b'`');
        let block = format!("{}{body}{}", frame.head, frame.tail);
        return is_closed.then_some(Cut { block, head: String::new(), next: code.raw.len() });
    };
    let (at, next) = match best_break(body, room_end) {
        // Only the line end at the break goes: blank lines and indentation are code.
        Some((at, Class::Paragraph | Class::Line)) => (at, at + 1),
        Some((at, Class::Sentence | Class::Word | Class::Char)) => (at, at),
        None => (room_end, room_end),
    };
    let piece = &body[..at];
    let block = if piece.trim().is_empty() { String::new() } else { format!("{}{piece}{}", frame.head, frame.tail) };
    Some(Cut { block, head: frame.head, next: body_start + next })
}

/// The part of the text that a block is.
fn source<'a>(block: &Block<'a>) -> &'a str {
    match *block {
        Block::Prose(prose) => prose,
        Block::Code(ref code) => code.raw,
    }
}

#[cfg(test)]
#[path = "cutter_tests.rs"]
mod tests;
