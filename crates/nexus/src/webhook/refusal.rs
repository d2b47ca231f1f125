//! Every answer other than 200, with its status and what the sender can do about it.
//! Owns the wording and the JSON form of answers; never decides whether a request is refused.

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use hyper::{Response, StatusCode};
use serde_json::{Value, json};

use super::event::Unusable;
use super::signature::Rejection;

/// A complete answer.
pub(super) type Reply = Response<Full<Bytes>>;

/// When a sender may come back after a 503.
const RETRY_AFTER_S: u16 = 5;

/// Why a request is not answered with 200.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refusal {
    #[error("there is nothing at this path")]
    NotFound,
    #[error("this path answers {allow} only")]
    WrongMethod { allow: &'static str },
    #[error("the request is not verified: {0}")]
    Unverified(#[from] Rejection),
    #[error("the request is verified but unusable: {0}")]
    Unusable(#[from] Unusable),
    #[error("the body is larger than {limit_bytes} bytes")]
    TooLarge { limit_bytes: usize },
    #[error("the event made of this body is longer than a line of {limit_bytes} bytes")]
    LineTooLong { limit_bytes: usize },
    #[error("the body did not arrive in time")]
    SlowBody,
    #[error("the body could not be read")]
    BrokenBody(#[source] hyper::Error),
    #[error("too many requests at once")]
    Busy,
    #[error("too many events wait to be recorded")]
    Backlog,
    #[error("the event was not recorded in time")]
    NotAcknowledged,
    #[error("the receiver is stopping")]
    Stopping,
    #[error("failed to encode the event")]
    Encode(#[source] serde_json::Error),
}

impl Refusal {
    /// The status, and what helps.
    fn status_and_advice(&self) -> (StatusCode, &'static str) {
        match self {
            Self::NotFound => (StatusCode::NOT_FOUND, "post to the `path` of the account's config, by default /ACCOUNT"),
            Self::WrongMethod { .. } => (StatusCode::METHOD_NOT_ALLOWED, "use the method named in the Allow header"),
            Self::Unverified(rejection) => (StatusCode::UNAUTHORIZED, proof_advice(rejection)),
            Self::Unusable(_) => (StatusCode::BAD_REQUEST, "check that the sender is of the kind named by the account's `verify`"),
            Self::TooLarge { .. } => {
                (StatusCode::PAYLOAD_TOO_LARGE, "send less, or raise `max_body_bytes` of the account and `max_line_bytes`")
            }
            Self::LineTooLong { .. } => {
                (StatusCode::PAYLOAD_TOO_LARGE, "send less, or raise `max_line_bytes` of the adapter and of the account alike")
            }
            Self::SlowBody => (StatusCode::REQUEST_TIMEOUT, "send the body without pauses"),
            Self::BrokenBody(_) => (StatusCode::BAD_REQUEST, "send the request again"),
            Self::Busy => (StatusCode::SERVICE_UNAVAILABLE, "retry later, fewer at once"),
            Self::Backlog => (StatusCode::SERVICE_UNAVAILABLE, "retry later; the daemon is behind"),
            Self::NotAcknowledged => {
                (StatusCode::SERVICE_UNAVAILABLE, "retry with the same delivery id; the event is recorded once at most")
            }
            Self::Stopping => (StatusCode::SERVICE_UNAVAILABLE, "retry with the same delivery id after the restart"),
            Self::Encode(_) => (StatusCode::INTERNAL_SERVER_ERROR, "report this as a defect"),
        }
    }

    /// A fixed text per kind of refusal, to count by.
    pub(super) fn cause(&self) -> &'static str {
        self.status_and_advice().1
    }

    /// The answer to send.
    pub(super) fn reply(&self) -> Reply {
        let (status, advice) = self.status_and_advice();
        let mut reply = answer(status, &json!({ "error": self.to_string(), "advice": advice }));
        if status == StatusCode::SERVICE_UNAVAILABLE {
            let seconds = HeaderValue::from(RETRY_AFTER_S);
            reply.headers_mut().insert(RETRY_AFTER, seconds);
        }
        if let Self::WrongMethod { allow } = *self {
            let allow = HeaderValue::from_static(allow);
            reply.headers_mut().insert(ALLOW, allow);
        }
        reply
    }
}

/// What helps a sender that was not believed.
fn proof_advice(rejection: &Rejection) -> &'static str {
    match rejection {
        Rejection::Missing { .. } => "have the sender sign its requests or send its token, as the account's `verify` says",
        Rejection::Malformed { .. } => "send the header once, in the form that the account's `verify` expects",
        Rejection::Stale { .. } => "set the clocks of the sender and of this machine, and sign each attempt anew",
        Rejection::Mismatch => "set the same secret at the sender and in the account's credential",
        Rejection::FromBrowser => "send it from a program, without an `Origin` header, or set `verify` and a credential for the account",
    }
}

/// A JSON answer.
pub(super) fn answer(status: StatusCode, body: &Value) -> Reply {
    let mut reply = Response::new(Full::new(Bytes::from(body.to_string())));
    *reply.status_mut() = status;
    let json = HeaderValue::from_static("application/json");
    reply.headers_mut().insert(CONTENT_TYPE, json);
    reply
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_503_says_when_to_come_back() {
        let reply = Refusal::NotAcknowledged.reply();
        assert_eq!(reply.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(reply.headers()[RETRY_AFTER], "5");
    }

    #[test]
    fn each_lack_of_proof_has_its_own_advice() {
        let header = || "stripe-signature".to_owned();
        let rejections = [
            (Rejection::Missing { header: header() }, "token"),
            (Rejection::Malformed { header: header() }, "once"),
            (Rejection::Stale { skew_s: 900, tolerance_s: 300 }, "clocks"),
            (Rejection::Mismatch, "same secret"),
            (Rejection::FromBrowser, "Origin"),
        ];
        for (rejection, word) in rejections {
            let refusal = Refusal::Unverified(rejection);
            assert_eq!(refusal.reply().status(), StatusCode::UNAUTHORIZED);
            assert!(refusal.cause().contains(word), "{refusal}: {}", refusal.cause());
        }
    }

    #[test]
    fn a_405_names_the_method() {
        let reply = Refusal::WrongMethod { allow: "POST" }.reply();
        assert_eq!(reply.headers()[ALLOW], "POST");
        assert!(!reply.headers().contains_key(RETRY_AFTER));
    }
}
