//! From nodes to typed values: each basic type once, noting everything that is wrong on the way and
//! going on, so that one reading finds all mistakes. Rules that span keys are the sections' own.

use super::node::{Kind, Node, Position};
use super::problem::{Faults, quoted};
use crate::event::PeerKind;
use serde_json::{Map, Number as JsonNumber, Value};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::ops::RangeInclusive;
use std::str::FromStr;

/// Longest wait, period or age that a key may set, in milliseconds: 365 days. It keeps sums of times
/// far from overflow.
pub(crate) const WAIT_MS_MAX: u64 = 365 * 24 * 60 * 60 * 1000;
/// Longest single run or request, in milliseconds: one day.
pub(crate) const RUN_MS_MAX: u64 = 24 * 60 * 60 * 1000;
/// Longest retention, in days: a hundred years.
pub(crate) const DAYS_MAX: u32 = 36_500;
/// Longest name of an adapter, account, agent or cron label, in characters.
pub(crate) const NAME_CHARS_MAX: usize = 64;
/// Longest key for which a similar known key is looked for, in bytes.
const SUGGEST_BYTES_MAX: usize = 64;
/// How similar a known key must be to be suggested (Jaro-Winkler, 1 is equal).
const SUGGEST_SIMILARITY_MIN: f64 = 0.75;

/// A value that a node can be read as.
pub(crate) trait Decode: Sized {
    /// `None` after noting what is wrong. `name` is the key, for the message.
    fn decode(node: &Node, name: &str, faults: &mut Faults) -> Option<Self>;
}

/// A section: a mapping with known keys.
pub(crate) trait Section {
    /// The keys, in the order in which they are documented.
    const KEYS: &'static [&'static str];
    /// Other spellings of some keys.
    const ALIASES: &'static [&'static str];
}

/// A type of number, with what a message calls it.
pub(crate) trait Number: Copy + PartialOrd + Display + FromStr {
    const NOUN: &'static str;
}

impl Number for u16 {
    const NOUN: &'static str = "a whole number";
}
impl Number for u32 {
    const NOUN: &'static str = "a whole number";
}
impl Number for u64 {
    const NOUN: &'static str = "a whole number";
}
impl Number for i64 {
    const NOUN: &'static str = "a whole number";
}
impl Number for f64 {
    const NOUN: &'static str = "a number";
}

/// Reads an unquoted number within a range.
pub(crate) fn number<T: Number>(node: &Node, name: &str, range: &RangeInclusive<T>, faults: &mut Faults) -> Option<T> {
    if let Kind::Scalar { text, plain: true } = &node.kind
        && let Ok(value) = text.parse::<T>()
        && range.contains(&value)
    {
        return Some(value);
    }
    let (noun, low, high) = (T::NOUN, range.start(), range.end());
    let found = described(node);
    faults.error(node.at, format!("`{name}` must be {noun} from {low} to {high}, not {found}"));
    None
}

/// Reads one word of a closed set.
pub(crate) fn word<T>(node: &Node, name: &str, words: &[&str], parse: impl Fn(&str) -> Option<T>, faults: &mut Faults) -> Option<T> {
    if let Some(value) = node.text().and_then(parse) {
        return Some(value);
    }
    let (words, found) = (words.join(", "), described(node));
    faults.error(node.at, format!("`{name}` must be one of {words}, not {found}"));
    None
}

/// Reads text that must not be empty.
pub(crate) fn nonempty(node: &Node, name: &str, faults: &mut Faults) -> Option<String> {
    let text = String::decode(node, name, faults)?;
    if text.trim().is_empty() {
        faults.error(node.at, format!("`{name}` must not be empty; remove the key or give it a value"));
        return None;
    }
    Some(text)
}

/// As [`nonempty`], for a key that may be left out.
pub(crate) fn optional_text(node: &Node, name: &str, faults: &mut Faults) -> Option<Option<String>> {
    nonempty(node, name, faults).map(Some)
}

/// Reads a mapping whose keys are names: see [`check_name`].
pub(crate) fn named<T: Decode>(node: &Node, name: &str, faults: &mut Faults) -> Option<BTreeMap<String, T>> {
    for (key, field) in node.fields() {
        check_name(key, field.key_at, faults);
    }
    BTreeMap::decode(node, name, faults)
}

/// Notes a name that is not 1 to 64 characters of `A-Z a-z 0-9 . _ @ + -`, or that starts with `-`:
/// names become arguments and parts of paths.
pub(crate) fn check_name(name: &str, at: Position, faults: &mut Faults) {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "._@+-".contains(c);
    let is_name = !name.is_empty() && name.len() <= NAME_CHARS_MAX && !name.starts_with('-') && name.chars().all(allowed);
    if !is_name {
        let rule = "1 to 64 characters of A-Z a-z 0-9 . _ @ + -, not starting with -";
        faults.error(at, format!("name {} is not usable; a name has {rule}", quoted(name)));
    }
}

/// Notes entries of a list that repeat another's value of `key`.
pub(crate) fn check_unique(list: &Node, key: &str, faults: &mut Faults) {
    let mut firsts: BTreeMap<&str, Position> = BTreeMap::new();
    for node in list.items().iter().filter_map(|item| item.get(key)) {
        let Some(text) = node.text() else { continue };
        let first = *firsts.entry(text).or_insert(node.at);
        if first != node.at {
            let (text, line) = (quoted(text), first.line);
            faults.error(node.at, format!("`{key}` {text} is already used on line {line}; give each its own"));
        }
    }
}

/// Notes texts of a list that were there before.
pub(crate) fn check_unique_items(list: &Node, name: &str, faults: &mut Faults) {
    let mut seen = BTreeSet::new();
    for item in list.items() {
        let Some(text) = item.text() else { continue };
        if !seen.insert(text) {
            faults.error(item.at, format!("`{name}` names {} twice; once is enough", quoted(text)));
        }
    }
}

/// Whether the node can be a section: a mapping, or nothing at all (all defaults).
pub(crate) fn is_section(node: &Node, name: &str, faults: &mut Faults) -> bool {
    let fits = match &node.kind {
        Kind::Null | Kind::Mapping(_) => true,
        Kind::Scalar { .. } | Kind::Sequence(_) => false,
    };
    if !fits {
        let (name, found) = (quoted(name), described(node));
        faults.error(node.at, format!("{name} must be keys with values (`key: value`), not {found}"));
    }
    fits
}

/// The value of a key, under its own name or an alias; nothing written counts as no key.
pub(crate) fn find<'n>(node: &'n Node, key: &str, aliases: &[&str], faults: &mut Faults) -> Option<&'n Node> {
    let mut found = node.get(key).filter(|value| !value.is_null());
    for alias in aliases {
        let Some(value) = node.get(alias).filter(|value| !value.is_null()) else { continue };
        if found.is_some() {
            faults.error(value.at, format!("`{alias}` is another name for `{key}`; give only one of them"));
        }
        found = found.or(Some(value));
    }
    found
}

pub(crate) fn missing(node: &Node, name: &str, key: &str, example: &str, faults: &mut Faults) {
    faults.error(node.at, format!("{} needs `{key}`, for example `{key}: {example}`", quoted(name)));
}

/// Notes each key the section doesn't know, naming the nearest that it does.
pub(crate) fn check_keys<S: Section>(node: &Node, name: &str, faults: &mut Faults) {
    for (key, field) in node.fields() {
        if S::KEYS.contains(&key.as_str()) || S::ALIASES.contains(&key.as_str()) {
            continue;
        }
        faults.unknown_key(field.key_at, |is_ignored| {
            let advice = match nearest(key, S::KEYS) {
                Some(known) => format!("did you mean `{known}`?"),
                None => format!("known here: {}", S::KEYS.join(", ")),
            };
            let place = if name.is_empty() { String::new() } else { format!(" in {}", quoted(name)) };
            let ignored = if is_ignored { " is ignored" } else { "" };
            format!("unknown key {}{place}{ignored}; {advice}", quoted(key))
        });
    }
}

fn nearest(key: &str, known: &[&'static str]) -> Option<&'static str> {
    if key.len() > SUGGEST_BYTES_MAX {
        return None;
    }
    known
        .iter()
        .map(|candidate| (strsim::jaro_winkler(key, candidate), *candidate))
        .filter(|(similarity, _)| *similarity >= SUGGEST_SIMILARITY_MIN)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, candidate)| candidate)
}

/// What a node is, as a message says it.
pub(crate) fn described(node: &Node) -> String {
    match &node.kind {
        Kind::Null => "nothing".to_owned(),
        Kind::Scalar { text, plain: true } => quoted(text),
        Kind::Scalar { text, plain: false } => format!("the quoted text {}", quoted(text)),
        Kind::Sequence(_) => "a list".to_owned(),
        Kind::Mapping(_) => "keys with values".to_owned(),
    }
}

impl Decode for bool {
    fn decode(node: &Node, name: &str, faults: &mut Faults) -> Option<Self> {
        if let Kind::Scalar { text, plain: true } = &node.kind {
            match text.as_str() {
                "true" | "True" | "TRUE" => return Some(true),
                "false" | "False" | "FALSE" => return Some(false),
                _ => {}
            }
        }
        faults.error(node.at, format!("`{name}` must be true or false, not {}", described(node)));
        None
    }
}

impl Decode for String {
    fn decode(node: &Node, name: &str, faults: &mut Faults) -> Option<Self> {
        let Some(text) = node.text() else {
            faults.error(node.at, format!("`{name}` must be text, not {}", described(node)));
            return None;
        };
        // Arguments, paths and variables end at a NUL, so none can be meant.
        if text.contains('\0') {
            faults.error(node.at, format!("`{name}` contains a NUL character; remove it"));
            return None;
        }
        Some(text.to_owned())
    }
}

impl<T: Decode> Decode for Option<T> {
    fn decode(node: &Node, name: &str, faults: &mut Faults) -> Option<Self> {
        T::decode(node, name, faults).map(Some)
    }
}

impl<T: Decode> Decode for Vec<T> {
    fn decode(node: &Node, name: &str, faults: &mut Faults) -> Option<Self> {
        let Kind::Sequence(items) = &node.kind else {
            faults.error(node.at, format!("`{name}` must be a list such as [a, b], not {}", described(node)));
            return None;
        };
        Some(items.iter().filter_map(|item| T::decode(item, name, faults)).collect())
    }
}

impl<T: Decode> Decode for BTreeMap<String, T> {
    fn decode(node: &Node, name: &str, faults: &mut Faults) -> Option<Self> {
        if !is_section(node, name, faults) {
            return None;
        }
        let mut values = BTreeMap::new();
        for (key, field) in node.fields() {
            if let Some(value) = T::decode(&field.value, key, faults) {
                values.insert(key.clone(), value);
            }
        }
        Some(values)
    }
}

impl Decode for Map<String, Value> {
    fn decode(node: &Node, name: &str, faults: &mut Faults) -> Option<Self> {
        if !is_section(node, name, faults) {
            return None;
        }
        Some(node.fields().map(|(key, field)| (key.clone(), to_json(&field.value))).collect())
    }
}

impl Decode for PeerKind {
    fn decode(node: &Node, name: &str, faults: &mut Faults) -> Option<Self> {
        word(node, name, &["dm", "group", "channel"], PeerKind::parse, faults)
    }
}

/// A free-form value as JSON, by the YAML 1.2 core schema, save that digits after a plus sign or a
/// leading zero stay text: they are telephone numbers and ids.
pub(crate) fn to_json(node: &Node) -> Value {
    match &node.kind {
        Kind::Null => Value::Null,
        Kind::Scalar { text, plain: false } => Value::from(text.as_str()),
        Kind::Scalar { text, plain: true } => plain_to_json(text),
        Kind::Sequence(items) => items.iter().map(to_json).collect(),
        Kind::Mapping(_) => {
            let fields = node.fields().map(|(key, field)| (key.clone(), to_json(&field.value)));
            Value::Object(fields.collect())
        }
    }
}

fn plain_to_json(text: &str) -> Value {
    match text {
        "true" | "True" | "TRUE" => return Value::Bool(true),
        "false" | "False" | "FALSE" => return Value::Bool(false),
        _ => {}
    }
    let digits = text.strip_prefix('-').unwrap_or(text);
    let zero_led = digits.len() > 1 && digits.starts_with('0') && !digits.starts_with("0.");
    if zero_led || !digits.starts_with(|c: char| c.is_ascii_digit()) {
        return Value::from(text);
    }
    if let Ok(whole) = text.parse::<i64>() {
        return Value::from(whole);
    }
    if let Ok(whole) = text.parse::<u64>() {
        return Value::from(whole);
    }
    let fraction = text.parse::<f64>().ok().and_then(JsonNumber::from_f64);
    fraction.map_or_else(|| Value::from(text), Value::Number)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::node::FileId;
    use super::super::parse::parse;
    use super::*;

    fn json(text: &str) -> Value {
        to_json(&parse(FileId::Main, text, &mut Faults::default()).unwrap())
    }

    #[test]
    fn free_values_follow_the_core_schema_but_keep_numbers_that_are_names() {
        assert_eq!(
            json("{a: 1, b: -2.5, c: yes, d: true, e: '1', f: ~, g: [18446744073709551615], h: 1e3}"),
            serde_json::json!({
                "a": 1, "b": -2.5, "c": "yes", "d": true, "e": "1", "f": null,
                "g": [18_446_744_073_709_551_615_u64], "h": 1000.0
            })
        );
        assert_eq!(
            json("{a: +15551234567, b: 007, c: 0.5, d: 0, e: .inf, f: 1.2.3, g: 99999999999999999999999999}"),
            serde_json::json!({
                "a": "+15551234567", "b": "007", "c": 0.5, "d": 0, "e": ".inf", "f": "1.2.3",
                "g": 1e26
            })
        );
    }

    #[test]
    fn names_are_safe_as_arguments_and_paths() {
        let problems = |name: &str| {
            let mut faults = Faults::default();
            check_name(name, Position { file: FileId::Main, line: 1, column: 1 }, &mut faults);
            let source = super::super::Source { name: "nex.yaml", text: "" };
            faults.finish(source, None).is_err()
        };
        for good in ["gog", "me@example.org", "+15551234567", "a.b_c-d", &"x".repeat(64)] {
            assert!(!problems(good), "{good}");
        }
        for bad in ["", "-x", "a/b", "a b", "ä", "a\n", &"x".repeat(65)] {
            assert!(problems(bad), "{bad}");
        }
    }

    #[test]
    fn the_nearest_key_is_found_or_none() {
        assert_eq!(nearest("prot", &["host", "port"]), Some("port"));
        assert_eq!(nearest("heartbeat_ms", &["timezone", "heartbeat_interval_ms"]), Some("heartbeat_interval_ms"));
        assert_eq!(nearest("zzz", &["host", "port"]), None);
        assert_eq!(nearest(&"port".repeat(1000), &["port"]), None);
    }
}
