//! The parameters of a call, taken out one by one, each with what is wrong with it.

use super::CallError;
use super::shapes::Ask;
use serde_json::{Map, Value};
use std::ops::RangeInclusive;

/// Longest stretch of a text of the plugin's that an error repeats, in characters.
const SHOWN_CHARS_MAX: usize = 80;

/// The fields that were not taken yet. What no call has is ignored, as everywhere.
#[derive(Debug)]
pub(super) struct Params(Map<String, Value>);

impl Params {
    /// # Errors
    /// When they are no object.
    pub(super) fn new(params: Value) -> Result<Self, CallError> {
        match params {
            Value::Object(fields) => Ok(Self(fields)),
            Value::Null => Ok(Self(Map::new())),
            Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => Err(wrong("params", "must be an object")),
        }
    }

    /// The same, without what `T` doesn't have.
    ///
    /// # Errors
    /// When they are no object.
    pub(super) fn of<T: Ask>(params: Value) -> Result<Self, CallError> {
        let Self(mut fields) = Self::new(params)?;
        fields.retain(|field, _| T::FIELDS.contains(&field.as_str()));
        Ok(Self(fields))
    }

    /// A field's value; null counts as none.
    pub(super) fn take(&mut self, field: &str) -> Option<Value> {
        self.0.remove(field).filter(|value| !value.is_null())
    }

    /// A text that isn't empty.
    pub(super) fn text(&mut self, field: &str, bytes_max: usize) -> Result<String, CallError> {
        self.optional_text(field, bytes_max)?.ok_or_else(|| wrong(field, "is missing; it is a text"))
    }

    /// A text that isn't empty, or none.
    pub(super) fn optional_text(&mut self, field: &str, bytes_max: usize) -> Result<Option<String>, CallError> {
        let text = match self.take(field) {
            None => return Ok(None),
            Some(Value::String(text)) => text,
            Some(Value::Null | Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_)) => {
                return Err(wrong(field, "must be a text"));
            }
        };
        if text.trim().is_empty() {
            return Err(wrong(field, "must not be empty"));
        }
        if text.len() > bytes_max {
            return Err(CallError::Limit(format!("`{field}` has {} bytes; at most {bytes_max} are taken", text.len())));
        }
        // Arguments of programs and C strings end at a NUL.
        if text.contains('\0') {
            return Err(wrong(field, "contains a NUL character"));
        }
        Ok(Some(text))
    }

    /// A whole number within a range, or none.
    pub(super) fn whole(&mut self, field: &str, range: RangeInclusive<u32>) -> Result<Option<u32>, CallError> {
        let Some(value) = self.take(field) else { return Ok(None) };
        let number = value.as_u64().and_then(|number| u32::try_from(number).ok()).filter(|number| range.contains(number));
        let problem = || wrong(field, format!("must be a whole number from {} to {}", range.start(), range.end()));
        number.map(Some).ok_or_else(problem)
    }
}

pub(super) fn wrong(field: impl Into<String>, problem: impl Into<String>) -> CallError {
    CallError::Params { field: field.into(), problem: problem.into() }
}

/// A text of the plugin's as an error repeats it: short, without control characters.
pub(super) fn shown(text: &str) -> String {
    let mut shown: String = text.chars().take(SHOWN_CHARS_MAX).map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect();
    if text.chars().nth(SHOWN_CHARS_MAX).is_some() {
        shown.push('\u{2026}');
    }
    shown
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::shapes::SearchAsk;
    use super::*;
    use serde_json::json;

    #[test]
    fn what_is_wrong_names_its_field() {
        let mut params =
            Params::new(json!({ "a": 1, "b": " ", "c": "x\u{0}", "d": "long", "e": null, "f": "yes", "g": 7, "h": -1 })).unwrap();
        let mut told = |field: &str| params.text(field, 3).map_err(|error| error.to_string());
        assert_eq!(told("a").unwrap_err(), "`a` must be a text");
        assert_eq!(told("b").unwrap_err(), "`b` must not be empty");
        assert_eq!(told("c").unwrap_err(), "`c` contains a NUL character");
        assert_eq!(told("d").unwrap_err(), "`d` has 4 bytes; at most 3 are taken");
        assert_eq!(told("e").unwrap_err(), "`e` is missing; it is a text");
        assert_eq!(told("f").unwrap(), "yes");
        assert_eq!(params.whole("g", 0..=9).unwrap(), Some(7));
        assert_eq!(params.whole("h", 0..=9).unwrap_err().to_string(), "`h` must be a whole number from 0 to 9");
        assert_eq!(params.whole("i", 0..=9).unwrap(), None);
        for value in [json!([]), json!("x"), json!(1), json!(true)] {
            assert!(Params::new(value).is_err());
        }
    }

    #[test]
    fn what_a_call_does_not_have_does_not_reach_it() {
        let mut params = Params::of::<SearchAsk>(json!({ "query": "x", "to": "ann" })).unwrap();
        assert_eq!((params.take("query"), params.take("to")), (Some(json!("x")), None));
    }

    #[test]
    fn what_is_repeated_is_short_and_visible() {
        assert_eq!(shown("a\u{1b}[2J"), "a\u{fffd}[2J");
        assert_eq!(shown(&"x".repeat(1_000_000)).chars().count(), SHOWN_CHARS_MAX + 1);
    }
}
