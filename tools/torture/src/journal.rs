//! Files of lines that the harness and its programs share. A line is one write to a file opened for
//! appending, so that lines of processes that run at once never mix. A process that is killed while it writes may
//! leave a half: the kernel stops between two pages. So each line begins with a line break and ends with a mark.

use anyhow::{Context, Result};
use serde_json::Value;
use std::fs::OpenOptions;
use std::io::Write;
use std::path::Path;

/// What a whole line ends with.
const END: char = '\u{4}';

/// Adds one line.
///
/// # Errors
/// Of the file system.
pub(crate) fn append(path: &Path, line: &str) -> Result<()> {
    let failed = || format!("failed to append to `{}`", path.display());
    let mut file = OpenOptions::new().create(true).append(true).open(path).with_context(failed)?;
    file.write_all(format!("\n{line}{END}\n").as_bytes()).with_context(failed)
}

/// All whole lines; none if there is no file.
///
/// # Errors
/// Of the file system, and bytes that are no text.
pub(crate) fn lines(path: &Path) -> Result<Vec<String>> {
    Ok(whole(&text(path)?).map(str::to_owned).collect())
}

/// All whole lines as JSON.
///
/// # Errors
/// Of the file system, and a line that is no JSON.
pub(crate) fn values(path: &Path) -> Result<Vec<Value>> {
    values_with(path, "")
}

/// The lines in which `needle` occurs, as JSON. A program that runs once for each message asks so: a journal has
/// thousands of lines.
///
/// # Errors
/// Of the file system, and such a line that is no JSON.
pub(crate) fn values_with(path: &Path, needle: &str) -> Result<Vec<Value>> {
    let parse = |line: &str| serde_json::from_str(line).with_context(|| format!("`{}` has a line that is no JSON: {line}", path.display()));
    whole(&text(path)?).filter(|line| line.contains(needle)).map(parse).collect()
}

/// A file as it is; empty if there is none.
///
/// # Errors
/// Of the file system, and bytes that are no text.
pub(crate) fn text(path: &Path) -> Result<String> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(text),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(String::new()),
        Err(error) => Err(error).with_context(|| format!("failed to read `{}`", path.display())),
    }
}

/// The whole lines of a journal's text.
pub(crate) fn whole(text: &str) -> impl Iterator<Item = &str> {
    text.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n')?.strip_suffix(END))
}

/// What an adapter was told to be committed: ids, and when by `CLOCK_MONOTONIC`, in nanoseconds.
///
/// # Errors
/// Of the file system, and a line without a time.
pub(crate) fn acked(path: &Path) -> Result<Vec<(String, u64)>> {
    let parse = |line: &String| -> Result<(String, u64)> {
        let (id, at) = line.rsplit_once(' ').with_context(|| format!("an acknowledgement has no time: {line}"))?;
        Ok((id.to_owned(), at.parse().context("its time is no number")?))
    };
    lines(path)?.iter().map(parse).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_half_line_is_not_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        assert!(lines(&path).unwrap().is_empty());
        append(&path, r#"{"n":1}"#).unwrap();
        let half = || OpenOptions::new().append(true).open(&path).unwrap().write_all(b"\n{\"n\":").unwrap();
        half();
        assert_eq!(values(&path).unwrap(), [serde_json::json!({ "n": 1 })]);
        append(&path, r#"{"n":2}"#).unwrap();
        half();
        assert_eq!(values(&path).unwrap(), [serde_json::json!({ "n": 1 }), serde_json::json!({ "n": 2 })], "one amid them");
    }
}
