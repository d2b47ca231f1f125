//! A filter of a REQ (NIP-01): its text to typed conditions, and whether an event meets them.
//! How stored events are looked up by it, `find.rs` says.

use super::event::{Event, is_hex, is_letter};
use super::limits::{FILTER_VALUES_MAX, ROWS_MAX};
use serde_json::{Map, Value};

/// Conditions that an event meets all of; an absent list is met by all, an empty one by none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Filter {
    pub(super) ids: Option<Vec<String>>,
    pub(super) authors: Option<Vec<String>>,
    pub(super) kinds: Option<Vec<u16>>,
    /// Unix seconds, both ends included.
    pub(super) since: Option<u64>,
    pub(super) until: Option<u64>,
    /// Stored events at most, newest first. New ones are not counted.
    pub(super) limit: usize,
    /// By name of the tag, without `#`.
    pub(super) tags: Vec<(String, Vec<String>)>,
}

impl Filter {
    /// Reads a filter.
    ///
    /// # Errors
    /// What is wrong with it, with the prefix that NIP-01 wants for machines.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let fields: Map<String, Value> = serde_json::from_str(text).map_err(|_| "invalid: a filter must be an object".to_owned())?;
        let mut filter = Self { limit: ROWS_MAX, ..Self::default() };
        let mut count = 0;
        for (name, value) in &fields {
            filter.set(name, value)?;
            count += value.as_array().map_or(0, Vec::len);
        }
        if count > FILTER_VALUES_MAX {
            return Err(format!("invalid: a filter may have {FILTER_VALUES_MAX} values, not {count}"));
        }
        Ok(filter)
    }

    fn set(&mut self, name: &str, value: &Value) -> Result<(), String> {
        match name {
            "ids" => self.ids = Some(keys(name, value)?),
            "authors" => self.authors = Some(keys(name, value)?),
            "kinds" => self.kinds = Some(kinds(value)?),
            "since" => self.since = Some(number(name, value)?),
            "until" => self.until = Some(number(name, value)?),
            "limit" => self.limit = usize::try_from(number(name, value)?).unwrap_or(usize::MAX).min(ROWS_MAX),
            _ => match name.strip_prefix('#') {
                Some(letter) if is_letter(letter) => self.tags.push((letter.to_owned(), texts(name, value)?)),
                Some(_) | None => return Err(format!("unsupported: filters have no `{}`", name.escape_debug())),
            },
        }
        Ok(())
    }

    /// Whether a new event is one that was asked for.
    pub(super) fn matches(&self, event: &Event) -> bool {
        let is_among = |list: &Option<Vec<String>>, value: &String| list.as_ref().is_none_or(|list| list.contains(value));
        is_among(&self.ids, &event.id)
            && is_among(&self.authors, &event.pubkey)
            && self.kinds.as_ref().is_none_or(|kinds| kinds.contains(&event.kind))
            && self.since.is_none_or(|since| event.created_at >= since)
            && self.until.is_none_or(|until| event.created_at <= until)
            && self.tags.iter().all(|(name, wanted)| event.values(name).any(|value| wanted.iter().any(|one| one == value)))
    }
}

fn texts(name: &str, value: &Value) -> Result<Vec<String>, String> {
    let list = value.as_array().and_then(|items| items.iter().map(|item| item.as_str().map(str::to_owned)).collect());
    list.ok_or_else(|| format!("invalid: `{name}` must be a list of texts"))
}

fn keys(name: &str, value: &Value) -> Result<Vec<String>, String> {
    let keys = texts(name, value)?;
    let is_right = keys.iter().all(|key| is_hex(key));
    if is_right { Ok(keys) } else { Err(format!("invalid: `{name}` must be 64 small hexadecimal digits each")) }
}

fn kinds(value: &Value) -> Result<Vec<u16>, String> {
    let kind = |item: &Value| item.as_u64().and_then(|kind| u16::try_from(kind).ok());
    let list = value.as_array().and_then(|items| items.iter().map(kind).collect());
    list.ok_or_else(|| "invalid: `kinds` must be a list of numbers from 0 to 65535".to_owned())
}

fn number(name: &str, value: &Value) -> Result<u64, String> {
    value.as_u64().ok_or_else(|| format!("invalid: `{name}` must be a whole number that is not negative"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::event::tests::{NOW_S, event};
    use super::*;
    use serde_json::json;

    fn filter(value: Value) -> Filter {
        Filter::parse(&value.to_string()).unwrap()
    }

    #[test]
    fn all_conditions_count_and_one_value_of_each_is_enough() {
        let event = event(1, 1, NOW_S, &[&["t", "a"], &["t", "b"], &["p", "someone"]], "");
        let other = "0".repeat(64);
        let met = [
            json!({}),
            json!({ "ids": [other, event.id] }),
            json!({ "authors": [event.pubkey], "kinds": [7, 1] }),
            json!({ "since": NOW_S, "until": NOW_S }),
            json!({ "#t": ["b", "c"], "#p": ["someone"] }),
            json!({ "limit": 0 }),
        ];
        for one in met {
            assert!(filter(one.clone()).matches(&event), "{one}");
        }
        let not_met = [
            json!({ "ids": [] }),
            json!({ "authors": [other] }),
            json!({ "kinds": [7] }),
            json!({ "since": NOW_S + 1 }),
            json!({ "until": NOW_S - 1 }),
            json!({ "#t": ["b"], "#e": ["b"] }),
            json!({ "#T": ["b"] }),
        ];
        for one in not_met {
            assert!(!filter(one.clone()).matches(&event), "{one}");
        }
    }

    #[test]
    fn what_is_no_filter_is_told() {
        let cases = [
            ("[]", "invalid: "),
            ("{\"kinds\":[65536]}", "invalid: "),
            ("{\"kinds\":[\"1\"]}", "invalid: "),
            ("{\"since\":-1}", "invalid: "),
            ("{\"authors\":[\"abc\"]}", "invalid: "),
            ("{\"#e\":[1]}", "invalid: "),
            ("{\"#ee\":[]}", "unsupported: "),
            ("{\"search\":\"x\"}", "unsupported: "),
        ];
        for (text, prefix) in cases {
            let told = Filter::parse(text).unwrap_err();
            assert!(told.starts_with(prefix), "{text}: {told}");
        }
        let many = json!({ "#t": vec!["x"; FILTER_VALUES_MAX], "kinds": [1] });
        assert!(Filter::parse(&many.to_string()).unwrap_err().contains("values"));
        assert_eq!(filter(json!({ "limit": 1_000_000_000_000_u64 })).limit, ROWS_MAX);
    }
}
