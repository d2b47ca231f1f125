//! What went wrong at a model endpoint, in words that say what to check, and whether trying again
//! could help. Owns the reading of `genai`'s errors. Never passes on a key, nor more than a few
//! lines of what a server said.

use genai::BoxError;
use genai::webc::StreamTimeout;
use secrecy::{ExposeSecret, SecretString};
use serde_json::Value;

/// The most characters of a server's or a library's message that go into an error.
const MESSAGE_CHARS_MAX: usize = 400;

/// Why a conversation with an endpoint failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Fault {
    Endpoint { problem: String, retryable: bool },
    Stalled,
    Unfinished { problem: String },
    TooLarge { what: &'static str, limit_bytes: usize },
}

/// Reads errors. Flattening them to text is deliberate: they may hold the key or a whole page.
#[derive(Debug)]
pub(super) struct Explainer<'a> {
    pub(super) key: Option<&'a SecretString>,
}

impl Explainer<'_> {
    pub(super) fn explain(&self, error: genai::Error) -> Fault {
        if let genai::Error::WebStream { error: cause, .. } = error {
            return self.transport(cause);
        }
        if let genai::Error::ChatResponse { body, .. } = &error {
            return self.reported(body);
        }
        if let genai::Error::StreamParse { serde_error, .. } = &error {
            let problem = format!("a chunk of the stream is not valid JSON: {serde_error}");
            return Fault::Unfinished { problem: self.tidy(&problem) };
        }
        Fault::Endpoint { problem: self.tidy(&error.to_string()), retryable: false }
    }

    fn transport(&self, cause: BoxError) -> Fault {
        let cause = match cause.downcast::<genai::Error>() {
            Ok(error) => return self.refused(&error),
            Err(cause) => cause,
        };
        if cause.is::<StreamTimeout>() {
            return Fault::Stalled;
        }
        match cause.downcast::<reqwest::Error>() {
            Ok(error) => self.request(error.without_url()),
            Err(cause) => Fault::Unfinished { problem: self.tidy(&crate::error_text::describe(&*cause)) },
        }
    }

    /// A request that got no answer, or an answer that broke off.
    fn request(&self, error: reqwest::Error) -> Fault {
        let told = self.tidy(&crate::error_text::describe(&error));
        if error.is_body() || error.is_decode() {
            return Fault::Unfinished { problem: told };
        }
        if error.is_builder() {
            let problem = format!("the request cannot be made: check `url`: {told}");
            return Fault::Endpoint { problem, retryable: false };
        }
        let problem = format!("no answer: check that the server runs and `url`: {told}");
        Fault::Endpoint { problem, retryable: true }
    }

    /// An answer with a status other than success.
    fn refused(&self, error: &genai::Error) -> Fault {
        let genai::Error::HttpError { status, body, .. } = error else {
            return Fault::Endpoint { problem: self.tidy(&error.to_string()), retryable: false };
        };
        let (advice, retryable) = advice(status.as_u16());
        let said = serde_json::from_str::<Value>(body).ok();
        let said = said.as_ref().and_then(message).unwrap_or(body);
        let mut problem = format!("HTTP {}: {advice}", status.as_u16());
        if !said.trim().is_empty() {
            problem = format!("{problem}; it says: {}", self.tidy(said));
        }
        Fault::Endpoint { problem, retryable }
    }

    /// An error object inside the stream, after a status of success.
    fn reported(&self, body: &Value) -> Fault {
        let text = body.to_string();
        let problem = format!("the model failed: {}", self.tidy(message(body).unwrap_or(&text)));
        Fault::Endpoint { problem, retryable: is_passing(body) }
    }

    /// One bounded line without the key and without control characters. The key goes first: cut
    /// in half it would not be recognised.
    fn tidy(&self, text: &str) -> String {
        let text = match self.key {
            Some(key) => text.replace(key.expose_secret(), "[key]"),
            None => text.to_owned(),
        };
        let clean = |c: char| if c.is_control() { ' ' } else { c };
        text.trim().chars().take(MESSAGE_CHARS_MAX).map(clean).collect()
    }
}

/// What to check for an HTTP status, and whether trying again could help.
fn advice(status: u16) -> (&'static str, bool) {
    match status {
        300..=399 => ("it redirects, which is not followed: set `url` to the final address", false),
        400 | 413 | 422 => ("the request was refused: check `model`, and that its context holds the session", false),
        401 | 403 => ("the key was refused: check `key_file` or `key_env`", false),
        404 | 405 => ("nothing answers there: check `url` and `model`", false),
        408 | 425 => ("the request took too long to arrive", true),
        429 => ("too many requests, or the quota is used up", true),
        500..=599 => ("the server failed", true),
        _ => ("the status is unexpected: check `url`", false),
    }
}

/// The message of an error answer in the shapes that servers use.
fn message(body: &Value) -> Option<&str> {
    let error = body.get("error").unwrap_or(body);
    let fields = ["message", "detail", "error"];
    error.as_str().or_else(|| fields.iter().find_map(|field| error.get(field)?.as_str()))
}

/// Whether an error object in a stream names something that passes.
fn is_passing(body: &Value) -> bool {
    const PASSING: [&str; 5] = ["server_error", "overloaded", "rate_limit", "timeout", "unavailable"];
    let named = |field: &str| {
        let text = body.get(field).and_then(Value::as_str).unwrap_or_default();
        PASSING.iter().any(|name| text.contains(name)) || text.parse().is_ok_and(|status| advice(status).1)
    };
    let code = body.get("code").and_then(Value::as_u64);
    let status = code.and_then(|code| u16::try_from(code).ok());
    status.is_some_and(|status| advice(status).1) || named("code") || named("type")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use serde_json::json;

    #[test]
    fn only_what_passes_is_retried() {
        for status in [408, 425, 429, 500, 502, 503, 504, 529] {
            assert!(advice(status).1, "{status}");
        }
        for status in [301, 400, 401, 403, 404, 422, 418] {
            assert!(!advice(status).1, "{status}");
        }
        assert!(is_passing(&json!({"code": 503})));
        assert!(is_passing(&json!({"code": "429"})));
        assert!(is_passing(&json!({"type": "server_error"})));
        assert!(!is_passing(&json!({"type": "invalid_request_error", "code": 400})));
        assert!(!is_passing(&json!("no")));
    }

    #[test]
    fn the_message_is_found_in_each_shape() {
        assert_eq!(message(&json!({"error": {"message": "m"}})), Some("m"));
        assert_eq!(message(&json!({"error": "m"})), Some("m"));
        assert_eq!(message(&json!({"detail": "m"})), Some("m"));
        assert_eq!(message(&json!({"message": "m", "code": 1})), Some("m"));
        assert_eq!(message(&json!([1])), None);
    }

    #[test]
    fn a_message_is_bounded_clean_and_without_the_key() {
        let key = SecretString::from("sk-secret");
        let explainer = Explainer { key: Some(&key) };
        let long = format!("{}sk-secret{}", "x".repeat(MESSAGE_CHARS_MAX - 3), "\n".repeat(100));
        let tidy = explainer.tidy(&long);
        assert!(!tidy.contains("sk-"), "{tidy}");
        assert_eq!(tidy.chars().count(), MESSAGE_CHARS_MAX);
        assert_eq!(explainer.tidy(" a\x1b\nb "), "a  b");
    }
}
