//! Lines out of chunks, bounded: a line that is too long is skipped to its end and only its first
//! bytes are kept. Sans IO.

use crate::ledger::events::REJECT_HEAD_BYTES;
use memchr::memchr;

/// One framed piece of output.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Piece<'a> {
    Line(&'a [u8]),
    TooLong { bytes: u64, head: Vec<u8> },
}

/// The state between chunks.
#[derive(Debug)]
pub(crate) struct Framing {
    /// The beginning of a line whose end hasn't come.
    partial: Vec<u8>,
    /// Bytes of the line that is being skipped, if one is.
    skipping: Option<u64>,
    line_bytes_max: usize,
}

impl Framing {
    pub(crate) fn new(line_bytes_max: usize) -> Self {
        Self { partial: Vec::new(), skipping: None, line_bytes_max }
    }

    /// From the line on that is being read.
    pub(crate) fn set_line_bytes_max(&mut self, line_bytes_max: usize) {
        self.line_bytes_max = line_bytes_max;
    }

    /// Hands every line that `chunk` completes to `take`, without its newline; empty ones are left out.
    pub(crate) fn push(&mut self, mut chunk: &[u8], mut take: impl FnMut(Piece<'_>)) {
        while let Some(end) = memchr(b'\n', chunk) {
            let (line, rest) = (&chunk[..end], &chunk[end + 1..]);
            chunk = rest;
            if let Some(skipped) = self.skipping.take() {
                let head = self.head(line);
                self.partial.clear();
                take(Piece::TooLong { bytes: skipped + line.len() as u64, head });
            } else if self.partial.len() + line.len() > self.line_bytes_max {
                let bytes = (self.partial.len() + line.len()) as u64;
                take(Piece::TooLong { bytes, head: self.head(line) });
                self.partial.clear();
            } else if self.partial.is_empty() {
                give(line, &mut take);
            } else {
                self.partial.extend_from_slice(line);
                give(&self.partial, &mut take);
                self.partial.clear();
            }
        }
        self.keep(chunk);
    }

    /// What is left at EOF: a line that never ended.
    pub(crate) fn finish(&mut self) -> Option<(u64, Vec<u8>)> {
        let bytes = self.skipping.take().unwrap_or(self.partial.len() as u64);
        let mut head = std::mem::take(&mut self.partial);
        head.truncate(REJECT_HEAD_BYTES);
        (bytes > 0).then_some((bytes, head))
    }

    fn keep(&mut self, rest: &[u8]) {
        if let Some(skipped) = &mut self.skipping {
            *skipped += rest.len() as u64;
            if self.partial.len() < REJECT_HEAD_BYTES {
                self.partial = self.head(rest);
            }
        } else if self.partial.len() + rest.len() > self.line_bytes_max {
            self.skipping = Some((self.partial.len() + rest.len()) as u64);
            self.partial = self.head(rest);
        } else {
            self.partial.extend_from_slice(rest);
        }
    }

    fn head(&self, more: &[u8]) -> Vec<u8> {
        self.partial.iter().chain(more).take(REJECT_HEAD_BYTES).copied().collect()
    }
}

fn give(line: &[u8], take: &mut impl FnMut(Piece<'_>)) {
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    if !line.is_empty() {
        take(Piece::Line(line));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Debug, PartialEq, Eq, Clone)]
    enum Got {
        Line(Vec<u8>),
        TooLong(u64),
    }

    fn frame(chunks: &[&[u8]], max: usize) -> (Vec<Got>, Option<(u64, Vec<u8>)>) {
        let (mut framing, mut got) = (Framing::new(max), Vec::new());
        for chunk in chunks {
            framing.push(chunk, |piece| {
                got.push(match piece {
                    Piece::Line(line) => Got::Line(line.to_vec()),
                    Piece::TooLong { bytes, head } => {
                        assert!(head.len() <= REJECT_HEAD_BYTES);
                        Got::TooLong(bytes)
                    }
                });
            });
            assert!(framing.partial.len() <= max.max(REJECT_HEAD_BYTES));
        }
        let rest = framing.finish();
        (got, rest)
    }

    #[test]
    fn joins_parts_skips_long_lines_and_reports_the_rest() {
        let (got, rest) = frame(&[b"a", b"b\n\ncd\r\n", b"0123456", b"789\nx\n", b"half"], 5);
        assert_eq!(got, [Got::Line(b"ab".into()), Got::Line(b"cd".into()), Got::TooLong(10), Got::Line(b"x".into())]);
        assert_eq!(rest, Some((4, b"half".to_vec())));
    }

    #[test]
    fn another_limit_counts_from_the_next_line_on() {
        let mut framing = Framing::new(4);
        let mut got = Vec::new();
        let mut note = |piece: Piece<'_>| got.push(matches!(piece, Piece::Line(_)));
        framing.push(b"12345\n", &mut note);
        framing.set_line_bytes_max(8);
        framing.push(b"12345\n123", &mut note);
        framing.set_line_bytes_max(2);
        framing.push(b"4\n", &mut note);
        assert_eq!(got, [false, true, false]);
    }

    #[test]
    fn a_ten_mebibyte_line_costs_no_memory() {
        let chunk = vec![b'x'; 65536];
        let mut framing = Framing::new(1024);
        for _ in 0..160 {
            framing.push(&chunk, |_| panic!("no line ended"));
            assert!(framing.partial.len() <= REJECT_HEAD_BYTES);
        }
        let mut seen = 0;
        framing.push(b"\n", |piece| {
            if let Piece::TooLong { bytes, .. } = piece {
                seen = bytes;
            }
        });
        assert_eq!(seen, 160 * 65536);
        assert_eq!(framing.finish(), None);
    }

    proptest! {
        /// However output is cut into chunks, the lines are the same.
        #[test]
        fn cutting_changes_nothing(text in proptest::collection::vec(prop_oneof![Just(b'\n'), Just(b'a'), Just(b'b')], 0..300), cuts in proptest::collection::vec(1_usize..20, 1..100)) {
            let mut chunks: Vec<&[u8]> = Vec::new();
            let mut rest: &[u8] = &text;
            for cut in cuts.iter().cycle() {
                if rest.is_empty() { break }
                let (head, tail) = rest.split_at((*cut).min(rest.len()));
                chunks.push(head);
                rest = tail;
            }
            prop_assert_eq!(frame(&chunks, 7), frame(&[&text], 7));
        }
    }
}
