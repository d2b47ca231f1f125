//! The frames of NIP-01 and NIP-42 as a client reads and writes them, and the outline of an event: what can be
//! known of it without reading its tags and content. It never checks an id or a signature.

use ::nostr::event::{Event, EventId, Kind, Signature, Tag};
use ::nostr::key::PublicKey;
use ::nostr::types::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use std::borrow::Cow;

/// Digits of an id and of a public key.
pub(crate) const KEY_DIGITS: usize = 64;
/// Digits of a signature.
const SIGNATURE_DIGITS: usize = 128;
/// Most tags of one event.
const TAGS_MAX: usize = 2_000;
/// Latest time of an event that is understood: the year 9999, in seconds.
const CREATED_AT_MAX: u64 = 253_402_300_799;
/// Longest text of a relay that is kept, in characters.
pub(crate) const MESSAGE_CHARS_MAX: usize = 200;
/// Longest challenge that is signed, in bytes.
const CHALLENGE_BYTES_MAX: usize = 1024;

/// What a relay says.
#[derive(Debug)]
pub enum FromRelay<'a> {
    Event {
        sub: Cow<'a, str>,
        event: &'a RawValue,
    },
    Ok {
        id: Cow<'a, str>,
        accepted: bool,
        message: Cow<'a, str>,
    },
    Eose {
        sub: Cow<'a, str>,
    },
    Closed {
        sub: Cow<'a, str>,
        message: Cow<'a, str>,
    },
    Notice {
        message: Cow<'a, str>,
    },
    Auth {
        challenge: Cow<'a, str>,
    },
    /// Something that a client needs not understand.
    Other,
}

/// Reads a frame; `None` for what is none.
pub fn parse(text: &str) -> Option<FromRelay<'_>> {
    let parts: Vec<&RawValue> = serde_json::from_str(text).ok()?;
    let label = string(parts.first()?)?;
    let text_at = |at: usize| parts.get(at).and_then(string);
    // A relay that leaves the reason out says as much as one with an empty reason.
    let message = |at: usize| text_at(at).unwrap_or(Cow::Borrowed(""));
    Some(match &*label {
        "EVENT" => FromRelay::Event { sub: text_at(1)?, event: parts.get(2)? },
        "OK" => {
            let accepted = serde_json::from_str(parts.get(2)?.get()).ok()?;
            FromRelay::Ok { id: text_at(1)?, accepted, message: message(3) }
        }
        "EOSE" => FromRelay::Eose { sub: text_at(1)? },
        "CLOSED" => FromRelay::Closed { sub: text_at(1)?, message: message(2) },
        "NOTICE" => FromRelay::Notice { message: message(1) },
        "AUTH" => FromRelay::Auth { challenge: text_at(1).filter(|challenge| challenge.len() <= CHALLENGE_BYTES_MAX)? },
        _ => FromRelay::Other,
    })
}

fn string<'a>(raw: &&'a RawValue) -> Option<Cow<'a, str>> {
    /// Borrows where the text has no escapes.
    #[derive(Deserialize)]
    struct Text<'a>(#[serde(borrow)] Cow<'a, str>);
    serde_json::from_str::<Text<'a>>(raw.get()).ok().map(|text| text.0)
}

/// An event whose tags and content were not read yet. A key that is there twice, one that is missing and
/// one of another type make none.
#[derive(Debug, Deserialize)]
pub(crate) struct Outline<'a> {
    #[serde(borrow)]
    pub(crate) id: Cow<'a, str>,
    #[serde(borrow)]
    pub(crate) pubkey: Cow<'a, str>,
    pub(crate) created_at: u64,
    pub(crate) kind: u16,
    #[serde(borrow)]
    tags: &'a RawValue,
    #[serde(borrow)]
    content: &'a RawValue,
    #[serde(borrow)]
    sig: Cow<'a, str>,
}

impl<'a> Outline<'a> {
    /// The outline, if the fixed parts have their shape.
    pub(crate) fn read(raw: &'a RawValue) -> Option<Self> {
        let outline: Self = serde_json::from_str(raw.get()).ok()?;
        let is_sound = is_hex(&outline.id, KEY_DIGITS)
            && is_hex(&outline.pubkey, KEY_DIGITS)
            && is_hex(&outline.sig, SIGNATURE_DIGITS)
            && outline.created_at <= CREATED_AT_MAX;
        is_sound.then_some(outline)
    }

    /// The whole event, if tags and content have their shape too. Its id and signature are as they were claimed.
    pub(crate) fn whole(&self) -> Option<Event> {
        let tags: Vec<Vec<String>> = serde_json::from_str(self.tags.get()).ok()?;
        if tags.len() > TAGS_MAX {
            return None;
        }
        let tags: Vec<Tag> = tags.into_iter().map(|tag| Tag::parse(tag).ok()).collect::<Option<_>>()?;
        let content: String = serde_json::from_str(self.content.get()).ok()?;
        Some(Event::new(
            EventId::from_hex(&self.id).ok()?,
            PublicKey::from_hex(&self.pubkey).ok()?,
            Timestamp::from_secs(self.created_at),
            Kind::from_u16(self.kind),
            tags,
            content,
            Signature::from_hex(&self.sig).ok()?,
        ))
    }
}

/// The time that an event claims, whatever else is wrong with it. In Unix seconds.
pub(crate) fn created_at(raw: &RawValue) -> Option<u64> {
    #[derive(Deserialize)]
    struct Dated {
        created_at: u64,
    }
    serde_json::from_str::<Dated>(raw.get()).ok().map(|dated| dated.created_at)
}

/// Whether a text is that many lowercase hexadecimal digits. Libraries read other things as keys too.
pub(crate) fn is_hex(text: &str, digits: usize) -> bool {
    text.len() == digits && text.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
}

/// The tags of an event as they stand in it.
pub(crate) fn tags_of(event: &Event) -> Vec<Vec<String>> {
    event.tags.iter().map(|tag| tag.as_slice().to_vec()).collect()
}

/// The first value of the first tag of that name.
pub(crate) fn tag_value<'e>(event: &'e Event, name: &str) -> Option<&'e str> {
    event.tags.iter().find(|tag| tag.kind() == name).and_then(|tag| tag.content())
}

/// A relay's text as it is kept and shown: short, on one line.
pub(crate) fn short(message: &str) -> String {
    message.chars().take(MESSAGE_CHARS_MAX).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// `["REQ", sub, filter]`.
pub(crate) fn request(sub: &str, filter: &impl Serialize) -> String {
    line(&("REQ", sub, filter))
}

/// `["CLOSE", sub]`.
pub(crate) fn close(sub: &str) -> String {
    line(&("CLOSE", sub))
}

/// `["EVENT", event]`.
pub(crate) fn event(event: &Event) -> String {
    line(&("EVENT", event))
}

/// `["AUTH", event]`.
pub(crate) fn auth(event: &Event) -> String {
    line(&("AUTH", event))
}

/// `["EVENT", event]` of an event that is stored as text.
pub(crate) fn stored_event(json: &str) -> String {
    format!("[\"EVENT\",{json}]")
}

fn line(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("texts, numbers and events are JSON")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use ::nostr::event::{EventBuilder, FinalizeEvent};
    use ::nostr::key::Keys;

    fn outline(json: &str) -> bool {
        let raw: &RawValue = serde_json::from_str(json).unwrap();
        Outline::read(raw).is_some_and(|outline| outline.whole().is_some())
    }

    #[test]
    fn frames_are_read_and_others_are_none() {
        assert!(matches!(parse(r#"["EOSE","a\u0062"]"#), Some(FromRelay::Eose { sub }) if sub == "ab"));
        assert!(matches!(parse(r#"["CLOSED","a"]"#), Some(FromRelay::Closed { message, .. }) if message.is_empty()));
        assert!(matches!(parse(r#"["OK","id",true]"#), Some(FromRelay::Ok { accepted: true, .. })));
        assert!(matches!(parse(r#"["AUTH","c"]"#), Some(FromRelay::Auth { .. })));
        assert!(matches!(parse(r#"["NOTICE","no"]"#), Some(FromRelay::Notice { message }) if message == "no"));
        assert!(matches!(parse(r#"["COUNT","a",{"count":1}]"#), Some(FromRelay::Other)));
        for wrong in ["", "{}", "[]", "[1]", r#"["EOSE"]"#, r#"["EOSE",1]"#, r#"["OK","id","yes"]"#, r#"["EVENT","a"]"#, "[\"EOSE\",\"a\""]
        {
            assert!(parse(wrong).is_none(), "{wrong}");
        }
        assert!(parse(&format!("[\"AUTH\",\"{}\"]", "c".repeat(CHALLENGE_BYTES_MAX + 1))).is_none());
    }

    #[test]
    fn what_libraries_would_forgive_is_no_event() {
        let event = EventBuilder::new(Kind::TextNote, "hi").tag(Tag::hashtag("x")).finalize(&Keys::generate()).unwrap();
        let sound = event.as_json();
        assert!(outline(&sound));
        let (id, tags) = (event.id.to_hex(), r#""tags":[["t","x"]]"#);
        assert!(sound.contains(tags), "{sound}");
        let cases = [
            sound.replace(&id, &id[..62]),
            sound.replace(&id, &id.to_uppercase()),
            sound.replace("\"kind\":1", "\"kind\":65536"),
            sound.replace("\"kind\":1", "\"kind\":1.0"),
            sound.replace("\"kind\":1", "\"kind\":1,\"kind\":1"),
            sound.replace(tags, r#""tags":[["t",1]]"#),
            sound.replace(tags, r#""tags":[[]]"#),
            sound.replace(tags, &format!("\"tags\":[{}]", vec!["[\"t\"]"; TAGS_MAX + 1].join(","))),
            sound.replace("\"hi\"", "\"\\ud800\""),
            sound.replace("\"created_at\":", "\"created_at\":-"),
            sound.replace("\"created_at\":", "\"created_at\":9999999"),
            sound.replace("\"created_at\"", "\"createdat\""),
        ];
        for case in cases {
            assert!(!outline(&case), "{case}");
        }
    }

    #[test]
    fn a_time_is_read_of_what_is_no_event() {
        let at = |json: &str| created_at(serde_json::from_str(json).unwrap());
        assert_eq!(at(r#"{"created_at":7,"tags":1,"content":[null]}"#), Some(7));
        for none in [r#"{"created_at":-1}"#, r#"{"created_at":"7"}"#, r#"{"created_at":7,"created_at":1}"#, "{}", "7"] {
            assert_eq!(at(none), None, "{none}");
        }
    }

    #[test]
    fn stored_events_leave_as_they_were_signed() {
        let signed = EventBuilder::new(Kind::TextNote, "\u{1}\"ä").finalize(&Keys::generate()).unwrap();
        assert_eq!(stored_event(&signed.as_json()), event(&signed));
    }
}
