//! What went wrong at a model endpoint, in words that say what to check, and whether trying again
//! could help. Owns the reading of `genai`'s errors. Never passes on a key, nor more than a few
//! lines of what a server said.

use std::time::Duration;

use genai::BoxError;
use genai::webc::StreamTimeout;
use reqwest::header::{HeaderMap, RETRY_AFTER};
use secrecy::{ExposeSecret, SecretString};
use serde_json::Value;

use super::relay::Relay;

/// The most characters of a server's or a library's message that go into an error.
const MESSAGE_CHARS_MAX: usize = 400;

/// Why a conversation with an endpoint failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Fault {
    Endpoint {
        problem: String,
        retryable: bool,
        retry_after: Option<Duration>,
        /// The model can't have worked on the question: it was refused with a status, or never reached the endpoint.
        is_unworked: bool,
    },
    Stalled,
    Unfinished {
        problem: String,
    },
    TooLarge {
        what: &'static str,
        limit_bytes: usize,
    },
    /// The agent may use no more; in words for the user.
    Exhausted {
        problem: String,
    },
}

impl Fault {
    /// One that nobody asked to wait for, and before which the model may have worked.
    pub(super) fn endpoint(problem: impl Into<String>, retryable: bool) -> Self {
        Self::Endpoint { problem: problem.into(), retryable, retry_after: None, is_unworked: false }
    }

    /// The same of a question that didn't reach the endpoint.
    fn unreached(problem: String, retryable: bool) -> Self {
        Self::Endpoint { problem, retryable, retry_after: None, is_unworked: true }
    }

    /// Whether asking the same again could help, and how long to wait at least.
    pub(super) fn passing(&self) -> Option<Option<Duration>> {
        match self {
            Self::Endpoint { retryable, retry_after, .. } => retryable.then_some(*retry_after),
            Self::Stalled | Self::Unfinished { .. } => Some(None),
            Self::TooLarge { .. } | Self::Exhausted { .. } => None,
        }
    }
}

/// The question can't leave the daemon.
pub(super) fn no_way(error: &std::io::Error) -> Fault {
    Fault::endpoint(format!("no connection can be opened: {error}"), true)
}

/// Reads errors. Flattening them to text is deliberate: they may hold the key or a whole page.
#[derive(Debug)]
pub(super) struct Explainer<'a> {
    pub(super) key: Option<&'a SecretString>,
    /// The way of the question to the endpoint.
    pub(super) relay: &'a Relay,
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
        Fault::endpoint(self.tidy(&error.to_string()), false)
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
            return Fault::unreached(problem, false);
        }
        let problem = |told: &str| format!("no answer: check that the server runs and `url`: {told}");
        // The client reaches the relay in any case.
        match self.relay.unreached() {
            Some(reason) => Fault::unreached(problem(&self.tidy(reason)), true),
            None if error.is_connect() => Fault::unreached(problem(&told), true),
            None => Fault::endpoint(problem(&told), true),
        }
    }

    /// An answer with a status other than success.
    fn refused(&self, error: &genai::Error) -> Fault {
        let genai::Error::HttpError { status, body, headers, .. } = error else {
            return Fault::endpoint(self.tidy(&error.to_string()), false);
        };
        let (advice, retryable) = advice(status.as_u16());
        let said = serde_json::from_str::<Value>(body).ok();
        let said = said.as_ref().and_then(message).unwrap_or(body);
        let mut problem = format!("HTTP {}: {advice}", status.as_u16());
        if !said.trim().is_empty() {
            problem = format!("{problem}; it says: {}", self.tidy(said));
        }
        let retry_after = if retryable { retry_after(headers, crate::clock::wall_ms()) } else { None };
        Fault::Endpoint { problem, retryable, retry_after, is_unworked: true }
    }

    /// An error object inside the stream, after a status of success.
    fn reported(&self, body: &Value) -> Fault {
        let text = body.to_string();
        let problem = format!("the model failed: {}", self.tidy(message(body).unwrap_or(&text)));
        // Some providers put the error into an object of its own.
        Fault::endpoint(problem, is_passing(body.get("error").unwrap_or(body)))
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

/// How long a server asks to be left alone (RFC 9110, 10.2.3): in seconds, or until a date; some say it in
/// milliseconds. Nothing is made of what is neither.
fn retry_after(headers: &HeaderMap, now_ms: i64) -> Option<Duration> {
    let text = |name: &str| headers.get(name)?.to_str().ok().map(str::trim);
    if let Some(ms) = text("retry-after-ms").and_then(|text| text.parse().ok()) {
        return Some(Duration::from_millis(ms));
    }
    let asked = text(RETRY_AFTER.as_str())?;
    if let Ok(seconds) = asked.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = jiff::fmt::rfc2822::parse(asked).ok()?;
    let wait_ms = date.timestamp().as_millisecond().saturating_sub(now_ms);
    u64::try_from(wait_ms).ok().map(Duration::from_millis)
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
    const PASSING: [&str; 6] = ["server_error", "api_error", "overloaded", "rate_limit", "timeout", "unavailable"];
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

    use super::super::relay::Destination;
    use super::*;
    use nexus_core::config::Provider;
    use serde_json::json;

    fn relay() -> Relay {
        Relay::open(&Destination::new(&"http://127.0.0.1:1/v1/".parse().unwrap(), Provider::Openai).unwrap()).unwrap()
    }

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
        assert!(is_passing(&json!({"type": "overloaded_error"})));
    }

    #[tokio::test]
    async fn an_error_is_found_in_an_object_of_its_own() {
        let body = json!({"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}});
        let relay = relay();
        let explainer = Explainer { key: None, relay: &relay };
        let fault = explainer.reported(&body);
        assert_eq!(fault, Fault::endpoint("the model failed: Overloaded", true));
        let body = json!({"error": {"code": 400, "message": "no", "status": "INVALID_ARGUMENT"}});
        assert_eq!(explainer.reported(&body).passing(), None);
    }

    #[test]
    fn a_wish_to_be_left_alone_is_read_in_each_way() {
        let asked = |name: &'static str, value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(name, value.parse().unwrap());
            retry_after(&headers, 1_445_412_470_000).map(|wait| wait.as_millis())
        };
        assert_eq!(asked("retry-after", "7"), Some(7_000));
        assert_eq!(asked("retry-after-ms", "1500"), Some(1_500));
        assert_eq!(asked("retry-after", "Wed, 21 Oct 2015 07:28:00 GMT"), Some(10_000));
        assert_eq!(asked("retry-after", "Wed, 21 Oct 2015 07:27:00 GMT"), None, "it is over");
        assert_eq!(asked("retry-after", "soon"), None);
        assert_eq!(asked("retry-after", "-1"), None);
    }

    #[test]
    fn the_message_is_found_in_each_shape() {
        assert_eq!(message(&json!({"error": {"message": "m"}})), Some("m"));
        assert_eq!(message(&json!({"error": "m"})), Some("m"));
        assert_eq!(message(&json!({"detail": "m"})), Some("m"));
        assert_eq!(message(&json!({"message": "m", "code": 1})), Some("m"));
        assert_eq!(message(&json!([1])), None);
    }

    #[tokio::test]
    async fn a_message_is_bounded_clean_and_without_the_key() {
        let key = SecretString::from("sk-secret");
        let relay = relay();
        let explainer = Explainer { key: Some(&key), relay: &relay };
        let long = format!("{}sk-secret{}", "x".repeat(MESSAGE_CHARS_MAX - 3), "\n".repeat(100));
        let tidy = explainer.tidy(&long);
        assert!(!tidy.contains("sk-"), "{tidy}");
        assert_eq!(tidy.chars().count(), MESSAGE_CHARS_MAX);
        assert_eq!(explainer.tidy(" a\x1b\nb "), "a  b");
    }
}
