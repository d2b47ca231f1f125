//! How long one event of a streamed answer may be, found in the bytes of an HTTP/1.1 answer as they come: `genai` looks at
//! all of an unfinished event again for each part that comes, so a long one costs the square of its length. It changes
//! no byte, and takes nothing for granted that a server says of itself.

use memchr::{memchr, memchr2};

/// The most of one event, or of the body of an error, in bytes: an event is a few words, or the calls of tools.
pub const EVENT_BYTES_MAX: usize = 1024 * 1024;

/// The same where the last event has the whole answer again.
pub(super) const WHOLE_EVENT_BYTES_MAX: usize = 4 * 1024 * 1024;

/// The most of an answer's head, or of what stands between two chunks, in bytes.
const HEAD_BYTES_MAX: usize = 256 * 1024;

/// What ends an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum EventEnd {
    /// A line feed, and no other line break.
    Line,
    /// As in `text/event-stream`.
    BlankLine,
}

/// What comes next of the answer.
#[derive(Debug)]
enum Part {
    /// The line of the head, as far as it came.
    Head { line: Vec<u8>, is_first: bool, is_final: bool, is_chunked: bool },
    /// The body up to the end of the connection.
    Body,
    /// The line with a chunk's length.
    ChunkSize(Vec<u8>),
    /// So many bytes of a chunk.
    Chunk(u64),
    /// The line break behind a chunk.
    ChunkEnd,
}

/// One answer, as far as it has come.
#[derive(Debug)]
pub(super) struct EventBound {
    ends: EventEnd,
    event_bytes_max: usize,
    part: Part,
    /// Bytes of the head, or of chunk lengths since the last chunk that had something in it.
    frame_bytes: usize,
    /// Bytes of the event that is coming.
    event_bytes: usize,
    is_line_empty: bool,
    /// A line break behind it belongs to it.
    is_after_return: bool,
}

impl EventBound {
    pub(super) fn new(ends: EventEnd, event_bytes_max: usize) -> Self {
        let part = Part::Head { line: Vec::new(), is_first: true, is_final: true, is_chunked: false };
        Self { ends, event_bytes_max, part, frame_bytes: 0, event_bytes: 0, is_line_empty: true, is_after_return: false }
    }

    /// Takes the next bytes of the answer; false once an event is too long, or what stands around it.
    pub(super) fn take(&mut self, mut bytes: &[u8]) -> bool {
        while !bytes.is_empty() {
            bytes = match &mut self.part {
                Part::Head { .. } | Part::ChunkSize(_) | Part::ChunkEnd => self.take_frame(bytes),
                Part::Body => {
                    self.take_body(bytes);
                    &[]
                }
                Part::Chunk(left) => {
                    let count = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len());
                    *left -= count as u64;
                    if *left == 0 {
                        self.part = Part::ChunkEnd;
                    }
                    let (body, rest) = bytes.split_at(count);
                    self.frame_bytes = 0;
                    self.take_body(body);
                    rest
                }
            };
            if self.event_bytes > self.event_bytes_max || self.frame_bytes > HEAD_BYTES_MAX {
                return false;
            }
        }
        true
    }

    /// Takes what is no part of the body, up to the end of a line; what comes behind it.
    fn take_frame<'a>(&mut self, bytes: &'a [u8]) -> &'a [u8] {
        let (part, rest, is_whole) = match memchr(b'\n', bytes) {
            Some(at) => (&bytes[..at], &bytes[at + 1..], true),
            None => (bytes, &bytes[bytes.len()..], false),
        };
        self.frame_bytes += bytes.len() - rest.len();
        match &mut self.part {
            Part::Head { line, .. } | Part::ChunkSize(line) => line.extend_from_slice(part),
            Part::ChunkEnd | Part::Body | Part::Chunk(_) => {}
        }
        if is_whole {
            self.end_line();
        }
        rest
    }

    fn end_line(&mut self) {
        let next = match &mut self.part {
            Part::Head { line, is_first, is_final, is_chunked } => {
                let text = std::mem::take(line).to_ascii_lowercase();
                let text = text.trim_ascii();
                if *is_first && text.is_empty() {
                    return; // the client skips it too
                }
                if std::mem::take(is_first) {
                    // A word before the answer itself has a head of its own.
                    *is_final = !text.split(|byte| *byte == b' ').nth(1).is_some_and(|status| status.starts_with(b"1"));
                }
                if let Some(value) = text.strip_prefix(b"transfer-encoding:") {
                    *is_chunked = ends_chunked(value);
                }
                match (text.is_empty(), *is_final, *is_chunked) {
                    (false, _, _) => return,
                    (true, false, _) => Part::Head { line: Vec::new(), is_first: true, is_final: true, is_chunked: false },
                    (true, true, true) => Part::ChunkSize(Vec::new()),
                    (true, true, false) => Part::Body,
                }
            }
            Part::ChunkSize(line) => match chunk_bytes(line) {
                // The last one, or none that the client will take: what comes is trailers or nothing.
                None | Some(0) => Part::Body,
                Some(bytes) => Part::Chunk(bytes),
            },
            Part::ChunkEnd => Part::ChunkSize(Vec::new()),
            Part::Body | Part::Chunk(_) => return,
        };
        self.part = next;
    }

    fn take_body(&mut self, mut bytes: &[u8]) {
        while let Some(at) = memchr2(b'\n', b'\r', bytes) {
            let is_return = bytes[at] == b'\r';
            let is_pair = at == 0 && self.is_after_return && !is_return;
            let was_empty = self.is_line_empty && at == 0 && !is_pair;
            let is_end = match self.ends {
                EventEnd::Line => !is_return,
                EventEnd::BlankLine => was_empty,
            };
            self.event_bytes = if is_end { 0 } else { self.event_bytes + at + 1 };
            (self.is_line_empty, self.is_after_return) = (true, is_return);
            bytes = &bytes[at + 1..];
        }
        if !bytes.is_empty() {
            self.event_bytes += bytes.len();
            (self.is_line_empty, self.is_after_return) = (false, false);
        }
    }
}

/// Whether a body of this transfer coding comes in chunks: where the header is there twice, the last one says so.
fn ends_chunked(value: &[u8]) -> bool {
    let last = value.rsplit(|byte| *byte == b',').next().unwrap_or_default();
    value.is_ascii() && last.trim_ascii() == b"chunked"
}

/// The length in the line before a chunk.
fn chunk_bytes(line: &[u8]) -> Option<u64> {
    let digits = line.split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii();
    u64::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    const LINE_CHARS: usize = 1000;
    const HEAD: &str = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n";

    fn chunked(parts: &[&str]) -> String {
        let chunks: String = parts.iter().map(|part| format!("{:x}\r\n{part}\r\n", part.len())).collect();
        format!("{HEAD}Transfer-Encoding: chunked\r\n\r\n{chunks}")
    }

    fn is_taken(ends: EventEnd, answer: &str) -> bool {
        EventBound::new(ends, EVENT_BYTES_MAX).take(answer.as_bytes())
    }

    /// Longer than an event may be.
    fn long(piece: &str) -> String {
        piece.repeat(EVENT_BYTES_MAX / piece.len() + 1)
    }

    #[test]
    fn many_events_pass_and_a_long_one_does_not() {
        for (event, ends) in [
            ("data: x\n\n", EventEnd::BlankLine),
            ("data: x\r\n\r\n", EventEnd::BlankLine),
            ("data: x\r\r", EventEnd::BlankLine),
            ("{}\n", EventEnd::Line),
        ] {
            assert!(is_taken(ends, &format!("{HEAD}\r\n{}", long(event))), "{event:?}");
        }
        for part in ["x", "data: x\n", "data: x\r\n", "data: x\r"] {
            assert!(!is_taken(EventEnd::BlankLine, &format!("{HEAD}\r\n{}", long(part))), "{part:?}");
        }
        assert!(!is_taken(EventEnd::Line, &format!("{HEAD}\r\n{}", long("x"))));
        assert!(!is_taken(EventEnd::BlankLine, &long("x: y\r\n")), "a head without an end");
    }

    #[test]
    fn how_an_answer_is_cut_into_chunks_ends_no_event() {
        for ending in ["\n", "\r\n"] {
            let line = format!("data: {}{ending}", "x".repeat(LINE_CHARS));
            let lines = vec![line.as_str(); EVENT_BYTES_MAX / LINE_CHARS];
            assert!(!is_taken(EventEnd::BlankLine, &chunked(&lines)), "{ending:?}");
            let events = [line.as_str(), ending].repeat(EVENT_BYTES_MAX / LINE_CHARS);
            assert!(is_taken(EventEnd::BlankLine, &chunked(&events)), "the end of an event has a chunk of its own: {ending:?}");
        }
    }

    #[test]
    fn a_word_before_the_answer_is_none() {
        let line = format!("data: {}\n", "x".repeat(LINE_CHARS));
        let answer = chunked(&vec![line.as_str(); EVENT_BYTES_MAX / LINE_CHARS]);
        for before in ["HTTP/1.1 100 Continue\r\n\r\n", "HTTP/1.0 103 x\r\na: b\r\n\r\n", "\r\n\n"] {
            assert!(!is_taken(EventEnd::BlankLine, &format!("{before}{answer}")), "{before:?}");
        }
    }

    #[test]
    fn what_only_looks_like_chunks_is_one_event() {
        // Each of its chunks would be a byte, and what is behind that nothing.
        let line = format!("1\r\nx{}\r\n", "y".repeat(LINE_CHARS));
        let body = line.repeat(EVENT_BYTES_MAX / LINE_CHARS + 1);
        let is_taken = |codings: &[&str]| {
            let headers: String = codings.iter().map(|coding| format!("transfer-encoding: {coding}\r\n")).collect();
            is_taken(EventEnd::BlankLine, &format!("{HEAD}{headers}\r\n{body}"))
        };
        for codings in [&["xchunked"][..], &["chunked, gzip"], &["chunked", "gzip"], &["\u{e4}, chunked"]] {
            assert!(!is_taken(codings), "{codings:?}");
        }
        assert!(is_taken(&["gzip", "gzip , Chunked "]), "a client that takes this for chunks is told that they are none");
    }

    #[test]
    fn only_a_line_feed_ends_a_line() {
        let taken = |event: &str| is_taken(EventEnd::Line, &format!("{HEAD}\r\n{}", long(event)));
        assert_eq!([taken("{}\r"), taken("{}\r\n"), taken("\n")], [false, true, true]);
    }

    #[test]
    fn lengths_that_are_none_are_no_chunks() {
        assert_eq!(["1f", " A ;x=y", "0"].map(|line| chunk_bytes(line.as_bytes())), [Some(31), Some(10), Some(0)]);
        assert_eq!(["", "g", "-1", "fffffffffffffffff", "\u{e4}"].map(|line| chunk_bytes(line.as_bytes())), [None; 5]);
    }

    proptest! {
        /// However the bytes arrive, the same is found.
        #[test]
        fn parts_make_no_difference(
            lines in prop::collection::vec(prop::sample::select(vec!["data: x\n", "\n", "\r\n", "\r", "x", "abc\r\n"]), 0..60),
            cut in 1_usize..40,
            is_chunked in any::<bool>(),
        ) {
            let answer = if is_chunked { chunked(&lines) } else { format!("{HEAD}\r\n{}", lines.concat()) };
            let mut whole = EventBound::new(EventEnd::BlankLine, EVENT_BYTES_MAX);
            whole.take(answer.as_bytes());
            let mut parts = EventBound::new(EventEnd::BlankLine, EVENT_BYTES_MAX);
            for part in answer.as_bytes().chunks(cut) {
                parts.take(part);
            }
            prop_assert_eq!(format!("{whole:?}"), format!("{parts:?}"));
        }
    }
}
