//! Where the code fences of a text are (CommonMark 0.31, section 4.5, backtick fences).
//!
//! Unlike CommonMark, any indentation is taken: models indent fences inside lists. It never
//! changes text: blocks are slices that together are the whole input.

/// Fewest backticks that make a fence.
const FENCE_TICKS_MIN: usize = 3;

#[derive(Debug, PartialEq)]
pub(super) enum Block<'a> {
    Prose(&'a str),
    Code(Code<'a>),
}

/// One fence. An unclosed one reaches to the end of the text, as CommonMark has it.
#[derive(Debug, PartialEq)]
pub(super) struct Code<'a> {
    /// From the opening line to the closing line, without the latter's line end.
    pub(super) raw: &'a str,
    /// Backticks in the opening line.
    pub(super) ticks: usize,
    pub(super) info: &'a str,
    /// The lines between, without the last line end.
    pub(super) body: &'a str,
    /// The longest run of backticks in the body.
    pub(super) longest_run: usize,
}

/// Splits a text into prose and code, in order.
pub(super) fn blocks(text: &str) -> Vec<Block<'_>> {
    let mut blocks = Vec::new();
    let mut prose_start = 0;
    let mut lines = Lines { text, at: 0 };
    while let Some((start, line)) = lines.next_line() {
        let Some((ticks, info)) = opening(line) else {
            continue;
        };
        if prose_start < start {
            blocks.push(Block::Prose(&text[prose_start..start]));
        }
        let body_start = lines.at;
        let (body_end, code_end) = closing(&mut lines, ticks);
        let body = without_line_end(&text[body_start..body_end]);
        let raw = &text[start..code_end];
        blocks.push(Block::Code(Code { raw, ticks, info, body, longest_run: longest_run(body) }));
        prose_start = code_end;
    }
    if prose_start < text.len() {
        blocks.push(Block::Prose(&text[prose_start..]));
    }
    blocks
}

/// Reads on to the closing line: where the body ends, and where the closing line does.
fn closing(lines: &mut Lines<'_>, ticks: usize) -> (usize, usize) {
    while let Some((start, line)) = lines.next_line() {
        let trimmed = line.trim();
        if trimmed.len() >= ticks && trimmed.bytes().all(|byte| byte == b'`') {
            return (start, start + without_line_end(line).len());
        }
    }
    (lines.text.len(), lines.text.len())
}

/// The backticks and the info string of a line that opens a fence.
fn opening(line: &str) -> Option<(usize, &str)> {
    marker(line)?;
    let trimmed = line.trim();
    let info = trimmed.trim_start_matches('`');
    // With a backtick in it, the line is inline code.
    (!info.contains('`')).then(|| (trimmed.len() - info.len(), info.trim()))
}

/// The bytes of indentation and backticks at the start of a line, if these could open a fence.
pub(super) fn marker(line: &str) -> Option<usize> {
    let indented = line.trim_start_matches([' ', '\t']);
    let rest = indented.trim_start_matches('`');
    (indented.len() - rest.len() >= FENCE_TICKS_MIN).then(|| line.len() - rest.len())
}

fn longest_run(text: &str) -> usize {
    let (mut longest, mut run) = (0, 0);
    for byte in text.bytes() {
        run = if byte == b'`' { run + 1 } else { 0 };
        longest = longest.max(run);
    }
    longest
}

fn without_line_end(line: &str) -> &str {
    let line = line.strip_suffix('\n').unwrap_or(line);
    line.strip_suffix('\r').unwrap_or(line)
}

/// Lines with their line ends and where they start.
struct Lines<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Lines<'a> {
    fn next_line(&mut self) -> Option<(usize, &'a str)> {
        let start = self.at;
        let rest = &self.text[start..];
        if rest.is_empty() {
            return None;
        }
        let length = rest.find('\n').map_or(rest.len(), |at| at + 1);
        self.at = start + length;
        Some((start, &rest[..length]))
    }
}
