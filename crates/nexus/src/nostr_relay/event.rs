//! An event as the relay takes it: its shape, id and signature checked, its class known (NIP-01).
//! It reads no clock and no database.

use super::limits::{AHEAD_S_MAX, TAGS_MAX};
use serde::Deserialize;

/// Kind of a proof of who a client is (NIP-42): it is never kept or passed on.
pub(super) const AUTH_KIND: u16 = 22_242;
/// Kind of a request to delete (NIP-09).
pub(super) const DELETION_KIND: u16 = 5;

/// What becomes of an event of a kind (NIP-01, "Kinds").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Class {
    Regular,
    /// Only the newest by author and kind counts.
    Replaceable,
    /// Only the newest by author, kind and `d` tag counts.
    Addressable,
    /// Passed on, never kept.
    Ephemeral,
}

impl Class {
    pub(super) fn of(kind: u16) -> Self {
        match kind {
            0 | 3 | 10_000..20_000 => Self::Replaceable,
            20_000..30_000 => Self::Ephemeral,
            30_000..40_000 => Self::Addressable,
            _ => Self::Regular,
        }
    }
}

/// An event whose id and signature are right.
#[derive(Debug)]
pub(super) struct Event {
    pub(super) id: String,
    pub(super) pubkey: String,
    pub(super) kind: u16,
    /// Unix seconds; never beyond what the database can hold.
    pub(super) created_at: u64,
    pub(super) tags: Vec<Vec<String>>,
    /// As it is handed out.
    pub(super) json: String,
}

/// Why an event is not taken; the id as far as it could be read.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Refused {
    pub(super) id: Option<String>,
    /// With the prefix that NIP-01 wants for machines.
    pub(super) reason: String,
}

/// All that is looked at when the rest can't be read.
#[derive(Deserialize)]
struct Named {
    id: String,
}

impl Event {
    /// Reads and checks an event; `now_s` is the wall time in Unix seconds.
    ///
    /// # Errors
    /// [`Refused`] for a wrong shape, id or signature, for too many tags and for a date in the future.
    pub(super) fn checked(text: &str, now_s: u64) -> Result<Self, Refused> {
        let refused = |reason: &str| {
            let id = serde_json::from_str(text).ok().map(|named: Named| named.id).filter(|id| is_hex(id));
            Refused { id, reason: format!("invalid: {reason}") }
        };
        let event = ::nostr::event::Event::from_json(text).map_err(|error| refused(&format!("it is no event: {error}")))?;
        if event.tags.len() > TAGS_MAX {
            return Err(refused(&format!("it has more than {TAGS_MAX} tags")));
        }
        if event.created_at.as_secs() > now_s.saturating_add(AHEAD_S_MAX) {
            return Err(refused("created_at is too far in the future"));
        }
        if !event.verify_id() {
            return Err(refused("the id is not that of its contents"));
        }
        if !event.verify_signature() {
            return Err(refused("the signature is wrong"));
        }
        let json = event.try_as_json().map_err(|error| refused(&error.to_string()))?;
        Ok(Self {
            id: event.id.to_hex(),
            pubkey: event.pubkey.to_hex(),
            kind: event.kind.as_u16(),
            created_at: event.created_at.as_secs(),
            tags: event.tags.iter().map(|tag| tag.as_slice().to_vec()).collect(),
            json,
        })
    }

    pub(super) fn class(&self) -> Class {
        Class::of(self.kind)
    }

    /// The first value of the first tag of that name.
    pub(super) fn tag(&self, name: &str) -> Option<&str> {
        let tag = self.tags.iter().find(|tag| tag.first().is_some_and(|first| first == name))?;
        tag.get(1).map(String::as_str)
    }

    /// The first value of each tag of that name.
    pub(super) fn values<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.tags.iter().filter(move |tag| tag.first().is_some_and(|first| first == name)).filter_map(|tag| tag.get(1)).map(String::as_str)
    }

    /// Name and first value of each tag that filters can ask for: those of one letter.
    pub(super) fn indexed(&self) -> impl Iterator<Item = (&str, &str)> {
        self.tags.iter().filter_map(|tag| match tag.as_slice() {
            [name, value, ..] if is_letter(name) => Some((name.as_str(), value.as_str())),
            _ => None,
        })
    }

    /// What all versions of a replaceable event share: `kind:pubkey:d`.
    pub(super) fn address(&self) -> Option<String> {
        match self.class() {
            Class::Replaceable => Some(format!("{}:{}:", self.kind, self.pubkey)),
            Class::Addressable => Some(format!("{}:{}:{}", self.kind, self.pubkey, self.tag("d").unwrap_or_default())),
            Class::Regular | Class::Ephemeral => None,
        }
    }

    /// When it ends to count, in Unix seconds (NIP-40).
    pub(super) fn expires_at(&self) -> Option<u64> {
        self.tag("expiration").and_then(|text| text.parse().ok())
    }

    pub(super) fn is_expired(&self, now_s: u64) -> bool {
        self.expires_at().is_some_and(|at| at <= now_s)
    }
}

/// Whether a text is one of the names that filters know as `#x`.
pub(super) fn is_letter(name: &str) -> bool {
    matches!(name.as_bytes(), [letter] if letter.is_ascii_alphabetic())
}

/// Whether a text is 32 bytes in small hexadecimal digits, as ids and keys are written.
pub(super) fn is_hex(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

#[cfg(test)]
pub(super) mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use ::nostr::event::{EventBuilder, FinalizeEvent, Kind, Tag};
    use ::nostr::key::Keys;
    use ::nostr::types::Timestamp;

    pub(in super::super) const NOW_S: u64 = 1_700_000_000;

    /// A signed event of key number `key`, as a client would write it.
    pub(in super::super) fn signed(key: u8, kind: u16, created_at: u64, tags: &[&[&str]], content: &str) -> String {
        let keys = Keys::parse(&format!("{key:02x}").repeat(32)).unwrap();
        let tags = tags.iter().map(|tag| Tag::parse(tag.iter().copied()).unwrap());
        let made = EventBuilder::new(Kind::from(kind), content).tags(tags).custom_created_at(Timestamp::from_secs(created_at));
        made.finalize(&keys).unwrap().as_json()
    }

    pub(in super::super) fn event(key: u8, kind: u16, created_at: u64, tags: &[&[&str]], content: &str) -> Event {
        Event::checked(&signed(key, kind, created_at, tags, content), NOW_S).unwrap()
    }

    #[test]
    fn a_sound_event_is_known_by_its_parts() {
        let event =
            event(1, 30_023, NOW_S, &[&["d", "x", "more"], &["t", "a"], &["long", "b"], &["e"], &["expiration", "1700000001"]], "hi");
        assert_eq!(event.class(), Class::Addressable);
        assert_eq!(event.address(), Some(format!("30023:{}:x", event.pubkey)));
        assert_eq!(event.indexed().collect::<Vec<_>>(), [("d", "x"), ("t", "a")]);
        assert!(!event.is_expired(NOW_S) && event.is_expired(NOW_S + 1));
        assert!(is_hex(&event.id) && is_hex(&event.pubkey));
    }

    #[test]
    fn what_is_forged_or_malformed_is_refused_with_its_id() {
        let good = signed(1, 1, NOW_S, &[], "hi");
        let id = Event::checked(&good, NOW_S).unwrap().id;
        let other = signed(1, 1, NOW_S, &[], "ho");
        let part = |text: &str, name: &str| serde_json::from_str::<serde_json::Value>(text).unwrap()[name].as_str().unwrap().to_owned();
        let cases = [
            (good.replace("\"hi\"", "\"ha\""), Some(id.clone())),
            (good.replace(&part(&good, "sig"), &part(&other, "sig")), Some(id.clone())),
            (good.replace("\"kind\":1,", "\"kind\":65536,"), Some(id.clone())),
            (good.replace("\"kind\":1,", "\"kind\":1,\"kind\":1,"), Some(id.clone())),
            (good.replace("\"tags\":[]", "\"tags\":[[1]]"), Some(id.clone())),
            (good.replace("\"hi\"", "\"\\ud800\""), Some(id.clone())),
            (good.replace("\"created_at\":1700000000", "\"created_at\":-1"), Some(id.clone())),
            (good.replace(&id, "short"), None),
            ("{}".to_owned(), None),
            ("[".repeat(1000), None),
        ];
        for (text, id) in cases {
            let refused = Event::checked(&text, NOW_S).unwrap_err();
            assert!(refused.reason.starts_with("invalid: "), "{text}: {}", refused.reason);
            assert_eq!(refused.id, id, "{text}");
        }
    }

    #[test]
    fn dates_and_tags_have_bounds() {
        let early = signed(1, 1, NOW_S + AHEAD_S_MAX + 1, &[], "");
        assert!(Event::checked(&early, NOW_S).unwrap_err().reason.contains("future"));
        assert!(Event::checked(&early, NOW_S + 1).is_ok());
        let tag: &[&str] = &["t", "x"];
        let many = signed(1, 1, NOW_S, &vec![tag; TAGS_MAX + 1], "");
        assert!(Event::checked(&many, NOW_S).unwrap_err().reason.contains("tags"));
    }

    #[test]
    fn classes_are_those_of_nip_01() {
        for (kind, class) in [
            (0, Class::Replaceable),
            (1, Class::Regular),
            (3, Class::Replaceable),
            (5, Class::Regular),
            (41, Class::Regular),
            (9_999, Class::Regular),
            (10_000, Class::Replaceable),
            (20_000, Class::Ephemeral),
            (29_999, Class::Ephemeral),
            (30_000, Class::Addressable),
            (39_999, Class::Addressable),
            (40_000, Class::Regular),
            (65_535, Class::Regular),
        ] {
            assert_eq!(Class::of(kind), class, "{kind}");
        }
    }
}
