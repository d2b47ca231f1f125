//! Turns a verified request into one event.
//! Owns where the delivery id, sender, peer and time come from for each scheme; never verifies,
//! and never fails on a body merely because it is not the JSON that a sender usually sends.

use hyper::HeaderMap;
use hyper::header::HeaderName;
use serde::Deserialize;
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use super::config::Settings;
use super::protocol::{Event, base64};
use super::signature::Verifier;

const GITHUB_DELIVERY: &str = "x-github-delivery";
const GITHUB_EVENT: &str = "x-github-event";
/// Headers copied into `metadata.headers`; none of them carries a secret.
const KEPT_HEADERS: [&str; 6] =
    ["content-type", "user-agent", "x-github-hook-id", "x-github-hook-installation-target-type", "x-request-id", "idempotency-key"];
const MAX_DELIVERY_ID_BYTES: usize = 200;
const MAX_NAME_BYTES: usize = 200;
const MAX_KEPT_HEADER_BYTES: usize = 256;

/// Why a verified request is still no event; the sender has to change something.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Unusable {
    #[error("the body is empty")]
    EmptyBody,
    #[error("the `{header}` header with the delivery id is missing")]
    NoDeliveryId { header: String },
    #[error("the delivery id must be 1 to 200 visible ASCII characters")]
    OddDeliveryId,
    #[error("the body is not a Stripe event: it needs a text `id` and a whole number `created`")]
    NotAStripeEvent,
}

/// What only the scheme knows about a request.
struct Origin {
    delivery_id: String,
    event: Option<String>,
    sender_id: String,
    sender_name: Option<String>,
    peer_id: String,
    /// Unix milliseconds, where the sender says when it happened.
    happened_at_ms: Option<i64>,
}

#[derive(Default, Deserialize)]
struct GithubBody {
    sender: Option<GithubSender>,
    repository: Option<GithubRepository>,
}

#[derive(Deserialize)]
struct GithubSender {
    login: String,
}

#[derive(Deserialize)]
struct GithubRepository {
    full_name: String,
}

#[derive(Deserialize)]
struct StripeBody {
    id: String,
    #[serde(rename = "type")]
    kind: Option<String>,
    created: i64,
}

/// Builds the event for a request whose signature was proven. `received_at_ms` is Unix time in
/// milliseconds and becomes the timestamp unless the sender tells its own.
pub(super) fn build(settings: &Settings, headers: &HeaderMap, body: Vec<u8>, received_at_ms: i64) -> Result<Event, Unusable> {
    if body.is_empty() {
        return Err(Unusable::EmptyBody);
    }
    let origin = match &settings.verifier {
        Verifier::Github { .. } => github_origin(settings, headers, &body)?,
        Verifier::Stripe { .. } => stripe_origin(settings, &body)?,
        Verifier::Token { .. } | Verifier::Unverified => plain_origin(settings, headers, &body)?,
    };
    if !is_plain_id(&origin.delivery_id) {
        return Err(Unusable::OddDeliveryId);
    }
    let (content, encoding) = match String::from_utf8(body) {
        Ok(text) => (text, None),
        Err(not_text) => (base64(not_text.as_bytes()), Some("base64")),
    };
    let metadata = metadata(settings, headers, origin.event, encoding);
    let (channel, account_id) = (settings.channel.clone(), settings.account_id.clone());
    Ok(Event {
        event_id: format!("{channel}:{account_id}:{}", origin.delivery_id),
        timestamp: origin.happened_at_ms.unwrap_or(received_at_ms),
        content,
        content_type: "text",
        channel,
        account_id,
        sender_id: origin.sender_id,
        sender_name: origin.sender_name,
        peer_id: origin.peer_id,
        peer_kind: "channel",
        metadata,
    })
}

fn github_origin(settings: &Settings, headers: &HeaderMap, body: &[u8]) -> Result<Origin, Unusable> {
    // A hook may be set to send form data; it is an event all the same, with fewer names in it.
    let parsed: GithubBody = serde_json::from_slice(body).unwrap_or_default();
    let login = parsed.sender.map(|sender| sender.login).filter(|login| is_short_name(login));
    let repository = parsed.repository.map(|repository| repository.full_name);
    Ok(Origin {
        delivery_id: text_of(headers, GITHUB_DELIVERY).ok_or_else(|| Unusable::NoDeliveryId { header: GITHUB_DELIVERY.to_owned() })?,
        event: text_of(headers, GITHUB_EVENT),
        sender_id: match &login {
            Some(login) => format!("github:{login}"),
            None => "github".to_owned(),
        },
        sender_name: login,
        peer_id: repository.filter(|name| is_short_name(name)).unwrap_or_else(|| settings.account_id.clone()),
        happened_at_ms: None,
    })
}

fn stripe_origin(settings: &Settings, body: &[u8]) -> Result<Origin, Unusable> {
    let parsed: StripeBody = serde_json::from_slice(body).map_err(|_| Unusable::NotAStripeEvent)?;
    let happened_at_ms = parsed.created.checked_mul(1000).filter(|ms| *ms >= 0).ok_or(Unusable::NotAStripeEvent)?;
    Ok(Origin {
        delivery_id: parsed.id,
        event: parsed.kind,
        sender_id: "stripe".to_owned(),
        sender_name: None,
        peer_id: settings.account_id.clone(),
        happened_at_ms: Some(happened_at_ms),
    })
}

fn plain_origin(settings: &Settings, headers: &HeaderMap, body: &[u8]) -> Result<Origin, Unusable> {
    let delivery_id = match headers.get(&settings.id_header) {
        Some(value) => value.to_str().map_err(|_| Unusable::OddDeliveryId)?.to_owned(),
        None => {
            let digest: [u8; 32] = Sha256::digest(body).into();
            hex::encode(digest)
        }
    };
    let event_name = settings.event_header.as_ref().map(HeaderName::as_str);
    Ok(Origin {
        delivery_id,
        event: event_name.and_then(|name| text_of(headers, name)),
        sender_id: settings.verifier.name().to_owned(),
        sender_name: None,
        peer_id: settings.account_id.clone(),
        happened_at_ms: None,
    })
}

fn metadata(settings: &Settings, headers: &HeaderMap, event: Option<String>, encoding: Option<&str>) -> Map<String, Value> {
    let mut kept = Map::new();
    for name in KEPT_HEADERS {
        if let Some(text) = text_of(headers, name) {
            kept.insert(name.to_owned(), Value::String(text));
        }
    }
    let mut metadata = Map::new();
    metadata.insert("verify".to_owned(), Value::from(settings.verifier.name()));
    metadata.insert("headers".to_owned(), Value::Object(kept));
    if let Some(event) = event {
        metadata.insert("event".to_owned(), Value::String(event));
    }
    if let Some(encoding) = encoding {
        metadata.insert("encoding".to_owned(), Value::from(encoding));
    }
    metadata
}

/// A header as text of at most [`MAX_KEPT_HEADER_BYTES`]; such text is ASCII, so any cut is clean.
fn text_of(headers: &HeaderMap, name: &str) -> Option<String> {
    let mut text = headers.get(name)?.to_str().ok()?.to_owned();
    text.truncate(MAX_KEPT_HEADER_BYTES);
    Some(text)
}

fn is_short_name(name: &str) -> bool {
    (1..=MAX_NAME_BYTES).contains(&name.len())
}

fn is_plain_id(id: &str) -> bool {
    (1..=MAX_DELIVERY_ID_BYTES).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_graphic())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    fn settings(verify: &str) -> Settings {
        let file = json!({
            "version": 1, "account_id": "acme", "credential": { "kind": "file", "value": "s" },
            "config": { "verify": verify, "event_header": "X-Kind" },
        });
        Settings::parse(file.to_string().as_bytes()).unwrap()
    }

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in pairs {
            map.insert(*name, value.parse().unwrap());
        }
        map
    }

    #[test]
    fn github_fields_come_from_headers_and_body() {
        let body = br#"{"sender":{"login":"octocat"},"repository":{"full_name":"o/r"}}"#;
        let headers = headers(&[
            ("x-github-delivery", "72d3162e-cc78-11e3-81ab-4c9367dc0958"),
            ("x-github-event", "push"),
            ("x-hub-signature-256", "sha256=00"),
            ("user-agent", "GitHub-Hookshot/044aadd"),
        ]);
        let event = build(&settings("github"), &headers, body.to_vec(), 17).unwrap();
        assert_eq!(event.event_id, "webhook:acme:72d3162e-cc78-11e3-81ab-4c9367dc0958");
        assert_eq!(event.sender_id, "github:octocat");
        assert_eq!(event.peer_id, "o/r");
        assert_eq!(event.timestamp, 17);
        assert_eq!(event.content.as_bytes(), body);
        assert_eq!(event.metadata["event"], "push");
        assert_eq!(event.metadata["headers"], json!({ "user-agent": "GitHub-Hookshot/044aadd" }));
    }

    #[test]
    fn github_form_bodies_and_odd_types_fall_back() {
        let headers = headers(&[("x-github-delivery", "d")]);
        for body in [&b"payload=%7B%7D"[..], br#"{"sender":7}"#, br#"{"sender":{"login":""}}"#] {
            let event = build(&settings("github"), &headers, body.to_vec(), 0).unwrap();
            assert_eq!((event.sender_id.as_str(), event.peer_id.as_str()), ("github", "acme"));
        }
    }

    #[test]
    fn github_without_a_delivery_id_is_unusable() {
        let refused = build(&settings("github"), &HeaderMap::new(), b"{}".to_vec(), 0);
        assert!(matches!(refused, Err(Unusable::NoDeliveryId { .. })));
    }

    #[test]
    fn stripe_id_and_time_come_from_the_body() {
        let body = br#"{"id":"evt_1","type":"charge.failed","created":1700000000}"#;
        let event = build(&settings("stripe"), &HeaderMap::new(), body.to_vec(), 5).unwrap();
        assert_eq!(event.event_id, "webhook:acme:evt_1");
        assert_eq!(event.timestamp, 1_700_000_000_000);
        assert_eq!(event.metadata["event"], "charge.failed");
        let hostile =
            [&b"not json"[..], br#"{"id":"evt_1"}"#, br#"{"id":"evt_1","created":9223372036854775807}"#, br#"{"id":"evt_1","created":-1}"#];
        for body in hostile {
            let refused = build(&settings("stripe"), &HeaderMap::new(), body.to_vec(), 5);
            assert_eq!(refused.unwrap_err(), Unusable::NotAStripeEvent);
        }
        let spaced = br#"{"id":"evt 1\n","created":1}"#;
        let refused = build(&settings("stripe"), &HeaderMap::new(), spaced.to_vec(), 5);
        assert_eq!(refused.unwrap_err(), Unusable::OddDeliveryId);
    }

    #[test]
    fn token_id_is_the_header_or_the_digest_of_the_body() {
        let given = headers(&[("x-request-id", "r-1"), ("x-kind", "deploy")]);
        let event = build(&settings("token"), &given, b"hi".to_vec(), 0).unwrap();
        assert_eq!(event.event_id, "webhook:acme:r-1");
        assert_eq!(event.metadata["event"], "deploy");
        let event = build(&settings("token"), &HeaderMap::new(), b"abc".to_vec(), 0).unwrap();
        assert_eq!(event.event_id, "webhook:acme:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }

    #[test]
    fn bytes_that_are_no_text_travel_as_base64() {
        let event = build(&settings("token"), &HeaderMap::new(), vec![0xff, 0xfe], 0).unwrap();
        assert_eq!(event.content, "//4=");
        assert_eq!(event.metadata["encoding"], "base64");
        let line = event.to_line().unwrap();
        assert_eq!(line.iter().filter(|byte| **byte == b'\n').count(), 1);
    }

    #[test]
    fn an_empty_body_is_unusable() {
        let refused = build(&settings("token"), &HeaderMap::new(), Vec::new(), 0);
        assert_eq!(refused.unwrap_err(), Unusable::EmptyBody);
    }
}
