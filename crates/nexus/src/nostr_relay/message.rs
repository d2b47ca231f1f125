//! The messages of NIP-01 and NIP-42 as text: what clients say is told apart, what the relay says is written.
//! What becomes of them, `session.rs` decides.

use serde_json::json;
use serde_json::value::RawValue;

/// What a client says. Events and filters are read by whoever takes them.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Said<'t> {
    Event(&'t str),
    Req { subscription: String, filters: Vec<&'t str> },
    Close { subscription: String },
    Auth(&'t str),
}

/// Reads a message.
///
/// # Errors
/// What is wrong with it.
pub(super) fn parse(text: &str) -> Result<Said<'_>, String> {
    let parts: Vec<&RawValue> = serde_json::from_str(text).map_err(|_| "invalid: a message must be a list".to_owned())?;
    let parts: Vec<&str> = parts.into_iter().map(RawValue::get).collect();
    let (verb, rest) = parts.split_first().ok_or_else(|| "invalid: a message must not be empty".to_owned())?;
    let verb: String = serde_json::from_str(verb).map_err(|_| "invalid: a message begins with a word".to_owned())?;
    match (verb.as_str(), rest) {
        ("EVENT", [event]) => Ok(Said::Event(event)),
        ("AUTH", [event]) => Ok(Said::Auth(event)),
        ("REQ", [subscription, filters @ ..]) => Ok(Said::Req { subscription: name(subscription)?, filters: filters.to_vec() }),
        ("CLOSE", [subscription]) => Ok(Said::Close { subscription: name(subscription)? }),
        ("EVENT" | "AUTH" | "REQ" | "CLOSE", _) => Err(format!("invalid: {verb} has another number of parts")),
        _ => Err(format!("unsupported: there is no `{}`", verb.escape_debug())),
    }
}

fn name(text: &str) -> Result<String, String> {
    serde_json::from_str(text).map_err(|_| "invalid: a subscription's id must be a text".to_owned())
}

pub(super) fn event(subscription: &str, event: &str) -> String {
    format!("[\"EVENT\",{},{event}]", json!(subscription))
}

pub(super) fn ok(id: &str, accepted: bool, reason: &str) -> String {
    json!(["OK", id, accepted, reason]).to_string()
}

pub(super) fn eose(subscription: &str) -> String {
    json!(["EOSE", subscription]).to_string()
}

pub(super) fn closed(subscription: &str, reason: &str) -> String {
    json!(["CLOSED", subscription, reason]).to_string()
}

pub(super) fn notice(text: &str) -> String {
    json!(["NOTICE", text]).to_string()
}

pub(super) fn challenge(text: &str) -> String {
    json!(["AUTH", text]).to_string()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn messages_are_told_apart() {
        assert_eq!(parse(r#"["EVENT", {"a": 1}]"#).unwrap(), Said::Event(r#"{"a": 1}"#));
        let filters = vec!["{}", r#"{"kinds":[1]}"#];
        assert_eq!(parse(r#"["REQ","s",{},{"kinds":[1]}]"#).unwrap(), Said::Req { subscription: "s".to_owned(), filters });
        assert_eq!(parse(r#"["CLOSE","s"]"#).unwrap(), Said::Close { subscription: "s".to_owned() });
        assert_eq!(parse(r#"["AUTH",{}]"#).unwrap(), Said::Auth("{}"));
        for wrong in ["", "{}", "[]", "[1]", r#"["EVENT"]"#, r#"["REQ"]"#, r#"["REQ",1,{}]"#, r#"["CLOSE","a","b"]"#, r#"["EVENT",{}] "x""#]
        {
            assert!(parse(wrong).unwrap_err().starts_with("invalid: "), "{wrong}");
        }
        assert!(parse(r#"["COUNT","s",{}]"#).unwrap_err().starts_with("unsupported: "));
    }

    #[test]
    fn names_of_clients_are_written_as_json() {
        assert_eq!(event("a\"b", "{}"), r#"["EVENT","a\"b",{}]"#);
        assert_eq!(closed("s", "error: \n"), r#"["CLOSED","s","error: \n"]"#);
    }
}
