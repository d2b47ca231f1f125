//! What is wrong in a configuration text, and where. It only words and orders findings; it never
//! decides what is wrong.

use super::Source;
use super::node::{FileId, Position};
use std::fmt;

/// Most problems kept of each kind (errors, warnings): a person fixes a few at a time, and a hostile
/// file must not make the report larger than itself.
pub(crate) const PROBLEMS_MAX: usize = 100;
/// Longest stretch of a source line that a problem shows, in characters.
pub(crate) const LINE_TEXT_CHARS_MAX: usize = 160;
/// What a message begins with that is a warning among errors.
pub const WARNING_MARK: &str = "warning: ";
/// Longest stretch of a value or key that a message repeats, in characters.
const QUOTED_CHARS_MAX: usize = 40;

/// One finding, with its place. `Display` is `file:line:column: message`, then the source line with a
/// caret below the place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The name that the caller gave the source.
    pub file: String,
    /// 1-based line.
    pub line: usize,
    /// 1-based column, in characters.
    pub column: usize,
    /// What is wrong and what would be right; that of a warning among errors begins with [`WARNING_MARK`].
    pub message: String,
    pub is_warning: bool,
    /// The source line, without control characters; a long line only around the column.
    pub line_text: String,
    /// Characters of `line_text` before the place.
    caret: usize,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { file, line, column, message, is_warning: _, line_text, caret } = self;
        let caret = *caret;
        write!(f, "{file}:{line}:{column}: {message}\n  | {line_text}\n  | {:caret$}^", "")
    }
}

impl std::error::Error for Problem {}

/// A finding before its file's name and text are put to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fault {
    pub(crate) at: Position,
    pub(crate) message: String,
}

/// Findings of one kind, the first [`PROBLEMS_MAX`] of them kept and the rest counted.
#[derive(Debug, Default)]
struct Findings {
    kept: Vec<Fault>,
    hidden: usize,
}

impl Findings {
    fn add(&mut self, at: Position, message: impl FnOnce() -> String) {
        if self.kept.len() < PROBLEMS_MAX {
            self.kept.push(Fault { at, message: message() });
        } else {
            self.hidden += 1;
        }
    }

    fn into_problems(self, main: Source<'_>, overlay: Option<Source<'_>>) -> Vec<Problem> {
        let Self { mut kept, hidden } = self;
        kept.sort_by_key(|fault| fault.at);
        if hidden > 0
            && let Some(last) = kept.last_mut()
        {
            last.message.push_str(&format!(" ({hidden} more not shown)"));
        }
        kept.into_iter()
            .map(|fault| match (fault.at.file, overlay) {
                (FileId::Overlay, Some(overlay)) => problem(fault, overlay),
                (FileId::Overlay, None) | (FileId::Main, _) => problem(fault, main),
            })
            .collect()
    }
}

/// Collects errors and warnings while a configuration is read, so that all are told at once.
#[derive(Debug, Default)]
pub(crate) struct Faults {
    errors: Findings,
    warnings: Findings,
    /// A key that isn't known is an error.
    is_strict: bool,
}

impl Faults {
    pub(crate) fn error(&mut self, at: Position, message: impl Into<String>) {
        self.errors.add(at, || message.into());
    }

    /// The message is computed only when it will be kept: finding the nearest key costs.
    pub(crate) fn warn(&mut self, at: Position, message: impl FnOnce() -> String) {
        self.warnings.add(at, message);
    }

    /// Reads what may not be half understood: a key in it that isn't known is an error, not a warning.
    pub(crate) fn strictly<T>(&mut self, read: impl FnOnce(&mut Self) -> T) -> T {
        let before = std::mem::replace(&mut self.is_strict, true);
        let value = read(self);
        self.is_strict = before;
        value
    }

    /// Notes a key that isn't known. The message is told whether the key is ignored, and is computed as that of a warning.
    pub(crate) fn unknown_key(&mut self, at: Position, message: impl FnOnce(bool) -> String) {
        let is_ignored = !self.is_strict;
        let findings = if is_ignored { &mut self.warnings } else { &mut self.errors };
        findings.add(at, || message(is_ignored));
    }

    /// The warnings, or if there is an error all errors and, marked as such, the warnings: a misspelt
    /// key is often the reason for a missing one.
    pub(crate) fn finish(self, main: Source<'_>, overlay: Option<Source<'_>>) -> Result<Vec<Problem>, Vec<Problem>> {
        let Self { errors, warnings, is_strict: _ } = self;
        let fine = errors.kept.is_empty();
        let mut warnings = warnings.into_problems(main, overlay);
        for warning in &mut warnings {
            warning.is_warning = true;
        }
        if fine {
            return Ok(warnings);
        }
        for warning in &mut warnings {
            warning.message.insert_str(0, WARNING_MARK);
        }
        let mut all = errors.into_problems(main, overlay);
        all.append(&mut warnings);
        Err(all)
    }
}

fn problem(fault: Fault, source: Source<'_>) -> Problem {
    let Position { file: _, line, column } = fault.at;
    let full: Vec<char> = nth_line(source.text, line).chars().map(visible).collect();
    let before = column.saturating_sub(1).min(full.len());
    // Half of the window goes before the place, so that what leads up to it can be read.
    let start = if full.len() <= LINE_TEXT_CHARS_MAX { 0 } else { before.saturating_sub(LINE_TEXT_CHARS_MAX / 2) };
    Problem {
        file: source.name.to_owned(),
        line,
        column,
        message: fault.message,
        is_warning: false,
        line_text: full.iter().skip(start).take(LINE_TEXT_CHARS_MAX).collect(),
        caret: before - start,
    }
}

/// The line by YAML's rule: a line ends at LF, CR LF or a lone CR.
fn nth_line(text: &str, line: usize) -> &str {
    let mut rest = text;
    let mut number = 1;
    loop {
        let Some(end) = rest.find(['\n', '\r']) else {
            return if number == line { rest } else { "" };
        };
        let (head, tail) = rest.split_at(end);
        if number == line {
            return head;
        }
        let width = if tail.starts_with("\r\n") { 2 } else { 1 };
        rest = tail.get(width..).unwrap_or("");
        number += 1;
    }
}

/// A terminal must not obey what a file contains; a tab is one column wide so that carets fit.
fn visible(c: char) -> char {
    match c {
        '\t' => ' ',
        _ if c.is_control() => char::REPLACEMENT_CHARACTER,
        _ => c,
    }
}

/// Text from the file as a message repeats it: in back quotes, short, without control characters.
pub(crate) fn quoted(text: &str) -> String {
    let mut shown: String = text.chars().take(QUOTED_CHARS_MAX).map(visible).collect();
    if text.chars().nth(QUOTED_CHARS_MAX).is_some() {
        shown.push('…');
    }
    format!("`{shown}`")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn at(line: usize, column: usize) -> Position {
        Position { file: FileId::Main, line, column }
    }

    fn only(text: &str, line: usize, column: usize) -> Problem {
        let mut faults = Faults::default();
        faults.error(at(line, column), "wrong");
        faults.finish(Source { name: "nex.yaml", text }, None).unwrap_err().remove(0)
    }

    #[test]
    fn shows_the_line_and_a_caret() {
        let problem = only("a: 1\n\tb: x\u{1b}[2J\n", 2, 5);
        assert_eq!(problem.to_string(), "nex.yaml:2:5: wrong\n  |  b: x\u{fffd}[2J\n  |     ^");
    }

    #[test]
    fn every_line_break_of_yaml_counts() {
        assert_eq!(only("a\r\nb\rc\nd", 3, 1).line_text, "c");
        assert_eq!(only("a\r\nb\rc\nd", 4, 1).line_text, "d");
        assert_eq!(only("a", 9, 7).line_text, "");
    }

    #[test]
    fn a_long_line_is_cut_around_the_place() {
        let text = format!("{}X{}", "a".repeat(50_000), "b".repeat(50_000));
        let problem = only(&text, 1, 50_001);
        assert_eq!(problem.line_text.chars().count(), LINE_TEXT_CHARS_MAX);
        assert_eq!(problem.line_text.chars().nth(problem.caret), Some('X'));
    }

    #[test]
    fn a_flood_of_problems_is_cut_and_counted() {
        let mut faults = Faults::default();
        for line in (1..=PROBLEMS_MAX + 7).rev() {
            faults.error(at(line, 1), "wrong");
        }
        let problems = faults.finish(Source { name: "nex.yaml", text: "" }, None).unwrap_err();
        assert_eq!(problems.len(), PROBLEMS_MAX);
        assert!(problems.windows(2).all(|pair| pair[0].line <= pair[1].line));
        assert_eq!(problems.last().unwrap().message, "wrong (7 more not shown)");
    }
}
