//! What `nexus plugin` and `nexus automation` have in common: how those that run are listed beside those that don't, how
//! one of them is told, and the files that both read.

use super::budget::Budget;
use super::failure::{Exit, Failure};
use super::out::{Color, Out, visible};
use super::table::{self, Cell};
use anyhow::Context;
use serde::Deserialize;
use serde_json::{Value, json};
use std::io::Read;
use std::path::Path;

/// Longest problem in a table, in characters.
pub(super) const PROBLEM_CHARS_MAX: usize = 160;
/// Largest file with an event.
const EVENT_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// Those of `answer[key]`, a row each, then the names of `answer["disabled"]`.
pub(super) fn list(answer: &Value, key: &str, row: fn(&Value) -> [Cell; 4], out: Out) -> anyhow::Result<Exit> {
    if out.json {
        out.json(answer)?;
        return Ok(Exit::Done);
    }
    let enabled = answer[key].as_array().into_iter().flatten().map(row);
    let disabled = answer["disabled"].as_array().into_iter().flatten().filter_map(Value::as_str);
    let off = |name: &str| [Cell::new(name), Cell::colored("disabled", Color::Dim), Cell::new(""), Cell::new("")];
    let rows: Vec<_> = enabled.chain(disabled.map(off)).collect();
    for line in table::lines(&rows, &[], out.paint) {
        out.line(&line)?;
    }
    Ok(Exit::Done)
}

/// The one of this name in `answer[key]`, or that it is disabled; `None` if there is none.
pub(super) fn find(answer: &Value, key: &str, name: &str) -> Option<Value> {
    let enabled = answer[key].as_array().into_iter().flatten().find(|one| one["name"] == name).cloned();
    let is_disabled = answer["disabled"].as_array().is_some_and(|names| names.iter().any(|known| known == name));
    enabled.or_else(|| is_disabled.then(|| json!({ "name": name, "status": "disabled" })))
}

/// A line for each of these keys of which something is known, the values below each other.
pub(super) fn tell(one: &Value, keys: &[&str], out: Out) -> anyhow::Result<Exit> {
    if out.json {
        out.json(one)?;
        return Ok(Exit::Done);
    }
    let width = keys.iter().map(|key| key.len() + 1).max().unwrap_or(0);
    for key in keys {
        let text = match &one[*key] {
            // In words, and not as it came.
            value @ Value::Object(_) if *key == "budget" => Budget::deserialize(value)?.used(),
            Value::Null | Value::Bool(false) => continue,
            Value::Bool(true) => "yes".to_owned(),
            Value::String(text) => visible(text),
            Value::Array(items) if items.is_empty() => continue,
            Value::Array(items) => items.iter().filter_map(Value::as_str).map(visible).collect::<Vec<_>>().join(", "),
            value @ (Value::Number(_) | Value::Object(_)) => visible(&value.to_string()),
        };
        out.line(&format!("{:<width$} {text}", format!("{key}:")))?;
    }
    Ok(Exit::Done)
}

/// The one event that a file has.
pub(super) fn event(path: &Path) -> anyhow::Result<Value> {
    serde_json::from_str(&read(path, EVENT_BYTES_MAX)?).with_context(|| format!("`{}` is not one JSON value", path.display()))
}

/// A whole file of at most so many bytes.
pub(super) fn read(path: &Path, bytes_max: u64) -> anyhow::Result<String> {
    let (shown, mut text) = (path.display(), String::new());
    let file = std::fs::File::open(path).with_context(|| format!("failed to open `{shown}`"))?;
    file.take(bytes_max + 1).read_to_string(&mut text).with_context(|| format!("failed to read `{shown}`"))?;
    if text.len() as u64 > bytes_max {
        return Err(Failure::new(Exit::Failed, format!("`{shown}` is longer than {bytes_max} bytes")).into());
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn one_is_found_whether_it_runs_or_not() {
        let answer = json!({ "plugins": [{ "name": "a", "status": "running" }], "disabled": ["b"] });
        assert_eq!(find(&answer, "plugins", "a").unwrap()["status"], "running");
        assert_eq!(find(&answer, "plugins", "b").unwrap(), json!({ "name": "b", "status": "disabled" }));
        assert!(find(&answer, "plugins", "c").is_none());
    }

    #[test]
    fn a_file_that_is_too_long_is_not_read_in_part() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "12345").unwrap();
        assert_eq!(read(file.path(), 5).unwrap(), "12345");
        assert!(read(file.path(), 4).unwrap_err().to_string().ends_with("is longer than 4 bytes"));
    }
}
