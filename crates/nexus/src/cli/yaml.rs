//! A JSON value as YAML that every reader takes for the same value: block style, all text quoted.

use serde_json::{Map, Value};

/// Blanks per level.
const INDENT: usize = 2;

/// The document. An empty mapping is written as `{}`.
pub(crate) fn emit(value: &Value) -> String {
    let mut text = String::new();
    match value {
        Value::Object(fields) if !fields.is_empty() => mapping(fields, 0, &mut text),
        Value::Array(items) if !items.is_empty() => list(items, 0, &mut text),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) | Value::Object(_) => {
            text.push_str(&inline(value));
            text.push('\n');
        }
    }
    text
}

fn mapping(fields: &Map<String, Value>, indent: usize, text: &mut String) {
    for (key, value) in fields {
        text.push_str(&format!("{}{}:", " ".repeat(indent), quoted(key)));
        below(value, indent, text);
    }
}

fn list(items: &[Value], indent: usize, text: &mut String) {
    for item in items {
        text.push_str(&format!("{}-", " ".repeat(indent)));
        below(item, indent, text);
    }
}

/// What stands behind `key:` or `-`, to the end of its last line.
fn below(value: &Value, indent: usize, text: &mut String) {
    match value {
        Value::Object(fields) if !fields.is_empty() => {
            text.push('\n');
            mapping(fields, indent + INDENT, text);
        }
        Value::Array(items) if !items.is_empty() => {
            text.push('\n');
            list(items, indent + INDENT, text);
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) | Value::Object(_) => {
            text.push_str(&format!(" {}\n", inline(value)));
        }
    }
}

fn inline(value: &Value) -> String {
    match value {
        Value::String(word) => quoted(word),
        // Without anything in them these are the same in JSON and in YAML.
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => value.to_string(),
    }
}

/// JSON's escapes are YAML's too (YAML 1.2, 5.7), but JSON leaves some characters bare that YAML
/// takes for line ends or does not allow.
fn quoted(text: &str) -> String {
    let mut result = String::new();
    for c in Value::from(text).to_string().chars() {
        if c.is_control() || matches!(c, '\u{2028}' | '\u{2029}' | '\u{feff}') {
            result.push_str(&format!("\\u{:04x}", u32::from(c)));
        } else {
            result.push(c);
        }
    }
    result
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use nexus_core::config::overlay_value;
    use serde_json::json;

    #[test]
    fn the_layout() {
        let value = json!({ "a": { "b": [1, "x", { "c": null }], "d": {} }, "e": [] });
        assert_eq!(emit(&value), "\"a\":\n  \"b\":\n    - 1\n    - \"x\"\n    -\n      \"c\": null\n  \"d\": {}\n\"e\": []\n");
        assert_eq!(emit(&json!({})), "{}\n");
    }

    #[test]
    fn what_is_written_is_read_back() {
        let value = json!({
            "adapters": {
                "odd: name #1": { "command": "a \"b\" \\ 'c'", "env": { "EMPTY": "", "NUMBER": "0123", "BOOL": "yes", "NULL": "null", "TILDE": "~" } },
                "second": { "accounts": { "me@example.org": { "enabled": false, "monitor": true, "config": {
                    "depth": 3, "ratio": 0.5, "big": -9_007_199_254_740_993_i64, "none": null, "list": [[1, 2], [], {}, { "x": "y" }],
                    "text": "line\nbreak\ttab\u{7f}\u{85}\u{2028}\u{feff}\u{1f600} ---\n- not: a list"
                } } } }
            }
        });
        assert_eq!(overlay_value(&emit(&value)).unwrap(), value);
    }

    #[test]
    fn an_emitted_overlay_loads() {
        use nexus_core::config::{Source, load};
        let overlay = emit(&json!({ "adapters": { "gog": { "command": "gog --fast", "accounts": { "0123": { "enabled": false } } } } }));
        let loaded = load(Source { name: "nex.yaml", text: "" }, Some(Source { name: "overlay.yaml", text: &overlay })).unwrap();
        let gog = &loaded.config.adapters["gog"];
        assert_eq!(gog.argv, ["gog", "--fast"]);
        assert!(!gog.accounts["0123"].enabled);
    }
}
